"""From the options of a submit to what goes over the wire. The same Struct reads command lines and job files."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct, field

from schedd.cli.values import ARRAY_LENGTH_MAX, ID_MAX, parse_duration, parse_ids, parse_numbers
from schedd.core.model import Command, TaskRequirements, TaskRules, kind_of
from schedd.wire.messages import TaskEntry, TaskSpec

#: Environment variables that tell a task of an array which one it is.
INDEX_VARIABLE = "SCHEDD_INDEX"
LINE_VARIABLE = "SCHEDD_LINE"

#: A length of time: seconds, or text such as "5m".
Duration = float | str


class RequirementOptions(Struct, frozen=True, forbid_unknown_fields=True, rename="kebab", kw_only=True):
    """What a task asks of a worker, in the words of the command line. None: not said."""

    gpus: float | None = None
    gpu_memory: float | None = None
    gpu_model: str | None = None
    cpus: float | None = None
    ram: float | None = None
    label: dict[str, str] | None = None
    resource: dict[str, float] | None = None
    time_estimate: Duration | None = None


class TaskOptions(RequirementOptions, frozen=True, forbid_unknown_fields=True, rename="kebab", kw_only=True):
    """Every option of a submit. In a job file `after` may also name tasks of the same file."""

    name: str = ""
    command: list[str] | str = field(default_factory=list)
    variants: list[RequirementOptions] = field(default_factory=list)
    priority: float = 0.0
    job: str = ""
    kind: str = ""
    key: str | None = None
    timeout: Duration | None = None
    retries: int | None = None
    retry_timeout: int | None = None
    retry_oom: int | None = None
    retry_lost: int | None = None
    retry_rejected: int | None = None
    retry_delay: Duration | None = None
    memory_growth: float | None = None
    grace: Duration = 5.0
    delay: Duration = 0.0
    after: list[int | str] | int | str = field(default_factory=list)
    hold: bool = False
    env: dict[str, str] = field(default_factory=dict)
    cwd: str = "."
    stdin: str | None = None
    array: list[int] | str | None = None
    each_line: str | None = None


#: The field of TaskRequirements for each option.
_REQUIREMENT_FIELDS = {
    "gpus": "min_gpus",
    "gpu_memory": "min_memory",
    "gpu_model": "gpu_model",
    "cpus": "cpus",
    "ram": "ram",
    "label": "labels",
    "resource": "custom",
    "time_estimate": "estimated_time",
}


def _seconds(value: Duration) -> float:
    return parse_duration(value) if isinstance(value, str) else value


def requirement_changes(options: RequirementOptions) -> dict[str, Any]:
    """List the fields of TaskRequirements that these options speak of. Raises ValueError."""
    changes = {
        theirs: value for ours, theirs in _REQUIREMENT_FIELDS.items() if (value := getattr(options, ours)) is not None
    }
    if "estimated_time" in changes:
        changes["estimated_time"] = _seconds(changes["estimated_time"])
    return changes


def make_requirements(options: TaskOptions) -> TaskRequirements:
    """Build the requirements with their variants. Raises ValueError."""
    variants = tuple(TaskRequirements(**requirement_changes(variant)) for variant in options.variants)
    return TaskRequirements(**requirement_changes(options), variants=variants)


def split_command(command: list[str] | str) -> list[str]:
    """Split a command line as a shell would; a list is taken as it is. Raises ValueError where nothing is left."""
    argv = shlex.split(command) if isinstance(command, str) else command
    if not argv or not argv[0]:
        raise ValueError("there is no command to run")
    return argv


def _folder(text: str) -> str:
    try:
        return str(Path(text).expanduser().absolute())
    except RuntimeError:
        raise ValueError(f"{text!r} is in the home of a user that does not exist") from None


def make_spec(options: TaskOptions) -> TaskSpec:
    """Build what all tasks of these options have in common. Raises ValueError, and OSError for the file of stdin."""
    argv = split_command(options.command)
    variable = INDEX_VARIABLE if options.array is not None else LINE_VARIABLE if options.each_line is not None else ""
    payload = Command(
        argv=argv,
        env=options.env,
        cwd=_folder(options.cwd),
        stdin=Path(options.stdin).read_bytes() if options.stdin else b"",
        variable=variable,
    )
    check_priority(options.priority)
    spec = TaskSpec(
        payload=payload,
        kind=options.kind or kind_of(argv),
        job=options.job,
        priority=options.priority,
        requirements=make_requirements(options),
        rules=make_rules(options),
        after=existing_ids(options),
        delay_s=_seconds(options.delay),
        hold=options.hold,
    )
    _check_text((spec, options.key))
    return spec


def _check_text(value: Any) -> None:
    """Raise ValueError for words of a command line that are bytes in no encoding: what is sent is UTF-8."""
    try:
        msgspec.msgpack.encode(value)
    except UnicodeEncodeError as error:
        raise ValueError(f"{error.object!r} is not UTF-8") from None


def check_priority(priority: float) -> None:
    """Raise ValueError for one that cannot be compared with others."""
    if not math.isfinite(priority):
        raise ValueError(f"{priority} is no priority")


def make_rules(options: TaskOptions) -> TaskRules:
    """Build how attempts are bounded and failures answered. Raises ValueError."""
    return TaskRules(
        timeout_s=None if options.timeout is None else _seconds(options.timeout),
        grace_s=_seconds(options.grace),
        retries=options.retries,
        lost_limit=options.retry_lost,
        retry_delay_s=None if options.retry_delay is None else _seconds(options.retry_delay),
        timeout_limit=options.retry_timeout,
        oom_limit=options.retry_oom,
        rejected_limit=options.retry_rejected,
        memory_growth=options.memory_growth,
    )


def after_items(options: TaskOptions) -> list[int | str]:
    """List what a task comes after, whichever way it was written."""
    return options.after if isinstance(options.after, list) else [options.after]


def existing_ids(options: TaskOptions) -> list[int]:
    """List the ids in `after`; names are left out. Text such as "3-5" means ids. Raises ValueError."""
    ids: list[int] = []
    for item in after_items(options):
        if isinstance(item, int):
            if not 1 <= item <= ID_MAX:
                raise ValueError(f"after: {item} is no id of a task")
            ids.append(item)
        elif item[:1].isdigit():
            ids.extend(parse_ids(item))
    return ids


def make_entries(options: TaskOptions, spec: int, after: list[int]) -> Iterator[TaskEntry]:
    """Yield the tasks of one spec: one, or one for each number of an array or line of a file.

    A key is made different for each by its number. Raises ValueError, and OSError for the file of lines.
    """
    if options.array is not None and options.each_line is not None:
        raise ValueError("array and each-line cannot be used together")
    if options.array is None and options.each_line is None:
        yield TaskEntry(spec=spec, key=options.key, after=after)
        return
    for number, argument in _items(options):
        key = None if options.key is None else f"{options.key}/{number}"
        yield TaskEntry(spec=spec, argument=argument, key=key, after=after)


def _items(options: TaskOptions) -> Iterator[tuple[int, bytes]]:
    if options.array is not None:
        numbers = parse_numbers(options.array) if isinstance(options.array, str) else options.array
        if not numbers:
            raise ValueError("array has no numbers")
        for number in numbers:
            yield number, str(number).encode()
        return
    assert options.each_line is not None
    count = 0
    with Path(options.each_line).open("rb") as file:
        for number, line in enumerate(file, 1):
            # An empty line is how an editor ends a file, not a task.
            if item := line.rstrip(b"\r\n"):
                count += 1
                if count > ARRAY_LENGTH_MAX:
                    raise ValueError(f"{options.each_line} has more than {ARRAY_LENGTH_MAX:,} lines")
                yield number, item
    if not count:
        raise ValueError(f"{options.each_line} has no lines")
