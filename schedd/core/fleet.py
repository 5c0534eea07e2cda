"""Workers that come, go, fall silent and return.

A worker is lost in two steps. Silent for longer than its lease, or disconnected, it is *unreachable*: its tasks stay
its own, it gets nothing new. Silent for longer still it is *lost*: its tasks are queued again, and only those that
were running, or may have been, are blamed for it. Any message counts as life. Where the daemon itself did not run for a
while (its machine was suspended, say), nobody is judged before it has had as much time again to read what waits.
"""

from __future__ import annotations

from collections.abc import Sequence

from schedd.core import effects as fx
from schedd.core import events as ev
from schedd.core.attempts import Attempts
from schedd.core.guard import Guard
from schedd.core.model import (
    SECOND,
    Assigned,
    AttemptRecord,
    AttemptStarted,
    Cause,
    Delayed,
    Held,
    HoldsAttempt,
    Instant,
    Queued,
    Running,
    Task,
    TaskId,
    Waiting,
    WorkerId,
    WorkerInfo,
    WorkerResources,
    WorkerStatus,
)
from schedd.core.resources import need_of
from schedd.core.tables import Tables

#: No honest worker comes to such an attempt; what one claims must stay a number that fits everywhere.
ATTEMPT_MAX = 1 << 31
#: From a dispatch to the end of the connection of a worker that its task killed: the way there, the start, and a busy
#: machine. Keep-alives and retransmissions of TCP take longer than this to find a peer that is cut off.
SUSPECT_NS = 5 * SECOND
#: Drains of lost workers that are remembered, for those that are not dead but were cut off for long.
DRAINED_KEPT_MAX = 1024
#: Why a worker that a restart waited for in vain is gone.
NOT_BACK = "it did not come back after a restart"


