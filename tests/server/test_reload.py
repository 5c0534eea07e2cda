"""Editing the settings of a daemon that runs: what may change does, the rest is named, a bad file does nothing."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any

import pytest
from helpers import Cluster, DaemonProcess, wait_until

from schedd.config import Settings, parse_settings
from schedd.core.engine import Engine
from schedd.core.model import Call
from schedd.core.policies import POLICIES
from schedd.core.settings import EngineSettings
from schedd.errors import ConfigError
from schedd.server.clock import Clock
from schedd.server.reload import AT_START, Reloader, _differences, _without
from schedd.server.service import Service
from schedd.wire import messages as m

from .peers import RawClient, RawWorker


def rewrite(cluster: Cluster, text: str) -> None:
    (path,) = cluster.folder.glob("config-*.toml")
    path.write_text(text)


def reload(client: RawClient, cluster: Cluster, text: str) -> Any:
    rewrite(cluster, text)
    return client.ask(m.Reload)


def _tells(daemon: DaemonProcess, text: str) -> bool:
    return text in daemon.log()


def test_policy_is_swapped_and_nothing_is_lost(cluster: Cluster) -> None:
    cluster.start_daemon('[policy]\nname = "fifo"\n')
    with RawClient(cluster.address) as client, RawWorker(cluster.address, "w1"):
        ids = client.submit(300)
        done = reload(client, cluster, '[policy]\nname = "adaptive"\n[policy.adaptive]\nexploration = 0.0\n')
        assert isinstance(done, m.Reloaded)
        assert done.changed == [
            'policy.name = "adaptive" (was "fifo")',
            "policy.adaptive.exploration = 0.0 (was 0.5)",
        ]
        assert done.needs_restart == []
        assert client.ask(m.GetPolicy).name == client.ask(m.GetStats).policy == "adaptive"
        assert sum(client.ask(m.GetStats).states.values()) == len(ids)
        assert client.ask(m.GetStats).connections == 2
    with RawClient(cluster.address) as later:
        assert later.welcome is not None
        assert later.welcome.policy == "adaptive"


def test_bad_file_changes_nothing_and_says_which_key(cluster: Cluster) -> None:
    daemon = cluster.start_daemon('[policy]\nname = "fifo"\n')
    with RawClient(cluster.address) as client:
        for text, told in (
            ('[policy]\nname = "batch"\n[limits]\nunfinished_max = -1\n', "limits.unfinished_max"),
            ('[policy]\nname = "batch"\n[log]\nlevle = "debug"\n', "log.levle"),
            ('[policy]\nname = "lifo"\n', "policy.name"),
            ('[policy]\nname = "batch"\n[heartbeat]\nlease_s = 1.0\n', "heartbeat.lease_s"),
            ("[policy\n", "config-1.toml"),
            ('[policy]\nname = "batch"\n[tls]\ncert = "/nonexist"\n', "/nonexist"),
            ('[policy]\nname = "batch"\n[journal]\npath = "~no.such.user/x"\n', "no.such.user"),
            ("a = " + "[" * 100_000, "nested too deep"),
        ):
            failed = reload(client, cluster, text)
            assert isinstance(failed, m.RequestFailed)
            assert failed.code == m.BAD_CONFIG
            assert told in failed.message
            wait_until(partial(_tells, daemon, told))
        assert client.ask(m.GetPolicy).name == "fifo"
        assert client.submit()
    assert "reload_failed" in daemon.log()
    assert "Traceback" not in daemon.log()


def test_what_needs_a_restart_is_named_and_the_rest_counts(cluster: Cluster) -> None:
    cluster.start_daemon()
    text = '[server]\nsocket = "/tmp/other.sock"\nconnections_max = 3\n[journal]\ndurability = "off"\n'
    with RawClient(cluster.address) as client:
        done = reload(client, cluster, text)
        assert done.needs_restart == ["server.socket", "journal.durability"]
        assert done.changed == ["server.connections_max = 3 (was 10000)"]
        again = client.ask(m.Reload)
        assert again.needs_restart == ["server.socket", "journal.durability"]
        assert again.changed == []


def test_limits_and_timers_count_at_once(cluster: Cluster) -> None:
    cluster.start_daemon("[heartbeat]\ninterval_s = 100.0\nlease_s = 300.0\n")
    with RawClient(cluster.address) as client, RawWorker(cluster.address, "w1") as worker:
        assert worker.welcome is not None
        assert worker.welcome.heartbeat_interval_s == 100.0
        text = "[heartbeat]\ninterval_s = 2.0\nlease_s = 6.0\n[limits]\nunfinished_max = 1\n"
        assert isinstance(reload(client, cluster, text), m.Reloaded)
        told = worker.expect(m.HeartbeatReply)
        assert told.interval_s <= 2.0  # who would have reported in a minute and a half knows at once
        client.submit(hold=True)
        refused = client.ask(m.Submit, [m.TaskSpec(payload=Call(path="test:nothing"))], [m.TaskEntry(0)])
        assert isinstance(refused, m.RequestFailed)
        assert refused.code == m.QUEUE_FULL


@pytest.mark.asyncio
async def test_whatever_is_wrong_with_other_files_is_an_answer() -> None:
    def prepare(settings: Settings) -> Callable[[], None]:
        raise RuntimeError("can't start new thread")

    engine = Engine(POLICIES["fifo"](), EngineSettings(), Random(0))
    service = Service(engine, Clock(), Settings(), lambda error: None, asyncio.get_running_loop(), Random(0))
    outcome = await Reloader(Settings(), service, Settings, prepare).reload()
    assert isinstance(outcome, ConfigError)
    assert outcome.message == "the settings cannot be read: can't start new thread"


def test_hangup_is_a_reload(cluster: Cluster) -> None:
    daemon = cluster.start_daemon()
    rewrite(cluster, '[policy]\nname = "batch"\n[log]\nlevel = "debug"\n')
    daemon.signal(signal.SIGHUP)
    wait_until(lambda: "reloaded" in daemon.log(), what="it says what it made of the signal")
    with RawClient(cluster.address) as client:
        assert client.ask(m.GetPolicy).name == "batch"
    assert daemon.stop() == 0


def test_file_that_is_gone(cluster: Cluster) -> None:
    cluster.start_daemon()
    (path,) = cluster.folder.glob("config-*.toml")
    path.unlink()
    with RawClient(cluster.address) as client:
        assert "No such file" in client.ask(m.Reload).message


def test_reloads_that_come_together_are_done_one_after_the_other(cluster: Cluster) -> None:
    cluster.start_daemon('[policy]\nname = "fifo"\n')
    rewrite(cluster, '[policy]\nname = "batch"\n')
    with RawClient(cluster.address) as client:
        numbers = [client.number() for _ in range(5)]
        client.send(*(m.Reload(number) for number in numbers))
        done = [client.answer(number) for number in numbers]
        assert sum(bool(one.changed) for one in done) == 1
        assert client.ask(m.GetPolicy).name == "batch"


# --------------------------------------------------------------------------------------------------------------- parts


def every_key() -> list[str]:
    def changed(struct: Any, path: str = "") -> list[str]:
        keys: list[str] = []
        for name in struct.__struct_fields__:
            value = getattr(struct, name)
            keys += changed(value, f"{path}{name}.") if hasattr(value, "__struct_fields__") else [f"{path}{name}"]
        return keys

    return changed(Settings())


def test_every_key_at_start_is_one() -> None:
    assert set(every_key()) >= AT_START


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("", []),
        ("[log]\nlevel = 'debug'\n[policy.batch]\nbatch_size = 9", ["policy.batch.batch_size", "log.level"]),
        ("[worker]\nname = 'x'\n[worker.labels]\na = 'b'", ["worker.name", "worker.labels"]),
    ],
)
def test_differences(text: str, keys: list[str]) -> None:
    old, new = Settings(), parse_settings(text)
    assert [key for key, _, _ in _differences(old, new)] == keys
    assert [(key, b, a) for key, a, b in _differences(new, old)] == list(_differences(old, new))


def test_what_counts_at_a_start_stays_as_it_is() -> None:
    text = "[server]\nlisten = '127.0.0.1:1'\nconnections_max = 5\n[journal]\npath = '/x'\nkeep_days = 1.0"
    kept = _without(Settings(), parse_settings(text))
    assert (kept.server.listen, kept.server.connections_max) == (Settings().server.listen, 5)
    assert (kept.journal.path, kept.journal.keep_days) == ("", 1.0)
