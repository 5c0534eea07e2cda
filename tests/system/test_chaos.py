"""Thousands of tasks under all kinds of faults, one after another and at the same time; then the promises are proven.

Daemon, workers and processes of attempts are killed and stopped, connections cut and muted, the disk of the journal is
full. The tasks write down each of their executions. SCHEDD_CHAOS_S sets for how long, SCHEDD_CHAOS_SEED which faults.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from disks import Mounts, SmallDisk
from helpers import Cluster
from msgspec import Struct, field

from schedd.client.aio import AsyncClient
from schedd.client.codec import value_of
from schedd.client.sync import Client
from schedd.core.model import TaskId
from schedd.errors import ScheddError
from schedd.wire.messages import TaskDone

from .chaos import Execution, World, executions
from .faults import Fault, schedule

SECONDS = float(os.environ.get("SCHEDD_CHAOS_S", "35"))
SEED = int(os.environ.get("SCHEDD_CHAOS_SEED", "2"))
WORKERS = ["w1", "w2", "w3", "w4"]
DISK_BYTES = 64 << 20
#: Submitted together, so often; every so many tasks are commands, and some take long.
CHUNK, CHUNK_S = 80, 0.4
COMMAND_EVERY, LONG_EVERY = 3, 60
PAUSES_S, LONG_S = (0.0, 0.01, 0.05, 0.12), 3.0
#: For processes that are killed, and no more than that.
RETRIES = 50
#: All must have ended so long after the last fault.
CALM_S = 90.0
TRY_AGAIN_S = 0.05

SCRIPT = """
note() { read up rest < /proc/uptime; echo "$n $SCHEDD_ATTEMPT $1 $up" >> "$folder/$SCHEDD_WORKER"; }
n=$1 folder=$2
note start
sleep $3
echo "[$n, $SCHEDD_ATTEMPT]" > $SCHEDD_RESULT
note end
"""


def make_call() -> Callable[[int, str, float], list[int]]:
    """Return what a worker can run: a function that brings its code along."""

    def call(number: int, folder: str, pause_s: float) -> list[int]:
        import os
        import time

        attempt = int(os.environ["SCHEDD_ATTEMPT"])

        def note(what: str) -> None:
            line = f"{number} {attempt} {what} {time.clock_gettime(time.CLOCK_BOOTTIME):.2f}\n"
            file = os.open(f"{folder}/{os.environ['SCHEDD_WORKER']}", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            os.write(file, line.encode())
            os.close(file)

        note("start")
        time.sleep(pause_s)
        note("end")
        return [number, attempt]

    return call


class Submitter:
    """Submits tasks until it is told to stop, each with a key, and again until it is acknowledged."""

    def __init__(self, address: str, folder: Path, seed: int) -> None:
        self._address = address
        self._folder = str(folder)
        self._dice = random.Random(seed)
        self._call = make_call()
        self._stopped = threading.Event()
        #: The ids that the daemon has acknowledged, by number.
        self.ids: dict[int, TaskId] = {}

    @contextmanager
    def running(self) -> Iterator[None]:
        """Submit meanwhile; at the end all is acknowledged."""
        thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="submitter")
        thread.start()
        try:
            yield
        finally:
            self._stopped.set()
            thread.join()

    async def _run(self) -> None:
        first = 0
        while not self._stopped.is_set():
            pauses = {n: self._pause_s(n) for n in range(first, first + CHUNK)}
            while missing := [n for n in pauses if n not in self.ids]:
                try:
                    async with AsyncClient(self._address) as client:
                        await asyncio.gather(*(self._submit(client, n, pauses[n]) for n in missing))
                except ScheddError:
                    await asyncio.sleep(TRY_AGAIN_S)
            first += CHUNK
            await asyncio.sleep(CHUNK_S)

    def _pause_s(self, number: int) -> float:
        return self._dice.choice(PAUSES_S) if number % LONG_EVERY else LONG_S

    async def _submit(self, client: AsyncClient, number: int, pause_s: float) -> None:
        key = f"chaos-{number}"
        if number % COMMAND_EVERY:
            task = await client.submit(self._call, number, self._folder, pause_s, key=key, retries=RETRIES)
        else:
            argv = ["sh", "-c", SCRIPT, "sh", str(number), self._folder, str(pause_s)]
            task = await client.submit(argv, key=key, retries=RETRIES)
        assert self.ids.setdefault(number, task.id) == task.id, "one key, one task"


def suffer(world: World, faults: list[Fault]) -> None:
    """Do each fault at its time, those of different targets side by side, and wait until all are undone."""
    started = time.monotonic()
    threads = [threading.Thread(target=world.suffer, args=(fault,), name=str(fault)) for fault in faults]
    for fault, thread in zip(faults, threads, strict=True):
        time.sleep(max(0.0, started + fault.at_s - time.monotonic()))
        thread.start()
    for thread in threads:
        thread.join()


class Verdict(Struct):
    """What is wrong, and how much there was to judge."""

    wrong: list[str] = field(default_factory=list)
    tasks: int = 0
    undisturbed: int = 0
    again: int = 0


def judge(number: int, end: TaskDone, runs: list[Execution], world: World, verdict: Verdict) -> None:
    """One task: it succeeded, its result is of the attempt that counts, and it ran again only where a fault was."""
    verdict.tasks += 1
    if end.state != "succeeded":
        verdict.wrong.append(f"{number}: {end.state}: {end.message}")
        return
    finished = {(run.worker, run.attempt) for run in runs if run.end is not None}
    if (end.worker, end.attempt) not in finished or value_of(end) != [number, end.attempt]:
        verdict.wrong.append(f"{number}: result {value_of(end)} of attempt {end.attempt} on {end.worker}: {runs}")
    disturbed = sum(map(world.is_disturbed, runs))
    verdict.undisturbed += not disturbed
    verdict.again += len(runs) - 1
    if len(runs) > 1 + disturbed:
        verdict.wrong.append(f"{number}: ran needlessly: {runs}")


@pytest.mark.parametrize("seed", range(5))
def test_seed_is_a_schedule(seed: int) -> None:
    """The same one each time, and no target has two faults at once."""
    faults = schedule(seed, 100, WORKERS)
    assert faults == schedule(seed, 100, WORKERS) != schedule(seed + 1, 100, WORKERS)
    assert {fault.target for fault in faults} == {"daemon", "disk", "client", *WORKERS}
    for target in {fault.target for fault in faults}:
        own = [fault for fault in faults if fault.target == target]
        assert all(first.at_s + first.seconds < second.at_s for first, second in itertools.pairwise(own))


@pytest.mark.needs("root", "unshare", "nsenter", "setsid")
@pytest.mark.timeout(SECONDS + 2 * CALM_S)
def test_chaos(cluster: Cluster, tmp_path: Path) -> None:
    faults = schedule(SEED, SECONDS, WORKERS)
    print(f"SCHEDD_CHAOS_SEED={SEED} SCHEDD_CHAOS_S={SECONDS:g}: {len(faults)} faults", *faults, sep="\n")  # noqa: T201
    notes = tmp_path / "notes"
    notes.mkdir()
    with Mounts() as mounts:
        disk = SmallDisk(mounts, tmp_path / "disk", DISK_BYTES)
        world = World(cluster, disk, mounts.prefix, WORKERS)
        with world.started() as address:
            submitter = Submitter(address, notes, SEED)
            with submitter.running():
                suffer(world, faults)
            with Client(address) as client:
                numbers = list(submitter.ids)
                ends = client.wait([submitter.ids[n] for n in numbers], timeout=CALM_S, results=True)
                history = [view.id for view, _ in client.history()]
                stats = client.stats()
            world.stop()
    runs, verdict = executions(notes), Verdict()
    for number, end in zip(numbers, ends, strict=True):
        judge(number, end, runs[number], world, verdict)
    print(*world.story(), sep="\n")  # noqa: T201
    print(verdict.tasks, "tasks", verdict.undisturbed, "undisturbed", verdict.again, "ran again", stats)  # noqa: T201
    assert not verdict.wrong
    assert sorted(history) == sorted(submitter.ids.values()), "each has ended once"
    assert runs.keys() == submitter.ids.keys()
    lost = sum(process.log().count("worker_lost") for process in cluster.processes)
    assert lost <= world.losses_max(), "no worker was lost without a reason"
    assert verdict.undisturbed > verdict.tasks / 4, "enough is left to judge"
