"""Nothing acknowledged is lost, nothing is done twice: workers that are killed, clients whose daemon is killed."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers import Cluster, Process, wait_until

from schedd.client.executor import SchedExecutor
from schedd.client.sync import Client
from schedd.errors import RequestRefused
from schedd.wire.messages import Selection
from schedd.worker.shelf import PARTIAL, read_batch

from .conftest import Gate
from .test_restart import CONFIG, SOON, Restarts, schedd

pytestmark = pytest.mark.needs("setsid")


@pytest.fixture
def restarts(cluster: Cluster) -> Restarts:
    return Restarts(cluster)


def lines(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


def start_worker(cluster: Cluster, name: str = "w1", cpus: float = 1, wait: bool = True) -> None:
    cluster.start_worker(name, cpus, config=SOON, wait=wait)


def kept_count(cluster: Cluster, name: str = "w1") -> int:
    """How many ends a worker has on disk."""
    folder = cluster.folder / "state" / "workers" / name / "ends"
    return sum(len(read_batch(path).attempts) for path in folder.iterdir() if path.suffix != PARTIAL)


# --------------------------------------------------------------------------------------- ends that a worker has on disk


def test_ends_outlive_the_daemon_and_the_worker(
    cluster: Cluster, restarts: Restarts, gate: Gate, tmp_path: Path
) -> None:
    """Tasks end while the daemon is away, the worker is killed and started anew, the daemon comes back: run once."""
    start_worker(cluster, cpus=4)
    out = tmp_path / "out"
    wait_for_gate = gate.command[-1]
    tasks = [cluster.client.submit(["sh", "-c", f"{wait_for_gate}; echo {n} >> {out}"]) for n in range(3)]
    dies = cluster.client.submit(["sh", "-c", f"echo dies >> {out}; [ -e {out}.go ] || exec sleep 1000"])
    for task in (*tasks, dies):
        cluster.wait_for_state(task.id, "running")
    worker = cluster.processes[-1]
    cluster.daemon.kill()
    gate.open()
    wait_until(lambda: kept_count(cluster) == 3)
    worker.kill()
    Path(f"{out}.go").touch()
    start_worker(cluster, cpus=4, wait=False)
    restarts.start()
    ends = cluster.client.wait([*(task.id for task in tasks), dies.id], timeout=30)
    assert [(end.state, end.attempt) for end in ends] == [("succeeded", 1)] * 3 + [("succeeded", ends[3].attempt)]
    assert sorted(lines(out)) == ["0", "1", "2", "dies", "dies"]
    (shown,) = json.loads(schedd(cluster, "show", str(tasks[0].id), "--json").stdout)
    assert [(attempt["attempt"], attempt["cause"], attempt["worker"]) for attempt in shown["attempts"]] == [
        (1, "ok", "w1")
    ]


def test_killed_worker_that_comes_back_at_once(cluster: Cluster, tmp_path: Path) -> None:
    """The daemon is there all the time: what ran died and starts again at once, not after the lease of a minute."""
    cluster.start_daemon()
    start_worker(cluster)
    out = tmp_path / "out"
    task = cluster.client.submit(["sh", "-c", f"echo run >> {out}; [ -e {out}.go ] || exec sleep 1000"])
    cluster.wait_for_state(task.id, "running")
    wait_until(lambda: lines(out) == ["run"])
    cluster.processes[-1].kill()
    Path(f"{out}.go").touch()
    start_worker(cluster)
    (end,) = cluster.client.wait([task.id], timeout=30)
    assert (end.state, end.attempt) == ("succeeded", 2)
    first = cluster.detail(task.id).attempts[0]
    assert (first.cause, first.message) == ("lost", "worker w1 was lost: the worker was started anew")


def test_stopped_worker_hands_back_what_had_not_started(cluster: Cluster, restarts: Restarts, tmp_path: Path) -> None:
    """SIGTERM: the running one ends there, the others start elsewhere, each once and nobody blamed."""
    start_worker(cluster, "w1")
    out = tmp_path / "out"
    done = cluster.client.submit(["true"], kind="short")
    cluster.client.wait([done.id], timeout=30)
    script = f"echo $SCHEDD_TASK_ID >> {out}; while [ ! -e {out}.go ]; do sleep 0.02; done"
    tasks = [cluster.client.submit(["sh", "-c", script], kind="short") for _ in range(5)]
    wait_until(lambda: len(lines(out)) == 1)
    worker = cluster.processes[-1]
    start_worker(cluster, "w2")
    worker.signal(signal.SIGTERM)
    wait_until(lambda: "worker_draining" in worker.log())
    Path(f"{out}.go").touch()
    ends = cluster.client.wait([task.id for task in tasks], timeout=30)
    assert {end.state for end in ends} == {"succeeded"}
    assert sorted(map(int, lines(out))) == sorted(task.id for task in tasks)
    assert worker.wait() == 0
    views = [cluster.detail(task.id) for task in tasks]
    assert all(len(view.attempts) == 1 for view in views)


# ------------------------------------------------------------------------------------ clients whose daemon is killed


def noting(path: Path) -> Callable[[int], int]:
    """A call that leaves a mark of each execution. A local function travels by value: workers have no tests."""
    name = str(path)

    def note(number: int) -> int:

        fd = os.open(name, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(fd, f"{number}\n".encode())
        os.close(fd)
        return number * number

    return note


def test_map_through_kills_of_the_daemon(cluster: Cluster, restarts: Restarts, tmp_path: Path) -> None:
    """5,000 calls, the daemon killed again and again: each result once, in order, and each call made once."""
    start_worker(cluster, "w1", 2)
    out = tmp_path / "out"
    count = 5000
    with Client(restarts.address) as client:
        values = client.map(noting(out), range(count))
        got: list[int] = []
        for part in range(1, 5):
            while len(got) < part * count // 6:
                got.append(next(values))
            restarts.kill()
        got += values
    assert got == [number * number for number in range(count)]
    assert sorted(map(int, lines(out))) == list(range(count))
    assert len(cluster.client.tasks(Selection())) == count


def test_executor_through_kills_of_the_daemon(cluster: Cluster, restarts: Restarts, tmp_path: Path) -> None:
    """Killed while the submits are under way, too."""
    start_worker(cluster, "w1", 2)
    out = tmp_path / "out"
    count = 3000
    note = noting(out)
    with SchedExecutor(restarts.address) as executor:
        futures = [executor.submit(note, number) for number in range(count // 2)]
        restarts.kill()
        futures += [executor.submit(note, number) for number in range(count // 2, count)]
        wait_until(lambda: len(lines(out)) > 500)
        restarts.kill()
        assert [future.result(60) for future in futures] == [number * number for number in range(count)]
    assert sorted(map(int, lines(out))) == list(range(count))


def test_submits_with_keys_through_kills_of_the_daemon(cluster: Cluster, restarts: Restarts, tmp_path: Path) -> None:
    """One after the other, from several threads; whoever submits twice gets the same task."""
    start_worker(cluster, "w1", 2)
    out = tmp_path / "out"
    count = 400
    note = noting(out)
    with Client(restarts.address) as client, ThreadPoolExecutor(4) as threads:

        def submit(number: int) -> int:
            return client.submit(note, number, key=f"k{number}").id

        ids = threads.map(submit, range(count))
        for _ in range(3):
            restarts.kill()
        first = list(ids)
        assert list(threads.map(submit, range(count))) == first
        assert len(set(first)) == count
        client.wait(first, timeout=60)
        restarts.kill()
        assert list(threads.map(submit, range(0, count, 50))) == first[::50]
        with pytest.raises(RequestRefused, match="key 'k7' names task"):
            client.submit(note, 8, key="k7")
    assert sorted(map(int, lines(out))) == list(range(count))


class Dropping:
    """A proxy in front of a daemon that ends each connection after so many bytes of answers, taken in turn."""

    def __init__(self, address: str, *bytes_max: int) -> None:
        host, _, port = address.rpartition(":")
        self._daemon = (host, int(port))
        self._bytes_max = itertools.cycle(bytes_max)
        self.drops = 0
        self.is_open = True
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._ends: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                daemon = socket.create_connection(self._daemon)
                self._ends += [client, daemon]
                if not self.is_open:
                    self.drop()
                for way in ((client, daemon, 1 << 60), (daemon, client, next(self._bytes_max))):
                    self._threads.append(threading.Thread(target=self._carry, args=way, daemon=True))
                    self._threads[-1].start()

    def _carry(self, source: socket.socket, sink: socket.socket, most: int) -> None:
        left = most
        with contextlib.suppress(OSError):
            while left > 0 and (data := source.recv(min(left, 65536))):
                sink.sendall(data)
                left -= len(data)
        self.drops += left <= 0
        for end in (source, sink):
            _hang_up(end)

    def drop(self) -> None:
        """End all connections."""
        for end in self._ends:
            _hang_up(end)

    def close(self) -> None:
        _hang_up(self._listener)
        self.drop()
        for thread in self._threads:
            thread.join()
        for end in (self._listener, *self._ends):
            end.close()


def _hang_up(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)


def test_connections_that_break_anywhere(cluster: Cluster, restarts: Restarts, tmp_path: Path) -> None:
    """Answers are cut at every place that there is, acknowledgements too: each call is made once."""
    start_worker(cluster, "w1", 2)
    out = tmp_path / "out"
    note = noting(out)
    proxy = Dropping(restarts.address, 250, 400, 700, 1500, 20_000)
    count = 60
    with contextlib.closing(proxy), Client(proxy.address) as client:
        tasks = [client.submit(note, number) for number in range(count)]
        assert [task.result(60) for task in tasks] == [number * number for number in range(count)]
        assert sorted(end.task_id for end in client.wait(tasks, timeout=60)) == sorted(task.id for task in tasks)
    assert proxy.drops > 2
    assert sorted(map(int, lines(out))) == list(range(count))


def test_results_that_memory_has_forgotten(cluster: Cluster, tmp_path: Path) -> None:
    """More tasks end while the client is away than the daemon remembers: it looks into its journal."""
    restarts = Restarts(cluster, f"{CONFIG}\n[limits]\nfinished_keep_count = 5\n")
    start_worker(cluster, "w1")
    note = noting(tmp_path / "out")
    proxy = Dropping(restarts.address, 1 << 60)
    with contextlib.closing(proxy), Client(proxy.address) as client:
        first = client.submit(note, 0, hold=True)
        tasks = [client.submit(note, number, after=[first]) for number in range(1, 40)]
        proxy.is_open = False
        proxy.drop()
        cluster.client.release([first.id])
        cluster.client.wait([tasks[-1].id], timeout=30)
        assert len(cluster.client.tasks(Selection())) == 5
        proxy.is_open = True
        assert [task.result(60) for task in (first, *tasks)] == [number * number for number in range(40)]


def test_command_line_waits_through_a_restart(cluster: Cluster, restarts: Restarts, gate: Gate) -> None:
    start_worker(cluster, "w1", 2)
    argv = [sys.executable, "-m", "schedd.cli", "--address", restarts.address]
    command = ["sh", "-c", f"echo begun; {gate.command[2]}"]
    submit = Process("submit", [*argv, "submit", "--wait", "--", *command], cluster.folder / "s", cluster.env())
    cluster.processes.append(submit)
    wait_until(lambda: any(view.state == "running" for view in cluster.client.tasks()))
    wait = Process("wait", [*argv, "wait", "1"], cluster.folder / "w", cluster.env())
    cluster.processes.append(wait)
    wait_until(lambda: cluster.client.stats().connections >= 6)
    # A command that was never connected does not wait: this one is, and so is the one before it.
    logs = Process("logs", [*argv, "logs", "1", "-f"], cluster.folder / "l", cluster.env())
    cluster.processes.append(logs)
    wait_until(lambda: "begun" in logs.log())
    cluster.daemon.kill()
    for process in (submit, wait, logs):
        wait_until(lambda process=process: "the daemon is away, trying again" in process.log())  # type: ignore[misc]
    restarts.start()
    gate.open()
    assert [submit.wait(30), wait.wait(30), logs.wait(30)] == [0, 0, 0]
    for process in (submit, wait, logs):
        assert process.log().count("the daemon is back") == 1
    assert "1 succeeded" in wait.log()
