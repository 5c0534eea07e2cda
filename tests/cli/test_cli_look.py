"""Commands that look: tasks, show, jobs, workers, explain, stats, logs."""

from __future__ import annotations

import json

import msgspec
import pytest

from schedd.cli.exits import Exit
from schedd.core.model import (
    AttemptRecord,
    Call,
    Cause,
    CauseLimit,
    Command,
    Gpu,
    GpuUsage,
    HostUsage,
    TaskRequirements,
    WorkerId,
    WorkerResources,
)
from schedd.wire import messages as wire
from schedd.wire.raised import encode_raised

from .conftest import Run
from .fake_daemon import STATS, FakeDaemon, detail, view, worker

TASK_KEYS = [
    "id",
    "key",
    "job",
    "kind",
    "state",
    "cause",
    "priority",
    "attempt",
    "worker",
    "exit_code",
    "submitted_at",
    "started_at",
    "finished_at",
    "message",
    "report",
    "promoted",
    "owner",
]


@pytest.fixture
def three(daemon: FakeDaemon) -> FakeDaemon:
    daemon.add(view(1, "succeeded", job="a", exit_code=0, started_at=1000.0, finished_at=1004.0, worker="w1"))
    daemon.add(view(2, "running", job="b", worker="w1", started_at=1001.0, report={"step": 3, "loss": 0.5}))
    daemon.add(view(3, "failed", job="b", cause="timeout", message="longer than 5 s\nsecond line"))
    return daemon


@pytest.mark.usefixtures("three")
class TestTasks:
    def test_json_has_exactly_these_keys(self, run: Run) -> None:
        rows = run("tasks", "--all", "--json").json()
        assert [list(row) for row in rows] == [TASK_KEYS] * 3
        assert rows[1]["report"] == {"step": 3, "loss": 0.5}
        assert rows[2]["cause"] == "timeout"

    def test_unfinished_by_default(self, run: Run) -> None:
        assert run("tasks", "--quiet").out == "2\n"

    def test_filters(self, run: Run) -> None:
        assert run("tasks", "--all", "--job", "b", "-q").out == "2\n3\n"
        assert run("tasks", "--state", "failed", "--state", "succeeded", "-q").out == "1\n3\n"
        assert run("tasks", "--all", "--limit", "2", "-q").out == "1\n2\n"
        assert run("tasks", "--all", "--limit", "0", "-q").out == "1\n2\n3\n"

    def test_table(self, run: Run) -> None:
        head, *rows = run("tasks", "--all").out.splitlines()
        assert head.split() == ["id", "job", "kind", "state", "prio", "worker", "time", "about"]
        assert rows[0].split() == ["1", "a", "python", "succeeded", "0", "w1", "4.0s"]
        assert "loss=0.5" in rows[1]
        assert "failed (timeout)" in rows[2]
        assert rows[2].endswith("longer than 5 s")

    def test_table_says_that_there_is_more(self, run: Run) -> None:
        ran = run("tasks", "--all", "--limit", "2")
        assert len(ran.out.splitlines()) == 3
        assert ran.err == "only the first 2 are shown; --limit 0 shows all\n"

    def test_nothing_to_list(self, run: Run) -> None:
        ran = run("tasks", "--job", "none")
        assert (ran.code, ran.out) == (Exit.OK, "")
        assert "--all" in ran.err
        assert run("tasks", "--job", "none", "--json").out == "[]\n"

    def test_unknown_state(self, run: Run) -> None:
        ran = run("tasks", "--state", "runing")
        assert ran.code == Exit.USAGE
        assert ran.err == "error: 'runing' is not a state of a task\nhint: did you mean 'running'?\n"


