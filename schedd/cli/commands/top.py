"""`schedd top`: the daemon, live."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import TYPE_CHECKING

from schedd.cli.exits import Exit
from schedd.cli.session import Session, client_command

if TYPE_CHECKING:
    from schedd.cli.dashboard import Observer, Snapshot

REFRESH_S = 1.0


@client_command("top", examples="schedd top\nschedd top | cat   # one snapshot")
async def top_command(session: Session) -> Exit:
    """Watch the daemon live: the queue by state, workers and their load, what runs, how fast tasks finish.

    Keys: q quits, s changes the order of the running tasks, p pauses. Where stdout is no terminal, one snapshot is
    written.
    """
    from schedd.cli.dashboard import Observer
    from schedd.cli.views import by_name

    async with session.connect(patient=False) as client:
        observer = Observer(client)
        snapshot = await observer.look()
        if session.out.as_json:
            workers = by_name(snapshot.workers)
            session.out.json({"stats": _plain(snapshot), "workers": workers, "running": snapshot.running})
        elif sys.stdout.isatty() and sys.stdin.isatty():
            with contextlib.suppress(asyncio.CancelledError):  # Ctrl-C is how many leave a live view
                await _live(observer, snapshot)
        else:
            _once(snapshot)
    return Exit.OK


def _plain(snapshot: Snapshot) -> dict[str, object]:
    import msgspec

    fields = msgspec.structs.asdict(snapshot.stats)
    del fields["request"]
    return fields


def _once(snapshot: Snapshot) -> None:
    from schedd.cli.dashboard import FIXED_LINES, render
    from schedd.cli.output import show_renderable

    lines = FIXED_LINES + len(snapshot.workers) + max(1, len(snapshot.running))
    show_renderable(render(snapshot, lines=lines, sort="time"))


async def _live(observer: Observer, snapshot: Snapshot) -> None:
    from rich.live import Live

    from schedd.cli.dashboard import SORTS, render
    from schedd.cli.keys import Keys
    from schedd.cli.output import make_console
    from schedd.errors import ConnectionLost

    console = make_console(sys.stdout)
    sort, paused, trouble = 0, False, ""
    with Keys() as keys, Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            pause = "p go on (paused)" if paused else "p pause"
            foot = trouble or f"q quit   s sort by {SORTS[(sort + 1) % len(SORTS)]} (now {SORTS[sort]})   {pause}"
            live.update(render(snapshot, lines=console.size.height, sort=SORTS[sort], foot=foot), refresh=True)
            match await keys.next(REFRESH_S):
                case "q":
                    return
                case "s":
                    sort = (sort + 1) % len(SORTS)
                case "p":
                    paused = not paused
                case _ if not paused:
                    try:
                        snapshot, trouble = await observer.look(), ""
                    except ConnectionLost as error:
                        trouble = f"q quit   trying again: {error.message}"
