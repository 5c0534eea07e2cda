from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

from schedd.core.model import Cause, Command, TaskRules
from schedd.wire.messages import DropAttempts, FetchLog, LogPiece, StopAttempts
from schedd.worker import commands

from .fake_daemon import until
from .running import Running, is_alive, open_files, pid_in, running_worker, until_gone

pytestmark = pytest.mark.asyncio
NO_GRACE = TaskRules(grace_s=0.2)


def python(code: str, *args: str) -> Command:
    return Command([sys.executable, "-c", code, *args])


async def test_arguments_arrive_as_they_are(tmp_path: Path) -> None:
    async with running_worker(tmp_path) as run:
        odd = ["a\nb", "", "ä ö", "'\"$HOME\\"]
        end = await run.daemon.run(Command(["printf", "<%s>", *odd]))
        assert (end.cause, end.exit_code, end.message) == (Cause.OK, 0, "")
        assert run.log(end.task_id) == b"".join(b"<%b>" % part.encode() for part in odd)


async def test_exit_code_and_signal_are_told(tmp_path: Path) -> None:
    async with running_worker(tmp_path) as run:
        end = await run.daemon.run(Command(["sh", "-c", "echo oh >&2; exit 3"]))
        assert (end.cause, end.exit_code, end.signal, end.message) == (Cause.ERROR, 3, None, "exit code 3: oh")
        assert run.log(end.task_id, "stderr") == b"oh\n"
        end = await run.daemon.run(Command(["sh", "-c", "kill -SEGV $$"]))
        assert (end.cause, end.exit_code, end.signal, end.message) == (Cause.ERROR, None, 11, "killed by SIGSEGV")


