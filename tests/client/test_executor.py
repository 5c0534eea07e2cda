"""SchedExecutor against a daemon that speaks the wire; `tests/futures` has CPython's own tests with a real one."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import os
import pickle
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from schedd.client import futures as futures_module
from schedd.client.executor import BrokenSchedExecutor, SchedExecutor
from schedd.core.model import TaskId
from schedd.errors import ConnectionLost, LocalProtocolError, RequestRefused, TaskFailed
from schedd.wire import messages as wire

from .fake_daemon import DaemonThread, FakeDaemon

ROOT = Path(__file__).parents[2]


def add(x: int, y: int = 0) -> int:
    return x + y


def fail(message: str) -> None:
    raise ValueError(message)


@dataclass(frozen=True)
class Stop(Exception):
    """Lets nobody set its cause."""


def stop() -> None:
    raise Stop


def has_tasks(count: int) -> Callable[[FakeDaemon], bool]:
    return lambda daemon: len(daemon.tasks) == count


# --------------------------------------------------------------------------------------------------------------- submit


def test_submit(daemon_thread: DaemonThread) -> None:
    with SchedExecutor(daemon_thread.address, job="j", priority=3) as executor:
        assert executor.submit(add, 1, y=2).result() == 3
    spec = daemon_thread.daemon.tasks[1].spec
    assert (spec.job, spec.priority, spec.kind) == ("j", 3.0, f"{__name__}.add")


def test_bulk_travels_in_few_frames_with_one_spec_each(daemon_thread: DaemonThread) -> None:
    with SchedExecutor(daemon_thread.address) as executor:
        futures = [executor.submit(add, n) for n in range(5000)]
        assert [future.result() for future in futures] == list(range(5000))
    submits = daemon_thread.daemon.all_of(wire.Submit)
    assert sum(len(submit.tasks) for submit in submits) == 5000
    assert {len(submit.specs) for submit in submits} == {1}
    assert max(len(submit.tasks) for submit in submits) <= 1000


def test_failure_has_the_remote_traceback(daemon_thread: DaemonThread) -> None:
    with SchedExecutor(daemon_thread.address) as executor:
        error = executor.submit(fail, "oops").exception()
    assert isinstance(error, ValueError)
    assert "raise ValueError(message)" in str(error.__cause__)


def test_exception_that_cannot_be_changed(daemon_thread: DaemonThread) -> None:
    with SchedExecutor(daemon_thread.address) as executor:
        stopped, other = executor.submit(stop), executor.submit(add, 1)
        with pytest.raises(Stop):
            stopped.result(10)
        assert other.result(10) == 1


def test_end_that_cannot_be_told_is_no_task_lost(idle_daemon: DaemonThread, monkeypatch: pytest.MonkeyPatch) -> None:
    with SchedExecutor(idle_daemon.address) as executor:
        futures = [executor.submit(add, n) for n in range(3)]
        monkeypatch.setattr(futures[0], "ended", lambda done: 1 / 0)
        idle_daemon.until(has_tasks(3))
        idle_daemon.call(idle_daemon.daemon.run_all)
        with pytest.raises(LocalProtocolError, match="the end of task 1 could not be told"):
            futures[0].result(10)
        assert [future.result(10) for future in futures[1:]] == [1, 2]
    assert len(idle_daemon.daemon.hellos) == 1, "the connection is the same"


def test_task_without_an_exception(idle_daemon: DaemonThread) -> None:
    with SchedExecutor(idle_daemon.address) as executor:
        future = executor.submit(add, 1)
        idle_daemon.until(has_tasks(1))
        done = wire.TaskDone(idle_daemon.daemon.tasks[1].id, "failed", "oom_host", message="killed")
        idle_daemon.call(idle_daemon.daemon.end, done)
        with pytest.raises(TaskFailed, match="killed"):
            future.result()


@pytest.mark.parametrize(("fn", "args"), [(add, (threading.Lock(),)), (threading.Lock().acquire, ())])
def test_what_cannot_be_pickled_is_told_by_the_future(
    daemon_thread: DaemonThread, fn: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    with SchedExecutor(daemon_thread.address) as executor:
        with pytest.raises(pickle.PicklingError, match="cannot be pickled"):
            executor.submit(fn, *args).result()
        assert executor.submit(add, 1).result() == 1


def test_refused_task(daemon_thread: DaemonThread) -> None:
    daemon_thread.daemon.override = lambda request: wire.RequestFailed(request.request, wire.NO_WORKER_FITS, "no GPU")
    with SchedExecutor(daemon_thread.address, gpus=1, strict=True) as executor:
        future = executor.submit(add, 1)
        with pytest.raises(RequestRefused, match="no GPU"):
            future.result()
        assert not future.cancel()
    assert daemon_thread.daemon.all_of(wire.Submit)[0].strict


def test_warning_is_logged_once(idle_daemon: DaemonThread, caplog: pytest.LogCaptureFixture) -> None:
    idle_daemon.daemon.override = lambda request: wire.Submitted(
        request.request, [TaskId(len(idle_daemon.daemon.requests))], ["no worker fits"]
    )
    with SchedExecutor(idle_daemon.address) as executor:
        for number in (1, 2):
            future = executor.submit(add, number)
            idle_daemon.until(lambda daemon, number=number: len(daemon.requests) == number)  # type: ignore[misc]
        idle_daemon.call(idle_daemon.daemon.hang_up)
        with pytest.raises(BrokenSchedExecutor):
            future.result(10)
    assert [record.getMessage() for record in caplog.records] == ['submit_warning text="no worker fits"']


def test_arguments_are_taken_when_submitted(idle_daemon: DaemonThread) -> None:
    with SchedExecutor(idle_daemon.address) as executor:
        values = [1, 2]
        future = executor.submit(sum, values)
        values.append(3)
        idle_daemon.until(has_tasks(1))
        idle_daemon.call(idle_daemon.daemon.run_all)
        assert future.result() == 3


def test_max_workers_bounds_what_the_daemon_has(idle_daemon: DaemonThread) -> None:
    with SchedExecutor(idle_daemon.address, max_workers=2) as executor:
        futures = [executor.submit(add, n) for n in range(5)]
        idle_daemon.until(has_tasks(2))
        assert [future.running() for future in futures] == [True, True, False, False, False]
        idle_daemon.call(idle_daemon.daemon.run, 1)
        idle_daemon.until(has_tasks(3))
        assert futures[3].cancel()
        for count in (3, 4):
            idle_daemon.until(has_tasks(count))
            idle_daemon.call(idle_daemon.daemon.run_all)
        assert [future.result() for future in futures if not future.cancelled()] == [0, 1, 2, 4]


@pytest.mark.parametrize("number", [0, -1])
def test_max_workers_must_be_positive(number: int) -> None:
    with pytest.raises(ValueError, match="max_workers must be greater than 0"):
        SchedExecutor(max_workers=number)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"initializer": print}, "initializer does not apply to SchedExecutor: worker processes are shared"),
        ({"mp_context": None}, "mp_context does not apply"),
        ({"gpu": 1}, r"unknown option 'gpu': did you mean 'gpus'\?"),
        ({"key": "k"}, "'key' does not apply here"),
    ],
)
def test_unusable_option(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        SchedExecutor(**options)


# ------------------------------------------------------------------------------------------------------------------ map


def test_map_submits_at_once(idle_daemon: DaemonThread) -> None:
    with SchedExecutor(idle_daemon.address) as executor:
        values = executor.map(add, range(10), chunksize=5)
        idle_daemon.until(has_tasks(2))
        idle_daemon.call(idle_daemon.daemon.run_all)
        assert list(values) == list(range(10))


def test_map_timeout_cancels_what_is_left(idle_daemon: DaemonThread) -> None:
    with SchedExecutor(idle_daemon.address) as executor:
        values = executor.map(add, range(3), timeout=0.05)
        idle_daemon.until(has_tasks(3))
        idle_daemon.call(idle_daemon.daemon.start, 1)
        with pytest.raises(TimeoutError):
            next(values)
        idle_daemon.until(lambda daemon: daemon.tasks[3].state == "cancelled")
        assert [idle_daemon.daemon.tasks[n].state for n in (1, 2, 3)] == ["running", "cancelled", "cancelled"]
        idle_daemon.call(idle_daemon.daemon.run_all)


def test_map_item_that_cannot_be_pickled_fails_in_its_turn(daemon_thread: DaemonThread) -> None:
    with SchedExecutor(daemon_thread.address) as executor:
        values = executor.map(str, [1, threading.Lock(), 3])
        assert next(values) == "1"
        with pytest.raises(pickle.PicklingError):
            next(values)


def test_map_draws_as_zip_does(daemon_thread: DaemonThread) -> None:
    shared = iter(range(10))
    with SchedExecutor(daemon_thread.address) as executor:
        assert list(executor.map(add, shared, [1, 2, 3], chunksize=2, buffersize=1)) == [1, 3, 5]
    assert list(shared) == [4, 5, 6, 7, 8, 9]


def test_map_with_buffersize(daemon_thread: DaemonThread) -> None:
    drawn: list[int] = []

    def items() -> Any:
        for n in range(100):
            drawn.append(n)
            yield n

    with SchedExecutor(daemon_thread.address) as executor:
        values = executor.map(add, items(), buffersize=3)
        assert drawn == [0, 1, 2]
        assert [next(values), next(values)] == [0, 1]
        assert drawn == [0, 1, 2, 3, 4]
        assert list(values) == list(range(2, 100))


@pytest.mark.parametrize(("size", "error"), [(0, ValueError), (-1, ValueError), ("2", TypeError)])
def test_unusable_buffersize(daemon_thread: DaemonThread, size: Any, error: type[Exception]) -> None:
    with SchedExecutor(daemon_thread.address) as executor, pytest.raises(error, match="buffersize must be"):
        executor.map(add, [1], buffersize=size)


# --------------------------------------------------------------------------------------------------------------- cancel


def test_cancel_queued_and_started(idle_daemon: DaemonThread) -> None:
    with SchedExecutor(idle_daemon.address) as executor:
        futures = [executor.submit(add, n) for n in range(2)]
        idle_daemon.until(has_tasks(2))
        idle_daemon.call(idle_daemon.daemon.start, 1)
        assert [future.cancel() for future in futures] == [False, True]
        assert [future.cancelled() for future in futures] == [False, True]
        assert futures[1].cancel()
        with pytest.raises(concurrent.futures.CancelledError):
            futures[1].result()
        idle_daemon.call(idle_daemon.daemon.run_all)
        assert futures[0].result() == 0
        assert not futures[0].cancel()


def test_cancelled_by_somebody_else(idle_daemon: DaemonThread) -> None:
    with SchedExecutor(idle_daemon.address) as executor:
        future = executor.submit(add, 1)
        idle_daemon.until(has_tasks(1))
        idle_daemon.call(
            idle_daemon.daemon.end, wire.TaskDone(idle_daemon.daemon.tasks[1].id, "cancelled", "cancelled")
        )
        assert concurrent.futures.wait([future], 10).done == {future}
        assert future.cancelled()


def test_cancel_before_the_daemon_has_acknowledged(idle_daemon: DaemonThread) -> None:
    with SchedExecutor(idle_daemon.address) as executor:
        assert all(executor.submit(add, n).cancel() for n in range(200))


def test_cancel_by_many_threads_at_once(idle_daemon: DaemonThread) -> None:
    with SchedExecutor(idle_daemon.address) as executor, concurrent.futures.ThreadPoolExecutor(8) as pool:
        futures = [executor.submit(add, n) for n in range(50)]
        assert all(pool.map(lambda future: future.cancel(), futures * 4))


def test_cancel_in_a_callback_is_only_asked_for(idle_daemon: DaemonThread) -> None:
    with SchedExecutor(idle_daemon.address) as executor:
        first, second = executor.submit(add, 1), executor.submit(add, 2)
        answers: list[bool] = []
        first.add_done_callback(lambda _: answers.append(second.cancel()))
        idle_daemon.until(has_tasks(2))
        idle_daemon.call(idle_daemon.daemon.run, 1)
        assert concurrent.futures.wait([second], 10).done == {second}
        assert second.cancelled()
        assert answers == [False]


def test_cancel_in_an_event_loop_is_only_asked_for(idle_daemon: DaemonThread) -> None:
    """Whoever waited for the daemon's answer would hold up all else in that loop."""

    async def cancel() -> bool:
        return future.cancel()

    with SchedExecutor(idle_daemon.address) as executor:
        future = executor.submit(add, 1)
        idle_daemon.until(has_tasks(1))
        assert not asyncio.run(cancel())
        assert concurrent.futures.wait([future], 10).done == {future}
        assert future.cancelled()


