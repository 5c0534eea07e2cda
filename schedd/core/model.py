"""The vocabulary: ids, requirements, tasks, workers, and the states that a task can be in.

Times inside the core are integers of nanoseconds on the engine's clock (`Instant`): monotonic, and aligned with the
Unix epoch at the start of the daemon. Amounts of a requirement are in the user's units (GB, seconds, CPUs);
`core.capacity` compiles them to integers.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, MutableSequence, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NewType

import msgspec
from msgspec import Meta, Struct, field

if TYPE_CHECKING:
    from schedd.core.capacity import Ledger
    from schedd.core.classes import RequestClass

TaskId = NewType("TaskId", int)
WorkerId = NewType("WorkerId", str)
Instant = int
SECOND = 1_000_000_000

#: A frame of bytes may hold a thousand times as much memory and work: what it may list is bounded before it is read.
GPUS_MAX = 1024
NAMES_MAX = 10_000
VARIANTS_MAX = 64
IDS_MAX = 1_000_000


class Cause(StrEnum):
    """Why an attempt ended."""

    OK = "ok"
    ERROR = "error"
    TIMEOUT = "timeout"
    OOM_HOST = "oom_host"
    OOM_GPU = "oom_gpu"
    LOST = "lost"
    PREEMPTED = "preempted"
    CANCELLED = "cancelled"
    REJECTED = "rejected"


class WorkerStatus(StrEnum):
    """What is believed of a worker. `busy`: nothing of it is free; `unreachable`: silent, its tasks stay its own.

    `quarantined`: attempts fail there far more often than elsewhere, so that it gets none but a probe.
    """

    IDLE = "idle"
    BUSY = "busy"
    UNREACHABLE = "unreachable"
    DRAINING = "draining"
    QUARANTINED = "quarantined"
    DEAD = "dead"


# --------------------------------------------------------------------------------------------- what a task asks for


def _amount(name: str, value: float, *, most: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{name} must be a number, not {value!r}")
    if not math.isfinite(value) or value < 0 or value > most:
        raise ValueError(f"{name} must be a number between 0 and {most:,.0f}, not {value!r}")


class TaskRequirements(Struct, frozen=True, omit_defaults=True):
    """What one attempt of a task needs on its worker.

    min_gpus: whole devices, or a fraction below 1 that shares one device. min_memory: GB of GPU memory on each
    device. estimated_time: seconds, a hint only. ram: GB. `variants` are alternatives, tried in order after this one.
    Raises ValueError for amounts that mean nothing.
    """

    min_gpus: float = 0
    min_memory: float = 0.0
    estimated_time: float | None = None
    cpus: float = 1.0
    ram: float = 0.0
    gpu_model: str = ""
    labels: Annotated[dict[str, str], Meta(max_length=NAMES_MAX)] = field(default_factory=dict)
    custom: Annotated[dict[str, float], Meta(max_length=NAMES_MAX)] = field(default_factory=dict)
    variants: Annotated[tuple[TaskRequirements, ...], Meta(max_length=VARIANTS_MAX)] = ()

    def __post_init__(self) -> None:
        # Upper bounds keep the integer forms small whatever a peer sends.
        _amount("min_gpus", self.min_gpus, most=GPUS_MAX)
        _amount("min_memory", self.min_memory, most=1e6)
        _amount("cpus", self.cpus, most=1e5)
        _amount("ram", self.ram, most=1e7)
        if self.min_gpus > 1 and self.min_gpus != int(self.min_gpus):
            raise ValueError(f"min_gpus must be whole, or a fraction below 1, not {self.min_gpus!r}")
        if 0 < self.min_gpus < 0.001:
            raise ValueError(f"a share of a GPU is at least 0.001, not {self.min_gpus!r}")
        if self.estimated_time is not None:
            _amount("estimated_time", self.estimated_time, most=1e9)
        for name, value in self.custom.items():
            _amount(f"custom.{name}", value, most=1e9)
        if len(self.variants) > VARIANTS_MAX:
            raise ValueError(f"at most {VARIANTS_MAX} variants, not {len(self.variants)}")
        if any(v.variants for v in self.variants):
            raise ValueError("a variant cannot have variants of its own")


NO_REQUIREMENTS = TaskRequirements()


class Command(Struct, frozen=True, tag="command"):
    """A program to run.

    `variable`, where set, names the environment variable that receives the task's argument (an array index, a line
    of a file); `{}` in argv is then replaced by it.
    """

    argv: list[str]
    env: dict[str, str] = field(default_factory=dict)
    cwd: str | None = None
    stdin: bytes = b""
    variable: str = ""


#: Programs whose first argument says better what is run than their own name.
INTERPRETERS = frozenset({"python", "python3", "bash", "sh", "node", "julia", "perl", "ruby", "Rscript"})


def kind_of(argv: Sequence[str]) -> str:
    """The kind of a command that was given none: its program, or the script or module that an interpreter runs."""
    program = argv[0].rpartition("/")[2] or argv[0]
    plain = program.rstrip("0123456789.")
    if (program in INTERPRETERS or plain in INTERPRETERS) and len(argv) > 1:
        if argv[1] == "-m" and len(argv) > 2:
            return argv[2]
        if not argv[1].startswith("-"):
            return argv[1].rpartition("/")[2] or program
    return program


class Call(Struct, frozen=True, tag="call"):
    """A Python callable: cloudpickle bytes that only workers open, or an import path ("package.module:name")."""

    function: bytes = b""
    path: str = ""


Payload = Command | Call


class TaskRules(Struct, frozen=True, omit_defaults=True):
    """How an attempt is bounded and a failure is answered. None: as the daemon's configuration says.

    A limit is how often a task is tried again after attempts that ended with a cause; 0 means "never again".
    `retries` is that of errors, and of timeouts that have none of their own; `oom_limit` is that of both kinds of
    memory. memory_growth: what an attempt that ran out of memory asked for, times this, is what the next one asks for.
    """

    timeout_s: float | None = None
    grace_s: float = 5.0
    retries: int | None = None
    lost_limit: int | None = None
    retry_delay_s: float | None = None
    retry_delay_max_s: float | None = None
    timeout_limit: int | None = None
    oom_limit: int | None = None
    rejected_limit: int | None = None
    memory_growth: float | None = None

    def __post_init__(self) -> None:
        if self.timeout_s is not None and not 0 < self.timeout_s <= 1e9:
            raise ValueError(f"timeout_s must be above 0 and at most 1,000,000,000, not {self.timeout_s!r}")
        _amount("grace_s", self.grace_s, most=86400)
        for name in ("retry_delay_s", "retry_delay_max_s"):
            if (delay := getattr(self, name)) is not None:
                _amount(name, delay, most=1e7)
        for name in ("retries", "lost_limit", "timeout_limit", "oom_limit", "rejected_limit"):
            if (limit := getattr(self, name)) is not None and not 0 <= limit <= 1_000_000:
                raise ValueError(f"{name} must be between 0 and 1,000,000, not {limit!r}")
        if self.memory_growth is not None and not 1 <= self.memory_growth <= 1000:
            raise ValueError(f"memory_growth must be between 1 and 1,000, not {self.memory_growth!r}")


DEFAULT_RULES = TaskRules()


# ------------------------------------------------------------------------------------------------- states of a task


class State(Struct, frozen=True, gc=False):
    """Where a task stands. Each state is a type with its data; `name` is its word everywhere outside the core."""

    name: ClassVar[str]
    is_final: ClassVar[bool] = False


class Held(State, frozen=True, gc=False):
    """Kept back by a user until released, or (`reason`) because nearly all of its kind fails."""

    name = "held"
    since_ns: Instant
    reason: str = ""


class Waiting(State, frozen=True, gc=False):
    """Waits for tasks that must succeed first (`TaskTable.missing` has which)."""

    name = "waiting"
    since_ns: Instant


class Delayed(State, frozen=True, gc=False):
    """Not before `until_ns`: a delayed start, or the pause before a retry."""

    name = "delayed"
    until_ns: Instant


class Queued(State, frozen=True, gc=False):
    """May start as soon as a worker fits."""

    name = "queued"
    since_ns: Instant


class Assigned(State, frozen=True, gc=False):
    """Dispatched to a worker that has not said that it started."""

    name = "assigned"
    worker_id: WorkerId
    at_ns: Instant


class Running(State, frozen=True, gc=False):
    """Started on a worker."""

    name = "running"
    worker_id: WorkerId
    at_ns: Instant
    started_at_ns: Instant


class Revoking(State, frozen=True, gc=False):
    """In a victim's backlog, asked back for a thief; refused if it has started meanwhile."""

    name = "revoking"
    worker_id: WorkerId
    at_ns: Instant
    thief_id: WorkerId
    #: Which worker of that name is meant; 0: none, it goes back to the queue.
    thief_seq: int = 0


