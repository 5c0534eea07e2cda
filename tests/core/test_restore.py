"""A new start from recorded facts: what was promised goes on, what runs is adopted, nothing is started twice."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schedd.core import effects as fx
from schedd.core import events as ev
from schedd.core import restore
from schedd.core.engine import Engine
from schedd.core.model import (
    SECOND,
    AttemptStarted,
    Cause,
    HoldsAttempt,
    TaskEntry,
    TaskId,
    TaskRequirements,
    TaskRules,
    WorkerId,
    WorkerResources,
)
from schedd.core.policies import POLICIES
from schedd.core.tasks import PASSED_OVER_MAX
from schedd.journal.records import FinishedTask, finished_records

from .builders import START, World, answered, dispatches, finished, holds, joined, of, selection, spec, worker_of
from .recorded import Recorded
from .test_random import Chaos

GRACE_S = 30.0


class Restartable(World):
    """A world whose facts are recorded, and that can start anew from them."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        self.recorded = Recorded()
        super().__init__(*args, **{"lease_ns": 1000 * SECOND, **settings})

    def handle(self, *events: ev.Event) -> fx.Effects:
        effects = super().handle(*events)
        self.recorded.record(effects)
        return effects

    def restart(self, seconds: float = 1.0) -> None:
        """The daemon was away for so long; all connections are gone."""
        self.now += round(seconds * SECOND)
        policy = type(self.engine.policy)
        self.engine = Engine(policy(), self.settings)
        self.recorded.restore(self.engine, self.now, round(GRACE_S * SECOND))

    def pass_grace(self) -> fx.Effects:
        return self.wake_in(GRACE_S)


# ------------------------------------------------------------------------------------------------- what is remembered


def test_nothing_was_recorded() -> None:
    world = Restartable()
    world.restart()
    assert world.engine.next_deadline() is None
    assert world.submit() == [1]
    assert dispatches(world.join()) == {"w1": [(1, 1)]}


def test_waiting_tasks_are_where_they_were() -> None:
    world = Restartable()
    plain, held_one, needed = world.submit()[0], world.submit(hold=True)[0], world.submit()[0]
    waiting = world.submit(after=[needed])[0]
    delayed = world.submit(delay_s=60)[0]
    kept_back, let_go = world.submit(2)
    world.hold(kept_back, let_go)
    world.release(let_go)
    world.restart()
    assert world.states(plain, held_one, needed, waiting, delayed, kept_back, let_go) == [
        "queued",
        "held",
        "queued",
        "waiting",
        "delayed",
        "held",
        "queued",
    ]
    world.release(held_one, kept_back)
    assert world.states(held_one, kept_back) == ["queued", "queued"]


def test_delay_goes_on_while_the_daemon_is_away() -> None:
    world = Restartable()
    world.submit(delay_s=60)
    world.restart(seconds=20)
    assert world.engine.next_deadline() == START + 60 * SECOND
    world.wake_in(40)
    assert world.states(1) == ["queued"]
    world.restart()
    assert world.states(1) == ["queued"]


def test_priorities_and_requirements_as_they_were_set() -> None:
    world = Restartable()
    world.submit(3)
    world.handle(ev.SetPriorities(1, [(TaskId(2), 5.0)]))
    world.handle(ev.SetTasks(1, selection(3), requirements=TaskRequirements(cpus=4)))
    world.handle(ev.SetTasks(1, selection(3), priority=9.0))
    world.restart()
    assert [world.task(i).priority for i in (1, 2, 3)] == [0.0, 5.0, 9.0]
    assert world.task(3).requirements == TaskRequirements(cpus=4)
    world.join("small", cpus=1)
    assert world.where(1, 2, 3) == [None, "small", None]
    world.join("big", cpus=4)
    assert world.where(1, 2, 3) == [None, "small", "big"]


def test_order_of_a_level_is_that_of_submission() -> None:
    world = Restartable()
    world.submit(5)
    world.cancel(3)
    world.restart()
    sent = dispatches(world.join(cpus=2))
    assert sent == {"w1": [(1, 1), (2, 1)]}


def test_entries_of_their_own() -> None:
    """Argument, priority and dependencies of an entry, also of a batch that is only in part alive."""
    world = Restartable()
    entries = [
        TaskEntry(0, b"a"),
        TaskEntry(0, b"b", "key", after=[-1], priority=3.0),
        TaskEntry(0, b"c", after=[-2, -1]),
    ]
    world.submit_entries(spec(job="j"), entries)
    world.join()
    world.finish(1)
    world.restart()
    second, third = world.task(2), world.task(3)
    assert (second.argument, second.priority, second.key) == (b"b", 3.0, "key")
    assert third.after == (2, 1)
    assert world.states(2, 3) == ["queued", "waiting"]
    world.join()
    world.finish(2)
    assert world.states(3) == ["assigned"]


def test_dependents_of_what_fails_after_the_restart() -> None:
    world = Restartable()
    world.submit()
    world.submit(after=[1])
    world.restart()
    world.join()
    world.finish(1, cause=Cause.ERROR)
    assert world.states(1, 2) == ["failed", "cancelled"]


def test_failures_still_count() -> None:
    world = Restartable()
    world.submit(rules=TaskRules(retries=2, retry_delay_s=0, lost_limit=1))
    world.join()
    world.finish(1, cause=Cause.ERROR)
    world.wake()
    world.finish(1, cause=Cause.LOST)
    world.restart()
    task = world.task(1)
    assert (task.blamed, task.attempt) == ({Cause.ERROR: 1, Cause.LOST: 1}, 2)
    assert [record.cause for record in task.attempts] == ["error", "lost"]
    assert dispatches(world.join()) == {"w1": [(1, 3)]}
    world.finish(1, cause=Cause.LOST)
    assert world.states(1) == ["failed"]


def test_pause_before_a_retry_goes_on() -> None:
    world = Restartable(seed=1)
    world.submit(rules=TaskRules(retries=1, retry_delay_s=100))
    world.join()
    world.finish(1, cause=Cause.ERROR)
    until_ns = getattr(world.state(1), "until_ns", 0)
    assert until_ns > START + 10 * SECOND
    world.restart(seconds=5)
    assert getattr(world.state(1), "until_ns", 0) == until_ns
    assert not dispatches(world.join())
    world.now = until_ns
    assert dispatches(world.wake()) == {"w1": [(1, 2)]}


