"""Ends that the daemon has not acknowledged: which of them are on disk, and what the next start makes of them."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from schedd.core.model import SECOND, Cause, Command, TaskId, WorkerResources
from schedd.wire.messages import AckFinished, AttemptFinished, DropAttempts
from schedd.worker.attempts import Ending
from schedd.worker.outbox import TRY_AGAIN_EVERY, Kept, Outbox
from schedd.worker.shelf import Shelf
from schedd.worker.state import WorkerState

from .builders import CALL, actions_of, dispatch, end, machine
from .fake_daemon import FakeDaemon, until
from .running import running_program, running_worker
from .test_state import ends_in, pairs


def ended(task_id: int, runtime_s: float = 0.0, result: bytes | None = None) -> AttemptFinished:
    return AttemptFinished(TaskId(task_id), 1, Cause.OK, SECOND, SECOND + round(runtime_s * SECOND), result)


def kept_by(state: WorkerState, *, everything: bool = False) -> list[list[int]]:
    """Which tasks' ends must be on disk now, batch by batch."""
    return [[one.task_id for one in batch.attempts] for batch in state.take_to_keep(everything=everything)]


def run(state: WorkerState, task_id: int, runtime_s: float = 0.0, result: bytes | None = None) -> None:
    state.on_message(dispatch(task_id), SECOND)
    end(state, task_id, SECOND + round(runtime_s * SECOND), Ending(Cause.OK, result))


# --------------------------------------------------------------------------------------------------- which, and when


def test_end_of_a_long_attempt_is_kept_before_it_is_told() -> None:
    state = machine()
    run(state, 1, 1.0)
    assert ends_in(state.take_messages()) == [(1, "ok")]
    assert kept_by(state) == [[1]]
    assert kept_by(state) == []
    state.on_message(AckFinished(1), 0)
    assert state.take_over() == [1]
    assert state.take_over() == []


def test_end_of_a_short_attempt_is_not_kept_while_the_daemon_is_there() -> None:
    state = machine()
    run(state, 1, 0.9)
    state.take_messages()
    assert kept_by(state) == []
    state.on_message(AckFinished(1), 0)
    assert state.take_over() == []
    assert kept_by(state, everything=True) == []


def test_rejection_is_no_long_attempt() -> None:
    state = machine()
    state.on_message(dispatch(1, cpus=9), 10 * SECOND)
    assert ends_in(state.take_messages()) == [(1, "rejected")]
    assert kept_by(state) == []


def test_everything_is_kept_while_the_daemon_is_away() -> None:
    state = machine()
    run(state, 1)
    state.take_messages()
    state.is_connected = False
    run(state, 2)
    assert kept_by(state) == [[1], [2]]
    run(state, 3)
    assert kept_by(state) == [[3]]
    state.on_hello()
    state.is_connected = True
    assert ends_in(state.take_messages()) == [(1, "ok"), (2, "ok"), (3, "ok")]
    state.on_message(AckFinished(2), 0)
    assert state.take_over() == [1, 2]


def test_what_nobody_acknowledges_is_kept_in_the_end() -> None:
    state = machine()
    run(state, 1)
    state.take_messages()
    state.grow_old()
    run(state, 2)
    state.take_messages()
    assert kept_by(state) == []
    state.grow_old()
    assert kept_by(state) == [[1]]


def test_growing_old_swallows_no_news() -> None:
    state = machine()
    run(state, 1)
    state.grow_old()
    assert ends_in(state.take_messages()) == [(1, "ok")]
    assert state.take_messages() == []


def test_everything_is_kept_at_the_last() -> None:
    state = machine()
    run(state, 1)
    assert kept_by(state, everything=True) == [[1]]


# ------------------------------------------------------------------------------------------------------- the next start


def started_anew(*batches: Kept) -> WorkerState:
    state = machine()
    state.restore(batches)
    return state


def test_next_start_brings_what_was_kept() -> None:
    state = started_anew(Kept(3, [ended(1), ended(2)], [7, 8]), Kept(5, [ended(3)], [9]))
    assert [(hold.task_id, hold.phase, hold.defined_ns) for hold in state.holds()] == [
        (1, "finished", 7),
        (2, "finished", 8),
        (3, "finished", 9),
    ]
    state.on_hello()
    assert ends_in(state.take_messages()) == [(1, "ok"), (2, "ok"), (3, "ok")]
    assert kept_by(state) == []
    run(state, 4, 2)
    assert ends_in(state.take_messages()) == [(4, "ok")]
    assert [batch.seq for batch in state.take_to_keep()] == [6]
    state.on_message(AckFinished(5), 0)
    assert state.take_over() == [3, 5]


