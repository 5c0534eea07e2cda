"""Facts as rows. Pure.

A transaction writes what several turns brought about. The history gets all facts of it as one blob, and the tasks that
ended, with all that is remembered of them, as another, or as several where they are large. What a restart needs is kept
beside it, append-only, in rows that are as few as the transactions:

- `batches`: a row for each submit, its `TasksAdmitted`, named by its first id. It goes when its last task has ended.
- `ended`: a row for each transaction and batch, the ids that ended. They go with their batch.
- `changes`: a row for each fact that changes a task which goes on: held, released, set, an attempt that failed or was
  asked to make room. They go with their task; where only the last of a kind counts, it replaces the one before.
- `workers`: who may come back with attempts, and whether it was draining.
- `verdicts`: workers in quarantine and kinds that are held, until they are released.
- `submits`: a row for each submit that its client may send again, whether or not its tasks have ended. They go when the
  client has heard of them, and those of clients that are gone beyond a bound.

Dispatches and starts are not kept for a restart: workers bring what they run.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar, cast
from zlib import crc32

import msgspec
from msgspec import Struct, field, structs

from schedd.core import effects as fx
from schedd.core.model import (
    DEFAULT_RULES,
    NO_REQUIREMENTS,
    AttemptRecord,
    Cancelled,
    Failed,
    Instant,
    Payload,
    Report,
    Succeeded,
    Task,
    TaskId,
    TaskRequirements,
    TaskRules,
    WorkerId,
)
from schedd.core.pages import Pages
from schedd.core.retries import blame
from schedd.core.stats import Learned
from schedd.core.submits import Admitted, admitted, compact
from schedd.core.tasks import RESULT_DROPPED
from schedd.errors import JournalError

AnyFact = (
    fx.TasksAdmitted
    | fx.TaskHeld
    | fx.TaskReleased
    | fx.TaskChanged
    | fx.CancelAsked
    | fx.PreemptAsked
    | fx.AttemptDispatched
    | fx.AttemptBegan
    | fx.AttemptEnded
    | fx.TaskFinished
    | fx.WorkerEntered
    | fx.WorkerWentSilent
    | fx.WorkerGone
    | fx.WorkerStartedDraining
    | fx.WorkerStoppedDraining
    | fx.AttemptStolen
    | fx.WorkerQuarantined
    | fx.WorkerCleared
    | fx.KindHeld
    | fx.KindReleased
)

T = TypeVar("T")

#: Before each blob, its CRC-32.
CHECKSUM_BYTES = 4
#: An array of MessagePack begins with how many items it has ("array 32"); they follow as they are.
_ARRAY_BYTES = 5

_encoder = msgspec.msgpack.Encoder()
_facts_decoder = msgspec.msgpack.Decoder(list[AnyFact])
_fact_decoder: msgspec.msgpack.Decoder[AnyFact] = msgspec.msgpack.Decoder(AnyFact)
_ids_decoder = msgspec.msgpack.Decoder(list[int])


def _seal(data: bytes | bytearray) -> bytes:
    """Put a checksum before a blob: SQLite has none for its pages, and a flipped bit of a command is a command too."""
    return crc32(data).to_bytes(CHECKSUM_BYTES, "big") + data


def _unseal(blob: bytes, what: str) -> memoryview:
    data = memoryview(blob)[CHECKSUM_BYTES:]
    if crc32(data) != int.from_bytes(blob[:CHECKSUM_BYTES], "big"):
        raise JournalError(f"{what} is damaged")
    return data


def _decode(decoder: msgspec.msgpack.Decoder[T], blob: bytes, what: str) -> T:
    try:
        return decoder.decode(_unseal(blob, what))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError, TypeError) as error:
        raise JournalError(f"{what} cannot be read: {error}") from error


def encode_facts(facts: Sequence[fx.Fact | msgspec.Raw]) -> bytes:
    """Write facts, in order, as one blob; a Raw is one that was encoded before."""
    return _seal(_encoder.encode(facts))


def encode_in_parts(items: Iterable[fx.Fact | FinishedTask], bytes_max: int) -> Iterator[tuple[bytes, int]]:
    """Write facts, or tasks that ended, as one blob, or as several where there is much; at least one.

    Yields each with how many items it has. The last of them may take it beyond `bytes_max`.
    """
    data, count, is_first = bytearray(_ARRAY_BYTES), 0, True
    for item in items:
        _encoder.encode_into(item, data, -1)
        count += 1
        if len(data) > bytes_max:
            yield _array_of(data, count), count
            data, count, is_first = bytearray(_ARRAY_BYTES), 0, False
    if count or is_first:
        yield _array_of(data, count), count


def _array_of(data: bytearray, count: int) -> bytes:
    data[:_ARRAY_BYTES] = b"\xdd" + count.to_bytes(4, "big")
    return _seal(data)


def decode_facts(blob: bytes) -> list[AnyFact]:
    """Read what `encode_facts` wrote. Raises JournalError."""
    return _decode(_facts_decoder, blob, "a row of the history")


def encode_fact(fact: fx.Fact) -> bytes:
    """Write one fact, for a live row."""
    return _seal(_encoder.encode(fact))


def encode_ids(ids: Sequence[int]) -> bytes:
    """Write the ids of an `ended` row."""
    return _seal(_encoder.encode(ids))


def decode_fact(blob: bytes) -> AnyFact:
    """Read one fact of a live row. Raises JournalError."""
    return _decode(_fact_decoder, blob, "a live row")


def decode_ids(blob: bytes) -> list[int]:
    """Read the ids of an `ended` row. Raises JournalError."""
    return _decode(_ids_decoder, blob, "a row of ended tasks")


class EndOfTask(Struct, frozen=True, array_like=True, gc=False):
    """The beginning of a `FinishedTask`, which is read at a third of its cost: without what the task did."""

    id: TaskId
    state: str
    at_ns: Instant
    job: str
    kind: str
    key: str | None
    priority: float
    submitted_ns: Instant
    attempts: tuple[AttemptRecord, ...]
    result: bytes | None = None


class FinishedTask(EndOfTask, frozen=True, array_like=True, gc=False):
    """What is remembered of a task that has ended.

    What it did (`payload` and so on) is kept of one that did not succeed, since somebody may want to have it done
    again, and of one with a key, since a submit with the same key must do the same.
    """

    report: Report | None = None
    payload: Payload | None = None
    argument: bytes = b""
    requirements: TaskRequirements = NO_REQUIREMENTS
    rules: TaskRules = DEFAULT_RULES
    after: tuple[TaskId, ...] = ()
    owner: str = ""


_ends_decoder = msgspec.msgpack.Decoder(list[EndOfTask])
_finished_decoder = msgspec.msgpack.Decoder(list[FinishedTask])


def finished_record(task: Task, result: bytes | None) -> FinishedTask:
    """Write down a row that has just come to its final state; `result` as it came, kept in memory or not."""
    state = task.state
    kept = (
        task.id,
        state.name,
        getattr(state, "at_ns", 0),
        task.job,
        task.kind,
        task.key,
        task.priority,
        task.submitted_ns,
        task.attempts,
        result,
        task.report,
    )
    if isinstance(state, Succeeded) and task.key is None:
        return FinishedTask(*kept, owner=task.owner)
    return FinishedTask(*kept, task.payload, task.argument, task.requirements, task.rules, task.after, task.owner)


def finished_records(facts: Iterable[fx.Fact], rows: Iterable[Task]) -> list[FinishedTask]:
    """Write down the rows of a turn that ended; each has its `TaskFinished` among the facts, in the same order."""
    ends = (fact for fact in facts if type(fact) is fx.TaskFinished)
    return [finished_record(task, end.result) for task, end in zip(rows, ends, strict=True)]


def draining_of(workers: Iterable[fx.WorkerEntered]) -> dict[WorkerId, tuple[str, bool]]:
    """The incarnations of those that are draining, and whether they were asked to leave."""
    return {worker.worker_id: (worker.incarnation, worker.leaving) for worker in workers if worker.draining}


def finished_row(record: FinishedTask) -> Task:
    """Make the row of a task that had ended before this start; its result stays in the journal."""
    final = {"succeeded": Succeeded, "failed": Failed}.get(record.state, Cancelled)
    row = Task(
        id=record.id,
        state=final(record.at_ns),
        job=record.job,
        kind=record.kind,
        key=record.key,
        priority=record.priority,
        submitted_ns=record.submitted_ns,
        attempts=record.attempts,
        attempt=record.attempts[-1].attempt if record.attempts else 0,
        report=record.report,
        payload=record.payload,
        argument=record.argument,
        requirements=record.requirements,
        rules=record.rules,
        after=record.after,
        owner=record.owner,
        result=None if record.result is None else RESULT_DROPPED,
    )
    for attempt in record.attempts:
        blame(row, attempt.cause)
    return row


def encode_finished(records: Sequence[FinishedTask]) -> bytes:
    """Write down tasks that ended, in order, as one blob."""
    return _seal(_encoder.encode(records))


def decode_finished(blob: bytes) -> list[FinishedTask]:
    """Read what `encode_finished` wrote. Raises JournalError."""
    return _decode(_finished_decoder, blob, "a row of finished tasks")


def decode_ends(blob: bytes) -> list[EndOfTask]:
    """Read the beginnings of what `encode_finished` wrote. Raises JournalError."""
    return _decode(_ends_decoder, blob, "a row of finished tasks")


class SubmitRow(Struct, frozen=True, array_like=True):
    """A submit that may come again. `ids`, where its tasks do not follow on one another from `first_id` on."""

    client: str
    number: int
    at_ns: Instant
    first_id: int
    count: int
    ids: list[TaskId] = field(default_factory=list)


_submit_decoder = msgspec.msgpack.Decoder(SubmitRow)


def encode_submit(fact: fx.TasksAdmitted) -> bytes:
    """Write down under which name a submit was admitted, and as what."""
    ids = admitted(fact).ids
    run = isinstance(ids, range)
    row = SubmitRow(fact.client, fact.number, fact.at_ns, ids[0], len(ids), [] if run else list(ids))
    return _seal(_encoder.encode(row))


def decode_submit(blob: bytes) -> Admitted:
    """Read what `encode_submit` wrote. Raises JournalError."""
    row = _decode(_submit_decoder, blob, "a row of submits")
    run = cast("Sequence[TaskId]", range(row.first_id, row.first_id + row.count))
    return Admitted(row.client, row.number, row.at_ns, compact(row.ids) if row.ids else run)


def ends_row(records: Sequence[FinishedTask]) -> tuple[int, int, bytes, int]:
    """By what a row of the history is found: the lowest id of its tasks, the highest, all, and how many have a key."""
    ids = [record.id for record in records]
    return min(ids), max(ids), encode_ids(ids), count_keyed(records)


def count_keyed(records: Sequence[EndOfTask]) -> int:
    """How many of them have a key."""
    return len(records) - [record.key for record in records].count(None)


_learned_decoder = msgspec.msgpack.Decoder(list[Learned])


def encode_learned(learned: Sequence[Learned]) -> bytes:
    """Write down what was learned, as one blob."""
    return _seal(_encoder.encode(learned))


def decode_learned(blob: bytes) -> list[Learned]:
    """Read what `encode_learned` wrote. Raises JournalError."""
    return _decode(_learned_decoder, blob, "what was learned")


class Rows(Struct):
    """What one transaction writes beside the history, and takes away.

    `answered`: of each client, below which number its submits need not be known any more.
    """

    batches: list[tuple[int, bytes]] = field(default_factory=list)
    ended: list[tuple[int, bytes]] = field(default_factory=list)
    changes: list[tuple[int, bytes, int]] = field(default_factory=list)
    workers: list[tuple[str, bytes]] = field(default_factory=list)
    verdicts: dict[str, bytes] = field(default_factory=dict)
    submits: list[tuple[int, str, int, bytes]] = field(default_factory=list)
    answered: dict[str, int] = field(default_factory=dict)
    batches_done: list[int] = field(default_factory=list)
    changes_done: list[int] = field(default_factory=list)
    changes_replaced: list[tuple[int, int]] = field(default_factory=list)
    workers_gone: list[str] = field(default_factory=list)
    verdicts_over: list[str] = field(default_factory=list)


#: Kinds of changes, a bit each. Of some only the last says anything, or a priority that is set for ever fills the disk.
EACH_COUNTS, HOLD, SET = 0, 1, 2
_KINDS: dict[type[fx.Fact], int] = {fx.TaskHeld: HOLD, fx.TaskReleased: HOLD, fx.TaskChanged: SET}


class LiveIndex:
    """Which batches still have tasks, how many, and which tasks have changes on disk: what the live rows say."""

    def __init__(self) -> None:
        #: First ids of the batches in ascending order; a batch has the ids from its first on.
        self._firsts: list[int] = []
        self._remaining: dict[int, int] = {}
        #: Kinds of the changes that are on disk, by task.
        self._changed = Pages[int]()
        self._workers: dict[WorkerId, fx.WorkerEntered] = {}

    def load(self, first_id: int, remaining: int) -> None:
        """Enter a batch that was found on disk."""
        insort(self._firsts, first_id)
        self._remaining[first_id] = remaining

    def load_changed(self, task_id: int, kind: int) -> None:
        self._changed[task_id] = (self._changed.get(task_id) or 0) | kind

    def load_worker(self, entered: fx.WorkerEntered) -> None:
        self._workers[entered.worker_id] = entered

    def plan(self, facts: Iterable[fx.Fact]) -> Rows:
        """Work out the rows of a transaction, and count them as written.

        A task that is admitted and ends within one transaction leaves no live row at all.
        """
        rows = Rows()
        fresh: dict[int, fx.TasksAdmitted] = {}
        changes: dict[int, list[fx.Fact]] = {}
        ended: dict[int, list[int]] = {}
        named: list[fx.TasksAdmitted] = []
        for fact in facts:
            match fact:
                case fx.TasksAdmitted():
                    first = fact.ids[0]
                    fresh[first] = fact
                    self._firsts.append(first)
                    self._remaining[first] = len(fact.ids)
                    if fact.client:
                        rows.answered[fact.client] = fact.answered
                        named.append(fact)
                case (
                    fx.AttemptEnded()
                    | fx.TaskHeld()
                    | fx.TaskReleased()
                    | fx.TaskChanged()
                    | fx.CancelAsked()
                    | fx.PreemptAsked()
                ):
                    _note(changes.setdefault(fact.task_id, []), fact)
                case fx.TaskFinished():
                    self._end(fact.task_id, ended, changes, rows)
                case fx.WorkerEntered():
                    known = self._workers.get(fact.worker_id)
                    if known is None or known.incarnation != fact.incarnation:
                        self._write_worker(fact, rows)
                case fx.WorkerStartedDraining():
                    self._drain(fact.worker_id, True, fact.leave, rows)
                case fx.WorkerStoppedDraining():
                    self._drain(fact.worker_id, False, False, rows)
                case fx.WorkerGone():
                    self._forget_worker(fact.worker_id, rows)
                case fx.WorkerQuarantined() | fx.KindHeld():
                    rows.verdicts[verdict_name(fact)] = encode_fact(fact)
                case fx.WorkerCleared() | fx.KindReleased():
                    rows.verdicts.pop(verdict_name(fact), None)
                    rows.verdicts_over.append(verdict_name(fact))
        self._finish(rows, fresh, ended, changes)
        rows.submits = [
            (f.ids[0], f.client, f.number, encode_submit(f)) for f in named if f.number >= rows.answered[f.client]
        ]
        return rows

    def _end(self, task_id: TaskId, ended: dict[int, list[int]], changes: dict[int, list[fx.Fact]], rows: Rows) -> None:
        changes.pop(task_id, None)
        if self._changed.pop(task_id) is not None:
            rows.changes_done.append(task_id)
        position = bisect_right(self._firsts, task_id) - 1
        if position < 0:
            return
        first = self._firsts[position]
        ended.setdefault(first, []).append(task_id)
        self._remaining[first] -= 1

    def _write_worker(self, entered: fx.WorkerEntered, rows: Rows) -> None:
        name = entered.worker_id
        self._workers[name] = entered
        rows.workers_gone = [other for other in rows.workers_gone if other != name]
        rows.workers = [row for row in rows.workers if row[0] != name]
        rows.workers.append((name, encode_fact(entered)))

    def _drain(self, worker_id: WorkerId, draining: bool, leave: bool, rows: Rows) -> None:
        known = self._workers.get(worker_id)
        if known is None:
            return
        leaving = draining and (leave or known.leaving)
        if (known.draining, known.leaving) != (draining, leaving):
            self._write_worker(structs.replace(known, draining=draining, leaving=leaving), rows)

    def _forget_worker(self, worker_id: WorkerId, rows: Rows) -> None:
        if worker_id in self._workers:
            del self._workers[worker_id]
            rows.workers = [row for row in rows.workers if row[0] != worker_id]
            rows.workers_gone.append(worker_id)

    def _finish(
        self,
        rows: Rows,
        fresh: dict[int, fx.TasksAdmitted],
        ended: dict[int, list[int]],
        changes: dict[int, list[fx.Fact]],
    ) -> None:
        for first, ids in ended.items():
            if not self._remaining[first]:
                del self._remaining[first]
                del self._firsts[bisect_right(self._firsts, first) - 1]
                if fresh.pop(first, None) is None:
                    rows.batches_done.append(first)
            else:
                rows.ended.append((first, encode_ids(ids)))
        rows.batches = [(first, encode_fact(fact)) for first, fact in fresh.items()]
        for task_id, facts in changes.items():
            known = new = self._changed.get(task_id) or 0
            for fact in facts:
                kind = _KINDS.get(type(fact), EACH_COUNTS)
                if known & kind:
                    rows.changes_replaced.append((task_id, kind))
                new |= kind
                rows.changes.append((task_id, encode_fact(fact), kind))
            self._changed[task_id] = new

    @property
    def batch_count(self) -> int:
        return len(self._firsts)


def verdict_name(fact: fx.WorkerQuarantined | fx.WorkerCleared | fx.KindHeld | fx.KindReleased) -> str:
    """The name of the row that a verdict has while it stands."""
    if isinstance(fact, fx.WorkerQuarantined | fx.WorkerCleared):
        return f"worker {fact.worker_id}"
    return f"kind {len(fact.job)} {fact.job} {fact.kind}"


def _note(changes: list[fx.Fact], fact: fx.Fact) -> None:
    """Add a change of a task; where only the last of its kind counts, the ones before go."""
    kind = _KINDS.get(type(fact), EACH_COUNTS)
    if kind and changes:
        changes[:] = [other for other in changes if _KINDS.get(type(other), EACH_COUNTS) != kind]
    changes.append(fact)
