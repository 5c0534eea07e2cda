"""`python -m schedd.server`: the daemon without the command line's comfort."""

from __future__ import annotations

import argparse

import msgspec

from schedd.config import load_settings
from schedd.server.daemon import serve

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--config")
    parser.add_argument("--listen")
    parser.add_argument("--address-file")
    options = parser.parse_args()
    settings = load_settings(options.config)
    if options.listen:
        settings = msgspec.structs.replace(
            settings, server=msgspec.structs.replace(settings.server, listen=options.listen)
        )
    raise SystemExit(serve(settings, address_file=options.address_file))
