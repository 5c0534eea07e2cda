"""A real worker in the test's own loop, connected to a fake daemon."""

from __future__ import annotations

import asyncio
import os
import pickle
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import cloudpickle

from schedd.config import WorkerSettings
from schedd.core.model import Call
from schedd.wire.messages import AttemptFinished
from schedd.wire.raised import decode_raised
from schedd.worker.main import Worker

from .fake_daemon import FakeDaemon, fake_daemon, until


class Running:
    """A worker and its daemon."""

    def __init__(self, daemon: FakeDaemon, worker: asyncio.Future[int], folder: Path) -> None:
        self.daemon = daemon
        self.worker = worker
        self.folder = folder / "workers" / "w1"

    async def call(self, function: Callable[..., Any], *args: Any, **options: Any) -> AttemptFinished:
        """Run one call to its end."""
        return await self.daemon.run(call_of(function), arguments(*args), **options)

    async def value_of(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Run one call that must go well. Returns its value."""
        end = await self.call(function, *args, **options)
        assert end.cause == "ok", end.message
        assert end.result is not None
        return pickle.loads(end.result)

    def log(self, task_id: int, stream: str = "stdout") -> bytes:
        path = self.folder / "logs" / f"{task_id}.1.{stream}"
        return path.read_bytes() if path.exists() else b""


def call_of(function: Callable[..., Any]) -> Call:
    return Call(cloudpickle.dumps(function))


def failure_of(end: AttemptFinished) -> tuple[BaseException, str]:
    """Return the exception of a call that raised one, and its traceback."""
    raised = decode_raised(end.result)
    assert raised is not None
    return pickle.loads(raised.exception), raised.traceback


def arguments(*args: Any, **kwargs: Any) -> bytes:
    return pickle.dumps((args, kwargs))


@asynccontextmanager
async def running_worker(folder: Path, **settings: Any) -> AsyncIterator[Running]:
    """Run a worker, connected; kill what is left of it in the end."""
    given: dict[str, Any] = {"name": "w1", "cpus": 1.0, "gpus": "none", "state_dir": str(folder)} | settings
    async with fake_daemon() as daemon:
        program = Worker(WorkerSettings(**given), daemon.address, sole=False)
        worker = asyncio.get_running_loop().create_task(program.run())
        try:
            await daemon.wait(lambda: daemon.is_welcomed)
            yield Running(daemon, worker, folder)
        finally:
            worker.cancel()
            await asyncio.wait([worker])


@asynccontextmanager
async def running_program(
    folder: Path, env: Mapping[str, str] | None = None, *, heartbeat_interval_s: float = 5.0, containment: str = "auto"
) -> AsyncIterator[tuple[subprocess.Popen[bytes], Running]]:
    """Run a worker of two CPUs as a program of its own; its log goes to the file "errors"."""
    async with fake_daemon() as daemon:
        daemon.heartbeat_interval_s = heartbeat_interval_s
        argv = [sys.executable, "-m", "schedd.worker", "--connect", str(daemon.address), "--name", "w1", "--cpus", "2"]
        argv += ["--state-dir", str(folder), "--containment", containment]
        with open(folder / "errors", "wb") as errors:  # noqa: ASYNC230, PTH123
            program = subprocess.Popen(argv, stderr=errors, env=env)  # noqa: ASYNC220
        try:
            await daemon.wait(lambda: daemon.is_welcomed)
            yield program, Running(daemon, asyncio.get_running_loop().create_future(), folder)
        finally:
            program.kill()
            program.wait()


def is_alive(pid: int) -> bool:
    """Tell whether a process runs; one that only waits to be reaped does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


async def until_gone(*pids: int) -> None:
    await until(lambda: not any(is_alive(pid) for pid in pids))


async def pid_in(path: Path) -> int:
    """Wait for a file with a pid in it."""
    await until(lambda: path.exists() and path.read_text().endswith("\n"))
    return int(path.read_text())  # noqa: ASYNC240


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208