class Succeeded(State, frozen=True, gc=False):
    name = "succeeded"
    is_final = True
    at_ns: Instant


class Failed(State, frozen=True, gc=False):
    name = "failed"
    is_final = True
    at_ns: Instant


class Cancelled(State, frozen=True, gc=False):
    name = "cancelled"
    is_final = True
    at_ns: Instant


class AttemptRecord(Struct, frozen=True, gc=False, array_like=True):
    """One attempt that has ended. Times are 0 where the attempt never came so far."""

    attempt: int
    worker_id: WorkerId
    dispatched_at_ns: Instant
    started_at_ns: Instant
    finished_at_ns: Instant
    cause: Cause
    exit_code: int | None = None
    signal: int | None = None
    message: str = ""
    devices: tuple[int, ...] = ()
    #: It failed on a worker in quarantine, which is not held against its task.
    excused: bool = False


class Report(Struct, frozen=True, gc=False, array_like=True):
    """A progress message from inside a running attempt (`schedd.report`)."""

    step: int
    metrics: dict[str, float]


# gc=False: a row refers to no container that refers back to it, and a full collection over 100,000 queued rows
# takes 8 ms instead of 19 (measured).
class Task(Struct, eq=False, gc=False, kw_only=True, repr_omit_defaults=True):
    """A row of the task table: what was submitted and how far it came. Changed only by its table.

    `requirements`, `payload` and `rules` are shared between the tasks of one submit.
    """

    id: TaskId
    kind: str = ""
    priority: float = 0.0
    requirements: TaskRequirements = NO_REQUIREMENTS
    payload: Payload | None = None
    argument: bytes = b""
    rules: TaskRules = DEFAULT_RULES
    job: str = ""
    key: str | None = None
    after: tuple[TaskId, ...] = ()
    not_before_ns: Instant = 0
    submitted_ns: Instant = 0
    #: When it was last said what it is and needs: its submit, or the last change of its requirements.
    defined_ns: Instant = 0
    #: Whose it is; "": nobody's, so that everybody may change it.
    owner: str = ""
    #: The number of the newest attempt; 0 before the first dispatch.
    attempt: int = 0
    state: State = Queued(0)
    #: Attempts so far that ended with a cause that has a limit; None: there were none.
    blamed: dict[Cause, int] | None = None
    #: The request class it is queued under, and the number of the level of that queue that holds it (0: none).
    request: RequestClass | None = None
    place: int = 0
    #: GPU indices that the current attempt holds on its worker, and which requirements variant it was placed by.
    devices: tuple[int, ...] = ()
    variant: int = 0
    #: True while the current attempt has a reservation on its worker; False in a backlog.
    reserved: bool = False
    #: True once a user asked to cancel an attempt that was already dispatched.
    cancelling: bool = False
    attempts: tuple[AttemptRecord, ...] = ()
    report: Report | None = None
    #: What its policy adds to the priority for the last report of a task that it comes after; None: nothing was said.
    promoted: float | None = None
    result: bytes | None = None

    def blamed_for(self, cause: Cause) -> int:
        """How many of its attempts ended like this and count."""
        return self.blamed.get(cause, 0) if self.blamed is not None else 0

    @property
    def worker_id(self) -> WorkerId | None:
        """The worker that holds the current attempt, or that ran the last one."""
        worker: WorkerId | None = getattr(self.state, "worker_id", None)
        if worker is None and self.attempts:
            worker = self.attempts[-1].worker_id
        return worker


