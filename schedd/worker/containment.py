"""Chooses how the processes of a task are held together, and keeps the guard that outlives the worker.

| mode | one task | all tasks of a worker that got SIGKILL |
| --- | --- | --- |
| cgroup | `cgroup.kill` of its cell | the guard kills the worker's group |
| namespace | the kernel, when process 1 of its PID namespace ends | the kernel, by parent-death signals |
| process-group | its group, its descendants, and orphans by their `SCHEDD_ROOT` | the guard, by their `SCHEDD_ROOT` |

A task that clears its environment, leaves its session and its parents is lost to the last one alone.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Mapping

from schedd.errors import ConfigError
from schedd.log import Log
from schedd.worker import guard, namespace_init
from schedd.worker.cgroups import Cells
from schedd.worker.processes import reap, reap_if_ended, signal_process
from schedd.worker.trees import Containment, NotAvailable, Tree

AUTO = "auto"
PROBE_TIMEOUT_S = 10.0

_log = Log("schedd.worker")


def _python(program: str) -> list[str]:
    """The start of a command that runs one of our small programs, with nothing of the user's in it."""
    return [sys.executable, "-I", "-S", program]


class Namespaces(Containment):
    """A PID namespace around each root."""

    mode = "namespace"

    def __init__(self) -> None:
        """Try it. Raises NotAvailable."""
        super().__init__()
        self._launcher = [*_python(namespace_init.__file__), str(os.getpid())]
        try:
            done = subprocess.run(
                [*self._launcher, "true"], stdin=subprocess.DEVNULL, capture_output=True, timeout=PROBE_TIMEOUT_S
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise NotAvailable(str(error)) from None
        if done.returncode:
            raise NotAvailable(done.stderr.decode(errors="replace").strip() or f"exit code {done.returncode}")

    def start(
        self,
        argv: list[str],
        env: Mapping[str, str],
        cwd: str | None,
        fds: tuple[int, int, int],
        extra_fd: int | None = None,
    ) -> Tree:
        _check_program(argv[0], env, cwd)
        try:
            return super().start([*self._launcher, *argv], env, cwd, fds, extra_fd)
        except OSError as error:
            if error.filename != self._launcher[0]:
                raise
            raise _os_error(error.errno or 0, argv[0]) from None

    def parent_pid(self) -> int:
        return 1


def _check_program(program: str, env: Mapping[str, str], cwd: str | None) -> None:
    """Raise what starting a program would raise: the launcher could only tell by its exit code."""
    if cwd is not None and not os.path.isdir(cwd):  # noqa: PTH112
        raise _os_error(errno.ENOTDIR if os.path.exists(cwd) else errno.ENOENT, cwd)  # noqa: PTH110
    if "/" in program:
        paths = [os.path.join(cwd or "", program)]  # noqa: PTH118
    else:
        folders = env.get("PATH", os.defpath).split(os.pathsep)
        paths = [os.path.join(cwd or "", folder, program) for folder in folders]  # noqa: PTH118
    found = [path for path in paths if os.path.exists(path)]  # noqa: PTH110
    if not any(os.access(path, os.X_OK) and not os.path.isdir(path) for path in found):  # noqa: PTH112
        raise _os_error(errno.EACCES if found else errno.ENOENT, program)


def _os_error(code: int, name: str) -> OSError:
    return OSError(code, os.strerror(code), name)


class Guard:
    """The guard's process, started again should somebody end it."""

    def __init__(self, containment: Containment, incarnation: str) -> None:
        self._containment = containment
        self._argv = [*_python(guard.__file__), containment.group, f"{incarnation}:"]
        self._read, self._write = os.pipe()
        self._null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        self.pid = 0
        self._start()

    def _start(self) -> None:
        self.pid = self._containment.start_own(self._argv, (self._read, self._null, self._null))

    def check(self) -> None:
        """Start it again if it is gone. Raises nothing: the next check tries again."""
        if not reap_if_ended(self.pid):
            return
        _log.warning("guard_gone", pid=self.pid)
        self._containment.staff.discard(self.pid)
        try:
            self._start()
        except OSError as error:
            _log.warning("guard_not_started", reason=error.strerror)

    def dismiss(self) -> None:
        """End it where the worker leaves and the program goes on. What the containment holds is closed after it."""
        signal_process(self.pid, signal.SIGKILL)
        reap(self.pid)
        for fd in (self._read, self._write, self._null):
            os.close(fd)


def choose(mode: str, incarnation: str, *, sole: bool) -> Containment:
    """Make the containment that is asked for, or the best there is. Raises ConfigError where it cannot be had."""
    reasons = {}
    for name in (Cells.mode, Namespaces.mode):
        if mode not in (AUTO, name):
            continue
        try:
            found = Cells(incarnation, sole=sole) if name == Cells.mode else Namespaces()
        except NotAvailable as error:
            reasons[name] = str(error)
        else:
            _log.info("containment", mode=name, cgroup=found.group or None)
            return found
    if mode not in (AUTO, Containment.mode):
        raise ConfigError(f"containment {mode!r} is not to be had: {reasons[mode]}", 'use containment = "auto"')
    _log.warning(
        "containment",
        mode=Containment.mode,
        not_covered="processes that clear their environment and leave their session and their parents",
        no_cgroup=reasons.get(Cells.mode),
        no_namespace=reasons.get(Namespaces.mode),
    )
    return Containment()
