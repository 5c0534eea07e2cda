"""What `schedd simulate` shows of its runs: tables, CSV, how full a cluster becomes, and a bar while they run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from schedd.cli.output import Column, Output, make_console

if TYPE_CHECKING:
    from schedd.config import Settings
    from schedd.simulate.cluster import ClusterRow
    from schedd.simulate.run import Progress
    from schedd.simulate.trace import Trace

COLUMNS = (
    Column("policy"),
    Column("makespan s", right=True),
    Column(": bound", right=True),
    Column("mean JCT s", right=True),
    Column("p50 JCT s", right=True),
    Column("p99 JCT s", right=True),
    Column("mean delay s", right=True),
    Column("slowdown", right=True),
    Column("utilisation", right=True),
    Column("fairness", right=True),
    Column("steals", right=True),
    Column("wasted s", right=True),
    Column("attempts", right=True),
    Column("failed", right=True),
    Column("us/placement", right=True),
)
#: What no journal says of a run.
UNRECORDED = {"gpu_allocation_ratio": None, "decision_us": None}
SEARCH_COLUMNS = (Column("search end s", right=True), Column("fully trained s", right=True))


def cells(name: str, values: dict[str, Any], bound: float | None) -> list[str]:
    """The row of a policy for `COLUMNS`, and `SEARCH_COLUMNS` where there were searches."""
    spread = values["ci95"] or {}

    def cell(key: str, digits: int) -> str:
        half = spread.get(key, 0.0)
        if key == "mean_search_full_s" and not values[key]:
            return "-"  # none ever was
        text = f"{values[key]:,.{digits}f}"
        return f"{text} ± {half:,.{digits}f}" if half else text

    return [
        name,
        cell("makespan_s", 1),
        f"{values['makespan_s'] / bound:.3f}" if bound else "-",
        cell("mean_flow_time_s", 1),
        cell("p50_flow_time_s", 1),
        cell("p99_flow_time_s", 1),
        cell("mean_queueing_delay_s", 1),
        cell("mean_bounded_slowdown", 2),
        cell("utilisation", 3),
        cell("fairness", 3),
        cell("steals", 0),
        cell("wasted_s", 1),
        cell("attempts", 0),
        cell("failed", 0),
        "-" if values["decision_us"] is None else f"{values['decision_us']:,.0f}",
        *(cell(key, 1) for key in ("mean_search_end_s", "mean_search_full_s") if key in values),
    ]


def write_csv(out: Output, summaries: dict[str, dict[str, Any]]) -> None:
    """Write a row for each policy and seed."""
    import csv
    import io

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    runs = [(name, seed, run) for name, values in summaries.items() for seed, run in enumerate(values["per_seed"])]
    columns = [name for name, value in runs[0][2].items() if not isinstance(value, list)]
    writer.writerow(["policy", "seed", *columns])
    writer.writerows([name, seed, *(run[column] for column in columns)] for name, seed, run in runs)
    out.raw(text.getvalue().encode())


def fill(
    out: Output,
    policies: dict[str, str],
    tasks: Trace,
    cluster: Sequence[ClusterRow],
    settings: dict[str, Settings],
    percent: float,
    seeds: int,
    jobs: int,
) -> None:
    """Fill the cluster under each policy, and show how much of it was given. policies: by label."""
    from schedd.simulate.contest import fill_under
    from schedd.simulate.fill import MARKS, fill_summary
    from schedd.simulate.record import Filling
    from schedd.simulate.series import run_each

    def run(key: tuple[int, str], on_progress: Progress) -> Filling:
        seed, label = key
        return fill_under(policies[label], tasks, cluster, settings[label], percent, seed, on_progress)

    pairs = [(seed, label) for seed in range(seeds) for label in policies]
    with progress_of(seeds, quiet=out.quiet) as report:
        runs = run_each(run, pairs, jobs, report)
    found = {label: fill_summary(runs[position :: len(policies)]) for position, label in enumerate(policies)}
    if out.as_json:
        out.json({"lower_bound_s": None, "policies": found})
        return
    marks = [mark for mark in MARKS if mark < percent]
    keys = [*(f"gpu_allocation_ratio_at_{mark}" for mark in marks), "gpu_allocation_ratio"]
    columns = [Column("policy"), *(Column(f"at {mark:g} %", right=True) for mark in (*marks, percent))]
    columns += [Column("dropped", right=True), Column("us/placement", right=True)]
    rows = []
    for label, values in found.items():
        spread = values["ci95"] or {}
        shares = [f"{100 * values[k]:.2f}" + (f" ± {100 * spread[k]:.2f}" if spread else "") for k in keys]
        rows.append([label, *shares, f"{values['dropped']:,.0f}", f"{values['decision_us']:,.0f}"])
    out.comparison(tuple(columns), rows)
    out.say(f"percent of the GPUs given when so many were asked for; {len(tasks.tasks):,} tasks ({tasks.format})")


@contextmanager
def progress_of(seeds: int, *, quiet: bool) -> Iterator[Callable[[tuple[int, str], int, int], None]]:
    """Make a bar for each policy where somebody watches, nothing elsewhere; it hears ((seed, label), finished, total).

    It begins with the first that it hears: its thread should not be there when processes are forked for the runs.
    """
    if quiet or not sys.stderr.isatty():
        yield lambda key, finished, total: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=make_console(sys.stderr), transient=True)
    lines: dict[str, Any] = {}
    done: dict[str, dict[int, int]] = {}

    def report(key: tuple[int, str], finished: int, total: int) -> None:
        seed, label = key
        if label not in lines:
            bar.start()
            lines[label], done[label] = bar.add_task(label, total=None), {}
        done[label][seed] = finished
        bar.update(lines[label], completed=sum(done[label].values()), total=total * seeds)

    try:
        yield report
    finally:
        bar.stop()
