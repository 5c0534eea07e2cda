"""Facts as rows: whatever happens, in whatever transactions, the live rows say what has not ended."""

from __future__ import annotations

from collections import Counter
from zlib import crc32

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from schedd.core import effects as fx
from schedd.core.model import (
    AttemptRecord,
    Cause,
    Command,
    Failed,
    Report,
    Succeeded,
    Task,
    TaskId,
    TaskRules,
    TaskSpec,
    WorkerId,
)
from schedd.core.tasks import RESULT_DROPPED
from schedd.errors import JournalError
from schedd.journal.records import (
    CHECKSUM_BYTES,
    LiveIndex,
    Rows,
    decode_ends,
    decode_fact,
    decode_facts,
    decode_finished,
    decode_ids,
    encode_facts,
    encode_finished,
    encode_in_parts,
    finished_record,
    finished_records,
    finished_row,
)

from .builders import (
    START,
    admitted,
    changed,
    cleared,
    ended,
    entered,
    failed,
    finished,
    gone,
    held,
    kind_held,
    kind_released,
    quarantined,
    record,
    released,
)


class Disk:
    """The tables that rows are written to, as sets and lists."""

    def __init__(self) -> None:
        self.batches: dict[int, bytes] = {}
        self.ended: list[tuple[int, bytes]] = []
        self.changes: list[tuple[int, bytes, int]] = []
        self.workers: dict[str, bytes] = {}
        self.verdicts: dict[str, bytes] = {}

    def write(self, rows: Rows) -> None:
        """As `Journal._commit` does."""
        for first, blob in rows.batches:
            assert first not in self.batches
            self.batches[first] = blob
        self.ended += rows.ended
        for replaced in rows.changes_replaced:
            self.changes = [row for row in self.changes if (row[0], row[2]) != replaced]
        self.changes += rows.changes
        self.workers |= dict(rows.workers)
        for first in rows.batches_done:
            del self.batches[first]
        self.ended = [row for row in self.ended if row[0] not in rows.batches_done]
        self.changes = [row for row in self.changes if row[0] not in rows.changes_done]
        for name in rows.workers_gone:
            self.workers.pop(name, None)
        for name in rows.verdicts_over:
            self.verdicts.pop(name, None)
        self.verdicts |= rows.verdicts

    def index(self) -> LiveIndex:
        """As `Journal.load` does."""
        index = LiveIndex()
        gone = Counter(dict.fromkeys(self.batches, 0))
        for first, blob in self.ended:
            gone[first] += len(decode_ids(blob))
        for first, blob in sorted(self.batches.items()):
            index.load(first, len(self.admitted(blob).ids) - gone[first])
        for task_id, _, kind in self.changes:
            index.load_changed(task_id, kind)
        for blob in self.workers.values():
            worker = decode_fact(blob)
            assert isinstance(worker, fx.WorkerEntered)
            index.load_worker(worker)
        return index

    @staticmethod
    def admitted(blob: bytes) -> fx.TasksAdmitted:
        fact = decode_fact(blob)
        assert isinstance(fact, fx.TasksAdmitted)
        return fact

    def draining(self, name: str) -> tuple[bool, bool]:
        fact = decode_fact(self.workers[name])
        assert isinstance(fact, fx.WorkerEntered)
        return fact.draining, fact.leaving

    def unfinished(self) -> list[int]:
        over = {i for _, blob in self.ended for i in decode_ids(blob)}
        ids = [i for _, blob in sorted(self.batches.items()) for i in self.admitted(blob).ids]
        return [i for i in ids if i not in over]


