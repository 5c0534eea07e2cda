"""What a seed means: a whole configuration, from the policy to how often the power fails."""

from __future__ import annotations

import random

from msgspec import Struct, structs

from schedd.config import (
    HeartbeatSettings,
    JournalSettings,
    LimitsSettings,
    PolicySettings,
    Settings,
    StealingSettings,
)
from schedd.core.model import SECOND, Gpu, WorkerResources
from schedd.core.policies import POLICIES
from schedd.core.policies.batch import BatchParams
from schedd.core.policies.load_balancing import LoadBalancingParams
from schedd.core.policies.priority import PriorityParams
from schedd.core.policies.work_stealing import WorkStealingParams
from schedd.core.settings import EngineSettings, FailureRules, PrefetchRule
from schedd.sim.network import NetworkRules

#: Seconds in which clients ask and faults happen; then comes the calm.
STORM_S = 25.0
#: Seconds of calm after which everything must have ended. The longest wait of a task is a clock set back, see `faults`.
CALM_S = 900.0


class Plan(Struct, frozen=True, kw_only=True):
    """One configuration. Chances of faults are per second of the storm."""

    seed: int
    settings: Settings
    engine: EngineSettings
    workers: list[WorkerResources]
    clients: int
    requests: int
    #: Tasks have no limit of retries by losses, so that each must succeed or fail by its own script.
    patient: bool
    short_tasks: bool
    network: NetworkRules
    #: How long a sync of the disk takes, on average.
    sync_s: float
    # Faults, each with its mean pause in seconds; 0: never.
    break_pause_s: float
    partition_pause_s: float
    daemon_crash_pause_s: float
    daemon_stop_pause_s: float
    daemon_freeze_pause_s: float
    worker_crash_pause_s: float
    worker_stop_pause_s: float
    machine_pause_s: float
    disk_pause_s: float
    drain_pause_s: float
    swap_pause_s: float

    def describe(self) -> str:
        """Say what is particular about it, in a line."""
        faults = [
            f"{field.removesuffix('_pause_s')} {getattr(self, field):.0f} s"
            for field in self.__struct_fields__
            if field.endswith("_pause_s") and getattr(self, field)
        ]
        return (
            f"policy {self.settings.policy.name}, stealing {self.engine.stealing}, {len(self.workers)} workers, "
            f"{self.clients} clients, {self.requests} requests, faults: {', '.join(faults) or 'none'}"
        )


def _workers(dice: random.Random) -> list[WorkerResources]:
    """A few machines; the first can run anything."""
    gpus = tuple(Gpu(f"GPU-{i}", "A100", 8192) for i in range(2))
    machines = [
        WorkerResources(cpus=4, ram_gb=8, gpus=gpus, labels={"zone": "a"}, custom={"licence": 1}),
        WorkerResources(cpus=1),
        WorkerResources(cpus=2, ram_gb=4, num_gpus=1, gpu_memory_gb=4, gpu_model="T4"),
        WorkerResources(cpus=4, ram_gb=8, labels={"zone": "b"}),
    ]
    return [machines[0], *(dice.choice(machines) for _ in range(dice.randrange(4)))]


def _policy(dice: random.Random, seed: object) -> PolicySettings:
    return PolicySettings(
        name=dice.choice([*POLICIES, "priority"]),
        priority=_priority(dice, seed),
        work_stealing=WorkStealingParams(steal_threshold=dice.choice([1, 2]), backlog_per_slot=dice.choice([2, 8])),
        load_balancing=LoadBalancingParams(backlog_per_slot=dice.choice([1, 4])),
        batch=BatchParams(batch_size=dice.choice([2, 4])),
    )


def another_policy(dice: random.Random) -> PolicySettings:
    """What an operator might write into the file while the daemon runs; sometimes with a second one beside it."""
    return structs.replace(_policy(dice, dice.random()), shadow=dice.choice(["", "", *POLICIES]))


def engine_for(plan: Plan, policy: PolicySettings) -> EngineSettings:
    """The plan's settings of the engine, under another policy."""
    return structs.replace(plan.engine, stealing=plan.settings.stealing.enabled or policy.name == "work_stealing")


def _priority(dice: random.Random, seed: object) -> PriorityParams:
    """Mostly with preemption, which has short pauses: a storm is short. Half of them go by what tasks report."""
    own = random.Random(f"metric {seed}")  # so that the seeds from before there was such a rule mean what they did
    return PriorityParams(
        from_metric=own.choice(["", "step"]),
        from_metric_mode=own.choice(["max", "min"]),
        from_metric_weight=own.choice([0.25, 3.0]),
        preempt=dice.random() < 0.7,
        preempt_margin=dice.choice([1.0, 4.0]),
        preempt_after_s=dice.choice([0.0, 1.0]),
        preempt_run_min_s=dice.choice([0.0, 0.5]),
        preempt_times_max=dice.choice([1, 3]),
        preempt_grace_s=dice.choice([0.0, 1.0]),
    )


