"""The entry point: finds the sub-command, runs it, and turns whatever happens into words and an exit code.

A sub-command's module is imported when it is asked for, so that `schedd tasks` does not pay for `schedd top`.
"""

from __future__ import annotations

import errno
import importlib
from collections.abc import Sequence

import click

from schedd import __version__
from schedd.cli import output
from schedd.cli.exits import Exit, exit_for
from schedd.cli.options import BadInput, credential_options
from schedd.cli.values import nearest
from schedd.errors import ConnectionLost, ScheddError

#: Name of the sub-command → module in `schedd.cli.commands` that has it, under its name. In the order of the help.
COMMANDS = {
    "serve": "serve",
    "worker": "worker",
    "submit": "submit",
    "tasks": "tasks",
    "jobs": "jobs",
    "show": "show",
    "explain": "explain",
    "logs": "logs",
    "wait": "wait",
    "cancel": "change",
    "preempt": "preempt",
    "hold": "change",
    "release": "change",
    "set": "set",
    "retry": "retry",
    "history": "history",
    "events": "events",
    "workers": "workers",
    "drain": "workers",
    "top": "top",
    "stats": "stats",
    "reload": "reload",
    "backup": "journal",
    "journal": "journal",
    "kinds": "kinds",
    "policies": "policies",
    "simulate": "simulate",
    "check": "check",
    "install-service": "install_service",
    "token": "token",
    "tls": "tls",
    "demo": "demo",
    "completion": "completion",
}


#: What the system says of a write for which a disk has no room, or that it cannot do.
_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO})


class LazyGroup(click.Group):
    """A group that imports a sub-command's module on demand."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"schedd.cli.commands.{COMMANDS[cmd_name]}")
        found: click.Command = getattr(module, f"{cmd_name.replace('-', '_')}_command")
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if not ctx.resilient_parsing and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise BadInput(f"no such command {args[0]!r}", nearest(args[0], list(COMMANDS)), ctx)
        return super().resolve_command(ctx, args)


def _show_version(ctx: click.Context, parameter: click.Parameter, is_wanted: bool) -> None:
    if is_wanted:
        from schedd.assembly import is_compiled

        output.Output().line(f"schedd {__version__}{', compiled' if is_compiled() else ''}")
        ctx.exit()


@click.group(
    cls=LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["--help", "-h"], "max_content_width": 110},
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="Show the version."
)
@click.option("--address", metavar="HOST:PORT", help="The daemon to talk to (or unix:/path). Default: $SCHEDD_ADDRESS.")
@credential_options
@click.pass_context
def root(ctx: click.Context, /, address: str | None, **credentials: str | None) -> None:
    """Schedule machine-learning evaluations on GPU and CPU workers.

    Start a daemon with `schedd serve`, workers with `schedd worker`, then `schedd submit -- python train.py`.
    Try `schedd demo` to see it all at work on this machine.
    """
    if ctx.invoked_subcommand is None:
        output.Output().line(ctx.get_help())


def _usage_hint(error: click.UsageError) -> str:
    if isinstance(error, BadInput):
        return error.hint
    return f"see '{error.ctx.command_path} --help'" if error.ctx else "see 'schedd --help'"


def _run(arguments: Sequence[str] | None) -> int:
    try:
        status = root.main(arguments, prog_name="schedd", standalone_mode=False)
        output.finish()
    except output.OutputClosed:
        output.abandon()
        return Exit.BROKEN_PIPE
    except click.Abort:
        output.show_error("interrupted")
        return Exit.INTERRUPTED
    except click.UsageError as error:
        output.show_error(error.format_message(), _usage_hint(error))
        return Exit.USAGE
    except click.ClickException as error:
        output.show_error(error.format_message())
        return Exit.USAGE
    except ScheddError as error:
        hint = error.hint
        if isinstance(error, ConnectionLost) and not hint:
            hint = "is `schedd serve` running there? another address: --address HOST:PORT or $SCHEDD_ADDRESS"
        output.show_error(error.message, hint)
        return exit_for(error)
    except TimeoutError as error:
        output.show_error(str(error) or "the time is up")
        return Exit.TIMEOUT
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        output.abandon()
        output.show_error(f"the output cannot be written: {error.strerror}")
        return Exit.OUTPUT
    return Exit.OK if status is None else int(status)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `schedd` with these arguments, by default those of the process, and return the exit code."""
    output.set_up()
    try:
        return _run(arguments)
    except output.OutputClosed:  # stderr is gone too
        return Exit.BROKEN_PIPE
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _DISK_FULL:  # nor can stderr be written
            return Exit.OUTPUT
        output.show_bug()
        return Exit.BUG
