"""A policy that is chosen while tasks wait: how long it holds the loop until it has taken over all of them.

Queued tasks of 20 kinds and 4 sets of requirements, at 100 priorities, and workers that are all full. Each policy takes
over from each other. Timed are the turns from the choice to the last task that goes over, and the first placement pass.
"""

from __future__ import annotations

import gc
import random
import sys
import time

from common import Floor, arguments, finish, median

from schedd.core.engine import Engine
from schedd.core.events import Event, PolicyReplaced, SubmitTasks, Wakeup, WorkerJoined
from schedd.core.model import SECOND, Call, TaskEntry, TaskRequirements, TaskSpec, WorkerId, WorkerResources
from schedd.core.policies import POLICIES
from schedd.core.settings import EngineSettings

#: Of the loop's time, with 100,000 queued tasks, for all turns together and for the longest.
TOTAL_FLOOR_MS = 200.0
TURN_FLOOR_MS = 50.0
SUBMIT_TASKS = 10_000
START_NS = 1_700_000_000 * SECOND


def swap(first: str, second: str, queued: int, workers: int) -> tuple[float, float, int]:
    """Processor milliseconds of all turns together and of the longest, and how many there were."""
    engine = Engine(POLICIES[first](), EngineSettings(lease_ns=10**9 * SECOND), random.Random(0))
    dice, now = random.Random(1), START_NS
    has = WorkerResources(cpus=4, ram_gb=64)
    engine.handle([WorkerJoined(WorkerId(f"w{i}"), "a", has, []) for i in range(workers)], now)
    specs = [
        TaskSpec(payload=Call(path="benchmark:noop"), kind=f"kind {i}", requirements=TaskRequirements(cpus=1 + i % 4))
        for i in range(20)
    ]
    for _ in range(queued // SUBMIT_TASKS):
        entries = [TaskEntry(dice.randrange(20), priority=float(dice.randrange(100))) for _ in range(SUBMIT_TASKS)]
        engine.handle([SubmitTasks(1, specs, entries)], now)
    while engine.next_deadline() == now:
        engine.handle([Wakeup()], now)
    gc.collect()
    gc.disable()
    events: list[Event] = [PolicyReplaced(POLICIES[second]())]
    turns: list[float] = []
    while not turns or engine.is_taking_over:
        began = time.process_time_ns()
        engine.handle(events, now)
        turns.append((time.process_time_ns() - began) / 1e6)
        events = [Wakeup()]
    gc.enable()
    return sum(turns), max(turns), len(turns)


def main() -> int:
    parser = arguments(__doc__.splitlines()[0] if __doc__ else "", runs=3)
    parser.add_argument("--queued", type=int, default=100_000, metavar="N", help="(default %(default)s)")
    parser.add_argument("--workers", type=int, default=200, help="(default %(default)s)")
    options = parser.parse_args()
    rows, totals, longest = [], [], []
    for first in POLICIES:
        for second in POLICIES:
            runs = [swap(first, second, options.queued, options.workers) for _ in range(options.runs)]
            total, turn = median([run[0] for run in runs]), median([run[1] for run in runs])
            totals.append(total)
            longest.append(turn)
            rows.append([f"{first} -> {second}", total, turn, runs[0][2]])
    scale = options.queued / 100_000
    floors = [
        Floor("ms of all turns together, the worst pair", max(totals), TOTAL_FLOOR_MS * scale, at_most=True),
        Floor("ms of the longest turn", max(longest), TURN_FLOOR_MS, at_most=True),
    ]
    return finish(options, "swap", ["policies", "all ms", "longest ms", "turns"], rows, floors)


if __name__ == "__main__":
    sys.exit(main())
