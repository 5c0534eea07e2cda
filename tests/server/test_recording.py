"""What the log says of facts."""

from __future__ import annotations

import logging

import pytest

from schedd.core import effects as fx
from schedd.core.model import SECOND, AttemptRecord, Cause, Instant, Queued, Task, TaskId, WorkerId
from schedd.core.tasks import TaskTable
from schedd.server.recording import BURST_S, COUNT_INTERVAL_S, Recorder


def ended(cause: Cause, attempt: int = 1) -> fx.AttemptEnded:
    exit_code = 0 if cause is Cause.OK else 1
    times = (60 * SECOND, 61 * SECOND, 64 * SECOND)
    return fx.AttemptEnded(TaskId(1), AttemptRecord(attempt, WorkerId("w1"), *times, cause, exit_code))


@pytest.fixture
def tasks() -> TaskTable:
    table = TaskTable()
    row = Task(id=TaskId(1), state=Queued(SECOND), submitted_ns=SECOND, kind="train.py", job="sweep")
    table.admit(row, SECOND)
    return table


@pytest.fixture
def info(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "schedd.server")
    return caplog


def lines(caplog: pytest.LogCaptureFixture, event: str) -> list[str]:
    return [message for message in caplog.messages if message.startswith(event)]


def test_queueing_delay_counts_from_the_submit(tasks: TaskTable, info: pytest.LogCaptureFixture) -> None:
    Recorder(0).record([ended(Cause.ERROR, attempt=2)], tasks, 64 * SECOND)
    assert info.messages == [
        "attempt_finished task=1 attempt=2 worker=w1 kind=train.py job=sweep outcome=error exit_code=1 "
        "queueing_delay_s=60 runtime_s=3"
    ]


def test_attempts_that_go_well_have_a_line_each_while_they_are_few(
    tasks: TaskTable, info: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder(2.0)
    for second in range(100):
        recorder.record([ended(Cause.OK)] * 2, tasks, second * SECOND)
    assert len(lines(info, "attempt_finished")) == 200
    assert not lines(info, "attempts_not_logged")


def test_flood_is_counted_and_what_failed_has_its_line_all_the_same(
    tasks: TaskTable, info: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder(2.0)
    recorder.record([*[ended(Cause.OK)] * 1000, ended(Cause.ERROR)], tasks, SECOND)
    recorder.record([], tasks, SECOND)
    told = lines(info, "attempt_finished")
    assert sum("outcome=ok" in line for line in told) == pytest.approx(2 * BURST_S, abs=3)
    assert "outcome=error" in told[-1]
    assert not lines(info, "attempts_not_logged")
    recorder.record([], tasks, (1 + COUNT_INTERVAL_S) * SECOND)
    left_out = 1000 - (len(told) - 1)
    assert lines(info, "attempts_not_logged") == [f"attempts_not_logged outcome=ok count={left_out}"]


def test_no_line_for_what_goes_well_where_none_is_wanted(tasks: TaskTable, info: pytest.LogCaptureFixture) -> None:
    recorder = Recorder(0)
    recorder.record([ended(Cause.OK)] * 3, tasks, SECOND)
    recorder.record([], tasks, 100 * SECOND)
    assert info.messages == []


@pytest.mark.parametrize("at_ns", [SECOND, 1_000_000 * SECOND])
def test_debug_has_them_all(tasks: TaskTable, caplog: pytest.LogCaptureFixture, at_ns: Instant) -> None:
    caplog.set_level(logging.DEBUG, "schedd.server")
    Recorder(1.0).record([ended(Cause.OK)] * 500, tasks, at_ns)
    assert len(lines(caplog, "attempt_finished")) == 500
