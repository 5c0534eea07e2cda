"""How long a task would have run on another device model, by what its kind and the others have shown.

The logarithm of a runtime is taken as the sum of a part of its kind, a part of the device model, and a part of the pair
(two-way analysis of variance; the means of logarithms are geometric means, so that no outlier decides). The part of a
pair is shrunk towards none by n / (n + s / t), n being how often it was seen, s the variance of runtimes within pairs
and t that between the parts of pairs (empirical Bayes, by the moments; DerSimonian and Laird, 1986). So a kind that
never ran on a model is as much faster there as the others are; one that often did is as fast as it was, the sooner so
the more alike its runtimes are and the more kinds differ.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from msgspec import Struct

#: Shorter runtimes count as this long: a logarithm of nothing says nothing.
RUNTIME_MIN_S = 1e-3
#: The parts are fitted in turn until none moves by more than this, or so many times.
TOLERANCE = 1e-9
ROUNDS_MAX = 200


class _Pair(Struct):
    """Of a kind on a model: how often it was seen, the sum of the logarithms of its runtimes, and of their squares."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    @property
    def mean(self) -> float:
        return self.total / self.count

    @property
    def spread(self) -> float:
        """The sum of squared differences from the mean."""
        return max(0.0, self.squares - self.total * self.mean)


class Speeds:
    """Learned once from all runtimes; `factor` answers."""

    def __init__(self, runtimes: Iterable[tuple[str, str, float]]) -> None:
        """runtimes: (kind, device model, seconds)."""
        #: By kind and model.
        self._pairs: dict[tuple[str, str], _Pair] = {}
        for kind, model, seconds in runtimes:
            pair = self._pairs.setdefault((kind, model), _Pair())
            logarithm = math.log(max(seconds, RUNTIME_MIN_S))
            pair.count += 1
            pair.total += logarithm
            pair.squares += logarithm * logarithm
        self._models: dict[str, float] = {}
        self._kinds: dict[str, float] = {}
        self._fit()
        #: Observations that "as fast there as other kinds" weighs; None: the parts of pairs are chance alone.
        self._prior = self._prior_weight()

    @property
    def models(self) -> list[str]:
        """The device models on which anything has run."""
        return list(self._models)

    def factor(self, kind: str, ran_on: str, would_run_on: str) -> float:
        """What a runtime of this kind on one model is to be multiplied by on another."""
        if ran_on == would_run_on:
            return 1.0
        return math.exp(self._level(kind, would_run_on) - self._level(kind, ran_on))

    def _level(self, kind: str, model: str) -> float:
        """The logarithm of how slow a model is for a kind; a model that was never seen is as the mean of all."""
        level = self._models.get(model)
        if level is None:
            return math.fsum(self._models.values()) / len(self._models) if self._models else 0.0
        pair = self._pairs.get((kind, model))
        if pair is None or self._prior is None:
            return level
        return level + pair.count / (pair.count + self._prior) * self._rest((kind, model), pair)

    def _rest(self, key: tuple[str, str], pair: _Pair) -> float:
        """What kind and model do not explain of a pair."""
        return pair.mean - self._kinds[key[0]] - self._models[key[1]]

    def _prior_weight(self) -> float | None:
        """s / t: the variance within pairs over that between their parts."""
        pairs = self._pairs.values()
        seen, freedom = sum(pair.count for pair in pairs), len(pairs) - len(self._kinds) - len(self._models) + 1
        if not seen or freedom < 1:
            return None  # one kind, or one model: nothing is left to explain
        within = math.fsum(pair.spread for pair in pairs) / max(1, seen - len(pairs))
        weighed = math.fsum(pair.count * self._rest(key, pair) ** 2 for key, pair in self._pairs.items())
        between = weighed - freedom * within
        scale = seen - sum(pair.count * pair.count for pair in pairs) / seen
        return within * scale / between if between > 0 else None

    def _fit(self) -> None:
        """Least squares, each side in turn with the other fixed."""
        self._models = dict.fromkeys((model for _, model in self._pairs), 0.0)
        for _ in range(ROUNDS_MAX):
            self._kinds = self._means(0, self._models)
            before, self._models = self._models, self._means(1, self._kinds)
            if all(abs(value - before[model]) <= TOLERANCE for model, value in self._models.items()):
                break
        self._kinds = self._means(0, self._models)

    def _means(self, side: int, other: dict[str, float]) -> dict[str, float]:
        """By kind (0) or model (1): the mean of what the other side leaves unexplained."""
        sums: dict[str, list[float]] = {}
        for key, pair in self._pairs.items():
            of = sums.setdefault(key[side], [0.0, 0.0])
            of[0] += pair.count
            of[1] += pair.total - pair.count * other[key[1 - side]]
        return {name: total / count for name, (count, total) in sums.items()}
