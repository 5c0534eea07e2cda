# mypy: disable-error-code="arg-type, list-item"
"""Preemption: on request and by the rule of `priority`. Who is stopped, who gets the place, and who is not blamed."""

from __future__ import annotations

from typing import Any

import pytest

from schedd.core import effects as fx
from schedd.core import events as ev
from schedd.core.model import SECOND, Cause, TaskEntry, TaskRequirements, TaskRules, WorkerInfo
from schedd.core.policies.priority import PriorityScheduler
from schedd.core.policies.work_stealing import WorkStealingScheduler
from schedd.core.preemption import WAITING_MAX
from schedd.core.settings import PrefetchRule

from .builders import (
    START,
    World,
    answered,
    dispatches,
    finished,
    holds,
    joined,
    of,
    selection,
    spec,
    started,
    unchanged,
)
from .recorded import Recorded

RULE: dict[str, Any] = {"preempt": True, "preempt_after_s": 5, "preempt_run_min_s": 60}


def ruled(**params: Any) -> World:
    """A world with the rule, in which nobody has to send heartbeats."""
    return World(PriorityScheduler(**{**RULE, **params}), lease_ns=1_000_000 * SECOND)


def stops(effects: fx.Effects) -> dict[str, list[tuple[int, int]]]:
    found = of(effects.actions, fx.StopAttempts)
    assert all(action.cause is Cause.PREEMPTED for action in found)
    return {action.worker_id: action.attempts for action in found}


def test_room_is_found_behind_many_workers_where_none_can_be_made() -> None:
    world = ruled()
    world.handle(*[joined(f"w{n}", cpus=2) for n in range(100)], joined("last", cpus=2))
    important = world.submit(100, priority=100)
    (whole,) = world.submit(cpus=2, priority=1)
    world.start(*important, whole, *world.submit(100))
    world.wait(100)
    world.submit(cpus=2, priority=50)
    assert stops(world.wake_in(6)) == {"last": [(whole, 1)]}


def test_equal_priorities_never_stop_each_other_however_large() -> None:
    world = ruled(preempt_margin=1)
    world.join()
    world.start(*world.submit(priority=1e16))
    world.wait(100)
    world.submit(priority=1e16)
    assert not stops(world.wake_in(6))


def test_what_room_is_made_for_is_not_stolen() -> None:
    world = World(PriorityScheduler(**RULE), stealing=True, lease_ns=1_000_000 * SECOND)
    world.handle(joined("w1"), joined("w2", labels={"x": "1"}))
    world.start(*world.submit(), *world.submit(labels={"x": "1"}, priority=99))
    world.wait(100)
    (next_,) = world.submit(priority=5)
    assert stops(world.wake_in(6)) == {"w1": [(1, 1)]}
    assert world.where(next_) == ["w1"]
    assert not of(world.finish(2).actions, fx.RevokeAttempts)
    assert not of(world.wake_in(1).actions, fx.RevokeAttempts)


def preempt(world: World, *ids: int, grace_s: float | None = None) -> fx.Effects:
    return world.handle(ev.PreemptTasks(1, selection(*ids), grace_s))


def busy(count: int = 1, cpus: float = 1, **params: Any) -> World:
    """w1 has run tasks 1 to `count` of priority 0 for long enough; all of it is taken."""
    world = ruled(**params)
    world.join("w1", cpus=count * cpus)
    world.submit(count, cpus=cpus)
    world.start(*range(1, count + 1))
    world.wait(100)
    return world


def asked_for(world: World, task_id: int) -> list[int]:
    """Whom the rule stops for this task once it has waited for long enough."""
    world.wake_in(4)
    assert world.states(task_id) == ["queued"]
    effects = world.wake_in(2)
    return [fact.task_id for fact in of(effects.facts, fx.PreemptAsked) if fact.for_id == task_id]


# --------------------------------------------------------------------------------------------------------- on request


