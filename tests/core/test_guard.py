"""Workers in quarantine and kinds that are held: how they come to it, what they get, and how they come back."""

from __future__ import annotations

from typing import Any

import pytest

from schedd.core import effects as fx
from schedd.core import events as ev
from schedd.core.guard import PROBE_RETRY_NS
from schedd.core.model import SECOND, Cause, TaskEntry, TaskId, TaskRules, WorkerId
from schedd.core.settings import EngineSettings, FailureRules

from .builders import dispatches, finished, holds, joined, of, selection, spec, unchanged
from .test_restore import GRACE_S, Restartable

RETRY_S = PROBE_RETRY_NS / SECOND
FAILED = {"message": "exit code 1"}


class Ward(Restartable):
    """A world whose workers all have one CPU, so that `priority` spreads tasks in the order of joining."""

    def __init__(self, *workers: str, policy: str = "priority", **settings: Any) -> None:
        super().__init__(policy, **settings)
        for name in workers:
            self.join(name)

    def work(self, name: str, count: int = 1, cause: Cause = Cause.OK, **values: Any) -> fx.Effects:
        """Let a worker run the next tasks of the queue, one after the other; returns the last turn's effects."""
        effects = None
        for _ in range(count):
            (task,) = self.worker(name).running.values()
            self.start(task.id)
            effects = self.finish(task.id, cause=cause, **values)
        assert effects is not None
        return effects

    def break_down(self, name: str, good: str, kind: str = "k", **values: Any) -> fx.Effects:
        """Let a worker fail until it is in quarantine, beside one that succeeds."""
        self.submit(200, kind=kind, job="work", **values)
        self.work(good, 20)
        for _ in range(40):
            effects = self.work(name, 1, Cause.ERROR)
            if self.worker(name).quarantine:
                return effects
        raise AssertionError("it was never found")

    def status(self, name: str) -> str:
        return str(self.worker(name).status)

    def pardon(self, *names: str) -> fx.Effects:
        return self.handle(ev.DrainWorkers(1, [WorkerId(name) for name in names], undo=True))

    def reasons(self, task_id: int) -> list[tuple[str, int, str]]:
        why = self.engine.explain(self.task(task_id))
        return [(blocker.reason, blocker.workers, blocker.detail) for blocker in why.blockers]


# ---------------------------------------------------------------------------------------------------------- black holes


def test_black_hole_is_quarantined() -> None:
    world = Ward("w1", "w2")
    effects = world.break_down("w1", "w2")
    assert world.status("w1") == "quarantined"
    reason = world.worker("w1").quarantine
    assert reason == "5 of 5 attempts failed there, elsewhere 0 of 20"
    (fact,) = of(effects.facts, fx.WorkerQuarantined)
    assert fact == fx.WorkerQuarantined(WorkerId("w1"), world.now, world.now + 60 * SECOND, 1, reason)
    assert not world.worker("w1").running
    last = len(world.engine.tasks)
    assert world.reasons(last)[0] == ("quarantined", 1, reason)
    assert world.engine.explain(world.task(last)).workers[0].verdict == f"quarantined: {reason}"
    assert world.work("w2", 50).facts
    assert world.status("w1") == "quarantined"


def test_what_fails_on_the_way_is_queued_again() -> None:
    """The failure that gave it away, and all that comes after, is not the task's."""
    world = Ward("w1", "w2")
    effects = world.break_down("w1", "w2")
    (end,) = of(effects.facts, fx.AttemptEnded)
    assert end.record.excused
    assert world.state(end.task_id).name == "queued"
    failed = [task for task in world.engine.tasks.rows.values() if task.state.name == "failed"]
    assert len(failed) == 4
    assert not any(record.excused for task in failed for record in task.attempts)


def test_backlog_is_taken_back_and_what_runs_goes_on() -> None:
    world = Ward("w1", "w2", policy="load_balancing")
    world.submit(200, kind="k")
    world.work("w2", 20)
    for _ in range(4):
        world.work("w1", 1, Cause.ERROR)
    (running,) = world.worker("w1").running.values()
    (waiting,) = world.worker("w1").task_queue
    world.start(running.id)
    effects = world.finish(running.id, cause=Cause.ERROR)
    # Its successor may have begun by the time that the worker hears of it.
    assert of(effects.actions, fx.RevokeAttempts) == []
    assert list(world.worker("w1").running) == [waiting.id]
    world.start(waiting.id)
    world.finish(waiting.id, cause=Cause.ERROR)
    assert world.state(waiting.id).name == "queued"
    assert (world.worker("w1").running, list(world.worker("w1").task_queue)) == ({}, [])


