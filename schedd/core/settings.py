"""What of the configuration the engine needs; durations in nanoseconds where they say so."""

from __future__ import annotations

import math

from msgspec import Struct

from schedd.core.model import SECOND
from schedd.core.retries import RetryRules


class PrefetchRule(Struct, frozen=True):
    """How far a backlog may run ahead of the worker: enough to cover the round trip, and no more.

    depth = ceil(cover_s / predicted runtime) for each slot, 0 above runtime_max_s, at most depth_max.
    """

    cover_s: float = 0.03
    runtime_max_s: float = 1.0
    depth_max: int = 256

    def depth(self, runtime_s: float | None) -> int:
        if runtime_s is None or runtime_s > self.runtime_max_s or not self.depth_max:
            return 0
        if runtime_s * self.depth_max <= self.cover_s:
            return self.depth_max
        return math.ceil(self.cover_s / runtime_s)


class FailureRules(Struct, frozen=True):
    """When a worker is quarantined and a kind is held, and when they are tried again; durations in nanoseconds."""

    quarantine: bool = True
    quarantine_failures_min: int = 5
    hopeless_kind: bool = True
    hopeless_tasks_min: int = 20
    hopeless_share: float = 0.95
    probe_after_ns: int = 60 * SECOND
    probe_after_max_ns: int = 3600 * SECOND
    window_ns: int = 1800 * SECOND
    #: Odds against "this worker is like the others" from which on it is no longer believed, for each worker there is.
    odds_per_worker: float = 1000.0
    #: Tasks that a hold looks at in one turn: some milliseconds.
    portion: int = 2000

    def pause_ns(self, repeats: int) -> int:
        """How long to wait before the next probe: twice as long each time, up to the bound."""
        return min(self.probe_after_max_ns, self.probe_after_ns << min(max(0, repeats - 1), 30))


class EngineSettings(Struct, frozen=True):
    """What of the configuration the engine needs; durations in nanoseconds."""

    prefetch: PrefetchRule = PrefetchRule()
    failures: FailureRules = FailureRules()
    heartbeat_ns: int = 5 * SECOND
    lease_ns: int = 20 * SECOND
    lost_after_ns: int = 40 * SECOND
    stealing: bool = False
    steal_interval_ns: int = SECOND // 2
    unfinished_max: int = 5_000_000
    finished_keep_count: int = 10_000
    keyed_keep_count: int = 100_000
    results_keep_bytes: int = 16 * 1024 * 1024
    retries: RetryRules = RetryRules()
    #: Tasks that go over to another policy in one turn: some 5 ms of the loop's time.
    moved_per_turn: int = 2000
