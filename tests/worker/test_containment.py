"""No process outlives its task, its child process or its worker, in each mode that this machine has."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import chain
from pathlib import Path

import pytest

from schedd.config import WorkerSettings
from schedd.core.model import Cause, Command, TaskId, TaskRules
from schedd.errors import ConfigError
from schedd.wire.messages import StopAttempts
from schedd.worker import cgroups, namespace_init
from schedd.worker.main import run_worker
from schedd.worker.oom import oom_kills_in
from schedd.worker.processes import children_of, descendants_of, read_file

from .fake_daemon import until
from .running import Running, arguments, call_of, is_alive, running_program, running_worker

pytestmark = [pytest.mark.asyncio, pytest.mark.needs("setsid", "pgrep")]
CGROUP = pytest.param("cgroup", marks=pytest.mark.needs("cgroup2"))
NAMESPACE = pytest.param("namespace", marks=pytest.mark.needs("pid_namespace"))
every_mode = pytest.mark.parametrize("mode", [CGROUP, NAMESPACE, "process-group"])
exact_modes = pytest.mark.parametrize("mode", [CGROUP, NAMESPACE])
only_cgroup = pytest.mark.needs("cgroup2")
NO_GRACE = TaskRules(grace_s=0.1)


class Sleeps:
    """Processes that can be told from all others on the machine, whatever they hide: by how long they sleep."""

    def __init__(self) -> None:
        self.length = f"{1000 + os.getpid()}.{uuid.uuid4().int % 10**9}"

    def pids(self) -> list[int]:
        found = []
        for name in os.listdir("/proc"):  # noqa: PTH208
            if name.isdigit():
                with contextlib.suppress(OSError):
                    words = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
                    # Not the shells and launchers that got it as an argument to pass on.
                    if self.length.encode() in words and words[0] != b"sh" and b"sh" not in words:
                        found += [int(name)] if is_alive(int(name)) else []
        return found

    async def count(self, number: int) -> None:
        await until(lambda: len(self.pids()) == number)


@pytest.fixture
def sleeps() -> Sleeps:
    return Sleeps()


def shell(script: str, *args: str) -> Command:
    return Command(["sh", "-c", script, "sh", *args])


#: Leaves its session and its parents, and clears its environment: nothing but a group or a namespace knows whose it is.
HIDE = "(setsid -f env -i sleep $1 &)"
#: In the background, in another session, daemonised; and one that ignores SIGTERM, which sleep inherits.
TREE = f"trap '' TERM; sleep $1 & (setsid sleep $1 &); setsid -f sleep $1; {HIDE}; exec sleep $1"
TREE_COUNT = 5
HIDDEN_COUNT = 40
#: Forks for ever, and is never the same process for long.
STORM = """
import os, sys
os.setsid()
os.mkdir(f"{sys.argv[2]}/{os.getpid()}")
while True:
    if os.fork(): os._exit(0)
