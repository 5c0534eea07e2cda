"""Where connections come in over TLS: accepts them itself, to know before the handshake what it has to do with.

A peer that does not begin with TLS is told so in plain words, which it can read. How many may be at the door at a time,
and for how long, is bounded before anything is computed for them.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl

from msgspec import structs

from schedd.log import Log
from schedd.server.access import Door
from schedd.server.arrivals import Arrival
from schedd.server.connections import TLS_RECORD, Hub, Peer
from schedd.tls import describe
from schedd.wire import messages as m
from schedd.wire.framing import encode_frame

log = Log("schedd.server")

#: Connections that are accepted before others have their turn.
ACCEPTS_PER_TURN = 64
#: Without a descriptor for another connection, look again after this time.
NO_DESCRIPTOR_PAUSE_S = 1.0
#: How long a connection that is closed waits for the peer to say that it has heard so.
FAREWELL_TIMEOUT_S = 2.0

_TLS_REQUIRED = m.Refused(
    m.TLS_REQUIRED,
    "this port speaks TLS",
    "name the authority of the daemon, the ca.pem of `schedd tls init`: --tls-ca or $SCHEDD_TLS_CA",
)


class TlsDoor:
    """Listens on a bound socket."""

    def __init__(self, hub: Hub, listener: socket.socket, backlog: int, context: ssl.SSLContext, door: Door) -> None:
        self.context = context
        self.door = door
        self._hub = hub
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._entering: set[asyncio.Task[None]] = set()
        listener.setblocking(False)
        listener.listen(backlog)
        self._loop.add_reader(listener, self._accept)

    def renew(self, context: ssl.SSLContext, binding: bytes, *, asks_certificate: bool) -> None:
        """Show another certificate to who comes from now on."""
        self.context = context
        self.door = structs.replace(self.door, binding=binding, asks_certificate=asks_certificate)

    def close(self) -> None:
        """Let nobody in any more."""
        if self._listener.fileno() >= 0:
            self._loop.remove_reader(self._listener)
            self._listener.close()
        for entering in self._entering:
            entering.cancel()

    def _accept(self) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            try:
                sock, address = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                log.warning("cannot_accept", error=error.strerror)
                self._loop.remove_reader(self._listener)
                self._loop.call_later(NO_DESCRIPTOR_PAUSE_S, self._look_again)
                return
            arrival = self._hub.arrivals.enter(address[0])
            if arrival is None:
                sock.close()
                continue
            entering = self._loop.create_task(self._let_in(sock, f"{address[0]}:{address[1]}", arrival))
            self._entering.add(entering)
            entering.add_done_callback(self._entering.discard)

    def _look_again(self) -> None:
        if self._listener.fileno() >= 0:
            self._loop.add_reader(self._listener, self._accept)

    async def _let_in(self, sock: socket.socket, peer: str, arrival: Arrival) -> None:
        """See one connection through its TLS handshake; from then on it is a `Peer` like any other."""
        timeout_s = self._hub.handshake_timeout_s
        context, door = self.context, self.door
        is_in = False
        try:
            async with asyncio.timeout(timeout_s):
                first = await self._peek(sock)
            if first != TLS_RECORD[:1]:
                if first:
                    log.warning("tls_failed", peer=peer, reason="the peer does not speak TLS")
                    _tell(sock)
                return
            await self._loop.connect_accepted_socket(
                lambda: Peer(self._hub, door, arrival),
                sock,
                ssl=context,
                ssl_handshake_timeout=timeout_s,
                ssl_shutdown_timeout=FAREWELL_TIMEOUT_S,
            )
            is_in = True
        except TimeoutError:
            log.warning("tls_failed", peer=peer, reason=f"not a word within {timeout_s:g} s")
        except OSError as error:
            log.warning("tls_failed", peer=peer, reason=describe(error))
        finally:
            if not is_in:
                arrival.leave()
                sock.close()

    async def _peek(self, sock: socket.socket) -> bytes:
        """The first byte, which stays there; empty where the peer is gone."""
        readable: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_reader(sock, _resolve, readable)
        try:
            await readable
        finally:
            self._loop.remove_reader(sock)
        return sock.recv(1, socket.MSG_PEEK)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _tell(sock: socket.socket) -> None:
    """Say in plain words that TLS is spoken here; what is in the socket is read first, or closing it would reset it."""
    with contextlib.suppress(OSError):
        sock.recv(4096)
        sock.send(encode_frame([_TLS_REQUIRED]))
        sock.shutdown(socket.SHUT_WR)
