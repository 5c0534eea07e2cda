"""`map` over tasks: cut the calls into chunks, keep a bounded number ahead of the reader, give results in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Any

from schedd.client import codec
from schedd.client.chunk import run_chunk
from schedd.client.options import Options, call_of
from schedd.client.pipeline import Pipeline
from schedd.client.task import AsyncTask
from schedd.client.ticket import Order
from schedd.wire.messages import TaskSpec

#: Tasks of one `map` that are ahead of its reader: enough to keep thousands of workers busy.
AHEAD_MAX = 10_000
#: Tasks added at a time, so that the first are under way while the rest is pickled.
STEP_MAX = 500


class Calls:
    """The calls of one `map`: one spec for all, and the argument of each task in turn.

    Raises TypeError, ValueError, PicklingError.
    """

    def __init__(
        self, function: Callable[..., Any] | str, iterables: Iterable[Iterable[Any]], chunksize: int, options: Options
    ) -> None:
        if chunksize < 1:
            raise ValueError(f"chunksize must be at least 1, not {chunksize!r}")
        self.chunksize = chunksize
        self._function = function
        self._kwargs = options.kwargs
        # Ends for good: `zip` draws from the first iterable again each time that it is asked after its end.
        self._items: Iterator[tuple[Any, ...]] = (items for items in zip(*iterables, strict=False))
        self.spec: TaskSpec = self._spec(options)

    def _spec(self, options: Options) -> TaskSpec:
        name = codec.name_of(self._function)
        if self.chunksize == 1:
            return options.spec(call_of(self._function), name)
        # A kind of its own: a chunk runs for as long as all its calls together.
        call = call_of(partial(run_chunk, self._function, self._kwargs))
        return options.spec(call, f"{name} x{self.chunksize}")

    def next_chunk(self) -> tuple[tuple[Any, ...], ...]:
        """Draw the arguments of the calls of the next task; empty at the end."""
        return tuple(islice(self._items, self.chunksize))

    def argument(self, chunk: tuple[tuple[Any, ...], ...]) -> bytes:
        """Pickle the arguments of a task. Raises PicklingError."""
        if self.chunksize == 1:
            return codec.argument_bytes(self._function, chunk[0], self._kwargs)
        return codec.argument_bytes(self._function, (chunk,), {})

    def next_arguments(self, count: int) -> list[bytes]:
        """Pickle the arguments of the next tasks, at most so many; fewer only at the end. Raises PicklingError."""
        return [self.argument(chunk) for chunk in islice(iter(self.next_chunk, ()), count)]

    def values(self, result: Any) -> list[Any]:
        """Turn the result of a task into those of its calls."""
        values: list[Any] = [result] if self.chunksize == 1 else result
        return values


class MapRun:
    """A `map` under way; belongs to the loop of its pipeline."""

    def __init__(self, calls: Calls, pipeline: Pipeline, new_task: Callable[[], AsyncTask], strict: bool) -> None:
        self._calls = calls
        self._pipeline = pipeline
        self._new_task = new_task
        self._strict = strict
        #: Submitted and not read, in order.
        self._tasks: deque[AsyncTask] = deque()

    @property
    def room(self) -> int:
        """How many tasks the next step should add."""
        return min(STEP_MAX, AHEAD_MAX - len(self._tasks))

    async def step(self, arguments: list[bytes]) -> tuple[list[Any], Exception | None]:
        """Submit tasks, then wait for the next result and return it with those behind it that are known too.

        Empty at the end. What a task raised is returned as well, when its turn comes: raised in a loop for another
        thread, a TimeoutError would come there as a new one, without its cause.
        """
        for argument in arguments:
            task = self._new_task()
            self._tasks.append(task)
            self._pipeline.put(Order(self._calls.spec, argument, task, strict=self._strict))
        values: list[Any] = []
        while self._tasks and (not values or self._tasks[0].has_succeeded):
            try:
                result = await self._tasks[0].result()
            except Exception as error:
                if values:
                    break  # these first: its turn comes
                self._tasks.popleft()
                return values, error
            self._tasks.popleft()
            values.extend(self._calls.values(result))
        return values, None

    async def close(self) -> None:
        """Cancel what has not started. Costs nothing where all was read."""
        unread = [task for task in self._tasks if not task.done() and not self._pipeline.withdraw(task)]
        self._tasks.clear()
        # A daemon that is away is not waited for just to cancel.
        if unread and self._pipeline.line.live is not None:
            await self._pipeline.cancel_unstarted(unread)
