from __future__ import annotations

import asyncio
import os
import pickle
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from schedd.address import Address
from schedd.config import WorkerSettings
from schedd.core.model import DEFAULT_RULES, NO_REQUIREMENTS, Cause, Command
from schedd.errors import ConfigError
from schedd.wire.framing import encode_frame
from schedd.wire.messages import (
    BAD_VERSION,
    NAME_TAKEN,
    AckFinished,
    AttemptsFinished,
    Dispatch,
    DrainWorker,
    Heartbeat,
    HeartbeatReply,
    Refused,
    WireAttempt,
    WireSpec,
    WorkerDraining,
)
from schedd.worker import heartbeats, link, main
from schedd.worker.connection import Connection
from schedd.worker.link import EXIT_REFUSED, EXIT_UNREACHABLE
from schedd.worker.main import EXIT_FORCED, EXIT_OK, run_worker

from .fake_daemon import FakeDaemon, fake_daemon
from .running import Running, arguments, call_of, pid_in, running_program, running_worker, until_gone

pytestmark = pytest.mark.asyncio
LONG = Command(["sleep", "1000"])


def waiting(folder: Path, name: str = "go") -> Command:
    """A command that ends when a file appears."""
    return Command(["sh", "-c", f"while ! [ -e {folder}/{name} ]; do sleep 0.01; done"])


async def exit_code(run: Running) -> int:
    return await asyncio.wait_for(asyncio.shield(run.worker), 15)


async def test_greeting_says_who_and_what(tmp_path: Path) -> None:
    async with running_worker(tmp_path, cpus=3.0, ram_gb=2.0, labels={"zone": "a"}) as run:
        [hello] = run.daemon.hellos
        assert (hello.name, hello.host, hello.pid) == ("w1", socket.gethostname(), os.getpid())
        assert (hello.resources.cpus, hello.resources.ram_gb, hello.resources.labels) == (3.0, 2.0, {"zone": "a"})
        assert len(hello.incarnation) == 32
        assert hello.holds == []


async def test_heartbeats_carry_measurements_at_the_interval_asked_for(tmp_path: Path) -> None:
    async with running_worker(tmp_path) as run:
        run.daemon.heartbeat_interval_s = 0.05
        beats = await run.daemon.wait(lambda: beats if len(beats := run.daemon.of_type(Heartbeat)) >= 2 else None)
        assert beats[-1].usage.ram_total_bytes > beats[-1].usage.ram_used_bytes > 0


async def test_running_task_outlives_the_connection(tmp_path: Path) -> None:
    async with running_worker(tmp_path) as run:
        running, queued = run.daemon.dispatch(waiting(tmp_path), [b""] * 2)
        started = await run.daemon.start_of(running)
        run.daemon.hang_up()
        hello = await run.daemon.wait(lambda: run.daemon.hellos[1] if run.daemon.hellos[1:] else None)
        assert hello.incarnation == run.daemon.hellos[0].incarnation
        assert [(hold.task_id, hold.phase, hold.started_at_ns) for hold in hello.holds] == [
            (running, "running", started.started_at_ns),
            (queued, "backlog", 0),
        ]
        (tmp_path / "go").touch()
        assert (await run.daemon.end_of(running)).cause is Cause.OK
        assert (await run.daemon.end_of(queued)).cause is Cause.OK


async def test_ends_are_sent_again_until_acknowledged(tmp_path: Path) -> None:
    async with running_worker(tmp_path) as run:
        run.daemon.acks = False
        end = await run.daemon.run(Command(["true"]))
        for _ in range(2):
            count = run.daemon.finished_count
            run.daemon.hang_up()
            await run.daemon.wait(lambda: run.daemon.finished_count > count)  # noqa: B023 - awaited here
            assert run.daemon.hellos[-1].holds[0].phase == "finished"
        assert run.daemon.finished == {(end.task_id, 1): end}
        run.daemon.send(AckFinished(run.daemon.of_type(AttemptsFinished)[-1].seq))
        await run.daemon.run(Command(["true"]))
        run.daemon.hang_up()
        await run.daemon.wait(lambda: len(run.daemon.hellos) == 4)
        assert [hold.task_id for hold in run.daemon.hellos[-1].holds] == [end.task_id + 1]


