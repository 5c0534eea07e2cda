"""No-op Python calls a second, results back at the client: schedd against ProcessPoolExecutor and Dask.

Two workers everywhere. Every run starts its system anew, warms it up, and the systems take turns, so that a machine
that slows down slows all of them down.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import psutil
from common import Floor, Service, arguments, cpu_of, finish, median, spread, timed

from schedd.client.executor import SchedExecutor
from schedd.client.sync import Client

RATE_FLOOR = 10_000.0
POOL_RATIO_FLOOR = 2.0
DASK_RATIO_FLOOR = 20.0
#: Tasks before the clock starts: processes are there, code is loaded, runtimes are known.
WARM_UP = 500
#: Tasks that Dask gets at a time where it is tuned.
DASK_BATCH = 200

#: Tasks a second, and CPU microseconds a task by process.
Measured = tuple[float, dict[str, float]]


def noop(value: int) -> int:
    return value


def check(results: list[int], count: int) -> None:
    if results != list(range(count)):
        raise RuntimeError("the results are wrong")


def with_cpu(service: Service, count: int, run: Callable[[], list[int]]) -> Measured:
    before = service.cpu_seconds()
    with timed() as taken:
        results = run()
    after = service.cpu_seconds()
    check(results, count)
    return count / taken[0], {name: (after[name] - before[name]) * 1e6 / count for name in after}


def schedd_executor(count: int) -> Measured:
    with Service() as service, SchedExecutor(service.address) as executor:
        list(executor.map(noop, range(WARM_UP)))

        def run() -> list[int]:
            futures = [executor.submit(noop, value) for value in range(count)]
            return [future.result() for future in futures]

        return with_cpu(service, count, run)


def schedd_map(count: int) -> Measured:
    with Service() as service, Client(service.address) as client:
        list(client.map(noop, range(WARM_UP)))
        return with_cpu(service, count, lambda: list(client.map(noop, range(count))))


def pool(count: int) -> Measured:
    with ProcessPoolExecutor(2) as executor:
        list(executor.map(noop, range(WARM_UP)))
        me = psutil.Process()
        before, before_children = cpu_of([me]), cpu_of(me.children())
        with timed() as taken:
            futures = [executor.submit(noop, value) for value in range(count)]
            results = [future.result() for future in futures]
        check(results, count)
        client, children = cpu_of([me]) - before, cpu_of(me.children()) - before_children
        return count / taken[0], {"client": client * 1e6 / count, "children": children * 1e6 / count}


def dask(count: int, *, tuned: bool = False) -> Measured:
    import dask as dask_package
    from distributed import Client as DaskClient
    from distributed import LocalCluster

    # Its workers complain when they are stopped.
    settings: dict[str, Any] = {"logging.distributed": "critical"}
    if tuned:
        settings |= {"distributed.scheduler.worker-saturation": "inf", "distributed.admin.event-loop": "uvloop"}
    start: Any = LocalCluster  # without types
    connect: Any = DaskClient
    with (
        dask_package.config.set(settings),
        start(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        connect(cluster) as client,
    ):
        batch = DASK_BATCH if tuned else None
        client.gather(client.map(noop, range(-100, 0), pure=False, batch_size=batch))
        me = psutil.Process()
        before, before_children = cpu_of([me]), cpu_of(me.children(recursive=True))
        with timed() as taken:
            results = client.gather(client.map(noop, range(count), pure=False, batch_size=batch))
        check(list(results), count)
        both, children = cpu_of([me]) - before, cpu_of(me.children(recursive=True)) - before_children
        # LocalCluster keeps its scheduler in the process of the client.
        return count / taken[0], {"client": both * 1e6 / count, "children": children * 1e6 / count}


def main() -> int:
    parser = arguments(__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--tasks", type=int, default=20_000, help="for schedd and the pool (default %(default)s)")
    parser.add_argument("--dask-tasks", type=int, default=2_000, help="(default %(default)s)")
    parser.add_argument("--no-dask", action="store_true", help="leave Dask out, and its floor")
    parser.add_argument("--dask-tuned", action="store_true", help="also Dask with uvloop, saturation inf, batches")
    options = parser.parse_args()

    systems: dict[str, Callable[[], Measured]] = {
        "schedd SchedExecutor.submit": lambda: schedd_executor(options.tasks),
        "schedd Client.map": lambda: schedd_map(options.tasks),
        "ProcessPoolExecutor.submit": lambda: pool(options.tasks),
    }
    if not options.no_dask:
        systems["Dask Client.map"] = lambda: dask(options.dask_tasks)
    if options.dask_tuned:
        systems["Dask Client.map, tuned"] = lambda: dask(options.dask_tasks, tuned=True)

    measured: dict[str, list[Measured]] = {name: [] for name in systems}
    for _ in range(options.runs):
        for name, run in systems.items():
            measured[name].append(run())

    rates = {name: median([rate for rate, _ in runs]) for name, runs in measured.items()}
    parts = ("daemon", "client", "workers", "children")
    rows = []
    for name, runs in measured.items():
        cpu = {part: median([us.get(part, 0.0) for _, us in runs]) if part in runs[0][1] else None for part in parts}
        total = sum(value for value in cpu.values() if value is not None)
        rows.append([name, rates[name], spread([rate for rate, _ in runs]), *cpu.values(), total])

    def ratio(name: str, peer: str) -> float:
        """The median of the ratios of each round: what ran close together is compared."""
        return median([ours[0] / theirs[0] for ours, theirs in zip(measured[name], measured[peer], strict=True)])

    slower = min(rates["schedd SchedExecutor.submit"], rates["schedd Client.map"])
    to_pool = ratio("schedd SchedExecutor.submit", "ProcessPoolExecutor.submit")
    floors = [
        Floor("tasks a second, the slower of both schedd rows", slower, RATE_FLOOR),
        Floor("SchedExecutor.submit : ProcessPoolExecutor.submit", to_pool, POOL_RATIO_FLOOR),
    ]
    if not options.no_dask:
        to_dask = ratio("schedd Client.map", "Dask Client.map")
        floors.append(Floor("schedd Client.map : Dask Client.map", to_dask, DASK_RATIO_FLOOR))
    columns = ["system", "tasks/s", "lowest .. highest", *(f"{part}, CPU us" for part in parts), "all, CPU us"]
    return finish(options, "throughput", columns, rows, floors)


if __name__ == "__main__":
    sys.exit(main())