def test_long_backlog_is_taken_back() -> None:
    world = Ward("w1", "w2", policy="work_stealing")
    world.submit(200, kind="k")
    world.work("w2", 20)
    world.work("w1", 4, Cause.ERROR)
    (running,) = world.worker("w1").running.values()
    behind = [task.id for task in world.worker("w1").task_queue]
    assert len(behind) > 20
    effects = world.finish(running.id, cause=Cause.ERROR)
    (revoke,) = [action for action in of(effects.actions, fx.RevokeAttempts) if action.worker_id == "w1"]
    assert [task_id for task_id, _ in revoke.attempts] == behind[1:]
    world.handle(ev.RevokesAnswered(WorkerId("w1"), [(i, n, True) for i, n in revoke.attempts]))
    assert list(world.worker("w1").task_queue) == []


def test_backlog_that_is_taken_back_in_the_turn_in_which_its_worker_comes_anew() -> None:
    """The request goes out after the worker has said what it has: it gives that back, and nothing stays behind."""
    world = Ward("w1", "w2", policy="work_stealing")
    world.submit(200, kind="k")
    world.work("w2", 20)
    world.work("w1", 4, Cause.ERROR)
    (running,) = world.worker("w1").running.values()
    behind = [(task.id, task.attempt) for task in world.worker("w1").task_queue]
    said = [holds(task_id, attempt, "backlog") for task_id, attempt in behind]
    effects = world.handle(finished("w1", running.id, 1, Cause.ERROR, world.now, world.now), joined("w1", holds=said))
    (revoke,) = [action for action in of(effects.actions, fx.RevokeAttempts) if action.worker_id == "w1"]
    assert set(revoke.attempts) <= set(behind)
    world.handle(ev.RevokesAnswered(WorkerId("w1"), [(i, n, True) for i, n in revoke.attempts]))
    left = [*world.worker("w1").running, *(task.id for task in world.worker("w1").task_queue)]
    assert not {i for i, _ in revoke.attempts} & set(left)


def test_only_worker_is_never_quarantined() -> None:
    world = Ward("w1", "w2", failures=FailureRules(hopeless_kind=False))
    world.submit(200, kind="k")
    world.work("w2", 20)
    world.handle(ev.WorkerLeft(WorkerId("w2"), "left"))
    world.work("w1", 50, Cause.ERROR)
    assert world.status("w1") == "busy"


@pytest.mark.parametrize("cause", [Cause.TIMEOUT, Cause.OOM_GPU, Cause.OOM_HOST, Cause.REJECTED])
def test_causes_that_count_by_comparison(cause: Cause) -> None:
    world = Ward("w1", "w2")
    world.submit(200, kind="k")
    world.work("w2", 20)
    for _ in range(5):
        (task,) = world.worker("w1").running.values()
        world.finish(task.id, cause=cause)
    assert world.status("w1") == "quarantined"
    assert world.task(task.id).attempts[-1].excused == (cause is not Cause.TIMEOUT)


@pytest.mark.parametrize("cause", [Cause.PREEMPTED, Cause.LOST, Cause.CANCELLED])
def test_causes_that_do_not_count(cause: Cause) -> None:
    world = Ward("w1", "w2")
    world.submit(200, kind="k")
    world.work("w2", 20)
    for _ in range(30):
        (task,) = world.worker("w1").running.values()
        world.finish(task.id, cause=cause)
    assert world.status("w1") == "busy"


def test_what_somebody_cancels_does_not_count() -> None:
    world = Ward("w1", "w2")
    world.submit(200, kind="k")
    world.work("w2", 20)
    for _ in range(30):
        (task,) = world.worker("w1").running.values()
        world.start(task.id)
        world.cancel(task.id)
        world.finish(task.id, cause=Cause.ERROR)
    assert world.status("w1") == "busy"


