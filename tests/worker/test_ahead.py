"""Calls that are sent to a child ahead of their turn: fast when all goes well, and taken back when it does not."""

from __future__ import annotations

import asyncio
import os
import pickle
import time
from pathlib import Path

import pytest

from schedd.core.model import Cause, TaskId, TaskRules
from schedd.wire.messages import (
    AttemptsStarted,
    DrainWorker,
    DropAttempts,
    RevokeAnswers,
    RevokeAttempts,
    StopAttempts,
    WorkerDraining,
)
from schedd.worker.child_process import AHEAD_MAX

from .fake_daemon import FakeDaemon, until
from .running import Running, arguments, call_of, running_worker

pytestmark = pytest.mark.asyncio


def step(trace: str, number: int, gate: str) -> int:
    """Note that it ran; a gate that does not exist yet makes it wait."""
    with open(trace, "a") as file:  # noqa: PTH123
        file.write(f"{number}\n")
    while gate and not os.path.exists(gate):  # noqa: PTH110
        time.sleep(0.002)
    return number


class Line:
    """A worker with one slot whose child is known to be quick, and a call that holds it up with others behind."""

    def __init__(self, run: Running, folder: Path) -> None:
        self.run = run
        self.trace = folder / "trace"
        self.gate = folder / "gate"
        self.ids: list[TaskId] = []

    @property
    def daemon(self) -> FakeDaemon:
        return self.run.daemon

    async def hold_up(self, behind: int) -> None:
        """Make the child quick, then have `behind` calls sent behind one that waits at the gate."""
        await self.run.value_of(step, str(self.trace), 0, "")
        await self.run.value_of(step, str(self.trace), 0, "")
        self.trace.unlink()
        gates = [str(self.gate)] + [""] * behind
        numbered = [arguments(str(self.trace), number, gate) for number, gate in enumerate(gates)]
        self.ids = self.daemon.dispatch(call_of(step), numbered, rules=TaskRules(grace_s=0))
        await until(lambda: self.trace.exists() and self.trace.read_text() == "0\n")

    def ran(self) -> list[int]:
        """Which ran, how often; not in which order: a child may read one while those around it are taken back."""
        return sorted(map(int, self.trace.read_text().split()))


async def test_order_is_kept_and_each_runs_once(tmp_path: Path) -> None:
    async with running_worker(tmp_path) as run:
        trace = tmp_path / "trace"
        await run.value_of(step, str(trace), 0, "")
        numbered = [arguments(str(trace), number, "") for number in range(1, 301)]
        ids = [
            task_id
            for part in range(6)
            for task_id in run.daemon.dispatch(call_of(step), numbered[part * 50 : part * 50 + 50])
        ]
        ends = [await run.daemon.end_of(task_id) for task_id in ids]
        assert [pickle.loads(end.result or b"") for end in ends] == list(range(1, 301))
        order = [int(line) for line in trace.read_text().split()]
        assert sorted(order) == list(range(301))
        # A child may read one while those around it are taken back, which then come after it.
        assert all(abs(place - number) <= AHEAD_MAX for place, number in enumerate(order))
        assert run.daemon.finished_count == 301
        for message in run.daemon.of_type(AttemptsStarted):
            assert len(message.attempts) == 1, "one slot, one reservation"


async def test_revoke_takes_back_what_was_sent_ahead(tmp_path: Path) -> None:
    async with running_worker(tmp_path) as run:
        line = Line(run, tmp_path)
        await line.hold_up(5)
        wanted = [(line.ids[number], 1) for number in (0, 2, 4)]
        run.daemon.send(RevokeAttempts(wanted))
        [answer] = await run.daemon.wait(lambda: run.daemon.of_type(RevokeAnswers))
        assert [given for _, _, given in answer.answers] == [False, True, True]
        line.gate.touch()
        for number in (0, 1, 3, 5):
            await run.daemon.end_of(line.ids[number])
        assert line.ran() == [0, 1, 3, 5]
        assert run.daemon.finished_count == 2 + 4


async def test_stop_and_drop_of_what_was_sent_ahead(tmp_path: Path) -> None:
    async with running_worker(tmp_path) as run:
        line = Line(run, tmp_path)
        await line.hold_up(4)
        run.daemon.send(StopAttempts([(line.ids[2], 1)]), DropAttempts([(line.ids[3], 1)]))
        assert (await run.daemon.end_of(line.ids[2])).cause is Cause.CANCELLED
        line.gate.touch()
        for number in (0, 1, 4):
            await run.daemon.end_of(line.ids[number])
        assert line.ran() == [0, 1, 4]