class Story:
    """Random facts that could have come of an engine, and what they mean, told the simple way."""

    def __init__(self, data: st.DataObject) -> None:
        self.draw = data.draw
        self.next_id = 1
        self.live: list[int] = []
        self.held: set[int] = set()
        self.priority: dict[int, float] = {}
        self.failures: Counter[int] = Counter()
        #: Whether it is draining, and was asked to leave, by the name of each that is there.
        self.workers: dict[str, tuple[bool, bool]] = {}
        self.verdicts: dict[tuple[str, ...], int] = {}

    def facts(self) -> list[fx.Fact]:
        return [fact for _ in range(self.draw(st.integers(0, 12))) for fact in self.fact()]

    def fact(self) -> list[fx.Fact]:
        kind = self.draw(
            st.sampled_from(["admit", "end", "end", "hold", "change", "fail", "worker", "verdict", "dispatch"])
        )
        if kind == "admit":
            count = self.draw(st.integers(1, 6))
            ids = list(range(self.next_id, self.next_id + count))
            self.next_id += count
            self.live += ids
            return [admitted(ids)]
        if kind == "worker":
            name = self.draw(st.sampled_from(["a", "b", "c"]))
            return self.of_worker(name, self.draw(st.sampled_from(["enter", "leave", "drain", "dismiss", "undo"])))
        if kind == "verdict":
            return [self.verdict(self.draw(st.sampled_from([("a",), ("b",), ("", "k"), ("k", ""), ("j", "k")])))]
        return self.of_task(kind, self.draw(st.sampled_from(self.live))) if self.live else []

    def of_worker(self, name: str, what: str) -> list[fx.Fact]:
        match what:
            case "enter":
                self.workers.setdefault(name, (False, False))
                return [entered(name)]
            case "leave":
                self.workers.pop(name, None)
                return [gone(name)]
            case _ if name not in self.workers:
                return []
            case "drain":
                self.workers[name] = (True, self.workers[name][1])
                return [fx.WorkerStartedDraining(WorkerId(name), START)]
            case "dismiss":
                self.workers[name] = (True, True)
                return [fx.WorkerStartedDraining(WorkerId(name), START, leave=True)]
            case _:
                self.workers[name] = (False, False)
                return [fx.WorkerStoppedDraining(WorkerId(name), START)]

    def verdict(self, about: tuple[str, ...]) -> fx.Fact:
        stands = self.draw(st.booleans())
        repeats = self.verdicts.pop(about, 0) + 1
        if stands:
            self.verdicts[about] = repeats
        if len(about) == 1:
            return quarantined(about[0], repeats) if stands else cleared(about[0])
        return kind_held(about[0], about[1], repeats) if stands else kind_released(about[0], about[1])

    def of_task(self, kind: str, task_id: int) -> list[fx.Fact]:
        match kind:
            case "end":
                self.live.remove(task_id)
                return [failed(task_id, cause=Cause.OK), ended(task_id)]
            case "hold":
                now_held = task_id not in self.held
                self.held ^= {task_id}
                return [held(task_id) if now_held else released(task_id)]
            case "change":
                self.priority[task_id] = self.draw(st.sampled_from([1.0, 2.0, 3.0]))
                return [changed(task_id, self.priority[task_id])]
            case "fail":
                self.failures[task_id] += 1
                return [failed(task_id, self.failures[task_id])]
            case _:
                return [fx.AttemptDispatched(TaskId(task_id), 1, WorkerId("a"), START)]

    def agree(self, disk: Disk) -> None:
        """The rows on disk mean what happened, and there are none for what is over."""
        assert disk.unfinished() == self.live
        assert {name: disk.draining(name) for name in disk.workers} == self.workers
        stand = [decode_fact(blob) for blob in disk.verdicts.values()]
        assert {(f.job, f.kind): f.repeats for f in stand if isinstance(f, fx.KindHeld)} | {
            (f.worker_id,): f.repeats for f in stand if isinstance(f, fx.WorkerQuarantined)
        } == self.verdicts
        assert {task_id for task_id, _, _ in disk.changes} <= set(self.live)
        assert {first for first, _ in disk.ended} <= disk.batches.keys()
        now_held: set[int] = set()
        priority: dict[int, float] = {}
        failures: Counter[int] = Counter()
        for _, blob, _ in disk.changes:
            match decode_fact(blob):
                case fx.TaskHeld(task_id=i):
                    now_held.add(i)
                case fx.TaskReleased(task_id=i):
                    now_held.discard(i)
                case fx.TaskChanged(task_id=i, priority=value):
                    priority[i] = value
                case fx.AttemptEnded(task_id=i):
                    failures[i] += 1
        live = set(self.live)
        written = Counter((task_id, kind) for task_id, _, kind in disk.changes if kind)
        assert set(written.values()) <= {1}, "of these only the last counts"
        assert now_held == self.held & live
        assert priority == {i: p for i, p in self.priority.items() if i in live}
        assert failures == Counter({i: n for i, n in self.failures.items() if i in live})


