"""The blocking client: `AsyncClient` for programs without a loop.

The loop runs in one thread; calls from many threads are safe. A callback (`on_done`, `on_report`) runs in that thread,
so it should be quick, and cannot make blocking calls itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from schedd.client import codec
from schedd.client.aio import AsyncClient, EventQuery
from schedd.client.line import RECONNECT_S
from schedd.client.mapping import Calls
from schedd.client.options import NOT_OF_MAP, read_options, read_request
from schedd.client.selecting import UNFINISHED, Which
from schedd.client.task import AsyncTask
from schedd.client.thread import LoopThread
from schedd.core.model import TaskId, TaskRequirements, WorkerId
from schedd.credentials import Credentials
from schedd.errors import ConnectionLost
from schedd.wire.messages import (
    AttemptRecord,
    AttemptReport,
    BackedUp,
    Changed,
    Event,
    Explanation,
    JobView,
    Kinds,
    LogData,
    PolicyState,
    Reloaded,
    Selection,
    Stats,
    TaskDetail,
    TaskDone,
    TaskView,
    WorkerView,
)

T = TypeVar("T")


class Task:
    """A task that the daemon has; `id` names it everywhere else."""

    def __init__(self, task: AsyncTask, client: Client, thread: LoopThread) -> None:
        self._task = task
        #: Not to be collected, and its connection closed, as long as somebody may ask for the result.
        self._client = client
        self._thread = thread

    def __repr__(self) -> str:
        return f"<Task {self.id}{' done' if self.done() else ''}>"

    @property
    def id(self) -> TaskId:
        return self._task.id

    @property
    def warnings(self) -> list[str]:
        """What the daemon remarked when it took the task, for instance that no worker fits now."""
        return self._task.warnings

    def done(self) -> bool:
        """Whether the task is known to be final, or to be lost from sight."""
        return self._task.done()

    def wait(self, timeout: float | None = None) -> TaskDone:
        """Wait for the end of the task, whatever it is. timeout: seconds. Raises TimeoutError, ScheddError."""
        return self._thread.run(_within(self._task.wait, self.id, timeout))

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the task and return its value. Raises TimeoutError, and else as `AsyncClient.result` does."""
        return codec.value_of(self.wait(timeout))

    def cancel(self) -> bool:
        """Cancel the task, running or not; False where it was final already. Raises ScheddError."""
        return self._thread.run(self._task.cancel())

    def reports(self) -> Iterator[AttemptReport]:
        """Yield the progress reports, those of before first (the newest 1,000), until the task is final."""
        reports = self._task.reports()
        while (report := self._thread.run(_next(reports))) is not None:
            yield report


async def _within(
    wait: Callable[[], Awaitable[TaskDone]],
    task_id: TaskId | int,
    timeout: float | None,  # noqa: ASYNC109 - made for a blocking caller
) -> TaskDone:
    try:
        async with asyncio.timeout(timeout):
            return await wait()
    except TimeoutError:
        raise TimeoutError(f"task {task_id} is not final after {timeout} s") from None


async def _next(iterator: AsyncIterator[T]) -> T | None:
    following: T | None = await anext(iterator, None)
    return following


def _close(client: AsyncClient, thread: LoopThread) -> None:
    """End the connection and the thread, in the next turn of the loop: the collector may call this at any point."""
    with contextlib.suppress(ConnectionLost):
        thread.start(client.close())
    thread.stop()


