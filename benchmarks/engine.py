"""The engine alone: how long from a freed slot to the next placement, and what a queued task weighs.

Queued tasks of 8 request classes, workers that are all full. One attempt ends, the engine places a successor, and the
whole of `handle` is timed. The queue grows from a thousand tasks to a million: the time must not grow with it.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
from common import Floor, arguments, finish, median, percentile

from schedd.core import effects as fx
from schedd.core.engine import Engine
from schedd.core.events import AttemptsFinished, SubmitTasks, WorkerJoined
from schedd.core.model import (
    SECOND,
    AttemptFinished,
    Call,
    Cause,
    Task,
    TaskEntry,
    TaskRequirements,
    TaskSpec,
    WorkerId,
    WorkerResources,
)
from schedd.core.policies import POLICIES
from schedd.core.settings import EngineSettings

PLACEMENT_FLOOR_US = 50.0
TASK_FLOOR_BYTES = 1200.0
CLASSES = 8
SLOTS = 4
PAYLOAD_BYTES = 200
#: Long enough that nothing waits at a worker to hide the round trip.
RUNTIME_NS = 60 * SECOND
SUBMIT_TASKS = 1000
START_NS = 1_700_000_000 * SECOND


class Cluster:
    """An engine with workers that are all full and tasks that wait."""

    def __init__(self, policy: str, workers: int) -> None:
        # Leases do not end: the clock leaps.
        settings = EngineSettings(lease_ns=10**9 * SECOND)
        self.engine = Engine(POLICIES[policy](), settings, random.Random(1))
        self.now = START_NS
        self._numbers = itertools.count()
        self.running: dict[WorkerId, list[Task]] = {}
        self._specs = [
            TaskSpec(
                Call(path="evaluation:run"),
                kind=f"kind-{number}",
                priority=float(number % 3),
                requirements=TaskRequirements(cpus=1, ram=0.25 * number, labels={"zone": "a"}),
            )
            for number in range(CLASSES)
        ]
        resources = WorkerResources(cpus=SLOTS, ram_gb=64, labels={"zone": "a"})
        for number in range(workers):
            self._take(self.engine.handle([WorkerJoined(WorkerId(f"w{number}"), "i", resources, [])], self.now))

    def submit(self, count: int) -> None:
        """Queue tasks, each with a payload of its own, the classes in turns."""
        noise = os.urandom(PAYLOAD_BYTES)
        for first in range(0, count, SUBMIT_TASKS):
            numbers = islice(self._numbers, min(SUBMIT_TASKS, count - first))
            entries = [TaskEntry(number % CLASSES, number.to_bytes(8, "big") + noise[8:]) for number in numbers]
            self.now += SECOND // 1000
            self._take(self.engine.handle([SubmitTasks(0, self._specs, entries)], self.now))

    def fill(self) -> None:
        """Occupy every slot, and every backlog that the policy allows."""
        while True:
            before = self.engine.counters.placements
            self.submit(SUBMIT_TASKS)
            if self.engine.counters.placements - before < SUBMIT_TASKS // 2:
                return

    def _take(self, effects: fx.Effects) -> int:
        placed = 0
        for action in effects.actions:
            if isinstance(action, fx.DispatchAttempts):
                self.running.setdefault(action.worker_id, []).extend(action.tasks)
                placed += len(action.tasks)
        return placed

    def ends(self, rng: random.Random, count: int) -> Iterator[float]:
        """End attempts on workers drawn by lot; yields the microseconds of each `handle` that placed something.

        Divided by the tasks that it placed: a batch is placed as a whole, when the one before is used up.
        """
        names = list(self.running)
        self.now += RUNTIME_NS
        while count:
            worker_id = rng.choice(names)
            task = next(task for task in self.running[worker_id] if task.reserved)
            self.running[worker_id].remove(task)
            self.now += SECOND // 1000
            finished = AttemptFinished(task.id, task.attempt, Cause.OK, self.now - RUNTIME_NS, self.now)
            event = AttemptsFinished(worker_id, [finished])
            started = time.perf_counter_ns()
            effects = self.engine.handle([event], self.now)
            taken = (time.perf_counter_ns() - started) / 1000
            if placed := self._take(effects):
                count -= 1
                yield taken / placed
                self.submit(placed)  # the queue stays as long as it was


def resident() -> int:
    return int(psutil.Process().memory_info().rss)


def measure(policy: str, queued: int, workers: int, samples: int) -> dict[str, float]:
    """One policy with one length of the queue, in this process."""
    cluster = Cluster(policy, workers)
    cluster.fill()
    gc.collect()
    before = resident()
    waiting = cluster.engine.tasks.unfinished_count
    cluster.submit(queued)
    added = cluster.engine.tasks.unfinished_count - waiting
    gc.collect()
    gc.freeze()  # a full collection over a million rows is no part of a placement
    weight = (resident() - before) / added
    rng = random.Random(2)
    list(cluster.ends(rng, samples // 10))
    taken = list(cluster.ends(rng, samples))
    return {"median_us": median(taken), "p99_us": percentile(taken, 99), "task_bytes": weight}


#: A shorter queue fits into memory that was used before, and weighs nothing.
WEIGHED_TASKS_MIN = 100_000


def measure_apart(policy: str, queued: int, options: argparse.Namespace) -> dict[str, float]:
    """The same in a fresh process, whose memory has not been used by another measurement."""
    argv = [sys.executable, __file__, "--one", policy, str(queued)]
    argv += ["--workers", str(options.workers), "--samples", str(options.samples)]
    ran = subprocess.run(argv, stdout=subprocess.PIPE, check=True)
    result: dict[str, float] = json.loads(ran.stdout)
    return result


def plot(path: str, lengths: list[int], times: dict[str, list[float]]) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    for name, values in times.items():
        axes.plot(lengths, values, marker="o", label=name)
    axes.axhline(PLACEMENT_FLOOR_US, color="grey", linestyle="--", linewidth=1)
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("queued tasks")
    axes.set_ylabel("freed slot to placement, median us")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def _weighed(weight: float, queued: int) -> float | None:
    return weight if queued >= WEIGHED_TASKS_MIN else None


def main() -> int:
    parser = arguments(__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--queued", type=int, nargs="+", default=[10**3, 10**4, 10**5, 10**6], metavar="N")
    parser.add_argument("--workers", type=int, default=1000, help="(default %(default)s)")
    parser.add_argument("--samples", type=int, default=1500, help="placements timed in a run (default %(default)s)")
    parser.add_argument("--policy", nargs="+", choices=list(POLICIES), default=list(POLICIES))
    parser.add_argument("--plot", metavar="FILE", help="draw the times over the lengths of the queue")
    parser.add_argument("--one", nargs=2, metavar=("POLICY", "N"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        name, queued = options.one
        sys.stdout.write(json.dumps(measure(name, int(queued), options.workers, options.samples)))
        return 0
    rows: list[list[Any]] = []
    floors: list[Floor] = []
    times: dict[str, list[float]] = {name: [] for name in options.policy}
    for name in options.policy:
        for queued in options.queued:
            runs = [measure_apart(name, queued, options) for _ in range(options.runs)]
            middle, tail = median([run["median_us"] for run in runs]), median([run["p99_us"] for run in runs])
            weight = median([run["task_bytes"] for run in runs])
            first = times[name][0] if times[name] else middle
            times[name].append(middle)
            rows.append([name, f"{queued:,}", middle, tail, middle / first, _weighed(weight, queued)])
        floors.append(Floor(f"{name}: median us with {queued:,} queued", middle, PLACEMENT_FLOOR_US, at_most=True))
        if queued >= WEIGHED_TASKS_MIN:
            floors.append(Floor(f"{name}: bytes of a queued task", weight, TASK_FLOOR_BYTES, at_most=True))
    if options.plot:
        plot(str(Path(options.plot)), options.queued, times)
    columns = ["policy", "queued", "median us", "p99 us", ": shortest queue", "bytes a task"]
    return finish(options, "engine", columns, rows, floors)


if __name__ == "__main__":
    sys.exit(main())
