"""A daemon that speaks the wire and believes everything: it records requests and answers from a list of tasks."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from schedd.core.model import Command, TaskId, TaskRequirements, TaskRules, WorkerId, WorkerResources
from schedd.wire import messages as wire
from schedd.wire.framing import FrameReader, encode_frame

Request = TypeVar("Request")
FINAL = ("succeeded", "failed", "cancelled")


def view(task_id: int, state: str = "queued", **fields: Any) -> wire.TaskView:
    defaults: dict[str, Any] = {
        "key": None,
        "job": "",
        "kind": "python",
        "cause": {"succeeded": "ok", "failed": "error", "cancelled": "cancelled"}.get(state),
        "priority": 0.0,
        "attempt": 0,
        "worker": None,
        "exit_code": None,
        "submitted_at": 1000.0,
        "started_at": None,
        "finished_at": None,
    }
    return wire.TaskView(id=TaskId(task_id), state=state, **{**defaults, **fields})


def detail(**fields: Any) -> wire.TaskDetail:
    defaults: dict[str, Any] = {
        "payload": Command(["python", "train.py"], cwd="/data"),
        "argument": b"",
        "requirements": TaskRequirements(),
        "rules": TaskRules(),
        "after": [],
        "missing": [],
        "attempts": [],
        "devices": [],
        "not_before": None,
        "result": None,
    }
    return wire.TaskDetail(**{**defaults, **fields})


def worker(name: str, **fields: Any) -> wire.WorkerView:
    defaults: dict[str, Any] = {
        "status": "busy",
        "host": "node1",
        "pid": 42,
        "resources": WorkerResources(cpus=8, num_gpus=4, gpu_model="A100"),
        "reserved_cpus": 2.0,
        "reserved_ram_gb": 0.0,
        "reserved_gpus": 1.0,
        "running": 2,
        "backlog": 1,
        "load": 0.5,
        "finished": 10,
        "failed": 1,
        "joined_at": 1000.0,
        "last_seen_s": 0.5,
    }
    return wire.WorkerView(name=WorkerId(name), **{**defaults, **fields})


STATS = wire.Stats(
    request=0,
    version="0.1.0",
    policy="priority",
    uptime_s=100.0,
    address="127.0.0.1:7077",
    states={"queued": 3, "running": 2, "succeeded": 10},
    workers={"busy": 1},
    submitted_total=15,
    finished_total=10,
    attempts_by_cause={"ok": 10},
    steals_total=0,
    stale_total=0,
    placements_total=12,
    loop_lag_s=0.0001,
    connections=2,
)


BELIEFS = (
    wire.Belief("train", "T4", 90.0, 60.0, 140.0, 0.5, 3.0),
    wire.Belief("train", "A100", 30.0, 20.0, 45.0, 1.0, 12.0),
    wire.Belief("eval", "", 0.25, 0.2, 0.3, 1.0, 7.0),
)
POLICY = wire.PolicyState(
    request=0,
    name="work_stealing",
    steals=wire.StealsView(
        enabled=True,
        threshold=3,
        tasks=40,
        asked=9,
        refused=1,
        measured=8,
        unmeasured=1,
        paid=6,
        known=4,
        expected_s=10.0,
        real_of_known_s=8.0,
        real_s=12.0,
        recent=[
            wire.StealGain(TaskId(7), "train", WorkerId("w1"), WorkerId("w2"), 5, 2.5, 1.5),
            wire.StealGain(TaskId(8), "new", WorkerId("w1"), WorkerId("w3"), 1, None, -0.25),
        ],
    ),
)


class FakeDaemon:
    """Runs in a thread. `answer` overrides how a kind of request is answered."""

    def __init__(self) -> None:
        self.tasks: dict[int, tuple[wire.TaskView, wire.TaskDetail]] = {}
        self.workers: list[wire.WorkerView] = []
        self.jobs: list[wire.JobView] = []
        self.log = b""
        self.warnings: list[str] = []
        self.requests: list[Any] = []
        self.answers: dict[type[Any], Callable[[Any], Any]] = {}
        self._changed = threading.Condition()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fake daemon")
        self.address = ""

    # ------------------------------------------------------------------------------------------------ for the tests

    def add(self, task: wire.TaskView, more: wire.TaskDetail | None = None) -> None:
        self.tasks[task.id] = (task, more or detail())

    def last(self, kind: type[Request]) -> Request:
        found: Request = [request for request in self.requests if isinstance(request, kind)][-1]
        return found

    def wait_for(self, kind: type[Any], within_s: float = 30.0) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: any(isinstance(r, kind) for r in self.requests), within_s)

    def fail(self, kind: type[Any], code: str, message: str, hint: str = "") -> None:
        self.answers[kind] = lambda request: wire.RequestFailed(request.request, code, message, hint)

    # ---------------------------------------------------------------------------------------------------- the thread

    def __enter__(self) -> FakeDaemon:
        self._thread.start()
        assert self._started.wait(30)
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def stop(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()
        self._handlers: set[asyncio.Task[None] | None] = set()
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        self.address = f"{host}:{port}"
        self._started.set()
        await self._stop.wait()
        server.close()
        for writer in self._writers:
            writer.close()
        # A handler that is still reading sees the end of its stream; asyncio.run would cancel it, noisily.
        await asyncio.gather(*filter(None, self._handlers))

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        self._handlers.add(asyncio.current_task())
        frames, greeted = FrameReader(), False
        while data := await self._read(reader):
            for body in frames.feed(data):
                if greeted:
                    writer.write(encode_frame([m for r in wire.decode_from_client(body) for m in self._take(r)]))
                else:
                    wire.decode_hello(body)
                    greeted = True
                    writer.write(encode_frame([wire.Welcome(wire.PROTOCOL, "0.1.0", 7, "priority")]))
        writer.close()

    @staticmethod
    async def _read(reader: asyncio.StreamReader) -> bytes:
        try:
            return await reader.read(65536)
        except ConnectionResetError:  # a client that was interrupted
            return b""

    def _take(self, request: Any) -> list[Any]:
        with self._changed:
            self.requests.append(request)
            self._changed.notify_all()
        if override := self.answers.get(type(request)):
            answer = override(request)
            return answer if isinstance(answer, list) else [answer]
        return self._answer(request)

    def _selected(self, selection: wire.Selection) -> list[tuple[wire.TaskView, wire.TaskDetail]]:
        return [
            (task, more)
            for task, more in self.tasks.values()
            if (not selection.ids or task.id in selection.ids)
            and (selection.job is None or task.job == selection.job)
            and (not selection.states or task.state in selection.states)
            and not (selection.unfinished and task.state in FINAL)
        ]

    def _answer(self, request: Any) -> list[Any]:
        number = request.request
        match request:
            case wire.Submit(tasks=tasks):
                first = len(self.tasks) + 1
                for i in range(len(tasks)):
                    self.add(view(first + i))
                return [wire.Submitted(number, [TaskId(first + i) for i in range(len(tasks))], self.warnings)]
            case wire.ListTasks():
                found = [row for row in self._selected(request.selection) if row[0].id > request.after_id]
                page = found[: request.limit]
                details = [more for _, more in page] if request.detail else []
                return [wire.TaskList(number, [task for task, _ in page], details, len(found) > len(page))]
            case wire.ListJobs():
                return [wire.JobList(number, self.jobs)]
            case wire.ListWorkers():
                return [wire.WorkerList(number, self.workers)]
            case wire.GetStats():
                return [msgspec.structs.replace(STATS, request=number)]
            case wire.GetPolicy() | wire.GetKinds():
                policy = msgspec.structs.replace(POLICY, request=number)
                kinds = wire.Kinds(number, "adaptive", list(BELIEFS))
                return [policy if isinstance(request, wire.GetPolicy) else kinds]
            case wire.WatchTasks(selection=selection):
                tasks_ = [task for task, _ in self._selected(selection)]
                ends = [self._done(task) for task in tasks_ if task.state in FINAL]
                ids = [task.id for task in tasks_]
                return [wire.Watching(number, len(tasks_), len(ends), ids), wire.TasksDone(ends)]
            case wire.ReadLog(offset=offset, limit=limit):
                size = len(self.log)
                start = max(0, size + offset) if offset < 0 else min(offset, size)
                return [wire.LogData(number, self.log[start : start + limit], start, size, True, 1)]
            case wire.DrainWorkers(workers=names):
                return [wire.Changed(number, len(names))]
            case wire.ListHistory(limit=limit, cursor=cursor):
                ended = [row for row in self.tasks.values() if row[0].finished_at and row[0].id > cursor[0]]
                views, records = [row[0] for row in ended[:limit]], [row[1].attempts for row in ended[:limit]]
                more = (int(views[-1].id), 0) if len(ended) > len(views) else (0, 0)
                return [wire.HistoryList(number, views, records, more)]
            case wire.BackUp(path=path):
                return [wire.BackedUp(number, path, 12_345)]
            case wire.SetPriorities(priorities=priorities):
                return [wire.Changed(number, len(priorities))]
            case _:
                return [wire.Changed(number, len(self._selected(request.selection)))]

    @staticmethod
    def _done(task: wire.TaskView) -> wire.TaskDone:
        return wire.TaskDone(
            task.id, task.state, task.cause or "", None, task.message, task.exit_code, task.worker or "", task.attempt
        )
