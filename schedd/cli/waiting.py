"""Wait for tasks to end: a progress bar on stderr, what Ctrl-C means, and the verdict."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, aclosing, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

from schedd.cli.exits import Exit
from schedd.cli.output import make_console, printable
from schedd.cli.session import Session
from schedd.core.model import TaskId
from schedd.wire.messages import Selection, TaskDone, Watching

if TYPE_CHECKING:
    from schedd.client.aio import AsyncClient

#: Failures that are named one by one before the summary; the rest is for `schedd tasks --state failed`.
NAMED_FAILURES = 10


class Progress(Protocol):
    """Told how far the waiting has come."""

    def __call__(self, finished: int, total: int, failed: int) -> None: ...


def _no_progress(finished: int, total: int, failed: int) -> None:
    pass


@contextmanager
def _bar() -> Iterator[Progress]:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("waiting"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[failed]}", style="red"),
        TimeElapsedColumn(),
    )
    with Bar(*columns, console=make_console(sys.stderr), transient=True) as bar:
        line = bar.add_task("", total=None, failed="")

        def show(finished: int, total: int, failed: int) -> None:
            bar.update(line, completed=finished, total=total, failed=f"{failed} failed" if failed else "")

        yield show


def progress_for(session: Session) -> AbstractContextManager[Progress]:
    """Choose a bar where somebody watches, nothing elsewhere."""
    if sys.stderr.isatty() and not session.out.quiet:
        return _bar()
    return nullcontext(_no_progress)


async def follow(client: AsyncClient, selection: Selection, progress: Progress) -> list[TaskDone]:
    """Return the ends of all tasks of the selection, in the order in which they became known."""
    done: list[TaskDone] = []
    total = failed = 0
    # The watch has a connection of its own, which only closing the generator ends.
    async with aclosing(client.watch(selection)) as news:
        async for item in news:
            if isinstance(item, Watching):
                total = item.total
            elif isinstance(item, TaskDone):
                done.append(item)
                failed += item.state != "succeeded"
            progress(len(done), total, failed)
    return done


def verdict(session: Session, done: Sequence[TaskDone], extra: dict[str, Any] | None = None) -> Exit:
    """Write what became of the tasks and return the exit code for it. `extra` comes first in the JSON."""
    counts = Counter(task.state for task in done)
    if session.out.as_json:
        tasks = [_end(task) for task in sorted(done, key=lambda task: task.task_id)]
        states = {state: counts[state] for state in ("succeeded", "failed", "cancelled")}
        session.out.json({**(extra or {}), "total": len(done), **states, "tasks": tasks})
    else:
        _talk(session, done, counts)
    return Exit.OK if counts["succeeded"] == len(done) else Exit.FAILED_TASKS


def _end(task: TaskDone) -> dict[str, Any]:
    fields = ("state", "cause", "exit_code", "message", "worker", "attempt")
    return {"id": task.task_id, **{name: getattr(task, name) for name in fields}}


def _talk(session: Session, done: Sequence[TaskDone], counts: Counter[str]) -> None:
    losers = [task for task in done if task.state != "succeeded"]
    for task in losers[:NAMED_FAILURES]:
        why = task.message or (f"exit code {task.exit_code}" if task.exit_code is not None else task.cause)
        session.out.say(f"task {task.task_id} {task.state}: {printable(why)}")
    if len(losers) > NAMED_FAILURES:
        session.out.say(f"… and {len(losers) - NAMED_FAILURES} more")
    states = ", ".join(f"{counts[state]} {state}" for state in ("succeeded", "failed", "cancelled") if counts[state])
    if len(done) != 1 or not losers:
        session.out.say(f"{len(done)} task{'s' * (len(done) != 1)}: {states or 'nothing to wait for'}")


async def wait_for_submitted(
    session: Session, client: AsyncClient, ids: list[TaskId], on_interrupt: str, extra: dict[str, Any]
) -> Exit:
    """Wait for what was just submitted. Ctrl-C cancels it, leaves it, or asks, as `on_interrupt` says.

    `extra` comes first in the JSON.
    """
    done: list[TaskDone] = []
    try:
        if ids:  # a selection without ids means the tasks of everybody
            with progress_for(session) as progress:
                done = await follow(client, Selection(ids=ids), progress)
    except asyncio.CancelledError:
        return await _interrupted(session, client, ids, on_interrupt)
    return verdict(session, done, extra)


async def _interrupted(session: Session, client: AsyncClient, ids: list[TaskId], on_interrupt: str) -> Exit:
    what = f"task {ids[0]}" if len(ids) == 1 else f"{len(ids)} tasks"
    if on_interrupt == "cancel" or (on_interrupt == "ask" and session.out.ask(f"cancel {what}?")):
        changed = await client.cancel(ids)
        session.out.say(f"interrupted: cancelled {changed.changed} of {what}")
    else:
        session.out.say(f"interrupted: {what} left as they are" if len(ids) > 1 else f"interrupted: {what} goes on")
    return Exit.INTERRUPTED
