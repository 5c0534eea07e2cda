"""What a run was worth, in the words of the field.

flow time (JCT): submit to finish. Queueing delay: submit to start. Bounded slowdown: max(1, flow time / max(runtime,
tau)) with tau = 10 s (Feitelson and Rudolph, 1998). Makespan: first submit to last finish. Utilisation: busy slot-time
over available slot-time in the makespan; slots are GPUs where any task needs one, else CPUs. Fairness: Jain's index of
the bounded slowdowns, (sum x)^2 / (n sum x^2), 1 where all are equal (Jain, Chiu, Hawe, 1984). Of a task that was tried
several times the last attempt counts, the others are wasted; where it failed for good that is wasted, too, and counts
only for the times. What never ran counts only as failed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from statistics import fmean, stdev
from typing import Any

from msgspec import Struct, structs

from schedd.simulate.cluster import ClusterRow
from schedd.simulate.record import Run

TAU_S = 10.0
#: Two-sided 95 % quantiles of Student's t, by degrees of freedom; and the normal distribution's.
STUDENT_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
NORMAL_95 = 1.960


class Figures(Struct, frozen=True):
    """Of one run; seconds, unless a name says otherwise."""

    makespan_s: float
    mean_flow_time_s: float
    p50_flow_time_s: float
    p99_flow_time_s: float
    mean_queueing_delay_s: float
    mean_bounded_slowdown: float
    utilisation: float
    gpu_allocation_ratio: float | None
    fairness: float
    steals: int
    wasted_s: float
    attempts: int
    failed: int
    tasks: int
    #: Real microseconds of the engine for each placement.
    decision_us: float


def figures_of(run: Run) -> Figures:
    """Work out the figures of a run in which all tasks have finished. O(tasks log tasks)."""
    first_s = run.trace.tasks[0].submit_s
    ran = [i for i, start_s in enumerate(run.start_s) if start_s >= 0]
    tasks = [run.trace.tasks[i] for i in ran]
    starts, finishes = [run.start_s[i] for i in ran], [run.finish_s[i] for i in ran]
    submits = [task.submit_s - first_s for task in tasks]
    # A run goes by whole nanoseconds: what starts at once may start a part of one before its submit.
    flows = [max(0.0, finish - submit) for finish, submit in zip(finishes, submits, strict=True)]
    runtimes = runtimes_of(run, ran)
    held = runtimes if run.held_s is None else [run.held_s[i] for i in ran]
    slowdowns = [max(1.0, flow / max(runtime, TAU_S)) for flow, runtime in zip(flows, runtimes, strict=True)]
    makespan = max(run.finish_s)
    uses_gpus = any(task.requirements.min_gpus for task in tasks)
    slots = slots_of(run.resources, gpus=uses_gpus)
    available = math.fsum(
        slots_of([row], gpus=uses_gpus) * max(0.0, min(makespan, ends_s) - row.joins_s)
        for row in run.resources
        for ends_s in (makespan if row.leaves_s is None else row.leaves_s,)
    )
    busy = math.fsum(
        runtime * (needs.min_gpus if uses_gpus else needs.cpus)
        for runtime, needs, row in zip(held, map(run.needs, ran), ran, strict=True)
        if row not in run.unsuccessful
    )
    in_order = sorted(flows)
    return Figures(
        makespan_s=makespan,
        mean_flow_time_s=fmean(flows),
        p50_flow_time_s=quantile(in_order, 0.5),
        p99_flow_time_s=quantile(in_order, 0.99),
        mean_queueing_delay_s=fmean(max(0.0, start - submit) for start, submit in zip(starts, submits, strict=True)),
        mean_bounded_slowdown=fmean(slowdowns),
        utilisation=busy / available if available else 0.0,
        gpu_allocation_ratio=run.gpus_peak / slots if uses_gpus else None,
        fairness=math.fsum(slowdowns) ** 2 / (len(slowdowns) * math.fsum(x * x for x in slowdowns)),
        steals=run.steals,
        wasted_s=run.wasted_s,
        attempts=run.attempts,
        failed=run.failed,
        tasks=len(run.trace.tasks),
        decision_us=run.engine_s * 1e6 / max(1, run.placements),
    )


def runtimes_of(run: Run, rows: Iterable[int]) -> list[float]:
    """How long tasks that ran took: their last attempts; of preempted ones, which go on with what they have, all."""
    if run.held_s is None:
        return [run.finish_s[row] - run.start_s[row] for row in rows]
    tasks = (run.trace.tasks[row] for row in rows)
    return [min(task.runtimes.values(), default=task.runtime_s) for task in tasks]


def slots_of(cluster: Iterable[ClusterRow], *, gpus: bool) -> float:
    """GPUs, or CPUs, of a cluster: the most that are there at the same time."""
    return most_at_once(cluster, lambda row: row.num_gpus if gpus else row.resources().cpus)


def most_at_once(cluster: Iterable[ClusterRow], of_one: Callable[[ClusterRow], float]) -> float:
    """What the workers have together while most of it is there: one that comes back does not count twice."""
    rows = [(row, row.count * of_one(row)) for row in cluster]
    if all(row.leaves_s is None for row, _ in rows):
        return math.fsum(amount for _, amount in rows)
    steps = [(row.joins_s, amount) for row, amount in rows if row.leaves_s is None or row.leaves_s > row.joins_s]
    steps += [
        (row.leaves_s, -amount) for row, amount in rows if row.leaves_s is not None and row.leaves_s > row.joins_s
    ]
    # Sorted, what leaves goes before what comes at the same instant.
    return max(accumulate(amount for _, amount in sorted(steps)), default=0.0)


def quantile(in_order: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of the values does not exceed."""
    return in_order[max(0, math.ceil(share * len(in_order)) - 1)]


def summary(runs: Sequence[Figures]) -> dict[str, Any]:
    """Means over the seeds of a policy, `per_seed` the figures of each, `ci95` the half-widths of 95 % intervals."""
    rows = [structs.asdict(run) for run in runs]
    means: dict[str, Any] = {
        name: None if first is None else fmean(row[name] for row in rows) for name, first in rows[0].items()
    }
    means["tasks"] = rows[0]["tasks"]
    spread = {name: half_width([row[name] for row in rows]) for name, value in means.items() if value is not None}
    return means | {"ci95": spread if len(rows) > 1 else None, "per_seed": rows}


def half_width(values: Sequence[float]) -> float:
    """Half the width of the 95 % confidence interval of a mean, by Student's t; 0 for a single value."""
    if len(values) < 2:
        return 0.0
    return _student(len(values) - 1) * stdev(values) / math.sqrt(len(values))


def _student(freedom: int) -> float:
    """The quantile; beyond the list by its expansion in 1 / freedom, right to 0.001 (Abramowitz and Stegun, 26.7.5)."""
    if freedom <= len(STUDENT_95):
        return STUDENT_95[freedom - 1]
    z = NORMAL_95
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