def test_cancel_where_the_daemon_does_not_answer(idle_daemon: DaemonThread, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(futures_module, "CANCEL_TIMEOUT_S", 0.05)
    with SchedExecutor(idle_daemon.address) as executor:
        future = executor.submit(add, 1)
        idle_daemon.until(has_tasks(1))
        # An answer to a request that was never made.
        idle_daemon.daemon.override = lambda request: wire.Changed(0, 0)
        assert not future.cancel()
        idle_daemon.call(idle_daemon.daemon.run_all)
        assert future.result() == 1


# ------------------------------------------------------------------------------------------------------------- shutdown


def test_shutdown_waits(idle_daemon: DaemonThread) -> None:
    executor = SchedExecutor(idle_daemon.address)
    future = executor.submit(add, 1)
    idle_daemon.until(has_tasks(1))
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        down = pool.submit(executor.shutdown)
        assert not down.done()
        idle_daemon.call(idle_daemon.daemon.run_all)
        down.result(10)
    assert future.result() == 1
    executor.shutdown()


def test_shutdown_cancels_what_has_not_started(idle_daemon: DaemonThread) -> None:
    executor = SchedExecutor(idle_daemon.address, max_workers=4)
    futures = [executor.submit(add, n) for n in range(10)]
    idle_daemon.until(has_tasks(4))
    idle_daemon.call(idle_daemon.daemon.start, 1)
    executor.shutdown(wait=False, cancel_futures=True)
    concurrent.futures.wait(futures[1:], 10)
    assert [future.cancelled() for future in futures] == [False] + [True] * 9
    idle_daemon.call(idle_daemon.daemon.run_all)
    assert futures[0].result() == 0
    executor.shutdown()


def test_submit_after_shutdown(daemon_thread: DaemonThread) -> None:
    executor = SchedExecutor(daemon_thread.address)
    executor.shutdown()
    for fn in (add, threading.Lock().acquire):
        with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
            executor.submit(fn)


def test_forgotten_executor_ends_with_its_last_task(idle_daemon: DaemonThread) -> None:
    executor = SchedExecutor(idle_daemon.address)
    future, values = executor.submit(add, 1), executor.map(add, range(3))
    thread, reference = executor._core.thread.thread, weakref.ref(executor)
    del executor
    gc.collect()
    assert reference() is None
    idle_daemon.until(has_tasks(4))
    assert thread.is_alive()
    idle_daemon.call(idle_daemon.daemon.run_all)
    thread.join(10)
    assert not thread.is_alive()
    assert [future.result(), *values] == [1, 0, 1, 2]


def run_script(address: str, script: str) -> subprocess.CompletedProcess[str]:
    code = f"from schedd.client.executor import SchedExecutor\nexecutor = SchedExecutor({address!r})\n{script}"
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )


def test_interpreter_waits_for_what_was_submitted(daemon_thread: DaemonThread) -> None:
    ran = run_script(
        daemon_thread.address,
        "for n in range(100): executor.submit(len, 'abc').add_done_callback(lambda f: print(f.result()))",
    )
    assert (ran.stdout, ran.stderr, ran.returncode) == ("3\n" * 100, "", 0)


def test_interpreter_waits_after_shutdown_without_wait(daemon_thread: DaemonThread) -> None:
    ran = run_script(
        daemon_thread.address,
        "executor.submit(len, 'abc').add_done_callback(lambda f: print(f.result())); executor.shutdown(wait=False)",
    )
    assert (ran.stdout, ran.stderr, ran.returncode) == ("3\n", "", 0)


def test_submit_while_the_interpreter_ends(daemon_thread: DaemonThread) -> None:
    ran = run_script(daemon_thread.address, "import atexit\natexit.register(lambda: executor.submit(len, 'abc'))")
    assert "RuntimeError: cannot schedule new futures after" in ran.stderr


def test_use_after_fork(daemon_thread: DaemonThread) -> None:
    with SchedExecutor(daemon_thread.address) as executor:
        child = os.fork()
        if child == 0:
            try:
                executor.submit(add, 1)
            except BrokenSchedExecutor:
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert executor.submit(add, 1).result() == 1


