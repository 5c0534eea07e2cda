"""Peers that are slow, greedy or large: the daemon stays small and quick, and the others do not notice."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

import pytest
from helpers import Cluster, wait_until

from schedd.core.model import AttemptReport, Call, HostUsage, Selection, TaskRequirements, WorkerResources
from schedd.wire import messages as m
from schedd.wire.framing import encode_frame

from .peers import RawClient, RawPeer, RawWorker

MB = 1024 * 1024
#: The daemon keeps this much of results.
CONFIG = """
[limits]
results_keep_mb = 64.0
"""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """In the place of the daemon with the usual bounds."""
    with Cluster(tmp_path_factory.mktemp("bounds")) as cluster:
        cluster.start_daemon(CONFIG)
        yield cluster
        assert cluster.daemon.stop() == 0


@pytest.fixture
def worker(address: str, name: str) -> Iterator[RawWorker]:
    with RawWorker(address, name, resources=WorkerResources(cpus=1000, labels={"only": name})) as peer:
        yield peer


@pytest.fixture
def wanted(name: str) -> TaskRequirements:
    """What only `worker` has."""
    return TaskRequirements(labels={"only": name})


def latency(client: RawClient) -> float:
    """Seconds that a small question takes."""
    started = time.monotonic()
    client.ask(m.GetStats)
    return time.monotonic() - started


def test_client_that_never_reads_its_results(
    address: str, shared: Cluster, client: RawClient, worker: RawWorker, wanted: TaskRequirements
) -> None:
    with RawClient(address) as sleeper:
        sleeper.submit(300, watch=True, requirements=wanted)
        before = shared.daemon.memory_bytes()
        for _ in range(300):
            worker.finish(*worker.attempts(), result=bytes(MB))
        assert shared.daemon.memory_bytes() - before < 200 * MB
        assert latency(client) < 5
        [mine] = client.submit(watch=True, requirements=wanted)
        worker.finish(*worker.attempts(), result=b"mine")
        assert [(end.task_id, end.result) for end in client.ends(1)] == [(mine, b"mine")]
        # It wakes up: every end is told, and the results that were not kept are said to be so.
        ends = sleeper.ends(300)
        assert len({end.task_id for end in ends}) == 300
        assert {end.state for end in ends} == {"succeeded"}
        assert all((end.result is None) != end.kept for end in ends)


def test_client_that_asks_and_never_reads_the_answers(address: str, shared: Cluster, client: RawClient) -> None:
    job = "many"
    for _ in range(4):
        client.submit(5000, job=job, hold=True, argument=b"x" * 200)
    before = shared.daemon.memory_bytes()
    with RawClient(address) as greedy:
        question = [m.ListTasks(n, Selection(job=job), 5000, 0, True) for n in range(500)]
        greedy.send(*question)
        # Answered before, among or after those of the greedy one, but soon.
        assert max(latency(client) for _ in range(20)) < 5
        assert shared.daemon.memory_bytes() - before < 300 * MB
        for number in range(30):
            assert len(greedy.answer(number).tasks) == 5000
    client.ask(m.CancelTasks, Selection(job=job))


def test_answer_above_the_bound_of_a_frame(client: RawClient, worker: RawWorker, wanted: TaskRequirements) -> None:
    ids = client.submit(5, requirements=wanted)
    worker.finish(*worker.attempts(5), result=bytes(12 * MB))
    argument = bytes(20 * MB)
    ids += [client.submit(argument=argument, hold=True)[0] for _ in range(4)]
    answer = client.ask(m.ListTasks, Selection(ids=ids), 100, 0, True)
    assert isinstance(answer, m.RequestFailed)
    assert answer.code == m.TOO_LARGE
    assert len(client.ask(m.ListTasks, Selection(ids=ids), 100).tasks) == len(ids)
    client.ask(m.CancelTasks, Selection(ids=ids))


def test_results_that_do_not_fit_into_one_frame(client: RawClient, worker: RawWorker, wanted: TaskRequirements) -> None:
    ids = client.submit(4, watch=True, requirements=wanted)
    attempts = worker.attempts(4)
    sizes = [5 * MB, 62 * MB, 1, 60 * MB]
    for attempt, size in zip(attempts[:2], sizes, strict=False):
        worker.finish(attempt, result=bytes(size))
    ends = client.ends(2)
    for attempt, size in zip(attempts[2:], sizes[2:], strict=True):
        worker.finish(attempt, result=bytes(size))
    ends += client.ends(2)
    assert [end.task_id for end in ends] == ids
    assert all(not end.kept or len(end.result or b"") == size for end, size in zip(ends, sizes, strict=True))


def test_backlog_that_does_not_fit_into_one_frame(address: str, client: RawClient, name: str) -> None:
    """Many short tasks with large arguments go to a worker together."""
    label = {"only": name}
    with RawWorker(address, name, resources=WorkerResources(cpus=1, labels=label)) as worker:
        wanted = TaskRequirements(labels=label, estimated_time=0.001)
        ids = [client.submit(argument=bytes(3 * MB), requirements=wanted)[0] for _ in range(30)]
        got: list[tuple[int, int]] = []
        while len(got) < len(ids):
            [attempt] = worker.attempts()
            got.append((attempt.task_id, len(attempt.argument)))
            worker.finish(attempt)
        assert got == [(task_id, 3 * MB) for task_id in ids]


def test_backlog_of_distinct_payloads_comes_back_from_a_lost_worker_at_once(address: str, client: RawClient) -> None:
    wanted = TaskRequirements(labels={"only": "two-lives"}, estimated_time=0.001)
    entries = [m.TaskEntry(i) for i in range(8)]
    for number in range(5):
        specs = [
            m.TaskSpec(Call(function=bytes([number]) * MB, path=str(i)), requirements=wanted)
            for i in range(len(entries))
        ]
        assert isinstance(client.ask(m.Submit, specs, entries), m.Submitted)
    resources = WorkerResources(cpus=1000, labels={"only": "two-lives"})
    for _ in range(2):
        with RawWorker(address, "two-lives", resources=resources) as worker:
            attempts = worker.attempts(40)
            assert len({attempt.task_id for attempt in attempts}) == 40
    with RawWorker(address, "two-lives", resources=resources) as worker:
        worker.finish(*worker.attempts(40))


def test_largest_submit_that_a_frame_can_hold_can_be_dispatched(
    client: RawClient, worker: RawWorker, wanted: TaskRequirements
) -> None:
    assert client.welcome is not None
    spec = m.TaskSpec(Call(path="a:b"), requirements=wanted)
    room = (
        client.welcome.frame_bytes_max
        - len(encode_frame([m.Submit(1, [spec], [m.TaskEntry(0, b"x" * 70000)])]))
        + 70004
    )
    [task_id] = client.submit(argument=bytes(room - 8), payload=Call(path="a:b"), requirements=wanted)
    [attempt] = worker.attempts()
    assert len(attempt.argument) == room - 8
    worker.finish(attempt)
    assert client.state_of(task_id) == "succeeded"


def test_flood_of_reports(shared: Cluster, client: RawClient, worker: RawWorker, wanted: TaskRequirements) -> None:
    """A client that is behind misses progress, never the end."""
    [task_id] = client.submit(watch=True, requirements=wanted)
    [attempt] = worker.attempts()
    worker.start(attempt)
    before = shared.daemon.memory_bytes()
    metrics = {f"{'m' * 120}{i}": float(i) for i in range(64)}
    for first in range(0, 20_000, 2000):
        worker.send(m.AttemptReports([AttemptReport(task_id, 1, first + n, metrics) for n in range(2000)]))
        worker.send(m.Heartbeat(HostUsage()))
        worker.expect(m.HeartbeatReply)
    assert shared.daemon.memory_bytes() - before < 150 * MB
    worker.finish(attempt)
    assert client.ends(1)[0].state == "succeeded"
    view = client.view(task_id)
    assert view.report is not None
    assert view.report["step"] == 19_999


def test_many_connections_that_say_little(address: str, client: RawClient) -> None:
    before = client.ask(m.GetStats).connections
    peers = [RawPeer(address) for _ in range(300)]
    assert latency(client) < 2
    for peer in peers:
        peer.write(b"\0")
    wait_until(lambda: client.ask(m.GetStats).connections == before + 300)
    assert latency(client) < 2
    for peer in peers:
        peer.socket.close()
    wait_until(lambda: client.ask(m.GetStats).connections == before)


def test_requests_that_come_faster_than_they_are_answered(client: RawClient) -> None:
    numbers = itertools.count(1000)
    for _ in range(20):
        client.send(*[m.GetStats(next(numbers)) for _ in range(1000)])
    assert isinstance(client.answer(20_999), m.Stats)
