"""A process that writes a journal for as long as it lives, and prints each turn as soon as it is told to be on disk.

    python -m tests.journal.writer PATH TURNS

A turn admits a batch of three tasks, ends the last task of the batch before it, and changes the first one. Ends in
order when its standard input ends.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

from schedd.core import effects as fx
from schedd.journal.records import FinishedTask
from schedd.journal.store import Journal

from .builders import START, admitted, changed, ended, finished

#: Turns that may wait for their commit.
AHEAD_MAX = 20


def failing(reason: str) -> None:
    os.write(2, f"failing: {reason}\n".encode())


def facts_of(turn: int) -> tuple[list[fx.Fact], list[FinishedTask]]:
    first = 3 * turn - 2
    facts: list[fx.Fact] = [admitted(range(first, first + 3), argument=b"x" * 500), changed(first, float(turn))]
    if turn == 1:
        return facts, []
    return [*facts, ended(first - 1)], [finished(first - 1, START + turn, b"r%d" % turn)]


def main(path: str, turns: str) -> None:
    room = threading.Semaphore(AHEAD_MAX)
    last = 0

    def told(turn: int) -> None:
        nonlocal last
        os.write(1, b"%d\n" % turn)
        room.release(turn - last)
        last = turn

    journal = Journal(Path(path), committed=told, failing=failing)
    journal.load()
    journal.start()
    for turn in range(1, int(turns) + 1):
        room.acquire()
        facts, over = facts_of(turn)
        journal.append(turn, facts, over, START + turn)
    sys.stdin.read()
    journal.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
