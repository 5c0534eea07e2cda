"""What kinds are like on all device models together: the models on which one kind is fast tell of the others.

A kind is a vector, a logarithm for each model, drawn from a normal distribution that all kinds share: its mean is what
a kind is usually like, its covariance says how kinds differ, and which models go together in that. Both are learned
from the kinds (multivariate empirical Bayes; Efron and Morris, "Empirical Bayes on vector observations", 1972, by the
steps of Dempster, Laird, Rubin, 1977). So a kind that was seen on one model is believed to be on the others what kinds
like it are there, as throughputs are completed from a few measurements in Quasar (Delimitrou and Kozyrakis, 2014).
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from statistics import fmean

from msgspec import Struct

#: Variances before anything was seen, of natural logarithms: a factor of 2 either way is usual between kind and model,
#: one of 7 between kinds.
CELL_VARIANCE = 0.5
KIND_VARIANCE = 4.0
#: Kinds that the first belief of the covariance is worth; and the belief that models are alike.
FIRST_KINDS = 4.0
ALIKE_KINDS = 1.0
#: Device models that are told apart; further ones are taken for one.
MODELS_MAX = 8
#: Kinds, the last met, from which it is learned what is usual.
KINDS_LOOKED_AT_MAX = 500


class Profile(Struct):
    """What is believed of a kind, by the number of the model: means, and their covariance."""

    means: list[float]
    spread: list[list[float]]

    def see(self, model: int, value: float, variance: float) -> float:
        """Take in that so much was seen on a model, with such an error. All models follow that go with it. O(models^2).

        The lists are made anew, so that copies may share them.
        """
        row = self.spread[model]
        off = value - self.means[model]
        known = 1.0 / (row[model] + variance)
        if len(row) == 1:  # the same as below, at a third of its cost
            [alone] = row
            gain = alone * known
            self.means, self.spread = [self.means[0] + gain * off], [[alone - gain * alone]]
            return off
        means, spread = [], []
        for mean, line, shared in zip(self.means, self.spread, row, strict=True):
            gain = shared * known
            means.append(mean + gain * off)
            spread.append([v - gain * r for v, r in zip(line, row, strict=True)])
        self.means, self.spread = means, spread
        return off

    def extend(self) -> None:
        """Make room for one more model: it is believed to be as the others are in the mean."""
        column = [fmean(row) for row in self.spread]
        self.means = [*self.means, fmean(self.means)]
        lines = [[*row, v] for row, v in zip(self.spread, column, strict=True)]
        self.spread = [*lines, [*column, fmean(column) + CELL_VARIANCE]]


class Profiles:
    """The profiles of all kinds, and what is usual."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        #: Of a kind that nobody has seen.
        self._usual = Profile([], [])
        self._kinds: dict[str, Profile] = {}

    def __contains__(self, kind: str) -> bool:
        return kind in self._kinds

    def forget(self, kind: str) -> None:
        """Forget a kind."""
        self._kinds.pop(kind, None)

    def believe(self, kind: str, model: str) -> tuple[float, float]:
        """Mean and variance of what is believed of a kind on a model."""
        profile = self._kinds.get(kind, self._usual)
        number = self._numbers.get(model)
        if number is None:
            number = self._number_of(model)
        if number is not None:
            return profile.means[number], profile.spread[number][number]
        if not profile.means:
            return 0.0, KIND_VARIANCE + CELL_VARIANCE
        return fmean(profile.means), fmean(map(fmean, profile.spread)) + CELL_VARIANCE

    def see(self, kind: str, model: str, value: float, variance: float) -> float | None:
        """Take in what was seen of a kind on a model, with such an error; tell how far off: None, of a new kind."""
        number = self._numbers.get(model)
        if number is None:
            number = self._meet(model, value)
        profile = self._kinds.get(kind)
        if profile is None:
            profile = self._kinds[kind] = Profile(self._usual.means, self._usual.spread)
            profile.see(number, value, variance)
            return None
        return profile.see(number, value, variance)

    def settle(self, kind: str, seen: Iterable[tuple[str, float, float]]) -> None:
        """Believe of a kind what is usual, and all that was seen of it: (model, mean, variance of its error)."""
        self._kinds[kind] = Profile(self._usual.means, self._usual.spread)
        for model, mean, variance in seen:
            self.see(kind, model, mean, variance)

    def learn_usual(self) -> None:
        """Learn from the profiles what is usual. O(kinds * models^2)."""
        profiles = list(islice(reversed(self._kinds.values()), KINDS_LOOKED_AT_MAX))
        if not profiles:
            return
        count, numbers = len(profiles), range(len(self._usual.means))
        sums = [sum(column) for column in zip(*(p.means for p in profiles), strict=True)]
        alike = fmean(sums) / count
        means = [(one + ALIKE_KINDS * alike) / (count + ALIKE_KINDS) for one in sums]
        spread = [[FIRST_KINDS * (KIND_VARIANCE + CELL_VARIANCE * (i == j)) for j in numbers] for i in numbers]
        for profile in profiles:
            off = [mine - usual for mine, usual in zip(profile.means, means, strict=True)]
            for line, row, mine in zip(spread, profile.spread, off, strict=True):
                for j in numbers:
                    line[j] += row[j] + mine * off[j]
        self._usual = Profile(means, [[v / (count + FIRST_KINDS) for v in line] for line in spread])

    def _number_of(self, model: str) -> int | None:
        full = len(self._numbers) == MODELS_MAX
        return self._numbers.get(model, MODELS_MAX - 1 if full else None)

    def _meet(self, model: str, first: float) -> int:
        number = self._number_of(model)
        if number is not None:
            return number
        if not self._numbers:
            self._usual = Profile([first], [[KIND_VARIANCE + CELL_VARIANCE]])
        else:
            for profile in (self._usual, *self._kinds.values()):
                profile.extend()
        number = self._numbers[model] = len(self._numbers)
        return number
