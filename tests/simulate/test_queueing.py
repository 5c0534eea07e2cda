"""Random choices and stealing against the closed forms of queueing theory, in small."""

from __future__ import annotations

import json
import random
from pathlib import Path
from statistics import fmean

import pytest

from schedd.config import parse_settings
from schedd.core.model import TaskRequirements
from schedd.simulate.cluster import ClusterRow
from schedd.simulate.metrics import figures_of
from schedd.simulate.record import Run
from schedd.simulate.run import Simulator
from schedd.simulate.trace import Trace, TraceTask, read_trace

DATA = Path(__file__).parents[3] / "shared" / "data"
FORMS = DATA / "theory" / "closed_forms.json"
MEAN_S = 100.0
COMMON = """
policy.name = "work_stealing"
stealing.interval_s = 1e9
prefetch.depth_max = 0
[policy.work_stealing]
backlog_per_slot = 100_000
adapt = false
"""
NO_STEALING = "steal_threshold = 1_000_000\n"
STEAL_ONE = 'steal_threshold = 0\nchoices = 1\nvictims = 1\nsteal = "one"\n'


def simulated(tasks: list[TraceTask], workers: int, text: str) -> Run:
    return Simulator(Trace("made", tasks), [ClusterRow(count=workers)], parse_settings(COMMON + text)).run()


def mean_time(load: float, text: str, workers: int = 100, count: int = 12_000) -> float:
    """In units of the mean service time; the first fifth, which found empty queues, left out."""
    dice, now, tasks = random.Random(3), 0.0, []
    for _ in range(count):
        now += MEAN_S * dice.expovariate(workers * load)
        tasks.append(TraceTask(now, "k", MEAN_S * dice.expovariate(1.0), TaskRequirements()))
    run = simulated(tasks, workers, text)
    flows = [done + tasks[0].submit_s - task.submit_s for done, task in zip(run.finish_s, tasks, strict=True)]
    return fmean(flows[count // 5 :]) / MEAN_S


@pytest.mark.skipif(not FORMS.is_file(), reason="the closed forms are not here")
@pytest.mark.parametrize(
    ("form", "text"),
    [("2", NO_STEALING + "choices = 2"), ("3", NO_STEALING + "choices = 3"), ("steal_one", STEAL_ONE)],
    ids=["two choices", "three choices", "steal one"],
)
def test_mean_time_in_system_is_what_theory_says(form: str, text: str) -> None:
    forms = json.loads(FORMS.read_text())
    values = forms["steal_one"]["values"] if form == "steal_one" else forms["power_of_d"]["values"][form]
    assert mean_time(0.7, text) == pytest.approx(values["0.7"], rel=0.04)


def test_worker_that_runs_out_of_work_steals_at_once() -> None:
    """No timer fires: who ends its last task takes from others in the same instant."""
    tasks = [TraceTask(0, "k", 10, TaskRequirements()) for _ in range(40)]
    blocks = simulated(tasks, 4, "block = 10\nsteal_threshold = 0\n")
    assert (max(blocks.finish_s), blocks.steals) == (100, 0)
    uneven = [TraceTask(0, "k", 10 if n < 10 else 1, TaskRequirements()) for n in range(40)]
    run = simulated(uneven, 4, "block = 10\nsteal_threshold = 0\n")
    assert run.steals > 0
    assert max(run.finish_s) <= 40  # 130 s of work for four, no task longer than 10 s
    assert figures_of(run).utilisation > 0.8


def mean_response(tasks: list[TraceTask], workers: int, text: str) -> float:
    settings = parse_settings("prefetch.depth_max = 0\n" + text)
    return figures_of(Simulator(Trace("made", tasks), [ClusterRow(count=workers)], settings).run()).mean_flow_time_s


@pytest.mark.skipif(not DATA.is_dir(), reason="the real traces are not here")
def test_stealing_makes_good_what_random_placement_got_wrong() -> None:
    """The jobs of one GPU of a virtual cluster of Philly; in full in `benchmarks/policies/stealing.py`."""
    rows = read_trace(DATA / "gpu" / "philly_jobs.csv.gz").tasks
    jobs = [TraceTask(t.submit_s, "k", t.runtime_s, TaskRequirements()) for t in rows if t.kind == "11cb48"][:1500]
    one_queue = mean_response(jobs, 3, 'policy.name = "fifo"')
    stealing = 'policy.name = "work_stealing"\npolicy.work_stealing = { choices = 1, backlog_per_slot = 100_000 }'
    assert mean_response(jobs, 3, stealing) <= 1.1 * one_queue
    never = stealing.replace("}", ", steal_threshold = 1_000_000 }")
    assert mean_response(jobs, 3, never) > 1.2 * one_queue


@pytest.mark.skipif(not DATA.is_dir(), reason="the real traces are not here")
@pytest.mark.parametrize("block", [1, 188], ids=["dealt in turn", "in blocks"])
def test_bag_that_was_dealt_out_ends_as_if_nobody_had_idled(block: int) -> None:
    """No longer than the work shared evenly and the longest task after it (Graham, 1969), whoever was given what."""
    tasks = read_trace(DATA / "nas" / "lcdb_accuracy.csv.gz").tasks[::20]
    work_s, longest_s = sum(t.runtime_s for t in tasks), max(t.runtime_s for t in tasks)
    run = simulated(tasks, 16, f"block = {block}\nsteal_threshold = 0\n")
    assert max(run.finish_s) <= work_s / 16 + longest_s
    bare = simulated(tasks, 16, f"block = {block}\nsteal_threshold = 1_000_000\n")
    assert max(bare.finish_s) > 1.1 * max(run.finish_s)


@pytest.mark.parametrize("seed", range(3))
def test_bag_in_blocks_ends_as_early_as_from_one_queue(seed: int) -> None:
    """One kind takes forty times as long as another, eighty of a kind lie together, and nobody is told."""
    dice = random.Random(seed)
    means = [mean for mean in (1, 2, 5, 40) for _ in range(10)]
    dice.shuffle(means)
    tasks = [TraceTask(0, str(m), dice.expovariate(1 / m), TaskRequirements()) for m in means for _ in range(80)]
    one_queue = Simulator(Trace("made", tasks), [ClusterRow(count=16)], parse_settings('policy.name = "fifo"')).run()
    run = simulated(tasks, 16, "block = 200\nsteal_threshold = 0\n")
    assert max(run.finish_s) <= 1.03 * max(one_queue.finish_s)


def test_block_of_tasks_goes_to_one_worker() -> None:
    tasks = [TraceTask(0, "k", 10, TaskRequirements()) for _ in range(12)]
    run = simulated(tasks, 3, "block = 4\nsteal_threshold = 1_000\n")
    assert list(run.where) == [0] * 4 + [1] * 4 + [2] * 4


@pytest.mark.parametrize("text", ["choices = 2\nvictims = 2\n", "choices = 1\nblock = 3\n"])
def test_dice_are_those_of_the_seed(text: str) -> None:
    dice = random.Random(5)
    tasks = [TraceTask(n / 2, "k", dice.expovariate(1 / 4), TaskRequirements()) for n in range(300)]
    runs = [
        Simulator(Trace("made", tasks), [ClusterRow(count=9)], parse_settings(COMMON + text), seed).run()
        for seed in (1, 1, 2)
    ]
    assert (runs[0].where, runs[0].start_s) == (runs[1].where, runs[1].start_s)
    assert runs[0].where != runs[2].where
