"""Length-prefixed frames: four bytes, big-endian, then a MessagePack array of messages.

One frame carries all the messages that its sender had for the peer in one turn, so that the fixed costs are paid once
a turn and not once a message.
"""

from __future__ import annotations

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


class FrameReader:
    """Cuts a stream of bytes into frames. Holds at most one incomplete frame."""

    def __init__(self, frame_bytes_max: int = FRAME_BYTES_MAX) -> None:
        self.frame_bytes_max = frame_bytes_max
        self._buffer = bytearray()
        self._wanted = PREFIX_BYTES

    def feed(self, data: bytes, most: int = 1 << 62) -> list[Body]:
        """Add what arrived and return the bodies of the frames that it completes, in order; often empty.

        most: what comes after so many frames stays for the next call, which may find it with another bound.
        Raises RemoteProtocolError as soon as a prefix announces a frame above the bound.
        """
        buffer = self._buffer
        buffer += data
        frames: list[Body] = []
        if len(buffer) < self._wanted:
            return frames
        start, end = 0, len(buffer)
        is_viewed = False
        while end - start >= PREFIX_BYTES:
            size = int.from_bytes(buffer[start : start + PREFIX_BYTES], "big")
            if size > self.frame_bytes_max:
                raise RemoteProtocolError(
                    f"a frame of {size} bytes was announced, the bound is {self.frame_bytes_max}",
                    "does this port belong to another service?",
                )
            if end - start - PREFIX_BYTES < size:
                self._wanted = PREFIX_BYTES + size
                break
            start += PREFIX_BYTES
            if size < VIEWED_BYTES_MIN:
                frames.append(bytes(buffer[start : start + size]))
            else:
                frames.append(memoryview(buffer)[start : start + size])
                is_viewed = True
            start += size
            if len(frames) == most:
                self._wanted = PREFIX_BYTES
                break
        else:
            self._wanted = PREFIX_BYTES
        if is_viewed:
            self._buffer = buffer[start:]
        else:
            del buffer[:start]
        return frames
