"""What is believed of runtimes, and how sure that is.

The logarithm of a runtime is what its kind takes on the device model (`profiles`), and noise. What runs and has not
ended counts, too, by what it must at least take: otherwise the short ones, which end first, would tell the story
(Tobin, 1958; imputed as in Dempster, Laird, Rubin, 1977). How far runtimes fall from what is believed of them is kept
as they fell: a few times the mean may be likely or out of the question, and no mean and variance tell.

Where tasks have an estimate of their user, the same is kept of the ratio of runtime to estimate. Which of the two is
used depends on which varies less.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Iterable
from itertools import islice
from statistics import NormalDist, fmean

from msgspec import Struct
from msgspec.structs import force_setattr

from schedd.core.policies.profiles import Profiles

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
#: Kinds that one `fit` looks at; of the others there is what `add` has made of it.
KINDS_FITTED_MAX = 500
#: Shorter runtimes are all the same (seconds).
SHORTEST_S = 1e-6
SWEEPS = 2
#: Deviations of runtimes that are remembered, the last ones, and in how many quantiles they are told.
DEVIATIONS_MAX = 200
QUANTILES = 20
#: Guesses that are kept of a kind: each estimate has its own.
GUESSES_MAX = 1000


class Cell(Struct):
    """Samples of a kind on a model: their (fading) number, sum and sum of squares."""

    count: float = 0.0
    total: float = 0.0
    square: float = 0.0

    def add(self, value: float) -> None:
        self.count = self.count * KEPT + 1.0
        self.total = self.total * KEPT + value
        self.square = self.square * KEPT + value * value


class Censored(Struct, frozen=True):
    """An attempt that runs: the logarithm of its runtime is above `least`."""

    kind: str
    model: str
    least: float


#: Of a cell: number of samples, and their sum.
Sums = tuple[float, float]


class LogTimes:
    """Beliefs of one logarithm: of runtimes, or of their ratios to estimates."""

    def __init__(self, noise: float) -> None:
        self._first_variance = noise * noise
        #: Variance of the noise.
        self.noise = noise * noise
        #: How far the last samples fell from what was believed of them; taken for normal before there are any.
        usual = NormalDist(0.0, noise)
        self._deviations = deque((usual.inv_cdf((i + 0.5) / QUANTILES) for i in range(QUANTILES)), DEVIATIONS_MAX)
        #: The same as what runtimes are, in their mean: quantiles, least first.
        self.shape = _shape(self._deviations)
        self.cells: OrderedDict[str, dict[str, Cell]] = OrderedDict()
        self._profiles = Profiles()

    def add(self, kind: str, model: str, value: float) -> None:
        """Take in a sample. What is believed of its kind is brought up to date at once, all else at the next `fit`."""
        row = self.cells.get(kind)
        if row is None:
            row = self.cells[kind] = {}
            if len(self.cells) > KINDS_MAX:
                self._profiles.forget(self.cells.popitem(last=False)[0])
        else:
            self.cells.move_to_end(kind)
        if model not in row:
            row[model] = Cell()
        row[model].add(value)
        off = self._profiles.see(kind, model, value, self.noise)
        if off is not None:
            self._deviations.append(off)

    def believe(self, kind: str, model: str) -> tuple[float, float]:
        """Mean and variance of what is believed of the mean of a cell."""
        return self._profiles.believe(kind, model)

    def knows(self, kind: str) -> bool:
        return kind in self.cells

    def recall(self, kind: str, model: str, cell: Cell) -> None:
        """Go on from a cell that was seen before a restart; what follows from it, the next `fit` says."""
        self.cells.setdefault(kind, {})[model] = cell
        self._profiles.see(kind, model, cell.total / cell.count, self.noise / cell.count)

    def fit(self, kinds: Iterable[str], running: Iterable[Censored] = ()) -> None:
        """Work out all anew from the samples of these kinds, and what runs. O(kinds * models^3), bounded."""
        known = (kind for kind in kinds if kind in self.cells)
        rows = {kind: self.cells[kind] for kind in islice(known, KINDS_FITTED_MAX)}
        self._fit_noise(rows)
        sums = {kind: {m: (c.count, c.total) for m, c in row.items()} for kind, row in rows.items()}
        self._impute(sums, (one for one in running if one.kind in rows))
        for _ in range(SWEEPS):
            for kind, row in sums.items():
                seen = ((m, total / count, self.noise / count) for m, (count, total) in row.items() if count > 0)
                self._profiles.settle(kind, seen)
            self._profiles.learn_usual()

    def _fit_noise(self, rows: dict[str, dict[str, Cell]]) -> None:
        spread, freedom = NOISE_SAMPLES * self._first_variance, NOISE_SAMPLES
        for row in rows.values():
            for cell in row.values():
                if cell.count > 1:
                    spread += max(0.0, cell.square - cell.total * cell.total / cell.count)
                    freedom += cell.count - 1
        if freedom > NOISE_SAMPLES:
            self.noise = max(spread / freedom, 1e-6)
        self.shape = _shape(self._deviations)

    def _impute(self, sums: dict[str, dict[str, Sums]], running: Iterable[Censored]) -> None:
        """Count what runs as what it is expected to be in the end, as far as it says anything."""
        noise = math.sqrt(self.noise)
        for one in running:
            mean, _ = self.believe(one.kind, one.model)
            z = (one.least - mean) / noise
            if z < -2:
                continue
            beyond = max(upper_tail(z), 1e-9)
            row = sums[one.kind]
            count, total = row.get(one.model, (0.0, 0.0))
            weight = 1.0 - beyond
            expected = mean + noise * max(z, density(z) / beyond)
            row[one.model] = (count + weight, total + weight * expected)


#: Standard deviations beyond which nothing that is as it was taken for runs: one of thirty thousand does.
LATE_DEVIATIONS = 4.0


def _shape(deviations: Iterable[float]) -> tuple[float, ...]:
    times = [math.exp(min(60.0, one)) for one in sorted(deviations)]
    found = [times[int((i + 0.5) * len(times) / QUANTILES)] for i in range(QUANTILES)]
    mean = fmean(found)
    return tuple(one / mean for one in found)


class Guess(Struct, frozen=True):
    """A belief of one runtime: log seconds, variance of the belief, variance of the noise around it."""

    log_s: float
    doubt: float
    noise: float
    #: What runtimes are, in their mean: quantiles, least first.
    shape: tuple[float, ...] = (1.0,)
    #: Seconds in the mean.
    mean_s: float = 0.0

    def __post_init__(self) -> None:
        force_setattr(self, "mean_s", math.exp(min(60.0, self.log_s + min(self.noise, NOISE_VARIANCE_MAX) / 2)))

    def drawn_s(self, deviations: float) -> float:
        """Seconds in the mean, were the belief off by so many of its standard deviations."""
        shift = deviations * math.sqrt(self.doubt)
        return math.exp(min(60.0, self.log_s + shift + min(self.noise, NOISE_VARIANCE_MAX) / 2))

    def at(self, deviations: float) -> float:
        """Seconds that are not exceeded but by so many standard deviations, doubt and noise together."""
        return math.exp(min(60.0, self.log_s + deviations * math.sqrt(self.doubt + self.noise)))

    def beyond_s(self, limit_s: float, times: float = 1.0) -> float:
        """Seconds in the mean by which so many times the runtime is above a limit; 0 where it never was."""
        scale, shape = times * self.mean_s, self.shape
        if scale * shape[-1] <= limit_s:
            return 0.0
        if scale * shape[0] >= limit_s:
            return scale - limit_s
        return sum(max(0.0, scale * one - limit_s) for one in shape) / len(shape)

    def left_s(self, elapsed_s: float) -> float:
        """Seconds that are left in the mean of what has run for so long.

        What should have ended long ago is not what it was taken for: it is given as long again as it is late.
        """
        spread = math.sqrt(self.doubt + self.noise) or 1e-3
        at = (math.log(max(elapsed_s, SHORTEST_S)) - self.log_s) / spread
        if at > LATE_DEVIATIONS:
            return elapsed_s - math.exp(min(60.0, self.log_s + LATE_DEVIATIONS * spread))
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
        #: What was asked for since what it follows from has changed: by kind, then model and estimate.
        self._guesses: dict[str, dict[tuple[str, float | None], Guess]] = {}

    def add(self, kind: str, model: str, seconds: float, hint_s: float | None) -> None:
        """Take in the runtime of an attempt that succeeded."""
        value = math.log(max(seconds, SHORTEST_S))
        if model in self.plain.cells.get(kind, ()):
            self._guesses.pop(kind, None)
        else:
            self._guesses.clear()
        self.plain.add(kind, model, value)
        if hint_s:
            hint = math.log(max(hint_s, SHORTEST_S))
            self.ratios.add(kind, model, value - hint)
            self._hints[kind] = self._hints.pop(kind, hint) * 0.95 + hint * 0.05
            if len(self._hints) > KINDS_MAX:
                self._hints.popitem(last=False)

    def guess(self, kind: str, model: str, hint_s: float | None = None) -> Guess:
        """What is believed of the runtime of a task."""
        known = self._guesses.get(kind)
        if known is None:
            if len(self._guesses) >= KINDS_MAX:
                self._guesses.clear()
            known = self._guesses[kind] = {}
        found = known.get((model, hint_s))
        if found is None:
            if len(known) >= GUESSES_MAX:
                known.clear()
            found = known[model, hint_s] = self._work_out(kind, model, hint_s)
        return found

    def _work_out(self, kind: str, model: str, hint_s: float | None) -> Guess:
        log_s, doubt, logs = self.believe(kind, model, hint_s)
        return Guess(log_s, doubt, logs.noise, logs.shape)

    def believe(self, kind: str, model: str, hint_s: float | None) -> tuple[float, float, LogTimes]:
        """Mean and variance of what is believed of the logarithm of a runtime, and to which of the two it belongs."""
        if hint_s and (self.ratios.noise <= self.plain.noise or not self.plain.knows(kind)):
            mean, variance = self.ratios.believe(kind, model)
            return mean + math.log(max(hint_s, SHORTEST_S)), variance, self.ratios
        mean, variance = self.plain.believe(kind, model)
        return mean, variance, self.plain

    def usual_hint_s(self, kind: str, otherwise: float | None) -> float | None:
        """The estimate that tasks of a kind usually have (seconds)."""
        known = self._hints.get(kind)
        return otherwise if known is None or not otherwise else math.exp(known)

    def fit(self, kinds: list[str], running: list[tuple[str, str, float, float | None]]) -> None:
        """Bring up to date what is believed of these kinds. running: kind, model, seconds so far, estimate."""
        logs = [(k, m, math.log(max(s, SHORTEST_S)), h) for k, m, s, h in running]
        self.plain.fit(kinds, (Censored(k, m, least) for k, m, least, _ in logs))
        self.ratios.fit(kinds, (Censored(k, m, least - math.log(max(h, SHORTEST_S))) for k, m, least, h in logs if h))
        self._guesses.clear()

    def recall(self, kind: str, model: str, cell: Cell, *, is_ratio: bool) -> None:
        """Go on from a cell that was seen before a restart; what follows from it, `fit_recalled` says."""
        (self.ratios if is_ratio else self.plain).recall(kind, model, cell)

    def fit_recalled(self) -> None:
        """Bring up to date what is believed of all that was recalled."""
        for logs in (self.plain, self.ratios):
            logs.fit(reversed(logs.cells))
        self._guesses.clear()


def density(z: float) -> float:
    """Of the standard normal distribution."""
    return math.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def upper_tail(z: float) -> float:
    """Probability of the standard normal distribution above z."""
    return 0.5 * math.erfc(z / math.sqrt(2))
