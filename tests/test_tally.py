"""Histograms."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from schedd.tally import Histogram

BOUNDS = (0.1, 1.0, 10.0)


def test_bound_itself_is_below_it() -> None:
    histogram = Histogram(BOUNDS)
    for value in (0.1, 0.2, 1.0, 10.0, 10.1):
        histogram.observe(value)
    assert list(histogram.cumulative()) == [(0.1, 1), (1.0, 3), (10.0, 4), (float("inf"), 5)]


@given(st.lists(st.floats(0, 1e6)))
def test_counts_are_those_of_a_plain_count(values: list[float]) -> None:
    histogram = Histogram(BOUNDS)
    for value in values:
        histogram.observe(value)
    assert [count for _, count in histogram.cumulative()] == [
        sum(value <= bound for value in values) for bound in (*BOUNDS, float("inf"))
    ]
    assert histogram.count == len(values)
    assert histogram.total == sum(values)
