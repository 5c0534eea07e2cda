"""Connections: accept, handshake, frames in, one write a turn out, and bounds on all of it.

A peer is nobody until its `Hello` was read: until then it may send one small frame, or as many as it takes to prove a
token, in bounded time. What goes to a peer is collected and written once at the end of a turn. What a peer does not
read stays here as it is, unencoded; a client that does not read is not read either, so it slows itself and not the
daemon.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, cast

from msgspec import structs

from schedd.core.model import TaskId, WorkerId
from schedd.errors import LocalProtocolError, RemoteProtocolError
from schedd.keepalive import watch_peer
from schedd.log import Log
from schedd.server.access import ANYBODY, OPEN, Access, Door, Identity, credentials
from schedd.server.arrivals import Arrival, Arrivals
from schedd.server.handshake import Denied, Handshake, token_wanted
from schedd.server.memory import Memory
from schedd.server.ports import Reactor, Timer
from schedd.server.watching import Watch
from schedd.wire import messages as m
from schedd.wire.framing import HELLO_BYTES_MAX, Body, FrameReader, encode_frame

log = Log("schedd.server")

#: Unsent bytes from which on a client is no longer read.
PAUSE_BYTES = 1024 * 1024
#: Messages of one frame; a single one may have megabytes.
MESSAGES_PER_FRAME_MAX = 16
#: Messages that wait for a peer that does not read: a worker that only talks is cut off above it.
OUTBOX_MESSAGES_MAX = 100_000
#: Tasks that messages of a peer name, and some more for each message, that may wait for their turn: a millisecond of
#: work or less. The rest of what it sent waits here, and the peer is not read meanwhile: so it slows itself only.
INTAKE_MAX = 24
#: The same of a client that is gone, or has said what is none of the protocol: nobody waits for the rest.
LAST_INTAKE_MAX = 1000
#: Who sends as much at a time as this is read again a moment later. That is some 200 MB/s, and it does not keep the
#: loop busy, so that the writer of the journal and other processes have their time.
GREEDY_BYTES = 64 * 1024
GREEDY_REST_S = 0.001
#: Ends told to a client in one message, and bytes of results in one frame.
DONE_PER_FRAME_MAX = 5000
RESULT_BYTES_PER_FRAME_MAX = 8 * 1024 * 1024
#: How a peer begins that speaks TLS: a record of its handshake.
TLS_RECORD = b"\x16\x03"


class Traffic:
    """Bytes of the wire, both ways, of workers and of clients."""

    __slots__ = ("from_clients", "from_workers", "to_clients", "to_workers")

    def __init__(self) -> None:
        self.from_clients = self.from_workers = self.to_clients = self.to_workers = 0


class Hub(Protocol):
    """What a connection needs of the daemon."""

    traffic: Traffic
    outbox_bytes_max: int
    handshake_timeout_s: float
    farewell_timeout_s: float
    reactor: Reactor
    memory: Memory
    access: Access
    arrivals: Arrivals

    def opened(self, peer: Peer) -> bool:
        """Count a new connection; False: there are too many."""

    def greeted(self, peer: Peer, hello: m.Hello) -> None:
        """Decide on a greeting: `welcome` or `refuse` the peer."""

    def decoded(self, peer: Peer, body: Body) -> list[Any]:
        """The messages in a frame of a peer that was welcomed. Raises RemoteProtocolError."""

    def received(self, peer: Peer, message: Any) -> None:
        """Take in a message of a peer that was welcomed."""

    def heard(self, worker_id: WorkerId) -> None:
        """Take in that a part of a frame has come from a worker."""

    def closed(self, peer: Peer) -> None:
        """Forget a connection."""

    def has_output(self, peer: Peer) -> None:
        """Have `peer.flush` called at the end of this turn."""

    def task_done(self, peer: Peer, task_id: TaskId, with_result: bool) -> m.TaskDone | None:
        """What to tell a watcher of a final task; None where it will be told later, from the journal."""


class Peer(asyncio.Protocol):
    """One connection, whoever is at its other end. door: what it came through; arrival: where that counted it."""

    def __init__(self, hub: Hub, door: Door = OPEN, arrival: Arrival | None = None) -> None:
        self._hub = hub
        self._door = door
        self._arrival = arrival
        self._handshake: Handshake | None = None
        self._reader = FrameReader(HELLO_BYTES_MAX, hub.memory.take)
        self._transport: asyncio.Transport | None = None
        self._timer: Timer | None = None
        self._outbox: deque[Any] = deque()
        self._done: list[tuple[TaskId, bool]] = []
        self._put_off: list[Callable[[], None]] = []
        #: Frames that came and have not been looked into, and messages of the one before that were not taken in yet.
        self._frames: deque[Body] = deque()
        self._arrived: deque[Any] = deque()
        #: Messages that were taken in and whose turn has not come, or the tasks that they name.
        self.under_way = 0
        #: The last event that came of a message of it, see `EngineLoop.post`.
        self.posted = 0
        self._dirty = False
        self._paused = False
        self._is_read = True
        #: It has sent a lot in one go: others are read before it is again.
        self._is_resting = False
        self._closing = False
        self._welcomed = False
        #: Set by the hub with the welcome: a worker's id, or None for a client.
        self.worker_id: WorkerId | None = None
        self.incarnation = ""
        self.name = "?"
        #: Who it is; as long as it was not welcomed, that says nothing.
        self.identity = ANYBODY
        #: The watches of a client, one for all tasks of which it wants to hear the same.
        self.watches: list[Watch] = []
        #: Numbers of its reads of output that no worker has answered yet.
        self.log_reads: set[int] = set()

    # ------------------------------------------------------------------------------------------ from the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        stream = self._transport = cast(asyncio.Transport, transport)
        stream.set_write_buffer_limits(PAUSE_BYTES)
        watch_peer(transport)
        peername = stream.get_extra_info("peername")
        self.name = f"{peername[0]}:{peername[1]}" if isinstance(peername, tuple) else "unix"
        if self._door.asks_token and self._arrival is None:
            self._arrival = self._hub.arrivals.enter(str(peername[0]) if isinstance(peername, tuple) else "")
            if self._arrival is None:
                self.abort()
                return
        if not self._hub.opened(self):
            self.refuse("too_many_connections", "the daemon has as many connections as it may have")
            return
        if self._door.asks_certificate and not stream.get_extra_info("ssl_object").getpeercert():
            log.warning("peer_denied", peer=self.name, code=m.CERTIFICATE_REQUIRED, reason="shows no certificate")
            text = "this daemon asks for a certificate of the peer"
            self.refuse(m.CERTIFICATE_REQUIRED, text, "give one that its authority has made: --tls-cert and --tls-key")
            return
        self._handshake = Handshake(self._hub.access, self._door, self._identify(stream))
        self._reader.frame_bytes_max = self._handshake.frame_bytes_max
        self._timer = self._hub.reactor.call_later(self._hub.handshake_timeout_s, self._handshake_late)

    def _identify(self, stream: asyncio.Transport) -> Identity | None:
        """Who the peer is without saying anything; None: nobody yet."""
        if self._door.is_local:
            sock: socket.socket = stream.get_extra_info("socket")
            return self._hub.access.of_user(credentials(sock))
        return None if self._door.asks_token else ANYBODY

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        if self.worker_id is not None:
            self._hub.traffic.from_workers += len(data)
        else:
            self._hub.traffic.from_clients += len(data)
        try:
            if not self._welcomed:
                self._introduce(data)
                if not self._welcomed or self._closing:
                    return
                data = b""
            frames = self._reader.feed(data)
        except RemoteProtocolError as error:
            self._frames.extend(self._reader.cut)  # what came before is done
            self._take_in_all()
            self._refuse_for(error)
            return
        if not frames and self.worker_id is not None:
            # A large frame may be longer on its way than its sender may be silent.
            self._hub.heard(self.worker_id)
        self._frames.extend(frames)
        if len(data) >= GREEDY_BYTES and not self._is_resting:
            # Else the event loop would read on as long as there is more.
            self._is_resting = True
            self._hub.reactor.call_later(GREEDY_REST_S, self._rested)
        self.take_in()

    def _rested(self) -> None:
        self._is_resting = False
        self._read_or_not()

    def _refuse_for(self, error: RemoteProtocolError) -> None:
        log.warning("protocol_error", peer=self.name, worker=self.worker_id, error=error.message)
        self.refuse(m.BAD_REQUEST, error.message, error.hint)

    def _introduce(self, data: bytes) -> None:
        """Take in frames of a peer that is not welcome yet, each by itself: it says how large the next may be."""
        handshake = self._handshake
        if handshake is None:
            return
        try:
            while not self._welcomed and not self._closing:
                frames = self._next_greeting(handshake, data)
                if not frames:
                    return
                data = b""
                said = handshake.take(frames[0])
                self._reader.frame_bytes_max = handshake.frame_bytes_max
                self.identity = handshake.identity or self.identity
                if isinstance(said, m.Challenge):
                    self.send(said)
                elif said is not None:
                    self._hub.greeted(self, said)
        except Denied as denied:
            log.warning("peer_denied", peer=self.name, code=denied.code, reason=denied.why)
            self.refuse(denied.code, denied.message, denied.hint)
        except RemoteProtocolError as error:
            self._refuse_for(error)

    def _next_greeting(self, handshake: Handshake, data: bytes) -> list[Body]:
        """The next frame, or none yet. Raises Denied where it is plain what is wrong, else RemoteProtocolError."""
        try:
            return self._reader.feed(data, 1)
        except RemoteProtocolError:
            if data.startswith(TLS_RECORD):
                hint = "set [tls] cert and key in config.toml, or connect without TLS"
                raise Denied(m.TLS_NOT_SPOKEN, "the peer speaks TLS, and this port does not", hint) from None
            if handshake.identity is None:  # the greeting of a worker, perhaps
                raise token_wanted() from None
            raise

    def pause_writing(self) -> None:
        self._paused = True
        self._read_or_not()

    def resume_writing(self) -> None:
        self._paused = False
        self._read_or_not()
        questions, self._put_off = self._put_off, []
        for question in questions:
            question()
        if self._outbox or self._done:
            self._mark()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._closing:
            self._take_in_all()
        self._closing = True
        self._frames.clear()
        self._arrived.clear()
        if self._timer is not None:
            self._timer.cancel()
        self._leave_arrival()
        self._outbox.clear()
        self._done.clear()
        self._put_off.clear()
        self._hub.closed(self)

    def _take_in_all(self) -> None:
        """Take in what has arrived of a peer of which nothing more is read: of a worker all, for it may be results."""
        while (self.under_way < LAST_INTAKE_MAX or self.worker_id is not None) and not self._closing:
            if not self._next_arrived():
                return
            self._hub.received(self, self._arrived.popleft())

    def _next_arrived(self) -> bool:
        """Whether there is a message to be taken in. A frame is looked into when all before it are done with."""
        while not self._arrived and self._frames and not self._closing:
            try:
                self._arrived.extend(self._hub.decoded(self, self._frames.popleft()))
            except RemoteProtocolError as error:
                self._refuse_for(error)
        return bool(self._arrived)

    def _read_or_not(self) -> None:
        """Read the peer while it has nothing here that waits; a client only as long as it reads its answers."""
        transport = self._transport
        is_read = not (self.has_more or self._is_resting or (self._paused and self.worker_id is None))
        if transport is None or self._closing or is_read == self._is_read:
            return
        self._is_read = is_read
        if is_read:
            transport.resume_reading()
        else:
            transport.pause_reading()

    # -------------------------------------------------------------------------------------------------- from the hub

    @property
    def has_more(self) -> bool:
        """Messages of it have arrived that were not taken in yet."""
        return bool(self._arrived or self._frames)

    def take_in(self) -> None:
        """Take in what has arrived, as much as may be under way at a time."""
        while self.under_way < INTAKE_MAX and not self._closing and self._next_arrived():
            self._hub.received(self, self._arrived.popleft())
        self._read_or_not()

    def welcome(self, message: m.Welcome) -> None:
        """Go on with this peer: frames of messages from now on."""
        self._welcomed = True
        if self._timer is not None:
            self._timer.cancel()
        self._reader.frame_bytes_max = message.frame_bytes_max
        self._leave_arrival()
        proof = self._handshake.proof if self._handshake is not None else b""
        self._handshake = None
        self.send(structs.replace(message, proof=proof) if proof else message)

    def _leave_arrival(self) -> None:
        if self._arrival is not None:
            self._arrival.leave()

    @property
    def is_welcomed(self) -> bool:
        """It has been let in."""
        return self._welcomed

    @property
    def is_paused(self) -> bool:
        """The peer does not read what it was sent."""
        return self._paused

    @property
    def is_closing(self) -> bool:
        return self._closing

    def watch(self, results: bool, reports: bool) -> Watch:
        """The watch of this client that wants to hear as much."""
        for watch in self.watches:
            if (watch.results, watch.reports) == (results, reports):
                return watch
        self.watches.append(Watch(self, results, reports))
        return self.watches[-1]

    def put_off(self, question: Callable[[], None]) -> None:
        """Ask again once the peer reads."""
        self._put_off.append(question)

    def send(self, message: Any) -> None:
        """Write a message with the rest of this turn."""
        if self._closing:
            return
        self._outbox.append(message)
        if not self._dirty:
            self._mark()

    def send_done(self, task_id: TaskId, with_result: bool) -> None:
        """Tell of a final task with the rest of this turn, or as soon as the peer reads again."""
        self._done.append((task_id, with_result))
        if not self._dirty:
            self._mark()

    def flush(self) -> None:
        """Write what this turn has for the peer, as much as it takes."""
        self._dirty = False
        transport = self._transport
        if transport is None or self._closing:
            return
        self._write(transport, PAUSE_BYTES)
        if not self._paused:
            if self._outbox or self._done:
                self._mark()
        elif len(self._outbox) > OUTBOX_MESSAGES_MAX:
            log.warning("peer_too_slow", peer=self.name, worker=self.worker_id, unsent=len(self._outbox))
            self.abort()

    def _write(self, transport: asyncio.Transport, unsent_max: int) -> None:
        """Write what there is, in one write, until so many bytes are unsent; the rest stays here as it is."""
        frames: list[bytes] = []
        size = transport.get_write_buffer_size()
        outbox = self._outbox
        try:
            while (outbox or self._done) and size <= unsent_max:
                if outbox:
                    part = [outbox.popleft() for _ in range(min(len(outbox), MESSAGES_PER_FRAME_MAX))]
                else:
                    part = [self._next_done()]
                for frame in _frames(part):
                    frames.append(frame)
                    size += len(frame)
        except LocalProtocolError as error:
            log.error("message_too_large", peer=self.name, worker=self.worker_id, error=error.message)
            self.abort()
            return
        if len(frames) == 1:
            transport.write(frames[0])
        elif frames:
            transport.writelines(frames)
        if self.worker_id is not None:
            self._hub.traffic.to_workers += sum(map(len, frames))
        else:
            self._hub.traffic.to_clients += sum(map(len, frames))

    def refuse(self, code: str, message: str, hint: str = "") -> None:
        """Say why, and close the connection once that is written."""
        if self._transport is None or self._closing:
            return
        if self._paused:
            self._outbox.clear()
        self._outbox.append(m.Refused(code, message, hint))
        self.close()

    def close(self) -> None:
        """Write what is there and close; who does not read it in time is cut off."""
        self._done.clear()
        if self._transport is not None and not self._closing:
            self._write(self._transport, self._hub.outbox_bytes_max)
            self._transport.close()
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._hub.reactor.call_later(self._hub.farewell_timeout_s, self.abort)
        self._closing = True
        self._outbox.clear()

    def abort(self) -> None:
        """Close at once; what was not written is lost."""
        self._closing = True
        if self._transport is not None:
            self._transport.abort()

    def _mark(self) -> None:
        self._dirty = True
        self._hub.has_output(self)

    def _next_done(self) -> m.TasksDone:
        told: list[m.TaskDone] = []
        size = 0
        for position, (task_id, with_result) in enumerate(self._done):
            done = self._hub.task_done(self, task_id, with_result)
            if done is None:
                continue
            size += len(done.result or b"")
            if told and (len(told) == DONE_PER_FRAME_MAX or size > RESULT_BYTES_PER_FRAME_MAX):
                del self._done[:position]
                break
            told.append(done)
        else:
            self._done = []
        return m.TasksDone(told)

    def _handshake_late(self) -> None:
        self.refuse("too_late", f"no greeting within {self._hub.handshake_timeout_s:g} s")


def _frames(messages: list[Any]) -> list[bytes]:
    """Encode messages into as few frames as the bound allows; an answer that is above it says so instead.

    Raises LocalProtocolError for any other message above the bound.
    """
    try:
        return [encode_frame(messages)]
    except LocalProtocolError as error:
        if len(messages) > 1:
            half = len(messages) // 2
            return [*_frames(messages[:half]), *_frames(messages[half:])]
        request = getattr(messages[0], "request", None)
        if request is None:
            raise
        failed = m.RequestFailed(request, m.TOO_LARGE, error.message, "ask for less at a time")
        return [encode_frame([failed])]