def test_workers_that_all_fail_alike() -> None:
    world = Ward("w1", "w2", "w3", failures=FailureRules(hopeless_kind=False))
    world.submit(200, kind="k")
    for _ in range(30):
        for name in ("w1", "w2", "w3"):
            world.work(name, 1, Cause.ERROR)
    assert [world.status(name) for name in ("w1", "w2", "w3")] == ["busy"] * 3


def test_switched_off() -> None:
    world = Ward("w1", "w2", failures=FailureRules(quarantine=False, hopeless_kind=False))
    world.submit(200, kind="k")
    world.work("w2", 20)
    world.work("w1", 50, Cause.ERROR)
    assert world.status("w1") == "busy"


def test_black_hole_beside_long_tasks() -> None:
    """Elsewhere nothing has ended yet, but everything there has run for much longer than what fails here."""
    world = Ward("w1", "w2", "w3")
    ids = world.submit(200, kind="training", job="sweep")
    world.start(*(task_id for task_id in ids if world.task(task_id).worker_id))
    for _ in range(20):
        world.wait(1)
        effects = world.work("w1", 1, Cause.ERROR)
        assert not of(effects.facts, fx.KindHeld)
        if world.worker("w1").quarantine:
            break
    assert world.worker("w1").quarantine == "20 of 20 attempts failed there, elsewhere 0 of 2"
    assert sum(task.state.name == "failed" for task in world.engine.tasks.rows.values()) == 19


# --------------------------------------------------------------------------------------------------- probes of workers


def probe(world: Ward, seconds: float = 60) -> TaskId:
    """Let the pause pass; returns what the worker in quarantine then gets."""
    sent = dispatches(world.wake_in(seconds))
    ((task_id, _),) = sent["w1"]
    return TaskId(task_id)


def test_probe_that_succeeds() -> None:
    world = Ward("w1", "w2")
    world.break_down("w1", "w2")
    assert "w1" not in dispatches(world.wake_in(59))
    task_id = probe(world, 1)
    assert world.status("w1") == "quarantined"
    assert world.reasons(200)[0][0] == "quarantined"
    assert not world.wake_in(RETRY_S).actions
    world.start(task_id)
    effects = world.finish(task_id)
    assert of(effects.facts, fx.WorkerCleared) == [
        fx.WorkerCleared(WorkerId("w1"), world.now, f"task {task_id} succeeded there as a probe")
    ]
    assert world.status("w1") == "busy"
    assert world.worker("w1").quarantine == ""
    assert "w1" in dispatches(effects)


def test_probe_that_fails() -> None:
    world = Ward("w1", "w2")
    world.break_down("w1", "w2")
    for pause_s in (60, 120, 240):
        assert "w1" not in dispatches(world.wake_in(pause_s - 1))
        task_id = probe(world, 1)
        effects = world.finish(task_id, cause=Cause.ERROR)
        assert world.state(task_id).name == "queued"
        (fact,) = of(effects.facts, fx.WorkerQuarantined)
        assert fact.probe_at_ns == world.now + 2 * pause_s * SECOND
    assert fact.repeats == 4


def test_probe_that_says_nothing_is_repeated() -> None:
    world = Ward("w1", "w2")
    world.break_down("w1", "w2")
    first = probe(world)
    world.cancel(first)
    effects = world.finish(first, cause=Cause.CANCELLED)
    assert not of(effects.facts, fx.WorkerQuarantined)
    assert probe(world, RETRY_S) != first


def test_probe_is_of_a_kind_that_succeeds_elsewhere() -> None:
    world = Ward("w1", "w2")
    world.break_down("w1", "w2", "k")
    world.cancel(*(task.id for task in world.engine.tasks.rows.values() if task.state.name == "queued"))
    world.submit(3, kind="never seen", priority=9)
    assert "w1" not in dispatches(world.wake_in(60))
    late, later = world.submit(2, kind="k")
    assert world.task(late).worker_id == "w1"
    world.wake_in(RETRY_S)
    assert world.state(later).name == "queued"


def test_probe_fits() -> None:
    world = Ward("w1", "w2")
    world.break_down("w1", "w2")
    world.submit(kind="k", cpus=2, priority=9)
    assert world.task(probe(world)).requirements.cpus == 1


