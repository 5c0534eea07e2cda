"""Every request has an answer; what cannot be done is declined with a reason, and changes nothing."""

from __future__ import annotations

import math
from typing import Any

import pytest

from schedd.core.model import Call, Cause, Selection, TaskId, TaskRequirements, WorkerId, WorkerResources
from schedd.wire import messages as m

from .peers import RawClient, RawWorker

NOBODY = WorkerId("nobody")
UNKNOWN = TaskId(10**9)
HELD = m.TaskSpec(Call(path="a:b"), hold=True)


@pytest.mark.parametrize(
    ("kind", "fields", "answer"),
    [
        (m.Submit, ([HELD], [m.TaskEntry(0)]), m.Submitted),
        (m.Submit, ([], []), m.Submitted),
        (m.ListTasks, (Selection(),), m.TaskList),
        (m.ListTasks, (Selection(job="no such job"),), m.TaskList),
        (m.ListTasks, (Selection(), 0, 2**63, True), m.TaskList),
        (m.ListTasks, (Selection(), -(2**63), -(2**63)), m.TaskList),
        (m.ListTasks, (Selection(states=["no such state"]),), m.TaskList),
        (m.ListTasks, (Selection(ids=[UNKNOWN]),), m.RequestFailed),
        (m.ListJobs, (), m.JobList),
        (m.ListWorkers, (), m.WorkerList),
        (m.GetStats, (), m.Stats),
        (m.ExplainTask, (UNKNOWN,), m.RequestFailed),
        (m.WatchTasks, (Selection(job=""),), m.Watching),
        (m.WatchTasks, (Selection(ids=[UNKNOWN]),), m.RequestFailed),
        (m.WatchTasks, (Selection(job="no such job"),), m.RequestFailed),
        (m.CancelTasks, (Selection(ids=[UNKNOWN]),), m.Changed),
        (m.CancelTasks, (Selection(job="no such job"),), m.RequestFailed),
        (m.CancelTasks, (Selection(ids=[TaskId(2**63), TaskId(-1)]), False), m.Changed),
        (m.PreemptTasks, (Selection(ids=[UNKNOWN]),), m.Changed),
        (m.PreemptTasks, (Selection(job="no such job"),), m.RequestFailed),
        (m.PreemptTasks, (Selection(ids=[UNKNOWN]), math.nan), m.RequestFailed),
        (m.PreemptTasks, (Selection(ids=[UNKNOWN]), -1.0), m.RequestFailed),
        (m.HoldTasks, (Selection(ids=[UNKNOWN]),), m.Changed),
        (m.HoldTasks, (Selection(job="no such job"),), m.RequestFailed),
        (m.ReleaseTasks, (Selection(ids=[UNKNOWN]),), m.Changed),
        (m.ReleaseTasks, (Selection(job="no such job"),), m.RequestFailed),
        (m.SetTasks, (Selection(ids=[UNKNOWN]), 1.0), m.Changed),
        (m.SetTasks, (Selection(), math.nan), m.RequestFailed),
        (m.SetTasks, (Selection(), -math.inf), m.RequestFailed),
        (m.SetPriorities, ([(UNKNOWN, 1.0)],), m.Changed),
        (m.SetPriorities, ([(TaskId(1), math.nan)],), m.Changed),
        (m.SetPriorities, ([],), m.Changed),
        (m.DrainWorkers, ([NOBODY],), m.Changed),
        (m.DrainWorkers, ([NOBODY], True), m.Changed),
        (m.GetPolicy, (), m.PolicyState),
        (m.GetKinds, (), m.Kinds),
        (m.GetKinds, (-(2**63),), m.Kinds),
        (m.GetKinds, (2**64 - 1,), m.Kinds),
        (m.ListHistory, (), m.HistoryList),
        (m.ListHistory, ("no such job", "", ["no such state"], -(2**63), (2**63, 2**63), -(2**63)), m.HistoryList),
        (m.ListHistory, ("", "", [], 2**64 - 1, (-1, -1), 2**64 - 1), m.HistoryList),
        (m.Reload, (), m.Reloaded),
        (m.BackUp, ("",), m.RequestFailed),
        (m.BackUp, ("relative",), m.RequestFailed),
        (m.BackUp, ("/no/such/folder/file",), m.RequestFailed),
        (m.BackUp, ("/\0",), m.RequestFailed),
        (m.ReadLog, (UNKNOWN,), m.RequestFailed),
        (m.ReadLog, (UNKNOWN, -1, "no such stream", -(2**63), 2**63), m.RequestFailed),
    ],
)
def test_every_request_is_answered(client: RawClient, kind: Any, fields: tuple[Any, ...], answer: type[Any]) -> None:
    assert isinstance(client.ask(kind, *fields), answer)


