"""Memory of large frames, which goes back to the system bit by bit.

To give tens of megabytes back at once takes the kernel milliseconds, in which nobody else is served.
"""

from __future__ import annotations

import contextlib
import mmap
from collections import deque
from collections.abc import Callable

from schedd.server.ports import Reactor

#: What is given back in one pass of the event loop: some 50 us of work.
PORTION_BYTES = 512 * 1024


class _Block(mmap.mmap):
    """Memory that says when nobody looks at it any more."""

    unused: Callable[[mmap.mmap], None] | None = None

    def __del__(self) -> None:
        if self.unused is not None:  # else it never came to be
            self.unused(self)


class Memory:
    """Gives memory, and gives it back slowly."""

    def __init__(self, reactor: Reactor) -> None:
        self._reactor = reactor
        #: What nobody uses any more, and how much of the first of it has gone.
        self._unused: deque[mmap.mmap] = deque()
        self._gone = 0

    def take(self, size: int) -> mmap.mmap:
        """As `framing.private_memory`, but given back slowly. Raises OSError where there is no room."""
        block = _Block(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        block.unused = self._drop
        return block

    def _drop(self, block: mmap.mmap) -> None:
        # In whatever thread the last of it was dropped: a collection of garbage may come in any.
        self._unused.append(block)
        if len(self._unused) == 1:
            with contextlib.suppress(RuntimeError):  # the event loop is closed, and all of this goes with the process
                self._reactor.call_soon_threadsafe(self._go_on)

    def _go_on(self) -> None:
        if not self._unused:
            return  # what was dropped in another thread in this very moment has been found already
        block = self._unused[0]
        portion = min(PORTION_BYTES, len(block) - self._gone)
        block.madvise(mmap.MADV_DONTNEED, self._gone, portion)
        self._gone += portion
        if self._gone == len(block):
            self._gone = 0
            self._unused.popleft().close()
        if self._unused:
            self._reactor.call_soon(self._go_on)
