"""A policy whose hooks are looked over: what they return, and that they change nothing."""

from __future__ import annotations

import math
import reprlib
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any

from msgspec import Struct, structs

from schedd.core.capacity import Ledger
from schedd.core.engine import Engine
from schedd.core.model import Task, WorkerInfo
from schedd.core.policies.base import Outcome, Preemption, Steal, TaskScheduler
from schedd.core.stats import LEARNED_MAX, Learned


class Watch:
    """What is known of the calls to one policy: how many there were, and what it said of each task."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        #: The level of each task by what it may depend on: it is constant while the task waits.
        self.levels: dict[tuple[Any, ...], float] = {}
        self.engine: Engine | None = None

    def rows(self) -> list[Task | WorkerInfo]:
        """All rows of the engine."""
        if self.engine is None:
            return []
        return [*self.engine.tasks.rows.values(), *self.engine.resources]

    def facts(self, hook: str, arguments: Sequence[Any]) -> list[Any]:
        """What this call may not change, to compare with what it is afterwards."""
        if hook == "plan":  # which places by its draft, and may change nothing that was submitted
            return [_submitted(row) for row in self.rows() if isinstance(row, Task)]
        rows = [row for argument in arguments for row in _rows_of(argument)]
        return [picture(row) for row in rows or self.rows()]


def watched(policy: type[TaskScheduler], watch: Watch) -> type[TaskScheduler]:
    """Make a class that behaves like the policy, and asserts what its hooks return and leave alone."""
    hooks = {
        name: _watched_hook(getattr(policy, name), name, check, watch)
        for name, check in _RETURNS.items()
        if getattr(policy, name) is not getattr(TaskScheduler, name)
    }
    return type(policy.__name__, (policy,), hooks)


def _watched_hook(
    function: Callable[..., Any], name: str, check: Callable[[Any, Sequence[Any], Watch], str], watch: Watch
) -> Callable[..., Any]:
    def hook(self: TaskScheduler, *arguments: Any) -> Any:
        watch.calls[name] += 1
        before = watch.facts(name, arguments)
        value = function(self, *arguments)
        assert watch.facts(name, arguments) == before, f"{name} changed a task or a worker; a hook only returns values"
        problem = check(value, arguments, watch)
        assert not problem, f"{name} returned {reprlib.repr(value)}: {problem}"
        return value

    return hook


def _rows_of(argument: Any) -> list[Task | WorkerInfo]:
    if isinstance(argument, Task | WorkerInfo):
        return [argument]
    return [argument.task, argument.worker] if isinstance(argument, Outcome) else []


def picture(value: Any) -> Any:
    """All fields of a row, containers copied, a ledger taken apart."""
    if isinstance(value, Ledger):
        amounts = (value.cpus, value.free_cpus, value.ram_mb, value.free_ram_mb, value.slots, value.slot_cpus)
        devices = [(device.uuid, device.model, device.memory_mb) for device in value.devices]
        return [amounts, devices, value.free_devices(), dict(value.labels), dict(value.custom), dict(value.free_custom)]
    if isinstance(value, WorkerInfo | Task):
        return [picture(field) if not isinstance(field, Task) else field for field in structs.astuple(value)]
    if isinstance(value, list | deque):
        return [
            structs.astuple(each) if isinstance(each, Struct) and not isinstance(each, Task) else each for each in value
        ]
    return dict(value) if isinstance(value, dict) else value


def _submitted(task: Task) -> tuple[Any, ...]:
    return (task.id, task.kind, task.priority, task.requirements, task.payload, task.job, task.after, task.submitted_ns)


def _number(value: Any, arguments: Sequence[Any], watch: Watch) -> str:
    is_number = isinstance(value, int | float) and not math.isnan(value)
    return "" if is_number else "it must be a number"


def _level(value: Any, arguments: Sequence[Any], watch: Watch) -> str:
    if not (isinstance(value, int | float) and math.isfinite(value)):
        return "it must be a finite number"
    task = arguments[0]
    key = (task.id, task.kind, task.priority, task.job, task.requirements.min_gpus, task.requirements.cpus)
    known = watch.levels.setdefault(key, value)
    return "" if known == value else f"it was {known!r} before, and must be constant while a task waits"


def _limit(value: Any, arguments: Sequence[Any], watch: Watch) -> str:
    return "" if isinstance(value, int) and value >= 0 else "it must be a whole number from 0 on"


def _nothing(value: Any, arguments: Sequence[Any], watch: Watch) -> str:
    return "" if value is None else "nobody would look at it"


def _steals(value: Any, arguments: Sequence[Any], watch: Watch) -> str:
    if not (isinstance(value, list) and all(isinstance(steal, Steal) for steal in value)):
        return "it must be a list of Steal"
    for steal in value:
        if steal.victim is steal.thief:
            return f"task {steal.task.id} would be stolen from the thief"
        if not any(task is steal.task for task in steal.victim.task_queue):
            return f"task {steal.task.id} is not in the backlog of {steal.victim.worker_id}"
    return ""


def _preemptions(value: Any, arguments: Sequence[Any], watch: Watch) -> str:
    if not (isinstance(value, list) and all(isinstance(each, Preemption) for each in value)):
        return "it must be a list of Preemption"
    for each in value:
        if strange := [task.id for task in each.victims if task.id not in each.worker.running]:
            return f"task {strange[0]} does not run on {each.worker.worker_id}"
    return ""


def _workers(value: Any, arguments: Sequence[Any], watch: Watch) -> str:
    return (
        "" if isinstance(value, list) and all(isinstance(each, str) for each in value) else "it must be a list of ids"
    )


def _learned(value: Any, arguments: Sequence[Any], watch: Watch) -> str:
    if not (isinstance(value, list) and all(isinstance(each, Learned) for each in value)):
        return "it must be a list of Learned"
    return "" if len(value) <= LEARNED_MAX else f"more than {LEARNED_MAX:,} are too many to write down"


#: By hook, what is wrong with a value that it has returned; "": nothing.
_RETURNS: dict[str, Callable[[Any, Sequence[Any], Watch], str]] = {
    "level": _level,
    "score": _number,
    "backlog_limit": _limit,
    "plan": _nothing,
    "rebalance": _steals,
    "steal_for": _steals,
    "survey": _nothing,
    "began": _nothing,
    "make_room": _preemptions,
    "observe": _nothing,
    "refresh": _workers,
    "learned": _learned,
    "recall": _nothing,
}
