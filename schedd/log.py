"""key=value records over stdlib logging: an event name and its fields, one line each."""

from __future__ import annotations

import logging
import sys
from typing import Any

_NEEDS_QUOTES = frozenset(' "=\\')


def format_fields(event: str, fields: dict[str, Any]) -> str:
    """Write `event key=value …`; values with spaces, quotes or control characters are quoted, None is left out."""
    parts = [event]
    for key, value in fields.items():
        if value is None:
            continue
        if isinstance(value, float):
            text = f"{value:.6g}"
        else:
            text = str(value)
            if not text or not text.isprintable() or not _NEEDS_QUOTES.isdisjoint(text):
                text = '"' + "".join(c if c.isprintable() else repr(c)[1:-1] for c in text).replace('"', '\\"') + '"'
        parts.append(f"{key}={text}")
    return " ".join(parts)


class Log:
    """A named logger whose methods take an event and its fields."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def enabled(self, level: int) -> bool:
        return self._logger.isEnabledFor(level)

    def debug(self, event: str, **fields: Any) -> None:
        self._write(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: Any) -> None:
        self._write(logging.INFO, event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        self._write(logging.WARNING, event, fields)

    def error(self, event: str, **fields: Any) -> None:
        self._write(logging.ERROR, event, fields)

    def exception(self, event: str, **fields: Any) -> None:
        self._logger.exception("%s", format_fields(event, fields))

    def _write(self, level: int, event: str, fields: dict[str, Any]) -> None:
        if self._logger.isEnabledFor(level):
            self._logger.log(level, "%s", format_fields(event, fields))


def set_up(level: str) -> None:
    """Send records of at least `level` ("debug" … "error") to stderr, with the time and the level in front."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%Y-%m-%dT%H:%M:%S%z"))
    root = logging.getLogger("schedd")
    root.handlers[:] = [handler]
    root.propagate = False
    set_level(level)


def set_level(level: str) -> None:
    """Write records of at least this level from now on."""
    logging.getLogger("schedd").setLevel(level.upper())
