"""Three hosts, each a network namespace, joined by cables of 50 ms round trip and 2 % loss that can be cut."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import Cluster, Process, wait_until

from .cable import Cable, Host
from .conftest import QUICK, Gate
from .test_restart import SOON

pytestmark = pytest.mark.needs("root", "ip", "nsenter", "tun", "setsid")

DELAY_S = 0.025
LOSS = 0.01
#: TCP's pauses between its tries double: after a cut of this length it may need as long again to speak.
SHORT_CUT_S = 2.0
PATIENT = QUICK.replace("lost_after_s = 0.5", "lost_after_s = 60.0")
COMMANDS = 60


class Network:
    """A daemon's host in the middle, and a worker's host at the end of each of two cables."""

    def __init__(self, cluster: Cluster, daemon: Host, workers: dict[str, Host], cables: dict[str, Cable]) -> None:
        self.cluster = cluster
        self.cables = cables
        self._daemon = daemon
        self._workers = workers

    def start_daemon(self, config: str = "") -> None:
        # We are on none of these hosts; a Unix socket knows no network.
        local = self.cluster.folder / "socket"
        server = f"[server]\ninsecure = true\nsocket = {str(local)!r}\n"
        self.cluster.start_daemon(config + server, listen="0.0.0.0:0", prefix=self._daemon.prefix)
        self.cluster.client_address = f"unix:{local}"

    def start_worker(self, name: str, cpus: float = 2) -> Process:
        port = self.cluster.address.rpartition(":")[2]
        address = f"{self.cables[name].address}:{port}"
        prefix = self._workers[name].prefix
        return self.cluster.start_worker(name, cpus, "--connect", address, config=SOON, prefix=prefix)


@pytest.fixture
def network(cluster: Cluster) -> Iterator[Network]:
    with contextlib.ExitStack() as stack:
        daemon = stack.enter_context(Host("daemon"))
        workers = {name: stack.enter_context(Host(name)) for name in ("w1", "w2")}
        cables = {
            name: stack.enter_context(Cable(daemon, host, number, delay_s=DELAY_S, loss=LOSS, seed=number))
            for number, (name, host) in enumerate(workers.items(), 1)
        }
        yield Network(cluster, daemon, workers, cables)
        cluster.close()


def lines(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


def lines_with(process: Process, word: str) -> list[str]:
    return [line for line in process.log().splitlines() if word in line]


def pids_of_worker(cluster: Cluster, worker: str) -> list[int]:
    """Processes of attempts on this worker."""
    found = []
    for pid in cluster.pids():
        with contextlib.suppress(OSError):
            if f"SCHEDD_WORKER={worker}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                found.append(pid)
    return found


def test_far_away_with_losses_and_a_short_cut(network: Network, tmp_path: Path) -> None:
    """The default leases outlast a cut of two seconds, and the time that TCP needs to speak again: nobody notices."""
    cluster, out = network.cluster, tmp_path / "out"
    network.start_daemon()
    workers = [network.start_worker(name) for name in ("w1", "w2")]
    client = cluster.client
    started = time.monotonic()
    assert client.submit(abs, -1).result(30) == 1
    assert time.monotonic() - started >= 2 * DELAY_S, "the cable delays"
    assert list(client.map(abs, range(-300, 0))) == list(range(300, 0, -1))
    script = f"echo $SCHEDD_TASK_ID >> {out}; sleep 0.1"
    tasks = [client.submit(["sh", "-c", script]) for _ in range(COMMANDS)]
    wait_until(lambda: len(lines(out)) > 8)
    network.cables["w1"].cut()
    time.sleep(SHORT_CUT_S)
    network.cables["w1"].heal()
    ends = client.wait([task.id for task in tasks], timeout=60)
    assert {(end.state, end.attempt) for end in ends} == {("succeeded", 1)}
    assert sorted(map(int, lines(out))) == [task.id for task in tasks]
    assert client.stats().attempts_by_cause == {"ok": COMMANDS + 301}
    assert not lines_with(cluster.daemon, "worker_unreachable")
    assert [len(lines_with(worker, "worker_connected")) for worker in workers] == [1, 1]


def test_cut_shorter_than_the_lease_and_what_is_after_it(network: Network, gate: Gate) -> None:
    """Unreachable and not yet lost: what runs there goes on, and is still its own when the cable is whole again."""
    cluster = network.cluster
    network.start_daemon(PATIENT)
    network.start_worker("w1")
    task = cluster.client.submit(gate.command)
    cluster.wait_for_state(task.id, "running")
    network.start_worker("w2")
    network.cables["w1"].cut()
    wait_until(lambda: cluster.worker_status("w1") == "unreachable")
    row = cluster.worker("w1")
    assert row is not None
    assert row.last_seen_s > 1
    assert "nothing heard for" in row.silence
    assert (cluster.task(task.id).state, cluster.task(task.id).worker) == ("running", "w1")
    network.cables["w1"].heal()
    cluster.wait_for_workers("w1")
    assert [worker.silence for worker in cluster.client.workers()] == ["", ""]
    gate.open()
    (end,) = cluster.client.wait([task.id], timeout=30)
    assert (end.state, end.attempt, end.worker) == ("succeeded", 1, "w1")
    assert cluster.client.stats().attempts_by_cause == {"ok": 1}


def test_cut_longer_than_the_lease(network: Network, gate: Gate, tmp_path: Path) -> None:
    """Lost: its tasks run elsewhere. When it is back, what it still runs is stopped and what it finished is refused."""
    cluster = network.cluster
    network.start_daemon(QUICK)
    first = network.start_worker("w1")
    client = cluster.client
    long = client.submit(gate.command)
    script = (
        f"until [ -e {tmp_path}/$SCHEDD_WORKER ]; do sleep 0.02; done; printf '\"%s\"' $SCHEDD_WORKER > $SCHEDD_RESULT"
    )
    short = client.submit(["sh", "-c", script])
    for task in (long, short):
        cluster.wait_for_state(task.id, "running")
    network.start_worker("w2")
    network.cables["w1"].cut()
    wait_until(lambda: cluster.worker_status("w1") == "none")
    for task in (long, short):
        assert cluster.wait_for_state(task.id, "running").worker == "w2"
    (tmp_path / "w1").touch()
    wait_until(lambda: f"task={short.id} attempt=1" in first.log(), what="it ends while nobody can hear of it")
    assert pids_of_worker(cluster, "w1")
    stale_before = client.stats().stale_total
    network.cables["w1"].heal()
    cluster.wait_for_workers("w1")
    wait_until(lambda: not pids_of_worker(cluster, "w1"), what="the old attempt is stopped")
    wait_until(lambda: client.stats().stale_total >= stale_before + 2, what="both old attempts are refused")
    assert [cluster.task(task.id).state for task in (long, short)] == ["running", "running"]
    (tmp_path / "w2").touch()
    gate.open()
    ends = client.wait([long.id, short.id], timeout=30)
    assert {(end.state, end.attempt, end.worker) for end in ends} == {("succeeded", 2, "w2")}
    assert cluster.detail(short.id).result == b'"w2"'
    for task in (long, short):
        lost, ok = cluster.detail(task.id).attempts
        assert (lost.worker_id, lost.cause, lost.message) == ("w1", "lost", "worker w1 was lost: silent for too long")
        assert (ok.worker_id, ok.cause) == ("w2", "ok")
    (unreachable,) = lines_with(cluster.daemon, "worker_unreachable")
    assert "nothing heard for" in unreachable
    (gone,) = lines_with(cluster.daemon, "worker_lost")
    assert "requeued=2" in gone


def test_cut_in_one_direction(network: Network, gate: Gate) -> None:
    """One worker cannot be heard, the other one cannot hear: both ends notice, and connect again when they can."""
    cluster = network.cluster
    network.start_daemon(PATIENT)
    workers = {name: network.start_worker(name, 1) for name in ("w1", "w2")}
    tasks = [cluster.client.submit(gate.command) for _ in workers]
    for task in tasks:
        cluster.wait_for_state(task.id, "running")
    network.cables["w1"].cut(forth=True, back=False)
    network.cables["w2"].cut(forth=False, back=True)
    for name in workers:
        wait_until(lambda name=name: cluster.worker_status(name) == "unreachable")  # type: ignore[misc]
    for worker in workers.values():
        wait_until(lambda worker=worker: lines_with(worker, "the daemon has said nothing"))  # type: ignore[misc]
    for cable in network.cables.values():
        cable.heal()
    cluster.wait_for_workers(*workers)
    gate.open()
    ends = cluster.client.wait([task.id for task in tasks], timeout=30)
    assert {(end.state, end.attempt) for end in ends} == {("succeeded", 1)}
    assert cluster.client.stats().attempts_by_cause == {"ok": 2}
