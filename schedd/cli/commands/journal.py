"""`schedd backup`, of the journal of a daemon that runs, and `schedd journal`, which reads the file itself."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from schedd.cli.exits import Exit
from schedd.cli.options import Parsed
from schedd.cli.output import Output
from schedd.cli.session import Command, Session, client_command

EXAMPLES = """
schedd journal check
schedd journal check /var/lib/schedd/journal.db --json
schedd journal salvage journal.db new.db
"""


@client_command("backup", examples="schedd backup /var/lib/schedd/schedd-$(date +%F).db")
@click.argument("file", type=Parsed("file", lambda text: str(Path(text).absolute())), metavar="FILE")
async def backup_command(session: Session, file: str) -> Exit:
    """Write a copy of the journal to a new FILE while the daemon runs.

    The daemon writes it, on its own machine and as its own user: a service of systemd in its state only. The copy is a
    journal like any other: a daemon with `path = "FILE"` under [journal] goes on from it.
    """
    async with session.connect() as client:
        done = await client.backup(file)
    if session.out.as_json:
        session.out.json({"path": done.path, "size_bytes": done.size_bytes})
    elif session.out.quiet:
        session.out.line(done.path)
    else:
        session.out.say(f"wrote {done.size_bytes:,} bytes to {done.path}")
    return Exit.OK


class _Group(click.Group):
    """A group whose help ends with examples, as that of a command does."""

    examples = EXAMPLES
    format_epilog = Command.format_epilog


@click.group("journal", cls=_Group)
def journal_command() -> None:
    """Look after the file of a journal, while no daemon needs to run."""


def _output_options(function: Any) -> Any:
    function = click.option("--quiet", "-q", is_flag=True, help="No remarks on stderr.")(function)
    return click.option("--json", "as_json", is_flag=True, help="Write JSON to stdout.")(function)


@journal_command.command("check", cls=Command)
@click.argument("file", required=False, metavar="[FILE]")
@click.option("--config", metavar="CONFIG.TOML", help="Check the journal that these settings name.")
@_output_options
def check_command(file: str | None, config: str | None, as_json: bool, quiet: bool) -> Exit:
    """Read a whole journal and count what is in it; by default that of a daemon without settings.

    It may be in use. The exit code is 8 where it is damaged.
    """
    from schedd.address import journal_path
    from schedd.config import load_settings
    from schedd.journal.reader import Reader

    path = Path(file) if file else journal_path(load_settings(config).journal.path)
    counts = Reader(path).check()
    out = Output(as_json=as_json, quiet=quiet)
    if as_json:
        out.json({"path": str(path), **counts})
    else:
        out.say(f"{path} is good")
        out.pairs(
            [
                ("unfinished tasks", f"{counts['live']:,}"),
                ("finished tasks", f"{counts['finished']:,}"),
                ("facts", f"{counts['facts']:,}"),
                ("transactions", f"{counts['transactions']:,}"),
            ]
        )
    return Exit.OK


@journal_command.command("salvage", cls=Command)
@click.argument("file", metavar="FILE")
@click.argument("new", metavar="NEW")
@_output_options
def salvage_command(file: str, new: str, as_json: bool, quiet: bool) -> Exit:
    """Write what can be read of a damaged journal to a NEW one.

    The old file is not touched. Start the daemon with the new one in its place. Where root writes it, it belongs to
    the owner of the old one.
    """
    import msgspec

    from schedd.journal.salvage import salvage

    found = salvage(Path(file), Path(new))
    _hand_over(Path(file), Path(new))
    out = Output(as_json=as_json, quiet=quiet)
    if as_json:
        out.json(msgspec.structs.asdict(found))
    else:
        out.say(f"{new} has {found.live:,} unfinished and {found.finished:,} finished tasks")
        out.say(f"{found.damages:,} places of {file} could not be read")
    return Exit.OK


def _hand_over(old: Path, new: Path) -> None:
    """Give what root wrote to the owner of the old file: the daemon is to open it."""
    if os.geteuid() == 0:
        owner = old.stat()
        os.chown(new, owner.st_uid, owner.st_gid, follow_symlinks=False)
