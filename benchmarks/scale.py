"""How the daemon bears a million tasks: submitted, restored, changed, finished and forgotten.

The daemon is alone with a client and a worker that speak the protocol from this process and do nothing else. On a
machine that does something else, too, the seconds and the delays of the loop are upper bounds.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
import psutil
from common import Floor, arguments, finish, median, timed, wait_for

from schedd.address import parse_address
from schedd.client.aio import AsyncClient
from schedd.client.connection import Connection, open_connection
from schedd.client.sync import Client
from schedd.core.model import Call, Cause, WorkerId, WorkerResources
from schedd.wire import messages as m
from schedd.wire.framing import FrameReader, encode_frame

RESTART_FLOOR_S = 20.0
LAG_FLOOR_MS = 100.0
GROWTH_FLOOR_MB = 50.0

#: Tasks of one submit, and submits that are under way at a time: what the Python client does.
SUBMIT_TASKS = 1000
SUBMITS_UNDER_WAY = 10
#: Tasks that have neither started nor ended while a million of them come and go.
UNFINISHED_MAX = 20_000
#: Once the history may have so little, almost all of it is forgotten.
KEPT_MB = 1
START_TIMEOUT_S = 300.0
CONFIG = '[log]\nlevel = "error"\n'
JOB = "sweep"
ALL = m.Selection(job=JOB)


class Daemon:
    """A daemon without workers on a journal in a folder. A context manager; `ready_s`: how long its start took."""

    def __init__(self, folder: Path, settings: str) -> None:
        config_file, address_file = folder / "config.toml", folder / "address"
        config_file.write_text(settings)
        address_file.unlink(missing_ok=True)
        argv = [sys.executable, "-m", "schedd.server", "--config", str(config_file), "--listen", "127.0.0.1:0"]
        argv += ["--address-file", str(address_file)]
        with timed() as taken:
            self.process = subprocess.Popen(argv, env={**os.environ, "SCHEDD_STATE_DIR": str(folder)})
            wait_for(lambda: address_file.exists() or self.process.poll() is not None, "it listens", START_TIMEOUT_S)
        self.ready_s = taken[0]
        self.address = address_file.read_text().strip()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(START_TIMEOUT_S)

    @property
    def resident_mb(self) -> float:
        return float(psutil.Process(self.process.pid).memory_info().rss) / 2**20

    def lag_ms(self) -> float:
        """The worst delay of its loop since the start."""
        with Client(self.address) as client:
            return client.stats().loop_lag_max_s * 1e3


class Submitter:
    """Sends submits of a thousand tasks, ten at a time."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._slots = asyncio.Semaphore(SUBMITS_UNDER_WAY)
        self._spec = m.TaskSpec(Call(path="nothing:nothing"), job=JOB)

    async def submit(self, count: int) -> None:
        await asyncio.gather(*(self._one(min(SUBMIT_TASKS, count - done)) for done in range(0, count, SUBMIT_TASKS)))

    async def _one(self, count: int) -> None:
        async with self._slots:
            entries = [m.TaskEntry(0, b"%060d" % number) for number in range(count)]
            await self._connection.request(m.Submitted, m.Submit, [self._spec], entries, False, False)


class InstantWorker(asyncio.Protocol):
    """A worker for which every attempt is over as soon as it comes."""

    def __init__(self) -> None:
        self._reader = FrameReader()
        self._transport: asyncio.Transport | None = None
        self._seq = 0
        self._wanted: tuple[int, asyncio.Event] | None = None
        self.done = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        hello = m.WorkerHello(WorkerId("instant"), "one", WorkerResources(cpus=1000))
        body = msgspec.msgpack.encode(m.Hello(m.PROTOCOL, "benchmark", hello))
        transport.write(len(body).to_bytes(4, "big") + body)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        for body in self._reader.feed(data):
            for message in m.decode_to_worker(body):
                if isinstance(message, m.Dispatch):
                    self._finish(message.attempts)

    def _finish(self, attempts: list[m.WireAttempt]) -> None:
        assert self._transport is not None
        now = time.time_ns()
        ends = [m.AttemptFinished(a.task_id, a.attempt, Cause.OK, now, now, b"%0100d" % a.task_id) for a in attempts]
        self._seq += 1
        self._transport.write(encode_frame([m.AttemptsFinished(self._seq, ends)]))
        self.done += len(ends)
        if self._wanted is not None and self.done >= self._wanted[0]:
            self._wanted[1].set()

    async def until(self, count: int) -> None:
        """Wait until so many attempts are over."""
        self._wanted = (count, asyncio.Event())
        if self.done < count:
            await self._wanted[1].wait()


async def submit(address: str, count: int) -> None:
    """Leave so many tasks queued."""
    connection, _ = await open_connection(parse_address(address), "benchmark")
    await Submitter(connection).submit(count)
    connection.close()


