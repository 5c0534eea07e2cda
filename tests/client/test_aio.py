"""The asynchronous client against a daemon that speaks the wire."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import pytest
import pytest_asyncio

from schedd.client import aio, mapping, pipeline
from schedd.client.aio import AsyncClient
from schedd.core.model import Call, Command, TaskId, TaskRequirements, WorkerId
from schedd.errors import ConnectionLost, LocalProtocolError, RequestRefused, TaskCancelled, TaskFailed
from schedd.wire import messages as wire

from .fake_daemon import FakeDaemon, until

pytestmark = pytest.mark.asyncio


def add(x: int, y: int = 0) -> int:
    return x + y


def fail(message: str) -> None:
    raise ValueError(message)


def calls(count: int, **fields: Any) -> tuple[list[wire.TaskSpec], list[wire.TaskEntry]]:
    spec = wire.TaskSpec(Call(path=f"{__name__}:add"), "add", **fields)
    return [spec], [wire.TaskEntry(0, pickle.dumps(((n,), {}))) for n in range(count)]


@pytest_asyncio.fixture
async def idle(daemon: FakeDaemon) -> AsyncIterator[FakeDaemon]:
    """The daemon of `client`, which runs nothing by itself."""
    daemon.is_running = False
    yield daemon


# --------------------------------------------------------------------------------------------------------------- submit


async def test_call(client: AsyncClient) -> None:
    task = await client.submit(add, 1, kwargs={"y": 2})
    assert task.id == 1
    assert await task == 3
    assert await task.result() == 3
    assert task.done()


async def test_call_by_import_path(client: AsyncClient) -> None:
    assert await (await client.submit("operator:add", 1, 2)) == 3


async def test_command(client: AsyncClient, daemon: FakeDaemon) -> None:
    task = await client.submit(["train", "--lr", "0.1"], job="j", cwd="/data")
    assert daemon.tasks[task.id].spec.payload == Command(["train", "--lr", "0.1"], cwd="/data")
    assert (await task.wait()).state == "succeeded"
    assert await task is None


async def test_failing_call(client: AsyncClient) -> None:
    task = await client.submit(fail, "bad lr")
    with pytest.raises(ValueError, match="bad lr") as caught:
        await task
    assert "raise ValueError(message)" in str(caught.value.__cause__)
    assert (await task.wait()).state == "failed"


async def test_submits_of_one_turn_travel_together(client: AsyncClient, daemon: FakeDaemon) -> None:
    tasks = await asyncio.gather(*[client.submit(add, n) for n in range(200)])
    assert [await task for task in tasks] == list(range(200))
    assert len(daemon.all_of(wire.Submit)) == 1


async def test_strict_and_others_travel_apart(client: AsyncClient, daemon: FakeDaemon) -> None:
    await asyncio.gather(*[client.submit(add, n, strict=n % 2 == 0) for n in range(4)])
    assert [request.strict for request in daemon.all_of(wire.Submit)] == [True, False, True, False]


async def test_refused_task_does_not_hurt_the_others(client: AsyncClient, daemon: FakeDaemon) -> None:
    def refuse_key(request: Any) -> Any:
        if isinstance(request, wire.Submit) and any(entry.key == "taken" for entry in request.tasks):
            return wire.RequestFailed(request.request, wire.KEY_CONFLICT, "the key 'taken' is taken")
        return None

    daemon.override = refuse_key
    submits = [client.submit(add, n, key="taken" if n == 37 else None) for n in range(100)]
    tasks = await asyncio.gather(*submits, return_exceptions=True)
    refused = [n for n, task in enumerate(tasks) if isinstance(task, BaseException)]
    assert refused == [37]
    assert isinstance(tasks[37], RequestRefused)
    assert "taken" in str(tasks[37])
    assert [await task for task in tasks if not isinstance(task, BaseException)] == [n for n in range(100) if n != 37]
    assert len(daemon.all_of(wire.Submit)) < 20


async def test_full_queue_is_not_tried_again_in_halves(client: AsyncClient, daemon: FakeDaemon) -> None:
    daemon.override = lambda request: wire.RequestFailed(request.request, wire.QUEUE_FULL, "the queue is full")
    tasks = await asyncio.gather(*[client.submit(add, n) for n in range(10)], return_exceptions=True)
    assert all(isinstance(task, RequestRefused) for task in tasks)
    assert len(daemon.requests) == 1


async def test_two_submits_with_one_key(client: AsyncClient, idle: FakeDaemon) -> None:
    first, second = await asyncio.gather(client.submit(add, 1, key="k"), client.submit(add, 1, key="k"))
    assert first.id == second.id
    idle.report(first.id, 1, loss=0.5)
    idle.run_all()
    assert [await first, await second] == [1, 1]


async def test_task_too_large_to_send(client: AsyncClient, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    assert client.pipeline is not None
    monkeypatch.setattr(client.line.connection, "_frame_bytes_max", 100_000)
    small = client.submit(len, b"abc")
    large = client.submit(len, b"x" * 200_000)
    answers = await asyncio.gather(small, large, return_exceptions=True)
    assert isinstance(answers[1], LocalProtocolError)


async def test_window(client: AsyncClient, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "WINDOW_TASKS", 10)
    monkeypatch.setattr(pipeline, "SUBMIT_TASKS_MAX", 4)
    tasks = await asyncio.gather(*[client.submit(add, n) for n in range(100)])
    assert [await task for task in tasks] == list(range(100))
    assert max(len(request.tasks) for request in daemon.all_of(wire.Submit)) == 4


async def test_window_of_bytes(client: AsyncClient, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "SUBMIT_BYTES_MAX", 1000)
    monkeypatch.setattr(pipeline, "WINDOW_BYTES", 3000)
    tasks = await asyncio.gather(*[client.submit(len, b"x" * 400) for _ in range(40)])
    assert [await task for task in tasks] == [400] * 40
    assert max(len(request.tasks) for request in daemon.all_of(wire.Submit)) == 2


async def test_submit_given_up_before_it_left(client: AsyncClient, daemon: FakeDaemon) -> None:
    assert client.line.connection is not None
    client.line.connection.pause_writing()
    submit = asyncio.ensure_future(client.submit(add, 1))
    await asyncio.sleep(0)
    submit.cancel()
    with pytest.raises(asyncio.CancelledError):
        await submit
    client.line.connection.resume_writing()
    await client.jobs()
    assert daemon.tasks == {}


async def test_warnings(client: AsyncClient, daemon: FakeDaemon) -> None:
    daemon.override = lambda request: (
        wire.Submitted(request.request, [TaskId(1)], ["no worker fits"]) if isinstance(request, wire.Submit) else None
    )
    assert (await client.submit(add, 1)).warnings == ["no worker fits"]


# ---------------------------------------------------------------------------------------------------------- submit_many


async def test_submit_many(client: AsyncClient, daemon: FakeDaemon) -> None:
    ends: list[wire.TaskDone] = []
    specs, entries = calls(5)
    submitted = await client.submit_many(specs, entries, watch=True, on_done=ends.append)
    assert submitted.ids == [1, 2, 3, 4, 5]
    await client.wait(submitted.ids)
    assert [pickle.loads(end.result or b"") for end in ends] == [0, 1, 2, 3, 4]


async def test_submit_many_in_parts(client: AsyncClient, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aio, "SUBMIT_TASKS_MAX", 2)
    specs, entries = calls(5)
    entries[4] = wire.TaskEntry(0, after=[-1, -4])
    submitted = await client.submit_many(specs, entries)
    assert submitted.ids == [1, 2, 3, 4, 5]
    assert [len(request.tasks) for request in daemon.all_of(wire.Submit)] == [2, 2, 1]
    assert daemon.tasks[5].entry.after == [1, 4]


async def test_submit_many_refused_in_the_middle(
    client: AsyncClient, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aio, "SUBMIT_TASKS_MAX", 2)
    daemon.override = lambda request: (
        wire.RequestFailed(request.request, wire.QUEUE_FULL, "the queue is full") if len(daemon.tasks) == 4 else None
    )
    with pytest.raises(RequestRefused, match="the queue is full") as caught:
        await client.submit_many(*calls(6))
    assert caught.value.hint == "the 4 tasks before were admitted"


# ------------------------------------------------------------------------------------------------------------------ map


@pytest.mark.parametrize("chunksize", [1, 3])
async def test_map(client: AsyncClient, chunksize: int) -> None:
    values = client.map(add, range(10), range(10), chunksize=chunksize)
    assert [value async for value in values] == [2 * n for n in range(10)]


@pytest.mark.parametrize("chunksize", [1, 4])
async def test_map_with_keyword_arguments_and_path(client: AsyncClient, daemon: FakeDaemon, chunksize: int) -> None:
    values = client.map(f"{__name__}:add", range(5), kwargs={"y": 1}, chunksize=chunksize, job="j")
    assert [value async for value in values] == [1, 2, 3, 4, 5]
    assert {task.spec.job for task in daemon.tasks.values()} == {"j"}


@pytest.mark.parametrize("chunksize", [1, 2, 3])
async def test_map_draws_as_zip_does(client: AsyncClient, chunksize: int) -> None:
    shared = iter(range(10))
    values = client.map(add, shared, [1, 2, 3], chunksize=chunksize)
    assert [value async for value in values] == [1, 3, 5]
    assert list(shared) == [4, 5, 6, 7, 8, 9]


async def test_chunks_are_a_kind_of_their_own(client: AsyncClient, daemon: FakeDaemon) -> None:
    assert [value async for value in client.map(add, range(4), chunksize=2)] == [0, 1, 2, 3]
    assert daemon.tasks[1].spec.kind == f"{__name__}.add x2"


async def test_map_keeps_a_bounded_number_ahead(
    client: AsyncClient, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapping, "AHEAD_MAX", 10)
    drawn: list[int] = []

    def endless() -> Any:
        while True:
            drawn.append(len(drawn))
            yield drawn[-1]

    async with aclosing(client.map(add, endless())) as values:
        for expected in range(100):
            assert await anext(values) == expected
            assert len(drawn) <= expected + 21


async def test_details_that_are_more_than_a_frame_come_in_smaller_pages(
    client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask, sizes = client._ask, []

    async def bounded(answer: Any, kind: Any, *fields: Any) -> Any:
        if kind is wire.ListTasks:
            sizes.append(fields[1])
            if fields[1] > most:
                raise RequestRefused("a frame is above the bound", "ask for less at a time", wire.TOO_LARGE)
        return await ask(answer, kind, *fields)

    monkeypatch.setattr(client, "_ask", bounded)
    most = 16
    await client.show(range(1, 21))
    assert sizes == [1000, 125, 15]
    most = 0
    with pytest.raises(RequestRefused, match="above the bound"):
        await client.show(range(1, 21))


async def test_map_gives_what_comes_before_a_result_that_cannot_be_read(client: AsyncClient, idle: FakeDaemon) -> None:
    values = client.map(add, range(4))
    first = asyncio.ensure_future(anext(values))
    await until(lambda: len(idle.tasks) == 4)
    idle.end(wire.TaskDone(TaskId(3), "succeeded", "ok", b"none of pickle's", "", worker="w1", attempt=1))
    for task_id in (4, 2, 1):
        idle.run(task_id)
    assert await first == 0
    assert await anext(values) == 1
    with pytest.raises(Exception, match="cannot be read here"):
        await anext(values)


async def test_map_whose_reader_goes_cancels_also_what_it_waited_for(client: AsyncClient, idle: FakeDaemon) -> None:
    async with aclosing(client.map(add, range(3))) as values:
        first = asyncio.ensure_future(anext(values))
        await until(lambda: len(idle.tasks) == 3)
        first.cancel()
        await asyncio.wait([first])
    assert [task.state for task in idle.tasks.values()] == ["cancelled"] * 3


async def test_function_of_the_user_that_fails_is_his_own_problem(client: AsyncClient, daemon: FakeDaemon) -> None:
    told: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context["message"]))

    def fail_always(done: wire.TaskDone) -> None:
        raise RuntimeError("of the user")

    spec = wire.TaskSpec(Call(path="builtins:len"), "len")
    entries = [wire.TaskEntry(0, pickle.dumps((("abc",), {})))] * 2
    await client.submit_many([spec], entries, watch=True, on_done=fail_always)
    await until(lambda: len(told) == 2)
    assert told == ["on_done of task 1 failed", "on_done of task 2 failed"]
    assert len(daemon.hellos) == 1
    assert await client.jobs() == []


async def test_failing_map_cancels_the_rest(client: AsyncClient, idle: FakeDaemon) -> None:
    values = client.map(fail, ["a", "b", "c", "d"])
    first = asyncio.ensure_future(anext(values))
    await until(lambda: len(idle.tasks) == 4)
    idle.start(2)
    idle.run(1)
    with pytest.raises(ValueError, match="a"):
        await first
    assert [idle.tasks[n].state for n in (2, 3, 4)] == ["running", "cancelled", "cancelled"]


@pytest.mark.parametrize("chunksize", [0, -1])
async def test_map_chunksize(client: AsyncClient, chunksize: int) -> None:
    with pytest.raises(ValueError, match="chunksize must be at least 1"):
        client.map(add, [1], chunksize=chunksize)


# ---------------------------------------------------------------------------------------------------- handles, results


async def test_result_by_id(client: AsyncClient, idle: FakeDaemon) -> None:
    task = await client.submit(add, 5)
    async with AsyncClient(idle.address) as other:
        early = asyncio.ensure_future(other.result(task.id))
        await other.jobs()
        idle.run_all()
        assert await early == 5
        assert await other.result(task.id) == 5


async def test_result_of_unknown_task(client: AsyncClient) -> None:
    with pytest.raises(RequestRefused, match="no task 99"):
        await client.result(99)


async def test_two_handles_of_one_task(client: AsyncClient, idle: FakeDaemon) -> None:
    task = await client.submit(add, 5)
    handles = [client.task(task.id) for _ in range(3)]
    idle.run_all()
    assert [await handle for handle in [task, *handles]] == [5, 5, 5, 5]
    assert idle.all_of(wire.WatchTasks) == []


async def test_handle_needs_a_connection(daemon: FakeDaemon) -> None:
    with pytest.raises(ConnectionLost, match="not connected"):
        AsyncClient(daemon.address).task(1)


async def test_cancel_handle(client: AsyncClient, idle: FakeDaemon) -> None:
    task = await client.submit(add, 5)
    assert await task.cancel()
    with pytest.raises(TaskCancelled):
        await task
    assert not await task.cancel()


async def test_lost_task(client: AsyncClient, idle: FakeDaemon) -> None:
    task = await client.submit(add, 5)
    idle.end(wire.TaskDone(task.id, "failed", "lost", message="worker w1 was lost 3 times"))
    with pytest.raises(TaskFailed, match=r"task 1 failed \(lost\): worker w1 was lost 3 times") as caught:
        await task
    assert caught.value.cause == "lost"


async def test_reports(client: AsyncClient, idle: FakeDaemon) -> None:
    seen: list[int] = []
    task = await client.submit(add, 5, on_report=lambda report: seen.append(report.step))
    idle.report(task.id, 1, loss=0.5)
    idle.report(task.id, 2, loss=0.25)
    reports = task.reports()
    assert [(await anext(reports)).metrics, (await anext(reports)).metrics] == [{"loss": 0.5}, {"loss": 0.25}]
    waiting = asyncio.ensure_future(anext(reports))
    await client.jobs()
    idle.report(task.id, 3, loss=0.125)
    assert (await waiting).step == 3
    idle.run_all()
    assert await task == 5
    assert [report async for report in reports] == []
    assert seen == [1, 2, 3]
    assert [report.step async for report in task.reports()] == [1, 2, 3]


async def test_failing_callback_of_reports_is_told_to_the_loop(client: AsyncClient, idle: FakeDaemon) -> None:
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    task = await client.submit(add, 5, on_report=lambda report: fail("oops"))
    idle.report(task.id, 1)
    idle.run_all()
    assert await task == 5
    assert str(told[0]["exception"]) == "oops"


# ---------------------------------------------------------------------------------------------------------- wait, watch


async def test_wait_for_ids(client: AsyncClient, idle: FakeDaemon) -> None:
    tasks = [await client.submit(add, n) for n in range(3)]
    idle.run(2)
    seen: list[int] = []
    waiting = asyncio.ensure_future(client.wait([tasks[2], 1, 2], on_done=lambda done: seen.append(done.task_id)))
    await until(lambda: seen)
    idle.run(3)
    idle.run(1)
    assert [done.task_id for done in await waiting] == [3, 1, 2]
    assert seen == [2, 3, 1]


async def test_wait_for_a_job_with_results(client: AsyncClient) -> None:
    for n in range(3):
        await client.submit(add, n, job="j")
    ends = await client.wait(wire.Selection(job="j"), results=True)
    assert [(end.task_id, pickle.loads(end.result or b"")) for end in ends] == [(1, 0), (2, 1), (3, 2)]


async def test_wait_for_nothing(client: AsyncClient, daemon: FakeDaemon) -> None:
    assert await client.wait([]) == []
    assert await client.wait(wire.Selection(job="none")) == []


async def test_wait_too_long(client: AsyncClient, idle: FakeDaemon) -> None:
    for n in range(3):
        await client.submit(add, n)
    idle.run(1)
    with pytest.raises(TimeoutError, match=r"2 of 3 tasks are not final after 0\.05 s"):
        await client.wait([1, 2, 3], timeout=0.05)


async def test_wait_ends_with_the_connection(idle: FakeDaemon) -> None:
    async with AsyncClient(idle.address, reconnect_s=0) as client:
        await client.submit(add, 1)
        waiting = asyncio.ensure_future(client.wait([1]))
        await until(lambda: idle.all_of(wire.WatchTasks))
        idle.hang_up()
        with pytest.raises(ConnectionLost):
            await waiting


async def test_watch(client: AsyncClient, idle: FakeDaemon) -> None:
    for n in range(2):
        await client.submit(add, n)
    idle.run(1)
    async with aclosing(client.watch(wire.Selection(), results=True, reports=True)) as events:
        first = await anext(events)
        assert isinstance(first, wire.Watching)
        assert (first.total, first.finished) == (2, 1)
        done = await anext(events)
        assert isinstance(done, wire.TaskDone)
        assert pickle.loads(done.result or b"") == 0
        idle.report(2, 7, loss=1.0)
        report = await anext(events)
        assert isinstance(report, wire.AttemptReport)
        assert report.step == 7
        idle.run(2)
        assert isinstance(await anext(events), wire.TaskDone)
        with pytest.raises(StopAsyncIteration):
            await anext(events)


async def test_watch_closed_early_hangs_up(client: AsyncClient, idle: FakeDaemon) -> None:
    await client.submit(add, 1)
    events = client.watch(wire.Selection())
    await anext(events)
    await events.aclose()
    await until(idle.peers[-1].transport.is_closing)


async def test_slow_watcher_stops_the_daemon_and_not_itself(
    client: AsyncClient, idle: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("schedd.client.watching.INBOX_EVENTS_MAX", 10)
    await client.submit_many(*calls(500))
    async with aclosing(client.watch(wire.Selection())) as events:
        assert isinstance(await anext(events), wire.Watching)
        idle.run_all()
        await client.jobs()
        assert len([event async for event in events]) == 500


# --------------------------------------------------------------------------------------------------------- change, look


async def test_changes(client: AsyncClient, daemon: FakeDaemon) -> None:
    await client.hold([1])
    await client.release(1)
    await client.set(wire.Selection(job="j"), priority=3)
    await client.set_priorities([(TaskId(1), 2.0)])
    await client.drain(["w1"], leave=False)
    await client.preempt([1, 2], grace=3)
    assert daemon.requests == [
        wire.HoldTasks(1, wire.Selection(ids=[TaskId(1)])),
        wire.ReleaseTasks(2, wire.Selection(ids=[TaskId(1)])),
        wire.SetTasks(3, wire.Selection(job="j"), 3),
        wire.SetPriorities(4, [(TaskId(1), 2.0)]),
        wire.DrainWorkers(5, [WorkerId("w1")], False, False),
        wire.PreemptTasks(6, wire.Selection(ids=[TaskId(1), TaskId(2)]), 3),
    ]


async def test_cancel_of_nothing_does_not_cancel_everything(client: AsyncClient, idle: FakeDaemon) -> None:
    await client.submit(add, 1)
    assert (await client.cancel([])).changed == 0
    assert idle.tasks[1].state == "queued"


async def test_cancel_spares_what_has_started(client: AsyncClient, idle: FakeDaemon) -> None:
    for n in range(2):
        await client.submit(add, n)
    idle.start(1)
    changed = await client.cancel([1, 2], started=False)
    assert (changed.changed, changed.unchanged) == (1, [(1, "running")])


async def test_tasks_in_pages(client: AsyncClient, idle: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aio, "PAGE_TASKS", 3)
    await client.submit_many(*calls(8))
    idle.run(1)
    assert [view.id for view in await client.tasks()] == [2, 3, 4, 5, 6, 7, 8]
    assert [view.id for view in await client.tasks(wire.Selection(), limit=4)] == [1, 2, 3, 4]
    assert [view.id for view in await client.tasks(wire.Selection(), after_id=6)] == [7, 8]
    assert await client.show([]) == []


# ----------------------------------------------------------------------------------------------------------- connection


async def test_address_of_the_environment(daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCHEDD_ADDRESS", daemon.address)
    async with AsyncClient(program="me") as client:
        assert (await client.connect()).epoch == 7
    assert len(daemon.hellos) == 1


async def test_calls_connect_once(daemon: FakeDaemon) -> None:
    client = AsyncClient(daemon.address)
    await asyncio.gather(client.jobs(), client.workers(), client.connect())
    assert len(daemon.hellos) == 1
    await client.close()


async def test_lost_connection_fails_what_waits_and_is_made_anew(idle: FakeDaemon) -> None:
    async with AsyncClient(idle.address, reconnect_s=0) as client:
        task = await client.submit(add, 1)
        waiting = asyncio.ensure_future(task.result())
        handle = client.task(99)
        idle.hang_up()
        for lost in (waiting, task.result(), handle.result()):
            with pytest.raises(ConnectionLost):
                await lost
        assert await client.jobs() == []
        assert len(idle.hellos) == 2


async def test_submit_while_the_daemon_goes_away(daemon: FakeDaemon) -> None:
    daemon.override = lambda request: daemon.hang_up()
    async with AsyncClient(daemon.address, reconnect_s=0) as client:
        results = await asyncio.gather(*[client.submit(add, n) for n in range(5)], return_exceptions=True)
    assert [type(result) for result in results] == [ConnectionLost] * 5


async def test_closed_client(client: AsyncClient, idle: FakeDaemon) -> None:
    task = await client.submit(add, 1)
    await client.close()
    await client.close()
    with pytest.raises(ConnectionLost, match="closed by this client"):
        await task
    with pytest.raises(ConnectionLost, match="this client is closed"):
        await client.jobs()


# ------------------------------------------------------------------------------------------------------- slips of types

Ask = Callable[[Any], Awaitable[Any]]
#: Made as a program does that nobody type-checks.
Requirements: Any = TaskRequirements
Selection: Any = wire.Selection
Entry: Any = wire.TaskEntry


class Number(float):
    """A float of another library, as NumPy has them."""


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda client: client.explain("1"), "task_id: Expected `int`, got `str`"),
        (lambda client: client.explain(object()), "task_id: a object cannot be sent"),
        (lambda client: client.result("1"), "'1' is neither the id of a task nor its handle"),
        (lambda client: client.set(1, priority="3"), "priority: Expected `float | null`, got `str`"),
        (lambda client: client.set(1, requirements=Requirements(labels=["a"])), "requirements: .*labels"),
        (lambda client: client.set_priorities([(1, "3")]), "priorities: Expected `float`, got `str`"),
        (lambda client: client.history(job=None), "job: Expected `str`, got `None`"),
        (lambda client: client.wait(Selection(job=5)), "selection: .*job"),
        (lambda client: client.drain([5]), "workers: Expected `str`, got `int`"),
        (lambda client: client.backup(b"/x"), "path: Expected `str`, got `bytes`"),
        (lambda client: client.submit(add, 1, requirements=Requirements(gpu_model=5)), "requirements: .*gpu_model"),
        (lambda client: client.submit_many(*calls(1, job=5)), "specs: .*job"),
        (lambda client: client.submit_many(calls(1)[0], [Entry(0, "x")]), "entries: Expected `bytes`"),
    ],
)
async def test_value_of_another_type_is_told_and_not_sent(
    client: AsyncClient, idle: FakeDaemon, ask: Ask, message: str
) -> None:
    task = await client.submit(add, 1)
    sent = len(idle.requests)
    with pytest.raises(TypeError, match=message):
        await ask(client)
    assert len(idle.requests) == sent
    idle.run_all()
    assert await task == 1


async def test_numbers_of_other_libraries_are_numbers(client: AsyncClient, daemon: FakeDaemon) -> None:
    await client.set(1, priority=Number(3), requirements=TaskRequirements(cpus=Number(2)))
    await client.set_priorities([(TaskId(1), Number(3))])
    await client.preempt(1, grace=Number(4))
    await client.submit(add, 1, requirements=TaskRequirements(ram=Number(5)), priority=Number(6))
    (changed,), (each,) = daemon.all_of(wire.SetTasks), daemon.all_of(wire.SetPriorities)
    assert (changed.priority, changed.requirements) == (3.0, TaskRequirements(cpus=2))
    assert each.priorities == [(1, 3.0)]
    assert daemon.all_of(wire.PreemptTasks)[0].grace_s == 4.0
    assert (daemon.tasks[1].spec.requirements.ram, daemon.tasks[1].spec.priority) == (5.0, 6.0)
