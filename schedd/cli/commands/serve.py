"""`schedd serve`."""

from __future__ import annotations

import click

from schedd.cli.session import command

EXAMPLES = """
schedd serve --config /etc/schedd/config.toml
schedd serve --listen 127.0.0.1:0 --address-file /tmp/schedd.address
"""


@command("serve", examples=EXAMPLES)
@click.option("--config", metavar="FILE", help="Settings. Default: those of `config.toml` as it is shipped.")
@click.option("--listen", metavar="HOST:PORT", help="Where to listen, over the settings. Port 0 takes a free one.")
@click.option("--address-file", metavar="FILE", help="Write the real address there once it is known.")
def serve_command(config: str | None, listen: str | None, address_file: str | None) -> int:
    """Run the daemon until it is told to stop (SIGTERM, Ctrl-C)."""
    from msgspec.structs import replace

    from schedd.config import load_settings
    from schedd.server.daemon import serve

    settings = load_settings(config)
    if listen is not None:
        settings = replace(settings, server=replace(settings.server, listen=listen))
    return serve(settings, address_file=address_file)