def test_pause_that_was_over_meanwhile() -> None:
    world = Restartable()
    world.submit(rules=TaskRules(retries=1, retry_delay_s=10))
    world.join()
    world.finish(1, cause=Cause.ERROR)
    world.restart(seconds=10)
    assert world.states(1) == ["queued"]


def test_pause_is_not_made_longer_by_a_clock_that_was_set_back() -> None:
    world = Restartable(seed=1)
    world.submit(rules=TaskRules(retries=1, retry_delay_s=100, retry_delay_max_s=100))
    world.join()
    world.finish(1, cause=Cause.ERROR)
    world.restart(seconds=-800)
    assert getattr(world.state(1), "until_ns", 0) == world.now + 100 * SECOND


def test_pause_that_a_release_ended_is_over() -> None:
    world = Restartable()
    world.submit(rules=TaskRules(retries=1, retry_delay_s=100))
    world.join()
    world.finish(1, cause=Cause.ERROR)
    world.handle(ev.WorkerLeft(WorkerId("w1")))
    world.hold(1)
    world.release(1)
    world.restart()
    assert world.states(1) == ["queued"]


def test_what_an_attempt_without_memory_made_the_task_ask_for() -> None:
    world = Restartable()
    world.submit(rules=TaskRules(retry_delay_s=0), ram=2)
    world.join(ram_gb=8)
    world.finish(1, cause=Cause.OOM_HOST)
    world.restart()
    assert (world.task(1).requirements, world.task(1).blamed) == (TaskRequirements(ram=3), {Cause.OOM_HOST: 1})
    assert dispatches(world.join(ram_gb=8)) == {"w1": [(1, 2)]}
    world.finish(1, cause=Cause.OOM_HOST)
    assert world.task(1).requirements == TaskRequirements(ram=4.5)
    world.wake()
    world.restart()
    world.join(ram_gb=8)
    assert world.states(1) == ["assigned"]
    world.finish(1, cause=Cause.OOM_HOST)
    assert world.states(1) == ["failed"], "the third is one too many"


def test_keys_still_name_their_tasks() -> None:
    world = Restartable()
    world.submit_entries(spec(), [TaskEntry(0, b"x", "one"), TaskEntry(0, b"y", "two")])
    world.join()
    world.finish(1, result=b"r")
    world.restart()
    assert world.submit_entries(spec(), [TaskEntry(0, b"y", "two")]) == [2]
    effects = world.handle(ev.SubmitTasks(1, [spec()], [TaskEntry(0, b"z", "two")]))
    assert of(effects.actions, fx.ReplyDeclined)[0].code == "key_conflict"


def test_key_of_a_task_that_has_ended() -> None:
    """What a task did that succeeded is not kept; its key alone says that it is the same."""
    world = Restartable()
    world.submit_entries(spec(), [TaskEntry(0, b"x", "done"), TaskEntry(0, b"x", "failed")])
    world.join(cpus=2)
    world.finish(1, result=b"r")
    world.finish(2, cause=Cause.ERROR)
    world.restart()
    assert world.submit_entries(spec(), [TaskEntry(0, b"x", "done")]) == [1]
    assert world.submit_entries(spec(), [TaskEntry(0, b"x", "failed")]) == [2]


def test_submit_that_comes_again_after_the_restart() -> None:
    """Its answer was lost with the daemon: it gets the same tasks, those that have ended included."""
    world = Restartable()
    world.join()
    submit = ev.SubmitTasks(1, [spec()], [TaskEntry(0, b"x"), TaskEntry(0, b"y")], False, "c", 5, 5)
    world.handle(submit)
    world.finish(1)
    world.restart()
    effects = world.handle(submit)
    assert not effects.facts
    assert of(effects.actions, fx.ReplySubmitted)[0].ids == [1, 2]
    assert of(effects.actions, fx.ReplySubmitted)[0].submitted_ns == [START, START]


def test_jobs_with_what_has_ended() -> None:
    world = Restartable()
    world.submit(4, job="j")
    world.submit(job="over")
    world.join(cpus=5)
    world.finish(1)
    world.wait(5)
    world.finish(2, cause=Cause.ERROR)
    world.finish(5)
    world.restart()
    job = world.engine.tasks.jobs["j"]
    assert {kind.name: count for kind, count in job.counts.items() if count} == {
        "succeeded": 1,
        "failed": 1,
        "queued": 2,
    }
    assert list(job.members) == [1, 2, 3, 4]
    assert job.finished_ns == START + 5 * SECOND
    assert job.submitted_ns == START
    assert world.engine.tasks.jobs["over"].finished_ns == START + 5 * SECOND
    world.cancel(3, 4)
    assert world.engine.tasks.jobs["j"].finished_ns == world.now


def test_ids_are_never_given_again() -> None:
    world = Restartable()
    world.submit(3)
    world.cancel(1, 2, 3)
    world.restart()
    assert world.submit() == [4]


def test_ids_above_what_was_loaded() -> None:
    """Batches that are gone, and finished tasks that are not remembered any more."""
    world = Restartable()
    world.engine.restore(restore.Recorded(next_id=1000), world.now, 0)
    world.engine.check()
    assert world.submit() == [1000]


def test_finished_tasks_are_forgotten_beyond_the_bound_oldest_end_first() -> None:
    world = Restartable(finished_keep_count=2)
    world.submit(4)
    world.join(cpus=4)
    for task_id in (3, 1, 4, 2):
        world.finish(task_id)
    world.restart()
    assert list(world.engine.tasks.rows) == [2, 4]


def test_task_that_is_both_live_and_finished_has_ended() -> None:
    """Only a salvaged journal can say so."""
    world = Restartable()
    world.submit(2)
    world.join()
    world.finish(1)
    world.recorded.ended.clear()
    world.restart()
    assert world.states(1, 2) == ["succeeded", "queued"]


