"""`schedd completion`."""

from __future__ import annotations

import click

from schedd.cli.exits import Exit
from schedd.cli.output import Output
from schedd.cli.session import command

EXAMPLES = """
schedd completion bash > ~/.local/share/bash-completion/completions/schedd
schedd completion zsh > ~/.zfunc/_schedd
schedd completion fish > ~/.config/fish/completions/schedd.fish
"""


@command("completion", examples=EXAMPLES)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion_command(ctx: click.Context, shell: str) -> Exit:
    """Write a completion script for a shell to stdout."""
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None
    script = found(ctx.find_root().command, {}, "schedd", "_SCHEDD_COMPLETE").source()
    Output().line(script)
    return Exit.OK
