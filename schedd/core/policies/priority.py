"""priority: the most important task first, to the least occupied idle worker that fits."""

from __future__ import annotations

from heapq import heappop, heappush
from typing import Annotated

from msgspec import Meta, Struct

from schedd.core.model import Task, WorkerInfo
from schedd.core.policies.base import TaskScheduler


class PriorityParams(Struct, frozen=True, forbid_unknown_fields=True):
    """Table [policy.priority]. ageing_per_hour: priority that a task gains for each hour of waiting."""

    ageing_per_hour: Annotated[float, Meta(ge=0, le=1e9)] = 0.0


class PriorityScheduler(TaskScheduler):
    """Rank by aged priority: ageing_rate * submit time - priority, constant while a task waits.

    Priorities may be changed while tasks wait, which is what multi-fidelity searches live on. Also usable alone, as a
    queue of anything: `enqueue`, `dequeue`.
    """

    name = "priority"
    Params = PriorityParams
    summary = "highest (aged) priority first; of the idle workers that fit, the one with the fewest tasks"

    def __init__(self, ageing_per_hour: float = 0.0) -> None:
        self.ageing_rate = ageing_per_hour / 3600
        self._heap: list[tuple[float, int, Task]] = []
        self._number = 0

    def score(self, task: Task, worker: WorkerInfo) -> float:
        return float(worker.task_count)

    def enqueue(self, task: Task, priority: float | None = None) -> None:
        """Add a task under a priority (None: its own), higher first, ties in the order of adding. O(log n)."""
        value = task.priority if priority is None else priority
        if value != value:
            raise ValueError("a priority must be a number")
        self._number += 1
        heappush(self._heap, (-value, self._number, task))

    def dequeue(self) -> Task | None:
        """Take the most important task; None where there is none. Tasks are never compared. O(log n)."""
        return heappop(self._heap)[2] if self._heap else None

    def __len__(self) -> int:
        return len(self._heap)

    def __bool__(self) -> bool:
        return True
