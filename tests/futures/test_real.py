"""What CPython's tests ask of executors in ways that do not fit, with a real daemon and a real worker."""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Iterator

import pytest
from helpers import Cluster

from schedd.client.executor import SchedExecutor


@pytest.fixture(params=[None, 4])
def executor(request: pytest.FixtureRequest, futures_cluster: Cluster) -> Iterator[SchedExecutor]:
    with SchedExecutor(futures_cluster.address, max_workers=request.param) as executor:
        yield executor


def test_cancel_futures(executor: SchedExecutor) -> None:
    futures = [executor.submit(time.sleep, 0.1) for _ in range(50)]
    futures[0].result()
    executor.shutdown(cancel_futures=True)
    others = [future for future in futures if not future.cancelled()]
    assert 0 < len(others) < 30
    assert all(future.done() and future.exception() is None for future in others)


def test_cancel_what_runs(executor: SchedExecutor) -> None:
    running = executor.submit(time.sleep, 0.5)
    executor.submit(time.sleep, 0.1).result()
    assert running.running()
    assert not running.cancel()
    assert running.result() is None


def test_map_that_runs_out_of_time_cancels_the_rest(executor: SchedExecutor) -> None:
    values = executor.map(time.sleep, [0.5] * 20, timeout=0.1)
    with pytest.raises(TimeoutError):
        next(values)
    begun = time.monotonic()
    executor.shutdown()
    assert time.monotonic() - begun < 2


def test_many_calls(executor: SchedExecutor) -> None:
    futures = [executor.submit(pow, n, 2) for n in range(3000)]
    squares = [future.result() for future in concurrent.futures.as_completed(futures)]
    assert sorted(squares) == [n * n for n in range(3000)]
    assert list(executor.map(abs, range(3000), chunksize=100)) == list(range(3000))
