"""A run of the real daemon with real workers, run again from its journal: the same decisions, and what would be better.

What ends when is in the hands of the test: each task runs until its gate opens. The next gate opens when the daemon is
through with the end before, and when more time has passed since than all delays of the run so far together: a replay
has none of these delays, and by that keeps the order of the ends whatever the machine was busy with.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from pathlib import Path

import pytest
from helpers import Cluster, wait_until

from schedd.config import parse_settings
from schedd.core.model import Selection, TaskId
from schedd.journal.replay import read_pages
from schedd.simulate.history import History, Recorder
from schedd.simulate.record import Run
from schedd.simulate.run import Simulator
from schedd.wire.messages import TaskView

#: Workers by name and CPUs.
WORKERS = {"a": 1, "b": 2, "c": 1}
CONFIG = """
[policy]
name = "{policy}"
[policy.load_balancing]
backlog_per_slot = 1
[policy.batch]
batch_size = 2
[prefetch]
depth_max = 0
"""


class Conductor:
    """Lets tasks end one after the other."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster = cluster
        self.folder = folder
        #: By task, the number of its gate.
        self.gates: dict[TaskId, int] = {}
        self.delays_s = 0.0
        self.quiet_since = time.monotonic()

    def submit(self, count: int, dice: random.Random, kinds: str) -> None:
        """Submit tasks of different kinds and priorities, all at once."""
        self.wait_for_delays()
        tasks = []
        for _ in range(count):
            gate = len(self.gates)
            command = ["sh", "-c", f"while [ ! -e {self.folder}/{gate} ]; do sleep 0.01; done"]
            options = {"kind": dice.choice(kinds), "priority": float(dice.randrange(3))}
            tasks.append(self.cluster.client.submit(command, hold=True, **options))
            self.gates[tasks[-1].id] = gate
        now = time.time()
        assert self.cluster.client.release([task.id for task in tasks]).changed == count
        self.settle(now)

    def end_one(self, dice: random.Random) -> bool:
        """Let one of the running tasks end, and wait until nothing moves any more; False where there is none."""
        running = sorted(view.id for view in self.unfinished() if view.state == "running")
        if not running:
            return False
        self.wait_for_delays()
        task_id = dice.choice(running)
        (self.folder / str(self.gates[task_id])).touch()
        ended = self.cluster.wait_for_state(task_id, "succeeded")
        assert ended.finished_at is not None
        self.settle(ended.finished_at)
        return True

    def unfinished(self) -> list[TaskView]:
        return self.cluster.client.tasks(Selection(unfinished=True))

    def wait_for_delays(self) -> None:
        wait_until(lambda: time.monotonic() - self.quiet_since > self.delays_s, what="the delays are outweighed")

    def settle(self, since: float) -> None:
        """Wait until every worker runs what it can; what has started since then was late by so much."""
        wait_until(self.is_quiet, what="nothing moves")
        started = [view.started_at for view in self.unfinished() if view.started_at is not None]
        self.delays_s += sum(max(0.0, at - since) for at in started)
        self.quiet_since = time.monotonic()

    def is_quiet(self) -> bool:
        views = self.unfinished()
        running = Counter(view.worker for view in views if view.state == "running")
        full = {name for name, cpus in WORKERS.items() if running[name] == cpus}
        may_move = [view for view in views if view.state == "assigned" and view.worker not in full]
        return not may_move and (len(full) == len(WORKERS) or all(view.state != "queued" for view in views))


def history_of(cluster: Cluster) -> History:
    recorder = Recorder()
    for page in read_pages(cluster.folder / "daemon" / "journal.db"):
        recorder.take(page)
    return recorder.history()


def starts(run: Run) -> dict[int, list[int]]:
    """By worker, the tasks that it ran, in the order of their starts."""
    by_worker: dict[int, list[int]] = {}
    for task in sorted(range(len(run.start_s)), key=lambda i: run.start_s[i]):
        by_worker.setdefault(run.where[task], []).append(task)
    return by_worker


@pytest.mark.parametrize("policy", ["priority", "load_balancing", "batch"])
def test_replay_decides_as_the_daemon_did(cluster: Cluster, tmp_path: Path, policy: str) -> None:
    config = CONFIG.format(policy=policy)
    cluster.start_daemon(config)
    for name, cpus in WORKERS.items():
        cluster.start_worker(name, cpus)
    (tmp_path / "gates").mkdir()
    conductor, dice = Conductor(cluster, tmp_path / "gates"), random.Random(7)
    conductor.submit(12, dice, "xyz")
    for _ in range(3):
        conductor.end_one(dice)
    conductor.submit(6, dice, "yz")
    while conductor.end_one(dice):
        pass
    cluster.client.wait(list(conductor.gates))  # who waits is told when it is on disk
    history = history_of(cluster)
    assert history.recorded is not None
    assert [worker.name for worker in history.workers] == list(WORKERS)
    assert len(history.trace.tasks) == 18
    run = Simulator(history.trace, history.workers, parse_settings(config)).run()
    assert starts(run) == starts(history.recorded)
    assert set(starts(run)) == {0, 1, 2}
    assert list(run.where) == list(history.recorded.where)
