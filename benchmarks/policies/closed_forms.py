"""What queueing theory knows exactly, against the simulator: one central queue for many workers (M/M/c).

    python benchmarks/policies/closed_forms.py [DATA] [--tasks N] [--runs N] [--check]

Poisson arrivals, exponential runtimes, `fifo`. The mean time in system in units of the mean runtime is 1 +
C(c, c load) / (c - c load) with Erlang's C (Erlang, 1917); `DATA` has the printed values. A run begins empty and ends
empty, which makes it a little too good, the more so the closer the load is to 1: its first and last tasks are left out.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import Floor, arguments, finish

from schedd.config import parse_settings
from schedd.simulate.cluster import ClusterRow
from schedd.simulate.generate import Load, generate
from schedd.simulate.run import Simulator

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "theory" / "closed_forms.json"
WORKERS = (100,)
LOADS = (0.5, 0.8, 0.9, 0.95)
#: Share of the tasks that is left out at either end.
EDGE = 0.05
#: Measured within this of the formula.
WITHIN = 0.03


def time_in_system(workers: int, load: float, tasks: int, seed: int) -> float:
    """The mean, in units of the mean runtime."""
    # Long enough that nothing waits at a worker to hide the round trip.
    drawn = Load(tasks=tasks, load=load, mean_s=100.0)
    cluster = [ClusterRow(count=workers)]
    trace = generate(drawn, cluster, seed)
    run = Simulator(trace, cluster, parse_settings('policy.name = "fifo"'), seed).run()
    first_s, edge = trace.tasks[0].submit_s, int(EDGE * tasks)
    flows = (finish_s - task.submit_s + first_s for finish_s, task in zip(run.finish_s, trace.tasks, strict=True))
    return fmean(list(flows)[edge : tasks - edge]) / drawn.mean_s


def main() -> int:
    parser = arguments(__doc__.splitlines()[0], runs=1)
    parser.add_argument("data", nargs="?", type=Path, default=DATA, help="the printed values (default %(default)s)")
    parser.add_argument("--tasks", type=int, default=300_000, help="of a run (default %(default)s)")
    options = parser.parse_args()
    values = json.loads(options.data.read_text())["one_queue"]["values"]
    rows: list[list[Any]] = []
    floors = []
    for workers in WORKERS:
        for load in LOADS:
            printed = values[str(workers)][str(load)]
            found = [time_in_system(workers, load, options.tasks, seed) for seed in range(options.runs)]
            off = fmean(found) / printed - 1
            rows.append([f"{workers} workers", load, f"{printed:.4f}", f"{fmean(found):.4f}", f"{off:+.2%}"])
            if len(found) > 1:
                rows[-1][-1] += f" ± {stdev(found) / printed:.2%}"
            floors.append(Floor(f"M/M/{workers} at {load}, off by", abs(off), WITHIN, at_most=True))
    return finish(options, "M/M/c", ["", "load", "formula", "simulated", "off"], rows, floors)


if __name__ == "__main__":
    sys.exit(main())
