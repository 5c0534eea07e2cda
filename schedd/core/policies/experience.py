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
from schedd.core.policies.beliefs import SHORTEST_S, Beliefs, Cell, Guess
from schedd.core.policies.peculiar import LOOKED_AT_MAX, PAIR_VARIANCE, SHARE_FIRST, Pace, Spread, Tries, WorkerTries
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
#: Of what is written down, one part in so many is of each sort of what is peculiar to workers, at the most.
WRITTEN_SHARE = 10
#: A mean of logarithms beyond this was not written by us, nor was less weight.
LOG_MAX = 60.0
WEIGHT_MIN = 1e-9
#: Before the model of a cell of `learned`, of runtimes and of their ratios to estimates; the name of a worker has no
#: line break.
CELL_MARK = "\n"
RATIO_MARK = "\n" * 2
#: The same before a worker, of the pace of a kind there, of its failures, and of its own pace; and before a model, of
#: the failures of a kind there.
PAIR_MARK = "\n" * 3
TRIES_MARK = "\n" * 4
PACE_MARK = "\n" * 5
MODEL_TRIES_MARK = "\n" * 6
INF = math.inf

_UNTRIED = Tries()


class Rows(OrderedDict[Key, Row]):
    """Rows by key, made where there is none yet; beyond `ROWS_MAX` the first goes: who sees one moves it to the end."""

    def __init__(self, make: Callable[[], Row]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, key: Key) -> Row:
        row = self[key] = self._make()
        if len(self) > ROWS_MAX:
            self.popitem(last=False)
        return row


class OfWorker:
    """What is peculiar to a worker."""

    __slots__ = ("pace", "tries")

    def __init__(self, spread: Spread) -> None:
        self.pace = Pace(spread)
        self.tries = WorkerTries()


class Pair(PerformanceStats):
    """What was seen of a kind on a worker, and what is peculiar to the two."""

    __slots__ = ("pace",)

    def __init__(self, learning_rate: float, spread: Spread) -> None:
        super().__init__(learning_rate)
        self.pace = Pace(spread)


