"""Ids in ascending order, taken out in any."""

from __future__ import annotations

import random

import pytest

from schedd.core import members as module
from schedd.core.members import Members
from schedd.core.model import TaskId


@pytest.mark.parametrize("seed", range(5))
def test_same_as_a_set(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(module, "COMPACT_ABOVE", 5)
    rng = random.Random(seed)
    members, model = Members(), set[int]()
    for task_id in range(1, 500):
        members.add(TaskId(task_id))
        model.add(task_id)
        for _ in range(rng.choice([0, 0, 1, 2, 3])):
            if model:
                gone = rng.choice([min(model), max(model), rng.choice(sorted(model))])
                members.remove(TaskId(gone))
                model.remove(gone)
        assert len(members) == len(model)
        assert list(members) == sorted(model)
        assert set(members.look()) >= model


def test_what_was_taken_out_does_not_pile_up_behind_the_oldest() -> None:
    members = Members()
    for task_id in range(1, 100_000):
        members.add(TaskId(task_id))
        if task_id > 1:
            members.remove(TaskId(task_id))
    assert list(members) == [1]
    assert len(members.look()) <= 2 * module.COMPACT_ABOVE + 2
