"""`schedd simulate`."""

from __future__ import annotations

import sys
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from schedd.cli.exits import Exit
from schedd.cli.options import BadInput, Parsed
from schedd.cli.output import Column, Output, make_console
from schedd.cli.session import command
from schedd.cli.values import nearest, parse_instant
from schedd.cli.variants import parse_change, variants_of
from schedd.core.model import SECOND
from schedd.core.policies import POLICIES
from schedd.errors import TraceError

if TYPE_CHECKING:
    from schedd.config import Settings
    from schedd.simulate.cluster import ClusterRow
    from schedd.simulate.history import History
    from schedd.simulate.run import Progress

EXAMPLES = """
schedd simulate --trace jobs.csv --cluster cluster.toml --policy fifo,priority,adaptive
schedd simulate --trace log.swf.gz --cluster cluster.toml --policy fifo --json
schedd simulate --trace jobs.csv --cluster cluster.toml --policy priority --set policy.priority.ageing_per_hour=2
schedd simulate --trace jobs.csv --cluster cluster.toml --policy fifo --add-worker gpus=8,model=A100
schedd simulate --journal --since 7d
schedd simulate --journal backup.db --policy priority,batch --try policy.batch.batch_size=2,4,8 --objective makespan
"""
#: What a policy may be best by; see `simulate.compare`, which a help text is not worth importing.
OBJECTIVES = ("mean_flow_time", "makespan", "p99_flow_time", "mean_bounded_slowdown")
INSTANT = Parsed("time", lambda text: parse_instant(text, time.time()))
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
@click.option("--trace", metavar="FILE", help="What was submitted when, and how long it ran.")
@click.option(
    "--journal",
    is_flag=False,
    flag_value="",
    metavar="[FILE]",
    help="In place of a trace: what a daemon has done. Its journal, in use or not, or a backup.  [default: our own]",
)
@click.option("--since", type=INSTANT, metavar="TIME", help="Of a journal, what was submitted since then: 2h, 7d, …")
@click.option("--until", type=INSTANT, metavar="TIME", help="Of a journal, what was submitted before that.")
@click.option(
    "--format", "layout", default="auto", metavar="NAME", help="Layout of the trace.  [default: by its columns]"
)
@click.option(
    "--cluster",
    "cluster_file",
    metavar="FILE",
    help="TOML or CSV: rows of count, num_gpus, gpu_model, cpus, …  [default with --journal: its workers]",
)
@click.option(
    "--add-worker", multiple=True, type=Parsed("worker", _parse_row), metavar="gpus=N,model=M,…", help="One more."
)
@click.option("--policy", "policies", metavar="A,B,…", help="Policies to compare.  [default: fifo; with --journal all]")
@click.option("--config", metavar="CONFIG.TOML", help="Settings of the daemon that is simulated.")
@click.option(
    "--set", "changes", multiple=True, metavar="KEY=VALUE", help="A setting, for instance policy.batch.batch_size=8."
)
@click.option(
    "--try", "tries", multiple=True, metavar="KEY=A,B,…", help="Run also with each of these values. Repeatable."
)
@click.option(
    "--objective",
    type=click.Choice(OBJECTIVES),
    help="Say which policy is best by this.  [default with --journal: mean_flow_time]",
)
@click.option("--seeds", type=click.IntRange(1, 10_000), default=1, show_default=True, help="Runs of each policy.")
@click.option("--json", "as_json", is_flag=True, help="Write JSON to stdout.")
@click.option("--csv", "as_csv", is_flag=True, help="Write CSV to stdout, a row for each policy and seed.")
@click.option("--quiet", "-q", is_flag=True, help="No remarks and no progress on stderr.")
def simulate_command(
    trace: str | None,
    journal: str | None,
    since: float | None,
    until: float | None,
    layout: str,
    cluster_file: str | None,
    add_worker: Sequence[ClusterRow],
    policies: str | None,
    config: str | None,
    changes: Sequence[str],
    tries: Sequence[str],
    objective: str | None,
    seeds: int,
    as_json: bool,
    as_csv: bool,
    quiet: bool,
) -> Exit:
    """Run a trace, or a daemon's own history, under one policy or several, with the daemon's own engine and a virtual
    clock.

    Messages take no time: what is compared is what the policies decide. Times count from the first submit; ": bound" is
    the makespan over one that no schedule can beat, where that can be computed.
    """
    from schedd.cli.verdict import Verdict
    from schedd.simulate.bound import lower_bound_s
    from schedd.simulate.cluster import read_cluster
    from schedd.simulate.compare import Values
    from schedd.simulate.metrics import Figures, figures_of, summary
    from schedd.simulate.run import Simulator
    from schedd.simulate.trace import read_trace

    out = Output(as_json=as_json, quiet=quiet)
    if trace is None and journal is None:
        raise BadInput("there is nothing to run", "give --trace FILE, or --journal for what the daemon has done")
    if trace is not None and journal is not None:
        raise BadInput("a trace and a journal cannot be run at once", "give one of them")
    if journal is None and (since is not None or until is not None):
        raise BadInput("--since and --until choose from a journal", "give --journal")
    names = _policies(policies) if policies is not None else (list(POLICIES) if trace is None else ["fifo"])
    variants = {variant.label: variant for variant in variants_of(names, tries, changes)}
    settings = {label: _settings(config, each.changes, each.policy) for label, each in variants.items()}
    objective = objective or (OBJECTIVES[0] if trace is None else None)
    given = read_cluster(cluster_file) if cluster_file else None
    history = None
    if trace is None:
        history = _history(journal, config, since, until, given, add_worker)
        rows, cluster = history.trace, history.workers
        settings = {label: _without_verdicts(each) for label, each in settings.items()}
    else:
        cluster = [*(given or []), *add_worker]
        if not cluster:
            raise BadInput("there is no cluster to run on", "give --cluster FILE, or --add-worker")
        rows = read_trace(trace, layout)
    bound = lower_bound_s(rows, cluster)
    found: dict[str, list[Figures]] = {}
    values: dict[str, Values] = {}
    with _progress(quiet=quiet) as progress:
        for name in variants:
            runs = [Simulator(rows, cluster, settings[name], seed).run(progress(name)) for seed in range(seeds)]
            found[name] = [figures_of(run) for run in runs]
            if objective is not None:
                values[name] = Values(runs, objective)
    summaries = {name: summary(runs) for name, runs in found.items()}
    verdict = None
    if objective is not None:
        verdict = Verdict(variants, values, _in_use(config), history, configured=config is not None)
        before = cluster[: len(cluster) - len(add_worker)]
        if add_worker and before:
            with suppress(TraceError):  # there may be tasks that need what was added
                runs = [Simulator(rows, before, settings[verdict.best], seed).run() for seed in range(seeds)]
                verdict.without_added = Values(runs, objective).value
    if as_json:
        told = {"lower_bound_s": bound, "policies": summaries}
        out.json(told | verdict.as_json() if verdict is not None else told)
    elif as_csv:
        _write_csv(out, found)
    else:
        cells = [_cells(name, each, bound) for name, each in summaries.items()]
        if history is not None and history.recorded is not None:
            cells.append(_cells("(recorded)", summary([figures_of(history.recorded)]), None))
        out.table(COLUMNS, cells)
        workers = sum(row.count for row in cluster)
        said = f"{len(rows.tasks):,} tasks ({rows.format}) on {workers:,} workers"
        out.say(said if bound is None else f"{said}; no schedule ends before {bound:,.1f} s")
        if verdict is not None:
            verdict.write(out)
    return Exit.OK


