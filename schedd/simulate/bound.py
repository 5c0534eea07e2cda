"""A makespan that no schedule of a trace can beat."""

from __future__ import annotations

from collections.abc import Sequence

from schedd.core.model import TaskRequirements
from schedd.simulate.cluster import ClusterRow
from schedd.simulate.metrics import slots_of
from schedd.simulate.trace import Trace


def lower_bound_s(trace: Trace, cluster: Sequence[ClusterRow]) -> float | None:
    """The larger of: what the last tasks need after their submits, and each task's own time; None: not known.

    Where all devices are alike, for each instant: that instant plus the work that is submitted from then on, spread
    over all slots. Where they differ and all is there from the start, the optimum of the linear program over tasks and
    models that may cut tasks in pieces (Lawler and Labetoulle, 1978); it needs SciPy. Workers that are faster for a
    while count as if they were always. None is known where tasks may fail for good: what is not run needs no time.
    """
    if may_fail(cluster) or (any(task.fails for task in trace.tasks) and any(task.after for task in trace.tasks)):
        return None
    models = {row.gpu_model for row in cluster}
    first_s = trace.tasks[0].submit_s
    speed = top_speed(cluster)
    own = max(
        task.submit_s - first_s + min(task.runtimes.values(), default=task.runtime_s) / speed for task in trace.tasks
    )
    if all(len(set(task.runtimes.values())) <= 1 for task in trace.tasks):
        return max(own, _area(trace, cluster, speed))
    if any(task.submit_s > first_s or _least(task.requirements, True) != 1 for task in trace.tasks):
        return None
    program = _program(trace, cluster, sorted(models))
    return None if program is None else max(own, program / speed)


def may_fail(cluster: Sequence[ClusterRow]) -> bool:
    """Whether workers fail attempts: only the settings say whether these are tried again until they succeed."""
    return any(row.fail_share for row in cluster)


def top_speed(cluster: Sequence[ClusterRow]) -> float:
    """How fast the fastest worker ever is, and 1 at least: a bound may take all of them to be so."""
    return max(1.0, *(row.slow_factor for row in cluster))


def _area(trace: Trace, cluster: Sequence[ClusterRow], speed: float) -> float:
    """The bound by work, of GPUs and of CPUs."""
    best = 0.0
    first_s = trace.tasks[0].submit_s
    for gpus in (True, False):
        slots = slots_of(cluster, gpus=gpus) * speed
        work = 0.0
        for task in reversed(trace.tasks):
            runtime = min(task.runtimes.values(), default=task.runtime_s)
            work += runtime * _least(task.requirements, gpus)
            if work and slots:
                best = max(best, task.submit_s - first_s + work / slots)
    return best


def _least(asked: TaskRequirements, gpus: bool) -> float:
    """Of its alternatives the one that needs the least."""
    least = asked.min_gpus if gpus else asked.cpus
    return min([least, *(each.min_gpus if gpus else each.cpus for each in asked.variants)]) if asked.variants else least


def _program(trace: Trace, cluster: Sequence[ClusterRow], models: Sequence[str]) -> float | None:
    try:
        import numpy as np
        from scipy.optimize import linprog
        from scipy.sparse import coo_matrix
    except ImportError:
        return None
    slots = [slots_of([row for row in cluster if row.gpu_model == model], gpus=True) for model in models]
    count, width = len(trace.tasks), len(models)
    pairs = [(i, j) for i, task in enumerate(trace.tasks) for j, model in enumerate(models) if model in task.runtimes]
    columns = np.arange(len(pairs))
    rows_i = np.array([i for i, _ in pairs])
    rows_j = np.array([j for _, j in pairs])
    times = np.array([trace.tasks[i].runtimes[models[j]] for i, j in pairs])
    # min T: each task once, shares of it on models; the work of a model within its slots and T.
    once = coo_matrix((np.ones(len(pairs)), (rows_i, columns)), shape=(count, len(pairs) + 1))
    within = coo_matrix(
        (
            np.append(times, [-float(s) for s in slots]),
            (np.append(rows_j, range(width)), np.append(columns, [len(pairs)] * width)),
        ),
        shape=(width, len(pairs) + 1),
    )
    cost = np.append(np.zeros(len(pairs)), 1.0)
    found = linprog(cost, A_ub=within, b_ub=np.zeros(width), A_eq=once, b_eq=np.ones(count), method="highs")
    return float(found.fun) if found.success else None