def _failures(dice: random.Random) -> FailureRules:
    """Verdicts that are drawn soon, or never."""
    return FailureRules(
        quarantine=dice.random() < 0.7,
        quarantine_failures_min=dice.choice([1, 2]),
        hopeless_kind=dice.random() < 0.7,
        hopeless_tasks_min=dice.choice([2, 3, 6]),
        hopeless_share=dice.choice([0.5, 0.95]),
        probe_after_ns=dice.choice([1, 5]) * SECOND,
        probe_after_max_ns=20 * SECOND,
        window_ns=dice.choice([5, 1800]) * SECOND,
        odds_per_worker=dice.choice([0.3, 3.0]),
        portion=dice.choice([1, 2000]),
    )


def make_plan(seed: int) -> Plan:
    """Throw the dice of a seed."""
    dice = random.Random(f"plan {seed}")
    mean = dice.choice([0.0, 0.5, 1.0, 2.0])

    def pause(typical_s: float, chance: float = 0.6) -> float:
        return typical_s / mean * dice.uniform(0.3, 1.2) if mean and dice.random() < chance else 0.0

    beat_s = dice.choice([1.0, 3.0])
    lease_s = beat_s * dice.choice([3, 5])
    lost_s = dice.choice([1.0, 6.0, 15.0])
    policy = _policy(dice, seed)
    stealing = StealingSettings(enabled=dice.random() < 0.7, interval_s=dice.choice([0.1, 0.5]))
    settings = Settings(
        policy=policy,
        stealing=stealing,
        heartbeat=HeartbeatSettings(beat_s, lease_s, lost_s),
        limits=LimitsSettings(finished_keep_count=10_000, results_keep_mb=dice.choice([0.0, 512.0])),
        journal=JournalSettings(adoption_grace_s=dice.choice([2.0, 10.0, 30.0])),
    )
    own = random.Random(f"swap {seed}")  # so that the seeds from before there was such a fault mean what they did
    engine = EngineSettings(
        failures=_failures(dice),
        prefetch=PrefetchRule(dice.choice([0.03, 1.0]), dice.choice([1.0, 10.0]), dice.choice([0, 2, 8])),
        heartbeat_ns=int(beat_s * SECOND),
        lease_ns=int(lease_s * SECOND),
        lost_after_ns=int(lost_s * SECOND),
        stealing=stealing.enabled or policy.name == "work_stealing",
        steal_interval_ns=int(stealing.interval_s * SECOND),
        finished_keep_count=10_000,
        results_keep_bytes=int(settings.limits.results_keep_mb * 1024 * 1024),
        moved_per_turn=own.choice([1, 3, 2000]),
    )
    workers = _workers(dice)
    if policy.name == "priority" and policy.priority.preempt and dice.random() < 0.7:
        del workers[1:]  # so that there is somebody to make room
    latency_s = dice.choice([0.0001, 0.005, 0.1])
    return Plan(
        seed=seed,
        settings=settings,
        engine=engine,
        workers=workers,
        clients=dice.choice([1, 1, 2]),
        requests=dice.randrange(6, 16),
        patient=dice.random() < 0.5,
        short_tasks=dice.random() < 0.4,
        network=NetworkRules(
            latency_s, latency_s * dice.choice([0.5, 5.0]), dice.choice([0.0, 0.01, 0.1]), dice.choice([0.0, 0.1])
        ),
        sync_s=dice.choice([0.0005, 0.01, 0.3]),
        break_pause_s=pause(6),
        partition_pause_s=pause(10),
        daemon_crash_pause_s=pause(12),
        daemon_stop_pause_s=pause(30),
        daemon_freeze_pause_s=pause(8, 0.5),
        worker_crash_pause_s=pause(15),
        worker_stop_pause_s=pause(15),
        machine_pause_s=pause(8, 0.4),
        disk_pause_s=pause(15, 0.4),
        drain_pause_s=pause(20, 0.3),
        swap_pause_s=own.uniform(1, 8) if mean and own.random() < 0.4 else 0.0,
    )


def without_faults(plan: Plan) -> Plan:
    """The same work on a good day."""
    calm = {field: 0.0 for field in plan.__struct_fields__ if field.endswith("_pause_s")}
    return structs.replace(plan, **calm)
