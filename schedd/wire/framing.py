"""Length-prefixed frames: four bytes, big-endian, then a MessagePack array of messages.

One frame carries all the messages that its sender had for the peer in one turn, so that the fixed costs are paid once
a turn and not once a message.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from typing import Any

import msgspec

from schedd.errors import LocalProtocolError, RemoteProtocolError

#: A frame holds one turn's messages: a thousand small tasks are about 300 KiB, one large result 32 MiB.
FRAME_BYTES_MAX = 64 * 1024 * 1024
#: Before the handshake is done a peer may send one small message and no more.
HELLO_BYTES_MAX = 256 * 1024
#: And where it must prove a token first, until it has: what it says then is about 150 bytes.
KNOCK_BYTES_MAX = 1024
PREFIX_BYTES = 4
#: The body of a frame from this size on is a part of what was read: a copy would hold up others for milliseconds.
VIEWED_BYTES_MIN = 64 * 1024
#: A frame of which so much has arrived, and more is to come, gets memory of its own, as large as it will be: a buffer
#: that grows is moved again and again. Not before: what is announced only takes no room.
LARGE_BYTES_MIN = 256 * 1024

#: What a frame has in it.
Body = bytes | memoryview

_encoder = msgspec.msgpack.Encoder()


def frame_of(body: bytes) -> bytes:
    """The frame of a body that was encoded before."""
    return len(body).to_bytes(PREFIX_BYTES, "big") + body


def encode_frame(messages: Any) -> bytes:
    """Encode messages into one frame; a single one, not a list, is one of the greeting.

    Raises LocalProtocolError above the bound or for what cannot be encoded.
    """
    buffer = bytearray(PREFIX_BYTES)
    try:
        _encoder.encode_into(messages, buffer, PREFIX_BYTES)
    except (UnicodeEncodeError, OverflowError, TypeError) as error:
        raise LocalProtocolError(f"a message cannot be encoded: {error}") from error
    size = len(buffer) - PREFIX_BYTES
    if size > FRAME_BYTES_MAX:
        raise LocalProtocolError(f"a frame of {size} bytes is above the bound of {FRAME_BYTES_MAX}")
    buffer[:PREFIX_BYTES] = size.to_bytes(PREFIX_BYTES, "big")
    return bytes(buffer)


def private_memory(size: int) -> mmap.mmap:
    """Memory of so many bytes, which costs something only as far as it is written to. Raises OSError."""
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


class FrameReader:
    """Cuts a stream of bytes into frames. Holds at most one incomplete frame. memory: for large ones, by their size."""

    def __init__(
        self, frame_bytes_max: int = FRAME_BYTES_MAX, memory: Callable[[int], mmap.mmap] = private_memory
    ) -> None:
        self.frame_bytes_max = frame_bytes_max
        self._memory = memory
        self._buffer = bytearray()
        self._wanted = PREFIX_BYTES
        #: Where `feed` has raised: the bodies of the frames that were whole before.
        self.cut: list[Body] = []
        #: The body of a large frame as far as it has arrived; the buffer is empty then.
        self._large: mmap.mmap | None = None

    def feed(self, data: bytes, most: int = 1 << 62) -> list[Body]:
        """Add what arrived and return the bodies of the frames that it completes, in order; often empty.

        most: what comes after so many frames stays for the next call, which may find it with another bound.
        Raises RemoteProtocolError as soon as a prefix announces a frame above the bound, or one for which there is no
        memory.
        """
        frames: list[Body] = []
        if self._large is not None:
            missing = len(self._large) - self._large.tell()
            self._large.write(data[:missing])
            if len(data) < missing:
                return frames
            frames.append(memoryview(self._large))
            self._large = None
            data = data[missing:]
        buffer = self._buffer
        buffer += data
        if len(buffer) < self._wanted:
            return frames
        start, end = 0, len(buffer)
        is_viewed = False
        while end - start >= PREFIX_BYTES and len(frames) < most:
            size = int.from_bytes(buffer[start : start + PREFIX_BYTES], "big")
            if size > self.frame_bytes_max:
                self.cut = frames
                raise RemoteProtocolError(
                    f"a frame of {size} bytes was announced, the bound is {self.frame_bytes_max}",
                    "does this port belong to another service?",
                )
            if end - start - PREFIX_BYTES < size:
                self._wanted = PREFIX_BYTES + min(size, LARGE_BYTES_MIN)
                if end - start >= self._wanted:
                    self.cut = frames
                    self._large = self._take(size)
                    self.cut = []
                    with memoryview(buffer) as view:
                        self._large.write(view[start + PREFIX_BYTES :])
                    start, self._wanted = end, PREFIX_BYTES
                break
            start += PREFIX_BYTES
            if size < VIEWED_BYTES_MIN:
                frames.append(bytes(buffer[start : start + size]))
            else:
                frames.append(memoryview(buffer)[start : start + size])
                is_viewed = True
            start += size
        else:
            self._wanted = PREFIX_BYTES
        if is_viewed:
            self._buffer = buffer[start:]
        else:
            del buffer[:start]
        return frames

    def _take(self, size: int) -> mmap.mmap:
        try:
            return self._memory(size)
        except OSError as error:
            raise RemoteProtocolError(f"there is no memory for a frame of {size} bytes: {error}") from error
