"""Runs that have nothing to do with each other, on several cores at once."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from threading import Thread
from typing import Any, TypeVar

from schedd.errors import TraceError
from schedd.simulate.run import Progress

Key = TypeVar("Key")
Told = TypeVar("Told")

#: Between two looks at how far the runs are.
POLL_S = 0.2

#: In a child: what it runs, of what, and where it says how far each is: (finished, total) one after the other.
_work: tuple[Callable[[Any, Progress], Any], Sequence[Any], Any] | None = None


def run_each(
    run: Callable[[Key, Progress], Told],
    keys: Sequence[Key],
    jobs: int,
    report: Callable[[Key, int, int], None],
) -> list[Told]:
    """Call `run` with each key, up to `jobs` at once, and return what it returned, in the order of the keys.

    Above one, each is a forked process: it shares what was read before, and what `run` returns is pickled. `report`
    hears (key, finished, total) now and then. Raises what `run` raises, and TraceError where a process was killed.
    """
    if (jobs := min(jobs, len(keys))) <= 1:
        return [run(key, partial(report, key)) for key in keys]
    context = multiprocessing.get_context("fork")
    marks = context.RawArray("q", 2 * len(keys))
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(jobs, context, _begin, (run, keys, marks))
    try:
        futures: list[Future[Told]] = [pool.submit(_run, number) for number in range(len(keys))]
        waiting = set(futures)
        while waiting:
            ended, waiting = wait(waiting, POLL_S)
            for number, key in enumerate(keys):
                if total := marks[2 * number + 1]:
                    report(key, marks[2 * number], total)
            for future in ended:
                future.result()
    except BaseException as error:
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()
        # And wait: who forks while a thread of the pool lives has its lock in the child for ever.
        pool.shutdown(cancel_futures=True)
        if isinstance(error, BrokenProcessPool):
            raise TraceError("a run was killed, perhaps for want of memory", "fewer at once: --jobs 1") from None
        raise
    pool.shutdown()
    return [future.result() for future in futures]


def _begin(*work: Any) -> None:
    global _work
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the terminal tells all of us: no child has to say so
    _work = work
    Thread(target=_follow, daemon=True).start()


def _follow() -> None:
    """End with the process that wants to know."""
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)


def _run(number: int) -> Any:
    assert _work is not None
    run, keys, marks = _work

    def note(finished: int, total: int) -> None:
        marks[2 * number], marks[2 * number + 1] = finished, total

    return run(keys[number], note)
