"""Job files: tasks that depend on each other, in TOML.

    job = "sweep"                # keys at the top are defaults for every task

    [[task]]
    name = "prepare"
    command = "python prepare.py"

    [[task]]
    name = "train"
    command = ["python", "train.py", "--fold", "{}"]
    array = "1-5"
    gpus = 1
    after = ["prepare"]          # names of tasks in this file, ids of tasks that exist

Keys are the long options of `schedd submit`. A name that stands for an array means all of its tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from schedd.cli.options import BadInput
from schedd.cli.taskspec import TaskOptions, after_items, make_entries, make_spec
from schedd.cli.values import nearest
from schedd.wire.messages import TaskEntry, TaskSpec


class Plan(Struct, frozen=True):
    """A submit, ready to be sent. `names` has, for each named task, the places of its tasks among the entries."""

    specs: list[TaskSpec]
    entries: list[TaskEntry]
    names: dict[str, range]


class _Task(Struct, frozen=True):
    label: str
    options: TaskOptions
    spec: TaskSpec


def read_job_file(path: Path, defaults: Mapping[str, Any]) -> Plan:
    """Read a job file and plan its submit.

    defaults: options from the command line, which the file's own keys win over. Tasks come in the order of the file,
    but after those that they depend on. Raises BadInput.
    """
    try:
        document = msgspec.toml.decode(path.read_bytes())
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} is not TOML: {error}") from None
    except RecursionError:
        raise BadInput(f"{path} is nested too deep") from None
    tables = document.pop("task", None)
    if not isinstance(tables, list) or not tables:
        raise BadInput(f"{path} has no tasks", "each task is a table: [[task]] with a command")
    try:
        tasks = [_read_task(i, {**defaults, **_normal(document)}, table) for i, table in enumerate(tables, 1)]
        return _plan([tasks[i] for i in _order(tasks)])
    except BadInput as error:
        raise BadInput(f"{path}: {error.message}", error.hint) from None


def _normal(table: Mapping[str, Any]) -> dict[str, Any]:
    """Spell keys as the long options are; those of variants, too, but not the names of labels or variables."""
    values = {key.replace("_", "-"): value for key, value in table.items()}
    if isinstance(variants := values.get("variants"), list):
        values["variants"] = [_normal(each) if isinstance(each, dict) else each for each in variants]
    return values


def _read_task(number: int, defaults: Mapping[str, Any], table: Any) -> _Task:
    if not isinstance(table, dict):
        raise BadInput("`task` must be tables: [[task]]")
    values = {**defaults, **_normal(table)}
    name = values.get("name")
    label = f"task {name!r}" if isinstance(name, str) and name else f"task {number}"
    known = list(TaskOptions.__struct_encode_fields__)
    for key in values:
        if key not in known:
            raise BadInput(f"{label}: unknown key {key!r}", nearest(key, known))
    try:
        options = msgspec.convert(values, TaskOptions)
        return _Task(label, options, make_spec(options))
    except (ValueError, OSError) as error:  # msgspec.ValidationError is a ValueError
        raise BadInput(f"{label}: {error}") from None


def _places(tasks: Sequence[_Task]) -> dict[str, int]:
    places: dict[str, int] = {}
    for i, task in enumerate(tasks):
        name = task.options.name
        if name[:1].isdigit():
            raise BadInput(f"{task.label}: a name cannot start with a digit", "ids of tasks do")
        if name and places.setdefault(name, i) != i:
            raise BadInput(f"two tasks have the name {name!r}")
    return places


def _wanted(task: _Task) -> list[str]:
    return [item for item in after_items(task.options) if isinstance(item, str) and not item[:1].isdigit()]


def _order(tasks: Sequence[_Task]) -> list[int]:
    """Sort tasks so that each comes after those that it needs, otherwise in the order of the file."""
    places = _places(tasks)
    sorter: TopologicalSorter[int] = TopologicalSorter()
    for i, task in enumerate(tasks):
        for name in _wanted(task):
            if name not in places:
                hint = nearest(name, list(places)) if places else "no task of this file has a name"
                raise BadInput(f"{task.label} comes after {name!r}, which is not in the file", hint)
        sorter.add(i, *(places[name] for name in _wanted(task)))
    try:
        sorter.prepare()
    except CycleError as error:
        circle = " -> ".join(tasks[i].label for i in error.args[1])
        raise BadInput(f"tasks wait for each other in a circle: {circle}") from None
    order: list[int] = []
    while sorter.is_active():
        ready = sorted(sorter.get_ready())
        order.extend(ready)
        sorter.done(*ready)
    return order


def _plan(tasks: Sequence[_Task]) -> Plan:
    plan = Plan([], [], {})
    for task in tasks:
        # -1-n is the n-th entry of the same submit.
        after = [-1 - place for name in _wanted(task) for place in plan.names[name]]
        start = len(plan.entries)
        try:
            plan.entries.extend(make_entries(task.options, len(plan.specs), after))
        except (ValueError, OSError) as error:
            raise BadInput(f"{task.label}: {error}") from None
        plan.specs.append(task.spec)
        if task.options.name:
            plan.names[task.options.name] = range(start, len(plan.entries))
    return plan
