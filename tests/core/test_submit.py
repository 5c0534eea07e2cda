# mypy: disable-error-code="arg-type, list-item"
"""What a submit may ask for, and what it is answered."""

from __future__ import annotations

import math

import pytest

from schedd.core import effects as fx
from schedd.core import events as ev
from schedd.core import requests
from schedd.core.model import SECOND, Cause, Command, TaskEntry, TaskSpec
from schedd.core.submits import Admitted, Submits

from .builders import START, World, dispatches, joined, of, selection, spec


def submit(world: World, *entries: TaskEntry, strict: bool = False, specs: list[TaskSpec] | None = None) -> fx.Effects:
    return world.handle(ev.SubmitTasks(7, specs if specs is not None else [spec()], list(entries), strict))


def declined(effects: fx.Effects) -> tuple[str, str]:
    """Code and message of the refusal; nothing else may have come of the turn."""
    assert not effects.facts
    (reply,) = effects.actions
    assert isinstance(reply, fx.ReplyDeclined)
    assert reply.origin == 7
    return reply.code, reply.message


def test_submit_without_workers() -> None:
    world = World()
    entries = [TaskEntry(0, b"x"), TaskEntry(0, b"y")]
    effects = submit(world, *entries)
    assert effects.facts == [fx.TasksAdmitted(START, [spec()], entries, [1, 2])]
    warning = "no worker is connected; the task waits for one"
    assert effects.actions == [fx.ReplySubmitted(7, [1, 2], [warning], [START])]
    assert world.states(1, 2) == ["queued", "queued"]
    assert (world.task(1).argument, world.task(2).argument) == (b"x", b"y")
    assert world.engine.counters.submitted == 2


def test_submit_to_idle_worker() -> None:
    world = World()
    world.join("w1")
    effects = submit(world, TaskEntry(0))
    assert effects.facts == [
        fx.TasksAdmitted(START, [spec()], [TaskEntry(0)], [1]),
        fx.AttemptDispatched(1, 1, "w1", START),
    ]
    assert effects.actions == [
        fx.ReplySubmitted(7, [1], [], [START]),
        fx.DispatchAttempts("w1", [world.task(1)]),
    ]
    assert world.states(1) == ["assigned"]


def test_submit_of_nothing() -> None:
    world = World()
    effects = submit(world, specs=[])
    assert not effects.facts
    assert effects.actions == [fx.ReplySubmitted(7, [], [], [START])]


def test_life_of_a_task() -> None:
    world = World()
    world.join("w1")
    world.submit(kind="train", job="j")
    world.wait(1)
    effects = world.start(1)
    assert effects.facts == [fx.AttemptBegan(1, 1, START + SECOND)]
    assert not effects.actions
    world.wait(2)
    effects = world.finish(1, result=b"42", exit_code=0)
    (ended, done) = effects.facts
    assert isinstance(ended, fx.AttemptEnded)
    record = ended.record
    assert (record.attempt, record.worker_id, record.cause, record.exit_code) == (1, "w1", Cause.OK, 0)
    assert (record.dispatched_at_ns, record.started_at_ns, record.finished_at_ns) == (
        START,
        START + SECOND,
        START + 3 * SECOND,
    )
    assert done == fx.TaskFinished(1, "succeeded", START + 3 * SECOND, "", b"42")
    assert not effects.actions
    assert world.task(1).result == b"42"
    assert world.task(1).attempts == (record,)
    assert world.worker().finished_count == 1
    assert (world.engine.counters.finished, world.engine.counters.by_cause) == (1, {"ok": 1})


def test_ids_are_dense() -> None:
    world = World()
    assert world.submit(2) == [1, 2]
    assert declined(submit(world, TaskEntry(9)))[0] == "bad_request"
    assert world.submit(1) == [3]


# --------------------------------------------------------------------------------------------------------------- keys


