"""One daemon and one worker for all tests of this folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import Cluster

from . import cpython

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="package")
def futures_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A daemon with a worker of four CPUs, found by `$SCHEDD_ADDRESS`."""
    _, paths = cpython.load()
    with Cluster(tmp_path_factory.mktemp("futures")) as cluster:
        cluster.start_daemon()
        cluster.start_worker("w1", 4, env={"PYTHONPATH": os.pathsep.join([*paths, str(ROOT), str(ROOT / "tests")])})
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SCHEDD_ADDRESS", cluster.address)
            yield cluster
