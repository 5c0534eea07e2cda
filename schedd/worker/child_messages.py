"""What a worker and its child processes say to each other, one packet of a socket pair for each message.

A packet that would be larger than `INLINE_BYTES_MAX` is written to a file of the worker's run folder and named by
`Spooled`; who reads it removes it.
"""

from __future__ import annotations

import contextlib
import os

import msgspec
from msgspec import Struct

from schedd.core.model import Cause

#: Stays well below a socket's send buffer (208 KiB by default), so that a packet for an idle child always fits.
INLINE_BYTES_MAX = 60_000
PACKET_BYTES_MAX = 64 * 1024


class ChildOptions(Struct, frozen=True):
    """How a child is set up; the JSON of its only argument."""

    parent_pid: int
    worker: str
    log_folder: str
    #: Where its output goes while a call runs: this path and ".stdout" or ".stderr".
    output: str
    result_bytes_max: int
    path: list[str]


class StartCall(Struct, frozen=True, tag=1, array_like=True, gc=False):
    """Run a function: `function` is its bytes (empty where the child has number `number` already) or `path` names it.

    `forget`: numbers that will not be used again.
    """

    task_id: int
    attempt: int
    number: int
    function: bytes
    path: str
    argument: bytes
    job: str = ""
    kind: str = ""
    forget: tuple[int, ...] = ()


class Spooled(Struct, frozen=True, tag=2, array_like=True, gc=False):
    """The message is in this file."""

    file: str


class ChildReady(Struct, frozen=True, tag=3, array_like=True, gc=False):
    """The child is up and takes calls."""


class CallEnded(Struct, frozen=True, tag=4, array_like=True, gc=False):
    """How a call ended; times are of the machine's monotonic clock.

    `has_output`: its log files exist. `leftovers`: it left processes behind, and the child ends itself for it.
    """

    task_id: int
    attempt: int
    cause: Cause
    result: bytes | None
    message: str
    started_at_ns: int
    finished_at_ns: int
    has_output: bool = False
    leftovers: bool = False


class CallReport(Struct, frozen=True, tag=5, array_like=True, gc=False):
    """Progress of the call that runs."""

    task_id: int
    attempt: int
    step: int
    metrics: dict[str, float]


encode = msgspec.msgpack.Encoder().encode


def spool(packet: bytes, file: str) -> bytes:
    """Write a packet that is too large to a file; returns the one to send in its place. Raises OSError."""
    fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb", buffering=0) as output:
            view = memoryview(packet)
            while view:
                view = view[output.write(view) :]
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(file)  # noqa: PTH108
        raise
    return encode(Spooled(file))


def read_spooled(message: Spooled) -> bytes:
    """Read a spooled packet and remove its file. Raises OSError."""
    with open(message.file, "rb") as file:  # noqa: PTH123
        packet = file.read()
    os.unlink(message.file)  # noqa: PTH108
    return packet
