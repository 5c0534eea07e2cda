"""Memory of large frames goes back to the system bit by bit, once nobody looks at it."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from schedd.server.memory import PORTION_BYTES, Memory
from schedd.server.ports import Timer


class Passes:
    """An event loop by hand: what is due in the next pass."""

    def __init__(self) -> None:
        self.due: list[Callable[..., object]] = []
        self.is_closed = False

    def call_soon(self, callback: Callable[..., object], *args: Any) -> object:
        assert threading.current_thread() is threading.main_thread(), "not safe from another thread"
        return self.call_soon_threadsafe(callback)

    def call_soon_threadsafe(self, callback: Callable[..., object], *args: Any) -> object:
        if self.is_closed:
            raise RuntimeError("Event loop is closed")
        self.due.append(callback)
        return None

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> Timer:
        raise NotImplementedError

    def count(self) -> int:
        """Go on until nothing is due; returns the passes that it took."""
        passes = 0
        while self.due:
            due, self.due = self.due, []
            passes += 1
            for callback in due:
                callback()
        return passes


def resident_bytes() -> int:
    with Path("/proc/self/smaps_rollup").open() as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("Rss:"))


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_memory_that_there_is_not_is_only_an_error() -> None:
    memory = Memory(Passes())
    with pytest.raises(OSError, match="memory"):
        memory.take(1 << 50)
    gc.collect()


def test_memory_goes_a_portion_in_each_pass() -> None:
    passes = Passes()
    block = Memory(passes).take(20 * PORTION_BYTES)
    block.write(b"x" * len(block))
    full = resident_bytes()
    view = memoryview(block)[5:]
    del block
    assert not passes.due, "somebody looks at it"
    assert bytes(view[:1]) == b"x"
    del view
    assert resident_bytes() > full - 2 * PORTION_BYTES, "nothing of it goes at once"
    assert passes.count() == 20
    assert resident_bytes() < full - 18 * PORTION_BYTES


def test_several_go_one_after_the_other() -> None:
    passes = Passes()
    memory = Memory(passes)
    for size in (PORTION_BYTES + 1, 3, 2 * PORTION_BYTES):
        memory.take(size)  # and nobody looks at it
    assert len(passes.due) == 1
    assert passes.count() == 2 + 1 + 2


def test_dropped_in_another_thread() -> None:
    """As by a collection of garbage, which comes in whatever thread it likes."""
    passes = Passes()
    blocks = [Memory(passes).take(2 * PORTION_BYTES)]
    thread = threading.Thread(target=blocks.clear)
    thread.start()
    thread.join()
    passes.due *= 2  # and found a second time
    assert passes.count() == 2
    assert not passes.due


def test_nothing_is_said_when_the_loop_has_closed_before(capfd: Any) -> None:
    passes = Passes()
    memory = Memory(passes)
    block = memory.take(PORTION_BYTES)
    passes.is_closed = True
    del block
    assert capfd.readouterr().err == ""