def _history(
    journal: str | None,
    config: str | None,
    since: float | None,
    until: float | None,
    cluster: Sequence[ClusterRow] | None,
    more: Sequence[ClusterRow],
) -> History:
    """Read what a daemon has done. Raises JournalError, TraceError."""
    from schedd.address import journal_path
    from schedd.config import load_settings
    from schedd.journal.replay import read_pages
    from schedd.simulate.history import Recorder

    path = Path(journal) if journal else journal_path(load_settings(config).journal.path)
    recorder = Recorder(int((since or 0) * SECOND), None if until is None else int(until * SECOND))
    for page in read_pages(path):
        recorder.take(page)
    return recorder.history(cluster, more)


def _without_verdicts(settings: Settings) -> Settings:
    """In a replay failures follow their tasks: no worker is to blame for them, and nobody releases a kind."""
    from msgspec import structs

    failures = structs.replace(settings.failures, quarantine=False, hopeless_kind=False)
    return structs.replace(settings, failures=failures)


def _in_use(config: str | None) -> str:
    from schedd.config import load_settings

    return load_settings(config).policy.name


def _policies(text: str) -> list[str]:
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
        key, value = parse_change(change, "--set")
        *path, last = key.split(".")
        into = table
        for name in path:
            into = into.setdefault(name, {})
            if not isinstance(into, dict):
                raise BadInput(f"--set {change!r}: {name} is no table")
        into[last] = _value(value)
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
