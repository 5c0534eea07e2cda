"""Hosts as network namespaces, and cables between them that delay, lose and can be cut, each direction by itself.

A cable is a TAP device at each end and a thread that carries frames from one to the other: it works on kernels without
netem. Needs root and /dev/net/tun.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import heapq
import itertools
import os
import random
import select
import struct
import subprocess
import threading
import time
from types import TracebackType
from typing import Self

#: linux/if_tun.h, linux/sched.h
TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI = 0x2, 0x1000
CLONE_NEWNET = 0x40000000

FRAME_BYTES_MAX = 65536
FRAMES_PER_READ_MAX = 64
#: An idle cable looks this often whether it should end.
IDLE_S = 0.05

_numbers = itertools.count(1)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


class Host:
    """A network namespace. A context manager."""

    def __init__(self, name: str) -> None:
        self.name = f"schedd-{os.getpid()}-{next(_numbers)}-{name}"
        #: Words before a command that has to run on this host.
        self.prefix = ("nsenter", f"--net={self.path}", "--")

    @property
    def path(self) -> str:
        return f"/run/netns/{self.name}"

    def __enter__(self) -> Self:
        _ip("netns", "add", self.name)
        _ip("-n", self.name, "link", "set", "lo", "up")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _ip("netns", "delete", self.name)

    def plug_in(self, device: str, address: str) -> int:
        """Add a network device with this address; returns the descriptor of the cable's end of it."""
        made: list[int] = []

        def make() -> None:
            # A namespace is entered by a thread: this one ends there, the others stay where they are.
            with open(self.path) as namespace:  # noqa: PTH123
                if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET):
                    return
            tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            made.append(tap)
            fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", device.encode(), IFF_TAP | IFF_NO_PI))

        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        (tap,) = made
        _ip("-n", self.name, "address", "add", address, "dev", device)
        _ip("-n", self.name, "link", "set", device, "up")
        return tap


class Cable:
    """Joins two hosts: the first is .1, the second .2 of the network 10.99.`number`.0. A context manager.

    delay_s, loss: of each direction. The seed makes the losses repeat, not what the hosts send.
    """

    def __init__(self, here: Host, there: Host, number: int, *, delay_s: float, loss: float, seed: int) -> None:
        self.address = f"10.99.{number}.1"
        self._ends = (
            here.plug_in(f"cable{number}", f"{self.address}/24"),
            there.plug_in(f"cable{number}", f"10.99.{number}.2/24"),
        )
        self._delay_s = delay_s
        self._loss = loss
        self._dice = random.Random(seed)
        #: Which direction takes nothing: from the first host, from the second.
        self._is_cut = [False, False]
        #: (when, number, end that it goes to, frame).
        self._under_way: list[tuple[float, int, int, bytes]] = []
        self._count = 0
        self._is_over = False
        self._thread = threading.Thread(target=self._run, name="cable", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_over = True
        self._thread.join()
        for end in self._ends:
            os.close(end)

    def cut(self, *, forth: bool = True, back: bool = True) -> None:
        """Let nothing through from the first host to the second (`forth`), and from the second to the first."""
        self._is_cut = [forth, back]

    def heal(self) -> None:
        self._is_cut = [False, False]

    def _run(self) -> None:
        with contextlib.closing(select.epoll()) as poll:
            for end in self._ends:
                poll.register(end, select.EPOLLIN)
            while not self._is_over:
                for end, _ in poll.poll(self._wait_s()):
                    self._take(self._ends.index(end))
                self._give()

    def _wait_s(self) -> float:
        return max(0.0, min(IDLE_S, self._under_way[0][0] - time.monotonic())) if self._under_way else IDLE_S

    def _take(self, end: int) -> None:
        for _ in range(FRAMES_PER_READ_MAX):
            try:
                frame = os.read(self._ends[end], FRAME_BYTES_MAX)
            except BlockingIOError:
                return
            if not self._is_cut[end] and self._dice.random() >= self._loss:
                self._count += 1
                heapq.heappush(self._under_way, (time.monotonic() + self._delay_s, self._count, 1 - end, frame))

    def _give(self) -> None:
        now = time.monotonic()
        while self._under_way and self._under_way[0][0] <= now:
            _, _, end, frame = heapq.heappop(self._under_way)
            with contextlib.suppress(OSError):  # its queue is full, or it is down: lost like any other frame
                os.write(self._ends[end], frame)
