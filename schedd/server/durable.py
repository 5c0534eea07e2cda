"""What others will rely on is on disk before they are told.

Each turn hands its facts to the journal. What the turn promises (an acknowledged submit, a recorded result) waits here
until the journal has written them, and leaves in the order of the turns. What promises nothing (a dispatch, a revoke)
does not wait: workers bring what they run to the next start of the daemon.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from schedd.core import effects as fx
from schedd.core.effects import Effects
from schedd.core.model import Instant
from schedd.journal.records import finished_records
from schedd.log import Log
from schedd.server.ports import Journal, Reactor

log = Log("schedd.server")

Promise = Callable[[], None]
#: Facts that come of themselves, and are answers to nobody's request.
OF_ATTEMPTS = frozenset({fx.AttemptDispatched, fx.AttemptBegan, fx.AttemptEnded, fx.TaskFinished})


class Promises:
    """Promises by the turn whose facts they need. Without a journal, or with durability "off", none waits."""

    def __init__(self, kept: Callable[[], None], reactor: Reactor, failing: Callable[[], None] = lambda: None) -> None:
        #: Called after promises were kept outside of a turn, to write what they say; and when the disk refuses.
        self._kept = kept
        self._failing = failing
        self._loop = reactor
        self._waiting: deque[tuple[int, Sequence[Promise]]] = deque()
        self.journal: Journal | None = None
        #: The last turns whose facts were handed over, and were written.
        self._recorded = self._written = 0
        #: Questions that need all facts of these turns on disk.
        self._questions: deque[tuple[int, Promise]] = deque()
        #: Why the journal cannot be written now; "": it can.
        self.failure = ""

    @property
    def recorded(self) -> int:
        """The last turn whose facts were handed to the journal."""
        return self._recorded

    @property
    def written(self) -> int:
        """The last turn that is on disk with all before it."""
        return self._written

    @property
    def pending_count(self) -> int:
        """Turns that are not on disk yet and have promised something."""
        return len(self._waiting)

    def record(
        self, turn: int, effects: Effects, promises: Sequence[Promise], now: Instant, *, is_busy: bool = False
    ) -> None:
        """Take the facts of a turn to the journal, and keep its promises when they are there.

        is_busy: many tasks are under way, so that nobody waits for the end of a single one.
        """
        journal, facts = self.journal, effects.facts
        if journal is not None and facts:
            self._recorded = turn
            can_wait = is_busy and all(type(fact) in OF_ATTEMPTS for fact in facts)
            journal.append(turn, facts, finished_records(facts, effects.finished), now, can_wait)
        if journal is None or journal.durability == "off" or self._written >= self._recorded:
            for promise in promises:
                promise()
        elif promises:
            # A turn without facts may speak of those before it: a command that took many has nothing left in its last.
            self._waiting.append((self._recorded, promises))

    def when_written(self, question: Promise) -> None:
        """Ask once all that has happened so far is in the journal, whatever its durability; at once while it fails."""
        if self._written >= self._recorded or self.failure:
            question()
        else:
            self._questions.append((self._recorded, question))

    def committed(self, turn: int) -> None:
        """In the writer thread: all turns up to this one are on disk."""
        self._loop.call_soon_threadsafe(self._keep, turn)

    def failing(self, reason: str) -> None:
        """In the writer thread: the disk refuses; "": it no longer does."""
        self._loop.call_soon_threadsafe(self._note_failure, reason)

    def _keep(self, turn: int) -> None:
        self._written = turn
        self._ask(turn)
        waiting = self._waiting
        if not waiting or waiting[0][0] > turn:
            return
        while waiting and waiting[0][0] <= turn:
            for promise in waiting.popleft()[1]:
                promise()
        self._kept()

    def _ask(self, turn: int) -> None:
        while self._questions and self._questions[0][0] <= turn:
            self._questions.popleft()[1]()

    def _note_failure(self, reason: str) -> None:
        self.failure = reason
        if reason:
            self._failing()
            self._ask(self._recorded)
            log.error("journal_failing", reason=reason, effect="new submits are refused, ends are not acknowledged")
        else:
            log.warning("journal_recovered")
