"""Every message of the protocol, and one decoder per direction.

A connection starts with a frame that is one `Hello` from the peer, answered by `Welcome` or `Refused`; that of a peer
with a token only knocks (`wire.auth` has the exchange). After that each frame is a list of messages. Messages are
arrays on the wire (`array_like`): their fields are append-only, new ones with defaults. Requests of a client carry a
`request` number that the answer repeats. Times on the wire are nanoseconds since the epoch, or seconds where the name
says so.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct, field

from schedd.core.model import AttemptFinished as AttemptFinished
from schedd.core.model import AttemptRecord as AttemptRecord
from schedd.core.model import AttemptReport as AttemptReport
from schedd.core.model import AttemptStarted as AttemptStarted
from schedd.core.model import Belief as Belief
from schedd.core.model import Blocker as Blocker
from schedd.core.model import (
    Cause,
    CauseLimit,
    HostUsage,
    Payload,
    TaskId,
    TaskRequirements,
    TaskRules,
    WorkerId,
    WorkerResources,
)
from schedd.core.model import HoldsAttempt as HoldsAttempt
from schedd.core.model import Selection as Selection
from schedd.core.model import StealGain as StealGain
from schedd.core.model import TaskEntry as TaskEntry
from schedd.core.model import TaskSpec as TaskSpec
from schedd.core.model import WorkerVerdict as WorkerVerdict
from schedd.errors import RemoteProtocolError
from schedd.wire.framing import Body

#: Grows with each incompatible change. Both sides must have the same number.
PROTOCOL = 2

#: What a list of a message may be as long as, of a peer: a byte of a frame can be a hundred bytes of memory.
ITEMS_MAX = 1_000_000
#: Messages in a frame of a peer.
MESSAGES_MAX = 100_000

T = TypeVar("T")
Many = Annotated[list[T], Meta(max_length=ITEMS_MAX)]

# Codes of `Refused` and `RequestFailed`.
BAD_VERSION = "bad_version"
BAD_REQUEST = "bad_request"
NAME_TAKEN = "name_taken"
UNKNOWN_TASK = "unknown_task"
UNKNOWN_WORKER = "unknown_worker"
UNKNOWN_JOB = "unknown_job"
NO_WORKER_FITS = "no_worker_fits"
KEY_CONFLICT = "key_conflict"
ILLEGAL_STATE = "illegal_state"
QUEUE_FULL = "queue_full"
TOO_LARGE = "too_large"
TOO_MANY = "too_many"
SHUTTING_DOWN = "shutting_down"
WORKER_AWAY = "worker_away"
JOURNAL_FAILING = "journal_failing"
NO_JOURNAL = "no_journal"
BAD_CONFIG = "bad_config"
AUTH_REQUIRED = "auth_required"
BAD_TOKEN = "bad_token"
TOKEN_REVOKED = "token_revoked"
FORBIDDEN = "forbidden"
TLS_REQUIRED = "tls_required"
TLS_NOT_SPOKEN = "tls_not_spoken"
CERTIFICATE_REQUIRED = "certificate_required"
#: Never sent: the daemon could not show who it is.
NOT_TRUSTED = "not_trusted"

#: What happens, in the order of a task's life, then of a worker's. Each is a fact of the engine.
EVENT_TYPES = (
    "tasks_admitted",
    "task_held",
    "task_released",
    "task_changed",
    "attempt_dispatched",
    "attempt_stolen",
    "attempt_began",
    "preempt_asked",
    "cancel_asked",
    "attempt_ended",
    "task_finished",
    "worker_entered",
    "worker_went_silent",
    "worker_gone",
    "worker_started_draining",
    "worker_stopped_draining",
    "worker_quarantined",
    "worker_cleared",
    "kind_held",
    "kind_released",
)


# ------------------------------------------------------------------------------------------------------- handshake


class WorkerHello(Struct, frozen=True, tag="worker"):
    """A worker introduces itself. `incarnation` differs for each start of the worker process.

    `session` counts the greetings of that process: one that comes after a newer one is of no interest. 0: not told.
    """

    name: WorkerId
    incarnation: str
    resources: WorkerResources
    host: str = ""
    pid: int = 0
    holds: list[HoldsAttempt] = field(default_factory=list)
    session: int = 0


class ClientHello(Struct, frozen=True, tag="client"):
    """A client introduces itself; the words are for the log."""

    program: str = ""
    user: str = ""
    host: str = ""
    pid: int = 0


class Knock(Struct, frozen=True, tag="token"):
    """A peer has a token, and will prove it before it says who it is. token: its id."""

    token: str
    nonce: bytes


class Hello(Struct, frozen=True):
    """The first message of a peer. A map on the wire, so that any version can read any other's."""

    protocol: int
    version: str
    peer: WorkerHello | ClientHello | Knock


