"""Commands that change: cancel, hold, release, set, drain; and wait."""

from __future__ import annotations

import socket
from typing import Any

import msgspec
import pytest

from schedd.cli.exits import Exit
from schedd.core.model import TaskId, TaskRequirements
from schedd.wire import messages as wire

from .conftest import Run
from .fake_daemon import FakeDaemon, detail, view

CHANGES = [
    ("cancel", wire.CancelTasks, "cancelled"),
    ("hold", wire.HoldTasks, "held"),
    ("release", wire.ReleaseTasks, "released"),
]


@pytest.mark.parametrize(("name", "kind", "verb"), CHANGES)
def test_selections(daemon: FakeDaemon, run: Run, name: str, kind: type[Any], verb: str) -> None:
    for task_id in (1, 2, 3):
        daemon.add(view(task_id, job="sweep"))
    ran = run(name, "1-2", "2,3")
    assert (ran.code, ran.out, ran.err) == (Exit.OK, "", f"{verb} 3 tasks\n")
    assert daemon.last(kind).selection == wire.Selection(ids=[1, 2, 3])  # type: ignore[list-item]
    run(name, "--job", "sweep")
    assert daemon.last(kind).selection == wire.Selection(job="sweep", unfinished=True)
    assert run(name, "--all", "--json").json() == {"changed": 3, "unchanged": []}
    assert daemon.last(kind).selection == wire.Selection(unfinished=True)


@pytest.mark.parametrize("name", ["cancel", "hold", "release", "set"])
def test_nothing_is_not_everything(daemon: FakeDaemon, run: Run, name: str) -> None:
    ran = run(name)
    assert ran.code == Exit.USAGE
    assert "say which tasks" in ran.err
    assert run(name, "1", "--all").code == Exit.USAGE
    assert run(name, "--job", "a", "--all").code == Exit.USAGE
    assert daemon.requests == []


def test_unchanged_tasks_are_named(daemon: FakeDaemon, run: Run) -> None:
    left: list[tuple[int | str, str]] = [(1, "it has ended")]
    daemon.answers[wire.CancelTasks] = lambda request: wire.Changed(request.request, 0, left)
    ran = run("cancel", "1")
    assert ran.code == Exit.REFUSED
    assert ran.err == "cancelled 0 tasks\ntask 1 left as it is: it has ended\n"
    assert run("cancel", "--job", "a").code == Exit.OK
    assert run("cancel", "1", "--json").json() == {"changed": 0, "unchanged": [{"id": 1, "reason": "it has ended"}]}


def test_many_unchanged_are_summed_up(daemon: FakeDaemon, run: Run) -> None:
    left: list[tuple[int | str, str]] = [(i, "it has ended") for i in range(25)]
    daemon.answers[wire.CancelTasks] = lambda request: wire.Changed(request.request, 5, left)
    ran = run("cancel", "1-30")
    assert ran.code == Exit.OK
    assert ran.err.splitlines()[-1] == "… and 15 more left as they are"


def test_set_priority(daemon: FakeDaemon, run: Run) -> None:
    daemon.add(view(1))
    assert run("set", "1", "--priority", "-3").code == Exit.OK
    request = daemon.last(wire.SetTasks)
    assert (request.priority, request.requirements) == (-3.0, None)


def test_set_keeps_requirements_that_were_not_given(daemon: FakeDaemon, run: Run) -> None:
    daemon.add(view(1, job="a"), detail(requirements=TaskRequirements(cpus=4, ram=8)))
    daemon.add(view(2, job="a"), detail(requirements=TaskRequirements(cpus=4, ram=8)))
    daemon.add(view(3, job="a"), detail(requirements=TaskRequirements(labels={"rack": "1"})))
    ran = run("set", "--job", "a", "--gpus", "1", "--priority", "2")
    assert ran.err == "changed 3 tasks\n"
    sent = {tuple(r.selection.ids): r for r in daemon.requests if isinstance(r, wire.SetTasks)}
    assert {ids: r.requirements for ids, r in sent.items()} == {
        (1, 2): TaskRequirements(min_gpus=1, cpus=4, ram=8),
        (3,): TaskRequirements(min_gpus=1, labels={"rack": "1"}),
    }
    assert {r.priority for r in sent.values()} == {2.0}


