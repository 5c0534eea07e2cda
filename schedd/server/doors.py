"""Where connections come in, once they have said something: plain, or over TLS.

A peer that does not begin with TLS where it should is told so in plain words, which it can read. How many may be in the
handshake at a time, and for how long, is bounded before anything is computed for them.
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
from schedd.server.lobby import Lobby
from schedd.tls import describe
from schedd.wire import messages as m
from schedd.wire.framing import encode_frame

log = Log("schedd.server")

#: How long a connection that is closed waits for the peer to say that it has heard so.
FAREWELL_TIMEOUT_S = 2.0

_TLS_REQUIRED = m.Refused(
    m.TLS_REQUIRED,
    "this port speaks TLS",
    "name the authority of the daemon, the ca.pem of `schedd tls init`: --tls-ca or $SCHEDD_TLS_CA",
)


class PlainDoor:
    """Listens on a bound socket. Who is being let in as it closes comes in, and is told then why it has to go."""

    def __init__(self, hub: Hub, listener: socket.socket, backlog: int, door: Door) -> None:
        self._hub = hub
        self._door = door
        self._lobby = Lobby(listener, backlog, lambda: hub.handshake_timeout_s, self._let_in, self._take_leave)

    def close(self) -> None:
        """Let nobody in any more."""
        self._lobby.close()

    async def _let_in(self, sock: socket.socket, peer: str, first: bytes) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: Peer(self._hub, self._door), sock)
        except OSError:  # it is gone in this very moment
            sock.close()

    def _take_leave(self, sock: socket.socket, peer: str) -> None:
        _tell(sock, m.Refused("too_late", f"no greeting within {self._hub.handshake_timeout_s:g} s"))


class TlsDoor:
    """Listens on a bound socket."""

    def __init__(self, hub: Hub, listener: socket.socket, backlog: int, context: ssl.SSLContext, door: Door) -> None:
        self.context = context
        self.door = door
        self._hub = hub
        self._lobby = Lobby(listener, backlog, lambda: hub.handshake_timeout_s, self._let_in, self._take_leave)

    def renew(self, context: ssl.SSLContext, binding: bytes, *, asks_certificate: bool) -> None:
        """Show another certificate to who comes from now on."""
        self.context = context
        self.door = structs.replace(self.door, binding=binding, asks_certificate=asks_certificate)

    def close(self) -> None:
        """Let nobody in any more."""
        self._lobby.close()
        self._lobby.turn_away()  # a handshake may take its time

    async def _let_in(self, sock: socket.socket, peer: str, first: bytes) -> None:
        """See one connection through its TLS handshake; from then on it is a `Peer` like any other."""
        arrival: Arrival | None = None
        context, door = self.context, self.door
        is_in = False
        try:
            if first != TLS_RECORD[:1]:
                log.warning("tls_failed", peer=peer, reason="the peer does not speak TLS")
                _tell(sock, _TLS_REQUIRED)
                return
            arrival = self._hub.arrivals.enter(peer.rpartition(":")[0])
            if arrival is None:
                return
            timeout_s = self._hub.handshake_timeout_s
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: Peer(self._hub, door, arrival),
                sock,
                ssl=context,
                ssl_handshake_timeout=timeout_s,
                ssl_shutdown_timeout=FAREWELL_TIMEOUT_S,
            )
            is_in = True
        except OSError as error:
            log.warning("tls_failed", peer=peer, reason=describe(error))
        finally:
            if not is_in:
                if arrival is not None:
                    arrival.leave()
                sock.close()

    def _take_leave(self, sock: socket.socket, peer: str) -> None:
        log.warning("tls_failed", peer=peer, reason=f"not a word within {self._hub.handshake_timeout_s:g} s")


def _tell(sock: socket.socket, refused: m.Refused) -> None:
    """Say why in plain words; what is in the socket is read first, or closing it would reset it."""
    with contextlib.suppress(OSError):
        with contextlib.suppress(BlockingIOError):
            sock.recv(4096)
        sock.send(encode_frame([refused]))
        sock.shutdown(socket.SHUT_WR)
