"""The wall clock of a running daemon, or of a running worker, jumps by a day; only the monotonic one counts."""

from __future__ import annotations

import signal
import subprocess
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from helpers import Cluster, wait_until

from .conftest import QUICK, Gate

pytestmark = pytest.mark.needs("cc", "setsid")

DAY_S = 86400
#: Of one run, one after the other.
JUMPS = {"forth": DAY_S, "back": -DAY_S}


class WallClock:
    """The wall clock of the processes that were started with `env`."""

    def __init__(self, library: Path, file: Path) -> None:
        self._file = file
        self.env = {"LD_PRELOAD": str(library), "WALLSHIFT": str(file)}

    def jump(self, seconds: int) -> None:
        """Let it be off by so much from now on."""
        partial = self._file.with_suffix(".new")
        partial.write_text(str(seconds))
        partial.replace(self._file)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = tmp_path_factory.mktemp("wallshift") / "wallshift.so"
    source = Path(__file__).with_name("wallshift.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(built), str(source), "-ldl"], check=True)
    return built


@pytest.fixture
def wall_clock(library: Path, tmp_path: Path) -> WallClock:
    return WallClock(library, tmp_path / "wallshift")


def last_logged(log: str) -> datetime:
    """The time of the newest line of a log."""
    return datetime.strptime(log.splitlines()[-1].split()[0], "%Y-%m-%dT%H:%M:%S%z")


@pytest.mark.parametrize("who", ["daemon", "worker"])
def test_wall_clock_jumps(cluster: Cluster, wall_clock: WallClock, gate: Gate, tmp_path: Path, who: str) -> None:
    """Leases hold, a timeout and a pause before a retry take as long as they should, nothing is lost."""
    daemon = cluster.start_daemon(f"{QUICK}\n[log]\nlevel = 'debug'\n", env=wall_clock.env if who == "daemon" else None)
    worker = cluster.start_worker("w1", 4, env=wall_clock.env if who == "worker" else None)
    shifted = daemon if who == "daemon" else worker
    client = cluster.client
    through = client.submit(gate.command)
    cluster.wait_for_state(through.id, "running")
    for name, seconds in JUMPS.items():
        began = [client.submit(["sleep", "300"], timeout=1.0, grace=0.1), client.submit(["sleep", "0.5"])]
        for task in began:
            cluster.wait_for_state(task.id, "running")
        wall_clock.jump(seconds)
        mark = tmp_path / name
        retried = client.submit(["sh", "-c", f"[ -e {mark} ] || {{ touch {mark}; exit 7; }}"], retries=1)
        ids = [*(task.id for task in began), retried.id]
        ends = {end.task_id: end for end in client.wait(ids, timeout=30)}
        assert [ends[i].cause for i in ids] == ["timeout", "ok", "ok"]
        assert ends[retried.id].attempt == 2
        jumped = last_logged(shifted.log()) - datetime.now().astimezone()
        assert abs(jumped - timedelta(seconds=seconds)) < timedelta(hours=1), "the clock was really set"
        row = cluster.worker("w1")
        assert row is not None
        assert 0 <= row.last_seen_s < DAY_S / 2
        for view, detail in client.show(ids):
            assert view.finished_at is not None
            assert view.submitted_at <= view.finished_at < view.submitted_at + DAY_S / 2
            assert all(0 <= a.finished_at_ns - a.started_at_ns < DAY_S / 2 * 1e9 for a in detail.attempts)
    uptime_s = client.stats().uptime_s
    wait_until(lambda: client.stats().uptime_s > uptime_s + 2, what="a lease has passed with nothing but heartbeats")
    gate.open()
    (end,) = client.wait([through.id], timeout=30)
    assert (end.state, end.attempt) == ("succeeded", 1)
    for word in ("worker_unreachable", "worker_lost", "worker_disconnected"):
        assert word not in daemon.log()
    assert worker.log().count("worker_connected") == 1


def test_silence_is_noticed_after_a_jump(cluster: Cluster, wall_clock: WallClock, gate: Gate) -> None:
    """A day back does not make a lease a day longer."""
    cluster.start_daemon(QUICK, env=wall_clock.env)
    worker = cluster.start_worker("w1", 1)
    task = cluster.client.submit(gate.command)
    cluster.wait_for_state(task.id, "running")
    worker.signal(signal.SIGSTOP)
    wall_clock.jump(-DAY_S)
    wait_until(lambda: cluster.worker_status("w1") == "none")
    assert cluster.task(task.id).state == "queued"