"""


async def stop(run: Running, task_id: int) -> None:
    run.daemon.send(StopAttempts([(TaskId(task_id), 1)]))
    await run.daemon.end_of(task_id)


@every_mode
async def test_killed_task_leaves_nothing(tmp_path: Path, mode: str, sleeps: Sleeps) -> None:
    async with running_program(tmp_path, containment=mode) as (_, run):
        [task_id] = run.daemon.dispatch(shell(TREE, sleeps.length), rules=NO_GRACE)
        await sleeps.count(TREE_COUNT)
        run.daemon.send(StopAttempts([(TaskId(task_id), 1)]))
        end = await run.daemon.end_of(task_id)
        assert (end.cause, end.signal) == (Cause.CANCELLED, 9)
        await sleeps.count(0)
        assert (await run.daemon.run(Command(["true"]))).cause is Cause.OK


@every_mode
async def test_embedded_worker_leaves_nothing_either(tmp_path: Path, mode: str, sleeps: Sleeps) -> None:
    """It shares its group, and its children, with the program around it."""
    visible = TREE.replace(f"{HIDE};", "")
    async with running_worker(tmp_path, containment=mode) as run:
        [task_id] = run.daemon.dispatch(shell(visible, sleeps.length), rules=NO_GRACE)
        await sleeps.count(TREE_COUNT - 1)
        await stop(run, task_id)
        await sleeps.count(0)


@every_mode
async def test_task_that_ends_takes_all_with_it(tmp_path: Path, mode: str, sleeps: Sleeps) -> None:
    async with running_program(tmp_path, containment=mode) as (_, run):
        started = f"while [ $(pgrep -cfx 'sleep {sleeps.length}') -lt 3 ]; do sleep 0.01; done"
        command = shell(f"sleep $1 & setsid -f sleep $1; {HIDE}; {started}; exit 3", sleeps.length)
        end = await run.daemon.run(command)
        assert (end.cause, end.exit_code) == (Cause.ERROR, 3)
        await sleeps.count(0)


@exact_modes
async def test_process_that_hides_belongs_to_its_own_task(tmp_path: Path, mode: str, sleeps: Sleeps) -> None:
    """Also where it was forked in the first moments of its task, while another task runs."""
    other = Sleeps()
    async with running_program(tmp_path, containment=mode) as (_, run):
        # Many, so that some fork just while those before them are moved.
        hide_many = f"for _ in $(seq {HIDDEN_COUNT}); do {HIDE}; done"
        [long] = run.daemon.dispatch(shell(f"{hide_many}; exec sleep $1", other.length), rules=NO_GRACE)
        await other.count(HIDDEN_COUNT + 1)
        [short] = run.daemon.dispatch(shell(f"{HIDE}; exec sleep $1", sleeps.length), rules=NO_GRACE)
        await sleeps.count(2)
        await stop(run, short)
        await sleeps.count(0)
        is_up = f"while [ $(pgrep -cfx 'sleep {sleeps.length}') -lt 1 ]; do sleep 0.01; done"
        assert (await run.daemon.run(shell(f"{HIDE}; {is_up}", sleeps.length))).cause is Cause.OK
        await sleeps.count(0)
        assert len(other.pids()) == HIDDEN_COUNT + 1
        await stop(run, long)
        await other.count(0)


@exact_modes
async def test_forking_storm_is_outrun(tmp_path: Path, mode: str, sleeps: Sleeps) -> None:
    """It hides, while another task runs whose it could be."""
    async with running_program(tmp_path, containment=mode) as (_, run):
        run.daemon.dispatch(Command(["sleep", "1000"]))
        storm = f"for _ in $(seq 8); do env -i {sys.executable} -S -c '{STORM}' $1 $2 & done"
        many = "for _ in $(seq 100); do setsid -f sleep $1; done"
        started = tmp_path / "started"
        started.mkdir()
        script = f"{many}; {storm}; exec sleep $1"
        [task_id] = run.daemon.dispatch(shell(script, sleeps.length, str(started)), rules=NO_GRACE)
        await until(lambda: len(list(started.iterdir())) == 8 and len(sleeps.pids()) >= 101)
        await stop(run, task_id)
        await sleeps.count(0)


@every_mode
async def test_killed_worker_leaves_nothing(tmp_path: Path, mode: str, sleeps: Sleeps) -> None:
    # Without a group or a namespace nobody can know whose the hidden one is when the worker is gone.
    script = TREE if mode != "process-group" else TREE.replace(f"{HIDE};", "")
    count = TREE_COUNT - (mode == "process-group")
    async with running_program(tmp_path, containment=mode) as (program, run):
        run.daemon.dispatch(shell(script, sleeps.length))
        run.daemon.dispatch(shell("exec sleep $1", sleeps.length))
        await sleeps.count(count + 1)
        program.kill()
        program.wait()
        await sleeps.count(0)
        await until(lambda: not leftovers(run))


def leftovers(run: Running) -> list[str]:
    """What is left of the worker's control group."""
    note = run.folder / "cgroup"
    group = Path(note.read_text()) if note.exists() else None
    # `os.walk` passes over what is taken away while it looks.
    return [f"{folder}/{name}" for folder, *names in os.walk(group or "") for name in chain(*names)]


@every_mode
async def test_worker_that_is_killed_at_once(tmp_path: Path, mode: str, sleeps: Sleeps) -> None:
    """Before its guard is up, and before its tasks are in their groups."""
    async with running_program(tmp_path, containment=mode) as (program, run):
        run.daemon.dispatch(shell("setsid -f sleep $1; exec sleep $1", sleeps.length))
        await until(lambda: len(sleeps.pids()) > 0)
        program.kill()
        program.wait()
        await sleeps.count(0)


