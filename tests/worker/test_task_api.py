from __future__ import annotations

import json
import math
import signal
import socket
from pathlib import Path

import pytest

from schedd.worker import task_api
from schedd.worker.stop_flag import StopFlag
from schedd.worker.task_api import report, should_stop


@pytest.fixture
def no_task(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SCHEDD_REPORT", "SCHEDD_TASK_ID", "SCHEDD_ATTEMPT"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("no_task")
def test_outside_of_a_task_it_does_nothing() -> None:
    report(1, 0.5, loss=2)


@pytest.mark.usefixtures("no_task")
def test_outside_of_a_task_nobody_is_to_stop() -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert not should_stop()
    assert signal.getsignal(signal.SIGTERM) is before


def test_inside_of_a_call_its_child_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_api, "stop_of_call", lambda: True)
    assert should_stop()


def test_flag(tmp_path: Path) -> None:
    worker = StopFlag(f"{tmp_path}/stop", create=True)
    call = StopFlag(f"{tmp_path}/stop")
    assert not call.look()
    call.forget()
    assert not worker.ask()
    assert call.look()
    assert worker.ask()
    worker.remove()
    assert not list(tmp_path.iterdir())
    assert call.look()


@pytest.mark.usefixtures("no_task")
def test_worker_that_is_gone_does_not_hurt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCHEDD_REPORT", str(tmp_path / "none"))
    report(1, 0.5)


def test_numbers_only(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="could not convert"):
        report(1, loss="high")  # type: ignore[arg-type]


def test_command_sends_a_datagram(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as worker:
        worker.bind(str(tmp_path / "report"))
        monkeypatch.setenv("SCHEDD_REPORT", str(tmp_path / "report"))
        monkeypatch.setenv("SCHEDD_TASK_ID", "7")
        monkeypatch.setenv("SCHEDD_ATTEMPT", "2")
        report(3, 0.5, loss=math.inf)
        message = json.loads(worker.recv(65536))
    assert message == {"task_id": 7, "attempt": 2, "step": 3, "metrics": {"metric": 0.5, "loss": None}}


def test_call_sends_through_its_child(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[int, dict[str, float]]] = []
    monkeypatch.setattr(task_api, "send_from_call", lambda step, metrics: sent.append((step, metrics)))
    report(4, loss=1)
    assert sent == [(4, {"loss": 1.0})]
