"""Preemptive orders over gangs of nodes: runs that can be worked out by hand, and published values."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean

import pytest
from msgspec import structs

from schedd.config import Settings
from schedd.core.model import TaskRequirements
from schedd.errors import TraceError
from schedd.simulate.cluster import ClusterRow
from schedd.simulate.compare import Values, values_of
from schedd.simulate.contest import run_under
from schedd.simulate.metrics import figures_of
from schedd.simulate.preemptive import PREEMPTIVE, Nodes, read_restart_costs, run_preemptive
from schedd.simulate.record import Run
from schedd.simulate.trace import Trace, TraceTask, read_trace

DATA = Path(__file__).parents[3] / "shared" / "data" / "gpu"


def job(submit_s: float, runtime_s: float, gpus: float = 1, kind: str = "k") -> TraceTask:
    return TraceTask(submit_s, kind, runtime_s, TaskRequirements(min_gpus=gpus))


def run_of(policy: str, *jobs: TraceTask, nodes: int = 1, gpus: int = 1, restart_s: float = 0.0) -> Run:
    costs = {1: {"k": restart_s}} if restart_s else {}
    return run_preemptive(policy, Trace("made", list(jobs)), [ClusterRow(count=nodes, num_gpus=gpus)], costs)


def test_shorter_one_takes_over_and_the_other_goes_on() -> None:
    run = run_of("srtf", job(0, 10), job(4, 3), job(5, 9))
    assert list(run.finish_s) == [13, 7, 22]
    assert list(run.start_s) == [0, 4, 13]
    found = figures_of(run)
    assert (found.utilisation, found.wasted_s, run.placements, found.attempts) == (1, 0, 4, 4)
    assert found.mean_queueing_delay_s == pytest.approx(8 / 3)
    assert found.mean_bounded_slowdown == pytest.approx((13 / 10 + 1 + 17 / 10) / 3)


def test_slowdown_is_over_the_runtime_alone() -> None:
    jobs = [job(0, 10), job(4, 30), job(5, 20)]
    by_model = [structs.replace(each, runtime_s=0.0, runtimes={"A": each.runtime_s}) for each in jobs]
    runs = [
        run_preemptive("srtf", Trace("made", each), [ClusterRow(num_gpus=1, gpu_model="A")])
        for each in (jobs, by_model)
    ]
    for run in runs:
        assert figures_of(run).mean_bounded_slowdown == pytest.approx((1 + 56 / 30 + 25 / 20) / 3)
        found = Values([values_of(run, "mean_bounded_slowdown")], "mean_bounded_slowdown")
        assert found.value == pytest.approx(figures_of(run).mean_bounded_slowdown)


def test_slowdown_of_preempted_tasks_in_a_comparison() -> None:
    run = run_of("srtf", job(0, 100), job(50, 20))
    assert list(values_of(run, "mean_bounded_slowdown")) == [1.2, 1]


def test_it_is_not_drawn() -> None:
    with pytest.raises(TraceError, match="srtf cannot be drawn"):
        run_under("srtf", Trace("made", [job(0, 1)]), [ClusterRow(num_gpus=1)], Settings(), keep_spans=True)


def test_service_counts_devices() -> None:
    jobs = [job(0, 4, 2), job(0, 6, 1), job(0, 6, 1)]
    assert list(run_of("srtf", *jobs, gpus=2).finish_s) == [4, 10, 10]
    assert list(run_of("srsf", *jobs, gpus=2).finish_s) == [10, 6, 6]


def test_restart_costs_at_each_event_that_it_goes_on_after() -> None:
    # Has done 10 - 2 at 10 and 1 - 1 at 11, its cost being 2, and then no event comes before its forecast end.
    run = run_of("srtf", job(0, 20), job(10, 100), job(11, 100), restart_s=2)
    assert run.finish_s[0] == 11 + (20 - 8 - 0)
    assert run.wasted_s == pytest.approx(2 + 1)
    assert figures_of(run).utilisation == pytest.approx(1)


def test_end_that_is_forecast_ends_whatever_the_restart_costs() -> None:
    assert list(run_of("srtf", job(0, 1), restart_s=30).finish_s) == [1]


def test_what_finds_no_place_is_passed_over() -> None:
    run = run_of("srtf", job(0, 5, 1), job(0, 6, 4), job(0, 7, 3), gpus=4)
    assert list(run.start_s) == [0, 7, 0]
    assert list(run.finish_s) == [5, 13, 7]


def test_wide_tasks_take_empty_nodes_and_a_remainder() -> None:
    nodes = Nodes([8, 8, 8, 8])
    assert nodes.place(3) == [0]
    assert nodes.place(16) == [1, 2]
    assert nodes.place(14) is None  # there is no room for the remainder beside
    assert nodes.place(8) == [3]
    nodes.clear()
    assert nodes.place(12) == [0, 1]
    assert nodes.place(4) == [1]
    assert nodes.place(20) is None
    assert nodes.place(6) == [2]
    assert nodes.place(10) == [3, 2]


def test_as_many_nodes_as_are_there() -> None:
    run = run_of("srtf", job(0, 5, 24), nodes=3, gpus=8)
    assert figures_of(run).gpu_allocation_ratio == 1


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (job(0, 1, 17), "there is no room for task 0: it needs 17 GPUs"),
        (job(0, 1, 0.5), "task 0 needs 0.5 GPUs, and srtf knows no shares"),
        (TraceTask(0, "k", 0, TaskRequirements(min_gpus=1), {"A": 1, "B": 2}), "does not run alike on all models"),
    ],
)
def test_what_this_machine_does_not_know(task: TraceTask, message: str) -> None:
    with pytest.raises(TraceError, match=message):
        run_of("srtf", task, nodes=2, gpus=8)


@pytest.mark.parametrize(
    "row",
    [{"joins_s": 5.0}, {"leaves_s": 0.0}, {"fail_share": 0.1}, {"slow_factor": 2.0}, {"latency_s": 0.1}],
    ids=lambda row: next(iter(row)),
)
def test_cluster_in_which_something_goes_wrong(row: dict[str, float]) -> None:
    cluster = [ClusterRow(num_gpus=1), ClusterRow(num_gpus=1, **row)]  # type: ignore[arg-type]
    with pytest.raises(TraceError, match=f"a worker of the cluster has {next(iter(row))}, which srsf does not know"):
        run_preemptive("srsf", Trace("made", [job(0, 1)]), cluster)


@pytest.mark.parametrize("failing", [{"failures": (0.5,)}, {"fails": True}])
def test_tasks_that_fail(failing: dict[str, object]) -> None:
    task = TraceTask(0, "k", 1, TaskRequirements(min_gpus=1), **failing)  # type: ignore[arg-type]
    with pytest.raises(TraceError, match="attempts of task 1 fail, which srtf does not know"):
        run_of("srtf", job(0, 1), task)


def test_restart_costs_of_widths_that_the_table_does_not_have(tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    path.write_text('{"4": {"k": 7}, "1": {"k": 3}}')
    costs = read_restart_costs(path)
    for gpus, cost in ((1, 3), (2, 7), (4, 7), (8, 7)):
        jobs = [job(0, 100, gpus), job(50, 1000, 8)]
        run = run_preemptive("srtf", Trace("made", jobs), [ClusterRow(num_gpus=8)], costs)
        assert run.finish_s[0] == 100 + cost
    with pytest.raises(TraceError, match="the restart cost of kind 'other' is not known"):
        run_preemptive("srtf", Trace("made", [job(0, 1, 1, "other")]), [ClusterRow(num_gpus=8)], costs)
    for wrong in ('{"one": {"k": 7}}', '{"1": {"k": -7}}', '{"1": {"k": NaN}}', '{"1": {"k": Infinity}}'):
        path.write_text(wrong)
        with pytest.raises(TraceError, match=r"costs\.json"):
            read_restart_costs(path)


@pytest.mark.skipif(not DATA.is_dir(), reason="the published values are not here")
@pytest.mark.parametrize("policy", PREEMPTIVE)
@pytest.mark.parametrize("name", ["trace3", "trace3_pr"])
def test_published_times_of_muri(policy: str, name: str) -> None:
    costs = read_restart_costs(DATA / "muri_published.json")
    known = json.loads((DATA / "muri_published.json").read_text())["published"][name][policy.upper()]
    trace = read_trace(DATA / f"muri_{name}.csv.gz")
    run = run_preemptive(policy, trace, [ClusterRow(count=8, num_gpus=8)], costs)
    flows = [finish - task.submit_s for finish, task in zip(run.finish_s, trace.tasks, strict=True)]
    assert fmean(flows) == pytest.approx(known["avg_jct_s"], rel=1e-6)
    assert max(run.finish_s) == pytest.approx(known["makespan_s"], rel=1e-6)