@every_mode
async def test_killed_child_leaves_nothing_of_its_call(tmp_path: Path, mode: str, sleeps: Sleeps) -> None:
    def spawn_and_wait(length: str) -> None:
        subprocess.run(["setsid", "-f", "sleep", length], check=True)
        tail = f"trap '' TERM; (setsid -f env -i sleep {length} &); exec sleep {length}"
        subprocess.run(["sh", "-c", tail], check=True)

    async with running_program(tmp_path, containment=mode) as (program, run):
        assert await run.value_of(abs, -5) == 5
        [task_id] = run.daemon.dispatch(call_of(spawn_and_wait), [arguments(sleeps.length)])
        await sleeps.count(3)
        os.kill(child_of(program.pid), signal.SIGKILL)
        end = await run.daemon.end_of(task_id)
        assert (end.cause, end.signal) == (Cause.ERROR, 9)
        await sleeps.count(0)
        assert await run.value_of(abs, -5) == 5


def child_of(worker: int) -> int:
    """The Python process of a worker's that runs a call, by its number outside."""
    [child] = [
        pid
        for pid in descendants_of(worker)
        if b"schedd.worker.child" in read_file(f"/proc/{pid}/cmdline").split(b"\0")[1:3]
    ]
    return child


@every_mode
async def test_ends_are_told_as_they_are(tmp_path: Path, mode: str) -> None:
    async with running_worker(tmp_path, containment=mode) as run:
        for script, exit_code, number in [
            ("exit 0", 0, None),
            ("exit 3", 3, None),
            ("exit 137", 137, None),
            ("kill -KILL $$", None, 9),
            ("kill -TERM $$", None, 15),
            ("kill -SEGV $$", None, 11),
            ("kill -INT $$", None, 2),
        ]:
            end = await run.daemon.run(shell(script))
            assert (end.exit_code, end.signal) == (exit_code, number), script


@every_mode
async def test_stopped_task_goes_on(tmp_path: Path, mode: str) -> None:
    async with running_program(tmp_path, containment=mode) as (program, run):
        pid_of_task = f"echo started > {tmp_path}/started; while [ ! -e {tmp_path}/go ]; do sleep 0.01; done; exit 4"
        [task_id] = run.daemon.dispatch(shell(pid_of_task))
        await until((tmp_path / "started").exists)
        pids = [pid for pid in descendants_of(program.pid) if b"echo started" in read_file(f"/proc/{pid}/cmdline")]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        (tmp_path / "go").touch()
        await run.daemon.run(Command(["true"]))
        assert (task_id, 1) not in run.daemon.finished
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        assert (await run.daemon.end_of(task_id)).exit_code == 4


@every_mode
async def test_streams_environment_and_folder(tmp_path: Path, mode: str) -> None:
    async with running_worker(tmp_path, containment=mode) as run:
        end = await run.daemon.run(Command(["sh", "-c", "pwd; wc -c; echo oh >&2"], cwd="/usr", stdin=b"x" * 300_000))
        assert run.log(end.task_id).split() == [b"/usr", b"300000"]
        assert run.log(end.task_id, "stderr") == b"oh\n"
        end = await run.daemon.run(Command(["env", "-0"], env={"ODD": "a\nb=ü"}))
        names = {entry.partition(b"=")[0].decode() for entry in run.log(end.task_id).split(b"\0") if entry}
        added = {name for name in names - os.environ.keys() if not name.startswith("SCHEDD_")}
        assert added <= {"ODD", "CUDA_VISIBLE_DEVICES"}
        assert b"ODD=a\nb=\xc3\xbc" in run.log(end.task_id).split(b"\0")


