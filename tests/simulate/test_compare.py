"""Which run is best, by how much, and how sure."""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Sequence
from itertools import chain

import pytest

from schedd.cli.variants import Variant
from schedd.cli.verdict import Verdict
from schedd.core.model import TaskRequirements
from schedd.simulate.cluster import ClusterRow
from schedd.simulate.compare import OBJECTIVES, Standing, Values, standings, values_of
from schedd.simulate.record import Run
from schedd.simulate.trace import Trace, TraceTask


def run_of(flows: Sequence[float], runtime_s: float = 1.0) -> Run:
    tasks = [TraceTask(i, "k", runtime_s, TaskRequirements()) for i in range(len(flows))]
    finish = array("d", [i + flow for i, flow in enumerate(flows)])
    start = array("d", [end - runtime_s for end in finish])
    return Run(Trace("made", tasks), [ClusterRow()], start, finish, array("q", [0] * len(flows)))


def valued(runs: Sequence[Run], objective: str) -> Values:
    return Values([values_of(run, objective) for run in runs], objective)


def standings_of(flows: dict[str, Callable[[int], float]], count: int, objective: str) -> dict[str, Standing]:
    return standings(
        {name: valued([run_of([flow(i) for i in range(count)])], objective) for name, flow in flows.items()}
    )


def test_best_comes_first_and_the_others_are_behind() -> None:
    found = standings_of({"a": lambda i: 20.0, "b": lambda i: 10.0, "c": lambda i: 40.0}, 400, "mean_flow_time")
    assert list(found) == ["b", "a", "c"]
    assert found["b"] == Standing(10, 0, 0, 0, 1)
    assert (found["a"].behind, found["a"].low, found["a"].high, found["a"].wins) == (0.5, 0.5, 0.5, 0)
    assert found["c"].behind == 0.75


def test_chance_is_told_from_gain() -> None:
    dice = random.Random(2)
    noise = [dice.expovariate(0.1) for _ in range(400)]
    other = [dice.expovariate(0.1) for _ in range(400)]
    found = standings_of({"a": lambda i: noise[i], "b": lambda i: other[i]}, 400, "mean_flow_time")
    worse = list(found.values())[1]
    assert worse.low is not None
    assert worse.low < 0 < worse.behind
    assert 0.02 < (worse.wins or 0) < 0.5
    # The same noise in both, and a little more: the windows are the same, so it is no chance.
    found = standings_of({"a": lambda i: noise[i], "b": lambda i: noise[i] + 0.5}, 400, "mean_flow_time")
    assert found["b"].low is not None
    assert found["b"].low > 0.02
    assert found["a"].wins == 1


def test_interval_is_honest() -> None:
    """Two runs whose true means are equal: an interval of 95 % lies on one side of 0 about once in twenty."""
    dice, outside = random.Random(3), 0
    for _ in range(40):
        flows = {name: [dice.expovariate(0.1) for _ in range(400)] for name in "ab"}
        found = standings({name: valued([run_of(each)], "mean_flow_time") for name, each in flows.items()})
        low = list(found.values())[1].low
        outside += low is not None and low > 0
    assert outside <= 7


def test_tail_is_compared_by_its_quantile() -> None:
    found = standings_of(
        {"even": lambda i: 50.0, "tail": lambda i: 1000.0 if i % 40 == 0 else 1.0}, 2000, "p99_flow_time"
    )
    assert [(name, each.value) for name, each in found.items()] == [("even", 50), ("tail", 1000)]
    assert (found["tail"].low, found["tail"].behind, found["even"].wins) == (0.95, 0.95, 1)
    assert list(standings_of({"even": lambda i: 50.0, "tail": lambda i: 26.0}, 400, "p99_flow_time")) == [
        "tail",
        "even",
    ]


def test_slowdown_counts_a_second_as_ten() -> None:
    values = valued([run_of([30.0, 5.0])], "mean_bounded_slowdown")
    assert values.value == pytest.approx((3 + 1) / 2)


def test_makespan_is_as_sure_as_the_seeds() -> None:
    one = {name: valued([run_of([flow])], "makespan") for name, flow in (("a", 10.0), ("b", 20.0))}
    assert standings(one)["b"] == Standing(20, 0.5, None, None, None)
    flows = {"a": [10.0, 10.0, 30.0], "b": [20.0, 20.0, 20.0]}
    seeds = {name: valued([run_of([flow]) for flow in each], "makespan") for name, each in flows.items()}
    found = standings(seeds)
    assert (found["a"].wins, found["b"].wins) == pytest.approx((2 / 3, 1 / 3))
    low, high = found["b"].low, found["b"].high
    assert low is not None
    assert high is not None
    assert low < 0 < found["b"].behind < high
    assert (low + high) / 2 == pytest.approx(found["b"].behind)


