"""Files as they come: plain or compressed with gzip."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

from schedd.errors import TraceError


def text_of(path: Path) -> str:
    """The text of a file. Raises TraceError."""
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
        return data.decode("utf-8-sig")  # spreadsheets begin with a mark of the order of bytes
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise TraceError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
