"""A seed is a whole run: the same trace each time, whatever the order in which Python hashes its strings."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from schedd.sim.__main__ import main
from schedd.sim.cluster import Cluster, run_seed
from schedd.sim.plan import make_plan, without_faults

SEEDS = range(12)


def traces(hash_seed: str) -> list[str]:
    """The traces of some seeds, as another Python has them."""
    code = (
        "import logging; logging.getLogger('schedd').setLevel(60)\n"
        "from schedd.sim.cluster import run_seed\n"
        f"for seed in range({len(SEEDS)}): print(f'{{run_seed(seed).digest:08x}}')"
    )
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_same_seed_same_trace_under_any_hash() -> None:
    here = [f"{run_seed(seed).digest:08x}" for seed in SEEDS]
    assert len(set(here)) == len(SEEDS)
    assert traces("1") == traces("2") == here


def test_listening_changes_nothing() -> None:
    heard: list[str] = []
    cluster = Cluster(make_plan(3))
    cluster.kernel.listener = heard.append
    cluster.run()
    assert cluster.kernel.digest == run_seed(3).digest
    assert any("begins" in text for text in heard)


def test_good_day_runs_each_task_once() -> None:
    """Without faults nothing is given up, and what succeeds at once runs once."""
    for seed in range(20):
        plan = without_faults(make_plan(seed))
        cluster = Cluster(plan)
        cluster.run()
        assert cluster.daemon_starts == 1, seed


def test_failure_says_how_to_reproduce_it(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Cluster) -> None:
        raise AssertionError("a promise was broken")

    monkeypatch.setattr(Cluster, "run", fail)
    assert main(["--seeds", "7:9"]) == 1
    said = capsys.readouterr().out
    assert "seed 7 FAILED: AssertionError: a promise was broken" in said
    assert "python -m schedd.sim --seed 8 --verbose" in said
    assert main(["--seed", "7"]) == 1
    assert "a promise was broken" in capsys.readouterr().out


def test_seed_tells_what_happened(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seed", "5", "--verbose"]) == 0
    said = capsys.readouterr().out
    assert "the daemon starts" in said
    assert "calm" in said
    assert "trace" in said
