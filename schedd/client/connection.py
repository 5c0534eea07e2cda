"""One connection to the daemon: the greeting, requests and their answers, and what the daemon pushes.

Everything that is sent in one turn of the loop leaves as one frame with one write. Answers and pushes reach their
callbacks in the order in which they came, in the same turn: a `TaskDone` right behind its `Submitted` finds the id
known.
"""

from __future__ import annotations

import asyncio
import getpass
import os
import secrets
import socket
import ssl
from collections.abc import Callable
from typing import Any, TypeVar, cast

import msgspec

from schedd import __version__
from schedd.address import Address
from schedd.client.checking import checked_message
from schedd.credentials import NONE, Credentials
from schedd.errors import (
    AuthenticationError,
    ConfigError,
    ConnectionLost,
    LocalProtocolError,
    RemoteProtocolError,
    RequestRefused,
    ScheddError,
)
from schedd.keepalive import watch_peer
from schedd.tls import channel_binding, client_context, explain
from schedd.wire.auth import NONCE_BYTES, Prover
from schedd.wire.framing import FRAME_BYTES_MAX, PREFIX_BYTES, FrameReader, encode_frame, frame_of
from schedd.wire.messages import (
    MESSAGES_MAX,
    PROTOCOL,
    AttemptReport,
    Challenge,
    ClientHello,
    ClientRequest,
    Hello,
    Refused,
    RequestFailed,
    TaskDone,
    TaskReports,
    TasksDone,
    ToClient,
    Welcome,
    decode_to_client,
)

#: A machine that is there takes a connection within milliseconds; ten seconds cover one under heavy load.
CONNECT_TIMEOUT_S = 10.0
#: So does a daemon greet; one that is started anew on a large journal has connections wait meanwhile.
GREETING_TIMEOUT_S = 60.0

Answer = TypeVar("Answer")
#: Takes the answer to a request, or the error that stands for it. Called once.
OnAnswer = Callable[[Any], None]


def _ignore(_: object) -> None:
    return None