# ---------------------------------------------------------------------------------------------- workers and devices


class Gpu(Struct, frozen=True, array_like=True):
    """A device as a worker declares it; `uuid` is its identity, `index` its place in the worker's list."""

    uuid: str
    model: str = ""
    memory_mb: int = 0


class GpuUsage(Struct, frozen=True, array_like=True):
    """A device as measured. None: the driver does not tell."""

    uuid: str
    used_mb: int | None = None
    utilisation: float | None = None
    temperature_c: float | None = None
    processes: int | None = None


class Belief(Struct, frozen=True, array_like=True):
    """What is believed of a kind on a device model ("": on all, or where there are no devices).

    mean_s: seconds of a success; low_s, high_s: two thirds of the runtimes are between them; success: from 0 to 1;
    samples: attempts that count, older ones less.
    """

    kind: str
    model: str
    mean_s: float
    low_s: float
    high_s: float
    success: float
    samples: float


class HostUsage(Struct, frozen=True, array_like=True):
    """A host as measured: CPU percent of all cores, bytes of RAM, bytes a second on the network."""

    cpu_percent: float = 0.0
    ram_used_bytes: int = 0
    ram_total_bytes: int = 0
    net_in_bytes_s: float = 0.0
    net_out_bytes_s: float = 0.0
    load_1m: float = 0.0
    gpus: tuple[GpuUsage, ...] = ()


