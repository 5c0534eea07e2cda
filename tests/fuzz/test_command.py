"""`python -m schedd.fuzz`: what goes wrong is written down, made small, and seen again."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path

import pytest

from schedd.fuzz import failures, targets
from schedd.fuzz.__main__ import main
from schedd.fuzz.failures import Failure


class Picky:
    """Goes wrong at b"bad" once it has seen b"key"."""

    def reset(self, seed: int) -> None:
        self._has_key = False

    def take(self, data: bytes) -> None:
        self._has_key |= data == b"key"
        if data == b"bad" and self._has_key:
            raise KeyError(data)

    def make(self, dice: random.Random) -> bytes:
        return dice.randbytes(3)

    def change(self, data: bytes, dice: random.Random) -> bytes | None:
        return None


@pytest.fixture
def picky(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(targets.TARGETS, "picky", Picky)


@pytest.mark.usefixtures("picky")
def test_failure_is_made_small() -> None:
    noise = [b"%d" % number for number in range(100)]
    found = failures.shrunk(Failure("picky", 1, [*noise, b"key", *noise, b"bad"]))
    assert found.inputs == [b"key", b"bad"]


@pytest.mark.usefixtures("picky")
def test_what_does_not_go_wrong_again_is_left_as_it_is() -> None:
    whole = Failure("picky", 1, [b"a", b"b"])
    assert failures.shrunk(whole) == whole


@pytest.mark.usefixtures("picky")
def test_reproduce(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "picky.failure"
    failures.write(path, Failure("picky", 1, [b"key", b"bad"]))
    assert main(["--reproduce", str(path)]) == 1
    assert "KeyError" in capsys.readouterr().out
    failures.write(path, Failure("picky", 1, [b"bad"]))
    assert main(["--reproduce", str(path)]) == 0
    path.write_bytes(b"\xc1")
    assert main(["--reproduce", str(path)]) == 2


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed: schedd[fuzz]")
def test_guided_by_coverage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["journal", "--inputs", "2000", "--failures", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "2,000 inputs" in said
    assert "0 failures" in said
    assert not list(tmp_path.iterdir())
