"""A cluster to which faults are done, what of it they disturbed, and what the tasks wrote down of their executions."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from disks import SmallDisk
from helpers import Cluster, Process, wait_until
from msgspec import Struct

from .faults import LEASE_S, LOST_AFTER_S, LOST_S, Fault
from .proxy import Proxy

CPUS = 2
#: Refused for want of room on its disk, the daemon is started again after so long, as a service manager does.
RESTART_S = 0.1
NO_ROOM = ("disk is full", "disk I/O error")
#: A worker that was silent for so long may have been lost: less than what it takes, for a machine that is slow.
MAYBE_LOST_S = LOST_S - 1.5
#: Ends that a worker had told may not have been on disk yet when it was killed. After a silence it goes on with what
#: it has until it hears that it was given up.
BEFORE_S, AFTER_S = 1.0, 4.0
#: The journal tries again each second once there is room; a worker looks for its daemon about as often.
RECOVERY_S = 2.0
EVERYBODY = ""

DAEMON = f"""
[heartbeat]
interval_s = 0.4
lease_s = {LEASE_S}
lost_after_s = {LOST_AFTER_S}
[journal]
adoption_grace_s = 15.0
"""
WORKER = "[worker]\nreconnect_delay_max_s = 0.5\n"


def now() -> float:
    """Seconds of the clock that /proc/uptime shows, which a shell can read without starting a process."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Span(Struct, frozen=True):
    """A time in the life of a worker, or of everybody. `loses_ends`: and what it had not told by then is lost."""

    worker: str
    since: float
    until: float
    loses_ends: bool = False


class Execution(Struct):
    """One run of a task: `end` None where it did not come to it."""

    number: int
    attempt: int
    worker: str
    start: float
    end: float | None = None


