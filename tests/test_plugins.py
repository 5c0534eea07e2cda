"""Policies of other distributions: found by their names, refused with a reason, and asked for only where needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from msgspec import structs
from registered import MINE, distribution

from schedd import plugins
from schedd.cli.commands.worker import _settings as worker_settings
from schedd.cli.exits import Exit
from schedd.cli.main import main
from schedd.config import Settings, load_settings, parse_settings
from schedd.core.engine import RUNTIMES
from schedd.errors import ConfigError


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install a distribution that registers the policy `mine`."""
    folder = distribution(tmp_path / "site", "mine_policy", MINE, {"mine": "mine_policy:Mine"})
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "mine_policy", raising=False)
    return folder


def refused(text: str) -> tuple[str, str]:
    with pytest.raises(ConfigError) as caught:
        parse_settings(text, "my.toml")
    return caught.value.message, caught.value.hint


# ------------------------------------------------------------------------------------------------------------ settings


def test_chosen_by_name_with_its_table(mine: Path) -> None:
    settings = parse_settings("[policy]\nname = 'mine'\n[policy.mine]\nweight = 2.5\n[policy.batch]\nbatch_size = 2")
    assert isinstance(settings, Settings)
    policy = settings.policy.build()
    assert (type(policy).__name__, getattr(policy, "weight", None)) == ("Mine", 2.5)
    assert settings.policy.batch.batch_size == 2
    changed = structs.replace(settings, server=structs.replace(settings.server, listen="127.0.0.1:1"))
    assert type(changed.policy.build()) is type(policy)


def test_defaults_where_it_has_no_table(mine: Path) -> None:
    assert getattr(parse_settings("policy.name = 'mine'").policy.build(), "weight", None) == 1


def test_its_table_may_stay_while_another_is_chosen(mine: Path) -> None:
    settings = parse_settings("[policy]\nname = 'fifo'\n[policy.mine]\nweight = 2.5")
    assert settings.policy.build().name == "fifo"
    assert refused("[policy]\nname = 'fifo'\n[policy.mine]\nweight = 'x'")[0].startswith("my.toml: policy.mine.weight:")


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("[policy]\nname = 'mien'", "policy.name: there is no policy 'mien'", "did you mean 'mine'?"),
        ("[policy]\nname = 'zzz'", "policy.name: there is no policy 'zzz'", "policies: fifo, priority,"),
        (
            "[policy]\nname = 'mine'\n[policy.mine]\nwieght = 1",
            "policy.mine.wieght is not a key of [policy.mine]",
            "did you mean 'weight'?",
        ),
        ("[policy]\nname = 'mine'\n[policy.mine]\nweight = 11", "policy.mine.weight: expected float <= 10.0", ""),
        ("[policy]\nname = 'mine'\n[policy.mine]\nweight = 7", "policy.mine: 7 is an unlucky number", ""),
        ("[policy]\nmine = 1\nname = 'mine'", "policy.mine: expected object, got int", ""),
        ("[policy.yours]\nx = 1", "policy.yours is not a key of [policy]", "known keys: name, "),
        ("[policy]\nname = ''", "policy.name: there is no policy ''", "policies: "),
        ("[policy]\nname = 'build'", "there is no policy 'build'", "policies: "),
    ],
)
def test_mistakes_are_said_as_for_built_in_ones(mine: Path, text: str, message: str, hint: str) -> None:
    said = refused(text)
    assert message in said[0]
    assert said[0].startswith("my.toml: ")
    assert said[1].startswith(hint)


