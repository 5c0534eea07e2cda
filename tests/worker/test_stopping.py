"""What a task notices of a stop: calls that look whether they are to stop, commands, and those that do neither."""

from __future__ import annotations

import os
import pickle
import sys
from functools import partial
from pathlib import Path

import pytest

from schedd.core.model import Cause, Command, TaskRules
from schedd.wire.messages import AttemptFinished, StopAttempts

from .fake_daemon import until
from .running import Running, arguments, call_of, pid_in, running_worker, until_gone

pytestmark = pytest.mark.asyncio
#: So long that a test which waited for it would fail.
LONG_GRACE = TaskRules(grace_s=60)

# -------------------------------------------------------------------------------------------------------------- calls


def nothing() -> None:
    """Have a child up that has imported this module: on a busy machine that alone takes longer than a short timeout."""


def look_until_told(path: str, *, then: str = "leave", threads: bool = False) -> str:
    """Run until asked to stop, then return, or leave with an exit code."""
    import sys
    import threading
    import time

    from schedd.worker.task_api import should_stop

    def wait() -> None:
        while not should_stop():
            if not os.path.exists(path):  # noqa: PTH110
                Path(path).write_text(f"{os.getpid()}\n")
            time.sleep(0.002)

    if threads:
        waiting = threading.Thread(target=wait)
        waiting.start()
        waiting.join()
    else:
        wait()
    if then == "leave":
        sys.exit("saved")
    return "saved"


@pytest.mark.parametrize("threads", [False, True])
@pytest.mark.parametrize(
    ("cause", "then", "told"),
    [
        (Cause.PREEMPTED, "leave", Cause.PREEMPTED),
        (Cause.PREEMPTED, "return", Cause.OK),
        (Cause.CANCELLED, "return", Cause.CANCELLED),
    ],
)
async def test_call_that_looks_has_its_grace(
    tmp_path: Path, cause: Cause, then: str, told: Cause, threads: bool
) -> None:
    """It gets no signal: it ends by its own doing, with what it likes to save."""
    async with running_worker(tmp_path) as run:
        function = partial(look_until_told, then=then, threads=threads)
        [task_id] = run.daemon.dispatch(call_of(function), [arguments(str(tmp_path / "pid"))], rules=LONG_GRACE)
        pid = await pid_in(tmp_path / "pid")
        run.daemon.send(StopAttempts([(task_id, 1)], cause))
        end = await run.daemon.end_of(task_id)
        assert (end.cause, end.signal) == (told, None)
        assert (end.result is not None) == (told is Cause.OK)
        await until_gone(pid)


async def test_call_that_looks_when_its_time_is_out(tmp_path: Path) -> None:
    async with running_worker(tmp_path) as run:
        await run.value_of(nothing)
        end = await run.call(look_until_told, str(tmp_path / "pid"), rules=TaskRules(timeout_s=1))
        assert (end.cause, end.signal) == (Cause.TIMEOUT, None)


async def test_call_that_looks_and_goes_on_is_killed(tmp_path: Path) -> None:
    def shrug(path: str) -> None:
        import time

        from schedd.worker.task_api import should_stop

        should_stop()
        Path(path).write_text(f"{os.getpid()}\n")
        while True:
            time.sleep(0.01)

    async with running_worker(tmp_path) as run:
        [task_id] = run.daemon.dispatch(call_of(shrug), [arguments(str(tmp_path / "pid"))])
        await pid_in(tmp_path / "pid")
        run.daemon.send(StopAttempts([(task_id, 1)], Cause.PREEMPTED, 0.1))
        end = await run.daemon.end_of(task_id)
        assert (end.cause, end.signal) == (Cause.PREEMPTED, 9)


async def test_call_that_never_looks_is_ended_by_sigterm(tmp_path: Path) -> None:
    """Also where an earlier call of the same child has looked."""

    def look() -> bool:
        from schedd.worker.task_api import should_stop

        return should_stop()

    def idle(path: str) -> None:
        import time

        Path(path).write_text(f"{os.getpid()}\n")
        time.sleep(1000)

    async with running_worker(tmp_path) as run:
        assert await run.value_of(look) is False
        child = await run.value_of(os.getpid)
        [task_id] = run.daemon.dispatch(call_of(idle), [arguments(str(tmp_path / "pid"))], rules=LONG_GRACE)
        assert await pid_in(tmp_path / "pid") == child
        run.daemon.send(StopAttempts([(task_id, 1)], Cause.PREEMPTED))
        end = await run.daemon.end_of(task_id)
        assert (end.cause, end.signal) == (Cause.PREEMPTED, 15)
        assert await run.value_of(look) is False


