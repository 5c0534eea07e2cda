"""One task at a time: how long from the submit to its result, with the journal and without.

The floors are those of the way itself: wire, engine, worker. What a sync costs is the disk's to say, see durability.py.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

from common import Floor, Service, arguments, finish, median, percentile

from schedd.client.aio import AsyncClient
from schedd.client.executor import SchedExecutor
from schedd.client.sync import Client

P50_FLOOR_MS = 1.0
P99_FLOOR_MS = 4.0
WARM_UP = 100

#: Milliseconds of each task of one run.
Run = list[float]


def noop() -> None:
    return None


def repeat(once: Callable[[], object], count: int) -> Run:
    for _ in range(WARM_UP):
        once()
    taken = []
    for _ in range(count):
        started = time.perf_counter_ns()
        once()
        taken.append((time.perf_counter_ns() - started) / 1e6)
    return taken


def executor(count: int) -> Run:
    with Service() as service, SchedExecutor(service.address) as pool:
        return repeat(lambda: pool.submit(noop).result(), count)


def without_journal(count: int) -> Run:
    config = '[log]\nlevel = "warning"\n[journal]\nenabled = false\n'
    with Service(config=config) as service, SchedExecutor(service.address) as pool:
        return repeat(lambda: pool.submit(noop).result(), count)


def client(count: int) -> Run:
    with Service() as service, Client(service.address) as connection:
        return repeat(lambda: connection.submit(noop).result(), count)


def async_client(count: int) -> Run:
    async def run(address: str) -> Run:
        taken = []
        async with AsyncClient(address) as connection:
            for number in range(WARM_UP + count):
                started = time.perf_counter_ns()
                await (await connection.submit(noop))
                if number >= WARM_UP:
                    taken.append((time.perf_counter_ns() - started) / 1e6)
        return taken

    with Service() as service:
        return asyncio.run(run(service.address))


def process_pool(count: int) -> Run:
    with ProcessPoolExecutor(2) as pool:
        return repeat(lambda: pool.submit(noop).result(), count)


def main() -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("--tasks", type=int, default=1000, help="one after the other in a run (default %(default)s)")
    options = parser.parse_args()
    systems = {
        "schedd SchedExecutor, no journal": without_journal,
        "schedd SchedExecutor": executor,
        "schedd Client": client,
        "schedd AsyncClient": async_client,
        "ProcessPoolExecutor": process_pool,
    }
    runs: dict[str, list[Run]] = {name: [] for name in systems}
    for _ in range(options.runs):
        for name, run in systems.items():
            runs[name].append(run(options.tasks))
    p50 = {name: median([percentile(run, 50) for run in many]) for name, many in runs.items()}
    p99 = {name: median([percentile(run, 99) for run in many]) for name, many in runs.items()}
    base = p50["ProcessPoolExecutor"]
    rows = [[name, p50[name], p99[name], max(max(run) for run in runs[name]), p50[name] / base] for name in systems]
    floors = [
        Floor("p50 ms without a journal", p50["schedd SchedExecutor, no journal"], P50_FLOOR_MS, at_most=True),
        Floor("p99 ms without a journal", p99["schedd SchedExecutor, no journal"], P99_FLOOR_MS, at_most=True),
    ]
    return finish(options, "latency", ["system", "p50 ms", "p99 ms", "worst ms", "p50 : pool"], rows, floors)


if __name__ == "__main__":
    sys.exit(main())
