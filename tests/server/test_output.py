"""ReadLog: the daemon passes it to the worker that has the output, and always answers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from helpers import wait_until

from schedd.core.model import HostUsage, Selection, TaskId, TaskRequirements, WorkerResources
from schedd.wire import messages as m

from .peers import RawClient, RawWorker


@pytest.fixture
def worker(address: str, name: str) -> Iterator[RawWorker]:
    with RawWorker(address, name, resources=WorkerResources(labels={"only": name})) as peer:
        yield peer


@pytest.fixture
def running(client: RawClient, worker: RawWorker, name: str) -> TaskId:
    """A task that runs on `worker`."""
    [task_id] = client.submit(requirements=TaskRequirements(labels={"only": name}))
    worker.start(*worker.attempts())
    wait_until(lambda: client.state_of(task_id) == "running")
    return task_id


def test_the_worker_is_asked_and_its_answer_passed_on(client: RawClient, worker: RawWorker, running: TaskId) -> None:
    number = client.number()
    client.send(m.ReadLog(number, running, 0, "stderr", -100, 50))
    asked = worker.expect(m.FetchLog)
    assert (asked.task_id, asked.attempt, asked.stream, asked.offset, asked.limit) == (running, 1, "stderr", -100, 50)
    worker.send(m.LogPiece(asked.request, b"\xff\x00", 10, 12, False))
    assert client.answer(number) == m.LogData(number, b"\xff\x00", 10, 12, False, 1)


def test_limits_are_cut_to_what_a_frame_may_hold(client: RawClient, worker: RawWorker, running: TaskId) -> None:
    for given, passed in ((2**62, 1024 * 1024), (-5, 0)):
        number = client.number()
        client.send(m.ReadLog(number, running, 1, "stdout", 0, given))
        asked = worker.expect(m.FetchLog)
        assert asked.limit == passed
        worker.send(m.LogPiece(asked.request, b"", 0, 0, True))
        assert isinstance(client.answer(number), m.LogData)


def test_error_of_the_worker(client: RawClient, worker: RawWorker, running: TaskId) -> None:
    number = client.number()
    client.send(m.ReadLog(number, running, 1, "stdlog"))
    worker.send(m.LogPiece(worker.expect(m.FetchLog).request, b"", 0, 0, True, "no stdlog here" + "!" * 1000))
    answer = client.answer(number)
    assert isinstance(answer, m.RequestFailed)
    assert answer.message.startswith("no stdlog here")
    assert len(answer.message) <= 200


def test_answers_of_two_readers_do_not_mix(address: str, client: RawClient, worker: RawWorker, running: TaskId) -> None:
    with RawClient(address) as other:
        client.send(m.ReadLog(500, running))
        first = worker.expect(m.FetchLog)
        other.send(m.ReadLog(500, running))
        second = worker.expect(m.FetchLog)
        worker.send(m.LogPiece(second.request, b"second", 0, 6, True))
        worker.send(m.LogPiece(first.request, b"first", 0, 5, True))
        worker.send(m.LogPiece(first.request, b"again", 0, 5, True))
        assert client.answer(500).data == b"first"
        assert other.answer(500).data == b"second"


def test_client_gone_before_the_answer(address: str, client: RawClient, worker: RawWorker, running: TaskId) -> None:
    before = client.ask(m.GetStats).connections
    with RawClient(address) as other:
        other.send(m.ReadLog(1, running))
        asked = worker.expect(m.FetchLog)
    wait_until(lambda: client.ask(m.GetStats).connections == before)
    worker.send(m.LogPiece(asked.request, b"x", 0, 1, True))
    worker.send(m.Heartbeat(HostUsage()))
    worker.expect(m.HeartbeatReply)


def test_worker_gone_before_the_answer(client: RawClient, worker: RawWorker, running: TaskId, name: str) -> None:
    number = client.number()
    client.send(m.ReadLog(number, running))
    worker.expect(m.FetchLog)
    worker.socket.close()
    answer = client.answer(number)
    assert isinstance(answer, m.RequestFailed)
    assert answer.code == m.WORKER_AWAY
    assert name in answer.message
    again = client.ask(m.ReadLog, running)
    assert isinstance(again, m.RequestFailed)
    assert again.code == m.WORKER_AWAY
    client.ask(m.CancelTasks, Selection(ids=[running]))


def test_worker_that_comes_back_before_its_connection_is_seen_to_be_gone(
    address: str, client: RawClient, worker: RawWorker, running: TaskId, name: str
) -> None:
    number = client.number()
    client.send(m.ReadLog(number, running))
    worker.expect(m.FetchLog)
    with RawWorker(address, name, holds=[m.HoldsAttempt(running, 1, "running")]):  # what it was asked it has forgotten
        assert client.answer(number).code == m.WORKER_AWAY
    client.ask(m.CancelTasks, Selection(ids=[running]))


def test_worker_that_says_goodbye_instead(client: RawClient, worker: RawWorker, running: TaskId) -> None:
    number = client.number()
    client.send(m.ReadLog(number, running))
    worker.expect(m.FetchLog)
    worker.send(m.WorkerGoodbye())
    assert client.answer(number).code == m.WORKER_AWAY
    client.ask(m.CancelTasks, Selection(ids=[running]))


def test_task_that_never_ran(client: RawClient) -> None:
    [task_id] = client.submit(hold=True)
    answer = client.ask(m.ReadLog, task_id)
    assert isinstance(answer, m.RequestFailed)
    assert answer.code == m.ILLEGAL_STATE


def test_answer_to_a_question_of_somebody_else(
    address: str, client: RawClient, worker: RawWorker, running: TaskId, name: str
) -> None:
    """Only the worker that was asked can answer."""
    number = client.number()
    client.send(m.ReadLog(number, running))
    asked = worker.expect(m.FetchLog)
    with RawWorker(address, f"{name}-liar") as liar:
        liar.send(m.LogPiece(asked.request, b"forged", 0, 6, True), m.Heartbeat(HostUsage()))
        liar.expect(m.HeartbeatReply)
    worker.send(m.LogPiece(asked.request, b"true", 0, 4, True))
    assert client.answer(number).data == b"true"
