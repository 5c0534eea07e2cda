"""adaptive, learning from nothing, against the same policy told the truth: workers fail, slow down, come and go.

Each seed draws a cluster of three device models with 8 workers of each, and tasks of 6 kinds of which each has speeds
of its own on each model; runtimes are lognormal. `bag`: all tasks at the beginning. `stream`: Poisson, at 0.7 of what
is left of the cluster when the least of it is there. Which workers fail and how much of the work they have done by
then, which are throttled or come or go, and when, is drawn; changes come between a fifth and two thirds of the run, so
they have to be noticed, and what it takes to notice them counts.

`informed` is told (`schedd simulate --policy informed`): how long each kind takes on each model, how fast each worker
is at the moment and how often it fails. Both run through the daemon's engine with all of its rules, quarantine too.

What is compared comes after the first 200 tasks have finished. Of a bag, the time from then to the end: as many tasks
finish in it under both. Of a stream, the mean completion time of the tasks that are submitted after both have finished
200. Medians of the ratios, seed by seed. `whole`: the same with the first 200.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from msgspec import Struct, structs

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import Floor, arguments, finish, median, spread

from schedd.config import parse_settings
from schedd.core.policies.prices import solve
from schedd.simulate.cluster import ClusterRow
from schedd.simulate.contest import run_under, settings_name
from schedd.simulate.generate import Load, generate
from schedd.simulate.record import Run
from schedd.simulate.trace import Trace

MODELS = ("A", "B", "C")
LOAD = 0.7
#: Finished tasks that the learner has to learn from, before it is compared.
LEARNED = 200
#: What is at most to come out, medians over the seeds.
FLOOR = 1.10
#: A worker that fails at least so often is put into quarantine before long: no stream counts on it.
QUARANTINED = 0.5
PHASES = 20
TASKS = Load(arrivals="bag", runtime="lognormal", sigma=0.6, mean_s=120.0, kinds=6, spread=8.0, speedup=3.0)
Dice = random.Random
#: What is said of a worker, in a run of so many seconds.
Trouble = Callable[[Dice, float], Mapping[str, float]]


def sound(dice: Dice, span_s: float) -> Mapping[str, float]:
    return {}


def fails(share: float) -> Trouble:
    return lambda dice, span_s: {"fail_share": share, "fail_after": dice.choice((0.1, 0.5, 1.0))}


def throttled(dice: Dice, span_s: float) -> Mapping[str, float]:
    return {"slow_factor": 0.5, "slow_from_s": span_s * dice.uniform(0.35, 0.65)}


def throttled_a_while(dice: Dice, span_s: float) -> Mapping[str, float]:
    from_s = span_s * dice.uniform(0.2, 0.5)
    return {"slow_factor": 0.5, "slow_from_s": from_s, "slow_until_s": from_s + 0.3 * span_s}


def comes(dice: Dice, span_s: float) -> Mapping[str, float]:
    return {"joins_s": span_s * dice.uniform(0.2, 0.5)}


def goes(dice: Dice, span_s: float) -> Mapping[str, float]:
    return {"leaves_s": span_s * dice.uniform(0.3, 0.65)}


#: How many of the 8 workers of each model have which trouble.
SCENARIOS: dict[str, list[tuple[int, Trouble]]] = {
    "none": [(8, sound)],
    "fail 20 %": [(5, sound), (3, fails(0.2))],
    "fail 80 %": [(6, sound), (2, fails(0.8))],
    "fail 20 %, 80 %": [(4, sound), (2, fails(0.2)), (2, fails(0.8))],
    "throttled": [(5, sound), (3, throttled)],
    "throttled a while": [(5, sound), (3, throttled_a_while)],
    "join and leave": [(4, sound), (2, comes), (2, goes)],
    "all of it": [(2, sound), (1, fails(0.2)), (1, fails(0.8)), (2, throttled), (1, comes), (1, goes)],
}


class Case(Struct, frozen=True):
    """What runs where."""

    trace: Trace
    cluster: list[ClusterRow]

    @property
    def is_stream(self) -> bool:
        return self.trace.tasks[-1].submit_s > 0


def make_case(name: str, seed: int, tasks: int, *, is_stream: bool) -> Case:
    """Draw tasks and cluster."""
    bag = generate(structs.replace(TASKS, tasks=tasks), [ClusterRow(num_gpus=1, gpu_model=m) for m in MODELS], seed)
    rate = least_rate(bag, make_cluster(name, seed, 1.0), 1.0)
    if not is_stream:
        return Case(bag, make_cluster(name, seed, tasks / rate))
    dice, at_s, stream = random.Random(f"arrivals {seed}"), 0.0, []
    for task in bag.tasks:
        at_s += dice.expovariate(LOAD * rate)
        stream.append(structs.replace(task, submit_s=at_s))
    return Case(Trace("stream", stream), make_cluster(name, seed, tasks / (LOAD * rate)))


def make_cluster(name: str, seed: int, span_s: float) -> list[ClusterRow]:
    """Draw the workers, for a run of so many seconds."""
    dice = random.Random(f"cluster {seed}")
    return [
        ClusterRow(num_gpus=1, gpu_model=model, **trouble(dice, span_s))  # type: ignore[arg-type]
        for model in MODELS
        for count, trouble in SCENARIOS[name]
        for _ in range(count)
    ]


def least_rate(trace: Trace, cluster: Sequence[ClusterRow], span_s: float) -> float:
    """Tasks a second that the cluster gets done at the best, when the least of it is there."""
    kinds: dict[str, list[float]] = {}
    counts: dict[str, int] = {}
    for task in trace.tasks:
        sums = kinds.setdefault(task.kind, [0.0] * len(MODELS))
        counts[task.kind] = counts.get(task.kind, 0) + 1
        for i, model in enumerate(MODELS):
            sums[i] += task.runtime_on(model)
    seconds = [[total / counts[kind] for total in sums] for kind, sums in kinds.items()]
    work = [float(counts[kind]) for kind in kinds]
    rates = []
    for phase in range(PHASES):
        at_s = (phase + 0.5) * span_s / PHASES
        capacity = [math.fsum(_worth(row, at_s) for row in cluster if row.gpu_model == model) for model in MODELS]
        rates.append(len(trace.tasks) / solve(work, seconds, capacity, None)[1])
    return min(rates)


def _worth(row: ClusterRow, at_s: float) -> float:
    """What a worker gets done at an instant, 1 where it is sound."""
    is_here = row.joins_s <= at_s < (math.inf if row.leaves_s is None else row.leaves_s)
    if not is_here or row.fail_share >= QUARANTINED:
        return 0.0
    is_slow = row.slow_from_s <= at_s < (math.inf if row.slow_until_s is None else row.slow_until_s)
    return (row.slow_factor if is_slow else 1.0) / (1 + row.fail_after * row.fail_share / (1 - row.fail_share))


def run(policy: str, case: Case, seed: int, text: str = "") -> Run:
    settings = parse_settings(f'policy.name = "{settings_name(policy)}"\nretries.error = 1_000_000\n{text}')
    return run_under(policy, case.trace, case.cluster, settings, seed)


def costs(case: Case, runs: Mapping[str, Run]) -> dict[str, tuple[float, float]]:
    """Of each run what is compared: after the first tasks, and as a whole."""
    if not case.is_stream:
        return {name: (max(r.finish_s) - sorted(r.finish_s)[LEARNED - 1], max(r.finish_s)) for name, r in runs.items()}
    first_s = case.trace.tasks[0].submit_s
    submits = [task.submit_s - first_s for task in case.trace.tasks]
    from_s = max(sorted(run.finish_s)[LEARNED - 1] for run in runs.values())
    found = {}
    for name, each in runs.items():
        flows = [finish_s - submit_s for finish_s, submit_s in zip(each.finish_s, submits, strict=True)]
        later = [flow for flow, submit_s in zip(flows, submits, strict=True) if submit_s > from_s]
        found[name] = (fmean(later), fmean(flows))
    return found


def main() -> int:
    parser = arguments(__doc__.splitlines()[0] if __doc__ else "", runs=10)
    parser.add_argument("--tasks", type=int, default=1000, help="of a run (default %(default)s)")
    parser.add_argument("--scenario", action="append", choices=list(SCENARIOS), help="default: all")
    parser.add_argument("--set", metavar="LINE", action="append", default=[], help="of the settings, as TOML")
    options = parser.parse_args()
    text = "\n".join(options.set)
    rows: list[list[Any]] = []
    floors: list[Floor] = []
    for name in options.scenario or SCENARIOS:
        for arrivals in ("bag", "stream"):
            after, whole, learned_s, told_s = [], [], [], []
            for seed in range(options.runs):
                case = make_case(name, seed, options.tasks, is_stream=arrivals == "stream")
                found = costs(case, {p: run(p, case, seed, text) for p in ("adaptive", "informed")})
                after.append(found["adaptive"][0] / found["informed"][0])
                whole.append(found["adaptive"][1] / found["informed"][1])
                learned_s.append(found["adaptive"][0])
                told_s.append(found["informed"][0])
            what = f"{name}, {arrivals}"
            seconds = [f"{median(values):,.0f}" for values in (learned_s, told_s)]
            rows.append([what, *seconds, f"{median(after):.3f}", spread(after), f"{median(whole):.3f}"])
            floors.append(Floor(f"{what}: adaptive to informed", median(after), FLOOR, at_most=True))
    columns = ["what", "adaptive (s)", "informed (s)", "ratio", "lowest .. highest", "whole"]
    return finish(options, "failing", columns, rows, floors)


if __name__ == "__main__":
    sys.exit(main())
