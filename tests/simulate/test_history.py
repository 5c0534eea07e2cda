"""What becomes of a history when it is made into a trace and a cluster."""

from __future__ import annotations

import random

import pytest

from schedd.config import parse_settings
from schedd.core import events as ev
from schedd.core.model import SECOND, Cause, Selection, TaskRequirements, TaskRules
from schedd.core.policies import POLICIES
from schedd.errors import TraceError
from schedd.simulate.cluster import ClusterRow
from schedd.simulate.history import RecordedWorker
from schedd.simulate.metrics import figures_of
from schedd.simulate.run import Simulator
from schedd.simulate.trace import Trace, TraceTask

from .recording import BEGIN, Recorded, RecordingSimulator

FIFO = parse_settings('policy.name = "fifo"')


def test_tasks_as_they_were() -> None:
    daemon = Recorded()
    daemon.joins(0, "w1", cpus=2)
    [first] = daemon.submits(10, kind="a", priority=3.0, requirements=TaskRequirements(cpus=2))
    [second] = daemon.submits(12, kind="b", after=[first.id])
    daemon.runs(first, 11, 15)
    daemon.runs(second, 16, 17.5)
    history = daemon.recorder().history()
    one, two = history.trace.tasks
    assert (one.submit_s, one.kind, one.runtime_s, one.priority, one.requirements.cpus) == (0, "a", 4, 3, 2)
    assert (two.submit_s, two.kind, two.runtime_s, two.after) == (2, "b", 1.5, (0,))
    assert history.recorded is not None
    assert (list(history.recorded.start_s), list(history.recorded.finish_s)) == ([1, 6], [5, 7.5])
    [worker] = history.workers
    assert (worker.name, worker.joins_s, worker.leaves_s, worker.resources().cpus) == ("w1", 0, None, 2)


def test_held_and_delayed_tasks_arrive_when_they_may_start() -> None:
    daemon = Recorded()
    daemon.joins(0, "w1")
    [held] = daemon.submits(0, hold=True)
    [delayed] = daemon.submits(0, delay_s=5.0)
    [after] = daemon.submits(0, after=[held.id])
    daemon.turn(5)
    daemon.runs(delayed, 5, 6)
    daemon.turn(7, ev.ReleaseTasks(0, Selection(ids=[held.id])))
    daemon.runs(held, 7, 8)
    daemon.runs(after, 8, 9)
    tasks = daemon.recorder().history().trace.tasks
    assert [task.submit_s for task in tasks] == [0, 2, 2]  # after the first of them
    assert [task.after for task in tasks] == [(), (), (1,)]


def test_priority_is_the_last_and_needs_are_the_first() -> None:
    daemon = Recorded()
    [task] = daemon.submits(0, priority=1.0)
    daemon.turn(1, ev.SetTasks(0, Selection(ids=[task.id]), 7.0, TaskRequirements(cpus=3)))
    daemon.joins(2, "w1", cpus=4)
    daemon.runs(task, 2, 3)
    [row] = daemon.recorder().history().trace.tasks
    assert (row.priority, row.requirements.cpus) == (7, 3)


def test_failures_are_repeated_after_the_same_share() -> None:
    daemon = Recorded()
    daemon.joins(0, "w1")
    [task] = daemon.submits(0, rules=TaskRules(retries=3, retry_delay_s=0))
    daemon.runs(task, 0, 2, Cause.ERROR)
    daemon.turn(2)
    daemon.runs(task, 2, 10)
    [hopeless] = daemon.submits(10)
    daemon.runs(hopeless, 10, 13, Cause.ERROR)
    history = daemon.recorder().history()
    one, two = history.trace.tasks
    assert (one.runtime_s, one.failures, one.fails) == (8, (0.25,), False)
    assert (two.runtime_s, two.failures, two.fails) == (3, (), True)
    assert history.recorded is not None
    assert history.recorded.wasted_s == 5
    found = figures_of(history.recorded)
    assert (found.attempts, found.failed, history.recorded.unsuccessful) == (3, 1, {1})
    run = Simulator(history.trace, history.workers, FIFO).run()
    assert run.wasted_s == pytest.approx(5)
    assert run.placements == 3
    assert run.finish_s[0] - run.start_s[0] == pytest.approx(8)
    assert run.finish_s[1] == pytest.approx(13, abs=2)