async def test_end_without_a_connection_is_told_later(tmp_path: Path) -> None:
    async with running_worker(tmp_path) as run:
        script = f"echo $$ > {tmp_path}/pid; while ! [ -e {tmp_path}/go ]; do sleep 0.01; done"
        [task_id] = run.daemon.dispatch(Command(["sh", "-c", script]))
        pid = await pid_in(tmp_path / "pid")
        run.daemon.is_away = True
        run.daemon.hang_up()
        (tmp_path / "go").touch()
        await until_gone(pid)
        run.daemon.is_away = False
        assert (await run.daemon.end_of(task_id)).cause is Cause.OK


async def test_protocol_error_of_the_daemon_costs_the_connection_only(tmp_path: Path) -> None:
    async with running_worker(tmp_path) as run:
        run.daemon.send(["no such message"])
        await run.daemon.wait(lambda: len(run.daemon.hellos) == 2)
        await run.daemon.wait(lambda: run.daemon.is_welcomed)
        assert (await run.daemon.run(Command(["true"]))).cause is Cause.OK


async def test_large_results_are_spread_over_frames(tmp_path: Path) -> None:
    async with running_worker(tmp_path, cpus=4.0) as run:
        run.daemon.hang_up()  # so that all ends are sent at once
        await run.daemon.wait(lambda: len(run.daemon.hellos) == 2 and run.daemon.is_welcomed)
        ids = run.daemon.dispatch(call_of(bytes), [arguments(20_000_000)] * 4)
        run.daemon.acks = False
        for task_id in ids:
            assert len(pickle.loads((await run.daemon.end_of(task_id)).result or b"")) == 20_000_000
        frames = run.daemon.frames
        run.daemon.hang_up()
        await run.daemon.wait(lambda: run.daemon.finished_count == 8)
        assert run.daemon.frames - frames >= 4


@asynccontextmanager
async def worker_of(daemon: FakeDaemon, folder: Path, **given: object) -> AsyncIterator[asyncio.Task[int]]:
    settings = WorkerSettings(name="w1", gpus="none", state_dir=str(folder), reconnect_delay_s=0.01, **given)  # type: ignore[arg-type]
    task = asyncio.get_running_loop().create_task(run_worker(settings, daemon.address))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_wrong_version_ends_the_worker(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with fake_daemon() as daemon:
        daemon.refusals = [Refused(BAD_VERSION, "the daemon speaks 2", "upgrade the worker")]
        async with worker_of(daemon, tmp_path) as worker:
            assert await worker == EXIT_REFUSED
    assert 'worker_refused worker=w1 reason="the daemon speaks 2" hint="upgrade the worker"' in caplog.text


async def test_name_taken_is_tried_again(tmp_path: Path) -> None:
    async with fake_daemon() as daemon:
        daemon.refusals = [Refused(NAME_TAKEN, "w1 is here already")] * 3
        async with worker_of(daemon, tmp_path):
            await daemon.wait(lambda: daemon.is_welcomed)
            assert len(daemon.hellos) == 4


async def test_name_taken_for_good_ends_the_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "NAME_TAKEN_S", 0.05)
    async with fake_daemon() as daemon:
        daemon.refusals = [Refused(NAME_TAKEN, "w1 is here already")] * 1000
        async with worker_of(daemon, tmp_path) as worker:
            assert await worker == EXIT_REFUSED


async def test_second_worker_in_the_same_folder_is_kept_out(tmp_path: Path) -> None:
    async with running_worker(tmp_path, name="a/b") as run:
        assert run.daemon.hellos[0].name == "a/b"
        with pytest.raises(ConfigError, match="another worker uses"):
            await run_worker(WorkerSettings(name="a/b", gpus="none", state_dir=str(tmp_path)), run.daemon.address)
        assert (await run.daemon.run(Command(["true"]))).cause is Cause.OK


async def test_folder_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be used"):
        await run_worker(WorkerSettings(gpus="none", state_dir=str(tmp_path / "file")), Address("127.0.0.1", 1))


async def test_no_daemon_is_given_up_when_asked(tmp_path: Path) -> None:
    settings = WorkerSettings(
        state_dir=str(tmp_path), gpus="none", reconnect_delay_s=0.01, reconnect_delay_max_s=0.02, give_up_after_s=0.1
    )
    assert await run_worker(settings, Address("127.0.0.1", 1)) == EXIT_UNREACHABLE
    assert await run_worker(settings, Address(path=str(tmp_path / "none"))) == EXIT_UNREACHABLE


