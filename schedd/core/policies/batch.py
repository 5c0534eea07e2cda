"""batch: tasks of one kind travel and run together, the biggest workers first."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Annotated

from msgspec import Meta, Struct

from schedd.core.model import Instant, Task, WorkerId, WorkerInfo
from schedd.core.needs import compile_needs
from schedd.core.policies.base import Draft, Outcome, TaskScheduler, fit
from schedd.core.stats import Learned, RuntimeTable

#: What a worker that has just run the kind is better by: less than a CPU.
WARM = 0.5
#: Workers whose last kind is remembered; the first noted beyond this is forgotten.
LAST_KINDS_MAX = 100_000


class BatchParams(Struct, frozen=True, forbid_unknown_fields=True):
    """Table [policy.batch].

    batch_size: tasks of one kind given to a worker together, at most. batch_s: fewer where these take longer to work
    through; 0: always as many.
    """

    batch_size: Annotated[int, Meta(ge=1, le=100_000)] = 4
    batch_s: Annotated[float, Meta(ge=0, le=1e7)] = 60.0


def size(worker: WorkerInfo) -> tuple[float, float]:
    """How big a worker is: GPUs first, then CPUs."""
    return (worker.num_gpus, worker.resources.cpus if worker.resources is not None else 0.0)


class BatchScheduler(TaskScheduler):
    """Gives a worker up to `batch_size` tasks of one kind at a time; what does not start at once waits there.

    Of a kind whose runtime is known, by observation or by hint, a batch has no more tasks than cover `batch_s`: tasks
    as long as that are given out one by one, each where and when it can start, so that none waits behind a long one.
    To choose when tasks of a kind share what is dear to load (a data set, a compiled model, a warm process): of equal
    workers the one that got the same kind last is taken. Tasks that ask for a share of a GPU run side by side on one
    device while its memory holds them.
    """

    name = "batch"
    Params = BatchParams
    summary = "batches of one kind for a worker, as long as a given time; biggest workers first"
    by_kind = True

    def __init__(self, batch_size: int = 4, batch_s: float = 60.0) -> None:
        self.batch_size = batch_size
        self.batch_s = batch_s
        self._runtimes = RuntimeTable()
        #: The kind that a worker got last, by its seq, which a process that was started anew does not keep.
        self._last_kinds: dict[int, str] = {}

    def score(self, task: Task, worker: WorkerInfo) -> float:
        gpus, cpus = size(worker)
        return -(gpus * 1e6 + cpus) - WARM * (self._last_kinds.get(worker.seq) == task.kind)

    def size_of_batch(self, task: Task, worker: WorkerInfo) -> int:
        """How many tasks like this make a batch for a worker: enough to keep its slots busy for `batch_s`."""
        if not self.batch_s:
            return self.batch_size
        mean_s = self._runtimes.mean_s(task.kind, task.requirements.estimated_time)
        if mean_s is None or mean_s * self.batch_size <= self.batch_s:
            return self.batch_size
        return min(self.batch_size, max(1, math.ceil(self.batch_s * _at_a_time(task, worker) / mean_s)))

    def backlog_limit(self, worker: WorkerInfo) -> int:
        return self.batch_size - 1 if not worker.task_queue else 0

    def backlog_for(self, task: Task, worker: WorkerInfo) -> int:
        return 0 if worker.task_queue else self.size_of_batch(task, worker) - 1

    def plan(self, draft: Draft, now: Instant) -> None:
        while (task := draft.head()) is not None:
            worker = draft.candidate(task)
            if worker is None:
                draft.block(task)
                continue
            draft.assign(task, worker)
            self._note_kind(worker, task.kind)
            self._fill(draft, task, worker)

    def _fill(self, draft: Draft, first: Task, worker: WorkerInfo) -> None:
        """Add tasks of the same class to the one that opened the batch, but none of lower priority."""
        request, following = first.request, self.size_of_batch(first, worker) - 1
        for _ in range(following):
            task = draft.head_of(request) if request is not None else None
            if task is None or task.priority < first.priority:
                return
            if not draft.offer(task, worker, following):
                return

    def _note_kind(self, worker: WorkerInfo, kind: str) -> None:
        kinds = self._last_kinds
        kinds[worker.seq] = kind
        if len(kinds) > LAST_KINDS_MAX:
            del kinds[next(iter(kinds))]

    def observe(self, outcome: Outcome, now: Instant) -> None:
        self._runtimes.observe(outcome.task.kind, outcome.runtime_s, outcome.success)

    def learned(self) -> list[Learned]:
        return self._runtimes.learned()

    def recall(self, learned: Iterable[Learned]) -> None:
        self._runtimes.recall(learned)

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


def _at_a_time(task: Task, worker: WorkerInfo) -> int:
    """How many such tasks a worker runs at a time; of a plain row its slots."""
    if worker.ledger is None or task.request is None:
        return worker.slots
    return max(map(worker.ledger.holds, task.request.needs))
