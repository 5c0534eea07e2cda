"""The turn: gather the events of one pass of the event loop, call the engine once, hand on what follows.

The only caller of `Engine.handle`. Reads come first: all sockets that were ready in this pass have put their events
into the inbox before the turn runs, so a turn's cost is shared by everything that happened together.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from schedd.core import events as ev
from schedd.core.effects import Effects
from schedd.core.engine import Engine
from schedd.core.model import SECOND, Instant
from schedd.log import Log
from schedd.server.ports import Clock, Reactor, Timer

log = Log("schedd.server")

#: Reads of the tables may hold up a turn for so long; the rest is left to the next one, with all that has come since.
READS_PER_TURN_NS = SECOND // 10_000
#: Tasks that the events of one turn name, about: some 20 ms of work. The rest is left to the next one.
TASKS_PER_TURN_MAX = 500

#: Where events have the tasks that they are about. What commands look at is bounded by the engine itself.
_TASKS_IN: dict[type[ev.Event], str] = {
    ev.SubmitTasks: "tasks",
    ev.AttemptsStarted: "attempts",
    ev.AttemptsFinished: "attempts",
    ev.AttemptsReported: "reports",
    ev.RevokesAnswered: "answers",
    ev.WorkerJoined: "holds",
    ev.WorkerDraining: "handed_back",
}

#: Reads the tables.
Query = Callable[[], None]


class EngineLoop:
    """Drives one engine on an event loop.

    `outward` gets the effects of each turn, `flush` runs at its very end. An exception from the engine is a bug of
    ours: `crashed` is told, and no further turn runs.
    """

    def __init__(
        self,
        engine: Engine,
        clock: Clock,
        outward: Callable[[Effects], None],
        flush: Callable[[], None],
        crashed: Callable[[BaseException], None],
        reactor: Reactor,
    ) -> None:
        self.engine = engine
        self.clock = clock
        self.lag_ns = 0
        self.turns = 0
        self._outward = outward
        self._flush = flush
        self._crashed = crashed
        self._loop = reactor
        self._inbox: deque[ev.Event] = deque()
        self._posted = 0
        #: Events that turns have handled, the one under way included.
        self.handled = 0
        #: Reads, by who asks, each with the number of events that were posted before it. Who had an answer goes last.
        self._queries: dict[object, deque[tuple[int, Query]]] = {}
        #: Who has begun to ask since the last turn: before those who have more to ask than a turn has time for.
        self._newcomers: dict[object, None] = {}
        self._scheduled = False
        self._timer: Timer | None = None
        self._timer_at: Instant | None = None
        self._stopped = False

    def post(self, event: ev.Event) -> int:
        """Put an event into the turn to come, or one soon after; returns its number, to be compared with `handled`."""
        self._inbox.append(event)
        self._posted += 1
        if not self._scheduled:
            self.wake()
        return self._posted

    def ask(self, query: Query, asker: object = None, after: int | None = None, *, goes_on: bool = False) -> None:
        """Run a read of the tables once all events that were posted before it have been handled.

        asker: whose reads are run one after the other, and in turn with those of others. after: the number of the last
        event that it has to wait for, where that is not the last of all. goes_on: it is the rest of the last read.
        """
        own = self._queries.get(asker)
        if own is None:
            own = self._queries[asker] = deque()
            self._newcomers[asker] = None
        entry = (self._posted if after is None else after, query)
        if goes_on:
            own.appendleft(entry)
        else:
            own.append(entry)
        if not self._scheduled:
            self.wake()

    def wake(self) -> None:
        """Have a turn in this pass of the event loop."""
        if not self._scheduled and not self._stopped:
            self._scheduled = True
            self._loop.call_soon(self._turn)

    @property
    def is_scheduled(self) -> bool:
        """There is something to do in a turn to come."""
        return self._scheduled

    def stop(self) -> None:
        """Run no further turn."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()

    def _turn(self) -> None:
        self._scheduled = False
        if self._stopped:
            return
        try:
            events = self._take_events()
            if events:
                self.turns += 1
                now = self.clock.now_ns()
                if self._timer_at is not None and now > self._timer_at:
                    events.append(ev.Wakeup(now - self._timer_at))  # something else was quicker than the timer
                self._outward(self.engine.handle(events, now))
            if self._queries:
                self._run_queries()
            self._flush()
            self.arm()
        except Exception as error:
            self.stop()
            self._crashed(error)

    def _take_events(self) -> list[ev.Event]:
        """Take what this turn handles, in the order of its coming; at least one event, where there are any."""
        events: list[ev.Event] = []
        room = TASKS_PER_TURN_MAX
        while self._inbox:
            room -= tasks_named(self._inbox[0])
            if room < 0 and events:
                break
            events.append(self._inbox.popleft())
        self.handled += len(events)
        if self._inbox:
            self.wake()
        return events

    def _run_queries(self) -> None:
        """Answer newcomers, and then the others in turn, for so long; of each of these two one at the least."""
        deadline = self.clock.now_ns() + READS_PER_TURN_NS
        queries = self._queries
        newcomers, self._newcomers = self._newcomers, {}
        others = deque(asker for asker in queries if asker not in newcomers)
        for waiting in (deque(newcomers), others):
            while waiting:
                asker = waiting.popleft()
                if queries[asker][0][0] > self.handled:
                    continue
                query = self._next_query(asker)
                query()
                if asker in queries:
                    self._newcomers.pop(asker, None)  # it goes on
                    others.append(asker)
                if self.clock.now_ns() > deadline:
                    break
        if queries:
            self.wake()

    def _next_query(self, asker: object) -> Query:
        """Take out the next read of somebody, who goes to the end."""
        own = self._queries.pop(asker)
        query = own.popleft()[1]
        if own:
            self._queries[asker] = own
        return query

    def arm(self) -> None:
        """Have a timer for when the engine wants to be called next."""
        due = self.engine.next_deadline()
        if due == self._timer_at:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timer_at = due
        if due is not None:
            delay_s = max(0.0, (due - self.clock.now_ns()) / SECOND)
            self._timer = self._loop.call_later(delay_s, self._on_timer)

    def _on_timer(self) -> None:
        due, self._timer_at, self._timer = self._timer_at, None, None
        now = self.clock.now_ns()
        if due is not None and now < due:  # timers of the loop have a coarser clock
            self.arm()
            return
        self.lag_ns = now - due if due is not None else 0
        self.post(ev.Wakeup(self.lag_ns))


def tasks_named(event: ev.Event) -> int:
    """How many tasks an event is about, at least one."""
    field = _TASKS_IN.get(type(event))
    return max(1, len(getattr(event, field))) if field is not None else 1
