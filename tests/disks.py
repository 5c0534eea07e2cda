"""Disks of a daemon's own, that fill up or lose their power: mounted where nobody else sees them."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

from helpers import wait_until

#: linux/ext4.h: shut the file system down at once, without writing its log.
EXT4_IOC_SHUTDOWN = 0x8004587D
NO_LOG_FLUSH = 2
IMAGE_BYTES = 64 << 20


class Mounts:
    """A mount namespace, kept by a process that sleeps in it. A context manager; needs root."""

    def __init__(self) -> None:
        argv = ["unshare", "--mount", "--propagation", "private", "sleep", "infinity"]
        self._keeper = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
        #: Words before a command that has to run in there.
        self.prefix = ("nsenter", f"--mount=/proc/{self._keeper.pid}/ns/mnt", "--")
        comm = Path(f"/proc/{self._keeper.pid}/comm")
        wait_until(lambda: comm.read_text() == "sleep\n", what="the namespace is there")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._keeper.kill()
        self._keeper.wait()

    def run(self, *words: str | Path) -> None:
        """Run a command in there. Raises CalledProcessError."""
        subprocess.run([*self.prefix, *words], check=True, capture_output=True)

    def seen_from_outside(self, path: Path) -> Path:
        """What is at `path` in there."""
        return Path(f"/proc/{self._keeper.pid}/root{path}")


class SmallDisk:
    """A tmpfs of so many bytes at `folder`."""

    def __init__(self, mounts: Mounts, folder: Path, size: int) -> None:
        folder.mkdir()
        self.folder = folder
        mounts.run("mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder)
        self._ballast = mounts.seen_from_outside(folder) / "ballast"

    def fill(self) -> None:
        """Take all the room that is left."""
        with self._ballast.open("wb", buffering=0) as ballast:
            try:
                while ballast.write(bytes(1 << 16)):
                    pass
            except OSError:
                return

    def make_room(self) -> None:
        self._ballast.unlink(missing_ok=True)


class PowerDisk:
    """An ext4 in a file of `folder`, mounted at its `mnt`, whose power can be cut."""

    def __init__(self, mounts: Mounts, folder: Path) -> None:
        self._mounts = mounts
        self._image = folder / "image"
        self.folder = folder / "mnt"
        self.folder.mkdir()
        with self._image.open("wb") as image:
            image.truncate(IMAGE_BYTES)
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(self._image)], check=True)
        self.mount()

    def mount(self) -> None:
        self._mounts.run("mount", "-o", "loop", self._image, self.folder)

    def cut_power(self) -> None:
        """Let nothing more reach the disk; what was not synced is lost."""
        descriptor = os.open(self._mounts.seen_from_outside(self.folder), os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, EXT4_IOC_SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
        finally:
            os.close(descriptor)

    def power_up(self) -> None:
        """Mount what is on the disk. Whoever had files open there must be gone."""
        self._mounts.run("umount", self.folder)
        self.mount()
