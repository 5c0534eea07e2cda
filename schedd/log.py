"""Records over stdlib logging: an event name and its fields, one line each, as key=value or as JSON.

Under systemd a line begins with its priority (`<4>`, see sd-daemon(3)), so that `journalctl -p warning` finds it, and
has no time, which the journal adds itself.
"""

from __future__ import annotations

import logging
import math
import os
import sys
from typing import Any

_NEEDS_QUOTES = frozenset(' "=\\')
#: Within quotes. The backslash too: else one before a quote would let the value end there.
_ESCAPES = {'"': '\\"', "\\": "\\\\"}
#: Levels of logging as priorities of syslog.
_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3}


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
                text = '"' + "".join(map(_escaped, text)) + '"'
        parts.append(f"{key}={text}")
    return " ".join(parts)


def _escaped(character: str) -> str:
    return _ESCAPES.get(character) or (character if character.isprintable() else repr(character)[1:-1])


class Line:
    """What a record says, laid out when it is written."""

    __slots__ = ("event", "fields")

    def __init__(self, event: str, fields: dict[str, Any]) -> None:
        self.event = event
        self.fields = fields

    def __str__(self) -> str:
        return format_fields(self.event, self.fields)


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
        self._logger.exception("%s", Line(event, fields))

    def _write(self, level: int, event: str, fields: dict[str, Any]) -> None:
        if self._logger.isEnabledFor(level):
            self._logger.log(level, "%s", Line(event, fields))


class Formatter(logging.Formatter):
    """Lays out records. `for_journal`: for the journal of systemd."""

    def __init__(self, *, as_json: bool = False, for_journal: bool = False) -> None:
        layout = "%(message)s" if for_journal else "%(asctime)s %(levelname)-7s %(message)s"
        super().__init__(layout, "%Y-%m-%dT%H:%M:%S%z")
        self._as_json = as_json
        self._for_journal = for_journal

    def format(self, record: logging.LogRecord) -> str:
        text = self._json(record) if self._as_json else super().format(record)
        if not self._for_journal:
            return text
        priority = f"<{_PRIORITIES.get(record.levelno, 6)}>"
        return "\n".join(priority + line for line in text.split("\n"))  # each line is a record of its own there

    def _json(self, record: logging.LogRecord) -> str:
        """One object: time, level, logger, event, and the fields as they are, None left out."""
        import json  # not for those who only read a line or two

        line = record.args[0] if isinstance(record.args, tuple) and record.args else None
        told: dict[str, Any] = {
            "time": self.formatTime(record, self.datefmt),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        if isinstance(line, Line):
            told["event"] = line.event
            told.update((key, _plain(value)) for key, value in line.fields.items() if value is not None)
        else:
            told["event"] = record.getMessage()
        if record.exc_info:
            told["traceback"] = self.formatException(record.exc_info)
        return json.dumps(told)


def _plain(value: Any) -> Any:
    """What JSON has a form for, everything else as its text."""
    if isinstance(value, bool) or type(value) is int:
        return value
    return value if isinstance(value, float) and math.isfinite(value) else str(value)


def is_journal(stream: int = 2) -> bool:
    """Whether a file descriptor leads to the journal of systemd, which says so in `$JOURNAL_STREAM`."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        status = os.fstat(stream)
    except OSError:
        return False
    return (device, inode) == (str(status.st_dev), str(status.st_ino))


def set_up(level: str, layout: str = "text") -> None:
    """Send records of at least `level` ("debug" … "error") to stderr; `layout`: "text" or "json"."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter(as_json=layout == "json", for_journal=is_journal()))
    root = logging.getLogger("schedd")
    root.handlers[:] = [handler]
    root.propagate = False
    set_level(level)


def set_level(level: str) -> None:
    """Write records of at least this level from now on."""
    logging.getLogger("schedd").setLevel(level.upper())
