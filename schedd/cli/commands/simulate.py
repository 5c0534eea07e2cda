"""`schedd simulate`."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from schedd.cli.exits import Exit
from schedd.cli.options import BadInput, Parsed
from schedd.cli.output import Column, Output, make_console
from schedd.cli.session import command
from schedd.cli.values import nearest

if TYPE_CHECKING:
    from schedd.config import Settings
    from schedd.simulate.cluster import ClusterRow
    from schedd.simulate.run import Progress

EXAMPLES = """
schedd simulate --trace jobs.csv --cluster cluster.toml --policy fifo,priority,adaptive
schedd simulate --trace log.swf.gz --cluster cluster.toml --policy fifo --json
schedd simulate --trace jobs.csv --cluster cluster.toml --policy priority --set policy.priority.ageing_per_hour=2
schedd simulate --trace jobs.csv --cluster cluster.toml --policy fifo --add-worker gpus=8,model=A100
schedd simulate --trace jobs.csv --throughputs speeds.csv --cluster cluster.toml --policy fifo,adaptive
"""
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
    Column("us/placement", right=True),
)


def _parse_row(text: str) -> ClusterRow:
    from schedd.simulate.cluster import parse_row

    return parse_row(text)


@command("simulate", examples=EXAMPLES)
@click.option("--trace", required=True, metavar="FILE", help="What was submitted when, and how long it ran.")
@click.option(
    "--format", "layout", default="auto", metavar="NAME", help="Layout of the trace.  [default: by its columns]"
)
@click.option("--throughputs", metavar="FILE", help="Steps per second by device model, for a trace of jobs with steps.")
@click.option(
    "--cluster", "cluster_file", metavar="FILE", help="TOML or CSV: rows of count, num_gpus, gpu_model, cpus, …"
)
@click.option(
    "--add-worker", multiple=True, type=Parsed("worker", _parse_row), metavar="gpus=N,model=M,…", help="One more."
)
@click.option("--policy", "policies", default="fifo", metavar="A,B,…", show_default=True, help="Policies to compare.")
@click.option("--config", metavar="CONFIG.TOML", help="Settings of the daemon that is simulated.")
@click.option(
    "--set", "changes", multiple=True, metavar="KEY=VALUE", help="A setting, for instance policy.batch.batch_size=8."
)
@click.option("--seeds", type=click.IntRange(1, 10_000), default=1, show_default=True, help="Runs of each policy.")
@click.option("--json", "as_json", is_flag=True, help="Write JSON to stdout.")
@click.option("--csv", "as_csv", is_flag=True, help="Write CSV to stdout, a row for each policy and seed.")
@click.option("--quiet", "-q", is_flag=True, help="No remarks and no progress on stderr.")
def simulate_command(
    trace: str,
    layout: str,
    throughputs: str | None,
    cluster_file: str | None,
    add_worker: Sequence[ClusterRow],
    policies: str,
    config: str | None,
    changes: Sequence[str],
    seeds: int,
    as_json: bool,
    as_csv: bool,
    quiet: bool,
) -> Exit:
    """Run a trace under one policy or several, with the daemon's own engine and a virtual clock.

    Messages take no time and nothing fails: what is compared is what the policies decide. Times count from the first
    submit; ": bound" is the makespan over one that no schedule can beat, where that can be computed.
    """
    from schedd.simulate.bound import lower_bound_s
    from schedd.simulate.cluster import read_cluster
    from schedd.simulate.layouts import read_speeds
    from schedd.simulate.metrics import Figures, figures_of, summary
    from schedd.simulate.run import Simulator
    from schedd.simulate.trace import read_trace

    out = Output(as_json=as_json, quiet=quiet)
    names = _policies(policies)
    settings = {name: _settings(config, changes, name) for name in names}
    cluster = [*(read_cluster(cluster_file) if cluster_file else []), *add_worker]
    if not cluster:
        raise BadInput("there is no cluster to run on", "give --cluster FILE, or --add-worker")
    rows = read_trace(trace, layout, read_speeds(throughputs) if throughputs else None)
    bound = lower_bound_s(rows, cluster)
    found: dict[str, list[Figures]] = {}
    with _progress(quiet=quiet) as progress:
        for name in names:
            runs = (Simulator(rows, cluster, settings[name], seed).run(progress(name)) for seed in range(seeds))
            found[name] = [figures_of(run) for run in runs]
    summaries = {name: summary(runs) for name, runs in found.items()}
    if as_json:
        out.json({"lower_bound_s": bound, "policies": summaries})
    elif as_csv:
        _write_csv(out, found)
    else:
        out.table(COLUMNS, [_cells(name, values, bound) for name, values in summaries.items()])
        workers = sum(row.count for row in cluster)
        said = f"{len(rows.tasks):,} tasks ({rows.format}) on {workers:,} workers"
        out.say(said if bound is None else f"{said}; no schedule ends before {bound:,.1f} s")
    return Exit.OK


def _policies(text: str) -> list[str]:
    from schedd import plugins
    from schedd.core.policies import POLICIES

    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names:
        if name not in POLICIES and plugins.find(name) is None:
            raise BadInput(f"there is no policy {name!r}", nearest(name, [*POLICIES, *plugins.registered()]))
    if not names:
        raise BadInput("no policy is named", f"policies: {', '.join(POLICIES)}")
    return names


def _settings(config: str | None, changes: Sequence[str], policy: str) -> Settings:
    """The settings of a file, changed as asked for. Raises ConfigError."""
    from schedd.config import load_settings, settings_of

    table: dict[str, Any] = {}
    if config is not None:
        load_settings(config)  # which says best what is wrong with it
        with open(config, "rb") as file:  # noqa: PTH123
            table = tomllib.load(file)
    for change in changes:
        key, sign, value = change.partition("=")
        if not sign or not key.strip():
            raise BadInput(f"--set {change!r} is not of the form KEY=VALUE", "for instance policy.batch.batch_size=8")
        *path, last = key.strip().split(".")
        into = table
        for name in path:
            into = into.setdefault(name, {})
            if not isinstance(into, dict):
                raise BadInput(f"--set {change!r}: {name} is no table")
        into[last] = _value(value.strip())
    table.setdefault("policy", {})["name"] = policy
    return settings_of(table, "--set" if config is None else config)


def _value(text: str) -> Any:
    """A TOML value; what is none is a string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _cells(name: str, values: dict[str, Any], bound: float | None) -> list[str]:
    spread = values["ci95"] or {}

    def cell(key: str, digits: int) -> str:
        half = spread.get(key, 0.0)
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
        f"{values['decision_us']:,.0f}",
    ]


def _write_csv(out: Output, found: dict[str, list[Any]]) -> None:
    import csv
    import io

    from msgspec import structs

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    first = next(iter(found.values()))[0]
    writer.writerow(["policy", "seed", *structs.asdict(first)])
    for name, runs in found.items():
        writer.writerows([name, seed, *structs.asdict(run).values()] for seed, run in enumerate(runs))
    out.raw(text.getvalue().encode())


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Any]:
    """Make a bar for each policy where somebody watches, nothing elsewhere."""
    from schedd.simulate.run import no_progress

    if quiet or not sys.stderr.isatty():
        yield lambda name: no_progress
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=make_console(sys.stderr), transient=True) as bar:

        def line_for(name: str) -> Progress:
            line = bar.add_task(name, total=None)
            return lambda finished, total: bar.update(line, completed=finished, total=total)

        yield line_for