class Experience:
    """Learns from attempts and says what is to be expected of the next."""

    def __init__(self, beliefs: Beliefs, learning_rate: float) -> None:
        self._beliefs = beliefs
        #: By how much workers differ, and kinds on workers.
        self._spread, self._pair_spread = Spread(), Spread(PAIR_VARIANCE)
        self._pairs: Rows[tuple[str, WorkerId], Pair] = Rows(lambda: Pair(learning_rate, self._pair_spread))
        self._workers: Rows[WorkerId, OfWorker] = Rows(lambda: OfWorker(self._spread))
        self._tries: Rows[tuple[str, str], Tries] = Rows(Tries)
        #: Whether any attempt has failed: as long as none has, nothing is expected to.
        self.has_failures = False
        self._unseen = OfWorker(self._spread)

    def fit(self) -> None:
        """Learn by how much workers differ: where they are alike, what seems peculiar to one is chance.

        And blame what has failed by what is known now.
        """
        self._spread.fit(one.pace for one in reversed(self._workers.values()))
        self._pair_spread.fit(one.pace for one in reversed(self._pairs.values()))
        for one in islice(reversed(self._workers.values()), LOOKED_AT_MAX if self.has_failures else 0):
            own = one.tries
            for key, case in own.cases.items():
                cell = self._tries.get(key, _UNTRIED)
                by_kind, by_worker = _blame(cell, own)
                if cell is not _UNTRIED:
                    cell.shift_blame(case.count * (by_kind - case.by_kind))
                own.shift_blame(case.count * (by_worker - case.by_worker))
                case.by_kind, case.by_worker = by_kind, by_worker

    def expected_s(self, task: Task, worker_id: WorkerId, model: str) -> float:
        """Seconds that are expected until the task has succeeded there, failed attempts before it included."""
        return self.guess(task, worker_id, model, task.requirements.estimated_time)[1]

    def guess(self, task: Task, worker_id: WorkerId, model: str, hint_s: float | None) -> tuple[Guess, float]:
        """What is believed of the task on the model, and the seconds that are expected on this worker.

        hint_s: how long its user says that it takes.
        """
        kind = task.kind
        guess = self._beliefs.guess(kind, model, hint_s)
        seconds = guess.mean_s * math.exp(self.shift(kind, worker_id))
        return guess, seconds * (1.0 + self.burden(kind, model, worker_id)) if self.has_failures else seconds

    def effort(self, worker_id: WorkerId) -> float:
        """How many times as long as on another worker of its model a success takes there, failures included."""
        own = _bounded(self._workers.get(worker_id, self._unseen).pace.believe()[0])
        return math.exp(own) * (1.0 + self.burden(None, "", worker_id))

    def slowness(self, worker_id: WorkerId) -> float:
        """How many times as long as others of its model a worker takes that has turned out to be unlike them; else 1.

        Such a worker does not speak for its model; the small deviations of the others are a part of its mean.
        """
        return _slowness(self._workers.get(worker_id, self._unseen).pace)

    def capacity(self, worker_id: WorkerId) -> float:
        """What a worker gets done beside one of its model that is like the others, and on which nothing fails: 1."""
        return 1.0 / (self.slowness(worker_id) * (1.0 + self.burden(None, "", worker_id)))

    def burden(self, kind: str | None, model: str, worker_id: WorkerId | None) -> float:
        """What failed attempts before a success take, in runtimes: of a kind on a model, on a worker; None: any."""
        if not self.has_failures:
            return 0.0
        fails, share = self._fails(kind, model, worker_id)
        return share * _before_success(fails)

    def risk(self, kind: str, model: str, worker_id: WorkerId) -> float:
        """Failed attempts that are expected before a success: so often the task has to be tried again, if it may be."""
        return _before_success(self._fails(kind, model, worker_id)[0]) if self.has_failures else 0.0

    def _fails(self, kind: str | None, model: str, worker_id: WorkerId | None) -> tuple[float, float]:
        """How likely an attempt fails, and what part of a runtime it takes then."""
        by_kind = by_worker = wasted = 0.0
        if kind is not None:
            tries = self._tries.get((kind, model), _UNTRIED)
            by_kind = tries.rate(FAILS_FIRST, FAILS_SAMPLES)
            wasted += by_kind * tries.usual_share
        if worker_id is not None:
            tries = self._workers.get(worker_id, self._unseen).tries
            by_worker = tries.rate(FAILS_FIRST, FAILS_SAMPLES)
            wasted += by_worker * tries.usual_share
        return _either(by_kind, by_worker), wasted / (by_kind + by_worker)

    def shift(self, kind: str, worker_id: WorkerId) -> float:
        """How much slower the worker is with such tasks than others of its model, as a logarithm."""
        own = self._workers.get(worker_id, self._unseen).pace
        pair = self._pairs.get((kind, worker_id))
        shift = own.believe()[0]
        if pair is not None and pair.pace.era == own.era:
            shift += pair.pace.believe()[0]
        return shift if -SHIFT_MAX < shift < SHIFT_MAX else _bounded(shift)

    def doubt(self, worker_id: WorkerId) -> float:
        """The standard deviation of what is believed of the pace of a worker, as a part of a logarithm."""
        return math.sqrt(self._workers.get(worker_id, self._unseen).pace.believe()[1])

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
        pair = self._pairs.get((kind, worker_id))
        return pair if pair is not None and pair.total_tasks else None

    def learn(self, worker_id: WorkerId, model: str, task: Task, seconds: float, success: bool) -> None:
        """Learn from one attempt. Raises ValueError for a negative or NaN duration."""
        kind = task.kind
        key, place = (kind, worker_id), (kind, model)
        pair, own, cell = self._pairs[key], self._workers[worker_id], self._tries[place]
        pair.update(seconds, success)
        self._pairs.move_to_end(key)
        self._workers.move_to_end(worker_id)
        self._tries.move_to_end(place)
        hint_s = task.requirements.estimated_time
        if success:
            cell.note_success()
            own.tries.note_success()
            self._learn_runtime(own.pace, pair, kind, model, seconds, hint_s)
        else:
            usual_s = self._beliefs.guess(kind, model, hint_s).mean_s * math.exp(self.shift(kind, worker_id))
            share = min(SHARE_MAX, seconds / usual_s)
            by_kind, by_worker = _blame(cell, own.tries)
            cell.add(by_kind, share, failed=True)
            own.tries.add(by_worker, share, failed=True)
            own.tries.note(place, by_kind, by_worker)
            self.has_failures = True

    def _learn_runtime(
        self, own: Pace, pair: Pair, kind: str, model: str, seconds: float, hint_s: float | None
    ) -> None:
        """Share a difference between the worker and the kind on it: each sees what the other leaves."""
        expected, doubt, logs = self._beliefs.believe(kind, model, hint_s)
        noise = doubt + logs.noise
        # Of a kind that nobody has seen, the first says nothing about its worker.
        is_known = self._beliefs.plain.knows(kind)
        difference = math.log(max(seconds, SHORTEST_S)) - expected if is_known else 0.0
        if pair.pace.era != own.era:
            pair.pace = Pace(self._pair_spread, own.era)
        mean, variance = pair.pace.believe()
        own.add(difference - mean, noise + variance)
        if pair.pace.era != own.era:
            pair.pace = Pace(self._pair_spread, own.era)
        mean, variance = own.believe()
        pair.pace.add(difference - mean, noise + variance)
        self._beliefs.add(kind, model, seconds / _slowness(own) if own.era else seconds, hint_s)

    # -------------------------------------------------------------------------------------------------- over a restart

    def learned(self) -> list[Learned]:
        """Write down what is to outlive a restart, the last seen."""
        cells = []
        for mark, logs in ((CELL_MARK, self._beliefs.plain), (RATIO_MARK, self._beliefs.ratios)):
            for kind, row in logs.cells.items():
                for model, cell in row.items():
                    tries = self._tries.get((kind, model), _UNTRIED)
                    failed = tries.failed / tries.count if tries.count else 0.0
                    values = (cell.total, cell.square, 1.0 - failed, cell.count)
                    cells.append(Learned(kind, mark + model, *values, int(tries.count)))
        cells = cells[-(LEARNED_MAX // 2) :] + self._written_peculiar()
        seen = {key: pair for key, pair in self._pairs.items() if pair.total_tasks}
        return newest(seen)[-(LEARNED_MAX - len(cells)) :] + cells

    def _written_peculiar(self) -> list[Learned]:
        """What is peculiar to workers, the last seen ones, and to kinds on them; and what fails."""
        pairs, workers = self._last(self._pairs), self._last(self._workers)
        rows = [
            _written_pace(kind, PAIR_MARK + worker_id, pair.pace)
            for (kind, worker_id), pair in pairs
            if pair.pace.weight and pair.pace.era == self._workers.get(worker_id, self._unseen).pace.era
        ]
        rows += [_written_pace("", PACE_MARK + worker, own.pace) for worker, own in workers if own.pace.weight]
        rows += [_written_tries("", TRIES_MARK + worker, own.tries) for worker, own in workers if own.tries.count]
        rows += [
            _written_tries(kind, MODEL_TRIES_MARK + model, tries)
            for (kind, model), tries in self._last(self._tries)
            if tries.failed
        ]
        return rows

    def _last(self, table: OrderedDict[Key, Row]) -> list[tuple[Key, Row]]:
        return list(islice(reversed(table.items()), LEARNED_MAX // WRITTEN_SHARE))[::-1]

    def recall(self, learned: Iterable[Learned]) -> None:
        """Go on from what was written down; what is damaged is left out."""
        for one in learned:
            name = one.worker.lstrip("\n")
            mark = one.worker[: len(one.worker) - len(name)]
            if not mark:
                self._pairs[one.kind, WorkerId(name)].recall(one)
            elif mark in (CELL_MARK, RATIO_MARK):
                self._recall_cell(one, name, is_ratio=mark == RATIO_MARK)
            elif mark in (PACE_MARK, PAIR_MARK):
                self._recall_pace(one, WorkerId(name), is_pair=mark == PAIR_MARK)
            elif mark in (TRIES_MARK, MODEL_TRIES_MARK):
                self._recall_tries(one, name, is_worker=mark == TRIES_MARK)
        self._beliefs.fit_recalled()
        self.fit()

    def _recall_cell(self, one: Learned, model: str, *, is_ratio: bool) -> None:
        if not (_is_sound(one) and 0.0 <= one.square <= LOG_MAX**2 * one.weight):
            return
        self._beliefs.recall(one.kind, model, Cell(one.weight, one.duration, one.square), is_ratio=is_ratio)
        if not is_ratio and one.total:
            failed = one.total * min(1.0, max(0.0, 1.0 - one.success))
            self._tries[one.kind, model] = Tries(float(one.total), failed, failed, failed * SHARE_FIRST)
            self.has_failures = self.has_failures or failed > 0

    def _recall_pace(self, one: Learned, worker_id: WorkerId, *, is_pair: bool) -> None:
        if not (_is_sound(one) and 0.0 <= one.square <= 1.0):
            return
        pace = Pace(self._pair_spread if is_pair else self._spread, int(one.total > 0))
        pace.recall(one.duration, one.weight, one.square)
        if is_pair:
            self._pairs[one.kind, worker_id].pace = pace
        else:
            self._workers[worker_id].pace = pace

    def _recall_tries(self, one: Learned, name: str, *, is_worker: bool) -> None:
        if not (0.0 < one.weight < INF and 0.0 <= one.success <= 1.0 and one.square >= 0.0 and one.duration >= 0.0):
            return
        failed = one.weight * (1.0 - one.success)
        blamed = min(one.square, failed)
        values = (one.weight, failed, blamed, min(one.duration, SHARE_MAX * blamed))
        if is_worker:
            self._workers[WorkerId(name)].tries = WorkerTries(*values)
            self._workers.move_to_end(WorkerId(name))
        else:
            self._tries[one.kind, name] = Tries(*values)
            self._tries.move_to_end((one.kind, name))
        self.has_failures = self.has_failures or failed > 0


def _bounded(shift: float) -> float:
    return max(-SHIFT_MAX, min(SHIFT_MAX, shift))


def _slowness(own: Pace) -> float:
    return math.exp(_bounded(own.mean)) if own.era else 1.0


def _either(first: float, second: float) -> float:
    """How likely one of two is that have nothing to do with each other."""
    return first + second - first * second


def _blame(cell: Tries, worker: Tries) -> tuple[float, float]:
    """How likely a kind on a model, and a worker, were at work where an attempt has failed."""
    by_kind, by_worker = cell.rate(FAILS_FIRST, FAILS_SAMPLES), worker.rate(FAILS_FIRST, FAILS_SAMPLES)
    fails = _either(by_kind, by_worker)
    return by_kind / fails, by_worker / fails


def _before_success(fails: float) -> float:
    """Attempts that fail before one succeeds, in the mean."""
    return fails / max(1.0 - fails, SUCCESS_MIN)


def _is_sound(one: Learned) -> bool:
    return WEIGHT_MIN < one.weight < INF and abs(one.duration) <= LOG_MAX * one.weight


def _written_pace(kind: str, name: str, pace: Pace) -> Learned:
    return Learned(kind, name, pace.total, pace.unlike, 1.0, pace.weight, int(pace.era > 0))


def _written_tries(kind: str, name: str, tries: Tries) -> Learned:
    return Learned(kind, name, tries.share, tries.blamed, 1.0 - tries.failed / tries.count, tries.count, 0)
