"""The queue against a sorted list, and the deadlines against a dict."""

from __future__ import annotations

import gc
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schedd.core.classes import RequestClasses
from schedd.core.model import SECOND, Task, TaskId, TaskRequirements
from schedd.core.queue import ClassQueue, TaskQueue
from schedd.core.timers import Deadlines


class Model:
    """A queue beside a plain set of what must be in it."""

    def __init__(self, ageing_per_hour: float) -> None:
        self.queue = TaskQueue(ageing_per_hour / 3600, lambda task: task.priority)
        self.classes = RequestClasses()
        self.waiting: set[TaskId] = set()
        self.tasks: dict[TaskId, Task] = {}
        self.now = 0

    def make(self, cpus: float, priority: float) -> Task:
        self.now += SECOND
        task = Task(id=TaskId(len(self.tasks) + 1), priority=priority, submitted_ns=self.now)
        task.request = self.classes.intern(TaskRequirements(cpus=cpus), "", by_kind=False)
        self.tasks[task.id] = task
        return task

    def push(self, task: Task) -> None:
        self.queue.push(task)
        self.waiting.add(task.id)

    def remove(self, task: Task) -> None:
        self.queue.remove(task)
        self.waiting.discard(task.id)

    def order(self) -> list[TaskId]:
        return sorted(self.waiting, key=lambda i: self.queue.rank(self.tasks[i]))

    def take(self) -> TaskId | None:
        best = self.queue.best()
        if best is None:
            return None
        task = self.queue.pop(best)
        self.waiting.discard(task.id)
        return task.id

    def check(self) -> None:
        self.queue.check()
        assert len(self.queue) == len(self.waiting)
        assert sorted(task.id for task in self.queue) == sorted(self.waiting)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 1 << 32), ageing=st.sampled_from([0.0, 1.0, 3600.0]))
def test_queue_is_a_sorted_list(seed: int, ageing: float) -> None:
    dice = random.Random(seed)
    model = Model(ageing)
    for _ in range(150):
        waiting = model.order()
        match dice.randrange(6):
            case 0 | 1:
                model.push(model.make(dice.choice([1, 2, 3]), dice.choice([0, 1, 5.5])))
            case 2 if waiting:
                model.remove(model.tasks[dice.choice(waiting)])
            case 3:
                idle = [task for task in model.tasks.values() if task.id not in model.waiting]
                if idle:
                    task = dice.choice(idle)
                    task.priority = dice.choice([task.priority, 0, 1, 5.5])
                    model.push(task)
            case 4:
                assert model.take() == (waiting[0] if waiting else None)
            case 5:
                request = model.classes.intern(TaskRequirements(cpus=dice.choice([1, 2, 3])), "", by_kind=False)
                found = model.queue.find(request)
                of_class = [i for i in waiting if model.tasks[i].request is request]
                head = model.queue.head(found) if found is not None else None
                assert (head.id if head is not None else None) == (of_class[0] if of_class else None)
        model.check()
    for expected in model.order():
        assert model.take() == expected
    assert model.queue.best() is None


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 1 << 32))
def test_classes_set_aside(seed: int) -> None:
    """Aside, a class is left out of `best`; brought back, it stands where it belongs."""
    dice = random.Random(seed)
    model = Model(0)
    for _ in range(60):
        model.push(model.make(dice.choice([1, 2, 3, 4]), dice.choice([0, 1])))
    while model.waiting:
        aside = model.queue.aside()
        rest = [i for i in model.order() if not any(model.tasks[i].request is q.request for q in aside)]
        best = model.queue.best()
        if best is None:
            assert not rest
            for queue in aside:
                model.queue.bring_back(queue)
            continue
        head = model.queue.head(best)
        assert head is not None
        assert head.id == rest[0]
        if dice.random() < 0.3:
            model.queue.set_aside(best)
        else:
            model.waiting.discard(model.queue.pop(best).id)
        if dice.random() < 0.1:
            model.push(model.make(dice.choice([5, 6]), dice.choice([0, 1])))
        model.check()


def test_pop_from_an_empty_class() -> None:
    queue = TaskQueue(0, lambda task: 0)
    with pytest.raises(IndexError):
        queue.pop(ClassQueue(RequestClasses().intern(TaskRequirements(), "", by_kind=False)))


def test_push_without_a_class() -> None:
    with pytest.raises(ValueError, match="request class"):
        TaskQueue(0, lambda task: 0).push(Task(id=TaskId(1)))


def test_remove_of_what_does_not_wait() -> None:
    model = Model(0)
    model.queue.remove(model.make(1, 0))
    model.check()


def test_mass_cancellation_leaves_nothing_behind() -> None:
    model = Model(0)
    tasks = [model.make(1, n % 5) for n in range(2000)]
    for task in tasks:
        model.push(task)
    for task in tasks[:1990]:
        model.remove(task)
    (queue,) = model.queue._queues.values()
    assert sum(len(level.tasks) + len(level.returned) for level in queue.levels.values()) < 200
    model.check()


def test_class_lives_as_long_as_a_task_refers_to_it() -> None:
    classes = RequestClasses()
    one = classes.intern(TaskRequirements(cpus=2), "k", by_kind=False)
    assert classes.intern(TaskRequirements(cpus=2, estimated_time=9), "other", by_kind=False) is one
    assert classes.intern(TaskRequirements(cpus=2), "k", by_kind=True) is not one
    number = one.number
    del one
    gc.collect()
    assert classes.intern(TaskRequirements(cpus=2), "k", by_kind=False).number > number


# ----------------------------------------------------------------------------------------------------------- deadlines


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("sce"), st.integers(0, 9), st.integers(0, 20)), max_size=300))
def test_deadlines(moves: list[tuple[str, int, int]]) -> None:
    deadlines: Deadlines[int] = Deadlines()
    live: dict[int, tuple[int, int]] = {}
    for number, (move, key, when) in enumerate(moves):
        if move == "s":
            deadlines.set(key, when)
            live[key] = (when, number)
        elif move == "c":
            deadlines.cancel(key)
            live.pop(key, None)
        else:
            due = sorted((k for k, (at, _) in live.items() if at <= when), key=lambda k: live[k])
            assert deadlines.expire(when) == due
            for k in due:
                del live[k]
        assert deadlines.next() == min((at for at, _ in live.values()), default=None)
        assert len(deadlines) == len(live)
        assert all(k in deadlines for k in live)


def test_deadline_set_again_and_again() -> None:
    deadlines: Deadlines[str] = Deadlines()
    for when in range(10_000):
        deadlines.set("key", when)
    assert len(deadlines._heap) < 100
    assert deadlines.expire(9_998) == []
    assert deadlines.expire(9_999) == ["key"]
