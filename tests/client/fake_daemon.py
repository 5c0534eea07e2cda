"""A daemon with one infinitely fast worker inside: it speaks the real wire and runs calls in its own loop.

`is_running` False: tasks stay queued until the test starts or finishes them.
"""

from __future__ import annotations

import asyncio
import pickle
import threading
import traceback
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from schedd.client.chunk import _resolve
from schedd.core.model import Call, TaskId
from schedd.wire import messages as wire
from schedd.wire.framing import PREFIX_BYTES, FrameReader, encode_frame
from schedd.wire.raised import encode_raised

T = TypeVar("T")
#: When every task here was submitted.
SUBMITTED_NS = 7
FINAL = ("succeeded", "failed", "cancelled")


class FakeTask:
    """A task with what the daemon would know of it."""

    def __init__(self, task_id: TaskId, spec: wire.TaskSpec, entry: wire.TaskEntry) -> None:
        self.id = task_id
        self.spec = spec
        self.entry = entry
        self.state = "held" if spec.hold else "queued"
        self.done: wire.TaskDone | None = None
        self.watchers: list[tuple[Peer, bool, bool]] = []


class FakeDaemon:
    """Serves on a port of its own; used as an asynchronous context manager."""

    def __init__(self, *, is_running: bool = True) -> None:
        self.is_running = is_running
        self.address = ""
        self.tasks: dict[int, FakeTask] = {}
        self.keys: dict[str, FakeTask] = {}
        #: Ids by client and number of the submit.
        self.submits: dict[tuple[str, int], list[TaskId]] = {}
        #: Everything that came in after the greetings, and how many frames that were.
        self.requests: list[Any] = []
        self.frame_count = 0
        self.hellos: list[wire.Hello] = []
        self.peers: list[Peer] = []
        #: What is said to a Hello.
        self.greeting: Any = wire.Welcome(wire.PROTOCOL, "0.0", 7, "fifo")
        #: May answer a request in the daemon's place: a message, or None for "as usual".
        self.override: Callable[[Any], Any] = lambda request: None

    async def __aenter__(self) -> FakeDaemon:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Peer(self), "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        self.hang_up()
        await self._server.wait_closed()

    def hang_up(self) -> None:
        """End all connections, as a daemon that is killed does."""
        for peer in self.peers:
            peer.transport.abort()

    def go_away(self) -> None:
        """Be killed: nobody listens any more."""
        self._server.close()
        self.hang_up()

    async def come_back(self) -> None:
        """Listen again where it was, and know what was known."""
        host, _, port = self.address.rpartition(":")
        self._server = await asyncio.get_running_loop().create_server(lambda: Peer(self), host, int(port))

    def all_of(self, kind: type[T]) -> list[T]:
        """The requests of one kind, in order."""
        return [request for request in self.requests if isinstance(request, kind)]

    # ----------------------------------------------------------------------------------------------- life of a task

    def start(self, task_id: int) -> None:
        """Mark a task as running."""
        self.tasks[task_id].state = "running"

    def run(self, task_id: int) -> None:
        """Run a task to its end, unless it has one."""
        task = self.tasks[task_id]
        if task.done is None and task.state != "held":
            state, cause, result, message = _outcome(task)
            self.end(wire.TaskDone(TaskId(task_id), state, cause, result, message, worker="w1", attempt=1))

    def run_all(self) -> None:
        """Run all that is left."""
        for task_id in list(self.tasks):
            self.run(task_id)

    def end(self, done: wire.TaskDone) -> None:
        """End a task like this."""
        task = self.tasks[done.task_id]
        task.state, task.done = done.state, done
        for peer, results, _ in task.watchers:
            peer.push_done(done, results)

    def report(self, task_id: int, step: int, **metrics: float) -> None:
        """Let a task tell of its progress."""
        for peer, _, reports in self.tasks[task_id].watchers:
            if reports:
                peer.push(wire.TaskReports([wire.AttemptReport(TaskId(task_id), 1, step, metrics)]))

    # ------------------------------------------------------------------------------------------------------ requests

    def submit(self, peer: Peer, request: wire.Submit) -> wire.Submitted:
        before = self.submits.get((request.client, request.number))
        if before is not None:
            for task_id in before if request.watch else []:
                self.follow(peer, self.tasks[task_id])
            return wire.Submitted(request.request, before, [], [SUBMITTED_NS])
        ids = []
        for entry in request.tasks:
            task = self.keys.get(entry.key) if entry.key else None
            if task is None:
                task = FakeTask(TaskId(len(self.tasks) + 1), request.specs[entry.spec], entry)
                self.tasks[task.id] = task
                if entry.key:
                    self.keys[entry.key] = task
                if self.is_running:
                    asyncio.get_running_loop().call_soon(self.run, task.id)
            if request.watch:
                task.watchers.append((peer, True, True))
            ids.append(task.id)
        self.submits[request.client, request.number] = ids
        return wire.Submitted(request.request, ids, [], [SUBMITTED_NS])

    def follow(self, peer: Peer, task: FakeTask) -> None:
        """Tell a client of a task, at once where it has ended."""
        if task.done is None:
            task.watchers.append((peer, True, True))
        else:
            peer.push_done(task.done, True)

    def selected(self, selection: wire.Selection) -> list[FakeTask]:
        tasks = [self.tasks[task_id] for task_id in selection.ids if task_id in self.tasks]
        if not selection.ids:
            tasks = [task for task in self.tasks.values() if selection.job in (None, task.spec.job)]
        return [task for task in tasks if not (selection.unfinished and task.state in FINAL)]

    def watch(self, peer: Peer, request: wire.WatchTasks) -> Any:
        if request.again:
            unknown = [task_id for task_id in request.selection.ids if task_id not in self.tasks]
            for task_id in set(request.selection.ids).difference(unknown):
                self.follow(peer, self.tasks[task_id])
            return wire.Watching(request.request, len(request.selection.ids) - len(unknown), 0, unknown=unknown)
        for task_id in request.selection.ids:
            if task_id not in self.tasks:
                return wire.RequestFailed(request.request, wire.UNKNOWN_TASK, f"no task {task_id}")
        tasks = self.selected(request.selection)
        ended = [task.done for task in tasks if task.done is not None]
        for task in tasks:
            task.watchers.append((peer, request.results, request.reports))
        for done in ended:
            peer.push_done(done, request.results)
        ids = [task.id for task in tasks] if request.named else []
        return wire.Watching(request.request, len(tasks), len(ended), ids)

    def cancel(self, request: wire.CancelTasks) -> wire.Changed:
        changed, unchanged = 0, []
        for task in self.selected(request.selection):
            if task.done is not None or (task.state == "running" and not request.started):
                unchanged.append((int(task.id), task.state))
            else:
                changed += 1
                self.end(wire.TaskDone(task.id, "cancelled", "cancelled"))
        return wire.Changed(request.request, changed, list(unchanged))

    def list_tasks(self, request: wire.ListTasks) -> wire.TaskList:
        tasks = [task for task in self.selected(request.selection) if task.id > request.after_id]
        page = tasks[: request.limit]
        return wire.TaskList(request.request, [view_of(task) for task in page], [], len(tasks) > len(page))

    def answer(self, peer: Peer, request: Any) -> Any:
        match request:
            case wire.Submit():
                return self.submit(peer, request)
            case wire.WatchTasks():
                return self.watch(peer, request)
            case wire.CancelTasks():
                return self.cancel(request)
            case wire.ListTasks():
                return self.list_tasks(request)
            case wire.ListJobs():
                return wire.JobList(request.request, [])
            case wire.ListWorkers():
                return wire.WorkerList(request.request, [])
            case _:
                return wire.Changed(request.request, 1)


