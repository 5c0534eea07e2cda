"""The demo: its rule of promotion, its training, and the whole of it for real."""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from schedd.cli.exits import Exit
from schedd.core.model import TaskId
from schedd.demo.asha import Asha, sample_config
from schedd.demo.cluster import Cluster
from schedd.demo.run import RUNGS, new_search, run_search
from schedd.wire import messages as wire

from .conftest import Run
from .test_cli_live import terminal

pytest.importorskip("sklearn")

DEMO = [sys.executable, "-m", "schedd.cli", "demo", "--plain"]


def test_promotes_the_best_third_as_results_come_in() -> None:
    asha = Asha(rungs=3)
    assert asha.record(0, 0, 0.5) == []
    assert asha.record(1, 0, 0.9) == []
    assert asha.record(2, 0, 0.1) == [1]
    assert asha.record(3, 0, 0.95) == [3]  # late, but now the best of four
    assert asha.record(4, 0, 0.2) == []
    assert asha.record(5, 0, 0.3) == []
    assert asha.promoted[0] == {1, 3}


def test_rungs_are_counted_apart_and_the_last_promotes_nobody() -> None:
    asha = Asha(rungs=2, eta=2)
    for trial in range(4):
        asha.record(trial, 0, trial / 10)
    assert asha.record(3, 1, 0.9) == []
    assert asha.record(2, 1, 0.8) == []


def test_failures_are_never_promoted() -> None:
    asha = Asha(rungs=2, eta=1)
    assert asha.record(0, 0, math.nan) == []
    assert asha.record(1, 0, -math.inf) == []
    assert asha.record(2, 0, 0.1) == [2]


@pytest.mark.parametrize("seed", range(20))
def test_nobody_is_promoted_twice_and_the_final_best_all_are(seed: int) -> None:
    rng = random.Random(seed)
    asha, scores = Asha(rungs=2), [rng.random() for _ in range(40)]
    promoted = [each for trial, score in enumerate(scores) for each in asha.record(trial, 0, score)]
    assert len(promoted) == len(set(promoted))
    best = sorted(range(40), key=lambda trial: -scores[trial])[: 40 // 3]
    assert set(best) <= set(promoted)


def test_a_seed_is_a_search() -> None:
    assert [t.config for t in new_search(5, 3).trials] == [t.config for t in new_search(5, 3).trials]
    assert [t.config for t in new_search(5, 3).trials] != [t.config for t in new_search(5, 4).trials]


def test_training_goes_on_from_its_checkpoint_and_can_be_repeated(tmp_path: Path) -> None:
    from schedd.demo.training import train_rung

    config = {**sample_config(random.Random(0)), "lr": 0.01, "solver": "adam", "activation": "relu", "hidden": [32]}
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    start = train_rung(config, 1, 2, None, first)
    once = train_rung(config, 1, 3, first, second)
    again = train_rung(config, 1, 3, first, second)
    assert once["accuracy"] == again["accuracy"] > start["accuracy"] > 0.2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "second"]


def test_unknown_policy(run: Run) -> None:
    ran = run("demo", "--policy", "fifi")
    assert (ran.code, ran.err) == (Exit.USAGE, "error: there is no policy 'fifi'\nhint: did you mean 'fifo'?\n")


# -------------------------------------------------------------------------------------- the search, on a fake daemon


class FakeTask:
    """A task that ends when its client says so."""

    def __init__(self, task_id: int, trial: int, rung: int) -> None:
        self.id, self.trial, self.rung = task_id, trial, rung
        self.end: asyncio.Future[wire.TaskDone] = asyncio.get_running_loop().create_future()

    async def wait(self) -> wire.TaskDone:
        return await self.end

    async def result(self) -> dict[str, float]:
        if self.trial == FakeClient.BROKEN:
            raise ValueError("weights are not finite")
        return {"accuracy": self.trial / 100 + self.rung / 1000, "seconds": 0.5}


class FakeClient:
    """Runs what is not held at once, and what is released after that; higher numbers are better."""

    BROKEN = 4

    def __init__(self) -> None:
        self.tasks: list[FakeTask] = []
        self.options: list[dict[str, Any]] = []
        self.priorities: dict[int, float] = {}
        self.released: list[int] = []
        self.cancelled: list[int] = []

    async def submit(self, function: str, *arguments: Any, **options: Any) -> FakeTask:
        task = FakeTask(len(self.tasks), arguments[1], int(options["kind"][-1]))
        self.tasks.append(task)
        self.options.append(options)
        if not options.get("hold"):
            self._finish(task)
        return task

    def _finish(self, task: FakeTask) -> None:
        state = "failed" if task.trial == self.BROKEN else "succeeded"
        task.end.set_result(wire.TaskDone(TaskId(task.id), state, "", worker="w1"))
        if state == "failed":  # the daemon cancels what comes after it
            for other in self.tasks:
                if other.trial == task.trial and other.rung > task.rung:
                    other.end.set_result(wire.TaskDone(TaskId(other.id), "cancelled", "cancelled"))

    async def set_priorities(self, priorities: list[tuple[int, float]]) -> None:
        self.priorities.update(priorities)

    async def release(self, ids: list[int]) -> None:
        self.released += ids
        for task_id in ids:
            self._finish(self.tasks[task_id])

    async def cancel(self, ids: list[int]) -> None:
        self.cancelled += ids


