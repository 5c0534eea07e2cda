"""What the service needs of the world around it, as far as it matters: time, a loop, a journal to write and to ask.

The daemon gives it the real ones. The simulation gives it its own, and so runs the very code that a daemon runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from msgspec import Struct

from schedd.core import effects as fx
from schedd.core.model import Instant, Task, TaskId
from schedd.journal.records import FinishedTask
from schedd.wire import messages as m

T = TypeVar("T")


class Reloaded(Struct, frozen=True):
    """What a reload has done: keys that count now, each with its old and new value, and keys that need a restart."""

    changed: list[str] = []
    needs_restart: list[str] = []


class Clock(Protocol):
    def now_ns(self) -> Instant:
        """Engine time: nanoseconds that never go back."""


class Timer(Protocol):
    def cancel(self) -> None: ...


class Reactor(Protocol):
    """The part of an asyncio event loop that the service uses."""

    def call_soon(self, callback: Callable[..., object], *args: Any) -> object: ...

    def call_soon_threadsafe(self, callback: Callable[..., object], *args: Any) -> object: ...

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> Timer: ...


class Journal(Protocol):
    """Where facts go, see `journal.store.Journal`."""

    @property
    def durability(self) -> str: ...

    def append(
        self, turn: int, facts: list[fx.Fact], finished: list[FinishedTask], now: Instant, can_wait: bool = False
    ) -> None: ...

    def stand_aside(self) -> None: ...

    def close(self) -> bool: ...


class Archive(Protocol):
    """Who is asked for what is on disk only, see `server.archive.Archive`."""

    def ask(
        self, question: Callable[[], T], answer: Callable[[T], None], failed: Callable[[str, str], None]
    ) -> None: ...

    def results(self, wanted: list[tuple[TaskId, Instant]], bytes_max: int) -> tuple[dict[TaskId, bytes], int]: ...

    def find(self, ids: list[TaskId], bytes_max: int) -> tuple[dict[TaskId, FinishedTask], int]: ...

    def rows(self, ids: list[TaskId]) -> dict[TaskId, Task]: ...

    def history(self, request: m.ListHistory) -> m.HistoryList: ...

    def back_up(self, request: m.BackUp) -> m.BackedUp: ...

    def events(self, request: m.ListEvents) -> m.EventList: ...
