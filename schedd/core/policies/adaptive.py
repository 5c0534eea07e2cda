"""adaptive: learn how long each kind takes on each worker and how often it succeeds, and place by expected finish."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Annotated

from msgspec import Meta, Struct

from schedd.core.model import Instant, Task, WorkerId, WorkerInfo
from schedd.core.policies.base import Outcome, TaskScheduler
from schedd.core.stats import Learned, PerformanceStats, newest

#: (kind, worker) pairs remembered; the least recently seen beyond this are forgotten.
PAIRS_MAX = 200_000
#: A worker that fails everything is still tried now and then: its success counts as at least this.
SUCCESS_MIN = 0.02


class AdaptiveParams(Struct, frozen=True, forbid_unknown_fields=True):
    """Table [policy.adaptive].

    learning_rate: weight of the newest observation. statistics_interval_s: seconds between two updates of the beliefs
    that placement uses.
    """

    learning_rate: Annotated[float, Meta(gt=0, le=1)] = 0.2
    statistics_interval_s: Annotated[float, Meta(gt=0, le=86400)] = 1.0


class AdaptiveScheduler(TaskScheduler):
    """Score = expected seconds until a success: runtime of the kind there * (1 + queue per slot) / success rate.

    A pair (kind, worker) that has not been seen is believed to be as good as the best pair of its kind, so that each
    worker is tried once: optimism in the face of uncertainty (Lai and Robbins, 1985).
    """

    name = "adaptive"
    Params = AdaptiveParams
    summary = "learns speed and success of each kind on each worker; lowest expected time to success"
    by_kind = True

    def __init__(self, learning_rate: float = 0.2, statistics_interval_s: float = 1.0) -> None:
        self.learning_rate = learning_rate
        self.refresh_interval_s = statistics_interval_s
        self._pairs: OrderedDict[tuple[str, WorkerId], PerformanceStats] = OrderedDict()
        #: Seconds to a success by pair and the best of each kind, as of the last refresh.
        self._expected: dict[tuple[str, WorkerId], float] = {}
        self._best: dict[str, float] = {}
        self._dirty: set[tuple[str, WorkerId]] = set()

    def score(self, task: Task, worker: WorkerInfo) -> float:
        expected = self._expected.get((task.kind, worker.worker_id))
        if expected is None:
            expected = self._best.get(task.kind, 0.0)
        waiting = (len(worker.task_queue) - worker.outgoing + worker.incoming) / worker.slots
        return expected * (1.0 + waiting)

    def expected_s(self, task: Task, worker: WorkerInfo) -> float | None:
        return self.score(task, worker) if (task.kind, worker.worker_id) in self._expected else None

    def stats(self, kind: str, worker_id: WorkerId) -> PerformanceStats | None:
        """What was seen of a kind on a worker."""
        return self._pairs.get((kind, worker_id))

    def record_completion(self, worker_id: WorkerId, task: Task, duration: float, success: bool) -> None:
        """Learn from one attempt of `duration` seconds. Raises ValueError for a negative or NaN duration."""
        pair = (task.kind, worker_id)
        stats = self._pairs.get(pair)
        if stats is None:
            stats = self._pairs[pair] = PerformanceStats(self.learning_rate)
            if len(self._pairs) > PAIRS_MAX:
                self._forget(self._pairs.popitem(last=False)[0])
        else:
            self._pairs.move_to_end(pair)
        stats.update(duration, success)
        self._dirty.add(pair)
        if pair not in self._expected:
            # A first impression is used at once: the worker has changed anyway, so only its own entry is computed anew.
            self._expected[pair] = value = _expected(stats)
            self._best[task.kind] = min(value, self._best.get(task.kind, value))

    def observe(self, outcome: Outcome, now: Instant) -> None:
        self.record_completion(outcome.worker.worker_id, outcome.task, outcome.runtime_s, outcome.success)

    def learned(self) -> list[Learned]:
        return newest(self._pairs)

    def recall(self, learned: Iterable[Learned]) -> None:
        for one in learned:
            pair = (one.kind, WorkerId(one.worker))
            stats = self._pairs[pair] = PerformanceStats(self.learning_rate)
            stats.recall(one)
            self._expected[pair] = value = _expected(stats)
            self._best[one.kind] = min(value, self._best.get(one.kind, value))

    def refresh(self, now: Instant) -> list[WorkerId]:
        workers: dict[WorkerId, None] = {}
        for pair in sorted(self._dirty):
            stats = self._pairs.get(pair)
            if stats is not None:
                self._expected[pair] = _expected(stats)
                workers[pair[1]] = None
        self._dirty.clear()
        best: dict[str, float] = {}
        for (kind, _), value in self._expected.items():
            if value < best.get(kind, float("inf")):
                best[kind] = value
        self._best = best
        return list(workers)

    def _forget(self, pair: tuple[str, WorkerId]) -> None:
        self._expected.pop(pair, None)
        self._dirty.discard(pair)


def _expected(stats: PerformanceStats) -> float:
    """Seconds until a success, where each failure costs a whole attempt."""
    return stats.avg_completion_time / max(stats.success_rate, SUCCESS_MIN)
