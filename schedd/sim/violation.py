"""What a check raises."""

from __future__ import annotations


class Violation(AssertionError):
    """A promise was broken."""


def must(condition: object, text: str) -> None:
    if not condition:
        raise Violation(text)
