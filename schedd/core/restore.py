"""A new start from what was recorded: tasks as they were admitted, what changed them since, and who may have them.

Dispatches are not recorded for this. Instead nothing is placed until every worker that was there has come back with
what it holds, or the grace has ended: so whatever runs on a living worker is adopted before anybody could start it a
second time, and a restart costs the running tasks nothing.

A million tasks take seconds; whoever drives this goes on a step at a time, and may do something else in between.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set

from msgspec import Struct

from schedd.core import effects as fx
from schedd.core.guard import Guard
from schedd.core.model import SECOND, Cancelled, Held, Instant, Queued, Task, TaskId, WorkerId
from schedd.core.retries import blame, end_pause
from schedd.core.submits import Admitted
from schedd.core.tables import ATTEMPTS_KEPT_MAX, Tables
from schedd.core.tasks import PASSED_OVER_MAX, Afters, make_task

#: Rows that one step is about: some 10 ms.
ROWS_PER_STEP = 2000


class Recorded(Struct):
    """What a daemon starts from.

    batches: what was admitted and not yet forgotten, in the order of the ids. ended: those of its ids that are over.
    changes: what changed the others, in the order in which it happened. finished: tasks that ended, the oldest end
    first. workers: those that were there. draining: the incarnations of those of them that were, and whether they were
    asked to leave; who comes back as another takes work. verdicts: `WorkerQuarantined` and `KindHeld` that stood.
    submits: those that their clients may send again. epoch: which start this is.
    """

    batches: Iterable[fx.TasksAdmitted] = ()
    ended: Set[int] = frozenset()
    changes: Iterable[fx.Fact] = ()
    finished: Iterable[Task] = ()
    workers: Iterable[WorkerId] = ()
    next_id: int = 1
    draining: Mapping[WorkerId, tuple[str, bool]] = {}
    verdicts: Iterable[fx.Fact] = ()
    submits: Iterable[Admitted] = ()
    epoch: int = 1


class Restore:
    """Fills empty tables."""

    def __init__(self, tables: Tables, guard: Guard, now: Instant) -> None:
        self._t = tables
        self._guard = guard
        self._t.now = now
        #: Tasks that had ended, the oldest end first.
        self._ended: list[TaskId] = []
        self._held, self._queued = Held(now), Queued(now)
        self._cancelled: list[Task] = []
        self._exempt: list[tuple[Task, Instant | bool]] = []

    def steps(self, recorded: Recorded, grace_ns: Instant) -> Iterator[None]:
        """Go through all of it, in the one order that works."""
        yield from self._enter_finished(recorded.finished)
        yield from self._enter(recorded.batches, recorded.ended)
        yield from self._change(recorded.changes)
        self._judge(recorded.verdicts)
        for admitted in recorded.submits:
            self._t.submits.add(admitted, 0)
        self._t.drained = dict(recorded.draining)
        self._t.epoch = recorded.epoch
        yield from self._finish(recorded.workers, recorded.next_id, grace_ns)

    def _enter(self, batches: Iterable[fx.TasksAdmitted], ended: Set[int]) -> Iterator[None]:
        """Enter what was admitted and has not ended. Batches in the order of their ids."""
        t = self._t
        rows = t.tasks.rows
        afters = Afters()
        entered = 0
        for batch in batches:
            by_kind, by_size = t.policy.by_kind, t.policy.by_size
            classes = [t.classes.intern(spec.requirements, spec.kind, by_kind, by_size) for spec in batch.specs]
            for spec in batch.specs:
                if spec.requirements.estimated_time is not None:
                    t.runtimes.hint(spec.kind, spec.requirements.estimated_time)
            for entry, task_id in zip(batch.tasks, batch.ids, strict=True):
                if task_id in ended or task_id in rows:  # a salvaged file may have both; what ended begins not again
                    continue
                spec = batch.specs[entry.spec]
                after = afters.of(spec, entry, batch.ids) if spec.after or entry.after else ()
                task = make_task(spec, entry, task_id, classes[entry.spec], batch.at_ns, after, batch.owner)
                if spec.hold:
                    task.state = self._held
                rows[task_id] = task
            entered += len(batch.ids)
            if entered >= ROWS_PER_STEP:
                entered = 0
                yield

    def _change(self, changes: Iterable[fx.Fact]) -> Iterator[None]:
        """Apply what changed tasks that have not ended, in the order in which it happened."""
        for number, fact in enumerate(changes, 1):
            if not number % ROWS_PER_STEP:
                yield
            task = self._t.tasks.rows.get(getattr(fact, "task_id", 0))
            if task is None or task.state.is_final:
                continue
            match fact:
                case fx.TaskHeld():
                    task.state = self._held
                case fx.TaskReleased():
                    task.state = self._queued
                    end_pause(task)
                    if fact.exempt_ns:
                        self._exempt.append((task, fact.exempt_ns))
                case fx.TaskChanged():
                    task.priority = fact.priority
                    task.requirements = fact.requirements
                    task.defined_ns = fact.defined_ns or task.defined_ns
                    task.promoted = fact.promoted
                    policy = self._t.policy
                    task.request = self._t.classes.intern(task.requirements, task.kind, policy.by_kind, policy.by_size)
                case fx.CancelAsked():
                    self._cancelled.append(task)
                case fx.PreemptAsked():
                    self._t.asked[task.id] = fact
                case fx.AttemptEnded():
                    self._t.asked.pop(task.id, None)
                    task.attempt = fact.record.attempt
                    task.attempts = (*task.attempts, fact.record)[-ATTEMPTS_KEPT_MAX:]
                    if not fact.record.excused:
                        blame(task, fact.record.cause)
                    self._delay(task, fact.retry_at_ns)

    def _delay(self, task: Task, retry_at_ns: Instant) -> None:
        """Let the pause before a retry go on; a clock that was set back meanwhile makes none longer than its cap."""
        cap_ns = int(self._t.settings.retries.cap_s(task.rules) * SECOND)
        task.not_before_ns = max(task.not_before_ns, min(retry_at_ns, self._t.now + cap_ns))

    def _enter_finished(self, rows: Iterable[Task]) -> Iterator[None]:
        """Enter tasks that had ended, the oldest end first."""
        for number, task in enumerate(rows, 1):
            self._ended.append(task.id)
            self._t.tasks.rows[task.id] = task
            if not number % ROWS_PER_STEP:
                yield

    def _judge(self, facts: Iterable[fx.Fact]) -> None:
        """Put quarantines and holds of kinds into force again."""
        self._guard.restore(facts)
        for task, exempt_ns in self._exempt:
            self._guard.exempt_again(task, exempt_ns)

    def _finish(self, workers: Iterable[WorkerId], next_id: int, grace_ns: Instant) -> Iterator[None]:
        """Let the tasks stand where they belong, and wait for the workers."""
        t = self._t
        for number, task in enumerate(t.tasks.rows.values(), 1):
            if not number % ROWS_PER_STEP:
                yield
            t.tasks.next_id = task.id
            if not task.state.is_final:
                self._settle(task)
            t.tasks.admit(task, task.submitted_ns)
            t.enter(task)
        t.tasks.note_ended(self._ended)
        t.tasks.next_id = max(t.tasks.next_id, next_id)
        t.restored_below = TaskId(t.tasks.next_id)
        t.tasks.believed_below = t.tasks.next_id + PASSED_OVER_MAX
        t.awaited = set(workers)
        t.awaited_at_start = frozenset(t.awaited)
        if t.awaited:
            t.deadlines.set(("adopt", 0), t.now + grace_ns)
        self._cancel()

    def _cancel(self) -> None:
        """End what was to be cancelled; a worker that still runs it is told to drop it when it comes."""
        t = self._t
        for task in self._cancelled:
            if not task.state.is_final:
                t.withdraw(task)
                t.finish(task, Cancelled(t.now), "cancelled")
                t.deadlines.set(("place", 0), t.now)  # the first turn, at once, tells of it

    def _settle(self, task: Task) -> None:
        # What is needed and is not here has succeeded: had it not, this task would have ended with it. So has what a
        # task needs that was tried already, even if the end of that was lost with the last moments of a power cut.
        if task.after and not task.attempt:
            self._t.tasks.depend(task)
        if task.state is not self._held:
            task.state = self._t.waiting_state(task)
