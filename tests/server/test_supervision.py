"""What the service manager hears, what it keeps for the next start, and when it hears nothing any more."""

from __future__ import annotations

import os
import random
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest
from helpers import Cluster, wait_until

from schedd.config import Settings
from schedd.core.engine import Engine
from schedd.core.model import SECOND
from schedd.core.policies.fifo import FIFOScheduler
from schedd.notify import watchdog_s
from schedd.server import supervision
from schedd.server.inherited import KEPT
from schedd.server.service import Service
from schedd.server.supervision import JOURNAL_STUCK_S, Supervision
from schedd.wire import messages as m

from .peers import RawClient


class Manager:
    """Stands in for systemd: hears what a daemon says, and gets the files that it hands over."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address.replace("@", "\0"))
        self._socket.settimeout(20)
        self.heard: list[str] = []
        self.kept: list[socket.socket] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._socket.close()
        for each in self.kept:
            each.close()

    def hear(self, beginning: str) -> str:
        """The next message that has a line with this beginning. Raises TimeoutError."""
        while True:
            data, fds, _, _ = socket.recv_fds(self._socket, 4096, 4)
            self.kept += [socket.socket(fileno=fd) for fd in fds]
            self.heard += data.decode().splitlines()
            if any(line.startswith(beginning) for line in data.decode().splitlines()):
                return data.decode()

    def env(self, **more: str) -> dict[str, str]:
        return {"NOTIFY_SOCKET": self.address, **more}


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    with Manager(str(tmp_path / "notify")) as made:
        yield made


def test_a_life(cluster: Cluster, manager: Manager) -> None:
    daemon = cluster.start_daemon('[policy]\nname = "fifo"\n', env=manager.env())
    assert manager.hear("READY=1") == "READY=1\nSTATUS=0 queued; 0 on 0 workers; policy fifo"
    (path,) = cluster.folder.glob("config-*.toml")
    path.write_text('[policy]\nname = "batch"\n')
    daemon.signal(signal.SIGHUP)
    assert "MONOTONIC_USEC=" in manager.hear("RELOADING=1")
    assert "policy batch; reloaded at " in manager.hear("READY=1")
    path.write_text('[policy]\nname = "lifo"\n')
    daemon.signal(signal.SIGHUP)
    told = manager.hear("READY=1")
    assert "policy batch; RELOAD FAILED at " in told
    assert "policy.name: there is no policy 'lifo'" in told
    assert daemon.stop() == 0
    assert "EXTEND_TIMEOUT_USEC=70000000" in manager.hear("STOPPING=1")


def test_manager_of_the_abstract_kind_and_one_that_is_gone(cluster: Cluster) -> None:
    cluster.start_daemon(env={"NOTIFY_SOCKET": str(cluster.folder / "nobody")}).stop()
    with Manager(f"@schedd-test-{os.getpid()}") as manager:
        cluster.start_daemon(env=manager.env())
        assert manager.hear("READY=1")


def test_what_cannot_start_says_why(cluster: Cluster, manager: Manager) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        daemon = cluster.start_daemon(listen=f"127.0.0.1:{taken.getsockname()[1]}", wait=False, env=manager.env())
        assert "cannot listen on 127.0.0.1" in manager.hear("STATUS=cannot start")
        assert daemon.wait() == 9


def test_status_follows_and_life_is_told(cluster: Cluster, manager: Manager) -> None:
    cluster.start_daemon(env=manager.env(WATCHDOG_USEC="200000"))
    manager.hear("WATCHDOG=1")
    with RawClient(cluster.address) as client:
        client.submit(3)
        manager.hear("STATUS=3 queued; 0 on 0 workers")
        manager.hear("WATCHDOG=1")


def test_stopped_daemon_tells_no_life(cluster: Cluster, manager: Manager) -> None:
    daemon = cluster.start_daemon(env=manager.env(WATCHDOG_USEC="100000"))
    manager.hear("WATCHDOG=1")
    daemon.signal(signal.SIGSTOP)
    manager._socket.settimeout(0.3)
    with pytest.raises(TimeoutError):
        manager.hear("never")


def test_watchdog_of_another_process_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "3000000")
    assert watchdog_s() == 3.0
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert watchdog_s() == 0.0
    monkeypatch.setenv("WATCHDOG_USEC", "soon")
    assert watchdog_s() == 0.0


# ------------------------------------------------------------------------------------------------------ kept sockets

#: Becomes a daemon with what listens at a port as its file 3, as systemd passes it on.
PASS_ON = """
import os, runpy, socket, sys
port, name = os.environ["PASS_PORT"], os.environ["PASS_NAME"]
given = socket.create_server(("127.0.0.1", int(port)), reuse_port=False)
os.dup2(given.fileno(), 3)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": name}
runpy.run_module("schedd.server", run_name="__main__", alter_sys=True)
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def test_what_listens_is_handed_over_to_be_kept(cluster: Cluster, manager: Manager) -> None:
    daemon = cluster.start_daemon(env=manager.env())
    manager.hear("READY=1")
    assert ["FDSTORE=1", f"FDNAME={KEPT}"] == manager.heard[:2]
    (kept,) = manager.kept
    assert kept.getsockname()[1] == int(cluster.address.rpartition(":")[2])
    daemon.kill()
    with socket.create_connection(kept.getsockname(), timeout=5):  # who comes now waits for the next daemon
        pass


