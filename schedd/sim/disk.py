"""A disk that keeps only what was synced, and the journal on it.

The rows are those of `journal.records`, written in one transaction for all turns that wait, as `journal.store` does.
A transaction is there when its sync has ended, as a whole; a daemon that dies before leaves nothing of it, or, where it
dies between the sync and the word of it, all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from msgspec import Struct, structs

from schedd.core import effects as fx
from schedd.core.engine import Engine
from schedd.core.model import Instant, Task, TaskId
from schedd.core.restore import Recorded
from schedd.core.submits import Admitted
from schedd.core.tasks import RESULT_DROPPED
from schedd.journal.records import (
    AnyFact,
    FinishedTask,
    LiveIndex,
    Rows,
    decode_fact,
    decode_facts,
    decode_finished,
    decode_ids,
    decode_submit,
    draining_of,
    encode_facts,
    encode_finished,
    finished_row,
)
from schedd.sim.kernel import Kernel, Process
from schedd.wire import messages as m

T = TypeVar("T")

#: Seconds between two tries while the disk refuses, as in `journal.store`.
RETRY_S = 1.0
DISK_FULL = "database or disk is full"


class Disk:
    """The tables of a journal, as they are after a power cut: see `journal.schema`."""

    def __init__(self) -> None:
        self.batches: dict[int, bytes] = {}
        self.ended: list[tuple[int, bytes]] = []
        self.changes: list[tuple[int, bytes, int]] = []
        self.workers: dict[str, bytes] = {}
        self.verdicts: dict[str, bytes] = {}
        self.submits: list[tuple[int, str, int, bytes]] = []
        #: (at_ns, facts, finished) of each transaction.
        self.history: list[tuple[Instant, bytes, bytes]] = []
        self.next_id = 1
        self.epoch = 0
        self.is_full = False
        self.sync_s = 0.0

    def write(self, rows: Rows, history: tuple[Instant, bytes, bytes], next_id: int) -> None:
        """Let a transaction be there."""
        self.history.append(history)
        self.batches.update(rows.batches)
        self.ended += rows.ended
        if rows.changes_replaced:
            over = set(rows.changes_replaced)
            self.changes = [row for row in self.changes if (row[0], row[2]) not in over]
        self.changes += rows.changes
        self.workers.update(rows.workers)
        answered = rows.answered
        self.submits = [row for row in self.submits if row[2] >= answered.get(row[1], 0)] + rows.submits
        if rows.batches_done:
            done = set(rows.batches_done)
            self.batches = {first: blob for first, blob in self.batches.items() if first not in done}
            self.ended = [row for row in self.ended if row[0] not in done]
        if rows.changes_done:
            done = set(rows.changes_done)
            self.changes = [row for row in self.changes if row[0] not in done]
        for worker_id in rows.workers_gone:
            self.workers.pop(worker_id, None)
        for name in rows.verdicts_over:
            self.verdicts.pop(name, None)
        self.verdicts.update(rows.verdicts)
        self.next_id = max(self.next_id, next_id)

    def load(self, index: LiveIndex, finished_max: int) -> Live:
        """Read what a restart starts from, as `Journal.load` does."""
        live = Live(self.next_id, self.epoch)
        ended_of: dict[int, int] = {}
        for first_id, blob in self.ended:
            ids = decode_ids(blob)
            live.ended.update(ids)
            ended_of[first_id] = ended_of.get(first_id, 0) + len(ids)
        for first_id, blob in sorted(self.batches.items()):
            batch = decode_fact(blob)
            assert isinstance(batch, fx.TasksAdmitted)
            live.batches.append(batch)
            index.load(first_id, len(batch.ids) - ended_of.get(first_id, 0))
        for task_id, blob, kind in self.changes:
            live.changes.append(decode_fact(blob))
            index.load_changed(task_id, kind)
        for _, blob in sorted(self.workers.items()):
            worker = decode_fact(blob)
            assert isinstance(worker, fx.WorkerEntered)
            live.workers.append(worker)
            index.load_worker(worker)
        live.verdicts = [decode_fact(blob) for _, blob in sorted(self.verdicts.items())]
        live.submits = [decode_submit(row[3]) for row in self.submits]
        finished = [record for _, _, blob in self.history for record in decode_finished(blob)]
        live.finished = [structs.replace(r, result=r.result and RESULT_DROPPED) for r in finished[-finished_max:]]
        return live

    def facts(self) -> list[AnyFact]:
        """All facts that are there, in order, but the ends of tasks."""
        return [fact for _, blob, _ in self.history for fact in decode_facts(blob)]

    def finished(self) -> list[FinishedTask]:
        """All tasks that have ended, in order."""
        return [record for _, _, blob in self.history for record in decode_finished(blob)]


class Live:
    """What a restart starts from, see `journal.store.Live`."""

    def __init__(self, next_id: int, epoch: int) -> None:
        self.batches: list[fx.TasksAdmitted] = []
        self.ended: set[int] = set()
        self.changes: list[AnyFact] = []
        self.workers: list[fx.WorkerEntered] = []
        self.finished: list[FinishedTask] = []
        self.next_id = next_id
        self.epoch = epoch
        self.verdicts: list[AnyFact] = []
        self.submits: list[Admitted] = []

    def restore(self, engine: Engine, now: Instant, grace_ns: Instant) -> None:
        """Fill an engine, as the daemon does at its start."""
        recorded = Recorded(
            batches=self.batches,
            ended=self.ended,
            changes=self.changes,
            finished=[finished_row(record) for record in self.finished],
            workers=[worker.worker_id for worker in self.workers],
            next_id=self.next_id,
            draining=draining_of(self.workers),
            verdicts=self.verdicts,
            submits=self.submits,
            epoch=self.epoch,
        )
        engine.restore(recorded, now, grace_ns)


class _Turn(Struct):
    number: int
    at_ns: Instant
    facts: list[fx.Fact]
    finished: list[FinishedTask]


class _Transaction(Struct):
    """What is written in one go. `is_there`: synced, whether or not anybody was told."""

    number: int
    facts: list[fx.Fact]
    finished: list[FinishedTask]
    rows: Rows
    history: tuple[Instant, bytes, bytes]
    next_id: int
    is_there: bool = False


class Journal:
    """The writer of one start of the daemon. `on_disk` hears of each transaction as soon as it is there."""

    durability = "full"

    def __init__(
        self,
        disk: Disk,
        process: Process,
        committed: Callable[[int], None],
        failing: Callable[[str], None],
        on_disk: Callable[[list[fx.Fact], list[FinishedTask]], None],
    ) -> None:
        self._disk = disk
        self._kernel: Kernel = process.kernel
        self._process = process
        self._committed = committed
        self._failing = failing
        self._on_disk = on_disk
        self._index = LiveIndex()
        self._waiting: list[_Turn] = []
        self._writing: _Transaction | None = None
        self._failed = ""

    @property
    def index(self) -> LiveIndex:
        return self._index

    @property
    def is_idle(self) -> bool:
        """All that was handed over is on disk."""
        return not self._waiting and self._writing is None

    def load(self, finished_max: int) -> Live:
        self._disk.epoch += 1
        return self._disk.load(self._index, finished_max)

    def append(
        self, turn: int, facts: list[fx.Fact], finished: list[FinishedTask], now: Instant, can_wait: bool = False
    ) -> None:
        """Take the facts of a turn; `committed` tells when they are there."""
        self._waiting.append(_Turn(turn, now, facts, finished))
        if self._writing is None:
            self._begin()

    def stand_aside(self) -> None:
        """Nobody is in the way: a commit takes virtual time."""

    def close(self) -> bool:
        """Write what is left, unless the disk refuses; the daemon is told nothing more."""
        if self._disk.is_full:
            return False
        if self._writing is not None:
            self._sync(self._writing)
        if self._waiting:
            self._sync(self._gather())
        return True

    def _begin(self) -> None:
        self._writing = transaction = self._gather()
        self._process.call_soon(self._try, transaction)

    def _gather(self) -> _Transaction:
        """Make one transaction of all that waits, as `journal.store` does."""
        turns, self._waiting = self._waiting, []
        facts = [fact for turn in turns for fact in turn.facts]
        finished = [record for turn in turns for record in turn.finished]
        told = [fact for fact in facts if not isinstance(fact, fx.TaskFinished)]
        history = (turns[-1].at_ns, encode_facts(told), encode_finished(finished))
        next_id = max((f.ids[-1] + 1 for f in facts if isinstance(f, fx.TasksAdmitted)), default=0)
        return _Transaction(turns[-1].number, facts, finished, self._index.plan(facts), history, next_id)

    def _try(self, transaction: _Transaction) -> None:
        """Have it synced after a while; a full disk is tried again later."""
        if self._disk.is_full:
            if not self._failed:
                self._failed = DISK_FULL
                self._failing(DISK_FULL)
            self._process.call_later(RETRY_S, self._try, transaction)
            return
        if self._failed:
            self._failed = ""
            self._failing("")
        self._process.call_later(self._disk.sync_s * self._kernel.random.expovariate(1), self._commit, transaction)

    def _commit(self, transaction: _Transaction) -> None:
        self._sync(transaction)
        # From here on it is there, whoever lives to hear of it.
        self._process.call_later(self._disk.sync_s * self._kernel.random.random(), self._tell, transaction)

    def _sync(self, transaction: _Transaction) -> None:
        if not transaction.is_there:
            transaction.is_there = True
            self._disk.write(transaction.rows, transaction.history, transaction.next_id)
            self._on_disk(transaction.facts, transaction.finished)

    def _tell(self, transaction: _Transaction) -> None:
        self._writing = None
        self._committed(transaction.number)
        if self._waiting:
            self._begin()


class Archive:
    """Answers for the service what is on disk only; each answer comes a little later, as from a thread."""

    def __init__(self, disk: Disk, process: Process) -> None:
        self._disk = disk
        self._process = process

    def ask(self, question: Callable[[], T], answer: Callable[[T], None], failed: Callable[[str, str], None]) -> None:
        self._process.call_later(self._disk.sync_s, lambda: answer(question()))

    def results(self, wanted: list[tuple[TaskId, Instant]], bytes_max: int) -> tuple[dict[TaskId, bytes], int]:
        """The results of tasks, as far as they are on disk."""
        ids = {task_id for task_id, _ in wanted}
        found = {r.id: r.result for r in self._disk.finished() if r.id in ids and r.result is not None}
        return found, len(wanted)

    def find(self, ids: list[TaskId], bytes_max: int) -> tuple[dict[TaskId, FinishedTask], int]:
        """Tasks that have ended, by their ids."""
        wanted = set(ids)
        return {record.id: record for record in self._disk.finished() if record.id in wanted}, len(ids)

    def rows(self, ids: list[TaskId]) -> dict[TaskId, Task]:
        """The rows of tasks that have ended, by their ids."""
        return {task_id: finished_row(record) for task_id, record in self.find(ids, 0)[0].items()}

    def history(self, request: m.ListHistory) -> m.HistoryList:
        """Nobody in here asks for it."""
        return m.HistoryList(request.request, [], [])

    def back_up(self, request: m.BackUp) -> m.BackedUp:
        """Nobody in here asks for it."""
        return m.BackedUp(request.request, request.path, 0)

    def events(self, request: m.ListEvents) -> m.EventList:
        """Nobody in here asks for it."""
        return m.EventList(request.request, [], request.cursor)
