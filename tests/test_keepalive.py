"""Connections between client and daemon ask the kernel to notice a peer that has vanished."""

from __future__ import annotations

from pathlib import Path

from helpers import Cluster, wait_until

ESTABLISHED = "01"
KEEPALIVE_PENDING = "02"


def timers(port: int) -> set[tuple[bool, str]]:
    """Of each established connection to a port of loopback: whether this is the accepted end, and its timer."""
    found = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, state, _, timer, *_ = line.split()
        ports = [int(end.rpartition(":")[2], 16) for end in (local, remote)]
        if port in ports and state == ESTABLISHED:
            found.add((ports[0] == port, timer.partition(":")[0]))
    return found


def test_both_ends_of_a_clients_connection(cluster: Cluster) -> None:
    cluster.start_daemon()
    assert cluster.client.stats().connections == 1
    port = int(cluster.address.rpartition(":")[2])
    both = {(True, KEEPALIVE_PENDING), (False, KEEPALIVE_PENDING)}
    wait_until(lambda: timers(port) == both, what="nothing but keep-alive is pending on both ends")
