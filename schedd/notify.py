"""sd_notify: tell the service manager how far we are. One datagram each; nothing happens outside of systemd."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence


def notify(*lines: str, fds: Sequence[int] = ()) -> bool:
    """Send assignments such as "READY=1" or "STATUS=…"; True where there was somebody to tell.

    fds: open files that go with them, for the manager to keep.
    """
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return False
    address = "\0" + path[1:] if path.startswith("@") else path
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.connect(address)
            socket.send_fds(sender, ["\n".join(lines).encode()], fds)
    except OSError:
        return False  # a manager that went away is no reason to stop
    return True


def is_listening() -> bool:
    """Whether there is somebody to tell."""
    return bool(os.environ.get("NOTIFY_SOCKET"))
