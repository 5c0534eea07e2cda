"""The task table: rows, the table of legal transitions, and the one setter of state.

A task is admitted into one of four waiting states: `held` by its user, `waiting` for other tasks, `delayed` until an
instant, or `queued`. The placement pass makes it `assigned` to a worker, the worker's word makes it `running`. While
it is assigned a steal may ask it back (`revoking`). A lost or given-back attempt returns it to `queued`, a failed one
that may be repeated to `delayed`. `succeeded`, `failed` and `cancelled` are final: nothing leaves them, which is why
a result is recorded once. Cancelling what waits is immediate; cancelling what was dispatched only marks the row, and
the worker's report of the end makes it so. Preempting it changes no state at all: the report leads back to `queued`.

The worker may report a start and an end together, so `assigned` also leads straight to the final states.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence, Set

from schedd.core.classes import RequestClass
from schedd.core.members import Members
from schedd.core.model import (
    SECOND,
    Assigned,
    Cancelled,
    Delayed,
    Failed,
    Held,
    Instant,
    Queued,
    Revoking,
    Running,
    Selection,
    State,
    Succeeded,
    Task,
    TaskEntry,
    TaskId,
    TaskSpec,
    Waiting,
)
from schedd.core.pages import Pages
from schedd.errors import InvalidTransition

FINAL: frozenset[type[State]] = frozenset({Succeeded, Failed, Cancelled})
UNDISPATCHED: frozenset[type[State]] = frozenset({Held, Waiting, Delayed, Queued})
DISPATCHED: frozenset[type[State]] = frozenset({Assigned, Running, Revoking})

_END: frozenset[type[State]] = FINAL | {Queued, Delayed}
TRANSITIONS: dict[type[State], frozenset[type[State]]] = {
    Held: frozenset({Waiting, Delayed, Queued, Cancelled}),
    Waiting: frozenset({Held, Delayed, Queued, Cancelled}),
    Delayed: frozenset({Held, Queued, Cancelled}),
    Queued: frozenset({Held, Assigned, Cancelled}),
    Assigned: _END | {Running, Revoking},
    Running: _END,
    Revoking: _END | {Assigned, Running},
    Succeeded: frozenset(),
    Failed: frozenset(),
    Cancelled: frozenset(),
}

#: In place of a result that was given up to stay within the bound of memory. No worker sends an empty result.
RESULT_DROPPED = b""
#: Rows that are forgotten at the end of one task at most, where there are bounds that were lowered: a millisecond.
FORGOTTEN_PER_END_MAX = 500
#: As many ids may have been given out and not recorded when a daemon dies; what a worker claims beyond is made up.
PASSED_OVER_MAX = 1 << 18

STATE_NAMES = tuple(state.__name__.lower() for state in TRANSITIONS)


class Job:
    """The tasks that share a job's name; `counts` by state, `members` in the order of submission."""

    __slots__ = ("counts", "finished_ns", "members", "name", "submitted_ns")

    def __init__(self, name: str, submitted_ns: Instant) -> None:
        self.name = name
        self.counts: dict[type[State], int] = dict.fromkeys(TRANSITIONS, 0)
        self.members = Members()
        self.submitted_ns = submitted_ns
        self.finished_ns: Instant = 0


class Barrier:
    """Tasks that wait for the same others: they may start once nothing of it is missing."""

    __slots__ = ("missing", "waiting")

    def __init__(self, missing: set[TaskId]) -> None:
        self.missing = missing
        self.waiting: dict[TaskId, None] = {}


