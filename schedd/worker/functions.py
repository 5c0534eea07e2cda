"""Numbers for functions, so that a child is sent the bytes of a function once and its number after that. Pure."""

from __future__ import annotations

from collections import OrderedDict

#: Functions remembered by the worker; and by each child, which holds them as loaded objects.
FUNCTIONS_MAX = 256
BYTES_MAX = 64 * 1024 * 1024
CHILD_FUNCTIONS_MAX = 64


class FunctionNumbers:
    """Gives equal bytes equal numbers; the least recently used are forgotten and get a new number later."""

    def __init__(self) -> None:
        self._numbers: OrderedDict[bytes, int] = OrderedDict()
        self._bytes = 0
        self._last = 0

    def number_of(self, function: bytes) -> int:
        """The number of a function, never 0. O(length) for bytes not seen as this very object before."""
        number = self._numbers.get(function)
        if number is not None:
            self._numbers.move_to_end(function)
            return number
        self._last += 1
        self._numbers[function] = self._last
        self._bytes += len(function)
        while len(self._numbers) > FUNCTIONS_MAX or (self._bytes > BYTES_MAX and len(self._numbers) > 1):
            self._bytes -= len(self._numbers.popitem(last=False)[0])
        return self._last


class KnownFunctions:
    """What one child has loaded, as far as it was sent."""

    def __init__(self) -> None:
        self._numbers: OrderedDict[int, None] = OrderedDict()

    def has(self, number: int) -> bool:
        return number in self._numbers

    def add(self, number: int) -> tuple[bool, tuple[int, ...]]:
        """Use a function. Returns whether the child must be sent its bytes, and which numbers it may forget."""
        if number in self._numbers:
            self._numbers.move_to_end(number)
            return False, ()
        self._numbers[number] = None
        if len(self._numbers) > CHILD_FUNCTIONS_MAX:
            return True, (self._numbers.popitem(last=False)[0],)
        return True, ()

    def discard(self, number: int) -> None:
        """The packet with its bytes was taken back."""
        self._numbers.pop(number, None)
