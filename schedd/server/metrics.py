"""Metrics for Prometheus, read from the tables when somebody asks.

The number of series is bounded, however many workers, kinds and classes there are: a label has its most frequent values
and "other". Reading takes some milliseconds, in steps that leave the loop to others, and a second's worth of questions
shares one answer.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

from msgspec import Struct
from prometheus_client import CollectorRegistry, Metric, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

import schedd
from schedd.core.model import Cause, TaskRequirements, WorkerInfo, WorkerStatus
from schedd.core.needs import WHOLE
from schedd.core.tasks import FINAL, TRANSITIONS
from schedd.server.connections import Traffic
from schedd.server.meter import LABEL_MAX, OTHER, Meter
from schedd.server.service import Service
from schedd.tally import Histogram

#: The format that every Prometheus reads.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

#: Values of the labels `request` and `model`, beside "other".
CLASSES_SHOWN_MAX = 20
MODELS_SHOWN_MAX = 20
#: Request classes that are looked at. A queue with more of them has nearly all of them different.
CLASSES_LOOKED_MAX = 5000
#: Rows that one step looks at: some 300 us.
ROWS_PER_STEP = 50
#: Seconds of the loop's time after which others have their turn.
STEP_S = 0.002
#: Who asks within so many seconds of the last answer gets that.
FRESH_S = 1.0

MB = 1024 * 1024


class Commits(Protocol):
    """What is told of the journal."""

    commit_seconds: Histogram

    @property
    def history_bytes(self) -> int: ...


class Devices(Struct):
    """What is summed up of the devices of one model; memory in MiB."""

    count: int = 0
    reserved: int = 0
    memory: int = 0
    memory_reserved: int = 0
    memory_used: int = 0
    memory_usable: int = 0


class Fleet(Struct):
    """What is summed up of the workers; thousandths of CPUs, memory in MiB."""

    statuses: dict[str, int]
    devices: dict[str, Devices]
    cpus: int = 0
    cpus_reserved: int = 0
    ram: int = 0
    ram_reserved: int = 0
    ram_used: int = 0
    backlog: int = 0


class _One(Collector):
    """A registry of one family, since the client's library writes nothing but registries."""

    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> Iterable[Metric]:
        return (self._family,)


