"""RLScheduler (SC 2020), tables of Lublin-1: five orders of the queue, with backfilling and without, to the digit."""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import fmean
from typing import Any

from published import Cell, arguments, finish, load

from schedd.config import Settings
from schedd.simulate.cluster import ClusterRow
from schedd.simulate.contest import Rules, run_under
from schedd.simulate.metrics import TAU_S
from schedd.simulate.record import Run
from schedd.simulate.trace import part_of, read_trace

#: A printed digit is right up to half of its unit.
SLOWDOWN_WITHIN, UTILISATION_WITHIN = 0.005, 0.0005


def bounded_slowdown(run: Run) -> float:
    """The mean over the tasks of a run."""
    first_s = run.trace.tasks[0].submit_s
    flows = [finish - (task.submit_s - first_s) for finish, task in zip(run.finish_s, run.trace.tasks, strict=True)]
    runtimes = [max(task.runtime_s, TAU_S) for task in run.trace.tasks]
    return fmean(max(1.0, flow / runtime) for flow, runtime in zip(flows, runtimes, strict=True))


def utilisation(run: Run, processors: int) -> float:
    """All work over all processors, up to the last start (not the last finish)."""
    work = sum(task.runtime_s * task.requirements.cpus for task in run.trace.tasks)
    return work / (processors * max(run.start_s))


def cells_of(data: Path) -> list[Cell]:
    published: dict[str, Any] = load(data / "hpc" / "lublin_1_published.json")
    trace = read_trace(data / "hpc" / published["trace"])
    cluster = [ClusterRow(cpus=published["processors"])]
    length = published["sequence_length"]
    sequences = [part_of(trace, slice(row, row + length)) for row in published["sequence_starts_0based_row_index"]]
    cells = []
    for way, slowdowns in published["avg_bounded_slowdown"].items():
        rules = Rules(backfill=way == "backfill", one_by_one=True)
        for name, slowdown in slowdowns.items():
            runs = [run_under(name.lower(), part, cluster, Settings(), rules=rules) for part in sequences]
            ours = fmean(map(bounded_slowdown, runs))
            cells.append(Cell(f"{name} {way}: bounded slowdown", ours, slowdown, SLOWDOWN_WITHIN))
            ours = fmean(utilisation(run, published["processors"]) for run in runs)
            known = published["utilization"][way][name]
            cells.append(Cell(f"{name} {way}: utilisation", ours, known, UTILISATION_WITHIN))
    return cells


def main() -> int:
    options = arguments(__doc__ or "").parse_args()
    return finish(options, "Lublin-1, RLScheduler", cells_of(options.data), 4)


if __name__ == "__main__":
    sys.exit(main())
