"""Asynchronous successive halving: who may train on, decided as results come in. Pure.

Li et al., "A System for Massively Parallel Hyperparameter Tuning", MLSys 2020 (arXiv:1810.05934). Every configuration
gets the first rung; a configuration goes on to the next one as soon as it is among the best 1/eta of those that have
finished its rung so far. Nobody waits for a rung to be complete.
"""

from __future__ import annotations

import math
import random
from typing import Any

#: Depths and widths that train in about the same time as the cheapest; deeper ones gain little on 8 × 8 images.
HIDDEN = ([16], [32], [64], [128], [256], [64, 32], [128, 64])


def sample_config(rng: random.Random) -> dict[str, Any]:
    """Draw a configuration; rates on a logarithmic scale."""
    return {
        "lr": 10 ** rng.uniform(-4, -0.7),
        "hidden": rng.choice(HIDDEN),
        "alpha": 10 ** rng.uniform(-6, 0),
        "batch": rng.choice([16, 32, 64, 128]),
        "activation": rng.choice(["relu", "tanh", "logistic"]),
        "solver": rng.choice(["adam", "sgd"]),
    }


class Asha:
    """The results of each rung, and who was promoted from it.

    eta: one in eta goes on. `rungs`: how many there are; nobody is promoted from the last.
    """

    def __init__(self, rungs: int, eta: int = 3) -> None:
        self.eta = eta
        self.results: list[dict[int, float]] = [{} for _ in range(rungs)]
        self.promoted: list[set[int]] = [set() for _ in range(rungs)]

    def record(self, trial: int, rung: int, score: float) -> list[int]:
        """Record a result and return the trials that may now leave this rung for the next, best first; often none.

        A trial that failed has the score NaN or minus infinity and is never promoted.
        """
        results = self.results[rung]
        results[trial] = -math.inf if math.isnan(score) else score
        if rung == len(self.results) - 1:
            return []
        best = sorted(results, key=lambda each: (-results[each], each))[: len(results) // self.eta]
        fresh = [each for each in best if each not in self.promoted[rung] and results[each] > -math.inf]
        self.promoted[rung].update(fresh)
        return fresh