def test_lost_attempts_are_the_workers_doing() -> None:
    daemon = Recorded()
    daemon.joins(0, "w1")
    [task] = daemon.submits(0)
    daemon.starts(task, 0)
    daemon.leaves(4, "w1")
    daemon.joins(6, "w1")
    daemon.runs(task, 6, 16)
    history = daemon.recorder().history()
    [row] = history.trace.tasks
    assert (row.runtime_s, row.failures) == (10, ())
    assert [(worker.name, worker.joins_s, worker.leaves_s) for worker in history.workers] == [
        ("w1", 0, 4),
        ("w1", 6, None),
    ]
    run = Simulator(history.trace, history.workers, FIFO).run()
    assert (list(run.start_s), list(run.finish_s), run.wasted_s) == ([6], [16], 4)
    assert list(run.where) == [1]


def test_what_is_left_out_is_counted() -> None:
    daemon = Recorded()
    daemon.joins(0, "w1")
    [done] = daemon.submits(0)
    [cancelled] = daemon.submits(0)
    daemon.submits(0, 3, hold=True)
    daemon.turn(1, ev.CancelTasks(0, Selection(ids=[cancelled.id])))
    daemon.runs(done, 1, 2)
    history = daemon.recorder().history()
    assert len(history.trace.tasks) == 1
    assert (history.left_out.unfinished, history.left_out.never_ran) == (3, 1)
    del daemon.pages[1]  # the submit of the first is forgotten
    [late] = daemon.submits(3)
    daemon.runs(late, 3, 4)
    assert daemon.recorder().history().left_out.before_history == 1


def test_only_what_was_submitted_in_a_time() -> None:
    daemon = Recorded()
    daemon.joins(0, "w1")
    for at in range(5):
        [task] = daemon.submits(at)
        daemon.runs(task, at, at + 0.5)
    window = {"since_ns": (BEGIN + 1) * SECOND, "until_ns": (BEGIN + 3) * SECOND}
    history = daemon.recorder(**window).history()
    assert [task.submit_s for task in history.trace.tasks] == [0, 1]
    assert history.left_out.before_history == 0
    with pytest.raises(TraceError, match="no task to run again"):
        daemon.recorder(since_ns=(BEGIN + 9) * SECOND).history()


def test_task_arrives_when_what_it_needs_from_before_that_time_has_ended() -> None:
    daemon = Recorded()
    daemon.joins(0, "w1")
    [before] = daemon.submits(0)
    [other] = daemon.submits(2)
    [after] = daemon.submits(2, after=[before.id])
    daemon.runs(before, 0, 7)
    daemon.runs(other, 7, 8)
    daemon.runs(after, 8, 9)
    tasks = daemon.recorder(since_ns=(BEGIN + 1) * SECOND).history().trace.tasks
    assert [(task.submit_s, task.after) for task in tasks] == [(0, ()), (5, ())]


def test_other_devices_are_as_fast_as_the_kind_has_shown() -> None:
    daemon = Recorded()
    daemon.joins(0, "slow", "T4")
    daemon.joins(0, "fast", "A100")
    gpu = TaskRequirements(min_gpus=1)
    for at in range(200):
        one, two = daemon.submits(at, 2, requirements=gpu)
        daemon.runs(one, at, at + 0.8)
        daemon.runs(two, at, at + 0.2)
    history = daemon.recorder().history(more=[ClusterRow(num_gpus=1, gpu_model="H100")])
    first, second = history.trace.tasks[:2]
    assert first.runtimes["T4"] == pytest.approx(0.8)
    assert first.runtimes["A100"] == pytest.approx(0.2, rel=0.01)
    assert second.runtimes == pytest.approx({"T4": 0.8, "A100": 0.2, "H100": 0.4}, rel=0.01)
    assert history.new_models == ["H100"]


