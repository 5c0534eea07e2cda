"""Read what users write: durations, ids, arrays, K=V pairs, byte counts. Pure; errors are ValueErrors."""

from __future__ import annotations

import difflib
import math
import re
import tomllib
from collections.abc import Iterable, Sequence
from datetime import datetime

#: A submit of more tasks than this is refused by the daemon anyway; an array must not fill the memory before that.
ARRAY_LENGTH_MAX = 1_000_000

#: Of what workers declare themselves, and tasks ask for.
AMOUNT_MAX = 1e9
#: Ids and nanoseconds travel and are kept in 64 bits.
ID_MAX = 2**63 - 1
_INSTANT_MAX_S = ID_MAX / 1e9

_UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)")
_RANGE = re.compile(r"(\d+)(?:-(\d+)(?::(\d+))?)?")
_SIZE_BYTES = {"b": 1, "k": 1024, "m": 1024**2, "g": 1024**3}


def parse_duration(text: str) -> float:
    """Read seconds (`90`, `0.5`) or parts with units (`90s`, `1h30m`, `250ms`). Raises ValueError."""
    text = text.strip().lower()
    whole = f"{text}s" if re.fullmatch(r"\d+(\.\d+)?", text) else text
    parts = _DURATION_PART.findall(whole)
    seconds = sum(float(number) * _UNIT_SECONDS[unit] for number, unit in parts)
    if not parts or "".join(number + unit for number, unit in parts) != whole or math.isinf(seconds):
        raise ValueError(f"{text!r} is not a duration; write seconds, or for instance 90s, 5m, 1h30m, 2d")
    return seconds


def parse_instant(text: str, now: float) -> float:
    """Read a length of time before `now` (`2h`, `7d`), or an instant in ISO 8601, local unless it says otherwise.

    Returns seconds since the epoch. Raises ValueError.
    """
    try:
        return max(0.0, now - parse_duration(text))
    except ValueError:
        pass
    try:
        instant = datetime.fromisoformat(text.strip()).astimezone().timestamp()
    except (ValueError, OverflowError, OSError):
        raise ValueError(f"{text!r} is no time; write for instance 2h, 7d, 2026-11-24 or '2026-11-24 18:30'") from None
    if instant >= _INSTANT_MAX_S:
        raise ValueError(f"{text!r} is too far away")
    return max(0.0, instant)


def is_toml(text: str) -> bool:
    """Whether a text is a value in TOML; what is none is taken for a string that nobody has quoted."""
    try:
        tomllib.loads(f"value = {text}")
    except (tomllib.TOMLDecodeError, RecursionError):
        return False
    return True


def is_utf8(text: str) -> bool:
    """Whether a text can be sent: bytes in another encoding are lone surrogates to us."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def parse_numbers(text: str) -> list[int]:
    """Read `1-100`, `1-9:2` (a step), `1,4,7` or any mix of them, in the order written. Raises ValueError."""
    numbers: list[int] = []
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        if not match or not text.isascii():
            raise ValueError(f"{text!r} is not a list of numbers; write for instance 1-100, 1-100:10 or 1,4,7")
        first, last, step = match.groups()
        stride = int(step or 1)
        steps = range(int(first), int(last or first) + 1, stride) if stride else range(0)
        if not steps:
            raise ValueError(f"{part!r} has no numbers in it")
        # A range may be longer than `len` can say.
        if len(numbers) + (steps[-1] - steps[0]) // steps.step >= ARRAY_LENGTH_MAX:
            raise ValueError(f"{text!r} has more than {ARRAY_LENGTH_MAX:,} numbers")
        numbers.extend(steps)
    return numbers


def parse_ids(text: str) -> list[int]:
    """Read ids of tasks as `parse_numbers` does. Raises ValueError."""
    ids = parse_numbers(text)
    for task_id in ids:
        if not 1 <= task_id <= ID_MAX:
            raise ValueError(f"{task_id} is no id of a task")
    return ids


def parse_pairs(items: Iterable[str], what: str) -> dict[str, str]:
    """Read `NAME=VALUE` items; the last of a name wins. Raises ValueError naming the option `what`."""
    pairs: dict[str, str] = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not equals or not name:
            raise ValueError(f"{what} {item!r} must be written NAME=VALUE")
        pairs[name] = value
    return pairs


def parse_amounts(items: Iterable[str], what: str) -> dict[str, float]:
    """Read `NAME=AMOUNT` items. Raises ValueError naming the option `what`."""
    amounts: dict[str, float] = {}
    for name, value in parse_pairs(items, what).items():
        try:
            amounts[name] = amount = float(value)
        except ValueError:
            raise ValueError(f"{what} {name}={value}: {value!r} is not a number") from None
        if not 0 <= amount <= AMOUNT_MAX:
            raise ValueError(f"{what} {name}={value}: an amount is a number from 0 to {AMOUNT_MAX:,.0f}")
    return amounts


def parse_tail(text: str) -> tuple[int, bool]:
    """Read `N` (lines) or `Nb`, `Nk`, `Nm`, `Ng` (bytes); returns the count and whether it means bytes."""
    match = re.fullmatch(r"(\d+)([bkmg]?)", text.strip().lower())
    if not match:
        raise ValueError(f"{text!r} is neither a number of lines (20) nor of bytes (500b, 64k, 1m)")
    number, unit = match.groups()
    return int(number) * _SIZE_BYTES.get(unit, 1), bool(unit)


def nearest(name: str, known: Sequence[str]) -> str:
    """Write a hint for a name that is not among the known ones: the nearest, else all of them."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"


def write_ids(ids: Sequence[int]) -> str:
    """Write ids as short as they can be read: `3`, `1-100`, `1,4,7-9`."""
    parts: list[str] = []
    start = 0
    for i in range(1, len(ids) + 1):
        if i == len(ids) or ids[i] != ids[i - 1] + 1:
            parts.append(str(ids[start]) if i - start == 1 else f"{ids[start]}-{ids[i - 1]}")
            start = i
    return ",".join(parts)


def write_duration(seconds: float) -> str:
    """Write a length of time in at most six characters or so: `120ms`, `4.2s`, `3m 5s`, `2h 10m`, `3d 4h`."""
    if round(seconds * 1000) < 1000:
        return f"{max(seconds, 0) * 1000:.0f}ms"
    if round(seconds, 1) < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m {rest}s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours}h {minutes}m"
    return f"{hours // 24}d {hours % 24}h"
