"""Ends of attempts on the worker's disk, for as long as the daemon has not acknowledged them.

A batch is a file: a CRC-32 and a MessagePack array, written beside and renamed, so that it is there as a whole or not
at all. Nothing is synced: a file outlives the worker's process, not a power cut of its machine. What a power cut takes
is run again, as is what a damaged file had.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from zlib import crc32

import msgspec

from schedd.log import Log
from schedd.worker.outbox import Kept

CHECKSUM_BYTES = 4
#: A file that is being written; what a killed worker left of one has no meaning.
PARTIAL = ".partial"

_log = Log("schedd.worker")
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Kept)


class Shelf:
    """The files of one worker, whose folder it has for itself. Raises OSError where it cannot be made."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._is_failing = False
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def load(self) -> list[Kept]:
        """Read what the last run left, in the order of `seq`; a file that cannot be read is removed."""
        found = []
        for path in sorted(self._folder.iterdir()):
            try:
                if path.suffix != PARTIAL:
                    found.append(read_batch(path))
                    continue
            except OSError as error:
                _log.warning("ends_not_read", file=path, reason=str(error), effect="these attempts may be run again")
                continue
            except ValueError as error:
                _log.warning("ends_damaged", file=path, reason=str(error), effect="these attempts are run again")
            path.unlink(missing_ok=True)
        if found:
            _log.info("ends_found", attempts=sum(len(batch.attempts) for batch in found))
        return sorted(found, key=lambda batch: batch.seq)

    def keep(self, batches: Iterable[Kept]) -> list[int]:
        """Write batches, and return which could not be: these are in memory only, which is said once."""
        refused: list[int] = []
        for batch in batches:
            path = self._path(batch.seq)
            try:
                _write(path, _encoder.encode(batch))
            except OSError as error:
                refused.append(batch.seq)
                if not self._is_failing:
                    effect = "they are in memory only"
                    _log.warning("ends_not_kept", folder=self._folder, reason=str(error), effect=effect)
                self._is_failing = True
        if not refused:
            self._is_failing = False
        return refused

    def forget(self, numbers: Iterable[int]) -> None:
        """Remove batches that are acknowledged."""
        for seq in numbers:
            try:
                self._path(seq).unlink(missing_ok=True)
            except OSError as error:
                # The next run would bring it again, and be told that it is late.
                _log.debug("ends_not_removed", seq=seq, reason=str(error))

    def _path(self, seq: int) -> Path:
        return self._folder / f"{seq:012}"


def _write(path: Path, data: bytes) -> None:
    partial = path.with_suffix(PARTIAL)
    try:
        partial.write_bytes(crc32(data).to_bytes(CHECKSUM_BYTES, "big") + data)
        partial.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def read_batch(path: Path) -> Kept:
    """Read a file of ends. Raises OSError, and ValueError where it is damaged."""
    data = path.read_bytes()
    body = memoryview(data)[CHECKSUM_BYTES:]
    if crc32(body) != int.from_bytes(data[:CHECKSUM_BYTES], "big"):
        raise ValueError("its checksum is wrong")
    kept = _decoder.decode(body)
    if len(kept.attempts) != len(kept.defined_ns) or (kept.epochs and len(kept.epochs) != len(kept.attempts)):
        raise ValueError("it is not complete")
    return kept
