"""fifo: in the order of submission, to the first idle worker that fits. Priorities are ignored."""

from __future__ import annotations

from msgspec import Struct

from schedd.core.model import Task, WorkerInfo
from schedd.core.policies.base import TaskScheduler


class FIFOParams(Struct, frozen=True, forbid_unknown_fields=True):
    """Table [policy.fifo]: nothing to set."""


class FIFOScheduler(TaskScheduler):
    """First in, first out. To choose when order must be plain to everybody, and as the yardstick for all others."""

    name = "fifo"
    Params = FIFOParams
    summary = "submit order; the first idle worker that fits"

    def level(self, task: Task) -> float:
        return 0.0

    def score(self, task: Task, worker: WorkerInfo) -> float:
        return 0.0
