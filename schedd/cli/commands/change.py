"""`schedd cancel`, `hold` and `release`: change the fate of many tasks at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from schedd.cli.exits import Exit
from schedd.cli.options import select, selection_options
from schedd.cli.session import Session, client_command

if TYPE_CHECKING:
    from schedd.wire.messages import Changed

#: Of tasks that were left as they are, so many are named.
NAMED_UNCHANGED = 10


def show_unchanged(session: Session, changed: Changed, noun: str) -> None:
    """Write what a request left as it is, with the reasons."""
    for which, reason in changed.unchanged[:NAMED_UNCHANGED]:
        session.out.say(f"{noun} {which} left as it is: {reason}")
    if len(changed.unchanged) > NAMED_UNCHANGED:
        session.out.say(f"… and {len(changed.unchanged) - NAMED_UNCHANGED} more left as they are")


def show_changed(session: Session, verb: str, changed: Changed, *, named: bool, noun: str = "task") -> Exit:
    """Write what a request changed and what it left, with the reasons.

    `named`: the user named each one, so that changing nothing is a failure.
    """
    out = session.out
    if out.as_json:
        unchanged = [{"id": which, "reason": reason} for which, reason in changed.unchanged]
        out.json({"changed": changed.changed, "unchanged": unchanged})
    else:
        out.say(f"{verb} {changed.changed} {noun}{'s' * (changed.changed != 1)}")
        show_unchanged(session, changed, noun)
    if not named or changed.changed or not changed.unchanged:
        return Exit.OK
    # The one reason that scripts must tell from the others; the daemon gives reasons in words only.
    return Exit.NOT_FOUND if all(reason.startswith("unknown ") for _, reason in changed.unchanged) else Exit.REFUSED


@client_command("cancel", examples="schedd cancel 5 9-12\nschedd cancel --job sweep\nschedd cancel --all")
@selection_options(with_all=True)
async def cancel_command(session: Session, ids: tuple[list[int], ...], job: str | None, everything: bool) -> Exit:
    """Cancel tasks. What runs is asked to end, and killed after its grace."""
    selection = select(ids, job, everything, unfinished=True)
    async with session.connect() as client:
        changed = await client.cancel(selection)
    return show_changed(session, "cancelled", changed, named=bool(ids))


@client_command("hold", examples="schedd hold 5 9-12\nschedd hold --job sweep")
@selection_options(with_all=True)
async def hold_command(session: Session, ids: tuple[list[int], ...], job: str | None, everything: bool) -> Exit:
    """Keep back tasks that have not been dispatched, until released."""
    selection = select(ids, job, everything, unfinished=True)
    async with session.connect() as client:
        changed = await client.hold(selection)
    return show_changed(session, "held", changed, named=bool(ids))


@client_command("release", examples="schedd release 5 9-12\nschedd release --job sweep")
@selection_options(with_all=True)
async def release_command(session: Session, ids: tuple[list[int], ...], job: str | None, everything: bool) -> Exit:
    """Let go tasks that are held."""
    selection = select(ids, job, everything, unfinished=True)
    async with session.connect() as client:
        changed = await client.release(selection)
    return show_changed(session, "released", changed, named=bool(ids))
