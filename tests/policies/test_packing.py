"""Packing: where tasks go so that others still fit, in one engine with its real tables."""

from __future__ import annotations

import pytest
from core.builders import World

from schedd.core.capacity import Ledger
from schedd.core.model import TaskRequirements, WorkerInfo, WorkerResources
from schedd.core.needs import Need
from schedd.core.policies.fifo import FIFOScheduler
from schedd.core.policies.packing import Packing
from schedd.core.policies.priority import PriorityScheduler

HALF = TaskRequirements(min_gpus=0.5, cpus=1)
ONE = TaskRequirements(min_gpus=1, cpus=1)
EIGHT = TaskRequirements(min_gpus=8, cpus=8)


@pytest.fixture(params=[FIFOScheduler, PriorityScheduler])
def world(request: pytest.FixtureRequest) -> World:
    return World(request.param(packing=True))


def test_small_tasks_leave_whole_workers_to_big_ones(world: World) -> None:
    for name in ("a", "b"):
        world.join(name, num_gpus=8, cpus=32)
    small = [world.submit(1, requirements=ONE)[0] for _ in range(8)]
    assert len(set(world.where(*small))) == 1
    [big] = world.submit(1, requirements=EIGHT)
    assert {*world.where(big), *world.where(*small)} == {"a", "b"}


def test_without_packing_they_spread() -> None:
    world = World(PriorityScheduler())
    for name in ("a", "b"):
        world.join(name, num_gpus=8, cpus=32)
    small = [world.submit(1, requirements=ONE)[0] for _ in range(8)]
    assert set(world.where(*small)) == {"a", "b"}


def test_shares_go_together(world: World) -> None:
    for name in ("a", "b", "c"):
        world.join(name, num_gpus=1, cpus=8)
    tasks = [world.submit(1, requirements=HALF)[0] for _ in range(4)]
    assert len(set(world.where(*tasks))) == 2
    world.engine.check()


def test_cpus_are_kept_for_free_devices(world: World) -> None:
    world.join("full", num_gpus=1, cpus=8)
    world.join("free", num_gpus=1, cpus=8)
    [first] = world.submit(1, requirements=TaskRequirements(min_gpus=1, cpus=1))
    # Seven CPUs without a device: beside the one that is taken, where no other task with a device could use them.
    [second] = world.submit(1, requirements=TaskRequirements(cpus=7))
    assert world.where(first) == world.where(second)


def test_workers_are_scored_anew_when_other_sorts_come(world: World) -> None:
    for name, ram in (("large", 512), ("larger", 512), ("mean", 64)):
        world.join(name, num_gpus=8, cpus=32, ram_gb=ram)
    world.join("one", num_gpus=1, cpus=4, ram_gb=64)
    [first] = world.submit(1, requirements=ONE)  # sees no difference between the three
    [big] = world.submit(1, requirements=TaskRequirements(min_gpus=8, cpus=8, ram=256))
    [second] = world.submit(1, requirements=ONE)
    assert world.where(first, big, second) == ["one", "large", "mean"]


def test_task_is_counted_once_however_often_it_is_looked_at() -> None:
    packing, world = Packing(), World(PriorityScheduler())
    first, second = world.submit(2, requirements=ONE)
    assert packing._note(world.task(first))
    assert not packing._note(world.task(first))
    assert packing._count == 1
    packing._note(world.task(second))
    assert packing._count == 2


def test_old_sorts_fade(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("schedd.core.policies.packing.SEEN_MAX", 8)
    packing, world = Packing(), World(PriorityScheduler())
    packing._note(world.task(world.submit(1, requirements=HALF)[0]))
    for task_id in world.submit(60, requirements=ONE):
        packing._note(world.task(task_id))
    assert len(packing._seen) == len(packing._weights) == 1
    assert packing._count < 16


def test_score_is_what_the_others_lose() -> None:
    """Two sorts, equally frequent: a half and a whole device. Expected values by hand."""
    packing, world = Packing(), World(PriorityScheduler())
    [half] = world.submit(1, requirements=HALF)
    [whole] = world.submit(1, requirements=ONE)
    for task_id in (half, whole):
        packing._note(world.task(task_id))
    ledger = Ledger(WorkerResources(num_gpus=2, cpus=8))
    worker = WorkerInfo("w", ledger=ledger, num_gpus=2, resources=WorkerResources(num_gpus=2, cpus=8))  # type: ignore[arg-type]
    empty = packing.score(world.task(half), worker)
    # A half is left, which the other sort cannot use now (500 by half the tasks) nor later (a tenth of it).
    assert empty == pytest.approx(0.5 * 500 + 0.1 * 0.5 * 500 + 1.5 + 0.007)
    ledger.reserve(Need(cpus=0, ram_mb=0, gpus=1, share=500, gpu_mb=0))
    assert packing.score(world.task(half), worker) == pytest.approx(-(0.5 * 500 + 0.1 * 0.5 * 500) + 1 + 0.007)


def test_score_sees_cpus_run_out_before_they_have() -> None:
    packing, world = Packing(), World(PriorityScheduler())
    [four] = world.submit(1, requirements=TaskRequirements(min_gpus=1, cpus=4))
    [two] = world.submit(1, requirements=TaskRequirements(cpus=2))
    packing._note(world.task(four))
    resources = WorkerResources(num_gpus=2, cpus=8)
    worker = WorkerInfo("w", ledger=Ledger(resources), num_gpus=2, resources=resources)  # type: ignore[arg-type]
    # One of two devices would be left without its four CPUs.
    assert packing.score(world.task(two), worker) == pytest.approx(0.1 * 1000 + 2 + 0.006)


def test_tasks_without_devices_on_workers_without_any(world: World) -> None:
    world.join("half", cpus=4)
    world.join("whole", num_gpus=1, cpus=8)
    tasks = world.submit(4, requirements=TaskRequirements(cpus=2))
    # Where the fewest CPUs stay free, while no device is.
    assert world.where(*tasks[:2]) == ["half", "half"]
    assert world.where(*tasks[2:]) == ["whole", "whole"]


def test_plain_rows_go_by_size() -> None:
    rows = [WorkerInfo("big", num_gpus=8), WorkerInfo("small", num_gpus=1)]  # type: ignore[arg-type]
    world = World(FIFOScheduler())
    [task] = world.submit(1, requirements=ONE)
    assert FIFOScheduler(packing=True).assign_task(world.task(task), rows) == "small"