class Metrics:
    """Answers what `/metrics` asks. `journal` is set once there is one."""

    def __init__(self, service: Service, meter: Meter) -> None:
        self.journal: Commits | None = None
        self._service = service
        self._meter = meter
        self._process = ProcessCollector(registry=CollectorRegistry())
        self._asking: asyncio.Task[bytes] | None = None
        self._fresh_until = 0.0

    async def text(self) -> bytes:
        """All metrics, in the text format."""
        loop = asyncio.get_running_loop()
        asking = self._asking
        if asking is None or (asking.done() and (loop.time() >= self._fresh_until or asking.exception() is not None)):
            asking = self._asking = asyncio.ensure_future(self._write())
        return await asyncio.shield(asking)

    async def _write(self) -> bytes:
        loop = asyncio.get_running_loop()
        parts: list[bytes] = []
        began = loop.time()
        for family in self.steps():
            if family is not None:
                parts.append(generate_latest(_One(family)))
            if loop.time() - began > STEP_S:
                await asyncio.sleep(0)
                began = loop.time()
        self._fresh_until = loop.time() + FRESH_S
        return b"".join(parts)

    def steps(self) -> Iterator[Metric | None]:
        """Yield each family as it is now, and None where others may have their turn."""
        service = self._service
        yield _info("schedd_build", "The version of schedd that runs.", version=schedd.__version__)
        yield _gauge(
            "schedd_ready", "Whether submits are taken: 1, or 0 where /readyz says why not.", int(not service.not_ready)
        )
        yield _gauge(
            "schedd_loop_lag_seconds", "The worst delay of the event loop in the last 30 to 60 s.", service.lag.recent_s
        )
        yield from self._process.collect()
        yield from self._wire(service.traffic)
        yield from self._journal()
        if service.address is None:
            return  # the tables are being filled
        yield from self._tasks()
        yield from self._queue()
        yield from self._placement()
        yield from self._kinds()
        yield from self._workers()

    def _wire(self, traffic: Traffic) -> Iterator[Metric]:
        total, workers = self._service.connection_count, self._service.worker_connection_count
        yield _gauges(
            "schedd_connections",
            "Open connections, by who is at the other end.",
            "peer",
            {"worker": workers, "client": total - workers},
        )
        yield _counters(
            "schedd_wire_received_bytes",
            "Bytes that came over the wire; until its greeting everybody is a client.",
            "peer",
            {"worker": traffic.from_workers, "client": traffic.from_clients},
        )
        yield _counters(
            "schedd_wire_sent_bytes",
            "Bytes that were handed to the system for the wire.",
            "peer",
            {"worker": traffic.to_workers, "client": traffic.to_clients},
        )

    def _journal(self) -> Iterator[Metric]:
        promises, journal = self._service.promises, self.journal
        yield _gauge(
            "schedd_journal_failing", "1 while the journal cannot be written, else 0.", int(bool(promises.failure))
        )
        yield _gauge(
            "schedd_journal_waiting_turns",
            "Turns of the engine that have promised something and are not on disk yet.",
            promises.pending_count,
        )
        if journal is not None:
            yield _gauge(
                "schedd_journal_history_bytes",
                "What the history takes in the journal; [journal] keep_mb bounds it.",
                journal.history_bytes,
            )
            family = HistogramMetricFamily(
                "schedd_journal_commit_seconds", "How long transactions of the journal took, with their sync."
            )
            _add(family, [], journal.commit_seconds)
            yield family

    def _tasks(self) -> Iterator[Metric]:
        engine = self._service.engine
        counts, counters = engine.tasks.counts, engine.counters
        unfinished = {kind.__name__.lower(): counts[kind] for kind in TRANSITIONS if kind not in FINAL}
        yield _gauges("schedd_tasks", "Unfinished tasks by state.", "state", unfinished)
        yield _counter("schedd_tasks_submitted", "Tasks that were admitted.", counters.submitted)
        yield _counters(
            "schedd_tasks_finished", "Tasks that came to an end, by final state.", "state", self._meter.finished
        )
        causes = {str(cause): counters.by_cause.get(cause, 0) for cause in Cause}
        yield _counters("schedd_attempts", "Attempts that ended, by cause.", "cause", causes)
        yield _counter(
            "schedd_stale_reports", "Reports of workers on attempts that are not theirs any more.", counters.stale
        )

    def _queue(self) -> Iterator[Metric | None]:
        """What is queued by what it asks for."""
        engine = self._service.engine
        total = engine.tasks.counts[_QUEUED]
        sizes: dict[str, int] = {}
        for looked, (requirements, size) in enumerate(engine.queued(CLASSES_LOOKED_MAX), 1):
            name = class_name(requirements)
            sizes[name] = sizes.get(name, 0) + size
            if not looked % ROWS_PER_STEP:
                yield None
        shown = _most(sizes, CLASSES_SHOWN_MAX)
        shown[OTHER] = max(0, total - sum(size for name, size in shown.items() if name != OTHER))
        yield _gauges("schedd_queued_tasks", "Queued tasks by what they ask for.", "request", shown)

    def _placement(self) -> Iterator[Metric]:
        engine = self._service.engine
        policy, totals = engine.policy.name, engine.steals.totals
        shadow = engine.shadow.policy if engine.shadow is not None else ""
        yield _info("schedd_policy", "The policy that decides, and the one that is asked beside it.", policy, shadow)
        passes = HistogramMetricFamily(
            "schedd_placement_pass_seconds",
            "How long the policy took for one placement pass, which places any number of tasks.",
            labels=["policy"],
        )
        for name, tally in self._meter.passes.items():
            _add(passes, [name], tally)
        yield passes
        yield _counter("schedd_placements", "Attempts that were given to a worker.", engine.counters.placements)
        yield _counter("schedd_steals", "Tasks that moved to another worker's backlog.", engine.counters.steals)
        yield _counter("schedd_steals_asked", "Steals that were asked of a victim.", totals.asked)
        yield _counter("schedd_steals_refused", "Steals of which a victim gave nothing.", totals.refused)
        yield _gauge(
            "schedd_awaited_workers",
            "Workers that were there before the restart and may still come back; nothing is placed meanwhile.",
            len(engine.awaited),
        )

    def _kinds(self) -> Iterator[Metric]:
        kinds = self._meter.kinds
        kinds.choose()
        delay = HistogramMetricFamily(
            "schedd_queueing_delay_seconds", "From the submit of a task to its first start, by kind.", labels=["kind"]
        )
        runtime = HistogramMetricFamily(
            "schedd_runtime_seconds", "How long attempts that went well have run, by kind.", labels=["kind"]
        )
        for kind, tally in (*kinds.shown.items(), (OTHER, kinds.other)):
            _add(delay, [kind], tally.delay)
            _add(runtime, [kind], tally.runtime)
        yield delay
        yield runtime

    def _workers(self) -> Iterator[Metric | None]:
        fleet = Fleet(dict.fromkeys((str(status) for status in WorkerStatus if status != WorkerStatus.DEAD), 0), {})
        for looked, worker in enumerate(list(self._service.engine.resources), 1):
            _sum_up(worker, fleet)
            if not looked % ROWS_PER_STEP:
                yield None
        yield _gauges("schedd_workers", "Workers by status.", "status", fleet.statuses)
        yield _gauge("schedd_backlog_tasks", "Tasks that wait in backlogs of workers.", fleet.backlog)
        yield _gauge("schedd_cpus", "CPUs that workers offer.", fleet.cpus / WHOLE)
        yield _gauge("schedd_cpus_reserved", "CPUs that are reserved for attempts.", fleet.cpus_reserved / WHOLE)
        yield _gauge("schedd_ram_bytes", "RAM that workers offer.", fleet.ram * MB)
        yield _gauge("schedd_ram_reserved_bytes", "RAM that is reserved for attempts.", fleet.ram_reserved * MB)
        yield _gauge(
            "schedd_ram_used_bytes", "RAM in use on the machines of the workers, as measured.", fleet.ram_used * MB
        )
        devices = _fewer(fleet.devices)
        yield _gauges("schedd_devices", "GPUs that workers offer.", "model", {n: d.count for n, d in devices.items()})
        yield _gauges(
            "schedd_devices_reserved",
            "GPUs that are reserved for attempts, shares added up.",
            "model",
            {name: each.reserved / WHOLE for name, each in devices.items()},
        )
        for field, text in _MEMORY:
            values = {name: getattr(each, field) * MB for name, each in devices.items()}
            yield _gauges(f"schedd_device_{field}_bytes", text, "model", values)


