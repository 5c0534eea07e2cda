"""What queueing theory knows exactly: the mean time in system of d random choices and of stealing, against the engine.

Unit-rate exponential service, Poisson arrivals, each worker with a queue of its own; values in units of the mean
service time. Everything goes through `[policy.work_stealing]`, its parameters as a user would set them. The formulas
are limits for many workers, so the more workers the closer.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console

from schedd.config import parse_settings
from schedd.core.model import TaskRequirements
from schedd.simulate.cluster import ClusterRow
from schedd.simulate.run import Simulator
from schedd.simulate.trace import Trace, TraceTask

#: A floor: measured within this of the formula.
WITHIN = 0.03
LOADS = (0.5, 0.8, 0.9)
MEAN_S = 100.0
#: The first tasks find empty queues: they do not count.
WARM_UP = 0.2
COMMON = """
policy.name = "work_stealing"
stealing.interval_s = 1e9
prefetch.depth_max = 0
[policy.work_stealing]
backlog_per_slot = 100_000
adapt = false
"""
NO_STEALING = COMMON + "steal_threshold = 1_000_000\n"


def power_of(d: int, load: float) -> float:
    """The shortest of d queues chosen at random (Mitzenmacher, 2001; Vvedenskaya, Dobrushin, Karpelevich, 1996)."""
    if d == 1:
        return 1 / (1 - load)
    return math.fsum(load ** ((d**i - d) / (d - 1)) for i in range(1, 60 if d == 2 else 40) if d**i < 1e6)


def steal_one(load: float) -> float:
    """Random queues; who becomes idle asks one random other, once, for its last waiting task (Mitzenmacher, 1998)."""
    p2 = (1 + load - math.sqrt(1 + 2 * load - 3 * load**2)) / 2
    q = load / (1 + load - p2)
    return (load + p2 / (1 - q)) / load


CASES: dict[str, tuple[str, Callable[[float], float]]] = {
    "choices = 1": (NO_STEALING + "choices = 1", lambda load: power_of(1, load)),
    "choices = 2": (NO_STEALING + "choices = 2", lambda load: power_of(2, load)),
    "choices = 3": (NO_STEALING + "choices = 3", lambda load: power_of(3, load)),
    "steal one": (COMMON + 'steal_threshold = 0\nchoices = 1\nvictims = 1\nsteal = "one"', steal_one),
}


def mean_time(text: str, load: float, workers: int, tasks: int, seed: int) -> float:
    """The mean time in system of a run, in units of the mean service time, the warm-up left out."""
    dice, now, made = random.Random(seed), 0.0, []
    for _ in range(tasks):
        now += MEAN_S * dice.expovariate(workers * load)
        made.append(TraceTask(now, "k", MEAN_S * dice.expovariate(1.0), TaskRequirements()))
    run = Simulator(Trace("made", made), [ClusterRow(count=workers)], parse_settings(text), seed).run()
    first_s = made[0].submit_s
    flows = [finish + first_s - task.submit_s for finish, task in zip(run.finish_s, made, strict=True)]
    return fmean(flows[int(WARM_UP * tasks) :]) / MEAN_S


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=500)
    parser.add_argument("--tasks", type=int, default=300_000)
    parser.add_argument("--load", type=float, action="append", help="of each worker; may be given more than once")
    parser.add_argument("--case", action="append", choices=list(CASES), help="default: all but one choice")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", metavar="FILE", help="write all values to this file, - for stdout")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a value is not within 3 %%")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    console = Console(stderr=options.json == "-", highlight=False)
    console.print(f"{options.workers:,} workers, {options.tasks:,} tasks; mean time in system, in mean service times")
    for case in options.case or list(CASES)[1:]:
        text, formula = CASES[case]
        for load in options.load or LOADS:
            expected, seen = formula(load), mean_time(text, load, options.workers, options.tasks, options.seed)
            rows.append({"case": case, "load": load, "formula": expected, "seen": seen})
            off = seen / expected - 1
            verdict = "ok" if abs(off) <= WITHIN else "MISSED"
            console.print(f"{case:12} load {load:<5} formula {expected:7.4f}  seen {seen:7.4f}  {off:+.2%}  {verdict}")
    if options.json:
        text = json.dumps(rows, indent=2)
        sys.stdout.write(text + "\n") if options.json == "-" else Path(options.json).write_text(text)
    return int(options.check and any(abs(row["seen"] / row["formula"] - 1) > WITHIN for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
