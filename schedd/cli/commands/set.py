"""`schedd set`: the priority and the requirements of tasks that still wait."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from schedd.cli.commands.change import show_changed
from schedd.cli.exits import Exit
from schedd.cli.options import BadInput, requirement_options, select, selection_options
from schedd.cli.session import Session, client_command
from schedd.cli.values import parse_amounts, parse_pairs

if TYPE_CHECKING:
    from schedd.client.aio import AsyncClient
    from schedd.core.model import TaskId, TaskRequirements
    from schedd.wire.messages import Changed, Selection, TaskDetail, TaskView

EXAMPLES = """
schedd set 5 --priority 10
schedd set --job sweep --gpus 1 --gpu-memory 24
"""


@client_command("set", examples=EXAMPLES)
@selection_options(with_all=True)
@click.option("--priority", type=float, metavar="P", help="Higher is more important.")
@requirement_options
async def set_command(
    session: Session,
    ids: tuple[list[int], ...],
    job: str | None,
    everything: bool,
    priority: float | None,
    **requirements: Any,
) -> Exit:
    """Change the priority or the requirements of tasks that have not been dispatched.

    Requirements that are not given stay as they are, and so do other labels and resources than those given. `--label
    K=` and `--resource NAME=0` take one away.
    """
    selection = select(ids, job, everything, unfinished=True)
    changes = _changes(priority, requirements)
    if priority is None and not changes:
        raise BadInput("there is nothing to change", "give --priority, or requirements such as --gpus 1")
    async with session.connect() as client:
        if changes:
            changed = await change_requirements(client, selection, priority, changes)
        else:
            changed = await client.set(selection, priority=priority)
    return show_changed(session, "changed", changed, named=bool(ids))


def _changes(priority: float | None, given: dict[str, Any]) -> dict[str, Any]:
    from schedd.cli.taskspec import RequirementOptions, check_priority, requirement_changes
    from schedd.core.model import TaskRequirements

    labels, resources = given.pop("labels"), given.pop("resources")
    try:
        check_priority(priority or 0.0)
        options = RequirementOptions(
            label=parse_pairs(labels, "--label") if labels else None,
            resource=parse_amounts(resources, "--resource") if resources else None,
            **given,
        )
        changes = requirement_changes(options)
        TaskRequirements(**changes)
    except ValueError as error:
        raise BadInput(str(error)) from None
    return changes


async def change_requirements(
    client: AsyncClient, selection: Selection, priority: float | None, changes: dict[str, Any]
) -> Changed:
    """Overlay `changes` on what each task asks for now; one request for each distinct outcome.

    The daemon replaces requirements as a whole, and the tasks of a selection need not be alike.
    """
    import msgspec

    from schedd.wire.messages import Changed

    groups: dict[bytes, tuple[TaskRequirements, list[TaskId]]] = {}
    found = await _show_known(client, selection)
    if not found:  # the daemon says what is not there, in the words that it has for a priority
        return await client.set(selection, priority=priority)
    for task, detail in found:
        wanted = _overlay(detail.requirements, changes)
        groups.setdefault(msgspec.msgpack.encode(wanted), (wanted, []))[1].append(task.id)
    known = {task.id for task, _ in found}
    count = 0
    unchanged: list[tuple[int | str, str]] = [(i, "unknown task") for i in selection.ids if i not in known]
    for wanted, task_ids in groups.values():
        changed = await client.set(task_ids, priority=priority, requirements=wanted)
        count += changed.changed
        unchanged += changed.unchanged
    return Changed(0, count, unchanged)


def _overlay(asked: TaskRequirements, changes: dict[str, Any]) -> TaskRequirements:
    import msgspec

    merged = {name: _merge(getattr(asked, name), changes[name]) for name in ("labels", "custom") if name in changes}
    return msgspec.structs.replace(asked, **(changes | merged))


def _merge(old: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Add what was given; an empty text or an amount of 0 takes away."""
    return {name: value for name, value in {**old, **given}.items() if value or name not in given}


async def _show_known(client: AsyncClient, selection: Selection) -> list[tuple[TaskView, TaskDetail]]:
    from schedd.errors import RequestRefused
    from schedd.wire.messages import UNKNOWN_TASK

    try:
        return await client.show(selection)
    except RequestRefused as error:
        if error.code != UNKNOWN_TASK:  # of all of them
            raise
        return []
