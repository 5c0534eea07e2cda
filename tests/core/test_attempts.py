# mypy: disable-error-code="arg-type, list-item"
"""Ends of attempts: retries and their limits, late and false reports, progress."""

from __future__ import annotations

import math
import random

import pytest

from schedd.core import effects as fx
from schedd.core import events as ev
from schedd.core.attempts import MESSAGE_MAX, METRICS_MAX
from schedd.core.model import SECOND, AttemptReport, Cause, Report, TaskRules
from schedd.core.tables import ATTEMPTS_KEPT_MAX

from .builders import START, World, answered, dispatches, finished, holds, of, picture, reported, selection, started
from .test_restore import Restartable

# ------------------------------------------------------------------------------------------------------------ retries


def test_failure_without_retries() -> None:
    world = World()
    world.join()
    world.submit()
    world.start(1)
    effects = world.finish(1, cause=Cause.ERROR, message="boom", exit_code=3, result=b"trace")
    assert of(effects.facts, fx.TaskFinished) == [fx.TaskFinished(1, "failed", START, "boom", b"trace")]
    assert world.worker().failed_count == 1
    assert world.engine.explain(world.task(1)).summary == "failed: boom"


def test_retries_with_full_jitter() -> None:
    """Each pause is a random part of a span that doubles up to the cap."""
    world = World(seed=7)
    world.join()
    world.submit(rules=TaskRules(retries=6, retry_delay_s=2, retry_delay_max_s=20))
    same = random.Random(7)
    for span in (2, 4, 8, 16, 20, 20):
        world.start(1)
        effects = world.finish(1, cause=Cause.ERROR)
        assert [type(fact) for fact in effects.facts] == [fx.AttemptEnded]
        pause_ns = int(same.uniform(0, span) * SECOND)
        assert world.states(1) == ["delayed"]
        assert getattr(world.state(1), "until_ns") == world.now + pause_ns  # noqa: B009
        world.now += pause_ns
        assert dispatches(world.wake()) == {"w1": [(1, world.task(1).attempt)]}
    effects = world.finish(1, cause=Cause.TIMEOUT, message="ran longer than 1 s")
    assert of(effects.facts, fx.TaskFinished)[0].state == "failed"
    assert (world.task(1).attempt, world.task(1).blamed) == (7, {Cause.ERROR: 6, Cause.TIMEOUT: 1})


def test_retry_keeps_its_place() -> None:
    world = World()
    world.join()
    world.submit(rules=TaskRules(retries=1, retry_delay_s=1))
    world.submit(2)
    world.finish(1, cause=Cause.ERROR)
    assert world.states(1, 2, 3) == ["delayed", "assigned", "queued"]
    world.wake_in(1)
    world.finish(2)
    assert world.states(1, 3) == ["assigned", "queued"]


@pytest.mark.parametrize("cause", [Cause.ERROR, Cause.TIMEOUT])
def test_failures_count_against_retries(cause: Cause) -> None:
    world = World()
    world.join()
    world.submit(rules=TaskRules(retries=1, retry_delay_s=1))
    world.finish(1, cause=cause)
    assert world.states(1) == ["delayed"]
    world.wake_in(1)
    world.finish(1, cause=cause)
    assert world.states(1) == ["failed"]
    assert world.engine.counters.by_cause == {cause: 2}


def test_preemption_blames_nobody() -> None:
    world = World()
    world.join()
    world.submit(rules=TaskRules(lost_limit=0))
    world.handle(ev.PreemptTasks(1, selection(1)))
    effects = world.finish(1, cause=Cause.PREEMPTED)
    assert dispatches(effects) == {"w1": [(1, 2)]}
    assert world.task(1).blamed is None


def test_preemption_that_nobody_asked_for_is_a_loss_and_has_its_limit() -> None:
    world = World()
    world.join()
    world.submit(rules=TaskRules(lost_limit=1))
    assert dispatches(world.finish(1, cause=Cause.PREEMPTED)) == {"w1": [(1, 2)]}
    world.finish(1, cause=Cause.PREEMPTED)
    assert world.states(1) == ["failed"]
    assert "worker w1 says that it made room, and was not asked to" in world.task(1).attempts[-1].message


def test_rejection_is_tried_again_and_limited() -> None:
    world = World()
    world.join()
    world.submit(rules=TaskRules(rejected_limit=1, retry_delay_s=1))
    world.finish(1, cause=Cause.REJECTED, message="cannot run here")
    assert world.states(1) == ["delayed"]
    world.wake_in(1)
    effects = world.finish(1, cause=Cause.REJECTED, message="cannot run here")
    assert of(effects.facts, fx.TaskFinished)[0].message == (
        "cannot run here (2 attempts ended like this, the limit is reached)"
    )


