"""How a worker asks a call to stop, and sees whether the call would notice: two bytes of a file that both have open.

A signal would do for a command. It would end a call that has nothing prepared for it, and the helper processes of one
that has. So a call that looks at its flag is left alone until its grace is over, and one that never does gets SIGTERM.
Both sides read and write with a system call of less than a microsecond; nothing is mapped, since a full disk would
then be a fatal signal.
"""

from __future__ import annotations

import contextlib
import os

_STOP, _LOOKS = 0, 1
_NO, _YES = b"\0", b"\1"


class StopFlag:
    """Either end of a flag. A process that is forked has it too."""

    def __init__(self, path: str, *, create: bool = False) -> None:
        """Open a flag; `create`: as the worker that will remove it. Raises OSError."""
        self._path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0), 0o600)
        self._has_looked = False

    # --------------------------------------------------------------------------------------------------- the worker's

    def ask(self) -> bool:
        """Ask the call that runs to stop; True where it is known to look."""
        with contextlib.suppress(OSError):
            os.pwrite(self._fd, _YES, _STOP)
            return os.pread(self._fd, 1, _LOOKS) == _YES
        return False

    def remove(self) -> None:
        """Close it, and remove its file."""
        os.close(self._fd)
        with contextlib.suppress(OSError):
            os.unlink(self._path)  # noqa: PTH108

    # --------------------------------------------------------------------------------------------------- the child's

    def look(self) -> bool:
        """Tell whether the worker has asked, and let it know that somebody looks."""
        with contextlib.suppress(OSError):  # the call may have closed it, and the disk may be full
            if not self._has_looked:
                os.pwrite(self._fd, _YES, _LOOKS)
                self._has_looked = True
            return os.pread(self._fd, 1, _STOP) == _YES
        return False

    def forget(self) -> None:
        """Begin the next call, of which it is not known whether it will look."""
        if self._has_looked:
            self._has_looked = False
            with contextlib.suppress(OSError):
                os.pwrite(self._fd, _NO, _LOOKS)