async def test_helpers_of_a_call_that_looks_are_left_to_it(tmp_path: Path) -> None:
    def train(path: str) -> int:
        import subprocess

        helper = subprocess.Popen(["sh", "-c", "read line; exit 7"], stdin=subprocess.PIPE)
        look_until_told(path, then="return")
        helper.communicate(b"save\n")
        return helper.returncode

    async with running_worker(tmp_path) as run:
        [task_id] = run.daemon.dispatch(call_of(train), [arguments(str(tmp_path / "pid"))])
        await pid_in(tmp_path / "pid")
        run.daemon.send(StopAttempts([(task_id, 1)], Cause.PREEMPTED))
        end = await run.daemon.end_of(task_id)
        assert (end.cause, pickle.loads(end.result or b"")) == (Cause.OK, 7)


# ----------------------------------------------------------------------------------------------------------- commands


#: Says that it is up, then waits until it is asked to stop, and leaves with what it is given as its exit code.
TRAINING = """
import pathlib, sys, time
from schedd.worker.task_api import should_stop
{before}
while not should_stop():
    pathlib.Path(sys.argv[1]).touch()
    time.sleep(0.002)
{after}
"""


async def stopped(run: Running, up: Path, command: Command, cause: Cause = Cause.PREEMPTED) -> AttemptFinished:
    """Stop a command once the file says that it is up."""
    [task_id] = run.daemon.dispatch(command, rules=LONG_GRACE)
    await until(up.exists)
    run.daemon.send(StopAttempts([(task_id, 1)], cause))
    return await run.daemon.end_of(task_id)


def training(up: Path, after: str, before: str = "") -> Command:
    return Command([sys.executable, "-c", TRAINING.format(before=before, after=after), str(up)])


@pytest.mark.parametrize(
    ("after", "cause", "exit_code"), [("sys.exit(3)", Cause.PREEMPTED, 3), ("sys.exit(0)", Cause.OK, 0)]
)
async def test_command_that_looks_whether_to_stop(tmp_path: Path, after: str, cause: Cause, exit_code: int) -> None:
    async with running_worker(tmp_path) as run:
        end = await stopped(run, tmp_path / "up", training(tmp_path / "up", after))
        assert (end.cause, end.exit_code) == (cause, exit_code)


async def test_handler_of_a_command_is_called_too(tmp_path: Path) -> None:
    before = "import signal; signal.signal(signal.SIGTERM, lambda *_: print('mine', flush=True))"
    async with running_worker(tmp_path) as run:
        end = await stopped(run, tmp_path / "up", training(tmp_path / "up", "sys.exit(3)", before))
        assert (end.cause, run.log(end.task_id)) == (Cause.PREEMPTED, b"mine\n")


async def test_thread_of_a_command_sees_it_where_the_main_thread_has_asked(tmp_path: Path) -> None:
    code = (
        "import pathlib, sys, threading, time\n"
        "from schedd.worker.task_api import should_stop\n"
        "seen = threading.Event()\n"
        "def wait():\n"
        "    while not should_stop(): time.sleep(0.002)\n"
        "    seen.set()\n"
        "threading.Thread(target=should_stop).start()\n"
        "should_stop()\n"
        "threading.Thread(target=wait).start()\n"
        "pathlib.Path(sys.argv[1]).touch()\n"
        "seen.wait()\n"
        "sys.exit(4)\n"
    )
    async with running_worker(tmp_path) as run:
        end = await stopped(run, tmp_path / "up", Command([sys.executable, "-c", code, str(tmp_path / "up")]))
        assert (end.cause, end.exit_code) == (Cause.PREEMPTED, 4)


async def test_helpers_of_a_command_that_looks_still_end_by_sigterm(tmp_path: Path) -> None:
    """`multiprocessing` relies on it."""
    code = (
        "import multiprocessing, time\n"
        "from schedd.worker.task_api import should_stop\n"
        "should_stop()\n"
        "helper = multiprocessing.get_context('fork').Process(target=time.sleep, args=(1000,))\n"
        "helper.start(); helper.terminate(); helper.join()\n"
        "raise SystemExit(-helper.exitcode)\n"
    )
    async with running_worker(tmp_path) as run:
        end = await run.daemon.run(Command([sys.executable, "-c", code]))
        assert end.exit_code == 15


@pytest.mark.parametrize(
    ("script", "cause"),
    [
        ("trap 'exit 0' TERM; touch {up}; while :; do sleep 0.01; done", Cause.OK),
        ("trap 'exit 9' TERM; touch {up}; while :; do sleep 0.01; done", Cause.PREEMPTED),
        ("touch {up}; sleep 1000", Cause.PREEMPTED),
    ],
)
async def test_exit_code_0_is_done_also_while_it_makes_room(tmp_path: Path, script: str, cause: Cause) -> None:
    up = tmp_path / "up"
    async with running_worker(tmp_path) as run:
        end = await stopped(run, up, Command(["sh", "-c", script.format(up=up)]))
        assert end.cause is cause


async def test_command_knows_its_grace(tmp_path: Path) -> None:
    async with running_worker(tmp_path) as run:
        end = await run.daemon.run(Command(["sh", "-c", "echo $SCHEDD_GRACE_S"]), rules=TaskRules(grace_s=2.5))
        assert run.log(end.task_id) == b"2.5\n"
