"""`concurrent.futures` on the daemon: `SchedExecutor` in the place of a `ProcessPoolExecutor`.

`submit` pickles the call, appends it to a queue and wakes the loop's thread if it is not awake already; the thread
makes one message of all that has gathered. A future stays "pending" for `concurrent.futures` until its result is
there; `running` says whether the daemon has it.
"""

from __future__ import annotations

import concurrent.futures
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

from schedd.client import codec
from schedd.client.aio import AsyncClient
from schedd.client.futures import BrokenSchedExecutor as BrokenSchedExecutor
from schedd.client.futures import Core, TaskFuture
from schedd.client.line import RECONNECT_S
from schedd.client.mapping import Calls
from schedd.client.options import NOT_OF_MAP, CallSpecs, read_options
from schedd.credentials import Credentials

T = TypeVar("T")

#: Arguments of ProcessPoolExecutor that mean nothing here, and why.
_NOT_APPLICABLE = {
    "initializer": "worker processes are shared between users: initialise in the function",
    "initargs": "worker processes are shared between users: initialise in the function",
    "mp_context": "the workers start their processes",
    "max_tasks_per_child": "the workers decide when to replace a process",
    "thread_name_prefix": "there are no threads to name",
}


class SchedExecutor(concurrent.futures.Executor):
    """Runs calls as tasks of the daemon.

    address: as for `AsyncClient`. max_workers: calls of this executor that the daemon may have at a time; None sets no
    bound and lets the daemon's policy decide. reconnect_s, credentials: as for `AsyncClient`. options: as in
    `AsyncClient.submit`, for every task (priority, job, kind, gpus …). Connects at once: raises ConnectionLost where no
    daemon answers.

    Futures raise what the call raised, with the worker's traceback as the cause; TaskFailed for other failures; and
    BrokenSchedExecutor where the daemon went away and did not come back in time.
    """

    def __init__(
        self,
        address: str | None = None,
        max_workers: int | None = None,
        *,
        reconnect_s: float = RECONNECT_S,
        credentials: Credentials | None = None,
        **options: Any,
    ) -> None:
        if max_workers is not None and max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        for name in options:
            if name in _NOT_APPLICABLE:
                raise TypeError(f"{name} does not apply to SchedExecutor: {_NOT_APPLICABLE[name]}")
        self._options = read_options(options, without=("kwargs", "on_report", *NOT_OF_MAP))
        self._specs = CallSpecs(self._options)
        client = AsyncClient(address, program="executor", reconnect_s=reconnect_s, credentials=credentials)
        self._core = Core(client, max_workers or 0)
        finalizer = weakref.finalize(self, self._core.abandon)
        finalizer.atexit = False  # `_at_exit` takes care of that

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> concurrent.futures.Future[T]:
        """Submit a call; returns at once.

        Raises RuntimeError after shutdown, and BrokenSchedExecutor once the daemon is given up. What cannot be pickled
        is told by the future.
        """
        core = self._core
        try:
            spec = self._specs.get(fn)
            argument = codec.argument_bytes(fn, args, kwargs)
        except Exception as error:
            with core.lock:
                core.check()
            return core.failed(error)
        return core.put(spec, argument, self._options.strict)

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """Call `fn` on the items of `iterables` side by side; results in order.

        timeout: seconds from this call on; TimeoutError is raised after. chunksize: calls in one task. buffersize:
        tasks submitted ahead of the reader; None submits all now. What has not started is cancelled where the
        iterator fails or is closed.
        """
        if buffersize is not None and not isinstance(buffersize, int):
            raise TypeError("buffersize must be an integer or None")
        if buffersize is not None and buffersize < 1:
            raise ValueError("buffersize must be None or > 0")
        end_time = None if timeout is None else time.monotonic() + timeout
        calls = Calls(fn, iterables, chunksize, self._options)
        more = _futures(calls, self._core, self._options.strict)
        futures = deque(islice(more, buffersize))
        return _results(calls, futures, more, self._core, end_time)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; `wait` for those submitted. `cancel_futures`: cancel what has not started."""
        self._core.shutdown(wait, cancel_futures)


def _futures(calls: Calls, core: Core, strict: bool) -> Iterator[TaskFuture]:
    while chunk := calls.next_chunk():
        try:
            argument = calls.argument(chunk)
        except Exception as error:
            yield core.failed(error)
        else:
            yield core.put(calls.spec, argument, strict)


def _results(
    calls: Calls, futures: deque[TaskFuture], more: Iterator[TaskFuture], core: Core, end_time: float | None
) -> Iterator[Any]:
    try:
        while futures:
            # Kept in the queue until it is done: cancelled with the others where time runs out.
            futures[0].exception(None if end_time is None else end_time - time.monotonic())
            futures.extend(islice(more, 1))
            values = calls.values(futures.popleft().result())
            # No reference to a result outlives its turn.
            values.reverse()
            while values:
                yield values.pop()
    finally:
        core.cancel_soon(futures)
