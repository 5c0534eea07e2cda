"""Watches: who hears of which end, with what, and when."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from helpers import wait_until

from schedd.core.model import AttemptReport, Call, Cause, Selection, TaskId, TaskRequirements, WorkerResources
from schedd.wire import messages as m

from .peers import RawClient, RawWorker


@pytest.fixture
def worker(address: str, name: str) -> Iterator[RawWorker]:
    with RawWorker(address, name, resources=WorkerResources(cpus=1000, labels={"only": name})) as peer:
        yield peer


@pytest.fixture
def wanted(name: str) -> TaskRequirements:
    """What only `worker` has."""
    return TaskRequirements(labels={"only": name})


def pushes(client: RawClient) -> list[object]:
    """What the daemon has pushed by the time that it answers a question."""
    client.ask(m.GetStats)
    return [x for x in client.inbox if isinstance(x, m.TasksDone | m.TaskReports)]


def test_finished_tasks_are_told_at_once(client: RawClient, worker: RawWorker, wanted: TaskRequirements) -> None:
    ids = client.submit(3, requirements=wanted)
    worker.finish(*worker.attempts(3), result=b"value")
    answer = client.ask(m.WatchTasks, Selection(ids=ids), True)
    assert (answer.total, answer.finished) == (3, 3)
    ends = client.ends(3)
    assert [(end.task_id, end.state, end.cause, end.result, end.kept) for end in ends] == [
        (task_id, "succeeded", "ok", b"value", True) for task_id in ids
    ]


def test_results_only_where_they_were_asked_for(
    address: str, client: RawClient, worker: RawWorker, wanted: TaskRequirements
) -> None:
    [task_id] = client.submit(requirements=wanted)
    with RawClient(address) as other:
        assert client.ask(m.WatchTasks, Selection(ids=[task_id]), False).finished == 0
        assert other.ask(m.WatchTasks, Selection(ids=[task_id]), True).finished == 0
        worker.finish(*worker.attempts(), result=b"value")
        assert client.ends(1)[0].result is None
        assert other.ends(1)[0].result == b"value"


def test_reports_only_where_they_were_asked_for(
    address: str, client: RawClient, worker: RawWorker, wanted: TaskRequirements
) -> None:
    [task_id] = client.submit(requirements=wanted)
    with RawClient(address) as other:
        client.ask(m.WatchTasks, Selection(ids=[task_id]), False, False)
        other.ask(m.WatchTasks, Selection(ids=[task_id]), False, True)
        [attempt] = worker.attempts()
        worker.start(attempt)
        report = AttemptReport(task_id, 1, 3, {"loss": 0.5})
        worker.send(m.AttemptReports([report]))
        assert other.expect(m.TaskReports).reports == [report]
        worker.finish(attempt)
        assert other.ends(1)[0].state == "succeeded"
        assert client.ends(1)[0].state == "succeeded"
        assert pushes(client) == []


def test_submit_with_watch_is_told_results_and_reports(
    client: RawClient, worker: RawWorker, wanted: TaskRequirements
) -> None:
    [task_id] = client.submit(requirements=wanted, watch=True)
    [attempt] = worker.attempts()
    worker.start(attempt)
    worker.send(m.AttemptReports([AttemptReport(task_id, 1, 1, {})]))
    worker.finish(attempt, result=b"value", cause=Cause.ERROR)
    assert client.expect(m.TaskReports).reports[0].step == 1
    [end] = client.ends(1)
    assert (end.state, end.cause, end.result) == ("failed", "error", b"value")


def test_submit_without_watch_is_told_nothing(client: RawClient, worker: RawWorker, wanted: TaskRequirements) -> None:
    client.submit(requirements=wanted)
    worker.finish(*worker.attempts(), result=b"value")
    assert pushes(client) == []


def test_cancelled_while_it_waits(client: RawClient) -> None:
    [task_id] = client.submit(watch=True, hold=True)
    client.ask(m.CancelTasks, Selection(ids=[task_id]))
    [end] = client.ends(1)
    assert (end.task_id, end.state, end.cause, end.result) == (task_id, "cancelled", "cancelled", None)


def test_watched_twice_by_one_client_and_told_once(
    client: RawClient, worker: RawWorker, wanted: TaskRequirements
) -> None:
    [task_id] = client.submit(requirements=wanted, watch=True)
    client.ask(m.WatchTasks, Selection(ids=[task_id]), True)
    worker.finish(*worker.attempts())
    assert len(client.ends(1)) == 1
    assert pushes(client) == []


def test_watch_of_a_job_counts_what_it_has_now(client: RawClient, name: str) -> None:
    ids = client.submit(2, job=f"job {name}", hold=True)
    client.ask(m.CancelTasks, Selection(ids=ids[:1]))
    answer = client.ask(m.WatchTasks, Selection(job=f"job {name}"))
    assert (answer.total, answer.finished) == (2, 1)
    client.submit(job=f"job {name}", hold=True)
    client.ask(m.CancelTasks, Selection(job=f"job {name}"))
    assert sorted(end.task_id for end in client.ends(2)) == ids
    assert pushes(client) == []


def test_submit_with_a_known_key_is_told_of_the_old_task(
    client: RawClient, worker: RawWorker, wanted: TaskRequirements, name: str
) -> None:
    spec = m.TaskSpec(Call(path="a:b"), requirements=wanted)
    [task_id] = client.ask(m.Submit, [spec], [m.TaskEntry(0, key=name)], True).ids
    worker.finish(*worker.attempts(), result=b"value")
    assert client.ends(1)[0].result == b"value"
    assert client.ask(m.Submit, [spec], [m.TaskEntry(0, key=name)], True).ids == [task_id]
    assert client.ends(1)[0].result == b"value"


def test_watcher_that_leaves_before_the_end(
    address: str, client: RawClient, worker: RawWorker, wanted: TaskRequirements
) -> None:
    before = client.ask(m.GetStats).connections
    with RawClient(address) as other:
        ids = other.submit(50, requirements=wanted, watch=True)
        client.ask(m.WatchTasks, Selection(ids=ids), True)
        attempts = worker.attempts(50)
        worker.finish(*attempts[:25], result=b"x" * 1000)
        assert len(other.ends(25)) >= 25
    wait_until(lambda: client.ask(m.GetStats).connections == before)
    worker.finish(*attempts[25:], result=b"y" * 1000)
    assert sorted(end.task_id for end in client.ends(50)) == ids


def test_end_of_many_tasks_in_order(client: RawClient, worker: RawWorker, wanted: TaskRequirements) -> None:
    ids = [*client.submit(6000, watch=True, requirements=wanted), *client.submit(6000, watch=True, requirements=wanted)]
    done = 0
    while done < len(ids):
        batch = worker.attempts(min(256, len(ids) - done))
        worker.finish(*batch, result=b"r")
        done += len(batch)
    assert [end.task_id for end in client.ends(12_000)] == ids


def test_results_larger_than_a_frame_together(client: RawClient, worker: RawWorker, wanted: TaskRequirements) -> None:
    ids = client.submit(6, watch=True, requirements=wanted)
    size = 15 * 1024 * 1024
    for number in range(6):
        worker.finish(*worker.attempts(), result=bytes([number]) * size)
    ends = sorted(client.ends(6), key=lambda end: end.task_id)  # some come from the journal, later
    assert [(end.task_id, len(end.result or b""), (end.result or b"x")[0]) for end in ends] == [
        (task_id, size, number) for number, task_id in enumerate(ids)
    ]
    answer = client.ask(m.ListTasks, Selection(ids=ids), 10, 0, True)
    assert isinstance(answer, m.RequestFailed)
    assert answer.code == m.TOO_LARGE


def test_client_that_asks_again_after_it_was_told(
    client: RawClient, worker: RawWorker, wanted: TaskRequirements
) -> None:
    [task_id] = client.submit(requirements=wanted, watch=True)
    worker.finish(*worker.attempts(), result=b"value")
    client.ends(1)
    for _ in range(3):
        assert client.ask(m.WatchTasks, Selection(ids=[task_id]), True).finished == 1
        assert client.ends(1)[0].result == b"value"


def test_order_of_ids_is_kept_in_the_watch(client: RawClient) -> None:
    ids = client.submit(5, hold=True)
    client.ask(m.CancelTasks, Selection(ids=ids))
    client.ask(m.WatchTasks, Selection(ids=list(reversed(ids))))
    assert [end.task_id for end in client.ends(5)] == [TaskId(i) for i in ids]
