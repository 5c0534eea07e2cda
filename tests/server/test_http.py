"""Questions over HTTP, well-behaved and not."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from schedd.server.http import EXCHANGES_MAX, REQUEST_BYTES_MAX, Answer, Site

T = TypeVar("T")

#: More than a socket's buffers hold.
LARGE = b"x" * 30_000_000


async def _hello() -> Answer:
    return Answer(200, b"hello\n")


async def _large() -> Answer:
    return Answer(200, LARGE)


async def _broken() -> Answer:
    raise RuntimeError("a bug")


@asynccontextmanager
async def served(timeout_s: float = 10.0) -> AsyncIterator[tuple[Site, int]]:
    site = Site({"/hello": _hello, "/large": _large, "/broken": _broken}, timeout_s)
    server = await asyncio.get_running_loop().create_server(site, "127.0.0.1", 0)
    try:
        yield site, server.sockets[0].getsockname()[1]
    finally:
        server.close()
        site.close()
        await _until(lambda: not site.open)


async def _until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not is_so():  # noqa: ASYNC110 - the site tells nobody
            await asyncio.sleep(0.001)


async def ask(port: int, data: bytes) -> bytes:
    """Send bytes; returns all that comes until the end of the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        try:
            return await asyncio.wait_for(reader.read(), 20)
        except ConnectionResetError:
            return b"reset"
    finally:
        writer.close()


async def answer_to(data: bytes) -> bytes:
    async with served() as (_, port):
        return await ask(port, data)


def run(body: Coroutine[Any, Any, T]) -> T:
    """Run on the loop that the daemon has."""
    return uvloop.run(body)


def test_answer_is_whole_and_the_connection_ends() -> None:
    answer = run(answer_to(b"GET /hello?x=1 HTTP/1.1\r\nHost: a\r\n\r\n"))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"Content-Length: 6" in head
    assert b"Connection: close" in head
    assert body == b"hello\n"


def test_head_has_the_length_and_no_body() -> None:
    answer = run(answer_to(b"HEAD /hello HTTP/1.1\r\nHost: a\r\n\r\n"))
    assert b"Content-Length: 6" in answer
    assert answer.endswith(b"\r\n\r\n")


def test_old_clients_are_answered() -> None:
    assert run(answer_to(b"GET /hello HTTP/1.0\r\n\r\n")).endswith(b"hello\n")


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        (b"GET /nothing HTTP/1.1", b"404"),
        (b"POST /hello HTTP/1.1", b"405"),
        (b"DELETE /hello HTTP/1.1", b"405"),
        (b"GET /hello SMTP/1.1", b"400"),
        (b"GET /broken HTTP/1.1", b"500"),
        (b"GET  /hello HTTP/1.1", b"400"),
        (b"\x00\xff\x16\x03", b"400"),
    ],
)
def test_others_get_an_error(request_line: bytes, status: bytes, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    answer = run(answer_to(request_line + b"\r\nHost: a\r\n\r\n"))
    assert answer[9:12] == status, answer


@pytest.mark.parametrize("target", [b"http://a/hello", b"HTTP://a:80/hello?x=/y", b"https://[::1]/hello"])
def test_target_in_the_absolute_form(target: bytes) -> None:
    assert run(answer_to(b"GET " + target + b" HTTP/1.1\r\nHost: a\r\n\r\n")).endswith(b"hello\n")


@pytest.mark.parametrize("target", [b"http://a", b"http://a?x=/hello", b"ftp://a/hello", b"/http://a/hello"])
def test_target_that_is_no_path_of_ours(target: bytes) -> None:
    assert run(answer_to(b"GET " + target + b" HTTP/1.1\r\nHost: a\r\n\r\n"))[9:12] == b"404"


def test_endless_blank_lines_are_refused() -> None:
    assert run(answer_to(b"\r\n" * REQUEST_BYTES_MAX))[9:12] == b"400"


@pytest.mark.parametrize("before", [b"", b"\r\n", b"\n\r\n"], ids=["nothing", "a line", "lines"])
def test_request_in_single_bytes_is_understood(before: bytes) -> None:
    async def body() -> bytes:
        async with served() as (_, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for byte in before + b"GET /hello HTTP/1.1\r\nHost: a\r\n\r\n":
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0)
            answer = await reader.read()
            writer.close()
            return answer

    assert run(body()).endswith(b"hello\n")


def test_endless_headers_are_refused() -> None:
    answer = run(answer_to(b"GET /hello HTTP/1.1\r\n" + b"X: " + b"a" * 2 * REQUEST_BYTES_MAX))
    assert answer[9:12] == b"431"


def test_more_than_one_request_gets_one_answer() -> None:
    once = b"GET /hello HTTP/1.1\r\nHost: a\r\n\r\n"
    assert run(answer_to(once * 50)).count(b"HTTP/1.1 200") <= 1


@pytest.mark.parametrize(
    "data", [b"", b"GET /hello HTTP/1.1\r\nHo", b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n"], ids=["mute", "half", "deaf"]
)
def test_who_is_slow_is_cut_off(data: bytes) -> None:
    async def body() -> None:
        async with served(timeout_s=0.1) as (site, port):
            _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
            writer.write(data)
            await _until(lambda: bool(site.open))
            await _until(lambda: not site.open)  # though nobody has read or said anything
            writer.close()

    run(body())


def test_flood_of_connections_is_told_to_come_later_and_others_are_served_after_it() -> None:
    async def body() -> bytes:
        async with served() as (site, port):
            flood = [await asyncio.open_connection("127.0.0.1", port) for _ in range(EXCHANGES_MAX)]
            await _until(lambda: len(site.open) == EXCHANGES_MAX)
            refused = await ask(port, b"GET /hello HTTP/1.1\r\nHost: a\r\n\r\n")
            assert refused == b"reset" or refused[9:12] == b"503"
            for _, writer in flood:
                writer.close()
            await _until(lambda: not site.open)
            return await ask(port, b"GET /hello HTTP/1.1\r\nHost: a\r\n\r\n")

    assert run(body()).endswith(b"hello\n")


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300), st.booleans())
def test_nothing_that_is_sent_does_harm(data: bytes, well_begun: bool) -> None:
    async def body() -> bytes:
        async with served(timeout_s=0.02) as (_, port):
            await ask(port, (b"GET /hello HTTP/1.1\r\n" if well_begun else b"") + data)
            return await ask(port, b"GET /hello HTTP/1.1\r\nHost: a\r\n\r\n")

    assert run(body()).endswith(b"hello\n")
