"""What a second on each group of workers is worth, by the linear program of who should do what.

The program: of the waiting work W_k of each class, shares go to groups of workers so that all is done as early as can
be, min T with sum_k x_kg t_kg <= T c_g and sum_g x_kg = W_k. Its dual has a price for a second on each group: maximise
sum_k W_k min_g (p_g t_kg) with sum_g c_g p_g = 1. There are few groups, so the dual is solved where it is small: by
multiplicative steps along its subgradient (Plotkin, Shmoys, Tardos, "Fast Approximation Algorithms for Fractional
Packing and Covering Problems", 1995). It needs no library, starts from the last prices, and comes within a thousandth
of the simplex method in some hundred steps; a placement is not better for more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

#: Steps from no prices, and from those of the last time.
STEPS_COLD = 200
STEPS_WARM = 40
#: Products of a class and a group that one solution looks at, about: 10 ms.
PRODUCTS_MAX = 60_000
STEP_FIRST = 0.3
STEP_DECAY = 0.1
#: No price begins below this part of the highest: steps lead back from there when what nobody wanted is wanted.
PRICE_MIN = 1e-6
INF = math.inf


def solve(
    work: Sequence[float], seconds: Sequence[Sequence[float]], capacity: Sequence[float], start: Sequence[float] | None
) -> tuple[list[float], float]:
    """Return the price of a second on each group, and the seconds in which all could be done at the best.

    work: tasks of each class. seconds: of one task of the class on the group, times the slots of the group that it
    takes; infinite where it cannot run. capacity: slots of each group. A class that runs nowhere counts nothing.
    O(steps * classes * groups).
    """
    rows = [(w, times) for w, times in zip(work, seconds, strict=True) if w > 0 and min(times) < INF]
    groups = range(len(capacity))
    least = PRICE_MIN * max(start) if start else 0.0
    prices = _normal([max(p, least) for p in start] if start else [1.0] * len(capacity), capacity)
    if not rows:
        return prices, 0.0
    steps = STEPS_WARM if start else STEPS_COLD
    steps = max(5, min(steps, PRODUCTS_MAX // (len(rows) * len(capacity))))
    best, best_value = prices, -1.0
    for step in range(steps):
        value, load = 0.0, [0.0] * len(capacity)
        for w, times in rows:
            cheapest, cost = 0, INF
            for g in groups:
                if prices[g] * times[g] < cost:
                    cheapest, cost = g, prices[g] * times[g]
            value += w * cost
            load[cheapest] += w * times[cheapest]
        if value > best_value:
            best, best_value = prices, value
        if value <= 0:
            break
        size = STEP_FIRST / (1 + step * STEP_DECAY)
        pulls = [size * (load[g] / (capacity[g] * value) - 1) if capacity[g] else 0.0 for g in groups]
        prices = _normal([p * math.exp(max(-1.0, min(1.0, x))) for p, x in zip(prices, pulls, strict=True)], capacity)
    return best, best_value


def _normal(prices: list[float], capacity: Sequence[float]) -> list[float]:
    """Scale prices so that all capacity together costs 1 a second."""
    total = sum(c * p for c, p in zip(capacity, prices, strict=True))
    return [p / total for p in prices] if total > 0 else prices
