"""Every option of `schedd submit` ends in the right place on the wire."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from schedd.cli.exits import Exit
from schedd.core.model import Command, TaskRequirements, TaskRules
from schedd.wire import messages as wire

from .conftest import Run
from .fake_daemon import FakeDaemon, view


def submitted(daemon: FakeDaemon) -> tuple[wire.TaskSpec, list[wire.TaskEntry]]:
    request = daemon.last(wire.Submit)
    assert len(request.specs) == 1
    return request.specs[0], request.tasks


def command_of(spec: wire.TaskSpec) -> Command:
    assert isinstance(spec.payload, Command)
    return spec.payload


def test_plain_command(daemon: FakeDaemon, run: Run) -> None:
    ran = run("submit", "--", "python", "train.py", "--lr", "0.1")
    spec, entries = submitted(daemon)
    assert (ran.code, ran.out, ran.err) == (Exit.OK, "submitted task 1\n", "")
    assert spec == wire.TaskSpec(Command(["python", "train.py", "--lr", "0.1"], cwd=str(Path.cwd())), kind="train.py")
    assert entries == [wire.TaskEntry(0)]


def test_options_stop_at_the_command(daemon: FakeDaemon, run: Run) -> None:
    run("submit", "--gpus", "2", "python", "train.py", "--gpus", "8", "--json")
    spec, _ = submitted(daemon)
    assert command_of(spec).argv == ["python", "train.py", "--gpus", "8", "--json"]
    assert spec.requirements.min_gpus == 2


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--gpus", "0.5"], TaskRequirements(min_gpus=0.5)),
        (["--gpus", "2", "--gpu-memory", "12.5"], TaskRequirements(min_gpus=2, min_memory=12.5)),
        (["--gpu-model", "A100"], TaskRequirements(gpu_model="A100")),
        (["--cpus", "4", "--ram", "16"], TaskRequirements(cpus=4, ram=16)),
        (["--cpus", "0"], TaskRequirements(cpus=0)),
        (["--label", "rack=3", "--label", "zone=a=b"], TaskRequirements(labels={"rack": "3", "zone": "a=b"})),
        (["--resource", "licence=1.5"], TaskRequirements(custom={"licence": 1.5})),
        (["--time-estimate", "90"], TaskRequirements(estimated_time=90)),
        (["--time-estimate", "1h30m"], TaskRequirements(estimated_time=5400)),
    ],
)
def test_requirements(daemon: FakeDaemon, run: Run, options: list[str], expected: TaskRequirements) -> None:
    assert run("submit", *options, "--", "true").code == Exit.OK
    assert submitted(daemon)[0].requirements == expected


@pytest.mark.parametrize(
    ("options", "field", "expected"),
    [
        (["--priority", "-2.5"], "priority", -2.5),
        (["--priority", "0"], "priority", 0.0),
        (["--job", "sweep"], "job", "sweep"),
        (["--name", "sweep"], "job", "sweep"),
        (["--kind", "train"], "kind", "train"),
        (["--delay", "5m"], "delay_s", 300.0),
        (["--after", "3,5-7", "--after", "9"], "after", [3, 5, 6, 7, 9]),
        (["--hold"], "hold", True),
        (["--timeout", "2h"], "rules", TaskRules(timeout_s=7200)),
        (["--retries", "3", "--grace", "250ms"], "rules", TaskRules(retries=3, grace_s=0.25)),
        (["--retries", "0", "--retry-timeout", "1"], "rules", TaskRules(retries=0, timeout_limit=1)),
        (["--retry-oom", "2", "--memory-growth", "2"], "rules", TaskRules(oom_limit=2, memory_growth=2)),
        (["--retry-lost", "0", "--retry-rejected", "9"], "rules", TaskRules(lost_limit=0, rejected_limit=9)),
        (["--retry-delay", "1m"], "rules", TaskRules(retry_delay_s=60)),
    ],
)
def test_spec_fields(daemon: FakeDaemon, run: Run, options: list[str], field: str, expected: Any) -> None:
    assert run("submit", *options, "--", "true").code == Exit.OK
    assert getattr(submitted(daemon)[0], field) == expected


def test_environment_is_only_what_was_asked_for(daemon: FakeDaemon, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "secret")
    run("submit", "--env", "A=1", "--env", "B=x=y", "--env", "TOKEN", "--", "true")
    assert command_of(submitted(daemon)[0]).env == {"A": "1", "B": "x=y", "TOKEN": "secret"}
    run("submit", "--", "true")
    assert command_of(submitted(daemon)[0]).env == {}
    run("submit", "--env-all", "--env", "TOKEN=other", "--", "true")
    assert command_of(submitted(daemon)[0]).env == {**os.environ, "TOKEN": "other"}


def test_env_without_value_must_exist_here(daemon: FakeDaemon, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOT_HERE", raising=False)
    ran = run("submit", "--env", "NOT_HERE", "--", "true")
    assert ran.code == Exit.USAGE
    assert "write NOT_HERE=VALUE" in ran.err


def test_words_that_are_not_utf8(daemon: FakeDaemon, run: Run) -> None:
    """Such bytes of a command line are lone surrogates in Python."""
    for options in (["--", "cat", "caf\udce9"], ["--job", "caf\udce9", "--", "true"], ["--key", "caf\udce9", "true"]):
        ran = run("submit", *options)
        assert (ran.code, ran.err) == (Exit.USAGE, "error: 'caf\\udce9' is not UTF-8\n")
    assert daemon.requests == []


def test_variables_that_are_not_utf8(daemon: FakeDaemon, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAME", "caf\udce9")
    monkeypatch.setenv("OTHER", "café")
    ran = run("submit", "--env-all", "--", "true")
    assert (ran.code, ran.err) == (Exit.OK, "warning: --env-all leaves out what is not UTF-8: NAME\n")
    environment = command_of(submitted(daemon)[0]).env
    assert environment["OTHER"] == "café"
    assert "NAME" not in environment
    assert run("submit", "--env", "NAME", "--", "true").code == Exit.USAGE


def test_directory_and_stdin(daemon: FakeDaemon, run: Run, tmp_path: Path) -> None:
    source = tmp_path / "input"
    source.write_bytes(b"\x00\xff")
    run("submit", "--cwd", "relative", "--stdin", str(source), "--", "cat")
    command = command_of(submitted(daemon)[0])
    assert command.cwd == str(Path.cwd() / "relative")
    assert command.stdin == b"\x00\xff"


def test_array(daemon: FakeDaemon, run: Run) -> None:
    ran = run("submit", "--array", "1-10:4,20", "--key", "k", "--", "run", "{}")
    spec, entries = submitted(daemon)
    assert command_of(spec).variable == "SCHEDD_INDEX"
    assert command_of(spec).argv == ["run", "{}"]
    assert [(entry.argument, entry.key) for entry in entries] == [
        (b"1", "k/1"),
        (b"5", "k/5"),
        (b"9", "k/9"),
        (b"20", "k/20"),
    ]
    assert ran.out == "submitted 4 tasks: 1-4\n"


def test_each_line(daemon: FakeDaemon, run: Run, tmp_path: Path) -> None:
    lines = tmp_path / "lines"
    lines.write_bytes(b"one\r\n\ncaf\xe9\n")
    run("submit", "--each-line", str(lines), "--", "run", "{}")
    spec, entries = submitted(daemon)
    assert command_of(spec).variable == "SCHEDD_LINE"
    assert [entry.argument for entry in entries] == [b"one", b"caf\xe9"]


def test_quiet_writes_ids_alone(daemon: FakeDaemon, run: Run) -> None:
    daemon.warnings = ["no worker fits now"]
    ran = run("submit", "--quiet", "--array", "1-3", "--", "true")
    assert ran.out == "1\n2\n3\n"
    assert ran.err == "warning: no worker fits now\n"


def test_json(daemon: FakeDaemon, run: Run) -> None:
    daemon.warnings = ["no worker fits now"]
    assert run("submit", "--json", "--", "true").json() == {"ids": [1], "warnings": ["no worker fits now"], "names": {}}


def test_strict(daemon: FakeDaemon, run: Run) -> None:
    daemon.fail(wire.Submit, wire.NO_WORKER_FITS, "no worker fits", "the largest has 4 GPUs")
    ran = run("submit", "--strict", "--gpus", "64", "--", "true")
    assert daemon.last(wire.Submit).strict
    assert ran.code == Exit.REFUSED
    assert ran.err == "error: no worker fits\nhint: the largest has 4 GPUs\n"


def test_wait_succeeds(daemon: FakeDaemon, run: Run) -> None:
    def submit(request: wire.Submit) -> wire.Submitted:
        daemon.add(view(1, "succeeded", exit_code=0))
        return wire.Submitted(request.request, [view(1).id])

    daemon.answers[wire.Submit] = submit
    ran = run("submit", "--wait", "--", "true")
    assert (ran.code, ran.out, ran.err) == (Exit.OK, "submitted task 1\n", "1 task: 1 succeeded\n")


def test_wait_tells_of_failures(daemon: FakeDaemon, run: Run) -> None:
    def submit(request: wire.Submit) -> wire.Submitted:
        daemon.add(view(1, "succeeded", exit_code=0))
        daemon.add(view(2, "failed", exit_code=3))
        return wire.Submitted(request.request, [view(1).id, view(2).id])

    daemon.answers[wire.Submit] = submit
    ran = run("submit", "--wait", "--array", "1-2", "--", "true")
    assert ran.code == Exit.FAILED_TASKS
    assert ran.err == "task 2 failed: exit code 3\n2 tasks: 1 succeeded, 1 failed\n"
    document = run("submit", "--wait", "--json", "--array", "1-2", "--", "true").json()
    assert document["ids"] == [1, 2]
    assert document["failed"] == 1
    assert document["tasks"][1]["exit_code"] == 3


def test_wait_for_nothing_does_not_wait_for_others(daemon: FakeDaemon, run: Run) -> None:
    daemon.add(view(1, "failed"))
    daemon.answers[wire.Submit] = lambda request: wire.Submitted(request.request, [])
    ran = run("submit", "--wait", "--json", "--", "true")
    assert (ran.code, ran.json()["total"]) == (Exit.OK, 0)
    assert not any(isinstance(request, wire.WatchTasks) for request in daemon.requests)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ([], "there is no command to run"),
        (["--file", "x.toml", "--", "true"], "give a command or --file, not both"),
        (["--gpus", "1.5", "--", "true"], "min_gpus must be whole, or a fraction below 1, not 1.5"),
        (["--label", "rack", "--", "true"], "--label 'rack' must be written NAME=VALUE"),
        (["--resource", "a=b", "--", "true"], "--resource a=b: 'b' is not a number"),
        (["--array", "1-2", "--each-line", "x", "--", "true"], "array and each-line cannot be used together"),
        (["--each-line", "not-there", "--", "true"], "not-there: No such file or directory"),
        (["--stdin", "not-there", "--", "true"], "not-there: No such file or directory"),
        (["--timeout", "0", "--", "true"], "timeout_s must be above 0 and at most 1,000,000,000, not 0.0"),
        (["--timeout", "9" * 20, "--", "true"], "timeout_s must be above 0 and at most 1,000,000,000, not 1e+20"),
        (["--cpus", "1e6", "--", "true"], "cpus must be a number between 0 and 100,000, not 1000000.0"),
        (["--priority", "nan", "--", "true"], "nan is no priority"),
        (["--", ""], "there is no command to run"),
    ],
)
def test_mistakes_never_reach_the_daemon(daemon: FakeDaemon, run: Run, arguments: list[str], error: str) -> None:
    ran = run("submit", *arguments)
    assert ran.code == Exit.USAGE
    assert ran.err.startswith(f"error: {error}\n")
    assert daemon.requests == []


@pytest.mark.parametrize("text", ["", "1-", "9-1", "1-5:0", "a", "1,,2", "1-2000000", "-1"])
def test_bad_arrays(daemon: FakeDaemon, run: Run, text: str) -> None:
    ran = run("submit", f"--array={text}", "--", "true")
    assert ran.code == Exit.USAGE
    assert "--array" in ran.err
    assert daemon.requests == []