def test_seeds_that_are_alike_say_nothing() -> None:
    seeds = {name: valued([run_of([flow])] * 2, "makespan") for name, flow in (("a", 10.0), ("b", 20.0))}
    assert standings(seeds)["b"] == Standing(20, 0.5, None, None, None)
    seeds["dice"] = valued([run_of([30.0]), run_of([40.0])], "makespan")
    found = standings(seeds)
    assert (found["b"].low, found["a"].wins) == (None, 1)
    assert found["dice"].low is not None


def test_searches_are_compared_by_seeds_alone() -> None:
    """Under each policy other tasks are submitted, in another order, and there are more or fewer of them."""
    runs = {"a": [run_of([10.0] * 70), run_of([12.0] * 70)], "b": [run_of([20.0] * 60), run_of([23.0] * 90)]}
    for run in chain(*runs.values()):
        run.reacts = True
    found = standings({name: valued(each, "mean_flow_time") for name, each in runs.items()})
    assert [(each.value, each.wins) for each in found.values()] == [(11, 1), (21.5, 0)]
    assert found["b"].low is not None
    runs["b"][0].unsuccessful.add(3)
    found = standings({name: valued(each[:1], "mean_flow_time") for name, each in runs.items()})
    assert (found["b"].low, found["b"].failed) == (None, 1)


def failing(flows: Sequence[float], failed: Sequence[int]) -> Run:
    run = run_of(flows)
    run.unsuccessful.update(failed)
    for row in failed:
        run.start_s[row] = run.finish_s[row] = -1.0
    return run


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_tasks_that_failed_in_one_run_are_left_out_of_all(objective: str) -> None:
    """Half of what is long does not run in one of them, and is not taken to have ended before it came."""
    flows = [100.0 if i % 2 else 1000.0 for i in range(400)]
    runs = {"all": run_of(flows), "few": failing([flow + 20 for flow in flows], range(0, 400, 4))}
    found = standings({name: valued([run], objective) for name, run in runs.items()})
    assert list(found) == ["all", "few"]
    assert (found["all"].failed, found["few"].failed) == (0, 100)
    kept = valued([run_of([flow for i, flow in enumerate(flows) if i % 4])], "mean_flow_time")
    if objective == "mean_flow_time":
        assert (found["all"].value, found["few"].value) == pytest.approx((kept.value, kept.value + 20))
        assert (found["few"].low or 0) > 0


def test_what_fails_differs_by_seed() -> None:
    values = {
        "a": valued([failing([10.0] * 400, range(100)), run_of([10.0] * 400)], "mean_flow_time"),
        "b": valued([run_of([20.0] * 400), failing([40.0] * 400, range(60))], "mean_flow_time"),
    }
    found = standings(values)
    assert [(each.value, each.failed, each.wins) for each in found.values()] == [(10, 50, 1), (30, 30, 0)]
    # 300 tasks of 20 s and 340 of 40 s, of which the others took 10 s.
    assert found["b"].low == pytest.approx(1 - 10 / ((300 * 20 + 340 * 40) / 640), abs=0.03)


def test_nothing_succeeds() -> None:
    values = {name: valued([failing([1.0] * 100, range(100))], "mean_flow_time") for name in "ab"}
    assert standings(values)["b"] == Standing(0, 0, None, None, None, 100)


def test_best_that_fails_more_is_not_surely_better() -> None:
    runs = {"fifo": run_of([20.0] * 100), "batch": failing([10.0] * 100, range(3))}
    variants = {name: Variant(name) for name in runs}
    values = {name: valued([run], "mean_flow_time") for name, run in runs.items()}
    verdict = Verdict(variants, values, "fifo", None, configured=True)
    told = verdict.as_json()
    assert (told["best"]["policy"], told["best"]["gain_ci95"], told["best"]["sure"]) == ("batch", [0.5, 0.5], False)
    assert told["standings"]["batch"]["failed"] == 3
    assert "but more tasks fail: nothing here is surely better than fifo" in verdict._sentence()


@pytest.mark.parametrize("objective", [each for each in OBJECTIVES if each != "makespan"])
def test_few_tasks_say_nothing(objective: str) -> None:
    found = standings_of({"a": lambda i: 1.0, "b": lambda i: 2.0}, 49, objective)
    assert [(each.low, each.wins) for each in found.values()] == [(None, None), (None, None)]


def test_equal_runs_share_the_wins() -> None:
    found = standings_of({"a": lambda i: 3.0, "b": lambda i: 3.0}, 100, "mean_flow_time")
    assert [(each.behind, each.wins) for each in found.values()] == [(0, 0.5), (0, 0.5)]


def test_of_equals_the_one_in_use_is_best() -> None:
    values = {name: valued([run_of([3.0] * 100)], "mean_flow_time") for name in "abc"}
    assert list(standings(values, "b")) == ["b", "a", "c"]
