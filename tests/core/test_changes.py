# mypy: disable-error-code="arg-type, list-item"
"""Cancel, hold, release and set, in every state of a task."""

from __future__ import annotations

import math

import pytest

from schedd.core import effects as fx
from schedd.core import events as ev
from schedd.core.model import SECOND, Cause, TaskEntry, TaskRequirements, TaskRules

from .builders import START, World, answered, dispatches, holds, joined, of, selection, spec, started, unchanged

# ------------------------------------------------------------------------------------------------------------- cancel


@pytest.mark.parametrize(
    ("values", "state"),
    [({"hold": True}, "held"), ({"after": [1]}, "waiting"), ({"delay_s": 9}, "delayed"), ({}, "queued")],
)
def test_cancel_before_the_dispatch(values: dict[str, object], state: str) -> None:
    world = World()
    world.submit(hold=True)
    world.submit(**values)
    assert world.states(2) == [state]
    effects = world.cancel(2)
    assert effects.facts == [fx.TaskFinished(2, "cancelled", START, "cancelled", None)]
    assert effects.actions == [fx.ReplyChanged(1, 1, [])]
    world.join()
    assert world.states(2) == ["cancelled"]
    assert world.engine.explain(world.task(2)).summary == "cancelled"


def test_cancel_what_has_ended() -> None:
    world = World()
    world.join()
    world.submit()
    world.finish(1)
    effects = world.cancel(1, 99)
    assert not effects.facts
    assert effects.actions == [fx.ReplyChanged(1, 0, [(99, "unknown task"), (1, "already succeeded")])]


def test_cancel_twice() -> None:
    world = World()
    world.join()
    world.submit()
    assert world.cancel(1).actions == [
        fx.ReplyChanged(1, 1, []),
        fx.StopAttempts("w1", [(1, 1)], Cause.CANCELLED),
    ]
    assert world.cancel(1).actions == [fx.ReplyChanged(1, 0, [(1, "is being cancelled")])]


@pytest.mark.parametrize("begun", [False, True])
def test_cancel_what_was_dispatched(begun: bool) -> None:
    world = World()
    world.join()
    world.submit()
    if begun:
        world.start(1)
    effects = world.cancel(1)
    assert effects.facts == [fx.CancelAsked(1)]
    assert of(effects.actions, fx.StopAttempts) == [fx.StopAttempts("w1", [(1, 1)], Cause.CANCELLED)]
    assert world.states(1) == ["running" if begun else "assigned"]
    effects = world.finish(1, cause=Cause.CANCELLED, message="stopped")
    assert of(effects.facts, fx.TaskFinished) == [fx.TaskFinished(1, "cancelled", START, "stopped", None)]
    assert world.worker().task_count == 0


@pytest.mark.parametrize(
    ("cause", "state"),
    [(Cause.OK, "succeeded"), (Cause.ERROR, "cancelled"), (Cause.TIMEOUT, "cancelled"), (Cause.LOST, "cancelled")],
)
def test_cancel_crosses_the_end(cause: Cause, state: str) -> None:
    world = World()
    world.join()
    world.submit(rules=TaskRules(retries=5))
    world.start(1)
    world.cancel(1)
    world.finish(1, cause=cause)
    assert world.states(1) == [state]


def test_cancel_in_a_backlog() -> None:
    world = World("load_balancing")
    world.join()
    world.submit(2)
    assert [t.id for t in world.worker().task_queue] == [2]
    assert of(world.cancel(2).actions, fx.StopAttempts) == [fx.StopAttempts("w1", [(2, 1)], Cause.CANCELLED)]
    world.finish(2, cause=Cause.CANCELLED)
    assert world.states(1, 2) == ["assigned", "cancelled"]
    assert not world.worker().task_queue


def test_cancel_while_revoking() -> None:
    world = World("load_balancing")
    world.join()
    world.submit(2)
    world.handle(ev.DrainWorkers(1, ["w1"], leave=False))
    assert world.states(2) == ["revoking"]
    world.cancel(2)
    effects = world.handle(answered("w1", (2, 1, True)))
    assert of(effects.facts, fx.TaskFinished) == [fx.TaskFinished(2, "cancelled", START, "cancelled", None)]


@pytest.mark.parametrize("begun", [False, True])
def test_cancel_on_an_unreachable_worker_that_is_lost(begun: bool) -> None:
    world = World()
    world.join()
    world.submit()
    if begun:
        world.start(1)
    world.handle(ev.WorkerDisconnected("w1"))
    world.cancel(1)
    assert world.states(1) == ["running" if begun else "assigned"]
    effects = world.wake_in(40)
    (done,) = of(effects.facts, fx.TaskFinished)
    assert (done.task_id, done.state) == (1, "cancelled")
    assert not effects.actions


