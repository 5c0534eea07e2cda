"""What is done about workers and kinds that fail: quarantine, hold, and the probes by which they come back.

A worker in quarantine keeps what it runs, gives its backlog back, and gets nothing new. After a pause it gets one task
of a kind that succeeds elsewhere: if that succeeds it is back, if not the pause doubles. What fails there meanwhile is
not held against its task, which is queued again.

A hopeless kind is held within its job: what is queued of it is held, and what would be queued later. After a pause one
task of it is let go, to a worker where it has not failed if there is one. Any success of the kind releases it, and so
does its owner with `release`.

Where all failures of a kind came from one worker while the kind runs elsewhere, it is the worker that goes: a wrong
verdict costs less there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice

from msgspec import structs

from schedd.core import effects as fx
from schedd.core.health import ABSENT_MAX
from schedd.core.model import (
    SECOND,
    AttemptRecord,
    Cause,
    Held,
    Instant,
    Queued,
    Revoking,
    Running,
    Task,
    TaskId,
    TaskSpec,
    WorkerId,
    WorkerInfo,
    WorkerStatus,
)
from schedd.core.settings import FailureRules
from schedd.core.tables import Tables
from schedd.core.verdicts import Comparison, Group, KindHold, Quarantine

#: Ends that speak against a worker; and those of them that speak against a kind: a timeout or a lack of memory may be
#: right for one configuration and not for the next.
FAILURES = frozenset({Cause.ERROR, Cause.TIMEOUT, Cause.OOM_HOST, Cause.OOM_GPU, Cause.REJECTED})
ERRORS = frozenset({Cause.ERROR, Cause.REJECTED})
#: Where there is nothing to probe with, or no place for it, it is looked for again after this time.
PROBE_RETRY_NS = 5 * SECOND
#: Tasks that are looked at for a probe: each time, in each turn in between, and of each class.
PROBE_LOOKED_MAX = 1000
PROBE_LOOKED_BY_THE_WAY_MAX = 64
PROBE_PER_CLASS_MAX = 16
#: Workers, and attempts on each, that are looked at for what has outlived a failure.
OTHERS_LOOKED_MAX = 64
RUNNING_LOOKED_MAX = 64
#: A task is excused so often for workers in quarantine.
EXCUSED_MAX = 10
#: Of an error and of the name of a kind, so many characters go into a reason.
TOLD_MAX = 120
#: An enumeration looks its members up by name at each use.
_OK = Cause.OK


class Guard:
    """Draws the verdicts, puts them into force, and ends them."""

    def __init__(self, tables: Tables) -> None:
        self._t = tables
        self._health = tables.health
        #: When the last hold of a kind began.
        self._held_ns: Instant = 0

    # --------------------------------------------------------------------------------------------- attempts that end

    def on_ended(self, task: Task, worker: WorkerInfo, record: AttemptRecord) -> AttemptRecord:
        """Count an attempt that has ended on its worker and is off it; returns its record, excused or as it was.

        O(1), and O(kinds of the worker) where it failed.
        """
        ok = record.cause is _OK
        if ok and not worker.quarantine and not self._health.holds:
            self._health.note_success(worker.worker_id, task, self._t.now)
            return record
        if not ok and (record.cause not in FAILURES or task.cancelling):
            return record
        hold = self._health.hold_of(task)
        if ok and hold is not None:
            self.release_kind(hold, f"task {task.id} of it succeeded")
            hold = None
        if worker.quarantine:
            return self._on_quarantined(task, worker, record)
        self._count(task, worker, record, is_held=hold is not None)
        if not ok and self._judge(task, worker, record, hold):
            return _excused(task, record)
        return record

    def _count(self, task: Task, worker: WorkerInfo, record: AttemptRecord, *, is_held: bool) -> None:
        rules, ok, now = self._health.rules, record.cause is _OK, self._t.now
        if rules.quarantine:
            runtime_ns = record.finished_at_ns - record.started_at_ns if record.started_at_ns else 0
            self._health.note_attempt(worker.worker_id, task, ok, runtime_ns, now)
        if rules.hopeless_kind and not is_held and (ok or record.cause in ERRORS):
            self._health.note_outcome(task, worker.worker_id, ok, now)

    def _judge(self, task: Task, worker: WorkerInfo, record: AttemptRecord, hold: KindHold | None) -> bool:
        """Draw verdicts from a failure; True where its worker is in quarantine now."""
        if self._judge_worker(worker):
            return True
        if hold is not None:
            self._on_held_failed(hold, task, worker)
            return False
        group = self._health.hopeless(task) if record.cause in ERRORS else None
        if group is None:
            return False
        if len(set(group.run.values())) == 1 and self._is_the_worker(worker):
            return True
        self._hold(task, group, record.message)
        return False

    def _judge_worker(self, worker: WorkerInfo) -> bool:
        health, worker_id = self._health, worker.worker_id
        if not health.mostly_fails(worker_id):
            return False
        found = health.compare(worker_id)
        if not health.is_black_hole(found, len(self._t.resources)):
            found = health.compare(worker_id, self._outlived(worker))
            if not health.is_black_hole(found, len(self._t.resources)):
                return False
        return self._quarantine(worker, found)

    def _is_the_worker(self, worker: WorkerInfo) -> bool:
        """Quarantine a worker from which all failures of a kind came, if what runs elsewhere speaks against it."""
        if not self._health.mostly_fails(worker.worker_id):
            return False
        found = self._health.compare(worker.worker_id, self._outlived(worker))
        return found.is_far_above and found.evidence > 0 and self._quarantine(worker, found)

    def _outlived(self, worker: WorkerInfo) -> Callable[[str, int], int]:
        others = [w for w in islice(self._t.resources, OTHERS_LOOKED_MAX) if w is not worker and not w.quarantine]
        now = self._t.now

        def count(kind: str, than_ns: int) -> int:
            return sum(
                1
                for other in others
                if other.status != WorkerStatus.UNREACHABLE
                for task in islice(other.running.values(), RUNNING_LOOKED_MAX)
                if task.kind == kind and isinstance(task.state, Running) and now - task.state.started_at_ns > than_ns
            )

        return count

    # ------------------------------------------------------------------------------------------------------- workers

    def _quarantine(self, worker: WorkerInfo, found: Comparison) -> bool:
        """Put a worker into quarantine; False where it is the only one that takes work."""
        t, health, worker_id = self._t, self._health, worker.worker_id
        if not any(other.accepts_work for other in t.resources if other is not worker):
            return False
        repeats = health.repeats(worker_id, t.now) + 1
        probe_at = t.now + health.rules.pause_ns(repeats)
        kinds = health.kinds_of(worker_id)
        health.forget_worker(worker_id)
        health.quarantines[worker_id] = Quarantine(worker_id, t.now, probe_at, repeats, str(found), kinds=kinds)
        worker.quarantine = str(found)
        if worker.status != WorkerStatus.UNREACHABLE:
            t.resources.set_status(worker, worker.status_here)
        t.take_back(worker)
        self._tell_quarantine(health.quarantines[worker_id])
        self._forget_absent()
        for hold in list(health.holds.values()):
            if hold.suspects == {worker_id}:
                self.release_kind(hold, f"it failed on worker {worker_id} only, which is in quarantine now")
        t.placement_wanted = True
        return True

    def _tell_quarantine(self, q: Quarantine) -> None:
        t = self._t
        t.facts.append(fx.WorkerQuarantined(q.worker_id, t.now, q.probe_at_ns, q.repeats, q.reason))
        t.deadlines.set(("probe", q.worker_id), q.probe_at_ns)

    def _forget_absent(self) -> None:
        """Keep the number of quarantines of workers that are gone within its bound."""
        quarantines, present = self._health.quarantines, self._t.resources.workers
        excess = len(quarantines) - len(present) - ABSENT_MAX
        for worker_id in [w for w in quarantines if w not in present][: max(0, excess)]:
            self.clear(worker_id, "forgotten: it has not come back")

    def _on_quarantined(self, task: Task, worker: WorkerInfo, record: AttemptRecord) -> AttemptRecord:
        q = self._health.quarantines[worker.worker_id]
        ok = record.cause is _OK
        if q.probe == (task.id, record.attempt):
            q.probe = None
            if ok:
                self.clear(worker.worker_id, f"task {task.id} succeeded there as a probe")
            else:
                q.repeats += 1
                q.probe_at_ns = self._t.now + self._health.rules.pause_ns(q.repeats)
                self._tell_quarantine(q)
        return record if ok else _excused(task, record)

    def clear(self, worker_id: WorkerId, reason: str) -> bool:
        """End a quarantine; False where there is none."""
        t = self._t
        if self._health.end_quarantine(worker_id, t.now) is None:
            return False
        t.deadlines.cancel(("probe", worker_id))
        worker = t.resources.workers.get(worker_id)
        if worker is not None:
            worker.quarantine = ""
            if worker.status == WorkerStatus.QUARANTINED:
                t.resources.set_status(worker, worker.status_here)
            t.placement_wanted = True
        t.facts.append(fx.WorkerCleared(worker_id, t.now, reason))
        return True

    def pardon(self, worker_id: WorkerId) -> bool:
        """End a quarantine because an operator says so, and forget that it ever was."""
        cleared = self.clear(worker_id, "released by an operator")
        if cleared:
            self._health.forgive(worker_id)
        return cleared

    def on_joined(self, worker: WorkerInfo) -> None:
        """A worker of this name has come, or come back."""
        q = self._health.quarantines.get(worker.worker_id)
        if q is not None:
            worker.quarantine = q.reason
            self._t.deadlines.set(("probe", q.worker_id), max(self._t.now, q.probe_at_ns))

    def on_gone(self) -> None:
        """A worker is gone: if nobody is left but those in quarantine, they are probed at once."""
        t = self._t
        if self._health.quarantines and not any(worker.accepts_work for worker in t.resources):
            for worker_id in self._health.quarantines:
                if worker_id in t.resources.workers:
                    t.deadlines.set(("probe", worker_id), t.now)

    def on_probe_due(self, worker_id: WorkerId) -> None:
        """The pause of a worker in quarantine is over: give it one task, now or as soon as there is one."""
        t = self._t
        self._health.due.pop(worker_id, None)
        if worker_id in self._health.quarantines and worker_id in t.resources.workers:  # else see `on_joined`
            t.deadlines.set(("probe", worker_id), t.now + PROBE_RETRY_NS)
            self._probe(worker_id, PROBE_LOOKED_MAX)

    def try_due(self) -> None:
        """Before others are placed: one of the workers that wait for a probe may have a task. O(1)."""
        worker_id = next(iter(self._health.due))
        del self._health.due[worker_id]
        self._probe(worker_id, PROBE_LOOKED_BY_THE_WAY_MAX)

    def _probe(self, worker_id: WorkerId, looked_max: int) -> None:
        t = self._t
        q, worker = self._health.quarantines[worker_id], t.resources.workers.get(worker_id)
        if worker is None or worker.status != WorkerStatus.QUARANTINED or self._is_probed(q):
            return
        found = None if not t.may_place or worker.task_queue else self._probe_for(worker, q, looked_max)
        if found is None:
            self._health.due[worker_id] = None
            return
        task, variant = found
        t.withdraw(task)
        t.dispatch(task, worker, variant)
        q.probe = (task.id, task.attempt)

    def _is_probed(self, q: Quarantine) -> bool:
        task = self._t.tasks.get(q.probe[0]) if q.probe is not None else None
        return task is not None and q.probe == (task.id, task.attempt) and self._t.worker_of(task) is not None

    def _probe_for(self, worker: WorkerInfo, q: Quarantine, looked_max: int) -> tuple[Task, int] | None:
        """A queued task that could start there now, and by which variant: of a kind that failed there if possible."""
        t = self._t
        alone = not any(other.accepts_work for other in t.resources)
        best: tuple[tuple[bool, float, int], Task, int] | None = None
        for task in islice(t.queue.sample(PROBE_PER_CLASS_MAX), looked_max):
            if not alone and not self._health.succeeds_elsewhere(task.kind, worker.worker_id):
                continue
            if self._health.is_kept_back(task) is not None:
                continue
            variant = _fits_now(task, worker)
            key = (task.kind not in q.kinds, *t.queue.rank(task))
            if variant is not None and (best is None or key < best[0]):
                best = (key, task, variant)
        return (best[1], best[2]) if best is not None else None

    # --------------------------------------------------------------------------------------------------------- kinds

    def _hold(self, task: Task, group: Group, error: str) -> None:
        """Hold what is queued of a kind within its job: a portion now, the others in turns to come."""
        t, health = self._t, self._health
        suspects = set(group.run.values())
        reason = _hopeless(task.kind, len(group.run), len(suspects), error)
        health.forget_group(task.job, task.kind)
        # One that is made in the turn in which another was ended is not taken for that one.
        self._held_ns = max(t.now, self._held_ns + 1)
        hold = health.add_hold(task.job, task.kind, self._held_ns, t.now + health.rules.pause_ns(1), 1, reason)
        hold.suspects = suspects
        hold.todo = t.tasks.jobs[task.job].members.look() if task.job else t.tasks.ids()
        self._keep_back_some(hold)
        for worker in t.resources:
            hold.coming += t.take_back(worker, lambda other: (other.job, other.kind) == (hold.job, hold.kind))
        if self._is_empty(hold):
            del health.holds[hold.job, hold.kind]
            return  # nothing would be spared by it
        self._tell_hold(hold)

    def _is_empty(self, hold: KindHold) -> bool:
        """Whether a hold keeps back nothing, and nothing was asked back for it that may still come."""
        if hold.coming:
            rows = map(self._t.tasks.get, hold.coming)
            hold.coming = [row.id for row in rows if row is not None and type(row.state) is Revoking]
        return not hold.members and not hold.todo and not hold.coming

    def _keep_back_some(self, hold: KindHold) -> None:
        """Hold the queued ones of a portion; one of a later portion that is placed meanwhile is held by that."""
        t = self._t
        for task_id in self._portion(hold):
            task = t.tasks.get(TaskId(task_id))
            if task is not None and task.place and t.health.is_kept_back(task) is hold:
                t.withdraw(task)
                t.keep_back(task, hold)

    def _let_go_some(self, hold: KindHold) -> None:
        """Queue a portion of what a hold kept back that has ended."""
        t = self._t
        for task_id in self._portion(hold):
            task = t.tasks.get(TaskId(task_id))
            if task is not None and isinstance(task.state, Held) and task.state.reason == hold.reason:
                t.settle(task)
        if not hold.todo:
            del self._health.ending[hold.number]

    def _portion(self, hold: KindHold) -> Sequence[int]:
        """The next ids that a hold is to look at; what is left is looked at in another turn."""
        first, hold.looked = hold.looked, hold.looked + self._health.rules.portion
        ids = hold.todo[first : hold.looked]
        if hold.looked < len(hold.todo):
            self._t.deadlines.set(("portion", hold.number), self._t.now)
        else:
            hold.todo, hold.looked = (), 0
        return ids

    def on_portion_due(self, number: int) -> None:
        """Go on with a hold, or with the end of one, that is too large for one turn."""
        ending = self._health.ending.get(number)
        if ending is not None:
            self._let_go_some(ending)
            return
        hold = self._numbered(number)
        if hold is not None:
            self._keep_back_some(hold)
            if self._is_empty(hold):
                self.release_kind(hold, "nothing of it waits")

    def _numbered(self, number: int) -> KindHold | None:
        return next((hold for hold in self._health.holds.values() if hold.number == number), None)

    def _tell_hold(self, hold: KindHold) -> None:
        t = self._t
        t.facts.append(
            fx.KindHeld(hold.job, hold.kind, t.now, hold.probe_at_ns, hold.repeats, hold.reason, hold.since_ns)
        )
        t.deadlines.set(("trial", hold.number), hold.probe_at_ns)

    def _on_held_failed(self, hold: KindHold, task: Task, worker: WorkerInfo) -> None:
        hold.suspects.add(worker.worker_id)
        if hold.probe != task.id:
            return
        hold.probe = TaskId(0)
        hold.exempt.discard(task.id)
        hold.repeats += 1
        hold.probe_at_ns = self._t.now + self._health.rules.pause_ns(hold.repeats)
        self._tell_hold(hold)

    def release_kind(self, hold: KindHold, reason: str) -> None:
        """End a hold: all that it keeps back is queued again, a portion now, the others in turns to come."""
        t = self._t
        del self._health.holds[hold.job, hold.kind]
        self._health.forget_group(hold.job, hold.kind)
        t.deadlines.cancel(("trial", hold.number))
        t.facts.append(fx.KindReleased(hold.job, hold.kind, t.now, reason))
        hold.todo, hold.looked = list(hold.members), 0
        hold.members.clear()
        self._health.ending[hold.number] = hold
        self._let_go_some(hold)

    def exempt(self, task: Task) -> Instant:
        """Let a task go although its kind is held; returns since when it is, 0 where it is not."""
        hold = self._health.hold_of(task)
        if hold is None:
            return 0
        hold.members.pop(task.id, None)
        hold.exempt.add(task.id)
        return hold.since_ns

    def exempt_again(self, task: Task, exempt_ns: Instant | bool) -> None:
        """After a restart: let a task go that was let go in spite of the hold that began then, if that still stands.

        True: whichever stands.
        """
        hold = self._health.hold_of(task)
        if hold is not None and (exempt_ns is True or hold.since_ns == exempt_ns):
            hold.exempt.add(task.id)

    def sweep(self) -> None:
        """End the holds that keep back nothing any more, after what a client asked for."""
        for hold in [hold for hold in self._health.holds.values() if self._is_empty(hold)]:
            self.release_kind(hold, "its owner released or cancelled all of it")

    def on_trial_due(self, number: int) -> None:
        """Let one task of a kind that is held go, or look again a little later."""
        t = self._t
        hold = self._numbered(number)
        if hold is None:
            return
        if self._is_empty(hold):
            self.release_kind(hold, "nothing of it waits")
            return
        t.deadlines.set(("trial", number), t.now + PROBE_RETRY_NS)
        if not t.may_place or not hold.members or self._is_tried(hold):
            return
        # The newest: its owner may have mended what was wrong.
        self._try(hold, t.tasks.rows[next(reversed(hold.members))])

    def _is_tried(self, hold: KindHold) -> bool:
        task = self._t.tasks.get(hold.probe)
        if task is None or task.id not in hold.exempt:
            return False
        return not task.state.is_final and not isinstance(task.state, Held)

    def _try(self, hold: KindHold, task: Task) -> None:
        t = self._t
        better = [w for w in t.resources if w.worker_id not in hold.suspects and t.placer.could_run(task, w)]
        places = ((w, _fits_now(task, w)) for w in better if not w.task_queue)
        worker, variant = next(((w, v) for w, v in places if v is not None), (None, 0))
        if better and worker is None:
            return  # they are busy, and the others have failed
        self.exempt(task)
        hold.probe = task.id
        if worker is None or variant is None:
            t.settle(task)
        else:
            t.tasks.set_state(task, Queued(t.now))
            t.dispatch(task, worker, variant)

    def warnings(self, specs: list[TaskSpec]) -> list[str]:
        """Say which of these will be held, and why."""
        if not self._health.holds:
            return []
        found = (self._health.holds.get((spec.job, spec.kind)) for spec in specs)
        return list(dict.fromkeys(f"kind {h.kind!r} is held: {h.reason}" for h in found if h is not None))

    # ------------------------------------------------------------------------------------------------------- restart

    def restore(self, facts: Iterable[fx.Fact]) -> None:
        """Put the verdicts that stood into force again, before the tasks are entered; those switched off are ended."""
        rules, now = self._health.rules, self._t.now
        for fact in facts:
            match fact:
                case fx.WorkerQuarantined() if rules.quarantine:
                    self._health.quarantines[fact.worker_id] = Quarantine(
                        fact.worker_id, fact.at_ns, self._soon(fact.probe_at_ns), fact.repeats, fact.reason
                    )
                case fx.WorkerQuarantined():
                    self._t.facts.append(fx.WorkerCleared(fact.worker_id, now, "[failures] quarantine is off"))
                case fx.KindHeld() if rules.hopeless_kind:
                    probe_at = self._soon(fact.probe_at_ns)
                    since = fact.since_ns or fact.at_ns
                    hold = self._health.add_hold(fact.job, fact.kind, since, probe_at, fact.repeats, fact.reason)
                    self._t.deadlines.set(("trial", hold.number), hold.probe_at_ns)
                case fx.KindHeld():
                    self._t.facts.append(fx.KindReleased(fact.job, fact.kind, now, "[failures] hopeless_kind is off"))

    def obey(self, rules: FailureRules) -> None:
        """Judge by other rules from now on; verdicts of a kind that was switched off are ended."""
        self._health.obey(rules)
        if not rules.quarantine:
            for worker_id in list(self._health.quarantines):
                self.clear(worker_id, "[failures] quarantine is off")
        if not rules.hopeless_kind:
            for hold in list(self._health.holds.values()):
                self.release_kind(hold, "[failures] hopeless_kind is off")

    def _soon(self, probe_at_ns: Instant) -> Instant:
        """An instant of an earlier start; a clock that was set back since makes no pause longer than the longest."""
        return min(probe_at_ns, self._t.now + self._health.rules.probe_after_max_ns)

    def check(self) -> None:
        """Compare the verdicts with the rows that they are about. Raises AssertionError."""
        t, health = self._t, self._health
        health.check()
        for worker in t.resources:
            q = health.quarantines.get(worker.worker_id)
            assert worker.quarantine == (q.reason if q is not None else ""), worker.worker_id
            assert (worker.status == WorkerStatus.QUARANTINED) <= (q is not None), worker.worker_id
            assert not (q is not None and worker.accepts_work), worker.worker_id
            assert q is None or ("probe", worker.worker_id) in t.deadlines, worker.worker_id
        kept_back: set[int] = set()
        for hold in health.holds.values():
            assert ("trial", hold.number) in t.deadlines, hold.kind
            for task_id in hold.members:
                task = t.tasks.rows[task_id]
                assert (task.job, task.kind) == (hold.job, hold.kind), task.id
                assert isinstance(task.state, Held), task.id
                assert task.state.reason == hold.reason, task.id
            kept_back |= hold.members.keys()
        for hold in health.ending.values():
            assert ("portion", hold.number) in t.deadlines, hold.kind
            kept_back |= set(hold.todo[hold.looked :])
        for task in t.tasks.rows.values():
            if isinstance(task.state, Held) and task.state.reason:
                assert task.id in kept_back, task.id
            elif isinstance(task.state, Queued) and (found := health.is_kept_back(task)) is not None:
                assert task.id in found.todo[found.looked :], task.id


def _excused(task: Task, record: AttemptRecord) -> AttemptRecord:
    """The record of a failure that its worker is to blame for; a timeout is the task's own.

    So is what goes on failing: where no other worker can run it, probe after probe, it must come to an end.
    """
    if record.cause is Cause.TIMEOUT or sum(before.excused for before in task.attempts) >= EXCUSED_MAX:
        return record
    return structs.replace(record, excused=True)


def _fits_now(task: Task, worker: WorkerInfo) -> int | None:
    """The first variant of a task that could be reserved on a worker now, whether it takes work or not."""
    request, ledger = task.request, worker.ledger
    if request is None or ledger is None:
        return None
    fitting = (i for i, need in enumerate(request.needs) if not ledger.blocker(need) and ledger.can_fit(need))
    return next(fitting, None)


def _hopeless(kind: str, tasks: int, workers: int, error: str) -> str:
    where = f"on {workers} workers" if workers > 1 else "on one worker"
    told = error.strip().partition("\n")[0][:TOLD_MAX]
    return f"the last {tasks} tasks of kind {kind[:TOLD_MAX]} failed, {where}{': ' if told else ''}{told}"
