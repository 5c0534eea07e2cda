"""`python -m schedd.worker`: a worker without the command line program around it."""

from __future__ import annotations

import argparse
import sys

from schedd.address import daemon_address
from schedd.config import WorkerSettings
from schedd.errors import ScheddError
from schedd.log import set_up
from schedd.worker.main import main


def _parse() -> tuple[WorkerSettings, str, str]:
    parser = argparse.ArgumentParser(prog="python -m schedd.worker")
    parser.add_argument("--connect", default="", metavar="HOST:PORT")
    parser.add_argument("--cpus", type=float, default=None)
    parser.add_argument("--name", default="")
    parser.add_argument("--state-dir", default="")
    parser.add_argument("--containment", choices=["auto", "cgroup", "namespace", "process-group"], default="auto")
    parser.add_argument("--log-level", default="info")
    options = parser.parse_args()
    settings = WorkerSettings(
        name=options.name, cpus=options.cpus, state_dir=options.state_dir, containment=options.containment
    )
    return settings, options.connect, options.log_level


if __name__ == "__main__":
    given, connect, level = _parse()
    set_up(level)
    try:
        sys.exit(main(given, daemon_address(connect)))
    except ScheddError as error:
        sys.exit(f"error: {error}\nhint: {error.hint}")
