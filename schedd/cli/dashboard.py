"""The live view of `top` and `demo`: a snapshot of the daemon, drawn with rich into a given number of lines."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec
from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.text import Text

from schedd.cli.output import STYLES, Column, rich_table
from schedd.cli.values import write_duration
from schedd.cli.views import gpu_count, progress, task_time
from schedd.wire.messages import Selection, Stats, TaskView, WorkerView

if TYPE_CHECKING:
    from schedd.client.aio import AsyncClient

#: No terminal shows more running tasks than this, and asking for all of them costs the daemon.
RUNNING_MAX = 200
#: What the sparkline remembers: one value for each refresh.
HISTORY = 60
SORTS = ("time", "id", "priority", "worker")
#: Lines of the view that are neither workers nor tasks: head 4, two titles, a blank line, foot 1.
FIXED_LINES = 8

BAR_COLUMNS = 10
_BARS = "▁▂▃▄▅▆▇█"


class Snapshot(msgspec.Struct, frozen=True):
    """The daemon at one instant. `rates`: tasks finished a second, oldest first."""

    stats: Stats
    workers: list[WorkerView]
    running: list[TaskView]
    rates: list[float]


class Observer:
    """Takes snapshots, and knows from the ones before how fast tasks finish."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._rates: deque[float] = deque(maxlen=HISTORY)
        self._last: tuple[float, int] | None = None

    async def look(self) -> Snapshot:
        """Ask the daemon. Raises ConnectionLost."""
        stats = await self._client.stats()
        workers = await self._client.workers()
        running = await self._client.tasks(Selection(states=["running"]), limit=RUNNING_MAX)
        self._count(stats)
        return Snapshot(stats, workers, running, list(self._rates))

    def _count(self, stats: Stats) -> None:
        now = time.monotonic()
        # A total that shrinks is a daemon that was restarted: there is no rate between two lives.
        if self._last is not None and stats.finished_total >= self._last[1] and now > self._last[0]:
            self._rates.append((stats.finished_total - self._last[1]) / (now - self._last[0]))
        self._last = (now, stats.finished_total)


def sparkline(values: Sequence[float]) -> str:
    """Draw values as a line of bars, the largest at full height."""
    top = max(values, default=0.0)
    if top <= 0:
        return _BARS[0] * len(values)
    return "".join(_BARS[round(value / top * (len(_BARS) - 1))] for value in values)


def sort_tasks(tasks: Sequence[TaskView], by: str) -> list[TaskView]:
    """Sort running tasks by one of `SORTS`: the longest, the lowest id, the most important, or by worker."""
    match by:
        case "time":
            return sorted(tasks, key=lambda task: (task.started_at or task.submitted_at, task.id))
        case "priority":
            return sorted(tasks, key=lambda task: (-task.importance, task.id))
        case "worker":
            return sorted(tasks, key=lambda task: (task.worker or "", task.id))
        case _:
            return sorted(tasks, key=lambda task: task.id)


def render(snapshot: Snapshot, *, lines: int, sort: str, foot: str = "") -> RenderableType:
    """Draw a snapshot in at most `lines` lines: workers get up to half of what the fixed lines leave."""
    room = max(2, lines - FIXED_LINES)
    shown_workers = min(len(snapshot.workers), max(1, room // 2, room - len(snapshot.running)))
    shown_tasks = max(1, room - shown_workers)
    parts: list[RenderableType] = [
        *_head(snapshot),
        _workers(snapshot.workers[:shown_workers], len(snapshot.workers)),
        Text(""),
        _tasks(sort_tasks(snapshot.running, sort)[:shown_tasks], snapshot.stats.states.get("running", 0)),
    ]
    if foot:
        parts.append(_line(foot, "dim"))
    return Group(*parts)


def _line(text: str, style: str = "") -> Text:
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")


def _head(snapshot: Snapshot) -> list[Text]:
    stats = snapshot.stats
    title = _line(f"schedd {stats.version}", "bold")
    title.append(
        f"  {stats.address}  policy {stats.policy}  up {write_duration(stats.uptime_s)}"
        f"  lag {stats.loop_lag_s * 1000:.1f}ms  steals {stats.steals_total}",
        "not bold",
    )
    states = _line("")
    for state, count in stats.states.items():
        if count:
            states.append(f"{state} {count}  ", STYLES.get(state, ""))
    rate = snapshot.rates[-1] if snapshot.rates else 0.0
    speed = _line(f"{rate:8.1f} tasks/s  ")
    speed.append(sparkline(snapshot.rates), "cyan")
    return [title, states if states.plain else _line("no tasks"), speed, Text("")]


def _workers(workers: Sequence[WorkerView], total: int) -> RenderableType:
    columns = [
        Column(f"workers ({total})", fold=True),
        Column("status"),
        Column("load"),
        Column("", right=True),
        *(Column(title, right=True) for title in ("running", "backlog", "done", "failed", "cpu", "gpu")),
    ]
    return rich_table(columns, [_worker_row(worker) for worker in workers])


def _worker_row(worker: WorkerView) -> list[str | ProgressBar]:
    used, has = worker.reserved_cpus, worker.resources.cpus
    if gpu_count(worker):
        used, has = worker.reserved_gpus, gpu_count(worker)
    return [
        worker.name,
        worker.status,
        ProgressBar(max(has, 1e-9), used, BAR_COLUMNS, complete_style="cyan", finished_style="cyan"),
        f"{used:g}/{has:g}",
        str(worker.running),
        str(worker.backlog),
        str(worker.finished),
        str(worker.failed),
        *_measured(worker),
    ]


def _measured(worker: WorkerView) -> tuple[str, str]:
    if worker.usage is None:
        return "-", "-"
    gpus = [gpu.utilisation for gpu in worker.usage.gpus if gpu.utilisation is not None]
    return f"{worker.usage.cpu_percent:.0f}%", f"{sum(gpus) / len(gpus):.0f}%" if gpus else "-"


def _tasks(tasks: Sequence[TaskView], total: int) -> RenderableType:
    columns = [
        Column(f"running ({total})", right=True),
        Column("job", fold=True),
        Column("kind", fold=True),
        Column("prio", right=True),
        Column("time", right=True),
        Column("worker", fold=True),
        Column("about", fold=True),
    ]
    now = time.time()
    rows = [
        [
            str(task.id),
            task.job,
            task.kind,
            f"{task.importance:g}",
            task_time(task, now),
            task.worker or "",
            progress(task),
        ]
        for task in tasks
    ]
    return rich_table(columns, rows)
