"""What is peculiar to workers: throttled ones, such as fail, and what `adaptive` makes of it beside the truth."""

from __future__ import annotations

import math
import random
from statistics import fmean, median
from typing import Literal

import pytest
from core.builders import World, joined
from msgspec import structs

from schedd.config import parse_settings
from schedd.core import events as ev
from schedd.core.model import Gpu, Task, TaskId, TaskRequirements, WorkerId, WorkerInfo
from schedd.core.policies.adaptive import AdaptiveScheduler
from schedd.core.policies.beliefs import Beliefs
from schedd.core.policies.experience import Experience
from schedd.core.policies.peculiar import Pace
from schedd.simulate.cluster import ClusterRow
from schedd.simulate.contest import run_under, settings_name
from schedd.simulate.generate import Load, generate
from schedd.simulate.record import Run

NOISE = 0.6


def samples(dice: random.Random, count: int, level: float) -> list[float]:
    return [dice.gauss(level, NOISE) for _ in range(count)]


def test_little_is_made_of_noise() -> None:
    for seed in range(20):
        pace, dice = Pace(), random.Random(seed)
        for value in samples(dice, 60, 0.0):
            pace.add(value, NOISE**2)
            assert pace.era or abs(pace.mean) < 0.35
    assert pace.variance < Pace().variance


def test_worker_that_is_throttled_is_noticed_and_so_is_its_recovery() -> None:
    for seed in range(20):
        pace, dice = Pace(), random.Random(seed)
        for level in (0.0, math.log(2), 0.0):
            for value in samples(dice, 40, level):
                pace.add(value, NOISE**2)
            assert pace.mean == pytest.approx(level, abs=0.42), seed
        assert pace.era >= 2


def test_single_outlier_changes_little() -> None:
    pace = Pace()
    for value in [0.0] * 20 + [50.0]:
        pace.add(value, NOISE**2)
    assert pace.era == 0
    assert pace.mean < 0.2


# ------------------------------------------------------------------------------------------------------------- failures


def seen(outcomes: list[tuple[str, str, bool]]) -> Experience:
    """Of kinds on workers of one model, in turn: those that succeed take 10 s, the others 5."""
    beliefs = Beliefs()
    found = Experience(beliefs, 0.2)
    for number, (kind, worker, success) in enumerate(outcomes * 10):
        found.learn(WorkerId(worker), "m", Task(id=TaskId(number + 1), kind=kind), 10.0 if success else 5.0, success)
    beliefs.fit(["a", "b"], [])
    return found


def test_worker_on_which_all_fails_takes_the_blame() -> None:
    found = seen([(kind, worker, worker != "bad") for kind in "ab" for worker in ("good", "bad", "other")])
    assert found.burden("a", "m", WorkerId("good")) < 0.1
    assert found.burden("a", "m", WorkerId("bad")) > 2
    assert found.effort(WorkerId("bad")) > 3 * found.effort(WorkerId("good"))


def test_kind_that_fails_everywhere_takes_the_blame() -> None:
    found = seen([(kind, worker, kind != "bad") for kind in ("good", "bad", "other") for worker in ("v", "w", "x")])
    assert found.burden("good", "m", WorkerId("v")) < 0.2
    assert found.burden("bad", "m", WorkerId("v")) > 2


def test_blame_is_shifted_by_what_is_learned_later() -> None:
    """At first nobody can know whether it is the worker or the kind; once the kind has succeeded elsewhere all can."""
    found = Experience(Beliefs(), 0.2)
    bad, good = WorkerId("bad"), WorkerId("good")
    for _ in range(10):
        found.learn(bad, "m", Task(id=TaskId(1), kind="a"), 5.0, False)
    found.fit()
    at_first = found.risk("a", "m", good), found.risk("b", "m", bad)
    assert at_first[0] == pytest.approx(at_first[1], rel=0.1)
    for _ in range(5):
        found.learn(good, "m", Task(id=TaskId(1), kind="a"), 5.0, True)
        found.fit()
    assert found.risk("a", "m", good) < 0.4 * at_first[0]
    assert found.risk("b", "m", bad) > 1.5 * at_first[1]


def test_quick_failures_cost_little() -> None:
    slow = seen([("a", "w", True), ("a", "w", False)])
    quick = Experience(Beliefs(), 0.2)
    for number in range(20):
        success = number % 2 == 0
        quick.learn(WorkerId("w"), "m", Task(id=TaskId(number + 1), kind="a"), 10.0 if success else 0.1, success)
    assert quick.burden("a", "m", WorkerId("w")) < 0.5 * slow.burden("a", "m", WorkerId("w"))


