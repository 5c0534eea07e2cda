"""`schedd policies` where a daemon answers."""

from __future__ import annotations

import msgspec

from schedd.cli.exits import Exit
from schedd.wire import messages as wire

from .conftest import Run
from .fake_daemon import POLICY, FakeDaemon


def test_policy_in_use_is_marked(run: Run, daemon: FakeDaemon) -> None:
    rows = run("policies", "--json").json()
    assert [row["name"] for row in rows if row["in_use"]] == ["priority"]
    (line,) = [line for line in run("policies").out.splitlines() if "in use" in line]
    assert line.startswith("priority")


def test_what_stealing_has_brought(run: Run, daemon: FakeDaemon) -> None:
    lines = run("policies", "--steals").out.splitlines()
    assert lines[:7] == [
        "policy     work_stealing",
        "threshold  backlogs of up to 3 are left alone",
        "steals     9 of 40 tasks moved, 1 came too late",
        "measured   8, 1 could not be",
        "paid       6 (75%)",
        "gain       1.500s in the mean, 12.0s in all",
        "expected   2.500s in the mean, where 2.000s came of it",
    ]
    assert lines[8].split() == ["task", "kind", "from", "to", "tasks", "expected", "gain"]
    assert [line.split() for line in lines[9:]] == [
        ["8", "new", "w1", "w3", "1", "-0.250s"],
        ["7", "train", "w1", "w2", "5", "2.500s", "1.500s"],
    ]
    told = run("policies", "--steals", "--json").json()
    assert (told["policy"], told["steals"]["real_s"], len(told["steals"]["recent"])) == ("work_stealing", 12.0, 2)


def test_nothing_was_stolen_yet(run: Run, daemon: FakeDaemon) -> None:
    none = wire.StealsView(False, 0, 0, 0, 0, 0, 0, 0, 0, 0.0, 0.0, 0.0)
    daemon.answers[wire.GetPolicy] = lambda request: msgspec.structs.replace(
        POLICY, request=request.request, name="fifo", steals=none
    )
    out = run("policies", "--steals").out
    assert "stealing is off" in out
    assert "mean" not in out


def test_steals_need_a_daemon(run: Run) -> None:
    ran = run("policies", "--steals", "--address", "127.0.0.1:1")
    assert ran.code != Exit.OK
    assert "error:" in ran.err
