"""schedd: a scheduler for machine-learning evaluations on GPU and CPU workers.

The names below are all that programs need. They are loaded when first used, so that `import schedd` inside a task
costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from schedd.client.aio import AsyncClient
    from schedd.client.executor import SchedExecutor
    from schedd.client.sync import Client
    from schedd.core.model import Task, TaskRequirements, WorkerId, WorkerInfo, WorkerResources
    from schedd.core.policies.adaptive import AdaptiveScheduler
    from schedd.core.policies.base import (
        ClusterView,
        Draft,
        Outcome,
        Preemption,
        PreemptView,
        Steal,
        TaskScheduler,
    )
    from schedd.core.policies.batch import BatchScheduler
    from schedd.core.policies.fifo import FIFOScheduler
    from schedd.core.policies.load_balancing import LoadBalancingScheduler
    from schedd.core.policies.priority import PriorityScheduler
    from schedd.core.policies.work_stealing import WorkStealingScheduler
    from schedd.core.resources import ResourceManager
    from schedd.core.stats import Learned, PerformanceStats
    from schedd.worker.task_api import report, should_stop

__all__ = [
    "AdaptiveScheduler",
    "AsyncClient",
    "BatchScheduler",
    "Client",
    "ClusterView",
    "Draft",
    "FIFOScheduler",
    "Learned",
    "LoadBalancingScheduler",
    "Outcome",
    "PerformanceStats",
    "PreemptView",
    "Preemption",
    "PriorityScheduler",
    "ResourceManager",
    "SchedExecutor",
    "Steal",
    "Task",
    "TaskRequirements",
    "TaskScheduler",
    "WorkStealingScheduler",
    "WorkerId",
    "WorkerInfo",
    "WorkerResources",
    "report",
    "should_stop",
]

_MODULES = {
    "AdaptiveScheduler": "schedd.core.policies.adaptive",
    "AsyncClient": "schedd.client.aio",
    "BatchScheduler": "schedd.core.policies.batch",
    "Client": "schedd.client.sync",
    "ClusterView": "schedd.core.policies.base",
    "Draft": "schedd.core.policies.base",
    "FIFOScheduler": "schedd.core.policies.fifo",
    "Learned": "schedd.core.stats",
    "LoadBalancingScheduler": "schedd.core.policies.load_balancing",
    "Outcome": "schedd.core.policies.base",
    "PerformanceStats": "schedd.core.stats",
    "PreemptView": "schedd.core.policies.base",
    "Preemption": "schedd.core.policies.base",
    "PriorityScheduler": "schedd.core.policies.priority",
    "ResourceManager": "schedd.core.resources",
    "SchedExecutor": "schedd.client.executor",
    "Steal": "schedd.core.policies.base",
    "Task": "schedd.core.model",
    "TaskRequirements": "schedd.core.model",
    "TaskScheduler": "schedd.core.policies.base",
    "WorkStealingScheduler": "schedd.core.policies.work_stealing",
    "WorkerId": "schedd.core.model",
    "WorkerInfo": "schedd.core.model",
    "WorkerResources": "schedd.core.model",
    "report": "schedd.worker.task_api",
    "should_stop": "schedd.worker.task_api",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'schedd' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULES[name]), name)
    return value
