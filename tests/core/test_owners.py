# mypy: disable-error-code="arg-type, list-item"
"""Tasks belong to who submitted them: others but administrators leave them as they are."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from schedd.core import effects as fx
from schedd.core import events as ev
from schedd.core.model import Command, TaskEntry, TaskId
from schedd.journal.records import decode_facts, encode_facts, finished_record, finished_row

from .builders import World, of, picture, selection, spec, unchanged
from .test_restore import Restartable

#: Each change of tasks, of a selection and as a user.
CHANGES: dict[str, Callable[[tuple[int, ...], str | None], ev.Event]] = {
    "cancel": lambda ids, user: ev.CancelTasks(1, selection(*ids), user=user),
    "cancel what has not started": lambda ids, user: ev.CancelTasks(1, selection(*ids), started=False, user=user),
    "preempt": lambda ids, user: ev.PreemptTasks(1, selection(*ids), 1.0, user),
    "hold": lambda ids, user: ev.HoldTasks(1, selection(*ids), user),
    "release": lambda ids, user: ev.ReleaseTasks(1, selection(*ids), user),
    "set": lambda ids, user: ev.SetTasks(1, selection(*ids), 7.0, user=user),
    "set priorities": lambda ids, user: ev.SetPriorities(1, [(TaskId(i), 7.0) for i in ids], user),
}
#: The state in which a task can be changed so.
RUNNING, HELD = ("preempt",), ("release",)


def submit(world: World, owner: str, count: int = 1, **values: object) -> list[TaskId]:
    effects = world.handle(ev.SubmitTasks(1, [spec(**values)], [TaskEntry(0)] * count, owner=owner, user=owner))
    (reply,) = of(effects.actions, fx.ReplySubmitted)
    ids: list[TaskId] = reply.ids
    return ids


def world_for(change: str, owner: str) -> World:
    """A world with task 1 of this owner, in a state in which it can be changed."""
    world = World()
    submit(world, owner, hold=change in HELD)
    if change in RUNNING:
        world.join()
        world.start(1)
    return world


@pytest.mark.parametrize("change", CHANGES)
def test_somebody_elses_task_is_left_as_it_is(change: str) -> None:
    world = world_for(change, "alice")
    before = picture(world.engine)
    effects = world.handle(CHANGES[change]((1,), "bob"))
    assert unchanged(effects) == [(1, "belongs to alice")]
    assert not effects.facts
    assert picture(world.engine) == before


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(("owner", "user"), [("alice", "alice"), ("alice", None), ("", "bob"), ("", None), ("", "")])
def test_ones_own_nobodys_and_by_an_administrator(change: str, owner: str, user: str | None) -> None:
    world = world_for(change, owner)
    effects = world.handle(CHANGES[change]((1,), user))
    (reply,) = of(effects.actions, fx.ReplyChanged)
    assert (reply.changed, reply.unchanged) == (1, [])


@pytest.mark.parametrize("change", CHANGES)
def test_who_has_no_name_changes_nobodys_tasks_only(change: str) -> None:
    world = world_for(change, "alice")
    assert unchanged(world.handle(CHANGES[change]((1,), ""))) == [(1, "belongs to alice")]


def test_cancel_all_takes_what_is_ones_own() -> None:
    world = World()
    submit(world, "alice", 2)
    submit(world, "bob", 2)
    effects = world.handle(ev.CancelTasks(1, selection(), user="bob"))
    assert world.states(1, 2, 3, 4) == ["queued", "queued", "cancelled", "cancelled"]
    (reply,) = of(effects.actions, fx.ReplyChanged)
    assert reply.changed == 2
    assert sorted(reply.unchanged) == [(1, "belongs to alice"), (2, "belongs to alice")]


def test_key_of_somebody_elses_task() -> None:
    world = World()
    key = [TaskEntry(0, key="k")]
    world.handle(ev.SubmitTasks(1, [spec()], key, owner="alice", user="alice"))
    (no,) = of(world.handle(ev.SubmitTasks(2, [spec()], key, owner="bob", user="bob")).actions, fx.ReplyDeclined)
    assert no.code == "key_conflict"
    assert "belongs to alice" in no.message
    (yes,) = of(world.handle(ev.SubmitTasks(3, [spec()], key, owner="alice", user="alice")).actions, fx.ReplySubmitted)
    assert yes.ids == [1]
    (yes,) = of(world.handle(ev.SubmitTasks(4, [spec()], key, owner="root", user=None)).actions, fx.ReplySubmitted)
    assert yes.ids == [1]
    assert world.task(1).owner == "alice"


def test_what_is_cancelled_with_ones_own_task_may_be_somebody_elses() -> None:
    """Who comes after a task of another's depends on it, in this too."""
    world = World()
    submit(world, "alice", hold=True)
    submit(world, "bob", after=[1])
    world.handle(ev.CancelTasks(1, selection(1), user="alice"))
    assert world.states(1, 2) == ["cancelled", "cancelled"]


def test_owner_outlives_a_restart() -> None:
    world = Restartable()
    submit(world, "alice", 2)
    submit(world, "", 1)
    world.join()
    world.finish(1)
    world.restart()
    assert [world.task(i).owner for i in (1, 2, 3)] == ["alice", "alice", ""]
    assert unchanged(world.handle(ev.CancelTasks(1, selection(2), user="bob"))) == [(2, "belongs to alice")]


def test_facts_of_a_daemon_that_knew_no_owners() -> None:
    fact = fx.TasksAdmitted(5, [spec()], [TaskEntry(0)], [TaskId(1)], "c", 1, 0, [], "alice")
    (again,) = decode_facts(encode_facts([fact]))
    assert again == fact
    values = msgspec.msgpack.decode(msgspec.msgpack.encode(fact))
    (old,) = decode_facts(encode_facts([msgspec.Raw(msgspec.msgpack.encode(values[:-1]))]))
    assert isinstance(old, fx.TasksAdmitted)
    assert (old.owner, old.client, old.ids) == ("", "c", [1])


def test_fact_with_an_owner_can_be_read_by_a_daemon_that_knows_none() -> None:
    class Old(msgspec.Struct, frozen=True, tag="TasksAdmitted", array_like=True):
        at_ns: int
        specs: list[msgspec.Raw]

    fact = fx.TasksAdmitted(5, [spec()], [TaskEntry(0)], [TaskId(1)], owner="alice")
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(fact), type=Old).at_ns == 5


@pytest.mark.parametrize("payload", [None, Command(["true"])])
def test_owner_of_what_has_ended(payload: Command | None) -> None:
    world = World()
    world.join()
    submit(world, "alice")
    world.finish(1)
    task = world.task(1)
    task.payload = payload
    assert finished_row(finished_record(task, None)).owner == "alice"
