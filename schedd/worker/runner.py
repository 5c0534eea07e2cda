"""Carries out what the state machine decides: starts and ends commands and calls, and clears up what they leave."""

from __future__ import annotations

import asyncio
import fcntl
import math
import os
import shutil
import socket
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import msgspec
from msgspec import Struct, field

from schedd.core.model import Cause, Command, WorkerResources
from schedd.credentials import VARIABLES
from schedd.errors import ConfigError
from schedd.log import Log
from schedd.wire.messages import FetchLog, LogPiece
from schedd.worker.attempts import Action, Attempt, Ending, KillAttempt, StartAttempt
from schedd.worker.cgroups import end_earlier
from schedd.worker.children import Children, OnReport
from schedd.worker.commands import Commands, OnEnded
from schedd.worker.containment import AUTO, Guard, choose
from schedd.worker.logs import LogStore
from schedd.worker.oom import KernelOom
from schedd.worker.processes import ROOT_VARIABLE, has_ended_child
from schedd.worker.strays import Strays
from schedd.worker.trees import Containment

#: Starting a command holds the loop for about half a millisecond; after this many others get a turn.
STARTS_PER_TURN = 8
TICK_S = 1.0
#: A process that was just killed needs a moment before it can be reaped.
STRAY_DELAY_S = 0.02
CLOSING_SWEEPS = 50
#: A report is a few numbers; a Unix socket's queue holds ten datagrams.
REPORT_BYTES_MAX = 65536
REPORTS_PER_TURN = 100
#: The longest path that a Unix socket's address holds, without its final zero.
SOCKET_PATH_BYTES_MAX = 107

_log = Log("schedd.worker")


class CommandReport(Struct, frozen=True):
    """What `schedd.report` sends from a command. None stands for a number that JSON cannot spell."""

    task_id: int
    attempt: int
    step: int
    metrics: dict[str, float | None] = field(default_factory=dict)


_report_decoder = msgspec.json.Decoder(CommandReport)


class RunnerOptions(Struct, frozen=True):
    """What the runner needs to know of the worker's settings."""

    worker: str
    incarnation: str
    folder: Path
    resources: WorkerResources
    child_idle_s: float
    result_bytes_max: int
    logs_keep_count: int
    #: This program does nothing but run the worker: any child that it did not start was left by an attempt.
    sole: bool = False
    #: How the processes of a task are held together: "auto", or a mode of `schedd.worker.containment`.
    containment: str = AUTO


