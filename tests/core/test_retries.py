"""Which attempts count, how often a task is tried again after each cause, and what it asks for then."""

from __future__ import annotations

from typing import Any

import pytest

from schedd.core import effects as fx
from schedd.core import events as ev
from schedd.core.model import SECOND, Cause, Task, TaskId, TaskRequirements, TaskRules, WorkerResources
from schedd.core.retries import LIMITED, RetryRules, blame, count_of, own_limit

from .builders import START, World, dispatches, of, selection

NO_PAUSE: dict[str, Any] = {"retry_delay_s": 0.0}


def fail(world: World, cause: Cause, message: str = "it broke") -> fx.Effects:
    """End the attempt of task 1, and let its pause pass."""
    effects = world.finish(1, cause=cause, message=message)
    world.wake()
    return effects


def tries(world: World, cause: Cause, **rules: Any) -> int:
    """How many attempts of a task there are if each ends like this."""
    world.join()
    world.submit(rules=TaskRules(**NO_PAUSE, **rules))
    while not world.state(1).is_final:
        fail(world, cause)
    assert world.states(1) == ["failed"]
    return len(world.task(1).attempts)


# -------------------------------------------------------------------------------------------------------------- limits


@pytest.mark.parametrize(
    ("cause", "attempts"), [(Cause.ERROR, 1), (Cause.TIMEOUT, 1), (Cause.LOST, 4), (Cause.REJECTED, 4)]
)
def test_limits_as_they_come(cause: Cause, attempts: int) -> None:
    """What a task does wrong is not repeated unasked; what befalls it is, three times."""
    assert tries(World(), cause) == attempts


@pytest.mark.parametrize("cause", LIMITED)
def test_limit_of_the_configuration(cause: Cause) -> None:
    world = World(retries=RetryRules(**{each.value: 2 if each is cause else 0 for each in LIMITED}))
    world.join(ram_gb=100, num_gpus=1, gpu_memory_gb=100)
    world.submit(rules=TaskRules(**NO_PAUSE), ram=1, min_gpus=0.5, min_memory=1)
    while not world.state(1).is_final:
        fail(world, cause)
    assert len(world.task(1).attempts) == 3


@pytest.mark.parametrize(
    ("field", "cause"),
    [
        ("retries", Cause.ERROR),
        ("retries", Cause.TIMEOUT),
        ("timeout_limit", Cause.TIMEOUT),
        ("oom_limit", Cause.OOM_HOST),
        ("oom_limit", Cause.OOM_GPU),
        ("lost_limit", Cause.LOST),
        ("rejected_limit", Cause.REJECTED),
    ],
)
@pytest.mark.parametrize("limit", [0, 1, 5])
def test_limit_of_the_task(field: str, cause: Cause, limit: int) -> None:
    everything = RetryRules(**{c.value: 3 for c in LIMITED})
    assert tries(World(retries=everything), cause, **{field: limit}) == limit + 1


def test_timeouts_have_their_own_limit_where_the_task_gives_one() -> None:
    rules = TaskRules(retries=5, timeout_limit=0)
    assert (own_limit(Cause.ERROR, rules), own_limit(Cause.TIMEOUT, rules)) == (5, 0)
    assert own_limit(Cause.LOST, rules) is None


def test_each_cause_counts_by_itself() -> None:
    world = World(retries=RetryRules(error=1, timeout=1, lost=1, rejected=1))
    world.join()
    world.submit(rules=TaskRules(**NO_PAUSE))
    for cause in (Cause.ERROR, Cause.TIMEOUT, Cause.LOST, Cause.REJECTED):
        fail(world, cause)
        assert world.states(1) == ["assigned"]
    fail(world, Cause.LOST)
    assert world.states(1) == ["failed"]


def test_one_limit_for_two_causes_counts_both() -> None:
    """`--retries 2` is two more tries, whatever goes wrong in them."""
    task = Task(id=TaskId(1), rules=TaskRules(retries=2))
    for cause in (Cause.ERROR, Cause.TIMEOUT, Cause.LOST, Cause.OK, Cause.PREEMPTED, Cause.CANCELLED):
        blame(task, cause)
    assert [count_of(task, cause) for cause in (Cause.ERROR, Cause.TIMEOUT, Cause.LOST)] == [2, 2, 1]
    task.rules = TaskRules(retries=2, timeout_limit=2)
    assert [count_of(task, cause) for cause in (Cause.ERROR, Cause.TIMEOUT)] == [1, 1]


