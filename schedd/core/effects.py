"""What may leave the engine: facts, which are recorded before anyone hears of them, and actions, which go outward."""

from __future__ import annotations

from msgspec import Struct

from schedd.core.model import (
    AttemptRecord,
    AttemptReport,
    Cause,
    Instant,
    Task,
    TaskEntry,
    TaskId,
    TaskRequirements,
    TaskSpec,
    WorkerId,
    WorkerResources,
)

# ------------------------------------------------------------------------------------------------------------ facts


class Fact(Struct, frozen=True, gc=False, tag=True, array_like=True):
    """Something that happened, in the past tense; enough of them rebuild the tables."""


class TasksAdmitted(Fact, frozen=True):
    """These entries became tasks with these ids, in order.

    `client`, `number`, `answered` and `owner` as in `SubmitTasks`. `all_ids`: where some entries were there already, by
    their keys, the tasks of all entries.
    """

    at_ns: Instant
    specs: list[TaskSpec]
    tasks: list[TaskEntry]
    ids: list[TaskId]
    client: str = ""
    number: int = 0
    answered: int = 0
    all_ids: list[TaskId] = []
    owner: str = ""


class TaskHeld(Fact, frozen=True, gc=False):
    task_id: TaskId


class TaskReleased(Fact, frozen=True, gc=False):
    """`exempt_ns`: it may go although its kind is held, by the hold that began then; 0: there was none.

    Earlier daemons recorded only whether there was one.
    """

    task_id: TaskId
    exempt_ns: Instant | bool = 0


class TaskChanged(Fact, frozen=True, gc=False):
    """The priority or the requirements of a waiting task were set, or it was promoted; all of them as they are now."""

    task_id: TaskId
    priority: float
    requirements: TaskRequirements
    defined_ns: Instant = 0
    promoted: float | None = None


class CancelAsked(Fact, frozen=True, gc=False):
    """A dispatched task is to be cancelled; its worker has been told, or will be."""

    task_id: TaskId


class PreemptAsked(Fact, frozen=True, gc=False):
    """An attempt is to make room and run again later; its worker has been told, or will be.

    `grace_s` None: its own. `for_id`: the task that gets its place; 0: a user asked.
    """

    task_id: TaskId
    attempt: int
    at_ns: Instant
    grace_s: float | None = None
    for_id: TaskId = TaskId(0)


class AttemptDispatched(Fact, frozen=True, gc=False):
    task_id: TaskId
    attempt: int
    worker_id: WorkerId
    at_ns: Instant


class AttemptBegan(Fact, frozen=True, gc=False):
    task_id: TaskId
    attempt: int
    started_at_ns: Instant


class AttemptEnded(Fact, frozen=True, gc=False):
    """An attempt is over. What became of the task: a `TaskFinished` of the same turn, else it waits to be retried.

    `retry_at_ns`: not before then; 0: at once.
    """

    task_id: TaskId
    record: AttemptRecord
    retry_at_ns: Instant = 0


class TaskFinished(Fact, frozen=True, gc=False):
    """A task came to its final state: "succeeded", "failed" or "cancelled". `result` is what the worker sent."""

    task_id: TaskId
    state: str
    at_ns: Instant
    message: str = ""
    result: bytes | None = None


class WorkerEntered(Fact, frozen=True):
    """A worker is there. `draining`: it takes nothing new, and goes once it has nothing (`leaving`).

    So in the live rows, where that came later.
    """

    worker_id: WorkerId
    incarnation: str
    resources: WorkerResources
    at_ns: Instant
    again: bool = False
    draining: bool = False
    leaving: bool = False


class WorkerWentSilent(Fact, frozen=True, gc=False):
    """Not heard of; its tasks stay its own until `lost_at_ns`."""

    worker_id: WorkerId
    at_ns: Instant
    lost_at_ns: Instant
    reason: str


