"""What the C library keeps although nobody uses it goes back to the system."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import anyio
import pytest

from schedd.server.spare import GROWTH_BYTES, c_trim, give_back, kernel_meter

MIB = 2**20


def test_a_heap_full_of_holes_is_given_back() -> None:
    trim, resident_bytes = c_trim(), kernel_meter()
    if trim is None or resident_bytes is None:
        pytest.skip("this system has no malloc_trim, or no /proc")
    blocks = [bytes(3000) for _ in range(20_000)]
    kept = blocks[::100]  # so that no end of the heap is free
    blocks.clear()
    before = resident_bytes()
    trim()
    assert resident_bytes() < before - 30 * MIB
    assert len(kept) == 200


async def trims_of(resident: Iterator[int]) -> list[int]:
    """After how many looks it was given back, until there is nothing to see."""
    looks = itertools.count()
    seen = 0
    trims: list[int] = []

    def look() -> int:
        nonlocal seen
        seen = next(looks)
        try:
            return next(resident)
        except StopIteration:
            scope.cancel()
            return 0

    with anyio.CancelScope() as scope:
        await give_back(lambda: trims.append(seen), look, 0.0)
    return trims


@pytest.mark.asyncio
async def test_where_no_thread_can_be_started_there_is_a_next_time(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0

    async def no_thread(trim: object) -> None:
        nonlocal asked
        asked += 1
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(anyio.to_thread, "run_sync", no_thread)
    assert await trims_of(iter([0, GROWTH_BYTES, GROWTH_BYTES, 2 * GROWTH_BYTES, 2 * GROWTH_BYTES])) == []
    assert asked == 2


@pytest.mark.asyncio
async def test_only_what_has_grown_is_given_back() -> None:
    steps = [
        100 * MIB,  # the start
        100 * MIB + GROWTH_BYTES - 1,
        90 * MIB,  # less: that is what counts from now on
        90 * MIB + GROWTH_BYTES,  # look 3, and then
        89 * MIB + GROWTH_BYTES,  # it has given back one: it counts from here
        88 * MIB + 2 * GROWTH_BYTES,
        89 * MIB + 2 * GROWTH_BYTES,  # look 6
        10 * MIB,
        10 * MIB,
    ]
    assert await trims_of(iter(steps)) == [3, 6]


@pytest.mark.asyncio
async def test_another_c_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    assert c_trim() is None
    await give_back()  # and that is all


def test_without_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections may have taken them all: that must not end the daemon."""
    resident_bytes = kernel_meter()
    assert resident_bytes is not None

    def none_left(*_: object) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("os.open", none_left)
    monkeypatch.setattr("builtins.open", none_left)
    assert resident_bytes() > 0
    assert kernel_meter() is None
