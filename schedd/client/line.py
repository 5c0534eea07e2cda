"""The client's line to the daemon, whichever connection carries it: a daemon that restarts is waited for.

A connection that was there and is lost is made again, with growing pauses and jitter, for `reconnect_s` at most.
Requests that were under way are asked again: all of them are such that twice is as good as once, or are named so that
the daemon knows the second for what it is. Before the first connection nothing is waited for: a wrong address is told
at once.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from itertools import count
from typing import Any

from schedd.address import Address
from schedd.client.connection import Answer, Connection, open_connection
from schedd.credentials import Credentials, find_credentials
from schedd.errors import ConnectionLost, RequestRefused, ScheddError
from schedd.log import Log
from schedd.wire.messages import SHUTTING_DOWN, ClientRequest, Welcome

#: Covers the restart of a head node, not only of its daemon.
RECONNECT_S = 300.0
#: The daemon remembers submits for longer than anybody may try to send them again.
RECONNECT_S_MAX = 1800.0
#: Pauses between two tries: uniform between 0 and a span that doubles from the first to the second of these.
PAUSE_S, PAUSE_S_MAX = 0.1, 3.0
#: A connection that was lost sooner is not made again at once.
SHORT_LIFE_S = 0.2
#: A daemon that takes so long to greet is told of as one that is away.
SILENCE_S = 3.0
#: A request that ends every connection that it is sent on is at fault itself.
TRIES_MAX = 20

#: What a daemon says that is about to be there again, or that has too much to do just now.
_NOT_NOW = (SHUTTING_DOWN, "too_many_connections")

log = Log("schedd.client")

OnChange = Callable[[ScheddError | None], None]


def is_away(error: object) -> bool:
    """Whether an error may pass by itself: the daemon is not there, or not yet."""
    return isinstance(error, ConnectionLost) or (isinstance(error, RequestRefused) and error.code in _NOT_NOW)


class Line:
    """Makes connections and keeps one. Belongs to the running loop.

    reconnect_s: seconds; 0: a lost connection is told at once. `on_change` is told when the daemon is away, with the
    reason, and with None when it is back. credentials: None: those that the environment names, read again for each
    connection.
    """

    def __init__(
        self,
        address: Address,
        program: str,
        reconnect_s: float,
        on_change: OnChange | None = None,
        credentials: Credentials | None = None,
    ) -> None:
        self.address = address
        self.reconnect_s = reconnect_s
        #: The newest connection, None before the first.
        self.connection: Connection | None = None
        #: Why there will be no connection by itself any more: closed, or given up. None as long as there may be.
        self.error: ScheddError | None = None
        #: Whether somebody waits for what only a connection can bring.
        self.is_wanted: Callable[[], bool] = lambda: False
        #: Told of each new connection, and of the end of all hope.
        self.on_up: Callable[[Connection], None] = lambda connection: None
        self.on_down: Callable[[ScheddError], None] = lambda error: None
        self._program = program
        self._credentials = credentials
        self._on_change = on_change or self._log_change
        self._welcome: Welcome | None = None
        self._is_closed = False
        self._made_at: float | None = None
        self._reaching: asyncio.Task[Connection] | None = None

    @property
    def live(self) -> Connection | None:
        """The connection, if it can be used."""
        connection = self.connection
        return connection if connection is not None and connection.error is None else None

    def goes_on(self, error: object) -> bool:
        """Whether what failed with this error will be tried again on another connection."""
        return self.reconnect_s > 0 and not self._is_closed and is_away(error)

    async def connect(self) -> tuple[Connection, Welcome]:
        """Return the connection and its greeting, making one where there is none. Raises ScheddError."""
        if self.live is None:
            reaching = self._reach()
            try:
                await asyncio.shield(reaching)
            except asyncio.CancelledError:
                if reaching.cancelled():  # and not we: the client was closed meanwhile
                    raise ConnectionLost("this client is closed") from None
                raise
        assert self.connection is not None
        assert self._welcome is not None
        return self.connection, self._welcome

    async def request(self, answer: type[Answer], kind: Callable[..., ClientRequest], *fields: Any) -> Answer:
        """Ask, and ask again where the connection is lost before the answer. Raises ScheddError."""
        for _ in range(TRIES_MAX):
            connection, _ = await self.connect()
            try:
                return await connection.request(answer, kind, *fields)
            except ScheddError as error:
                if not self.goes_on(error):
                    raise
                last = error
        raise last

    async def open(self, *, again: bool = False) -> tuple[Connection, Welcome]:
        """Make a connection that is not kept, for a watch; `again`: in the place of one that was lost.

        Raises ScheddError, where that took as long as it may, too.
        """
        return await self._open(again or self._is_patient)

    @property
    def _is_patient(self) -> bool:
        # A daemon that was never there is not waited for, and who has given up once is not made to wait again.
        return self.connection is not None and self.error is None

    async def _open(self, patient: bool) -> tuple[Connection, Welcome]:
        if self._is_closed:
            raise ConnectionLost("this client is closed")
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (self.reconnect_s if patient else 0)
        is_told = False

        def tell(error: ScheddError) -> None:
            nonlocal is_told
            if not is_told:
                self._on_change(error)
            is_told = True

        for number in count():
            try:
                opened = await self._greeted(tell)
            except ScheddError as error:
                pause_s = random.uniform(0, min(PAUSE_S_MAX, PAUSE_S * 2.0 ** min(number, 30)))
                if self._is_closed or not is_away(error) or loop.time() + pause_s >= deadline:
                    if number and is_away(error):
                        raise self._given_up(error) from error
                    raise
                tell(error)
                await asyncio.sleep(pause_s)
            else:
                if is_told:
                    self._on_change(None)
                return opened
        raise AssertionError("not reached")

    async def _greeted(self, tell: Callable[[ScheddError], None]) -> tuple[Connection, Welcome]:
        """Try once; told is a silence meanwhile."""
        shown = self._credentials if self._credentials is not None else find_credentials()
        silence = ConnectionLost(f"no greeting from {self.address} yet, it may be starting")
        remark = asyncio.get_running_loop().call_later(SILENCE_S, tell, silence)
        try:
            return await open_connection(self.address, self._program, shown)
        finally:
            remark.cancel()

    def close(self) -> None:
        """End it all; whatever waits for an answer gets ConnectionLost."""
        self._is_closed = True
        if self._reaching is not None:
            self._reaching.cancel()
        if self.connection is not None:
            self.connection.close()
        self._down(ConnectionLost("this client is closed"))

    # -------------------------------------------------------------------------------------------------------- inside

    def want(self) -> None:
        """Try to get a connection, without waiting for it."""
        if self.live is None and not self._is_closed:
            self._reach()

    def _reach(self) -> asyncio.Task[Connection]:
        if self._reaching is None:
            self._reaching = asyncio.ensure_future(self._make())
            self._reaching.add_done_callback(_look_at)
        return self._reaching

    async def _make(self) -> Connection:
        loop = asyncio.get_running_loop()
        try:
            if self._made_at is not None and loop.time() - self._made_at < SHORT_LIFE_S:
                await asyncio.sleep(random.uniform(0, SHORT_LIFE_S))  # it may be what we send that ends it
            connection, welcome = await self.open()
        except ScheddError as error:
            self._down(error)
            raise
        finally:
            self._reaching = None
        self.connection, self._welcome, self.error = connection, welcome, None
        self._made_at = loop.time()
        connection.on_lost = self._on_lost
        self.on_up(connection)
        if connection.error is not None:  # lost before anybody listened
            self._on_lost(connection.error)
        return connection

    def _on_lost(self, error: ScheddError) -> None:
        if not self.goes_on(error):
            self._down(error)
        elif self.is_wanted():
            self._reach()

    def _down(self, error: ScheddError) -> None:
        self.error = error
        self.on_down(error)

    def _given_up(self, error: ScheddError) -> ConnectionLost:
        text = f"the daemon at {self.address} has been away for {self.reconnect_s:g} s: {error.message}"
        return ConnectionLost(text, "what was submitted goes on when it is back; see `schedd tasks`")

    def _log_change(self, error: ScheddError | None) -> None:
        if error is None:
            log.warning("daemon_back", address=self.address)
        else:
            log.warning("daemon_away", address=self.address, reason=error.message, trying_for_s=self.reconnect_s)


def _look_at(task: asyncio.Task[Any]) -> None:
    """Nobody may have waited for it, and then nobody need be told."""
    if not task.cancelled():
        task.exception()
