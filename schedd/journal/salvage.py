"""A new journal out of a damaged one: every row that can still be read, and nothing that has ended twice.

Rows are read one by one; where a page is damaged the next that can be read is looked for. Batches that are gone with
such a page are taken from the history, which has every submit too.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from msgspec import Struct, field

from schedd.core import effects as fx
from schedd.errors import JournalError
from schedd.journal.files import CANNOT_SALVAGE, open_database, read_only
from schedd.journal.records import (
    decode_fact,
    decode_facts,
    decode_finished,
    decode_ids,
    decode_submit,
    encode_fact,
    encode_ids,
    ends_row,
)
from schedd.journal.schema import version_of
from schedd.journal.store import EPOCH_KEY

#: The version of the tables that brought `verdicts`.
VERDICTS_SINCE = 2
SUBMITS_SINCE = 3
#: Behind this no table has a row.
ROWID_MAX = 1 << 62


class Salvaged(Struct):
    """What was found: tasks that go on, tasks that have ended, and how often something could not be read."""

    live: int = 0
    finished: int = 0
    damages: int = 0


class _Found(Struct):
    batches: dict[int, fx.TasksAdmitted] = field(default_factory=dict)
    ended: set[int] = field(default_factory=set)
    changes: list[tuple[int, bytes]] = field(default_factory=list)
    workers: list[tuple[str, bytes]] = field(default_factory=list)
    verdicts: list[tuple[str, bytes]] = field(default_factory=list)
    submits: list[tuple[Any, ...]] = field(default_factory=list)
    admitted_before: dict[int, fx.TasksAdmitted] = field(default_factory=dict)
    next_id: int = 1
    epoch: int = 0


def salvage(source: Path, target: Path) -> Salvaged:
    """Write what can be read of a journal to a new file. Raises JournalError where nothing can."""
    if not source.exists():
        raise JournalError(f"there is no {source}", "name the damaged file")
    if target.exists():
        raise JournalError(f"{target} exists", "name a new file")
    try:
        with closing(read_only(source)) as old:
            # Without this SQLite reads nothing of a file that has lost its end.
            old.execute("PRAGMA writable_schema = ON")
            version = version_of(old, str(source))
            with closing(open_database(str(target))) as new:
                return _copy(_Reading(old), new, version)
    except sqlite3.Error as error:
        raise JournalError(f"{source}: {error}", CANNOT_SALVAGE) from error


class _Reading:
    """Reads tables in spite of damage, and counts it."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self.damages = 0

    def rows(self, table: str, columns: str) -> Iterator[tuple[Any, ...]]:
        """Yield what can be read of a table with row ids, in their order."""
        # One at a time: Python's cursor looks at the next row before it gives one, and where that fails both are lost.
        sql = f"SELECT rowid, {columns} FROM {table} WHERE rowid >= ? ORDER BY rowid LIMIT 1"
        start = 1
        while start < ROWID_MAX:
            try:
                row = self._first(sql, start)
            except sqlite3.Error:
                self.damages += 1
                start = self._behind(sql, start)
                continue
            if row is None:
                return
            start = row[0] + 1
            yield row[1:]

    def _first(self, sql: str, start: int) -> tuple[Any, ...] | None:
        """The first row from this id on; None: there is none. Raises sqlite3.Error where it cannot be read."""
        row: tuple[Any, ...] | None = self._db.execute(sql, (start,)).fetchone()
        if row is not None and row[0] < start:
            raise sqlite3.DatabaseError("a damaged tree leads back")
        return row

    def _behind(self, sql: str, start: int) -> int:
        """From which row id on can be read again, where the first row from `start` on cannot be."""
        step = 1
        while not self._can_read(sql, start + step):
            start += step
            step *= 2
            if start >= ROWID_MAX:
                return ROWID_MAX
        # That was a leap: the last of the rows that it went over may be whole.
        readable = start + step
        while readable - start > 1:
            middle = (start + readable) // 2
            if self._can_read(sql, middle):
                readable = middle
            else:
                start = middle
        return readable

    def _can_read(self, sql: str, start: int) -> bool:
        try:
            self._first(sql, start)
        except sqlite3.Error:
            return False
        return True

    def small(self, table: str, columns: str) -> list[tuple[Any, ...]]:
        """The rows of a table of a few pages without row ids; none where it is damaged."""
        try:
            return self._db.execute(f"SELECT {columns} FROM {table}").fetchall()
        except sqlite3.Error:
            self.damages += 1
            return []

    def decoded(self, decode: Callable[[bytes], Any], blob: bytes, default: Any) -> Any:
        """What a blob says; `default` where it is damaged."""
        try:
            return decode(blob)
        except JournalError:
            self.damages += 1
            return default