def test_no_request_type_was_forgotten() -> None:
    mark = next(m for m in test_every_request_is_answered.pytestmark if m.name == "parametrize")
    assert {row[0] for row in mark.args[1]} == set(m.ClientRequest.__args__)


@pytest.mark.parametrize(
    ("specs", "entries", "code"),
    [
        ([HELD], [m.TaskEntry(1)], m.BAD_REQUEST),
        ([HELD], [m.TaskEntry(-1)], m.BAD_REQUEST),
        ([HELD], [m.TaskEntry(0), m.TaskEntry(2**40)], m.BAD_REQUEST),
        ([HELD], [m.TaskEntry(0, priority=math.nan)], m.BAD_REQUEST),
        ([HELD], [m.TaskEntry(0, priority=math.inf)], m.BAD_REQUEST),
        ([HELD], [m.TaskEntry(0, after=[-1])], m.BAD_REQUEST),
        ([HELD], [m.TaskEntry(0), m.TaskEntry(0, after=[-2])], m.BAD_REQUEST),
        ([HELD], [m.TaskEntry(0, after=[UNKNOWN])], m.UNKNOWN_TASK),
        ([HELD], [m.TaskEntry(0, after=[-(2**63)])], m.BAD_REQUEST),
        ([HELD], [m.TaskEntry(0, key="")], m.BAD_REQUEST),
        ([HELD], [m.TaskEntry(0, key="twice"), m.TaskEntry(0, key="twice")], m.BAD_REQUEST),
        ([m.TaskSpec(Call(path="a:b"), priority=math.nan)], [m.TaskEntry(0)], m.BAD_REQUEST),
        ([m.TaskSpec(Call(path="a:b"), delay_s=-1)], [m.TaskEntry(0)], m.BAD_REQUEST),
        ([m.TaskSpec(Call(path="a:b"), delay_s=math.nan)], [m.TaskEntry(0)], m.BAD_REQUEST),
        ([m.TaskSpec(Call(path="a:b"), delay_s=1e300)], [m.TaskEntry(0)], m.BAD_REQUEST),
        ([m.TaskSpec(Call(path="a:b"), after=[-1])], [m.TaskEntry(0)], m.BAD_REQUEST),
        ([m.TaskSpec(Call(path="a:b"), after=[UNKNOWN])], [m.TaskEntry(0)], m.UNKNOWN_TASK),
    ],
)
def test_submit_is_declined_as_a_whole(
    client: RawClient, specs: list[m.TaskSpec], entries: list[m.TaskEntry], code: str
) -> None:
    before = client.ask(m.GetStats)
    answer = client.ask(m.Submit, specs, entries)
    assert isinstance(answer, m.RequestFailed)
    assert answer.code == code
    assert answer.message
    after = client.ask(m.GetStats)
    assert (after.submitted_total, after.states) == (before.submitted_total, before.states)


def test_submit_of_too_many_tasks(client: RawClient) -> None:
    answer = client.ask(m.Submit, [HELD], [m.TaskEntry(0)] * 10_001)
    assert isinstance(answer, m.RequestFailed)
    assert answer.code == m.TOO_LARGE
    assert "parts" in answer.hint
    [task_id] = client.submit(hold=True)
    assert client.state_of(task_id) == "held"


def test_key_names_the_same_task(client: RawClient) -> None:
    entry = m.TaskEntry(0, b"argument", key="a key")
    [first] = client.ask(m.Submit, [HELD], [entry]).ids
    assert client.ask(m.Submit, [HELD], [entry]).ids == [first]
    other = client.ask(m.Submit, [HELD], [m.TaskEntry(0, b"another", key="a key")])
    assert isinstance(other, m.RequestFailed)
    assert other.code == m.KEY_CONFLICT
    assert f"task {first}" in other.message


def test_a_thousand_requests_in_a_frame(client: RawClient) -> None:
    numbers = [client.number() for _ in range(1000)]
    client.send(*[m.Submit(n, [HELD], [m.TaskEntry(0)]) for n in numbers])
    answers = [client.answer(n) for n in numbers]
    ids = [answer.ids[0] for answer in answers]
    assert ids == list(range(ids[0], ids[0] + 1000))
    assert client.ask(m.CancelTasks, Selection(ids=ids)).changed == 1000


