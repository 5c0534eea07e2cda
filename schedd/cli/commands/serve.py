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
@click.option("--socket", "sockets", metavar="PATH", multiple=True, help="Listen on this Unix socket too.")
def serve_command(config: str | None, listen: str | None, address_file: str | None, sockets: tuple[str, ...]) -> int:
    """Run the daemon until it is told to stop (SIGTERM, Ctrl-C).

    SIGHUP, or `schedd reload`, lets it read its settings again. The exit code is 0 after an orderly stop, 7 where the
    settings cannot be used, 8 where the journal cannot, 9 where the address cannot be listened on.
    """
    from msgspec.structs import replace

    from schedd.config import Settings, load_settings
    from schedd.server.daemon import serve

    def load() -> Settings:
        settings = load_settings(config)
        if listen is None:
            return settings
        return replace(settings, server=replace(settings.server, listen=listen))

    return serve(load(), address_file=address_file, sockets=sockets, load=load if config is not None else None)
