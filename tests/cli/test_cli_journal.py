"""Commands of the journal: history, backup, retry, and `journal` itself."""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from schedd.cli.exits import Exit
from schedd.core import effects as fx
from schedd.core.model import AttemptRecord, Call, Cause, Command, TaskEntry, TaskId, TaskRules, TaskSpec, WorkerId
from schedd.journal.reader import Reader
from schedd.journal.store import Journal
from schedd.wire import messages as wire

from .conftest import Run
from .fake_daemon import FakeDaemon, detail, view


def record(attempt: int, cause: Cause, message: str = "") -> AttemptRecord:
    return AttemptRecord(attempt, WorkerId("w1"), 10**12, 10**12, 10**12 + 4 * 10**9, cause, message=message)


# ------------------------------------------------------------------------------------------------------------ history


@pytest.fixture
def ended(daemon: FakeDaemon) -> FakeDaemon:
    ok, error = record(1, Cause.OK), record(1, Cause.ERROR, "exit code 3\nmore")
    daemon.add(view(1, "succeeded", job="a", started_at=1000.0, finished_at=1004.0, worker="w1"), detail(attempts=[ok]))
    daemon.add(
        view(2, "failed", job="b", finished_at=1010.0, message="exit code 3"),
        detail(attempts=[error, record(2, Cause.LOST)]),
    )
    daemon.add(view(3, "running"))
    return daemon


