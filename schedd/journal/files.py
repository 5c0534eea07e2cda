"""The file of a journal: opened to be written or read, kept from others, and what is wrong with it."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from pathlib import Path
from typing import Literal

from schedd.errors import JournalError
from schedd.journal.schema import prepare

Durability = Literal["full", "normal", "off"]

#: Pages of the write-ahead log after which it is folded back into the file.
CHECKPOINT_PAGES = 4000

SALVAGE = (
    "keep the file; `schedd journal salvage FILE NEW` writes what can be read of it to a new one, which you put in its "
    "place, together with no -wal and no -shm file of the old one"
)
CANNOT_SALVAGE = (
    "try `sqlite3 FILE .recover`, where your sqlite3 has it, or take a backup; or start with another [journal] path"
)


def unreadable(path: Path | str, error: sqlite3.Error) -> JournalError:
    """What went wrong with a file, and what to do about it."""
    name = getattr(error, "sqlite_errorname", "")
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        hint = SALVAGE
    elif name.startswith(("SQLITE_FULL", "SQLITE_IOERR")):
        hint = "is its disk full, or broken?"
    elif name.startswith("SQLITE_BUSY"):
        hint = "is another program using it?"
    else:
        hint = "its folder must exist, and both must be writable for this user"
    return JournalError(f"{path}: {error}", hint)


def _why_not_opened(error: OSError) -> str:
    """What to do about a file that cannot be opened. One that is there was mostly put there by root."""
    if not isinstance(error, PermissionError) or not os.access(error.filename, os.F_OK, effective_ids=True):
        return "the folder must exist and be writable"
    owner, user = os.stat(error.filename).st_uid, os.geteuid()  # noqa: PTH116
    if owner == user:
        return "its owner must be allowed to read and write it"
    return f"it belongs to user {owner}, and this is user {user}: chown {user}:{os.getegid()} {error.filename}"


def make_private(path: Path) -> None:
    """Make an empty file that only its owner may read: environments of commands have secrets. An old one stays."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))


def open_database(path: str, durability: Durability = "full") -> sqlite3.Connection:
    """Open and prepare a journal. Raises JournalError, with what to do about it."""
    try:
        make_private(Path(path))
        db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5)
    except OSError as error:
        raise JournalError(f"{path}: {error.strerror}", _why_not_opened(error)) from error
    except sqlite3.Error as error:
        raise unreadable(path, error) from error
    try:
        prepare(db, path)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute(f"PRAGMA synchronous = {durability.upper()}")
        db.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
    except sqlite3.Error as error:
        db.close()
        raise unreadable(path, error) from error
    except JournalError:
        db.close()
        raise
    return db


def read_only(path: Path) -> sqlite3.Connection:
    """Open a journal beside its writer, to read."""
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None, timeout=5)


def lock(path: Path) -> int:
    """Keep every other daemon away from the file. Raises JournalError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise JournalError(f"{error.filename}: {error.strerror}", _why_not_opened(error)) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        hint = "stop it, or give this one another [journal] path or SCHEDD_STATE_DIR"
        raise JournalError(f"{path} is in use by another daemon", hint) from error
    return lock
