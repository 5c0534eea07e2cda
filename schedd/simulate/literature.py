"""Orders of the queue from the literature, which only the simulator has: what other papers measure themselves against.

All are in one frame, that of the experiments of RLScheduler (Zhang et al., "RLScheduler: An Automated HPC Batch Job
Scheduler Using Reinforcement Learning", SC 2020). The task that is first when the scheduler looks for work is
*committed*: it starts before all others, even if a better one comes while it waits. With backfilling, its start is
forecast once, by the requested ends of what runs; while it waits, tasks start in the order of submission if they fit
now and their requested time ends before the forecast (EASY, Lifka, "The ANL/IBM SP scheduling system", 1995).

The requested time of a task is its `estimated_time`, or its runtime where the trace has none. Its size is in devices,
or in CPUs where it needs no device.
"""

from __future__ import annotations

import math
from abc import abstractmethod

from schedd.core.capacity import Ledger
from schedd.core.model import SECOND, Instant, Queued, Running, Task, WorkerInfo
from schedd.core.policies.base import Draft, TaskScheduler
from schedd.core.resources import need_of
from schedd.core.timers import NEVER
from schedd.simulate.trace import Trace, TraceTask

#: In the place of a time that is 0, and what the published runs add to what may be.
TINY = 1e-15
#: Later than any instant of a run.
FAR_NS: Instant = NEVER


class LiteratureScheduler(TaskScheduler):
    """The frame: a committed head, with or without backfilling; subclasses say in which order tasks become heads.

    Made for one run of a trace, of which the tasks have the ids 1, 2 and so on.
    """

    def __init__(self, trace: Trace, backfill: bool = False) -> None:
        self._rows = trace.tasks
        self._backfill = backfill
        #: Starts before any other; and the instant at which it was expected to when it was found to have to wait.
        self._committed: Task | None = None
        self._forecast_ns: Instant | None = None

    @abstractmethod
    def order(self, submit_s: float, requested_s: float, size: float) -> float:
        """Where a task stands, lowest first. Ties go by submission. submit_s: by the clock of the trace."""

    def level(self, task: Task) -> float:
        row = self._rows[task.id - 1]
        return -self.order(row.submit_s, requested_s(row), task.requirements.min_gpus or task.requirements.cpus)

    def score(self, task: Task, worker: WorkerInfo) -> float:
        return 0.0

    def plan(self, draft: Draft, now: Instant) -> None:
        while (task := self._commit(draft)) is not None:
            worker = _room(draft, task)
            if worker is None:
                if self._backfill:
                    self._fill(draft, task, now)
                return
            if not draft.start(task, worker):
                return
            self._committed = None

    def _commit(self, draft: Draft) -> Task | None:
        task = self._committed
        if task is None or not isinstance(task.state, Queued):
            task = self._committed = draft.first()
            self._forecast_ns = None
        return task

    def _fill(self, draft: Draft, head: Task, now: Instant) -> None:
        """Start what ends before the head is expected to start. O(queue * workers)."""
        if self._forecast_ns is None:
            self._forecast_ns = self._forecast(draft, head, now)
        for task in draft.waiting():
            if now + self._requested_ns(task) < self._forecast_ns and (worker := _room(draft, task)) is not None:
                draft.start(task, worker)

    def _forecast(self, draft: Draft, head: Task, now: Instant) -> Instant:
        """When the first worker has room, the requested ends of what runs supposed to be the true ones."""
        return min((self._earliest_start(head, worker, now) for worker in draft.workers()), default=FAR_NS)

    def _earliest_start(self, head: Task, worker: WorkerInfo, now: Instant) -> Instant:
        if worker.resources is None or head.request is None:
            return FAR_NS
        ledger = Ledger(worker.resources)
        needs = [need for need in head.request.needs if not ledger.blocker(need)]
        running = list(worker.running.values())
        for task in running:
            ledger.reserve_exactly(need_of(task), task.devices)
        running.sort(key=lambda task: self._requested_end(task, now))
        for task in running:
            ledger.release(need_of(task), task.devices)
            if any(map(ledger.can_fit, needs)):
                return self._requested_end(task, now)
        return FAR_NS

    def _requested_end(self, task: Task, now: Instant) -> Instant:
        started_ns = task.state.started_at_ns if isinstance(task.state, Running) else now
        return started_ns + self._requested_ns(task)

    def _requested_ns(self, task: Task) -> int:
        return int(requested_s(self._rows[task.id - 1]) * SECOND)


class FCFSScheduler(LiteratureScheduler):
    """First come, first served."""

    name = "fcfs"
    summary = "the order of submission"

    def order(self, submit_s: float, requested_s: float, size: float) -> float:
        return 0.0


class SJFScheduler(LiteratureScheduler):
    """Shortest job first, by requested times."""

    name = "sjf"
    summary = "the shortest requested time"

    def order(self, submit_s: float, requested_s: float, size: float) -> float:
        return requested_s


class F1Scheduler(LiteratureScheduler):
    """The best of four orders that were learned from simulated schedules.

    Carastan-Santos and de Camargo, "Obtaining Dynamic Scheduling Policies with Simulation and Machine Learning", SC
    2017. Depends on where the clock of the trace begins.
    """

    name = "f1"
    summary = "log10(requested) * size + 870 * log10(submit)"

    def order(self, submit_s: float, requested_s: float, size: float) -> float:
        return math.log10(max(requested_s, TINY)) * size + 870 * math.log10(max(submit_s, TINY))


class WFP3Scheduler(LiteratureScheduler):
    """Favours what is large and has waited for long, against its length.

    Tang et al., "Fault-Aware, Utility-Based Job Scheduling on Blue Gene/P Systems", CLUSTER 2009: (wait / requested)^3
    * size, the largest first. Here as in the published runs of RLScheduler, which take -1 - submit for the wait: the
    order is constant in time, and the sign reverses it. Kept as it is, for comparison with these.
    """

    name = "wfp3"
    summary = "(wait / requested)^3 * size, as published runs compute it"

    def order(self, submit_s: float, requested_s: float, size: float) -> float:
        return -(((-1 - submit_s) / max(requested_s, TINY)) ** 3) * size


class UNIScheduler(LiteratureScheduler):
    """UNICEP: as WFP3, and in favour of what is small.

    Tang et al., as WFP3: wait / (log2(size) * requested), the largest first; -1 - submit for the wait, as there.
    """

    name = "uni"
    summary = "wait / (log2(size) * requested), as published runs compute it"

    def order(self, submit_s: float, requested_s: float, size: float) -> float:
        return -(-1 - submit_s + TINY) / (math.log2(size + TINY) * max(requested_s, TINY))


LITERATURE: dict[str, type[LiteratureScheduler]] = {
    policy.name: policy for policy in (FCFSScheduler, SJFScheduler, F1Scheduler, WFP3Scheduler, UNIScheduler)
}


def requested_s(row: TraceTask) -> float:
    """The time that a task was said to take, or else its runtime, the shortest where devices differ."""
    estimated = row.requirements.estimated_time
    return estimated if estimated is not None else min(row.runtimes.values(), default=row.runtime_s)


def _room(draft: Draft, task: Task) -> WorkerInfo | None:
    """The first worker on which a task could start now."""
    return next((worker for worker in draft.workers() if draft.has_room(task, worker)), None)
