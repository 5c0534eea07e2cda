"""Process trees on Linux: start one cheaply, end all of it, and find what a task left behind.

Each process that we start is a *root*: it leads a session of its own and carries `SCHEDD_ROOT` (who started it, and a
number) in its environment, which all its descendants inherit. The worker is a subreaper: a descendant that outlives
its parents becomes the worker's own child instead of init's, where it is cheap to find, to kill and to reap.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
from collections.abc import Iterable, Iterator, Mapping

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_CHILD_SUBREAPER = 36
ROOT_VARIABLE = "SCHEDD_ROOT"
READ_BYTES = 65536

#: Python ignores these two; a program that we start must find them as usual.
_SIGNALS_TO_RESTORE = (signal.SIGPIPE, signal.SIGXFSZ)


def prctl(option: int, argument: int) -> None:
    """Call prctl(2). Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, argument, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def spawn(
    argv: list[str],
    env: Mapping[str, str],
    cwd: str | None,
    fds: tuple[int, int, int],
    extra_fd: int | None = None,
) -> int:
    """Start a program as a root with these three standard streams, and return its pid.

    `extra_fd` becomes descriptor 3. All other descriptors of ours close on exec, as Python makes them. Raises OSError
    or ValueError where the program cannot be started.
    """
    if cwd is None and ("/" in argv[0] or env.get("PATH") == os.environ.get("PATH")):
        # Half the price of Popen (95 µs of ours against 195, measured), but it has no cwd and uses our own PATH.
        actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(fds)]
        if extra_fd is not None:
            actions.append((os.POSIX_SPAWN_DUP2, extra_fd, 3))
        return os.posix_spawnp(argv[0], argv, env, file_actions=actions, setsid=True, setsigdef=_SIGNALS_TO_RESTORE)
    process = subprocess.Popen(
        argv, env=env, cwd=cwd, stdin=fds[0], stdout=fds[1], stderr=fds[2], start_new_session=True
    )
    # We reap it ourselves, by its pidfd; without this the object would complain that its process still runs.
    process.returncode = 0
    return process.pid


def spawn_watched(
    argv: list[str],
    env: Mapping[str, str],
    cwd: str | None,
    fds: tuple[int, int, int],
    extra_fd: int | None = None,
) -> tuple[int, int]:
    """`spawn`, and open a pidfd, which becomes readable when the process ends. Returns both."""
    pid = spawn(argv, env, cwd, fds, extra_fd)
    try:
        return pid, os.pidfd_open(pid)
    except OSError:
        # No descriptor is left: a process that nobody watches must not be.
        signal_group(pid, signal.SIGKILL)
        reap(pid)
        raise


def signal_process(pid: int, number: int) -> None:
    """Send a signal to a process that may be gone, or that we may not touch."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def signal_group(pid: int, number: int) -> None:
    """Send a signal to the process group that `pid` leads; only before `pid` is reaped, while the number is its."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def signal_tree(pid: int, number: int, others: Iterable[int] = ()) -> None:
    """Send a signal, once each, to a root's group, to those of its descendants that left the group, and to `others`."""
    outside = [victim for victim in dict.fromkeys([*descendants_of(pid), *others]) if _group_of(victim) != pid]
    signal_group(pid, number)
    for descendant in outside:
        signal_process(descendant, number)


def kill_with_descendants(pid: int) -> None:
    """Kill a process that need not lead a group, and all below it."""
    for victim in [pid, *descendants_of(pid)]:
        signal_process(victim, signal.SIGKILL)


def _group_of(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return 0


def has_ended_child() -> bool:
    """Whether any child of this process has ended and is not reaped."""
    try:
        return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return False


def children_of(pid: int) -> list[int]:
    """List the direct children of a process, of all its threads; empty where it is gone. About 15 µs a thread.

    What cannot be seen, without a descriptor for instance, is left out: that must keep nobody from ending the rest.
    """
    children: list[int] = []
    tasks = f"/proc/{pid}/task"
    try:
        for thread in os.listdir(tasks):  # noqa: PTH208 - on the path of every command, and ten times cheaper
            children += map(int, read_file(f"{tasks}/{thread}/children").split())
    except OSError:
        pass
    return children


def descendants_of(pid: int) -> Iterator[int]:
    """Walk the tree below a process, parents first. A process that forks meanwhile may hide a child."""
    waiting = children_of(pid)[::-1]
    while waiting:
        child = waiting.pop()
        yield child
        waiting += children_of(child)[::-1]


def parent_of(pid: int) -> int:
    """The pid of a process's parent; 0 where it is gone, or has none that can be seen."""
    try:
        return int(read_file(f"/proc/{pid}/stat").rpartition(b") ")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError, IndexError):
        return 0


def root_of(pid: int) -> str | None:
    """Read the `SCHEDD_ROOT` that a process started with; None where it has none, or cannot be read."""
    try:
        for entry in read_file(f"/proc/{pid}/environ").split(b"\0"):
            name, _, value = entry.partition(b"=")
            if name == ROOT_VARIABLE.encode():
                return os.fsdecode(value)
    except OSError:
        pass
    return None


def session_of(pid: int) -> int:
    """The session of a process; 0 where it is gone."""
    try:
        return os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return 0


def reap(pid: int) -> int:
    """Wait for a child that has ended. Returns its exit code, or minus the number of the signal that killed it."""
    try:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except ChildProcessError:
        # Someone else in this program reaped it. How it ended is lost, which is an error to its task.
        return 255


def reap_if_ended(pid: int) -> bool:
    """Reap a child if it has ended, without waiting; True where it is gone."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return True


def describe_exit(code: int) -> str:
    """Say how a process ended: "exit code 3", "killed by SIGSEGV"."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def read_file(path: str) -> bytes:
    """Read a small file of /proc; a third of the price of `Path.read_bytes`, and on the path of every command."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # /proc gives a page at a time, whatever is asked for: only nothing means the end.
        content = b""
        while part := os.read(fd, READ_BYTES):
            content += part
        return content
    finally:
        os.close(fd)
