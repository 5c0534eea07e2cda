"""Everyday work through the real thing: executors, maps, large data, the command line, workers that come and go."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import as_completed

from helpers import Cluster, wait_until

from schedd.client.executor import SchedExecutor
from schedd.client.sync import Client

from .conftest import QUICK, Gate

MB = 1024 * 1024


def schedd(cluster: Cluster, *words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "schedd.cli", *words]
    env = cluster.env({"SCHEDD_ADDRESS": cluster.address, "COLUMNS": "120"})
    return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=False)


def test_executor_in_the_place_of_a_process_pool(cluster: Cluster) -> None:
    cluster.start_daemon()
    cluster.start_workers({"w1": 1, "w2": 1})

    def divide(a: int, b: int) -> float:
        return a / b

    with SchedExecutor(cluster.address) as executor:
        futures = {executor.submit(divide, 12, b): b for b in range(4)}
        results = {}
        for future in as_completed(futures, timeout=30):
            error = future.exception()
            results[futures[future]] = type(error).__name__ if error else future.result()
        assert results == {0: "ZeroDivisionError", 1: 12.0, 2: 6.0, 3: 4.0}
        assert list(executor.map(divide, range(100), [1] * 100)) == list(range(100))


def test_cancelled_future_that_has_not_started(cluster: Cluster, gate: Gate) -> None:
    cluster.start_daemon()
    cluster.start_worker("w1", 1)

    def wait_for_file(path: str) -> str:
        import pathlib
        import time

        while not pathlib.Path(path).exists():
            time.sleep(0.01)
        return "done"

    with SchedExecutor(cluster.address) as executor:
        first = executor.submit(wait_for_file, str(gate.path))
        wait_until(lambda: cluster.client.stats().states["running"] == 1)
        second = executor.submit(wait_for_file, str(gate.path))
        wait_until(lambda: cluster.client.stats().states["queued"] == 1)
        assert second.cancel()
        assert not first.cancel()
        gate.open()
        assert first.result(30) == "done"
    assert cluster.client.stats().attempts_by_cause == {"ok": 1}


def test_large_arguments_and_results(cluster: Cluster) -> None:
    """Hundreds of megabytes in flight: nobody is cut off for what is on its way to him."""
    cluster.start_daemon()
    worker = cluster.start_worker("w1", 1)
    client = cluster.client
    assert list(client.map(len, [b"warm"] * 20)) == [4] * 20
    assert list(client.map(len, (bytes(3 * MB) for _ in range(60)))) == [3 * MB] * 60
    assert [len(value) for value in client.map(bytes, [2 * MB] * 40)] == [2 * MB] * 40
    assert worker.log().count("worker_connected") == 1
    assert set(client.stats().attempts_by_cause) == {"ok"}


def test_many_clients_at_once(cluster: Cluster) -> None:
    cluster.start_daemon()
    cluster.start_workers({"w1": 1, "w2": 1})
    results: dict[int, list[int]] = {}

    def work(number: int) -> None:
        with Client(cluster.address) as client:
            results[number] = list(client.map(abs, range(-200 - number, -number)))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == {n: list(range(200 + n, n, -1)) for n in range(8)}


def test_workers_that_come_and_go_lose_nothing(cluster: Cluster) -> None:
    cluster.start_daemon(QUICK)
    workers = cluster.start_workers({"w1": 2, "w2": 2, "w3": 2})

    def square(value: int) -> int:
        import time

        time.sleep(0.005)
        return value * value

    with SchedExecutor(cluster.address) as executor:
        futures = [executor.submit(square, value) for value in range(1500)]
        wait_until(lambda: cluster.client.stats().finished_total > 100)
        workers["w1"].kill()
        cluster.start_worker("w4", 2)
        wait_until(lambda: cluster.client.stats().finished_total > 500)
        assert cluster.client.drain(["w2"]).changed == 1
        assert workers["w2"].wait() == 0
        assert [future.result(60) for future in futures] == [value * value for value in range(1500)]
    stats = cluster.client.stats()
    assert stats.states["succeeded"] == stats.submitted_total == 1500
    assert set(stats.attempts_by_cause) <= {"ok", "lost"}
    # Two slots were running at most when the worker was killed.
    assert stats.attempts_by_cause.get("lost", 0) <= 2


def test_command_line(cluster: Cluster) -> None:
    cluster.start_daemon()
    cluster.start_worker("w1", 2)
    ran = schedd(cluster, "submit", "--quiet", "--job", "hello", "--", "sh", "-c", "echo to you; exit 3")
    assert ran.returncode == 0, ran.stderr
    task_id = ran.stdout.strip()
    assert schedd(cluster, "wait", task_id).returncode == 1
    assert schedd(cluster, "logs", task_id).stdout == "to you\n"
    shown = schedd(cluster, "show", task_id)
    assert "failed" in shown.stdout
    assert "exit code 3" in shown.stdout
    ran = schedd(cluster, "submit", "--wait", "--array", "1-20", "--", "sh", "-c", "test {} -le 20")
    assert ran.returncode == 0, ran.stderr
    assert "w1" in schedd(cluster, "workers").stdout
    assert "hello" in schedd(cluster, "jobs").stdout
    cluster.daemon.kill()
    gone = schedd(cluster, "tasks")
    assert gone.returncode != 0
    assert "hint" in gone.stderr


def test_worker_over_a_unix_socket(cluster: Cluster) -> None:
    cluster.start_daemon(listen=f"unix:{cluster.folder}/s")
    cluster.start_worker("w1", 1)
    assert list(cluster.client.map(abs, range(-100, 0))) == list(range(100, 0, -1))
