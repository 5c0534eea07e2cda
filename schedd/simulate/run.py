"""One run: a trace through the daemon's engine and one policy, in virtual time.

The workers are the engine's own rows: a task that has its reservation runs, and one in a backlog starts by the rule
that engine and real workers share. Messages take no time. So what is left out is what a network and a process cost,
and nothing of what is decided.
"""

from __future__ import annotations

import random
import time
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from itertools import repeat

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
    Task,
    TaskEntry,
    TaskId,
    TaskRules,
    TaskSpec,
    WorkerId,
    WorkerInfo,
)
from schedd.errors import TraceError
from schedd.simulate.cluster import ClusterRow
from schedd.simulate.trace import Trace, TraceTask

#: Virtual time begins at any instant that is well above zero.
BEGINNING_NS: Instant = 1_700_000_000 * SECOND
#: No virtual worker is ever silent.
NEVER_NS: Instant = 1 << 61
#: Tasks of one submit.
SUBMIT_TASKS_MAX = 1000
#: A run without an end, or a task that nobody can run: the engine may go on for so many turns without anything ending.
IDLE_TURNS_MAX = 1_000_000
LOST_MAX = 1_000_000

Progress = Callable[[int, int], None]


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


def no_progress(finished: int, total: int) -> None:
    """Say nothing."""


