"""Fills the small disk that the journal is on, makes room again, and looks whether all is there. Prints how it went.

Runs in a mount namespace of its own, with a tmpfs at the folder it is given.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path
from queue import Empty

from .builders import TIMEOUT_S, Running, admitted, reopened, unfinished


def say(line: str) -> None:
    sys.stdout.write(line + "\n")


def main(folder: str) -> None:
    path = Path(folder) / "journal.db"
    count = 0
    with Running(path) as running:
        turns = []
        while running.failures.empty():
            count += 1
            turns.append(running.append(admitted([count], argument=bytes(2000))))
            with contextlib.suppress(Empty):
                running.committed.get(timeout=0.05)
        say(f"failing: {running.failures.get(timeout=TIMEOUT_S)}")
        subprocess.run(["mount", "-o", "remount,size=256m", folder], check=True)
        running.wait(turns[-1])
        if running.failures.get(timeout=TIMEOUT_S) == "":
            say("recovered")
    if unfinished(reopened(path)) == list(range(1, count + 1)):
        say("complete")


if __name__ == "__main__":
    main(*sys.argv[1:])
