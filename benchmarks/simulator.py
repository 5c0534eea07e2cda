"""The trace simulator: how many tasks a second it comes through under `fifo`, and what it keeps of each.

A bag, of which all is there at the beginning, and a Poisson stream at 0.9 of the capacity, where most tasks take two
turns of the engine of their own: one for the submit, one for the end. Each in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time

import psutil
from common import Floor, arguments, finish, median, spread

from schedd.config import parse_settings
from schedd.simulate.cluster import ClusterRow
from schedd.simulate.generate import Load, generate
from schedd.simulate.run import Simulator

RATE_FLOOR = 30_000.0
#: Of a stream: what figures are made of, start, end and place; of a bag all tasks are in the queue at once.
KEPT_FLOOR_BYTES = 40.0
WORKERS = 100
ARRIVALS = ("bag", "poisson")
WARM_UP_TASKS = 2000


def measure(arrivals: str, tasks: int) -> dict[str, float]:
    """One run, in this process: seconds of the processor, and bytes that a task has added beside the trace itself."""
    cluster = [ClusterRow(count=WORKERS)]
    if tasks > WARM_UP_TASKS:
        measure(arrivals, WARM_UP_TASKS)  # what is loaded when it is first used is not kept of a task
    trace = generate(Load(arrivals=arrivals, tasks=tasks), cluster, 1)  # type: ignore[arg-type]
    simulator = Simulator(trace, cluster, parse_settings('policy.name = "fifo"'))
    before = psutil.Process().memory_info().rss
    began = time.process_time()
    run = simulator.run()
    taken_s = time.process_time() - began
    kept = psutil.Process().memory_info().rss - before
    return {"taken_s": taken_s, "engine_s": run.engine_s, "kept": kept / tasks}


def measure_apart(arrivals: str, options: argparse.Namespace) -> dict[str, float]:
    argv = [sys.executable, __file__, "--one", arrivals, "--tasks", str(options.tasks)]
    found: dict[str, float] = json.loads(subprocess.run(argv, stdout=subprocess.PIPE, check=True).stdout)
    return found


def main() -> int:
    parser = arguments(__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--tasks", type=int, default=200_000, help="of a run (default %(default)s)")
    parser.add_argument("--one", choices=ARRIVALS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        sys.stdout.write(json.dumps(measure(options.one, options.tasks)))
        return 0
    rows, floors = [], []
    for arrivals in ARRIVALS:
        runs = [measure_apart(arrivals, options) for _ in range(options.runs)]
        rates = [options.tasks / run["taken_s"] for run in runs]
        engine_us = median([run["engine_s"] / options.tasks * 1e6 for run in runs])
        kept = median([run["kept"] for run in runs])
        rows.append([arrivals, median(rates), spread(rates), engine_us, kept])
        floors.append(Floor(f"{arrivals}: tasks a second", median(rates), RATE_FLOOR))
        if arrivals != "bag":
            floors.append(Floor(f"{arrivals}: bytes kept of a task", kept, KEPT_FLOOR_BYTES, at_most=True))
    columns = ["load", "tasks/s", "lowest .. highest", "of that the engine, us a task", "bytes kept of a task"]
    return finish(options, "simulator", columns, rows, floors)


if __name__ == "__main__":
    sys.exit(main())