async def test_end_is_told_whatever_goes_wrong_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the attempt would run for ever, for all that the daemon knows."""

    def fail(*arguments: object) -> None:
        raise RuntimeError("oh")

    async with running_worker(tmp_path) as run:
        monkeypatch.setattr(commands.Commands, "_why", fail)
        end = await run.daemon.run(Command(["false"]))
        told = "exit code 1; what else there is to be said of it failed: RuntimeError('oh')"
        assert (end.cause, end.message) == (Cause.ERROR, told)
        assert (await run.daemon.run(Command(["true"]))).cause is Cause.OK


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (Command(["no-such-program"]), "program not found: 'no-such-program'"),
        (Command(["no-such-program"], env={"PATH": "/bin"}), "program not found: 'no-such-program'"),
        (Command(["true"], cwd="/no/such/folder"), "working directory '/no/such/folder': No such file or directory"),
        (Command(["/etc/passwd"]), "cannot run '/etc/passwd': Permission denied"),
        (Command(["/etc/passwd"], cwd="/"), "cannot run '/etc/passwd': Permission denied"),
        (Command([]), "the command cannot be started: the command is empty"),
        (Command(["true", "a\0b"]), "the command cannot be started: embedded null byte"),
        (Command(["true"], env={"A=B": "c"}), "the command cannot be started: illegal environment variable name"),
        (Command(["true", "x" * 3_000_000]), "cannot run 'true': Argument list too long"),
    ],
)
async def test_command_that_cannot_start_says_why(tmp_path: Path, command: Command, message: str) -> None:
    async with running_worker(tmp_path) as run:
        end = await run.daemon.run(command)
        assert (end.cause, end.message) == (Cause.ERROR, message)
        assert (await run.daemon.run(Command(["true"]))).cause is Cause.OK


async def test_environment_of_a_command(tmp_path: Path) -> None:
    async with running_worker(tmp_path) as run:
        command = python("import os, json; print(json.dumps(dict(os.environ)))")
        end = await run.daemon.run(
            Command(command.argv, env={"LR": "0.1"}, cwd=str(tmp_path)), job="sweep", kind="train"
        )
        env = json.loads(run.log(end.task_id))
        assert env["LR"] == "0.1"
        assert (env["SCHEDD_TASK_ID"], env["SCHEDD_ATTEMPT"]) == (str(end.task_id), "1")
        assert (env["SCHEDD_JOB"], env["SCHEDD_KIND"], env["SCHEDD_WORKER"]) == ("sweep", "train", "w1")
        assert "CUDA_VISIBLE_DEVICES" not in env or "CUDA_VISIBLE_DEVICES" in os.environ


async def test_cwd_and_stdin(tmp_path: Path) -> None:
    async with running_worker(tmp_path) as run:
        end = await run.daemon.run(Command(["sh", "-c", "pwd; wc -c"], cwd="/usr", stdin=b"x" * 3_000_000))
        assert run.log(end.task_id).split() == [b"/usr", b"3000000"]
        end = await run.daemon.run(Command(["cat"]))
        assert end.cause is Cause.OK


async def test_argument_goes_into_variable_and_braces(tmp_path: Path) -> None:
    async with running_worker(tmp_path) as run:
        command = Command(["sh", "-c", 'printf "%s|%s" "$1" "$ITEM"', "sh", "file-{}.txt"], variable="ITEM")
        end = await run.daemon.run(command, b"\xff7")
        assert run.log(end.task_id) == b"file-\xff7.txt|\xff7"


async def test_much_output_and_bytes_that_are_no_text(tmp_path: Path) -> None:
    async with running_worker(tmp_path) as run:
        end = await run.daemon.run(python("import os\nfor _ in range(160): os.write(1, b'\\xff\\xfe' * 32768)"))
        assert end.cause is Cause.OK
        assert run.log(end.task_id) == b"\xff\xfe" * 32768 * 160


async def test_files_of_silent_commands_are_used_again(tmp_path: Path) -> None:
    async with running_worker(tmp_path) as run:
        for _ in range(5):
            await run.daemon.run(Command(["true"]))
        files = open_files()
        loud = [await run.daemon.run(Command(["echo", str(index)])) for index in range(5)]
        await run.daemon.run(Command(["true"]))
        assert [run.log(end.task_id) for end in loud] == [b"%d\n" % index for index in range(5)]
        assert open_files() == files


@pytest.mark.parametrize("make", ["mkfifo $SCHEDD_RESULT; setsid sleep 60 <>$SCHEDD_RESULT &", "mkdir $SCHEDD_RESULT"])
async def test_result_that_is_no_file(tmp_path: Path, make: str) -> None:
    async with running_worker(tmp_path) as run:
        for _ in range(2):
            end = await run.daemon.run(Command(["sh", "-c", make]))
            assert (end.cause, end.result, end.message) == (Cause.OK, None, "SCHEDD_RESULT is no file")


async def test_folder_in_place_of_a_result_costs_no_descriptor(tmp_path: Path) -> None:
    async with running_worker(tmp_path) as run:
        await run.daemon.run(Command(["true"]))
        files = open_files()
        for _ in range(10):
            await run.daemon.run(Command(["sh", "-c", "mkdir $SCHEDD_RESULT"]))
        assert open_files() < files + 10, "what is kept for the next command does not grow with each"


async def test_json_result_comes_back(tmp_path: Path) -> None:
    async with running_worker(tmp_path, result_mb_max=0.001) as run:
        write = "open(__import__('os').environ['SCHEDD_RESULT'], 'w').write({})"
        end = await run.daemon.run(python(write.format("'{\"loss\": 1}'")))
        assert (end.cause, end.result, end.message) == (Cause.OK, b'{"loss": 1}', "")
        end = await run.daemon.run(python(write.format("'{'")))
        assert (end.cause, end.result) == (Cause.OK, None)
        assert "SCHEDD_RESULT is not JSON" in end.message
        end = await run.daemon.run(python(write.format("'1' * 1049")))
        assert (end.cause, end.result) == (Cause.OK, None)
        assert end.message == "SCHEDD_RESULT is above the bound of 1048 bytes"
        end = await run.daemon.run(Command(["sh", "-c", "echo 5 > $SCHEDD_RESULT; exit 4"]))
        assert (end.cause, end.result, end.message) == (Cause.ERROR, b"5\n", "exit code 4")
        end = await run.daemon.run(Command(["sh", "-c", "mkfifo $SCHEDD_RESULT"]))
        assert end.result is None


@pytest.mark.parametrize(
    ("written", "result", "message"),
    [
        ('{"loss": NaN, "n": 2}', b'{"loss":null,"n":2}', "null in place of NaN and Infinity in SCHEDD_RESULT: 1"),
        (
            "[Infinity, -Infinity, 'é']",
            b'[null,null,"\\u00e9"]',
            "null in place of NaN and Infinity in SCHEDD_RESULT: 2",
        ),
        ('["NaN", ]', None, "SCHEDD_RESULT is not JSON"),
        ("[NaN, ", None, "SCHEDD_RESULT is not JSON"),
        ("[NaN, 1e999]", None, "SCHEDD_RESULT is not JSON"),
        ("[" * 5000 + "NaN" + "]" * 5000, None, "SCHEDD_RESULT is not JSON"),
        ("[" + "NaN," * 5100 + "NaN]", None, "SCHEDD_RESULT is above the bound of 20971 bytes"),
    ],
)
async def test_result_with_numbers_that_are_not_finite(
    tmp_path: Path, written: str, result: bytes | None, message: str
) -> None:
    """Python's `json.dump` writes them by default: what is beside them is not to be lost."""
    async with running_worker(tmp_path, result_mb_max=0.02) as run:
        write = "open(__import__('os').environ['SCHEDD_RESULT'], 'w').write(__import__('sys').argv[1])"
        end = await run.daemon.run(python(write, written.replace("'", '"')))
        assert (end.cause, end.result) == (Cause.OK, result)
        assert message in end.message


