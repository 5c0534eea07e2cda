"""priority: the most important task first, to the least occupied idle worker that fits; by rule, in place of others."""

from __future__ import annotations

from heapq import heappop, heappush
from typing import Annotated, Literal

from msgspec import Meta, Struct

from schedd.core.model import SECOND, Instant, Report, Task, WorkerInfo
from schedd.core.policies.base import Draft, Preemption, PreemptView, TaskScheduler
from schedd.core.policies.packing import Packing
from schedd.core.policies.preemption import Preempting, PreemptRule

#: How often waiting tasks look for somebody to preempt: a second is little to who has waited for `preempt_after_s`.
PREEMPT_INTERVAL_S = 1.0
#: A metric moves a task by no more than this, whatever is reported: ranks stay finite, and own priorities still count.
PROMOTION_MAX = 1e12


class PriorityParams(Struct, frozen=True, forbid_unknown_fields=True):
    """Table [policy.priority].

    ageing_per_hour: priority that a task gains for each hour of waiting. packing: of the workers that fit, not the one
    with the fewest tasks, but the one on which others still fit best. preempt: stop running tasks for waiting ones
    that outrank them by preempt_margin and have waited for preempt_after_s; not before they have run for
    preempt_run_min_s, not more than preempt_times_max times each, with preempt_grace_s at least to end by themselves.
    from_metric: the name of a metric; a task that comes after another gains what that one last reported of it, times
    from_metric_weight, and with a minus sign where from_metric_mode is "min". "": no such rule.
    """

    ageing_per_hour: Annotated[float, Meta(ge=0, le=1e9)] = 0.0
    preempt: bool = False
    preempt_margin: Annotated[float, Meta(gt=0, le=1e9)] = 1.0
    preempt_after_s: Annotated[float, Meta(ge=0, le=1e9)] = 10.0
    preempt_run_min_s: Annotated[float, Meta(ge=0, le=1e9)] = 60.0
    preempt_times_max: Annotated[int, Meta(ge=1, le=10)] = 3
    preempt_grace_s: Annotated[float, Meta(ge=0, le=86400)] = 0.0
    packing: bool = False
    from_metric: Annotated[str, Meta(max_length=128)] = ""
    from_metric_mode: Literal["max", "min"] = "max"
    from_metric_weight: Annotated[float, Meta(gt=0, le=1e9)] = 1.0


class PriorityScheduler(TaskScheduler):
    """Rank by aged priority: ageing_rate * submit time - priority, constant while a task waits.

    Priorities may be changed while tasks wait, which is what multi-fidelity searches live on. Also usable alone, as a
    queue of anything: `enqueue`, `dequeue`.
    """

    name = "priority"
    Params = PriorityParams
    summary = "highest (aged) priority first; of the idle workers that fit, the one with the fewest tasks"

    def __init__(
        self,
        ageing_per_hour: float = 0.0,
        preempt: bool = False,
        preempt_margin: float = 1.0,
        preempt_after_s: float = 10.0,
        preempt_run_min_s: float = 60.0,
        preempt_times_max: int = 3,
        preempt_grace_s: float = 0.0,
        packing: bool = False,
        from_metric: str = "",
        from_metric_mode: Literal["max", "min"] = "max",
        from_metric_weight: float = 1.0,
    ) -> None:
        self.promotes = bool(from_metric)
        self._metric = from_metric
        self._gain = from_metric_weight if from_metric_mode == "max" else -from_metric_weight
        self._packing = Packing() if packing else None
        self.ageing_rate = ageing_per_hour / 3600
        self.preempt_interval_s = PREEMPT_INTERVAL_S if preempt else 0.0
        rule = PreemptRule(preempt_margin, preempt_after_s, preempt_run_min_s, preempt_times_max, preempt_grace_s)
        self._preempting = Preempting(rule, self._rank)
        self._heap: list[tuple[float, int, Task]] = []
        self._number = 0

    def level(self, task: Task) -> float:
        promoted = task.promoted
        return task.priority if promoted is None or not self.promotes else task.priority + promoted

    def promotion(self, report: Report) -> float | None:
        """What a task gains: the metric of the rule by its weight. What is not a number (it diverged) is the worst."""
        value = report.metrics.get(self._metric)
        if value is None:
            return None
        gain = self._gain * value
        return -PROMOTION_MAX if gain != gain else max(-PROMOTION_MAX, min(PROMOTION_MAX, gain))

    def score(self, task: Task, worker: WorkerInfo) -> float:
        return float(worker.task_count) if self._packing is None else self._packing.score(task, worker)

    def plan(self, draft: Draft, now: Instant) -> None:
        if self._packing is None:
            super().plan(draft, now)
        else:
            self._packing.plan(draft)

    def began(self, task: Task, now: Instant) -> None:
        self._preempting.began(task, now)

    def make_room(self, view: PreemptView, now: Instant) -> list[Preemption]:
        return self._preempting.propose(view, now)

    def _rank(self, task: Task) -> float:
        return self.ageing_rate * task.submitted_ns / SECOND - self.level(task)

    def enqueue(self, task: Task, priority: float | None = None) -> None:
        """Add a task under a priority (None: its own), higher first, ties in the order of adding. O(log n)."""
        value = task.priority if priority is None else priority
        if value != value:
            raise ValueError("a priority must be a number")
        self._number += 1
        heappush(self._heap, (-value, self._number, task))

    def dequeue(self) -> Task | None:
        """Take the most important task; None where there is none. Tasks are never compared. O(log n)."""
        return heappop(self._heap)[2] if self._heap else None

    def __len__(self) -> int:
        return len(self._heap)

    def __bool__(self) -> bool:
        return True
