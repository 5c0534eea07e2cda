"""The task table and the worker table by themselves."""

from __future__ import annotations

import pytest

from schedd.core.model import (
    Assigned,
    Cancelled,
    Delayed,
    Failed,
    Held,
    Queued,
    Revoking,
    Running,
    Selection,
    State,
    Succeeded,
    Task,
    TaskId,
    TaskRequirements,
    Waiting,
    WorkerId,
    WorkerResources,
    WorkerStatus,
)
from schedd.core.resources import ResourceManager, need_of
from schedd.core.tasks import DISPATCHED, FINAL, TRANSITIONS, UNDISPATCHED, TaskTable
from schedd.errors import InvalidTransition

from .builders import World

W = WorkerId("w")
STATES: list[State] = [
    Held(0), Waiting(0), Delayed(0), Queued(0), Assigned(W, 0), Running(W, 0, 0), Revoking(W, 0, W),
    Succeeded(0), Failed(0), Cancelled(0),
]  # fmt: skip


def table(*tasks: Task) -> TaskTable:
    rows = TaskTable()
    for task in tasks:
        rows.admit(task, 0)
    return rows


def task(number: int, **values: object) -> Task:
    return Task(id=TaskId(number), **values)  # type: ignore[arg-type]


@pytest.mark.parametrize("old", STATES, ids=lambda s: s.name)
@pytest.mark.parametrize("new", STATES, ids=lambda s: s.name)
def test_illegal_transition_changes_nothing(old: State, new: State) -> None:
    one = task(1, state=old, job="j")
    rows = table(one)
    if type(new) in TRANSITIONS[type(old)]:
        rows.set_state(one, new)
        assert one.state is new
    else:
        with pytest.raises(InvalidTransition, match="is no transition; task 1 is"):
            rows.set_state(one, new)
        assert one.state is old
    assert rows.counts[type(one.state)] == rows.jobs["j"].counts[type(one.state)] == 1


def test_every_state_is_somewhere() -> None:
    assert set(TRANSITIONS) == FINAL | DISPATCHED | UNDISPATCHED == {type(state) for state in STATES}
    assert all(not TRANSITIONS[state] for state in FINAL)


def test_admit_out_of_order() -> None:
    with pytest.raises(InvalidTransition, match="the next id is 1"):
        table(task(2))


def test_select() -> None:
    rows = table(task(1, job="a"), task(2, job="b", state=Held(0)), task(3, job="a", state=Succeeded(0)), task(4))
    select = rows.select

    def ids(selection: Selection, after_id: int = 0) -> list[int]:
        return [row.id for row in select(selection, after_id)]

    assert ids(Selection()) == [1, 2, 3, 4]
    assert ids(Selection(), after_id=2) == [3, 4]
    assert ids(Selection([TaskId(4), TaskId(2), TaskId(2), TaskId(99)])) == [2, 4]
    assert ids(Selection(job="a")) == [1, 3]
    assert ids(Selection(job="a"), after_id=1) == [3]
    assert ids(Selection(job="")) == [4]
    assert ids(Selection(job="nobody")) == []
    assert ids(Selection([TaskId(1), TaskId(2)], job="b")) == [2]
    assert ids(Selection(states=["held", "succeeded"])) == [2, 3]
    assert ids(Selection(unfinished=True)) == [1, 2, 4]


def test_barrier_opens_with_the_last() -> None:
    rows = table(task(1), task(2), task(3, after=(TaskId(1), TaskId(2))))
    rows.depend(rows.rows[TaskId(3)])
    for task_id in (1, 2):
        row = rows.rows[TaskId(task_id)]
        rows.set_state(row, Assigned(WorkerId("w1"), 0))
        (barrier,) = rows.finish(row, Succeeded(0))
        assert bool(barrier.missing) is (task_id == 1)
    assert list(rows.open(barrier)) == [3]
    assert not rows.missing(TaskId(3))


# ------------------------------------------------------------------------------------------------- the worker table


def test_update_resources_enters_and_changes() -> None:
    manager = ResourceManager()
    row = manager.update_resources("w1", {"cpus": 4, "num_gpus": 2, "gpu_memory_gb": 16})
    assert (row.worker_id, row.num_gpus, len(manager)) == ("w1", 2, 1)
    again = manager.update_resources("w1", WorkerResources(cpus=2))
    assert again is row
    assert (row.num_gpus, row.resources) == (0, WorkerResources(cpus=2))
    manager.check()


def test_update_resources_refuses_nonsense() -> None:
    manager = ResourceManager()
    row = manager.update_resources("w1", {"cpus": 4})
    for values in ({"cpus": -1}, {"cores": 4}, {"num_gpus": "many"}):
        with pytest.raises(ValueError, match=r"must be|unknown|Expected"):
            manager.update_resources("w1", values)
    assert row.resources == WorkerResources(cpus=4)


def test_update_resources_keeps_what_is_reserved() -> None:
    world = World()
    world.join(cpus=4, num_gpus=2)
    world.submit(min_gpus=2, cpus=2)
    manager = world.engine.resources
    row = manager.update_resources("w1", {"cpus": 3, "num_gpus": 3})
    assert row.ledger is not None
    assert (row.ledger.free_cpus, [d.free_share for d in row.ledger.devices]) == (1000, [0, 0, 1000])
    with pytest.raises(ValueError, match="no longer declared is reserved"):
        manager.update_resources("w1", {"cpus": 3, "num_gpus": 1})
    manager.check()


def test_find_suitable_worker() -> None:
    manager = ResourceManager()
    assert manager.find_suitable_worker(TaskRequirements()) is None
    manager.update_resources("small", {"cpus": 1})
    manager.update_resources("gpu", {"cpus": 4, "num_gpus": 1, "gpu_memory_gb": 8})
    manager.update_resources("away", {"cpus": 64, "num_gpus": 8, "gpu_memory_gb": 80})
    manager.set_status(manager.workers[WorkerId("away")], WorkerStatus.DRAINING)
    assert manager.find_suitable_worker(TaskRequirements()) == "small"
    assert manager.find_suitable_worker(TaskRequirements(min_gpus=0.5, min_memory=8)) == "gpu"
    assert manager.find_suitable_worker(TaskRequirements(min_gpus=1, min_memory=9)) is None
    assert manager.find_suitable_worker(TaskRequirements(cpus=9, variants=(TaskRequirements(cpus=3),))) == "gpu"


def test_find_suitable_worker_by_load() -> None:
    world = World()
    world.join("w1", cpus=4)
    world.submit()
    world.join("w2", cpus=4)
    manager = world.engine.resources
    assert manager.find_suitable_worker(TaskRequirements()) == "w2"
    manager.workers[WorkerId("w2")].task_queue.append(world.task(1))
    assert manager.find_suitable_worker(TaskRequirements()) == "w1"
    manager.workers[WorkerId("w2")].task_queue.clear()


def test_add_twice() -> None:
    manager = ResourceManager()
    manager.add(W, WorkerResources())
    with pytest.raises(ValueError, match="already there"):
        manager.add(W, WorkerResources())


def test_remove() -> None:
    manager = ResourceManager()
    row = manager.add(W, WorkerResources())
    manager.remove(W)
    assert row.status == "dead"
    with pytest.raises(KeyError):
        manager.remove(W)


def test_need_of_a_task_that_was_never_admitted() -> None:
    with pytest.raises(ValueError, match="no request class"):
        need_of(task(1))