async def test_report_from_a_command(tmp_path: Path) -> None:
    async with running_worker(tmp_path) as run:
        code = "from schedd.worker.task_api import report\nreport(3, 0.5, lr=1)\nreport(4, float('nan'))"
        [task_id] = run.daemon.dispatch(python(code))
        await run.daemon.end_of(task_id)
        first, second = run.daemon.reports
        assert (first.task_id, first.step, first.metrics) == (task_id, 3, {"metric": 0.5, "lr": 1.0})
        assert second.metrics["metric"] != second.metrics["metric"]


async def test_report_that_is_nonsense_is_ignored(tmp_path: Path) -> None:
    async with running_worker(tmp_path) as run:
        code = (
            "import os, socket\ns = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
            "for d in b'', b'{', b'\\xff', b'[1]', b'{\"task_id\": 99, \"attempt\": 1, \"step\": 1}': "
            "s.sendto(d, os.environ['SCHEDD_REPORT'])"
        )
        end = await run.daemon.run(python(code))
        assert end.cause is Cause.OK
        assert run.daemon.reports == []


async def test_gpu_out_of_memory_has_its_own_cause(tmp_path: Path) -> None:
    async with running_worker(tmp_path) as run:
        end = await run.daemon.run(Command(["sh", "-c", "echo 'RuntimeError: CUDA out of memory.' >&2; exit 1"]))
        assert (end.cause, end.message) == (
            Cause.OOM_GPU,
            "exit code 1: out of GPU memory: RuntimeError: CUDA out of memory.",
        )


async def test_cancel_ends_a_tree_that_ignores_sigterm(tmp_path: Path) -> None:
    async with running_worker(tmp_path) as run:
        script = f"trap '' TERM; sleep 1000 & echo $! > {tmp_path}/child; echo $$ > {tmp_path}/root; wait; sleep 1000"
        [task_id] = run.daemon.dispatch(Command(["sh", "-c", script]), rules=NO_GRACE)
        pids = [await pid_in(tmp_path / "root"), await pid_in(tmp_path / "child")]
        run.daemon.send(StopAttempts([(task_id, 1)]))
        end = await run.daemon.end_of(task_id)
        assert (end.cause, end.signal) == (Cause.CANCELLED, 9)
        await until_gone(*pids)


async def test_timeout_ends_descendants_in_sessions_of_their_own(tmp_path: Path) -> None:
    async with running_worker(tmp_path) as run:
        script = f"setsid sleep 1000 & echo $! > {tmp_path}/child; wait"
        end = await run.daemon.run(Command(["sh", "-c", script]), rules=TaskRules(timeout_s=0.3))
        assert (end.cause, end.message, end.signal) == (Cause.TIMEOUT, "ran longer than 0.3 s", 15)
        await until_gone(await pid_in(tmp_path / "child"))


DAEMONISE = """
import os, sys, time
if os.fork(): os.wait(); sys.exit()
os.setsid()
if os.fork(): os._exit(0)
with open(sys.argv[1], "w") as file: print(os.getpid(), file=file)
time.sleep(1000)
"""


async def test_nothing_is_left_of_a_command_that_daemonises(tmp_path: Path) -> None:
    async with running_worker(tmp_path) as run:
        wait = f"; while ! [ -s {tmp_path}/pid ]; do sleep 0.01; done"
        command = [sys.executable, "-c", DAEMONISE, str(tmp_path / "pid")]
        end = await run.daemon.run(Command(["sh", "-c", f'"$@"{wait}', "sh", *command]))
        assert end.cause is Cause.OK
        await until_gone(await pid_in(tmp_path / "pid"))