def test_show_json(daemon: FakeDaemon, run: Run) -> None:
    attempts = [AttemptRecord(1, WorkerId("w1"), 10**9, 2 * 10**9, 5 * 10**9, Cause.OOM_GPU, 1, None, "out", (0,))]
    daemon.add(
        view(4, "succeeded"),
        detail(result=b'{"loss": 0.25}', attempts=attempts, requirements=TaskRequirements(min_gpus=1), argument=b"7"),
    )
    [task] = run("show", "4", "--json").json()
    assert list(task)[: len(TASK_KEYS)] == TASK_KEYS
    assert task["argv"] == ["python", "train.py"]
    assert task["result"] == {"loss": 0.25}
    assert task["argument"] == "7"
    assert task["requirements"]["min_gpus"] == 1
    assert task["requirements"]["cpus"] == 1.0
    [attempt] = task["attempts"]
    assert (attempt["cause"], attempt["started_at"], attempt["finished_at"]) == ("oom_gpu", 2.0, 5.0)


def test_show_what_never_ran(daemon: FakeDaemon, run: Run) -> None:
    told = AttemptRecord(0, WorkerId(""), 0, 0, 10**9, Cause.CANCELLED, message="needs task 3, which failed")
    daemon.add(view(4, "cancelled"), detail(attempts=[told]))
    (line,) = (line for line in run("show", "4").out.splitlines() if line.startswith("never ran"))
    assert line.split("  ")[1].startswith("cancelled, 19")
    assert line.endswith(": needs task 3, which failed")


def test_show_says_whom_an_attempt_made_room_for(daemon: FakeDaemon, run: Run) -> None:
    second = 10**9
    told = AttemptRecord(
        1, WorkerId("w1"), second, second, 4 * second, Cause.PREEMPTED, 3, None, "made room for task 12"
    )
    daemon.add(view(4, "running"), detail(attempts=[told]))
    assert "attempt 1  preempted on w1 after 3.0s, exit code 3, made room for task 12\n" in run("show", "4").out


def test_priority_and_what_adds_to_it(daemon: FakeDaemon, run: Run) -> None:
    daemon.add(view(1, priority=2.0, promoted=0.75), detail())
    daemon.add(view(2, priority=2.0, promoted=-0.5), detail())
    assert "priority   2 + 0.75 (last report of what it comes after)\n" in run("show", "1").out
    assert "priority   2 - 0.5 (last report of what it comes after)\n" in run("show", "2").out
    listed = [line.split() for line in run("tasks").out.splitlines()[1:]]
    assert ["2.75" in listed[0], "1.5" in listed[1]] == [True, True]


def test_show_result_that_is_no_json(daemon: FakeDaemon, run: Run) -> None:
    daemon.add(view(1, "succeeded"), detail(result=b"plain words"))
    daemon.add(view(2, "succeeded"), detail(result=b"\x80\x05\xff", payload=Call(path="m:f"), argument=b"\x80\x04"))
    first, second = run("show", "1-2", "--json").json()
    assert first["result"] == "plain words"
    assert second["result"] == {"bytes": 3, "base64": "gAX/"}
    assert second["function"] == "m:f"
    text = run("show", "2").out
    assert "result     3 bytes (not text)" in text
    assert "function   m:f" in text
    assert "argument   2 bytes" in text


def test_show_what_a_call_raised(daemon: FakeDaemon, run: Run) -> None:
    """Nothing of the exception is opened for it; what could steer a terminal is made visible."""
    told = 'Traceback (most recent call last):\n  File "/a/train.py", line 3, in train\nValueError: bad \x1b[31mlr\n'
    daemon.add(view(1, "failed"), detail(result=encode_raised(b"cnowhere\nOops\n.", told), payload=Call(path="m:f")))
    daemon.add(view(2, "failed"), detail(result=encode_raised(b"", "the beginning\n" + "x" * 20_000 + "\nthe end\n")))
    first, second = run("show", "1-2", "--json").json()
    assert (first["result"], first["traceback"]) == (None, told)
    assert second["traceback"].endswith("the end\n")
    assert run("show", "1").out.endswith(
        "traceback  Traceback (most recent call last):\n"
        '             File "/a/train.py", line 3, in train\n'
        "           ValueError: bad \\x1b[31mlr\n"
    )
    shown = run("show", "2").out
    assert len(shown) < 11_000
    assert "traceback  the beginning\n" in shown
    assert shown.endswith("           the end\n")


