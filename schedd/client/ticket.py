"""What goes through the pipeline: an order, and who is told about it."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable

from msgspec import Struct

from schedd.core.model import Instant, TaskId
from schedd.errors import ScheddError
from schedd.wire.messages import AttemptReport, TaskDone, TaskSpec


class Ticket(ABC):
    """Who is told about one task. All methods are called in the loop, each at most once but `reported`."""

    #: 0 until the daemon has acknowledged the task.
    id: TaskId = TaskId(0)
    #: When the daemon took it, 0 where that is not known: says which task of that id is meant.
    submitted_ns: Instant = 0
    #: Sent, or about to be. Changed under the pipeline's lock.
    is_sent = False
    #: Given up by its owner before it was sent, or refused.
    is_withdrawn = False

    def accepted(self, task_id: TaskId, warnings: list[str]) -> None:
        """The daemon has the task safe."""
        self.id = task_id

    @abstractmethod
    def refused(self, error: ScheddError) -> None:
        """The daemon declined the task, does not know it any more, or is given up."""

    @abstractmethod
    def ended(self, done: TaskDone) -> None:
        """The task is final."""

    def reported(self, report: AttemptReport) -> None:  # noqa: B027 - few want to know
        """The running attempt told of its progress."""


class Order(Struct, frozen=True):
    """One task to send."""

    spec: TaskSpec
    argument: bytes
    ticket: Ticket
    key: str | None = None
    strict: bool = False


class Follower(Ticket):
    """Passes the end of a task on to a function."""

    def __init__(self, task_id: TaskId, submitted_ns: Instant, on_done: Callable[[TaskDone], None]) -> None:
        self.id = task_id
        self.submitted_ns = submitted_ns
        self._on_done = on_done

    def refused(self, error: ScheddError) -> None:
        """The connection ended: whoever follows learns of it by his next request."""

    def ended(self, done: TaskDone) -> None:
        try:
            self._on_done(done)
        except Exception as error:  # a user's function must not end the connection
            context = {"message": f"on_done of task {self.id} failed", "exception": error}
            asyncio.get_running_loop().call_exception_handler(context)
