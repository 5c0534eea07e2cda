"""What stands beside traces: tables of measured speeds, and files that are no trace, with what to do with each."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection
from pathlib import Path

from schedd.errors import TraceError
from schedd.simulate.files import text_of

SPEED_COLUMNS = ("job_type", "scale_factor", "gpu", "steps_per_s")


class Speeds:
    """Training steps per second by type of job, number of devices and device model.

    Where a type was measured on one server and across several, the one server counts. A speed of 0: it does not run.
    """

    def __init__(self) -> None:
        self._by_job: dict[tuple[str, int], dict[str, float]] = {}
        self._scales: dict[str, list[int]] = {}
        self.models: list[str] = []

    def add(self, job_type: str, scale: int, model: str, steps_per_s: float, *, is_consolidated: bool) -> None:
        """Enter a measurement."""
        if model not in self.models:
            self.models.append(model)
        speeds = self._by_job.setdefault((job_type, scale), {})
        if is_consolidated or model not in speeds:
            speeds[model] = steps_per_s
        scales = self._scales.setdefault(job_type, [])
        if scale not in scales:
            scales.append(scale)

    def runtimes(self, job_type: str, devices: int, steps: float) -> dict[str, float]:
        """Seconds on each device model on which such a job runs.

        On more devices than it was measured on it is as fast as on the most that are fewer. Raises ValueError for a
        type that is not known.
        """
        scales = [scale for scale in self._scales.get(job_type, ()) if scale <= devices]
        if not scales:
            raise ValueError(f"the speed of {job_type!r} on {devices} devices is not among the throughputs")
        speeds = self._by_job[job_type, max(scales)]
        return {model: steps / speed for model, speed in speeds.items() if speed}


def _is_true(text: str) -> bool:
    """Raises ValueError for what is neither true nor false."""
    word = text.strip().lower()
    if word not in ("1", "1.0", "true", "0", "0.0", "false"):
        raise ValueError(f"consolidated is {text!r}, which is neither 1 nor 0")
    return word[0] in "1t"


def read_speeds(path: str | Path) -> Speeds:
    """Read a table of throughputs, as in Gavel's artifact. Raises TraceError."""
    path = Path(path)
    reader = table(text_of(path))
    missing = [column for column in SPEED_COLUMNS if column not in columns_of(path, reader)]
    if missing:
        raise TraceError(
            f"{path}: throughputs have a column {missing[0]!r}; here are {reader.fieldnames}",
            f"the columns are {', '.join(SPEED_COLUMNS)} and, if there are both, consolidated: 1 on one server",
        )
    speeds = Speeds()
    try:
        for row in reader:
            steps_per_s, scale = float(row["steps_per_s"]), int(row["scale_factor"])
            if not 0 <= steps_per_s < 1e12 or scale < 1:
                raise ValueError(f"no speed: {steps_per_s} steps per second on {scale} devices")
            is_consolidated = _is_true(row.get("consolidated") or "1")
            speeds.add(row["job_type"], scale, row["gpu"], steps_per_s, is_consolidated=is_consolidated)
    except (ValueError, TypeError, csv.Error) as error:
        raise TraceError(f"{path}, line {reader.line_num}: {error}") from None
    if not speeds.models:
        raise TraceError(f"{path} has no throughputs")
    return speeds


def table(text: str) -> csv.DictReader[str]:
    """The rows of a CSV file. Blanks after a comma are nobody's value."""
    return csv.DictReader(io.StringIO(text), skipinitialspace=True)


def columns_of(path: Path, reader: csv.DictReader[str]) -> list[str]:
    """The header of a file, without blanks around the names. Raises TraceError for what is no table."""
    try:
        columns = [column.strip() for column in reader.fieldnames or ()]
    except csv.Error as error:
        raise TraceError(f"{path}, line 1: {error}") from None
    reader.fieldnames = columns
    return columns


#: Files that somebody might take for a trace: columns, what they have, and what to do with it.
NO_TRACES: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (
        SPEED_COLUMNS,
        "has speeds of jobs, and no tasks",
        "give it as --throughputs, and as --trace a file of jobs: job_type, steps, submit_s, num_gpu",
    ),
    (
        ("job_type_a", "job_type_b"),
        "has speeds of pairs of jobs that share a device, and no tasks",
        "no run is slowed down by what else is on its device; tasks that share one have gpu_fraction and their runtime",
    ),
    (("cpu_milli", "memory_mib", "gpu", "model"), "has the nodes of a cluster, and no tasks", "give it as --cluster"),
    (
        ("num_gpus", "gpu_model"),
        "has the workers of a cluster, and no tasks: it has no runtime",
        "give it as --cluster; a trace has a column runtime_s, or runtime_s.MODEL for each device model",
    ),
    (
        ("job_num", "avg_run_time_gpu"),
        "has averages over whole clusters, and no tasks",
        "a trace has a row for each task, with its runtime",
    ),
    (
        ("config", "learning_rate"),
        "has configurations without their training times, and no tasks",
        "the learning curves of the same configurations (config, epoch, cum_time_s) are a trace",
    ),
)
LATENCY_HINT = (
    "with training times it makes a trace: runtime_s.MODEL = time * latency there / mean latency of the models"
)


def no_trace(path: Path, columns: Collection[str]) -> TraceError | None:
    """Say what a file is that is no trace, and what to do with it; None: nothing is known of such files."""
    for needs, has, hint in NO_TRACES:
        if all(column in columns for column in needs):
            return TraceError(f"{path} {has}", hint)
    return None


def unknown(path: Path, text: str, columns: Collection[str]) -> TraceError:
    """Say how a file looks of which nothing is known."""
    if text.lstrip()[:1] in ("{", "["):
        return TraceError(f"{path} is no trace that is known: it looks like JSON", "a trace is a CSV file, or SWF")
    if "arch" in columns and len(columns) > 1:
        others = ", ".join(column for column in columns if column != "arch")
        return TraceError(f"{path} is no trace that is known: beside arch it has {others}", LATENCY_HINT)
    return TraceError(
        f"{path} is no trace that is known: its columns are {', '.join(columns) or 'none'}",
        "a trace has a column runtime_s, or runtime_s.MODEL for each device model; or name its --format",
    )
