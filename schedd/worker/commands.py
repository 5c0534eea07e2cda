"""Runs commands: one root process for each, its output straight to files, its end seen through a pidfd."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
from msgspec import Struct

from schedd.core.model import Cause, Command
from schedd.log import Log
from schedd.worker.attempts import Attempt, Ending
from schedd.worker.logs import LogFiles, LogStore
from schedd.worker.oom import KernelOom
from schedd.worker.processes import ROOT_VARIABLE, describe_exit, reap
from schedd.worker.symptoms import out_of_memory
from schedd.worker.trees import Containment, Tree

#: How much of the end of stderr is looked at for what went wrong, and how many characters of its last line are told.
TAIL_BYTES = 8192
LAST_LINE_MAX = 300
#: What a shell says of a child that died of SIGKILL.
SHELL_KILLED = 128 + signal.SIGKILL

_log = Log("schedd.worker")

OnEnded = Callable[[Attempt, Ending], None]


class RunningCommand(Struct, eq=False):
    row: Attempt
    root: str
    tree: Tree
    files: LogFiles
    result_path: str


class Commands:
    """The commands that run now."""

    def __init__(
        self,
        folder: Path,
        logs: LogStore,
        containment: Containment,
        on_ended: OnEnded,
        env_of: Callable[[Attempt], dict[str, str]],
        sweep: Callable[[], bool],
        result_bytes_max: int,
        kernel: KernelOom,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._folder = folder
        self._logs = logs
        self._containment = containment
        self._on_ended = on_ended
        self._env_of = env_of
        self._sweep = sweep
        self._result_bytes_max = result_bytes_max
        self._kernel = kernel
        self._running: dict[Attempt, RunningCommand] = {}
        self._null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)

    def roots(self) -> dict[int, str]:
        """The pid of each running root, and its name."""
        return {command.tree.pid: command.root for command in self._running.values()}

    def start(self, row: Attempt, payload: Command) -> None:
        """Start a command; one that cannot be started ends at once, with the reason."""
        try:
            files = self._logs.open(row.name)
        except OSError as error:
            self._on_ended(row, Ending(Cause.ERROR, message=f"no log can be written: {error}"))
            return
        result_path = f"{self._folder}/{row.name}.result"
        try:
            env = self._env_of(row)
            env.update(payload.env)
            env["SCHEDD_RESULT"] = result_path
            argv = payload.argv
            if payload.variable:
                text = os.fsdecode(row.argument)
                env[payload.variable] = text
                argv = [part.replace("{}", text) for part in argv]
            tree = self._spawn(argv, env, payload, files)
        except (OSError, ValueError) as error:
            self._logs.close(files, reusable=False)
            self._on_ended(row, Ending(Cause.ERROR, message=_why_not_started(payload, error)))
            return
        self._running[row] = RunningCommand(row, env[ROOT_VARIABLE], tree, files, result_path)
        self._loop.add_reader(tree.pidfd, self._on_exit, row)

    def _spawn(self, argv: list[str], env: Mapping[str, str], payload: Command, files: LogFiles) -> Tree:
        if not argv:
            raise ValueError("the command is empty")
        if not payload.stdin:
            return self._containment.start(argv, env, payload.cwd, (self._null, files.stdout, files.stderr))
        # A file that exists nowhere: unlike a pipe it holds any amount without anyone who writes on.
        stdin = os.memfd_create("stdin", os.MFD_CLOEXEC)
        try:
            _write_all(stdin, payload.stdin)
            os.lseek(stdin, 0, os.SEEK_SET)
            return self._containment.start(argv, env, payload.cwd, (stdin, files.stdout, files.stderr))
        finally:
            os.close(stdin)

    def terminate(self, row: Attempt) -> None:
        command = self._running.get(row)
        if command is not None:
            command.tree.signal(signal.SIGTERM)

    def kill(self, row: Attempt) -> None:
        command = self._running.get(row)
        if command is not None:
            command.tree.kill()

    def _on_exit(self, row: Attempt) -> None:
        command = self._running.pop(row)
        self._loop.remove_reader(command.tree.pidfd)
        os.close(command.tree.pidfd)
        is_left = command.tree.end()
        code = reap(command.tree.pid)
        try:
            ending = self._ending_of(command, code)
        except Exception as error:  # a bug of ours, for which no attempt may run for ever
            _log.exception("end_not_judged", attempt=row.name, code=code)
            message = f"{describe_exit(code)}; what else there is to be said of it failed: {error!r}"
            ending = Ending(Cause.ERROR, message=message)
        is_left |= self._sweep()
        self._logs.close(command.files, reusable=not is_left)
        self._on_ended(row, ending)

    def _ending_of(self, command: RunningCommand, code: int) -> Ending:
        result, note = self._read_result(command.result_path)
        exit_code, signal_number = (code, None) if code >= 0 else (None, -code)
        if code == 0:
            return Ending(Cause.OK, result, exit_code, message=note)
        cause, message = self._why(command, code)
        return Ending(cause, result, exit_code, signal_number, f"{message}; {note}" if note else message)

    def _why(self, command: RunningCommand, code: int) -> tuple[Cause, str]:
        """Why a command failed, by what the kernel knows, else by what it said itself."""
        message = describe_exit(code)
        if command.tree.oom_kills():
            return Cause.OOM_HOST, f"{message}: its cgroup was out of memory"
        if code == -signal.SIGKILL and self._kernel.named(command.tree.pid):
            return Cause.OOM_HOST, f"{message}: the kernel killed it for lack of memory"
        tail = self._stderr_tail(command.row.name)
        if (symptom := out_of_memory(tail.decode(errors="replace"))) is not None:
            where = "GPU memory" if symptom.cause is Cause.OOM_GPU else "memory"
            return symptom.cause, f"{message}: out of {where}: {printable(symptom.line)}"
        if code in (-signal.SIGKILL, SHELL_KILLED) and self._kernel.has_risen():
            # Somebody's process, perhaps not ours.
            message += " (the kernel has just killed a process of this host for lack of memory)"
        elif last := last_line(tail):
            message = f"{message}: {last}"
        return Cause.ERROR, message

    def _read_result(self, path: str) -> tuple[bytes | None, str]:
        """Read what a command wrote to `SCHEDD_RESULT`. Returns the JSON, or None and what is wrong."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return None, ""
        except OSError as error:
            return None, f"SCHEDD_RESULT cannot be read: {error.strerror}"
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):  # a pipe, perhaps, to which somebody still writes
                os.close(fd)
                return None, "SCHEDD_RESULT is no file"
            with os.fdopen(fd, "rb") as file:
                content = file.read(self._result_bytes_max + 1)
        except OSError as error:
            return None, f"SCHEDD_RESULT cannot be read: {error.strerror}"
        finally:
            with contextlib.suppress(OSError):
                os.unlink(path)  # noqa: PTH108
        if len(content) > self._result_bytes_max:
            return None, f"SCHEDD_RESULT is above the bound of {self._result_bytes_max} bytes"
        try:
            msgspec.json.decode(content)
            return content, ""
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            content, count = nulls_for_nan(content)
            if not count:
                return None, f"SCHEDD_RESULT is not JSON: {error}"
        if len(content) > self._result_bytes_max:  # null is longer than NaN
            return None, f"SCHEDD_RESULT is above the bound of {self._result_bytes_max} bytes"
        return content, f"null in place of NaN and Infinity in SCHEDD_RESULT: {count}"

    def _stderr_tail(self, name: str) -> bytes:
        try:
            with open(self._logs.path(name, "stderr"), "rb") as file:  # noqa: PTH123
                file.seek(0, os.SEEK_END)
                file.seek(max(0, file.tell() - TAIL_BYTES))
                return file.read(TAIL_BYTES)
        except OSError:
            return b""

    def close(self) -> None:
        """Kill what still runs and wait for it."""
        for command in self._running.values():
            self._loop.remove_reader(command.tree.pidfd)
            os.close(command.tree.pidfd)
            command.tree.kill()
            command.tree.end()
            reap(command.tree.pid)
            self._logs.close(command.files, reusable=False)
        self._running.clear()
        os.close(self._null)


