"""Cuts the power of the disk under a writer, and looks whether all is there that the writer had told.

Runs in a mount namespace of its own, with the file `disk` of the folder mounted at `mnt`.
"""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import sys
from pathlib import Path

from .test_store import Writer, check_prefix

#: linux/ext4.h: shut the file system down at once, without writing its log.
EXT4_IOC_SHUTDOWN = 0x8004587D
NO_LOG_FLUSH = 2


def main(folder: str) -> None:
    disk, mounted = Path(folder) / "disk", Path(folder) / "mnt"
    path = mounted / "journal.db"
    with Writer(path, 1_000_000) as writer:
        # What is told while the power fails does not count: in the instant of this shutdown the kernel may report a
        # sync as done that is not, of any file (seen with a plain one, 1 time in 40).
        told = max([writer.next() for _ in range(50)])
        descriptor = os.open(mounted, os.O_RDONLY)
        fcntl.ioctl(descriptor, EXT4_IOC_SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
        os.close(descriptor)
        writer.popen.kill()
        writer.rest()
    subprocess.run(["umount", str(mounted)], check=True)
    subprocess.run(["mount", "-o", "loop", str(disk), str(mounted)], check=True)
    turns = check_prefix(path, told)
    sys.stdout.write(f"complete {told} {turns}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
