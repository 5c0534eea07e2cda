"""The trace simulator: how many tasks a second it comes through under `fifo`, and what it keeps of each.

A bag, of which all is there at the beginning, and a Poisson stream at 0.9 of the capacity, where most tasks take two
turns of the engine of their own: one for the submit, one for the end. Each in a process of its own, by the schedd that
is installed and, in turns with it, by one that is compiled for this.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
from common import Floor, arguments, finish, median, spread

from schedd.assembly import is_compiled
from schedd.config import parse_settings
from schedd.simulate.cluster import ClusterRow
from schedd.simulate.generate import Load, generate
from schedd.simulate.run import Simulator

ROOT = Path(__file__).resolve().parent.parent
RATE_FLOOR = 30_000.0
#: What it gains to be compiled.
GAIN_FLOOR = 1.8
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
    return {"taken_s": taken_s, "engine_s": run.engine_s, "kept": kept / tasks, "is_compiled": is_compiled()}


def measure_apart(arrivals: str, options: argparse.Namespace, folder: str) -> dict[str, float]:
    """The same in a process of its own; folder: where the schedd is that is measured, "": the one that is installed."""
    argv = [sys.executable, __file__, "--one", arrivals, "--tasks", str(options.tasks)]
    env = os.environ | {"PYTHONPATH": folder} if folder else None
    found: dict[str, float] = json.loads(subprocess.run(argv, env=env, stdout=subprocess.PIPE, check=True).stdout)
    return found


def compile_into(folder: str) -> None:
    """Install a compiled schedd there, from the sources of this repository."""
    sys.stderr.write("compiling, which takes a minute or two (--plain leaves it out)\n")
    argv = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", folder, str(ROOT)]
    subprocess.run(argv, env=os.environ | {"SCHEDD_COMPILE": "1"}, stdout=sys.stderr, check=True)


def main() -> int:
    parser = arguments(__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--tasks", type=int, default=200_000, help="of a run (default %(default)s)")
    parser.add_argument("--plain", action="store_true", help="only the schedd that is installed, as it is")
    parser.add_argument("--one", choices=ARRIVALS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        sys.stdout.write(json.dumps(measure(options.one, options.tasks)))
        return 0
    with TemporaryDirectory() as folder:
        places = {"compiled" if is_compiled() else "plain": ""}
        if not (options.plain or is_compiled()):
            compile_into(folder)
            places["compiled"] = folder
        rows, floors = [], []
        for arrivals in ARRIVALS:
            rounds = [
                {name: measure_apart(arrivals, options, place) for name, place in places.items()}
                for _ in range(options.runs)
            ]
            for name in places:
                runs = [each[name] for each in rounds]
                if any(run["is_compiled"] != (name == "compiled") for run in runs):
                    raise SystemExit("what was measured is not what was to be measured")
                rates = [options.tasks / run["taken_s"] for run in runs]
                engine_us = median([run["engine_s"] / options.tasks * 1e6 for run in runs])
                kept = median([run["kept"] for run in runs])
                rows.append([f"{arrivals}, {name}", median(rates), spread(rates), engine_us, kept])
                if name == "compiled" or len(places) == 1:
                    floors.append(Floor(f"{arrivals}, {name}: tasks a second", median(rates), RATE_FLOOR))
                if arrivals != "bag":
                    floors.append(
                        Floor(f"{arrivals}, {name}: bytes kept of a task", kept, KEPT_FLOOR_BYTES, at_most=True)
                    )
            if len(places) > 1:
                ratios = [each["plain"]["taken_s"] / each["compiled"]["taken_s"] for each in rounds]
                floors.append(Floor(f"{arrivals}: compiled to plain", median(ratios), GAIN_FLOOR))
    columns = ["load", "tasks/s", "lowest .. highest", "of that the engine, us a task", "bytes kept of a task"]
    return finish(options, "simulator", columns, rows, floors)


if __name__ == "__main__":
    sys.exit(main())
