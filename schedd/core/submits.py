"""Which submits were admitted, and as which tasks: one that is sent again since its answer was lost is not done twice.

A client numbers its submits and says with each how far it has heard of those before. So what is remembered of a client
is what it may still send again: a few submits while it works, one when it is gone. Of clients that are gone the oldest
are forgotten beyond a bound.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import cast

from msgspec import Struct

from schedd.core.effects import TasksAdmitted
from schedd.core.model import Instant, TaskId

#: Submits that are remembered: with twenty new clients a second that is forty minutes.
SUBMITS_MAX = 50_000
#: What a client may call itself, and how far it may count.
CLIENT_MAX = 64
NUMBER_MAX = 1 << 53


class Admitted(Struct, frozen=True, array_like=True):
    """A submit as it was admitted: its tasks in the order of its entries, and when."""

    client: str
    number: int
    at_ns: Instant
    ids: Sequence[TaskId]


class Submits:
    """The submits that may be sent again, oldest first."""

    def __init__(self, most: int = SUBMITS_MAX) -> None:
        self._most = most
        self._of: dict[str, dict[int, Admitted]] = {}
        #: What each of these clients has heard of: all of its own below this number.
        self._answered: dict[str, int] = {}
        self._in_order: OrderedDict[tuple[str, int], None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._in_order)

    def find(self, client: str, number: int) -> Admitted | None:
        """What came of a submit; None where it is new."""
        known = self._of.get(client)
        return known.get(number) if known is not None else None

    def is_over(self, client: str, number: int) -> bool:
        """Whether the client has heard of this submit: it was long on its way, on a connection that is no more."""
        return number < self._answered.get(client, 0)

    def add(self, admitted: Admitted, answered: int) -> None:
        """Remember a submit. Its client has heard of all of its own below `answered`."""
        client, number = admitted.client, admitted.number
        known = self._of.setdefault(client, {})
        self._answered[client] = max(answered, self._answered.get(client, 0))
        for old in [other for other in known if other < answered]:
            del known[old], self._in_order[client, old]
        known[number] = admitted
        self._in_order[client, number] = None
        while len(self._in_order) > self._most:
            (client, number), _ = self._in_order.popitem(last=False)
            del self._of[client][number]
            if not self._of[client]:
                del self._of[client], self._answered[client]


def admitted(fact: TasksAdmitted) -> Admitted:
    """What is to be remembered of a submit that named itself."""
    return Admitted(fact.client, fact.number, fact.at_ns, compact(fact.all_ids or fact.ids))


def compact(ids: list[TaskId]) -> Sequence[TaskId]:
    """Write ids that follow on one another, as nearly all do, as a range."""
    run = range(ids[0], ids[0] + len(ids)) if ids else range(0)
    return cast("Sequence[TaskId]", run) if list(run) == ids else tuple(ids)
