"""The blocking client."""

from __future__ import annotations

import concurrent.futures
import gc
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from schedd.client.sync import Client
from schedd.client.thread import LoopThread
from schedd.errors import ConnectionLost, RequestRefused
from schedd.wire import messages as wire

from .fake_daemon import DaemonThread

ROOT = Path(__file__).parents[2]


def add(x: int, y: int = 0) -> int:
    return x + y


def fail(message: str) -> None:
    raise ValueError(message)


def test_submit_and_result(daemon_thread: DaemonThread) -> None:
    with Client(daemon_thread.address) as client:
        task = client.submit(add, 1, kwargs={"y": 2})
        assert task.id == 1
        assert task.result() == 3
        assert task.done()
        assert task.wait().state == "succeeded"
        assert client.result(1) == 3
        with pytest.raises(ValueError, match="oops"):
            client.submit(fail, "oops").result()
        with pytest.raises(RequestRefused, match="no task 99"):
            client.result(99)


def test_submit_while_its_module_is_imported(idle_daemon: DaemonThread, tmp_path: Path) -> None:
    """Who imports it has its lock: no other thread may look anything up in it."""
    (tmp_path / "being_imported.py").write_text(SUBMITS_ON_IMPORT.format(idle_daemon.address))
    ran = subprocess.run(
        [sys.executable, "-c", "import being_imported"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert ran.stdout == "submitted\n"
    assert len(idle_daemon.daemon.tasks) == 1


SUBMITS_ON_IMPORT = """
import schedd

class Local:
    pass

def nothing(local):
    pass

with schedd.Client({!r}) as client:
    client.submit(nothing, Local())
print("submitted")
"""


def test_wrong_option_is_told_at_once(daemon_thread: DaemonThread) -> None:
    with Client(daemon_thread.address) as client, pytest.raises(TypeError, match="did you mean 'gpus'"):
        client.submit(add, 1, gpu=1)


@pytest.mark.parametrize("chunksize", [1, 7])
def test_map(daemon_thread: DaemonThread, chunksize: int) -> None:
    with Client(daemon_thread.address) as client:
        assert list(client.map(add, range(2000), chunksize=chunksize)) == list(range(2000))


def test_map_draws_its_items_in_the_calling_thread(daemon_thread: DaemonThread) -> None:
    with Client(daemon_thread.address) as client:
        items = (client.submit(add, n).result() for n in range(3))
        assert list(client.map(add, items)) == [0, 1, 2]


@pytest.mark.parametrize("kind", [TimeoutError, concurrent.futures.CancelledError])
def test_map_raises_what_was_raised(daemon_thread: DaemonThread, kind: type[Exception]) -> None:
    """Also what asyncio has a meaning of its own for: with the traceback as its cause."""

    def fail(_: int) -> None:
        raise kind("far away")

    with Client(daemon_thread.address) as client, pytest.raises(kind) as caught:
        list(client.map(fail, [1]))
    assert type(caught.value) is kind
    assert "in fail" in str(caught.value.__cause__)


def test_map_fails_in_its_turn(daemon_thread: DaemonThread) -> None:
    with Client(daemon_thread.address) as client:
        values = client.map(divmod, [1, 1, 1], [1, 0, 1])
        assert next(values) == (1, 0)
        with pytest.raises(ZeroDivisionError):
            next(values)


def test_timeout(idle_daemon: DaemonThread) -> None:
    with Client(idle_daemon.address) as client:
        task = client.submit(add, 1)
        with pytest.raises(TimeoutError, match=r"task 1 is not final after 0\.01 s"):
            task.result(timeout=0.01)
        with pytest.raises(TimeoutError, match="1 of 1 tasks are not final"):
            client.wait([task], timeout=0.01)
        idle_daemon.call(idle_daemon.daemon.run_all)
        assert task.result() == 1


def test_timeout_while_the_daemon_is_away(idle_daemon: DaemonThread) -> None:
    with Client(idle_daemon.address) as client:
        client.submit(add, 1)
        idle_daemon.call(idle_daemon.daemon.go_away)
        with pytest.raises(TimeoutError, match=r"task 1 is not final after 0\.01 s"):
            client.result(1, timeout=0.01)


def test_reports(idle_daemon: DaemonThread) -> None:
    with Client(idle_daemon.address) as client:
        task = client.submit(add, 1)
        idle_daemon.call(idle_daemon.daemon.report, 1, 5)
        idle_daemon.call(idle_daemon.daemon.run_all)
        assert [report.step for report in task.reports()] == [5]


def test_cancel_and_look(idle_daemon: DaemonThread) -> None:
    with Client(idle_daemon.address) as client:
        task = client.submit(add, 1)
        assert [view.id for view in client.tasks()] == [1]
        assert task.cancel()
        assert client.tasks() == []
        assert client.cancel([]).changed == 0
        assert client.jobs() == []
        assert client.workers() == []
        for changed in (
            client.hold(1),
            client.release(1),
            client.set(1, priority=2),
            client.set_priorities([(task.id, 1.0)]),
            client.drain(["w1"]),
            client.preempt(1),
        ):
            assert changed.changed == 1


def test_many_threads(daemon_thread: DaemonThread) -> None:
    with Client(daemon_thread.address) as client, ThreadPoolExecutor(8) as pool:
        values = list(pool.map(lambda n: client.submit(add, n).result(), range(200)))
    assert values == list(range(200))


def test_nobody_listens() -> None:
    before = threading.active_count()
    with pytest.raises(ConnectionLost, match=r"no daemon answers at 127\.0\.0\.1:1 "):
        Client("127.0.0.1:1")
    for thread in threading.enumerate():
        if thread.name == "schedd-client":
            thread.join(10)
    assert threading.active_count() == before


def test_closed_client(daemon_thread: DaemonThread) -> None:
    client = Client(daemon_thread.address)
    task = client.submit(add, 1)
    assert task.result() == 1
    client.close()
    client.close()
    with pytest.raises(ConnectionLost, match="closed"):
        client.jobs()
    with pytest.raises(ConnectionLost, match="closed"):
        task.cancel()


def test_close_wakes_those_who_wait(idle_daemon: DaemonThread) -> None:
    client = Client(idle_daemon.address)
    task = client.submit(add, 1)
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(task.result), pool.submit(client.wait, [task])]
        idle_daemon.until(lambda daemon: bool(daemon.all_of(wire.WatchTasks)))
        client.close()
        for waiter in waiting:
            with pytest.raises(ConnectionLost):
                waiter.result(10)


def test_daemon_goes_away(idle_daemon: DaemonThread) -> None:
    with Client(idle_daemon.address, reconnect_s=0) as client:
        task = client.submit(add, 1)
        idle_daemon.call(idle_daemon.daemon.hang_up)
        with pytest.raises(ConnectionLost):
            task.result()


def test_blocking_call_in_a_callback_is_told(daemon_thread: DaemonThread) -> None:
    with Client(daemon_thread.address) as client:

        def look(_: wire.TaskDone) -> None:
            client.jobs()

        client.submit(add, 1).wait()
        with pytest.raises(RuntimeError, match="cannot make a blocking call"):
            client.wait([1], on_done=look)


def test_use_after_fork(daemon_thread: DaemonThread) -> None:
    with Client(daemon_thread.address) as client:
        task = client.submit(add, 1)
        child = os.fork()
        if child == 0:
            try:
                for call in (task.result, client.jobs, lambda: client.submit(add, 1)):
                    with pytest.raises(ConnectionLost, match="forked"):
                        call()
                client.close()
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert task.result() == 1


def test_unclosed_client_does_not_keep_the_interpreter(daemon_thread: DaemonThread) -> None:
    code = f"from schedd.client.sync import Client; Client({daemon_thread.address!r}).submit(len, 'abc')"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert ran.stderr == ""


def test_stopped_thread_takes_nothing_more() -> None:
    async def nothing() -> None:
        return None

    thread = LoopThread("test")
    thread.run(nothing())
    thread.stop()
    thread.stop()
    thread.join()
    with pytest.raises(ConnectionLost, match="closed"):
        thread.run(nothing())


def test_looking_is_cheap_to_import() -> None:
    """A client that only looks loads neither cloudpickle nor uvloop nor multiprocessing."""
    code = (
        "import sys, schedd.client.aio; print(sorted({'cloudpickle', 'uvloop', 'multiprocessing'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout.strip() == "[]"


def test_forgotten_client_ends_with_its_last_handle(idle_daemon: DaemonThread) -> None:
    task = Client(idle_daemon.address).submit(add, 1)
    thread = task._thread.thread
    idle_daemon.call(idle_daemon.daemon.run_all)
    assert task.result(10) == 1
    del task
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()
