"""Messages become events that a turn can bear."""

from __future__ import annotations

import pytest

from schedd.core import events as ev
from schedd.core.model import AttemptFinished, Cause, TaskId, WorkerId
from schedd.server.loop import TASKS_PER_TURN_MAX
from schedd.server.translate import ENDS_PER_EVENT, worker_events
from schedd.wire import messages as m

NAME = WorkerId("w")


@pytest.mark.parametrize("count", [0, 1, ENDS_PER_EVENT, ENDS_PER_EVENT + 1, 5 * ENDS_PER_EVENT])
def test_ends_come_in_portions_that_fit_into_a_turn(count: int) -> None:
    ends = [AttemptFinished(TaskId(i), 1, Cause.OK, 1, 2) for i in range(count)]
    events = list(worker_events(NAME, m.AttemptsFinished(7, ends)))
    assert events, "an event whose turn has the report acknowledged"
    told: list[AttemptFinished] = []
    for event in events:
        assert isinstance(event, ev.AttemptsFinished)
        assert event.worker_id == NAME
        assert len(event.attempts) <= ENDS_PER_EVENT <= TASKS_PER_TURN_MAX
        told += event.attempts
    assert told == ends


def test_what_the_shell_answers_is_no_event() -> None:
    assert not list(worker_events(NAME, m.LogPiece(1, b"x", 0, 1, True)))
