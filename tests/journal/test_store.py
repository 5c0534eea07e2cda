"""The journal on disk: what was told to be committed is there, whatever becomes of the process or of the disk."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Self
from unittest.mock import Mock

import pytest

from schedd.core import effects as fx
from schedd.core.model import SECOND, Call, Command, TaskId, TaskSpec
from schedd.core.stats import Learned
from schedd.errors import JournalError
from schedd.journal import store
from schedd.journal.reader import FROM_THE_NEWEST, Reader
from schedd.journal.records import FinishedTask
from schedd.journal.store import (
    BYTES_PER_COMMIT_MAX,
    TASKS_PER_COMMIT_MAX,
    Journal,
    Live,
    Retention,
)

from .builders import (
    START,
    TIMEOUT_S,
    Running,
    admitted,
    changed,
    cleared,
    ended,
    entered,
    failed,
    finished,
    gone,
    held,
    kind_held,
    kind_released,
    quarantined,
    released,
    reopened,
    unfinished,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


# ------------------------------------------------------------------------------------------------------ write and load


def test_what_was_written_is_what_a_restart_finds(path: Path) -> None:
    with Running(path) as running:
        running.commit(entered("a"), entered("b"), admitted([1, 2, 3]))
        running.commit(admitted([4, 5]), held(2), changed(2, 7.0), failed(3))
        running.commit(ended(1), ended(4), gone("b"), finished=[finished(1, result=b"one"), finished(4)])
    live = reopened(path)
    assert unfinished(live) == [2, 3, 5]
    assert live.changes == [held(2), changed(2, 7.0), failed(3)]
    assert [worker.worker_id for worker in live.workers] == ["a"]
    assert [(task.id, task.result) for task in live.finished] == [(1, b""), (4, None)]
    assert live.next_id == 6


def test_each_start_has_a_number_of_its_own(path: Path) -> None:
    """On disk at once: one that is killed before it has written anything has given out what nobody recorded."""
    for number in (1, 2, 3):
        with closing(sqlite3.connect(path)) if number > 1 else nullcontext() as db:
            if db is not None:
                assert db.execute("SELECT value FROM meta WHERE key = 'epoch'").fetchone() == (b"%d" % (number - 1),)
        journal = Journal(path)
        assert journal.epoch == number
        journal.close()


def test_number_of_a_start_that_could_not_write_it_comes_with_the_first_commit(path: Path) -> None:
    refuses = Mock(side_effect=sqlite3.OperationalError("database or disk is full"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "_write_epoch", refuses)
        running = Running(path)
    with running:
        assert running.journal.epoch == 1
        running.commit(admitted([1]))
    journal = Journal(path)
    assert journal.epoch == 2
    journal.close()


def test_verdicts_that_stand_are_what_a_restart_finds(path: Path) -> None:
    with Running(path) as running:
        running.commit(quarantined("b"), quarantined("a"), kind_held("", "k"), kind_held("job", "k"), entered("a"))
        running.commit(quarantined("a", 2), kind_released("", "k"), gone("a"), kind_held("job", "k", 3))
        running.commit(cleared("b"), quarantined("b", 5))
    assert reopened(path).verdicts == [kind_held("job", "k", 3), quarantined("a", 2), quarantined("b", 5)]
    assert Reader(path).check()["facts"] == 11


def test_ids_are_not_given_again_when_nothing_is_left_of_them(path: Path) -> None:
    with Running(path, retention=Retention(size_bytes=1)) as running:
        running.commit(admitted([1, 2, 3]), ended(1), ended(2), ended(3))
        running.commit(now=START + 2 * SECOND)
    assert reopened(path).next_id == 4


def test_newest_finished_tasks_are_loaded_oldest_first(path: Path) -> None:
    with Running(path) as running:
        for number in range(1, 21, 2):
            running.commit(admitted([number, number + 1]), finished=[finished(number), finished(number + 1)])
    assert [task.id for task in reopened(path, 5).finished] == [16, 17, 18, 19, 20]
    assert reopened(path, 0).finished == []
    assert len(reopened(path, 100).finished) == 20


def test_commits_are_told_in_order_and_turns_are_written_together(path: Path) -> None:
    with Running(path) as running:
        turns = [running.append(admitted([number])) for number in range(1, 1001)]
        told: list[int] = []
        while not told or told[-1] < turns[-1]:
            told.append(running.committed.get(timeout=TIMEOUT_S))
        assert told == sorted(set(told))
        assert running.journal.commits == len(told) < len(turns)
    assert unfinished(reopened(path)) == list(range(1, 1001))


@pytest.mark.parametrize(
    ("others_can_wait", "first_can_wait", "commits"), [(True, True, 1), (False, True, 1), (True, False, 2)]
)
def test_turns_that_can_wait_are_written_with_those_that_come_meanwhile(
    path: Path, monkeypatch: pytest.MonkeyPatch, others_can_wait: bool, first_can_wait: bool, commits: int
) -> None:
    told: list[int] = []
    journal = Journal(path, "off", committed=told.append)
    journal.load()

    def meanwhile(*_: object) -> None:
        if len(appended) == 1:
            appended.append(2)
            journal.append(2, [held(2)], [], START, others_can_wait)

    appended = [1]
    monkeypatch.setattr("schedd.journal.store.time.sleep", meanwhile)
    journal.append(1, [held(1)], [], START, first_can_wait)
    journal.start()
    while not told:
        pass
    meanwhile()  # where nobody waited for it
    assert journal.close(TIMEOUT_S)
    assert (told, journal.commits) == ([2] if commits == 1 else [1, 2], commits)


def test_transaction_takes_a_bounded_number_of_turns(path: Path) -> None:
    journal_told: list[int] = []
    journal = Journal(path, "off", committed=journal_told.append)
    journal.load()
    for turn in range(1, 2 * TASKS_PER_COMMIT_MAX + 2):
        journal.append(turn, [held(turn)], [], START)
    journal.start()
    assert journal.close(TIMEOUT_S)
    assert journal_told == [TASKS_PER_COMMIT_MAX, 2 * TASKS_PER_COMMIT_MAX, 2 * TASKS_PER_COMMIT_MAX + 1]


FULL = bytes(BYTES_PER_COMMIT_MAX)


@pytest.mark.parametrize(
    ("facts", "ends"),
    [
        ([admitted([1], argument=FULL)], []),
        ([admitted([1], TaskSpec(Call(FULL)))], []),
        ([admitted([1], TaskSpec(Command(["cat"], stdin=FULL)))], []),
        ([], [finished(1, result=FULL)]),
        ([], [finished(1, state="failed", payload=Call(FULL))]),
        ([], [finished(1, key="k", argument=FULL, payload=Command(["cat"]))]),
    ],
)
def test_transaction_takes_a_bounded_number_of_bytes(
    path: Path, facts: list[fx.Fact], ends: list[FinishedTask]
) -> None:
    told: list[int] = []
    journal = Journal(path, "off", committed=told.append)
    journal.load()
    for turn, turn_facts, turn_ends in ((1, [held(1)], []), (2, facts, ends), (3, [held(1)], [])):
        journal.append(turn, list(turn_facts), turn_ends, START)
    journal.start()
    assert journal.close(TIMEOUT_S)
    assert told == [2, 3]


def test_turn_of_any_size_is_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite takes no row above a bound: what is more becomes several, and reads as if it were one."""
    monkeypatch.setattr(store, "BYTES_PER_ROW_MAX", 2_000_000)
    tasks = [admitted([i], argument=bytes(1_000_000)) for i in range(1, 13)]
    ends = [ended(i) for i in range(101, 113)]
    records = [finished(i, result=b"%d" % i * 300_000) for i in range(101, 113)]
    with Running(path) as running:
        running.journal._db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 7_000_000)
        running.commit(admitted(range(101, 113)), now=START - 1)
        running.commit(*tasks, *ends, held(2), finished=records)
        assert running.failures.empty()
        assert running.journal.commits == 2
    live, reader = reopened(path), Reader(path)
    assert unfinished(live) == list(range(1, 13))
    assert [record.id for record in live.finished] == list(range(101, 113))
    ids = [record.id for record in records]
    assert reader.find(ids)[0] == {record.id: record for record in records}
    assert reader.results([(i, START) for i in ids])[0] == {record.id: record.result for record in records}
    happened = list(reader.happened(FROM_THE_NEWEST, START))
    assert len(happened) > 6
    assert [fact for row in happened for fact in row.facts] == [*tasks, held(2)]
    assert [end.id for row in happened for end in row.finished] == ids
    with_ends = [bool(row.finished) for row in happened]
    assert with_ends == sorted(with_ends), "all facts come first"
    assert [record.id for _, record in reader.finished()] == ids[::-1]
    assert reader.check() == {"live": 12, "finished": 12, "facts": 14, "transactions": 1 + len(happened)}
    with closing(Journal(path)) as journal:
        assert journal.history_bytes == running.journal.history_bytes


