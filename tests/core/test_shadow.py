"""A second policy that is asked and not obeyed."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from msgspec import structs

from schedd.assembly import engine_settings
from schedd.config import Settings, parse_settings
from schedd.core import effects as fx
from schedd.core import events as ev
from schedd.core.engine import Engine
from schedd.core.model import SECOND, Task, TaskRequirements, WorkerId, WorkerInfo
from schedd.core.policies import POLICIES
from schedd.core.policies.adaptive import AdaptiveScheduler
from schedd.core.policies.base import TaskScheduler
from schedd.core.policies.priority import PriorityScheduler
from schedd.core.settings import EngineSettings
from schedd.core.shadow import DECISIONS_PER_SECOND_MAX, WORKERS_LOOKED_AT_MAX, Comparison
from schedd.simulate.cluster import ClusterRow
from schedd.simulate.run import Simulator
from schedd.simulate.trace import Trace, TraceTask
from schedd.testing.rehearsal import encoded

from .builders import World


class Fastest(TaskScheduler):
    """Knows how fast workers are, by the number in their names; counts what it is asked."""

    name = "fastest"
    Params = POLICIES["fifo"].Params
    summary = "for tests"

    def __init__(self) -> None:
        self.asked = 0

    def score(self, task: Task, worker: WorkerInfo) -> float:
        self.asked += 1
        return float(worker.worker_id.lstrip("w"))

    def expected_s(self, task: Task, worker: WorkerInfo) -> float | None:
        return float(worker.worker_id.lstrip("w"))


def world_with(shadow: TaskScheduler, policy: TaskScheduler | None = None) -> World:
    world = World(policy or PriorityScheduler())
    world.engine = Engine(policy or PriorityScheduler(), world.settings, random.Random(0), shadow)
    return world


def comparison(world: World) -> Comparison:
    told = world.engine.shadow
    assert told is not None
    return told


def run_each_once(world: World, seconds: dict[str, float]) -> None:
    """Let tasks of kind "k" show how long they take on each worker."""
    ids = world.submit(len(seconds), kind="k")
    world.start(*ids)
    begin = world.now
    for task_id in sorted(ids, key=lambda i: seconds[str(world.task(i).worker_id)]):
        world.now = begin + round(seconds[str(world.task(task_id).worker_id)] * SECOND)
        world.finish(task_id)


def test_choice_is_valued_by_its_beliefs_and_by_what_was_observed() -> None:
    world = world_with(Fastest())
    world.join("w9", cpus=1, num_gpus=1, gpu_model="slow")
    world.join("w2", cpus=1, num_gpus=1, gpu_model="fast")
    run_each_once(world, {"w9": 5.0, "w2": 4.0})
    assert comparison(world) == Comparison("fastest", decisions=2, agreed=1)
    [first] = world.submit(kind="k")
    assert world.task(first).worker_id == "w9"  # the first that is idle
    told = comparison(world)
    assert (told.decisions, told.agreed, told.valued) == (3, 1, 1)
    assert (told.gain_s, told.gain_observed_s) == pytest.approx((7, 1))
    world.submit(kind="k")  # there is only one left
    told = comparison(world)
    assert (told.decisions, told.agreed, told.valued) == (4, 2, 2)
    assert (told.gain_s, told.gain_observed_s) == pytest.approx((7, 1))


def test_policy_without_beliefs_is_valued_by_what_was_observed() -> None:
    world = world_with(POLICIES["load_balancing"]())
    world.join("w9", cpus=2, num_gpus=1, gpu_model="slow")
    world.join("w2", cpus=2, num_gpus=2, gpu_model="fast")
    run_each_once(world, {"w9": 12.0, "w2": 3.0})
    world.submit(3, kind="k")  # w9, w2, w9: by priority the fewest tasks, by load those with more GPUs
    told = comparison(world)
    assert (told.decisions, told.agreed, told.valued) == (5, 4, 3)
    assert (told.gain_s, told.gain_observed_s) == pytest.approx((9, 9))


def test_nothing_is_known_of_a_new_kind() -> None:
    world = world_with(POLICIES["adaptive"]())
    world.join("w1", cpus=2)
    world.submit(2, kind="new")
    assert (comparison(world).decisions, comparison(world).valued, comparison(world).gain_s) == (2, 0, 0)


def test_only_so_many_decisions_a_second() -> None:
    shadow = Fastest()
    world = world_with(shadow)
    world.join("w1", cpus=1000)
    world.submit(DECISIONS_PER_SECOND_MAX + 5)
    assert (comparison(world).decisions, comparison(world).passed_over) == (DECISIONS_PER_SECOND_MAX, 5)
    world.wait(1)
    world.submit(5)
    assert (comparison(world).decisions, comparison(world).passed_over) == (DECISIONS_PER_SECOND_MAX + 5, 5)


def test_only_so_many_workers_for_a_decision() -> None:
    shadow = Fastest()
    world = world_with(shadow)
    for number in range(3 * WORKERS_LOOKED_AT_MAX):
        world.join(f"w{number + 1}", cpus=1)
    world.submit(10)
    assert comparison(world).decisions == 10
    assert shadow.asked <= 10 * WORKERS_LOOKED_AT_MAX
    assert shadow.asked > 5 * WORKERS_LOOKED_AT_MAX


def test_worker_that_a_better_one_waits_for_is_not_among_the_choices() -> None:
    world = world_with(Fastest())
    world.join("w2", cpus=4)
    world.join("w9", cpus=1)
    world.submit(3, kind="small")  # w2, w9, w2: the fewest tasks first
    world.submit(kind="big", cpus=4, priority=9)  # waits for all of w2
    before = comparison(world).decisions
    [small] = [i for i in (1, 2, 3) if world.task(i).worker_id == "w9"]
    world.start(1, 2, 3)
    world.submit(kind="small")
    world.finish(small)
    told = comparison(world)
    assert told.decisions == before + 1
    assert world.task(5).worker_id == "w9"
    assert told.agreed == told.decisions - 1  # all but the second of the first three


def test_what_it_has_learned_is_there_for_the_day_it_decides() -> None:
    world = world_with(POLICIES["adaptive"]())
    world.join("w1", cpus=1)
    [task] = world.submit(kind="k")
    world.start(task)
    world.wait(4)
    world.finish(task)
    learned = world.engine.learned()
    assert {one.kind for one in learned["adaptive"]} == {"k", ""}
    again = Engine(POLICIES["adaptive"](), world.settings)
    again.recall(learned)
    assert again.learned()["adaptive"] == learned["adaptive"]
    beside = Engine(PriorityScheduler(), world.settings, random.Random(0), POLICIES["adaptive"]())
    beside.recall(learned)
    assert beside.learned()["adaptive"] == learned["adaptive"]


# ------------------------------------------------------------------------------------------- it has no part in anything


#: The events of a turn, when it was, what followed, and when the engine wants to be woken.
Turn = tuple[list[ev.Event], int, bytes, int | None]


def simulated_settings(settings: Settings) -> EngineSettings:
    """Of an engine whose workers are never silent."""
    return structs.replace(engine_settings(settings), heartbeat_ns=1 << 61, lease_ns=1 << 61, lost_after_ns=1 << 61)


def run_of(policy: str) -> tuple[Settings, list[Turn]]:
    """A busy run with short and long tasks, priorities, failures, steals, preemption, and workers that come and go."""
    dice = random.Random(policy)
    turns: list[Turn] = []
    tasks = [
        TraceTask(
            at * 0.2,
            dice.choice("abc"),
            dice.choice((0.02, 1.0, 6.0)) * dice.uniform(0.5, 2),
            TaskRequirements(cpus=dice.choice((1, 1, 1, 4))),
            priority=float(dice.randrange(4)),
            failures=(0.5,) * (dice.random() < 0.1),
        )
        for at in range(500)
    ]
    cluster = [ClusterRow(cpus=4, count=2), ClusterRow(cpus=2, joins_s=30), ClusterRow(cpus=4, leaves_s=50)]
    preempt = "policy.priority = { preempt = true, preempt_after_s = 0.5, preempt_run_min_s = 0 }"
    settings = parse_settings(f"policy.name = '{policy}'\n{preempt}\nstealing.enabled = true")
    simulator = Simulator(Trace("made", tasks), cluster, settings)
    simulator._engine = engine = Engine(settings.policy.build(), simulated_settings(settings), random.Random(0))
    handle = engine.handle

    def handle_and_note(events: Sequence[ev.Event], now: int) -> fx.Effects:
        effects = handle(events, now)
        turns.append((list(events), now, encoded(effects), engine.next_deadline()))
        return effects

    engine.handle = handle_and_note  # type: ignore[method-assign]
    simulator.run()
    return settings, turns


def test_shadow_forgets_workers_that_are_gone() -> None:
    world = World("fifo")
    shadow = AdaptiveScheduler()
    world.engine = Engine(world.engine.policy, world.settings, random.Random(0), shadow)
    for number in range(20):
        world.join(f"w{number}")
        (task_id,) = world.submit(kind="k")
        world.start(task_id)
        world.wait(2)
        world.finish(task_id)
        world.handle(ev.WorkerLeft(WorkerId(f"w{number}")))
    assert len(shadow._groups._places) <= 2


@pytest.mark.needs("sources")
@pytest.mark.parametrize("policy", POLICIES)
def test_with_and_without_a_shadow_the_same_happens(policy: str) -> None:
    settings, turns = run_of(policy)
    assert len(turns) > 500
    for name in (None, *POLICIES):
        shadow = POLICIES[name]() if name is not None else None
        engine = Engine(settings.policy.build(), simulated_settings(settings), random.Random(0), shadow)
        for events, now, told, due in turns:
            assert (encoded(engine.handle(events, now)), engine.next_deadline()) == (told, due)
        if name is not None:
            assert engine.shadow is not None
            assert engine.shadow.decisions > 300
