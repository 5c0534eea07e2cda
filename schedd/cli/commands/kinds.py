"""`schedd kinds`."""

from __future__ import annotations

import click

from schedd.cli.exits import Exit
from schedd.cli.output import Column
from schedd.cli.session import Session, client_command

EXAMPLES = """
schedd kinds
schedd kinds --json | jq '.[] | select(.success < 0.9)'
"""


@client_command("kinds", examples=EXAMPLES)
@click.option("--limit", type=click.IntRange(1, 10_000), default=1000, show_default=True, help="The last seen.")
async def kinds_command(session: Session, limit: int) -> Exit:
    """Show how long each kind of task takes, by device model where the policy in use tells models apart.

    Two thirds of the runtimes are expected in the range; ": best" compares a model with the one on which the kind is
    fastest. Samples count less as they grow old.
    """
    from msgspec import structs

    from schedd.cli.values import write_duration

    async with session.connect() as client:
        kinds = await client.kinds(limit)
    if session.out.as_json:
        session.out.json([structs.asdict(belief) for belief in kinds.beliefs])
        return Exit.OK
    best: dict[str, float] = {}
    for belief in kinds.beliefs:
        best[belief.kind] = min(belief.mean_s, best.get(belief.kind, belief.mean_s))
    rows = [
        [
            belief.kind,
            belief.model or "-",
            write_duration(belief.mean_s),
            f"{write_duration(belief.low_s)} .. {write_duration(belief.high_s)}",
            f"{belief.mean_s / best[belief.kind]:.2f}" if best[belief.kind] else "-",
            f"{belief.success:.0%}",
            f"{belief.samples:.0f}",
        ]
        for belief in kinds.beliefs
    ]
    columns = [
        Column("kind", fold=True),
        Column("model"),
        Column("mean", right=True),
        Column("range", right=True),
        Column(": best", right=True),
        Column("success", right=True),
        Column("samples", right=True),
    ]
    session.out.table(columns, rows)
    if not rows:
        session.out.say("no attempt has ended yet, so nothing is known of any kind")
    return Exit.OK