def test_attempts_kept_are_bounded() -> None:
    world = World()
    world.join()
    world.submit(rules=TaskRules(retries=1000, retry_delay_s=1, retry_delay_max_s=1))
    for _ in range(2 * ATTEMPTS_KEPT_MAX):
        world.finish(1, cause=Cause.ERROR)
        world.wake_in(1)
    attempts = world.task(1).attempts
    assert [record.attempt for record in attempts] == list(range(ATTEMPTS_KEPT_MAX + 1, 2 * ATTEMPTS_KEPT_MAX + 1))


def test_message_is_cut() -> None:
    world = World()
    world.join()
    world.submit()
    world.finish(1, cause=Cause.ERROR, message="x" * 10 * MESSAGE_MAX)
    assert len(world.task(1).attempts[0].message) == MESSAGE_MAX


# ---------------------------------------------------------------------------------------------- clocks that disagree


@pytest.mark.parametrize(
    ("said_start", "said_end", "start_s", "end_s"),
    [
        (START + 1 * SECOND, START + 3 * SECOND, 1, 3),
        (START - 99 * SECOND, START - 97 * SECOND, 0, 2),
        (START + 99 * SECOND, START + 101 * SECOND, 5, 5),
        (START + 2 * SECOND, START - 5 * SECOND, 2, 2),
        (-(1 << 62), 1 << 62, 0, 5),
        (1 << 62, -(1 << 62), 5, 5),
    ],
)
def test_clock_of_a_worker_is_off(said_start: int, said_end: int, start_s: int, end_s: int) -> None:
    """A start lies between the dispatch and now; how long it took is the worker's to tell."""
    world = World()
    world.join()
    world.submit()
    world.wait(5)
    world.handle(finished("w1", 1, 1, Cause.OK, said_start, said_end))
    (record,) = world.task(1).attempts
    assert (record.started_at_ns, record.finished_at_ns) == (START + start_s * SECOND, START + end_s * SECOND)


def test_start_is_clamped() -> None:
    world = World()
    world.join()
    world.submit()
    world.wait(5)
    effects = world.handle(started("w1", 1, 1, 1 << 62))
    assert effects.facts == [fx.AttemptBegan(1, 1, world.now)]


def test_end_of_what_never_began() -> None:
    world = World()
    world.join()
    world.submit(kind="k")
    world.wait(5)
    world.handle(finished("w1", 1, 1, Cause.ERROR, 0, world.now))
    (record,) = world.task(1).attempts
    assert (record.started_at_ns, record.finished_at_ns) == (0, world.now)
    assert len(world.engine._t.runtimes) == 0  # nothing to learn from it


# ------------------------------------------------------------------------------------------------------ late and false


@pytest.mark.parametrize(
    "event",
    [
        started("w1", 1, 2, START),
        started("w1", 1, 0, START),
        started("w1", 1, -1, START),
        started("w2", 1, 1, START),
        started("w9", 1, 1, START),
        started("w1", 99, 1, START),
        started("w1", 2, 0, START),
        started("w1", 2, 1, START, (0,)),
        started("w1", 1 << 62, 1 << 62, 1 << 62, (1 << 62,)),
        finished("w1", 1, 2, Cause.OK, START, START),
        finished("w2", 1, 1, Cause.OK, START, START),
        finished("w9", 1, 1, Cause.OK, START, START),
        finished("w1", 99, 1, Cause.OK, START, START),
        finished("w1", 2, 0, Cause.OK, START, START),
        finished("w1", 3, 1, Cause.ERROR, START, START),
        reported("w1", 1, 2, 1, loss=1.0),
        reported("w2", 1, 1, 1, loss=1.0),
        reported("w1", 99, 1, 1, loss=1.0),
        ev.RevokesAnswered("w1", [(1, 1, False)]),
        ev.RevokesAnswered("w2", [(1, 1, True)]),
        ev.RevokesAnswered("w1", [(2, 0, False), (99, 1, True)]),
        ev.WorkerDraining("w2", [(1, 1), (99, 1)]),
    ],
)
def test_report_about_another_attempt_changes_nothing(event: ev.Event) -> None:
    world = World()
    world.join("w1")
    world.submit(2)
    world.submit()
    world.handle(ev.CancelTasks(1, selection(3)))
    world.join("w2", cpus=0.5)
    if isinstance(event, ev.WorkerDraining):
        world.handle(ev.WorkerDraining("w2", []))
    before, stale = picture(world.engine), world.engine.counters.stale
    effects = world.handle(event)
    assert not effects.facts
    assert all(isinstance(action, fx.DropAttempts) for action in effects.actions)
    assert picture(world.engine) == before
    assert world.engine.counters.stale > stale