def test_set_merges_labels_and_resources(daemon: FakeDaemon, run: Run) -> None:
    asked = TaskRequirements(labels={"a": "1", "b": "2"}, custom={"licence": 1, "port": 2})
    daemon.add(view(1), detail(requirements=asked))
    run("set", "1", "--label", "c=3", "--label", "a=", "--resource", "port=5", "--resource", "licence=0")
    assert daemon.last(wire.SetTasks).requirements == TaskRequirements(labels={"b": "2", "c": "3"}, custom={"port": 5})
    run("set", "1", "--cpus", "2")
    assert daemon.last(wire.SetTasks).requirements == msgspec.structs.replace(asked, cpus=2)


def test_set_of_requirements_names_what_is_not_there(daemon: FakeDaemon, run: Run) -> None:
    daemon.add(view(3))
    ran = run("set", "3,9999", "--cpus", "2")
    assert (ran.code, ran.err) == (Exit.OK, "changed 1 task\ntask 9999 left as it is: unknown task\n")
    daemon.fail(wire.ListTasks, wire.UNKNOWN_TASK, "there is no task 9998")
    left: list[tuple[int | str, str]] = [(9998, "unknown task"), (9999, "unknown task")]
    daemon.answers[wire.SetTasks] = lambda request: wire.Changed(request.request, 0, left)
    ran = run("set", "9998,9999", "--cpus", "2")
    assert ran.code == Exit.NOT_FOUND
    assert ran.err.splitlines()[2] == "task 9999 left as it is: unknown task"


def test_set_of_requirements_in_a_job_that_is_not_there(daemon: FakeDaemon, run: Run) -> None:
    daemon.fail(wire.SetTasks, wire.UNKNOWN_JOB, "there is no job 'nosuch'")
    ran = run("set", "--job", "nosuch", "--gpus", "1")
    assert (ran.code, ran.err) == (Exit.NOT_FOUND, "error: there is no job 'nosuch'\n")
    assert daemon.last(wire.SetTasks).requirements is None


def test_set_mistakes(daemon: FakeDaemon, run: Run) -> None:
    assert "there is nothing to change" in run("set", "1").err
    assert "min_gpus must be whole" in run("set", "1", "--gpus", "1.5").err
    assert run("set", "1", "--gpus", "1.5").code == Exit.USAGE
    ran = run("set", "1", "--priority", "inf")
    assert (ran.code, ran.err) == (Exit.USAGE, "error: inf is no priority\n")
    assert daemon.requests == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["cancel", "0"],
        ["show", "9" * 23],
        ["explain", "9" * 23],
        ["logs", "0"],
        ["logs", "1", "--attempt", "9" * 23],
        ["submit", "--after", "0", "--", "true"],
        ["events", "--task", "9" * 23],
    ],
)
def test_ids_that_cannot_be(daemon: FakeDaemon, run: Run, arguments: list[str]) -> None:
    ran = run(*arguments)
    assert ran.code == Exit.USAGE
    assert "is no id of a task" in ran.err or "is not in the range" in ran.err
    assert daemon.requests == []


@pytest.mark.parametrize(
    ("options", "undo", "leave", "verb"),
    [([], False, True, "draining"), (["--keep"], False, False, "draining"), (["--undo"], True, True, "undrained")],
)
def test_drain(daemon: FakeDaemon, run: Run, options: list[str], undo: bool, leave: bool, verb: str) -> None:
    ran = run("drain", "w1", "w2", *options)
    assert (ran.code, ran.err) == (Exit.OK, f"{verb} 2 workers\n")
    request = daemon.last(wire.DrainWorkers)
    assert (request.workers, request.undo, request.leave) == (["w1", "w2"], undo, leave)


def test_what_is_not_there_is_not_found(daemon: FakeDaemon, run: Run) -> None:
    daemon.answers[wire.DrainWorkers] = lambda request: wire.Changed(request.request, 0, [("w9", "unknown worker")])
    ran = run("drain", "w9")
    assert (ran.code, ran.err) == (Exit.NOT_FOUND, "draining 0 workers\nworker w9 left as it is: unknown worker\n")
    daemon.answers[wire.CancelTasks] = lambda request: wire.Changed(request.request, 0, [(9, "unknown task")])
    assert run("cancel", "9").code == Exit.NOT_FOUND


# ---------------------------------------------------------------------------------------------------------------- wait


def test_wait_for_all_that_is_unfinished(daemon: FakeDaemon, run: Run) -> None:
    daemon.add(view(1, "succeeded"))
    ran = run("wait")
    assert (ran.code, ran.err) == (Exit.OK, "0 tasks: nothing to wait for\n")
    assert daemon.last(wire.WatchTasks).selection == wire.Selection(unfinished=True)


