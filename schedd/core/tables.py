"""The tables of the engine and the moves that several handlers share. Nothing outside `core` sees this module."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection
from typing import Literal

from msgspec import structs

from schedd.core import effects as fx
from schedd.core.classes import RequestClasses
from schedd.core.health import Health
from schedd.core.memory import More, ask_for_more
from schedd.core.model import (
    SECOND,
    Assigned,
    AttemptFinished,
    AttemptRecord,
    AttemptReport,
    Cancelled,
    Cause,
    Delayed,
    Failed,
    Held,
    Instant,
    Queued,
    Revoking,
    State,
    Succeeded,
    Task,
    TaskId,
    TaskRequirements,
    Waiting,
    WorkerId,
    WorkerInfo,
)
from schedd.core.placement import Placer
from schedd.core.policies.base import Outcome, SurveyView, TaskScheduler
from schedd.core.queue import TaskQueue
from schedd.core.resources import ResourceManager
from schedd.core.retries import OUT_OF_MEMORY, blame, count_of, used_up
from schedd.core.settings import EngineSettings
from schedd.core.shadow import Shadow
from schedd.core.stats import Learned, RuntimeTable
from schedd.core.steals import StealLedger
from schedd.core.submits import Submits
from schedd.core.tasks import Barrier, TaskTable
from schedd.core.timers import Deadlines
from schedd.core.verdicts import KindHold

#: Records of ended attempts kept with a task; a task that retries for ever must not grow for ever.
ATTEMPTS_KEPT_MAX = 20
#: How an attempt ends through no doing of its own, so that it has no result.
NOT_OF_THE_TASK = frozenset({Cause.LOST, Cause.REJECTED})
#: In place of the task that room is made for.
BY_USER = TaskId(0)
#: Workers beyond this number send heartbeats less often, so that the daemon hears at most this many an interval.
HEARTBEATS_PER_INTERVAL_MAX = 500
#: An enumeration looks its members up by name at each use; these are used for each end of an attempt.
_OK = Cause.OK
#: How an attempt ends by its own doing.
_OWN_ENDS = frozenset({Cause.OK, Cause.ERROR, Cause.TIMEOUT})

DeadlineKey = tuple[
    Literal[
        "delay",
        "lease",
        "lost",
        "steal",
        "refresh",
        "place",
        "adopt",
        "probe",
        "trial",
        "portion",
        "command",
        "preempt",
        "move",
    ],
    int | str,
]


class Counters:
    """Totals since the start."""

    __slots__ = ("by_cause", "finished", "placements", "stale", "steals", "submitted")

    def __init__(self) -> None:
        self.submitted = 0
        self.finished = 0
        self.placements = 0
        self.steals = 0
        self.stale = 0
        self.by_cause: dict[str, int] = {}


class Tables:
    """All that the engine knows, the effects of the turn under way, and the shared moves."""

    def __init__(
        self,
        settings: EngineSettings,
        policy: TaskScheduler,
        rng: random.Random,
        shadow: TaskScheduler | None = None,
    ) -> None:
        self.settings = settings
        self.rng = rng
        self.tasks = TaskTable(settings.finished_keep_count, settings.results_keep_bytes, settings.keyed_keep_count)
        self.submits = Submits()
        self.resources = ResourceManager()
        self.classes = RequestClasses()
        self.health = Health(settings.failures)
        self.runtimes = RuntimeTable(settings.prefetch.runtime_max_s)
        self.deadlines: Deadlines[DeadlineKey] = Deadlines()
        self.counters = Counters()
        self.placer = Placer(self.resources, self.runtimes, settings.prefetch, rng.randrange)
        self.now: Instant = 0
        #: Set by whatever may let a task start; the placement pass at the end of the turn clears it.
        self.placement_wanted = False
        #: After a restart: workers that may come back with attempts; nothing is placed while there are any. Those that
        #: it began with. And the first id that this start gave: only tasks below it can be brought by a worker.
        self.awaited: set[WorkerId] = set()
        self.awaited_at_start: frozenset[WorkerId] = frozenset()
        self.restored_below = TaskId(0)
        #: Which start of the daemon on its journal this is.
        self.epoch = 0
        #: Of the current attempts, those that an earlier start has given out: which one.
        self.epochs: dict[TaskId, int] = {}
        #: Those of them beside which somebody who has not come back yet may have a newer one. A success is one; any
        #: other end of theirs is put off until all have come.
        self.doubtful: set[TaskId] = set()
        self.put_off: list[tuple[WorkerId, AttemptFinished]] = []
        #: Those of them that their workers have given back: of which start and with which number. A newer one counts
        #: though it may have the same number.
        self.let_go: dict[TaskId, tuple[int, int]] = {}
        #: Numbers of attempts that somebody may still speak of: the next one of the task is above.
        self._numbers_used: dict[TaskId, int] = {}
        #: Incarnations of workers that were draining before the restart, or when they were lost, until they come; and
        #: whether they were asked to leave.
        self.drained: dict[WorkerId, tuple[str, bool]] = {}
        #: What was asked of attempts to make room, by task; one of an attempt that is not the current one says nothing.
        self.asked: dict[TaskId, fx.PreemptAsked] = {}
        #: Workers that had an end in this turn, or have come, by seq: where nothing is left they may steal.
        self.idled: dict[int, WorkerInfo] = {}
        #: How often the timer of stealing has found nothing since a backlog grew or a worker ran out of work.
        self.fruitless = 0
        self.facts: list[fx.Fact] = []
        self.actions: list[fx.Action] = []
        self._finished: list[Task] = []
        self._dispatches: dict[WorkerId, list[Task]] = {}
        self._stops: dict[tuple[WorkerId, Cause, float | None], list[tuple[TaskId, int]]] = {}
        self._drops: dict[WorkerId, list[tuple[TaskId, int]]] = {}
        self._revokes: dict[WorkerId, list[tuple[TaskId, int]]] = {}
        self._reports: list[AttemptReport] = []
        #: What policies had learned that are not in use, by their names.
        self.learned_before: dict[str, list[Learned]] = {}
        #: What policies survey; the engine puts itself here.
        self.view: SurveyView
        self.steals = StealLedger(self.runtimes, policy.learn_steal)
        self.use(policy, shadow, TaskQueue(policy.ageing_rate, policy.level))

    def use(self, policy: TaskScheduler, shadow: TaskScheduler | None, queue: TaskQueue) -> None:
        """Place by this policy from now on, from this queue, and ask `shadow` what it would have done."""
        self.policy, self.queue = policy, queue
        self._policy_learns = type(policy).observe is not TaskScheduler.observe
        self.shadow = Shadow(shadow, lambda: self.view) if shadow is not None else None
        self.placer.use(policy, queue, self.dispatch if shadow is None else self._place_watched)
        self.steals.learn = policy.learn_steal

    @property
    def may_place(self) -> bool:
        """Whether anything may be given out: not while a restart waits for workers, nor while tasks change queues."""
        return not self.awaited and not self.queue.left_behind

    # ------------------------------------------------------------------------------------------------------ effects

    def stop(self, task: Task, worker_id: WorkerId) -> None:
        """Tell a worker to end the current attempt, which is to be cancelled or to make room."""
        asked = None if task.cancelling else self.preempting(task)
        cause, grace_s = (Cause.CANCELLED, None) if asked is None else (Cause.PREEMPTED, asked.grace_s)
        self._stops.setdefault((worker_id, cause, grace_s), []).append((task.id, task.attempt))

    def drop(self, worker_id: WorkerId, task_id: TaskId, attempt: int) -> None:
        self._drops.setdefault(worker_id, []).append((task_id, attempt))

    def revoke(self, task: Task, worker_id: WorkerId) -> None:
        self._revokes.setdefault(worker_id, []).append((task.id, task.attempt))

    def unsay_ends(self, worker_id: WorkerId) -> None:
        """Forget what this turn told a worker to drop or to stop: it was meant for a connection that it has left."""
        self._drops.pop(worker_id, None)
        for key in [key for key in self._stops if key[0] == worker_id]:
            del self._stops[key]

    def publish(self, report: AttemptReport) -> None:
        self._reports.append(report)

    def take_effects(self) -> fx.Effects:
        """Hand over what the turn brought about. A worker is told to drop and stop before it gets anything new."""
        actions = self.actions
        if self._drops or self._stops or self._revokes:
            self._take_orders(actions)
        if self._dispatches:
            for worker_id, tasks in self._dispatches.items():
                actions.append(fx.DispatchAttempts(worker_id, tasks, self.epoch))
            self._dispatches = {}
        if self._reports:
            actions.append(fx.PublishReports(self._reports))
            self._reports = []
        effects = fx.Effects(self.facts, actions, self._finished)
        self.facts, self.actions, self._finished = [], [], []
        return effects

    def _take_orders(self, actions: list[fx.Action]) -> None:
        for worker_id, attempts in self._drops.items():
            actions.append(fx.DropAttempts(worker_id, attempts))
        for (worker_id, cause, grace_s), attempts in self._stops.items():
            actions.append(fx.StopAttempts(worker_id, attempts, cause, grace_s))
        for worker_id, attempts in self._revokes.items():
            actions.append(fx.RevokeAttempts(worker_id, attempts))
        for outbox in (self._drops, self._stops, self._revokes):
            outbox.clear()

    # ------------------------------------------------------------------------------------------- waiting and queueing

    def waiting_state(self, task: Task) -> State:
        """Where a task that is not held stands before its dispatch."""
        if task.id in self.tasks.barriers:
            return Waiting(self.now)
        if task.not_before_ns > self.now:
            return Delayed(task.not_before_ns)
        return Queued(self.now)

    def settle(self, task: Task) -> None:
        """Move a waiting task to where it now belongs."""
        state = self.waiting_state(task)
        if type(state) is not type(task.state):
            self.tasks.set_state(task, state)
        self.enter(task)

    def enter(self, task: Task) -> None:
        """Do what the state of a task asks for: a place in the queue, or a deadline."""
        state = task.state
        if isinstance(state, Queued):
            if self.health.holds and (hold := self.health.is_kept_back(task)) is not None:
                self.keep_back(task, hold)
                return
            self.regroup(task)
            self.queue.push(task)
            self.placement_wanted = True
        elif isinstance(state, Delayed):
            self.deadlines.set(("delay", task.id), state.until_ns)

    def regroup(self, task: Task) -> None:
        """Give a task that is in no queue the class that the policy wants it in; another may have made its own."""
        request, by_kind, by_size = task.request, self.policy.by_kind, self.policy.by_size
        if request is None or (request.by_kind is by_kind and request.by_size is by_size):
            return
        if not request.suits(task, by_kind, by_size):
            task.request = self.classes.intern(task.requirements, task.kind, by_kind, by_size)

    def withdraw(self, task: Task) -> None:
        """Undo `enter`; whoever stood behind the task may have its place now."""
        self.placement_wanted = True
        if task.place:
            self.queue.remove(task)
        elif isinstance(task.state, Delayed):
            self.deadlines.cancel(("delay", task.id))
        elif isinstance(task.state, Held) and task.state.reason:
            hold = self.health.hold_of(task)
            if hold is not None:
                hold.members.pop(task.id, None)

    def keep_back(self, task: Task, hold: KindHold) -> None:
        """Hold a task that is in no queue, because its kind is held."""
        self.tasks.set_state(task, Held(self.now, hold.reason))
        hold.members[task.id] = None

    # -------------------------------------------------------------------------------------------------------- attempts

    def dispatch(self, task: Task, worker: WorkerInfo, variant: int) -> None:
        """Begin a new attempt on a worker: reserve, or join its backlog. One whose kind is held is held instead."""
        if self.health.holds and (hold := self.health.is_kept_back(task)) is not None:
            self.keep_back(task, hold)
            return
        if self._numbers_used:
            task.attempt = max(task.attempt, self._numbers_used.pop(task.id, 0))
        task.attempt += 1
        task.variant = variant
        task.cancelling = False
        if self.asked:
            self.asked.pop(task.id, None)
        started = self.resources.attach(task, worker)
        self.tasks.set_state(task, Assigned(worker.worker_id, self.now))
        self.facts.append(fx.AttemptDispatched(task.id, task.attempt, worker.worker_id, self.now))
        self.counters.placements += 1
        sent = self._dispatches.get(worker.worker_id)
        if sent is None:
            sent = self._dispatches[worker.worker_id] = []
        sent.append(task)
        if not started and self.settings.stealing:
            self.arm_stealing()

    def _place_watched(self, task: Task, worker: WorkerInfo, variant: int) -> None:
        """Let the shadow see what the policy has decided, and do it."""
        if self.shadow is not None and not (self.health.holds and self.health.is_kept_back(task) is not None):
            self.shadow.judge(task, worker, self.placer, self.resources, self.now)
        self.dispatch(task, worker, variant)

    def preempt(self, task: Task, worker: WorkerInfo, grace_s: float | None, for_id: TaskId = BY_USER) -> None:
        """Ask a dispatched attempt to make room. Its worker reports the end, which puts the task back in the queue."""
        self.asked[task.id] = asked = fx.PreemptAsked(task.id, task.attempt, self.now, grace_s, for_id)
        self.facts.append(asked)
        self.stop(task, worker.worker_id)

    def preempting(self, task: Task) -> fx.PreemptAsked | None:
        """What was asked of the current attempt; None: it may go on."""
        asked = self.asked.get(task.id)
        return asked if asked is not None and asked.attempt == task.attempt else None

    def is_stopping(self, task: Task) -> bool:
        """Whether the current attempt was told to end."""
        return task.cancelling or (bool(self.asked) and self.preempting(task) is not None)

    def unsend(self, task: Task, worker: WorkerInfo) -> bool:
        """Leave out of the effects what this very turn has dispatched; False where the worker may know of it."""
        sent = self._dispatches.get(worker.worker_id)
        if sent is None or task not in sent:
            return False
        sent.remove(task)
        if not sent:
            del self._dispatches[worker.worker_id]
        return True

    def take_back(self, worker: WorkerInfo, wanted: Callable[[Task], bool] = lambda task: True) -> list[TaskId]:
        """Ask a worker for its backlog, or what is wanted of it, to be queued again; returns what was asked for."""
        return [task.id for task in list(worker.task_queue) if wanted(task) and self.ask_back(task, worker)]

    def ask_back(self, task: Task, worker: WorkerInfo) -> bool:
        """Ask a worker for an attempt that has not started for all that we know, for the task to be queued again."""
        if not isinstance(task.state, Assigned) or self.is_stopping(task):
            return False
        self.tasks.set_state(task, Revoking(worker.worker_id, task.state.at_ns, WorkerId("")))
        worker.outgoing += not task.reserved
        self.revoke(task, worker.worker_id)
        self.resources.touch(worker)
        self.placement_wanted = True  # who gives its backlog back may have room for something else
        return True

    def arm_stealing(self) -> None:
        """Let the timer look at all backlogs an interval from now, unless it does so earlier."""
        if self.fruitless or ("steal", 0) not in self.deadlines:
            self.fruitless = 0
            self.deadlines.set(("steal", 0), self.now + self.settings.steal_interval_ns)

    def release(self, task: Task, worker: WorkerInfo) -> None:
        """Take a dispatched task off its worker, a steal under way included."""
        if self._dispatches:
            self.unsend(task, worker)
        if type(task.state) is Revoking:
            self.end_steal(task, worker)
        if self.epochs:
            epoch = self.epochs.pop(task.id, 0)
            if task.id in self.doubtful:
                self.doubtful.remove(task.id)
                self.let_go[task.id] = epoch, task.attempt
        self.resources.detach(task, worker)
        self.placement_wanted = True

    def note_idled(self, worker: WorkerInfo) -> None:
        """Let a worker look for something to steal at the end of the turn, unless it has work by then."""
        if self.settings.stealing and not worker.task_queue:
            self.idled[worker.seq] = worker

    def end_steal(self, task: Task, victim: WorkerInfo) -> None:
        """Stop counting a move in flight, on both sides."""
        state = task.state
        if not isinstance(state, Revoking):
            return
        if not task.reserved:
            victim.outgoing -= 1
        thief = self.resources.by_seq.get(state.thief_seq)
        if thief is not None:
            thief.incoming -= 1
            self.resources.touch(thief)
            self.placement_wanted = True
        self.tasks.set_state(task, Assigned(victim.worker_id, state.at_ns))

    def conclude(self, task: Task, record: AttemptRecord, result: bytes | None) -> None:
        """An attempt has ended and is off its worker: decide what becomes of the task."""
        cause = record.cause
        if cause is _OK:
            self.note_attempt(task, record)
            self.finish(task, Succeeded(self.now), "", result)
        elif cause is Cause.CANCELLED or task.cancelling:
            self.note_attempt(task, record)
            self.finish(task, Cancelled(self.now), record.message, result)
        elif cause is Cause.PREEMPTED or record.excused:
            self.note_attempt(task, record)
            self.requeue(task)
        else:
            self._answer_failure(task, record, result)

    def _answer_failure(self, task: Task, record: AttemptRecord, result: bytes | None) -> None:
        """Count an attempt against the limit of its cause; try again within it, end the task beyond it."""
        cause = record.cause
        blame(task, cause)
        count = count_of(task, cause)
        if count > self.settings.retries.limit(cause, task.rules):
            self._give_up(task, record, used_up(task, record, count), result)
            return
        more = self._more_memory(task, record) if cause in OUT_OF_MEMORY else None
        if more is not None:
            record = structs.replace(record, message=_joined(record.message, more.told))
        elif cause in OUT_OF_MEMORY and task.rules.oom_limit is None:
            # The configuration's retries are for what may go better; those that a task asks for are done in any case.
            told = _joined(record.message, "another attempt could ask for nothing else")
            self._give_up(task, record, told, result)
            return
        self._try_again(task, record, None if cause is Cause.LOST else self._pause_ns(task, count), more)

    def _give_up(self, task: Task, record: AttemptRecord, told: str, result: bytes | None) -> None:
        self.note_attempt(task, structs.replace(record, message=told))
        self.finish(task, Failed(self.now), told, None if record.cause in NOT_OF_THE_TASK else result)

    def _try_again(self, task: Task, record: AttemptRecord, pause_ns: int | None, more: More | None) -> None:
        """Let a task wait for its next attempt: in the queue, or (not None) delayed for so long."""
        if pause_ns is None:
            self.note_attempt(task, record)
            self.requeue(task)
            return
        task.not_before_ns = self.now + pause_ns
        self.note_attempt(task, record, task.not_before_ns)
        self.tasks.set_state(task, Delayed(task.not_before_ns))
        self.enter(task)
        if more is not None:
            self.define(task, more.requirements)
            self.note_change(task)

    def _more_memory(self, task: Task, record: AttemptRecord) -> More | None:
        """What a task that ran out of memory asks for next; None: nothing else than before."""
        workers = self.resources.workers
        worker = workers.get(record.worker_id)
        ledger = worker.ledger if worker is not None else None
        devices_mb = [ledger.devices[i].memory_mb for i in record.devices] if ledger is not None else []
        ledgers = [each.ledger for each in workers.values() if each.ledger is not None]
        growth = self.settings.retries.growth(task.rules)
        return ask_for_more(task.requirements, task.variant, record.cause, devices_mb, ledgers, growth)

    def define(self, task: Task, requirements: TaskRequirements) -> None:
        """Give a task that is in no queue other requirements; a claim under the old ones counts no more."""
        task.requirements = requirements
        task.defined_ns = self.now
        task.variant = 0
        task.request = self.classes.intern(requirements, task.kind, self.policy.by_kind, self.policy.by_size)

    def note_change(self, task: Task) -> None:
        """Record what a task now asks for, and how important it is."""
        fact = fx.TaskChanged(task.id, task.priority, task.requirements, task.defined_ns, task.promoted)
        self.facts.append(fact)

    def promote(self, task: Task, after: Task) -> bool:
        """Let a task, which is in no queue, gain by the last report of one that it came after; False: it does not."""
        gain = self.policy.promotion(after.report) if after.report is not None else None
        if gain is None or (task.promoted is not None and gain <= task.promoted):
            return False
        task.promoted = gain
        return True

    def note_attempt(self, task: Task, record: AttemptRecord, retry_at_ns: Instant = 0) -> None:
        """Record the end of an attempt in the history of its task, and in the totals."""
        task.attempts = (*task.attempts[-(ATTEMPTS_KEPT_MAX - 1) :], record) if task.attempts else (record,)
        if self.let_go:
            self.let_go.pop(task.id, None)
        self.facts.append(fx.AttemptEnded(task.id, record, retry_at_ns))
        causes = self.counters.by_cause
        causes[record.cause] = causes.get(record.cause, 0) + 1
        if self.asked:
            self.asked.pop(task.id, None)

    def requeue(self, task: Task) -> None:
        """Put a dispatched task that is off its worker back in its place in the queue; a cancelled one ends here."""
        self.asked.pop(task.id, None)
        if task.cancelling:
            self.finish(task, Cancelled(self.now), "cancelled", None)
        else:
            self.tasks.set_state(task, Queued(self.now))
            self.enter(task)

    def _pause_ns(self, task: Task, failures: int) -> int:
        """How long to wait before the next attempt: a random part of an exponentially growing span.

        Full jitter: uniform between 0 and the span (Brooker, "Exponential Backoff And Jitter", 2015).
        """
        return int(self.rng.uniform(0, self.settings.retries.span_s(task.rules, failures)) * SECOND)

    def learn(self, task: Task, worker: WorkerInfo, record: AttemptRecord) -> None:
        """Let estimates and policy learn from an attempt that ran to its own end."""
        success = record.cause is _OK
        if not record.started_at_ns or not (success or record.cause in _OWN_ENDS):
            return
        runtime_s = max(0, record.finished_at_ns - record.started_at_ns) / SECOND
        self.runtimes.observe(task.kind, runtime_s, success)
        if self.shadow is not None:
            self.shadow.learn(Outcome(task, worker, runtime_s, success), self.now)
        if not self._policy_learns:
            return
        self.policy.observe(Outcome(task, worker, runtime_s, success), self.now)
        interval_s = self.policy.refresh_interval_s
        if interval_s and ("refresh", 0) not in self.deadlines:
            self.deadlines.set(("refresh", 0), self.now + int(interval_s * SECOND))

    # ------------------------------------------------------------------------------------------------------------ ends

    def finish(
        self, task: Task, state: Succeeded | Failed | Cancelled, message: str = "", result: bytes | None = None
    ) -> None:
        """Bring a task to its final state, and those that waited for it to where they now belong."""
        barriers = self._end(task, state, message, result)
        if not barriers:
            return
        if isinstance(state, Succeeded):
            for barrier in barriers:
                self._let_through(barrier, task)
            return
        pending = [(task, barriers)]
        while pending:
            ended, barriers = pending.pop()
            reason = f"needs task {ended.id}, which {'failed' if ended.state.name == 'failed' else 'was cancelled'}"
            for other_id in [other_id for barrier in barriers for other_id in barrier.waiting]:
                other = self.tasks.rows[other_id]
                self.withdraw(other)
                other.attempts = (_never_ran(other, self.now, reason),)
                pending.append((other, self._end(other, Cancelled(self.now), reason, None)))

    def _let_through(self, barrier: Barrier, succeeded: Task) -> None:
        """A task that was missing at a barrier is there: those that wait gain by it, and may go if it was the last."""
        for other_id in barrier.waiting if self.policy.promotes else ():
            other = self.tasks.rows[other_id]
            if self.promote(other, succeeded):
                self.note_change(other)
        for other_id in self.tasks.open(barrier) if not barrier.missing else ():
            other = self.tasks.rows[other_id]
            if isinstance(other.state, Waiting):
                self.settle(other)

    def _end(
        self, task: Task, state: Succeeded | Failed | Cancelled, message: str, result: bytes | None
    ) -> Collection[Barrier]:
        barriers = self.tasks.finish(task, state, result)
        if self.asked:
            self.asked.pop(task.id, None)
        if self._numbers_used:
            self._numbers_used.pop(task.id, None)
        self.counters.finished += 1
        self.facts.append(fx.TaskFinished(task.id, state.name, self.now, message, result))
        self._finished.append(task)
        return barriers

    def worker_of(self, task: Task) -> WorkerInfo | None:
        """The worker that holds the current attempt."""
        worker_id = getattr(task.state, "worker_id", None)
        return self.resources.workers.get(worker_id) if worker_id is not None else None

    def stop_awaiting(self, worker_id: WorkerId | None = None) -> None:
        """After a restart: this worker has come back, or (None) the grace has ended. Placement begins with the last."""
        if not self.awaited:
            return
        if worker_id is None:
            self.awaited.clear()
        else:
            self.awaited.discard(worker_id)
        if not self.awaited:
            self.deadlines.cancel(("adopt", 0))
            self.placement_wanted = True
            self.doubtful.clear()
            self.let_go.clear()

    def pass_over(self, task: Task, attempt: int) -> None:
        """Give the next attempt of a task another number than one that was not adopted, or is no longer.

        The current one keeps its own: another worker may rightly have it.
        """
        if not task.state.is_final:
            self._numbers_used[task.id] = max(attempt, task.attempt, self._numbers_used.get(task.id, 0))

    def heartbeat_ns(self) -> int:
        """How long a worker may wait before it sends the next heartbeat, by the number of workers."""
        return self.settings.heartbeat_ns * max(1, -(-len(self.resources) // HEARTBEATS_PER_INTERVAL_MAX))

    def lease_ns(self) -> int:
        """How long a silent worker is believed alive: never less than three heartbeats."""
        return max(self.settings.lease_ns, 3 * self.heartbeat_ns())


def _joined(message: str, told: str) -> str:
    return f"{message}; {told}" if message else told


def _never_ran(task: Task, now: Instant, reason: str) -> AttemptRecord:
    """Stand in for the attempt of a task that ended before its first, so that the reason stays with it."""
    return AttemptRecord(task.attempt, WorkerId(""), 0, 0, now, Cause.CANCELLED, message=reason)