def test_key_said_again() -> None:
    world = World()
    first = submit(world, TaskEntry(0, b"x", "k"))
    assert of(first.actions, fx.ReplySubmitted)[0].ids == [1]
    again = submit(world, TaskEntry(0, b"x", "k"), TaskEntry(0, b"y", "other"))
    assert of(again.actions, fx.ReplySubmitted)[0].ids == [1, 2]
    assert again.facts == [fx.TasksAdmitted(START, [spec()], [TaskEntry(0, b"y", "other")], [2])]
    assert world.engine.counters.submitted == 2


def test_key_said_again_after_the_end() -> None:
    world = World()
    world.join()
    submit(world, TaskEntry(0, b"x", "k"))
    world.finish(1, result=b"r")
    again = submit(world, TaskEntry(0, b"x", "k"))
    assert not again.facts
    assert again.actions == [fx.ReplySubmitted(7, [1], [], [START])]


@pytest.mark.parametrize(("specs", "argument"), [([spec()], b"other"), ([spec(payload=Command(["false"]))], b"x")])
def test_key_of_something_else(specs: list[TaskSpec], argument: bytes) -> None:
    world = World()
    submit(world, TaskEntry(0, b"x", "k"))
    code, message = declined(submit(world, TaskEntry(0, b"new"), TaskEntry(0, argument, "k"), specs=specs))
    assert code == "key_conflict"
    assert "key 'k' names task 1" in message
    assert len(world.engine.tasks) == 1


@pytest.mark.parametrize("keys", [["", None], ["k", "k"]])
def test_key_empty_or_twice(keys: list[str | None]) -> None:
    world = World()
    code, message = declined(submit(world, *(TaskEntry(0, b"", key) for key in keys)))
    assert (code, "is empty or stands twice" in message) == ("bad_request", True)


def test_key_of_a_forgotten_task() -> None:
    world = World(keyed_keep_count=1)
    world.join(cpus=2)
    submit(world, TaskEntry(0, b"x", "k"), TaskEntry(0, b"x", "l"))
    world.finish(1, 2)
    assert of(submit(world, TaskEntry(0, b"y", "k")).actions, fx.ReplySubmitted)[0].ids == [3]


def test_key_outlives_tasks_without_one() -> None:
    """Many short tasks must not shorten the time in which a submit may be repeated."""
    world = World(finished_keep_count=1, keyed_keep_count=2)
    world.join(cpus=4)
    submit(world, TaskEntry(0, b"x", "k"))
    world.submit(3)
    world.finish(1, 2, 3, 4)
    assert sorted(world.engine.tasks.rows) == [1, 4]
    assert of(submit(world, TaskEntry(0, b"x", "k")).actions, fx.ReplySubmitted)[0].ids == [1]
    world.engine.check()


def test_resubmit_when_the_dependency_is_gone() -> None:
    """A client that lost the answer asks again; by then what the task waited for has failed, or is forgotten."""
    world = World(finished_keep_count=2)
    world.join()
    entries = [TaskEntry(0, b"a", "a"), TaskEntry(0, b"b", "b", after=[-1])]
    submit(world, *entries)
    world.finish(1, cause=Cause.ERROR)
    again = submit(world, *entries)
    assert not again.facts
    assert of(again.actions, fx.ReplySubmitted)[0].ids == [1, 2]


def test_resubmit_by_id_when_the_dependency_failed() -> None:
    world = World()
    world.join()
    world.submit()
    entry = TaskEntry(0, b"b", "b", after=[1])
    submit(world, entry)
    world.finish(1, cause=Cause.ERROR)
    assert of(submit(world, entry).actions, fx.ReplySubmitted)[0].ids == [2]


def test_resubmit_to_a_full_queue() -> None:
    world = World(unfinished_max=1)
    submit(world, TaskEntry(0, b"a", "a"))
    assert of(submit(world, TaskEntry(0, b"a", "a")).actions, fx.ReplySubmitted)[0].ids == [1]


