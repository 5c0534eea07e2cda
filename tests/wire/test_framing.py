"""Frames out of a stream of bytes, however it is cut."""

from __future__ import annotations

import errno
import itertools
import mmap
import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedd.errors import LocalProtocolError, RemoteProtocolError
from schedd.wire.framing import (
    FRAME_BYTES_MAX,
    LARGE_BYTES_MIN,
    PREFIX_BYTES,
    VIEWED_BYTES_MIN,
    FrameReader,
    encode_frame,
    private_memory,
)

bodies = st.lists(st.binary(max_size=300), max_size=8)


def stream_of(frames: list[bytes]) -> bytes:
    return b"".join(len(body).to_bytes(PREFIX_BYTES, "big") + body for body in frames)


def pieces_of(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[a:b] for a, b in itertools.pairwise(places)]


@given(bodies, st.lists(st.integers(0, 10_000), max_size=20))
def test_any_cut_gives_the_same_frames(frames: list[bytes], cuts: list[int]) -> None:
    reader = FrameReader()
    got = [body for piece in pieces_of(stream_of(frames), cuts) for body in reader.feed(piece)]
    assert got == frames


@given(bodies)
def test_one_byte_at_a_time(frames: list[bytes]) -> None:
    reader = FrameReader()
    got = [body for byte in stream_of(frames) for body in reader.feed(bytes([byte]))]
    assert got == frames


def test_cut_at_every_byte() -> None:
    frames = [b"", b"a", bytes(300), b"end"]
    data = stream_of(frames)
    for cut in range(len(data) + 1):
        reader = FrameReader()
        assert reader.feed(data[:cut]) + reader.feed(data[cut:]) == frames


@given(bodies, st.binary(min_size=1, max_size=3))
def test_frames_come_as_soon_as_they_are_whole(frames: list[bytes], rest: bytes) -> None:
    """A part of the next prefix does not hold back the frames before it."""
    reader = FrameReader()
    assert reader.feed(stream_of(frames) + rest) == frames


