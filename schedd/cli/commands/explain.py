"""`schedd explain`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from schedd.cli.exits import Exit
from schedd.cli.options import TASK_ID
from schedd.cli.session import Session, client_command

if TYPE_CHECKING:
    from schedd.wire.messages import Explanation

EXAMPLES = """
schedd explain 5
schedd explain 5 --json | jq -r '.blockers[].reason'
"""


@client_command("explain", examples=EXAMPLES)
@click.argument("task_id", type=TASK_ID, metavar="ID")
async def explain_command(session: Session, task_id: int) -> Exit:
    """Say why a task is where it is: everything that is in its way, and what each worker says to it."""
    async with session.connect() as client:
        explanation = await client.explain(task_id)
    if session.out.as_json:
        session.out.json(_json(explanation))
    else:
        _write(session, explanation)
    return Exit.OK


def _json(explanation: Explanation) -> dict[str, object]:
    return {
        "id": explanation.task_id,
        "state": explanation.state,
        "summary": explanation.summary,
        "ahead": explanation.ahead,
        "blockers": explanation.blockers,
        "workers": explanation.workers,
    }


def _write(session: Session, explanation: Explanation) -> None:
    from schedd.cli.output import Column

    out = session.out
    out.text(f"task {explanation.task_id} is {explanation.state}: {explanation.summary}")
    if explanation.ahead is not None:
        out.text(f"queued tasks with a better rank: {explanation.ahead}")
    for blocker in explanation.blockers:
        workers = f" ({blocker.workers} worker{'s' * (blocker.workers != 1)})" if blocker.workers else ""
        out.text(f"- {blocker.reason}{workers}{': ' if blocker.detail else ''}{blocker.detail}")
    if explanation.workers and not out.quiet:
        out.line("")
        columns = [Column("worker"), Column("says", fold=True)]
        out.table(columns, [[each.worker, each.verdict] for each in explanation.workers])
