"""adaptive with `objective = "mean_jct"` against the exact optimum of the mean completion time.

Hydra (IEEE Transactions on Computers, 2023) compares itself with AlloX, which matches jobs with places on GPUs: all
jobs are there at 0, each takes one of 15 GPUs of each of three models, how long it takes on each is known, and nothing
is stopped. Then the cheapest matching is the optimum. The file has it for the first 10, 20, .. 400 jobs of a trace.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from math import inf
from statistics import fmean

from published import Cell, arguments, finish, load

from schedd.config import parse_settings
from schedd.simulate.cluster import ClusterRow
from schedd.simulate.contest import Rules, run_under
from schedd.simulate.trace import Trace, read_trace

#: How far the mean completion time may be above the optimum, as a part of it.
WITHIN = 0.02
OPTIMUM, GREEDY = "allox_optimal_mean_jct", "greedy_shortest_pair"


def mean_jct(trace: Trace, cluster: Sequence[ClusterRow]) -> float:
    """Mean completion time of jobs that are all there at 0, whose runtimes are known (s)."""
    settings = parse_settings('policy.name = "adaptive"\npolicy.adaptive.objective = "mean_jct"')
    return fmean(run_under("adaptive", trace, cluster, settings, rules=Rules(known=True)).finish_s)


def main() -> int:
    options = arguments("schedd against the published optimum of Hydra's jobs").parse_args()
    published = load(options.data / "hetero" / "hydra_light_published.json")
    optima = {int(n): row["average_jct_seconds"] for n, row in published["results"][OPTIMUM].items()}
    tasks = read_trace(options.data / "hetero" / "hydra_light.csv.gz").tasks
    cluster = [ClusterRow(count=count, num_gpus=1, gpu_model=model) for model, count in published["gpus"].items()]
    cells, ratios = [], []
    for n, optimum in optima.items():
        found = mean_jct(Trace("hydra", tasks[:n]), cluster)
        cells.append(Cell(f"{n} jobs, mean completion time, s", found, optimum, WITHIN * optimum))
        ratios.append(found / optimum)
    greedy = [row["average_jct_seconds"] / optima[int(n)] for n, row in published["results"][GREEDY].items()]
    cells += [
        Cell("over the optimum, mean", fmean(ratios), 1.0, WITHIN),
        Cell("over the optimum, the worst", max(ratios), 1.0, WITHIN),
        Cell("the same of the published greedy rule, mean", fmean(ratios), fmean(greedy), inf),
    ]
    return finish(options, "hydra", cells, digits=3)


if __name__ == "__main__":
    sys.exit(main())