def test_end_that_was_kept_is_not_run_again() -> None:
    state = started_anew(Kept(1, [ended(1)], [0]))
    state.on_message(dispatch(1), 0)
    assert actions_of(state) == []
    state.on_message(dispatch(1, attempt=2), 0)
    assert actions_of(state) == [("start", 1)]


def test_end_that_the_daemon_does_not_want() -> None:
    state = started_anew(Kept(1, [ended(1), ended(2)], [0, 0]))
    state.holds()
    state.on_message(DropAttempts(pairs(1)), 0)
    state.on_hello()
    assert ends_in(state.take_messages()) == [(2, "ok")]
    state.on_message(AckFinished(1), 0)
    assert state.take_over() == [1]


# ------------------------------------------------------------------------------------------------------------- bounds


def bounded(ends_max: int = 1000, bytes_max: int = 1000) -> WorkerState:
    state = WorkerState(WorkerResources(cpus=1), Outbox(ends_max, bytes_max))
    state.is_connected = True
    return state


@pytest.mark.parametrize(("ends_max", "bytes_max"), [(2, 1000), (1000, 8)], ids=["count", "bytes"])
def test_nothing_starts_while_too_many_ends_wait(ends_max: int, bytes_max: int) -> None:
    state = bounded(ends_max, bytes_max)
    for task_id in (1, 2):
        run(state, task_id, result=b"four")
        state.take_messages()
    state.take_actions()
    state.on_message(dispatch(3, 4, payload=CALL), 0)
    assert actions_of(state) == []
    assert state.upcoming(9) == []
    state.check()
    state.on_message(AckFinished(1), 0)
    assert actions_of(state) == [("start", 3)]
    end(state, 3, 0, Ending(Cause.OK, b"four"))
    assert actions_of(state) == []
    state.on_message(DropAttempts(pairs(2)), 0)
    assert actions_of(state) == [("start", 4)]
    state.check()


def test_what_was_restored_counts() -> None:
    state = bounded(ends_max=1)
    state.restore([Kept(1, [ended(1)], [0])])
    state.on_message(dispatch(2), 0)
    assert actions_of(state) == []
    state.on_message(AckFinished(1), 0)
    assert actions_of(state) == [("start", 2)]


# -------------------------------------------------------------------------------------------------------------- files


def test_files_come_back_as_they_were(tmp_path: Path) -> None:
    batches = [Kept(number, [ended(number, 2.0, bytes(5)), ended(90 + number)], [1, 2]) for number in (9, 10, 11)]
    Shelf(tmp_path / "ends").keep(batches)
    shelf = Shelf(tmp_path / "ends")
    assert shelf.load() == batches
    shelf.forget([9, 11, 12])
    assert shelf.load() == batches[1:2]


def test_damaged_files_are_told_and_removed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shelf = Shelf(tmp_path)
    shelf.keep([Kept(number, [ended(number)], [0]) for number in range(1, 6)] + [Kept(6, [ended(6)], [])])
    whole = (tmp_path / f"{1:012}").read_bytes()
    (tmp_path / f"{1:012}").write_bytes(whole[:-1])
    (tmp_path / f"{2:012}").write_bytes(b"")
    (tmp_path / f"{3:012}").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    (tmp_path / f"{4:012}.partial").write_bytes(whole)
    (tmp_path / "not ours").write_bytes(b"\0\0\0\0")
    with caplog.at_level(logging.WARNING):
        assert [batch.seq for batch in shelf.load()] == [4, 5]
    assert caplog.text.count("ends_damaged") == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{number:012}" for number in (4, 5)]


