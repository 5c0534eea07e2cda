"""What only the journal can answer, asked in a thread beside the loop."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from schedd.core.model import Instant, Task, TaskId
from schedd.errors import JournalError
from schedd.journal.reader import Happened, Reader
from schedd.journal.records import FinishedTask, finished_row
from schedd.log import Log
from schedd.server import translate
from schedd.server.facts import event_of, event_of_end, is_about
from schedd.wire import messages as m
from schedd.wire.framing import FRAME_BYTES_MAX

log = Log("schedd.server")

T = TypeVar("T")

#: A page of history has at most so many tasks.
HISTORY_LIMIT_MAX = 5000
#: And looks at so many at most, so that nobody's search keeps the threads from others.
HISTORY_LOOKED_MAX = 50_000
#: A page of events has at most so many, out of so many facts: some 100 ms of a thread.
EVENTS_LIMIT_MAX = 5000
FACTS_LOOKED_MAX = 20_000
#: Questions that may be under way at a time; more wait for their turn.
THREADS_MAX = 2


class Archive:
    """Reads the journal for the service. Each answer is given in the loop."""

    def __init__(self, path: Path) -> None:
        self._reader = Reader(path)
        self._slots = asyncio.Semaphore(THREADS_MAX)
        self._under_way: set[asyncio.Task[None]] = set()

    def ask(self, question: Callable[[], T], answer: Callable[[T], None], failed: Callable[[str, str], None]) -> None:
        """Run a question in a thread; `answer` gets what it returned, `failed` a message and a hint."""
        asking = asyncio.ensure_future(self._ask(question, answer, failed))
        self._under_way.add(asking)
        asking.add_done_callback(self._under_way.discard)

    async def _ask(
        self, question: Callable[[], T], answer: Callable[[T], None], failed: Callable[[str, str], None]
    ) -> None:
        try:
            async with self._slots:
                found = await asyncio.to_thread(question)
        except JournalError as error:
            failed(error.message, error.hint)
        except sqlite3.Error as error:
            failed(f"the journal cannot be read: {error}", "see `schedd journal check`")
        except Exception as error:  # whoever asked is not left without an answer
            log.error("question_failed", error=repr(error))
            failed(f"the question failed: {error}", "")
        else:
            answer(found)

    def results(self, wanted: list[tuple[TaskId, Instant]], bytes_max: int) -> tuple[dict[TaskId, bytes], int]:
        """The results of tasks that ended at these instants, and how many of them were looked at: see `Reader`."""
        return self._reader.results(wanted, bytes_max)

    def find(self, ids: list[TaskId], bytes_max: int) -> tuple[dict[TaskId, FinishedTask], int]:
        """Tasks that have ended, by their ids, and how many of these were looked for: see `Reader`."""
        return self._reader.find(ids, bytes_max)

    def rows(self, ids: list[TaskId]) -> dict[TaskId, Task]:
        """The rows of tasks that have ended, by their ids; the results stay where they are."""
        rows: dict[TaskId, Task] = {}
        while ids:  # no more results at a time in memory than a frame may have
            found, looked = self._reader.find(ids, FRAME_BYTES_MAX)
            rows.update((task_id, finished_row(record)) for task_id, record in found.items())
            ids = ids[looked:]
        return rows

    def history(self, request: m.ListHistory) -> m.HistoryList:
        """A page of tasks that have ended, the newest end first. Looks at a bounded number of them."""
        limit = min(max(1, request.limit), HISTORY_LIMIT_MAX)
        states = frozenset(request.states)
        tasks: list[Any] = []
        attempts: list[Any] = []
        for looked, (cursor, record) in enumerate(self._reader.finished(request.cursor), 1):
            if request.since_ns and record.at_ns < request.since_ns:
                break
            if _is_meant(record, request, states):
                tasks.append(translate.task_view(finished_row(record)))
                attempts.append(list(record.attempts))
            if len(tasks) == limit or looked == HISTORY_LOOKED_MAX:
                return m.HistoryList(request.request, tasks, attempts, cursor)
        return m.HistoryList(request.request, tasks, attempts)

    def events(self, request: m.ListEvents) -> m.EventList:
        """A page of what has happened, in its order. Looks at a bounded number of facts."""
        if request.cursor[0] < 0:
            return m.EventList(request.request, [], (self._reader.newest() + 1, 0))
        return _Page(request).read(self._reader)

    def back_up(self, request: m.BackUp) -> m.BackedUp:
        """Write a copy of the journal. Raises JournalError."""
        target = Path(request.path)
        if not target.is_absolute():
            raise JournalError(f"{request.path!r} is no absolute path", "the file is written on the daemon's machine")
        return m.BackedUp(request.request, str(target), self._reader.backup(target))


class _Page:
    """One page of events, while it is read."""

    def __init__(self, request: m.ListEvents) -> None:
        self._request = request
        self._limit = min(max(1, request.limit), EVENTS_LIMIT_MAX)
        self._types = frozenset(request.types)
        self._tasks, self._workers = frozenset(request.tasks), frozenset(request.workers)
        names = (request.types, request.tasks, request.workers, request.jobs)
        self._wants_all = not any(names) and request.since_ns <= 0
        self._events: list[m.Event] = []
        #: Where the next page begins: a row, and how many events of it are passed over.
        self._cursor = (max(0, request.cursor[0]), max(0, request.cursor[1]))
        self._looked = self._missed = 0

    def read(self, reader: Reader) -> m.EventList:
        """Read the page."""
        first, passed_over = self._cursor
        behind = reader.newest() + 1  # before the rows: what comes meanwhile lies behind it
        next_seq = first
        for row in reader.happened(self._cursor, self._request.since_ns):
            self._miss(next_seq, row.seq)
            if not self._take(row, passed_over if row.seq == first else 0):
                return self._answer(more=True)
            next_seq = row.seq + 1
            self._cursor = (next_seq, 0)
        if (
            next_seq != behind and next_seq == first
        ):  # nothing was there: forgotten, or the cursor is of another journal
            self._miss(first, behind)
            self._cursor = (behind, 0)
        return self._answer(more=False)

    def _miss(self, expected: int, found: int) -> None:
        """Count the rows that are forgotten between the one that is next and the one that is there."""
        if expected:
            self._missed += max(0, found - expected)

    def _take(self, row: Happened, start: int) -> bool:
        """Take the events of a row from a position on; False: the page is full."""
        told = len(row.facts)
        for position in range(start, told + len(row.finished)):
            if len(self._events) == self._limit or self._looked == FACTS_LOOKED_MAX:
                self._cursor = (row.seq, position)
                return False
            self._looked += 1
            if position < told:
                event = event_of(row.facts[position], row.at_ns)
            else:
                event = event_of_end(row.finished[position - told])
            if self._is_wanted(event):
                self._events.append(event)
        return True

    def _is_wanted(self, event: m.Event) -> bool:
        if self._wants_all:
            return True
        if self._types and event.type not in self._types:
            return False
        if self._request.jobs and "task" not in event.fields and "tasks" not in event.fields:
            return False  # whose task it is, is looked up later
        return event.at_ns >= self._request.since_ns and is_about(event, self._tasks, self._workers)

    def _answer(self, more: bool) -> m.EventList:
        return m.EventList(self._request.request, self._events, self._cursor, more, self._missed)


def _is_meant(record: FinishedTask, request: m.ListHistory, states: frozenset[str]) -> bool:
    if request.job and record.job != request.job:
        return False
    if request.kind and record.kind != request.kind:
        return False
    return not states or record.state in states
