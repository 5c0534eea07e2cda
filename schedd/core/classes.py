"""Request classes: tasks that any worker serves equally well are placed as one."""

from __future__ import annotations

import math
from collections.abc import Hashable
from itertools import count
from weakref import WeakValueDictionary

import msgspec

from schedd.core.model import Task, TaskRequirements
from schedd.core.needs import Need, compile_needs

#: Sizes by which estimates of runtimes are told apart, as a difference of logarithms: a fifth.
SIZE_STEP = 0.2
#: Between a kind and a size.
SIZE_MARK = "\n"

#: Equal labels make equal keys, in whatever order they came.
_ENCODER = msgspec.msgpack.Encoder(order="sorted")


class RequestClass:
    """Tasks that any worker serves equally well: equal requirements and, where the policy asks, kind and size."""

    __slots__ = (
        "__weakref__",
        "by_kind",
        "by_size",
        "cpus_min",
        "fits_version",
        "gpus_min",
        "key",
        "kind",
        "needs",
        "number",
        "requirements",
    )

    def __init__(
        self, number: int, key: Hashable, requirements: TaskRequirements, kind: str, by_kind: bool, by_size: bool
    ) -> None:
        self.number = number
        self.key = key
        self.requirements = requirements
        self.needs: tuple[Need, ...] = compile_needs(requirements)
        #: Thousandths of a CPU that every variant needs.
        self.cpus_min = min(need.cpus for need in self.needs)
        #: Devices that every variant needs.
        self.gpus_min = min(need.gpus for need in self.needs)
        #: Kind of the task that made the class; that of every task where the policy groups by kind.
        self.kind = kind
        #: Whether it was made for a policy that groups by kind; and of tasks of one size, for one that groups by that.
        self.by_kind = by_kind
        self.by_size = by_size
        #: The version of the membership of the cluster at which a worker was seen that could run such tasks.
        self.fits_version = -1

    def suits(self, task: Task, by_kind: bool, by_size: bool) -> bool:
        """Whether a policy that groups so would have the task in this class."""
        return self.by_kind is by_kind and self.by_size is (by_size and bool(task.requirements.estimated_time))


class RequestClasses:
    """Interns request classes; one lives as long as a task refers to it."""

    def __init__(self) -> None:
        self._classes: WeakValueDictionary[Hashable, RequestClass] = WeakValueDictionary()
        self._numbers = count(1)

    def intern(self, requirements: TaskRequirements, kind: str, by_kind: bool, by_size: bool = False) -> RequestClass:
        """Return the one class of these.

        The estimate of the runtime does not make a class of its own, but where tasks of different sizes are told apart.
        """
        asked = requirements
        grouped = kind if by_kind else None
        by_size = by_size and bool(asked.estimated_time)
        if by_size and asked.estimated_time:
            grouped = f"{grouped or ''}{SIZE_MARK}{round(math.log(asked.estimated_time) / SIZE_STEP)}"
        key: Hashable
        if asked.labels or asked.custom or asked.variants:
            key = _ENCODER.encode((msgspec.structs.replace(asked, estimated_time=None), grouped))
        else:
            key = (asked.min_gpus, asked.min_memory, asked.cpus, asked.ram, asked.gpu_model, grouped)
        found = self._classes.get(key)
        if found is None:
            plain = msgspec.structs.replace(asked, estimated_time=None)
            found = self._classes[key] = RequestClass(next(self._numbers), key, plain, kind, by_kind, by_size)
        return found