def test_sizes_that_were_estimated_do_not_blur_what_devices_show() -> None:
    """Long tasks happened to run on one device, short ones on the other; they were said to be long and short."""
    daemon = Recorded()
    daemon.joins(0, "slow", "T4")
    daemon.joins(0, "fast", "A100")
    for at in range(0, 400, 40):
        [long] = daemon.submits(at, requirements=TaskRequirements(min_gpus=1, estimated_time=10.0))
        [short] = daemon.submits(at, requirements=TaskRequirements(min_gpus=1, estimated_time=1.0))
        daemon.starts(long, at)
        daemon.runs(short, at, at + 0.5)
        daemon.ends(long, at, at + 20)
    long_task, short_task = daemon.recorder().history().trace.tasks[:2]
    assert long_task.runtimes == pytest.approx({"T4": 20, "A100": 5})
    assert short_task.runtimes == pytest.approx({"T4": 2, "A100": 0.5})


def test_worker_is_what_it_declared() -> None:
    daemon = Recorded()
    daemon.joins(0, "w1", cpus=4, ram_gb=8, labels={"site": "north"}, custom={"licence": 2.0})
    [task] = daemon.submits(0, requirements=TaskRequirements(labels={"site": "north"}, custom={"licence": 1.0}))
    daemon.runs(task, 0, 1)
    history = daemon.recorder().history()
    [worker] = history.workers
    assert isinstance(worker, RecordedWorker)
    assert worker.resources().labels == {"site": "north"}
    assert len({worker, worker}) == 1
    assert list(Simulator(history.trace, history.workers, FIFO).run().finish_s) == [1]


def test_worker_whose_coming_is_forgotten_is_known_from_the_last_page() -> None:
    daemon = Recorded()
    daemon.joins(0, "w1", cpus=3)
    [task] = daemon.submits(5)
    daemon.runs(task, 5, 6)
    coming = daemon.pages.pop(0)
    with pytest.raises(TraceError, match="none of the workers"):
        daemon.recorder().history()
    daemon.pages.append(coming)  # as `read_pages` has it: the workers that the daemon knows now
    history = daemon.recorder().history()
    assert [(worker.name, worker.joins_s, worker.resources().cpus) for worker in history.workers] == [("w1", 0, 3)]
    assert daemon.recorder().history([ClusterRow(cpus=2)]).workers == [ClusterRow(cpus=2)]


def test_last_page_says_nothing_new_of_a_worker_that_came_again() -> None:
    daemon = Recorded()
    daemon.joins(0, "w1")
    [first] = daemon.submits(0)
    daemon.runs(first, 0, 1)
    daemon.leaves(2, "w1")
    daemon.joins(4, "w1")
    [second] = daemon.submits(4)
    daemon.runs(second, 4, 5)
    daemon.pages.append(next(page for page in daemon.pages[1:] if page.at_ns == (BEGIN + 4) * SECOND))
    workers = daemon.recorder().history().workers
    assert [(worker.joins_s, worker.leaves_s) for worker in workers] == [(0, 2), (4, None)]


@pytest.mark.needs("sources")
@pytest.mark.parametrize("policy", POLICIES)
def test_replay_of_a_run_is_that_run(policy: str) -> None:
    """Whatever the policy has learned, stolen or sent ahead, and whoever came and went: the same again."""
    dice = random.Random(policy)
    tasks = [
        TraceTask(
            at * 0.7,
            dice.choice("abc"),
            0,
            TaskRequirements(cpus=dice.choice((1, 1, 2))),
            {"": dice.expovariate(0.3) + 0.05},
            float(dice.randrange(3)),
        )
        for at in range(300)
    ]
    cluster = [ClusterRow(cpus=2, name="a"), ClusterRow(cpus=3, name="b", joins_s=20), ClusterRow(cpus=2, name="c")]
    settings = parse_settings(f'policy.name = "{policy}"')
    first = RecordingSimulator(Trace("made", tasks), cluster, settings)
    was = first.run()
    history = first.recorder().history()
    assert history.recorded is not None
    again = Simulator(history.trace, history.workers, settings).run()
    names = [[worker.name for worker in workers] for workers in (cluster, history.workers)]
    assert [names[1][i] for i in again.where] == [names[0][i] for i in was.where]
    assert list(again.start_s) == pytest.approx(list(was.start_s), abs=1e-6)
    assert list(history.recorded.finish_s) == pytest.approx(list(was.finish_s), abs=1e-6)
