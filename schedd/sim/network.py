"""A network of byte streams: delay, broken connections, partitions in one direction or in both.

A connection is two streams. Each keeps the order of its bytes, cuts them where it likes, and is as late as the dice
say. What the streams of TCP can do to a program is this:

- bytes wait as long as their direction is cut, and arrive when it is healed, should the receiver still be there;
- an end that gives up a connection hears no more of it, but what it sent before is still under way: the other end
  may get it, or a part of it, long after a newer connection was opened;
- a machine that dies says nothing: its peer believes in the connection until it gives up by itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import pairwise
from typing import Protocol

from msgspec import Struct

from schedd.core.model import SECOND, Instant
from schedd.sim.kernel import Kernel, Process

#: A connection that cannot be opened is given up by its opener; this only forgets the attempt.
CONNECT_S = 10.0


class Receiver(Protocol):
    """What is at an end of a connection: the methods of `asyncio.Protocol` that matter here."""

    def connection_made(self, transport: End) -> None: ...

    def data_received(self, data: bytes) -> None: ...

    def connection_lost(self, exc: Exception | None) -> None: ...


class NetworkRules(Struct, frozen=True):
    """How bad the network is: how late a write is, how often very late, and how often it arrives in two pieces."""

    latency_s: float
    jitter_s: float
    straggle_chance: float = 0.0
    cut_chance: float = 0.0


class Cable:
    """The line of one machine to the daemon. A direction that is cut carries nothing until it is healed."""

    def __init__(self) -> None:
        self.cut_up = False
        self.cut_down = False
        #: What waits for a direction to be healed.
        self.waiting_up: list[Callable[[], None]] = []
        self.waiting_down: list[Callable[[], None]] = []

    @property
    def is_whole(self) -> bool:
        return not (self.cut_up or self.cut_down)


class End:
    """One end of a connection: the transport of whoever is there."""

    def __init__(self, network: Network, cable: Cable, process: Process, *, up: bool) -> None:
        self._network = network
        self._cable = cable
        #: Which direction what is written here goes: up is to the daemon.
        self._up = up
        self.process = process
        self.receiver: Receiver | None = None
        self.other: End | None = None
        #: Nothing is written any more; the rest is under way.
        self.is_closing = False
        #: The receiver has been told that it is over.
        self.is_lost = False
        #: What was sent and has not arrived, in its order.
        self._under_way: deque[tuple[Callable[[bytes], None], bytes]] = deque()
        #: Not before this arrives what is written next.
        self._arrives_ns: Instant = 0
        #: What arrives here later than this was lost with the connection; 0: all arrives.
        self._deaf_ns: Instant = 0

    # ----------------------------------------------------------------- what a program sees: the methods of a transport

    def write(self, data: bytes) -> None:
        """Send bytes; they arrive later, perhaps in pieces, or never."""
        other = self.other
        if self.is_closing or other is None:
            return
        kernel = self._network.kernel
        cuts = [0, len(data)]
        if len(data) > 1 and kernel.chance(self._network.rules.cut_chance):
            cuts.insert(1, kernel.random.randrange(1, len(data)))
        for start, stop in pairwise(cuts):
            self._send(other, other._arrive, data[start:stop])

    def writelines(self, parts: list[bytes]) -> None:
        self.write(b"".join(parts))

    def close(self) -> None:
        """Send what was written, then end the connection."""
        if self.is_closing:
            return
        self.is_closing = True
        if self.other is not None:
            self._send(self.other, self.other._lose, b"")
        self.process.call_soon(self._lose, b"")

    def abort(self) -> None:
        """End the connection at once. What was sent before arrives at the other end, or a part of it."""
        if not self.is_closing:
            self._lose_some()
            self.close()

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int) -> None:
        """Nothing is slow to read here."""

    def pause_reading(self) -> None:
        """Never asked for, since nothing is slow to read."""

    def resume_reading(self) -> None:
        """Never asked for, since nothing is slow to read."""

    def get_extra_info(self, name: str) -> str | None:
        return None

    # ------------------------------------------------------------------------------------------- what the network does

    def break_off(self) -> None:
        """The connection breaks: this end and the other one learn of it, each in its own time."""
        if self.other is not None and not self.is_closing and not self.other.is_closing:
            for end in (self, self.other):
                end._lose_some()
            for end in (self, self.other):
                end._send(end.other or end, (end.other or end)._lose, b"")

    def _lose_some(self) -> None:
        """From some instant on, nothing of what is under way arrives at the other end."""
        kernel, other = self._network.kernel, self.other
        if other is not None and kernel.chance(0.5):
            deaf_ns = kernel.now_ns + int(kernel.random.random() * max(1, self._arrives_ns - kernel.now_ns))
            # What breaks a second time does not get back what it has lost.
            other._deaf_ns = min(other._deaf_ns or deaf_ns, deaf_ns)

    def _send(self, to: End, arrive: Callable[[bytes], None], data: bytes) -> None:
        at_ns = max(self._arrives_ns, self._network.kernel.now_ns + self._network.delay_ns())
        self._arrives_ns = at_ns
        self._under_way.append((arrive, data))
        self._network.carry(self._cable, self._up, at_ns, self._deliver, to.process)

    def _deliver(self) -> None:
        """Let the next of what was sent arrive: what waited for a cable and what for its receiver keeps its order."""
        arrive, data = self._under_way.popleft()
        arrive(data)

    def _arrive(self, data: bytes) -> None:
        if self.is_lost or self.is_closing or self.receiver is None:
            return
        if 0 < self._deaf_ns <= self._network.kernel.now_ns:
            return
        self._network.kernel.note(f"{self.process.name} reads {len(data)} bytes", data)
        self.receiver.data_received(data)
        worker_id = getattr(self.receiver, "worker_id", None)
        if worker_id is not None:
            self._network.heard(worker_id)

    def _lose(self, _data: bytes) -> None:
        if self.is_lost:
            return
        self.is_closing = self.is_lost = True
        if self.receiver is not None:
            self._network.kernel.note(f"{self.process.name} loses a connection")
            self.receiver.connection_lost(None)


class Network:
    """All connections to the one daemon."""

    def __init__(self, kernel: Kernel, rules: NetworkRules, heard: Callable[[str], None]) -> None:
        self.kernel = kernel
        self.rules = rules
        #: Called with the name of a worker whenever the daemon reads something of it.
        self.heard = heard
        #: The process that listens, and what makes a receiver for a connection; None: nobody listens.
        self.listener: tuple[Process, Callable[[], Receiver]] | None = None
        self.ends: list[End] = []

    def delay_ns(self) -> int:
        """How long a write takes; now and then very long, as after a loss of packets."""
        rules, dice = self.rules, self.kernel.random
        delay_s = rules.latency_s + dice.random() * rules.jitter_s
        if dice.random() < rules.straggle_chance:
            delay_s += dice.random() * 50 * (rules.latency_s + rules.jitter_s)
        return int(delay_s * SECOND)

    def carry(self, cable: Cable, up: bool, at_ns: Instant, arrive: Callable[[], None], to: Process) -> None:
        """Let something arrive at an instant, or once its direction is healed; later where the receiver is stopped."""

        def try_again() -> None:
            if to.is_dead:
                return
            if cable.cut_up if up else cable.cut_down:
                (cable.waiting_up if up else cable.waiting_down).append(try_again)
            elif to.is_stopped:
                to.call_soon(try_again)
            else:
                arrive()

        self.kernel.put_at(at_ns, try_again)

    def connect(self, process: Process, cable: Cable, receiver: Receiver, failed: Callable[[], None]) -> End:
        """Open a connection to the daemon. `failed` is called where nobody listens; on a cut cable, nothing happens."""
        here = End(self, cable, process, up=True)
        at_ns = self.kernel.now_ns + self.delay_ns()
        self.carry(cable, True, at_ns, lambda: self._accept(here, receiver, failed), process)
        return here

    def _accept(self, here: End, receiver: Receiver, failed: Callable[[], None]) -> None:
        cable, process = here._cable, here.process
        at_ns = self.kernel.now_ns + self.delay_ns()
        listener = self.listener
        if listener is None or here.is_closing:
            self.carry(cable, False, at_ns, failed, process)
            return
        there = End(self, cable, listener[0], up=False)
        here.other, there.other = there, here
        here.receiver, there.receiver = receiver, peer = receiver, listener[1]()
        self.ends += (here, there)
        self.carry(cable, False, at_ns, lambda: self._made(here, receiver), process)
        listener[0].call_soon(peer.connection_made, there)

    @staticmethod
    def _made(here: End, receiver: Receiver) -> None:
        if not here.is_closing:
            receiver.connection_made(here)

    def heal(self, cable: Cable) -> None:
        """Let both directions carry again; what waited arrives now, in its order."""
        cable.cut_up = cable.cut_down = False
        waiting = [*cable.waiting_up, *cable.waiting_down]
        cable.waiting_up, cable.waiting_down = [], []
        for arrive in waiting:
            arrive()

    def kill(self, process: Process, *, silently: bool) -> None:
        """End all connections of a process: its machine tells the other ends, or (`silently`) is gone itself."""
        for end in self.ends:
            if end.process is process and not end.is_lost:
                if not silently:
                    end.abort()
                end.is_closing = end.is_lost = True
        self.forget_lost()

    def forget_lost(self) -> None:
        """Keep only connections that somebody still believes in."""
        self.ends = [end for end in self.ends if not (end.is_lost and (end.other is None or end.other.is_lost))]
