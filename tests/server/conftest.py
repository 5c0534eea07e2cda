"""One daemon for the tests of a module, and peers that greet it by hand."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from helpers import Cluster

from .peers import RawClient

#: A daemon that gives up on silent peers soon enough for a test to wait for it.
CONFIG = """
[server]
handshake_timeout_s = 0.5
[heartbeat]
interval_s = 0.5
lease_s = 60.0
"""

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A daemon that must outlive every test of the module."""
    with Cluster(tmp_path_factory.mktemp("shared")) as cluster:
        cluster.start_daemon(CONFIG)
        yield cluster
        assert cluster.daemon.is_alive, cluster.daemon.log()[-2000:]
        assert cluster.daemon.stop() == 0, cluster.daemon.log()[-2000:]
        assert "Traceback" not in cluster.daemon.log(), cluster.daemon.log()[-5000:]


@pytest.fixture
def address(shared: Cluster) -> str:
    return shared.address


@pytest.fixture
def client(address: str) -> Iterator[RawClient]:
    with RawClient(address) as peer:
        yield peer


@pytest.fixture
def name() -> str:
    """A name that no other test of the daemon uses."""
    return f"w{next(_numbers)}"


@pytest.fixture
def cluster_with_few(cluster: Cluster) -> str:
    """The address of a daemon that takes two connections."""
    return cluster.start_daemon("[server]\nconnections_max = 2\n").address
