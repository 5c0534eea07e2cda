"""Clusters in which something goes wrong: workers that fail, slow down, come late, leave, or are far away."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from schedd.config import parse_settings
from schedd.core.model import TaskRequirements
from schedd.core.policies import POLICIES
from schedd.errors import TraceError
from schedd.simulate.cluster import ClusterRow
from schedd.simulate.contest import Rules, run_under, settings_name
from schedd.simulate.metrics import figures_of
from schedd.simulate.record import Run
from schedd.simulate.run import Simulator
from schedd.simulate.trace import Trace, TraceTask
from schedd.simulate.workers import chance
from schedd.simulate.workload import TraceWorkload

every_policy = pytest.mark.parametrize("policy", POLICIES)
RETRIES = "retries = { error = 1000, delay_s = 0.0 }\n"
#: Nothing waits at a worker.
NO_BACKLOG = "prefetch.depth_max = 0\n"


def bag(count: int, runtime_s: float, **values: object) -> Trace:
    return Trace("made", [TraceTask(0, "k", runtime_s, TaskRequirements(), **values) for _ in range(count)])  # type: ignore[arg-type]


def simulated(
    trace: Trace, cluster: Sequence[ClusterRow], policy: str = "fifo", text: str = RETRIES, seed: int = 0
) -> Run:
    settings = parse_settings(f'policy.name = "{policy}"\n{text}')
    return Simulator(trace, cluster, settings, seed, keep_spans=True).run()


def assert_nothing_overlaps(run: Run, slots: int = 1) -> None:
    assert run.spans is not None
    by_worker: dict[int, list[tuple[float, int]]] = {}
    for span in run.spans:
        edges = by_worker.setdefault(span.place, [])
        edges += [(span.start_s, 1), (span.end_s, -1)]
    for edges in by_worker.values():
        running = 0
        for _, step in sorted(edges):
            running += step
            assert running <= slots


def test_share_of_the_attempts_fails_and_is_tried_again() -> None:
    run = simulated(bag(1000, 10), [ClusterRow(count=10, fail_share=0.2, fail_after=0.5)])
    found = figures_of(run)
    assert (found.failed, found.tasks) == (0, 1000)
    failures = found.attempts - 1000
    assert failures == pytest.approx(250, abs=60)  # 0.2 / 0.8 a task
    assert found.wasted_s == pytest.approx(failures * 5)
    assert run.spans is not None
    assert sum(not span.ok for span in run.spans) == failures
    assert_nothing_overlaps(run)


def test_failures_depend_on_the_seed_and_not_on_the_policy() -> None:
    cluster = [ClusterRow(count=3, fail_share=0.3)]
    fifo, again, priority = (simulated(bag(200, 10), cluster, name) for name in ("fifo", "fifo", "priority"))
    other = simulated(bag(200, 10), cluster, seed=1)
    assert fifo.finish_s == again.finish_s
    assert fifo.attempts == priority.attempts
    assert fifo.finish_s != other.finish_s


def test_task_without_retries_fails_for_good() -> None:
    tasks = bag(20, 10).tasks
    behind = TraceTask(0, "k", 10, TaskRequirements(), after=(0,))
    run = simulated(
        Trace("made", [*tasks, behind]), [ClusterRow(fail_share=1.0)], text="failures.hopeless_kind = false"
    )
    found = figures_of(run)
    assert (found.failed, found.attempts, found.wasted_s) == (21, 20, 100)
    assert run.start_s[20] == -1
    assert found.makespan_s == 100


def test_worker_that_fails_everything_is_quarantined() -> None:
    run = simulated(bag(400, 10), [ClusterRow(count=3), ClusterRow(fail_share=1.0, fail_after=0.2)])
    assert sum(place == 3 for place in run.where) == 0
    assert run.failed == 0
    assert run.attempts < 450  # 1,066, if it were let to


def test_worker_that_slows_down() -> None:
    row = ClusterRow(slow_factor=0.5, slow_from_s=10, slow_until_s=40)
    run = simulated(bag(4, 10), [row])
    assert list(run.finish_s) == [10, 30, 45, 55]  # 10 of work, half as fast until 40
    run = simulated(bag(1, 25), [row])
    assert list(run.finish_s) == [40]
    run = simulated(bag(2, 8), [ClusterRow(slow_factor=0.5, slow_from_s=10)])
    assert list(run.finish_s) == [8, 22]


@every_policy
def test_workers_come_and_go(policy: str) -> None:
    cluster = [ClusterRow(leaves_s=25), ClusterRow(joins_s=15), ClusterRow(count=2, joins_s=40, leaves_s=1000)]
    run = simulated(bag(20, 10), cluster, policy, RETRIES + NO_BACKLOG)
    assert run.spans is not None
    lives = [(0, 25), (15, 1e9), (40, 1000), (40, 1000)]
    assert all(lives[span.place][0] <= span.start_s and span.end_s <= lives[span.place][1] for span in run.spans)
    assert run.failed == 0
    assert run.wasted_s == pytest.approx(5)  # what ran at 25
    assert sum(span.ok for span in run.spans) == 20
    assert_nothing_overlaps(run)


def test_utilisation_counts_workers_while_they_are_there() -> None:
    found = figures_of(simulated(bag(3, 10), [ClusterRow(), ClusterRow(joins_s=10)]))
    assert (found.makespan_s, found.utilisation) == (20, 1.0)


def test_tasks_that_are_left_when_all_workers_have_gone_are_said() -> None:
    with pytest.raises(TraceError, match="1 task waits for ever under fifo") as raised:
        simulated(bag(2, 10), [ClusterRow(leaves_s=15)])
    assert "do all workers leave?" in raised.value.hint


@pytest.mark.parametrize("policy", ["adaptive", "priority"])
def test_what_waits_for_ever_is_said_soon_though_timers_go_on(policy: str) -> None:
    tasks = [TraceTask(submit_s, "k", 5.0, TaskRequirements()) for submit_s in (0.0, 300.0)]
    text = "policy.priority.preempt = true"
    with pytest.raises(TraceError, match="1 task waits for ever under"):
        simulated(Trace("t", tasks), [ClusterRow(leaves_s=200)], policy, text)


def test_message_takes_time_both_ways() -> None:
    run = simulated(bag(3, 10), [ClusterRow(latency_s=0.5)], text=NO_BACKLOG)
    assert list(run.start_s) == [0.5, 11.5, 22.5]
    assert list(run.finish_s) == [10.5, 21.5, 32.5]


def test_end_that_is_on_its_way_from_a_worker_that_leaves_is_lost() -> None:
    cluster = [ClusterRow(latency_s=1, leaves_s=11.5), ClusterRow(joins_s=20)]
    run = simulated(bag(1, 10), cluster)
    assert (list(run.start_s), list(run.finish_s)) == ([20], [30])
    assert (run.attempts, run.wasted_s) == (2, 10)


def test_backlog_hides_the_delay() -> None:
    run = simulated(bag(40, 10), [ClusterRow(latency_s=0.5)], "load_balancing", "")
    assert list(run.start_s)[:3] == [0.5, 10.5, 20.5]
    assert max(run.finish_s) == pytest.approx(400.5)


@every_policy
@pytest.mark.parametrize("latency_s", [0.001, 0.7])
def test_every_policy_finishes_every_task_over_slow_links(policy: str, latency_s: float) -> None:
    tasks = [TraceTask(i / 4, "ab"[i % 2], 0.3 + chance(0, i, 0) * 3, TaskRequirements()) for i in range(300)]
    cluster = [ClusterRow(cpus=2, latency_s=latency_s), ClusterRow(latency_s=latency_s), ClusterRow()]
    run = simulated(Trace("made", tasks), cluster, policy, "stealing.enabled = true")
    assert run.spans is not None
    assert sum(span.ok for span in run.spans) == 300
    assert run.failed == 0
    assert_nothing_overlaps(run, slots=2)
    for task, start_s, finish_s in zip(tasks, run.start_s, run.finish_s, strict=True):
        assert start_s >= task.submit_s
        assert finish_s - start_s == pytest.approx(task.runtime_s, abs=1e-6)


@pytest.mark.needs("sources")
@every_policy
def test_engine_is_sound_in_all_this_trouble(policy: str) -> None:
    cluster = [
        ClusterRow(count=2, cpus=2, fail_share=0.3, latency_s=0.05),
        ClusterRow(count=2, slow_factor=0.3, slow_from_s=20, leaves_s=60),
        ClusterRow(joins_s=30, fail_share=0.1),
    ]
    tasks = [TraceTask(i / 5, "abc"[i % 3], 0.2 + chance(1, i, 0) * 2, TaskRequirements()) for i in range(300)]
    settings = parse_settings(f'policy.name = "{policy}"\nstealing.enabled = true\n{RETRIES}')
    simulator = Simulator(Trace("made", tasks), cluster, settings)
    turns = 0
    handle = simulator._engine.handle

    def checked(*arguments: object) -> object:
        nonlocal turns
        turns += 1
        effects = handle(*arguments)  # type: ignore[arg-type]
        simulator._engine.check()
        return effects

    simulator._engine.handle = checked  # type: ignore[method-assign, assignment]
    run = simulator.run()
    assert run.failed == 0
    assert turns > 600


def test_tasks_of_a_trace_may_fail_by_themselves() -> None:
    tasks = bag(1, 10, failures=(0.5, 0.1)).tasks + bag(1, 10, fails=True).tasks
    run = simulated(Trace("made", tasks), [ClusterRow()], text="retries.delay_s = 0.0")
    assert (run.attempts, run.failed) == (4, 1)
    assert run.wasted_s == pytest.approx(5 + 1 + 10)


def test_what_a_worker_fails_is_tried_again_whatever_has_failed_by_itself() -> None:
    trace = bag(300, 10, failures=(0.5,))
    run = simulated(trace, [ClusterRow(count=10, fail_share=0.3)])
    assert (run.failed, run.attempts > 650) == (0, True)
    assert simulated(trace, [ClusterRow()], text="retries.error = 1000000").failed == 0
    strict = simulated(trace, [ClusterRow(count=10, fail_share=0.3)], text="failures.hopeless_kind = false")
    assert strict.failed > 30, "nobody tries again what the settings do not"


def test_two_workers_of_one_name() -> None:
    with pytest.raises(TraceError, match="two workers are called 'a' at a time"):
        simulated(bag(1, 1), [ClusterRow(name="a"), ClusterRow(name="a")])
    run = simulated(bag(2, 10), [ClusterRow(name="a", leaves_s=10), ClusterRow(name="a", joins_s=10)])
    assert list(run.where) == [0, 1]


def test_informed_hears_of_each_change_at_once() -> None:
    cluster = [ClusterRow(), ClusterRow(slow_factor=0.1, slow_from_s=95, slow_until_s=1000)]
    tasks = [TraceTask(20 * i, "k", 10, TaskRequirements()) for i in range(10)]
    run = run_under("informed", Trace("made", tasks), cluster, parse_settings('policy.name = "adaptive"'))
    assert set(run.where[5:]) == {0}, "the other is ten times as slow from then on"
    assert max(run.finish_s) == 190


@pytest.mark.parametrize("policy", ["informed", "batch", "work_stealing"])
def test_what_is_known_beforehand_is_known_to_adaptive_alone(policy: str) -> None:
    tasks = [TraceTask(0, "ab"[i % 2], 1 + chance(0, i, 0) * (3 + i % 2 * 20), TaskRequirements()) for i in range(60)]
    cluster = [ClusterRow(), ClusterRow(slow_factor=0.3)]
    settings = parse_settings(f'policy.name = "{settings_name(policy)}"')
    plain, known = (
        run_under(policy, Trace("made", tasks), cluster, settings, 0, Rules(known=k)) for k in (False, True)
    )
    assert (plain.start_s, plain.where) == (known.start_s, known.where)
    assert {task.kind for task in known.trace.tasks} == {"a", "b"}


def test_informed_needs_to_know_all_tasks() -> None:
    workload = TraceWorkload(bag(1, 1))
    with pytest.raises(TraceError, match="informed needs to know all tasks"):
        run_under("informed", workload, [ClusterRow()], parse_settings('policy.name = "adaptive"'))
