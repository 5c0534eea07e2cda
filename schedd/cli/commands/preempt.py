"""`schedd preempt`."""

from __future__ import annotations

import click
from msgspec import structs

from schedd.cli.commands.change import show_changed
from schedd.cli.exits import Exit
from schedd.cli.options import DURATION, select, selection_options
from schedd.cli.session import Session, client_command

EXAMPLES = """
schedd preempt 5 9-12
schedd preempt --job sweep --grace 2m
"""

#: The states in which a worker has a task.
ON_A_WORKER = ["assigned", "running", "revoking"]


@client_command("preempt", examples=EXAMPLES)
@selection_options(with_all=False)
@click.option("--grace", type=DURATION, metavar="S", help="Between asking and killing. Default: what each task has.")
async def preempt_command(session: Session, ids: tuple[list[int], ...], job: str | None, grace: float | None) -> Exit:
    """Let tasks give up their workers and run again later, without blame.

    What runs is asked to end (SIGTERM, or `schedd.should_stop()`), killed after its grace, and goes back to its place
    in the queue. Of a job those are meant that a worker has.
    """
    selection = select(ids, job)
    if not ids:
        selection = structs.replace(selection, states=ON_A_WORKER)
    async with session.connect() as client:
        changed = await client.preempt(selection, grace=grace)
    return show_changed(session, "preempted", changed, named=bool(ids))
