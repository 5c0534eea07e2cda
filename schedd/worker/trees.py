"""A tree: a root process and all that it starts. How well it is held together depends on the containment."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping

from schedd.errors import ScheddError
from schedd.worker.processes import signal_group, signal_tree, spawn, spawn_watched


class NotAvailable(ScheddError):
    """This machine, or this user, cannot have this containment; the text says why."""


class Tree:
    """A root and its descendants, found by parentage. The root is not reaped before `end` was called."""

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid = pid
        #: Readable when the root has ended; whoever started the tree closes it.
        self.pidfd = pidfd

    def signal(self, number: int) -> None:
        """Send a signal, once, to each process of the tree."""
        signal_tree(self.pid, number)

    def kill(self) -> None:
        """Kill every process of the tree."""
        self.signal(signal.SIGKILL)

    def end(self) -> bool:
        """Kill what a root left that has ended and is not reaped. True where there was more than a process group."""
        # While the leader is a zombie the group's number is still its.
        signal_group(self.pid, signal.SIGKILL)
        return False

    def oom_kills(self) -> int | None:
        """How many processes of the tree the kernel killed for want of memory; None where nobody counts."""
        return None


class Containment:
    """Starts trees; this one holds them by process group and parentage alone."""

    mode = "process-group"
    #: The control group of the worker, where it has one.
    group = ""

    def __init__(self) -> None:
        #: Processes that are the worker's own and no task's.
        self.staff: set[int] = {os.getpid()}

    def start(
        self,
        argv: list[str],
        env: Mapping[str, str],
        cwd: str | None,
        fds: tuple[int, int, int],
        extra_fd: int | None = None,
    ) -> Tree:
        """Start a root with these streams, `extra_fd` as descriptor 3. Raises OSError or ValueError where it cannot."""
        return Tree(*spawn_watched(argv, env, cwd, fds, extra_fd))

    def start_own(self, argv: list[str], fds: tuple[int, int, int]) -> int:
        """Start a process that is no task's. Returns its pid. Raises OSError."""
        # Whoever looks for the processes of tasks by what is in their environment is not to find it.
        env = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "PATH") if name in os.environ}
        pid = spawn(argv, env, None, fds)
        self.staff.add(pid)
        return pid

    @property
    def is_tight(self) -> bool:
        """Whether nothing that a tree left can be alive once the tree has ended."""
        return False

    def parent_pid(self) -> int:
        """The pid that a root sees as its parent's."""
        return os.getpid()

    def close(self) -> None:
        """Let go of what the containment itself holds; all trees have ended."""
