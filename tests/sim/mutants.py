"""Planted bugs: each a patch of the code under test, small and believable. The simulation must find every one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from msgspec import structs

from schedd.core import effects as fx
from schedd.core import events as ev
from schedd.core import fleet, guard, restore
from schedd.core.attempts import Attempts
from schedd.core.effects import Effects
from schedd.core.engine import Engine
from schedd.core.fleet import Fleet
from schedd.core.guard import Guard
from schedd.core.model import (
    AttemptRecord,
    Cause,
    Instant,
    Task,
    TaskEntry,
    TaskId,
    TaskSpec,
    WorkerId,
    WorkerInfo,
)
from schedd.core.policies.preemption import Preempting, PreemptRule, RankOf
from schedd.core.queue import TaskQueue
from schedd.core.requests import Requests
from schedd.core.restore import Restore
from schedd.core.retries import blame
from schedd.core.submits import Submits
from schedd.core.tables import Tables
from schedd.core.tasks import Barrier
from schedd.journal.records import LiveIndex
from schedd.server.durable import Promise, Promises
from schedd.server.holding import Holding
from schedd.sim.disk import Live
from schedd.wire.messages import DropAttempts, RevokeAttempts
from schedd.worker.attempts import Attempt, Ending
from schedd.worker.outbox import Outbox
from schedd.worker.state import WorkerState

MUTANTS: dict[str, Callable[[], Any]] = {}


def mutant(plant: Callable[[], Iterator[None]]) -> Callable[[], Any]:
    """Enter a planted bug under its name."""
    manager = contextmanager(plant)
    MUTANTS[plant.__name__] = manager
    return manager


# ----------------------------------------------------------------------------------------------------------- the engine


@mutant
def accept_stale_attempts() -> Iterator[None]:
    """What is said of an old attempt is taken for the current one; so nobody is told to drop one."""

    def current(self: Attempts, worker_id: WorkerId, task_id: TaskId, attempt: int) -> tuple[Task, WorkerInfo] | None:
        task = self._t.tasks.rows.get(task_id)
        worker = self._t.worker_of(task) if task is not None else None
        return (task, worker) if task is not None and worker is not None else None

    with patch.object(Attempts, "_current", current), patch.object(Tables, "drop", lambda self, *attempt: None):
        yield


@mutant
def forget_to_release_on_revoke() -> Iterator[None]:
    """A stolen attempt stays in the backlog of its victim."""
    answered = Attempts.on_revokes_answered

    def on_revokes_answered(self: Attempts, event: ev.RevokesAnswered) -> None:
        with patch.object(Tables, "release", lambda self, task, worker: self.end_steal(task, worker)):
            answered(self, event)

    with patch.object(Attempts, "on_revokes_answered", on_revokes_answered):
        yield


@mutant
def blame_queued_tasks() -> Iterator[None]:
    """All tasks of a lost worker are blamed for it, begun or not."""
    gone = Fleet._gone

    def blame_all(self: Fleet, worker: WorkerInfo, lost: bool, reason: str, kept: Sequence[Task] = ()) -> None:
        for task in worker.task_queue:
            blame(task, Cause.LOST)
        gone(self, worker, lost, reason, kept)

    with patch.object(Fleet, "_gone", blame_all):
        yield


@mutant
def requeue_when_silent() -> Iterator[None]:
    """A worker that cannot be heard is given up at once."""

    def silent(self: Fleet, worker: WorkerInfo, reason: str, cut: bool = False) -> None:
        self._gone(worker, lost=True, reason=reason)

    with patch.object(Fleet, "_silent", silent):
        yield


@mutant
def judge_right_after_a_freeze() -> Iterator[None]:
    """What came while the daemon did not run is read after its senders were given up."""
    with patch.object(Fleet, "on_away", lambda self, since_ns: None):
        yield


@mutant
def run_again_what_is_kept() -> Iterator[None]:
    """What a worker that was started anew brings from its disk has been queued again before."""
    with patch.object(fleet, "_ended_before", lambda worker, holds: []):
        yield


@mutant
def ignore_keys() -> Iterator[None]:
    """A submit that is asked for once more makes new tasks."""

    def same_key(self: Requests, key: str, spec: TaskSpec, entry: TaskEntry) -> TaskId | None:
        return None

    with patch.object(Requests, "_same_key", same_key):
        yield


@mutant
def ignore_names_of_submits() -> Iterator[None]:
    """A submit that is sent again is admitted again."""
    with patch.object(Submits, "find", lambda self, client, number: None):
        yield


@mutant
def finish_twice() -> Iterator[None]:
    """The end of a task that others wait for is recorded once for each of them."""
    end = Tables._end

    def end_again(self: Tables, task: Task, *rest: Any) -> Collection[Barrier]:
        barriers = end(self, task, *rest)
        waiting = sum(len(barrier.waiting) for barrier in barriers)
        self.facts += [self.facts[-1]] * waiting
        self._finished += [task] * waiting
        return barriers

    with patch.object(Tables, "_end", end_again):
        yield


# ---------------------------------------------------------------------------------------------------------- the restart


@mutant
def place_before_all_are_back() -> Iterator[None]:
    """After a restart the first worker that comes back ends the waiting for the others."""
    stop_awaiting = Tables.stop_awaiting

    def stop(self: Tables, worker_id: WorkerId | None = None) -> None:
        stop_awaiting(self)

    with patch.object(Tables, "stop_awaiting", stop):
        yield


@mutant
def forget_submits_at_restore() -> Iterator[None]:
    """After a restart a submit that is sent again is a new one."""
    with patch.object(Live, "restore", forgetful(Live.restore)):
        yield


def forgetful(restore: Callable[[Live, Engine, Instant, Instant], None]) -> Any:
    def forget(self: Live, engine: Engine, now: Instant, grace_ns: Instant) -> None:
        self.submits.clear()
        restore(self, engine, now, grace_ns)

    return forget


@mutant
def drop_dependencies_at_restore() -> Iterator[None]:
    """After a restart nothing waits for anything."""
    settle = Restore._settle

    def forget(self: Restore, task: Task) -> None:
        with patch.object(task, "after", ()):
            settle(self, task)

    with patch.object(Restore, "_settle", forget):
        yield


@mutant
def forgive_at_restore() -> Iterator[None]:
    """After a restart the failures so far count no more."""
    with patch.object(restore, "blame", lambda task, cause: None):
        yield


@mutant
def hurry_at_restore() -> Iterator[None]:
    """After a restart nobody pauses before the next attempt."""
    with patch.object(Restore, "_delay", lambda self, task, retry_at_ns: None):
        yield


@mutant
def forget_cancels_at_restore() -> Iterator[None]:
    """What was to be cancelled goes on after a restart."""
    with patch.object(Restore, "_cancel", lambda self: None):
        yield


@mutant
def give_ids_again() -> Iterator[None]:
    """After a restart ids go on from what is unfinished."""
    finish = Restore._finish

    def finish_from_one(self: Restore, workers: Any, next_id: int, grace_ns: Instant) -> Iterator[None]:
        return finish(self, workers, 1, grace_ns)

    forget = patch.object(Restore, "_enter_finished", lambda self, rows: iter(()))
    with patch.object(Restore, "_finish", finish_from_one), forget:
        yield


# ---------------------------------------------------------------------------------------------------------- the journal


@mutant
def acknowledge_before_commit() -> Iterator[None]:
    """Promises are kept at once."""
    record = Promises.record

    def keep(self: Promises, turn: int, effects: Effects, promises: Sequence[Promise], now: Instant) -> None:
        record(self, turn, effects, (), now)
        for promise in promises:
            promise()

    with patch.object(Promises, "record", keep):
        yield


@mutant
def let_answers_overtake() -> Iterator[None]:
    """An answer without facts of its own does not wait for those before it."""
    record = Promises.record

    def overtake(self: Promises, turn: int, effects: Effects, promises: Sequence[Promise], now: Instant) -> None:
        if effects.facts:
            record(self, turn, effects, promises, now)
        else:
            for promise in promises:
                promise()

    with patch.object(Promises, "record", overtake):
        yield


@mutant
def give_work_to_unrecorded_workers() -> Iterator[None]:
    """A worker gets work before a restart would know of it."""
    with patch.object(Holding, "enter", lambda self, peer, turn: None):
        yield


@mutant
def forget_holds_on_disk() -> Iterator[None]:
    """That a task was held is not among what a restart reads."""
    plan = LiveIndex.plan

    def forget(self: LiveIndex, facts: Any) -> Any:
        return plan(self, [fact for fact in facts if not isinstance(fact, fx.TaskHeld)])

    with patch.object(LiveIndex, "plan", forget):
        yield


# ----------------------------------------------------------------------------------------------------------- preemption


@mutant
def blame_the_preempted() -> Iterator[None]:
    """To have made room counts as a loss."""
    conclude = Tables.conclude

    def punish(self: Tables, task: Task, record: AttemptRecord, result: bytes | None) -> None:
        if record.cause is Cause.PREEMPTED:
            blame(task, Cause.LOST)
        conclude(self, task, record, result)

    with patch.object(Tables, "conclude", punish):
        yield


@mutant
def preempt_equals() -> Iterator[None]:
    """A task that waits takes the place of any other, important or not."""
    init = Preempting.__init__

    def init_without_margin(self: Preempting, rule: PreemptRule, rank_of: RankOf) -> None:
        init(self, structs.replace(rule, margin=0.0), rank_of)

    with patch.object(Preempting, "__init__", init_without_margin):
        yield


@mutant
def forget_preemption_at_restore() -> Iterator[None]:
    """That an attempt was to make room is not among what a restart reads."""
    plan = LiveIndex.plan

    def forget(self: LiveIndex, facts: Any) -> Any:
        return plan(self, [fact for fact in facts if not isinstance(fact, fx.PreemptAsked)])

    with patch.object(LiveIndex, "plan", forget):
        yield


@mutant
def take_preemption_for_failure() -> Iterator[None]:
    """A worker reports the end of what it stopped to make room as that task's own failure."""

    def own(self: Attempt, ending: Ending) -> Cause:
        return ending.cause if self.stop_cause in (None, Cause.PREEMPTED) else self.stop_cause

    with patch.object(Attempt, "cause_of", own):
        yield


