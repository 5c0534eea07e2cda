"""Masses of history that are forgotten: in small steps, also where nothing else happens, and the file shrinks."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from helpers import wait_until

from schedd.core.model import SECOND
from schedd.journal.store import FREE_PAGES_KEPT, Retention

from .builders import START, Running, finished


def number_of(path: Path, sql: str) -> int:
    with closing(sqlite3.connect(path)) as db:
        return int(db.execute(sql).fetchone()[0])


def test_room_is_given_back_without_further_work(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    with Running(path) as running:
        for number in range(1, 61):
            running.commit(finished=[finished(number, START + number, bytes(1_000_000))], now=START + number)
    before = path.stat().st_size
    assert before > 60_000_000
    with Running(path, retention=Retention(size_bytes=5_000_000)):
        wait_until(lambda: number_of(path, "SELECT count(*) FROM history") <= 5, what="what is too much is forgotten")
        wait_until(lambda: number_of(path, "PRAGMA freelist_count") <= FREE_PAGES_KEPT, what="room is given back")
    assert path.stat().st_size < before / 3


def test_busy_writer_forgets_too(tmp_path: Path) -> None:
    """It has always something to write: the bound holds all the same."""
    path = tmp_path / "journal.db"
    bound = 20_000_000
    with Running(path, retention=Retention(size_bytes=bound)) as running:
        for number in range(1, 1001):
            running.append(finished=[finished(number, START + number, bytes(50_000))], now=START + number)
        running.commit()
        wait_until(lambda: number_of(path, "SELECT sum(size_bytes) FROM history") <= bound, what="the bound holds")
    assert path.stat().st_size < 2 * bound, "room that was given up was used again"


def test_history_grows_old_while_nothing_happens(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    with Running(path, retention=Retention(age_ns=SECOND // 2)) as running:
        running.commit(finished=[finished(1)])
        wait_until(lambda: number_of(path, "SELECT count(*) FROM history") == 0, what="it is forgotten")
        assert number_of(path, "SELECT count(*) FROM ends") == 0
