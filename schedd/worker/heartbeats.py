"""How often a worker reports, and when it takes a silent daemon for gone. Pure: the timer is given to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

#: A daemon that says nothing for this many heartbeats (and at least so long) is taken for gone.
SILENT_HEARTBEATS = 4
SILENT_S_MIN = 10.0
#: The first heartbeat waits for the first measurement.
FIRST_HEARTBEAT_S = 0.2
INTERVAL_S_MIN = 0.05
INTERVAL_S_MAX = 300.0


class Timer(Protocol):
    """What `call_later` returns."""

    def cancel(self) -> object: ...


class Heartbeats:
    """Calls `beat` as often as the daemon wants to hear of the worker; `beat` asks for the next one."""

    def __init__(self, call_later: Callable[[float, Callable[[], Any]], Timer], beat: Callable[[], None]) -> None:
        self._call_later = call_later
        self._beat = beat
        self._timer: Timer | None = None
        self._interval_s = INTERVAL_S_MAX

    def begin(self, interval_s: float) -> None:
        """The daemon has said welcome, and how often it wants to hear."""
        self._set_interval(interval_s)
        self._after(min(FIRST_HEARTBEAT_S, self._interval_s))

    def go_on(self, interval_s: float | None = None) -> None:
        """Beat once more after an interval, from now on this one."""
        if interval_s is not None:
            self._set_interval(interval_s)
        self._after(self._interval_s)

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def is_too_long(self, silent_s: float) -> bool:
        """Whether a daemon that has said nothing for so long is gone."""
        return silent_s > max(SILENT_S_MIN, SILENT_HEARTBEATS * self._interval_s)

    def _set_interval(self, interval_s: float) -> None:
        self._interval_s = min(max(interval_s, INTERVAL_S_MIN), INTERVAL_S_MAX)

    def _after(self, delay_s: float) -> None:
        self.cancel()
        self._timer = self._call_later(delay_s, self._beat)