class Challenge(Struct, frozen=True, tag=True, array_like=True):
    """Answers a `Knock`: a proof is to be about this nonce, too."""

    nonce: bytes


class Proof(Struct, frozen=True):
    """Answers a `Challenge`; a frame of its own, a map. digest: the SHA-256 of the body of the `Hello` that follows."""

    proof: bytes
    digest: bytes


class Welcome(Struct, frozen=True, tag=True, array_like=True):
    """The daemon takes the connection. `epoch` counts the starts of the daemon on its journal; 0: it has none.

    `proof`: that the daemon knows the token that the peer has proven.
    """

    protocol: int
    version: str
    epoch: int
    policy: str = ""
    heartbeat_interval_s: float = 5.0
    frame_bytes_max: int = 0
    proof: bytes = b""


class Refused(Struct, frozen=True, tag=True, array_like=True):
    """The daemon does not go on with this connection and closes it: a failed handshake or broken protocol."""

    code: str
    message: str
    hint: str = ""


# ------------------------------------------------------------------------------------------------ daemon to worker


class WireSpec(Struct, frozen=True, array_like=True):
    """What several attempts of one frame have in common.

    `defined_ns` and `epoch` come back with `HoldsAttempt`: a daemon that was killed may have lost what it had told
    nobody, and mean something else by these ids, or have given the same number to somebody else since.
    """

    payload: Payload
    requirements: TaskRequirements
    rules: TaskRules
    kind: str
    job: str
    defined_ns: int = 0
    epoch: int = 0


class WireAttempt(Struct, frozen=True, array_like=True):
    """One attempt to run: `spec` is an index into the frame's specs, `variant` into the requirements' variants."""

    task_id: TaskId
    attempt: int
    spec: int
    argument: bytes
    variant: int = 0


class Dispatch(Struct, frozen=True, tag=True, array_like=True):
    """Run these, in this order, each as soon as it fits beside what runs; keep the rest in the backlog."""

    specs: list[WireSpec]
    attempts: list[WireAttempt]


class RevokeAttempts(Struct, frozen=True, tag=True, array_like=True):
    """Give back these (task, attempt) if they have not started; answered by `RevokeAnswers`."""

    attempts: list[tuple[TaskId, int]]


class StopAttempts(Struct, frozen=True, tag=True, array_like=True):
    """End these (task, attempt), started or not: terminate, grace, kill. Reported as finished with `cause`.

    Of cause "preempted", what ends well by itself is reported as that. `grace_s` None: what each was dispatched with.
    """

    attempts: list[tuple[TaskId, int]]
    cause: Cause = Cause.CANCELLED
    grace_s: float | None = None


class DropAttempts(Struct, frozen=True, tag=True, array_like=True):
    """These attempts are no longer this worker's: kill them at once and report nothing more about them."""

    attempts: list[tuple[TaskId, int]]


class AckFinished(Struct, frozen=True, tag=True, array_like=True):
    """Every `AttemptsFinished` up to this sequence number is recorded; the worker may forget them."""

    seq: int


class HeartbeatReply(Struct, frozen=True, tag=True, array_like=True):
    """The daemon is alive; send the next heartbeat after `interval_s`."""

    interval_s: float


class FetchLog(Struct, frozen=True, tag=True, array_like=True):
    """Send a piece of an attempt's output. `offset` below 0 counts from the end."""

    request: int
    task_id: TaskId
    attempt: int
    stream: str
    offset: int
    limit: int


