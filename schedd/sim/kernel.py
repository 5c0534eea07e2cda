"""Virtual time: one heap of what happens when, one source of randomness, one trace of it all.

Nothing here knows a real clock. What runs on one machine runs in a `Process`, which is the event loop of that code: it
can be killed (nothing of it happens any more) and stopped (all of it happens when it is continued, late).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any
from zlib import crc32

from schedd.core.model import SECOND, Instant

#: Where virtual time begins, in nanoseconds since the epoch: any instant that is well above zero.
BEGINNING_NS: Instant = 1_700_000_000 * SECOND


class Timer:
    """Something that will happen, until it is cancelled."""

    __slots__ = ("args", "callback", "process")

    def __init__(self, process: Process | None, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        self.process = process
        self.callback: Callable[..., object] | None = callback
        self.args = args

    def cancel(self) -> None:
        self.callback = None


class Kernel:
    """Runs what was put on the heap, in the order of its time; ties in the order in which they were put there."""

    def __init__(self, seed: int) -> None:
        self.now_ns: Instant = BEGINNING_NS
        self.random = random.Random(seed)
        self.steps = 0
        #: Grows with all that is noted: two runs of one seed have the same.
        self.digest = 0
        #: Called with the text of whatever is noted; set for `--verbose`.
        self.listener: Callable[[str], None] | None = None
        self._heap: list[tuple[Instant, int, Timer]] = []
        self._number = 0

    def put_at(self, at_ns: Instant, callback: Callable[..., object], *args: Any) -> Timer:
        """Have something happen at an instant, whoever lives then."""
        return self.put(at_ns, Timer(None, callback, args))

    def call_in(self, delay_s: float, callback: Callable[..., object], *args: Any) -> Timer:
        """Have something happen after so many seconds, whoever lives then."""
        return self.put(self.now_ns + int(delay_s * SECOND), Timer(None, callback, args))

    def put(self, at_ns: Instant, timer: Timer) -> Timer:
        self._number += 1
        heappush(self._heap, (at_ns if at_ns > self.now_ns else self.now_ns, self._number, timer))
        return timer

    def step(self) -> bool:
        """Let the next thing happen; False where there is none."""
        heap = self._heap
        while heap:
            at_ns, _, timer = heappop(heap)
            callback, process = timer.callback, timer.process
            if callback is None or (process is not None and process.is_dead):
                continue
            if process is not None and process.is_stopped:
                process.late.append(timer)
                continue
            self.now_ns = at_ns
            self.steps += 1
            timer.callback = None
            callback(*timer.args)
            return True
        return False

    def rest(self, steps_max: int) -> bool:
        """Let all happen that is due by now; False where that does not end within so many steps."""
        heap = self._heap
        for _ in range(steps_max):
            while heap and heap[0][2].callback is None:
                heappop(heap)
            if not heap or heap[0][0] > self.now_ns:
                return True
            self.step()
        return False

    def chance(self, probability: float) -> bool:
        """Throw a coin that is as unfair as you say."""
        return self.random.random() < probability

    def note(self, text: str, data: bytes = b"") -> None:
        """Enter something into the trace."""
        self.digest = crc32(b"%d %s" % (self.now_ns, text.encode()), crc32(data, self.digest))
        if self.listener is not None:
            self.listener(text)


class Process:
    """The event loop of what runs on one machine, and its clock. Implements `server.ports.Reactor` and `Clock`."""

    def __init__(self, kernel: Kernel, name: str, skew_ns: int = 0) -> None:
        self.kernel = kernel
        self.name = name
        self.is_dead = False
        self.is_stopped = False
        self.stops = 0
        #: What should have happened while it was stopped.
        self.late: list[Timer] = []
        #: How far its clock, aligned with the wall clock when it started, is off.
        self._skew_ns = skew_ns

    def now_ns(self) -> Instant:
        return self.kernel.now_ns + self._skew_ns

    def call_soon(self, callback: Callable[..., object], *args: Any) -> Timer:
        return self.kernel.put(self.kernel.now_ns, Timer(self, callback, args))

    call_soon_threadsafe = call_soon

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> Timer:
        return self.kernel.put(self.kernel.now_ns + int(delay * SECOND), Timer(self, callback, args))

    def kill(self) -> None:
        """Let nothing of it happen any more."""
        self.is_dead = True
        self.late.clear()

    def stop(self) -> None:
        """Let nothing of it happen until `go_on`."""
        self.is_stopped = True
        self.stops += 1

    def go_on(self) -> None:
        """Let all that was due happen now."""
        self.is_stopped = False
        late, self.late = self.late, []
        for timer in late:
            self.kernel.put(self.kernel.now_ns, timer)