def test_kept_socket_is_used_again(cluster: Cluster, manager: Manager) -> None:
    port = free_port()
    env = manager.env(PASS_PORT=str(port), PASS_NAME=KEPT)
    cluster.start_daemon(listen=f"127.0.0.1:{port}", program=("-c", PASS_ON), env=env)
    manager.hear("READY=1")
    assert "FDSTORE=1" not in manager.heard  # the manager has it
    with RawClient(f"127.0.0.1:{port}") as client:
        assert client.ask(m.GetStats).address == f"127.0.0.1:{port}"


def test_kept_socket_of_another_address_is_given_up(cluster: Cluster, manager: Manager) -> None:
    port, before = free_port(), free_port()
    env = manager.env(PASS_PORT=str(before), PASS_NAME=KEPT)
    cluster.start_daemon(listen=f"127.0.0.1:{port}", program=("-c", PASS_ON), env=env)
    manager.hear("READY=1")
    assert manager.heard.index("FDSTOREREMOVE=1") < manager.heard.index("FDSTORE=1")
    assert cluster.address == f"127.0.0.1:{port}"


def test_socket_unit_says_where_to_listen(cluster: Cluster, manager: Manager) -> None:
    port = free_port()
    env = manager.env(PASS_PORT=str(port), PASS_NAME="schedd.socket")
    daemon = cluster.start_daemon(listen="127.0.0.1:1", program=("-c", PASS_ON), env=env)
    manager.hear("READY=1")
    assert cluster.address == f"127.0.0.1:{port}"
    assert "listen_ignored" in daemon.log()
    assert "FDSTORE=1" not in manager.heard  # that is the socket unit's
    with RawClient(cluster.address) as client:
        assert client.ask(m.GetStats)


def test_socket_that_is_meant_for_another_process_is_left_alone(cluster: Cluster) -> None:
    env = {"LISTEN_PID": "1", "LISTEN_FDS": "1"}
    cluster.start_daemon(env=env)
    with RawClient(cluster.address) as client:
        assert client.ask(m.GetStats)


def test_unix_socket_of_the_command_line_beside_that_of_the_settings(cluster: Cluster) -> None:
    paths = [cluster.folder / "one.sock", cluster.folder / "two.sock"]
    program = ("-m", "schedd.server", "--socket", str(paths[1]))
    daemon = cluster.start_daemon(f'[server]\nsocket = "{paths[0]}"\n', program=program)
    for path in paths:
        wait_until(path.exists)
        with RawClient(f"unix:{path}") as client:
            assert client.ask(m.GetStats)
    assert daemon.stop() == 0
    assert not any(path.exists() for path in paths)


# ----------------------------------------------------------------------------------------------- looking after itself


