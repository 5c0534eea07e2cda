"""What of the settings the engine is made with: for the daemon, and for the simulator that answers for it."""

from __future__ import annotations

from msgspec import structs

from schedd.config import Settings
from schedd.core import engine
from schedd.core.model import SECOND
from schedd.core.retries import RetryRules
from schedd.core.settings import EngineSettings, FailureRules, PrefetchRule


def is_compiled() -> bool:
    """Whether the engine is machine code, as `SCHEDD_COMPILE=1 pip install` makes it."""
    return not str(engine.__file__).endswith(".py")


def engine_settings(settings: Settings) -> EngineSettings:
    """What of the configuration the engine needs, in its units."""
    beat, limits, prefetch, failures = settings.heartbeat, settings.limits, settings.prefetch, settings.failures
    return EngineSettings(
        prefetch=PrefetchRule(prefetch.cover_s, prefetch.runtime_max_s, prefetch.depth_max),
        failures=FailureRules(
            failures.quarantine,
            failures.quarantine_failures_min,
            failures.hopeless_kind,
            failures.hopeless_tasks_min,
            failures.hopeless_share,
            int(failures.probe_after_s * SECOND),
            int(failures.probe_after_max_s * SECOND),
            int(failures.window_s * SECOND),
        ),
        heartbeat_ns=int(beat.interval_s * SECOND),
        lease_ns=int(beat.lease_s * SECOND),
        lost_after_ns=int(beat.lost_after_s * SECOND),
        stealing=settings.stealing.enabled or settings.policy.name == "work_stealing",
        steal_interval_ns=int(settings.stealing.interval_s * SECOND),
        unfinished_max=limits.unfinished_max,
        finished_keep_count=limits.finished_keep_count,
        keyed_keep_count=limits.keyed_keep_count,
        results_keep_bytes=int(limits.results_keep_mb * 1024 * 1024),
        retries=RetryRules(**structs.asdict(settings.retries)),
    )
