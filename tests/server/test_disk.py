"""The disk of a running daemon: its power is cut, its syncs fail, the daemon dies inside a commit."""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from disks import Mounts, PowerDisk
from helpers import Cluster, DaemonProcess, wait_until

from schedd.core.model import Call, Cause, HoldsAttempt, HostUsage, TaskId
from schedd.wire import messages as m

from .peers import RawClient, RawWorker
from .test_durable import locked

CUTS = 20
TASKS_PER_SUBMIT = 3
#: Submits that wait for their answer while the next is sent.
AHEAD = 8
PAYLOAD = Call(path="test:nothing")
#: More than ever run at a time.
CPUS = 10_000


def result_of(task_id: TaskId) -> bytes:
    return b"result of %d" % task_id


class Told:
    """A client and a worker that keep a daemon busy, and what it has told them so far."""

    def __init__(self) -> None:
        self.admitted: set[TaskId] = set()
        self.ended: set[TaskId] = set()
        self._unacknowledged: dict[int, list[TaskId]] = {}

    def work(self, address: str, steps: int) -> None:
        """Submit, and end what is dispatched, without waiting for the last answers."""
        with RawClient(address) as client, RawWorker(address, "w1", cpus=CPUS) as worker:
            entries = [m.TaskEntry(0)] * TASKS_PER_SUBMIT
            for seq in range(1, steps + 1):
                client.send(m.Submit(client.number(), [m.TaskSpec(PAYLOAD)], entries, True))
                if seq > AHEAD:
                    self._admit(client.expect(m.Submitted))
                self._end(worker, seq)
                self._hear(client, worker)

    def _end(self, worker: RawWorker, seq: int) -> None:
        attempts = worker.expect(m.Dispatch).attempts
        ends = [m.AttemptFinished(a.task_id, a.attempt, Cause.OK, 1, 2, result_of(a.task_id)) for a in attempts]
        worker.send(m.AttemptsFinished(seq, ends))
        self._unacknowledged[seq] = [end.task_id for end in ends]

    def _admit(self, answer: m.Submitted) -> None:
        assert not self.admitted.intersection(answer.ids), "an id is given once"
        self.admitted.update(answer.ids)

    def _hear(self, client: RawClient, worker: RawWorker) -> None:
        for message in client.inbox:
            if isinstance(message, m.Submitted):
                self._admit(message)
            elif isinstance(message, m.TasksDone):
                self.ended.update(end.task_id for end in message.tasks)
        client.inbox.clear()
        for message in [message for message in worker.inbox if isinstance(message, m.AckFinished)]:
            worker.inbox.remove(message)
            for seq in [seq for seq in self._unacknowledged if seq <= message.seq]:
                self.ended.update(self._unacknowledged.pop(seq))

    def check(self, address: str) -> None:
        """All of it is there."""
        self._unacknowledged.clear()
        with RawClient(address) as client:
            rows = client.ask(m.ListTasks, m.Selection(), 5000, 0, True)
        states = {row.id: row.state for row in rows.tasks}
        results = {row.id: detail.result for row, detail in zip(rows.tasks, rows.details, strict=True)}
        assert states.keys() >= self.admitted
        assert {i: (states[i], results[i]) for i in self.ended} == {i: ("succeeded", result_of(i)) for i in self.ended}


@pytest.mark.timeout(300)
@pytest.mark.needs("root", "unshare", "nsenter", "mkfs.ext4", "loop")
def test_power_cuts(cluster: Cluster, tmp_path: Path) -> None:
    """Under `full`, nothing that was told before the disk lost its power is missing afterwards, cut after cut."""
    dice, told = random.Random(11), Told()
    with Mounts() as mounts:
        disk = PowerDisk(mounts, tmp_path)
        for _ in range(CUTS):
            daemon = cluster.start_daemon(env={"SCHEDD_STATE_DIR": str(disk.folder)}, prefix=mounts.prefix)
            told.check(cluster.address)
            told.work(cluster.address, dice.randrange(AHEAD + 2, 40))
            disk.cut_power()
            daemon.kill()
            disk.power_up()
        cluster.start_daemon(env={"SCHEDD_STATE_DIR": str(disk.folder)}, prefix=mounts.prefix)
        told.check(cluster.address)
        cluster.close()
    assert len(told.admitted) > CUTS * TASKS_PER_SUBMIT
    assert told.ended


