"""The turn: what it takes of what has come, and when questions are answered."""

from __future__ import annotations

import asyncio

import pytest

from schedd.core import effects as fx
from schedd.core import events as ev
from schedd.core.model import SECOND, Call, TaskEntry, TaskSpec, WorkerId
from schedd.server import lag, loop
from schedd.server.lag import INTERVAL_S, WINDOW_S, LagProbe
from schedd.server.loop import TASKS_PER_TURN_MAX, EngineLoop


class FakeEngine:
    """Notes what each turn is given."""

    def __init__(self) -> None:
        self.turns: list[list[ev.Event]] = []
        self.due: int | None = None

    def handle(self, events: list[ev.Event], now: int) -> fx.Effects:
        self.turns.append(events)
        return fx.Effects([], [])

    def next_deadline(self) -> int | None:
        return self.due


class StillClock:
    """No time passes: a turn has time for all its reads, also where the machine has none for us."""

    def now_ns(self) -> int:
        return 100 * SECOND


class Bench:
    """A loop round a fake engine; `said` has what happened, in order."""

    def __init__(self) -> None:
        self.engine = FakeEngine()
        self.said: list[str] = []
        self.loop = EngineLoop(
            self.engine,  # type: ignore[arg-type]
            StillClock(),
            lambda effects: self.said.append(f"turn {len(self.engine.turns)}"),
            lambda: None,
            self.crashed,
            asyncio.get_running_loop(),
        )

    def crashed(self, error: BaseException) -> None:
        raise error

    async def rest(self) -> None:
        """Let everything happen that is under way."""
        before = -1
        while before != len(self.said):
            before = len(self.said)
            for _ in range(5):
                await asyncio.sleep(0)


def submit(count: int) -> ev.SubmitTasks:
    return ev.SubmitTasks(1, [TaskSpec(Call(path="a:b"))], [TaskEntry(0)] * count, False)