def test_worker_that_was_found_bad_again_waits_longer() -> None:
    world = Ward("w1", "w2")
    world.break_down("w1", "w2")
    task_id = probe(world)
    world.start(task_id)
    world.finish(task_id)
    effects = world.break_down("w1", "w2")
    (fact,) = of(effects.facts, fx.WorkerQuarantined)
    assert (fact.repeats, fact.probe_at_ns - world.now) == (2, 120 * SECOND)


def test_worker_that_did_well_for_long_begins_anew() -> None:
    world = Ward("w1", "w2", lease_ns=10**6 * SECOND)
    world.break_down("w1", "w2")
    task_id = probe(world)
    world.start(task_id)
    world.finish(task_id)
    world.wait(3600)
    (fact,) = of(world.break_down("w1", "w2").facts, fx.WorkerQuarantined)
    assert fact.repeats == 1


def test_last_one_that_is_left_is_probed_at_once() -> None:
    world = Ward("w1", "w2")
    world.break_down("w1", "w2")
    sent = dispatches(world.handle(ev.WorkerLeft(WorkerId("w2"), "left")))
    assert list(sent) == ["w1"]
    assert len(sent["w1"]) == 1


def test_operator_releases() -> None:
    world = Ward("w1", "w2")
    world.break_down("w1", "w2")
    effects = world.pardon("w1")
    assert of(effects.actions, fx.ReplyChanged) == [fx.ReplyChanged(1, 1, [])]
    (fact,) = of(effects.facts, fx.WorkerCleared)
    assert fact.reason == "released by an operator"
    assert "w1" in dispatches(effects)
    assert unchanged(world.pardon("w1")) == [("w1", "is not draining")]
    (again,) = of(world.break_down("w1", "w2").facts, fx.WorkerQuarantined)
    assert again.repeats == 1


def test_quarantine_and_drain() -> None:
    world = Ward("w1", "w2")
    world.break_down("w1", "w2")
    world.handle(ev.DrainWorkers(1, [WorkerId("w1")], leave=False))
    assert world.status("w1") == "draining"
    assert "w1" not in dispatches(world.wake_in(60))
    world.pardon("w1")
    assert world.status("w1") == "busy"


def test_quarantine_of_one_that_went_away() -> None:
    world = Ward("w1", "w2")
    world.break_down("w1", "w2")
    world.handle(ev.WorkerLeft(WorkerId("w1"), "left"))
    world.wake_in(3600)
    effects = world.join("w1", run="b")
    assert world.status("w1") == "quarantined"
    assert len(dispatches(effects)["w1"]) == 1
    world.handle(ev.WorkerLeft(WorkerId("w1"), "left"))
    assert unchanged(world.pardon("w1")) == []
    world.join("w1", run="c")
    assert world.status("w1") == "busy"


def test_silence_does_not_end_a_quarantine() -> None:
    world = Ward("w1", "w2")
    world.break_down("w1", "w2")
    world.handle(ev.WorkerDisconnected(WorkerId("w1")))
    assert world.status("w1") == "unreachable"
    world.join("w1")
    assert world.status("w1") == "quarantined"


def test_restart_in_quarantine() -> None:
    world = Ward("w1", "w2")
    world.break_down("w1", "w2")
    reason = world.worker("w1").quarantine
    world.restart(30)
    world.join("w1")
    effects = world.join("w2")
    assert (world.status("w1"), world.worker("w1").quarantine) == ("quarantined", reason)
    assert list(dispatches(effects)) == ["w2"]
    world.work("w2", 5)
    assert "w1" not in dispatches(world.wake_in(29))
    task_id = probe(world, 0 + 30 + RETRY_S)
    world.start(task_id)
    world.finish(task_id)
    world.restart()
    world.join("w1")
    assert world.worker("w1").quarantine == ""


