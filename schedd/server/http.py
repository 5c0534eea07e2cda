"""A few questions over HTTP: GET and HEAD of known paths, one to a connection. h11 reads and writes the protocol.

Whoever is at the other end may be hostile: what it sends before its question is complete is bounded, so is the time
from its connect to the last byte of the answer, and the number of those who ask at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import cast

import h11
from msgspec import Struct

from schedd.log import Log

log = Log("schedd.server")

#: Bytes of a request line with its headers; a scrape of Prometheus has some 300.
REQUEST_BYTES_MAX = 8192
#: Seconds from the connect to the end of the answer.
EXCHANGE_TIMEOUT_S = 10.0
#: Those who ask at a time; of more, each is told to come later.
EXCHANGES_MAX = 32

TEXT = "text/plain; charset=utf-8"


class Answer(Struct, frozen=True):
    """What is answered; `status` as HTTP has it."""

    status: int
    body: bytes
    content_type: str = TEXT


def _path_of(target: bytes) -> str:
    """The path of a target like `/path?query` or, as proxies are asked, `http://host/path?query` (RFC 9112, 3.2)."""
    path = target.partition(b"?")[0]
    scheme, separator, rest = path.partition(b"://")
    if separator and scheme.lower() in (b"http", b"https"):
        path = b"/" + rest.partition(b"/")[2]
    return path.decode("ascii", "replace")


Question = Callable[[], Awaitable[Answer]]


class Site:
    """Paths and who answers for them. Called for each connection, it makes its protocol."""

    def __init__(self, questions: Mapping[str, Question], timeout_s: float = EXCHANGE_TIMEOUT_S) -> None:
        self.questions = questions
        self.timeout_s = timeout_s
        self.open: set[Exchange] = set()

    def __call__(self) -> Exchange:
        return Exchange(self)

    def close(self) -> None:
        """Cut off everybody."""
        for exchange in list(self.open):
            exchange.abort()


class Exchange(asyncio.Protocol):
    """One connection: a question, its answer, the end."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=REQUEST_BYTES_MAX)
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._answering: asyncio.Task[None] | None = None
        self._is_head = False
        self._has_begun = False
        self._blank_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        site = self._site
        site.open.add(self)
        self._timer = asyncio.get_running_loop().call_later(site.timeout_s, self.abort)
        if len(site.open) > EXCHANGES_MAX:
            self._answer(Answer(503, b"too many ask at a time\n"))

    def data_received(self, data: bytes) -> None:
        if self._transport is None or self._transport.is_closing() or self._answering is not None:
            return
        if not self._has_begun:
            data = self._without_blank_lines(data)
            if not data:
                return
        try:
            self._http.receive_data(data)
            event = self._http.next_event()
        except h11.RemoteProtocolError as error:
            self._answer(Answer(error.error_status_hint, f"{error}\n".encode()))
            return
        if isinstance(event, h11.Request):
            self._transport.pause_reading()  # nothing more of it is of interest
            self._ask(event)
        elif event is not h11.NEED_DATA:
            self.abort()

    def _without_blank_lines(self, data: bytes) -> bytes:
        """Leave out empty lines before the request line (RFC 9112, 2.2), but no more than a request may have."""
        rest = data.lstrip(b"\r\n")
        self._blank_bytes += len(data) - len(rest)
        self._has_begun = bool(rest) or self._blank_bytes > REQUEST_BYTES_MAX
        return data if self._has_begun and not rest else rest

    def _ask(self, request: h11.Request) -> None:
        self._is_head = request.method == b"HEAD"
        path = _path_of(request.target)
        question = self._site.questions.get(path)
        if request.method not in (b"GET", b"HEAD"):
            self._answer(Answer(405, b"only GET and HEAD\n"))
        elif question is None:
            known = " ".join(self._site.questions)
            self._answer(Answer(404, f"there is nothing here; try one of {known}\n".encode()))
        else:
            self._answering = asyncio.ensure_future(self._reply(path, question))

    async def _reply(self, path: str, question: Question) -> None:
        try:
            answer = await question()
        except Exception as error:  # whoever asked is not left without an answer
            log.exception("question_failed", path=path, error=repr(error))
            answer = Answer(500, b"the daemon failed to answer; see its log\n")
        self._answer(answer)

    def _answer(self, answer: Answer) -> None:
        """Write the answer, and close once it is written; the timer cuts off who does not read it."""
        transport, http = self._transport, self._http
        if transport is None or transport.is_closing():
            return
        headers = [
            ("Content-Type", answer.content_type),
            ("Content-Length", str(len(answer.body))),
            ("Cache-Control", "no-store"),
            ("Connection", "close"),
        ]
        if answer.status == 405:
            headers.append(("Allow", "GET, HEAD"))
        response = h11.Response(
            status_code=answer.status, headers=headers, reason=HTTPStatus(answer.status).phrase.encode()
        )
        body = h11.Data(data=b"" if self._is_head else answer.body)
        parts = [http.send(response), http.send(body), http.send(h11.EndOfMessage())]
        transport.write(b"".join(part for part in parts if part))
        transport.close()

    def eof_received(self) -> bool:
        return self._answering is not None  # it may read on

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._site.open.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        if self._answering is not None:
            self._answering.cancel()