class WorkerResources(Struct, frozen=True, kw_only=True):
    """What a worker declares to have (its capacity), never what is free or used.

    ram_gb and gpu_memory_gb in GB, the latter for each device. `gpus` lists the devices; where it is empty,
    `num_gpus` equal ones of `gpu_model` are meant. Raises ValueError for amounts that mean nothing.
    """

    cpus: float = 1.0
    ram_gb: float = 0.0
    num_gpus: int = 0
    gpu_memory_gb: float = 0.0
    gpu_model: str = ""
    gpus: Annotated[tuple[Gpu, ...], Meta(max_length=GPUS_MAX)] = ()
    network_mbps: float = 0.0
    labels: Annotated[dict[str, str], Meta(max_length=NAMES_MAX)] = field(default_factory=dict)
    custom: Annotated[dict[str, float], Meta(max_length=NAMES_MAX)] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _amount("cpus", self.cpus, most=1e5)
        _amount("ram_gb", self.ram_gb, most=1e7)
        _amount("num_gpus", self.num_gpus, most=GPUS_MAX)
        _amount("gpu_memory_gb", self.gpu_memory_gb, most=1e6)
        _amount("network_mbps", self.network_mbps, most=1e9)
        if len(self.gpus) > GPUS_MAX:
            raise ValueError(f"a worker has at most {GPUS_MAX:,} GPUs")
        for gpu in self.gpus:
            _amount("memory_mb", gpu.memory_mb, most=1e9)
        if len({gpu.uuid for gpu in self.gpus}) != len(self.gpus):
            raise ValueError("two GPUs have the same uuid")
        for name, value in self.custom.items():
            _amount(f"custom.{name}", value, most=1e9)

    def devices(self) -> tuple[Gpu, ...]:
        """List the devices, made up from `num_gpus` where they were not declared one by one."""
        if self.gpus:
            return self.gpus
        memory_mb = int(self.gpu_memory_gb * 1024)
        return tuple(Gpu(f"GPU-{i}", self.gpu_model, memory_mb) for i in range(self.num_gpus))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> WorkerResources:
        """Build from a plain mapping. Raises ValueError naming the first unknown or unusable key."""
        unknown = sorted(set(values) - set(cls.__struct_fields__))
        if unknown:
            raise ValueError(f"unknown resource {unknown[0]!r}; known: {', '.join(cls.__struct_fields__)}")
        try:
            return msgspec.convert(dict(values), cls)
        except msgspec.ValidationError as error:
            raise ValueError(str(error)) from None


class WorkerInfo(Struct, eq=False, repr_omit_defaults=True):
    """A row of the worker table, and all that a policy may look at. Usable alone, with a plain list as `task_queue`.

    `task_count` counts attempts that hold a reservation, `task_queue` is the backlog in the order in which the worker
    will start it. Changed only by its table.
    """

    worker_id: WorkerId
    num_gpus: int = 0
    status: WorkerStatus | str = WorkerStatus.IDLE
    task_count: int = 0
    task_queue: MutableSequence[Task] = field(default_factory=deque)
    resources: WorkerResources | None = None
    #: Reservations against the capacity; None for a plain row, which is taken at its word (`num_gpus`, `status`).
    ledger: Ledger | None = None
    #: Order of joining; breaks every tie.
    seq: int = 0
    #: Attempts moving here by a steal that is not yet confirmed.
    incoming: int = 0
    #: Of `task_queue`, attempts asked back by a steal.
    outgoing: int = 0
    #: Of `task_queue`, how many are of each kind; kept by its table only.
    waiting_kinds: dict[str, int] = field(default_factory=dict)
    #: Grows with each change of what is free; marks entries of an index as stale.
    version: int = 0
    #: Attempts that hold a reservation here.
    running: dict[TaskId, Task] = field(default_factory=dict)
    incarnation: str = ""
    host: str = ""
    pid: int = 0
    joined_ns: Instant = 0
    last_seen_ns: Instant = 0
    #: How long it may be silent by the pace that it was last told; others that have left since do not make it shorter.
    lease_ns: Instant = 0
    #: Since when it is unreachable, and why.
    silent_ns: Instant = 0
    #: When its connection ended, where it is unreachable for that and not because it said nothing on it; else 0.
    cut_ns: Instant = 0
    silence: str = ""
    #: Asked to drain; it stays so while it is unreachable, and when it returns.
    draining: bool = False
    #: Asked to leave when it has; said again whenever it connects anew.
    leaving: bool = False
    #: Why it is in quarantine; "": it is not.
    quarantine: str = ""
    usage: HostUsage | None = None
    finished_count: int = 0
    failed_count: int = 0

    @property
    def slots(self) -> int:
        """Units of concurrency for the load of a policy: GPUs, or whole CPUs on a worker without any."""
        if self.ledger is not None:
            return self.ledger.slots
        if self.num_gpus:
            return self.num_gpus
        return max(1, int(self.resources.cpus)) if self.resources is not None else 1

    @property
    def load(self) -> float:
        """Running per slot plus backlog, moves in flight counted on both sides."""
        slots = self.ledger.slots if self.ledger is not None else self.slots
        return self.task_count / slots + len(self.task_queue) - self.outgoing + self.incoming

    @property
    def accepts_work(self) -> bool:
        return self.status in ("idle", "busy")

    @property
    def status_here(self) -> WorkerStatus:
        """What it is while it is reachable; whether an idle one is busy is for its table to say."""
        if self.draining:
            return WorkerStatus.DRAINING
        return WorkerStatus.QUARANTINED if self.quarantine else WorkerStatus.IDLE