class World:
    """A daemon on a small disk, workers behind a proxy each, and one proxy for clients."""

    def __init__(self, cluster: Cluster, disk: SmallDisk, prefix: tuple[str, ...], workers: list[str]) -> None:
        self._cluster = cluster
        self._disk = disk
        self._prefix = prefix
        self._names = workers
        self._workers: dict[str, Process] = {}
        self._proxies: dict[str, Proxy] = {}
        self._locks: dict[str, threading.Lock] = defaultdict(threading.Lock)
        self._dice = random.Random(0)
        #: When a worker was killed or given up, or a process of one of its attempts was killed.
        self._disturbed: list[Span] = []
        #: When what a worker said may not have reached the journal.
        self._deaf: list[Span] = []

    # ----------------------------------------------------------------------------------------------- start and stop

    @contextlib.contextmanager
    def started(self) -> Iterator[str]:
        """Start all of it; gives the address for clients. Kills it at the end."""
        self._start_daemon()
        address = self._cluster.address
        with contextlib.ExitStack() as stack:
            for name in [*self._names, "client"]:
                self._proxies[name] = stack.enter_context(Proxy(address))
            for name in self._names:
                self._start_worker(name)
            self._cluster.wait_for_workers(*self._names)
            yield self._proxies["client"].address
            self._cluster.close()

    def stop(self) -> None:
        """Let all of it end in order, and see that no process is left."""
        for worker in self._workers.values():
            assert worker.stop(timeout=60) == 0
        assert self._cluster.daemon.stop() == 0
        wait_until(lambda: not self._cluster.pids(), what="no process is left")

    def _start_daemon(self) -> None:
        listen = self._cluster.address if self._proxies else "127.0.0.1:0"
        env = {"SCHEDD_STATE_DIR": str(self._disk.folder)}

        def started() -> bool:
            try:
                self._cluster.start_daemon(DAEMON, listen=listen, env=env, prefix=self._prefix)
            except AssertionError as error:
                if not any(words in str(error) for words in NO_ROOM):
                    raise
                time.sleep(RESTART_S)
                return False
            return True

        wait_until(started, what="the daemon can start")

    def _start_worker(self, name: str) -> None:
        self._workers[name] = self._cluster.start_worker(
            name, CPUS, "--connect", self._proxies[name].address, config=WORKER, wait=False
        )

    # -------------------------------------------------------------------------------------------------------- faults

    def suffer(self, fault: Fault) -> None:
        """Do a fault and undo it; in any thread."""
        group = "worker" if fault.target in self._names else fault.target
        with self._locks[fault.target]:
            getattr(self, f"_{group}_{fault.what}")(fault.target, fault.seconds)

    def _daemon_kill(self, _: str, seconds: float) -> None:
        with self._nobody_hears(EVERYBODY):
            self._cluster.daemon.kill()
            time.sleep(seconds)
            self._start_daemon()

    def _daemon_stop(self, _: str, seconds: float) -> None:
        with self._nobody_hears(EVERYBODY):
            self._pause(self._cluster.daemon, seconds)

    def _disk_fill(self, _: str, seconds: float) -> None:
        with self._nobody_hears(EVERYBODY):
            self._disk.fill()
            time.sleep(seconds)
            self._disk.make_room()

    def _client_drop(self, name: str, _: float) -> None:
        self._proxies[name].drop()

    def _client_mute(self, name: str, seconds: float) -> None:
        self._proxies[name].mute()
        time.sleep(seconds)
        self._proxies[name].unmute()

    def _worker_kill(self, name: str, seconds: float) -> None:
        with self._nobody_hears(name):
            killed = now()
            self._workers[name].kill()
            self._disturbed.append(Span(name, killed, now(), loses_ends=True))
            time.sleep(seconds)
            self._start_worker(name)

    def _worker_kill_child(self, name: str, _: float) -> None:
        children = children_of(self._workers[name].pid)
        if children:
            killed = now()
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._dice.choice(children), signal.SIGKILL)
            self._disturbed.append(Span(name, killed, now()))

    def _worker_stop(self, name: str, seconds: float) -> None:
        with self._silence(name):
            self._pause(self._workers[name], seconds)

    def _worker_drop(self, name: str, _: float) -> None:
        with self._nobody_hears(name):
            self._proxies[name].drop()

    def _worker_mute(self, name: str, seconds: float) -> None:
        with self._silence(name):
            self._proxies[name].mute()
            time.sleep(seconds)
            self._proxies[name].unmute()

    @staticmethod
    def _pause(process: Process, seconds: float) -> None:
        process.signal(signal.SIGSTOP)
        time.sleep(seconds)
        process.signal(signal.SIGCONT)

    @contextlib.contextmanager
    def _nobody_hears(self, name: str) -> Iterator[None]:
        since = now()
        yield
        self._deaf.append(Span(name, since, now() + RECOVERY_S))

    @contextlib.contextmanager
    def _silence(self, name: str) -> Iterator[None]:
        """What a worker does not say for a time; for long enough, and it is given up."""
        since = now()
        with self._nobody_hears(name):
            yield
        if now() - since > MAYBE_LOST_S:
            self._disturbed.append(Span(name, since, now() + AFTER_S, loses_ends=True))

    # ------------------------------------------------------------------------------------------------------- evidence

    def story(self) -> Iterator[str]:
        """What was done when, by the clock of the executions."""
        for name, spans in (("disturbed", self._disturbed), ("not heard", self._deaf)):
            for span in spans:
                yield f"{span.since:.2f} to {span.until:.2f}  {span.worker or 'everybody'} {name}"

    def losses_max(self) -> int:
        """How often a worker may have been lost."""
        return sum(span.loses_ends for span in self._disturbed)

    def is_disturbed(self, execution: Execution) -> bool:
        """Whether a fault may have made an execution worthless: it ran then, or nobody had heard of its end."""
        end = execution.end if execution.end is not None else float("inf")
        return any(
            execution.start <= span.until and end >= (self._heard_until(span) if span.loses_ends else span.since)
            for span in self._disturbed
            if span.worker == execution.worker
        )

    def _heard_until(self, disturbed: Span) -> float:
        """Ends from before this instant were on disk when a worker was lost."""
        since = disturbed.since
        for deaf in sorted(self._deaf, key=lambda span: span.until, reverse=True):
            if deaf.worker in (EVERYBODY, disturbed.worker) and deaf.since < since <= deaf.until:
                since = deaf.since
        return since - BEFORE_S


def children_of(pid: int) -> list[int]:
    children: list[int] = []
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            children += map(int, (thread / "children").read_text().split())
    return children


def executions(folder: Path) -> dict[int, list[Execution]]:
    """Read what the tasks wrote: a file for each worker, lines of "number attempt start|end uptime"."""
    found: dict[int, list[Execution]] = defaultdict(list)
    for path in sorted(folder.iterdir()):
        for line in path.read_text().splitlines():
            number, attempt, what, at = line.split()
            if what == "start":
                found[int(number)].append(Execution(int(number), int(attempt), path.name, float(at)))
            else:
                begun = [e for e in found[int(number)] if (e.worker, e.attempt) == (path.name, int(attempt))]
                begun[-1].end = float(at)
    return found
