"""The guard of a worker: a small program that outlives it, and ends what the worker can no longer end.

    python -I -S guard.py GROUP PREFIX < a pipe that the worker alone holds open

It waits until the pipe is closed, which the kernel does however the worker ends. Then it kills the worker's control
group, or, without one (GROUP is empty), every process whose `SCHEDD_ROOT` begins with PREFIX. It imports nothing but
the standard library, and little of that, so that it is up in a few milliseconds.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time

#: The guard's own group within the worker's.
OWN = "guard"
#: A killed process is gone within milliseconds, unless a device or a file server holds it.
GONE_S = 10.0
PAUSE_S = 0.005
ROOT_VARIABLE = b"SCHEDD_ROOT="
#: Ctrl-C and `systemctl stop` are for the worker, which may want to finish what runs.
_IGNORED = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


def main() -> None:
    """Wait for the end of the worker, and clear up after it."""
    group, prefix = sys.argv[1:]
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    if group:
        with contextlib.suppress(OSError):
            write(f"{group}/{OWN}/cgroup.procs", b"0")
    while os.read(0, 1):
        pass
    if group:
        _end_worker_group(group)
    else:
        end_roots(os.fsencode(prefix))


def end_group(group: str) -> bool:
    """Kill all in a control group and below it, wait until it is empty, and remove it. False where it stays."""
    with contextlib.suppress(OSError):
        write(f"{group}/cgroup.kill", b"1")
    deadline = time.monotonic() + GONE_S
    while is_populated(group) and time.monotonic() < deadline:
        time.sleep(PAUSE_S)
    for folder, _, _ in os.walk(group, topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(folder)  # noqa: PTH106 - this program does without pathlib, which takes longer than all the rest
    return not os.path.exists(group)  # noqa: PTH110


def is_populated(group: str) -> bool:
    """Whether a process that is not a zombie is in a control group, or below it."""
    try:
        with open(f"{group}/cgroup.events", "rb") as events:  # noqa: PTH123
            return b"populated 1" in events.read()
    except OSError:
        return False


def end_roots(prefix: bytes) -> None:
    """Kill all processes that were started with a `SCHEDD_ROOT` that begins with `prefix`, until there are none."""
    deadline = time.monotonic() + GONE_S
    while (victims := _started_with(ROOT_VARIABLE + prefix)) and time.monotonic() < deadline:
        for pid in victims:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(PAUSE_S)


def write(path: str, data: bytes) -> None:
    """Write to a file of the kernel's, in one piece. Raises OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


def _end_worker_group(group: str) -> None:
    """End each group within the worker's, one's own last: that one is left first."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(group):
            if entry.is_dir() and entry.name != OWN:
                end_group(entry.path)
    with contextlib.suppress(OSError):
        # Not possible below a group that hands out controllers; the next worker then removes what is left: two
        # empty groups.
        write(f"{os.path.dirname(group)}/cgroup.procs", b"0")  # noqa: PTH120
        os.rmdir(f"{group}/{OWN}")  # noqa: PTH106
        os.rmdir(group)  # noqa: PTH106


def _started_with(entry: bytes) -> list[int]:
    """Processes that have an environment entry that begins so; those that are ending have none any more."""
    found = []
    for name in os.listdir("/proc"):  # noqa: PTH208
        if name.isdigit():
            try:
                with open(f"/proc/{name}/environ", "rb") as file:  # noqa: PTH123
                    variables = file.read().split(b"\0")
            except OSError:
                continue
            if any(variable.startswith(entry) for variable in variables):
                found.append(int(name))
    return found


if __name__ == "__main__":
    main()
