"""How records look: key=value, JSON, and on the journal of systemd."""

from __future__ import annotations

import ast
import json
import logging
import os
import sys
from pathlib import Path

import pytest

from schedd.log import Formatter, Line, is_journal


def record(level: int, event: str, **fields: object) -> logging.LogRecord:
    return logging.LogRecord("schedd.server", level, __file__, 1, "%s", (Line(event, fields),), None)


def failure() -> logging.LogRecord:
    try:
        raise ValueError("a\nb")
    except ValueError:
        fields = Line("daemon_failed", {})
        return logging.LogRecord("schedd.server", logging.ERROR, __file__, 1, "%s", (fields,), sys.exc_info())


def test_text_has_time_and_level() -> None:
    text = Formatter().format(record(logging.INFO, "worker_joined", worker="w 1", cpus=8.0, host=None))
    time, level, *rest = text.split(maxsplit=2)
    assert "T" in time
    assert level == "INFO"
    assert rest == ['worker_joined worker="w 1" cpus=8']


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ('a" role=admin', r'"a\" role=admin"'),
        ('a\\" role=admin x="', r'"a\\\" role=admin x=\""'),
        ("a\\", r'"a\\"'),
        ("a\nb\x1b", r'"a\nb\x1b"'),
        ("\\n", r'"\\n"'),
    ],
)
def test_value_ends_where_it_ends_whatever_is_in_it(value: str, text: str) -> None:
    """Else who chooses a name could forge fields."""
    assert str(Line("worker_joined", {"worker": value, "cpus": 8.0})) == f"worker_joined worker={text} cpus=8"
    assert ast.literal_eval(text) == value


@pytest.mark.parametrize(
    ("level", "priority"), [(logging.DEBUG, 7), (logging.INFO, 6), (logging.WARNING, 4), (logging.ERROR, 3)]
)
def test_journal_has_the_priority_and_no_time(level: int, priority: int) -> None:
    text = Formatter(for_journal=True).format(record(level, "listening", address="127.0.0.1:1"))
    assert text == f"<{priority}>listening address=127.0.0.1:1"


def test_each_line_of_a_traceback_has_the_priority() -> None:
    text = Formatter(for_journal=True).format(failure())
    assert text.count("\n") > 2
    assert all(line.startswith("<3>") for line in text.split("\n"))


def test_json_has_the_fields_as_they_are() -> None:
    told = json.loads(
        Formatter(as_json=True).format(
            record(logging.WARNING, "kind_held", kind='a"b\n', times=3, rate=0.5, odd=float("nan"), job=None, sure=True)
        )
    )
    assert told.pop("time")
    assert told == {
        "level": "warning",
        "logger": "schedd.server",
        "event": "kind_held",
        "kind": 'a"b\n',
        "times": 3,
        "rate": 0.5,
        "odd": "nan",
        "sure": True,
    }


def test_json_is_one_line_whatever_is_in_it() -> None:
    text = Formatter(as_json=True).format(failure())
    assert "\n" not in text
    assert "ValueError" in json.loads(text)["traceback"]
    lone = json.loads(Formatter(as_json=True).format(record(logging.INFO, "x", path="\udc80")))
    assert lone["path"] == "\udc80"


def test_records_of_others_are_events_too() -> None:
    foreign = logging.LogRecord("schedd.x", logging.INFO, __file__, 1, "plain %d", (1,), None)
    assert json.loads(Formatter(as_json=True).format(foreign))["event"] == "plain 1"


def test_journal_is_what_the_variable_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "log").open("w") as stream:
        status = os.fstat(stream.fileno())
        monkeypatch.delenv("JOURNAL_STREAM", raising=False)
        assert not is_journal(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        assert is_journal(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino + 1}")
        assert not is_journal(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", "nonsense")
        assert not is_journal(stream.fileno())
