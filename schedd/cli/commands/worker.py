"""`schedd worker`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from schedd.cli.options import LOG_FORMAT, LOG_LEVEL, Amount, BadInput, credential_options
from schedd.cli.session import command
from schedd.cli.values import parse_amounts, parse_pairs

if TYPE_CHECKING:
    from schedd.config import LogSettings, WorkerSettings

EXAMPLES = """
schedd worker --connect head:7077
schedd worker --connect head:7077 --cpus 8 --label rack=3 --resource licence=2
schedd worker --config worker.toml --no-gpus
schedd worker --connect head:7077 --token-file ~/.schedd/token --tls-ca ~/.schedd/ca.pem
"""

#: As the settings bound them.
CPUS = Amount(min=0, min_open=True, max=1e5)
RAM_GB = Amount(min=0, max=1e7)


@command("worker", examples=EXAMPLES)
@click.option("--connect", metavar="HOST:PORT", help="The daemon. Default: [worker] connect, else $SCHEDD_ADDRESS.")
@click.option("--cpus", type=CPUS, metavar="N", help="CPUs to offer. Default: all that this process may use.")
@click.option("--name", metavar="NAME", help="Name, unique at the daemon. Default: host and pid.")
@click.option("--ram", type=RAM_GB, metavar="GB", help="Memory to offer. Default: all.")
@click.option("--no-gpus", is_flag=True, help="Offer no GPUs.")
@click.option("--label", "labels", multiple=True, metavar="K=V", help="A label that tasks can ask for. Repeatable.")
@click.option("--resource", "resources", multiple=True, metavar="NAME=AMOUNT", help="An amount of something else.")
@click.option("--state-dir", metavar="DIR", help="Where output and undelivered results are kept.")
@click.option(
    "--containment",
    type=click.Choice(["auto", "cgroup", "namespace", "process-group"]),
    help="What holds the processes of a task together. Default: the best there is.",
)
@credential_options
@click.option("--config", metavar="FILE", help="Settings; the tables [worker] and [log] count.")
@click.option("--log-level", type=LOG_LEVEL, help="Over the settings. Default: info.")
@click.option("--log-format", type=LOG_FORMAT, help="Over the settings. Default: text, which is key=value.")
def worker_command(
    connect: str | None,
    cpus: float | None,
    name: str | None,
    ram: float | None,
    no_gpus: bool,
    labels: tuple[str, ...],
    resources: tuple[str, ...],
    state_dir: str | None,
    containment: str | None,
    config: str | None,
    log_level: str | None,
    log_format: str | None,
    **credentials: str | None,
) -> int:
    """Offer this machine to a daemon: run tasks until told to stop.

    The first SIGTERM or Ctrl-C drains: what runs may end, the rest is handed back. The second one ends it at once.
    """
    from msgspec.structs import replace

    from schedd.address import daemon_address
    from schedd.log import set_up
    from schedd.worker.main import main as run_worker

    settings, logged = _settings(config)
    root = click.get_current_context().find_root().params
    try:
        given = {
            "connect": connect or root.get("address"),
            "cpus": cpus,
            "name": name,
            "ram_gb": ram,
            "gpus": "none" if no_gpus else None,
            "labels": {**settings.labels, **parse_pairs(labels, "--label")} if labels else None,
            "custom": {**settings.custom, **parse_amounts(resources, "--resource")} if resources else None,
            "state_dir": state_dir,
            "containment": containment,
            **{key: value or root.get(key) for key, value in credentials.items()},
        }
    except ValueError as error:
        raise BadInput(str(error)) from None
    settings = replace(settings, **{key: value for key, value in given.items() if value is not None})
    set_up(log_level or logged.level, log_format or logged.format)
    return run_worker(settings, daemon_address(settings.connect))


def _settings(config: str | None) -> tuple[WorkerSettings, LogSettings]:
    from schedd.config import load_settings

    settings = load_settings(config, with_policy=False)
    return settings.worker, settings.log
