"""Which run is best, by how much, and how sure."""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Sequence

import pytest

from schedd.core.model import TaskRequirements
from schedd.simulate.cluster import ClusterRow
from schedd.simulate.compare import OBJECTIVES, Standing, Values, standings, values_of
from schedd.simulate.run import Run
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
