"""The six policies, by their name in `[policy] name`."""

from __future__ import annotations

from schedd.core.policies.adaptive import AdaptiveScheduler
from schedd.core.policies.base import TaskScheduler
from schedd.core.policies.batch import BatchScheduler
from schedd.core.policies.fifo import FIFOScheduler
from schedd.core.policies.load_balancing import LoadBalancingScheduler
from schedd.core.policies.priority import PriorityScheduler
from schedd.core.policies.work_stealing import WorkStealingScheduler

POLICIES: dict[str, type[TaskScheduler]] = {
    "fifo": FIFOScheduler,
    "priority": PriorityScheduler,
    "load_balancing": LoadBalancingScheduler,
    "work_stealing": WorkStealingScheduler,
    "adaptive": AdaptiveScheduler,
    "batch": BatchScheduler,
}
