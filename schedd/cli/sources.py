"""What `schedd simulate` runs: a trace, a load that is drawn, searches, or what a daemon has done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from schedd.cli.options import BadInput
from schedd.core.model import SECOND

if TYPE_CHECKING:
    from schedd.simulate.cluster import ClusterRow
    from schedd.simulate.generate import Load
    from schedd.simulate.history import History
    from schedd.simulate.reactive import Reactive
    from schedd.simulate.trace import Trace


class Wanted(Struct, frozen=True, kw_only=True):
    """The options that say what is run."""

    traces: Sequence[str]
    load: Any
    journal: str | None
    since: float | None
    until: float | None
    layout: str
    throughputs: str | None
    rows: slice | None
    workload: str
    eta: int | None
    levels: tuple[float, ...] | None
    configs: int | None
    searches: int | None
    from_scratch: bool


class Source(Struct, frozen=True):
    """What is run. `begin`: what a run with a seed begins with; bound: of its makespan, None where none is known.

    tasks: of a trace that is the same for all seeds. history: where it is that of a daemon.
    """

    begin: Callable[[int], Trace | Reactive]
    bound: Callable[[int], float | None]
    cluster: list[ClusterRow]
    tasks: Trace | None = None
    history: History | None = None


def source_of(
    wanted: Wanted, cluster: Sequence[ClusterRow] | None, more: Sequence[ClusterRow], config: str | None
) -> Source:
    """Read what is to be run. Raises BadInput, TraceError, JournalError."""
    _one_of(wanted)
    of_searches = (wanted.eta, wanted.levels, wanted.configs, wanted.searches, wanted.from_scratch)
    if wanted.workload == "trace" and any(of_searches):
        raise BadInput("there are no searches in a trace", "submit by result with --workload halving, or asha")
    if wanted.journal is not None:
        return _history(wanted, cluster, more, config)
    workers = [*(cluster or []), *more]
    if not workers:
        raise BadInput("there is no cluster to run on", "give --cluster FILE, or --add-worker")
    if wanted.load is not None:
        return _load(wanted.load, workers)
    return _searches(wanted, workers) if wanted.workload != "trace" else _trace(wanted, workers)


def _one_of(wanted: Wanted) -> None:
    given = [bool(wanted.traces), wanted.load is not None, wanted.journal is not None]
    if wanted.traces and wanted.load is not None:
        raise BadInput("a trace and a load cannot be run at once", "give --trace or --generate")
    if wanted.traces and wanted.journal is not None:
        raise BadInput("a trace and a journal cannot be run at once", "give one of them")
    if sum(given) > 1:
        raise BadInput("a load and a journal cannot be run at once", "give one of them")
    if not any(given):
        raise BadInput(
            "there is nothing to run",
            "give --trace FILE, --generate poisson, or --journal for what the daemon has done",
        )
    if wanted.journal is None and (wanted.since is not None or wanted.until is not None):
        raise BadInput("--since and --until choose from a journal", "give --journal")
    if not wanted.traces and (wanted.rows is not None or wanted.throughputs is not None):
        raise BadInput("--rows and --throughputs are for a trace", "give --trace")
    if not wanted.traces and wanted.layout != "auto":
        raise BadInput("--format is the layout of a trace", "give --trace")
    if not wanted.traces and wanted.workload != "trace":
        raise BadInput("searches are over the learning curves of a trace", "give --trace, or leave out --workload")


def _trace(wanted: Wanted, workers: list[ClusterRow]) -> Source:
    from schedd.simulate.bound import lower_bound_s
    from schedd.simulate.layouts import read_speeds
    from schedd.simulate.trace import part_of, read_trace

    speeds = read_speeds(wanted.throughputs) if wanted.throughputs else None
    read, *others = [read_trace(path, wanted.layout, speeds) for path in wanted.traces]
    if others:
        raise BadInput("--trace is given more than once", "only --workload halving and asha take more files than one")
    tasks = read if wanted.rows is None else part_of(read, wanted.rows)
    return Source(lambda seed: tasks, _once(lambda: lower_bound_s(tasks, workers)), workers, tasks)


def _load(load: Load, workers: list[ClusterRow]) -> Source:
    from schedd.simulate.bound import lower_bound_s
    from schedd.simulate.generate import generate

    @lru_cache(maxsize=1)  # all that is asked for one seed is asked one after the other
    def drawn(seed: int) -> Trace:
        return generate(load, workers, seed)

    return Source(drawn, lambda seed: lower_bound_s(drawn(seed), workers), workers)


def _searches(wanted: Wanted, workers: list[ClusterRow]) -> Source:
    """An evaluation takes a GPU where all workers have some, else a CPU."""
    from schedd.core.model import TaskRequirements
    from schedd.simulate.curves import read_curves
    from schedd.simulate.reactive import Plan, Reactive, lower_bound_s

    if wanted.rows is not None or wanted.throughputs is not None:
        raise BadInput("--rows and --throughputs are for a trace of tasks", "leave them out")
    plan = Plan(
        wanted.workload,
        wanted.eta or 3,
        wanted.levels or (),
        wanted.configs or 0,
        wanted.searches or 0,
        not wanted.from_scratch,
    )
    data = [curves for file in wanted.traces for curves in read_curves(file, wanted.layout)]
    needs = TaskRequirements(min_gpus=1 if all(row.num_gpus for row in workers) else 0)
    return Source(
        lambda seed: Reactive(data, plan, needs),
        _once(lambda: lower_bound_s(Reactive(data, plan, needs), workers)),
        workers,
    )


def _history(
    wanted: Wanted, cluster: Sequence[ClusterRow] | None, more: Sequence[ClusterRow], config: str | None
) -> Source:
    from schedd.address import journal_path
    from schedd.config import load_settings
    from schedd.journal.replay import read_pages
    from schedd.simulate.bound import lower_bound_s
    from schedd.simulate.history import Recorder

    path = Path(wanted.journal) if wanted.journal else journal_path(load_settings(config).journal.path)
    until_ns = None if wanted.until is None else int(wanted.until * SECOND)
    recorder = Recorder(int((wanted.since or 0) * SECOND), until_ns)
    for page in read_pages(path):
        recorder.take(page)
    history = recorder.history(cluster, more)
    bound = _once(lambda: lower_bound_s(history.trace, history.workers))
    return Source(lambda seed: history.trace, bound, list(history.workers), history.trace, history)


def _once(bound: Callable[[], float | None]) -> Callable[[int], float | None]:
    """The same bound for all seeds, not before it is asked for: its solver has threads, and the runs are forked."""
    found = cache(bound)
    return lambda seed: found()


def told(given: Trace | Reactive) -> str:
    """Say what is run."""
    from schedd.simulate.reactive import Reactive

    if isinstance(given, Reactive):
        count = len(given.searches)
        return f"{count:,} search{'es' if count > 1 else ''} ({given.trace.format})"
    return f"{len(given.tasks):,} tasks ({given.format})"
