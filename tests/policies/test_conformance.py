"""The conformance suite that ships with schedd, over all policies of the registry."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
from core.builders import NO_PREFETCH, World
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from schedd.core import events as ev
from schedd.core.model import Task, TaskId, TaskRequirements, WorkerId
from schedd.core.policies import POLICIES
from schedd.core.policies.adaptive import AdaptiveParams, AdaptiveScheduler
from schedd.core.policies.base import TaskScheduler
from schedd.core.policies.priority import PriorityParams, PriorityScheduler
from schedd.testing import PolicyConformance

every_policy = pytest.mark.parametrize("name", list(POLICIES))


class TestBuiltIn(PolicyConformance):
    @pytest.fixture(autouse=True, params=list(POLICIES))
    def one_of_all(self, request: pytest.FixtureRequest) -> None:
        self.policy = POLICIES[request.param]


class TestPreempting(PolicyConformance):
    """`priority` that stops whatever it may."""

    policy = PriorityScheduler
    params = PriorityParams(preempt=True, preempt_after_s=0, preempt_run_min_s=0, preempt_margin=0.5)


class TestByPlan(PolicyConformance):
    """`adaptive` where the mean of all completion times is to be low."""

    policy = AdaptiveScheduler
    params = AdaptiveParams(objective="mean_jct")


def make(name: str) -> TaskScheduler:
    return POLICIES[name].from_params(POLICIES[name].Params())


def task(number: int = 1, **values: Any) -> Task:
    wants = {key: values.pop(key) for key in list(values) if key in TaskRequirements.__struct_fields__}
    return Task(id=TaskId(number), requirements=TaskRequirements(**wants), **values)


@every_policy
def test_goes_by_its_own_name(name: str) -> None:
    assert POLICIES[name].name == name


@every_policy
def test_parameters_are_kept_under_their_names(name: str) -> None:
    policy = POLICIES[name]
    assert vars(make(name)).keys() == vars(policy()).keys()
    for key, value in msgspec.structs.asdict(policy.Params()).items():
        mine, built = getattr(policy(), key, None), getattr(make(name), key, None)
        assert mine == built
        assert mine in (None, value)


@every_policy
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@example(seed=94)  # a worker whose GPU is taken and whose CPUs are free, a refresh after its last change
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
    world.engine._refresh()  # what a policy has learned since the last one counts from here on
    draft = world.engine._t.placer
    one = task(cpus=dice.choice([0.5, 1, 2]), min_gpus=dice.choice([0, 0.5, 1]), kind="k")
    one.request = world.engine._t.classes.intern(one.requirements, one.kind, world.engine.policy.by_kind)
    if draft._claims.by_seq:
        return
    chosen = draft.candidate(one)
    expected = world.engine.policy.assign_task(one, list(world.engine.resources))
    assert (chosen.worker_id if chosen is not None else None) == expected
