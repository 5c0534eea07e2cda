"""A mapping from ids to values that grows by a page at a time. Pure.

A dict of a million entries stands still for up to 100 ms when it grows, while its memory is touched for the first time;
this never takes more than a page. Ids that follow on one another share pages, and take 8 bytes each instead of 80.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

V = TypeVar("V")

_BITS = 9
_SIZE = 1 << _BITS
_MASK = _SIZE - 1


class Pages(Generic[V]):
    """Values by id, none of them None. An id that stays alone keeps a page of 4 KB."""

    __slots__ = ("_counts", "_len", "_pages")

    def __init__(self) -> None:
        self._pages: dict[int, list[V | None]] = {}
        #: Values in each page.
        self._counts: dict[int, int] = {}
        self._len = 0

    def __len__(self) -> int:
        return self._len

    def __contains__(self, key: int) -> bool:
        return self.get(key) is not None

    def get(self, key: int) -> V | None:
        page = self._pages.get(key >> _BITS)
        return page[key & _MASK] if page is not None else None

    def __getitem__(self, key: int) -> V:
        value = self.get(key)
        if value is None:
            raise KeyError(key)
        return value

    def __setitem__(self, key: int, value: V) -> None:
        number = key >> _BITS
        page = self._pages.get(number)
        if page is None:
            page = self._pages[number] = [None] * _SIZE
            self._counts[number] = 0
        if page[key & _MASK] is None:
            self._counts[number] += 1
            self._len += 1
        page[key & _MASK] = value

    def pop(self, key: int) -> V | None:
        """Take a value out; None where there is none."""
        number = key >> _BITS
        page = self._pages.get(number)
        value = page[key & _MASK] if page is not None else None
        if page is None or value is None:
            return None
        self._len -= 1
        left = self._counts[number] = self._counts[number] - 1
        if left:
            page[key & _MASK] = None
        else:
            del self._pages[number], self._counts[number]
        return value

    def first(self, start: int, end: int) -> int:
        """The first id from `start` on that has a value; `end` where there is none below. O(pages between)."""
        number, offset = start >> _BITS, start & _MASK
        while number << _BITS < end:
            page = self._pages.get(number)
            if page is not None:
                for at in range(offset, _SIZE):
                    if page[at] is not None:
                        return min((number << _BITS) + at, end)
            number, offset = number + 1, 0
        return end

    def __iter__(self) -> Iterator[int]:
        """Yield all ids, in ascending order."""
        for number in sorted(self._pages):
            first = number << _BITS
            for offset, value in enumerate(self._pages[number]):
                if value is not None:
                    yield first + offset

    def values(self) -> Iterator[V]:
        """Yield all values by id, in ascending order. What is there may be replaced meanwhile, but no more."""
        for number in sorted(self._pages):
            for value in self._pages[number]:
                if value is not None:
                    yield value
