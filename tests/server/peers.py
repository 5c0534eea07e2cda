"""Peers that speak the protocol by hand over blocking sockets, well or badly."""

from __future__ import annotations

import contextlib
import itertools
import secrets
import socket
import ssl
from collections import deque
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec

from schedd.address import parse_address
from schedd.core.model import Call, Cause, HoldsAttempt, TaskId, TaskRules, WorkerId, WorkerResources
from schedd.tls import binding_of
from schedd.wire import messages as m
from schedd.wire.auth import NONCE_BYTES, Prover, Token
from schedd.wire.framing import Body, FrameReader, encode_frame

T = TypeVar("T")

TIMEOUT_S = 20.0


def greeting(hello: m.Hello) -> bytes:
    """The first frame of a peer: one message, no list around it."""
    body = msgspec.msgpack.encode(hello)
    return len(body).to_bytes(4, "big") + body


CLIENT_HELLO = m.Hello(m.PROTOCOL, "test", m.ClientHello("test"))


class RawPeer:
    """A connection to the daemon. Reads only when asked to; a context manager."""

    def __init__(self, address: str, *, tls: ssl.SSLContext | None = None) -> None:
        where = parse_address(address)
        if where.path:
            self.socket = socket.socket(socket.AF_UNIX)
            try:
                self.socket.connect(where.path)
            except OSError:
                self.socket.close()
                raise
        else:
            self.socket = socket.create_connection((where.host, where.port))
        self.socket.settimeout(TIMEOUT_S)
        self.certificate = b""
        if tls is not None:
            wrapped = tls.wrap_socket(self.socket, server_hostname=where.host)
            self.certificate = wrapped.getpeercert(True) or b""
            self.socket = wrapped
        self._reader = FrameReader()
        #: Messages that have come and that nobody has asked for.
        self.inbox: deque[Any] = deque()
        self.welcome: m.Welcome | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.socket.close()

    def write(self, data: bytes) -> None:
        self.socket.sendall(data)

    def send(self, *messages: Any) -> None:
        self.write(encode_frame(messages))

    def greet(self, hello: m.Hello = CLIENT_HELLO) -> m.Welcome:
        self.write(greeting(hello))
        self.welcome = self.expect(m.Welcome)
        return self.welcome

    def knock(self, token: Token) -> tuple[Prover, m.Challenge]:
        """Say that we have a token, and return who can prove it, with the daemon's challenge."""
        binding = binding_of(self.certificate) if self.certificate else b""
        prover = Prover(token, binding, secrets.token_bytes(NONCE_BYTES))
        self.write(encode_frame(prover.knock("test")))
        return prover, self.expect(m.Challenge)

    def greet_with(self, token: Token, hello: m.Hello = CLIENT_HELLO) -> m.Welcome:
        """Greet as who has a token, and make sure that the daemon knows it, too."""
        prover, challenge = self.knock(token)
        frame = greeting(hello)
        self.write(encode_frame(prover.prove(challenge, frame[4:])) + frame)
        self.welcome = self.expect(m.Welcome)
        prover.check(self.welcome)
        return self.welcome

    def _decode(self, body: Body) -> list[Any]:
        return m.decode_to_client(body)

    def fill(self) -> bool:
        """Read what has come, or wait for something; False at the end of the connection."""
        try:
            data = self.socket.recv(1 << 16)
        except ConnectionResetError:
            return False
        for body in self._reader.feed(data):
            self.inbox.extend(self._decode(body))
        return bool(data)

    def expect(self, kind: type[T]) -> T:
        """The next message of this kind; others stay in the inbox. Raises TimeoutError, EOFError."""
        while True:
            for message in self.inbox:
                if isinstance(message, kind):
                    self.inbox.remove(message)
                    return message
            if not self.fill():
                raise EOFError(f"the daemon closed the connection before it sent a {kind.__name__}: {self.inbox}")

    def expect_refusal(self) -> m.Refused:
        """A `Refused`, and then the end of the connection."""
        refused = self.expect(m.Refused)
        while self.fill():
            pass
        return refused

    def expect_silence(self, seconds: float) -> None:
        """Nothing comes for so long."""
        self.socket.settimeout(seconds)
        with contextlib.suppress(TimeoutError):
            while self.fill():
                pass
        self.socket.settimeout(TIMEOUT_S)


