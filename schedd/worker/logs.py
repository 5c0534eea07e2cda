"""The output of attempts: two files each, `<task>.<attempt>.stdout` and `.stderr`, the newest of them kept."""

from __future__ import annotations

import contextlib
import os
from collections import OrderedDict
from pathlib import Path

from msgspec import Struct

from schedd.wire.messages import FetchLog, LogPiece

STREAMS = ("stdout", "stderr")
#: A piece goes into one frame, beside others.
PIECE_BYTES_MAX = 1024 * 1024
#: Names of silent attempts that are remembered, a hundred bytes each.
SILENT_MAX = 20_000
#: Open files kept for the next attempts: two descriptors each.
SPARE_MAX = 64
OPEN_FLAGS = os.O_TRUNC | os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC


class LogFiles(Struct, eq=False):
    """The two open files of an attempt; their names are those of `name`."""

    name: str
    stdout: int
    stderr: int


class LogStore:
    """The log files of one worker.

    Most attempts print nothing. Their files are used again, under the next one's name (to make a file costs 140 µs on
    ext4, to rename it 10), and only their names are remembered, so that asking for them gives empty output.
    """

    def __init__(self, folder: Path, keep_count: int) -> None:
        self.folder = folder
        self._keep_count = keep_count
        folder.mkdir(parents=True, exist_ok=True)
        #: Names (`task.attempt`) of the attempts with files here, oldest first; True once ended.
        self._kept: OrderedDict[str, bool] = OrderedDict()
        #: Names of ended attempts without files, oldest first.
        self._silent: OrderedDict[str, None] = OrderedDict()
        #: Open files that stayed empty, by the name that they still have.
        self._spare: dict[str, LogFiles] = {}
        self._adopt()
        self._prune()

    def _adopt(self) -> None:
        """Take over what an earlier run of this worker left."""
        found = [(path.stat(), path) for path in self.folder.glob("*.std*")]
        for stat, path in sorted(found, key=lambda entry: entry[0].st_mtime_ns):
            if stat.st_size:
                self._kept[path.stem] = True
            else:
                path.unlink()

    def path(self, name: str, stream: str) -> str:
        return f"{self.folder}/{name}.{stream}"

    def open(self, name: str) -> LogFiles:
        """Begin an attempt with two empty files. Raises OSError."""
        self._kept.pop(name, None)
        self._silent.pop(name, None)
        files = self._reuse(name) or self._create(name)
        self._kept[name] = False
        return files

    def _reuse(self, name: str) -> LogFiles | None:
        if not self._spare:
            return None
        # One of this very name first: no two may have the same.
        files = self._spare.pop(name, None) or self._spare.popitem()[1]
        try:
            if files.name != name:
                for stream in STREAMS:
                    os.rename(self.path(files.name, stream), self.path(name, stream))  # noqa: PTH104 - half the price
        except OSError:
            # Someone has cleared up behind our back.
            self._close(files)
            return None
        files.name = name
        return files

    def _create(self, name: str) -> LogFiles:
        stdout = os.open(self.path(name, "stdout"), OPEN_FLAGS, 0o600)
        try:
            return LogFiles(name, stdout, os.open(self.path(name, "stderr"), OPEN_FLAGS, 0o600))
        except OSError:
            os.close(stdout)
            raise

    def close(self, files: LogFiles, *, reusable: bool) -> None:
        """End an attempt that was opened. `reusable`: no process of it is left that could still write."""
        sizes = [os.fstat(fd).st_size for fd in (files.stdout, files.stderr)]
        has_output = any(sizes)
        if not has_output and reusable and len(self._spare) < SPARE_MAX:
            self._spare[files.name] = files
        else:
            self._close(files)
            for stream, size in zip(STREAMS, sizes, strict=True):
                if not size:
                    self._unlink(files.name, stream)
        self.ended(files.name, has_output=has_output)

    def _close(self, files: LogFiles) -> None:
        os.close(files.stdout)
        os.close(files.stderr)

    def _unlink(self, name: str, stream: str) -> None:
        with contextlib.suppress(OSError):
            os.unlink(self.path(name, stream))  # noqa: PTH108

    def close_all(self) -> None:
        """Remove the spare files."""
        for files in self._spare.values():
            self._close(files)
            for stream in STREAMS:
                self._unlink(files.name, stream)
        self._spare.clear()

    def ended(self, name: str, *, has_output: bool) -> None:
        """Remember an attempt that has ended."""
        self._kept.pop(name, None)
        self._silent.pop(name, None)
        if has_output:
            self._kept[name] = True
            self._prune()
            return
        self._silent[name] = None
        if len(self._silent) > SILENT_MAX:
            self._silent.popitem(last=False)

    def read(self, request: FetchLog, running_file: str | None = None) -> LogPiece:
        """Answer a request for a piece. `running_file` is where a running call's output is until it ends."""
        name = f"{request.task_id}.{request.attempt}"
        is_running = running_file is not None or self._kept.get(name) is False
        if request.stream not in STREAMS or not (is_running or name in self._kept or name in self._silent):
            return LogPiece(request.request, b"", 0, 0, done=True, error=f"no {request.stream} of {name} is kept here")
        limit = max(0, min(request.limit, PIECE_BYTES_MAX))
        try:
            data, offset, size = _read_piece(running_file or self.path(name, request.stream), request.offset, limit)
        except FileNotFoundError:
            data, offset, size = b"", 0, 0
        except (OSError, OverflowError) as error:
            return LogPiece(request.request, b"", 0, 0, done=True, error=f"the log of {name} cannot be read: {error}")
        return LogPiece(request.request, data, offset, size, done=not is_running and offset + len(data) >= size)

    def _prune(self) -> None:
        while len(self._kept) > self._keep_count:
            name, ended = next(iter(self._kept.items()))
            if not ended:
                # A long one that runs: it is the newest again.
                self._kept.move_to_end(name)
                if not any(self._kept.values()):
                    return
                continue
            del self._kept[name]
            for stream in STREAMS:
                self._unlink(name, stream)


def _read_piece(path: str, offset: int, limit: int) -> tuple[bytes, int, int]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(fd).st_size
        start = max(0, size + offset) if offset < 0 else min(offset, size)
        return os.pread(fd, limit, start), start, size
    finally:
        os.close(fd)
