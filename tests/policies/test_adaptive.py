"""The policy that learns: beliefs, prices, and what it makes of them."""

from __future__ import annotations

import math
import random
import statistics
from pathlib import Path
from typing import Any

import msgspec
import pytest
from core.builders import World, joined

from schedd.config import parse_settings
from schedd.core import events as ev
from schedd.core import stats
from schedd.core.model import Gpu, Task, TaskId, TaskRequirements, WorkerId, WorkerInfo
from schedd.core.policies import experience, prices, profiles
from schedd.core.policies.adaptive import AdaptiveScheduler
from schedd.core.policies.beliefs import Beliefs, Guess, LogTimes
from schedd.simulate.bound import lower_bound_s
from schedd.simulate.cluster import ClusterRow
from schedd.simulate.record import Run
from schedd.simulate.run import Simulator
from schedd.simulate.trace import Trace, TraceTask, read_trace

DATA = Path(__file__).parents[3] / "shared" / "data" / "hetero"
KINDS = {"a": {"big": 10.0, "old": 100.0}, "b": {"big": 20.0, "old": 20.0}, "c": {"big": 30.0, "old": 90.0}}


def row(name: str, **values: Any) -> WorkerInfo:
    return WorkerInfo(WorkerId(name), **values)


def task(number: int = 1, kind: str = "", **wants: Any) -> Task:
    return Task(id=TaskId(number), kind=kind, requirements=TaskRequirements(**wants))


# ------------------------------------------------------------------------------------------------------------- prices


def program(work: list[float], seconds: list[list[float]], capacity: list[float]) -> float:
    """The optimum of the same program, by HiGHS."""
    optimize = pytest.importorskip("scipy.optimize")
    classes, groups = len(work), len(capacity)
    pairs = [(k, g) for k in range(classes) for g in range(groups) if seconds[k][g] < math.inf]
    cost = [0.0] * len(pairs) + [1.0]
    within = [[seconds[k][g] if g == group else 0.0 for k, g in pairs] + [-capacity[group]] for group in range(groups)]
    done = [[1.0 if k == kind else 0.0 for k, _ in pairs] + [0.0] for kind in range(classes)]
    return float(optimize.linprog(cost, A_ub=within, b_ub=[0.0] * groups, A_eq=done, b_eq=work).fun)


@pytest.mark.parametrize("seed", range(20))
def test_prices_come_near_the_optimum(seed: int) -> None:
    rng = random.Random(seed)
    classes, groups = rng.randint(1, 30), rng.randint(1, 5)
    work = [float(rng.randint(1, 100)) for _ in range(classes)]
    capacity = [float(rng.randint(1, 20)) for _ in range(groups)]
    seconds = [[math.exp(rng.gauss(5, 1)) for _ in range(groups)] for _ in range(classes)]
    for times in seconds[:3]:
        if groups > 1:
            times[rng.randrange(groups)] = math.inf
    found, value = prices.solve(work, seconds, capacity, None)
    assert sum(p * c for p, c in zip(found, capacity, strict=True)) == pytest.approx(1)
    best = program(work, seconds, capacity)
    assert 0.98 * best <= value <= best * (1 + 1e-9), "a dual value is a bound from below"
    again, better = prices.solve(work, seconds, capacity, found)
    assert value <= better * (1 + 1e-9)
    assert len(again) == groups


def test_prices_of_nothing() -> None:
    assert prices.solve([], [], [2.0, 2.0], None) == ([0.25, 0.25], 0.0)
    assert prices.solve([1.0], [[math.inf, math.inf]], [1.0, 1.0], None)[1] == 0.0


# ------------------------------------------------------------------------------------------------------------ beliefs


def test_nothing_is_known() -> None:
    beliefs = Beliefs()
    assert beliefs.guess("k", "m").mean_s == pytest.approx(math.exp(0.5))
    assert beliefs.guess("k", "m", 60.0).log_s == pytest.approx(math.log(60)), "a user is taken at their word"


