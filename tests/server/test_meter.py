"""What is counted by facts, and that it stays bounded and never falls."""

from __future__ import annotations

import random

import pytest

from schedd.core import effects as fx
from schedd.core.model import SECOND, AttemptRecord, Cause, Queued, Task, TaskId, WorkerId
from schedd.core.tasks import TaskTable
from schedd.server.meter import KINDS_FOLLOWED_MAX, LABEL_MAX, USES_MORE, Kinds, KindTally, Meter

W1 = WorkerId("w1")


def counts(kinds: Kinds) -> dict[str, int]:
    return {kind: tally.runtime.count for kind, tally in (*kinds.shown.items(), ("other", kinds.other))}


def use(kinds: Kinds, kind: str, times: int = 1) -> None:
    for _ in range(times):
        kinds.of(kind).runtime.observe(1.0)


def test_first_kinds_have_counts_of_their_own_and_others_share_one() -> None:
    kinds = Kinds(2)
    for kind in ("a", "b", "a", "c", "d"):
        use(kinds, kind)
    assert counts(kinds) == {"a": 2, "b": 1, "other": 2}


def test_kind_that_is_used_far_more_takes_a_place_and_begins_at_zero() -> None:
    kinds = Kinds(2)
    use(kinds, "a", 10)
    use(kinds, "b")
    use(kinds, "new", 3 + USES_MORE)
    kinds.choose()
    assert counts(kinds) == {"a": 10, "new": 0, "other": 3 + USES_MORE}
    use(kinds, "new")
    use(kinds, "b")
    assert counts(kinds) == {"a": 10, "new": 1, "other": 4 + USES_MORE}


def test_kinds_of_about_equal_use_do_not_take_turns() -> None:
    kinds = Kinds(1)
    use(kinds, "a", 1000)
    use(kinds, "b", 1500)
    kinds.choose()
    assert set(kinds.shown) == {"a"}


def test_kind_that_was_used_long_ago_makes_room() -> None:
    kinds = Kinds(1)
    use(kinds, "old", 10_000)
    for _ in range(20):
        use(kinds, "new", 2_000)
        kinds.choose()
    assert set(kinds.shown) == {"new"}


def test_no_count_falls_and_memory_is_bounded_whatever_clients_send() -> None:
    rng = random.Random(1)
    kinds = Kinds(5)
    before: dict[str, tuple[KindTally, int]] = {}
    for step in range(20_000):
        use(kinds, rng.choice(["x" * 200, "other", f"k{rng.randrange(5)}", f"r{rng.random()}", f"n{step // 2000}"]))
        if not step % 100:
            kinds.choose()
            for kind, tally in (*kinds.shown.items(), ("other", kinds.other)):
                known = before.get(kind)
                if known is not None and known[0] is tally:
                    assert tally.runtime.count >= known[1]
                before[kind] = (tally, tally.runtime.count)
    assert len(kinds.shown) == 5
    assert "other" not in kinds.shown
    assert all(len(kind) <= LABEL_MAX for kind in kinds.shown)
    assert len(kinds._followed) <= KINDS_FOLLOWED_MAX


@pytest.fixture
def tasks() -> TaskTable:
    table = TaskTable()
    table.admit(Task(id=TaskId(1), state=Queued(SECOND), submitted_ns=SECOND, kind="train"), SECOND)
    return table


def record(attempt: int, started_s: int, finished_s: int, cause: Cause = Cause.OK) -> AttemptRecord:
    return AttemptRecord(attempt, W1, SECOND, started_s * SECOND, finished_s * SECOND, cause)


def end(tasks: TaskTable, ended: AttemptRecord) -> fx.AttemptEnded:
    """An attempt ends, as its row and a fact say."""
    tasks.rows[TaskId(1)].attempts += (ended,)
    return fx.AttemptEnded(TaskId(1), ended)


def told(meter: Meter) -> tuple[int, float, int, float]:
    tally = meter.kinds.of("train")
    return tally.delay.count, tally.delay.total, tally.runtime.count, tally.runtime.total


def test_delay_counts_at_the_start_and_once(tasks: TaskTable) -> None:
    meter = Meter(0)
    meter.note([fx.AttemptBegan(TaskId(1), 1, 5 * SECOND)], tasks)
    assert told(meter) == (1, 4.0, 0, 0.0)
    meter.note([end(tasks, record(1, 5, 15))], tasks)
    assert told(meter) == (1, 4.0, 1, 10.0)


def test_start_that_is_told_with_its_end_counts_too(tasks: TaskTable) -> None:
    meter = Meter(0)
    meter.note([end(tasks, record(1, 5, 15))], tasks)
    assert told(meter) == (1, 4.0, 1, 10.0)


def test_repetition_has_no_delay_and_what_fails_no_runtime(tasks: TaskTable) -> None:
    meter = Meter(0)
    meter.note([fx.AttemptBegan(TaskId(1), 1, 5 * SECOND)], tasks)
    meter.note([end(tasks, record(1, 5, 15, Cause.ERROR))], tasks)
    meter.note([fx.AttemptBegan(TaskId(1), 2, 100 * SECOND)], tasks)
    meter.note([end(tasks, record(2, 100, 101))], tasks)
    assert told(meter) == (1, 4.0, 1, 1.0)


def test_attempt_that_never_ran_leaves_the_delay_to_the_next(tasks: TaskTable) -> None:
    meter = Meter(0)
    meter.note([end(tasks, record(1, 0, 3, Cause.REJECTED))], tasks)
    meter.note([fx.AttemptBegan(TaskId(1), 2, 11 * SECOND)], tasks)
    assert told(meter) == (1, 10.0, 0, 0.0)


def test_start_before_this_daemon_was_counted_by_the_last(tasks: TaskTable) -> None:
    meter = Meter(8 * SECOND)
    meter.note([end(tasks, record(1, 5, 15))], tasks)
    assert told(meter) == (0, 0.0, 1, 10.0)


def test_ends_of_tasks_count_by_state_and_forgotten_rows_do_no_harm(tasks: TaskTable) -> None:
    meter = Meter(0)
    gone = TaskId(99)
    meter.note(
        [
            fx.TaskFinished(TaskId(1), "failed", SECOND),
            fx.TaskFinished(gone, "succeeded", SECOND),
            fx.AttemptBegan(gone, 1, SECOND),
            fx.AttemptEnded(gone, record(1, 1, 2)),
        ],
        tasks,
    )
    assert meter.finished == {"cancelled": 0, "failed": 1, "succeeded": 1}
