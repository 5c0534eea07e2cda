"""Stays connected to the daemon: connects, greets, beats, and connects again, until there is no point in it."""

from __future__ import annotations

import asyncio
import os
import random
import ssl
from collections.abc import Callable, Sequence

from schedd.address import Address
from schedd.config import WorkerSettings
from schedd.core.model import WorkerId
from schedd.credentials import Credentials, credential, find_credentials
from schedd.errors import AuthenticationError, ConfigError
from schedd.log import Log
from schedd.tls import client_context, explain
from schedd.wire.messages import (
    AUTH_REQUIRED,
    BAD_TOKEN,
    BAD_VERSION,
    CERTIFICATE_REQUIRED,
    FORBIDDEN,
    NAME_TAKEN,
    NOT_TRUSTED,
    TLS_NOT_SPOKEN,
    TLS_REQUIRED,
    FromWorker,
    Heartbeat,
    HeartbeatReply,
    Hello,
    Refused,
    ToWorker,
    Welcome,
)
from schedd.worker.connection import Connection
from schedd.worker.heartbeats import Heartbeats
from schedd.worker.probe import Probe

EXIT_REFUSED = 3
EXIT_UNREACHABLE = 4

CONNECT_TIMEOUT_S = 10.0
#: The name may still belong to our own last connection, which the daemon has not yet given up.
NAME_TAKEN_S = 60.0
#: How long the last words may take to be sent.
CLOSE_TIMEOUT_S = 3.0

#: What is wrong with our own settings, if it was wrong from the start; else it may be put right at the daemon.
_OURS_TO_MEND = frozenset(
    {AUTH_REQUIRED, BAD_TOKEN, FORBIDDEN, TLS_REQUIRED, TLS_NOT_SPOKEN, CERTIFICATE_REQUIRED, NOT_TRUSTED}
)

_log = Log("schedd.worker")


def worker_credentials(settings: WorkerSettings) -> Credentials:
    """What this worker shows of itself. Raises ConfigError."""
    given = settings.token_file
    if not given and "SCHEDD_TOKEN_FILE" not in os.environ and credential("schedd.token") is not None:
        given = "credential:schedd.token"
    return find_credentials(given, settings.tls_ca, settings.tls_cert, settings.tls_key, settings.tls_name)


