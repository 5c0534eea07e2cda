"""What the kernel says of processes that it killed because the host, or a cgroup, had no memory left.

A process that died of SIGKILL may have been killed by anybody, so that alone is no evidence. Strong evidence is the
count of such kills in the attempt's own cgroup (`memory.events`), and a line of the kernel's log that names the
process. The host's total of such kills (`/proc/vmstat`) that rose about then is weak: it is told, and decides nothing.

The log is read only where this user may (root, or `dmesg_restrict` = 0), and only in the first PID namespace: the
kernel names processes by their numbers there, and in a container the same number is another process.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from pathlib import Path

#: The inode of the first PID namespace (PROC_PID_INIT_INO of the kernel).
FIRST_PID_NAMESPACE = 0xEFFFFFFC
#: A number of a process that was killed is remembered for so long; it may be given to another one later.
REMEMBERED_S = 30.0
REMEMBERED_MAX = 10_000
#: Records that one look reads at most; a kernel that says more holds nobody up, the rest is for the next look.
RECORDS_PER_LOOK = 1000
RECORD_BYTES = 8192
#: "Out of memory: Killed process 15784 (python3) total-vm:…", "Memory cgroup out of memory: Killed process …", and
#: "oom-kill:constraint=CONSTRAINT_MEMCG,…,task=python,pid=15784,uid=0" (mm/oom_kill.c), which comes before the kill.
_KILLED = re.compile(rb"(?:Killed process (\d+) \(|^oom-kill:.*,pid=(\d+),uid=)")


class KernelOom:
    """Watches the kernel's log and totals for the worker. `look` now and then, `named` and `has_risen` at a death."""

    def __init__(self, log: str = "/dev/kmsg", vmstat: str = "/proc/vmstat") -> None:
        self._vmstat = vmstat
        self._killed: dict[int, float] = {}
        #: Of the last two looks, the older first: what happened just before a look has not been looked at then.
        self._totals = (self._read_total(),) * 2
        self._log = _open_at_the_end(log)

    def look(self) -> None:
        """Take in what the kernel has said since the last time."""
        self._totals = (self._totals[1], self._read_total())
        self._read_log()

    def named(self, pid: int) -> bool:
        """Whether the kernel has said, within the last half minute, that it killed this process."""
        self._read_log()
        at = self._killed.pop(pid, None)
        return at is not None and time.monotonic() - at < REMEMBERED_S

    def has_risen(self) -> bool:
        """Whether some process of this host was killed for this since the last look but one; weak evidence."""
        return self._read_total() > self._totals[0]

    def close(self) -> None:
        if self._log is not None:
            os.close(self._log)
            self._log = None

    def _read_log(self) -> None:
        if self._log is None:
            return
        now = time.monotonic()
        for _ in range(RECORDS_PER_LOOK):
            try:
                record = os.read(self._log, RECORD_BYTES)
            except BlockingIOError:
                break
            except BrokenPipeError:
                continue  # what we had not read was overwritten
            except OSError:
                self.close()
                break
            if (pid := killed_in(record)) is not None:
                self._killed[pid] = now
        while len(self._killed) > REMEMBERED_MAX:
            del self._killed[next(iter(self._killed))]

    def _read_total(self) -> int:
        try:
            with open(self._vmstat, "rb") as file:  # noqa: PTH123
                return oom_kills_in(file.read())
        except OSError:
            return 0


def killed_in(record: bytes) -> int | None:
    """The process that a record of /dev/kmsg says was killed for lack of memory; None: it says nothing like it.

    A record is "priority,number,time,flags;text". Priorities from 8 on are of programs that wrote into the log: they
    could say anything.
    """
    prefix, _, text = record.partition(b";")
    priority = prefix.partition(b",")[0]
    if not priority.isdigit() or int(priority) >= 8:
        return None
    found = _KILLED.search(text.partition(b"\n")[0])
    return int(found[1] or found[2]) if found is not None else None


def oom_kills_in(counters: bytes) -> int:
    """How many processes were killed for lack of memory; 0 where nothing is said of it.

    counters: what /proc/vmstat says of the host since its boot, or `memory.events` of a cgroup.
    """
    found = re.search(rb"^oom_kill (\d+)$", counters, re.MULTILINE)
    return int(found[1]) if found is not None else 0


def _open_at_the_end(path: str) -> int | None:
    try:
        if path.startswith("/dev/") and Path("/proc/self/ns/pid").stat().st_ino != FIRST_PID_NAMESPACE:
            return None
        log = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    with contextlib.suppress(OSError):
        os.lseek(log, 0, os.SEEK_END)
    return log
