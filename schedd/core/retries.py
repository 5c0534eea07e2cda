"""How attempts that did not go well are counted, and how often a task is tried again after them. Pure.

Each cause has its own count and its own limit: the task's where it gives one, else the configuration's. `ok` and
`cancelled` end a task, `preempted` counts against nobody.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from schedd.core.model import SECOND, AttemptRecord, Cause, CauseLimit, Instant, Task, TaskRules

#: The fields of `TaskRules` that may say the limit of a cause, the first one given counts.
_LIMITS: dict[Cause, tuple[str, ...]] = {
    Cause.ERROR: ("retries",),
    Cause.TIMEOUT: ("timeout_limit", "retries"),
    Cause.OOM_HOST: ("oom_limit",),
    Cause.OOM_GPU: ("oom_limit",),
    Cause.LOST: ("lost_limit",),
    Cause.REJECTED: ("rejected_limit",),
}
LIMITED = tuple(_LIMITS)
OUT_OF_MEMORY = frozenset({Cause.OOM_HOST, Cause.OOM_GPU})
#: A story names at most so many lost workers, the last ones.
LOST_NAMED_MAX = 10


class RetryRules(Struct, frozen=True):
    """What the configuration says: a limit for each cause, memory_growth as in `TaskRules`, pauses in seconds."""

    error: int = 0
    timeout: int = 0
    oom_host: int = 2
    oom_gpu: int = 2
    lost: int = 3
    rejected: int = 3
    memory_growth: float = 1.5
    delay_s: float = 1.0
    delay_max_s: float = 300.0

    def limit(self, cause: Cause, rules: TaskRules) -> int:
        """How often a task with these rules is tried again after a cause of `LIMITED`."""
        own = own_limit(cause, rules)
        default: int = getattr(self, cause.value)
        return default if own is None else own

    def growth(self, rules: TaskRules) -> float:
        """What memory is multiplied by for the attempt after one that ran out of it."""
        return self.memory_growth if rules.memory_growth is None else rules.memory_growth

    def span_s(self, rules: TaskRules, failures: int) -> float:
        """The longest pause after so many failures: min(cap, base * 2^(failures - 1)), in seconds."""
        base = self.delay_s if rules.retry_delay_s is None else rules.retry_delay_s
        return min(self.cap_s(rules), base * 2.0 ** min(failures - 1, 60))

    def cap_s(self, rules: TaskRules) -> float:
        """No pause is longer than this, in seconds."""
        return self.delay_max_s if rules.retry_delay_max_s is None else rules.retry_delay_max_s


def own_limit(cause: Cause, rules: TaskRules) -> int | None:
    """The limit that a task itself has for a cause; None: it says nothing."""
    name = _given_by(cause, rules)
    limit: int | None = getattr(rules, name) if name else None
    return limit


def _given_by(cause: Cause, rules: TaskRules) -> str:
    """Which field says the limit of a cause; "": none does."""
    return next((name for name in _LIMITS.get(cause, ()) if getattr(rules, name) is not None), "")


def blame(task: Task, cause: Cause) -> None:
    """Count an attempt that ended like this, where the cause has a limit."""
    if cause in _LIMITS:
        if task.blamed is None:
            task.blamed = {}
        task.blamed[cause] = task.blamed.get(cause, 0) + 1


def count_of(task: Task, cause: Cause) -> int:
    """How many attempts count against the limit of a cause: where a task gives one for several, all of these."""
    name = _given_by(cause, task.rules)
    if not name:
        return task.blamed_for(cause)
    return sum(task.blamed_for(each) for each in _LIMITS if _given_by(each, task.rules) == name)


def limits_of(task: Task, rules: RetryRules) -> list[CauseLimit]:
    """The limits that mean something to a task: its own, and those of what has happened to it."""
    return [
        CauseLimit(cause, task.blamed_for(cause), rules.limit(cause, task.rules))
        for cause in LIMITED
        if task.blamed_for(cause) or own_limit(cause, task.rules) is not None
    ]


def end_pause(task: Task) -> None:
    """Let a task that was released not wait for its next attempt: nobody lets go what should still wait."""
    if task.attempt:  # a delayed start is over then
        task.not_before_ns = 0


def used_up(task: Task, record: AttemptRecord, count: int) -> str:
    """The last words about a task that has reached a limit: what happened, how often, and for losses where and when."""
    if count == 1:
        return record.message
    told = record.message or f"it ended with {record.cause}"
    if record.cause is not Cause.LOST:
        return f"{told} ({count} attempts ended like this, the limit is reached)"
    lost = [*(other for other in task.attempts if other.cause is Cause.LOST), record]
    return f"{told} (lost {count} times, the limit is reached: {_lost(lost[-LOST_NAMED_MAX:])})"


def _lost(records: Iterable[AttemptRecord]) -> str:
    return "; ".join(f"with {r.worker_id} at {_time_of_day(r.finished_at_ns)}, {_ran(r)}" for r in records)


def _ran(record: AttemptRecord) -> str:
    if not record.started_at_ns:
        return "before it was said to have started"
    return f"{max(0, record.finished_at_ns - record.started_at_ns) / SECOND:.1f} s after its start"


def _time_of_day(instant: Instant) -> str:
    minutes, seconds = divmod(instant // SECOND % 86_400, 60)
    return f"{minutes // 60:02}:{minutes % 60:02}:{seconds:02} UTC"
