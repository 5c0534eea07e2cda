"""A second policy beside the one that decides: it sees what that one sees, and says what it would have done.

Of each placement it is asked which of the workers that were possible then it would have taken, and how long it believes
the task to take there and where it really went. Who chooses by what it believes to be least believes too well of its
choice, so both are also valued by the mean runtime of the kind on the device model, which stands in for the beliefs of
a policy that has none. It has no part in anything else: it takes no timer and no dice of the engine, and what it reads
leaves no trace.

It looks at a bounded number of workers for a decision (some 80 us where there are as many), and at a bounded number of
decisions a second: on the whole 2 % of the time of the daemon at most.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable

from msgspec import Struct

from schedd.core.model import SECOND, Instant, Task, WorkerInfo
from schedd.core.placement import Placer
from schedd.core.policies.base import Outcome, SurveyView, TaskScheduler
from schedd.core.resources import ResourceManager
from schedd.core.stats import Learned, PerformanceStats

#: Workers that are looked at for one decision; with more of them, others each time.
WORKERS_LOOKED_AT_MAX = 64
#: Decisions that are judged in one second; those beyond are counted as passed over.
DECISIONS_PER_SECOND_MAX = 200
#: Pairs of a kind and a device model whose runtimes are remembered, the last seen.
PAIRS_MAX = 10_000

#: The backlog that was chosen may be as long as it is.
DEPTH_ANY = 1 << 30


class Comparison(Struct):
    """What came of it so far.

    decisions: those that were judged. agreed: it would have taken the same worker. valued: both choices had a time that
    was to be expected. gain_s: by how much less its own would have taken, of these, as it believes; gain_observed_s: as
    the kind has taken on these device models. passed_over: not judged.
    """

    policy: str
    decisions: int = 0
    agreed: int = 0
    valued: int = 0
    gain_s: float = 0.0
    gain_observed_s: float = 0.0
    passed_over: int = 0


class Shadow:
    """Asks one policy about the decisions of another."""

    def __init__(self, policy: TaskScheduler, view: Callable[[], SurveyView]) -> None:
        self.policy = policy
        self._view = view
        self.comparison = Comparison(policy.name)
        self._believes = type(policy).expected_s is not TaskScheduler.expected_s
        self._pairs: OrderedDict[tuple[str, str], PerformanceStats] = OrderedDict()
        self._refresh_ns = int(policy.refresh_interval_s * SECOND)
        self._refresh_at_ns: Instant = 0
        #: The second that is running, and how many decisions it may still have.
        self._second = 0
        self._left = 0
        #: Where the next look at a part of the workers begins.
        self._cursor = 0

    def judge(self, task: Task, worker: WorkerInfo, placer: Placer, resources: ResourceManager, now: Instant) -> None:
        """Compare a decision that is about to be carried out with its own. O(workers looked at)."""
        if now // SECOND != self._second:
            self._second, self._left = now // SECOND, DECISIONS_PER_SECOND_MAX
        if not self._left:
            self.comparison.passed_over += 1
            return
        self._left -= 1
        self._refresh(now)
        own = min(self._rated(task, worker, placer, resources))
        chosen = resources.by_seq[own[3]]
        told = self.comparison
        told.decisions += 1
        told.agreed += chosen is worker
        real, other = self._observed_s(task, worker), self._observed_s(task, chosen)
        if real is None or other is None:
            return
        believed, other_believed = real, other
        if self._believes:
            of_real, of_other = self.policy.expected_s(task, worker), self.policy.expected_s(task, chosen)
            if of_real is None or of_other is None:
                return
            believed, other_believed = of_real, of_other
        told.valued += 1
        told.gain_s += believed - other_believed
        told.gain_observed_s += real - other

    def learn(self, outcome: Outcome, now: Instant) -> None:
        """Learn from an attempt, as the policy that decides does."""
        self.policy.observe(outcome, now)
        self._refresh(now)
        pair = (outcome.task.kind, _model_of(outcome.worker))
        stats = self._pairs.get(pair)
        if stats is None:
            stats = self._pairs[pair] = PerformanceStats()
            if len(self._pairs) > PAIRS_MAX:
                self._pairs.popitem(last=False)
        else:
            self._pairs.move_to_end(pair)
        stats.update(outcome.runtime_s, outcome.success)

    def learned(self) -> list[Learned]:
        """What the policy has learned: it may be the one that decides after the next start."""
        return self.policy.learned()

    def recall(self, learned: Iterable[Learned]) -> None:
        """Let the policy go on from what was learned before a restart."""
        self.policy.recall(learned)

    def _refresh(self, now: Instant) -> None:
        if self._refresh_ns and now >= self._refresh_at_ns:
            self.policy.survey(self._view(), now)
            self.policy.refresh(now)
            self._refresh_at_ns = now + self._refresh_ns

    def _rated(
        self, task: Task, worker: WorkerInfo, placer: Placer, resources: ResourceManager
    ) -> Iterable[tuple[float, int, float, int]]:
        """As an index of the placement would have them: (starts later, variant, score, order of joining).

        What is claimed, or would only join a backlog that may not grow, is none but for the one that was chosen.
        """
        evenly, score = self.policy.fills_evenly, self.policy.score
        for other in self._some(worker, resources):
            found = placer.fit(task, other, DEPTH_ANY) if other is worker else placer.fit_unclaimed(task, other)
            if found is not None:
                queued = len(other.task_queue) - other.outgoing + other.incoming
                later = 1.0 + evenly * queued / other.slots if found[0] else 0.0
                yield later, found[1], score(task, other), other.seq

    def _some(self, worker: WorkerInfo, resources: ResourceManager) -> Iterable[WorkerInfo]:
        """All workers, or the one that was chosen and some others."""
        order = resources.order
        if len(order) <= WORKERS_LOOKED_AT_MAX:
            yield from resources
            return
        yield worker
        self._cursor += WORKERS_LOOKED_AT_MAX - 1
        for step in range(WORKERS_LOOKED_AT_MAX - 1):
            other = resources.by_seq.get(order[(self._cursor + step) % len(order)])
            if other is not None and other is not worker:
                yield other

    def _observed_s(self, task: Task, worker: WorkerInfo) -> float | None:
        """Seconds until the task would have ended there, as its kind has run on such devices; None: it has not."""
        stats = self._pairs.get((task.kind, _model_of(worker)))
        if stats is None:
            return None
        queued = len(worker.task_queue) - worker.outgoing + worker.incoming
        return stats.avg_completion_time * (1.0 + queued / worker.slots)


def _model_of(worker: WorkerInfo) -> str:
    resources = worker.resources
    if resources is None:
        return ""
    return resources.gpus[0].model if resources.gpus else resources.gpu_model
