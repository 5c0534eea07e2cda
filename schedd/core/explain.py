"""Why a task is where it is: all blockers at once, each with the number of workers that it takes away."""

from __future__ import annotations

from msgspec import Struct

from schedd.core.effects import PreemptAsked
from schedd.core.model import (
    SECOND,
    Assigned,
    Blocker,
    Delayed,
    Held,
    Queued,
    Revoking,
    Running,
    Task,
    Waiting,
    WorkerInfo,
    WorkerStatus,
    WorkerVerdict,
)
from schedd.core.requests import blocker
from schedd.core.tables import Tables

#: Counting who is ahead walks the queue; beyond this the answer is "more than that many".
AHEAD_LOOKED_AT_MAX = 200_000
#: What begins the verdict of a worker that is free and that the policy does not use for the task.
LEFT_FOR = "left for"


class Explanation(Struct, frozen=True):
    """The answer to `explain`. `ahead`: waiting tasks with a better rank, None where that means nothing."""

    summary: str
    blockers: list[Blocker]
    workers: list[WorkerVerdict]
    ahead: int | None = None


def explain(t: Tables, task: Task) -> Explanation:
    """Explain the state of a task. O(workers), and O(queued) for the tasks ahead."""
    state = task.state
    match state:
        case Held(_, reason) if reason:
            hold = t.health.hold_of(task)
            due_s = max(0.0, (hold.probe_at_ns - t.now) / SECOND) if hold is not None else 0.0
            tried = f"one more task of it is tried in {due_s:.0f} s; `schedd release` lets this one go, or all"
            return Explanation(reason, [Blocker("its kind is held", detail=tried)], [])
        case Held():
            return Explanation("held until somebody releases it", [Blocker("held")], [])
        case Waiting():
            missing = sorted(t.tasks.missing(task.id))
            named = [Blocker(f"task {i}", detail=t.tasks.rows[i].state.name) for i in missing]
            return Explanation(f"waits for {len(missing)} task{'s' if len(missing) > 1 else ''} to succeed", named, [])
        case Delayed(until_ns):
            why = f"retry after {task.attempts[-1].cause}" if task.attempts else "delayed start"
            left = max(0.0, (until_ns - t.now) / SECOND)
            return Explanation(f"{why}, in {left:.1f} s", [Blocker(why, detail=f"{left:.1f} s left")], [])
        case Queued():
            return _explain_queued(t, task)
        case Assigned(worker_id):
            position = _position(t.resources.workers.get(worker_id), task)
            return _explain_assigned(t, task, f"dispatched to {worker_id}, {position}")
        case Running(worker_id, _, started_at_ns):
            running = f"running on {worker_id} for {(t.now - started_at_ns) / SECOND:.1f} s"
            return Explanation(running + _asked_of(t, task), [], [])
        case Revoking(worker_id, _, thief_id):
            return Explanation(f"moving from {worker_id} to {thief_id or 'the queue'}", [], [])
    last = task.attempts[-1] if task.attempts else None
    told = f": {last.message}" if last is not None and last.message else ""
    return Explanation(f"{state.name}{told}", [], [])


def _explain_assigned(t: Tables, task: Task, where: str) -> Explanation:
    """Say which attempts are being stopped for a task that has its place already. O(attempts that are)."""
    awaited = [
        Blocker(f"waits for task {asked.task_id} to stop", detail=_ago(t, asked))
        for asked in t.asked.values()
        if asked.for_id == task.id
    ]
    if not awaited or task.reserved:
        return Explanation(where + _asked_of(t, task), [], [])
    more = f" and {len(awaited) - 1} more" if len(awaited) > 1 else ""
    return Explanation(f"{where}; {awaited[0].reason}{more} ({awaited[0].detail})", awaited, [])


def _asked_of(t: Tables, task: Task) -> str:
    asked = t.preempting(task)
    if asked is None:
        return ""
    return f"; to make room{f' for task {asked.for_id}' if asked.for_id else ''} ({_ago(t, asked)})"


def _ago(t: Tables, asked: PreemptAsked) -> str:
    return f"asked {(t.now - asked.at_ns) / SECOND:.1f} s ago"


