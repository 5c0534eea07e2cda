"""What attempts have shown: how long each kind takes where, how often it succeeds, what is peculiar to single workers.

Runtimes by kind and device model are `beliefs`; around them each worker, and each kind on each worker, has its own
deviation: a worker may be throttled, a kind may find its data there. All of it can be written down and outlives a
restart.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Reversible
from itertools import islice
from typing import TypeVar

from schedd.core.model import Belief, Task, WorkerId
from schedd.core.policies.beliefs import Beliefs, Cell, Guess
from schedd.core.stats import LEARNED_MAX, Learned, PerformanceStats, newest

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
#: Variance of what is peculiar to a worker, and to a kind on a worker, as parts of the logarithm of a runtime, before
#: anything was seen; the samples that this is worth, and the rows, the last seen, from which it is learned.
WORKER_VARIANCE = 0.25
WORKER_VARIANCE_SAMPLES = 20.0
WORKER_VARIANCE_MIN = 1e-6
PECULIAR_LOOKED_AT_MAX = 1000
#: What is so many standard deviations off is no chance, however alike all others are.
CHANCE_DEVIATIONS = 3.0
#: What was seen of a worker fades faster: it may be throttled any time.
WORKER_FADING = 0.9
#: A mean of logarithms beyond this was not written by us.
LOG_MAX = 60.0
#: Before the model of a cell of `learned`; the name of a worker has no line break.
MODEL_MARK = "\n"


class Tries:
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


class Peculiar:
    """How far runtimes were from what was believed of them: weighted mean of differences of logarithms."""

    __slots__ = ("total", "weight")

    def __init__(self) -> None:
        self.total = self.weight = 0.0

    def add(self, difference: float, weight: float) -> None:
        self.total = self.total * WORKER_FADING + difference * weight
        self.weight = self.weight * WORKER_FADING + weight

    def mean(self, noise: float, variance: float) -> float:
        """What is believed, where rows vary by so much: as far as noise does not explain it."""
        if not self.weight:
            return 0.0
        beyond = (self.total / self.weight) ** 2 - CHANCE_DEVIATIONS**2 * noise / self.weight
        return self.total / (self.weight + noise / max(variance, beyond))

    def doubt(self, noise: float, variance: float) -> float:
        """The standard deviation of what is believed."""
        return math.sqrt(noise * variance / (noise + self.weight * variance))


_UNSEEN = Peculiar()


class Experience:
    """Learns from attempts and says what is to be expected of the next."""

    def __init__(self, beliefs: Beliefs, learning_rate: float) -> None:
        self._beliefs = beliefs
        self._learning_rate = learning_rate
        self._pairs: OrderedDict[tuple[str, WorkerId], PerformanceStats] = OrderedDict()
        self._tries: OrderedDict[tuple[str, str], Tries] = OrderedDict()
        self._all_tries = Tries()
        self._worker_tries: OrderedDict[WorkerId, Tries] = OrderedDict()
        self._peculiar: OrderedDict[WorkerId, Peculiar] = OrderedDict()
        self._pair_peculiar: OrderedDict[tuple[str, WorkerId], Peculiar] = OrderedDict()
        #: By how much workers differ, and kinds on workers.
        self._variance = self._pair_variance = WORKER_VARIANCE

    def fit(self) -> None:
        """Learn by how much workers differ: where they are alike, what seems peculiar to one is chance."""
        noise = self._beliefs.plain.noise
        self._variance = _variance(self._peculiar.values(), noise)
        self._pair_variance = _variance(self._pair_peculiar.values(), noise)

    def expected_s(self, task: Task, worker_id: WorkerId, model: str) -> float:
        """Seconds that are expected until the task has succeeded there, failed attempts before it included."""
        return self.guess(task, worker_id, model)[1]

    def guess(self, task: Task, worker_id: WorkerId, model: str) -> tuple[Guess, float]:
        """What is believed of the task on the model, and the seconds that are expected on this worker."""
        kind = task.kind
        guess = self._beliefs.guess(kind, model, task.requirements.estimated_time)
        own = self._peculiar.get(worker_id, _UNSEEN)
        shift = own.mean(guess.noise, self._variance)
        if (pair := self._pair_peculiar.get((kind, worker_id))) is not None:
            shift += pair.mean(guess.noise, self._pair_variance)
        seconds = guess.mean_s * math.exp(max(-5.0, min(5.0, shift)))
        return guess, seconds + self.failures_s(kind, model, worker_id, seconds)

    def failures_s(self, kind: str, model: str, worker_id: WorkerId | None, seconds: float) -> float:
        """Seconds of failed attempts before a success that takes `seconds`; None: on any worker of the model."""
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

    def doubt(self, worker_id: WorkerId) -> float:
        """The standard deviation of what is believed to be peculiar to a worker, as a part of a logarithm."""
        return self._peculiar.get(worker_id, _UNSEEN).doubt(self._beliefs.plain.noise, self._variance)

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
        self._all_tries.add(seconds, success)
        _row(self._tries, (kind, model), Tries).add(seconds, success)
        _row(self._worker_tries, worker_id, Tries).add(seconds, success)
        if not success:
            return
        hint_s = task.requirements.estimated_time
        guess = self._beliefs.guess(kind, model, hint_s)
        weight = guess.noise / (guess.noise + guess.doubt)
        # Of a kind that nobody has seen, the first says nothing about its worker.
        is_known = self._beliefs.plain.knows(kind)
        difference = math.log(max(seconds, 1e-6)) - guess.log_s if is_known else 0.0
        own = _row(self._peculiar, worker_id, Peculiar)
        beyond = difference - own.mean(guess.noise, self._variance)
        own.add(difference, weight)
        _row(self._pair_peculiar, (kind, worker_id), Peculiar).add(beyond, weight)
        self._beliefs.add(kind, model, seconds, hint_s)

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
        rows = [(pair, row) for pair, row in islice(reversed(self._pair_peculiar.items()), LEARNED_MAX // 8)]
        rows += [(("", worker), row) for worker, row in islice(reversed(self._peculiar.items()), LEARNED_MAX // 8)]
        mark = MODEL_MARK * 3
        return [
            Learned(kind, mark + worker, row.total, 0.0, 1.0, row.weight, 0) for (kind, worker), row in reversed(rows)
        ]

    def recall(self, learned: Iterable[Learned]) -> None:
        """Go on from what was written down; what is damaged is left out."""
        for one in learned:
            if one.worker.startswith(MODEL_MARK * 3):
                self._recall_peculiar(one)
            elif one.worker.startswith(MODEL_MARK):
                self._recall_cell(one)
            else:
                stats = self._pairs[one.kind, WorkerId(one.worker)] = PerformanceStats(self._learning_rate)
                stats.recall(one)
        for logs in (self._beliefs.plain, self._beliefs.ratios):
            logs.fit(reversed(logs.cells))
        self.fit()

    def _recall_peculiar(self, one: Learned) -> None:
        worker_id = WorkerId(one.worker.removeprefix(MODEL_MARK * 3))
        if _is_sound(one):
            peculiar = Peculiar()
            peculiar.total, peculiar.weight = one.duration, one.weight
            if one.kind:
                self._pair_peculiar[one.kind, worker_id] = peculiar
            else:
                self._peculiar[worker_id] = peculiar

    def _recall_cell(self, one: Learned) -> None:
        is_ratio = one.worker.startswith(MODEL_MARK * 2)
        model = one.worker.removeprefix(MODEL_MARK * (2 if is_ratio else 1))
        logs = self._beliefs.ratios if is_ratio else self._beliefs.plain
        if not (_is_sound(one) and 0.0 <= one.square <= LOG_MAX**2 * one.weight):
            return
        logs.recall(one.kind, model, Cell(one.weight, one.duration, one.square))
        if not is_ratio and one.total:
            tries = self._tries[one.kind, model] = Tries()
            tries.count = float(one.total)
            tries.failed = one.total * (1.0 - one.success)


def _is_sound(one: Learned) -> bool:
    return 0.0 < one.weight < math.inf and abs(one.duration) <= LOG_MAX * one.weight


def _variance(rows: Reversible[Peculiar], noise: float) -> float:
    """By how much rows vary beyond what noise explains (by the moments; DerSimonian and Laird, 1986)."""
    spread, samples = WORKER_VARIANCE_SAMPLES * WORKER_VARIANCE, WORKER_VARIANCE_SAMPLES
    for row in islice(reversed(rows), PECULIAR_LOOKED_AT_MAX):
        if row.weight:
            spread += row.total * row.total / row.weight - noise
            samples += row.weight
    return max(spread / samples, WORKER_VARIANCE_MIN)


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
