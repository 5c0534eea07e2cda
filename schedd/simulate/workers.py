"""Virtual workers: how fast one is, which attempts fail there, and what it does on its own behind a slow link.

A worker without a delay is the engine's own row: what has its reservation runs. One behind a link decides for itself
what starts, by the rule of real workers: the head of its backlog starts as soon as it fits, and nothing overtakes it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator

from schedd.core.capacity import Ledger
from schedd.core.model import SECOND, Instant, TaskId, WorkerId
from schedd.core.needs import Need
from schedd.simulate.cluster import ClusterRow

_MASK = (1 << 64) - 1


class Attempt:
    """An attempt on its worker. started_ns: 0 while it waits there. is_over: it was stopped, or its worker is gone.

    gpus: how many it has, where it runs.
    """

    __slots__ = ("devices", "gpus", "is_ok", "is_over", "need", "number", "started_ns", "task_id", "worker")

    def __init__(
        self, worker: VirtualWorker, task_id: TaskId, number: int, need: Need | None, devices: tuple[int, ...] = ()
    ) -> None:
        self.worker = worker
        self.task_id = task_id
        self.number = number
        self.need = need
        self.started_ns: Instant = 0
        self.devices = devices
        self.is_ok = True
        self.is_over = False
        self.gpus = 0.0


class VirtualWorker:
    """A worker of the cluster: what the engine does not know of it."""

    __slots__ = (
        "backlog",
        "delay_ns",
        "is_here",
        "is_plain",
        "ledger",
        "model",
        "place",
        "row",
        "running",
        "worker_id",
    )

    def __init__(self, worker_id: WorkerId, place: int, row: ClusterRow) -> None:
        self.worker_id = worker_id
        self.place = place
        self.row = row
        self.model = row.gpu_model
        self.delay_ns = int(row.latency_s * SECOND)
        #: Neither fails nor slows down.
        self.is_plain = not row.fail_share and row.slow_factor == 1.0
        self.is_here = False
        # Of a worker behind a link:
        self.ledger = Ledger(row.resources())
        self.backlog: OrderedDict[TaskId, Attempt] = OrderedDict()
        self.running: dict[TaskId, Attempt] = {}

    def span_s(self, work_s: float, now_s: float) -> float:
        """How long it takes here, from now on, to do what takes `work_s` at full speed."""
        row = self.row
        if row.slow_factor == 1.0 or (row.slow_until_s is not None and now_s >= row.slow_until_s):
            return work_s
        before = max(0.0, row.slow_from_s - now_s)
        left = work_s - before
        if left <= 0:
            return work_s
        if row.slow_until_s is not None:
            slow = max(0.0, row.slow_until_s - now_s - before)
            if left > slow * row.slow_factor:
                return before + slow + left - slow * row.slow_factor
        return before + left / row.slow_factor

    # -------------------------------------------------------------------------------------------------- behind a link

    def heads(self) -> Iterator[Attempt]:
        """Reserve for the head of the backlog as long as it fits."""
        while self.backlog:
            attempt = next(iter(self.backlog.values()))
            devices = self.ledger.reserve(attempt.need) if attempt.need is not None else ()
            if devices is None:
                return
            del self.backlog[attempt.task_id]
            attempt.devices = devices
            self.running[attempt.task_id] = attempt
            yield attempt

    def take(self, attempts: Iterable[Attempt]) -> None:
        """Let attempts wait here."""
        self.backlog.update((attempt.task_id, attempt) for attempt in attempts)

    def give_back(self, task_id: TaskId, number: int) -> Attempt | None:
        """Take an attempt out of the backlog; None: it has started, or is not here."""
        attempt = self.backlog.get(task_id)
        return self.backlog.pop(task_id) if attempt is not None and attempt.number == number else None

    def end(self, attempt: Attempt) -> None:
        """Free what a running attempt had."""
        if attempt.need is not None:
            self.ledger.release(attempt.need, attempt.devices)
        del self.running[attempt.task_id]


def chance(seed: int, task_id: int, number: int) -> float:
    """A number from 0 to 1 that depends on nothing else, so that what fails does not depend on the order.

    By splitmix64 (Steele, Lea and Flood, 2014).
    """
    value = (seed * 0x9E3779B97F4A7C15 + task_id * 0xD1B54A32D192ED03 + number * 0x8CB92BA72F3D8DD7) & _MASK
    for _ in range(2):
        value = (value + 0x9E3779B97F4A7C15) & _MASK
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
        value ^= value >> 31
    return value / (_MASK + 1)