@every_mode
@pytest.mark.parametrize(
    ("command", "message"),
    [
        (Command(["no-such-program"]), "program not found: 'no-such-program'"),
        (Command(["no-such-program"], env={"PATH": "/bin"}), "program not found: 'no-such-program'"),
        (Command(["true"], cwd="/no/such/folder"), "working directory '/no/such/folder': No such file or directory"),
        (Command(["/etc/passwd"]), "cannot run '/etc/passwd': Permission denied"),
        (Command([]), "the command cannot be started: the command is empty"),
        (Command(["true", "x" * 3_000_000]), "cannot run 'true': Argument list too long"),
    ],
)
async def test_command_that_cannot_start_says_why(tmp_path: Path, mode: str, command: Command, message: str) -> None:
    async with running_worker(tmp_path, containment=mode) as run:
        end = await run.daemon.run(command)
        assert (end.cause, end.message) == (Cause.ERROR, message)
        assert (await run.daemon.run(Command(["true"]))).cause is Cause.OK


@exact_modes
async def test_sigterm_reaches_the_whole_tree_first(tmp_path: Path, mode: str) -> None:
    tidy = tmp_path / "tidy"
    tidy.write_text("trap 'echo bye > $1; exit' TERM; echo up > $1; while :; do sleep 0.01; done")
    script = (
        f"setsid -f sh {tidy} $1/far; sh {tidy} $1/near & "
        "trap '' TERM; while ! grep -q bye $1/far || ! grep -q bye $1/near; do sleep 0.01; done"
    )
    async with running_program(tmp_path, containment=mode) as (_, run):
        [task_id] = run.daemon.dispatch(shell(script, str(tmp_path)), rules=TaskRules(grace_s=20))
        await until(lambda: all((tmp_path / name).exists() for name in ("far", "near")))
        run.daemon.send(StopAttempts([(TaskId(task_id), 1)]))
        end = await run.daemon.end_of(task_id)
        assert (end.cause, end.exit_code) == (Cause.CANCELLED, 0)


@every_mode
async def test_timeout_and_grace(tmp_path: Path, mode: str) -> None:
    async with running_worker(tmp_path, containment=mode) as run:
        end = await run.daemon.run(shell("exec sleep 1000"), rules=TaskRules(timeout_s=2.0))
        assert (end.cause, end.signal) == (Cause.TIMEOUT, 15)
        [task_id] = run.daemon.dispatch(shell("trap 'exit 5' TERM; touch $1; sleep 1000 & wait", f"{tmp_path}/up"))
        await until((tmp_path / "up").exists)
        run.daemon.send(StopAttempts([(TaskId(task_id), 1)]))
        end = await run.daemon.end_of(task_id)
        assert (end.cause, end.exit_code) == (Cause.CANCELLED, 5)


@pytest.mark.needs("pid_namespace")
async def test_pids_in_a_namespace_mean_something(tmp_path: Path) -> None:
    async with running_worker(tmp_path, containment="namespace") as run:
        code = (
            "import os, json, psutil; me = psutil.Process();"
            "print(json.dumps([os.getpid(), me.pid, os.path.basename(os.readlink('/proc/self')), len(psutil.pids())]))"
        )
        end = await run.daemon.run(Command([sys.executable, "-c", code]))
        assert json.loads(run.log(end.task_id)) == [2, 2, "2", 2]


# --------------------------------------------------------------------------------------------- groups, and the guard


@asynccontextmanager
async def in_cells(folder: Path) -> AsyncIterator[tuple[subprocess.Popen[bytes], Running, Path]]:
    async with running_program(folder, containment="cgroup") as (program, run):
        yield program, run, Path((run.folder / "cgroup").read_text())


def guards_of(program: subprocess.Popen[bytes]) -> list[int]:
    return [pid for pid in children_of(program.pid) if b"guard.py" in read_file(f"/proc/{pid}/cmdline")]


def guard_of(program: subprocess.Popen[bytes]) -> int:
    [pid] = guards_of(program)
    return pid


@only_cgroup
async def test_each_root_has_a_cell_and_cells_are_used_again(tmp_path: Path) -> None:
    async with in_cells(tmp_path) as (_, run, group):
        for _ in range(5):
            end = await run.daemon.run(shell("while ! grep -q 0::.*/1$ /proc/self/cgroup; do sleep 0.01; done"))
            assert end.cause is Cause.OK
        [long] = run.daemon.dispatch(shell("sleep 1000"), rules=NO_GRACE)
        await run.daemon.start_of(long)
        end = await run.daemon.run(shell("while ! grep -q 0::.*/2$ /proc/self/cgroup; do sleep 0.01; done"))
        assert {path.name for path in group.iterdir() if path.is_dir()} == {"worker", "guard", "1", "2"}