class Runner:
    """The processes of a worker. Ends come through `on_ended`, each exactly once."""

    def __init__(
        self,
        options: RunnerOptions,
        on_ended: OnEnded,
        on_report: OnReport,
        align: Callable[[int], int],
        ask_for_turn: Callable[[], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._options = options
        self._on_report = on_report
        self._ask_for_turn = ask_for_turn
        self._actions: deque[Action] = deque()
        self._root_count = 0
        self._uuids = [gpu.uuid for gpu in options.resources.devices()]
        options.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = _lock(options.folder)
        self._containment = self._contain()
        self._guard = Guard(self._containment, options.incarnation)
        self.logs = LogStore(options.folder / "logs", options.logs_keep_count)
        self._run_folder = _make_run_folder(options.folder)
        self._reports, self._report_path, self._socket_folder = _bind_reports(self._run_folder)
        self._base_env = self._make_base_env()
        self._kernel = KernelOom()
        self._commands = Commands(
            self._run_folder,
            self.logs,
            self._containment,
            self._on_command_ended,
            self._command_env,
            self._sweep,
            options.result_bytes_max,
            self._kernel,
        )
        # A child of ours is a subreaper itself: while it lives, what its calls leave comes to it.
        self._strays = Strays(options.incarnation, self._roots, self._commands.roots, sole=options.sole)
        self._on_ended = on_ended
        self._children = Children(
            self._run_folder,
            self.logs,
            self._containment,
            on_ended,
            on_report,
            self._child_env,
            align,
            ask_for_turn,
            self._sweep,
            self._kernel,
            worker=options.worker,
            idle_s=options.child_idle_s,
            result_bytes_max=options.result_bytes_max,
        )
        self._loop.add_reader(self._reports.fileno(), self._on_reports)
        self._tick_timer = self._loop.call_later(TICK_S, self._tick)
        self._sweep_timer: asyncio.TimerHandle | None = None

    def _contain(self) -> Containment:
        """End what an earlier life left, and make this life's containment. Raises ConfigError."""
        note = self._options.folder / "cgroup"
        try:
            end_earlier(note)
            containment = choose(self._options.containment, self._options.incarnation, sole=self._options.sole)
            if containment.group:
                note.write_text(containment.group)
        except BaseException:
            os.close(self._lock)
            raise
        return containment

    # ------------------------------------------------------------------------------------------------------ actions

    def perform(self, actions: list[Action]) -> None:
        """Carry out actions in order. What would hold the loop for too long is left to the next turn."""
        pending = self._actions
        pending += actions
        start_count = 0
        while pending:
            if start_count == STARTS_PER_TURN:
                self._ask_for_turn()
                break
            action = pending.popleft()
            row = action.row
            if not row.ended:
                start_count += isinstance(action, StartAttempt) and isinstance(row.spec.payload, Command)
                self._perform(action, row)
        self._children.start_homeless()

    def _perform(self, action: Action, row: Attempt) -> None:
        payload = row.spec.payload
        if isinstance(action, StartAttempt):
            if row.devices:
                self._children.free_devices(row)
            if (row.dropped or row.stop_cause is not None) and not (row.ahead or row.begun):
                # Stopped in the very turn in which it should have started.
                self._on_ended(row, Ending(Cause.CANCELLED))
            elif isinstance(payload, Command):
                self._commands.start(row, payload)
            else:
                self._children.start(row)
            return
        runner = self._commands if isinstance(payload, Command) else self._children
        if isinstance(action, KillAttempt):
            runner.kill(row)
        else:
            runner.terminate(row)

    def recall(self) -> None:
        """Take back all calls that were sent ahead and not begun. Before a message that may remove some."""
        self._children.recall()

    def send_ahead(self, upcoming: Callable[[int], list[Attempt]]) -> None:
        self._children.send_ahead(upcoming)

    def read_log(self, request: FetchLog) -> LogPiece:
        return self.logs.read(request, self._children.running_file(request.task_id, request.attempt, request.stream))

    def _on_command_ended(self, row: Attempt, ending: Ending) -> None:
        # What it reported last may still be in the socket, and would come too late after its end.
        self._on_reports()
        self._on_ended(row, ending)
        self._ask_for_turn()

    # -------------------------------------------------------------------------------------------------- environment

    def _make_base_env(self) -> dict[str, str]:
        # A task is not the worker: it does not get what the worker proves itself with.
        env = {name: value for name, value in os.environ.items() if name not in VARIABLES}
        env["SCHEDD_WORKER"] = self._options.worker
        env["SCHEDD_REPORT"] = self._report_path
        if self._uuids:
            env["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        return env

    def _child_env(self, devices: tuple[int, ...]) -> dict[str, str]:
        env = self._base_env.copy()
        self._root_count += 1
        env[ROOT_VARIABLE] = f"{self._options.incarnation}:{self._root_count}"
        if self._uuids:
            # Also for none: a task that asked for no GPU must not find one.
            env["CUDA_VISIBLE_DEVICES"] = ",".join([self._uuids[index] for index in devices])
        return env

    def _command_env(self, row: Attempt) -> dict[str, str]:
        env = self._child_env(row.devices)
        env["SCHEDD_TASK_ID"] = str(row.task_id)
        env["SCHEDD_ATTEMPT"] = str(row.attempt)
        env["SCHEDD_JOB"] = row.spec.job
        env["SCHEDD_KIND"] = row.spec.kind
        env["SCHEDD_GRACE_S"] = f"{row.spec.rules.grace_s:g}"
        return env

    # ---------------------------------------------------------------------------------------------------- clearing up

    def _roots(self) -> dict[int, str]:
        return {self._guard.pid: "guard"} | self._commands.roots() | self._children.roots()

    def _sweep(self) -> bool:
        """Kill what ended attempts left. True where some of it is not gone yet."""
        if self._containment.is_tight and not has_ended_child():
            return False  # what nearly all commands leave, at a twentieth of the cost of looking
        return self._sweep_all()

    def _sweep_all(self) -> bool:
        is_left = self._strays.sweep()
        if is_left and self._sweep_timer is None:
            self._sweep_timer = self._loop.call_later(STRAY_DELAY_S, self._sweep_again)
        return is_left

    def _sweep_again(self) -> None:
        self._sweep_timer = None
        self._sweep_all()

    def _tick(self) -> None:
        self._tick_timer = self._loop.call_later(TICK_S, self._tick)
        self._guard.check()
        self._children.end_idle()
        self._sweep_all()  # also who outran the moves into the cells
        self._kernel.look()

    def _on_reports(self) -> None:
        for _ in range(REPORTS_PER_TURN):
            try:
                data = self._reports.recv(REPORT_BYTES_MAX)
            except BlockingIOError:
                return
            try:
                report = _report_decoder.decode(data)
            except (msgspec.MsgspecError, UnicodeDecodeError):
                _log.debug("report_ignored", size_bytes=len(data))
                continue
            metrics = {name: math.nan if value is None else value for name, value in report.metrics.items()}
            self._on_report(report.task_id, report.attempt, report.step, metrics)
            self._ask_for_turn()

    def close(self) -> None:
        """Kill what still runs and remove what only this run needed. The logs stay."""
        for timer in (self._tick_timer, self._sweep_timer):
            if timer is not None:
                timer.cancel()
        self._commands.close()
        self._children.close()
        for _ in range(CLOSING_SWEEPS):
            if not self._strays.sweep():
                break
            time.sleep(STRAY_DELAY_S)
        if not self._options.sole:
            self._guard.dismiss()
        self._containment.close()
        self.logs.close_all()
        self._kernel.close()
        self._loop.remove_reader(self._reports.fileno())
        self._reports.close()
        os.close(self._lock)
        for folder in (self._run_folder, self._socket_folder):
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)


def _lock(folder: Path) -> int:
    """Keep other workers out of a folder, for as long as the descriptor is open. Raises ConfigError."""
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise ConfigError(f"another worker uses {folder}", "give this one a name or a state_dir of its own") from None
    except OSError as error:
        # Some network file systems have no locks.
        _log.debug("folder_not_locked", folder=folder, reason=error.strerror)
    return lock


def _make_run_folder(folder: Path) -> Path:
    """Make a folder for the files of this run, and remove those of runs that are over."""
    for old in folder.glob("run-*"):
        pid = old.name.split("-")[1]
        if not (pid.isdigit() and Path(f"/proc/{pid}").exists()):
            shutil.rmtree(old, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"run-{os.getpid()}-", dir=folder))


def _bind_reports(folder: Path) -> tuple[socket.socket, str, Path | None]:
    """Bind the socket that commands report to; in a folder of its own where the path would be too long."""
    path, own_folder = folder / "report", None
    if len(os.fsencode(path)) > SOCKET_PATH_BYTES_MAX:
        own_folder = Path(tempfile.mkdtemp(prefix="schedd-"))
        path = own_folder / "report"
    reports = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    reports.setblocking(False)
    reports.bind(str(path))
    return reports, str(path), own_folder
