"""One run: a trace through the daemon's engine and one policy, in virtual time.

The workers are the engine's own rows: a task that has its reservation runs, and one in a backlog starts by the rule
that engine and real workers share. Messages take no time. So what is left out is what a network and a process cost,
and nothing of what is decided.
"""

from __future__ import annotations

import random
import time
from array import array
from collections.abc import Callable, Iterable, Sequence
from heapq import heappop, heappush
from itertools import count, repeat, takewhile

import msgspec
from msgspec import Struct, structs

from schedd.assembly import engine_settings
from schedd.config import Settings
from schedd.core import effects as fx
from schedd.core import events as ev
from schedd.core.capacity import Ledger, compile_needs
from schedd.core.engine import Engine
from schedd.core.model import (
    SECOND,
    AttemptFinished,
    AttemptStarted,
    Call,
    Cause,
    Instant,
    Succeeded,
    Task,
    TaskEntry,
    TaskId,
    TaskSpec,
    WorkerId,
    WorkerInfo,
)
from schedd.errors import TraceError
from schedd.simulate.cluster import ClusterRow
from schedd.simulate.trace import Trace, TraceTask
from schedd.simulate.workload import TraceWorkload, Workload

#: Virtual time begins at any instant that is well above zero.
BEGINNING_NS: Instant = 1_700_000_000 * SECOND
#: No virtual worker is ever silent.
NEVER_NS: Instant = 1 << 61
#: Tasks of one submit.
SUBMIT_TASKS_MAX = 1000
#: A run without an end, or a task that nobody can run: the engine may go on for so many turns without anything ending.
IDLE_TURNS_MAX = 1_000_000
#: Progress is looked at after so many turns, or so many tasks.
WATCHED_TURNS = 1024
PROGRESS_TASKS = 1000

Progress = Callable[[int, int], None]

#: An enumeration looks its members up by name at each use; this one is used for each end.
_OK = Cause.OK
_PAYLOAD = Call(path="trace:task")


class Run(Struct):
    """What became of each task, in the order of the trace: seconds since the first submit, -1 where it never was.

    start_s, finish_s: of its last attempt. where: the position of its worker in the cluster. wasted_s: time of attempts
    that did not count. engine_s: real time that the engine took. placements: attempts that were given to a worker.
    """

    trace: Trace
    resources: Sequence[ClusterRow]
    start_s: array[float]
    finish_s: array[float]
    where: array[int]
    steals: int = 0
    placements: int = 0
    wasted_s: float = 0.0
    engine_s: float = 0.0
    #: Shares of GPUs that were reserved at the same time, at the most.
    gpus_peak: float = 0.0


class _Sort(Struct):
    """Tasks of a kind, a priority and requirements: what they are submitted by."""

    spec: TaskSpec
    #: The submit of a single one; the same for all of them.
    alone: ev.SubmitTasks


class _End(Struct, gc=False):
    """An attempt that runs, and when it will have ended."""

    worker: VirtualWorker
    task_id: TaskId
    attempt: int
    started_ns: Instant
    #: It was stopped, and has ended already.
    is_over: bool = False


class VirtualWorker:
    """A worker of the cluster: what the engine does not know of it."""

    __slots__ = ("model", "place", "worker_id")

    def __init__(self, worker_id: WorkerId, place: int, row: ClusterRow) -> None:
        self.worker_id = worker_id
        self.place = place
        self.model = row.gpu_model


def no_progress(finished: int, total: int) -> None:
    """Say nothing."""


