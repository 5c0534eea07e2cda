"""Files that are not what they should be: settings, jobs, rows of a journal. Each is refused in words, or read."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedd.cli.jobfile import read_job_file
from schedd.cli.options import BadInput
from schedd.config import load_settings
from schedd.errors import ConfigError
from schedd.fuzz.targets import TARGETS

DEEP = "[" * 20_000


@pytest.mark.parametrize("name", ["config", "jobfile", "journal"])
@settings(max_examples=30, deadline=None)
@given(chance=st.randoms(use_true_random=True))
def test_nearly_right(name: str, chance: random.Random) -> None:
    target = TARGETS[name]()
    for _ in range(8):
        data = target.make(chance)
        target.take(data)
        target.take(target.change(data, chance) or data)


@pytest.mark.parametrize("name", ["config", "jobfile", "journal"])
@given(data=st.binary(max_size=300))
def test_any_bytes(name: str, data: bytes) -> None:
    TARGETS[name]().take(data)


@pytest.mark.parametrize("text", [f"x = {DEEP}", f"x = {'{a=' * 5000}", "x." * 1000 + "x = 1"])
def test_deep_nesting(tmp_path: Path, text: str) -> None:
    path = tmp_path / "file.toml"
    path.write_text(text)
    with pytest.raises(ConfigError):
        load_settings(path)
    with pytest.raises(BadInput):
        read_job_file(path, {})


@pytest.mark.parametrize(
    "line",
    [
        'array = "1-99999999999999999999"',
        'after = "1-99999999999999999999"',
        "priority = 99999999999999999999999999",
        'cwd = "~nobody-of-this-name/x"',
        'cwd = "\\u0000"',
        'stdin = "\\u0000"',
        'each-line = "\\u0000"',
        'time-estimate = "' + "9" * 400 + '"',
        "array = [99999999999999999999999]",
    ],
)
def test_job_file_that_nobody_meant(tmp_path: Path, line: str) -> None:
    path = tmp_path / "job.toml"
    path.write_text(f'[[task]]\ncommand = "true"\n{line}\n')
    with contextlib.suppress(BadInput):
        read_job_file(path, {})
