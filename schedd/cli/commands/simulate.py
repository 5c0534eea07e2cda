"""`schedd simulate`."""

from __future__ import annotations

import os
import time
import tomllib
from array import array
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from statistics import fmean
from typing import TYPE_CHECKING, Any

import click
from msgspec import Struct, field, structs

from schedd.cli.exits import Exit
from schedd.cli.options import BadInput, Parsed
from schedd.cli.output import Output
from schedd.cli.session import command
from schedd.cli.simulated import COLUMNS, SEARCH_COLUMNS, UNRECORDED, cells, fill, progress_of, write_csv
from schedd.cli.sources import Source, Wanted, source_of, told
from schedd.cli.values import is_toml, nearest, parse_instant
from schedd.cli.variants import Variant, parse_change, variants_of
from schedd.core.policies import POLICIES
from schedd.errors import TraceError

if TYPE_CHECKING:
    from schedd.cli.verdict import Verdict
    from schedd.config import Settings
    from schedd.simulate.cluster import ClusterRow
    from schedd.simulate.contest import Rules
    from schedd.simulate.generate import Load
    from schedd.simulate.metrics import Figures
    from schedd.simulate.record import Run
    from schedd.simulate.run import Progress

EXAMPLES = """
schedd simulate --trace jobs.csv --cluster cluster.toml --policy fifo,priority,adaptive
schedd simulate --trace log.swf.gz --cluster cluster.toml --policy fifo --json
schedd simulate --trace jobs.csv --cluster cluster.toml --policy priority --set policy.priority.ageing_per_hour=2
schedd simulate --trace jobs.csv --cluster cluster.toml --policy fifo --add-worker gpus=8,model=A100
schedd simulate --trace jobs.csv --throughputs speeds.csv --cluster cluster.toml --policy fifo,adaptive
schedd simulate --generate poisson:tasks=10000,load=0.9,runtime=lognormal --cluster cluster.toml --policy fifo,adaptive
schedd simulate --trace jobs.csv --cluster c.toml --policy adaptive --known --set policy.adaptive.objective=mean_jct
schedd simulate --journal --since 7d
schedd simulate --journal backup.db --policy priority,batch --try policy.batch.batch_size=2,4,8 --objective makespan
schedd simulate --workload asha --trace curves.csv.gz --cluster cluster.toml --policy fifo,priority
schedd simulate --trace pods.csv --cluster nodes.csv --policy best_fit,random,packing --fill 130 --seeds 5
schedd simulate --trace log.swf.gz --rows 1981:3005 --cluster cluster.toml --policy fifo,sjf,f1 --backfill
"""
#: What a policy may be best by; see `simulate.compare`, which a help text is not worth importing.
OBJECTIVES = ("mean_flow_time", "makespan", "p99_flow_time", "mean_bounded_slowdown")
INSTANT = Parsed("time", lambda text: parse_instant(text, time.time()))


def _parse_row(text: str) -> ClusterRow:
    from schedd.simulate.cluster import parse_row

    return parse_row(text)


def _parse_load(text: str) -> Load:
    from schedd.simulate.generate import parse_load

    return parse_load(text)


def _parse_rows(text: str) -> slice:
    """Read `FIRST:END`, of which either may be left out. Raises ValueError."""
    first, colon, end = text.partition(":")
    if not colon:
        raise ValueError(f"{text!r} is not of the form FIRST:END")
    return slice(int(first or 0), int(end) if end else None)


def _parse_levels(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


class Asked(Struct, frozen=True, kw_only=True):
    """The options that say how it is run, and what is shown."""

    cluster_file: str | None
    add_worker: Sequence[Any]
    policies: str | None
    config: str | None
    changes: Sequence[str]
    tries: Sequence[str]
    objective: str | None
    seeds: int
    jobs: int
    plot: str | None
    backfill: bool
    one_by_one: bool
    known: bool
    restart_costs: str | None
    fill: float | None
    as_json: bool
    as_csv: bool
    quiet: bool


class Told(Struct, frozen=True):
    """What a run tells: its figures, those of searches, what it was for each task, and all of it where it is drawn."""

    figures: Figures
    searches: dict[str, Any] | None
    values: array[float] | None
    run: Run | None


class Found(Struct):
    """What came out: for each label the runs' figures, and what each had begun with."""

    summaries: dict[str, dict[str, Any]] = field(default_factory=dict)
    bound: float | None = None
    drawn: dict[str, Run] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)


