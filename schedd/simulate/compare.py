"""Which of several runs of one trace is best, by how much, and how sure that is.

What a policy would make of the next weeks is told from the past ones: the tasks are cut into windows of equal numbers,
in the order of their arrival, and the comparison is repeated over windows drawn with replacement (block bootstrap;
Künsch, 1989), all runs by the same windows. What did not succeed in one of the runs is left out of all. There are no
windows of a makespan, and of runs in which what was submitted depended on what had ended: of these only several seeds
say how sure it is, by Student's t, and nothing where the seeds are all alike.
"""

from __future__ import annotations

import math
import random
from array import array
from collections.abc import Mapping, Sequence
from statistics import fmean

from msgspec import Struct

from schedd.simulate.metrics import TAU_S, half_width, quantile, runtimes_of
from schedd.simulate.record import Run

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
    failed: tasks that ended without success, of a seed in the mean.
    """

    value: float
    behind: float
    low: float | None
    high: float | None
    wins: float | None
    failed: float = 0.0


class Values:
    """What the runs of several seeds were by an objective: of each what `values_of` has found."""

    def __init__(self, by_seed: Sequence[array[float]], objective: str) -> None:
        self.objective = objective
        self.by_seed = by_seed

    @property
    def value(self) -> float:
        """The mean over the seeds, of what succeeded."""
        return fmean(_aggregate(_known(values), self.objective) for values in self.by_seed)

    @property
    def failed(self) -> float:
        """How many tasks did not succeed, in the mean over the seeds."""
        return fmean(sum(map(math.isnan, values)) for values in self.by_seed)


def values_of(run: Run, objective: str) -> array[float]:
    """What a run was for each task, in the order of the trace; NaN for what did not succeed.

    Of a run that reacts, what it was in all, and a NaN for each task that did not succeed.
    """
    first_s = run.trace.tasks[0].submit_s
    if objective == "makespan":
        values = array("d", run.finish_s)
    else:
        submits = (task.submit_s - first_s for task in run.trace.tasks)
        values = array("d", (end - submit for end, submit in zip(run.finish_s, submits, strict=True)))
    if objective == "mean_bounded_slowdown":
        runtimes = runtimes_of(run, range(len(values)))
        values = array("d", (max(1.0, flow / max(ran, TAU_S)) for flow, ran in zip(values, runtimes, strict=True)))
    for row in run.unsuccessful:
        values[row] = math.nan
    if run.reacts:
        return array("d", [_aggregate(_known(values), objective), *[math.nan] * run.failed])
    return values


def _known(values: Sequence[float]) -> Sequence[float]:
    return [value for value in values if not math.isnan(value)]


def _aggregate(values: Sequence[float], objective: str) -> float:
    """Of all tasks in one; 0 where there are none."""
    if not values:
        return 0.0
    if objective == "makespan":
        return max(values)
    return quantile(sorted(values), P99) if objective == "p99_flow_time" else fmean(values)


def standings(values: Mapping[str, Values], in_use: str | None = None) -> dict[str, Standing]:
    """Each run beside the best, which comes first; then by value, ties in the given order, but first what is in use."""
    failed = {name: each.failed for name, each in values.items()}
    if any(failed.values()):
        values = _common(values)
    means = {name: each.value for name, each in values.items()}
    order = sorted(means, key=lambda name: (means[name] * (1 - TIE * (name == in_use)), name != in_use))
    best = order[0]
    resamples = _resamples(values)
    samples = resamples or _seeds(values)
    wins = dict.fromkeys(order, 0.0)
    for sample in samples:
        least = min(sample.values())
        winners = [name for name in order if sample[name] <= least]
        for name in winners:
            wins[name] += 1 / len(winners)
    found = {}
    for name in order:
        behind = _behind(means[best], means[name])
        pairs = [(sample[best], sample[name]) for sample in samples]
        low, high = _drawn_between(pairs) if resamples else _between(behind, pairs)
        sure = wins[name] / len(samples) if samples else None
        found[name] = Standing(means[name], behind, low, high, sure, failed[name])
    return found


def _drawn_between(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The interval of how far the second is behind, by resamples."""
    gaps = sorted(_behind(*pair) for pair in pairs)
    return quantile(gaps, 0.025), quantile(gaps, 0.975)