@settings(deadline=None)
@given(st.data())
def test_rows_mean_what_happened(data: st.DataObject) -> None:
    """Any facts in any transactions, with restarts in between."""
    story, disk, index = Story(data), Disk(), LiveIndex()
    for _ in range(data.draw(st.integers(1, 12))):
        disk.write(index.plan(story.facts()))
        story.agree(disk)
        assert index.batch_count == len(disk.batches)
        if data.draw(st.booleans()):
            index = disk.index()


def test_task_that_comes_and_goes_in_one_transaction_leaves_no_row() -> None:
    rows = LiveIndex().plan([admitted([1, 2]), held(1), ended(1), failed(2), ended(2)])
    assert rows == Rows()


def test_only_the_last_priority_of_a_transaction_is_written() -> None:
    index = LiveIndex()
    index.plan([admitted([1])])
    rows = index.plan([changed(1, 1.0), held(1), changed(1, 2.0), changed(1, 3.0)])
    assert [decode_fact(blob) for _, blob, _ in rows.changes] == [held(1), changed(1, 3.0)]


def test_worker_that_is_known_is_not_written_again() -> None:
    index = LiveIndex()
    assert len(index.plan([entered("a"), entered("a")]).workers) == 1
    assert index.plan([entered("a")]) == Rows()
    rows = index.plan([gone("a"), entered("b"), gone("b")])
    assert not rows.workers
    assert rows.workers_gone == ["a", "b"]


def test_worker_that_is_started_anew_within_one_transaction() -> None:
    index = LiveIndex()
    index.plan([entered("a")])
    rows = index.plan([gone("a"), entered("a")])
    assert [name for name, _ in rows.workers] == ["a"]
    assert not rows.workers_gone


def test_drain_of_a_worker_that_was_started_anew_while_the_daemon_was_away() -> None:
    """Nobody said that the old one is gone: the row is of the one that is there."""
    index = LiveIndex()
    index.load_worker(structs.replace(entered("a"), draining=True))
    other = structs.replace(entered("a"), incarnation="two")
    assert [decode_fact(blob) for _, blob in index.plan([other]).workers] == [other]
    rows = index.plan([fx.WorkerStartedDraining(WorkerId("a"), START)])
    assert [decode_fact(blob) for _, blob in rows.workers] == [structs.replace(other, draining=True)]


def test_verdict_that_ends_within_its_transaction_leaves_no_row() -> None:
    rows = LiveIndex().plan([quarantined("a"), kind_held("", "k"), cleared("a"), kind_released("", "k")])
    assert not rows.verdicts
    again = LiveIndex().plan([cleared("a"), quarantined("a", 2)])
    assert [decode_fact(blob) for blob in again.verdicts.values()] == [quarantined("a", 2)]


def test_end_of_a_task_that_is_in_no_batch() -> None:
    index = LiveIndex()
    index.plan([admitted([5])])
    assert index.plan([ended(3)]) == Rows()


@pytest.mark.parametrize("state", ["succeeded", "failed", "cancelled"])
def test_finished_task_and_back(state: str) -> None:
    attempts = (record(3, Cause.ERROR), record(7))
    known = finished(
        4, START + 5, b"r", state=state, job="j", key="k", priority=2.0, attempts=attempts, report=Report(3, {"x": 1.0})
    )
    (again,) = decode_finished(encode_finished([known]))
    assert again == known
    row = finished_row(again)
    assert row.state.name == state
    assert (row.id, row.job, row.key, row.priority, row.attempt) == (4, "j", "k", 2.0, 7)
    assert row.attempts == attempts
    assert row.blamed == {Cause.ERROR: 1}
    assert row.report == Report(3, {"x": 1.0})
    assert row.result == RESULT_DROPPED
    assert finished_row(finished(1, result=None)).result is None