_QUEUED = next(state for state in TRANSITIONS if state.__name__ == "Queued")
_MEMORY = (
    ("memory", "Memory of the GPUs."),
    ("memory_reserved", "Memory of the GPUs that is reserved for attempts."),
    ("memory_used", "Memory of the GPUs in use, as measured, whoever uses it."),
    (
        "memory_usable",
        "Memory of the GPUs of workers that take work: what is neither reserved nor, where that is more, in use.",
    ),
)


def class_name(requirements: TaskRequirements) -> str:
    """What tasks ask for, as a label: "cpus=1", or "gpus=2 gpu_model=A100 cpus=8 | cpus=64" with an alternative."""
    text = " | ".join(map(_asked, (requirements, *requirements.variants[:3])))
    return _label(text)


def _asked(r: TaskRequirements) -> str:
    parts = {
        "gpus": r.min_gpus,
        "gpu_memory": r.min_memory,
        "gpu_model": r.gpu_model,
        "cpus": r.cpus,
        "ram": r.ram,
        **r.labels,
        **r.custom,
    }
    words = (
        f"{name}={value:g}" if isinstance(value, float | int) else f"{name}={value}"
        for name, value in parts.items()
        if value
    )
    return " ".join(words) or "nothing"


def _label(text: str) -> str:
    """A text of a peer as a label: short, of one line."""
    return "".join(c if c.isprintable() else "?" for c in text[:LABEL_MAX])


def _most(counts: Mapping[str, int], most: int) -> dict[str, int]:
    """The largest of counts; those of equal size by name."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:most])


def _sum_up(worker: WorkerInfo, fleet: Fleet) -> None:
    status, ledger, usage = str(worker.status), worker.ledger, worker.usage
    fleet.statuses[status] = fleet.statuses.get(status, 0) + 1
    fleet.backlog += len(worker.task_queue)
    if ledger is None:
        return
    fleet.cpus += ledger.cpus
    fleet.cpus_reserved += ledger.cpus - ledger.free_cpus
    fleet.ram += ledger.ram_mb
    fleet.ram_reserved += ledger.ram_mb - ledger.free_ram_mb
    fleet.ram_used += usage.ram_used_bytes // MB if usage is not None else 0
    measured = {gpu.uuid: gpu.used_mb or 0 for gpu in usage.gpus} if usage is not None else {}
    takes_work = worker.accepts_work
    for device in ledger.devices:
        row = fleet.devices.get(device.model)
        if row is None:
            row = fleet.devices[device.model] = Devices()
        reserved, used = device.memory_mb - device.free_mb, measured.get(device.uuid, 0)
        row.count += 1
        row.reserved += WHOLE - device.free_share
        row.memory += device.memory_mb
        row.memory_reserved += reserved
        row.memory_used += used
        row.memory_usable += max(0, device.memory_mb - max(reserved, used)) if takes_work else 0


def _fewer(devices: Mapping[str, Devices]) -> dict[str, Devices]:
    """The most frequent models by label, and all others as "other"."""
    shown: dict[str, Devices] = {}
    for model, row in sorted(devices.items(), key=lambda item: (-item[1].count, item[0])):
        label = _label(model) or "unknown"
        if label not in shown and len(shown) >= MODELS_SHOWN_MAX:
            label = OTHER
        known = shown.setdefault(label, Devices())
        for field in Devices.__struct_fields__:
            setattr(known, field, getattr(known, field) + getattr(row, field))
    return shown


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _gauges(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=[label])
    for each, value in values.items():
        family.add_metric([each], value)
    return family


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=value)


def _counters(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = CounterMetricFamily(name, text, labels=[label])
    for each, value in values.items():
        family.add_metric([each], value)
    return family


def _info(name: str, text: str, policy: str = "", shadow: str = "", *, version: str = "") -> Metric:
    """A gauge that is 1, whose labels tell something."""
    told = {"version": version} if version else {"policy": policy, "shadow": shadow}
    family = GaugeMetricFamily(f"{name}_info", text, labels=list(told))
    family.add_metric(list(told.values()), 1)
    return family


def _add(family: HistogramMetricFamily, labels: list[str], tally: Histogram) -> None:
    buckets = [("+Inf" if bound == math.inf else repr(bound), float(n)) for bound, n in tally.cumulative()]
    family.add_metric(labels, buckets, tally.total)