#: A program with a task that runs, and one whose move into its cell comes late: only when it has hidden a process.
FIRST_MOMENTS = """
import os, sys, threading, time, uuid
from schedd.worker.cgroups import Cell, Cells
from schedd.worker.guard import end_group, write
from schedd.worker.processes import reap

folder, is_over = sys.argv[1], sys.argv[2] == "over"
null = os.open(os.devnull, os.O_RDWR)
cells = Cells(uuid.uuid4().hex, sole=True)

def start(script):
    return cells.start(["sh", "-c", script, folder], os.environ, None, (null, null, null))

def group_of(pid):
    try:
        if open(f"/proc/{pid}/stat").read().rpartition(") ")[2][0] == "Z":
            return "gone"  # whoever has taken it in may never reap it
        return open(f"/proc/{pid}/cgroup").read().rpartition("0::")[2].strip()
    except OSError:
        return "gone"

def until(condition):
    deadline = time.monotonic() + 15
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)

try:
    other = start("exec sleep 1000")
    until(lambda: group_of(other.pid).endswith("/1") and not cells._waiting and not cells._settled)
    cells._moved_at = 0.0  # long ago, so that the next move is the thread's
    hidden, may_move = f"{folder}/hidden", [not is_over]
    move = Cell.move

    def move_late(cell, pid):
        if threading.current_thread() is not threading.main_thread():  # which moves what it ends, and waits for nobody
            until(lambda: os.path.exists(hidden) and may_move[0])
        move(cell, pid)

    Cell.move = move_late
    tree = start("setsid -f env -i sh -c 'echo $$ > $0/new; mv $0/new $0/hidden; exec sleep 1000' $0; exec sleep 1000")
    until(lambda: os.path.exists(hidden))
    pid = int(open(hidden).read())
    if is_over:
        tree.kill()
        tree.end()
        may_move[0] = True
        until(lambda: group_of(pid) == "gone")
        print(group_of(pid))
        reap(tree.pid)
    else:
        until(lambda: group_of(pid).endswith("/2"))
        print(group_of(pid)[-2:], group_of(other.pid)[-2:])
finally:
    cells.close()
    write(os.path.dirname(cells.group) + "/cgroup.procs", b"0")
    end_group(cells.group)
"""


@only_cgroup
@pytest.mark.parametrize(("when", "found"), [("running", "/2 /1\n"), ("over", "gone\n")])
async def test_process_hidden_before_its_task_was_in_its_cell(tmp_path: Path, when: str, found: str) -> None:
    argv = [sys.executable, "-c", FIRST_MOMENTS, str(tmp_path), when]
    program = await asyncio.create_subprocess_exec(*argv, stdout=subprocess.PIPE)
    output, _ = await program.communicate()
    assert output.decode() == found


#: A program with three tasks, one after the other, the second of which cannot be looked after.
LOST = """
import errno, os, uuid
from schedd.worker.cgroups import Cells
from schedd.worker.guard import end_group, write
from schedd.worker.processes import reap

null = os.open(os.devnull, os.O_RDWR)
cells = Cells(uuid.uuid4().hex, sole=True)

def fail(cells, tree):
    raise OSError(errno.EMFILE, "Too many open files")

def run():
    tree = cells.start(["true"], os.environ, None, (null, null, null))
    reap(tree.pid)
    tree.end()
    os.close(tree.pidfd)
    return len(os.listdir("/proc/self/fd"))

try:
    before = run()
    cells._moved_at = 0.0
    place, Cells._place_strays = Cells._place_strays, fail
    run()
    Cells._place_strays = place
    print(run() - before)
finally:
    cells.close()
    write(os.path.dirname(cells.group) + "/cgroup.procs", b"0")
    end_group(cells.group)
"""


@only_cgroup
async def test_cell_that_is_lost_keeps_no_descriptor() -> None:
    program = await asyncio.create_subprocess_exec(sys.executable, "-c", LOST, stdout=subprocess.PIPE)
    output, _ = await program.communicate()
    assert output.decode() == "0\n"


