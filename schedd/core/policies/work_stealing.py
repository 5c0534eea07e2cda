"""work_stealing: push work into backlogs at once, and let idle workers steal from the busiest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from msgspec import Meta, Struct

from schedd.core.capacity import compile_needs
from schedd.core.model import Instant, Task, WorkerInfo
from schedd.core.policies.base import ClusterView, Steal, TaskScheduler, fit, movable, steal_half


class WorkStealingParams(Struct, frozen=True, forbid_unknown_fields=True):
    """Table [policy.work_stealing].

    steal_threshold: a backlog is stolen from only above this length. backlog_per_slot: attempts that may wait at a
    worker for each of its slots.
    """

    steal_threshold: Annotated[int, Meta(ge=0, le=1_000_000)] = 2
    backlog_per_slot: Annotated[int, Meta(ge=1, le=100_000)] = 32


class WorkStealingScheduler(TaskScheduler):
    """Binds early and corrects later: no worker waits for the daemon between two tasks.

    To choose for many short tasks of uneven length. Half of a victim's surplus moves at a time, from the tail of its
    backlog (Blumofe and Leiserson, "Scheduling Multithreaded Computations by Work Stealing", 1999, steal from the
    end that the victim reaches last).
    """

    name = "work_stealing"
    Params = WorkStealingParams
    summary = "pushes work into backlogs; idle workers steal from the busiest on a timer"
    fills_evenly = False

    def __init__(self, steal_threshold: int = 2, backlog_per_slot: int = 32) -> None:
        self.steal_threshold = steal_threshold
        self.backlog_per_slot = backlog_per_slot

    def score(self, task: Task, worker: WorkerInfo) -> float:
        return worker.load

    def backlog_limit(self, worker: WorkerInfo) -> int:
        return self.backlog_per_slot * worker.slots

    def rebalance(self, view: ClusterView, now: Instant) -> list[Steal]:
        return steal_half(view, self.steal_threshold)

    def steal_task(self, idle_worker: WorkerInfo, workers: Sequence[WorkerInfo]) -> Task | None:
        """Take one task for `idle_worker` from the longest backlog above the threshold, or return None.

        For plain rows, without a daemon: the task leaves the victim's `task_queue`, from its tail. Tasks that the
        idle worker could not run are passed over.
        """
        victims = [w for w in workers if w is not idle_worker and movable(w) > self.steal_threshold]
        for victim in sorted(victims, key=lambda w: (-movable(w), w.seq)):
            for task in reversed(victim.task_queue):
                if fit(compile_needs(task.requirements), task.requirements, idle_worker, 0) is not None:
                    victim.task_queue.remove(task)
                    return task
        return None
