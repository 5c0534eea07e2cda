"""Preemptive orders from the literature, over gangs of nodes, in a small machine of their own.

The daemon's engine keeps nothing of what a preempted task has done and runs no task on several workers, so this is not
the engine: it is the simulator of Muri (Zhao et al., "Multi-resource Interleaving for Deep Learning Training", SIGCOMM
2022, after that of Tiresias, NSDI 2019). At each event, an arrival or an end, all tasks in the system are sorted and
placed one by one on an empty cluster; what finds no place waits or is preempted, and the scan goes on. What was done
stays done. But each task that runs from one event to the next is taken to restart there: it loses its restart cost,
which is not part of the forecast of its end.

A task no wider than the widest node goes to the first node with room; a wider one takes as many empty nodes of that
width as it fills, and for a remainder the first other node with room.
"""

from __future__ import annotations

import json
import math
import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from itertools import repeat
from operator import attrgetter
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from schedd.errors import TraceError
from schedd.simulate.cluster import ClusterRow
from schedd.simulate.files import text_of
from schedd.simulate.record import Run
from schedd.simulate.run import Progress, no_progress
from schedd.simulate.trace import Trace, TraceTask

_Seconds = Annotated[float, Meta(ge=0, le=1e9)]
ELSEWHERE = "the daemon's policies do"
#: Seconds by devices of a task, ascending, and by its kind.
RestartCosts = dict[int, dict[str, float]]

#: By name of the policy: what of remaining seconds and width comes first, lowest first.
PREEMPTIVE: dict[str, Callable[[float, float], float]] = {
    "srtf": lambda remaining_s, width: remaining_s,
    "srsf": lambda remaining_s, width: remaining_s * width,
}


class _Job(Struct):
    """A task in the system. held_s: how long it has had its place, restarts included. ends_s: inf while it waits."""

    row: int
    width: float
    restart_s: float
    remaining_s: float
    key: float = 0.0
    held_s: float = 0.0
    ends_s: float = math.inf


class Nodes:
    """Free slots by node; all free to begin with."""

    def __init__(self, widths: Sequence[float]) -> None:
        self._widths = widths
        self._widest = max(widths, default=0)
        self.clear()

    def clear(self) -> None:
        """Free all."""
        self._free = list(self._widths)
        self.free = sum(self._widths)

    def place(self, width: float) -> list[int] | None:
        """Take a place for a task, whole nodes for what is wider than one; None: there is none. O(nodes)."""
        if width > self.free:
            return None
        whole, rest = divmod(width, self._widest) if width > self._widest else (0, width)
        nodes = []
        if whole:
            empty = (node for node, free in enumerate(self._free) if free == self._widest)
            nodes = [node for node, _ in zip(empty, range(int(whole)), strict=False)]
            if len(nodes) < whole:
                return None
        if rest or not whole:
            beside = next((n for n, free in enumerate(self._free) if free >= rest and n not in nodes), None)
            if beside is None:
                return None
            self._free[beside] -= rest
            nodes.append(beside)
        for node in nodes[: int(whole)]:
            self._free[node] = 0
        self.free -= width
        return nodes


def read_restart_costs(path: str | Path) -> RestartCosts:
    """Read a JSON object of seconds by devices and kind, `{"1": {"bert": 10}, …}`, or one that has it as `restart_s`.

    Raises TraceError.
    """
    path = Path(path)
    try:
        told = json.loads(text_of(path))
        table = msgspec.convert(told.get("restart_s", told), dict[int, dict[str, _Seconds]], strict=False)
    except (ValueError, AttributeError, msgspec.ValidationError) as error:
        hint = 'restart costs are seconds by devices and kind: {"1": {"bert": 10}, "2": {"bert": 10}}'
        raise TraceError(f"{path}: {error}", hint) from None
    return dict(sorted(table.items()))


def run_preemptive(
    name: str,
    trace: Trace,
    cluster: Sequence[ClusterRow],
    restart_costs: Mapping[int, Mapping[str, float]] | None = None,
    on_progress: Progress = no_progress,
) -> Run:
    """Run a trace under one of `PREEMPTIVE`. Raises TraceError for what this machine does not know.

    In the result, tasks start when they first did. O(events * tasks in the system).
    """
    began = time.perf_counter()
    run = _Machine(name, trace, cluster, restart_costs or {}).run(on_progress)
    run.engine_s = time.perf_counter() - began
    return run


