"""batch: tasks of one kind travel and run together, the biggest workers first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from msgspec import Meta, Struct

from schedd.core.capacity import compile_needs
from schedd.core.model import Instant, Task, WorkerId, WorkerInfo
from schedd.core.policies.base import Draft, TaskScheduler, fit


class BatchParams(Struct, frozen=True, forbid_unknown_fields=True):
    """Table [policy.batch]. batch_size: tasks of one kind given to a worker together."""

    batch_size: Annotated[int, Meta(ge=1, le=100_000)] = 4


def size(worker: WorkerInfo) -> tuple[float, float]:
    """How big a worker is: GPUs first, then CPUs."""
    return (worker.num_gpus, worker.resources.cpus if worker.resources is not None else 0.0)


class BatchScheduler(TaskScheduler):
    """Gives a worker up to `batch_size` tasks of one kind at a time; what does not start at once waits there.

    To choose when tasks of a kind share what is dear to load (a data set, a compiled model, a warm process). Tasks
    that ask for a share of a GPU run side by side on one device while its memory holds them.
    """

    name = "batch"
    Params = BatchParams
    summary = "batches of one kind for a worker, biggest workers first"
    by_kind = True

    def __init__(self, batch_size: int = 4) -> None:
        self.batch_size = batch_size

    def score(self, task: Task, worker: WorkerInfo) -> float:
        gpus, cpus = size(worker)
        return -(gpus * 1e6 + cpus)

    def backlog_limit(self, worker: WorkerInfo) -> int:
        return self.batch_size - 1 if not worker.task_queue else 0

    def plan(self, draft: Draft, now: Instant) -> None:
        while (task := draft.head()) is not None:
            worker = draft.candidate(task)
            if worker is None:
                draft.block(task)
                continue
            draft.assign(task, worker)
            self._fill(draft, task, worker)

    def _fill(self, draft: Draft, first: Task, worker: WorkerInfo) -> None:
        """Add tasks of the same class to the one that opened the batch, but none of lower priority."""
        request = first.request
        for _ in range(self.batch_size - 1):
            following = draft.head_of(request) if request is not None else None
            if following is None or following.priority < first.priority:
                return
            if not draft.offer(following, worker, self.batch_size - 1):
                return

    def schedule_batch(
        self, tasks: Sequence[Task], workers: Sequence[WorkerInfo], batch_size: int | None = None
    ) -> dict[WorkerId, list[Task]]:
        """Split tasks into batches of one kind and give each worker at most one, biggest workers first.

        Returns batches by worker, tasks of a batch in their given order; what found no worker is not in it. Raises
        ValueError for a batch size below 1.
        """
        most = self.batch_size if batch_size is None else batch_size
        if most < 1:
            raise ValueError(f"a batch has at least one task, not {most!r}")
        waiting: dict[str, list[Task]] = {}
        for task in tasks:
            waiting.setdefault(task.kind, []).append(task)
        batches: dict[WorkerId, list[Task]] = {}
        for worker in sorted(workers, key=size, reverse=True):
            for group in waiting.values():
                fitting = [t for t in group if fit(compile_needs(t.requirements), t.requirements, worker, most)][:most]
                if fitting:
                    batches[worker.worker_id] = fitting
                    chosen = {id(t) for t in fitting}
                    group[:] = [t for t in group if id(t) not in chosen]
                    break
        return batches
