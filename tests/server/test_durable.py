"""What was told is on disk: the order of promises, and a daemon that is killed right after it has said something."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers import Cluster, DaemonProcess, wait_until

from schedd.core import effects as fx
from schedd.core.model import Call, Cause, HoldsAttempt, HostUsage, Instant, TaskId
from schedd.journal.records import FinishedTask
from schedd.server.durable import Promises
from schedd.wire import messages as m

from .peers import RawClient, RawWorker

PAYLOAD = Call(path="test:nothing")
FACT: fx.Fact = fx.TaskHeld(TaskId(1))


class FakeJournal:
    """Takes turns; commits when it is told to."""

    def __init__(self, durability: str = "full") -> None:
        self.durability = durability
        self.turns: list[int] = []

    def append(
        self, turn: int, facts: list[fx.Fact], finished: list[FinishedTask], now: Instant, can_wait: bool = False
    ) -> None:
        self.turns.append(turn)


class Bench:
    """Promises on a loop of their own, and what was kept of them."""

    def __init__(self, journal: FakeJournal | None) -> None:
        self.kept: list[str] = []
        self.flushes = 0
        self.promises = Promises(self.flush, asyncio.get_running_loop())
        self.promises.journal = journal  # type: ignore[assignment]

    def flush(self) -> None:
        self.flushes += 1

    def turn(self, number: int, *names: str, facts: bool = True) -> None:
        def promise(name: str) -> Callable[[], None]:
            return lambda: self.kept.append(name)

        effects = fx.Effects([FACT] if facts else [], [])
        self.promises.record(number, effects, [promise(name) for name in names], 0)

    async def committed(self, turn: int) -> None:
        """Told by the writer's thread; heard in the loop."""
        await asyncio.to_thread(self.promises.committed, turn)
        await asyncio.sleep(0)


@pytest.mark.asyncio
async def test_promises_wait_for_their_commit_and_keep_their_order() -> None:
    bench = Bench(FakeJournal())
    bench.turn(1, "a", "b")
    bench.turn(2)
    bench.turn(3, "c")
    bench.turn(4, "d")
    assert (bench.kept, bench.promises.pending_count) == ([], 3)
    await bench.committed(2)
    assert (bench.kept, bench.flushes) == (["a", "b"], 1)
    await bench.committed(4)
    assert (bench.kept, bench.flushes, bench.promises.pending_count) == (["a", "b", "c", "d"], 2, 0)


@pytest.mark.asyncio
async def test_turn_without_facts_does_not_overtake() -> None:
    """Its answer may rest on what is still being written: the same submit, asked once more."""
    bench = Bench(FakeJournal())
    bench.turn(1, "submitted")
    bench.turn(2, "submitted again", facts=False)
    bench.turn(3, "later")
    assert not bench.kept
    await bench.committed(1)
    assert bench.kept == ["submitted", "submitted again"]
    bench.turn(4, "nothing to do with it", facts=False)
    assert bench.kept == ["submitted", "submitted again"], "the third is before it"
    await bench.committed(3)
    bench.turn(5, "at once", facts=False)
    assert bench.kept[2:] == ["later", "nothing to do with it", "at once"]


@pytest.mark.asyncio
async def test_turn_without_facts_waits_for_those_that_promised_nothing() -> None:
    """The end of a command that took many turns."""
    bench = Bench(FakeJournal())
    bench.turn(1)
    bench.turn(2)
    bench.turn(3, "all are held", facts=False)
    await bench.committed(1)
    assert bench.kept == []
    await bench.committed(2)
    assert bench.kept == ["all are held"]


@pytest.mark.asyncio
@pytest.mark.parametrize("journal", [None, FakeJournal("off")])
async def test_nobody_waits(journal: FakeJournal | None) -> None:
    bench = Bench(journal)
    bench.turn(1, "a")
    bench.turn(2, "b", facts=False)
    assert bench.kept == ["a", "b"]
    assert journal is None or journal.turns == [1]


@pytest.mark.asyncio
async def test_commit_that_keeps_no_promise_writes_nothing() -> None:
    bench = Bench(FakeJournal())
    bench.turn(1)
    await bench.committed(1)
    assert bench.flushes == 0


@pytest.mark.asyncio
async def test_failure_and_recovery() -> None:
    bench = Bench(FakeJournal())
    await asyncio.to_thread(bench.promises.failing, "disk full")
    await asyncio.sleep(0)
    assert bench.promises.failure == "disk full"
    await asyncio.to_thread(bench.promises.failing, "")
    await asyncio.sleep(0)
    assert bench.promises.failure == ""


