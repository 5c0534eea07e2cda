# mypy: disable-error-code="arg-type, list-item"
"""Workers that come, go, fall silent and return."""

from __future__ import annotations

import pytest

from schedd.core import effects as fx
from schedd.core import events as ev
from schedd.core import tables
from schedd.core.model import SECOND, Cause, HoldsAttempt, HostUsage, TaskRules, WorkerResources

from .builders import START, World, dispatches, finished, holds, joined, of, started, unchanged

USAGE = HostUsage()


def entered(name: str = "w1", run: str = "a", at: int = START, again: bool = False, **has: float) -> fx.WorkerEntered:
    return fx.WorkerEntered(name, run, WorkerResources(**has), at, again)


# ------------------------------------------------------------------------------------------------------ come and return


def test_join() -> None:
    world = World()
    effects = world.join("w1", cpus=2)
    assert effects.facts == [entered(cpus=2)]
    assert not effects.actions
    assert world.worker().status == "idle"
    assert world.engine.next_deadline() == START + 20 * SECOND


def test_join_takes_what_waits() -> None:
    world = World()
    world.submit(3)
    effects = world.join("w1", cpus=2)
    assert effects.facts == [
        entered(cpus=2),
        fx.AttemptDispatched(1, 1, "w1", START),
        fx.AttemptDispatched(2, 1, "w1", START),
    ]
    assert dispatches(effects) == {"w1": [(1, 1), (2, 1)]}
    assert world.worker().status == "busy"


def test_return_with_all_that_it_had() -> None:
    world = World("load_balancing")
    world.join(cpus=2)
    world.submit(3)
    world.start(1)
    world.handle(ev.WorkerDisconnected("w1"))
    world.wait(3)
    effects = world.join(
        holds=[
            holds(1, 1, "running", START, ()),
            holds(2, 1, "running", START + 2 * SECOND, ()),
            holds(3, 1, "backlog"),
        ],
        cpus=2,
    )
    assert effects.facts == [
        fx.AttemptBegan(2, 1, START + 2 * SECOND),
        entered(cpus=2, at=world.now, again=True),
    ]
    assert not effects.actions
    assert world.states(1, 2, 3) == ["running", "running", "assigned"]
    assert [t.id for t in world.worker().task_queue] == [3]
    assert [t.attempt for t in map(world.task, (1, 2, 3))] == [1, 1, 1]


def test_return_without_what_never_reached_it() -> None:
    world = World()
    world.join(cpus=2)
    world.submit(2)
    world.start(1)
    effects = world.join(holds=[holds(1, 1, "running", START)], cpus=2)
    assert dispatches(effects) == {"w1": [(2, 2)]}
    assert world.states(1, 2) == ["running", "assigned"]


def test_return_with_what_is_not_its_own() -> None:
    world = World()
    world.join()
    world.submit()
    effects = world.join(holds=[holds(1, 7, "running"), holds(9, 1, "backlog")])
    assert of(effects.actions, fx.DropAttempts) == [fx.DropAttempts("w1", [(1, 7), (9, 1)])]
    assert dispatches(effects) == {"w1": [(1, 2)]}
    assert [type(a) for a in effects.actions] == [fx.DropAttempts, fx.DispatchAttempts]
    assert world.engine.counters.stale == 2


def test_return_with_an_end_that_was_not_heard() -> None:
    world = World()
    world.join()
    world.submit(2)
    world.start(1)
    world.handle(ev.WorkerDisconnected("w1"))
    effects = world.join(holds=[holds(1, 1, "finished", START)])
    assert not effects.actions
    world.handle(finished("w1", 1, 1, Cause.OK, START, START, result=b"x"))
    assert (world.states(1), world.task(1).result) == (["succeeded"], b"x")
    assert world.states(2) == ["assigned"]


def test_return_with_the_end_of_what_was_only_assigned() -> None:
    world = World()
    world.join()
    world.submit()
    world.handle(ev.WorkerDisconnected("w1"))
    world.join(holds=[holds(1, 1, "finished", START)])
    assert world.states(1) == ["assigned"]
    world.finish(1)
    assert world.states(1) == ["succeeded"]


