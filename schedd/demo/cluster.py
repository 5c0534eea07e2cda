"""A daemon and workers of our own, on loopback, in a temporary directory; gone without a trace afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from msgspec import Struct

import schedd
from schedd.errors import ScheddError

#: A cold start of the daemon takes well under a second; a machine that needs more than this is not usable anyway.
START_S = 30.0
#: Between the first signal, on which a worker lets its tasks end, and the second, on which it ends them: nothing
#: that still runs when we stop is worth waiting for.
DRAIN_S = 0.5
#: Between the second signal and SIGKILL. A worker without its daemon takes some seconds to give up telling it.
STOP_S = 8.0
POLL_S = 0.05
#: What is shown of a log when a process did not start.
LOG_TAIL_BYTES = 2000


class _Process:
    """One `schedd` process with its log file."""

    def __init__(self, directory: Path, name: str, arguments: list[str]) -> None:
        self.name = name
        self.log = directory / f"{name}.log"
        with self.log.open("wb") as log:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "schedd.cli", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_environment(directory),
                # Ctrl-C is for us alone: we stop them in the right order.
                start_new_session=True,
            )

    def check(self) -> None:
        """Raise ScheddError with the end of the log if the process is not running any more."""
        if (code := self.popen.poll()) is not None:
            raise ScheddError(f"the {self.name} of the demo ended with exit code {code}", self.end_of_log())

    def end_of_log(self) -> str:
        """Read the last lines that the process wrote."""
        return self.log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace").strip()

    async def stop(self) -> None:
        """Ask twice (the second time means at once), then kill the process and all that it left."""
        for patience_s in (DRAIN_S, STOP_S):
            if await self._ended():
                break
            self.popen.send_signal(signal.SIGTERM)
            await self._ended(patience_s)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()

    async def _ended(self, within_s: float = 0.0) -> bool:
        deadline = asyncio.get_running_loop().time() + within_s
        while self.popen.poll() is None:
            if asyncio.get_running_loop().time() >= deadline:
                return False
            await asyncio.sleep(POLL_S)
        return True


class Cluster(Struct, frozen=True):
    """Where the daemon listens, and where checkpoints may be kept."""

    address: str
    directory: Path
    processes: list[_Process]

    def check(self) -> None:
        """Raise ScheddError if a process is not running any more."""
        for process in self.processes:
            process.check()


def _environment(directory: Path) -> dict[str, str]:
    # The package may be used from a source tree, where only the current directory makes it importable.
    source = str(Path(schedd.__file__).parents[1])
    paths = [source, *filter(None, [os.environ.get("PYTHONPATH")])]
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    own = {"PYTHONPATH": os.pathsep.join(paths), "SCHEDD_STATE_DIR": str(directory), "XDG_RUNTIME_DIR": str(directory)}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SCHEDD_")}
    return {**inherited, **one_thread, **own}


@contextlib.asynccontextmanager
async def running_cluster(policy: str, workers: int) -> AsyncIterator[Cluster]:
    """Start a daemon with this policy and workers of one CPU each; stop them and remove every file at the end.

    Raises ScheddError where one of them does not start.
    """
    with tempfile.TemporaryDirectory(prefix="schedd-demo-", ignore_cleanup_errors=True) as name:
        directory = Path(name)
        processes: list[_Process] = []
        try:
            address = await _start_daemon(directory, policy, processes)
            for number in range(1, workers + 1):
                _start_worker(directory, f"worker-{number}", address, processes)
            yield Cluster(address, directory, processes)
        finally:
            await _stop_all(processes)


async def _start_daemon(directory: Path, policy: str, processes: list[_Process]) -> str:
    settings, address_file = directory / "config.toml", directory / "address"
    settings.write_text(f'[policy]\nname = "{policy}"\n')
    options = ["--config", str(settings), "--listen", "127.0.0.1:0", "--address-file", str(address_file)]
    daemon = _Process(directory, "daemon", ["serve", *options])
    processes.append(daemon)
    deadline = asyncio.get_running_loop().time() + START_S
    while not (address_file.exists() and (address := address_file.read_text().strip())):
        daemon.check()
        if asyncio.get_running_loop().time() > deadline:
            raise ScheddError(f"the daemon of the demo does not listen after {START_S:g} s", daemon.end_of_log())
        await asyncio.sleep(POLL_S)
    return address


def _start_worker(directory: Path, name: str, address: str, processes: list[_Process]) -> None:
    options = ["--connect", address, "--name", name, "--cpus", "1", "--no-gpus", "--state-dir", str(directory / name)]
    processes.append(_Process(directory, name, ["worker", *options]))


async def _stop_all(processes: list[_Process]) -> None:
    # Shielded: a second Ctrl-C while we clean up must not leave a process behind.
    stopping = asyncio.ensure_future(_stop_in_order(processes))
    while not stopping.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.shield(stopping)


async def _stop_in_order(processes: list[_Process]) -> None:
    """Stop the workers side by side, then the daemon, so that they can still say goodbye to it."""
    daemon, workers = processes[:1], processes[1:]
    await asyncio.gather(*(worker.stop() for worker in workers))
    await asyncio.gather(*(process.stop() for process in daemon))
