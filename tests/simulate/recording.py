"""Daemons whose history is kept as pages of a journal: driven by hand, or by the simulator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from schedd.config import Settings
from schedd.core import events as ev
from schedd.core.effects import Effects
from schedd.core.engine import Engine
from schedd.core.model import (
    SECOND,
    AttemptFinished,
    AttemptStarted,
    Cause,
    Command,
    Task,
    TaskEntry,
    TaskId,
    TaskSpec,
    WorkerId,
    WorkerResources,
)
from schedd.core.policies import POLICIES
from schedd.core.settings import EngineSettings
from schedd.journal.records import AnyFact, FinishedTask, finished_records
from schedd.simulate.cluster import ClusterRow
from schedd.simulate.history import Recorder
from schedd.simulate.run import Simulator
from schedd.simulate.trace import Trace

#: When the history begins, seconds.
BEGIN = 1000


class Page(Struct):
    """What one turn would have written."""

    at_ns: int
    facts: list[AnyFact]
    finished: list[FinishedTask]


def page_of(at_ns: int, effects: Effects) -> Page:
    return Page(at_ns, list(effects.facts), finished_records(effects.facts, effects.finished))  # type: ignore[arg-type]


def worker_of(task: Task) -> WorkerId:
    assert task.worker_id is not None, task.state
    return task.worker_id


class Recorded:
    """An engine under fifo, and one short word for each thing that can happen; times in seconds after `BEGIN`.

    No worker is ever silent.
    """

    def __init__(self) -> None:
        never = 1 << 61
        settings = EngineSettings(heartbeat_ns=never, lease_ns=never, lost_after_ns=never)
        self.engine = Engine(POLICIES["fifo"](), settings)
        self.pages: list[Page] = []

    def turn(self, at: float, *events: ev.Event) -> None:
        now = int((BEGIN + at) * SECOND)
        for event in events or (ev.Wakeup(0),):
            self.pages.append(page_of(now, self.engine.handle([event], now)))

    def joins(self, at: float, name: str, model: str = "", **resources: Any) -> None:
        if model:
            resources |= {"num_gpus": 1, "gpu_model": model}
        self.turn(at, ev.WorkerJoined(WorkerId(name), f"{name} {at}", WorkerResources(**resources), []))

    def leaves(self, at: float, name: str) -> None:
        self.turn(at, ev.WorkerLeft(WorkerId(name)))

    def submits(self, at: float, count: int = 1, **spec: Any) -> list[Task]:
        first = self.engine.tasks.next_id
        made = TaskSpec(Command(["true"]), kind=spec.pop("kind", "k"), **spec)
        self.turn(at, ev.SubmitTasks(0, [made], [TaskEntry(0) for _ in range(count)]))
        return [self.engine.tasks.rows[TaskId(i)] for i in range(first, first + count)]

    def starts(self, task: Task, at: float) -> None:
        """Let the attempt of a task that has a worker start."""
        began = int((BEGIN + at) * SECOND)
        self.turn(at, ev.AttemptsStarted(worker_of(task), [AttemptStarted(task.id, task.attempt, began)]))

    def runs(self, task: Task, start: float, end: float, cause: Cause = Cause.OK) -> None:
        """Let it start and end."""
        self.starts(task, start)
        self.ends(task, start, end, cause)

    def ends(self, task: Task, start: float, end: float, cause: Cause = Cause.OK) -> None:
        """Let the attempt end that has started at that time."""
        began, ended = (int((BEGIN + at) * SECOND) for at in (start, end))
        finished = AttemptFinished(task.id, task.attempt, cause, began, ended)
        self.turn(end, ev.AttemptsFinished(worker_of(task), [finished]))

    def recorder(self, **window: Any) -> Recorder:
        recorder = Recorder(**window)
        for page in self.pages:
            recorder.take(page)
        return recorder


class RecordingSimulator(Simulator):
    """Keeps what its engine tells, as a daemon's journal would."""

    def __init__(self, trace: Trace, cluster: Sequence[ClusterRow], settings: Settings, seed: int = 0) -> None:
        super().__init__(trace, cluster, settings, seed)
        self.pages: list[Page] = []
        handle = self._engine.handle

        def handle_and_keep(events: Sequence[ev.Event], now: int) -> Effects:
            effects = handle(events, now)
            self.pages.append(page_of(now, effects))
            return effects

        self._engine.handle = handle_and_keep  # type: ignore[method-assign]

    def recorder(self) -> Recorder:
        recorder = Recorder()
        for page in self.pages:
            recorder.take(page)
        return recorder
