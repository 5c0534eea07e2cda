"""What is read of a journal beside its writer: results, tasks that have ended, what happened; copies and checks."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

from msgspec import Struct

from schedd.core import effects as fx
from schedd.core.model import Instant, TaskId
from schedd.errors import JournalError
from schedd.journal.files import SALVAGE, read_only, unreadable
from schedd.journal.records import (
    AnyFact,
    EndOfTask,
    FinishedTask,
    decode_ends,
    decode_fact,
    decode_facts,
    decode_finished,
    decode_ids,
    decode_submit,
)
from schedd.journal.schema import SEQ_MAX, VERSION, version_of

#: Rows of the history that are read for one result. One is enough, but where the wall clock was set back in between.
ROWS_PER_RESULT_MAX = 50


class Happened(Struct, frozen=True):
    """What a row of the history has. `finished` stands for the `TaskFinished` among the facts, behind the others."""

    seq: int
    at_ns: Instant
    facts: list[AnyFact]
    finished: list[EndOfTask]


#: Where a page of finished tasks goes on: a row of the history, and how many of its newest are passed over.
Cursor = tuple[int, int]
FROM_THE_NEWEST: Cursor = (0, 0)


class Reader:
    """Reads a journal beside its writer, on a connection of its own. Each call may take long: use it in a thread."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def results(
        self, wanted: Sequence[tuple[TaskId, Instant]], bytes_max: int = 1 << 62
    ) -> tuple[dict[TaskId, bytes], int]:
        """The results of tasks that ended at these instants, as far as the history still has them.

        Looks at no more once there are `bytes_max` of them; returns also how many of `wanted` were looked at.
        """
        found: dict[TaskId, bytes] = {}
        size = looked = 0
        with closing(self._open()) as db:
            known: dict[int, dict[TaskId, bytes | None]] = {}
            for task_id, at_ns in wanted:
                result = _result(db, task_id, at_ns, known)
                looked += 1
                if result is not None:
                    found[task_id] = result
                    size += len(result)
                if size >= bytes_max:
                    break
        return found, looked

    def find(self, ids: Sequence[TaskId], bytes_max: int = 1 << 62) -> tuple[dict[TaskId, FinishedTask], int]:
        """The tasks with these ids that have ended, as far as the history still has them.

        Looks for no more once there are `bytes_max` of results; returns also how many of `ids` were looked for.
        """
        found: dict[TaskId, FinishedTask] = {}
        size = looked = 0
        row: dict[TaskId, FinishedTask] = {}
        with closing(self._open()) as db:
            for task_id in ids:
                if task_id not in row:
                    row = _row_with(db, task_id) or row
                looked += 1
                record = row.get(task_id)
                if record is not None:
                    found[task_id] = record
                    size += len(record.result or b"")
                if size >= bytes_max:
                    break
        return found, looked

    def finished(self, cursor: Cursor = FROM_THE_NEWEST) -> Iterator[tuple[Cursor, FinishedTask]]:
        """Yield finished tasks, the newest first, each with the cursor that goes on after it."""
        first, passed_over = min(max(0, cursor[0]), SEQ_MAX), max(0, cursor[1])
        with closing(self._open()) as db:
            rows = db.execute(
                "SELECT seq, finished FROM history WHERE finished_count > 0 AND seq <= ? ORDER BY seq DESC",
                (first or SEQ_MAX,),
            )
            for seq, blob in rows:
                start = passed_over if seq == first else 0
                records = decode_finished(blob)[::-1]
                for position in range(start, len(records)):
                    yield (seq, position + 1), records[position]

    def newest(self) -> int:
        """The number of the newest row of the history, forgotten ones included; 0: there was none."""
        with closing(self._open()) as db:
            return _newest(db)

    def happened(self, cursor: Cursor, since_ns: Instant = 0) -> Iterator[Happened]:
        """Yield the rows of the history in their order, from the one that the cursor is in.

        FROM_THE_OLDEST begins with the first row that was written at `since_ns` or later.
        """
        seq = min(max(0, cursor[0]), SEQ_MAX)
        with closing(self._open()) as db:
            if not seq:
                since_ns = min(max(0, since_ns), SEQ_MAX)
                first = db.execute("SELECT seq FROM history WHERE at_ns >= ? ORDER BY at_ns, seq LIMIT 1", (since_ns,))
                seq = (first.fetchone() or (_newest(db) + 1,))[0]
            rows = db.execute("SELECT seq, at_ns, facts, finished FROM history WHERE seq >= ? ORDER BY seq", (seq,))
            for number, at_ns, facts, finished in rows:
                yield Happened(number, at_ns, decode_facts(facts), decode_ends(finished))

    def backup(self, target: Path) -> int:
        """Write a copy as of now to a new file; returns its bytes. Raises JournalError where it cannot be written."""
        if target.exists():
            raise JournalError(f"{target} exists", "name a new file")
        try:
            # One that nobody else has made before, or makes at the same time, and that nobody else may read.
            fd, name = tempfile.mkstemp(".partial", f".{target.name}.", target.parent)
        except OSError as error:
            raise _not_written(target, error) from error
        os.close(fd)
        partial = Path(name)
        try:
            with closing(self._open()) as db, closing(sqlite3.connect(partial)) as copy:
                db.backup(copy)
            partial.replace(target)
            folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
            return target.stat().st_size
        except (sqlite3.Error, OSError) as error:
            partial.unlink(missing_ok=True)
            raise _not_written(target, error) from error

    def check(self) -> dict[str, int]:
        """Read everything; returns how much there is of what. Raises JournalError with what is wrong."""
        if not self._path.exists():
            raise JournalError(
                f"there is no {self._path}", "name the file, or set SCHEDD_STATE_DIR as the daemon has it"
            )
        try:
            with closing(self._open()) as db:
                if version_of(db, str(self._path)) != VERSION:
                    raise JournalError(
                        f"{self._path} is empty, or was written by an older schedd",
                        "start the daemon with it once, which brings it to the newest version",
                    )
                problem = db.execute("PRAGMA integrity_check(1)").fetchone()[0]
                if problem != "ok":
                    raise JournalError(f"{self._path}: {problem}", SALVAGE)
                return _count(db)
        except sqlite3.Error as error:
            raise unreadable(self._path, error) from error
        except JournalError as error:
            raise JournalError(error.message, error.hint or SALVAGE) from error

    def _open(self) -> sqlite3.Connection:
        return read_only(self._path)


