"""What workers say of attempts: started, finished, reported, given back. And the protocol of a steal.

Every report names (task, attempt). One about anything but the current attempt on that very worker is stale: it is
counted, the worker is told to drop what it may still run, and nothing changes (raft answers late messages alike).

A steal: propose -> revoke(task, attempt) to the victim -> it drops the attempt in the same step if it has not started
and says so, else refuses -> one pure change of state -> dispatch to the thief. Moves in flight count on both sides.
"""

from __future__ import annotations

from schedd.core import effects as fx
from schedd.core import events as ev
from schedd.core.guard import Guard
from schedd.core.model import (
    Assigned,
    AttemptFinished,
    AttemptRecord,
    AttemptStarted,
    Cause,
    Instant,
    Report,
    Revoking,
    Running,
    Task,
    TaskId,
    WorkerId,
    WorkerInfo,
)
from schedd.core.resources import need_of
from schedd.core.tables import Tables
from schedd.core.tasks import DISPATCHED

#: A message of a worker about its attempt is cut to this many characters.
MESSAGE_MAX = 2000
#: A report has at most so many metrics, with names of at most so many characters.
METRICS_MAX = 100
METRIC_NAME_MAX = 128
#: An enumeration looks its members up by name at each use; these are used for each end.
_OK, _PREEMPTED = Cause.OK, Cause.PREEMPTED


