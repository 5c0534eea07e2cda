"""Submits on their way: each is sent on every new connection, under the same name, until it is answered."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from functools import partial
from typing import Any

from msgspec import Struct

from schedd.client.connection import Connection
from schedd.client.line import TRIES_MAX, Line
from schedd.errors import ScheddError
from schedd.wire.messages import Submit, TaskEntry, TaskSpec

#: Of a random name, 64 bits: no two of a thousand million clients have the same.
CLIENT_CHARACTERS = 16


class Flight(Struct, eq=False):
    """One submit; `number` names it among those of its client, `tries` is how often it was sent."""

    number: int
    specs: list[TaskSpec]
    entries: list[TaskEntry]
    watch: bool
    strict: bool
    on_answer: Callable[[Any], None]
    tries: int = 0


class Flights:
    """The submits of one client that were not answered. Belongs to the loop of its line."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._client = uuid.uuid4().hex[:CLIENT_CHARACTERS]
        self._number = 0
        #: By number, in ascending order.
        self._flights: dict[int, Flight] = {}

    def __len__(self) -> int:
        return len(self._flights)

    def launch(
        self,
        specs: list[TaskSpec],
        entries: list[TaskEntry],
        *,
        watch: bool,
        strict: bool,
        on_answer: Callable[[Any], None],
    ) -> None:
        """Send a submit, now or when there is a connection; `on_answer` gets its answer, or the error for good."""
        self._number += 1
        flight = self._flights[self._number] = Flight(self._number, specs, entries, watch, strict, on_answer)
        connection = self._line.live
        if connection is not None:
            self._transmit(flight, connection)
        else:
            self._line.want()

    def resume(self, connection: Connection) -> None:
        """Send all that was not answered once more."""
        for flight in list(self._flights.values()):
            self._transmit(flight, connection)

    def fail(self, error: ScheddError) -> None:
        """Give all of them up."""
        flights, self._flights = self._flights, {}
        for flight in flights.values():
            flight.on_answer(error)

    def _transmit(self, flight: Flight, connection: Connection) -> None:
        flight.tries += 1
        # All before the first that is still under way have been answered: the daemon need not know them any more.
        answered = next(iter(self._flights))
        number, specs, entries = connection.number(), flight.specs, flight.entries
        message = Submit(number, specs, entries, flight.watch, flight.strict, self._client, flight.number, answered)
        connection.send(message, partial(self._on_answer, flight))

    def _on_answer(self, flight: Flight, answer: Any) -> None:
        if flight.number not in self._flights or (self._line.goes_on(answer) and flight.tries < TRIES_MAX):
            return
        del self._flights[flight.number]
        flight.on_answer(answer)
