"""FGD (ATC 2023), allocation ratios on Alibaba's GPU cluster: BestFit, Random, and schedd's packing beside the best."""

from __future__ import annotations

import argparse
import math
import sys
from statistics import fmean
from typing import Any

from published import Cell, arguments, finish, load

from schedd.config import Settings
from schedd.simulate.cluster import read_cluster
from schedd.simulate.contest import fill_under
from schedd.simulate.trace import read_trace

#: Percent of the GPUs that were asked for in the end; the columns before are for information.
FINAL = "130"
#: Points of allocation ratio.
WITHIN = {"best_fit": 0.4, "random": 1.0}
PUBLISHED = {"best_fit": "05-BestFit", "random": "01-Random"}


def cells_of(options: argparse.Namespace) -> list[Cell]:
    folder = options.data / "gpu"
    cluster = read_cluster(folder / "openb_gpu_nodes.csv.gz")
    published: dict[str, Any] = load(folder / "openb_published.json")["allocation"]
    cells = []
    for pods, policies in published.items():
        trace = read_trace(folder / f"openb_pods_{pods}.csv.gz", "openb")
        best = max(policies, key=lambda name: float(policies[name][FINAL][0]))
        for name in (*PUBLISHED, "packing"):
            known = policies[PUBLISHED.get(name, best)]
            marks = known if options.columns else [FINAL]
            runs = [fill_under(name, trace, cluster, Settings(), float(FINAL), seed) for seed in range(options.seeds)]
            for mark in marks:
                ours = 100 * fmean(run.at(float(mark)) or 0.0 for run in runs)
                within = WITHIN.get(name, 0.0) if mark == FINAL else math.inf
                label = f"{pods}, {mark} %: {name}" + ("" if name in PUBLISHED else f", against {best}")
                cells.append(Cell(label, ours, known[mark][0], within, at_least=name not in PUBLISHED))
    return cells


def main() -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("--seeds", type=int, default=5, help="runs of each policy (default %(default)s)")
    parser.add_argument("--columns", action="store_true", help="also at 80 to 110 %% of the GPUs asked for")
    options = parser.parse_args()
    return finish(options, "openb, allocation ratio in percent", cells_of(options), 2)


if __name__ == "__main__":
    sys.exit(main())
