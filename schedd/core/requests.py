"""What clients ask for: submit, cancel, hold, release, set. A request does what it says, or declines with a reason."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice

from msgspec import structs

from schedd.core import effects as fx
from schedd.core import events as ev
from schedd.core.classes import RequestClass
from schedd.core.guard import Guard
from schedd.core.model import (
    Call,
    Cancelled,
    Command,
    Held,
    Payload,
    Queued,
    Succeeded,
    Task,
    TaskEntry,
    TaskId,
    TaskRequirements,
    TaskSpec,
    WorkerInfo,
)
from schedd.core.retries import end_pause
from schedd.core.submits import CLIENT_MAX, NUMBER_MAX, admitted
from schedd.core.tables import BY_USER, Tables
from schedd.core.tasks import DISPATCHED, UNDISPATCHED, Afters, belongs_to_another, make_task

#: A reply names at most so many tasks that it left unchanged.
UNCHANGED_NAMED_MAX = 100
#: One submit has at most so many tasks: 30 ms of the loop's time.
SUBMIT_TASKS_MAX = 10_000
#: So many warnings of requirements that fit nowhere, and so many looks at a worker to find out: 50 ms.
WARNINGS_MAX = 20
LOOKED_AT_MAX = 50_000
#: They wait for others so many times in all, neighbours that wait for the same counted once: 50 ms.
DEPENDENCIES_MAX = 100_000
#: A kind, a job or a key is at most so many characters long: each is held in memory many times, and shown in tables.
NAME_LENGTH_MAX = 512
#: What a task does is told in so many characters.
WHAT_MAX = 60
#: Tasks that commands look at in one turn: some 15 ms of the loop's time.
CHANGES_PER_TURN_MAX = 1000
#: A delayed start further away than this is a mistake (30 years).
DELAY_S_MAX = 1e9
#: As in the rules of a task.
GRACE_S_MAX = 86_400


class Declined(Exception):
    """A request is declined: code, message, hint."""

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint


#: What changes the tasks of a selection.
Change = ev.CancelTasks | ev.PreemptTasks | ev.HoldTasks | ev.ReleaseTasks | ev.SetTasks
#: A task that a command has looked at, and why it was left as it is ("": it was changed); None: it was not meant.
Step = tuple[TaskId, str] | None


class _Command:
    """A change of many tasks that is under way; `job` must be there when it begins."""

    __slots__ = ("begun", "changed", "job", "origin", "steps", "unchanged")

    def __init__(self, origin: int, steps: Iterator[Step], job: str = "") -> None:
        self.origin = origin
        self.steps = steps
        self.job = job
        self.begun = False
        self.changed = 0
        self.unchanged: list[tuple[int | str, str]] = []


class Requests:
    """The handlers of client requests.

    A command for many tasks may take several turns: at most `CHANGES_PER_TURN_MAX` tasks are looked at in one. Commands
    are carried out one after the other, so that what was asked later counts; other events come in between, and a task
    is changed, or left, as it is found. A command for fewer is atomic.
    """

    def __init__(self, tables: Tables, guard: Guard) -> None:
        self._t = tables
        self._guard = guard
        #: Commands that are not through, the first under way: they go on in the next turn.
        self.pending: deque[_Command] = deque()
        #: How many tasks this turn may still look at for them; all of its bound where the last one had none of them.
        self.room = CHANGES_PER_TURN_MAX
        self._afters = Afters()

    # ---------------------------------------------------------------------------------------------------------- submit

    def on_submit_tasks(self, event: ev.SubmitTasks) -> None:
        try:
            admitted = self._admit(event)
        except Declined as no:
            self._t.actions.append(fx.ReplyDeclined(event.origin, no.code, no.message, no.hint))
        else:
            self._t.actions.append(admitted)

    def _admit(self, event: ev.SubmitTasks) -> fx.ReplySubmitted:
        t = self._t
        if event.client and (reply := self._admitted_before(event)) is not None:
            return reply
        if (size := max(len(event.tasks), len(event.specs))) > SUBMIT_TASKS_MAX:
            text = f"a submit of {size} tasks is above the bound of {SUBMIT_TASKS_MAX}"
            raise Declined("too_large", text, "submit them in parts")
        for spec in event.specs:
            _check_spec(spec)
        known = self._check_entries(event)
        fresh_count = known.count(None)
        if t.tasks.unfinished_count + fresh_count > t.settings.unfinished_max:
            raise Declined(
                "queue_full",
                f"{t.tasks.unfinished_count} tasks are unfinished and at most {t.settings.unfinished_max} may be",
                "wait for some to finish, or raise [limits] unfinished_max",
            )
        by_kind, by_size = t.policy.by_kind, t.policy.by_size
        classes = [t.classes.intern(spec.requirements, spec.kind, by_kind, by_size) for spec in event.specs]
        version = t.resources.members_version
        is_seen = len(classes) == 1 and classes[0].fits_version == version
        warnings = self._warnings(classes) if fresh_count and not is_seen else []
        if warnings and event.strict:
            raise Declined("no_worker_fits", warnings[0], "leave out --strict to let the task wait for a worker")
        ids: list[TaskId] = []
        if fresh_count == len(known):
            fresh = event.tasks
            for entry in fresh:
                ids.append(self._enter(event.specs[entry.spec], entry, classes[entry.spec], ids, event.owner))
        else:
            fresh = self._enter_unknown(event, classes, known, ids)
        for spec in event.specs:
            if spec.requirements.estimated_time is not None:
                t.runtimes.hint(spec.kind, spec.requirements.estimated_time)
        t.counters.submitted += len(fresh)
        if fresh:
            self._record(event, fresh, ids, known)
        at_ns = [t.now] if fresh is event.tasks else [t.tasks.rows[i].submitted_ns for i in ids]
        if t.health.holds:
            warnings = warnings + self._guard.warnings(event.specs)
        return fx.ReplySubmitted(event.origin, ids, warnings, at_ns)

    def _enter_unknown(
        self, event: ev.SubmitTasks, classes: list[RequestClass], known: list[TaskId | None], ids: list[TaskId]
    ) -> list[TaskEntry]:
        """Enter what is not there yet, note the ids of all entries, and return those entered as they are recorded."""
        fresh: list[TaskEntry] = []
        for entry, existing in zip(event.tasks, known, strict=True):
            if existing is not None:
                ids.append(existing)
                continue
            ids.append(self._enter(event.specs[entry.spec], entry, classes[entry.spec], ids, event.owner))
            if entry.after:  # the fact has no entries for such references to count
                entry = structs.replace(entry, after=[r if r >= 0 else ids[-1 - r] for r in entry.after])
            fresh.append(entry)
        return fresh

    def _admitted_before(self, event: ev.SubmitTasks) -> fx.ReplySubmitted | None:
        """Answer a submit that came before, and whose answer was lost, as it was answered then."""
        t = self._t
        if len(event.client) > CLIENT_MAX or not 0 < event.number < NUMBER_MAX or not 0 <= event.answered < NUMBER_MAX:
            raise Declined("bad_request", "a submit that may come twice is named by a short word and a number")
        before = t.submits.find(event.client, event.number)
        if before is None:
            if t.submits.is_over(event.client, event.number):
                raise Declined(
                    "bad_request", f"submit {event.number} of this client was answered, and it has heard of it"
                )
            return None
        ids = list(before.ids)
        if len(ids) != len(event.tasks):
            text = f"submit {event.number} of this client had {len(ids)} tasks, now it has {len(event.tasks)}"
            raise Declined("bad_request", text)
        rows = [t.tasks.get(task_id) for task_id in ids]
        at_ns = [before.at_ns if row is None else row.submitted_ns for row in rows]
        return fx.ReplySubmitted(event.origin, ids, [], at_ns)

    def _record(
        self, event: ev.SubmitTasks, fresh: list[TaskEntry], ids: list[TaskId], known: list[TaskId | None]
    ) -> None:
        t = self._t
        is_all_fresh = len(fresh) == len(ids)
        fresh_ids = ids if is_all_fresh else [i for i, old in zip(ids, known, strict=True) if old is None]
        all_ids = ids if event.client and not is_all_fresh else []
        fact = fx.TasksAdmitted(
            t.now, event.specs, fresh, fresh_ids, event.client, event.number, event.answered, all_ids, event.owner
        )
        t.facts.append(fact)
        if t.policy.promotes:
            for task_id in fresh_ids:
                if (task := t.tasks.rows[task_id]).promoted is not None:
                    t.note_change(task)
        if event.client:
            t.submits.add(admitted(fact), event.answered)

    def _check_entries(self, event: ev.SubmitTasks) -> list[TaskId | None]:
        """Check every entry before the first is entered; returns the tasks that their keys already name.

        What such a task waits for is not judged again: a client that asks once more because the answer was lost gets
        it, whatever has become of the rest meanwhile.
        """
        known: list[TaskId | None] = []
        keys: set[str] = set()
        judged: set[int] = set()
        before, dependencies = TaskEntry(-1), 0
        spec_count = len(event.specs)
        for position, entry in enumerate(event.tasks):
            if not 0 <= entry.spec < spec_count:
                raise Declined("bad_request", f"entry {position} names spec {entry.spec} of {spec_count}")
            if entry.priority is not None and not math.isfinite(entry.priority):
                raise Declined("bad_request", f"entry {position} has the priority {entry.priority}")
            spec = event.specs[entry.spec]
            if (key := entry.key) is not None:
                if not key or key in keys:
                    raise Declined("bad_request", f"key {key!r} is empty or stands twice in one submit")
                keys.add(key)
                _check_name("key", key)
                if (existing := self._same_key(key, spec, entry, event.user)) is not None:
                    known.append(existing)
                    continue
            if (spec.after or entry.after) and (entry.spec != before.spec or entry.after != before.after):
                before = entry
                dependencies += len(spec.after) + len(entry.after)
                if dependencies > DEPENDENCIES_MAX:
                    break
                if entry.spec not in judged:
                    judged.add(entry.spec)
                    self._check_after(spec.after, known)
                self._check_after(entry.after, known)
            known.append(None)
        if dependencies:
            self._check_dependencies(dependencies)
        return known

    def _check_dependencies(self, count: int) -> None:
        """Each costs memory until what is waited for has ended."""
        tasks, most = self._t.tasks, self._t.settings.unfinished_max
        if count > DEPENDENCIES_MAX:
            text = f"the tasks of one submit wait for others {count:,} times, and may {DEPENDENCIES_MAX:,} times"
            raise Declined("too_large", text, "let one task wait for many others, and many others for that one")
        if tasks.dependencies + count > most:
            text = f"tasks wait for others {tasks.dependencies:,} times, and at most {most:,} times they may"
            raise Declined("queue_full", text, "wait for some to finish, or raise [limits] unfinished_max")

    def _check_after(self, after: list[int], known: list[TaskId | None]) -> None:
        """Check what an entry waits for; `known` has one item for each entry before it."""
        for ref in after:
            if ref < 0:
                if -1 - ref >= len(known):
                    raise Declined(
                        "bad_request", f"entry {len(known)} depends on entry {-1 - ref}, which is not before it"
                    )
                if (existing := known[-1 - ref]) is None:
                    continue
                ref = existing
            other = self._t.tasks.get(TaskId(ref))
            if other is None:
                raise Declined(
                    "unknown_task", f"there is no task {ref} to wait for", "finished tasks are forgotten in time"
                )
            if other.state.is_final and not isinstance(other.state, Succeeded):
                raise Declined("illegal_state", f"task {ref} {other.state.name}; a task that needs it could never run")

    def _same_key(self, key: str, spec: TaskSpec, entry: TaskEntry, user: str | None) -> TaskId | None:
        task_id = self._t.tasks.keys.get(key)
        task = self._t.tasks.get(task_id) if task_id is not None else None
        if task is None:
            return None
        if reason := belongs_to_another(task, user):
            raise Declined("key_conflict", f"key {key!r} names task {task.id}, which {reason}", "choose another key")
        if (task.payload, task.argument) != (spec.payload, entry.argument):
            text = f"key {key!r} names task {task.id} ({_what(task.payload)}), which does something else"
            raise Declined("key_conflict", text, f"this submit would do {_what(spec.payload)}: give it another key")
        return task.id

    def _enter(self, spec: TaskSpec, entry: TaskEntry, request: RequestClass, ids: list[TaskId], owner: str) -> TaskId:
        t = self._t
        now = t.now
        task_id = TaskId(t.tasks.next_id)
        after = self._afters.of(spec, entry, ids) if spec.after or entry.after else ()
        task = make_task(spec, entry, task_id, request, now, after, owner)
        if after:
            t.tasks.depend(task)
            if t.policy.promotes:
                self._promote(task)
        if spec.hold:
            task.state = Held(now)
        else:
            task.state = t.waiting_state(task) if after or spec.delay_s else Queued(now)
        t.tasks.admit(task, now)
        t.enter(task)
        return task_id

    def _promote(self, task: Task) -> None:
        """Let a new task gain by what it comes after and has succeeded already."""
        for other_id in task.after:
            other = self._t.tasks.get(other_id)
            if other is not None and isinstance(other.state, Succeeded):
                self._t.promote(task, other)

    def _warnings(self, classes: list[RequestClass]) -> list[str]:
        """Say which requirements no worker could ever meet, with the numbers. Each class once, the first ones only."""
        warnings: list[str] = []
        version, looked = self._t.resources.members_version, 0
        for request in classes if len(classes) == 1 else dict.fromkeys(classes):
            if request.fits_version == version:
                continue
            if looked > LOOKED_AT_MAX or len(warnings) == WARNINGS_MAX:
                break
            for worker in self._t.resources:
                looked += 1
                if self._t.placer.possible(request, worker):
                    request.fits_version = version
                    break
            else:
                warnings.append(self._no_fit(request))
        return warnings

    def _no_fit(self, request: RequestClass) -> str:
        workers = list(self._t.resources)
        if not workers:
            return "no worker is connected; the task waits for one"
        reasons: dict[str, int] = {}
        for worker in workers:
            reason = blocker(request, worker)
            reasons[reason] = reasons.get(reason, 0) + 1
        listed = "; ".join(f"{reason} ({count} worker{'s' if count > 1 else ''})" for reason, count in reasons.items())
        return f"no worker fits: {listed}"

    # --------------------------------------------------------------------------------------- cancel, hold, release, set

    def on_cancel_tasks(self, event: ev.CancelTasks) -> None:
        # From the newest: what waits for another is then cancelled by its own right, and counted.
        cancel = self._cancel if event.started else self._cancel_undispatched
        self._each(event, cancel, newest_first=True)

    def _cancel_undispatched(self, task: Task) -> str:
        return "may have started" if type(task.state) in DISPATCHED else self._cancel(task)

    def _cancel(self, task: Task) -> str:
        t = self._t
        if type(task.state) in UNDISPATCHED:
            t.withdraw(task)
            t.finish(task, Cancelled(t.now), "cancelled")
            return ""
        if type(task.state) in DISPATCHED:
            if task.cancelling:
                return "is being cancelled"
            worker = t.worker_of(task)
            if worker is not None and t.unsend(task, worker):
                t.release(task, worker)
                t.finish(task, Cancelled(t.now), "cancelled")
                return ""
            task.cancelling = True
            t.facts.append(fx.CancelAsked(task.id))
            if worker is not None:
                t.stop(task, worker.worker_id)
            return ""
        return f"already {task.state.name}"

    def on_preempt_tasks(self, event: ev.PreemptTasks) -> None:
        grace_s = event.grace_s
        if grace_s is not None and not 0 <= grace_s <= GRACE_S_MAX:
            text = f"a grace of {grace_s} s makes no sense"
            self._t.actions.append(fx.ReplyDeclined(event.origin, "bad_request", text))
            return
        self._each(event, lambda task: self._preempt(task, grace_s))

    def _preempt(self, task: Task, grace_s: float | None) -> str:
        t = self._t
        if type(task.state) in UNDISPATCHED:
            return f"is {task.state.name}: no worker has it (`hold` keeps it back)"
        worker = t.worker_of(task)
        if task.state.is_final or worker is None:
            return f"already {task.state.name}"
        if task.cancelling:
            return "is being cancelled"
        asked = t.preempting(task)
        if asked is not None and grace_s is None:
            return "is being preempted (a shorter grace can still be given)"
        if t.unsend(task, worker):
            t.release(task, worker)
            t.requeue(task)
        else:
            t.preempt(task, worker, grace_s, asked.for_id if asked is not None else BY_USER)
        return ""

    def on_hold_tasks(self, event: ev.HoldTasks) -> None:
        self._each(event, self._hold)

    def _hold(self, task: Task) -> str:
        if isinstance(task.state, Held):
            return "already held"
        if type(task.state) not in UNDISPATCHED:
            return f"already {task.state.name}"
        self._t.withdraw(task)
        self._t.tasks.set_state(task, Held(self._t.now))
        self._t.facts.append(fx.TaskHeld(task.id))
        return ""

    def on_release_tasks(self, event: ev.ReleaseTasks) -> None:
        self._each(event, self._release)

    def _release(self, task: Task) -> str:
        if not isinstance(task.state, Held):
            return "is not held"
        end_pause(task)
        exempt_ns = self._guard.exempt(task)
        self._t.settle(task)
        self._t.facts.append(fx.TaskReleased(task.id, exempt_ns))
        return ""

    def on_set_tasks(self, event: ev.SetTasks) -> None:
        priority, requirements = event.priority, event.requirements
        if priority is not None and not math.isfinite(priority):
            self._t.actions.append(fx.ReplyDeclined(event.origin, "bad_request", f"{priority} is no priority"))
            return

        def change(task: Task) -> str:
            return self._change(
                task, task.priority if priority is None else priority, requirements or task.requirements
            )

        self._each(event, change)

    def on_set_priorities(self, event: ev.SetPriorities) -> None:
        def steps() -> Iterator[Step]:
            for task_id, priority in event.priorities:
                task = self._t.tasks.get(task_id)
                if task is None:
                    yield task_id, "unknown task"
                elif not math.isfinite(priority):
                    yield task_id, f"{priority} is no priority"
                else:
                    reason = belongs_to_another(task, event.user)
                    yield task_id, reason or self._change(task, priority, task.requirements)

        self._begin(_Command(event.origin, steps()))

    def _change(self, task: Task, priority: float, requirements: TaskRequirements) -> str:
        t = self._t
        if type(task.state) not in UNDISPATCHED:
            return f"already {task.state.name}"
        queued = isinstance(task.state, Queued)
        if queued:
            t.queue.remove(task)  # under its old priority
        task.priority = priority
        if requirements is not task.requirements:
            t.define(task, requirements)
        if queued:
            t.enter(task)
        t.note_change(task)
        return ""

    # ------------------------------------------------------------------------------------ commands for many tasks

    def _each(self, event: Change, change: Callable[[Task], str], newest_first: bool = False) -> None:
        """Apply a change to each selected task and reply with how many it changed."""
        selection, user = event.selection, event.user
        job = "" if selection.ids else selection.job or ""
        # What is submitted after the command is not meant by it.
        below = None if selection.ids else self._t.tasks.next_id

        def steps() -> Iterator[Step]:
            for task_id, task in self._t.tasks.look(selection, below_id=below, newest_first=newest_first):
                if task is not None:
                    reason = belongs_to_another(task, user) or change(task)
                    named = selection.ids or not task.state.is_final
                    yield (task_id, reason) if named or not reason else None
                elif selection.ids and task_id not in self._t.tasks.rows:
                    yield task_id, "unknown task"
                else:
                    yield None

        self._begin(_Command(event.origin, steps(), job))

    def _begin(self, command: _Command) -> None:
        self.pending.append(command)
        if len(self.pending) == 1:
            self._go_on()

    def go_on(self) -> None:
        """At the begin of a turn, where the last one has looked at some: work on what the turns before have left."""
        self.room = CHANGES_PER_TURN_MAX
        if self.pending:
            self._go_on()

    def _go_on(self) -> None:
        """Work on commands, each after the one before, as far as this turn may."""
        while self.pending:
            command = self.pending[0]
            if command.job and not command.begun and command.job not in self._t.tasks.jobs:
                text = f"there is no job {command.job!r}"
                self._t.actions.append(fx.ReplyDeclined(command.origin, "unknown_job", text))
            elif not self._work(command):
                return
            else:
                self._t.actions.append(fx.ReplyChanged(command.origin, command.changed, command.unchanged))
                self._guard.sweep()
            self.pending.popleft()

    def _work(self, command: _Command) -> bool:
        """Take the next steps of a command; True where these were the last."""
        command.begun = True
        for step in islice(command.steps, self.room):
            self.room -= 1
            if step is None:
                continue
            reason = step[1]
            if not reason:
                command.changed += 1
            elif len(command.unchanged) < UNCHANGED_NAMED_MAX:
                command.unchanged.append(step)
        return self.room > 0


def _what(payload: Payload | None) -> str:
    """Say in a few words what a task does."""
    match payload:
        case Command():
            text = " ".join(payload.argv)
            return repr(text if len(text) <= WHAT_MAX else f"{text[:WHAT_MAX]}…")
        case Call():
            return payload.path or f"a function of {len(payload.function)} bytes"
        case None:
            return "not known any more"


def _check_spec(spec: TaskSpec) -> None:
    if not math.isfinite(spec.priority):
        raise Declined("bad_request", f"{spec.priority} is no priority")
    if len(spec.kind) > NAME_LENGTH_MAX or len(spec.job) > NAME_LENGTH_MAX:
        _check_name("kind", spec.kind)
        _check_name("job", spec.job)
    if not 0 <= spec.delay_s <= DELAY_S_MAX:
        raise Declined("bad_request", f"a delay of {spec.delay_s} s makes no sense")
    if spec.after and min(spec.after) < 0:
        raise Declined("bad_request", "what all tasks of a spec wait for must be ids")


def _check_name(word: str, name: str) -> None:
    if len(name) > NAME_LENGTH_MAX:
        text = f"a {word} of {len(name)} characters is above the bound of {NAME_LENGTH_MAX}"
        raise Declined("bad_request", text, f"it begins with {name[:40]!r}")


def blocker(request: RequestClass, worker: WorkerInfo) -> str:
    """What stands between a worker and every variant of a request, even if the worker were empty; "": nothing."""
    ledger = worker.ledger
    if ledger is None:
        return "has declared nothing"
    reasons = [ledger.blocker(need) for need in request.needs]
    return "" if "" in reasons else reasons[0]