def test_search_promotes_by_priority(tmp_path: Path) -> None:
    search = new_search(9, 0)
    states: list[tuple[int, int]] = []

    async def run_it() -> FakeClient:
        client = FakeClient()
        cluster = Cluster("", tmp_path, [])
        await run_search(client, search, cluster, 0, lambda s: states.append((s.finished, s.open)))  # type: ignore[arg-type]
        return client

    client = asyncio.run(run_it())
    rungs = {rung: [task for task in client.tasks if task.rung == rung] for rung in range(3)}
    assert [len(tasks) for tasks in rungs.values()] == [9, 9, 9]
    for task, options in zip(client.tasks, client.options, strict=True):
        assert options.get("hold", False) == (task.rung > 0)
        if task.rung:
            assert [client.tasks[i].trial for i in options["after"]] == [task.trial]
    promoted = {(client.tasks[i].rung, client.tasks[i].trial) for i in client.released}
    assert {(1, 8), (1, 7), (1, 6)} <= promoted
    assert not any(trial == FakeClient.BROKEN for _, trial in promoted)
    assert all(client.priorities[i] > client.tasks[i].rung for i in client.released)
    # Nothing is cancelled that was let go, and nothing else is left.
    assert sorted(client.released + client.cancelled) == [task.id for task in client.tasks if task.rung]
    assert (search.finished, search.failed) == (8 + len(client.released), 1)
    assert search.trials[FakeClient.BROKEN].error == "ValueError: weights are not finite"
    assert search.ranking()[0].number == 8
    assert states[-1] == (search.finished, 0)


# ---------------------------------------------------------------------------------------------------------- for real


def environment(directory: Path) -> dict[str, str]:
    return {**os.environ, "TMPDIR": str(directory)}


def processes_of(directory: Path) -> dict[int, str]:
    """Find the processes that have this directory in their environment, with their command lines."""
    found: dict[int, str] = {}
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            if str(directory).encode() in entry.read_bytes():
                found[int(entry.parent.name)] = entry.parent.joinpath("cmdline").read_text(errors="replace")
        except OSError:
            continue
    return found


def assert_nothing_left(directory: Path) -> None:
    assert list(directory.iterdir()) == []
    assert processes_of(directory) == {}


def test_demo(tmp_path: Path) -> None:
    arguments = [*DEMO, "--configs", "3", "--json"]
    done = subprocess.run(arguments, env=environment(tmp_path), capture_output=True, text=True, timeout=110)
    assert done.returncode == Exit.OK, done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["rungs_finished"] == 4  # three times the first rung, and the best of them the second
    assert outcome["rungs_cancelled"] == 5
    assert outcome["best"]["accuracy"] > 0.5
    assert outcome["best"]["epochs"] in RUNGS
    assert sum(worker["tasks"] for worker in outcome["workers"].values()) == 4
    assert "starting a daemon" in done.stderr
    assert_nothing_left(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_demo_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    with subprocess.Popen(
        DEMO, env=environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as demo:
        assert demo.stderr is not None
        line = ""
        while "rungs ended" not in line:
            line = demo.stderr.readline()
            assert line, "the demo ended before its first result"
        demo.send_signal(number)
        out, errors = demo.communicate(timeout=60)
    assert demo.returncode == Exit.INTERRUPTED
    assert out == ""
    assert "its files removed" in errors
    assert_nothing_left(tmp_path)


def test_demo_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with terminal("demo", "--configs", "3") as screen:
        screen.until("\x1b[?1049h")
        screen.until("searching 3 networks")
        screen.until("worker-2")
        screen.until("\x1b[?1049l")
        screen.until("3 configurations in")
        assert screen.end() == Exit.OK
    assert_nothing_left(tmp_path)


def test_demo_ends_when_its_daemon_dies(tmp_path: Path) -> None:
    with subprocess.Popen(
        [*DEMO, "--configs", "200"],
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as demo:
        assert demo.stderr is not None
        line = ""
        while "rungs ended" not in line:
            line = demo.stderr.readline()
            assert line, "the demo ended before its first result"
        daemon = next(pid for pid, words in processes_of(tmp_path).items() if "serve" in words)
        os.kill(daemon, signal.SIGKILL)
        _, errors = demo.communicate(timeout=60)
    assert demo.returncode == Exit.NO_DAEMON
    assert "error: " in errors
    assert_nothing_left(tmp_path)


def test_demo_says_so_when_its_daemon_does_not_start(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    script = (
        "import sys, schedd.demo.cluster as cluster; from schedd.cli.main import main\n"
        "start = cluster._Process.__init__\n"
        "cluster._Process.__init__ = lambda self, place, name, _: start(self, place, name, ['check', 'x'])\n"
        "sys.exit(main(['demo', '--plain']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment(broken), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == Exit.REFUSED
    assert "error: the daemon of the demo ended with exit code 7" in done.stderr
    assert_nothing_left(broken)
