"""`schedd history`."""

from __future__ import annotations

import time

import click
import msgspec

from schedd.cli.exits import Exit
from schedd.cli.options import Parsed, StateType
from schedd.cli.session import Session, client_command
from schedd.cli.values import parse_instant

#: A table that nobody can read to its end only costs time; JSON and --quiet have everything.
TABLE_ROWS = 1000

EXAMPLES = """
schedd history --since 2h
schedd history --job sweep --state failed --since 2026-11-01
schedd history --kind train.py --attempts --json | jq 'map(.finished_at - .started_at) | add'
"""

SINCE = Parsed("time", lambda text: parse_instant(text, time.time()))


@client_command("history", examples=EXAMPLES)
@click.option("--job", default="", metavar="NAME", help='Only tasks of this job; "": of any, or none.')
@click.option("--kind", default="", metavar="K", help="Only tasks of this kind.")
@click.option(
    "--state", "states", multiple=True, type=StateType(), metavar="STATE", help="Only in this state. Repeatable."
)
@click.option("--since", type=SINCE, metavar="TIME", help="Only what ended since then: 2h, 7d, 2026-11-24, …")
@click.option("--attempts", "by_attempt", is_flag=True, help="A row for each attempt, not for each task.")
@click.option(
    "--limit", type=click.IntRange(0), metavar="N", help=f"At most N tasks. Default: {TABLE_ROWS} in a table; 0: all."
)
async def history_command(
    session: Session,
    job: str,
    kind: str,
    states: tuple[str, ...],
    since: float | None,
    by_attempt: bool,
    limit: int | None,
) -> Exit:
    """List tasks that have ended, the newest end first, as far as the daemon's journal goes back.

    It has also those that `schedd tasks` has forgotten. With --quiet: ids alone, one a line.
    """
    from schedd.cli.views import ATTEMPT_COLUMNS, HISTORY_COLUMNS, attempt_row, attempts, history_row

    out = session.out
    default = None if out.as_json or out.quiet else TABLE_ROWS
    most = default if limit is None else limit or None
    async with session.connect() as client:
        # One more than wanted tells whether there are others.
        more = None if most is None else most + 1
        rows = await client.history(job=job, kind=kind, states=states, since=since or 0.0, limit=more)
    left_out = most is not None and len(rows) > most
    rows = rows[:most]
    if out.as_json and by_attempt:
        named = [(task, attempt) for task, records in rows for attempt in attempts(records)]
        out.json([{"id": task.id, "job": task.job, "kind": task.kind, **attempt} for task, attempt in named])
    elif out.as_json:
        out.json([{**msgspec.structs.asdict(task), "attempts": attempts(records)} for task, records in rows])
    elif out.quiet:
        out.lines(str(task.id) for task, _ in rows)
    elif rows:
        if by_attempt:
            out.table(ATTEMPT_COLUMNS, [attempt_row(task, record) for task, records in rows for record in records])
        else:
            out.table(HISTORY_COLUMNS, [history_row(task) for task, _ in rows])
        if left_out:
            out.say(f"only the newest {most} are shown; --limit 0 shows all")
    else:
        out.say("nothing of that kind has ended, as far as the journal goes back")
    return Exit.OK
