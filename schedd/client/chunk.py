"""What runs on the worker for a chunk of a `map`. Imports nothing: it is imported in each worker process."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any


def run_chunk(
    function: Callable[..., Any] | str, kwargs: dict[str, Any], chunk: Iterable[tuple[Any, ...]]
) -> list[Any]:
    """Call a function (or what its import path names) on each tuple of arguments, one after the other."""
    if isinstance(function, str):
        function = _resolve(function)
    return [function(*args, **kwargs) for args in chunk]


def _resolve(path: str) -> Callable[..., Any]:
    import importlib

    module, _, name = path.partition(":")
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    function: Callable[..., Any] = found
    return function