def test_close_writes_what_is_left(path: Path) -> None:
    running = Running(path)
    for number in range(1, 101):
        running.append(admitted([number]))
    assert running.journal.close()
    assert unfinished(reopened(path)) == list(range(1, 101))


def test_close_of_what_was_never_started(path: Path) -> None:
    assert Journal(path).close()
    assert Journal(path).close()


def test_bug_in_the_writer_is_told(path: Path) -> None:
    running = Running(path)
    running.append(fx.TaskHeld(TaskId(1 << 64)))  # no number of MessagePack
    assert isinstance(running.crashes.get(timeout=TIMEOUT_S), OverflowError)
    assert not running.journal.close(TIMEOUT_S), "it is not on disk"


def test_second_daemon_is_refused(path: Path) -> None:
    with Running(path):
        for _ in range(2):
            with pytest.raises(JournalError) as refused:
                Journal(path)
            assert "in use by another daemon" in refused.value.message
            assert "SCHEDD_STATE_DIR" in refused.value.hint
    Journal(path).close()


# ------------------------------------------------------------------------------------------------------------- kill -9


class Writer:
    """`tests.journal.writer` in a process, perhaps under strace. A context manager."""

    def __init__(self, path: Path, turns: int, *wrapper: str) -> None:
        argv = [*wrapper, sys.executable, "-m", "tests.journal.writer", str(path), str(turns)]
        self.popen = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.popen.kill()
        self.popen.communicate()

    def next(self) -> int:
        """The next turn that it is told is on disk."""
        assert self.popen.stdout is not None
        return int(self.popen.stdout.readline())

    def rest(self) -> int:
        """The last turn that it was told is on disk, once the process has ended; 0 for none since `next`."""
        out, _ = self.popen.communicate(timeout=TIMEOUT_S)
        told = [int(line) for line in out.splitlines(keepends=True) if line.endswith(b"\n")]
        assert told == sorted(set(told))
        return told[-1] if told else 0