async def test_what_another_attempt_daemonised_lives_as_long_as_that_one(tmp_path: Path) -> None:
    async with running_worker(tmp_path, cpus=2.0) as run:
        command = [sys.executable, "-c", DAEMONISE, str(tmp_path / "pid")]
        [long] = run.daemon.dispatch(Command(["sh", "-c", '"$@"; sleep 1000', "sh", *command]), rules=NO_GRACE)
        pid = await pid_in(tmp_path / "pid")
        await run.daemon.run(Command(["true"]))
        assert is_alive(pid)
        run.daemon.send(StopAttempts([(long, 1)]))
        await run.daemon.end_of(long)
        await until_gone(pid)


async def test_background_process_is_killed_with_its_group(tmp_path: Path) -> None:
    async with running_worker(tmp_path) as run:
        end = await run.daemon.run(Command(["sh", "-c", f"sleep 1000 & echo $! > {tmp_path}/pid"]))
        assert end.cause is Cause.OK
        await until_gone(await pid_in(tmp_path / "pid"))


async def test_drop_kills_and_says_nothing(tmp_path: Path) -> None:
    async with running_worker(tmp_path) as run:
        [task_id] = run.daemon.dispatch(Command(["sh", "-c", f"echo $$ > {tmp_path}/pid; sleep 1000"]))
        pid = await pid_in(tmp_path / "pid")
        run.daemon.send(DropAttempts([(task_id, 1)]))
        await until_gone(pid)
        await run.daemon.run(Command(["true"]))
        assert (task_id, 1) not in run.daemon.finished


async def log_piece(run: Running, task_id: int, offset: int, limit: int, stream: str = "stdout") -> LogPiece:
    request = len(run.daemon.messages)
    run.daemon.send(FetchLog(request, task_id, 1, stream, offset, limit))  # type: ignore[arg-type]

    def answer() -> LogPiece | None:
        return next((piece for piece in run.daemon.of_type(LogPiece) if piece.request == request), None)

    return await run.daemon.wait(answer)


async def test_log_can_be_read_while_it_grows_and_after(tmp_path: Path) -> None:
    async with running_worker(tmp_path) as run:
        script = f"printf 0123456789; while ! [ -e {tmp_path}/go ]; do sleep 0.01; done; printf abc"
        [task_id] = run.daemon.dispatch(Command(["sh", "-c", script]))
        await until(lambda: run.log(task_id) == b"0123456789")
        piece = await log_piece(run, task_id, 2, 3)
        assert (piece.data, piece.offset, piece.size, piece.done) == (b"234", 2, 10, False)
        piece = await log_piece(run, task_id, -4, 100)
        assert (piece.data, piece.offset, piece.done) == (b"6789", 6, False)
        (tmp_path / "go").touch()
        await run.daemon.end_of(task_id)
        piece = await log_piece(run, task_id, 10, 100)
        assert (piece.data, piece.done) == (b"abc", True)
        piece = await log_piece(run, task_id, 0, 5)
        assert (piece.data, piece.done) == (b"01234", False)
        piece = await log_piece(run, task_id, 0, 100, "stderr")
        assert (piece.data, piece.done, piece.error) == (b"", True, "")
        for task, offset, limit, stream in ((999, 0, 1, "stdout"), (task_id, 0, 1, "../x"), (-1, 2**62, -5, "stdout")):
            piece = await log_piece(run, task, offset, limit, stream)
            assert piece.error
            assert piece.done


async def test_only_the_newest_logs_are_kept(tmp_path: Path) -> None:
    async with running_worker(tmp_path, logs_keep_count=3) as run:
        ends = [await run.daemon.run(Command(["echo", "x"])) for _ in range(5)]
        kept = [end.task_id for end in ends if run.log(end.task_id)]
        assert kept == [end.task_id for end in ends[-3:]]


async def test_many_failing_starts_do_not_stop_the_rest(tmp_path: Path) -> None:
    async with running_worker(tmp_path) as run:
        ids = run.daemon.dispatch(Command(["no-such-program"]), [b""] * 100)
        ids += run.daemon.dispatch(Command(["true"]), [b""] * 20)
        ends = await asyncio.gather(*(run.daemon.end_of(task_id) for task_id in ids))
        assert [end.cause for end in ends] == [Cause.ERROR] * 100 + [Cause.OK] * 20