def test_cancel_on_an_unreachable_worker_that_returns() -> None:
    world = World()
    world.join()
    world.submit()
    world.start(1)
    world.handle(ev.WorkerDisconnected("w1"))
    world.cancel(1)
    effects = world.join(holds=[holds(1, 1, "running", START)])
    assert effects.actions == [fx.StopAttempts("w1", [(1, 1)], Cause.CANCELLED)]
    world.finish(1, cause=Cause.CANCELLED)
    assert world.states(1) == ["cancelled"]


def test_cancel_on_an_unreachable_worker_that_never_got_it() -> None:
    world = World()
    world.join()
    world.submit()
    world.handle(ev.WorkerDisconnected("w1"))
    world.cancel(1)
    effects = world.join()
    assert of(effects.facts, fx.TaskFinished)[0].state == "cancelled"
    assert not effects.actions


def test_cancel_in_the_turn_of_the_submit() -> None:
    world = World()
    world.join()
    effects = world.handle(ev.SubmitTasks(1, [spec()], [TaskEntry(0)]), ev.CancelTasks(2, selection(1)))
    assert [type(fact) for fact in effects.facts] == [fx.TasksAdmitted, fx.TaskFinished]
    assert not of(effects.actions, fx.DispatchAttempts)


def test_cancel_all() -> None:
    world = World()
    world.join()
    world.submit(2)
    world.submit(2, job="j")
    world.finish(1)
    effects = world.handle(ev.CancelTasks(1, selection()))
    assert of(effects.actions, fx.ReplyChanged) == [fx.ReplyChanged(1, 3, [])]
    assert world.states(1, 2, 3, 4) == ["succeeded", "assigned", "cancelled", "cancelled"]


def test_cancel_an_unknown_job() -> None:
    world = World()
    assert world.handle(ev.CancelTasks(1, selection(job="j"))).actions == [
        fx.ReplyDeclined(1, "unknown_job", "there is no job 'j'")
    ]


def test_cancel_by_state() -> None:
    world = World()
    world.submit(hold=True)
    world.submit()
    world.handle(ev.CancelTasks(1, selection(states=["held"])))
    assert world.states(1, 2) == ["cancelled", "queued"]


def test_many_unchanged_are_not_all_named() -> None:
    world = World()
    effects = world.cancel(*range(1, 1000))
    assert len(unchanged(effects)) == 100


# ----------------------------------------------------------------------------------------------------- hold, release


@pytest.mark.parametrize("values", [{"after": [1]}, {"delay_s": 9}, {}])
def test_hold_and_release(values: dict[str, object]) -> None:
    world = World()
    world.submit(hold=True)
    world.submit(**values)
    before = world.states(2)
    effects = world.hold(2)
    assert effects.facts == [fx.TaskHeld(2)]
    assert effects.actions == [fx.ReplyChanged(1, 1, [])]
    assert world.states(2) == ["held"]
    effects = world.release(2)
    assert effects.facts == [fx.TaskReleased(2)]
    assert world.states(2) == before


def test_hold_twice_and_release_twice() -> None:
    world = World()
    world.submit()
    world.hold(1)
    assert unchanged(world.hold(1)) == [(1, "already held")]
    world.release(1)
    assert unchanged(world.release(1)) == [(1, "is not held")]


def test_hold_what_was_dispatched() -> None:
    world = World()
    world.join()
    world.submit()
    assert unchanged(world.hold(1)) == [(1, "already assigned")]


def test_held_tasks_let_others_pass() -> None:
    world = World()
    world.submit(3)
    world.hold(1)
    world.join()
    assert world.states(1, 2, 3) == ["held", "assigned", "queued"]
    world.release(1)
    world.finish(2)
    assert world.states(1, 3) == ["assigned", "queued"]  # it kept its place


def test_hold_and_release_again_and_again() -> None:
    """A task that comes back to its level many times stands in the queue once."""
    world = World()
    world.submit(3)
    for _ in range(50):
        world.hold(2)
        world.release(2)
    assert world.engine.explain(world.task(3)).ahead == 2
    world.join()
    world.finish(1)
    assert world.states(1, 2, 3) == ["succeeded", "assigned", "queued"]
    world.finish(2)
    assert world.states(2, 3) == ["succeeded", "assigned"]


def test_hold_a_job() -> None:
    world = World()
    world.join()
    world.submit(3, job="j")
    effects = world.handle(ev.HoldTasks(1, selection(job="j")))
    assert of(effects.actions, fx.ReplyChanged) == [fx.ReplyChanged(1, 2, [(1, "already assigned")])]


def test_hold_a_retry_and_release_it() -> None:
    world = World()
    world.join()
    world.submit(rules=TaskRules(retries=1, retry_delay_s=100))
    world.finish(1, cause=Cause.ERROR)
    assert world.states(1) == ["delayed"]
    world.hold(1)
    assert ("delay", 1) not in world.engine._t.deadlines
    world.release(1)
    assert (world.states(1), world.task(1).attempt) == (["assigned"], 2)


# ---------------------------------------------------------------------------------------------------------------- set


