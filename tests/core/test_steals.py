# mypy: disable-error-code="arg-type, list-item"
"""The ledger of steals: what was expected of each, what came of it, and what a policy makes of that."""

from __future__ import annotations

from typing import Any

import pytest

from schedd.core import events as ev
from schedd.core import steals
from schedd.core.model import SECOND, Cause, StealGain, TaskId, WorkerId
from schedd.core.policies.work_stealing import ADAPT_EVERY, WorkStealingScheduler
from schedd.core.steals import StealTotals

from .builders import START, World, answered, finished, started


def stolen(backlog: int = 4, mean_s: float | None = 10.0, **values: Any) -> World:
    """w1 runs task 1 and had tasks 2 to 1 + `backlog` waiting; w2 has come, and been given the second half of them."""
    world = World(WorkStealingScheduler(**{"steal_threshold": 0, **values}), stealing=True)
    if mean_s is not None:
        world.engine._t.runtimes.observe("k", mean_s, True)
    world.join("w1")
    world.submit(1 + backlog, kind="k")
    world.handle(started("w1", 1, 1, START))
    world.join("w2")
    return world


def give(world: World, *ids: int) -> None:
    world.handle(answered("w1", *((i, 1, True) for i in ids)))


def end(world: World, name: str, task_id: int) -> None:
    """Let a task end, and the next of the backlog start in the same instant."""
    world.finish(task_id)
    for following in list(world.worker(name).running):
        world.start(following)


def totals(world: World) -> StealTotals:
    return world.engine.steals.totals


def test_gain_is_what_the_victim_would_have_taken() -> None:
    world = stolen()
    give(world, 4, 5)
    world.start(4)  # at once
    for task_id in (1, 2, 3):
        assert not totals(world).measured
        world.wait(8)
        end(world, "w1", task_id)
    [gain] = world.engine.steals.recent
    assert gain == StealGain(TaskId(4), "k", WorkerId("w1"), WorkerId("w2"), 2, 30.0, 24.0)
    assert (totals(world).measured, totals(world).known, totals(world).paid) == (1, 1, 1)
    assert (totals(world).expected_s, totals(world).real_of_known_s, totals(world).real_s) == (30, 24, 24)
    assert totals(world).asked == 2  # now that it has nothing left, w1 asks for task 5
    world.finish(4)
    assert (totals(world).refused, list(world.engine.steals.open)) == (0, [5])


def test_thief_that_starts_late_gains_less() -> None:
    world = stolen()
    give(world, 4, 5)
    for task_id in (1, 2, 3):
        world.wait(1)
        end(world, "w1", task_id)
    assert not totals(world).measured  # the victim would have come to it, the thief has not
    world.wait(2)
    world.start(4)
    assert totals(world).real_s == -2
    assert totals(world).paid == 0


def test_kind_that_is_not_known_has_no_expected_gain() -> None:
    world = stolen(mean_s=None)
    give(world, 4, 5)
    world.start(4)
    for task_id in (1, 2, 3):
        world.wait(8)
        end(world, "w1", task_id)
    [gain] = world.engine.steals.recent
    assert (gain.expected_s, gain.real_s) == (None, 24.0)
    assert totals(world).known == 0


def test_victim_that_is_stolen_from_again_was_spared_work() -> None:
    """What others took of what was ahead would have taken the victim the mean runtime of the kind."""
    world = stolen(backlog=4)
    give(world, 4, 5)
    world.start(4)
    world.join("w3")  # takes 3
    give(world, 3)
    world.start(3)
    for task_id in (1, 2):
        world.wait(8)
        end(world, "w1", task_id)
    by_task = {gain.task_id: gain.real_s for gain in world.engine.steals.recent}
    mean_s = 10.0 * 0.9 + 8.0 * 0.1  # what is believed when the victim runs dry, or a little before
    assert by_task[TaskId(4)] == pytest.approx(16 + mean_s, abs=0.5)
    assert by_task[TaskId(3)] == 16


def test_steal_that_came_too_late_gains_nothing() -> None:
    world = stolen(backlog=1)
    world.wait(5)
    world.handle(finished("w1", 1, 1, Cause.OK, START, world.now), started("w1", 2, 1, world.now))
    world.handle(answered("w1", (2, 1, False)))
    assert (totals(world).refused, totals(world).measured, totals(world).real_s) == (1, 1, 0)
    refused = stolen(backlog=1)
    refused.handle(answered("w1", (2, 1, False)))
    assert (totals(refused).refused, totals(refused).measured, totals(refused).real_s) == (1, 1, 0)


@pytest.mark.parametrize("who", ["w1", "w2"])
def test_who_leaves_is_not_measured(who: str) -> None:
    world = stolen()
    give(world, 4, 5)
    world.handle(ev.WorkerLeft(who))
    for _ in range(6):
        for worker in list(world.engine.resources):
            for task_id in list(worker.running):
                world.start(task_id)
                world.wait(1)
                world.finish(task_id)
    assert totals(world).measured == 0 or who == "w2"
    assert totals(world).unmeasured >= 1
    assert world.engine.tasks.unfinished_count == 0


def test_what_is_followed_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steals, "OPEN_MAX", 2)
    world = stolen(backlog=20, steal="one")
    for _ in range(6):
        task = next(t for t in world.worker("w1").task_queue if t.state.name == "revoking")
        give(world, task.id)
        world.finish(task.id)
    ledger = world.engine.steals
    assert len(ledger.open) <= 2
    assert sum(map(len, ledger._by_victim.values())) <= 2
    assert totals(world).unmeasured >= 4


def test_start_and_end_told_together() -> None:
    world = stolen()
    give(world, 4, 5)
    world.wait(1)
    world.handle(finished("w2", 4, 2, Cause.OK, START + SECOND // 2, world.now))
    for task_id in (1, 2, 3):
        world.wait(1)
        end(world, "w1", task_id)
    assert world.engine.steals.recent[0].real_s == 3.5


# ------------------------------------------------------------------------------------------------------- the threshold


def learn(policy: WorkStealingScheduler, *gains_s: float) -> list[bool]:
    return [
        policy.learn_steal(StealGain(TaskId(1), "k", WorkerId("a"), WorkerId("b"), 1, 1.0, gain_s))
        for gain_s in gains_s
    ]


def test_threshold_follows_what_steals_gain() -> None:
    policy = WorkStealingScheduler(steal_threshold=2, steal_threshold_max=8)
    seen = []
    for _ in range(6):
        assert learn(policy, *[0.001] * ADAPT_EVERY) == [False] * ADAPT_EVERY
        seen.append(policy.threshold)
    assert seen == [3, 4, 6, 8, 8, 8]
    for _ in range(9):
        assert all(learn(policy, *[1.0] * ADAPT_EVERY))
        seen.append(policy.threshold)
    assert seen[6:] == [6, 5, 4, 3, 2, 1, 0, 0, 0]


def test_threshold_stays_where_some_steals_pay() -> None:
    policy = WorkStealingScheduler(steal_threshold=4)
    learn(policy, *[1.0, -1.0] * 20)
    assert policy.threshold == 4
    fixed = WorkStealingScheduler(steal_threshold=4, adapt=False)
    learn(fixed, *[-1.0] * 40)
    assert fixed.threshold == 4


def test_threshold_comes_down_where_nobody_steals() -> None:
    world = stolen(backlog=3, steal_threshold=3)
    policy = world.engine.policy
    assert isinstance(policy, WorkStealingScheduler)
    policy.threshold = 5
    for _ in range(4):
        world.wake_in(1000)
    assert policy.threshold == 3
