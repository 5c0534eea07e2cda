# mypy: disable-error-code="arg-type, list-item"
"""What goes where, and what waits for it: order, resources, claims, backfill, prefetch."""

from __future__ import annotations

from typing import Any

import pytest

from schedd.core import events as ev
from schedd.core.model import SECOND, Cause, Gpu, Task, TaskEntry, TaskRequirements, TaskRules, WorkerInfo
from schedd.core.placement import PLACED_PER_PASS_MAX
from schedd.core.policies.base import Draft
from schedd.core.policies.fifo import FIFOScheduler
from schedd.core.policies.priority import PriorityScheduler
from schedd.core.settings import PrefetchRule

from .builders import NO_PREFETCH, World, dispatches, joined, spec

# -------------------------------------------------------------------------------------------------------------- order


def test_priority_before_order() -> None:
    world = World()
    for priority in (0, 5, 1, 5):
        world.submit(priority=priority)
    effects = world.join(cpus=3)
    assert dispatches(effects) == {"w1": [(2, 1), (4, 1), (3, 1)]}


def test_order_across_classes() -> None:
    world = World()
    world.submit(cpus=1)
    world.submit(cpus=0.5)
    world.submit(cpus=1)
    assert dispatches(world.join(cpus=2.5)) == {"w1": [(1, 1), (2, 1), (3, 1)]}


def test_fifo_ignores_priorities() -> None:
    world = World("fifo")
    for priority in (0, 5, 1):
        world.submit(priority=priority)
    assert dispatches(world.join(cpus=2)) == {"w1": [(1, 1), (2, 1)]}


@pytest.mark.parametrize(("hours", "first"), [(0.5, 2), (1.5, 1)])
def test_ageing(hours: float, first: int) -> None:
    """One point of priority for each hour of waiting."""
    world = World(PriorityScheduler(ageing_per_hour=1.0))
    world.submit(priority=0)
    world.wait(hours * 3600)
    world.submit(priority=1)
    world.join()
    assert world.states(first) == ["assigned"]


def test_ageing_across_classes() -> None:
    world = World(PriorityScheduler(ageing_per_hour=1.0))
    world.submit(cpus=1)
    world.wait(7200)
    world.submit(cpus=0.5, priority=1)
    world.join(cpus=1)
    assert world.states(1, 2) == ["assigned", "queued"]


def test_first_joined_wins_ties() -> None:
    world = World("fifo")
    world.handle(joined("b"), joined("a"), joined("c"))
    world.submit(3)
    assert world.where(1, 2, 3) == ["b", "a", "c"]


def test_fewest_tasks_first() -> None:
    world = World("priority")
    world.handle(joined("w1", cpus=4), joined("w2", cpus=4))
    world.submit(4)
    assert world.where(1, 2, 3, 4) == ["w1", "w2", "w1", "w2"]


# ---------------------------------------------------------------------------------------------------------- resources


def test_cpus_and_ram() -> None:
    world = World()
    world.join(cpus=4, ram_gb=8)
    world.submit(3, ram=3, cpus=0.1)
    assert world.states(1, 2, 3) == ["assigned", "assigned", "queued"]
    world.submit(cpus=3.8)
    assert world.states(4) == ["assigned"]


def test_whole_devices() -> None:
    world = World()
    world.join(cpus=9, num_gpus=4)
    world.submit(2, min_gpus=2)
    assert [world.task(i).devices for i in (1, 2)] == [(0, 1), (2, 3)]
    world.submit(min_gpus=1)
    assert world.states(3) == ["queued"]
    world.finish(1)
    assert world.task(3).devices == (0,)


def test_shares_fill_one_device_first() -> None:
    world = World()
    world.join(cpus=9, num_gpus=2)
    world.submit(3, min_gpus=0.4)
    assert [world.task(i).devices for i in (1, 2, 3)] == [(0,), (0,), (1,)]
    world.submit(min_gpus=1)
    assert world.states(4) == ["queued"]
    world.finish(3)
    assert world.task(4).devices == (1,)


def test_share_goes_to_the_fullest_device_with_room() -> None:
    world = World()
    world.join(cpus=9, num_gpus=2)
    world.submit(3, min_gpus=0.4)
    world.finish(1, 2)
    world.submit(min_gpus=0.4)
    assert world.task(4).devices == (1,)