@pytest.mark.parametrize("size", [VIEWED_BYTES_MIN - 1, VIEWED_BYTES_MIN, 3 * VIEWED_BYTES_MIN])
def test_large_frames_between_small_ones(size: int) -> None:
    """They are not copied out of what was read, and what comes later leaves them as they are."""
    frames = [b"first", bytes([7]) * size, b"between", bytes([8]) * size, b"last"]
    data = stream_of(frames)
    for cuts in ([], [3], [20, size // 2, size + 20, size + 30], [len(data) - 1]):
        reader = FrameReader()
        got = [body for piece in pieces_of(data, cuts) for body in reader.feed(piece)]
        got += reader.feed(stream_of([b"more"]) + b"\0")
        assert got == [*frames, b"more"]
        assert [isinstance(body, memoryview) for body in got[:5:2] + got[1:4:2]] == [False] * 3 + [
            size >= VIEWED_BYTES_MIN
        ] * 2


@pytest.mark.parametrize("piece", [1000, VIEWED_BYTES_MIN, LARGE_BYTES_MIN - 1, LARGE_BYTES_MIN + 5, 1 << 30])
@pytest.mark.parametrize("size", [LARGE_BYTES_MIN, LARGE_BYTES_MIN + 1, 3 * LARGE_BYTES_MIN])
def test_frames_that_get_memory_of_their_own(size: int, piece: int) -> None:
    frames = [b"first", random.Random(1).randbytes(size), b"between", random.Random(2).randbytes(size), b"last"]
    data = stream_of(frames)
    reader = FrameReader()
    got = [body for start in range(0, len(data), piece) for body in reader.feed(data[start : start + piece])]
    assert [len(body) for body in got] == [len(body) for body in frames]
    assert got == frames


def test_frame_that_is_only_announced_takes_no_room() -> None:
    taken = []
    reader = FrameReader(FRAME_BYTES_MAX, lambda size: taken.append(size) or private_memory(size))  # type: ignore[func-returns-value]
    reader.feed(FRAME_BYTES_MAX.to_bytes(PREFIX_BYTES, "big") + bytes(LARGE_BYTES_MIN - 1))
    assert not taken
    reader.feed(b"\0")
    assert taken == [FRAME_BYTES_MAX]


def test_frame_that_there_is_no_memory_for() -> None:
    def none(size: int) -> mmap.mmap:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    data = stream_of([bytes(2 * LARGE_BYTES_MIN)])
    with pytest.raises(RemoteProtocolError, match="no memory"):
        FrameReader(FRAME_BYTES_MAX, none).feed(data[: LARGE_BYTES_MIN + 100])


def test_one_frame_at_a_time_though_it_is_large() -> None:
    data = stream_of([bytes(2 * LARGE_BYTES_MIN), b"second", b"third"])
    reader = FrameReader()
    assert reader.feed(data[: LARGE_BYTES_MIN + 100], 1) == []
    assert [len(body) for body in reader.feed(data[LARGE_BYTES_MIN + 100 :], 1)] == [2 * LARGE_BYTES_MIN]
    assert reader.feed(b"", 1) == [b"second"]
    assert reader.feed(b"", 1) == [b"third"]
    assert reader.feed(b"", 1) == []


def test_nothing_comes_of_nothing() -> None:
    reader = FrameReader()
    assert reader.feed(b"") == []
    assert reader.feed(b"\0\0\0") == []
    assert reader.feed(b"") == []
    assert reader.feed(b"\0") == [b""]


@pytest.mark.parametrize("beyond", [1, 1000, 2**32 - 1 - 16])
def test_announcement_above_the_bound_fails_before_the_body_comes(beyond: int) -> None:
    reader = FrameReader(16)
    with pytest.raises(RemoteProtocolError, match="16"):
        reader.feed((16 + beyond).to_bytes(4, "big"))


def test_frame_of_exactly_the_bound() -> None:
    assert FrameReader(16).feed(stream_of([bytes(16)])) == [bytes(16)]


def test_frames_before_a_bad_announcement_in_one_piece_are_not_lost() -> None:
    reader = FrameReader(16)
    with pytest.raises(RemoteProtocolError):
        reader.feed(stream_of([b"good", b"too"]) + b"\xff\xff\xff\xff")
    assert reader.cut == [b"good", b"too"]


def test_bound_can_be_raised_between_frames() -> None:
    reader = FrameReader(16)
    assert reader.feed(stream_of([b"small"])) == [b"small"]
    reader.frame_bytes_max = 1000
    assert reader.feed(stream_of([bytes(1000)])) == [bytes(1000)]


@given(st.lists(st.integers() | st.text() | st.binary() | st.floats(allow_nan=False), max_size=20))
def test_what_is_encoded_is_one_frame(values: list[object]) -> None:
    values = [v for v in values if not isinstance(v, int) or -(2**63) <= v < 2**64]
    try:
        frame = encode_frame(values)
    except LocalProtocolError:
        return  # a lone surrogate
    [body] = FrameReader().feed(frame)
    assert msgspec.msgpack.decode(body) == values


@pytest.mark.parametrize("value", ["\ud800", 2**64, -(2**63) - 1, object()])
def test_what_cannot_be_encoded_is_our_own_mistake(value: object) -> None:
    with pytest.raises(LocalProtocolError):
        encode_frame([value])


def test_frame_above_the_bound_is_not_encoded() -> None:
    with pytest.raises(LocalProtocolError, match="bound"):
        encode_frame([bytes(FRAME_BYTES_MAX)])


@settings(max_examples=200)
@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=5))
def test_random_bytes_never_do_more_than_raise(data: bytes, cuts: list[int]) -> None:
    reader = FrameReader(100)
    total = 0
    try:
        for piece in pieces_of(data, cuts):
            total += sum(len(body) + PREFIX_BYTES for body in reader.feed(piece))
    except RemoteProtocolError:
        return
    assert total <= len(data)
