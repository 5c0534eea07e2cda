"""The daemon is killed, stopped and started again, with real workers that go on meanwhile."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import Cluster, DaemonProcess, wait_until

from schedd.client.sync import Client
from schedd.errors import RequestRefused

from .conftest import QUICK, Gate

pytestmark = pytest.mark.needs("setsid")

#: What a daemon waits for workers that do not come back.
GRACE_S = 2.0
CONFIG = f"{QUICK}\n[journal]\nadoption_grace_s = {GRACE_S}\n"
#: Workers look for their daemon this often at least.
SOON = "[worker]\nreconnect_delay_max_s = 0.3\n"


class Restarts:
    """A cluster whose daemon comes back at the same address."""

    def __init__(self, cluster: Cluster, config: str = CONFIG) -> None:
        self.cluster = cluster
        self.config = config
        cluster.start_daemon(config)
        self.address = cluster.address

    def start(self) -> DaemonProcess:
        return self.cluster.start_daemon(self.config, listen=self.address)

    def kill(self) -> DaemonProcess:
        self.cluster.daemon.kill()
        return self.start()


@pytest.fixture
def restarts(cluster: Cluster) -> Restarts:
    return Restarts(cluster)


def start_worker(cluster: Cluster, name: str, cpus: float = 1) -> None:
    cluster.start_worker(name, cpus, config=SOON)


def schedd(cluster: Cluster, *words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "schedd.cli", "--address", cluster.address, *words]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, env=cluster.env())


def test_what_a_report_is_worth_outlives_a_kill(cluster: Cluster, gate: Gate) -> None:
    """The next rung of the best goes first, though the daemon that heard the report is dead."""
    restarts = Restarts(
        cluster, f"{CONFIG}\n[policy]\nname = 'priority'\n[policy.priority]\nfrom_metric = 'accuracy'\n"
    )
    start_worker(cluster, "w1")
    client = cluster.client
    rungs, next_rungs = [], []
    for accuracy in (0.25, 0.75, 0.5):
        command = [sys.executable, "-c", f"import schedd; schedd.report(1, accuracy={accuracy})"]
        rungs.append(client.submit(command, priority=2))
        next_rungs.append(client.submit(["true"], after=[rungs[-1]]))
    blocker = client.submit(gate.command, priority=1)
    client.wait([task.id for task in rungs], timeout=30)
    cluster.wait_for_state(blocker.id, "running")
    ids = [task.id for task in next_rungs]
    assert [cluster.task(task_id).promoted for task_id in ids] == [0.25, 0.75, 0.5]
    restarts.kill()
    cluster.wait_for_workers("w1")
    assert [cluster.task(task_id).promoted for task_id in ids] == [0.25, 0.75, 0.5]
    gate.open()
    cluster.client.wait(ids, timeout=30)
    started = {task_id: cluster.task(task_id).started_at or 0.0 for task_id in ids}
    assert sorted(ids, key=lambda task_id: started[task_id]) == [ids[1], ids[2], ids[0]]


@pytest.mark.parametrize("policy", ["priority", "work_stealing"])
def test_killed_five_times_under_many_commands(cluster: Cluster, tmp_path: Path, policy: str) -> None:
    """Each ran exactly once, each succeeded."""
    restarts = Restarts(cluster, f"{CONFIG}\n[policy]\nname = {policy!r}\n")
    for name in ("w1", "w2"):
        start_worker(cluster, name, 2)
    count = 600
    out = tmp_path / "out"
    script = f'echo "$1" >> {out}; sleep 0.0$(( $1 % 4 ))'
    submitted = schedd(cluster, "submit", "--name", "j", "--array", f"1-{count}", "--", "sh", "-c", script, "sh", "{}")
    assert submitted.returncode == 0, submitted.stderr
    for part in range(1, 6):
        wait_until(lambda least=part * 80: len(_lines(out)) >= least)  # type: ignore[misc]
        restarts.kill()
    waited = schedd(cluster, "wait", "--job", "j")
    assert waited.returncode == 0, waited.stderr
    assert f"{count} succeeded" in waited.stdout + waited.stderr
    assert sorted(map(int, _lines(out))) == list(range(1, count + 1))
    (job,) = cluster.client.jobs()
    assert (job.total, job.states) == (count, {"succeeded": count})
    assert json.loads(schedd(cluster, "stats", "--json").stdout)["attempts_by_cause"].keys() <= {"ok"}


def _lines(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_long_command_does_not_notice(cluster: Cluster, restarts: Restarts, gate: Gate, how: str) -> None:
    start_worker(cluster, "w1")
    task = cluster.client.submit(gate.command)
    before = cluster.wait_for_state(task.id, "running")
    if how == "stop":
        assert cluster.daemon.stop() == 0
    else:
        cluster.daemon.kill()
    restarts.start()
    after = cluster.wait_for_state(task.id, "running")
    assert (after.attempt, after.worker) == (before.attempt, before.worker) == (1, "w1")
    assert after.started_at == pytest.approx(before.started_at, abs=0.5)
    gate.open()
    (end,) = cluster.client.wait([task.id], timeout=30)
    assert (end.state, end.attempt) == ("succeeded", 1)


def test_command_that_ends_while_the_daemon_is_away(cluster: Cluster, restarts: Restarts, gate: Gate) -> None:
    start_worker(cluster, "w1")
    task = cluster.client.submit(gate.command)
    cluster.wait_for_state(task.id, "running")
    cluster.daemon.kill()
    gate.open()
    log = cluster.processes[-1]
    wait_until(lambda: "attempt_finished" in log.log())
    restarts.start()
    (end,) = cluster.client.wait([task.id], timeout=30)
    assert (end.state, end.attempt) == ("succeeded", 1)


def test_worker_that_is_gone_when_the_daemon_comes_back(cluster: Cluster, restarts: Restarts, gate: Gate) -> None:
    """What it had starts elsewhere after the grace; what others have is theirs at once, and nothing else starts."""
    start_worker(cluster, "w1")
    lost = cluster.client.submit(gate.command)
    cluster.wait_for_state(lost.id, "running")
    gone = cluster.processes[-1]
    start_worker(cluster, "w2")
    kept = cluster.client.submit(gate.command)
    cluster.wait_for_state(kept.id, "running")
    cluster.daemon.kill()
    gone.kill()
    restarts.start()
    assert cluster.wait_for_state(kept.id, "running").worker == "w2"
    assert cluster.task(lost.id).state == "queued"
    assert "w1" in schedd(cluster, "explain", str(lost.id)).stdout
    start_worker(cluster, "w3")
    assert cluster.wait_for_state(lost.id, "running").worker == "w3"
    gate.open()
    ends = cluster.client.wait([lost.id, kept.id], timeout=30)
    assert {end.state for end in ends} == {"succeeded"}


def test_result_of_a_call_after_a_restart(cluster: Cluster, restarts: Restarts) -> None:
    start_worker(cluster, "w1")
    tasks = [cluster.client.submit(pow, 2, number) for number in range(20)]
    assert tasks[7].result(30) == 128
    cluster.client.wait([task.id for task in tasks], timeout=30)
    restarts.kill()
    with Client(restarts.address) as client:
        assert [client.result(task.id) for task in tasks] == [2**number for number in range(20)]
        view, detail = client.show(tasks[3].id)[0]
        assert view.state == "succeeded"
        assert detail.result


def test_exception_of_a_call_after_a_restart(cluster: Cluster, restarts: Restarts) -> None:
    start_worker(cluster, "w1")
    task = cluster.client.submit(int, "no number")
    cluster.client.wait([task.id], timeout=30)
    restarts.kill()
    with pytest.raises(ValueError, match="no number"):
        cluster.client.result(task.id)


def test_same_key_after_a_restart(cluster: Cluster, restarts: Restarts, gate: Gate) -> None:
    start_worker(cluster, "w1", 2)
    done = cluster.client.submit(["true"], key="done")
    cluster.client.wait([done.id], timeout=30)
    runs = cluster.client.submit(gate.command, key="runs")
    cluster.wait_for_state(runs.id, "running")
    restarts.kill()
    assert cluster.client.submit(["true"], key="done").id == done.id
    assert cluster.client.submit(gate.command, key="runs").id == runs.id
    for key in ("done", "runs"):
        with pytest.raises(RequestRefused, match="something else"):
            cluster.client.submit(["false"], key=key)
    gate.open()


def test_client_that_waits_through_a_restart_asks_again(cluster: Cluster, restarts: Restarts, gate: Gate) -> None:
    """A submit whose answer was lost is made again under its key: one task."""
    task = cluster.client.submit(gate.command, key="k")
    restarts.kill()
    again = cluster.client.submit(gate.command, key="k")
    assert again.id == task.id
    assert len(cluster.client.tasks()) == 1


def test_retry_after_a_restart(cluster: Cluster, restarts: Restarts, tmp_path: Path) -> None:
    """What did not succeed is known well enough to be done again, in its order."""
    start_worker(cluster, "w1")
    mark = tmp_path / "mark"
    first = cluster.client.submit(["sh", "-c", f"[ -e {mark} ]"], job="j", hold=True, priority=3)
    second = cluster.client.submit(["sh", "-c", f"echo done > {mark}.out"], job="j", after=[first])
    cluster.client.release([first.id])
    assert cluster.client.wait([second.id], timeout=30)[0].state == "cancelled"
    restarts.kill()
    mark.touch()
    retried = json.loads(schedd(cluster, "retry", "--job", "j", "--json").stdout)
    assert retried["retried"] == [{"id": 1, "new_id": 3}, {"id": 2, "new_id": 4}]
    ends = cluster.client.wait([3, 4], timeout=30)
    assert [end.state for end in ends] == ["succeeded", "succeeded"]
    assert cluster.task(3).priority == 3
    assert Path(f"{mark}.out").read_text() == "done\n"
    history = json.loads(schedd(cluster, "history", "--json").stdout)
    assert [(task["id"], task["state"]) for task in history] == [
        (4, "succeeded"),
        (3, "succeeded"),
        (2, "cancelled"),
        (1, "failed"),
    ]
    assert history[0]["attempts"][0]["worker"] == "w1"
    again = schedd(cluster, "retry", "2")
    assert again.returncode == 4
    assert "task 1 failed" in again.stderr


def test_backup_is_a_journal_to_start_from(cluster: Cluster, restarts: Restarts, tmp_path: Path) -> None:
    cluster.client.submit(["true"])
    target = tmp_path / "copy.db"
    assert schedd(cluster, "backup", str(target)).returncode == 0
    assert schedd(cluster, "backup", str(target)).returncode == 4
    checked = json.loads(schedd(cluster, "journal", "check", str(target), "--json").stdout)
    assert checked["live"] == 1
    assert schedd(cluster, "journal", "check").returncode == 0
    cluster.daemon.kill()
    cluster.start_daemon(f"[journal]\npath = {str(target)!r}\n")
    assert [task.state for task in cluster.client.tasks()] == ["queued"]


def test_output_of_what_ran_before_the_restart(cluster: Cluster, restarts: Restarts) -> None:
    start_worker(cluster, "w1")
    task = cluster.client.submit(["echo", "hello"])
    cluster.client.wait([task.id], timeout=30)
    restarts.kill()
    cluster.wait_for_workers("w1")
    assert schedd(cluster, "logs", str(task.id)).stdout == "hello\n"


def test_everything_is_killed_at_once(cluster: Cluster, restarts: Restarts, tmp_path: Path) -> None:
    """As by a power cut of the whole machine: what ran starts again, what had ended does not."""
    out = tmp_path / "out"
    start_worker(cluster, "w1")
    first = cluster.client.submit(["sh", "-c", f"echo first >> {out}"])
    cluster.client.wait([first.id], timeout=30)
    second = cluster.client.submit(["sh", "-c", f"echo second >> {out}; [ -e {out}.go ] || exec sleep 100"])
    cluster.wait_for_state(second.id, "running")
    wait_until(lambda: len(_lines(out)) == 2)
    for process in cluster.processes:
        process.kill()
    for pid in cluster.pids():
        os.kill(pid, 9)
    Path(f"{out}.go").touch()
    restarts.start()
    start_worker(cluster, "w1")
    (end,) = cluster.client.wait([second.id], timeout=30)
    assert end.state == "succeeded"
    assert _lines(out) == ["first", "second", "second"]


def test_drained_worker_takes_nothing_after_a_restart_either(cluster: Cluster, restarts: Restarts) -> None:
    start_worker(cluster, "w1")
    assert cluster.client.drain(["w1"], leave=False).changed == 1
    restarts.kill()
    wait_until(lambda: cluster.worker_status("w1") == "draining")
    task = cluster.client.submit(abs, -1)
    assert cluster.task(task.id).state == "queued"
    assert cluster.client.drain(["w1"], undo=True).changed == 1
    assert task.result(30) == 1
    restarts.kill()
    cluster.wait_for_workers("w1")
    assert cluster.worker_status("w1") == "idle"
