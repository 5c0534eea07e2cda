"""Searches that submit by result, on curves that can be worked out by hand and on recorded ones."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from schedd.config import parse_settings
from schedd.core.model import TaskRequirements
from schedd.core.policies import POLICIES
from schedd.errors import TraceError
from schedd.simulate.cluster import ClusterRow
from schedd.simulate.compare import OBJECTIVES, Values, standings, values_of
from schedd.simulate.curves import Curve, Curves, Point, read_curves, rungs_of
from schedd.simulate.metrics import figures_of, summary
from schedd.simulate.reactive import Halving, Plan, Reactive, lower_bound_s, with_searches
from schedd.simulate.record import Run
from schedd.simulate.run import Simulator

DATA = Path(__file__).parents[3] / "shared" / "data" / "nas"
LCBENCH = sorted(DATA.glob("lcbench_task*.csv.gz"))
with_data = pytest.mark.skipif(not LCBENCH, reason="the recorded curves are not here")
#: Long enough that nothing waits at a worker to hide the round trip.
STEP_S = 100.0


def curve(score: float, steps: int = 9, step_s: float = STEP_S) -> Curve:
    return {float(n): Point(step_s * n, score) for n in range(1, steps + 1)}


def nine(resumable: bool = True) -> Curves:
    return Curves("toy", resumable, [curve(trial) for trial in range(9)])


def drawn(trials: int, seed: int) -> Curves:
    dice = random.Random(seed)
    return Curves("drawn", True, [curve(dice.random(), step_s=dice.uniform(5, 50)) for _ in range(trials)])


def simulated(data: Sequence[Curves], plan: Plan, workers: int, policy: str = "priority") -> tuple[Reactive, Run]:
    workload = Reactive(data, plan, TaskRequirements())
    return workload, Simulator(workload, [ClusterRow(count=workers)], parse_settings(f'policy.name = "{policy}"')).run()


@pytest.mark.parametrize("rule", ["halving", "asha"])
@pytest.mark.parametrize("policy", ["fifo", "priority", "adaptive"])
def test_toy_of_the_asha_paper(rule: str, policy: str) -> None:
    """Levels 1, 3 and 9 = R without checkpoints and a worker for each: 1 + 3 + 9 = 13/9 R."""
    workload, run = simulated([nine()], Plan(rule, resume=False), 9, policy)
    assert workload.figures()["search_full_s"] == [pytest.approx(13 / 9 * 9 * STEP_S, abs=1e-6)]
    assert workload.figures()["mean_search_end_s"] == max(run.finish_s)


def test_checkpoints_save_what_was_trained_before() -> None:
    workload, _ = simulated([nine()], Plan("halving"), 9)
    assert workload.figures()["mean_search_end_s"] == pytest.approx(9 * STEP_S)


def test_rung_begins_when_the_one_before_is_complete() -> None:
    workload, run = simulated([nine()], Plan("halving"), 2)
    trace = workload.trace
    assert [task.priority for task in trace.tasks] == [0] * 9 + [1] * 3 + [2]
    assert trace.tasks[9].submit_s == max(run.finish_s[:9])
    assert [task.runtime_s for task in trace.tasks[9:]] == [2 * STEP_S] * 3 + [6 * STEP_S]


def test_policies_under_asha_are_compared_by_what_each_was() -> None:
    runs = {policy: simulated([drawn(81, 1)], Plan("asha"), 5, policy)[1] for policy in ("fifo", "priority")}
    assert len(runs["fifo"].trace.tasks) != len(runs["priority"].trace.tasks)
    for objective in OBJECTIVES:
        found = standings({name: Values([values_of(run, objective)], objective) for name, run in runs.items()})
        assert found["fifo"].low is None
    assert found["fifo"].value == pytest.approx(figures_of(runs["fifo"]).mean_bounded_slowdown)


def test_promoted_while_the_rung_is_under_way() -> None:
    workload, run = simulated([nine()], Plan("asha"), 3)
    first = workload.trace.tasks[9]
    assert (first.priority, first.submit_s) == (1, STEP_S)
    assert run.start_s[9] == STEP_S


def test_best_of_a_rung_go_on_best_first_and_one_at_least() -> None:
    rule = Halving(rungs=3, eta=3, trials=7)
    scores = [0.5, 0.9, float("-inf"), 0.9, 0.1, 0.2, 0.3]
    assert [list(rule.record(trial, 0, score)) for trial, score in enumerate(scores)] == [[]] * 6 + [[1, 3]]
    assert [list(rule.record(trial, 1, score)) for trial, score in ((3, 1.0), (1, 2.0))] == [[], [1]]
    assert list(rule.record(1, 2, 3.0)) == []


def test_rung_is_complete_without_what_failed_of_it() -> None:
    rule = Halving(rungs=2, eta=2, trials=4)
    assert [list(rule.record(trial, 0, score)) for trial, score in enumerate([9.0, math.nan, 1.0, math.nan])] == [
        [],
        [],
        [],
        [0],
    ]
    assert list(rule.record(0, 1, math.nan)) == []
    none_left = Halving(rungs=2, eta=2, trials=2)
    assert [list(none_left.record(trial, 0, math.nan)) for trial in range(2)] == [[], []]


@pytest.mark.parametrize("rule", ["halving", "asha"])
def test_evaluation_that_failed_is_out_of_the_race(rule: str) -> None:
    """The worst succeeds and is trained on; the others fail, however good they would have been."""
    workload = Reactive([nine()], Plan(rule, levels=(1.0, 9.0)), TaskRequirements())
    workload.take(0.0)
    for index in (*range(1, 9), 0):
        workload.on_finished(index, 100.0, index == 0)
    promoted = workload.take(100.0)
    assert len(promoted) == 1
    assert workload._evaluations[9].trial == 0
    workload.on_finished(9, 900.0, False)
    assert workload.figures() == {
        "mean_search_end_s": 900,
        "search_end_s": [900],
        "mean_search_full_s": 0,
        "search_full_s": [0],
    }


def test_searches_in_which_evaluations_fail_come_to_an_end() -> None:
    settings = parse_settings('policy.name = "priority"\nfailures = { hopeless_kind = false, quarantine = false }')
    for rule in ("halving", "asha"):
        workload = Reactive([drawn(81, 1)], Plan(rule), TaskRequirements())
        run = Simulator(workload, [ClusterRow(count=5, fail_share=0.3)], settings).run()
        of = [(id(each.search), each.trial, each.rung) for each in workload._evaluations]
        failed = {of[index] for index in run.unsuccessful}
        assert failed
        assert not any((search, trial, rung - 1) in failed for search, trial, rung in of)
        assert max(workload.figures()["search_end_s"]) == pytest.approx(max(run.finish_s))


def test_policies_do_equal_work_and_priority_ends_searches_sooner() -> None:
    data = [drawn(81, seed) for seed in range(4)]
    ends, works = {}, {}
    for policy in POLICIES:
        workload, run = simulated(data, Plan("halving"), 12, policy)
        figures = figures_of(run)
        ends[policy] = workload.figures()["mean_search_end_s"]
        works[policy] = sorted((task.priority, task.runtime_s) for task in workload.trace.tasks)
        bound = lower_bound_s(Reactive(data, Plan("halving"), TaskRequirements()), [ClusterRow(count=12)])
        assert bound is not None
        assert figures.makespan_s >= bound
    assert all(work == works["fifo"] for work in works.values())
    assert ends["priority"] < 0.75 * ends["fifo"]


def test_bound_is_reached_where_there_is_a_worker_for_each() -> None:
    data = [drawn(27, 1)]
    _, run = simulated(data, Plan("halving"), 27)
    bound = lower_bound_s(Reactive(data, Plan("halving"), TaskRequirements()), [ClusterRow(count=27)])
    assert bound == pytest.approx(max(run.finish_s), abs=1e-6)
    assert lower_bound_s(Reactive(data, Plan("asha"), TaskRequirements()), [ClusterRow()]) is None


def test_bound_where_workers_are_faster_or_fail() -> None:
    def bound(**row: float) -> float | None:
        cluster = [ClusterRow(count=5, **row)]  # type: ignore[arg-type]
        return lower_bound_s(Reactive([drawn(27, 1)], Plan("halving"), TaskRequirements()), cluster)

    plain, faster = bound(), bound(slow_factor=2)
    assert plain is not None
    assert faster == pytest.approx(plain / 2)
    assert bound(fail_share=0.1) is None


def test_searches_share_the_configurations_of_their_data() -> None:
    workload = Reactive([drawn(60, 1)], Plan("halving", configs=20, searches=3), TaskRequirements())
    assert [(search.first, search.left) for search in workload.searches] == [(0, 20), (20, 20), (40, 20)]
    with pytest.raises(TraceError, match="60 configurations, and 4 searches of 20 need more"):
        Reactive([drawn(60, 1)], Plan("halving", configs=20, searches=4), TaskRequirements())


def test_means_over_seeds() -> None:
    runs = [simulated([drawn(27, seed)], Plan("asha"), 3) for seed in (1, 2)]
    found = with_searches(summary([figures_of(run) for _, run in runs]), [workload.figures() for workload, _ in runs])
    ends = [workload.figures()["mean_search_end_s"] for workload, _ in runs]
    assert found["mean_search_end_s"] == pytest.approx(sum(ends) / 2)
    assert found["search_end_s"] == [pytest.approx(sum(ends) / 2)]
    assert found["ci95"]["mean_search_end_s"] == pytest.approx(12.706 * abs(ends[0] - ends[1]) / 2)
    assert [seed["mean_search_end_s"] for seed in found["per_seed"]] == ends
    plain = summary([figures_of(run) for _, run in runs])
    assert with_searches(plain, []) is plain


# -------------------------------------------------------------------------------------------------------------- curves


def test_levels_grow_by_eta_and_end_at_the_highest() -> None:
    wide = Curves("c", True, [curve(trial, 52) for trial in range(100)])
    assert rungs_of(wide, 3).levels == (1, 3, 9, 27, 52)
    assert rungs_of(wide, 4).levels == (1, 4, 16, 52)
    assert rungs_of(wide, 3, [20, 5]).levels == (5, 20)
    few = Curves("c", True, [curve(trial, 52) for trial in range(9)])
    assert rungs_of(few, 3).levels == (6, 18, 52)  # nine can be halved twice
    assert rungs_of(Curves("c", True, [curve(0)]), 3).levels == (9,)
    untrained = Curves("c", True, [{0.0: Point(0, 0)} | curve(trial) for trial in range(9)])
    assert rungs_of(untrained, 3).levels == (1, 3, 9)


def test_configuration_without_a_level_is_left_out() -> None:
    curves = Curves("c", False, [curve(1), curve(2, 5), curve(3)])
    found = rungs_of(curves, 3, [1, 9])
    assert [found.score(trial, 1) for trial in range(2)] == [1, 3]
    assert [found.cost_s(0, rung) for rung in (0, 1)] == [STEP_S, 9 * STEP_S]
    with pytest.raises(TraceError, match="c has nothing at level 10"):
        rungs_of(curves, 3, [10])


def test_reads_lcdb_by_data_set(tmp_path: Path) -> None:
    path = tmp_path / "curves.csv"
    rows = ["openmlid,learner,outer_seed,inner_seed,size_train,traintime_s,acc_valid,acc_test"]
    rows += [
        f"{data},{learner},0,{seed},{size},{size / 10},0.{size},0"
        for data in (3, 12)
        for learner in ("tree", "svm")
        for seed in (0, 1)
        for size in (16, 64)
    ]
    path.write_text("\n".join(rows))
    found = read_curves(path)
    assert [(each.name, len(each.curves), each.resumable) for each in found] == [
        ("curves_3", 4, False),
        ("curves_12", 4, False),
    ]
    assert found[0].curves[0] == {16: Point(1.6, 0.16), 64: Point(6.4, 0.64)}


def test_score_that_is_no_number_is_the_worst(tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    path.write_text("config,epoch,cum_time_s,val_acc\n0,1,5,nan\n1,1,5,\n2,1,5,3\n")
    [curves] = read_curves(path, "lcbench")
    assert [each[1].score for each in curves.curves] == [float("-inf"), float("-inf"), 3]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("a,b\n1,2\n", "no learning curves that are known: its columns are a, b"),
        ("config,epoch,cum_time_s,val_acc\n", "no learning curves: there are no rows"),
        ("config,epoch,cum_time_s,val_acc\n0,1,-5,1\n", "line 2: cum_time_s is -5, which is below 0"),
        ("config,epoch,cum_time_s,val_acc\n0,1,x,1\n", "line 2: could not convert"),
        ("config,epoch,cum_time_s,val_acc\n0,1\n", "line 2: "),
        ("config,epoch,cum_time_s,val_acc\n0,1,5,1,7\n", "line 2: it has more cells than there are columns"),
        ("config,epoch,cum_time_s,val_acc\r0,1,5,1\r", "line 1: new-line character seen in unquoted field"),
        ("config,epoch,cum_time_s,val_acc\n" + "9" * 140_000, "field larger than field limit"),
    ],
)
def test_what_is_no_curve_is_said(tmp_path: Path, text: str, error: str) -> None:
    path = tmp_path / "c.csv"
    path.write_text(text, newline="")
    with pytest.raises(TraceError, match=error):
        read_curves(path)


# ------------------------------------------------------------------------------------------------------ recorded curves


@pytest.fixture(scope="module")
def lcbench() -> list[Curves]:
    return [curves for path in LCBENCH for curves in read_curves(path)]


@with_data
@pytest.mark.parametrize(
    ("rule", "policy", "end_s"),
    [("halving", "fifo", 4485.2), ("halving", "priority", 2805), ("asha", "priority", 3670)],
)
def test_twelve_searches_on_24_workers(lcbench: list[Curves], rule: str, policy: str, end_s: float) -> None:
    workload, run = simulated(lcbench, Plan(rule), 24, policy)
    found = workload.figures()["mean_search_end_s"]
    if rule == "halving":
        assert len(run.trace.tasks) == 4356
    assert round(found, 1) == end_s if policy == "fifo" else found <= end_s