def test_on_request() -> None:
    world = World()
    world.join("w1")
    world.submit()
    world.start(1)
    effects = preempt(world, 1, grace_s=3)
    assert effects.facts == [fx.PreemptAsked(1, 1, world.now, 3)]
    assert effects.actions == [fx.ReplyChanged(1, 1, []), fx.StopAttempts("w1", [(1, 1)], Cause.PREEMPTED, 3)]
    assert world.states(1) == ["running"]
    assert world.engine.explain(world.task(1)).summary == "running on w1 for 0.0 s; to make room (asked 0.0 s ago)"
    world.wait(2)
    effects = world.finish(1, cause=Cause.PREEMPTED)
    assert dispatches(effects) == {"w1": [(1, 2)]}  # nobody else wants the place
    (ended,) = world.task(1).attempts
    assert (ended.cause, ended.message) == (Cause.PREEMPTED, "on request")
    assert not world.task(1).blamed
    assert (world.worker().finished_count, world.worker().failed_count) == (0, 0)


def test_again_with_another_grace() -> None:
    """Room is still made for whom it was."""
    world = busy()
    (urgent,) = world.submit(priority=1)
    asked_for(world, urgent)
    effects = preempt(world, 1, grace_s=0)
    assert effects.facts == [fx.PreemptAsked(1, 1, world.now, 0, urgent)]
    assert of(effects.actions, fx.StopAttempts) == [fx.StopAttempts("w1", [(1, 1)], Cause.PREEMPTED, 0)]


def test_of_what_may_have_started() -> None:
    """In a backlog, or on its way: the worker drops it at once or stops it, and says so in the same way."""
    world = World("work_stealing")
    world.join("w1")
    world.submit(2)
    assert stops(preempt(world, 1, 2)) == {"w1": [(1, 1), (2, 1)]}
    world.submit(priority=1)
    ends = [finished("w1", i, 1, Cause.PREEMPTED, 0, world.now) for i in (1, 2)]
    effects = world.handle(*ends)
    assert dispatches(effects) == {"w1": [(1, 2), (2, 2)]}
    assert [ended.started_at_ns for ended in world.task(2).attempts] == [0]


def test_in_the_turn_of_its_dispatch() -> None:
    """Its worker never hears of the first attempt."""
    world = World()
    world.join("w1")
    world.submit()
    world.handle(ev.DrainWorkers(1, ["w1"], leave=False))
    world.finish(1, cause=Cause.PREEMPTED)
    assert world.states(1) == ["queued"]


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ("held", "is held: no worker has it (`hold` keeps it back)"),
        ("queued", "is queued: no worker has it (`hold` keeps it back)"),
        ("succeeded", "already succeeded"),
        ("cancelling", "is being cancelled"),
        ("preempting", "is being preempted (a shorter grace can still be given)"),
        ("unknown", "unknown task"),
    ],
)
def test_nothing_to_preempt(state: str, reason: str) -> None:
    world = World()
    world.submit(hold=state == "held")
    if state not in ("held", "queued"):
        world.join("w1")
        world.start(1)
    match state:
        case "succeeded":
            world.finish(1)
        case "cancelling":
            world.cancel(1)
        case "preempting":
            preempt(world, 1)
    effects = preempt(world, 9 if state == "unknown" else 1)
    assert unchanged(effects) == [(9 if state == "unknown" else 1, reason)]
    assert not effects.facts


@pytest.mark.parametrize("grace_s", [-1, float("nan"), float("inf"), 1e6])
def test_senseless_grace(grace_s: float) -> None:
    world = World()
    world.join("w1")
    world.submit()
    world.start(1)
    (no,) = preempt(world, 1, grace_s=grace_s).actions
    assert isinstance(no, fx.ReplyDeclined)
    assert no.code == "bad_request"


@pytest.mark.parametrize(
    ("cause", "state", "failed"),
    [(Cause.OK, "succeeded", 0), (Cause.ERROR, "failed", 1), (Cause.PREEMPTED, "queued", 0)],
)
def test_however_it_ends(cause: Cause, state: str, failed: int) -> None:
    """Whoever is done in its grace is done; an error that crossed the request is an error."""
    world = World()
    world.join("w1")
    world.submit()
    world.start(1)
    preempt(world, 1)
    world.handle(ev.DrainWorkers(1, ["w1"], leave=False))
    world.finish(1, cause=cause)
    assert world.states(1) == [state]
    assert world.task(1).blamed_for(Cause.ERROR) == failed
    assert not world.engine._t.asked


def test_cancel_wins() -> None:
    world = World()
    world.join("w1")
    world.submit()
    world.start(1)
    preempt(world, 1)
    assert of(world.cancel(1).actions, fx.StopAttempts) == [fx.StopAttempts("w1", [(1, 1)], Cause.CANCELLED)]
    world.finish(1, cause=Cause.PREEMPTED)
    assert world.states(1) == ["cancelled"]


