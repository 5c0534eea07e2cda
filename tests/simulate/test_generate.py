"""Loads that are drawn have the means that were asked for, and give what queueing theory says of them."""

from __future__ import annotations

from itertools import pairwise
from statistics import fmean

import pytest

from schedd.config import parse_settings
from schedd.core.model import TaskRequirements
from schedd.errors import TraceError
from schedd.simulate.cluster import ClusterRow
from schedd.simulate.generate import ARRIVALS, generate, parse_load, slots_for
from schedd.simulate.metrics import figures_of
from schedd.simulate.run import Simulator
from schedd.simulate.trace import Trace

CLUSTER = [ClusterRow(count=10)]


def drawn(text: str, cluster: list[ClusterRow] = CLUSTER, seed: int = 0) -> Trace:
    return generate(parse_load(text), cluster, seed)


@pytest.mark.parametrize("arrivals", ["poisson", "steady", "batches:batch=5", "onoff:on_s=100,off_s=50"])
def test_load_is_what_was_asked_for(arrivals: str) -> None:
    text = f"{arrivals}{',' if ':' in arrivals else ':'}tasks=20000,load=0.8,mean_s=10,runtime=fixed"
    trace = drawn(text)
    submits = [task.submit_s for task in trace.tasks]
    assert submits == sorted(submits)
    assert len(submits) == 20_000
    assert submits[-1] == pytest.approx(20_000 * 10 / (0.8 * 10), rel=0.06)


def test_worker_that_comes_back_is_one_worker() -> None:
    cluster = [ClusterRow(name="a", cpus=4, leaves_s=20), ClusterRow(name="a", cpus=4, joins_s=20), ClusterRow(cpus=2)]
    assert drawn("poisson:tasks=100", cluster).tasks == drawn("poisson:tasks=100", [ClusterRow(cpus=6)]).tasks


@pytest.mark.parametrize(("share", "slots"), [(0.1, 10), (0.2, 5), (0.3, 3), (0.05, 20), (0.6, 1)])
def test_as_many_tasks_as_shares_of_a_device(share: float, slots: int) -> None:
    assert slots_for(TaskRequirements(min_gpus=share, cpus=0), [ClusterRow(count=2, num_gpus=3)]) == 6 * slots


def test_bursts_are_bursts() -> None:
    batches = [task.submit_s for task in drawn("batches:tasks=20000,batch=5").tasks]
    assert len(set(batches)) == pytest.approx(4000, rel=0.05)
    submits = [task.submit_s for task in drawn("onoff:tasks=20000,on_s=1000,off_s=5000,mean_s=10").tasks]
    gaps = [after - before for before, after in pairwise(submits)]
    assert sum(gap for gap in gaps if gap > 50) / submits[-1] == pytest.approx(5 / 6, abs=0.1)
    assert {task.submit_s for task in drawn("bag:tasks=100").tasks} == {0.0}


@pytest.mark.parametrize(
    ("runtime", "second_moment"),
    [("exp", 2.0), ("fixed", 1.0), ("lognormal,sigma=0.5", 1.284), ("bimodal,long_factor=5", 34 / 1.4**2 / 10)],
)
def test_runtimes_have_their_moments(runtime: str, second_moment: float) -> None:
    lengths = [task.runtime_s / 60 for task in drawn(f"bag:tasks=40000,runtime={runtime}").tasks]
    assert fmean(lengths) == pytest.approx(1, rel=0.03)
    assert fmean(each * each for each in lengths) == pytest.approx(second_moment, rel=0.05)


def test_tail_of_pareto() -> None:
    lengths = sorted(task.runtime_s for task in drawn("bag:tasks=40000,runtime=pareto,alpha=2.5,mean_s=10").tasks)
    assert fmean(lengths) == pytest.approx(10, rel=0.05)
    assert lengths[0] == pytest.approx(6, rel=0.01)
    assert lengths[36_000] == pytest.approx(6 * 10**0.4, rel=0.03)