def test_return_with_what_runs_in_the_backlog() -> None:
    """A worker that takes back its word has lost the attempt: it is queued anew, under another number."""
    world = World()
    world.join()
    world.submit()
    world.start(1)
    effects = world.join(holds=[holds(1, 1, "backlog")])
    assert of(effects.actions, fx.DropAttempts) == [fx.DropAttempts("w1", [(1, 1)])]
    assert dispatches(effects) == {"w1": [(1, 2)]}


@pytest.mark.parametrize("devices", [(), (0,), (0, 0), (9, 1), (-1, 1), (0, 1, 1)])
def test_return_on_impossible_devices(devices: tuple[int, ...]) -> None:
    world = World("load_balancing")
    world.join(num_gpus=2, cpus=8)
    world.submit(2, min_gpus=2)
    world.start(1)
    world.join(holds=[holds(1, 1, "running", START, devices), holds(2, 1, "backlog")], num_gpus=2, cpus=8)
    assert world.states(1, 2) == ["running", "assigned"]
    assert world.task(1).devices == (0, 1)


def test_return_says_its_backlog_first() -> None:
    world = World("load_balancing")
    world.join()
    world.submit(2)
    world.start(1)
    world.join(holds=[holds(2, 1, "backlog"), holds(1, 1, "running", START)])
    assert list(world.worker().running) == [1]
    assert [t.id for t in world.worker().task_queue] == [2]


def test_return_says_the_same_twice() -> None:
    world = World()
    world.join()
    world.submit()
    effects = world.join(holds=[holds(1, 1, "running", START), holds(1, 1, "running", START)])
    assert not effects.actions
    assert world.states(1) == ["running"]


def test_other_incarnation() -> None:
    """The process was started anew: what ran is lost, what had not started is nobody's fault."""
    world = World("load_balancing")
    world.join(run="a")
    world.submit(2, rules=TaskRules(lost_limit=0))
    world.start(1)
    effects = world.join(run="b", holds=[holds(1, 1, "running")])
    (ended, done, gone) = effects.facts[:3]
    assert isinstance(ended, fx.AttemptEnded)
    assert (ended.task_id, ended.record.cause, ended.record.message) == (
        1,
        Cause.LOST,
        "worker w1 was lost: the worker was started anew",
    )
    assert isinstance(done, fx.TaskFinished)
    assert (done.task_id, done.state) == (1, "failed")
    assert done.message == ended.record.message
    assert gone == fx.WorkerGone("w1", "a", START, lost=True, requeued=1, reason="the worker was started anew")
    assert effects.facts[3] == entered(run="b")
    assert of(effects.actions, fx.DropAttempts) == [fx.DropAttempts("w1", [(1, 1)])]
    assert dispatches(effects) == {"w1": [(2, 2)]}


def test_other_incarnation_brings_what_had_ended() -> None:
    """Its end was on the disk of the worker: it counts, and the attempt is not made again."""
    world = World("load_balancing")
    world.join(cpus=2, run="a")
    world.submit(3)
    world.start(1, 2)
    world.wait(5)
    effects = world.join(cpus=2, run="b", holds=[holds(1, 1, "finished", START)])
    assert [(fact.task_id, fact.record.cause) for fact in of(effects.facts, fx.AttemptEnded)] == [(2, Cause.LOST)]
    assert of(effects.facts, fx.WorkerGone)[0].requeued == 2
    assert of(effects.actions, fx.DropAttempts) == []
    assert world.states(1) == ["assigned"]
    effects = world.handle(finished("w1", 1, 1, Cause.OK, START, START + SECOND, result=b"r"))
    (ended,) = of(effects.facts, fx.AttemptEnded)
    assert (ended.record.started_at_ns, ended.record.finished_at_ns) == (START, START + SECOND)
    assert world.states(1) == ["succeeded"]
    assert world.task(1).result == b"r"


