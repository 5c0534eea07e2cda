"""Commands a second: `true` through two workers, against a bare loop over posix_spawn that keeps two running."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from typing import Any

from common import Floor, Service, arguments, finish, median, spread, timed

from schedd.client.aio import AsyncClient
from schedd.core.model import Command, TaskEntry, TaskSpec
from schedd.wire.messages import TaskDone

RATIO_FLOOR = 0.6
PARALLEL = 2
WARM_UP = 50
TRUE = shutil.which("true") or "/bin/true"


def bare(count: int) -> float:
    """What the machine can do: start and reap, output to /dev/null."""
    null = os.open(os.devnull, os.O_RDWR)
    actions = [(os.POSIX_SPAWN_DUP2, null, fd) for fd in (0, 1, 2)]

    def loop(left: int) -> None:
        running = 0
        while left or running:
            while left and running < PARALLEL:
                os.posix_spawn(TRUE, [TRUE], os.environ, file_actions=actions)
                left, running = left - 1, running + 1
            os.wait()
            running -= 1

    try:
        loop(WARM_UP)
        with timed() as taken:
            loop(count)
    finally:
        os.close(null)
    return count / taken[0]


def through_schedd(count: int) -> tuple[float, dict[str, float]]:
    async def run(service: Service) -> tuple[float, dict[str, float]]:
        async with AsyncClient(service.address) as client:

            async def submit_and_wait(number: int) -> None:
                done: list[TaskDone] = []
                all_done = asyncio.Event()

                def on_done(end: TaskDone) -> None:
                    done.append(end)
                    if len(done) == number:
                        all_done.set()

                spec = TaskSpec(Command([TRUE]), kind="true")
                await client.submit_many([spec], [TaskEntry(0)] * number, watch=True, on_done=on_done)
                await all_done.wait()
                if any(end.state != "succeeded" for end in done):
                    raise RuntimeError("a command failed")

            await submit_and_wait(WARM_UP)
            before = service.cpu_seconds()
            with timed() as taken:
                await submit_and_wait(count)
            after = service.cpu_seconds()
        return count / taken[0], {name: (after[name] - before[name]) * 1e6 / count for name in after}

    with Service(PARALLEL, 1) as service:
        return asyncio.run(run(service))


def main() -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("--commands", type=int, default=10_000, help="in a run (default %(default)s)")
    options = parser.parse_args()
    ours, limit = [], []
    cpu: dict[str, list[float]] = {}
    for _ in range(options.runs):
        limit.append(bare(options.commands))
        rate, spent = through_schedd(options.commands)
        ours.append(rate)
        for name, value in spent.items():
            cpu.setdefault(name, []).append(value)
    parts = list(cpu)
    ratio = median([a / b for a, b in zip(ours, limit, strict=True)])
    rows: list[list[Any]] = [
        ["schedd, 2 workers", median(ours), spread(ours), *(median(cpu[part]) for part in parts)],
        ["posix_spawn, 2 at a time", median(limit), spread(limit), *(None for _ in parts)],
    ]
    floors = [Floor("commands through schedd : bare posix_spawn, of each run", ratio, RATIO_FLOOR)]
    columns = ["system", "commands/s", "lowest .. highest", *(f"{part}, CPU us" for part in parts)]
    return finish(options, "commands", columns, rows, floors)


if __name__ == "__main__":
    sys.exit(main())
