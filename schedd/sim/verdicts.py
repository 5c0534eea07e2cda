"""What must be true of quarantined workers and held kinds, as the facts tell of them."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct, field

from schedd.core import effects as fx
from schedd.core.engine import Engine
from schedd.core.guard import EXCUSED_MAX
from schedd.core.model import Cause, TaskId
from schedd.sim.violation import must

#: Causes of which a worker in quarantine is to blame, and not the task.
EXCUSED = frozenset({Cause.ERROR, Cause.OOM_HOST, Cause.OOM_GPU})

#: (job, kind)
Group = tuple[str, str]


class Verdicts(Struct):
    """The verdicts that are in force, by the facts so far; and which tasks they are about."""

    quarantines: dict[str, fx.WorkerQuarantined] = field(default_factory=dict)
    holds: dict[Group, fx.KindHeld] = field(default_factory=dict)
    groups: dict[TaskId, Group] = field(default_factory=dict)
    #: Let go by their owners although their kinds are held.
    exempt: set[TaskId] = field(default_factory=set)

    def add(self, fact: fx.Fact) -> None:
        """Take in a fact."""
        match fact:
            case fx.TasksAdmitted():
                for entry, task_id in zip(fact.tasks, fact.ids, strict=True):
                    spec = fact.specs[entry.spec]
                    self.groups[task_id] = (spec.job, spec.kind)
            case fx.WorkerQuarantined():
                self.quarantines[fact.worker_id] = fact
            case fx.WorkerCleared():
                self.quarantines.pop(fact.worker_id, None)
            case fx.KindHeld():
                self.holds[fact.job, fact.kind] = fact
            case fx.KindReleased():
                del self.holds[fact.job, fact.kind]
                self.exempt = {i for i in self.exempt if self.groups[i] != (fact.job, fact.kind)}
            case fx.TaskReleased() if fact.exempt_ns:
                self.exempt.add(fact.task_id)

    def copy(self) -> Verdicts:
        return Verdicts(dict(self.quarantines), dict(self.holds), dict(self.groups), set(self.exempt))

    def compare(self, engine: Engine) -> None:
        """An engine has these verdicts in force, and no others."""
        health = engine._t.health
        quarantines = {q.worker_id: (q.repeats, q.reason) for q in health.quarantines.values()}
        on_disk = {str(fact.worker_id): (fact.repeats, fact.reason) for fact in self.quarantines.values()}
        must(quarantines == on_disk, f"in quarantine are {quarantines}, on disk {on_disk}")
        holds = {key: (hold.repeats, hold.reason) for key, hold in health.holds.items()}
        held = {key: (fact.repeats, fact.reason) for key, fact in self.holds.items()}
        must(holds == held, f"held are {holds}, on disk {held}")

    def may_be_held(self, task_id: TaskId, reason: str, engine: Engine) -> bool:
        """Whether a task may be kept back for this reason: its kind is held, or is just being let go."""
        hold = self.holds.get(self.groups[task_id])
        return (hold is not None and hold.reason == reason) or any(
            task_id in ending.todo for ending in engine._t.health.ending.values()
        )


class VerdictOracle:
    """Sees to it that the verdicts are kept to: what is dispatched in spite of one is a probe, one at a time."""

    def __init__(self) -> None:
        self._now = Verdicts()
        #: What each worker in quarantine was given to try.
        self._probes: dict[str, tuple[TaskId, int]] = {}
        #: Which task of a held kind was let go to try.
        self._tried: dict[Group, TaskId] = {}
        self._cancelled: set[TaskId] = set()
        #: How often each task was excused.
        self._excuses: dict[TaskId, int] = {}
        self.quarantines = 0
        self.holds = 0

    def restarted(self, on_disk: Verdicts) -> None:
        """The daemon knows what is on disk, and no probe any more."""
        self._now = on_disk.copy()
        self._probes.clear()
        self._tried.clear()

    def on_turn(self, facts: Iterable[fx.Fact]) -> None:
        """Take in the facts of a turn."""
        facts = list(facts)
        entered = {fact.worker_id for fact in facts if isinstance(fact, fx.WorkerEntered)}
        for fact in facts:
            self._now.add(fact)
            match fact:
                case fx.AttemptDispatched():
                    if fact.worker_id not in entered:  # else it may have brought this
                        self._on_dispatched(fact)
                case fx.AttemptEnded():
                    self._on_ended(fact)
                case fx.CancelAsked():
                    self._cancelled.add(fact.task_id)
                case fx.TaskHeld() | fx.TaskFinished():
                    self._tried = {key: i for key, i in self._tried.items() if i != fact.task_id}
                case fx.KindHeld():
                    self.holds += 1
                    self._tried.pop((fact.job, fact.kind), None)
                case fx.WorkerEntered():
                    self._probes.pop(fact.worker_id, None)
                case fx.WorkerQuarantined():
                    self.quarantines += 1
                    self._probes.pop(fact.worker_id, None)
                case fx.WorkerGone() | fx.WorkerStartedDraining() | fx.WorkerCleared():
                    self._probes.pop(fact.worker_id, None)

    def _on_dispatched(self, fact: fx.AttemptDispatched) -> None:
        if fact.worker_id in self._now.quarantines:
            probe = self._probes.get(fact.worker_id)
            must(probe is None, f"{fact}: is in quarantine, and being tried with {probe}")
            self._probes[fact.worker_id] = (fact.task_id, fact.attempt)
        group = self._now.groups[fact.task_id]
        if group in self._now.holds and fact.task_id not in self._now.exempt:
            tried = self._tried.setdefault(group, fact.task_id)
            must(tried == fact.task_id, f"{fact}: kind {group} is held, and tried with task {tried}")

    def _on_ended(self, fact: fx.AttemptEnded) -> None:
        record = fact.record
        in_quarantine = record.worker_id in self._now.quarantines
        must(in_quarantine or not record.excused, f"{fact}: is excused, and its worker is not in quarantine")
        if in_quarantine and record.cause in EXCUSED and fact.task_id not in self._cancelled:
            excuses = self._excuses.get(fact.task_id, 0)
            must(record.excused or excuses >= EXCUSED_MAX, f"{fact}: counts, though its worker is in quarantine")
            self._excuses[fact.task_id] = excuses + 1
        if self._probes.get(record.worker_id) == (fact.task_id, record.attempt):
            del self._probes[record.worker_id]
