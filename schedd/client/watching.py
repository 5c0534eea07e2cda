"""Follow tasks over a connection of its own: the protocol has no "unwatch" but to hang up."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncGenerator

from schedd.client.connection import Connection
from schedd.client.line import SHORT_LIFE_S, Line
from schedd.client.pipeline import WATCHED_TOGETHER
from schedd.core.model import TaskId
from schedd.errors import RequestRefused, ScheddError
from schedd.wire.messages import UNKNOWN_TASK, AttemptReport, Selection, TaskDone, Watching, WatchTasks

#: Events that wait for a slow reader before the socket, and with it the daemon's outbox, has to.
INBOX_EVENTS_MAX = 10_000


class Inbox:
    """What a connection pushed and nobody has read. Stops the connection from reading above a bound."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._events: deque[TaskDone | AttemptReport] = deque()
        self._arrived = asyncio.Event()
        self._is_paused = False
        connection.on_done = connection.on_reports = self._put
        connection.on_lost = self._on_lost

    def _put(self, events: list[TaskDone] | list[AttemptReport]) -> None:
        self._events.extend(events)
        self._arrived.set()
        if len(self._events) > INBOX_EVENTS_MAX and not self._is_paused:
            self._is_paused = True
            self._connection.pause_reading()

    def _on_lost(self, _: ScheddError) -> None:
        self._arrived.set()

    async def get(self) -> TaskDone | AttemptReport:
        """Return the next event. Raises ScheddError once the connection has ended and all before it is read."""
        while not self._events:
            if self._connection.error is not None:
                raise self._connection.error
            if self._is_paused:
                self._is_paused = False
                self._connection.resume_reading()
            self._arrived.clear()
            await self._arrived.wait()
        return self._events.popleft()


class Watcher:
    """One watch, over as many connections as it takes."""

    def __init__(self, line: Line, *, results: bool, reports: bool) -> None:
        self._line = line
        self._wanted = (results, reports)
        self._connection: Connection | None = None
        self._inbox: Inbox | None = None
        #: Tasks whose end was not seen.
        self.left: set[TaskId] = set()

    async def begin(self, selection: Selection) -> Watching:
        """Ask for the tasks. Raises ScheddError."""
        again = False
        while True:
            connection, _ = await self._open(again=again)
            try:
                watching = await connection.request(Watching, WatchTasks, selection, *self._wanted, True)
            except ScheddError as error:
                if not self._line.goes_on(error):
                    raise
                again = True
            else:
                self.left = set(watching.ids)
                return watching

    async def get(self) -> TaskDone | AttemptReport:
        """Return what comes next, each end once. Raises ScheddError."""
        while True:
            lost = self._inbox is None or self._connection is None
            connection, inbox = await self._open(again=True) if lost else (self._connection, self._inbox)
            assert connection is not None
            assert inbox is not None
            try:
                if lost:
                    await self._ask_again(connection)
                event = await inbox.get()
            except ScheddError as error:
                if not self._line.goes_on(error):
                    raise
                self._inbox = None
                continue
            if not isinstance(event, TaskDone):
                return event
            if event.task_id in self.left:
                self.left.discard(event.task_id)
                return event

    async def _open(self, *, again: bool) -> tuple[Connection, Inbox]:
        self.close()
        if again:
            await asyncio.sleep(random.uniform(0, SHORT_LIFE_S))  # it may be what we ask that ends it
        self._connection, _ = await self._line.open(again=again)
        self._inbox = Inbox(self._connection)
        return self._connection, self._inbox

    async def _ask_again(self, connection: Connection) -> None:
        """Ask for what is left on a new connection. Raises ScheddError."""
        ids = sorted(self.left)
        for start in range(0, len(ids), WATCHED_TOGETHER):
            chosen = Selection(ids=ids[start : start + WATCHED_TOGETHER])
            answer = await connection.request(Watching, WatchTasks, chosen, *self._wanted, False, True)
            if answer.unknown:
                hint = "has the daemon lost its journal?"
                raise RequestRefused(f"task {answer.unknown[0]} is not known any more", hint, UNKNOWN_TASK)

    def close(self) -> None:
        """Hang up."""
        if self._connection is not None:
            self._connection.close()


async def watch(
    line: Line, selection: Selection, *, results: bool, reports: bool
) -> AsyncGenerator[Watching | TaskDone | AttemptReport, None]:
    """Yield `Watching`, then what comes, until all tasks have ended; then hang up. Raises ScheddError."""
    watcher = Watcher(line, results=results, reports=reports)
    try:
        yield await watcher.begin(selection)
        while watcher.left:
            yield await watcher.get()
    finally:
        watcher.close()