def test_while_it_is_being_stolen() -> None:
    world = World(WorkStealingScheduler(steal_threshold=0), stealing=True, steal_interval_ns=SECOND)
    world.join("w1")
    world.submit(2)
    world.start(1)
    world.join("w2")
    assert world.states(2) == ["revoking"]
    assert stops(preempt(world, 2)) == {"w1": [(2, 1)]}
    effects = world.handle(answered("w1", (2, 1, True)))
    assert not of(effects.facts, fx.AttemptStolen)
    assert dispatches(effects) == {"w2": [(2, 2)]}


# ---------------------------------------------------------------------------------------------------------- the rule


def test_rule_makes_room() -> None:
    world = busy()
    (urgent,) = world.submit(priority=1)
    assert asked_for(world, urgent) == [1]
    assert world.states(1, urgent) == ["running", "assigned"]
    waits = world.engine.explain(world.task(urgent))
    assert waits.summary == (
        "dispatched to w1, number 1 of 1 in its backlog; waits for task 1 to stop (asked 0.0 s ago)"
    )
    gives_way = world.engine.explain(world.task(1)).summary
    assert gives_way == f"running on w1 for 106.0 s; to make room for task {urgent} (asked 0.0 s ago)"
    world.finish(1, cause=Cause.PREEMPTED)
    assert list(world.worker().running) == [urgent]
    assert world.states(1) == ["queued"]
    assert world.task(1).attempts[0].message == f"made room for task {urgent}"
    world.start(urgent)
    assert dispatches(world.finish(urgent)) == {"w1": [(1, 2)]}


def test_actions_of_the_rule() -> None:
    """The worker is told to stop one, and gets the other at once: it starts it by itself."""
    world = busy()
    (urgent,) = world.submit(priority=1)
    world.wake_in(4)
    effects = world.wake_in(2)
    assert effects.facts == [
        fx.PreemptAsked(1, 1, world.now, None, urgent),
        fx.AttemptDispatched(urgent, 1, "w1", world.now),
    ]
    assert [type(action) for action in effects.actions] == [fx.StopAttempts, fx.DispatchAttempts]
    assert (stops(effects), dispatches(effects)) == ({"w1": [(1, 1)]}, {"w1": [(urgent, 1)]})


def test_off_by_default() -> None:
    world = World()
    world.join("w1")
    world.submit()
    world.start(1)
    world.wait(1000)
    world.submit(priority=1e6)
    world.wait(1000)
    world.handle(ev.Heartbeat("w1", None))
    assert not world.wake_in(10).facts
    assert ("preempt", 0) not in world.engine._t.deadlines


@pytest.mark.parametrize("priority", [0, 0.5, 1.99])
def test_margin(priority: float) -> None:
    world = busy(preempt_margin=2)
    (urgent,) = world.submit(priority=priority)
    assert asked_for(world, urgent) == []
    (more_urgent,) = world.submit(priority=2)
    assert asked_for(world, more_urgent) == [1]


def test_ageing_counts() -> None:
    """What aged while it ran keeps its rank: a task submitted later must outrank that."""
    world = busy(ageing_per_hour=36)  # 0.01 a second; 1 in the 100 s that it ran
    (urgent,) = world.submit(priority=1.5)
    assert asked_for(world, urgent) == []
    (more_urgent,) = world.submit(priority=3)
    assert asked_for(world, more_urgent) == [1]


def test_many_that_ended_are_not_remembered() -> None:
    world = ruled(preempt_run_min_s=0)
    world.join("w1", cpus=1000)
    index = world.engine.policy._preempting  # type: ignore[attr-defined]
    for _ in range(4):
        ids = world.submit(1000)
        world.start(*ids)
        world.finish(*ids)
    assert len(index._fresh) <= 1100
    world.submit(2000)
    world.wake_in(2)
    assert len(index._fresh) + len(index._ripe) <= 2100


def test_run_min() -> None:
    world = busy(preempt_run_min_s=120)
    (urgent,) = world.submit(priority=1)
    assert asked_for(world, urgent) == []
    assert stops(world.wake_in(20)) == {"w1": [(1, 1)]}