def test_a_kind_says_something_of_a_model_where_it_was_not_seen() -> None:
    beliefs = Beliefs()
    for kind, base in (("x", 10.0), ("y", 100.0)):
        for _ in range(50):
            beliefs.add(kind, "fast", base, None)
            beliefs.add(kind, "slow", 4 * base, None)
    for _ in range(50):
        beliefs.add("new", "fast", 30.0, None)
    beliefs.fit(["x", "y", "new"], [])
    assert beliefs.guess("x", "slow").mean_s == pytest.approx(40, rel=0.1)
    assert 60 < beliefs.guess("new", "slow").mean_s < 250
    assert beliefs.guess("new", "slow").doubt > 10 * beliefs.guess("new", "fast").doubt


def test_what_runs_for_long_is_believed_to_be_long() -> None:
    def believed(running: list[tuple[str, str, float, float | None]]) -> float:
        beliefs = Beliefs()
        for seconds in (5.0, 8.0, 12.0):
            beliefs.add("k", "m", seconds, None)
        beliefs.fit(["k"], running)
        return beliefs.guess("k", "m").log_s

    assert believed([("k", "m", 500.0, None)] * 3) > believed([]) + 0.5
    assert believed([("k", "m", 0.01, None)] * 3) == pytest.approx(believed([])), "what has just begun says nothing"


def test_estimates_are_used_where_they_are_good() -> None:
    good, bad = Beliefs(), Beliefs()
    rng = random.Random(1)
    for _ in range(200):
        size = math.exp(rng.gauss(3, 1))
        good.add("k", "m", 5 * size, size)
        bad.add("k", "m", 50.0, size)
    for beliefs in (good, bad):
        beliefs.fit(["k"], [])
    assert good.guess("k", "m", 2.0).mean_s == pytest.approx(10, rel=0.05)
    assert bad.guess("k", "m", 2.0).mean_s == pytest.approx(50, rel=0.05)


def test_what_is_left_of_a_run() -> None:
    sure = Guess(math.log(100), 0.0, 1e-6)
    assert sure.left_s(40) == pytest.approx(60, rel=0.01)
    unsure = Guess(math.log(100), 0.0, 1.0)
    assert unsure.left_s(1000) > unsure.left_s(100) > 0, "the longer it runs, the longer it is believed to be"
    for guess in (sure, unsure, Guess(math.log(100), 0.01, 0.01)):
        late = [guess.left_s(seconds) for seconds in (10_000, 100_000, 1_000_000)]
        assert late == pytest.approx([10_000, 100_000, 1_000_000], rel=0.6), "what hangs does not end in a moment"


def test_what_runtimes_were_in_their_mean_is_kept_as_it_was() -> None:
    """Half of them take 1 s, half 100 s: none has ever taken 300 s, though mean and variance would allow for it."""
    beliefs = Beliefs()
    for i in range(300):
        beliefs.add("k", "m", 100.0 if i % 2 else 1.0, None)
        beliefs.fit(["k"], [])
    guess = beliefs.guess("k", "m")
    assert guess.beyond_s(0, 50.5 / guess.mean_s) == pytest.approx(50.5)
    assert guess.beyond_s(10, 50.5 / guess.mean_s) == pytest.approx(45, rel=0.1)
    assert guess.beyond_s(300, 50.5 / guess.mean_s) == 0
    assert guess.beyond_s(-10, 50.5 / guess.mean_s) == pytest.approx(60.5), "a limit in the past"


def test_models_that_go_together_tell_of_each_other() -> None:
    """Of 20 kinds half are slow on both old models, the others fast on both: a new one is seen on one old model."""
    logs = LogTimes(0.1)
    for kind in range(20):
        for model in ("new", "old", "older"):
            for _ in range(10):
                logs.add(f"k{kind}", model, 3.0 if model == "new" or kind % 2 else 5.0)
    kinds = [f"k{kind}" for kind in range(20)]
    for _ in range(5):
        logs.fit(kinds)
    for _ in range(10):
        logs.add("slow", "new", 3.0)
        logs.add("fast", "new", 3.0)
        logs.add("slow", "old", 5.0)
        logs.add("fast", "old", 3.0)
    (slow, doubt), (fast, _) = logs.believe("slow", "older"), logs.believe("fast", "older")
    assert slow == pytest.approx(5, abs=0.3)
    assert fast == pytest.approx(3, abs=0.3)
    assert doubt < 0.5 * logs.believe("nobody", "older")[1]


