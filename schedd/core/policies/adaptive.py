"""adaptive: learn what each kind takes on each device model, and let each worker do what it is comparatively good at.

With a backlog every worker gets work anyway; what matters is which work goes where. So a freed worker takes the kind in
which its group has the greatest advantage over the others, at the prices that the linear program of the whole backlog
gives to a second of each group (`prices`). The beliefs behind it (`beliefs`) are drawn anew at each refresh, in
proportion to how unsure they are, so that what is not known is tried while it may still pay (Thompson, 1933).

Towards the end, or where little waits, a slow worker does not take what a faster one that is busy would finish sooner.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from itertools import islice
from random import Random
from statistics import median
from typing import TYPE_CHECKING, Annotated, TypeVar

from msgspec import Meta, Struct

from schedd.core.capacity import WHOLE, Ledger, Need
from schedd.core.model import SECOND, Belief, Instant, Running, Task, WorkerId, WorkerInfo, WorkerStatus
from schedd.core.policies.base import Draft, Outcome, SurveyView, TaskScheduler, WaitingClass
from schedd.core.policies.beliefs import Beliefs, Cell
from schedd.core.policies.prices import solve
from schedd.core.stats import LEARNED_MAX, Learned, PerformanceStats, newest

if TYPE_CHECKING:
    from schedd.core.queue import RequestClass

INF = math.inf
Key = TypeVar("Key", bound=Hashable)
Row = TypeVar("Row")
#: Kinds on workers or models remembered, and workers; the least recently seen beyond this are forgotten.
ROWS_MAX = 200_000
#: A worker that fails everything is still tried now and then: its success counts as at least this.
SUCCESS_MIN = 0.02
#: Attempts that the first belief in a success is worth, and what that is.
SUCCESS_SAMPLES = 2.0
SUCCESS_FIRST = 0.95
#: The same of a worker, compared with all others.
WORKER_SAMPLES = 4.0
#: Counts of successes fade with each new one.
FADING = 0.98
#: Variance of what is peculiar to a worker, and to a kind on a worker, as parts of the logarithm of a runtime.
WORKER_VARIANCE = 0.25
#: What was seen of a worker fades faster: it may be throttled any time.
WORKER_FADING = 0.9
#: Groups of equal workers, waiting classes and running attempts that a refresh looks at.
GROUPS_MAX = 32
CLASSES_MAX = 500
RUNNING_MAX = 4000
#: With long tasks, beliefs need not be refreshed more often than in a tenth of their length.
REFRESH_SHARE = 0.1
#: What has come lately is expected to go on: beside what waits counts what would come in so many usual runtimes. How
#: much comes is a mean over as many, and one more.
AHEAD_RUNTIMES = 4.0
#: How far above its mean a runtime is feared to be when it may be the last to end, in standard deviations; and the
#: part of the time to the end in which a task has to fit by that.
FEARED_DEVIATIONS = 1.0
END_SHARE = 0.7
#: A class goes before the one that is first in the queue where it costs clearly less: this times as much, or less.
CLEARLY = 0.98
#: Before the model of a cell of `learned`; the name of a worker has no line break.
MODEL_MARK = "\n"


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


class _Tries:
    """Fading counts of attempts, of those that failed, and of their seconds."""

    __slots__ = ("count", "failed", "failed_s")

    def __init__(self) -> None:
        self.count = self.failed = self.failed_s = 0.0

    def add(self, seconds: float, success: bool) -> None:
        self.count = self.count * FADING + 1.0
        self.failed *= FADING
        self.failed_s *= FADING
        if not success:
            self.failed += 1.0
            self.failed_s += seconds


class _Peculiar:
    """How far runtimes were from what was believed of them: weighted mean of differences of logarithms."""

    __slots__ = ("total", "weight")

    def __init__(self) -> None:
        self.total = self.weight = 0.0

    def add(self, difference: float, weight: float) -> None:
        self.total = self.total * WORKER_FADING + difference * weight
        self.weight = self.weight * WORKER_FADING + weight

    def mean(self, noise: float) -> float:
        return self.total / (self.weight + noise / WORKER_VARIANCE)

    def doubt(self, noise: float) -> float:
        """The standard deviation of what is believed: of two that seem alike, the one that was seen less is tried."""
        return math.sqrt(noise * WORKER_VARIANCE / (noise + self.weight * WORKER_VARIANCE))


_UNSEEN = _Peculiar()


class _Group:
    """Workers of one shape: a device model, and as many devices and CPUs each."""

    __slots__ = ("count", "free_in_s", "model", "sample")

    def __init__(self, model: str, sample: Ledger) -> None:
        self.model = model
        self.sample = sample
        self.count = 0
        #: Seconds until the first of its workers that runs something is expected to be free, at the last refresh.
        self.free_in_s = INF


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
        self._rng = Random(1)
        self._pairs: OrderedDict[tuple[str, WorkerId], PerformanceStats] = OrderedDict()
        self._tries: OrderedDict[tuple[str, str], _Tries] = OrderedDict()
        self._all_tries = _Tries()
        self._worker_tries: OrderedDict[WorkerId, _Tries] = OrderedDict()
        self._peculiar: OrderedDict[WorkerId, _Peculiar] = OrderedDict()
        self._pair_peculiar: OrderedDict[tuple[str, WorkerId], _Peculiar] = OrderedDict()
        #: Model and group of a worker, by its id, for as long as it has this ledger.
        self._places: dict[WorkerId, tuple[Ledger, str, int]] = {}
        #: Kinds that were seen since the last refresh.
        self._news: set[str] = set()
        #: Tasks a second that come, by kind; and what waited at the last survey, less what was placed since.
        self._arrivals: dict[str, float] = {}
        self._known: dict[str, int] = {}
        # What the last refresh found.
        self._groups: list[_Group] = []
        self._group_numbers: dict[tuple[str, int, int], int] = {}
        self._waiting: list[WaitingClass] = []
        self._running: list[tuple[str, str, float, float | None]] = []
        self._idle: list[WorkerId] = []
        self._prices: list[float] = []
        #: Price of a second in a group, 1 in the mean; and what each class costs there: see `_order`.
        self._factors: list[float] = []
        self._orders: list[dict[RequestClass, float]] = []
        #: When that was, seconds in which what waited then could be done, and how much of it was not placed since.
        self.refreshed_ns: Instant = 0
        self._horizon_s = INF
        self._left_s = 0.0
        self._waited = self._left = 1

    # ------------------------------------------------------------------------------------------------------- beliefs

    def expected_s(self, task: Task, worker: WorkerInfo) -> float:
        """Seconds that are expected until the task has succeeded there, failed attempts before it included."""
        kind, worker_id = task.kind, worker.worker_id
        model = self._place(worker)[0]
        guess = self.beliefs.guess(kind, model, task.requirements.estimated_time)
        own = self._peculiar.get(worker_id, _UNSEEN)
        shift = own.mean(guess.noise)
        if (pair := self._pair_peculiar.get((kind, worker_id))) is not None:
            shift += pair.mean(guess.noise)
        seconds = guess.mean_s * math.exp(max(-5.0, min(5.0, shift)))
        return seconds + self._failures_s(kind, model, worker_id, seconds)

    def _failures_s(self, kind: str, model: str, worker_id: WorkerId | None, seconds: float) -> float:
        """Seconds of failed attempts before a success."""
        all_tries = self._all_tries
        if not all_tries.failed:
            return 0.0
        tries = self._tries.get((kind, model))
        success, failed_s = SUCCESS_FIRST, seconds
        if tries is not None:
            won = tries.count - tries.failed + SUCCESS_SAMPLES * SUCCESS_FIRST
            success = won / (tries.count + SUCCESS_SAMPLES)
            if tries.failed > 0:
                failed_s = tries.failed_s / tries.failed
        there = self._worker_tries.get(worker_id) if worker_id is not None else None
        if there is not None:
            usual = max(1.0 - all_tries.failed / all_tries.count, SUCCESS_MIN)
            own = (there.count - there.failed + WORKER_SAMPLES * usual) / (there.count + WORKER_SAMPLES)
            success *= min(1.0, own / usual)
        return failed_s * (1.0 / max(success, SUCCESS_MIN) - 1.0)

    def believed(self) -> list[Belief]:
        found = []
        for kind, row in self.beliefs.plain.cells.items():
            for model, cell in sorted(row.items()):
                guess = self.beliefs.guess(kind, model)
                tries = self._tries.get((kind, model))
                success = 1.0 - tries.failed / tries.count if tries is not None and tries.count else 1.0
                found.append(Belief(kind, model, guess.mean_s, guess.at(-1), guess.at(1), success, cell.count))
        return found

    def stats(self, kind: str, worker_id: WorkerId) -> PerformanceStats | None:
        """What was seen of a kind on a worker."""
        return self._pairs.get((kind, worker_id))

    def record_completion(self, worker_id: WorkerId, task: Task, duration: float, success: bool) -> None:
        """Learn from one attempt of `duration` seconds. Raises ValueError for a negative or NaN duration."""
        place = self._places.get(worker_id)
        self._learn(worker_id, place[1] if place is not None else "", task, duration, success)

    def observe(self, outcome: Outcome, now: Instant) -> None:
        model = self._place(outcome.worker)[0]
        self._learn(outcome.worker.worker_id, model, outcome.task, outcome.runtime_s, outcome.success)

    def _learn(self, worker_id: WorkerId, model: str, task: Task, seconds: float, success: bool) -> None:
        kind = task.kind
        _row(self._pairs, (kind, worker_id), lambda: PerformanceStats(self.learning_rate)).update(seconds, success)
        self._all_tries.add(seconds, success)
        _row(self._tries, (kind, model), _Tries).add(seconds, success)
        _row(self._worker_tries, worker_id, _Tries).add(seconds, success)
        self._news.add(kind)
        if not success:
            return
        hint_s = task.requirements.estimated_time
        guess = self.beliefs.guess(kind, model, hint_s)
        weight = guess.noise / (guess.noise + guess.doubt)
        # Of a kind that nobody has seen, the first says nothing about its worker.
        is_known = self.beliefs.plain.knows(kind)
        difference = math.log(max(seconds, 1e-6)) - guess.log_s if is_known else 0.0
        own = _row(self._peculiar, worker_id, _Peculiar)
        beyond = difference - own.mean(guess.noise)
        own.add(difference, weight)
        _row(self._pair_peculiar, (kind, worker_id), _Peculiar).add(beyond, weight)
        self.beliefs.add(kind, model, seconds, hint_s)

    def _place(self, worker: WorkerInfo) -> tuple[str, int]:
        """The device model of a worker, "" without devices, and the number of its group, -1 where it has none yet."""
        ledger = worker.ledger
        if ledger is None:
            return "", -1
        place = self._places.get(worker.worker_id)
        if place is None or place[0] is not ledger:
            model = ledger.devices[0].model if ledger.devices else ""
            number = self._group_numbers.get((model, len(ledger.devices), ledger.cpus), -1)
            place = self._places[worker.worker_id] = (ledger, model, number)
        return place[1], place[2]

    # ------------------------------------------------------------------------------------------------------ placement

    def score(self, task: Task, worker: WorkerInfo) -> float:
        waiting = (len(worker.task_queue) - worker.outgoing + worker.incoming) / worker.slots
        group = self._place(worker)[1]
        factor = self._factors[group] if 0 <= group < len(self._factors) else 1.0
        doubt = self._peculiar.get(worker.worker_id, _UNSEEN).doubt(self.beliefs.plain.noise)
        factor *= math.exp(-self.exploration * doubt)
        return self.expected_s(task, worker) * factor * (1.0 + waiting)

    def plan(self, draft: Draft, now: Instant) -> None:
        """Give each candidate of the task that is first the class of equal importance that it is best at."""
        while (task := draft.head()) is not None:
            worker = draft.candidate(task)
            if worker is None:
                draft.block(task)
            elif (placed := self._place_best(draft, task, worker, now)) is not None:
                self._left -= 1
                self._known[placed.kind] = self._known.get(placed.kind, 0) - 1
            else:
                draft.decline(task)

    def _place_best(self, draft: Draft, task: Task, worker: WorkerInfo, now: Instant) -> Task | None:
        """Place the task, or one that the worker is better at; None: it should rather wait."""
        group = self._place(worker)[1]
        mine = task.request
        order = self._orders[group] if 0 <= group < len(self._orders) and not worker.task_queue else {}
        least = order[mine] * CLEARLY if mine is not None and mine in order else 0.0
        for request, cost in order.items():
            if cost >= least:
                break
            other = draft.head_of(request)
            if other is None or other.priority != task.priority or not self._accepts(other, worker, group, now):
                continue
            if draft.offer(other, worker, 0):
                return other
        if not self._accepts(task, worker, group, now):
            return None
        if mine is not None:
            draft.head_of(mine)  # what the draft places next
        draft.assign(task, worker)
        return task

    def _accepts(self, task: Task, worker: WorkerInfo, group: int, now: Instant) -> bool:
        """Whether the worker should take a task that it could start, rather than leave it for a faster one."""
        if not self.spare_slow or len(self._groups) < 2 or not 0 <= group < len(self._groups):
            return True
        return self.sooner_elsewhere(task, worker, now) is None

    def sooner_elsewhere(self, task: Task, worker: WorkerInfo, now: Instant) -> tuple[str, float] | None:
        """The model on which the task is expected to end sooner, though busy now, and in how many seconds; or None."""
        group = self._place(worker)[1]
        here_s = self.expected_s(task, worker)
        fear = self._fear(task)
        end_s = (self._horizon_s * max(0, self._left) / self._waited + self._left_s) * END_SHARE
        if here_s * fear <= end_s:
            return None
        gone_s = (now - self.refreshed_ns) / SECOND
        best: tuple[str, float] | None = None
        for number, other in enumerate(self._groups):
            if number == group or other.free_in_s == INF or not self._runs_on(task, other):
                continue
            guess = self.beliefs.guess(task.kind, other.model, task.requirements.estimated_time)
            there_s = guess.mean_s + self._failures_s(task.kind, other.model, None, guess.mean_s)
            in_s = max(other.free_in_s - gone_s, 0.01 * there_s) + there_s * fear
            if in_s < here_s * fear and in_s >= end_s and (best is None or in_s < best[1]):
                best = (other.model, in_s)
            elif in_s < end_s:
                best = (other.model, in_s)
                break
        return best

    def left_for(self, task: Task, worker: WorkerInfo, now: Instant) -> str:
        group = self._place(worker)[1]
        if not self.spare_slow or not 0 <= group < len(self._groups):
            return ""
        found = self.sooner_elsewhere(task, worker, now)
        if found is None:
            return ""
        here_s = self.expected_s(task, worker) * self._fear(task)
        return f"{found[0]}, where it is expected to end sooner ({found[1]:.1f} s from now, here {here_s:.1f} s)"

    def _fear(self, task: Task) -> float:
        """How many times its mean a runtime may well be."""
        ratios, plain = self.beliefs.ratios, self.beliefs.plain
        noise = min(ratios.noise, plain.noise) if task.requirements.estimated_time else plain.noise
        return math.exp(FEARED_DEVIATIONS * math.sqrt(noise) - min(noise, 2.0) / 2)

    @staticmethod
    def _runs_on(task: Task, group: _Group) -> bool:
        return task.request is not None and any(not group.sample.blocker(need) for need in task.request.needs)

    # -------------------------------------------------------------------------------------------------------- refresh

    def is_stale(self, now: Instant) -> bool:
        return bool(self.beliefs.plain.cells) and now - self.refreshed_ns >= self.refresh_interval_s * SECOND

    def survey(self, view: SurveyView, now: Instant) -> None:
        """Look at what waits and what runs."""
        self._groups, self._group_numbers, self._places = [], {}, {}
        self._idle, self._running = [], []
        left_s, workers = 0.0, 0
        for worker in view.workers():
            ledger = worker.ledger
            if ledger is None or not worker.accepts_work:
                continue
            workers += 1
            group = self._enter(worker, ledger)
            if worker.status is WorkerStatus.IDLE:
                self._idle.append(worker.worker_id)
            first_s = INF
            for task in worker.running.values():
                state = task.state
                if isinstance(state, Running):
                    so_far_s = max(0.0, (now - state.started_at_ns) / SECOND)
                    hint_s = task.requirements.estimated_time
                    in_s = self.beliefs.guess(task.kind, group.model, hint_s).left_s(so_far_s)
                    first_s = min(first_s, in_s)
                    left_s += in_s / max(1, len(worker.running))
                    if len(self._running) < RUNNING_MAX:
                        self._running.append((task.kind, group.model, so_far_s, hint_s))
            group.free_in_s = min(group.free_in_s, first_s)
        self._left_s = left_s / max(1, workers)
        waiting = sorted(view.waiting(), key=lambda w: -w.size)
        self._waiting = waiting[:CLASSES_MAX]
        self._waited = self._left = max(1, sum(w.size for w in waiting))
        self._count_arrivals(waiting, now)

    def _count_arrivals(self, waiting: list[WaitingClass], now: Instant) -> None:
        """Bring up to date how much of each kind comes; what was there at the first look is no stream."""
        sizes: dict[str, int] = {}
        for one in waiting:
            sizes[one.request.kind] = sizes.get(one.request.kind, 0) + one.size
        if self.refreshed_ns:
            span_s = (AHEAD_RUNTIMES + 1) * self._usual_runtime_s()
            gone_s = (now - self.refreshed_ns) / SECOND
            kept = math.exp(-gone_s / span_s)
            come = {kind: max(0, size - self._known.get(kind, 0)) for kind, size in sizes.items()}
            come.update({kind: -n for kind, n in self._known.items() if n < 0 and kind not in sizes})
            self._arrivals = {kind: rate * kept for kind, rate in self._arrivals.items() if rate * span_s > 0.01}
            for kind, count in come.items():
                if count:
                    self._arrivals[kind] = self._arrivals.get(kind, 0.0) + count / span_s
        self._known = sizes

    def _usual_runtime_s(self) -> float:
        """Seconds that tasks take that wait now, or came lately, on the first group; the median, and one at least."""
        kinds = [*(w.request.kind for w in self._waiting[:20]), *list(self._arrivals)[:20]]
        if not self._groups or not kinds:
            return 1.0
        model = self._groups[0].model
        hints = {w.request.kind: w.head.requirements.estimated_time for w in self._waiting[:20]}
        beliefs = self.beliefs
        times = [beliefs.guess(k, model, beliefs.usual_hint_s(k, hints.get(k))).mean_s for k in kinds]
        return max(1.0, median(times))

    def _enter(self, worker: WorkerInfo, ledger: Ledger) -> _Group:
        model = ledger.devices[0].model if ledger.devices else ""
        shape = (model, len(ledger.devices), ledger.cpus)
        number = self._group_numbers.get(shape)
        if number is None and len(self._groups) < GROUPS_MAX:
            number = self._group_numbers[shape] = len(self._groups)
            self._groups.append(_Group(model, ledger))
        elif number is None:
            number = next((n for n, group in enumerate(self._groups) if group.model == model), 0)
        self._places[worker.worker_id] = (ledger, model, number)
        group = self._groups[number]
        group.count += 1
        return group

    def refresh(self, now: Instant) -> list[WorkerId]:
        """Bring beliefs, prices and orders up to date; O(classes * groups * steps), some milliseconds."""
        kinds = dict.fromkeys(w.request.kind for w in self._waiting)
        kinds.update(dict.fromkeys(sorted(self._news)[:CLASSES_MAX]))
        self.beliefs.fit(list(kinds), self._running)
        self._news.clear()
        self.refreshed_ns = now
        self._set_prices()
        share_s = REFRESH_SHARE * self._usual_runtime_s()
        self.refresh_interval_s = max(self.statistics_interval_s, min(share_s, 60 * self.statistics_interval_s))
        return self._idle

    def _set_prices(self) -> None:
        groups = self._groups
        if not groups or not self._waiting:
            self._factors, self._orders = [], []
            self._horizon_s = 0.0
            return
        rows = [self._row(w) for w in self._waiting]
        capacity = [float(group.count) for group in groups]
        start = self._prices if len(self._prices) == len(groups) else None
        prices, self._horizon_s = solve(self._demand(), [row for row, _ in rows], capacity, start)
        self._prices = prices
        total = sum(capacity)
        slowest_s = max((max((s for s in plain if s < INF), default=0.0) for _, plain in rows), default=0.0)
        is_ending = self._horizon_s * END_SHARE < slowest_s
        self._factors = [1.0] * len(groups) if is_ending else [price * total for price in prices]
        self._orders = [self._order(number, prices, rows) for number in range(len(groups))]

    def _demand(self) -> list[float]:
        """Tasks of each class: what waits, and what will have come before long."""
        ahead_s = AHEAD_RUNTIMES * self._usual_runtime_s()
        first: set[str] = set()
        demand = []
        for one in self._waiting:
            kind = one.request.kind
            more = 0.0 if kind in first else ahead_s * self._arrivals.get(kind, 0.0)
            first.add(kind)
            demand.append(one.size + more)
        return demand

    def _row(self, waiting: WaitingClass) -> tuple[list[float], list[float]]:
        """Seconds of a worker that a task of a class takes on each group: drawn from the beliefs, and as believed.

        The first are for prices, in seconds of the whole worker; the second the runtime as such.
        """
        request, head = waiting.request, waiting.head
        hint_s = self.beliefs.usual_hint_s(request.kind, head.requirements.estimated_time)
        drawn: dict[str, tuple[float, float]] = {}
        row, plain = [], []
        for group in self._groups:
            share = min((_share(need, group.sample) for need in request.needs), default=INF)
            if share == INF:
                row.append(INF)
                plain.append(INF)
                continue
            if group.model not in drawn:
                guess = self.beliefs.guess(request.kind, group.model, hint_s)
                failures_s = self._failures_s(request.kind, group.model, None, guess.mean_s)
                drawn[group.model] = (
                    guess.drawn_s(self.exploration * self._rng.gauss(0.0, 1.0)) + failures_s,
                    guess.mean_s + failures_s,
                )
            mine, mean = drawn[group.model]
            row.append(share * mine)
            plain.append(mean)
        return row, plain

    def _order(
        self, number: int, prices: list[float], rows: list[tuple[list[float], list[float]]]
    ) -> dict[RequestClass, float]:
        """The classes with what a task costs there, over what it costs on the best of the other groups; least first."""
        if len(self._groups) < 2:
            return {}
        found = []
        for position, (waiting, (row, _)) in enumerate(zip(self._waiting, rows, strict=True)):
            if row[number] == INF:
                continue
            others = [p * s for g, (p, s) in enumerate(zip(prices, row, strict=True)) if g != number]
            found.append(
                (prices[number] * row[number] / min(others) if min(others) else 0.0, position, waiting.request)
            )
        found.sort(key=lambda entry: entry[:2])
        return {request: cost for cost, _, request in found}

    # -------------------------------------------------------------------------------------------------- over a restart

    def learned(self) -> list[Learned]:
        cells = []
        for mark, logs in ((MODEL_MARK, self.beliefs.plain), (MODEL_MARK * 2, self.beliefs.ratios)):
            for kind, row in logs.cells.items():
                for model, cell in row.items():
                    tries = self._tries.get((kind, model), _Tries())
                    failed = tries.failed / tries.count if tries.count else 0.0
                    values = (cell.total, cell.square, 1.0 - failed, cell.count)
                    cells.append(Learned(kind, mark + model, *values, int(tries.count)))
        cells = cells[-(LEARNED_MAX // 2) :] + self._written_peculiar()
        return newest(self._pairs)[-(LEARNED_MAX - len(cells)) :] + cells

    def _written_peculiar(self) -> list[Learned]:
        """What is peculiar to workers, the last seen ones, and to kinds on them."""
        rows = [(pair, row) for pair, row in islice(reversed(self._pair_peculiar.items()), LEARNED_MAX // 8)]
        rows += [(("", worker), row) for worker, row in islice(reversed(self._peculiar.items()), LEARNED_MAX // 8)]
        mark = MODEL_MARK * 3
        return [
            Learned(kind, mark + worker, row.total, 0.0, 1.0, row.weight, 0) for (kind, worker), row in reversed(rows)
        ]

    def recall(self, learned: Iterable[Learned]) -> None:
        for one in learned:
            if one.worker.startswith(MODEL_MARK * 3):
                self._recall_peculiar(one)
            elif one.worker.startswith(MODEL_MARK):
                self._recall_cell(one)
            else:
                stats = self._pairs[one.kind, WorkerId(one.worker)] = PerformanceStats(self.learning_rate)
                stats.recall(one)
        for logs in (self.beliefs.plain, self.beliefs.ratios):
            logs.fit(list(logs.cells))

    def _recall_peculiar(self, one: Learned) -> None:
        worker_id = WorkerId(one.worker.removeprefix(MODEL_MARK * 3))
        if math.isfinite(one.duration) and one.weight > 0:
            peculiar = _Peculiar()
            peculiar.total, peculiar.weight = one.duration, one.weight
            if one.kind:
                self._pair_peculiar[one.kind, worker_id] = peculiar
            else:
                self._peculiar[worker_id] = peculiar

    def _recall_cell(self, one: Learned) -> None:
        is_ratio = one.worker.startswith(MODEL_MARK * 2)
        model = one.worker.removeprefix(MODEL_MARK * (2 if is_ratio else 1))
        logs = self.beliefs.ratios if is_ratio else self.beliefs.plain
        if not (one.weight > 0 and math.isfinite(one.duration) and math.isfinite(one.square)):
            return
        logs.recall(one.kind, model, Cell(one.weight, one.duration, one.square))
        if not is_ratio and one.total:
            tries = self._tries[one.kind, model] = _Tries()
            tries.count = float(one.total)
            tries.failed = one.total * (1.0 - one.success)


def _row(table: OrderedDict[Key, Row], key: Key, make: Callable[[], Row]) -> Row:
    """The row of a key, the newest of the table from now on; a new one where there is none."""
    row = table.get(key)
    if row is not None:
        table.move_to_end(key)
        return row
    row = table[key] = make()
    if len(table) > ROWS_MAX:
        table.popitem(last=False)
    return row


def _share(need: Need, sample: Ledger) -> float:
    """The share of a worker that a task takes; infinite where it does not fit."""
    if sample.blocker(need):
        return INF
    share = need.gpus * need.share / (WHOLE * len(sample.devices)) if need.gpus else 0.0
    if sample.cpus:
        share = max(share, need.cpus / sample.cpus)
    if sample.ram_mb:
        share = max(share, need.ram_mb / sample.ram_mb)
    return max(share, 1e-6)
