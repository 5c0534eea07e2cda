"""What the log says of facts."""

from __future__ import annotations

import logging

import pytest

from schedd.core import effects as fx
from schedd.core.model import SECOND, AttemptRecord, Cause, Queued, Task, TaskId, WorkerId
from schedd.core.tasks import TaskTable
from schedd.server import recording


def test_queueing_delay_counts_from_the_submit(caplog: pytest.LogCaptureFixture) -> None:
    tasks = TaskTable()
    tasks.admit(Task(id=TaskId(1), state=Queued(SECOND), submitted_ns=SECOND), SECOND)
    second_try = AttemptRecord(2, WorkerId("w1"), 60 * SECOND, 61 * SECOND, 64 * SECOND, Cause.ERROR, 1)
    with caplog.at_level(logging.INFO, "schedd.server"):
        recording.record([fx.AttemptEnded(TaskId(1), second_try)], tasks)
    assert "queueing_delay_s=60 runtime_s=3" in caplog.text
