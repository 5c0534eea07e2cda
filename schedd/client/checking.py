"""What is about to be sent, checked against the types that it says it has.

A daemon cannot read a message in which something is of another type. It hangs up, and everything that waits at this
client would suffer for one slip. So a slip is told where it was made.
"""

from __future__ import annotations

import numbers
from functools import lru_cache
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from schedd.errors import LocalProtocolError

M = TypeVar("M", bound=Struct)

_OWN = frozenset({bool, int, float, str})


def plain(value: Any) -> Any:
    """Return a number of another library, as NumPy has them, as one of Python's own, and all else as it is."""
    if type(value) in _OWN:
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) else value


def checked(value: Any, kind: Any, name: str) -> Any:
    """Return a value as the daemon will read it.

    Raises TypeError naming it where something in it is of another type, and LocalProtocolError for what has no form
    on the wire.
    """
    try:
        return _decoder(kind).decode(_encoder.encode(value))
    except (TypeError, msgspec.ValidationError) as error:
        raise TypeError(f"{name}: {error}") from None
    except (OverflowError, UnicodeEncodeError) as error:
        raise LocalProtocolError(f"{name} cannot be sent: {error}") from None


def checked_message(message: M) -> M:
    """Return a message as the daemon will read it. Raises as `checked` does, naming the field."""
    fields = {name: checked(getattr(message, name), kind, name) for name, kind in _fields(type(message))}
    return msgspec.structs.replace(message, **fields)


def _encode_other(value: Any) -> Any:
    number = plain(value)
    if number is value:
        raise TypeError(f"a {type(value).__qualname__} cannot be sent")
    return number


_encoder = msgspec.msgpack.Encoder(enc_hook=_encode_other)


@lru_cache
def _fields(kind: type[Struct]) -> list[tuple[str, Any]]:
    return [(field.name, field.type) for field in msgspec.structs.fields(kind)]


@lru_cache
def _decoder(kind: Any) -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(kind)