def test_what_to_do_is_kept_of_what_did_not_succeed() -> None:
    rules = TaskRules(retries=3)
    values = {"payload": Command(["x"]), "argument": b"a", "rules": rules, "after": (TaskId(1),)}
    done = finished_record(Task(id=TaskId(2), state=Succeeded(1), **values), None)  # type: ignore[arg-type]
    assert (done.payload, done.argument, done.after) == (None, b"", ())
    not_done = finished_row(finished_record(Task(id=TaskId(2), state=Failed(1), **values), None))  # type: ignore[arg-type]
    assert (not_done.payload, not_done.argument, not_done.rules, not_done.after) == (
        Command(["x"]),
        b"a",
        rules,
        (TaskId(1),),
    )


def test_result_is_written_though_memory_gave_it_up_in_the_same_turn() -> None:
    rows = [Task(id=TaskId(i), state=Succeeded(1), result=RESULT_DROPPED) for i in (1, 2)]
    facts = [ended(1, result=b"one"), held(9), ended(2, result=None)]
    assert [r.result for r in finished_records(facts, rows)] == [b"one", None]


@pytest.mark.parametrize(("bytes_max", "counts"), [(1, [1] * 5), (250, [2, 1, 2]), (10**6, [5])])
def test_what_is_large_is_written_in_parts(bytes_max: int, counts: list[int]) -> None:
    records = [finished(i, result=bytes(100 * i)) for i in (1, 1, 3, 0, 0)]
    parts = list(encode_in_parts(records, bytes_max))
    assert [count for _, count in parts] == counts
    assert [len(decode_finished(blob)) for blob, _ in parts] == counts
    assert [record for blob, _ in parts for record in decode_finished(blob)] == records


def test_nothing_is_one_part() -> None:
    ((blob, count),) = encode_in_parts([], 100)
    assert (decode_facts(blob), count) == ([], 0)


# ------------------------------------------------------------------------------------------------------------- damage

BLOBS = {
    decode_ends: next(encode_in_parts([finished(1, result=b"result")], 100))[0],
    decode_facts: encode_facts([admitted([1, 2], TaskSpec(Command(["rm", "-r", "a"]))), ended(1)]),
    decode_finished: encode_finished([finished(1, result=b"result")]),
}


@pytest.mark.parametrize("decode", BLOBS)
def test_any_flipped_bit_is_noticed(decode: object) -> None:
    blob = BLOBS[decode]  # type: ignore[index]
    for position in range(len(blob)):
        for bit in range(8):
            damaged = bytearray(blob)
            damaged[position] ^= 1 << bit
            with pytest.raises(JournalError):
                decode(bytes(damaged))  # type: ignore[operator]


@pytest.mark.parametrize("decode", [decode_fact, decode_facts, decode_ids, decode_finished])
@pytest.mark.parametrize("blob", [b"", b"abc", bytes(CHECKSUM_BYTES), b"\0" * 40])
def test_what_is_no_row(decode: object, blob: bytes) -> None:
    with pytest.raises(JournalError):
        decode(blob)  # type: ignore[operator]


def test_every_fact_of_the_engine_can_be_read_back() -> None:
    kinds = {kind for kind in vars(fx).values() if isinstance(kind, type) and issubclass(kind, fx.Fact)} - {fx.Fact}
    known = [
        admitted([1]), held(1), released(1), changed(1, 2.0), failed(1), ended(1, result=b"r"), entered("a"), gone("a"),
        fx.CancelAsked(TaskId(1)),
        fx.PreemptAsked(TaskId(1), 2, START, 3.5, TaskId(9)),
        fx.AttemptDispatched(TaskId(1), 1, WorkerId("a"), START),
        fx.AttemptBegan(TaskId(1), 1, START),
        fx.WorkerWentSilent(WorkerId("a"), START, START, "x"),
        fx.WorkerStartedDraining(WorkerId("a"), START),
        fx.WorkerStoppedDraining(WorkerId("a"), START),
        fx.AttemptStolen(TaskId(1), WorkerId("a"), WorkerId("b"), START),
        quarantined("a"), cleared("a"), kind_held("j", "k"), kind_released("j", "k"),
    ]  # fmt: skip
    assert {type(fact) for fact in known} == kinds
    assert decode_facts(encode_facts(known)) == known


