"""`schedd simulate --journal` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from schedd.cli.exits import Exit
from schedd.config import parse_settings
from schedd.core import effects as fx
from schedd.core.model import (
    SECOND,
    AttemptRecord,
    Cause,
    Command,
    TaskEntry,
    TaskId,
    TaskSpec,
    WorkerId,
    WorkerResources,
)
from schedd.journal.reader import Reader
from schedd.journal.records import FinishedTask
from schedd.journal.store import Journal

from .conftest import Run

#: Monday, 2026-11-23, 00:00 UTC.
MONDAY = 1_795_392_000 * SECOND
TASKS = 120


def write_history(path: Path) -> None:
    """One worker of one CPU, and in each minute a long task that matters little before a short one that matters much.

    By priority the short one goes first: 20 s for it and 60 s for the other; in the order of submission 40 + 60 s.
    """
    journal = Journal(path, "off")
    journal.load()
    journal.start()
    entered = fx.WorkerEntered(WorkerId("w1"), "one", WorkerResources(), MONDAY)
    journal.append(1, [entered], [], MONDAY)
    for number in range(TASKS):
        minute, short = divmod(number, 2)
        runtime_s, priority = (20, 5.0) if short else (40, 0.0)
        at_ns = MONDAY + minute * 60 * SECOND
        task_id = TaskId(number + 1)
        start_ns = at_ns + 40 * SECOND * short
        end_ns = start_ns + runtime_s * SECOND
        spec = TaskSpec(Command(["true"]), kind="short" if short else "long", priority=priority)
        record = AttemptRecord(1, WorkerId("w1"), start_ns, start_ns, end_ns, Cause.OK)
        ended = FinishedTask(task_id, "succeeded", end_ns, "", spec.kind, None, priority, at_ns, (record,))
        facts: list[fx.Fact] = [
            fx.TasksAdmitted(at_ns, [spec], [TaskEntry(0)], [task_id]),
            fx.AttemptDispatched(task_id, 1, WorkerId("w1"), start_ns),
            fx.AttemptBegan(task_id, 1, start_ns),
            fx.AttemptEnded(task_id, record),
            fx.TaskFinished(task_id, "succeeded", end_ns),
        ]
        journal.append(number + 2, facts, [ended], end_ns)
    assert journal.close()


@pytest.fixture
def journal(tmp_path: Path) -> str:
    write_history(tmp_path / "journal.db")
    return str(tmp_path / "journal.db")


def test_verdict(run: Run, journal: str, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[policy]\nname = 'fifo'\n")
    ran = run("simulate", "--journal", journal, "--config", str(tmp_path / "config.toml"), "--policy", "fifo,priority")
    assert ran.code == Exit.OK
    lines = ran.out.splitlines()
    assert lines[1].split()[0] == "fifo"
    assert lines[3].split()[0] == "(recorded)"
    assert lines[1].split()[1:6] == lines[3].split()[1:3][:1] + lines[1].split()[2:6]  # the same makespan
    assert (
        "priority is the best of these, 20.0% less than fifo, which is in use (20.0% to 20.0% with 95 % confidence); "
        "it is the best in 100% of the resamples"
    ) in ran.out
    assert ran.out.endswith('to use it, write into config.toml:\n\n[policy]\nname = "priority"\n')
    assert ran.err.startswith("120 tasks (journal) on 1 workers")


def test_json(run: Run, journal: str) -> None:
    told = run("simulate", "--journal", journal, "--json", "--since", "2026-11-23 00:30+00:00").json()
    assert set(told["policies"]) == {"fifo", "priority", "load_balancing", "work_stealing", "adaptive", "batch"}
    assert told["policies"]["fifo"]["tasks"] == TASKS / 2
    recorded = told["recorded"]
    assert (recorded["mean_flow_time_s"], recorded["attempts"], recorded["failed"]) == (50, TASKS / 2, 0)
    assert (recorded["decision_us"], recorded["gpu_allocation_ratio"]) == (None, None)
    assert told["left_out"] == {"unfinished": 0, "never_ran": 0, "before_history": 0}
    assert told["best"]["in_use"] == "priority"
    assert told["best"]["objective"] == "mean_flow_time"
    assert told["standings"]["fifo"]["behind"] == pytest.approx(0.2)


def test_settings_that_are_tried(run: Run, journal: str) -> None:
    options = ["--policy", "fifo,batch", "--try", "policy.batch.batch_size=2,4", "--try", "stealing.enabled=true"]
    told = run("simulate", "--journal", journal, *options, "--json").json()
    assert list(told["policies"]) == [
        "fifo",
        "fifo[stealing.enabled=true]",
        "batch",
        "batch[stealing.enabled=true]",
        "batch[batch_size=2]",
        "batch[batch_size=2,stealing.enabled=true]",
        "batch[batch_size=4]",
        "batch[batch_size=4,stealing.enabled=true]",
    ]
    assert told["best"]["in_use"] is None


def test_what_to_write_down(run: Run, journal: str) -> None:
    options = ["--policy", "batch", "--set", "policy.batch.batch_size=3", "--try", "stealing.interval_s=2"]
    told = run("simulate", "--journal", journal, *options, "--objective", "makespan", "--json").json()
    assert told["best"]["config"] == '[policy]\nname = "batch"\n\n[policy.batch]\nbatch_size = 3'
    assert (told["best"]["objective"], told["best"]["wins"]) == ("makespan", None)


def test_what_the_daemon_does_not_have_is_not_written_down(run: Run, journal: str) -> None:
    options = ["simulate", "--journal", journal, "--policy", "fifo,sjf"]
    ran = run(*options)
    assert "sjf is the best of these" in ran.out
    assert ran.out.endswith("\nthe daemon has no policy sjf: only the simulator has it\n")
    assert run(*options, "--json").json()["best"]["config"] is None


def test_packing_is_a_setting_of_the_daemon(run: Run, journal: str) -> None:
    options = ["--policy", "packing", "--set", "stealing.enabled=true", "--set", "policy.batch.batch_size=2"]
    told = run("simulate", "--journal", journal, *options, "--json").json()
    written = '[policy]\nname = "fifo"\n\n[policy.fifo]\npacking = true\n\n[stealing]\nenabled = true'
    assert told["best"]["config"] == written
    parse_settings(written)


def test_what_more_workers_would_be_worth(run: Run, journal: str, tmp_path: Path) -> None:
    more = run("simulate", "--journal", journal, "--policy", "fifo", "--add-worker", "gpus=1,model=A100", "--json")
    assert more.json()["policies"]["fifo"]["mean_flow_time_s"] == 30
    ran = run("simulate", "--journal", journal, "--policy", "fifo", "--add-worker", "gpus=1,model=A100")
    assert "nothing has run on model 'A100' yet" in ran.err
    assert "with the added workers, under fifo, mean JCT, s: 30.00 instead of 50.00, 40.0% less" in ran.out
    assert more.json()["best"]["without_added"] == 50
    (tmp_path / "cluster.toml").write_text("[[worker]]\ncount = 2\n")
    other = run(
        "simulate", "--journal", journal, "--policy", "fifo", "--cluster", str(tmp_path / "cluster.toml"), "--json"
    )
    assert other.json()["policies"]["fifo"]["mean_flow_time_s"] == 30


def test_own_journal_is_the_default(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCHEDD_STATE_DIR", str(tmp_path))
    write_history(tmp_path / "journal.db")
    assert run("simulate", "--journal", "--policy", "fifo", "--json").json()["policies"]["fifo"]["tasks"] == TASKS


def test_backup_is_as_good_as_the_journal(run: Run, journal: str, tmp_path: Path) -> None:
    Reader(Path(journal)).backup(tmp_path / "backup.db")
    Path(journal).unlink()
    told = run("simulate", "--journal", str(tmp_path / "backup.db"), "--policy", "fifo", "--json").json()
    assert told["policies"]["fifo"]["tasks"] == TASKS


@pytest.mark.parametrize(
    ("options", "code", "error", "hint"),
    [
        ([], Exit.USAGE, "there is nothing to run", "--journal"),
        (["--journal", "nowhere.db"], Exit.JOURNAL, "there is no journal nowhere.db", "SCHEDD_STATE_DIR"),
        (["--journal", __file__], Exit.JOURNAL, "not a database", "schedd journal check"),
        (["--trace", "x", "--journal", "y"], Exit.USAGE, "a trace and a journal", "one of them"),
        (["--trace", "x", "--since", "2h"], Exit.USAGE, "--since and --until", "--journal"),
        (["--journal", "JOURNAL", "--since", "2027-01-01"], Exit.USAGE, "no task to run again", "schedd history"),
        (["--journal", "JOURNAL", "--try", "policy.batch.batch_size="], Exit.USAGE, "no value to try", "2,4,8"),
        (["--journal", "JOURNAL", "--try", "x"], Exit.USAGE, "is not of the form KEY=VALUE", ""),
        (["--journal", "JOURNAL", "--try", "policy.batch.size=2"], Exit.CONFIG, "is not a key", "batch_size"),
        (
            ["--journal", "JOURNAL", "--policy", "fifo", "--try", "policy.batch.batch_size=2"],
            Exit.USAGE,
            "batch is not among the policies to run",
            "--policy batch",
        ),
    ],
)
def test_what_is_wrong_is_said_with_a_hint(
    run: Run, journal: str, options: list[str], code: Exit, error: str, hint: str
) -> None:
    ran = run("simulate", *(journal if option == "JOURNAL" else option for option in options))
    assert ran.code == code, ran.err
    assert error in ran.err
    assert hint in ran.err
    assert not ran.out


def test_json_is_json(run: Run, journal: str) -> None:
    assert json.loads(run("simulate", "--journal", journal, "--policy", "fifo", "--quiet", "--json").out)


def test_few_tasks_do_not_say_how_sure(run: Run, journal: str, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[policy]\nname = 'fifo'\n")
    options = [
        "--config",
        str(tmp_path / "config.toml"),
        "--policy",
        "fifo,priority",
        "--until",
        "2026-11-23 00:20+00:00",
    ]
    ran = run("simulate", "--journal", journal, *options)
    said = (
        "priority is the best of these, 20.0% less than fifo, which is in use; too few tasks, or seeds, to say how sure"
    )
    assert said in ran.out
    assert "to try it, in config.toml:" in ran.out
    best = run("simulate", "--journal", journal, *options, "--json").json()["best"]
    assert (best["gain"], best["gain_ci95"], best["sure"]) == (pytest.approx(0.2), None, False)
