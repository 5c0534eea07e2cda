"""How a caller names tasks: one id, several ids or handles, or a `Selection`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from schedd.core.model import TaskId
from schedd.wire.messages import Selection

#: What is not final yet.
UNFINISHED = Selection(unfinished=True)


class HasId(Protocol):
    """A handle of a task."""

    @property
    def id(self) -> TaskId: ...


Which = Selection | int | HasId | Iterable[int | HasId]


def task_id(task: object) -> TaskId:
    """Return the id of a task given by its id or handle. Raises TypeError."""
    number = task if isinstance(task, int) else getattr(task, "id", None)
    if not isinstance(number, int) or isinstance(task, bool):
        raise TypeError(f"{task!r} is neither the id of a task nor its handle")
    return TaskId(number)


def select(which: Which) -> Selection | None:
    """Turn what a caller named into a Selection; None for no tasks at all.

    None is not the empty Selection: that one means every task there is. Raises TypeError.
    """
    if isinstance(which, Selection):
        return which
    if isinstance(which, Iterable) and not isinstance(which, str):
        ids = [task_id(task) for task in which]
    else:
        ids = [task_id(which)]
    return Selection(ids=ids) if ids else None
