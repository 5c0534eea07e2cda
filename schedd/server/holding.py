"""Messages for workers that must not leave yet: the submit behind a dispatch is on disk before its task starts.

Else a daemon that is killed in between would have had something run that nobody was promised, and that the client, who
sends its submit again, has run a second time. What follows for the same worker waits behind it, so that a cancel never
overtakes the dispatch that it is about.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from schedd.core import effects as fx
from schedd.core.model import TaskId
from schedd.server.connections import Peer


class Holding:
    """Holds back what has to wait for the journal; in the common case nothing."""

    def __init__(self) -> None:
        #: Tasks with smaller ids are on disk, or were ended before they came to be.
        self._safe_below = TaskId(0)
        self._admitted_below = TaskId(0)
        self._held: dict[Peer, deque[tuple[int, Any]]] = {}

    def begin(self, admitted_below: TaskId) -> None:
        """Begin the messages of a turn, after which tasks below this id have been admitted."""
        self._admitted_below = admitted_below

    @property
    def is_needed(self) -> bool:
        """Whether the turn under way has to tell `safe` when it is on disk."""
        return self._admitted_below > self._safe_below or bool(self._held)

    def must_wait(self, peer: Peer, action: fx.Action) -> bool:
        """Whether what an action tells a worker has to wait."""
        if peer in self._held:
            return True
        safe_below = self._safe_below
        if self._admitted_below <= safe_below or type(action) is not fx.DispatchAttempts:
            return False
        return any(task.id >= safe_below for task in action.tasks)

    def enter(self, peer: Peer, turn: int) -> None:
        """Keep all that is for a worker that has just come until `safe(turn)`: the next start has to know of it.

        That start would wait for it, before it gives to somebody else what this one runs.
        """
        self.put(peer, turn, (None,))

    def put(self, peer: Peer, turn: int, messages: Sequence[Any]) -> None:
        """Keep messages until `safe(turn)`."""
        self._held.setdefault(peer, deque()).extend((turn, message) for message in messages)

    def safe(self, turn: int, admitted_below: TaskId) -> None:
        """A turn is on disk, in which tasks below this id had been admitted: send what waited for it."""
        self._safe_below = max(self._safe_below, admitted_below)
        for peer, waiting in list(self._held.items()):
            while waiting and waiting[0][0] <= turn:
                message = waiting.popleft()[1]
                if message is not None:
                    peer.send(message)
            if not waiting:
                del self._held[peer]

    def let_go(self) -> None:
        """The disk refuses: running something twice is better than running nothing."""
        for peer, waiting in self._held.items():
            for _, message in waiting:
                if message is not None:
                    peer.send(message)
        self._held.clear()

    def forget(self, peer: Peer) -> None:
        """A connection has ended."""
        self._held.pop(peer, None)
