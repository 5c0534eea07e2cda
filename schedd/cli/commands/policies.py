"""`schedd policies`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from schedd.cli.exits import Exit
from schedd.cli.output import Column
from schedd.cli.session import Session, client_command

if TYPE_CHECKING:
    from schedd.core.policies.base import TaskScheduler
    from schedd.wire.messages import PolicyState, Stats, StealsView

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
    """List the policies that `[policy] name` in config.toml can choose, and which of them the daemon uses.

    Those that installed distributions have registered are among them; what is wrong with one that cannot be used is
    said on stderr. Where a shadow is asked beside the one in use, what that would have done follows. Without a daemon
    there is the list alone.
    """
    if steals:
        async with session.connect() as client:
            state = await client.policy()
        _show_steals(session, state)
    else:
        _list(session, await _stats(session))
    return Exit.OK


# ------------------------------------------------------------------------------------------------------------ the list


async def _stats(session: Session) -> Stats | None:
    """What the daemon is at; None where none answers, which is no error here."""
    import asyncio

    from schedd.errors import ScheddError

    try:
        async with asyncio.timeout(ANSWER_WITHIN_S), session.connect(patient=False) as client:
            return await client.stats()
    except (ScheddError, OSError, TimeoutError) as error:
        session.out.say(f"which of them is in use is not known: {getattr(error, 'message', '') or 'no answer'}")
        return None


def _known(session: Session) -> Iterator[tuple[str, type[TaskScheduler], str]]:
    """Name, class and origin of each policy that can be used."""
    from schedd import plugins
    from schedd.core.policies import POLICIES
    from schedd.errors import ConfigError

    yield from ((name, policy, "schedd") for name, policy in POLICIES.items())
    for name in plugins.registered():
        try:
            policy = plugins.find(name)
        except ConfigError as error:
            session.out.warn(f"{error.message}: {error.hint}")
            continue
        if policy is not None:
            yield name, policy, plugins.origin(name)


def _list(session: Session, stats: Stats | None) -> None:
    import msgspec

    from schedd.cli.views import shadow_pairs

    out, known = session.out, list(_known(session))
    shadow = stats.shadow if stats is not None else None
    if out.as_json:
        rows: list[dict[str, Any]] = []
        for name, policy, origin in known:
            row: dict[str, Any] = {"name": name, "class": policy.__name__, "does": policy.summary, "from": origin}
            row["in_use"] = name == stats.policy if stats is not None else None
            rows.append(row)
            if shadow is not None and shadow.policy == name:
                row["shadow"] = msgspec.to_builtins(shadow)
        out.json(rows)
    elif out.quiet:
        out.lines(name for name, _, _ in known)
    else:
        marks = {shadow.policy: "shadow"} if shadow is not None else {}
        marks |= {stats.policy: "in use"} if stats is not None else {}
        columns = [Column("name"), Column("use"), Column("class"), Column("does", fold=True), Column("from")]
        out.table(columns, [(name, marks.get(name, ""), p.__name__, p.summary, of) for name, p, of in known])
        if shadow is not None:
            out.line("")
            out.pairs(shadow_pairs(shadow))


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
