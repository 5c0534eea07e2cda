"""Real daemons and workers for tests: each in its own process, on a free port, its log kept, all gone at the end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from schedd.client.sync import Client
from schedd.wire.messages import TaskDetail, TaskView, WorkerView

T = TypeVar("T")

#: For what takes milliseconds; generous, because machines of CI stop and think.
TIMEOUT_S = 20.0
POLL_S = 0.005
#: Marks every process that a cluster started, and what those started.
MARK = "SCHEDD_TEST_CLUSTER"


def wait_until(predicate: Callable[[], T], timeout: float = TIMEOUT_S, what: str = "") -> T:
    """Poll until `predicate()` is true and return what it returned. timeout: seconds. Raises TimeoutError."""
    deadline = time.monotonic() + timeout
    while not (value := predicate()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout:g} s: {what or getattr(predicate, '__name__', predicate)}")
        time.sleep(POLL_S)
    return value


def is_running(pid: int) -> bool:
    """Whether there is such a process that is not a zombie."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def marked_pids(mark: str) -> list[int]:
    """Processes whose environment at their start had `mark`, zombies left out."""
    entry = f"{MARK}={mark}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                if entry in (folder / "environ").read_bytes().split(b"\0") and is_running(int(folder.name)):
                    found.append(int(folder.name))
    return found


class Process:
    """A child process whose output goes to a file."""

    def __init__(self, name: str, argv: Sequence[str], log: Path, env: dict[str, str]) -> None:
        self.name = name
        self.log_path = log
        with log.open("ab") as output:
            self.popen = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=env, start_new_session=True
            )

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def is_alive(self) -> bool:
        return self.popen.poll() is None

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def signal(self, number: signal.Signals) -> None:
        self.popen.send_signal(number)

    def wait(self, timeout: float = TIMEOUT_S) -> int:
        """Wait for the end; returns the exit status, negative for a signal. Raises TimeoutExpired."""
        return self.popen.wait(timeout)

    def stop(self, timeout: float = TIMEOUT_S) -> int:
        """Send SIGTERM and wait for the end; returns the exit status."""
        self.signal(signal.SIGTERM)
        return self.wait(timeout)

    def kill(self) -> None:
        """Send SIGKILL and wait for the end."""
        if self.is_alive:
            self.popen.kill()
            self.popen.wait(TIMEOUT_S)