def test_what_a_worker_gives_back_it_has_no_more() -> None:
    """Whoever has asked: a request may have been on its way when the worker came anew and said what it has."""
    world = World()
    world.join("w1", cpus=1)
    (task_id,) = world.submit()
    assert world.states(task_id) == ["assigned"]
    effects = world.handle(answered("w1", (task_id, 1, True)))
    assert dispatches(effects) == {"w1": [(task_id, 2)]}, "it waits again, and goes where there is room"
    world.start(task_id)
    stale = world.engine.counters.stale
    world.handle(answered("w1", (task_id, 2, True)))
    assert (world.states(task_id), world.engine.counters.stale) == (["running"], stale + 1), "it has begun"


def test_late_start_is_dropped_there() -> None:
    world = World()
    world.join()
    world.submit()
    world.handle(ev.WorkerDisconnected("w1"))
    world.wake_in(40)
    world.join("w2")
    assert world.task(1).attempt == 2
    world.join("w1")
    effects = world.handle(started("w1", 1, 1, START))
    assert effects.actions == [fx.DropAttempts("w1", [(1, 1)])]
    assert not effects.facts


def test_end_said_twice() -> None:
    world = World()
    world.join()
    world.submit()
    end = world.finished(1, result=b"first")
    world.handle(end)
    effects = world.handle(end, finished("w1", 1, 1, Cause.ERROR, START, START, result=b"second"))
    assert not effects.facts
    assert not effects.actions
    assert world.task(1).result == b"first"
    assert world.engine.counters.stale == 2


def test_end_said_twice_in_one_message() -> None:
    world = World()
    world.join()
    world.submit()
    end = world.finished(1)
    effects = world.handle(ev.AttemptsFinished("w1", end.attempts * 3))
    assert [type(fact) for fact in effects.facts] == [fx.AttemptEnded, fx.TaskFinished]


def test_start_said_twice() -> None:
    world = World()
    world.join()
    world.submit()
    world.start(1)
    before = picture(world.engine)
    effects = world.start(1)
    assert (effects.facts, effects.actions) == ([], [])
    assert picture(world.engine) == before


def test_start_after_the_end() -> None:
    world = World()
    world.join()
    world.submit()
    start = world.started(1)
    world.finish(1)
    assert world.handle(start).actions == [fx.DropAttempts("w1", [(1, 1)])]
    assert world.states(1) == ["succeeded"]


@pytest.mark.parametrize("devices", [(), (0, 0), (7, 8), (-1, 0), (0,), (0, 1, 2), (1 << 62, 0)])
def test_start_on_impossible_devices(devices: tuple[int, ...]) -> None:
    """Our reservation stands where what the worker says cannot be."""
    world = World("load_balancing")
    world.join(num_gpus=2, cpus=9)
    world.submit(2, min_gpus=2)
    world.handle(started("w1", 1, 1, START, devices))
    assert world.task(1).devices == (0, 1)
    world.handle(started("w1", 2, 1, START, devices))  # it was in the backlog
    assert world.states(1, 2) == ["running", "running"]
    assert world.task(2).devices == (0, 1)
    world.finish(1, 2)
    assert [d.free_share for d in world.worker().ledger.devices] == [1000, 1000]  # type: ignore[union-attr]


def test_start_on_other_devices() -> None:
    world = World()
    world.join(num_gpus=2, cpus=9)
    world.submit(min_gpus=1)
    assert world.task(1).devices == (0,)
    world.handle(started("w1", 1, 1, START, (1,)))
    assert world.task(1).devices == (1,)
    world.submit(min_gpus=1)
    assert world.task(2).devices == (0,)


def test_start_on_other_devices_leaves_the_backlog_where_it_is() -> None:
    world = World("load_balancing")
    world.join(num_gpus=3, cpus=9)
    world.submit(2, min_gpus=2)
    assert (world.task(1).devices, world.task(2).reserved) == ((0, 1), False)
    world.handle(started("w1", 1, 1, START, (1, 2)))
    assert (world.task(1).devices, world.task(2).reserved) == ((1, 2), False)


def test_start_from_the_middle_of_a_backlog() -> None:
    """The worker decides what starts; what it started is reserved, even beyond what we thought to be free."""
    world = World("load_balancing")
    world.join(cpus=2)
    world.submit(4, cpus=2)
    assert [t.id for t in world.worker().task_queue] == [2, 3]
    world.handle(started("w1", 3, 1, START))
    assert (world.states(3), world.task(3).reserved) == (["running"], True)
    world.finish(1)
    assert not world.task(2).reserved
    world.finish(3)
    assert world.task(2).reserved


# ----------------------------------------------------------------------------------------------------------- progress