def check_prefix(path: Path, told: int) -> int:
    """What is on disk is all of the first so many turns, at least those that were told; returns how many."""
    live = reopened(path, finished_max=1_000_000)  # a writer may be far ahead of who reads what it tells
    turns = (live.next_id - 1) // 3
    assert turns >= told
    over = [3 * turn for turn in range(1, turns)]
    assert [task.id for task in live.finished] == over
    assert unfinished(live) == [i for i in range(1, 3 * turns + 1) if i not in over]
    changes = [fact for fact in live.changes if isinstance(fact, fx.TaskChanged)]
    assert [(fact.task_id, fact.priority) for fact in changes] == [(3 * t - 2, float(t)) for t in range(1, turns + 1)]
    Reader(path).check()
    return turns


def test_killed_at_any_moment(path: Path) -> None:
    dice = random.Random(7)
    for number in range(6):
        path = path.with_name(f"journal-{number}.db")
        with Writer(path, 1_000_000) as writer:
            told = max([writer.next() for _ in range(dice.randrange(1, 60))])
            writer.popen.kill()
            assert check_prefix(path, max(told, writer.rest())) > 0


def strace(path: Path, inject: str) -> list[str]:
    """Meddle with calls that concern the write-ahead log."""
    return ["strace", "-f", "-qq", "-o", "/dev/null", "-P", f"{path}-wal", "-e", f"inject={inject}"]


