"""Who has the interpreter, and for how long."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from schedd.journal import right_of_way
from schedd.journal.right_of_way import (
    HURRIED_S,
    HURRIED_SWITCH_S,
    STARVED_FACT_S,
    STARVED_S,
    TIMER_SLACK_NS,
    RightOfWay,
)

LONG_S = STARVED_S + 2 * STARVED_FACT_S


class Passed:
    """In the place of the lock: notes who waits, and does on the way what the writer does meanwhile."""

    def __init__(self, way: RightOfWay) -> None:
        self.way = way
        self.waits: list[float] = []

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        if blocking:
            self.waits.append(timeout)
        return True

    def locked(self) -> bool:
        return False


@pytest.fixture
def way() -> Iterator[RightOfWay]:
    usual = sys.getswitchinterval()
    yield RightOfWay()
    sys.setswitchinterval(usual)


@pytest.fixture
def starved(way: RightOfWay) -> RightOfWay:
    """The commit of turn 1 took long, and is over."""
    way.asked(1)
    way.written(1, LONG_S, 1)
    way.synced()
    return way


def watched(way: RightOfWay) -> Passed:
    passed = Passed(way)
    way._passed = passed  # type: ignore[assignment]
    return passed


def test_writer_that_gets_the_interpreter_too_seldom_has_it_sooner_for_a_while(
    way: RightOfWay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that take long though the disk does not: the loop keeps the interpreter."""
    usual, now = sys.getswitchinterval(), 1000.0
    monkeypatch.setattr("schedd.journal.right_of_way.time.monotonic", lambda: now)
    way.written(1, STARVED_S / 2, 1)
    assert sys.getswitchinterval() == usual
    way.written(2, STARVED_S + 999 * STARVED_FACT_S, 1000)
    assert sys.getswitchinterval() == usual, "many facts take as long"
    way.written(3, LONG_S, 1)
    assert sys.getswitchinterval() == pytest.approx(HURRIED_SWITCH_S)
    now += HURRIED_S / 2
    way.written(4, 0.0, 1)
    assert sys.getswitchinterval() == pytest.approx(HURRIED_SWITCH_S)
    now += HURRIED_S
    way.written(5, 0.0, 1)
    assert sys.getswitchinterval() == usual


def test_loop_stands_aside_once_for_each_turn_that_somebody_waits_for(starved: RightOfWay) -> None:
    passed = watched(starved)
    starved.stand_aside()
    assert passed.waits == [], "nothing was asked for that is not written"
    for turn in (2, 3):
        starved.asked(turn)
        starved.stand_aside()
        starved.stand_aside()
    assert passed.waits == [right_of_way.ASIDE_S] * 2


def test_loop_does_not_stand_aside_for_a_disk(starved: RightOfWay) -> None:
    passed = watched(starved)
    starved.asked(2)
    starved.written(2, 0.0, 1)
    starved.asked(3)
    starved.stand_aside()
    assert passed.waits == [], "the writer waits for the disk, not for us"
    starved.synced()
    starved.stand_aside()
    assert len(passed.waits) == 1


def test_loop_does_not_stand_aside_for_a_writer_that_is_quick(way: RightOfWay) -> None:
    passed = watched(way)
    way.asked(1)
    way.written(1, STARVED_S / 2, 1)
    way.synced()
    way.asked(2)
    way.stand_aside()
    assert passed.waits == []


def test_loop_goes_on_when_the_rows_are_written(starved: RightOfWay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(right_of_way, "ASIDE_S", 60.0)
    starved.written(2, 0.0, 1)  # nobody waited: what that has left behind is not taken for the next
    starved.synced()
    starved.asked(3)
    writer = threading.Thread(target=starved.written, args=(3, 0.0, 1))
    told: list[int] = []

    def look() -> None:
        starved.stand_aside()
        told.append(starved._written)

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    writer.start()
    writer.join()
    looking.join()
    assert told == [3]


def test_writer_is_woken_in_time(way: RightOfWay) -> None:
    """Its thread, and no other."""
    slack: list[int] = []

    def look() -> int:
        return int(Path(f"/proc/{threading.get_native_id()}/timerslack_ns").read_text())

    def enter() -> None:
        way.enter()
        slack.append(look())

    usual = look()
    writer = threading.Thread(target=enter)
    writer.start()
    writer.join()
    assert slack == [TIMER_SLACK_NS]
    assert look() == usual