class Fleet:
    """The handlers of workers as such."""

    def __init__(self, tables: Tables, attempts: Attempts, guard: Guard) -> None:
        self._t = tables
        self._attempts = attempts
        self._guard = guard
        #: Before these instants no lease runs out, and nobody is lost.
        self._leases_from_ns: Instant = 0
        self._losses_from_ns: Instant = 0

    # --------------------------------------------------------------------------------------------------- come and go

    def on_worker_joined(self, event: ev.WorkerJoined) -> None:
        t = self._t
        # They knew nothing of what it says now; those that still hold are told again below. What it was asked to give
        # back may be asked of it now as well: it keeps what has begun.
        t.unsay_ends(event.worker_id)
        worker = t.resources.workers.get(event.worker_id)
        again = worker is not None and worker.incarnation == event.incarnation
        if worker is None or not again or worker.resources != event.resources:
            worker = self._enter(event, worker, again)
        worker.host, worker.pid = event.host, event.pid
        worker.last_seen_ns, worker.lease_ns = t.now, t.lease_ns()
        self._guard.on_joined(worker)
        t.resources.set_status(worker, worker.status_here)
        self._reconcile(worker, event.holds)
        t.stop_awaiting(worker.worker_id)
        self._attempts.take_put_off()
        t.deadlines.cancel(("lost", worker.worker_id))
        t.deadlines.set(("lease", worker.worker_id), t.now + t.lease_ns())
        self._note_entered(worker, again)
        if worker.leaving:
            t.actions.append(
                fx.DrainWorker(worker.worker_id)
            )  # that it was told may have been lost with its connection
        t.note_idled(worker)
        t.placement_wanted = True

    def _note_entered(self, worker: WorkerInfo, again: bool) -> None:
        resources, is_on_its_way = worker.resources or WorkerResources(), (worker.draining, worker.leaving)
        self._t.facts.append(
            fx.WorkerEntered(worker.worker_id, worker.incarnation, resources, self._t.now, again, *is_on_its_way)
        )

    def _enter(self, event: ev.WorkerJoined, old: WorkerInfo | None, again: bool) -> WorkerInfo:
        """Make a new row for a worker; from its old one it gets what it may still have.

        That is all where only its resources have changed. Where the process was started anew it is what had ended
        before: those ends were on its disk. Whatever else it had has died with the last process.
        """
        t = self._t
        kept: list[Task] = []
        if old is not None and again:
            kept = [*old.running.values(), *old.task_queue]
            for task in kept:
                t.release(task, old)
            t.resources.set_status(old, WorkerStatus.DEAD)
            t.resources.remove(old.worker_id)
        elif old is not None:
            kept = _ended_before(old, event.holds)
            self._gone(old, lost=True, reason="the worker was started anew", kept=kept)
        worker = t.resources.add(event.worker_id, event.resources, t.now)
        worker.incarnation = event.incarnation
        drained = t.drained.pop(event.worker_id, None)
        worker.draining = drained is not None and drained[0] == event.incarnation
        worker.leaving = worker.draining and drained is not None and drained[1]
        if old is not None and again:
            worker.draining, worker.leaving, worker.joined_ns = old.draining, old.leaving, old.joined_ns
            worker.finished_count, worker.failed_count = old.finished_count, old.failed_count
        self._hand_over(kept, worker)
        return worker

    def _hand_over(self, tasks: list[Task], worker: WorkerInfo) -> None:
        """Put dispatched tasks that are on no row on this one. Whether they have started, the worker has to say."""
        t = self._t
        for task in tasks:
            dispatched_ns = getattr(task.state, "at_ns", t.now)
            t.tasks.set_state(task, Queued(t.now))
            t.tasks.set_state(task, Assigned(worker.worker_id, dispatched_ns))
            t.resources.attach(task, worker)

    def _reconcile(self, worker: WorkerInfo, holds: list[HoldsAttempt]) -> None:
        """Make the table say of this worker what it says of itself; what it does not hold never reached it.

        What runs there cannot lie in its backlog again: who says so has it no more. Nor can it hold what is above what
        it now declares to have.
        """
        t = self._t
        before = {task.id: task for task in (*worker.running.values(), *worker.task_queue)}
        for had in before.values():
            t.release(had, worker)
        new: dict[TaskId, Task] = {}
        held: dict[TaskId, HoldsAttempt] = {}
        # A worker may bring the ends of several attempts of one task: only the newest is what it was given last.
        newest: dict[TaskId, tuple[int, int]] = {}
        for hold in holds:
            # What the worker may still say of a task that nobody was told of must not fit one that comes now.
            t.tasks.pass_over(hold.task_id)
            newest[hold.task_id] = max(_age(hold), newest.get(hold.task_id, (0, 0)))
        for hold in holds:
            task = before.get(hold.task_id)
            if (again := held.get(hold.task_id)) is not None and again.attempt == hold.attempt:
                t.counters.stale += 1  # named twice
            elif task is not None and _has_still(task, worker, hold):
                held[hold.task_id] = hold
            elif (
                again is None
                and task is None
                and _age(hold) == newest[hold.task_id]
                and (brought := self._bring(worker, hold)) is not None
            ):
                new[hold.task_id] = brought
                held[hold.task_id] = hold
            else:
                t.counters.stale += 1
                if hold.phase != "finished":
                    # An end is sent again, and acknowledged when all that came before it is on disk: that may be this
                    # very end, told on a connection that has broken since.
                    t.drop(worker.worker_id, hold.task_id, hold.attempt)
        # What has reservations there comes before what waits for some.
        for task_id, hold in sorted(held.items(), key=lambda item: item[1].phase == "backlog"):
            self._adopt(new.get(task_id) or before[task_id], worker, hold)
        for task_id, task in before.items():
            if task_id not in held:
                t.requeue(task)
            elif t.is_stopping(task):
                t.stop(task, worker.worker_id)  # the first request may have been lost with the connection
        for task_id, task in new.items():
            self._question(task, worker, held[task_id])

    def _question(self, task: Task, worker: WorkerInfo, hold: HoldsAttempt) -> None:
        """Ask for the end of what a restart has found and should not be there."""
        t = self._t
        if t.is_stopping(task):
            t.stop(task, worker.worker_id)
        elif hold.phase == "backlog" and task.id in t.doubtful:
            # It should not begin before we know better; whether it has since the worker said so, only the worker knows.
            t.ask_back(task, worker)

    def _bring(self, worker: WorkerInfo, hold: HoldsAttempt) -> Task | None:
        """After a restart: the task of an attempt that a worker comes with, unless a newer attempt of it is known."""
        task = self._t.tasks.get(hold.task_id)
        if task is None or hold.attempt > ATTEMPT_MAX:
            return None
        # What the worker may still say of an attempt that is not adopted must not fit the next one.
        self._t.pass_over(task, hold.attempt)
        return task if self._take(task, worker, hold) else None

    def _is_doubtful(self, worker: WorkerInfo, hold: HoldsAttempt) -> bool:
        """Whether somebody who has not come back yet may have a newer attempt of the task.

        Nobody has where the last start gave this one out, and has not given up the worker. An earlier one may have
        given the worker up, and the task, under the very same number, to somebody else; that the worker came back in
        between, and was told to drop its own, it may not have heard.
        """
        t = self._t
        has_others = len(t.awaited) > (worker.worker_id in t.awaited)
        return has_others and (hold.epoch < t.epoch - 1 or worker.worker_id not in t.awaited_at_start)

    def _take(self, task: Task, worker: WorkerInfo, hold: HoldsAttempt) -> bool:
        """Give a worker the attempt that it comes with. Of two workers the newer attempt wins, the other drops its own.

        Newer is what a later start has given out: each gives out only what it believes that nobody has.
        """
        t = self._t
        holder = t.worker_of(task)
        if hold.epoch >= t.epoch:
            return False  # not of an earlier start
        if holder is None and hold.attempt <= task.attempt and _age(hold) <= t.let_go.get(task.id, _age(hold)):
            return False
        if holder is not None and _age(hold) <= (t.epochs.get(task.id, t.epoch), task.attempt):
            return False
        if hold.phase == "backlog" and worker.worker_id not in t.awaited:
            return False  # it might begin before the next start would know of the worker
        meant = task.id < t.restored_below and task.defined_ns == hold.defined_ns and _could_be(task, worker, hold)
        may_run = isinstance(task.state, Waiting | Queued | Delayed) or (
            isinstance(task.state, Held) and bool(task.state.reason)
        )
        if not meant or (holder is None and not may_run):
            # Of another task that had this id and that nobody was told of, or of other requirements; or its user holds
            # it.
            return False
        if holder is not None:
            t.drop(holder.worker_id, task.id, task.attempt)
            t.release(task, holder)
            t.tasks.set_state(task, Queued(t.now))
        else:
            t.withdraw(task)
            # What it waited for had succeeded, or it had not been dispatched; that this was not recorded is our fault.
            t.tasks.wait_no_more(task)
            if not isinstance(task.state, Queued):
                t.tasks.set_state(task, Queued(t.now))
        task.attempt = hold.attempt
        task.variant = _variant_of(task, worker, hold)
        # It has started, whatever a clock that was set back while we were away makes of its delayed start.
        task.not_before_ns = min(task.not_before_ns, t.now)
        # When it was dispatched is forgotten; that it ran since then is not.
        began = hold.started_at_ns if task.submitted_ns <= hold.started_at_ns <= t.now else t.now
        t.tasks.set_state(task, Assigned(worker.worker_id, began))
        t.facts.append(fx.AttemptDispatched(task.id, task.attempt, worker.worker_id, t.now))
        return True

    def _adopt(self, task: Task, worker: WorkerInfo, hold: HoldsAttempt) -> None:
        t = self._t
        if hold.epoch < t.epoch:
            t.epochs[task.id] = hold.epoch
            if self._is_doubtful(worker, hold):
                t.doubtful.add(task.id)
        need, ledger = need_of(task), worker.ledger
        begun = isinstance(task.state, Running)
        if hold.phase != "running" and not begun:
            t.resources.attach(task, worker)
            return
        known = ledger is not None and ledger.knows_devices(need, hold.devices)
        t.resources.attach_running(task, worker, hold.devices if known else tuple(range(need.gpus)))
        if hold.phase == "running" and not begun:
            started = AttemptStarted(task.id, task.attempt, hold.started_at_ns, hold.devices)
            self._attempts.on_attempts_started(ev.AttemptsStarted(worker.worker_id, [started]))

    def on_worker_disconnected(self, event: ev.WorkerDisconnected) -> None:
        worker = self._t.resources.workers.get(event.worker_id)
        if worker is not None:
            self._silent(worker, "the connection was lost", cut=True)

    def on_worker_left(self, event: ev.WorkerLeft) -> None:
        worker = self._t.resources.workers.get(event.worker_id)
        if worker is not None:
            self._gone(worker, lost=False, reason=event.reason or "left")

    def on_heartbeat(self, event: ev.Heartbeat) -> None:
        worker = self._t.resources.workers.get(event.worker_id)
        if worker is not None:
            worker.usage = event.usage
            worker.lease_ns = self._t.lease_ns()

    # ----------------------------------------------------------------------------------------------------- draining

    def on_drain_workers(self, event: ev.DrainWorkers) -> None:
        t = self._t
        unchanged: list[tuple[int | str, str]] = []
        changed = 0
        for worker_id in dict.fromkeys(event.workers):
            worker = t.resources.workers.get(worker_id)
            if event.undo and self._guard.pardon(worker_id) and (worker is None or not worker.draining):
                reason = ""
            else:
                reason = "unknown worker" if worker is None else self._drain(worker, event.undo, event.leave)
            if reason:
                unchanged.append((worker_id, reason))
            else:
                changed += 1
        t.actions.append(fx.ReplyChanged(event.origin, changed, unchanged))

    def _drain(self, worker: WorkerInfo, undo: bool, leave: bool) -> str:
        t = self._t
        draining = worker.draining
        if worker.status == WorkerStatus.UNREACHABLE:
            return "unreachable"
        if undo:
            if not draining:
                return "is not draining"
            worker.draining = worker.leaving = False
            t.resources.set_status(worker, worker.status_here)
            t.facts.append(fx.WorkerStoppedDraining(worker.worker_id, t.now))
            t.placement_wanted = True
            return ""
        if draining and not leave:
            return "already draining"
        worker.draining = True
        t.resources.set_status(worker, WorkerStatus.DRAINING)
        t.facts.append(fx.WorkerStartedDraining(worker.worker_id, t.now, leave))
        if leave:
            worker.leaving = True
            t.actions.append(fx.DrainWorker(worker.worker_id))
        else:
            t.take_back(worker)
        return ""

    def on_worker_draining(self, event: ev.WorkerDraining) -> None:
        worker = self._t.resources.workers.get(event.worker_id)
        if worker is None:
            return
        if not worker.draining:
            worker.draining = True
            self._t.resources.set_status(worker, WorkerStatus.DRAINING)
            self._t.facts.append(fx.WorkerStartedDraining(worker.worker_id, self._t.now))
        self._attempts.on_handed_back(worker, event.handed_back)

    # ----------------------------------------------------------------------------------------------- silence and loss

    def on_lease_changed(self, old_lease_ns: Instant) -> None:
        """Leases are of another length. Workers may have been told to report as rarely as the old one let them."""
        t = self._t
        self._leases_from_ns = max(self._leases_from_ns, t.now + old_lease_ns)
        for worker in t.resources:
            if worker.status == WorkerStatus.UNREACHABLE:
                t.deadlines.set(("lost", worker.worker_id), worker.silent_ns + t.settings.lost_after_ns)
            else:
                t.deadlines.set(("lease", worker.worker_id), worker.last_seen_ns + t.lease_ns())

    def on_away(self, since_ns: Instant) -> None:
        """The daemon has not run since then, though something was due: what has come meanwhile is still to be read.

        It gets as much time as it was away, and at most what a worker may be silent in any case: that is enough to say
        something, or to connect once more, and the dead of a long night are not waited for until noon.
        """
        t = self._t
        away_ns = t.now - since_ns
        self._leases_from_ns = max(self._leases_from_ns, t.now + min(away_ns, t.lease_ns()))
        self._losses_from_ns = max(self._losses_from_ns, t.now + min(away_ns, t.settings.lost_after_ns))

    def on_grace_over(self) -> None:
        """After a restart: whoever has not come back by now is not waited for."""
        t = self._t
        if t.now < self._losses_from_ns:
            t.deadlines.set(("adopt", 0), self._losses_from_ns)
            return
        for worker_id in sorted(t.awaited):
            # What it has goes to others, which the start after this one has to know, too: see `_bring`.
            t.facts.append(fx.WorkerGone(worker_id, "", t.now, True, 0, NOT_BACK))
        t.stop_awaiting()
        self._attempts.take_put_off()

    def on_lease_expired(self, worker_id: WorkerId) -> None:
        t = self._t
        worker = t.resources.workers.get(worker_id)
        if worker is None or worker.status == WorkerStatus.UNREACHABLE:
            return
        expires = max(worker.last_seen_ns + max(worker.lease_ns, t.lease_ns()), self._leases_from_ns)
        if t.now < expires:
            t.deadlines.set(("lease", worker_id), expires)
        else:
            self._silent(worker, f"nothing heard for {(t.now - worker.last_seen_ns) / SECOND:.0f} s")

    def on_return(self, worker: WorkerInfo) -> None:
        """A worker that was believed silent has spoken on its old connection."""
        t = self._t
        t.resources.set_status(worker, worker.status_here)
        t.deadlines.cancel(("lost", worker.worker_id))
        t.deadlines.set(("lease", worker.worker_id), t.now + t.lease_ns())
        self._note_entered(worker, again=True)
        t.note_idled(worker)
        t.placement_wanted = True

    def on_lost(self, worker_id: WorkerId) -> None:
        t = self._t
        worker = t.resources.workers.get(worker_id)
        if worker is None:
            return
        expires = max(worker.silent_ns + t.settings.lost_after_ns, self._losses_from_ns)
        if t.now < expires:
            t.deadlines.set(("lost", worker_id), expires)
        else:
            self._gone(worker, lost=True, reason="silent for too long")

    def _silent(self, worker: WorkerInfo, reason: str, cut: bool = False) -> None:
        t = self._t
        if worker.status == WorkerStatus.UNREACHABLE:
            return
        worker.cut_ns = t.now if cut else 0
        worker.silent_ns, worker.silence = t.now, reason
        lost_at = t.now + t.settings.lost_after_ns
        t.resources.set_status(worker, WorkerStatus.UNREACHABLE)
        t.deadlines.cancel(("lease", worker.worker_id))
        t.deadlines.set(("lost", worker.worker_id), lost_at)
        t.facts.append(fx.WorkerWentSilent(worker.worker_id, t.now, lost_at, reason))

    def _gone(self, worker: WorkerInfo, lost: bool, reason: str, kept: Sequence[Task] = ()) -> None:
        """Forget a worker. What it had is queued again, but for `kept`, which is only taken off its row."""
        t = self._t
        cut_ns = worker.cut_ns if worker.status == WorkerStatus.UNREACHABLE else t.now
        t.resources.set_status(worker, WorkerStatus.DEAD)
        keeps = {task.id for task in kept}
        tasks = [task for task in (*worker.running.values(), *worker.task_queue) if task.id not in keeps]
        # All before the first is released: what moves up in the backlog by that has not started.
        records = [self._lost_attempt(task, worker, lost, cut_ns, reason) for task in tasks]
        for task in kept:
            t.release(task, worker)
        for task, record in zip(tasks, records, strict=True):
            t.release(task, worker)
            if record is None:
                t.requeue(task)  # it had not started: nobody is blamed
            else:
                t.conclude(task, record, None)
        t.resources.remove(worker.worker_id)
        if worker.draining and lost:
            # The same process may come back yet.
            t.drained[worker.worker_id] = (worker.incarnation, worker.leaving)
            if len(t.drained) > DRAINED_KEPT_MAX:
                del t.drained[next(iter(t.drained))]
        t.steals.gone(worker)
        self._guard.on_gone()
        t.deadlines.cancel(("lease", worker.worker_id))
        t.deadlines.cancel(("lost", worker.worker_id))
        requeued = sum(1 for task in tasks if not task.state.is_final)
        t.facts.append(fx.WorkerGone(worker.worker_id, worker.incarnation, t.now, lost, requeued, reason))

    def _lost_attempt(
        self, task: Task, worker: WorkerInfo, lost: bool, cut_ns: Instant, reason: str
    ) -> AttemptRecord | None:
        """What is recorded of an attempt that its worker took along; None for one that nobody is blamed for.

        What ran is blamed. So is what held a reservation there and was sent shortly before the connection ended
        (`cut_ns`; 0: it never did): the worker starts that on arrival, and a task that kills it may be quicker than
        the word that it started. A worker that fell silent first, or was cut off by the network, which takes longer
        to be noticed, may never have got what was sent to it, and a backlog has no part in anything.
        """
        if self._t.unsend(task, worker):
            return None
        state = task.state
        dispatched = getattr(state, "at_ns", self._t.now)
        started = state.started_at_ns if isinstance(state, Running) else 0
        suspect = lost and task.reserved and cut_ns - dispatched <= SUSPECT_NS
        if not started and not (cut_ns and suspect):
            return None
        text = f"worker {worker.worker_id} was lost: {reason}" if lost else f"worker {worker.worker_id} left"
        return AttemptRecord(
            task.attempt,
            worker.worker_id,
            dispatched,
            started,
            self._t.now,
            Cause.LOST,
            message=text if started else f"{text}, before it said that the attempt had started",
            devices=task.devices,
        )