def test_excuses_outlive_a_restart() -> None:
    world = Ward("w1", "w2")
    effects = world.break_down("w1", "w2", rules=TaskRules(retries=1, retry_delay_s=0))
    (end,) = of(effects.facts, fx.AttemptEnded)
    task_id = end.task_id
    world.restart()
    world.join("w2")
    world.wake_in(GRACE_S)
    for cause in (Cause.ERROR, Cause.ERROR):
        assert world.state(task_id).name != "failed"
        while world.where(task_id) != ["w2"]:
            world.work("w2")
            world.wake()
        world.work("w2", 1, cause)
    assert world.state(task_id).name == "failed"


def test_restart_with_quarantine_switched_off() -> None:
    world = Ward("w1", "w2")
    world.break_down("w1", "w2")
    world.settings = EngineSettings(failures=FailureRules(quarantine=False))
    world.restart()
    world.join("w1")
    assert world.worker("w1").quarantine == ""
    assert not world.recorded.verdicts


# ------------------------------------------------------------------------------------------------------ hopeless kinds


def sweep(world: Ward, count: int = 100, job: str = "sweep", **values: Any) -> list[TaskId]:
    return world.submit(count, kind="train", job=job, **values)


def give_up(world: Ward, *names: str, each: int = 10) -> fx.Effects:
    """Let workers fail in turns until the kind is held."""
    for _ in range(each):
        for name in names:
            effects = world.work(name, 1, Cause.ERROR, **FAILED)
    (fact,) = of(effects.facts, fx.KindHeld)
    assert fact.probe_at_ns == world.now + 60 * SECOND
    return effects


REASON = "the last 20 tasks of kind train failed, on 2 workers: exit code 1"


def test_typo_in_a_sweep() -> None:
    world = Ward("w1", "w2")
    ids = sweep(world)
    other = world.submit(3, kind="train", job="other")
    effects = give_up(world, "w1", "w2")
    (fact,) = of(effects.facts, fx.KindHeld)
    assert (fact.job, fact.kind, fact.repeats, fact.reason) == ("sweep", "train", 1, REASON)
    assert world.states(*ids[:21]) == ["failed"] * 20 + ["assigned"]
    assert set(world.states(*ids[21:])) == {"held"}
    assert dispatches(effects) == {"w2": [(other[0], 1)]}
    why = world.engine.explain(world.task(ids[-1]))
    assert why.summary == REASON
    assert [(b.reason, b.detail.partition(";")[0]) for b in why.blockers] == [
        ("its kind is held", "one more task of it is tried in 60 s")
    ]
    assert [hold.reason for hold in world.engine.holds_of("sweep")] == [REASON]
    assert world.engine.holds_of("other") == []


def test_one_worker_alone() -> None:
    world = Ward("w1")
    ids = sweep(world)
    give_up(world, "w1", each=20)
    assert world.states(*ids) == ["failed"] * 20 + ["held"] * 80


def test_tasks_without_a_job() -> None:
    world = Ward("w1")
    ids = sweep(world, job="")
    give_up(world, "w1", each=20)
    assert world.states(*ids) == ["failed"] * 20 + ["held"] * 80


def test_backlogs_are_taken_back_of_what_is_held() -> None:
    world = Ward("w1", policy="work_stealing")
    ids = sweep(world, 60)
    other = world.submit(kind="other")[0]
    effects = give_up(world, "w1", each=20)
    (revoke,) = of(effects.actions, fx.RevokeAttempts)
    behind = [task_id for task_id, _ in revoke.attempts]
    assert behind == [task.id for task in world.worker("w1").task_queue if task.kind == "train"]
    assert behind
    world.handle(ev.RevokesAnswered(WorkerId("w1"), [(i, n, True) for i, n in revoke.attempts]))
    assert set(world.states(*behind)) == {"held"}
    assert world.state(other).name == "assigned"
    assert set(world.states(*ids[22:])) == {"held"}


def test_kind_of_which_all_lies_in_backlogs_is_held() -> None:
    world = Ward("w1", policy="work_stealing")
    ids = sweep(world, 30)
    assert not world.engine._t.queue.size
    effects = give_up(world, "w1", each=20)
    assert len(of(effects.facts, fx.KindHeld)) == 1
    (revoke,) = of(effects.actions, fx.RevokeAttempts)
    world.cancel(ids[29])  # after which holds that keep back nothing are ended
    world.handle(ev.RevokesAnswered(WorkerId("w1"), [(i, n, True) for i, n in revoke.attempts]))
    assert set(world.states(*(i for i, _ in revoke.attempts if i != ids[29]))) == {"held"}
    assert len(world.engine.holds_of("sweep")) == 1