def test_run_min_is_not_counted_anew_when_the_rule_changes() -> None:
    world = busy(preempt_run_min_s=120)
    world.wake_in(200)
    world.handle(ev.PolicyReplaced(PriorityScheduler(**{**RULE, "preempt_run_min_s": 100}), None))
    world.submit(priority=1)
    assert stops(world.wake_in(20)) == {"w1": [(1, 1)]}


def test_room_is_made_below_many_that_nobody_could_run() -> None:
    world = busy()
    for number in range(2 * WAITING_MAX):
        world.submit(priority=9, min_gpus=1, gpu_model=f"m{number}")
    world.submit(priority=1)
    assert stops(world.wake_in(20)) == {"w1": [(1, 1)]}


def test_least_important_first_then_latest_started() -> None:
    world = ruled()
    world.join("w1", cpus=4)
    world.submit(2, priority=2)
    world.submit(2, priority=1)
    world.start(1, 2, 3)
    world.wait(1)
    world.start(4)
    world.wait(100)
    (urgent,) = world.submit(priority=10)
    assert asked_for(world, urgent) == [4]


def test_only_as_many_as_needed_and_who_helps() -> None:
    """Task 1 is the least important, but without it nothing is gained: its worker is too small, or it has no GPU."""
    world = ruled()
    world.join("w1", cpus=8, num_gpus=2)
    world.join("w2", cpus=1)
    world.submit(priority=-5, cpus=5)
    world.submit(priority=-5, cpus=1)
    world.submit(2, priority=0, min_gpus=1, cpus=1)
    world.start(1, 2, 3, 4)
    world.wait(100)
    assert world.where(1, 2) == ["w1", "w2"]
    (urgent,) = world.submit(priority=5, min_gpus=1, cpus=1)
    assert asked_for(world, urgent) == [4]


def test_several_victims_for_a_large_one() -> None:
    world = busy(4)
    world.submit(priority=0.5)
    (urgent,) = world.submit(priority=5, cpus=3)
    assert asked_for(world, urgent) == [2, 3, 4]
    explained = world.engine.explain(world.task(urgent))
    assert "waits for task 2 to stop and 2 more" in explained.summary
    assert [blocker.reason for blocker in explained.blockers] == [f"waits for task {i} to stop" for i in (2, 3, 4)]
    # What becomes free bit by bit goes to nobody else.
    for i in (2, 3):
        effects = world.finish(i, cause=Cause.PREEMPTED)
        assert not dispatches(effects)
    world.finish(4, cause=Cause.PREEMPTED)
    assert list(world.worker().running) == [1, urgent]


def test_one_that_has_a_device_of_its_own_rather_than_two_that_share() -> None:
    world = ruled()
    world.join("w1", cpus=8, num_gpus=2)
    world.submit(2, min_gpus=0.5)
    world.submit(min_gpus=0.75)
    assert [world.task(i).devices for i in (1, 2, 3)] == [(0,), (0,), (1,)]
    world.start(3)
    world.wait(1)
    world.start(1, 2)
    world.wait(100)
    (urgent,) = world.submit(priority=1, min_gpus=1)
    assert asked_for(world, urgent) == [3]


def test_no_victims_where_they_would_not_do() -> None:
    """Even with all that may go it would not fit, so nobody is stopped."""
    world = ruled()
    world.join("w1", cpus=4)
    world.submit(2, cpus=1)
    world.submit(1, cpus=2, priority=9)
    world.start(1, 2, 3)
    world.wait(100)
    (urgent,) = world.submit(priority=5, cpus=3)
    assert asked_for(world, urgent) == []


def test_worker_where_the_least_important_are_hit() -> None:
    world = ruled()
    for name in ("w1", "w2", "w3"):
        world.join(name)
    world.submit(priority=1)
    world.submit(priority=0)
    world.submit(priority=2)
    world.start(1, 2, 3)
    world.wait(100)
    world.submit(priority=10)
    assert world.where(2) == ["w2"]
    assert asked_for(world, 4) == [2]


def test_second_variant() -> None:
    world = busy()
    (urgent,) = world.submit(priority=1, min_gpus=1, variants=(TaskRequirements(cpus=1),))
    assert asked_for(world, urgent) == [1]
    assert world.task(urgent).variant == 1