def test_pauses_of_the_configuration() -> None:
    rules = RetryRules(delay_s=2, delay_max_s=10)
    assert [rules.span_s(TaskRules(), n) for n in (1, 2, 3, 4, 1000)] == [2, 4, 8, 10, 10]
    assert rules.span_s(TaskRules(retry_delay_s=1, retry_delay_max_s=3), 9) == 3


# -------------------------------------------------------------------------------------------------------- lost workers


def test_last_words_of_a_task_that_lost_its_workers() -> None:
    """Which workers, when, and how long it had run there."""
    world = World()
    world.submit(rules=TaskRules(lost_limit=1))
    for name in ("w1", "w2"):
        world.join(name)
        world.start(1)
        world.wait(1.5)
        world.handle(ev.WorkerDisconnected(name))  # type: ignore[arg-type]
        world.wake_in(40)
    ended = world.task(1).attempts[-1]
    assert ended.message == (
        "worker w2 was lost: silent for too long (lost 2 times, the limit is reached: "
        "with w1 at 00:17:21 UTC, 41.5 s after its start; with w2 at 00:18:03 UTC, 41.5 s after its start)"
    )
    assert world.engine.explain(world.task(1)).summary == f"failed: {ended.message}"


def test_task_that_kills_its_worker_before_it_is_said_to_have_started() -> None:
    """The connection ended; what held a reservation there may have run, what lay in the backlog did not."""
    world = World("load_balancing")
    world.join()
    world.submit(2)
    world.handle(ev.WorkerDisconnected("w1"))  # type: ignore[arg-type]
    world.wake_in(40)
    assert [world.task(i).blamed for i in (1, 2)] == [{Cause.LOST: 1}, None]
    (record,) = world.task(1).attempts
    assert record.started_at_ns == 0
    assert record.message.endswith("before it said that the attempt had started")
    assert not world.task(2).attempts


def test_it_is_blamed_when_the_worker_comes_back_at_once_too() -> None:
    world = World()
    world.submit(rules=TaskRules(lost_limit=1))
    for run in ("a", "b", "c"):
        world.join(run=run)
    assert world.states(1) == ["failed"]
    assert "with w1 at 00:16:40 UTC, before it was said to have started" in world.task(1).attempts[-1].message


@pytest.mark.parametrize("disconnected_later", [False, True])
def test_what_a_silent_worker_may_never_have_got_is_not_blamed(disconnected_later: bool) -> None:
    world = World()
    world.join()
    world.wait(19)
    world.submit()
    world.wake_in(1)
    assert world.worker().status == "unreachable"
    if disconnected_later:
        world.handle(ev.WorkerDisconnected("w1"))  # type: ignore[arg-type]
    world.wake_in(40)
    assert world.states(1) == ["queued"]
    assert (world.task(1).blamed, world.task(1).attempts) == (None, ())


def test_connection_that_ends_long_after_the_dispatch() -> None:
    """So it does where the network is cut: the keep-alives of TCP notice before the lease is over."""
    world = World()
    world.join()
    world.submit()
    world.wait(10)
    world.handle(ev.WorkerDisconnected("w1"))  # type: ignore[arg-type]
    world.wake_in(40)
    assert (world.states(1), world.task(1).blamed) == (["queued"], None)


def test_silence_after_an_earlier_disconnect_is_silence() -> None:
    world = World()
    world.join()
    world.handle(ev.WorkerDisconnected("w1"))  # type: ignore[arg-type]
    world.join()
    world.submit()
    world.wake_in(20)
    world.wake_in(40)
    assert world.task(1).blamed is None


def test_nobody_is_blamed_for_a_worker_that_left() -> None:
    world = World()
    world.join()
    world.submit()
    world.handle(ev.WorkerLeft("w1"))  # type: ignore[arg-type]
    assert world.task(1).blamed is None


# ------------------------------------------------------------------------------------------------------ out of memory


