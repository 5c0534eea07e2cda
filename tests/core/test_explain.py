# mypy: disable-error-code="arg-type, list-item"
"""Why a task is where it is, with the right numbers."""

from __future__ import annotations

from schedd.core import events as ev
from schedd.core.explain import Explanation
from schedd.core.model import Blocker, Cause, TaskRequirements, TaskRules, WorkerVerdict

from .builders import World, joined


def explain(world: World, task_id: int) -> Explanation:
    return world.engine.explain(world.task(task_id))


def test_explain_held() -> None:
    world = World()
    world.submit(hold=True)
    assert explain(world, 1) == Explanation("held until somebody releases it", [Blocker("held")], [])


def test_explain_waiting() -> None:
    world = World()
    world.join(cpus=2)
    world.submit(3)
    world.submit(after=[1, 3, 2])
    world.finish(2)
    world.start(1)
    told = explain(world, 4)
    assert told.summary == "waits for 2 tasks to succeed"
    assert told.blockers == [Blocker("task 1", detail="running"), Blocker("task 3", detail="assigned")]


def test_explain_waiting_for_one() -> None:
    world = World()
    world.submit(hold=True)
    world.submit(after=[1])
    assert explain(world, 2) == Explanation("waits for 1 task to succeed", [Blocker("task 1", detail="held")], [])


def test_explain_delayed_start() -> None:
    world = World()
    world.submit(delay_s=10)
    world.wait(2.5)
    world.wake()
    assert explain(world, 1) == Explanation(
        "delayed start, in 7.5 s", [Blocker("delayed start", detail="7.5 s left")], []
    )


def test_explain_retry() -> None:
    world = World(seed=1)
    world.join()
    world.submit(rules=TaskRules(retries=1, retry_delay_s=100))
    world.finish(1, cause=Cause.ERROR)
    assert explain(world, 1).summary.startswith("retry after error, in ")


def test_explain_no_worker() -> None:
    world = World()
    world.submit(2)
    assert explain(world, 2) == Explanation(
        "no worker is connected",
        [Blocker("no worker is connected"), Blocker("tasks ahead in the queue", detail="1")],
        [],
        1,
    )


def test_explain_no_room() -> None:
    world = World()
    world.handle(
        joined("w1", cpus=2),
        joined("w2", cpus=2),
        joined("w3", cpus=1),
        joined("w4", cpus=4),
        joined("w5", cpus=4),
    )
    world.handle(ev.WorkerDisconnected("w4"), ev.DrainWorkers(1, ["w5"]))
    world.submit(2, cpus=1.5)
    world.submit(cpus=1)
    world.submit(1, cpus=2, priority=1)
    world.submit(2, cpus=2)
    told = explain(world, 6)
    assert told.summary == "no room now on 5 workers; 2 tasks go first"
    assert told.ahead == 2
    assert told.workers == [
        WorkerVerdict("w1", "busy: 0.5 of 2 CPUs free"),
        WorkerVerdict("w2", "busy: 0.5 of 2 CPUs free"),
        WorkerVerdict("w3", "needs 2 CPUs, has 1"),
        WorkerVerdict("w4", "unreachable"),
        WorkerVerdict("w5", "draining"),
    ]
    assert told.blockers == [
        Blocker("busy", 2),
        Blocker("draining", 1),
        Blocker("needs 2 CPUs, has 1", 1),
        Blocker("unreachable", 1),
        Blocker("tasks ahead in the queue", detail="2"),
    ]


def test_explain_never() -> None:
    world = World()
    world.join(cpus=1)
    world.submit(min_gpus=1, variants=(TaskRequirements(cpus=9),))
    told = explain(world, 1)
    assert told.summary == "none of 1 workers could ever run it"
    assert told.workers == [WorkerVerdict("w1", "needs 1 GPU, has 0")]


def test_explain_room_kept_for_another() -> None:
    world = World()
    world.join(cpus=2)
    world.submit()
    world.submit(cpus=2, priority=9)
    world.submit()
    assert world.states(3) == ["queued"]
    told = explain(world, 3)
    assert told.ahead == 1
    assert "1 " in told.summary


def test_explain_backlog() -> None:
    world = World("load_balancing")
    world.join(cpus=1)
    world.submit(4)
    assert explain(world, 1).summary == "dispatched to w1, about to start"
    assert explain(world, 2).summary == "dispatched to w1, number 1 of 1 in its backlog"
    assert explain(world, 3).workers == [WorkerVerdict("w1", "busy: 0 of 1 CPUs free")]


def test_explain_backlog_before_it() -> None:
    world = World("load_balancing")
    world.join(cpus=2)
    world.submit()
    world.submit(2, cpus=2)
    world.submit(1, cpus=1)
    assert [t.id for t in world.worker().task_queue] == [2, 3]
    assert explain(world, 4).workers == [WorkerVerdict("w1", "backlog: 2 go first there")]
    assert explain(world, 4).blockers[0] == Blocker("backlog", 1)


def test_explain_running() -> None:
    world = World()
    world.join()
    world.submit()
    world.start(1)
    world.wait(2)
    world.wake()
    assert explain(world, 1).summary == "running on w1 for 2.0 s"


def test_explain_ended() -> None:
    world = World()
    world.join()
    world.submit(3)
    world.finish(1)
    world.finish(2, cause=Cause.ERROR, message="boom")
    world.submit(after=[3])
    world.finish(3, cause=Cause.CANCELLED)
    assert explain(world, 1).summary == "succeeded"
    assert explain(world, 2).summary == "failed: boom"
    assert explain(world, 4).summary == "cancelled: needs task 3, which was cancelled"


def test_explain_where_it_could_start() -> None:
    """Between two turns only: a held task that was just released, seen by a worker that has room."""
    world = World()
    world.join(cpus=4)
    world.submit(hold=True)
    task = world.task(1)
    world.engine._t.settle(task)
    told = explain(world, 1)
    assert told.summary == "1 of 1 workers could start it now; 0 tasks go first"
    assert told.workers == [WorkerVerdict("w1", "fits now")]
    world.wake()
    assert world.states(1) == ["assigned"]
