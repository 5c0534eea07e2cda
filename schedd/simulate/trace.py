"""Traces: what was submitted when, and how long it ran, as rows of one shape, read from files of several layouts.

The canonical CSV has the columns `submit_s, kind, runtime_s` or, in place of the last, one `runtime_s.<model>` for each
device model, and any of `num_gpus, gpu_memory_gb, gpu_fraction, cpus, ram_gb, priority, after, estimated_time_s,
deadline_s`. `after` has row numbers, the first being 0, with spaces between them. An empty cell is a value that is not
given; an empty runtime of a model: it does not run there.

Other layouts are known by their columns, or named: SWF (the Standard Workload Format of the Parallel Workloads
Archive), the GPU traces of Muri (SIGCOMM 2022), Philly and Alibaba's openb (2023), jobs of Gavel (OSDI 2020) with their
throughputs beside them, bags with a runtime for each model (`<model>_s`), the learning curves of LCBench and LCDB, and
tables of training times. Files may be compressed with gzip.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from functools import lru_cache, partial
from pathlib import Path

from msgspec import Struct, structs

from schedd.core.model import TaskRequirements
from schedd.errors import TraceError
from schedd.simulate.files import text_of
from schedd.simulate.layouts import SPEED_COLUMNS, Speeds, columns_of, no_trace, table, unknown

MIB_PER_GB = 1024.0
#: What Muri adds to each iteration when it replays its traces.
MURI_OVERHEAD = 1.015
#: Length that the published experiments give to jobs of unknown length.
SWF_UNKNOWN_S = 10.0
#: Three hundred years: what is later or longer was not meant in seconds.
SECONDS_MAX = 1e10

#: How near a column has to come to the name of another to be taken for it, misspelt: `num_gpu`, `Priority`, `runtime`.
MISSPELT = 0.75

#: Rows that ask for the same share one object, and what the simulator works out of it; so many are told apart at once.
SHARED_MAX = 4096

Row = Mapping[str, str]

#: `TaskRequirements`, the same object for the same values.
_asked = lru_cache(SHARED_MAX)(TaskRequirements)


class TraceTask(Struct, frozen=True):
    """One task of a trace. `runtimes`: seconds by device model; empty: `runtime_s` wherever it runs.

    failures: its first attempts end in errors, after these shares of its runtime. fails: so does its last, at its end.
    """

    submit_s: float
    kind: str
    runtime_s: float
    requirements: TaskRequirements
    runtimes: dict[str, float] = {}
    priority: float = 0.0
    after: tuple[int, ...] = ()
    deadline_s: float | None = None
    failures: tuple[float, ...] = ()
    fails: bool = False

    def runtime_on(self, model: str) -> float:
        """Seconds that it takes on a device model. Raises KeyError where it does not run there."""
        return self.runtimes[model] if self.runtimes else self.runtime_s


#: Makes a task of a row and the columns of its file. Raises ValueError.
Read = Callable[[Row, Sequence[str]], TraceTask]


class Trace(Struct, frozen=True):
    """Tasks in the order of their submission. `after` of a task counts in this order.

    remarks: what was in the file and is not in the tasks, for people.
    """

    format: str
    tasks: list[TraceTask]
    remarks: tuple[str, ...] = ()


def read_trace(
    path: str | Path,
    format: str = "auto",  # noqa: A002 - it is the option's name
    speeds: Speeds | None = None,
) -> Trace:
    """Read a trace; `speeds` are for jobs that say how many steps they are, and not how long they take.

    Raises TraceError, with file and line, for what it cannot make sense of.
    """
    path = Path(path)
    is_swf = format == "swf" or (format == "auto" and ".swf" in path.name)
    text = text_of(path, is_swf=is_swf)
    if is_swf or (format == "auto" and text.startswith(";")):
        tasks, remarks = _swf(path, text)
        return _in_order(path, "swf", tasks, remarks)
    reader = table(text)
    columns = columns_of(path, reader)
    name = _named(format, columns) if format != "auto" else _recognise(path, text, columns)
    if name not in LAYOUTS:
        raise TraceError(f"no such format {name!r}", f"one of auto, swf, {', '.join([*LAYOUTS, *ALIASES])}")
    layout = LAYOUTS[name]
    missing = [column for column in layout.needs if column not in columns]
    if missing:
        raise TraceError(f"{path}: a trace of format {name} has a column {missing[0]!r}; here are {columns}")
    if name == "bag" and not _models_of(tuple(columns), _BAG_RUNTIME):
        raise TraceError(f"{path}: a trace of format bag has a column MODEL_s for each model; here are {columns}")
    if name == "gavel_jobs" and speeds is None:
        hint = f"give --throughputs FILE: {', '.join(SPEED_COLUMNS)}"
        raise TraceError(f"{path} has jobs with a number of steps, and not how long a step takes", hint)
    if name != "gavel_jobs" and speeds is not None:
        raise TraceError(f"{path} says how long its tasks take", "--throughputs are for jobs with steps: gavel_jobs")
    remarks = _unused(path, layout, columns)
    read = layout.read if speeds is None else partial(_gavel_job, speeds)
    tasks = _rows(path, reader, columns, read, layout.last_of)
    if name == "openb" and (timeless := sum(not task.runtime_s for task in tasks)):
        remarks += (f"{path}: taken for 0 s: {timeless:,} pods without a time to run",)
    return _in_order(path, name, tasks, remarks)


def _unused(path: Path, layout: Layout, columns: Sequence[str]) -> tuple[str, ...]:
    """Say which columns nothing is read from. Raises TraceError for one of the canonical ones that is misspelt."""
    unused = [column for column in columns if column and not layout.reads(column)]
    if layout.read is _canonical:
        absent = [column for column in layout.may if column not in columns]
        for column in unused:
            if near := get_close_matches(column.lower(), absent, 1, MISSPELT):
                hint = f"did you mean {near[0]!r}? the columns are {', '.join(layout.may)}"
                raise TraceError(f"{path} has a column {column!r}, which is none of a trace", hint)
    return (f"{path}: not used are the columns {', '.join(unused)}",) if unused else ()


def _rows(path: Path, reader: csv.DictReader[str], columns: Sequence[str], read: Read, last_of: str) -> list[TraceTask]:
    tasks: list[TraceTask] = []
    places: dict[str, int] = {}
    try:
        for row in reader:
            if None in row:
                raise ValueError(f"it has more cells than there are columns, which are {len(columns)}")
            task = read(row, columns)
            _must_be_sane(task)
            place = places.setdefault(row[last_of] or "", len(tasks)) if last_of else len(tasks)
            if place == len(tasks):
                tasks.append(task)
            elif task.runtime_s > tasks[place].runtime_s:
                tasks[place] = task
    except (ValueError, TypeError, AttributeError, csv.Error) as error:
        raise TraceError(f"{path}, line {reader.line_num}: {error}") from None
    return tasks


def _must_be_sane(task: TraceTask) -> None:
    """Raise ValueError for times that are no seconds."""
    longest = max(task.runtimes.values(), default=task.runtime_s)
    if not (0 <= task.submit_s <= SECONDS_MAX and 0 <= longest <= SECONDS_MAX):
        raise ValueError(f"submit and runtime are {task.submit_s:g} and {longest:g}, which cannot be seconds")


def part_of(trace: Trace, rows: slice) -> Trace:
    """Some tasks of a trace, in its order; those they came `after` that are left out are done. Raises TraceError."""
    places = {row: place for place, row in enumerate(range(len(trace.tasks))[rows])}
    if not places:
        raise TraceError(f"no row is left of {len(trace.tasks):,}")
    return Trace(
        trace.format,
        [
            structs.replace(task, after=tuple(places[other] for other in task.after if other in places))
            for task in trace.tasks[rows]
        ],
        trace.remarks,
    )


def _in_order(path: Path, name: str, tasks: list[TraceTask], remarks: tuple[str, ...] = ()) -> Trace:
    """Sort by submission, ties as in the file, and let `after` follow. Raises TraceError."""
    if not tasks:
        raise TraceError(f"{path}: the trace has no tasks", "; ".join(remarks))
    order = sorted(range(len(tasks)), key=lambda i: tasks[i].submit_s)
    places = {row: place for place, row in enumerate(order)}
    rows = []
    for place, row in enumerate(order):
        task = tasks[row]
        if task.after:
            after = tuple(places.get(other, len(tasks)) for other in task.after)
            if max(after) >= place:
                wrong = task.after[after.index(max(after))]
                raise TraceError(
                    f"{path}: after of row {row} names row {wrong}, which is not submitted before it",
                    "the row below the header is row 0, and of rows with one submit_s the upper one is first",
                )
            task = TraceTask(
                task.submit_s,
                task.kind,
                task.runtime_s,
                task.requirements,
                task.runtimes,
                task.priority,
                after,
                task.deadline_s,
            )
        rows.append(task)
    return Trace(name, rows, remarks)


# ------------------------------------------------------------------------------------------------------------- values


def _number(row: Row, column: str, default: float | None = None) -> float:
    """The value of a cell, 0 or more. Raises ValueError."""
    text = _text(row, column)
    if not text and default is not None:
        return default
    value = _parsed(column, text)
    if not 0 <= value < math.inf:
        raise ValueError(f"{column} is {text}, which is below 0 or not finite")
    return value


def _parsed(column: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{column} is {text!r}, not a number") from None


def _finite(column: str, text: str) -> float:
    value = _parsed(column, text)
    if not math.isfinite(value):
        raise ValueError(f"{column} is {value}")
    return value


def _row_number(text: str) -> int:
    """The number of a row; 0.0 is 0, as some write a column of which cells are empty. Raises ValueError."""
    value = _finite("after", text)
    if value < 0 or value != int(value):
        raise ValueError(f"after is {text!r}, not the number of a row")
    return int(value)


def _optional(row: Row, column: str) -> float | None:
    return _number(row, column) if (row.get(column) or "").strip() else None


def _text(row: Row, column: str, default: str = "") -> str:
    return (row.get(column) or "").strip() or default


def _needs(gpus: float, runtimes: dict[str, float], models: Sequence[str], **amounts: float | None) -> TaskRequirements:
    """Requirements of a task; where it does not run on all models, as variants of those on which it does."""
    given = {name: value for name, value in amounts.items() if value is not None}
    if len(runtimes) == len(models):
        return _asked(min_gpus=gpus, **given)
    if not runtimes:
        raise ValueError("it runs on no model")
    return _asked_on(tuple(runtimes), min_gpus=gpus, **given)


@lru_cache(SHARED_MAX)
def _asked_on(models: tuple[str, ...], **amounts: float) -> TaskRequirements:
    """Requirements of a task that any of these models will do for."""
    first, *others = (TaskRequirements(gpu_model=model, **amounts) for model in models)  # type: ignore[arg-type]
    return structs.replace(first, variants=tuple(others))


# ------------------------------------------------------------------------------------------------------------ layouts

_MODEL_RUNTIME = re.compile(r"runtime_s\.(.+)")
_BAG_RUNTIME = re.compile(
    r"(?!(?i:submit|deadline|duration|runtime|estimated_time|traintime|train_time|cum_time|latency|start|end|wait)_s)(.+)_s"
)
_TRAINING = re.compile(r"train_time_s(_\d+)?")


def _by_model(row: Row, columns: Sequence[str], pattern: re.Pattern[str]) -> tuple[dict[str, float], list[str]]:
    found = _models_of(tuple(columns), pattern)
    runtimes = {model: value for column, model in found.items() if (value := _optional(row, column)) is not None}
    return runtimes, list(found.values())


@lru_cache(16)
def _models_of(columns: tuple[str, ...], pattern: re.Pattern[str]) -> dict[str, str]:
    """The model that a column has the runtimes of, by column."""
    return {column: match[1] for column in columns if (match := pattern.fullmatch(column))}


def _canonical(row: Row, columns: Sequence[str]) -> TraceTask:
    runtimes, models = _by_model(row, columns, _MODEL_RUNTIME)
    estimated = _optional(row, "estimated_time_s")
    requirements = _needs(
        _gpus(row, 1.0 if models else 0.0),
        runtimes,
        models,
        min_memory=_optional(row, "gpu_memory_gb"),
        cpus=_optional(row, "cpus"),
        ram=_optional(row, "ram_gb"),
        estimated_time=estimated,
    )
    runtime = _number(row, "runtime_s") if not models else 0.0
    priority = _finite("priority", _text(row, "priority", "0"))
    after = tuple(_row_number(part) for part in _text(row, "after").split())
    deadline = _optional(row, "deadline_s")
    submit = _number(row, "submit_s", 0.0)
    kind = _text(row, "kind", "task")
    return TraceTask(submit, kind, runtime, requirements, runtimes, priority, after, deadline)


def _gpus(row: Row, default: float) -> float:
    """Devices, or a share of one; whoever asks for memory of one asks for one. Raises ValueError."""
    fraction, memory = _number(row, "gpu_fraction", 0.0), _number(row, "gpu_memory_gb", 0.0)
    gpus = _number(row, "num_gpus", max(default, 1.0 if memory else 0.0))
    if not fraction:
        return gpus
    if fraction > 1:
        raise ValueError(f"gpu_fraction is {fraction:g}, which is more than one device")
    if fraction < 1 < gpus:
        raise ValueError(f"num_gpus is {gpus:g} and gpu_fraction {fraction:g}: a share is of one device")
    return fraction if fraction < 1 else max(gpus, 1.0)


def _bag(row: Row, columns: Sequence[str]) -> TraceTask:
    runtimes, models = _by_model(row, columns, _BAG_RUNTIME)
    requirements = _needs(1.0, runtimes, models)
    kind = _text(row, "kind", "task")
    deadline = _optional(row, "deadline_s")
    return TraceTask(_number(row, "submit_s", 0.0), kind, 0.0, requirements, runtimes, deadline_s=deadline)


def _muri(row: Row, columns: Sequence[str]) -> TraceTask:
    runtime = _number(row, "iterations") * _number(row, "iteration_ms") * MURI_OVERHEAD / 1000
    gpus = _number(row, "num_gpu")
    return TraceTask(_number(row, "submit_s"), _text(row, "model", "task"), runtime, _asked(min_gpus=gpus))


def _philly(row: Row, columns: Sequence[str]) -> TraceTask:
    gpus = _number(row, "num_gpu")
    requirements = _asked(min_gpus=gpus)
    return TraceTask(_number(row, "submit_s"), _text(row, "vc", "task"), _number(row, "duration_s"), requirements)


def _openb(row: Row, columns: Sequence[str]) -> TraceTask:
    gpus, share = _number(row, "num_gpu"), _number(row, "gpu_milli") / 1000
    requirements = _asked_on(
        tuple(_text(row, "gpu_spec").split("|")),
        min_gpus=share if gpus == 1 and 0 < share < 1 else gpus,
        cpus=_number(row, "cpu_milli") / 1000,
        ram=_number(row, "memory_mib") / MIB_PER_GB,
    )
    created = _number(row, "creation_time", 0.0)
    runtime = max(0.0, _number(row, "deletion_time", 0.0) - created)
    return TraceTask(created, _text(row, "qos", "pod"), runtime, requirements)


def _gavel_job(speeds: Speeds, row: Row, columns: Sequence[str]) -> TraceTask:
    gpus = _number(row, "num_gpu")
    kind = _text(row, "job_type")
    runtimes = speeds.runtimes(kind, max(1, int(gpus)), _number(row, "steps"))
    requirements = _needs(gpus, runtimes, speeds.models)
    return TraceTask(_number(row, "submit_s"), kind, 0.0, requirements, runtimes)


def _lcdb(row: Row, columns: Sequence[str]) -> TraceTask:
    return TraceTask(0.0, _text(row, "learner", "task"), _number(row, "traintime_s"), _asked())


def _lcbench(row: Row, columns: Sequence[str]) -> TraceTask:
    return TraceTask(0.0, "train", _number(row, "cum_time_s"), _asked())


def _training(row: Row, columns: Sequence[str]) -> TraceTask:
    """The mean of the times that it took; the kind: what it depends on, where that is known."""
    times = [_number(row, column) for column in columns if _TRAINING.fullmatch(column) and _text(row, column)]
    if not times:
        raise ValueError("no train_time_s is given")
    kind = "train"
    if operations := _text(row, "ops"):
        kind = f"conv3x3={operations.count('3')},conv1x1={operations.count('2')}"
    elif batch := _text(row, "batch_size"):
        kind = f"batch_size={batch}"
    return TraceTask(0.0, kind, sum(times) / len(times), _asked())


class Layout(Struct, frozen=True):
    """How rows of a format are read, and the columns by which the format is known.

    last_of: of rows that are the same there, only the longest is a task. may: columns that are read where they are
    there. runtimes: how those look of which there are several.
    """

    needs: tuple[str, ...]
    read: Read
    last_of: str = ""
    may: tuple[str, ...] = ()
    runtimes: re.Pattern[str] | None = None

    def reads(self, column: str) -> bool:
        """Whether anything of a column comes into the tasks."""
        known = column in self.needs or column in self.may
        return known or (self.runtimes is not None and self.runtimes.fullmatch(column) is not None)


CANONICAL = (
    "submit_s", "kind", "runtime_s", "num_gpus", "gpu_fraction", "gpu_memory_gb", "cpus", "ram_gb", "priority", "after",
    "estimated_time_s", "deadline_s",
)  # fmt: skip
LAYOUTS = {
    "csv": Layout((), _canonical, may=CANONICAL, runtimes=_MODEL_RUNTIME),
    "muri": Layout(("iterations", "iteration_ms", "num_gpu", "submit_s", "model"), _muri),
    "openb": Layout(
        ("cpu_milli", "memory_mib", "num_gpu", "gpu_milli"),
        _openb,
        may=("gpu_spec", "qos", "creation_time", "deletion_time"),
    ),
    "philly": Layout(("submit_s", "duration_s", "num_gpu"), _philly, may=("vc",)),
    "lcdb": Layout(("learner", "traintime_s"), _lcdb),
    "lcbench": Layout(("config", "epoch", "cum_time_s"), _lcbench, "config"),
    "gavel_jobs": Layout(("job_type", "steps", "submit_s", "num_gpu"), partial(_gavel_job, Speeds())),
    "training": Layout((), _training, may=("ops", "batch_size"), runtimes=_TRAINING),
    "bag": Layout((), _bag, may=("submit_s", "kind", "deadline_s"), runtimes=_BAG_RUNTIME),
}
#: Other names of layouts, by the files that are known to have them; the first that suits a file is meant.
ALIASES = {
    "gavel": ("gavel_jobs", "bag"),
    "hydra": ("bag",),
    "nb201": ("training", "bag"),
    "fcnet": ("training",),
    "hpobench": ("training",),
}


def _named(format: str, columns: Sequence[str]) -> str:  # noqa: A002 - it is the option's name
    """The layout that is meant by a name."""
    *others, last = ALIASES.get(format, (format,))
    return next((name for name in others if _suits(name, columns)), last)


def _suits(name: str, columns: Sequence[str]) -> bool:
    if name == "training":
        return any(_TRAINING.fullmatch(column) for column in columns)
    needs = LAYOUTS[name].needs
    return bool(needs) and all(column in columns for column in needs)


def _recognise(path: Path, text: str, columns: Sequence[str]) -> str:
    if "runtime_s" in columns or any(_MODEL_RUNTIME.fullmatch(column) for column in columns):
        return "csv"
    for name in LAYOUTS:
        if _suits(name, columns):
            return name
    if (error := no_trace(path, columns)) is not None:
        raise error
    if any(_BAG_RUNTIME.fullmatch(column) for column in columns):
        return "bag"
    raise unknown(path, text, columns)


def _swf(path: Path, text: str) -> tuple[list[TraceTask], tuple[str, ...]]:
    """The jobs of a log, and what is to be said of the others."""
    tasks = []
    left_out = unknown_length = 0
    for number, line in enumerate(text.splitlines(), 1):
        fields = line.split()
        if not fields or fields[0].startswith(";"):
            continue
        try:
            submit, runtime, requested = (float(fields[i]) for i in (1, 3, 8))
            processors = max(int(fields[4]), int(fields[7]))
        except (IndexError, ValueError):
            raise TraceError(f"{path}, line {number}: not a job of the Standard Workload Format") from None
        if runtime == 0 or processors <= 0:
            left_out += 1
            continue
        if runtime < 0:
            unknown_length += 1
            runtime = SWF_UNKNOWN_S
        estimated = runtime if requested <= 0 else requested
        try:
            requirements = _asked(cpus=processors, estimated_time=estimated)
            task = TraceTask(submit, "job", runtime, requirements)
            _must_be_sane(task)
        except ValueError as error:
            raise TraceError(f"{path}, line {number}: {error}") from None
        tasks.append(task)
    remarks = []
    if left_out:
        remarks.append(f"{path}: left out: {left_out:,} jobs that took no time, or had no processors")
    if unknown_length:
        remarks.append(f"{path}: taken for {SWF_UNKNOWN_S:g} s: {unknown_length:,} jobs of unknown length")
    return tasks, tuple(remarks)
