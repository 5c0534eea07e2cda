from __future__ import annotations

import asyncio
import os
import pickle
import signal
from pathlib import Path
from typing import Any

import pytest

from schedd.core.model import Call, Cause, TaskRequirements, TaskRules
from schedd.wire.messages import DropAttempts, FetchLog, LogPiece, StopAttempts
from schedd.worker.processes import children_of

from .fake_daemon import until
from .running import arguments, call_of, failure_of, pid_in, running_worker, until_gone
from .test_commands import DAEMONISE

pytestmark = pytest.mark.asyncio


class AwkwardError(Exception):
    """Can be pickled and not opened again."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__("awkward")


async def test_value_comes_back(tmp_path: Path) -> None:
    async with running_worker(tmp_path) as run:
        for value in (None, True, 5, 1.5, "ä", b"\0", [1, {"a": (2,)}], 10**100):
            assert await run.value_of(lambda x: x, value) == value
        power: Any = await run.value_of(lambda: lambda x: x**2)
        assert power(3) == 9


async def test_path_in_place_of_a_function(tmp_path: Path) -> None:
    async with running_worker(tmp_path) as run:
        end = await run.daemon.run(Call(path="os.path:join"), arguments("a", "b"))
        assert pickle.loads(end.result or b"") == "a/b"
        end = await run.daemon.run(Call(path="no_such_module:f"), arguments())
        assert (end.cause, end.message) == (
            Cause.ERROR,
            "ModuleNotFoundError: No module named 'no_such_module' (on worker w1)",
        )
        end = await run.daemon.run(Call(path="os:no.such"), arguments())
        assert "AttributeError" in end.message
        end = await run.daemon.run(Call(path="os:sep"), arguments())
        assert end.message == "TypeError: os:sep is not callable"


async def test_function_that_cannot_be_loaded_fails_each_time_for_that_reason(tmp_path: Path) -> None:
    function = b"cno_such_module\nf\n."  # what a client pickles of a module that only it has
    async with running_worker(tmp_path) as run:
        for _ in range(3):
            end = await run.daemon.run(Call(function=function), arguments())
            assert end.message == "ModuleNotFoundError: No module named 'no_such_module' (on worker w1)"


async def test_exception_comes_back_with_its_traceback(tmp_path: Path) -> None:
    def inner() -> None:
        raise ValueError("bad lr")

    def outer() -> None:
        inner()

    async with running_worker(tmp_path) as run:
        end = await run.call(outer)
        assert (end.cause, end.message) == (Cause.ERROR, "ValueError: bad lr")
        error, text = failure_of(end)
        assert type(error) is ValueError
        assert "in inner" in text
        assert "child.py" not in text


async def test_exception_that_cannot_travel_is_replaced(tmp_path: Path) -> None:
    def awkward() -> None:
        raise AwkwardError(1, 2)

    def leave() -> None:
        raise SystemExit(3)

    async with running_worker(tmp_path) as run:
        end = await run.call(awkward)
        error, text = failure_of(end)
        assert (type(error), str(error)) == (RuntimeError, "AwkwardError: awkward")
        assert "AwkwardError" in text
        end = await run.call(leave)
        assert (end.cause, end.message) == (Cause.ERROR, "SystemExit: 3")
        assert type(failure_of(end)[0]) is RuntimeError


async def test_exception_that_ends_whoever_opens_it_is_replaced(tmp_path: Path) -> None:
    class Ends(Exception):
        def __reduce__(self) -> tuple[Any, ...]:
            return SystemExit, ("stop",)

    class EndsAtOnce(Exception):
        def __reduce__(self) -> tuple[Any, ...]:
            raise SystemExit(3)

    async with running_worker(tmp_path) as run:
        before = await run.value_of(os.getpid)
        for kind in (Ends, EndsAtOnce):

            def fail(kind: type[Exception] = kind) -> None:
                raise kind("diverged")

            end = await run.call(fail)
            error, text = failure_of(end)
            assert (type(error), str(error)) == (RuntimeError, f"{kind.__name__}: diverged")
            assert "in fail" in text
            end = await run.call(lambda kind=kind: kind("a value"))
            assert end.cause == (Cause.OK if kind is Ends else Cause.ERROR)
        assert await run.value_of(os.getpid) == before


async def test_exception_that_is_raised_again_and_again_holds_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        import builtins

        held = type("Held", (), {"__del__": lambda self: builtins.__dict__.__setitem__("dropped", True)})()
        builtins.__dict__.setdefault("again", ValueError("the same"))
        assert held
        raise builtins.__dict__["again"]

    async with running_worker(tmp_path) as run:
        texts = [failure_of(await run.call(fail))[1] for _ in range(3)]
        assert texts[0] == texts[1] == texts[2]
        assert await run.value_of(eval, "__import__('builtins').dropped")


async def test_out_of_memory_among_several(tmp_path: Path) -> None:
    def one_of_several() -> None:
        raise ExceptionGroup("ranks", [ValueError("not this"), RuntimeError("CUDA out of memory. Tried to allocate")])

    async with running_worker(tmp_path) as run:
        assert (await run.call(one_of_several)).cause is Cause.OOM_GPU


async def test_memory_errors_have_causes_of_their_own(tmp_path: Path) -> None:
    def host() -> None:
        raise MemoryError

    def gpu() -> None:
        raise RuntimeError("CUDA out of memory. Tried to allocate")

    async with running_worker(tmp_path) as run:
        assert (await run.call(host)).cause is Cause.OOM_HOST
        assert (await run.call(gpu)).cause is Cause.OOM_GPU


async def test_result_that_cannot_be_pickled(tmp_path: Path) -> None:
    async with running_worker(tmp_path) as run:
        end = await run.call(lambda: (x for x in [1]))
        assert (end.cause, end.result) == (Cause.ERROR, None)
        assert end.message.startswith("a result of type generator cannot be pickled: TypeError: ")


async def test_result_above_the_bound(tmp_path: Path) -> None:
    def complain() -> None:
        raise ValueError("x" * 2_000_000)

    async with running_worker(tmp_path, result_mb_max=1.0) as run:
        end = await run.call(lambda: b"x" * 2_000_000)
        assert (end.cause, end.result) == (Cause.ERROR, None)
        assert end.message == "result of 1.9 MB is above the bound of 1 MB"
        end = await run.call(complain)
        assert end.cause is Cause.ERROR
        assert type(failure_of(end)[0]) is RuntimeError
        assert len(end.message) <= 500


async def test_large_arguments_and_results(tmp_path: Path) -> None:
    data = os.urandom(5_000_000)

    async with running_worker(tmp_path) as run:
        assert await run.value_of(lambda x: x[::-1], data) == data[::-1]
        assert await run.value_of(lambda: len(data)) == len(data)
        run_folder = next(run.folder.glob("run-*"))
        assert [path.name for path in run_folder.iterdir() if path.suffix in (".call", ".reply")] == []


async def test_children_are_used_again(tmp_path: Path) -> None:
    async with running_worker(tmp_path) as run:
        pids = {await run.value_of(os.getpid) for _ in range(5)}
        pids |= {await run.value_of(lambda: os.getpid())}
        assert len(pids) == 1


async def test_function_is_loaded_once(tmp_path: Path) -> None:
    class Loud:
        def __reduce__(self) -> tuple[Any, ...]:
            return eval, ("(globals().__setitem__('n', globals().get('n', 0) + 1), lambda: n)[1]", {})

    async with running_worker(tmp_path) as run:
        call = Call(pickle.dumps(Loud()))
        ends = [await run.daemon.run(call) for _ in range(3)]
        assert [pickle.loads(end.result or b"") for end in ends] == [1, 1, 1]


async def test_environment_of_a_call(tmp_path: Path) -> None:
    async with running_worker(tmp_path) as run:
        end = await run.call(lambda: dict(os.environ), job="sweep", kind="train")
        env = pickle.loads(end.result or b"")
        assert (env["SCHEDD_TASK_ID"], env["SCHEDD_ATTEMPT"]) == (str(end.task_id), "1")
        assert (env["SCHEDD_JOB"], env["SCHEDD_KIND"], env["SCHEDD_WORKER"]) == ("sweep", "train", "w1")


async def test_folder_that_a_call_changed_is_restored(tmp_path: Path) -> None:
    async with running_worker(tmp_path) as run:
        before = await run.value_of(os.getcwd)
        await run.value_of(os.chdir, "/usr")
        assert await run.value_of(os.getcwd) == before


async def test_streams_that_a_call_replaced_are_restored(tmp_path: Path) -> None:
    def tee(path: str) -> None:
        import sys

        sys.stdout = sys.stderr = open(path, "w")  # noqa: PTH123, SIM115

    async with running_worker(tmp_path) as run:
        before = await run.value_of(os.getpid)
        await run.value_of(tee, str(tmp_path / "tee"))
        end = await run.call(print, "hello")
        assert run.log(end.task_id) == b"hello\n"
        assert await run.value_of(os.getpid) == before


@pytest.mark.parametrize("how", ["sys.stdout.close()", "os.close(2)"])
async def test_streams_that_a_call_closed_are_not_the_next_ones(tmp_path: Path, how: str) -> None:
    async with running_worker(tmp_path) as run:
        assert (await run.daemon.run(Call(path="builtins:exec"), arguments(f"import os, sys; {how}"))).cause == "ok"
        end = await run.call(print, "hello")
        assert (end.cause, run.log(end.task_id)) == ("ok", b"hello\n")


async def test_devices_of_a_call_are_not_changed_by_another(tmp_path: Path) -> None:
    async with running_worker(tmp_path) as run:
        before = await run.value_of(os.environ.get, "CUDA_VISIBLE_DEVICES")
        await run.daemon.run(
            Call(path="builtins:exec"), arguments("import os; os.environ['CUDA_VISIBLE_DEVICES'] = '7'")
        )
        assert await run.value_of(os.environ.get, "CUDA_VISIBLE_DEVICES") == before


async def test_output_goes_to_the_logs_of_each_call(tmp_path: Path) -> None:
    def talk(word: str) -> None:
        import sys

        print(word)  # noqa: T201
        os.write(1, b"raw\n")
        print(word.upper(), file=sys.stderr)  # noqa: T201

    async with running_worker(tmp_path) as run:
        first = await run.call(talk, "one")
        await run.call(os.getpid)
        second = await run.call(talk, "\udcff")
        assert run.log(first.task_id) == b"one\nraw\n"
        assert run.log(first.task_id, "stderr") == b"ONE\n"
        assert run.log(second.task_id) == b"\\udcff\nraw\n"


async def test_output_of_a_running_call_can_be_followed(tmp_path: Path) -> None:
    def talk(go: str) -> None:
        import sys
        import time

        sys.stdout.write("begun\n")  # at once, which `print` is not where nothing is buffered
        while not os.path.exists(go):  # noqa: PTH110
            time.sleep(0.01)
        print("done")  # noqa: T201

    async with running_worker(tmp_path) as run:
        [task_id] = run.daemon.dispatch(call_of(talk), [arguments(str(tmp_path / "go"))])

        async def read(request: int) -> LogPiece:
            run.daemon.send(FetchLog(request, task_id, 1, "stdout", 0, 100))
            return await run.daemon.wait(lambda: next((p for p in pieces() if p.request == request), None))

        def pieces() -> list[LogPiece]:
            return run.daemon.of_type(LogPiece)

        await run.daemon.start_of(task_id)
        request = 0
        while not (piece := await read(request)).data:
            request += 1
        assert (piece.data, piece.done) == (b"begun\n", False)
        (tmp_path / "go").touch()
        await run.daemon.end_of(task_id)
        piece = await read(request + 1)
        assert (piece.data, piece.done, piece.error) == (b"begun\ndone\n", True, "")


@pytest.mark.parametrize(
    ("code", "message", "exit_code", "signal_number"),
    [
        ("import os; os._exit(3)", "the child process died: exit code 3", 3, None),
        ("import os; os.kill(os.getpid(), 9)", "the child process died: killed by SIGKILL", None, 9),
        ("import ctypes; ctypes.string_at(0)", "the child process died: killed by SIGSEGV", None, 11),
    ],
)
async def test_crash_fails_only_its_own_call(
    tmp_path: Path, code: str, message: str, exit_code: int | None, signal_number: int | None
) -> None:
    async with running_worker(tmp_path) as run:
        before = await run.value_of(os.getpid)
        function = Call(path="builtins:exec")
        ids = run.daemon.dispatch(function, [arguments("print('last words', flush=True); " + code)])
        ids += run.daemon.dispatch(call_of(os.getpid), [arguments()] * 3)
        ends = [await run.daemon.end_of(task_id) for task_id in ids]
        assert (ends[0].cause, ends[0].message) == (Cause.ERROR, message)
        assert (ends[0].exit_code, ends[0].signal) == (exit_code, signal_number)
        assert run.log(ids[0]) == b"last words\n"
        after = {pickle.loads(end.result or b"") for end in ends[1:]}
        assert len(after) == 1
        assert after != {before}


async def test_child_that_cannot_start_is_an_error_of_its_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHOME", "/nonexistent")
    async with running_worker(tmp_path) as run:
        end = await run.call(os.getpid)
        assert end.cause is Cause.ERROR
        assert end.message.startswith("the child process did not start: exit code 1")
        assert run.log(end.task_id, "stderr")


async def test_idle_child_that_was_killed_is_replaced(tmp_path: Path) -> None:
    async with running_worker(tmp_path) as run:
        pid = await run.value_of(os.getpid)
        os.kill(pid, signal.SIGKILL)
        await until_gone(pid)
        assert await run.value_of(os.getpid) != pid


def spin() -> None:
    while True:
        pass


def nothing() -> None:
    pass


def shrug_and_spin(path: str) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with open(path, "w") as file:  # noqa: PTH123
        print(os.getpid(), file=file)
    spin()


async def test_busy_call_is_cancelled(tmp_path: Path) -> None:
    async with running_worker(tmp_path) as run:
        [busy, queued] = run.daemon.dispatch(call_of(spin), [arguments()] * 2)
        await run.daemon.start_of(busy)
        run.daemon.send(StopAttempts([(busy, 1), (queued, 1)]))
        ends = [await run.daemon.end_of(task_id) for task_id in (busy, queued)]
        assert [end.cause for end in ends] == [Cause.CANCELLED] * 2
        assert await run.value_of(os.getpid)


async def test_call_that_ignores_sigterm_is_killed_after_the_grace(tmp_path: Path) -> None:
    async with running_worker(tmp_path) as run:
        # In a child that is up and has imported this module: all that would take its time, a second or more.
        await run.value_of(nothing)
        rules = TaskRules(timeout_s=1.0, grace_s=0.2)
        end = await run.call(shrug_and_spin, str(tmp_path / "pid"), rules=rules)
        assert (end.cause, end.signal) == (Cause.TIMEOUT, 9)


async def test_call_that_heeds_sigterm_ends_by_itself_and_its_child_is_replaced(tmp_path: Path) -> None:
    def heed(path: str) -> None:
        stopped = []
        signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
        Path(path).write_text(f"{os.getpid()}\n")
        while not stopped:
            signal.pause()

    async with running_worker(tmp_path) as run:
        [task_id] = run.daemon.dispatch(call_of(heed), [arguments(str(tmp_path / "pid"))])
        pid = await pid_in(tmp_path / "pid")
        run.daemon.send(StopAttempts([(task_id, 1)]))
        end = await run.daemon.end_of(task_id)
        assert (end.cause, end.signal) == (Cause.CANCELLED, None)
        await until_gone(pid)
        assert await run.value_of(os.getpid) != pid


async def test_call_that_reports_without_end_starves_nobody(tmp_path: Path) -> None:
    def chatter() -> None:
        from schedd.worker.task_api import report

        while True:
            report(1, 0.5)

    async with running_worker(tmp_path, cpus=2.0) as run:
        [task_id] = run.daemon.dispatch(call_of(chatter), rules=TaskRules(grace_s=0))
        await run.daemon.wait(lambda: run.daemon.reports)
        for _ in range(3):
            assert await run.value_of(int) == 0
        run.daemon.send(StopAttempts([(task_id, 1)]))
        assert (await run.daemon.end_of(task_id)).cause is Cause.CANCELLED


async def test_dropped_call_is_killed_and_not_reported(tmp_path: Path) -> None:
    async with running_worker(tmp_path) as run:
        [task_id] = run.daemon.dispatch(call_of(shrug_and_spin), [arguments(str(tmp_path / "pid"))])
        pid = await pid_in(tmp_path / "pid")
        run.daemon.send(DropAttempts([(task_id, 1)]))
        await until_gone(pid)
        await run.value_of(os.getpid)
        assert (task_id, 1) not in run.daemon.finished


def start_sleeper(path: str) -> int:
    import subprocess
    import time

    subprocess.Popen(["python3", "-c", DAEMONISE, path])
    while not os.path.exists(path) or not os.path.getsize(path):  # noqa: PTH110, PTH202
        time.sleep(0.01)
    return os.getpid()


async def test_nothing_is_left_of_a_call_that_starts_a_daemon(tmp_path: Path) -> None:
    async with running_worker(tmp_path) as run:
        child = await run.value_of(start_sleeper, str(tmp_path / "pid"))
        await until_gone(await pid_in(tmp_path / "pid"), child)
        assert await run.value_of(os.getpid) != child


async def test_call_that_forks_and_returns_twice_is_answered_once(tmp_path: Path) -> None:
    async with running_worker(tmp_path) as run:
        await run.value_of(os.fork)
        assert await run.value_of(lambda: 5) == 5
        assert run.daemon.finished_count == 2


async def test_report_from_a_call(tmp_path: Path) -> None:
    def train() -> None:
        import subprocess
        import sys

        from schedd.worker.task_api import report

        for step in range(3):
            report(step, 1 / (step + 1), lr=0.1)
        code = "from schedd.worker.task_api import report; report(9)"
        subprocess.run([sys.executable, "-c", code], check=True)

    async with running_worker(tmp_path) as run:
        end = await run.call(train)
        assert end.cause is Cause.OK
        reports = [report for report in run.daemon.reports if report.step < 9]
        assert [(r.task_id, r.step) for r in reports] == [(end.task_id, step) for step in range(3)]
        assert reports[1].metrics == {"metric": 0.5, "lr": 0.1}
        assert any(report.step == 9 for report in run.daemon.reports)


async def test_idle_children_end(tmp_path: Path) -> None:
    async with running_worker(tmp_path, child_idle_s=0.05) as run:
        pid = await run.value_of(os.getpid)
        await until_gone(pid)
        await until(lambda: pid not in children_of(os.getpid()))


async def test_calls_of_several_slots_run_together(tmp_path: Path) -> None:
    def meet(path: str, count: int) -> int:
        import time

        with open(f"{path}/{os.getpid()}", "w"):  # noqa: PTH123
            pass
        while len(os.listdir(path)) < count:  # noqa: PTH208
            time.sleep(0.005)
        return os.getpid()

    folder = tmp_path / "meeting"
    folder.mkdir()
    async with running_worker(tmp_path, cpus=3.0) as run:
        ids = run.daemon.dispatch(call_of(meet), [arguments(str(folder), 3)] * 3)
        ends = await asyncio.gather(*(run.daemon.end_of(task_id) for task_id in ids))
        assert len({pickle.loads(end.result or b"") for end in ends}) == 3


async def test_call_that_writes_into_our_channel_fails_alone(tmp_path: Path) -> None:
    def scribble() -> None:
        os.write(3, b"\xff\xff")
        spin()

    async with running_worker(tmp_path) as run:
        end = await run.call(scribble)
        assert (end.cause, end.message) == (Cause.ERROR, "the child process died: killed by SIGKILL")
        assert await run.value_of(lambda: 5) == 5


async def test_call_without_a_cpu_runs_at_once(tmp_path: Path) -> None:
    async with running_worker(tmp_path) as run:
        [busy] = run.daemon.dispatch(call_of(spin), rules=TaskRules(grace_s=0))
        assert await run.value_of(lambda: 5, requirements=TaskRequirements(cpus=0)) == 5
        run.daemon.send(StopAttempts([(busy, 1)]))
        await run.daemon.end_of(busy)
