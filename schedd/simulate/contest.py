"""Who may take part in a comparison: the daemon's policies, and those of the literature that only the simulator has."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from schedd.config import Settings
from schedd.core.policies import POLICIES
from schedd.simulate.cluster import ClusterRow
from schedd.simulate.literature import LITERATURE
from schedd.simulate.preemptive import PREEMPTIVE, RestartCosts, run_preemptive
from schedd.simulate.run import Progress, Run, Simulator, no_progress
from schedd.simulate.trace import Trace

#: All names, the daemon's first.
NAMES = (*POLICIES, *LITERATURE, *PREEMPTIVE)


class Rules(Struct, frozen=True):
    """How the runs go, beside what the settings say.

    backfill: under policies of the literature, tasks may overtake the one that waits. one_by_one: as in `Simulator`.
    restart_costs: of tasks under preemptive policies.
    """

    backfill: bool = False
    one_by_one: bool = False
    restart_costs: RestartCosts = {}


def run_under(
    name: str,
    trace: Trace,
    cluster: Sequence[ClusterRow],
    settings: Settings,
    seed: int = 0,
    rules: Rules = Rules(),  # noqa: B008 - it is frozen
    on_progress: Progress = no_progress,
) -> Run:
    """Run a trace under one of `NAMES`; of the daemon's, the settings must name it. Raises TraceError."""
    if name in PREEMPTIVE:
        return run_preemptive(name, trace, cluster, rules.restart_costs, on_progress)
    policy = LITERATURE[name](trace, rules.backfill) if name in LITERATURE else None
    simulator = Simulator(trace, cluster, settings, seed, policy=policy, one_by_one=rules.one_by_one)
    return simulator.run(on_progress)


def settings_name(name: str) -> str:
    """The policy that the settings of a run under `name` name: it must be one of the daemon's."""
    return name if name in POLICIES else "fifo"
