"""The futures of SchedExecutor, and what keeps them going: a connection in a thread, until the last task has ended."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import threading
import weakref
from collections.abc import Iterable
from typing import Any

from schedd.client import codec
from schedd.client.aio import AsyncClient
from schedd.client.pipeline import Pipeline
from schedd.client.thread import LoopThread
from schedd.client.ticket import Order, Ticket
from schedd.core.model import TaskId
from schedd.errors import LocalProtocolError, RequestRefused, ScheddError
from schedd.log import Log
from schedd.wire.messages import TaskDone, TaskSpec

log = Log("schedd.client")

#: How long `cancel` waits for the daemon's answer before it says "not cancelled".
CANCEL_TIMEOUT_S = 10.0
#: Different remarks of the daemon that one executor logs.
WARNINGS_MAX = 20


class BrokenSchedExecutor(concurrent.futures.BrokenExecutor):
    """The daemon was given up; the cause says why. Tasks that were submitted go on without us."""


class TaskFuture(concurrent.futures.Future[Any], Ticket):
    """The future of a task; `id` is its number once the daemon has it, 0 before."""

    def __init__(self, core: Core) -> None:
        super().__init__()
        self._core = core
        self._is_marked = False

    def running(self) -> bool:
        """Whether the daemon has the task and it is not known to have ended."""
        return super().running() or (self.is_sent and not self.done())

    def cancel(self) -> bool:
        """Cancel the task if it has not started; waits for the daemon's word where the daemon has it.

        Where a loop runs in this thread (asyncio, or a callback of a future) it is only asked for: it returns False,
        and the future will end as cancelled if the task had not started.
        """
        return super().cancel() if self.done() else self._core.cancel(self)

    def mark_cancelled(self) -> None:
        """End as cancelled, from any thread, and wake those who wait for it."""
        with _marking:
            if self._is_marked:
                return
            self._is_marked = True
        if super().cancel():
            self.set_running_or_notify_cancel()

    def accepted(self, task_id: TaskId, warnings: list[str]) -> None:
        self.id = task_id
        if warnings:
            self._core.warn(warnings)

    def refused(self, error: ScheddError) -> None:
        with contextlib.suppress(concurrent.futures.InvalidStateError):
            self.set_exception(error if isinstance(error, RequestRefused | LocalProtocolError) else _broken(error))

    def ended(self, done: TaskDone) -> None:
        if done.state == "cancelled":
            self.mark_cancelled()
            return
        # Nothing is raised here: the traceback would hold this frame, and with it the future that holds the exception.
        value, error = codec.outcome_of(done)
        with contextlib.suppress(concurrent.futures.InvalidStateError):  # cancelled meanwhile
            if error is None:
                self.set_result(value)
            else:
                self.set_exception(error)


def _is_in_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _broken(error: ScheddError) -> BrokenSchedExecutor:
    broken = BrokenSchedExecutor(error.message)
    broken.__cause__ = error
    return broken


class Core:
    """What outlives the executor object as long as there are tasks to wait for: the connection and its thread."""

    def __init__(self, client: AsyncClient, in_flight_max: int) -> None:
        #: Held where a future is queued, so that none comes after `shutdown`.
        self.lock = threading.Lock()
        self.is_shut = False
        self.is_forked = False
        self._is_finishing = False
        self._warnings: set[str] = set()
        self.thread = LoopThread("schedd-executor")
        try:
            self.pipeline: Pipeline = self.thread.run(self._connect(client, in_flight_max))
        except BaseException:
            self.thread.stop()
            raise
        _cores.add(self)

    async def _connect(self, client: AsyncClient, in_flight_max: int) -> Pipeline:
        await client.connect()
        pipeline = client.pipeline
        assert pipeline is not None
        pipeline.in_flight_max = in_flight_max
        pipeline.on_idle = self._on_idle
        return pipeline

    def warn(self, warnings: list[str]) -> None:
        """Log what the daemon remarks, each remark once."""
        for warning in warnings:
            if warning not in self._warnings and len(self._warnings) < WARNINGS_MAX:
                self._warnings.add(warning)
                log.warning("submit_warning", text=warning)

    def put(self, spec: TaskSpec, argument: bytes, strict: bool) -> TaskFuture:
        """Queue a task. Raises RuntimeError after a shutdown and BrokenSchedExecutor without a connection."""
        future = TaskFuture(self)
        order = Order(spec, argument, future, strict=strict)
        with self.lock:
            self.check()
            self.pipeline.put(order)
        return future

    def check(self) -> None:
        """Raise RuntimeError where nothing can be queued any more."""
        if self.is_shut:
            raise RuntimeError("cannot schedule new futures after shutdown")
        if _is_exiting:
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")
        if self.pipeline.line.error is not None:
            raise _broken(self.pipeline.line.error)
        if self.is_forked:
            raise BrokenSchedExecutor("an executor cannot be used in a process forked from its own")

    def failed(self, error: BaseException) -> TaskFuture:
        """Return a future that has failed already."""
        future = TaskFuture(self)
        future.set_exception(error.with_traceback(None))  # its frames lead back to the executor
        return future

    def cancel(self, future: TaskFuture) -> bool:
        """Cancel a task that has not started; False where it has, or where the daemon does not say so in time."""
        if self.pipeline.withdraw(future):
            future.mark_cancelled()
            return future.cancelled()
        request = self.pipeline.cancel_unstarted([future])
        try:
            if _is_in_loop():  # of the caller, who must not be held up, or our own, which would wait for itself
                self.thread.start(request)
            elif self.thread.run(request, CANCEL_TIMEOUT_S):
                future.mark_cancelled()
        except (ScheddError, TimeoutError):
            return False
        return future.cancelled()

    def cancel_soon(self, futures: Iterable[TaskFuture]) -> None:
        """Cancel what has not started, without waiting for the daemon."""
        sent = []
        for future in futures:
            if self.pipeline.withdraw(future):
                future.mark_cancelled()
            elif not future.done():
                sent.append(future)
        if sent:
            with contextlib.suppress(ScheddError):
                self.thread.start(self.pipeline.cancel_unstarted(sent))

    def shutdown(self, wait: bool, cancel_futures: bool) -> None:
        """Queue nothing more, and end the thread with the last task."""
        with self.lock:
            self.is_shut = True
        if cancel_futures:
            for ticket in self.pipeline.withdraw_all():
                if isinstance(ticket, TaskFuture):
                    ticket.mark_cancelled()
            with contextlib.suppress(ScheddError):
                self.thread.start(self.pipeline.cancel_all_unstarted())
        self._check_idle_soon()
        if wait:
            self.thread.join()

    def abandon(self) -> None:
        """End with the last task: the executor object is gone. May be called by the collector at any point.

        Takes no lock: the collector may run where this thread holds one.
        """
        self.is_shut = True
        self._check_idle_soon()

    def _check_idle_soon(self) -> None:
        if not self.is_forked:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self.thread.loop.call_soon_threadsafe(self._on_idle)

    def _on_idle(self) -> None:
        if self.is_shut and self.pipeline.is_idle and not self._is_finishing:
            self._is_finishing = True
            self.thread.loop.call_soon(self._finish)

    def _finish(self) -> None:
        self.pipeline.line.close()
        # The only way back to this object: without it the thread's is freed at once, and not by the collector.
        self.pipeline.on_idle = lambda: None
        self.thread.stop()


# ------------------------------------------------------------------------------------------------- the end of a process

#: Guards the step to "cancelled", which concurrent.futures lets happen only once.
_marking = threading.Lock()
_cores: weakref.WeakSet[Core] = weakref.WeakSet()
_is_exiting = False


def _at_exit() -> None:
    """Wait for what was submitted, as the executors of the standard library do."""
    global _is_exiting
    _is_exiting = True
    for core in list(_cores):
        core.shutdown(wait=True, cancel_futures=False)


def _after_fork() -> None:
    """The thread stayed with the parent, and so did whoever held the lock."""
    for core in list(_cores):
        core.lock = threading.Lock()
        core.is_forked = True
    _cores.clear()


# Runs before threads are joined; a plain atexit handler would come too late to start anything in the loop.
threading._register_atexit(_at_exit)  # type: ignore[attr-defined]
os.register_at_fork(after_in_child=_after_fork)