# ------------------------------------------------------------------------------------------------------------ verdicts


@mutant
def blame_tasks_for_a_bad_worker() -> Iterator[None]:
    """What fails on a worker in quarantine counts against its task."""
    with patch.object(guard, "_excused", lambda record: record):
        yield


@mutant
def try_all_that_is_held() -> Iterator[None]:
    """A kind that is held is tried again with whatever there is of it."""
    with patch.object(Guard, "_is_tried", lambda self, hold: False), patch.object(guard, "PROBE_RETRY_NS", 10**7):
        yield


@mutant
def forget_verdicts_at_restore() -> Iterator[None]:
    """After a restart everybody is believed in again."""
    with patch.object(Guard, "restore", lambda self, facts: None):
        yield


@mutant
def keep_back_for_ever() -> Iterator[None]:
    """What a held kind kept back stays where it is when the hold ends."""
    with patch.object(Guard, "_let_go_some", lambda self, hold: self._health.ending.pop(hold.number, None)):
        yield


# ----------------------------------------------------------------------------------------------------------- the worker


@mutant
def keep_what_is_stolen() -> Iterator[None]:
    """A victim says that it gives back, and keeps."""
    revoke = WorkerState._on_revoke

    def keep(self: WorkerState, message: RevokeAttempts, now_ns: Instant) -> None:
        before = dict(self.backlog)
        revoke(self, message, now_ns)
        self.backlog.update((i, row) for i, row in before.items() if i not in self.running)
        self._start_heads(now_ns)

    with patch.object(WorkerState, "_on_revoke", keep):
        yield


