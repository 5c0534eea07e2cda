"""Moving averages, honest from the first observation on."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schedd.core import stats
from schedd.core.stats import PerformanceStats, RuntimeTable


def test_nothing_seen() -> None:
    seen = PerformanceStats()
    assert (seen.avg_completion_time, seen.success_rate, seen.deviation, seen.total_tasks) == (0.0, 1.0, 0.0, 0)


@pytest.mark.parametrize("alpha", [0.01, 0.1, 0.5, 1.0])
def test_first_observation_is_the_mean(alpha: float) -> None:
    seen = PerformanceStats(alpha)
    seen.update(10.0, success=False)
    assert seen.avg_completion_time == pytest.approx(10.0)
    assert seen.success_rate == 0.0
    assert seen.deviation == pytest.approx(0.0, abs=1e-6)
    assert seen.total_tasks == 1


def test_newer_counts_more() -> None:
    seen = PerformanceStats(0.5)
    seen.update(1.0, success=True)
    seen.update(4.0, success=False)
    assert seen.avg_completion_time == pytest.approx((0.5 * 1 + 1 * 4) / 1.5)
    assert seen.success_rate == pytest.approx(0.5 / 1.5)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50), st.floats(0.01, 1))
def test_mean_lies_between_the_extremes(durations: list[float], alpha: float) -> None:
    seen = PerformanceStats(alpha)
    for duration in durations:
        seen.update(duration, success=True)
    assert min(durations) - 1e-6 <= seen.avg_completion_time <= max(durations) + 1e-6
    assert seen.success_rate == pytest.approx(1.0)
    assert 0 <= seen.deviation <= max(durations) + 1e-6


@pytest.mark.parametrize("duration", [-1.0, math.nan, math.inf])
def test_impossible_duration(duration: float) -> None:
    seen = PerformanceStats()
    with pytest.raises(ValueError, match="duration"):
        seen.update(duration, success=True)
    assert seen.total_tasks == 0


@pytest.mark.parametrize("alpha", [0.0, -1.0, 1.1, math.nan])
def test_impossible_weight(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha"):
        PerformanceStats(alpha)


def test_predictions() -> None:
    table = RuntimeTable()
    assert table.predict("k") is None
    hinted = table.predict("k", 2.0)
    assert hinted is not None
    assert (hinted.mean_s, hinted.upper_s) == (2.0, 3.0)
    table.observe("k", 8.0, success=True)
    seen = table.predict("k", 2.0)
    assert seen is not None
    assert (seen.mean_s, seen.upper_s) == (8.0, 10.0)


def test_spread_widens_the_upper_value() -> None:
    table = RuntimeTable()
    for runtime in (1.0, 9.0) * 50:
        table.observe("k", runtime, success=True)
    seen = table.predict("k")
    assert seen is not None
    assert seen.upper_s > seen.mean_s + 7


def test_short_kinds() -> None:
    table = RuntimeTable(1.0)
    table.hint("hinted", 0.5)
    table.hint("long", 5.0)
    table.observe("seen", 0.5, success=True)
    assert table.short == {"hinted", "seen"}
    table.observe("hinted", 5.0, success=True)
    table.hint("hinted", 0.5)  # what was seen counts for more
    assert table.short == {"seen"}


def test_least_recently_seen_kind_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "KINDS_MAX", 2)
    table = RuntimeTable()
    for kind in ("a", "b", "a", "c"):
        table.observe(kind, 0.1, success=True)
    assert len(table) == 2
    assert table.predict("b") is None
    assert table.predict("a") is not None
    assert table.short == {"a", "c"}


def test_table_goes_on_from_what_was_written_down() -> None:
    before, after = RuntimeTable(short_s=1.0), RuntimeTable(short_s=1.0)
    for kind, runtime_s in (("long", 9.0), ("short", 0.1), ("long", 7.0), ("was long", 3.0), ("was long", 0.0)):
        before.observe(kind, runtime_s, True)
    after.recall(before.learned())
    assert after.short == before.short == {"short"}
    for table in (before, after):
        table.observe("short", 30.0, True)
    for kind in ("long", "short", "was long", "never seen"):
        assert after.predict(kind) == before.predict(kind)
    assert after.learned() == before.learned()