def test_two_wait_two_go() -> None:
    """The next in line is looked after in the next turn, and does not count on the same place."""
    world = busy(3)
    first, second = world.submit(2, priority=1)
    assert asked_for(world, first) == [3]
    effects = world.wake()
    assert stops(effects) == {"w1": [(2, 1)]}
    assert dispatches(effects) == {"w1": [(second, 1)]}
    assert not world.wake().facts
    world.finish(2, cause=Cause.PREEMPTED)
    assert first in world.worker().running
    world.finish(3, cause=Cause.PREEMPTED)
    assert sorted(world.worker().running) == [1, first, second]


def test_two_of_different_needs_wait() -> None:
    """Both are looked after at once, and neither counts on the place of the other."""
    world = busy(3)
    world.submit(priority=2)
    world.submit(priority=1, cpus=0.5)
    world.wake_in(4)
    effects = world.wake_in(2)
    assert pairs(effects) == {4: [3], 5: [2]}
    assert dispatches(effects) == {"w1": [(4, 1), (5, 1)]}


def test_next_of_the_first_worker_is_not_the_next_of_all() -> None:
    world = ruled()
    world.join("w1", cpus=2)
    world.submit(priority=0)
    world.submit(priority=4)
    world.join("w2", cpus=1)
    world.submit(priority=1)
    world.start(1, 2, 3)
    world.wait(100)
    world.submit(priority=9)
    world.submit(priority=8, cpus=0.5)
    world.wake_in(4)
    effects = world.wake_in(2)
    assert pairs(effects) == {4: [1], 5: [3]}


def pairs(effects: fx.Effects) -> dict[int, list[int]]:
    """Victims, by the task that room is made for."""
    found: dict[int, list[int]] = {}
    for fact in of(effects.facts, fx.PreemptAsked):
        found.setdefault(fact.for_id, []).append(fact.task_id)
    return found


def test_worker_that_gave_its_least_important_ones_comes_later() -> None:
    world = ruled()
    world.join("w1", cpus=3)
    for priority in (0, 0.1, 4):
        world.submit(priority=priority)
    world.join("w2", cpus=1)
    world.submit(priority=1)
    world.start(1, 2, 3, 4)
    world.wait(100)
    world.submit(priority=9, cpus=2)
    world.submit(priority=8, cpus=0.5)
    world.wake_in(4)
    assert pairs(world.wake_in(2)) == {5: [2, 1], 6: [4]}


def test_each_must_outrank_its_own_victims() -> None:
    world = ruled()
    world.join("w1", cpus=2)
    world.submit(priority=0)
    world.submit(priority=1)
    world.start(1, 2)
    world.wait(100)
    world.submit(priority=9)
    world.submit(priority=1.5, cpus=0.5)
    world.wake_in(4)
    assert pairs(world.wake_in(2)) == {3: [1]}


def test_protected_neighbour() -> None:
    """Task 1 is less important than task 2, and was preempted often enough."""
    world = ruled(preempt_times_max=1)
    world.join("w1", cpus=2)
    world.submit(priority=0)
    world.submit(priority=0.5)
    world.start(1, 2)
    preempt(world, 1)
    world.finish(1, cause=Cause.PREEMPTED)
    world.start(1)
    world.wait(100)
    (urgent,) = world.submit(priority=9)
    assert asked_for(world, urgent) == [2]


def test_what_leaves_another_worker_is_enough() -> None:
    world = ruled()
    for name in ("w1", "w2"):
        world.join(name)
    world.submit(priority=3)
    world.submit(priority=0)
    world.start(1, 2)
    world.wait(100)
    preempt(world, 1)
    (urgent,) = world.submit(priority=9, cpus=0.5)
    assert asked_for(world, urgent) == []
    (next_one,) = world.submit(priority=8, cpus=0.4)
    assert asked_for(world, next_one) == []  # there is room for both
    (last,) = world.submit(priority=7, cpus=0.7)
    assert asked_for(world, last) == [2]


def test_what_is_on_its_way_out_is_enough() -> None:
    world = busy(2)
    preempt(world, 2)
    (urgent,) = world.submit(priority=1)
    assert asked_for(world, urgent) == []
    world.finish(2, cause=Cause.PREEMPTED)
    assert urgent in world.worker().running


def test_place_is_not_for_a_third() -> None:
    """A more important task that comes meanwhile, and one that would fit earlier, have to find a place of their own."""
    world = busy(2, cpus=2)
    (urgent,) = world.submit(priority=5, cpus=2)
    assert asked_for(world, urgent) == [2]
    (third,) = world.submit(priority=7, cpus=2)
    (small,) = world.submit(priority=-1, cpus=1)
    world.finish(2, cause=Cause.PREEMPTED)
    assert sorted(world.worker().running) == [1, urgent]
    assert world.states(third, small) == ["queued", "queued"]