# --------------------------------------------------------------------------------------------------- the daemon is away


def test_nobody_listens() -> None:
    with pytest.raises(ConnectionLost, match=r"no daemon answers at 127\.0\.0\.1:1 "):
        SchedExecutor("127.0.0.1:1")


def test_daemon_goes_away(idle_daemon: DaemonThread) -> None:
    with SchedExecutor(idle_daemon.address, max_workers=2, reconnect_s=0) as executor:
        futures = [executor.submit(add, n) for n in range(5)]
        idle_daemon.until(has_tasks(2))
        idle_daemon.call(idle_daemon.daemon.hang_up)
        for future in futures:
            with pytest.raises(BrokenSchedExecutor, match="ended the connection") as caught:
                future.result(10)
            assert isinstance(caught.value.__cause__, ConnectionLost)
        with pytest.raises(BrokenSchedExecutor):
            executor.submit(add, 1)
        assert not futures[0].cancel()


def test_daemon_goes_away_instead_of_an_acknowledgement(idle_daemon: DaemonThread) -> None:
    idle_daemon.daemon.override = lambda request: idle_daemon.daemon.hang_up()
    with SchedExecutor(idle_daemon.address, reconnect_s=0) as executor:
        future = executor.submit(add, 1)
        with pytest.raises(BrokenSchedExecutor):
            future.result(10)


def test_end_that_overtakes_its_acknowledgement(idle_daemon: DaemonThread) -> None:
    def push_first(request: Any) -> Any:
        if isinstance(request, wire.Submit):
            daemon = idle_daemon.daemon
            daemon.peers[-1].push(wire.TasksDone([wire.TaskDone(TaskId(1), "succeeded", "ok", pickle.dumps(42))]))
        return None

    idle_daemon.daemon.override = push_first
    with SchedExecutor(idle_daemon.address) as executor:
        assert executor.submit(add, 1).result(10) == 42
