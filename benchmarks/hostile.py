"""How long an honest client waits for an answer while somebody attacks the daemon, against calm.

One client asks for the daemon's figures, again and again, on a connection of its own; and one submits a call and waits
for its result, which goes through the journal and a worker. Each attack runs in a process of its own for a few seconds.
The daemon has tasks, so that what the attackers ask for is long.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import msgspec
from common import Floor, Service, arguments, finish, median, percentile, wait_for

from schedd.address import parse_address
from schedd.client.sync import Client
from schedd.core.model import (
    AttemptFinished,
    Call,
    Cause,
    HostUsage,
    Selection,
    TaskEntry,
    TaskId,
    TaskSpec,
    WorkerId,
    WorkerResources,
)
from schedd.wire import messages as m
from schedd.wire.framing import FrameReader, encode_frame

RATIO_MAX = 3.0
#: Nothing an attack does may make the daemon larger than it was by more than this, in MB.
GROWTH_MB_MAX = 300.0
TASKS = 5000
WARM_UP = 50
#: Large frames are sent so many bytes at a time. A kernel that cannot be preempted gives nobody else the core before a
#: system call is over, whoever called it; and that is on a machine of its own.
PIECE = bytes(32 * 1024)
CONFIG = '[log]\nlevel = "error"\n[server]\nhandshake_timeout_s = 1.0\n'


class Wire:
    """A connection by hand."""

    def __init__(self, address: str) -> None:
        where = parse_address(address)
        self.socket = socket.create_connection((where.host, where.port))
        self._reader = FrameReader()

    def greet(self, peer: m.WorkerHello | m.ClientHello) -> None:
        body = msgspec.msgpack.encode(m.Hello(m.PROTOCOL, "benchmark", peer))
        self.socket.sendall(len(body).to_bytes(4, "big") + body)
        self.read()

    def close(self) -> None:
        self.socket.close()

    def read(self) -> list[object]:
        """The messages of the next frames. Raises ConnectionError at the end."""
        while True:
            data = self.socket.recv(1 << 16)
            if not data:
                raise ConnectionError("the daemon has closed the connection")
            frames = self._reader.feed(data)
            if frames:
                return [message for body in frames for message in m.decode_to_client(body)]


def welcomed(address: str) -> Wire:
    wire = Wire(address)
    wire.greet(m.ClientHello("benchmark"))
    return wire


# ------------------------------------------------------------------------------------------------------------- attacks


def ask(address: str, request: Callable[[int], object]) -> None:
    """Ask as fast as the daemon reads, and read no answer."""
    wire = welcomed(address)
    for number in itertools.count(1):
        wire.socket.sendall(encode_frame([request(number)] * 500))


def ask_and_read(address: str, request: Callable[[int], object]) -> None:
    """Ask many at a time, and read every answer."""
    wire = welcomed(address)
    for number in itertools.count(1):
        wire.socket.sendall(encode_frame([request(number)] * 50))
        left = 50
        while left > 0:
            left -= len(wire.read())


def figures_unread(address: str) -> None:
    ask(address, m.GetStats)


def lists_unread(address: str) -> None:
    ask(address, lambda n: m.ListTasks(n, Selection(), 5000, 0, True))


def lists(address: str) -> None:
    ask_and_read(address, lambda n: m.ListTasks(n, Selection(), 100))


def cancels(address: str) -> None:
    ask_and_read(address, lambda n: m.CancelTasks(n, Selection(job="none")))


def heartbeats(address: str) -> None:
    wire = Wire(address)
    wire.greet(m.WorkerHello(WorkerId("liar"), "1", WorkerResources(cpus=0.001)))
    while True:
        wire.socket.sendall(encode_frame([m.Heartbeat(HostUsage())] * 500))


def lies(address: str) -> None:
    """Ends of attempts that the worker never had."""
    wire = Wire(address)
    wire.greet(m.WorkerHello(WorkerId("liar"), "1", WorkerResources(cpus=0.001)))
    ends = [AttemptFinished(TaskId(n), 1, Cause.OK, 1, 2) for n in range(1, 500)]
    for number in itertools.count(1):
        wire.socket.sendall(encode_frame([m.AttemptsFinished(number, ends)]))


def garbage(address: str) -> None:
    """Connect, send what is none of the protocol, and again."""
    while True:
        with contextlib.suppress(OSError), contextlib.closing(Wire(address)) as wire:
            wire.socket.sendall(b"\x00\x00\x10\x00" + b"\x91" * 4096)
            wire.socket.recv(4096)


def connections(address: str, first: bytes = b"") -> None:
    """Connect, say so much, keep it."""
    kept: deque[socket.socket] = deque()
    while True:
        with contextlib.suppress(OSError):
            kept.append(Wire(address).socket)
            kept[-1].sendall(first)
        if len(kept) > 500:
            kept.popleft().close()


def half_words(address: str) -> None:
    connections(address, b"\0\0")


def large_frames(address: str) -> None:
    """The largest frames, with an end that makes them none."""
    body = b"\xdc\x00\x02" + msgspec.msgpack.encode(["GetStats", 1]) + b"\xc6" + (32 << 20).to_bytes(4, "big")
    while True:
        with contextlib.suppress(OSError):
            wire = welcomed(address)
            wire.socket.sendall((len(body) + (32 << 20)).to_bytes(4, "big") + body)
            for _ in range((32 << 20) // len(PIECE)):
                wire.socket.sendall(PIECE)
            wire.read()


ATTACKS: dict[str, Callable[[str], None]] = {
    "figures, answers not read": figures_unread,
    "long lists, answers not read": lists_unread,
    "short lists": lists,
    "cancels": cancels,
    "heartbeats of a worker": heartbeats,
    "ends that never were": lies,
    "garbage": garbage,
    "connections without a word": connections,
    "connections with half a word": half_words,
    "large frames": large_frames,
}


# --------------------------------------------------------------------------------------------------------- measurement


def attacker(attack: Callable[[str], None], address: str) -> None:
    """Attack until killed; who is cut off begins again.

    It takes only the time of the processor that nobody else wants: attackers have machines of their own.
    """
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    while True:
        with contextlib.suppress(OSError):
            attack(address)


def latencies(wire: Wire, seconds: float) -> list[float]:
    """Milliseconds from a small question to its answer, one question after the other."""
    taken = []
    until = time.perf_counter() + seconds
    for number in itertools.count(1):
        began = time.perf_counter()
        wire.socket.sendall(encode_frame([m.GetStats(number)]))
        wire.read()
        ended = time.perf_counter()
        if number > WARM_UP:
            taken.append((ended - began) * 1000)
        if ended > until and taken:
            return taken
        time.sleep(0.001)
    raise AssertionError


def calls(client: Client, seconds: float) -> list[float]:
    """Milliseconds from the submit of a call to its result, one call after the other."""
    taken = []
    until = time.perf_counter() + seconds
    for number in itertools.count(1):
        began = time.perf_counter()
        client.submit(abs, -1).result()
        ended = time.perf_counter()
        if number > WARM_UP:
            taken.append((ended - began) * 1000)
        if ended > until and taken:
            return taken
    raise AssertionError


def memory_mb(pid: int) -> float:
    """Resident memory of a process."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) / 1024


