"""Device models of which the name of one is part of another's."""

from __future__ import annotations

from pathlib import Path

import pytest

from schedd.config import Settings, parse_settings
from schedd.core.model import TaskRequirements
from schedd.core.policies import POLICIES
from schedd.simulate.cluster import ClusterRow
from schedd.simulate.contest import fill_under, run_under
from schedd.simulate.models import told_apart
from schedd.simulate.trace import Trace, TraceTask, read_trace

CLUSTER = [ClusterRow(num_gpus=1, gpu_model=model) for model in ("A10", "A100", "T4", "T4G")]


@pytest.fixture
def trace(tmp_path: Path) -> Trace:
    """Tasks that run on one model, or on two of which neither name is part of the other's."""
    path = tmp_path / "trace.csv"
    path.write_text(
        "kind,runtime_s.A10,runtime_s.A100,runtime_s.T4,runtime_s.T4G\na,5,,,\nb,,4,,\nc,,,3,\nd,,,,2\ne,6,,7,\nf,1,1,1,1\n"
    )
    return read_trace(path)


@pytest.mark.parametrize("name", [*POLICIES, "informed", "sjf", "packing"])
def test_tasks_run_on_their_models_alone(name: str, trace: Trace) -> None:
    settings = parse_settings(f'policy.name = "{name if name in POLICIES else "fifo"}"')
    run = run_under(name, trace, CLUSTER, settings)
    for task, where, start_s, finish_s in zip(trace.tasks, run.where, run.start_s, run.finish_s, strict=True):
        assert finish_s - start_s == pytest.approx(task.runtimes[CLUSTER[where].gpu_model])


def test_devices_are_filled_by_their_models_alone(tmp_path: Path) -> None:
    (tmp_path / "trace.csv").write_text("runtime_s.A10,runtime_s.T4\n5,\n")
    cluster = [ClusterRow(num_gpus=1, gpu_model="A10"), ClusterRow(num_gpus=3, gpu_model="A100")]
    filling = fill_under("packing", read_trace(tmp_path / "trace.csv"), cluster, Settings(), 100)
    assert filling.given[-1] == 0.25


def test_names_that_nobody_mistakes_stay(trace: Trace) -> None:
    cluster = [ClusterRow(num_gpus=1, gpu_model=model) for model in ("A10", "T4")]
    assert told_apart(trace, cluster) == (trace, cluster)
    # Who asks for a part of a name, and has a runtime on all that have it, means all of them.
    asked = TaskRequirements(min_gpus=1, gpu_model="A10")
    trace = Trace("made", [TraceTask(0, "k", 0, asked, dict.fromkeys(("A10", "A100", "T4", "T4G"), 1.0))])
    assert told_apart(trace, CLUSTER) == (trace, CLUSTER)
