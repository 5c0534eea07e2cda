"""`schedd retry`."""

from __future__ import annotations

from msgspec import structs

from schedd.cli.commands.change import show_unchanged
from schedd.cli.exits import Exit
from schedd.cli.options import select, selection_options
from schedd.cli.session import Session, client_command
from schedd.cli.values import write_ids

EXAMPLES = """
schedd retry 5 9-12
schedd retry --job sweep
schedd retry --job sweep --quiet | xargs schedd wait
"""


@client_command("retry", examples=EXAMPLES)
@selection_options(with_all=False)
async def retry_command(session: Session, ids: tuple[list[int], ...], job: str | None) -> Exit:
    """Submit tasks that failed or were cancelled again: as new tasks of the same job that do the same.

    Those that waited for others of them wait for the new ones. Keys stay with the old tasks. With --quiet, stdout has
    nothing but the new ids, one a line.
    """
    selection = structs.replace(select(ids, job), states=[] if ids else ["failed", "cancelled"])
    async with session.connect() as client:
        pairs, changed, warnings = await client.retry(selection)
    out = session.out
    for warning in warnings:
        out.warn(warning)
    new = [new_id for _, new_id in pairs]
    if out.as_json:
        unchanged = [{"id": which, "reason": reason} for which, reason in changed.unchanged]
        retried = [{"id": old_id, "new_id": new_id} for old_id, new_id in pairs]
        out.json({"retried": retried, "unchanged": unchanged, "warnings": warnings})
    elif out.quiet:
        out.lines(map(str, new))
    else:
        if new:
            out.line(f"submitted {'task' if len(new) == 1 else f'{len(new)} tasks:'} {write_ids(new)}")
        for old_id, new_id in pairs:
            out.line(f"  {new_id} for {old_id}")
        show_unchanged(session, changed, "task")
        if not new and not changed.unchanged:
            out.say("there is nothing to retry: no task of it has failed or was cancelled")
    return Exit.OK if pairs or not changed.unchanged else Exit.REFUSED
