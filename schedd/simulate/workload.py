"""What is submitted in a run: a trace, or whatever else decides on the way.

A workload is asked for its tasks when they are due, and hears what became of each. A search that submits by result is
one, too: it returns None from `next_submit_s` while it waits for results, and an instant again once it has them. What
ends and what is submitted for it at that very instant reach the engine together, before it decides anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from schedd.simulate.trace import Trace, TraceTask


class Workload(Protocol):
    """Times are seconds on the workload's own clock, on which the run begins with its first submit.

    A task's index is its place in the order in which `take` has returned tasks, from 0; `after` of a task counts in it.
    """

    def total(self) -> int | None:
        """How many tasks there will be; None: that is not known yet."""

    def next_submit_s(self) -> float | None:
        """When the next task is due; None: not before another one has ended. Asked in each turn."""

    def take(self, now_s: float) -> Sequence[TraceTask]:
        """The tasks that are due by now, each handed out once; the figures count from their `submit_s`."""

    def on_finished(self, index: int, now_s: float, ok: bool) -> None:
        """Hear of a task that has ended, well or (`ok` False) for good without success."""

    def changes(self) -> Sequence[tuple[int, float]]:
        """(index, priority) of tasks whose priority is to change now, each told once. Asked in each turn."""


class TraceWorkload:
    """Submits a trace as it was recorded, whatever becomes of it."""

    def __init__(self, trace: Trace) -> None:
        self._tasks = trace.tasks
        self._taken = 0

    def total(self) -> int | None:
        return len(self._tasks)

    def next_submit_s(self) -> float | None:
        return self._tasks[self._taken].submit_s if self._taken < len(self._tasks) else None

    def take(self, now_s: float) -> Sequence[TraceTask]:
        tasks, first = self._tasks, self._taken
        end, count = first, len(tasks)
        while end < count and tasks[end].submit_s <= now_s:
            end += 1
        self._taken = end
        return tasks[first:end]

    def on_finished(self, index: int, now_s: float, ok: bool) -> None:
        pass

    def changes(self) -> Sequence[tuple[int, float]]:
        return ()
