"""adaptive where the mean of all completion times is to be low: the plan, and what becomes of it."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import pytest
from core.builders import World, joined

from schedd.config import parse_settings
from schedd.core.model import Gpu, TaskRequirements, WorkerId
from schedd.core.policies import adaptive
from schedd.core.policies.adaptive import AdaptiveScheduler
from schedd.core.policies.flow import Side, solve
from schedd.simulate.cluster import ClusterRow
from schedd.simulate.contest import Rules, run_under
from schedd.simulate.known import with_all_known
from schedd.simulate.trace import Trace, TraceTask, read_trace

DATA = Path(__file__).parents[3] / "shared" / "data" / "hetero"
ONE_GPU = TaskRequirements(min_gpus=1, cpus=0)
KINDS = {"long": {"big": 100.0, "old": 400.0}, "short": {"big": 10.0, "old": 40.0}}


# ----------------------------------------------------------------------------------------------------------- the plan


def plan(times: list[list[float]], frees: list[list[float]]) -> list[list[int]]:
    """Which of single tasks go to which group."""
    given, _, _ = solve([1] * len(times), times, times, times, frees)
    assert all(sum(row) == 1 for row in given)
    return [[k for k, row in enumerate(given) if row[g]] for g in range(len(frees))]


def total(tasks: list[list[int]], times: list[list[float]], frees: list[list[float]]) -> float:
    """The sum of completion times where each group does its tasks by length, the shortest first."""
    found = 0.0
    for g, free in enumerate(frees):
        ends = list(free)
        for seconds in sorted(times[k][g] for k in tasks[g]):
            first = ends.index(min(ends))
            ends[first] += seconds
            found += ends[first]
    return found


def optimum(times: list[list[float]], frees: list[list[float]]) -> float:
    """The least sum of completion times, by SciPy: a matching of tasks with places from the end of each worker."""
    optimize = pytest.importorskip("scipy.optimize")
    costs = [
        [place * row[g] + free for g, group in enumerate(frees) for free in group for place in range(1, len(times) + 1)]
        for row in times
    ]
    rows, columns = optimize.linear_sum_assignment(costs)
    return float(sum(costs[k][c] for k, c in zip(rows, columns, strict=True)))


def drawn(seed: int, *, busy: bool) -> tuple[list[list[float]], list[list[float]]]:
    rng = random.Random(seed)
    groups = rng.randint(1, 4)
    speeds = [rng.uniform(0.3, 1.0) for _ in range(groups)]
    count = rng.randint(5, 80)
    times = [
        [size * s * rng.uniform(0.7, 1.4) for s in speeds]
        for size in (rng.lognormvariate(5, 1.2) for _ in range(count))
    ]
    frees = [[rng.uniform(0, 300) * busy for _ in range(rng.randint(1, 8))] for _ in speeds]
    return times, frees


@pytest.mark.parametrize("busy", [False, True])
def test_plan_comes_near_the_cheapest_matching(busy: bool) -> None:
    ratios = []
    for seed in range(12):
        times, frees = drawn(seed, busy=busy)
        ratios.append(total(plan(times, frees), times, frees) / optimum(times, frees))
    assert fmean(ratios) < 1.01
    assert max(ratios) < 1.04
    assert min(ratios) > 0.9999, "or the yardstick is wrong"


def test_plan_of_classes_is_that_of_their_tasks() -> None:
    times, frees = drawn(3, busy=True)
    times = times[:6]
    given, _, _ = solve([40] * 6, times, times, times, frees)
    assert all(sum(row) == 40 for row in given)
    apart = [row for row in times for _ in range(40)]
    numbers = [[40 * k + n for k, row in enumerate(given) for n in range(row[g])] for g in range(len(frees))]
    assert total(numbers, apart, frees) < 1.02 * total(plan(apart, frees), apart, frees)


def test_nothing_goes_where_it_cannot_run() -> None:
    inf = float("inf")
    given, _, _ = solve([3, 2], [[inf, 5.0], [inf, inf]], [[inf, 5.0], [inf, inf]], [[0, 0], [0, 0]], [[0.0], [0.0]])
    assert given == [[0, 3], [0, 0]]


def test_last_plan_is_where_the_next_one_begins() -> None:
    times, frees = drawn(5, busy=True)
    first, _, _ = solve([1] * len(times), times, times, times, frees)
    again, _, _ = solve([1] * len(times), times, times, times, frees, first)
    assert sum(a != b for a, b in zip(first, again, strict=True)) <= len(times) // 10


def test_side_counts_as_a_list_would() -> None:
    rng = random.Random(1)
    side, held = Side([0.0, 5.0], 20), list[tuple[int, float]]()
    each = [rng.uniform(1, 9) for _ in range(20)]
    for _ in range(300):
        if held and rng.random() < 0.4:
            place, work = held.pop(rng.randrange(len(held)))
            side.add(place, -1, work)
        else:
            place = rng.randrange(20)
            side.add(place, 2, each[place])
            held += [(place, each[place])] * 2
        at = rng.randrange(20)
        up_to = [work for place, work in sorted(held) if place <= at]
        count, work = side._before(at)
        assert count == len(up_to)
        assert work == pytest.approx(sum(up_to))
        some = rng.randint(0, len(held))
        assert side._first(some) == pytest.approx(sum(work for _, work in sorted(held)[:some]))


# ------------------------------------------------------------------------------------------------------ in the engine


def by_plan(**values: float) -> World:
    policy = AdaptiveScheduler(objective="mean_jct", **values)  # type: ignore[arg-type]
    for kind, times in KINDS.items():
        for model, seconds in times.items():
            for _ in range(30):
                policy.beliefs.add(kind, model, seconds, None)
    policy.beliefs.fit(list(KINDS), [])
    return World(policy)


def come(world: World, *models: str) -> None:
    world.handle(*(joined(f"{m}-{n}", gpus=(Gpu(f"GPU-{n}", m, 1000),)) for n, m in enumerate(models)))


def test_short_tasks_go_first() -> None:
    world = by_plan()
    long, other = world.submit(2, kind="long", requirements=ONE_GPU)
    (short,) = world.submit(kind="short", requirements=ONE_GPU)
    come(world, "big")
    assert world.where(long, other, short) == [None, None, "big-0"]


def test_important_tasks_go_before_short_ones() -> None:
    world = by_plan()
    world.submit(2, kind="short", requirements=ONE_GPU)
    (urgent,) = world.submit(kind="long", priority=1.0, requirements=ONE_GPU)
    come(world, "big")
    assert world.where(urgent) == ["big-0"]


def test_estimates_tell_tasks_of_a_kind_apart() -> None:
    world = World(AdaptiveScheduler(objective="mean_jct"))
    ids = []
    for seconds in (500.0, 30.0, 80.0):
        ids += world.submit(requirements=TaskRequirements(min_gpus=1, cpus=0, estimated_time=seconds))
    come(world, "big")
    assert world.where(*ids) == [None, "big-0", None], "though nothing was ever seen"


def test_task_waits_for_the_faster_where_that_is_better_for_all() -> None:
    world = by_plan()
    come(world, "big", "old")
    first, second = world.submit(2, kind="short", requirements=ONE_GPU)
    assert world.where(first) == ["big-0"]
    world.start(first)
    world.wake_in(2)
    assert world.states(second) == ["queued"]
    told = {one.worker: one.verdict for one in world.engine.explain(world.task(second)).workers}
    assert told[WorkerId("old-1")].startswith("left for big, where it delays all that wait the least")
    world.finish(first)
    assert world.where(second) == ["big-0"]


def test_long_task_is_not_overtaken_for_ever() -> None:
    """It takes 100 s; with a patience of 2 none that comes more than 200 s later goes before it."""
    world = by_plan(patience=2.0)
    come(world, "big")
    (running,) = world.submit(kind="short", requirements=ONE_GPU)
    world.start(running)
    (long,) = world.submit(kind="long", requirements=ONE_GPU)
    waited = 0
    while world.where(long) == [None]:
        (after,) = world.submit(kind="short", requirements=ONE_GPU)
        world.wait(10)
        waited += 10
        world.finish(running)
        if world.where(after) != [None]:
            running = after
            world.start(running)
        assert waited < 1000
    assert 100 < waited <= 230


def test_many_that_wait_hide_nothing_that_is_planned() -> None:
    """Kinds that wait for the fast model are not all asked; what is for CPUs alone goes to them all the same."""
    world = by_plan()
    kinds = [f"k{n}" for n in range(3 * adaptive.REFUSED_MAX)]
    policy = world.engine.policy
    assert isinstance(policy, AdaptiveScheduler)
    for kind in kinds:
        for model, seconds in (("big", 10.0), ("old", 10_000.0)):
            for _ in range(30):
                policy.beliefs.add(kind, model, seconds, None)
    come(world, "big", "old")
    for kind in kinds:
        world.submit(kind=kind, requirements=ONE_GPU)
    (plain,) = world.submit(kind="plain", requirements=TaskRequirements(cpus=1, labels={"site": "b"}))
    assert world.where(plain) == [None]
    world.handle(joined("cpu", cpus=4, labels={"site": "b"}))
    world.wake_in(2)
    world.wake_in(2)
    assert world.where(plain) == ["cpu"]
    world.engine.check()


# -------------------------------------------------------------------------------------------------- real measurements


def test_alternatives_are_no_order_where_it_is_known_what_they_take() -> None:
    """The plan wants the second; a task that was offered to the first alone would wait for ever."""
    either = TaskRequirements(min_gpus=1, gpu_model="old", variants=(TaskRequirements(min_gpus=1, gpu_model="big"),))
    task = TraceTask(0.0, "k", 0.0, either, {"old": 15.0, "big": 6.0})
    cluster = [ClusterRow(num_gpus=1, gpu_model="old"), ClusterRow(num_gpus=1, gpu_model="big")]
    assert mean_jct([task], cluster, "mean_jct") == 6.0


def mean_jct(tasks: Sequence[TraceTask], cluster: Sequence[ClusterRow], objective: str, *, known: bool = True) -> float:
    settings = parse_settings(f'policy.name = "adaptive"\npolicy.adaptive.objective = "{objective}"')
    run = run_under("adaptive", Trace("made", list(tasks)), cluster, settings, rules=Rules(known=known))
    return fmean(end_s - task.submit_s for end_s, task in zip(run.finish_s, run.trace.tasks, strict=True))


@pytest.mark.parametrize("count", [20, 60])
def test_published_optimum_is_reached(count: int) -> None:
    path = DATA / "hydra_light_published.json"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    published = json.loads(path.read_text())
    cluster = [ClusterRow(count=n, num_gpus=1, gpu_model=model) for model, n in published["gpus"].items()]
    least = published["results"]["allox_optimal_mean_jct"][str(count)]["average_jct_seconds"]
    tasks = read_trace(DATA / "hydra_light.csv.gz").tasks[:count]
    assert mean_jct(tasks, cluster, "mean_jct") < 1.02 * least
    assert mean_jct(tasks, cluster, "makespan") > 1.02 * least, "the objective makes no difference"


def test_stream_is_done_sooner_by_the_plan() -> None:
    rng = random.Random(2)
    tasks, at = [], 0.0
    for _ in range(250):
        at += rng.expovariate(1 / 9.0)
        times = KINDS["long" if rng.random() < 0.2 else "short"]
        tasks.append(TraceTask(at, "long" if times is KINDS["long"] else "short", 0.0, ONE_GPU, dict(times)))
    cluster = [ClusterRow(count=2, num_gpus=1, gpu_model=model) for model in ("big", "old")]
    assert mean_jct(tasks, cluster, "mean_jct", known=False) < mean_jct(tasks, cluster, "makespan", known=False)


def test_known_kinds_are_told_by_their_runtimes() -> None:
    tasks = [TraceTask(0.0, "k", 5.0, ONE_GPU), TraceTask(1.0, "k", 7.0, ONE_GPU), TraceTask(2.0, "k", 5.0, ONE_GPU)]
    trace, learned = with_all_known(Trace("made", tasks), [ClusterRow(num_gpus=1, gpu_model="big")])
    assert [task.kind for task in trace.tasks] == ["k 1", "k 2", "k 1"]
    policy = AdaptiveScheduler()
    policy.recall(learned)
    assert policy.beliefs.guess("k 2", "big").mean_s == pytest.approx(7.0, rel=0.2)