# ------------------------------------------------------------------------------------------------------------ kill -9


def test_acknowledged_submit_survives_a_kill(cluster: Cluster) -> None:
    """The daemon dies the moment after its answer was read, again and again."""
    known: list[TaskId] = []
    for count in (1, 300, 2):
        daemon = cluster.start_daemon()
        with RawClient(cluster.address) as client:
            known += client.submit(count, hold=True)
            daemon.kill()
    cluster.start_daemon()
    with RawClient(cluster.address) as client:
        rows = client.ask(m.ListTasks, m.Selection(), 5000).tasks
        assert [row.id for row in rows] == known == list(range(1, 304))
        assert {row.state for row in rows} == {"held"}


def test_acknowledged_changes_survive_a_kill(cluster: Cluster) -> None:
    daemon = cluster.start_daemon()
    with RawClient(cluster.address) as client:
        client.submit(5)
        client.ask(m.HoldTasks, m.Selection([TaskId(1), TaskId(2)]))
        client.ask(m.ReleaseTasks, m.Selection([TaskId(2)]))
        client.ask(m.SetPriorities, [(TaskId(3), 7.0)])
        client.ask(m.CancelTasks, m.Selection([TaskId(4)]))
        daemon.kill()
    cluster.start_daemon()
    with RawClient(cluster.address) as client:
        rows = client.ask(m.ListTasks, m.Selection()).tasks
        assert [row.state for row in rows] == ["held", "queued", "queued", "cancelled", "queued"]
        assert [row.priority for row in rows] == [0, 0, 7, 0, 0]


def test_told_end_survives_a_kill(cluster: Cluster) -> None:
    """With its result, which another client reads from the journal."""
    daemon = cluster.start_daemon()
    with RawClient(cluster.address) as client, RawWorker(cluster.address, "w1") as worker:
        client.submit(watch=True)
        worker.finish(*worker.attempts(), result=b"the result")
        (end,) = client.ends(1)
        assert end.result == b"the result"
        daemon.kill()
    cluster.start_daemon()
    with RawClient(cluster.address) as client:
        assert client.state_of(TaskId(1)) == "succeeded"
        client.ask(m.WatchTasks, m.Selection([TaskId(1)]), True)
        (end,) = client.ends(1)
        assert (end.state, end.result, end.kept) == ("succeeded", b"the result", True)
        detail = client.ask(m.ListTasks, m.Selection([TaskId(1)]), 10, 0, True).details[0]
        assert detail.result == b"the result"


def test_cancel_of_what_runs_survives_a_kill(cluster: Cluster) -> None:
    """The worker never heard of it."""
    daemon = cluster.start_daemon()
    with RawClient(cluster.address) as client, RawWorker(cluster.address, "w1") as worker:
        client.submit()
        (attempt,) = worker.attempts()
        worker.start(attempt)
        wait_until(lambda: client.state_of(TaskId(1)) == "running")
        assert client.ask(m.CancelTasks, m.Selection([TaskId(1)])).changed == 1
        daemon.kill()
        defined_ns = worker.specs[0].defined_ns
    cluster.start_daemon()
    hold = HoldsAttempt(TaskId(1), 1, "running", 0, (), 0, defined_ns)
    with RawClient(cluster.address) as client, RawWorker(cluster.address, "w1", holds=[hold]) as worker:
        assert worker.expect(m.DropAttempts).attempts == [(1, 1)]
        assert client.state_of(TaskId(1)) == "cancelled"


def test_failure_that_may_be_out_of_date_is_not_acknowledged_before_all_have_come(cluster: Cluster) -> None:
    """It is an attempt of the start before the last: somebody who is still to come may have a newer one."""
    daemon = cluster.start_daemon()
    with RawClient(cluster.address) as client, RawWorker(cluster.address, "w1") as worker:
        client.submit()
        (attempt,) = worker.attempts()
        worker.start(attempt)
        wait_until(lambda: client.state_of(TaskId(1)) == "running")
        spec = worker.specs[0]
        assert spec.epoch == 1
        with RawWorker(cluster.address, "w2") as other:
            client.submit()
            other.attempts()
            daemon.kill()
    cluster.start_daemon().kill()
    cluster.start_daemon()
    hold = HoldsAttempt(TaskId(1), 1, "finished", 1, (), 0, spec.defined_ns, spec.epoch)
    with RawClient(cluster.address) as client, RawWorker(cluster.address, "w1", holds=[hold]) as worker:
        worker.send(m.AttemptsFinished(1, [m.AttemptFinished(TaskId(1), 1, Cause.ERROR, 1, 2)]))
        wait_until(lambda: client.state_of(TaskId(1)) == "assigned")
        client.submit()  # is answered after the commit of what came before
        worker.send(m.Heartbeat(HostUsage()))
        worker.expect(m.HeartbeatReply)
        assert not [message for message in worker.inbox if isinstance(message, m.AckFinished)]
        with RawWorker(cluster.address, "w2"):
            assert worker.expect(m.AckFinished).seq == 1
        wait_until(lambda: client.state_of(TaskId(1)) == "failed")