class DaemonProcess(Process):
    """A daemon that listens at `address`."""

    address = ""

    def memory_bytes(self) -> int:
        """Resident memory."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


class Cluster:
    """A daemon with its workers and clients, in a folder of its own. A context manager."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mark = f"{os.getpid()}-{folder}"
        self.processes: list[Process] = []
        #: Where clients of ours connect; "": to where the daemon listens.
        self.client_address = ""
        self._daemon: DaemonProcess | None = None
        self._clients: list[Client] = []
        self._client: Client | None = None
        self._count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # -------------------------------------------------------------------------------------------------------- daemon

    @property
    def daemon(self) -> DaemonProcess:
        if self._daemon is None:
            raise RuntimeError("no daemon was started")
        return self._daemon

    @property
    def address(self) -> str:
        return self.daemon.address

    def start_daemon(
        self,
        config: str = "",
        *,
        listen: str = "127.0.0.1:0",
        wait: bool = True,
        env: dict[str, str] | None = None,
        program: Sequence[str] = ("-m", "schedd.server"),
        prefix: Sequence[str] = (),
    ) -> DaemonProcess:
        """Start a daemon with the text of a config.toml; returns once it listens.

        program: what Python is to run. prefix: words before the command, of a program that becomes it (`nsenter`).
        """
        self._count += 1
        settings = self.folder / f"config-{self._count}.toml"
        settings.write_text(config)
        address_file = self.folder / f"address-{self._count}"
        argv = [*prefix, sys.executable, *program, "--config", str(settings), "--listen", listen]
        argv += ["--address-file", str(address_file)]
        log = self.folder / f"daemon-{self._count}.log"
        self._client = None
        daemon = self._daemon = DaemonProcess("daemon", argv, log, self.env(env))
        self.processes.append(daemon)
        if wait:
            wait_until(lambda: address_file.exists() or not daemon.is_alive, what="the daemon listens")
            assert daemon.is_alive, daemon.log()
            daemon.address = address_file.read_text().strip()
        return daemon

    # ------------------------------------------------------------------------------------------------------- workers

    def start_worker(
        self,
        name: str = "w1",
        cpus: float = 1,
        *options: str,
        config: str = "",
        wait: bool = True,
        env: dict[str, str] | None = None,
        prefix: Sequence[str] = (),
    ) -> Process:
        """Start a worker; returns once the daemon has it. options: as of `schedd worker`. prefix: as of a daemon."""
        state = self.folder / "state"
        self._count += 1
        argv = [*prefix, sys.executable, "-m", "schedd.cli", "worker", "--connect", self.address, "--name", name]
        argv += ["--log-level", "debug", "--cpus", str(cpus), "--state-dir", str(state), *options]
        if config:
            settings = self.folder / f"worker-{self._count}.toml"
            settings.write_text(config)
            argv += ["--config", str(settings)]
        process = Process(name, argv, self.folder / f"{name}-{self._count}.log", self.env(env))
        self.processes.append(process)
        if wait:
            self.wait_for_workers(name)
        return process

    def start_workers(self, cpus_by_name: dict[str, float]) -> dict[str, Process]:
        """Start several workers at once."""
        started = {name: self.start_worker(name, cpus, wait=False) for name, cpus in cpus_by_name.items()}
        self.wait_for_workers(*cpus_by_name)
        return started

    def wait_for_workers(self, *names: str) -> None:
        def all_here() -> bool:
            status_of = {str(worker.name): worker.status for worker in self.client.workers()}
            return all(status_of.get(name) in ("idle", "busy") for name in names)

        wait_until(all_here, what=f"workers {', '.join(names)} are there")

    def worker(self, name: str) -> WorkerView | None:
        """The daemon's row of a worker; None where it has none."""
        return next((row for row in self.client.workers() if row.name == name), None)

    def worker_status(self, name: str) -> str:
        row = self.worker(name)
        return row.status if row is not None else "none"

    # ------------------------------------------------------------------------------------------------------- clients

    @property
    def client(self) -> Client:
        """A client of the newest daemon, made when it is first asked for."""
        if self._client is None:
            self._client = self.new_client()
        return self._client

    def new_client(self) -> Client:
        """Another client of the newest daemon."""
        self._clients.append(Client(self.client_address or self.address))
        return self._clients[-1]

    def task(self, task_id: int) -> TaskView:
        return self.client.show(task_id)[0][0]

    def detail(self, task_id: int) -> TaskDetail:
        return self.client.show(task_id)[0][1]

    def wait_for_state(self, task_id: int, *states: str, timeout: float = TIMEOUT_S) -> TaskView:
        """Wait until a task is in one of these states."""

        def there() -> TaskView | None:
            view = self.task(task_id)
            return view if view.state in states else None

        found = wait_until(there, timeout, f"task {task_id} is {' or '.join(states)}")
        assert found is not None
        return found

    def wait_until_written(self) -> None:
        """Wait until all that the daemon has told is on disk: a question may be answered with what is not yet."""
        self.client.history(limit=1)

    # ------------------------------------------------------------------------------------------------------- the end

    def env(self, more: dict[str, str] | None = None) -> dict[str, str]:
        own = {MARK: self.mark, "PYTHONUNBUFFERED": "1", "SCHEDD_STATE_DIR": str(self.folder / "daemon")}
        return {**os.environ, **own, **(more or {})}

    def pids(self) -> list[int]:
        """Every process that is left of this cluster, tasks and what they started included."""
        return marked_pids(self.mark)

    def logs(self) -> Iterator[tuple[str, str]]:
        """The name and the end of each log."""
        for process in self.processes:
            yield process.name, process.log()[-20_000:]

    def close(self) -> None:
        """Close the clients and kill every process."""
        for client in self._clients:
            with contextlib.suppress(Exception):
                client.close()
        for process in self.processes:
            if process.is_alive:
                process.signal(signal.SIGCONT)
                process.kill()
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