@only_cgroup
async def test_clean_end_removes_the_groups(tmp_path: Path, sleeps: Sleeps) -> None:
    async with in_cells(tmp_path) as (program, run, group):
        [task_id] = run.daemon.dispatch(shell("exec sleep $1", sleeps.length))
        await sleeps.count(1)
        program.send_signal(signal.SIGTERM)
        await until(lambda: "worker_draining" in (tmp_path / "errors").read_text())
        program.send_signal(signal.SIGTERM)
        await run.daemon.end_of(task_id)
        await until(lambda: program.poll() is not None)
        await sleeps.count(0)
        await until(lambda: not group.exists())


@only_cgroup
async def test_next_life_ends_what_the_last_one_left(tmp_path: Path, sleeps: Sleeps) -> None:
    async with in_cells(tmp_path) as (program, run, old):
        run.daemon.dispatch(shell(TREE, sleeps.length))
        await sleeps.count(TREE_COUNT)
        # Both in one moment: nobody is left to clear up.
        program.send_signal(signal.SIGSTOP)
        os.kill(guard_of(program), signal.SIGKILL)
        program.kill()
        program.wait()
        assert len(sleeps.pids()) == TREE_COUNT
        async with in_cells(tmp_path) as (_, _, new):
            assert not sleeps.pids()
            assert not old.exists()
            assert new.exists()
            assert "earlier_tasks_killed" in (tmp_path / "errors").read_text()


@pytest.mark.needs("pid_namespace")
async def test_namespace_needs_no_guard(tmp_path: Path, sleeps: Sleeps) -> None:
    async with running_program(tmp_path, containment="namespace") as (program, run):
        run.daemon.dispatch(shell(TREE, sleeps.length))
        await sleeps.count(TREE_COUNT)
        program.send_signal(signal.SIGSTOP)
        os.kill(guard_of(program), signal.SIGKILL)
        program.kill()
        program.wait()
        await sleeps.count(0)


@every_mode
async def test_guard_that_is_gone_is_replaced(tmp_path: Path, mode: str, sleeps: Sleeps) -> None:
    async with running_program(tmp_path, containment=mode) as (program, run):
        first = guard_of(program)
        os.kill(first, signal.SIGTERM)
        assert is_alive(first)
        os.kill(first, signal.SIGKILL)
        await until(lambda: any(pid != first for pid in guards_of(program)))
        run.daemon.dispatch(shell("setsid -f sleep $1; exec sleep $1", sleeps.length))
        await sleeps.count(2)
        assert "guard_gone" in (tmp_path / "errors").read_text()
        program.kill()
        program.wait()
        await sleeps.count(0)


async def test_guard_ends_with_an_embedded_worker(tmp_path: Path) -> None:
    before = children_of(os.getpid())
    async with running_worker(tmp_path) as run:
        assert (await run.daemon.run(Command(["true"]))).cause is Cause.OK
    assert children_of(os.getpid()) == before
    assert not leftovers(run)


# ----------------------------------------------------------------------------------------------------- what there is


async def test_auto_takes_the_best_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cgroups, "MOUNTS", ())
    monkeypatch.setattr(namespace_init, "__file__", "/no/such/program")
    async with running_worker(tmp_path) as run:
        assert (await run.daemon.run(Command(["true"]))).cause is Cause.OK
    [warning] = [record.getMessage() for record in caplog.records if "containment" in record.getMessage()]
    assert "mode=process-group" in warning
    assert 'no_cgroup="no cgroup2 hierarchy is mounted"' in warning
    assert "/no/such/program" in warning


@pytest.mark.parametrize("mode", ["cgroup", "namespace"])
async def test_mode_that_is_not_to_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    monkeypatch.setattr(cgroups, "MOUNTS", ())
    monkeypatch.setattr(namespace_init, "__file__", "/no/such/program")
    async with running_worker(tmp_path / "other", containment="process-group") as run:
        settings = WorkerSettings(name="w2", gpus="none", state_dir=str(tmp_path), containment=mode)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match=f"containment '{mode}' is not to be had"):
            await run_worker(settings, run.daemon.address)


async def test_kills_for_want_of_memory_are_counted() -> None:
    assert oom_kills_in(b"low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n") == 2
