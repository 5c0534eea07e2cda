"""What is peculiar to one worker: how slow it is beside others of its model, and how often attempts fail there.

*Pace.* How much longer than believed attempts take there, as a natural logarithm: a mean of samples that fade, as far
as chance does not explain it. By how much workers differ is learned from all of them (empirical Bayes): where they are
alike, what one of them happened to get is not held against it. But one that is throttled, or no longer, jumps: where
samples lie off to one side for too long (the cumulative sums of Page, 1954), it begins anew from those.

*Failures.* An attempt fails by the doing of its worker, or of its kind on this model; either is enough. Which it was is
not seen. So each is blamed by how likely it was at work, given what was known ("noisy or"; Pearl, 1988; expectation
maximisation as data comes, Cappé and Moulines, 2009): a worker on which all kinds fail takes the blame, not the kinds.
What is learned of either later on shifts the blame for what has failed before.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import islice

from msgspec import Struct

#: Variance of how much slower or faster than others of its model a worker is, and a kind on it, of logarithms, before
#: anything was seen; and of one of which it has turned out that it is not like the others.
WORKER_VARIANCE = 0.02
PAIR_VARIANCE = 0.01
JUMP_VARIANCE = 0.25
#: Workers that the first variance is worth, the least that is learned, and from how many rows, the last seen.
SPREAD_ROWS = 3.0
VARIANCE_MIN = 1e-6
LOOKED_AT_MAX = 1000
#: A mean that is so many standard deviations off is no chance, however alike all others are.
CHANCE_DEVIATIONS = 3.0
_CHANCE = CHANCE_DEVIATIONS**2
#: Where runtimes vary by more than a factor of two either way, no jump is told from them: what seems one is the mean of
#: their kinds that moves.
JUMP_NOISE_MAX = 0.5
#: What was seen of a worker counts less with each new sample: about the last 50 count.
KEPT = 0.98
#: A sample that is farther off than this many standard deviations counts as if it were not.
SURPRISE_MAX = 3.0
#: Sums of surprises, less so much each; so far they come once in a thousand samples or more where nothing has changed.
SLACK = 0.5
ALARM = 5.0
#: Counts of attempts fade with each new one.
FADING = 0.98
#: Kinds on models of whose failures it is remembered on which worker they were, by worker; and what is as good as gone.
CASES_MAX = 32
CASE_MIN = 0.01
#: The part of a runtime that a failure takes, before any was seen, and what that is worth in failures.
SHARE_FIRST = 1.0
SHARE_SAMPLES = 1.0


class _Side:
    """Surprises to one side: their sum since it was last nothing, and the samples of that time."""

    __slots__ = ("count", "score", "total")

    def __init__(self) -> None:
        self.score = self.total = 0.0
        self.count = 0

    def add(self, surprise: float, value: float) -> bool:
        """Take in a surprise, to this side if above 0; True where it is no chance any more."""
        self.score += surprise - SLACK
        if self.score <= 0:
            self.score = self.total = 0.0
            self.count = 0
            return False
        self.total += value
        self.count += 1
        return self.score > ALARM


class Spread:
    """By how much workers differ, or kinds on workers, as far as they are not known to be unlike all others."""

    def __init__(self, variance: float = WORKER_VARIANCE) -> None:
        self._first = variance
        self._become(variance)

    def _become(self, variance: float) -> None:
        self.variance = variance
        #: What is believed of the level of one of which nothing was seen; see `Pace.believe`.
        self.unseen = (0.0, 1 / (1 / variance))

    def fit(self, paces: Iterable[Pace]) -> None:
        """Learn from these, the last seen first, how far means are apart beyond what chance explains.

        By the moments (DerSimonian and Laird, 1986), less their standard error were all alike; each row counts by how
        well it is known.
        """
        total, rows, chance = SPREAD_ROWS * self._first, SPREAD_ROWS, 0.0
        for pace in islice(paces, LOOKED_AT_MAX):
            if pace.weight:
                known = self._first / (self._first + 1 / pace.weight)
                counts = known * known * (1.0 - pace.unlike)
                total += counts * ((pace.total / pace.weight) ** 2 - 1 / pace.weight)
                rows += counts
                chance += 2 * (counts / pace.weight) ** 2
        self._become(max((total - math.sqrt(chance)) / rows, VARIANCE_MIN))


class Pace:
    """The level of one worker, or of a kind on one: what is believed of it."""

    __slots__ = ("_anchor", "_believed", "_down", "_spread", "_up", "_usual", "era", "total", "unlike", "weight")

    def __init__(self, spread: Spread | None = None, era: int = 0) -> None:
        self._spread = spread = spread or Spread()
        #: Sums over samples, which fade: of how far each was off over the variance of its noise, and of one over that.
        self.total = self.weight = 0.0
        #: 1 where it has just turned out to be unlike the others; that fades until it has shown again that it is.
        self.unlike = 0.0
        #: What jumps are measured from: the level at which it began; the mean would follow them.
        self._anchor = 0.0
        #: How often it has begun anew; of a kind on a worker, in which era of the worker.
        self.era = era
        #: Made once there is something to note: most rows have none.
        self._up: _Side | None = None
        self._down: _Side | None = None
        #: What is believed, and the variance of the levels of all for which that was worked out: 0, not at all yet.
        self._believed = spread.unseen
        self._usual = spread.variance

    @property
    def mean(self) -> float:
        """What is believed of the level."""
        return self.believe()[0]

    @property
    def variance(self) -> float:
        """By how much that may be off, squared."""
        return self.believe()[1]

    def believe(self) -> tuple[float, float]:
        """Mean and variance of what is believed of the level."""
        usual = self._spread.variance
        if self._usual == usual:
            return self._believed
        total, weight = self.total, self.weight
        # The variance of the levels of such as this one.
        prior = usual + self.unlike * (JUMP_VARIANCE - usual) if self.unlike and usual < JUMP_VARIANCE else usual
        if weight:
            beyond_chance = (total * total / weight - _CHANCE) / weight
            prior = beyond_chance if beyond_chance > prior else prior
        variance = 1 / (weight + 1 / prior)
        self._believed, self._usual = (total * variance, variance), usual
        return self._believed

    def add(self, value: float, noise: float) -> None:
        """Take in how far a sample was off; noise: the variance of that, were the level known."""
        mean, variance = self._believed if self._usual == self._spread.variance else self.believe()
        deviation = math.sqrt(variance + noise)
        farthest = SURPRISE_MAX * deviation
        off = value - mean
        seen = value if -farthest <= off <= farthest else mean + math.copysign(farthest, off)
        self.total = self.total * KEPT + seen / noise
        self.weight = self.weight * KEPT + 1 / noise
        self.unlike *= KEPT
        self._usual = 0.0
        if noise > JUMP_NOISE_MAX:
            return
        off = (value - self._anchor) / deviation
        if self._up is not None or self._down is not None or not -SLACK <= off <= SLACK:
            self._watch(off, value, noise)

    def _watch(self, off: float, value: float, noise: float) -> None:
        """Begin anew where samples have been off to one side for too long."""
        off = SURPRISE_MAX if off > SURPRISE_MAX else -SURPRISE_MAX if off < -SURPRISE_MAX else off
        if off > SLACK or self._up is not None:
            up = self._up = self._up or _Side()
            if up.add(off, value):
                self._begin_anew(up, noise)
                return
        if off < -SLACK or self._down is not None:
            down = self._down = self._down or _Side()
            if down.add(-off, value):
                self._begin_anew(down, noise)

    def recall(self, total: float, weight: float, unlike: float) -> None:
        """Go on from what was seen before."""
        self.total, self.weight, self.unlike, self._usual = total, weight, unlike, 0.0
        self._anchor = self.mean if self.era else 0.0

    def _begin_anew(self, side: _Side, noise: float) -> None:
        self.total, self.weight, self.unlike, self._usual = side.total / noise, side.count / noise, 1.0, 0.0
        self._anchor = self.mean
        self.era += 1
        self._up = self._down = None


class Tries:
    """Fading counts of attempts, of those that failed, of the blame for these, and of what they took.

    share: of the runtimes of those blamed for, weighted by the blame.
    """

    __slots__ = ("blamed", "count", "failed", "share")

    def __init__(self, count: float = 0.0, failed: float = 0.0, blamed: float = 0.0, share: float = 0.0) -> None:
        self.count, self.failed, self.blamed, self.share = count, failed, blamed, share

    def add(self, blame: float = 0.0, share: float = 0.0, *, failed: bool = False) -> None:
        """Count an attempt; where it failed, how much of that is blamed on this one, and its part of a runtime."""
        self.count = self.count * FADING + 1.0
        self.failed = self.failed * FADING + failed
        self.blamed = self.blamed * FADING + blame
        self.share = self.share * FADING + blame * share

    def note_success(self) -> None:
        """Count an attempt that did not fail: the same as `add()`, at a fraction of its cost."""
        self.count = self.count * FADING + 1.0
        if self.failed:
            self.failed *= FADING
            self.blamed *= FADING
            self.share *= FADING

    def rate(self, first: float, samples: float) -> float:
        """How likely it is to make an attempt fail, where `first` was believed as strongly as by so many attempts."""
        return (self.blamed + first * samples) / (self.count + samples)

    def shift_blame(self, more: float) -> None:
        """Take more of the blame for what has failed, or less."""
        share = self.share / self.blamed if self.blamed else 0.0
        self.blamed = max(0.0, min(self.failed, self.blamed + more))
        self.share = share * self.blamed

    @property
    def usual_share(self) -> float:
        """The part of a runtime that a failure takes."""
        return (self.share + SHARE_FIRST * SHARE_SAMPLES) / (self.blamed + SHARE_SAMPLES)


class Case(Struct):
    """Failures of a kind on a worker: their fading number, and how far each of the two is blamed for them."""

    count: float = 0.0
    by_kind: float = 0.0
    by_worker: float = 0.0

    def add(self, by_kind: float, by_worker: float) -> None:
        """Take in one more."""
        self.count += 1.0
        self.by_kind += (by_kind - self.by_kind) / self.count
        self.by_worker += (by_worker - self.by_worker) / self.count


class WorkerTries(Tries):
    """The same of a worker, and what it was that failed there: by kind and model, the last ones."""

    __slots__ = ("cases",)

    def __init__(self, count: float = 0.0, failed: float = 0.0, blamed: float = 0.0, share: float = 0.0) -> None:
        super().__init__(count, failed, blamed, share)
        self.cases: dict[tuple[str, str], Case] = {}

    def add(self, blame: float = 0.0, share: float = 0.0, *, failed: bool = False) -> None:
        super().add(blame, share, failed=failed)
        self._fade_cases()

    def note_success(self) -> None:
        super().note_success()
        if self.cases:
            self._fade_cases()

    def _fade_cases(self) -> None:
        for case in self.cases.values():
            case.count *= FADING
        self.cases = {key: case for key, case in self.cases.items() if case.count > CASE_MIN}

    def note(self, key: tuple[str, str], by_kind: float, by_worker: float) -> None:
        """Remember a failure, and who was blamed for how much of it."""
        case = self.cases.pop(key, None) or Case()
        case.add(by_kind, by_worker)
        self.cases[key] = case
        if len(self.cases) > CASES_MAX:
            del self.cases[next(iter(self.cases))]
