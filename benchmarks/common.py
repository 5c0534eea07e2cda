"""What the benchmarks share: a daemon with workers, the table at the end, and floors that must be reached."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
from msgspec import Struct
from rich.console import Console
from rich.table import Table

from schedd.assembly import is_compiled
from schedd.credentials import Credentials

START_TIMEOUT_S = 30.0
#: Runs of which the median is taken.
RUNS = 5


class Floor(Struct):
    """A bound that a measured value must keep: at least it, or (`at_most`) at most."""

    what: str
    value: float
    bound: float
    at_most: bool = False

    @property
    def is_kept(self) -> bool:
        return self.value <= self.bound if self.at_most else self.value >= self.bound


def arguments(description: str, *, runs: int = RUNS) -> argparse.ArgumentParser:
    """The options that all benchmarks have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--runs", type=int, default=runs, help="the median is shown (default %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write all that was measured to this file, - for stdout")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a floor is missed")
    return parser


def finish(
    options: argparse.Namespace, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], floors: list[Floor]
) -> int:
    """Show the table and the floors; returns the exit status."""
    console = Console(stderr=options.json == "-", width=None if sys.stdout.isatty() else 140)
    table = Table(title=f"{name}, compiled" if is_compiled() else name, title_justify="left")
    for position, column in enumerate(columns):
        table.add_column(column, justify="right" if position else "left", no_wrap=not position)
    for row in rows:
        table.add_row(*map(_cell, row))
    console.print(table)
    for floor in floors:
        sign = "<=" if floor.at_most else ">="
        verdict = "ok" if floor.is_kept else "MISSED"
        console.print(f"{verdict:>6}  {floor.what}: {_cell(floor.value)} {sign} {_cell(floor.bound)}", highlight=False)
    if options.json:
        written = {
            "benchmark": name,
            "python": platform.python_version(),
            "kernel": platform.release(),
            "cpus": os.cpu_count(),
            "compiled": is_compiled(),
            "rows": [dict(zip(columns, row, strict=True)) for row in rows],
            "floors": [{**json.loads(json.dumps(_plain(floor))), "kept": floor.is_kept} for floor in floors],
        }
        text = json.dumps(written, indent=2)
        if options.json == "-":
            sys.stdout.write(text + "\n")
        else:
            Path(options.json).write_text(text + "\n")
    return 1 if options.check and not all(floor.is_kept for floor in floors) else 0


def _plain(floor: Floor) -> dict[str, Any]:
    return {"what": floor.what, "value": floor.value, "bound": floor.bound, "at_most": floor.at_most}


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def spread(values: Sequence[float]) -> str:
    """The lowest and the highest, for the table."""
    return f"{_cell(min(values))} .. {_cell(max(values))}"


def percentile(values: Sequence[float], percent: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


class Service:
    """A daemon and its workers, each a process of its own, in a folder that goes with them. A context manager.

    worker_env: variables of the workers. credentials: what a client shows; None: as the environment says.
    """

    def __init__(
        self,
        workers: int = 2,
        cpus: int = 1,
        config: str = "",
        *,
        worker_env: dict[str, str] | None = None,
        credentials: Credentials | None = None,
    ) -> None:
        self._credentials = credentials
        self._folder = tempfile.TemporaryDirectory(prefix="schedd-benchmark-")
        folder = Path(self._folder.name)
        settings, address_file = folder / "config.toml", folder / "address"
        settings.write_text(config or '[log]\nlevel = "warning"\n')
        self._address_file = address_file
        self._daemon_argv = [sys.executable, "-m", "schedd.server", "--config", str(settings)]
        self._daemon_argv += ["--address-file", str(address_file)]
        self.workers: list[subprocess.Popen[bytes]] = []
        self.daemon = self._start_daemon("127.0.0.1:0")
        try:
            wait_for(address_file.exists, "the daemon listens")
            self.address = address_file.read_text().strip()
            for number in range(workers):
                argv = [sys.executable, "-m", "schedd.worker", "--connect", self.address, "--name", f"w{number}"]
                argv += ["--cpus", str(cpus), "--state-dir", str(folder), "--log-level", "warning"]
                env = {**os.environ, **(worker_env or {})}
                self.workers.append(_start(argv, folder / f"w{number}.log", env))
            self._wait_for_workers()
        except BaseException:
            self.close()
            raise

    def _start_daemon(self, listen: str) -> subprocess.Popen[bytes]:
        folder = self._address_file.parent
        # The daemon's journal goes with the folder, too.
        env = {**os.environ, "SCHEDD_STATE_DIR": str(folder)}
        return _start([*self._daemon_argv, "--listen", listen], folder / "daemon.log", env)

    def kill_daemon(self) -> float:
        """Kill the daemon with SIGKILL and start it again; returns the seconds until it listened again."""
        self.daemon.kill()
        self.daemon.wait()
        self._address_file.unlink()
        with timed() as taken:
            self.daemon = self._start_daemon(self.address)
            wait_for(self._address_file.exists, "the daemon listens again")
        return taken[0]

    def _wait_for_workers(self) -> None:
        from schedd.client.sync import Client

        with Client(self.address, credentials=self._credentials) as client:
            wait_for(lambda: len(client.workers()) == len(self.workers), "the workers are there")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        for process in [*self.workers, self.daemon]:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._folder.cleanup()

    def cpu_seconds(self) -> dict[str, float]:
        """CPU time so far: of the daemon, the worker agents, their children, and this process as the client."""
        agents = [psutil.Process(worker.pid) for worker in self.workers]
        children = [child for agent in agents for child in agent.children(recursive=True)]
        return {
            "daemon": cpu_of([psutil.Process(self.daemon.pid)]),
            "workers": cpu_of(agents),
            "children": cpu_of(children) + sum(_reaped(agent) for agent in agents),
            "client": time.process_time(),
        }


def cpu_of(processes: Sequence[psutil.Process]) -> float:
    total = 0.0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def _reaped(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.children_user + times.children_system)


def _start(argv: list[str], log: Path, env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=env)


def wait_for(predicate: Callable[[], object], what: str, timeout: float = START_TIMEOUT_S) -> None:
    """Poll until the predicate is true. Raises TimeoutError."""
    deadline = time.monotonic() + timeout
    while not predicate():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout:g} s: {what}")
        time.sleep(0.002)


@contextlib.contextmanager
def timed() -> Iterator[list[float]]:
    """Appends the seconds that its block took to the list that it gives."""
    taken: list[float] = []
    started = time.perf_counter()
    yield taken
    taken.append(time.perf_counter() - started)
