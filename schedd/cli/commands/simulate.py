"""`schedd simulate`."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
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
    from schedd.simulate.reactive import Plan, Reactive
    from schedd.simulate.run import Progress
    from schedd.simulate.trace import Trace

EXAMPLES = """
schedd simulate --trace jobs.csv --cluster cluster.toml --policy fifo,priority,adaptive
schedd simulate --trace log.swf.gz --cluster cluster.toml --policy fifo --json
schedd simulate --trace jobs.csv --cluster cluster.toml --policy priority --set policy.priority.ageing_per_hour=2
schedd simulate --trace jobs.csv --cluster cluster.toml --policy fifo --add-worker gpus=8,model=A100
schedd simulate --workload asha --trace curves.csv.gz --add-worker count=24 --policy fifo,priority
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
SEARCH_COLUMNS = (Column("search end s", right=True), Column("fully trained s", right=True))


def _parse_row(text: str) -> ClusterRow:
    from schedd.simulate.cluster import parse_row

    return parse_row(text)


def _parse_levels(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


@command("simulate", examples=EXAMPLES)
@click.option(
    "--trace", "traces", required=True, multiple=True, metavar="FILE", help="What was submitted when, how long it ran."
)
@click.option(
    "--format", "layout", default="auto", metavar="NAME", help="Layout of the trace.  [default: by its columns]"
)
@click.option(
    "--cluster", "cluster_file", metavar="FILE", help="TOML or CSV: rows of count, num_gpus, gpu_model, cpus, …"
)
@click.option(
    "--add-worker", multiple=True, type=Parsed("worker", _parse_row), metavar="gpus=N,model=M,…", help="One more."
)
@click.option(
    "--workload",
    type=click.Choice(["trace", "halving", "asha"]),
    default="trace",
    show_default=True,
    help="Submit as recorded, or by result: searches over the learning curves of the traces.",
)
@click.option("--eta", type=click.IntRange(2, 100), default=3, show_default=True, help="One in so many goes on.")
@click.option("--levels", type=Parsed("levels", _parse_levels), metavar="A,B,…", help="Fidelities of the rungs.")
@click.option("--configs", type=click.IntRange(min=1), help="Configurations of a search.")
@click.option("--searches", type=click.IntRange(min=1), help="Searches over each set of curves.")
@click.option("--from-scratch", is_flag=True, help="No checkpoints: each rung trains anew.")
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
    traces: Sequence[str],
    layout: str,
    cluster_file: str | None,
    add_worker: Sequence[ClusterRow],
    workload: str,
    eta: int,
    levels: tuple[float, ...] | None,
    configs: int | None,
    searches: int | None,
    from_scratch: bool,
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
    from schedd.simulate import reactive
    from schedd.simulate.cluster import read_cluster
    from schedd.simulate.metrics import figures_of, summary
    from schedd.simulate.run import Simulator

    out = Output(as_json=as_json, quiet=quiet)
    names = _policies(policies)
    settings = {name: _settings(config, changes, name) for name in names}
    cluster = [*(read_cluster(cluster_file) if cluster_file else []), *add_worker]
    if not cluster:
        raise BadInput("there is no cluster to run on", "give --cluster FILE, or --add-worker")
    if workload == "trace" and (levels or configs or searches or from_scratch):
        raise BadInput("there are no searches in a trace", "submit by result with --workload halving, or asha")
    plan = reactive.Plan(workload, eta, levels or (), configs or 0, searches or 0, not from_scratch)
    given, bound = (_recorded if workload == "trace" else _searches)(traces, layout, plan, cluster)
    summaries: dict[str, dict[str, Any]] = {}
    with _progress(quiet=quiet) as progress:
        for name in names:
            all_given = [given() for _ in range(seeds)]
            runs = (
                Simulator(each, cluster, settings[name], seed).run(progress(name))
                for seed, each in enumerate(all_given)
            )
            summaries[name] = reactive.with_searches(summary([figures_of(run) for run in runs]), all_given)
    if as_json:
        out.json({"lower_bound_s": bound, "policies": summaries})
    elif as_csv:
        _write_csv(out, summaries)
    else:
        columns = COLUMNS if workload == "trace" else (*COLUMNS, *SEARCH_COLUMNS)
        out.table(columns, [_cells(name, values, bound) for name, values in summaries.items()])
        workers = sum(row.count for row in cluster)
        said = f"{_what(given())} on {workers:,} workers"
        out.say(said if bound is None else f"{said}; no schedule ends before {bound:,.1f} s")
    return Exit.OK


def _recorded(
    traces: Sequence[str], layout: str, plan: Plan, cluster: Sequence[ClusterRow]
) -> tuple[Callable[[], Trace], float | None]:
    """What gives a trace for each run, and the bound of its makespan."""
    from schedd.simulate.bound import lower_bound_s
    from schedd.simulate.trace import read_trace

    trace, *others = [read_trace(path, layout) for path in traces]
    if others:
        raise BadInput("--trace is given more than once", "only --workload halving and asha take more files than one")
    return lambda: trace, lower_bound_s(trace, cluster)


def _searches(
    files: Sequence[str], layout: str, plan: Plan, cluster: Sequence[ClusterRow]
) -> tuple[Callable[[], Reactive], float | None]:
    """What begins the searches anew for each run, and the bound of their makespan.

    An evaluation takes a GPU where all workers have some, else a CPU.
    """
    from schedd.core.model import TaskRequirements
    from schedd.simulate.curves import read_curves
    from schedd.simulate.reactive import Reactive, lower_bound_s

    data = [curves for file in files for curves in read_curves(file, layout)]
    needs = TaskRequirements(min_gpus=1 if all(row.num_gpus for row in cluster) else 0)
    return lambda: Reactive(data, plan, needs), lower_bound_s(Reactive(data, plan, needs), cluster)


def _what(given: Trace | Reactive) -> str:
    """Say what is run."""
    from schedd.simulate.reactive import Reactive

    if isinstance(given, Reactive):
        count = len(given.searches)
        return f"{count:,} search{'es' if count > 1 else ''} ({given.trace.format})"
    return f"{len(given.tasks):,} tasks ({given.format})"


def _policies(text: str) -> list[str]:
    from schedd.core.policies import POLICIES

    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names:
        if name not in POLICIES:
            raise BadInput(f"there is no policy {name!r}", nearest(name, list(POLICIES)))
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
        *(cell(key, 1) for key in ("mean_search_end_s", "mean_search_full_s") if key in values),
    ]


def _write_csv(out: Output, summaries: dict[str, dict[str, Any]]) -> None:
    import csv
    import io

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    runs = [(name, seed, run) for name, values in summaries.items() for seed, run in enumerate(values["per_seed"])]
    columns = [name for name, value in runs[0][2].items() if not isinstance(value, list)]
    writer.writerow(["policy", "seed", *columns])
    writer.writerows([name, seed, *(run[column] for column in columns)] for name, seed, run in runs)
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