# ------------------------------------------------------------------------------------------------------------ waiting


def test_nothing_is_placed_before_all_have_come_back() -> None:
    world = Restartable()
    world.join("w1")
    world.join("w2")
    world.join("w3")
    world.handle(ev.WorkerLeft(WorkerId("w3")))
    world.submit(3)
    world.restart()
    assert world.engine.awaited == {"w1", "w2"}
    assert not dispatches(world.join("w1"))
    assert not dispatches(world.join("new"))
    assert "w2" in world.engine.explain(world.task(3)).summary or world.engine.awaited == {"w2"}
    assert dispatches(world.join("w2")) == {"w1": [(1, 1)], "new": [(2, 1)], "w2": [(3, 1)]}
    assert not world.engine.awaited


def test_grace_ends_the_waiting() -> None:
    world = Restartable()
    world.join("w1")
    world.join("w2")
    world.submit(2)
    world.restart()
    assert world.engine.next_deadline() == world.now + GRACE_S * SECOND
    world.join("w1")
    assert not dispatches(world.wake_in(GRACE_S - 1))
    assert dispatches(world.wake_in(1)) == {"w1": [(1, 1)]}


def test_tasks_of_a_worker_that_does_not_come_back_start_elsewhere() -> None:
    world = Restartable()
    world.join("w1")
    world.join("w2")
    world.submit(2)
    world.start(1, 2)
    world.restart()
    world.join("w1", holds=[holds(1, 1, "running", START)])
    assert world.states(1, 2) == ["running", "queued"]
    world.pass_grace()
    assert world.states(1, 2) == ["running", "queued"]
    world.finish(1)
    assert world.where(2) == ["w1"]
    assert world.task(2).blamed is None, "nobody knows whether it ran"


def test_restart_within_the_grace_waits_again() -> None:
    world = Restartable()
    world.join("w1")
    world.submit()
    world.restart()
    world.restart()
    assert world.engine.awaited == {"w1"}


def test_worker_that_was_to_leave_is_told_so_after_a_restart() -> None:
    """That the daemon said so may never have come to it: what the client was told counts."""
    world = Restartable()
    for name, leave in (("leaves", True), ("stays", False), ("undone", True), ("anew", True), ("later", False)):
        world.join(name)
        world.handle(ev.DrainWorkers(1, [WorkerId(name)], undo=False, leave=leave))
    world.handle(ev.DrainWorkers(1, [WorkerId("undone")], undo=True))
    world.handle(ev.DrainWorkers(1, [WorkerId("later")], undo=False, leave=True))
    for _ in range(2):  # and after one more
        world.restart()
        told = {name: of(world.join(name).actions, fx.DrainWorker) for name in ("leaves", "stays", "undone", "later")}
        assert {name for name, actions in told.items() if actions} == {"leaves", "later"}
    assert not of(world.join("anew", run="b").actions, fx.DrainWorker)


def test_worker_without_an_incarnation_is_not_taken_for_one_that_drained() -> None:
    world = Restartable()
    world.join("w1", run="")
    assert world.worker("w1").status == "idle"


def test_worker_that_was_draining_still_is() -> None:
    world = Restartable()
    for name in ("kept", "undone", "anew"):
        world.join(name)
        world.handle(ev.DrainWorkers(1, [WorkerId(name)], undo=False, leave=False))
    world.handle(ev.DrainWorkers(1, [WorkerId("undone")], undo=True, leave=False))
    world.submit(3)
    world.finish(1)
    world.restart()
    effects = world.join("kept")
    assert of(effects.facts, fx.WorkerEntered)[0].draining
    assert world.worker("kept").status == "draining"
    world.join("undone")
    assert dispatches(world.join("anew", run="b")) == {"undone": [(2, 1)], "anew": [(3, 1)]}
    world.restart()
    world.join("kept")
    assert world.worker("kept").status == "draining"
    world.handle(ev.DrainWorkers(1, [WorkerId("kept")], undo=True, leave=False))
    world.restart()
    world.join("kept")
    assert world.worker("kept").status == "idle"


# ----------------------------------------------------------------------------------------------------------- adoption


@pytest.fixture
def world() -> Restartable:
    """Two workers that held a task each, and one task more; the daemon has just come back."""
    world = Restartable()
    world.join("w1")
    world.join("w2")
    world.submit(3)
    world.start(1, 2)
    world.wait(10)
    world.restart()
    return world


def test_running_attempt_is_adopted_with_its_start(world: Restartable) -> None:
    began = START + 3 * SECOND
    effects = world.join("w1", holds=[holds(1, 1, "running", began)])
    assert not effects.actions
    task = world.task(1)
    assert (task.state.name, task.attempt, task.worker_id) == ("running", 1, "w1")
    assert getattr(task.state, "started_at_ns", None) == began
    world.wait(5)
    world.finish(1)
    assert (task.attempts[0].started_at_ns, task.attempts[0].finished_at_ns) == (began, world.now)
    assert world.states(1) == ["succeeded"]


@pytest.mark.parametrize("began", [0, START - 1, START + 1000 * SECOND, -(1 << 62), 1 << 62])
def test_start_that_cannot_be_true(world: Restartable, began: int) -> None:
    world.join("w1", holds=[holds(1, 1, "running", began)])
    assert getattr(world.state(1), "started_at_ns", None) == world.now


def test_backlog_is_adopted_in_its_order(world: Restartable) -> None:
    claims = [holds(1, 1, "running", START), holds(3, 1, "backlog"), holds(2, 1, "backlog")]
    world.join("w1", holds=claims)
    assert world.states(1, 2, 3) == ["running", "assigned", "assigned"]
    assert [task.id for task in world.worker("w1").task_queue] == [3, 2]


def test_end_that_was_not_recorded_is_told_again(world: Restartable) -> None:
    world.join("w1", holds=[holds(1, 1, "finished", START + 1)])
    effects = world.handle(finished("w1", 1, 1, Cause.OK, START + 1, START + 2, result=b"r"))
    (end,) = of(effects.facts, fx.TaskFinished)
    assert (end.task_id, end.state, end.result) == (1, "succeeded", b"r")
    record = world.task(1).attempts[0]
    assert (record.started_at_ns, record.finished_at_ns) == (START + 1, START + 2)


