"""One run: a trace through the daemon's engine and one policy, in virtual time.

The workers are the engine's own rows: a task that has its reservation runs, and one in a backlog starts by the rule
that engine and real workers share. Messages take no time, except to and from workers whose row says so. What is left
out is what a process costs, and nothing of what is decided.
"""

from __future__ import annotations

import random
import time
from array import array
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from heapq import heappop, heappush
from itertools import count, repeat, takewhile

import msgspec
from msgspec import structs

from schedd.assembly import engine_settings
from schedd.config import Settings
from schedd.core import effects as fx
from schedd.core import events as ev
from schedd.core.capacity import Ledger
from schedd.core.engine import Engine
from schedd.core.model import (
    SECOND,
    AttemptFinished,
    AttemptStarted,
    Call,
    Cause,
    Instant,
    Selection,
    Succeeded,
    Task,
    TaskEntry,
    TaskId,
    TaskRequirements,
    TaskRules,
    TaskSpec,
    WorkerId,
    WorkerInfo,
    WorkerResources,
)
from schedd.core.needs import compile_needs
from schedd.core.policies.base import TaskScheduler
from schedd.core.resources import need_of
from schedd.core.timers import NEVER
from schedd.errors import TraceError
from schedd.simulate.cluster import RETRIES_ENOUGH, ClusterRow, named
from schedd.simulate.record import Run, Span
from schedd.simulate.trace import Trace, TraceTask
from schedd.simulate.workers import Attempt, VirtualWorker, chance
from schedd.simulate.workload import TraceWorkload, Workload

#: Virtual time begins at any instant that is well above zero.
BEGINNING_NS: Instant = 1_700_000_000 * SECOND
#: No virtual worker is ever silent, and no run goes on until then.
NEVER_NS: Instant = NEVER
LONGEST_S = (NEVER_NS - BEGINNING_NS) / SECOND
#: Tasks of one submit.
SUBMIT_TASKS_MAX = 1000
#: A run without an end, or a task that nobody can run: the engine may go on for so many turns without anything ending.
IDLE_TURNS_MAX = 1_000_000
#: The same where nothing runs and nothing is to come, whatever a policy waits for.
QUIET_TURNS_MAX = 10_000
#: Progress is looked at after so many turns, or so many tasks.
WATCHED_TURNS = 1024
PROGRESS_TASKS = 1000
#: No task fails because its workers left.
RULES = TaskRules(lost_limit=1_000_000)

Progress = Callable[[int, int], None]

#: An enumeration looks its members up by name at each use; these are used for each end.
_OK, _ERROR = Cause.OK, Cause.ERROR
_PAYLOAD = Call(path="trace:task")


def no_progress(finished: int, total: int) -> None:
    """Say nothing."""


