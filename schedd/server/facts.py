"""Facts as clients see them: one event each, flat, without what is large. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from msgspec import structs

from schedd.core import effects as fx
from schedd.core.model import Instant, TaskId
from schedd.journal.records import EndOfTask
from schedd.wire import messages as m

#: Jobs and kinds of one submit that an event names.
NAMES_MAX = 20

#: Fields by another name; those of None are left out, and `at_ns` is of the event itself.
_NAMES = {"task_id": "task", "worker_id": "worker", "victim_id": "victim", "thief_id": "thief", "for_id": "room_for"}


def type_of(kind: type[fx.Fact]) -> str:
    """The type of the events of a fact: `AttemptEnded` is "attempt_ended"."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower()


def event_of(fact: fx.Fact, written_ns: Instant) -> m.Event:
    """Write down a fact; `written_ns`: when it was, where it does not say so itself."""
    special = _SPECIAL.get(type(fact))
    fields = special(fact) if special is not None else _plain(fact)
    at_ns = getattr(fact, "at_ns", 0) or fields.pop("at_ns", 0) or written_ns
    return m.Event(
        at_ns, _TYPES[type(fact)], {name: value for name, value in fields.items() if value not in (None, "")}
    )


def event_of_end(record: EndOfTask) -> m.Event:
    """Write down the end of a task, with what is remembered of it."""
    fields: dict[str, Any] = {
        "task": record.id,
        "state": record.state,
        "job": record.job,
        "kind": record.kind,
        "key": record.key,
        "attempts": len(record.attempts),
        "submitted_at_ns": record.submitted_ns,
        "message": record.attempts[-1].message if record.attempts else "",
        "result_bytes": len(record.result) if record.result is not None else None,
    }
    told = {name: value for name, value in fields.items() if value not in (None, "")}
    return m.Event(record.at_ns, _TYPES[fx.TaskFinished], told)


def is_about(event: m.Event, tasks: frozenset[int], workers: frozenset[str]) -> bool:
    """Whether an event is about one of these tasks and one of these workers; empty: about any, or none."""
    fields = event.fields
    if tasks and fields.get("task") not in tasks:
        spans = fields.get("tasks", ())
        if not any(first <= task <= last for first, last in spans for task in tasks):
            return False
    return not workers or any(fields.get(name) in workers for name in ("worker", "victim", "thief"))


def _plain(fact: fx.Fact) -> dict[str, Any]:
    fields = {_NAMES.get(name, name): value for name, value in structs.asdict(fact).items() if name != "at_ns"}
    if not fields.get("room_for", True):
        del fields["room_for"]
    return fields


def _admitted(fact: fx.TasksAdmitted) -> dict[str, Any]:
    return {
        "count": len(fact.ids),
        "tasks": _spans(fact.ids),
        "jobs": _some(spec.job for spec in fact.specs) or None,
        "kinds": _some(spec.kind for spec in fact.specs) or None,
    }


def _some(names: Iterable[str]) -> list[str]:
    """The first different ones that are not empty."""
    return [name for name in dict.fromkeys(names) if name][:NAMES_MAX]


def _spans(ids: list[TaskId]) -> list[tuple[int, int]]:
    """Ids as spans, both ends included: those of a submit follow on one another."""
    spans: list[tuple[int, int]] = []
    for task_id in ids:
        if spans and task_id == spans[-1][1] + 1:
            spans[-1] = (spans[-1][0], task_id)
        else:
            spans.append((task_id, task_id))
    return spans


def _changed(fact: fx.TaskChanged) -> dict[str, Any]:
    asked = {name: value for name, value in structs.asdict(fact.requirements).items() if value and name != "variants"}
    return {"task": fact.task_id, "priority": fact.priority, "promoted": fact.promoted, "requirements": asked}


def _began(fact: fx.AttemptBegan) -> dict[str, Any]:
    return {"task": fact.task_id, "attempt": fact.attempt, "at_ns": fact.started_at_ns}


def _ended(fact: fx.AttemptEnded) -> dict[str, Any]:
    r = fact.record
    return {
        "task": fact.task_id,
        "attempt": r.attempt,
        "worker": r.worker_id,
        "cause": str(r.cause),
        "exit_code": r.exit_code,
        "signal": r.signal,
        "started_at_ns": r.started_at_ns or None,
        "message": r.message,
        "devices": list(r.devices) or None,
        "excused": r.excused or None,
        "retry_at_ns": fact.retry_at_ns or None,
        "at_ns": r.finished_at_ns,
    }


def _entered(fact: fx.WorkerEntered) -> dict[str, Any]:
    resources = fact.resources
    return {
        "worker": fact.worker_id,
        "incarnation": fact.incarnation,
        "cpus": resources.cpus,
        "ram_gb": resources.ram_gb,
        "gpus": len(resources.devices()),
        "again": fact.again or None,
        "draining": fact.draining or None,
    }


_SPECIAL: dict[type[fx.Fact], Callable[[Any], dict[str, Any]]] = {
    fx.TasksAdmitted: _admitted,
    fx.TaskChanged: _changed,
    fx.AttemptBegan: _began,
    fx.AttemptEnded: _ended,
    fx.WorkerEntered: _entered,
}
_TYPES = {kind: type_of(kind) for kind in fx.Fact.__subclasses__()}
