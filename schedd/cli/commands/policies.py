"""`schedd policies`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from schedd.cli.exits import Exit
from schedd.cli.output import Column
from schedd.cli.session import Session, client_command

if TYPE_CHECKING:
    from schedd.wire.messages import Stats


@client_command("policies", examples="schedd policies\nschedd policies --json")
async def policies_command(session: Session) -> Exit:
    """List the policies that `[policy] name` in config.toml can choose, and which of them the daemon uses.

    Where a shadow is asked beside it, what that one would have done follows. Without a daemon there is the list alone.
    """
    import msgspec

    from schedd.cli.views import shadow_pairs
    from schedd.core.policies import POLICIES

    stats = await _stats(session)
    shadow = stats.shadow if stats is not None else None
    uses = {shadow.policy: "shadow"} if shadow is not None else {}
    if stats is not None:
        uses[stats.policy] = "in use"
    rows = [(name, policy.__name__, uses.get(name, ""), policy.summary) for name, policy in POLICIES.items()]
    out = session.out
    if out.as_json:
        told = [{"name": name, "class": kind, "use": use, "does": does} for name, kind, use, does in rows]
        if shadow is not None:
            by_name = {row["name"]: row for row in told}
            by_name.get(shadow.policy, {})["shadow"] = msgspec.to_builtins(shadow)
        out.json(told)
        return Exit.OK
    out.table([Column("name"), Column("class"), Column("use"), Column("does", fold=True)], rows)
    if shadow is not None:
        out.line("")
        out.pairs(shadow_pairs(shadow))
    return Exit.OK


async def _stats(session: Session) -> Stats | None:
    """What the daemon is at; None where there is none."""
    from schedd.errors import ConnectionLost

    try:
        async with session.connect(patient=False) as client:
            return await client.stats()
    except ConnectionLost as error:
        session.out.say(f"which of them is in use is not known: {error.message}")
        return None