@contextlib.contextmanager
def meddled(daemon: DaemonProcess, journal: Path, inject: str) -> Iterator[None]:
    """Meddle with calls of a running daemon that concern its write-ahead log."""
    argv = ["strace", "-f", "-P", f"{journal}-wal", "-e", "trace=fdatasync", "-e", f"inject={inject}"]
    said = journal.with_name("strace.out")
    with said.open("wb") as output, subprocess.Popen([*argv, "-p", str(daemon.pid)], stderr=output) as tracer:
        wait_until(lambda: b"attached" in said.read_bytes(), what="strace is attached")
        try:
            yield
        finally:
            tracer.send_signal(signal.SIGINT)


@pytest.mark.needs("strace")
@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
def test_syncs_that_fail(cluster: Cluster, error: str) -> None:
    """New submits are refused with the reason, what runs goes on, all is answered once syncs succeed; no restart."""
    daemon = cluster.start_daemon()
    journal = cluster.folder / "daemon" / "journal.db"
    with RawClient(cluster.address) as client, RawWorker(cluster.address, "w1", cpus=4) as worker:
        known = client.submit(2)
        first, second = worker.attempts(2)
        with meddled(daemon, journal, f"fdatasync:error={error}"):
            number = client.number()
            client.send(m.Submit(number, [m.TaskSpec(PAYLOAD)], [m.TaskEntry(0)]))
            wait_until(lambda: "journal_failing" in daemon.log())
            with RawClient(cluster.address) as other:
                refused = other.ask(m.Submit, [m.TaskSpec(PAYLOAD)], [m.TaskEntry(0)])
                assert (refused.code, "disk I/O error" in refused.message) == (m.JOURNAL_FAILING, True)
                assert "by itself" in refused.hint
                worker.start(first)
                wait_until(lambda: other.state_of(first.task_id) == "running")
            worker.send(m.AttemptsFinished(1, [m.AttemptFinished(second.task_id, 1, Cause.OK, 1, 2, b"r")]))
            worker.expect_silence(0.2)
            assert not [message for message in worker.inbox if isinstance(message, m.AckFinished)]
            assert not client.inbox
        assert worker.expect(m.AckFinished).seq == 1
        known += client.answer(number).ids
        wait_until(lambda: "journal_recovered" in daemon.log())
        known += client.submit()
        daemon.kill()
    cluster.start_daemon()
    with RawClient(cluster.address) as client:
        rows = {row.id: row.state for row in client.ask(m.ListTasks, m.Selection()).tasks}
        assert list(rows) == known == [1, 2, 3, 4]
        assert rows[second.task_id] == "succeeded"


@pytest.mark.needs("strace")
@pytest.mark.parametrize("nth", [1, 2, 5])
def test_daemon_killed_inside_a_commit(cluster: Cluster, nth: int) -> None:
    """What it was about to sync nobody was told of; all that was told is there."""
    daemon = cluster.start_daemon()
    with RawClient(cluster.address) as client:
        known = client.submit(2, hold=True)  # the first commit of a new log has a sync more
        with meddled(daemon, cluster.folder / "daemon" / "journal.db", f"fdatasync:signal=KILL:when={nth}"):
            with contextlib.suppress(EOFError, ConnectionError):
                while True:
                    known += client.submit(2, hold=True)
            assert daemon.wait() == -signal.SIGKILL
    assert len(known) == 2 * nth
    cluster.start_daemon()
    with RawClient(cluster.address) as client:
        ids = [row.id for row in client.ask(m.ListTasks, m.Selection()).tasks]
    assert ids in (known, [*known, *range(len(known) + 1, len(known) + 3)])


def test_end_that_is_not_on_disk_when_its_worker_comes_again(cluster: Cluster) -> None:
    """The daemon knows it and says so to nobody: the worker keeps it, and the next daemon gets it from there."""
    daemon = cluster.start_daemon()
    with RawClient(cluster.address) as client, RawWorker(cluster.address, "w1") as worker:
        client.submit()
        (attempt,) = worker.attempts()
        end = m.AttemptsFinished(1, [m.AttemptFinished(attempt.task_id, 1, Cause.OK, 1, 2, b"r")])
        hold = HoldsAttempt(attempt.task_id, 1, "finished", 1, (), 0, worker.specs[0].defined_ns)
        with locked(cluster):
            worker.send(end)
            wait_until(lambda: client.state_of(attempt.task_id) == "succeeded")
            with RawWorker(cluster.address, "w1", holds=[hold]) as again:
                again.send(end, m.Heartbeat(HostUsage()))
                again.expect(m.HeartbeatReply)
                assert not [message for message in again.inbox if isinstance(message, (m.DropAttempts, m.AckFinished))]
            daemon.kill()
    cluster.start_daemon()
    with RawClient(cluster.address) as client, RawWorker(cluster.address, "w1", holds=[hold]) as worker:
        worker.send(end)
        assert worker.expect(m.AckFinished).seq == 1
        assert client.state_of(attempt.task_id) == "succeeded"
