"""The journal on disk: SQLite in WAL mode, one writer thread, one transaction for all turns that wait.

The loop hands over the facts of a turn and goes on; the thread writes whatever has gathered, syncs, and tells the loop
up to which turn all is safe. While it writes, the next turns gather: the busier the daemon, the larger a transaction.

A full disk or an I/O error keeps the facts in memory; the thread tries again each second, and says when it stands.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from queue import Empty, SimpleQueue

from msgspec import Struct, field, structs

from schedd.core import effects as fx
from schedd.core.model import Call, Instant, Payload
from schedd.core.stats import Learned
from schedd.core.submits import SUBMITS_MAX, Admitted
from schedd.core.tasks import RESULT_DROPPED
from schedd.errors import JournalError
from schedd.journal.files import SALVAGE, Durability, lock, open_database, unreadable
from schedd.journal.records import (
    AnyFact,
    FinishedTask,
    LiveIndex,
    Rows,
    decode_fact,
    decode_finished,
    decode_ids,
    decode_learned,
    decode_submit,
    encode_facts,
    encode_finished,
    encode_in_parts,
    encode_learned,
    ends_row,
)
from schedd.journal.right_of_way import RightOfWay
from schedd.journal.schema import SEQ_MAX
from schedd.tally import Histogram

#: Seconds between two tries while the disk refuses.
RETRY_S = 1.0
#: Facts and new tasks that one transaction has, about: so that no turn waits for very long, and the loop, which stands
#: still while they are encoded, does so for some milliseconds.
TASKS_PER_COMMIT_MAX = 8000
#: And bytes of arguments, functions, input and results; a single turn with more is a transaction of its own.
BYTES_PER_COMMIT_MAX = 8 * 1024 * 1024
#: A transaction with more bytes of facts, or of ended tasks, has several rows in the history. As a frame is no larger,
#: a row with one task more is still far below what SQLite takes, 10^9 bytes.
BYTES_PER_ROW_MAX = 64 * 1024 * 1024
#: Rows of ended tasks, and tasks, that one step of a restart reads: some 5 ms.
ROWS_PER_STEP = 100
TASKS_PER_STEP = 1000
#: The newest row of the history, before one that was read, with tasks that ended; and with such that have a key.
NEWEST_FINISHED = "SELECT seq, finished FROM history WHERE finished_count > 0 AND seq < ? ORDER BY seq DESC LIMIT 1"
NEWEST_KEYED = (
    "SELECT seq, finished FROM history WHERE seq = (SELECT max(seq) FROM ends WHERE keyed_count > 0 AND seq < ?)"
)
#: What one step of forgetting takes: rows of the history, and bytes of them, about. A commit never waits for longer.
FORGET_ROWS = 100
FORGET_BYTES = 4 * 1024 * 1024
#: Pages that one step gives back to the file system, and that are left for what comes next.
VACUUM_PAGES = 1000
FREE_PAGES_KEPT = 2000
#: Rows of `meta` with what was learned have this before the name of who has.
LEARNED_KEY = "learned."
#: The row of `meta` that counts the starts.
EPOCH_KEY = "epoch"
#: Without work the writer looks so often whether something has grown too old.
IDLE_S = 1.0
#: Of what nobody is in a hurry for, one commit takes all that comes in this time: each costs some 200 us of CPU, which
#: on a busy machine the tasks go without.
GATHER_S = 0.005
#: Seconds of a transaction, with its sync.
COMMIT_BOUNDS = (3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


class Live(Struct):
    """What a restart starts from. `ended`: ids of `batches` that are over; `changes` in the order of their coming.

    `finished`: the newest tasks that have ended, oldest first, without their results. `submits`: oldest first.
    `learned`: by who has.
    """

    batches: list[fx.TasksAdmitted] = field(default_factory=list)
    ended: set[int] = field(default_factory=set)
    changes: list[AnyFact] = field(default_factory=list)
    workers: list[fx.WorkerEntered] = field(default_factory=list)
    finished: list[FinishedTask] = field(default_factory=list)
    next_id: int = 1
    verdicts: list[AnyFact] = field(default_factory=list)
    submits: list[Admitted] = field(default_factory=list)
    learned: dict[str, list[Learned]] = field(default_factory=dict)


class Retention(Struct, frozen=True):
    """How much history is kept: none older than `age_ns`, and at most `size_bytes` of it; 0: no bound."""

    age_ns: int = 0
    size_bytes: int = 0


#: at_ns, size_bytes, finished_count, finished, facts: a row of the history.
_HistoryRow = tuple[Instant, int, int, bytes, bytes]
_NO_FACTS, _NO_FINISHED = encode_facts([]), encode_finished([])


class _Turn(Struct):
    number: int
    at_ns: Instant
    can_wait: bool
    facts: list[fx.Fact]
    finished: list[FinishedTask]


class Journal:
    """One journal, opened by one daemon. `committed`, `failing` and `crashed` are called in the writer thread."""

    def __init__(
        self,
        path: Path,
        durability: Durability = "full",
        retention: Retention | None = None,
        *,
        committed: Callable[[int], None] = lambda turn: None,
        failing: Callable[[str], None] = lambda reason: None,
        crashed: Callable[[BaseException], None] = lambda error: None,
    ) -> None:
        self.path = path
        self.durability = durability
        self._lock = lock(path)
        self._retention = retention or Retention()
        self._committed = committed
        self._failing = failing
        self._crashed = crashed
        try:
            self._db = open_database(str(path), durability)
        except JournalError:
            os.close(self._lock)
            raise
        self._epoch_written = False
        try:
            #: Which start on this journal this is.
            self.epoch = self._begin_epoch()
        except JournalError:
            self._db.close()
            os.close(self._lock)
            raise
        self._index = LiveIndex()
        self._inbox: SimpleQueue[_Turn | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="schedd-journal", daemon=True)
        self._failed = ""
        #: Turns were handed over that are not on disk, and will not be.
        self._has_lost = False
        self._history_bytes = self._sum_of_history()
        #: While a restart is read: how many tasks of each batch are over.
        self._ended_of: dict[int, int] = {}
        self._learned: Mapping[str, Sequence[Learned]] = {}
        #: The newest instant that the loop spoke of, and when that was by our clock.
        self._heard: tuple[Instant, int] = (0, time.monotonic_ns())
        #: No row of the history is older; 0: not known.
        self._oldest_ns: Instant = 0
        #: Submits written since the oldest were forgotten.
        self._submit_count = 0
        self._stopping = threading.Event()
        self.commits = 0
        self._way = RightOfWay()
        #: How long the transactions took, those that the disk refused left out.
        self.commit_seconds = Histogram(COMMIT_BOUNDS)

    def _begin_epoch(self) -> int:
        """Count this start, on disk before anything comes of it. Raises JournalError."""
        try:
            epoch = int(self._meta(EPOCH_KEY, b"0")) + 1
            # A daemon starts on a disk that refuses, too: then the number comes with the first that can be written.
            with suppress(sqlite3.OperationalError):
                self._write_epoch(epoch)
                self._epoch_written = True
        except ValueError:
            raise JournalError(f"{self.path}: the number of its starts is damaged", SALVAGE) from None
        except sqlite3.Error as error:
            raise unreadable(self.path, error) from error
        return epoch

    def _write_epoch(self, epoch: int) -> None:
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (EPOCH_KEY, str(epoch).encode()))

    # ------------------------------------------------------------------------------------------------------- restart

    def load(self, finished_max: int = 0) -> Live:
        """Read what a restart starts from, with the newest `finished_max` tasks that have ended.

        O(live tasks). Before `start`. Raises JournalError.
        """
        live = Live()
        for _ in self.loading(live, finished_max):
            pass
        return live

    def loading(self, live: Live, finished_max: int = 0, keyed_max: int = 0) -> Iterator[None]:
        """Do what `load` does in steps of some milliseconds. Raises JournalError.

        keyed_max: so many of the newest with a key are read, too, from however far back.
        """
        try:
            yield from self._load_ended(live)
            yield from self._load_finished(live, finished_max, keyed_max)
            yield from self._load_batches(live)
            yield from self._load_changes(live)
            self._load_learned(live)
        except sqlite3.Error as error:
            raise unreadable(self.path, error) from error
        except JournalError as error:
            raise JournalError(f"{self.path}: {error.message}", SALVAGE) from error

    def _load_ended(self, live: Live) -> Iterator[None]:
        for number, (first_id, blob) in enumerate(self._db.execute("SELECT first_id, blob FROM ended"), 1):
            ids = decode_ids(blob)
            live.ended.update(ids)
            self._ended_of[first_id] = self._ended_of.get(first_id, 0) + len(ids)
            if not number % ROWS_PER_STEP:
                yield

    def _load_batches(self, live: Live) -> Iterator[None]:
        live.next_id = int(self._meta("next_id", b"1"))
        loaded = 0
        for first_id, blob in self._db.execute("SELECT first_id, blob FROM batches ORDER BY first_id"):
            batch = decode_fact(blob)
            if not isinstance(batch, fx.TasksAdmitted) or not batch.ids or batch.ids[0] != first_id:
                raise JournalError(f"batch {first_id} is not what it should be")
            live.batches.append(batch)
            self._index.load(first_id, len(batch.ids) - self._ended_of.pop(first_id, 0))
            live.next_id = max(live.next_id, batch.ids[-1] + 1)
            loaded += len(batch.ids)
            if loaded >= TASKS_PER_STEP:
                loaded = 0
                yield

    def _load_changes(self, live: Live) -> Iterator[None]:
        rows = self._db.execute("SELECT task_id, blob, kind FROM changes ORDER BY rowid")
        for number, (task_id, blob, kind) in enumerate(rows, 1):
            live.changes.append(decode_fact(blob))
            self._index.load_changed(task_id, kind)
            if not number % TASKS_PER_STEP:
                yield
        for _, blob in self._db.execute("SELECT worker_id, blob FROM workers ORDER BY worker_id"):
            worker = decode_fact(blob)
            if isinstance(worker, fx.WorkerEntered):
                live.workers.append(worker)
                self._index.load_worker(worker)
        live.verdicts += [decode_fact(blob) for (blob,) in self._db.execute("SELECT blob FROM verdicts ORDER BY name")]
        # A daemon starts on a disk that refuses, too: the engine remembers no more of them than are to be left here.
        with suppress(sqlite3.OperationalError):
            self._forget_submits()
        rows = self._db.execute("SELECT blob FROM submits ORDER BY first_id")
        live.submits = [decode_submit(blob) for (blob,) in rows]

    def _load_learned(self, live: Live) -> None:
        """What is damaged of it is left out: it can be learned again."""
        for key, blob in self._db.execute("SELECT key, value FROM meta WHERE key GLOB ?", (LEARNED_KEY + "*",)):
            with suppress(JournalError):
                live.learned[key.removeprefix(LEARNED_KEY)] = decode_learned(blob)

    def _load_finished(self, live: Live, most: int, keyed_max: int) -> Iterator[None]:
        newest_first: list[FinishedTask] = []
        looked, keyed, before = 0, 0, SEQ_MAX
        while looked < most or keyed < keyed_max:
            sql = NEWEST_FINISHED if looked < most else NEWEST_KEYED
            row = self._db.execute(sql, (before,)).fetchone()
            if row is None:
                break
            before, blob = row
            for record in reversed(decode_finished(blob)):
                looked += 1
                has_key = record.key is not None
                if looked <= most or (has_key and keyed < keyed_max):
                    newest_first.append(structs.replace(record, result=record.result and RESULT_DROPPED))
                    keyed += has_key
            yield
        live.finished = newest_first[::-1]

    def _sum_of_history(self) -> int:
        try:
            return int(self._db.execute("SELECT coalesce(sum(size_bytes), 0) FROM history").fetchone()[0])
        except sqlite3.Error as error:
            self._db.close()
            os.close(self._lock)
            raise unreadable(self.path, error) from error

    def _meta(self, key: str, default: bytes) -> bytes:
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return bytes(row[0]) if row is not None else default

    # ------------------------------------------------------------------------------------------------------- writing

    def start(self) -> None:
        """Start the writer thread."""
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the writer thread runs."""
        return self._thread.is_alive()

    @property
    def history_bytes(self) -> int:
        """What the facts and the finished tasks of the history take."""
        return self._history_bytes

    def append(
        self, turn: int, facts: list[fx.Fact], finished: list[FinishedTask], now: Instant, can_wait: bool = False
    ) -> None:
        """Hand over the facts of a turn, and the tasks that ended in it. Never blocks.

        `committed(turn)` tells when they, and all before, are safe. `can_wait`: `GATHER_S` for others to come with it.
        """
        self._inbox.put(_Turn(turn, now, can_wait, facts, finished))
        if not can_wait:
            self._way.asked(turn)

    def stand_aside(self) -> None:
        """Let the writer get on with what was handed over, where it could not lately; called by the loop."""
        self._way.stand_aside()

    def keep(self, retention: Retention) -> None:
        """Keep more or less of the history from now on; what is too much goes as new comes."""
        self._retention = retention

    def remember(self, learned: Mapping[str, Sequence[Learned]]) -> None:
        """Have written what was learned so far, in place of what was before; some time soon, and at the close."""
        self._learned = learned

    def close(self, timeout_s: float = 10.0) -> bool:
        """Write what is left and close; False where that did not work, or not in time."""
        self._inbox.put(None)
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                return False
        self._db.close()
        os.close(self._lock)
        return not self._has_lost

    def _run(self) -> None:
        last = more = False
        self._way.enter()
        try:
            while not last:
                turns, last = self._gather(0.0 if more else IDLE_S)
                if turns and not last and all(turn.can_wait for turn in turns):
                    time.sleep(GATHER_S)
                    others, last = self._gather(0.0)
                    turns += others
                if turns:
                    self._heard = (turns[-1].at_ns, time.monotonic_ns())
                    if not self._write(turns):
                        self._has_lost = True
                        return
                self._write_learned()
                more = not last and self._retain()
        except Exception as error:  # nobody who waits for a commit may wait for ever
            self._has_lost = True
            self._crashed(error)

    def _gather(self, wait_s: float) -> tuple[list[_Turn], bool]:
        """Wait for a turn, not for ever, and take all that wait with it; True: nothing will follow."""
        turns: list[_Turn] = []
        room, bytes_room = TASKS_PER_COMMIT_MAX, BYTES_PER_COMMIT_MAX
        try:
            turn = self._inbox.get(timeout=wait_s) if wait_s else self._inbox.get_nowait()
            while turn is not None:
                turns.append(turn)
                room -= len(turn.facts)
                for fact in turn.facts:
                    if type(fact) is fx.TasksAdmitted:
                        room -= len(fact.ids)
                        bytes_room -= _bytes_of_submit(fact)
                for record in turn.finished:
                    bytes_room -= len(record.result or b"") + len(record.argument) + _bytes_of(record.payload)
                if room <= 0 or bytes_room <= 0:
                    return turns, False
                turn = self._inbox.get_nowait()
        except Empty:
            return turns, False
        return turns, True

    def _write(self, turns: list[_Turn]) -> bool:
        """Commit turns, trying again while the disk refuses; False: given up because the daemon stops."""
        facts = [fact for turn in turns for fact in turn.facts]
        finished = [record for turn in turns for record in turn.finished]
        rows = self._index.plan(facts)
        while True:
            began = time.perf_counter()
            try:
                size = self._commit(turns[-1], rows, facts, finished)
            except sqlite3.Error as error:
                self._refused(error)
                if self._stopping.wait(RETRY_S):
                    return False  # nothing in there was acknowledged
            else:
                break
        if self._failed:
            self._failed = ""
            self._failing("")
        self.commits += 1
        self.commit_seconds.observe(time.perf_counter() - began)
        self._submit_count += len(rows.submits)
        self._history_bytes += size
        self._committed(turns[-1].number)
        return True

    def _commit(self, last: _Turn, rows: Rows, facts: list[fx.Fact], finished: list[FinishedTask]) -> int:
        """Write one transaction; returns by how many bytes the history has grown."""
        history, size = _history(last.at_ns, facts, finished), 0
        # What follows the first, which nearly always is all, is encoded as it is written: it may be more than fits in
        # memory.
        first = next(history)
        db, began = self._db, time.perf_counter()
        db.execute("BEGIN IMMEDIATE")
        try:
            for row, ended in chain((first,), history):
                added = db.execute(
                    "INSERT INTO history (at_ns, size_bytes, finished_count, finished, facts) VALUES (?, ?, ?, ?, ?)",
                    row,
                )
                if ended:
                    db.execute("INSERT INTO ends VALUES (?, ?, ?, ?, ?)", (added.lastrowid, *ends_row(ended)))
                size += row[1]
            for sql, values in (
                ("INSERT INTO batches VALUES (?, ?)", rows.batches),
                ("INSERT INTO ended VALUES (?, ?)", rows.ended),
                ("DELETE FROM changes WHERE task_id = ? AND kind = ?", rows.changes_replaced),
                ("INSERT INTO changes (task_id, blob, kind) VALUES (?, ?, ?)", rows.changes),
                ("INSERT OR REPLACE INTO workers VALUES (?, ?)", rows.workers),
                ("DELETE FROM submits WHERE client = ? AND number < ?", list(rows.answered.items())),
                ("INSERT INTO submits VALUES (?, ?, ?, ?)", rows.submits),
                ("DELETE FROM batches WHERE first_id = ?", [(i,) for i in rows.batches_done]),
                ("DELETE FROM ended WHERE first_id = ?", [(i,) for i in rows.batches_done]),
                ("DELETE FROM changes WHERE task_id = ?", [(i,) for i in rows.changes_done]),
                ("DELETE FROM workers WHERE worker_id = ?", [(i,) for i in rows.workers_gone]),
                ("DELETE FROM verdicts WHERE name = ?", [(name,) for name in rows.verdicts_over]),
                ("INSERT OR REPLACE INTO verdicts VALUES (?, ?)", list(rows.verdicts.items())),
            ):
                if values:
                    db.executemany(sql, values)
            newest = max((f.ids[-1] for f in facts if isinstance(f, fx.TasksAdmitted)), default=0)
            if newest:
                # Ids are never given twice, even when nothing of their batches is left.
                db.execute("INSERT OR REPLACE INTO meta VALUES ('next_id', ?)", (str(newest + 1).encode(),))
            if not self._epoch_written:
                self._write_epoch(self.epoch)
            self._way.written(last.number, time.perf_counter() - began, len(facts))
            db.execute("COMMIT")
            self._epoch_written = True
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        finally:
            self._way.synced()
        return size

    def _write_learned(self) -> None:
        learned, self._learned = self._learned, {}
        rows = [(LEARNED_KEY + name, encode_learned(many)) for name, many in learned.items() if many]
        if rows:
            with suppress(sqlite3.Error):  # the next will do
                self._db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", rows)

    def _refused(self, error: sqlite3.Error) -> None:
        reason = str(error)
        if reason != self._failed:
            self._failed = reason
            self._failing(reason)

    # ------------------------------------------------------------------------------------------------------- history

    def _retain(self) -> bool:
        """Forget a little of what is too old or too much, and give back room; True: there is more to do."""
        try:
            if self._submit_count > SUBMITS_MAX // 4:
                self._forget_submits()
            forgotten = self._forget_some()
            free = self._db.execute("PRAGMA freelist_count").fetchone()[0] - FREE_PAGES_KEPT
            if free > 0:
                # `execute` would stop after the first page: the pragma makes a row of no columns for each.
                self._db.executescript(f"PRAGMA incremental_vacuum({min(free, VACUUM_PAGES)})")
        except sqlite3.Error:
            return False  # what refuses this refuses the next commit too, which says so
        return forgotten or free > VACUUM_PAGES

    def _forget_submits(self) -> None:
        """Forget the submits of clients that have been gone for long: as many as the engine remembers are enough."""
        self._submit_count = 0
        self._db.execute(
            "DELETE FROM submits WHERE first_id <= "
            "(SELECT first_id FROM submits ORDER BY first_id DESC LIMIT 1 OFFSET ?)",
            (SUBMITS_MAX,),
        )

    def _forget_some(self) -> bool:
        keep = self._retention
        excess = self._history_bytes - keep.size_bytes if keep.size_bytes else 0
        heard_ns, then = self._heard
        old_ns = heard_ns + time.monotonic_ns() - then - keep.age_ns if keep.age_ns else 0
        if excess <= 0 and self._oldest_ns >= old_ns:
            return False
        db = self._db
        rows = db.execute("SELECT seq, at_ns, size_bytes FROM history ORDER BY seq LIMIT ?", (FORGET_ROWS,)).fetchall()
        last, freed = _superfluous(rows, old_ns, excess)
        self._oldest_ns = min((at_ns for seq, at_ns, _ in rows if seq > last), default=old_ns)
        if not last:
            return False
        db.execute("BEGIN IMMEDIATE")
        try:
            db.execute("DELETE FROM history WHERE seq <= ?", (last,))
            db.execute("DELETE FROM ends WHERE seq <= ?", (last,))
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        self._history_bytes -= freed
        return True