def test_reads_see_what_was_asked_before_them_in_the_frame(client: RawClient) -> None:
    one, two, three, four = (client.number() for _ in range(4))
    selection = Selection(job="read your writes")
    client.send(
        m.Submit(one, [m.TaskSpec(Call(path="a:b"), job="read your writes", hold=True)], [m.TaskEntry(0)] * 3),
        m.ListTasks(two, selection),
        m.CancelTasks(three, selection),
        m.ListTasks(four, selection),
    )
    assert len(client.answer(one).ids) == 3
    assert len(client.answer(two).tasks) == 3
    assert client.answer(three).changed == 3
    assert {task.state for task in client.answer(four).tasks} == {"cancelled"}


def test_list_in_pages(client: RawClient) -> None:
    job = "paged"
    ids = client.submit(2500, job=job, hold=True)
    seen: list[TaskId] = []
    after, pages = 0, 0
    while True:
        page = client.ask(m.ListTasks, Selection(job=job), 1000, after)
        seen += [task.id for task in page.tasks]
        pages += 1
        if not page.more:
            break
        after = page.tasks[-1].id
    assert (seen, pages) == (ids, 3)
    exact = client.ask(m.ListTasks, Selection(job=job), 2500)
    assert (len(exact.tasks), exact.more) == (2500, False)
    last = client.ask(m.ListTasks, Selection(job=job), 1000, ids[-1])
    assert (last.tasks, last.more) == ([], False)
    client.ask(m.CancelTasks, Selection(job=job))


def test_list_is_bounded_whatever_was_asked_for(client: RawClient) -> None:
    job = "bounded"
    ids = client.submit(6000, job=job, hold=True)
    page = client.ask(m.ListTasks, Selection(job=job), 2**62)
    assert (len(page.tasks), page.more) == (5000, True)
    rest = client.ask(m.ListTasks, Selection(job=job), 2**62, page.tasks[-1].id)
    assert [task.id for task in rest.tasks] == ids[5000:]
    assert len(client.ask(m.ListTasks, Selection(job=job), -5).tasks) == 1
    client.ask(m.CancelTasks, Selection(job=job))


def test_list_of_ids_some_of_which_are_unknown(client: RawClient) -> None:
    [task_id] = client.submit(hold=True)
    page = client.ask(m.ListTasks, Selection(ids=[UNKNOWN, task_id, task_id]))
    assert [task.id for task in page.tasks] == [task_id]


def test_list_with_detail_shows_what_was_submitted(client: RawClient) -> None:
    requirements = TaskRequirements(min_gpus=0.5, labels={"zone": "a"}, custom={"licence": 1.5})
    [task_id] = client.submit(argument=b"\x00\xff", requirements=requirements, hold=True, delay_s=60.0)
    page = client.ask(m.ListTasks, Selection(ids=[task_id]), 1, 0, True)
    [detail] = page.details
    assert detail.requirements == requirements
    assert detail.argument == b"\x00\xff"
    assert detail.payload == Call(path="test:nothing")
    assert detail.not_before is not None
    assert detail.not_before - page.tasks[0].submitted_at == pytest.approx(60, abs=0.1)


def test_hold_and_release_move_a_task_to_and_fro(client: RawClient) -> None:
    [task_id] = client.submit(requirements=TaskRequirements(labels={"no": "worker"}))
    one = Selection(ids=[task_id])
    assert client.state_of(task_id) == "queued"
    assert client.ask(m.HoldTasks, one).changed == 1
    assert client.state_of(task_id) == "held"
    assert client.ask(m.HoldTasks, one).unchanged == [(task_id, "already held")]
    assert client.ask(m.ReleaseTasks, one).changed == 1
    assert client.ask(m.ReleaseTasks, one).unchanged == [(task_id, "is not held")]
    assert client.ask(m.CancelTasks, one).changed == 1
    assert client.state_of(task_id) == "cancelled"
    assert client.ask(m.CancelTasks, one).unchanged == [(task_id, "already cancelled")]


def test_set_while_a_task_waits_and_not_later(client: RawClient, address: str, name: str) -> None:
    label = {"only": name}
    [task_id] = client.submit(requirements=TaskRequirements(labels={"no": "worker"}))
    one = Selection(ids=[task_id])
    assert client.ask(m.SetTasks, one, 5.0).changed == 1
    assert client.view(task_id).priority == 5.0
    with RawWorker(address, name, resources=WorkerResources(labels=label)) as worker:
        assert client.ask(m.SetTasks, one, None, TaskRequirements(labels=label)).changed == 1
        [attempt] = worker.attempts()
        assert attempt.task_id == task_id
        assert client.ask(m.SetTasks, one, 7.0).unchanged == [(task_id, "already assigned")]
        worker.finish(attempt)
        assert client.view(task_id).priority == 5.0


