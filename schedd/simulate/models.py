"""Device models of which the name of one is part of another's: A10 and A100, T4 and T4G.

To the engine the model that a task asks for is a part of a name, as people write it: A100 is found in NVIDIA A100-SXM4.
A trace says exactly on which models a task runs. Where the two are at odds, the shorter name is put in brackets, on
both sides: <A10> is part of no other name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import structs

from schedd.core.model import TaskRequirements
from schedd.simulate.cluster import ClusterRow
from schedd.simulate.trace import Trace


def told_apart(trace: Trace, cluster: Sequence[ClusterRow]) -> tuple[Trace, Sequence[ClusterRow]]:
    """The trace and the cluster with names by which the engine finds no model on which a task does not run."""
    models = {row.gpu_model for row in cluster}
    parts = {
        asked
        for task in trace.tasks
        if task.runtimes
        for asked in _asked(task.requirements)
        if asked in task.runtimes and any(asked in model and model not in task.runtimes for model in models)
    }
    if not parts:
        return trace, cluster
    names = {part: f"<{part}>" for part in parts}
    tasks = [
        structs.replace(
            task,
            requirements=_renamed(task.requirements, names),
            runtimes={names.get(model, model): runtime_s for model, runtime_s in task.runtimes.items()},
        )
        if task.runtimes
        else task
        for task in trace.tasks
    ]
    rows = [structs.replace(row, gpu_model=names.get(row.gpu_model, row.gpu_model)) for row in cluster]
    return structs.replace(trace, tasks=tasks), rows


def _asked(requirements: TaskRequirements) -> list[str]:
    return [each.gpu_model for each in (requirements, *requirements.variants)]


def _renamed(requirements: TaskRequirements, names: Mapping[str, str]) -> TaskRequirements:
    if not names.keys() & _asked(requirements):
        return requirements
    variants = tuple(_renamed(each, names) for each in requirements.variants)
    model = names.get(requirements.gpu_model, requirements.gpu_model)
    return structs.replace(requirements, gpu_model=model, variants=variants)
