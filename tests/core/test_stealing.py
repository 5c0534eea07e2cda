# mypy: disable-error-code="arg-type, list-item"
"""The protocol of a steal: asked back, given back or refused, and all that may come between."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest

from schedd.core import effects as fx
from schedd.core import events as ev
from schedd.core.model import SECOND, Cause, Instant, Task, TaskRequirements, WorkerId, WorkerInfo
from schedd.core.policies.base import ClusterView, Steal
from schedd.core.policies.fifo import FIFOScheduler
from schedd.core.policies.load_balancing import LoadBalancingScheduler
from schedd.core.policies.work_stealing import QUIET_ENDS, WorkStealingScheduler
from schedd.core.settings import PrefetchRule

from .builders import START, World, answered, dispatches, finished, holds, joined, of, started


class OnTimer(WorkStealingScheduler):
    """Steals on the timer only, so that a test says when."""

    def steal_for(self, thief: WorkerInfo, view: ClusterView, now: Instant) -> list[Steal]:
        return []


def crowded(count: int = 5, **wants: float) -> World:
    """w1 runs task 1 and has the others in its backlog; w2 is idle, and the timer has not yet fired."""
    world = World(OnTimer(steal_threshold=0), stealing=True, steal_interval_ns=SECOND)
    world.join("w1", cpus=2)
    world.submit(count, **{"cpus": 2, **wants})
    world.handle(started("w1", 1, 1, START))
    world.join("w2", cpus=2)
    return world


def revokes(effects: fx.Effects) -> dict[str, list[tuple[int, int]]]:
    return {action.worker_id: action.attempts for action in of(effects.actions, fx.RevokeAttempts)}


def counts(world: World) -> list[tuple[int, int, int]]:
    """(backlog, leaving, coming) of each worker."""
    return [(len(w.task_queue), w.outgoing, w.incoming) for w in world.engine.resources]


def test_steal_confirmed() -> None:
    world = crowded()
    effects = world.wake_in(1)
    assert not effects.facts
    assert effects.actions == [fx.RevokeAttempts("w1", [(4, 1), (5, 1)])]  # half of four, from the tail, in order
    assert world.states(2, 3, 4, 5) == ["assigned", "assigned", "revoking", "revoking"]
    assert counts(world) == [(4, 2, 0), (0, 0, 2)]
    assert world.engine.explain(world.task(4)).summary == "moving from w1 to w2"
    effects = world.handle(answered("w1", (4, 1, True), (5, 1, True)))
    assert effects.facts == [
        fx.AttemptStolen(4, "w1", "w2", world.now),
        fx.AttemptDispatched(4, 2, "w2", world.now),
        fx.AttemptStolen(5, "w1", "w2", world.now),
        fx.AttemptDispatched(5, 2, "w2", world.now),
    ]
    assert dispatches(effects) == {"w2": [(4, 2), (5, 2)]}
    assert counts(world) == [(2, 0, 0), (1, 0, 0)]
    assert world.engine.counters.steals == 2


def test_steal_refused() -> None:
    world = crowded(2)
    assert revokes(world.wake_in(1)) == {"w1": [(2, 1)]}
    effects = world.handle(answered("w1", (2, 1, False)))
    assert (effects.facts, effects.actions) == ([], [])
    assert world.states(2) == ["assigned"]
    assert counts(world) == [(1, 0, 0), (0, 0, 0)]


def test_steal_refused_frees_the_thief() -> None:
    """The thief was kept free for what now does not come: something else may start there at once."""
    world = crowded(2)
    world.wake_in(1)
    world.submit(cpus=2)
    world.engine._t.policy.backlog_per_slot = 0  # type: ignore[attr-defined]
    world.submit(cpus=2, priority=9)
    world.handle(answered("w1", (2, 1, False)))
    assert any(world.worker("w2").running), [t.state for t in world.engine.tasks.rows.values()]


@pytest.mark.parametrize("early", [False, True])
def test_steal_crosses_the_start(early: bool) -> None:
    world = crowded(2)
    world.wake_in(1)
    told = [finished("w1", 1, 1, Cause.OK, START, world.now), started("w1", 2, 1, world.now)]
    refusal = answered("w1", (2, 1, False))
    effects = world.handle(*([refusal, *told] if early else [*told, refusal]))
    assert world.states(1, 2) == ["succeeded", "running"]
    assert counts(world) == [(0, 0, 0), (0, 0, 0)]
    assert world.engine.counters.stale == (0 if early else 1)
    assert not revokes(effects)


def test_steal_that_crosses_a_run_leaves_its_times_alone() -> None:
    """Else all that is learned of runtimes would be too short just where much is stolen."""
    world = crowded(2)
    world.wake_in(1)
    begun = world.now
    world.wait(5)
    told = finished("w1", 1, 1, Cause.OK, START, begun)
    world.handle(told, started("w1", 2, 1, begun), finished("w1", 2, 1, Cause.OK, begun, world.now))
    (record,) = world.task(2).attempts
    assert (record.dispatched_at_ns, record.started_at_ns, record.finished_at_ns) == (START, begun, world.now)


def test_steal_crosses_the_end() -> None:
    world = crowded(2)
    world.wake_in(1)
    world.handle(
        finished("w1", 1, 1, Cause.OK, START, world.now),
        finished("w1", 2, 1, Cause.OK, world.now, world.now),
        answered("w1", (2, 1, False)),
    )
    assert world.states(1, 2) == ["succeeded", "succeeded"]
    assert counts(world) == [(0, 0, 0), (0, 0, 0)]


def test_steal_of_what_seemed_about_to_start() -> None:
    """The end of task 1 made task 2 the head in our copy; the victim had given it back before."""
    world = crowded(2)
    world.wake_in(1)
    world.handle(finished("w1", 1, 1, Cause.OK, START, world.now))
    assert world.task(2).reserved
    assert counts(world) == [(0, 0, 0), (0, 0, 1)]
    effects = world.handle(answered("w1", (2, 1, True)))
    assert dispatches(effects) == {"w2": [(2, 2)]}
    assert world.worker("w1").task_count == 0


def test_steal_victim_lost() -> None:
    world = crowded(2)
    world.wake_in(1)
    effects = world.handle(ev.WorkerLeft("w1"))
    assert dispatches(effects) == {"w2": [(1, 2), (2, 2)]}
    assert counts(world) == [(1, 0, 0)]
    assert world.handle(answered("w1", (2, 1, True))).facts == []
    assert world.engine.counters.stale == 1


def test_steal_victim_returns() -> None:
    world = crowded(2)
    world.wake_in(1)
    world.handle(ev.WorkerDisconnected("w1"))
    world.join("w1", cpus=2, holds=[holds(1, 1, "running", START), holds(2, 1, "backlog")])
    assert world.states(2) == ["assigned"]
    assert counts(world) == [(1, 0, 0), (0, 0, 0)]
    assert revokes(world.wake_in(1)) == {"w1": [(2, 1)]}


def test_steal_thief_lost() -> None:
    world = crowded(2)
    world.wake_in(1)
    world.handle(ev.WorkerLeft("w2"))
    effects = world.handle(answered("w1", (2, 1, True)))
    assert not of(effects.facts, fx.AttemptStolen)
    assert dispatches(effects) == {"w1": [(2, 2)]}


@pytest.mark.parametrize("given_back", [False, True])
def test_steal_thief_started_anew(given_back: bool) -> None:
    """The steal was for a process that is gone; its successor is not charged with it."""
    world = crowded(4)
    world.wake_in(1)
    world.join("w2", run="b", cpus=2)
    assert counts(world)[1] == (0, 0, 0)
    world.handle(answered("w1", *((i, 1, given_back) for i in (2, 3, 4) if world.states(i) == ["revoking"])))
    assert all(incoming == outgoing == 0 for _, outgoing, incoming in counts(world))


@pytest.mark.parametrize("what", ["unreachable", "draining"])
def test_steal_thief_no_longer_takes_work(what: str) -> None:
    world = crowded(2)
    world.wake_in(1)
    world.handle(ev.WorkerDisconnected("w2") if what == "unreachable" else ev.DrainWorkers(1, ["w2"]))
    effects = world.handle(answered("w1", (2, 1, True)))
    assert not of(effects.facts, fx.AttemptStolen)
    assert dispatches(effects) == {"w1": [(2, 2)]}


def test_steal_of_what_is_cancelled_meanwhile() -> None:
    world = crowded(2)
    world.wake_in(1)
    effects = world.cancel(2)
    assert of(effects.actions, fx.StopAttempts) == [fx.StopAttempts("w1", [(2, 1)], Cause.CANCELLED)]
    effects = world.handle(answered("w1", (2, 1, True)))
    assert effects.facts == [fx.TaskFinished(2, "cancelled", world.now, "cancelled", None)]
    assert not effects.actions
    assert counts(world) == [(0, 0, 0), (0, 0, 0)]


def test_nobody_is_blamed_for_what_was_never_sent() -> None:
    """The thief turns out to have been started anew in the very turn in which it would have got the task."""
    world = crowded(2)
    world.wake_in(1)
    effects = world.handle(answered("w1", (2, 1, True)), joined("w2", run="b"))
    assert not of(effects.facts, fx.AttemptEnded)
    assert dispatches(effects) == {"w1": [(2, 3)]}


def test_steal_answer_twice() -> None:
    world = crowded(2)
    world.wake_in(1)
    effects = world.handle(answered("w1", (2, 1, True), (2, 1, True)))
    assert dispatches(effects) == {"w2": [(2, 2)]}
    assert world.engine.counters.stale == 1


def test_steal_thief_filled_up_meanwhile() -> None:
    world = crowded(2)
    world.wake_in(1)
    world.submit(cpus=2)
    world.handle(answered("w1", (2, 1, True)))
    assert world.where(2) == ["w2"]
    assert sum(w.task_count + len(w.task_queue) for w in world.engine.resources) == 3


def test_steal_by_another_variant() -> None:
    """The victim was to run it on a GPU; the thief has none and runs it by the second variant."""
    world = World(OnTimer(steal_threshold=0), stealing=True, steal_interval_ns=SECOND)
    world.join("w1", cpus=2, num_gpus=1)
    world.submit(2, min_gpus=1, variants=(TaskRequirements(cpus=2),))
    world.join("w2", cpus=2)
    assert revokes(world.wake_in(1)) == {"w1": [(2, 1)]}
    world.handle(answered("w1", (2, 1, True)))
    assert (world.task(2).variant, world.task(2).devices, world.where(2)) == (1, (), ["w2"])


def test_worker_that_is_emptied_for_a_claim_steals_nothing_less_important() -> None:
    """Else it would be full again before the claim is met, for as long as there is anything to steal."""
    world = World("priority", stealing=True, prefetch=PrefetchRule())
    world.handle(joined("w1", cpus=2), joined("w2", cpus=1))
    world.submit(100, kind="short", estimated_time=0.002)
    (big,) = world.submit(cpus=2, priority=9)
    for _ in range(100):
        for task in list(world.worker("w1").running.values()):
            if task.id != big:
                world.start(task.id)
                world.wait(0.002)
                assert not revokes(world.finish(task.id))
    assert world.states(big) == ["assigned"]


def test_thief_takes_only_what_it_could_run() -> None:
    world = World(OnTimer(steal_threshold=0), stealing=True, steal_interval_ns=SECOND)
    world.join("w1", cpus=4)
    world.submit(3, cpus=4)
    world.join("w2", cpus=2)
    effects = world.wake_in(1)
    assert not revokes(effects)
    assert world.engine.next_deadline() == world.now + 2 * SECOND  # it will look again
    world.wake_in(2)
    assert world.engine.next_deadline() == world.now + 4 * SECOND
    world.submit(cpus=4)
    assert world.engine.next_deadline() == world.now + SECOND  # something has changed


def test_timer_rests_without_backlogs() -> None:
    world = crowded(2)
    world.wake_in(1)
    world.handle(answered("w1", (2, 1, True)))
    world.wake_in(1)
    assert ("steal", 0) not in world.engine._t.deadlines


def test_stealing_switched_off() -> None:
    world = World("work_stealing")
    world.join("w1")
    world.submit(9)
    world.join("w2")
    assert ("steal", 0) not in world.engine._t.deadlines


def test_two_thieves_share() -> None:
    world = crowded(9)
    world.join("w3", cpus=2)
    asked = revokes(world.wake_in(1))["w1"]
    assert len(asked) == len(set(asked)) == 4 + 2
    assert [w.incoming for w in world.engine.resources] == [0, 4, 2]


def test_no_task_is_promised_to_two_thieves() -> None:
    """Both pass over task 5, which is too big for them, and neither asks for what the other does."""
    world = World(OnTimer(steal_threshold=0), stealing=True, steal_interval_ns=SECOND)
    world.join("w1", cpus=4)
    for cpus in (4, 2, 2, 2, 4, 2):
        world.submit(cpus=cpus)
    world.join("w2", cpus=2)
    world.join("w3", cpus=2)
    view, policy = world.engine._stealing, world.engine.policy
    moves = [(move.task.id, move.thief.worker_id) for move in policy.rebalance(view, world.now)]
    assert moves == [(4, "w2"), (6, "w2"), (3, "w3")]
    assert revokes(world.wake_in(1)) == {"w1": [(4, 1), (6, 1), (3, 1)]}


class Wild(FIFOScheduler):
    """Proposes what makes no sense."""

    steals: Sequence[tuple[int, str, str]] = ()

    def backlog_limit(self, worker: WorkerInfo) -> int:
        return 5

    def rebalance(self, view: ClusterView, now: Instant) -> list[Steal]:
        rows = {str(worker.worker_id): worker for worker in view.workers()}
        tasks: dict[int, Task] = {t.id: t for w in rows.values() for t in (*w.running.values(), *w.task_queue)}
        return [Steal(tasks[i], rows[victim], rows[thief]) for i, victim, thief in self.steals]


@pytest.mark.parametrize(
    "steal",
    [(1, "w1", "w2"), (3, "w1", "w1"), (3, "w2", "w1"), (3, "w1", "w3"), (4, "w1", "w2")],
    ids=["running", "to itself", "from another", "to the unreachable", "cancelling"],
)
def test_proposals_that_do_not_hold(steal: tuple[int, str, str]) -> None:
    policy = Wild()
    world = World(policy, stealing=True, steal_interval_ns=SECOND)
    world.join("w1")
    world.join("w3", cpus=9)
    world.handle(ev.WorkerDisconnected("w3"))
    world.submit(4)
    world.join("w2")
    world.start(1)
    world.cancel(4)
    policy.steals = [steal, (2, "w1", "w2"), (2, "w1", "w2")]
    assert revokes(world.wake_in(1)) == {"w1": [(2, 1)]}


# ------------------------------------------------------------------------------------------------- at once, not on time


def test_worker_that_comes_steals_at_once() -> None:
    world = World(WorkStealingScheduler(steal_threshold=0), stealing=True, steal_interval_ns=SECOND)
    world.join("w1")
    world.submit(5)
    assert revokes(world.join("w2")) == {"w1": [(4, 1), (5, 1)]}
    effects = world.handle(answered("w1", (4, 1, True), (5, 1, True)))
    assert dispatches(effects) == {"w2": [(4, 2), (5, 2)]}


def test_worker_that_runs_out_of_work_steals_at_once() -> None:
    world = World(WorkStealingScheduler(steal_threshold=0), stealing=True, steal_interval_ns=SECOND)
    world.join("w1")
    world.join("w2")
    world.submit(8)
    for _ in range(4):
        (running,) = world.worker("w2").running
        world.start(running)
        effects = world.finish(running)
    assert not world.worker("w2").running
    assert revokes(effects) == {"w1": [(7, 1)]}  # half of three, no less than one


def pair(**values: Any) -> World:
    """w1 and w3 run one task each and have one waiting; w2, which comes last, has asked w1 for its own."""
    world = World(WorkStealingScheduler(steal_threshold=0, **values), stealing=True, steal_interval_ns=SECOND)
    world.join("w1")
    world.join("w3")
    world.submit(4)
    assert revokes(world.join("w2")) == {"w1": [(3, 1)]}
    return world


def test_thief_that_came_too_late_asks_another() -> None:
    world = pair()
    end = finished("w1", 1, 1, Cause.OK, START, world.now)
    assert revokes(world.handle(end, started("w1", 3, 1, world.now))) == {"w3": [(4, 1)]}


def test_refused_thief_waits() -> None:
    """What it was refused has started, and the message that says so is on its way."""
    world = pair()
    assert not revokes(world.handle(answered("w1", (3, 1, False))))
    assert set(revokes(world.wake_in(1))) <= {"w1", "w3"}


def test_thief_with_several_slots_goes_on() -> None:
    world = World(WorkStealingScheduler(steal_threshold=0, steal="one"), stealing=True, steal_interval_ns=SECOND)
    world.join("w1")
    world.submit(4)
    assert revokes(world.join("w2", cpus=2)) == {"w1": [(4, 1)]}
    assert revokes(world.handle(answered("w1", (4, 1, True)))) == {"w1": [(3, 1)]}
    assert not revokes(world.handle(answered("w1", (3, 1, True))))


def test_queue_comes_before_the_backlogs_of_others() -> None:
    world = World(WorkStealingScheduler(steal_threshold=0, backlog_per_slot=2), stealing=True)
    world.join("w1")
    world.submit(9)
    effects = world.join("w2")
    assert not revokes(effects)
    assert dispatches(effects) == {"w2": [(4, 1), (5, 1), (6, 1)]}


def test_no_stealing_at_once_where_it_is_switched_off() -> None:
    world = World("work_stealing")
    world.join("w1")
    world.submit(9)
    assert not revokes(world.join("w2"))


def test_other_policies_steal_at_once() -> None:
    world = World(LoadBalancingScheduler(backlog_per_slot=4), stealing=True, steal_interval_ns=SECOND)
    world.join("w1")
    world.submit(5)
    assert revokes(world.join("w2")) == {"w1": [(4, 1), (5, 1)]}


def test_longest_backlogs_follow_what_changes() -> None:
    world = World(OnTimer(steal_threshold=0), stealing=True)
    for n in range(1, 6):
        world.join(f"w{n}", cpus=n)
    dice = random.Random(2)
    for _ in range(60):
        world.submit(dice.randrange(1, 4))
        for worker in list(world.engine.resources):
            if worker.running and dice.random() < 0.6:
                world.finish(next(iter(worker.running)))
        if dice.random() < 0.1:
            world.handle(ev.WorkerLeft(f"w{dice.randrange(1, 6)}"))
            world.join(f"w{dice.randrange(1, 6)}", run=str(dice.random()), cpus=3)
        lengths = {w.worker_id: len(w.task_queue) for w in world.engine.resources if w.task_queue}
        found = world.engine._stealing.longest(3)
        assert [len(w.task_queue) for w in found] == sorted(lengths.values(), reverse=True)[:3]
        assert len({w.worker_id for w in found}) == len(found)


A, B = {"a": "1"}, {"b": "1"}


def quiet(**values: Any) -> World:
    """w1 has five short tasks waiting, w2 three of another kind that takes longer; nothing has come for some time."""
    world = World(WorkStealingScheduler(**{"steal_threshold": 0, **values}), stealing=True)
    world.join("w1", labels=A)
    world.join("w2", labels=B)
    world.submit(5, kind="long", labels=B)
    world.start(1)
    world.wait(10)
    world.finish(1)
    world.submit(6 + QUIET_ENDS, kind="short", labels=A)
    for task_id in range(6, 6 + QUIET_ENDS):
        world.start(task_id)
        world.wait(0.1)
        world.finish(task_id)
    return world


def test_thief_takes_what_takes_longest_once_nothing_comes() -> None:
    assert revokes(quiet().join("w3", labels=A | B)) == {"w2": [(5, 1)]}
    assert revokes(quiet(steal="one").join("w3", labels=A | B)) == {"w2": [(5, 1)]}
    world = quiet()
    assert revokes(world.join("w3", labels=A)) == {"w1": [(26, 1), (27, 1)]}  # which cannot run the long ones


def test_thief_takes_from_the_longest_backlog_while_tasks_come() -> None:
    world = quiet()
    world.submit(kind="short", labels=A)
    assert revokes(world.join("w3", labels=A | B)) == {"w1": [(26, 1), (27, 1), (28, 1)]}


def test_thieves_on_the_timer_take_what_takes_longest() -> None:
    world = quiet()
    world.engine.policy.steal_for = lambda *_: []  # type: ignore[method-assign]
    world.join("w3", labels=A | B)
    world.join("w4", labels=A | B)
    assert revokes(world.wake_in(1)) == {"w2": [(5, 1), (4, 1)]}


def test_how_long_kinds_take_outlives_a_restart() -> None:
    before = quiet().engine.policy
    after = WorkStealingScheduler()
    after.recall(before.learned())
    row = WorkerInfo(WorkerId("w"), waiting_kinds={"short": 9, "long": 2})
    assert after.weigh(row) == before.weigh(row)
    assert after.weigh(row)[0] == pytest.approx(10)
    assert after.weigh(row)[1] == 2
    assert after.weigh(WorkerInfo(WorkerId("w"))) == (0, 0)


def test_drawn_workers_take_work_and_could_run_the_task() -> None:
    world = World(WorkStealingScheduler(choices=2, backlog_per_slot=100), seed=4)
    world.join("cpu")
    world.join("gpu", num_gpus=1)
    world.join("gone", num_gpus=1)
    world.handle(ev.DrainWorkers(1, ["gone"]))
    ids = world.submit(12, min_gpus=1)
    assert set(world.where(*ids)) == {"gpu"}
    assert {"cpu", "gpu"} == set(world.where(*world.submit(12)))


def test_drawn_worker_that_is_full() -> None:
    """Where the drawn one has no room, the least loaded of all gets the task; where nobody has, it waits."""
    world = World(WorkStealingScheduler(choices=1, backlog_per_slot=1), seed=1)
    world.join("w1")
    world.join("w2")
    ids = world.submit(5)
    assert sorted(str(name) for name in world.where(*ids)) == ["None", "w1", "w1", "w2", "w2"]