def test_what_was_asked_of_an_attempt_goes_with_its_task() -> None:
    """A restart asks again; after the end of the task there is nothing to ask."""
    index, asked = LiveIndex(), fx.PreemptAsked(TaskId(1), 2, START, None, TaskId(9))
    rows = index.plan([admitted([1, 2]), asked])
    assert [(task_id, decode_fact(blob)) for task_id, blob, _ in rows.changes] == [(1, asked)]
    rows = index.plan([failed(1, 2, Cause.PREEMPTED), ended(1)])
    assert (rows.changes, rows.changes_done) == ([], [1])


def test_record_of_an_attempt_keeps_its_times() -> None:
    one = AttemptRecord(1, WorkerId("w"), 1, 2, 3, Cause.TIMEOUT, 9, 15, "late", (0, 2))
    (fact,) = decode_facts(encode_facts([fx.AttemptEnded(TaskId(1), one)]))
    assert isinstance(fact, fx.AttemptEnded)
    assert fact.record == one


def test_end_that_was_written_before_pauses_were() -> None:
    """A journal of the first version has two fields where there are three."""
    one = record(2, Cause.ERROR)
    old = msgspec.msgpack.encode(["AttemptEnded", 7, one])
    sealed = crc32(old).to_bytes(CHECKSUM_BYTES, "big") + old
    assert decode_fact(sealed) == fx.AttemptEnded(TaskId(7), one, 0)


def test_rules_that_were_written_before_limits_could_be_left_open() -> None:
    """They left out what was at its default, which now means the configuration's."""
    spec = {"payload": {"type": "command", "argv": ["x"]}, "rules": {"lost_limit": 1, "retries": 2}}
    old = msgspec.msgpack.encode(["TasksAdmitted", START, [spec], [[0]], [1]])
    fact = decode_fact(crc32(old).to_bytes(CHECKSUM_BYTES, "big") + old)
    assert isinstance(fact, fx.TasksAdmitted)
    assert fact.specs[0].rules == TaskRules(lost_limit=1, retries=2)


def test_pause_comes_back_from_the_journal() -> None:
    ended = fx.AttemptEnded(TaskId(1), record(1, Cause.ERROR), START + 5)
    rows = LiveIndex().plan([admitted([1]), ended])
    assert [decode_fact(blob) for _, blob, _ in rows.changes] == [ended]


@pytest.mark.parametrize("exempt", [False, True])
def test_release_of_a_daemon_that_knew_only_whether_there_was_a_hold(exempt: bool) -> None:
    tag, task_id, _ = msgspec.msgpack.decode(encode_facts([released(1)])[CHECKSUM_BYTES:])[0]
    old = msgspec.msgpack.encode([[tag, task_id, exempt]])
    [fact] = decode_facts(crc32(old).to_bytes(CHECKSUM_BYTES, "big") + old)
    assert isinstance(fact, fx.TaskReleased)
    assert fact.exempt_ns is exempt


def test_facts_of_a_daemon_that_knew_no_quarantines() -> None:
    """Their records have no word about excuses, their releases none about exemptions."""
    now = [fx.AttemptEnded(TaskId(1), record()), released(1)]
    (kind, task_id, values, *_), (released_kind, *rest) = msgspec.msgpack.decode(encode_facts(now)[CHECKSUM_BYTES:])
    assert values.pop() is False
    assert rest.pop() == 0
    old = msgspec.msgpack.encode([[kind, task_id, values], [released_kind, *rest]])
    assert decode_facts(crc32(old).to_bytes(CHECKSUM_BYTES, "big") + old) == now
