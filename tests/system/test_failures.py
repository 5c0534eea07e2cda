"""What goes wrong: workers that die, freeze, or lose their daemon; tasks that fail, hang, flood or run away."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import time
from pathlib import Path

import pytest
from helpers import Cluster, is_running, wait_until

from schedd.client.aio import AsyncClient
from schedd.core.model import Command, Selection, TaskEntry, TaskRules, TaskSpec
from schedd.errors import RequestRefused
from schedd.wire.messages import NO_WORKER_FITS

from .conftest import QUICK, Gate

pytestmark = pytest.mark.needs("setsid")


def ends(cluster: Cluster, *ids: int) -> list[str]:
    return [end.state for end in cluster.client.wait(list(ids), timeout=30)]


# ------------------------------------------------------------------------------------------------------------ workers


def test_killed_worker_and_only_what_ran_is_blamed(cluster: Cluster, gate: Gate) -> None:
    cluster.start_daemon(QUICK + "[policy]\nname = 'load_balancing'\n")
    first = cluster.start_worker("w1", 1)
    client = cluster.client
    running = client.submit(gate.command)
    waiting = client.submit(["true"], kind="short")
    cluster.wait_for_state(running.id, "running")
    cluster.wait_for_state(waiting.id, "assigned")
    first.kill()
    wait_until(lambda: cluster.worker_status("w1") in ("unreachable", "none"))
    cluster.start_worker("w2", 1)
    gate.open()
    assert ends(cluster, running.id, waiting.id) == ["succeeded", "succeeded"]
    for task in (running, waiting):
        assert cluster.task(task.id).worker == "w2"
        assert cluster.task(task.id).attempt == 2
    assert [(a.attempt, a.worker_id, a.cause) for a in cluster.detail(running.id).attempts] == [
        (1, "w1", "lost"),
        (2, "w2", "ok"),
    ]
    assert [(a.attempt, a.worker_id, a.cause) for a in cluster.detail(waiting.id).attempts] == [(2, "w2", "ok")]
    assert cluster.worker_status("w1") == "none"


def test_task_that_kills_every_worker_is_given_up(cluster: Cluster) -> None:
    cluster.start_daemon(QUICK)
    spec = TaskSpec(Command(["sh", "-c", 'sleep 0.3; kill -9 "$PPID"']), rules=TaskRules(lost_limit=1))
    task_id = asyncio.run(_submit(cluster.address, [spec], [TaskEntry(0)]))[0]
    for number in (1, 2):
        worker = cluster.start_worker(f"w{number}", 1, wait=False)
        assert worker.wait() == -signal.SIGKILL
    view = cluster.wait_for_state(task_id, "failed")
    assert view.cause == "lost"
    assert view.attempt == 2


async def _submit(address: str, specs: list[TaskSpec], entries: list[TaskEntry]) -> list[int]:
    async with AsyncClient(address) as client:
        return list((await client.submit_many(specs, entries)).ids)


def test_frozen_worker_is_unreachable_and_comes_back(cluster: Cluster, gate: Gate) -> None:
    cluster.start_daemon(QUICK.replace("lost_after_s = 0.5", "lost_after_s = 60.0"))
    worker = cluster.start_worker("w1", 1)
    task = cluster.client.submit(gate.command)
    cluster.wait_for_state(task.id, "running")
    worker.signal(signal.SIGSTOP)
    wait_until(lambda: cluster.worker_status("w1") == "unreachable")
    row = cluster.worker("w1")
    assert row is not None
    assert "nothing heard for" in row.silence
    assert cluster.task(task.id).state == "running"
    other = cluster.client.submit(["true"])
    worker.signal(signal.SIGCONT)
    wait_until(lambda: cluster.worker_status("w1") == "busy")
    gate.open()
    assert ends(cluster, task.id, other.id) == ["succeeded", "succeeded"]
    assert (cluster.task(task.id).attempt, cluster.task(other.id).attempt) == (1, 1)


def test_frozen_worker_that_was_given_up_drops_what_is_no_longer_its_own(cluster: Cluster, gate: Gate) -> None:
    cluster.start_daemon(QUICK)
    worker = cluster.start_worker("w1", 1)
    task = cluster.client.submit(gate.command)
    cluster.wait_for_state(task.id, "running")
    worker.signal(signal.SIGSTOP)
    wait_until(lambda: cluster.worker_status("w1") == "none")
    assert cluster.task(task.id).state == "queued"
    cluster.start_worker("w2", 1)
    assert cluster.wait_for_state(task.id, "running").worker == "w2"
    worker.signal(signal.SIGCONT)
    wait_until(lambda: cluster.worker_status("w1") in ("idle", "busy"), what="the worker connects again")
    # Both run the same command until the old attempt is dropped.
    wait_until(lambda: len(_shells(cluster)) == 1, what="the old attempt is killed")
    gate.open()
    assert ends(cluster, task.id) == ["succeeded"]
    assert [(a.attempt, a.worker_id, a.cause) for a in cluster.detail(task.id).attempts] == [
        (1, "w1", "lost"),
        (2, "w2", "ok"),
    ]


def _shells(cluster: Cluster) -> list[int]:
    return [pid for pid in cluster.pids() if _name(pid) == "sh"]


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def test_daemon_that_is_started_anew_without_its_journal(cluster: Cluster, gate: Gate, tmp_path: Path) -> None:
    """Workers find it again by themselves, drop what it does not know, and take new work."""
    daemon = cluster.start_daemon(QUICK)
    address = cluster.address
    worker = cluster.start_worker("w1", 2)
    old = cluster.client.submit(gate.command)
    cluster.wait_for_state(old.id, "running")
    daemon.kill()
    wait_until(lambda: worker.log().count("connect_failed") >= 2, what="the worker tries again and again")
    assert worker.is_alive
    cluster.start_daemon(QUICK, listen=address, env={"SCHEDD_STATE_DIR": str(tmp_path / "other")})
    cluster.wait_for_workers("w1")
    wait_until(lambda: not _shells(cluster), what="the attempt that nobody knows is killed")
    task = cluster.client.submit(abs, -5)
    assert task.result(30) == 5
    assert cluster.task(task.id).worker == "w1"
    assert worker.log().count("worker_connected") == 2


def test_daemon_that_ends_in_order_and_comes_back(cluster: Cluster) -> None:
    cluster.start_daemon(QUICK)
    address = cluster.address
    workers = cluster.start_workers({"w1": 1, "w2": 1})
    assert cluster.client.submit(abs, -1).result(30) == 1
    assert cluster.daemon.stop() == 0
    cluster.start_daemon(QUICK, listen=address)
    cluster.wait_for_workers("w1", "w2")
    assert list(cluster.client.map(abs, range(-50, 0))) == list(range(50, 0, -1))
    assert all(worker.is_alive for worker in workers.values())


def test_drain_by_a_client(cluster: Cluster, gate: Gate) -> None:
    cluster.start_daemon(QUICK + "[policy]\nname = 'load_balancing'\n")
    worker = cluster.start_worker("w1", 1)
    running = cluster.client.submit(gate.command)
    waiting = cluster.client.submit(["true"], kind="short")
    cluster.wait_for_state(running.id, "running")
    cluster.wait_for_state(waiting.id, "assigned")
    assert cluster.client.drain(["w1", "no such worker"]).unchanged == [("no such worker", "unknown worker")]
    cluster.wait_for_state(waiting.id, "queued")
    assert cluster.worker_status("w1") == "draining"
    cluster.start_worker("w2", 1)
    assert ends(cluster, waiting.id) == ["succeeded"]
    assert worker.is_alive
    gate.open()
    assert worker.wait() == 0
    assert ends(cluster, running.id) == ["succeeded"]
    assert (cluster.task(running.id).worker, cluster.task(waiting.id).worker) == ("w1", "w2")
    wait_until(lambda: cluster.worker_status("w1") == "none")
    assert cluster.client.stats().attempts_by_cause == {"ok": 2}


def test_drain_and_undo(cluster: Cluster) -> None:
    cluster.start_daemon()
    cluster.start_worker("w1", 1)
    assert cluster.client.drain(["w1"], leave=False).changed == 1
    task = cluster.client.submit(abs, -1)
    assert cluster.task(task.id).state == "queued"
    assert cluster.client.drain(["w1"], undo=True).changed == 1
    assert task.result(30) == 1


def test_drain_by_signal_finishes_what_runs(cluster: Cluster, gate: Gate) -> None:
    cluster.start_daemon()
    worker = cluster.start_worker("w1", 1)
    task = cluster.client.submit(gate.command)
    cluster.wait_for_state(task.id, "running")
    worker.signal(signal.SIGTERM)
    wait_until(lambda: cluster.worker_status("w1") == "draining")
    assert cluster.task(task.id).state == "running"
    gate.open()
    assert worker.wait() == 0
    assert ends(cluster, task.id) == ["succeeded"]


def test_second_signal_does_not_wait(cluster: Cluster, gate: Gate) -> None:
    cluster.start_daemon()
    worker = cluster.start_worker("w1", 1)
    task = cluster.client.submit(gate.command)
    cluster.wait_for_state(task.id, "running")
    worker.signal(signal.SIGTERM)
    wait_until(lambda: cluster.worker_status("w1") == "draining")
    worker.signal(signal.SIGTERM)
    assert worker.wait() != 0
    cluster.start_worker("w2", 1)
    gate.open()
    assert ends(cluster, task.id) == ["succeeded"]
    assert [(a.worker_id, a.cause) for a in cluster.detail(task.id).attempts] == [("w1", "lost"), ("w2", "ok")]


# -------------------------------------------------------------------------------------------------------------- tasks


def test_no_worker_fits(cluster: Cluster) -> None:
    cluster.start_daemon()
    early = cluster.client.submit(abs, -1)
    assert early.warnings == ["no worker is connected; the task waits for one"]
    cluster.start_worker("w1", 2)
    assert early.result(30) == 1
    big = cluster.client.submit(abs, -1, cpus=64)
    assert len(big.warnings) == 1
    assert "64 CPUs, has 2" in big.warnings[0]
    with pytest.raises(RequestRefused, match="64 CPUs") as caught:
        cluster.client.submit(abs, -1, cpus=64, strict=True)
    assert caught.value.code == NO_WORKER_FITS
    assert cluster.client.explain(big.id).workers[0].worker == "w1"
    assert cluster.client.submit(abs, -1, cpus=2, strict=True).result(30) == 1


def test_dependencies(cluster: Cluster, gate: Gate) -> None:
    cluster.start_daemon()
    cluster.start_worker("w1", 4)
    client = cluster.client
    first = client.submit(gate.command)
    second = client.submit(["true"], after=[first])
    third = client.submit(["true"], after=[first, second])
    bad = client.submit(["false"], hold=True)
    never = client.submit(["true"], after=[bad])
    neither = client.submit(["true"], after=[never])
    client.release([bad.id])
    assert ends(cluster, bad.id, never.id, neither.id) == ["failed", "cancelled", "cancelled"]
    assert f"needs task {bad.id}, which failed" in cluster.task(never.id).message
    assert [cluster.task(task.id).state for task in (second, third)] == ["waiting", "waiting"]
    gate.open()
    assert ends(cluster, first.id, second.id, third.id) == ["succeeded"] * 3
    times = [cluster.task(task.id) for task in (first, second, third)]
    assert all((a.finished_at or 0) <= (b.started_at or 0) for a, b in itertools.pairwise(times))


def test_retries(cluster: Cluster, tmp_path: Path) -> None:
    cluster.start_daemon()
    cluster.start_worker("w1", 1)
    mark = tmp_path / "tried"
    task = cluster.client.submit(["sh", "-c", f"[ -e {mark} ] || {{ touch {mark}; exit 7; }}"], retries=1)
    hopeless = cluster.client.submit(["sh", "-c", "exit 3"])
    assert ends(cluster, task.id, hopeless.id) == ["succeeded", "failed"]
    assert [(a.attempt, a.cause, a.exit_code) for a in cluster.detail(task.id).attempts] == [
        (1, "error", 7),
        (2, "ok", 0),
    ]
    assert cluster.task(hopeless.id).exit_code == 3


TREE = "sleep 301 & (setsid sleep 302 &) ; setsid -f sleep 303; trap '' TERM; sleep 304"


def sleepers(cluster: Cluster) -> list[int]:
    return [pid for pid in cluster.pids() if _name(pid) == "sleep"]


def test_timeout_ends_the_whole_tree(cluster: Cluster) -> None:
    cluster.start_daemon()
    cluster.start_worker("w1", 1)
    task = cluster.client.submit(["sh", "-c", TREE], timeout=1.0, grace=0.2)
    wait_until(lambda: len(sleepers(cluster)) == 4)
    end = task.wait(30)
    assert (end.state, end.cause) == ("failed", "timeout")
    wait_until(lambda: not sleepers(cluster), what="no process of the task is left")


def test_cancel_ends_the_whole_tree(cluster: Cluster) -> None:
    cluster.start_daemon()
    cluster.start_worker("w1", 1)
    task = cluster.client.submit(["sh", "-c", TREE], grace=0.2)
    wait_until(lambda: len(sleepers(cluster)) == 4)
    assert task.cancel()
    end = task.wait(30)
    assert (end.state, end.cause) == ("cancelled", "cancelled")
    wait_until(lambda: not sleepers(cluster), what="no process of the task is left")
    assert not task.cancel()
    assert cluster.client.submit(abs, -1).result(30) == 1


def test_killed_worker_leaves_no_tree(cluster: Cluster) -> None:
    daemon = cluster.start_daemon(QUICK)
    worker = cluster.start_worker("w1", 1)
    cluster.client.submit(["sh", "-c", TREE])
    wait_until(lambda: len(sleepers(cluster)) == 4)
    worker.kill()
    wait_until(lambda: cluster.worker_status("w1") == "none")
    wait_until(lambda: not sleepers(cluster), what="the task ends with its worker")
    assert daemon.is_alive


def test_killed_daemon_leaves_tasks_alone(cluster: Cluster) -> None:
    daemon = cluster.start_daemon(QUICK)
    cluster.start_worker("w1", 1)
    cluster.client.submit(["sh", "-c", TREE])
    wait_until(lambda: len(sleepers(cluster)) == 4)
    daemon.kill()
    # Whoever ended them would be done by the time that a new daemon has its worker back.
    cluster.start_daemon(QUICK, listen=cluster.address)
    cluster.wait_for_workers("w1")
    assert len(sleepers(cluster)) == 4


def test_daemonising_task_leaves_no_process(cluster: Cluster) -> None:
    cluster.start_daemon()
    cluster.start_worker("w1", 1)
    # Of a length of its own: the second one hides where it comes from.
    length = f"300.{os.getpid()}"
    script = (
        f"setsid -f sleep {length}; nohup setsid -f env -i sleep {length} >/dev/null; sleep {length} & echo started"
    )
    task = cluster.client.submit(["sh", "-c", script])
    assert task.wait(30).state == "succeeded"
    assert cluster.client.read_log(task.id).data == b"started\n"
    wait_until(lambda: not [pid for pid, words in _all_sleeps() if words == length], what="no process is left")


def _all_sleeps() -> list[tuple[int, str]]:
    """(pid, seconds) of every `sleep` on the machine."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and _name(int(folder.name)) == "sleep" and is_running(int(folder.name)):
            try:
                words = (folder / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            found.append((int(folder.name), os.fsdecode(words[1]) if len(words) > 1 else ""))
    return found


def test_array_of_commands(cluster: Cluster) -> None:
    cluster.start_daemon()
    cluster.start_workers({"w1": 2, "w2": 2})
    command = Command(["sh", "-c", 'echo "{}" "$INDEX"; [ "$INDEX" != 13 ]'], variable="INDEX")
    spec = TaskSpec(command, kind="array", job="array")
    ids = asyncio.run(_submit(cluster.address, [spec], [TaskEntry(0, str(i).encode()) for i in range(200)]))
    done = cluster.client.wait(ids, timeout=60)
    assert [end.state for end in done] == ["failed" if i == 13 else "succeeded" for i in range(200)]
    assert {end.worker for end in done} == {"w1", "w2"}
    for position in (0, 13, 199):
        assert cluster.client.read_log(ids[position]).data == f"{position} {position}\n".encode()
    [job] = cluster.client.jobs()
    assert (job.total, job.states) == (200, {"succeeded": 199, "failed": 1})


def test_ten_megabytes_of_output(cluster: Cluster) -> None:
    cluster.start_daemon()
    cluster.start_worker("w1", 1)
    size = 10 * 1024 * 1024
    script = f"yes 0123456789abcde | head -c {size}; echo done >&2"
    task = cluster.client.submit(["sh", "-c", script])
    assert task.wait(30).state == "succeeded"
    data = b""
    while True:
        piece = cluster.client.read_log(task.id, offset=len(data), limit=1 << 20)
        data += piece.data
        if piece.done:
            break
    assert data == b"0123456789abcde\n" * (size // 16)
    assert cluster.client.read_log(task.id, offset=-16).data == b"0123456789abcde\n"
    assert cluster.client.read_log(task.id, stream="stderr").data == b"done\n"


def test_output_that_is_no_text(cluster: Cluster) -> None:
    cluster.start_daemon()
    cluster.start_worker("w1", 1)
    task = cluster.client.submit(["printf", "\\377\\376\\000\\200x"])
    assert task.wait(30).state == "succeeded"
    assert cluster.client.read_log(task.id).data == b"\xff\xfe\0\x80x"


def test_words_of_a_command_arrive_as_they_are(cluster: Cluster) -> None:
    cluster.start_daemon()
    cluster.start_worker("w1", 1)
    words = ["two\nlines", "", " ", "a'b\"c", "$HOME `id` {}", "\t\r", "Grüße 🚀", "-n", "*"]
    task = cluster.client.submit(["printf", "<%s>", *words], env={"HOME": "x\ny"})
    assert task.wait(30).state == "succeeded"
    assert cluster.client.read_log(task.id).data == "".join(f"<{word}>" for word in words).encode()


def test_output_while_it_runs(cluster: Cluster, gate: Gate) -> None:
    cluster.start_daemon()
    cluster.start_worker("w1", 1)
    task = cluster.client.submit(["sh", "-c", f"echo begun; {gate.command[2]}; echo ended"])
    wait_until(lambda: cluster.task(task.id).state == "running" and cluster.client.read_log(task.id).data)
    piece = cluster.client.read_log(task.id)
    assert (piece.data, piece.done) == (b"begun\n", False)
    gate.open()
    task.wait(30)
    piece = cluster.client.read_log(task.id, offset=6)
    assert (piece.data, piece.done) == (b"ended\n", True)


def test_program_that_does_not_exist(cluster: Cluster) -> None:
    cluster.start_daemon()
    cluster.start_worker("w1", 1)
    end = cluster.client.submit(["no-such-program-anywhere"]).wait(30)
    assert (end.state, end.cause) == ("failed", "error")
    assert "program not found: 'no-such-program-anywhere'" in end.message
    end = cluster.client.submit(["true"], cwd="/no/such/folder").wait(30)
    assert "/no/such/folder" in end.message


def test_command_killed_by_a_signal(cluster: Cluster) -> None:
    cluster.start_daemon()
    cluster.start_worker("w1", 1)
    task = cluster.client.submit(["sh", "-c", "kill -SEGV $$"])
    assert task.wait(30).message == "killed by SIGSEGV"
    assert cluster.detail(task.id).attempts[0].signal == signal.SIGSEGV


def test_hold_release_and_delay(cluster: Cluster) -> None:
    cluster.start_daemon()
    cluster.start_worker("w1", 1)
    held = cluster.client.submit(["true"], hold=True)
    later = cluster.client.submit(["true"], delay=0.5)
    assert cluster.task(later.id).state == "delayed"
    later.wait(30)
    view = cluster.task(later.id)
    assert view.started_at is not None
    assert view.started_at - view.submitted_at >= 0.5
    assert cluster.task(held.id).state == "held"
    assert cluster.client.release(Selection(ids=[held.id])).changed == 1
    assert ends(cluster, held.id) == ["succeeded"]


def test_progress_is_seen_while_a_task_runs(cluster: Cluster, gate: Gate) -> None:
    def report_and_wait(path: str) -> str:
        from schedd.worker.task_api import report

        report(1, loss=0.5)
        while not Path(path).exists():
            time.sleep(0.01)
        report(2, loss=0.25)
        return "done"

    cluster.start_daemon()
    cluster.start_worker("w1", 1)
    task = cluster.client.submit(report_and_wait, str(gate.path))
    reports = task.reports()
    first = next(reports)
    assert (first.step, first.metrics) == (1, {"loss": 0.5})
    assert cluster.task(task.id).report == {"step": 1, "loss": 0.5}
    gate.open()
    assert [report.step for report in reports] == [2]
    assert task.result(30) == "done"