# -------------------------------------------------------------------------- what crosses the wire as it is in the core


class TaskSpec(Struct, frozen=True, omit_defaults=True):
    """What several tasks of one submit have in common."""

    payload: Payload
    kind: str = ""
    job: str = ""
    priority: float = 0.0
    requirements: TaskRequirements = NO_REQUIREMENTS
    rules: TaskRules = DEFAULT_RULES
    after: list[int] = field(default_factory=list)
    delay_s: float = 0.0
    hold: bool = False


class TaskEntry(Struct, frozen=True, array_like=True):
    """One task of a submit: `spec` is an index into the frame's specs.

    `after` adds to the spec's: ids of tasks, or -1-n for the n-th entry of the same submit, which must come before.
    `priority` None takes the spec's. `key` makes the submit idempotent.
    """

    spec: int
    argument: bytes = b""
    key: str | None = None
    after: list[int] = field(default_factory=list)
    priority: float | None = None


class Selection(Struct, frozen=True, omit_defaults=True):
    """Which tasks are meant: these ids, or all of a job, or (both empty) all; `states` and `unfinished` narrow it."""

    ids: Annotated[list[TaskId], Meta(max_length=IDS_MAX)] = field(default_factory=list)
    job: str | None = None
    states: list[str] = field(default_factory=list)
    unfinished: bool = False


class HoldsAttempt(Struct, frozen=True, array_like=True):
    """An attempt that a reconnecting worker still has: `phase` is "backlog", "running" or "finished".

    `defined_ns` is that of the task as it was dispatched, `epoch` that of the daemon which did: which start it was.
    """

    task_id: TaskId
    attempt: int
    phase: str
    started_at_ns: int = 0
    devices: tuple[int, ...] = ()
    variant: int = 0
    defined_ns: int = 0
    epoch: int = 0


class AttemptStarted(Struct, frozen=True, array_like=True):
    """An attempt began, on these devices of its worker."""

    task_id: TaskId
    attempt: int
    started_at_ns: int
    devices: tuple[int, ...] = ()


class AttemptFinished(Struct, frozen=True, array_like=True):
    """The end of an attempt. `result`: bytes of a call's value or exception, or the JSON of `SCHEDD_RESULT`."""

    task_id: TaskId
    attempt: int
    cause: Cause
    started_at_ns: int
    finished_at_ns: int
    result: bytes | None = None
    exit_code: int | None = None
    signal: int | None = None
    message: str = ""
    devices: tuple[int, ...] = ()


class AttemptReport(Struct, frozen=True, array_like=True):
    """Progress from inside a running attempt."""

    task_id: TaskId
    attempt: int
    step: int
    metrics: dict[str, float]


class Blocker(Struct, frozen=True):
    """A reason why a task waits, and how many workers it takes away."""

    reason: str
    workers: int = 0
    detail: str = ""


class WorkerVerdict(Struct, frozen=True):
    """What one worker says to a task: "fits now", or the first thing that is in the way."""

    worker: WorkerId
    verdict: str


class StealGain(Struct, frozen=True):
    """How much earlier a steal of `tasks` let its first task start: seconds, as expected (None: not known) and real."""

    task_id: TaskId
    kind: str
    victim: WorkerId
    thief: WorkerId
    tasks: int
    expected_s: float | None
    real_s: float


class CauseLimit(Struct, frozen=True):
    """How many attempts of a task ended with a cause, and how often it is tried again after such."""

    cause: Cause
    count: int
    limit: int
