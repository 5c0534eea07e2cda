"""A simulation that never fails proves nothing: each planted bug must be found, and soon."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor

import pytest

from schedd.sim.cluster import run_seed

from .mutants import MUTANTS

#: A planted bug must be found within so many seeds: less than half of what is run of the whole at each change. Nearly
#: all are found within 200; what a worker kept on disk and a daemon forgets takes a rare meeting of faults.
SEEDS_MAX = 800


def hunt(name: str) -> tuple[int, str]:
    """The first seed that finds a planted bug, and how; (-1, "") where none does."""
    with MUTANTS[name]():
        for seed in range(SEEDS_MAX):
            failure = run_seed(seed).failure
            if failure:
                return seed, failure
    return -1, ""


@pytest.fixture(scope="module")
def hunts() -> Iterator[dict[str, Future[tuple[int, str]]]]:
    """All hunts, on both cores."""
    with ProcessPoolExecutor(2) as pool:
        yield {name: pool.submit(hunt, name) for name in MUTANTS}


def test_there_are_enough() -> None:
    assert len(MUTANTS) >= 10


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", MUTANTS)
def test_planted_bug_is_found(name: str, hunts: dict[str, Future[tuple[int, str]]]) -> None:
    seed, _ = hunts[name].result()
    assert seed >= 0, f"{name} was not found in {SEEDS_MAX} seeds"