class _Machine:
    def __init__(
        self, name: str, trace: Trace, cluster: Sequence[ClusterRow], costs: Mapping[int, Mapping[str, float]]
    ) -> None:
        _must_be_plain(name, trace, cluster)
        self._key_of = PREEMPTIVE[name]
        count = len(trace.tasks)
        start_s, finish_s, held_s = (array("d", repeat(-1.0, count)) for _ in range(3))
        self._run = Run(trace, cluster, start_s, finish_s, array("q", repeat(-1, count)), held_s=held_s)
        uses_gpus = any(task.requirements.min_gpus for task in trace.tasks)
        self._nodes = Nodes([_slots(row, uses_gpus) for row in cluster for _ in range(row.count)])
        self._jobs = [_job(name, row, task, uses_gpus, costs) for row, task in enumerate(trace.tasks)]
        for job in self._jobs:
            self._nodes.clear()
            if self._nodes.place(job.width) is None:
                raise TraceError(f"there is no room for task {job.row}: it needs {job.width:g} {_word(uses_gpus)}")
        first_s = trace.tasks[0].submit_s
        self._submits = [task.submit_s - first_s for task in trace.tasks]
        self._submitted = 0
        self._now = 0.0
        #: All in the system, in the order of the last event; and those that run.
        self._system: list[_Job] = []
        self._running: list[_Job] = []

    def run(self, on_progress: Progress) -> Run:
        total, done, shown = len(self._jobs), 0, 0
        while done < total:
            arrival = self._submits[self._submitted] if self._submitted < total else math.inf
            self._go_to(min(arrival, min((job.ends_s for job in self._running), default=math.inf)))
            done += self._end()
            self._arrive()
            self._system.sort(key=attrgetter("key"))
            self._place()
            if done - shown >= 1000 or done == total:
                shown = done
                on_progress(done, total)
        return self._run

    def _go_to(self, now: float) -> None:
        """Let what runs go on until the next event."""
        elapsed, self._now = now - self._now, now
        for job in self._running:
            job.held_s += elapsed
            if job.ends_s > now:
                lost = min(elapsed, job.restart_s)
                self._run.wasted_s += lost
                job.remaining_s -= elapsed - lost
                job.key = self._key_of(job.remaining_s, job.width)

    def _end(self) -> int:
        ended = [job for job in self._running if job.ends_s <= self._now]
        for job in ended:
            self._run.finish_s[job.row] = self._now
            self._run.held_s[job.row] = job.held_s  # type: ignore[index]
        if ended:
            self._system = [job for job in self._system if job.ends_s > self._now]
        return len(ended)

    def _arrive(self) -> None:
        while self._submitted < len(self._jobs) and self._submits[self._submitted] <= self._now:
            self._system.append(self._jobs[self._submitted])
            self._submitted += 1

    def _place(self) -> None:
        nodes, run = self._nodes, self._run
        nodes.clear()
        before, self._running = self._running, []
        for job in before:
            job.ends_s = math.inf
        were = {job.row for job in before}
        for job in self._system:
            place = nodes.place(job.width) if job.width <= nodes.free else None
            if place is None:
                continue
            job.ends_s = self._now + job.remaining_s
            self._running.append(job)
            if job.row not in were:
                run.placements += 1
                run.attempts += 1
                if run.start_s[job.row] < 0:
                    run.start_s[job.row] = self._now
                run.where[job.row] = place[0]
        run.gpus_peak = max(run.gpus_peak, sum(job.width for job in self._running))


def _must_be_plain(name: str, trace: Trace, cluster: Sequence[ClusterRow]) -> None:
    """Raise TraceError where something goes wrong that this machine would pass over."""
    for row in cluster:
        told = {
            "joins_s": row.joins_s,
            "leaves_s": row.leaves_s is not None,
            "fail_share": row.fail_share,
            "slow_factor": row.slow_factor != 1.0,
            "latency_s": row.latency_s,
        }
        for key in filter(told.get, told):
            raise TraceError(f"a worker of the cluster has {key}, which {name} does not know", ELSEWHERE)
    for number, task in enumerate(trace.tasks):
        if task.failures or task.fails:
            raise TraceError(f"attempts of task {number} fail, which {name} does not know", ELSEWHERE)


def _job(name: str, row: int, task: TraceTask, uses_gpus: bool, costs: Mapping[int, Mapping[str, float]]) -> _Job:
    """A task as this machine sees it. Raises TraceError where it cannot."""
    needs = task.requirements
    if task.after or needs.variants or needs.gpu_model or len(set(task.runtimes.values())) > 1:
        raise TraceError(
            f"task {row} comes after others or does not run alike on all models, which {name} does not know",
            ELSEWHERE,
        )
    width = needs.min_gpus if uses_gpus else needs.cpus
    if width != int(width):
        raise TraceError(f"task {row} needs {width:g} {_word(uses_gpus)}, and {name} knows no shares", ELSEWHERE)
    runtime_s = min(task.runtimes.values(), default=task.runtime_s)
    job = _Job(row, width, _restart_s(costs, width, task.kind) if costs else 0.0, runtime_s)
    job.key = PREEMPTIVE[name](runtime_s, width)
    return job


def _restart_s(costs: Mapping[int, Mapping[str, float]], width: float, kind: str) -> float:
    """Of the least number of devices in the table that is not below `width`, or else of the most."""
    row = next((row for devices, row in costs.items() if devices >= width), None)
    if row is None:
        row = costs[max(costs)]
    if kind not in row:
        raise TraceError(f"the restart cost of kind {kind!r} is not known", f"known are {', '.join(row)}")
    return row[kind]


def _slots(row: ClusterRow, uses_gpus: bool) -> float:
    return row.num_gpus if uses_gpus else row.resources().cpus


def _word(uses_gpus: bool) -> str:
    return "GPUs" if uses_gpus else "CPUs"