@pytest.mark.usefixtures("ended")
class TestHistory:
    def test_table(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COLUMNS", "200")
        head, first, second = run("history").out.splitlines()
        assert head.split() == ["id", "job", "kind", "state", "worker", "ended", "time", "about"]
        assert first.split()[:4] == ["1", "a", "python", "succeeded"]
        assert "4.0s" in first
        assert "failed (error)" in second
        assert second.endswith("exit code 3")

    def test_attempts(self, run: Run) -> None:
        head, *rows = run("history", "--attempts").out.splitlines()
        assert head.split() == ["id", "attempt", "job", "kind", "cause", "worker", "ended", "time", "about"]
        assert [row.split()[:5] for row in rows] == [
            ["1", "1", "a", "python", "ok"],
            ["2", "1", "b", "python", "error"],
            ["2", "2", "b", "python", "lost"],
        ]
        assert rows[1].endswith("exit code 3")

    def test_json(self, run: Run) -> None:
        rows = run("history", "--json").json()
        assert [row["id"] for row in rows] == [1, 2]
        assert [attempt["cause"] for attempt in rows[1]["attempts"]] == ["error", "lost"]
        rows = run("history", "--json", "--attempts").json()
        assert [(row["id"], row["job"], row["attempt"], row["cause"]) for row in rows] == [
            (1, "a", 1, "ok"),
            (2, "b", 1, "error"),
            (2, "b", 2, "lost"),
        ]

    def test_quiet(self, run: Run) -> None:
        assert run("history", "-q").out == "1\n2\n"

    def test_limit_says_that_there_is_more(self, run: Run) -> None:
        ran = run("history", "--limit", "1")
        assert len(ran.out.splitlines()) == 2
        assert ran.err == "only the newest 1 are shown; --limit 0 shows all\n"
        assert run("history", "--limit", "0", "-q").out == "1\n2\n"

    def test_what_is_asked_of_the_daemon(self, run: Run, daemon: FakeDaemon) -> None:
        before = time.time()
        run("history", "--job", "j", "--kind", "k", "--state", "failed", "--since", "2h")
        asked = daemon.last(wire.ListHistory)
        assert (asked.job, asked.kind, asked.states) == ("j", "k", ["failed"])
        assert asked.since_ns == pytest.approx((before - 7200) * 1e9, abs=60e9)
        run("history", "--since", "2026-11-24T10:00:00+00:00")
        assert daemon.last(wire.ListHistory).since_ns == 1795514400 * 10**9


def test_history_of_many_pages(daemon: FakeDaemon, run: Run) -> None:
    for number in range(1, 2502):
        daemon.add(view(number, "succeeded", finished_at=1001.0))
    assert run("history", "-q").out.splitlines() == [str(number) for number in range(1, 2502)]
    assert len(run("history", "--json", "--limit", "1500").json()) == 1500
    ran = run("history")
    assert len(ran.out.splitlines()) == 1001
    assert "only the newest 1000" in ran.err


def test_history_of_nothing(daemon: FakeDaemon, run: Run) -> None:
    ran = run("history", "--job", "none")
    assert (ran.code, ran.out) == (Exit.OK, "")
    assert "nothing of that kind" in ran.err
    assert run("history", "--json").out == "[]\n"


def test_history_since_nonsense(run: Run) -> None:
    ran = run("history", "--since", "yesterday")
    assert ran.code == Exit.USAGE
    assert "'yesterday' is no time" in ran.err


# ------------------------------------------------------------------------------------------------------------- backup


def test_backup(daemon: FakeDaemon, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ran = run("backup", "copy.db")
    path = str(tmp_path / "copy.db")
    assert daemon.last(wire.BackUp).path == path
    assert (ran.code, ran.out, ran.err) == (Exit.OK, "", f"wrote 12,345 bytes to {path}\n")
    assert run("backup", "copy.db", "--json").json() == {"path": path, "size_bytes": 12_345}
    assert run("backup", "copy.db", "-q").out == f"{path}\n"


def test_backup_that_is_refused(daemon: FakeDaemon, run: Run) -> None:
    daemon.fail(wire.BackUp, wire.JOURNAL_FAILING, "/x exists", "name a new file")
    ran = run("backup", "/x")
    assert (ran.code, ran.err) == (Exit.REFUSED, "error: /x exists\nhint: name a new file\n")


# -------------------------------------------------------------------------------------------------------------- retry


@pytest.fixture
def failed(daemon: FakeDaemon) -> FakeDaemon:
    call = Call(path="m:f")
    daemon.add(view(1, "succeeded", job="j", finished_at=1001.0))
    daemon.add(
        view(2, "failed", job="j", key="k", priority=3.0, finished_at=1001.0),
        detail(payload=call, argument=b"2", rules=TaskRules(retries=1), after=[TaskId(1)]),
    )
    daemon.add(
        view(3, "cancelled", job="j", priority=1.0, finished_at=1001.0),
        detail(payload=call, argument=b"3", rules=TaskRules(retries=1), after=[TaskId(2)]),
    )
    daemon.add(view(4, "running", job="j"))
    daemon.add(view(5, "failed", job="other", finished_at=1001.0), detail(payload=None))
    return daemon


@pytest.mark.usefixtures("failed")
class TestRetry:
    def test_job(self, run: Run, daemon: FakeDaemon) -> None:
        ran = run("retry", "--job", "j")
        assert (ran.code, ran.err) == (Exit.OK, "")
        assert ran.out == "submitted 2 tasks: 6-7\n  6 for 2\n  7 for 3\n"
        submitted = daemon.last(wire.Submit)
        assert submitted.specs == [TaskSpec(Call(path="m:f"), "python", "j", rules=TaskRules(retries=1))]
        assert submitted.tasks == [
            TaskEntry(0, b"2", None, [], 3.0),
            TaskEntry(0, b"3", None, [-1], 1.0),
        ]

    def test_ids_and_what_is_left(self, run: Run) -> None:
        ran = run("retry", "1,2,4-5")
        assert ran.out == "submitted task 6\n  6 for 2\n"
        assert ran.err == (
            "task 1 left as it is: already succeeded\n"
            "task 4 left as it is: is running\n"
            "task 5 left as it is: what it did is not known any more\n"
        )
        assert ran.code == Exit.OK

    def test_nothing_that_could_be_retried(self, run: Run, daemon: FakeDaemon) -> None:
        ran = run("retry", "1")
        assert (ran.code, ran.out) == (Exit.REFUSED, "")
        assert not any(isinstance(request, wire.Submit) for request in daemon.requests)

    def test_job_that_does_not_exist_or_has_no_such_task(self, run: Run, daemon: FakeDaemon) -> None:
        ran = run("retry", "--job", "none", "-q")
        assert (ran.code, ran.out, ran.err) == (Exit.NOT_FOUND, "", "error: there is no job 'none'\n")
        daemon.jobs = [wire.JobView("none", 1, {"succeeded": 1}, 0.0, 1000.0, 1001.0)]
        ran = run("retry", "--job", "none")
        assert (ran.code, ran.out) == (Exit.OK, "")
        assert ran.err == "there is nothing to retry: no task of it has failed or was cancelled\n"

    def test_json_and_quiet(self, run: Run) -> None:
        assert run("retry", "1-2", "--json").json() == {
            "retried": [{"id": 2, "new_id": 6}],
            "unchanged": [{"id": 1, "reason": "already succeeded"}],
            "warnings": [],
        }
        assert run("retry", "2-3", "-q").out == "7\n8\n"

    def test_what_it_waits_for_is_still_to_come_or_failed(self, run: Run, daemon: FakeDaemon) -> None:
        """The reference is kept: the daemon lets it wait, or says why it could never run."""
        run("retry", "3")
        assert daemon.last(wire.Submit).tasks == [TaskEntry(0, b"3", None, [2], 1.0)]

    def test_without_saying_which(self, run: Run) -> None:
        assert run("retry").code == Exit.USAGE


# ------------------------------------------------------------------------------------------------------------ journal


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A journal with two tasks, one of them with an end."""
    path = tmp_path / "journal.db"
    journal = Journal(path)
    journal.load()
    journal.start()
    ids = [TaskId(1), TaskId(2)]
    admitted = fx.TasksAdmitted(1, [TaskSpec(Command(["true"]))], [TaskEntry(0), TaskEntry(0)], ids)
    journal.append(1, [admitted, fx.TaskFinished(ids[0], "succeeded", 2)], [], 3)
    assert journal.close()
    return path


def test_check(run: Run, path: Path) -> None:
    ran = run("journal", "check", str(path))
    assert (ran.code, ran.err) == (Exit.OK, f"{path} is good\n")
    assert ran.out.splitlines()[0] == "unfinished tasks  1"
    counts = run("journal", "check", str(path), "--json").json()
    assert counts == {"path": str(path), "live": 1, "finished": 0, "facts": 1, "transactions": 1}


def test_check_of_the_journal_of_the_settings(
    run: Run, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config.toml"
    config.write_text(f"[journal]\npath = {str(path)!r}\n")
    assert run("journal", "check", "--config", str(config), "--json").json()["path"] == str(path)
    monkeypatch.setenv("SCHEDD_STATE_DIR", str(tmp_path))
    assert run("journal", "check", "--json").json()["path"] == str(path)


def test_check_of_what_is_not_there(run: Run, tmp_path: Path) -> None:
    ran = run("journal", "check", str(tmp_path / "none.db"))
    assert (ran.code, ran.out) == (Exit.JOURNAL, "")
    assert ran.err.startswith("error: there is no ")
    assert "hint: " in ran.err


def test_damage_and_salvage(run: Run, path: Path, tmp_path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE history SET facts = x'00'")
        db.commit()
    ran = run("journal", "check", str(path))
    assert ran.code == Exit.JOURNAL
    assert "a row of the history" in ran.err
    assert "hint: keep the file; `schedd journal salvage FILE NEW`" in ran.err
    new = tmp_path / "new.db"
    ran = run("journal", "salvage", str(path), str(new))
    assert ran.code == Exit.OK
    assert "1 unfinished and 0 finished" in ran.err
    assert Reader(new).check()["live"] == 1
    ran = run("journal", "salvage", str(path), str(new))
    assert (ran.code, ran.err) == (Exit.JOURNAL, f"error: {new} exists\nhint: name a new file\n")
    again = run("journal", "salvage", str(path), str(tmp_path / "again.db"), "--json").json()
    assert again == {"live": 1, "finished": 0, "damages": 1}


@pytest.mark.needs("root")
def test_what_root_salvages_stays_with_its_owner(run: Run, path: Path, tmp_path: Path) -> None:
    """Else the service could not open it."""
    os.chown(path, 12345, 12346)
    new = tmp_path / "new.db"
    assert run("journal", "salvage", str(path), str(new)).code == Exit.OK
    status = new.stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (12345, 12346, 0o600)
