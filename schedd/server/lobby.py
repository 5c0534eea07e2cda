"""Where connections are accepted, and wait until they say something.

Who is silent costs a descriptor and no more: what a connection needs is made once its first bytes are there. So whoever
opens thousands a second and says nothing takes little from the others, and nothing from who comes to speak: where there
are too many, the one that has been silent for the longest has to go.
"""

from __future__ import annotations

import asyncio
import itertools
import select
import socket
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from typing import Any

from msgspec import Struct

from schedd.log import Log

log = Log("schedd.server")

#: Silent connections of one listening socket.
SILENT_MAX = 1000
#: Connections that are accepted, or let in, or closed, before others have their turn: some 0.1 ms of work.
PER_PASS = 2
#: Connections that are accepted in a millisecond, a third of the time that there is; more wait in the kernel.
PER_MS = 6
#: To let one in counts as if so many were accepted.
COST_OF_LETTING_IN = 2
#: Who has to go where there are too many: the oldest that has not just spoken, of so many.
PUSH_OUT_AMONG = 10
#: Without a descriptor for another connection, look again after this time.
NO_DESCRIPTOR_PAUSE_S = 1.0


class Guest(Struct, gc=False):
    """Who is there. address: as `socket.accept` has it; due: when it must have spoken, time of the loop."""

    sock: socket.socket
    address: Any
    due: float

    @property
    def name(self) -> str:
        return f"{self.address[0]}:{self.address[1]}" if isinstance(self.address, tuple) else "unix"


#: Takes the socket of who has spoken, the name of the peer, and the first byte, which is still to be read.
LetIn = Callable[[socket.socket, str, bytes], Coroutine[Any, Any, None]]
#: Takes leave of who has not spoken in time; the socket is closed after it.
TakeLeave = Callable[[socket.socket, str], None]


class Lobby:
    """Listens on a bound socket, on the running loop. timeout_s: for how long one may be silent."""

    def __init__(
        self,
        listener: socket.socket,
        backlog: int,
        timeout_s: Callable[[], float],
        let_in: LetIn,
        take_leave: TakeLeave,
    ) -> None:
        self._listener = listener
        self._timeout_s = timeout_s
        self._let_in = let_in
        self._take_leave = take_leave
        self._loop = asyncio.get_running_loop()
        #: By descriptor, the oldest first.
        self._silent: OrderedDict[int, Guest] = OrderedDict()
        #: Says who speaks: one look for all of them, and cheaper than a reader of the loop for each.
        self._epoll = select.epoll()
        self._timer: asyncio.TimerHandle | None = None
        self._entering: set[asyncio.Task[None]] = set()
        #: What was accepted and let in in this millisecond, or whatever the clock of the loop tells apart.
        self._spent_at, self._spent = 0.0, 0
        self._is_pausing = False
        #: Pushed out since there was nobody the last time.
        self._pushed_out = 0
        listener.setblocking(False)
        listener.listen(backlog)
        self._loop.add_reader(listener, self._accept)
        self._loop.add_reader(self._epoll, self._look)

    def __len__(self) -> int:
        return len(self._silent)

    def close(self) -> None:
        """Let nobody in any more."""
        if self._listener.fileno() < 0:
            return
        self._loop.remove_reader(self._listener)
        self._listener.close()
        self._loop.remove_reader(self._epoll)
        self._epoll.close()
        if self._timer is not None:
            self._timer.cancel()
        for guest in self._silent.values():
            guest.sock.close()
        self._silent.clear()

    def turn_away(self) -> None:
        """Let in nobody of those who are about to be."""
        for entering in self._entering:
            entering.cancel()

    def _accept(self) -> None:
        for number in range(PER_PASS):
            try:
                sock, address = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if number:
                    return  # perhaps there is nobody: without a descriptor the kernel does not look
                if self._silent:
                    self._push_out()
                    continue
                log.warning("cannot_accept", error=error.strerror)
                self._pause(NO_DESCRIPTOR_PAUSE_S)
                return
            self._take_in(sock, address)
            self._spend(1)

    def _take_in(self, sock: socket.socket, address: Any) -> None:
        if len(self._silent) >= SILENT_MAX:
            self._push_out()
        sock.setblocking(False)
        number = sock.fileno()
        self._epoll.register(number, select.EPOLLIN)
        self._silent[number] = Guest(sock, address, self._loop.time() + self._timeout_s())
        if self._timer is None:
            self._arm()

    def _spend(self, units: int) -> None:
        """Count what was done for strangers, and do no more of it in this millisecond where it was enough."""
        if (now := self._loop.time()) != self._spent_at:
            self._spent_at, self._spent = now, 0
        self._spent += units
        if self._spent >= PER_MS:
            self._pause(0.001)

    def _pause(self, pause_s: float) -> None:
        """Accept nobody for a while."""
        if not self._is_pausing:
            self._is_pausing = True
            self._loop.remove_reader(self._listener)
            self._loop.call_later(pause_s, self._accept_again)

    def _accept_again(self) -> None:
        self._is_pausing = False
        if self._listener.fileno() >= 0:
            self._loop.add_reader(self._listener, self._accept)

    def _look(self) -> None:
        for number, _ in self._epoll.poll(0, PER_PASS):
            guest = self._forget(number)
            first = _peek(guest.sock)
            if not first:
                guest.sock.close()
                continue
            entering = self._loop.create_task(self._let_in(guest.sock, guest.name, first))
            self._entering.add(entering)
            entering.add_done_callback(self._entering.discard)
            self._spend(COST_OF_LETTING_IN)

    def _forget(self, number: int) -> Guest:
        self._epoll.unregister(number)
        return self._silent.pop(number)

    def _push_out(self) -> None:
        self._pushed_out += 1
        oldest = itertools.islice(self._silent.items(), PUSH_OUT_AMONG)
        silent = (number for number, guest in oldest if not _peek(guest.sock))
        guest = self._forget(next(silent, next(iter(self._silent))))
        if self._pushed_out.bit_count() == 1:  # the first, the second, the fourth …: a flood must not flood the log
            log.warning("too_many_silent", peer=guest.name, silent=len(self._silent) + 1, closed=self._pushed_out)
        guest.sock.close()

    def _arm(self) -> None:
        """Look after the oldest when its time is over."""
        self._timer = None
        if self._silent:
            self._timer = self._loop.call_at(next(iter(self._silent.values())).due, self._expire)
        else:
            self._pushed_out = 0

    def _expire(self) -> None:
        now = self._loop.time()
        for number, guest in list(itertools.islice(self._silent.items(), PER_PASS)):
            if guest.due > now:
                break
            self._forget(number)
            self._take_leave(guest.sock, guest.name)
            guest.sock.close()
        self._arm()


def _peek(sock: socket.socket) -> bytes:
    """The first byte, which stays there; empty where the peer is gone."""
    try:
        return sock.recv(1, socket.MSG_PEEK)
    except OSError:
        return b""
