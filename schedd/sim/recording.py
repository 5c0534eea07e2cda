"""All that is on disk, told by its facts in their order; and what an engine must make of it."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct, field

from schedd.core import effects as fx
from schedd.core.engine import Engine
from schedd.core.fleet import NOT_BACK
from schedd.core.model import (
    SECOND,
    Cause,
    Delayed,
    Held,
    Instant,
    Queued,
    Task,
    TaskId,
    TaskRequirements,
    TaskRules,
    Waiting,
)
from schedd.core.retries import OUT_OF_MEMORY, RetryRules
from schedd.journal.records import FinishedTask
from schedd.sim.runner import result_of, script_of
from schedd.sim.verdicts import Verdicts
from schedd.sim.violation import must

NOT_BLAMED = frozenset({Cause.OK, Cause.CANCELLED, Cause.PREEMPTED})


class Recorded(Struct):
    """A task as the facts on disk tell it."""

    id: TaskId
    name: str
    key: str | None
    priority: float
    requirements: TaskRequirements
    after: frozenset[TaskId]
    rules: TaskRules
    is_held: bool
    #: When it was admitted, and when its requirements were changed: one of these is what an attempt of it goes by.
    definitions: set[Instant]
    promoted: float | None = None
    cancel_asked: bool = False
    #: The attempt that is to make room, 0: none.
    preempt_asked: int = 0
    preempted_count: int = 0
    #: An attempt of it was given out: what it waited for had succeeded then, whatever became of that.
    is_given: bool = False
    attempt: int = 0
    blamed: dict[Cause, int] = field(default_factory=dict)
    #: When the next attempt may begin, 0: at once.
    retry_at_ns: Instant = 0
    state: str = ""
    result: bytes | None = None


def priorities_of(fact: fx.TasksAdmitted) -> dict[TaskId, float]:
    """The priorities of what a submit admitted."""
    pairs = ((task_id, entry, fact.specs[entry.spec]) for entry, task_id in zip(fact.tasks, fact.ids, strict=True))
    return {task_id: spec.priority if entry.priority is None else entry.priority for task_id, entry, spec in pairs}


def is_hopeless(task: Recorded) -> bool:
    """Whether a task may fail: the attempts that count against one of its limits are more than that."""
    rules, blamed, default = task.rules, task.blamed, RetryRules()
    own = blamed.get(Cause.ERROR, 0) + (blamed.get(Cause.TIMEOUT, 0) if rules.timeout_limit is None else 0)
    if rules.retries is not None and own > rules.retries:
        return True
    if rules.oom_limit is None and blamed.keys() & OUT_OF_MEMORY:
        return True  # another attempt could ask for nothing else
    return any(count > default.limit(cause, rules) for cause, count in blamed.items())


class Recording:
    """All that is on disk, told by its facts in their order."""

    def __init__(self) -> None:
        self.tasks: dict[TaskId, Recorded] = {}
        self.unfinished: set[TaskId] = set()
        self.keys: dict[str, TaskId] = {}
        #: Which task was submitted under a name: clients ask twice only for what is done once.
        self.names: dict[str, TaskId] = {}
        #: Workers that the next start of the daemon will wait for.
        self.workers: set[str] = set()
        #: Those that a restart waited for in vain, until they are back.
        self.given_up: set[str] = set()
        self.verdicts = Verdicts()

    def add(self, facts: Iterable[fx.Fact], finished: Iterable[FinishedTask]) -> None:
        """Take in a transaction."""
        results = {record.id: record for record in finished}
        for fact in facts:
            self.verdicts.add(fact)
            match fact:
                case fx.TasksAdmitted():
                    self._admit(fact)
                case fx.TaskHeld():
                    self.tasks[fact.task_id].is_held = True
                case fx.TaskReleased():
                    task = self.tasks[fact.task_id]
                    task.is_held, task.retry_at_ns = False, 0
                case fx.TaskChanged():
                    task = self.tasks[fact.task_id]
                    task.priority, task.requirements, task.promoted = fact.priority, fact.requirements, fact.promoted
                    task.definitions.add(fact.defined_ns)
                case fx.CancelAsked():
                    self.tasks[fact.task_id].cancel_asked = True
                case fx.PreemptAsked():
                    self.tasks[fact.task_id].preempt_asked = fact.attempt
                case fx.AttemptDispatched():
                    self.tasks[fact.task_id].is_given = True
                case fx.AttemptEnded():
                    self._end_attempt(fact)
                case fx.TaskFinished():
                    self._finish(fact, results)
                case fx.WorkerEntered():
                    self.workers.add(fact.worker_id)
                    self.given_up.discard(fact.worker_id)
                case fx.WorkerGone():
                    self.workers.discard(fact.worker_id)
                    if fact.reason == NOT_BACK:
                        self.given_up.add(fact.worker_id)

    def _admit(self, fact: fx.TasksAdmitted) -> None:
        priorities = priorities_of(fact)
        for entry, task_id in zip(fact.tasks, fact.ids, strict=True):
            must(task_id not in self.tasks, f"task {task_id} was recorded twice")
            spec = fact.specs[entry.spec]
            must(entry.key is None or entry.key not in self.keys, f"key {entry.key} names two tasks")
            name = script_of(entry.argument).name
            must(name not in self.names, f"{name} was admitted as {self.names.get(name)} and as {task_id}")
            self.names[name] = task_id
            if entry.key is not None:
                self.keys[entry.key] = task_id
            refs = [*spec.after, *entry.after]
            self.tasks[task_id] = Recorded(
                task_id,
                name,
                entry.key,
                priorities[task_id],
                spec.requirements,
                frozenset(TaskId(ref) if ref >= 0 else fact.ids[-1 - ref] for ref in refs),
                spec.rules,
                spec.hold,
                {fact.at_ns},
            )
            self.unfinished.add(task_id)

    def _end_attempt(self, fact: fx.AttemptEnded) -> None:
        task, cause = self.tasks[fact.task_id], fact.record.cause
        must(not task.state, f"attempt {fact.record.attempt} of task {task.id} ended after its task")
        must(fact.record.attempt > task.attempt, f"attempt {fact.record.attempt} of task {task.id} ended twice")
        task.attempt = fact.record.attempt
        task.cancel_asked, task.preempt_asked = False, 0
        task.retry_at_ns = fact.retry_at_ns
        task.preempted_count += cause is Cause.PREEMPTED
        if cause not in NOT_BLAMED and not fact.record.excused:
            task.blamed[cause] = task.blamed.get(cause, 0) + 1

    def _finish(self, fact: fx.TaskFinished, results: dict[TaskId, FinishedTask]) -> None:
        task = self.tasks[fact.task_id]
        must(not task.state, f"task {task.id} finished twice: {task.state}, {fact.state}")
        record = results.get(task.id)
        must(record is not None and record.state == fact.state, f"the end of task {task.id} is not recorded")
        task.state, task.result = fact.state, fact.result
        self.unfinished.discard(task.id)
        if fact.state == "succeeded":
            must(fact.result == result_of(task.name), f"task {task.id} ({task.name}) has result {fact.result!r}")
        elif fact.state == "failed":
            must(is_hopeless(task), f"task {task.id} failed after {task.blamed}")

    # ----------------------------------------------------------------------------------- and what an engine makes of it

    def compare(self, engine: Engine, *, restored: bool) -> None:
        """An engine knows what is on disk, neither more nor less. `restored`: nothing has happened to it since."""
        rows = engine.tasks.rows
        for task in self.tasks.values():
            row = rows.get(task.id)
            must(row is not None, f"task {task.id} is on disk and unknown")
            assert row is not None
            if task.state:
                must(row.state.name == task.state, f"task {task.id} is {task.state} on disk and {row.state}")
            elif restored and task.cancel_asked:
                must(row.state.is_final, f"task {task.id} was to be cancelled and is {row.state}")
            elif not (restored and row.state.name == "cancelled"):  # with one that it needs
                self._compare_unfinished(engine, task, row)
                self._compare_asked(engine, task, row, restored=restored)
                if restored:
                    self._compare_pause(engine, task, row)
        self.verdicts.compare(engine)
        must(len(rows) == len(self.tasks), "the engine knows tasks that are not on disk")
        for key, task_id in self.keys.items():
            must(engine.tasks.keys.get(key) == task_id, f"key {key} names {engine.tasks.keys.get(key)}, not {task_id}")

    @staticmethod
    def _compare_asked(engine: Engine, task: Recorded, row: Task, *, restored: bool) -> None:
        """What was asked of the current attempt, or (`restored`) of one that a worker may still come back with.

        What was asked of one that went with its worker stays on disk, and means nothing.
        """
        asked = engine._t.asked.get(row.id)
        attempt = asked.attempt if asked is not None else 0
        if restored or attempt:
            on_disk = task.preempt_asked
            must(attempt == on_disk, f"attempt {attempt} of task {row.id} is to make room, on disk {on_disk}")

    @staticmethod
    def _compare_pause(engine: Engine, task: Recorded, row: Task) -> None:
        """The pause before a retry goes on after a restart; it is no longer than its cap, whatever clocks were set."""
        now, state = engine._t.now, row.state
        cap_ns = int(engine._t.settings.retries.cap_s(task.rules) * SECOND)
        until = min(task.retry_at_ns, now + cap_ns)
        if until > now:
            must(row.not_before_ns >= until, f"task {row.id} may begin at {row.not_before_ns}, on disk at {until}")
            must(isinstance(state, Delayed | Held | Waiting), f"task {row.id} is {state} before {until}")

    def _compare_unfinished(self, engine: Engine, task: Recorded, row: Task) -> None:
        state = row.state
        must(not state.is_final, f"task {task.id} is {state} and not on disk as such")
        must(
            (row.priority, row.requirements, row.promoted) == (task.priority, task.requirements, task.promoted),
            f"task {task.id} has priority {row.priority} + {row.promoted} and {row.requirements}, on disk {task}",
        )
        must((row.blamed or {}) == task.blamed, f"task {task.id} counts {row.blamed}, on disk {task}")
        if isinstance(state, Held) and state.reason and not task.is_held:
            must(self.verdicts.may_be_held(task.id, state.reason, engine), f"task {task.id} is {state} for no reason")
        else:
            must(isinstance(state, Held) == task.is_held, f"task {task.id} is {state}, on disk {task}")
        must(row.attempt >= task.attempt, f"task {task.id} is at attempt {row.attempt}, on disk {task}")
        if row.attempt > task.attempt:
            return  # it has been given to a worker: by this daemon, or by one that died before it recorded why
        # With what ended otherwise all end that wait for it; what was given out before does not.
        over = ("succeeded", "failed", "cancelled") if task.is_given else ("succeeded",)
        missing = {i for i in task.after if self.tasks[i].state not in over} if not task.attempt else set()
        must(engine.tasks.missing(row.id) == missing, f"task {task.id} waits for {missing} on disk")
        must(not missing or isinstance(state, Waiting | Held), f"task {task.id} is {state} and waits for {missing}")
        if isinstance(state, Queued | Delayed):
            must(not missing, f"task {task.id} is {state}")
