"""What the journal costs: no-op calls a second, acknowledged submits and results one after the other, by durability."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable

from common import Floor, Service, arguments, finish, median, percentile, spread, timed

from schedd.address import parse_address
from schedd.client.connection import open_connection
from schedd.client.executor import SchedExecutor
from schedd.client.sync import Client
from schedd.core.model import Call
from schedd.wire import messages as m

RATIO_FLOOR = 0.7
RATE_FLOOR = 8000.0
SUBMIT_P50_FLOOR_MS = 3.0

DURABILITIES = ("full", "normal", "off")
WARM_UP = 300


def noop(value: int) -> int:
    return value


def config(durability: str) -> str:
    return f'[log]\nlevel = "warning"\n[journal]\ndurability = "{durability}"\n'


def rate(durability: str, count: int) -> float:
    """No-op calls a second through two workers, results back."""
    with Service(config=config(durability)) as service, Client(service.address) as client:
        list(client.map(noop, range(WARM_UP)))
        with timed() as taken:
            results = list(client.map(noop, range(count)))
    if results != list(range(count)):
        raise RuntimeError("the results are wrong")
    return count / taken[0]


def latencies(durability: str, count: int) -> tuple[list[float], list[float]]:
    """Milliseconds of each acknowledged submit, and from each submit to its result, one after the other."""
    with Service(config=config(durability)) as service:
        submits = asyncio.run(_submits(service.address, count))
        with SchedExecutor(service.address) as pool:
            results = [_once(lambda: pool.submit(noop, 1).result()) for _ in range(WARM_UP + count)]
    return submits[WARM_UP:], results[WARM_UP:]


def _once(call: Callable[[], object]) -> float:
    with timed() as taken:
        call()
    return taken[0] * 1e3


async def _submits(address: str, count: int) -> list[float]:
    connection, _ = await open_connection(parse_address(address), "benchmark")
    spec = m.TaskSpec(Call(path="nothing:nothing"), hold=True)
    taken = []
    for _ in range(WARM_UP + count):
        started = time.perf_counter()
        await connection.request(m.Submitted, m.Submit, [spec], [m.TaskEntry(0)], False, False)
        taken.append((time.perf_counter() - started) * 1e3)
    connection.close()
    return taken


def main() -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("--tasks", type=int, default=20_000, help="of a run, for the rate (default %(default)s)")
    parser.add_argument("--submits", type=int, default=1000, help="one after the other (default %(default)s)")
    options = parser.parse_args()
    rates: dict[str, list[float]] = {name: [] for name in DURABILITIES}
    submits: dict[str, list[list[float]]] = {name: [] for name in DURABILITIES}
    results: dict[str, list[list[float]]] = {name: [] for name in DURABILITIES}
    for _ in range(options.runs):
        for name in DURABILITIES:
            rates[name].append(rate(name, options.tasks))
            taken = latencies(name, options.submits)
            submits[name].append(taken[0])
            results[name].append(taken[1])

    def at(runs: list[list[float]], percent: float) -> float:
        return median([percentile(run, percent) for run in runs])

    rows = []
    for name in DURABILITIES:
        times = [at(runs[name], percent) for runs in (submits, results) for percent in (50, 99)]
        rows.append([name, median(rates[name]), spread(rates[name]), *times])
    ratio = median([full / off for full, off in zip(rates["full"], rates["off"], strict=True)])
    floors = [
        Floor("tasks a second, full : off", ratio, RATIO_FLOOR),
        Floor("tasks a second, full", median(rates["full"]), RATE_FLOOR),
        Floor("p50 ms of an acknowledged submit, full", at(submits["full"], 50), SUBMIT_P50_FLOOR_MS, at_most=True),
    ]
    times_of = [f"{what} {percent} ms" for what in ("submit", "result") for percent in ("p50", "p99")]
    columns = ["durability", "tasks/s", "lowest .. highest", *times_of]
    return finish(options, "durability", columns, rows, floors)


if __name__ == "__main__":
    sys.exit(main())
