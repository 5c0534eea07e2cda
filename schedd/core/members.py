"""Ids of tasks in ascending order, as many as there may be."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence

from schedd.core.model import TaskId

#: So many ids that were taken out are left where they are before anybody cleans up.
COMPACT_ABOVE = 1000


class Members:
    """Ids, added in ascending order and taken out in any: mostly the oldest or the newest first.

    Eight bytes an id, where a dict has a hundred and stops for 50 ms when it grows beyond 700,000.
    """

    __slots__ = ("_first", "_gone", "_ids")

    def __init__(self) -> None:
        self._ids = array("q")
        #: Before this position nothing is left.
        self._first = 0
        #: Taken out behind it.
        self._gone: set[int] = set()

    def __len__(self) -> int:
        return len(self._ids) - self._first - len(self._gone)

    def __iter__(self) -> Iterator[TaskId]:
        return (TaskId(i) for i in self.look() if i not in self._gone)

    def look(self) -> Sequence[int]:
        """All that are in here, and some that were taken out: a copy."""
        return self._ids[self._first :]

    def add(self, task_id: TaskId) -> None:
        """Add an id above all others."""
        self._ids.append(task_id)

    def remove(self, task_id: TaskId) -> None:
        """Take out an id, which must be in here. O(1), amortised."""
        ids, gone = self._ids, self._gone
        gone.add(task_id)
        while self._first < len(ids) and ids[self._first] in gone:
            gone.remove(ids[self._first])
            self._first += 1
        while len(ids) > self._first and ids[-1] in gone:
            gone.remove(ids.pop())
        if self._first > COMPACT_ABOVE and 2 * self._first > len(ids):
            del ids[: self._first]
            self._first = 0
        if len(gone) > COMPACT_ABOVE and len(gone) > len(self):
            self._ids = array("q", self)
            self._first = 0
            gone.clear()