def test_resubmit_strictly() -> None:
    world = World()
    world.join(cpus=8)
    entry, wants = TaskEntry(0, b"a", "a"), [spec(cpus=8)]
    submit(world, entry, specs=wants)
    world.handle(ev.WorkerLeft("w1"))
    assert of(submit(world, entry, specs=wants, strict=True).actions, fx.ReplySubmitted)[0].ids == [1]


def test_key_of_a_failed_task_as_dependency() -> None:
    world = World()
    world.join()
    submit(world, TaskEntry(0, b"a", "a"))
    world.finish(1, cause=Cause.ERROR)
    code, message = declined(submit(world, TaskEntry(0, b"a", "a"), TaskEntry(0, b"b", after=[-1])))
    assert code == "illegal_state"
    assert message == "task 1 failed; a task that needs it could never run"


def test_facts_of_a_partly_known_submit_stand_alone() -> None:
    """References to entries that were known already are written as ids: the fact has only the fresh entries."""
    world = World()
    submit(world, TaskEntry(0, b"a", "a"))
    effects = submit(world, TaskEntry(0, b"a", "a"), TaskEntry(0, b"b", after=[-1]), TaskEntry(0, b"c", after=[-2, -1]))
    (admitted,) = of(effects.facts, fx.TasksAdmitted)
    assert admitted.ids == [2, 3]
    assert [entry.after for entry in admitted.tasks] == [[1], [2, 1]]
    assert (world.task(2).after, world.task(3).after) == ((1,), (2, 1))


# ---------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("specs", "entries", "code", "message"),
    [
        ([spec()], [TaskEntry(1)], "bad_request", "entry 0 names spec 1 of 1"),
        ([spec()], [TaskEntry(-1)], "bad_request", "entry 0 names spec -1 of 1"),
        ([], [TaskEntry(0)], "bad_request", "entry 0 names spec 0 of 0"),
        ([spec(kind="k" * 513)], [TaskEntry(0)], "bad_request", "a kind of 513 characters is above the bound of 512"),
        ([spec(job="j" * 513)], [TaskEntry(0)], "bad_request", "a job of 513 characters is above the bound of 512"),
        ([spec()], [TaskEntry(0, key="x" * 513)], "bad_request", "a key of 513 characters is above the bound of 512"),
        ([spec(priority=math.nan)], [TaskEntry(0)], "bad_request", "nan is no priority"),
        ([spec(priority=math.inf)], [TaskEntry(0)], "bad_request", "inf is no priority"),
        ([spec()], [TaskEntry(0, priority=-math.inf)], "bad_request", "entry 0 has the priority -inf"),
        ([spec(delay_s=-1.0)], [TaskEntry(0)], "bad_request", "a delay of -1.0 s makes no sense"),
        ([spec(delay_s=math.nan)], [TaskEntry(0)], "bad_request", "a delay of nan s makes no sense"),
        ([spec(delay_s=1e12)], [TaskEntry(0)], "bad_request", "a delay of 1000000000000.0 s makes no sense"),
        ([spec(after=[-1])], [TaskEntry(0)], "bad_request", "what all tasks of a spec wait for must be ids"),
        ([spec(after=[99])], [TaskEntry(0)], "unknown_task", "there is no task 99 to wait for"),
        ([spec()], [TaskEntry(0, after=[99])], "unknown_task", "there is no task 99 to wait for"),
        ([spec()], [TaskEntry(0, after=[1 << 62])], "unknown_task", f"there is no task {1 << 62} to wait for"),
        ([spec()], [TaskEntry(0, after=[0])], "unknown_task", "there is no task 0 to wait for"),
        ([spec()], [TaskEntry(0, after=[-1])], "bad_request", "entry 0 depends on entry 0, which is not before it"),
        ([spec()], [TaskEntry(0), TaskEntry(0, after=[-3])], "bad_request", "entry 1 depends on entry 2"),
    ],
)
def test_submit_of_nonsense(specs: list[TaskSpec], entries: list[TaskEntry], code: str, message: str) -> None:
    world = World()
    world.join()
    said = declined(submit(world, *entries, specs=specs))
    assert said[0] == code
    assert said[1].startswith(message)
    assert len(world.engine.tasks) == 0


