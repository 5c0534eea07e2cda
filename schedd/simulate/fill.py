"""How full a cluster becomes: tasks come one by one, none ends, and one that fits nowhere is dropped.

The experiment of FGD (Weng et al., "Beware of Fragmentation: Scheduling GPU-Sharing Workloads with Fragmentation
Gradient Descent", ATC 2023): the tasks of a trace in random order, then any of them again, until the GPUs that were
asked for are so many percent of the cluster's. Through the daemon's engine; submit times and runtimes do not count.
"""

from __future__ import annotations

import random
import time
from array import array
from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Any

from schedd.core import effects as fx
from schedd.core import events as ev
from schedd.core.model import SECOND, Selection, TaskEntry, TaskId
from schedd.core.policies.base import TaskScheduler
from schedd.errors import TraceError
from schedd.simulate.metrics import half_width, slots_of
from schedd.simulate.record import Filling
from schedd.simulate.run import Progress, Simulator, no_progress
from schedd.simulate.trace import Trace, TraceTask

#: Percent of the cluster's GPUs that were asked for, at which is told how many were given.
MARKS = (80, 90, 100, 110, 120, 130)


class Filler(Simulator):
    """Fills the cluster of one simulator; `fill` once."""

    def fill(self, percent: float, rng: random.Random, on_progress: Progress = no_progress) -> Filling:
        """Let tasks come until so many percent of the GPUs were asked for. Raises TraceError where that cannot be."""
        policy = self._engine.policy
        if type(policy).backlog_limit is not TaskScheduler.backlog_limit:
            raise TraceError(f"{policy.name} puts tasks into backlogs, where they would wait for ever")
        gpus = slots_of(self._cluster, gpus=True)
        tasks = self._given.tasks if isinstance(self._given, Trace) else []
        if not gpus or not any(task.requirements.min_gpus for task in tasks):
            raise TraceError("there are no GPUs to fill, or none is asked for")
        self._begin()
        filling = Filling(array("d"), array("d"))
        asked = given = 0.0
        left_over: list[ev.Event] = []
        for task in _arrivals(tasks, percent / 100 * gpus, rng):
            number = TaskId(len(filling.asked) + 1)
            self._now += SECOND
            events = [*left_over, ev.SubmitTasks(0, [self._sort_of(task)[0]], [TaskEntry(0)])]
            asked += task.requirements.min_gpus
            if self._is_placed(events):
                given += task.requirements.min_gpus
                left_over = []
            else:
                filling.dropped += 1
                left_over = [ev.CancelTasks(0, Selection(ids=[number]))]
            filling.asked.append(asked / gpus)
            filling.given.append(given / gpus)
            if not number % 1000:
                on_progress(int(asked), int(percent / 100 * gpus))
        filling.engine_s = self._run.engine_s
        return filling

    def _is_placed(self, events: Sequence[ev.Event]) -> bool:
        began = time.perf_counter()
        actions = self._engine.handle(events, self._now).actions
        self._run.engine_s += time.perf_counter() - began
        sent = [action for action in actions if isinstance(action, fx.DispatchAttempts)]
        return any(task.reserved for action in sent for task in action.tasks)


def _arrivals(tasks: Sequence[TraceTask], asked_max: float, rng: random.Random) -> Iterator[TraceTask]:
    """Tasks of the trace until this many GPUs are asked for."""
    rows = list(range(len(tasks)))
    rng.shuffle(rows)
    asked = 0.0
    while asked < asked_max:
        task = tasks[rows.pop() if rows else rng.randrange(len(tasks))]
        asked += task.requirements.min_gpus
        yield task


def fill_summary(runs: Sequence[Filling]) -> dict[str, Any]:
    """Means over the seeds, as `metrics.summary`: shares of the GPUs that were given in the end, and at `MARKS`."""
    rows = [
        {
            "gpu_allocation_ratio": run.given[-1],
            **{f"gpu_allocation_ratio_at_{mark}": run.at(mark) for mark in MARKS},
            "tasks": len(run.asked),
            "dropped": run.dropped,
            "decision_us": run.engine_s * 1e6 / len(run.asked),
        }
        for run in runs
    ]
    means: dict[str, Any] = {}
    spread: dict[str, float] = {}
    for name, first in rows[0].items():
        values = [value for row in rows if (value := row[name]) is not None]
        means[name] = fmean(values) if first is not None else None
        spread[name] = half_width(values)
    return means | {"ci95": spread if len(rows) > 1 else None, "per_seed": rows}