class Simulator:
    """Drives one engine; `run` once."""

    def __init__(
        self, trace: Trace | Workload, cluster: Sequence[ClusterRow], settings: Settings, seed: int = 0
    ) -> None:
        engine = structs.replace(
            engine_settings(settings),
            heartbeat_ns=NEVER_NS,
            lease_ns=NEVER_NS,
            lost_after_ns=NEVER_NS,
            unfinished_max=1 << 60,
            finished_keep_count=1,
        )
        self._engine = Engine(settings.policy.build(), engine, random.Random(seed))
        if isinstance(trace, Trace):
            self._workload: Workload = TraceWorkload(trace)
            taken = Trace(trace.format, [])
        else:
            self._workload = trace
            taken = Trace("workload", [])
        self._given = trace
        #: By index: what was submitted so far.
        self._tasks = taken.tasks
        self._cluster = cluster
        self._now: Instant = BEGINNING_NS
        self._run = Run(taken, cluster, array("d"), array("d"), array("q"))
        self._finished = 0
        self._number = 0
        #: (when, number, what).
        self._ends: list[tuple[Instant, int, _End]] = []
        #: What runs, by task id.
        self._running: dict[TaskId, _End] = {}
        #: What workers will say with the next turn.
        self._said: list[ev.Event] = []
        #: Workers that answer at once, and whose backlogs may move up for it.
        self._moving: list[WorkerId] = []
        self._workers: dict[WorkerId, VirtualWorker] = {}
        self._gpus = 0.0
        self._sorts: dict[tuple[int, str, float], _Sort] = {}
        #: What makes an instant of a time on the workload's clock.
        self._shift_ns = BEGINNING_NS
        #: How far the run was when it was last seen to come further, and in which turn.
        self._watched = (0, 0)
        self._told = 0

    def run(self, on_progress: Progress = no_progress) -> Run:
        """Go through the workload. Raises TraceError where there are tasks that no worker could ever run."""
        self._join()
        if isinstance(self._given, Trace):
            self._must_fit(self._given.tasks)
        self._shift_ns = BEGINNING_NS - int((self._workload.next_submit_s() or 0.0) * SECOND)
        for turn in count():
            at = self._next()
            if at is None:
                break
            self._turn(at)
            if turn % WATCHED_TURNS == 0 or self._finished >= self._told + PROGRESS_TASKS:
                self._watch(turn, on_progress)
        if self._finished < len(self._tasks):
            raise TraceError(
                f"{len(self._tasks) - self._finished:,} tasks wait for ever under {self._engine.policy.name}",
                "with `after`, a task waits for what it needs; else this is a bug of the policy",
            )
        on_progress(self._finished, self._finished)
        self._run.steals = self._engine.counters.steals
        self._run.placements = self._engine.counters.placements
        return self._run

    # -------------------------------------------------------------------------------------------------------- the start

    def _join(self) -> None:
        events: list[ev.Event] = []
        for row in self._cluster:
            resources = row.resources()
            for _ in range(row.count):
                worker_id = WorkerId(f"w{len(events)}")
                self._workers[worker_id] = VirtualWorker(worker_id, len(events), row)
                events.append(ev.WorkerJoined(worker_id, "1", resources, []))
        self._handle(events)

    def _must_fit(self, tasks: Iterable[TraceTask]) -> None:
        """No task may ask for what no worker has. Raises TraceError."""
        ledgers = [(row, Ledger(row.resources())) for row in self._cluster]
        same: set[int] = set()
        seen: set[bytes] = set()
        for position, task in enumerate(tasks, len(self._tasks)):
            if id(task.requirements) in same:
                continue
            same.add(id(task.requirements))
            key = msgspec.msgpack.encode((structs.replace(task.requirements, estimated_time=None), *task.runtimes))
            if key in seen:
                continue
            seen.add(key)
            needs = compile_needs(task.requirements)
            blockers = [ledger.blocker(need) for _, ledger in ledgers for need in needs]
            if all(blockers):
                raise TraceError(
                    f"task {position} fits no worker: it {blockers[0]}", "a cluster file has one row a worker"
                )
            for row, ledger in ledgers:
                if task.runtimes and row.gpu_model not in task.runtimes and not all(map(ledger.blocker, needs)):
                    raise TraceError(
                        f"task {position} fits a worker of model {row.gpu_model!r}, where its runtime is not known",
                        f"the trace knows {', '.join(task.runtimes)}",
                    )

    # ---------------------------------------------------------------------------------------------------------- a turn

    def _watch(self, turn: int, on_progress: Progress) -> None:
        """Tell how far the run is. Raises TraceError where it has come no further for long."""
        done = self._finished + len(self._tasks)
        if done > self._watched[0]:
            self._watched, self._told = (done, turn), self._finished
            on_progress(self._finished, max(self._finished, self._workload.total() or len(self._tasks)))
        elif turn - self._watched[1] > IDLE_TURNS_MAX:
            raise TraceError(f"nothing has happened for {IDLE_TURNS_MAX:,} turns of the engine")

    def _next(self) -> Instant | None:
        """When the next thing happens; None: nothing will."""
        if self._moving:
            return self._now
        due_s = self._workload.next_submit_s()
        at = NEVER_NS if due_s is None else int(due_s * SECOND) + self._shift_ns
        if self._ends and self._ends[0][0] < at:
            at = self._ends[0][0]
        deadline = self._engine.next_deadline()
        if deadline is not None and deadline < at:
            if due_s is None and self._finished == len(self._tasks):
                return None  # a timer of an engine that has nothing left to do
            at = deadline
        if at >= NEVER_NS:
            return None
        return at if at > self._now else self._now

    def _turn(self, at: Instant) -> None:
        """Let happen what is due: ends, and then what is submitted, in one turn of the engine."""
        self._now = at
        events, self._said = self._said, []
        before: list[tuple[WorkerInfo, list[Task]]] = []
        if self._moving:
            for worker_id in dict.fromkeys(self._moving):
                self._note_backlog(worker_id, before)
            self._moving.clear()
        if self._ends and self._ends[0][0] <= at:
            self._take_ends(events, before)
        due_s = self._workload.next_submit_s()
        if due_s is not None and int(due_s * SECOND) + self._shift_ns <= at:
            # A time in seconds does not always survive the way to nanoseconds and back.
            self._submit(self._workload.take(max(due_s, (at - self._shift_ns) / SECOND)), events)
        changes = self._workload.changes()
        if changes:
            events.append(ev.SetPriorities(0, [(TaskId(index + 1), priority) for index, priority in changes]))
        self._handle(events or [ev.Wakeup(0)])
        for worker, backlog in before:
            self._start_promoted(worker, backlog)

    def _submit(self, tasks: Sequence[TraceTask], events: list[ev.Event]) -> None:
        if len(tasks) == 1 and not tasks[0].after:
            events.append(self._sort_of(tasks[0]).alone)
            self._note_submitted(tasks)
            return
        for position in range(0, len(tasks), SUBMIT_TASKS_MAX):
            some = tasks[position : position + SUBMIT_TASKS_MAX]
            first = len(self._tasks)
            specs: dict[int, tuple[int, TaskSpec]] = {}
            entries: list[TaskEntry] = []
            for task in some:
                spec = self._sort_of(task).spec
                number, _ = specs.setdefault(id(spec), (len(specs), spec))
                # The id of what was there before, or -1-n for the n-th of this very submit.
                after = [first - other - 1 if other >= first else other + 1 for other in task.after]
                entries.append(TaskEntry(number, after=after))
            events.append(ev.SubmitTasks(0, [spec for _, spec in specs.values()], entries))
            self._note_submitted(some)

    def _note_submitted(self, tasks: Sequence[TraceTask]) -> None:
        self._tasks.extend(tasks)
        run, number = self._run, len(tasks)
        run.start_s.extend(repeat(-1.0, number))
        run.finish_s.extend(repeat(-1.0, number))
        run.where.extend(repeat(-1, number))

    def _sort_of(self, task: TraceTask) -> _Sort:
        # By identity of the requirements, which the sort keeps alive: to compare them would cost more than the rest.
        key = (id(task.requirements), task.kind, task.priority)
        sort = self._sorts.get(key)
        if sort is None:
            if len(self._sorts) >= SUBMIT_TASKS_MAX:
                self._sorts.clear()  # requirements of its own for each task: they are not used again
            if not isinstance(self._given, Trace):
                self._must_fit([task])
            spec = TaskSpec(_PAYLOAD, kind=task.kind, priority=task.priority, requirements=task.requirements)
            sort = self._sorts[key] = _Sort(spec, ev.SubmitTasks(0, [spec], [TaskEntry(0)]))
        return sort

    def _take_ends(self, events: list[ev.Event], before: list[tuple[WorkerInfo, list[Task]]]) -> None:
        """Let attempts end; and note the backlogs that may move up for it."""
        ended: dict[VirtualWorker, list[AttemptFinished]] = {}
        ends, now, run, tasks, on_finished = self._ends, self._now, self._run, self._tasks, self._workload.on_finished
        while ends and ends[0][0] <= now:
            at, _, end = heappop(ends)
            if end.is_over:
                continue
            task_id = end.task_id
            index = task_id - 1
            del self._running[task_id]
            self._gpus -= tasks[index].requirements.min_gpus
            finished = AttemptFinished(task_id, end.attempt, _OK, end.started_ns, at)
            if end.worker in ended:
                ended[end.worker].append(finished)
            else:
                ended[end.worker] = [finished]
            run.finish_s[index] = (at - BEGINNING_NS) / SECOND
            self._finished += 1
            on_finished(index, (at - self._shift_ns) / SECOND, True)
        for worker, attempts in ended.items():
            self._note_backlog(worker.worker_id, before)
            events.append(ev.AttemptsFinished(worker.worker_id, attempts))

    def _note_backlog(self, worker_id: WorkerId, before: list[tuple[WorkerInfo, list[Task]]]) -> None:
        worker = self._engine.resources.workers[worker_id]
        if worker.task_queue:
            before.append((worker, list(worker.task_queue)))

    def _handle(self, events: list[ev.Event]) -> None:
        began = time.perf_counter()
        effects = self._engine.handle(events, self._now)
        self._run.engine_s += time.perf_counter() - began
        for action in effects.actions:
            if isinstance(action, fx.DispatchAttempts):
                self._start_reserved(action.worker_id, action.tasks)
            elif isinstance(action, fx.RevokeAttempts):
                self._answer(action)
            elif isinstance(action, fx.StopAttempts):
                self._stop(action)
            elif isinstance(action, fx.ReplyDeclined):
                raise TraceError(f"the engine declines what is submitted: {action.message}", action.hint)
        for task in effects.finished:
            if type(task.state) is not Succeeded:  # those were told before
                self._finished += 1
                self._workload.on_finished(task.id - 1, (self._now - self._shift_ns) / SECOND, False)

    # ------------------------------------------------------------------------------------------------------- attempts

    def _start_reserved(self, worker_id: WorkerId, tasks: Iterable[Task]) -> None:
        """Start those of these that have their reservation on this worker and do not run yet."""
        worker = self._workers[worker_id]
        started = [
            self._start(worker, task)
            for task in tasks
            if task.reserved
            and task.state.worker_id == worker_id  # type: ignore[attr-defined]
            and (task.id not in self._running or self._running[task.id].attempt != task.attempt)
        ]
        if started:
            self._said.append(ev.AttemptsStarted(worker_id, started))

    def _start_promoted(self, worker: WorkerInfo, backlog: list[Task]) -> None:
        """Start what has moved up from a backlog, which was like this before the turn."""
        head = worker.task_queue[0] if worker.task_queue else None
        self._start_reserved(worker.worker_id, takewhile(lambda task: task is not head, backlog))

    def _start(self, worker: VirtualWorker, task: Task) -> AttemptStarted:
        task_id, now, run = task.id, self._now, self._run
        row = self._tasks[task_id - 1]
        runtime_s = row.runtimes[worker.model] if row.runtimes else row.runtime_s
        end = self._running[task_id] = _End(worker, task_id, task.attempt, now)
        self._number += 1
        heappush(self._ends, (now + int(runtime_s * SECOND), self._number, end))
        run.start_s[task_id - 1] = (now - BEGINNING_NS) / SECOND
        run.where[task_id - 1] = worker.place
        gpus = row.requirements.min_gpus
        if gpus:
            self._gpus += gpus
            run.gpus_peak = max(run.gpus_peak, self._gpus)
        return AttemptStarted(task_id, task.attempt, now, task.devices)

    def _answer(self, action: fx.RevokeAttempts) -> None:
        """Give back what has not started."""
        answers = [
            (task_id, attempt, (end := self._running.get(task_id)) is None or end.attempt != attempt)
            for task_id, attempt in action.attempts
        ]
        self._said.append(ev.RevokesAnswered(action.worker_id, answers))
        self._moving.append(action.worker_id)

    def _stop(self, action: fx.StopAttempts) -> None:
        """Attempts that are told to make room end at once."""
        finished = []
        for task_id, attempt in action.attempts:
            end = self._running.get(task_id)
            started_ns = 0
            if end is not None and end.attempt == attempt:
                end.is_over = True
                del self._running[task_id]
                started_ns = end.started_ns
                self._run.wasted_s += (self._now - started_ns) / SECOND
                self._gpus -= self._tasks[task_id - 1].requirements.min_gpus
            finished.append(AttemptFinished(task_id, attempt, Cause(action.cause), started_ns, self._now))
        self._said.append(ev.AttemptsFinished(action.worker_id, finished))
        self._moving.append(action.worker_id)
