"""Settings: what is refused, how it is said, and that the example file documents every key at its default."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from schedd.address import Address, journal_path, parse_address, state_dir
from schedd.config import Settings, load_settings, parse_settings
from schedd.core.policies import POLICIES
from schedd.core.policies.adaptive import AdaptiveScheduler
from schedd.errors import ConfigError

EXAMPLE = Path(__file__).parent.parent / "config.toml"


def refused(text: str) -> tuple[str, str]:
    with pytest.raises(ConfigError) as caught:
        parse_settings(text, "my.toml")
    return caught.value.message, caught.value.hint


def tables(
    kind: type[msgspec.Struct], path: tuple[str, ...] = ()
) -> list[tuple[tuple[str, ...], type[msgspec.Struct]]]:
    """Every table of the file, with its Struct."""
    found = [(path, kind)]
    for one in msgspec.structs.fields(kind):
        if isinstance(one.type, type) and issubclass(one.type, msgspec.Struct):
            found += tables(one.type, (*path, one.name))
    return found


TABLES = tables(Settings)


def test_nothing_said() -> None:
    assert parse_settings("") == Settings() == load_settings(None)


@pytest.mark.parametrize("path", [path for path, _ in TABLES], ids=lambda path: ".".join(path) or "top")
def test_unknown_key(path: tuple[str, ...]) -> None:
    header = f"[{'.'.join(path)}]\n" if path else ""
    message, hint = refused(header + "zzzzzz = 1")
    where = f"[{'.'.join(path)}]" if path else "the file"
    assert message == f"my.toml: {'.'.join((*path, 'zzzzzz'))} is not a key of {where}"
    assert hint.startswith("known keys: ")


@pytest.mark.parametrize(
    ("path", "key"),
    [(path, one.name) for path, kind in TABLES for one in msgspec.structs.fields(kind)],
    ids=lambda part: ".".join(part) if isinstance(part, tuple) else part,
)
def test_misspelt_key(path: tuple[str, ...], key: str) -> None:
    header = f"[{'.'.join(path)}]\n" if path else ""
    _, hint = refused(f"{header}{key}x = 1")
    assert hint == f"did you mean {key!r}?"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("server = 1", "my.toml: server: expected object, got int"),
        ("[server]\nlisten = 7", "my.toml: server.listen: expected str, got int"),
        ("[heartbeat]\ninterval_s = 'often'", "my.toml: heartbeat.interval_s: expected float, got str"),
        ("[limits]\nunfinished_max = 0", "my.toml: limits.unfinished_max: expected int >= 1"),
        ("[policy.adaptive]\nlearning_rate = 2", "my.toml: policy.adaptive.learning_rate: expected float <= 1.0"),
        ("[retries]\nmemory_growth = 0.5", "my.toml: retries.memory_growth: expected float >= 1.0"),
        ("[log]\nlevel = 'loud'", "my.toml: log.level: invalid enum value 'loud'"),
        ("[worker]\ngpus = 'some'", "my.toml: worker.gpus: invalid enum value 'some'"),
        ("[worker.labels]\nzone = 1", "my.toml: worker.labels[...]: expected str, got int"),
    ],
)
def test_wrong_type(text: str, message: str) -> None:
    assert refused(text)[0] == message


@pytest.mark.parametrize("value", ["nan", "inf", "-1.0", "0.0"])
def test_durations_that_mean_nothing(value: str) -> None:
    assert "heartbeat.interval_s" in refused(f"[heartbeat]\ninterval_s = {value}")[0]


def test_not_toml() -> None:
    assert refused("[server")[0].startswith("my.toml: ")


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("[policy]\nname = 'prioritty'", "there is no policy 'prioritty'", "did you mean 'priority'?"),
        ("[policy]\nname = 'zzz'", "there is no policy 'zzz'", "policies: fifo, priority,"),
        ("[heartbeat]\nlease_s = 10", "heartbeat.lease_s = 10 is less than three times interval_s = 5", "one lost"),
        ("[server]\nlisten = '0.0.0.0:1'", "server.listen = '0.0.0.0:1' is open to other machines", "listen on"),
        ("[server]\nlisten = 'here:there'", "server.listen: 'here:there' is not an address", "use HOST:PORT"),
        ("[worker]\nconnect = 'unix:'", "worker.connect: 'unix:' is not a socket path", "a path has"),
        ("[worker]\nreconnect_delay_s = 20", "worker.reconnect_delay_max_s is less than", ""),
        ("[retries]\ndelay_s = 301", "retries.delay_max_s is less than", ""),
        ("[failures]\nprobe_after_s = 7200.0", "failures.probe_after_max_s is less than", ""),
    ],
)
def test_relations(text: str, message: str, hint: str) -> None:
    said = refused(text)
    assert message in said[0]
    assert said[1].startswith(hint)


def test_relations_that_hold() -> None:
    assert parse_settings("[server]\nlisten = '0.0.0.0:1'\ninsecure = true").server.insecure
    apart = parse_settings("[server]\nlisten = 'unix:/run/schedd.sock'\n[worker]\nconnect = 'head:7077'")
    assert apart.worker.connect == "head:7077"
    assert parse_settings("[heartbeat]\nlease_s = 15").heartbeat.lease_s == 15


@pytest.mark.parametrize("name", list(POLICIES))
def test_every_policy_has_its_table(name: str) -> None:
    settings = parse_settings(f"[policy]\nname = '{name}'\n[policy.{name}]")
    assert type(getattr(settings.policy, name)) is POLICIES[name].Params
    assert type(settings.policy.build()) is POLICIES[name]


def test_parameters_reach_the_policy() -> None:
    settings = parse_settings("[policy]\nname = 'work_stealing'\n[policy.work_stealing]\nsteal_threshold = 7")
    assert getattr(settings.policy.build(), "steal_threshold") == 7  # noqa: B009


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_settings(tmp_path / "none.toml")
    bad = tmp_path / "bad.toml"
    bad.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_settings(bad)
    good = tmp_path / "good.toml"
    good.write_text("[policy]\nname = 'fifo'\n")
    assert load_settings(good).policy.name == "fifo"


def test_example_parses_to_the_defaults() -> None:
    assert load_settings(EXAMPLE) == Settings()


def test_example_names_every_key_at_its_default() -> None:
    """Live, or commented out where no default can be written."""
    text = EXAMPLE.read_text(encoding="utf-8")
    written: dict[str, Any] = tomllib.loads(text)
    for path, kind in TABLES:
        table = written
        for part in path:
            assert part in table or not msgspec.structs.fields(kind), f"no table [{'.'.join(path)}]"
            table = table.get(part, {})
        for one in msgspec.structs.fields(kind):
            if isinstance(one.type, type) and issubclass(one.type, msgspec.Struct):
                continue
            missing = f"{'.'.join((*path, one.name))} is not in the example"
            assert one.name in table or f"# {one.name} = " in text or f"#{one.name} = " in text, missing


def test_shadow_is_a_policy_too() -> None:
    settings = parse_settings('policy.shadow = "adaptive"\npolicy.adaptive.learning_rate = 0.5')
    shadow = settings.policy.build_shadow()
    assert isinstance(shadow, AdaptiveScheduler)
    assert shadow.learning_rate == 0.5
    assert parse_settings("").policy.build_shadow() is None
    message, hint = refused('policy.shadow = "adaptiv"')
    assert message == "my.toml: policy.shadow: there is no policy 'adaptiv'"
    assert hint == "did you mean 'adaptive'?"


def test_home_in_the_path_of_a_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert parse_address("unix:~/run/x.sock") == Address(path="/home/me/run/x.sock")
    assert parse_address("unix:run/~x.sock") == Address(path="run/~x.sock")
    with pytest.raises(ConfigError, match="home of a user that does not exist"):
        parse_address("unix:~no.such.user/x.sock")
    assert refused('server.listen = "unix:~no.such.user/x"')[0].startswith("my.toml: server.listen: ")


def test_home_in_the_place_of_the_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SCHEDD_STATE_DIR", "~/state")
    assert state_dir() == Path("/home/me/state")
    assert journal_path() == Path("/home/me/state/journal.db")