def oom(world: World, cause: Cause = Cause.OOM_GPU) -> str:
    """Let the attempt of task 1 run out of memory; returns what is said of it."""
    fail(world, cause, "out of memory")
    return world.task(1).attempts[-1].message


def test_next_attempt_asks_for_more_gpu_memory() -> None:
    world = World()
    world.join("small", num_gpus=1, gpu_memory_gb=8)
    world.join("big", num_gpus=1, gpu_memory_gb=40)
    world.submit(rules=TaskRules(**NO_PAUSE), min_gpus=1, min_memory=6)
    assert world.where(1) == ["small"]
    first = world.task(1).request
    effects = world.finish(1, cause=Cause.OOM_GPU, message="out of memory")
    (changed,) = of(effects.facts, fx.TaskChanged)
    assert changed.requirements == TaskRequirements(min_gpus=1, min_memory=12)
    assert changed.defined_ns == world.now
    world.wake()
    assert world.task(1).request is not first
    assert world.where(1) == ["big"]
    assert world.task(1).attempts[0].message == (
        "out of memory; the next attempt asks for 12 GB of GPU memory, after 8 GB"
    )


def test_share_of_a_device_grows_from_what_it_asked_for() -> None:
    world = World()
    world.join(num_gpus=1, gpu_memory_gb=40)
    world.submit(rules=TaskRules(**NO_PAUSE), min_gpus=0.25, min_memory=8)
    assert "asks for 12 GB of GPU memory, after 8 GB" in oom(world)
    assert "asks for 18 GB of GPU memory, after 12 GB" in oom(world)
    assert oom(world).endswith("(3 attempts ended like this, the limit is reached)")
    assert world.states(1) == ["failed"]


def test_share_of_a_device_that_asked_for_no_memory() -> None:
    world = World()
    world.join(num_gpus=1, gpu_memory_gb=40)
    world.submit(rules=TaskRules(**NO_PAUSE), min_gpus=0.25)
    assert "asks for 15 GB of GPU memory, after 10 GB" in oom(world)


def test_growth_ends_at_the_largest_device() -> None:
    world = World()
    world.join("small", num_gpus=1, gpu_memory_gb=16)
    world.join("big", num_gpus=1, gpu_memory_gb=20, cpus=2)
    world.join("no cpu for it", num_gpus=1, gpu_memory_gb=80, cpus=0.5)
    world.submit(rules=TaskRules(**NO_PAUSE), min_gpus=1)
    assert "asks for 20 GB of GPU memory, after 16 GB" in oom(world)
    assert world.where(1) == ["big"]
    assert oom(world) == "out of memory; another attempt could ask for nothing else"
    assert world.states(1) == ["failed"]


def test_several_devices_are_as_good_as_the_smallest() -> None:
    world = World()
    world.join("mixed", num_gpus=3, gpus=(), gpu_memory_gb=8, cpus=4)
    world.submit(rules=TaskRules(**NO_PAUSE), min_gpus=2)
    assert oom(world) == "out of memory; another attempt could ask for nothing else"


def test_retry_that_the_task_asks_for_is_done_in_any_case() -> None:
    world = World()
    world.join(num_gpus=1, gpu_memory_gb=8)
    world.submit(rules=TaskRules(**NO_PAUSE, oom_limit=1), min_gpus=1)
    assert oom(world) == "out of memory"
    assert world.states(1) == ["assigned"]
    oom(world)
    assert world.states(1) == ["failed"]


def test_ram_grows_after_oom_host() -> None:
    world = World()
    world.join("small", ram_gb=4)
    world.join("big", ram_gb=5)
    world.submit(rules=TaskRules(**NO_PAUSE), ram=4)
    assert "asks for 5 GB of RAM, after 4 GB" in oom(world, Cause.OOM_HOST)
    assert world.where(1) == ["big"]
    assert world.task(1).requirements == TaskRequirements(ram=5)


def test_task_that_said_nothing_of_its_ram_fails_at_once() -> None:
    world = World()
    world.join(ram_gb=64)
    world.submit()
    oom(world, Cause.OOM_HOST)
    assert world.states(1) == ["failed"]


