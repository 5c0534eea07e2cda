"""The shell of the worker: one loop that carries messages, processes and time to the state machine and back.

    daemon --frames--> WorkerState <--ends, reports-- Runner
                           |  once a turn
                           +--> actions to the Runner, messages to the daemon (one write)

A lost connection changes nothing for what runs: the worker connects again and says what it holds. The first signal
drains (hands back what has not begun, waits for what runs, leaves); the second one kills.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
import uuid
from itertools import count
from pathlib import Path
from urllib.parse import quote

import uvloop

from schedd import __version__
from schedd.address import Address, state_dir
from schedd.config import WorkerSettings
from schedd.core.model import SECOND, Cause, Instant, TaskId, WorkerId
from schedd.errors import ConfigError, LocalProtocolError
from schedd.log import Log
from schedd.notify import keep_to_ourselves, notify, watchdog_s
from schedd.wire.framing import FRAME_BYTES_MAX
from schedd.wire.messages import (
    PROTOCOL,
    Challenge,
    DrainWorker,
    FetchLog,
    HeartbeatReply,
    Hello,
    LogPiece,
    Refused,
    ToWorker,
    Welcome,
    WorkerGoodbye,
    WorkerHello,
)
from schedd.worker.attempts import Attempt, Ending
from schedd.worker.link import Link
from schedd.worker.outbox import Outbox
from schedd.worker.probe import detect_resources
from schedd.worker.processes import PR_SET_CHILD_SUBREAPER, PR_SET_DUMPABLE, prctl
from schedd.worker.runner import Runner, RunnerOptions
from schedd.worker.shelf import Shelf
from schedd.worker.state import WorkerState

EXIT_OK = 0
EXIT_FORCED = 1

#: How long a forced end waits for the daemon to acknowledge what was lost.
FORCED_ACK_S = 3.0
#: Shorter attempts that went well are logged at debug level: at ten thousand a second nobody reads them.
LOG_RUNTIME_NS = SECOND
#: Beside a result a frame holds the rest of its message.
FRAME_SPARE_BYTES = 1024 * 1024
#: While the backlog is longer than what runs, news goes to the daemon this often: the fixed costs of a frame, there and
#: here, are then paid for several ends.
NEWS_PAUSE_S = 0.005
#: Ends that nobody has acknowledged after one to two times this go to the disk.
KEEP_AGE_S = 1.0
#: For so long an idle worker that is to leave looks for a daemon to take its last ends.
UNHEARD_S = 60.0
#: How often the watchdog hears of a worker in the time that it waits.
LIVES_PER_WATCHDOG = 4

_log = Log("schedd.worker")


class Clock:
    """Engine time: monotonic nanoseconds, aligned with the Unix epoch at the start."""

    def __init__(self) -> None:
        self._offset = time.time_ns() - time.monotonic_ns()

    def now_ns(self) -> Instant:
        return time.monotonic_ns() + self._offset

    def align(self, monotonic_ns: int) -> Instant:
        """Engine time of a reading of the machine's monotonic clock, in whichever process it was taken."""
        return monotonic_ns + self._offset


