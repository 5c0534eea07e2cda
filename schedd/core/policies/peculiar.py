"""What is peculiar to one worker: how slow it is beside others of its model, and how often attempts fail there.

*Pace.* How much longer than believed attempts take there, as a natural logarithm: a level that drifts back to none, by
a filter of its noisy samples (Kalman, 1960). Most workers are like the others of their model, so little is made of few
samples. But one that is throttled, or no longer, jumps: where samples lie off to one side for too long (the cumulative
sums of Page, 1954), the filter begins anew from those.

*Failures.* An attempt fails by the doing of its worker, or of its kind on this model; either is enough. Which it was is
not seen. So each is blamed by how likely it was at work, given what was known ("noisy or"; Pearl, 1988; expectation
maximisation as data comes, Cappé and Moulines, 2009): a worker on which all kinds fail takes the blame, not the kinds.
"""

from __future__ import annotations

import math

#: Variance of how much slower or faster than others of its model a worker is, and a kind on it, of logarithms; and of
#: one of which it has turned out that it is not like the others.
WORKER_VARIANCE = 0.02
PAIR_VARIANCE = 0.01
JUMP_VARIANCE = 0.25
#: Where runtimes vary by more than a factor of two either way, no jump is told from them: what seems one is the mean of
#: their kinds that moves.
JUMP_NOISE_MAX = 0.5
#: How much of a deviation is still true at the next sample.
KEPT = 0.995
#: A sample that is farther off than this many standard deviations counts as if it were not.
SURPRISE_MAX = 3.0
#: Sums of surprises, less so much each; so far they come once in a thousand samples or more where nothing has changed.
SLACK = 0.5
ALARM = 5.0
#: Counts of attempts fade with each new one.
FADING = 0.98
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


class Pace:
    """The level of one worker, or of a kind on one: mean and variance of what is believed of it."""

    __slots__ = ("_anchor", "_down", "_up", "era", "first_variance", "mean", "variance")

    def __init__(self, variance: float = WORKER_VARIANCE, era: int = 0) -> None:
        self.first_variance = self.variance = variance
        self.mean = 0.0
        #: What jumps are measured from: the level at which it began; the mean would follow them.
        self._anchor = 0.0
        #: How often it has begun anew; of a kind on a worker, in which era of the worker.
        self.era = era
        self._up, self._down = _Side(), _Side()

    def add(self, value: float, noise: float) -> None:
        """Take in how far a sample was off; noise: the variance of that, were the level known."""
        self.mean *= KEPT
        self.variance += (1 - KEPT * KEPT) * (self.first_variance - self.variance)
        spread = self.variance + noise
        deviation = math.sqrt(spread)
        surprise = _clipped((value - self.mean) / deviation)
        gain = self.variance / spread
        self.mean += gain * surprise * deviation
        self.variance *= 1 - gain
        if noise > JUMP_NOISE_MAX:
            return
        off = _clipped((value - self._anchor) / deviation)
        for side, sign in ((self._up, 1), (self._down, -1)):
            if side.add(sign * off, value):
                self._begin_anew(side, noise)
                return

    def recall(self, mean: float, variance: float) -> None:
        """Go on from what was believed."""
        self.mean = self._anchor = mean
        self.variance = variance

    def _begin_anew(self, side: _Side, noise: float) -> None:
        precision = 1 / JUMP_VARIANCE + side.count / noise
        self.mean = self._anchor = side.total / noise / precision
        self.variance = 1 / precision
        self.era += 1
        self._up, self._down = _Side(), _Side()


def _clipped(surprise: float) -> float:
    return max(-SURPRISE_MAX, min(SURPRISE_MAX, surprise))


class Tries:
    """Fading counts of attempts, of those that failed, of the blame for these, and of what they took.

    share: of the runtimes of those blamed for, weighted by the blame.
    """

    __slots__ = ("blamed", "count", "failed", "share")

    def __init__(self) -> None:
        self.count = self.failed = self.blamed = self.share = 0.0

    def add(self, blame: float = 0.0, share: float = 0.0, *, failed: bool = False) -> None:
        """Count an attempt; where it failed, how much of that is blamed on this one, and its part of a runtime."""
        self.count = self.count * FADING + 1.0
        self.failed = self.failed * FADING + failed
        self.blamed = self.blamed * FADING + blame
        self.share = self.share * FADING + blame * share

    def recall(self, count: float, failed: float, share: float) -> None:
        """Go on from so many attempts of which this part failed, all by this one's doing."""
        self.count = count
        self.failed = self.blamed = count * failed
        self.share = self.blamed * share

    def rate(self, first: float, samples: float) -> float:
        """How likely it is to make an attempt fail, where `first` was believed as strongly as by so many attempts."""
        return (self.blamed + first * samples) / (self.count + samples)

    @property
    def usual_share(self) -> float:
        """The part of a runtime that a failure takes."""
        return (self.share + SHARE_FIRST * SHARE_SAMPLES) / (self.blamed + SHARE_SAMPLES)
