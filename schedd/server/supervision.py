"""What the service manager hears of the daemon: one line of status, and a sign of life while all is well.

The sign of life ("WATCHDOG=1") is not a timer's: it is sent after a look at what a stuck daemon would no longer do.
A turn of the engine has answered the question of the look before, no timer of the engine is overdue (a placement pass
that was cut short has one), and the journal has written what it was given. Where that is not so the manager hears
nothing, and in time ends and restarts the daemon, which loses nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from schedd.core.model import SECOND, Assigned, Queued, Revoking, Running
from schedd.errors import ConfigError
from schedd.log import Log
from schedd.notify import is_listening, notify, watchdog_s
from schedd.server.ports import Reactor, Reloaded
from schedd.server.service import Service

log = Log("schedd.server")

#: Seconds between two looks, and a status that is as old at most; with a watchdog a quarter of its time.
LOOK_S = 5.0
LOOKS_PER_WATCHDOG = 4
#: A start, or a stop, that takes its time is given so much more of it, again and again.
EXTEND_S = 60.0
#: Files that a start reads may take long. Whatever lies behind such a disk, this is too long.
START_S_MAX = 3600.0
#: The journal may be slow, with much to write on a bad disk; it has written nothing for so long when it is stuck.
JOURNAL_STUCK_S = 60.0


class Supervision:
    """Looks after one daemon. `journal_is_alive`: whether there is somebody who writes, where there is a journal."""

    def __init__(self, service: Service, reactor: Reactor, journal_is_alive: Callable[[], bool]) -> None:
        self._service = service
        self._reactor = reactor
        self._journal_is_alive = journal_is_alive
        self._watchdog_s = watchdog_s()
        self._look_s = min(LOOK_S, self._watchdog_s / LOOKS_PER_WATCHDOG) if self._watchdog_s else LOOK_S
        #: Questions that were put to the engine's turns, and those that were answered.
        self._asked = self._answered = 0
        #: Events that had been handled at the last look.
        self._handled = 0
        #: The last turn that was on disk, and since when it was that one.
        self._written = (0, 0.0)
        self._is_unwell = False
        self._status = ""
        #: What came of the last reload, for the status.
        self._reload = ""

    # --------------------------------------------------------------------------------------------- what is gone through

    def starting(self) -> None:
        """A start begins: one that takes its time asks for more of it, again and again."""
        if is_listening():
            self._reactor.call_later(self._look_s, self._ask_for_time, time.monotonic())

    def _ask_for_time(self, since: float) -> None:
        took_s = time.monotonic() - since
        if not self._asked and took_s < START_S_MAX:
            notify(f"EXTEND_TIMEOUT_USEC={int(EXTEND_S * 1e6)}", f"STATUS=restoring the journal, for {took_s:.0f} s")
            self._reactor.call_later(self._look_s, self._ask_for_time, since)

    def ready(self) -> None:
        """The daemon serves: from now on it is looked after."""
        self._status = self.status()
        notify("READY=1", f"STATUS={self._status}")
        self._ask()
        if is_listening():
            self._reactor.call_later(self._look_s, self._look)

    def reloading(self) -> None:
        """The settings are read again."""
        notify("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def reloaded(self, outcome: Reloaded | ConfigError) -> None:
        """The settings count, or were not good."""
        at = time.strftime("%H:%M:%S")
        if isinstance(outcome, ConfigError):
            self._reload = f"RELOAD FAILED at {at}: {outcome.message}"
        elif outcome.needs_restart:
            self._reload = f"reloaded at {at}, needs a restart for {', '.join(outcome.needs_restart)}"
        else:
            self._reload = f"reloaded at {at}"
        self._status = self.status()
        notify("READY=1", f"STATUS={self._status}")

    def stopping(self, timeout_s: float) -> None:
        """The daemon stops, and may take so long for it."""
        notify("STOPPING=1", f"EXTEND_TIMEOUT_USEC={int((timeout_s + EXTEND_S) * 1e6)}", "STATUS=stopping")

    # ---------------------------------------------------------------------------------------------------------- looking

    def _ask(self) -> None:
        """Put a question to the turns to come."""
        self._asked += 1
        self._service.loop.ask(self._answer)

    def _answer(self) -> None:
        self._answered += 1

    def _look(self) -> None:
        trouble = self.trouble()
        if not trouble and self._watchdog_s:
            notify("WATCHDOG=1")
        if bool(trouble) is not self._is_unwell:
            self._is_unwell = bool(trouble)
            if trouble:
                log.error("unwell", reason=trouble, effect="the watchdog is not fed" if self._watchdog_s else None)
            else:
                log.warning("well_again")
        status = f"UNWELL: {trouble}" if trouble else self.status()
        if status != self._status:
            self._status = status
            notify(f"STATUS={status}")
        if self._answered == self._asked:
            self._ask()
        self._reactor.call_later(self._look_s, self._look)

    def trouble(self) -> str:
        """What a daemon that is well would have done since the last look; "": it has."""
        service = self._service
        handled, self._handled = self._handled, service.loop.handled
        if self._answered < self._asked and handled == self._handled:  # what has much to do may answer later
            return "no turn of the engine has come since the last look"
        due = service.engine.next_deadline()
        late_s = (service.clock.now_ns() - due) / SECOND if due is not None else 0.0
        if late_s > max(1.0, self._look_s):
            return f"a timer of the engine is overdue by {late_s:.1f} s"
        return self._trouble_of_journal()

    def _trouble_of_journal(self) -> str:
        promises, now = self._service.promises, time.monotonic()
        if promises.journal is None or promises.failure:
            return ""  # a disk that refuses is no reason to restart: the daemon says so, and goes on by itself
        if not self._journal_is_alive():
            return "nobody writes the journal"
        if promises.written == promises.recorded or promises.written != self._written[0]:
            self._written = (promises.written, now)
        stuck_s = now - self._written[1]
        return f"the journal has written nothing for {stuck_s:.0f} s" if stuck_s > JOURNAL_STUCK_S else ""

    def status(self) -> str:
        """Say in a line how the daemon is."""
        service, engine = self._service, self._service.engine
        counts, workers = engine.tasks.counts, len(engine.resources)
        held = counts[Running] + counts[Assigned] + counts[Revoking]
        parts = [
            f"{counts[Queued]:,} queued",
            f"{held:,} on {workers:,} worker{'' if workers == 1 else 's'}",
            f"policy {service.settings.policy.name}",
        ]
        if engine.awaited:
            parts.insert(0, f"waiting for {len(engine.awaited)} workers to come back")
        if service.promises.failure:
            parts.insert(0, f"the journal cannot be written: {service.promises.failure}")
        return "; ".join([*parts, *filter(None, [self._reload])])