def test_show_a_result_that_looks_like_ours(daemon: FakeDaemon, run: Run) -> None:
    daemon.add(view(1, "succeeded"), detail(result=b'{"bytes": 1, "base64": 2}'))
    assert 'result     {"bytes":1,"base64":2}\n' in run("show", "1").out


def test_show_for_people(daemon: FakeDaemon, run: Run) -> None:
    payload = Command(["python", "a b.py"], env={"X": "1"}, cwd="/data")
    wanted = TaskRequirements(min_gpus=2, min_memory=8, variants=(TaskRequirements(cpus=4),))
    daemon.add(
        view(1, job="sweep", key="k"), detail(payload=payload, requirements=wanted, after=[3, 4, 5], missing=[5])
    )
    lines = dict(line.split("  ", 1) for line in run("show", "1").out.splitlines())
    assert lines["command"].strip() == "python 'a b.py'"
    assert lines["needs"].strip() == "1 cpus, 2 × gpu with 8 GB, or 4 cpus"
    assert lines["after"].strip() == "3-5"
    assert lines["still missing"].strip() == "5"


def test_show_what_went_wrong_and_how_often_it_may(daemon: FakeDaemon, run: Run) -> None:
    attempts = [
        AttemptRecord(
            1, WorkerId("w1"), 10**9, 2 * 10**9, 5 * 10**9, Cause.OOM_GPU, 1, None, "no memory; asks for 12 GB"
        ),
        AttemptRecord(2, WorkerId("w2"), 10**9, 0, 6 * 10**9, Cause.ERROR, 7),
        AttemptRecord(3, WorkerId("w3"), 10**9, 7 * 10**9, 8 * 10**9, Cause.OK, 0),
    ]
    limits = [CauseLimit(Cause.ERROR, 0, 2), CauseLimit(Cause.LOST, 4, 3)]
    daemon.add(view(1, "failed"), detail(attempts=attempts, limits=limits))
    lines = run("show", "1").out.splitlines()
    told = {line[:9]: line for line in lines if line.startswith(("attempt 1", "attempt 2", "attempt 3"))}
    assert told["attempt 1"].split("  ")[1].startswith("oom_gpu on w1 after 3.0s, 19")
    assert told["attempt 1"].endswith(": no memory; asks for 12 GB")
    assert told["attempt 2"].split("  ")[1].startswith("error on w2, 19")
    assert told["attempt 2"].endswith(", exit code 7")
    assert told["attempt 3"].endswith("ok on w3 after 1.0s, exit code 0")
    assert "retries    0 of 2 after error, 3 of 3 after lost" in lines
    [task] = run("show", "1", "--json").json()
    assert task["limits"] == [
        {"cause": "error", "count": 0, "limit": 2},
        {"cause": "lost", "count": 4, "limit": 3},
    ]


def test_show_unknown_task(daemon: FakeDaemon, run: Run) -> None:
    daemon.fail(wire.ListTasks, wire.UNKNOWN_TASK, "there is no task 9", "ids are in `schedd tasks`")
    ran = run("show", "9")
    assert ran.code == Exit.NOT_FOUND
    assert ran.err == "error: there is no task 9\nhint: ids are in `schedd tasks`\n"


def test_show_what_is_there_and_name_what_is_not(daemon: FakeDaemon, run: Run) -> None:
    daemon.add(view(1))
    ran = run("show", "1,8-9")
    assert (ran.code, ran.err) == (Exit.NOT_FOUND, "error: there is no task 8-9\n")
    assert "task       1\n" in ran.out
    ran = run("show", "1,9", "--json")
    assert (ran.code, [task["id"] for task in ran.json()]) == (Exit.NOT_FOUND, [1])


