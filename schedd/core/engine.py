"""The engine: the one door through which anything changes.

`handle(events, now)` lets a handler record each event, expires what is due, runs one placement pass over the result,
and returns facts and actions. It does no I/O, knows no clock and draws no random number but from the generator it was
given: the daemon, the simulator and the tests run the very same machine.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from schedd.core import effects as fx
from schedd.core import events as ev
from schedd.core.attempts import Attempts
from schedd.core.change import Change
from schedd.core.explain import Explanation, explain
from schedd.core.fleet import Fleet
from schedd.core.guard import Guard
from schedd.core.model import (
    SECOND,
    Assigned,
    Belief,
    CauseLimit,
    Delayed,
    Held,
    Instant,
    Queued,
    Revoking,
    Running,
    Task,
    TaskId,
    TaskRequirements,
    WorkerId,
    WorkerInfo,
    WorkerStatus,
)
from schedd.core.policies.base import TaskScheduler, WaitingClass
from schedd.core.preemption import Preemptor
from schedd.core.requests import CHANGES_PER_TURN_MAX, Requests
from schedd.core.resources import ResourceManager
from schedd.core.restore import Recorded, Restore
from schedd.core.retries import limits_of
from schedd.core.settings import EngineSettings
from schedd.core.shadow import Comparison
from schedd.core.stats import Learned
from schedd.core.stealing import Stealing
from schedd.core.steals import StealLedger
from schedd.core.tables import Counters, Tables
from schedd.core.tasks import DISPATCHED, TaskTable, story
from schedd.core.timers import NEVER
from schedd.core.verdicts import KindHold, Quarantine

#: An enumeration looks its members up by name at each use; this one is used for each event of a worker.
_UNREACHABLE = WorkerStatus.UNREACHABLE

#: Under this name the engine keeps what it has learned itself; what a policy has is under the policy's.
RUNTIMES = "runtimes"
#: A turn that is late by so much is late because the daemon did not run, not because it had much to do.
LATE_NS = SECOND // 4
#: Events that come from a worker while it is there.
LIFE = frozenset(
    {
        ev.WorkerLeft,
        ev.WorkerDraining,
        ev.WorkerHeard,
        ev.Heartbeat,
        ev.AttemptsStarted,
        ev.AttemptsFinished,
        ev.AttemptsReported,
        ev.RevokesAnswered,
    }
)


class Engine:
    """Tables of facts, one policy with its beliefs, and the handlers of events."""

    def __init__(
        self,
        policy: TaskScheduler,
        settings: EngineSettings | None = None,
        rng: random.Random | None = None,
        shadow: TaskScheduler | None = None,
    ) -> None:
        """`shadow`: a policy that is asked what it would have done, and decides nothing."""
        self._t = t = Tables(settings or EngineSettings(), policy, rng or random.Random(0), shadow)
        t.view = self
        self._guard = guard = Guard(t)
        self._attempts = attempts = Attempts(t, guard)
        self._fleet = fleet = Fleet(t, attempts, guard)
        self._preemptor = Preemptor(t)
        self._stealing = Stealing(t)
        self._requests = requests = Requests(t, guard)
        self._change = Change(t, fleet, guard)
        handlers: dict[type[ev.Event], Callable[[Any], None]] = {
            ev.SubmitTasks: requests.on_submit_tasks,
            ev.CancelTasks: requests.on_cancel_tasks,
            ev.PreemptTasks: requests.on_preempt_tasks,
            ev.HoldTasks: requests.on_hold_tasks,
            ev.ReleaseTasks: requests.on_release_tasks,
            ev.SetTasks: requests.on_set_tasks,
            ev.SetPriorities: requests.on_set_priorities,
            ev.DrainWorkers: fleet.on_drain_workers,
            ev.WorkerJoined: fleet.on_worker_joined,
            ev.WorkerDisconnected: fleet.on_worker_disconnected,
            ev.WorkerLeft: fleet.on_worker_left,
            ev.WorkerDraining: fleet.on_worker_draining,
            ev.WorkerHeard: lambda _: None,
            ev.Heartbeat: fleet.on_heartbeat,
            ev.AttemptsStarted: attempts.on_attempts_started,
            ev.AttemptsFinished: attempts.on_attempts_finished,
            ev.AttemptsReported: attempts.on_attempts_reported,
            ev.RevokesAnswered: attempts.on_revokes_answered,
            ev.SettingsChanged: self._change.on_settings_changed,
            ev.PolicyReplaced: self._change.on_policy_replaced,
            ev.Wakeup: self._on_wakeup,
        }
        #: What takes an event in, and whether the event shows that its worker is alive.
        self._handlers = {event: (handler, event in LIFE) for event, handler in handlers.items()}
        #: When the turn before this one was.
        self._before_ns: Instant = 0
        #: One placement pass. The shell may put something around it: a clock, for instance.
        self.run_pass: Callable[[Instant], bool] = t.placer.run

    # ------------------------------------------------------------------------------------------------------ the door

    def handle(self, events: Sequence[ev.Event], now: Instant) -> fx.Effects:
        """Take in the events of one turn and return what follows from them.

        now: engine nanoseconds, never before the last call. O(events + tasks placed * log n).
        Raises InvalidTransition where the engine itself is wrong; nothing that a peer sends leads there.
        """
        t, handlers, resources = self._t, self._handlers, self._t.resources
        workers = resources.workers
        self._before_ns, t.now = t.now, now
        if self._requests.room < CHANGES_PER_TURN_MAX:
            self._requests.go_on()
        for event in events:
            handler, is_life = handlers[type(event)]
            if is_life and (worker := workers.get(event.worker_id)) is not None:  # type: ignore[attr-defined]
                worker.last_seen_ns = now
                if worker.status is _UNREACHABLE:
                    self._fleet.on_return(worker)
            handler(event)
        if t.deadlines.soonest <= now:
            self._expire()
        queue = t.queue
        may_place = not t.awaited and not queue.left_behind
        if t.placement_wanted and may_place:
            if t.health.due:
                self._guard.try_due()
            t.placement_wanted = False
            if queue.size and workers:
                self._place(now)
        if self._requests.pending:
            t.deadlines.set(("command", 0), now)  # which goes on at once
        if t.policy.preempt_interval_s and may_place:
            self._preemptor.after_pass()
        if t.idled and may_place and ("place", 0) not in t.deadlines:
            self._stealing.for_idle()
        if resources.touched:
            resources.commit()
        return t.take_effects()

    def _place(self, now: Instant) -> None:
        t, policy = self._t, self._t.policy
        interval_s = policy.refresh_interval_s
        if interval_s and policy.is_stale(now):
            self._refresh()
        if self.run_pass(now):
            t.deadlines.set(("place", 0), now)
        if interval_s and t.queue.size and ("refresh", 0) not in t.deadlines:
            t.deadlines.set(("refresh", 0), now + int(interval_s * SECOND))

    def restore(self, recorded: Recorded, now: Instant, grace_ns: Instant) -> None:
        """Fill the tables, which must be empty, with what was recorded; once, before the first `handle`.

        Places nothing until its workers have come back, for `grace_ns` at the longest. O(live tasks).
        """
        for _ in self.restoring(recorded, now, grace_ns):
            pass

    def restoring(self, recorded: Recorded, now: Instant, grace_ns: Instant) -> Iterator[None]:
        """Do what `restore` does in steps of some milliseconds; nothing else may be asked before the last."""
        return Restore(self._t, self._guard, now).steps(recorded, grace_ns)

    def learned(self) -> dict[str, list[Learned]]:
        """What engine and policy have learned, by who has; bounded."""
        shadow = self._t.shadow
        beside = {shadow.policy.name: shadow.learned()} if shadow is not None else {}
        return (
            self._t.learned_before
            | beside
            | {RUNTIMES: self._t.runtimes.learned(), self._t.policy.name: self._t.policy.learned()}
        )

    def recall(self, learned: Mapping[str, Iterable[Learned]]) -> None:
        """Go on from what was learned before a restart; once, before the first `handle`."""
        in_use = (RUNTIMES, self._t.policy.name)
        self._t.learned_before = {name: list(rows) for name, rows in learned.items() if name not in in_use}
        self._t.runtimes.recall(learned.get(RUNTIMES, ()))
        self._t.policy.recall(learned.get(self._t.policy.name, ()))
        if self._t.shadow is not None:
            self._t.shadow.recall(learned.get(self._t.shadow.policy.name, ()))

    def next_deadline(self, before: Instant = NEVER) -> Instant | None:
        """When the engine must be called with a `Wakeup` at the latest; None: not before the next event.

        before: who will call it then anyway need not know of what is due later.
        """
        deadlines = self._t.deadlines
        return deadlines.next() if deadlines.soonest < before else None

    def _on_wakeup(self, event: ev.Wakeup) -> None:
        if event.lag_ns >= LATE_NS:
            self._fleet.on_away(self._before_ns)

    # --------------------------------------------------------------------------------------------------------- timers

    def _expire(self) -> None:
        for key in self._t.deadlines.expire(self._t.now):
            match key:
                case ("delay", task_id):
                    self._on_delay_over(TaskId(int(task_id)))
                case ("lease", worker_id):
                    self._fleet.on_lease_expired(WorkerId(str(worker_id)))
                case ("lost", worker_id):
                    self._fleet.on_lost(WorkerId(str(worker_id)))
                case ("probe", worker_id):
                    self._guard.on_probe_due(WorkerId(str(worker_id)))
                case ("trial", number):
                    self._guard.on_trial_due(int(number))
                case ("portion", number):
                    self._guard.on_portion_due(int(number))
                case ("adopt", _):
                    self._fleet.on_grace_over()
                case ("place", _):
                    self._t.placement_wanted = True
                case ("steal", _):
                    self._stealing.on_timer()
                case ("preempt", _):
                    self._preemptor.is_due = True
                case ("move", _):
                    self._change.go_on()
                case ("refresh", _):
                    self._on_refresh_timer()

    def _on_delay_over(self, task_id: TaskId) -> None:
        task = self._t.tasks.get(task_id)
        if task is not None and isinstance(task.state, Delayed):
            self._t.settle(task)

    def _on_refresh_timer(self) -> None:
        self._refresh()
        self._t.placement_wanted = True

    def _refresh(self) -> None:
        t = self._t
        t.policy.survey(self, t.now)
        is_declined = any(each.is_declined for each in t.queue.set_apart.values())
        for worker_id in t.policy.refresh(t.now):
            worker = t.resources.workers.get(worker_id)
            if worker is None:
                continue
            if worker.status is WorkerStatus.IDLE or (is_declined and worker.seq in t.resources.open):
                t.resources.touch(worker)  # what it was too dear for may go there now
            else:
                t.resources.rescore(worker)

    # ------------------------------------------------------------------------------------------ what survey may look at

    def workers(self) -> Iterable[WorkerInfo]:
        return self._t.resources

    def waiting(self) -> Iterable[WaitingClass]:
        queue = self._t.queue
        heads = ((each, queue.head(each)) for each in queue.classes())
        return [WaitingClass(each.request, each.size, head) for each, head in heads if head is not None]

    # ---------------------------------------------------------------------------------------------------- for reading

    @property
    def tasks(self) -> TaskTable:
        """The task table, to read."""
        return self._t.tasks

    @property
    def resources(self) -> ResourceManager:
        """The worker table, to read."""
        return self._t.resources

    @property
    def policy(self) -> TaskScheduler:
        return self._t.policy

    def queued(self, classes_max: int) -> list[tuple[TaskRequirements, int]]:
        """What the queued tasks of the first so many request classes ask for, and how many they are."""
        classes = islice(self._t.queue.classes(), classes_max)
        return [(each.request.requirements, each.size) for each in classes]

    def believed(self) -> list[Belief]:
        """What the policy believes of kinds on device models; where it learns nothing, what the engine's rules do."""
        return self._t.policy.believed() or self._t.runtimes.believed()

    @property
    def counters(self) -> Counters:
        return self._t.counters

    @property
    def shadow(self) -> Comparison | None:
        """What another policy would have done so far; None: none is asked."""
        return self._t.shadow.comparison if self._t.shadow is not None else None

    @property
    def is_stealing(self) -> bool:
        """Whether backlogs are stolen from at all."""
        return self._t.settings.stealing

    @property
    def steals(self) -> StealLedger:
        """What stealing has brought, to read."""
        return self._t.steals

    def heartbeat_ns(self) -> int:
        """How long a worker may wait before it sends the next heartbeat."""
        return self._t.heartbeat_ns()

    @property
    def awaited(self) -> frozenset[WorkerId]:
        """Workers that may still come back after a restart; nothing is placed while there are any."""
        return frozenset(self._t.awaited)

    @property
    def epoch(self) -> int:
        """Which start of the daemon on its journal this is; 0: it has none."""
        return self._t.epoch

    @property
    def is_putting_off(self) -> bool:
        """Ends that workers have told wait for others to come back: they must not be acknowledged yet."""
        return bool(self._t.put_off)

    @property
    def is_taking_over(self) -> bool:
        """Whether tasks still go over to a policy that was chosen; nothing is placed before all have."""
        return bool(self._t.queue.left_behind) or ("move", 0) in self._t.deadlines

    def limits_of(self, task: Task) -> list[CauseLimit]:
        """How often a task is tried again after which causes, and how much of that is used up."""
        return limits_of(task, self._t.settings.retries)

    def quarantine_of(self, worker_id: WorkerId) -> Quarantine | None:
        """The quarantine of a worker, None where there is none; to read."""
        return self._t.health.quarantines.get(worker_id)

    def holds_of(self, job: str) -> list[KindHold]:
        """The kinds that are held within a job; to read. O(holds)."""
        return [hold for hold in self._t.health.holds.values() if hold.job == job]

    def explain(self, task: Task) -> Explanation:
        """Say why a task is where it is, with numbers."""
        return explain(self._t, task)

    # ----------------------------------------------------------------------------------------------------- invariants

    def check(self) -> None:
        """Recompute every derived number and every relation between the tables. O(everything).

        Raises AssertionError; for tests and simulation only.
        """
        t = self._t
        t.tasks.check()
        t.queue.check()
        t.resources.check()
        left_behind = sum(1 for task in t.tasks.rows.values() if t.queue.is_left_behind(task))
        assert left_behind == t.queue.left_behind, (left_behind, t.queue.left_behind)
        assert not left_behind or ("move", 0) in t.deadlines, left_behind
        self._guard.check()
        if not t.placement_wanted and ("place", 0) not in t.deadlines:
            t.placer.check()
        assert not (t.doubtful or t.put_off or t.let_go) or t.awaited, (
            "what waits for workers to come back outlives that"
        )
        for task_id in t.doubtful.union(t.epochs):
            assert t.worker_of(t.tasks.rows[task_id]) is not None, story(t.tasks.rows[task_id])
        for task_id, asked in t.asked.items():
            assert not t.tasks.rows[task_id].state.is_final, story(t.tasks.rows[task_id])
            assert asked.task_id == task_id
        incoming: dict[int, int] = {}
        for task in t.tasks.rows.values():
            state = task.state
            assert bool(task.place) == isinstance(state, Queued), story(task)
            assert (("delay", task.id) in t.deadlines) == isinstance(state, Delayed), story(task)
            assert not (isinstance(state, Held) and task.place), story(task)
            if type(state) not in DISPATCHED:
                assert not task.reserved, story(task)
                continue
            assert isinstance(state, Assigned | Running | Revoking)
            worker = t.resources.workers.get(state.worker_id)
            assert worker is not None, story(task)
            assert (task.id in worker.running) == task.reserved, story(task)
            assert task.reserved or any(other is task for other in worker.task_queue), story(task)
            assert task.reserved or not isinstance(state, Running), story(task)
            if isinstance(state, Revoking):
                incoming[state.thief_seq] = incoming.get(state.thief_seq, 0) + 1
        for worker in t.resources:
            for task in (*worker.running.values(), *worker.task_queue):
                assert t.tasks.get(task.id) is task, story(task)
                assert getattr(task.state, "worker_id", None) == worker.worker_id, story(task)
            assert worker.incoming == incoming.get(worker.seq, 0), worker.worker_id