def test_wait_verdicts(daemon: FakeDaemon, run: Run) -> None:
    daemon.add(view(1, "succeeded", job="good"))
    daemon.add(view(2, "failed", job="bad", exit_code=2))
    daemon.add(view(3, "cancelled", job="bad"))
    assert run("wait", "--job", "good").code == Exit.OK
    ran = run("wait", "--job", "bad")
    assert ran.code == Exit.FAILED_TASKS
    assert ran.err == "task 2 failed: exit code 2\ntask 3 cancelled: cancelled\n2 tasks: 1 failed, 1 cancelled\n"
    ran = run("wait", "2", "--quiet")
    assert (ran.code, ran.out, ran.err) == (Exit.FAILED_TASKS, "", "")


def test_wait_json(daemon: FakeDaemon, run: Run) -> None:
    daemon.add(view(2, "failed", exit_code=2, message="no such file", worker="w1", attempt=1))
    daemon.add(view(1, "succeeded", exit_code=0, worker="w1", attempt=1))
    document = run("wait", "1-2", "--json").json()
    assert {key: document[key] for key in ("total", "succeeded", "failed", "cancelled")} == {
        "total": 2,
        "succeeded": 1,
        "failed": 1,
        "cancelled": 0,
    }
    assert [list(task) for task in document["tasks"]] == [
        ["id", "state", "cause", "exit_code", "message", "worker", "attempt"]
    ] * 2
    assert [task["id"] for task in document["tasks"]] == [1, 2]


def test_wait_timeout(daemon: FakeDaemon, run: Run) -> None:
    daemon.add(view(1))
    ran = run("wait", "1", "--timeout", "10ms")
    assert ran.code == Exit.TIMEOUT
    assert ran.err.startswith("error: the time is up and not all of them have ended\nhint: ")


def test_wait_looks_once_however_short_the_time_is(
    daemon: FakeDaemon, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("schedd.cli.commands.wait.LOOK_S", 60.0)
    daemon.add(view(1, "succeeded"))
    daemon.add(view(2, "failed"))
    daemon.add(view(3))
    assert run("wait", "1", "--timeout", "0").code == Exit.OK
    assert run("wait", "1-2", "--timeout", "0").code == Exit.FAILED_TASKS
    assert run("wait", "1,3", "--timeout", "0").code == Exit.TIMEOUT


def test_wait_timeout_covers_the_connecting(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("schedd.cli.commands.wait.LOOK_S", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        ran = run("wait", "1", "--timeout", "10ms", "--address", f"127.0.0.1:{silent.getsockname()[1]}")
    assert (ran.code, ran.err) == (Exit.TIMEOUT, "error: the time is up and the daemon has not answered\n")


def test_wait_for_a_job_that_is_not_there(daemon: FakeDaemon, run: Run) -> None:
    ran = run("wait", "--job", "nope")
    assert (ran.code, ran.err) == (
        Exit.NOT_FOUND,
        "error: no task belongs to the job 'nope'\nhint: see `schedd jobs`\n",
    )


def test_preempt(daemon: FakeDaemon, run: Run) -> None:
    for task_id, state in ((1, "running"), (2, "queued"), (3, "assigned")):
        daemon.add(view(task_id, job="sweep", state=state))
    ran = run("preempt", "1", "3", "--grace", "2m")
    assert (ran.code, ran.err) == (Exit.OK, "preempted 2 tasks\n")
    assert daemon.last(wire.PreemptTasks) == wire.PreemptTasks(1, wire.Selection(ids=[TaskId(1), TaskId(3)]), 120.0)
    assert run("preempt", "--job", "sweep", "--json").json() == {"changed": 2, "unchanged": []}
    assert daemon.last(wire.PreemptTasks).grace_s is None


def test_preempt_of_what_no_worker_has(daemon: FakeDaemon, run: Run) -> None:
    left: list[tuple[int | str, str]] = [(1, "is queued: no worker has it (`hold` keeps it back)")]
    daemon.answers[wire.PreemptTasks] = lambda request: wire.Changed(request.request, 0, left)
    ran = run("preempt", "1")
    assert ran.code == Exit.REFUSED
    assert ran.err.splitlines()[1] == "task 1 left as it is: is queued: no worker has it (`hold` keeps it back)"
    assert run("preempt").code == Exit.USAGE
    assert run("preempt", "--all").code == Exit.USAGE