Waits = tuple[float, float]


def waits(wire: Wire, client: Client, seconds: float) -> Waits:
    """The 99th percentiles, in milliseconds, of a question and of a call."""
    return percentile(latencies(wire, seconds), 99), percentile(calls(client, seconds), 99)


def under(attack: Callable[[str], None], service: Service, wire: Wire, client: Client, seconds: float) -> Waits:
    process = multiprocessing.get_context("spawn").Process(target=attacker, args=(attack, service.address), daemon=True)
    process.start()
    try:
        time.sleep(1.0)  # until it is at full speed
        return waits(wire, client, seconds)
    finally:
        process.kill()
        process.join()


def main() -> int:
    parser = arguments(__doc__ or "", runs=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement (default %(default)s)")
    parser.add_argument("--attack", action="append", choices=ATTACKS, help="only this one; may be given more than once")
    options = parser.parse_args()
    chosen = options.attack or list(ATTACKS)
    p99: dict[str, list[Waits]] = {name: [] for name in ("calm", *chosen)}
    growth_mb = 0.0
    with Service(workers=1, config=CONFIG) as service, Client(service.address) as client:
        wait_for(lambda: client.workers(), "the worker is there")
        wire = welcomed(service.address)
        spec = TaskSpec(Call(path="a:b"), hold=True, job="there")
        wire.socket.sendall(encode_frame([m.Submit(1, [spec], [TaskEntry(0, b"x" * 100)] * TASKS)]))
        wire.read()
        before = memory_mb(service.daemon.pid)
        for _ in range(options.runs):
            p99["calm"].append(waits(wire, client, options.seconds))
            for name in chosen:
                p99[name].append(under(ATTACKS[name], service, wire, client, options.seconds))
                growth_mb = max(growth_mb, memory_mb(service.daemon.pid) - before)
        log = (Path(service._folder.name) / "daemon.log").read_text()
    middle = {name: [median(column) for column in zip(*found, strict=True)] for name, found in p99.items()}
    ratios = {name: [x / calm for x, calm in zip(ms, middle["calm"], strict=True)] for name, ms in middle.items()}
    rows = [[name, asked, ratios[name][0], called, ratios[name][1]] for name, (asked, called) in middle.items()]
    floors = [Floor(f"p99 of a call under {name!r}, of calm", ratios[name][1], RATIO_MAX, True) for name in chosen]
    floors += [Floor(f"p99 of a question under {name!r}, of calm", ratios[name][0], RATIO_MAX, True) for name in chosen]
    floors.append(Floor("growth of the daemon, MB", growth_mb, GROWTH_MB_MAX, at_most=True))
    floors.append(Floor("tracebacks in the log", log.count("Traceback"), 0, at_most=True))
    return finish(options, "hostile", ["attack", "question, p99 ms", ": calm", "call, p99 ms", ": calm"], rows, floors)


if __name__ == "__main__":
    sys.exit(main())
