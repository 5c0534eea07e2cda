"""Searches that submit by result, over recorded learning curves: when they end, by policy.

The set-up: twelve searches, four over each of three LCBench data sets (configurations 0 to 242, 243 to 485, and so on),
all there at 0, on 24 workers with one slot. eta = 3 and rungs at epochs 1, 3, 9, 27 and 52; training goes on from
checkpoints. So a search by successive halving has 243 + 81 + 27 + 9 + 3 = 363 evaluations.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import Floor, arguments, finish

from schedd.config import parse_settings
from schedd.core.model import TaskRequirements
from schedd.simulate.cluster import ClusterRow
from schedd.simulate.curves import Curves, Point, read_curves
from schedd.simulate.metrics import figures_of
from schedd.simulate.reactive import Plan, Reactive
from schedd.simulate.run import Simulator

DATA = Path(__file__).parents[3] / "shared" / "data" / "nas"
WORKERS = 24
POLICIES = ("fifo", "priority")
#: Mean end of the searches of successive halving, published for first come, first served; and what others may need.
FIFO_S, PRIORITY_S, ASHA_S = 4485.2, 2805.0, 3670.0
#: ASHA, section 3: nine configurations, levels 1, 3 and 9 = R, nine workers, no checkpoints.
TOY_IN_R = 13 / 9


def simulated(data: Sequence[Curves], plan: Plan, workers: int, policy: str) -> dict[str, Any]:
    """The figures of a run that matter here."""
    workload = Reactive(data, plan, TaskRequirements())
    run = Simulator(workload, [ClusterRow(count=workers)], parse_settings(f'policy.name = "{policy}"')).run()
    figures = figures_of(run)
    work_s = sum(task.runtime_s for task in workload.trace.tasks)
    return {"evaluations": figures.tasks, "work_s": work_s, "makespan_s": figures.makespan_s, **workload.figures()}


def toy() -> float:
    """Time until the first configuration is trained to R, in R; a level of 1 takes 100 s."""
    curves = [{float(n): Point(100.0 * n, trial) for n in range(1, 10)} for trial in range(9)]
    found = simulated([Curves("toy", True, curves)], Plan("asha", resume=False), 9, "priority")
    return float(found["mean_search_full_s"]) / 900


def main() -> int:
    parser = arguments(__doc__.splitlines()[0] if __doc__ else "", runs=1)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of lcbench_task*.csv.gz (default %(default)s)")
    options = parser.parse_args()
    data = [curves for path in sorted(options.data.glob("lcbench_task*.csv.gz")) for curves in read_curves(path)]
    rows: list[list[Any]] = []
    ends: dict[tuple[str, str], float] = {}
    work: dict[tuple[str, str], float] = {}
    for rule in ("halving", "asha"):
        for policy in POLICIES:
            found = simulated(data, Plan(rule), WORKERS, policy)
            end_s, full_s = found["mean_search_end_s"], found["mean_search_full_s"]
            cells = (found["work_s"], found["makespan_s"], end_s, full_s)
            rows.append([f"{rule}, {policy}", found["evaluations"], *(f"{cell:,.1f}" for cell in cells)])
            ends[rule, policy], work[rule, policy] = end_s, found["work_s"]
    fifo_s = ends["halving", "fifo"]
    floors = [
        Floor("halving, fifo: off the published mean end, s", abs(fifo_s - FIFO_S), 0.05, at_most=True),
        Floor("halving, priority: mean end, s", ends["halving", "priority"], PRIORITY_S, at_most=True),
        Floor(
            "halving, priority to fifo: work", work["halving", "priority"] / work["halving", "fifo"], 1.0, at_most=True
        ),
        Floor("asha, priority: mean end, s", ends["asha", "priority"], ASHA_S, at_most=True),
        Floor("asha, the toy: off 13/9 R", abs(toy() - TOY_IN_R), 1e-9, at_most=True),
    ]
    columns = ["searches, policy", "evaluations", "work s", "makespan s", "mean end s", "mean first fully trained s"]
    return finish(options, "multi-fidelity searches", columns, rows, floors)


if __name__ == "__main__":
    sys.exit(main())
