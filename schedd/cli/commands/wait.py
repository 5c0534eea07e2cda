"""`schedd wait`."""

from __future__ import annotations

import click

from schedd.cli.exits import Exit
from schedd.cli.options import DURATION, select, selection_options
from schedd.cli.session import Session, client_command

EXAMPLES = """
schedd wait 5 9-12
schedd wait --job sweep --timeout 2h
schedd wait && echo "all done"
"""


#: What has ended already is told also where the limit is shorter than a look takes, for which there is so long.
LOOK_S = 1.0


@client_command("wait", examples=EXAMPLES)
@selection_options(with_all=False)
@click.option("--timeout", "limit_s", type=DURATION, metavar="DURATION", help="Give up after this time (exit code 6).")
async def wait_command(session: Session, ids: tuple[list[int], ...], job: str | None, limit_s: float | None) -> Exit:
    """Wait until tasks have ended; without ids or --job, all that are unfinished now.

    The exit code is 0 if all succeeded, else 1. Ctrl-C stops the waiting and leaves the tasks alone.
    """
    import asyncio

    from msgspec import structs

    from schedd.cli.waiting import follow, progress_for, verdict

    selection = select(ids, job, everything=not ids and job is None)
    began = asyncio.get_running_loop().time()
    looked = False
    try:
        first = None if limit_s is None else max(limit_s, LOOK_S)
        async with asyncio.timeout(first) as limit, session.connect() as client:
            if limit_s is not None:
                unfinished = await client.tasks(structs.replace(selection, unfinished=True), limit=1)
                looked = True
                if unfinished:
                    limit.reschedule(began + limit_s)
            with progress_for(session) as progress:
                done = await follow(client, selection, progress)
    except TimeoutError:
        if looked:
            session.out.error("the time is up and not all of them have ended", "they go on; see `schedd tasks`")
        else:
            session.out.error("the time is up and the daemon has not answered")
        return Exit.TIMEOUT
    except asyncio.CancelledError:
        session.out.say("interrupted: the tasks go on")
        return Exit.INTERRUPTED
    if job is not None and not done:
        session.out.error(f"no task belongs to the job {job!r}", "see `schedd jobs`")
        return Exit.NOT_FOUND
    return verdict(session, done)