def _bytes_of_submit(fact: fx.TasksAdmitted) -> int:
    """How many bytes it has, about: those of what may be large."""
    return sum(len(entry.argument) for entry in fact.tasks) + sum(_bytes_of(spec.payload) for spec in fact.specs)


def _bytes_of(payload: Payload | None) -> int:
    if payload is None:
        return 0
    return len(payload.function if isinstance(payload, Call) else payload.stdin)


def _history(
    at_ns: Instant, facts: list[fx.Fact], finished: list[FinishedTask]
) -> Iterator[tuple[_HistoryRow, list[FinishedTask]]]:
    """The rows of one transaction, with the tasks that ended in each: all facts come before all ends."""
    told = [fact for fact in facts if not isinstance(fact, fx.TaskFinished)]  # `finished` says it all
    blobs = encode_in_parts(told, BYTES_PER_ROW_MAX)
    told_blob, _ = next(blobs)
    for next_blob, _ in blobs:
        yield (at_ns, len(told_blob) + len(_NO_FINISHED), 0, _NO_FINISHED, told_blob), []
        told_blob = next_blob
    done = 0
    for blob, count in encode_in_parts(finished, BYTES_PER_ROW_MAX):
        yield (at_ns, len(told_blob) + len(blob), count, blob, told_blob), finished[done : done + count]
        told_blob, done = _NO_FACTS, done + count


def _superfluous(oldest: list[tuple[int, Instant, int]], old_ns: Instant, excess: int) -> tuple[int, int]:
    """Up to which of the oldest rows one step forgets (0: none), and how many bytes they have."""
    last = freed = 0
    for seq, at_ns, size in oldest:
        if freed > FORGET_BYTES or (at_ns >= old_ns and freed >= excess):
            break
        last, freed = seq, freed + size
    return last, freed