@pytest.mark.parametrize(
    "brought",
    [
        holds(1, 2, "finished"),
        holds(1, 1, "finished", defined_ns=START - 1),
        holds(1, 1, "running"),
        holds(9, 1, "finished"),
    ],
    ids=["another attempt", "another task of that id", "no end", "unknown task"],
)
def test_other_incarnation_brings_what_is_not_an_end_of_its_own(brought: HoldsAttempt) -> None:
    world = World()
    world.join(run="a")
    world.submit()
    world.start(1)
    effects = world.join(run="b", holds=[brought])
    assert of(effects.facts, fx.AttemptEnded)[0].record.cause is Cause.LOST
    # An end is answered when it comes; what still runs is ended.
    drops = [] if brought.phase == "finished" else [fx.DropAttempts("w1", [(brought.task_id, brought.attempt)])]
    assert of(effects.actions, fx.DropAttempts) == drops
    again = 3 if brought.attempt == 2 else 2  # never one that the worker may still speak of
    assert dispatches(effects) == {"w1": [(1, again)]}


def test_other_incarnation_brings_an_end_after_it_was_given_up() -> None:
    world = World()
    world.join(run="a")
    world.submit()
    world.start(1)
    world.handle(ev.WorkerDisconnected("w1"))
    world.wake_in(world.settings.lost_after_ns / SECOND)
    effects = world.join(run="b", holds=[holds(1, 1, "finished")])
    assert dispatches(effects) == {"w1": [(1, 2)]}
    stale = world.engine.counters.stale
    assert not world.handle(finished("w1", 1, 1, Cause.OK, START, START + SECOND)).facts
    assert world.engine.counters.stale == stale + 1


def test_other_incarnation_brings_the_end_of_what_is_being_cancelled() -> None:
    world = World()
    world.join(run="a")
    world.submit()
    world.start(1)
    world.cancel(1)
    effects = world.join(run="b", holds=[holds(1, 1, "finished")])
    assert of(effects.actions, fx.StopAttempts) == [fx.StopAttempts("w1", [(1, 1)], Cause.CANCELLED)]
    world.handle(finished("w1", 1, 1, Cause.ERROR, START, START))
    assert world.states(1) == ["cancelled"]


def test_return_with_other_resources() -> None:
    """What still fits goes on where it is, the rest has to go elsewhere."""
    world = World("load_balancing")
    world.join(cpus=4)
    world.submit(cpus=1)
    world.submit(cpus=3)
    world.start(1, 2)
    effects = world.join(cpus=2, holds=[holds(1, 1, "running", START), holds(2, 1, "running", START)])
    assert of(effects.facts, fx.WorkerEntered)[0].again
    assert of(effects.facts, fx.WorkerGone) == []
    assert of(effects.actions, fx.DropAttempts) == [fx.DropAttempts("w1", [(2, 1)])]
    assert world.states(1, 2) == ["running", "queued"]
    assert world.worker().resources == WorkerResources(cpus=2)
    world.submit(cpus=1)
    assert world.states(3) == ["assigned"]


def test_leave() -> None:
    world = World("load_balancing")
    world.join()
    world.submit(2)
    world.start(1)
    effects = world.handle(ev.WorkerLeft("w1", "goodbye"))
    assert of(effects.facts, fx.WorkerGone) == [fx.WorkerGone("w1", "a", START, False, 2, "goodbye")]
    assert world.states(1, 2) == ["queued", "queued"]
    assert (world.task(1).blamed, world.task(2).blamed) == ({Cause.LOST: 1}, None)
    assert world.task(1).attempts[0].message == "worker w1 left"
    assert world.engine.next_deadline() is None
    assert not world.handle(ev.WorkerLeft("w1")).facts


def test_lost_attempt_tells_its_devices() -> None:
    world = World()
    world.join(num_gpus=2)
    world.submit(min_gpus=1)
    world.start(1)
    world.handle(ev.WorkerLeft("w1"))
    assert world.task(1).attempts[0].devices == (0,)


# ------------------------------------------------------------------------------------------------------------- silence


def test_silence_in_two_steps() -> None:
    world = World("load_balancing")
    world.join("w1")
    world.submit(2)
    world.start(1)
    world.wait(19.9)
    assert not world.wake().facts
    world.wait(0.1)
    effects = world.wake()
    assert effects.facts == [
        fx.WorkerWentSilent("w1", world.now, world.now + 40 * SECOND, "nothing heard for 20 s"),
    ]
    assert not effects.actions
    assert world.worker().status == "unreachable"
    assert world.states(1, 2) == ["running", "assigned"]
    world.submit()
    assert world.states(3) == ["queued"]
    world.wait(40)
    effects = world.wake()
    assert of(effects.facts, fx.WorkerGone) == [
        fx.WorkerGone("w1", "a", world.now, True, 2, "silent for too long"),
    ]
    assert world.states(1, 2, 3) == ["queued", "queued", "queued"]
    assert (world.task(1).blamed, world.task(2).blamed) == ({Cause.LOST: 1}, None)
    assert world.task(1).attempts[0].cause == Cause.LOST
    assert not world.task(2).attempts
    assert "w1" not in world.engine.resources.workers
    assert world.engine.next_deadline() is None