class TaskTable:
    """All tasks that are remembered: the unfinished ones, and of the others the newest, more of those with a key."""

    def __init__(
        self,
        finished_keep_count: int = 10_000,
        results_keep_bytes: int = 16 * 1024 * 1024,
        keyed_keep_count: int = 100_000,
    ) -> None:
        self.rows = Pages[Task]()
        self.keys: dict[str, TaskId] = {}
        self.jobs: dict[str, Job] = {}
        #: Where a task waits for others that must still succeed; no entry: for none.
        self.barriers: dict[TaskId, Barrier] = {}
        #: The barriers that a task is missing at, in the order in which they were made.
        self.dependents: dict[TaskId, dict[Barrier, None]] = {}
        #: How many pairs of a task and such a barrier there are.
        self.dependencies = 0
        #: The newest barrier, as long as nobody has left any since it was made, and what its tasks come after.
        self._newest: tuple[tuple[TaskId, ...], Barrier | None] = ((), None)
        self.counts: dict[type[State], int] = dict.fromkeys(TRANSITIONS, 0)
        self.next_id = 1
        #: What a worker says of ids up to here may be true: see `pass_over`.
        self.believed_below = 1 + PASSED_OVER_MAX
        self.results_bytes = 0
        self._first_id = 1
        self._keep_count = finished_keep_count
        self._keyed_keep_count = keyed_keep_count
        self._keep_bytes = results_keep_bytes
        #: Finished tasks without and with a key, oldest first.
        self._finished: deque[TaskId] = deque()
        self._finished_keyed: deque[TaskId] = deque()
        #: Finished tasks whose result is kept, oldest first.
        self._with_result: deque[TaskId] = deque()

    def __len__(self) -> int:
        return len(self.rows)

    def keep(self, finished_count: int, results_bytes: int, keyed_count: int) -> None:
        """Change the bounds; what is above one that was lowered is forgotten bit by bit, at the ends to come."""
        self._keep_count, self._keep_bytes, self._keyed_keep_count = finished_count, results_bytes, keyed_count

    @property
    def unfinished_count(self) -> int:
        return len(self.rows) - len(self._finished) - len(self._finished_keyed)

    def get(self, task_id: TaskId) -> Task | None:
        return self.rows.get(task_id)

    def ids(self) -> range:
        """The ids of all rows, and perhaps of some that are forgotten."""
        return range(self._first_id, self.next_id)

    def admit(self, task: Task, now: Instant) -> None:
        """Enter a row under the next id, which it must have."""
        if task.id != self.next_id:
            raise InvalidTransition(f"task {task.id} was admitted out of order: the next id is {self.next_id}")
        self.next_id += 1
        self.rows[task.id] = task
        if task.key is not None:
            self.keys[task.key] = task.id
        self.counts[type(task.state)] += 1
        if task.job:
            job = self.jobs.get(task.job)
            if job is None:
                job = self.jobs[task.job] = Job(task.job, now)
            job.members.add(task.id)
            job.counts[type(task.state)] += 1
            job.finished_ns = 0

    def depend(self, task: Task) -> None:
        """Let a row wait for what it comes after and has not ended. Rows that have one `after` share a barrier. O(1).

        The first of them pays for all: O(what it comes after).
        """
        after, barrier = self._newest
        if barrier is None or after is not task.after:
            rows = ((other, self.rows.get(other)) for other in task.after)
            barrier = Barrier({other for other, row in rows if row is not None and not row.state.is_final})
            for other in barrier.missing:
                self.dependents.setdefault(other, {})[barrier] = None
            self.dependencies += len(barrier.missing)
            self._newest = task.after, barrier
        if barrier.missing:
            barrier.waiting[task.id] = None
            self.barriers[task.id] = barrier

    def missing(self, task_id: TaskId) -> Set[TaskId]:
        """What must still succeed before a task may start."""
        barrier = self.barriers.get(task_id)
        return barrier.missing if barrier is not None else frozenset()

    def pass_over(self, task_id: TaskId) -> None:
        """Give out no id up to this one: a worker has heard of it, from a daemon that died before it recorded it.

        An id that is far ahead of the last that was recorded was made up, and does not count.
        """
        if self.next_id <= task_id < self.believed_below:
            self.next_id = task_id + 1

    def note_ended(self, ended: Iterable[TaskId]) -> None:
        """After a restart: these rows, entered with their final states, ended in this order."""
        for task_id in ended:
            task = self.rows[task_id]
            (self._finished if task.key is None else self._finished_keyed).append(task_id)
            if task.job:
                job = self.jobs[task.job]
                job.finished_ns = max(job.finished_ns, getattr(task.state, "at_ns", 0))
        self._trim(len(self.rows))

    def set_state(self, task: Task, state: State) -> None:
        """Move a row to another state. Raises InvalidTransition, with nothing changed, where the table has no way."""
        old, new = type(task.state), type(state)
        if new not in TRANSITIONS[old]:
            raise InvalidTransition(f"{old.__name__} -> {new.__name__} is no transition; {story(task)}")
        task.state = state
        self.counts[old] -= 1
        self.counts[new] += 1
        if task.job:
            counts = self.jobs[task.job].counts
            counts[old] -= 1
            counts[new] += 1

    def finish(
        self, task: Task, state: Succeeded | Failed | Cancelled, result: bytes | None = None
    ) -> Collection[Barrier]:
        """Move a row to a final state, forget the oldest beyond the bounds, and return where it was missing."""
        self.set_state(task, state)
        task.result = result
        if result:
            self.results_bytes += len(result)
            self._with_result.append(task.id)
        if task.job:
            job = self.jobs[task.job]
            job.finished_ns = max(job.finished_ns, state.at_ns)
        if self.barriers:
            self.wait_no_more(task)
        (self._finished if task.key is None else self._finished_keyed).append(task.id)
        barriers: Collection[Barrier] = self.dependents.pop(task.id, ()) if self.dependents else ()
        for barrier in barriers:
            barrier.missing.remove(task.id)
            self.dependencies -= 1
        self._trim()
        return barriers

    def open(self, barrier: Barrier) -> Collection[TaskId]:
        """Forget a barrier at which nothing is missing; returns who waited there, in the order of submission."""
        self._newest = ((), None)
        for task_id in barrier.waiting:
            del self.barriers[task_id]
        return barrier.waiting

    def wait_no_more(self, task: Task) -> None:
        """Let a row wait for nothing, whatever becomes of what it was to wait for. The last one forgets the barrier."""
        barrier = self.barriers.pop(task.id, None)
        if barrier is None:
            return
        self._newest = ((), None)
        del barrier.waiting[task.id]
        for other in barrier.missing if not barrier.waiting else ():
            barriers = self.dependents[other]
            del barriers[barrier]
            self.dependencies -= 1
            if not barriers:
                del self.dependents[other]

    def select(self, selection: Selection, after_id: int = 0) -> Iterator[Task]:
        """Yield the rows that are meant, by id, from the first above `after_id`; unknown ids are passed over."""
        return (task for _, task in self.look(selection, after_id) if task is not None)

    def look(
        self, selection: Selection, after_id: int = 0, below_id: int | None = None, newest_first: bool = False
    ) -> Iterator[tuple[TaskId, Task | None]]:
        """Yield each id that is looked at on the way through a selection, with its row where that is meant.

        By id, from the first above `after_id` to the last below `below_id`. For whoever stops on the way and goes on
        later: the table may change between two steps, and what is admitted after the first is not looked at.
        """
        ids = self._candidates(selection)
        first = bisect_right(ids, after_id)
        ids = ids[first : bisect_left(ids, below_id, first) if below_id is not None else len(ids)]
        for task_id in reversed(ids) if newest_first else ids:
            task = self.rows.get(TaskId(task_id))
            yield TaskId(task_id), task if task is not None and is_meant(task, selection) else None

    def _candidates(self, selection: Selection) -> Sequence[int]:
        """The ids among which those that are meant are, in ascending order."""
        if selection.ids:
            return sorted(set(selection.ids))
        if selection.job:
            job = self.jobs.get(selection.job)
            return job.members.look() if job is not None else ()
        return range(self._first_id, self.next_id)

    def _trim(self, rows_max: int = FORGOTTEN_PER_END_MAX) -> None:
        while self.results_bytes > self._keep_bytes and self._with_result:
            oldest = self.rows.get(self._with_result.popleft())
            if oldest is not None and oldest.result:
                self.results_bytes -= len(oldest.result)
                oldest.result = RESULT_DROPPED
        if (beyond := len(self._finished) - self._keep_count) > 0:
            for _ in range(min(rows_max, beyond)):
                self._forget(self._finished.popleft())
        if (beyond := len(self._finished_keyed) - self._keyed_keep_count) > 0:
            for _ in range(min(rows_max, beyond)):
                self._forget(self._finished_keyed.popleft())

    def _forget(self, task_id: TaskId) -> None:
        task = self.rows.pop(task_id)
        if task is None:
            raise KeyError(task_id)
        self.counts[type(task.state)] -= 1
        if task.result:
            self.results_bytes -= len(task.result)
        if task.key is not None and self.keys.get(task.key) == task_id:
            del self.keys[task.key]
        if task.job:
            job = self.jobs[task.job]
            job.members.remove(task_id)
            job.counts[type(task.state)] -= 1
            if not job.members:
                del self.jobs[task.job]
        if self.rows.get(self._first_id) is None:
            self._first_id = self.rows.first(self._first_id, self.next_id)
        # Ids whose rows are gone must not pile up in here while their results stay within the bound.
        while self._with_result and self._with_result[0] not in self.rows:
            self._with_result.popleft()

    def check(self) -> None:
        """Recompute every derived number. Raises AssertionError."""
        counts: dict[type[State], int] = dict.fromkeys(TRANSITIONS, 0)
        jobs: dict[str, dict[type[State], int]] = {}
        for task in self.rows.values():
            counts[type(task.state)] += 1
            if task.job:
                jobs.setdefault(task.job, dict.fromkeys(TRANSITIONS, 0))[type(task.state)] += 1
        assert counts == self.counts, (counts, self.counts)
        assert jobs == {name: job.counts for name, job in self.jobs.items()}
        assert len(self._finished) + len(self._finished_keyed) == sum(counts[state] for state in FINAL)
        assert self.results_bytes == sum(len(t.result) for t in self.rows.values() if t.result)
        for task_id, barrier in self.barriers.items():
            assert task_id in barrier.waiting, task_id
            assert type(self.rows[task_id].state) in (Held, Waiting), story(self.rows[task_id])
        barriers = set(self.barriers.values())
        assert sum(len(barrier.waiting) for barrier in barriers) == len(self.barriers)
        for barrier in barriers:
            assert barrier.missing, list(barrier.waiting)
            for other in barrier.missing:
                assert not self.rows[other].state.is_final, story(self.rows[other])
                assert barrier in self.dependents[other], other
        assert self.dependencies == sum(len(barrier.missing) for barrier in barriers), self.dependencies
        assert self.dependencies == sum(map(len, self.dependents.values())), self.dependencies
        for task in self.rows.values():
            assert (type(task.state) is not Waiting) or task.id in self.barriers, story(task)