def _ended_before(worker: WorkerInfo, holds: list[HoldsAttempt]) -> list[Task]:
    """The attempts of a worker's last incarnation that had ended, as its new one says: their ends are on its disk."""
    had = {task.id: task for task in (*worker.running.values(), *worker.task_queue)}
    ended = (had.pop(hold.task_id, None) for hold in holds if hold.phase == "finished" and _is_of(had, hold))
    return [task for task in ended if task is not None]


def _age(hold: HoldsAttempt) -> tuple[int, int]:
    """What is greater for the newer of two attempts of one task."""
    return hold.epoch, hold.attempt


def _is_of(tasks: dict[TaskId, Task], hold: HoldsAttempt) -> bool:
    task = tasks.get(hold.task_id)
    return task is not None and (task.attempt, task.defined_ns) == (hold.attempt, hold.defined_ns)


def _has_still(task: Task, worker: WorkerInfo, hold: HoldsAttempt) -> bool:
    """Whether a worker that returns goes on with the attempt that it had."""
    begun = isinstance(task.state, Running)
    fits = worker.ledger is not None and not worker.ledger.blocker(need_of(task))
    return fits and task.attempt == hold.attempt and not (begun and hold.phase == "backlog")


def _variant_of(task: Task, worker: WorkerInfo, hold: HoldsAttempt) -> int:
    """By which variant an attempt ran; of one that has ended no worker says it, and any that fits there will do."""
    if hold.phase != "finished" or task.request is None or worker.ledger is None:
        return hold.variant
    fitting = (i for i, need in enumerate(task.request.needs) if not worker.ledger.blocker(need))
    return next(fitting, hold.variant)


def _could_be(task: Task, worker: WorkerInfo, hold: HoldsAttempt) -> bool:
    """Whether what is claimed can be an attempt of this task on this worker; an honest one claims nothing else."""
    variant = _variant_of(task, worker, hold)
    if task.request is None or worker.ledger is None or not 0 <= variant < len(task.request.needs):
        return False
    need = task.request.needs[variant]
    if worker.ledger.blocker(need):
        return False
    return hold.phase != "running" or worker.ledger.knows_devices(need, hold.devices)
