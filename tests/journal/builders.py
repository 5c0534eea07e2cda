"""Facts as the engine makes them, in short, and what a restart makes of a journal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self

from schedd.core import effects as fx
from schedd.core.model import (
    NO_REQUIREMENTS,
    SECOND,
    AttemptRecord,
    Cause,
    Command,
    TaskEntry,
    TaskId,
    TaskSpec,
    WorkerId,
    WorkerResources,
)
from schedd.journal.records import FinishedTask
from schedd.journal.store import Journal, Live

TIMEOUT_S = 20.0
START = 1_000 * SECOND
SPEC = TaskSpec(Command(["true"]))


def admitted(ids: Iterable[int], spec: TaskSpec = SPEC, argument: bytes = b"", at_ns: int = START) -> fx.TasksAdmitted:
    known = [TaskId(i) for i in ids]
    return fx.TasksAdmitted(at_ns, [spec], [TaskEntry(0, argument) for _ in known], known)


def held(task_id: int) -> fx.TaskHeld:
    return fx.TaskHeld(TaskId(task_id))


def released(task_id: int) -> fx.TaskReleased:
    return fx.TaskReleased(TaskId(task_id))


def changed(task_id: int, priority: float) -> fx.TaskChanged:
    return fx.TaskChanged(TaskId(task_id), priority, NO_REQUIREMENTS)


def failed(task_id: int, attempt: int = 1, cause: Cause = Cause.ERROR) -> fx.AttemptEnded:
    return fx.AttemptEnded(TaskId(task_id), record(attempt, cause))


def record(attempt: int = 1, cause: Cause = Cause.OK) -> AttemptRecord:
    return AttemptRecord(attempt, WorkerId("w1"), START, START, START + SECOND, cause)


def ended(task_id: int, state: str = "succeeded", at_ns: int = START, result: bytes | None = None) -> fx.TaskFinished:
    return fx.TaskFinished(TaskId(task_id), state, at_ns, "", result)


def finished(task_id: int, at_ns: int = START, result: bytes | None = None, **values: Any) -> FinishedTask:
    state = values.pop("state", "succeeded")
    fields = {"job": "", "kind": "true", "key": None, "priority": 0.0, "submitted_ns": START, "attempts": (record(),)}
    return FinishedTask(TaskId(task_id), state, at_ns, result=result, **{**fields, **values})


def entered(name: str) -> fx.WorkerEntered:
    return fx.WorkerEntered(WorkerId(name), "one", WorkerResources(), START)


def gone(name: str) -> fx.WorkerGone:
    return fx.WorkerGone(WorkerId(name), "one", START, False, 0, "left")


def quarantined(name: str, repeats: int = 1) -> fx.WorkerQuarantined:
    return fx.WorkerQuarantined(WorkerId(name), START, START + SECOND, repeats, "9 of 10 attempts failed there")


def cleared(name: str) -> fx.WorkerCleared:
    return fx.WorkerCleared(WorkerId(name), START, "a task succeeded")


def kind_held(job: str, kind: str, repeats: int = 1) -> fx.KindHeld:
    return fx.KindHeld(job, kind, START, START + SECOND, repeats, "the last 20 tasks failed")


def kind_released(job: str, kind: str) -> fx.KindReleased:
    return fx.KindReleased(job, kind, START, "released by its owner")


def unfinished(live: Live) -> list[int]:
    """The ids that a restart would go on with."""
    return [i for batch in live.batches for i in batch.ids if i not in live.ended]


class Running:
    """A journal with its writer; a context manager."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.committed: SimpleQueue[int] = SimpleQueue()
        self.failures: SimpleQueue[str] = SimpleQueue()
        self.crashes: SimpleQueue[BaseException] = SimpleQueue()
        self.turn = 0
        self.journal = Journal(
            path,
            committed=self.committed.put,
            failing=self.failures.put,
            crashed=self.crashes.put,
            **options,
        )
        self.live = self.journal.load(1000)
        self.journal.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.journal.close()

    def append(self, *facts: fx.Fact, finished: Sequence[FinishedTask] = (), now: int = START) -> int:
        self.turn += 1
        self.journal.append(self.turn, list(facts), list(finished), now)
        return self.turn

    def commit(self, *facts: fx.Fact, finished: Sequence[FinishedTask] = (), now: int = START) -> None:
        """Hand over a turn and wait until it is on disk."""
        self.wait(self.append(*facts, finished=finished, now=now))

    def wait(self, turn: int) -> None:
        while self.committed.get(timeout=TIMEOUT_S) < turn:
            pass


def reopened(path: Path, finished_max: int = 1000) -> Live:
    """What a daemon would start from now."""
    journal = Journal(path)
    try:
        return journal.load(finished_max)
    finally:
        journal.close()
