"""What the worker has to tell the daemon: one turn's news, and the ends that are not yet acknowledged. Pure.

Ends are numbered batches (`AttemptsFinished.seq`). A batch stays here until `AckFinished` covers it and is sent again
after each reconnection. Everything else is news of a connection: what a broken connection swallowed is told again by
`WorkerHello.holds`.
"""

from __future__ import annotations

from collections import deque

from schedd.core.model import TaskId
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

#: A batch of ends fits into a frame (64 MiB) beside others: it is closed above this many bytes of results.
BATCH_BYTES_MAX = 8 * 1024 * 1024
BATCH_COUNT_MAX = 4096
#: Progress is worth little when it is old: beyond this many in one turn (or without a connection) the oldest go.
REPORTS_MAX = 1000


class Outbox:
    """Collects a turn's news; `take` gives them out as messages in the order in which the daemon must see them."""

    def __init__(self) -> None:
        self.connected = False
        self._seq = 0
        self._unacked: deque[AttemptsFinished] = deque()
        #: The newest attempt of each task among the ends not yet acknowledged.
        self._finished_attempts: dict[TaskId, int] = {}
        #: Which definition of those tasks it was, for the next greeting.
        self._defined: dict[TaskId, int] = {}
        self._resend = False
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

    def started(self, news: AttemptStarted) -> None:
        self._started[news.task_id] = news

    def finished(self, news: AttemptFinished, defined_ns: int = 0) -> None:
        self._started.pop(news.task_id, None)
        self._defined[news.task_id] = defined_ns
        self._finished.append(news)
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
        del self._finished_attempts[task_id], self._defined[task_id]
        self._finished = [f for f in self._finished if (f.task_id, f.attempt) != (task_id, attempt)]
        for batch in self._unacked:
            batch.attempts[:] = [f for f in batch.attempts if (f.task_id, f.attempt) != (task_id, attempt)]

    def acknowledge(self, seq: int) -> None:
        """Forget the batches up to `seq`. A number from the future covers only what was sent."""
        while self._unacked and self._unacked[0].seq <= seq:
            for end in self._unacked.popleft().attempts:
                if self.holds_end_of(end.task_id, end.attempt):
                    del self._finished_attempts[end.task_id], self._defined[end.task_id]

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
                defined_ns=self._defined.get(end.task_id, 0),
            )
            for batch in self._unacked
            for end in batch.attempts
        ]

    def on_hello(self) -> None:
        """A greeting now says all that is held: news that it covers are old. Ends are sent again after it."""
        self._started.clear()
        self._answers.clear()
        self._handed_back.clear()
        self._resend = True

    def take(self) -> list[FromWorker]:
        """Give out what there is to send; nothing while there is no connection.

        Order: what leaves the backlog before what makes its head start, so that the daemon, which starts the head of
        its own copy at each end, comes to the same heads. Progress of an attempt comes after its start and before its
        end.
        """
        first_new = self._close_batches()
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
        if self._resend:
            messages += self._unacked
            self._resend = False
        elif first_new:
            messages += [batch for batch in self._unacked if batch.seq >= first_new]
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

    def _close_batches(self) -> int:
        """Number the new ends. Returns the first new number, 0 where there is nothing new."""
        if not self._finished:
            return 0
        first = self._seq + 1
        batch: list[AttemptFinished] = []
        size = 0
        for end in self._finished:
            batch.append(end)
            size += len(end.result or b"")
            if size > BATCH_BYTES_MAX or len(batch) >= BATCH_COUNT_MAX:
                self._add_batch(batch)
                batch, size = [], 0
        if batch:
            self._add_batch(batch)
        self._finished = []
        return first

    def _add_batch(self, batch: list[AttemptFinished]) -> None:
        self._seq += 1
        self._unacked.append(AttemptsFinished(self._seq, batch))