def test_queue_full() -> None:
    world = World(unfinished_max=2)
    world.join()
    world.submit(2)
    code, message = declined(submit(world, TaskEntry(0)))
    assert (code, message) == ("queue_full", "2 tasks are unfinished and at most 2 may be")
    world.finish(1)
    assert world.submit() == [3]


def test_all_or_none() -> None:
    world = World()
    declined(submit(world, TaskEntry(0), TaskEntry(0), TaskEntry(0, after=[5])))
    assert len(world.engine.tasks) == 0
    assert world.engine.next_deadline() is None


# -------------------------------------------------------------------------------------------------- will it ever run


def test_warning_when_no_worker_fits() -> None:
    world = World()
    world.handle(joined("w1", cpus=2), joined("w2", cpus=2), joined("w3", cpus=4, num_gpus=1))
    effects = submit(world, TaskEntry(0), specs=[spec(cpus=4, min_gpus=2)])
    (reply,) = of(effects.actions, fx.ReplySubmitted)
    assert reply.warnings == ["no worker fits: needs 4 CPUs, has 2 (2 workers); needs 2 GPUs, has 1 (1 worker)"]
    assert world.states(1) == ["queued"]


def test_fit_is_looked_for_anew_when_workers_come_or_go() -> None:
    """Who submits the same again is told what is true now, though what was found is remembered."""
    world = World()
    wants = spec(cpus=4)

    def warned() -> list[str]:
        reply: fx.ReplySubmitted = of(submit(world, TaskEntry(0), specs=[wants]).actions, fx.ReplySubmitted)[0]
        return reply.warnings

    world.join("w1", cpus=2)
    world.join("w2", cpus=4)
    assert [warned(), warned()] == [[], []]
    world.handle(ev.WorkerLeft("w2"))
    assert warned() == ["no worker fits: needs 4 CPUs, has 2 (1 worker)"]
    world.join("w3", cpus=8)
    assert warned() == []


def test_strict_when_no_worker_fits() -> None:
    world = World()
    assert declined(submit(world, TaskEntry(0), strict=True))[0] == "no_worker_fits"
    world.join(cpus=2)
    code, message = declined(submit(world, TaskEntry(0), specs=[spec(cpus=4)], strict=True))
    assert (code, message) == ("no_worker_fits", "no worker fits: needs 4 CPUs, has 2 (1 worker)")
    assert of(submit(world, TaskEntry(0), specs=[spec(cpus=2)], strict=True).actions, fx.ReplySubmitted)


def test_only_the_first_that_fit_nowhere_are_told() -> None:
    world = World()
    world.join(cpus=2)
    wants = [spec(cpus=4 + n) for n in range(50)]
    effects = submit(world, *[TaskEntry(n) for n in range(50)], specs=wants)
    warnings = of(effects.actions, fx.ReplySubmitted)[0].warnings
    assert warnings == [f"no worker fits: needs {4 + n} CPUs, has 2 (1 worker)" for n in range(requests.WARNINGS_MAX)]


def test_strict_fits_by_a_variant() -> None:
    world = World()
    world.join(cpus=2)
    wants = spec(cpus=4, variants=(spec(cpus=2).requirements,))
    effects = submit(world, TaskEntry(0), specs=[wants], strict=True)
    assert of(effects.actions, fx.ReplySubmitted)[0].warnings == []
    assert world.task(1).variant == 1


# ----------------------------------------------------------------------------------------------- delayed, held, order


def test_delayed_start() -> None:
    world = World()
    world.join()
    world.submit(delay_s=10)
    assert world.states(1) == ["delayed"]
    assert world.engine.next_deadline() == START + 10 * SECOND
    world.wait(9.999)
    assert not world.wake().facts
    world.wait(0.001)
    effects = world.wake()
    assert effects.facts == [fx.AttemptDispatched(1, 1, "w1", world.now)]
    assert dispatches(effects) == {"w1": [(1, 1)]}


