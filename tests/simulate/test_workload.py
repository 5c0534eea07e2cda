"""Workloads that decide on the way what is submitted."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from schedd.config import parse_settings
from schedd.core.model import TaskRequirements
from schedd.errors import TraceError
from schedd.simulate.cluster import ClusterRow
from schedd.simulate.metrics import figures_of
from schedd.simulate.record import Run
from schedd.simulate.run import Simulator
from schedd.simulate.trace import TraceTask
from schedd.simulate.workload import Workload


def task(runtime_s: float, priority: float = 0.0, cpus: float = 1.0) -> TraceTask:
    return TraceTask(0.0, "k", runtime_s, TaskRequirements(cpus=cpus), priority=priority)


class Rounds:
    """Submits the next round when the one before has ended."""

    def __init__(self, rounds: Sequence[Sequence[TraceTask]], begin_s: float = 50.0) -> None:
        self._rounds = list(rounds)
        self._next_s: float | None = begin_s
        self._left = 0
        self.heard: list[tuple[int, float, bool]] = []
        self.wanted: list[tuple[int, float]] = []

    def total(self) -> int | None:
        return None

    def next_submit_s(self) -> float | None:
        return self._next_s if self._rounds else None

    def take(self, now_s: float) -> Sequence[TraceTask]:
        tasks = self._rounds.pop(0)
        self._left, self._next_s = len(tasks), None
        return tasks

    def on_finished(self, index: int, now_s: float, ok: bool) -> None:
        self.heard.append((index, now_s, ok))
        self._left -= 1
        if not self._left:
            self._next_s = now_s

    def changes(self) -> Sequence[tuple[int, float]]:
        wanted, self.wanted = self.wanted, []
        return wanted


def simulated(workload: Workload, cpus: float = 1, policy: str = "priority") -> Run:
    return Simulator(workload, [ClusterRow(cpus=cpus)], parse_settings(f'policy.name = "{policy}"')).run()


def test_next_round_is_submitted_when_the_last_has_ended() -> None:
    rounds = Rounds([[task(10), task(30)], [task(5)], [task(1), task(1)]])
    run = simulated(rounds, cpus=2)
    assert list(run.start_s) == [0, 0, 30, 35, 35]
    assert list(run.finish_s) == [10, 30, 35, 36, 36]
    assert rounds.heard == [(0, 60, True), (1, 80, True), (2, 85, True), (3, 86, True), (4, 86, True)]
    assert [each.runtime_s for each in run.trace.tasks] == [10, 30, 5, 1, 1]
    assert figures_of(run).tasks == 5


def test_what_is_submitted_for_an_end_comes_before_what_waits_if_it_matters_more() -> None:
    class Chain(Rounds):
        def on_finished(self, index: int, now_s: float, ok: bool) -> None:
            super().on_finished(index, now_s, ok)
            if index == 0:
                self._next_s = now_s

    run = simulated(Chain([[task(10), task(10)], [task(10, priority=5)]]))
    assert list(run.start_s) == [0, 20, 10]


def test_priorities_change_while_tasks_wait() -> None:
    class Raised(Rounds):
        def on_finished(self, index: int, now_s: float, ok: bool) -> None:
            super().on_finished(index, now_s, ok)
            if index == 0:
                self.wanted = [(3, 9.0)]

    run = simulated(Raised([[task(10), task(10), task(10), task(10)]]))
    assert list(run.start_s) == [0, 20, 30, 10]


def test_task_of_a_workload_that_fits_nowhere_is_said() -> None:
    with pytest.raises(TraceError, match=r"of kind .* fits no worker: it needs 8 CPUs, has 1"):
        simulated(Rounds([[task(1)], [task(1, cpus=8)]]))
