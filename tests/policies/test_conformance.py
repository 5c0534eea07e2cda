"""One suite for all policies: what every one of them must do, alone over plain rows and inside the engine."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
from core.builders import NO_PREFETCH, World, selection
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schedd.core import events as ev
from schedd.core.model import Cause, Task, TaskId, TaskRequirements, WorkerId, WorkerInfo, WorkerStatus
from schedd.core.policies import POLICIES
from schedd.core.policies.base import TaskScheduler

every_policy = pytest.mark.parametrize("name", list(POLICIES))


def make(name: str) -> TaskScheduler:
    return POLICIES[name].from_params(POLICIES[name].Params())


def row(name: str, **values: Any) -> WorkerInfo:
    return WorkerInfo(WorkerId(name), **values)


def task(number: int = 1, **values: Any) -> Task:
    wants = {key: values.pop(key) for key in list(values) if key in TaskRequirements.__struct_fields__}
    return Task(id=TaskId(number), requirements=TaskRequirements(**wants), **values)


@every_policy
def test_knows_itself(name: str) -> None:
    policy = POLICIES[name]
    assert policy.name == name
    assert policy.__doc__
    assert policy.summary
    assert policy.summary == policy.summary.strip()


@every_policy
def test_defaults_of_the_table_are_those_of_the_constructor(name: str) -> None:
    policy = POLICIES[name]
    assert vars(make(name)).keys() == vars(policy()).keys()
    for key, value in msgspec.structs.asdict(policy.Params()).items():
        mine, built = getattr(policy(), key, None), getattr(make(name), key, None)
        assert mine == built
        assert mine in (None, value)


@every_policy
def test_table_refuses_what_it_does_not_know(name: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"nonsense": 1}, POLICIES[name].Params)


@every_policy
def test_no_workers(name: str) -> None:
    assert make(name).assign_task(task(), []) is None


@every_policy
def test_no_worker_fits(name: str) -> None:
    assert make(name).assign_task(task(min_gpus=4), [row("w1", num_gpus=2), row("w2")]) is None


@every_policy
def test_ties_go_to_the_first(name: str) -> None:
    policy = make(name)
    assert policy.assign_task(task(), [row("b"), row("a"), row("c")]) == "b"
    assert policy.assign_task(task(), [row("c"), row("b"), row("a")]) == "c"


@every_policy
@pytest.mark.parametrize("status", ["draining", "unreachable", "dead"])
def test_workers_that_take_nothing(name: str, status: str) -> None:
    policy = make(name)
    assert policy.assign_task(task(), [row("w1", num_gpus=8, status=status)]) is None
    assert policy.assign_task(task(), [row("w1", num_gpus=8, status=WorkerStatus(status)), row("w2")]) == "w2"


@every_policy
def test_what_starts_at_once_before_any_backlog(name: str) -> None:
    workers = [row("w1", num_gpus=8, status="busy", task_count=8), row("w2", num_gpus=1)]
    assert make(name).assign_task(task(min_gpus=1), workers) == "w2"


@every_policy
def test_never_changes_anything(name: str) -> None:
    waiting = [task(8), task(9)]
    workers = [row("w1", num_gpus=2, task_count=1), row("w2", status="busy", task_queue=list(waiting))]
    before = [msgspec.structs.asdict(worker) for worker in workers]
    one = task()
    make(name).assign_task(one, workers)
    assert [msgspec.structs.asdict(worker) for worker in workers] == before
    assert one.attempt == 0


@every_policy
def test_twice_the_same(name: str) -> None:
    workers = [row(f"w{i}", num_gpus=i % 3, task_count=i % 2) for i in range(9)]
    policy = make(name)
    answers = {policy.assign_task(task(min_gpus=1), workers) for _ in range(5)}
    assert len(answers) == 1


@every_policy
def test_rank_is_constant_while_a_task_waits(name: str) -> None:
    one = task(priority=3.0)
    policy = make(name)
    assert policy.level(one) == policy.level(one)
    assert isinstance(policy.ageing_rate, float)


@every_policy
def test_preempted_runs_again_without_blame(name: str) -> None:
    world = World(make(name))
    world.join("w1")
    ids = world.submit(3)
    world.start(1)
    world.handle(ev.PreemptTasks(1, selection(1)))
    world.finish(1, cause=Cause.PREEMPTED)
    for _ in range(3):
        for task_id in ids:
            if world.states(task_id) == ["assigned"] and world.task(task_id).reserved:
                world.start(task_id)
                world.finish(task_id)
    assert world.states(*ids) == ["succeeded"] * 3
    assert [ended.cause for ended in world.task(1).attempts] == [Cause.PREEMPTED, Cause.OK]
    assert not world.task(1).blamed


@every_policy
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 1 << 32))
def test_index_and_list_agree(name: str, seed: int) -> None:
    """The engine's ordered index of workers and a plain list of the same rows give the same answer."""
    dice = random.Random(seed)
    world = World(make(name), seed=seed, prefetch=NO_PREFETCH)
    for n in range(dice.randrange(1, 8)):
        world.join(f"w{n}", cpus=dice.choice([1, 2, 4]), num_gpus=dice.choice([0, 1, 2]), gpu_memory_gb=8)
    for _ in range(dice.randrange(4)):
        world.submit(dice.randrange(1, 5), cpus=dice.choice([0.5, 1]), min_gpus=dice.choice([0, 0.5, 1]), kind="k")
    for i in list(world.engine.tasks.rows):
        if dice.random() < 0.3 and world.states(i) == ["assigned"] and world.task(i).reserved:
            world.finish(i)
    if dice.random() < 0.3:
        world.handle(ev.DrainWorkers(1, [WorkerId("w0")]))
    draft = world.engine._t.placer
    one = task(cpus=dice.choice([0.5, 1, 2]), min_gpus=dice.choice([0, 0.5, 1]), kind="k")
    one.request = world.engine._t.classes.intern(one.requirements, one.kind, world.engine.policy.by_kind)
    if draft._claims.by_seq:
        return
    chosen = draft.candidate(one)
    expected = world.engine.policy.assign_task(one, list(world.engine.resources))
    assert (chosen.worker_id if chosen is not None else None) == expected


@every_policy
def test_all_tasks_get_their_turn(name: str) -> None:
    world = World(make(name), stealing=True)
    world.join("w1", cpus=2, num_gpus=1)
    world.join("w2", cpus=1)
    for n in range(30):
        world.submit(kind="abc"[n % 3], min_gpus=n % 2, priority=n % 4)
    for _ in range(200):
        for worker in list(world.engine.resources):
            for task_id in list(worker.running):
                world.start(task_id)
                world.wait(0.1)
                world.finish(task_id)
        for worker in list(world.engine.resources):
            answers = [(t.id, t.attempt, True) for t in worker.task_queue if t.state.name == "revoking"]
            if answers:
                world.handle(ev.RevokesAnswered(worker.worker_id, answers))
        world.wake_in(0.5)
    assert world.engine.tasks.unfinished_count == 0
