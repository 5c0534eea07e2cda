"""A service that nobody connects to, and what its metrics say."""

from __future__ import annotations

import asyncio
import random

from prometheus_client import Metric

from schedd.address import Address
from schedd.assembly import engine_settings
from schedd.config import Settings
from schedd.core import events as ev
from schedd.core.engine import Engine
from schedd.core.model import (
    Command,
    Gpu,
    GpuUsage,
    HostUsage,
    TaskEntry,
    TaskRequirements,
    TaskSpec,
    WorkerId,
    WorkerResources,
)
from schedd.server.clock import Clock
from schedd.server.meter import Meter
from schedd.server.metrics import Metrics
from schedd.server.service import Service


class Daemon:
    """A service with an engine, on the running loop, that nobody connects to."""

    def __init__(self) -> None:
        settings, self.clock = Settings(), Clock()
        self.engine = Engine(settings.policy.build(), engine_settings(settings), random.Random(1))
        reactor = asyncio.get_running_loop()
        rng = random.Random(1)
        self.service = Service(self.engine, self.clock, settings, _raise, reactor, rng)
        self.service.address = Address("127.0.0.1", 1)
        self.meter = self.service.meter = Meter(0)
        self.meter.measure(self.engine, self.clock)
        self.metrics = Metrics(self.service, self.meter)

    def handle(self, *events: ev.Event) -> None:
        self.meter.note(self.engine.handle(events, self.clock.now_ns()).facts, self.engine.tasks)

    def families(self) -> dict[str, Metric]:
        return {family.name: family for family in self.metrics.steps() if family is not None}


def _raise(error: BaseException) -> None:
    raise error


def worker(name: str, model: str, gpus: int) -> tuple[ev.WorkerJoined, ev.Heartbeat]:
    devices = tuple(Gpu(f"{name}-{i}", model, 40_000) for i in range(gpus))
    usage = HostUsage(ram_used_bytes=1 << 30, gpus=tuple(GpuUsage(gpu.uuid, 1000) for gpu in devices))
    resources = WorkerResources(cpus=8, ram_gb=16, gpus=devices)
    return ev.WorkerJoined(WorkerId(name), "one", resources, []), ev.Heartbeat(WorkerId(name), usage)


def submit(requirements: list[TaskRequirements], kinds: list[str]) -> ev.SubmitTasks:
    specs = [
        TaskSpec(Command(["x"]), kind=kind, requirements=need) for kind, need in zip(kinds, requirements, strict=True)
    ]
    return ev.SubmitTasks(1, specs, [TaskEntry(i) for i in range(len(specs))])
