"""Memory that the C library keeps for later, although nobody uses it, goes back to the system.

What a million tasks leave behind is a heap full of holes: the allocator gives back only what is free at its end.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable

import anyio

#: Seconds between two looks. What the daemon holds moves by some 10 MB in one, at 10,000 tasks a second.
INTERVAL_S = 2.0
#: Less than so much more than after the last time is left alone: an idle daemon does nothing.
GROWTH_BYTES = 4 * 2**20


async def give_back(
    trim: Callable[[], None] | None = None, resident: Callable[[], int] | None = None, interval_s: float = INTERVAL_S
) -> None:
    """Give back what is spare each time that the process has grown, until cancelled.

    trim: gives it back, in a thread (default: that of the C library). resident: bytes of this process that are in
    memory (default: as the kernel says). Returns at once where there is no such thing.
    """
    trim, resident = trim or c_trim(), resident or kernel_meter()
    if trim is None or resident is None:
        return
    least = resident()
    while True:
        await anyio.sleep(interval_s)
        now = resident()
        if now < least + GROWTH_BYTES:
            least = min(least, now)
        else:
            # Some milliseconds, without the interpreter; whoever takes or leaves memory meanwhile may wait for as long.
            with contextlib.suppress(RuntimeError):  # where no thread can be started there is a next time
                await anyio.to_thread.run_sync(trim)
            least = resident()


def c_trim() -> Callable[[], None] | None:
    """What gives back the free pages of all heaps: `malloc_trim(3)` of the GNU C library; None: this is another."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except AttributeError:
        return None
    trim.argtypes, trim.restype = [ctypes.c_size_t], ctypes.c_int

    def give() -> None:
        trim(0)

    return give


def kernel_meter() -> Callable[[], int] | None:
    """What tells the bytes of this process that are in memory; None: the kernel does not say.

    The file stays open: where connections have taken all descriptors, no other could be opened.
    """
    try:
        statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    return lambda: int(os.pread(statm, 256, 0).split()[1]) * page_bytes