class Hand:
    """A clock and a loop that only the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.due: list[tuple[float, Callable[..., object], tuple[Any, ...]]] = []

    def now_ns(self) -> int:
        return int(self.now * SECOND)

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> Hand:
        self.due.append((self.now + delay, callback, args))
        return self

    def call_soon(self, callback: Callable[..., object], *args: Any) -> None:
        self.call_later(0, callback, *args)

    call_soon_threadsafe = call_soon

    def cancel(self) -> None:
        """Timers of turns are not needed here."""

    def wait(self, seconds: float) -> None:
        end = self.now + seconds
        while self.due and min(self.due, key=lambda each: each[0])[0] <= end:
            first = min(self.due, key=lambda each: each[0])
            self.due.remove(first)
            self.now = max(self.now, first[0])
            first[1](*first[2])
        self.now = end


class Stuck:
    """A journal that takes everything and writes nothing."""

    durability = "full"

    def append(self, *of_a_turn: object, **more: object) -> None: ...

    def stand_aside(self) -> None: ...

    def close(self) -> bool:
        return True


class Looked:
    """A service that is looked after, with all that it tells."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("NOTIFY_SOCKET", "/nobody")
        monkeypatch.setenv("WATCHDOG_USEC", "20000000")
        monkeypatch.setattr(supervision, "notify", lambda *lines: self.told.extend(lines))
        self.told: list[str] = []
        self.hand = hand = Hand()
        monkeypatch.setattr(time, "monotonic", lambda: hand.now)
        engine = Engine(FIFOScheduler())
        self.service = Service(engine, hand, Settings(), self._crashed, hand, random.Random(0))
        self.journal_is_alive = True
        self.supervision = Supervision(self.service, hand, lambda: self.journal_is_alive)
        self.supervision.ready()

    @staticmethod
    def _crashed(error: BaseException) -> None:
        raise error

    def lives(self, seconds: float = 20.0) -> int:
        """How often life is told in so long."""
        self.told.clear()
        self.hand.wait(seconds)
        return self.told.count("WATCHDOG=1")


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> Looked:
    return Looked(monkeypatch)


def test_life_is_told_while_all_is_well(looked: Looked) -> None:
    assert looked.lives() == 4
    assert looked.lives() == 4


def test_engine_that_takes_no_turns(looked: Looked, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as stuck:
        stuck.setattr(looked.service.loop, "_run_queries", lambda: None)
        assert looked.lives(40.0) <= 1
        assert "STATUS=UNWELL: no turn of the engine has come since the last look" in looked.told
    looked.service.loop.wake()
    looked.hand.wait(5)
    assert looked.lives() == 4


def test_engine_that_has_much_to_do(looked: Looked, monkeypatch: pytest.MonkeyPatch) -> None:
    """A question waits behind all that has come before it; while that is worked on all is well."""
    monkeypatch.setattr(looked.service.loop, "_run_queries", lambda: None)
    looked.lives()
    for _ in range(4):
        looked.service.loop.handled += 1
        assert looked.lives(5.0) == 1
    assert looked.lives(5.0) == 0


@pytest.mark.needs("sources")
def test_timer_of_the_engine_that_nobody_hears(looked: Looked, monkeypatch: pytest.MonkeyPatch) -> None:
    looked.lives()
    monkeypatch.setattr(looked.service.engine, "next_deadline", lambda: looked.hand.now_ns() - 60 * SECOND)
    monkeypatch.setattr(looked.service.loop, "arm", lambda: None)
    assert looked.lives() == 0
    assert "STATUS=UNWELL: a timer of the engine is overdue by 60.0 s" in looked.told


def test_journal_that_writes_nothing(looked: Looked) -> None:
    promises = looked.service.promises
    promises.journal = Stuck()
    assert looked.lives() == 4
    promises._recorded = 7
    assert looked.lives(JOURNAL_STUCK_S - 5) > 0
    looked.told.clear()
    looked.hand.wait(20)
    assert any("UNWELL: the journal has written nothing for" in line for line in looked.told)
    assert looked.lives() == 0
    promises._written = 6  # slowly, but it writes
    assert looked.lives() > 0
    looked.hand.wait(80)
    assert looked.lives() == 0
    promises.failure = "No space left on device"  # which it says, and which a restart would not mend
    assert looked.lives() == 4
    promises.failure, promises._written = "", 7
    assert looked.lives() == 4
    looked.journal_is_alive = False
    assert looked.lives() == 0


def test_long_start_asks_for_more_time(looked: Looked) -> None:
    new = Supervision(looked.service, looked.hand, lambda: True)
    new.starting()
    looked.hand.wait(4)
    assert "EXTEND_TIMEOUT_USEC=60000000" not in looked.told
    looked.hand.wait(8)
    assert looked.told.count("EXTEND_TIMEOUT_USEC=60000000") == 2
    new.ready()
    looked.told.clear()
    looked.hand.wait(60)
    assert "EXTEND_TIMEOUT_USEC=60000000" not in looked.told
