"""Muri (SIGCOMM 2022), figure 9: preemptive SRTF and SRSF over gangs of nodes, on four traces of Philly's clusters."""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import fmean
from typing import Any

from published import Cell, arguments, finish, load

from schedd.simulate.cluster import ClusterRow
from schedd.simulate.preemptive import read_restart_costs, run_preemptive
from schedd.simulate.trace import read_trace

#: Shares of the published value.
JCT_WITHIN, MAKESPAN_WITHIN = 0.0001, 0.005


def cells_of(data: Path) -> list[Cell]:
    folder = data / "gpu"
    published: dict[str, Any] = load(folder / "muri_published.json")
    costs = read_restart_costs(folder / "muri_published.json")
    nodes, gpus = (int(word) for word in published["cluster"].split() if word.isdigit())
    cluster = [ClusterRow(count=nodes, num_gpus=gpus)]
    cells = []
    for name, policies in published["published"].items():
        trace = read_trace(folder / f"muri_{name}.csv.gz")
        for policy, known in policies.items():
            run = run_preemptive(policy.lower(), trace, cluster, costs)
            first_s = trace.tasks[0].submit_s
            submits = [task.submit_s - first_s for task in trace.tasks]
            flows = sorted(finish - submit for finish, submit in zip(run.finish_s, submits, strict=True))
            ours = {
                "avg_jct_s": (fmean(flows), JCT_WITHIN),
                "makespan_s": (max(run.finish_s), MAKESPAN_WITHIN),
                "p99_jct_s": (flows[int(0.99 * len(flows))], MAKESPAN_WITHIN),
            }
            for key, (value, within) in ours.items():
                cells.append(Cell(f"{name} {policy}: {key}", value, known[key], within * known[key]))
    return cells


def main() -> int:
    options = arguments(__doc__ or "").parse_args()
    return finish(options, "Muri, 64 GPUs", cells_of(options.data), 3)


if __name__ == "__main__":
    sys.exit(main())