def test_more_models_than_are_told_apart() -> None:
    logs = LogTimes(1.0)
    for number in range(3 * profiles.MODELS_MAX):
        logs.add("k", f"m{number}", 1.0)
    logs.fit(["k"])
    mean, variance = logs.believe("k", "m20")
    assert mean == pytest.approx(1.0, abs=0.1)
    assert variance > 0
    assert logs.believe("k", "m21") == logs.believe("k", "m22"), "further ones are taken for one"


# ------------------------------------------------------------------------------------------------------- by the worker


def test_what_seems_peculiar_to_like_workers_is_chance() -> None:
    """Runtimes vary by a factor of ten or so: what a worker happened to get says nothing about it."""
    policy, dice = AdaptiveScheduler(), random.Random(1)
    for i in range(1200):
        policy.record_completion(WorkerId(f"w{i % 30}"), task(kind="k"), math.exp(dice.gauss(3, 1.2)), success=True)
    policy.refresh(0)
    times = [policy.expected_s(task(kind="k"), row(f"w{i}")) for i in range(30)]
    assert max(times) < 1.3 * min(times)


def test_one_throttled_worker_among_many_is_known() -> None:
    """However alike all others are, that one is three times as slow is no chance."""
    policy, dice = AdaptiveScheduler(), random.Random(1)
    for i in range(2000):
        seconds = (3.0 if i % 100 == 7 else 1.0) * math.exp(dice.gauss(3, 0.3))
        policy.record_completion(WorkerId(f"w{i % 100}"), task(kind="k"), seconds, success=True)
    policy.refresh(0)
    times = [policy.expected_s(task(kind="k"), row(f"w{i}")) for i in range(100)]
    assert times[7] > 2.5 * statistics.median(times)


def test_adaptive_prefers_the_faster() -> None:
    policy = AdaptiveScheduler()
    workers = [row("slow"), row("fast")]
    for worker, duration in (("slow", 10.0), ("fast", 1.0)):
        policy.record_completion(WorkerId(worker), task(kind="k"), duration, success=True)
    policy.refresh(0)
    assert policy.assign_task(task(kind="k"), workers) == "fast"


def test_adaptive_prefers_the_more_successful() -> None:
    policy = AdaptiveScheduler()
    for worker, success in (("bad", False), ("good", True)):
        for _ in range(5):
            policy.record_completion(WorkerId(worker), task(kind="k"), 1.0, success)
    policy.refresh(0)
    assert policy.assign_task(task(kind="k"), [row("bad"), row("good")]) == "good"
    seen = policy.stats("k", WorkerId("bad"))
    assert seen is not None
    assert (seen.total_tasks, seen.success_rate) == (5, 0.0)
    assert policy.stats("other", WorkerId("bad")) is None


def test_adaptive_tells_kinds_apart() -> None:
    policy = AdaptiveScheduler()
    for kind, worker, duration in (("a", "w1", 1), ("a", "w2", 9), ("b", "w1", 9), ("b", "w2", 1)):
        policy.record_completion(WorkerId(worker), task(kind=kind), duration, success=True)
    workers = [row("w1"), row("w2")]
    assert policy.assign_task(task(kind="a"), workers) == "w1"
    assert policy.assign_task(task(kind="b"), workers) == "w2"


def test_each_of_like_workers_is_tried() -> None:
    policy = AdaptiveScheduler()
    workers = [row("slow"), row("fast")]
    policy.record_completion(WorkerId("slow"), task(kind="k"), 0.4, success=True)
    assert policy.assign_task(task(kind="k"), workers) == "fast"
    policy.record_completion(WorkerId("fast"), task(kind="k"), 0.1, success=True)
    assert policy.assign_task(task(kind="k"), workers) == "fast"
    policy.record_completion(WorkerId("slow"), task(kind="k"), 0.01, success=True)
    assert policy.assign_task(task(kind="k"), workers) == "slow"


def test_adaptive_notices_a_worker_that_is_throttled() -> None:
    policy = AdaptiveScheduler()
    workers = [row("w1"), row("w2")]
    for seconds in (10.0, 30.0):
        for _ in range(30):
            policy.record_completion(WorkerId("w1"), task(kind="k"), seconds, success=True)
            policy.record_completion(WorkerId("w2"), task(kind="k"), 15.0, success=True)
        policy.refresh(0)
        assert policy.assign_task(task(kind="k"), workers) == ("w1" if seconds == 10.0 else "w2")


