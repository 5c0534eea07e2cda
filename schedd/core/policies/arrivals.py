"""How much of each kind comes: beside what waits, what is expected to come counts."""

from __future__ import annotations

import math
from collections.abc import Mapping


class Arrivals:
    """Tasks a second by kind, told from how what waits differs from what was left at the look before."""

    def __init__(self) -> None:
        self._rates: dict[str, float] = {}
        #: What waited at the last look, less what was placed since.
        self._known: dict[str, int] = {}

    @property
    def kinds(self) -> list[str]:
        """The kinds that came lately."""
        return list(self._rates)

    def rate(self, kind: str) -> float:
        """Tasks of the kind that come in a second."""
        return self._rates.get(kind, 0.0)

    def note_placed(self, kind: str) -> None:
        """A task of the kind waits no longer."""
        self._known[kind] = self._known.get(kind, 0) - 1

    def look(self, sizes: dict[str, int], gone_s: float, span_s: float) -> None:
        """Take in how many tasks of each kind wait, so many seconds after the look before: a mean over `span_s`."""
        kept = math.exp(-gone_s / span_s)
        self._rates = {kind: rate * kept for kind, rate in self._rates.items() if rate * span_s > 0.01}
        for kind, count in self._come(sizes).items():
            if count:
                self._rates[kind] = self._rates.get(kind, 0.0) + count / span_s
        self._known = sizes

    def begin(self, sizes: dict[str, int]) -> None:
        """Take in what waits at the first look: it is no stream."""
        self._known = sizes

    def _come(self, sizes: Mapping[str, int]) -> dict[str, int]:
        come = {kind: max(0, size - self._known.get(kind, 0)) for kind, size in sizes.items()}
        return come | {kind: -n for kind, n in self._known.items() if n < 0 and kind not in sizes}
