"""Clusters to simulate: rows of `count, num_gpus, gpu_model, gpu_memory_gb, cpus, ram_gb`, from TOML or CSV.

In TOML each row is a table of one array, whatever its name: `[[worker]]`. openb's node files are read, too. Where a row
does not say how many CPUs a worker has, it has as many as GPUs, and one at least; where it does not say how much RAM,
it has enough.
"""

from __future__ import annotations

import csv
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from schedd.core.model import WorkerId, WorkerResources
from schedd.errors import TraceError
from schedd.simulate.files import text_of
from schedd.simulate.layouts import columns_of, table

MIB_PER_GB = 1024.0
RAM_ENOUGH_GB = 1e6
GPU_MEMORY_ENOUGH_GB = 1e4
WORKERS_MAX = 100_000
RETRIES_ENOUGH = 1_000_000
HINT = (
    "a row has: count, num_gpus, gpu_model, gpu_memory_gb, cpus, ram_gb, name, joins_s, leaves_s, "
    "fail_share, fail_after, slow_factor, slow_from_s, slow_until_s, latency_s"
)


class ClusterRow(Struct, frozen=True, forbid_unknown_fields=True):
    """Some equal workers. `joins_s`, `leaves_s`: when, in seconds after the first submit; None: never.

    fail_share: of the attempts, so many fail there; fail_after: having done so much of the work. slow_factor: how fast
    it is from `slow_from_s` to `slow_until_s`, of its full speed. latency_s: of a message, one way.
    """

    count: Annotated[int, Meta(ge=1, le=WORKERS_MAX)] = 1
    num_gpus: Annotated[int, Meta(ge=0, le=1024)] = 0
    gpu_model: str = ""
    gpu_memory_gb: Annotated[float, Meta(ge=0, le=1e6)] | None = None
    cpus: Annotated[float, Meta(gt=0, le=1e5)] | None = None
    ram_gb: Annotated[float, Meta(ge=0, le=1e7)] | None = None
    name: str = ""
    joins_s: Annotated[float, Meta(ge=0, le=1e9)] = 0.0
    leaves_s: Annotated[float, Meta(ge=0, le=1e9)] | None = None
    fail_share: Annotated[float, Meta(ge=0, le=1)] = 0.0
    fail_after: Annotated[float, Meta(ge=0, le=1)] = 0.5
    slow_factor: Annotated[float, Meta(gt=0, le=1000)] = 1.0
    slow_from_s: Annotated[float, Meta(ge=0, le=1e9)] = 0.0
    slow_until_s: Annotated[float, Meta(ge=0, le=1e9)] | None = None
    latency_s: Annotated[float, Meta(ge=0, le=3600)] = 0.0

    def resources(self) -> WorkerResources:
        """What each of them declares."""
        return WorkerResources(
            cpus=self.cpus if self.cpus is not None else max(1, self.num_gpus),
            ram_gb=self.ram_gb if self.ram_gb is not None else RAM_ENOUGH_GB,
            num_gpus=self.num_gpus,
            gpu_model=self.gpu_model,
            gpu_memory_gb=self.gpu_memory_gb if self.gpu_memory_gb is not None else GPU_MEMORY_ENOUGH_GB,
        )


def read_cluster(path: str | Path) -> list[ClusterRow]:
    """Read a cluster file. Raises TraceError, with what is wrong with it."""
    path = Path(path)
    text = text_of(path)
    rows = _toml(path, text) if path.suffix == ".toml" else _csv(path, text)
    if not rows:
        raise TraceError(f"{path} has no workers", HINT)
    if sum(row.count for row in rows) > WORKERS_MAX:
        raise TraceError(f"{path} has more than {WORKERS_MAX:,} workers")
    return rows


def named(cluster: Sequence[ClusterRow]) -> list[tuple[WorkerId, ClusterRow]]:
    """Each single worker of a cluster, by the name that it has."""
    names = {row.name for row in cluster}
    workers: list[tuple[WorkerId, ClusterRow]] = []
    for row in cluster:
        for number in range(row.count):
            name = f"{row.name}-{number}" if row.name and row.count > 1 else row.name or f"w{len(workers)}"
            while not row.name and name in names:
                name += "+"
            workers.append((WorkerId(name), row))
    return workers