def test_priorities_of_many_tasks_at_once(client: RawClient) -> None:
    first, second = client.submit(2, hold=True)
    answer = client.ask(m.SetPriorities, [(first, 3.0), (UNKNOWN, 1.0), (second, -4.5), (first, math.inf)])
    assert answer.changed == 2
    assert [reason for _, reason in answer.unchanged] == ["unknown task", "inf is no priority"]
    assert [client.view(task_id).priority for task_id in (first, second)] == [3.0, -4.5]


def test_explain_a_task_that_no_worker_fits(client: RawClient, address: str, name: str) -> None:
    with RawWorker(address, name, cpus=2):
        [task_id] = client.submit(requirements=TaskRequirements(cpus=64))
        why = client.ask(m.ExplainTask, task_id)
        assert isinstance(why, m.Explanation)
        assert why.state == "queued"
        assert any("64 CPUs" in verdict.verdict for verdict in why.workers if verdict.worker == name)
    client.ask(m.CancelTasks, Selection(ids=[task_id]))


def test_strict_submit_without_a_worker_that_fits(client: RawClient) -> None:
    spec = m.TaskSpec(Call(path="a:b"), requirements=TaskRequirements(min_gpus=1000))
    number = client.number()
    client.send(m.Submit(number, [spec], [m.TaskEntry(0)], strict=True))
    answer = client.answer(number)
    assert isinstance(answer, m.RequestFailed)
    assert answer.code == m.NO_WORKER_FITS


def test_jobs_are_counted_by_state(client: RawClient, address: str, name: str) -> None:
    requirements = TaskRequirements(labels={"only": name})
    ids = client.submit(3, job=f"job {name}", kind=name, requirements=requirements)
    with RawWorker(address, name, resources=WorkerResources(labels={"only": name})) as worker:
        worker.finish(*worker.attempts())
        row = next(row for row in client.ask(m.ListJobs).jobs if row.name == f"job {name}")
        assert row.total == 3
        assert row.states["succeeded"] == 1
        assert row.finished_at is None
        client.ask(m.CancelTasks, Selection(ids=ids))
        worker.finish(*worker.attempts(2), cause=Cause.CANCELLED)
        row = next(row for row in client.ask(m.ListJobs).jobs if row.name == f"job {name}")
        assert row.states == {"succeeded": 1, "cancelled": 2}
        assert row.finished_at is not None


def test_cancel_that_spares_what_may_have_started(client: RawClient, address: str, name: str) -> None:
    label = {"only": name}
    ids = client.submit(3, kind=name, requirements=TaskRequirements(labels=label))
    with RawWorker(address, name, resources=WorkerResources(labels=label)) as worker:
        [attempt] = worker.attempts()
        answer = client.ask(m.CancelTasks, Selection(ids=ids), False)
        assert answer.changed == 2
        assert [task_id for task_id, _ in answer.unchanged] == [attempt.task_id]
        worker.finish(attempt)
        assert [client.state_of(task_id) for task_id in ids] == ["succeeded", "cancelled", "cancelled"]


def test_job_of_more_tasks_than_one_turn_looks_at(client: RawClient, name: str) -> None:
    """Listed, watched and changed as a whole, although others have their turn in between."""
    ids = [task_id for _ in range(3) for task_id in client.submit(8000, job=name, hold=True)]
    whole = Selection(job=name)
    assert client.ask(m.ListTasks, Selection(job=name, states=["failed"])).tasks == []
    last = client.ask(m.ListTasks, whole, 5000, ids[-3])
    assert ([row.id for row in last.tasks], last.more) == (ids[-2:], False)
    assert client.ask(m.ReleaseTasks, whole).changed == len(ids)
    watching = client.ask(m.WatchTasks, whole, False)
    assert (watching.total, watching.finished) == (len(ids), 0)
    assert client.ask(m.SetTasks, whole, 5.0).changed == len(ids)
    numbers = [client.number(), client.number()]
    client.send(m.CancelTasks(numbers[0], whole), m.HoldTasks(numbers[1], whole))
    assert client.answer(numbers[0]).changed == len(ids)
    assert client.answer(numbers[1]).changed == 0
    assert sorted(end.task_id for end in client.ends(len(ids))) == ids