def test_shares_within_memory() -> None:
    world = World()
    world.join(cpus=9, num_gpus=1, gpu_memory_gb=10)
    world.submit(3, min_gpus=0.1, min_memory=4)
    assert world.states(1, 2, 3) == ["assigned", "assigned", "queued"]


def test_memory_of_each_device() -> None:
    world = World()
    world.join(gpus=(Gpu("a", "T4", 4096), Gpu("b", "A100", 40960)), cpus=9)
    world.submit(min_gpus=1, min_memory=20)
    assert world.task(1).devices == (1,)
    world.submit(min_gpus=2, min_memory=20)
    assert world.states(2) == ["queued"]


def test_model_of_the_device() -> None:
    world = World()
    world.join(gpus=(Gpu("a", "Tesla T4", 4096), Gpu("b", "NVIDIA A100", 40960)), cpus=9)
    world.submit(2, min_gpus=0.5, gpu_model="A100")
    assert [world.task(i).devices for i in (1, 2)] == [(1,), (1,)]
    world.submit(gpu_model="H100", min_gpus=1)
    assert world.states(3) == ["queued"]


def test_labels() -> None:
    world = World()
    world.handle(joined("w1", labels={"zone": "a"}), joined("w2", labels={"zone": "b", "disk": "ssd"}))
    world.submit(labels={"zone": "b", "disk": "ssd"})
    world.submit(labels={"zone": "c"})
    assert world.where(1, 2) == ["w2", None]


def test_custom_amounts() -> None:
    world = World()
    world.join(cpus=9, custom={"licence": 2})
    world.submit(3, custom={"licence": 1})
    world.submit(custom={"dongle": 1})
    assert world.states(1, 2, 3, 4) == ["assigned", "assigned", "queued", "queued"]
    world.finish(1)
    assert world.states(3) == ["assigned"]


def test_variants_in_order_of_preference() -> None:
    world = World()
    world.handle(joined("w1", cpus=2, gpu_model="T4", num_gpus=2), joined("w2", cpus=2, gpu_model="A100", num_gpus=1))
    world.submit(3, min_gpus=1, gpu_model="A100", variants=(TaskRequirements(min_gpus=2, gpu_model="T4"),))
    assert world.where(1, 2, 3) == ["w2", "w1", None]
    assert [world.task(i).variant for i in (1, 2)] == [0, 1]
    world.finish(2)
    assert (world.where(3), world.task(3).variant) == (["w1"], 1)


def test_order_of_labels_makes_no_class() -> None:
    world = World()
    world.submit(labels={"a": "1", "b": "2"}, custom={"x": 1, "y": 2})
    world.submit(labels={"b": "2", "a": "1"}, custom={"y": 2, "x": 1}, estimated_time=5)
    assert world.task(1).request is world.task(2).request


# ----------------------------------------------------------------------------------------------- claims and backfill


def test_blocked_class_does_not_block_others() -> None:
    world = World()
    world.submit(min_gpus=1, priority=9)
    world.submit(1)
    world.join()
    assert world.states(1, 2) == ["queued", "assigned"]


def test_gap_is_kept_for_the_bigger_task() -> None:
    """Small tasks of lower rank do not take the room that a big one waits for."""
    world = World()
    world.join(cpus=4)
    world.submit(3)
    world.start(1, 2, 3)
    world.submit(cpus=4, priority=9)
    world.submit(5)
    assert set(world.states(5, 6, 7)) == {"queued"}
    world.wait(10)
    world.finish(1, 2)
    assert world.states(4, 5) == ["queued", "queued"]
    world.finish(3)
    assert world.states(4, 5) == ["assigned", "queued"]


def test_gap_on_one_worker_leaves_the_others() -> None:
    world = World()
    world.handle(joined("w1", cpus=2), joined("w2", cpus=2))
    world.submit(2)
    world.start(1, 2)
    assert world.where(1, 2) == ["w1", "w2"]
    world.submit(cpus=2, priority=9)
    world.submit(2)
    claimed = [name for name in ("w1", "w2") if world.worker(name).task_count == 1]
    assert len(claimed) == 1
    assert sorted(world.states(4, 5)) == ["assigned", "queued"]


