"""Daemons and clients for the tests of this folder."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from schedd.client.aio import AsyncClient

from .fake_daemon import DaemonThread, FakeDaemon


@pytest_asyncio.fixture
async def daemon() -> AsyncIterator[FakeDaemon]:
    """A daemon in the test's own loop."""
    async with FakeDaemon() as daemon:
        yield daemon


@pytest_asyncio.fixture
async def client(daemon: FakeDaemon) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(daemon.address) as client:
        yield client


@pytest.fixture
def daemon_thread() -> Iterator[DaemonThread]:
    """A daemon in a thread of its own."""
    with DaemonThread() as daemon:
        yield daemon


@pytest.fixture
def idle_daemon() -> Iterator[DaemonThread]:
    """A daemon that runs nothing by itself."""
    with DaemonThread(is_running=False) as daemon:
        yield daemon
