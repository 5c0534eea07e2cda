"""Submits that may come twice: what is on disk of them, and for how long."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import pytest
from msgspec import structs

from schedd.core import effects as fx
from schedd.core.model import TaskId
from schedd.core.submits import Admitted, admitted
from schedd.errors import JournalError
from schedd.journal import store
from schedd.journal.reader import Reader
from schedd.journal.records import decode_submit, encode_submit
from schedd.journal.salvage import salvage

from . import builders
from .builders import START, Running, ended, finished, reopened


def submit(client: str, number: int, ids: Iterable[int], *, answered: int = 1, all_ids: Iterable[int] = ()) -> fx.Fact:
    fact = builders.admitted(ids)
    whole = [TaskId(i) for i in all_ids]
    return structs.replace(fact, client=client, number=number, answered=answered, all_ids=whole)


def known(path: Path) -> list[tuple[str, int, list[int]]]:
    return [(one.client, one.number, list(one.ids)) for one in reopened(path).submits]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


@pytest.mark.parametrize(("ids", "all_ids"), [((5, 6, 7), ()), ((5,), ()), ((5, 6), (5, 3, 6)), ((8,), (2, 8))])
def test_row_says_what_was_admitted(ids: tuple[int, ...], all_ids: tuple[int, ...]) -> None:
    fact = submit("c", 9, ids, all_ids=all_ids)
    assert isinstance(fact, fx.TasksAdmitted)
    row = decode_submit(encode_submit(fact))
    assert row == admitted(fact) == Admitted("c", 9, START, row.ids)
    assert list(row.ids) == list(all_ids or ids)


def test_damaged_row() -> None:
    fact = submit("c", 9, (5, 6))
    assert isinstance(fact, fx.TasksAdmitted)
    with pytest.raises(JournalError, match="a row of submits is damaged"):
        decode_submit(encode_submit(fact)[:-1])


def test_submit_is_known_after_its_tasks_have_ended(path: Path) -> None:
    with Running(path) as running:
        running.commit(submit("c", 1, (1, 2)))
        running.commit(builders.admitted((3,)))
        running.commit(ended(1), ended(2), finished=[finished(1), finished(2)])
    assert reopened(path).batches[0].ids == [3]
    assert known(path) == [("c", 1, [1, 2])]


def test_what_its_client_has_heard_of_goes(path: Path) -> None:
    with Running(path) as running:
        running.commit(submit("c", 1, (1,)), submit("d", 1, (2,)))
        running.commit(submit("c", 2, (3,), answered=2))
        assert known_now(running) == [("c", 2), ("d", 1)]
        running.commit(submit("c", 3, (4,), answered=2), submit("c", 4, (5,), answered=4), submit("d", 2, (6,)))
    assert known(path) == [("d", 1, [2]), ("c", 4, [5]), ("d", 2, [6])]


def known_now(running: Running) -> list[tuple[str, int]]:
    with closing(sqlite3.connect(running.journal.path)) as db:
        return db.execute("SELECT client, number FROM submits ORDER BY client, number").fetchall()


def test_oldest_of_clients_that_are_gone_go(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "SUBMITS_MAX", 10)
    with Running(path) as running:
        for number in range(1, 41):
            running.commit(submit(f"c{number}", 1, (number,)), now=number * 10**10)
        assert len(known_now(running)) < 20
    assert [ids for _, _, ids in known(path)] == [[number] for number in range(31, 41)]


def test_disk_that_refuses_keeps_nobody_from_starting_with_too_many(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Running(path) as running:
        running.commit(*(submit(f"c{number}", 1, (number,)) for number in range(1, 13)))
    monkeypatch.setattr(store, "SUBMITS_MAX", 10)
    with closing(store.Journal(path)) as journal:
        journal._db.execute("PRAGMA query_only = ON")
        assert len(journal.load().submits) == 12
    assert len(known(path)) == 10


def test_salvage_and_check(path: Path, tmp_path: Path) -> None:
    with Running(path) as running:
        running.commit(submit("c", 1, (1, 2)))
    salvage(path, tmp_path / "new.db")
    assert known(tmp_path / "new.db") == [("c", 1, [1, 2])]
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE submits SET blob = x'00'")
        db.commit()
    with pytest.raises(JournalError):
        Reader(path).check()
