from __future__ import annotations

from schedd.worker.functions import BYTES_MAX, CHILD_FUNCTIONS_MAX, FUNCTIONS_MAX, FunctionNumbers, KnownFunctions


def test_equal_bytes_have_equal_numbers() -> None:
    numbers = FunctionNumbers()
    assert [numbers.number_of(text) for text in (b"a", b"b", b"a")] == [1, 2, 1]


def test_the_least_recently_used_is_forgotten() -> None:
    numbers = FunctionNumbers()
    for index in range(FUNCTIONS_MAX):
        numbers.number_of(b"%d" % index)
    assert numbers.number_of(b"0") == 1
    numbers.number_of(b"one more")
    assert numbers.number_of(b"0") == 1
    assert numbers.number_of(b"1") == FUNCTIONS_MAX + 2


def test_large_functions_are_bounded_by_their_bytes() -> None:
    numbers = FunctionNumbers()
    half = BYTES_MAX // 2 + 1
    assert [numbers.number_of(bytes([letter]) * half) for letter in (1, 2, 1)] == [1, 2, 3]


def test_child_is_sent_a_function_once_and_forgets_in_turn() -> None:
    known = KnownFunctions()
    assert known.add(1) == (True, ())
    assert known.add(1) == (False, ())
    for number in range(2, CHILD_FUNCTIONS_MAX + 1):
        assert known.add(number) == (True, ())
    assert known.add(1) == (False, ())
    assert known.add(1000) == (True, (2,))
    known.discard(1000)
    assert not known.has(1000)
