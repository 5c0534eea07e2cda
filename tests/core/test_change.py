"""The operator changes policy and settings while tasks wait, run and move: nothing is lost, and what counts is new."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import structs

from schedd.core import effects as fx
from schedd.core import events as ev
from schedd.core.model import SECOND, Cause, Revoking, TaskEntry, TaskRequirements, WorkerInfo, WorkerStatus
from schedd.core.policies import POLICIES
from schedd.core.policies.adaptive import AdaptiveScheduler
from schedd.core.policies.base import TaskScheduler
from schedd.core.policies.priority import PriorityScheduler
from schedd.core.policies.work_stealing import WorkStealingScheduler
from schedd.core.settings import FailureRules, PrefetchRule

from .builders import World, answered, dispatches, of, reported, spec


def replaced(policy: str | TaskScheduler, shadow: str = "") -> ev.PolicyReplaced:
    made = POLICIES[policy]() if isinstance(policy, str) else policy
    return ev.PolicyReplaced(made, POLICIES[shadow]() if shadow else None)


def swap(world: World, policy: str | TaskScheduler, shadow: str = "") -> fx.Effects:
    """Replace the policy and take all the turns that it needs; returns all that came of it."""
    return settle(world, world.handle(replaced(policy, shadow)))


def settle(world: World, so_far: fx.Effects) -> fx.Effects:
    """Take all turns that are due now."""
    facts, actions = list(so_far.facts), list(so_far.actions)
    while world.engine.next_deadline() == world.now:
        effects = world.wake()
        facts += effects.facts
        actions += effects.actions
    return fx.Effects(facts, actions, [])


def changed(world: World, **settings: Any) -> fx.Effects:
    world.settings = structs.replace(world.settings, **settings)
    return world.handle(ev.SettingsChanged(world.settings))


def order(world: World, count: int) -> list[int]:
    """The order in which a single slot gets what waits."""
    settle(world, world.join("slot", cpus=1))
    ran: list[int] = []
    for _ in range(count):
        (running,) = world.worker("slot").running
        ran.append(running)
        world.start(running)
        world.finish(running)
    return ran


# ---------------------------------------------------------------------------------------------------------- the policy


def test_what_waits_goes_in_the_order_of_the_new_policy() -> None:
    world = World("fifo")
    world.submit_entries(spec(), [TaskEntry(0, priority=float(p)) for p in (1, 3, 2)])
    swap(world, "priority")
    assert order(world, 3) == [2, 3, 1]


def test_and_in_the_order_of_submission_again() -> None:
    world = World("priority")
    world.submit_entries(spec(), [TaskEntry(0, priority=float(p)) for p in (1, 3, 2)])
    swap(world, "fifo")
    assert order(world, 3) == [1, 2, 3]


@pytest.mark.parametrize("portion", [1, 3, 1000])
def test_many_go_over_in_portions_and_nothing_is_placed_before_all_have(portion: int) -> None:
    world = World("fifo", moved_per_turn=portion)
    world.submit_entries(spec(), [TaskEntry(0, priority=float(i)) for i in range(8)])
    effects = world.handle(replaced("priority"))
    turns = 1
    while world.engine._t.queue.left_behind:
        assert not dispatches(effects)
        assert "policy was changed" in world.engine.explain(world.task(1)).summary
        effects = world.join("w1", cpus=8)
        turns += 1
    assert turns >= 8 // portion
    settle(world, world.join("w1", cpus=8))
    assert len(world.worker().running) == 8


def test_others_are_served_while_tasks_go_over() -> None:
    """What is submitted, cancelled, held, released and made more important meanwhile stands where it should."""
    world = World("fifo", moved_per_turn=1)
    world.submit_entries(spec(), [TaskEntry(0, priority=float(i)) for i in range(6)])
    world.handle(replaced("priority"))
    assert world.engine._t.queue.left_behind == 5
    world.cancel(2, 5)
    world.hold(4)
    world.release(4)
    world.handle(ev.SetPriorities(1, [(task.id, 9.0) for task in (world.task(3),)]))
    world.submit(priority=7.0)
    assert order(world, 5) == [3, 7, 6, 4, 1]


def test_a_second_change_before_the_first_is_through() -> None:
    world = World("fifo", moved_per_turn=1)
    world.submit_entries(spec(), [TaskEntry(0, priority=float(i)) for i in range(5)])
    world.handle(replaced("priority"))
    world.handle(replaced("adaptive"))
    world.handle(replaced(PriorityScheduler()))
    assert order(world, 5) == [5, 4, 3, 2, 1]


def test_kinds_are_told_apart_where_the_policy_wants_it() -> None:
    world = World("priority")
    world.submit(2, kind="a")
    world.submit(2, kind="b")
    world.submit(1, kind="b", hold=True)
    assert len({world.task(i).request for i in range(1, 6)}) == 1
    swap(world, "batch")
    assert len({world.task(i).request for i in range(1, 5)}) == 2
    world.release(5)  # which was in no queue then
    assert world.task(5).request is world.task(4).request
    swap(world, "fifo")
    assert len({world.task(i).request for i in range(1, 6)}) == 1


def test_sizes_are_told_apart_where_the_policy_wants_it() -> None:
    """And no longer where it does not."""
    world = World("fifo")
    for seconds in (100.0, 1.0, 100.0):
        world.submit(estimated_time=seconds)
    assert len({world.task(i).request for i in (1, 2, 3)}) == 1
    swap(world, AdaptiveScheduler(objective="mean_jct"))
    world.engine.check()
    assert world.task(1).request is world.task(3).request is not world.task(2).request
    assert order(world, 3)[0] == 2
    _, waits = world.submit(2, estimated_time=1.0)
    swap(world, "fifo")
    (plain,) = world.submit()
    assert world.task(waits).request is world.task(plain).request


def test_what_runs_goes_on() -> None:
    world = World("fifo")
    world.join("w1", cpus=2)
    world.submit(3)
    world.start(1, 2)
    effects = swap(world, "adaptive")
    assert not effects.actions
    assert world.states(1, 2, 3) == ["running", "running", "queued"]
    world.finish(1, 2)
    assert world.states(1, 2, 3) == ["succeeded", "succeeded", "assigned"]


def test_backlog_that_the_new_policy_would_not_have_sent_ahead_is_taken_back() -> None:
    world = World("work_stealing", stealing=True)
    world.join("w1", cpus=1)
    for priority in range(4):
        world.submit(priority=float(priority))
    world.start(1)
    assert [task.id for task in world.worker().task_queue] == [2, 3, 4]
    effects = world.handle(replaced("priority"))
    assert of(effects.actions, fx.RevokeAttempts)[0].attempts == [(2, 1), (3, 1), (4, 1)]
    assert all(isinstance(world.state(i), Revoking) for i in (2, 3, 4))
    world.handle(answered("w1", (2, 1, False), (3, 1, True), (4, 1, True)))  # it was about to start the first
    world.finish(1)
    assert world.states(2, 3, 4) == ["assigned", "queued", "queued"]
    world.start(2)
    world.finish(2)
    assert world.states(3, 4) == ["queued", "assigned"]  # by importance


def test_what_stood_behind_a_backlog_that_is_taken_back_is_given_out_at_once() -> None:
    world = World("work_stealing", moved_per_turn=1)
    for name in ("w1", "w2"):
        world.join(name, cpus=2, labels={"name": name})
        for cpus in (1, 2):
            world.submit(requirements=TaskRequirements(cpus=cpus, labels={"name": name}))
    assert [len(world.worker(name).task_queue) for name in ("w1", "w2")] == [1, 1]
    (late,) = world.submit(requirements=TaskRequirements(cpus=1, labels={"name": "w2"}), delay_s=1)
    world.now += SECOND
    swap(world, "fifo")
    world.engine.check()
    assert world.where(late) == ["w2"]


def test_place_that_room_is_made_for_stays() -> None:
    world = World(PriorityScheduler(preempt=True, preempt_after_s=0.0, preempt_run_min_s=0.0))
    world.join("w1", cpus=1)
    world.submit()
    world.start(1)
    world.submit(priority=5.0)
    world.wake_in(2)
    assert (world.states(1, 2), world.where(2)) == (["running", "assigned"], ["w1"])
    effects = swap(world, "fifo")
    assert not of(effects.actions, fx.RevokeAttempts)
    world.finish(1, cause=Cause.PREEMPTED)
    assert world.states(1, 2) == ["queued", "assigned"]


def test_what_has_begun_before_may_be_preempted_by_the_new_policy() -> None:
    world = World("fifo")
    world.join("w1", cpus=1)
    world.submit()
    world.start(1)
    swap(world, PriorityScheduler(preempt=True, preempt_after_s=1.0, preempt_run_min_s=1.0))
    world.submit(priority=5.0)
    for _ in range(4):
        world.wake_in(1)
    assert world.engine._t.preempting(world.task(1)) is not None


# --------------------------------------------------------------------------------------------------- what was learned


def learn(world: World, kind: str = "a") -> None:
    (task_id,) = world.submit(kind=kind)
    world.start(task_id)
    world.wait(2.0)
    world.finish(task_id)


def seen(world: World, kind: str = "a") -> int:
    policy = world.engine.policy
    assert isinstance(policy, AdaptiveScheduler)
    stats = policy.stats(kind, world.worker().worker_id)
    return stats.total_tasks if stats is not None else 0


def test_what_was_learned_is_there_when_the_policy_comes_back() -> None:
    world = World("adaptive")
    world.join()
    learn(world)
    swap(world, "priority")
    learn(world)  # which nobody but the engine learns from
    assert "adaptive" in world.engine.learned()
    swap(world, "adaptive")
    learn(world)
    assert seen(world) == 2


def test_other_parameters_forget_nothing() -> None:
    world = World("adaptive")
    world.join()
    learn(world)
    swap(world, AdaptiveScheduler(exploration=0.0))
    assert seen(world) == 1


def test_what_the_shadow_has_learned_is_what_the_policy_begins_with() -> None:
    world = World("priority")
    world.join()
    swap(world, "priority", shadow="adaptive")
    learn(world)
    swap(world, "adaptive")
    assert seen(world) == 1
    assert world.engine.shadow is None
    swap(world, "fifo", shadow="adaptive")
    learn(world)
    assert world.engine.shadow is not None
    swap(world, "adaptive")
    assert seen(world) == 2


def test_what_was_learned_before_a_restart_by_who_decides_later() -> None:
    world = World("adaptive")
    world.join()
    learn(world)
    after = World("fifo")
    after.engine.recall(world.engine.learned())
    after.join()
    swap(after, "adaptive")
    assert seen(after) == 1


# ---------------------------------------------------------------------------------------------------------- promotion


def rung(metric: str = "accuracy", mode: str = "max") -> PriorityScheduler:
    return PriorityScheduler(from_metric=metric, from_metric_mode="min" if mode == "min" else "max")


def test_rule_that_is_switched_on_counts_for_what_waits() -> None:
    world = World("priority")
    world.join("w1", cpus=2)
    world.submit(2)
    for other, value in ((1, 0.1), (2, 0.9)):
        world.start(other)
        world.handle(reported("w1", other, 1, 1, accuracy=value))
    world.handle(ev.DrainWorkers(1, [world.worker().worker_id]))
    world.finish(1, 2)
    world.submit(after=[1])
    world.submit(after=[2])
    effects = swap(world, rung())
    assert [world.task(i).promoted for i in (3, 4)] == [0.1, 0.9]
    assert {f.task_id: f.promoted for f in of(effects.facts, fx.TaskChanged)} == {3: 0.1, 4: 0.9}
    assert not of(swap(world, "fifo").facts, fx.TaskChanged)
    assert not of(swap(world, rung()).facts, fx.TaskChanged)
    swap(world, rung(mode="min"))
    assert [world.task(i).promoted for i in (3, 4)] == [-0.1, -0.9]
    swap(world, "priority")
    assert order(world, 2) == [3, 4]  # without the rule nobody gains


# ----------------------------------------------------------------------------------------------------------- settings


def test_bounds_that_are_lowered_count_from_the_next_end_on() -> None:
    world = World(finished_keep_count=10)
    world.join("w1", cpus=8)
    world.submit(6)
    world.start(1, 2, 3, 4, 5, 6)
    world.finish(1, 2, 3, 4, 5)
    changed(world, finished_keep_count=2, unfinished_max=1)
    assert len(world.engine.tasks) == 6
    world.finish(6)
    assert [task.id for task in world.engine.tasks.rows.values()] == [5, 6]
    effects = world.handle(ev.SubmitTasks(1, [spec()], [TaskEntry(0), TaskEntry(0)]))
    assert of(effects.actions, fx.ReplyDeclined)[0].code == "queue_full"


def test_shorter_lease_gives_each_worker_the_time_that_it_was_promised() -> None:
    """A worker that was told to report once a minute is not given up by a lease of ten seconds, before it knows."""
    world = World(heartbeat_ns=60 * SECOND, lease_ns=180 * SECOND)
    world.join()
    changed(world, heartbeat_ns=3 * SECOND, lease_ns=10 * SECOND)
    for _ in range(17):
        world.wake_in(10)
    assert world.worker().status is not WorkerStatus.UNREACHABLE
    world.wake_in(11)
    assert world.worker().status is WorkerStatus.UNREACHABLE


def test_unreachable_worker_is_lost_by_the_new_time() -> None:
    world = World(lost_after_ns=3600 * SECOND)
    world.join()
    world.handle(ev.WorkerDisconnected(world.worker().worker_id))
    changed(world, lost_after_ns=20 * SECOND)
    world.wake_in(19)
    assert len(world.engine.resources) == 1
    world.wake_in(2)
    assert len(world.engine.resources) == 0


def test_stealing_is_switched_on_and_off() -> None:
    world = World("load_balancing")
    world.join("w1", cpus=1)
    world.submit(2)
    assert [task.id for task in world.worker().task_queue] == [2]
    world.join("w2", cpus=1)
    assert not world.wake_in(1).actions
    changed(world, stealing=True)
    world.wait(1)
    assert of(world.wake().actions, fx.RevokeAttempts)
    changed(world, stealing=False)
    assert ("steal", 0) not in world.engine._t.deadlines


def test_backlogs_are_weighed_by_the_policy_in_use() -> None:
    class Least(WorkStealingScheduler):
        def weigh(self, worker: WorkerInfo) -> tuple[float, int]:
            return -len(worker.task_queue), 0

    world = World("work_stealing")
    world.join("w1", cpus=1)
    world.submit(5)
    world.join("w2", cpus=1)
    world.submit(3)
    backlogs = {name: len(world.worker(name).task_queue) for name in ("w1", "w2")}
    assert 0 < backlogs["w2"] < backlogs["w1"]
    stealing = world.engine._stealing
    assert [worker.worker_id for worker in stealing.heaviest(1)] == ["w1"]
    swap(world, Least())
    assert [worker.worker_id for worker in stealing.heaviest(1)] == ["w2"]


def test_work_is_sent_ahead_once_it_may_be() -> None:
    world = World("priority")
    world.join("w1", cpus=1)
    world.submit(4, estimated_time=0.001)
    assert not world.worker().task_queue
    changed(world, prefetch=PrefetchRule())
    world.submit(1, estimated_time=0.001)
    assert [task.id for task in world.worker().task_queue] == [2, 3, 4, 5]


@pytest.fixture
def failing() -> World:
    """A worker where all fails, in quarantine, beside one where nothing does."""
    rules = FailureRules(quarantine_failures_min=1, odds_per_worker=0.3)
    world = World("fifo", failures=rules)
    world.join("good", cpus=1)
    world.join("bad", cpus=1)
    world.submit(40)
    while not world.engine._t.health.quarantines:
        running = [task for name in ("good", "bad") for task in world.worker(name).running]
        world.start(*running)
        for task in running:
            world.finish(task, cause=Cause.OK if world.where(task) == ["good"] else Cause.ERROR)
    return world


def test_quarantines_end_where_they_are_switched_off(failing: World) -> None:
    effects = changed(failing, failures=FailureRules(quarantine=False))
    assert [fact.worker_id for fact in of(effects.facts, fx.WorkerCleared)] == ["bad"]
    assert failing.worker("bad").running


def test_kinds_are_let_go_where_holds_are_switched_off() -> None:
    world = World("fifo", failures=FailureRules(hopeless_tasks_min=3, quarantine=False))
    world.join("w1", cpus=1)
    world.submit(8, kind="typo")
    for task_id in (1, 2, 3):
        world.start(task_id)
        world.finish(task_id, cause=Cause.ERROR)
    assert set(world.states(5, 6, 7, 8)) == {"held"}
    changed(world, failures=FailureRules(hopeless_kind=False, hopeless_tasks_min=1))
    assert set(world.states(5, 6, 7, 8)) == {"queued"}


def test_nothing_is_lost_whatever_is_chosen() -> None:
    """All pairs of policies, with work everywhere: each task ends exactly once."""
    for first in POLICIES:
        for second in POLICIES:
            world = World(first, moved_per_turn=3, stealing=True, seed=3)
            world.join("w1", cpus=2)
            world.join("w2", cpus=1)
            ids = world.submit(12, kind="a") + world.submit(6, kind="b", priority=3.0)
            swap(world, second)
            for _ in range(200):
                revokes = [task for task in map(world.task, ids) if isinstance(task.state, Revoking)]
                for task in revokes:
                    world.handle(answered(str(task.worker_id), (task.id, task.attempt, True)))
                running = [i for name in ("w1", "w2") for i in world.worker(name).running]
                world.start(*running)
                world.finish(*running)
                world.wake()
                if all(world.state(i).is_final for i in ids):
                    break
            assert set(world.states(*ids)) == {"succeeded"}, (first, second)
            assert not world.cancel(*ids).facts
