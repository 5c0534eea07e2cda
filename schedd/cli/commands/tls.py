"""`schedd tls`: a small certificate authority for a lab."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from schedd.cli.exits import Exit
from schedd.cli.output import Output
from schedd.cli.session import Command
from schedd.errors import ConfigError

if TYPE_CHECKING:
    from types import ModuleType

EXAMPLES = """
schedd tls init /etc/schedd/tls --name head --name head.lab.example --name 10.0.0.5
schedd tls server /etc/schedd/tls --name head --name head.lab.example --name 10.0.0.5
schedd tls client /etc/schedd/tls node7
schedd tls show /etc/schedd/tls/server.pem
"""
DAYS = 365


class _Group(click.Group):
    """A group whose help ends with examples, as that of a command does."""

    examples = EXAMPLES
    format_epilog = Command.format_epilog


@click.group("tls", cls=_Group)
def tls_command() -> None:
    """Make certificates for a lab: an authority, the daemon's certificate, those of workers and clients.

    Copy ca.pem to every worker and client ($SCHEDD_TLS_CA), and nothing else of the folder but what is made for them.
    """


def _authority() -> ModuleType:
    try:
        from schedd import authority
    except ImportError as error:
        raise ConfigError(f"`schedd tls` needs {error.name}", "pip install 'schedd[tls]'") from error
    return authority


def _options(function: Any) -> Any:
    function = click.option("--quiet", "-q", is_flag=True, help="No remarks on stderr.")(function)
    return click.option("--json", "as_json", is_flag=True, help="Write JSON to stdout.")(function)


def _days(function: Any) -> Any:
    text = f"How long the certificate is valid. Default: {DAYS}."
    return click.option("--days", type=click.IntRange(1, 3653), default=DAYS, metavar="N", help=text)(function)


def _names(function: Any) -> Any:
    text = "A host name or address by which workers and clients reach the daemon. Repeatable. Default: this host's."
    return click.option("--name", "names", multiple=True, metavar="NAME", help=text)(function)


def _own_names() -> list[str]:
    return [socket.gethostname(), socket.getfqdn()]


#: By which the daemon is reached from its own machine.
_LOCAL = ("localhost", "127.0.0.1", "::1")


def _show(paths: list[Path], as_json: bool, quiet: bool) -> None:
    out = Output(as_json=as_json, quiet=quiet)
    if as_json:
        out.json({"files": [str(path) for path in paths]})
    for path in paths:
        names = ", ".join(_authority().Shown(path).names)
        out.say(f"wrote {path} for {names}" if names else f"wrote {path}")


@tls_command.command("init", cls=Command)
@click.argument("folder", type=click.Path(path_type=Path), metavar="FOLDER")
@_names
@_days
@_options
def init_command(folder: Path, names: tuple[str, ...], days: int, as_json: bool, quiet: bool) -> Exit:
    """Make an authority (ca.pem, ca.key) and the daemon's certificate (server.pem, server.key) in a new FOLDER."""
    authority = _authority()
    all_names = [*(names or _own_names()), *_LOCAL]
    authority.check_names(all_names)
    authority.check_free(folder, "ca", "server")
    made = [authority.make_authority(folder), authority.make_server(folder, all_names, days)]
    _show(made, as_json, quiet)
    Output(as_json=as_json, quiet=quiet).say(
        f'set [tls] cert = "{made[1].absolute()}" and key = "{made[1].with_suffix(".key").absolute()}"; '
        f"give {made[0]} to workers and clients: $SCHEDD_TLS_CA"
    )
    return Exit.OK


@tls_command.command("server", cls=Command)
@click.argument("folder", type=click.Path(path_type=Path), metavar="FOLDER")
@_names
@_days
@_options
def server_command(folder: Path, names: tuple[str, ...], days: int, as_json: bool, quiet: bool) -> Exit:
    """Renew the daemon's certificate with the authority in FOLDER. Who trusts that need not be told.

    Give all names anew: the new one is for no others. Those that it does not have any more are named.
    """
    authority = _authority()
    before = _names_of(folder / "server.pem")
    made = authority.make_server(folder, [*(names or _own_names()), *_LOCAL], days, replace=True)
    _show([made], as_json, quiet)
    gone = [name for name in before if name not in _names_of(made)]
    if gone:
        options = " ".join(f"--name {name}" for name in gone)
        text = f"the one before was also for {', '.join(gone)}; to keep them, add {options}"
        Output(as_json=as_json, quiet=quiet).warn(text)
    return Exit.OK


def _names_of(path: Path) -> list[str]:
    """The names in a certificate; none where there is none."""
    try:
        return list(_authority().Shown(path).names)
    except ConfigError:
        return []


@tls_command.command("client", cls=Command)
@click.argument("folder", type=click.Path(path_type=Path), metavar="FOLDER")
@click.argument("name", metavar="NAME")
@_days
@_options
def client_command(folder: Path, name: str, days: int, as_json: bool, quiet: bool) -> Exit:
    """Make (or renew) NAME.pem and NAME.key for a worker or client, where [tls] client_ca asks for certificates."""
    made = _authority().make_client(folder, name, days, replace=True)
    _show([made], as_json, quiet)
    return Exit.OK


@tls_command.command("show", cls=Command)
@click.argument("file", type=click.Path(path_type=Path), metavar="FILE")
@click.option("--json", "as_json", is_flag=True, help="Write JSON to stdout.")
def show_command(file: Path, as_json: bool) -> Exit:
    """Show whose a certificate is, by which names, and until when."""
    from schedd.cli.views import clock

    shown = _authority().Shown(file)
    out = Output(as_json=as_json)
    if as_json:
        out.json(vars(shown))
    else:
        out.pairs(
            [
                ("subject", shown.subject),
                ("issuer", shown.issuer),
                ("names", ", ".join(shown.names)),
                ("expires", clock(shown.expires_at)),
                ("sha256", shown.fingerprint),
            ]
        )
    return Exit.OK