def test_names_cannot_steer_the_terminal(daemon: FakeDaemon, run: Run) -> None:
    daemon.add(view(1, job="a\x1b[2Jb\nc"))
    assert "a\\x1b[2Jb\\nc" in run("tasks").out
    assert "\x1b" not in run("show", "1").out
    assert run("tasks", "--json").json()[0]["job"] == "a\x1b[2Jb\nc"


def test_jobs(daemon: FakeDaemon, run: Run) -> None:
    daemon.jobs = [wire.JobView("sweep", 10, {"succeeded": 4, "running": 2, "queued": 3, "failed": 1}, 0.0, 0.0, 60.0)]
    assert run("jobs").out.splitlines()[1].split() == ["sweep", "10", "4", "2", "3", "1", "0", "1m", "0s"]
    [job] = run("jobs", "--json").json()
    assert list(job) == ["name", "total", "states", "priority_max", "submitted_at", "finished_at", "held_kinds"]
    assert run("jobs", "--quiet").out == "sweep\n"


def test_jobs_that_are_held(daemon: FakeDaemon, run: Run) -> None:
    why = {"train.py": "the last 20 tasks of kind train.py failed, on 2 workers"}
    daemon.jobs = [wire.JobView("sweep", 100, {"failed": 20, "held": 80}, 0.0, 0.0, None, why)]
    assert run("jobs").out.splitlines()[2:] == [
        "sweep is held: the last 20 tasks of kind train.py failed, on 2 workers"
    ]
    assert run("jobs", "--json").json()[0]["held_kinds"] == why


def test_workers(daemon: FakeDaemon, run: Run) -> None:
    assert "schedd worker --connect" in run("workers").err
    daemon.workers = [worker("w1"), worker("w2", status="draining")]
    assert run("workers", "--quiet").out == "w1\nw2\n"
    cells = run("workers").out.splitlines()[2].split()
    assert cells == ["w2", "draining", "2/8", "1/4", "A100", "2", "1", "10", "1", "500ms"]
    assert run("workers", "--json").json()[1]["status"] == "draining"
    daemon.workers = [worker("w1"), worker("w2", status="unreachable", silence="the connection was lost")]
    assert run("workers").out.splitlines()[-1] == "w2 is unreachable: the connection was lost"


@pytest.mark.parametrize("command", ["workers", "top"])
def test_what_is_an_array_on_the_wire_has_names_in_json(daemon: FakeDaemon, run: Run, command: str) -> None:
    usage = HostUsage(97.5, 1, 2, gpus=(GpuUsage("GPU-1", used_mb=300),))
    daemon.workers = [worker("w1", resources=WorkerResources(gpus=(Gpu("GPU-1", "A100", 40960),)), usage=usage)]
    document = run(command, "--json").json()
    [row] = document if command == "workers" else document["workers"]
    assert row["resources"]["gpus"] == [{"uuid": "GPU-1", "model": "A100", "memory_mb": 40960}]
    assert (row["usage"]["cpu_percent"], row["usage"]["gpus"][0]["used_mb"]) == (97.5, 300)
    assert list(row) == list(wire.WorkerView.__struct_fields__)


def test_workers_in_quarantine(daemon: FakeDaemon, run: Run) -> None:
    bad = wire.QuarantineView("9 of 10 attempts failed there, elsewhere 2 of 60", 1000.0, 1060.0, 3)
    daemon.workers = [worker("w1"), worker("w2", status="quarantined", quarantine=bad)]
    lines = run("workers").out.splitlines()
    assert lines[2].split()[:2] == ["w2", "quarantined"]
    assert lines[3:] == [
        "w2 is in quarantine: 9 of 10 attempts failed there, elsewhere 2 of 60, found bad 3 times; "
        "tried again when a task suits"
    ]
    assert [row["quarantine"] for row in run("workers", "--json").json()] == [
        None,
        {"reason": bad.reason, "since": 1000.0, "probe_at": 1060.0, "repeats": 3},
    ]


