"""What a daemon costs that has nothing to do but to hear that its workers are there.

A thousand workers, each with a connection of its own, speak the protocol from this process: they greet, and send
heartbeats with the measurements of a host and its devices whenever the daemon wants them.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import psutil
import uvloop
from common import Floor, arguments, cpu_of, finish, median
from scale import Daemon

from schedd.address import parse_address
from schedd.client.aio import AsyncClient
from schedd.core.model import Gpu, GpuUsage, HostUsage, WorkerId, WorkerResources
from schedd.wire import messages as m
from schedd.wire.framing import FrameReader, encode_frame

CPU_FLOOR_PERCENT = 3.0
MEMORY_FLOOR_MB = 60.0
MEMORY_PER_WORKER_FLOOR_KB = 20.0

#: Connections that are being made at a time.
CONNECTING_MAX = 50
#: Workers and their heartbeats have settled by then.
SETTLE_S = 10.0
#: Devices of a worker.
GPUS = 4
CONFIG = '[log]\nlevel = "error"\n'


class IdleWorker(asyncio.Protocol):
    """A worker that has nothing to run, and reports as often as it is asked to."""

    def __init__(self, number: int, beats: itertools.count[int]) -> None:
        self._name = WorkerId(f"w{number:04d}")
        self._uuids = [f"GPU-{random.getrandbits(128):032x}" for _ in range(GPUS)]
        self._reader = FrameReader()
        self._beats = beats
        self._transport: Any = None
        self.is_up = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        gpus = tuple(Gpu(uuid, "NVIDIA A100-SXM4-40GB", 40_960) for uuid in self._uuids)
        resources = WorkerResources(cpus=32, ram_gb=256, gpus=gpus, labels={"rack": self._name[-1]})
        hello = m.WorkerHello(self._name, f"{random.getrandbits(64):016x}", resources, f"host-{self._name}", 1234)
        body = msgspec.msgpack.encode(m.Hello(m.PROTOCOL, "benchmark", hello))
        self._transport.write(len(body).to_bytes(4, "big") + body)

    def data_received(self, data: bytes) -> None:
        for body in self._reader.feed(data):
            for message in m.decode_to_worker(body):
                if isinstance(message, m.Welcome):
                    self.is_up.set()
                    # Those of a real cluster do not all come in the same moment.
                    self._later(message.heartbeat_interval_s * random.random())
                elif isinstance(message, m.HeartbeatReply):
                    self._later(message.interval_s)

    def _later(self, seconds: float) -> None:
        asyncio.get_running_loop().call_later(seconds, self._beat)

    def _beat(self) -> None:
        if self._transport.is_closing():
            return
        gpus = tuple(GpuUsage(uuid, random.randrange(500), random.random(), 35.0, 0) for uuid in self._uuids)
        usage = HostUsage(random.uniform(0, 5), random.randrange(1 << 33), 1 << 38, 1e4, 2e4, 0.1, gpus)
        self._transport.write(encode_frame([m.Heartbeat(usage)]))
        next(self._beats)

    def close(self) -> None:
        self._transport.close()


async def connect(address: str, count: int, beats: itertools.count[int]) -> list[IdleWorker]:
    """Connect so many workers; returns once the daemon has welcomed them all."""
    where, loop = parse_address(address), asyncio.get_running_loop()
    slots = asyncio.Semaphore(CONNECTING_MAX)

    async def one(number: int) -> IdleWorker:
        async with slots:
            worker = IdleWorker(number, beats)
            await loop.create_connection(lambda: worker, where.host, where.port)
            await worker.is_up.wait()
            return worker

    return list(await asyncio.gather(*map(one, range(count))))


async def measure(daemon: Daemon, count: int, seconds: float) -> tuple[float, float, float, float]:
    """Let workers be idle for a while.

    Returns the daemon's CPU in percent of one core, its resident MB before they came and at the end, and how many
    heartbeats a second it heard.
    """
    process = psutil.Process(daemon.process.pid)
    before_mb = daemon.resident_mb
    beats = itertools.count()
    workers = await connect(daemon.address, count, beats)
    await asyncio.sleep(SETTLE_S)
    cpu_s, started, heard = cpu_of([process]), time.perf_counter(), next(beats)
    await asyncio.sleep(seconds)
    cpu_s, taken_s, heard = cpu_of([process]) - cpu_s, time.perf_counter() - started, next(beats) - heard
    async with AsyncClient(daemon.address) as client:
        there = sum(worker.status == "idle" for worker in await client.workers())
    assert there == count, f"{there} of {count} workers are idle"
    for worker in workers:
        worker.close()
    return 100 * cpu_s / taken_s, before_mb, daemon.resident_mb, heard / taken_s


def run(count: int, seconds: float, config: str) -> tuple[float, float, float, float]:
    with tempfile.TemporaryDirectory(prefix="schedd-benchmark-") as folder, Daemon(Path(folder), config) as daemon:
        return uvloop.run(measure(daemon, count, seconds))


def main() -> int:
    parser = arguments(__doc__ or "", runs=1)
    parser.add_argument("--workers", type=int, default=1000, help="how many (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long it is looked at (default %(default)s)")
    parser.add_argument("--config", metavar="FILE", help="settings of the daemon")
    options = parser.parse_args()
    config = Path(options.config).read_text() if options.config else CONFIG
    runs = [run(options.workers, options.seconds, config) for _ in range(options.runs)]
    alone = [run(0, options.seconds, config) for _ in range(options.runs)]
    cpu, before_mb, after_mb, heard = (median(values) for values in zip(*runs, strict=True))
    alone_cpu, _, alone_mb, _ = (median(values) for values in zip(*alone, strict=True))
    per_worker_kb = (after_mb - before_mb) * 1024 / options.workers
    rows = [
        ["no worker", alone_cpu, 0.0, alone_mb, None],
        [f"{options.workers} workers", cpu, heard, after_mb, per_worker_kb],
    ]
    bound_mb = MEMORY_FLOOR_MB + options.workers * MEMORY_PER_WORKER_FLOOR_KB / 1024
    floors = [
        Floor("% of one core", cpu, CPU_FLOOR_PERCENT, at_most=True),
        Floor("resident MB", after_mb, bound_mb, at_most=True),
    ]
    columns = ["daemon with", "% of a core", "heartbeats/s", "resident MB", "KB a worker"]
    return finish(options, "idle", columns, rows, floors)


if __name__ == "__main__":
    sys.exit(main())
