"""Every message survives the wire, and both directions refuse what is not theirs."""

from __future__ import annotations

import random
import types
from collections.abc import Callable
from enum import Enum
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schedd.core.model import WorkerId, WorkerResources
from schedd.errors import RemoteProtocolError
from schedd.wire import messages as m
from schedd.wire.framing import FrameReader, encode_frame

Decode = Callable[[bytes], list[Any]]

DIRECTIONS: dict[str, tuple[Any, Decode]] = {
    "from_client": (m.ClientRequest, m.decode_from_client),
    "from_worker": (m.FromWorker, m.decode_from_worker),
    "to_client": (m.ToClient, m.decode_to_client),
    "to_worker": (m.ToWorker, m.decode_to_worker),
}
CASES = [(name, kind) for name, (union, _) in DIRECTIONS.items() for kind in get_args(union)]


def body_of(*messages: Any) -> bytes:
    [body] = FrameReader().feed(encode_frame(messages))
    return bytes(body)


def make(kind: Any, rng: random.Random, depth: int = 0) -> Any:
    """A value of a type, made up."""
    origin, arguments = get_origin(kind), get_args(kind)
    if hasattr(kind, "__supertype__"):  # NewType
        return make(kind.__supertype__, rng, depth)
    if origin is Annotated:  # a bound
        return make(arguments[0], rng, depth)
    if origin in (Union, types.UnionType):
        return make(rng.choice(arguments), rng, depth)
    if origin is Literal:
        return rng.choice(arguments)
    if origin is list:
        return [make(arguments[0], rng, depth + 1) for _ in range(0 if depth > 3 else rng.randint(0, 3))]
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return tuple(make(arguments[0], rng, depth + 1) for _ in range(0 if depth > 3 else rng.randint(0, 2)))
        return tuple(make(inner, rng, depth + 1) for inner in arguments)
    if origin is dict:
        return {make(arguments[0], rng): make(arguments[1], rng, depth + 1) for _ in range(rng.randint(0, 2))}
    if isinstance(kind, type) and issubclass(kind, Enum):
        return rng.choice(list(kind))
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return make_struct(kind, rng, depth)
    plain: dict[Any, Callable[[], Any]] = {
        int: lambda: rng.choice([0, 1, -1, 127, 2**31, 2**40]),
        float: lambda: rng.choice([0.5, 1.0, 2.0, 100.25]),
        str: lambda: rng.choice(["", "a", "Grüße", "🚀 launch", "line\nline"]),
        bytes: lambda: rng.randbytes(rng.randint(0, 5)),
        bool: lambda: rng.random() < 0.5,
        type(None): lambda: None,
        Any: lambda: rng.choice([None, 1, "x"]),
    }
    return plain[kind]()


def make_struct(kind: type[msgspec.Struct], rng: random.Random, depth: int) -> Any:
    hints = msgspec.structs.fields(kind)
    for _ in range(1000):
        values = {
            f.name: (() if f.name in ("variants", "gpus") else make(f.type, rng, depth + 1))
            for f in hints
            if f.required or rng.random() < 0.7
        }
        try:
            return kind(**values)
        except ValueError:
            continue  # amounts that mean nothing
    raise AssertionError(f"no {kind.__name__} could be made up")


@pytest.mark.parametrize(("direction", "kind"), CASES, ids=[f"{name}-{kind.__name__}" for name, kind in CASES])
def test_message_comes_back_as_it_was(direction: str, kind: type[Any]) -> None:
    decode = DIRECTIONS[direction][1]
    rng = random.Random(kind.__name__)
    made = [make_struct(kind, rng, 0) for _ in range(30)]
    assert decode(body_of(*made)) == made
    for message in made[:5]:
        assert decode(body_of(message)) == [message]


@pytest.mark.parametrize(("direction", "kind"), CASES, ids=[f"{name}-{kind.__name__}" for name, kind in CASES])
def test_fields_of_a_later_version_are_passed_over(direction: str, kind: type[Any]) -> None:
    message = make_struct(kind, random.Random(1), 0)
    [row] = msgspec.msgpack.decode(body_of(message))
    later = msgspec.msgpack.encode([[*row, "new", {"more": [1, 2]}]])
    assert DIRECTIONS[direction][1](later) == [message]


@pytest.mark.parametrize(("direction", "kind"), CASES, ids=[f"{name}-{kind.__name__}" for name, kind in CASES])
def test_fields_that_an_earlier_version_did_not_have_take_their_defaults(direction: str, kind: type[Any]) -> None:
    fields = msgspec.structs.fields(kind)
    required = [f for f in fields if f.required]
    assert fields[: len(required)] == tuple(required), "a field without a default comes after one with"
    message = make_struct(kind, random.Random(2), 0)
    [row] = msgspec.msgpack.decode(body_of(message))
    earlier = msgspec.msgpack.encode([row[: 1 + len(required)]])
    [got] = DIRECTIONS[direction][1](earlier)
    for f in fields:
        expected = getattr(message, f.name) if f.required else default_of(f)
        assert getattr(got, f.name) == expected


def default_of(f: Any) -> Any:
    return f.default_factory() if f.default is msgspec.NODEFAULT else f.default


@pytest.mark.parametrize(("direction", "kind"), CASES, ids=[f"{name}-{kind.__name__}" for name, kind in CASES])
def test_message_of_another_direction_is_refused(direction: str, kind: type[Any]) -> None:
    message = make_struct(kind, random.Random(3), 0)
    for union, decode in DIRECTIONS.values():
        if kind not in get_args(union):
            with pytest.raises(RemoteProtocolError):
                decode(body_of(message))


def test_tags_are_the_names_of_the_messages() -> None:
    for _, kind in CASES:
        assert msgspec.inspect.type_info(kind).tag == kind.__name__  # type: ignore[attr-defined]


def test_greeting_is_a_map_that_any_version_can_read() -> None:
    hello = m.Hello(m.PROTOCOL, "1.0", m.WorkerHello(WorkerId("w"), "i", WorkerResources(cpus=2)))
    body = msgspec.msgpack.encode(hello)
    assert m.decode_hello(body) == hello
    plain = msgspec.msgpack.decode(body)
    assert plain["protocol"] == m.PROTOCOL
    plain["later"] = {"a": 1}
    plain["peer"]["later"] = [1]
    plain["protocol"] = 99
    assert m.decode_hello(msgspec.msgpack.encode(plain)).protocol == 99


@pytest.mark.parametrize("direction", DIRECTIONS)
@given(data=st.binary(max_size=100))
def test_random_bytes_are_refused(direction: str, data: bytes) -> None:
    try:
        messages = DIRECTIONS[direction][1](data)
    except RemoteProtocolError:
        return
    assert messages == []


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(
    "body", [b"\x91" * 100_000 + b"\xc0", b"\x91" + b"\x81\xa1a" * 100_000, b"\xdd\xff\xff\xff\xff"]
)
def test_depth_and_length_that_exhaust_are_refused(direction: str, body: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        DIRECTIONS[direction][1](body)


@given(st.binary(max_size=200))
def test_random_greetings_are_refused(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        m.decode_hello(data)