def is_meant(task: Task, selection: Selection) -> bool:
    """Whether a row whose id, or whose job, is right is meant."""
    if selection.job is not None and task.job != selection.job:
        return False
    if selection.unfinished and type(task.state) in FINAL:
        return False
    return not selection.states or task.state.name in selection.states


def belongs_to_another(task: Task, user: str | None) -> str:
    """Why this user may not change a task; "": they may. None: who may change all of them."""
    return f"belongs to {task.owner}" if user is not None and task.owner not in ("", user) else ""


def make_task(
    spec: TaskSpec,
    entry: TaskEntry,
    task_id: TaskId,
    request: RequestClass,
    at_ns: Instant,
    after: tuple[TaskId, ...] = (),
    owner: str = "",
) -> Task:
    """Make the row of an entry."""
    task = Task(
        id=task_id,
        kind=spec.kind,
        priority=spec.priority if entry.priority is None else entry.priority,
        requirements=spec.requirements,
        payload=spec.payload,
        argument=entry.argument,
        rules=spec.rules,
        job=spec.job,
        key=entry.key,
        submitted_ns=at_ns,
        defined_ns=at_ns,
        request=request,
        owner=owner,
        after=after,
    )
    if spec.delay_s:
        task.not_before_ns = at_ns + int(spec.delay_s * SECOND)
    return task


class Afters:
    """What the tasks of a submit come after. Neighbours that name the same share one tuple, however long it is."""

    def __init__(self) -> None:
        #: The ids, the spec and the references that the last one was made of.
        self._of: tuple[Sequence[TaskId], TaskSpec | None, list[int]] = ([], None, [])
        self._made: tuple[TaskId, ...] = ()

    def of(self, spec: TaskSpec, entry: TaskEntry, ids: Sequence[TaskId]) -> tuple[TaskId, ...]:
        """Resolve the references of an entry; `ids` are those of the entries before it in the same submit."""
        last_ids, last_spec, last_refs = self._of
        if ids is not last_ids or spec is not last_spec or entry.after != last_refs:
            refs = [*spec.after, *entry.after]
            self._made = tuple(dict.fromkeys(TaskId(ref) if ref >= 0 else ids[-1 - ref] for ref in refs))
            self._of = ids, spec, entry.after
        return self._made


def story(task: Task) -> str:
    """What is known of a row, for an error that should not have happened."""
    ended = ", ".join(f"#{a.attempt} on {a.worker_id}: {a.cause}" for a in task.attempts)
    return f"task {task.id} is {task.state!r}, attempt {task.attempt}, ended attempts: {ended or 'none'}"
