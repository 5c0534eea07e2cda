"""The file: new, old, newer, something else, damaged; and the way from each version to the next."""

from __future__ import annotations

import os
import sqlite3
import stat
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from schedd.core import effects as fx
from schedd.core.model import TaskId
from schedd.errors import JournalError
from schedd.journal import schema
from schedd.journal.files import open_database
from schedd.journal.reader import Reader
from schedd.journal.records import encode_facts, encode_finished, ends_row
from schedd.journal.salvage import salvage
from schedd.journal.store import Journal, Live

from .builders import START, Running, admitted, ended, finished, held, kind_held, quarantined, reopened, unfinished

#: Nothing in it may ever change: each version that was given out gets a file like this.
VERSION_1 = Path(__file__).parent / "version-1.sql"


def query(path: Path, sql: str) -> object:
    with closing(sqlite3.connect(path)) as db:
        return db.execute(sql).fetchone()[0]


def filled(path: Path, batches: int = 40) -> Path:
    """A journal that was closed in order, with `batches` unfinished tasks and as many that have ended."""
    with Running(path) as running:
        running.commit(quarantined("w1"), kind_held("job", "k"))
        for number in range(batches):
            ids = (2 * number + 1, 2 * number + 2)
            running.commit(
                admitted(ids, argument=b"a" * 300), ended(ids[0]), finished=[finished(ids[0], result=b"r" * 300)]
            )
    return path


def refusal(path: Path) -> JournalError:
    """Why a daemon would not start with this file."""
    with pytest.raises(JournalError) as refused:
        reopened(path)
    return refused.value


@contextmanager
def as_user(uid: int) -> Iterator[None]:
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)


# ---------------------------------------------------------------------------------------------------------------- new


