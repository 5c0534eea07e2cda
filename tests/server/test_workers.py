"""Workers on the wire: names, incarnations, reconnections, and workers that do not tell the truth."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Iterator

import pytest
from helpers import Cluster, wait_until

from schedd.core.model import (
    SECOND,
    AttemptFinished,
    AttemptReport,
    AttemptStarted,
    Cause,
    GpuUsage,
    HoldsAttempt,
    HostUsage,
    Selection,
    TaskId,
    TaskRequirements,
    WorkerId,
    WorkerResources,
)
from schedd.server.service import HEARTBEAT_SLOTS
from schedd.server.translate import ENDS_PER_PORTION
from schedd.wire import messages as m
from schedd.wire.framing import encode_frame

from .metered import Daemon
from .peers import CLIENT_HELLO, RawClient, RawPeer, RawWorker, greeting

UNKNOWN = TaskId(10**9)
BIG = 2**63


def only(name: str) -> TaskRequirements:
    """Requirements that only the worker of this name meets."""
    return TaskRequirements(labels={"only": name})


def resources(name: str, **fields: float) -> WorkerResources:
    return WorkerResources(labels={"only": name}, cpus=fields.pop("cpus", 1.0))


@pytest.fixture
def worker(address: str, name: str) -> Iterator[RawWorker]:
    with RawWorker(address, name, resources=resources(name)) as peer:
        yield peer


def test_second_worker_of_a_name_is_refused_and_the_first_stays(address: str, client: RawClient, name: str) -> None:
    with RawWorker(address, name, resources=resources(name)) as first:
        with RawPeer(address) as second:
            hello = m.WorkerHello(WorkerId(name), "another", WorkerResources())
            second.write(greeting(m.Hello(m.PROTOCOL, "test", hello)))
            refused = second.expect_refusal()
        assert refused.code == m.NAME_TAKEN
        assert name in refused.message
        assert "--name" in refused.hint
        [task_id] = client.submit(requirements=only(name))
        first.finish(*first.attempts())
        assert client.state_of(task_id) == "succeeded"


def test_part_of_a_frame_is_a_sign_of_life(client: RawClient, worker: RawWorker, name: str) -> None:
    """A large one may be longer on its way than its sender may be silent."""

    def silent_s() -> float:
        row = client.worker(name)
        assert row is not None
        return row.last_seen_s

    wait_until(lambda: silent_s() > 0.5)
    worker.write(encode_frame([m.Heartbeat(HostUsage())])[:-1])
    wait_until(lambda: silent_s() < 0.5)


def test_new_connection_of_the_same_worker_takes_the_place_of_the_old(
    address: str, client: RawClient, name: str
) -> None:
    with RawWorker(address, name, resources=resources(name)) as first:
        [task_id] = client.submit(requirements=only(name))
        [attempt] = first.attempts()
        first.start(attempt)
        holds = [HoldsAttempt(attempt.task_id, attempt.attempt, "running", 1)]
        with RawWorker(address, name, resources=resources(name), holds=holds) as second:
            while first.fill():
                pass  # until the daemon has closed it
            second.finish(attempt, result=b"value")
            assert client.state_of(task_id) == "succeeded"
            assert client.view(task_id).attempt == 1


def test_restarted_worker_takes_over_its_name_once_the_old_is_gone(address: str, client: RawClient, name: str) -> None:
    with RawWorker(address, name, incarnation="old", resources=resources(name)) as old:
        [task_id] = client.submit(requirements=only(name))
        old.start(*old.attempts())
        wait_until(lambda: client.state_of(task_id) == "running")
    wait_until(lambda: (row := client.worker(name)) is not None and row.status == "unreachable")
    with RawWorker(address, name, incarnation="new", resources=resources(name)) as new:
        [attempt] = new.attempts()
        assert (attempt.task_id, attempt.attempt) == (task_id, 2)
        new.finish(attempt)
        view = client.ask(m.ListTasks, Selection(ids=[task_id]), 1, 0, True)
        assert [(a.attempt, a.cause) for a in view.details[0].attempts] == [(1, "lost"), (2, "ok")]


def test_greeting_that_comes_late(address: str, client: RawClient, name: str) -> None:
    """An older connection of the same worker must not tell what that holds now: it held nothing yet."""
    with RawWorker(address, name, resources=resources(name), session=2) as newer:
        [task_id] = client.submit(requirements=only(name))
        attempts = newer.attempts()
        newer.start(*attempts)
        with RawPeer(address) as older:
            hello = m.WorkerHello(WorkerId(name), "one", resources(name), session=1)
            older.write(greeting(m.Hello(m.PROTOCOL, "test", hello)))
            while older.fill():
                pass
        newer.finish(*attempts)
        view = client.view(task_id)
        assert (view.state, view.attempt) == ("succeeded", 1)


def test_attempt_that_never_arrived_is_sent_again(address: str, client: RawClient, name: str) -> None:
    with RawWorker(address, name, resources=resources(name)) as first:
        [task_id] = client.submit(requirements=only(name))
        first.attempts()
    with RawWorker(address, name, resources=resources(name)) as second:
        [attempt] = second.attempts()
        assert (attempt.task_id, attempt.attempt) == (task_id, 2)
        second.finish(attempt)
    assert client.state_of(task_id) == "succeeded"


def test_goodbye_hands_everything_back(address: str, client: RawClient, name: str, worker: RawWorker) -> None:
    [task_id] = client.submit(requirements=only(name))
    worker.attempts()
    worker.send(m.WorkerDraining([(task_id, 1)]), m.WorkerGoodbye("done for today"))
    while worker.fill():
        pass
    wait_until(lambda: client.worker(name) is None)
    assert client.state_of(task_id) == "queued"
    assert client.view(task_id).attempt == 1
    client.ask(m.CancelTasks, Selection(ids=[task_id]))


def test_preempt_asks_the_worker_and_queues_again(client: RawClient, name: str, worker: RawWorker) -> None:
    [task_id] = client.submit(requirements=only(name))
    one = Selection(ids=[task_id])
    [attempt] = worker.attempts()
    worker.start(attempt)
    wait_until(lambda: client.state_of(task_id) == "running")
    assert client.ask(m.PreemptTasks, one, 7.5) == m.Changed(client.number() - 1, 1)
    assert worker.expect(m.StopAttempts) == m.StopAttempts([(task_id, 1)], Cause.PREEMPTED, 7.5)
    assert client.state_of(task_id) == "running"
    worker.finish(attempt, cause=Cause.PREEMPTED)
    [again] = worker.attempts()
    assert (again.task_id, again.attempt) == (task_id, 2)
    worker.finish(again)
    [detail] = client.ask(m.ListTasks, one, 1, 0, True).details
    assert [(ended.cause, ended.message) for ended in detail.attempts] == [("preempted", "on request"), ("ok", "")]
    assert client.ask(m.PreemptTasks, one).unchanged == [(task_id, "already succeeded")]


def test_heartbeat_is_answered_and_shown(client: RawClient, name: str, worker: RawWorker) -> None:
    usage = HostUsage(12.5, 1024, 4096, 1.0, 2.0, 0.5, (GpuUsage("GPU-0", 10, 0.5, 40.0, 1),))
    worker.send(m.Heartbeat(usage))
    assert worker.expect(m.HeartbeatReply).interval_s == pytest.approx(0.5, rel=0.2)
    row = client.worker(name)
    assert row is not None
    assert row.usage == usage


ODD_NUMBERS = (0, -1, BIG, -BIG, 2**64 - 1)


@pytest.mark.parametrize("number", ODD_NUMBERS)
def test_tales_about_attempts_that_do_not_exist(client: RawClient, name: str, worker: RawWorker, number: int) -> None:
    before = client.ask(m.GetStats)
    ids = [UNKNOWN, TaskId(number)]
    worker.send(
        m.AttemptsStarted([AttemptStarted(i, number, number, (2**40, -1, 0)) for i in ids]),
        m.AttemptsFinished(number, [AttemptFinished(i, number, Cause.OK, number, number, b"") for i in ids]),
        m.AttemptReports([AttemptReport(i, number, number, {"x": math.nan}) for i in ids]),
        m.RevokeAnswers([(i, number, flag) for i in ids for flag in (True, False)]),
        m.RevokeAnswers([]),
        m.LogPiece(number, b"x", number, number, True),
        m.Heartbeat(HostUsage(math.inf, number, number, math.nan, -1.0, -math.inf)),
    )
    assert worker.expect(m.AckFinished).seq == number
    assert {i for i, _ in worker.expect(m.DropAttempts).attempts} == set(ids)
    worker.expect(m.HeartbeatReply)
    after = client.ask(m.GetStats)
    assert after.states == before.states
    assert after.stale_total > before.stale_total
    [task_id] = client.submit(requirements=only(name))
    worker.finish(*worker.attempts())
    assert client.state_of(task_id) == "succeeded"


def test_tales_about_the_tasks_of_another_worker(address: str, client: RawClient, name: str, worker: RawWorker) -> None:
    with RawWorker(address, f"{name}-liar") as liar:
        [task_id] = client.submit(requirements=only(name))
        [attempt] = worker.attempts()
        worker.start(attempt)
        liar.start(attempt)
        liar.finish(attempt, cause=Cause.ERROR)
        liar.send(
            m.AttemptReports([AttemptReport(task_id, 1, 99, {"loss": -1.0})]),
            m.RevokeAnswers([(task_id, 1, True)]),
            m.WorkerDraining([(task_id, 1)]),
        )
        liar.send(m.Heartbeat(HostUsage()))
        liar.expect(m.HeartbeatReply)
        view = client.view(task_id)
        assert (view.state, view.worker, view.report) == ("running", name, None)
        worker.finish(attempt, result=b"truth")
        assert client.state_of(task_id) == "succeeded"


@pytest.mark.parametrize("devices", [(2**40,), (-1,), (0, 0), tuple(range(500))])
def test_devices_that_the_worker_does_not_have(
    address: str, client: RawClient, name: str, devices: tuple[int, ...]
) -> None:
    offered = WorkerResources(labels={"only": name}, cpus=2, num_gpus=2, gpu_memory_gb=8)
    wanted = TaskRequirements(labels={"only": name}, min_gpus=1)
    with RawWorker(address, name, resources=offered) as worker:
        [task_id] = client.submit(requirements=wanted)
        [attempt] = worker.attempts()
        worker.send(m.AttemptsStarted([AttemptStarted(task_id, 1, BIG, devices)]))
        worker.send(m.AttemptsFinished(1, [AttemptFinished(task_id, 1, Cause.OK, BIG, -BIG, b"v", devices=devices)]))
        worker.expect(m.AckFinished)
        view = client.view(task_id)
        assert view.state == "succeeded"
        assert view.started_at is not None
        assert view.finished_at is not None
        assert view.submitted_at <= view.started_at <= view.finished_at
        row = client.worker(name)
        assert row is not None
        assert (row.reserved_gpus, row.reserved_cpus) == (0, 0)
        assert attempt.task_id == task_id


@pytest.mark.parametrize("phase", ["running", "backlog", "finished", "dreaming", ""])
def test_greeting_that_claims_what_is_not_its_own(
    address: str, client: RawClient, name: str, worker: RawWorker, phase: str
) -> None:
    [task_id] = client.submit(requirements=only(name))
    [attempt] = worker.attempts()
    worker.start(attempt)
    wait_until(lambda: client.state_of(task_id) == "running")
    holds = [HoldsAttempt(i, n, phase, BIG, (2**40,)) for i, n in itertools.product((task_id, UNKNOWN), (1, 2, -1))]
    with RawWorker(address, f"{name}-liar", holds=holds) as liar:
        client.ask(m.DrainWorkers, [f"{name}-liar"], False, True)
        liar.expect(m.DrainWorker)  # behind all that waited for the journal
        dropped = [name for message in liar.inbox if isinstance(message, m.DropAttempts) for name in message.attempts]
        assert len(dropped) == (0 if phase == "finished" else len(holds)), "an end is answered when it comes"
        assert client.view(task_id).worker == name
    worker.finish(attempt)
    assert client.state_of(task_id) == "succeeded"


@pytest.mark.parametrize("phase", ["running", "backlog", "finished", "dreaming"])
def test_greeting_that_tells_odd_things_of_its_own(
    address: str, client: RawClient, name: str, worker: RawWorker, phase: str
) -> None:
    [task_id] = client.submit(requirements=only(name))
    [attempt] = worker.attempts()
    twice = [HoldsAttempt(task_id, 1, phase, BIG, (2**40, -7))] * 2
    with RawWorker(address, name, resources=resources(name), holds=twice) as again:
        again.finish(attempt)
        assert client.state_of(task_id) == "succeeded"


def test_end_told_twice_counts_once(client: RawClient, name: str, worker: RawWorker) -> None:
    [task_id] = client.submit(requirements=only(name), watch=True)
    [attempt] = worker.attempts()
    worker.finish(attempt, result=b"first")
    worker.finish(attempt, result=b"second", cause=Cause.ERROR)
    [end] = client.ends(1)
    assert (end.task_id, end.state, end.result) == (task_id, "succeeded", b"first")
    assert client.ask(m.GetStats)
    assert not [message for message in client.inbox if isinstance(message, m.TasksDone)]


def test_endless_message_and_too_many_metrics_are_cut(client: RawClient, name: str, worker: RawWorker) -> None:
    [task_id] = client.submit(requirements=only(name))
    [attempt] = worker.attempts()
    worker.start(attempt)
    worker.send(
        m.AttemptReports([AttemptReport(task_id, 1, 1, {f"m{i}": 1.0 for i in range(10_000)})]),
        m.AttemptReports([AttemptReport(task_id, 1, 2, {"x" * 10_000: 1.0})]),
        m.AttemptReports([AttemptReport(task_id, 1, 3, {"loss": 0.25})]),
        m.AttemptsFinished(1, [AttemptFinished(task_id, 1, Cause.ERROR, 1, 2, None, 1, message="x" * 10**6)]),
    )
    worker.expect(m.AckFinished)
    view = client.view(task_id)
    assert len(view.message) == 2000
    assert view.report == {"step": 3, "loss": 0.25}


def test_drain_by_a_client_and_the_change_of_mind(client: RawClient, name: str, worker: RawWorker) -> None:
    assert client.ask(m.DrainWorkers, [WorkerId(name)], False, False).changed == 1
    row = client.worker(name)
    assert row is not None
    assert row.status == "draining"
    [task_id] = client.submit(requirements=only(name))
    assert client.state_of(task_id) == "queued"
    assert client.ask(m.DrainWorkers, [WorkerId(name)], True).changed == 1
    worker.finish(*worker.attempts())
    assert client.state_of(task_id) == "succeeded"
    assert client.ask(m.DrainWorkers, [WorkerId(name)]).changed == 1
    assert worker.expect(m.DrainWorker).leave


def test_worker_that_hangs_up_in_the_middle_of_a_frame(address: str, client: RawClient, name: str) -> None:
    with RawWorker(address, name, resources=resources(name)) as worker:
        [task_id] = client.submit(requirements=only(name))
        worker.attempts()
        worker.write(b"\x00\x00\x10\x00half")
    wait_until(lambda: (row := client.worker(name)) is not None and row.status == "unreachable")
    assert client.state_of(task_id) == "assigned"
    client.ask(m.CancelTasks, Selection(ids=[task_id]))


def test_connections_beyond_the_bound_are_told_so(cluster_with_few: str) -> None:
    with RawClient(cluster_with_few) as first, RawPeer(cluster_with_few) as second, RawPeer(cluster_with_few) as third:
        second.greet(CLIENT_HELLO)
        third.write(greeting(CLIENT_HELLO))
        refused = third.expect_refusal()
        assert refused.code == "too_many_connections"
        second.socket.close()
        wait_until(lambda: first.ask(m.GetStats).connections == 1)
        with RawClient(cluster_with_few) as fourth:
            assert fourth.ask(m.GetStats).connections == 2


def test_ends_of_many_turns_are_acknowledged_when_all_are_handled(cluster: Cluster) -> None:
    count = 2 * ENDS_PER_PORTION + 1
    address = cluster.start_daemon().address
    with RawClient(address) as client, RawWorker(address, "large", cpus=count) as worker:
        ids = client.submit(count)
        worker.finish(*worker.attempts(count))
        assert {view.state for view in client.ask(m.ListTasks, m.Selection(ids=ids)).tasks} == {"succeeded"}


def test_heartbeats_of_a_cluster_spread_over_an_interval_and_share_turns() -> None:
    async def body() -> None:
        daemon = Daemon()
        interval, slot = daemon.engine.heartbeat_ns(), daemon.engine.heartbeat_ns() // HEARTBEAT_SLOTS
        arrivals = set()
        for _ in range(500):
            before = daemon.clock.now_ns()
            delay_s = daemon.service._next_heartbeat_s()
            after = daemon.clock.now_ns()
            assert 0.79 * interval <= delay_s * SECOND <= interval
            number = round((before + delay_s * SECOND) / slot)
            assert before - slot / 100 <= number * slot - delay_s * SECOND <= after + slot / 100
            arrivals.add(number)
        assert len(arrivals) >= HEARTBEAT_SLOTS // 8

    asyncio.run(body())
