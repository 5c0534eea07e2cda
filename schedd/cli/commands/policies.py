"""`schedd policies`."""

from __future__ import annotations

import click

from schedd.cli.exits import Exit
from schedd.cli.output import Column, Output
from schedd.cli.session import command


@command("policies", examples="schedd policies\nschedd policies --json")
@click.option("--json", "as_json", is_flag=True, help="Write JSON to stdout.")
def policies_command(as_json: bool) -> Exit:
    """List the policies that `[policy] name` in config.toml can choose."""
    from schedd.core.policies import POLICIES

    rows = [(name, policy.__name__, policy.summary) for name, policy in POLICIES.items()]
    out = Output(as_json=as_json)
    if as_json:
        out.json([{"name": name, "class": class_name, "does": does} for name, class_name, does in rows])
    else:
        columns = [Column("name"), Column("class"), Column("does", fold=True)]
        out.table(columns, rows)
    return Exit.OK