@pytest.mark.asyncio
async def test_what_comes_together_is_one_turn() -> None:
    bench = Bench()
    events = [submit(10), ev.WorkerLeft(WorkerId("w")), submit(TASKS_PER_TURN_MAX // 2)]
    for event in events:
        bench.loop.post(event)
    await bench.rest()
    assert bench.engine.turns == [events]
    assert (bench.loop.turns, bench.loop.handled) == (1, 3)


@pytest.mark.asyncio
async def test_turn_that_is_late_says_so() -> None:
    """After a freeze an event may be handled before the timer that was due in it."""
    bench = Bench()
    now = bench.loop.clock.now_ns()
    bench.engine.due = now - 5 * SECOND
    bench.loop.post(ev.WorkerLeft(WorkerId("a")))
    bench.loop.wake()
    bench.loop._turn()  # and thus the timer is set, and cannot have fired
    bench.loop.post(ev.WorkerLeft(WorkerId("b")))
    bench.engine.due = None
    bench.loop._turn()
    left, wakeup = bench.engine.turns[1]
    assert left == ev.WorkerLeft(WorkerId("b"))
    assert isinstance(wakeup, ev.Wakeup)
    assert wakeup.lag_ns >= 5 * SECOND


@pytest.mark.asyncio
async def test_turn_is_about_a_bounded_number_of_tasks() -> None:
    bench = Bench()
    events: list[ev.Event] = [submit(TASKS_PER_TURN_MAX // share) for share in (2, 2, 2, 3, 1)]
    numbers = [bench.loop.post(event) for event in events]
    await bench.rest()
    assert [len(turn) for turn in bench.engine.turns] == [2, 2, 1], "none goes beyond the bound for its last event"
    assert [event for turn in bench.engine.turns for event in turn] == events
    assert numbers == [1, 2, 3, 4, 5]


@pytest.mark.asyncio
async def test_larger_event_than_a_turn_is_a_turn() -> None:
    bench = Bench()
    bench.loop.post(submit(3 * TASKS_PER_TURN_MAX))
    bench.loop.post(submit(1))
    await bench.rest()
    assert [len(turn) for turn in bench.engine.turns] == [1, 1]


@pytest.mark.asyncio
async def test_question_sees_all_that_was_asked_before_it_and_nothing_more_is_waited_for() -> None:
    bench = Bench()
    for _ in range(2):
        bench.loop.post(submit(TASKS_PER_TURN_MAX))
    bench.loop.ask(lambda: bench.said.append("answer"))
    bench.loop.post(submit(TASKS_PER_TURN_MAX))
    await bench.rest()
    assert bench.said == ["turn 1", "turn 2", "answer", "turn 3"]


@pytest.mark.asyncio
async def test_who_asks_much_waits_for_himself() -> None:
    """Reads of one peer keep their order, and those of others go in between."""
    bench = Bench()
    for number in range(5):
        bench.loop.ask(lambda number=number: bench.said.append(f"greedy {number}"), "greedy")  # type: ignore[misc]
    for number in range(2):
        bench.loop.ask(lambda number=number: bench.said.append(f"modest {number}"), "modest")  # type: ignore[misc]
    await bench.rest()
    assert bench.said == ["greedy 0", "modest 0", "greedy 1", "modest 1", "greedy 2", "greedy 3", "greedy 4"]


@pytest.mark.asyncio
async def test_read_that_goes_on_comes_before_the_next_of_its_asker() -> None:
    """Else all that a peer asks for would be half done at the same time, and in memory."""
    bench = Bench()

    def begin() -> None:
        bench.said.append("first")
        bench.loop.ask(lambda: bench.said.append("rest of it"), "greedy", goes_on=True)

    bench.loop.ask(begin, "greedy")
    bench.loop.ask(lambda: bench.said.append("second"), "greedy")
    bench.loop.ask(lambda: bench.said.append("modest"), "modest")
    await bench.rest()
    assert bench.said == ["first", "modest", "rest of it", "second"]


@pytest.mark.asyncio
async def test_newcomer_is_answered_first_and_keeps_nobody_from_going_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """With time for one answer in a turn: one of who has just come, and one of who has more to ask."""
    monkeypatch.setattr(loop, "READS_PER_TURN_NS", -1)
    bench = Bench()
    for number in range(4):
        bench.loop.ask(lambda number=number: bench.said.append(f"greedy {number}"), "greedy")  # type: ignore[misc]
    bench.loop._turn()  # all are newcomers, and the greedy one has time to go on
    assert bench.said == ["greedy 0", "greedy 1"]
    bench.loop.ask(lambda: bench.said.append("newcomer"), "newcomer")
    bench.loop.ask(lambda: bench.said.append("another"), "another")
    bench.loop._turn()
    assert bench.said[2:] == ["newcomer", "greedy 2"]
    await bench.rest()
    assert sorted(bench.said[4:]) == ["another", "greedy 3"]


@pytest.mark.asyncio
async def test_question_waits_for_what_its_asker_has_sent_and_not_for_others() -> None:
    bench = Bench()
    mine = bench.loop.post(submit(TASKS_PER_TURN_MAX))
    for _ in range(2):
        bench.loop.post(submit(TASKS_PER_TURN_MAX))
    bench.loop.ask(lambda: bench.said.append("answer"), "me", mine)
    await bench.rest()
    assert bench.said == ["turn 1", "answer", "turn 2", "turn 3"]


# ----------------------------------------------------------------------------------------------------------- loop lag


class FakeTime:
    """A clock and a timer of a loop that comes late as told."""

    def __init__(self) -> None:
        self.now = 100.0
        self.probe = LagProbe(lambda: self.now, lambda delay, look: None)
        self.probe.start()

    def look(self, late: float) -> None:
        self.now = self.probe._due + late
        self.probe._look()


def test_worst_delay_since_the_start() -> None:
    time = FakeTime()
    for late in (0.0, 0.3, 0.1):
        time.look(late)
    assert time.probe.worst_s == pytest.approx(0.3)
    assert time.probe.recent_s == pytest.approx(0.3)


def test_recent_delays_are_forgotten_after_two_windows() -> None:
    time = FakeTime()
    time.look(0.5)
    for _ in range(int(WINDOW_S / INTERVAL_S) + 2):
        time.look(0.0)
    time.look(0.2)
    assert time.probe.recent_s == pytest.approx(0.5), "of this window and of the one before"
    for _ in range(int(WINDOW_S / INTERVAL_S) + 2):
        time.look(0.0)
    assert time.probe.recent_s == pytest.approx(0.2)
    assert time.probe.worst_s == pytest.approx(0.5)


@pytest.mark.asyncio
async def test_probe_on_a_loop_that_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = asyncio.Event()
    monkeypatch.setattr(lag.LagProbe, "_look", lambda probe: looked.set())
    probe = LagProbe.on_running_loop()
    await asyncio.wait_for(looked.wait(), 20)
    assert probe.worst_s == 0.0