async def test_stop_of_the_running_one_hits_no_other(tmp_path: Path) -> None:
    async with running_worker(tmp_path) as run:
        line = Line(run, tmp_path)
        await line.hold_up(4)
        run.daemon.send(StopAttempts([(line.ids[0], 1)]))
        ends = [await run.daemon.end_of(task_id) for task_id in line.ids]
        assert [end.cause for end in ends] == [Cause.CANCELLED, *[Cause.OK] * 4]
        assert line.ran() == [0, 1, 2, 3, 4]


async def test_crash_hits_no_other(tmp_path: Path) -> None:
    async with running_worker(tmp_path) as run:
        for _ in range(3):
            await run.value_of(os.getpid)
        ids = run.daemon.dispatch(
            call_of(lambda code: os._exit(code) if code else 0), [arguments(code) for code in [0, 0, 0, 7, 0, 0, 8, 0]]
        )
        ends = [await run.daemon.end_of(task_id) for task_id in ids]
        assert [end.exit_code or 0 for end in ends] == [0, 0, 0, 7, 0, 0, 8, 0]
        assert [end.cause is Cause.OK for end in ends] == [True, True, True, False, True, True, False, True]


async def test_drain_hands_back_what_was_sent_ahead(tmp_path: Path) -> None:
    async with running_worker(tmp_path) as run:
        line = Line(run, tmp_path)
        await line.hold_up(3)
        run.daemon.send(DrainWorker())
        [draining] = await run.daemon.wait(lambda: run.daemon.of_type(WorkerDraining))
        assert draining.handed_back == [(task_id, 1) for task_id in line.ids[1:]]
        line.gate.touch()
        assert await asyncio.wait_for(run.worker, 10) == 0
        assert line.ran() == [0]


async def test_other_slot_takes_what_waits_behind_a_long_call(tmp_path: Path) -> None:
    async with running_worker(tmp_path, cpus=2.0) as run:
        trace, gate = tmp_path / "trace", tmp_path / "gate"
        warm = [arguments(str(trace), 0, "")] * 40
        for task_id in run.daemon.dispatch(call_of(step), warm):
            await run.daemon.end_of(task_id)
        held = [arguments(str(trace), 1, str(gate))]
        rest = [arguments(str(trace), number, "") for number in range(2, 100)]
        ids = run.daemon.dispatch(call_of(step), held + rest)
        for task_id in ids[1:]:
            await run.daemon.end_of(task_id)
        assert (ids[0], 1) not in run.daemon.finished
        gate.touch()
        await run.daemon.end_of(ids[0])
        assert sorted(map(int, trace.read_text().split())) == sorted([0] * 40 + list(range(1, 100)))


async def test_steals_from_a_busy_line_lose_and_double_nothing(tmp_path: Path) -> None:
    async with running_worker(tmp_path, cpus=2.0) as run:
        trace = tmp_path / "trace"
        waiting: list[TaskId] = []
        asked = 0
        for part in range(40):
            numbered = [arguments(str(trace), number, "") for number in range(part * 20, part * 20 + 20)]
            ids = run.daemon.dispatch(call_of(step), numbered)
            waiting += ids
            run.daemon.send(RevokeAttempts([(task_id, 1) for task_id in ids[part % 7 :: 3]]))
            asked += len(ids[part % 7 :: 3])
            await run.daemon.end_of(ids[0]) if part % 7 else await asyncio.sleep(0)
        await run.daemon.wait(lambda: sum(len(m.answers) for m in run.daemon.of_type(RevokeAnswers)) == asked)
        given_back = {
            task_id for message in run.daemon.of_type(RevokeAnswers) for task_id, _, given in message.answers if given
        }
        for task_id in set(waiting) - given_back:
            assert (await run.daemon.end_of(task_id)).cause is Cause.OK
        assert {task_id for task_id, _ in run.daemon.finished} == set(waiting) - given_back
        assert run.daemon.finished_count == len(waiting) - len(given_back)
        assert len(trace.read_text().split()) == run.daemon.finished_count