async def test_daemon_that_never_answers_the_greeting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "CONNECT_TIMEOUT_S", 0.05)
    greeted = 0
    twice = asyncio.Event()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal greeted
        greeted += 1
        if greeted == 2:
            twice.set()
        await reader.read()
        writer.close()

    server = await asyncio.start_unix_server(listen, tmp_path / "socket")
    settings = WorkerSettings(state_dir=str(tmp_path), gpus="none", reconnect_delay_s=0.01)
    worker = asyncio.get_running_loop().create_task(run_worker(settings, Address(path=str(tmp_path / "socket"))))
    await asyncio.wait_for(twice.wait(), 10)
    worker.cancel()
    await asyncio.wait([worker])
    server.close()
    await server.wait_closed()


async def test_silent_daemon_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeats, "SILENT_S_MIN", 0.1)
    async with fake_daemon() as daemon:
        daemon.heartbeat_interval_s = 0.05
        daemon.answers_heartbeats = False
        async with worker_of(daemon, tmp_path):
            await daemon.wait(lambda: len(daemon.hellos) >= 2)


async def test_part_of_a_frame_is_a_sign_of_life() -> None:
    """A large one may be longer on its way than its sender may be silent."""
    connection = Connection(Address("127.0.0.1", 1), lambda _: None, lambda: None)
    connection.heard_at = 0.0
    connection.data_received(encode_frame([HeartbeatReply(1.0)])[:-1])
    assert connection.heard_at > 0


async def test_signal_drains(tmp_path: Path) -> None:
    async with running_worker(tmp_path) as run:
        running, *queued = run.daemon.dispatch(waiting(tmp_path), [b""] * 3)
        await run.daemon.start_of(running)
        os.kill(os.getpid(), signal.SIGTERM)
        [draining] = await run.daemon.wait(lambda: run.daemon.of_type(WorkerDraining))
        assert draining.handed_back == [(task_id, 1) for task_id in queued]
        assert not run.worker.done()
        (tmp_path / "go").touch()
        assert await exit_code(run) == EXIT_OK
        await run.daemon.wait(lambda: run.daemon.goodbyes == 1)
        assert run.daemon.finished[running, 1].cause is Cause.OK


async def test_drain_by_the_daemon_leaves_the_same_way(tmp_path: Path) -> None:
    async with running_worker(tmp_path) as run:
        run.daemon.send(DrainWorker())
        assert await exit_code(run) == EXIT_OK
        await run.daemon.wait(lambda: run.daemon.goodbyes == 1)


async def test_one_signal_does_not_force_a_worker_that_the_daemon_drains(tmp_path: Path) -> None:
    async with running_worker(tmp_path) as run:
        [running] = run.daemon.dispatch(waiting(tmp_path))
        await run.daemon.start_of(running)
        run.daemon.send(DrainWorker())
        await run.daemon.wait(lambda: run.daemon.of_type(WorkerDraining))
        os.kill(os.getpid(), signal.SIGTERM)
        await run.daemon.wait(lambda: len(run.daemon.of_type(WorkerDraining)) == 2)
        (tmp_path / "go").touch()
        assert await exit_code(run) == EXIT_OK
        assert run.daemon.finished[running, 1].cause is Cause.OK


async def test_drained_worker_that_stays_takes_work_again(tmp_path: Path) -> None:
    async with running_worker(tmp_path) as run:
        run.daemon.send(DrainWorker(leave=False))
        await run.daemon.wait(lambda: run.daemon.of_type(WorkerDraining))
        assert (await run.daemon.run(Command(["true"]))).cause is Cause.OK


async def test_drain_waits_for_the_acknowledgement(tmp_path: Path) -> None:
    async with running_worker(tmp_path) as run:
        run.daemon.acks = False
        await run.daemon.run(Command(["true"]))
        os.kill(os.getpid(), signal.SIGINT)
        await run.daemon.wait(lambda: run.daemon.of_type(WorkerDraining))
        run.daemon.hang_up()
        await run.daemon.wait(lambda: run.daemon.finished_count == 2)
        assert not run.worker.done()
        run.daemon.send(AckFinished(2**40))
        assert await exit_code(run) == EXIT_OK


async def test_second_signal_kills_and_reports_lost(tmp_path: Path) -> None:
    async with running_worker(tmp_path, cpus=2.0) as run:
        script = f"trap '' TERM; echo $$ > {tmp_path}/pid; sleep 1000"
        [command] = run.daemon.dispatch(Command(["sh", "-c", script]))
        [call] = run.daemon.dispatch(call_of(signal.pause), [arguments()])
        pid = await pid_in(tmp_path / "pid")
        await run.daemon.start_of(call)
        os.kill(os.getpid(), signal.SIGTERM)
        await run.daemon.wait(lambda: run.daemon.of_type(WorkerDraining))
        os.kill(os.getpid(), signal.SIGTERM)
        assert await exit_code(run) == EXIT_FORCED
        await run.daemon.wait(lambda: run.daemon.goodbyes == 1)
        for task_id in (command, call):
            end = run.daemon.finished[task_id, 1]
            assert (end.cause, end.message) == (Cause.LOST, "worker stopped")
        await until_gone(pid)


