"""The greeting, requests, and every way in which a connection can end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from schedd import __version__
from schedd.address import Address, parse_address
from schedd.client import connection as connection_module
from schedd.client.connection import Connection, open_connection
from schedd.credentials import Credentials
from schedd.errors import ConnectionLost, LocalProtocolError, RemoteProtocolError, RequestRefused, ScheddError
from schedd.wire import messages as wire
from schedd.wire.framing import encode_frame

from .fake_daemon import FakeDaemon, Peer, raw_frame, until

pytestmark = pytest.mark.asyncio


async def connect(daemon: FakeDaemon) -> Connection:
    connection, _ = await open_connection(parse_address(daemon.address), "test")
    return connection


class Talker(asyncio.Protocol):
    """A peer that answers the first bytes with these, and then perhaps hangs up."""

    def __init__(self, data: bytes, hang_up: bool) -> None:
        self.data = data
        self.hang_up = hang_up
        self.transports: list[asyncio.Transport] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transports.append(transport)

    def data_received(self, data: bytes) -> None:
        self.transports[-1].write(self.data)
        if self.hang_up:
            self.transports[-1].close()


@asynccontextmanager
async def peer_that_says(data: bytes, *, hang_up: bool = False) -> AsyncIterator[Address]:
    talker = Talker(data, hang_up)
    server = await asyncio.get_running_loop().create_server(lambda: talker, "127.0.0.1", 0)
    try:
        yield Address("127.0.0.1", server.sockets[0].getsockname()[1])
    finally:
        for transport in talker.transports:
            transport.abort()
        server.close()
        await server.wait_closed()


# ------------------------------------------------------------------------------------------------------------- greeting


async def test_greeting(daemon: FakeDaemon) -> None:
    connection, welcome = await open_connection(parse_address(daemon.address), "test")
    assert welcome.epoch == 7
    hello = daemon.hellos[0]
    assert (hello.protocol, hello.version) == (wire.PROTOCOL, __version__)
    assert isinstance(hello.peer, wire.ClientHello)
    assert hello.peer.program == "test"
    assert hello.peer.host == socket.gethostname()
    connection.close()


async def test_nobody_listens() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    with pytest.raises(ConnectionLost, match=f"no daemon answers at 127.0.0.1:{port}") as caught:
        await open_connection(Address("127.0.0.1", port), "test")
    assert caught.value.hint == "start one with: schedd serve"


async def test_no_such_socket(tmp_path: Path) -> None:
    with pytest.raises(ConnectionLost, match=r"no daemon answers at unix:.*/none"):
        await open_connection(Address(path=str(tmp_path / "none")), "test")


async def test_unix_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    daemon = FakeDaemon()
    server = await asyncio.get_running_loop().create_unix_server(lambda: Peer(daemon), path)
    connection, _ = await open_connection(parse_address(f"unix:{path}"), "test")
    assert (await connection.request(wire.JobList, wire.ListJobs)).jobs == []
    connection.close()
    server.close()


async def test_daemon_of_another_protocol(daemon: FakeDaemon) -> None:
    daemon.greeting = wire.Welcome(99, "9.9", 7)
    with pytest.raises(RemoteProtocolError, match=f"schedd 9.9 with protocol 99, this client is schedd {__version__}"):
        await connect(daemon)


async def test_daemon_refuses_the_version(daemon: FakeDaemon) -> None:
    daemon.greeting = wire.Refused(wire.BAD_VERSION, "this daemon is schedd 9.9 with protocol 99")
    with pytest.raises(RequestRefused, match=r"schedd 9\.9 with protocol 99") as caught:
        await connect(daemon)
    assert caught.value.code == wire.BAD_VERSION
    assert f"this client is schedd {__version__} with protocol {wire.PROTOCOL}" in caught.value.hint


@pytest.mark.parametrize("data", [b"HTTP/1.1 400 Bad Request\r\n", raw_frame(b"\xc1"), raw_frame(b"\x91\x91\xa3Abc")])
async def test_peer_is_something_else(data: bytes) -> None:
    async with peer_that_says(data) as address:
        with pytest.raises(RemoteProtocolError):
            await open_connection(address, "test")


@pytest.mark.parametrize("data", [b"", b"\x00\x00"])
async def test_peer_hangs_up_instead_of_greeting(data: bytes) -> None:
    async with peer_that_says(data, hang_up=True) as address:
        with pytest.raises(ConnectionLost, match="ended the connection"):
            await open_connection(address, "test")


async def test_peer_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "GREETING_TIMEOUT_S", 0.05)
    async with peer_that_says(b"") as address:
        with pytest.raises(ConnectionLost, match=r"no greeting from .* within 0.05 s") as caught:
            await open_connection(address, "test")
        assert "may still be starting" in caught.value.hint


@pytest.mark.parametrize("ca", ["", "system"])
async def test_daemon_that_starts_is_waited_for_longer_than_a_connection(
    monkeypatch: pytest.MonkeyPatch, ca: str
) -> None:
    """Its socket has taken the connection already, as that does which a service manager keeps."""
    monkeypatch.setattr(connection_module, "CONNECT_TIMEOUT_S", 1.0)
    monkeypatch.setattr(connection_module, "GREETING_TIMEOUT_S", 1.2)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = Address("127.0.0.1", listening.getsockname()[1])
        with pytest.raises(ConnectionLost, match=r"no greeting from .* within 1.2 s"):
            await open_connection(address, "test", Credentials(ca=ca))


async def test_connection_that_nobody_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_: object, **__: object) -> None:
        await asyncio.get_running_loop().create_future()

    monkeypatch.setattr(connection_module, "CONNECT_TIMEOUT_S", 0.05)
    monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", never)
    with pytest.raises(ConnectionLost, match=r"no daemon answers at head:7077 within 0.05 s"):
        await open_connection(Address("head", 7077), "test")


async def test_greeting_cut_at_every_byte() -> None:
    frame = encode_frame([wire.Welcome(wire.PROTOCOL, "0.0", 7)])
    for cut in range(len(frame)):
        async with peer_that_says(frame[:cut], hang_up=True) as address:
            with pytest.raises(ConnectionLost):
                await open_connection(address, "test")


# ------------------------------------------------------------------------------------------------------------- requests


async def test_requests_of_one_turn_are_one_frame(daemon: FakeDaemon) -> None:
    connection = await connect(daemon)
    await asyncio.gather(*[connection.request(wire.JobList, wire.ListJobs) for _ in range(50)])
    assert (len(daemon.requests), daemon.frame_count) == (50, 1)
    connection.close()


async def test_more_requests_than_a_frame_may_hold(daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("schedd.client.connection.MESSAGES_MAX", 20)
    connection = await connect(daemon)
    await asyncio.gather(*[connection.request(wire.JobList, wire.ListJobs) for _ in range(50)])
    assert (len(daemon.requests), daemon.frame_count) == (50, 3)
    connection.close()


async def test_answers_in_any_order(daemon: FakeDaemon) -> None:
    connection = await connect(daemon)
    # To the first request the daemon says the answer to the second, and the other way round.
    daemon.override = lambda request: wire.Changed(3 - request.request, 3 - request.request)
    answers = [connection.request(wire.Changed, wire.DrainWorkers, [name]) for name in ("a", "b")]
    assert [answer.changed for answer in await asyncio.gather(*answers)] == [1, 2]
    connection.close()


async def test_declined_request(daemon: FakeDaemon) -> None:
    connection = await connect(daemon)
    daemon.override = lambda request: wire.RequestFailed(request.request, wire.UNKNOWN_JOB, "no job x", "look first")
    with pytest.raises(RequestRefused, match="no job x") as caught:
        await connection.request(wire.JobList, wire.ListJobs)
    assert (caught.value.code, caught.value.hint) == (wire.UNKNOWN_JOB, "look first")
    connection.close()


async def test_answer_of_the_wrong_kind(daemon: FakeDaemon) -> None:
    connection = await connect(daemon)
    with pytest.raises(RemoteProtocolError, match="answered ListJobs with JobList"):
        await connection.request(wire.WorkerList, wire.ListJobs)
    connection.close()


async def test_answer_to_a_request_that_was_given_up(daemon: FakeDaemon) -> None:
    connection = await connect(daemon)
    task = asyncio.ensure_future(connection.request(wire.JobList, wire.ListJobs))
    await asyncio.sleep(0)
    task.cancel()
    assert (await connection.request(wire.JobList, wire.ListJobs)).jobs == []
    assert connection.error is None
    connection.close()


async def test_request_above_the_bound_spares_the_others(daemon: FakeDaemon) -> None:
    daemon.greeting = wire.Welcome(wire.PROTOCOL, "0.0", 7, frame_bytes_max=10_000)
    connection = await connect(daemon)
    large = connection.request(wire.Changed, wire.DrainWorkers, ["x" * 20_000])
    small = connection.request(wire.JobList, wire.ListJobs)
    answers = await asyncio.gather(large, small, return_exceptions=True)
    assert isinstance(answers[0], LocalProtocolError)
    assert "above the bound of 10000" in str(answers[0])
    assert isinstance(answers[1], wire.JobList)
    connection.close()


async def test_requests_wait_while_the_socket_is_full(daemon: FakeDaemon) -> None:
    connection = await connect(daemon)
    connection.pause_writing()
    told = []
    connection.on_writable = lambda: told.append(True)
    request = asyncio.ensure_future(connection.request(wire.JobList, wire.ListJobs))
    await asyncio.sleep(0.01)
    assert daemon.requests == []
    connection.resume_writing()
    assert (await request).jobs == []
    assert told == [True]
    connection.close()


# ------------------------------------------------------------------------------------------------------------------ end


async def test_daemon_goes_away(daemon: FakeDaemon) -> None:
    connection = await connect(daemon)
    lost: list[ScheddError] = []
    connection.on_lost = lost.append
    asyncio.get_running_loop().call_soon(daemon.hang_up)
    with pytest.raises(ConnectionLost, match="ended the connection") as caught:
        await connection.request(wire.JobList, wire.ListJobs)
    assert lost == [caught.value]
    with pytest.raises(ConnectionLost):
        await connection.request(wire.JobList, wire.ListJobs)


async def test_daemon_refuses_later(daemon: FakeDaemon) -> None:
    connection = await connect(daemon)
    daemon.override = lambda request: wire.Refused(wire.SHUTTING_DOWN, "the daemon stops", "try again")
    with pytest.raises(RequestRefused, match="the daemon stops"):
        await connection.request(wire.JobList, wire.ListJobs)


async def test_daemon_talks_nonsense(daemon: FakeDaemon) -> None:
    connection = await connect(daemon)
    daemon.peers[0].transport.write(raw_frame(b"\x93nonsense"))
    await until(lambda: connection.error)
    with pytest.raises(RemoteProtocolError, match="a frame cannot be decoded"):
        await connection.request(wire.JobList, wire.ListJobs)


async def test_close_ends_what_waits(daemon: FakeDaemon) -> None:
    connection = await connect(daemon)
    request = asyncio.ensure_future(connection.request(wire.JobList, wire.ListJobs))
    await asyncio.sleep(0)
    connection.close()
    with pytest.raises(ConnectionLost, match="closed by this client"):
        await request
