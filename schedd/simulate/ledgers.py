"""How workers choose devices in a simulation, where that is not as the daemon's do."""

from __future__ import annotations

import random
from collections.abc import Callable

from schedd.core.capacity import Ledger
from schedd.core.model import WorkerResources
from schedd.core.needs import Need


class RandomLedger(Ledger):
    """Gives any devices that fit."""

    __slots__ = ("_rng",)

    def __init__(self, resources: WorkerResources, rng: random.Random) -> None:
        super().__init__(resources)
        self._rng = rng

    def pick(self, need: Need) -> tuple[int, ...] | None:
        fitting = [
            index
            for index, device in enumerate(self.devices)
            if device.free_share >= need.share and device.free_mb >= need.gpu_mb and need.gpu_model in device.model
        ]
        return tuple(sorted(self._rng.sample(fitting, need.gpus))) if len(fitting) >= need.gpus else None


def ledgers_of(name: str, rng: random.Random) -> Callable[[WorkerResources], Ledger]:
    """How workers choose devices under a policy: as the daemon's do, but for `random`."""
    return (lambda resources: RandomLedger(resources, rng)) if name == "random" else Ledger