@pytest.mark.parametrize("failures", [1, 4])
@pytest.mark.parametrize("slow_at", [0, 1, 2, 5, 20])
def test_worker_that_has_failed_all_is_no_better_than_one_that_was_slow_once(failures: int, slow_at: int) -> None:
    """Its failures are quick, so they cost little time; but each costs the task a try."""
    policy = AdaptiveScheduler()
    workers = [WorkerInfo(WorkerId(name)) for name in ("broken", "sound")]
    runs = [("broken", 0.05, False)] * failures + [("sound", 0.6 if i == slow_at else 0.05, True) for i in range(25)]
    for number, (worker, seconds, success) in enumerate(runs):
        policy.record_completion(WorkerId(worker), Task(id=TaskId(number + 1), kind="k"), seconds, success)
        policy.refresh(number)
        if number >= failures:
            assert policy.assign_task(Task(id=TaskId(99), kind="k"), workers) == "sound", number


def test_worker_that_turns_slow_is_still_better_than_one_that_has_failed_all() -> None:
    policy = AdaptiveScheduler()
    workers = [WorkerInfo(WorkerId(name)) for name in ("broken", "sound")]
    runs = [("broken", 0.05, False)] * 10 + [("sound", 0.05 if i < 20 else 0.15, True) for i in range(40)]
    for number, (worker, seconds, success) in enumerate(runs):
        policy.record_completion(WorkerId(worker), Task(id=TaskId(number + 1), kind="k"), seconds, success)
        policy.refresh(number)
    assert policy.experience.slowness(WorkerId("sound")) > 2
    assert policy.assign_task(Task(id=TaskId(99), kind="k"), workers) == "sound"


def troubled() -> Experience:
    """Kinds on workers of which one fails all, one has turned slow; and a kind of which no attempt has succeeded."""
    found = seen([(kind, worker, worker != "bad") for kind in "ab" for worker in ("good", "bad", "other")])
    for _ in range(20):
        found.learn(WorkerId("other"), "m", Task(id=TaskId(1), kind="a"), 30.0, True)
        found.learn(WorkerId("good"), "m", Task(id=TaskId(1), kind="broken"), 5.0, False)
    found.fit()
    return found


def test_what_workers_are_like_outlives_a_restart() -> None:
    before, after = troubled(), Experience(Beliefs(), 0.2)
    learned = before.learned()
    assert len({(one.kind, one.worker) for one in learned}) == len(learned)
    after.recall(learned)
    for worker in map(WorkerId, ("good", "bad", "other", "unseen")):
        assert after.slowness(worker) == pytest.approx(before.slowness(worker), rel=0.01)
        assert after.effort(worker) == pytest.approx(before.effort(worker), rel=0.01)
        for kind in ("a", "b", "broken", "unseen"):
            assert after.shift(kind, worker) == pytest.approx(before.shift(kind, worker), abs=0.01)
            assert after.burden(kind, "m", worker) == pytest.approx(before.burden(kind, "m", worker), rel=0.01)
            assert after.risk(kind, "m", worker) == pytest.approx(before.risk(kind, "m", worker), rel=0.01)
    assert after.slowness(WorkerId("other")) > 2
    assert after.risk("broken", "m", WorkerId("unseen")) > 3, "though it has never succeeded"
    assert [(one.kind, one.worker) for one in after.learned()] == [(one.kind, one.worker) for one in learned]


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0, 1e-320, 1e300])
@pytest.mark.parametrize("field", ["duration", "square", "success", "weight"])
def test_what_was_damaged_in_between_stops_nothing(field: str, value: float) -> None:
    after = Experience(Beliefs(), 0.2)
    after.recall(structs.replace(one, **{field: value}) for one in troubled().learned() if one.worker.startswith("\n"))
    after.learn(WorkerId("bad"), "m", Task(id=TaskId(1), kind="a"), 10.0, True)
    after.fit()
    for worker in map(WorkerId, ("good", "bad", "other")):
        assert 0 < after.expected_s(Task(id=TaskId(1), kind="a"), worker, "m") < math.inf
        assert 0 <= after.risk("a", "m", worker) < 100
        assert 0 < after.capacity(worker) < 1000


# ------------------------------------------------------------------------------------------------------ in the engine

ONE_GPU = TaskRequirements(min_gpus=1, cpus=0)


def good_and_bad(trouble: str, objective: Literal["makespan", "mean_jct"]) -> World:
    """Two workers of one model, of which one takes ten times as long, or fails; the good one runs a task."""
    policy = AdaptiveScheduler(objective=objective)
    world = World(policy)
    world.handle(*(joined(name, gpus=(Gpu(f"GPU-{name}", "big", 1000),)) for name in ("good", "bad")))
    runs = [("good", 10.0, True), ("bad", 10.0, True)] * 20
    runs += [("bad", 100.0, True) if trouble == "slow" else ("bad", 10.0, False)] * 60
    for worker, seconds, success in runs:
        policy.experience.learn(WorkerId(worker), "big", Task(id=TaskId(1), kind="k"), seconds, success)
        policy.beliefs.fit(["k"], [])
    world.wake_in(2)
    (first,) = world.submit(kind="k", requirements=ONE_GPU)
    assert world.where(first) == ["good"]
    world.start(first)
    world.wake_in(2)
    return world


