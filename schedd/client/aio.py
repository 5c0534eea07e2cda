"""The asynchronous client: everything that can be asked of the daemon, as coroutines.

A client has one connection, and makes it again where it is lost. Calls of one turn of the loop travel in one frame, so
`asyncio.gather` over a thousand submits costs one message. `watch` and `wait` use a connection of their own, because
closing it is how a watch ends.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing
from itertools import zip_longest
from typing import Any

from msgspec import Struct

from schedd.address import daemon_address
from schedd.client.checking import checked
from schedd.client.connection import Answer
from schedd.client.line import RECONNECT_S, RECONNECT_S_MAX, Line, OnChange
from schedd.client.mapping import Calls, MapRun
from schedd.client.options import NOT_OF_MAP, Options, Request, read_options, read_request
from schedd.client.pipeline import SUBMIT_BYTES_MAX, SUBMIT_TASKS_MAX, Pipeline
from schedd.client.retrying import plan_retry, without
from schedd.client.selecting import UNFINISHED, Which, select
from schedd.client.selecting import task_id as id_of
from schedd.client.splitting import cut, part_of
from schedd.client.task import AsyncTask
from schedd.client.ticket import Order
from schedd.client.watching import watch
from schedd.core.model import SECOND, TaskId, TaskRequirements, WorkerId
from schedd.credentials import Credentials
from schedd.errors import ConnectionLost, RequestRefused, ScheddError
from schedd.wire.messages import (
    TOO_LARGE,
    UNKNOWN_JOB,
    UNKNOWN_TASK,
    AttemptRecord,
    AttemptReport,
    BackedUp,
    BackUp,
    CancelTasks,
    Changed,
    ClientRequest,
    DrainWorkers,
    Event,
    EventList,
    ExplainTask,
    Explanation,
    GetKinds,
    GetPolicy,
    GetStats,
    HistoryList,
    HoldTasks,
    JobList,
    JobView,
    Kinds,
    ListEvents,
    ListHistory,
    ListJobs,
    ListTasks,
    ListWorkers,
    LogData,
    PolicyState,
    PreemptTasks,
    ReadLog,
    ReleaseTasks,
    Reload,
    Reloaded,
    Selection,
    SetPriorities,
    SetTasks,
    Stats,
    Submitted,
    TaskDetail,
    TaskDone,
    TaskEntry,
    TaskList,
    TaskSpec,
    TaskView,
    Watching,
    Welcome,
    WorkerList,
    WorkerView,
)

#: Tasks of one `ListTasks` answer: about 200 KiB, and some milliseconds of the daemon's time.
PAGE_TASKS = 1000
#: A question for events that nothing answers is asked again after so many seconds.
EVENTS_WAIT_S = 30.0


class EventQuery(Struct, frozen=True):
    """What is asked of `AsyncClient.events`."""

    since: float | None
    follow: bool
    types: list[str]
    tasks: list[TaskId]
    workers: list[str]
    jobs: list[str]
    on_missed: Callable[[int], None]


class AsyncClient:
    """A connection to the daemon, used as an asynchronous context manager or closed with `close`.

    address: `HOST:PORT` or `unix:/path`; None takes `$SCHEDD_ADDRESS`, else the default. Each call connects if there
    is no connection. Every call raises ConnectionLost where the daemon cannot be reached, RequestRefused where it
    declines, and RemoteProtocolError where it is of another version. Belongs to the loop that it was first used in.

    reconnect_s: for how long, in seconds, a daemon that was there and has gone away is waited for, at most 1,800; 0:
    not at all. Meanwhile every call and every task goes on waiting; then a submit that was not acknowledged is sent
    again, and is one submit all the same, and results that came while the daemon was away are fetched. Where it does
    not come back, what waits raises ConnectionLost. on_change: called when the daemon is away, with the reason, and
    with None when it is back; else the log says so. credentials: how to prove who we are, and to know the daemon
    (`schedd.credentials.find_credentials`); None: as $SCHEDD_TOKEN_FILE and $SCHEDD_TLS_CA say.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        program: str = "python",
        reconnect_s: float = RECONNECT_S,
        on_change: OnChange | None = None,
        credentials: Credentials | None = None,
    ) -> None:
        if not 0 <= reconnect_s <= RECONNECT_S_MAX:
            raise ValueError(f"reconnect_s must be between 0 and {RECONNECT_S_MAX:g} s, not {reconnect_s!r}")
        self.address = daemon_address(address)
        self.line = Line(self.address, program, reconnect_s, on_change, credentials)
        #: None before the first connection. For those who submit from other threads.
        self.pipeline: Pipeline | None = None

    async def connect(self) -> Welcome:
        """Connect if there is no connection, and return the daemon's greeting."""
        if self.pipeline is None:
            self.pipeline = Pipeline(self.line)
        return (await self.line.connect())[1]

    async def close(self) -> None:
        """End the connection. What still waits for an answer raises ConnectionLost; submitted tasks go on."""
        self.line.close()

    async def __aenter__(self) -> AsyncClient:
        await self.connect()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    # ------------------------------------------------------------------------------------------------------- submit

    async def submit(self, function: Callable[..., Any] | Sequence[str] | str, *args: Any, **options: Any) -> AsyncTask:
        """Submit a call `function(*args)` or a command (a list of words), and return once the daemon has it safe.

        `function` may also be an import path, "package.module:name". options: priority, job, kind, key, requirements
        (TaskRequirements) or gpus, gpu_memory (GB), cpus, ram (GB), gpu_model, labels, estimated_time (s); after
        (ids or tasks), timeout (s), grace (s), delay (s), hold, strict (refuse where no worker fits), and on_report, a
        function of each AttemptReport. retries: how often to try again after a failure or timeout; retry_timeout,
        retry_oom, retry_lost and retry_rejected after these; retry_delay (s), the first pause; memory_growth, a factor.
        For a call: kwargs. For a command: env, cwd, stdin.
        Raises TypeError naming the nearest valid option, and PicklingError naming what cannot be sent.
        """
        return await self.submit_request(read_request(function, args, options))

    async def submit_request(self, request: Request) -> AsyncTask:
        """Submit what `read_request` made; for the blocking client, which pickles in the thread of its caller."""
        pipeline = await self._live()
        task = AsyncTask(self.cancel, request.options.on_report)
        pipeline.put(Order(request.spec, request.argument, task, request.options.key, request.options.strict))
        try:
            admission = await task.admission
        except asyncio.CancelledError:
            pipeline.withdraw(task)
            raise
        if isinstance(admission, ScheddError):
            raise admission
        return task

    async def submit_many(
        self,
        specs: Sequence[TaskSpec],
        entries: Sequence[TaskEntry],
        *,
        watch: bool = False,
        strict: bool = False,
        on_done: Callable[[TaskDone], None] | None = None,
    ) -> Submitted:
        """Submit tasks as they are on the wire; ids come in the order of `entries`.

        More than 1,000 entries travel as several submits, each all or none. `watch`: the daemon pushes the end of
        each task with its result to `on_done`.
        """
        pipeline = await self._live()
        ids: list[TaskId] = []
        warnings: dict[str, None] = {}
        for start, end in cut(entries, tasks_max=SUBMIT_TASKS_MAX, bytes_max=SUBMIT_BYTES_MAX):
            part = part_of(specs, entries, start, end, ids)
            own, tasks = checked(part[0], list[TaskSpec], "specs"), checked(part[1], list[TaskEntry], "entries")
            try:
                answer = await pipeline.submit_as_is(own, tasks, watch=watch, strict=strict, on_done=on_done)
            except RequestRefused as error:
                raise _after_others(error, start) from None
            ids += answer.ids
            warnings.update(dict.fromkeys(answer.warnings))
        return Submitted(0, ids, list(warnings))

    def map(
        self, function: Callable[..., Any] | str, *iterables: Iterable[Any], chunksize: int = 1, **options: Any
    ) -> AsyncGenerator[Any, None]:
        """Call `function` on the items of `iterables` side by side; results in order, as they become known.

        `chunksize`: calls in one task. options: as in `submit`, for all tasks. The first failure ends the iteration,
        and what has not started is cancelled then, as it is where the iterator is closed early.
        """
        given = read_options(options, without=NOT_OF_MAP)
        return self._map(Calls(function, iterables, chunksize, given), given)

    def task(self, task_id: TaskId | int) -> AsyncTask:
        """Return a handle for a task that is known by its id."""
        task = AsyncTask(self.cancel)
        task.id = id_of(task_id)
        if self.pipeline is None or self.line.connection is None or self.line.error is not None:
            raise ConnectionLost("this client is not connected", "use it in `async with`, or call connect() first")
        self.pipeline.attach(task, task.id)
        return task

    async def result(self, task_id: TaskId | int) -> Any:
        """Wait for a task and return its value: what the call returned, or the JSON that the command wrote, or None.

        Raises what the call raised, TaskFailed, TaskCancelled, or RequestRefused where the value is not kept any more.
        """
        await self.connect()
        return await self.task(task_id).result()

    # --------------------------------------------------------------------------------------------------- wait, watch

    async def wait(
        self,
        which: Which,
        *,
        on_done: Callable[[TaskDone], None] | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - the message says how many are left
        results: bool = False,
    ) -> list[TaskDone]:
        """Wait until all of these (ids, tasks, or a Selection) are final.

        timeout: seconds. Returns their ends, in the order of the ids given, or by id for a Selection. `on_done` is
        called for each as it ends, and at once for those that already had. `results`: with the result bytes.
        Raises TimeoutError.
        """
        selection = select(which)
        if selection is None:
            return []
        ends: dict[TaskId, TaskDone] = {}
        total = len(selection.ids)
        try:
            async with asyncio.timeout(timeout) as limit, aclosing(self.watch(selection, results=results)) as events:
                async for event in events:
                    if isinstance(event, TaskDone):
                        ends[event.task_id] = event
                        if on_done is not None:
                            on_done(event)
                    elif isinstance(event, Watching):
                        total = event.total
        except TimeoutError:
            if not limit.expired():
                raise
            raise TimeoutError(f"{total - len(ends)} of {total} tasks are not final after {timeout} s") from None
        return [ends[task_id] for task_id in selection.ids or sorted(ends) if task_id in ends]

    async def watch(
        self, selection: Selection, *, results: bool = False, reports: bool = False
    ) -> AsyncGenerator[Watching | TaskDone | AttemptReport, None]:
        """Yield first how many tasks there are, then each end (and report) as it comes; stops after the last end.

        Tasks that are already final come first. Close the iterator (`contextlib.aclosing`) to stop earlier.
        """
        async with aclosing(watch(self.line, selection, results=results, reports=reports)) as events:
            async for event in events:
                yield event

    # -------------------------------------------------------------------------------------------------------- change

    async def cancel(self, which: Which, *, started: bool = True) -> Changed:
        """Cancel tasks; what runs is terminated, or left alone and listed in `unchanged` where `started` is False."""
        return await self._change(CancelTasks, which, started)

    async def preempt(self, which: Which, *, grace: float | None = None) -> Changed:
        """Let tasks that a worker has give it up and run again later, without blame.

        grace: seconds between asking and killing; None: what each was submitted with.
        """
        return await self._change(PreemptTasks, which, grace)

    async def hold(self, which: Which) -> Changed:
        """Keep back what has not been dispatched."""
        return await self._change(HoldTasks, which)

    async def release(self, which: Which) -> Changed:
        """Let go what is held."""
        return await self._change(ReleaseTasks, which)

    async def set(
        self, which: Which, *, priority: float | None = None, requirements: TaskRequirements | None = None
    ) -> Changed:
        """Change tasks that have not been dispatched; None leaves a value as it is."""
        return await self._change(SetTasks, which, priority, requirements)

    async def set_priorities(self, priorities: Iterable[tuple[TaskId, float]]) -> Changed:
        """Change the priority of many tasks, each to its own."""
        return await self._ask(Changed, SetPriorities, list(priorities))

    async def drain(self, workers: Iterable[WorkerId | str], *, undo: bool = False, leave: bool = True) -> Changed:
        """Let workers finish what runs and take nothing new; then they leave, or stay where `leave` is False."""
        return await self._ask(Changed, DrainWorkers, [WorkerId(name) for name in workers], undo, leave)

    # ---------------------------------------------------------------------------------------------------------- look

    async def tasks(
        self, selection: Selection = UNFINISHED, *, limit: int | None = None, after_id: int = 0
    ) -> list[TaskView]:
        """List tasks by id, from the first id above `after_id`, all or at most `limit`."""
        return [view for view, _ in await self._list(selection, limit, after_id, detail=False)]

    async def show(self, which: Which) -> list[tuple[TaskView, TaskDetail]]:
        """List tasks by id with everything that is known of them."""
        selection = select(which)
        if selection is None:
            return []
        rows = await self._list(selection, None, 0, detail=True)
        return [(view, detail) for view, detail in rows if detail is not None]

    async def explain(self, task_id: TaskId | int) -> Explanation:
        """Say why a task is where it is."""
        return await self._ask(Explanation, ExplainTask, task_id)

    async def jobs(self) -> list[JobView]:
        """List the jobs with their counts."""
        return (await self._ask(JobList, ListJobs)).jobs

    async def workers(self) -> list[WorkerView]:
        """List the workers."""
        return (await self._ask(WorkerList, ListWorkers)).workers

    async def stats(self) -> Stats:
        """Return the daemon's counters."""
        return await self._ask(Stats, GetStats)

    async def kinds(self, limit: int = 1000) -> Kinds:
        """Return what is believed of kinds on device models, the last seen first."""
        return await self._ask(Kinds, GetKinds, limit)

    async def policy(self) -> PolicyState:
        """Return which policy decides, and what stealing has brought."""
        return await self._ask(PolicyState, GetPolicy)

    async def read_log(
        self, task_id: TaskId | int, *, attempt: int = 0, stream: str = "stdout", offset: int = 0, limit: int = 65536
    ) -> LogData:
        """Read a piece of a task's output from the worker that has it; `offset` below 0 counts from the end."""
        return await self._ask(LogData, ReadLog, task_id, attempt, stream, offset, limit)

    # ------------------------------------------------------------------------------------------------------- journal

    async def history(
        self,
        *,
        job: str = "",
        kind: str = "",
        states: Iterable[str] = (),
        since: float = 0.0,
        limit: int | None = None,
    ) -> list[tuple[TaskView, list[AttemptRecord]]]:
        """List tasks that have ended, the newest end first, with their attempts, as far as the journal goes back.

        since: seconds since the epoch. limit: None for all there are.
        """
        rows: list[tuple[TaskView, list[AttemptRecord]]] = []
        since_ns, cursor = int(since * SECOND), (0, 0)
        while limit is None or len(rows) < limit:
            size = PAGE_TASKS if limit is None else min(PAGE_TASKS, limit - len(rows))
            page = await self._ask(HistoryList, ListHistory, job, kind, list(states), since_ns, cursor, size)
            rows += zip(page.tasks, page.attempts, strict=True)
            cursor = page.cursor
            if cursor == (0, 0):
                break
        return rows

    async def events(
        self,
        *,
        since: float | None = None,
        follow: bool = False,
        types: Iterable[str] = (),
        tasks: Iterable[TaskId | int] = (),
        workers: Iterable[str] = (),
        jobs: Iterable[str] = (),
        on_missed: Callable[[int], None] = lambda transactions: None,
    ) -> AsyncGenerator[Event, None]:
        """Yield what has happened, in its order and as soon as it is on the daemon's disk.

        since: seconds since the epoch; None: from the oldest that the journal has, or, to `follow`, from now on.
        follow: go on for ever, over restarts of the daemon, too. types, tasks, workers, jobs: of any of these, empty
        for all. on_missed: told how many transactions of the journal were forgotten before they were read here.
        """
        wanted = EventQuery(
            since, follow, list(types), [TaskId(i) for i in tasks], list(workers), list(jobs), on_missed
        )
        async with aclosing(self.event_pages(wanted)) as pages:
            async for page in pages:
                for event in page:
                    yield event

    async def event_pages(self, wanted: EventQuery) -> AsyncGenerator[list[Event], None]:
        """Yield what `events` does as it comes, several at a time; empty lists where nothing has come for a while."""
        since_ns, wait_s = int((wanted.since or 0) * SECOND), EVENTS_WAIT_S if wanted.follow else 0.0
        chosen = (wanted.types, wanted.tasks, wanted.workers, wanted.jobs)
        cursor = (-1, 0) if wanted.follow and wanted.since is None else (0, 0)
        more = True
        while more or wanted.follow:
            page = await self._ask(EventList, ListEvents, cursor, since_ns, *chosen, PAGE_TASKS, wait_s)
            cursor, more = page.cursor, page.more
            if page.missed:
                wanted.on_missed(page.missed)
            yield page.events

    async def backup(self, path: str | os.PathLike[str]) -> BackedUp:
        """Have the daemon write a copy of its journal, as of now, to a new file: an absolute path on its machine.

        The one request that is not made again where the connection is lost: the file may be there by then.
        """
        connection, _ = await self.line.connect()
        return await connection.request(BackedUp, BackUp, os.fspath(path))

    async def reload(self) -> Reloaded:
        """Let the daemon read its settings again; returns when they count. Raises RequestRefused for a bad file."""
        return await self._ask(Reloaded, Reload)

    async def retry(self, which: Which) -> tuple[list[tuple[TaskId, TaskId]], Changed, list[str]]:
        """Submit tasks that failed or were cancelled again, as new ones that do the same for the same job.

        Returns the old and the new id of each, what was left as it is and why, and the warnings of the submit.
        Raises RequestRefused where one waits for a task that failed and is not done again with it, and for a job that
        does not exist.
        """
        plan = plan_retry(await self.show(which))
        changed = Changed(0, len(plan.ids), [(task_id, reason) for task_id, reason in plan.unchanged])
        if not plan.ids:
            if not plan.unchanged and isinstance(which, Selection) and which.job and not which.ids:
                await self._find_job(which.job)
            return [], changed, []
        done = await self._succeeded(plan.others)
        submitted = await self.submit_many(plan.specs, without(plan.entries, done))
        return list(zip(plan.ids, submitted.ids, strict=True)), changed, submitted.warnings

    async def _find_job(self, name: str) -> None:
        """Raise RequestRefused where there is no such job."""
        if all(job.name != name for job in await self.jobs()):
            raise RequestRefused(f"there is no job {name!r}", code=UNKNOWN_JOB)

    async def _succeeded(self, ids: list[TaskId]) -> list[TaskId]:
        if not ids:
            return []
        try:
            return [view.id for view in await self.tasks(Selection(ids=ids)) if view.state == "succeeded"]
        except RequestRefused as error:
            if error.code != UNKNOWN_TASK:  # of all of them; the submit says so, too
                raise
            return []

    # -------------------------------------------------------------------------------------------------------- inside

    async def _live(self) -> Pipeline:
        await self.connect()
        assert self.pipeline is not None
        return self.pipeline

    async def _ask(self, answer: type[Answer], kind: Callable[..., ClientRequest], *fields: Any) -> Answer:
        return await self.line.request(answer, kind, *fields)

    async def _change(self, kind: Callable[..., ClientRequest], which: Which, *fields: Any) -> Changed:
        selection = select(which)
        return Changed(0, 0) if selection is None else await self._ask(Changed, kind, selection, *fields)

    async def _list(
        self, selection: Selection, limit: int | None, after_id: int, *, detail: bool
    ) -> list[tuple[TaskView, TaskDetail | None]]:
        rows: list[tuple[TaskView, TaskDetail | None]] = []
        most = PAGE_TASKS
        while limit is None or len(rows) < limit:
            size = most if limit is None else min(most, limit - len(rows))
            try:
                page = await self._ask(TaskList, ListTasks, selection, size, after_id, detail)
            except RequestRefused as error:
                if error.code != TOO_LARGE or size == 1:
                    raise
                most = max(1, size // 8)
                continue
            rows += zip_longest(page.tasks, page.details)
            if not page.more or not page.tasks:
                break
            after_id = page.tasks[-1].id
        return rows

    async def _map(self, calls: Calls, options: Options) -> AsyncGenerator[Any, None]:
        run = await self.start_map(calls, options)
        try:
            values, error = await run.step(calls.next_arguments(run.room))
            while values:
                for value in values:
                    yield value
                values, error = await run.step(calls.next_arguments(run.room))
            if error is not None:
                raise error
        finally:
            await run.close()

    async def start_map(self, calls: Calls, options: Options) -> MapRun:
        """Begin a `map` that is read in batches; for the blocking client."""
        return MapRun(calls, await self._live(), lambda: AsyncTask(self.cancel, options.on_report), options.strict)


def _after_others(error: RequestRefused, admitted_count: int) -> RequestRefused:
    if not admitted_count:
        return error
    hint = f"the {admitted_count} tasks before were admitted" + (f"; {error.hint}" if error.hint else "")
    return RequestRefused(error.message, hint, error.code)