class DrainWorker(Struct, frozen=True, tag=True, array_like=True):
    """Accept nothing new, hand back the backlog, finish what runs, then leave; `leave` False: stay connected."""

    leave: bool = True


# ------------------------------------------------------------------------------------------------ worker to daemon


class Heartbeat(Struct, frozen=True, tag=True, array_like=True):
    """The worker lives; `usage` is what it measured last."""

    usage: HostUsage


class AttemptsStarted(Struct, frozen=True, tag=True, array_like=True):
    """These began. An attempt that ends in the same frame is not listed; its end says when it began."""

    attempts: Many[AttemptStarted]


class AttemptsFinished(Struct, frozen=True, tag=True, array_like=True):
    """These ended. Sent again after a reconnection until `AckFinished` covers `seq`."""

    seq: int
    attempts: Many[AttemptFinished]


class AttemptReports(Struct, frozen=True, tag=True, array_like=True):
    """Progress from inside running attempts."""

    reports: Many[AttemptReport]


class RevokeAnswers(Struct, frozen=True, tag=True, array_like=True):
    """(task, attempt, given back) for each attempt asked for; False: it had started, or is not here."""

    answers: Many[tuple[TaskId, int, bool]]


class LogPiece(Struct, frozen=True, tag=True, array_like=True):
    """Answers `FetchLog`: `data` starts at `offset` of a file of `size` bytes so far; `done`: the attempt has ended."""

    request: int
    data: bytes
    offset: int
    size: int
    done: bool
    error: str = ""


class WorkerDraining(Struct, frozen=True, tag=True, array_like=True):
    """The worker was told to stop by its own user: `handed_back` (task, attempt) had not started."""

    handed_back: Many[tuple[TaskId, int]]


class WorkerGoodbye(Struct, frozen=True, tag=True, array_like=True):
    """The worker leaves for good and holds nothing any more."""

    reason: str = ""


# ------------------------------------------------------------------------------------------------ client to daemon


class Submit(Struct, frozen=True, tag=True, array_like=True):
    """Admit these tasks, all or none; answered by `Submitted`. `watch`: push `TaskDone` and reports to this client.

    `client` (at most 64 characters that no other client has) and `number` (above 0) name the submit: where it comes
    again, on whichever connection, it is answered as the first time and nothing is admitted. The client has had the
    answers to all of its submits below `answered`. Empty: it must not be sent twice.
    """

    request: int
    specs: Many[TaskSpec]
    tasks: Many[TaskEntry]
    watch: bool = False
    strict: bool = False
    client: str = ""
    number: int = 0
    answered: int = 0


class ListTasks(Struct, frozen=True, tag=True, array_like=True):
    """Answered by `TaskList`, ordered by id, from the first id above `after_id`, at most `limit`."""

    request: int
    selection: Selection
    limit: int = 1000
    after_id: int = 0
    detail: bool = False


class ListJobs(Struct, frozen=True, tag=True, array_like=True):
    """Answered by `JobList`. Tasks without a job are counted under ""."""

    request: int


class ListWorkers(Struct, frozen=True, tag=True, array_like=True):
    """Answered by `WorkerList`."""

    request: int


class GetStats(Struct, frozen=True, tag=True, array_like=True):
    """Answered by `Stats`."""

    request: int


class GetKinds(Struct, frozen=True, tag=True, array_like=True):
    """Answered by `Kinds`, of the `limit` that were seen last."""

    request: int
    limit: int = 1000


class GetPolicy(Struct, frozen=True, tag=True, array_like=True):
    """Answered by `PolicyState`."""

    request: int


class ExplainTask(Struct, frozen=True, tag=True, array_like=True):
    """Answered by `Explanation`."""

    request: int
    task_id: TaskId


