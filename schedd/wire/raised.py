"""What a call that raised has its worker send as the result of its attempt (`AttemptFinished.result`).

The exception is a pickle of its own in it, so that the traceback can be read where the exception cannot: by who has not
the module that it is of, and by who opens no pickles of others.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct


class Raised(Struct, frozen=True, array_like=True, gc=False):
    """`exception`: a pickle of it. `traceback`: what Python would have printed, from the task's own frames on."""

    exception: bytes
    traceback: str


_decoder = msgspec.msgpack.Decoder(Raised)


def encode_raised(exception: bytes, traceback: str) -> bytes:
    """Make the result of a call that raised; what is no character in the traceback becomes an escape."""
    return msgspec.msgpack.encode(Raised(exception, traceback.encode(errors="backslashreplace").decode()))


def shorten(text: str, most: int) -> str:
    """Cut the middle out of a traceback of more characters: frames come first, and what was raised last."""
    return text if len(text) <= most else f"{text[: most // 2]}\n…\n{text[-(most // 2) :]}"


def decode_raised(result: bytes | None) -> Raised | None:
    """Read the result of an attempt; None where it is none of a call that raised."""
    try:
        return _decoder.decode(result) if result else None
    except (msgspec.DecodeError, RecursionError):  # a worker may send anything, nested too deep as well
        return None
