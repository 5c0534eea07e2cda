"""Which of several runs of one trace is best, by how much, and how sure that is.

What a policy would make of the next weeks is told from the past ones: the tasks are cut into windows of equal numbers,
in the order of their arrival, and the comparison is repeated over windows drawn with replacement (block bootstrap;
Künsch, 1989), all runs by the same windows. A makespan has no windows: of it only several seeds say how sure it is.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Mapping, Sequence
from itertools import chain
from statistics import fmean

from msgspec import Struct

from schedd.simulate.metrics import TAU_S, quantile
from schedd.simulate.run import Run

#: What may be asked for; less is better with all of them.
OBJECTIVES = ("mean_flow_time", "makespan", "p99_flow_time", "mean_bounded_slowdown")
#: Windows, at most and at least, and the fewest tasks that one has.
WINDOWS_MAX = 40
WINDOWS_MIN = 5
WINDOW_TASKS_MIN = 10
RESAMPLES = 1000
P99 = 0.99
#: By so little nothing is better than what is in use.
TIE = 1e-9


class Standing(Struct, frozen=True):
    """One of the runs beside the best.

    value: of the objective. behind: by which share of its own value it could be less, were it the best. low, high: of
    that, an interval of 95 %. wins: in which share of the resamples (or seeds) it is the best of all. None: not known.
    """

    value: float
    behind: float
    low: float | None
    high: float | None
    wins: float | None


class Values:
    """What the runs of several seeds were by an objective: of each what `values_of` has found."""

    def __init__(self, by_seed: Sequence[array[float]], objective: str) -> None:
        self.objective = objective
        self.by_seed = by_seed

    @property
    def value(self) -> float:
        """The mean over the seeds."""
        return fmean(_aggregate(values, self.objective) for values in self.by_seed)


def values_of(run: Run, objective: str) -> array[float]:
    """What a run was for each task, in the order of the trace; its makespan alone, where that is the objective."""
    if objective == "makespan":
        return array("d", [max(run.finish_s)])
    first_s = run.trace.tasks[0].submit_s
    flows = array("d", (end - task.submit_s + first_s for end, task in zip(run.finish_s, run.trace.tasks, strict=True)))
    if objective != "mean_bounded_slowdown":
        return flows
    runtimes = (end - start for end, start in zip(run.finish_s, run.start_s, strict=True))
    return array("d", (max(1.0, flow / max(ran, TAU_S)) for flow, ran in zip(flows, runtimes, strict=True)))


def _aggregate(values: Sequence[float], objective: str) -> float:
    return quantile(sorted(values), P99) if objective == "p99_flow_time" else fmean(values)


def standings(values: Mapping[str, Values], in_use: str | None = None) -> dict[str, Standing]:
    """Each run beside the best, which comes first; then by value, ties in the given order, but first what is in use."""
    means = {name: each.value for name, each in values.items()}
    order = sorted(means, key=lambda name: (means[name] * (1 - TIE * (name == in_use)), name != in_use))
    best = order[0]
    samples = _samples(values)
    wins = dict.fromkeys(order, 0.0)
    for sample in samples:
        least = min(sample.values())
        winners = [name for name in order if sample[name] <= least]
        for name in winners:
            wins[name] += 1 / len(winners)
    found = {}
    for name in order:
        gaps = sorted(_behind(sample[best], sample[name]) for sample in samples)
        low, high = (quantile(gaps, 0.025), quantile(gaps, 0.975)) if gaps else (None, None)
        sure = wins[name] / len(samples) if samples else None
        found[name] = Standing(means[name], _behind(means[best], means[name]), low, high, sure)
    return found


def _behind(best: float, other: float) -> float:
    return 1 - best / other if other else 0.0


def _samples(values: Mapping[str, Values]) -> list[dict[str, float]]:
    """What each run would have been, again and again; none where nothing can be said."""
    first = next(iter(values.values()))
    if first.objective == "makespan":
        seeds = len(first.by_seed)
        return [{name: each.by_seed[i][0] for name, each in values.items()} for i in range(seeds)] if seeds > 1 else []
    windows = _windows(len(first.by_seed[0]))
    if not windows:
        return []
    draw = _draw_p99 if first.objective == "p99_flow_time" else _draw_mean
    rng = random.Random(0)
    draws = [[0] * len(windows) for _ in range(RESAMPLES)]
    for weights in draws:
        for window in rng.choices(range(len(windows)), k=len(windows)):
            weights[window] += 1
    columns = {name: draw(each.by_seed, windows, draws) for name, each in values.items()}
    return [{name: column[i] for name, column in columns.items()} for i in range(RESAMPLES)]


def _windows(tasks: int) -> list[range]:
    count = min(WINDOWS_MAX, tasks // WINDOW_TASKS_MIN)
    if count < WINDOWS_MIN:
        return []
    return [range(tasks * i // count, tasks * (i + 1) // count) for i in range(count)]


def _draw_mean(seeds: Sequence[array[float]], windows: Sequence[range], draws: Sequence[Sequence[int]]) -> list[float]:
    """The mean under each drawing; `draws` has how often each window was drawn."""
    sums = [sum(sum(values[w.start : w.stop]) for values in seeds) for w in windows]
    counts = [len(w) * len(seeds) for w in windows]
    return [
        sum(map(float.__mul__, sums, map(float, weights))) / sum(map(int.__mul__, counts, weights)) for weights in draws
    ]


def _draw_p99(seeds: Sequence[array[float]], windows: Sequence[range], draws: Sequence[Sequence[int]]) -> list[float]:
    """The 99th percentile under each drawing. From the largest value on: few need to be looked at."""
    of_task = list(chain.from_iterable([i] * len(window) for i, window in enumerate(windows)))
    ranked = sorted(((v, of_task[i]) for values in seeds for i, v in enumerate(values)), reverse=True)
    found = []
    for weights in draws:
        above = (1 - P99) * sum(len(w) * n for w, n in zip(windows, weights, strict=True)) * len(seeds)
        for value, window in ranked:
            above -= weights[window]
            if above < 0:
                found.append(value)
                break
    return found
