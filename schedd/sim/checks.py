"""What must be true, whatever happens. Kept apart from the tables of the engine: from facts, words and processes.

`Oracle` hears of each turn of the engine, of each transaction that is on disk, of each real begin and end of an
execution, of all that clients and workers are told, and raises `Violation` at the first lie.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from schedd.core import effects as fx
from schedd.core.engine import LATE_NS
from schedd.core.fleet import NOT_BACK
from schedd.core.model import (
    Cause,
    Instant,
    TaskId,
    WorkerId,
)
from schedd.core.needs import WHOLE
from schedd.journal.records import FinishedTask
from schedd.sim.kernel import Kernel
from schedd.sim.recording import Recording, priorities_of
from schedd.sim.runner import KILLED, Execution
from schedd.sim.verdicts import VerdictOracle
from schedd.sim.violation import must
from schedd.wire import messages as m
from schedd.worker.attempts import Ending
from schedd.worker.outbox import Kept

if TYPE_CHECKING:
    from schedd.sim.daemon import Daemon
    from schedd.sim.worker import Worker

#: Causes of attempts that really ran to an end.
OF_ITS_OWN = frozenset({Cause.OK, Cause.ERROR, Cause.TIMEOUT, Cause.OOM_HOST, Cause.OOM_GPU})


class Oracle:
    """Hears of everything."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self.recording = Recording()
        #: Executions that are alive, by task name.
        self._alive: dict[str, list[Execution]] = {}
        #: The same, by machine.
        self._machines: dict[str, list[Execution]] = {}
        self._daemon_started_ns: Instant = 0
        self.executions = 0
        #: From when to when the present start of the daemon was frozen the last time, so that it could know.
        self._freeze: tuple[Instant, Instant] = (0, 0)
        self.verdicts = VerdictOracle()
        #: How often attempts ended by which cause.
        self.ends: Counter[Cause] = Counter()
        #: While the disk refuses, work goes on without it.
        self.disk_has_refused = False
        #: (task id, attempt, worker) of executions that really began, or of which the worker said so.
        self._begun: set[tuple[TaskId, int, str]] = set()
        #: How those ended that were not killed with their worker.
        self._over: dict[tuple[TaskId, int, str], Ending] = {}
        #: (task id, attempt, worker) of what workers were told to drop.
        self._dropped: set[tuple[TaskId, int, str]] = set()
        #: Attempts that were asked to make room.
        self._preempted: set[tuple[TaskId, int]] = set()
        #: Priorities of tasks, as the present start of the daemon told them.
        self._priorities: dict[TaskId, float] = {}
        self._promoted: dict[TaskId, float] = {}
        #: Since when it is no fault to run again what this start of a worker runs.
        self._given_up: dict[tuple[str, str], Instant] = {}
        self.incarnations: dict[str, str] = {}
        #: When a worker left or was given up, so that it could bring no ends to anybody who waits for them.
        self._gone_ns: dict[str, Instant] = {}
        #: Successes on the disks of workers: (attempt, definition of the task), by task and worker.
        self._kept: dict[tuple[TaskId, str], tuple[int, Instant]] = {}
        self.kept_count = 0
        #: When the daemon heard of a worker the last time.
        self._heard_ns: dict[str, Instant] = {}
        #: Newest attempt and its worker, as the present start of the daemon told it.
        self._current: dict[TaskId, tuple[int, WorkerId]] = {}
        #: Those of them that it has not given out itself.
        self._found: set[TaskId] = set()
        #: When an attempt was given to a worker, or found there; each time.
        self._dispatched_ns: dict[tuple[TaskId, int, str], list[Instant]] = {}
        #: When attempts were given out, or found on a worker, once that is on disk: the next start knows of it.
        self._gifts_ns: dict[tuple[TaskId, int, str], list[Instant]] = {}
        #: Finds that are not on disk yet.
        self._finds_ns: dict[tuple[TaskId, int, str], Instant] = {}
        #: When a task was held or changed the last time.
        self._changed_ns: dict[TaskId, Instant] = {}
        #: The definition of a task since its requirements were changed; an attempt has the one that it was given with.
        self._defined_ns: dict[TaskId, Instant] = {}
        #: What clients were told of ends.
        self._told: dict[TaskId, tuple[str, bytes | None]] = {}
        self.acknowledged: dict[TaskId, str] = {}

    # -------------------------------------------------------------------------------------------- the daemon's turns

    def daemon_started(self, daemon: Daemon) -> None:
        """A daemon has read its disk."""
        self._current.clear()
        self._found.clear()
        self._freeze = (0, 0)
        self.verdicts.restarted(self.recording.verdicts)
        self._daemon_started_ns = self._kernel.now_ns
        tasks = list(self.recording.tasks.values())
        on_disk = self.recording.tasks
        self._defined_ns = {
            i: ns for i, ns in self._defined_ns.items() if i in on_disk and ns in on_disk[i].definitions
        }
        # What was released and ran before that was on disk is held again, and whoever comes back with it drops it.
        self._changed_ns.update({task.id: self._kernel.now_ns for task in tasks if task.is_held})
        self._priorities = {task.id: task.priority for task in tasks}
        self._promoted = {task.id: task.promoted for task in tasks if task.promoted is not None}
        self.recording.compare(daemon.engine, restored=True)
        daemon.engine.check()

    def on_turn(self, daemon: Daemon, effects: fx.Effects) -> None:
        """The facts of a turn, before anybody hears of them."""
        self.verdicts.on_turn(effects.facts)
        given_out = {
            task.id for action in effects.actions if isinstance(action, fx.DispatchAttempts) for task in action.tasks
        }
        for fact in effects.facts:
            match fact:
                case fx.AttemptDispatched():
                    self._on_dispatched(fact, is_found=fact.task_id not in given_out)
                    key = fact.task_id, fact.attempt, fact.worker_id
                    self._dispatched_ns.setdefault(key, []).append(self._kernel.now_ns)
                    if fact.task_id in given_out:
                        self._gifts_ns.setdefault(key, []).append(self._kernel.now_ns)
                    else:
                        self._finds_ns[key] = self._kernel.now_ns
                case fx.AttemptBegan():
                    # Perhaps not yet: one that was sent ahead to a child may stand behind a short one there.
                    self._begun.add((fact.task_id, fact.attempt, self._current[fact.task_id][1]))
                case fx.AttemptEnded():
                    self._on_attempt_ended(fact)
                case fx.WorkerGone():
                    self._on_worker_gone(daemon, fact)
                case fx.TaskHeld() | fx.TaskChanged():
                    # It was changed as one that does not run; a worker that comes back with it is told to drop it.
                    self._changed_ns[fact.task_id] = self._kernel.now_ns
                    if isinstance(fact, fx.TaskChanged):
                        self._defined_ns[fact.task_id] = fact.defined_ns
                        self._priorities[fact.task_id] = fact.priority
                        self._promoted[fact.task_id] = fact.promoted or 0.0
                case fx.TasksAdmitted():
                    self._priorities |= priorities_of(fact)
                case fx.PreemptAsked():
                    self._on_preempt_asked(daemon, fact)
        for action in effects.actions:
            if isinstance(action, fx.DropAttempts):
                self._dropped.update((task_id, number, action.worker_id) for task_id, number in action.attempts)

    def _on_dispatched(self, fact: fx.AttemptDispatched, *, is_found: bool) -> None:
        """Numbers rise, but where two workers come with what two earlier starts have given to them."""
        before, was_found = self._current.get(fact.task_id), fact.task_id in self._found
        number, worker_id = before or (0, "")
        are_found = is_found and was_found and worker_id != fact.worker_id
        must(number < fact.attempt or are_found, f"attempt of {fact} was given before: {before}")
        self._current[fact.task_id] = (fact.attempt, fact.worker_id)
        (self._found.add if is_found else self._found.discard)(fact.task_id)

    def _on_preempt_asked(self, daemon: Daemon, fact: fx.PreemptAsked) -> None:
        current = self._current.get(fact.task_id)
        must(current is not None and current[0] == fact.attempt, f"{fact}, the current attempt is {current}")
        is_new = (fact.task_id, fact.attempt) not in self._preempted
        self._preempted.add((fact.task_id, fact.attempt))
        if fact.for_id and is_new:
            told = self.recording.tasks.get(fact.task_id)
            rule = daemon.policy.priority
            promotes = bool(rule.from_metric)
            mine, its = self._importance(fact.task_id, promotes), self._importance(fact.for_id, promotes)
            must(its - mine >= rule.preempt_margin, f"{fact}: of priority {mine}, for one of {its}")
            times = told.preempted_count if told is not None else 0
            must(times < rule.preempt_times_max, f"{fact}: for the {times + 1}th time")

    def _importance(self, task_id: TaskId, promotes: bool) -> float:
        return self._priorities[task_id] + (self._promoted.get(task_id, 0.0) if promotes else 0.0)

    def _on_attempt_ended(self, fact: fx.AttemptEnded) -> None:
        record = fact.record
        self.ends[record.cause] += 1
        current = self._current.get(fact.task_id)
        what = f"attempt {record.attempt} of task {fact.task_id} on {record.worker_id}"
        must(
            current == (record.attempt, record.worker_id),
            f"{what} ended ({record.cause}), the current one is {current}",
        )
        where = (fact.task_id, record.attempt, str(record.worker_id))
        if record.cause in OF_ITS_OWN:
            must(self._over.get(where) is not None, f"{what} ended ({record.cause}) and is not over")
        if record.cause is Cause.OK:
            must(self._over[where].cause is Cause.OK, f"{what} was a success and ended with {self._over[where]}")
        if record.cause in (Cause.ERROR, Cause.OOM_GPU):
            must(self._over[where].signal != KILLED, f"{what} was killed and is said to have failed: {record}")
        if record.cause is Cause.PREEMPTED:
            must(where[:2] in self._preempted, f"{what} was preempted and nobody asked")
        if record.cause is Cause.LOST:
            # Who may have killed its worker before its start was told is blamed, too; but nobody says that it started.
            has_begun = (fact.task_id, record.attempt, record.worker_id) in self._begun
            must(has_begun or not record.started_at_ns, f"{what} is said to have started and has never begun")

    def _on_worker_gone(self, daemon: Daemon, fact: fx.WorkerGone) -> None:
        if fact.reason == NOT_BACK:
            early_ns = self.grace_until_ns(daemon) - self._kernel.now_ns
            must(early_ns <= 0, f"{fact.worker_id} had {early_ns / 1e9:.1f} s more to come back")
            return  # by `on_grace_over`
        self._given_up[fact.worker_id, fact.incarnation] = self._kernel.now_ns
        if "anew" not in fact.reason:
            self._gone_ns[fact.worker_id] = self._kernel.now_ns
        if fact.lost and "anew" not in fact.reason:
            silent_ns = self._kernel.now_ns - self._heard_ns.get(fact.worker_id, 0)
            allowed_ns = daemon.plan.engine.lost_after_ns
            must(silent_ns >= allowed_ns, f"{fact.worker_id} was given up after {silent_ns / 1e9:.1f} s of silence")
            early_ns = self.listens_until_ns(daemon) - self._kernel.now_ns
            must(early_ns <= 0, f"{fact.worker_id} was given up {early_ns / 1e9:.1f} s too early after a freeze")

    def listens_until_ns(self, daemon: Daemon) -> Instant:
        """Until when a daemon that was frozen judges nobody: it may have much to read."""
        frozen_ns, thawed_ns = self._freeze
        return thawed_ns + min(thawed_ns - frozen_ns, daemon.plan.engine.lost_after_ns)

    def grace_until_ns(self, daemon: Daemon) -> Instant:
        """Until when a daemon that was started waits for the workers of the one before it; just before, to be safe."""
        return max(daemon.started_ns + daemon.grace_ns, self.listens_until_ns(daemon)) - 1

    def on_thaw(self, daemon: Daemon, frozen_ns: Instant) -> None:
        """The daemon goes on. It can know that it did not run where something was due meanwhile."""
        due = daemon.engine.next_deadline()
        if due is not None and daemon.process.now_ns() - due >= LATE_NS:
            self._freeze = (frozen_ns, self._kernel.now_ns)

    def on_heard(self, worker_id: str) -> None:
        """The daemon has read something of a worker."""
        self._heard_ns[worker_id] = self._kernel.now_ns

    def on_grace_over(self, worker: str) -> None:
        """A restarted daemon has waited long enough for a worker."""
        self._given_up[worker, self.incarnations[worker]] = self._gone_ns[worker] = self._kernel.now_ns

    def on_disk(self, facts: list[fx.Fact], finished: list[FinishedTask]) -> None:
        """A transaction is there."""
        self.recording.add(facts, finished)
        for fact in facts:
            if isinstance(fact, fx.AttemptDispatched):
                key = fact.task_id, fact.attempt, fact.worker_id
                if (found_ns := self._finds_ns.pop(key, None)) is not None:
                    self._gifts_ns.setdefault(key, []).append(found_ns)

    # ------------------------------------------------------------------------------------------------- real processes

    def began(self, execution: Execution) -> None:
        """Processes of an attempt are there."""
        row, name = execution.row, execution.script.name
        self.executions += 1
        self._kernel.note(f"{execution.worker} begins {row.name} ({name})")
        self._begun.add((row.task_id, row.attempt, execution.worker))
        others = self._alive.setdefault(name, [])
        others = [other for other in others if not self._is_forgotten(other)]
        for other in others:
            must(other.worker != execution.worker, f"{row.name} ({name}) runs twice on {other.worker}")
        # Its requirements may have been changed meanwhile: then its worker is about to hear that it is to drop it.
        spec = row.spec
        is_meant = self._defined_ns.get(row.task_id, spec.defined_ns) == spec.defined_ns
        if is_meant and self._given_up_ns(execution.worker) < self._given_ns(execution):
            self._must_be_alone(execution, others)
            self._must_not_be_kept(execution)
        self._alive[name].append(execution)
        self._machines.setdefault(execution.worker, []).append(execution)
        self._must_have_room(execution)

    def _must_have_room(self, execution: Execution) -> None:
        """No device of a machine is promised twice: to what runs, or to what is not gone yet."""
        used = dict.fromkeys(execution.row.devices, 0)
        for other in self._machines[execution.worker]:
            for index in other.row.devices:
                if index in used:
                    used[index] += other.row.need.share
        must(
            max(used.values(), default=0) <= WHOLE,
            f"{execution.row.name} shares a device of {execution.worker}: {used}",
        )

    def kept(self, worker: str, kept: Kept) -> None:
        """Ends are on the disk of a worker's machine."""
        for end, defined_ns in zip(kept.attempts, kept.defined_ns, strict=True):
            if end.cause is Cause.OK:
                self.kept_count += 1
                self._kept[end.task_id, worker] = (end.attempt, defined_ns)

    def forgot(self, worker: str, kept: Kept) -> None:
        """They are there no more."""
        for end in kept.attempts:
            self._kept.pop((end.task_id, worker), None)

    def _must_not_be_kept(self, execution: Execution) -> None:
        """What has succeeded on a worker that is believed in, and is on its disk, is not run again."""
        row = execution.row
        for (task_id, worker), (attempt, defined_ns) in self._kept.items():
            if (task_id, defined_ns) != (row.task_id, row.spec.defined_ns):
                continue
            kept = (task_id, attempt, worker)
            is_newer = row.attempt >= attempt and execution.worker != worker
            if is_newer and kept in self._dropped and self._was_given_up(kept):
                continue  # superseded before its end could be told
            given_ns = self._given_before_ns(kept, execution)
            gone_ns = max(self._gone_ns.get(worker, 0), self._changed_ns.get(task_id, 0))
            must(gone_ns >= given_ns, f"{row.name} begins on {execution.worker}, {worker} keeps the end of {attempt}")

    def must_end(self, execution: Execution, why: str) -> None:
        """It was time for it to end."""
        alive = execution in self._alive.get(execution.script.name, ())
        must(not alive, f"{execution.row.name} still runs on {execution.worker}, though {why}")

    def _is_forgotten(self, execution: Execution) -> bool:
        """Of a task that nobody was told of, and that died with the daemon before it was on disk."""
        task = self.recording.tasks.get(execution.row.task_id)
        # What was submitted again may have the id that it had before, but was admitted at another time.
        defined_ns = execution.row.spec.defined_ns
        known = task is not None and task.name == execution.script.name and defined_ns in task.definitions
        return not known and self._given_ns(execution) < self._daemon_started_ns

    def _must_be_alone(self, execution: Execution, others: list[Execution]) -> None:
        """What is run on a worker that is believed in runs nowhere else where it could go on, and has not ended."""
        row, name = execution.row, execution.script.name
        known = execution.worker in self.recording.workers or self.disk_has_refused
        must(known, f"{row.name} begins on {execution.worker}, of which a restarted daemon would know nothing")
        task = self.recording.tasks.get(row.task_id)
        # A worker that no daemon has heard of since a restart begins what the one before it gave it.
        is_told = max(self._heard_ns.get(execution.worker, 0), self._given_ns(execution)) >= self._daemon_started_ns
        if task is not None and task.name == name and is_told:
            must(task.state != "succeeded", f"{row.name} runs again after its end was recorded")
        for other in others:
            if self._is_superseded(other):
                continue
            given_ns = self._given_before_ns((other.row.task_id, other.row.attempt, other.worker), execution)
            must(
                max(self._given_up_ns(other.worker), self._changed_ns.get(row.task_id, 0)) >= given_ns,
                f"{row.name} ({name}) begins on {execution.worker} while {other.row.name} runs undisturbed on "
                f"{other.worker}",
            )

    def _is_superseded(self, execution: Execution) -> bool:
        """Told to end, because somebody came back with as new an attempt of the task after one of both was given up."""
        row = execution.row
        own = (row.task_id, row.attempt, execution.worker)
        if own not in self._dropped:
            return False
        was_given_up = self._was_given_up(own)
        return any(
            task_id == row.task_id
            and attempt >= row.attempt
            and worker != execution.worker
            and (was_given_up or self._gone_ns.get(worker, self._kernel.now_ns) <= self._given_ns(execution))
            for task_id, attempt, worker in self._dispatched_ns
        )

    def _was_given_up(self, attempt: tuple[TaskId, int, str]) -> bool:
        """Whether the worker of an attempt was given up since it was given to it the first time."""
        given = self._dispatched_ns.get(attempt)
        return given is not None and self._gone_ns.get(attempt[2], -1) >= given[0]

    def _given_ns(self, execution: Execution) -> Instant:
        """When an attempt was given to its worker the last time, or found there."""
        row = execution.row
        return self._dispatched_ns.get((row.task_id, row.attempt, execution.worker), [0])[-1]

    def _given_before_ns(self, other: tuple[TaskId, int, str], execution: Execution) -> Instant:
        """When another attempt was given to its worker the last time before this one was; or else, the first time.

        A worker that was given up may come back with it: that it is found there is no gift.
        """
        given, before_ns = self._gifts_ns.get(other, [0]), self._given_ns(execution)
        return max((at_ns for at_ns in given if at_ns <= before_ns), default=given[0])

    def _given_up_ns(self, worker: str) -> Instant:
        """When the daemon gave up the present start of a worker the last time."""
        return self._given_up.get((worker, self.incarnations[worker]), -1)

    def ended(self, execution: Execution) -> None:
        """Processes of an attempt are gone."""
        self._kernel.note(f"{execution.worker} ends {execution.row.name} ({execution.script.name})")
        self._machines[execution.worker].remove(execution)
        if execution.ending is not None:
            row = execution.row
            self._over[row.task_id, row.attempt, execution.worker] = execution.ending
        alive = self._alive[execution.script.name]
        alive.remove(execution)
        if not alive:
            del self._alive[execution.script.name]

    def check_worker(self, worker: Worker) -> None:
        """What really runs on a machine is within what it has."""
        worker.state.check()
        cpus = sum(e.row.need.cpus for e in worker.runner.alive if e.row.reserved)
        must(cpus <= worker.state.ledger.cpus, f"{worker.name} runs {cpus} of {worker.state.ledger.cpus}")

    def on_acked(self, worker: Worker, ends: list[m.AttemptFinished], sent_ns: Instant) -> None:
        """A worker may forget these ends, first sent then: they are on disk, or of no interest any more."""
        for end in ends:
            task = self.recording.tasks.get(end.task_id)
            current = self._current.get(end.task_id)
            if task is None or task.state or task.attempt >= end.attempt or current is None:
                continue
            dispatched_ns = self._dispatched_ns[end.task_id, current[0], current[1]][-1]
            if dispatched_ns > sent_ns:
                continue  # of another task that had this id, and that nobody was told of
            if max(self._given_up_ns(worker.name), self._gone_ns.get(worker.name, 0)) >= dispatched_ns:
                continue  # it waits in the queue again, for its next attempt
            must(
                current != (end.attempt, worker.name),
                f"the end of {end.task_id}.{end.attempt} was acknowledged too early",
            )

    # -------------------------------------------------------------------------------------------- what clients are told

    def on_submitted(self, task_id: TaskId, name: str) -> None:
        task = self.recording.tasks.get(task_id)
        must(task is not None, f"task {task_id} ({name}) was acknowledged and is not on disk")
        assert task is not None
        must(task.name == name, f"task {task_id} was acknowledged as {name} and is {task.name}")
        self.acknowledged[task_id] = name

    def on_told(self, done: m.TaskDone) -> None:
        task = self.recording.tasks.get(done.task_id)
        must(task is not None and task.state == done.state, f"a client was told {done}, on disk is {task}")
        assert task is not None
        told = (done.state, done.result)
        if done.result is not None:
            must(done.result == task.result, f"a client was told {done}, on disk is {task}")
        elif done.state == "succeeded":
            must(not done.kept, f"a client was told {done} without its result")
        before = self._told.setdefault(done.task_id, told)
        must(before[0] == told[0], f"a client was told {before} and then {told} of task {done.task_id}")

    # ------------------------------------------------------------------------------------------------------- at the end

    def at_rest(self) -> None:
        """All has ended that was acknowledged or recorded."""
        must(not self.recording.unfinished, f"tasks {sorted(self.recording.unfinished)} have not ended")
        for task_id in self.acknowledged:
            must(task_id in self.recording.tasks, f"task {task_id} was acknowledged and is lost")
        must(not self._alive, f"{sorted(self._alive)} still run")
