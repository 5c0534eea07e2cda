"""Deadlines: a heap with lazy deletion, one deadline for each key."""

from __future__ import annotations

from collections.abc import Hashable
from heapq import heapify, heappop, heappush
from typing import Generic, TypeVar

from schedd.core.model import Instant

K = TypeVar("K", bound=Hashable)

#: Later than anything is ever due.
NEVER: Instant = 1 << 63


class Deadlines(Generic[K]):
    """Which key is due when. Ties expire in the order in which they were set."""

    def __init__(self) -> None:
        #: (when, number, key); an entry is alive while `_live[key]` is its number.
        self._heap: list[tuple[Instant, int, K]] = []
        self._live: dict[K, int] = {}
        self._number = 0
        #: Nothing is due before; too early where what was due first was cancelled or set anew.
        self.soonest: Instant = NEVER

    def __len__(self) -> int:
        return len(self._live)

    def __contains__(self, key: K) -> bool:
        return key in self._live

    def set(self, key: K, when_ns: Instant) -> None:
        """Let `key` expire at `when_ns`, in place of what was set for it before. O(log n)."""
        self._number += 1
        self._live[key] = self._number
        heappush(self._heap, (when_ns, self._number, key))
        if when_ns < self.soonest:
            self.soonest = when_ns
        if len(self._heap) > 64 and len(self._heap) > 2 * len(self._live):
            self._heap = [entry for entry in self._heap if self._live.get(entry[2]) == entry[1]]
            heapify(self._heap)

    def cancel(self, key: K) -> None:
        """Forget `key`; nothing happens where it is not set."""
        self._live.pop(key, None)

    def next(self) -> Instant | None:
        """The earliest deadline, None where there is none."""
        heap, live = self._heap, self._live
        while heap:
            when, number, key = heap[0]
            if live.get(key) == number:
                self.soonest = when
                return when
            heappop(heap)
        self.soonest = NEVER
        return None

    def expire(self, now: Instant) -> list[K]:
        """Remove and return the keys that are due, earliest first; often empty. O(k log n)."""
        due: list[K] = []
        while (when := self.next()) is not None and when <= now:
            key = heappop(self._heap)[2]
            del self._live[key]
            due.append(key)
        return due
