"""The handle of one task in an asynchronous program."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from typing import Any

from schedd.client import codec
from schedd.client.ticket import Ticket
from schedd.core.model import TaskId
from schedd.errors import ScheddError
from schedd.wire.messages import AttemptReport, Changed, TaskDone

#: Reports kept for a reader that comes late; older ones are dropped.
REPORTS_KEPT_MAX = 1000


class AsyncTask(Ticket):
    """A task that the daemon has. Await it for its value; `id` names it everywhere else."""

    def __init__(
        self,
        cancel: Callable[[TaskId], Awaitable[Changed]],
        on_report: Callable[[AttemptReport], None] | None = None,
    ) -> None:
        self._cancel = cancel
        self._on_report = on_report
        self._loop = asyncio.get_running_loop()
        #: The warnings of the daemon, or why it declined.
        self.admission: asyncio.Future[list[str] | ScheddError] = self._loop.create_future()
        #: A value in any case: an exception that nobody asks for would be logged.
        self._end: asyncio.Future[TaskDone | ScheddError] = self._loop.create_future()
        self._reports: deque[AttemptReport] = deque(maxlen=REPORTS_KEPT_MAX)
        self._reported_count = 0
        #: Resolved at the next report, and at the end.
        self._news: asyncio.Future[None] = self._loop.create_future()

    def __repr__(self) -> str:
        return f"<AsyncTask {self.id}{' done' if self.done() else ''}>"

    def __await__(self) -> Generator[Any, None, Any]:
        return self.result().__await__()

    @property
    def warnings(self) -> list[str]:
        """What the daemon remarked when it took the task, for instance that no worker fits now."""
        known = self.admission.result() if self.admission.done() else []
        return known if isinstance(known, list) else []

    def done(self) -> bool:
        """Whether the task is known to be final, or to be lost from sight."""
        return self._end.done()

    @property
    def has_succeeded(self) -> bool:
        """Whether the task is known to have ended well."""
        return self._end.done() and getattr(self._end.result(), "state", "") == "succeeded"

    async def wait(self) -> TaskDone:
        """Wait for the end of the task, whatever it is. Raises ScheddError where it cannot be known."""
        end = await asyncio.shield(self._end)
        if isinstance(end, ScheddError):
            raise end
        return end

    async def result(self) -> Any:
        """Wait for the task and return its value. Raises as `AsyncClient.result` does."""
        return codec.value_of(await self.wait())

    async def cancel(self) -> bool:
        """Cancel the task, running or not; False where it was final already. Raises ScheddError."""
        return (await self._cancel(self.id)).changed > 0

    async def reports(self) -> AsyncIterator[AttemptReport]:
        """Yield the progress reports, those of before first (the newest 1,000), until the task is final."""
        seen_count = 0
        while True:
            fresh = min(self._reported_count - seen_count, len(self._reports))
            seen_count = self._reported_count
            for report in list(self._reports)[len(self._reports) - fresh :]:
                yield report
            if seen_count == self._reported_count:
                if self._end.done():
                    return
                await asyncio.shield(self._news)

    # ------------------------------------------------------------------------------------- called by the pipeline

    def accepted(self, task_id: TaskId, warnings: list[str]) -> None:
        self.id = task_id
        if not self.admission.done():
            self.admission.set_result(warnings)

    def refused(self, error: ScheddError) -> None:
        if not self.admission.done():
            self.admission.set_result(error)
        self._finish(error)

    def ended(self, done: TaskDone) -> None:
        self._finish(done)

    def _finish(self, end: TaskDone | ScheddError) -> None:
        if not self._end.done():
            self._end.set_result(end)
            self._tell()

    def reported(self, report: AttemptReport) -> None:
        self._reports.append(report)
        self._reported_count += 1
        if self._on_report is not None:
            try:
                self._on_report(report)
            except Exception as error:
                # A user's function must not end the connection.
                self._loop.call_exception_handler({"message": f"on_report of {self!r} failed", "exception": error})
        self._tell()

    def _tell(self) -> None:
        news, self._news = self._news, self._loop.create_future()
        if not news.done():
            news.set_result(None)
