"""Workers in groups of one shape: what is believed, and what a second is worth, is said of a group, not of a worker."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from msgspec import Struct

from schedd.core.capacity import Ledger
from schedd.core.model import Task, WorkerId, WorkerInfo
from schedd.core.needs import WHOLE, Need

#: Groups of equal workers; workers of more shapes join the first of their model.
GROUPS_MAX = 32
#: Sorts of workers in a group, which differ in what is not its shape; of more, the first speak for the others.
SORTS_MAX = 8
#: A worker on which tasks take so many times as long as usual is not counted on by a plan, where there are others.
POOR_EFFORT = 3.0
#: Workers of a group that a task may be left for.
SOONEST_MAX = 4
INF = math.inf


class Busy(Struct, frozen=True):
    """A worker that runs something: seconds until it is expected to be free, at the last refresh.

    effort: how many times as long as usual a task then takes there.
    """

    worker_id: WorkerId
    free_in_s: float
    effort: float
    ledger: Ledger

    def can_run(self, task: Task) -> bool:
        """Whether it could run the task if it were empty."""
        return task.request is not None and any(not self.ledger.blocker(need) for need in task.request.needs)


class Group:
    """Workers of one shape: a device model, and as many devices and CPUs each."""

    __slots__ = ("_frees", "_poor_frees", "_sorts", "capacity", "model", "soonest")

    def __init__(self, model: str, sample: Ledger) -> None:
        self.model = model
        #: One worker of each sort: they may differ in labels, memory and own amounts.
        self._sorts = [sample]
        #: Workers, each as much of one as it gets done beside the others of its model.
        self.capacity = 0.0
        #: Its workers that run something, the soonest free first, and such as are better than all before.
        self.soonest: list[Busy] = []
        self._frees: list[float] = []
        self._poor_frees: list[float] = []

    @property
    def frees(self) -> list[float]:
        """Seconds until each worker that a plan counts on has done what it runs, over its slots; 0 where it is idle."""
        return self._frees or self._poor_frees

    def counts_on(self, effort: float) -> bool:
        """Whether a plan counts on a worker on which tasks take so many times as long as usual."""
        return effort < POOR_EFFORT or not self._frees

    def note_free(self, free_in_s: float, effort: float) -> None:
        """Note when a worker has done what it does."""
        (self._frees if effort < POOR_EFFORT else self._poor_frees).append(free_in_s)

    def note_sort(self, ledger: Ledger) -> None:
        """Note what one of its workers has. O(sorts)."""
        if len(self._sorts) < SORTS_MAX and not any(_are_alike(ledger, other) for other in self._sorts):
            self._sorts.append(ledger)

    def note_busy(self, busy: Busy) -> None:
        """Note a worker that runs something."""
        before = [one for one in self.soonest if one.free_in_s <= busy.free_in_s]
        if before and before[-1].effort <= busy.effort:
            return
        after = [one for one in self.soonest if one.free_in_s > busy.free_in_s and one.effort < busy.effort]
        self.soonest = [*before, busy, *after][:SOONEST_MAX]

    def can_run(self, task: Task) -> bool:
        """Whether a worker of the group could run the task if it were empty."""
        needs = task.request.needs if task.request is not None else ()
        return any(not each.blocker(need) for each in self._sorts for need in needs)

    def share(self, needs: Sequence[Need]) -> float:
        """The share of one of its workers that a task takes by one of these needs, the least; infinite: none fits."""
        return min((share(need, each) for each in self._sorts for need in needs), default=INF)


class Groups:
    """The groups of the workers that take work, as of the last survey, and where each worker belongs."""

    def __init__(self) -> None:
        self._groups: list[Group] = []
        self._numbers: dict[tuple[str, int, int], int] = {}
        #: Model and group of a worker, by its id, for as long as it has this ledger.
        self._places: dict[WorkerId, tuple[Ledger, str, int]] = {}

    def clear(self) -> None:
        """Begin a new survey."""
        self._groups, self._numbers, self._places = [], {}, {}

    def enter(self, worker: WorkerInfo, ledger: Ledger) -> Group:
        """Tell the group of a worker, a new one where there is none."""
        shape = _shape(ledger)
        model, number = shape[0], self._numbers.get(shape)
        if number is None and len(self._groups) < GROUPS_MAX:
            number = self._numbers[shape] = len(self._groups)
            self._groups.append(Group(model, ledger))
        elif number is None:
            number = next((n for n, group in enumerate(self._groups) if group.model == model), 0)
        self._places[worker.worker_id] = (ledger, model, number)
        self._groups[number].note_sort(ledger)
        return self._groups[number]

    def place(self, worker: WorkerInfo) -> tuple[str, int]:
        """The device model of a worker, "" without devices, and the number of its group, -1 where it has none yet."""
        ledger = worker.ledger
        if ledger is None:
            return "", -1
        place = self._places.get(worker.worker_id)
        if place is None or place[0] is not ledger:
            shape = _shape(ledger)
            place = self._places[worker.worker_id] = (ledger, shape[0], self._numbers.get(shape, -1))
        return place[1], place[2]

    def model_of(self, worker_id: WorkerId) -> str:
        """The device model of a worker by its id, "" where it was not met."""
        place = self._places.get(worker_id)
        return place[1] if place is not None else ""

    def __len__(self) -> int:
        return len(self._groups)

    def __iter__(self) -> Iterator[Group]:
        return iter(self._groups)

    def __getitem__(self, number: int) -> Group:
        return self._groups[number]


def share(need: Need, sample: Ledger) -> float:
    """The share of a worker that a task takes; infinite where it does not fit."""
    if sample.blocker(need):
        return INF
    taken = need.gpus * need.share / (WHOLE * len(sample.devices)) if need.gpus else 0.0
    if sample.cpus:
        taken = max(taken, need.cpus / sample.cpus)
    if sample.ram_mb:
        taken = max(taken, need.ram_mb / sample.ram_mb)
    return max(taken, 1e-6)


def _are_alike(one: Ledger, other: Ledger) -> bool:
    if one.ram_mb != other.ram_mb or one.labels != other.labels or one.custom != other.custom:
        return False
    return all(a.memory_mb == b.memory_mb for a, b in zip(one.devices, other.devices, strict=False))


def _shape(ledger: Ledger) -> tuple[str, int, int]:
    return ledger.devices[0].model if ledger.devices else "", len(ledger.devices), ledger.cpus
