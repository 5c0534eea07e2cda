"""`schedd demo`: the scheduler at work on this machine, live."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

import click
from msgspec import Struct

from schedd.cli.exits import Exit
from schedd.cli.options import BadInput
from schedd.cli.output import Column, Output, make_console
from schedd.cli.session import command
from schedd.cli.values import nearest, write_duration
from schedd.errors import ConfigError, ConnectionLost

if TYPE_CHECKING:
    from schedd.client.aio import AsyncClient
    from schedd.demo.run import Search, Trial

WORKERS = 2
BEST_SHOWN = 10
REFRESH_S = 0.5
#: Lines of the live view above the daemon's: progress, best so far, a blank line.
HEAD_LINES = 3

EXAMPLES = """
schedd demo
schedd demo --configs 16 --policy fifo
schedd demo --seed 7 --json > result.json
"""


class Options(Struct, frozen=True):
    """What to search and how to show it."""

    configs: int
    seed: int
    policy: str
    live: bool


@command("demo", examples=EXAMPLES)
@click.option("--configs", type=click.IntRange(3, 10_000), default=48, show_default=True, help="How many to try.")
@click.option(
    "--seed", type=click.IntRange(0, 2**31), default=0, show_default=True, help="The same seed, the same networks."
)
@click.option("--policy", default="priority", show_default=True, metavar="NAME", help="See `schedd policies`.")
@click.option("--plain", is_flag=True, help="No live view; progress as lines on stderr.")
@click.option("--json", "as_json", is_flag=True, help="Write the outcome as JSON to stdout.")
@click.option("--quiet", "-q", is_flag=True, help="Nothing but the outcome.")
def demo_command(configs: int, seed: int, policy: str, plain: bool, as_json: bool, quiet: bool) -> Exit:
    """Search hyper-parameters on a daemon and two workers of its own, and show how the scheduler deals with it.

    Trains scikit-learn networks on its digits by asynchronous successive halving: everybody gets a few epochs, the
    best third goes on, and the scheduler lets the promising ones overtake. Nothing is left behind.
    """
    import importlib.util

    from schedd import plugins
    from schedd.core.policies import POLICIES

    if importlib.util.find_spec("sklearn") is None:
        raise ConfigError("the demo needs scikit-learn, which is not installed", "pip install 'schedd[demo]'")
    if policy not in POLICIES and plugins.find(policy) is None:
        raise BadInput(f"there is no policy {policy!r}", nearest(policy, [*POLICIES, *plugins.registered()]))
    out = Output(as_json=as_json, quiet=quiet)
    options = Options(configs, seed, policy, live=sys.stderr.isatty() and not plain and not quiet)
    try:
        search = asyncio.run(_demo(out, options))
    except asyncio.CancelledError:
        out.say("interrupted: the demo's daemon and workers are stopped, its files removed")
        return Exit.INTERRUPTED
    if as_json:
        out.json(_as_json(search, options))
    elif search.finished:
        _show(out, search)
    if not search.finished:
        out.error(f"no network could be trained: {search.trials[0].error}")
        return Exit.FAILED_TASKS
    return Exit.OK


async def _demo(out: Output, options: Options) -> Search:
    from schedd.client.aio import AsyncClient
    from schedd.credentials import NONE
    from schedd.demo.cluster import running_cluster
    from schedd.demo.run import new_search, run_search

    _cancel_on_signals()
    search = new_search(options.configs, options.seed)
    if not options.live:
        out.say(f"starting a daemon (policy {options.policy}) and {WORKERS} workers")
    async with (
        running_cluster(options.policy, WORKERS) as cluster,
        AsyncClient(cluster.address, reconnect_s=0, credentials=NONE) as client,
        _live_view(client, search) if options.live else _plain_view(out) as on_change,
    ):
        await run_search(client, search, cluster, options.seed, on_change)
    return search


def _cancel_on_signals() -> None:
    """Let every signal that ends us cancel the demo, so that it always cleans up; asyncio's own would not wait."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, task.cancel)


@contextlib.asynccontextmanager
async def _plain_view(out: Output) -> AsyncIterator[Callable[[Search], None]]:
    best = 0.0

    def on_change(search: Search) -> None:
        nonlocal best
        ranking = search.ranking()
        ended = search.finished + search.failed
        better = bool(ranking) and ranking[0].accuracy > best
        if better:
            best = ranking[0].accuracy
        if better or ended % 10 == 0:
            out.say(f"{write_duration(search.seconds):>7}  {ended} rungs ended, {search.open} open, best {best:.4f}")

    yield on_change


