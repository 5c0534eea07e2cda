"""`schedd check`."""

from __future__ import annotations

import click

from schedd.cli.exits import Exit
from schedd.cli.output import Output
from schedd.cli.session import command


@command("check", examples="schedd check config.toml")
@click.argument("file", metavar="CONFIG.TOML")
@click.option("--json", "as_json", is_flag=True, help="Write the settings, defaults included, as JSON to stdout.")
@click.option("--quiet", "-q", is_flag=True, help="Say nothing where the file is good.")
def check_command(file: str, as_json: bool, quiet: bool) -> Exit:
    """Check a settings file: unknown keys, wrong values, relations between keys that cannot hold.

    The exit code is 7 for a file that the daemon would refuse.
    """
    from schedd.config import load_settings

    settings = load_settings(file)
    out = Output(as_json=as_json, quiet=quiet)
    if as_json:
        out.json(settings)
    else:
        out.say(f"{file} is good; the policy is {settings.policy.name}")
    return Exit.OK
