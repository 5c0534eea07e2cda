"""The arithmetic of one worker's capacity: what is reserved, and what is free.

The daemon's worker table and the worker's own state machine use this very code, so both sides come to the same
answer: which devices an attempt gets, and whether the head of a backlog may start.
"""

from __future__ import annotations

from schedd.core.model import WorkerResources
from schedd.core.needs import MB_PER_GB, WHOLE, Need


class DeviceLedger:
    """One device: its declared memory, and what of it nobody has reserved."""

    __slots__ = ("free_mb", "free_share", "memory_mb", "model", "uuid")

    def __init__(self, uuid: str, model: str, memory_mb: int) -> None:
        self.uuid = uuid
        self.model = model
        self.memory_mb = self.free_mb = memory_mb
        self.free_share = WHOLE


class Ledger:
    """Reservations against the declared capacity of one worker.

    Invariant: free = capacity - the sum of what is reserved, and never negative. `reserve` and `release` are the
    only ways to change it.
    """

    __slots__ = (
        "cpus",
        "custom",
        "devices",
        "free_cpus",
        "free_custom",
        "free_ram_mb",
        "labels",
        "ram_mb",
        "slot_cpus",
        "slots",
    )

    def __init__(self, resources: WorkerResources) -> None:
        self.cpus = self.free_cpus = round(resources.cpus * WHOLE)
        self.ram_mb = self.free_ram_mb = round(resources.ram_gb * MB_PER_GB)
        self.devices = [DeviceLedger(g.uuid, g.model, g.memory_mb) for g in resources.devices()]
        #: Units of concurrency, and the CPUs of one on a worker without devices.
        self.slots = len(self.devices) or max(1, int(resources.cpus))
        self.slot_cpus = min(WHOLE, self.cpus)
        self.labels = resources.labels
        self.custom = {name: round(value * WHOLE) for name, value in resources.custom.items()}
        self.free_custom = dict(self.custom)

    def blocker(self, need: Need) -> str:
        """Say what of `need` this worker could not give even if it were empty; "" where it could."""
        if need.cpus > self.cpus:
            return f"needs {need.cpus / WHOLE:g} CPUs, has {self.cpus / WHOLE:g}"
        if need.ram_mb > self.ram_mb:
            return f"needs {need.ram_mb / MB_PER_GB:g} GB of RAM, has {self.ram_mb / MB_PER_GB:.1f}"
        if need.gpus > len(self.devices):
            return f"needs {_gpus(need)}, has {len(self.devices)}"
        if need.gpus:
            fitting = [d for d in self.devices if need.gpu_model in d.model]
            if need.gpus > len(fitting):
                return f"needs {_gpus(need)} of model {need.gpu_model!r}, has {len(fitting)}"
            large = sum(1 for d in fitting if d.memory_mb >= need.gpu_mb)
            if need.gpus > large > 0:
                return f"needs {_gpus(need)} with {need.gpu_mb / MB_PER_GB:g} GB, has {large}"
            if need.gpus > large:
                most = max(d.memory_mb for d in fitting) / MB_PER_GB
                return f"needs {need.gpu_mb / MB_PER_GB:g} GB of GPU memory, has {most:g} on its largest"
        for name, value in need.labels:
            if self.labels.get(name) != value:
                return f"needs label {name}={value}, has {name}={self.labels.get(name, '')}"
        for name, amount in need.custom:
            if amount > self.custom.get(name, 0):
                return f"needs {amount / WHOLE:g} {name}, has {self.custom.get(name, 0) / WHOLE:g}"
        return ""

    def shortage(self, need: Need) -> str:
        """Say what of `need` is not free now; "" where all is. Supposes that `blocker` is ""."""
        if need.cpus > self.free_cpus:
            return f"{self.free_cpus / WHOLE:g} of {self.cpus / WHOLE:g} CPUs free"
        if need.ram_mb > self.free_ram_mb:
            return f"{self.free_ram_mb / MB_PER_GB:.1f} of {self.ram_mb / MB_PER_GB:.1f} GB of RAM free"
        if need.gpus and self.pick(need) is None:
            free = sum(1 for d in self.devices if d.free_share >= need.share)
            return f"{free} of {len(self.devices)} GPUs free for it"
        for name, amount in need.custom:
            if amount > self.free_custom.get(name, 0):
                return f"{self.free_custom.get(name, 0) / WHOLE:g} {name} free"
        return ""

    def free_devices(self) -> list[tuple[int, int]]:
        """What is free of each device: thousandths of it, and MiB of its memory."""
        return [(device.free_share, device.free_mb) for device in self.devices]

    def can_fit(self, need: Need) -> bool:
        """Tell whether `need` could be reserved now, labels supposed to match. O(devices)."""
        if need.cpus > self.free_cpus or need.ram_mb > self.free_ram_mb:
            return False
        if need.gpus and self.pick(need) is None:
            return False
        return not need.custom or all(self.free_custom.get(n, 0) >= a for n, a in need.custom)

    def reserve(self, need: Need) -> tuple[int, ...] | None:
        """Take `need` out of what is free.

        Returns the indices of the devices it got (empty where it needs none), or None, with nothing changed, where
        it does not fit. A share goes to the fullest device that has room, whole devices by lowest index.
        """
        if need.cpus > self.free_cpus or need.ram_mb > self.free_ram_mb:
            return None
        if need.custom and any(self.free_custom.get(n, 0) < a for n, a in need.custom):
            return None
        picked: tuple[int, ...] = ()
        if need.gpus:
            found = self.pick(need)
            if found is None:
                return None
            picked = found
        self.free_cpus -= need.cpus
        self.free_ram_mb -= need.ram_mb
        if picked or need.custom:
            self._apply_rest(need, picked, -1)
        return picked

    def holds(self, need: Need) -> int:
        """How many attempts with this need could run at a time, by what it asks for; 0 where it asks for too much."""
        counts = [self.cpus // need.cpus] if need.cpus else []
        if need.ram_mb:
            counts.append(self.ram_mb // need.ram_mb)
        if need.gpus:
            counts.append(len(self.devices) * WHOLE // (need.gpus * need.share))
        counts += [self.custom.get(name, 0) // amount for name, amount in need.custom if amount]
        return min(counts, default=self.slots)

    def has_free(self) -> bool:
        """Whether anything of its unit of concurrency is left: a share of a device, or the CPUs of a slot."""
        if self.devices:
            return any(device.free_share for device in self.devices)
        return self.free_cpus >= self.slot_cpus

    def knows_devices(self, need: Need, devices: tuple[int, ...]) -> bool:
        """Whether `need` could be on these devices at all: as many as it asks for, all different, all there."""
        if len(devices) != need.gpus or len(set(devices)) != need.gpus:
            return False
        return all(0 <= index < len(self.devices) for index in devices)

    def reserve_exactly(self, need: Need, devices: tuple[int, ...]) -> None:
        """Take `need` on these devices, as the worker said that it did; what is free may become negative by it."""
        self.free_cpus -= need.cpus
        self.free_ram_mb -= need.ram_mb
        if devices or need.custom:
            self._apply_rest(need, devices, -1)

    def release(self, need: Need, devices: tuple[int, ...]) -> None:
        """Give back what `reserve` took."""
        self.free_cpus += need.cpus
        self.free_ram_mb += need.ram_mb
        if devices or need.custom:
            self._apply_rest(need, devices, 1)

    def _apply_rest(self, need: Need, devices: tuple[int, ...], sign: int) -> None:
        for index in devices:
            device = self.devices[index]
            device.free_share += sign * need.share
            device.free_mb += sign * need.gpu_mb
        for name, amount in need.custom:
            self.free_custom[name] = self.free_custom.get(name, 0) + sign * amount

    def pick(self, need: Need) -> tuple[int, ...] | None:
        """The devices that `reserve` would take, where it needs any; None: more than are free. O(devices)."""
        fitting = [
            (device.free_share, index)
            for index, device in enumerate(self.devices)
            if device.free_share >= need.share and device.free_mb >= need.gpu_mb and need.gpu_model in device.model
        ]
        if len(fitting) < need.gpus:
            return None
        if need.share < WHOLE:
            return (min(fitting)[1],)
        return tuple(index for _, index in fitting[: need.gpus])


def _gpus(need: Need) -> str:
    if need.share < WHOLE:
        return f"{need.share / WHOLE:g} of a GPU"
    return f"{need.gpus} GPU{'s' if need.gpus > 1 else ''}"
