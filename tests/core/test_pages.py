"""A mapping by pages is a dict by ids in ascending order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schedd.core.pages import Pages

#: Ids near the edges of pages, and far away from all others.
IDS = st.sampled_from([-1, 0, 1, 2, 510, 511, 512, 513, 1023, 1024, 5000, 1 << 40])
OPS = st.lists(st.tuples(st.sampled_from(["set", "pop"]), IDS, st.integers(0, 3)), max_size=60)


@given(OPS)
def test_does_what_a_dict_does(ops: list[tuple[str, int, int]]) -> None:
    pages, model = Pages[int](), dict[int, int]()
    for op, key, value in ops:
        if op == "set":
            pages[key] = model[key] = value
        else:
            assert pages.pop(key) == model.pop(key, None)
        assert len(pages) == len(model)
        assert (key in pages, pages.get(key)) == (key in model, model.get(key))
    assert list(pages) == sorted(model)
    assert list(pages.values()) == [model[key] for key in sorted(model)]
    for start, end in ((0, 6000), (511, 512), (512, 5000), (2, 2)):
        assert pages.first(start, end) == min((key for key in model if start <= key < end), default=end)


def test_what_is_not_there() -> None:
    pages = Pages[str]()
    pages[7] = "seven"
    assert pages[7] == "seven"
    with pytest.raises(KeyError):
        pages[8]
    with pytest.raises(KeyError):
        pages[8000]


def test_keeps_no_page_of_what_is_gone() -> None:
    pages = Pages[int]()
    for key in range(10_000):
        pages[key] = key
        pages.pop(key - 10)
    assert len(pages) == 10
    assert len(pages._pages) <= 2


def test_values_may_be_replaced_while_they_are_gone_through() -> None:
    pages = Pages[int]()
    for key in (600, 3, 1):
        pages[key] = key
    for value in pages.values():
        pages[value] = value + 1
    assert list(pages.values()) == [2, 4, 601]
