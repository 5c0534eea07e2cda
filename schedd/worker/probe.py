"""Measures the machine: what it has (`detect_resources`), and what is used of it now (`Probe`). The only room that
knows hardware.

Everything is optional: without a driver, without its library, or with a card that does not tell, the worker goes on
with what it has.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import psutil
import pynvml

from schedd.config import WorkerSettings
from schedd.core.model import Gpu, GpuUsage, HostUsage, WorkerResources
from schedd.log import Log

_log = Log("schedd.worker.probe")
_T = TypeVar("_T")
MIB = 1024 * 1024
GIB = 1024 * MIB


def detect_resources(settings: WorkerSettings) -> WorkerResources:
    """Find out what this machine has; settings win. CPUs are those that this process may use."""
    gpus = Nvml().devices() if settings.gpus == "auto" else ()
    ram_gb = settings.ram_gb if settings.ram_gb is not None else psutil.virtual_memory().total / GIB
    return WorkerResources(
        cpus=settings.cpus if settings.cpus is not None else float(len(os.sched_getaffinity(0))),
        ram_gb=ram_gb,
        num_gpus=len(gpus),
        gpu_memory_gb=min((gpu.memory_mb for gpu in gpus), default=0) / 1024,
        gpu_model=gpus[0].model if gpus else "",
        gpus=gpus,
        labels=settings.labels,
        custom=settings.custom,
    )


class Nvml:
    """The GPU driver's answers; each call may fail for itself and then answers None."""

    def __init__(self) -> None:
        self.is_there = False
        try:
            pynvml.nvmlInit()
            self.is_there = True
        except pynvml.NVMLError as error:
            _log.debug("no_gpu_driver", reason=str(error))

    def devices(self) -> tuple[Gpu, ...]:
        """List the devices by index; of a card that is cut up (MIG), its slices."""
        found = []
        for handle in self._handles():
            uuid = _ask(pynvml.nvmlDeviceGetUUID, handle)
            if uuid is None:
                _log.warning("gpu_left_out", reason="the driver does not tell its uuid")
                continue
            total = _memory(handle)[0]
            found.append(Gpu(uuid, _ask(pynvml.nvmlDeviceGetName, handle) or "", (total or 0) // MIB))
        return tuple(found)

    def usage(self) -> tuple[GpuUsage, ...]:
        """Measure each device; one whose uuid cannot be had is left out."""
        return tuple(usage for handle in self._handles() if (usage := _usage_of(handle)) is not None)

    def _handles(self) -> list[Any]:
        if not self.is_there:
            return []
        handles = []
        for index in range(_ask(pynvml.nvmlDeviceGetCount) or 0):
            handle = _ask(pynvml.nvmlDeviceGetHandleByIndex, index)
            if handle is not None:
                handles += self._slices(handle) or [handle]
        return handles

    def _slices(self, handle: Any) -> list[Any]:
        mode = _ask(pynvml.nvmlDeviceGetMigMode, handle)
        if not mode or mode[0] != pynvml.NVML_DEVICE_MIG_ENABLE:
            return []
        count = _ask(pynvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0
        slices = (_ask(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, index) for index in range(count))
        return [piece for piece in slices if piece is not None]


def _ask(function: Callable[..., _T], *arguments: Any) -> _T | None:
    try:
        return function(*arguments)
    except pynvml.NVMLError:
        return None


def _memory(handle: Any) -> tuple[int | None, int | None]:
    """Total and used bytes. Version 2 of the question does not count the driver's own reserve as used."""
    memory = _ask(pynvml.nvmlDeviceGetMemoryInfo, handle, pynvml.nvmlMemory_v2)
    memory = memory or _ask(pynvml.nvmlDeviceGetMemoryInfo, handle)
    return (int(memory.total), int(memory.used)) if memory is not None else (None, None)


def _usage_of(handle: Any) -> GpuUsage | None:
    uuid = _ask(pynvml.nvmlDeviceGetUUID, handle)
    if uuid is None:
        return None
    used = _memory(handle)[1]
    rates = _ask(pynvml.nvmlDeviceGetUtilizationRates, handle)
    temperature = _ask(pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU)
    processes = _ask(pynvml.nvmlDeviceGetComputeRunningProcesses, handle)
    return GpuUsage(
        uuid,
        used // MIB if used is not None else None,
        float(rates.gpu) if rates is not None else None,
        float(temperature) if temperature is not None else None,
        len(processes) if processes is not None else None,
    )


class Probe:
    """Measures in a thread of its own, since a driver may take seconds to answer; `latest` never waits."""

    def __init__(self, *, gpus: bool) -> None:
        self._gpus = gpus
        self._due = threading.Event()
        self._over = False
        self._net: tuple[float, int, int] | None = None
        self.latest = HostUsage()
        # A daemon thread: one that hangs in the driver must not keep the program.
        self._thread = threading.Thread(target=self._run, name="schedd-probe", daemon=True)
        self._thread.start()
        self.ask()

    def ask(self) -> None:
        """Measure soon. While one measurement is going on, others are not queued."""
        self._due.set()

    def close(self) -> None:
        self._over = True
        self._due.set()

    def _run(self) -> None:
        nvml = Nvml() if self._gpus else None
        psutil.cpu_percent()  # the first answer has nothing to compare with
        while True:
            self._due.wait()
            self._due.clear()
            if self._over:
                return
            try:
                self.latest = self._measure(nvml)
            except (OSError, psutil.Error, RuntimeError) as error:
                _log.warning("probe_failed", reason=str(error))

    def _measure(self, nvml: Nvml | None) -> HostUsage:
        memory = psutil.virtual_memory()
        net_in, net_out = self._network_rates()
        return HostUsage(
            cpu_percent=psutil.cpu_percent(),
            ram_used_bytes=memory.total - memory.available,
            ram_total_bytes=memory.total,
            net_in_bytes_s=net_in,
            net_out_bytes_s=net_out,
            load_1m=os.getloadavg()[0],
            gpus=nvml.usage() if nvml is not None else (),
        )

    def _network_rates(self) -> tuple[float, float]:
        counters = psutil.net_io_counters()
        if counters is None:
            return 0.0, 0.0
        now, previous = time.monotonic(), self._net
        self._net = (now, counters.bytes_recv, counters.bytes_sent)
        if previous is None or now <= previous[0]:
            return 0.0, 0.0
        passed = now - previous[0]
        # A counter that went back belongs to an interface that went away.
        return (
            max(0, counters.bytes_recv - previous[1]) / passed,
            max(0, counters.bytes_sent - previous[2]) / passed,
        )
