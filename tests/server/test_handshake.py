"""What a peer may and may not say before the daemon knows it."""

from __future__ import annotations

import random
import socket
import time

import msgspec
import pytest
from helpers import wait_until

import schedd
from schedd.core.model import WorkerId, WorkerResources
from schedd.wire import messages as m
from schedd.wire.framing import FRAME_BYTES_MAX, HELLO_BYTES_MAX, encode_frame

from .peers import CLIENT_HELLO, RawClient, RawPeer, RawWorker, greeting


def prefixed(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


def hello_of(peer: object) -> bytes:
    return prefixed(msgspec.msgpack.encode({"protocol": m.PROTOCOL, "version": "test", "peer": peer}))


def test_client_is_welcomed_with_what_it_must_know(address: str) -> None:
    with RawPeer(address) as peer:
        welcome = peer.greet()
    assert welcome.protocol == m.PROTOCOL
    assert welcome.version == schedd.__version__
    assert welcome.policy == "priority"
    assert welcome.epoch == 1, "the first start on its journal"
    assert welcome.heartbeat_interval_s == 0.5
    assert FRAME_BYTES_MAX * 0.99 < welcome.frame_bytes_max < FRAME_BYTES_MAX


@pytest.mark.parametrize("protocol", [0, m.PROTOCOL - 1, m.PROTOCOL + 1, -1, 2**63])
def test_other_protocol_is_refused_with_both_versions(address: str, protocol: int) -> None:
    with RawPeer(address) as peer:
        peer.write(greeting(m.Hello(protocol, "9.9.9", m.ClientHello())))
        refused = peer.expect_refusal()
    assert refused.code == m.BAD_VERSION
    assert "9.9.9" in refused.message
    assert schedd.__version__ in refused.message
    assert refused.hint


def test_greeting_of_a_later_version_with_more_fields_is_understood(address: str) -> None:
    with RawPeer(address) as peer:
        later = {"type": "client", "program": "x", "colour": "red", "more": [{"deep": [1]}]}
        peer.write(hello_of(later))
        assert peer.expect(m.Welcome)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\xff" * 64,
        (HELLO_BYTES_MAX + 1).to_bytes(4, "big"),
        prefixed(b""),
        prefixed(b"\xc1"),
        prefixed(b"nonsense"),
        prefixed(msgspec.msgpack.encode([])),
        prefixed(msgspec.msgpack.encode({"protocol": 1})),
        prefixed(msgspec.msgpack.encode({"protocol": "1", "version": 1, "peer": {}})),
        prefixed(b"\x91" * 200_000),
        prefixed(b"\x81\xa1x" * 50_000 + b"\xc0"),
        prefixed(b"\xdd\xff\xff\xff\xff"),
        prefixed(b"\xdf\xff\xff\xff\xff"),
        prefixed(b"\xc6\xff\xff\xff\xff"),
        prefixed(random.Random(1).randbytes(1000)),
        encode_frame([m.GetStats(1)]),
        hello_of({"type": "daemon"}),
        hello_of({"type": "client", "program": 3}),
        hello_of({"type": "client", "program": "\0"}).replace(b"\xa1\0", b"\xa1\xff"),
        hello_of({"type": "worker", "name": "x"}),
        hello_of({"type": "worker", "name": "x", "incarnation": "1", "resources": {"cpus": -1}}),
        hello_of({"type": "worker", "name": "x", "incarnation": "1", "resources": {"cpus": float("nan")}}),
        hello_of({"type": "worker", "name": "x", "incarnation": "1", "resources": {"cpus": float("inf")}}),
        hello_of({"type": "worker", "name": "x", "incarnation": "1", "resources": {"ram_gb": 1e300}}),
        hello_of({"type": "worker", "name": "x", "incarnation": "1", "resources": {"num_gpus": 2**62}}),
        hello_of({"type": "worker", "name": "x", "incarnation": "1", "resources": {"num_gpus": True}}),
        hello_of({"type": "worker", "name": "x", "incarnation": "1", "resources": {"gpus": [["a"], ["a"]]}}),
        hello_of({"type": "worker", "name": "x", "incarnation": "1", "resources": {"gpus": [["a", "", -1]]}}),
        hello_of({"type": "worker", "name": "x", "incarnation": "1", "resources": {"custom": {"a": -1}}}),
        hello_of({"type": "worker", "name": "x", "incarnation": "1", "resources": {}, "holds": [[1]]}),
        hello_of({"type": "worker", "name": "", "incarnation": "1", "resources": {}}),
        hello_of({"type": "worker", "name": "x" * 201, "incarnation": "1", "resources": {}}),
        hello_of({"type": "worker", "name": "two\nlines", "incarnation": "1", "resources": {}}),
        hello_of({"type": "worker", "name": "\x1b[31m", "incarnation": "1", "resources": {}}),
    ],
)
def test_garbage_is_refused_and_others_go_on(address: str, client: RawClient, data: bytes) -> None:
    with RawPeer(address) as peer:
        peer.write(data)
        refused = peer.expect_refusal()
    assert refused.code == m.BAD_REQUEST
    assert refused.message
    assert isinstance(client.ask(m.GetStats), m.Stats)
    assert not any(row.name == "x" for row in client.ask(m.ListWorkers).workers)


