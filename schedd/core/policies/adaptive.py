"""adaptive: learn what each kind takes on each device model, and let each worker do what it is comparatively good at.

With a backlog every worker gets work anyway; what matters is which work goes where. So a freed worker takes the kind in
which its group has the greatest advantage over the others (`market`), at the prices that the linear program of the
whole backlog gives to a second of each group (`prices`), by what attempts have shown (`experience`, `beliefs`).

Towards the end, or where little waits, a task is left for a faster worker that is busy, where it might outlast all
else on a slow one.

That is for an early end of the whole. With `objective = "mean_jct"` a plan for the mean of all completion times takes
the place of the prices (`flow`): which class goes to which group, the short ones first.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from random import Random
from statistics import median
from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta, Struct

from schedd.core.model import SECOND, Belief, Instant, Running, Task, WorkerId, WorkerInfo, WorkerStatus
from schedd.core.policies.arrivals import Arrivals
from schedd.core.policies.base import Draft, Outcome, SurveyView, TaskScheduler, WaitingClass
from schedd.core.policies.beliefs import Beliefs, Guess
from schedd.core.policies.experience import Experience
from schedd.core.policies.flow import Flow, runtimes_of
from schedd.core.policies.groups import INF, Busy, Groups
from schedd.core.policies.market import Market
from schedd.core.stats import Learned, PerformanceStats

if TYPE_CHECKING:
    from schedd.core.classes import RequestClass

#: Waiting classes and running attempts that a refresh looks at.
CLASSES_MAX = 500
RUNNING_MAX = 4000
#: Of a plan, which has no steps: 40 ms on few models, 100 ms on four, more on more.
PLANNED_MAX = 1500
#: With long tasks, beliefs need not be refreshed more often than in a tenth of their length.
REFRESH_SHARE = 0.1
#: What has come lately is expected to go on: beside what waits counts what would come in so many usual runtimes. How
#: much comes is a mean over as many, and one more.
AHEAD_RUNTIMES = 4.0
#: Kinds whose usual estimate is kept until the next refresh.
HINTS_MAX = 10_000
#: Classes that may be left waiting in one pass by a plan; what else waits is not asked for each.
REFUSED_MAX = 16
#: What runs for longer than it was believed to is expected to go on for this part of it, at the least.
LATE_SHARE = 0.01
#: A class goes before the one that is first in the queue where it costs clearly less: this times as much, or less.
CLEARLY = 0.98
#: What was expected to be free by now takes so much of the runtime of the task yet.
SOONEST_SHARE = 0.01


class AdaptiveParams(Struct, frozen=True, forbid_unknown_fields=True):
    """Table [policy.adaptive].

    learning_rate: weight of the newest observation in what is shown of a kind on a worker. statistics_interval_s:
    seconds between two updates of the beliefs that placement uses, at the least. exploration: how much of the doubt
    about a kind on a model is acted on; 0: none. spare_slow: whether a slow worker may wait for other work where a
    faster one will be free in time. objective: what is to be low, the end of the whole or the mean of all completion
    times. patience: a task is not overtaken by one of its priority that comes later than after so many times its own
    runtime.
    """

    learning_rate: Annotated[float, Meta(gt=0, le=1)] = 0.2
    statistics_interval_s: Annotated[float, Meta(ge=0.001, le=86400)] = 1.0
    exploration: Annotated[float, Meta(ge=0, le=10)] = 0.5
    spare_slow: bool = True
    objective: Literal["makespan", "mean_jct"] = "makespan"
    patience: Annotated[float, Meta(gt=0, le=1e6)] = 20.0


class Elsewhere(Struct, frozen=True):
    """A model for which a task is left: seconds that it takes there, and until the worker that is meant is free.

    By a plan the latter are the seconds by which it delays all that wait, itself included.
    """

    model: str
    runtime_s: float
    free_s: float


class AdaptiveScheduler(TaskScheduler):
    """Score = what a task costs: expected seconds until a success, and a runtime more for each failure before it, at
    the price of a second there; and the seconds by which it may outlast all else; times 1 + backlog per slot.

    To choose when device models or workers differ, most of all when kinds differ in how they do so. What was learned
    is kept over a restart.
    """

    name = "adaptive"
    Params = AdaptiveParams
    summary = "learns speed and success of each kind on each model; each worker does what it is comparatively good at"
    by_kind = True
    prefers_in_order = False

    def __init__(
        self,
        learning_rate: float = 0.2,
        statistics_interval_s: float = 1.0,
        exploration: float = 0.5,
        spare_slow: bool = True,
        objective: Literal["makespan", "mean_jct"] = "makespan",
        patience: float = 20.0,
    ) -> None:
        self.learning_rate = learning_rate
        self.statistics_interval_s = self.refresh_interval_s = statistics_interval_s
        self.exploration = exploration
        self.spare_slow = spare_slow
        self.patience = patience
        #: The plan, where that is the objective.
        self.flow = Flow(patience) if objective == "mean_jct" else None
        self.by_size = self.flow is not None
        self.beliefs = Beliefs()
        self.use_experience(Experience(self.beliefs, learning_rate))
        self._arrivals = Arrivals()
        #: Kinds that were seen since the last refresh.
        self._news: set[str] = set()
        #: By kind: the estimate that it is scored by until the next refresh, where its tasks have some.
        self._hints: dict[str, float] = {}
        # What the last survey found.
        self._groups = Groups()
        self._waiting: list[WaitingClass] = []
        self._running: list[tuple[str, str, float, float | None]] = []
        self._open: list[WorkerId] = []
        #: When the last refresh was; seconds until what ran then is over, in the mean of the workers.
        self.refreshed_ns: Instant = 0
        self._left_s = 0.0
        #: What was scored last in this pass, and what is believed of it: whether to take it is the next question.
        self._scored: tuple[Task, WorkerInfo, Guess, float, int] | None = None
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
        self.experience.learn(worker_id, self._groups.model_of(worker_id), task, duration, success)
        self._news.add(task.kind)

    def observe(self, outcome: Outcome, now: Instant) -> None:
        self._scored = None
        task, worker = outcome.task, outcome.worker
        model = self._groups.place(worker)[0]
        self.experience.learn(worker.worker_id, model, task, outcome.runtime_s, outcome.success)
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
        worker_id = worker.worker_id
        model, group = self._groups.place(worker)
        hint_s = task.requirements.estimated_time
        if hint_s is not None and not self.by_size:
            hint_s = self._usual_hint_s(task.kind, hint_s)
        guess, here_s = self.experience.guess(task, worker_id, model, hint_s)
        if hint_s == task.requirements.estimated_time:
            self._scored = (task, worker, guess, here_s, group)
        if self.experience.has_failures:
            # However quick a failure is: it has the task tried again elsewhere, or fails it for good.
            here_s += self.experience.risk(task.kind, model, worker_id) * guess.mean_s
        if self.flow is not None:
            cost_s = here_s * self.flow.factor(group)
        else:
            cost_s = here_s * self.market.price(group) + guess.beyond_s(self.market.end_s, here_s / guess.mean_s)
        # Of two that seem alike, the one that was seen less is tried.
        doubt = math.exp(-self.exploration * self.experience.doubt(worker_id))
        waiting = (len(worker.task_queue) - worker.outgoing + worker.incoming) / worker.slots
        return cost_s * doubt * (1.0 + waiting)

    def _usual_hint_s(self, kind: str, hint_s: float) -> float:
        """An estimate that is the same for all tasks of a kind until the next refresh, as scores of a class must be."""
        found = self._hints.get(kind)
        if found is None:
            if len(self._hints) >= HINTS_MAX:
                self._hints.clear()
            found = self._hints[kind] = self.beliefs.usual_hint_s(kind, hint_s) or hint_s
        return found

    def plan(self, draft: Draft, now: Instant) -> None:
        """Give each candidate of the task that is first the class of equal importance that it is best at."""
        self._scored = None
        if self.flow is not None:
            self._plan_flow(self.flow, draft, now)
            return
        while (task := draft.head()) is not None:
            worker = draft.candidate(task)
            if worker is None:
                draft.block(task)
            elif (placed := self._place_best(draft, task, worker, now)) is not None:
                self._note_placed(placed)
            else:
                draft.decline(task)

    def _note_placed(self, task: Task) -> None:
        self._left -= 1
        self._arrivals.note_placed(task.kind)

    def _place_best(self, draft: Draft, task: Task, worker: WorkerInfo, now: Instant) -> Task | None:
        """Place the task, or one that the worker is better at; None: it should rather wait."""
        mine = task.request
        is_free = len(self._groups) > 1 and not worker.task_queue
        order = self.market.order(self._groups.place(worker)[1]) if is_free else {}
        least = order[mine] * CLEARLY if mine is not None and mine in order else 0.0
        for request, cost in order.items():
            if cost >= least:
                break
            other = draft.head_of(request, aside=True)
            if other is None or other.priority != task.priority or not self._accepts(other, worker, now):
                continue
            if other.submitted_ns > task.submitted_ns and self._is_overdue(task, other, worker):
                break
            if draft.offer(other, worker, 0):
                return other
        if not self._accepts(task, worker, now):
            return None
        if mine is not None:
            draft.head_of(mine)  # what the draft places next
        draft.assign(task, worker)
        return task

    def _is_overdue(self, task: Task, other: Task, worker: WorkerInfo) -> bool:
        """Whether a task has waited for so long that one that came so much later does not go before it."""
        here_s = self.expected_s(task, worker)
        late_s = (other.submitted_ns - task.submitted_ns) / SECOND
        return here_s is not None and late_s > self.patience * here_s

    def _plan_flow(self, flow: Flow, draft: Draft, now: Instant) -> None:
        """The same by the plan; where many may not start yet, only what it has for each group is looked at."""
        refused = 0
        while (task := draft.head()) is not None:
            if refused == REFUSED_MAX:
                draft.decline(task)
            elif (worker := draft.candidate(task)) is None:
                draft.block(task)
            elif (placed := self._place_by_plan(flow, draft, task, worker, now)) is not None:
                self._note_placed(placed)
            else:
                draft.decline(task)
                refused += 1
                if refused == REFUSED_MAX:
                    self._place_first_of_groups(flow, draft)

    def _place_first_of_groups(self, flow: Flow, draft: Draft) -> None:
        for group in range(len(self._groups)):
            while (request := next(flow.wanted(group), None)) and (
                task := draft.head_of(request, aside=True, declined=True)
            ) is not None:
                worker = draft.candidate(task)
                if worker is None or self._groups.place(worker)[1] != group or not draft.offer(task, worker, 0):
                    break
                flow.note_placed(task, group, 0.0)
                self._note_placed(task)

    def _place_by_plan(self, flow: Flow, draft: Draft, task: Task, worker: WorkerInfo, now: Instant) -> Task | None:
        """Place what is planned for the worker, or the task, where that is not to go elsewhere; None: neither."""
        group, here_s = self._groups.place(worker)[1], self.expected_s(task, worker)
        is_poor = self._is_poor(worker, group)
        must = not draft.has_room(task, worker)  # it is sent ahead, to be next there
        for request in flow.wanted(group) if not must else ():
            other = draft.head_of(request, aside=True, declined=True)
            if other is None or other.priority != task.priority:
                continue
            if other is not task and flow.is_overdue(task, other, here_s):
                must = True
                break
            if is_poor and self.better_elsewhere(other, worker, now) is not None:
                continue
            if draft.offer(other, worker, 0):
                flow.note_placed(other, group, here_s)
                return other
        if not must and self.better_elsewhere(task, worker, now) is not None:
            return None
        if task.request is not None:
            draft.head_of(task.request)  # what the draft places next
        draft.assign(task, worker)
        flow.note_placed(task, group, here_s)
        return task

    # ------------------------------------------------------------------------------------------------ to take or leave

    def _accepts(self, task: Task, worker: WorkerInfo, now: Instant) -> bool:
        """Whether the worker should take a task that it could start, rather than leave it for a better one."""
        return self.better_elsewhere(task, worker, now) is None

    def left_for(self, task: Task, worker: WorkerInfo, now: Instant) -> str:
        found = self.better_elsewhere(task, worker, now)
        if found is None:
            return ""
        if self.flow is not None:
            return f"{found.model}, where it delays all that wait the least (by {found.free_s:.1f} s, itself included)"
        here_s = self.expected_s(task, worker)
        there = f"there {found.runtime_s:.1f} s, from {found.free_s:.1f} s from now on; here {here_s:.1f} s"
        return f"{found.model}, where it is less likely to outlast all else ({there})"

    def better_elsewhere(self, task: Task, worker: WorkerInfo, now: Instant) -> Elsewhere | None:
        """The model for which the task had better wait though its workers are busy now, None where it had not.

        It may be the worker's own model, where others are faster than it, or fail less.

        What it takes here is free: the worker has nothing better to do. But by what it may outlast all else here, the
        whole cluster would wait for it; elsewhere by less, but there it takes the place of others.
        """
        if not self.spare_slow:
            return None
        scored = self._scored
        if scored is not None and scored[0] is task and scored[1] is worker:
            _, _, guess, here_s, own = scored
        else:
            model, own = self._groups.place(worker)
            guess, here_s = self.experience.guess(task, worker.worker_id, model, task.requirements.estimated_time)
        if own < 0:
            return None
        if self.flow is not None:
            return self._better_by_plan(self.flow, task, worker, own, now)
        end_s = self.market.horizon_s * max(0, self._left) / self._waited + self._left_s
        least_s = guess.beyond_s(end_s, here_s / guess.mean_s)
        return self._cheaper(task, worker, end_s, least_s, now) if least_s else None

    def _cheaper(self, task: Task, worker: WorkerInfo, end_s: float, least_s: float, now: Instant) -> Elsewhere | None:
        """The model on which the task costs the least by what it may outlast all else, and less than this."""
        gone_s = (now - self.refreshed_ns) / SECOND
        best = None
        for number, other in enumerate(self._groups):
            if not least_s:
                break
            if not other.soonest or not other.can_run(task):
                continue
            guess = self.beliefs.guess(task.kind, other.model, task.requirements.estimated_time)
            usual_s = guess.mean_s * (1.0 + self.experience.burden(task.kind, other.model, None))
            for busy in other.soonest:
                there_s = usual_s * busy.effort
                free_s = max(busy.free_in_s - gone_s, SOONEST_SHARE * there_s)
                late_s = guess.beyond_s(end_s - free_s, there_s / guess.mean_s)
                cost_s = self.market.price(number) * there_s + late_s
                if cost_s < least_s and busy.worker_id != worker.worker_id and busy.can_run(task):
                    least_s, best = cost_s, Elsewhere(other.model, there_s, free_s)
        return best

    def _better_by_plan(self, flow: Flow, task: Task, worker: WorkerInfo, own: int, now: Instant) -> Elsewhere | None:
        request = task.request
        if request is None:
            return None
        works = self._works(request, task.requirements.estimated_time, 0.0)
        runtimes = runtimes_of(request, self._groups, works)
        poor_s = self.expected_s(task, worker) if self._is_poor(worker, own) else None
        found = flow.better_elsewhere(task, own, poor_s, works, runtimes, (now - self.refreshed_ns) / SECOND)
        if found is None:
            return None
        number, in_s = found
        return Elsewhere(self._groups[number].model, runtimes[number], in_s)

    def _is_poor(self, worker: WorkerInfo, group: int) -> bool:
        return group >= 0 and not self._groups[group].counts_on(self.experience.effort(worker.worker_id))

    def _works(self, request: RequestClass, hint_s: float | None, exploration: float) -> list[float]:
        """Seconds of a whole worker of each group that a task of the class takes; infinite where it does not fit."""
        stays = self.market.stays(request, hint_s, self._groups, exploration)
        return [stay.drawn_s if stay is not None else INF for stay in stays]

    # -------------------------------------------------------------------------------------------------------- refresh

    def is_stale(self, now: Instant) -> bool:
        if now - self.refreshed_ns < self.refresh_interval_s * SECOND:
            return False
        return self.flow is not None or bool(self.beliefs.plain.cells)

    def survey(self, view: SurveyView, now: Instant) -> None:
        """Look at what waits and what runs."""
        self._look_at_workers(view.workers(), now)
        waiting = sorted(view.waiting(), key=lambda w: -w.size)
        self._waiting = waiting[: CLASSES_MAX if self.flow is None else PLANNED_MAX]
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
        self._open, self._running = [], []
        left_s, count = 0.0, 0
        for worker in workers:
            ledger = worker.ledger
            if ledger is None or not worker.accepts_work:
                continue
            count += 1
            group = self._groups.enter(worker, ledger)
            group.capacity += self.experience.capacity(worker.worker_id)
            if worker.status is WorkerStatus.IDLE or ledger.free_cpus > 0:
                self._open.append(worker.worker_id)
            slowness = self.experience.slowness(worker.worker_id)
            first_s, busy_s = INF, 0.0
            for task in worker.running.values():
                if isinstance(task.state, Running):
                    so_far_s = max(0.0, (now - task.state.started_at_ns) / SECOND) / slowness
                    hint_s = task.requirements.estimated_time
                    in_s = self.beliefs.guess(task.kind, group.model, hint_s).left_s(so_far_s) * slowness
                    first_s = min(first_s, in_s)
                    busy_s += max(in_s, LATE_SHARE * slowness * so_far_s) / worker.slots
                    left_s += in_s / max(1, len(worker.running))
                    if len(self._running) < RUNNING_MAX:
                        self._running.append((task.kind, group.model, so_far_s, hint_s))
            effort = self.experience.effort(worker.worker_id)
            group.note_free(busy_s, effort)
            if first_s < INF:
                group.note_busy(Busy(worker.worker_id, first_s, effort, ledger))
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
        """Bring beliefs, prices and orders up to date; O(classes * groups * steps): 40 ms for 500 on four models."""
        kinds = dict.fromkeys(w.request.kind for w in self._waiting)
        kinds.update(dict.fromkeys(sorted(self._news)[:CLASSES_MAX]))
        self.beliefs.fit(list(kinds), self._running)
        self.experience.fit()
        self._news.clear()
        self._hints.clear()
        self.refreshed_ns = now
        if self.flow is None:
            self.market.settle(self._groups, self._waiting, self._demand(), self._left_s, self.exploration)
        else:
            self._settle_flow(self.flow)
        share_s = REFRESH_SHARE * self._usual_runtime_s()
        self.refresh_interval_s = max(self.statistics_interval_s, min(share_s, 60 * self.statistics_interval_s))
        return self._open

    def _settle_flow(self, flow: Flow) -> None:
        self.market.draw()
        works = [
            self._works(one.request, one.head.requirements.estimated_time, self.exploration) for one in self._waiting
        ]
        flow.settle(self._groups, self._waiting, works)

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
