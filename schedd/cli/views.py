"""What tasks, jobs and workers look like: rows for tables, plain values for JSON. Pure."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec

from schedd.cli.output import Column
from schedd.cli.values import write_duration
from schedd.core.model import SECOND, CauseLimit, Command, Payload, TaskRequirements
from schedd.wire.messages import AttemptRecord, JobView, QuarantineView, ShadowView, TaskDetail, TaskView, WorkerView
from schedd.wire.raised import decode_raised

TASK_COLUMNS = [
    Column("id", right=True),
    Column("job", fold=True),
    Column("kind", fold=True),
    Column("state"),
    Column("prio", right=True),
    Column("worker", fold=True),
    Column("time", right=True),
    Column("about", fold=True),
]
#: After the id, where there are users.
OWNER_COLUMN = Column("owner", fold=True)
JOB_COLUMNS = [
    Column("job", fold=True),
    Column("tasks", right=True),
    Column("done", right=True),
    Column("running", right=True),
    Column("waiting", right=True),
    Column("failed", right=True),
    Column("cancelled", right=True),
    Column("time", right=True),
]
WORKER_COLUMNS = [
    Column("worker", fold=True),
    Column("status"),
    Column("cpus", right=True),
    Column("gpus", right=True),
    Column("model", fold=True),
    Column("running", right=True),
    Column("backlog", right=True),
    Column("done", right=True),
    Column("failed", right=True),
    Column("seen", right=True),
]

HISTORY_COLUMNS = [
    Column("id", right=True),
    Column("job", fold=True),
    Column("kind", fold=True),
    Column("state"),
    Column("worker", fold=True),
    Column("ended"),
    Column("time", right=True),
    Column("about", fold=True),
]
ATTEMPT_COLUMNS = [
    Column("id", right=True),
    Column("attempt", right=True),
    Column("job", fold=True),
    Column("kind", fold=True),
    Column("cause"),
    Column("worker", fold=True),
    Column("ended"),
    Column("time", right=True),
    Column("about", fold=True),
]

#: States in which a task has not been dispatched.
BEFORE_DISPATCH = ("held", "waiting", "delayed", "queued")


def task_time(task: TaskView, now: float) -> str:
    """Write how long a task ran, runs, or waits."""
    if task.started_at is not None:
        return write_duration((task.finished_at or now) - task.started_at)
    return write_duration((task.finished_at or now) - task.submitted_at)


def progress(task: TaskView) -> str:
    """Write what a task last reported."""
    report = task.report or {}
    return " ".join(f"{name}={f'{value:.4g}' if isinstance(value, float) else value}" for name, value in report.items())


def task_row(task: TaskView, now: float) -> list[str]:
    """Make a row for `TASK_COLUMNS`."""
    state = f"{task.state} ({task.cause})" if task.cause not in (None, "ok", task.state) else task.state
    return [
        str(task.id),
        task.job,
        task.kind,
        state,
        f"{task.importance:g}",
        task.worker or "",
        task_time(task, now),
        task.message.partition("\n")[0] or ("" if task.finished_at else progress(task)),
    ]


def history_row(task: TaskView) -> list[str]:
    """Make a row for `HISTORY_COLUMNS`."""
    number, job, kind, state, _, worker, time, about = task_row(task, task.finished_at or 0.0)
    return [number, job, kind, state, worker, clock(task.finished_at), time, about]


def attempt_row(task: TaskView, record: AttemptRecord) -> list[str]:
    """Make a row for `ATTEMPT_COLUMNS`."""
    began = record.started_at_ns
    return [
        str(task.id),
        str(record.attempt),
        task.job,
        task.kind,
        str(record.cause),
        record.worker_id,
        clock(_seconds(record.finished_at_ns)),
        write_duration((record.finished_at_ns - began) / SECOND) if began else "",
        record.message.partition("\n")[0],
    ]


def job_row(job: JobView, now: float) -> list[str]:
    """Make a row for `JOB_COLUMNS`."""
    states = job.states
    running = states.get("running", 0) + states.get("assigned", 0) + states.get("revoking", 0)
    return [
        job.name or "(none)",
        str(job.total),
        str(states.get("succeeded", 0)),
        str(running),
        str(sum(states.get(state, 0) for state in BEFORE_DISPATCH)),
        str(states.get("failed", 0)),
        str(states.get("cancelled", 0)),
        write_duration((job.finished_at or now) - job.submitted_at),
    ]


def gpu_count(worker: WorkerView) -> int:
    """Count the devices that a worker declares."""
    return len(worker.resources.gpus) or worker.resources.num_gpus


def gpu_models(worker: WorkerView) -> str:
    """Name the models of a worker's devices, each once."""
    return ", ".join(dict.fromkeys(gpu.model for gpu in worker.resources.devices() if gpu.model))


def worker_row(worker: WorkerView) -> list[str]:
    """Make a row for `WORKER_COLUMNS`; cpus and gpus as reserved/capacity."""
    return [
        worker.name,
        worker.status,
        f"{worker.reserved_cpus:g}/{worker.resources.cpus:g}",
        f"{worker.reserved_gpus:g}/{gpu_count(worker)}",
        gpu_models(worker),
        str(worker.running),
        str(worker.backlog),
        str(worker.finished),
        str(worker.failed),
        write_duration(worker.last_seen_s),
    ]


def quarantine(view: QuarantineView, now: float) -> str:
    """Write why a worker is in quarantine, and what comes next."""
    wait_s = view.probe_at - now
    times = f", found bad {view.repeats} times" if view.repeats > 1 else ""
    return f"{view.reason}{times}; tried again {f'in {write_duration(wait_s)}' if wait_s > 0 else 'when a task suits'}"