class Peer(asyncio.Protocol):
    """The daemon's end of one connection."""

    transport: asyncio.Transport

    def __init__(self, daemon: FakeDaemon) -> None:
        self.daemon = daemon
        self.is_greeted = False
        self._reader = FrameReader()
        self._outbox: list[Any] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.daemon.peers.append(self)

    def data_received(self, data: bytes) -> None:
        for body in self._reader.feed(data):
            if not self.is_greeted:
                self.is_greeted = True
                self.daemon.hellos.append(wire.decode_hello(body))
                if self.daemon.greeting is not None:
                    self.push(self.daemon.greeting)
                continue
            self.daemon.frame_count += 1
            for request in wire.decode_from_client(body):
                self.daemon.requests.append(request)
                answer = self.daemon.override(request)
                self.push(answer if answer is not None else self.daemon.answer(self, request))

    def push_done(self, done: wire.TaskDone, results: bool) -> None:
        if not results:
            done = wire.TaskDone(done.task_id, done.state, done.cause, None, done.message, done.exit_code)
        self.push(wire.TasksDone([done]))

    def push(self, message: Any) -> None:
        if not self._outbox:
            asyncio.get_running_loop().call_soon(self._flush)
        self._outbox.append(message)

    def _flush(self) -> None:
        messages, self._outbox = self._outbox, []
        if not self.transport.is_closing():
            self.transport.write(encode_frame(messages))


def view_of(task: FakeTask) -> wire.TaskView:
    spec, done = task.spec, task.done
    cause = done.cause if done else None
    return wire.TaskView(
        task.id, task.entry.key, spec.job, spec.kind, task.state, cause, spec.priority, 0, None, None, 0.0, None, None
    )


def _outcome(task: FakeTask) -> tuple[str, str, bytes | None, str]:
    """Run the call as a worker's child does: state, cause, result, message."""
    payload = task.spec.payload
    if not isinstance(payload, Call):
        return "succeeded", "ok", None, ""
    try:
        function = _resolve(payload.path) if payload.path else pickle.loads(payload.function)
        args, kwargs = pickle.loads(task.entry.argument)
        return "succeeded", "ok", pickle.dumps(function(*args, **kwargs)), ""
    except Exception as error:
        return (
            "failed",
            "error",
            encode_raised(pickle.dumps(error), traceback.format_exc()),
            f"{type(error).__name__}: {error}",
        )


class DaemonThread:
    """A FakeDaemon in a thread of its own, for clients that block. Used as a context manager."""

    def __init__(self, **options: Any) -> None:
        self.daemon = FakeDaemon(**options)
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._end = asyncio.Event()
        async with self.daemon:
            self._ready.set()
            await self._end.wait()

    def __enter__(self) -> DaemonThread:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()

    @property
    def address(self) -> str:
        return self.daemon.address

    def call(self, function: Callable[..., T], *args: Any) -> T:
        """Call something of the daemon in its loop and return what it returned."""

        async def run() -> T:
            return function(*args)

        return self.run(run())

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    def until(self, condition: Callable[[FakeDaemon], bool]) -> None:
        """Wait until something is true of the daemon."""
        self.run(until(lambda: condition(self.daemon)))


async def until(condition: Callable[[], object]) -> None:
    """Let the loop turn until something is true."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - nobody tells of most of these
            await asyncio.sleep(0.0005)


def raw_frame(body: bytes) -> bytes:
    """Put a length before any bytes."""
    return len(body).to_bytes(PREFIX_BYTES, "big") + body