def test_adopted_variant_keeps_its_reservation() -> None:
    world = Restartable()
    wants = TaskRequirements(min_gpus=1, variants=(TaskRequirements(cpus=3),))
    world.join(cpus=4)
    world.submit(requirements=wants)
    assert world.task(1).variant == 1
    world.start(1)
    world.restart()
    world.join(cpus=4, holds=[holds(1, 1, "running", START, variant=1)])
    ledger = world.worker().ledger
    assert ledger is not None
    assert ledger.free_cpus == 1000


@pytest.mark.parametrize("variant", [-1, 1, 9, 1 << 62])
def test_variant_that_is_none(world: Restartable, variant: int) -> None:
    effects = world.join("w1", holds=[holds(1, 1, "running", START, variant=variant)])
    assert drops(effects) == {"w1": [(1, 1)]}


@pytest.mark.parametrize("lost", [False, True])
def test_claim_under_other_requirements(world: Restartable, lost: bool) -> None:
    """They were set after the restart, while the task seemed to wait; or before it, and nobody was told."""
    if lost:
        claim = holds(1, 1, "running", START, defined_ns=START + 1)
    else:
        claim = holds(1, 1, "running", START)
        world.handle(ev.SetTasks(1, selection(1), requirements=TaskRequirements(cpus=0.5)))
        world.restart()
    assert drops(world.join("w1", holds=[claim])) == {"w1": [(1, 1)]}
    world.join("w2")
    assert world.task(1).attempt == 2


@pytest.mark.parametrize("devices", [(), (0,), (0, 2), (0, 0), (-1, 0)])
@pytest.mark.parametrize("phase", ["running", "backlog"])
def test_claim_that_does_not_fit_what_the_task_needs(devices: tuple[int, ...], phase: str) -> None:
    """Its requirements were set, it was dispatched, and all that was lost with the daemon."""
    world = Restartable()
    world.join(num_gpus=2)
    world.submit(min_gpus=2, cpus=0)
    world.restart()
    effects = world.join(num_gpus=2 if phase == "running" else 1, holds=[holds(1, 1, phase, START, devices)])
    assert drops(effects) == {"w1": [(1, 1)]}


def test_adopted_devices() -> None:
    world = Restartable()
    world.join(num_gpus=4)
    world.submit(min_gpus=2, cpus=0)
    world.start(1)
    world.restart()
    world.join(num_gpus=4, holds=[holds(1, 1, "running", START, (1, 3))])
    world.submit(min_gpus=2, cpus=0)
    assert (world.task(1).devices, world.task(2).devices) == ((1, 3), (0, 2))


def test_claims_of_more_than_there_is(world: Restartable) -> None:
    """A worker that came back with less than it had still runs what it runs."""
    world.join("w1", holds=[holds(i, 1, "running", START) for i in (1, 2, 3)])
    assert world.states(1, 2, 3) == ["running"] * 3
    assert world.worker("w1").task_count == 3


def drops(effects: fx.Effects) -> dict[str, list[tuple[int, int]]]:
    return {str(action.worker_id): list(action.attempts) for action in of(effects.actions, fx.DropAttempts)}


def test_claim_of_an_unknown_task_is_dropped(world: Restartable) -> None:
    assert drops(world.join("w1", holds=[holds(99, 1, "running", START)])) == {"w1": [(99, 1)]}


def test_claim_of_an_id_that_was_given_out_again(world: Restartable) -> None:
    """A submit that nobody was told of is lost with the daemon; its ids, and what was dispatched of it, are not."""
    (again,) = world.submit()
    effects = world.join("w1", holds=[holds(again, 1, "running", START)])
    assert drops(effects) == {"w1": [(again, 1)]}
    assert world.task(again).state.name == "queued"


def test_claim_of_an_id_that_was_given_out_before_another_restart(world: Restartable) -> None:
    """The worker was away for two restarts: what it holds has an id of another task, and an attempt that could be."""
    world.wait(1)
    (again,) = world.submit()
    world.restart()
    effects = world.join("w1", holds=[holds(again, 1, "running", START)])
    assert drops(effects) == {"w1": [(again, 1)]}
    world.join("w2")
    assert world.states(1, 2) == ["assigned", "assigned"]


@pytest.mark.parametrize("restarts", [0, 1])
def test_end_of_another_task_of_that_id_is_not_taken_for_its_own(world: Restartable, restarts: int) -> None:
    """It follows the greeting at once, when the id may have been dispatched to this very worker."""
    world.cancel(1, 2, 3)
    world.wait(1)
    (again,) = world.submit()
    for _ in range(restarts):
        world.restart()
    world.join("w2")
    effects = world.join("w1", holds=[holds(again, 1, "finished", START)], cpus=4)
    world.handle(ev.WorkerLeft(WorkerId("w2")))
    assert not drops(effects), "an end is answered when it comes"
    world.handle(finished("w1", again, 1, Cause.OK, START, START, result=b"of another task"))
    assert not world.state(again).is_final
    assert world.where(again) == ["w1"]
    assert world.task(again).attempt > 1
    world.finish(again, result=b"its own")
    assert world.task(again).result == b"its own"


def test_claim_after_the_task_was_started_elsewhere(world: Restartable) -> None:
    world.join("w2")
    world.pass_grace()
    assert world.where(1) == ["w2"]
    assert drops(world.join("w1", holds=[holds(1, 1, "running", START)])) == {"w1": [(1, 1)]}
    assert world.where(1) == ["w2"]


