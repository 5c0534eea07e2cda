"""`schedd events`."""

from __future__ import annotations

import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from schedd.cli.exits import Exit
from schedd.cli.options import NUMBERS, Parsed
from schedd.cli.output import encode_json
from schedd.cli.session import Session, client_command
from schedd.cli.values import parse_instant
from schedd.log import format_fields
from schedd.wire.messages import EVENT_TYPES

if TYPE_CHECKING:
    from schedd.wire.messages import Event

EXAMPLES = """
schedd events --follow
schedd events --since 1h --type attempt_ended --json | jq 'select(.cause != "ok")'
schedd events --follow --job sweep --json | my-dashboard
schedd events --worker gpu-07 --since 2026-11-24
"""

SINCE = Parsed("time", lambda text: parse_instant(text, time.time()))


@client_command("events", examples=EXAMPLES)
@click.option("--follow", "-f", is_flag=True, help="Go on with what happens, until Ctrl-C.")
@click.option("--since", type=SINCE, metavar="TIME", help="Only from then on: 2h, 7d, 2026-11-24, …")
@click.option("--type", "types", multiple=True, type=click.Choice(EVENT_TYPES), metavar="TYPE", help="Repeatable.")
@click.option("--task", "tasks", multiple=True, type=NUMBERS, metavar="ID", help="Only of these tasks. Repeatable.")
@click.option("--job", "jobs", multiple=True, metavar="NAME", help="Only of tasks of this job. Repeatable.")
@click.option("--worker", "workers", multiple=True, metavar="NAME", help="Only on this worker. Repeatable.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Stop after N events.")
async def events_command(
    session: Session,
    follow: bool,
    since: float | None,
    types: tuple[str, ...],
    tasks: tuple[list[int], ...],
    jobs: tuple[str, ...],
    workers: tuple[str, ...],
    limit: int | None,
) -> Exit:
    """Show what happened to tasks and workers, the oldest first, as far as the daemon's journal goes back.

    With --follow and no --since: what happens from now on. An event is shown once it is on the daemon's disk, and a
    daemon that restarts is waited for. With --json: an object a line, times in seconds since the epoch.

    Types: those that schedd's journal has, such as tasks_admitted, attempt_began, attempt_ended, task_finished,
    worker_entered, worker_gone.
    """
    import asyncio
    from contextlib import aclosing

    out = session.out

    def missed(transactions: int) -> None:
        out.warn(f"the journal has forgotten what {transactions} of its transactions had, before it was read here")

    ids = [task_id for some in tasks for task_id in some]
    chosen: dict[str, Any] = {"types": types, "tasks": ids, "jobs": jobs, "workers": workers}
    shown = 0
    try:
        async with (
            session.connect() as client,
            aclosing(client.events(since=since, follow=follow, on_missed=missed, **chosen)) as events,
        ):
            async for event in events:
                if out.as_json:
                    out.line(as_json(event))
                else:
                    out.text(as_text(event))
                shown += 1
                if follow:
                    out.flush()
                if shown == limit:
                    break
    except asyncio.CancelledError:
        return Exit.INTERRUPTED
    return Exit.OK


def as_json(event: Event) -> str:
    """One line of JSON; times in seconds, without the unit in their names."""
    fields = {name.removesuffix("_ns"): _seconds(name, value) for name, value in event.fields.items()}
    return encode_json({"at": event.at_ns / 1e9, "type": event.type, **fields})


def as_text(event: Event) -> str:
    """One line for people: local time, type, and the fields as in the log."""
    at = datetime.fromtimestamp(event.at_ns / 1e9).isoformat(sep=" ", timespec="milliseconds")
    fields = {}
    for name, value in event.fields.items():
        if name.endswith("_ns"):
            moment = datetime.fromtimestamp(value / 1e9).isoformat(timespec="milliseconds") if value else None
            fields[name.removesuffix("_ns")] = moment
        elif name == "tasks":
            fields[name] = ",".join(f"{first}-{last}" if first != last else f"{first}" for first, last in value)
        elif isinstance(value, list):
            fields[name] = ",".join(map(str, value))
        else:
            fields[name] = value
    return f"{at} {format_fields(event.type, fields)}"


def _seconds(name: str, value: Any) -> Any:
    return value / 1e9 if name.endswith("_ns") and isinstance(value, int) else value