def test_growth_of_the_task() -> None:
    world = World()
    world.join(ram_gb=64)
    world.submit(rules=TaskRules(**NO_PAUSE, memory_growth=4), ram=1)
    assert "asks for 4 GB of RAM" in oom(world, Cause.OOM_HOST)


def test_next_variant_where_nobody_has_more() -> None:
    wants = TaskRequirements(min_gpus=1, variants=(TaskRequirements(cpus=4), TaskRequirements(cpus=2)))
    world = World()
    world.join(cpus=4, num_gpus=1, gpu_memory_gb=8)
    world.submit(rules=TaskRules(**NO_PAUSE), requirements=wants)
    assert oom(world) == (
        "out of memory; no worker has more memory for this variant: the next attempt is of another one"
    )
    assert world.task(1).requirements == TaskRequirements(cpus=4, variants=(TaskRequirements(cpus=2),))
    assert world.worker().ledger.free_cpus == 0  # type: ignore[union-attr]
    oom(world, Cause.OOM_HOST)
    assert world.task(1).requirements == TaskRequirements(cpus=2)
    world.finish(1)
    assert world.states(1) == ["succeeded"]


def test_only_the_variant_that_failed_grows() -> None:
    wants = TaskRequirements(cpus=8, ram=2, variants=(TaskRequirements(ram=2),))
    world = World()
    world.join(cpus=1, ram_gb=9)
    world.submit(rules=TaskRules(**NO_PAUSE), requirements=wants)
    oom(world, Cause.OOM_HOST)
    assert world.task(1).requirements == TaskRequirements(cpus=8, ram=2, variants=(TaskRequirements(ram=3),))


def test_no_growth_means_the_next_variant_at_once() -> None:
    world = World(retries=RetryRules(memory_growth=1))
    world.join(ram_gb=64)
    wants = TaskRequirements(ram=2, variants=(TaskRequirements(ram=8),))
    world.submit(rules=TaskRules(**NO_PAUSE), requirements=wants)
    oom(world, Cause.OOM_HOST)
    assert world.task(1).requirements == TaskRequirements(ram=8)


@pytest.mark.parametrize(
    "has", [{"num_gpus": 1024, "gpu_memory_gb": 1e6}, {"ram_gb": 1e7, "num_gpus": 1}, {"num_gpus": 1}]
)
@pytest.mark.parametrize("cause", [Cause.OOM_GPU, Cause.OOM_HOST])
def test_growth_to_whatever_a_worker_may_declare(has: dict[str, Any], cause: Cause) -> None:
    world = World()
    world.handle(ev.WorkerJoined("w1", "a", WorkerResources(**has), []))  # type: ignore[arg-type]
    wants = {"min_gpus": 0.5, "ram": has.get("ram_gb", 0) / 1.1, "min_memory": has.get("gpu_memory_gb", 0) / 1.1}
    world.submit(rules=TaskRules(**NO_PAUSE, memory_growth=1000, oom_limit=3), **wants)
    oom(world, cause)
    assert world.states(1) == ["assigned"]


def test_requirements_that_grew_are_those_that_a_hold_keeps() -> None:
    world = World()
    world.join(ram_gb=64)
    world.submit(ram=2)
    world.finish(1, cause=Cause.OOM_HOST)
    world.handle(ev.HoldTasks(1, selection(1)))
    assert dispatches(world.handle(ev.ReleaseTasks(1, selection(1)))) == {"w1": [(1, 2)]}
    assert world.worker().ledger.free_ram_mb == 61 * 1024  # type: ignore[union-attr]


def test_pause_before_the_next_attempt_is_told() -> None:
    world = World(seed=3)
    world.join(ram_gb=64)
    world.submit(rules=TaskRules(retry_delay_s=100), ram=2)
    effects = world.finish(1, cause=Cause.OOM_HOST)
    (ended,) = of(effects.facts, fx.AttemptEnded)
    assert START < ended.retry_at_ns <= START + 100 * SECOND
    assert getattr(world.state(1), "until_ns", 0) == ended.retry_at_ns
    assert ended.record.message == "the next attempt asks for 3 GB of RAM, after 2 GB"
    assert world.engine.explain(world.task(1)).summary.startswith("retry after oom_host, in ")
