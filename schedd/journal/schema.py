"""The tables of the journal, their versions, and the way from each version to the next."""

from __future__ import annotations

import sqlite3

from schedd.errors import JournalError
from schedd.journal.records import EndOfTask, count_keyed, decode_ends, encode_ids

#: `PRAGMA application_id` of a journal of schedd: "schd" in ASCII.
APPLICATION_ID = 0x73636864

#: MIGRATIONS[n] leads from version n to n + 1; a new file goes through all of them.
MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE batches (first_id INTEGER PRIMARY KEY, blob BLOB NOT NULL);
    CREATE TABLE ended (first_id INTEGER NOT NULL, blob BLOB NOT NULL);
    CREATE INDEX ended_by_batch ON ended (first_id);
    CREATE TABLE changes (task_id INTEGER NOT NULL, blob BLOB NOT NULL);
    CREATE INDEX changes_by_task ON changes (task_id);
    CREATE TABLE workers (worker_id TEXT PRIMARY KEY, blob BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE history (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, at_ns INTEGER NOT NULL, size_bytes INTEGER NOT NULL,
        finished_count INTEGER NOT NULL, finished BLOB NOT NULL, facts BLOB NOT NULL
    );
    CREATE INDEX history_by_time ON history (at_ns, finished_count, size_bytes);
    """,
    "CREATE TABLE verdicts (name TEXT PRIMARY KEY, blob BLOB NOT NULL) WITHOUT ROWID;",
    """
    CREATE TABLE submits (
        first_id INTEGER PRIMARY KEY, client TEXT NOT NULL, number INTEGER NOT NULL, blob BLOB NOT NULL
    );
    CREATE INDEX submits_by_client ON submits (client, number);
    """,
    # Which tasks have ended in which row of the history; and of which kind a change is, to replace it by a newer one.
    """
    CREATE TABLE ends (seq INTEGER PRIMARY KEY, first_id INTEGER NOT NULL, last_id INTEGER NOT NULL, ids BLOB NOT NULL);
    CREATE INDEX ends_by_id ON ends (first_id, last_id);
    INSERT OR IGNORE INTO ends
        SELECT seq, first_ended(finished), last_ended(finished), all_ended(finished)
        FROM history WHERE finished_count > 0;
    ALTER TABLE changes ADD COLUMN kind INTEGER NOT NULL DEFAULT 0;
    """,
    # How many of the tasks that ended in a row of the history have a key: a restart reads those from far back.
    """
    ALTER TABLE ends ADD COLUMN keyed_count INTEGER NOT NULL DEFAULT 0;
    UPDATE ends SET keyed_count =
        coalesce((SELECT count_keyed(finished) FROM history WHERE history.seq = ends.seq), 0);
    CREATE INDEX ends_with_keys ON ends (seq) WHERE keyed_count > 0;
    """,
)

VERSION = len(MIGRATIONS)

#: No row of the history has a higher number.
SEQ_MAX = (1 << 63) - 1


def version_of(db: sqlite3.Connection, path: str) -> int:
    """The version of a database; 0 for an empty one.

    Raises JournalError for a file of something else or of a newer schedd; sqlite3.Error where it cannot be read.
    """
    version = int(db.execute("PRAGMA user_version").fetchone()[0])
    application = int(db.execute("PRAGMA application_id").fetchone()[0])
    tables = int(db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0])
    if tables and application != APPLICATION_ID:
        raise JournalError(f"{path} is a database of something else", "name another [journal] path")
    if version > VERSION:
        raise JournalError(
            f"{path} was written by a newer schedd (schema {version}, this one knows {VERSION})",
            "install that version, or a newer one",
        )
    return version if tables else 0


def _finished(blob: bytes) -> list[EndOfTask]:
    """A row of finished tasks; none where it is damaged: old history keeps nobody from starting."""
    try:
        return decode_ends(blob)
    except JournalError:
        return []


def _ended(blob: bytes) -> list[int]:
    return [record.id for record in _finished(blob)]


def _add_functions(db: sqlite3.Connection) -> None:
    """What the migrations call. NULL for what cannot be read."""
    db.create_function("first_ended", 1, lambda blob: min(_ended(blob), default=None))
    db.create_function("last_ended", 1, lambda blob: max(_ended(blob), default=None))
    db.create_function("all_ended", 1, lambda blob: encode_ids(_ended(blob)))
    db.create_function("count_keyed", 1, lambda blob: count_keyed(_finished(blob)))


def prepare(db: sqlite3.Connection, path: str) -> None:
    """Bring a database to the newest version, creating it where it is empty. Raises as `version_of`."""
    version = version_of(db, path)
    _add_functions(db)
    if not version:
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    for step in range(version, VERSION):
        db.executescript(f"BEGIN IMMEDIATE; {MIGRATIONS[step]} PRAGMA user_version = {step + 1}; COMMIT;")
