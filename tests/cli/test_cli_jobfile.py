"""Job files: dependencies, defaults, and every way to get them wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from schedd.cli.exits import Exit
from schedd.cli.jobfile import Plan, read_job_file
from schedd.cli.options import BadInput
from schedd.core.model import Command, TaskRequirements
from schedd.wire import messages as wire

from .conftest import Run
from .fake_daemon import FakeDaemon, view

PIPELINE = """
job = "sweep"
cpus = 2

[[task]]
name = "report"
command = "python report.py --title 'all of it'"
after = ["train", 7]

[[task]]
name = "train"
command = ["python", "train.py", "{}"]
array = "1-3"
gpus = 1
gpu-memory = 8
label = { rack = "3" }
time-estimate = "10m"
timeout = "1h"
after = "prepare"
cpus = 4
variants = [{ gpus = 2, gpu-model = "T4" }]

[[task]]
name = "prepare"
command = "python prepare.py"
key = "prepared"
"""


def plan_of(tmp_path: Path, text: str, **defaults: object) -> Plan:
    path = tmp_path / "job.toml"
    path.write_text(text)
    return read_job_file(path, defaults)


def test_tasks_come_after_what_they_need(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, PIPELINE)
    assert plan.names == {"prepare": range(1), "train": range(1, 4), "report": range(4, 5)}
    prepare, *train, report = plan.entries
    assert prepare == wire.TaskEntry(0, key="prepared")
    assert [(entry.argument, entry.after) for entry in train] == [(b"1", [-1]), (b"2", [-1]), (b"3", [-1])]
    assert report.after == [-2, -3, -4]


@pytest.mark.parametrize("number", [0, -1, -5, 10**22])
def test_id_that_is_none(tmp_path: Path, number: int) -> None:
    """Below 0 it would mean another task of the file to the daemon."""
    with pytest.raises(BadInput, match=f"{number} is no id of a task"):
        plan_of(tmp_path, PIPELINE.replace("7]", f"{number}]"))


def test_options_become_specs(tmp_path: Path) -> None:
    prepare, train, report = plan_of(tmp_path, PIPELINE).specs
    assert prepare.requirements == TaskRequirements(cpus=2)
    assert train.requirements == TaskRequirements(
        min_gpus=1,
        min_memory=8,
        cpus=4,
        labels={"rack": "3"},
        estimated_time=600,
        variants=(TaskRequirements(min_gpus=2, gpu_model="T4"),),
    )
    assert train.rules.timeout_s == 3600
    assert isinstance(report.payload, Command)
    assert report.payload.argv == ["python", "report.py", "--title", "all of it"]
    assert report.after == [7]
    assert {spec.job for spec in (prepare, train, report)} == {"sweep"}


def test_keys_may_be_spelt_with_underscores(tmp_path: Path) -> None:
    text = PIPELINE.replace("gpu-memory", "gpu_memory").replace("gpu-model", "gpu_model").replace("rack", "rack_no")
    [_, train, _] = plan_of(tmp_path, text).specs
    assert train.requirements.min_memory == 8
    assert train.requirements.variants == (TaskRequirements(min_gpus=2, gpu_model="T4"),)
    assert train.requirements.labels == {"rack_no": "3"}


def test_command_line_gives_defaults(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, PIPELINE, priority=3.0, cpus=8.0)
    assert [spec.priority for spec in plan.specs] == [3.0] * 3
    assert [spec.requirements.cpus for spec in plan.specs] == [2, 4, 2]


@pytest.mark.parametrize(
    ("text", "error", "hint"),
    [
        ("", "has no tasks", "[[task]]"),
        ("task = 3", "has no tasks", "[[task]]"),
        ("x = [", "is not TOML", ""),
        ("[[task]]\nname = 'a'", "task 'a': there is no command to run", ""),
        ("[[task]]\ncommand = 'a'\ngpuz = 1", "task 1: unknown key 'gpuz'", "did you mean 'gpus'?"),
        ("zzz = 1\n[[task]]\ncommand = 'a'", "task 1: unknown key 'zzz'", "known: "),
        ("[[task]]\ncommand = 'a'\ngpus = 'x'", "task 1: Expected `float | null`, got `str` - at `$.gpus`", ""),
        ("[[task]]\ncommand = 'a'\ngpus = 1.5", "task 1: min_gpus must be whole", ""),
        ("[[task]]\ncommand = 'a'\ntimeout = '5y'", "task 1: '5y' is not a duration", ""),
        ('[[task]]\ncommand = "a \'b"', "task 1: No closing quotation", ""),
        ("[[task]]\ncommand = 'a'\nstdin = 'not-there'", "not-there", ""),
        ("[[task]]\nname = '1a'\ncommand = 'a'", "a name cannot start with a digit", "ids"),
        ("[[task]]\nname = 'a'\ncommand = 'a'\n[[task]]\nname = 'a'\ncommand = 'a'", "two tasks have the name 'a'", ""),
        (
            "[[task]]\nname = 'train'\ncommand = 'a'\n[[task]]\ncommand = 'b'\nafter = ['tran']",
            "task 2 comes after 'tran', which is not in the file",
            "did you mean 'train'?",
        ),
        ("[[task]]\ncommand = 'b'\nafter = 'x'", "comes after 'x'", "no task of this file has a name"),
        (
            "[[task]]\nname = 'a'\ncommand = 'a'\nafter = 'b'\n[[task]]\nname = 'b'\ncommand = 'b'\nafter = 'a'",
            "tasks wait for each other in a circle: task 'a' -> task 'b' -> task 'a'",
            "",
        ),
        ("[[task]]\nname = 'a'\ncommand = 'a'\nafter = 'a'", "in a circle: task 'a' -> task 'a'", ""),
        ("[[task]]\ncommand = 'a'\narray = '9-1'", "task 1: '9-1' has no numbers in it", ""),
        ("[[task]]\ncommand = 'a'\narray = []", "task 1: array has no numbers", ""),
    ],
)
def test_mistakes(tmp_path: Path, text: str, error: str, hint: str) -> None:
    with pytest.raises(BadInput) as caught:
        plan_of(tmp_path, text)
    assert "job.toml" in caught.value.message
    assert error in caught.value.message
    assert hint in caught.value.hint


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be read: No such file or directory"):
        read_job_file(tmp_path / "none.toml", {})


def test_submit_names_its_tasks(daemon: FakeDaemon, run: Run, tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_text(PIPELINE)
    ran = run("submit", "--file", str(path), "--priority", "2")
    assert ran.out == "submitted 5 tasks: 1-5\n  prepare: 1\n  train: 2-4\n  report: 5\n"
    assert {spec.priority for spec in daemon.last(wire.Submit).specs} == {2.0}
    document = run("submit", "--file", str(path), "--json").json()
    assert document["names"] == {"prepare": [6], "train": [7, 8, 9], "report": [10]}


def test_submit_that_waits_names_its_tasks_too(daemon: FakeDaemon, run: Run, tmp_path: Path) -> None:
    def submit(request: wire.Submit) -> wire.Submitted:
        daemon.add(view(1, "succeeded", exit_code=0))
        return wire.Submitted(request.request, [view(1).id])

    daemon.answers[wire.Submit] = submit
    path = tmp_path / "job.toml"
    path.write_text("[[task]]\nname = 'a'\ncommand = 'a'")
    document = run("submit", "--file", str(path), "--wait", "--json").json()
    assert (document["names"], document["succeeded"]) == ({"a": [1]}, 1)


def test_submit_tells_of_a_circle(daemon: FakeDaemon, run: Run, tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_text("[[task]]\nname = 'a'\ncommand = 'a'\nafter = 'a'")
    ran = run("submit", "--file", str(path))
    assert ran.code == Exit.USAGE
    assert ran.err == f"error: {path}: tasks wait for each other in a circle: task 'a' -> task 'a'\n"
    assert daemon.requests == []
