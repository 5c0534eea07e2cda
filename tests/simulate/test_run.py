"""Runs whose course can be worked out by hand, and those that literature or a linear program knows."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from statistics import stdev

import pytest

from schedd.config import Settings, parse_settings
from schedd.core.model import TaskRequirements
from schedd.core.policies import POLICIES
from schedd.errors import TraceError
from schedd.simulate.bound import lower_bound_s
from schedd.simulate.cluster import ClusterRow
from schedd.simulate.metrics import Figures, figures_of, half_width, slots_of, summary
from schedd.simulate.record import Run
from schedd.simulate.run import Simulator
from schedd.simulate.trace import Trace, TraceTask, read_trace

DATA = Path(__file__).parents[3] / "shared" / "data"
#: Long enough that nothing waits at a worker to hide the round trip.
MEAN_S = 100
every_policy = pytest.mark.parametrize("policy", POLICIES)


def cpu_task(submit_s: float, runtime_s: float, kind: str = "k", **values: object) -> TraceTask:
    return TraceTask(submit_s, kind, runtime_s, TaskRequirements(), **values)  # type: ignore[arg-type]


def trace_of(*tasks: TraceTask) -> Trace:
    return Trace("made", list(tasks))


def settings_for(policy: str, text: str = "") -> Settings:
    return parse_settings(f'policy.name = "{policy}"\n{text}')


def simulated(trace: Trace, cluster: Sequence[ClusterRow], policy: str = "fifo", text: str = "") -> Run:
    return Simulator(trace, cluster, settings_for(policy, text)).run()


def figures(trace: Trace, cluster: Sequence[ClusterRow], policy: str = "fifo") -> Figures:
    return figures_of(simulated(trace, cluster, policy))


def test_one_slot_takes_one_task_after_the_other() -> None:
    trace = trace_of(cpu_task(100, 5), cpu_task(101, 20), cpu_task(120, 1))
    run = simulated(trace, [ClusterRow()])
    assert list(run.start_s) == [0, 5, 25]
    assert list(run.finish_s) == [5, 25, 26]
    found = figures_of(run)
    assert (found.makespan_s, found.tasks, found.utilisation) == (26, 3, 1.0)
    assert found.mean_flow_time_s == pytest.approx((5 + 24 + 6) / 3)
    assert found.p50_flow_time_s == 6
    assert found.p99_flow_time_s == 24
    assert found.mean_queueing_delay_s == pytest.approx((0 + 4 + 5) / 3)
    assert found.mean_bounded_slowdown == pytest.approx((1 + 24 / 20 + 1) / 3)  # a second counts as ten
    assert found.gpu_allocation_ratio is None


def test_what_starts_at_once_has_no_delay() -> None:
    found = figures(trace_of(*[cpu_task(1.7e9 + 0.3 + i / 7, 0) for i in range(50)]), [ClusterRow()])
    assert (found.mean_queueing_delay_s >= 0, found.p50_flow_time_s >= 0) == (True, True)
    assert math.copysign(1, found.mean_queueing_delay_s) == 1


def test_more_important_tasks_go_first_under_priority() -> None:
    trace = trace_of(cpu_task(0, 10), cpu_task(0, 10, priority=1), cpu_task(0, 10, priority=2))
    assert list(simulated(trace, [ClusterRow()], "priority").start_s) == [20, 10, 0]
    assert list(simulated(trace, [ClusterRow()], "fifo").start_s) == [0, 10, 20]


def test_task_waits_for_those_that_it_comes_after() -> None:
    trace = trace_of(cpu_task(0, 10), cpu_task(0, 3), cpu_task(0, 1, after=(0, 1)))
    assert list(simulated(trace, [ClusterRow(count=3)]).start_s) == [0, 0, 10]


@every_policy
def test_task_may_come_after_what_has_ended_long_before(policy: str) -> None:
    trace = trace_of(cpu_task(0, 10), cpu_task(0, 20), cpu_task(100, 10, after=(0,)), cpu_task(100, 1, after=(2, 1)))
    assert list(simulated(trace, [ClusterRow(count=2)], policy).finish_s)[2:] == [110, 111]


def test_task_that_is_submitted_when_what_it_comes_after_ends() -> None:
    trace = trace_of(cpu_task(0, 10), cpu_task(0, 10), cpu_task(10, 10, after=(0, 1)), cpu_task(10, 3))
    assert list(simulated(trace, [ClusterRow(count=2)]).start_s) == [0, 0, 10, 10]


def test_what_comes_after_a_failure_never_runs() -> None:
    fails = cpu_task(0, 10, fails=True)
    later = [cpu_task(10, 5, after=(0,)), cpu_task(40, 5), cpu_task(40, 5, after=(0, 2)), cpu_task(40, 5, after=(3,))]
    run = simulated(trace_of(fails, *later, cpu_task(50, 5, after=(4,))), [ClusterRow()])
    assert list(run.start_s) == [0, -1, 40, -1, -1, -1]
    assert (run.failed, run.unsuccessful) == (5, {0, 1, 3, 4, 5})


def test_submit_that_names_what_is_given_up_in_its_turn() -> None:
    fails, waits = cpu_task(0, 10, fails=True), cpu_task(0, 5, after=(0,))
    run = simulated(trace_of(fails, waits, cpu_task(10, 5, after=(1,)), cpu_task(10, 5)), [ClusterRow()])
    assert (list(run.start_s), run.unsuccessful) == ([0, -1, -1, 10], {0, 1, 2})


def test_thousands_come_after_a_failure() -> None:
    later = [cpu_task(40, 5, after=(0,)) for _ in range(2500)]
    run = simulated(trace_of(cpu_task(0, 10, fails=True), *later, cpu_task(60, 5)), [ClusterRow()])
    assert (run.failed, run.attempts, run.finish_s[-1]) == (2501, 2, 65)


def test_run_may_take_two_hundred_years() -> None:
    trace = trace_of(cpu_task(0, 10), cpu_task(1.7e9, 10), cpu_task(1.7e9 + 5, 4e9))
    assert list(simulated(trace, [ClusterRow()]).finish_s) == pytest.approx([10, 1.7e9 + 10, 5.7e9 + 10])


@pytest.mark.parametrize("task", [cpu_task(9e9, 10), cpu_task(5, 9e9)])
def test_run_that_is_longer_than_the_clock_goes_is_no_run(task: TraceTask) -> None:
    with pytest.raises(TraceError, match="the run goes on for longer than 7,523,372,037 s"):
        simulated(trace_of(cpu_task(0, 10), task), [ClusterRow(count=2)])


def test_runtime_depends_on_the_device() -> None:
    tasks = [TraceTask(0, "k", 0, TaskRequirements(min_gpus=1), {"fast": 2, "slow": 8}) for _ in range(2)]
    run = simulated(trace_of(*tasks), [ClusterRow(num_gpus=1, gpu_model=model) for model in ("fast", "slow")])
    assert sorted(run.finish_s) == [2, 8]
    assert sorted(run.where) == [0, 1]
    assert run.gpus_peak == 2


def test_shares_of_a_device_run_beside_each_other() -> None:
    tasks = [TraceTask(0, "k", 10, TaskRequirements(min_gpus=0.5, cpus=0.1)) for _ in range(4)]
    found = figures(trace_of(*tasks), [ClusterRow(num_gpus=1)])
    assert (found.makespan_s, found.utilisation, found.gpu_allocation_ratio) == (20, 1.0, 1.0)


@pytest.mark.parametrize("latency_s", [0.0, 0.001])
def test_alternative_that_was_placed_is_what_is_busy(latency_s: float) -> None:
    """Two GPUs of model A, or else one of model B, of which there are two."""
    needs = TaskRequirements(min_gpus=2, gpu_model="A", variants=(TaskRequirements(min_gpus=1, gpu_model="B"),))
    trace = trace_of(*[TraceTask(0, "k", 1000, needs) for _ in range(2)])
    cluster = [ClusterRow(num_gpus=2, gpu_model="B", latency_s=latency_s)]
    run = simulated(trace, cluster)
    found = figures_of(run)
    assert (found.utilisation, found.gpu_allocation_ratio) == pytest.approx((1, 1), rel=1e-4)
    assert lower_bound_s(trace, cluster) == 1000
    first = figures(trace, [ClusterRow(num_gpus=2, gpu_model="A", latency_s=latency_s)])
    assert (first.utilisation, first.gpu_allocation_ratio) == pytest.approx((1, 1), rel=1e-4)


@every_policy
def test_every_policy_finishes_every_task_once(policy: str) -> None:
    dice = random.Random(3)
    lengths = [dice.expovariate(1 / 5) for _ in range(300)]
    tasks = [cpu_task(i / 4, length, dice.choice("abc"), priority=i % 2) for i, length in enumerate(lengths)]
    trace = trace_of(*tasks)
    run = simulated(trace, [ClusterRow(count=2, cpus=2), ClusterRow(count=3)], policy)
    for task, start, finish in zip(tasks, run.start_s, run.finish_s, strict=True):
        assert start >= task.submit_s
        assert finish - start == pytest.approx(task.runtime_s, abs=1e-6)
    edges = sorted([(start, 1) for start in run.start_s] + [(finish, -1) for finish in run.finish_s])
    running = most = 0
    for _, step in edges:
        running += step
        most = max(most, running)
    assert most <= 7
    assert run.placements >= len(tasks)


@every_policy
def test_same_seed_gives_the_same_run(policy: str) -> None:
    dice = random.Random(5)
    trace = trace_of(*[cpu_task(i / 2, dice.expovariate(1 / 4), dice.choice("ab")) for i in range(200)])
    first, again = (simulated(trace, [ClusterRow(count=2), ClusterRow(cpus=2)], policy) for _ in range(2))
    assert (first.start_s, first.where, first.steals) == (again.start_s, again.where, again.steals)


def test_preempted_work_is_counted_as_wasted() -> None:
    text = "policy.priority = { preempt = true, preempt_after_s = 0.0, preempt_run_min_s = 5.0 }"
    trace = trace_of(cpu_task(0, 100), cpu_task(20, 10, priority=5))
    run = simulated(trace, [ClusterRow()], "priority", text)
    assert run.wasted_s == pytest.approx(run.start_s[1], abs=2)
    assert run.wasted_s >= 20
    assert run.finish_s[0] - run.start_s[0] == pytest.approx(100)
    assert run.start_s[1] < run.start_s[0]


def test_work_moves_to_who_has_nothing() -> None:
    tasks = [cpu_task(0, 100, "long"), *[cpu_task(0, 10, "short") for _ in range(30)]]
    text = "policy.work_stealing.steal_threshold = 1"
    run = simulated(trace_of(*tasks), [ClusterRow(count=3)], "work_stealing", text)
    assert run.steals > 0
    assert max(run.finish_s) < 220


def test_task_that_fits_nowhere_is_said_before_the_run() -> None:
    trace = trace_of(TraceTask(0, "k", 1, TaskRequirements(cpus=8)))
    with pytest.raises(TraceError, match="task of kind 'k', submitted at 0 s, fits no worker: it needs 8 CPUs, has 1"):
        simulated(trace, [ClusterRow(), ClusterRow()])


def test_device_without_a_runtime_is_said_before_the_run() -> None:
    trace = trace_of(TraceTask(0, "k", 0, TaskRequirements(min_gpus=1), {"A": 1}))
    with pytest.raises(TraceError, match="of kind 'k', submitted at 0 s, fits a worker of model 'B', where"):
        simulated(trace, [ClusterRow(num_gpus=1, gpu_model="A"), ClusterRow(num_gpus=1, gpu_model="B")])


def test_progress_is_told() -> None:
    told: list[tuple[int, int]] = []
    trace = trace_of(*[cpu_task(0, 1) for _ in range(2500)])
    Simulator(trace, [ClusterRow(cpus=100)], settings_for("fifo")).run(lambda done, total: told.append((done, total)))
    assert told[-1] == (2500, 2500)
    assert len(told) >= 3


# ------------------------------------------------------------------------------------------------------ bounds, theory


def test_bound_by_work_and_by_the_longest_task() -> None:
    cluster = [ClusterRow(count=2)]
    assert lower_bound_s(trace_of(cpu_task(0, 6), cpu_task(0, 6), cpu_task(0, 6)), cluster) == 9
    assert lower_bound_s(trace_of(cpu_task(0, 1), cpu_task(0, 50)), cluster) == 50
    assert lower_bound_s(trace_of(cpu_task(10, 1), cpu_task(30, 4), cpu_task(30, 4)), cluster) == 24


@every_policy
def test_nothing_ends_before_the_bound_where_workers_are_faster(policy: str) -> None:
    trace = trace_of(*[cpu_task(i // 4, 10 + i % 3) for i in range(30)])
    for rows in ([ClusterRow(slow_factor=4)], [ClusterRow(slow_factor=2, slow_from_s=50), ClusterRow(slow_factor=0.5)]):
        bound = lower_bound_s(trace, rows)
        assert bound is not None
        assert 0 < bound <= figures(trace, rows, policy).makespan_s + 1e-6


def test_bound_of_faster_devices() -> None:
    pytest.importorskip("scipy")
    tasks = [TraceTask(0, "k", 0, TaskRequirements(min_gpus=1), {"A": 1.0, "B": 10.0})] * 8
    cluster = [ClusterRow(num_gpus=1, gpu_model="A"), ClusterRow(num_gpus=1, gpu_model="B")]
    plain = lower_bound_s(trace_of(*tasks), cluster)
    assert plain is not None
    faster = [ClusterRow(num_gpus=1, gpu_model="A", slow_factor=4), cluster[1]]
    assert lower_bound_s(trace_of(*tasks), faster) == pytest.approx(plain / 4)


def test_no_bound_is_known_where_tasks_may_fail_for_good() -> None:
    trace = trace_of(*[cpu_task(0, 10) for _ in range(20)])
    assert lower_bound_s(trace, [ClusterRow(fail_share=0.1), ClusterRow()]) is None
    assert lower_bound_s(trace_of(cpu_task(0, 10, fails=True), cpu_task(0, 10)), [ClusterRow()]) == 20
    assert lower_bound_s(trace_of(cpu_task(0, 10, fails=True), cpu_task(0, 10, after=(0,))), [ClusterRow()]) is None


def test_worker_that_comes_back_counts_once() -> None:
    cluster = [ClusterRow(num_gpus=1, name="a", leaves_s=20), ClusterRow(num_gpus=1, name="a", joins_s=20)]
    trace = trace_of(*[TraceTask(0, "k", 10, TaskRequirements(min_gpus=1)) for _ in range(4)])
    found = figures(trace, cluster)
    assert (found.makespan_s, found.utilisation, found.gpu_allocation_ratio) == (40, 1, 1)
    assert lower_bound_s(trace, cluster) == 40


def test_slots_are_the_most_at_the_same_time() -> None:
    rows = [ClusterRow(cpus=3, leaves_s=9), ClusterRow(cpus=2, joins_s=5, leaves_s=20), ClusterRow(cpus=4, joins_s=9)]
    assert slots_of(rows, gpus=False) == 6
    assert slots_of([*rows, ClusterRow(cpus=9, joins_s=7, leaves_s=7)], gpus=False) == 6


def test_bound_where_devices_differ() -> None:
    pytest.importorskip("scipy")
    fast_slow = {"A": 1.0, "B": 10.0}
    tasks = [TraceTask(0, "k", 0, TaskRequirements(min_gpus=1), times) for times in (fast_slow, {"A": 10.0, "B": 1.0})]
    cluster = [ClusterRow(num_gpus=1, gpu_model="A"), ClusterRow(num_gpus=1, gpu_model="B")]
    assert lower_bound_s(trace_of(*tasks * 4), cluster) == pytest.approx(4)
    later = TraceTask(5, "k", 0, TaskRequirements(min_gpus=1), fast_slow)
    assert lower_bound_s(trace_of(*tasks, later), cluster) is None


def test_interval_of_several_seeds() -> None:
    [one] = [figures(trace_of(cpu_task(0, 5)), [ClusterRow()])]
    assert summary([one])["ci95"] is None
    found = summary([one, one, one])
    assert (found["makespan_s"], found["ci95"]["makespan_s"], len(found["per_seed"])) == (5, 0, 3)


@pytest.mark.parametrize(
    ("seeds", "quantile"), [(2, 12.706), (16, 2.131), (17, 2.12), (20, 2.093), (31, 2.042), (61, 2.0), (9999, 1.960)]
)
def test_interval_is_as_wide_as_students_t_says(seeds: int, quantile: float) -> None:
    values = [0.0, 1.0] * (seeds // 2) + [0.5] * (seeds % 2)
    assert half_width(values) == pytest.approx(quantile * stdev(values) / math.sqrt(seeds), rel=5e-4)


@pytest.mark.parametrize(("workers", "load"), [(4, 0.7), (8, 0.8)])
def test_one_queue_and_many_workers(workers: int, load: float) -> None:
    """M/M/c: 1 + C(c, c * load) / (c - c * load) with Erlang's C (Erlang, 1917)."""
    dice, now = random.Random(11), 0.0
    tasks = []
    for _ in range(40_000):
        now += MEAN_S * dice.expovariate(workers * load)
        tasks.append(cpu_task(now, MEAN_S * dice.expovariate(1.0)))
    offered = workers * load
    blocked = offered**workers / math.factorial(workers) / (1 - load)
    wait = blocked / (sum(offered**k / math.factorial(k) for k in range(workers)) + blocked)
    expected = 1 + wait / (workers - offered)
    found = figures(trace_of(*tasks), [ClusterRow(count=workers)])
    assert found.mean_flow_time_s / MEAN_S == pytest.approx(expected, rel=0.05)
    assert found.utilisation == pytest.approx(load, rel=0.05)