class WorkerGone(Fact, frozen=True, gc=False):
    """Left, or was given up (`lost`); `requeued` of its tasks go elsewhere."""

    worker_id: WorkerId
    incarnation: str
    at_ns: Instant
    lost: bool
    requeued: int
    reason: str


class WorkerStartedDraining(Fact, frozen=True, gc=False):
    """Takes nothing new; `leave`: and was asked to go once it has nothing."""

    worker_id: WorkerId
    at_ns: Instant
    leave: bool = False


class WorkerStoppedDraining(Fact, frozen=True, gc=False):
    """A drain was undone."""

    worker_id: WorkerId
    at_ns: Instant


class WorkerQuarantined(Fact, frozen=True, gc=False):
    """Gets nothing but a probe from `probe_at_ns` on; said again, with later numbers, of each probe that fails."""

    worker_id: WorkerId
    at_ns: Instant
    probe_at_ns: Instant
    repeats: int
    reason: str


class WorkerCleared(Fact, frozen=True, gc=False):
    """A quarantine has ended."""

    worker_id: WorkerId
    at_ns: Instant
    reason: str


class KindHeld(Fact, frozen=True, gc=False):
    """What is queued of a kind within a job is held, and what would be queued later; said again of failed probes.

    `since_ns`: when it began, which tells it from an earlier one.
    """

    job: str
    kind: str
    at_ns: Instant
    probe_at_ns: Instant
    repeats: int
    reason: str
    since_ns: Instant = 0


class KindReleased(Fact, frozen=True, gc=False):
    """A kind is no longer held within a job, and what was is queued again."""

    job: str
    kind: str
    at_ns: Instant
    reason: str


class AttemptStolen(Fact, frozen=True, gc=False):
    """A confirmed steal: the attempt given back by `victim_id` goes to `thief_id`."""

    task_id: TaskId
    victim_id: WorkerId
    thief_id: WorkerId
    at_ns: Instant


# ---------------------------------------------------------------------------------------------------------- actions


class Action(Struct, frozen=True):
    """Something for the shell to do, in the imperative."""


class DispatchAttempts(Action, frozen=True):
    """Send the current attempts of these rows, in this order. The rows are to be read before the next turn."""

    worker_id: WorkerId
    tasks: list[Task]
    epoch: int = 0


class RevokeAttempts(Action, frozen=True):
    worker_id: WorkerId
    attempts: list[tuple[TaskId, int]]


class StopAttempts(Action, frozen=True):
    worker_id: WorkerId
    attempts: list[tuple[TaskId, int]]
    cause: Cause
    #: Until they are killed; None: what each task has.
    grace_s: float | None = None


class DropAttempts(Action, frozen=True):
    """Tell a worker that these attempts are not its own (any more)."""

    worker_id: WorkerId
    attempts: list[tuple[TaskId, int]]


class DrainWorker(Action, frozen=True):
    """Tell a worker to hand back its backlog, finish what runs, and leave."""

    worker_id: WorkerId


class PublishReports(Action, frozen=True):
    """Pass progress on to whoever watches."""

    reports: list[AttemptReport]


class ReplySubmitted(Action, frozen=True):
    """`submitted_ns`: when these were submitted, one instant for all or one for each."""

    origin: int
    ids: list[TaskId]
    warnings: list[str]
    submitted_ns: list[Instant] = []


class ReplyChanged(Action, frozen=True):
    """`unchanged`: what was left as it is, with the reason; at most the first hundred of them."""

    origin: int
    changed: int
    unchanged: list[tuple[int | str, str]]


class ReplyDeclined(Action, frozen=True):
    origin: int
    code: str
    message: str
    hint: str = ""


class Effects(Struct):
    """What one call of the engine brought about. Facts first: actions may tell others what only facts make true.

    `finished`: the rows of this turn's `TaskFinished`, to be read before the next turn.
    """

    facts: list[Fact]
    actions: list[Action]
    finished: list[Task] = []
