"""cloudpickle, with code that still knows its file: a traceback from a worker names it, and shows its lines.

From version 3.1.3 on cloudpickle writes "<dynamic-code>" instead, so that equal functions give equal bytes wherever
they were defined. Nobody compares those bytes here, and whoever looks for a failure wants to know where it was.
"""

from __future__ import annotations

import io
import pickle
import types
from typing import Any

from cloudpickle import CloudPickler

#: What cloudpickle writes in place of a file's name.
PLACEHOLDER = "<dynamic-code>"

_reduce = CloudPickler.dispatch_table[types.CodeType]


def _reduce_code(code: types.CodeType) -> tuple[Any, ...]:
    make, arguments = _reduce(code)
    return make, tuple(code.co_filename if each == PLACEHOLDER else each for each in arguments)


class _Pickler(CloudPickler):  # type: ignore[misc]
    dispatch_table = CloudPickler.dispatch_table.new_child({types.CodeType: _reduce_code})


def dumps(value: object) -> bytes:
    """Pickle a value as `cloudpickle.dumps` does. Raises whatever a part of it raises."""
    with io.BytesIO() as file:
        _Pickler(file, protocol=pickle.HIGHEST_PROTOCOL).dump(value)
        return file.getvalue()