@mutant
def ignore_drops() -> Iterator[None]:
    """A worker goes on with what is no longer its own."""

    def ignore(self: WorkerState, message: DropAttempts, now_ns: Instant) -> None:
        self.ignored_count += 1

    with patch.object(WorkerState, "_on_drop", ignore):
        yield


@mutant
def free_devices_too_early() -> Iterator[None]:
    """What an attempt held is given to the next one while its processes still die."""
    drop = WorkerState._drop

    def free(self: WorkerState, row: Attempt) -> None:
        drop(self, row)
        if row.reserved:
            self.ledger.release(row.need, row.devices)

    with patch.object(WorkerState, "_drop", free):
        yield


@mutant
def tell_ends_once() -> Iterator[None]:
    """Ends that were not acknowledged are not told again on the next connection."""
    on_hello = Outbox.on_hello

    def forget(self: Outbox) -> None:
        sent = self._sent_seq
        on_hello(self)
        self._sent_seq = sent

    with patch.object(Outbox, "on_hello", forget):
        yield


@mutant
def bring_nothing_from_the_disk() -> Iterator[None]:
    """A worker that is started anew forgets what the last one kept."""
    with patch.object(Outbox, "restore", lambda self, batches: None):
        yield


@mutant
def leave_some_with_the_old_policy() -> Iterator[None]:
    """What was tried before stays in the queue of a policy that is replaced."""
    take_over = TaskQueue.take_over

    def skip(self: TaskQueue, task: Task) -> None:
        if not task.attempts:
            take_over(self, task)

    with patch.object(TaskQueue, "take_over", skip):
        yield
