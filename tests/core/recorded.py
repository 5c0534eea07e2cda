"""What a journal would have of an engine's turns, in memory, and an engine that starts from it."""

from __future__ import annotations

from schedd.core import effects as fx
from schedd.core import restore
from schedd.core.engine import Engine
from schedd.core.model import TaskId, WorkerId
from schedd.core.submits import admitted
from schedd.journal.records import FinishedTask, finished_records, finished_row, verdict_name

CHANGES = (fx.TaskHeld, fx.TaskReleased, fx.TaskChanged, fx.PreemptAsked, fx.AttemptEnded, fx.CancelAsked)


class Recorded:
    """Facts of turns, as far as a restart looks at them."""

    def __init__(self) -> None:
        self.batches: list[fx.TasksAdmitted] = []
        self.ended: set[int] = set()
        self.changes: list[fx.Fact] = []
        self.workers: dict[WorkerId, str] = {}
        self.draining: set[WorkerId] = set()
        self.leaving: set[WorkerId] = set()
        self.finished: list[FinishedTask] = []
        self.verdicts: dict[str, fx.Fact] = {}
        self.epoch = 0

    def record(self, effects: fx.Effects) -> None:
        self.add(effects.facts, finished_records(effects.facts, effects.finished))

    def add(self, facts: list[fx.Fact], finished: list[FinishedTask]) -> None:
        self.finished += finished
        for fact in facts:
            match fact:
                case fx.TasksAdmitted():
                    self.batches.append(fact)
                case fx.TaskFinished():
                    self.ended.add(fact.task_id)
                case fx.WorkerEntered():
                    if self.workers.get(fact.worker_id) != fact.incarnation:
                        (self.draining.add if fact.draining else self.draining.discard)(fact.worker_id)
                        (self.leaving.add if fact.leaving else self.leaving.discard)(fact.worker_id)
                    self.workers[fact.worker_id] = fact.incarnation
                case fx.WorkerGone():
                    self.workers.pop(fact.worker_id, None)
                    self.draining.discard(fact.worker_id)
                case fx.WorkerStartedDraining():
                    self.draining.add(fact.worker_id)
                    if fact.leave:
                        self.leaving.add(fact.worker_id)
                case fx.WorkerStoppedDraining():
                    self.draining.discard(fact.worker_id)
                    self.leaving.discard(fact.worker_id)
                case fx.WorkerQuarantined() | fx.KindHeld():
                    self.verdicts[verdict_name(fact)] = fact
                case fx.WorkerCleared() | fx.KindReleased():
                    del self.verdicts[verdict_name(fact)]
            if isinstance(fact, CHANGES):
                self.changes.append(fact)

    @property
    def next_id(self) -> int:
        return max((batch.ids[-1] + 1 for batch in self.batches), default=TaskId(1))

    def restore(self, engine: Engine, now: int, grace_ns: int) -> None:
        """Fill a new engine. Batches and changes of what has ended are gone from a journal."""
        self.epoch += 1
        recorded = restore.Recorded(
            batches=[batch for batch in self.batches if not self.ended.issuperset(batch.ids)],
            ended=self.ended,
            changes=[fact for fact in self.changes if getattr(fact, "task_id", 0) not in self.ended],
            finished=[finished_row(record) for record in self.finished],
            workers=list(self.workers),
            next_id=self.next_id,
            draining={name: (run, name in self.leaving) for name, run in self.workers.items() if name in self.draining},
            verdicts=list(self.verdicts.values()),
            submits=[admitted(batch) for batch in self.batches if batch.client],
            epoch=self.epoch,
        )
        engine.restore(recorded, now, grace_ns)
        engine.check()
