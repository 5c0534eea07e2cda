"""The worker's end of its connection to the daemon: frames in, frames out, nothing decided."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, cast

from schedd.errors import RemoteProtocolError
from schedd.wire.framing import FrameReader, encode_frame
from schedd.wire.messages import AttemptsFinished, FromWorker, Hello, LogPiece, ToWorker, decode_to_worker

#: Messages that carry bytes of a task's are spread over frames of about this size, well below a frame's bound.
FRAME_CONTENT_BYTES = 16 * 1024 * 1024

OnMessages = Callable[[list[ToWorker]], None]


class Connection(asyncio.Protocol):
    """One connection. `lost` is done when it is over, with the reason."""

    def __init__(self, on_messages: OnMessages, on_writable: Callable[[], None]) -> None:
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        #: The peer is slow: what there is to say waits until it has read more.
        self.is_paused = False
        self._loop = asyncio.get_running_loop()
        #: When something came from the daemon; a large frame may be longer on its way than its sender may be silent.
        self.heard_at = self._loop.time()
        self._on_messages = on_messages
        self._on_writable = on_writable
        self._reader = FrameReader()
        self._transport: asyncio.Transport | None = None
        self._reason = "closed by the daemon"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no instances of asyncio's classes.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.heard_at = self._loop.time()
        try:
            for body in self._reader.feed(data):
                self._on_messages(decode_to_worker(body))
        except RemoteProtocolError as error:
            self.abort(f"protocol error: {error}")

    def pause_writing(self) -> None:
        self.is_paused = True

    def resume_writing(self) -> None:
        self.is_paused = False
        self._on_writable()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.lost.done():
            self.lost.set_result(str(exc) if exc is not None else self._reason)

    def greet(self, hello: Hello) -> None:
        self._write(encode_frame(hello))  # type: ignore[arg-type]  # the first frame is one message, not a list

    def send(self, messages: Sequence[FromWorker]) -> None:
        """Send messages in one write; in one frame, unless they carry much."""
        if len(messages) == 1 or sum(map(content_bytes, messages)) < FRAME_CONTENT_BYTES:
            self._write(encode_frame(messages))
            return
        frame: list[FromWorker] = []
        size = 0
        for message in messages:
            length = content_bytes(message)
            if frame and size + length > FRAME_CONTENT_BYTES:
                self._write(encode_frame(frame))
                frame, size = [], 0
            frame.append(message)
            size += length
        self._write(encode_frame(frame))

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def close(self, reason: str) -> None:
        """Close after what was written has been sent."""
        self._reason = reason
        if self._transport is not None:
            self._transport.close()

    def abort(self, reason: str) -> None:
        """Close at once."""
        self._reason = reason
        if self._transport is not None:
            self._transport.abort()


def content_bytes(message: Any) -> int:
    """About how many bytes of a task's content a message carries."""
    if isinstance(message, AttemptsFinished):
        return sum(len(end.result) for end in message.attempts if end.result is not None)
    return len(message.data) if isinstance(message, LogPiece) else 0