BIG_ELSEWHERE = {"min_gpus": 1, "gpu_model": "A100", "variants": (TaskRequirements(min_gpus=2, gpu_model="T4"),)}
SMALL_ELSEWHERE = {"min_gpus": 4, "gpu_model": "A100", "variants": (TaskRequirements(min_gpus=1),)}


@pytest.mark.parametrize("policy", ["fifo", "priority", "adaptive"])
@pytest.mark.parametrize(
    ("big", "small"), [({"min_gpus": 2}, SMALL_ELSEWHERE), (BIG_ELSEWHERE, {"min_gpus": 1})], ids=["small", "big"]
)
def test_gap_is_kept_whatever_alternatives_there_are(policy: str, big: dict[str, Any], small: dict[str, Any]) -> None:
    """What matters is by which of them a task could go where another one waits."""
    world = World(policy)
    world.join(cpus=8, num_gpus=2, gpu_model="T4")
    world.start(*world.submit(2, **small))
    (waiting,) = world.submit(**big)
    world.submit(4, **small)
    for task_id in (1, 2):
        world.wait(5)
        world.finish(task_id)
    assert world.states(waiting) == ["assigned"]


def test_gap_is_kept_also_behind_many_classes_that_need_as_much() -> None:
    world = World("adaptive")
    world.join(cpus=200, num_gpus=2)
    world.start(*world.submit(2, min_gpus=1))
    big = [world.submit(min_gpus=2, kind=f"big {n}")[0] for n in range(100)]
    world.submit(4, min_gpus=1)
    for task_id in (1, 2):
        world.wait(5)
        world.finish(task_id)
    assert "assigned" in world.states(*big)


def test_class_that_may_start_and_rather_waits_claims_nothing() -> None:
    class Choosy(PriorityScheduler):
        def plan(self, draft: Draft, now: int) -> None:
            while (task := draft.head()) is not None:
                worker = draft.candidate(task)
                if worker is None:
                    draft.block(task)
                elif task.kind == "choosy":
                    draft.decline(task)
                else:
                    draft.assign(task, worker)

    world = World(Choosy())
    world.join(cpus=2)
    (choosy,) = world.submit(cpus=2, kind="choosy")
    small = world.submit(cpus=1), world.submit(cpus=0.5)
    assert world.states(choosy, *small[0], *small[1]) == ["queued", "assigned", "assigned"]


@pytest.mark.parametrize(("has", "depth"), [({"cpus": 64, "num_gpus": 1}, 1), ({"cpus": 64, "num_gpus": 8}, 8)])
def test_backlog_is_by_what_runs_at_a_time_whatever_bounds_that(has: dict[str, float], depth: int) -> None:
    world = World(prefetch=PrefetchRule())
    world.join(**has)
    world.submit(100, min_gpus=1, estimated_time=0.5)
    assert len(world.worker().task_queue) == depth


def test_small_task_beside_the_claim() -> None:
    """What leaves room for the claim may run: the big task wants GPUs, the small one only a CPU."""
    world = World()
    world.join(cpus=8, num_gpus=2)
    world.submit(min_gpus=1)
    world.start(1)
    world.submit(min_gpus=2, priority=9)
    world.submit(2, cpus=2)
    world.submit(min_gpus=1)
    assert world.states(2, 3, 4, 5) == ["queued", "assigned", "assigned", "queued"]


def test_backfill_by_estimates() -> None:
    """The big task can start in 150 s at the latest: what ends before may run meanwhile."""
    world = World()
    world.join(cpus=2)
    world.submit(estimated_time=100)
    world.start(1)
    world.submit(cpus=2, priority=9)
    world.submit(estimated_time=90, kind="a")
    world.submit(estimated_time=101, kind="b")
    assert world.states(2, 3, 4) == ["queued", "assigned", "queued"]
    world.finish(3)
    assert world.states(2, 4) == ["queued", "queued"]


@pytest.mark.parametrize(("timeout_s", "state"), [(149, "assigned"), (151, "queued")])
def test_backfill_by_timeouts(timeout_s: float, state: str) -> None:
    world = World()
    world.join(cpus=2)
    world.submit(estimated_time=100)
    world.start(1)
    world.submit(cpus=2, priority=9)
    world.submit(rules=TaskRules(timeout_s=timeout_s))
    assert world.states(2, 3) == ["queued", state]


