"""The history of a journal from its beginning on, for whoever runs it again. Reads beside the daemon that writes."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from msgspec import Struct

from schedd.core import effects as fx
from schedd.core.model import Instant
from schedd.errors import JournalError
from schedd.journal.files import SALVAGE, read_only
from schedd.journal.records import AnyFact, FinishedTask, decode_fact, decode_facts, decode_finished
from schedd.journal.schema import VERSION, version_of


class Page(Struct, frozen=True):
    """A row of the history: facts in their order, and tasks that ended. at_ns: of the last turn of its transaction."""

    at_ns: Instant
    facts: list[AnyFact]
    finished: list[FinishedTask]


def read_pages(path: Path) -> Iterator[Page]:
    """Yield all of the history, the oldest first, as of now: what is written meanwhile is left out.

    The last page has the workers that the daemon knows now, as they came: what was written then may be forgotten. One
    page at a time is in memory. Raises JournalError.
    """
    if not path.exists():
        raise JournalError(f"there is no journal {path}", "name the file, or set SCHEDD_STATE_DIR as the daemon has it")
    try:
        with closing(read_only(path)) as db:
            db.execute("BEGIN")  # one state of the file for all that is read
            if version_of(db, str(path)) != VERSION:
                raise JournalError(
                    f"{path} is empty, or was written by an older schedd",
                    "start the daemon with it once, which brings it to the newest version",
                )
            at_ns = 0
            for at_ns, facts, finished in db.execute("SELECT at_ns, facts, finished FROM history ORDER BY seq"):
                yield Page(at_ns, decode_facts(facts), decode_finished(finished))
            yield Page(at_ns, _workers(db), [])
    except sqlite3.Error as error:
        raise JournalError(f"{path}: {error}", "is it a journal? see `schedd journal check`") from error
    except JournalError as error:
        raise JournalError(error.message, error.hint or SALVAGE) from error


def _workers(db: sqlite3.Connection) -> list[AnyFact]:
    rows = [decode_fact(blob) for (blob,) in db.execute("SELECT blob FROM workers ORDER BY worker_id")]
    return [*sorted((fact for fact in rows if isinstance(fact, fx.WorkerEntered)), key=lambda fact: fact.at_ns)]