def test_kinds_differ_in_length_and_in_what_suits_them() -> None:
    cluster = [ClusterRow(count=3, num_gpus=1, gpu_model=model) for model in ("A", "B")]
    trace = drawn("bag:tasks=6000,kinds=3,spread=16,speedup=4,runtime=fixed,priorities=2", cluster)
    means = {task.kind: task.runtime_s for task in trace.tasks}
    assert sorted(means) == ["kind-0", "kind-1", "kind-2"]
    assert means["kind-2"] / means["kind-1"] == pytest.approx(4)
    assert fmean(task.runtime_s for task in trace.tasks) == pytest.approx(60, rel=0.05)
    assert {task.priority for task in trace.tasks} == {0.0, 1.0}
    for task in trace.tasks[:50]:
        assert task.runtimes["A"] * task.runtimes["B"] == pytest.approx(task.runtime_s**2)
        assert 1 / 16 <= task.runtimes["A"] / task.runtimes["B"] <= 16
        assert task.requirements.min_gpus == 1


def test_hints_are_about_right() -> None:
    ratios = [task.requirements.estimated_time or 0 for task in drawn("bag:tasks=500,runtime=fixed,hints=0.1").tasks]
    assert 30 < min(ratios) < 60 < max(ratios) < 120
    assert {task.requirements.estimated_time for task in drawn("bag:tasks=9").tasks} == {None}


def test_seed_draws_anew() -> None:
    first, again, other = (drawn("poisson:tasks=50", seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_load_counts_what_fits() -> None:
    cluster = [ClusterRow(count=2, num_gpus=3), ClusterRow(cpus=64)]
    trace = drawn("steady:tasks=101,load=1,gpus=2,mean_s=10", cluster)  # one to a worker of three devices
    assert trace.tasks[-1].submit_s == pytest.approx(500)
    trace = drawn("steady:tasks=101,load=1,gpus=0.5,mean_s=10,cpus=0.1", cluster)
    assert trace.tasks[-1].submit_s == pytest.approx(1000 / 12)
    with pytest.raises(TraceError, match="no worker has room for a task of 4 GPUs and 1 CPUs"):
        drawn("bag:gpus=4", cluster)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("poison", r"one of poisson, .*, not 'poison' \(did you mean poisson\?\)"),
        ("poisson:task=3", r"there is no 'task' \(did you mean tasks\?\)"),
        ("poisson:load", "'load' is not of the form NAME=VALUE"),
        ("poisson:load=0", "Expected float > 0.0 for load"),
        ("poisson:load=much", "Expected float, got str for load"),
        ("poisson:runtime=cauchy", "Invalid enum value 'cauchy' for runtime; runtime is one of exp, fixed,"),
        ("poisson:gpus=1.5", "min_gpus must be whole, or a fraction below 1, not 1.5"),
        ("poisson:gpus=0.0001", "a share of a GPU is at least 0.001"),
        ("bag:alpha=1", "Expected float > 1.0 for alpha"),
    ],
)
def test_what_is_wrong_with_a_load_is_said(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_load(text)


def test_all_arrivals_are_told() -> None:
    assert {parse_load(name).arrivals for name in ARRIVALS} == set(ARRIVALS)


def test_one_queue_and_a_hundred_workers() -> None:
    """M/M/100: 1.0217 at a load of 0.9 (Erlang, 1917); `benchmarks/policies/closed_forms.py` looks closer."""
    cluster = [ClusterRow(count=100)]
    trace = drawn("poisson:tasks=30000,load=0.9,mean_s=100", cluster, seed=1)
    run = Simulator(trace, cluster, parse_settings('policy.name = "fifo"')).run()
    assert figures_of(run).mean_flow_time_s / 100 == pytest.approx(1.0217, rel=0.03)
    assert figures_of(run).utilisation == pytest.approx(0.9, rel=0.03)


def test_one_worker_and_runtimes_that_do_not_vary() -> None:
    """M/D/1: 1 + load / (2 (1 - load)) (Pollaczek, 1930)."""
    trace = drawn("poisson:tasks=30000,load=0.7,runtime=fixed,mean_s=100", [ClusterRow()])
    run = Simulator(trace, [ClusterRow()], parse_settings('policy.name = "fifo"')).run()
    assert figures_of(run).mean_flow_time_s / 100 == pytest.approx(1 + 0.7 / 0.6, rel=0.05)
