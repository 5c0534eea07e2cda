"""`schedd workers` and `schedd drain`."""

from __future__ import annotations

import time

import click

from schedd.cli.commands.change import show_changed
from schedd.cli.exits import Exit
from schedd.cli.session import Session, client_command

EXAMPLES = """
schedd workers
schedd workers --json | jq '.[] | select(.status == "idle") | .name'
"""


@client_command("workers", examples=EXAMPLES)
async def workers_command(session: Session) -> Exit:
    """List the workers. cpus and gpus are written as reserved/capacity."""
    from schedd.cli.views import WORKER_COLUMNS, by_name, quarantine, worker_row

    async with session.connect() as client:
        workers = await client.workers()
    if session.out.as_json:
        session.out.json(by_name(workers))
    elif session.out.quiet:
        session.out.lines(worker.name for worker in workers)
    elif workers:
        session.out.table(WORKER_COLUMNS, [worker_row(worker) for worker in workers])
        for worker in workers:
            if worker.quarantine is not None:
                session.out.text(f"{worker.name} is in quarantine: {quarantine(worker.quarantine, time.time())}")
        for worker in workers:
            if worker.silence:
                session.out.text(f"{worker.name} is unreachable: {worker.silence}")
    else:
        session.out.say("no workers; start one with `schedd worker --connect HOST:PORT`")
    return Exit.OK


@client_command("drain", examples="schedd drain gpu-3\nschedd drain gpu-3 gpu-4 --keep\nschedd drain gpu-3 --undo")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--undo", is_flag=True, help="Give them work again, in quarantine or not.")
@click.option("--keep", is_flag=True, help="Stay connected when the last task has ended; by default they leave.")
async def drain_command(session: Session, names: tuple[str, ...], undo: bool, keep: bool) -> Exit:
    """Give workers nothing new; when what they run has ended, they leave.

    --undo also ends the quarantine of a worker on which too much has failed.
    """
    async with session.connect() as client:
        changed = await client.drain(names, undo=undo, leave=not keep)
    return show_changed(session, "undrained" if undo else "draining", changed, named=True, noun="worker")