class WatchTasks(Struct, frozen=True, tag=True, array_like=True):
    """Push `TaskDone` for each of these (at once for those already final), and reports if asked.

    Answered by `Watching` with how many there are in all, and where `named` with their ids; `results`: with results.
    `again`: for the ids of a watch whose connection was lost. Those that are not known do not fail the request but are
    named in the answer; those that memory has forgotten are looked for in the journal. `submitted_ns`, as long as the
    ids, says which tasks are meant: a daemon that lost its journal gives ids again. 0: whichever has the id.
    """

    request: int
    selection: Selection
    results: bool = False
    reports: bool = False
    named: bool = False
    again: bool = False
    submitted_ns: list[int] = field(default_factory=list)


class CancelTasks(Struct, frozen=True, tag=True, array_like=True):
    """Cancel; what runs is terminated. Answered by `Changed`.

    `started` False: leave alone what runs, or may run by now on its worker, and list it in `unchanged`.
    """

    request: int
    selection: Selection
    started: bool = True


class PreemptTasks(Struct, frozen=True, tag=True, array_like=True):
    """Let these give up their workers and run again later: terminate, grace, kill, queue. Answered by `Changed`.

    `grace_s` None: what each was submitted with.
    """

    request: int
    selection: Selection
    grace_s: float | None = None


class HoldTasks(Struct, frozen=True, tag=True, array_like=True):
    """Keep back what has not been dispatched. Answered by `Changed`."""

    request: int
    selection: Selection


class ReleaseTasks(Struct, frozen=True, tag=True, array_like=True):
    """Let go what is held. Answered by `Changed`."""

    request: int
    selection: Selection


class SetTasks(Struct, frozen=True, tag=True, array_like=True):
    """Change tasks that have not been dispatched; None leaves a value as it is. Answered by `Changed`."""

    request: int
    selection: Selection
    priority: float | None = None
    requirements: TaskRequirements | None = None


class SetPriorities(Struct, frozen=True, tag=True, array_like=True):
    """Change the priority of many tasks, each to its own. Answered by `Changed`."""

    request: int
    priorities: Many[tuple[TaskId, float]]


class DrainWorkers(Struct, frozen=True, tag=True, array_like=True):
    """Drain these workers (`undo`: take work again, where they are still there). Answered by `Changed`."""

    request: int
    workers: Many[WorkerId]
    undo: bool = False
    leave: bool = True


class ReadLog(Struct, frozen=True, tag=True, array_like=True):
    """Read a piece of a task's output from the worker that has it. Answered by `LogData`.

    `attempt` 0: the newest. `offset` below 0 counts from the end.
    """

    request: int
    task_id: TaskId
    attempt: int = 0
    stream: str = "stdout"
    offset: int = 0
    limit: int = 65536


class ListHistory(Struct, frozen=True, tag=True, array_like=True):
    """Ask the journal for tasks that have ended, the newest end first; answered by `HistoryList`.

    `since_ns`: only ends from then on; 0: no bound. `job`, `kind`, `states`: empty for all. `cursor`: where the
    last answer ended; zeros: begin with the newest.
    """

    request: int
    job: str = ""
    kind: str = ""
    states: list[str] = field(default_factory=list)
    since_ns: int = 0
    cursor: tuple[int, int] = (0, 0)
    limit: int = 1000


class BackUp(Struct, frozen=True, tag=True, array_like=True):
    """Write a copy of the journal, as of now, to a new file on the daemon's machine; answered by `BackedUp`."""

    request: int
    path: str


class ListEvents(Struct, frozen=True, tag=True, array_like=True):
    """Ask for what has happened, in its order, as far as it is on disk; answered by `EventList`.

    `cursor`: where the last answer ended; zeros: begin with the oldest, or with the first at `since_ns`; -1, 0: only
    say where the newest ends. `types`, `tasks`, `workers`, `jobs`: of any of these, empty for all. `wait_s`: where
    there is nothing, wait so long for something; of a connection one such question waits.
    """

    request: int
    cursor: tuple[int, int] = (0, 0)
    since_ns: int = 0
    types: list[str] = field(default_factory=list)
    tasks: list[TaskId] = field(default_factory=list)
    workers: list[str] = field(default_factory=list)
    jobs: list[str] = field(default_factory=list)
    limit: int = 1000
    wait_s: float = 0.0


class Reload(Struct, frozen=True, tag=True, array_like=True):
    """Read the settings again; answered by `Reloaded` when they count."""

    request: int