def test_worker_needs_no_policy(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("[policy]\nname = 'elsewhere'\n[policy.elsewhere]\nx = 1\n[worker]\nname = 'w1'\n")
    with pytest.raises(ConfigError, match="policy"):
        load_settings(path)
    assert load_settings(path, with_policy=False).worker.name == "w1"
    assert worker_settings(str(path))[0].name == "w1"


# ---------------------------------------------------------------------------------------------- what cannot be one


BROKEN = {
    "raise OSError('no licence')": "cannot be loaded: OSError: no licence",
    "def (": "cannot be loaded: SyntaxError: ",
    "import nowhere_at_all": "cannot be loaded: ModuleNotFoundError: No module named 'nowhere_at_all'",
    "": "cannot be loaded: AttributeError: ",
    "Mine = 3": "mine_policy:Mine is not a subclass of schedd.TaskScheduler",
    "class Mine: pass": "is not a subclass of schedd.TaskScheduler",
    "from schedd import TaskScheduler\nclass Mine(TaskScheduler): name = 'mine'": "does not define score",
    MINE.replace('"mine"', '"fifo"'): "has the name 'fifo', which must be the one that it is registered by",
    MINE.replace('    name = "mine"\n', ""): "has the name None",
    MINE.replace("    Params = MineParams\n", ""): "has no Params",
    MINE.replace("Params = MineParams", "Params = dict"): "has no Params",
    MINE.replace("    summary = ", "    other = "): "has no summary",
    MINE.replace("le=10)] = 1.0", "le=10)]"): "has Params without a default for weight",
}


@pytest.mark.parametrize("text", BROKEN)
def test_broken_one_is_refused_with_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    folder = distribution(tmp_path / "site", "mine_policy", text, {"mine": "mine_policy:Mine"})
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "mine_policy", raising=False)
    message, hint = refused("policy.name = 'mine'")
    assert message.startswith("my.toml: policy: the policy 'mine' of mine_policy 1.0 cannot be ")
    assert BROKEN[text] in message
    assert hint
    (tmp_path / "config.toml").write_text("policy.name = 'mine'")
    assert main(["check", str(tmp_path / "config.toml")]) == Exit.CONFIG


def test_name_of_a_built_in_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = MINE.replace('"mine"', '"fifo"')
    monkeypatch.syspath_prepend(str(distribution(tmp_path / "site", "mine_policy", text, {"fifo": "mine_policy:Mine"})))
    assert parse_settings("policy.name = 'fifo'").policy.build().__class__.__name__ == "FIFOScheduler"
    with pytest.raises(ConfigError, match=r"mine_policy 1\.0 registers 'fifo', which is built in"):
        plugins.find("fifo")


def test_name_that_the_engine_keeps_its_own_under(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert plugins.RESERVED == RUNTIMES
    text = MINE.replace('"mine"', f'"{RUNTIMES}"')
    folder = distribution(tmp_path / "site", "mine_policy", text, {RUNTIMES: "mine_policy:Mine"})
    monkeypatch.syspath_prepend(str(folder))
    assert "registers 'runtimes', which is built in" in refused("policy.name = 'runtimes'")[0]


def test_name_that_is_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(
        str(distribution(tmp_path / "site", "mine_policy", MINE, {"my-own": "mine_policy:Mine"}))
    )
    assert "registers 'my-own', which cannot be a key" in refused("policy.name = 'my-own'")[0]


def test_registered_twice(mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = distribution(tmp_path / "other", "other_policy", MINE, {"mine": "other_policy:Mine"})
    monkeypatch.syspath_prepend(str(other))
    message, hint = refused("policy.name = 'mine'")
    assert "'mine' is registered twice, by " in message
    assert "mine_policy 1.0" in message
    assert "other_policy 1.0" in message
    assert hint == "uninstall one of them"


# ------------------------------------------------------------------------------------------------------------ commands


def test_listed(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plugins.registered() == ["mine"]
    assert main(["policies"]) == Exit.OK
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.split() == ["mine", "Mine", "the", "last", "worker", "first", "mine_policy", "1.0"]


def test_broken_one_is_not_listed_but_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(distribution(tmp_path / "site", "bad_policy", "x", {"bad": "bad_policy:Bad"})))
    assert main(["policies"]) == Exit.OK
    told = capsys.readouterr()
    assert "bad" not in told.out
    assert "warning: the policy 'bad' of bad_policy 1.0 cannot be loaded: NameError" in told.err


def test_simulated(mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "trace.csv").write_text("runtime_s\n10\n5\n")
    arguments = ["simulate", "--trace", str(tmp_path / "trace.csv"), "--add-worker", "cpus=1,count=2"]
    assert main([*arguments, "--policy", "mine,fifo", "--set", "policy.mine.weight=3"]) == Exit.OK
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()[1:]] == [
        ["mine", "10.0"],
        ["fifo", "10.0"],
    ]
    assert main([*arguments, "--policy", "mien"]) == Exit.USAGE
    assert "did you mean 'mine'?" in capsys.readouterr().err


def test_nobody_else_waits_for_it() -> None:
    """What is installed is not looked at for a built-in policy, by whatever command."""
    script = (
        "import sys, schedd.cli.main, schedd.config\n"
        "schedd.config.parse_settings('[policy]\\nname = \"adaptive\"\\n[policy.batch]\\nbatch_size = 2')\n"
        "assert 'importlib.metadata' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
