"""docs/own-policy.md, followed to the letter: the module, its test, its registration, a daemon that runs it."""

from __future__ import annotations

import json
import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from helpers import Cluster
from registered import distribution

from schedd.cli.exits import Exit
from schedd.cli.main import main
from schedd.testing import PolicyConformance, failures

from .conftest import Gate
from .test_policies import busy, start_order

PAGE = Path(__file__).parents[2] / "docs" / "own-policy.md"
MODULE = "shortest_first"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Do what `pip install .` would do; returns the folder that is on the path."""
    project: dict[str, Any] = tomllib.loads(blocks("toml")[0])
    assert project["tool"]["setuptools"]["py-modules"] == [MODULE]
    policies = project["project"]["entry-points"]["schedd.policies"]
    folder = distribution(tmp_path / "site", MODULE, blocks("python")[0], policies)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    return folder


@pytest.mark.parametrize("suite", ["TestShortestFirst", "TestWithoutAgeing"])
def test_its_test_passes(installed: Path, suite: str) -> None:
    tests = ModuleType("test_shortest_first")
    exec(compile(blocks("python")[1], "test_shortest_first.py", "exec"), tests.__dict__)
    one = getattr(tests, suite)
    assert issubclass(one, PolicyConformance)
    assert failures(one) == {}


def test_config_is_good(installed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.toml"
    path.write_text(blocks("toml")[1])
    assert main(["check", str(path), "--json"]) == Exit.OK
    assert json.loads(capsys.readouterr().out)["policy"]["shortest_first"]["unknown_s"] == 60


def test_trace_has_the_figures_of_the_page(installed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "trace.csv").write_text(blocks("csv")[0])
    said = PAGE.read_text(encoding="utf-8")
    [command] = re.findall(r"`schedd (simulate [^`]*)`", said)
    arguments = [str(tmp_path / "trace.csv") if word == "trace.csv" else word for word in command.split()]
    assert main(arguments) == Exit.OK
    policies = json.loads(capsys.readouterr().out)["policies"]
    fifo, own = (policies[name]["mean_flow_time_s"] for name in ("fifo", "shortest_first"))
    assert f"{fifo:,.1f} s under `fifo` and of {own:,.1f} s under `shortest_first`" in " ".join(said.split())


def test_daemon_runs_it(installed: Path, cluster: Cluster, gate: Gate) -> None:
    cluster.start_daemon(blocks("toml")[1], env={"PYTHONPATH": f"{installed}:{Path(__file__).parents[2]}"})
    assert cluster.client.stats().policy == "shortest_first"
    cluster.start_worker()
    busy(cluster, gate)
    hints: list[dict[str, float]] = [
        {"estimated_time": 300},
        {"estimated_time": 5},
        {},  # 60 s, by the table
        {"estimated_time": 100},
        {"estimated_time": 200, "priority": 1},
    ]
    tasks = [cluster.client.submit(["true"], **hint) for hint in hints]
    gate.open()
    assert start_order(cluster, tasks) == [4, 1, 2, 3, 0]
    assert {cluster.task(task.id).state for task in tasks} == {"succeeded"}


def test_daemon_without_it_says_why_it_does_not_start(cluster: Cluster) -> None:
    daemon = cluster.start_daemon(blocks("toml")[1], wait=False, program=("-m", "schedd.cli", "serve"))
    assert daemon.wait() == Exit.CONFIG
    assert "error: " in daemon.log()
    assert "policy.name: there is no policy 'shortest_first'" in daemon.log()
