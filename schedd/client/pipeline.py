"""What stands between tasks to submit and the connection: batching, the window, and who waits for which id.

A task goes through here as an `Order` (what to send) with a `Ticket` (who is told). Orders of one turn become one
`Submit`; a window bounds what has been sent and not been acknowledged. The daemon admits a `Submit` as a whole or not
at all, so a refused one is halved and sent again until the task at fault stands alone: nobody suffers for the order of
somebody else that happened to travel with his.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from msgspec import Struct, field

from schedd.client.connection import Connection
from schedd.client.flights import Flights
from schedd.client.line import Line
from schedd.client.ticket import Follower, Order, Ticket
from schedd.core.model import Call, Instant, TaskId
from schedd.errors import LocalProtocolError, RemoteProtocolError, RequestRefused, ScheddError
from schedd.wire.messages import (
    QUEUE_FULL,
    SHUTTING_DOWN,
    UNKNOWN_TASK,
    AttemptReport,
    CancelTasks,
    Changed,
    Selection,
    Submitted,
    TaskDone,
    TaskEntry,
    TaskSpec,
    Watching,
    WatchTasks,
)

#: Tasks of one `Submit`: a thousand cost the daemon some tens of milliseconds, in which nobody else is served.
SUBMIT_TASKS_MAX = 1000
#: Bytes of one `Submit`, an eighth of the bound of a frame; a single larger task travels alone.
SUBMIT_BYTES_MAX = 8 * 1024 * 1024
#: Sent and not acknowledged: half a second of the daemon's work, many times the round trip.
WINDOW_TASKS = 10_000
WINDOW_BYTES = 4 * SUBMIT_BYTES_MAX

#: Tasks that one request asks about again after a lost connection.
WATCHED_TOGETHER = 1000

#: Refusals that are not about a single task of the submit.
_ABOUT_ALL = (QUEUE_FULL, SHUTTING_DOWN)


class Batch(Struct):
    """What travels as one `Submit`: orders, and their specs each once."""

    orders: list[Order] = field(default_factory=list)
    bytes_count: int = 0


def _payload_bytes(spec: TaskSpec) -> int:
    return len(spec.payload.function) if isinstance(spec.payload, Call) else len(spec.payload.stdin)


def _as_error(answer: object) -> ScheddError:
    return answer if isinstance(answer, ScheddError) else RemoteProtocolError("a request was answered amiss")


def _instants(answer: Submitted) -> Sequence[Instant]:
    """When each of the tasks was submitted; 0 where the daemon does not say."""
    given = answer.submitted_ns
    return given if len(given) == len(answer.ids) else (given or [0])[:1] * len(answer.ids)


class Pipeline:
    """Sends orders over a line and tells their tickets. `put` is for any thread, the rest for the loop.

    Where a connection is lost, what was not acknowledged is sent again on the next under its old name, and what was
    acknowledged is watched again: nobody notices, unless the line is given up.

    in_flight_max: tasks that may be with the daemon and not final at a time; 0 sets no bound.
    """

    def __init__(self, line: Line, *, in_flight_max: int = 0) -> None:
        self.line = line
        self.in_flight_max = in_flight_max
        #: Called in the loop each time that nothing is left to send or to wait for.
        self.on_idle: Callable[[], None] = lambda: None
        self._loop = asyncio.get_running_loop()
        self._orders: deque[Order] = deque()
        self._scheduled = False
        self._lock = threading.Lock()
        #: Submits that were not answered; orders in them, and bytes.
        self._flights = Flights(line)
        self._unanswered_count = 0
        self._unanswered_bytes = 0
        #: Resolved at each answer to a submit.
        self._answered: asyncio.Future[None] = self._loop.create_future()
        #: Acknowledged and not final. A second ticket of the same task (equal keys) is in `_more`.
        self._tickets: dict[TaskId, Ticket] = {}
        self._more: dict[TaskId, list[Ticket]] = {}
        #: Ends that overtook their acknowledgement; emptied whenever nothing is unacknowledged.
        self._early: dict[TaskId, TaskDone] = {}
        line.is_wanted = lambda: not self.is_idle
        line.on_up = self._resume
        line.on_down = self._fail

    @property
    def is_idle(self) -> bool:
        return not (self._orders or self._flights or self._tickets)

    # ------------------------------------------------------------------------------------------------------- sending

    def put(self, order: Order) -> None:
        """Queue an order, from any thread; it leaves in the next turn of the loop.

        Raises RuntimeError once the loop is closed.
        """
        self._orders.append(order)
        # Appended before the flag is read, cleared before the queue is drained: no order is left behind.
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon_threadsafe(self._drain)

    def _schedule(self) -> None:
        if not self._scheduled and self._orders:
            self._scheduled = True
            self._loop.call_soon(self._drain)

    def _drain(self) -> None:
        self._scheduled = False
        connection = self.line.live
        if connection is None:
            if self.line.error is not None:
                self._fail(self.line.error)
            elif self._orders:
                self.line.want()
            return
        while self._orders and connection.is_writable:
            batch = self._take()
            if not batch.orders:
                break
            self._send(batch.orders, batch.bytes_count)
        self._tell_idle()

    def _take(self) -> Batch:
        """Take what may leave in one submit: within the window, and all strict or none."""
        batch = Batch()
        room = min(SUBMIT_TASKS_MAX, WINDOW_TASKS - self._unanswered_count)
        if self.in_flight_max:
            room = min(room, self.in_flight_max - len(self._tickets) - self._unanswered_count)
        if self._unanswered_bytes >= WINDOW_BYTES:
            room = 0
        orders, chosen, spec = self._orders, batch.orders, None
        with self._lock:
            while orders and len(chosen) < room:
                order = orders[0]
                ticket = order.ticket
                if not ticket.is_withdrawn:
                    size = len(order.argument)
                    if order.spec is not spec:
                        spec = order.spec
                        size += _payload_bytes(spec)
                    if chosen and (batch.bytes_count + size > SUBMIT_BYTES_MAX or order.strict != chosen[0].strict):
                        break
                    ticket.is_sent = True
                    batch.bytes_count += size
                    chosen.append(order)
                orders.popleft()
        return batch

    def _send(self, orders: list[Order], bytes_count: int) -> None:
        specs: list[TaskSpec] = []
        places: dict[int, int] = {}
        entries: list[TaskEntry] = []
        for order in orders:
            spec = order.spec
            place = places.get(id(spec))
            if place is None:
                place = places[id(spec)] = len(specs)
                specs.append(spec)
            entries.append(TaskEntry(place, order.argument, order.key))
        self._unanswered_count += len(orders)
        self._unanswered_bytes += bytes_count
        answered = partial(self._on_answer, orders, bytes_count)
        self._flights.launch(specs, entries, watch=True, strict=orders[0].strict, on_answer=answered)

    # ----------------------------------------------------------------------------------------------- another connection

    def _resume(self, connection: Connection) -> None:
        """Go on with a new connection where the last one was lost."""
        connection.on_done = self._on_done
        connection.on_reports = self._on_reports
        connection.on_writable = self._schedule
        self._early.clear()
        # First what was acknowledged: what is acknowledged now is watched by its submit.
        ids = list(self._tickets)
        for start in range(0, len(ids), WATCHED_TOGETHER):
            self._watch_again(ids[start : start + WATCHED_TOGETHER], connection)
        self._flights.resume(connection)
        self._schedule()

    def _watch_again(self, ids: list[TaskId], connection: Connection) -> None:
        submitted_ns = [self._tickets[task_id].submitted_ns for task_id in ids]
        message = WatchTasks(connection.number(), Selection(ids=ids), True, True, False, True, submitted_ns)

        def on_answer(answer: Any) -> None:
            if isinstance(answer, Watching):
                for task_id in answer.unknown:
                    hint = "has the daemon lost its journal, or forgotten it? see `schedd history`"
                    self._lose(task_id, RequestRefused(f"task {task_id} is not known any more", hint, UNKNOWN_TASK))
            elif not self.line.goes_on(answer):
                for task_id in ids:
                    self._lose(task_id, _as_error(answer))

        connection.send(message, on_answer)

    def _lose(self, task_id: TaskId, error: ScheddError) -> None:
        """Nothing more will be heard of a task."""
        waiting = [ticket] if (ticket := self._tickets.pop(task_id, None)) else []
        for ticket in waiting + self._more.pop(task_id, []):
            ticket.refused(error)
        self._schedule()  # there is room for others
        self._tell_idle()

    # ------------------------------------------------------------------------------------------------------- answers

    def _on_answer(self, orders: list[Order], bytes_count: int, answer: Any) -> None:
        self._unanswered_count -= len(orders)
        self._unanswered_bytes -= bytes_count
        if isinstance(answer, Submitted) and len(answer.ids) == len(orders):
            self._accept(orders, answer)
        elif len(orders) > 1 and self._is_about_one(answer):
            middle = len(orders) // 2
            for half in (orders[:middle], orders[middle:]):
                self._send(half, sum(len(order.argument) for order in half))
        else:
            error = _as_error(answer)
            for order in orders:
                order.ticket.is_withdrawn = True
                order.ticket.refused(error)
        answered, self._answered = self._answered, self._loop.create_future()
        answered.set_result(None)
        self._schedule()
        self._tell_idle()

    def _is_about_one(self, answer: Any) -> bool:
        """Whether a submit was refused for one of its tasks, as far as one can tell: what ends the line is for all."""
        if isinstance(answer, LocalProtocolError):
            return True
        is_refused = isinstance(answer, RequestRefused) and answer.code not in _ABOUT_ALL
        return is_refused and self.line.live is not None

    def _accept(self, orders: list[Order], answer: Submitted) -> None:
        warnings = answer.warnings
        for order, task_id, submitted_ns in zip(orders, answer.ids, _instants(answer), strict=True):
            order.ticket.accepted(task_id, warnings)
            order.ticket.submitted_ns = submitted_ns
            self._follow(order.ticket)
        self._tell_early(answer.ids)

    def _tell_early(self, ids: list[TaskId]) -> None:
        if self._early:
            self._on_done([self._early.pop(task_id) for task_id in ids if task_id in self._early])
        if not self._flights:
            self._early.clear()

    def _follow(self, ticket: Ticket) -> bool:
        """Tell a ticket of the task with its id; False where another ticket is told of it already."""
        is_first = self._tickets.setdefault(ticket.id, ticket) is ticket
        if not is_first:
            self._more.setdefault(ticket.id, []).append(ticket)
        return is_first

    def _on_done(self, ends: list[TaskDone]) -> None:
        tickets = self._tickets
        for done in ends:
            ticket = tickets.pop(done.task_id, None)
            if ticket is not None:
                self._tell_end(ticket, done)
                if self._more:
                    for other in self._more.pop(done.task_id, ()):
                        self._tell_end(other, done)
            elif self._flights:
                self._early[done.task_id] = done
        if self._orders:
            self._schedule()
        self._tell_idle()

    def _tell_end(self, ticket: Ticket, done: TaskDone) -> None:
        try:
            ticket.ended(done)
        except Exception as error:
            # Neither this task, which is no longer watched, nor the others of the frame may be waited for in vain.
            context = {"message": f"the end of task {done.task_id} could not be told", "exception": error}
            self._loop.call_exception_handler(context)
            ticket.refused(LocalProtocolError(f"the end of task {done.task_id} could not be told: {error}"))

    def _on_reports(self, reports: list[AttemptReport]) -> None:
        for report in reports:
            ticket = self._tickets.get(report.task_id)
            if ticket is not None:
                ticket.reported(report)
                for other in self._more.get(report.task_id, ()):
                    other.reported(report)

    def _fail(self, error: ScheddError) -> None:
        """The line is given up: so is everything that waits for it."""
        self._flights.fail(error)
        waiting = list(self._tickets.values())
        for more in self._more.values():
            waiting += more
        self._tickets.clear()
        self._more.clear()
        with self._lock:
            while self._orders:
                ticket = self._orders.popleft().ticket
                if not ticket.is_withdrawn:
                    ticket.is_sent = True
                    waiting.append(ticket)
        for ticket in waiting:
            ticket.refused(error)
        self._tell_idle()

    def _tell_idle(self) -> None:
        if self.is_idle:
            self.on_idle()

    # ----------------------------------------------------------------------------------------------- watch and cancel

    def attach(self, ticket: Ticket, task_id: TaskId) -> None:
        """Tell a ticket about a task that was submitted before, in the loop; it is refused where there is none."""
        ticket.id = task_id
        ticket.is_sent = True
        if not self._follow(ticket):
            return
        connection = self.line.live
        if connection is not None:
            message = WatchTasks(connection.number(), Selection(ids=[task_id]), True, True)
            connection.send(message, partial(self._on_watching, task_id))
        else:
            self.line.want()

    def _on_watching(self, task_id: TaskId, answer: Any) -> None:
        if (isinstance(answer, Watching) and answer.total) or self.line.goes_on(answer):
            return
        unknown = RequestRefused(f"no task {task_id}", code=UNKNOWN_TASK)
        self._lose(task_id, answer if isinstance(answer, ScheddError) else unknown)

    def withdraw(self, ticket: Ticket) -> bool:
        """Give up an order that has not been sent, from any thread; False where it has."""
        with self._lock:
            if not ticket.is_sent:
                ticket.is_withdrawn = True
            return ticket.is_withdrawn

    def withdraw_all(self) -> list[Ticket]:
        """Give up all orders that have not been sent, from any thread, and return their tickets."""
        withdrawn = []
        with self._lock:
            while self._orders:
                ticket = self._orders.popleft().ticket
                if not ticket.is_withdrawn:
                    ticket.is_withdrawn = True
                    withdrawn.append(ticket)
        return withdrawn

    async def cancel_unstarted(self, tickets: Iterable[Ticket]) -> bool:
        """Ask the daemon to cancel tasks that were sent, as far as they have not started.

        Returns whether it cancelled any. Raises ScheddError.
        """
        ids: list[TaskId] = []
        for ticket in tickets:
            while not ticket.id and not ticket.is_withdrawn:
                await asyncio.shield(self._answered)
            if ticket.id:
                ids.append(ticket.id)
        if not ids:
            return False
        return (await self.line.request(Changed, CancelTasks, Selection(ids=ids), False)).changed > 0

    async def cancel_all_unstarted(self) -> None:
        """Ask the daemon to cancel every task here that has not started. Raises ScheddError."""
        while self._unanswered_count:
            await asyncio.shield(self._answered)
        await self.cancel_unstarted(list(self._tickets.values()))

    # --------------------------------------------------------------------------------------------- as it is on the wire

    async def submit_as_is(
        self,
        specs: list[TaskSpec],
        entries: list[TaskEntry],
        *,
        watch: bool,
        strict: bool,
        on_done: Callable[[TaskDone], None] | None,
    ) -> Submitted:
        """Send one submit past the queue; where `watch`, `on_done` is told of each end. Raises ScheddError.

        It is sent again like any other where the connection is lost.
        """
        answered: asyncio.Future[Any] = self._loop.create_future()

        def on_answer(answer: Any) -> None:
            # Here and not after the await: ends may follow in the same frame.
            if isinstance(answer, Submitted) and watch and on_done is not None:
                for task_id, submitted_ns in zip(answer.ids, _instants(answer), strict=True):
                    self._follow(Follower(task_id, submitted_ns, on_done))
                self._tell_early(answer.ids)
            if not answered.done():
                answered.set_result(answer)

        self._flights.launch(specs, entries, watch=watch, strict=strict, on_answer=on_answer)
        answer = await answered
        if isinstance(answer, ScheddError):
            raise answer
        if not isinstance(answer, Submitted):
            raise RemoteProtocolError("a submit was answered amiss")
        return answer