@pytest.mark.needs("strace")
@pytest.mark.parametrize("call", ["fdatasync", "pwrite64"])
def test_killed_inside_a_commit(path: Path, call: str) -> None:
    """At the nth write or sync of the write-ahead log, before and in the middle of transactions."""
    cut = 0
    for nth in (1, 2, 3, 5, 8, 14, 23):
        path = path.with_name(f"journal-{nth}.db")
        Journal(path).close()
        with Writer(path, 10_000, *strace(path, f"{call}:signal=KILL:when={nth}")) as writer:
            told = writer.rest()
        assert writer.popen.returncode != 0
        cut += check_prefix(path, told) > told
    assert call == "pwrite64" or cut  # the log had the transaction whole, nobody was told yet


@pytest.mark.needs("strace")
def test_sync_that_fails_is_tried_again(path: Path) -> None:
    """Nothing is told before a sync has succeeded."""
    Journal(path).close()
    with Writer(path, 20, *strace(path, "fdatasync:error=EIO:when=2..3")) as writer:
        while writer.next() < 20:
            pass
    assert check_prefix(path, 20) == 20


# ---------------------------------------------------------------------------------------------------------- full disk

SCRIPT = """
mount -t tmpfs -o size=192k none "$1" && exec "$2" -m tests.journal.full_disk "$1"
"""


