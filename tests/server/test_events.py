"""What has happened, as clients are told: in its order, once it is on disk, and nothing twice."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from helpers import Cluster, wait_until
from journal.builders import START, Running, admitted, ended, entered, finished, gone, held

from schedd.core import effects as fx
from schedd.core.model import Cause, TaskId
from schedd.server.archive import Archive
from schedd.server.facts import event_of, type_of
from schedd.server.following import GATHER_S, READING_MAX, Following
from schedd.wire import messages as m

from .peers import RawClient, RawWorker

NOW: tuple[int, int] = (-1, 0)
OLDEST: tuple[int, int] = (0, 0)
#: Longer than any test takes.
FOR_LONG = 60.0


def kinds(events: Iterable[m.Event]) -> list[str]:
    return [event.type for event in events]


def everything(client: RawClient, **wanted: Any) -> list[m.Event]:
    """All pages, each begun where the last one ended."""
    events: list[m.Event] = []
    page = client.ask(m.ListEvents, *asked(**wanted))
    events += page.events
    while page.more:
        page = client.ask(m.ListEvents, *asked(**{**wanted, "cursor": page.cursor}))
        events += page.events
    return events


def asked(**wanted: Any) -> list[Any]:
    """The fields of a question, in their order."""
    return list(msgspec.structs.astuple(m.ListEvents(0, **wanted)))[1:]


# ------------------------------------------------------------------------------------------------------------- facts


def test_every_fact_has_a_type_that_clients_know() -> None:
    assert {type_of(kind) for kind in fx.Fact.__subclasses__()} == set(m.EVENT_TYPES)
    assert type_of(fx.TasksAdmitted) == "tasks_admitted"


def test_event_is_flat_and_has_nothing_large() -> None:
    event = event_of(admitted([1, 2, 3, 7], argument=b"x" * 1_000_000), 5)
    assert event == m.Event(START, "tasks_admitted", {"count": 4, "tasks": [(1, 3), (7, 7)]})
    assert event_of(held(1), 5) == m.Event(5, "task_held", {"task": 1})
    asked_for = event_of(fx.PreemptAsked(TaskId(1), 2, START, None, TaskId(9)), 5)
    assert asked_for.fields == {"task": 1, "attempt": 2, "room_for": 9}


# -------------------------------------------------------------------------------------------------------- from a daemon


def test_life_of_a_task(cluster: Cluster) -> None:
    cluster.start_daemon()
    with RawClient(cluster.address) as client, RawWorker(cluster.address, "w1") as worker:
        client.submit(job="sweep", kind="train")
        (attempt,) = worker.attempts()
        worker.start(attempt)
        worker.finish(attempt, cause=Cause.ERROR)
        events = everything(client)
    told = {event.type: event.fields for event in events}
    assert kinds(events) == [
        "worker_entered", "tasks_admitted", "attempt_dispatched", "attempt_began", "attempt_ended", "task_finished",
    ] or kinds(events)[:2] == ["tasks_admitted", "worker_entered"]  # fmt: skip
    assert told["tasks_admitted"] == {"count": 1, "tasks": [[1, 1]], "jobs": ["sweep"], "kinds": ["train"]}
    assert told["attempt_dispatched"] == {"task": 1, "attempt": 1, "worker": "w1"}
    assert told["attempt_ended"]["cause"] == "error"
    assert told["task_finished"]["state"] == "failed"
    assert told["task_finished"]["kind"] == "train"
    times = [event.at_ns for event in events]
    assert times == sorted(times)


def test_pages_leave_nothing_out_and_tell_nothing_twice(cluster: Cluster) -> None:
    cluster.start_daemon()
    with RawClient(cluster.address) as client, RawWorker(cluster.address, "w1", cpus=50) as worker:
        client.submit(50)
        worker.finish(*worker.attempts(50))
        whole = everything(client)
        assert everything(client, limit=7) == whole
        assert everything(client, limit=1) == whole
        assert len([event for event in whole if event.type == "task_finished"]) == 50


def test_events_of_some(cluster: Cluster) -> None:
    cluster.start_daemon("[limits]\nfinished_keep_count = 1\n")
    with (
        RawClient(cluster.address) as client,
        RawWorker(cluster.address, "w1") as first,
        RawWorker(cluster.address, "w2") as second,
    ):
        client.submit(2, job="a")
        client.submit(2, job="b", hold=True)
        first.finish(*first.attempts())
        second.finish(*second.attempts())
        assert {e.fields.get("worker") for e in everything(client, workers=["w2"])} == {"w2"}
        of_task = everything(client, tasks=[1])
        assert kinds(of_task)[0] == "tasks_admitted"
        assert {e.fields["task"] for e in of_task[1:]} == {1}
        assert kinds(of_task)[-1] == "task_finished"
        # Of the tasks of this job one is forgotten, by all but the journal.
        of_job = everything(client, jobs=["a"], types=["attempt_dispatched", "tasks_admitted"])
        assert kinds(of_job) == ["tasks_admitted", "attempt_dispatched", "attempt_dispatched"]
        assert kinds(everything(client, jobs=["b"])) == ["tasks_admitted"]
        assert everything(client, jobs=["nobody's"]) == []
        last = everything(client)[-1].at_ns
        assert everything(client, since_ns=last + 1) == []
        assert everything(client, since_ns=last)


def test_follower_hears_what_comes_and_no_more(cluster: Cluster) -> None:
    cluster.start_daemon()
    with RawClient(cluster.address) as client, RawClient(cluster.address) as follower:
        client.submit(hold=True)
        start = follower.ask(m.ListEvents, *asked(cursor=NOW, wait_s=FOR_LONG))
        assert start.events == []
        cursor = start.cursor
        for count in (1, 2):
            number = follower.number()
            follower.send(m.ListEvents(number, *asked(cursor=cursor, wait_s=FOR_LONG, types=["tasks_admitted"])))
            client.submit(count, hold=True)
            page = follower.answer(number)
            assert [event.fields["count"] for event in page.events] == [count]
            cursor = page.cursor


def test_follower_passes_over_what_it_did_not_ask_for(cluster: Cluster) -> None:
    cluster.start_daemon()
    with RawClient(cluster.address) as client, RawClient(cluster.address) as follower:
        number = follower.number()
        follower.send(m.ListEvents(number, *asked(wait_s=FOR_LONG, jobs=["mine"])))
        for _ in range(5):
            client.submit(hold=True, job="others")
        client.submit(hold=True, job="mine")
        assert [event.fields["jobs"] for event in follower.answer(number).events] == [["mine"]]


def test_question_that_waits_is_answered_when_its_time_is_over_or_another_comes(cluster: Cluster) -> None:
    cluster.start_daemon()
    with RawClient(cluster.address) as follower:
        cursor = follower.ask(m.ListEvents, *asked(cursor=NOW)).cursor
        waited = follower.ask(m.ListEvents, *asked(cursor=cursor, wait_s=0.05))
        assert (waited.events, waited.cursor) == ([], cursor)
        first, second = follower.number(), follower.number()
        follower.send(m.ListEvents(first, *asked(cursor=cursor, wait_s=FOR_LONG)))
        follower.send(m.ListEvents(second, *asked(cursor=cursor, wait_s=FOR_LONG)))
        assert follower.answer(first).events == []


def test_follower_goes_on_after_a_restart(cluster: Cluster) -> None:
    daemon = cluster.start_daemon()
    with RawClient(cluster.address) as client:
        client.submit(hold=True)
        cursor = client.ask(m.ListEvents, *asked()).cursor
        client.submit(3, hold=True)
    daemon.kill()
    cluster.start_daemon()
    with RawClient(cluster.address) as client:
        page = client.ask(m.ListEvents, *asked(cursor=cursor))
        assert [event.fields["count"] for event in page.events] == [3]


def test_followers_that_are_gone_leave_nothing(cluster: Cluster) -> None:
    daemon = cluster.start_daemon()
    with RawClient(cluster.address) as client:
        for _ in range(50):
            with RawClient(cluster.address) as follower:
                follower.send(m.ListEvents(1, *asked(cursor=(10**6, 0), wait_s=FOR_LONG)))
        wait_until(lambda: client.ask(m.GetStats).connections == 1)
        client.submit(hold=True)
        assert everything(client)
    assert "Traceback" not in daemon.log()
    assert daemon.stop() == 0


# ---------------------------------------------------------------------------------------------------- what is forgotten


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "journal.db"
    with Running(path) as running:
        for number in range(1, 6):
            running.commit(admitted([number]), now=START + number)
    return path


def forget(path: Path, below: int) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("DELETE FROM history WHERE seq < ?", (below,))
        db.commit()


def read(path: Path, **wanted: Any) -> m.EventList:
    return Archive(path).events(m.ListEvents(1, **wanted))


def ids(page: m.EventList) -> list[int]:
    return [event.fields["tasks"][0][0] for event in page.events]


def test_reader_that_is_too_late_is_told_how_much_it_missed(path: Path) -> None:
    cursor = read(path, limit=1).cursor
    assert cursor == (2, 0)
    forget(path, 4)
    page = read(path, cursor=cursor)
    assert (ids(page), page.missed) == ([4, 5], 2)
    assert read(path).missed == 0  # who begins with the oldest misses nothing that there is


def test_reader_misses_all_there_was(path: Path) -> None:
    forget(path, 6)
    page = read(path, cursor=(3, 0))
    assert (page.events, page.missed, page.cursor, page.more) == ([], 3, (6, 0), False)


def test_reader_at_the_end_stays_there(path: Path) -> None:
    page = read(path, cursor=(6, 0))
    assert (page.events, page.missed, page.cursor) == ([], 0, (6, 0))
    assert read(path, cursor=NOW).cursor == (6, 0)
    assert read(path, since_ns=START + 1000).cursor == (6, 0)


def test_cursor_of_another_journal_goes_to_the_end(path: Path) -> None:
    page = read(path, cursor=(1000, 0))
    assert (page.events, page.missed, page.cursor) == ([], 0, (6, 0))


def test_since_begins_with_the_first_row_of_then(path: Path) -> None:
    forget(path, 2)
    assert ids(read(path, since_ns=START - 1)) == [2, 3, 4, 5]


def test_empty_journal(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    with Running(path):
        pass
    page = read(path)
    assert (page.events, page.cursor, page.more) == ([], (1, 0), False)


def test_ends_come_behind_the_facts_of_their_transaction(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    with Running(path) as running:
        running.commit(entered("w1"), admitted([1]))
        running.commit(ended(1), gone("w1"), finished=[finished(1)])
    events = read(path).events
    assert kinds(events) == ["worker_entered", "tasks_admitted", "worker_gone", "task_finished"]
    assert events[-1].fields["task"] == 1


# ------------------------------------------------------------------------------------------------------------- waiting


class Later:
    """A reactor and an archive that do nothing until they are told to, and a peer that takes notes."""

    is_closing = False

    def __init__(self) -> None:
        self.calls: list[tuple[float, Callable[..., object], tuple[Any, ...]]] = []
        self.answers: list[Callable[[m.EventList], None]] = []
        self.sent: list[Any] = []

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> Later:
        self.calls.append((delay, callback, args))
        return self

    def cancel(self) -> None:
        """As a timer: nothing will come of it."""

    def ask(self, question: Any, answer: Callable[[Any], None], failed: Any) -> None:
        self.answers.append(answer)

    def send(self, message: Any) -> None:
        self.sent.append(message)

    def look(self) -> None:
        """Let the time pass after which what was written is read."""
        due = [call for call in self.calls if call[0] == GATHER_S]
        self.calls.clear()
        for _, callback, args in due:
            callback(*args)


def test_what_is_written_while_the_journal_is_read_is_not_overlooked() -> None:
    later: Any = Later()
    following = Following(later, lambda peer, request, ids, answer: answer({}))
    following.ask(later, later, m.ListEvents(1, (5, 0), wait_s=FOR_LONG))
    later.look()
    following.written()  # the thread may have read all there was just before
    later.answers.pop()(m.EventList(1, [], (5, 0)))
    later.look()
    later.answers.pop()(m.EventList(1, [m.Event(1, "task_held", {"task": 1})], (6, 0)))
    assert [len(message.events) for message in later.sent] == [1]


def test_many_commits_are_one_look() -> None:
    later: Any = Later()
    following = Following(later, lambda peer, request, ids, answer: answer({}))
    following.ask(later, later, m.ListEvents(1, (5, 0), wait_s=FOR_LONG))
    later.look()
    later.answers.pop()(m.EventList(1, [], (5, 0)))
    for _ in range(100):
        following.written()
    later.look()
    assert len(later.answers) == 1


def test_flood_of_questions_is_declined() -> None:
    later: Any = Later()
    following = Following(later, lambda peer, request, ids, answer: answer({}))
    for number in range(100):
        following.ask(later, later, m.ListEvents(number, (5, 0)))
    assert len(later.answers) == READING_MAX
    assert {message.code for message in later.sent} == {m.TOO_MANY}
    for answer in list(later.answers):
        answer(m.EventList(1, [], (5, 0)))
    following.ask(later, later, m.ListEvents(101, (5, 0)))
    assert len(later.answers) == READING_MAX + 1


def test_blocking_client_reads_and_follows(cluster: Cluster) -> None:
    cluster.start_daemon()
    client = cluster.client
    client.submit(["true"], hold=True)
    assert kinds(client.events()) == ["tasks_admitted"]
    following = client.events(follow=True, since=1.0)
    assert next(following).fields["tasks"] == [[1, 1]]
    cluster.new_client().submit(["true"], hold=True)
    assert next(following).fields["tasks"] == [[2, 2]]
    following.close()  # type: ignore[attr-defined]
    assert client.stats().submitted_total == 2
