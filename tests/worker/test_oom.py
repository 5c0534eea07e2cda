"""What the kernel says of processes that it killed, and what that proves."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from schedd.core.model import Cause, Command
from schedd.worker.oom import KernelOom, killed_in, oom_kills_in

from .running import running_worker


@pytest.mark.parametrize(
    ("record", "pid"),
    [
        # docker/for-linux#1001, as /dev/kmsg has it
        (b"3,1,518050606,-;Out of memory: Killed process 15784 (python3) total-vm:11964kB, anon-rss:4288kB\n", 15784),
        (b"3,1,1,-;Memory cgroup out of memory: Killed process 22 (a) b) total-vm:1kB\n SUBSYSTEM=x\n", 22),
        (b"6,1,1,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),task=python3,pid=77,uid=0\n", 77),
        (b"6,1,1,-;oom_reaper: reaped process 15784 (python3), now anon-rss:0kB\n", None),
        (b"6,1,1,-;usb 1-1: new device\n", None),
        (b"6,1,1,-;usb 1-1: new device\n Killed process 5 (x)\n", None),
        # Written into the log by a program: its priority has a facility.
        (b"12,1,1,-;Out of memory: Killed process 1 (init) total-vm:1kB\n", None),
        (b"11,1,1,-;oom-kill:task=init,pid=1,uid=0\n", None),
        (b"", None),
        (b"Killed process 5 (", None),
        (b";Killed process 5 (x)", None),
        (b"\xff,;Killed process 5 (x)", None),
    ],
)
def test_records_of_the_kernels_log(record: bytes, pid: int | None) -> None:
    assert killed_in(record) == pid


def test_totals() -> None:
    assert oom_kills_in(b"nr_free_pages 5\noom_kill 3\nzone_oom_kill 9\n") == 3
    assert oom_kills_in(b"nr_free_pages 5\n") == 0
    assert oom_kills_in(b"low 0\nhigh 0\nmax 7\noom 2\noom_kill 2\noom_group_kill 0\n") == 2


class FakeKernel:
    """A pipe in the place of the log, whose every write is a record, and a file in that of /proc/vmstat."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "kmsg"
        os.mkfifo(self.path)
        self.vmstat = folder / "vmstat"
        self.vmstat.write_text("oom_kill 4\n")
        self.oom = KernelOom(str(self.path), str(self.vmstat))
        self.write_end = os.open(self.path, os.O_WRONLY)

    def kills(self, pid: int) -> None:
        os.write(self.write_end, b"3,1,1,-;Out of memory: Killed process %d (x) total-vm:1kB\n" % pid)


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[FakeKernel]:
    fake = FakeKernel(tmp_path)
    yield fake
    fake.oom.close()
    os.close(fake.write_end)


def test_process_that_is_named_once(kernel: FakeKernel) -> None:
    kernel.kills(12)
    assert not kernel.oom.named(13)
    assert kernel.oom.named(12)
    assert not kernel.oom.named(12), "the next process of this number is another one"


def test_name_is_forgotten_in_time(kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel.kills(12)
    kernel.oom.look()
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 31)
    assert not kernel.oom.named(12)


def test_total_that_rose_since_the_last_look(kernel: FakeKernel) -> None:
    assert not kernel.oom.has_risen()
    kernel.vmstat.write_text("oom_kill 5\n")
    assert kernel.oom.has_risen()
    kernel.oom.look()
    assert kernel.oom.has_risen(), "it may have been just before"
    kernel.oom.look()
    assert not kernel.oom.has_risen()


def test_host_that_tells_nothing(tmp_path: Path) -> None:
    oom = KernelOom(str(tmp_path / "none"), str(tmp_path / "none"))
    oom.look()
    assert not oom.named(1)
    assert not oom.has_risen()
    oom.close()


@pytest.mark.asyncio
async def test_killed_by_anybody_is_an_error(tmp_path: Path) -> None:
    async with running_worker(tmp_path) as run:
        end = await run.daemon.run(Command(["sh", "-c", "kill -9 $$"]))
        assert (end.cause, end.signal, end.message) == (Cause.ERROR, 9, "killed by SIGKILL")
        end = await run.daemon.run(Command(["sh", "-c", "sh -c 'kill -9 $$'; exit $?"]))
        assert (end.cause, end.exit_code) == (Cause.ERROR, 128 + signal.SIGKILL)


@pytest.mark.asyncio
async def test_allocator_that_was_refused(tmp_path: Path) -> None:
    async with running_worker(tmp_path) as run:
        end = await run.daemon.run(Command([sys.executable, "-c", "bytearray(1 << 60)"]))
        assert (end.cause, end.exit_code) == (Cause.OOM_HOST, 1)
        assert end.message == "exit code 1: out of memory: MemoryError"


@pytest.mark.asyncio
async def test_success_is_never_out_of_memory(tmp_path: Path) -> None:
    async with running_worker(tmp_path) as run:
        end = await run.daemon.run(Command(["sh", "-c", "echo 'CUDA out of memory, trying a smaller batch' >&2"]))
        assert (end.cause, end.message) == (Cause.OK, "")


# ------------------------------------------------------------------------------------------------- the kernel itself

MEMORY_CGROUPS = Path("/sys/fs/cgroup/memory")


@pytest.fixture
def small_cgroup() -> Iterator[Path]:
    folder = MEMORY_CGROUPS / f"schedd-test-{os.getpid()}"
    folder.mkdir()
    try:
        (folder / "memory.limit_in_bytes").write_text("33554432")
        with contextlib.suppress(OSError):
            (folder / "memory.memsw.limit_in_bytes").write_text("33554432")
        yield folder
    finally:
        folder.rmdir()


@pytest.mark.needs("oom")
@pytest.mark.asyncio
async def test_process_that_the_kernel_killed(small_cgroup: Path, tmp_path: Path) -> None:
    async with running_worker(tmp_path) as run:
        eat = f"echo $$ > {small_cgroup}/cgroup.procs; exec python3 -c 'x = b\"x\" * (200 << 20)'"
        end = await run.daemon.run(Command(["sh", "-c", eat]))
        assert (end.cause, end.signal) == (Cause.OOM_HOST, 9)
        assert end.message == "killed by SIGKILL: the kernel killed it for lack of memory"


@pytest.mark.needs("oom")
@pytest.mark.asyncio
async def test_child_of_a_shell_that_the_kernel_killed(small_cgroup: Path, tmp_path: Path) -> None:
    """The shell lived, and nobody knows whose process the kernel named: it is told, and decides nothing."""
    async with running_worker(tmp_path) as run:
        eat = f"echo $$ > {small_cgroup}/cgroup.procs; python3 -c 'x = b\"x\" * (200 << 20)'; exit $?"
        end = await run.daemon.run(Command(["sh", "-c", eat]))
        assert (end.cause, end.exit_code) == (Cause.ERROR, 137)
        assert end.message.endswith("(the kernel has just killed a process of this host for lack of memory)")


@pytest.mark.needs("oom")
@pytest.mark.asyncio
async def test_call_that_the_kernel_killed(small_cgroup: Path, tmp_path: Path) -> None:
    def eat(cgroup: str) -> int:
        import os
        from pathlib import Path

        Path(cgroup, "cgroup.procs").write_text(str(os.getpid()))
        return len(b"x" * (200 << 20))

    async with running_worker(tmp_path) as run:
        end = await run.call(eat, str(small_cgroup))
        assert (end.cause, end.signal) == (Cause.OOM_HOST, 9)
        assert end.message.endswith("the kernel killed it for lack of memory")
