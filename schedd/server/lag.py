"""How long the loop kept others waiting: a callback that is due every few milliseconds, and how late it came."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

#: Seconds between two looks. What holds the loop for less is not seen, nor up to so much of what holds it for longer.
#: Most of what an idle daemon costs are these looks.
INTERVAL_S = 0.01
#: The recent worst is that of at least so many seconds, and of at most twice as many.
WINDOW_S = 30.0


class LagProbe:
    """The worst delay of a timer of this loop, in seconds: since the start, and in the last half minute or so.

    Whatever holds the loop is seen, whoever does it: a turn, a peer's frames, the collector, another thread.
    """

    def __init__(self, clock: Callable[[], float], later: Callable[[float, Callable[[], None]], object]) -> None:
        self._clock = clock
        self._later = later
        self._due = self._window_ends = 0.0
        self._before = 0.0
        self._now = 0.0
        #: The worst since the start.
        self.worst_s = 0.0

    @classmethod
    def on_running_loop(cls) -> LagProbe:
        """A probe that looks from now on, for as long as the loop runs."""
        loop = asyncio.get_running_loop()
        probe = cls(loop.time, loop.call_later)
        probe.start()
        return probe

    def start(self) -> None:
        """Begin to look."""
        now = self._clock()
        self._window_ends = now + WINDOW_S
        self._arm(now)

    @property
    def recent_s(self) -> float:
        """The worst of this window and of the one before."""
        return max(self._before, self._now)

    def _arm(self, now: float) -> None:
        self._due = now + INTERVAL_S
        self._later(INTERVAL_S, self._look)

    def _look(self) -> None:
        now = self._clock()
        late = max(0.0, now - self._due)
        if now >= self._window_ends:
            self._before = self._now if now < self._window_ends + WINDOW_S else 0.0
            self._now = 0.0
            self._window_ends = now + WINDOW_S
        self._now = max(self._now, late)
        self.worst_s = max(self.worst_s, late)
        self._arm(now)
