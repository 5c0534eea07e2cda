"""Commands for more tasks than one turn may look at."""

from __future__ import annotations

import pytest

from schedd.core import effects as fx
from schedd.core import events as ev
from schedd.core import requests
from schedd.core.model import Cause

from .builders import World, of, selection, spec


@pytest.fixture(autouse=True)
def two_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "CHANGES_PER_TURN_MAX", 2)


def replies(effects: fx.Effects) -> list[tuple[int, int]]:
    """Origin and number of changed tasks of each reply."""
    return [(reply.origin, reply.changed) for reply in of(effects.actions, fx.ReplyChanged)]


def is_pending(world: World) -> bool:
    """Whether the engine wants to go on at once."""
    due = world.engine.next_deadline()
    return due is not None and due <= world.now


def test_long_command_goes_on_in_turns_that_follow_at_once() -> None:
    world = World()
    world.submit(5, job="j")
    assert not replies(world.handle(ev.HoldTasks(1, selection(job="j"))))
    assert world.states(1, 2, 3, 4, 5) == ["held", "held", "queued", "queued", "queued"]
    assert is_pending(world)
    assert not replies(world.wake())
    assert world.states(3, 4, 5) == ["held", "held", "queued"]
    assert replies(world.wake()) == [(1, 5)]
    assert world.states(5) == ["held"]
    assert not is_pending(world)


def test_short_command_is_one_turn() -> None:
    world = World()
    world.submit(2, job="j")
    assert replies(world.handle(ev.CancelTasks(1, selection(2), True))) == [(1, 1)]
    assert not is_pending(world)


def test_commands_are_carried_out_in_their_order() -> None:
    """The later one counts, for every task, although the first had not come so far."""
    world = World()
    world.submit(5, job="j")
    effects = [world.handle(ev.HoldTasks(1, selection(job="j")), ev.ReleaseTasks(2, selection(5)))]
    while is_pending(world):
        effects.append(world.wake())
    assert [reply for one in effects for reply in replies(one)] == [(1, 5), (2, 1)]
    assert world.states(4, 5) == ["held", "queued"]


def test_what_is_submitted_later_is_not_meant() -> None:
    world = World()
    world.submit(3, job="j")
    world.handle(ev.CancelTasks(1, selection(job="j"), True))
    world.submit(2, job="j")
    while is_pending(world):
        world.wake()
    assert world.states(1, 2, 3, 4, 5) == ["cancelled"] * 3 + ["queued"] * 2


def test_command_that_waits_for_another_does_not_mean_what_is_submitted_later_either() -> None:
    world = World()
    world.submit(5, job="j")
    world.handle(ev.HoldTasks(1, selection(job="j")), ev.CancelTasks(2, selection(job="j"), True))
    world.submit(1, job="j")
    while is_pending(world):
        world.wake()
    assert world.states(1, 5, 6) == ["cancelled", "cancelled", "queued"]


def test_task_that_ends_in_between_is_left_as_it_is_found() -> None:
    world = World()
    world.join(cpus=1)
    world.submit(4, job="j")
    world.start(1)
    world.handle(ev.CancelTasks(1, selection(job="j"), True))  # the newest first
    assert world.states(1, 2, 3, 4) == ["running", "queued", "cancelled", "cancelled"]
    world.handle(world.finished(1))
    while is_pending(world):
        world.wake()
    assert world.states(1, 2) == ["succeeded", "cancelled"]
    world.engine.check()


def test_tasks_are_placed_while_a_command_is_under_way() -> None:
    world = World()
    world.submit(6, job="j")
    world.handle(ev.SetTasks(1, selection(job="j"), 5.0))
    world.join(cpus=2)
    assert world.states(1, 2) == ["assigned", "assigned"]
    while is_pending(world):
        world.wake()
    assert [world.task(i).priority for i in (3, 6)] == [5.0, 5.0]


def test_forgotten_rows_are_passed_over() -> None:
    world = World(finished_keep_count=1)
    world.join(cpus=3)
    world.submit(3, job="j")
    world.submit(3, job="j", hold=True)
    world.start(1, 2, 3)
    world.handle(ev.ReleaseTasks(1, selection(job="j")))
    world.finish(1, 2, 3)
    effects = [world.wake()]
    while is_pending(world):
        effects.append(world.wake())
    assert world.engine.tasks.get(2) is None  # type: ignore[arg-type]
    assert [reply for one in effects for reply in replies(one)] == [(1, 3)]


def test_unknown_job_of_a_command_that_waits() -> None:
    world = World()
    world.submit(3, job="j")
    world.handle(ev.HoldTasks(1, selection(job="j")), ev.HoldTasks(2, selection(job="nobody")))
    effects = world.wake()
    assert replies(effects) == [(1, 3)]
    assert [(no.origin, no.code) for no in of(effects.actions, fx.ReplyDeclined)] == [(2, "unknown_job")]


def test_priorities_of_many() -> None:
    world = World()
    world.submit_entries(spec(), [])
    world.submit(5)
    assert not replies(world.handle(ev.SetPriorities(1, [(i, float(i)) for i in range(1, 6)])))  # type: ignore[misc]
    world.wake()
    assert replies(world.wake()) == [(1, 5)]
    assert [world.task(i).priority for i in range(1, 6)] == [1.0, 2.0, 3.0, 4.0, 5.0]


def test_reply_names_what_was_left_in_all_its_turns() -> None:
    world = World()
    world.join(cpus=2)
    world.submit(2)
    world.finish(1, 2, cause=Cause.OK)
    world.handle(ev.CancelTasks(1, selection(1, 2, 98, 99), True))
    world.wake()
    [reply] = of(world.wake().actions, fx.ReplyChanged)  # nothing was left, which it could not know before
    assert reply.unchanged == [
        (99, "unknown task"),
        (98, "unknown task"),
        (2, "already succeeded"),
        (1, "already succeeded"),
    ]
