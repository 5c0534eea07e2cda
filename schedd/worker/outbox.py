"""What the worker has to tell the daemon: one turn's news, and the ends that are not yet acknowledged. Pure.

Ends are numbered batches (`AttemptsFinished.seq`). A batch stays here until `AckFinished` covers it and is sent again
after each reconnection. Everything else is news of a connection: what a broken connection swallowed is told again by
`WorkerHello.holds`.

A batch is also to be kept on disk, for the next start of the worker, where its loss would be dear: before it is sent
where one of its attempts ran long, at once while there is no connection, and after a while where nobody acknowledges
it. Ends of short attempts that are acknowledged quickly never touch the disk: to lose one costs another short run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

from msgspec import Struct

from schedd.core.model import SECOND, TaskId
from schedd.wire.messages import (
    AttemptFinished,
    AttemptReport,
    AttemptReports,
    AttemptsFinished,
    AttemptsStarted,
    AttemptStarted,
    FromWorker,
    HoldsAttempt,
    RevokeAnswers,
    WorkerDraining,
)

#: Ends that come together are a batch up to so many bytes of results, which fits into a frame (64 MiB) beside others; a
#: larger one is a batch of its own.
BATCH_BYTES_MAX = 8 * 1024 * 1024
BATCH_COUNT_MAX = 4096
#: Progress is worth little when it is old: beyond this many in one turn (or without a connection) the oldest go.
REPORTS_MAX = 1000
#: An attempt that ran for so long is worth a file, which costs a tenth of a millisecond.
KEEP_RUNTIME_NS = SECOND
#: What could not be written is tried again at every so many calls of `grow_old`.
TRY_AGAIN_EVERY = 30
#: Ends that nobody has acknowledged, and bytes of their results, above which nothing new is started.
ENDS_MAX = 100_000
ENDS_BYTES_MAX = 512 * 1024 * 1024

#: `defined_ns` and `epoch` of what was dispatched, see `WireSpec`.
Origin = tuple[int, int]
NO_ORIGIN: Origin = (0, 0)


class Kept(Struct, frozen=True, array_like=True):
    """A batch of ends as it is on disk; of each `defined_ns` of its task, as it was dispatched, and by which epoch.

    The epochs are missing in files of older versions.
    """

    seq: int
    attempts: list[AttemptFinished]
    defined_ns: list[int]
    epochs: list[int] = []

    def origins(self) -> list[Origin]:
        """Where each end comes from."""
        return [*zip(self.defined_ns, self.epochs or [0] * len(self.defined_ns), strict=True)]


class Batch(Struct, eq=False):
    """Ends that are told and acknowledged together."""

    message: AttemptsFinished
    bytes_count: int
    is_kept: bool = False

    @property
    def seq(self) -> int:
        return self.message.seq


class Outbox:
    """Collects a turn's news; `take` gives them out as messages in the order in which the daemon must see them."""

    def __init__(self, ends_max: int = ENDS_MAX, ends_bytes_max: int = ENDS_BYTES_MAX) -> None:
        self.connected = False
        self._ends_max = ends_max
        self._ends_bytes_max = ends_bytes_max
        #: Ends that are not acknowledged, and bytes of their results.
        self._end_count = 0
        self._end_bytes = 0
        #: As many as may be: nothing that makes more may be started.
        self.is_full = False
        self._seq = 0
        self._unacked: deque[Batch] = deque()
        #: Of those, what is not on disk; and which of these have to be, whether there is a connection or not.
        self._unkept: dict[int, Batch] = {}
        self._to_keep: list[Batch] = []
        #: Could not be written; tried again after a while.
        self._refused: dict[int, Batch] = {}
        #: Calls of `grow_old`.
        self._age = 0
        #: Acknowledged, and still on disk.
        self._over: list[int] = []
        #: Batches up to this one were there when `grow_old` was last called.
        self._old_seq = 0
        #: The newest attempt of each task among the ends not yet acknowledged.
        self._finished_attempts: dict[TaskId, int] = {}
        #: Where the ends not yet acknowledged come from, for the next greeting.
        self._origins: dict[tuple[TaskId, int], Origin] = {}
        #: Batches up to this one were given out for the present connection.
        self._sent_seq = 0
        self._started: dict[TaskId, AttemptStarted] = {}
        self._finished: list[AttemptFinished] = []
        self._reports: deque[AttemptReport] = deque(maxlen=REPORTS_MAX)
        self._answers: list[tuple[TaskId, int, bool]] = []
        self._handed_back: list[tuple[TaskId, int]] = []
        self._draining = False

    @property
    def is_empty(self) -> bool:
        """Nothing is left that the daemon must hear or acknowledge."""
        return not (self._unacked or self._finished or self._answers or self._draining)

    @property
    def has_ends(self) -> bool:
        """The end of an attempt is not yet acknowledged."""
        return bool(self._unacked or self._finished)

    def _count(self, ends: int, size: int) -> None:
        self._end_count += ends
        self._end_bytes += size
        self.is_full = self._end_count >= self._ends_max or self._end_bytes >= self._ends_bytes_max

    def started(self, news: AttemptStarted) -> None:
        self._started[news.task_id] = news

    def finished(self, news: AttemptFinished, origin: Origin = NO_ORIGIN) -> None:
        self._started.pop(news.task_id, None)
        self._origins[news.task_id, news.attempt] = origin
        self._finished.append(news)
        self._count(1, len(news.result or b""))
        self._finished_attempts[news.task_id] = news.attempt

    def reported(self, news: AttemptReport) -> None:
        self._reports.append(news)

    def answered(self, answers: list[tuple[TaskId, int, bool]]) -> None:
        self._answers += answers

    def handed_back(self, attempts: list[tuple[TaskId, int]]) -> None:
        self._handed_back += attempts
        self._draining = True

    def supersedes(self, task_id: TaskId, attempt: int) -> bool:
        """Tell whether the end of this attempt or a newer one of its task waits for its acknowledgement."""
        return self._finished_attempts.get(task_id, 0) >= attempt

    def holds_end_of(self, task_id: TaskId, attempt: int) -> bool:
        """Tell whether the end of this very attempt waits for its acknowledgement."""
        return self._finished_attempts.get(task_id) == attempt

    def forget(self, task_id: TaskId, attempt: int) -> None:
        """Say nothing (more) about this attempt. O(unacknowledged), and rare."""
        started = self._started.get(task_id)
        if started is not None and started.attempt == attempt:
            del self._started[task_id]
        if not self.holds_end_of(task_id, attempt):
            return
        del self._finished_attempts[task_id]
        self._origins.pop((task_id, attempt), None)
        self._finished = self._without(self._finished, task_id, attempt)
        for batch in self._unacked:
            ends = batch.message.attempts
            size = self._end_bytes
            ends[:] = self._without(ends, task_id, attempt)
            batch.bytes_count -= size - self._end_bytes
        older = [end.attempt for end in self._ends() if end.task_id == task_id]
        if older:
            self._finished_attempts[task_id] = max(older)

    def _ends(self) -> Iterator[AttemptFinished]:
        """All ends that were not acknowledged."""
        for batch in self._unacked:
            yield from batch.message.attempts
        yield from self._finished

    def _without(self, ends: list[AttemptFinished], task_id: TaskId, attempt: int) -> list[AttemptFinished]:
        left = []
        for end in ends:
            if (end.task_id, end.attempt) == (task_id, attempt):
                self._count(-1, -len(end.result or b""))
            else:
                left.append(end)
        return left

    def acknowledge(self, seq: int) -> None:
        """Forget the batches up to `seq`. A number from the future covers only what was sent."""
        while self._unacked and self._unacked[0].seq <= seq:
            batch = self._unacked.popleft()
            ends = batch.message.attempts
            for end in ends:
                self._origins.pop((end.task_id, end.attempt), None)
                if self.holds_end_of(end.task_id, end.attempt):
                    del self._finished_attempts[end.task_id]
            self._count(-len(ends), -batch.bytes_count)
            if batch.is_kept:
                self._over.append(batch.seq)
            elif self._unkept.pop(batch.seq, None) is None:
                del self._refused[batch.seq]

    # ------------------------------------------------------------------------------------------------------- on disk

    def restore(self, batches: Iterable[Kept]) -> None:
        """Take over the ends that the last run of this worker left on disk. First of all, in the order of `seq`."""
        for kept in batches:
            for end, origin in zip(kept.attempts, kept.origins(), strict=True):
                self.forget(end.task_id, end.attempt)  # the daemon did not want it, and had the same run again
                self._origins[end.task_id, end.attempt] = origin
                self._finished_attempts[end.task_id] = end.attempt
            size = sum(len(end.result or b"") for end in kept.attempts)
            self._count(len(kept.attempts), size)
            self._seq = kept.seq
            self._unacked.append(Batch(AttemptsFinished(kept.seq, list(kept.attempts)), size, is_kept=True))

    def take_to_keep(self, *, everything: bool = False) -> list[Kept]:
        """Give out what has to be on disk now; where there is no connection or `everything`, all that is not."""
        if everything or not self.connected:
            self._close_batches()
            if everything:
                self._try_again()
            batches, self._unkept = list(self._unkept.values()), {}
        elif self._to_keep:
            batches = [batch for batch in self._to_keep if self._unkept.pop(batch.seq, None) is not None]
        else:
            return []
        self._to_keep = []
        for batch in batches:
            batch.is_kept = True
        return [self._kept(batch) for batch in batches]

    @property
    def is_kept(self) -> bool:
        """All ends that nobody has acknowledged are on disk."""
        return all(batch.is_kept for batch in self._unacked) and not self._finished

    def not_kept(self, numbers: Iterable[int]) -> None:
        """These were given out, and are not on disk."""
        wanted = set(numbers)
        for batch in self._unacked if wanted else ():
            if batch.seq in wanted:
                batch.is_kept = False
                self._refused[batch.seq] = batch

    def _try_again(self) -> None:
        self._unkept |= self._refused
        self._to_keep += self._refused.values()
        self._refused = {}

    def _kept(self, batch: Batch) -> Kept:
        ends = list(batch.message.attempts)
        origins = [self._origins.get((end.task_id, end.attempt), NO_ORIGIN) for end in ends]
        return Kept(batch.seq, ends, [defined_ns for defined_ns, _ in origins], [epoch for _, epoch in origins])

    def take_over(self) -> list[int]:
        """Give out the numbers of what need no longer be on disk."""
        over, self._over = self._over, []
        return over

    def grow_old(self) -> None:
        """Have kept what was here at the last call already; the shell calls this about once a second."""
        self._to_keep += [batch for batch in self._unkept.values() if batch.seq <= self._old_seq]
        self._age += 1
        if not self._age % TRY_AGAIN_EVERY:
            self._try_again()
        self._close_batches()
        self._old_seq = self._seq

    # ------------------------------------------------------------------------------------------------------- telling

    def holds(self) -> list[HoldsAttempt]:
        """List the ends that were not acknowledged, for a greeting."""
        self._close_batches()
        return [
            HoldsAttempt(
                end.task_id,
                end.attempt,
                "finished",
                end.started_at_ns,
                end.devices,
                0,
                *self._origins.get((end.task_id, end.attempt), NO_ORIGIN),
            )
            for batch in self._unacked
            for end in batch.message.attempts
        ]

    def on_hello(self) -> None:
        """A greeting now says all that is held: news that it covers are old. Ends are sent again after it."""
        self._started.clear()
        self._answers.clear()
        self._handed_back.clear()
        self._sent_seq = 0

    def take(self) -> list[FromWorker]:
        """Give out what there is to send; nothing while there is no connection.

        Order: what leaves the backlog before what makes its head start, so that the daemon, which starts the head of
        its own copy at each end, comes to the same heads. Progress of an attempt comes after its start and before its
        end.
        """
        self._close_batches()
        if not self.connected:
            return []
        messages: list[FromWorker] = []
        if self._answers:
            messages.append(RevokeAnswers(self._answers))
            self._answers = []
        if self._draining:
            messages.append(WorkerDraining(self._handed_back))
            self._handed_back, self._draining = [], False
        late_reports = self._take_reports(messages)
        if self._sent_seq < self._seq:
            messages += [batch.message for batch in self._unacked if batch.seq > self._sent_seq]
            self._sent_seq = self._seq
        if self._started:
            messages.append(AttemptsStarted(list(self._started.values())))
            self._started = {}
        if late_reports:
            messages.append(AttemptReports(late_reports))
        return messages

    def _take_reports(self, messages: list[FromWorker]) -> list[AttemptReport]:
        """Add the progress of attempts that the daemon knows as started; return that of the others."""
        if not self._reports:
            return []
        reports = list(self._reports)
        self._reports.clear()
        early = [r for r in reports if r.task_id not in self._started]
        if early:
            messages.append(AttemptReports(early))
        return [r for r in reports if r.task_id in self._started]

    def _close_batches(self) -> None:
        """Number the new ends."""
        if not self._finished:
            return
        batch: list[AttemptFinished] = []
        size, long = 0, False
        for end in self._finished:
            length = len(end.result or b"")
            if batch and size + length > BATCH_BYTES_MAX:
                self._add_batch(batch, size, long)
                batch, size, long = [], 0, False
            batch.append(end)
            size += length
            long = long or 0 < end.started_at_ns <= end.finished_at_ns - KEEP_RUNTIME_NS
            if len(batch) >= BATCH_COUNT_MAX:
                self._add_batch(batch, size, long)
                batch, size, long = [], 0, False
        if batch:
            self._add_batch(batch, size, long)
        self._finished = []

    def _add_batch(self, ends: list[AttemptFinished], size: int, long: bool) -> None:
        self._seq += 1
        batch = self._unkept[self._seq] = Batch(AttemptsFinished(self._seq, ends), size)
        self._unacked.append(batch)
        if long:
            self._to_keep.append(batch)
