"""Follow tasks over a connection of its own: the protocol has no "unwatch" but to hang up."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator

from schedd.client.connection import Connection
from schedd.errors import ScheddError
from schedd.wire.messages import AttemptReport, Selection, TaskDone, Watching, WatchTasks

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


async def watch(
    connection: Connection, selection: Selection, *, results: bool, reports: bool
) -> AsyncGenerator[Watching | TaskDone | AttemptReport, None]:
    """Yield `Watching`, then what comes, until all tasks have ended. Closes the connection. Raises ScheddError."""
    try:
        inbox = Inbox(connection)
        watching = await connection.request(Watching, WatchTasks, selection, results, reports)
        yield watching
        left_count = watching.total
        while left_count > 0:
            event = await inbox.get()
            left_count -= isinstance(event, TaskDone)
            yield event
    finally:
        connection.close()
