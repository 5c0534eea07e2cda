"""What each waiting class costs on each group of workers, at the prices of all that waits: who is best at what.

Prices are worked out from runtimes that are drawn from what is believed, in proportion to how unsure that is, so that
what is not known is tried while it may still pay (Thompson, 1933).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from schedd.core.policies.base import WaitingClass
from schedd.core.policies.beliefs import Beliefs
from schedd.core.policies.experience import Experience
from schedd.core.policies.groups import Groups, share
from schedd.core.policies.prices import solve

if TYPE_CHECKING:
    from schedd.core.queue import RequestClass

#: The part of the time to the end in which a task has to fit, or else it may be the last.
END_SHARE = 0.7
INF = math.inf
#: Seconds that a task of a class takes on each group: of the whole worker, drawn; and its runtime, as believed.
Times = tuple[list[float], list[float]]


class Market:
    """The prices as of the last refresh, and what follows from them."""

    def __init__(self, beliefs: Beliefs, experience: Experience, draw: Callable[[], float]) -> None:
        """draw: a number of the standard normal distribution."""
        self._beliefs = beliefs
        self._experience = experience
        self._draw = draw
        self._prices: list[float] = []
        #: Price of a second in a group, 1 in the mean.
        self._factors: list[float] = []
        self._orders: list[dict[RequestClass, float]] = []
        #: Seconds in which what waited then could be done.
        self.horizon_s = INF

    def factor(self, group: int) -> float:
        """The price of a second in a group, 1 in the mean."""
        return self._factors[group] if 0 <= group < len(self._factors) else 1.0

    def order(self, group: int) -> dict[RequestClass, float]:
        """The classes with what a task costs there, over what it costs on the best of the other groups; least first."""
        return self._orders[group] if 0 <= group < len(self._orders) else {}

    def settle(
        self, groups: Groups, waiting: Sequence[WaitingClass], demand: Sequence[float], exploration: float
    ) -> None:
        """Work out prices and orders anew. demand: tasks of each class, those that are expected to come included."""
        if not groups or not waiting:
            self._factors, self._orders = [], []
            self.horizon_s = 0.0
            return
        rows = [self._times(one, groups, exploration) for one in waiting]
        capacity = [group.capacity for group in groups]
        start = self._prices if len(self._prices) == len(groups) else None
        prices, self.horizon_s = solve(demand, [row for row, _ in rows], capacity, start)
        self._prices = prices
        total = sum(capacity)
        slowest_s = max((max((s for s in plain if s < INF), default=0.0) for _, plain in rows), default=0.0)
        is_ending = self.horizon_s * END_SHARE < slowest_s
        self._factors = [1.0] * len(groups) if is_ending else [price * total for price in prices]
        self._orders = [_order(number, prices, waiting, rows) for number in range(len(groups))]

    def _times(self, waiting: WaitingClass, groups: Groups, exploration: float) -> Times:
        request, head = waiting.request, waiting.head
        hint_s = self._beliefs.usual_hint_s(request.kind, head.requirements.estimated_time)
        drawn: dict[str, tuple[float, float]] = {}
        row, plain = [], []
        for group in groups:
            taken = min((share(need, group.sample) for need in request.needs), default=INF)
            if taken == INF:
                row.append(INF)
                plain.append(INF)
                continue
            if group.model not in drawn:
                guess = self._beliefs.guess(request.kind, group.model, hint_s)
                failures_s = guess.mean_s * self._experience.burden(request.kind, group.model, None)
                drawn[group.model] = (
                    guess.drawn_s(exploration * self._draw()) + failures_s,
                    guess.mean_s + failures_s,
                )
            mine, mean = drawn[group.model]
            row.append(taken * mine)
            plain.append(mean)
        return row, plain


def _order(
    number: int, prices: list[float], waiting: Sequence[WaitingClass], rows: Sequence[Times]
) -> dict[RequestClass, float]:
    if len(prices) < 2:
        return {}
    found = []
    for position, (one, (row, _)) in enumerate(zip(waiting, rows, strict=True)):
        if row[number] == INF:
            continue
        others = [p * s for g, (p, s) in enumerate(zip(prices, row, strict=True)) if g != number]
        found.append((prices[number] * row[number] / min(others) if min(others) else 0.0, position, one.request))
    found.sort(key=lambda entry: entry[:2])
    return {request: cost for cost, _, request in found}