@pytest.mark.needs("root", "unshare")
def test_full_disk(tmp_path: Path) -> None:
    """The writer says so, goes on by itself once there is room, and has lost nothing."""
    argv = ["unshare", "-m", "--propagation", "private", "sh", "-c", SCRIPT, "sh", str(tmp_path), sys.executable]
    ran = subprocess.run(argv, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.split("\n")[:-1] == ["failing: database or disk is full", "recovered", "complete"]


def test_failure_is_told_once_and_its_end(path: Path) -> None:
    """Another program holds the file: an error like any other."""
    with Running(path) as running:
        running.commit(admitted([1]))
        running.journal._db.execute("PRAGMA busy_timeout = 10")
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            turn = running.append(admitted([2]))
            assert running.failures.get(timeout=TIMEOUT_S) == "database is locked"
            assert running.committed.empty()
            other.execute("ROLLBACK")
        running.wait(turn)
        assert running.failures.get(timeout=TIMEOUT_S) == ""
        assert running.failures.empty()
    assert unfinished(reopened(path)) == [1, 2]


def test_close_does_not_wait_for_a_disk_that_refuses(path: Path) -> None:
    running = Running(path)
    running.commit(admitted([1]))
    running.journal._db.execute("PRAGMA busy_timeout = 10")
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        running.append(admitted([2]))
        running.failures.get(timeout=TIMEOUT_S)
        assert not running.journal.close(TIMEOUT_S), "a turn was given up"
    assert unfinished(reopened(path)) == [1]
    assert running.committed.empty()


# ---------------------------------------------------------------------------------------------------------- retention


def seqs(path: Path) -> list[int]:
    with closing(sqlite3.connect(path)) as db:
        return [row[0] for row in db.execute("SELECT seq FROM history ORDER BY seq")]


def test_old_history_goes(path: Path) -> None:
    with Running(path, retention=Retention(age_ns=100 * SECOND)) as running:
        for number in range(1, 8):
            at_ns = START + number * 30 * SECOND
            running.commit(admitted([number]), finished=[finished(number, at_ns)], now=at_ns)
    assert seqs(path) == [4, 5, 6, 7]
    live = reopened(path)
    assert unfinished(live) == list(range(1, 8)), "what is live does not age"
    assert [task.id for task in live.finished] == [4, 5, 6, 7]


def test_large_history_goes_and_its_room_with_it(path: Path) -> None:
    bound = 2_000_000
    with Running(path, retention=Retention(size_bytes=bound)) as running:
        for number in range(1, 101):
            at_ns = START + number * SECOND
            running.commit(admitted([number]), finished=[finished(number, at_ns, bytes(100_000))], now=at_ns)
    kept = seqs(path)
    assert kept == list(range(kept[0], 101))
    assert 15 <= len(kept) <= 21
    assert path.stat().st_size < 2 * bound
    with Running(path, retention=Retention(size_bytes=bound)) as running:  # counted anew at the start
        assert running.journal._history_bytes == pytest.approx(len(kept) * 100_000, rel=0.01)


def test_large_live_tasks_do_not_drive_out_the_history(path: Path) -> None:
    with Running(path, retention=Retention(size_bytes=100_000)) as running:
        running.commit(admitted([1], argument=bytes(1_000_000)))
        running.commit(admitted([2]), now=START + 2 * SECOND)
        for number in range(3, 10):
            at_ns = START + number * SECOND
            running.commit(admitted([number]), finished=[finished(number, at_ns)], now=at_ns)
    assert len(reopened(path).finished) == 7


def test_without_bounds_all_is_kept(path: Path) -> None:
    with Running(path) as running:
        for number in range(1, 6):
            running.commit(admitted([number]), now=START + number * 1_000_000 * SECOND)
    assert seqs(path) == [1, 2, 3, 4, 5]


def test_tasks_with_a_key_are_read_from_further_back(path: Path) -> None:
    with Running(path) as running:
        for first in range(1, 31, 3):
            ends = [finished(i, key=f"k{i}" if i % 5 == 0 else None) for i in range(first, first + 3)]
            running.commit(admitted(range(first, first + 3)), finished=ends)
    journal = Journal(path)
    live = Live()
    assert len(list(journal.loading(live, 4, 3))) > 1, "in steps"
    assert [task.id for task in live.finished] == [20, 25, 27, 28, 29, 30]
    journal.close()


def test_tasks_with_a_key_are_found_behind_any_number_without(path: Path) -> None:
    """What has ended since without a key is not read for them."""
    with Running(path) as running:
        running.commit(finished=[finished(1, key="k", result=b"r"), finished(2)])
        for number in range(3, 20):
            running.commit(finished=[finished(number)])
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE history SET finished = x'00' WHERE seq BETWEEN 2 AND 15")
        db.commit()
    journal = Journal(path)
    for keyed_max, expected in ((5, [1, 18, 19]), (0, [18, 19])):
        live = Live()
        list(journal.loading(live, 2, keyed_max))
        assert [task.id for task in live.finished] == expected
    journal.close()


# ------------------------------------------------------------------------------------------------- what was learned


def learned(total: int) -> list[Learned]:
    return [Learned("train", "w1", 1.5, 2.25, 1.0, 0.5, total), Learned("train", "w2", 0.0, 0.0, 0.0, 0.1, total)]


def test_what_was_learned(path: Path) -> None:
    with Running(path) as running:
        assert running.live.learned == {}
        running.journal.remember({"adaptive": learned(1), "runtimes": learned(7)})
        running.commit(admitted([1]))
        running.journal.remember({"adaptive": learned(2), "priority": []})
    live = reopened(path)
    assert live.learned == {"adaptive": learned(2), "runtimes": learned(7)}
    assert live.next_id == 2


def test_damage_to_what_was_learned_keeps_nobody_from_starting(path: Path) -> None:
    with Running(path) as running:
        running.journal.remember({"adaptive": learned(1), "runtimes": learned(7)})
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE meta SET value = x'0102' WHERE key = 'learned.adaptive'")
        db.commit()
    assert reopened(path).learned == {"runtimes": learned(7)}


# ------------------------------------------------------------------------------------------------------------- reader


def test_results(path: Path) -> None:
    with Running(path) as running:
        for first in range(1, 31, 3):
            at_ns = START + first
            ends = [finished(i, at_ns, b"r%d" % i if i % 2 else None) for i in range(first, first + 3)]
            running.commit(admitted(range(first, first + 3)), finished=ends, now=at_ns + 1)
        reader = Reader(path)
        wanted = [(TaskId(i), START + (i - 1) // 3 * 3 + 1) for i in range(1, 31)]
        assert reader.results(wanted) == ({TaskId(i): b"r%d" % i for i in range(1, 31, 2)}, 30)
        assert reader.results(wanted[::-1], bytes_max=3) == ({TaskId(29): b"r29"}, 2)
        assert reader.results([(TaskId(99), START)]) == ({}, 1)
        assert reader.results([(TaskId(1), START + 10_000)]) == ({}, 1)
        assert reader.results([]) == ({}, 0)


def test_result_though_the_clock_was_set_back(path: Path) -> None:
    with Running(path) as running:
        for number in range(1, 11):
            running.commit(admitted([number]), finished=[finished(number, START + number)], now=START + number)
    with Running(path) as running:
        running.commit(admitted([11]), finished=[finished(11, START + 4, b"r")], now=START + 9)
        assert Reader(path).results([(TaskId(11), START + 4)]) == ({TaskId(11): b"r"}, 1)


def test_find(path: Path) -> None:
    """By id alone, whatever else ended between the first and the last of a transaction."""
    with Running(path) as running:
        running.commit(finished=[finished(i, result=b"%d" % i) for i in (30, 1, 17)])
        running.commit(finished=[finished(i) for i in (5, 40)])
        for i in range(6, 12):
            running.commit(admitted([100 + i]), finished=[finished(i)])
        reader = Reader(path)
        ids = [TaskId(i) for i in (17, 40, 1, 2, 8, 99, 30)]
        found, looked = reader.find(ids)
        assert (sorted(found), looked) == ([1, 8, 17, 30, 40], 7)
        assert {task_id: task.id for task_id, task in found.items()} == {i: i for i in found}
        assert found[TaskId(17)].result == b"17"
        found, looked = reader.find(ids, bytes_max=2)
        assert (sorted(found), looked) == ([17], 1)
        assert reader.find([]) == ({}, 0)


def test_what_is_forgotten_is_not_found(path: Path) -> None:
    with Running(path, retention=Retention(age_ns=100 * SECOND)) as running:
        for number in (1, 2, 8):
            running.commit(finished=[finished(number)], now=START + number * 30 * SECOND)
        running.commit(admitted([9]), now=START + 241 * SECOND)
    assert list(Reader(path).find([TaskId(1), TaskId(2), TaskId(8)])[0]) == [8]
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT count(*) FROM ends").fetchone()[0] == 1


def test_changes_that_no_longer_count_do_not_pile_up(path: Path) -> None:
    for _ in range(2):
        with Running(path) as running:
            if not running.live.batches:
                running.commit(admitted([1]))
            for number in range(20):
                running.commit(changed(1, float(number)), held(1))
                running.commit(released(1))
    live = reopened(path)
    assert sorted(type(fact).__name__ for fact in live.changes) == ["TaskChanged", "TaskReleased"]
    assert [fact.priority for fact in live.changes if isinstance(fact, fx.TaskChanged)] == [19.0]


def pages(reader: Reader, size: int) -> Iterator[list[FinishedTask]]:
    """Ask for a page after the other, each time from where the last one ended."""
    cursor = FROM_THE_NEWEST
    while page := list(islice(reader.finished(cursor), size)):
        yield [task for _, task in page]
        cursor = page[-1][0]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_pages_of_finished_tasks(path: Path, size: int) -> None:
    """Many end at one instant; none is left out or comes twice, also where the history grows meanwhile."""
    with Running(path) as running:
        for first in range(1, 22, 5):
            running.append(finished=[finished(i, START) for i in range(first, first + 5)])
        running.commit()
        seen: list[int] = []
        for page in pages(Reader(path), size):
            if not seen:
                running.commit(finished=[finished(99, START + 1)])
            seen += [task.id for task in page]
        assert seen == list(range(25, 0, -1))


def test_backup_while_the_journal_is_written(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "copy.db"
    with Running(path) as running:
        for number in range(1, 501):
            running.append(admitted([number], argument=bytes(1000)))
        running.commit(ended(1), finished=[finished(1)])
        turn = running.append(admitted([501]))
        size = Reader(path).backup(target)
        running.wait(turn)
    assert size == target.stat().st_size > 500_000
    assert target.stat().st_mode & 0o777 == 0o600
    assert set(range(2, 501)) <= set(unfinished(reopened(target)))
    assert Reader(target).check()["live"] in (499, 500)


def test_backup_is_nobody_elses_whatever_lies_there(path: Path, tmp_path: Path) -> None:
    """Who made a file of the name of one that is being written could read the copy, or spoil it."""
    target = tmp_path / "copy.db"
    left = tmp_path / ".copy.db.partial"
    left.touch(0o644)
    with left.open("rb") as other, Running(path) as running:
        running.commit(admitted([1]))
        Reader(path).backup(target)
        assert other.read() == b""
    assert target.stat().st_mode & 0o777 == 0o600
    assert left.exists()


@pytest.mark.parametrize("name", ["journal.db", "no such folder/copy.db"])
def test_backup_that_cannot_be(path: Path, tmp_path: Path, name: str) -> None:
    with Running(path) as running:
        running.commit(admitted([1]))
        before = sorted(tmp_path.iterdir())
        with pytest.raises(JournalError):
            Reader(path).backup(tmp_path / name)
        assert sorted(tmp_path.iterdir()) == before


def test_check_counts(path: Path) -> None:
    with Running(path) as running:
        running.commit(admitted([1, 2, 3]), entered("a"))
        running.commit(ended(1), held(2), finished=[finished(1)])
        counts = {"live": 2, "finished": 1, "facts": 3, "transactions": 2}
        assert Reader(path).check() == counts
    assert Reader(path).check() == counts, "closed, without a log beside it"


def test_check_of_nothing(path: Path) -> None:
    with pytest.raises(JournalError, match="there is no"):
        Reader(path).check()
    path.touch()
    with pytest.raises(JournalError, match="is empty"):
        Reader(path).check()


# ----------------------------------------------------------------------------------------------------------- power cut

POWER_CUT = """
mount -o loop "$1/disk" "$1/mnt" && exec "$2" -m tests.journal.power_cut "$1"
"""


@contextmanager
def image(folder: Path) -> Iterator[None]:
    disk = folder / "disk"
    with disk.open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(disk)], check=True)
    (folder / "mnt").mkdir()
    yield


@pytest.mark.needs("root", "unshare", "mkfs.ext4", "loop")
def test_power_cut(tmp_path: Path) -> None:
    """The file system is shut down without a flush under a writer; all that it had told is there."""
    with image(tmp_path):
        argv = ["unshare", "-m", "--propagation", "private", "sh", "-c", POWER_CUT, "sh", str(tmp_path), sys.executable]
        ran = subprocess.run(argv, capture_output=True, text=True, timeout=100, cwd=ROOT)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.split()[0] == "complete"
