"""Cut a large submit into several. Pure.

An entry may name an earlier entry of the same submit by a negative number (-1-n is the n-th). Where the other one went
with an earlier part, its id is known by now and takes the number's place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from schedd.core.model import TaskId
from schedd.wire.messages import TaskEntry, TaskSpec


def cut(entries: Sequence[TaskEntry], *, tasks_max: int, bytes_max: int) -> Iterator[tuple[int, int]]:
    """Yield the bounds (start, end) of parts of at most so many entries and bytes of arguments, each at least one."""
    start, size = 0, 0
    for place, entry in enumerate(entries):
        size += len(entry.argument)
        if place > start and (place - start >= tasks_max or size > bytes_max):
            yield start, place
            start, size = place, len(entry.argument)
    if start < len(entries):
        yield start, len(entries)


def part_of(
    specs: Sequence[TaskSpec], entries: Sequence[TaskEntry], start: int, end: int, ids: Sequence[TaskId]
) -> tuple[list[TaskSpec], list[TaskEntry]]:
    """Build the submit of entries[start:end] on its own, with only the specs that it uses.

    `ids` are those of entries[:start]. Raises ValueError for a spec or an entry that is not there.
    """

    def place(reference: int) -> int:
        if reference >= 0:
            return reference
        position = -1 - reference
        if position >= end:
            raise ValueError(f"`after` names entry {position}, which does not come before")
        return ids[position] if position < start else -1 - (position - start)

    used: dict[int, int] = {}
    part_specs: list[TaskSpec] = []
    part_entries: list[TaskEntry] = []
    for entry in entries[start:end]:
        if not 0 <= entry.spec < len(specs):
            raise ValueError(f"an entry names spec {entry.spec}, there are {len(specs)}")
        if entry.spec not in used:
            used[entry.spec] = len(part_specs)
            spec = specs[entry.spec]
            if any(reference < 0 for reference in spec.after):
                spec = msgspec.structs.replace(spec, after=[place(reference) for reference in spec.after])
            part_specs.append(spec)
        after = [place(reference) for reference in entry.after] if entry.after else []
        part_entries.append(TaskEntry(used[entry.spec], entry.argument, entry.key, after, entry.priority))
    return part_specs, part_entries
