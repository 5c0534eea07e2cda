"""Tasks that have ended and are no longer in memory: the journal has them, and nobody is left waiting."""

from __future__ import annotations

import pytest
from helpers import Cluster

from schedd.core.model import Selection, TaskId
from schedd.wire import messages as m

from .peers import RawClient, RawWorker

KEEP_ONE = "[limits]\nfinished_keep_count = 1\n"
MODES = {
    "full": KEEP_ONE,
    "off": KEEP_ONE + '[journal]\ndurability = "off"\n',
    "no journal": KEEP_ONE + "[journal]\nenabled = false\n",
}


@pytest.mark.parametrize("mode", MODES)
def test_watcher_is_told_of_all_that_end_together(cluster: Cluster, mode: str) -> None:
    cluster.start_daemon(MODES[mode])
    with RawClient(cluster.address) as client, RawWorker(cluster.address, "w", cpus=50) as worker:
        ids = client.submit(50, watch=True)
        worker.finish(*worker.attempts(50), result=b"value")
        ends = client.ends(50)
        assert sorted(end.task_id for end in ends) == ids
        assert {(end.state, end.result) for end in ends} == {("succeeded", b"value")}


@pytest.mark.parametrize("mode", ["full", "off"])
def test_end_that_was_forgotten_is_told_from_the_journal(cluster: Cluster, mode: str) -> None:
    cluster.start_daemon(MODES[mode])
    with RawClient(cluster.address) as client, RawWorker(cluster.address, "w", cpus=3) as worker:
        ids = client.submit(3)
        for number, attempt in enumerate(worker.attempts(3)):
            worker.finish(attempt, result=b"%d" % number)
        answer = client.ask(m.WatchTasks, Selection(ids=ids), True)
        assert (answer.total, answer.finished) == (3, 3)
        assert {end.task_id: end.result for end in client.ends(3)} == dict(zip(ids, (b"0", b"1", b"2"), strict=True))


def test_forgotten_and_living_tasks_are_watched_together(cluster: Cluster) -> None:
    cluster.start_daemon(KEEP_ONE)
    with RawClient(cluster.address) as client, RawWorker(cluster.address, "w") as worker:
        ids = client.submit(4)
        for _ in range(3):
            worker.finish(*worker.attempts())
        answer = client.ask(m.WatchTasks, Selection(ids=ids), False)
        assert (answer.total, answer.finished) == (4, 3)
        assert sorted(end.task_id for end in client.ends(3)) == ids[:3]
        worker.finish(*worker.attempts())
        assert [end.task_id for end in client.ends(1)] == ids[3:]


def test_show_of_a_forgotten_task(cluster: Cluster) -> None:
    cluster.start_daemon(KEEP_ONE)
    with RawClient(cluster.address) as client, RawWorker(cluster.address, "w", cpus=3) as worker:
        ids = client.submit(3, job="j")
        for attempt in worker.attempts(3):
            worker.finish(attempt, result=b"value")
        answer = client.ask(m.ListTasks, Selection(ids=[*ids, TaskId(99)]), 100, 0, True)
        assert [(task.id, task.state, task.job) for task in answer.tasks] == [(i, "succeeded", "j") for i in ids]
        assert [detail.result for detail in answer.details] == [b"value"] * 3
        assert {detail.attempts[0].worker_id for detail in answer.details} == {"w"}
        pages = client.ask(m.ListTasks, Selection(ids=ids), 1, ids[0])
        assert ([task.id for task in pages.tasks], pages.more) == ([ids[1]], True)
        narrowed = client.ask(m.ListTasks, Selection(ids=ids, states=["failed"]))
        assert (narrowed.tasks, narrowed.more) == ([], False)


def test_forgotten_before_a_restart(cluster: Cluster) -> None:
    cluster.start_daemon(KEEP_ONE)
    with RawClient(cluster.address) as client, RawWorker(cluster.address, "w", cpus=3) as worker:
        ids = client.submit(3)
        worker.finish(*worker.attempts(3), result=b"value")
    cluster.daemon.stop()
    cluster.start_daemon(KEEP_ONE)
    with RawClient(cluster.address) as client:
        client.ask(m.WatchTasks, Selection(ids=ids), True)
        assert {end.task_id: end.result for end in client.ends(3)} == dict.fromkeys(ids, b"value")


def test_what_never_was_is_still_unknown(cluster: Cluster) -> None:
    cluster.start_daemon(KEEP_ONE)
    with RawClient(cluster.address) as client, RawWorker(cluster.address, "w", cpus=2) as worker:
        client.submit(2)
        worker.finish(*worker.attempts(2))
        for kind in (m.ListTasks, m.WatchTasks):
            refused = client.ask(kind, Selection(ids=[TaskId(99)]))
            assert (type(refused), refused.code) == (m.RequestFailed, m.UNKNOWN_TASK)
        refused = client.ask(m.WatchTasks, Selection(ids=[TaskId(1), TaskId(99), TaskId(2**63)]))
        assert refused.code == m.UNKNOWN_TASK
        assert len(client.ask(m.ListTasks, Selection(ids=[TaskId(1), TaskId(2**63)])).tasks) == 1


def test_output_of_a_forgotten_task_is_asked_for_at_its_worker(cluster: Cluster) -> None:
    cluster.start_daemon(KEEP_ONE)
    with RawClient(cluster.address) as client, RawWorker(cluster.address, "w", cpus=2) as worker:
        ids = client.submit(2)
        worker.finish(*worker.attempts(2))
        number = client.number()
        client.send(m.ReadLog(number, ids[0], 0, "stdout", 0, 100))
        asked = worker.expect(m.FetchLog)
        assert (asked.task_id, asked.attempt) == (ids[0], 1)
        worker.send(m.LogPiece(asked.request, b"text", 0, 4, True))
        assert client.answer(number).data == b"text"