def _not_written(target: Path, error: Exception) -> JournalError:
    return JournalError(f"{target}: {error}", "is there room, and may the daemon write there?")


def _newest(db: sqlite3.Connection) -> int:
    row = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'history'").fetchone()
    return int(row[0]) if row is not None else 0


def _row_with(db: sqlite3.Connection, task_id: TaskId) -> dict[TaskId, FinishedTask]:
    """All tasks that are in the same row of the history as this one."""
    rows = db.execute(
        "SELECT seq, ids FROM ends WHERE first_id <= ? AND last_id >= ? ORDER BY first_id DESC", (task_id, task_id)
    )
    for seq, ids in rows:
        if task_id in decode_ids(ids):
            blob = db.execute("SELECT finished FROM history WHERE seq = ?", (seq,)).fetchone()
            return {record.id: record for record in decode_finished(blob[0])} if blob is not None else {}
    return {}


def _result(
    db: sqlite3.Connection, task_id: TaskId, at_ns: Instant, known: dict[int, dict[TaskId, bytes | None]]
) -> bytes | None:
    """The result of one task; `known` has those of the row that was read last."""
    # Its row was written at the end of its turn, or of one soon after.
    rows = db.execute(
        "SELECT seq FROM history WHERE at_ns >= ? AND finished_count > 0 ORDER BY at_ns LIMIT ?",
        (at_ns, ROWS_PER_RESULT_MAX),
    )
    for (seq,) in rows:
        if seq not in known:
            blob = db.execute("SELECT finished FROM history WHERE seq = ?", (seq,)).fetchone()[0]
            known.clear()
            known[seq] = {record.id: record.result for record in decode_finished(blob)}
        if task_id in known[seq]:
            return known[seq][task_id]
    return None


def _count(db: sqlite3.Connection) -> dict[str, int]:
    """Decode every row and count what they have. Raises JournalError."""
    counts = {"live": 0, "finished": 0, "facts": 0, "transactions": 0}
    for (blob,) in db.execute("SELECT blob FROM batches"):
        batch = decode_fact(blob)
        counts["live"] += len(batch.ids) if isinstance(batch, fx.TasksAdmitted) else 0
    for (blob,) in db.execute("SELECT blob FROM ended"):
        counts["live"] -= len(decode_ids(blob))
    for table in ("changes", "workers", "verdicts"):
        for (blob,) in db.execute(f"SELECT blob FROM {table}"):
            decode_fact(blob)
    for (blob,) in db.execute("SELECT blob FROM submits"):
        decode_submit(blob)
    for facts, finished in db.execute("SELECT facts, finished FROM history"):
        counts["transactions"] += 1
        counts["facts"] += len(decode_facts(facts))
        counts["finished"] += len(decode_finished(finished))
    return counts