def test_set_priority_while_queued() -> None:
    world = World()
    world.submit(3)
    effects = world.handle(ev.SetTasks(1, selection(3), priority=5.0))
    assert effects.facts == [fx.TaskChanged(3, 5.0, TaskRequirements(), START)]
    assert effects.actions == [fx.ReplyChanged(1, 1, [])]
    world.join()
    assert world.states(1, 2, 3) == ["queued", "queued", "assigned"]


def test_set_priorities_of_many() -> None:
    world = World()
    world.submit(4)
    world.join()
    effects = world.handle(ev.SetPriorities(1, [(2, 1.0), (3, 3.0), (4, math.nan), (9, 1.0), (1, 4.0)]))
    assert effects.actions == [
        fx.ReplyChanged(1, 2, [(4, "nan is no priority"), (9, "unknown task"), (1, "already assigned")])
    ]
    assert [fact.task_id for fact in of(effects.facts, fx.TaskChanged)] == [2, 3]
    world.finish(1)
    assert world.states(2, 3, 4) == ["queued", "assigned", "queued"]


@pytest.mark.parametrize("priority", [math.nan, math.inf])
def test_set_no_priority(priority: float) -> None:
    world = World()
    world.submit()
    effects = world.handle(ev.SetTasks(1, selection(1), priority=priority))
    assert effects.actions == [fx.ReplyDeclined(1, "bad_request", f"{priority} is no priority")]


def test_set_requirements_while_queued() -> None:
    world = World()
    world.join(cpus=2)
    world.submit(cpus=4)
    assert world.states(1) == ["queued"]
    effects = world.handle(ev.SetTasks(1, selection(1), requirements=TaskRequirements(cpus=2)))
    assert effects.facts == [
        fx.TaskChanged(1, 0.0, TaskRequirements(cpus=2), START),
        fx.AttemptDispatched(1, 1, "w1", START),
    ]
    assert dispatches(effects) == {"w1": [(1, 1)]}


def test_set_while_held_waiting_and_delayed() -> None:
    world = World()
    world.submit(hold=True)
    world.submit(after=[1])
    world.submit(delay_s=5)
    world.handle(ev.SetTasks(1, selection(1, 2, 3), priority=2.0, requirements=TaskRequirements(cpus=3)))
    assert world.states(1, 2, 3) == ["held", "waiting", "delayed"]
    assert all(world.task(i).priority == 2.0 for i in (1, 2, 3))
    world.join(cpus=2)
    world.release(1)
    world.wake_in(5)
    assert world.states(1, 3) == ["queued", "queued"]


def test_priorities_changed_for_ever_leave_nothing_behind() -> None:
    world = World()
    world.submit(2)
    for n in range(2000):
        world.engine.handle([ev.SetPriorities(1, [(1, -float(n)), (2, float(n % 7))])], START)
    world.engine.check()
    (queue,) = world.engine._t.queue._queues.values()
    assert len(queue.levels) < 300
    assert len(queue.heap) < 300


# --------------------------------------------------------------------------------------------- changes within a turn


def test_cancel_in_the_turn_of_a_confirmed_steal() -> None:
    """The thief must not be told to stop before it is told to start."""
    world = stealing_world()
    effects = world.handle(answered("w1", (2, 1, True)), ev.CancelTasks(1, selection(2)))
    assert of(effects.facts, fx.TaskFinished) == [fx.TaskFinished(2, "cancelled", START + SECOND, "cancelled", None)]
    assert dispatches(effects).get("w2", []) == []
    assert not of(effects.actions, fx.StopAttempts)


def test_thief_returns_in_the_turn_of_a_confirmed_steal() -> None:
    """What was placed on it in this turn goes out once, under the number of the attempt that is current."""
    world = stealing_world()
    effects = world.handle(answered("w1", (2, 1, True)), joined("w2"))
    sent = dispatches(effects)
    assert [pair for pairs in sent.values() for pair in pairs if pair[0] == 2] == [(2, world.task(2).attempt)]


def test_thief_leaves_in_the_turn_of_a_confirmed_steal() -> None:
    world = stealing_world()
    effects = world.handle(answered("w1", (2, 1, True)), ev.WorkerLeft("w2"))
    assert "w2" not in dispatches(effects)
    assert world.states(2) in (["queued"], ["assigned"])


def stealing_world() -> World:
    """w1 runs task 1 and has 2 in its backlog, which is on the way to w2."""
    world = World("load_balancing", stealing=True, steal_interval_ns=SECOND)
    world.join("w1")
    world.submit(2)
    world.handle(started("w1", 1, 1, START))
    world.wait(1)
    effects = world.join("w2")
    assert of(effects.actions, fx.RevokeAttempts) == [fx.RevokeAttempts("w1", [(2, 1)])]
    return world


def test_cancel_only_what_was_not_dispatched() -> None:
    world = World()
    world.join()
    world.submit(2)
    effects = world.handle(ev.CancelTasks(1, selection(1, 2), started=False))
    assert effects.actions == [fx.ReplyChanged(1, 1, [(1, "may have started")])]
    assert world.states(1, 2) == ["assigned", "cancelled"]
