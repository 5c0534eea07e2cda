"""`schedd policies`."""

from __future__ import annotations

import click

from schedd.cli.exits import Exit
from schedd.cli.output import Column, Output
from schedd.cli.session import command


@command("policies", examples="schedd policies\nschedd policies --json")
@click.option("--json", "as_json", is_flag=True, help="Write JSON to stdout.")
def policies_command(as_json: bool) -> Exit:
    """List the policies that `[policy] name` in config.toml can choose.

    Those that installed distributions have registered are among them; what is wrong with one that cannot be used is
    said on stderr.
    """
    from schedd import plugins
    from schedd.core.policies import POLICIES
    from schedd.errors import ConfigError

    rows = [(name, policy.__name__, policy.summary, "schedd") for name, policy in POLICIES.items()]
    out = Output(as_json=as_json)
    for name in plugins.registered():
        try:
            policy = plugins.find(name)
        except ConfigError as error:
            out.warn(f"{error.message}: {error.hint}")
            continue
        if policy is not None:
            rows.append((name, policy.__name__, policy.summary, plugins.origin(name)))
    if as_json:
        out.json([{"name": name, "class": kind, "does": does, "from": of} for name, kind, does, of in rows])
    else:
        columns = [Column("name"), Column("class"), Column("does", fold=True), Column("from")]
        out.table(columns, rows)
    return Exit.OK
