"""The daemon's clock: monotonic, and aligned with the Unix epoch at the start."""

from __future__ import annotations

import time

from schedd.core.model import Instant


class Clock:
    """Nanoseconds that never go back, whatever happens to the wall clock."""

    def __init__(self) -> None:
        self._offset_ns = time.time_ns() - time.monotonic_ns()

    def now_ns(self) -> Instant:
        return time.monotonic_ns() + self._offset_ns