def test_show_an_attempt_that_does_not_count(daemon: FakeDaemon, run: Run) -> None:
    failed = AttemptRecord(1, WorkerId("w1"), 10**9, 2 * 10**9, 5 * 10**9, Cause.ERROR, 1, excused=True)
    daemon.add(view(4), detail(attempts=[failed]))
    lines = dict(line.split("  ", 1) for line in run("show", "4").out.splitlines())
    assert lines["attempt 1"].strip().endswith(", not counted because the worker was in quarantine, exit code 1")
    assert run("show", "4", "--json").json()[0]["attempts"][0]["excused"] is True


def test_explain(daemon: FakeDaemon, run: Run) -> None:
    daemon.answers[wire.ExplainTask] = lambda request: wire.Explanation(
        request.request,
        request.task_id,
        "queued",
        "no worker has room",
        [wire.Blocker("GPUs are busy", 2, "needs 2, the most free is 1")],
        [wire.WorkerVerdict(WorkerId("w1"), "needs 2 GPUs, 1 is free")],
        ahead=4,
    )
    lines = run("explain", "5").out.splitlines()
    assert lines[:3] == [
        "task 5 is queued: no worker has room",
        "queued tasks with a better rank: 4",
        "- GPUs are busy (2 workers): needs 2, the most free is 1",
    ]
    assert lines[-1].split(maxsplit=1) == ["w1", "needs 2 GPUs, 1 is free"]
    document = run("explain", "5", "--json").json()
    assert list(document) == ["id", "state", "summary", "ahead", "blockers", "workers"]
    assert document["blockers"][0]["workers"] == 2


def test_stats(daemon: FakeDaemon, run: Run) -> None:
    document = run("stats", "--json").json()
    assert document["states"]["queued"] == 3
    assert "request" not in document
    assert "uptime             1m 40s" in run("stats").out
    assert "shadow" not in run("stats").out


def test_stats_of_a_daemon_without_workers(daemon: FakeDaemon, run: Run) -> None:
    daemon.answers[wire.GetStats] = lambda request: [
        msgspec.structs.replace(STATS, request=request.request, workers={}, attempts_by_cause={})
    ]
    lines = [line.split() for line in run("stats").out.splitlines()]
    assert ["workers", "none"] in lines
    assert ["attempts", "by", "cause", "none"] in lines


SHADOW = wire.ShadowView("adaptive", 200, 150, 100, 1234.5, 500.0, 7)


def with_shadow(request: wire.GetStats) -> list[object]:
    return [msgspec.structs.replace(STATS, request=request.request, shadow=SHADOW)]


def test_shadow_is_shown_beside_the_policy_in_use(daemon: FakeDaemon, run: Run) -> None:
    daemon.answers[wire.GetStats] = with_shadow
    lines = run("policies").out.splitlines()
    uses = {line.split()[0]: line.split()[1:3] for line in lines[1:7]}
    assert uses["priority"] == ["in", "use"]
    assert uses["adaptive"][0] == "shadow"
    assert [line.split(maxsplit=1) for line in lines[8:]] == [
        ["shadow", "adaptive"],
        ["decisions", "200, of 7 more it was not asked"],
        ["same", "worker        150 (75.0%)"],
        ["valued", "100"],
        ["gain,", "it believes  +1,234.5 s, +12.35 s each"],
        ["gain,", "as observed  +500.0 s, +5.00 s each"],
    ]
    rows = {row["name"]: row for row in run("policies", "--json").json()}
    assert [row["name"] for row in rows.values() if row["in_use"]] == ["priority"]
    figures = msgspec.to_builtins(SHADOW)
    assert rows["adaptive"]["shadow"] == figures
    assert run("stats", "--json").json()["shadow"] == figures
    assert "adaptive: decisions 200, of 7 more" in run("stats").out