# ------------------------------------------------------------------------------------------------ daemon to client


class Submitted(Struct, frozen=True, tag=True, array_like=True):
    """Ids of the tasks, in the order of the entries; `warnings` for instance that no worker fits now.

    `submitted_ns`: when the tasks were submitted, one instant for all of them or one for each.
    """

    request: int
    ids: list[TaskId]
    warnings: list[str] = field(default_factory=list)
    submitted_ns: list[int] = field(default_factory=list)


class RequestFailed(Struct, frozen=True, tag=True, array_like=True):
    """The daemon declined a request; nothing was changed by it."""

    request: int
    code: str
    message: str
    hint: str = ""


class TaskDone(Struct, frozen=True, array_like=True):
    """A watched task is final. `result` as in `AttemptFinished`, None where it was not asked for or is not kept."""

    task_id: TaskId
    state: str
    cause: str
    result: bytes | None = None
    message: str = ""
    exit_code: int | None = None
    worker: str = ""
    attempt: int = 0
    kept: bool = True


class TasksDone(Struct, frozen=True, tag=True, array_like=True):
    tasks: list[TaskDone]


class TaskReports(Struct, frozen=True, tag=True, array_like=True):
    """Progress of watched tasks, as it comes."""

    reports: list[AttemptReport]


class Watching(Struct, frozen=True, tag=True, array_like=True):
    """Answers `WatchTasks`: `ids` where they were to be `named`, `unknown` where it was asked `again`."""

    request: int
    total: int
    finished: int
    ids: list[TaskId] = field(default_factory=list)
    unknown: list[TaskId] = field(default_factory=list)


class TaskView(Struct, frozen=True):
    """A task as clients see it. Times: seconds since the epoch, None where not yet.

    promoted: what the rule `from_metric` adds to its priority. owner: whose it is; "": nobody's.
    """

    id: TaskId
    key: str | None
    job: str
    kind: str
    state: str
    cause: str | None
    priority: float
    attempt: int
    worker: str | None
    exit_code: int | None
    submitted_at: float
    started_at: float | None
    finished_at: float | None
    message: str = ""
    report: dict[str, Any] | None = None
    promoted: float | None = None
    owner: str = ""

    @property
    def importance(self) -> float:
        """Its priority with all that adds to it but its age."""
        return self.priority + (self.promoted or 0.0)


class TaskDetail(Struct, frozen=True):
    """What `show` adds to a view. `attempts` are those that have ended, `limits` those of causes that matter to it."""

    payload: Payload | None
    argument: bytes
    requirements: TaskRequirements
    rules: TaskRules
    after: list[TaskId]
    missing: list[TaskId]
    attempts: list[AttemptRecord]
    devices: list[str]
    not_before: float | None
    result: bytes | None
    limits: list[CauseLimit] = field(default_factory=list)


class TaskList(Struct, frozen=True, tag=True, array_like=True):
    """`details` is as long as `tasks` where it was asked for, else empty. `more`: ask again from the last id."""

    request: int
    tasks: list[TaskView]
    details: list[TaskDetail] = field(default_factory=list)
    more: bool = False


class HistoryList(Struct, frozen=True, tag=True, array_like=True):
    """`attempts` is as long as `tasks`. There may be more, also after an empty answer, unless `cursor` is zeros."""

    request: int
    tasks: list[TaskView]
    attempts: list[list[AttemptRecord]]
    cursor: tuple[int, int] = (0, 0)


class Event(Struct, frozen=True, array_like=True):
    """Something that happened: one of `EVENT_TYPES`, and its fields by name. Times are nanoseconds since the epoch."""

    at_ns: int
    type: str
    fields: dict[str, Any]


class EventList(Struct, frozen=True, tag=True, array_like=True):
    """`more`: there are others already; ask again from `cursor` on. `missed`: so many transactions of the journal lie
    between the cursor that was given and the first of these, and are forgotten."""

    request: int
    events: list[Event]
    cursor: tuple[int, int]
    more: bool = False
    missed: int = 0


class BackedUp(Struct, frozen=True, tag=True, array_like=True):
    request: int
    path: str
    size_bytes: int


