"""One child process as the worker sees it: its socket, its files, and the calls in its hands."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections import deque
from collections.abc import Mapping
from pathlib import Path

import msgspec
from msgspec import Struct, field

from schedd.worker.attempts import Attempt
from schedd.worker.child_messages import ChildOptions, Spooled, StartCall
from schedd.worker.functions import KnownFunctions
from schedd.worker.logs import OPEN_FLAGS, STREAMS, LogStore
from schedd.worker.processes import ROOT_VARIABLE
from schedd.worker.stop_flag import StopFlag
from schedd.worker.trees import Containment, Tree

#: A child is sent calls ahead while its last one took less than this.
SHORT_NS = 1_000_000
LONG_NS = 10 * SHORT_NS
#: About what a child does in the time of a few turns of the worker's loop, and no more than a socket's queue holds.
AHEAD_MAX = 16
AHEAD_NS = 2_000_000

_own_decoder = msgspec.msgpack.Decoder(StartCall | Spooled)


class Sent(Struct, eq=False, gc=False):
    """A call in a child's hands: `defines` is the number of the function that its packet carries, 0 for none."""

    row: Attempt
    defines: int


class Child(Struct, eq=False):
    """One child process."""

    devices: tuple[int, ...]
    root: str
    tree: Tree
    channel: socket.socket
    #: A copy of the child's own end: what is read here is taken back.
    far_end: socket.socket
    #: Its output goes to this path and ".stdout" or ".stderr" while a call runs.
    output: str
    stop: StopFlag
    #: Not answered yet, in order; the first is the one that runs.
    sent: deque[Sent] = field(default_factory=deque)
    known: KnownFunctions = field(default_factory=KnownFunctions)
    ready: bool = False
    #: No more calls for it: it was told to end, or left processes behind.
    ending: bool = False
    #: How long its last call took; none may be sent ahead before the first.
    runtime_ns: int = LONG_NS
    #: Calls answered; unchanged from one look to the next, the child is stuck in a long one.
    answered: int = 0
    looked_at: int = -1
    idle_since: float = 0.0

    @property
    def wants_more(self) -> bool:
        """It runs a short call, needs no device, and its queue is half empty."""
        return (
            0 < len(self.sent) <= self.ahead_limit // 2
            and self.runtime_ns < SHORT_NS
            and not self.devices
            and not self.ending
        )

    @property
    def ahead_limit(self) -> int:
        return min(AHEAD_MAX, AHEAD_NS // max(self.runtime_ns, 1))


def start_child(
    devices: tuple[int, ...],
    env: Mapping[str, str],
    output: str,
    containment: Containment,
    *,
    worker: str,
    log_folder: str,
    result_bytes_max: int,
) -> Child:
    """Start a child process; what it is sent before it is up waits in its queue. Raises OSError."""
    options = ChildOptions(containment.parent_pid(), worker, log_folder, output, result_bytes_max, list(sys.path))
    argv = [sys.executable, "-m", "schedd.worker.child", msgspec.json.encode(options).decode()]
    with contextlib.ExitStack() as files:
        stdin = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        files.callback(os.close, stdin)
        streams = []
        for stream in STREAMS:
            streams.append(os.open(f"{output}.{stream}", OPEN_FLAGS, 0o600))
            files.callback(os.close, streams[-1])
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with contextlib.ExitStack() as on_error:
            on_error.callback(near.close)
            on_error.callback(far.close)
            stop = StopFlag(f"{output}.stop", create=True)
            on_error.callback(stop.remove)
            near.setblocking(False)
            tree = containment.start(argv, env, None, (stdin, streams[0], streams[1]), far.fileno())
            on_error.pop_all()
    return Child(devices, env[ROOT_VARIABLE], tree, near, far, output, stop)


def keep_output(child: Child, logs: LogStore) -> None:
    """What a dead child printed is the output of the call that it ran; remove its files if it ran none."""
    victim = child.sent[0].row.name if child.sent else ""
    has_output = False
    for stream in STREAMS:
        path = Path(f"{child.output}.{stream}")
        with contextlib.suppress(OSError):
            if victim and path.stat().st_size:
                path.rename(logs.path(victim, stream))
                has_output = True
            else:
                path.unlink()
    if victim:
        logs.ended(victim, has_output=has_output)


def name_in(packet: memoryview) -> tuple[int, int]:
    """Which task and attempt a packet of ours is about. Its file, if it has one, is removed: nobody will read it."""
    message = _own_decoder.decode(packet)
    if isinstance(message, StartCall):
        return message.task_id, message.attempt
    with contextlib.suppress(OSError):
        os.unlink(message.file)  # noqa: PTH108
    task_id, attempt, _ = os.path.basename(message.file).split(".")  # noqa: PTH119
    return int(task_id), int(attempt)
