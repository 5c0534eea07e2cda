# mypy: disable-error-code="arg-type, list-item"
"""Priority by rule: a task that comes after another gains what that one last reported."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schedd.config import parse_settings
from schedd.core import effects as fx
from schedd.core import events as ev
from schedd.core.engine import Engine
from schedd.core.model import SECOND, Cause, Report, TaskEntry, TaskId, TaskRequirements
from schedd.core.policies.priority import PROMOTION_MAX, PriorityScheduler
from schedd.errors import ConfigError

from .builders import START, World, dispatches, of, reported, selection, spec
from .recorded import Recorded


class Promoting(World):
    """A world that goes by a metric, records its facts, and can start anew from them, perhaps by another rule."""

    def __init__(self, metric: str = "accuracy", **rule: Any) -> None:
        self.recorded = Recorded()
        super().__init__(PriorityScheduler(from_metric=metric, **rule), lease_ns=1000 * SECOND)

    def handle(self, *events: ev.Event) -> fx.Effects:
        effects = super().handle(*events)
        self.recorded.record(effects)
        return effects

    def restart(self, metric: str = "accuracy", **rule: Any) -> None:
        self.now += SECOND
        self.engine = Engine(PriorityScheduler(from_metric=metric, **rule), self.settings)
        self.recorded.restore(self.engine, self.now, 0)

    def rungs(self, count: int) -> None:
        """Submit `count` tasks, which run on w1 at once, and then one after each of them, which waits."""
        entries = [TaskEntry(0)] * count
        self.submit_entries(spec(), [*entries, *(TaskEntry(0, after=[-1 - n]) for n in range(count))])
        self.join("w1", cpus=count)

    def say(self, task_id: int, **metrics: float) -> fx.Effects:
        task = self.task(task_id)
        return self.handle(reported(str(task.worker_id), task_id, task.attempt, 1, **metrics))

    def levels(self, *ids: int) -> list[float]:
        return [self.engine.policy.level(self.task(i)) for i in ids]


def changes(effects: fx.Effects) -> list[fx.TaskChanged]:
    found: list[fx.TaskChanged] = of(effects.facts, fx.TaskChanged)
    return found


def test_next_rung_of_the_best_goes_first() -> None:
    world = Promoting()
    world.rungs(3)
    world.handle(ev.DrainWorkers(1, ["w1"], leave=False))  # so that all three end before anything follows
    for task_id, accuracy in ((1, 0.7), (2, 0.9), (3, 0.8)):
        world.say(task_id, accuracy=accuracy)
        assert not changes(world.say(task_id, accuracy=accuracy)), "while it runs nothing is recorded"
    effects = world.finish(1, 2, 3)
    assert changes(effects) == [
        fx.TaskChanged(child, 0.0, TaskRequirements(), START, promoted)
        for child, promoted in ((4, 0.7), (5, 0.9), (6, 0.8))
    ]
    assert world.states(4, 5, 6) == ["queued"] * 3
    assert dispatches(world.join("w2")) == {"w2": [(5, 1)]}
    assert dispatches(world.finish(5)) == {"w2": [(6, 1)]}
    assert dispatches(world.finish(6)) == {"w2": [(4, 1)]}


def test_fact_stands_between_the_end_and_the_dispatch() -> None:
    world = Promoting()
    world.rungs(1)
    world.say(1, accuracy=0.5)
    effects = world.finish(1)
    assert effects.facts[1:] == [
        fx.TaskFinished(1, "succeeded", START, "", None),
        fx.TaskChanged(2, 0.0, TaskRequirements(), START, 0.5),
        fx.AttemptDispatched(2, 1, "w1", START),
    ]


def test_last_report_counts_of_whichever_attempt() -> None:
    world = Promoting()
    world.rungs(1)
    world.say(1, accuracy=0.9)
    world.finish(1, cause=Cause.PREEMPTED)
    world.say(1, accuracy=0.4)
    world.finish(1)
    assert world.levels(2) == [0.4]


def test_metric_counts_though_others_were_reported_after_it() -> None:
    world = Promoting()
    world.rungs(1)
    world.say(1, accuracy=0.9)
    world.say(1, loss=3.0)
    world.finish(1)
    assert world.levels(2) == [0.9]


def test_less_is_better_and_has_its_weight() -> None:
    world = Promoting("loss", from_metric_mode="min", from_metric_weight=0.5)
    world.rungs(2)
    world.say(1, loss=3.0)
    world.say(2, loss=1.0)
    world.finish(1, 2)
    assert world.levels(3, 4) == [-1.5, -0.5]


def test_own_priority_stays_and_can_be_set() -> None:
    world = Promoting()
    world.submit_entries(spec(priority=2.0), [TaskEntry(0), TaskEntry(0, after=[-1])])
    world.join()
    world.say(1, accuracy=0.5)
    world.handle(ev.DrainWorkers(1, ["w1"], leave=False))
    world.finish(1)
    assert (world.task(2).priority, world.levels(2)) == (2.0, [2.5])
    effects = world.handle(ev.SetTasks(1, selection(2), priority=7.0))
    assert changes(effects) == [fx.TaskChanged(2, 7.0, TaskRequirements(), START, 0.5)]
    assert world.levels(2) == [7.5]


def test_best_counts_of_several_it_comes_after() -> None:
    world = Promoting()
    world.join(cpus=3)
    world.submit(3)
    world.submit(after=[1, 2, 3])
    for task_id, accuracy in ((1, 0.5), (2, 0.9), (3, 0.7)):
        world.say(task_id, accuracy=accuracy)
    assert [bool(changes(world.finish(task_id))) for task_id in (1, 2, 3)] == [True, True, False]
    assert world.levels(4) == [0.9]


def test_submitted_after_the_end() -> None:
    world = Promoting()
    world.join(cpus=3)
    world.submit(3)
    for task_id in (1, 2, 3):
        world.say(task_id, accuracy=task_id / 10)
    world.finish(1, 2, 3)
    world.handle(ev.DrainWorkers(1, ["w1"], leave=False))
    effects = world.handle(
        ev.SubmitTasks(1, [spec()], [TaskEntry(0, after=[1, 3]), TaskEntry(0, after=[2]), TaskEntry(0)])
    )
    assert [type(fact) for fact in effects.facts] == [fx.TasksAdmitted, fx.TaskChanged, fx.TaskChanged]
    assert world.levels(4, 5, 6) == [0.3, 0.2, 0.0]
    assert dispatches(world.join("w2")) == {"w2": [(4, 1)]}
    world.restart()
    assert world.levels(5, 6) == [0.2, 0.0]


def test_held_while_the_other_ends() -> None:
    world = Promoting()
    world.rungs(1)
    world.hold(2)
    world.say(1, accuracy=0.5)
    world.finish(1)
    assert (world.states(2), world.levels(2)) == (["held"], [0.5])
    assert dispatches(world.release(2)) == {"w1": [(2, 1)]}


def test_gain_outlives_a_restart_and_not_the_rule() -> None:
    world = Promoting()
    world.rungs(3)
    for task_id in (1, 2, 3):
        world.say(task_id, accuracy=task_id / 10)
    world.handle(ev.DrainWorkers(1, ["w1"], leave=False))
    world.finish(1, 2, 3)
    world.handle(ev.SetPriorities(1, [(TaskId(4), 1.0)]))
    world.restart()
    assert world.levels(4, 5, 6) == [1.1, 0.2, 0.3]
    assert [task.promoted for task in map(world.task, (4, 5, 6))] == [0.1, 0.2, 0.3]
    world.handle(ev.WorkerLeft("w1"))
    world.wake_in(1)
    assert dispatches(world.join("w2", cpus=2)) == {"w2": [(4, 1), (6, 1)]}
    world.restart(metric="")
    assert world.levels(4, 5, 6) == [1.0, 0.0, 0.0]


def test_report_of_one_that_ended_before_a_restart() -> None:
    world = Promoting()
    world.rungs(1)
    world.say(1, accuracy=0.5)
    world.finish(1)
    world.restart()
    world.submit(after=[1])
    assert world.levels(3) == [0.5]


@pytest.mark.parametrize("metrics", [{}, {"loss": 3.0}])
def test_nothing_was_said_of_the_metric(metrics: dict[str, float]) -> None:
    world = Promoting()
    world.rungs(1)
    world.say(1, **metrics)
    assert not changes(world.finish(1))
    assert (world.task(2).promoted, world.levels(2)) == (None, [0.0])


@pytest.mark.parametrize("cause", [Cause.ERROR, Cause.CANCELLED])
def test_other_does_not_succeed(cause: Cause) -> None:
    world = Promoting()
    world.rungs(1)
    world.say(1, accuracy=0.5)
    assert not changes(world.finish(1, cause=cause))
    assert world.states(2) == ["cancelled"]


def test_no_rule_no_gain() -> None:
    world = World("priority")
    world.join()
    world.submit()
    world.submit(after=[1])
    world.handle(reported("w1", 1, 1, 1, accuracy=0.5))
    assert not of(world.finish(1).facts, fx.TaskChanged)
    assert world.task(2).promoted is None


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e308, -1e308])
def test_whatever_is_reported_ranks_stay_finite(mode: Any, value: float) -> None:
    world = Promoting(from_metric_mode=mode, from_metric_weight=1e9)
    world.rungs(2)
    world.say(1, accuracy=value)
    world.say(2, accuracy=0.5)
    world.handle(ev.DrainWorkers(1, ["w1"], leave=False))
    world.finish(1, 2)
    odd = world.levels(3)[0]
    assert abs(odd) == PROMOTION_MAX
    is_better = (value > 0) is (mode == "max") and not math.isnan(value)
    first = 3 if is_better else 4
    assert dispatches(world.join("w2")) == {"w2": [(first, 1)]}


@given(st.floats(), st.sampled_from(["max", "min"]), st.floats(1e-300, 1e9))
def test_gain_of_any_number(value: float, mode: Any, weight: float) -> None:
    gain = PriorityScheduler(from_metric="m", from_metric_mode=mode, from_metric_weight=weight).promotion(
        Report(1, {"m": value})
    )
    assert gain is not None
    assert abs(gain) <= PROMOTION_MAX


def test_ageing_and_gain_add_up() -> None:
    world = Promoting(ageing_per_hour=3600.0)
    world.submit_entries(spec(), [TaskEntry(0), TaskEntry(0, after=[-1])])
    world.join()
    world.say(1, accuracy=5.0)
    world.handle(ev.DrainWorkers(1, ["w1"], leave=False))
    world.finish(1)
    world.wait(3)
    world.submit(priority=7.0)  # is 3 s younger, so it is behind by 1
    assert dispatches(world.join("w2")) == {"w2": [(2, 1)]}


def test_explained() -> None:
    world = Promoting()
    world.rungs(1)
    world.say(1, accuracy=0.5)
    world.handle(ev.DrainWorkers(1, ["w1"], leave=False))
    world.finish(1)
    told = world.engine.explain(world.task(2)).summary
    assert told.endswith("; its priority is 0.5: 0, and 0.5 by a report of what it comes after")


def test_settings() -> None:
    text = '[policy]\nname = "priority"\n[policy.priority]\nfrom_metric = "loss"\nfrom_metric_mode = "min"\n'
    policy = parse_settings(text).policy.build()
    assert policy.promotes
    assert policy.promotion(Report(1, {"loss": 2.0})) == -2.0
    with pytest.raises(ConfigError, match="from_metric_mode"):
        parse_settings('policy.priority.from_metric_mode = "more"')
    with pytest.raises(ConfigError, match="from_metric_weight"):
        parse_settings("policy.priority.from_metric_weight = 0.0")
