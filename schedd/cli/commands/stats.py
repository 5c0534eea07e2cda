"""`schedd stats`."""

from __future__ import annotations

from schedd.cli.exits import Exit
from schedd.cli.session import Session, client_command


@client_command("stats", examples="schedd stats\nschedd stats --json | jq .states.queued")
async def stats_command(session: Session) -> Exit:
    """Show the daemon at a glance. Totals count from its start."""
    import msgspec

    from schedd.cli.values import write_duration
    from schedd.cli.views import shadow_pairs, write_map

    async with session.connect() as client:
        stats = await client.stats()
    fields = msgspec.structs.asdict(stats)
    del fields["request"]
    if session.out.as_json:
        session.out.json(fields)
        return Exit.OK
    shadow = fields.pop("shadow")
    if shadow is not None:
        gains = dict(shadow_pairs(shadow))
        fields["shadow"] = f"{gains.pop('shadow')}: {'; '.join(f'{name} {value}' for name, value in gains.items())}"
    fields["uptime_s"] = write_duration(stats.uptime_s)
    for name in ("loop_lag_s", "loop_lag_max_s", "loop_lag_recent_s"):
        fields[name] = f"{fields[name] * 1000:.1f}ms"
    told = {n: (write_map(v) or "none") if isinstance(v, dict) else str(v) for n, v in fields.items()}
    session.out.pairs([(name.removesuffix("_s").replace("_", " "), value) for name, value in told.items()])
    return Exit.OK