def test_no_backfill_when_nothing_is_known() -> None:
    world = World()
    world.join(cpus=2)
    world.submit()
    world.start(1)
    world.submit(cpus=2, priority=9)
    world.submit(estimated_time=0.001)
    assert world.states(2, 3) == ["queued", "queued"]


def test_no_backlog_before_a_claim() -> None:
    """Short tasks are not sent ahead to a worker that a bigger one of better rank waits for."""
    world = World(prefetch=PrefetchRule())
    world.join(cpus=2)
    world.submit(2, estimated_time=100)
    world.start(1, 2)
    world.submit(cpus=2, priority=9, estimated_time=100)
    world.submit(5, kind="short", estimated_time=0.01)
    assert not world.worker().task_queue


def test_claim_moves_when_its_worker_leaves() -> None:
    world = World()
    world.handle(joined("w1", cpus=2), joined("w2", cpus=2))
    world.submit(2)
    world.start(1, 2)
    world.submit(cpus=2, priority=9)
    world.submit(5)
    claimed = next(name for name in ("w1", "w2") if world.worker(name).task_count == 1)
    world.handle(ev.WorkerLeft(claimed))
    rest = next(iter(world.engine.resources))
    world.finish(*list(rest.running))
    assert world.states(3) == ["assigned"]


def test_big_task_of_lower_rank_waits() -> None:
    world = World()
    world.join(cpus=2)
    world.submit()
    world.submit(cpus=2, priority=-1)
    world.submit(4)
    for task_id in (1, 3, 4, 5):
        world.finish(task_id)
    assert world.states(2) == ["queued"]
    world.finish(6)
    assert world.states(2) == ["assigned"]


def test_claim_is_given_up_with_its_task() -> None:
    world = World()
    world.join(cpus=2)
    world.submit()
    world.start(1)
    world.submit(cpus=2, priority=9)
    world.submit()
    assert world.states(3) == ["queued"]
    world.cancel(2)
    assert world.states(3) == ["assigned"]


# ----------------------------------------------------------------------------------------------------------- prefetch


@pytest.mark.parametrize(
    ("runtime_s", "depth"),
    [(None, 0), (5.0, 0), (1.01, 0), (1.0, 1), (0.03, 1), (0.02, 2), (0.001, 30), (0.00001, 256), (0.0, 256)],
)
def test_prefetch_depth(runtime_s: float | None, depth: int) -> None:
    assert PrefetchRule().depth(runtime_s) == depth


def test_prefetch_switched_off() -> None:
    assert NO_PREFETCH.depth(0.001) == 0
    assert PrefetchRule(cover_s=0).depth(0.001) == 0


def test_prefetch_of_short_tasks_by_their_hint() -> None:
    world = World(prefetch=PrefetchRule())
    world.join(cpus=2)
    world.submit(20, estimated_time=0.01)
    assert (world.worker().task_count, len(world.worker().task_queue)) == (2, 6)  # three for each slot


def test_prefetch_of_what_was_learned() -> None:
    world = World(prefetch=PrefetchRule())
    world.join()
    world.submit(10, kind="k")
    assert not world.worker().task_queue
    world.start(1)
    world.wait(0.01)
    world.finish(1)
    assert len(world.worker().task_queue) == 3


def test_long_tasks_bind_late() -> None:
    world = World(prefetch=PrefetchRule())
    world.handle(joined("w1"), joined("w2"))
    world.submit(4, estimated_time=60)
    world.submit(priority=9, estimated_time=60)
    world.start(1)
    world.wait(60)
    world.finish(1)
    assert world.where(3, 5) == [None, "w1"]


def test_prefetch_is_bounded() -> None:
    world = World(prefetch=PrefetchRule(depth_max=5))
    world.join(cpus=100)
    world.submit(200, estimated_time=0.00001)
    assert len(world.worker().task_queue) == 5


def test_backlog_starts_in_order() -> None:
    world = World("load_balancing")
    world.join(cpus=2)
    world.submit(2)
    world.submit(cpus=2)
    world.submit()
    assert [t.id for t in world.worker().task_queue] == [3, 4]
    world.finish(1)
    assert [t.id for t in world.worker().task_queue] == [3, 4]  # nothing overtakes the head
    world.finish(2)
    assert (list(world.worker().running), [t.id for t in world.worker().task_queue]) == ([3], [4])