def test_hold_for_which_nothing_is_given_back_ends_by_itself() -> None:
    world = Ward("w1", policy="work_stealing")
    sweep(world, 22)
    effects = give_up(world, "w1", each=20)
    (revoke,) = of(effects.actions, fx.RevokeAttempts)
    world.handle(ev.RevokesAnswered(WorkerId("w1"), [(i, n, False) for i, n in revoke.attempts]))
    assert len(world.engine.holds_of("sweep")) == 1
    effects = world.wake_in(60)
    assert [fact.reason for fact in of(effects.facts, fx.KindReleased)] == ["nothing of it waits"]


def test_large_hold_is_made_and_ended_in_portions() -> None:
    world = Ward("w1", failures=FailureRules(portion=10))
    ids = sweep(world)
    world.work("w1", 19, Cause.ERROR)
    other = world.submit(kind="other", priority=9)[0]
    world.work("w1", 1, Cause.ERROR)
    assert list(world.worker("w1").running) == [other]
    turns = 0
    while world.engine.next_deadline() == world.now:
        world.wake()
        turns += 1
    assert turns > 5
    assert set(world.states(*ids[20:])) == {"held"}
    world.release(ids[20])
    world.work("w1")
    effects = world.work("w1")
    assert len(of(effects.facts, fx.KindReleased)) == 1
    assert world.states(ids[21], ids[99]) == ["assigned", "held"]
    world.cancel(ids[97], ids[98])
    while world.engine.next_deadline() == world.now:
        world.wake()
    assert world.states(ids[96], ids[97], ids[99]) == ["queued", "cancelled", "queued"]


def test_what_is_placed_before_its_portion_has_come_is_held_by_that() -> None:
    world = Ward("w1", failures=FailureRules(portion=10))
    ids = sweep(world)
    assert not dispatches(give_up(world, "w1", each=20))
    assert set(world.states(*ids[20:])) == {"held"}


def test_hold_that_finds_nothing_ends_by_itself() -> None:
    world = Ward("w1", failures=FailureRules(portion=10))
    sweep(world, 20, job="")
    world.submit(100, kind="other", priority=-1)
    effects = world.work("w1", 20, Cause.ERROR)
    assert len(of(effects.facts, fx.KindHeld)) == 1
    while not of(effects.facts, fx.KindReleased):
        assert world.engine.next_deadline() == world.now
        effects = world.wake()
    assert world.states(*sweep(world, 1, job="", priority=9)) == ["queued"]


def test_nothing_to_hold() -> None:
    world = Ward("w1")
    ids = sweep(world, 20)
    world.work("w1", 20, Cause.ERROR)
    assert set(world.states(*ids)) == {"failed"}
    assert world.engine.holds_of("sweep") == []
    assert world.states(*sweep(world, 1)) == ["assigned"]


def test_what_would_be_queued_later_is_held_too() -> None:
    world = Ward("w1")
    sweep(world)
    needed = world.submit(kind="other", priority=-1)[0]
    delayed = sweep(world, 1, delay_s=10)[0]
    waiting = sweep(world, 1, after=[needed])[0]
    give_up(world, "w1", each=20)
    effects = world.handle(ev.SubmitTasks(1, [spec(kind="train", job="sweep")], [TaskEntry(0)]))
    (reply,) = of(effects.actions, fx.ReplySubmitted)
    assert world.states(*reply.ids) == ["held"]
    assert reply.warnings == [
        "kind 'train' is held: the last 20 tasks of kind train failed, on one worker: exit code 1"
    ]
    assert world.states(delayed, waiting) == ["delayed", "waiting"]
    world.wake_in(10)
    world.work("w1")
    assert world.state(needed).name == "succeeded"
    assert world.states(delayed, waiting) == ["held", "held"]


