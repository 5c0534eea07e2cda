"""Large submits in parts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schedd.client.selecting import select
from schedd.client.splitting import cut, part_of
from schedd.core.model import Call, TaskId
from schedd.wire.messages import Selection, TaskEntry, TaskSpec

SPECS = [TaskSpec(Call(path=f"m:f{n}")) for n in range(3)]


def entries_of(count: int, size: int = 0) -> list[TaskEntry]:
    return [TaskEntry(n % 3, b"x" * size) for n in range(count)]


@pytest.mark.parametrize(
    ("count", "parts"), [(0, []), (1, [(0, 1)]), (10, [(0, 10)]), (11, [(0, 10), (10, 11)]), (20, [(0, 10), (10, 20)])]
)
def test_cut_by_count(count: int, parts: list[tuple[int, int]]) -> None:
    assert list(cut(entries_of(count), tasks_max=10, bytes_max=1000)) == parts


def test_cut_by_bytes_keeps_a_giant_alone() -> None:
    entries = [TaskEntry(0, b"x" * size) for size in (10, 10, 500, 10, 90)]
    assert list(cut(entries, tasks_max=10, bytes_max=100)) == [(0, 2), (2, 3), (3, 5)]


def test_part_has_only_its_specs() -> None:
    specs, entries = part_of(SPECS, [TaskEntry(2), TaskEntry(0), TaskEntry(2)], 1, 3, [TaskId(9)])
    assert specs == [SPECS[0], SPECS[2]]
    assert [entry.spec for entry in entries] == [0, 1]


def test_references_to_earlier_parts_become_ids() -> None:
    entries = [TaskEntry(0), TaskEntry(0), TaskEntry(0, b"a", "k", [-1, 70, -2], 3.0)]
    _, part = part_of(SPECS, entries, 1, 3, [TaskId(50)])
    assert part[1] == TaskEntry(0, b"a", "k", [50, 70, -1], 3.0)


def test_references_of_a_spec_become_ids() -> None:
    specs = [TaskSpec(Call(path="m:f"), after=[-1, 8])]
    assert part_of(specs, [TaskEntry(0), TaskEntry(0)], 1, 2, [TaskId(50)])[0][0].after == [50, 8]


def test_reference_forward_or_to_nothing() -> None:
    with pytest.raises(ValueError, match="names entry 5, which does not come before"):
        part_of(SPECS, [TaskEntry(0, after=[-6])], 0, 1, [])
    with pytest.raises(ValueError, match="an entry names spec 3, there are 3"):
        part_of(SPECS, [TaskEntry(3)], 0, 1, [])


@given(st.lists(st.integers(0, 30), max_size=60), st.integers(1, 7), st.integers(1, 50))
def test_parts_give_the_same_graph_as_the_whole(back: list[int], tasks_max: int, bytes_max: int) -> None:
    """Whatever the cut, each entry depends on the same tasks, and every part is a piece of the whole."""
    entries = [
        TaskEntry(n % 3, b"x" * (n % 5), after=[-1 - (n - step)] if 0 < step <= n else [])
        for n, step in enumerate(back)
    ]
    ids: list[TaskId] = []
    for start, end in cut(entries, tasks_max=tasks_max, bytes_max=bytes_max):
        specs, part = part_of(SPECS, entries, start, end, ids)
        ids += [TaskId(100 + n) for n in range(start, end)]
        for n, entry in enumerate(part, start):
            assert specs[entry.spec] == SPECS[entries[n].spec]
            resolved = [ids[start - 1 - ref] if ref < 0 else ref for ref in entry.after]
            assert resolved == [100 - 1 - ref for ref in entries[n].after]
    assert len(ids) == len(entries)


def test_selection_of_ids_and_handles() -> None:
    class Handle:
        id = TaskId(4)

    assert select(3) == Selection(ids=[TaskId(3)])
    assert select(Handle()) == Selection(ids=[TaskId(4)])
    assert select([3, Handle()]) == Selection(ids=[TaskId(3), TaskId(4)])
    assert select(Selection(job="j")) == Selection(job="j")


def test_no_tasks_is_not_all_tasks() -> None:
    assert select([]) is None


@pytest.mark.parametrize("which", ["12", [None], True, ["x"]])
def test_unusable_selection(which: object) -> None:
    with pytest.raises(TypeError, match="neither the id of a task nor its handle"):
        select(which)  # type: ignore[arg-type]
