"""Who has the interpreter: the loop, which seldom lets go of it, or the writer of the journal, whom others wait for.

A commit gives the interpreter away and wants it back some twenty times. A loop that is never idle lets it wait each
time for the switch interval of the interpreter (5 ms): a tenth of a second for rows that take less than a millisecond.
It may be much longer, for whenever the loop lets go by itself, to write to a socket, and is back before the writer has
woken, the interval begins anew. So where that has happened, the loop stands aside for a while after each turn that
somebody waits for, until the rows are written; not until they are on disk. After that the writer wants the interpreter
once more, and is not patient.
"""

from __future__ import annotations

import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

#: A writer was starved where the rows of a commit, its sync not counted, took so long and so long for each fact. Then
#: the loop stands aside for so long; for each turn no longer than this, whatever the disk does. All in seconds.
STARVED_S = 0.004
STARVED_FACT_S = 3e-5
HURRIED_S = 30.0
ASIDE_S = 0.001
#: The switch interval meanwhile: for the few times that nobody stands aside, as after the sync.
HURRIED_SWITCH_S = 5e-6
#: Linux may be late by 50 us with the end of an interval, long enough for the loop to have let go again.
TIMER_SLACK_NS = 1000


class RightOfWay:
    """Shared by the loop (`asked`, `stand_aside`) and the writer (all else)."""

    def __init__(self) -> None:
        self._usual_switch_s = sys.getswitchinterval()
        self._hurried_until = 0.0
        #: The last turn that somebody waits for, the last for which the loop stood aside, and that has its rows.
        self._asked = self._stood_for = self._written = 0
        self._is_syncing = False
        self._passed = threading.Lock()
        self._passed.acquire()

    def enter(self) -> None:
        """Called in the thread of the writer, once."""
        with suppress(OSError):
            Path(f"/proc/{threading.get_native_id()}/timerslack_ns").write_text(str(TIMER_SLACK_NS))

    def asked(self, turn: int) -> None:
        """A turn was handed over that somebody waits for."""
        self._asked = turn

    def stand_aside(self) -> None:
        """Leave the interpreter to a writer that was starved lately, until it has done what it was asked for.

        Once for each turn, and `ASIDE_S` at the most.
        """
        if not self._hurried_until or self._asked <= max(self._written, self._stood_for) or self._is_syncing:
            return
        self._stood_for = self._asked
        self._passed.acquire(blocking=False)  # of a commit for which nobody stood aside
        if self._asked > self._written:
            self._passed.acquire(timeout=ASIDE_S)

    def written(self, turn: int, taken_s: float, facts: int) -> None:
        """The rows of all up to this turn are written, and are to be synced; it took so long."""
        self._written, self._is_syncing = turn, True
        if self._passed.locked():
            self._passed.release()
        now = time.monotonic()
        if taken_s > STARVED_S + STARVED_FACT_S * facts:
            sys.setswitchinterval(HURRIED_SWITCH_S)
            self._hurried_until = now + HURRIED_S
        elif self._hurried_until and now > self._hurried_until:
            sys.setswitchinterval(self._usual_switch_s)
            self._hurried_until = 0.0

    def synced(self) -> None:
        """The commit is over, well or not."""
        self._is_syncing = False
