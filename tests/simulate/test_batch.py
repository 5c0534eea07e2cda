"""What batches are for: kinds stay together where that costs nothing, and long tasks are not bound early."""

from __future__ import annotations

import random
from itertools import pairwise

from schedd.config import parse_settings
from schedd.core.model import TaskRequirements
from schedd.simulate.cluster import ClusterRow
from schedd.simulate.record import Run
from schedd.simulate.run import Simulator
from schedd.simulate.trace import Trace, TraceTask


def simulated(tasks: list[TraceTask], workers: int, text: str) -> Run:
    settings = parse_settings("prefetch.depth_max = 0\n" + text)
    return Simulator(Trace("made", tasks), [ClusterRow(count=workers)], settings).run()


def batches(size: int, seconds: float) -> str:
    return f'policy.name = "batch"\npolicy.batch = {{ batch_size = {size}, batch_s = {seconds} }}'


def mixed(mean_s: float, count: int = 600) -> list[TraceTask]:
    """Four kinds in any order, lengths as they come, half of them there at once and half while these run."""
    dice = random.Random(8)
    arrivals = sorted(max(0.0, dice.uniform(-1, 1)) * count * mean_s / 16 for _ in range(count))
    return [TraceTask(at, dice.choice("abcd"), dice.expovariate(1 / mean_s), TaskRequirements()) for at in arrivals]


def changes_of_kind(run: Run) -> int:
    """How often a worker goes on with another kind than it has just had."""
    order = sorted(range(len(run.start_s)), key=lambda i: (run.where[i], run.start_s[i]))
    rows = [(run.where[i], run.trace.tasks[i].kind) for i in order]
    return sum(1 for (where, kind), (then, next_) in pairwise(rows) if where == then and kind != next_)


def test_short_tasks_of_a_kind_stay_together() -> None:
    tasks = mixed(2.0)
    single = changes_of_kind(simulated(tasks, 8, 'policy.name = "priority"'))
    together = changes_of_kind(simulated(tasks, 8, batches(16, 30.0)))
    assert together < single / 4


def test_long_tasks_do_not_wait_behind_each_other() -> None:
    """Whole batches of long tasks bind early, and the last worker ends late; by time they do not."""
    tasks = mixed(600.0, 300)
    by_count, by_time = (max(simulated(tasks, 8, batches(16, seconds)).finish_s) for seconds in (0.0, 60.0))
    one_queue = max(simulated(tasks, 8, 'policy.name = "priority"').finish_s)
    assert by_time < by_count
    assert by_time < 1.05 * one_queue