def test_policies_without_a_shadow(daemon: FakeDaemon, run: Run) -> None:
    ran = run("policies")
    assert len(ran.out.splitlines()) == 7
    assert "in use" in ran.out
    assert not ran.err


# ---------------------------------------------------------------------------------------------------------------- logs


def test_logs_are_bytes(daemon: FakeDaemon, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    from schedd.cli.main import main

    daemon.log = bytes(range(256)) * 3000  # several pieces
    assert main(["logs", "5"]) == Exit.OK
    assert capfdbinary.readouterr().out == daemon.log


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--tail", "2"], "three\nfour"),
        (["--tail", "1"], "four"),
        (["--tail", "4"], "one\ntwo\nthree\nfour"),
        (["--tail", "99"], "one\ntwo\nthree\nfour"),
        (["--tail", "0"], ""),
        (["--tail", "6b"], "e\nfour"),
        (["--tail", "1k"], "one\ntwo\nthree\nfour"),
    ],
)
@pytest.mark.parametrize("end", ["", "\n"])
def test_tail_of_logs(daemon: FakeDaemon, run: Run, options: list[str], expected: str, end: str) -> None:
    daemon.log = f"one\ntwo\nthree\nfour{end}".encode()
    if end and options == ["--tail", "6b"]:
        expected = "\nfour"
    assert run("logs", "5", *options).out == (expected + end if expected else "")


