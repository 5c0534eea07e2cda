"""What is believed of a kind on a device model: as it was seen, else as other kinds have shown."""

from __future__ import annotations

import math
import random

import pytest

from schedd.simulate.speeds import Speeds


def test_pair_that_was_seen_often_is_as_it_was_seen() -> None:
    speeds = Speeds([("a", "T4", 8.0), ("a", "A100", 1.0), ("b", "T4", 4.0), ("b", "A100", 2.0)] * 1000)
    assert speeds.factor("a", "T4", "A100") == pytest.approx(1 / 8, rel=0.01)
    assert speeds.factor("b", "T4", "A100") == pytest.approx(1 / 2, rel=0.01)
    assert speeds.factor("a", "T4", "T4") == 1


def test_pair_that_was_never_seen_is_as_the_others() -> None:
    seen = [("a", "T4", 4.0), ("a", "A100", 1.0), ("b", "T4", 40.0), ("b", "A100", 10.0)] * 50
    speeds = Speeds([*seen, *[("new", "T4", 100.0)] * 50])
    assert speeds.factor("new", "T4", "A100") == pytest.approx(1 / 4, rel=1e-6)


def test_what_a_pair_has_shown_counts_by_how_often_and_how_evenly() -> None:
    """Many kinds differ by much: one run says little where runtimes vary by much, and nearly all where they do not."""
    dice = random.Random(4)
    factors = {f"k{i}": dice.lognormvariate(0, 0.5) for i in range(50)}

    def seen(spread: float) -> list[tuple[str, str, float]]:
        return [
            (kind, model, dice.lognormvariate(3, spread) * (factor if model == "A100" else 1.0))
            for kind, factor in factors.items()
            for model in ("T4", "A100")
            for _ in range(30)
        ]

    for spread, weight in ((0.01, 1.0), (3.0, 0.1)):
        speeds = Speeds([*seen(spread), *[("odd", "T4", 20.0)] * 1000, ("odd", "A100", 20 / 16)])
        shown = math.log(speeds.factor("odd", "T4", "A100")) / math.log(1 / 16)
        assert shown == pytest.approx(weight, abs=0.15)


def test_kinds_that_do_not_differ_share_what_they_have_shown() -> None:
    dice = random.Random(5)
    models = {"T4": 2.0, "A100": 1.0}
    seen = [
        (k, m, slow * dice.lognormvariate(0, 1)) for k in "abcdefgh" for m, slow in models.items() for _ in range(40)
    ]
    speeds = Speeds(seen)
    factors = [speeds.factor(kind, "T4", "A100") for kind in "abcdefgh"]
    raw = [Speeds([one for one in seen if one[0] == kind]).factor(kind, "T4", "A100") for kind in "abcdefgh"]
    assert math.log(max(factors) / min(factors)) < 0.5 * math.log(max(raw) / min(raw))


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