async def test_drain_timeout_forces(tmp_path: Path) -> None:
    async with running_worker(tmp_path, drain_timeout_s=0.1) as run:
        [task_id] = run.daemon.dispatch(LONG)
        await run.daemon.start_of(task_id)
        os.kill(os.getpid(), signal.SIGTERM)
        assert await exit_code(run) == EXIT_FORCED
        assert run.daemon.finished[task_id, 1].cause is Cause.LOST


async def test_drain_without_a_daemon_leaves(tmp_path: Path) -> None:
    async with running_worker(tmp_path) as run:
        [running, _] = run.daemon.dispatch(waiting(tmp_path), [b""] * 2)
        await run.daemon.start_of(running)
        await run.daemon.close()
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert await exit_code(run) == EXIT_FORCED
        await run.daemon.listen()


async def test_drained_worker_does_not_wait_for_a_daemon_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it could not tell is told by the next worker of its name."""
    monkeypatch.setattr(main, "UNHEARD_S", 0.1)
    async with running_worker(tmp_path) as run:
        [running] = run.daemon.dispatch(waiting(tmp_path))
        await run.daemon.start_of(running)
        await run.daemon.close()
        os.kill(os.getpid(), signal.SIGTERM)
        (tmp_path / "go").touch()
        assert await exit_code(run) == EXIT_OK
        await run.daemon.listen()
    async with running_worker(tmp_path) as run:
        await run.daemon.wait(lambda: (running, 1) in run.daemon.finished)
        assert run.daemon.finished[running, 1].cause is Cause.OK


async def test_nothing_is_left_when_the_worker_is_cancelled(tmp_path: Path) -> None:
    async with running_worker(tmp_path, cpus=2.0) as run:
        pid = await run.value_of(os.getpid)
        run.daemon.dispatch(Command(["sh", "-c", f"setsid sleep 1000 & echo $! > {tmp_path}/pid; wait"]))
        sleeper = await pid_in(tmp_path / "pid")
        run.worker.cancel()
        await until_gone(pid, sleeper)
        await asyncio.wait([run.worker])
        assert list(run.folder.glob("run-*")) == []


async def test_program_of_its_own_leaves_nothing(tmp_path: Path) -> None:
    async with running_program(tmp_path) as (program, run):
        daemon = run.daemon
        child = await run.value_of(os.getpid)
        hidden = f"env -i setsid sh -c 'echo $$ > {tmp_path}/pid; exec sleep 1000'"
        script = f"{hidden} & while ! [ -s {tmp_path}/pid ]; do sleep 0.01; done"
        assert (await daemon.run(Command(["sh", "-c", script]))).cause is Cause.OK
        await until_gone(await pid_in(tmp_path / "pid"))
        ids = daemon.dispatch(Command(["true"]), [b""] * 30) + daemon.dispatch(call_of(int), [arguments()] * 300)
        for task_id in ids:
            assert (await daemon.end_of(task_id)).cause is Cause.OK
        program.terminate()
        await daemon.wait(lambda: daemon.goodbyes == 1)
        assert await asyncio.to_thread(program.wait) == EXIT_OK
        errors = (tmp_path / "errors").read_bytes()
        assert b"worker_connected" in errors
        assert b"Traceback" not in errors
        await until_gone(child)


async def test_children_die_with_a_worker_that_was_killed(tmp_path: Path) -> None:
    async with running_program(tmp_path) as (program, run):
        child = await run.value_of(os.getpid)
        program.kill()
        await until_gone(child)


async def test_dispatch_of_a_newer_attempt_replaces_the_older(tmp_path: Path) -> None:
    async with running_worker(tmp_path) as run:
        [task_id] = run.daemon.dispatch(LONG)
        await run.daemon.start_of(task_id)
        spec = WireSpec(Command(["true"]), NO_REQUIREMENTS, DEFAULT_RULES, "", "")
        run.daemon.send(Dispatch([spec], [WireAttempt(task_id, 2, 0, b"")]))
        assert (await run.daemon.end_of(task_id, 2)).cause is Cause.OK
        assert (task_id, 1) not in run.daemon.finished