def text_or_base64(data: bytes) -> Any:
    """Make a JSON value of bytes: their text, or where they are none, their size and base64."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"bytes": len(data), "base64": base64.b64encode(data).decode()}


def readable(result: bytes | None) -> Any:
    """Make a JSON value of a result: the JSON in it, else as `text_or_base64`."""
    if result is None:
        return None
    try:
        return msgspec.json.decode(result)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return text_or_base64(result)


def _payload(payload: Payload | None) -> dict[str, Any]:
    match payload:
        case None:
            return {}
        case Command():
            return {
                "argv": payload.argv,
                "env": payload.env,
                "cwd": payload.cwd,
                "stdin": text_or_base64(payload.stdin),
                "variable": payload.variable,
            }
        case _:
            return {"function": payload.path or {"bytes": len(payload.function)}}


def _seconds(instant_ns: int) -> float | None:
    return instant_ns / SECOND if instant_ns else None


def attempts(records: Sequence[AttemptRecord]) -> list[dict[str, Any]]:
    """List the attempts that have ended, with times in seconds since the epoch."""
    return [
        {
            "attempt": record.attempt,
            "worker": record.worker_id,
            "dispatched_at": _seconds(record.dispatched_at_ns),
            "started_at": _seconds(record.started_at_ns),
            "finished_at": _seconds(record.finished_at_ns),
            "cause": record.cause,
            "exit_code": record.exit_code,
            "signal": record.signal,
            "message": record.message,
            "devices": record.devices,
            "excused": record.excused,
        }
        for record in records
    ]


def task_with_detail(task: TaskView, detail: TaskDetail) -> dict[str, Any]:
    """Make the JSON object of `show`: the keys of `tasks`, then the details."""
    raised = decode_raised(detail.result)
    return {
        **msgspec.structs.asdict(task),
        **_payload(detail.payload),
        "argument": text_or_base64(detail.argument),
        "requirements": every_field(detail.requirements),
        "rules": every_field(detail.rules),
        "after": detail.after,
        "missing": detail.missing,
        "attempts": attempts(detail.attempts),
        "devices": detail.devices,
        "not_before": detail.not_before,
        "limits": [msgspec.structs.asdict(limit) for limit in detail.limits],
        "result": readable(detail.result) if raised is None else None,
        "traceback": None if raised is None else raised.traceback,
    }


def by_name(value: Any) -> Any:
    """Make a JSON value in which every Struct is an object by its fields, also one that is an array on the wire."""
    if isinstance(value, msgspec.Struct):
        return {name: by_name(field) for name, field in msgspec.structs.asdict(value).items()}
    return [by_name(item) for item in value] if isinstance(value, (list, tuple)) else value


def every_field(struct: msgspec.Struct) -> dict[str, Any]:
    """List the fields of a Struct, defaults included, so that a reader need not know them."""
    fields = msgspec.structs.asdict(struct)
    if isinstance(struct, TaskRequirements):
        fields["variants"] = [every_field(variant) for variant in struct.variants]
    return fields


def clock(seconds: float | None) -> str:
    """Write an instant in local time, "-" where there is none."""
    return "-" if seconds is None else datetime.fromtimestamp(seconds).astimezone().isoformat(" ", "seconds")


def write_requirements(wanted: TaskRequirements) -> str:
    """Write requirements in the words of the command line, alternatives joined by "or"."""
    parts = [f"{wanted.cpus:g} cpus"]
    if wanted.min_gpus:
        memory = f" with {wanted.min_memory:g} GB" if wanted.min_memory else ""
        parts.append(f"{wanted.min_gpus:g} × {wanted.gpu_model or 'gpu'}{memory}")
    if wanted.ram:
        parts.append(f"{wanted.ram:g} GB ram")
    parts += [f"{name}={value}" for name, value in wanted.labels.items()]
    parts += [f"{value:g} {name}" for name, value in wanted.custom.items()]
    if wanted.estimated_time is not None:
        parts.append(f"about {write_duration(wanted.estimated_time)}")
    return ", or ".join([", ".join(parts), *map(write_requirements, wanted.variants)])


def write_limits(limits: Sequence[CauseLimit]) -> str:
    """Write how many retries are used up: "1 of 2 after error, 0 of 3 after lost"."""
    return ", ".join(f"{min(each.count, each.limit)} of {each.limit} after {each.cause}" for each in limits)


def shadow_pairs(shadow: ShadowView) -> list[tuple[str, str]]:
    """What a second policy would have done, a line for each figure."""
    share = f" ({shadow.agreed / shadow.decisions:.1%})" if shadow.decisions else ""
    count = max(1, shadow.valued)
    return [
        ("shadow", shadow.policy),
        ("decisions", f"{shadow.decisions:,}, of {shadow.passed_over:,} more it was not asked"),
        ("same worker", f"{shadow.agreed:,}{share}"),
        ("valued", f"{shadow.valued:,}"),
        ("gain, it believes", f"{shadow.gain_s:+,.1f} s, {shadow.gain_s / count:+,.2f} s each"),
        ("gain, as observed", f"{shadow.gain_observed_s:+,.1f} s, {shadow.gain_observed_s / count:+,.2f} s each"),
    ]


def write_map(values: Mapping[str, Any]) -> str:
    """Write `name=value` pairs in one line."""
    return " ".join(f"{name}={value}" for name, value in values.items())