def test_no_ping_pong() -> None:
    """The preempted one comes back and may not take the place again, nor may its like."""
    world = busy(preempt_run_min_s=0)
    (urgent,) = world.submit(priority=1)
    asked_for(world, urgent)
    world.finish(1, cause=Cause.PREEMPTED)
    world.start(urgent)
    world.submit(3)
    for _ in range(30):
        assert not of(world.wake_in(1).facts, fx.PreemptAsked)


def test_protected_after_so_many_times() -> None:
    world = busy(preempt_times_max=2, preempt_run_min_s=0)
    for _ in range(2):
        (urgent,) = world.submit(priority=1)
        assert asked_for(world, urgent) == [1]
        world.finish(1, cause=Cause.PREEMPTED)
        world.start(urgent)
        world.finish(urgent)
        world.start(1)
    (urgent,) = world.submit(priority=1)
    assert asked_for(world, urgent) == []
    assert stops(preempt(world, 1)) == {"w1": [(1, 3)]}  # a user may


@pytest.mark.parametrize(("own_s", "grace_s"), [(5, 30), (60, None), (30, None)])
def test_grace_of_the_rule_is_the_least(own_s: float, grace_s: float | None) -> None:
    world = ruled(preempt_grace_s=30)
    world.join("w1")
    world.submit(rules=TaskRules(grace_s=own_s))
    world.start(1)
    world.wait(100)
    world.submit(priority=1)
    world.wake_in(4)
    (asked,) = of(world.wake_in(2).facts, fx.PreemptAsked)
    assert asked.grace_s == grace_s


def test_worker_with_a_backlog_is_left_alone() -> None:
    """Its place would go to the next in the backlog."""

    class Pushing(PriorityScheduler):
        def backlog_limit(self, worker: WorkerInfo) -> int:
            return 1

    world = World(Pushing(**RULE), lease_ns=1000 * SECOND)
    world.join("w1")
    world.submit(2)
    world.start(1)
    world.wait(100)
    assert world.states(2) == ["assigned"]
    (urgent,) = world.submit(priority=5)
    assert asked_for(world, urgent) == []


def test_short_ones_that_were_sent_ahead_go_first() -> None:
    world = World(PriorityScheduler(**RULE), lease_ns=1_000_000 * SECOND, prefetch=PrefetchRule(depth_max=2))
    world.join("w1", cpus=2, num_gpus=1)
    world.submit(kind="long", min_gpus=1)
    short = world.submit(3, kind="short", estimated_time=0.01)
    world.start(1, short[0])
    world.wait(100)
    assert world.states(*short) == ["running", "assigned", "assigned"]
    (urgent,) = world.submit(priority=1, kind="long", min_gpus=1)
    assert asked_for(world, urgent) == [1]
    world.finish(1, cause=Cause.PREEMPTED)
    assert sorted(world.worker().running) == short[:2]
    world.finish(short[0])
    assert sorted(world.worker().running) == short[1:]
    world.finish(short[1])
    assert urgent in world.worker().running


def test_short_ones_are_not_sent_behind_who_waits_for_room() -> None:
    """They would wait for the grace of somebody else; another worker has room sooner."""
    world = World(PriorityScheduler(**RULE), lease_ns=1_000_000 * SECOND, prefetch=PrefetchRule(depth_max=2))
    world.join("w1", cpus=2, num_gpus=1)
    world.submit(kind="long", min_gpus=1)
    world.start(1)
    world.wait(100)
    (urgent,) = world.submit(priority=1, kind="long", min_gpus=1)
    assert asked_for(world, urgent) == [1]
    (short,) = world.submit(kind="short", estimated_time=0.01)
    assert world.states(urgent, short) == ["assigned", "queued"]
    world.finish(1, cause=Cause.PREEMPTED)
    assert sorted(world.worker().running) == [urgent, short]