def test_new_file(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "journal.db"
    live = reopened(path)
    assert (live.batches, live.changes, live.workers, live.finished, live.next_id) == ([], [], [], [], 1)
    assert query(path, "PRAGMA application_id") == schema.APPLICATION_ID
    assert query(path, "PRAGMA user_version") == schema.VERSION
    assert query(path, "PRAGMA auto_vacuum") == 2
    assert query(path, "PRAGMA journal_mode") == "wal"


def test_nobody_else_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "journal.db"
    with Running(path) as running:
        running.commit(admitted([1]))
        for name in ("journal.db", "journal.db-wal", "journal.db-shm", "journal.db.lock"):
            assert stat.S_IMODE((path.parent / name).stat().st_mode) == 0o600, name
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("step", ["application_id", "table"])
def test_creation_that_was_cut_off_is_taken_up_again(tmp_path: Path, step: str) -> None:
    path = tmp_path / "journal.db"
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        db.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
        if step == "table":
            db.execute("BEGIN")
            db.execute("CREATE TABLE meta (x)")  # never committed
    assert reopened(path).next_id == 1


@pytest.mark.parametrize("durability", ["full", "normal", "off"])
def test_durability_is_that_of_sqlite(tmp_path: Path, durability: str) -> None:
    with closing(open_database(str(tmp_path / "journal.db"), durability)) as db:  # type: ignore[arg-type]
        number = {"off": 0, "normal": 1, "full": 2}[durability]
        assert db.execute("PRAGMA synchronous").fetchone()[0] == number


# ------------------------------------------------------------------------------------------------------------ refused


def test_newer_version_is_refused(tmp_path: Path) -> None:
    path = filled(tmp_path / "journal.db")
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 99")
    refused = refusal(path)
    assert "newer schedd (schema 99" in refused.message
    assert "install" in refused.hint
    with pytest.raises(JournalError, match="newer schedd"):
        Reader(path).check()


def test_database_of_something_else_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE theirs (x)")
    before = path.read_bytes()
    assert "database of something else" in refusal(path).message
    assert path.read_bytes() == before


def test_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    path.write_text("[server]\nlisten = '127.0.0.1:7077'\n" * 100)
    refused = refusal(path)
    assert "not a database" in refused.message
    assert "journal salvage" in refused.hint


def test_folder_in_place_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    path.mkdir()
    assert "directory" in refusal(path).message.lower()


def test_lock_is_given_back_by_a_journal_that_could_not_be_opened(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    path.write_bytes(b"x" * 5000)
    for _ in range(2):
        assert "in use" not in refusal(path).message


# ------------------------------------------------------------------------------------------------------------- damage


def test_damaged_header(tmp_path: Path) -> None:
    path = filled(tmp_path / "journal.db")
    data = bytearray(path.read_bytes())
    data[:16] = bytes(16)
    path.write_bytes(data)
    refused = refusal(path)
    assert str(path) in refused.message
    assert "journal salvage" in refused.hint


@pytest.mark.parametrize("part", [0.3, 0.6, 0.95])
def test_truncated_file(tmp_path: Path, part: float) -> None:
    path = filled(tmp_path / "journal.db")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    refused = refusal(path)
    assert "malformed" in refused.message
    assert "journal salvage" in refused.hint
    with pytest.raises(JournalError):
        Reader(path).check()


def test_flipped_byte_of_a_live_task_is_noticed(tmp_path: Path) -> None:
    """SQLite does not notice it: the page is well formed."""
    path = filled(tmp_path / "journal.db")
    with closing(sqlite3.connect(path)) as db:
        blob = bytearray(db.execute("SELECT blob FROM batches WHERE first_id = 21").fetchone()[0])
        blob[-5] ^= 1
        db.execute("UPDATE batches SET blob = ? WHERE first_id = 21", (bytes(blob),))
        db.commit()
    refused = refusal(path)
    assert "a live row is damaged" in refused.message
    assert "journal salvage" in refused.hint
    with pytest.raises(JournalError, match="damaged"):
        Reader(path).check()


def test_any_page_that_is_overwritten_is_found(tmp_path: Path) -> None:
    """By the start where it matters for that, by the check wherever it is."""
    original = filled(tmp_path / "journal.db")
    data = original.read_bytes()
    size = 4096
    unnoticed = 0
    for page in range(len(data) // size):
        path = tmp_path / f"page-{page}.db"
        damaged = bytearray(data)
        damaged[page * size : (page + 1) * size] = bytes([0xA5]) * size
        path.write_bytes(damaged)
        with pytest.raises(JournalError):
            Reader(path).check()
        try:
            live = reopened(path)
        except JournalError:
            continue
        unnoticed += 1
        assert unfinished(live) == list(range(2, 81, 2)), "only the history may be damaged"
    assert unnoticed < len(data) // size / 2


def test_salvage_of_every_damaged_page(tmp_path: Path) -> None:
    """Whichever page is lost, no task that had ended is live again, and nothing is lost but what that page had."""
    original = filled(tmp_path / "journal.db")
    data = original.read_bytes()
    size, salvaged_all = 4096, 0
    for page in range(1, len(data) // size):
        path, new = tmp_path / f"page-{page}.db", tmp_path / f"new-{page}.db"
        damaged = bytearray(data)
        damaged[page * size : (page + 1) * size] = bytes([0xA5]) * size
        path.write_bytes(damaged)
        found = salvage(path, new)
        counts = Reader(new).check()
        live = reopened(new)
        assert live.next_id == 81, page
        assert counts["live"] == found.live == len(unfinished(live))
        assert not set(unfinished(live)) & set(range(1, 80, 2)), page
        salvaged_all += found.live == 40
        assert found.live + found.finished >= 40, page
    assert salvaged_all >= len(data) // size - 2


def readable(path: Path, sql: str, ids: range) -> list[int]:
    """Which of these rows can be read one by one."""
    found = []
    with closing(sqlite3.connect(path)) as db:
        for i in ids:
            with suppress(sqlite3.Error):
                found += [i for _ in db.execute(sql, (i,))]
    return found


def test_salvage_takes_each_row_that_can_be_read(tmp_path: Path) -> None:
    """A page has some sixty rows: no more are lost than were on it, neither before it nor behind."""
    original, ids = tmp_path / "journal.db", range(1, 1001)
    with Running(original) as running:
        running.commit(admitted(ids), *(held(i) for i in ids))
    data = original.read_bytes()
    size, short = 4096, 0
    for page in range(1, len(data) // size):
        path, new = tmp_path / f"page-{page}.db", tmp_path / f"new-{page}.db"
        path.write_bytes(data[: page * size] + bytes([0xA5]) * size + data[(page + 1) * size :])
        salvage(path, new)
        whole = readable(path, "SELECT blob FROM changes WHERE rowid = ?", ids)
        assert [change.task_id for change in reopened(new).changes if isinstance(change, fx.TaskHeld)] == whole, page
        short += 0 < len(whole) < len(ids)
    assert short > 3


@pytest.mark.parametrize("part", [0.5, 0.9])
def test_salvage_of_a_file_that_lost_its_end(tmp_path: Path, part: float) -> None:
    path, new = filled(tmp_path / "journal.db"), tmp_path / "new.db"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    found = salvage(path, new)
    assert found.damages > 0
    assert found.live > 0
    assert reopened(new).next_id == 81


def test_salvage_of_what_is_whole_is_a_copy(tmp_path: Path) -> None:
    path, new = filled(tmp_path / "journal.db"), tmp_path / "new.db"
    found = salvage(path, new)
    assert (found.live, found.finished, found.damages) == (40, 40, 0)
    assert Reader(new).check() == Reader(path).check()
    assert reopened(new) == reopened(path)
    assert reopened(new).verdicts == [kind_held("job", "k"), quarantined("w1")]
    with closing(Journal(new)) as journal:
        assert journal.epoch > 1, "what an earlier start gave out is not of this one"


def test_salvage_of_a_file_of_version_1(tmp_path: Path) -> None:
    path, new = tmp_path / "journal.db", tmp_path / "new.db"
    with closing(sqlite3.connect(path)) as db:
        db.executescript(VERSION_1.read_text())
    found = salvage(path, new)
    assert (found.live, found.damages) == (3, 0)
    assert reopened(new).verdicts == []


def test_salvage_of_what_cannot_be(tmp_path: Path) -> None:
    path, new = filled(tmp_path / "journal.db"), tmp_path / "new.db"
    with pytest.raises(JournalError, match="exists"):
        salvage(path, path)
    with pytest.raises(JournalError, match="there is no"):
        salvage(tmp_path / "nothing", new)
    path.write_bytes(b"x" * 10_000)
    with pytest.raises(JournalError) as refused:
        salvage(path, new)
    assert ".recover" in refused.value.hint
    assert not new.exists()


@pytest.mark.needs("root")
@pytest.mark.parametrize("name", ["journal.db", "journal.db.lock"])
def test_file_that_root_has_left_there(name: str) -> None:
    """As after a backup that was put back, where the daemon is a service with a user of its own."""
    with tempfile.TemporaryDirectory() as folder:  # others may not look into the folders of pytest
        os.chown(folder, 12345, -1)
        path = filled(Path(folder) / "journal.db")
        for file in Path(folder).iterdir():
            os.chown(file, 0 if file.name == name else 12345, -1)
        with as_user(12345):
            refused = refusal(path)
        assert refused.message == f"{folder}/{name}: Permission denied"
        assert refused.hint.startswith("it belongs to user 0, and this is user 12345: chown 12345:")
        (Path(folder) / name).chmod(0o000)
        os.chown(Path(folder) / name, 12345, -1)
        with as_user(12345):
            assert refusal(path).hint == "its owner must be allowed to read and write it"
        (Path(folder) / name).unlink()
        Path(folder).chmod(0o555)
        with as_user(12345):
            assert refusal(path).hint == "the folder must exist and be writable"


# --------------------------------------------------------------------------------------------------------- migrations


def test_file_of_version_1(tmp_path: Path) -> None:
    """A journal as the first version left it can be started from for ever."""
    path = tmp_path / "journal.db"
    with closing(sqlite3.connect(path)) as db:
        db.executescript(VERSION_1.read_text())
        assert db.execute("PRAGMA user_version").fetchone()[0] == 1
    live = reopened(path)
    assert unfinished(live) == [2, 3, 5]
    assert [type(fact).__name__ for fact in live.changes] == ["TaskHeld", "TaskChanged", "AttemptEnded", "CancelAsked"]
    assert [worker.worker_id for worker in live.workers] == ["w1"]
    assert [(task.id, task.state) for task in live.finished] == [(1, "succeeded"), (4, "failed")]
    assert live.next_id == 6
    assert live.verdicts == []
    assert query(path, "PRAGMA user_version") == schema.VERSION
    assert Reader(path).results([(live.finished[0].id, live.finished[0].at_ns)]) == ({1: b"result"}, 1)
    found, looked = Reader(path).find([TaskId(4), TaskId(2), TaskId(1)])
    assert ({task_id: task.result for task_id, task in found.items()}, looked) == ({1: b"result", 4: None}, 3)
    assert Reader(path).check()["live"] == 3


def test_damaged_history_of_version_1_keeps_nobody_from_starting(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    with closing(sqlite3.connect(path)) as db:
        db.executescript(VERSION_1.read_text())
        db.execute("UPDATE history SET finished = X'00000000' WHERE finished_count > 0")
        db.commit()
    with closing(open_database(str(path))):
        pass
    assert query(path, "PRAGMA user_version") == schema.VERSION


def test_ends_with_a_key_of_version_4_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal.db"
    with monkeypatch.context() as patch:
        patch.setattr(schema, "VERSION", 4)
        with closing(open_database(str(path))) as db:
            for number, key in ((1, "k"), (2, None), (3, "l"), (4, None)):
                record = finished(number, key=key)
                row = (START, 1, 1, encode_finished([record]), encode_facts([]))
                db.execute("INSERT INTO history VALUES (?, ?, ?, ?, ?, ?)", (number, *row))
                db.execute("INSERT INTO ends VALUES (?, ?, ?, ?)", (number, *ends_row([record])[:3]))
            db.execute("UPDATE history SET finished = x'00' WHERE seq = 3")
    with closing(Journal(path)) as journal:
        live = Live()
        list(journal.loading(live, 1, 5))
    assert [task.id for task in live.finished] == [1, 4], "old history that is damaged keeps nobody from starting"


def test_migrations_are_taken_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = filled(tmp_path / "journal.db")
    steps = (*schema.MIGRATIONS, "CREATE TABLE second (x);", "ALTER TABLE second ADD COLUMN y;")
    monkeypatch.setattr(schema, "MIGRATIONS", steps)
    monkeypatch.setattr(schema, "VERSION", len(steps))
    assert len(unfinished(reopened(path))) == 40
    assert query(path, "PRAGMA user_version") == len(steps)
    assert query(path, "SELECT count(y) FROM second") == 0


def test_migration_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = filled(tmp_path / "journal.db")
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, "CREATE TABLE second (x); INSERT INTO nothing;"))
    monkeypatch.setattr(schema, "VERSION", len(schema.MIGRATIONS))
    with pytest.raises(JournalError):
        Journal(path)
    assert query(path, "PRAGMA user_version") == len(schema.MIGRATIONS) - 1
    assert query(path, "SELECT count(*) FROM sqlite_schema WHERE name = 'second'") == 0
