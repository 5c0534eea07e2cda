"""Orders of the literature: runs that can be worked out by hand, and published values."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import pytest

from schedd.config import Settings
from schedd.core.effects import Effects
from schedd.core.engine import Engine
from schedd.core.events import Event
from schedd.core.model import TaskRequirements
from schedd.simulate.cluster import ClusterRow
from schedd.simulate.contest import Rules, run_under
from schedd.simulate.literature import LITERATURE
from schedd.simulate.record import Run
from schedd.simulate.trace import Trace, TraceTask, part_of, read_trace

DATA = Path(__file__).parents[3] / "shared" / "data" / "hpc"


def job(submit_s: float, runtime_s: float, cpus: int = 1, requested_s: float | None = None) -> TraceTask:
    return TraceTask(submit_s, "job", runtime_s, TaskRequirements(cpus=cpus, estimated_time=requested_s))


def run_of(policy: str, *jobs: TraceTask, cpus: int = 4, rules: Rules = Rules()) -> Run:  # noqa: B008
    return run_under(policy, Trace("made", list(jobs)), [ClusterRow(cpus=cpus)], Settings(), rules=rules)


def test_committed_head_starts_before_a_better_one_that_comes_later() -> None:
    run = run_of("sjf", job(0, 10, 4), job(1, 8, 4), job(2, 1, 1), job(10, 2, 4))
    assert list(run.start_s) == [0, 10, 18, 19]


def test_better_one_that_is_there_goes_first() -> None:
    run = run_of("sjf", job(0, 10, 4), job(1, 5, 4), job(2, 8, 4), job(3, 1, 1))
    # When the second has started, the scheduler looks again: the last is the shortest.
    assert list(run.start_s) == [0, 10, 16, 15]
    assert list(run_of("fcfs", job(0, 10, 4), job(1, 5, 4), job(2, 8, 4), job(3, 1, 1)).start_s) == [0, 10, 15, 23]


def test_backfill_ends_before_the_forecast() -> None:
    # The head waits until 10: what takes 8 ends before, what takes 9 does not.
    jobs = [job(0, 10, 2), job(0, 30, 4), job(1, 9, 1), job(1, 8, 1), job(1, 3, 3)]
    assert list(run_of("fcfs", *jobs, rules=Rules(backfill=True)).start_s) == [0, 10, 40, 1, 40]
    assert list(run_of("fcfs", *jobs).start_s) == [0, 10, 40, 40, 48]


def test_backfill_goes_by_requested_times_and_submission() -> None:
    jobs = [job(0, 2, 3, 100), job(0, 5, 4), job(0, 90, 1, 90), job(0, 1, 1, 1)]
    run = run_of("sjf", *jobs, rules=Rules(backfill=True, one_by_one=True))
    # The first was said to run until 100, so that the long one, submitted before the short one, may go first.
    assert list(run.start_s) == [0, 90, 0, 2]


def test_forecast_is_made_once() -> None:
    jobs = [job(0, 6, 2, 20), job(0, 50, 4), job(1, 10, 2), job(7, 10, 2)]
    run = run_of("fcfs", *jobs, rules=Rules(backfill=True))
    # At 6 the first ends, long before it was said to: the forecast stays, and the last, which ends at 17, goes first.
    assert list(run.start_s) == [0, 17, 1, 7]


def test_one_by_one_the_first_to_come_is_committed() -> None:
    jobs = [job(0, 5, 4), job(0, 3, 4)]
    assert list(run_of("sjf", *jobs).start_s) == [3, 0]
    assert list(run_of("sjf", *jobs, rules=Rules(one_by_one=True)).start_s) == [0, 5]


def test_submit_comes_before_an_end_at_the_same_instant() -> None:
    jobs = [job(0, 10, 2, 20), job(0, 5, 4, 5), job(10, 3, 2, 3)]
    # The last comes before it is known that the first has ended, and may go before the head, which waits until 20.
    run = run_of("fcfs", *jobs, rules=Rules(backfill=True, one_by_one=True))
    assert list(run.start_s) == [0, 13, 10]
    assert list(run_of("fcfs", *jobs, rules=Rules(backfill=True)).start_s) == [0, 10, 15]


@pytest.mark.parametrize("policy", LITERATURE)
def test_all_on_several_workers_with_devices(policy: str) -> None:
    tasks = [
        TraceTask(i % 7, "k", 5.0 + i % 11, TaskRequirements(min_gpus=1 + i % 2, cpus=1, estimated_time=20))
        for i in range(60)
    ]
    for backfill in (False, True):
        cluster = [ClusterRow(count=3, num_gpus=2)]
        run = run_under(policy, Trace("made", tasks), cluster, Settings(), rules=Rules(backfill=backfill))
        assert min(run.start_s) == 0
        assert set(run.where) == {0, 1, 2}


def test_tables_stay_right(monkeypatch: pytest.MonkeyPatch) -> None:
    def handle(engine: Engine, events: Sequence[Event], now: int) -> Effects:
        effects = handle_of_engine(engine, events, now)
        engine.check()
        return effects

    handle_of_engine = Engine.handle
    monkeypatch.setattr(Engine, "handle", handle)
    jobs = [job(i // 3, 3 + i * 7 % 13, 1 + i * 5 % 4, 15) for i in range(80)]
    run_of("f1", *jobs, rules=Rules(backfill=True))


def test_part_of_a_trace() -> None:
    trace = Trace("made", [TraceTask(i, "k", 1, TaskRequirements(), after=(i - 1,) if i else ()) for i in range(9)])
    part = part_of(trace, slice(3, 6))
    assert [task.submit_s for task in part.tasks] == [3, 4, 5]
    assert [task.after for task in part.tasks] == [(), (0,), (1,)]


@pytest.mark.skipif(not DATA.is_dir(), reason="the published values are not here")
@pytest.mark.parametrize(("policy", "backfill"), [("F1", False), ("SJF", True)])
def test_published_slowdown_of_lublin_1(policy: str, backfill: bool) -> None:
    published = json.loads((DATA / "lublin_1_published.json").read_text())
    trace, cluster = read_trace(DATA / published["trace"]), [ClusterRow(cpus=published["processors"])]
    slowdowns = []
    for row in published["sequence_starts_0based_row_index"]:
        part = part_of(trace, slice(row, row + published["sequence_length"]))
        run = run_under(policy.lower(), part, cluster, Settings(), rules=Rules(backfill, one_by_one=True))
        first_s = part.tasks[0].submit_s
        for task, finish in zip(part.tasks, run.finish_s, strict=True):
            slowdowns.append(max(1, (finish + first_s - task.submit_s) / max(task.runtime_s, 10)))
    known = published["avg_bounded_slowdown"]["backfill" if backfill else "no_backfill"][policy]
    assert round(fmean(slowdowns), 2) == known
