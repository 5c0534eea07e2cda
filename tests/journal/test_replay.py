"""Reading a history from its beginning, beside its writer."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from schedd.core import effects as fx
from schedd.core.model import TaskId
from schedd.errors import JournalError
from schedd.journal.replay import read_pages

from .builders import START, Running, admitted, ended, entered, finished, gone


def test_pages_come_in_order_and_workers_last(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    with Running(path) as running:
        running.commit(entered("w1"), entered("w2"))
        running.commit(admitted([1, 2]), now=START + 1)
        running.commit(ended(1), gone("w1"), finished=[finished(1)], now=START + 2)
        pages = read_pages(path)
        first = next(pages)
        running.commit(ended(2), finished=[finished(2)], now=START + 3)  # too late for this reader
        rest = list(pages)
    assert first.facts == [entered("w1"), entered("w2")]
    assert [page.at_ns for page in rest] == [START + 1, START + 2, START + 2]
    assert [record.id for page in rest for record in page.finished] == [TaskId(1)]
    assert isinstance(rest[0].facts[0], fx.TasksAdmitted)
    assert rest[-1].facts == [entered("w2")]
    assert [record.id for page in read_pages(path) for record in page.finished] == [1, 2]


def test_what_is_no_journal_is_said(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="there is no journal"):
        next(read_pages(tmp_path / "nowhere.db"))
    assert not (tmp_path / "nowhere.db").exists()
    (tmp_path / "text.db").write_text("not a database, whatever its name says")
    with pytest.raises(JournalError, match="not a database") as raised:
        next(read_pages(tmp_path / "text.db"))
    assert "schedd journal check" in raised.value.hint
    with closing(sqlite3.connect(tmp_path / "empty.db")) as db:
        db.execute("VACUUM")
    with pytest.raises(JournalError, match="is empty, or was written by an older schedd"):
        next(read_pages(tmp_path / "empty.db"))


def test_damage_is_said(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    with Running(path) as running:
        running.commit(admitted([1]))
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE history SET facts = x'00112233445566'")
        db.commit()
    with pytest.raises(JournalError, match="is damaged") as raised:
        list(read_pages(path))
    assert "salvage" in raised.value.hint
