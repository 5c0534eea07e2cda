"""What users write, and what we write for them."""

from __future__ import annotations

import pytest

from schedd.cli.values import (
    is_toml,
    nearest,
    parse_amounts,
    parse_duration,
    parse_ids,
    parse_instant,
    parse_numbers,
    parse_pairs,
    parse_tail,
    write_duration,
    write_ids,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("0.5", 0.5),
        ("90s", 90),
        ("5m", 300),
        ("1h30m", 5400),
        ("250ms", 0.25),
        ("2D", 172800),
        ("1.5h", 5400),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "5y", "-3", "1h 30m", "m", "1e3", "nan", "5m3", "9" * 400, "9" * 400 + "d"])
def test_bad_durations(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("5", [5]), ("1-4", [1, 2, 3, 4]), ("1-9:4", [1, 5, 9]), ("7,1,4", [7, 1, 4]), ("0-1, 8", [0, 1, 8])],
)
def test_numbers(text: str, numbers: list[int]) -> None:
    assert parse_numbers(text) == numbers


@pytest.mark.parametrize("text", ["1-3:0", "1-3:00", "3-1", "1,2-1"])
def test_no_numbers(text: str) -> None:
    with pytest.raises(ValueError, match="has no numbers in it"):
        parse_numbers(text)


@pytest.mark.parametrize("text", ["0", "1,0", "0-3", "9" * 23])
def test_no_ids(text: str) -> None:
    with pytest.raises(ValueError, match="is no id of a task"):
        parse_ids(text)


def test_the_largest_id() -> None:
    assert parse_ids(f"1,{2**63 - 1}") == [1, 2**63 - 1]


def test_instants_fit_into_nanoseconds() -> None:
    assert parse_instant("2h", 10_000.0) == 2800.0
    assert parse_instant("9999999999w", 10_000.0) == parse_instant("1066-10-14", 10_000.0) == 0.0
    with pytest.raises(ValueError, match="is too far away"):
        parse_instant("9999-12-31", 10_000.0)
    with pytest.raises(ValueError, match="is no time"):
        parse_instant("9" * 400, 10_000.0)


@pytest.mark.parametrize("ids", [[3], [1, 2, 3], [1, 4, 7, 8, 9], [5, 4]])
def test_ids_are_written_as_they_are_read(ids: list[int]) -> None:
    assert parse_numbers(write_ids(ids)) == ids


def test_ids_are_short() -> None:
    assert write_ids([1, 4, 7, 8, 9]) == "1,4,7-9"
    assert write_ids([]) == ""


def test_pairs_and_amounts() -> None:
    assert parse_pairs(["a=1", "a=2", "b="], "--x") == {"a": "2", "b": ""}
    assert parse_amounts(["a=1.5"], "--x") == {"a": 1.5}
    with pytest.raises(ValueError, match="--x '=1' must be written NAME=VALUE"):
        parse_pairs(["=1"], "--x")


@pytest.mark.parametrize(
    ("text", "tail"), [("20", (20, False)), ("500b", (500, True)), ("64k", (65536, True)), ("1M", (1048576, True))]
)
def test_tail(text: str, tail: tuple[int, bool]) -> None:
    assert parse_tail(text) == tail


def test_bad_tail() -> None:
    with pytest.raises(ValueError, match="neither a number of lines"):
        parse_tail("20x")


def test_nearest() -> None:
    assert nearest("taks", ["tasks", "jobs"]) == "did you mean 'tasks'?"
    assert nearest("zzz", ["tasks", "jobs"]) == "known: tasks, jobs"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0ms"),
        (0.12, "120ms"),
        (4.25, "4.2s"),
        (0.9996, "1.0s"),
        (59.94, "59.9s"),
        (59.97, "1m 0s"),
        (185, "3m 5s"),
        (7800, "2h 10m"),
        (273600, "3d 4h"),
    ],
)
def test_writing_durations(seconds: float, text: str) -> None:
    assert write_duration(seconds) == text


@pytest.mark.parametrize("text", ["1", "1.5", "true", '"a"', "[1, 2]", "{ a = 1 }"])
def test_values_in_toml(text: str) -> None:
    assert is_toml(text)


@pytest.mark.parametrize("text", ["", "adaptive", "[", "[" * 100_000, "{a=" * 10_000])
def test_no_values_in_toml(text: str) -> None:
    assert not is_toml(text)
