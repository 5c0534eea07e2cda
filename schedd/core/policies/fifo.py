"""fifo: in the order of submission, to the first idle worker that fits. Priorities are ignored."""

from __future__ import annotations

from msgspec import Struct

from schedd.core.model import Instant, Task, WorkerInfo
from schedd.core.policies.base import Draft, TaskScheduler
from schedd.core.policies.packing import Packing


class FIFOParams(Struct, frozen=True, forbid_unknown_fields=True):
    """Table [policy.fifo]. packing: not the first worker that fits, but the one on which others still fit best."""

    packing: bool = False


class FIFOScheduler(TaskScheduler):
    """First in, first out. To choose when order must be plain to everybody, and as the yardstick for all others."""

    name = "fifo"
    Params = FIFOParams
    summary = "submit order; the first idle worker that fits"

    def __init__(self, packing: bool = False) -> None:
        self._packing = Packing() if packing else None

    def level(self, task: Task) -> float:
        return 0.0

    def score(self, task: Task, worker: WorkerInfo) -> float:
        return 0.0 if self._packing is None else self._packing.score(task, worker)

    def plan(self, draft: Draft, now: Instant) -> None:
        if self._packing is None:
            super().plan(draft, now)
        else:
            self._packing.plan(draft)