def test_backlog_of_a_worker_that_an_earlier_start_has_given_up() -> None:
    """Its tasks were given to others, under the same numbers: nobody has recorded that it had them."""
    world = Restartable()
    world.join("w1", cpus=2)
    world.submit(3, requirements=TaskRequirements(cpus=2))
    world.restart()
    world.join("w2", cpus=2)
    gone = [fact for fact in world.pass_grace().facts if isinstance(fact, fx.WorkerGone)]
    assert [(fact.worker_id, fact.lost) for fact in gone] == [("w1", True)]
    assert world.where(1) == ["w2"]
    world.start(1)
    world.restart()
    assert world.engine.awaited == {"w2"}
    late = world.join("w1", holds=[holds(1, 1, "backlog"), holds(2, 1, "backlog")], cpus=2)
    assert drops(late) == {"w1": [(1, 1), (2, 1)]}
    world.join("w2", holds=[holds(1, 1, "running", START)], cpus=2)
    assert (world.states(1), world.where(1), world.task(1).attempt) == (["running"], ["w2"], 1)
    assert (world.where(2), world.task(2).attempt) == (["w1"], 2), "what is still said of the first is not of this one"


class GivenUp(Restartable):
    """Restarts after which two workers have an attempt of task 1 with the same number.

    w1 had the first, and missed the grace of a restart; so w2 got another. Then w1 came back after all, and may or may
    not have heard that its own is of no interest any more when the daemon died once more.
    """

    def __init__(self, *, came_back: bool = True) -> None:
        super().__init__()
        self.recorded.epoch = 1
        self.engine._t.epoch = 1  # as a first start on a journal has it
        self.join("w1", cpus=1)
        self.submit(rules=TaskRules(retries=1, retry_delay_s=0))
        self.restart()
        self.join("w2", cpus=1)
        self.pass_grace()
        assert (self.where(1), self.task(1).attempt) == (["w2"], 1)
        self.start(1)
        if came_back:
            self.join("w1", holds=[self.old("finished")], cpus=1)
        self.restart()

    @staticmethod
    def old(phase: str) -> HoldsAttempt:
        return holds(1, 1, phase, START, epoch=1)

    @staticmethod
    def new(phase: str) -> HoldsAttempt:
        return holds(1, 1, phase, START, epoch=2)


def test_backlog_of_a_worker_that_comes_too_late(world: Restartable) -> None:
    """It would begin on a worker of which the next start may know nothing yet."""
    world.pass_grace()
    late = world.join("w1", holds=[holds(1, 1, "backlog")])
    assert drops(late) == {"w1": [(1, 1)]}
    assert (world.where(1), world.task(1).attempt) == (["w1"], 2)


def test_backlog_that_has_begun_when_its_worker_comes_twice_in_a_turn(world: Restartable) -> None:
    """As after the daemon was frozen: what its first greeting was to be told would end what the second came with."""
    world.pass_grace()
    first, second = (joined("w1", holds=[holds(1, 1, phase, START)]) for phase in ("backlog", "running"))
    effects = world.handle(first, ev.WorkerDisconnected(WorkerId("w1")), second)
    assert (world.states(1), world.where(1), world.task(1).attempt) == (["running"], ["w1"], 1)
    assert drops(effects) == {}
    world.finish(1)
    assert world.states(1) == ["succeeded"]


def test_stop_of_the_turn_in_which_a_worker_comes_again() -> None:
    """It is told what still holds, once."""
    world = World("work_stealing")
    world.join("w1", cpus=1)
    world.submit(2, kind="short")
    world.start(1)
    again = joined("w1", holds=[holds(1, 1, "running", START)], cpus=1)
    effects = world.handle(ev.CancelTasks(0, selection(1)), again)
    assert [(each.worker_id, each.attempts) for each in of(effects.actions, fx.StopAttempts)] == [("w1", [(1, 1)])]


@pytest.mark.parametrize("came_back", [False, True])
@pytest.mark.parametrize("phase", ["running", "finished"])
def test_newer_of_two_attempts_with_one_number_wins(came_back: bool, phase: str) -> None:
    world = GivenUp(came_back=came_back)
    world.join("w1", holds=[world.old(phase)], cpus=1)
    assert world.where(1) == ["w1"]
    effects = world.join("w2", holds=[world.new("running")], cpus=1)
    assert drops(effects) == {"w1": [(1, 1)]}
    assert (world.states(1), world.where(1)) == (["running"], ["w2"])


@pytest.mark.parametrize("came_back", [False, True])
def test_older_of_two_attempts_with_one_number_loses(came_back: bool) -> None:
    world = GivenUp(came_back=came_back)
    world.join("w2", holds=[world.new("running")], cpus=1)
    assert drops(world.join("w1", holds=[world.old("running")], cpus=1)) == {"w1": [(1, 1)]}
    assert (world.states(1), world.where(1)) == (["running"], ["w2"])


@pytest.mark.parametrize("came_back", [False, True])
def test_failure_of_the_older_attempt_waits_for_the_newer(came_back: bool) -> None:
    """Else the task would run once more while the newer one has done its work."""
    world = GivenUp(came_back=came_back)
    world.join("w1", holds=[world.old("finished")], cpus=1)
    effects = world.handle(finished("w1", 1, 1, Cause.ERROR, START, START))
    assert not of(effects.facts, fx.AttemptEnded)
    assert world.engine.is_putting_off, "a worker that is told that it may forget the end forgets it"
    world.join("w2", holds=[world.new("finished")], cpus=1)
    assert not world.engine.is_putting_off
    world.handle(finished("w2", 1, 1, Cause.OK, START, START, result=b"new"))
    assert (world.states(1), world.task(1).result) == (["succeeded"], b"new")


def test_failure_of_the_older_attempt_counts_where_the_newer_does_not_come() -> None:
    world = GivenUp()
    world.join("w1", holds=[world.old("finished")], cpus=1)
    world.handle(finished("w1", 1, 1, Cause.ERROR, START, START))
    ended = of(world.pass_grace().facts, fx.AttemptEnded)
    assert [(end.record.worker_id, end.record.cause) for end in ended] == [("w1", Cause.ERROR)]
    world.wake_in(0)
    assert (world.where(1), world.task(1).attempt) == (["w1"], 2)
    assert drops(world.join("w2", holds=[world.new("running")], cpus=1)) == {"w2": [(1, 1)]}
    world.finish(1)
    assert world.states(1) == ["succeeded"]