class Simulator:
    """Drives one engine; `run` once."""

    def __init__(self, trace: Trace, cluster: Sequence[ClusterRow], settings: Settings, seed: int = 0) -> None:
        engine = structs.replace(
            engine_settings(settings),
            heartbeat_ns=NEVER_NS,
            lease_ns=NEVER_NS,
            lost_after_ns=NEVER_NS,
            unfinished_max=1 << 60,
            finished_keep_count=1,
        )
        self._engine = Engine(settings.policy.build(), engine, random.Random(seed))
        self._trace = trace
        self._tasks = trace.tasks
        self._cluster = cluster
        self._now: Instant = BEGINNING_NS
        count = len(trace.tasks)
        start_s, finish_s = array("d", repeat(-1.0, count)), array("d", repeat(-1.0, count))
        self._run = Run(trace, cluster, start_s, finish_s, array("q", repeat(-1, count)))
        self._submitted = 0
        self._finished = 0
        self._number = 0
        #: (when, number, worker, task id, attempt) of attempts that run.
        self._ends: list[tuple[Instant, int, WorkerId, TaskId, int]] = []
        #: The attempt that runs, by task id.
        self._running: dict[TaskId, int] = {}
        #: What workers will say with the next turn.
        self._said: dict[WorkerId, list[AttemptStarted]] = {}
        self._answers: list[ev.RevokesAnswered] = []
        self._stopped: list[tuple[WorkerId, AttemptFinished]] = []
        self._models: dict[WorkerId, str] = {}
        self._places: dict[WorkerId, int] = {}
        self._gpus = 0.0
        self._specs: dict[bytes, TaskSpec] = {}
        #: Workers that are still to come, or (None) to go: (when, position, name, row).
        self._changes: deque[tuple[Instant, int, WorkerId, ClusterRow | None]] = deque()
        self._here: set[WorkerId] = set()
        #: How often tasks have failed, by id; only of those that do.
        self._failed: dict[TaskId, int] = {}
        self._first_ns = int(trace.tasks[0].submit_s * SECOND)

    def run(self, on_progress: Progress = no_progress) -> Run:
        """Go through the trace. Raises TraceError where there are tasks that no worker could ever run."""
        self._join()
        self._must_fit()
        total, shown, idle = len(self._tasks), 0, 0
        while self._finished < total:
            before = self._finished + self._submitted
            if not self._turn():
                raise TraceError(
                    f"{total - self._finished:,} tasks wait for ever under {self._engine.policy.name}",
                    "with `after`, a task waits for what it needs; else this is a bug of the policy",
                )
            idle = 0 if self._finished + self._submitted > before else idle + 1
            if idle > IDLE_TURNS_MAX:
                raise TraceError(f"nothing has happened for {idle:,} turns of the engine")
            if self._finished - shown >= 1000:
                shown = self._finished
                on_progress(shown, total)
        on_progress(total, total)
        self._run.steals = self._engine.counters.steals
        self._run.placements = self._engine.counters.placements
        return self._run

    # -------------------------------------------------------------------------------------------------------- the start

    def _join(self) -> None:
        changes: list[tuple[Instant, int, WorkerId, ClusterRow | None]] = []
        place = 0
        named = {row.name for row in self._cluster}
        for row in self._cluster:
            for number in range(row.count):
                name = f"{row.name}-{number}" if row.name and row.count > 1 else row.name or f"w{place}"
                while not row.name and name in named:
                    name += "+"
                worker_id = WorkerId(name)
                changes.append((self._after(row.joins_s), place, worker_id, row))
                if row.leaves_s is not None:
                    changes.append((self._after(row.leaves_s), place, worker_id, None))
                place += 1
        self._changes.extend(sorted(changes, key=lambda change: change[:2]))
        self._handle(self._take_changes())

    def _take_changes(self) -> list[ev.Event]:
        """Workers that come and go by now."""
        events: list[ev.Event] = []
        while self._changes and self._changes[0][0] <= self._now:
            _, place, worker_id, row = self._changes.popleft()
            if row is not None:
                if worker_id in self._here:
                    raise TraceError(f"two workers are called {worker_id!r} at a time", "give each a name of its own")
                self._here.add(worker_id)
                self._places[worker_id], self._models[worker_id] = place, row.gpu_model
                events.append(ev.WorkerJoined(worker_id, "1", row.resources(), []))
                continue
            self._here.discard(worker_id)
            events.append(ev.WorkerLeft(worker_id))
            for task_id in self._worker(worker_id).running:
                if self._running.pop(task_id, None) is not None:
                    self._lose(task_id)
        return events

    def _after(self, seconds: float) -> Instant:
        return BEGINNING_NS + int(seconds * SECOND)

    def _must_fit(self) -> None:
        """No task may ask for what no worker has. Raises TraceError."""
        ledgers = [(row, Ledger(row.resources())) for row in self._cluster]
        seen: set[bytes] = set()
        for position, task in enumerate(self._tasks):
            key = msgspec.msgpack.encode(structs.replace(task.requirements, estimated_time=None))
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

    def _turn(self) -> bool:
        """Let the next thing happen; False where there is none."""
        at = self._next()
        if at is None:
            return False
        self._now = at
        events: list[ev.Event] = [*self._answers]
        self._answers = []
        said, self._said = self._said, {}
        events += [ev.AttemptsStarted(worker_id, started) for worker_id, started in said.items()]
        ended = self._take_ends()
        before = [(worker, list(worker.task_queue)) for worker in map(self._worker, ended) if worker.task_queue]
        events += [ev.AttemptsFinished(worker_id, finished) for worker_id, finished in ended.items()]
        events += self._take_changes()
        submit = self._take_submits()
        if submit is not None:
            events.append(submit)
        self._handle(events or [ev.Wakeup(0)])
        for worker, backlog in before:
            self._start_reserved(worker, backlog)
        return True

    def _next(self) -> Instant | None:
        if self._answers or self._stopped:
            return self._now
        times = [] if self._submitted == len(self._tasks) else [self._at(self._tasks[self._submitted])]
        if self._ends:
            times.append(self._ends[0][0])
        if self._changes:
            times.append(self._changes[0][0])
        deadline = self._engine.next_deadline()
        if deadline is not None and deadline < NEVER_NS:
            times.append(deadline)
        return max(self._now, min(times)) if times else None

    def _at(self, task: TraceTask) -> Instant:
        return BEGINNING_NS + int(task.submit_s * SECOND) - self._first_ns

    def _worker(self, worker_id: WorkerId) -> WorkerInfo:
        return self._engine.resources.workers[worker_id]

    def _take_submits(self) -> ev.SubmitTasks | None:
        specs: list[TaskSpec] = []
        numbers: dict[int, int] = {}
        entries: list[TaskEntry] = []
        first = self._submitted
        while self._submitted < len(self._tasks) and len(entries) < SUBMIT_TASKS_MAX:
            task = self._tasks[self._submitted]
            if self._at(task) > self._now:
                break
            spec = self._spec_of(task)
            number = numbers.get(id(spec))
            if number is None:
                number = numbers[id(spec)] = len(specs)
                specs.append(spec)
            # The id of what was there before, or -1-n for the n-th of this very submit.
            after = [first - other - 1 if other >= first else other + 1 for other in task.after]
            entries.append(TaskEntry(number, after=after))
            self._submitted += 1
        return ev.SubmitTasks(0, specs, entries) if entries else None

    def _spec_of(self, task: TraceTask) -> TaskSpec:
        rules = TaskRules(retries=len(task.failures), lost_limit=LOST_MAX) if task.failures or task.fails else RULES
        key = msgspec.msgpack.encode((task.kind, task.priority, task.requirements, rules))
        spec = self._specs.get(key)
        if spec is None:
            if len(self._specs) >= SUBMIT_TASKS_MAX:
                self._specs.clear()  # a length of its own for each task: they are not used again
            spec = TaskSpec(_PAYLOAD, task.kind, "", task.priority, task.requirements, rules)
            self._specs[key] = spec
        return spec

    def _take_ends(self) -> dict[WorkerId, list[AttemptFinished]]:
        ended: dict[WorkerId, list[AttemptFinished]] = {}
        for worker_id, finished in self._stopped:
            ended.setdefault(worker_id, []).append(finished)
        self._stopped = []
        while self._ends and self._ends[0][0] <= self._now:
            at, _, worker_id, task_id, attempt = heappop(self._ends)
            if self._running.get(task_id) != attempt:
                continue
            del self._running[task_id]
            self._gpus -= self._tasks[task_id - 1].requirements.min_gpus
            started_ns = BEGINNING_NS + int(self._run.start_s[task_id - 1] * SECOND)
            cause, is_last = self._end_of(task_id)
            ended.setdefault(worker_id, []).append(AttemptFinished(task_id, attempt, cause, started_ns, at))
            if cause is not Cause.OK:
                self._run.wasted_s += (at - started_ns) / SECOND
            if not is_last:
                continue
            self._run.finish_s[task_id - 1] = (at - BEGINNING_NS) / SECOND
            self._finished += 1
        return ended

    def _end_of(self, task_id: TaskId) -> tuple[Cause, bool]:
        """How the attempt of a task ends that is through now, and whether there is none after it."""
        row = self._tasks[task_id - 1]
        failed = self._failed.get(task_id, 0)
        if failed < len(row.failures):
            self._failed[task_id] = failed + 1
            return Cause.ERROR, False
        return Cause.ERROR if row.fails else Cause.OK, True

    def _lose(self, task_id: TaskId) -> None:
        """What an attempt has done so far counts for nothing."""
        self._run.wasted_s += (self._now - BEGINNING_NS) / SECOND - self._run.start_s[task_id - 1]
        self._gpus -= self._tasks[task_id - 1].requirements.min_gpus

    def _handle(self, events: list[ev.Event]) -> None:
        began = time.perf_counter()
        effects = self._engine.handle(events, self._now)
        self._run.engine_s += time.perf_counter() - began
        for action in effects.actions:
            if isinstance(action, fx.DispatchAttempts):
                self._start_reserved(self._worker(action.worker_id), action.tasks)
            elif isinstance(action, fx.RevokeAttempts):
                answers = [(i, attempt, self._running.get(i) != attempt) for i, attempt in action.attempts]
                self._answers.append(ev.RevokesAnswered(action.worker_id, answers))
            elif isinstance(action, fx.StopAttempts):
                self._stop(action)

    # ------------------------------------------------------------------------------------------------------- attempts

    def _start_reserved(self, worker: WorkerInfo, tasks: Sequence[Task]) -> None:
        """Start those of these that have their reservation on this worker and do not run yet."""
        for task in tasks:
            if not task.reserved or task.id not in worker.running or self._running.get(task.id) == task.attempt:
                continue
            row = self._tasks[task.id - 1]
            self._running[task.id] = task.attempt
            self._number += 1
            runtime_s = row.runtime_on(self._models[worker.worker_id])
            failed = self._failed.get(task.id, 0) if row.failures else 0
            runtime_ns = int(runtime_s * (row.failures[failed] if failed < len(row.failures) else 1.0) * SECOND)
            heappush(self._ends, (self._now + runtime_ns, self._number, worker.worker_id, task.id, task.attempt))
            self._run.start_s[task.id - 1] = (self._now - BEGINNING_NS) / SECOND
            self._run.where[task.id - 1] = self._places[worker.worker_id]
            self._gpus += row.requirements.min_gpus
            self._run.gpus_peak = max(self._run.gpus_peak, self._gpus)
            started = AttemptStarted(task.id, task.attempt, self._now, task.devices)
            self._said.setdefault(worker.worker_id, []).append(started)

    def _stop(self, action: fx.StopAttempts) -> None:
        """Attempts that are told to make room end at once."""
        for task_id, attempt in action.attempts:
            started_ns = 0
            if self._running.get(task_id) == attempt:
                del self._running[task_id]
                started_ns = BEGINNING_NS + int(self._run.start_s[task_id - 1] * SECOND)
                self._lose(task_id)
            end = AttemptFinished(task_id, attempt, Cause(action.cause), started_ns, self._now)
            self._stopped.append((action.worker_id, end))


_PAYLOAD = Call(path="trace:task")
#: No task fails because its workers left.
RULES = TaskRules(lost_limit=LOST_MAX)
