"""sd_notify: tell the service manager how far we are. One datagram each; nothing happens outside of systemd."""

from __future__ import annotations

import os
import socket


def notify(*lines: str) -> bool:
    """Send assignments such as "READY=1" or "STATUS=…"; True where there was somebody to tell."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return False
    address = "\0" + path[1:] if path.startswith("@") else path
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.sendto("\n".join(lines).encode(), address)
    except OSError:
        return False  # a manager that went away is no reason to stop
    return True
