"""`schedd reload`."""

from __future__ import annotations

from schedd.cli.exits import Exit
from schedd.cli.session import Session, client_command

EXAMPLES = """
schedd check config.toml && schedd reload
schedd reload --address unix:/run/schedd/schedd.sock
"""


@client_command("reload", examples=EXAMPLES)
async def reload_command(session: Session) -> Exit:
    """Let the daemon read its settings again, and wait until they count.

    No task and no connection is lost, nor what was learned. What only counts at a start is named. A file that is wrong
    changes nothing, and the exit code is 7.
    """
    async with session.connect(patient=False) as client:
        done = await client.reload()
    if session.out.as_json:
        session.out.json({"changed": done.changed, "needs_restart": done.needs_restart})
        return Exit.OK
    for change in done.changed:
        session.out.line(change)
    if not done.changed and not done.needs_restart:
        session.out.say("nothing has changed")
    for key in done.needs_restart:
        session.out.say(f"{key} counts when the daemon is started anew")
    return Exit.OK
