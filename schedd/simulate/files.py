"""Files as they come: plain or compressed with gzip."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

from schedd.errors import TraceError


def text_of(path: Path, *, is_swf: bool = False) -> str:
    """The text of a file; what is no UTF-8 in the comments of SWF, which are old, is replaced. Raises TraceError."""
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
        errors = "replace" if is_swf or data.startswith(b";") else "strict"
        return data.decode("utf-8-sig", errors)  # spreadsheets begin with a mark of the order of bytes
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise TraceError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
