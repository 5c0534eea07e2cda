"""The search itself: every rung of every configuration is submitted at once; results decide what may go on.

Rung n + 1 of a configuration comes after rung n and is held. When rung n is among the best, the next one gets a
priority above everything that waits, and is released: the promising ones overtake the queue.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct, field

from schedd.core.model import TaskId
from schedd.demo.asha import Asha, sample_config

if TYPE_CHECKING:
    from schedd.client.aio import AsyncClient
    from schedd.client.task import AsyncTask
    from schedd.demo.cluster import Cluster
    from schedd.wire.messages import TaskDone

#: Epochs that a configuration has seen at the end of each rung.
RUNGS = (16, 48, 144)
ETA = 3
JOB = "demo"
TRAIN = "schedd.demo.training:train_rung"
#: So long without a result, and the processes of the cluster are looked at.
CHECK_S = 1.0
#: Below the first rung (0), should somebody release it by hand.
NOT_PROMOTED = -1.0


class Trial(Struct):
    """A configuration and how far it came. `accuracy` is that of its last rung, NaN before the first."""

    number: int
    config: dict[str, Any]
    epochs: int = 0
    accuracy: float = math.nan
    error: str = ""
    tasks: list[AsyncTask] = field(default_factory=list)


class Worker(Struct):
    """What a worker did."""

    tasks: int = 0
    busy_s: float = 0.0


class Search(Struct):
    """The state of the search. `open`: rungs that were let go and have not ended."""

    trials: list[Trial]
    asha: Asha
    workers: dict[str, Worker] = field(default_factory=dict)
    open: int = 0
    finished: int = 0
    promoted: int = 0
    failed: int = 0
    cancelled: int = 0
    seconds: float = 0.0

    def ranking(self) -> list[Trial]:
        """List the trials that have a result, the most accurate first."""
        known = [trial for trial in self.trials if not math.isnan(trial.accuracy)]
        return sorted(known, key=lambda trial: (-trial.accuracy, trial.number))


def new_search(configs: int, seed: int) -> Search:
    """Draw the configurations; the same seed gives the same ones."""
    rng = random.Random(seed)
    return Search([Trial(number, sample_config(rng)) for number in range(configs)], Asha(len(RUNGS), ETA))


class Ended(Struct, frozen=True):
    """The end of one rung of one trial."""

    trial: Trial
    rung: int
    done: TaskDone


async def run_search(
    client: AsyncClient, search: Search, cluster: Cluster, seed: int, on_change: Callable[[Search], None]
) -> None:
    """Run the search to its end. `on_change` is called after each result.

    Raises ConnectionLost where the daemon goes away, and ScheddError where another process of the cluster does.
    """
    started = time.monotonic()
    ends: asyncio.Queue[Ended | BaseException] = asyncio.Queue()
    for rung in range(len(RUNGS)):
        await asyncio.gather(*(_submit(client, trial, rung, cluster.directory, seed) for trial in search.trials))
    search.open = len(search.trials)
    followers = [
        asyncio.create_task(_follow(trial, rung, ends)) for trial in search.trials for rung in range(len(RUNGS))
    ]
    try:
        while search.open:
            try:
                end = await asyncio.wait_for(ends.get(), CHECK_S)
            except TimeoutError:
                cluster.check()
                continue
            if isinstance(end, BaseException):
                raise end
            if _was_let_go(search, end):
                await _on_end(client, search, end)
            search.seconds = time.monotonic() - started
            on_change(search)
        # Counted here: the daemon's count leaves out those that go with the one before them.
        needless = _never_promoted(search)
        await client.cancel(needless)
        search.cancelled = len(needless)
    finally:
        for follower in followers:
            follower.cancel()
        await asyncio.gather(*followers, return_exceptions=True)


def _was_let_go(search: Search, end: Ended) -> bool:
    """Whether this rung was running for us; the daemon also ends those that come after a rung that failed."""
    return end.rung == 0 or end.trial.number in search.asha.promoted[end.rung - 1]


async def _submit(client: AsyncClient, trial: Trial, rung: int, directory: Path, seed: int) -> None:
    def checkpoint(of_rung: int) -> str:
        return str(directory / f"trial-{trial.number}-rung-{of_rung}.pickle")

    epochs = RUNGS[rung] - (RUNGS[rung - 1] if rung else 0)
    before = checkpoint(rung - 1) if rung else None
    arguments = (trial.config, seed + trial.number, epochs, before, checkpoint(rung))
    options: dict[str, Any] = {"job": JOB, "kind": f"rung-{rung}"}
    if rung:
        options |= {"after": [trial.tasks[-1].id], "hold": True, "priority": NOT_PROMOTED}
    trial.tasks.append(await client.submit(TRAIN, *arguments, **options))


async def _follow(trial: Trial, rung: int, ends: asyncio.Queue[Ended | BaseException]) -> None:
    try:
        ends.put_nowait(Ended(trial, rung, await trial.tasks[rung].wait()))
    except Exception as error:  # for the one who reads the queue
        ends.put_nowait(error)


async def _on_end(client: AsyncClient, search: Search, end: Ended) -> None:
    trial, rung = end.trial, end.rung
    search.open -= 1
    score = -math.inf
    try:
        result = await trial.tasks[rung].result()
    except Exception as error:  # whatever the training raised: rates that make the weights overflow do so
        trial.error = f"{type(error).__name__}: {error}"
        search.failed += 1
    else:
        search.finished += 1
        trial.accuracy = score = result["accuracy"]
        trial.epochs = RUNGS[rung]
        worker = search.workers.setdefault(end.done.worker, Worker())
        worker.tasks += 1
        worker.busy_s += result["seconds"]
    await _promote(client, search, rung, search.asha.record(trial.number, rung, score))


async def _promote(client: AsyncClient, search: Search, rung: int, numbers: list[int]) -> None:
    if not numbers:
        return
    chosen = [search.trials[number] for number in numbers]
    # Later rungs first, then the better ones: an accuracy is below 1.
    priorities = [(trial.tasks[rung + 1].id, rung + 1 + trial.accuracy) for trial in chosen]
    await client.set_priorities(priorities)
    await client.release([task_id for task_id, _ in priorities])
    search.open += len(chosen)
    search.promoted += len(chosen)


def _never_promoted(search: Search) -> list[TaskId]:
    ids: list[TaskId] = []
    for trial in search.trials:
        reached = sum(trial.number in promoted for promoted in search.asha.promoted)
        ids += [task.id for task in trial.tasks[reached + 1 :]]
    return ids
