"""What stealing makes good: a bad placement against the best that one queue for all could do, on real tasks.

`lcdb`: the 61,496 training runs of the Learning Curve Database as one bag on 64 workers of one CPU, all dealt out at
the start: in turn, so that each worker has every 64th, and in contiguous blocks, where all runs of a long learner lie
with one worker. `philly`: the jobs of one virtual cluster of
Microsoft's Philly that ask for one GPU, sorted by submission and length, on 12 workers, each at a random one. One queue
is `fifo`: a task binds when a worker is free. The values without stealing say what there is to make good.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console

from schedd.config import parse_settings
from schedd.core.model import TaskRequirements
from schedd.simulate.bound import lower_bound_s
from schedd.simulate.cluster import ClusterRow
from schedd.simulate.metrics import Figures, figures_of
from schedd.simulate.run import Simulator
from schedd.simulate.trace import Trace, TraceTask, read_trace

DATA = Path(__file__).parents[3] / "shared" / "data"
LCDB_WORKERS = 64
PHILLY_WORKERS = 12
#: Floors: the makespan, dealt either way, and the mean response of the random placement, to those of one queue.
LCDB_MOST = 1.03
PHILLY_MOST = 1.1

ONE_QUEUE = 'policy.name = "fifo"\nprefetch.depth_max = 0\n'
STEALING = 'policy.name = "work_stealing"\nprefetch.depth_max = 0\npolicy.work_stealing.backlog_per_slot = 100_000\n'
#: What backlogs that bind early cost without stealing: tasks that may wait at a slot, and whether they can be stolen.
BALANCED = {"load_balancing, 1": (1, False), "load_balancing, 32": (32, False), "the same, stealing": (32, True)}
NEVER = "policy.work_stealing.steal_threshold = 1_000_000\n"


def lcdb(data: Path) -> tuple[Trace, int, str]:
    trace = read_trace(data / "nas" / "lcdb_accuracy.csv.gz")
    block = -(-len(trace.tasks) // LCDB_WORKERS)
    return trace, LCDB_WORKERS, f"policy.work_stealing.block = {block}\n"


def philly(data: Path, cluster: str = "11cb48") -> tuple[Trace, int, str]:
    tasks = [
        TraceTask(task.submit_s, task.kind, task.runtime_s, TaskRequirements())
        for task in read_trace(data / "gpu" / "philly_jobs.csv.gz").tasks
        if task.kind == cluster and task.requirements.min_gpus == 1
    ]
    tasks.sort(key=lambda task: (task.submit_s, task.runtime_s))
    return Trace("philly", tasks), PHILLY_WORKERS, "policy.work_stealing.choices = 1\n"


def balanced(depth: int, stealing: bool) -> str:
    text = f'policy.name = "load_balancing"\nprefetch.depth_max = 0\npolicy.load_balancing.backlog_per_slot = {depth}\n'
    return text + f"stealing.enabled = {str(stealing).lower()}\n"


def figures(trace: Trace, workers: int, text: str, seed: int) -> Figures:
    return figures_of(Simulator(trace, [ClusterRow(count=workers)], parse_settings(text), seed).run())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path, default=DATA, help="folder of the data (default %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="of the dice of the random placement")
    parser.add_argument("--only", choices=["lcdb", "philly"])
    parser.add_argument("--json", metavar="FILE", help="write all figures to this file, - for stdout")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a floor is missed")
    options = parser.parse_args()
    console = Console(stderr=options.json == "-", highlight=False)
    told: dict[str, Any] = {}
    if options.only != "philly":
        trace, workers, placement = lcdb(options.data)
        bound_s = lower_bound_s(trace, [ClusterRow(count=workers)])
        assert bound_s is not None
        runs = {
            "one queue": figures(trace, workers, ONE_QUEUE, 0),
            "dealt in turn": figures(trace, workers, STEALING + NEVER, 0),
            "dealt in turn, stealing": figures(trace, workers, STEALING, 0),
            "in blocks": figures(trace, workers, STEALING + placement + NEVER, 0),
            "in blocks, stealing": figures(trace, workers, STEALING + placement, 0),
        }
        console.print(f"lcdb: {len(trace.tasks):,} tasks, {workers} workers: makespan / bound, steals")
        for name, run in runs.items():
            console.print(f"  {name:30} {run.makespan_s / bound_s:8.4f} {run.steals:8,}")
        stolen_s = [run.makespan_s for name, run in runs.items() if name.endswith("stealing")]
        ratio = max(stolen_s) / runs["one queue"].makespan_s
        told["lcdb"] = {name: run.makespan_s / bound_s for name, run in runs.items()} | {"ratio": ratio}
        console.print(f"  {'the worse of both, to one queue':30} {ratio:8.4f}  at most {LCDB_MOST}")
    if options.only != "lcdb":
        trace, workers, placement = philly(options.data)
        one = figures(trace, workers, ONE_QUEUE, 0).mean_flow_time_s
        seeds = range(options.seeds)
        bare = fmean(figures(trace, workers, STEALING + placement + NEVER, seed).mean_flow_time_s for seed in seeds)
        stolen = [figures(trace, workers, STEALING + placement, seed) for seed in seeds]
        mean = fmean(run.mean_flow_time_s for run in stolen)
        worst = max(run.mean_flow_time_s for run in stolen) / one
        console.print(f"philly: {len(trace.tasks):,} tasks, {workers} workers: mean response, s")
        console.print(f"  {'one queue':30} {one:12,.0f}\n  {'random':30} {bare:12,.0f}")
        console.print(f"  {'random, stealing':30} {mean:12,.0f}  {fmean(run.steals for run in stolen):,.0f} steals")
        console.print(f"  {'to one queue, the worst seed':30} {worst:12.4f}  at most {PHILLY_MOST}")
        others = {name: figures(trace, workers, balanced(*how), 0).mean_flow_time_s for name, how in BALANCED.items()}
        for name, value in others.items():
            console.print(f"  {name:30} {value:12,.0f}")
        told["philly"] = {**others, "one queue": one, "random": bare, "random, stealing": mean, "ratio": worst}
    if options.json:
        text = json.dumps(told, indent=2)
        sys.stdout.write(text + "\n") if options.json == "-" else Path(options.json).write_text(text)
    floors = {"lcdb": LCDB_MOST, "philly": PHILLY_MOST}
    return int(options.check and any(told[name]["ratio"] > floors[name] for name in told))


if __name__ == "__main__":
    raise SystemExit(main())
