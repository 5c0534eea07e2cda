"""sd_notify: tell the service manager how far we are. One datagram each; nothing happens outside of systemd."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence

#: What the manager tells a service, in its environment.
_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC")
#: The same, taken out of the environment.
_taken: dict[str, str] = {}


def keep_to_ourselves() -> None:
    """Take what the manager told us out of the environment: what we start is not to speak for us."""
    _taken.update((name, os.environ.pop(name)) for name in _VARIABLES if name in os.environ)


def _told(name: str, default: str = "") -> str:
    return os.environ.get(name) or _taken.get(name, default)


def notify(*lines: str, fds: Sequence[int] = ()) -> bool:
    """Send assignments such as "READY=1" or "STATUS=…"; True where there was somebody to tell.

    fds: open files that go with them, for the manager to keep.
    """
    path = _told("NOTIFY_SOCKET")
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
    return bool(_told("NOTIFY_SOCKET"))


def watchdog_s() -> float:
    """Seconds after which the manager takes a silent service for dead; 0: it does not look."""
    pid, usec = _told("WATCHDOG_PID", str(os.getpid())), _told("WATCHDOG_USEC")
    return int(usec) / 1e6 if usec.isdigit() and pid == str(os.getpid()) else 0.0
