"""Between messages and the core: requests to events, actions to messages, rows to views. Decides nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from msgspec import structs

from schedd.core import effects as fx
from schedd.core import events as ev
from schedd.core.engine import Engine
from schedd.core.model import (
    SECOND,
    Call,
    Command,
    Instant,
    Payload,
    Running,
    Task,
    TaskId,
    WorkerId,
    WorkerInfo,
    WorkerStatus,
)
from schedd.core.needs import MB_PER_GB, WHOLE
from schedd.core.tasks import FINAL, RESULT_DROPPED, TRANSITIONS, Job
from schedd.core.verdicts import Quarantine
from schedd.wire import messages as m

#: The highest priority of a job is looked for among so many of its tasks: a listing must not cost a large job's time.
PRIORITIES_COMPARED_MAX = 1000
#: A view names at most so many of a worker's running tasks.
RUNNING_NAMED_MAX = 32
#: A dispatch goes on in another message above this many bytes of payloads and arguments.
DISPATCH_BYTES_MAX = 8 * 1024 * 1024
#: Ends of attempts of one worker that are taken in at a time: some 2 ms of work, with what is placed in their stead.
ENDS_PER_PORTION = 64
#: In place of the number of a batch of ends: there is more of it. No peer can send such a number.
MORE_TO_COME = 1 << 64


# ------------------------------------------------------------------------------------------------- messages to events


def request_event(request: m.ClientRequest, origin: int, owner: str = "", user: str | None = None) -> ev.Event | None:
    """The event of a request that wants a change; None for one that only reads. owner, user: see `core.events`."""
    match request:
        case m.Submit():
            return ev.SubmitTasks(
                origin,
                request.specs,
                request.tasks,
                request.strict,
                request.client,
                request.number,
                request.answered,
                owner,
                user,
            )
        case m.CancelTasks():
            return ev.CancelTasks(origin, request.selection, request.started, user)
        case m.PreemptTasks():
            return ev.PreemptTasks(origin, request.selection, request.grace_s, user)
        case m.HoldTasks():
            return ev.HoldTasks(origin, request.selection, user)
        case m.ReleaseTasks():
            return ev.ReleaseTasks(origin, request.selection, user)
        case m.SetTasks():
            return ev.SetTasks(origin, request.selection, request.priority, request.requirements, user)
        case m.SetPriorities():
            return ev.SetPriorities(origin, request.priorities, user)
        case m.DrainWorkers():
            return ev.DrainWorkers(origin, request.workers, request.undo, request.leave)
        case _:
            return None


def joined_event(hello: m.WorkerHello) -> ev.WorkerJoined:
    """The event of a worker's greeting."""
    return ev.WorkerJoined(hello.name, hello.incarnation, hello.resources, hello.holds, hello.host, hello.pid)


def portions(messages: Iterable[m.FromWorker]) -> Iterator[m.FromWorker]:
    """The messages of a worker, ends in portions, of which all but the last say that there are more.

    Each makes room for another task, and what a large worker kept for us is no reason to keep others waiting.
    """
    for message in messages:
        if not isinstance(message, m.AttemptsFinished) or len(message.attempts) <= ENDS_PER_PORTION:
            yield message
            continue
        last = (len(message.attempts) - 1) // ENDS_PER_PORTION * ENDS_PER_PORTION
        for first in range(0, last, ENDS_PER_PORTION):
            yield m.AttemptsFinished(MORE_TO_COME, message.attempts[first : first + ENDS_PER_PORTION])
        yield m.AttemptsFinished(message.seq, message.attempts[last:])


def worker_event(worker_id: WorkerId, message: m.FromWorker) -> ev.Event | None:
    """The event of a worker's message; None for one that the shell answers by itself."""
    match message:
        case m.AttemptsFinished():
            return ev.AttemptsFinished(worker_id, message.attempts)
        case m.AttemptsStarted():
            return ev.AttemptsStarted(worker_id, message.attempts)
        case m.AttemptReports():
            return ev.AttemptsReported(worker_id, message.reports)
        case m.RevokeAnswers():
            return ev.RevokesAnswered(worker_id, message.answers)
        case m.Heartbeat():
            return ev.Heartbeat(worker_id, message.usage)
        case m.WorkerDraining():
            return ev.WorkerDraining(worker_id, message.handed_back)
        case m.WorkerGoodbye():
            return ev.WorkerLeft(worker_id, message.reason[:200])
        case _:
            return None


# ------------------------------------------------------------------------------------------------- actions to messages