def test_adaptive_refuses_impossible_durations() -> None:
    with pytest.raises(ValueError, match="duration"):
        AdaptiveScheduler().record_completion(WorkerId("w"), task(), float("nan"), success=True)


def test_adaptive_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experience, "ROWS_MAX", 2)
    policy = AdaptiveScheduler()
    for kind in ("a", "b", "a", "c"):
        policy.record_completion(WorkerId(f"w-{kind}"), task(kind=kind), 1.0, success=True)
    policy.refresh(0)
    assert policy.stats("b", WorkerId("w-b")) is None
    assert policy.stats("a", WorkerId("w-a")) is not None
    seen = policy.experience
    for table in (seen._pairs, seen._tries, seen._workers):
        assert len(table) == 2


# ----------------------------------------------------------------------------------------------------- over a restart


def test_adaptive_goes_on_from_what_it_has_learned() -> None:
    before, after = AdaptiveScheduler(), AdaptiveScheduler()
    for kind, seconds, success in (("a", 1.0, True), ("a", 3.0, False), ("a", 2.0, True), ("b", 7.0, True)):
        before.record_completion(WorkerId("w1"), task(kind=kind, estimated_time=2.0), seconds, success)
    before.refresh(0)
    learned = before.learned()
    after.recall(learned)
    assert after.is_stale(10**18), "it is used from the first placement on"
    for kind in "ab":
        assert after.beliefs.guess(kind, "").mean_s == pytest.approx(before.beliefs.guess(kind, "").mean_s, rel=0.1)
        assert after.stats(kind, WorkerId("w1")) is not None
    assert {one.kind: one.success for one in after.believed()}["a"] == pytest.approx(2 / 3, abs=0.02)
    assert [one.kind for one in after.learned()] == [one.kind for one in learned]


def test_what_was_learned_by_an_earlier_version_is_taken_in() -> None:
    policy = AdaptiveScheduler()
    policy.recall([stats.Learned("k", "w1", 1.0, 1.0, 1.0, 1.0, 3)])
    seen = policy.stats("k", WorkerId("w1"))
    assert seen is not None
    assert seen.total_tasks == 3


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0, 0.0])
def test_damaged_cells_are_left_out(value: float) -> None:
    policy = AdaptiveScheduler()
    policy.recall([stats.Learned("k", "\nm", value, 1.0, 1.0, value, 3)])
    assert math.isfinite(policy.beliefs.guess("k", "m").mean_s)


@pytest.mark.parametrize("value", [-1e300, 1e300])
def test_absurd_cells_stop_nothing(value: float) -> None:
    policy = AdaptiveScheduler()
    policy.recall([stats.Learned("k", "\n", value, 1.0, 1.0, 1.0, 3)])
    policy.refresh(0)
    assert math.isfinite(policy.score(task(kind="k"), row("w")))
    policy.record_completion(WorkerId("w"), task(kind="k"), 1.0, success=True)
    policy.refresh(0)
    assert math.isfinite(policy.score(task(kind="k"), row("w")))


def test_adaptive_writes_down_the_last_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "LEARNED_MAX", 2)
    policy = AdaptiveScheduler()
    for kind in "abca":
        policy.record_completion(WorkerId("w"), task(kind=kind), 1.0, True)
    pairs = [(one.kind, one.worker, one.total) for one in policy.learned() if one.worker == "w"]
    assert pairs == [("c", "w", 1), ("a", "w", 2)]


# ------------------------------------------------------------------------------------------------------ in the engine


def test_adaptive_learns_in_the_engine() -> None:
    world = World("adaptive")
    world.handle(joined("slow"), joined("fast"))
    for _ in range(6):
        (i,) = world.submit(kind="k")
        world.start(i)
        world.wait(5 if world.where(i) == ["slow"] else 1)
        world.finish(i)
    (last,) = world.submit(kind="k")
    assert world.where(last) == ["fast"]
    assert world.engine.next_deadline() is not None
    world.start(last)
    world.finish(last)
    world.wake_in(2)
    assert ("refresh", 0) not in world.engine._t.deadlines, "nothing waits and nothing is new"


