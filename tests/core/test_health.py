"""Rates of failure: what is counted, what is compared, and how seldom chance alone looks like a black hole."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schedd.core.health import CELL_MAX, GROUPS_MAX, KINDS_PER_WORKER_MAX, WORKERS_MAX, Health, evidence
from schedd.core.model import SECOND, Task, TaskId, WorkerId
from schedd.core.settings import FailureRules

NOW = 1_000 * SECOND


def task(task_id: int, kind: str = "k", job: str = "") -> Task:
    return Task(id=TaskId(task_id), kind=kind, job=job)


class Counted:
    """Attempts of tasks that are all different, on a clock that stands still."""

    def __init__(self, **rules: float) -> None:
        self.health = Health(FailureRules(**rules))  # type: ignore[arg-type]
        self.now = NOW
        self.number = 0

    def add(self, worker: str, failed: int = 0, ok: int = 0, kind: str = "k", took_s: float = 1.0) -> None:
        for fine in [False] * failed + [True] * ok:
            self.number += 1
            self.health.note_attempt(WorkerId(worker), task(self.number, kind), fine, round(took_s * SECOND), self.now)
            self.health.check()

    def is_black_hole(self, worker: str, workers: int = 3) -> bool:
        name = WorkerId(worker)
        return self.health.mostly_fails(name) and self.health.is_black_hole(self.health.compare(name), workers)


# ------------------------------------------------------------------------------------------------------------ evidence


def exactly(x: int, n: int, y: int, m: int) -> Fraction:
    """The odds by the formula, in whole numbers."""

    def beta(a: int, b: int) -> Fraction:
        return Fraction(math.factorial(a - 1) * math.factorial(b - 1), math.factorial(a + b - 1))

    p = Fraction(x + y, n + m)
    common = p ** (x + y) * (1 - p) ** (n + m - x - y)
    return beta(x + 1, n - x + 1) * beta(y + 1, m - y + 1) / common


@given(st.integers(1, 40), st.integers(1, 40), st.data())
def test_evidence_is_the_formula(n: int, m: int, data: st.DataObject) -> None:
    x, y = data.draw(st.integers(0, n)), data.draw(st.integers(0, m))
    assert evidence(x, n, y, m) == pytest.approx(math.log(exactly(x, n, y, m)), abs=1e-6)


@pytest.mark.parametrize("rate", [Fraction(1, 10), Fraction(1, 2), Fraction(9, 10)])
def test_odds_are_at_most_1_in_the_mean_where_all_are_alike(rate: Fraction) -> None:
    """Which is what makes them an e-value."""
    n, m = 6, 9
    mean = Fraction(0)
    for x in range(n + 1):
        for y in range(m + 1):
            chance = math.comb(n, x) * math.comb(m, y) * rate ** (x + y) * (1 - rate) ** (n + m - x - y)
            mean += chance * exactly(x, n, y, m)
    assert mean <= 1


# ------------------------------------------------------------------------------------------------------------ counting


def test_comparison_is_of_the_same_kinds() -> None:
    counted = Counted()
    counted.add("w1", failed=9, ok=1, kind="a")
    counted.add("w1", failed=7, kind="only here")
    counted.add("w2", failed=2, ok=28, kind="a")
    counted.add("w3", ok=30, kind="a")
    counted.add("w3", failed=30, kind="only there")
    found = counted.health.compare(WorkerId("w1"))
    assert str(found) == "9 of 10 attempts failed there, elsewhere 2 of 60"
    assert counted.is_black_hole("w1")
    assert not counted.is_black_hole("w2")
    assert not counted.is_black_hole("w3")


def test_worker_that_gets_only_the_bad_kind_is_no_black_hole() -> None:
    """All kinds together it fails at 90 % and the others at 25 %; kind by kind there is no difference."""
    counted = Counted()
    counted.add("w1", failed=27, ok=1, kind="bad")
    counted.add("w1", ok=2, kind="good")
    counted.add("w2", failed=10, ok=0, kind="bad")
    counted.add("w2", ok=30, kind="good")
    assert not counted.is_black_hole("w1")


def test_worker_that_is_bad_for_one_kind_of_many_is_no_black_hole() -> None:
    counted = Counted()
    for kind in "abcd":
        counted.add("w1", ok=20, kind=kind)
        counted.add("w2", ok=20, kind=kind)
    counted.add("w1", failed=30, kind="large")
    counted.add("w2", ok=30, kind="large")
    assert not counted.is_black_hole("w1")


def test_worker_that_fails_less_than_others_is_not_suspected_for_it() -> None:
    counted = Counted()
    counted.add("w1", failed=5, kind="a")
    counted.add("w2", ok=20, kind="a")
    counted.add("w1", ok=20, kind="b")
    counted.add("w2", failed=20, kind="b")
    assert evidence(0, 20, 20, 20) > 10
    assert counted.health.compare(WorkerId("w1")).evidence == evidence(5, 5, 0, 20)


def test_task_that_fails_again_and_again_says_no_more_than_once() -> None:
    counted = Counted()
    counted.add("w2", ok=30)
    for _ in range(50):
        counted.health.note_attempt(WorkerId("w1"), task(1), False, SECOND, NOW)
    assert counted.health.compare(WorkerId("w1")).failed == 1


def test_nothing_to_compare_with() -> None:
    counted = Counted()
    counted.add("w1", failed=500)
    assert not counted.is_black_hole("w1")
    assert not counted.health.compare(WorkerId("w1")).is_far_above


def test_attempts_that_outlive_the_failures_count_as_none() -> None:
    counted = Counted()
    counted.add("w1", failed=30, took_s=0.5)
    asked = []

    def outlived(kind: str, than_ns: int) -> int:
        asked.append((kind, than_ns))
        return 6

    found = counted.health.compare(WorkerId("w1"), outlived)
    assert asked == [("k", SECOND)]
    assert str(found) == "30 of 30 attempts failed there, elsewhere 0 of 6"
    assert counted.health.is_black_hole(found, 3)


def test_what_is_old_weighs_less() -> None:
    counted = Counted(window_ns=10 * SECOND)
    counted.add("w1", failed=16)
    counted.add("w2", ok=16)
    counted.now += 25 * SECOND
    counted.add("w2", ok=1)
    found = counted.health.compare(WorkerId("w1"))
    assert (found.failed, found.attempts, found.attempts_elsewhere) == (4, 4, 5)
    counted.now += 1_000_000 * SECOND
    counted.add("w2", ok=1)
    assert counted.health.compare(WorkerId("w1")).attempts == 0


def test_worker_that_breaks_is_found_in_spite_of_its_past() -> None:
    counted = Counted()
    counted.add("w1", ok=1000)
    counted.add("w2", ok=1000)
    failures = 0
    while not counted.is_black_hole("w1"):
        counted.add("w1", failed=1)
        failures += 1
    assert 5 <= failures <= 2 * CELL_MAX


def test_memory_is_bounded() -> None:
    counted = Counted()
    for number in range(3 * KINDS_PER_WORKER_MAX):
        counted.add("w1", ok=1, kind=f"kind {number}")
    assert len(counted.health._rates) == KINDS_PER_WORKER_MAX
    for number in range(WORKERS_MAX + 10):
        counted.health.note_attempt(WorkerId(f"worker {number}"), task(1), True, 0, NOW)
    for number in range(GROUPS_MAX + 10):
        counted.health.note_outcome(task(1, job=f"job {number}"), WorkerId("w1"), False, NOW)
    counted.health.check()
    assert len(counted.health._kinds) == WORKERS_MAX
    assert len(counted.health._groups) == GROUPS_MAX


def test_forgotten_worker_leaves_nothing() -> None:
    counted = Counted()
    counted.add("w1", failed=10)
    counted.health.note_outcome(task(1), WorkerId("w1"), False, NOW)
    counted.health.forget_worker(WorkerId("w1"))
    counted.health.check()
    assert counted.health._rates == {}
    assert counted.health._kinds == {}
    assert counted.health._groups["", "k"].run == {}


# -------------------------------------------------------------------------------------------------------- false alarms


def first_alarm(rates: list[float], shares: list[float], attempts: int, seed: int) -> tuple[int, int] | None:
    """Which worker is taken for a black hole, and after how many attempts on all; None: none is."""
    dice, counted = random.Random(seed), Counted()
    for number in range(attempts):
        index = dice.choices(range(len(rates)), shares)[0]
        name = WorkerId(f"w{index}")
        fine = dice.random() >= rates[index]
        counted.health.note_attempt(name, task(number), fine, SECOND, NOW)
        if not fine and counted.is_black_hole(name, len(rates)):
            return index, number
    return None


@pytest.mark.parametrize("rate", [0.05, 0.3, 0.6, 0.9, 0.98])
def test_equal_workers_are_left_alone(rate: float) -> None:
    alarms = [first_alarm([rate] * 4, [1, 1, 1, 1], 400, seed) for seed in range(200)]
    assert alarms == [None] * 200


@pytest.mark.parametrize("rate", [0.3, 0.6])
def test_equal_workers_of_unequal_speed_are_left_alone(rate: float) -> None:
    alarms = [first_alarm([rate] * 3, [20, 1, 1], 400, seed) for seed in range(200)]
    assert alarms == [None] * 200


@pytest.mark.parametrize(("elsewhere", "within"), [(0.0, 100), (0.05, 120), (0.3, 300)])
def test_black_hole_is_found(elsewhere: float, within: int) -> None:
    """Though it draws in most of the queue, so that there is little to compare it with."""
    alarms = [first_alarm([0.95] + [elsewhere] * 3, [10, 1, 1, 1], within, seed) for seed in range(100)]
    assert {alarm and alarm[0] for alarm in alarms} == {0}


# ------------------------------------------------------------------------------------------------------ hopeless kinds


def outcomes(health: Health, fine: list[bool], job: str = "") -> int | None:
    """After how many outcomes, each of a task of its own, the kind is hopeless; None: never."""
    for number, ok in enumerate(fine, 1):
        one = task(number, job=job)
        health.note_outcome(one, WorkerId("w1"), ok, NOW)
        health.check()
        if not ok and health.hopeless(one):
            return number
    return None


def test_kind_of_which_all_fails() -> None:
    assert outcomes(Health(FailureRules()), [False] * 30) == 20


def test_one_success_begins_the_count_anew() -> None:
    assert outcomes(Health(FailureRules()), [False] * 19 + [True] + [False] * 19) is None


def test_kind_that_succeeded_often_takes_longer() -> None:
    found = outcomes(Health(FailureRules()), [True] * 1000 + [False] * 500)
    assert found is not None
    assert 100 < found - 1000 < 300


def test_jobs_are_counted_each_by_itself() -> None:
    health = Health(FailureRules())
    assert outcomes(health, [False] * 19, "a") is None
    assert outcomes(health, [False] * 19, "b") is None


def test_task_that_is_retried_counts_once() -> None:
    health = Health(FailureRules())
    for _ in range(100):
        health.note_outcome(task(1), WorkerId("w1"), False, NOW)
        assert health.hopeless(task(1)) is None


@pytest.mark.parametrize("rate", [0.3, 0.6])
def test_kind_that_fails_often_is_no_hopeless_one(rate: float) -> None:
    for seed in range(200):
        dice = random.Random(seed)
        assert outcomes(Health(FailureRules()), [dice.random() >= rate for _ in range(1000)]) is None, seed


def test_pause_doubles_up_to_its_bound() -> None:
    rules = FailureRules(probe_after_ns=60, probe_after_max_ns=1000)
    assert [rules.pause_ns(n) for n in (0, 1, 2, 3, 4, 5, 6, 1_000_000)] == [60, 60, 120, 240, 480, 960, 1000, 1000]
