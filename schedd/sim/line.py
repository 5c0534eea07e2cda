"""A connection as its opener sees it, worker or client: frames out, frames in, until it is given up or lost."""

from __future__ import annotations

from typing import Any, Protocol

from schedd.sim.kernel import Process, Timer
from schedd.sim.network import Cable, End, Network
from schedd.wire.framing import Body, FrameReader, encode_frame

#: How long the opener waits for a connection, and for the answer to its greeting; as in `worker.link`.
CONNECT_TIMEOUT_S = 10.0


class Owner(Protocol):
    """Who opened it."""

    def on_connected(self, line: Line) -> None:
        """Greet."""

    def on_frame(self, line: Line, body: Body) -> None: ...

    def on_disconnected(self, line: Line) -> None:
        """It is over, or never came about. Called once."""


class Line:
    """One connection; opened at once."""

    def __init__(self, owner: Owner, process: Process, network: Network, cable: Cable) -> None:
        self._owner = owner
        self._reader = FrameReader()
        self._is_over = False
        self._is_made = False
        self._network = network
        self.heard_ns = network.kernel.now_ns
        self._end: End = network.connect(process, cable, self, self._over)
        self._timer: Timer = process.call_later(CONNECT_TIMEOUT_S, self.abort)

    def welcomed(self) -> None:
        """The daemon has answered the greeting."""
        self._timer.cancel()

    def connection_made(self, transport: End) -> None:
        self._is_made = True
        self._owner.on_connected(self)

    def data_received(self, data: bytes) -> None:
        self.heard_ns = self._network.kernel.now_ns
        for body in self._reader.feed(data):
            if not self._is_over:
                self._owner.on_frame(self, body)

    def connection_lost(self, exc: Exception | None) -> None:
        self._over()

    def write(self, messages: Any) -> None:
        self._end.write(encode_frame(messages))

    def close(self) -> None:
        """Send what was written and end it."""
        self._end.close()

    def abort(self) -> None:
        """Give it up; where it was made, its end tells the owner."""
        self._end.abort()
        if not self._is_made:
            self._over()

    def _over(self) -> None:
        if not self._is_over:
            self._is_over = True
            self._timer.cancel()
            self._owner.on_disconnected(self)
