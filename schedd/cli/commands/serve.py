"""`schedd serve`."""

from __future__ import annotations

import click

from schedd.cli.options import LOG_FORMAT, LOG_LEVEL
from schedd.cli.session import command

EXAMPLES = """
schedd serve --config /etc/schedd/config.toml
schedd serve --listen 127.0.0.1:0 --address-file /tmp/schedd.address
"""


@command("serve", examples=EXAMPLES)
@click.option("--config", metavar="FILE", help="Settings. Default: those of `config.toml` as it is shipped.")
@click.option("--listen", metavar="HOST:PORT", help="Where to listen, over the settings. Port 0 takes a free one.")
@click.option("--address-file", metavar="FILE", help="Write the real address there once it is known.")
@click.option("--log-level", type=LOG_LEVEL, help="Over the settings. Default: info.")
@click.option("--log-format", type=LOG_FORMAT, help="Over the settings. Default: text, which is key=value.")
def serve_command(
    config: str | None, listen: str | None, address_file: str | None, log_level: str | None, log_format: str | None
) -> int:
    """Run the daemon until it is told to stop (SIGTERM, Ctrl-C)."""
    from msgspec.structs import replace

    from schedd.config import load_settings
    from schedd.server.daemon import serve

    settings = load_settings(config)
    if listen is not None:
        settings = replace(settings, server=replace(settings.server, listen=listen))
    given = {key: value for key, value in (("level", log_level), ("format", log_format)) if value is not None}
    settings = replace(settings, log=replace(settings.log, **given))
    return serve(settings, address_file=address_file)