class Worker:
    """One worker, from its first connection to its last."""

    def __init__(self, settings: WorkerSettings, address: Address, *, sole: bool) -> None:
        self._settings = settings
        self._address = address
        self._sole = sole
        self._clock = Clock()
        self.host = socket.gethostname()
        self.name = WorkerId(settings.name or f"{self.host}-{os.getpid()}")
        self.incarnation = uuid.uuid4().hex
        self.resources = detect_resources(settings)
        ends_bytes_max = round(settings.unacknowledged_mb_max * 1024 * 1024)
        self._state = WorkerState(self.resources, Outbox(settings.unacknowledged_max, ends_bytes_max))
        self._loop = asyncio.get_running_loop()
        self._exit: asyncio.Future[int] = self._loop.create_future()
        #: Answers that are no business of the state machine.
        self._log_pieces: list[LogPiece] = []
        self._sessions = count(1)
        self._turn_asked = False
        self._news_at = 0.0
        self._news_timer: asyncio.TimerHandle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ns = 0
        self._age_timer: asyncio.TimerHandle | None = None
        self._unheard_timer: asyncio.TimerHandle | None = None
        self._signal_count = 0
        self._is_forced = False
        folder = state_dir(settings.state_dir) / "workers" / quote(self.name, safe="")
        try:
            self._runner = self._make_runner(folder, sole=sole)
            self._shelf = Shelf(folder / "ends")
            self._state.restore(self._shelf.load())
        except OSError as error:
            raise ConfigError(f"{folder} cannot be used: {error}", "set state_dir to a folder of yours") from error
        self._link = Link(settings, address, self.name, self._make_hello, self._on_messages, self._on_link_change)

    def _make_runner(self, folder: Path, *, sole: bool) -> Runner:
        settings = self._settings
        return Runner(
            RunnerOptions(
                worker=self.name,
                incarnation=self.incarnation,
                folder=folder,
                resources=self.resources,
                child_idle_s=settings.child_idle_s,
                result_bytes_max=min(int(settings.result_mb_max * 1024 * 1024), FRAME_BYTES_MAX - FRAME_SPARE_BYTES),
                logs_keep_count=settings.logs_keep_count,
                sole=sole,
                containment=settings.containment,
            ),
            self._on_ended,
            self._on_report,
            self._clock.align,
            self._ask_for_turn,
        )

    async def run(self) -> int:
        """Serve until told to leave. Returns an exit code."""
        with contextlib.suppress(OSError):
            prctl(PR_SET_CHILD_SUBREAPER, 1)
            if self._sole and self._link.has_token:
                # Tasks are of the same user: they must not read the memory of who holds a token, nor trace it.
                prctl(PR_SET_DUMPABLE, 0)
        signals = self._handle_signals()
        notify("READY=1", f"STATUS={self._status()}")
        self._tell_life()
        connecting = self._loop.create_task(self._link.run())
        try:
            await asyncio.wait([connecting, self._exit], return_when=asyncio.FIRST_COMPLETED)
            return self._exit.result() if self._exit.done() else connecting.result()
        finally:
            await self._link.close()
            connecting.cancel()
            await asyncio.wait([connecting])
            for timer in (self._timer, self._age_timer, self._unheard_timer):
                if timer is not None:
                    timer.cancel()
            self._keep_ends(everything=True)
            self._runner.close()
            for number in signals:
                self._loop.remove_signal_handler(number)

    def _handle_signals(self) -> list[signal.Signals]:
        handled = []
        for number in (signal.SIGTERM, signal.SIGINT):
            # Not in a thread that is not the main one: whoever runs us there stops us otherwise.
            with contextlib.suppress(ValueError, RuntimeError):
                self._loop.add_signal_handler(number, self._on_signal, number)
                handled.append(number)
        return handled

    # ------------------------------------------------------------------------------------------------ what comes in

    def _make_hello(self) -> Hello:
        holds = self._state.holds()
        self._state.on_hello()
        peer = WorkerHello(
            self.name, self.incarnation, self.resources, self.host, os.getpid(), holds, next(self._sessions)
        )
        return Hello(PROTOCOL, __version__, peer)

    def _on_messages(self, messages: list[ToWorker]) -> None:
        now_ns = self._clock.now_ns()
        for message in messages:
            if isinstance(message, Welcome):
                notify(f"STATUS={self._status()}")
            if isinstance(message, (Welcome, Refused, Challenge, HeartbeatReply)):
                continue
            if isinstance(message, FetchLog):
                self._log_pieces.append(self._runner.read_log(message))
                continue
            if self._state.may_take_back(message):
                self._runner.recall()
            if isinstance(message, DrainWorker) and message.leave:
                self._drain("the daemon says so")
            else:
                self._state.on_message(message, now_ns)
        self._ask_for_turn()

    def _on_link_change(self) -> None:
        if not self._link.is_connected:
            # Whoever asked for these is gone.
            self._log_pieces.clear()
        notify(f"STATUS={self._status()}")
        self._ask_for_turn()

    def _status(self) -> str:
        """Say in a line for the service manager how the worker is."""
        if self._state.leaving:
            return f"{self.name} is leaving, {len(self._state.running)} tasks still run"
        where = "serves" if self._link.is_up else "waits for"
        return f"{self.name} {where} {self._address}"

    def _tell_life(self) -> None:
        """Tell the watchdog of the service manager, where there is one, that the loop goes round."""
        interval_s = watchdog_s() / LIVES_PER_WATCHDOG
        if interval_s:
            notify("WATCHDOG=1")
            self._loop.call_later(interval_s, self._tell_life)

    def _on_ended(self, row: Attempt, ending: Ending) -> None:
        now_ns = self._clock.now_ns()
        self._state.on_ended(row, ending, now_ns)
        cause = row.cause_of(ending)
        runtime_ns = (ending.finished_at_ns or now_ns) - (ending.started_at_ns or row.started_at_ns or now_ns)
        level = logging.INFO if cause is not Cause.OK or runtime_ns >= LOG_RUNTIME_NS else logging.DEBUG
        if _log.enabled(level):
            write = _log.info if level == logging.INFO else _log.debug
            write(
                "attempt_finished",
                task=row.task_id,
                attempt=row.attempt,
                worker=self.name,
                outcome=cause,
                runtime_s=runtime_ns / SECOND,
                kind=row.spec.kind or None,
                message=row.stop_message or ending.message or None,
            )

    def _on_report(self, task_id: int, attempt: int, step: int, metrics: dict[str, float]) -> None:
        self._state.on_report(TaskId(task_id), attempt, step, metrics)

    # ------------------------------------------------------------------------------------------------------- a turn

    def _ask_for_turn(self) -> None:
        if not self._turn_asked:
            self._turn_asked = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        """Once after all that came in: start and stop what must be, and tell the daemon in one write."""
        self._turn_asked = False
        self._state.is_connected = self._link.is_up
        if self._exit.done():
            return
        self._runner.perform(self._state.take_actions())
        self._runner.send_ahead(self._state.upcoming)
        self._send_news()
        if self._state.has_actions:
            # A start that failed at once made room for the next one.
            self._ask_for_turn()
        self._set_timer()
        if self._state.leaving:
            self._leave_if_done()

    def _send_news(self) -> None:
        if not self._link.is_writable or self._can_wait():
            if not self._link.is_writable:  # also where the daemon does not read
                self._keep_ends()
            return
        messages = self._state.take_messages()
        self._keep_ends()  # before anybody hears of them
        if self._log_pieces:
            messages += self._log_pieces
            self._log_pieces = []
        if messages:
            try:
                self._link.send(messages)
            except LocalProtocolError as error:
                # What is lost with it is told by the next greeting.
                _log.error("message_too_large", error=error.message)
                self._link.cut("a message of ours cannot be sent")

    def _keep_ends(self, *, everything: bool = False) -> None:
        """Write to disk what must outlive this process, and remove what need not any more."""
        state = self._state
        if batches := state.take_to_keep(everything=everything):
            state.not_kept(self._shelf.keep(batches))
        if over := state.take_over():
            self._shelf.forget(over)
        if self._age_timer is None and state.owes_ends:
            self._age_timer = self._loop.call_later(KEEP_AGE_S, self._on_age_timer)

    def _on_age_timer(self) -> None:
        self._age_timer = None
        self._state.grow_old()
        self._ask_for_turn()

    def _can_wait(self) -> bool:
        """Whether the news may go with that of the next millisecond; has a turn then."""
        state, now = self._state, self._loop.time()
        if state.leaving or len(state.backlog) <= len(state.running) or now - self._news_at >= NEWS_PAUSE_S:
            self._news_at = now
            return False
        if self._news_timer is None:
            self._news_timer = self._loop.call_later(NEWS_PAUSE_S, self._on_news_timer)
        return True

    def _on_news_timer(self) -> None:
        self._news_timer = None
        self._ask_for_turn()

    def _set_timer(self) -> None:
        deadline_ns = self._state.next_deadline()
        if deadline_ns is None or (self._timer is not None and self._timer_ns <= deadline_ns):
            return
        if self._timer is not None:
            self._timer.cancel()
        delay_s = max(0, deadline_ns - self._clock.now_ns()) / SECOND
        self._timer_ns = deadline_ns
        self._timer = self._loop.call_later(delay_s, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._state.wake(self._clock.now_ns())
        self._ask_for_turn()

    # ------------------------------------------------------------------------------------------------------ leaving

    def _on_signal(self, number: signal.Signals) -> None:
        self._signal_count += 1
        if self._signal_count > 1:
            self._force(f"second signal ({number.name})")
        else:
            self._drain(number.name)

    def _drain(self, reason: str) -> None:
        _log.info("worker_draining", worker=self.name, reason=reason)
        self._runner.recall()
        self._state.drain(leave=True)
        notify("STOPPING=1", f"STATUS={self._status()}")
        if self._settings.drain_timeout_s > 0:
            self._loop.call_later(self._settings.drain_timeout_s, self._force, "drain_timeout_s has passed")
        self._ask_for_turn()

    def _force(self, reason: str) -> None:
        if self._is_forced or self._exit.done():
            return
        self._is_forced = True
        _log.warning("worker_forced", worker=self.name, reason=reason)
        self._runner.recall()
        self._state.abandon("worker stopped", self._clock.now_ns())
        self._loop.call_later(FORCED_ACK_S, self._finish, EXIT_FORCED)
        self._ask_for_turn()

    def _leave_if_done(self) -> None:
        if self._state.can_leave:
            if self._link.is_up:
                self._link.send([WorkerGoodbye("stopped" if self._is_forced else "drained")])
            self._finish(EXIT_FORCED if self._is_forced else EXIT_OK)
        elif self._is_forced and self._state.is_idle and not self._link.is_connected:
            # Nobody is there to be told.
            self._finish(EXIT_FORCED)
        elif self._state.is_idle and self._unheard_timer is None:
            self._unheard_timer = self._loop.call_later(UNHEARD_S, self._leave_unheard)

    def _leave_unheard(self) -> None:
        """Leave on disk what nobody is there to hear: whoever stops us need not wait for that."""
        self._unheard_timer = None
        self._keep_ends(everything=True)
        if self._state.is_idle and not self._link.is_up and self._state.has_kept_ends:
            hint = "the next worker of this name tells them, from the same state_dir"
            _log.warning("ends_not_delivered", worker=self.name, hint=hint)
            self._finish(EXIT_OK)
        self._ask_for_turn()

    def _finish(self, code: int) -> None:
        if not self._exit.done():
            self._exit.set_result(code)


async def run_worker(settings: WorkerSettings, address: Address) -> int:
    """Run a worker until it has drained or there is no point in going on.

    Returns an exit code: 0 drained, 1 forced to stop, 3 refused by the daemon, 4 gave up looking for one. Raises
    ConfigError where its folder cannot be used.
    """
    return await Worker(settings, address, sole=False).run()


def main(settings: WorkerSettings, address: Address) -> int:
    """Run a worker as this program's only business: `run_worker` on uvloop, with its exit codes and errors."""

    keep_to_ourselves()

    async def run() -> int:
        return await Worker(settings, address, sole=True).run()

    return int(uvloop.run(run()))
