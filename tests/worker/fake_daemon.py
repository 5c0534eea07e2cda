"""A daemon that says what a test tells it to, and remembers what the worker said."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from schedd.address import Address
from schedd.core.model import DEFAULT_RULES, NO_REQUIREMENTS, Payload, TaskId, TaskRequirements, TaskRules
from schedd.wire.framing import FrameReader, encode_frame
from schedd.wire.messages import (
    PROTOCOL,
    AckFinished,
    AttemptFinished,
    AttemptReport,
    AttemptReports,
    AttemptsFinished,
    AttemptsStarted,
    AttemptStarted,
    Dispatch,
    Heartbeat,
    HeartbeatReply,
    Hello,
    Refused,
    Welcome,
    WireAttempt,
    WireSpec,
    WorkerGoodbye,
    WorkerHello,
    decode_from_worker,
    decode_hello,
)

_T = TypeVar("_T")


class FakeDaemon:
    """Listens on a free port. Everything a worker says is in the lists below, in order, over all connections."""

    def __init__(self) -> None:
        self.hellos: list[WorkerHello] = []
        self.messages: list[Any] = []
        self.started: dict[tuple[int, int], AttemptStarted] = {}
        self.finished: dict[tuple[int, int], AttemptFinished] = {}
        self.finished_count = 0
        self.reports: list[AttemptReport] = []
        self.goodbyes = 0
        self.frames = 0
        self.acks = True
        #: Hangs up on whoever comes.
        self.is_away = False
        self.answers_heartbeats = True
        self.refusals: list[Refused] = []
        self.heartbeat_interval_s = 5.0
        self._changed = asyncio.Condition()
        self._server: asyncio.Server | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._ids = itertools.count(1)
        self._handlers: set[asyncio.Task[None]] = set()

    @property
    def is_welcomed(self) -> bool:
        """A worker is connected."""
        return self._writer is not None

    @property
    def address(self) -> Address:
        assert self._server is not None
        host, port = self._server.sockets[0].getsockname()[:2]
        return Address(host, port)

    async def listen(self) -> None:
        # A plain function: a coroutine's task would be the server's own, out of reach when the test ends.
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        self.hang_up()
        await self._server.wait_closed()
        for handler in self._handlers:
            handler.cancel()
        await asyncio.gather(*self._handlers, return_exceptions=True)

    def hang_up(self) -> None:
        """End the connection without a word."""
        if self._writer is not None:
            self._writer.transport.abort()
            self._writer = None

    def send(self, *messages: Any) -> None:
        assert self._writer is not None
        self._writer.write(encode_frame(messages))

    def dispatch(
        self,
        payload: Payload,
        arguments: list[bytes] | None = None,
        *,
        requirements: TaskRequirements = NO_REQUIREMENTS,
        rules: TaskRules = DEFAULT_RULES,
        job: str = "",
        kind: str = "",
    ) -> list[TaskId]:
        """Send new tasks of one spec, one for each argument. Returns their ids; attempts are number 1."""
        ids = [TaskId(next(self._ids)) for _ in arguments or [b""]]
        spec = WireSpec(payload, requirements, rules, kind, job)
        pairs = zip(ids, arguments or [b""], strict=True)
        self.send(Dispatch([spec], [WireAttempt(task_id, 1, 0, argument) for task_id, argument in pairs]))
        return ids

    async def run(self, payload: Payload, argument: bytes = b"", **options: Any) -> AttemptFinished:
        """Run one task to its end."""
        [task_id] = self.dispatch(payload, [argument], **options)
        return await self.end_of(task_id)

    async def end_of(self, task_id: int, attempt: int = 1) -> AttemptFinished:
        return await self.wait(lambda: self.finished.get((task_id, attempt)))

    async def start_of(self, task_id: int, attempt: int = 1) -> AttemptStarted:
        return await self.wait(lambda: self.started.get((task_id, attempt)))

    def of_type(self, kind: type[_T]) -> list[_T]:
        return [message for message in self.messages if isinstance(message, kind)]

    async def wait(self, condition: Callable[[], _T | None], timeout_s: float = 20.0) -> _T:
        """Wait until something that the worker says makes `condition` true. Returns what it answered."""
        async with asyncio.timeout(timeout_s), self._changed:
            while not (answer := condition()):
                await self._changed.wait()
            return answer

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.is_away:
            writer.transport.abort()
            return
        handler = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._handlers.add(handler)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        frames = FrameReader()
        greeted = False
        try:
            while data := await reader.read(65536):
                for body in frames.feed(data):
                    if greeted:
                        self._take(decode_from_worker(body), writer)
                    else:
                        greeted = self._greet(decode_hello(body), writer)
                async with self._changed:
                    self._changed.notify_all()
        except ConnectionError:
            pass
        finally:
            writer.close()

    def _greet(self, hello: Hello, writer: asyncio.StreamWriter) -> bool:
        assert isinstance(hello.peer, WorkerHello)
        self.hellos.append(hello.peer)
        if self.refusals:
            writer.write(encode_frame([self.refusals.pop(0)]))
            writer.close()
            return True
        self._writer = writer
        writer.write(encode_frame([Welcome(PROTOCOL, "0", 7, "fifo", self.heartbeat_interval_s)]))
        return True

    def _take(self, messages: list[Any], writer: asyncio.StreamWriter) -> None:
        self.messages += messages
        self.frames += 1
        for message in messages:
            if isinstance(message, AttemptsStarted):
                self.started |= {(a.task_id, a.attempt): a for a in message.attempts}
            elif isinstance(message, AttemptsFinished):
                self.finished |= {(a.task_id, a.attempt): a for a in message.attempts}
                self.finished_count += len(message.attempts)
                if self.acks:
                    writer.write(encode_frame([AckFinished(message.seq)]))
            elif isinstance(message, AttemptReports):
                self.reports += message.reports
            elif isinstance(message, Heartbeat) and self.answers_heartbeats:
                writer.write(encode_frame([HeartbeatReply(self.heartbeat_interval_s)]))
            elif isinstance(message, WorkerGoodbye):
                self.goodbyes += 1


@asynccontextmanager
async def fake_daemon() -> AsyncIterator[FakeDaemon]:
    daemon = FakeDaemon()
    await daemon.listen()
    try:
        yield daemon
    finally:
        await daemon.close()


async def until(condition: Callable[[], Awaitable[bool] | bool], timeout_s: float = 20.0) -> None:
    """Wait until a condition of the machine (not of the daemon) holds."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - the machine sends no event
            await asyncio.sleep(0.005)
