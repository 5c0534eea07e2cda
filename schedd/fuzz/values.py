"""Values for any type of the wire, of the settings or of the journal, mostly right and now and then a lie.

They are made from the types themselves, so that a message that is added tomorrow is lied about tomorrow. A value is
what MessagePack or TOML would have: a message that is an array is a list.
"""

from __future__ import annotations

import math
import random
from typing import Any

from msgspec import inspect

#: Ids, counts and sizes: those of the few tasks that there are, and those at the edges of what a number may be.
INTS = (0, 1, 2, 3, -1, -2, 255, 65536, 2**31 - 1, 2**31, 2**53 + 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1, -(2**63))
SMALL_MAX = 40
FLOATS = (0.0, 1.0, 0.5, 0.25, 2.0, -1.0, 1e-9, 1e-300, 1e9, 1e18, 1e300, math.nan, math.inf, -math.inf, -0.0)
WORDS = ("", "a", "honest", "w0", "w1", "job", "kind", "key", "x", "stdout", "stderr", "true", "é\u202e\x1b[31m", "\0")
#: Types that are not what is expected, wherever that is.
LIES: tuple[Any, ...] = (
    None,
    True,
    -1,
    1.5,
    math.nan,
    2**64 - 1,
    "",
    b"",
    b"\xff" * 9,
    [],
    {},
    [[[[]]]],
    {"type": "x"},
)
#: A list has seldom more; one that is nested deeper has less, and what is nested even deeper is left out.
LENGTHS = (0, 1, 1, 1, 2, 2, 3, 5, 30)
LENGTHS_BELOW = (0, 0, 1, 1, 2)
DEPTH_BELOW, DEPTH_MAX = 3, 7


class Maker:
    """Makes values with the dice that it is given. lies: which share of all parts is of another type, or too large."""

    def __init__(self, dice: random.Random, lies: float = 0.02) -> None:
        self._dice = dice
        self._lies = lies

    def make(self, kind: inspect.Type, depth: int = 0) -> Any:
        """Make a value of a type, more or less."""
        dice = self._dice
        if dice.random() < self._lies:
            return dice.choice(LIES)
        make = _MAKERS.get(type(kind))
        return make(self, kind, depth) if make is not None else dice.choice(LIES)

    def _length(self, depth: int) -> int:
        if depth > DEPTH_MAX:
            return 0
        return self._dice.choice(LENGTHS if depth < DEPTH_BELOW else LENGTHS_BELOW)

    def _int(self, kind: inspect.IntType, depth: int) -> int:
        dice = self._dice
        return dice.randint(0, SMALL_MAX) if dice.random() < 0.7 else dice.choice(INTS)

    def _float(self, kind: inspect.FloatType, depth: int) -> float:
        dice = self._dice
        return dice.choice(FLOATS) if dice.random() < 0.4 else float(dice.randint(0, 8)) / 2

    def _str(self, kind: inspect.StrType, depth: int) -> str:
        dice = self._dice
        return dice.choice(WORDS) if dice.random() < 0.98 else "x" * dice.choice((65, 201, 1000, 70_000))

    def _bytes(self, kind: inspect.BytesType, depth: int) -> bytes:
        return self._dice.choice((b"", b"x", b"\0" * 20, b"\xc1", b"y" * 2000))

    def _list(self, kind: inspect.ListType | inspect.VarTupleType, depth: int) -> list[Any]:
        return [self.make(kind.item_type, depth + 1) for _ in range(self._length(depth))]

    def _tuple(self, kind: inspect.TupleType, depth: int) -> list[Any]:
        return [self.make(item, depth + 1) for item in kind.item_types]

    def _dict(self, kind: inspect.DictType, depth: int) -> dict[Any, Any]:
        pairs = [(self.make(kind.key_type, depth + 1), kind.value_type) for _ in range(self._length(depth))]
        return {key: self.make(value, depth + 1) for key, value in pairs if not isinstance(key, list | dict)}

    def _union(self, kind: inspect.UnionType, depth: int) -> Any:
        return self.make(self._dice.choice(kind.types), depth)

    def _enum(self, kind: inspect.EnumType, depth: int) -> Any:
        return self._dice.choice(list(kind.cls)).value

    def _literal(self, kind: inspect.LiteralType, depth: int) -> Any:
        return self._dice.choice(kind.values)

    def _struct(self, kind: inspect.StructType, depth: int) -> Any:
        return self._array(kind, depth) if kind.array_like else self._map(kind, depth)

    def _array(self, kind: inspect.StructType, depth: int) -> list[Any]:
        fields = kind.fields
        required = sum(field.required for field in fields)
        count = self._dice.randint(required, len(fields))
        head = [] if kind.tag is None else [kind.tag]
        return head + [self.make(field.type, depth + 1) for field in fields[:count]]

    def _map(self, kind: inspect.StructType, depth: int) -> dict[str, Any]:
        wanted = 0.4 if depth < DEPTH_BELOW else 0.15 if depth < DEPTH_MAX else 0.0
        made: dict[str, Any] = {} if kind.tag_field is None else {kind.tag_field: kind.tag}
        for field in kind.fields:
            if field.required or self._dice.random() < wanted:
                made[field.encode_name] = self.make(field.type, depth + 1)
        return made


_MAKERS: dict[type[inspect.Type], Any] = {
    inspect.IntType: Maker._int,
    inspect.FloatType: Maker._float,
    inspect.StrType: Maker._str,
    inspect.BytesType: Maker._bytes,
    inspect.BoolType: lambda maker, kind, depth: maker._dice.random() < 0.5,
    inspect.NoneType: lambda maker, kind, depth: None,
    inspect.ListType: Maker._list,
    inspect.VarTupleType: Maker._list,
    inspect.TupleType: Maker._tuple,
    inspect.DictType: Maker._dict,
    inspect.UnionType: Maker._union,
    inspect.EnumType: Maker._enum,
    inspect.LiteralType: Maker._literal,
    inspect.StructType: Maker._struct,
}


def changed(value: Any, dice: random.Random) -> Any:
    """Change one part of a value, somewhere in its depth: another number or text, a lie, one more, one less."""
    if isinstance(value, list) and value and dice.random() < 0.85:
        return _changed_list(value, dice)
    if isinstance(value, dict) and value and dice.random() < 0.85:
        key = dice.choice(list(value))
        return {**value, key: changed(value[key], dice)}
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return dice.choice((value ^ 1, dice.randint(0, SMALL_MAX), dice.choice(INTS)))
    if isinstance(value, float):
        return dice.choice(FLOATS)
    if isinstance(value, str):
        return dice.choice(WORDS)
    return dice.choice(LIES)


def _changed_list(items: list[Any], dice: random.Random) -> list[Any]:
    place = dice.randrange(len(items))
    what = dice.random()
    if what < 0.08:
        return items[:place] + items[place + 1 :]
    if what < 0.16 and len(items) < 1000:
        return [*items, items[place]]
    return [*items[:place], changed(items[place], dice), *items[place + 1 :]]
