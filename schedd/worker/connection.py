"""The worker's end of its connection to the daemon: frames in, frames out, nothing decided."""

from __future__ import annotations

import asyncio
import secrets
import ssl
from collections.abc import Callable, Sequence
from typing import Any, cast

from schedd.address import Address
from schedd.errors import AuthenticationError, RemoteProtocolError
from schedd.tls import channel_binding, explain
from schedd.wire.auth import NONCE_BYTES, Prover, Token
from schedd.wire.framing import PREFIX_BYTES, FrameReader, encode_frame
from schedd.wire.messages import (
    AttemptsFinished,
    Challenge,
    FromWorker,
    Hello,
    LogPiece,
    ToWorker,
    Welcome,
    decode_to_worker,
)

#: Messages that carry bytes of a task's are spread over frames of about this size, well below a frame's bound.
FRAME_CONTENT_BYTES = 16 * 1024 * 1024

OnMessages = Callable[[list[ToWorker]], None]


class Connection(asyncio.Protocol):
    """One connection. `lost` is done when it is over, with the reason."""

    def __init__(self, where: Address, on_messages: OnMessages, on_writable: Callable[[], None]) -> None:
        self._where = where
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
        self._hello = b""
        self._prover: Prover | None = None
        self._is_welcome = False
        #: Why the daemon is not believed, or we are not.
        self.error: AuthenticationError | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no instances of asyncio's classes.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.heard_at = self._loop.time()
        try:
            for body in self._reader.feed(data):
                messages = decode_to_worker(body)
                if not self._is_welcome:
                    for message in messages:
                        self._check(message)
                        self._is_welcome |= isinstance(message, Welcome)
                self._on_messages(messages)
        except RemoteProtocolError as error:
            self.abort(f"protocol error: {error}")
        except AuthenticationError as error:
            self.error = error
            self.abort(error.message)

    def pause_writing(self) -> None:
        self.is_paused = True

    def resume_writing(self) -> None:
        self.is_paused = False
        self._on_writable()

    def connection_lost(self, exc: Exception | None) -> None:
        if isinstance(exc, ssl.SSLError) and self.error is None:
            self.error = explain(exc, self._where)
        if self.error is not None and not self.lost.done():
            self.lost.set_result(self.error.message)
        if not self.lost.done():
            self.lost.set_result(str(exc) if exc is not None else self._reason)

    def greet(self, hello: Hello, token: Token | None) -> None:
        """Introduce the worker; with a token, that is proven first."""
        self._hello = encode_frame(hello)
        if token is None or self._transport is None:
            self._write(self._hello)
        else:
            self._prover = Prover(token, channel_binding(self._transport), secrets.token_bytes(NONCE_BYTES))
            self._write(encode_frame(self._prover.knock(hello.version)))

    def _check(self, message: ToWorker) -> None:
        """Answer a challenge, and see whether it is the daemon that says welcome. Raises AuthenticationError."""
        if isinstance(message, Challenge):
            if self._prover is None:
                raise RemoteProtocolError("the daemon asks for a proof of a token that nobody has named")
            proof = self._prover.prove(message, self._hello[PREFIX_BYTES:])
            self._write(encode_frame(proof) + self._hello)
        elif isinstance(message, Welcome) and self._prover is not None:
            self._prover.check(message)

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
        if self._transport is not None and not self._transport.is_closing():
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
