"""A daemon that goes away and comes back: nothing acknowledged is lost, nothing is done twice, nobody notices."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio

from schedd.client import line
from schedd.client.aio import AsyncClient
from schedd.client.executor import BrokenSchedExecutor, SchedExecutor
from schedd.client.sync import Client
from schedd.core.model import Call, TaskId
from schedd.errors import ConnectionLost, RemoteProtocolError, RequestRefused, ScheddError
from schedd.wire import messages as wire

from .fake_daemon import SUBMITTED_NS, DaemonThread, FakeDaemon, until


def add(a: int, b: int = 0) -> int:
    return a + b


@pytest_asyncio.fixture
async def idle(daemon: FakeDaemon) -> AsyncIterator[FakeDaemon]:
    """A daemon that runs nothing by itself."""
    daemon.is_running = False
    yield daemon


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line, "PAUSE_S_MAX", 0.02)
    monkeypatch.setattr(line, "SHORT_LIFE_S", 0.01)


def once(daemon: FakeDaemon, kind: type[Any], act: Callable[[Any], Any]) -> None:
    """Do something else with the first request of a kind."""
    seen: list[Any] = []

    def override(request: Any) -> Any:
        if isinstance(request, kind) and not seen:
            seen.append(request)
            return act(request)
        return None

    daemon.override = override


def dies_before_it_reads(daemon: FakeDaemon) -> Callable[[Any], Any]:
    def act(request: Any) -> Any:
        daemon.hang_up()
        return wire.Changed(request.request, 0)  # goes nowhere

    return act


def dies_before_it_answers(daemon: FakeDaemon) -> Callable[[Any], Any]:
    def act(request: Any) -> Any:
        answer = daemon.answer(daemon.peers[-1], request)
        daemon.hang_up()
        return answer

    return act


DEATHS = pytest.mark.parametrize("dies", [dies_before_it_reads, dies_before_it_answers])
Dies = Callable[[FakeDaemon], Callable[[Any], Any]]


# --------------------------------------------------------------------------------------------------------------- submit


@DEATHS
@pytest.mark.asyncio
async def test_submit_whose_answer_is_lost(daemon: FakeDaemon, client: AsyncClient, dies: Dies) -> None:
    once(daemon, wire.Submit, dies(daemon))
    tasks = await asyncio.gather(*[client.submit(add, n) for n in range(5)])
    assert [await task for task in tasks] == list(range(5))
    assert len(daemon.tasks) == 5
    first, second = daemon.all_of(wire.Submit)
    assert (first.client, first.number) == (second.client, second.number)
    assert len(first.client) == 16


@DEATHS
@pytest.mark.asyncio
async def test_submit_many_whose_answer_is_lost(daemon: FakeDaemon, client: AsyncClient, dies: Dies) -> None:
    once(daemon, wire.Submit, dies(daemon))
    spec = wire.TaskSpec(Call(path="builtins:len"), "len")
    ended: list[wire.TaskDone] = []
    entries = [wire.TaskEntry(0, pickle.dumps((("abc",), {})))] * 3
    answer = await client.submit_many([spec], entries, watch=True, on_done=ended.append)
    assert answer.ids == [1, 2, 3]
    await until(lambda: len(ended) == 3)
    assert len(daemon.tasks) == 3


@pytest.mark.asyncio
async def test_submits_say_how_far_they_were_answered(daemon: FakeDaemon, client: AsyncClient) -> None:
    for n in range(3):
        await client.submit(add, n)
    assert [(request.number, request.answered) for request in daemon.all_of(wire.Submit)] == [(1, 1), (2, 2), (3, 3)]


@pytest.mark.asyncio
async def test_two_clients_have_two_names(daemon: FakeDaemon) -> None:
    for _ in range(2):
        async with AsyncClient(daemon.address) as client:
            assert await (await client.submit(add, 1)) == 1
    assert len({request.client for request in daemon.all_of(wire.Submit)}) == 2


@pytest.mark.asyncio
async def test_submit_that_ends_every_connection_is_given_up(daemon: FakeDaemon, client: AsyncClient) -> None:
    daemon.override = lambda request: dies_before_it_reads(daemon)(request)
    with pytest.raises(ConnectionLost):
        await client.submit(add, 1)
    assert len(daemon.all_of(wire.Submit)) == line.TRIES_MAX


@pytest.mark.asyncio
async def test_refused_halves_are_named_anew(daemon: FakeDaemon, client: AsyncClient) -> None:
    """A submit that is refused and taken apart: each part has a name of its own."""
    daemon.override = lambda request: (
        wire.RequestFailed(request.request, wire.KEY_CONFLICT, "no")
        if isinstance(request, wire.Submit) and len(request.tasks) > 1
        else None
    )
    await asyncio.gather(*[client.submit(add, n) for n in range(4)])
    numbers = [request.number for request in daemon.all_of(wire.Submit)]
    assert len(numbers) == len(set(numbers)) == 7


# ---------------------------------------------------------------------------------------------------- tasks that wait


@pytest.mark.asyncio
async def test_tasks_that_ended_while_the_daemon_was_away(idle: FakeDaemon) -> None:
    changes: list[ScheddError | None] = []
    async with AsyncClient(idle.address, on_change=changes.append) as client:
        tasks = [await client.submit(add, n) for n in range(3)]
        idle.run(1)
        assert await tasks[0] == 0
        idle.go_away()
        idle.run(2)
        await until(lambda: changes)
        assert not tasks[1].done()
        late = asyncio.ensure_future(client.submit(add, 9))
        listing = asyncio.ensure_future(client.jobs())
        await idle.come_back()
        assert await tasks[1] == 1
        idle.run(3)
        assert await tasks[2] == 2
        assert (await late).id == 4
        assert await listing == []
        assert isinstance(changes[0], ConnectionLost)
        assert changes[1:] == [None]
        again = idle.all_of(wire.WatchTasks)[-1]
        assert (again.again, again.selection.ids, again.submitted_ns) == (True, [2, 3], [SUBMITTED_NS] * 2)


@pytest.mark.asyncio
async def test_daemon_that_stops_in_order_is_waited_for(idle: FakeDaemon, client: AsyncClient) -> None:
    task = await client.submit(add, 1)
    idle.peers[-1].push(wire.Refused(wire.SHUTTING_DOWN, "the daemon is stopping"))
    await until(lambda: len(idle.hellos) == 2)
    idle.run_all()
    assert await task == 1


@pytest.mark.asyncio
async def test_task_that_the_daemon_has_forgotten(idle: FakeDaemon, client: AsyncClient) -> None:
    tasks = [await client.submit(add, n) for n in range(2)]
    idle.hang_up()
    del idle.tasks[1]
    with pytest.raises(RequestRefused, match="task 1 is not known any more") as caught:
        await tasks[0]
    assert caught.value.code == wire.UNKNOWN_TASK
    idle.run_all()
    assert await tasks[1] == 1


@pytest.mark.asyncio
async def test_handle_by_id_goes_on(idle: FakeDaemon, client: AsyncClient) -> None:
    await client.submit(add, 1)
    handle = client.task(1)
    other = client.task(99)
    idle.hang_up()
    with pytest.raises(RequestRefused):
        await other
    idle.run_all()
    assert await handle == 1


@pytest.mark.asyncio
async def test_many_tasks_are_asked_for_in_parts(
    idle: FakeDaemon, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("schedd.client.pipeline.WATCHED_TOGETHER", 10)
    tasks = await asyncio.gather(*[client.submit(add, n) for n in range(25)])
    idle.hang_up()
    idle.run_all()
    assert [await task for task in tasks] == list(range(25))
    assert [len(request.selection.ids) for request in idle.all_of(wire.WatchTasks)] == [10, 10, 5]


@pytest.mark.asyncio
async def test_connection_nobody_needs_is_not_made(daemon: FakeDaemon, client: AsyncClient) -> None:
    assert await (await client.submit(add, 1)) == 1
    daemon.hang_up()
    await until(lambda: client.line.live is None)
    assert len(daemon.hellos) == 1
    assert await client.jobs() == []
    assert len(daemon.hellos) == 2


# ------------------------------------------------------------------------------------------------------- other requests


@DEATHS
@pytest.mark.asyncio
async def test_other_requests_are_asked_again(idle: FakeDaemon, client: AsyncClient, dies: Dies) -> None:
    await client.submit(add, 1)
    once(idle, wire.CancelTasks, dies(idle))
    await client.cancel([1])
    assert idle.tasks[1].state == "cancelled"
    once(idle, wire.ListTasks, dies(idle))
    assert len(await client.tasks()) == 0


@pytest.mark.asyncio
async def test_backup_is_not_asked_for_twice(idle: FakeDaemon, client: AsyncClient) -> None:
    idle.override = dies_before_it_answers(idle)
    with pytest.raises(ConnectionLost):
        await client.backup("/x")
    assert len(idle.all_of(wire.BackUp)) == 1


# ---------------------------------------------------------------------------------------------------------------- watch


@pytest.mark.parametrize("which", [wire.Selection(unfinished=True), wire.Selection(ids=[TaskId(1), TaskId(2)])])
@pytest.mark.asyncio
async def test_wait_goes_on(idle: FakeDaemon, client: AsyncClient, which: wire.Selection) -> None:
    """An end of before is told once, one of while the daemon was away is told, and new tasks do not count."""
    for n in range(2):
        await client.submit(add, n)
    seen: list[int] = []
    waiting = asyncio.ensure_future(client.wait(which, on_done=lambda done: seen.append(done.task_id), results=True))
    await until(lambda: idle.all_of(wire.WatchTasks))
    idle.run(1)
    await until(lambda: seen)
    idle.go_away()
    idle.run(2)
    await idle.come_back()
    await client.submit(add, 7)
    ends = await waiting
    assert [(end.task_id, end.state) for end in ends] == [(1, "succeeded"), (2, "succeeded")]
    assert seen == [1, 2]


@pytest.mark.asyncio
async def test_wait_for_a_task_that_is_forgotten(idle: FakeDaemon, client: AsyncClient) -> None:
    await client.submit(add, 1)
    waiting = asyncio.ensure_future(client.wait([1]))
    await until(lambda: idle.all_of(wire.WatchTasks))
    del idle.tasks[1]
    idle.hang_up()
    with pytest.raises(RequestRefused, match="task 1 is not known any more"):
        await waiting


@pytest.mark.asyncio
async def test_watch_whose_answer_is_lost(idle: FakeDaemon, client: AsyncClient) -> None:
    await client.submit(add, 1)
    once(idle, wire.WatchTasks, dies_before_it_reads(idle))
    waiting = asyncio.ensure_future(client.wait([1]))
    await until(lambda: len(idle.all_of(wire.WatchTasks)) == 3)  # one of them for the task
    idle.run_all()
    assert len(await waiting) == 1


@pytest.mark.asyncio
async def test_daemon_that_starts_is_told_of_and_waited_for(idle: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line, "SILENCE_S", 0.01)
    greeting, idle.greeting = idle.greeting, None
    changes: list[ScheddError | None] = []
    client = AsyncClient(idle.address, on_change=changes.append)
    listing = asyncio.ensure_future(client.jobs())
    await until(lambda: changes)
    assert "may be starting" in str(changes[0])
    idle.peers[-1].push(greeting)
    assert await listing == []
    assert changes[1:] == [None]
    await client.close()


# ------------------------------------------------------------------------------------------------------------ given up


@pytest.mark.asyncio
async def test_daemon_that_does_not_come_back(idle: FakeDaemon) -> None:
    async with AsyncClient(idle.address, reconnect_s=0.05, on_change=lambda error: None) as client:
        task = await client.submit(add, 1)
        waiting = asyncio.ensure_future(client.wait([1]))
        await until(lambda: idle.all_of(wire.WatchTasks))
        idle.go_away()
        for lost in (task.result(), waiting):
            with pytest.raises(ConnectionLost, match=r"has been away for 0\.05 s") as caught:
                await lost
            assert "schedd tasks" in caught.value.hint
        with pytest.raises(ConnectionLost, match="no daemon answers"):
            await client.jobs()
        await idle.come_back()
        assert await client.jobs() == []


@pytest.mark.asyncio
async def test_daemon_of_another_version_comes_back(idle: FakeDaemon, client: AsyncClient) -> None:
    task = await client.submit(add, 1)
    idle.greeting = wire.Welcome(99, "9.9", 7)
    idle.hang_up()
    with pytest.raises(RemoteProtocolError, match=r"schedd 9\.9"):
        await task


@pytest.mark.asyncio
@pytest.mark.parametrize("on_a_live_connection", [True, False])
async def test_refusal_of_the_line_ends_all_that_was_submitted_together(
    idle: FakeDaemon, on_a_live_connection: bool
) -> None:
    def act(request: Any) -> Any:
        if on_a_live_connection:
            idle.peers[-1].push(wire.Refused(wire.TOKEN_REVOKED, "the token was revoked"))
        else:
            idle.greeting = wire.Refused(wire.TOKEN_REVOKED, "the token was revoked")
            idle.hang_up()
        return wire.Changed(-1, 0)  # answers nothing

    async with AsyncClient(idle.address) as client:
        once(idle, wire.Submit, act)
        async with asyncio.timeout(20):
            found = await asyncio.gather(*[client.submit(add, n) for n in range(4)], return_exceptions=True)
        assert [str(one).splitlines()[0] for one in found] == ["the token was revoked"] * 4


@pytest.mark.asyncio
async def test_handle_that_is_made_while_there_is_no_connection(idle: FakeDaemon, client: AsyncClient) -> None:
    task = await client.submit(add, 1)
    idle.run_all()
    assert await task == 1
    before = len(idle.hellos)
    idle.hang_up()
    await until(lambda: client.line.live is None)
    assert len(idle.hellos) == before, "nobody needs it"
    async with asyncio.timeout(20):
        assert await client.task(1) == 1


@pytest.mark.asyncio
async def test_client_is_closed_while_the_daemon_is_away(idle: FakeDaemon) -> None:
    changes: list[ScheddError | None] = []
    client = AsyncClient(idle.address, on_change=changes.append)
    task = await client.submit(add, 1)
    asking = asyncio.ensure_future(client.jobs())
    idle.go_away()
    await until(lambda: changes)
    other = asyncio.ensure_future(client.workers())
    await asyncio.sleep(0)
    await client.close()
    for lost in (task.result(), asking, other):
        with pytest.raises(ConnectionLost, match="closed"):
            await lost


@pytest.mark.parametrize("seconds", [-1.0, 1801.0, float("nan")])
def test_unusable_time(seconds: float) -> None:
    with pytest.raises(ValueError, match="reconnect_s must be between 0 and 1800 s"):
        AsyncClient("127.0.0.1:1", reconnect_s=seconds)


# ------------------------------------------------------------------------------------------------------------- blocking


def test_executor_goes_on(idle_daemon: DaemonThread) -> None:
    daemon = idle_daemon.daemon
    with SchedExecutor(idle_daemon.address, max_workers=2) as executor:
        futures = [executor.submit(add, n) for n in range(5)]
        idle_daemon.until(lambda daemon: len(daemon.tasks) == 2)
        idle_daemon.call(daemon.go_away)
        futures += [executor.submit(add, n) for n in range(5, 8)]
        assert futures[-1].cancel()
        idle_daemon.run(daemon.come_back())
        daemon.is_running = True
        idle_daemon.call(daemon.run_all)
        assert [future.result(30) for future in futures[:-1]] == list(range(7))
    assert len(daemon.tasks) == 7


def test_executor_goes_on_where_the_daemon_has_forgotten_all(idle_daemon: DaemonThread) -> None:
    daemon = idle_daemon.daemon

    def forget() -> None:
        daemon.hang_up()
        daemon.tasks.clear()
        daemon.submits.clear()
        daemon.is_running = True

    with SchedExecutor(idle_daemon.address, max_workers=2) as executor:
        futures = [executor.submit(add, n) for n in range(4)]
        idle_daemon.until(lambda daemon: len(daemon.tasks) == 2)
        idle_daemon.call(forget)
        for lost in futures[:2]:
            with pytest.raises(RequestRefused, match="not known any more"):
                lost.result(30)
        assert [future.result(30) for future in futures[2:]] == [2, 3]


def test_executor_gives_up(idle_daemon: DaemonThread) -> None:
    with SchedExecutor(idle_daemon.address, reconnect_s=0.05) as executor:
        future = executor.submit(add, 1)
        idle_daemon.until(lambda daemon: len(daemon.tasks) == 1)
        idle_daemon.call(idle_daemon.daemon.go_away)
        with pytest.raises(BrokenSchedExecutor, match="has been away"):
            future.result(30)
        with pytest.raises(BrokenSchedExecutor):
            executor.submit(add, 1)


def test_blocking_map_goes_on(daemon_thread: DaemonThread) -> None:
    daemon = daemon_thread.daemon
    with Client(daemon_thread.address) as client:
        values = client.map(add, range(2000))
        got = [next(values) for _ in range(100)]
        daemon_thread.call(daemon.go_away)
        daemon_thread.run(daemon.come_back())
        assert got + list(values) == list(range(2000))
    assert len(daemon.tasks) == 2000
