"""`schedd policies`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from schedd.cli.exits import Exit
from schedd.cli.output import Column
from schedd.cli.session import Session, client_command

if TYPE_CHECKING:
    from schedd.wire.messages import PolicyState, StealsView

#: A daemon that does not say by then which policy is in use does not keep the list of all from being shown.
ANSWER_WITHIN_S = 2.0
EXAMPLES = """
schedd policies
schedd policies --json
schedd policies --steals
"""


@client_command("policies", examples=EXAMPLES)
@click.option("--steals", is_flag=True, help="Show what stealing has brought: the gain expected and the real one.")
async def policies_command(session: Session, steals: bool) -> Exit:
    """List the policies that `[policy] name` in config.toml can choose.

    Where a daemon answers, the one that it uses is marked.
    """
    if steals:
        async with session.connect() as client:
            state = await client.policy()
        _show_steals(session, state)
    else:
        _list(session, await _in_use(session))
    return Exit.OK


# ------------------------------------------------------------------------------------------------------------ the list


async def _in_use(session: Session) -> str | None:
    """The policy of the daemon; None where none answers, which is no error here."""
    import asyncio

    from schedd.errors import ScheddError

    try:
        async with asyncio.timeout(ANSWER_WITHIN_S), session.connect(patient=False) as client:
            return (await client.policy()).name
    except (ScheddError, OSError, TimeoutError):
        return None


def _list(session: Session, in_use: str | None) -> None:
    from schedd.core.policies import POLICIES

    if session.out.as_json:
        rows: list[dict[str, Any]] = [
            {
                "name": name,
                "class": policy.__name__,
                "does": policy.summary,
                "in_use": name == in_use if in_use else None,
            }
            for name, policy in POLICIES.items()
        ]
        session.out.json(rows)
    elif session.out.quiet:
        session.out.lines(POLICIES)
    else:
        columns = [Column("name"), Column(""), Column("class"), Column("does", fold=True)]
        marks = {in_use: "in use"}
        session.out.table(
            columns, [(name, marks.get(name, ""), each.__name__, each.summary) for name, each in POLICIES.items()]
        )


# ------------------------------------------------------------------------------------------------------------- --steals


def _show_steals(session: Session, state: PolicyState) -> None:
    from schedd.errors import ScheddError

    steals = state.steals
    if steals is None:
        raise ScheddError("the daemon does not say what stealing has brought", "it is of an earlier version")
    if session.out.as_json:
        session.out.json({"policy": state.name, "steals": steals})
        return
    session.out.pairs(_totals(state.name, steals))
    if steals.recent and not session.out.quiet:
        session.out.line("")
        _show_recent(session, steals)


def _totals(policy: str, steals: StealsView) -> list[tuple[str, str]]:
    measured, known = steals.measured, steals.known
    rows = [
        ("policy", policy if steals.enabled else f"{policy}; stealing is off: [stealing] enabled in config.toml"),
        ("threshold", f"backlogs of up to {steals.threshold} are left alone"),
        ("steals", f"{steals.asked:,} of {steals.tasks:,} tasks moved, {steals.refused:,} came too late"),
        ("measured", f"{measured:,}, {steals.unmeasured:,} could not be"),
    ]
    if measured:
        rows.append(("paid", f"{steals.paid:,} ({steals.paid / measured:.0%})"))
        rows.append(("gain", f"{_seconds(steals.real_s / measured)} in the mean, {_seconds(steals.real_s)} in all"))
    if known:
        expected, real = _seconds(steals.expected_s / known), _seconds(steals.real_of_known_s / known)
        rows.append(("expected", f"{expected} in the mean, where {real} came of it"))
    return rows


def _show_recent(session: Session, steals: StealsView) -> None:
    columns = [
        Column("task", right=True),
        Column("kind", fold=True),
        Column("from"),
        Column("to"),
        Column("tasks", right=True),
        Column("expected", right=True),
        Column("gain", right=True),
    ]
    rows = [
        (
            str(gain.task_id),
            gain.kind,
            gain.victim,
            gain.thief,
            str(gain.tasks),
            _seconds(gain.expected_s) if gain.expected_s is not None else "",
            _seconds(gain.real_s),
        )
        for gain in reversed(steals.recent)
    ]
    session.out.table(columns, rows)


def _seconds(seconds: float) -> str:
    """Seconds with three figures or so, the sign included: a steal may have made things worse."""
    if abs(seconds) < 10:
        return f"{seconds:.3f}s"
    return f"{seconds:,.1f}s" if abs(seconds) < 1000 else f"{seconds:,.0f}s"