def test_what_it_believes_is_told() -> None:
    world = World("adaptive")
    taught(world)
    (first, *_) = world.engine.believed()
    assert (first.kind, first.model, round(first.samples)) == ("a", "big", 28)
    assert first.low_s < first.mean_s < first.high_s
    plain = World("fifo")
    plain.join()
    (i,) = plain.submit(kind="k")
    plain.start(i)
    plain.wait(3)
    plain.finish(i)
    assert [(one.kind, one.model, one.samples) for one in plain.engine.believed()] == [("k", "", 1)]


def two_models(world: World) -> None:
    world.handle(
        joined("big", gpus=(Gpu("GPU-0", "big", 1000),)),
        joined("old", gpus=(Gpu("GPU-1", "old", 1000),)),
    )


def taught(world: World) -> AdaptiveScheduler:
    """It has seen much of each kind on each model."""
    policy = world.engine.policy
    assert isinstance(policy, AdaptiveScheduler)
    for kind, times in KINDS.items():
        for model, seconds in times.items():
            for _ in range(30):
                policy.beliefs.add(kind, model, seconds, None)
    policy.beliefs.fit(list(KINDS), [])
    return policy


ONE_GPU = TaskRequirements(min_gpus=1, cpus=0)


def test_each_model_does_what_it_is_comparatively_good_at() -> None:
    """`b` is the only kind that the old model does as fast; it comes last in the queue, and all the same goes there."""
    world = World("adaptive")
    taught(world)
    for kind in "cab":
        world.submit(15, kind=kind, requirements=ONE_GPU)
    two_models(world)
    placed = {world.where(i)[0]: world.task(i).kind for i in range(1, 46) if world.where(i) != [None]}
    assert placed == {"big": "a", "old": "b"}


@pytest.mark.parametrize("beside", [[], [TaskRequirements(cpus=8)]], ids=["devices alone", "beside what needs none"])
def test_advantage_counts_for_what_was_set_aside_too(beside: list[TaskRequirements]) -> None:
    """The CPUs of the workers are free, so they are asked again and again, and each class waits for a device."""
    world = World("adaptive")
    taught(world)
    world.handle(
        joined("big", cpus=8, gpus=(Gpu("GPU-0", "big", 1000),)),
        joined("old", cpus=8, gpus=(Gpu("GPU-1", "old", 1000),)),
    )
    one_gpu = TaskRequirements(min_gpus=1)
    busy = world.submit(2, kind="c", requirements=one_gpu)
    world.start(*busy)
    for kind in "cab":
        world.submit(5, kind=kind, requirements=one_gpu)
    for wants in beside:
        world.submit(kind="whole", requirements=wants)
    world.wake_in(10)  # the beliefs are brought up to date
    on_old = next(task_id for task_id in busy if world.where(task_id) == ["old"])
    world.finish(on_old)
    assert [task.kind for task in world.worker("old").running.values()] == ["b"]


def test_slow_worker_does_not_take_the_last_task() -> None:
    world = World("adaptive")
    policy = taught(world)
    two_models(world)
    (first,) = world.submit(kind="a", requirements=ONE_GPU)
    assert world.where(first) == ["big"]
    world.start(first)
    world.wake_in(2)
    (last,) = world.submit(kind="a", requirements=ONE_GPU)
    assert world.states(last) == ["queued"]
    better = policy.better_elsewhere(world.task(last), world.worker("old"), world.now)
    assert better is not None
    assert better.model == "big"
    assert better.runtime_s == pytest.approx(10, rel=0.1)
    told = world.engine.explain(world.task(last))
    verdicts = {verdict.worker: verdict.verdict for verdict in told.workers}
    assert verdicts[WorkerId("old")].startswith("left for big, where it is less likely to outlast all else (there 10.")
    world.finish(first)
    assert world.where(last) == ["big"]


def test_task_is_not_left_for_a_worker_that_could_not_run_it() -> None:
    """The like of which, by its model and size, can."""
    world = World("adaptive", lease_ns=1 << 62)
    taught(world)
    world.handle(
        joined("here", gpus=(Gpu("GPU-0", "big", 1000),), labels={"data": "1"}),
        joined("bare", gpus=(Gpu("GPU-1", "big", 1000),)),
        joined("old", gpus=(Gpu("GPU-2", "old", 1000),), labels={"data": "1"}),
    )
    (hangs,) = world.submit(kind="a", min_gpus=1, cpus=0, gpu_model="big", labels={"data": "1"})
    world.start(hangs)
    world.wake_in(100)
    (other,) = world.submit(kind="a", min_gpus=1, cpus=0, gpu_model="big")
    assert world.where(hangs, other) == ["here", "bare"]
    world.start(other)
    world.wake_in(2)
    (last,) = world.submit(kind="a", min_gpus=1, cpus=0, labels={"data": "1"})
    assert world.where(last) == ["old"]


