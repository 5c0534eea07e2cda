# mypy: disable-error-code="arg-type, list-item"
"""Tasks that wait for others."""

from __future__ import annotations

import pytest

from schedd.core import effects as fx
from schedd.core import events as ev
from schedd.core import requests
from schedd.core.model import SECOND, Cause, TaskEntry, TaskRules

from .builders import START, World, dispatches, of, selection, spec
from .test_restore import GRACE_S, Restartable


def chain(world: World, length: int) -> None:
    world.submit_entries(spec(), [TaskEntry(0), *(TaskEntry(0, after=[-n]) for n in range(1, length))])


def ends(effects: fx.Effects) -> list[tuple[int, str, str]]:
    return [(fact.task_id, fact.state, fact.message) for fact in of(effects.facts, fx.TaskFinished)]


def test_dependency_succeeds() -> None:
    world = World()
    world.join(cpus=2)
    chain(world, 2)
    assert world.states(1, 2) == ["assigned", "waiting"]
    assert world.task(2).after == (1,)
    effects = world.finish(1)
    assert effects.facts[1:] == [
        fx.TaskFinished(1, "succeeded", START, "", None),
        fx.AttemptDispatched(2, 1, "w1", START),
    ]
    assert dispatches(effects) == {"w1": [(2, 1)]}


def test_dependency_of_the_whole_spec() -> None:
    world = World()
    world.join(cpus=4)
    world.submit(2)
    world.submit(2, after=[1, 2, 1])
    assert world.task(3).after == (1, 2)
    assert world.states(3, 4) == ["waiting", "waiting"]
    world.finish(1)
    assert world.states(3, 4) == ["waiting", "waiting"]
    world.finish(2)
    assert world.states(3, 4) == ["assigned", "assigned"]


def test_dependency_has_succeeded_already() -> None:
    world = World()
    world.join()
    world.submit()
    world.finish(1)
    world.submit(after=[1])
    assert world.states(2) == ["assigned"]


@pytest.mark.parametrize(("cause", "word"), [(Cause.ERROR, "failed"), (Cause.CANCELLED, "was cancelled")])
def test_dependency_ends_badly(cause: Cause, word: str) -> None:
    world = World()
    world.join()
    world.submit_entries(spec(), [TaskEntry(0), TaskEntry(0, after=[-1]), TaskEntry(0, after=[-2])])
    effects = world.finish(1, cause=cause)
    assert ends(effects)[1:] == [
        (2, "cancelled", f"needs task 1, which {word}"),
        (3, "cancelled", "needs task 2, which was cancelled"),
    ]
    assert not effects.actions
    (record,) = world.task(2).attempts
    assert (record.attempt, record.worker_id, record.cause) == (0, "", Cause.CANCELLED)
    assert record.message == f"needs task 1, which {word}"
    assert not world.engine.tasks.barriers
    assert not world.engine.tasks.dependents


def test_dependency_refused_when_it_has_failed() -> None:
    world = World()
    world.join()
    world.submit()
    world.finish(1, cause=Cause.ERROR)
    effects = world.handle(ev.SubmitTasks(1, [spec(after=[1])], [TaskEntry(0)]))
    (reply,) = effects.actions
    assert isinstance(reply, fx.ReplyDeclined)
    assert (reply.code, reply.message) == ("illegal_state", "task 1 failed; a task that needs it could never run")


def test_diamond() -> None:
    world = World()
    world.join(cpus=4)
    entries = [TaskEntry(0), TaskEntry(0, after=[-1]), TaskEntry(0, after=[-1]), TaskEntry(0, after=[-2, -3])]
    world.submit_entries(spec(), entries)
    world.finish(1)
    assert world.states(2, 3, 4) == ["assigned", "assigned", "waiting"]
    world.finish(3)
    assert world.states(4) == ["waiting"]
    world.finish(2)
    assert world.states(4) == ["assigned"]


def test_diamond_collapses_once() -> None:
    world = World()
    world.join()
    entries = [TaskEntry(0), TaskEntry(0, after=[-1]), TaskEntry(0, after=[-1]), TaskEntry(0, after=[-2, -3, -1])]
    world.submit_entries(spec(), entries)
    assert sorted(end[0] for end in ends(world.cancel(1))) == []
    effects = world.finish(1, cause=Cause.CANCELLED)
    assert sorted(end[0] for end in ends(effects)) == [1, 2, 3, 4]


def test_long_chain_falls_without_recursion() -> None:
    world = World()
    chain(world, 3000)
    assert len(ends(world.cancel(1))) == 3000


def test_dependency_retries_first() -> None:
    world = World()
    world.join()
    world.submit(rules=TaskRules(retries=1))
    world.submit(after=[1])
    world.finish(1, cause=Cause.ERROR)
    assert world.states(1, 2) == ["delayed", "waiting"]


def test_held_task_loses_its_dependency() -> None:
    world = World()
    world.submit()
    world.submit(after=[1], hold=True)
    assert world.states(2) == ["held"]
    world.cancel(1)
    assert world.states(2) == ["cancelled"]