@pytest.mark.parametrize("part", [b"", greeting(CLIENT_HELLO)[:2], greeting(CLIENT_HELLO)[:-1]])
def test_half_a_greeting_and_then_silence(address: str, client: RawClient, part: bytes) -> None:
    with RawPeer(address) as peer:
        started = time.monotonic()
        peer.write(part)
        assert peer.expect_refusal().code == "too_late"
        assert 0.4 < time.monotonic() - started < 10
    assert isinstance(client.ask(m.GetStats), m.Stats)


def test_greeting_one_byte_at_a_time(address: str) -> None:
    with RawPeer(address) as peer:
        peer.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in greeting(CLIENT_HELLO):
            peer.write(bytes([byte]))
        assert peer.expect(m.Welcome)
        number = 7
        for byte in encode_frame([m.GetStats(number)]):
            peer.write(bytes([byte]))
        assert peer.expect(m.Stats).request == number


def test_frames_cut_at_every_byte(client: RawClient) -> None:
    client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    selection = m.Selection(states=["running"])
    two = encode_frame([m.ListTasks(1, selection), m.GetStats(2)]) + encode_frame([m.ListWorkers(3)])
    for cut in range(1, len(two)):
        client.write(two[:cut])
        client.write(two[cut:])
        assert isinstance(client.answer(1), m.TaskList)
        assert isinstance(client.answer(2), m.Stats)
        assert isinstance(client.answer(3), m.WorkerList)


def test_greeting_and_requests_in_one_packet(address: str) -> None:
    with RawPeer(address) as peer:
        peer.write(greeting(CLIENT_HELLO) + encode_frame([m.GetStats(1)]) + encode_frame([m.GetStats(2)]))
        assert peer.expect(m.Welcome)
        assert peer.expect(m.Stats).request == 1
        assert peer.expect(m.Stats).request == 2


def test_second_greeting_is_a_broken_protocol(client: RawClient) -> None:
    client.write(greeting(CLIENT_HELLO))
    assert client.expect_refusal().code == m.BAD_REQUEST


def test_peers_that_hang_up_at_any_point_leave_nothing(address: str, client: RawClient) -> None:
    before = client.ask(m.GetStats).connections
    frame = greeting(CLIENT_HELLO)
    for cut in range(0, len(frame), 5):
        with RawPeer(address) as peer:
            peer.write(frame[:cut])
    wait_until(lambda: client.ask(m.GetStats).connections == before, what="all connections are forgotten")


def test_connection_reset_instead_of_closed(address: str, client: RawClient) -> None:
    before = client.ask(m.GetStats).connections
    with RawPeer(address) as peer:
        peer.greet()
        peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    wait_until(lambda: client.ask(m.GetStats).connections == before, what="the connection is forgotten")


def test_worker_of_a_big_host_with_many_labels(address: str, name: str, client: RawClient) -> None:
    resources = WorkerResources(cpus=128, num_gpus=16, gpu_memory_gb=80, labels={f"label{i}": "x" for i in range(500)})
    with RawWorker(address, name, resources=resources) as worker:
        row = client.worker(worker.name)
        assert row is not None
        assert row.resources == resources


def test_name_in_other_letters(address: str, client: RawClient) -> None:
    with RawWorker(address, "Küche-東京-🚀"):
        assert client.worker(WorkerId("Küche-東京-🚀")) is not None


def test_peer_that_speaks_tls_is_told_that_this_port_does_not(address: str, client: RawClient) -> None:
    with RawPeer(address) as peer:
        peer.write(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64))
        refused = peer.expect_refusal()
    assert refused.code == m.TLS_NOT_SPOKEN
    assert "TLS" in refused.message
    assert isinstance(client.ask(m.GetStats), m.Stats)