def test_success_of_the_older_attempt_is_one() -> None:
    world = GivenUp()
    world.join("w1", holds=[world.old("finished")], cpus=1)
    world.handle(finished("w1", 1, 1, Cause.OK, START, START, result=b"old"))
    assert world.states(1) == ["succeeded"]
    assert drops(world.join("w2", holds=[world.new("running")], cpus=1)) == {"w2": [(1, 1)]}
    assert world.task(1).result == b"old"


def test_backlog_of_a_worker_that_came_back_in_between() -> None:
    """It would begin what another runs already: it is to give that back, if it has not begun."""
    world = GivenUp()
    effects = world.join("w1", holds=[world.old("backlog")], cpus=1)
    assert [(action.worker_id, action.attempts) for action in of(effects.actions, fx.RevokeAttempts)] == [
        ("w1", [(1, 1)])
    ]
    assert not drops(effects), "whether it has begun since it said so, it has to say"
    assert drops(world.join("w2", holds=[world.new("running")], cpus=1)) == {"w1": [(1, 1)]}
    assert (world.states(1), world.where(1)) == (["running"], ["w2"])


def test_backlog_that_is_given_back_before_all_have_come() -> None:
    """The other attempt has the same number: it counts all the same."""
    world = GivenUp()
    world.join("w1", holds=[world.old("backlog")], cpus=1)
    world.handle(answered("w1", (1, 1, True)))
    assert world.states(1) == ["queued"]
    assert not drops(world.join("w2", holds=[world.new("running")], cpus=1))
    assert (world.states(1), world.where(1)) == (["running"], ["w2"])


def test_backlog_that_had_begun_when_it_was_to_be_given_back() -> None:
    world = GivenUp()
    world.join("w1", holds=[world.old("backlog")], cpus=1)
    world.handle(answered("w1", (1, 1, False)))
    world.handle(ev.AttemptsStarted(WorkerId("w1"), [AttemptStarted(TaskId(1), 1, START)]))
    effects = world.join("w2", cpus=1)
    assert not dispatches(effects), "it runs on w1, and nobody has a newer one"
    assert (world.states(1), world.where(1)) == (["running"], ["w1"])


def test_backlog_of_the_last_that_was_waited_for_is_its_own() -> None:
    world = GivenUp()
    world.join("w2", cpus=1)
    effects = world.join("w1", holds=[world.old("backlog")], cpus=1)
    assert not drops(effects)
    assert not of(effects.actions, fx.RevokeAttempts)
    assert world.where(1) == ["w1"]


def test_what_an_earlier_start_gave_out_goes_on_through_any_number_of_restarts() -> None:
    world = Restartable()
    world.recorded.epoch = 1
    world.engine._t.epoch = 1
    world.join("w1")
    world.join("w2")
    world.submit(rules=TaskRules(retries=1, retry_delay_s=0))
    world.start(1)
    name = worker_of(world.task(1))
    for _ in range(3):
        world.restart()
        assert not drops(world.join(name, holds=[holds(1, 1, "running", START, epoch=1)]))
    effects = world.finish(1, cause=Cause.ERROR)
    assert not of(effects.facts, fx.AttemptEnded), "w2 might have a newer one, for all that we know"
    ended = of(world.join("w2" if name == "w1" else "w1").facts, fx.AttemptEnded)
    assert [end.record.cause for end in ended] == [Cause.ERROR]
    assert world.task(1).attempt == 2


def test_claim_of_a_start_that_is_still_to_come(world: Restartable) -> None:
    """No honest worker has one; it must not take from others what they have."""
    world.join("w1", holds=[holds(1, 1, "running", START)])
    claim = holds(1, 2, "running", START, epoch=1 << 40)
    assert drops(world.join("w2", holds=[claim])) == {"w2": [(1, 2)]}
    assert world.where(1) == ["w1"]


def test_higher_attempt_wins(world: Restartable) -> None:
    world.join("w1", holds=[holds(1, 1, "running", START)])
    effects = world.join("w2", holds=[holds(1, 2, "running", START)])
    assert drops(effects) == {"w1": [(1, 1)]}
    assert (world.where(1), world.task(1).attempt) == (["w2"], 2)
    assert world.worker("w1").task_count == len(dispatches(effects).get("w1", []))


def test_lower_attempt_loses(world: Restartable) -> None:
    world.join("w2", holds=[holds(1, 2, "running", START)])
    assert drops(world.join("w1", holds=[holds(1, 1, "running", START)])) == {"w1": [(1, 1)]}
    assert world.where(1) == ["w2"]


def test_older_attempt_than_one_that_has_ended(world: Restartable) -> None:
    world = Restartable()
    world.join("w1")
    world.submit(rules=TaskRules(retries=5, retry_delay_s=0))
    world.finish(1, cause=Cause.ERROR)
    world.restart()
    assert drops(world.join("w1", holds=[holds(1, 1, "running", START)])) == {"w1": [(1, 1)]}
    assert world.task(1).attempt == 2


@pytest.mark.parametrize("state", ["held", "cancelled"])
def test_claim_of_what_is_not_to_run(world: Restartable, state: str) -> None:
    world.wait(1)
    world.hold(1) if state == "held" else world.cancel(1)
    effects = world.join("w1", holds=[holds(1, 1, "running", START)])
    assert drops(effects) == {"w1": [(1, 1)]}
    assert world.states(1) == [state]
    if state == "held":
        world.release(1)
        world.join("w2")
        assert world.task(1).attempt == 2, "what the worker still says of the first is not of this one"


@pytest.mark.parametrize("cause", [Cause.OK, Cause.ERROR])
def test_claim_of_what_seems_to_wait(world: Restartable, cause: Cause) -> None:
    """What it needs has succeeded, and the daemon died before that was recorded."""
    world.wait(1)
    world.submit(after=[1])
    world.submit(after=[4])
    world.restart()
    claims = [holds(1, 1, "finished", START), holds(4, 1, "running", START, defined_ns=world.now - SECOND)]
    assert not drops(world.join("w1", holds=claims))
    assert world.states(1, 4, 5) == ["assigned", "running", "waiting"]
    world.handle(finished("w1", 1, 1, cause, START, world.now))
    assert world.states(4) == ["running"], "it has begun, whatever the first comes to this time"
    world.finish(4)
    assert world.states(4, 5) == ["succeeded", "queued"]