class Simulator:
    """Drives one engine; `run` once."""

    def __init__(
        self,
        trace: Trace | Workload,
        cluster: Sequence[ClusterRow],
        settings: Settings,
        seed: int = 0,
        *,
        policy: TaskScheduler | None = None,
        one_by_one: bool = False,
        keep_spans: bool = False,
        ledgers: Callable[[WorkerResources], Ledger] = Ledger,
    ) -> None:
        """`policy`: in place of the one that the settings name. ledgers: of the workers, which choose the devices.

        one_by_one: no two events share a turn of the engine, as in many published simulators: of what happens at the
        same instant, submits come before ends, each in its order.
        """
        engine = structs.replace(
            engine_settings(settings),
            heartbeat_ns=NEVER_NS,
            lease_ns=NEVER_NS,
            lost_after_ns=NEVER_NS,
            unfinished_max=1 << 60,
            finished_keep_count=1,
        )
        self._engine = Engine(policy or settings.policy.build(), engine, random.Random(seed))
        #: The engine's own table of workers, to read.
        self._rows: dict[WorkerId, WorkerInfo] = {}
        self._seed = seed
        #: How often tasks are tried again that a worker fails.
        self._retries = settings.retries.error
        self._one_by_one = one_by_one
        self._ledgers = ledgers
        self._workload: Workload = TraceWorkload(trace) if isinstance(trace, Trace) else trace
        self._given = trace
        taken = Trace(trace.format if isinstance(trace, Trace) else "workload", [])
        #: By index: what was submitted so far.
        self._tasks = taken.tasks
        #: What is due and has to wait for the next turn; and when the next of the rest is due.
        self._due: list[TraceTask] = []
        self._due_ns = NEVER_NS
        self._due_s = 0.0
        #: Whether what is submitted when, and at which priority, may depend on what has ended.
        self._reacts = type(self._workload) is not TraceWorkload
        self._cluster = cluster
        self._now: Instant = BEGINNING_NS
        self._run = Run(taken, cluster, array("d"), array("d"), array("q"), spans=[] if keep_spans else None)
        self._run.reacts = self._reacts
        self._finished = 0
        self._number = 0
        #: (when, number, what).
        self._ends: list[tuple[Instant, int, Attempt]] = []
        #: What else happens when: workers come and go, and messages arrive on slow links.
        self._agenda: list[tuple[Instant, int, Callable[[], None]]] = []
        #: What runs, by task id.
        self._running: dict[TaskId, Attempt] = {}
        #: What the engine will hear with the next turn.
        self._said: list[ev.Event] = []
        #: Workers that answer at once, and whose backlogs may move up for it.
        self._moving: list[WorkerId] = []
        self._workers: dict[WorkerId, VirtualWorker] = {}
        #: How often tasks have failed by their own doing, by id.
        self._failures: dict[TaskId, int] = {}
        self._gpus = 0.0
        #: By requirements (their identity), kind, priority and retries.
        self._sorts: dict[tuple[int, str, float, int], tuple[TaskSpec, ev.SubmitTasks]] = {}
        #: What makes an instant of a time on the workload's clock.
        self._shift_ns = BEGINNING_NS
        #: How far the run was when it was last seen to come further, and in which turn.
        self._watched = (0, 0)
        #: Progress is told when so many tasks have finished.
        self._tell_at = PROGRESS_TASKS

    @property
    def engine(self) -> Engine:
        """The engine that is driven: what it has learned, or is to begin with."""
        return self._engine

    def run(self, on_progress: Progress = no_progress) -> Run:
        """Go through the workload. Raises TraceError where there are tasks that no worker could ever run."""
        if isinstance(self._given, Trace):
            self._must_fit(self._given.tasks)
            self._make_room(len(self._given.tasks))
        self._begin()
        self._shift_ns = BEGINNING_NS - int((self._workload.next_submit_s() or 0.0) * SECOND)
        self._look_ahead()
        for turn in count():
            at = self._next()
            if at is None:
                break
            self._turn(at)
            if not turn % WATCHED_TURNS or self._finished >= self._tell_at:
                self._watch(turn, on_progress)
        self._must_be_through()
        on_progress(self._finished, self._finished)
        self._run.steals = self._engine.counters.steals
        self._run.placements = self._engine.counters.placements
        return self._run

    def _must_be_through(self) -> None:
        """Raise TraceError where tasks are left, with nothing to come for them."""
        if self._workload.next_submit_s() is not None or (self._running and self._finished < len(self._tasks)):
            raise TraceError(
                f"the run goes on for longer than {LONGEST_S:,.0f} s, where the clock of the engine ends",
                "are times of the trace given in seconds?",
            )
        if self._finished < len(self._tasks):
            raise self._wait_for_ever()

    def _wait_for_ever(self) -> TraceError:
        left = len(self._tasks) - self._finished
        return TraceError(
            f"{left:,} {'task waits' if left == 1 else 'tasks wait'} for ever under {self._engine.policy.name}",
            "do all workers leave? Else a task waits for what it comes after, or this is a bug of the policy",
        )

    # -------------------------------------------------------------------------------------------------------- the start

    def _begin(self) -> None:
        """Let the workers come that are there from the beginning."""
        self._rows = self._engine.resources.workers
        self._plan_workers()
        self._keep_appointments()
        said, self._said = self._said, []
        self._handle(said)
        if self._ledgers is not Ledger:
            for worker in self._engine.resources:
                worker.ledger = self._ledgers(worker.resources or WorkerResources())

    def _plan_workers(self) -> None:
        """Put down when each worker comes and goes."""
        for place, (worker_id, row) in enumerate(named(self._cluster)):
            worker = VirtualWorker(worker_id, place, row)
            self._at(BEGINNING_NS + int(row.joins_s * SECOND), partial(self._join, worker))
            if row.leaves_s is not None:
                self._at(BEGINNING_NS + int(row.leaves_s * SECOND), partial(self._leave, worker))

    def _must_fit(self, tasks: Iterable[TraceTask]) -> None:
        """No task may ask for what no worker has. Raises TraceError."""
        ledgers = [(row, Ledger(row.resources())) for row in dict.fromkeys(self._cluster)]
        same: set[int] = set()
        seen: set[bytes] = set()
        for task in tasks:
            if id(task.requirements) in same and not task.runtimes:
                continue
            same.add(id(task.requirements))
            key = msgspec.msgpack.encode((structs.replace(task.requirements, estimated_time=None), *task.runtimes))
            if key in seen:
                continue
            seen.add(key)
            needs = compile_needs(task.requirements)
            blockers = [ledger.blocker(need) for _, ledger in ledgers for need in needs]
            which = f"a task of kind {task.kind!r}, submitted at {task.submit_s:.10g} s,"
            if all(blockers):
                raise TraceError(f"{which} fits no worker: it {blockers[0]}", "--add-worker adds one that has it")
            for row, ledger in ledgers:
                if task.runtimes and row.gpu_model not in task.runtimes and not all(map(ledger.blocker, needs)):
                    raise TraceError(
                        f"{which} fits a worker of model {row.gpu_model!r}, where its runtime is not known",
                        f"the trace knows {', '.join(task.runtimes)}",
                    )

    # ---------------------------------------------------------------------------------------------------------- a turn

    def _watch(self, turn: int, on_progress: Progress) -> None:
        """Tell how far the run is. Raises TraceError where it has come no further for long."""
        done = self._finished + len(self._tasks)
        if done > self._watched[0]:
            self._watched, self._tell_at = (done, turn), self._finished + PROGRESS_TASKS
            on_progress(self._finished, max(self._finished, self._workload.total() or len(self._tasks)))
        elif turn - self._watched[1] > IDLE_TURNS_MAX:
            raise TraceError(
                f"nothing has ended for {IDLE_TURNS_MAX:,} turns of the engine",
                "does a task fail again and again, or is one stopped for another for ever?",
            )
        elif turn - self._watched[1] > QUIET_TURNS_MAX and self._is_quiet():
            raise self._wait_for_ever()

    def _is_quiet(self) -> bool:
        """Whether nothing runs, nothing is on its way, and nothing is to come but timers of the engine."""
        nothing = not (self._running or self._ends or self._moving or self._due)
        return nothing and self._due_ns >= NEVER_NS and not self._agenda

    def _next(self) -> Instant | None:
        """When the next thing happens; None: nothing will."""
        if self._reacts:
            self._look_ahead()
        if self._moving or self._due:
            return self._now
        at = self._due_ns
        if at >= NEVER_NS and self._finished == len(self._tasks):
            return None  # whatever else there is to come
        if self._ends and self._ends[0][0] < at:
            at = self._ends[0][0]
        if self._agenda and self._agenda[0][0] < at:
            at = self._agenda[0][0]
        deadline = self._engine.next_deadline(before=at)
        if deadline is not None and deadline < at:
            at = deadline
        if at >= NEVER_NS:
            return None
        return at if at > self._now else self._now

    def _turn(self, at: Instant) -> None:
        """Let happen what is due in one turn of the engine: ends, then what follows from them, then submits."""
        self._now = at
        before: list[tuple[WorkerInfo, list[Task]]] = []
        if self._moving:
            for worker_id in dict.fromkeys(self._moving):
                row = self._rows.get(worker_id)
                if row is not None and row.task_queue:
                    before.append((row, list(row.task_queue)))
            self._moving.clear()
        submits = self._due_ns <= at or self._due
        if self._ends and self._ends[0][0] <= at and not (submits and self._one_by_one):
            self._take_ends(before)
        if self._agenda and self._agenda[0][0] <= at:
            self._keep_appointments()
        events, self._said = self._said, []
        if self._reacts and not self._one_by_one:
            self._look_ahead()
            submits = self._due_ns <= at or self._due
        if submits:
            self._submit(events)
        if self._reacts and (changes := self._workload.changes()):
            events.append(ev.SetPriorities(0, [(TaskId(index + 1), priority) for index, priority in changes]))
        self._handle(events or [ev.Wakeup(0)])
        for worker, backlog in before:
            self._start_promoted(worker, backlog)

    def _at(self, when: Instant, what: Callable[[], None]) -> None:
        self._number += 1
        heappush(self._agenda, (when, self._number, what))

    def _keep_appointments(self) -> None:
        while self._agenda and self._agenda[0][0] <= self._now:
            heappop(self._agenda)[2]()

    # --------------------------------------------------------------------------------------------------------- submits

    def _look_ahead(self) -> None:
        """Ask when the next submit is due."""
        due_s = self._workload.next_submit_s()
        self._due_s = due_s or 0.0
        self._due_ns = NEVER_NS if due_s is None else int(due_s * SECOND) + self._shift_ns

    def _submit(self, events: list[ev.Event]) -> None:
        tasks: Sequence[TraceTask] = ()
        if self._due_ns <= self._now:
            # A time in seconds does not always survive the way to nanoseconds and back.
            tasks = self._workload.take(max(self._due_s, (self._now - self._shift_ns) / SECOND))
            self._look_ahead()
        if self._due:
            tasks, self._due = [*self._due, *tasks], []
        if len(tasks) == 1 and not tasks[0].after:
            events.append(self._sort_of(tasks[0])[1])
            self._note_submitted(tasks)
            return
        if self._one_by_one:
            tasks, self._due = tasks[:1], list(tasks[1:])
        if events and _may_have_failed(tasks, events):
            self._due[:0] = tasks
            return
        hopeless: list[TaskId] = []
        for position in range(0, len(tasks), SUBMIT_TASKS_MAX):
            some = tasks[position : position + SUBMIT_TASKS_MAX]
            first = len(self._tasks)
            specs: dict[int, tuple[int, TaskSpec]] = {}
            entries: list[TaskEntry] = []
            for task in some:
                spec, _ = self._sort_of(task)
                after: list[int] = []
                if task.after:
                    if self._run.unsuccessful.isdisjoint(task.after):
                        after = self._awaited(task.after, first)
                    else:
                        spec = structs.replace(spec, hold=True)
                        hopeless.append(TaskId(first + len(entries) + 1))
                        self._run.unsuccessful.add(first + len(entries))
                number, _ = specs.setdefault(id(spec), (len(specs), spec))
                entries.append(TaskEntry(number, after=after))
            events.append(ev.SubmitTasks(0, [spec for _, spec in specs.values()], entries))
            self._note_submitted(some)
        if hopeless:
            events.append(ev.CancelTasks(0, Selection(ids=hopeless)))

    def _awaited(self, after: Iterable[int], first: int) -> list[int]:
        """What the engine is told of `after`: ids of what was there before, -1-n for the n-th of this very submit.

        What has ended well is left out: the engine may have forgotten it.
        """
        known = self._engine.tasks
        refs = [first - other - 1 if other >= first else other + 1 for other in after]
        return [
            ref
            for ref in refs
            if ref < 0
            or ref >= known.next_id
            or ((row := known.get(TaskId(ref))) is not None and not row.state.is_final)
        ]

    def _note_submitted(self, tasks: Sequence[TraceTask]) -> None:
        self._tasks.extend(tasks)
        if (more := len(self._tasks) - len(self._run.start_s)) > 0:
            self._make_room(more)

    def _make_room(self, count: int) -> None:
        """Make room for what becomes of so many more tasks."""
        run = self._run
        run.start_s.extend(repeat(-1.0, count))
        run.finish_s.extend(repeat(-1.0, count))
        run.where.extend(repeat(-1, count))

    def _sort_of(self, task: TraceTask) -> tuple[TaskSpec, ev.SubmitTasks]:
        """What a task is submitted by, and the submit of a single one, which is the same for all of a sort."""
        # By identity of the requirements, which the sort keeps alive: to compare them would cost more than the rest.
        retries = self._retries_of(task) if task.failures or task.fails else -1
        key = (id(task.requirements), task.kind, task.priority, retries)
        sort = self._sorts.get(key)
        if sort is None:
            if len(self._sorts) >= SUBMIT_TASKS_MAX:
                self._sorts.clear()  # requirements of its own for each task: they are not used again
            if not isinstance(self._given, Trace):
                self._must_fit([task])
            rules = RULES if retries < 0 else structs.replace(RULES, retries=retries)
            spec = TaskSpec(_PAYLOAD, task.kind, "", task.priority, task.requirements, rules)
            sort = self._sorts[key] = (spec, ev.SubmitTasks(0, [spec], [TaskEntry(0)]))
        return sort

    def _retries_of(self, task: TraceTask) -> int:
        """How often a task that fails by itself is tried again: for that, and beyond it as often as any other."""
        more = 0 if task.fails else self._retries
        return min(len(task.failures) + more, RETRIES_ENOUGH)

    # ------------------------------------------------------------------------------------------- effects of the engine

    def _handle(self, events: list[ev.Event]) -> None:
        began = time.perf_counter()
        effects = self._engine.handle(events, self._now)
        self._run.engine_s += time.perf_counter() - began
        for action in effects.actions:
            if type(action) is fx.ReplySubmitted:
                continue
            if isinstance(action, fx.DispatchAttempts):
                worker = self._workers[action.worker_id]
                if worker.delay_ns:
                    sent = [Attempt(worker, task.id, task.attempt, need_of(task)) for task in action.tasks]
                    self._send(worker, partial(self._arrive, worker, sent))
                else:
                    self._start_reserved(worker, action.tasks)
            elif isinstance(action, fx.RevokeAttempts | fx.StopAttempts | fx.DropAttempts):
                worker = self._workers[action.worker_id]
                if worker.delay_ns:
                    self._send(worker, partial(self._obey, worker, action))
                else:
                    self._obey(worker, action)
            elif isinstance(action, fx.ReplyDeclined):
                raise TraceError(f"the engine declines what is submitted: {action.message}", action.hint)
        for task in effects.finished:
            if type(task.state) is not Succeeded:  # those were told before
                self._finished += 1
                self._run.unsuccessful.add(task.id - 1)
                self._workload.on_finished(task.id - 1, (self._now - self._shift_ns) / SECOND, False)

    def _obey(self, worker: VirtualWorker, action: fx.RevokeAttempts | fx.StopAttempts | fx.DropAttempts) -> None:
        if isinstance(action, fx.RevokeAttempts):
            answers = [(i, number, self._gives_back(worker, i, number)) for i, number in action.attempts]
            self._say(worker, ev.RevokesAnswered(worker.worker_id, answers))
        elif isinstance(action, fx.StopAttempts):
            finished = [end for i, number in action.attempts if (end := self._stop(worker, i, number, action.cause))]
            self._say(worker, ev.AttemptsFinished(worker.worker_id, finished))
        else:
            for task_id, number in action.attempts:
                if worker.delay_ns and not worker.give_back(task_id, number):
                    self._interrupt(worker, task_id, number)
        if worker.delay_ns:
            self._start_heads(worker)
        else:
            self._moving.append(worker.worker_id)

    def _gives_back(self, worker: VirtualWorker, task_id: TaskId, number: int) -> bool:
        """Whether an attempt that is asked back had not started."""
        if worker.delay_ns:
            return worker.give_back(task_id, number) is not None
        attempt = self._running.get(task_id)
        return attempt is None or attempt.number != number

    def _stop(self, worker: VirtualWorker, task_id: TaskId, number: int, cause: str) -> AttemptFinished | None:
        """Let an attempt that is told to end do so at once; None: it has ended already."""
        attempt = self._interrupt(worker, task_id, number)
        if attempt is None and worker.delay_ns and worker.give_back(task_id, number) is None:
            return None
        started_ns = attempt.started_ns if attempt is not None else 0
        return AttemptFinished(task_id, number, Cause(cause), started_ns, self._now)

    def _say(self, worker: VirtualWorker, event: ev.Event) -> None:
        """Let the engine hear of something: with the next turn, or after the delay of a link."""
        if worker.delay_ns:
            self._send(worker, lambda: self._said.append(event))
        else:
            self._said.append(event)

    def _send(self, worker: VirtualWorker, what: Callable[[], None]) -> None:
        """Let a message arrive, unless its worker is gone by then."""
        self._at(self._now + worker.delay_ns, lambda: what() if worker.is_here else None)

    # ---------------------------------------------------------------------------------------------------------- workers

    def _join(self, worker: VirtualWorker) -> None:
        other = self._workers.get(worker.worker_id)
        if other is not None and other.is_here:
            raise TraceError(f"two workers are called {worker.worker_id!r} at a time", "give each a name of its own")
        worker.is_here = True
        self._workers[worker.worker_id] = worker
        self._said.append(ev.WorkerJoined(worker.worker_id, "1", worker.row.resources(), []))

    def _leave(self, worker: VirtualWorker) -> None:
        """What runs there is lost."""
        worker.is_here = False
        for attempt in [each for each in self._running.values() if each.worker is worker]:
            self._interrupt(worker, attempt.task_id, attempt.number)
        self._said.append(ev.WorkerLeft(worker.worker_id))

    def _arrive(self, worker: VirtualWorker, attempts: list[Attempt]) -> None:
        worker.take(attempts)
        self._start_heads(worker)

    def _start_heads(self, worker: VirtualWorker) -> None:
        """Let a worker behind a link start what it can."""
        started = [self._start(attempt) for attempt in worker.heads()] if worker.delay_ns else []
        if started:
            self._say(worker, ev.AttemptsStarted(worker.worker_id, started))

    # ------------------------------------------------------------------------------------------------- attempts start

    def _start_reserved(self, worker: VirtualWorker, tasks: Iterable[Task]) -> None:
        """Start those of these that have their reservation on this worker and do not run yet."""
        worker_id, running = worker.worker_id, self._running
        started: list[AttemptStarted] = []
        for task in tasks:
            if not task.reserved or task.state.worker_id != worker_id:  # type: ignore[attr-defined]
                continue
            task_id, number = task.id, task.attempt
            known = running.get(task_id)
            if known is None or known.number != number:
                started.append(self._start(Attempt(worker, task_id, number, None, task.devices)))
        if started:
            self._said.append(ev.AttemptsStarted(worker_id, started))

    def _start_promoted(self, worker: WorkerInfo, backlog: list[Task]) -> None:
        """Start what has moved up from a backlog, which was like this before the turn."""
        head = worker.task_queue[0] if worker.task_queue else None
        self._start_reserved(self._workers[worker.worker_id], takewhile(lambda task: task is not head, backlog))

    def _start(self, attempt: Attempt) -> AttemptStarted:
        task_id, worker, now, run = attempt.task_id, attempt.worker, self._now, self._run
        index = task_id - 1
        row = self._tasks[index]
        work_s = row.runtimes[worker.model] if row.runtimes else row.runtime_s
        if not worker.is_plain or row.failures or row.fails:
            work_s = self._work_s(row, attempt, work_s)
        attempt.started_ns = now
        self._running[task_id] = attempt
        self._number = number = self._number + 1
        heappush(self._ends, (now + int(work_s * SECOND), number, attempt))
        run.attempts += 1
        run.start_s[index] = (now - BEGINNING_NS) / SECOND
        run.where[index] = worker.place
        needs = row.requirements
        if needs.variants:
            needs = self._placed_by(attempt, needs)
        if gpus := needs.min_gpus:
            attempt.gpus = gpus
            self._gpus += gpus
            run.gpus_peak = max(run.gpus_peak, self._gpus)
        return AttemptStarted(task_id, attempt.number, now, attempt.devices)

    def _placed_by(self, attempt: Attempt, asked: TaskRequirements) -> TaskRequirements:
        """Which of its alternatives an attempt was placed by; noted where it needs other amounts than the first."""
        index, task = attempt.task_id - 1, self._engine.tasks.get(attempt.task_id)
        needs = (asked, *asked.variants)[task.variant] if task is not None else asked
        self._run.placed.pop(index, None)
        if (needs.min_gpus, needs.cpus) != (asked.min_gpus, asked.cpus):
            self._run.placed[index] = needs
        return needs

    def _work_s(self, row: TraceTask, attempt: Attempt, work_s: float) -> float:
        """How long an attempt will take where things go wrong; and whether it will end well."""
        worker, failed = attempt.worker, self._failures.get(attempt.task_id, 0)
        if failed < len(row.failures):
            attempt.is_ok = False
            work_s *= row.failures[failed]
        elif row.fails:
            attempt.is_ok = False
        elif chance(self._seed, attempt.task_id, failed) < worker.row.fail_share:
            attempt.is_ok = False
            work_s *= worker.row.fail_after
        return worker.span_s(work_s, (self._now - BEGINNING_NS) / SECOND)

    # --------------------------------------------------------------------------------------------------- attempts end

    def _take_ends(self, before: list[tuple[WorkerInfo, list[Task]]]) -> None:
        """Let attempts end; and note the backlogs that may move up for it."""
        ended: dict[VirtualWorker, list[AttemptFinished]] = {}
        ends, now = self._ends, self._now
        while ends and ends[0][0] <= now:
            at, _, attempt = heappop(ends)
            if attempt.is_over:
                continue
            worker = attempt.worker
            self._forget_running(attempt, at)
            cause = _OK if attempt.is_ok else _ERROR
            finished = AttemptFinished(attempt.task_id, attempt.number, cause, attempt.started_ns, at)
            if worker.delay_ns:
                worker.end(attempt)
                self._at(now + worker.delay_ns, partial(self._hear_end, worker, finished))
                self._start_heads(worker)
            else:
                self._note_end(finished)
                if worker in ended:
                    ended[worker].append(finished)
                else:
                    ended[worker] = [finished]
            if self._one_by_one:
                break
        for worker, attempts in ended.items():
            row = self._rows.get(worker.worker_id)
            if row is not None and row.task_queue:
                before.append((row, list(row.task_queue)))
            self._said.append(ev.AttemptsFinished(worker.worker_id, attempts))

    def _hear_end(self, worker: VirtualWorker, finished: AttemptFinished) -> None:
        if not worker.is_here:  # and what it has said last is lost with it
            self._run.wasted_s += (finished.finished_at_ns - finished.started_at_ns) / SECOND
            return
        self._note_end(finished)
        self._said.append(ev.AttemptsFinished(worker.worker_id, [finished]))

    def _note_end(self, finished: AttemptFinished) -> None:
        """Note the end of an attempt that the engine hears of: of its task, where it went well."""
        index, at = finished.task_id - 1, finished.finished_at_ns
        self._run.finish_s[index] = (at - BEGINNING_NS) / SECOND
        if finished.cause is _OK:
            self._finished += 1
            if self._reacts:
                self._workload.on_finished(index, (at - self._shift_ns) / SECOND, True)
        else:
            self._run.wasted_s += (at - finished.started_at_ns) / SECOND
            self._failures[finished.task_id] = self._failures.get(finished.task_id, 0) + 1

    def _interrupt(self, worker: VirtualWorker, task_id: TaskId, number: int) -> Attempt | None:
        """End a running attempt before its time: what it has done counts for nothing. None: it does not run."""
        attempt = self._running.get(task_id)
        if attempt is None or attempt.number != number or attempt.worker is not worker:
            return None
        attempt.is_over, attempt.is_ok = True, False
        self._forget_running(attempt, self._now)
        if worker.delay_ns:
            worker.end(attempt)
        self._run.wasted_s += (self._now - attempt.started_ns) / SECOND
        return attempt

    def _forget_running(self, attempt: Attempt, at: Instant) -> None:
        task_id = attempt.task_id
        del self._running[task_id]
        self._gpus -= attempt.gpus
        if self._run.spans is not None:
            start_s, end_s = ((each - BEGINNING_NS) / SECOND for each in (attempt.started_ns, at))
            place, devices = attempt.worker.place, attempt.devices
            self._run.spans.append(Span(task_id - 1, place, devices, start_s, end_s, attempt.is_ok))


def _may_have_failed(tasks: Iterable[TraceTask], events: Iterable[ev.Event]) -> bool:
    """Whether only the next turn knows what has become of all that tasks come after.

    That is so where one of them ends in this very turn, or may be given up because another one has failed.
    """
    ends = [end for event in events if isinstance(event, ev.AttemptsFinished) for end in event.attempts]
    if any(end.cause is not _OK for end in ends):
        return any(task.after for task in tasks)
    ended = {end.task_id - 1 for end in ends}
    return bool(ended) and any(not ended.isdisjoint(task.after) for task in tasks)
