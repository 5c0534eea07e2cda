"""A loop in a thread of its own, for callers that block."""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import os
import threading
import weakref
from collections.abc import Coroutine
from typing import Any, TypeVar

from schedd.errors import ConnectionLost

T = TypeVar("T")


class LoopThread:
    """Runs a uvloop until `stop`. Its thread is a daemon thread: it never keeps the interpreter from ending."""

    def __init__(self, name: str) -> None:
        import uvloop

        self.loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
        # Reentrant: the collector may run a client's finalizer, which stops its loop, at any point.
        self._lock = threading.RLock()
        self._is_stopped = False
        self._pid = os.getpid()
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.thread.start()
        _alive.add(self)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
            left = asyncio.all_tasks(self.loop)
            for task in left:
                task.cancel()
            self.loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        finally:
            asyncio.set_event_loop(None)
            self.loop.close()

    def is_current(self) -> bool:
        """Whether the caller runs in this loop's thread, as callbacks of futures do."""
        return threading.get_ident() == self.thread.ident

    def _is_forked(self) -> bool:
        """Whether this is another process: the thread stayed with the parent, and so did whoever held the lock."""
        return os.getpid() != self._pid

    def start(self, coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Run a coroutine in the loop. Raises ConnectionLost once the loop is stopped, and in a forked process."""
        if self._is_forked():
            coroutine.close()
            raise ConnectionLost("a client cannot be used in a process forked from its own", "make a new one there")
        with self._lock:
            if self._is_stopped:
                coroutine.close()
                raise ConnectionLost("this client is closed")
            return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def run(self, coroutine: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Run a coroutine in the loop and wait for its result; an interrupt cancels it.

        timeout: seconds. Raises TimeoutError, ConnectionLost as `start` does, and RuntimeError in the loop's own
        thread, which would wait for itself.
        """
        if self.is_current():
            coroutine.close()
            raise RuntimeError("a callback of a client's future cannot make a blocking call of that client")
        future = self.start(coroutine)
        try:
            return future.result(timeout)
        except concurrent.futures.CancelledError:
            raise ConnectionLost("this client was closed while a call was under way") from None
        except BaseException:
            future.cancel()
            raise

    def stop(self) -> None:
        """End the loop, from any thread; what still runs in it is cancelled. The thread ends soon after."""
        if self._is_forked():
            return
        with self._lock:
            if not self._is_stopped:
                self._is_stopped = True
                # The loop may have ended with the interpreter.
                with contextlib.suppress(RuntimeError):
                    self.loop.call_soon_threadsafe(self.loop.stop)

    def join(self, timeout: float | None = None) -> None:
        """Wait for the end of the thread, or for so many seconds; not at all where that is the caller's own."""
        if not self.is_current():
            self.thread.join(timeout)


_alive: weakref.WeakSet[LoopThread] = weakref.WeakSet()
#: A thread that is still inside a callback then is left behind.
_EXIT_TIMEOUT_S = 2.0


def _stop_all() -> None:
    """End the threads of clients that nobody closed, before the interpreter takes itself apart under them."""
    for thread in list(_alive):
        thread.stop()
    for thread in list(_alive):
        thread.join(_EXIT_TIMEOUT_S)


atexit.register(_stop_all)
