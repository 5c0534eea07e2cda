"""Make new tasks of those that failed or were cancelled. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec

from schedd.core.model import TaskId
from schedd.wire.messages import TaskDetail, TaskEntry, TaskSpec, TaskView

#: States that a task can be done again from.
AGAIN = ("failed", "cancelled")


class Retry(msgspec.Struct, frozen=True):
    """What to submit in the place of `ids`, in the same order; `others`: tasks that some of it waits for."""

    ids: list[TaskId]
    specs: list[TaskSpec]
    entries: list[TaskEntry]
    unchanged: list[tuple[TaskId, str]]
    others: list[TaskId]


def plan_retry(rows: Sequence[tuple[TaskView, TaskDetail]]) -> Retry:
    """Work out the new tasks; rows by id. What waited for another one of them waits for the one in its place.

    Keys are not taken over: they name the old tasks. Nor are delays.
    """
    plan = Retry([], [], [], [], [])
    places: dict[TaskId, int] = {}
    index_of: dict[bytes, int] = {}
    others: dict[TaskId, None] = {}
    for view, detail in rows:
        reason = _why_not(view, detail)
        if reason or detail.payload is None:
            plan.unchanged.append((view.id, reason))
            continue
        spec = TaskSpec(detail.payload, view.kind, view.job, 0.0, detail.requirements, detail.rules)
        index = index_of.setdefault(msgspec.msgpack.encode(spec), len(plan.specs))
        if index == len(plan.specs):
            plan.specs.append(spec)
        after = [-1 - places[ref] if ref in places else ref for ref in detail.after]
        others.update(dict.fromkeys(TaskId(ref) for ref in after if ref >= 0))
        places[view.id] = len(plan.entries)
        plan.entries.append(TaskEntry(index, detail.argument, None, after, view.priority))
        plan.ids.append(view.id)
    plan.others.extend(others)
    return plan


def _why_not(view: TaskView, detail: TaskDetail) -> str:
    if view.state not in AGAIN:
        return f"already {view.state}" if view.finished_at is not None else f"is {view.state}"
    return "" if detail.payload is not None else "what it did is not known any more"


def without(entries: Sequence[TaskEntry], done: Collection[TaskId]) -> list[TaskEntry]:
    """Leave out waiting for tasks that have succeeded: the daemon may soon have forgotten them."""
    gone = frozenset(done)
    return [
        msgspec.structs.replace(entry, after=[ref for ref in entry.after if ref not in gone]) if entry.after else entry
        for entry in entries
    ]
