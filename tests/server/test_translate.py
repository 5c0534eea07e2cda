"""Messages become events that a turn can bear."""

from __future__ import annotations

import pytest

from schedd.core import events as ev
from schedd.core.model import AttemptFinished, Cause, TaskId, WorkerId
from schedd.server.loop import TASKS_PER_TURN_MAX
from schedd.server.translate import ENDS_PER_PORTION, MORE_TO_COME, portions, worker_event
from schedd.wire import messages as m

NAME = WorkerId("w")


@pytest.mark.parametrize("count", [0, 1, ENDS_PER_PORTION, ENDS_PER_PORTION + 1, 5 * ENDS_PER_PORTION])
def test_ends_come_in_portions_of_which_the_last_is_acknowledged(count: int) -> None:
    ends = [AttemptFinished(TaskId(i), 1, Cause.OK, 1, 2) for i in range(count)]
    other = m.WorkerGoodbye("that was all")
    *parts, last = list(portions([m.AttemptsFinished(7, ends), other]))
    assert last is other
    assert [getattr(part, "seq", None) for part in parts] == [MORE_TO_COME] * (len(parts) - 1) + [7]
    told: list[AttemptFinished] = []
    for part in parts:
        event = worker_event(NAME, part)
        assert isinstance(event, ev.AttemptsFinished)
        assert event.worker_id == NAME
        assert len(event.attempts) <= ENDS_PER_PORTION <= TASKS_PER_TURN_MAX
        told += event.attempts
    assert told == ends


def test_what_the_shell_answers_is_no_event() -> None:
    assert worker_event(NAME, m.LogPiece(1, b"x", 0, 1, True)) is None