# ------------------------------------------------------------------------------------------------ policies of others


class Odd(FIFOScheduler):
    """Plans otherwise than the index says."""

    def plan(self, draft: Draft, now: int) -> None:
        while (task := draft.head()) is not None:
            worker = draft.candidate(task)
            if worker is None:
                draft.block(task)
            else:
                draft.assign(task, self.other or worker)

    other: WorkerInfo | None = None


def test_policy_assigns_where_it_fits_too() -> None:
    policy = Odd()
    world = World(policy)
    world.handle(joined("w1"), joined("w2", cpus=2))
    policy.other = world.worker("w2")
    world.submit(2)
    assert world.where(1, 2) == ["w2", "w2"]
    world.engine.handle([ev.SubmitTasks(1, [spec()], [TaskEntry(0)])], world.now)
    assert world.where(3) == [None]


def test_many_tasks_one_pass() -> None:
    world = World()
    world.handle(*(joined(f"w{i}", cpus=4) for i in range(50)))
    world.submit_entries(spec(), [TaskEntry(0)] * 500)
    for _ in range(10):
        world.wake()
    assert sum(w.task_count for w in world.engine.resources) == 200


def test_runtime_of_failures_counts_too() -> None:
    world = World(prefetch=PrefetchRule())
    world.join()
    world.submit(5, kind="k")
    world.start(1)
    world.wait(2)
    world.finish(1, cause=Cause.ERROR)
    assert world.engine._t.runtimes.predict("k") is not None
    assert not world.worker().task_queue


def test_estimate_of_the_engine() -> None:
    world = World()
    world.join()
    task = Task(id=0, requirements=TaskRequirements(estimated_time=2), rules=TaskRules(timeout_s=9))
    assert world.engine._t.placer._claims._upper_runtime(task) == 3 * SECOND


def test_pass_is_cut_short_and_goes_on_in_the_next_turn() -> None:
    world = World()
    world.join(cpus=2 * PLACED_PER_PASS_MAX)
    effects = world.handle(ev.SubmitTasks(1, [spec()], [TaskEntry(0)] * (PLACED_PER_PASS_MAX + 10)))
    assert len(dispatches(effects)["w1"]) == PLACED_PER_PASS_MAX
    assert world.engine.next_deadline() == world.now
    assert len(dispatches(world.wake())["w1"]) == 10
    assert world.engine.next_deadline() != world.now


@pytest.mark.parametrize("workers", [3, 5000])
def test_many_changes_between_two_looks(workers: int) -> None:
    """An index that is far behind the log of changes is built anew."""
    world = World()
    world.submit(cpus=2)
    world.engine.handle([joined(f"w{i}") for i in range(workers)], world.now)
    for turn in range(2):
        ids = world.submit(min(workers, 900))
        world.engine.handle([world.finished(i) for i in ids if world.task(i).worker_id], world.now)
        assert world.states(ids[0]) == ["succeeded"], turn
    world.join("big", cpus=2)
    assert world.where(1) == ["big"]


def test_hint_of_another_task_of_the_kind() -> None:
    """A long task is not sent ahead because a short one of its kind came before it."""
    world = World(prefetch=PrefetchRule())
    world.join()
    world.submit(estimated_time=0.01, cpus=0.5)
    specs = [spec(estimated_time=0.01, cpus=0.75), spec(estimated_time=60)]
    world.handle(ev.SubmitTasks(1, specs, [TaskEntry(0), TaskEntry(1)]))
    assert [t.id for t in world.worker().task_queue] == [2]


def test_policy_assigns_where_it_does_not_fit() -> None:
    policy = Odd()
    world = World(policy)
    world.handle(joined("w1"), joined("w2", cpus=0.5))
    policy.other = world.worker("w2")
    world.engine.handle([ev.SubmitTasks(1, [spec()], [TaskEntry(0)])], world.now)
    assert world.states(1) == ["queued"]
    policy.other = None
    world.handle(joined("w3"))
    assert world.states(1) == ["assigned"]
