"""Preemption with real daemons and workers: what is saved in the grace, who runs then, and who goes on where he was."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import Cluster, wait_until

from .conftest import QUICK, Gate

#: Rules that do not let a test wait.
RULED = f"""
{QUICK}
[policy.priority]
preempt = true
preempt_after_s = 0.0
preempt_run_min_s = 0.0
[journal]
adoption_grace_s = 5.0
"""


def training() -> Callable[[str, str], tuple[int, int]]:
    """A call that counts until a file is there; it keeps its count in another one when it is stopped."""

    def train(saved: str, end: str) -> tuple[int, int]:
        import sys
        import time
        from pathlib import Path

        import schedd

        state = Path(saved)
        began = done = int(state.read_text()) if state.exists() else 0
        while not Path(end).exists():
            time.sleep(0.01)
            done += 1
            schedd.report(done)
            if schedd.should_stop():
                state.write_text(str(done))
                sys.exit("saved")
        return began, done

    return train


def causes(cluster: Cluster, task_id: int) -> list[str]:
    return [str(record.cause) for record in cluster.detail(task_id).attempts]


def schedd(cluster: Cluster, *words: str) -> Any:
    argv = [sys.executable, "-m", "schedd.cli", "--address", cluster.address, *words, "--json"]
    ran = subprocess.run(argv, capture_output=True, text=True, timeout=60, env=cluster.env(), check=True)
    return json.loads(ran.stdout)


def test_low_one_saves_high_one_runs_low_one_goes_on(cluster: Cluster, tmp_path: Path, gate: Gate) -> None:
    cluster.start_daemon(RULED)
    cluster.start_worker("w1")
    client = cluster.client
    low = client.submit(training(), f"{tmp_path}/saved", str(gate.path), priority=0)
    wait_until(lambda: (cluster.task(low.id).report or {}).get("step", 0) >= 3)
    high = client.submit(["true"], priority=5)
    client.wait([high.id], timeout=30)
    cluster.wait_for_state(low.id, "running")
    gate.open()
    began, done = low.result(timeout=60)
    assert 3 <= began == int((tmp_path / "saved").read_text()) <= done
    assert (causes(cluster, low.id), causes(cluster, high.id)) == (["preempted", "ok"], ["ok"])
    assert cluster.detail(low.id).attempts[0].message == f"made room for task {high.id}"
    assert (cluster.worker_status("w1"), cluster.worker("w1").failed) == ("idle", 0)  # type: ignore[union-attr]


def test_command_that_ignores_the_signal_is_killed(cluster: Cluster, gate: Gate, tmp_path: Path) -> None:
    """And what it leaves of its state is the business of its next attempt."""
    cluster.start_daemon(RULED)
    cluster.start_worker("w1")
    script = f"trap '' TERM; echo $SCHEDD_ATTEMPT >> {tmp_path}/attempts; {gate.command[2]}"
    low = cluster.client.submit(["sh", "-c", script], grace=0.3)
    wait_until((tmp_path / "attempts").exists)
    high = cluster.client.submit(["true"], priority=5)
    cluster.client.wait([high.id], timeout=30)
    wait_until(lambda: (tmp_path / "attempts").read_text() == "1\n2\n")
    first = cluster.detail(low.id).attempts[0]
    assert (first.cause, first.signal) == ("preempted", 9)
    gate.open()
    assert cluster.wait_for_state(low.id, "succeeded").attempt == 2


def test_equal_ones_do_not_take_turns(cluster: Cluster, gate: Gate) -> None:
    cluster.start_daemon(RULED)
    cluster.start_worker("w1")
    low = cluster.client.submit(gate.command, priority=0)
    cluster.wait_for_state(low.id, "running")
    high = [cluster.client.submit(gate.command, priority=5) for _ in range(2)]
    cluster.wait_for_state(high[0].id, "running")
    # The rule looks each second; a third one of its kind shows that it has looked since.
    wait_until(lambda: cluster.task(low.id).state == "queued")
    witness = cluster.client.submit(["true"], priority=50)
    cluster.client.wait([witness.id], timeout=30)
    gate.open()
    ids = [low.id, *(task.id for task in high)]
    cluster.client.wait(ids, timeout=30)
    assert causes(cluster, low.id) == ["preempted", "ok"]
    assert sorted(len(causes(cluster, task.id)) for task in high) == [1, 2]  # one of them for the witness


def test_on_request(cluster: Cluster, gate: Gate) -> None:
    cluster.start_daemon(QUICK)
    cluster.start_worker("w1")
    client = cluster.client
    one, two = client.submit(gate.command, retries=0), client.submit(["true"])
    cluster.wait_for_state(one.id, "running")
    assert schedd(cluster, "preempt", str(one.id)) == {"changed": 1, "unchanged": []}
    wait_until(lambda: causes(cluster, one.id) == ["preempted"])
    assert cluster.detail(one.id).attempts[0].message == "on request"
    cluster.wait_for_state(one.id, "running")
    gate.open()
    client.wait([one.id, two.id], timeout=30)
    assert cluster.task(one.id).state == "succeeded"
    assert schedd(cluster, "stats")["attempts_by_cause"] == {"ok": 2, "preempted": 1}
    left = client.preempt([one.id])
    assert (left.changed, left.unchanged) == (0, [(one.id, "already succeeded")])


@pytest.mark.parametrize("ends", ["while it is away", "after it is back"])
def test_daemon_is_killed_in_the_grace(cluster: Cluster, tmp_path: Path, gate: Gate, ends: str) -> None:
    """Nobody asks a second time for what has come to its end, and nobody forgets what has not."""
    daemon = cluster.start_daemon(RULED)
    cluster.start_worker("w1", config="[worker]\nreconnect_delay_max_s = 0.3\n")
    script = (
        f"trap 'touch {tmp_path}/asked; while [ ! -e {gate.path} ]; do sleep 0.02; done; exit 7' TERM; "
        f"touch {tmp_path}/up.$SCHEDD_ATTEMPT; [ $SCHEDD_ATTEMPT = 2 ] || while :; do sleep 0.02; done"
    )
    low = cluster.client.submit(["sh", "-c", script], grace=60)
    wait_until((tmp_path / "up.1").exists)
    high = cluster.client.submit(["true"], priority=5)
    wait_until((tmp_path / "asked").exists)
    daemon.kill()
    if ends == "while it is away":
        gate.open()
    cluster.start_daemon(RULED, listen=daemon.address)
    wait_until(lambda: cluster.worker_status("w1") in ("idle", "busy"))
    gate.open()
    cluster.client.wait([low.id, high.id], timeout=30)
    assert (causes(cluster, low.id), causes(cluster, high.id)) == (["preempted", "ok"], ["ok"])
    assert cluster.detail(low.id).attempts[0].exit_code == 7