class RawClient(RawPeer):
    """A client that has greeted, with a token where it has one."""

    def __init__(self, address: str, token: Token | None = None, *, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(address, tls=tls)
        self._numbers = itertools.count(1)
        if token is None:
            self.greet()
        else:
            self.greet_with(token)

    def number(self) -> int:
        return next(self._numbers)

    def ask(self, kind: Any, *fields: Any) -> Any:
        """Send one request and return its answer, whatever it is."""
        number = self.number()
        self.send(kind(number, *fields))
        return self.answer(number)

    def answer(self, number: int) -> Any:
        while True:
            for message in self.inbox:
                if getattr(message, "request", None) == number:
                    self.inbox.remove(message)
                    return message
            if not self.fill():
                raise EOFError(f"the daemon closed the connection: {self.inbox}")

    def submit(self, count: int = 1, *, watch: bool = False, argument: bytes = b"", **fields: Any) -> list[TaskId]:
        """Submit equal tasks that nothing but a RawWorker can run; returns their ids."""
        fields.setdefault("payload", Call(path="test:nothing"))
        entries = [m.TaskEntry(0, argument)] * count
        answer = self.ask(m.Submit, [m.TaskSpec(**fields)], entries, watch)
        assert isinstance(answer, m.Submitted), answer
        return answer.ids

    def state_of(self, task_id: TaskId) -> str:
        return str(self.view(task_id).state)

    def view(self, task_id: TaskId) -> m.TaskView:
        answer = self.ask(m.ListTasks, m.Selection(ids=[task_id]))
        assert isinstance(answer, m.TaskList), answer
        return answer.tasks[0]

    def worker(self, name: str) -> m.WorkerView | None:
        rows = self.ask(m.ListWorkers).workers
        return next((row for row in rows if row.name == name), None)

    def ends(self, count: int) -> list[m.TaskDone]:
        """The next so many ends of tasks."""
        told: list[m.TaskDone] = []
        while len(told) < count:
            told += self.expect(m.TasksDone).tasks
        return told


class RawWorker(RawPeer):
    """A worker that does nothing by itself."""

    def __init__(
        self,
        address: str,
        name: str,
        *,
        cpus: float = 1,
        incarnation: str = "one",
        holds: list[HoldsAttempt] | None = None,
        resources: WorkerResources | None = None,
        session: int = 0,
    ) -> None:
        super().__init__(address)
        self.name = WorkerId(name)
        self._seq = 0
        self._pending: list[m.WireAttempt] = []
        #: All specs that were dispatched.
        self.specs: list[m.WireSpec] = []
        resources = resources or WorkerResources(cpus=cpus)
        peer = m.WorkerHello(self.name, incarnation, resources, holds=holds or [], session=session)
        self.greet(m.Hello(m.PROTOCOL, "test", peer))

    def _decode(self, body: Body) -> list[Any]:
        return m.decode_to_worker(body)

    def attempts(self, count: int = 1) -> list[m.WireAttempt]:
        """The next so many attempts that the daemon dispatches."""
        while len(self._pending) < count:
            dispatch = self.expect(m.Dispatch)
            self._pending += dispatch.attempts
            self.specs += dispatch.specs
        got, self._pending = self._pending[:count], self._pending[count:]
        return got

    def start(self, *attempts: m.WireAttempt) -> None:
        self.send(m.AttemptsStarted([m.AttemptStarted(a.task_id, a.attempt, 1) for a in attempts]))

    def finish(self, *attempts: m.WireAttempt, result: bytes | None = None, cause: Cause = Cause.OK) -> None:
        """Report ends, and wait until the daemon has them."""
        self._seq += 1
        ends = [m.AttemptFinished(a.task_id, a.attempt, cause, 1, 2, result) for a in attempts]
        self.send(m.AttemptsFinished(self._seq, ends))
        while self.expect(m.AckFinished).seq < self._seq:
            pass


RULES_ONCE = TaskRules(lost_limit=0)
