"""What each waiting class costs on each group of workers: who is best at what.

A task costs the seconds that it takes at the price of a second there (`prices`). And where it may outlast all else that
waits and runs, each second of that is one of the whole cluster, which has nothing else to do then: so what is long or
may be does not go to a slow worker towards the end.

Prices are worked out from runtimes that are drawn from what is believed, in proportion to how unsure that is, so that
what is not known is tried while it may still pay (Thompson, 1933).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from msgspec import Struct

from schedd.core.policies.base import WaitingClass
from schedd.core.policies.beliefs import Beliefs, Guess
from schedd.core.policies.experience import Experience
from schedd.core.policies.groups import Groups
from schedd.core.policies.prices import solve

if TYPE_CHECKING:
    from schedd.core.classes import RequestClass

INF = math.inf


class Stay(Struct, frozen=True):
    """A task of a class on a group: seconds of the whole worker, drawn from what is believed; its runtime, believed."""

    drawn_s: float
    runtime_s: float
    guess: Guess


class Market:
    """The prices as of the last refresh, and what follows from them."""

    def __init__(self, beliefs: Beliefs, experience: Experience, draw: Callable[[], float]) -> None:
        """draw: a number of the standard normal distribution."""
        self._beliefs = beliefs
        self._experience = experience
        self._draw = draw
        #: By how much the runtimes of a kind on a model are taken to be off, in what the belief's deviation is.
        self._draws: dict[tuple[str, str], float] = {}
        self._prices: list[float] = []
        self._orders: list[dict[RequestClass, float]] = []
        #: Seconds in which what waited at the last refresh could be done, and in which all would have ended.
        self.horizon_s = self.end_s = INF

    def price(self, group: int) -> float:
        """The price of a second in a group; one of the whole cluster costs 1."""
        return self._prices[group] if 0 <= group < len(self._prices) else 1.0

    def order(self, group: int) -> dict[RequestClass, float]:
        """The classes with what a task costs there, over what it costs on the best of the other groups; least first."""
        return self._orders[group] if 0 <= group < len(self._orders) else {}

    def draw(self) -> None:
        """Draw from the beliefs anew, from now on: once for all tasks of a kind on a model."""
        self._draws.clear()

    def settle(
        self,
        groups: Groups,
        waiting: Sequence[WaitingClass],
        demand: Sequence[float],
        left_s: float,
        exploration: float,
    ) -> None:
        """Work out prices and orders anew.

        demand: tasks of each class, those that are expected to come included. left_s: seconds in which what runs will
        have ended, the mean of the workers.
        """
        self._orders = []
        self.horizon_s, self.end_s = 0.0, left_s
        if len(self._prices) != len(groups):
            self._prices = []
        if not groups or not waiting:
            return
        self.draw()
        hints = [self._beliefs.usual_hint_s(w.request.kind, w.head.requirements.estimated_time) for w in waiting]
        stays = [self.stays(w.request, hint_s, groups, exploration) for w, hint_s in zip(waiting, hints, strict=True)]
        seconds = [[stay.drawn_s if stay is not None else INF for stay in row] for row in stays]
        capacity = [group.capacity for group in groups]
        self._prices, self.horizon_s = solve(demand, seconds, capacity, self._prices or None)
        self.end_s = self.horizon_s + left_s
        if len(groups) > 1:
            costs = [[self._cost(stay, price) for stay, price in zip(row, self._prices, strict=True)] for row in stays]
            self._orders = [_order(number, waiting, costs) for number in range(len(groups))]

    def stays(
        self, request: RequestClass, hint_s: float | None, groups: Groups, exploration: float
    ) -> list[Stay | None]:
        """Tell what a task of the class takes on each group, None where it does not fit. hint_s: what its user says."""
        kind = request.kind
        drawn: dict[str, Stay] = {}
        row: list[Stay | None] = []
        for group in groups:
            taken = group.share(request.needs)
            if taken == INF:
                row.append(None)
                continue
            if group.model not in drawn:
                guess = self._beliefs.guess(kind, group.model, hint_s)
                failures_s = guess.mean_s * self._experience.burden(kind, group.model, None)
                # Who only asks draws nothing: decisions must not depend on it.
                deviations = exploration * self._drawn(kind, group.model) if exploration else 0.0
                drawn[group.model] = Stay(guess.drawn_s(deviations) + failures_s, guess.mean_s + failures_s, guess)
            alone = drawn[group.model]
            row.append(Stay(taken * alone.drawn_s, alone.runtime_s, alone.guess))
        return row

    def _cost(self, stay: Stay | None, price: float) -> float:
        if stay is None:
            return INF
        return price * stay.drawn_s + stay.guess.beyond_s(self.end_s, stay.runtime_s / stay.guess.mean_s)

    def _drawn(self, kind: str, model: str) -> float:
        found = self._draws.get((kind, model))
        if found is None:
            found = self._draws[kind, model] = self._draw()
        return found


def _order(number: int, waiting: Sequence[WaitingClass], costs: Sequence[Sequence[float]]) -> dict[RequestClass, float]:
    found = []
    for position, (one, row) in enumerate(zip(waiting, costs, strict=True)):
        if row[number] < INF:
            others = min(cost for group, cost in enumerate(row) if group != number)
            found.append((row[number] / others if others else 0.0, position, one.request))
    found.sort(key=lambda entry: entry[:2])
    return {request: cost for cost, _, request in found}
