"""Who wants to hear of which task."""

from __future__ import annotations

from typing import Any, Protocol

from schedd.core.model import TaskId


class Listener(Protocol):
    """A client that can be told of its tasks."""

    @property
    def is_paused(self) -> bool:
        """Whether it does not read what it was sent."""

    def send(self, message: Any) -> None:
        """Write a message with the rest of this turn."""

    def send_done(self, task_id: TaskId, with_result: bool) -> None:
        """Tell of a final task."""


class Watch:
    """One client's wish: tell it of ends, with `results` of values too, with `reports` of progress."""

    __slots__ = ("peer", "reports", "results")

    def __init__(self, peer: Listener, results: bool, reports: bool) -> None:
        #: None once the client is gone; its entries leave with their tasks.
        self.peer: Listener | None = peer
        self.results = results
        self.reports = reports


class Watchers:
    """Watches by task. The common case, one watch, is held without a list around it."""

    def __init__(self) -> None:
        self._by_task: dict[TaskId, Watch | list[Watch]] = {}

    def __len__(self) -> int:
        return len(self._by_task)

    def add(self, task_id: TaskId, watch: Watch) -> None:
        """Add a watch; a second one of the same client takes the place of its first."""
        known = self._by_task.get(task_id)
        if known is None:
            self._by_task[task_id] = watch
            return
        others = known if isinstance(known, list) else [known]
        kept = [w for w in others if w.peer is not None and w.peer is not watch.peer]
        self._by_task[task_id] = [*kept, watch] if kept else watch

    def of(self, task_id: TaskId) -> list[Watch]:
        """The watches of a task whose clients are still there."""
        known = self._by_task.get(task_id)
        if known is None:
            return []
        return [w for w in (known if isinstance(known, list) else [known]) if w.peer is not None]

    def take(self, task_id: TaskId) -> list[Watch]:
        """The same, and forget them."""
        known = self._by_task.pop(task_id, None)
        if known is None:
            return []
        if isinstance(known, list):
            return [w for w in known if w.peer is not None]
        return [known] if known.peer is not None else []
