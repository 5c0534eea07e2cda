"""What every command that talks to the daemon has in common: its options, its connection, its loop."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import click

from schedd.cli.exits import Exit
from schedd.cli.output import Output

if TYPE_CHECKING:
    from schedd.client.aio import AsyncClient
    from schedd.credentials import Credentials
    from schedd.errors import ScheddError


#: Options of `schedd` itself that say who we are.
CREDENTIALS = ("token_file", "tls_ca", "tls_cert", "tls_key", "tls_name")


class Session:
    """One run of a command: where the daemon is, what we show it, and how to write."""

    def __init__(self, address: str | None, output: Output, credentials: Credentials | None = None) -> None:
        self.address = address
        self.out = output
        self._credentials = credentials

    def connect(self, *, patient: bool = True) -> AsyncClient:
        """Make the client, which `async with` connects. `patient`: a daemon that goes away is waited for."""
        from schedd.client.aio import AsyncClient
        from schedd.client.line import RECONNECT_S

        reconnect_s = RECONNECT_S if patient else 0
        return AsyncClient(
            self.address,
            program="schedd",
            reconnect_s=reconnect_s,
            on_change=self._on_change,
            credentials=self._credentials,
        )

    def _on_change(self, error: ScheddError | None) -> None:
        if error is None:
            self.out.say("the daemon is back")
        else:
            self.out.say(f"the daemon is away, trying again: {error.message}")


class Command(click.Command):
    """A click command whose help ends with examples."""

    examples = ""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.examples:
            with formatter.section("Examples"):
                for line in self.examples.strip().splitlines():
                    formatter.write(f"{' ' * formatter.current_indent}{line.strip()}\n")


def command(name: str, *, examples: str = "", **attributes: Any) -> Callable[[Callable[..., Any]], Command]:
    """Make a click command with examples in its help."""

    def decorate(function: Callable[..., Any]) -> Command:
        made = click.command(name, cls=Command, **attributes)(function)
        made.examples = examples
        return made

    return decorate


def _common_options() -> list[click.Parameter]:
    address = "The daemon to talk to (or unix:/path). Default: $SCHEDD_ADDRESS."
    return [
        click.Option(["--address"], metavar="HOST:PORT", help=address),
        click.Option(["--json", "as_json"], is_flag=True, help="Write JSON to stdout."),
        click.Option(["--quiet", "-q"], is_flag=True, help="No remarks on stderr; results as short as can be."),
    ]


def client_command(
    name: str, *, examples: str = "", **attributes: Any
) -> Callable[[Callable[..., Awaitable[Exit]]], Command]:
    """Make a command of a coroutine `f(session, **options)`, and add --address, --json and --quiet to it.

    Plain asyncio: a command lives for one round trip, and importing a faster loop would cost more than it saves.
    """

    def decorate(function: Callable[..., Awaitable[Exit]]) -> Command:
        @functools.wraps(function)
        def run(address: str | None, as_json: bool, quiet: bool, **options: Any) -> Exit:
            import asyncio

            from schedd.credentials import find_credentials

            root = click.get_current_context().find_root().params
            shown = find_credentials(**{name: root.get(name) or "" for name in CREDENTIALS})
            session = Session(address or root.get("address"), Output(as_json=as_json, quiet=quiet), shown)

            async def body() -> Exit:
                return await function(session, **options)

            return asyncio.run(body())

        made = command(name, examples=examples, **attributes)(run)
        made.params += _common_options()  # at the end: the help begins with what is special about a command
        return made

    return decorate