def test_what_was_tried_waits_for_nothing_after_a_restart(world: Restartable) -> None:
    """What it needs has succeeded, or it had not been tried; a power cut took the end of that, not of the try."""
    (task_id,) = world.submit(after=[1], rules=TaskRules(retries=3, retry_delay_s=0))
    assert world.states(task_id) == ["waiting"]
    world.restart()
    claim = holds(task_id, 1, "running", START, defined_ns=world.task(task_id).defined_ns, epoch=1)
    world.join("w1", holds=[claim])
    world.finish(task_id, cause=Cause.ERROR)
    world.restart()
    assert world.states(1, task_id) == ["queued", "queued"]


def test_delayed_retry_that_runs_already() -> None:
    """The dispatch after the pause was not recorded, the failure before it was."""
    world = Restartable()
    world.join()
    world.submit(rules=TaskRules(retries=3, retry_delay_s=0))
    world.finish(1, cause=Cause.ERROR)
    world.wake()
    world.restart()
    world.join(holds=[holds(1, 2, "running", world.now)])
    assert world.states(1) == ["running"]


def test_start_that_was_delayed_and_has_come(world: Restartable) -> None:
    world = Restartable()
    world.join()
    world.submit(delay_s=5)
    world.wake_in(5)
    world.restart()
    world.join(holds=[holds(1, 1, "running", world.now)])
    assert world.states(1) == ["running"]


@pytest.mark.parametrize("phase", ["running", "backlog"])
def test_start_that_was_delayed_and_has_come_before_the_clock_was_set_back(phase: str) -> None:
    """Its start lies in the future again; what is done with it from now on must not wait for that."""
    world = Restartable(stealing=True)
    world.join()
    world.submit(delay_s=5, rules=TaskRules(retries=1, retry_delay_s=1))
    world.wake_in(5)
    world.restart(seconds=-100)
    world.join(holds=[holds(1, 1, phase, world.now)])
    world.finish(1, cause=Cause.ERROR)
    assert world.states(1) == ["delayed"]
    due = world.engine.next_deadline()
    assert due is not None
    world.now = due
    world.wake()
    assert (world.states(1), world.task(1).attempt) == (["assigned"], 2)


# ------------------------------------------------------------------------------------------------------------- cancel


def test_cancel_that_was_promised_outlives_the_restart() -> None:
    world = Restartable()
    world.join()
    world.submit(2, job="j")
    world.submit(after=[1])
    world.start(1)
    world.cancel(1)
    world.restart()
    assert world.engine.next_deadline() == world.now
    effects = world.wake()
    assert [(fact.task_id, fact.state) for fact in of(effects.facts, fx.TaskFinished)] == [
        (1, "cancelled"),
        (3, "cancelled"),
    ]
    assert [task.id for task in effects.finished] == [1, 3]
    assert drops(world.join(holds=[holds(1, 1, "running", START)])) == {"w1": [(1, 1)]}
    assert world.states(1, 2, 3) == ["cancelled", "assigned", "cancelled"]
    world.restart()
    assert world.states(1, 2, 3) == ["cancelled", "queued", "cancelled"]


def test_adopted_from_another_worker_while_it_is_being_cancelled(world: Restartable) -> None:
    world.join("w1", holds=[holds(1, 1, "running", START)])
    world.cancel(1)
    effects = world.join("w2", holds=[holds(1, 2, "running", START)])
    assert of(effects.actions, fx.StopAttempts) == [fx.StopAttempts(WorkerId("w2"), [(TaskId(1), 2)], Cause.CANCELLED)]


# ---------------------------------------------------------------------------------------------------------- nonsense


def any_claim(known: int) -> st.SearchStrategy[HoldsAttempt]:
    numbers = st.sampled_from([0, -1, 1, 2, 3, START, 1 << 31, (1 << 64) - 1])
    return st.builds(
        HoldsAttempt,
        st.integers(0, known + 2).map(TaskId),
        numbers,
        st.sampled_from(["backlog", "running", "finished", "?", ""]),
        numbers,
        st.lists(st.integers(-1, 3), max_size=3).map(tuple),
        numbers,
        st.sampled_from([START, 0, START, (1 << 64) - 1]),
    )


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["w1", "w2", "w3"]), st.lists(any_claim(8), max_size=10)), max_size=6))
def test_whatever_workers_claim(greetings: list[tuple[str, list[HoldsAttempt]]]) -> None:
    world = Restartable()
    world.join("w1", cpus=2, num_gpus=2)
    world.join("w2")
    world.submit(3)
    world.submit(2, min_gpus=1, cpus=0)
    world.submit(hold=True)
    world.submit(after=[1])
    world.start(1, 2)
    world.restart()
    world.submit()
    for name, claims in greetings:
        world.handle(joined(name, holds=claims, cpus=2, num_gpus=2))
    world.pass_grace()
    for task in world.engine.tasks.rows.values():
        assert 0 <= task.attempt < 1 << 32


# ------------------------------------------------------------------------------------------------------------- random


