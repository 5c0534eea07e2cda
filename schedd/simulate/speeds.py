"""How long a task would have run on another device model, by what its kind and the others have shown.

The logarithm of a runtime is taken as the sum of a part of its kind, a part of the device model, and a part of the pair
(two-way analysis of variance; the means of logarithms are geometric means, so that no outlier decides). The part of a
pair is shrunk by n / (n + 2) towards none, n being how often it was seen: a kind that never ran on a model is as much
faster there as the others are, one that often did is as fast as it was.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

#: Observations that the assumption "as fast there as other kinds" weighs.
PRIOR_WEIGHT = 2.0
#: Shorter runtimes count as this long: a logarithm of nothing says nothing.
RUNTIME_MIN_S = 1e-3
#: The parts are fitted in turn until none moves by more than this, or so many times.
TOLERANCE = 1e-9
ROUNDS_MAX = 200


class Speeds:
    """Learned once from all runtimes; `factor` answers."""

    def __init__(self, runtimes: Iterable[tuple[str, str, float]]) -> None:
        """runtimes: (kind, device model, seconds)."""
        sums: dict[tuple[str, str], list[float]] = {}
        for kind, model, seconds in runtimes:
            pair = sums.setdefault((kind, model), [0.0, 0.0])
            pair[0] += 1
            pair[1] += math.log(max(seconds, RUNTIME_MIN_S))
        #: By kind and model: how often it was seen, and the mean logarithm of its runtimes.
        self._pairs = {pair: (count, total / count) for pair, (count, total) in sums.items()}
        self._models: dict[str, float] = {}
        self._kinds: dict[str, float] = {}
        self._fit()

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
        seen = self._pairs.get((kind, model))
        if seen is None:
            return level
        count, mean = seen
        return level + count / (count + PRIOR_WEIGHT) * (mean - self._kinds[kind] - level)

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
        for pair, (count, mean) in self._pairs.items():
            of = sums.setdefault(pair[side], [0.0, 0.0])
            of[0] += count
            of[1] += count * (mean - other[pair[1 - side]])
        return {name: total / count for name, (count, total) in sums.items()}
