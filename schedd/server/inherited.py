"""Sockets that the service manager gives us: from a socket unit, or kept for us since our last start.

Either way nobody is refused while the daemon is started anew: who connects meanwhile waits in the queue of a socket
that is never closed. See sd_listen_fds(3) and "FileDescriptorStoreMax=" in systemd.service(5).
"""

from __future__ import annotations

import os
import socket

from msgspec import Struct

from schedd.address import Address
from schedd.notify import notify

#: The first file that is passed on.
FIRST_FD = 3
#: Under this name the manager keeps what listens for `[server] listen`; another is that of a socket unit.
KEPT = "schedd-listen"


class Inherited(Struct):
    """Sockets that listen already. kept: for `[server] listen` of the last start. given: by a socket unit."""

    kept: list[socket.socket]
    given: list[socket.socket]


def take() -> Inherited:
    """Take over what was passed to this process, once; sockets that do not listen are closed."""
    found = Inherited([], [])
    pid, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    if pid != str(os.getpid()) or not count.isdigit():
        return found
    for number in range(int(count)):
        os.set_inheritable(FIRST_FD + number, False)
        passed = _listening(FIRST_FD + number)
        if passed is not None:
            is_kept = number < len(names) and names[number] == KEPT
            (found.kept if is_kept else found.given).append(passed)
    return found


def _listening(fd: int) -> socket.socket | None:
    try:
        passed = socket.socket(fileno=fd)
    except OSError:
        os.close(fd)
        return None
    if passed.type != socket.SOCK_STREAM or not passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        passed.close()
        return None
    passed.setblocking(False)
    return passed


def keep(listening: socket.socket) -> None:
    """Have the manager keep a socket for the next start."""
    notify("FDSTORE=1", f"FDNAME={KEPT}", fds=[listening.fileno()])


def forget() -> None:
    """Have the manager close what it keeps."""
    notify("FDSTOREREMOVE=1", f"FDNAME={KEPT}")


def is_local(listening: socket.socket) -> bool:
    """Whether a socket is of the file system, and not of a network."""
    return listening.family == socket.AF_UNIX


def address_of(listening: socket.socket) -> Address:
    """Where a socket listens."""
    name = listening.getsockname()
    return Address(path=str(name)) if is_local(listening) else Address(*name[:2])


def is_at(listening: socket.socket, address: Address) -> bool:
    """Whether a socket listens where the settings say; port 0 is any."""
    if address.path or is_local(listening):
        return False
    try:
        infos = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError:
        return False  # who binds it will say so
    host, port = listening.getsockname()[:2]
    return infos[0][4][0] == host and address.port in (0, port)