async def come_and_go(address: str, count: int) -> None:
    """Have so many tasks submitted and finished, no more than `UNFINISHED_MAX` at a time."""
    where = parse_address(address)
    connection, _ = await open_connection(where, "benchmark")
    submitter = Submitter(connection)
    transport, worker = await asyncio.get_running_loop().create_connection(InstantWorker, where.host, where.port)
    for sent in range(0, count, UNFINISHED_MAX):
        await submitter.submit(min(UNFINISHED_MAX, count - sent))
        await worker.until(sent)
    await worker.until(count)
    # What ended last is told when it is on disk.
    await connection.request(m.Submitted, m.Submit, [m.TaskSpec(Call(path="a:b"), hold=True)], [m.TaskEntry(0)])
    connection.close()
    transport.close()


async def look(address: str, count: int) -> None:
    """Ask for what is not there, and for pages of what is."""
    async with AsyncClient(address) as client:
        if await client.tasks(m.Selection(job=JOB, states=["failed"]), limit=100):
            raise RuntimeError("there are failed tasks")
        await client.tasks(ALL, limit=5000, after_id=count // 2)
        await client.jobs()


def change(ask: Callable[[AsyncClient], Awaitable[m.Changed]]) -> Callable[[str, int], Awaitable[None]]:
    async def changed(address: str, count: int) -> None:
        async with AsyncClient(address) as client:
            if (answer := await ask(client)).changed != count:
                raise RuntimeError(f"{answer.changed} of {count} tasks were changed")

    return changed


#: What is done with the queued tasks of one job, each by a daemon that was started anew.
STEPS: dict[str, Callable[[str, int], Awaitable[None]]] = {
    "submit": submit,
    "list": look,
    "hold --job": change(lambda client: client.hold(ALL)),
    "set --priority --job": change(lambda client: client.set(ALL, priority=5.0)),
    "release --job": change(lambda client: client.release(ALL)),
    "cancel --job": change(lambda client: client.cancel(ALL)),
}

RESTART, COME_AND_GO = "restart, until READY=1", "come and go"
COLUMNS = ["what", "s", "worst loop lag ms", "MB before", "MB after"]
#: As `COLUMNS` has it. The lag is the worst since the start of that daemon.
Row = list[Any]


def measured(what: str, daemon: Daemon, work: Callable[[], object]) -> Row:
    before = daemon.resident_mb
    with timed() as taken:
        work()
    return [what, taken[0], daemon.lag_ms(), before, daemon.resident_mb]


def large_queue(count: int) -> list[Row]:
    """The rows of a job with so many tasks that wait. A restart is the first that each daemon bears."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="schedd-benchmark-") as name:
        for what, step in STEPS.items():
            with Daemon(Path(name), CONFIG) as daemon:
                if rows:
                    rows.append([RESTART, daemon.ready_s, daemon.lag_ms(), None, daemon.resident_mb])
                rows.append(measured(what, daemon, lambda step=step: asyncio.run(step(daemon.address, count))))  # type: ignore[misc]
    return rows


def large_history(count: int) -> list[Row]:
    """The rows of so many tasks that come, end, and are forgotten."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="schedd-benchmark-") as name:
        folder = Path(name)
        with Daemon(folder, CONFIG) as daemon:
            rows.append(measured(COME_AND_GO, daemon, lambda: asyncio.run(come_and_go(daemon.address, count))))
        with Daemon(folder, CONFIG + f"[journal]\nkeep_mb = {KEPT_MB}\n") as daemon:
            database = folder / "journal.db"
            rows.append(
                measured("forget", daemon, lambda: wait_for(lambda: is_forgotten(database), "it is forgotten", 300))
            )
    return rows


def until_forgotten(database: Path) -> None:
    wait_for(lambda: is_forgotten(database), "the history is forgotten", START_TIMEOUT_S)


def is_forgotten(database: Path) -> bool:
    with contextlib.closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as db:
        return int(db.execute("SELECT coalesce(sum(size_bytes), 0) FROM history").fetchone()[0]) <= KEPT_MB * 2**20


def main() -> int:
    parser = arguments((__doc__ or "").splitlines()[0], runs=1)
    parser.add_argument("--tasks", type=int, default=1_000_000, help="(default %(default)s)")
    options = parser.parse_args()
    runs = [large_queue(options.tasks) + large_history(options.tasks) for _ in range(options.runs)]
    rows = [
        [lines[0][0], *(_middle([line[i] for line in lines]) for i in range(1, 5))] for lines in zip(*runs, strict=True)
    ]
    restarts = [row[1] for row in rows if row[0] == RESTART]
    [growth] = [row[4] - row[3] for row in rows if row[0] == COME_AND_GO]
    floors = [
        Floor("seconds of a restart", median(restarts), RESTART_FLOOR_S, at_most=True),
        Floor("worst ms that the loop was late with", max(row[2] for row in rows), LAG_FLOOR_MS, at_most=True),
        Floor("MB more after all have ended", growth, GROWTH_FLOOR_MB, at_most=True),
    ]
    return finish(options, f"scale: {options.tasks:,} tasks", COLUMNS, rows, floors)


def _middle(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


if __name__ == "__main__":
    sys.exit(main())