def test_claim_of_a_better_one_is_respected() -> None:
    """Task 3 waits for the whole of w1 and outranks the others, which may not be given a part of it."""
    world = ruled()
    world.join("w1", cpus=3)
    world.submit(priority=0)
    world.submit(priority=9)
    world.start(1, 2)
    world.wait(100)
    world.submit(priority=8, cpus=3)
    world.submit(priority=7)
    assert world.states(4) == ["queued"]
    world.cancel(4)
    world.submit(priority=7, cpus=2)
    assert asked_for(world, 5) == []
    world.cancel(3)
    assert stops(world.wake_in(2)) == {"w1": [(1, 1)]}


# -------------------------------------------------------------------------------------------- lost, returned, restarted


def test_reconnected_worker_is_asked_again() -> None:
    world = busy()
    (urgent,) = world.submit(priority=1)
    asked_for(world, urgent)
    world.handle(ev.WorkerDisconnected("w1"))
    held = [holds(1, 1, "running", START), holds(urgent, 1, "backlog", defined_ns=world.task(urgent).defined_ns)]
    effects = world.join("w1", holds=held)
    assert stops(effects) == {"w1": [(1, 1)]}
    world.finish(1, cause=Cause.PREEMPTED)
    assert list(world.worker().running) == [urgent]


def test_lost_in_its_grace() -> None:
    world = busy()
    (urgent,) = world.submit(priority=1)
    asked_for(world, urgent)
    world.handle(ev.WorkerLeft("w1"))
    assert world.states(1, urgent) == ["queued", "queued"]
    assert (world.task(1).blamed_for(Cause.LOST), world.task(urgent).blamed) == (1, None)
    assert not world.engine._t.asked


def restarted(world: World, recorded: Recorded) -> World:
    fresh = ruled()
    fresh.now = world.now
    recorded.restore(fresh.engine, fresh.now, 30 * SECOND)
    return fresh


def recorded_until_asked() -> tuple[World, Recorded]:
    """A world in which task 1 was asked to make room for task 2, and what its journal has."""
    recorded, world = Recorded(), ruled()

    def turn(*events: ev.Event) -> None:
        recorded.record(world.handle(*events))

    turn(joined("w1"))
    for priority in (0.0, 1.0):
        turn(ev.SubmitTasks(1, [spec(priority=priority)], [TaskEntry(0)]))
        world.wait(100)
        if not priority:
            turn(started("w1", 1, 1, START))
    turn(ev.Wakeup())
    turn(ev.Wakeup())
    assert world.engine._t.preempting(world.task(1)) is not None
    return world, recorded


@pytest.mark.parametrize("cause", [Cause.PREEMPTED, Cause.OK])
def test_restart_before_the_end(cause: Cause) -> None:
    """The daemon dies in the grace; what the worker comes with is asked again and treated as what it is."""
    fresh = restarted(*recorded_until_asked())
    defined = [fresh.task(i).defined_ns for i in (1, 2)]
    held = [
        holds(1, 1, "running", START, defined_ns=defined[0]),
        holds(2, 1, "backlog", defined_ns=defined[1]),
    ]
    assert stops(fresh.join("w1", holds=held)) == {"w1": [(1, 1)]}
    effects = fresh.finish(1, cause=cause)
    assert list(fresh.worker().running) == [2]
    assert fresh.states(1) == ["queued" if cause is Cause.PREEMPTED else "succeeded"]
    assert not fresh.task(1).blamed
    (ended,) = of(effects.facts, fx.AttemptEnded)
    assert ended.record.message == ("made room for task 2" if cause is Cause.PREEMPTED else "")


def test_restart_after_the_end() -> None:
    """It ended while the daemon was away."""
    fresh = restarted(*recorded_until_asked())
    held = [
        holds(1, 1, "finished", START, defined_ns=fresh.task(1).defined_ns),
        holds(2, 1, "running", fresh.now, defined_ns=fresh.task(2).defined_ns),
    ]
    end = finished("w1", 1, 1, Cause.PREEMPTED, START, fresh.now)
    fresh.handle(joined("w1", holds=held), end)
    assert fresh.states(1, 2) == ["queued", "running"]
    assert [ended.cause for ended in fresh.task(1).attempts] == [Cause.PREEMPTED]


def test_restart_remembers_how_often() -> None:
    world, recorded = recorded_until_asked()
    recorded.record(world.finish(1, cause=Cause.PREEMPTED))
    fresh = restarted(world, recorded)
    assert [ended.cause for ended in fresh.task(1).attempts] == [Cause.PREEMPTED]
    assert not fresh.engine._t.asked
