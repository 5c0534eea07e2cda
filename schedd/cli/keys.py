"""Single keys from a terminal, inside an event loop."""

from __future__ import annotations

import asyncio
import os
import sys
import termios
import tty
from types import TracebackType


class Keys:
    """A context in which the terminal gives each key at once; the old mode comes back whatever happens."""

    def __init__(self) -> None:
        self._file = sys.stdin.fileno()
        self._pressed: asyncio.Queue[str] = asyncio.Queue()

    def __enter__(self) -> Keys:
        self._mode = termios.tcgetattr(self._file)
        tty.setcbreak(self._file)
        asyncio.get_running_loop().add_reader(self._file, self._read)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.get_running_loop().remove_reader(self._file)
        termios.tcsetattr(self._file, termios.TCSADRAIN, self._mode)

    def _read(self) -> None:
        data = os.read(self._file, 64)
        if not data:  # the terminal is gone; it would be readable for ever
            asyncio.get_running_loop().remove_reader(self._file)
            data = b"q"
        for key in data.decode("ascii", "ignore"):
            self._pressed.put_nowait(key)

    async def next(self, within_s: float) -> str:
        """Wait for a key; "" if there is none in this time."""
        try:
            return await asyncio.wait_for(self._pressed.get(), within_s)
        except TimeoutError:
            return ""