def dispatch_messages(tasks: list[Task], epoch: int = 0) -> list[m.Dispatch]:
    """Write the current attempts of rows, in as many messages as frames can hold.

    What attempts of one message have in common is written once.
    """
    messages: list[m.Dispatch] = []
    specs: list[m.WireSpec] = []
    attempts: list[m.WireAttempt] = []
    index_of: dict[tuple[int, int, int, str, str, int], int] = {}
    size = 0
    for task in tasks:
        key = (id(task.payload), id(task.requirements), id(task.rules), task.kind, task.job, task.defined_ns)
        index = index_of.get(key)
        size += len(task.argument) + (_payload_bytes(task.payload) if index is None else 0)
        if size > DISPATCH_BYTES_MAX and attempts:
            messages.append(m.Dispatch(specs, attempts))
            specs, attempts, index_of, index = [], [], {}, None
            size = len(task.argument) + _payload_bytes(task.payload)
        if index is None:
            index = index_of[key] = len(specs)
            payload = task.payload
            if payload is None:
                raise ValueError(f"task {task.id} has no payload")
            common = (payload, task.requirements, task.rules, task.kind, task.job)
            specs.append(m.WireSpec(*common, task.defined_ns, epoch))
        attempts.append(m.WireAttempt(task.id, task.attempt, index, task.argument, task.variant))
    messages.append(m.Dispatch(specs, attempts))
    return messages


def _payload_bytes(payload: Payload | None) -> int:
    """About how long a payload is on the wire; never much shorter than it is."""
    match payload:
        case Call():
            return len(payload.function) + 4 * len(payload.path)
        case Command():
            words = sum(map(len, payload.argv)) + sum(len(k) + len(v) for k, v in payload.env.items())
            return len(payload.stdin) + 4 * words + 16 * (len(payload.argv) + len(payload.env))
        case None:
            return 0


def worker_messages(action: fx.Action) -> Sequence[Any]:
    """The messages of an action for a worker."""
    match action:
        case fx.DispatchAttempts():
            return dispatch_messages(action.tasks, action.epoch)
        case fx.StopAttempts():
            return (m.StopAttempts(action.attempts, action.cause, action.grace_s),)
        case fx.RevokeAttempts():
            return (m.RevokeAttempts(action.attempts),)
        case fx.DropAttempts():
            return (m.DropAttempts(action.attempts),)
        case fx.DrainWorker():
            return (m.DrainWorker(),)
        case _:
            raise TypeError(f"{type(action).__name__} is not for a worker")


# --------------------------------------------------------------------------------------------------------------- views


def _seconds(instant: Instant) -> float | None:
    return instant / SECOND if instant else None


def task_done(task: Task, with_result: bool, fetched: bytes | None = None) -> m.TaskDone:
    """What a watcher hears of a final task; `fetched`: its result, where that was on disk only."""
    last = task.attempts[-1] if task.attempts else None
    result = fetched or task.result
    dropped = result is not None and result == RESULT_DROPPED
    return m.TaskDone(
        task.id,
        task.state.name,
        _cause(task) or "",
        result if with_result and not dropped else None,
        last.message if last is not None else "",
        last.exit_code if last is not None else None,
        last.worker_id if last is not None else "",
        task.attempt,
        not dropped,
    )


def _cause(task: Task) -> str | None:
    """Why the last attempt ended; for a task that was cancelled before its first, that."""
    if task.attempts:
        return str(task.attempts[-1].cause)
    return "cancelled" if task.state.name == "cancelled" else None


def task_view(task: Task, promotes: bool = True) -> m.TaskView:
    """What listings show of a task."""
    last = task.attempts[-1] if task.attempts else None
    state = task.state
    final = type(state) in FINAL
    started = state.started_at_ns if isinstance(state, Running) else (last.started_at_ns if final and last else 0)
    return m.TaskView(
        id=task.id,
        key=task.key,
        job=task.job,
        kind=task.kind,
        state=state.name,
        cause=_cause(task),
        priority=task.priority,
        attempt=task.attempt,
        worker=task.worker_id or None,
        exit_code=last.exit_code if last is not None else None,
        submitted_at=task.submitted_ns / SECOND,
        started_at=_seconds(started),
        finished_at=_seconds(getattr(state, "at_ns", 0)) if final else None,
        message=getattr(state, "reason", "") or (last.message if last is not None else ""),
        report={"step": task.report.step, **task.report.metrics} if task.report is not None else None,
        promoted=task.promoted if promotes else None,
        owner=task.owner,
    )


