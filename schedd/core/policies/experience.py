"""What attempts have shown: how long each kind takes where, how often it succeeds, what is peculiar to single workers.

Runtimes by kind and device model are `beliefs`; around them each worker, and each kind on each worker, has its own
deviation: a worker may be throttled, a kind may find its data there. All of it can be written down and outlives a
restart.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from itertools import islice
from typing import TypeVar

from schedd.core.model import Belief, Task, WorkerId
from schedd.core.policies.beliefs import Beliefs, Cell
from schedd.core.policies.peculiar import JUMP_VARIANCE, PAIR_VARIANCE, SHARE_FIRST, WORKER_VARIANCE, Pace, Tries
from schedd.core.stats import LEARNED_MAX, Learned, PerformanceStats, newest

Key = TypeVar("Key", bound=Hashable)
Row = TypeVar("Row")
#: Kinds on workers or models remembered, and workers; the least recently seen beyond this are forgotten.
ROWS_MAX = 200_000
#: A worker that fails everything is still tried now and then: its success counts as at least this.
SUCCESS_MIN = 0.02
#: How likely a kind on a model, and a worker, are to fail before they were seen, and what that is worth in attempts. It
#: is not learned from the others: where nothing ever fails, the first that does is to be noticed.
FAILS_FIRST = 0.05
FAILS_SAMPLES = 2.0
#: A worker is at most so much faster or slower than its model, as a logarithm.
SHIFT_MAX = 5.0
#: A failure takes at most so many runtimes.
SHARE_MAX = 10.0
#: Before the model of a cell of `learned`; the name of a worker has no line break.
MODEL_MARK = "\n"
#: The same before a worker, of the pace of a kind there, of its failures, and of its own pace.
PAIR_MARK = MODEL_MARK * 3
TRIES_MARK = MODEL_MARK * 4
PACE_MARK = MODEL_MARK * 5
INF = math.inf


_UNSEEN = Pace()
_UNTRIED = Tries()


class Experience:
    """Learns from attempts and says what is to be expected of the next."""

    def __init__(self, beliefs: Beliefs, learning_rate: float) -> None:
        self._beliefs = beliefs
        self._learning_rate = learning_rate
        self._pairs: OrderedDict[tuple[str, WorkerId], PerformanceStats] = OrderedDict()
        self._tries: OrderedDict[tuple[str, str], Tries] = OrderedDict()
        self._has_failures = False
        self._worker_tries: OrderedDict[WorkerId, Tries] = OrderedDict()
        self._paces: OrderedDict[WorkerId, Pace] = OrderedDict()
        self._pair_paces: OrderedDict[tuple[str, WorkerId], Pace] = OrderedDict()

    def expected_s(self, task: Task, worker_id: WorkerId, model: str) -> float:
        """Seconds that are expected until the task has succeeded there, failed attempts before it included."""
        kind = task.kind
        guess = self._beliefs.guess(kind, model, task.requirements.estimated_time)
        seconds = guess.mean_s * math.exp(self.shift(kind, worker_id))
        return seconds * (1.0 + self.burden(kind, model, worker_id))

    def effort(self, worker_id: WorkerId) -> float:
        """How many times as long as on another worker of its model a success takes there, failures included."""
        return math.exp(self._paces.get(worker_id, _UNSEEN).mean) * (1.0 + self.burden(None, "", worker_id))

    def slowness(self, worker_id: WorkerId) -> float:
        """How many times as long as others of its model a worker takes that has turned out to be unlike them; else 1.

        Such a worker does not speak for its model; the small deviations of the others are a part of its mean.
        """
        own = self._paces.get(worker_id, _UNSEEN)
        return math.exp(max(-SHIFT_MAX, min(SHIFT_MAX, own.mean))) if own.era else 1.0

    def capacity(self, worker_id: WorkerId) -> float:
        """What a worker gets done beside one of its model that is like the others, and on which nothing fails: 1."""
        return 1.0 / (self.slowness(worker_id) * (1.0 + self.burden(None, "", worker_id)))

    def burden(self, kind: str | None, model: str, worker_id: WorkerId | None) -> float:
        """What failed attempts before a success take, in runtimes: of a kind on a model, on a worker; None: any."""
        if not self._has_failures:
            return 0.0
        by_kind = by_worker = wasted = 0.0
        if kind is not None:
            tries = self._tries.get((kind, model), _UNTRIED)
            by_kind = tries.rate(FAILS_FIRST, FAILS_SAMPLES)
            wasted += by_kind * tries.usual_share
        if worker_id is not None:
            tries = self._worker_tries.get(worker_id, _UNTRIED)
            by_worker = tries.rate(FAILS_FIRST, FAILS_SAMPLES)
            wasted += by_worker * tries.usual_share
        fails = by_kind + by_worker - by_kind * by_worker
        return wasted / (by_kind + by_worker) * fails / max(1.0 - fails, SUCCESS_MIN)

    def shift(self, kind: str, worker_id: WorkerId) -> float:
        """How much slower the worker is with such tasks than others of its model, as a logarithm."""
        own = self._paces.get(worker_id, _UNSEEN)
        pair = self._pair_paces.get((kind, worker_id))
        shift = own.mean + (pair.mean if pair is not None and pair.era == own.era else 0.0)
        return max(-SHIFT_MAX, min(SHIFT_MAX, shift))

    def doubt(self, worker_id: WorkerId) -> float:
        """The standard deviation of what is believed of the pace of a worker, as a part of a logarithm."""
        return math.sqrt(self._paces.get(worker_id, _UNSEEN).variance)

    def believed(self) -> list[Belief]:
        """What is believed of each kind on each model where it was seen, the last seen kind last."""
        found = []
        for kind, row in self._beliefs.plain.cells.items():
            for model, cell in sorted(row.items()):
                guess = self._beliefs.guess(kind, model)
                tries = self._tries.get((kind, model))
                success = 1.0 - tries.failed / tries.count if tries is not None and tries.count else 1.0
                found.append(Belief(kind, model, guess.mean_s, guess.at(-1), guess.at(1), success, cell.count))
        return found

    def stats(self, kind: str, worker_id: WorkerId) -> PerformanceStats | None:
        """What was seen of a kind on a worker."""
        return self._pairs.get((kind, worker_id))

    def learn(self, worker_id: WorkerId, model: str, task: Task, seconds: float, success: bool) -> None:
        """Learn from one attempt. Raises ValueError for a negative or NaN duration."""
        kind = task.kind
        _row(self._pairs, (kind, worker_id), lambda: PerformanceStats(self._learning_rate)).update(seconds, success)
        if success:
            self._learn_success(worker_id, model, task, seconds)
        else:
            self._learn_failure(worker_id, model, task, seconds)

    def _learn_failure(self, worker_id: WorkerId, model: str, task: Task, seconds: float) -> None:
        kind = task.kind
        cell, own = _row(self._tries, (kind, model), Tries), _row(self._worker_tries, worker_id, Tries)
        by_kind, by_worker = cell.rate(FAILS_FIRST, FAILS_SAMPLES), own.rate(FAILS_FIRST, FAILS_SAMPLES)
        fails = by_kind + by_worker - by_kind * by_worker
        guess = self._beliefs.guess(kind, model, task.requirements.estimated_time)
        share = min(SHARE_MAX, seconds / (guess.mean_s * math.exp(self.shift(kind, worker_id))))
        cell.add(by_kind / fails, share, failed=True)
        own.add(by_worker / fails, share, failed=True)
        self._has_failures = True

    def _learn_success(self, worker_id: WorkerId, model: str, task: Task, seconds: float) -> None:
        kind, hint_s = task.kind, task.requirements.estimated_time
        _row(self._tries, (kind, model), Tries).add()
        _row(self._worker_tries, worker_id, Tries).add()
        guess = self._beliefs.guess(kind, model, hint_s)
        # Of a kind that nobody has seen, the first says nothing about its worker.
        is_known = self._beliefs.plain.knows(kind)
        difference = math.log(max(seconds, 1e-6)) - guess.log_s if is_known else 0.0
        self._learn_pace(kind, worker_id, difference, guess.noise + guess.doubt)
        self._beliefs.add(kind, model, seconds / self.slowness(worker_id), hint_s)

    def _learn_pace(self, kind: str, worker_id: WorkerId, difference: float, noise: float) -> None:
        """Share a difference between the worker and the kind on it: each sees what the other leaves."""
        own = _row(self._paces, worker_id, Pace)
        pair = _row(self._pair_paces, (kind, worker_id), lambda: Pace(PAIR_VARIANCE, own.era))
        own.add(difference - (pair.mean if pair.era == own.era else 0.0), noise + pair.variance)
        if pair.era != own.era:
            pair = self._pair_paces[kind, worker_id] = Pace(PAIR_VARIANCE, own.era)
        pair.add(difference - own.mean, noise + own.variance)
        pair.era = own.era

    # -------------------------------------------------------------------------------------------------- over a restart

    def learned(self) -> list[Learned]:
        """Write down what is to outlive a restart, the last seen."""
        cells = []
        for mark, logs in ((MODEL_MARK, self._beliefs.plain), (MODEL_MARK * 2, self._beliefs.ratios)):
            for kind, row in logs.cells.items():
                for model, cell in row.items():
                    tries = self._tries.get((kind, model), Tries())
                    failed = tries.failed / tries.count if tries.count else 0.0
                    values = (cell.total, cell.square, 1.0 - failed, cell.count)
                    cells.append(Learned(kind, mark + model, *values, int(tries.count)))
        cells = cells[-(LEARNED_MAX // 2) :] + self._written_peculiar()
        return newest(self._pairs)[-(LEARNED_MAX - len(cells)) :] + cells

    def _written_peculiar(self) -> list[Learned]:
        """What is peculiar to workers, the last seen ones, and to kinds on them."""
        rows = []
        for (kind, worker_id), pair in islice(reversed(self._pair_paces.items()), LEARNED_MAX // 8):
            own = self._paces.get(worker_id)
            if own is not None and pair.era == own.era:
                era = int(own.era > 0)
                rows.append(Learned(kind, PAIR_MARK + worker_id, pair.mean, pair.variance, 1.0, 1.0, era))
        for worker_id, own in islice(reversed(self._paces.items()), LEARNED_MAX // 8):
            rows.append(Learned("", PACE_MARK + worker_id, own.mean, own.variance, 1.0, 1.0, int(own.era > 0)))
        for worker_id, tries in islice(reversed(self._worker_tries.items()), LEARNED_MAX // 8):
            success = 1.0 - tries.blamed / tries.count
            share = tries.share / tries.blamed if tries.blamed else SHARE_FIRST
            rows.append(Learned("", TRIES_MARK + worker_id, share, 0.0, success, tries.count, 0))
        return rows[::-1]

    def recall(self, learned: Iterable[Learned]) -> None:
        """Go on from what was written down; what is damaged is left out."""
        for one in learned:
            if one.worker.startswith(PACE_MARK):
                self._recall_pace(one, PACE_MARK)
            elif one.worker.startswith(TRIES_MARK):
                self._recall_tries(one)
            elif one.worker.startswith(PAIR_MARK):
                self._recall_pace(one, PAIR_MARK)
            elif one.worker.startswith(MODEL_MARK):
                self._recall_cell(one)
            else:
                stats = self._pairs[one.kind, WorkerId(one.worker)] = PerformanceStats(self._learning_rate)
                stats.recall(one)
        for logs in (self._beliefs.plain, self._beliefs.ratios):
            logs.fit(list(logs.cells))

    def _recall_pace(self, one: Learned, mark: str) -> None:
        worker_id = WorkerId(one.worker.removeprefix(mark))
        if not (math.isfinite(one.duration) and 0 < one.square <= JUMP_VARIANCE):
            return
        pace = Pace(PAIR_VARIANCE if mark == PAIR_MARK else WORKER_VARIANCE, int(one.total > 0))
        pace.recall(one.duration, one.square)
        if mark == PAIR_MARK:
            self._pair_paces[one.kind, worker_id] = pace
        else:
            self._paces[worker_id] = pace

    def _recall_tries(self, one: Learned) -> None:
        if not (0 < one.weight < INF and 0 <= one.success <= 1 and 0 <= one.duration < INF):
            return
        tries = self._worker_tries[WorkerId(one.worker.removeprefix(TRIES_MARK))] = Tries()
        tries.recall(one.weight, 1.0 - one.success, min(one.duration, SHARE_MAX))
        self._has_failures = self._has_failures or one.success < 1

    def _recall_cell(self, one: Learned) -> None:
        is_ratio = one.worker.startswith(MODEL_MARK * 2)
        model = one.worker.removeprefix(MODEL_MARK * (2 if is_ratio else 1))
        logs = self._beliefs.ratios if is_ratio else self._beliefs.plain
        if not (one.weight > 0 and math.isfinite(one.duration) and math.isfinite(one.square)):
            return
        logs.recall(one.kind, model, Cell(one.weight, one.duration, one.square))
        if not is_ratio and one.total:
            tries = self._tries[one.kind, model] = Tries()
            tries.recall(float(one.total), 1.0 - one.success, SHARE_FIRST)
            self._has_failures = self._has_failures or one.success < 1


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