def test_file_cut_at_every_byte(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    shelf.keep([Kept(1, [ended(1, 1.0, b"value")], [7])])
    path = tmp_path / f"{1:012}"
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        assert shelf.load() == []


def test_disk_that_refuses_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shelf = Shelf(tmp_path / "ends")
    (tmp_path / "ends").rmdir()
    with caplog.at_level(logging.WARNING):
        assert shelf.keep([Kept(1, [ended(1)], [0])]) == [1]
        assert shelf.keep([Kept(2, [ended(2)], [0]), Kept(4, [ended(4)], [0])]) == [2, 4]
        assert caplog.text.count("ends_not_kept") == 1
        (tmp_path / "ends").mkdir()
        assert shelf.keep([Kept(3, [ended(3)], [0])]) == []
    assert [batch.seq for batch in shelf.load()] == [3]


def test_one_that_does_not_fit_keeps_no_other_from_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bytes = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        write_bytes(path, data[:100])
        if len(data) > 1000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_bytes(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    shelf = Shelf(tmp_path)
    large, small = ended(1, 1.0, bytes(10_000)), ended(2, 1.0)
    assert shelf.keep([Kept(1, [large], [0]), Kept(2, [small], [0])]) == [1]
    assert [path.name for path in tmp_path.iterdir()] == [f"{2:012}"], "nothing half-written stays on a full disk"


def test_file_that_cannot_be_read_now_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = Shelf(tmp_path)
    shelf.keep([Kept(1, [ended(1)], [0])])
    with monkeypatch.context() as failing:
        failing.setattr(Path, "read_bytes", lambda path: os.read(-1, 1))
        assert shelf.load() == []
    assert [batch.seq for batch in shelf.load()] == [1]


def test_what_the_disk_refused_is_tried_again() -> None:
    state = machine()
    run(state, 1, 1.0)
    state.take_messages()
    assert kept_by(state) == [[1]]
    state.not_kept([1])
    assert kept_by(state) == [], "not at once"
    for _ in range(TRY_AGAIN_EVERY):
        state.grow_old()
    assert kept_by(state) == [[1]]
    state.not_kept([1])
    assert kept_by(state, everything=True) == [[1]], "for a last time"
    state.not_kept([1])
    state.on_message(AckFinished(1), 0)
    assert state.take_over() == []
    assert not state.owes_ends


# ------------------------------------------------------------------------------------------------------- real workers


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "workers" / "w1" / "ends").iterdir())


@pytest.mark.asyncio
async def test_file_of_a_long_attempt_goes_with_its_acknowledgement(tmp_path: Path) -> None:
    async with running_worker(tmp_path) as run:
        run.daemon.acks = False
        await run.daemon.run(Command(["sleep", "1"]))
        assert len(files(tmp_path)) == 1
        run.daemon.send(AckFinished(1))
        await until(lambda: files(tmp_path) == [])


@pytest.mark.asyncio
async def test_ends_that_a_stopped_daemon_does_not_acknowledge(tmp_path: Path) -> None:
    """It reads and says nothing, as with a full disk."""
    async with running_worker(tmp_path) as run:
        run.daemon.acks = False
        await run.daemon.run(Command(["true"]))
        assert files(tmp_path) == []
        await until(lambda: len(files(tmp_path)) == 1)


def restart(folder: Path, daemon: FakeDaemon) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-m", "schedd.worker", "--connect", str(daemon.address), "--name", "w1"]
    return subprocess.Popen([*argv, "--state-dir", str(folder)])


@pytest.mark.asyncio
async def test_killed_worker_brings_what_had_ended(tmp_path: Path) -> None:
    """The daemon is away when a call ends; then the worker is killed, too."""
    async with running_program(tmp_path) as (program, run):
        daemon = run.daemon
        gate = tmp_path / "gate"
        script = f"while ! [ -e {gate} ]; do sleep 0.01; done; echo '[1]' > $SCHEDD_RESULT"
        (first,) = daemon.dispatch(Command(["sh", "-c", script]))
        (second,) = daemon.dispatch(Command(["sleep", "1000"]))
        await daemon.start_of(second)
        daemon.is_away = True
        daemon.hang_up()
        gate.touch()
        await until(lambda: len(files(tmp_path)) == 1)
        program.kill()
        program.wait()
        daemon.is_away = False
        again = restart(tmp_path, daemon)
        try:
            found = await daemon.end_of(first)
            assert (found.cause, found.result) == (Cause.OK, b"[1]\n")
            hello = daemon.hellos[-1]
            assert hello.incarnation != daemon.hellos[0].incarnation
            assert [(hold.task_id, hold.phase) for hold in hello.holds] == [(first, "finished")]
            await until(lambda: files(tmp_path) == [])
        finally:
            again.kill()
            again.wait()


@pytest.mark.asyncio
async def test_forced_worker_leaves_its_ends_on_disk(tmp_path: Path) -> None:
    async with running_worker(tmp_path) as run:
        run.daemon.acks = False
        value = await run.call(pow, 2, 5)
        run.worker.cancel()
        await asyncio.wait([run.worker])
        (batch,) = Shelf(tmp_path / "workers" / "w1" / "ends").load()
        assert [(one.task_id, one.result) for one in batch.attempts] == [(value.task_id, value.result)]