def test_submit_held() -> None:
    world = World()
    world.join()
    world.submit(hold=True, delay_s=5)
    assert world.states(1) == ["held"]
    effects = world.release(1)
    assert of(effects.facts, fx.TaskReleased) == [fx.TaskReleased(1)]
    assert world.states(1) == ["delayed"]
    world.wake_in(5)
    assert world.states(1) == ["assigned"]


def test_entry_priority_over_that_of_the_spec() -> None:
    world = World()
    world.submit_entries(spec(priority=5), [TaskEntry(0), TaskEntry(0, priority=9.0), TaskEntry(0, priority=0.0)])
    assert [world.task(i).priority for i in (1, 2, 3)] == [5, 9, 0]
    world.join()
    assert world.states(1, 2, 3) == ["queued", "assigned", "queued"]


def test_job_counts() -> None:
    world = World()
    world.join()
    world.submit(2, job="j")
    world.finish(1)
    world.wait(1)
    world.finish(2, cause=Cause.ERROR)
    job = world.engine.tasks.jobs["j"]
    assert {state.__name__: n for state, n in job.counts.items() if n} == {"Succeeded": 1, "Failed": 1}
    assert (job.submitted_ns, job.finished_ns) == (START, START + SECOND)
    world.submit(1, job="j")
    assert job.finished_ns == 0
    assert [t.id for t in world.engine.tasks.select(selection(job="j"))] == [1, 2, 3]


def test_events_of_one_turn_share_a_pass() -> None:
    world = World()
    effects = world.handle(
        ev.SubmitTasks(1, [spec(priority=1)], [TaskEntry(0)]),
        ev.SubmitTasks(2, [spec(priority=2)], [TaskEntry(0)]),
        joined("w1"),
    )
    assert dispatches(effects) == {"w1": [(2, 1)]}


def test_submit_of_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "SUBMIT_TASKS_MAX", 2)
    world = World()
    code, message = declined(submit(world, TaskEntry(0), TaskEntry(0), TaskEntry(0)))
    assert (code, message) == ("too_large", "a submit of 3 tasks is above the bound of 2")
    assert declined(submit(world, TaskEntry(0), specs=[spec()] * 3))[0] == "too_large"


# --------------------------------------------------------------------------------------------- submits that come twice


def named(
    world: World,
    number: int,
    *entries: TaskEntry,
    client: str = "c",
    answered: int = 1,
    specs: list[TaskSpec] | None = None,
) -> fx.Effects:
    """Submit under a name."""
    return world.handle(ev.SubmitTasks(7, specs or [spec()], list(entries), False, client, number, answered))


def reply(effects: fx.Effects) -> list[int]:
    (answer,) = of(effects.actions, fx.ReplySubmitted)
    ids: list[int] = answer.ids
    return ids


def test_submit_that_comes_twice_is_one() -> None:
    world = World()
    first = named(world, 1, TaskEntry(0, b"x"), TaskEntry(0, b"y"))
    assert first.facts == [
        fx.TasksAdmitted(START, [spec()], [TaskEntry(0, b"x"), TaskEntry(0, b"y")], [1, 2], "c", 1, 1)
    ]
    world.wait(1)
    again = named(world, 1, TaskEntry(0, b"x"), TaskEntry(0, b"y"))
    assert not again.facts
    assert again.actions == [fx.ReplySubmitted(7, [1, 2], [], [START, START])]
    assert world.engine.counters.submitted == 2


def test_other_numbers_and_other_clients_are_others() -> None:
    world = World()
    assert reply(named(world, 1, TaskEntry(0))) == [1]
    assert reply(named(world, 2, TaskEntry(0))) == [2]
    assert reply(named(world, 1, TaskEntry(0), client="d")) == [3]
    assert reply(submit(world, TaskEntry(0))) == [4]
    assert reply(submit(world, TaskEntry(0))) == [5]


