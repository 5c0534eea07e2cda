"""Who has said nothing yet: waits where it costs little, and cannot keep out who comes to speak."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from helpers import Cluster

from schedd.client.sync import Client
from schedd.server import lobby as module
from schedd.server.lobby import PER_MS, Lobby

from .peers import CLIENT_HELLO, RawPeer, greeting

BACKLOG = 128


class House:
    """A lobby, those who come to it, and what became of them. Only in a running loop."""

    def __init__(self, timeout_s: float = 60.0, listener: socket.socket | None = None) -> None:
        bound = listener or socket.socket()
        bound.bind(("127.0.0.1", 0))
        self.address = bound.getsockname()
        self.let_in: list[tuple[str, bytes]] = []
        self.left: list[str] = []
        self.lobby = Lobby(bound, BACKLOG, lambda: timeout_s, self._let_in, lambda sock, name: self.left.append(name))
        self._inside: list[socket.socket] = []
        self._outside: list[socket.socket] = []

    async def _let_in(self, sock: socket.socket, name: str, first: bytes) -> None:
        self._inside.append(sock)
        self.let_in.append((name, first))

    def come(self) -> socket.socket:
        outside = socket.create_connection(self.address)
        outside.setblocking(False)
        self._outside.append(outside)
        return outside

    def close(self) -> None:
        self.lobby.close()
        for sock in (*self._inside, *self._outside):
            sock.close()


@contextlib.contextmanager
def house(timeout_s: float = 60.0, listener: socket.socket | None = None) -> Iterator[House]:
    made = House(timeout_s, listener)
    try:
        yield made
    finally:
        made.close()


def name_of(sock: socket.socket) -> str:
    host, port = sock.getsockname()
    return f"{host}:{port}"


async def until(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - a socket tells of some of these only
            await asyncio.sleep(0.001)


def is_closed(sock: socket.socket) -> bool:
    try:
        return sock.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


@pytest.mark.asyncio
async def test_who_speaks_is_let_in() -> None:
    with house() as home:
        silent, speaker = home.come(), home.come()
        await until(lambda: len(home.lobby) == 2)
        speaker.sendall(b"hello")
        await until(lambda: home.let_in)
        assert home.let_in == [(name_of(speaker), b"h")]
        assert len(home.lobby) == 1
        assert not is_closed(silent)


@pytest.mark.asyncio
async def test_who_leaves_without_a_word_is_forgotten() -> None:
    with house() as home:
        shut, reset = home.come(), home.come()
        await until(lambda: len(home.lobby) == 2)
        shut.shutdown(socket.SHUT_WR)
        reset.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        reset.close()
        await until(lambda: not len(home.lobby))
        await until(lambda: is_closed(shut))
        assert not home.let_in
        assert not home.left


@pytest.mark.asyncio
async def test_who_is_silent_for_too_long_has_to_go() -> None:
    with house(timeout_s=0.05) as home:
        guests = [home.come() for _ in range(5)]
        await until(lambda: len(home.left) == 5)
        assert sorted(home.left) == sorted(map(name_of, guests))
        await until(lambda: all(map(is_closed, guests)))
        late = home.come()  # and it goes on
        await until(lambda: name_of(late) in home.left)


@pytest.mark.asyncio
async def test_the_oldest_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SILENT_MAX", 3)
    with house() as home:
        guests = []
        for number in range(10):
            guests.append(home.come())
            await until(lambda number=number: len(home.lobby) == min(3, number + 1))
            await until(lambda: all(map(is_closed, guests[:-3])))
        assert not any(map(is_closed, guests[-3:]))
        guests[-3].sendall(b"x")
        await until(lambda: home.let_in)
        assert home.let_in == [(name_of(guests[-3]), b"x")]


@pytest.mark.asyncio
async def test_who_has_just_spoken_need_not_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SILENT_MAX", 2)
    with house() as home:
        speaker, silent = home.come(), home.come()
        await until(lambda: len(home.lobby) == 2)
        speaker.sendall(b"x")
        home.come()
        home.lobby._accept()  # before the loop finds out who has spoken
        await until(lambda: home.let_in)
        assert home.let_in == [(name_of(speaker), b"x")]
        assert is_closed(silent)


@pytest.mark.asyncio
async def test_only_so_many_are_accepted_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    now = loop.time()
    with house() as home, monkeypatch.context() as frozen:
        for _ in range(3 * PER_MS):
            home.come()
        frozen.setattr(loop, "time", lambda: now)
        for step in (1, 2, 3):
            for _ in range(10 * PER_MS):
                await asyncio.sleep(0)
            assert len(home.lobby) == step * PER_MS
            now += 0.002


@pytest.mark.asyncio
@pytest.mark.parametrize("is_patient", [True, False])
async def test_who_is_being_let_in_as_it_closes(is_patient: bool) -> None:
    with house() as home:
        opened, inside = asyncio.Event(), asyncio.Event()

        async def let_in(sock: socket.socket, name: str, first: bytes) -> None:
            sock.close()
            opened.set()
            await inside.wait()
            home.let_in.append((name, first))

        home.lobby._let_in = let_in
        home.come().sendall(b"x")
        await asyncio.wait_for(opened.wait(), 20)
        entering = list(home.lobby._entering)
        home.lobby.close()
        if not is_patient:
            home.lobby.turn_away()
        inside.set()
        await asyncio.wait(entering)
        assert bool(home.let_in) is is_patient


class Short(socket.socket):
    """One that has no descriptor for another connection as long as it is told so."""

    is_short = True

    def accept(self) -> Any:
        if self.is_short:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return super().accept()


@pytest.mark.asyncio
async def test_the_last_descriptor_can_be_used() -> None:
    """Without one the kernel refuses also where nobody waits: for nobody nobody has to go."""
    listener = Short()
    with house(listener=listener) as home:
        accept, listener.is_short = listener.accept, False

        def accept_one() -> Any:
            found = accept()
            listener.is_short = True
            return found

        listener.accept = accept_one  # type: ignore[method-assign]
        only = home.come()
        await until(lambda: len(home.lobby) == 1)
        assert not is_closed(only)
        only.sendall(b"x")
        await until(lambda: home.let_in)


@pytest.mark.asyncio
async def test_without_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "NO_DESCRIPTOR_PAUSE_S", 0.01)
    listener = Short()
    with house(listener=listener) as home:
        listener.is_short = False
        first = home.come()
        await until(lambda: len(home.lobby) == 1)
        listener.is_short = True
        second = home.come()
        await until(lambda: is_closed(first))  # who is silent goes first
        listener.is_short = False
        second.sendall(b"x")
        await until(lambda: home.let_in)


def test_silent_ones_take_no_connection_from_others(cluster: Cluster) -> None:
    address = cluster.start_daemon("[server]\nconnections_max = 3\n").address
    silent = [RawPeer(address) for _ in range(20)]
    with Client(address) as client:
        assert client.stats().connections == 1
        speaking = [RawPeer(address) for _ in range(3)]
        for peer in speaking[:2]:
            peer.greet()
        speaking[2].write(greeting(CLIENT_HELLO))
        assert speaking[2].expect_refusal().code == "too_many_connections"
    for peer in silent + speaking:
        peer.socket.close()