@command("simulate", examples=EXAMPLES)
@click.option("--trace", "traces", multiple=True, metavar="FILE", help="What was submitted when, and how long it ran.")
@click.option(
    "--generate",
    "load",
    type=Parsed("load", _parse_load),
    metavar="ARRIVALS:NAME=VALUE,…",
    help="In place of a trace: tasks that are drawn, anew for each seed; for instance poisson:tasks=10000,load=0.9.",
)
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
@click.option("--throughputs", metavar="FILE", help="Steps per second by device model, for a trace of jobs with steps.")
@click.option(
    "--rows", type=Parsed("rows", _parse_rows), metavar="FIRST:END", help="Of the trace, in its order, from 0."
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
@click.option(
    "--workload",
    type=click.Choice(["trace", "halving", "asha"]),
    default="trace",
    show_default=True,
    help="Submit as recorded, or by result: searches over the learning curves of the traces.",
)
@click.option("--eta", type=click.IntRange(2, 100), help="One in so many goes on.  [default: 3]")
@click.option("--levels", type=Parsed("levels", _parse_levels), metavar="A,B,…", help="Fidelities of the rungs.")
@click.option("--configs", type=click.IntRange(min=1), help="Configurations of a search.")
@click.option("--searches", type=click.IntRange(min=1), help="Searches over each set of curves.")
@click.option("--from-scratch", is_flag=True, help="No checkpoints: each rung trains anew.")
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
@click.option(
    "--jobs", "-j", type=click.IntRange(min=1), metavar="N", help="So many runs at once.  [default: one for each core]"
)
@click.option("--plot", metavar="FOLDER", help="Draw the first seed: PNG files. Needs schedd[plots].")
@click.option("--backfill", is_flag=True, help="Let orders of the literature backfill behind their committed head.")
@click.option("--one-by-one", is_flag=True, help="No two events share an instant; submits come before ends.")
@click.option("--known", is_flag=True, help="Let `adaptive` know beforehand how long each task takes on each model.")
@click.option("--restart-costs", metavar="FILE", help="JSON: seconds by devices and kind, for srtf and srsf.")
@click.option(
    "--fill", type=click.FloatRange(0, 10_000, min_open=True), metavar="PERCENT", help="Fill the GPUs; see above."
)
@click.option("--json", "as_json", is_flag=True, help="Write JSON to stdout.")
@click.option("--csv", "as_csv", is_flag=True, help="Write CSV to stdout, a row for each policy and seed.")
@click.option("--quiet", "-q", is_flag=True, help="No remarks and no progress on stderr.")
def simulate_command(**options: Any) -> Exit:
    """Run a trace, or a daemon's own history, under one policy or several, with the daemon's own engine and a virtual
    clock.

    Messages take no time and nothing fails, unless the cluster file says so: what is compared is what the policies
    decide. Times count from the first submit; ": bound" is the makespan over one that no schedule can beat, where that
    can be computed.

    With --fill the tasks come one by one in random order, again and again, until so many percent of the GPUs were asked
    for. None ends, one that fits nowhere is dropped, and what is compared is how many GPUs were given.
    """
    wanted = Wanted(**{name: options.pop(name) for name in Wanted.__struct_fields__})
    options["jobs"] = options["jobs"] or len(os.sched_getaffinity(0))
    asked = Asked(**options)
    out = Output(as_json=asked.as_json, quiet=asked.quiet)
    names = _policies(asked.policies) if asked.policies is not None else _usual(wanted)
    variants = {variant.label: variant for variant in variants_of(names, asked.tries, asked.changes)}
    _must_count(asked, names)
    settings_for = _settings_for(asked, variants)
    source = _source(wanted, asked)
    for remark in source.tasks.remarks if source.tasks is not None else ():
        out.say(remark)
    settings = {label: settings_for(label, source.cluster) for label in variants}
    if source.history is not None:
        settings = {label: _without_verdicts(each) for label, each in settings.items()}
    if asked.fill is not None:
        if source.tasks is None or source.history is not None:
            raise BadInput("--fill takes the tasks of a trace", "give --trace")
        policies = {label: variant.policy for label, variant in variants.items()}
        fill(out, policies, source.tasks, source.cluster, settings, asked.fill, asked.seeds, asked.jobs)
        return Exit.OK
    _run(out, asked, source, variants, settings)
    return Exit.OK


def _must_count(asked: Asked, names: Sequence[str]) -> None:
    """No option may be there for nothing. Raises BadInput."""
    from schedd.simulate.preemptive import PREEMPTIVE

    if asked.restart_costs is not None and not any(name in PREEMPTIVE for name in names):
        raise BadInput("--restart-costs are those of preemptive policies", f"add one: --policy {','.join(PREEMPTIVE)}")
    if asked.plot is not None and (undrawn := [name for name in names if name in PREEMPTIVE]):
        raise BadInput(f"{undrawn[0]} cannot be drawn: it keeps no account of what ran when", "leave out --plot")
    if asked.fill is None:
        return
    if asked.as_csv:
        raise BadInput("--fill has no rows to write as CSV", "use --json")
    others = {
        "--plot": asked.plot,
        "--objective": asked.objective,
        "--known": asked.known,
        "--backfill": asked.backfill,
        "--one-by-one": asked.one_by_one,
    }
    for option, value in others.items():
        if value:
            raise BadInput(f"{option} does nothing with --fill, where no task ends", "leave it out")


def _usual(wanted: Wanted) -> list[str]:
    return list(POLICIES) if wanted.journal is not None else ["fifo"]


def _source(wanted: Wanted, asked: Asked) -> Source:
    from schedd.simulate.cluster import read_cluster

    cluster = read_cluster(asked.cluster_file) if asked.cluster_file else None
    return source_of(wanted, cluster, asked.add_worker, asked.config)


def _run(
    out: Output, asked: Asked, source: Source, variants: Mapping[str, Variant], settings: Mapping[str, Settings]
) -> None:
    from schedd.simulate.contest import Rules
    from schedd.simulate.metrics import figures_of, summary
    from schedd.simulate.plots import check_plots, write_plots
    from schedd.simulate.preemptive import read_restart_costs

    if asked.plot is not None:
        check_plots(asked.plot)
    costs = read_restart_costs(asked.restart_costs) if asked.restart_costs else {}
    rules = Rules(asked.backfill, asked.one_by_one, costs, asked.known)
    objective = asked.objective or (OBJECTIVES[0] if source.history is not None else None)
    found = _results(out, asked, source, variants, settings, rules, objective)
    verdict = _verdict(asked, source, variants, settings, rules, found) if objective is not None else None
    if asked.as_json:
        plain = {"lower_bound_s": found.bound, "policies": found.summaries}
        out.json(plain | verdict.as_json() if verdict is not None else plain)
    elif asked.as_csv:
        write_csv(out, found.summaries)
    else:
        rows = [cells(label, values, found.bound) for label, values in found.summaries.items()]
        if source.history is not None and source.history.recorded is not None:
            rows.append(cells("(recorded)", summary([figures_of(source.history.recorded)]) | UNRECORDED, None))
        are_searches = any("mean_search_end_s" in values for values in found.summaries.values())
        out.comparison((*COLUMNS, *SEARCH_COLUMNS) if are_searches else COLUMNS, rows)
        workers = sum(row.count for row in source.cluster)
        said = f"{told(source.begin(0))} on {workers:,} workers"
        out.say(said if found.bound is None else f"{said}; no schedule ends before {found.bound:,.1f} s")
        if verdict is not None:
            verdict.write(out)
    if asked.plot is not None:
        plots = write_plots(found.drawn, asked.plot)
        out.say(f"drawn: {', '.join(map(str, plots))}")


def _results(
    out: Output,
    asked: Asked,
    source: Source,
    variants: Mapping[str, Variant],
    settings: Mapping[str, Settings],
    rules: Rules,
    objective: str | None,
) -> Found:
    """Run all, several at once."""
    from schedd.simulate.compare import Values, values_of
    from schedd.simulate.contest import run_under
    from schedd.simulate.metrics import figures_of, summary
    from schedd.simulate.reactive import Reactive, with_searches
    from schedd.simulate.series import run_each

    def run(key: tuple[int, str], on_progress: Progress) -> Told:
        seed, label = key
        given = source.begin(seed)
        is_drawn = asked.plot is not None and not seed
        arguments = (given, source.cluster, settings[label], seed, rules, on_progress)
        done = run_under(variants[label].policy, *arguments, keep_spans=is_drawn)
        return Told(
            figures_of(done),
            given.figures() if isinstance(given, Reactive) else None,
            values_of(done, objective) if objective is not None else None,
            done if is_drawn else None,
        )

    pairs = [(seed, label) for seed in range(asked.seeds) for label in variants]
    with progress_of(asked.seeds, quiet=out.quiet) as report:
        told = run_each(run, pairs, asked.jobs, report)
    found = Found()
    for position, label in enumerate(variants):
        mine = told[position :: len(variants)]
        searches = [each.searches for each in mine if each.searches is not None]
        found.summaries[label] = with_searches(summary([each.figures for each in mine]), searches)
        if objective is not None:
            found.values[label] = Values([each.values for each in mine if each.values is not None], objective)
        if mine[0].run is not None:
            found.drawn[label] = mine[0].run
    bounds = [source.bound(seed) for seed in range(asked.seeds)]
    known = [bound for bound in bounds if bound is not None]
    found.bound = fmean(known) if len(known) == len(bounds) else None
    return found


def _verdict(
    asked: Asked,
    source: Source,
    variants: Mapping[str, Variant],
    settings: Mapping[str, Settings],
    rules: Rules,
    found: Found,
) -> Verdict:
    from schedd.cli.verdict import Verdict
    from schedd.config import load_settings
    from schedd.simulate.compare import Values, values_of
    from schedd.simulate.contest import run_under
    from schedd.simulate.series import run_each

    in_use = load_settings(asked.config).policy.name
    verdict = Verdict(variants, found.values, in_use, source.history, configured=asked.config is not None)
    before = source.cluster[: len(source.cluster) - len(asked.add_worker)]
    if asked.add_worker and before:
        best = verdict.best
        objective = found.values[best].objective

        def run(seed: int, on_progress: Progress) -> array[float]:
            done = run_under(
                variants[best].policy, source.begin(seed), before, settings[best], seed, rules, on_progress
            )
            return values_of(done, objective)

        with suppress(TraceError):  # there may be tasks that need what was added
            runs = run_each(run, range(asked.seeds), asked.jobs, lambda seed, finished, total: None)
            verdict.without_added = Values(runs, objective).value
    return verdict


# -------------------------------------------------------------------------------------------------- names and settings


def _policies(text: str) -> list[str]:
    from schedd import plugins
    from schedd.simulate.contest import NAMES

    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names:
        if name not in NAMES and plugins.find(name) is None:
            raise BadInput(f"there is no policy {name!r}", nearest(name, [*NAMES, *plugins.registered()]))
    if not names:
        raise BadInput("no policy is named", f"policies: {', '.join(NAMES)}")
    return names


def _settings_for(asked: Asked, variants: Mapping[str, Variant]) -> Callable[[str, Sequence[ClusterRow]], Settings]:
    """What makes the settings of a variant on a cluster; what is wrong with the former is said first."""
    from schedd.simulate.cluster import retries_for

    for variant in variants.values():
        _settings(asked.config, variant.changes, variant.policy, {})
    return lambda label, cluster: _settings(
        asked.config, variants[label].changes, variants[label].policy, retries_for(cluster)
    )


def _settings(config: str | None, changes: Sequence[str], policy: str, retries: dict[str, int]) -> Settings:
    """The settings of a file, changed as asked for; `retries` where neither says so. Raises ConfigError."""
    from schedd.config import load_settings, settings_of
    from schedd.simulate.contest import settings_name

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
    table.setdefault("policy", {})["name"] = settings_name(policy)
    if isinstance(given := table.setdefault("retries", {}), dict):
        table["retries"] = retries | given
    return settings_of(table, "--set" if config is None else config)


def _value(text: str) -> Any:
    """A TOML value; what is none is a string."""
    return tomllib.loads(f"value = {text}")["value"] if is_toml(text) else text


def _without_verdicts(settings: Settings) -> Settings:
    """In a replay failures follow their tasks: no worker is to blame for them, and nobody releases a kind."""
    failures = structs.replace(settings.failures, quarantine=False, hopeless_kind=False)
    return structs.replace(settings, failures=failures)