def _copy(old: _Reading, new: sqlite3.Connection, version: int) -> Salvaged:
    found, salvaged = _Found(), Salvaged()
    new.execute("BEGIN IMMEDIATE")
    for first_id, blob in old.rows("batches", "first_id, blob"):
        batch = old.decoded(decode_fact, blob, None)
        if isinstance(batch, fx.TasksAdmitted) and batch.ids and batch.ids[0] == first_id:
            found.batches[first_id] = batch
    batches_damaged = old.damages > 0
    for (blob,) in old.rows("ended", "blob"):
        found.ended.update(old.decoded(decode_ids, blob, []))
    for task_id, blob in old.rows("changes", "task_id, blob"):
        if old.decoded(decode_fact, blob, None) is not None:
            found.changes.append((task_id, blob))
    for name, blob in old.small("workers", "worker_id, blob"):
        if old.decoded(decode_fact, blob, None) is not None:
            found.workers.append((name, blob))
    _read_later_tables(old, found, version)
    for key, value in old.small("meta", "key, value"):
        if key == "next_id" and bytes(value).isdigit():
            found.next_id = int(value)
        if key == EPOCH_KEY and bytes(value).isdigit():
            found.epoch = int(value)
    salvaged.finished = _copy_history(old, new, found)
    if batches_damaged:
        found.batches = found.admitted_before | found.batches
    salvaged.live = _write_live(new, found)
    new.execute("COMMIT")
    salvaged.damages = old.damages
    return salvaged


def _read_later_tables(old: _Reading, found: _Found, version: int) -> None:
    """Read what a journal of the first version does not have."""
    for name, blob in old.small("verdicts", "name, blob") if version >= VERDICTS_SINCE else ():
        if old.decoded(decode_fact, blob, None) is not None:
            found.verdicts.append((name, blob))
    for row in old.rows("submits", "first_id, client, number, blob") if version >= SUBMITS_SINCE else ():
        if old.decoded(decode_submit, row[3], None) is not None:
            found.submits.append(row)


def _copy_history(old: _Reading, new: sqlite3.Connection, found: _Found) -> int:
    """Copy the rows of the history that are whole; returns how many tasks have ended in them."""
    count = 0
    columns = "seq, at_ns, size_bytes, finished_count, finished, facts"
    for row in old.rows("history", columns):
        finished = old.decoded(decode_finished, row[4], None)
        facts = old.decoded(decode_facts, row[5], None)
        for fact in facts or ():
            if isinstance(fact, fx.TasksAdmitted) and fact.ids:
                found.admitted_before[fact.ids[0]] = fact
                found.next_id = max(found.next_id, fact.ids[-1] + 1)
        if finished is not None:
            found.ended.update(record.id for record in finished)
            found.next_id = max([found.next_id, *(record.id + 1 for record in finished)])
        if finished is not None and facts is not None and all(isinstance(number, int) for number in row[:4]):
            new.execute(f"INSERT INTO history ({columns}) VALUES (?, ?, ?, ?, ?, ?)", row)
            if finished:
                new.execute("INSERT INTO ends VALUES (?, ?, ?, ?, ?)", (row[0], *ends_row(finished)))
            count += len(finished)
    return count


def _write_live(new: sqlite3.Connection, found: _Found) -> int:
    """Write the rows that a restart starts from; returns how many tasks it goes on with."""
    live: set[int] = set()
    for first_id, batch in sorted(found.batches.items()):
        over = [i for i in batch.ids if i in found.ended]
        found.next_id = max(found.next_id, batch.ids[-1] + 1)
        if len(over) == len(batch.ids):
            continue
        live.update(i for i in batch.ids if i not in found.ended)
        new.execute("INSERT INTO batches VALUES (?, ?)", (first_id, encode_fact(batch)))
        if over:
            new.execute("INSERT INTO ended VALUES (?, ?)", (first_id, encode_ids(over)))
    new.executemany(
        "INSERT INTO changes (task_id, blob) VALUES (?, ?)", [row for row in found.changes if row[0] in live]
    )
    new.executemany("INSERT INTO workers VALUES (?, ?)", found.workers)
    new.executemany("INSERT INTO verdicts VALUES (?, ?)", found.verdicts)
    new.executemany("INSERT INTO submits VALUES (?, ?, ?, ?)", found.submits)
    # Nobody has started that often: it is above whatever the damaged file said.
    epoch = found.epoch or int(time.time())
    for key, number in (("next_id", found.next_id), (EPOCH_KEY, epoch)):
        new.execute("INSERT INTO meta VALUES (?, ?)", (key, str(number).encode()))
    return len(live)