def test_task_that_was_left_is_looked_at_again_though_its_worker_is_busy() -> None:
    """All devices there are taken; it needs none."""
    world = World("adaptive", lease_ns=1 << 62)
    policy = world.engine.policy
    assert isinstance(policy, AdaptiveScheduler)
    for kind, times in {"cpu": (300.0, 3000.0), "gpu": (2000.0, 2000.0)}.items():
        for model, seconds in zip(("big", "old"), times, strict=True):
            for _ in range(30):
                policy.beliefs.add(kind, model, seconds, None)
    world.handle(
        joined("big", cpus=1, gpus=(Gpu("GPU-0", "big", 1000),)),
        joined("old", cpus=8, gpus=(Gpu("GPU-1", "old", 1000),), labels={"it": "1"}),
    )
    (gpu,) = world.submit(kind="gpu", min_gpus=1, labels={"it": "1"})
    (first,) = world.submit(kind="cpu")
    world.start(gpu, first)
    world.wake_in(65)
    (second,) = world.submit(kind="cpu")
    assert world.where(gpu, first, second) == ["old", "big", None]
    for _ in range(500):  # the first goes on and on
        world.wake_in(10)
    assert world.where(second) == ["old"]


def test_scores_of_a_class_do_not_depend_on_the_estimate_of_one_task() -> None:
    """They are kept: what one worker got for a short task and another for a long one would be compared."""
    policy = AdaptiveScheduler()
    for number in range(60):
        for model, factor in (("big", 1.0), ("old", 10.0)):
            policy.beliefs.add("train", model, factor * 10.0 ** (number % 5), 10.0 ** (number % 5))
    world = World(policy)
    world.handle(
        joined("old", cpus=4, gpus=(Gpu("GPU-0", "old", 1000),)),
        *(joined(f"big{n}", cpus=4, gpus=(Gpu(f"GPU-{n}", "big", 1000),)) for n in (1, 2)),
    )

    def one(estimate_s: float) -> TaskId:
        return world.submit(kind="train", min_gpus=1, estimated_time=estimate_s)[0]

    first = one(0.5)
    world.start(first)
    world.wait(0.05)
    second = one(3600.0)
    world.start(second)
    world.wait(0.5)
    world.finish(first)
    third = one(3600.0)
    assert world.where(second, third) == ["big2", "big1"]


def test_slow_worker_takes_it_when_the_fast_one_is_gone() -> None:
    world = World("adaptive")
    taught(world)
    two_models(world)
    (first,) = world.submit(kind="a", requirements=ONE_GPU)
    world.start(first)
    world.wake_in(2)
    (last,) = world.submit(kind="a", requirements=ONE_GPU)
    world.handle(ev.WorkerLeft(WorkerId("big")))
    world.wake_in(2)
    assert "old" in world.where(first, last)


def test_slow_worker_takes_it_when_the_fast_one_goes_on_and_on() -> None:
    world = World("adaptive")
    taught(world)
    two_models(world)
    (first,) = world.submit(kind="a", requirements=ONE_GPU)
    world.start(first)
    (last,) = world.submit(kind="a", requirements=ONE_GPU)
    for _ in range(200):
        world.wake_in(2)
        if world.where(last) != [None]:
            break
    assert world.where(last) == ["old"]


def test_slow_worker_does_not_wait_for_one_that_hangs() -> None:
    """However sure it is of what the kind takes, and however much longer than that it has been."""
    world = World("adaptive", lease_ns=1 << 62)
    taught(world)
    two_models(world)
    (hangs,) = world.submit(kind="a", requirements=ONE_GPU)
    world.start(hangs)
    world.wake_in(60)
    (last,) = world.submit(kind="a", requirements=ONE_GPU)
    for _ in range(100):
        if world.where(last) == ["old"]:
            break
        world.wake_in(2)
    assert world.where(hangs, last) == ["big", "old"]


