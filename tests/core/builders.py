"""Short-hands for tests of the engine: a world under a virtual clock, and the events of workers and clients."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec

from schedd.core import effects as fx
from schedd.core import events as ev
from schedd.core.engine import Engine
from schedd.core.model import (
    SECOND,
    AttemptFinished,
    AttemptReport,
    AttemptStarted,
    Cause,
    Command,
    HoldsAttempt,
    Selection,
    State,
    Task,
    TaskEntry,
    TaskId,
    TaskRequirements,
    TaskSpec,
    WorkerId,
    WorkerInfo,
    WorkerResources,
)
from schedd.core.policies import POLICIES
from schedd.core.policies.base import TaskScheduler
from schedd.core.settings import EngineSettings, PrefetchRule

A = TypeVar("A", bound=fx.Action)
F = TypeVar("F", bound=fx.Fact)

#: Where the clock of every test starts.
START = 1_000 * SECOND
PAYLOAD = Command(["true"])
#: Nothing is sent ahead; what a test expects of placement does not depend on learned runtimes.
NO_PREFETCH = PrefetchRule(depth_max=0)


def spec(**values: Any) -> TaskSpec:
    """Build a spec; keys of `TaskRequirements` go into its requirements."""
    wants = {name: values.pop(name) for name in list(values) if name in TaskRequirements.__struct_fields__}
    if wants:
        values["requirements"] = TaskRequirements(**wants)
    return TaskSpec(**{"payload": PAYLOAD, **values})


class World:
    """An engine with a clock that only the test moves. Every turn ends with `engine.check()`."""

    def __init__(self, policy: str | TaskScheduler = "priority", *, seed: int = 0, **settings: Any) -> None:
        scheduler = POLICIES[policy]() if isinstance(policy, str) else policy
        settings.setdefault("prefetch", NO_PREFETCH)
        self.settings = EngineSettings(**settings)
        self.engine = Engine(scheduler, self.settings, random.Random(seed))
        self.now = START
        self.origin = 0

    # ------------------------------------------------------------------------------------------------------- turns

    def handle(self, *events: ev.Event) -> fx.Effects:
        effects = self.engine.handle(events, self.now)
        self.engine.check()
        return effects

    def wait(self, seconds: float) -> None:
        """Let time pass; nothing happens until the next turn."""
        self.now += round(seconds * SECOND)

    def wake(self, lag_s: float = 0.0) -> fx.Effects:
        return self.handle(ev.Wakeup(round(lag_s * SECOND)))

    def wake_in(self, seconds: float) -> fx.Effects:
        self.wait(seconds)
        return self.wake()

    # ---------------------------------------------------------------------------------------------------- requests

    def submit(self, count: int = 1, **values: Any) -> list[TaskId]:
        """Submit `count` equal tasks; returns their ids."""
        return self.submit_entries(spec(**values), [TaskEntry(0)] * count)

    def submit_entries(self, one: TaskSpec, entries: list[TaskEntry]) -> list[TaskId]:
        effects = self.handle(ev.SubmitTasks(1, [one], entries))
        (reply,) = of(effects.actions, fx.ReplySubmitted)
        ids: list[TaskId] = reply.ids
        return ids

    def cancel(self, *ids: int) -> fx.Effects:
        return self.handle(ev.CancelTasks(1, selection(*ids)))

    def hold(self, *ids: int) -> fx.Effects:
        return self.handle(ev.HoldTasks(1, selection(*ids)))

    def release(self, *ids: int) -> fx.Effects:
        return self.handle(ev.ReleaseTasks(1, selection(*ids)))

    # ----------------------------------------------------------------------------------------------------- workers

    def join(self, name: str = "w1", *, holds: Sequence[HoldsAttempt] = (), run: str = "a", **has: Any) -> fx.Effects:
        return self.handle(joined(name, holds=holds, run=run, **has))

    def start(self, *ids: int) -> fx.Effects:
        """Let the workers that hold these say that they started."""
        return self.handle(*(self.started(i) for i in ids))

    def finish(self, *ids: int, cause: Cause = Cause.OK, **values: Any) -> fx.Effects:
        """Let the workers that hold these say that they ended."""
        return self.handle(*(self.finished(i, cause, **values) for i in ids))

    def started(self, task_id: int) -> ev.AttemptsStarted:
        task = self.task(task_id)
        return started(worker_of(task), task_id, task.attempt, self.now, task.devices)

    def finished(self, task_id: int, cause: Cause = Cause.OK, **values: Any) -> ev.AttemptsFinished:
        task = self.task(task_id)
        begun = getattr(task.state, "started_at_ns", self.now)
        return finished(worker_of(task), task_id, task.attempt, cause, begun, self.now, **values)

    # ------------------------------------------------------------------------------------------------------ looking

    def task(self, task_id: int) -> Task:
        return self.engine.tasks.rows[TaskId(task_id)]

    def state(self, task_id: int) -> State:
        return self.task(task_id).state

    def states(self, *ids: int) -> list[str]:
        return [self.state(i).name for i in ids]

    def worker(self, name: str = "w1") -> WorkerInfo:
        return self.engine.resources.workers[WorkerId(name)]

    def where(self, *ids: int) -> list[str | None]:
        return [self.task(i).worker_id for i in ids]


def worker_of(task: Task) -> str:
    assert task.worker_id is not None, task.state
    return task.worker_id


def selection(*ids: int, **values: Any) -> Selection:
    return Selection([TaskId(i) for i in ids], **values)


def joined(name: str = "w1", *, holds: Sequence[HoldsAttempt] = (), run: str = "a", **has: Any) -> ev.WorkerJoined:
    return ev.WorkerJoined(WorkerId(name), run, WorkerResources(**has), list(holds))


def holds(
    task_id: int,
    attempt: int,
    phase: str,
    started_at_ns: int = 0,
    devices: tuple[int, ...] = (),
    variant: int = 0,
    defined_ns: int = START,
    epoch: int = 0,
) -> HoldsAttempt:
    return HoldsAttempt(TaskId(task_id), attempt, phase, started_at_ns, devices, variant, defined_ns, epoch)


def started(name: str, task_id: int, attempt: int, at_ns: int, devices: tuple[int, ...] = ()) -> ev.AttemptsStarted:
    return ev.AttemptsStarted(WorkerId(name), [AttemptStarted(TaskId(task_id), attempt, at_ns, devices)])


def finished(
    name: str, task_id: int, attempt: int, cause: Cause, started_at_ns: int, finished_at_ns: int, **values: Any
) -> ev.AttemptsFinished:
    end = AttemptFinished(TaskId(task_id), attempt, cause, started_at_ns, finished_at_ns, **values)
    return ev.AttemptsFinished(WorkerId(name), [end])


def reported(name: str, task_id: int, attempt: int, step: int, **metrics: float) -> ev.AttemptsReported:
    return ev.AttemptsReported(WorkerId(name), [AttemptReport(TaskId(task_id), attempt, step, metrics)])


def answered(name: str, *answers: tuple[int, int, bool]) -> ev.RevokesAnswered:
    return ev.RevokesAnswered(WorkerId(name), [(TaskId(i), attempt, yes) for i, attempt, yes in answers])


def of(effects: Sequence[Any], kind: type[Any]) -> list[Any]:
    """Those of one type, in order."""
    return [effect for effect in effects if type(effect) is kind]


def dispatches(effects: fx.Effects) -> dict[str, list[tuple[int, int]]]:
    """(task, attempt) by worker, as the actions of a turn send them."""
    sent: dict[str, list[tuple[int, int]]] = {}
    for action in of(effects.actions, fx.DispatchAttempts):
        assert action.worker_id not in sent
        sent[action.worker_id] = [(task.id, task.attempt) for task in action.tasks]
    return sent


def unchanged(effects: fx.Effects) -> list[tuple[int | str, str]]:
    """What the only reply of a turn left unchanged."""
    (reply,) = of(effects.actions, fx.ReplyChanged)
    pairs: list[tuple[int | str, str]] = reply.unchanged
    return pairs


def picture(engine: Engine) -> bytes:
    """All that may not change by a stale report: every row, every worker, and when the engine wants to wake."""
    rows = [
        (t.id, t.state.name, msgspec.structs.astuple(t.state), t.attempt, t.devices, t.reserved, t.cancelling,
         sorted((t.blamed or {}).items()), t.report, t.result, t.attempts, t.priority,
         t.promoted)
        for t in engine.tasks.rows.values()
    ]  # fmt: skip
    workers = [
        (w.worker_id, str(w.status), list(w.running), [t.id for t in w.task_queue], w.incoming, w.outgoing,
         w.finished_count, w.failed_count)
        for w in engine.resources
    ]  # fmt: skip
    return msgspec.msgpack.encode([rows, workers])
