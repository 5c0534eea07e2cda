"""What is believed of a kind on a device model: as it was seen, else as other kinds have shown."""

from __future__ import annotations

import random

import pytest

from schedd.simulate.speeds import PRIOR_WEIGHT, Speeds


def test_pair_that_was_seen_often_is_as_it_was_seen() -> None:
    speeds = Speeds([("a", "T4", 8.0), ("a", "A100", 1.0), ("b", "T4", 4.0), ("b", "A100", 2.0)] * 1000)
    assert speeds.factor("a", "T4", "A100") == pytest.approx(1 / 8, rel=0.01)
    assert speeds.factor("b", "T4", "A100") == pytest.approx(1 / 2, rel=0.01)
    assert speeds.factor("a", "T4", "T4") == 1


def test_pair_that_was_never_seen_is_as_the_others() -> None:
    seen = [("a", "T4", 4.0), ("a", "A100", 1.0), ("b", "T4", 40.0), ("b", "A100", 10.0)] * 50
    speeds = Speeds([*seen, *[("new", "T4", 100.0)] * 50])
    assert speeds.factor("new", "T4", "A100") == pytest.approx(1 / 4, rel=1e-6)


def test_pair_that_was_seen_once_is_in_between() -> None:
    seen = [("a", "T4", 1.0), ("a", "A100", 1.0)] * 5000
    speeds = Speeds([*seen, *[("odd", "T4", 1.0)] * 5000, ("odd", "A100", 1 / 16)])
    shrunk = (1 / 16) ** (1 / (1 + PRIOR_WEIGHT))
    assert speeds.factor("odd", "T4", "A100") == pytest.approx(shrunk, rel=0.01)


def test_model_without_any_run_is_as_the_mean_of_all() -> None:
    speeds = Speeds([("a", "T4", 4.0), ("a", "A100", 1.0)] * 100)
    assert speeds.factor("a", "A100", "H100") == pytest.approx(2, rel=0.01)
    assert speeds.models == ["T4", "A100"]


def test_truth_is_found_from_uneven_samples() -> None:
    """Fast models get other kinds than slow ones, as a policy that learns gives them."""
    dice = random.Random(1)
    slow = {"T4": 4.0, "V100": 2.0, "A100": 1.0}
    work = {kind: 10.0 * (i + 1) for i, kind in enumerate("abcdef")}
    seen = []
    for _ in range(3000):
        kind = dice.choice("abcdef")
        model = dice.choices(list(slow), weights=[1, 2, 8] if kind in "abc" else [8, 2, 1])[0]
        seen.append((kind, model, work[kind] * slow[model] * dice.lognormvariate(0, 0.3)))
    speeds = Speeds(seen)
    for kind in "abcdef":
        assert speeds.factor(kind, "T4", "A100") == pytest.approx(1 / 4, rel=0.15)


def test_runtime_of_nothing() -> None:
    speeds = Speeds([("a", "T4", 0.0), ("a", "A100", 0.0)])
    assert speeds.factor("a", "T4", "A100") == 1
    assert Speeds([]).factor("a", "T4", "A100") == 1