@contextlib.asynccontextmanager
async def _live_view(client: AsyncClient, search: Search) -> AsyncIterator[Callable[[Search], None]]:
    from rich.console import Group
    from rich.live import Live

    from schedd.cli.dashboard import Observer, render

    console = make_console(sys.stderr)
    observer = Observer(client)

    async def refresh(live: Live) -> None:
        while True:
            with contextlib.suppress(ConnectionLost):  # the search itself reports that
                view = render(await observer.look(), lines=console.size.height - HEAD_LINES, sort="time", foot=_FOOT)
                live.update(Group(*_head(search), view), refresh=True)
            await asyncio.sleep(REFRESH_S)

    with Live(console=console, screen=True, auto_refresh=False) as live:
        refreshing = asyncio.create_task(refresh(live))
        try:
            yield lambda search: None
        finally:
            refreshing.cancel()
            await asyncio.gather(refreshing, return_exceptions=True)


_FOOT = "Ctrl-C ends the demo and removes everything"


def _head(search: Search) -> list[Any]:
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    from schedd.demo.run import ETA, RUNGS

    configs = len(search.trials)
    ended = search.finished + search.failed
    # Nobody knows how many will be promoted; at least so many are.
    expected = max(sum(configs // ETA**rung for rung in range(len(RUNGS))), ended + search.open)
    line = Table.grid(padding=(0, 1), expand=True)
    line.add_column(no_wrap=True)
    line.add_column(ratio=1)
    line.add_column(no_wrap=True, justify="right")
    promoted = f"{ended}/{expected} rungs  {search.promoted} promoted  {write_duration(search.seconds)}"
    line.add_row(
        f"searching {configs} networks",
        ProgressBar(expected, ended, complete_style="cyan", finished_style="cyan"),
        promoted,
    )
    ranking = search.ranking()
    best = f"best {ranking[0].accuracy:.4f} after {ranking[0].epochs} epochs: {_words(ranking[0])}" if ranking else ""
    return [line, Text(best, style="bold green", no_wrap=True, overflow="ellipsis"), Text("")]


def _words(trial: Trial) -> str:
    return " ".join(f"{name}={value}" for name, value in zip(_NAMES, _settings(trial), strict=True))


_NAMES = ("lr", "hidden", "alpha", "batch", "activation", "solver")


def _settings(trial: Trial) -> list[str]:
    config = trial.config
    hidden = "-".join(map(str, config["hidden"]))
    names = [f"{config['lr']:.2g}", hidden, f"{config['alpha']:.1g}", str(config["batch"])]
    return [*names, config["activation"], config["solver"]]


def _show(out: Output, search: Search) -> None:
    columns = [Column("rank", right=True), Column("accuracy", right=True), Column("epochs", right=True)]
    columns += [Column(name, right=name in ("lr", "alpha", "batch")) for name in _NAMES]
    best = search.ranking()[:BEST_SHOWN]
    rows = [
        [str(rank), f"{trial.accuracy:.4f}", str(trial.epochs), *_settings(trial)] for rank, trial in enumerate(best, 1)
    ]
    out.table(columns, rows)
    out.line("")
    columns = [Column("worker"), *(Column(name, right=True) for name in ("tasks", "busy", "share", "of the time"))]
    busy_s = sum(worker.busy_s for worker in search.workers.values()) or 1.0
    out.table(
        columns,
        [
            [
                name,
                str(worker.tasks),
                write_duration(worker.busy_s),
                f"{worker.busy_s / busy_s:.0%}",
                f"{worker.busy_s / search.seconds:.0%}",
            ]
            for name, worker in sorted(search.workers.items())
        ],
    )
    out.line("")
    out.line(
        f"{len(search.trials)} configurations in {write_duration(search.seconds)}: {search.finished} rungs trained, "
        f"{search.promoted} promotions, {search.cancelled} rungs never needed, {search.failed} failed"
    )


def _as_json(search: Search, options: Options) -> dict[str, Any]:
    def trial(each: Trial) -> dict[str, Any]:
        return {"number": each.number, "accuracy": each.accuracy, "epochs": each.epochs, "config": each.config}

    ranking = search.ranking()
    return {
        "configs": options.configs,
        "seed": options.seed,
        "policy": options.policy,
        "seconds": search.seconds,
        "rungs_finished": search.finished,
        "rungs_failed": search.failed,
        "rungs_cancelled": search.cancelled,
        "promotions": search.promoted,
        "best": trial(ranking[0]) if ranking else None,
        "trials": [trial(each) for each in ranking],
        "workers": search.workers,
    }