def test_owner_releases_all() -> None:
    world = Ward("w1")
    ids = sweep(world)
    give_up(world, "w1", each=20)
    effects = world.handle(ev.ReleaseTasks(1, selection(job="sweep")))
    (fact,) = of(effects.facts, fx.KindReleased)
    assert (fact.job, fact.kind, fact.reason) == ("sweep", "train", "its owner released or cancelled all of it")
    assert world.engine.holds_of("sweep") == []
    assert world.states(ids[20], ids[21]) == ["assigned", "queued"]
    world.work("w1", 19, Cause.ERROR)
    assert world.states(ids[-1]) == ["queued"]
    world.work("w1", 1, Cause.ERROR)
    assert world.states(ids[-1]) == ["held"]


def test_release_that_takes_several_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("schedd.core.requests.CHANGES_PER_TURN_MAX", 30)
    world = Ward("w1")
    ids = sweep(world)
    give_up(world, "w1", each=20)
    effects = world.handle(ev.ReleaseTasks(1, selection(job="sweep")))
    turns = 1
    while not of(effects.actions, fx.ReplyChanged):
        assert not of(effects.facts, fx.KindReleased)
        effects = world.wake()
        turns += 1
    assert turns > 2
    assert len(of(effects.facts, fx.KindReleased)) == 1
    assert "held" not in world.states(*ids)


def test_owner_releases_some() -> None:
    """They run, and what becomes of them says something about the rest."""
    world = Ward("w1")
    ids = sweep(world)
    give_up(world, "w1", each=20)
    world.release(ids[50], ids[51])
    assert world.states(ids[50], ids[51], ids[52]) == ["assigned", "queued", "held"]
    world.work("w1", 1, Cause.ERROR)
    assert world.states(ids[51], ids[52]) == ["assigned", "held"]
    (fact,) = of(world.work("w1").facts, fx.KindReleased)
    assert fact.reason == f"task {ids[51]} of it succeeded"
    assert "held" not in world.states(*ids)


def test_owner_cancels() -> None:
    world = Ward("w1")
    ids = sweep(world)
    give_up(world, "w1", each=20)
    world.cancel(*ids[20:99])
    assert len(world.engine.holds_of("sweep")) == 1
    world.cancel(ids[99])
    assert world.engine.holds_of("sweep") == []
    assert world.states(*sweep(world, 1)) == ["assigned"]


def test_probe_of_a_kind_that_succeeds() -> None:
    world = Ward("w1", "w2")
    ids = sweep(world)
    give_up(world, "w1", "w2")
    world.work("w1", 1, Cause.ERROR)
    assert not dispatches(world.wake_in(59))
    assert dispatches(world.wake_in(1)) == {"w1": [(ids[-1], 1)]}
    assert not dispatches(world.wake_in(RETRY_S))
    (fact,) = of(world.work("w1").facts, fx.KindReleased)
    assert fact.reason == f"task {ids[-1]} of it succeeded"
    assert "held" not in world.states(*ids)


def test_probe_of_a_kind_that_fails() -> None:
    world = Ward("w1")
    ids = sweep(world)
    give_up(world, "w1", each=20)
    for number, pause_s in enumerate((60, 120, 240), 1):
        assert not dispatches(world.wake_in(pause_s - 1))
        assert dispatches(world.wake_in(1)) == {"w1": [(ids[-number], 1)]}
        (fact,) = of(world.work("w1", 1, Cause.ERROR).facts, fx.KindHeld)
        assert (fact.repeats, fact.probe_at_ns - world.now) == (number + 1, 2 * pause_s * SECOND)
    assert world.state(ids[20]).name == "held"


def test_probe_that_is_retried_waits_with_the_others() -> None:
    world = Ward("w1")
    ids = sweep(world, 21)
    again = sweep(world, 1, rules=TaskRules(retries=3))[0]
    give_up(world, "w1", each=20)
    world.wake_in(60)
    assert world.states(ids[20], again) == ["held", "assigned"]
    world.work("w1", 1, Cause.ERROR)
    assert world.state(again).name == "delayed"
    world.wake_in(5)
    assert world.states(ids[20], again) == ["held", "held"]


