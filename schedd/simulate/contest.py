"""Who may take part in a comparison: the daemon's policies, and those of the literature that only the simulator has."""

from __future__ import annotations

import random
from collections.abc import Sequence

from msgspec import Struct

from schedd.config import Settings
from schedd.core.policies import POLICIES
from schedd.core.policies.adaptive import AdaptiveScheduler
from schedd.core.policies.base import TaskScheduler
from schedd.core.stats import Learned
from schedd.errors import TraceError
from schedd.simulate.cluster import ClusterRow
from schedd.simulate.fill import Filler
from schedd.simulate.informed import InformedScheduler
from schedd.simulate.known import with_all_known
from schedd.simulate.ledgers import ledgers_of
from schedd.simulate.literature import LITERATURE
from schedd.simulate.models import told_apart
from schedd.simulate.placements import PLACEMENTS
from schedd.simulate.preemptive import PREEMPTIVE, RestartCosts, run_preemptive
from schedd.simulate.record import Filling, Run
from schedd.simulate.run import BEGINNING_NS, Progress, Simulator, no_progress
from schedd.simulate.trace import Trace
from schedd.simulate.workload import Workload

#: All names, the daemon's first.
NAMES = (*POLICIES, *LITERATURE, *PLACEMENTS, *PREEMPTIVE, InformedScheduler.name)


class Rules(Struct, frozen=True):
    """How the runs go, beside what the settings say.

    backfill: under orders of the literature, tasks may overtake the one that waits. one_by_one: as in `Simulator`.
    restart_costs: of tasks under preemptive policies. known: `adaptive` has learned beforehand how long each task takes
    on each model.
    """

    backfill: bool = False
    one_by_one: bool = False
    restart_costs: RestartCosts = {}
    known: bool = False


def run_under(
    name: str,
    trace: Trace | Workload,
    cluster: Sequence[ClusterRow],
    settings: Settings,
    seed: int = 0,
    rules: Rules = Rules(),  # noqa: B008 - it is frozen
    on_progress: Progress = no_progress,
    *,
    keep_spans: bool = False,
) -> Run:
    """Run a trace under one of `NAMES`; of the daemon's, the settings must name it. Raises TraceError."""
    if name in (*PREEMPTIVE, *LITERATURE, InformedScheduler.name) and not isinstance(trace, Trace):
        raise TraceError(f"{name} needs to know all tasks", f"of the daemon: {', '.join(POLICIES)}")
    if name in PREEMPTIVE and isinstance(trace, Trace):
        if keep_spans:
            raise TraceError(
                f"{name} cannot be drawn: it keeps no account of what ran when", "leave it out, or the drawing"
            )
        return run_preemptive(name, trace, cluster, rules.restart_costs, on_progress)
    if isinstance(trace, Trace):
        trace, cluster = told_apart(trace, cluster)
    rng = random.Random(seed)
    policy: TaskScheduler | None = None
    if name in LITERATURE and isinstance(trace, Trace):
        policy = LITERATURE[name](trace, rules.backfill)
    if name in PLACEMENTS:
        policy = PLACEMENTS[name](cluster, rng)
    if name == InformedScheduler.name and isinstance(trace, Trace):
        policy = InformedScheduler(trace, cluster, settings.policy.adaptive, BEGINNING_NS)
    learned: list[Learned] = []
    if rules.known:
        if not isinstance(trace, Trace):
            raise TraceError("what is submitted by result is not known beforehand", "leave out --known")
        if name == AdaptiveScheduler.name:  # kinds of their own for what takes equally long are no matter of others
            trace, learned = with_all_known(trace, cluster)
    simulator = Simulator(
        trace,
        cluster,
        settings,
        seed,
        policy=policy,
        one_by_one=rules.one_by_one,
        keep_spans=keep_spans,
        ledgers=ledgers_of(name, rng),
    )
    if learned:
        simulator.engine.recall({AdaptiveScheduler.name: learned})
    return simulator.run(on_progress)


def fill_under(
    name: str,
    trace: Trace,
    cluster: Sequence[ClusterRow],
    settings: Settings,
    percent: float,
    seed: int = 0,
    on_progress: Progress = no_progress,
) -> Filling:
    """Fill a cluster under a policy of the daemon or one of `PLACEMENTS`. Raises TraceError."""
    if name not in POLICIES and name not in PLACEMENTS:
        raise TraceError(f"{name} says when tasks start, not where", f"to fill: {', '.join((*POLICIES, *PLACEMENTS))}")
    trace, cluster = told_apart(trace, cluster)
    rng = random.Random(seed)
    policy = PLACEMENTS[name](cluster, rng) if name in PLACEMENTS else None
    filler = Filler(trace, cluster, settings, seed, policy=policy, ledgers=ledgers_of(name, rng))
    return filler.fill(percent, rng, on_progress)


def settings_name(name: str) -> str:
    """The policy that the settings of a run under `name` name: it must be one that a daemon could run."""
    if name == InformedScheduler.name:
        return "adaptive"
    return "fifo" if name in (*LITERATURE, *PLACEMENTS, *PREEMPTIVE) else name