class Link:
    """The worker's line to the daemon, whichever connection carries it just now.

    `make_hello` is asked for each greeting. `on_messages` gets all that comes after it, `on_change` says that
    `is_up` or `is_writable` may have changed.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        address: Address,
        name: WorkerId,
        make_hello: Callable[[], Hello],
        on_messages: Callable[[list[ToWorker]], None],
        on_change: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._credentials = worker_credentials(settings)
        self._address = address
        self._was_up = False
        self._name = name
        self._make_hello = make_hello
        self._on_messages = on_messages
        self._on_change = on_change
        self._loop = asyncio.get_running_loop()
        self._probe = Probe(gpus=settings.gpus == "auto")
        self._connection: Connection | None = None
        #: The daemon has welcomed this connection.
        self.is_up = False
        self._refusal: Refused | None = None
        self._name_taken_since: float | None = None
        self._heartbeats = Heartbeats(self._loop.call_later, self._beat)
        self._is_closing = False

    @property
    def has_token(self) -> bool:
        return self._credentials.token is not None

    @property
    def is_connected(self) -> bool:
        """There is somebody at the other end, welcomed or not."""
        return self._connection is not None

    @property
    def is_writable(self) -> bool:
        return self.is_up and self._connection is not None and not self._connection.is_paused

    def send(self, messages: Sequence[FromWorker]) -> None:
        if self._connection is not None:
            self._connection.send(messages)

    def cut(self, reason: str) -> None:
        """End the connection at once; there will be another."""
        if self._connection is not None:
            self._connection.abort(reason)

    async def run(self) -> int:
        """Stay connected. Returns an exit code when there is no point in going on."""
        failed_count = 0
        alone_since = self._loop.time()
        while True:
            reason, was_up = await self._connect_once()
            now = self._loop.time()
            if was_up:
                self._was_up = True
                failed_count, alone_since, self._name_taken_since = 0, now, None
                _log.warning("worker_disconnected", worker=self._name, daemon=self._address, reason=reason)
            else:
                _log.info("connect_failed", worker=self._name, daemon=self._address, reason=reason)
            if self._is_refused_for_good(now):
                return EXIT_REFUSED
            if 0 < self._settings.give_up_after_s <= now - alone_since:
                _log.error("worker_gave_up", worker=self._name, daemon=self._address, after_s=now - alone_since)
                return EXIT_UNREACHABLE
            await asyncio.sleep(self._delay_s(failed_count))
            failed_count += 1

    async def close(self) -> None:
        """Send what was written, and end the connection."""
        self._is_closing = True
        connection = self._connection
        if connection is not None:
            connection.close("the worker leaves")
            await asyncio.wait([connection.lost], timeout=CLOSE_TIMEOUT_S)
            connection.abort("the worker leaves")
        self._heartbeats.cancel()
        self._probe.close()

    async def _connect_once(self) -> tuple[str, bool]:
        """Connect and serve until the connection is over. Returns why it is, and whether it was welcomed."""
        self._refusal = None
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                connection = await self._open()
        except ssl.SSLError as error:
            return self._distrust(explain(error, self._address)), False
        except ConfigError as error:  # a certificate that was exchanged for one that cannot be used
            return error.message, False
        except (OSError, TimeoutError) as error:
            return str(error) or "no answer", False
        self._connection = connection
        no_welcome = self._loop.call_later(CONNECT_TIMEOUT_S, self._give_up_handshake, connection)
        try:
            connection.greet(self._make_hello(), self._credentials.token)
            reason = await connection.lost
            if connection.error is not None:
                self._distrust(connection.error)
            was_up = self.is_up
        finally:
            no_welcome.cancel()
            self._connection, self.is_up = None, False
            connection.abort("over")
            self._on_change()
        if self._is_closing:
            await self._loop.create_future()  # until we are cancelled: there is nothing to connect for
        return self._refusal.message if self._refusal is not None else reason, was_up

    def _distrust(self, error: AuthenticationError) -> str:
        self._refusal = Refused(NOT_TRUSTED, error.message, error.hint)
        return error.message

    async def _open(self) -> Connection:
        def make() -> Connection:
            return Connection(self._address, self._on_frame, self._on_change)

        self._renew()
        where, shown = self._address, self._credentials
        if where.path:
            return (await self._loop.create_unix_connection(make, where.path))[1]
        if not shown.ca:
            return (await self._loop.create_connection(make, where.host, where.port))[1]
        context, name = client_context(shown), shown.name or where.host
        opened = await self._loop.create_connection(make, where.host, where.port, ssl=context, server_hostname=name)
        return opened[1]

    def _renew(self) -> None:
        """Read the token again, which may be another by now; one that was handed over by standard input stays."""
        given = self._settings.token_file or os.environ.get("SCHEDD_TOKEN_FILE")
        if self._was_up and given != "-":
            try:
                self._credentials = worker_credentials(self._settings)
            except ConfigError as error:
                _log.warning("token_not_read", reason=error.message)

    def _give_up_handshake(self, connection: Connection) -> None:
        if not self.is_up:
            connection.abort("the greeting was not answered")

    def _is_refused_for_good(self, now: float) -> bool:
        refusal = self._refusal
        if refusal is None:
            return False
        is_lasting = refusal.code == BAD_VERSION or (refusal.code in _OURS_TO_MEND and not self._was_up)
        if refusal.code == NAME_TAKEN:
            if self._name_taken_since is None:
                self._name_taken_since = now
            is_lasting = now - self._name_taken_since > NAME_TAKEN_S
        if is_lasting or refusal.code in _OURS_TO_MEND:
            write = _log.error if is_lasting else _log.warning
            write("worker_refused", worker=self._name, reason=refusal.message, hint=refusal.hint or None)
        return is_lasting

    def _delay_s(self, failed_count: int) -> float:
        """Full jitter: all workers of a daemon that restarts must not come at once."""
        most = self._settings.reconnect_delay_max_s
        return random.uniform(0, min(most, self._settings.reconnect_delay_s * 2 ** min(failed_count, 30)))

    def _on_frame(self, messages: list[ToWorker]) -> None:
        for message in messages:
            if isinstance(message, Welcome):
                self._on_welcome(message)
            elif isinstance(message, HeartbeatReply):
                self._heartbeats.go_on(message.interval_s)
            elif isinstance(message, Refused):
                self._refusal = message
        self._on_messages(messages)

    def _on_welcome(self, welcome: Welcome) -> None:
        self.is_up = True
        self._heartbeats.begin(welcome.heartbeat_interval_s)
        _log.info(
            "worker_connected",
            worker=self._name,
            daemon=self._address,
            epoch=welcome.epoch,
            version=welcome.version,
            policy=welcome.policy,
        )

    def _beat(self) -> None:
        connection = self._connection
        if connection is None or not self.is_up:
            return
        silent_s = self._loop.time() - connection.heard_at
        if self._heartbeats.is_too_long(silent_s):
            connection.abort(f"the daemon has said nothing for {silent_s:.0f} s")
            return
        # While the daemon does not read, what is buffered proves as much as one more would.
        if not connection.is_paused:
            connection.send([Heartbeat(self._probe.latest)])
        self._probe.ask()
        self._heartbeats.go_on()
