"""What is fuzzed: each target takes one input after the other, and raises where schedd is wrong."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol
from zlib import crc32

import msgspec
from msgspec import inspect

from schedd.config import Settings, parse_settings
from schedd.core.stats import Learned
from schedd.errors import ConfigError, JournalError
from schedd.fuzz.values import Maker, changed
from schedd.fuzz.world import GUESTS, TOKENS, World
from schedd.journal import records
from schedd.wire import messages as m

#: A world is made anew after so many inputs, so that a failure is seen again with as many at most.
INPUTS_PER_WORLD = 500
#: Who sends an input of the daemon, by its first byte.
CLIENT, DEAF, WORKER, GREETING, BYTES, TIME, HANG_UP, GUEST = range(8)
#: Clients and workers send most.
SENDERS = (CLIENT,) * 6 + (WORKER,) * 6 + (GREETING, GUEST) * 2 + (BYTES, DEAF, TIME, TIME, HANG_UP)
TIMES_S = (0.001, 0.1, 1.0, 6.0, 25.0, 100.0)


class Target(Protocol):
    """Takes inputs. What an input does may depend on those since the last `reset`."""

    def reset(self, seed: int) -> None:
        """Begin anew."""

    def take(self, data: bytes) -> None:
        """Take in one input. Raises whatever must not be raised."""

    def make(self, dice: random.Random) -> bytes:
        """Make an input that is nearly right."""

    def change(self, data: bytes, dice: random.Random) -> bytes | None:
        """Change an input within its structure; None: it has none."""


class DaemonTarget:
    """Everything that may come over a connection: a byte for who sends it, then the body of a frame, or bytes."""

    def __init__(self) -> None:
        self._kinds = {
            CLIENT: inspect.type_info(list[m.ClientRequest]),
            DEAF: inspect.type_info(list[m.ClientRequest]),
            WORKER: inspect.type_info(list[m.FromWorker]),
            GREETING: inspect.type_info(m.Hello),
        }
        #: What a guest sends, by how far it is honest.
        self.guests = {
            "frame": inspect.type_info(m.Hello),
            "proof": inspect.type_info(m.Proof),
            "greeting": inspect.type_info(m.Hello),
            "other greeting": inspect.type_info(m.Hello),
            "guest": inspect.type_info(list[m.ClientRequest]),
        }
        self.reset(0)

    def reset(self, seed: int) -> None:
        self.world = World(seed)

    def take(self, data: bytes) -> None:
        sender, body, world = (data[0] if data else TIME) % (GUEST + 1), data[1:], self.world
        if sender in (CLIENT, DEAF):
            world.from_client(body, deaf=sender == DEAF)
        elif sender == WORKER:
            world.from_worker(body)
        elif sender in (GREETING, BYTES):
            world.from_stranger(body, greets=sender == GREETING)
        elif sender == TIME:
            world.pass_time(TIMES_S[(body[0] if body else 0) % len(TIMES_S)])
        elif sender == GUEST:
            world.from_guest(body if len(body) >= 2 else bytes(2))
        else:
            world.hang_up()

    def make(self, dice: random.Random) -> bytes:
        sender = dice.choice(SENDERS)
        head, kind = bytes([sender]), self._kinds.get(sender)
        if sender == GUEST:
            how = dice.randrange(len(GUESTS))
            head += bytes([how, dice.randrange(len(TOKENS))])
            kind = self.guests.get(GUESTS[how])
        if kind is None:
            return head + dice.randbytes(dice.choice((1, 5, 32, 40)))
        value = Maker(dice).make(kind)
        if isinstance(value, dict) and "protocol" in value and dice.random() < 0.8:
            value["protocol"] = m.PROTOCOL
        return head + _packed(value)

    def change(self, data: bytes, dice: random.Random) -> bytes | None:
        if not data or (data[0] not in self._kinds and data[0] != GUEST):
            return None
        head = 3 if data[0] == GUEST else 1
        body = _changed_body(data[head:], dice)
        return None if body is None else data[:head] + body


class TextTarget:
    """A reader of TOML. kind: what it reads; read: takes the text in; may_raise: what it says of a bad one."""

    def __init__(
        self, examples: list[str], read: Callable[[bytes], object], may_raise: tuple[type[Exception], ...]
    ) -> None:
        self._lines = [line for text in examples for line in text.splitlines() if line and not line.startswith("#")]
        self._read = read
        self._may_raise = may_raise

    def reset(self, seed: int) -> None:
        """Each text is read by itself."""

    def take(self, data: bytes) -> None:
        with contextlib.suppress(*self._may_raise):
            self._read(data)

    def make(self, dice: random.Random) -> bytes:
        lines = [self._line(dice) for _ in range(dice.choice((1, 2, 5, 20)))]
        return "\n".join(lines).encode()

    def _line(self, dice: random.Random) -> str:
        line = dice.choice(self._lines)
        if dice.random() < 0.5 and "=" in line:
            return f"{line.partition('=')[0]}= {dice.choice(TOML_VALUES)}"
        return line

    def change(self, data: bytes, dice: random.Random) -> bytes | None:
        lines = data.split(b"\n")
        lines[dice.randrange(len(lines))] = self._line(dice).encode()
        return b"\n".join(lines)


TOML_VALUES = (
    "0", "1", "-1", "1.5", "nan", "inf", "-inf", "true", '""', '"a"', '"1h"', '"64GB"', '"1-5"', "[]", "[1]", '["a"]',
    '"1-99999999999999999999"', "{}", "{ a = 1 }", '{ a = "b" }', "[[]]", "9223372036854775807", '"\\u0000"', '"{}"',
    "1979-05-27T07:32:00Z", "07:32:00", '"adaptive"', '"unix:/x"', '":"', '"[::1]:0"', '"h:99999"', '"-1"', '"~x/y"',
)  # fmt: skip


class JournalTarget:
    """Rows of a journal: damaged ones, and those whose checksum is right and whose content is not."""

    def __init__(self) -> None:
        self._rows: list[tuple[Callable[[bytes], object], inspect.Type]] = [
            (records.decode_fact, inspect.type_info(records.AnyFact)),
            (records.decode_facts, inspect.type_info(list[records.AnyFact])),
            (records.decode_finished, inspect.type_info(list[records.FinishedTask])),
            (records.decode_submit, inspect.type_info(records.SubmitRow)),
            (records.decode_ids, inspect.type_info(list[int])),
            (records.decode_learned, inspect.type_info(list[Learned])),
        ]

    def reset(self, seed: int) -> None:
        """Each row is read by itself."""

    def take(self, data: bytes) -> None:
        which = data[0] if data else 0
        body = data[1:]
        blob = body if which & 128 else crc32(body).to_bytes(records.CHECKSUM_BYTES, "big") + body
        with contextlib.suppress(JournalError):
            self._rows[which % 128 % len(self._rows)][0](blob)

    def make(self, dice: random.Random) -> bytes:
        which = dice.randrange(len(self._rows))
        return bytes([which]) + _packed(Maker(dice).make(self._rows[which][1]))

    def change(self, data: bytes, dice: random.Random) -> bytes | None:
        body = _changed_body(data[1:], dice)
        return None if body is None else data[:1] + body


def _packed(value: Any) -> bytes:
    try:
        return msgspec.msgpack.encode(value)
    except (OverflowError, UnicodeEncodeError):
        return b"\xc1"


def _changed_body(body: bytes, dice: random.Random) -> bytes | None:
    try:
        value = msgspec.msgpack.decode(body)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None
    for _ in range(dice.choice((1, 1, 2, 4))):
        value = changed(value, dice)
    return _packed(value)


def _config() -> Target:
    text = _config_text(Settings())
    return TextTarget([text], lambda data: parse_settings(data.decode()), (ConfigError, UnicodeDecodeError))


def _config_text(settings: Settings) -> str:
    """Every key of config.toml at its default."""
    lines: list[str] = []

    def write(table: dict[str, Any], path: str) -> None:
        lines.append(f"[{path}]" if path else "")
        lines.extend(f"{k} = {_toml(v)}" for k, v in table.items() if not isinstance(v, dict) and v is not None)
        for key, value in table.items():
            if isinstance(value, dict):
                write(value, f"{path}.{key}".lstrip("."))

    write(msgspec.to_builtins(settings), "")
    return "\n".join(lines)


def _toml(value: Any) -> str:
    return str(msgspec.json.encode(value), "utf-8")


class _File(type(Path())):  # type: ignore[misc]
    """A file that is not there."""

    content = b""

    def read_bytes(self) -> bytes:
        return self.content


def _job_file() -> Target:
    from schedd.cli import jobfile
    from schedd.cli.options import BadInput
    from schedd.cli.taskspec import TaskOptions

    file = _File("job.toml")

    def read(data: bytes) -> object:
        file.content = data
        return jobfile.read_job_file(file, {})

    keys = [f'{key} = "a"' for key in TaskOptions.__struct_encode_fields__]
    tables = ["[[task]]", 'command = "true"', 'command = ["a", "{}"]', 'call = "a:b"', 'after = ["a"]', 'name = "a"']
    return TextTarget(["\n".join([*keys, *tables, *tables, *tables])], read, (BadInput,))


TARGETS: dict[str, Callable[[], Target]] = {
    "daemon": DaemonTarget,
    "config": _config,
    "jobfile": _job_file,
    "journal": JournalTarget,
}