def test_lost_limit() -> None:
    world = World()
    world.submit(rules=TaskRules(lost_limit=2))
    for turn in range(3):
        world.join(run=str(turn))
        assert world.states(1) == ["assigned"]
        world.start(1)
    world.handle(ev.WorkerLeft("w1"))
    assert world.states(1) == ["failed"]
    assert world.task(1).attempt == 3


@pytest.mark.parametrize(
    "event",
    [
        ev.Heartbeat("w1", USAGE),
        started("w1", 9, 1, 0),
        finished("w1", 9, 1, Cause.OK, 0, 0),
        ev.AttemptsReported("w1", []),
        ev.RevokesAnswered("w1", []),
    ],
)
def test_any_message_counts_as_life(event: ev.Event) -> None:
    world = World()
    world.join()
    world.wait(15)
    world.handle(event)
    world.wait(15)
    assert not world.wake().facts
    assert world.engine.next_deadline() == world.now + 5 * SECOND
    world.wait(5)
    assert of(world.wake().facts, fx.WorkerWentSilent)


def test_silent_worker_speaks_again() -> None:
    world = World()
    world.join()
    world.submit()
    world.start(1)
    world.wake_in(20)
    world.submit()
    effects = world.handle(ev.Heartbeat("w1", USAGE))
    assert effects.facts == [entered(at=world.now, again=True)]
    assert world.worker().usage == USAGE
    assert world.states(1, 2) == ["running", "queued"]
    world.finish(1)
    assert world.states(1, 2) == ["succeeded", "assigned"]


def test_disconnect() -> None:
    world = World()
    world.join()
    world.submit()
    world.start(1)
    effects = world.handle(ev.WorkerDisconnected("w1"))
    assert effects.facts == [fx.WorkerWentSilent("w1", START, START + 40 * SECOND, "the connection was lost")]
    assert world.states(1) == ["running"]
    assert world.engine.next_deadline() == START + 40 * SECOND


def test_disconnect_of_a_silent_worker_does_not_prolong_its_time() -> None:
    world = World()
    world.join()
    world.wake_in(20)
    world.wait(10)
    assert not world.handle(ev.WorkerDisconnected("w1")).facts
    assert world.engine.next_deadline() == START + 60 * SECOND


def test_events_of_unknown_workers() -> None:
    world = World()
    effects = world.handle(
        ev.WorkerDisconnected("w9"),
        ev.WorkerLeft("w9"),
        ev.Heartbeat("w9", USAGE),
        ev.WorkerDraining("w9", [(1, 1)]),
    )
    assert (effects.facts, effects.actions) == ([], [])


def test_worker_is_judged_by_the_pace_that_it_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """When many others have left it need not know that it is to report more often now."""
    monkeypatch.setattr(tables, "HEARTBEATS_PER_INTERVAL_MAX", 1)
    world = World()
    world.handle(*[joined(f"w{n}") for n in range(1, 6)])
    world.handle(ev.Heartbeat("w1", USAGE), ev.WorkerDisconnected("w2"))
    lease_s = world.engine._t.lease_ns() / SECOND
    world.handle(*[ev.WorkerLeft(f"w{n}") for n in range(3, 6)])
    assert world.engine._t.lease_ns() / SECOND < lease_s
    world.wake_in(lease_s - 1)
    assert world.worker("w1").status == "idle"
    world.wake_in(1)
    assert world.worker("w1").status == "unreachable"


def test_late_daemon_does_not_judge() -> None:
    """The heartbeat may be among what the loop has not read yet."""
    world = World()
    world.join()
    world.wait(50)
    assert not world.wake(lag_s=31).facts
    assert world.engine.next_deadline() == START + 70 * SECOND  # a lease more
    assert not world.handle(ev.Heartbeat("w1", USAGE)).facts
    world.wait(19)
    assert not world.wake().facts
    assert world.worker().status == "idle"


