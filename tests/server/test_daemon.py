"""The life of the daemon: where it listens, what it tells the service manager, and how it ends."""

from __future__ import annotations

import contextlib
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import Cluster, wait_until

from schedd.assembly import engine_settings
from schedd.config import parse_settings
from schedd.core.effects import TasksAdmitted
from schedd.core.model import Call, TaskId, WorkerResources
from schedd.core.retries import RetryRules
from schedd.core.settings import EngineSettings
from schedd.journal.store import Journal
from schedd.wire import messages as m

from .peers import RawClient, RawPeer, RawWorker


def run_server(*arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "schedd.server", *arguments]
    return subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)


def test_limits_of_the_configuration_reach_the_engine() -> None:
    assert engine_settings(parse_settings("")) == EngineSettings()
    settings = engine_settings(parse_settings("[retries]\nlost = 7\nmemory_growth = 2.0\ndelay_max_s = 9.0"))
    assert settings.retries == RetryRules(lost=7, memory_growth=2, delay_max_s=9)


def test_port_that_is_taken(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ran = run_server("--listen", f"127.0.0.1:{port}", "--address-file", str(tmp_path / "address"))
    assert ran.returncode == 9
    assert f"cannot listen on 127.0.0.1:{port}" in ran.stderr
    assert "hint=" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("listen", ["no.such.host.invalid:0", "192.0.2.1:7077"])
def test_address_that_is_not_ours(tmp_path: Path, listen: str) -> None:
    config = tmp_path / "config.toml"
    config.write_text(f'[server]\nlisten = "{listen}"\ninsecure = true\n')
    ran = run_server("--config", str(config))
    assert ran.returncode == 9
    assert "cannot_start" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_port_of_a_daemon_that_has_just_ended(cluster: Cluster) -> None:
    cluster.start_daemon()
    address = cluster.address
    with RawClient(address):
        cluster.daemon.kill()
    cluster.start_daemon(listen=address)
    assert cluster.address == address


def test_address_file_is_whole_and_goes_with_the_daemon(cluster: Cluster) -> None:
    daemon = cluster.start_daemon(wait=False)
    path = cluster.folder / "address-1"
    wait_until(path.exists)
    text = path.read_text()
    assert text.startswith("127.0.0.1:")
    assert text.endswith("\n")
    with RawPeer(text.strip()) as peer:
        peer.greet()
    assert daemon.stop() == 0
    assert [p.name for p in cluster.folder.iterdir() if "address" in p.name] == []


@pytest.mark.parametrize("name", ["no/such/folder/address", "folder", "file/address"])
def test_address_file_that_cannot_be_written(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    ran = run_server("--listen", "127.0.0.1:0", "--address-file", str(tmp_path / name))
    assert ran.returncode == 7
    assert f"the address cannot be written to {tmp_path / name}" in ran.stderr
    assert ("journal_open" in ran.stderr) is (name == "folder"), "most of it is known before the start"
    assert "Traceback" not in ran.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_unix_socket_beside_the_port(cluster: Cluster) -> None:
    path = cluster.folder / "run" / "schedd.sock"
    cluster.start_daemon(f'[server]\nsocket = "{path}"\n')
    wait_until(path.exists)
    with RawClient(f"unix:{path}") as local, RawClient(cluster.address) as remote:
        assert local.ask(m.GetStats).connections == 2
        [task_id] = local.submit(hold=True)
        assert remote.state_of(task_id) == "held"
        with RawWorker(f"unix:{path}", "w1", resources=WorkerResources(cpus=2)):
            assert remote.worker("w1") is not None
    assert cluster.daemon.stop() == 0
    assert not path.exists()


def test_unix_socket_alone(cluster: Cluster) -> None:
    path = cluster.folder / "alone.sock"
    cluster.start_daemon(listen=f"unix:{path}")
    assert cluster.address == f"unix:{path}"
    with RawClient(cluster.address) as client:
        assert client.ask(m.GetStats).address == f"unix:{path}"
    assert cluster.daemon.stop() == 0
    assert not path.exists()


def test_unix_socket_left_by_a_killed_daemon_is_taken_over(cluster: Cluster) -> None:
    path = cluster.folder / "left.sock"
    cluster.start_daemon(listen=f"unix:{path}").kill()
    assert path.exists()
    cluster.start_daemon(listen=f"unix:{path}")
    with RawClient(cluster.address) as client:
        assert client.ask(m.GetStats)


def test_unix_socket_of_a_living_daemon_is_left_alone(cluster: Cluster) -> None:
    path = cluster.folder / "living.sock"
    cluster.start_daemon(listen=f"unix:{path}")
    ran = run_server("--listen", f"unix:{path}")
    assert ran.returncode == 9
    assert "cannot listen" in ran.stderr
    with RawClient(cluster.address) as client:
        assert client.ask(m.GetStats)


@pytest.mark.parametrize("key", ["server.listen", "server.socket", "metrics.listen"])
def test_file_where_a_socket_is_to_be_is_left_alone(tmp_path: Path, key: str) -> None:
    path, config = tmp_path / "precious.txt", tmp_path / "config.toml"
    path.write_text("precious")
    value = path if key == "server.socket" else f"unix:{path}"
    config.write_text(f'journal.enabled = false\n{key} = "{value}"\n')
    ran = run_server("--config", str(config), *([] if key == "server.listen" else ["--listen", "127.0.0.1:0"]))
    assert ran.returncode == 9
    assert "something else than a socket" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert path.read_text() == "precious"


def test_link_where_a_socket_is_to_be_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "link"
    path.symlink_to(tmp_path / "nowhere")
    assert run_server("--listen", f"unix:{path}").returncode == 9
    assert path.is_symlink()


def test_file_that_has_taken_the_place_of_its_socket_outlives_it(cluster: Cluster) -> None:
    path = cluster.folder / "own.sock"
    daemon = cluster.start_daemon(listen=f"unix:{path}")
    path.rename(cluster.folder / "moved.sock")
    path.write_text("precious")
    assert daemon.stop() == 0
    assert path.read_text() == "precious"


def test_hangup_does_not_end_it(cluster: Cluster) -> None:
    daemon = cluster.start_daemon()
    daemon.signal(signal.SIGHUP)
    wait_until(lambda: "reloaded" in daemon.log(), what="it says what it made of the signal")
    with RawClient(cluster.address) as client:
        assert client.submit()
    assert daemon.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_it_in_order(cluster: Cluster, number: signal.Signals) -> None:
    daemon = cluster.start_daemon()
    with RawClient(cluster.address) as client, RawWorker(cluster.address, "w1") as worker:
        client.submit(watch=True)
        worker.attempts()
        daemon.signal(number)
        assert client.expect_refusal().code == m.SHUTTING_DOWN
        assert worker.expect_refusal().code == m.SHUTTING_DOWN
        assert daemon.wait() == 0
    assert "stopping" in daemon.log()
    assert "unfinished=1" in daemon.log()
    assert "Traceback" not in daemon.log()


def test_signal_while_it_reads_a_large_journal(cluster: Cluster) -> None:
    """The end does not wait for the start, and what was on disk stays there."""
    path = cluster.folder / "large" / "journal.db"
    write_batches(path, batches=300, tasks=1000)
    config = f"[journal]\npath = '{path}'\n"
    daemon = cluster.start_daemon(config, wait=False)
    wait_until(lambda: "restoring" in daemon.log(), what="it has begun")
    daemon.signal(signal.SIGTERM)
    assert daemon.wait() == 0
    assert "listening" not in daemon.log()
    assert "Traceback" not in daemon.log()
    journal = Journal(path)
    assert sum(len(batch.ids) for batch in journal.load().batches) == 300_000
    journal.close()


def write_batches(path: Path, batches: int, tasks: int) -> None:
    """A journal with so many unfinished tasks."""
    journal = Journal(path, "off")
    journal.load()
    journal.start()
    spec = m.TaskSpec(Call(path="test:nothing"))
    for number in range(batches):
        ids = [TaskId(i) for i in range(number * tasks + 1, (number + 1) * tasks + 1)]
        journal.append(number + 1, [TasksAdmitted(1, [spec], [m.TaskEntry(0)] * tasks, ids)], [], 1)
    assert journal.close(60)


def test_what_was_answered_before_the_end_arrives(cluster: Cluster) -> None:
    daemon = cluster.start_daemon()
    with RawClient(cluster.address) as client:
        ids = client.submit(5000, hold=True)
        number = client.number()
        client.send(m.ListTasks(number, m.Selection(), 5000, 0, True))
        daemon.signal(signal.SIGTERM)
        while client.fill():
            pass
        assert isinstance(client.inbox[-1], m.Refused)
        for answer in client.inbox:  # there is one if it came before the signal
            assert not isinstance(answer, m.TaskList) or len(answer.tasks) == len(ids)
        assert daemon.wait() == 0


def test_second_signal_does_not_wait_for_a_peer_that_does_not_read(cluster: Cluster) -> None:
    daemon = cluster.start_daemon("[server]\nstop_timeout_s = 600.0\n")
    with RawClient(cluster.address) as sleeper:
        sleeper.submit(5000, hold=True, argument=bytes(1000))
        sleeper.send(*[m.ListTasks(n, m.Selection(), 5000, 0, True) for n in range(20)])
        with RawClient(cluster.address) as client:
            client.ask(m.GetStats)
        daemon.signal(signal.SIGTERM)
        wait_until(lambda: "stopping" in daemon.log())
        assert daemon.is_alive
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 0
    assert "stop_forced" in daemon.log()


def test_peer_that_does_not_read_holds_up_the_end_for_a_bounded_time(cluster: Cluster) -> None:
    daemon = cluster.start_daemon("[server]\nstop_timeout_s = 0.3\n")
    with RawClient(cluster.address) as sleeper:
        sleeper.submit(5000, hold=True, argument=bytes(1000))
        sleeper.send(*[m.ListTasks(n, m.Selection(), 5000, 0, True) for n in range(20)])
        with RawClient(cluster.address) as client:
            client.ask(m.GetStats)
        started = time.monotonic()
        assert daemon.stop() == 0
        assert time.monotonic() - started < 5


def test_config_that_cannot_be_used(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text("[policy]\nname = 'fifi'\n")
    ran = run_server("--config", str(config))
    assert ran.returncode != 0
    assert "fifi" in ran.stderr


def test_few_open_files(cluster: Cluster) -> None:
    """More connections than files: those that fit are served, the others wait."""
    script = "import resource, runpy; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)); "
    script += "runpy.run_module('schedd.server', run_name='__main__', alter_sys=True)"
    daemon = cluster.start_daemon(program=["-c", script])
    assert "few_open_files" in daemon.log()
    with RawClient(cluster.address) as client:
        with contextlib.ExitStack() as peers:
            for _ in range(100):
                peers.enter_context(RawPeer(cluster.address)).write(b"\0")
            wait_until(lambda: client.ask(m.GetStats).connections > 1, what="some of them are served")
            for _ in range(20):
                assert 1 < client.ask(m.GetStats).connections <= 64
        wait_until(lambda: client.ask(m.GetStats).connections == 1)
        with RawClient(cluster.address) as late:
            assert late.ask(m.GetStats).connections == 2
    assert daemon.stop() == 0


def test_soft_limit_of_open_files_is_raised(cluster: Cluster) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    script = f"import resource, runpy; resource.setrlimit(resource.RLIMIT_NOFILE, (64, {hard})); "
    script += "runpy.run_module('schedd.server', run_name='__main__', alter_sys=True)"
    daemon = cluster.start_daemon(program=["-c", script])
    limits = Path(f"/proc/{daemon.pid}/limits").read_text().splitlines()
    assert next(line for line in limits if line.startswith("Max open files")).split()[3] == str(hard)