def test_submit_comes_twice_after_its_tasks_have_ended_and_are_forgotten() -> None:
    world = World(finished_keep_count=1)
    world.join(cpus=2)
    named(world, 1, TaskEntry(0), TaskEntry(0))
    world.finish(1)
    world.finish(2)
    again = named(world, 1, TaskEntry(0), TaskEntry(0))
    assert again.actions == [fx.ReplySubmitted(7, [1, 2], [], [START, START])]


def test_what_the_client_has_heard_of_is_forgotten() -> None:
    world = World()
    for number in range(1, 100):
        named(world, number, TaskEntry(0), answered=number - 1)
    assert len(world.engine._t.submits) == 2
    assert reply(named(world, 99, TaskEntry(0), answered=99)) == [99]


def test_submit_that_was_long_on_its_way_is_not_a_new_one() -> None:
    """On a connection that broke: its client sent it again on another, has heard of it, and has gone on."""
    world = World()
    named(world, 1, TaskEntry(0), answered=1)
    named(world, 2, TaskEntry(0), answered=2)
    late = named(world, 1, TaskEntry(0), answered=1)
    assert not late.facts
    assert declined(late)[0] == "bad_request"
    assert reply(named(world, 1, TaskEntry(0), client="d")) == [3]


def test_submits_of_clients_that_are_gone_are_bounded() -> None:
    submits = Submits(most=3)
    for number in range(1, 6):
        submits.add(Admitted(f"c{number}", 1, START, range(number, number + 1)), 0)
    assert [submits.find(f"c{number}", 1) is not None for number in range(1, 6)] == [False, False, True, True, True]
    assert len(submits) == 3


def test_keys_beside_a_name() -> None:
    """Some were there by their keys: the answer to the second is that to the first, also for those without a key."""
    world = World()
    submit(world, TaskEntry(0, b"x", "k"))
    entries = (TaskEntry(0, b"new"), TaskEntry(0, b"x", "k"), TaskEntry(0, b"y", "l"))
    first = named(world, 1, *entries)
    (fact,) = first.facts
    assert isinstance(fact, fx.TasksAdmitted)
    assert (fact.ids, fact.all_ids) == ([2, 3], [2, 1, 3])
    assert reply(first) == reply(named(world, 1, *entries)) == [2, 1, 3]


def test_refused_submit_may_come_again() -> None:
    world = World(unfinished_max=1)
    world.join()
    assert reply(named(world, 1, TaskEntry(0))) == [1]
    assert declined(named(world, 2, TaskEntry(0)))[0] == "queue_full"
    world.finish(1)
    assert reply(named(world, 2, TaskEntry(0))) == [2]


def test_same_name_for_another_submit() -> None:
    world = World()
    named(world, 1, TaskEntry(0))
    code, message = declined(named(world, 1, TaskEntry(0), TaskEntry(0)))
    assert (code, "had 1 tasks, now it has 2" in message) == ("bad_request", True)


@pytest.mark.parametrize(
    ("client", "number", "answered"), [("x" * 65, 1, 1), ("c", 0, 0), ("c", -1, 0), ("c", 1 << 53, 1), ("c", 1, -1)]
)
def test_unusable_name(client: str, number: int, answered: int) -> None:
    world = World()
    assert declined(named(world, number, TaskEntry(0), client=client, answered=answered))[0] == "bad_request"
    assert len(world.engine.tasks) == 0


def test_key_conflict_says_what_both_do() -> None:
    world = World()
    submit(world, TaskEntry(0, b"x", "k"), specs=[spec(payload=Command(["train", "a"]))])
    effects = submit(world, TaskEntry(0, b"x", "k"), specs=[spec(payload=Command(["train", "b"]))])
    (no,) = of(effects.actions, fx.ReplyDeclined)
    assert no.message == "key 'k' names task 1 ('train a'), which does something else"
    assert no.hint == "this submit would do 'train b': give it another key"