def test_late_daemon_does_not_give_up_either() -> None:
    """Frozen from 55 s to 65 s, it takes as long as that to listen again."""
    world = World()
    world.join()
    world.handle(ev.WorkerDisconnected("w1"))
    world.wait(35)
    world.handle()
    world.wait(10)
    assert not world.wake(lag_s=5).facts
    assert world.engine.next_deadline() == START + 55 * SECOND
    world.wait(10)
    assert of(world.wake().facts, fx.WorkerGone)


def test_late_daemon_listens_before_it_gives_up() -> None:
    """After a freeze it hears of one worker at first; what another, believed silent, has said is read later."""
    world = World()
    world.join("w1")
    world.join("w2")
    world.wake_in(20)
    assert {worker.status for worker in world.engine.resources} == {"unreachable"}
    world.wait(300)
    assert not of(world.handle(ev.Heartbeat("w1", USAGE), ev.Wakeup(260 * SECOND)).facts, fx.WorkerGone)
    assert not of(world.handle(ev.Heartbeat("w2", USAGE)).facts, fx.WorkerGone)
    assert {worker.status for worker in world.engine.resources} == {"idle"}


def test_dead_worker_is_given_up_soon_after_a_long_night() -> None:
    world = World()
    world.join()
    world.handle(ev.WorkerDisconnected("w1"))
    world.wait(8 * 3600)
    assert not world.wake(lag_s=8 * 3600 - 40).facts
    world.wait(40)
    assert of(world.wake().facts, fx.WorkerGone)


def test_a_little_lag_postpones_nothing() -> None:
    world = World()
    world.join()
    for status in ("unreachable", "gone"):
        due = world.engine.next_deadline()
        assert due is not None
        world.now = due
        world.wake(lag_s=0.01)
        assert status == (world.worker().status if world.engine.resources.workers else "gone")


def test_what_is_on_its_way_is_a_sign_of_life() -> None:
    world = World("load_balancing")
    world.join("w1")
    world.wait(19.9)
    assert not world.handle(ev.WorkerHeard("w1"), ev.WorkerHeard("nobody")).facts
    assert not world.wake_in(19.9).facts
    assert world.worker().status == "idle"
    world.wake_in(0.1)
    assert world.worker().status == "unreachable"
    (entered,) = of(world.handle(ev.WorkerHeard("w1")).facts, fx.WorkerEntered)
    assert entered.again
    assert world.worker().status == "idle"


def test_many_workers_beat_less_often() -> None:
    world = World(heartbeat_ns=SECOND, lease_ns=3 * SECOND)
    assert world.engine.heartbeat_ns() == SECOND
    world.handle(*(joined(f"w{i}") for i in range(500)))
    assert world.engine.heartbeat_ns() == SECOND
    world.handle(joined("w500"))
    assert world.engine.heartbeat_ns() == 2 * SECOND
    world.handle(*(joined(f"w{i}") for i in range(501, 1500)))
    assert world.engine.heartbeat_ns() == 3 * SECOND
    world.wake_in(8.9)
    assert world.worker("w1499").status == "idle"


# -------------------------------------------------------------------------------------------------------------- drain


def drain(world: World, *names: str, undo: bool = False, leave: bool = True) -> fx.Effects:
    return world.handle(ev.DrainWorkers(1, list(names or ("w1",)), undo, leave))


def test_drain_and_leave() -> None:
    world = World("load_balancing")
    world.join()
    world.submit(2)
    world.start(1)
    effects = drain(world)
    assert effects.facts == [fx.WorkerStartedDraining("w1", START, leave=True)]
    assert effects.actions == [fx.DrainWorker("w1"), fx.ReplyChanged(1, 1, [])]
    effects = world.handle(ev.WorkerDraining("w1", [(2, 1)]))
    assert not effects.facts
    assert world.states(1, 2) == ["running", "queued"]
    assert (world.task(2).blamed, world.task(2).attempts) == (None, ())
    world.submit()
    assert world.states(3) == ["queued"]
    world.finish(1)
    effects = world.handle(ev.WorkerLeft("w1"))
    assert effects.facts == [fx.WorkerGone("w1", "a", START, False, 0, "left")]


