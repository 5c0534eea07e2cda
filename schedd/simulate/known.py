"""A trace of which a policy that learns has learned everything beforehand: how long each task takes on each model.

It is told as what a daemon would remember of earlier runs, so nothing of the policy is another: the tasks that take
equally long everywhere become a kind of their own, and each kind has run often on each model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from msgspec import structs

from schedd.core.policies.experience import CELL_MARK
from schedd.core.stats import Learned
from schedd.simulate.cluster import ClusterRow
from schedd.simulate.trace import Trace

#: Earlier runs of each kind on each model.
RUNS = 100
#: Shorter runtimes are all the same (seconds).
SHORTEST_S = 1e-6


def with_all_known(trace: Trace, cluster: Sequence[ClusterRow]) -> tuple[Trace, list[Learned]]:
    """The trace with kinds that say how long its tasks take, and what is remembered of those kinds."""
    models = list(dict.fromkeys(row.gpu_model for row in cluster))
    kinds: dict[tuple[object, ...], str] = {}
    tasks, learned = [], []
    for task in trace.tasks:
        runtimes = task.runtimes or dict.fromkeys(models, task.runtime_s)
        key = (task.kind, *runtimes.items())
        if key not in kinds:
            kinds[key] = f"{task.kind} {len(kinds) + 1}"
            learned += [_remembered(kinds[key], model, seconds) for model, seconds in runtimes.items()]
        tasks.append(structs.replace(task, kind=kinds[key]))
    return Trace(trace.format, tasks), learned


def _remembered(kind: str, model: str, seconds: float) -> Learned:
    value = math.log(max(seconds, SHORTEST_S))
    return Learned(kind, CELL_MARK + model, RUNS * value, RUNS * value * value, 1.0, RUNS, RUNS)