def test_tail_over_many_pieces(daemon: FakeDaemon, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("schedd.cli.commands.logs.PIECE_BYTES", 3)
    daemon.log = b"".join(b"%d\n" % i for i in range(50))
    assert run("logs", "5", "--tail", "12").out == "".join(f"{i}\n" for i in range(38, 50))


def test_logs_say_what_they_want(daemon: FakeDaemon, run: Run) -> None:
    run("logs", "5", "--stderr", "--attempt", "2")
    request = daemon.last(wire.ReadLog)
    assert (request.task_id, request.stream, request.offset) == (5, "stderr", 0)


def test_logs_follow_one_attempt_to_its_end(daemon: FakeDaemon, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("schedd.cli.commands.logs.FOLLOW_S", 0.0)
    asked: list[wire.ReadLog] = []

    def read(request: wire.ReadLog) -> wire.LogData:
        asked.append(request)
        data = [b"o", b"one\n", b"", b"two\n", b""][min(len(asked) - 1, 4)]
        return wire.LogData(request.request, data, request.offset, 8, len(asked) >= 4, 2)

    daemon.answers[wire.ReadLog] = read
    assert run("logs", "5", "-f").out == "one\ntwo\n"
    # The first one only finds out that there is output.
    assert [(each.offset, each.attempt) for each in asked] == [(0, 0), (0, 2), (4, 2), (4, 2), (8, 2)]


def test_logs_follow_waits_for_the_start(daemon: FakeDaemon, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("schedd.cli.commands.logs.FOLLOW_S", 0.0)
    daemon.add(view(5))
    asked: list[wire.ReadLog] = []

    def read(request: wire.ReadLog) -> wire.RequestFailed | wire.LogData:
        asked.append(request)
        if len(asked) < 3:
            return wire.RequestFailed(request.request, wire.ILLEGAL_STATE, "task 5 has not run yet")
        return wire.LogData(request.request, b"one\n"[request.offset :], request.offset, 4, True, 1)

    daemon.answers[wire.ReadLog] = read
    ran = run("logs", "5", "-f")
    assert (ran.code, ran.out, ran.err) == (Exit.OK, "one\n", "task 5 has not started yet\n")
    asked.clear()
    assert run("logs", "5").code == Exit.REFUSED
    asked.clear()
    daemon.add(view(5, "cancelled"))
    assert run("logs", "5", "-f").code == Exit.REFUSED


def test_logs_json(daemon: FakeDaemon, run: Run) -> None:
    daemon.log = b"caf\xe9"
    document = json.loads(run("logs", "5", "--json").out)
    assert document["data"] == {"bytes": 4, "base64": "Y2Fm6Q=="}


def test_logs_json_follows_to_the_end(daemon: FakeDaemon, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("schedd.cli.commands.logs.FOLLOW_S", 0.0)
    pieces = iter([b"o", b"one\n", b"", b"two\n", b""])
    left = 5

    def read(request: wire.ReadLog) -> wire.LogData:
        nonlocal left
        left -= 1
        return wire.LogData(request.request, next(pieces), request.offset, 8, not left, 1)

    daemon.answers[wire.ReadLog] = read
    document = run("logs", "5", "-f", "--json").json()
    assert (document["data"], document["done"]) == ("one\ntwo\n", True)


def test_logs_of_a_worker_that_is_away(daemon: FakeDaemon, run: Run) -> None:
    daemon.fail(wire.ReadLog, wire.WORKER_AWAY, "worker w1 is not connected")
    assert run("logs", "5").code == Exit.REFUSED


@pytest.mark.parametrize("state", ["queued", "running"])
def test_logs_follow_ends_with_an_attempt_that_was_lost(
    daemon: FakeDaemon, run: Run, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    """The task goes on with another attempt, or will; what is read is the first."""
    monkeypatch.setattr("schedd.cli.commands.logs.FOLLOW_S", 0.0)
    lost = AttemptRecord(1, WorkerId("w1"), 10**9, 2 * 10**9, 5 * 10**9, Cause.LOST)
    asked: list[wire.ReadLog] = []

    def read(request: wire.ReadLog) -> wire.LogData | wire.RequestFailed:
        asked.append(request)
        if len(asked) < 3:
            return wire.LogData(request.request, b"one\n"[request.offset :], request.offset, 4, False, 1)
        if len(asked) == 5:  # the worker was only away before
            daemon.add(view(5, state, attempt=1 + (state == "running")), detail(attempts=[lost]))
        if len(asked) == 50:  # far too late, but an end
            daemon.add(view(5, "cancelled", attempt=1), detail(attempts=[lost]))
        return wire.RequestFailed(request.request, wire.WORKER_AWAY, "worker w1 is not connected")

    daemon.add(view(5, "running", attempt=1))
    daemon.answers[wire.ReadLog] = read
    ran = run("logs", "5", "-f")
    assert (ran.code, ran.out) == (Exit.REFUSED, "one\n")
    assert ran.err == "error: attempt 1 has ended; worker w1 is not connected\n"
    assert len(asked) == 5


def test_views_survive_their_own_json(three: FakeDaemon, run: Run) -> None:
    rows = msgspec.json.decode(run("tasks", "--all", "--json").out, type=list[wire.TaskView])
    assert rows == [task for task, _ in three.tasks.values()]


def test_kinds(daemon: FakeDaemon, run: Run) -> None:
    lines = [line.split() for line in run("kinds").out.splitlines()]
    assert [line[:2] for line in lines[1:]] == [["train", "T4"], ["train", "A100"], ["eval", "-"]]
    assert [line[-3:] for line in lines[1:]] == [["3.00", "50%", "3"], ["1.00", "100%", "12"], ["1.00", "100%", "7"]]
    rows = run("kinds", "--json").json()
    assert (rows[0]["kind"], rows[0]["model"], rows[0]["success"], len(rows)) == ("train", "T4", 0.5, 3)


def test_no_kinds(daemon: FakeDaemon, run: Run) -> None:
    daemon.answers[wire.GetKinds] = lambda request: [wire.Kinds(request.request, "fifo", [])]
    ran = run("kinds")
    assert "nothing is known of any kind" in ran.err
