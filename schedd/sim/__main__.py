"""`python -m schedd.sim --seed N` runs one seed; `--seeds A:B` a range of them, and says how to reproduce a failure."""

from __future__ import annotations

import argparse
import logging
import sys
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

from schedd.core.model import SECOND
from schedd.sim.cluster import Cluster, Result, run_seed
from schedd.sim.kernel import BEGINNING_NS
from schedd.sim.plan import make_plan

#: Seeds that one job takes at a time.
SEEDS_PER_JOB = 50


def main(arguments: list[str] | None = None) -> int:
    """Run seeds. Returns 0 where all went well, 1 where one failed."""
    parser = argparse.ArgumentParser(prog="python -m schedd.sim", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--seed", type=int, help="run this one")
    what.add_argument("--seeds", type=_range, metavar="A:B", help="run those from A up to B, without B")
    parser.add_argument("--jobs", type=int, default=1, help="processes that run them (default: 1)")
    parser.add_argument("--verbose", action="store_true", help="with --seed: tell all that happens")
    options = parser.parse_args(arguments)
    if options.seed is not None:
        return _one(options.seed, verbose=options.verbose)
    return _many(options.seeds, options.jobs)


def _range(text: str) -> range:
    first, _, last = text.partition(":")
    return range(int(first), int(last))


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _one(seed: int, *, verbose: bool) -> int:
    plan = make_plan(seed)
    _say(f"seed {seed}: {plan.describe()}")
    cluster = Cluster(plan)
    if verbose:
        cluster.kernel.listener = lambda text: _say(f"{(cluster.kernel.now_ns - BEGINNING_NS) / SECOND:11.6f} {text}")
    try:
        cluster.run()
    except Exception as error:
        traceback.print_exc(file=sys.stdout)
        _say(f"seed {seed} FAILED: {type(error).__name__}: {error}")
        return 1
    result = Result(plan, "", cluster)
    _say(
        f"seed {seed}: {result.tasks} tasks, {result.executions} executions, {result.daemon_starts} starts of the "
        f"daemon, {result.worker_starts} of workers, {result.steps} steps, trace {result.digest:08x}"
    )
    return 0


def run_seeds(seeds: list[int]) -> list[Result]:
    """Run seeds one after the other."""
    return [run_seed(seed) for seed in seeds]


def _results(seeds: range, jobs: int) -> Iterator[list[Result]]:
    parts = [list(seeds[i : i + SEEDS_PER_JOB]) for i in range(0, len(seeds), SEEDS_PER_JOB)]
    if jobs <= 1:
        yield from map(run_seeds, parts)
        return
    with ProcessPoolExecutor(jobs) as pool:
        yield from pool.map(run_seeds, parts)


def _many(seeds: range, jobs: int) -> int:
    done = failed = tasks = 0
    began = time.monotonic()
    for results in _results(seeds, jobs):
        for result in results:
            done += 1
            tasks += result.tasks
            if result.failure:
                failed += 1
                _say(result.failure_report)
        seconds = time.monotonic() - began
        sys.stderr.write(f"\r{done}/{len(seeds)} seeds, {tasks} tasks, {failed} failed, {done / seconds:.1f} seeds/s ")
        sys.stderr.flush()
    sys.stderr.write("\n")
    _say(f"{done} seeds, {tasks} tasks, {failed} failed, {time.monotonic() - began:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    logging.getLogger("schedd").setLevel(logging.CRITICAL)
    sys.exit(main())