class Connection(asyncio.Protocol):
    """The client's end of a connection. Made by `open_connection`; belongs to the running loop.

    The handlers may be replaced: `on_done` and `on_reports` take what the daemon pushes, `on_lost` the reason why the
    connection ended (once), `on_writable` is called when the socket takes data again after it was full.
    """

    def __init__(self, address: Address, credentials: Credentials = NONE) -> None:
        self.address = address
        self._token = credentials.token
        self._shows_certificate = bool(credentials.cert)
        self._prover: Prover | None = None
        self._hello = b""
        self.on_done: Callable[[list[TaskDone]], None] = _ignore
        self.on_reports: Callable[[list[AttemptReport]], None] = _ignore
        self.on_lost: Callable[[ScheddError], None] = _ignore
        self.on_writable: Callable[[], None] = lambda: None
        #: Why the connection cannot be used any more; None as long as it can.
        self.error: ScheddError | None = None
        #: False while the socket's buffer is full; requests then wait here.
        self.is_writable = True
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._reader = FrameReader()
        self._frame_bytes_max = FRAME_BYTES_MAX
        self._welcome: asyncio.Future[Welcome | ScheddError] = self._loop.create_future()
        self._requests: dict[int, OnAnswer] = {}
        self._number = 0
        self._outgoing: list[ClientRequest] = []
        self._flushing = False

    # ---------------------------------------------------------------------------------------------------- requests

    def number(self) -> int:
        """Return a number for the next request."""
        self._number += 1
        return self._number

    def send(self, message: ClientRequest, on_answer: OnAnswer) -> None:
        """Send a request in this turn's frame; `on_answer` gets the answer or a ScheddError, never both."""
        if self.error is not None:
            on_answer(self.error)
            return
        self._requests[message.request] = on_answer
        self._outgoing.append(message)
        if not self._flushing and self.is_writable:
            self._flushing = True
            self._loop.call_soon(self._flush)

    async def request(self, answer: type[Answer], kind: Callable[..., ClientRequest], *fields: Any) -> Answer:
        """Send `kind(number, *fields)` and wait for its answer.

        Raises ScheddError, and TypeError naming a field that is of another type.
        """
        future: asyncio.Future[Any] = self._loop.create_future()
        message = checked_message(kind(self.number(), *fields))
        self.send(message, lambda result: None if future.done() else future.set_result(result))
        result = await future
        if isinstance(result, ScheddError):
            raise result
        if not isinstance(result, answer):
            raise RemoteProtocolError(f"the daemon answered {kind.__name__} with {type(result).__name__}")
        return result

    def _flush(self) -> None:
        self._flushing = False
        if self.is_writable and self._outgoing and self.error is None:
            messages, self._outgoing = self._outgoing, []
            for first in range(0, len(messages), MESSAGES_MAX):
                self._write(messages[first : first + MESSAGES_MAX])

    def _write(self, messages: list[ClientRequest]) -> None:
        try:
            frame = encode_frame(messages)
            if len(frame) - PREFIX_BYTES > self._frame_bytes_max:
                raise LocalProtocolError(
                    f"a request of {len(frame)} bytes is above the bound of {self._frame_bytes_max}"
                )
        except LocalProtocolError as error:
            if len(messages) == 1:
                self._answer(messages[0].request, error)
                return
            # One of them is at fault; the others must not suffer for it.
            for message in messages:
                self._write([message])
            return
        assert self._transport is not None
        self._transport.write(frame)

    def _answer(self, number: int, result: Any) -> None:
        # An unknown number is an answer to a request that was given up.
        on_answer = self._requests.pop(number, None)
        if on_answer is not None:
            on_answer(result)

    # ---------------------------------------------------------------------------------------------------- greeting

    async def greet(self, program: str) -> Welcome:
        """Introduce this client, prove its token, and wait for the daemon's greeting. Raises ScheddError."""
        assert self._transport is not None
        hello = Hello(PROTOCOL, __version__, ClientHello(program, _user(), socket.gethostname(), os.getpid()))
        self._hello = msgspec.msgpack.encode(hello)
        if self._token is not None:
            self._prover = Prover(self._token, channel_binding(self._transport), secrets.token_bytes(NONCE_BYTES))
            self._transport.write(encode_frame(self._prover.knock(__version__)))
        else:
            self._transport.write(frame_of(self._hello))
        welcome = await self._welcome
        if isinstance(welcome, ScheddError):
            raise welcome
        if welcome.protocol != PROTOCOL:
            raise RemoteProtocolError(
                f"the daemon is schedd {welcome.version} with protocol {welcome.protocol}, "
                f"this client is schedd {__version__} with protocol {PROTOCOL}",
                "install the same version on both sides",
            )
        if welcome.frame_bytes_max:
            self._frame_bytes_max = min(FRAME_BYTES_MAX, welcome.frame_bytes_max)
        return welcome

    # ---------------------------------------------------------------------------------------------------- receiving

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        watch_peer(transport)

    def data_received(self, data: bytes) -> None:
        try:
            for body in self._reader.feed(data):
                for message in decode_to_client(body):
                    self._take(message)
        except (RemoteProtocolError, AuthenticationError) as error:
            self._end(error)

    def _take(self, message: ToClient) -> None:
        if isinstance(message, TasksDone):
            self.on_done(message.tasks)
        elif isinstance(message, TaskReports):
            self.on_reports(message.reports)
        elif isinstance(message, RequestFailed):
            self._answer(message.request, RequestRefused(message.message, message.hint, message.code))
        elif isinstance(message, Refused):
            hint = message.hint or f"this client is schedd {__version__} with protocol {PROTOCOL}"
            self._end(RequestRefused(message.message, hint, message.code))
        elif isinstance(message, Welcome):
            if self._prover is not None:
                self._prover.check(message)
            if not self._welcome.done():
                self._welcome.set_result(message)
        elif isinstance(message, Challenge):
            self._prove(message)
        else:
            self._answer(message.request, message)

    def _prove(self, challenge: Challenge) -> None:
        if self._prover is None or self._transport is None:
            raise RemoteProtocolError("the daemon asks for a proof of a token that nobody has named")
        proof = self._prover.prove(challenge, self._hello)
        self._transport.write(encode_frame(proof) + frame_of(self._hello))

    def pause_writing(self) -> None:
        self.is_writable = False

    def resume_writing(self) -> None:
        self.is_writable = True
        self._flush()
        self.on_writable()

    def pause_reading(self) -> None:
        """Take nothing more from the socket until `resume_reading`: the reader of the pushes is behind."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Take from the socket again."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    # ---------------------------------------------------------------------------------------------------------- end

    def connection_lost(self, exc: Exception | None) -> None:
        if isinstance(exc, ssl.SSLError):
            self._end(explain(exc, self.address))
        reason = f": {exc}" if exc is not None else ""
        hint = "is it still running?"
        if self._shows_certificate and not self._welcome.done():
            hint = "it may not accept our certificate: its log says more"
        self._end(ConnectionLost(f"the daemon at {self.address} ended the connection{reason}", hint))

    def close(self) -> None:
        """End the connection; whatever waits for an answer gets ConnectionLost."""
        self._end(ConnectionLost("the connection was closed by this client"))

    def _end(self, error: ScheddError) -> None:
        if self.error is not None:
            return
        self.error = error
        if self._transport is not None:
            self._hang_up(self._transport)
        if not self._welcome.done():
            self._welcome.set_result(error)
        self._outgoing.clear()
        requests, self._requests = self._requests, {}
        for on_answer in requests.values():
            on_answer(error)
        self.on_lost(error)

    @staticmethod
    def _hang_up(transport: asyncio.Transport) -> None:
        # The farewell of TLS takes a round trip, which a loop that ends with its last client does not wait for; there
        # is nothing on its way that anybody still wants.
        if transport.get_extra_info("ssl_object") is not None:
            transport.abort()
        else:
            transport.close()


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no entry for this uid, as in many containers
        return str(os.getuid())


async def open_connection(
    address: Address, program: str, credentials: Credentials = NONE
) -> tuple[Connection, Welcome]:
    """Connect and greet.

    Raises ConnectionLost where no daemon answers, RequestRefused where it declines, RemoteProtocolError where the peer
    is something else or another version, AuthenticationError where it is not known who it is, and ConfigError for
    certificates that cannot be used.
    """
    loop = asyncio.get_running_loop()
    connection = Connection(address, credentials)
    is_taken = False

    def taken() -> Connection:
        """Asked for by asyncio once somebody takes the connection, before TLS; uvloop asks at the beginning."""
        nonlocal is_taken
        is_taken = True
        limit.reschedule(loop.time() + GREETING_TIMEOUT_S)
        return connection

    try:
        # Before the clock runs: to read all certificates of the system takes a while.
        context = client_context(credentials) if credentials.ca and not address.path else None
        async with asyncio.timeout(CONNECT_TIMEOUT_S) as limit:
            if address.path:
                await loop.create_unix_connection(taken, address.path)
            elif context is not None:
                await loop.create_connection(
                    taken,
                    address.host,
                    address.port,
                    ssl=context,
                    server_hostname=credentials.name or address.host,
                    ssl_handshake_timeout=2 * GREETING_TIMEOUT_S,  # ours comes first
                )
            else:
                await loop.create_connection(taken, address.host, address.port)
            return connection, await connection.greet(program)
    except TimeoutError:
        connection.close()
        if not is_taken:
            raise ConnectionLost(
                f"no daemon answers at {address} within {CONNECT_TIMEOUT_S:g} s", "is the address right?"
            ) from None
        raise ConnectionLost(
            f"no greeting from {address} within {GREETING_TIMEOUT_S:g} s",
            "the daemon may still be starting (its log says `restoring`), or this port belongs to another service",
        ) from None
    except ssl.SSLError as error:
        raise explain(error, address) from error
    except OSError as error:
        hint = (
            "start one with: schedd serve" if address.is_loopback else "is it running there, and is the address right?"
        )
        raise ConnectionLost(f"no daemon answers at {address} ({error.strerror or error})", hint) from error
    except ValueError as error:  # of a host that is no name, or the name for TLS
        connection.close()
        raise ConfigError(f"nobody can be reached at {address}: {error}") from error
    except BaseException:
        connection.close()
        raise
