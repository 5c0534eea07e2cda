"""adaptive: learn what each kind takes on each device model, and let each worker do what it is comparatively good at.

With a backlog every worker gets work anyway; what matters is which work goes where. So a freed worker takes the kind in
which its group has the greatest advantage over the others, at the prices that the linear program of the whole backlog
gives to a second of each group (`prices`). The beliefs behind it (`beliefs`) are drawn anew at each refresh, in
proportion to how unsure they are, so that what is not known is tried while it may still pay (Thompson, 1933).

Towards the end, or where little waits, a slow worker does not take what a faster one that is busy would finish sooner.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from random import Random
from statistics import median
from typing import Annotated

from msgspec import Meta, Struct

from schedd.core.model import SECOND, Belief, Instant, Running, Task, WorkerId, WorkerInfo, WorkerStatus
from schedd.core.policies.arrivals import Arrivals
from schedd.core.policies.base import Draft, Outcome, SurveyView, TaskScheduler, WaitingClass
from schedd.core.policies.beliefs import Beliefs
from schedd.core.policies.experience import Experience
from schedd.core.policies.groups import Groups
from schedd.core.policies.market import END_SHARE, Market
from schedd.core.stats import Learned, PerformanceStats

INF = math.inf
#: Waiting classes and running attempts that a refresh looks at.
CLASSES_MAX = 500
RUNNING_MAX = 4000
#: With long tasks, beliefs need not be refreshed more often than in a tenth of their length.
REFRESH_SHARE = 0.1
#: What has come lately is expected to go on: beside what waits counts what would come in so many usual runtimes. How
#: much comes is a mean over as many, and one more.
AHEAD_RUNTIMES = 4.0
#: How far above its mean a runtime is feared to be when it may be the last to end, in standard deviations.
FEARED_DEVIATIONS = 1.0
#: A class goes before the one that is first in the queue where it costs clearly less: this times as much, or less.
CLEARLY = 0.98


class AdaptiveParams(Struct, frozen=True, forbid_unknown_fields=True):
    """Table [policy.adaptive].

    learning_rate: weight of the newest observation in what is shown of a kind on a worker. statistics_interval_s:
    seconds between two updates of the beliefs that placement uses, at the least. exploration: how much of the doubt
    about a kind on a model is acted on; 0: none. spare_slow: whether a slow worker may wait for other work where a
    faster one will be free in time.
    """

    learning_rate: Annotated[float, Meta(gt=0, le=1)] = 0.2
    statistics_interval_s: Annotated[float, Meta(gt=0, le=86400)] = 1.0
    exploration: Annotated[float, Meta(ge=0, le=10)] = 0.5
    spare_slow: bool = True


class AdaptiveScheduler(TaskScheduler):
    """Score = expected seconds until a success, at the price of a second there, times 1 + backlog per slot.

    To choose when device models or workers differ, most of all when kinds differ in how they do so. What was learned
    is kept over a restart.
    """

    name = "adaptive"
    Params = AdaptiveParams
    summary = "learns speed and success of each kind on each model; each worker does what it is comparatively good at"
    by_kind = True

    def __init__(
        self,
        learning_rate: float = 0.2,
        statistics_interval_s: float = 1.0,
        exploration: float = 0.5,
        spare_slow: bool = True,
    ) -> None:
        self.learning_rate = learning_rate
        self.statistics_interval_s = self.refresh_interval_s = statistics_interval_s
        self.exploration = exploration
        self.spare_slow = spare_slow
        self.beliefs = Beliefs()
        self.use_experience(Experience(self.beliefs, learning_rate))
        self._arrivals = Arrivals()
        #: Kinds that were seen since the last refresh.
        self._news: set[str] = set()
        # What the last survey found.
        self._groups = Groups()
        self._waiting: list[WaitingClass] = []
        self._running: list[tuple[str, str, float, float | None]] = []
        self._idle: list[WorkerId] = []
        #: When the last refresh was; seconds until what ran then is over, in the mean of the workers.
        self.refreshed_ns: Instant = 0
        self._left_s = 0.0
        #: How much waited then, and how much of it was not placed since.
        self._waited = self._left = 1

    def use_experience(self, experience: Experience) -> None:
        """Go by this; before the first placement."""
        dice = Random(1)
        self.experience = experience
        self.market = Market(self.beliefs, experience, lambda: dice.gauss(0.0, 1.0))

    # ------------------------------------------------------------------------------------------------------- learning

    def expected_s(self, task: Task, worker: WorkerInfo) -> float:
        """Seconds that are expected until the task has succeeded there, failed attempts before it included."""
        return self.experience.expected_s(task, worker.worker_id, self._groups.place(worker)[0])

    def record_completion(self, worker_id: WorkerId, task: Task, duration: float, success: bool) -> None:
        """Learn from one attempt of `duration` seconds. Raises ValueError for a negative or NaN duration."""
        self._learn(worker_id, self._groups.model_of(worker_id), task, duration, success)

    def observe(self, outcome: Outcome, now: Instant) -> None:
        model = self._groups.place(outcome.worker)[0]
        self._learn(outcome.worker.worker_id, model, outcome.task, outcome.runtime_s, outcome.success)

    def _learn(self, worker_id: WorkerId, model: str, task: Task, seconds: float, success: bool) -> None:
        self.experience.learn(worker_id, model, task, seconds, success)
        self._news.add(task.kind)

    def stats(self, kind: str, worker_id: WorkerId) -> PerformanceStats | None:
        """What was seen of a kind on a worker."""
        return self.experience.stats(kind, worker_id)

    def believed(self) -> list[Belief]:
        return self.experience.believed()

    def learned(self) -> list[Learned]:
        return self.experience.learned()

    def recall(self, learned: Iterable[Learned]) -> None:
        self.experience.recall(learned)

    # ------------------------------------------------------------------------------------------------------ placement

    def score(self, task: Task, worker: WorkerInfo) -> float:
        waiting = (len(worker.task_queue) - worker.outgoing + worker.incoming) / worker.slots
        factor = self.market.factor(self._groups.place(worker)[1])
        # Of two that seem alike, the one that was seen less is tried.
        factor *= math.exp(-self.exploration * self.experience.doubt(worker.worker_id))
        return self.expected_s(task, worker) * factor * (1.0 + waiting)

    def plan(self, draft: Draft, now: Instant) -> None:
        """Give each candidate of the task that is first the class of equal importance that it is best at."""
        while (task := draft.head()) is not None:
            worker = draft.candidate(task)
            if worker is None:
                draft.block(task)
            elif (placed := self._place_best(draft, task, worker, now)) is not None:
                self._left -= 1
                self._arrivals.note_placed(placed.kind)
            else:
                draft.decline(task)

    def _place_best(self, draft: Draft, task: Task, worker: WorkerInfo, now: Instant) -> Task | None:
        """Place the task, or one that the worker is better at; None: it should rather wait."""
        mine = task.request
        order = self.market.order(self._groups.place(worker)[1]) if not worker.task_queue else {}
        least = order[mine] * CLEARLY if mine is not None and mine in order else 0.0
        for request, cost in order.items():
            if cost >= least:
                break
            other = draft.head_of(request)
            if other is None or other.priority != task.priority or not self._accepts(other, worker, now):
                continue
            if draft.offer(other, worker, 0):
                return other
        if not self._accepts(task, worker, now):
            return None
        if mine is not None:
            draft.head_of(mine)  # what the draft places next
        draft.assign(task, worker)
        return task

    # ------------------------------------------------------------------------------------------------ to take or leave

    def _accepts(self, task: Task, worker: WorkerInfo, now: Instant) -> bool:
        """Whether the worker should take a task that it could start, rather than leave it for a faster one."""
        return self._left_for(task, worker, now) is None

    def left_for(self, task: Task, worker: WorkerInfo, now: Instant) -> str:
        found = self._left_for(task, worker, now)
        if found is None:
            return ""
        here_s = self.expected_s(task, worker) * self._fear(task)
        return f"{found[0]}, where it is expected to end sooner ({found[1]:.1f} s from now, here {here_s:.1f} s)"

    def _left_for(self, task: Task, worker: WorkerInfo, now: Instant) -> tuple[str, float] | None:
        if not self.spare_slow or not 0 <= self._groups.place(worker)[1] < len(self._groups):
            return None
        return self.sooner_elsewhere(task, worker, now)

    def sooner_elsewhere(self, task: Task, worker: WorkerInfo, now: Instant) -> tuple[str, float] | None:
        """The model on which the task is expected to end sooner, though busy now, and in how many seconds; or None.

        It may be the worker's own model, where others are faster than it, or fail less.
        """
        here_s = self.expected_s(task, worker)
        fear = self._fear(task)
        end_s = (self.market.horizon_s * max(0, self._left) / self._waited + self._left_s) * END_SHARE
        if here_s * fear <= end_s:
            return None
        gone_s = (now - self.refreshed_ns) / SECOND
        best: tuple[str, float] | None = None
        for other in self._groups:
            if not other.soonest or not other.can_run(task):
                continue
            guess = self.beliefs.guess(task.kind, other.model, task.requirements.estimated_time)
            usual_s = guess.mean_s * (1.0 + self.experience.burden(task.kind, other.model, None))
            for free_in_s, effort in other.soonest:
                there_s = usual_s * effort
                in_s = max(free_in_s - gone_s, 0.01 * there_s) + there_s * fear
                if in_s < end_s:
                    return (other.model, in_s)
                if in_s < here_s * fear and (best is None or in_s < best[1]):
                    best = (other.model, in_s)
        return best

    def _fear(self, task: Task) -> float:
        """How many times its mean a runtime may well be."""
        ratios, plain = self.beliefs.ratios, self.beliefs.plain
        noise = min(ratios.noise, plain.noise) if task.requirements.estimated_time else plain.noise
        return math.exp(FEARED_DEVIATIONS * math.sqrt(noise) - min(noise, 2.0) / 2)

    # -------------------------------------------------------------------------------------------------------- refresh

    def is_stale(self, now: Instant) -> bool:
        return bool(self.beliefs.plain.cells) and now - self.refreshed_ns >= self.refresh_interval_s * SECOND

    def survey(self, view: SurveyView, now: Instant) -> None:
        """Look at what waits and what runs."""
        self._look_at_workers(view.workers(), now)
        waiting = sorted(view.waiting(), key=lambda w: -w.size)
        self._waiting = waiting[:CLASSES_MAX]
        self._waited = self._left = max(1, sum(w.size for w in waiting))
        sizes: dict[str, int] = {}
        for one in waiting:
            sizes[one.request.kind] = sizes.get(one.request.kind, 0) + one.size
        if self.refreshed_ns:
            gone_s = (now - self.refreshed_ns) / SECOND
            self._arrivals.look(sizes, gone_s, (AHEAD_RUNTIMES + 1) * self._usual_runtime_s())
        else:
            self._arrivals.begin(sizes)

    def _look_at_workers(self, workers: Iterable[WorkerInfo], now: Instant) -> None:
        self._groups.clear()
        self._idle, self._running = [], []
        left_s, count = 0.0, 0
        for worker in workers:
            ledger = worker.ledger
            if ledger is None or not worker.accepts_work:
                continue
            count += 1
            group = self._groups.enter(worker, ledger)
            group.capacity += self.experience.capacity(worker.worker_id)
            if worker.status is WorkerStatus.IDLE:
                self._idle.append(worker.worker_id)
            slowness = self.experience.slowness(worker.worker_id)
            first_s = INF
            for task in worker.running.values():
                if isinstance(task.state, Running):
                    so_far_s = max(0.0, (now - task.state.started_at_ns) / SECOND) / slowness
                    hint_s = task.requirements.estimated_time
                    in_s = self.beliefs.guess(task.kind, group.model, hint_s).left_s(so_far_s) * slowness
                    first_s = min(first_s, in_s)
                    left_s += in_s / max(1, len(worker.running))
                    if len(self._running) < RUNNING_MAX:
                        self._running.append((task.kind, group.model, so_far_s, hint_s))
            if first_s < INF:
                group.note_busy(first_s, self.experience.effort(worker.worker_id))
        self._left_s = left_s / max(1, count)

    def _usual_runtime_s(self) -> float:
        """Seconds that tasks take that wait now, or came lately, on the first group; the median, and one at least."""
        kinds = [*(w.request.kind for w in self._waiting[:20]), *self._arrivals.kinds[:20]]
        if not self._groups or not kinds:
            return 1.0
        model = self._groups[0].model
        hints = {w.request.kind: w.head.requirements.estimated_time for w in self._waiting[:20]}
        beliefs = self.beliefs
        times = [beliefs.guess(k, model, beliefs.usual_hint_s(k, hints.get(k))).mean_s for k in kinds]
        return max(1.0, median(times))

    def refresh(self, now: Instant) -> list[WorkerId]:
        """Bring beliefs, prices and orders up to date; O(classes * groups * steps), some milliseconds."""
        kinds = dict.fromkeys(w.request.kind for w in self._waiting)
        kinds.update(dict.fromkeys(sorted(self._news)[:CLASSES_MAX]))
        self.beliefs.fit(list(kinds), self._running)
        self._news.clear()
        self.refreshed_ns = now
        self.market.settle(self._groups, self._waiting, self._demand(), self.exploration)
        share_s = REFRESH_SHARE * self._usual_runtime_s()
        self.refresh_interval_s = max(self.statistics_interval_s, min(share_s, 60 * self.statistics_interval_s))
        return self._idle

    def _demand(self) -> list[float]:
        """Tasks of each class: what waits, and what will have come before long."""
        ahead_s = AHEAD_RUNTIMES * self._usual_runtime_s()
        first: set[str] = set()
        demand = []
        for one in self._waiting:
            kind = one.request.kind
            more = 0.0 if kind in first else ahead_s * self._arrivals.rate(kind)
            first.add(kind)
            demand.append(one.size + more)
        return demand
