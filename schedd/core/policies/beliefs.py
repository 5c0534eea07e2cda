"""What is believed of runtimes, and how sure that is.

The logarithm of a runtime is taken for a sum: kind + device model + what is peculiar to the two together + noise, each
part normal around the part before it. So a kind that was seen on one model says something of the others, and a cell
(kind, model) with few samples is drawn to what its kind and its model say (empirical Bayes; Efron and Morris, "Stein's
Paradox in Statistics", 1977). What runs and has not ended counts, too, by what it must at least take: otherwise the
short ones, which end first, would tell the story (Tobin, 1958; imputed as in Dempster, Laird, Rubin, 1977).

Where tasks have an estimate of their user, the same is kept of the ratio of runtime to estimate. Which of the two is
used depends on which varies less.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable

from msgspec import Struct

#: Variances of the parts before anything was seen, of natural logarithms: a factor of 2 either way is usual between
#: kind and model, one of 7 between kinds.
CELL_VARIANCE = 0.5
MODEL_VARIANCE = 1.0
KIND_VARIANCE = 4.0
#: Standard deviation of the noise before anything was seen: of runtimes, and of their ratios to estimates.
PLAIN_NOISE = 1.0
RATIO_NOISE = 0.5
#: Samples that the first belief of a noise is worth.
NOISE_SAMPLES = 5.0
#: Of a mean of logarithms the noise makes a mean of seconds; more than this is not taken for noise.
NOISE_VARIANCE_MAX = 2.0
#: What was seen counts less with each new sample of its cell: about the last 200 of them count.
KEPT = 0.995
KINDS_MAX = 10_000
#: Shorter runtimes are all the same (seconds).
SHORTEST_S = 1e-6
SWEEPS = 2


class Cell(Struct):
    """Samples of a kind on a model: their (fading) number, sum and sum of squares; and what follows from them."""

    count: float = 0.0
    total: float = 0.0
    square: float = 0.0
    mean: float = 0.0
    variance: float = CELL_VARIANCE

    def add(self, value: float) -> None:
        self.count = self.count * KEPT + 1.0
        self.total = self.total * KEPT + value
        self.square = self.square * KEPT + value * value


class Censored(Struct, frozen=True):
    """An attempt that runs: the logarithm of its runtime is above `least`."""

    kind: str
    model: str
    least: float


class LogTimes:
    """Beliefs of one logarithm: of runtimes, or of their ratios to estimates."""

    def __init__(self, noise: float) -> None:
        self._first_variance = noise * noise
        #: Variance of the noise.
        self.noise = noise * noise
        self.cells: OrderedDict[str, dict[str, Cell]] = OrderedDict()
        self._kinds: dict[str, float] = {}
        self._models: dict[str, float] = {}
        self._base = 0.0

    def add(self, kind: str, model: str, value: float) -> None:
        """Take in a sample. What is believed of its cell is brought up to date at once, all else at the next `fit`."""
        row = self.cells.get(kind)
        if row is None:
            row = self.cells[kind] = {}
            if len(self.cells) > KINDS_MAX:
                self._kinds.pop(self.cells.popitem(last=False)[0], None)
        else:
            self.cells.move_to_end(kind)
        cell = row.get(model)
        if cell is None:
            cell = row[model] = Cell()
        cell.add(value)
        if kind not in self._kinds:
            self._kinds[kind] = value - self._models.get(model, 0.0)
        self._settle(kind, model, cell, cell.count, cell.total)

    def believe(self, kind: str, model: str) -> tuple[float, float]:
        """Mean and variance of what is believed of the mean of a cell."""
        row = self.cells.get(kind)
        cell = row.get(model) if row is not None else None
        if cell is not None:
            return cell.mean, cell.variance
        known = self._kinds.get(kind)
        model_part = self._models.get(model, 0.0)
        if known is None:
            return self._base + model_part, KIND_VARIANCE + CELL_VARIANCE
        return known + model_part, CELL_VARIANCE

    def knows(self, kind: str) -> bool:
        return kind in self._kinds

    def recall(self, kind: str, model: str, cell: Cell) -> None:
        """Go on from a cell that was seen before a restart; what follows from it, the next `fit` says."""
        self.cells.setdefault(kind, {})[model] = cell
        self._kinds.setdefault(kind, cell.total / cell.count)

    def fit(self, kinds: Iterable[str], running: Iterable[Censored] = ()) -> None:
        """Work out all parts anew from the samples of these kinds, and what runs. O(cells of these kinds)."""
        rows = {kind: self.cells[kind] for kind in kinds if kind in self.cells}
        self._fit_noise(rows)
        counts = {(kind, model): (c.count, c.total) for kind, row in rows.items() for model, c in row.items()}
        self._impute(counts, (one for one in running if one.kind in rows))
        for _ in range(SWEEPS):
            self._fit_parts(rows, counts)
        for (kind, model), (count, total) in counts.items():
            self._settle(kind, model, rows[kind].setdefault(model, Cell()), count, total)

    def _fit_noise(self, rows: dict[str, dict[str, Cell]]) -> None:
        spread, freedom = NOISE_SAMPLES * self._first_variance, NOISE_SAMPLES
        for row in rows.values():
            for cell in row.values():
                if cell.count > 1:
                    spread += max(0.0, cell.square - cell.total * cell.total / cell.count)
                    freedom += cell.count - 1
        if freedom > NOISE_SAMPLES:
            self.noise = max(spread / freedom, 1e-6)

    def _impute(self, counts: dict[tuple[str, str], tuple[float, float]], running: Iterable[Censored]) -> None:
        """Count what runs as what it is expected to be in the end, as far as it says anything."""
        noise = math.sqrt(self.noise)
        for one in running:
            mean, _ = self.believe(one.kind, one.model)
            z = (one.least - mean) / noise
            if z < -2:
                continue
            beyond = max(upper_tail(z), 1e-9)
            count, total = counts.get((one.kind, one.model), (0.0, 0.0))
            weight = 1.0 - beyond
            expected = mean + noise * max(z, density(z) / beyond)
            counts[one.kind, one.model] = (count + weight, total + weight * expected)

    def _fit_parts(self, rows: dict[str, dict[str, Cell]], counts: dict[tuple[str, str], tuple[float, float]]) -> None:
        noise, models, kinds = self.noise, self._models, self._kinds
        sums: dict[str, list[float]] = {}
        of_kind: dict[str, list[tuple[str, float, float]]] = {kind: [] for kind in rows}
        for (kind, model), (count, total) in counts.items():
            if count > 0:
                of_kind[kind].append((model, 1.0 / (CELL_VARIANCE + noise / count), total / count))
        for kind, cells in of_kind.items():
            weight = 1.0 / KIND_VARIANCE + sum(w for _, w, _ in cells)
            drawn = self._base / KIND_VARIANCE + sum(w * (mean - models.get(model, 0.0)) for model, w, mean in cells)
            kinds[kind] = drawn / weight
            for model, w, mean in cells:
                at = sums.setdefault(model, [0.0, 1.0 / MODEL_VARIANCE])
                at[0] += w * (mean - kinds[kind])
                at[1] += w
        if of_kind:
            self._base = sum(kinds[kind] for kind in of_kind) / len(of_kind)
        for model, (pull, weight) in sums.items():
            models[model] = pull / weight

    def _settle(self, kind: str, model: str, cell: Cell, count: float, total: float) -> None:
        prior = self._kinds[kind] + self._models.get(model, 0.0)
        precision = count / self.noise + 1.0 / CELL_VARIANCE
        cell.mean = (total / self.noise + prior / CELL_VARIANCE) / precision
        cell.variance = 1.0 / precision


class Guess(Struct, frozen=True):
    """A belief of one runtime: log seconds, variance of the belief, variance of the noise around it."""

    log_s: float
    doubt: float
    noise: float

    @property
    def mean_s(self) -> float:
        """Seconds in the mean."""
        return math.exp(min(60.0, self.log_s + min(self.noise, NOISE_VARIANCE_MAX) / 2))

    def drawn_s(self, deviations: float) -> float:
        """Seconds in the mean, were the belief off by so many of its standard deviations."""
        shift = deviations * math.sqrt(self.doubt)
        return math.exp(min(60.0, self.log_s + shift + min(self.noise, NOISE_VARIANCE_MAX) / 2))

    def at(self, deviations: float) -> float:
        """Seconds that are not exceeded but by so many standard deviations, doubt and noise together."""
        return math.exp(min(60.0, self.log_s + deviations * math.sqrt(self.doubt + self.noise)))

    def left_s(self, elapsed_s: float) -> float:
        """Seconds that are left in the mean of what has run for so long."""
        spread = math.sqrt(self.doubt + self.noise) or 1e-3
        at = (math.log(max(elapsed_s, SHORTEST_S)) - self.log_s) / spread
        beyond = max(upper_tail(at), 1e-6)
        mean = math.exp(min(60.0, self.log_s + spread * spread / 2))
        return max(0.0, mean * upper_tail(at - spread) / beyond - elapsed_s)


class Beliefs:
    """Runtimes by kind and model, with estimates of users and without; usual estimates of each kind."""

    def __init__(self) -> None:
        self.plain = LogTimes(PLAIN_NOISE)
        self.ratios = LogTimes(RATIO_NOISE)
        #: Mean of the logarithms of estimates, by kind.
        self._hints: OrderedDict[str, float] = OrderedDict()

    def add(self, kind: str, model: str, seconds: float, hint_s: float | None) -> None:
        """Take in the runtime of an attempt that succeeded."""
        value = math.log(max(seconds, SHORTEST_S))
        self.plain.add(kind, model, value)
        if hint_s:
            hint = math.log(max(hint_s, SHORTEST_S))
            self.ratios.add(kind, model, value - hint)
            self._hints[kind] = self._hints.pop(kind, hint) * 0.95 + hint * 0.05
            if len(self._hints) > KINDS_MAX:
                self._hints.popitem(last=False)

    def guess(self, kind: str, model: str, hint_s: float | None = None) -> Guess:
        """What is believed of the runtime of a task."""
        if hint_s and (self.ratios.noise <= self.plain.noise or not self.plain.knows(kind)):
            mean, variance = self.ratios.believe(kind, model)
            return Guess(mean + math.log(max(hint_s, SHORTEST_S)), variance, self.ratios.noise)
        mean, variance = self.plain.believe(kind, model)
        return Guess(mean, variance, self.plain.noise)

    def usual_hint_s(self, kind: str, otherwise: float | None) -> float | None:
        """The estimate that tasks of a kind usually have (seconds)."""
        known = self._hints.get(kind)
        return otherwise if known is None or not otherwise else math.exp(known)

    def fit(self, kinds: list[str], running: list[tuple[str, str, float, float | None]]) -> None:
        """Bring up to date what is believed of these kinds. running: kind, model, seconds so far, estimate."""
        logs = [(k, m, math.log(max(s, SHORTEST_S)), h) for k, m, s, h in running]
        self.plain.fit(kinds, (Censored(k, m, least) for k, m, least, _ in logs))
        self.ratios.fit(kinds, (Censored(k, m, least - math.log(max(h, SHORTEST_S))) for k, m, least, h in logs if h))


def density(z: float) -> float:
    """Of the standard normal distribution."""
    return math.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def upper_tail(z: float) -> float:
    """Probability of the standard normal distribution above z."""
    return 0.5 * math.erfc(z / math.sqrt(2))