@pytest.mark.parametrize(("patience", "best"), [(20.0, "a"), (3.0, "c")])
def test_advantage_goes_before_waiting_only_for_so_long(patience: float, best: str) -> None:
    """The big model is better at `a`, but `c`, which takes it 30 s, has waited for 100 s when the others come."""
    world = World(AdaptiveScheduler(patience=patience))
    taught(world)
    world.submit(15, kind="c", requirements=ONE_GPU)
    world.wait(100)
    for kind in "ab":
        world.submit(15, kind=kind, requirements=ONE_GPU)
    two_models(world)
    (placed,) = world.worker("big").running.values()
    assert placed.kind == best


def test_idle_workers_take_all_where_it_is_not_to_spare() -> None:
    world = World(AdaptiveScheduler(spare_slow=False))
    taught(world)
    two_models(world)
    first, last = world.submit(2, kind="a", requirements=ONE_GPU)
    assert set(world.where(first, last)) == {"big", "old"}


def test_importance_goes_before_advantage() -> None:
    world = World("adaptive")
    taught(world)
    world.submit(5, kind="b", requirements=ONE_GPU)
    (urgent,) = world.submit(kind="c", priority=1.0, requirements=ONE_GPU)
    world.handle(joined("old", gpus=(Gpu("GPU-1", "old", 1000),)), joined("big", gpus=(Gpu("GPU-0", "big", 1000),)))
    assert world.where(urgent) != [None], "whatever else would be better there"


# -------------------------------------------------------------------------------------------------- real measurements


def bag(name: str, count: int, seed: int, *, hints: bool = False) -> tuple[Trace, list[ClusterRow]]:
    path = DATA / f"{name}.csv.gz"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    tasks = list(read_trace(path).tasks)
    if hints:
        model = next(iter(tasks[0].runtimes))
        wants = (TaskRequirements(min_gpus=1, estimated_time=one.runtimes[model]) for one in tasks)
        tasks = [msgspec.structs.replace(one, requirements=want) for one, want in zip(tasks, wants, strict=True)]
    random.Random(seed).shuffle(tasks)
    models = sorted(tasks[0].runtimes)
    return Trace("bag", tasks[:count]), [ClusterRow(count=4, num_gpus=1, gpu_model=model) for model in models]


def simulated(trace: Trace, cluster: list[ClusterRow], policy: str) -> Run:
    return Simulator(trace, cluster, parse_settings(f'policy.name = "{policy}"')).run()


def test_bag_of_measured_speeds_ends_much_sooner_than_under_fifo() -> None:
    trace, cluster = bag("bag_gavel", 800, 1)
    bound = lower_bound_s(trace, cluster)
    assert bound is not None
    fifo, learning = (max(simulated(trace, cluster, policy).finish_s) / bound for policy in ("fifo", "adaptive"))
    assert learning < 1 + 0.75 * (fifo - 1), (fifo, learning)


def test_spare_cpus_beside_the_devices_change_nothing() -> None:
    """A worker whose devices are taken has no more to offer for having CPUs left."""
    trace, cluster = bag("bag_gavel", 400, 1)
    found = [simulated(trace, [msgspec.structs.replace(row, cpus=n) for row in cluster], "adaptive") for n in (1, 8)]
    assert found[0].finish_s == found[1].finish_s
    assert found[0].where == found[1].where


def test_bag_with_estimates_ends_near_the_bound() -> None:
    trace, cluster = bag("bag_gavel", 800, 1, hints=True)
    bound = lower_bound_s(trace, cluster)
    assert bound is not None
    assert max(simulated(trace, cluster, "adaptive").finish_s) / bound < 1.2


def test_bag_of_like_devices_is_not_made_worse() -> None:
    trace, cluster = bag("bag_nb201", 600, 2)
    fifo, learning = (max(simulated(trace, cluster, policy).finish_s) for policy in ("fifo", "adaptive"))
    assert learning < 1.02 * fifo


def test_same_run_twice() -> None:
    tasks = [TraceTask(0.0, kind, 0.0, ONE_GPU, dict(KINDS[kind])) for kind in "abc" * 20]
    cluster = [ClusterRow(count=2, num_gpus=1, gpu_model=model) for model in ("big", "old")]
    first, second = (simulated(Trace("made", tasks), cluster, "adaptive") for _ in range(2))
    assert first.finish_s == second.finish_s
    assert first.where == second.where
