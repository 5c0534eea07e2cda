"""`informed`: the daemon's `adaptive`, told the truth instead of learning it: what not knowing costs.

It is told how long each kind takes on each device model, in the mean and by how much that varies, over all tasks of the
trace; how fast each worker is, and which share of the attempts fails there; and at the instant when one slows down,
recovers or comes, that. It is not told how long a single task takes, which attempt fails, nor what comes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from msgspec import structs

from schedd.core.model import SECOND, Instant, Task, WorkerId
from schedd.core.policies.adaptive import AdaptiveParams, AdaptiveScheduler
from schedd.core.policies.base import Draft, SurveyView
from schedd.core.policies.beliefs import Beliefs, Cell
from schedd.core.policies.experience import SUCCESS_MIN, Experience
from schedd.simulate.cluster import ClusterRow, named
from schedd.simulate.trace import Trace

#: A mean over so many samples is believed.
SAMPLES = 1e6


class Truth(Experience):
    """In place of what attempts have shown: what is so."""

    def __init__(self, beliefs: Beliefs) -> None:
        super().__init__(beliefs, 1.0)
        #: Of each worker: the logarithm of how slow it is, failed attempts for each success, and their runtimes.
        self._slowness: dict[WorkerId, float] = {}
        self._risks: dict[WorkerId, float] = {}
        self._burdens: dict[WorkerId, float] = {}

    def tell(self, worker_id: WorkerId, row: ClusterRow, now_s: float) -> None:
        """Say what a worker is like from now on."""
        ends_s = math.inf if row.slow_until_s is None else row.slow_until_s
        is_slow = row.slow_from_s <= now_s < ends_s
        self._slowness[worker_id] = -math.log(row.slow_factor) if is_slow else 0.0
        self._risks[worker_id] = row.fail_share / max(SUCCESS_MIN, 1.0 - row.fail_share)
        self._burdens[worker_id] = row.fail_after * self._risks[worker_id]

    def shift(self, kind: str, worker_id: WorkerId) -> float:
        return self._slowness[worker_id]

    def burden(self, kind: str | None, model: str, worker_id: WorkerId | None) -> float:
        return 0.0 if worker_id is None else self._burdens[worker_id]

    def risk(self, kind: str, model: str, worker_id: WorkerId) -> float:
        return self._risks[worker_id]

    def effort(self, worker_id: WorkerId) -> float:
        return self.slowness(worker_id) * (1.0 + self._burdens[worker_id])

    def slowness(self, worker_id: WorkerId) -> float:
        return math.exp(self._slowness[worker_id])

    def doubt(self, worker_id: WorkerId) -> float:
        return 0.0

    def learn(self, worker_id: WorkerId, model: str, task: Task, seconds: float, success: bool) -> None:
        pass


class InformedScheduler(AdaptiveScheduler):
    """Needs a trace whose tasks are all known, and the cluster; `beginning_ns`: the first submit."""

    name = "informed"
    summary = "adaptive that is told the truth"

    def __init__(
        self, trace: Trace, cluster: Sequence[ClusterRow], params: AdaptiveParams, beginning_ns: Instant
    ) -> None:
        super().__init__(**structs.asdict(params))
        _fill(self.beliefs, trace, {row.gpu_model for row in cluster})
        self._truth = Truth(self.beliefs)
        self.use_experience(self._truth)
        #: What is to be told, and when, the last first.
        self._news_at: list[tuple[Instant, WorkerId, ClusterRow, float]] = sorted(
            (
                (beginning_ns + int(at_s * SECOND), worker_id, row, at_s)
                for worker_id, row in named(cluster)
                for at_s in _changes(row)
            ),
            key=lambda entry: -entry[0],
        )

    def plan(self, draft: Draft, now: Instant) -> None:
        if self._hear(now):
            draft.rescore()
        super().plan(draft, now)

    def survey(self, view: SurveyView, now: Instant) -> None:
        self._hear(now)
        super().survey(view, now)

    def _hear(self, now: Instant) -> bool:
        """Take in what has changed by now; True where anything has."""
        is_news = False
        while self._news_at and self._news_at[-1][0] <= now:
            _, worker_id, row, at_s = self._news_at.pop()
            self._truth.tell(worker_id, row, at_s)
            is_news = True
        return is_news


def _changes(row: ClusterRow) -> Iterable[float]:
    """When a worker comes, and becomes another while it is there."""
    yield row.joins_s
    leaves_s = math.inf if row.leaves_s is None else row.leaves_s
    for at_s in (row.slow_from_s, row.slow_until_s):
        if at_s is not None and row.joins_s < at_s < leaves_s:
            yield at_s


def _fill(beliefs: Beliefs, trace: Trace, models: Iterable[str]) -> None:
    """Let it be believed what is so of each kind on each model, of runtimes and of their ratios to estimates."""
    plain: dict[tuple[str, str], list[float]] = {}
    ratios: dict[tuple[str, str], list[float]] = {}
    runs = [(task, m) for task in trace.tasks for m in sorted(models) if not task.runtimes or m in task.runtimes]
    for task, model in runs:
        value, hint_s = math.log(max(task.runtime_on(model), 1e-6)), task.requirements.estimated_time
        plain.setdefault((task.kind, model), []).append(value)
        if hint_s:
            ratios.setdefault((task.kind, model), []).append(value - math.log(hint_s))
    _sure(beliefs, plain, ratios)
    for task, model in runs:  # which keeps usual estimates, and how far runtimes are from their mean
        beliefs.add(task.kind, model, task.runtime_on(model), task.requirements.estimated_time)
    _sure(beliefs, plain, ratios)


def _sure(
    beliefs: Beliefs, plain: dict[tuple[str, str], list[float]], ratios: dict[tuple[str, str], list[float]]
) -> None:
    for logs, values in ((beliefs.plain, plain), (beliefs.ratios, ratios)):
        for (kind, model), samples in values.items():
            scale = SAMPLES / len(samples)
            total, square = math.fsum(samples), math.fsum(x * x for x in samples)
            logs.recall(kind, model, Cell(SAMPLES, total * scale, square * scale))
        logs.fit(list(logs.cells))
