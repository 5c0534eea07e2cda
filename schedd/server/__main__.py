"""`python -m schedd.server`: the daemon without the command line's comfort."""

from __future__ import annotations

import argparse

import msgspec

from schedd.config import Settings, load_settings
from schedd.server.daemon import serve

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--config")
    parser.add_argument("--listen")
    parser.add_argument("--address-file")
    parser.add_argument("--socket", action="append", default=[])
    options = parser.parse_args()

    def load() -> Settings:
        """Read the file, and what stands on the command line over it."""
        settings = load_settings(options.config)
        if not options.listen:
            return settings
        server = msgspec.structs.replace(settings.server, listen=options.listen)
        return msgspec.structs.replace(settings, server=server)

    again = load if options.config else None
    raise SystemExit(serve(load(), address_file=options.address_file, sockets=options.socket, load=again))
