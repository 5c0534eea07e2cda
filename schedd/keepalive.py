"""Have TCP notice a peer that has vanished without a word, where nothing of our own would.

Between daemon and worker the heartbeats do that. Between daemon and client there may be silence for days. No
TCP_USER_TIMEOUT: it would also end the connection of a client that merely does not read for a while.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket

#: A quiet connection is asked for a sign of life after so long, and again after each pause: noticed after 30 seconds.
IDLE_S, INTERVAL_S, COUNT = 15, 5, 3


def watch_peer(transport: asyncio.BaseTransport) -> None:
    """Have the kernel end this connection when its peer is gone. Nothing happens to a Unix socket."""
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    with contextlib.suppress(OSError):  # reset already, between its accept and now
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, IDLE_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, INTERVAL_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, COUNT)