class Restarting(Chaos):
    """A random run whose daemon is killed now and then, with the turns that were not yet on disk."""

    def __init__(self, policy: str, seed: int, *, lies: bool) -> None:
        super().__init__(policy, seed, lies=lies)
        self.recorded = Recorded()
        #: Turns that are not on disk: what was heard in them from which run of a worker, and what came of it.
        self.unsafe: list[tuple[list[tuple[ev.AttemptsFinished, int]], list[fx.Fact], list[FinishedTask]]] = []
        self.restarts = 0

    def handle(self, events: list[ev.Event]) -> fx.Effects:
        effects = super().handle(events)
        heard = [(e, self.twin.workers[e.worker_id].run) for e in events if isinstance(e, ev.AttemptsFinished)]
        self.unsafe.append((heard, effects.facts, finished_records(effects.facts, effects.finished)))
        for fact, record in zip(of(effects.facts, fx.TaskFinished), self.unsafe[-1][2], strict=True):
            if fact.result is not None:
                assert fact.result == b"r%d.%d" % (record.id, record.submitted_ns)
        if self.dice.random() < 0.5:
            self.sync()
        return effects

    def sync(self) -> None:
        for _, facts, finished_tasks in self.unsafe:
            self.recorded.add(facts, finished_tasks)
        self.unsafe = []

    def step(self) -> None:
        if self.dice.random() < 0.04:
            self.restart()
        super().step()

    def disturb(self) -> None:
        """Not here: workers of an earlier start may well be right."""

    def restart(self) -> None:
        self.restarts += 1
        for heard, facts, _ in self.unsafe:
            for fact in facts:
                if isinstance(fact, fx.TasksAdmitted):
                    self.admitted -= set(fact.ids)
                elif isinstance(fact, fx.TaskFinished):
                    self.ended.pop(fact.task_id)
            for event, run in heard:  # not acknowledged: the worker still has it
                worker = self.twin.workers[event.worker_id]
                if worker.run == run:
                    known = {(end.task_id, end.attempt) for end in worker.unheard}
                    worker.unheard += [e for e in event.attempts if (e.task_id, e.attempt) not in known]
        self.unsafe = []
        for worker in self.twin.workers.values():
            worker.disconnect()
        self.dispatched.clear()
        self.now += SECOND
        self.engine = self.make()
        self.recorded.restore(self.engine, self.now, self.dice.choice([0, 5 * SECOND]))
        # What was to be cancelled has ended, and the first turn tells of it.
        assert self.engine.tasks.unfinished_count <= len(self.admitted - set(self.ended))

    def replay(self) -> None:
        """Not here: the turns are of several engines."""


@pytest.mark.parametrize("policy", [*POLICIES, "promoting"])
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 1 << 32))
def test_killed_at_random_steps(policy: str, seed: int) -> None:
    """Every task that somebody was told of ends exactly once, with a result that is its own."""
    chaos = Restarting(policy, seed, lies=False)
    for _ in range(150):
        chaos.step()
    chaos.sync()
    chaos.restart()
    chaos.calm()
    assert chaos.restarts


@pytest.mark.parametrize("policy", [*POLICIES, "promoting"])
@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 1 << 32))
def test_killed_among_lying_workers(policy: str, seed: int) -> None:
    """The tables agree, whatever workers claim."""
    chaos = Restarting(policy, seed, lies=True)
    for _ in range(150):
        chaos.step()


def test_restored_worker_resources_do_not_matter() -> None:
    """A worker may come back with other resources than it had."""
    world = Restartable()
    world.join("w1", cpus=8)
    world.submit(3)
    world.restart()
    assert dispatches(world.join("w1", cpus=1)) == {"w1": [(1, 1)]}
    assert world.worker("w1").resources == WorkerResources(cpus=1)


def test_what_was_learned_is_taken_in_by_who_learned_it() -> None:
    before = World("adaptive")
    before.join("w1")
    before.submit(2, kind="a")
    before.start(1)
    before.wait(1.0)
    before.finish(1)
    learned = before.engine.learned()
    kinds = {name: {one.kind for one in rows} for name, rows in learned.items()}
    assert kinds == {"runtimes": {"a"}, "adaptive": {"a", ""}}
    after = World("adaptive")
    after.engine.recall(learned)
    assert after.engine.learned() == learned
    other = World("priority")
    other.engine.recall(learned)
    assert other.engine.learned() == learned | {"priority": []}  # for the day when it is chosen again


def test_id_that_a_worker_has_heard_of_is_not_given_again(world: Restartable) -> None:
    """The daemon died before it recorded task 4. The end that it was told of then comes when a new task is placed."""
    world.join("w1", holds=[holds(4, 1, "finished", START)])
    world.join("w2")
    (new,) = world.submit()
    assert new == 5
    world.handle(finished("w1", 4, 1, Cause.OK, START, START, result=b"of another"))
    assert not world.state(new).is_final
    world.restart()
    assert world.submit() == [6]


def test_id_that_was_made_up_is_not_passed_over(world: Restartable) -> None:
    world.join("w1", holds=[holds(1 << 60, 1, "finished", START)])
    assert world.submit() == [4]


def test_ids_that_were_made_up_do_not_add_up(world: Restartable) -> None:
    """Each is in reach of the one before it, and all ids between have to be stepped over some day."""
    claims = [holds(4 + n * (PASSED_OVER_MAX - 1), 1, "finished", START) for n in range(20)]
    world.join("w1", holds=claims)
    (new,) = world.submit()
    assert new <= 4 + PASSED_OVER_MAX


def test_late_daemon_waits_for_its_workers_once_more(world: Restartable) -> None:
    """Its grace went by while it was frozen: the greetings of its workers have come, and it has not read them."""
    world.wait(100)
    assert not dispatches(world.wake(lag_s=70))
    assert not dispatches(world.join("w1", holds=[holds(1, 1, "running", START)]))
    effects = world.join("w2", holds=[holds(2, 1, "running", START)])
    assert world.state(1).name == world.state(2).name == "running"
    assert not dispatches(effects)
    assert not world.engine.awaited


def test_end_of_another_variant_is_adopted() -> None:
    """A worker does not say by which variant an attempt ran that has ended."""
    world = Restartable()
    world.join("w1")
    world.submit(min_gpus=1, variants=(TaskRequirements(),))
    world.restart()
    world.join("w1", holds=[holds(1, 1, "finished", START)])
    world.handle(finished("w1", 1, 1, Cause.OK, START, START, result=b"done"))
    assert world.task(1).result == b"done"


def test_newest_of_several_ends_is_adopted(world: Restartable) -> None:
    """The daemon had heard of the older ends and told nobody; what it gives out next must be new to the worker."""
    effects = world.join("w1", holds=[holds(1, attempt, "finished", START) for attempt in (1, 2, 3)])
    assert not drops(effects)
    assert world.task(1).attempt == 3
    world.handle(finished("w1", 1, 2, Cause.OK, START, START, result=b"old"))
    assert not world.state(1).is_final
    world.handle(finished("w1", 1, 3, Cause.OK, START, START, result=b"new"))
    assert world.task(1).result == b"new"
