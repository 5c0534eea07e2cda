"""Choices of the worker, from the literature, which only the simulator has; tasks go in the order of submission."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from schedd.core.model import Instant, Task, WorkerInfo
from schedd.core.policies.base import Draft, TaskScheduler
from schedd.core.policies.fifo import FIFOScheduler
from schedd.simulate.cluster import ClusterRow

#: So often a worker is drawn before those that fit are counted.
DRAWN_MAX = 32


class BestFitScheduler(TaskScheduler):
    """The worker on which the least CPUs and GPUs are left, both as shares of the most that one has; ties at random.

    As in the experiments of FGD (Weng et al., ATC 2023), to the whole percent.
    """

    name = "best_fit"
    summary = "the worker on which the least CPUs and GPUs are left"

    def __init__(self, cluster: Sequence[ClusterRow], rng: random.Random) -> None:
        self._cpus = max(row.resources().cpus for row in cluster) * 1000
        self._gpus = max(1, max(row.num_gpus for row in cluster)) * 1000
        self._rng = rng

    def level(self, task: Task) -> float:
        return 0.0

    def score(self, task: Task, worker: WorkerInfo) -> float:
        ledger = worker.ledger
        if ledger is None:
            return 0.0
        needs = task.requirements
        cpus = ledger.free_cpus - needs.cpus * 1000
        gpus = sum(device.free_share for device in ledger.devices) - needs.min_gpus * 1000
        return self._rng.random() - int(100 * (1 - 0.5 * cpus / self._cpus - 0.5 * gpus / self._gpus))


class RandomScheduler(TaskScheduler):
    """Any worker that fits, and there any devices."""

    name = "random"
    summary = "any worker that fits, any devices"

    def __init__(self, cluster: Sequence[ClusterRow], rng: random.Random) -> None:
        self._rng = rng

    def level(self, task: Task) -> float:
        return 0.0

    def score(self, task: Task, worker: WorkerInfo) -> float:
        return self._rng.random()

    def plan(self, draft: Draft, now: Instant) -> None:
        while (task := draft.head()) is not None:
            worker = self._draw(draft, task)
            if worker is None or not draft.start(task, worker):
                draft.block(task)

    def _draw(self, draft: Draft, task: Task) -> WorkerInfo | None:
        workers = list(draft.workers())
        for _ in range(DRAWN_MAX):
            worker = self._rng.choice(workers)
            if draft.has_room(task, worker):
                return worker
        fitting = [worker for worker in workers if draft.has_room(task, worker)]
        return self._rng.choice(fitting) if fitting else None


def _packing(cluster: Sequence[ClusterRow], rng: random.Random) -> TaskScheduler:
    return FIFOScheduler(packing=True)


#: `packing` is the daemon's own, under `[policy.fifo] packing`.
PLACEMENTS: dict[str, Callable[[Sequence[ClusterRow], random.Random], TaskScheduler]] = {
    "best_fit": BestFitScheduler,
    "random": RandomScheduler,
    "packing": _packing,
}