def _position(worker: WorkerInfo | None, task: Task) -> str:
    if worker is None or task.reserved:
        return "about to start"
    return f"number {list(worker.task_queue).index(task) + 1} of {len(worker.task_queue)} in its backlog"


def _explain_queued(t: Tables, task: Task) -> Explanation:
    verdicts = [WorkerVerdict(w.worker_id, _verdict(t, task, w)) for w in t.resources]
    counts: dict[str, int] = {}
    for verdict in verdicts:
        reason = _reason(verdict.verdict)
        counts[reason] = counts.get(reason, 0) + 1
    fits = counts.pop("fits now", 0)
    quarantined = counts.pop("quarantined", 0)
    blockers = [Blocker(reason, count) for reason, count in sorted(counts.items(), key=lambda c: (-c[1], c[0]))]
    if quarantined:
        blockers.insert(0, Blocker("quarantined", quarantined, _first_quarantine(verdicts)))
    ahead = _ahead(t, task)
    if ahead:
        blockers.append(Blocker("tasks ahead in the queue", detail=str(ahead)))
    first = f"{ahead} task{' goes' if ahead == 1 else 's go'} first"
    if t.awaited:
        names = ", ".join(sorted(t.awaited)[:5])
        blockers.insert(0, Blocker("the daemon has started anew and waits for workers to come back", detail=names))
        summary = f"the daemon has started anew and waits for {len(t.awaited)} workers to come back"
    elif t.queue.left_behind:
        summary = "the policy was changed: nothing is given out until all that waits stands in its new order"
    elif not verdicts:
        summary = "no worker is connected"
        blockers.insert(0, Blocker("no worker is connected"))
    elif fits:
        summary = f"{fits} of {len(verdicts)} workers could start it now; {first}"
    elif LEFT_FOR in counts:
        summary = (
            "the policy waits for a worker that is busy now and is expected to end it sooner than those that are free"
        )
    elif all(_could_never(t, task, w) for w in t.resources):
        summary = f"none of {len(verdicts)} workers could ever run it"
    else:
        summary = f"no room now on {len(verdicts)} worker{'s' if len(verdicts) > 1 else ''}; {first}"
    return Explanation(summary + (_promotion_of(task) if t.policy.promotes else ""), blockers, verdicts, ahead)


def _promotion_of(task: Task) -> str:
    """Say what its rank owes to the rule by metric."""
    if task.promoted is None:
        return ""
    level = task.priority + task.promoted
    return f"; its priority is {level:g}: {task.priority:g}, and {task.promoted:g} by a report of what it comes after"


def _could_never(t: Tables, task: Task, worker: WorkerInfo) -> bool:
    return task.request is None or not t.placer.possible(task.request, worker)


def _verdict(t: Tables, task: Task, worker: WorkerInfo) -> str:
    request, ledger = task.request, worker.ledger
    if request is None or ledger is None:
        return "has declared nothing"
    if impossible := blocker(request, worker):
        return impossible
    if worker.status == WorkerStatus.QUARANTINED:
        return f"quarantined: {worker.quarantine}"
    if not worker.accepts_work:
        return str(worker.status)
    shortages = [ledger.shortage(need) for need in request.needs if not ledger.blocker(need)]
    if "" not in shortages:
        return f"busy: {shortages[0]}"
    if worker.task_queue:
        return f"backlog: {len(worker.task_queue)} go first there"
    if t.placer.is_claimed(task, worker):
        return "claimed by a task that goes first and needs more"
    if left_for := t.policy.left_for(task, worker, t.now):
        return f"{LEFT_FOR} {left_for}"
    return "fits now"


def _reason(verdict: str) -> str:
    """The part of a verdict that workers have in common."""
    for prefix in ("busy", "backlog", "quarantined", LEFT_FOR):
        if verdict.startswith(prefix):
            return prefix
    return verdict


def _first_quarantine(verdicts: list[WorkerVerdict]) -> str:
    return next(v.verdict for v in verdicts if _reason(v.verdict) == "quarantined").partition(": ")[2]


def _ahead(t: Tables, task: Task) -> int:
    rank = t.queue.rank(task)
    ahead = 0
    for position, other in enumerate(t.queue):
        if position >= AHEAD_LOOKED_AT_MAX:
            break
        if t.queue.rank(other) < rank:
            ahead += 1
    return ahead