class Attempts:
    """The handlers of what workers say about attempts."""

    def __init__(self, tables: Tables, guard: Guard) -> None:
        self._t = tables
        self._guard = guard

    def _current(self, worker_id: WorkerId, task_id: TaskId, attempt: int) -> tuple[Task, WorkerInfo] | None:
        """The row and the worker, if this is the task's current attempt and that worker holds it."""
        task = self._t.tasks.rows.get(task_id)
        if task is None or task.attempt != attempt or type(task.state) not in DISPATCHED:
            return None
        worker = self._t.resources.workers.get(worker_id)
        if worker is None or task.state.worker_id != worker_id:  # type: ignore[attr-defined]
            return None
        return task, worker

    def _stale(self, worker_id: WorkerId, task_id: TaskId, attempt: int, drop: bool) -> None:
        self._t.counters.stale += 1
        if drop:
            self._t.drop(worker_id, task_id, attempt)

    # --------------------------------------------------------------------------------------------- started, finished

    def on_attempts_started(self, event: ev.AttemptsStarted) -> None:
        for started in event.attempts:
            found = self._current(event.worker_id, started.task_id, started.attempt)
            if found is None:
                self._stale(event.worker_id, started.task_id, started.attempt, drop=True)
                continue
            task, worker = found
            if isinstance(task.state, Running):
                continue  # said twice, after a reconnection
            if isinstance(task.state, Revoking):
                self._on_refused(task, task.state, worker)
            if not task.reserved or task.devices != started.devices:
                self._match_reservation(task, worker, started)
            self._start(task, worker, started.started_at_ns)

    def _on_refused(self, task: Task, state: Revoking, victim: WorkerInfo) -> None:
        """The victim has come to a task before it was asked for it; the thief may look elsewhere."""
        self._t.end_steal(task, victim)
        thief = self._t.resources.by_seq.get(state.thief_seq)
        if thief is not None:
            self._t.note_idled(thief)

    def _start(self, task: Task, worker: WorkerInfo, started_at_ns: Instant) -> None:
        # A worker's clock may be off: a start lies between the dispatch and now.
        at_ns = getattr(task.state, "at_ns", self._t.now)
        begun = min(max(started_at_ns, at_ns), self._t.now)
        self._t.tasks.set_state(task, Running(worker.worker_id, at_ns, begun))
        self._t.facts.append(fx.AttemptBegan(task.id, task.attempt, begun))
        if self._t.steals.open:
            self._t.steals.started(task, begun)
        if self._t.policy.preempt_interval_s:
            self._t.policy.began(task, self._t.now)

    def _match_reservation(self, task: Task, worker: WorkerInfo, started: AttemptStarted) -> None:
        """The worker decides what starts, on which devices; our mirror follows it where they differ."""
        need = need_of(task)
        self._t.placement_wanted = True
        if worker.ledger is not None and worker.ledger.knows_devices(need, started.devices):
            self._t.resources.start_on(task, worker, started.devices)
        elif not task.reserved:  # it says nonsense of the devices, but it has started
            self._t.resources.start_on(task, worker, tuple(range(need.gpus)))

    def on_attempts_finished(self, event: ev.AttemptsFinished) -> None:
        t = self._t
        for finished in event.attempts:
            found = self._current(event.worker_id, finished.task_id, finished.attempt)
            if found is None:
                self._stale(event.worker_id, finished.task_id, finished.attempt, drop=False)
                continue
            if t.doubtful and finished.task_id in t.doubtful and finished.cause is not _OK:
                t.put_off.append((event.worker_id, finished))
                continue
            task, worker = found
            record = self._record(task, worker, finished)
            if t.steals.open and record.started_at_ns:
                t.steals.started(task, record.started_at_ns)  # where start and end are told together
            t.release(task, worker)
            if record.cause is _OK:
                worker.finished_count += 1
            elif record.cause is not _PREEMPTED:
                worker.failed_count += 1
            if t.settings.stealing:
                t.note_idled(worker)
            if t.steals.open:
                t.steals.ended_at(worker, t.now)
            t.learn(task, worker, record)
            t.conclude(task, self._guard.on_ended(task, worker, record), finished.result)

    def take_put_off(self) -> None:
        """Once all have come after a restart: take the ends beside which there might have been newer attempts."""
        t = self._t
        if t.put_off and not t.awaited:
            ends, t.put_off = t.put_off, []
            for worker_id, finished in ends:
                self.on_attempts_finished(ev.AttemptsFinished(worker_id, [finished]))

    def _record(self, task: Task, worker: WorkerInfo, finished: AttemptFinished) -> AttemptRecord:
        state = task.state
        now = self._t.now
        dispatched = getattr(state, "at_ns", now)
        started = finished.started_at_ns
        if isinstance(state, Running):
            started = state.started_at_ns
        elif started:
            started = min(max(started, dispatched), now)
        # The length is the worker's to tell, the end cannot lie behind us.
        runtime = max(0, finished.finished_at_ns - finished.started_at_ns) if finished.started_at_ns else 0
        ended = min(started + runtime, now) if started else now
        cause, message = finished.cause, finished.message[:MESSAGE_MAX]
        if cause is _PREEMPTED and (asked := self._t.preempting(task)) is not None:
            message = f"made room for task {asked.for_id}" if asked.for_id else "on request"
        elif cause is _PREEMPTED and task.id not in self._t.epochs:
            # For ever, if this were without a limit. What an earlier start gave out it may have asked for, too.
            cause, message = Cause.LOST, f"worker {worker.worker_id} says that it made room, and was not asked to"
        return AttemptRecord(
            task.attempt,
            worker.worker_id,
            dispatched,
            started,
            ended,
            cause,
            finished.exit_code,
            finished.signal,
            message,
            task.devices,
        )

    def on_attempts_reported(self, event: ev.AttemptsReported) -> None:
        for report in event.reports:
            found = self._current(event.worker_id, report.task_id, report.attempt)
            if found is None:
                self._stale(event.worker_id, report.task_id, report.attempt, drop=False)
            elif len(report.metrics) <= METRICS_MAX and all(len(name) <= METRIC_NAME_MAX for name in report.metrics):
                before = found[0].report
                metrics = {**before.metrics, **report.metrics} if before is not None else report.metrics
                found[0].report = Report(report.step, metrics if len(metrics) <= METRICS_MAX else report.metrics)
                self._t.publish(report)

    # ------------------------------------------------------------------------------------------------------- stealing

    def on_revokes_answered(self, event: ev.RevokesAnswered) -> None:
        for task_id, attempt, given_back in event.answers:
            found = self._current(event.worker_id, task_id, attempt)
            if found is None or not isinstance(found[0].state, Revoking):
                if found is not None and given_back and isinstance(found[0].state, Assigned):
                    # It was asked for in the turn in which its worker came anew, and said that it has it.
                    self._give_back(*found)
                else:
                    self._t.counters.stale += 1
                continue
            task, victim = found
            thief = self._t.resources.by_seq.get(found[0].state.thief_seq)
            if not given_back:
                self._t.steals.refused(task)
                self._t.end_steal(task, victim)  # it has started: the message that says so is on its way
                self._t.resources.touch(victim)
                continue
            self._t.release(task, victim)
            if thief is not None:
                self._t.note_idled(thief)  # it may have room for more
            if thief is not None and not self._t.is_stopping(task) and self._fits(task, thief):
                self._t.facts.append(fx.AttemptStolen(task.id, victim.worker_id, thief.worker_id, self._t.now))
                self._t.counters.steals += 1
                self._t.tasks.set_state(task, self._t.waiting_state(task))
                self._t.dispatch(task, thief, self._variant(task, thief))
            else:
                self._t.requeue(task)

    def _fits(self, task: Task, thief: WorkerInfo) -> bool:
        return self._t.placer.may_wait_at(task, thief)

    def _variant(self, task: Task, thief: WorkerInfo) -> int:
        # The thief may have filled up meanwhile; then the task joins its backlog under the first variant it can hold.
        found = self._t.placer.fit(task, thief, 1 << 30)
        return found[1] if found is not None else 0

    def on_handed_back(self, worker: WorkerInfo, handed_back: list[tuple[TaskId, int]]) -> None:
        """A draining worker gives back what it had not started; nobody is blamed."""
        for task_id, attempt in handed_back:
            found = self._current(worker.worker_id, task_id, attempt)
            if found is None:
                self._stale(worker.worker_id, task_id, attempt, drop=False)
                continue
            self._give_back(*found)

    def _give_back(self, task: Task, worker: WorkerInfo) -> None:
        self._t.release(task, worker)
        self._t.requeue(task)