@pytest.mark.skipif(not DATA.is_dir(), reason="the real traces are not here")
def test_bag_on_three_models() -> None:
    trace = read_trace(DATA / "hetero" / "bag_gavel.csv.gz")
    cluster = [ClusterRow(count=12, num_gpus=1, gpu_model=model) for model in ("v100", "p100", "k80")]
    bound = lower_bound_s(trace, cluster)
    assert bound is not None
    assert figures(trace, cluster).makespan_s / bound == pytest.approx(1.446, abs=0.001)


# ------------------------------------------------------------------------------------- workers come and go, tasks fail


def test_worker_that_leaves_takes_what_it_has_done_along() -> None:
    run = simulated(trace_of(cpu_task(0, 10), cpu_task(0, 10)), [ClusterRow(leaves_s=4), ClusterRow(joins_s=7)])
    assert list(run.start_s) == [7, 17]
    assert run.where[0] == 1
    assert run.wasted_s == 4


def test_worker_that_leaves_when_a_task_ends_has_ended_it() -> None:
    run = simulated(trace_of(cpu_task(0, 10), cpu_task(0, 10)), [ClusterRow(leaves_s=10), ClusterRow(joins_s=20)])
    assert (list(run.start_s), run.wasted_s) == ([0, 20], 0)


def test_worker_comes_back_under_its_name() -> None:
    cluster = [ClusterRow(name="a", leaves_s=5), ClusterRow(name="a", joins_s=8, cpus=2), ClusterRow(joins_s=100)]
    run = simulated(trace_of(cpu_task(0, 10), cpu_task(1, 10)), cluster)
    assert (list(run.start_s), list(run.where)) == ([8, 8], [1, 1])
    with pytest.raises(TraceError, match="two workers are called 'a' at a time"):
        simulated(trace_of(cpu_task(0, 10)), [ClusterRow(name="a"), ClusterRow(name="a")])


def test_what_failed_for_good_was_wasted_and_not_in_use() -> None:
    found = figures(trace_of(cpu_task(0, 10), cpu_task(0, 30, fails=True)), [ClusterRow()])
    assert (found.makespan_s, found.wasted_s, found.utilisation) == (40, 30, 0.25)


def test_task_fails_as_often_as_it_says() -> None:
    tasks = [cpu_task(0, 10, failures=(0.5, 0.2)), cpu_task(1, 3, fails=True)]
    run = simulated(trace_of(*tasks), [ClusterRow(cpus=2)], text="retries.delay_s = 0.0")
    assert (run.start_s[0], run.finish_s[0], run.wasted_s) == pytest.approx((7, 17, 10))
    assert (run.start_s[1], run.finish_s[1], run.placements) == (1, 4, 4)