@contextlib.contextmanager
def locked(cluster: Cluster) -> Iterator[None]:
    """Hold the journal of a running daemon, so that nothing can be committed meanwhile."""
    with contextlib.closing(sqlite3.connect(cluster.folder / "daemon" / "journal.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


def test_nobody_is_told_before_the_commit(cluster: Cluster) -> None:
    """Neither the client of the end, nor the worker that it may forget it, nor who submits; and then all are."""
    cluster.start_daemon()
    with RawClient(cluster.address) as client, RawWorker(cluster.address, "w1") as worker:
        client.submit(2, watch=True)
        attempts = worker.attempts()
        with locked(cluster):
            worker.send(m.AttemptsFinished(1, [m.AttemptFinished(TaskId(1), 1, Cause.OK, 1, 2, b"r")]))
            client.send(m.Submit(900, [m.TaskSpec(PAYLOAD)], [m.TaskEntry(0)]))
            with RawClient(cluster.address) as other:
                wait_until(lambda: other.state_of(attempts[0].task_id) == "succeeded")
                # Known to whoever asks for the state; but a watch waits for the end to be safe.
                assert other.ask(m.WatchTasks, m.Selection([TaskId(1)]), True).finished == 0
                client.expect_silence(0.2)
                worker.expect_silence(0.1)
                assert not any(isinstance(message, (m.TasksDone, m.Submitted)) for message in client.inbox)
                assert not any(isinstance(message, m.AckFinished) for message in worker.inbox)
                # What promises nothing goes on: the second task, whose submit is on disk, is dispatched.
                assert worker.attempts()[0].task_id == 2
        assert client.ends(1)[0].result == b"r"
        assert client.answer(900).ids == [3]
        assert worker.expect(m.AckFinished).seq == 1


def test_task_starts_when_its_submit_is_on_disk(cluster: Cluster) -> None:
    """And what is said of it meanwhile does not overtake it."""
    cluster.start_daemon()
    with RawClient(cluster.address) as client, RawWorker(cluster.address, "w1") as worker:
        with locked(cluster):
            client.send(m.Submit(900, [m.TaskSpec(PAYLOAD)], [m.TaskEntry(0)]))
            with RawClient(cluster.address) as other:
                wait_until(lambda: other.ask(m.GetStats).placements_total == 1)
                client.send(m.CancelTasks(901, m.Selection([TaskId(1)])))
                wait_until(lambda: other.ask(m.ExplainTask, TaskId(1)).state == "assigned")
            worker.expect_silence(0.2)
            assert not worker.inbox
        (attempt,) = worker.attempts()
        assert worker.expect(m.StopAttempts).attempts == [(attempt.task_id, attempt.attempt)]
        assert client.answer(900).ids == [1]


def test_disk_that_refuses_keeps_no_task_from_starting(cluster: Cluster) -> None:
    daemon = cluster.start_daemon()
    with RawClient(cluster.address) as client, RawWorker(cluster.address, "w1") as worker, locked(cluster):
        client.send(m.Submit(900, [m.TaskSpec(PAYLOAD)], [m.TaskEntry(0)] * 2))
        wait_until(lambda: "journal_failing" in daemon.log())
        (first,) = worker.attempts()
        assert first.task_id == 1
        worker.start(first)
        worker.send(m.AttemptsFinished(1, [m.AttemptFinished(first.task_id, first.attempt, Cause.OK, 1, 2)]))
        (second,) = worker.attempts()
        assert second.task_id == 2
        worker.start(second)
        client.send(m.CancelTasks(901, m.Selection([second.task_id])))
        assert worker.expect(m.StopAttempts).attempts == [(2, 1)]


def test_submit_that_comes_twice(cluster: Cluster) -> None:
    """On another connection, and to the next start of the daemon, with the end of before."""
    daemon = cluster.start_daemon()
    submit = ([m.TaskSpec(PAYLOAD)], [m.TaskEntry(0, b"x"), m.TaskEntry(0, b"y")], True, False, "client", 1, 1)
    with RawClient(cluster.address) as client, RawWorker(cluster.address, "w1") as worker:
        first = client.ask(m.Submit, *submit)
        worker.finish(*worker.attempts(), result=b"r")
    with RawClient(cluster.address) as client:
        again = client.ask(m.Submit, *submit)
        assert (again.ids, again.submitted_ns) == ([1, 2], first.submitted_ns * 2)
        assert client.ends(1)[0].result == b"r"
    daemon.kill()
    cluster.start_daemon()
    with RawClient(cluster.address) as client:
        assert client.ask(m.Submit, *submit).ids == [1, 2]
        assert client.ends(1)[0].result == b"r"
        assert len(client.ask(m.ListTasks, m.Selection()).tasks) == 2


def test_watch_that_goes_on(cluster: Cluster) -> None:
    """What is known is watched or told, what memory has forgotten comes from the journal, the rest is named."""
    cluster.start_daemon("[limits]\nfinished_keep_count = 1\n")
    with RawClient(cluster.address) as client, RawWorker(cluster.address, "w1", cpus=3) as worker:
        specs = [m.TaskSpec(PAYLOAD), m.TaskSpec(PAYLOAD, hold=True)]
        at_ns = client.ask(m.Submit, specs, [m.TaskEntry(0)] * 3 + [m.TaskEntry(1)]).submitted_ns[0]
        for attempt in worker.attempts(3):
            worker.finish(attempt, result=b"%d" % attempt.task_id)
    with RawClient(cluster.address) as client:
        ids = [TaskId(i) for i in (1, 2, 3, 4, 9)]
        answer = client.ask(m.WatchTasks, m.Selection(ids), True, True, False, True, [at_ns, 0, at_ns, at_ns, 0])
        assert (answer.total, answer.finished, answer.unknown) == (4, 3, [9])
        told = {end.task_id: end.result for end in client.ends(3)}
        assert told == {1: b"1", 2: b"2", 3: b"3"}
        client.ask(m.CancelTasks, m.Selection([TaskId(4)]))
        assert client.ends(1)[0].state == "cancelled"
        # Another task of that id is not the one that is meant.
        other = client.ask(m.WatchTasks, m.Selection(ids[:4]), True, True, False, True, [1, 1, 1, 1])
        assert (other.total, other.unknown) == (0, [1, 2, 3, 4])


def test_watch_without_a_journal_names_what_is_forgotten(cluster: Cluster) -> None:
    cluster.start_daemon("[journal]\nenabled = false\n")
    with RawClient(cluster.address) as client:
        client.submit(hold=True)
        answer = client.ask(m.WatchTasks, m.Selection([TaskId(1), TaskId(2)]), True, True, False, True)
        assert (answer.total, answer.finished, answer.unknown) == (1, 0, [2])


def test_journal_that_cannot_be_written(cluster: Cluster) -> None:
    """New submits are refused with the reason, all else goes on, and it recovers by itself."""
    daemon = cluster.start_daemon()
    with RawClient(cluster.address) as client, RawClient(cluster.address) as other:
        client.submit(hold=True)
        with locked(cluster):
            hold = m.HoldTasks(900, m.Selection([TaskId(1)]))
            client.send(hold, m.Submit(901, [m.TaskSpec(PAYLOAD)], [m.TaskEntry(0)]))
            wait_until(lambda: "journal_failing" in daemon.log())
            refused = other.ask(m.Submit, [m.TaskSpec(PAYLOAD)], [m.TaskEntry(0)])
            assert (refused.code, "database is locked" in refused.message) == (m.JOURNAL_FAILING, True)
            assert "by itself" in refused.hint
            assert other.state_of(TaskId(1)) == "held"
        assert client.answer(900).changed == 0
        assert client.answer(901).ids == [2]
        wait_until(lambda: "journal_recovered" in daemon.log())
        assert other.submit() == [3]


@pytest.mark.needs("root", "unshare")
def test_disk_of_a_daemon_fills_up(cluster: Cluster, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    program = ["-c", _IN_NAMESPACE, str(disk)]
    daemon = cluster.start_daemon(env={"SCHEDD_STATE_DIR": str(disk)}, program=program)
    with RawClient(cluster.address) as client:
        known: list[TaskId] = []
        answered = True
        while answered:
            number = client.number()
            client.send(m.Submit(number, [m.TaskSpec(PAYLOAD, hold=True)], [m.TaskEntry(0, os.urandom(10_000))]))
            answered = _answered(client, number, daemon)
            if answered:
                known += client.answer(number).ids
        with RawClient(cluster.address) as other:
            assert other.ask(m.Submit, [m.TaskSpec(PAYLOAD)], [m.TaskEntry(0)]).code == m.JOURNAL_FAILING
        (disk.parent / "room").touch()
        known += client.answer(number).ids
        wait_until(lambda: "journal_recovered" in daemon.log())
        assert client.submit(hold=True) == [known[-1] + 1]
    assert daemon.stop() == 0


def _answered(client: RawClient, number: int, daemon: DaemonProcess) -> bool:
    """Whether an answer comes before the daemon says that its disk refuses."""

    def there() -> bool:
        client.expect_silence(0.02)
        return any(getattr(message, "request", None) == number for message in client.inbox)

    wait_until(lambda: "journal_failing" in daemon.log() or there())
    return there()


#: A daemon in a mount namespace of its own, whose state is on a small disk; more room comes with a file named `room`.
_IN_NAMESPACE = """
import ctypes, os, pathlib, subprocess, sys, threading, time
disk = sys.argv[1]
libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare(0x00020000) == 0, os.strerror(ctypes.get_errno())
subprocess.run(["mount", "--make-rprivate", "/"], check=True)
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "none", disk], check=True)
def grow():
    while not (pathlib.Path(disk).parent / "room").exists():
        time.sleep(0.01)
    subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
threading.Thread(target=grow, daemon=True).start()
import runpy
sys.argv[1:] = sys.argv[2:]
runpy.run_module("schedd.server", run_name="__main__", alter_sys=True)
"""


# ---------------------------------------------------------------------------------------------------- without a journal


def test_daemon_without_a_journal(cluster: Cluster) -> None:
    daemon = cluster.start_daemon("[journal]\nenabled = false\n")
    assert "no_journal" in daemon.log()
    with RawClient(cluster.address) as client:
        client.submit()
        for request in (m.ListHistory, m.ListEvents, m.BackUp):
            refused = client.ask(request, *(["/tmp/x"] if request is m.BackUp else []))
            assert refused.code == m.NO_JOURNAL
    daemon.kill()
    assert not (cluster.folder / "daemon" / "journal.db").exists()


def test_durability_off_is_still_a_journal(cluster: Cluster) -> None:
    """An orderly end loses nothing."""
    daemon = cluster.start_daemon("[journal]\ndurability = 'off'\n")
    with RawClient(cluster.address) as client:
        client.submit(3, hold=True)
    assert daemon.stop() == 0
    cluster.start_daemon()
    with RawClient(cluster.address) as client:
        assert len(client.ask(m.ListTasks, m.Selection()).tasks) == 3


# ------------------------------------------------------------------------------------------------------ what is on disk


def test_result_that_memory_does_not_keep(cluster: Cluster) -> None:
    """It goes to the watcher from the journal, in its turn, and so it does for a later one."""
    cluster.start_daemon("[limits]\nresults_keep_mb = 0.0\n")
    with RawClient(cluster.address) as client, RawWorker(cluster.address, "w1", cpus=300) as worker:
        ids = client.submit(300, watch=True)
        for attempt in worker.attempts(300):
            worker.send(m.AttemptsFinished(attempt.task_id, [_end(attempt, b"result of %d" % attempt.task_id)]))
        told = {end.task_id: end.result for end in client.ends(300)}
        assert told == {i: b"result of %d" % i for i in ids}
        with RawClient(cluster.address) as other:
            other.ask(m.WatchTasks, m.Selection(ids), True)
            assert {end.task_id: end.result for end in other.ends(300)} == told


def _end(attempt: m.WireAttempt, result: bytes) -> m.AttemptFinished:
    return m.AttemptFinished(attempt.task_id, attempt.attempt, Cause.OK, 1, 2, result)


def test_submit_again_of_what_has_ended_before_a_restart(cluster: Cluster) -> None:
    """The key names the old task, whose end and result come at once; what differs is refused."""
    daemon = cluster.start_daemon()
    spec = m.TaskSpec(PAYLOAD)
    with RawClient(cluster.address) as client, RawWorker(cluster.address, "w1") as worker:
        assert client.ask(m.Submit, [spec], [m.TaskEntry(0, b"x", "key")]).ids == [1]
        worker.finish(*worker.attempts(), result=b"r")
    daemon.kill()
    cluster.start_daemon()
    with RawClient(cluster.address) as client:
        assert client.ask(m.Submit, [spec], [m.TaskEntry(0, b"x", "key")], True).ids == [1]
        (end,) = client.ends(1)
        assert (end.task_id, end.result, end.kept) == (1, b"r", True)
        assert client.ask(m.Submit, [spec], [m.TaskEntry(0, b"y", "key")]).code == m.KEY_CONFLICT


def test_history_in_pages(cluster: Cluster) -> None:
    cluster.start_daemon()
    with RawClient(cluster.address) as client, RawWorker(cluster.address, "w1", cpus=100) as worker:
        client.submit(60, job="a", kind="x")
        client.submit(40, job="b", kind="y")
        attempts = worker.attempts(100)
        worker.finish(*attempts[:90])
        worker.finish(*attempts[90:], cause=Cause.ERROR)
        seen: list[TaskId] = []
        cursor = (0, 0)
        while True:
            page = client.ask(m.ListHistory, "", "", [], 0, cursor, 7)
            assert len(page.attempts) == len(page.tasks) <= 7
            seen += [task.id for task in page.tasks]
            cursor = page.cursor
            if cursor == (0, 0):
                break
        assert sorted(seen) == list(range(1, 101))
        assert len(client.ask(m.ListHistory, "a").tasks) == 60
        assert len(client.ask(m.ListHistory, "", "y").tasks) == 40
        failed = client.ask(m.ListHistory, "b", "y", ["failed"])
        assert {task.state for task in failed.tasks} == {"failed"}
        assert len(failed.tasks) == 10
        last = max(task.finished_at for task in failed.tasks)
        assert client.ask(m.ListHistory, "", "", [], int((last + 1) * 1e9)).tasks == []


def test_backup(cluster: Cluster, tmp_path: Path) -> None:
    daemon = cluster.start_daemon()
    target = tmp_path / "copy.db"
    with RawClient(cluster.address) as client:
        client.submit(10, hold=True)
        answer = client.ask(m.BackUp, str(target))
        assert (answer.path, answer.size_bytes) == (str(target), target.stat().st_size)
        again = client.ask(m.BackUp, str(target))
        assert (again.code, "exists" in again.message) == (m.JOURNAL_FAILING, True)
    daemon.kill()
    cluster.start_daemon(f"[journal]\npath = {str(target)!r}\n")
    with RawClient(cluster.address) as client:
        assert len(client.ask(m.ListTasks, m.Selection()).tasks) == 10


def test_daemon_does_not_start_with_a_damaged_journal(cluster: Cluster) -> None:
    path = cluster.folder / "daemon" / "journal.db"
    path.parent.mkdir()
    path.write_bytes(b"this is no journal" * 1000)
    daemon = cluster.start_daemon(wait=False)
    assert daemon.wait() == 8
    assert "not a database" in daemon.log()
    assert "journal salvage" in daemon.log()
    assert "Traceback" not in daemon.log()


def test_second_daemon_of_a_journal(cluster: Cluster) -> None:
    first = cluster.start_daemon()
    second = cluster.start_daemon(wait=False)
    assert second.wait() == 8
    assert "in use by another daemon" in second.log()
    assert first.is_alive


def test_end_of_a_later_turn_is_not_acknowledged_with_an_earlier_one(cluster: Cluster) -> None:
    """Two messages that came together, of more tasks than one turn is about; the daemon dies after its first word."""
    count = 3000
    daemon = cluster.start_daemon()
    with RawClient(cluster.address) as client, RawWorker(cluster.address, "w", cpus=2 * count) as worker:
        client.submit(2 * count)
        attempts = worker.attempts(2 * count)
        parts = [attempts[:count], attempts[count:]]
        messages = [
            m.AttemptsFinished(seq, [m.AttemptFinished(a.task_id, a.attempt, Cause.OK, 1, 2) for a in part])
            for seq, part in enumerate(parts, 1)
        ]
        worker.send(*messages)
        acknowledged = [worker.expect(m.AckFinished).seq]
        daemon.kill()
        with contextlib.suppress(EOFError, OSError):
            while True:
                acknowledged.append(worker.expect(m.AckFinished).seq)
    cluster.start_daemon()
    with RawClient(cluster.address) as client:
        told = [a.task_id for a in parts[max(acknowledged) - 1]]
        rows = client.ask(m.ListTasks, m.Selection(ids=told), 5000).tasks
        assert {row.state for row in rows} == {"succeeded"}