def _between(behind: float, pairs: Sequence[tuple[float, float]]) -> tuple[float, float] | tuple[None, None]:
    """The interval by seeds; None where all seeds are alike, of which none says what another day would be like."""
    if len(set(pairs)) < 2:
        return None, None
    half = half_width([_behind(*pair) for pair in pairs])
    return behind - half, behind + half


def _common(values: Mapping[str, Values]) -> dict[str, Values]:
    """Of each seed only the tasks that succeeded in all of the runs. Runs that react have one value each."""
    by_seed: dict[str, list[array[float]]] = {name: [] for name in values}
    for runs in zip(*(each.by_seed for each in values.values()), strict=True):
        rows = [row for row, of_task in enumerate(zip(*runs, strict=False)) if not any(map(math.isnan, of_task))]
        for name, run in zip(values, runs, strict=True):
            by_seed[name].append(array("d", (run[row] for row in rows)))
    return {name: Values(by_seed[name], each.objective) for name, each in values.items()}


def _behind(best: float, other: float) -> float:
    return 1 - best / other if other else 0.0


def _seeds(values: Mapping[str, Values]) -> list[dict[str, float]]:
    """What each run was with each seed, where it is one value; none where they are all alike."""
    first = next(iter(values.values()))
    if first.objective != "makespan" and max(map(len, first.by_seed)) > 1:
        return []
    columns = {name: [_aggregate(of_seed, each.objective) for of_seed in each.by_seed] for name, each in values.items()}
    rows = list(zip(*columns.values(), strict=True))
    return [dict(zip(columns, row, strict=True)) for row in rows] if len(set(rows)) > 1 else []


def _resamples(values: Mapping[str, Values]) -> list[dict[str, float]]:
    """What each run would have been, again and again; none where there are no windows."""
    first = next(iter(values.values()))
    windows = _windows([len(of_seed) for of_seed in first.by_seed])
    if first.objective == "makespan" or not windows:
        return []
    draw = _draw_p99 if first.objective == "p99_flow_time" else _draw_mean
    rng = random.Random(0)
    draws = [[0] * len(windows[0]) for _ in range(RESAMPLES)]
    for weights in draws:
        for window in rng.choices(range(len(windows[0])), k=len(windows[0])):
            weights[window] += 1
    columns = {name: draw(each.by_seed, windows, draws) for name, each in values.items()}
    return [{name: column[i] for name, column in columns.items()} for i in range(RESAMPLES)]


def _windows(tasks: Sequence[int]) -> list[list[range]]:
    """Of each seed, with so many tasks, as many as for the others; none where one has too few."""
    count = min(WINDOWS_MAX, min(tasks) // WINDOW_TASKS_MIN)
    if count < WINDOWS_MIN:
        return []
    return [[range(each * i // count, each * (i + 1) // count) for i in range(count)] for each in tasks]


#: Of each seed its windows.
Windows = Sequence[Sequence[range]]


def _draw_mean(seeds: Sequence[array[float]], windows: Windows, draws: Sequence[Sequence[int]]) -> list[float]:
    """The mean under each drawing; `draws` has how often each window was drawn."""
    pairs = list(zip(seeds, windows, strict=True))
    sums = [sum(sum(values[w[i].start : w[i].stop]) for values, w in pairs) for i in range(len(windows[0]))]
    counts = _counts(windows)
    return [
        sum(map(float.__mul__, sums, map(float, weights))) / sum(map(int.__mul__, counts, weights)) for weights in draws
    ]


def _counts(windows: Windows) -> list[int]:
    """Tasks of each window, of all seeds."""
    return [sum(map(len, of_seeds)) for of_seeds in zip(*windows, strict=True)]


def _draw_p99(seeds: Sequence[array[float]], windows: Windows, draws: Sequence[Sequence[int]]) -> list[float]:
    """The 99th percentile under each drawing. From the largest value on: few need to be looked at."""
    ranked = sorted(
        (
            (value, i)
            for values, of_seed in zip(seeds, windows, strict=True)
            for i, window in enumerate(of_seed)
            for value in values[window.start : window.stop]
        ),
        reverse=True,
    )
    counts = _counts(windows)
    found = []
    for weights in draws:
        above = (1 - P99) * sum(map(int.__mul__, counts, weights))
        for value, window in ranked:
            above -= weights[window]
            if above < 0:
                found.append(value)
                break
    return found