every_objective = pytest.mark.parametrize("objective", ["makespan", "mean_jct"])


@every_objective
@pytest.mark.parametrize("trouble", ["slow", "fails"])
def test_bad_worker_leaves_the_last_task_to_a_good_one_of_its_own_model(
    trouble: str, objective: Literal["makespan", "mean_jct"]
) -> None:
    world = good_and_bad(trouble, objective)
    (last,) = world.submit(kind="k", requirements=ONE_GPU)
    assert world.states(last) == ["queued"]
    told = {one.worker: one.verdict for one in world.engine.explain(world.task(last)).workers}
    assert told[WorkerId("bad")].startswith("left for big, where it ")
    world.finish(1)
    assert world.where(last) == ["good"]


@every_objective
def test_bad_worker_takes_it_where_the_good_one_is_gone(objective: Literal["makespan", "mean_jct"]) -> None:
    world = good_and_bad("slow", objective)
    (last,) = world.submit(kind="k", requirements=ONE_GPU)
    world.handle(ev.WorkerLeft(WorkerId("good")))
    world.wake_in(2)
    assert "bad" in world.where(1, last)


@every_objective
def test_bad_worker_helps_where_much_waits(objective: Literal["makespan", "mean_jct"]) -> None:
    world = good_and_bad("slow", objective)
    many = world.submit(40, kind="k", requirements=ONE_GPU)
    world.wake_in(2)
    assert "bad" in world.where(*many)


def test_no_worker_leaves_a_task_for_itself() -> None:
    """One kind is slow there, so that it would seem better off where it is as slow as any."""
    policy = AdaptiveScheduler()
    world = World(policy)
    world.handle(joined("wide", cpus=4, gpus=(Gpu("GPU-0", "big", 1000), Gpu("GPU-1", "big", 1000))))
    for number in range(300):
        kind, worker = "oooook"[number % 6], ("wide", "gone")[number // 6 % 2]
        seconds = 40.0 if (kind, worker) == ("k", "wide") else 2.0
        policy.experience.learn(WorkerId(worker), "big", Task(id=TaskId(1), kind=kind), seconds, True)
        policy.beliefs.fit(["o", "k"], [])
    policy.experience.fit()
    world.wake_in(2)
    (first,) = world.submit(kind="k", requirements=ONE_GPU)
    world.start(first)
    for _ in range(5):
        world.wake_in(3)
    (last,) = world.submit(kind="k", requirements=ONE_GPU)
    wide = world.worker("wide")
    assert policy.expected_s(world.task(last), wide) > 3 * policy.beliefs.guess("k", "big").mean_s
    assert world.where(last) == ["wide"]


# ------------------------------------------------------------------------------------- beside one that knows the truth

CLUSTER = [
    ClusterRow(count=6, num_gpus=1, gpu_model="A"),
    ClusterRow(count=3, num_gpus=1, gpu_model="A", fail_share=0.8),
    ClusterRow(count=3, num_gpus=1, gpu_model="A", slow_factor=0.5, slow_from_s=2000),
]
LOAD = Load(arrivals="poisson", tasks=500, load=0.45, runtime="lognormal", sigma=0.4, mean_s=100, kinds=3, spread=4)


def run(policy: str, seed: int) -> Run:
    text = f'policy.name = "{settings_name(policy)}"\nretries.error = 1000000\nfailures.quarantine = false'
    return run_under(policy, generate(LOAD, CLUSTER, seed), CLUSTER, parse_settings(text), seed)


def mean_jct(run: Run) -> float:
    """Of all but the first 200 tasks."""
    tasks, first_s = run.trace.tasks, run.trace.tasks[0].submit_s
    flows = [end_s + first_s - task.submit_s for end_s, task in zip(run.finish_s, tasks, strict=True)]
    return fmean(flows[200:])


def beside_the_truth() -> float:
    return median(mean_jct(run("adaptive", seed)) / mean_jct(run("informed", seed)) for seed in range(3))


def test_learner_comes_near_one_that_is_told_the_truth() -> None:
    assert beside_the_truth() < 1.1


def test_it_would_not_if_it_learned_nothing_of_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, nothing in (("shift", 0.0), ("burden", 0.0), ("risk", 0.0), ("effort", 1.0)):
        monkeypatch.setattr(Experience, name, lambda *_, value=nothing: value)
    assert beside_the_truth() > 1.2