def task_detail(engine: Engine, task: Task, fetched: bytes | None = None) -> m.TaskDetail:
    """What `show` adds; `fetched`: the result, where that was on disk only."""
    worker = engine.resources.workers.get(task.worker_id) if task.worker_id else None
    devices = []
    if worker is not None and worker.ledger is not None and task.reserved:
        devices = [worker.ledger.devices[i].uuid for i in task.devices]
    return m.TaskDetail(
        payload=task.payload,
        argument=task.argument,
        requirements=task.requirements,
        rules=task.rules,
        after=list(task.after),
        missing=sorted(engine.tasks.missing(task.id)),
        attempts=list(task.attempts),
        devices=devices,
        not_before=_seconds(task.not_before_ns),
        result=fetched or task.result or None,
        limits=engine.limits_of(task),
    )


def job_view(engine: Engine, job: Job) -> m.JobView:
    """What `jobs` shows of a job."""
    states = {kind.__name__.lower(): count for kind, count in job.counts.items() if count}
    done = sum(job.counts[kind] for kind in FINAL) == len(job.members)
    rows = (engine.tasks.rows[task_id] for task_id in islice(job.members, PRIORITIES_COMPARED_MAX))
    return m.JobView(
        name=job.name,
        total=len(job.members),
        states=states,
        priority_max=max(row.priority for row in rows),
        submitted_at=job.submitted_ns / SECOND,
        finished_at=_seconds(job.finished_ns) if done else None,
        held_kinds={hold.kind: hold.reason for hold in engine.holds_of(job.name)},
    )


def worker_view(engine: Engine, worker: WorkerInfo, now: Instant) -> m.WorkerView:
    """What `workers` shows of a worker."""
    ledger, resources = worker.ledger, worker.resources
    if ledger is None or resources is None:
        raise ValueError(f"worker {worker.worker_id!r} has declared nothing")
    return m.WorkerView(
        name=worker.worker_id,
        status=str(worker.status),
        host=worker.host,
        pid=worker.pid,
        resources=resources,
        reserved_cpus=(ledger.cpus - ledger.free_cpus) / WHOLE,
        reserved_ram_gb=(ledger.ram_mb - ledger.free_ram_mb) / MB_PER_GB,
        reserved_gpus=sum(WHOLE - device.free_share for device in ledger.devices) / WHOLE,
        running=worker.task_count,
        backlog=len(worker.task_queue),
        load=worker.load,
        finished=worker.finished_count,
        failed=worker.failed_count,
        joined_at=worker.joined_ns / SECOND,
        last_seen_s=(now - worker.last_seen_ns) / SECOND,
        usage=worker.usage,
        running_tasks=[TaskId(i) for i in list(worker.running)[:RUNNING_NAMED_MAX]],
        quarantine=_quarantine_view(engine.quarantine_of(worker.worker_id)),
        silence=worker.silence if worker.status == WorkerStatus.UNREACHABLE else "",
    )


def _quarantine_view(q: Quarantine | None) -> m.QuarantineView | None:
    if q is None:
        return None
    return m.QuarantineView(q.reason, q.since_ns / SECOND, q.probe_at_ns / SECOND, q.repeats)


def shadow_view(engine: Engine) -> m.ShadowView | None:
    """What the shadow would have done; None: there is none."""
    told = engine.shadow
    if told is None:
        return None
    return m.ShadowView(**structs.asdict(told))


def state_counts(engine: Engine) -> dict[str, int]:
    """Tasks by the name of their state."""
    return {kind.__name__.lower(): engine.tasks.counts[kind] for kind in TRANSITIONS}


def worker_counts(engine: Engine) -> dict[str, int]:
    """Workers by the name of their status."""
    counts: dict[str, int] = {}
    for worker in engine.resources:
        counts[str(worker.status)] = counts.get(str(worker.status), 0) + 1
    return counts


def steals_view(engine: Engine) -> m.StealsView:
    """What stealing has brought since the start."""
    totals = engine.steals.totals
    return m.StealsView(
        enabled=engine.is_stealing,
        threshold=engine.policy.threshold,
        tasks=engine.counters.steals,
        asked=totals.asked,
        refused=totals.refused,
        measured=totals.measured,
        unmeasured=totals.unmeasured,
        paid=totals.paid,
        known=totals.known,
        expected_s=totals.expected_s,
        real_of_known_s=totals.real_of_known_s,
        real_s=totals.real_s,
        recent=list(engine.steals.recent),
    )