class Reloaded(Struct, frozen=True, tag=True, array_like=True):
    """The settings count, but for the keys that need a restart of the daemon."""

    request: int
    changed: list[str]
    needs_restart: list[str]


class JobView(Struct, frozen=True):
    """A job with its tasks counted by state name; times as in `TaskView`. `held_kinds`: why, by kind."""

    name: str
    total: int
    states: dict[str, int]
    priority_max: float
    submitted_at: float
    finished_at: float | None
    held_kinds: dict[str, str] = field(default_factory=dict)


class JobList(Struct, frozen=True, tag=True, array_like=True):
    request: int
    jobs: list[JobView]


class QuarantineView(Struct, frozen=True):
    """Why a worker gets nothing new, how often it was found bad, and when it is tried again. Times as in `TaskView`."""

    reason: str
    since: float
    probe_at: float
    repeats: int


class WorkerView(Struct, frozen=True):
    """A worker: capacity, what is reserved, and what was measured, kept apart. `silence`: why it is unreachable."""

    name: WorkerId
    status: str
    host: str
    pid: int
    resources: WorkerResources
    reserved_cpus: float
    reserved_ram_gb: float
    reserved_gpus: float
    running: int
    backlog: int
    load: float
    finished: int
    failed: int
    joined_at: float
    last_seen_s: float
    usage: HostUsage | None = None
    running_tasks: list[TaskId] = field(default_factory=list)
    quarantine: QuarantineView | None = None
    silence: str = ""


class WorkerList(Struct, frozen=True, tag=True, array_like=True):
    request: int
    workers: list[WorkerView]


class ShadowView(Struct, frozen=True):
    """What a second policy would have done with the decisions of the first, since the start of the daemon.

    decisions: those that it was asked about, of `passed_over` it was not. agreed: it would have taken the same worker.
    valued: it had an idea how long both choices take. gain_s: by how much less its own would have taken, of these, as
    it believes; gain_observed_s: by the mean runtimes of the kinds on the device models.
    """

    policy: str
    decisions: int
    agreed: int
    valued: int
    gain_s: float
    gain_observed_s: float
    passed_over: int


class Stats(Struct, frozen=True, tag=True, array_like=True):
    """The daemon at a glance. `states` counts tasks by state name; totals are since the start of the daemon.

    `loop_lag_s`: how late the loop was with its last timer; the worst of it since the daemon listens, and of late.
    """

    request: int
    version: str
    policy: str
    uptime_s: float
    address: str
    states: dict[str, int]
    workers: dict[str, int]
    submitted_total: int
    finished_total: int
    attempts_by_cause: dict[str, int]
    steals_total: int
    stale_total: int
    placements_total: int
    loop_lag_s: float
    connections: int
    loop_lag_max_s: float = 0.0
    loop_lag_recent_s: float = 0.0
    shadow: ShadowView | None = None


class StealsView(Struct, frozen=True):
    """What stealing has brought since the start; how it is measured, `core.steals` says.

    threshold: backlogs up to this length are left alone now. tasks: that have moved. All others count steals, of one
    task or several; of the `measured` ones `known` had an expected gain. Seconds are sums. recent: the newest last.
    """

    enabled: bool
    threshold: int
    tasks: int
    asked: int
    refused: int
    measured: int
    unmeasured: int
    paid: int
    known: int
    expected_s: float
    real_of_known_s: float
    real_s: float
    recent: list[StealGain] = field(default_factory=list)


class Kinds(Struct, frozen=True, tag=True, array_like=True):
    """What is believed of kinds on device models, the last seen first."""

    request: int
    policy: str
    beliefs: list[Belief]


class PolicyState(Struct, frozen=True, tag=True, array_like=True):
    """The policy in use, and what can be said of its work."""

    request: int
    name: str
    steals: StealsView | None = None


class Explanation(Struct, frozen=True, tag=True, array_like=True):
    """Why a task is where it is: all blockers at once. `ahead`: queued tasks with a better rank."""

    request: int
    task_id: TaskId
    state: str
    summary: str
    blockers: list[Blocker]
    workers: list[WorkerVerdict]
    ahead: int | None = None


