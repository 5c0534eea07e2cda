"""What each policy is for."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
from core.builders import World, joined

from schedd.core.model import Cause, Task, TaskId, TaskRequirements, WorkerId, WorkerInfo, WorkerResources
from schedd.core.policies import batch
from schedd.core.policies.base import Outcome
from schedd.core.policies.batch import BatchScheduler
from schedd.core.policies.fifo import FIFOScheduler
from schedd.core.policies.load_balancing import LoadBalancingScheduler
from schedd.core.policies.priority import PriorityScheduler
from schedd.core.policies.work_stealing import WorkStealingScheduler


def row(name: str, **values: Any) -> WorkerInfo:
    return WorkerInfo(WorkerId(name), **values)


def task(number: int = 1, kind: str = "", **wants: Any) -> Task:
    return Task(id=TaskId(number), kind=kind, requirements=TaskRequirements(**wants))


# --------------------------------------------------------------------------------------------------------------- fifo


def test_fifo_takes_the_first_idle_worker() -> None:
    workers = [row("w1", status="busy"), row("w2", task_count=9), row("w3")]
    assert FIFOScheduler().assign_task(task(), workers) == "w2"


# ----------------------------------------------------------------------------------------------------------- priority


def test_priority_takes_the_one_with_fewest_tasks() -> None:
    workers = [row("w1", num_gpus=8, task_count=3), row("w2", num_gpus=1, task_count=2), row("w3", status="busy")]
    assert PriorityScheduler().assign_task(task(min_gpus=1), workers) == "w2"


def test_priority_as_a_queue() -> None:
    """Higher first, ties in the order of adding; tasks are never compared."""
    scheduler = PriorityScheduler()
    tasks = [task(n) for n in range(5)]
    for one, priority in zip(tasks, (1, 5, 1, 5, -2), strict=True):
        scheduler.enqueue(one, priority)
    assert (len(scheduler), bool(scheduler)) == (5, True)
    assert [scheduler.dequeue() for _ in range(5)] == [tasks[1], tasks[3], tasks[0], tasks[2], tasks[4]]
    assert scheduler.dequeue() is None
    assert bool(scheduler)


def test_priority_of_the_task_itself() -> None:
    scheduler = PriorityScheduler()
    low, high = Task(id=TaskId(1), priority=1), Task(id=TaskId(2), priority=2)
    scheduler.enqueue(low)
    scheduler.enqueue(high)
    assert scheduler.dequeue() is high


def test_priority_that_is_no_number() -> None:
    scheduler = PriorityScheduler()
    with pytest.raises(ValueError, match="must be a number"):
        scheduler.enqueue(task(), float("nan"))
    assert len(scheduler) == 0


# ------------------------------------------------------------------------------------------------------ load balancing


def test_load_balancing_takes_the_least_loaded() -> None:
    workers = [row("w1", num_gpus=2, task_count=0), row("w2", num_gpus=2, task_count=3)]
    assert LoadBalancingScheduler().assign_task(task(), workers) == "w1"


def test_load_counts_per_gpu() -> None:
    workers = [row("small", num_gpus=1, task_count=1), row("big", num_gpus=8, task_count=4)]
    assert LoadBalancingScheduler().assign_task(task(), workers) == "big"


def test_load_counts_the_backlog() -> None:
    workers = [row("w1", num_gpus=2, task_queue=deque([task(8)])), row("w2", num_gpus=2, task_count=1)]
    assert LoadBalancingScheduler().assign_task(task(), workers) == "w2"


def test_load_balancing_without_backlogs() -> None:
    assert LoadBalancingScheduler(backlog_per_slot=0).assign_task(task(), [row("w1", status="busy")]) is None
    assert LoadBalancingScheduler().assign_task(task(), [row("w1", status="busy")]) == "w1"


def test_load_balancing_fills_by_size() -> None:
    world = World("load_balancing")
    world.handle(joined("small", cpus=2), joined("big", cpus=6))
    world.submit(8)
    assert (world.worker("small").task_count, world.worker("big").task_count) == (2, 6)


# ------------------------------------------------------------------------------------------------------- work stealing


def busy(name: str, numbers: range, **values: Any) -> WorkerInfo:
    return row(name, status="busy", task_queue=deque(task(n, min_gpus=n % 2) for n in numbers), **values)


def test_steal_from_the_longest_backlog() -> None:
    thief = row("idle", num_gpus=1)
    short, long = busy("short", range(3)), busy("long", range(4))
    stolen = WorkStealingScheduler(steal_threshold=2).steal_task(thief, [thief, short, long])
    assert stolen is not None
    assert stolen.id == 3  # from the tail
    assert [t.id for t in long.task_queue] == [0, 1, 2]
    assert len(short.task_queue) == 3


def test_steal_only_above_the_threshold() -> None:
    thief = row("idle", num_gpus=1)
    victim = busy("w", range(2))
    assert WorkStealingScheduler(steal_threshold=2).steal_task(thief, [thief, victim]) is None
    assert len(victim.task_queue) == 2


def test_steal_only_what_the_thief_could_run() -> None:
    thief = row("idle")
    victim = busy("w", range(4))
    stolen = WorkStealingScheduler(steal_threshold=0).steal_task(thief, [thief, victim])
    assert stolen is not None
    assert stolen.id == 2  # 3 wants a GPU
    nothing = busy("w", range(1, 2))
    assert WorkStealingScheduler(steal_threshold=0).steal_task(thief, [nothing]) is None


def test_steal_from_nobody() -> None:
    thief = busy("idle", range(9))
    assert WorkStealingScheduler(steal_threshold=0).steal_task(thief, [thief]) is None


def test_work_is_pushed_into_backlogs_evenly() -> None:
    world = World(WorkStealingScheduler(backlog_per_slot=4))
    world.handle(joined("w1", cpus=1), joined("w2", cpus=2))
    world.submit(30)
    assert [len(world.worker(name).task_queue) for name in ("w1", "w2")] == [4, 8]


# --------------------------------------------------------------------------------------------------------------- batch


def test_schedule_batch() -> None:
    tasks = [task(n, kind="ab"[n % 2], min_gpus=1) for n in range(6)]
    workers = [row("small", num_gpus=1), row("none"), row("big", num_gpus=4)]
    batches = BatchScheduler(batch_size=3).schedule_batch(tasks, workers)
    assert {name: [t.id for t in batch] for name, batch in batches.items()} == {"big": [0, 2, 4], "small": [1, 3, 5]}
    assert list(batches) == ["big", "small"]


def test_schedule_batch_of_another_size() -> None:
    tasks = [task(n, kind="a") for n in range(4)]
    workers = [row("w1", resources=WorkerResources(cpus=1)), row("w2", resources=WorkerResources(cpus=2))]
    batches = BatchScheduler().schedule_batch(tasks, workers, batch_size=1)
    assert {name: [t.id for t in batch] for name, batch in batches.items()} == {"w2": [0], "w1": [1]}


def test_schedule_batch_of_nothing() -> None:
    assert BatchScheduler().schedule_batch([], [row("w")]) == {}
    with pytest.raises(ValueError, match="at least one"):
        BatchScheduler().schedule_batch([task()], [row("w")], batch_size=0)


def test_batches_in_the_engine() -> None:
    """A worker gets tasks of one kind together; the biggest worker first."""
    world = World(BatchScheduler(batch_size=3))
    world.handle(joined("small", cpus=1), joined("big", cpus=2))
    for n in range(8):
        world.submit(kind="ab"[n % 2], hold=True)
    world.release(*range(1, 9))
    kinds = {
        worker.worker_id: [t.kind for t in (*worker.running.values(), *worker.task_queue)]
        for worker in world.engine.resources
    }
    assert kinds == {"big": ["a", "a", "a"], "small": ["b", "b", "b"]}


def test_batch_does_not_pull_up_lower_priorities() -> None:
    world = World(BatchScheduler(batch_size=4))
    for priority in (5, 5, 1, 3):
        world.submit(priority=priority, kind="a")
    world.join(cpus=2)
    assert world.states(1, 2, 3, 4) == ["assigned", "assigned", "queued", "assigned"]
    assert [t.id for t in world.worker().task_queue] == [4]


@pytest.mark.parametrize("wants", [{"min_gpus": 8}, {"cpus": 64}])
def test_batch_of_what_fills_a_worker_is_one(wants: dict[str, float]) -> None:
    """However many slots it has: none waits behind what takes longer than a batch should."""
    policy = BatchScheduler(batch_size=4, batch_s=60)
    policy.observe(Outcome(task(kind="long"), row("w"), 120.0, True), 0)
    world = World(policy)
    world.handle(*(joined(f"w{number}", cpus=64, num_gpus=8) for number in range(3)))
    world.submit(3, kind="long", **wants)
    assert [(worker.task_count, len(worker.task_queue)) for worker in world.engine.resources] == [(1, 0)] * 3


def test_batch_runs_side_by_side_on_one_device() -> None:
    world = World(BatchScheduler(batch_size=4))
    world.join(cpus=8, num_gpus=1, gpu_memory_gb=10)
    world.submit(4, min_gpus=0.25, min_memory=3)
    assert (world.worker().task_count, len(world.worker().task_queue)) == (3, 1)
    world.start(1)
    world.finish(1, cause=Cause.OK)
    assert world.worker().task_count == 3


def knowing(**means_s: float) -> BatchScheduler:
    """A policy of batches of up to eight, a minute long, that has seen kinds."""
    policy = BatchScheduler(batch_size=8, batch_s=60)
    for kind, mean_s in means_s.items():
        policy.observe(Outcome(task(kind=kind), row("w"), mean_s, True), 0)
    return policy


@pytest.mark.parametrize(
    ("mean_s", "slots", "count"),
    [(0.001, 1, 8), (5, 1, 8), (7.5, 1, 8), (8, 1, 8), (20, 1, 3), (25, 1, 3), (60, 1, 1), (3600, 1, 1), (60, 4, 4)],
)
def test_batch_is_as_long_as_wanted(mean_s: float, slots: int, count: int) -> None:
    policy = knowing(k=mean_s)
    worker = row("w", resources=WorkerResources(cpus=slots))
    assert policy.size_of_batch(task(kind="k"), worker) == count
    assert policy.size_of_batch(task(kind="new", estimated_time=mean_s), worker) == count
    assert policy.size_of_batch(task(kind="new"), worker) == 8
    always = BatchScheduler(batch_size=8, batch_s=0)
    always.observe(Outcome(task(kind="k"), worker, mean_s, True), 0)
    assert always.size_of_batch(task(kind="k"), worker) == 8


def test_long_tasks_wait_in_the_queue_and_not_at_a_worker() -> None:
    world = World(knowing(long=3600, short=1))
    world.join("w1")
    world.submit(4, kind="long")
    assert world.states(1, 2, 3, 4) == ["assigned", "queued", "queued", "queued"]
    world.join("w2")
    assert world.where(2) == ["w2"]
    world.submit(5, kind="short")  # these would be behind a long one: who takes them cannot be known better
    assert [len(w.task_queue) for w in world.engine.resources] == [5, 0]
    assert world.states(3, 4) == ["queued", "queued"]


def test_worker_that_had_the_kind_last_is_preferred() -> None:
    world = World(BatchScheduler(batch_size=1))
    for name in ("w1", "w2", "w3"):
        world.join(name)
    ids = [world.submit(kind=kind)[0] for kind in "abc"]
    assert world.where(*ids) == ["w1", "w2", "w3"]
    world.finish(*ids)
    assert world.where(*[world.submit(kind=kind)[0] for kind in "cab"]) == ["w3", "w1", "w2"]
    world.join("big", cpus=2)
    assert world.where(*world.submit(kind="a")) == ["big"]  # among equals only


def test_batch_goes_on_from_what_it_has_learned() -> None:
    before, after = knowing(k=20), BatchScheduler(batch_size=8, batch_s=60)
    after.recall(before.learned())
    assert after.size_of_batch(task(kind="k"), row("w")) == 3


def test_batch_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "LAST_KINDS_MAX", 2)
    world = World(BatchScheduler(batch_size=1))
    for n in range(4):
        world.join(f"w{n}")
        world.submit(kind=str(n))
    policy = world.engine.policy
    assert isinstance(policy, BatchScheduler)
    assert list(policy._last_kinds.values()) == ["2", "3"]
