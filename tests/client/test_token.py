"""A client or worker with a token takes nobody for the daemon who does not know it, too."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from schedd.address import Address
from schedd.client.connection import open_connection
from schedd.core.model import WorkerId, WorkerResources
from schedd.credentials import Credentials
from schedd.errors import AuthenticationError, RemoteProtocolError
from schedd.wire.auth import Role, Verifier, answer, make_token, transcript, verifier_of
from schedd.wire.framing import FrameReader, encode_frame
from schedd.wire.messages import (
    PROTOCOL,
    Challenge,
    Hello,
    Knock,
    ToWorker,
    Welcome,
    WorkerHello,
    decode_hello,
    decode_proof,
)
from schedd.worker.connection import Connection

TOKEN = make_token(Role.WORKER, bytes(40))
VERIFIER = verifier_of(TOKEN, "w")
OTHER = verifier_of(make_token(Role.WORKER, b"\x01" * 40), "w")
NONCE = b"d" * 24


class Stranger(asyncio.Protocol):
    """Answers a knock with a challenge or not, and a proof with a welcome that this verifier has signed."""

    def __init__(self, verifier: Verifier | None, *, challenges: bool = True) -> None:
        self._verifier = verifier
        self._challenges = challenges
        self._reader = FrameReader()
        self._knock: Knock | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        for body in self._reader.feed(data):
            if self._knock is None:
                hello = decode_hello(body)
                assert isinstance(hello.peer, Knock)
                self._knock = hello.peer
                self._say(Challenge(NONCE) if self._challenges else Welcome(PROTOCOL, "", 1))
            elif self._challenges:
                self._challenges = False
                said = transcript(Role.WORKER, TOKEN.id, (self._knock.nonce, NONCE), decode_proof(body).digest, b"")
                proof = answer(self._verifier, said) if self._verifier is not None else b""
                self._say(Welcome(PROTOCOL, "", 1, proof=proof))

    def _say(self, message: object) -> None:
        self._transport.write(encode_frame([message]))  # type: ignore[attr-defined]


@asynccontextmanager
async def listening(make: Callable[[], asyncio.Protocol]) -> AsyncIterator[Address]:
    server = await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0)
    async with server:
        yield Address("127.0.0.1", server.sockets[0].getsockname()[1])


FALSE: list[Callable[[], Stranger]] = [
    lambda: Stranger(OTHER),
    lambda: Stranger(None),
    lambda: Stranger(None, challenges=False),
]


@pytest.mark.asyncio
async def test_client_of_the_true_daemon() -> None:
    async with listening(lambda: Stranger(VERIFIER)) as where:
        connection, welcome = await open_connection(where, "test", Credentials(TOKEN))
        assert welcome.proof
        connection.close()


@pytest.mark.asyncio
@pytest.mark.parametrize("make", FALSE)
async def test_client_of_a_false_daemon(make: Callable[[], Stranger]) -> None:
    async with listening(make) as where:
        with pytest.raises(AuthenticationError, match="has not proven"):
            await open_connection(where, "test", Credentials(TOKEN))


@pytest.mark.asyncio
async def test_client_without_a_token_is_asked_to_prove_one() -> None:
    class Asks(Stranger):
        def data_received(self, data: bytes) -> None:
            self._say(Challenge(NONCE))

    async with listening(lambda: Asks(VERIFIER)) as where:
        with pytest.raises(RemoteProtocolError, match="nobody has named"):
            await open_connection(where, "test")


async def greeted(where: Address) -> tuple[list[ToWorker], Connection, str | None]:
    """What a worker with a token gets to hear, and why the connection ended, if it did."""
    heard: list[ToWorker] = []
    loop = asyncio.get_running_loop()
    welcomed = loop.create_future()

    def take(messages: list[ToWorker]) -> None:
        heard.extend(messages)
        if any(isinstance(message, Welcome) for message in messages):
            welcomed.set_result(None)

    _, connection = await loop.create_connection(lambda: Connection(where, take, lambda: None), where.host, where.port)
    hello = Hello(PROTOCOL, "test", WorkerHello(WorkerId("w"), "1", WorkerResources()))
    connection.greet(hello, TOKEN)
    await asyncio.wait([welcomed, connection.lost], return_when=asyncio.FIRST_COMPLETED)
    reason = connection.lost.result() if connection.lost.done() else None
    connection.abort("over")
    await connection.lost
    return heard, connection, reason


@pytest.mark.asyncio
async def test_worker_of_the_true_daemon() -> None:
    async with listening(lambda: Stranger(VERIFIER)) as where:
        heard, connection, reason = await greeted(where)
    assert [type(message) for message in heard] == [Challenge, Welcome]
    assert (connection.error, reason) == (None, None)


@pytest.mark.asyncio
@pytest.mark.parametrize("make", FALSE)
async def test_worker_of_a_false_daemon(make: Callable[[], Stranger]) -> None:
    async with listening(make) as where:
        heard, connection, reason = await greeted(where)
    assert not any(isinstance(message, Welcome) for message in heard)
    assert isinstance(connection.error, AuthenticationError)
    assert reason is not None
    assert "has not proven" in reason
