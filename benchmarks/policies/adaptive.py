"""adaptive against first come, first served and the optimum, on tasks with measured speeds on three sorts of devices.

`bag`: 3,000 tasks at 0 on 12 workers of each model, each with CPUs to spare, in an order drawn for each seed; the
makespan over the bound of the linear program. `hints`: each task has an `estimated_time` in proportion to its steps.
`warm`: with what was learned in a run of the same tasks in another order. `stream`: the same tasks at 0.9 of the
capacity that the program gives the cluster, arrivals Poisson; mean completion time over that of fifo. `nb201`: a bag
whose devices are much alike.
"""

from __future__ import annotations

import csv
import gzip
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from msgspec import structs

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import Floor, arguments, finish, median, spread

from schedd.config import parse_settings
from schedd.core.model import TaskRequirements
from schedd.core.stats import Learned
from schedd.simulate.bound import lower_bound_s
from schedd.simulate.cluster import ClusterRow
from schedd.simulate.record import Run
from schedd.simulate.run import Simulator
from schedd.simulate.trace import Trace, TraceTask, read_trace

DATA = Path(__file__).parents[3] / "shared" / "data" / "hetero"
WORKERS_PER_MODEL = 12
#: Beside each device: more than its task takes, as GPU machines have them.
CPUS = 8.0
LOAD = 0.9
#: A user's estimate of a step, whatever it is a step of (s).
STEP_S = 0.01
#: What is at most to come out, medians over the seeds.
FLOORS = {
    "bag, cold": 1.22,
    "bag, hints, cold": 1.13,
    "bag, warm": 1.12,
    "bag, hints, warm": 1.07,
    "stream, cold": 0.45,
    "stream, warm": 0.25,
    "nb201": 1.045,
}
Memory = Mapping[str, Sequence[Learned]]


class Bag:
    """Tasks of a file, and a cluster of its models."""

    def __init__(self, path: Path) -> None:
        self._tasks = list(read_trace(path).tasks)
        with gzip.open(path, "rt") as file:
            steps = [row.get("steps") for row in csv.DictReader(file)]
        self._hinted = [_with_hint(task, float(n) * STEP_S) for task, n in zip(self._tasks, steps, strict=True) if n]
        self.models = sorted(self._tasks[0].runtimes)
        row = ClusterRow(count=WORKERS_PER_MODEL, num_gpus=1, cpus=CPUS)
        self.cluster = [structs.replace(row, gpu_model=model) for model in self.models]
        bound = lower_bound_s(Trace("bag", self._tasks), self.cluster)
        if bound is None:
            raise SystemExit("the bound needs SciPy")
        self.bound_s = bound

    def tasks(self, seed: int, *, hints: bool = False) -> Trace:
        """All tasks at 0, in an order of this seed."""
        tasks = list(self._hinted if hints else self._tasks)
        random.Random(seed).shuffle(tasks)
        return Trace("bag", tasks)

    def stream(self, seed: int) -> Trace:
        """The same, coming one by one."""
        dice = random.Random(seed)
        tasks, at_s = [], 0.0
        for task in self.tasks(seed).tasks:
            at_s += dice.expovariate(LOAD * len(self._tasks) / self.bound_s)
            tasks.append(structs.replace(task, submit_s=at_s))
        return Trace("stream", tasks)


def _with_hint(task: TraceTask, hint_s: float) -> TraceTask:
    return structs.replace(task, requirements=TaskRequirements(min_gpus=1, estimated_time=hint_s))


def run_of(trace: Trace, bag: Bag, policy: str, memory: Memory | None = None) -> tuple[Run, Memory]:
    """The run, and what was learned in it."""
    simulator = Simulator(trace, bag.cluster, parse_settings(f'policy.name = "{policy}"'))
    if memory is not None:
        simulator.engine.recall(memory)
    return simulator.run(), simulator.engine.learned()


def makespan(run: Run, bag: Bag) -> float:
    return max(run.finish_s) / bag.bound_s


def mean_jct(run: Run) -> float:
    first_s = run.trace.tasks[0].submit_s
    return fmean(
        finish_s - (task.submit_s - first_s) for finish_s, task in zip(run.finish_s, run.trace.tasks, strict=True)
    )


def measure(bag: Bag, seed: int, *, hints: bool) -> dict[str, float]:
    """A bag, cold and warm."""
    name = "bag, hints" if hints else "bag"
    _, memory = run_of(bag.tasks(seed + 1000, hints=hints), bag, "adaptive")
    cold, _ = run_of(bag.tasks(seed, hints=hints), bag, "adaptive")
    warm, _ = run_of(bag.tasks(seed, hints=hints), bag, "adaptive", memory)
    return {f"{name}, cold": makespan(cold, bag), f"{name}, warm": makespan(warm, bag)}


def measure_stream(bag: Bag, seed: int) -> dict[str, float]:
    _, memory = run_of(bag.tasks(seed + 1000), bag, "adaptive")
    stream = bag.stream(seed)
    fifo_s = mean_jct(run_of(stream, bag, "fifo")[0])
    cold, _ = run_of(stream, bag, "adaptive")
    warm, _ = run_of(stream, bag, "adaptive", memory)
    return {"stream, cold": mean_jct(cold) / fifo_s, "stream, warm": mean_jct(warm) / fifo_s}


def main() -> int:
    parser = arguments(__doc__.splitlines()[0] if __doc__ else "", runs=10)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of bag_*.csv.gz (default %(default)s)")
    options = parser.parse_args()
    gavel, nb201 = Bag(options.data / "bag_gavel.csv.gz"), Bag(options.data / "bag_nb201.csv.gz")
    measured: dict[str, list[float]] = {}
    parts: list[Callable[[int], dict[str, float]]] = [
        lambda seed: {"bag, fifo": makespan(run_of(gavel.tasks(seed), gavel, "fifo")[0], gavel)},
        lambda seed: measure(gavel, seed, hints=False),
        lambda seed: measure(gavel, seed, hints=True),
        lambda seed: measure_stream(gavel, seed),
        lambda seed: {"nb201, fifo": makespan(run_of(nb201.tasks(seed), nb201, "fifo")[0], nb201)},
        lambda seed: {"nb201": makespan(run_of(nb201.tasks(seed), nb201, "adaptive")[0], nb201)},
    ]
    for seed in range(options.runs):
        for part in parts:
            for name, value in part(seed).items():
                measured.setdefault(name, []).append(value)
    rows: list[list[Any]] = [[name, f"{median(values):.3f}", spread(values)] for name, values in measured.items()]
    floors = [Floor(f"{name}, median", median(measured[name]), most, at_most=True) for name, most in FLOORS.items()]
    worst = max(a / b for a, b in zip(measured["nb201"], measured["nb201, fifo"], strict=True))
    floors.append(Floor("nb201: to fifo, the worst seed", worst, 1.01, at_most=True))
    return finish(options, "adaptive", ["what", "median", "lowest .. highest"], rows, floors)


if __name__ == "__main__":
    sys.exit(main())
