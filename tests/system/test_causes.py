"""Why attempts ended, and what the next one does about it, with real workers and real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest
from helpers import Cluster, wait_until

from schedd.core.model import CauseLimit, TaskRequirements
from schedd.errors import ScheddError

from .conftest import QUICK

pytestmark = pytest.mark.needs("setsid")

#: Nobody waits long for another attempt.
SOON = QUICK + "[retries]\ndelay_s = 0.01\nerror = 1\n"
EIGHT_GB = "[worker]\nram_gb = 8.0\n"


def out_of_memory() -> Callable[[], None]:
    """A function that travels by its code: workers cannot import these tests."""

    def run() -> None:
        raise MemoryError

    return run


def causes(cluster: Cluster, task_id: int) -> list[tuple[int, str, str]]:
    return [(a.attempt, a.cause, a.message) for a in cluster.detail(task_id).attempts]


def show(cluster: Cluster, task_id: int) -> list[str]:
    argv = [sys.executable, "-m", "schedd.cli", "--address", cluster.address, "show", str(task_id)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True).stdout.splitlines()


def test_command_that_says_that_the_gpu_has_no_memory(cluster: Cluster) -> None:
    cluster.start_daemon(SOON)
    cluster.start_worker("w1", 1)
    said = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 29.76 GiB"
    task = cluster.client.submit(["sh", "-c", f"echo '{said}' >&2; exit 1"], retry_oom=1)
    cluster.wait_for_state(task.id, "failed")
    told = f"exit code 1: out of GPU memory: {said}"
    assert causes(cluster, task.id) == [
        (1, "oom_gpu", told),
        (2, "oom_gpu", f"{told} (2 attempts ended like this, the limit is reached)"),
    ]
    rows = dict(line.split(maxsplit=1) for line in show(cluster, task.id))
    assert rows["retries"] == "0 of 1 after oom_host, 1 of 1 after oom_gpu"


def test_call_without_memory_is_tried_again_with_more(cluster: Cluster) -> None:
    cluster.start_daemon(SOON)
    cluster.start_worker("w1", 1, config=EIGHT_GB)

    def needs_three_gb() -> str:  # the first attempt is refused memory
        if os.environ["SCHEDD_ATTEMPT"] == "1":
            raise MemoryError("Unable to allocate 2.50 GiB")
        return "enough"

    task = cluster.client.submit(needs_three_gb, ram=2)
    assert task.result(30) == "enough"
    first, second = causes(cluster, task.id)
    assert first == (
        1,
        "oom_host",
        "MemoryError: Unable to allocate 2.50 GiB; the next attempt asks for 3 GB of RAM, after 2 GB",
    )
    assert second == (2, "ok", "")
    detail = cluster.detail(task.id)
    assert detail.requirements == TaskRequirements(ram=3)
    assert detail.limits == [CauseLimit("oom_host", 1, 2)]  # type: ignore[arg-type]


def test_call_that_asked_for_no_memory_has_its_own_exception(cluster: Cluster) -> None:
    """An executor's user gets what was raised, at the first time."""
    cluster.start_daemon(SOON)
    cluster.start_worker("w1", 1)
    task = cluster.client.submit(out_of_memory())
    with pytest.raises(MemoryError):
        task.result(30)
    assert causes(cluster, task.id) == [(1, "oom_host", "MemoryError; another attempt could ask for nothing else")]


def test_limits_of_the_configuration_and_of_the_task(cluster: Cluster) -> None:
    cluster.start_daemon(SOON)
    cluster.start_worker("w1", 1)
    tasks = [cluster.client.submit(["false"]), cluster.client.submit(["false"], retries=0)]
    for task in tasks:
        with pytest.raises(ScheddError):
            task.result(30)
    assert [len(causes(cluster, task.id)) for task in tasks] == [2, 1]


@pytest.mark.parametrize("pause", ["sleep 0.3; ", ""], ids=["after a while", "at once"])
def test_last_words_of_a_task_that_killed_its_workers(cluster: Cluster, pause: str) -> None:
    """At once: before the worker could say that it had started."""
    cluster.start_daemon(QUICK)
    task = cluster.client.submit(["sh", "-c", f'{pause}kill -9 "$PPID"'], retry_lost=1)
    for number in (1, 2):
        worker = cluster.start_worker(f"w{number}", 1, wait=False)
        assert worker.wait() == -signal.SIGKILL
    cluster.wait_for_state(task.id, "failed")
    first, second = causes(cluster, task.id)
    assert (first[1], second[1]) == ("lost", "lost")
    assert "(lost 2 times, the limit is reached: with w1 at " in second[2]
    assert "; with w2 at " in second[2]


def test_pause_before_a_retry_outlives_the_daemon(cluster: Cluster) -> None:
    cluster.start_daemon(QUICK)
    address = cluster.address
    cluster.start_worker("w1", 1, config=EIGHT_GB + "reconnect_delay_max_s = 0.3\n")
    task = cluster.client.submit(["false"], retries=1, retry_delay=1e6)
    held = cluster.client.submit(out_of_memory(), ram=2, retry_delay=1e6)
    for each in (task, held):
        cluster.wait_for_state(each.id, "delayed")
    before = [cluster.detail(each.id) for each in (task, held)]
    cluster.wait_until_written()
    cluster.daemon.kill()
    cluster.start_daemon(QUICK, listen=address)
    cluster.wait_for_workers("w1")
    for each, known in zip((task, held), before, strict=True):
        detail = cluster.detail(each.id)
        assert cluster.task(each.id).state == "delayed"
        assert detail.not_before == pytest.approx(known.not_before, abs=0.001)
        assert (detail.requirements, detail.limits) == (known.requirements, known.limits)
    assert before[1].requirements == TaskRequirements(ram=3)
    assert cluster.client.hold([task.id]).changed == 1
    assert cluster.client.release([task.id]).changed == 1
    wait_until(lambda: cluster.task(task.id).state == "failed", what="released, it runs at once, for the last time")
