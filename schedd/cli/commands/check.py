"""`schedd check`."""

from __future__ import annotations

import click

from schedd.cli.exits import Exit
from schedd.cli.output import Output
from schedd.cli.session import command
from schedd.errors import ConfigError


@command("check", examples="schedd check config.toml")
@click.argument("file", metavar="CONFIG.TOML")
@click.option("--json", "as_json", is_flag=True, help="Write the settings, defaults included, as JSON to stdout.")
@click.option("--quiet", "-q", is_flag=True, help="Say nothing where the file is good.")
def check_command(file: str, as_json: bool, quiet: bool) -> Exit:
    """Check a settings file: unknown keys, wrong values, relations between keys that cannot hold.

    The files, users and groups that it names are looked at, too, as on the machine of the daemon. The exit code is 7
    for a file that the daemon would refuse.
    """
    from schedd.config import load_settings
    from schedd.server.checking import check_start, hidden_files

    settings = load_settings(file)
    try:
        hidden = hidden_files(settings)
        check_start(settings, hidden)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error.message}", error.hint) from error
    out = Output(as_json=as_json, quiet=quiet)
    if hidden:
        out.say(f"not looked at, since only the daemon may: {', '.join(hidden)}")
    if as_json:
        out.json(settings)
    else:
        out.say(f"{file} is good; the policy is {settings.policy.name}")
    return Exit.OK
