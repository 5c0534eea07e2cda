"""What a daemon has done, as a trace and a cluster: its journal, run again under other policies.

- A task arrives when it was submitted; one that was held, when it was released; one that was to start later, then. No
  earlier than what it comes after.
- It takes as long as its last attempt did, on the device model where that ran; elsewhere as `Speeds` has learned.
- Attempts of it that ended by their own doing before (errors, timeouts, lack of memory) fail again, as errors, after
  the same share of its runtime, wherever they run. Those that were lost, rejected or stopped to make room, or failed on
  a worker in quarantine, were the doing of workers and policy and are not repeated.
- Its priority is the last that it had, its requirements are those that it first started with.
- A worker joins and leaves when it did; one that was there when the last of these tasks ended stays.

Left out, and counted: what has not ended, what was cancelled or lost before it had run, and what was submitted before
the history begins. Pure: pages come in, a trace goes out.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from msgspec import Struct

from schedd.core import effects as fx
from schedd.core.model import (
    NO_REQUIREMENTS,
    SECOND,
    AttemptRecord,
    Cause,
    Instant,
    TaskEntry,
    TaskId,
    TaskRequirements,
    TaskSpec,
    WorkerId,
    WorkerResources,
)
from schedd.errors import TraceError
from schedd.journal.records import AnyFact, FinishedTask
from schedd.simulate.cluster import ClusterRow
from schedd.simulate.record import Run
from schedd.simulate.speeds import Speeds
from schedd.simulate.trace import Trace, TraceTask

#: How an attempt ends by its own doing, or by its user's.
OWN_FAILURES = frozenset({Cause.ERROR, Cause.TIMEOUT, Cause.OOM_HOST, Cause.OOM_GPU})
COUNTS_AS_RUN = OWN_FAILURES | {Cause.OK, Cause.CANCELLED}
#: What a worker is said to be of that is not known any more.
UNKNOWN = ""


class Page(Protocol):
    """What one transaction of a journal wrote."""

    @property
    def at_ns(self) -> Instant: ...
    @property
    def facts(self) -> Sequence[AnyFact]: ...
    @property
    def finished(self) -> Sequence[FinishedTask]: ...


class RecordedWorker(ClusterRow, frozen=True, kw_only=True):
    """A worker as it declared itself."""

    declared: WorkerResources

    def __hash__(self) -> int:
        return hash((self.name, self.joins_s))  # labels and amounts have no hash

    def resources(self) -> WorkerResources:
        return self.declared


class _Open(Struct):
    """A task that has not ended yet."""

    spec: TaskSpec
    entry: TaskEntry
    ids: Sequence[TaskId]
    ready_ns: Instant
    requirements: TaskRequirements
    started: bool = False


class _Ended(Struct):
    """A task of the trace; `failed`: attempts before the last."""

    id: TaskId
    open: _Open
    kind: str
    priority: float
    succeeded: bool
    last: AttemptRecord
    failed: list[AttemptRecord]


class _Span(Struct):
    """A worker from when it came to when it went (None: it has not)."""

    entered: fx.WorkerEntered
    gone_ns: Instant | None = None


class LeftOut(Struct):
    """Tasks that are not in the trace, by the reason."""

    unfinished: int = 0
    never_ran: int = 0
    before_history: int = 0


class History(Struct):
    """A replay: what to run on what, what really became of it, and what is not in it.

    recorded: as a run on the recorded workers, whatever runs it again; None: these are not known. new_models: device
    models on which nothing has run.
    """

    trace: Trace
    workers: list[ClusterRow]
    recorded: Run | None
    left_out: LeftOut
    new_models: list[str]


class Recorder:
    """Takes in pages, the oldest first; `history` makes of them what can be run again."""

    def __init__(self, since_ns: Instant = 0, until_ns: Instant | None = None) -> None:
        """Tasks are meant that were submitted from `since_ns` on and before `until_ns`."""
        self._since_ns = since_ns
        self._until_ns = until_ns if until_ns is not None else 1 << 62
        self._open: dict[TaskId, _Open] = {}
        self._ended: list[_Ended] = []
        #: In the order of their coming, by name.
        self._spans: dict[WorkerId, list[_Span]] = {}
        #: Of all attempts that succeeded, whenever: group, worker, end, seconds, or parts of what was estimated.
        self._runtimes: list[tuple[str, WorkerId, Instant, float]] = []
        #: When tasks have ended that are not in the trace, for those that come after them.
        self._other_ends: dict[TaskId, Instant] = {}
        self._left_out = LeftOut()
        self._steals = 0
        #: Attempts that started, and the time of those that did not count.
        self._attempts = 0
        self._wasted_s = 0.0

    def take(self, page: Page) -> None:
        """Take in one page."""
        for fact in page.facts:
            self._take_fact(fact, page.at_ns)
        for record in page.finished:
            self._take_finished(record)

    def _take_fact(self, fact: AnyFact, at_ns: Instant) -> None:
        match fact:
            case fx.TasksAdmitted():
                self._admit(fact)
            case fx.TaskHeld() | fx.TaskReleased():
                row = self._open.get(fact.task_id)
                if row is not None and not row.started:
                    row.ready_ns = max(row.ready_ns, at_ns)  # of a hold: until its release says when it ended
            case fx.TaskChanged():
                row = self._open.get(fact.task_id)
                if row is not None and not row.started:
                    row.requirements = fact.requirements
            case fx.AttemptDispatched():
                row = self._open.get(fact.task_id)
                if row is not None:
                    row.started = True
            case fx.AttemptStolen():
                self._steals += fact.task_id in self._open
            case fx.WorkerEntered():
                self._enter(fact)
            case fx.WorkerGone():
                spans = self._spans.get(fact.worker_id)
                if spans is not None:
                    spans[-1].gone_ns = fact.at_ns

    def _admit(self, fact: fx.TasksAdmitted) -> None:
        if not self._since_ns <= fact.at_ns < self._until_ns:
            return
        for entry, task_id in zip(fact.tasks, fact.ids, strict=True):
            spec = fact.specs[entry.spec]
            ready_ns = fact.at_ns + int(spec.delay_s * SECOND)
            self._open[task_id] = _Open(spec, entry, fact.ids, ready_ns, spec.requirements)

    def _enter(self, fact: fx.WorkerEntered) -> None:
        spans = self._spans.setdefault(fact.worker_id, [])
        if spans and spans[-1].gone_ns is None:
            if spans[-1].entered.resources == fact.resources:
                return  # it was never gone, or the last page says again what another one said
            spans[-1].gone_ns = fact.at_ns
        spans.append(_Span(fact))

    def _take_finished(self, record: FinishedTask) -> None:
        ran = [a for a in record.attempts if a.started_at_ns and a.cause in COUNTS_AS_RUN and not a.excused]
        row = self._open.pop(record.id, None)
        group, unit_s = _group(record.kind, row.requirements if row is not None else NO_REQUIREMENTS)
        for attempt in ran:
            if attempt.cause is Cause.OK:
                seen = (group, attempt.worker_id, attempt.finished_at_ns, _seconds(attempt) / unit_s)
                self._runtimes.append(seen)
        if row is None or not ran:
            self._other_ends[record.id] = record.at_ns
        if row is None:
            if self._since_ns <= record.submitted_ns < self._until_ns:
                self._left_out.before_history += 1
        elif not ran:
            self._left_out.never_ran += 1
        else:
            last = ran[-1]
            failed = [attempt for attempt in ran[:-1] if attempt.cause in OWN_FAILURES]
            succeeded = last.cause not in OWN_FAILURES
            counts = last if succeeded else None
            started = [attempt for attempt in record.attempts if attempt.started_at_ns]
            self._attempts += len(started)
            self._wasted_s += sum(_seconds(attempt) for attempt in started if attempt is not counts)
            self._ended.append(_Ended(record.id, row, record.kind, record.priority, succeeded, last, failed))

    def _model_of(self, worker_id: WorkerId, at_ns: Instant) -> str:
        """What a worker was at that time; what it was first, where its coming is forgotten."""
        spans = self._spans.get(worker_id)
        if spans is None:
            return UNKNOWN
        span = next((span for span in reversed(spans) if span.entered.at_ns <= at_ns), spans[0])
        return model_of(span.entered.resources)

    # ------------------------------------------------------------------------------------------------------- the answer

    def history(self, cluster: Sequence[ClusterRow] | None = None, more: Sequence[ClusterRow] = ()) -> History:
        """Make the trace, for a cluster in place of the recorded workers, or with `more` than these.

        Raises TraceError where there is nothing to run, or nothing to run it on.
        """
        if not self._ended:
            raise TraceError(
                "the journal has no task to run again that was submitted in that time",
                "it needs tasks that have ended; see `schedd history`, and --since and --until",
            )
        rows = sorted(self._ended, key=lambda row: row.id)
        ready = self._ready(rows)
        order = sorted(range(len(rows)), key=lambda i: (ready[i], i))
        first_ns = ready[order[0]]
        recorded = self._workers(first_ns, max(row.last.finished_at_ns for row in rows))
        workers = [*(recorded if cluster is None else cluster), *more]
        if not workers:
            raise TraceError("the journal knows none of the workers of that time", "give --cluster FILE")
        seen = [(group, self._model_of(worker, at_ns), size) for group, worker, at_ns, size in self._runtimes]
        ran_on = [self._model_of(row.last.worker_id, row.last.finished_at_ns) for row in rows]
        speeds = Speeds(seen or [(row.kind, on, _seconds(row.last)) for row, on in zip(rows, ran_on, strict=True)])
        models = list(dict.fromkeys(worker.gpu_model for worker in workers))
        places = {rows[i].id: place for place, i in enumerate(order)}
        tasks = [_task(rows[i], ready[i] - first_ns, ran_on[i], models, speeds, places) for i in order]
        trace = Trace("journal", tasks)
        self._left_out.unfinished = len(self._open)
        was = self._as_it_was(trace, recorded, [rows[i] for i in order], first_ns) if recorded else None
        new = [model for model in models if model not in speeds.models]
        return History(trace, workers, was, self._left_out, new)

    def _ready(self, rows: Sequence[_Ended]) -> list[Instant]:
        """When each task arrives, in the order of the ids: not before what it comes after, or, where that is not in the
        trace, after its end.
        """
        ready: dict[TaskId, Instant] = {}
        for row in rows:
            needed = (ready.get(other) or self._other_ends.get(other, 0) for other in _after(row))
            ready[row.id] = max(row.open.ready_ns, *needed, 0)
        return list(ready.values())

    def _workers(self, first_ns: Instant, end_ns: Instant) -> list[ClusterRow]:
        """Who was there between the first arrival and the last end."""
        found: list[ClusterRow] = []
        for span in sorted(itertools.chain(*self._spans.values()), key=lambda span: span.entered.at_ns):
            entered, gone_ns = span.entered, span.gone_ns
            if entered.at_ns > end_ns or (gone_ns is not None and gone_ns <= first_ns):
                continue
            stays = gone_ns is None or gone_ns >= end_ns
            resources = entered.resources
            found.append(
                RecordedWorker(
                    name=entered.worker_id,
                    num_gpus=len(resources.devices()),
                    gpu_model=model_of(resources),
                    joins_s=max(0, entered.at_ns - first_ns) / SECOND,
                    leaves_s=None if stays or gone_ns is None else (gone_ns - first_ns) / SECOND,
                    declared=resources,
                )
            )
        return found

    def _as_it_was(self, trace: Trace, workers: list[ClusterRow], rows: Sequence[_Ended], first_ns: Instant) -> Run:
        """The run that the daemon itself made of it; of several spans of a worker the last is meant."""
        attempts = [row.last for row in rows]
        places = {worker.name: place for place, worker in enumerate(workers)}
        return Run(
            trace,
            workers,
            array("d", [(attempt.started_at_ns - first_ns) / SECOND for attempt in attempts]),
            array("d", [(attempt.finished_at_ns - first_ns) / SECOND for attempt in attempts]),
            array("q", [places.get(attempt.worker_id, -1) for attempt in attempts]),
            steals=self._steals,
            attempts=self._attempts,
            unsuccessful={place for place, row in enumerate(rows) if not row.succeeded},
            wasted_s=self._wasted_s,
        )


def model_of(resources: WorkerResources) -> str:
    """By what the speed of a worker is known: its device model; "" for one without devices."""
    return "+".join(sorted({device.model for device in resources.devices()}))


def _group(kind: str, requirements: TaskRequirements) -> tuple[str, float]:
    """Which runtimes tell of each other, and what they are measured by: where a length was estimated, by that.

    What long and short tasks of a kind take on two models says little of the models as long as lengths are not known.
    """
    estimated = requirements.estimated_time
    return (f"{kind} by its estimate", estimated) if estimated else (kind, 1.0)


def _seconds(attempt: AttemptRecord) -> float:
    return max(0, attempt.finished_at_ns - attempt.started_at_ns) / SECOND


def _after(row: _Ended) -> list[TaskId]:
    refs = (*row.open.spec.after, *row.open.entry.after)
    return [TaskId(ref) if ref >= 0 else row.open.ids[-1 - ref] for ref in refs]


def _task(
    row: _Ended, arrives_ns: int, ran_on: str, models: Iterable[str], speeds: Speeds, places: Mapping[TaskId, int]
) -> TraceTask:
    seconds = _seconds(row.last)
    group, _ = _group(row.kind, row.open.requirements)
    runtimes = {model: seconds * speeds.factor(group, ran_on, model) for model in models}
    same = seconds if len(runtimes) > 1 else next(iter(runtimes.values()))
    shares = tuple(_seconds(attempt) / seconds if seconds else 0.0 for attempt in row.failed)
    return TraceTask(
        arrives_ns / SECOND,
        row.kind,
        same,
        row.open.requirements,
        runtimes if len(runtimes) > 1 else {},
        row.priority,
        tuple(sorted(places[other] for other in _after(row) if other in places)),
        failures=shares,
        fails=not row.succeeded,
    )