class Changed(Struct, frozen=True, tag=True, array_like=True):
    """How many tasks (or workers) a request changed, and which were left as they were, with the reason."""

    request: int
    changed: int
    unchanged: list[tuple[int | str, str]] = field(default_factory=list)


class LogData(Struct, frozen=True, tag=True, array_like=True):
    """A piece of output; fields as in `LogPiece`."""

    request: int
    data: bytes
    offset: int
    size: int
    done: bool
    attempt: int = 0


# -------------------------------------------------------------------------------------------------------- decoders

ClientRequest = (
    Submit
    | ListTasks
    | ListJobs
    | ListWorkers
    | GetStats
    | GetPolicy
    | GetKinds
    | ExplainTask
    | WatchTasks
    | CancelTasks
    | PreemptTasks
    | HoldTasks
    | ReleaseTasks
    | SetTasks
    | SetPriorities
    | DrainWorkers
    | ReadLog
    | ListHistory
    | BackUp
    | ListEvents
    | Reload
)
FromWorker = (
    Heartbeat
    | AttemptsStarted
    | AttemptsFinished
    | AttemptReports
    | RevokeAnswers
    | LogPiece
    | WorkerDraining
    | WorkerGoodbye
)
ToWorker = (
    Welcome
    | Refused
    | Challenge
    | Dispatch
    | RevokeAttempts
    | StopAttempts
    | DropAttempts
    | AckFinished
    | HeartbeatReply
    | FetchLog
    | DrainWorker
)
ToClient = (
    Welcome
    | Refused
    | Challenge
    | Submitted
    | RequestFailed
    | TasksDone
    | TaskReports
    | Watching
    | TaskList
    | JobList
    | WorkerList
    | Stats
    | PolicyState
    | Kinds
    | Explanation
    | Changed
    | LogData
    | HistoryList
    | BackedUp
    | EventList
    | Reloaded
)

_hello_decoder = msgspec.msgpack.Decoder(Hello)
_proof_decoder = msgspec.msgpack.Decoder(Proof)
_decoders: dict[str, msgspec.msgpack.Decoder[Any]] = {
    "from_client": msgspec.msgpack.Decoder(Annotated[list[ClientRequest], Meta(max_length=MESSAGES_MAX)]),
    "from_worker": msgspec.msgpack.Decoder(Annotated[list[FromWorker], Meta(max_length=MESSAGES_MAX)]),
    "to_client": msgspec.msgpack.Decoder(list[ToClient]),
    "to_worker": msgspec.msgpack.Decoder(list[ToWorker]),
}


def decode_hello(body: Body) -> Hello:
    """Decode the first frame of a peer. Raises RemoteProtocolError."""
    try:
        return _hello_decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise RemoteProtocolError(f"the first frame is not a greeting of schedd: {error}") from error


def decode_proof(body: Body) -> Proof:
    """Decode the answer to a challenge. Raises RemoteProtocolError."""
    try:
        return _proof_decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise RemoteProtocolError(f"this is no answer to a challenge: {error}") from error


def _decode(direction: str, body: Body) -> Any:
    try:
        return _decoders[direction].decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise RemoteProtocolError(f"a frame cannot be decoded: {error}") from error


def decode_from_client(body: Body) -> list[ClientRequest]:
    """Decode a frame of requests. Raises RemoteProtocolError."""
    requests: list[ClientRequest] = _decode("from_client", body)
    return requests


def decode_from_worker(body: Body) -> list[FromWorker]:
    """Decode a frame of a worker. Raises RemoteProtocolError."""
    messages: list[FromWorker] = _decode("from_worker", body)
    return messages


def decode_to_client(body: Body) -> list[ToClient]:
    """Decode a frame of the daemon for a client. Raises RemoteProtocolError."""
    messages: list[ToClient] = _decode("to_client", body)
    return messages


def decode_to_worker(body: Body) -> list[ToWorker]:
    """Decode a frame of the daemon for a worker. Raises RemoteProtocolError."""
    messages: list[ToWorker] = _decode("to_worker", body)
    return messages
