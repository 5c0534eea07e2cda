"""Runs a command in a PID namespace of its own, which ends with it: `python -I -S namespace_init.py PARENT ARGV…`.

    worker (PARENT) ── launcher ═╤═ init, process 1 of the namespace ── the command
                                 └─ everything that the command starts, wherever it hides

The kernel kills all of a namespace when its process 1 ends. Process 1 ends with the command, with the launcher (by
its parent-death signal), and so with the worker. The launcher ends as the command did, by the same signal where it was
one; it stays in the outer namespace, where such a signal still counts.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REC, MS_SLAVE = 0x2, 0x4, 0x8, 0x4000, 0x80000
PR_SET_PDEATHSIG = 1
#: The exit code where the namespace cannot be made, and those of a shell where the command cannot be run.
EXIT_NO_NAMESPACE = 125
EXIT_CANNOT_RUN = 126
EXIT_NOT_FOUND = 127

#: For the command, not for those in front of it.
_PASSED_ON = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
#: Python ignores these two.
_DEFAULT = (*_PASSED_ON, signal.SIGPIPE, signal.SIGXFSZ)

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Launch; ends as the command ends."""
    parent, argv = int(sys.argv[1]), sys.argv[2:]
    for number in _PASSED_ON:
        signal.signal(number, signal.SIG_IGN)
    env = _environment()
    try:
        _unshare()
        # Only now: new rights may clear the parent-death signal.
        _call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    except OSError as error:
        _fail(f"no PID namespace: {error.strerror}")
    if os.getppid() != parent:
        os._exit(0)
    read, write = os.pipe()
    launcher = os.getpid()
    init = os.fork()
    if not init:
        os.close(read)
        # The parent is in another namespace, where it has no number for us.
        _init(argv, env, write, launcher)
    os.close(write)
    os.waitpid(init, 0)
    _end_as(os.read(read, 16))


def _init(argv: list[str], env: dict[bytes, bytes], status: int, launcher: int) -> None:
    """Be process 1: start the command, reap whatever ends, and tell how the command ended."""
    _call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if not _exists(launcher):
        os._exit(0)
    try:
        # Changes outside still come in; ours stay here. Without a /proc of the namespace, pids would mean nothing.
        _call("mount", b"none", b"/", None, MS_REC | MS_SLAVE, None)
        _call("mount", b"proc", b"/proc", b"proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, None)
    except OSError as error:
        _fail(f"no /proc in the PID namespace: {error.strerror}")
    command = os.fork()
    if not command:
        os.close(status)
        _run(argv, env)
    _close_streams(status)
    while True:
        pid, code = os.wait()
        if pid == command:
            os.write(status, b"%d" % code)
            os._exit(0)


def _run(argv: list[str], env: dict[bytes, bytes]) -> None:
    os.setsid()
    for number in _DEFAULT:
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvpe(argv[0], argv, env)
    except FileNotFoundError:
        _fail(f"program not found: {argv[0]!r}", EXIT_NOT_FOUND)
    except OSError as error:
        _fail(f"cannot run {argv[0]!r}: {error.strerror}", EXIT_CANNOT_RUN)


def _end_as(status: bytes) -> None:
    """End as the command did. Without a status its namespace was killed."""
    code = os.waitstatus_to_exitcode(int(status)) if status else -signal.SIGKILL
    if code < 0:
        # The command has left its core dump; this is no second one.
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if -code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def _unshare() -> None:
    """Make the namespaces; without the right to, in a user namespace where we are who we are. Raises OSError."""
    try:
        _call("unshare", CLONE_NEWPID | CLONE_NEWNS)
    except PermissionError:
        uid, gid = os.geteuid(), os.getegid()
        _call("unshare", CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNS)
        _write("/proc/self/setgroups", b"deny")
        _write("/proc/self/uid_map", b"%d %d 1" % (uid, uid))
        _write("/proc/self/gid_map", b"%d %d 1" % (gid, gid))


def _exists(pid: int) -> bool:
    """Whether a process of the outer namespace is there; /proc is still that one's."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123
            return file.read().rpartition(b") ")[2][:1] not in (b"Z", b"X")
    except OSError:
        return False


def _environment() -> dict[bytes, bytes]:
    """What we were started with, to the byte: Python adds to its own where there is no locale."""
    with open("/proc/self/environ", "rb") as file:  # noqa: PTH123
        entries = [entry.partition(b"=") for entry in file.read().split(b"\0")]
    return {name: value for name, equals, value in entries if equals}


def _close_streams(status: int) -> None:
    """Let go of everything but the way to tell the status, so that the command's own closing counts."""
    os.closerange(0, status)
    os.closerange(status + 1, status + 64)


def _call(name: str, *arguments: object) -> None:
    """Call a function of the C library that returns 0 or sets errno. Raises OSError."""
    if getattr(_libc, name)(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _write(path: str, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


def _fail(message: str, code: int = EXIT_NO_NAMESPACE) -> None:
    os.write(2, b"schedd: %s\n" % message.encode(errors="backslashreplace"))
    os._exit(code)


if __name__ == "__main__":
    main()
