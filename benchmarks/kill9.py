"""Kills the daemon with SIGKILL, again and again, under thousands of tasks that write down each time they run.

A client submits calls and commands, with keys, and submits again what was not acknowledged. When all have ended: what
is lost, what has two results, and what ran more than once though its worker lived.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections import Counter
from itertools import chain
from pathlib import Path

import cloudpickle
from common import Floor, Service, arguments, finish, median, wait_for
from msgspec import Struct, field

from schedd.client.aio import AsyncClient
from schedd.client.codec import value_of
from schedd.client.task import AsyncTask
from schedd.core.model import TaskId
from schedd.errors import ConnectionLost

WORKERS = 2
CPUS = 4
#: Every so many tasks are a command.
COMMAND_EVERY = 10
#: Submitted together; all or some of it may be acknowledged when the daemon dies.
CHUNK = 200
LATEST_S = 300.0
POLL_S = 0.002
CONFIG = '[log]\nlevel = "warning"\n'
SCRIPT = 'echo "$1" >> "$2/commands"; sleep 0.01'


def run_once(folder: str, number: int) -> int:
    """Write down that this task runs, and take some milliseconds."""
    with open(f"{folder}/{os.getpid()}", "a") as file:  # noqa: PTH123
        file.write(f"{number}\n")
    time.sleep(0.001 * (number % 17))
    return number * number


class Outcome(Struct):
    """What became of one run. `ids`: of each task by its number, as acknowledged."""

    ids: dict[int, TaskId] = field(default_factory=dict)
    lost: int = 0
    #: Ends in the history beyond one for each task, and values that are not what the task returned.
    double: int = 0
    wrong: int = 0
    #: Executions beyond one for each task.
    again: int = 0
    seconds: float = 0.0
    away_s: list[float] = field(default_factory=list)


class Run:
    """One daemon, its workers, and the folder in which tasks write down that they run."""

    def __init__(self, service: Service, folder: Path, tasks: int, kills: int) -> None:
        self._service = service
        self._folder = folder
        self._tasks = tasks
        self._kills = kills
        self.outcome = Outcome()

    async def run(self) -> Outcome:
        started = time.monotonic()
        async with asyncio.timeout(LATEST_S), asyncio.TaskGroup() as group:
            group.create_task(self._submit_all())
            group.create_task(self._kill_often())
        await self._judge()
        self.outcome.seconds = time.monotonic() - started
        return self.outcome

    def executed(self) -> Counter[int]:
        """How often each task was run."""
        return Counter(map(int, chain.from_iterable(path.read_text().split() for path in self._folder.iterdir())))

    async def _submit_all(self) -> None:
        for first in range(0, self._tasks, CHUNK):
            numbers = range(first, min(first + CHUNK, self._tasks))
            while missing := [number for number in numbers if number not in self.outcome.ids]:
                try:
                    async with AsyncClient(self._service.address) as client:
                        await asyncio.gather(*(self._submit(client, number) for number in missing))
                except ConnectionLost:
                    await asyncio.sleep(POLL_S)

    async def _submit(self, client: AsyncClient, number: int) -> None:
        task: AsyncTask
        if number % COMMAND_EVERY:
            task = await client.submit(run_once, str(self._folder), number, key=str(number))
        else:
            task = await client.submit(["sh", "-c", SCRIPT, "sh", str(number), str(self._folder)], key=str(number))
        self.outcome.ids[number] = task.id

    async def _kill_often(self) -> None:
        for kill in range(1, self._kills + 1):
            await asyncio.to_thread(self._wait_for, self._tasks * kill // (self._kills + 1))
            self.outcome.away_s.append(await asyncio.to_thread(self._service.kill_daemon))

    def _wait_for(self, executions: int) -> None:
        wait_for(lambda: sum(self.executed().values()) >= executions, f"{executions} have run", LATEST_S)

    async def _judge(self) -> None:
        outcome = self.outcome
        async with AsyncClient(self._service.address) as client:
            numbers = list(outcome.ids)
            ends = await client.wait([outcome.ids[number] for number in numbers], results=True, timeout=LATEST_S)
            history = await client.history()
        succeeded = {number: end for number, end in zip(numbers, ends, strict=True) if end.state == "succeeded"}
        outcome.lost = self._tasks - len(succeeded)
        outcome.wrong = sum(
            value_of(end) != (number * number if number % COMMAND_EVERY else None) for number, end in succeeded.items()
        )
        outcome.double = len(history) - len({view.id for view, _ in history})
        outcome.double += len(numbers) - len(set(outcome.ids.values()))
        executed = self.executed()
        outcome.lost += sum(number not in executed for number in succeeded)
        outcome.again = sum(executed.values()) - len(executed)


def main() -> int:
    parser = arguments(__doc__ or "", runs=1)
    parser.add_argument("--tasks", type=int, default=10_000, help="in a run (default %(default)s)")
    parser.add_argument("--kills", type=int, default=20, help="in a run (default %(default)s)")
    options = parser.parse_args()
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    outcomes: list[Outcome] = []
    for _ in range(options.runs):
        with Service(WORKERS, CPUS, CONFIG) as service, tempfile.TemporaryDirectory() as folder:
            outcomes.append(asyncio.run(Run(service, Path(folder), options.tasks, options.kills).run()))
    rows = [
        [number, options.tasks, len(o.away_s), o.lost, o.double, o.wrong, o.again, median(o.away_s), o.seconds]
        for number, o in enumerate(outcomes, 1)
    ]
    floors = [
        Floor("kills", sum(len(o.away_s) for o in outcomes), options.kills * options.runs),
        Floor("tasks lost", sum(o.lost for o in outcomes), 0, at_most=True),
        Floor("results twice", sum(o.double for o in outcomes), 0, at_most=True),
        Floor("results that are wrong", sum(o.wrong for o in outcomes), 0, at_most=True),
        Floor("needless executions", sum(o.again for o in outcomes), 0, at_most=True),
    ]
    columns = ["run", "tasks", "kills", "lost", "double", "wrong", "again", "s until it listens", "s"]
    return finish(options, "kill -9 of the daemon", columns, rows, floors)


if __name__ == "__main__":
    sys.exit(main())