def test_probe_goes_to_a_worker_where_it_has_not_failed() -> None:
    """It may be the worker after all."""
    world = Ward("w1", "w2")
    long = world.submit(kind="long", priority=9)[0]
    name = world.task(long).worker_id
    world.start(long)
    bad = "w2" if name == "w1" else "w1"
    ids = sweep(world)
    give_up(world, bad, each=20)
    assert not dispatches(world.wake_in(60)), "the other worker is busy"
    world.finish(long)
    assert dispatches(world.wake_in(RETRY_S)) == {name: [(ids[-1], 1)]}
    world.start(ids[-1])
    world.finish(ids[-1])
    assert "held" not in world.states(*ids)


def test_hold_of_what_a_black_hole_did_is_taken_back() -> None:
    world = Ward("w1")
    ids = sweep(world)
    give_up(world, "w1", each=20)
    world.join("w2")
    world.submit(100, kind="common", job="common")
    world.work("w2", 20)
    for _ in range(10):
        effects = world.work("w1", 1, Cause.ERROR)
        if world.worker("w1").quarantine:
            break
    assert world.worker("w1").quarantine
    (fact,) = of(effects.facts, fx.KindReleased)
    assert fact.reason == "it failed on worker w1 only, which is in quarantine now"
    assert world.state(ids[-1]).name == "queued"


@pytest.mark.parametrize("cause", [Cause.TIMEOUT, Cause.OOM_GPU, Cause.PREEMPTED, Cause.LOST, Cause.CANCELLED])
def test_causes_that_do_not_speak_against_a_kind(cause: Cause) -> None:
    world = Ward("w1")
    sweep(world)
    for _ in range(40):
        (task,) = world.worker("w1").running.values()
        world.finish(task.id, cause=cause)
    assert world.engine.holds_of("sweep") == []


def test_hopeless_kinds_switched_off() -> None:
    world = Ward("w1", failures=FailureRules(hopeless_kind=False))
    ids = sweep(world)
    world.work("w1", 100, Cause.ERROR)
    assert set(world.states(*ids)) == {"failed"}


def test_restart_with_a_kind_that_is_held() -> None:
    world = Ward("w1")
    ids = sweep(world)
    give_up(world, "w1", each=20)
    world.release(ids[50])
    reason = getattr(world.state(ids[30]), "reason", "")
    world.restart(30)
    assert set(world.states(*ids[20:50], *ids[51:])) == {"held"}
    assert getattr(world.state(ids[30]), "reason", "") == reason
    assert dispatches(world.join("w1")) == {"w1": [(ids[50], 1)]}
    world.work("w1", 1, Cause.ERROR)
    assert dispatches(world.wake_in(30)) == {"w1": [(ids[-1], 1)]}
    world.work("w1")
    world.restart()
    assert world.engine.holds_of("sweep") == []
    assert "held" not in world.states(*ids)


def test_what_was_let_go_in_spite_of_an_earlier_hold_is_held_by_this_one_after_a_restart() -> None:
    world = Ward("w1")
    ids = sweep(world)
    give_up(world, "w1", each=20)
    world.release(*ids[20:])
    assert world.engine.holds_of("sweep") == []
    give_up(world, "w1", each=20)
    held = [i for i in ids[20:] if world.states(i) == ["held"]]
    assert held
    world.restart()
    assert set(world.states(*held)) == {"held"}


def test_what_ran_before_the_hold_is_adopted_after_a_restart() -> None:
    world = Ward("w1", "w2")
    long = sweep(world, 1)[0]
    holder, other = world.task(long).worker_id, "w2"
    assert holder == "w1"
    world.start(long)
    begun = world.now
    ids = sweep(world)
    world.work(other, 5)
    for _ in range(200):
        world.work(other, 1, Cause.ERROR)
        if world.engine.holds_of("sweep"):
            break
    assert world.engine.holds_of("sweep")
    world.restart()
    assert world.state(long).name == "held"
    world.join("w1", holds=[holds(long, 1, "running", begun)])
    world.join("w2")
    assert world.state(long).name == "running"
    world.finish(long)
    assert "held" not in world.states(*ids)


def test_restart_with_hopeless_kinds_switched_off() -> None:
    world = Ward("w1")
    ids = sweep(world)
    give_up(world, "w1", each=20)
    world.settings = EngineSettings(failures=FailureRules(hopeless_kind=False))
    world.restart()
    assert set(world.states(*ids[20:])) == {"queued"}
    world.wake_in(GRACE_S)
    assert not world.recorded.verdicts