def retries_for(cluster: Iterable[ClusterRow]) -> dict[str, int]:
    """What `[retries]` is to say where nobody says it: what workers fail is tried again until it succeeds."""
    return {"error": RETRIES_ENOUGH} if any(row.fail_share for row in cluster) else {}


def parse_row(text: str) -> ClusterRow:
    """Read `gpus=2,model=A100,memory=80,cpus=16,ram=128,count=1`, or any names of a row. Raises ValueError."""
    short = {"gpus": "num_gpus", "model": "gpu_model", "memory": "gpu_memory_gb", "ram": "ram_gb"}
    values = {}
    for part in text.split(","):
        name, sign, value = part.partition("=")
        if not sign:
            raise ValueError(f"{part!r} is not of the form NAME=VALUE")
        values[short.get(name.strip(), name.strip())] = value.strip()
    try:
        return _row(values)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None


def _row(values: Mapping[str, Any]) -> ClusterRow:
    """A row of a file. Raises ValueError."""
    row = msgspec.convert(values, ClusterRow, strict=False)
    if row.leaves_s is not None and row.leaves_s <= row.joins_s:
        raise ValueError(f"leaves_s is {row.leaves_s:g}, which is not after joins_s, {row.joins_s:g}")
    return row


def _toml(path: Path, text: str) -> list[ClusterRow]:
    try:
        tables = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise TraceError(f"{path}: {error}", HINT) from None
    rows = []
    for name, value in tables.items():
        if isinstance(value, dict):
            raise TraceError(f"{path}: [{name}] is one table, and the workers are an array", f"write [[{name}]]")
        for number, values in enumerate(value if isinstance(value, list) else (), 1):
            try:
                rows.append(_row(values))
            except ValueError as error:
                raise TraceError(f"{path}, [[{name}]] {number}: {error}", HINT) from None
    return rows


def _csv(path: Path, text: str) -> list[ClusterRow]:
    reader = table(text)
    columns = columns_of(path, reader)
    read = _openb if {"cpu_milli", "memory_mib", "gpu", "model"} <= set(columns) else _plain
    if read is _plain and columns and not set(columns) & set(ClusterRow.__struct_fields__):
        what = "it looks like JSON" if text.lstrip()[:1] in ("{", "[") else f"its columns are {', '.join(columns)}"
        raise TraceError(f"{path} is no cluster that is known: {what}", HINT)
    rows = []
    try:
        for values in reader:
            if not any(cell and cell.strip() for name, cell in values.items() if name is not None):
                continue  # spreadsheets write rows of commas
            if None in values:
                raise ValueError(f"it has more cells than there are columns, which are {len(columns)}")
            rows.append(read(values))
    except (ValueError, TypeError, csv.Error) as error:
        raise TraceError(f"{path}, line {reader.line_num}: {error}", HINT) from None
    return _together(rows)


def _plain(values: Mapping[str, str | None]) -> ClusterRow:
    return _row({name: value.strip() for name, value in values.items() if value and value.strip()})


def _openb(values: Mapping[str, str]) -> ClusterRow:
    cpus, ram = float(values["cpu_milli"]) / 1000, float(values["memory_mib"]) / MIB_PER_GB
    return _row({"num_gpus": values["gpu"], "gpu_model": values["model"] or "", "cpus": cpus, "ram_gb": ram})


def _together(rows: Iterable[ClusterRow]) -> list[ClusterRow]:
    """Count equal rows that follow one another."""
    counted: list[ClusterRow] = []
    for row in rows:
        if counted and msgspec.structs.replace(counted[-1], count=row.count) == row:
            counted[-1] = msgspec.structs.replace(row, count=counted[-1].count + row.count)
        else:
            counted.append(row)
    return counted