def last_line(tail: bytes) -> str:
    """The last words that a program left on stderr, which mostly say what went wrong; printable, and not many."""
    lines = tail.decode(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return printable(last[:LAST_LINE_MAX])


def printable(text: str) -> str:
    """Put a question mark for each character that a terminal could take for something else."""
    return "".join(c if c.isprintable() else "?" for c in text)


def nulls_for_nan(content: bytes) -> tuple[bytes, int]:
    """Put null for NaN and Infinity, which Python's `json` writes and JSON has no words for.

    Returns the JSON, and for how many; 0 also where it is not JSON but for them.
    """
    count = 0

    def null(word: str) -> None:
        nonlocal count
        count += 1

    try:
        value = json.loads(content.decode(), parse_constant=null)
        written = json.dumps(value, allow_nan=False, separators=(",", ":")).encode()
        msgspec.json.decode(written)
    except (ValueError, RecursionError):
        return content, 0
    return written, count


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _why_not_started(payload: Command, error: Exception) -> str:
    if not isinstance(error, OSError):
        return f"the command cannot be started: {error or type(error).__name__}"
    program = payload.argv[0] if payload.argv else ""
    if payload.cwd is not None and error.filename == payload.cwd:
        return f"working directory {payload.cwd!r}: {error.strerror}"
    if isinstance(error, FileNotFoundError) and error.filename == program:
        return f"program not found: {program!r}"
    if error.filename is None or error.filename == program:
        return f"cannot run {program!r}: {error.strerror}"
    return f"cannot start {program!r}: {error.strerror}: {error.filename!r}"
