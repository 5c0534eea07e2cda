"""What went wrong, as a file: all that a target was given since it was reset; and the least of it that still does."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path

import msgspec
from msgspec import Struct

from schedd.fuzz import targets

#: Replays that shrinking may take.
REPLAYS_MAX = 300


class Failure(Struct, frozen=True):
    """A target, the seed that it was reset with, and the inputs since; the last is the one that went wrong."""

    target: str
    seed: int
    inputs: list[bytes]


def write(path: Path, failure: Failure) -> None:
    path.write_bytes(msgspec.msgpack.encode(failure))


def read(path: Path) -> Failure:
    """Read what `write` wrote. Raises OSError, msgspec.DecodeError."""
    return msgspec.msgpack.decode(path.read_bytes(), type=Failure)


def replay(failure: Failure) -> BaseException | None:
    """Do it again; returns what was raised, None where nothing was."""
    target = targets.TARGETS[failure.target]()
    try:
        target.reset(failure.seed)
        for data in failure.inputs:
            target.take(data)
    except Exception as error:
        return error
    return None


def place_of(error: BaseException) -> tuple[str, str, int]:
    """What was raised and where: two failures with the same are taken for one."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return type(error).__name__, last.filename, last.lineno or 0


def shrunk(failure: Failure, again: Callable[[Failure], BaseException | None] = replay) -> Failure:
    """Leave out inputs, halves first, as long as the same goes wrong in the same place."""
    error = again(failure)
    if error is None:
        return failure
    place, inputs, left = place_of(error), failure.inputs, REPLAYS_MAX
    size = len(inputs) // 2
    while size and left:
        start = 0
        while start < len(inputs) - 1 and left:
            left -= 1
            fewer = inputs[:start] + inputs[min(start + size, len(inputs) - 1) :]
            error = again(Failure(failure.target, failure.seed, fewer))
            if error is not None and place_of(error) == place:
                inputs = fewer
            else:
                start += size
        size //= 2
    return Failure(failure.target, failure.seed, inputs)
