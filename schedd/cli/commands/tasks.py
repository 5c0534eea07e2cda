"""`schedd tasks`."""

from __future__ import annotations

import time

import click

from schedd.cli.exits import Exit
from schedd.cli.options import StateType
from schedd.cli.session import Session, client_command

#: A table that nobody can read to its end only costs time; JSON and --quiet have everything.
TABLE_ROWS = 1000

EXAMPLES = """
schedd tasks
schedd tasks --job sweep --all
schedd tasks --state failed --json | jq '.[].id'
schedd tasks --job sweep --state queued --quiet
"""


@client_command("tasks", examples=EXAMPLES)
@click.option("--job", metavar="NAME", help="Only tasks of this job.")
@click.option("--all", "everything", is_flag=True, help="Those that have ended, too.")
@click.option(
    "--state", "states", multiple=True, type=StateType(), metavar="STATE", help="Only in this state. Repeatable."
)
@click.option(
    "--limit", type=click.IntRange(0), metavar="N", help=f"At most N. Default: {TABLE_ROWS} in a table; 0: all."
)
async def tasks_command(
    session: Session, job: str | None, everything: bool, states: tuple[str, ...], limit: int | None
) -> Exit:
    """List tasks, by default those that are unfinished.

    `time` is how long a task ran, has been running, or has been waiting. With --quiet: ids alone, one a line.
    """
    from schedd.cli.views import OWNER_COLUMN, TASK_COLUMNS, task_row
    from schedd.wire.messages import Selection

    out = session.out
    default = None if out.as_json or out.quiet else TABLE_ROWS
    selection = Selection(job=job, states=list(states), unfinished=not everything and not states)
    async with session.connect() as client:
        # One more than wanted tells whether there are others.
        most = default if limit is None else limit or None
        tasks = await client.tasks(selection, limit=None if most is None else most + 1)
    left_out = most is not None and len(tasks) > most
    tasks = tasks[:most]
    if out.as_json:
        out.json(tasks)
    elif out.quiet:
        out.lines(str(task.id) for task in tasks)
    elif tasks:
        now = time.time()
        if any(task.owner for task in tasks):
            owned = [[first, task.owner, *rest] for task in tasks for first, *rest in [task_row(task, now)]]
            out.table([TASK_COLUMNS[0], OWNER_COLUMN, *TASK_COLUMNS[1:]], owned)
        else:
            out.table(TASK_COLUMNS, [task_row(task, now) for task in tasks])
        if left_out:
            out.say(f"only the first {most} are shown; --limit 0 shows all")
    else:
        out.say("no tasks" if everything or states else "no unfinished tasks; --all lists those that have ended")
    return Exit.OK