def test_drain_and_keep() -> None:
    world = World("load_balancing")
    world.join("w1")
    world.submit(2)
    world.start(1)
    effects = drain(world, leave=False)
    assert effects.facts == [fx.WorkerStartedDraining("w1", START)]
    assert effects.actions == [fx.ReplyChanged(1, 1, []), fx.RevokeAttempts("w1", [(2, 1)])]
    assert world.states(2) == ["revoking"]
    assert world.engine.explain(world.task(2)).summary == "moving from w1 to the queue"
    effects = world.handle(ev.RevokesAnswered("w1", [(2, 1, True)]))
    assert not effects.facts
    assert world.states(2) == ["queued"]


def test_drain_and_keep_refused() -> None:
    world = World("load_balancing")
    world.join("w1")
    world.submit(2)
    world.start(1)
    drain(world, leave=False)
    world.handle(finished("w1", 1, 1, Cause.OK, START, START), started("w1", 2, 1, START))
    world.handle(ev.RevokesAnswered("w1", [(2, 1, False)]))
    assert world.states(1, 2) == ["succeeded", "running"]


def test_drain_twice() -> None:
    world = World()
    world.join()
    drain(world, leave=False)
    assert unchanged(drain(world, leave=False)) == [("w1", "already draining")]
    assert of(drain(world, leave=True).actions, fx.DrainWorker)


def test_drain_undone() -> None:
    world = World()
    world.join()
    assert unchanged(drain(world, undo=True)) == [("w1", "is not draining")]
    drain(world, leave=False)
    world.submit()
    assert world.states(1) == ["queued"]
    effects = drain(world, undo=True)
    assert dispatches(effects) == {"w1": [(1, 1)]}


def test_drain_of_the_unknown_and_the_silent() -> None:
    world = World()
    world.join()
    world.handle(ev.WorkerDisconnected("w1"))
    assert unchanged(drain(world, "w9", "w1", "w1")) == [("w9", "unknown worker"), ("w1", "unreachable")]


@pytest.mark.parametrize("silent", [False, True])
def test_drain_outlives_a_broken_connection(silent: bool) -> None:
    world = World()
    world.join()
    drain(world, leave=False)
    if silent:
        world.wake_in(20)
        world.handle(ev.Heartbeat("w1", USAGE))
    else:
        world.handle(ev.WorkerDisconnected("w1"))
        world.join()
    assert world.worker().status == "draining"
    world.submit()
    assert world.states(1) == ["queued"]
    drain(world, undo=True)
    assert world.states(1) == ["assigned"]


def test_leave_is_asked_for_again_where_the_connection_has_taken_it_along() -> None:
    world = World()
    world.join()
    drain(world, leave=True)
    world.handle(ev.WorkerDisconnected("w1"))
    assert of(world.join().actions, fx.DrainWorker) == [fx.DrainWorker("w1")]
    assert of(world.join(cpus=2).actions, fx.DrainWorker) == [fx.DrainWorker("w1")]
    assert not of(world.join(run="b").actions, fx.DrainWorker)


def test_drain_outlives_a_long_absence_of_a_living_process() -> None:
    world = World()
    world.join()
    drain(world, leave=False)
    world.handle(ev.WorkerDisconnected("w1"))
    assert of(world.wake_in(60).facts, fx.WorkerGone)
    world.join()
    assert world.worker().status == "draining"
    drain(world, undo=True)
    world.handle(ev.WorkerDisconnected("w1"))
    assert of(world.wake_in(60).facts, fx.WorkerGone)
    world.join()
    assert world.worker().status == "idle"


def test_drain_does_not_outlive_the_process() -> None:
    world = World()
    world.join(run="a")
    drain(world)
    world.join(run="b")
    assert world.worker().status == "idle"


def test_worker_drains_of_itself() -> None:
    world = World("load_balancing")
    world.join()
    world.submit(3)
    effects = world.handle(ev.WorkerDraining("w1", [(2, 1), (2, 1), (9, 1)]))
    assert effects.facts == [fx.WorkerStartedDraining("w1", START)]
    assert world.states(1, 2) == ["assigned", "queued"]
    assert world.engine.counters.stale == 2
    assert not world.handle(ev.WorkerDraining("w1", [])).facts
