"""`schedd token`: make, list and revoke tokens, on the daemon's machine and as a user who may write its state."""

from __future__ import annotations

import os
import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from schedd.cli.exits import Exit
from schedd.cli.options import BadInput
from schedd.cli.output import Column, Output
from schedd.cli.session import Command

if TYPE_CHECKING:
    from schedd.wire.auth import Token, Verifier

EXAMPLES = """
schedd token create --role worker --out worker.token
schedd token create --role client --name alice
schedd token list
schedd token revoke alice
"""
#: Of a name that nobody gave, so much is of the id.
ID_SHOWN = 6
COLUMNS = [Column("id"), Column("role"), Column("name", fold=True), Column("created")]
#: What makes a change count.
RELOAD = "a daemon that runs must be told: systemctl reload schedd, or SIGHUP"


class _Group(click.Group):
    """A group whose help ends with examples, as that of a command does."""

    examples = EXAMPLES
    format_epilog = Command.format_epilog


@click.group("token", cls=_Group)
def token_command() -> None:
    """Make, list and revoke the tokens that workers and clients prove at the daemon.

    Roles: `worker` may only be a worker; `client` submits tasks and changes its own; `read-only` looks; `admin` may do
    everything. All are kept in one file, which has nothing that lets anybody in: [auth] tokens in config.toml.
    """


def _file_options(function: Any) -> Any:
    for option in (
        click.option("--quiet", "-q", is_flag=True, help="No remarks on stderr."),
        click.option("--json", "as_json", is_flag=True, help="Write JSON to stdout."),
        click.option("--tokens", metavar="FILE", help="The file of the tokens, over the settings."),
        click.option("--config", metavar="CONFIG.TOML", help="Settings that say where the tokens are."),
    ):
        function = option(function)
    return function


def _path(config: str | None, tokens: str | None) -> Path:
    from schedd.config import load_settings
    from schedd.server.tokens import tokens_path

    return tokens_path(tokens or load_settings(config, with_policy=False).auth.tokens)


@token_command.command("create", cls=Command)
@click.option("--role", required=True, type=click.Choice(["worker", "client", "admin", "read-only"]))
@click.option("--name", metavar="NAME", help="Whose it is: tasks that are submitted with it belong to this name.")
@click.option("--out", metavar="FILE", help="Write it to a new file that only you can read, not to stdout.")
@_file_options
def create_command(
    role: str, name: str | None, out: str | None, config: str | None, tokens: str | None, as_json: bool, quiet: bool
) -> Exit:
    """Make a token and write it to stdout: it is shown this once, and kept nowhere.

    Tokens of the same name are the same user, and so is the user of that login name at the daemon's Unix socket.
    """
    from schedd.server.tokens import changing, check_name
    from schedd.wire.auth import ID_BYTES, SECRET_BYTES, Role, make_token, verifier_of

    token = make_token(Role(role), secrets.token_bytes(ID_BYTES + SECRET_BYTES))
    name = name if name is not None else f"{role}-{token.id[:ID_SHOWN]}"
    check_name(name)
    path = _path(config, tokens)
    with changing(path) as known:
        if out is not None:
            _write_new(Path(out), token)
        known[token.id] = verifier_of(token, name, float(int(time.time())))
    output = Output(as_json=as_json, quiet=quiet)
    if as_json:
        shown = {"token": token.text()} if out is None else {"file": out}
        output.json({"id": token.id, "role": role, "name": name, **shown})
    elif out is None:
        output.line(token.text())
    output.say(f"token {token.id} for {role} {name!r} is in {path}; {RELOAD}")
    return Exit.OK


def _write_new(path: Path, token: Token) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}", "name a new file with --out") from None
    with os.fdopen(fd, "w") as file:
        file.write(f"{token.text()}\n")


@token_command.command("list", cls=Command)
@_file_options
def list_command(config: str | None, tokens: str | None, as_json: bool, quiet: bool) -> Exit:
    """List the tokens, without anything secret. With --quiet: ids alone, one a line."""
    from schedd.cli.views import clock
    from schedd.server.tokens import load_tokens

    path = _path(config, tokens)
    known = list(load_tokens(path).values())
    output = Output(as_json=as_json, quiet=quiet)
    if as_json:
        output.json([_public(verifier) for verifier in known])
    elif quiet:
        output.lines(verifier.id for verifier in known)
    elif known:
        output.table(COLUMNS, [[v.id, str(v.role), v.name, clock(v.created_at)] for v in known])
    else:
        output.say(f"there are no tokens in {path}")
    return Exit.OK


def _public(verifier: Verifier) -> dict[str, Any]:
    return {"id": verifier.id, "role": verifier.role, "name": verifier.name, "created_at": verifier.created_at}


@token_command.command("revoke", cls=Command)
@click.argument("which", nargs=-1, required=True, metavar="ID|NAME...")
@_file_options
def revoke_command(which: tuple[str, ...], config: str | None, tokens: str | None, as_json: bool, quiet: bool) -> Exit:
    """Take tokens out of the file, by their ids, or all of a name. A reload closes the connections made with them."""
    from schedd.server.tokens import changing

    path = _path(config, tokens)
    with changing(path) as known:
        gone = [v for v in known.values() if v.id in which or v.name in which]
        for verifier in gone:
            del known[verifier.id]
    output = Output(as_json=as_json, quiet=quiet)
    if as_json:
        output.json([_public(verifier) for verifier in gone])
    found = {word for v in gone for word in (v.id, v.name)}
    for word in which:
        if word not in found:
            output.say(f"there is no token {word!r} in {path}")
    if gone:
        output.say(f"revoked {len(gone)} token{'s' * (len(gone) != 1)}; {RELOAD}")
    return Exit.OK if found.issuperset(which) else Exit.NOT_FOUND