def test_progress_is_published() -> None:
    world = World()
    world.join()
    world.submit()
    world.start(1)
    effects = world.handle(reported("w1", 1, 1, 3, loss=0.5))
    assert effects.actions == [fx.PublishReports([AttemptReport(1, 1, 3, {"loss": 0.5})])]
    assert not effects.facts
    assert world.task(1).report == Report(3, {"loss": 0.5})


def test_progress_with_too_much_in_it() -> None:
    world = World()
    world.join()
    world.submit()
    for metrics in ({f"m{i}": 1.0 for i in range(METRICS_MAX + 1)}, {"x" * 129: 1.0}):
        assert not world.handle(reported("w1", 1, 1, 1, **metrics)).actions
    assert world.task(1).report is None


def test_progress_that_is_no_number() -> None:
    world = World()
    world.join()
    world.submit()
    effects = world.handle(reported("w1", 1, 1, -(1 << 62), loss=math.nan, gain=math.inf))
    assert len(effects.actions) == 1
    world.finish(1)


# ---------------------------------------------------------------------------------------------------- bounds of memory


def test_results_are_bounded() -> None:
    world = World(results_keep_bytes=100)
    world.join()
    world.submit(3)
    for i in (1, 2, 3):
        world.finish(i, result=b"x" * 40)
    assert [world.task(i).result for i in (1, 2, 3)] == [b"", b"x" * 40, b"x" * 40]
    assert world.engine.tasks.results_bytes == 80


def test_result_above_the_bound_alone() -> None:
    world = World(results_keep_bytes=100)
    world.join()
    world.submit()
    effects = world.finish(1, result=b"x" * 101)
    assert of(effects.facts, fx.TaskFinished)[0].result == b"x" * 101
    assert world.task(1).result == b""


def test_finished_tasks_are_forgotten() -> None:
    world = World(finished_keep_count=2)
    world.join()
    world.submit(4, job="j")
    for i in (1, 2, 3, 4):
        world.finish(i, result=b"x")
    assert list(world.engine.tasks.rows) == [3, 4]
    assert list(world.engine.tasks.jobs["j"].members) == [3, 4]
    assert world.engine.tasks.results_bytes == 2
    world.submit(2)
    world.finish(5)
    world.finish(6)
    assert not world.engine.tasks.jobs


def test_start_out_of_the_backlog_makes_room_in_it() -> None:
    world = World("load_balancing")
    world.join(cpus=9, num_gpus=1)
    world.submit(3, min_gpus=1)
    assert world.states(3) == ["queued"]
    world.start(1)
    effects = world.handle(started("w1", 2, 1, START, (0,)))
    assert dispatches(effects) == {"w1": [(3, 1)]}


def test_dispatch_crosses_an_end() -> None:
    """The worker had other devices free than we thought when the attempt came: we think all that follows anew."""
    world = World("load_balancing")
    world.join(num_gpus=3, cpus=9)
    world.submit(min_gpus=2)
    world.start(1)
    world.submit(min_gpus=1)
    world.submit(min_gpus=2)
    world.submit(min_gpus=1)
    assert [t.id for t in world.worker().task_queue] == [3, 4]
    world.finish(1)
    assert (world.task(2).devices, world.task(3).devices) == ((2,), (0, 1))
    world.handle(started("w1", 2, 1, START, (0,)))
    assert (world.task(2).devices, world.task(3).devices, world.task(4).reserved) == ((0,), (1, 2), False)
    world.handle(started("w1", 3, 1, START, (1, 2)))
    assert [t.id for t in world.worker().task_queue] == [4]


def test_successor_takes_the_lowest_devices_as_the_worker_does() -> None:
    world = World("load_balancing")
    world.join(num_gpus=3, cpus=9)
    world.submit(min_gpus=1)
    world.submit(2, min_gpus=2)
    assert (world.task(2).devices, world.task(3).reserved) == ((1, 2), False)
    world.finish(1)
    world.finish(2)
    assert world.task(3).devices == (0, 1)


def test_preemption_that_an_earlier_start_may_have_asked_for_blames_nobody() -> None:
    """It died before that was recorded; the worker has obeyed."""
    world = Restartable()
    world.join()
    world.submit(rules=TaskRules(lost_limit=0))
    world.handle(ev.PreemptTasks(1, selection(1)))
    world.recorded.changes = [fact for fact in world.recorded.changes if not isinstance(fact, fx.PreemptAsked)]
    world.restart()
    world.join(holds=[holds(1, 1, "finished")])
    effects = world.handle(finished("w1", 1, 1, Cause.PREEMPTED, 0, world.now))
    assert dispatches(effects) == {"w1": [(1, 2)]}
    assert world.task(1).blamed is None
