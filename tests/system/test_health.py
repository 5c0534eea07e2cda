"""A worker on which everything fails, and a sweep with a typo in it: neither eats what others want done."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import Cluster, wait_until

from schedd.core.model import Selection

from .conftest import QUICK

pytestmark = pytest.mark.needs("setsid")

CONFIG = f"{QUICK}\n[failures]\nprobe_after_s = 1.0\nprobe_after_max_s = 2.0\n"
#: Never tried again within a test.
SLOW = f"{QUICK}\n[failures]\nprobe_after_s = 600.0\n[journal]\nadoption_grace_s = 2.0\n"


class Programs:
    """Folders of programs for workers to find: on one machine `evaluate` works, on another it does not."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mended = folder / "mended"
        self._write("good", "sleep 0.05")
        self._write("bad", f"[ -e {self.mended} ] || {{ echo 'CUDA error: no device' >&2; exit 1; }}")

    def _write(self, name: str, script: str) -> None:
        program = self.folder / name / "evaluate"
        program.parent.mkdir()
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)

    def env(self, name: str) -> dict[str, str]:
        return {"PATH": f"{self.folder / name}:/usr/bin:/bin"}


@pytest.fixture
def programs(tmp_path: Path) -> Programs:
    return Programs(tmp_path)


def start_three(cluster: Cluster, programs: Programs) -> None:
    """One worker that is broken, and two that are not."""
    config = "[worker]\nreconnect_delay_max_s = 0.3\n"
    for name, kind in (("w1", "good"), ("w2", "good"), ("broken", "bad")):
        cluster.start_worker(name, 2, wait=False, env=programs.env(kind), config=config)
    cluster.wait_for_workers("w1", "w2", "broken")


def schedd(cluster: Cluster, *words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "schedd.cli", "--address", cluster.address, *words]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, env=cluster.env())


def states(cluster: Cluster, job: str) -> dict[str, int]:
    return next(view.states for view in cluster.client.jobs() if view.name == job)


def test_black_hole_does_not_eat_the_queue(cluster: Cluster, programs: Programs) -> None:
    daemon = cluster.start_daemon(CONFIG)
    start_three(cluster, programs)
    for _ in range(300):
        cluster.client.submit(["evaluate"], job="sweep")
    wait_until(lambda: cluster.worker_status("broken") == "quarantined")
    view = cluster.worker("broken")
    assert view is not None
    assert view.quarantine is not None
    assert "attempts failed there, elsewhere 0 of" in view.quarantine.reason
    said = schedd(cluster, "workers").stdout
    assert f"broken is in quarantine: {view.quarantine.reason}" in said
    assert f'worker_quarantined worker=broken reason="{view.quarantine.reason}"' in daemon.log()
    cluster.client.wait(Selection(job="sweep"), timeout=60)
    done = states(cluster, "sweep")
    assert done["failed"] <= 60, "of 300; on a busy machine it takes longer to see that others succeed"
    assert done["succeeded"] + done["failed"] == 300

    programs.mended.touch()

    def is_back() -> bool:
        cluster.client.submit(["evaluate"]).result(30)
        return cluster.worker_status("broken") in ("idle", "busy")

    wait_until(is_back)
    assert "worker_cleared worker=broken" in daemon.log()


def test_quarantine_outlives_the_daemon_and_the_worker(cluster: Cluster, programs: Programs) -> None:
    cluster.start_daemon(SLOW)
    address = cluster.address
    start_three(cluster, programs)
    for _ in range(100):
        cluster.client.submit(["evaluate"], job="sweep")
    wait_until(lambda: cluster.worker_status("broken") == "quarantined")
    reason = cluster.worker("broken").quarantine  # type: ignore[union-attr]
    cluster.wait_until_written()
    cluster.daemon.kill()
    cluster.start_daemon(SLOW, listen=address)
    cluster.wait_for_workers("w1", "w2")
    wait_until(lambda: cluster.worker_status("broken") == "quarantined")
    cluster.client.wait(Selection(job="sweep"), timeout=60)
    next(process for process in cluster.processes if process.name == "broken").stop()
    cluster.start_worker("broken", 2, wait=False, env=programs.env("bad"))
    wait_until(lambda: cluster.worker_status("broken") == "quarantined")
    assert cluster.worker("broken").quarantine == reason  # type: ignore[union-attr]
    assert schedd(cluster, "drain", "broken", "--undo").returncode == 0
    assert cluster.worker_status("broken") == "idle"


def test_typo_in_a_sweep_stops_it(cluster: Cluster) -> None:
    daemon = cluster.start_daemon(SLOW)
    address = cluster.address
    cluster.start_workers({"w1": 1, "w2": 1})
    script = cluster.folder / "train"
    script.write_text("[ $1 = --lr ] || exit 2\n")
    command = ("--", "sh", str(script))
    for job, count, option in (("typo", 300, "--lrr"), ("fine", 20, "--lr")):
        done = schedd(cluster, "submit", "--name", job, "--array", f"1-{count}", *command, option, "{}")
        assert done.returncode == 0, done.stderr
    wait_until(lambda: states(cluster, "typo").get("held", 0) > 200)
    cluster.client.wait(Selection(job="fine"), timeout=60)
    assert states(cluster, "fine") == {"succeeded": 20}
    wait_until(lambda: states(cluster, "typo").keys() == {"failed", "held"})
    counts = states(cluster, "typo")
    assert 20 <= counts["failed"] <= 40
    reason = "the last 20 tasks of kind train failed, on 2 workers"
    held = cluster.task(290)
    assert held.state == "held"
    assert held.message.startswith(reason)
    assert reason in schedd(cluster, "jobs").stdout
    explained = json.loads(schedd(cluster, "explain", "290", "--json").stdout)
    assert explained["summary"].startswith(reason)
    assert "kind_held kind=train job=typo" in daemon.log()

    cluster.wait_until_written()
    daemon.kill()
    daemon = cluster.start_daemon(SLOW, listen=address)
    cluster.wait_for_workers("w1", "w2")
    assert states(cluster, "typo") == counts
    script.write_text("")
    late = schedd(cluster, "submit", "--name", "typo", *command)
    assert "warning: kind 'train' is held" in late.stderr
    assert schedd(cluster, "release", "--job", "typo").returncode == 0
    cluster.client.wait(Selection(job="typo"), timeout=90)
    assert states(cluster, "typo") == {"failed": counts["failed"], "succeeded": counts["held"] + 1}
    assert 'kind_released kind=train job=typo reason="its owner released or cancelled all of it"' in daemon.log()