class Client:
    """A connection to the daemon for blocking calls, used as a context manager or closed with `close`.

    address, reconnect_s, credentials and errors as in `AsyncClient`; connects at once. Every call waits for the
    daemon's answer. In a process forked from its own every call raises ConnectionLost.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        program: str = "python",
        reconnect_s: float = RECONNECT_S,
        credentials: Credentials | None = None,
    ) -> None:
        client = AsyncClient(address, program=program, reconnect_s=reconnect_s, credentials=credentials)
        self._thread = LoopThread("schedd-client")
        self._client = client
        try:
            self._thread.run(client.connect())
        except BaseException:
            self._thread.stop()
            raise
        self._finalizer = weakref.finalize(self, _close, self._client, self._thread)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection. Calls under way in other threads raise ConnectionLost; submitted tasks go on."""
        self._finalizer()
        self._thread.join()

    def submit(self, function: Callable[..., Any] | Sequence[str] | str, *args: Any, **options: Any) -> Task:
        """Submit a call or a command, and return once the daemon has it safe. Options as in `AsyncClient.submit`."""
        # Here and not in the loop's thread: whoever imports the module of the function now holds its lock.
        request = read_request(function, args, options)
        return Task(self._thread.run(self._client.submit_request(request)), self, self._thread)

    def map(
        self, function: Callable[..., Any] | str, *iterables: Iterable[Any], chunksize: int = 1, **options: Any
    ) -> Iterator[Any]:
        """Call `function` on the items of `iterables` side by side; results in order, as they become known.

        As `AsyncClient.map`; the tasks are submitted as the iterator is read.
        """
        given = read_options(options, without=NOT_OF_MAP)
        calls = Calls(function, iterables, chunksize, given)
        run = self._thread.run(self._client.start_map(calls, given))
        try:
            values, error = self._thread.run(run.step(calls.next_arguments(run.room)))
            while values:
                yield from values
                values, error = self._thread.run(run.step(calls.next_arguments(run.room)))
            if error is not None:
                raise error
        finally:
            with contextlib.suppress(ConnectionLost):  # closed meanwhile
                self._thread.run(run.close())

    def task(self, task_id: TaskId | int) -> Task:
        """Return a handle for a task that is known by its id."""
        return Task(self._thread.run(self._attach(task_id)), self, self._thread)

    async def _attach(self, task_id: TaskId | int) -> AsyncTask:
        await self._client.connect()
        return self._client.task(task_id)

    def result(self, task_id: TaskId | int, timeout: float | None = None) -> Any:
        """Wait for a task and return its value. timeout: seconds. Raises as `Task.result` does."""

        async def wait() -> TaskDone:
            return await (await self._attach(task_id)).wait()

        return codec.value_of(self._thread.run(_within(wait, task_id, timeout)))

    def wait(
        self,
        which: Which,
        *,
        on_done: Callable[[TaskDone], None] | None = None,
        timeout: float | None = None,
        results: bool = False,
    ) -> list[TaskDone]:
        """Wait until all of these are final. As `AsyncClient.wait`."""
        return self._thread.run(self._client.wait(which, on_done=on_done, timeout=timeout, results=results))

    def cancel(self, which: Which, *, started: bool = True) -> Changed:
        """Cancel tasks. As `AsyncClient.cancel`."""
        return self._thread.run(self._client.cancel(which, started=started))

    def preempt(self, which: Which, *, grace: float | None = None) -> Changed:
        """Let tasks give up their workers and run again later. As `AsyncClient.preempt`."""
        return self._thread.run(self._client.preempt(which, grace=grace))

    def hold(self, which: Which) -> Changed:
        """Keep back what has not been dispatched."""
        return self._thread.run(self._client.hold(which))

    def release(self, which: Which) -> Changed:
        """Let go what is held."""
        return self._thread.run(self._client.release(which))

    def set(
        self, which: Which, *, priority: float | None = None, requirements: TaskRequirements | None = None
    ) -> Changed:
        """Change tasks that have not been dispatched; None leaves a value as it is."""
        return self._thread.run(self._client.set(which, priority=priority, requirements=requirements))

    def set_priorities(self, priorities: Iterable[tuple[TaskId, float]]) -> Changed:
        """Change the priority of many tasks, each to its own."""
        return self._thread.run(self._client.set_priorities(priorities))

    def drain(self, workers: Iterable[WorkerId | str], *, undo: bool = False, leave: bool = True) -> Changed:
        """Let workers finish what runs. As `AsyncClient.drain`."""
        return self._thread.run(self._client.drain(workers, undo=undo, leave=leave))

    def tasks(
        self, selection: Selection = UNFINISHED, *, limit: int | None = None, after_id: int = 0
    ) -> list[TaskView]:
        """List tasks by id, from the first id above `after_id`, all or at most `limit`."""
        return self._thread.run(self._client.tasks(selection, limit=limit, after_id=after_id))

    def show(self, which: Which) -> list[tuple[TaskView, TaskDetail]]:
        """List tasks by id with everything that is known of them."""
        return self._thread.run(self._client.show(which))

    def explain(self, task_id: TaskId | int) -> Explanation:
        """Say why a task is where it is."""
        return self._thread.run(self._client.explain(task_id))

    def jobs(self) -> list[JobView]:
        """List the jobs with their counts."""
        return self._thread.run(self._client.jobs())

    def workers(self) -> list[WorkerView]:
        """List the workers."""
        return self._thread.run(self._client.workers())

    def history(
        self, *, job: str = "", kind: str = "", states: Iterable[str] = (), since: float = 0.0, limit: int | None = None
    ) -> list[tuple[TaskView, list[AttemptRecord]]]:
        """List tasks that have ended, the newest end first. As `AsyncClient.history`."""
        return self._thread.run(self._client.history(job=job, kind=kind, states=states, since=since, limit=limit))

    def events(
        self,
        *,
        since: float | None = None,
        follow: bool = False,
        types: Iterable[str] = (),
        tasks: Iterable[TaskId | int] = (),
        workers: Iterable[str] = (),
        jobs: Iterable[str] = (),
        on_missed: Callable[[int], None] = lambda transactions: None,
    ) -> Iterator[Event]:
        """Yield what has happened, and what happens. As `AsyncClient.events`."""
        wanted = EventQuery(
            since, follow, list(types), [TaskId(i) for i in tasks], list(workers), list(jobs), on_missed
        )
        pages = self._client.event_pages(wanted)
        try:
            while (page := self._thread.run(_next(pages))) is not None:
                yield from page
        finally:
            with contextlib.suppress(ConnectionLost):  # closed meanwhile
                self._thread.run(pages.aclose())

    def backup(self, path: str | os.PathLike[str]) -> BackedUp:
        """Have the daemon write a copy of its journal. As `AsyncClient.backup`."""
        return self._thread.run(self._client.backup(path))

    def reload(self) -> Reloaded:
        """Let the daemon read its settings again. As `AsyncClient.reload`."""
        return self._thread.run(self._client.reload())

    def retry(self, which: Which) -> tuple[list[tuple[TaskId, TaskId]], Changed, list[str]]:
        """Submit tasks that failed or were cancelled again. As `AsyncClient.retry`."""
        return self._thread.run(self._client.retry(which))

    def stats(self) -> Stats:
        """Return the daemon's counters."""
        return self._thread.run(self._client.stats())

    def kinds(self, limit: int = 1000) -> Kinds:
        """Return what is believed of kinds on device models, the last seen first."""
        return self._thread.run(self._client.kinds(limit))

    def policy(self) -> PolicyState:
        """Return which policy decides, and what stealing has brought."""
        return self._thread.run(self._client.policy())

    def read_log(
        self, task_id: TaskId | int, *, attempt: int = 0, stream: str = "stdout", offset: int = 0, limit: int = 65536
    ) -> LogData:
        """Read a piece of a task's output. As `AsyncClient.read_log`."""
        return self._thread.run(
            self._client.read_log(task_id, attempt=attempt, stream=stream, offset=offset, limit=limit)
        )
