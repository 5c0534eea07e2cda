"""Thousands of storms, each with its calm: no promise is broken in any of them."""

from __future__ import annotations

import os
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor

import pytest

from schedd.core.model import Cause
from schedd.sim.__main__ import run_seeds

SEEDS = 2000
SEEDS_PER_PART = 50
#: How attempts end in a storm: nothing here makes a worker refuse one.
EXPECTED = frozenset(Cause) - {Cause.OOM_HOST, Cause.REJECTED}


@pytest.mark.timeout(900)
def test_no_seed_fails() -> None:
    parts = [list(range(first, first + SEEDS_PER_PART)) for first in range(0, SEEDS, SEEDS_PER_PART)]
    # Not traced for coverage, which would make it three times as long; other tests go through every line.
    with ProcessPoolExecutor(os.cpu_count(), initializer=sys.settrace, initargs=(None,)) as pool:
        results = [result for part in pool.map(run_seeds, parts) for result in part]
    failures = [result.failure_report for result in results if result.failure]
    assert not failures, "\n".join(failures)
    assert len(results) == SEEDS
    # The storms are storms: without them, all this would prove nothing.
    ends = sum((result.ends for result in results), Counter[Cause]())
    assert {cause for cause in Cause if ends[cause] > SEEDS // 100} >= EXPECTED, ends
    assert sum(result.ends_kept for result in results) > SEEDS
    assert sum(result.quarantines for result in results) > SEEDS // 20
    assert sum(result.kind_holds for result in results) > SEEDS // 10
    assert sum(result.executions for result in results) > 20 * SEEDS
    assert sum(result.swaps for result in results) > SEEDS // 2
    assert sum(result.daemon_starts for result in results) > 2 * SEEDS
    assert sum(result.worker_starts for result in results) > 3 * SEEDS