def test_held_task_whose_dependency_succeeds() -> None:
    world = World()
    world.join()
    world.submit()
    world.submit(after=[1], hold=True)
    world.release(2)
    assert world.states(2) == ["waiting"]
    world.hold(2)
    world.finish(1)
    assert world.states(2) == ["held"]
    world.release(2)
    assert world.states(2) == ["assigned"]


def test_delay_counts_from_the_submit() -> None:
    world = World()
    world.join()
    world.submit()
    world.submit(after=[1], delay_s=10)
    world.wait(4)
    world.finish(1)
    assert world.states(2) == ["delayed"]
    assert world.engine.next_deadline() == START + 10 * SECOND
    world.wake_in(6)
    assert world.states(2) == ["assigned"]


def test_cancel_what_waits() -> None:
    world = World()
    world.submit()
    world.submit(after=[1])
    assert ends(world.cancel(2)) == [(2, "cancelled", "cancelled")]
    assert not world.engine.tasks.barriers
    world.join()
    world.finish(1)
    assert world.states(1, 2) == ["succeeded", "cancelled"]


def test_cancel_a_whole_chain_counts_each() -> None:
    world = World()
    world.submit_entries(spec(job="j"), [TaskEntry(0), TaskEntry(0, after=[-1]), TaskEntry(0, after=[-2])])
    effects = world.handle(ev.CancelTasks(1, selection(job="j")))
    assert effects.actions == [fx.ReplyChanged(1, 3, [])]
    assert {end[2] for end in ends(effects)} == {"cancelled"}


def test_neighbours_that_wait_for_the_same_share_what_they_wait_for() -> None:
    """A hundred that wait for a hundred cost two hundred, not ten thousand; by spec, by entry, after a restart."""
    world = Restartable()
    world.join(cpus=100)
    first = world.submit(100)
    by_spec = world.submit(100, after=first)
    by_entry = world.submit_entries(spec(), [TaskEntry(0, after=list(first)) for _ in range(100)])
    for _ in range(2):
        tasks = world.engine.tasks
        assert tasks.dependencies == 200
        assert len({id(tasks.barriers[i]) for i in by_spec}) == len({id(tasks.barriers[i]) for i in by_entry}) == 1
        assert len({id(tasks.rows[i].after) for i in by_spec}) == 1
        world.restart()
    world.join(cpus=100)
    world.wake_in(GRACE_S)
    for task_id in first[:-1]:
        world.finish(task_id)
    assert set(world.states(*by_spec, *by_entry)) == {"waiting"}
    world.cancel(*by_spec[:50])
    assert world.engine.tasks.dependencies == 2
    world.finish(first[-1])
    assert "waiting" not in world.states(*by_spec, *by_entry)
    assert not world.engine.tasks.barriers
    assert not world.engine.tasks.dependents


def test_those_that_wait_for_the_same_end_with_it() -> None:
    world = World()
    first = world.submit(3)
    ids = world.submit(3, after=first)
    more = world.submit_entries(spec(after=first), [TaskEntry(0, after=[ids[0]]), TaskEntry(0)])
    world.cancel(first[1])
    assert set(world.states(*ids, *more)) == {"cancelled"}
    assert world.engine.tasks.dependencies == 0


def test_submit_in_which_tasks_wait_too_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "DEPENDENCIES_MAX", 5)
    world = World()
    world.submit(3)
    world.submit(100, after=[1, 2, 3])
    entries = [TaskEntry(0, after=[1, 2]), TaskEntry(0, after=[1, 2]), TaskEntry(0, after=[1, 3])]
    world.submit_entries(spec(), [*entries, TaskEntry(0, after=[3])])
    effects = world.handle(ev.SubmitTasks(1, [spec()], [*entries, TaskEntry(0, after=[2, 3])]))
    assert effects.actions == [
        fx.ReplyDeclined(
            1,
            "too_large",
            "the tasks of one submit wait for others 6 times, and may 5 times",
            "let one task wait for many others, and many others for that one",
        )
    ]
    assert not effects.facts


def test_bound_on_all_that_wait() -> None:
    world = World(unfinished_max=10)
    world.submit(2)
    world.submit_entries(spec(), [TaskEntry(0, after=[1, 2]), TaskEntry(0, after=[1]), TaskEntry(0, after=[2])])
    world.submit_entries(spec(), [TaskEntry(0, after=[2, 1]), TaskEntry(0, after=[1])])
    effects = world.handle(ev.SubmitTasks(1, [spec()], [TaskEntry(0, after=[1, 2, 3, 4])]))
    (declined,) = of(effects.actions, fx.ReplyDeclined)
    assert (declined.code, declined.message) == (
        "queue_full",
        "tasks wait for others 7 times, and at most 10 times they may",
    )
    world.cancel(3)
    assert world.submit_entries(spec(), [TaskEntry(0, after=[1, 2])])


def test_dependents_of_what_is_forgotten_at_once() -> None:
    world = World(finished_keep_count=1)
    world.submit()
    world.submit(3, after=[1])
    assert len(ends(world.cancel(1))) == 4
    assert len(world.engine.tasks) == 1
