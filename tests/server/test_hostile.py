"""Peers that mean harm, at a real daemon: it answers or closes, stays small, and others are served meanwhile."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from itertools import count

import msgspec
import pytest
from helpers import Cluster, wait_until

from schedd.address import parse_address
from schedd.core.model import HostUsage, TaskId
from schedd.wire import messages as m
from schedd.wire.framing import FRAME_BYTES_MAX, encode_frame

from .peers import CLIENT_HELLO, RawClient, RawPeer, RawWorker, greeting

MB = 1024 * 1024
#: What a daemon may need beside what it has at rest.
GROWTH_BYTES_MAX = 150 * MB


@pytest.fixture
def small(shared: Cluster) -> Iterator[None]:
    """The daemon is not much larger afterwards."""
    before = shared.daemon.memory_bytes()
    yield
    assert shared.daemon.memory_bytes() - before < GROWTH_BYTES_MAX


def prefix(size: int) -> bytes:
    return size.to_bytes(4, "big")


def raw(body: bytes) -> bytes:
    return prefix(len(body)) + body


def tagged(name: str, rest: bytes, fields: int) -> bytes:
    """A frame of one message, whose last field is what follows."""
    return raw(b"\x91" + bytes([0x91 + fields]) + msgspec.msgpack.encode(name) + rest)


#: Each has more in it than may be, and little that says so. What follows an array is left out: nobody may look for it.
BOMBS = {
    "messages": raw(b"\xdd" + prefix(m.MESSAGES_MAX + 1) + b"\xc0" * 20),
    "four billion entries": tagged("Submit", b"\x01\x90\xdd\xff\xff\xff\xff", 3),
    "entries": tagged("Submit", b"\x01\x90\xdd" + prefix(m.ITEMS_MAX + 1) + b"\x91\x00" * (m.ITEMS_MAX + 1), 3),
    "priorities": tagged("SetPriorities", b"\x01\xdd" + prefix(m.ITEMS_MAX + 1) + b"\x92\x01\x01" * m.ITEMS_MAX, 2),
}


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("bomb", BOMBS)
def test_length_bomb(address: str, client: RawClient, bomb: str) -> None:
    with RawClient(address) as peer:
        peer.write(BOMBS[bomb])
        refused = peer.expect_refusal()
    assert refused.code == m.BAD_REQUEST
    assert isinstance(client.ask(m.GetStats), m.Stats)


@pytest.mark.usefixtures("small")
def test_large_frames_that_are_announced_and_never_sent(address: str, client: RawClient) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(50):
            peer = stack.enter_context(RawClient(address))
            assert peer.welcome is not None
            peer.write(prefix(peer.welcome.frame_bytes_max) + b"\x91")
        assert isinstance(client.ask(m.GetStats), m.Stats)
    assert FRAME_BYTES_MAX * 50 > 10 * GROWTH_BYTES_MAX


def test_greeting_that_drips(address: str, client: RawClient) -> None:
    """A byte now and then is no sign of life: the time for the whole greeting is bounded."""
    began = time.monotonic()
    with RawPeer(address) as peer:
        peer.socket.settimeout(0.05)
        for byte in greeting(CLIENT_HELLO)[:-1]:
            with contextlib.suppress(TimeoutError):
                if not peer.fill() or peer.inbox:
                    break
            peer.write(bytes([byte]))
        assert peer.expect(m.Refused).code == "too_late"
    assert time.monotonic() - began < 10
    assert isinstance(client.ask(m.GetStats), m.Stats)


def test_half_open_connections(address: str, client: RawClient) -> None:
    """They shut down their side, or only connect: gone after the time for a greeting."""
    before = client.ask(m.GetStats).connections
    where = parse_address(address)
    peers = [socket.create_connection((where.host, where.port)) for _ in range(100)]
    for peer in peers[::2]:
        peer.shutdown(socket.SHUT_WR)
    wait_until(lambda: client.ask(m.GetStats).connections == before, what="all of them are gone")
    for peer in peers:
        peer.close()


def flood(peer: RawPeer, messages: Callable[[int], list[object]]) -> None:
    """Send until the daemon does not read any more, or cuts us off, or a lot is on its way."""
    numbers = count(1)
    peer.socket.settimeout(0.2)
    with contextlib.suppress(OSError):
        for _ in range(200):
            peer.write(encode_frame(messages(next(numbers))))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    "messages",
    [
        lambda n: [m.GetStats(n)] * 2000,
        lambda n: [m.ListTasks(n, m.Selection(), 5000, 0, True)] * 2000,
        lambda n: [m.CancelTasks(n, m.Selection(job="none"))] * 2000,
        lambda n: [m.ListHistory(n)] * 2000,
        lambda n: [m.ReadLog(n, TaskId(1))] * 2000,
    ],
    ids=["stats", "lists", "cancels", "history", "logs"],
)
def test_client_that_floods_and_never_reads(
    address: str, client: RawClient, messages: Callable[[int], list[object]]
) -> None:
    client.submit(2000, hold=True, job="flooded", argument=b"x" * 100)
    with RawClient(address) as peer:
        flood(peer, messages)
        for _ in range(20):
            assert isinstance(client.ask(m.GetStats), m.Stats)
    client.ask(m.CancelTasks, m.Selection(job="flooded"))


@pytest.mark.usefixtures("small")
def test_worker_that_floods(address: str, client: RawClient, name: str) -> None:
    with RawWorker(address, name) as worker:
        flood(worker, lambda n: [m.Heartbeat(HostUsage())] * 2000)
        assert isinstance(client.ask(m.GetStats), m.Stats)
        flood(worker, lambda n: [m.AttemptsFinished(n, [])] * 2000)
        assert isinstance(client.ask(m.GetStats), m.Stats)
