"""What may enter the engine, in the past tense where it reports and as a wish of a client where it asks.

`origin` is an opaque number of the shell that a reply carries back. `user` is who asks, as the shell knows: a task
that belongs to somebody else is left as it is; None: whoever asks may change all tasks. Nothing else in an event is
trusted: the engine checks every id and number in it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from schedd.core.model import (
    AttemptFinished,
    AttemptReport,
    AttemptStarted,
    HoldsAttempt,
    HostUsage,
    Selection,
    TaskEntry,
    TaskId,
    TaskRequirements,
    TaskSpec,
    WorkerId,
    WorkerResources,
)

if TYPE_CHECKING:
    from schedd.core.policies.base import TaskScheduler
    from schedd.core.settings import EngineSettings


class Event(Struct, frozen=True):
    """Base of all events."""


class SubmitTasks(Event, frozen=True):
    """A client wants these admitted, all or none. `strict`: not if no worker could ever run one of them.

    `client`, where it is not empty, and `number` name the submit, so that it may come twice; of those below `answered`
    the client has heard. `owner`: whose the tasks will be; "": nobody's.
    """

    origin: int
    specs: list[TaskSpec]
    tasks: list[TaskEntry]
    strict: bool = False
    client: str = ""
    number: int = 0
    answered: int = 0
    owner: str = ""
    user: str | None = None


class CancelTasks(Event, frozen=True):
    """A client wants these cancelled; `started` False: leave alone what a worker has, or may have begun."""

    origin: int
    selection: Selection
    started: bool = True
    user: str | None = None


class PreemptTasks(Event, frozen=True):
    """A client wants these to give up their workers and to run again later. `grace_s` None: each its own."""

    origin: int
    selection: Selection
    grace_s: float | None = None
    user: str | None = None


class HoldTasks(Event, frozen=True):
    origin: int
    selection: Selection
    user: str | None = None


class ReleaseTasks(Event, frozen=True):
    origin: int
    selection: Selection
    user: str | None = None


class SetTasks(Event, frozen=True):
    """A client wants these changed; None leaves a value as it is."""

    origin: int
    selection: Selection
    priority: float | None = None
    requirements: TaskRequirements | None = None
    user: str | None = None


class SetPriorities(Event, frozen=True):
    origin: int
    priorities: list[tuple[TaskId, float]]
    user: str | None = None


class DrainWorkers(Event, frozen=True):
    """A client wants these workers to take nothing new, and then (`leave`) to go; or (`undo`) to work again."""

    origin: int
    workers: list[WorkerId]
    undo: bool = False
    leave: bool = True


class WorkerJoined(Event, frozen=True):
    """A worker connected, for the first time or again; `holds` is all that it still has."""

    worker_id: WorkerId
    incarnation: str
    resources: WorkerResources
    holds: list[HoldsAttempt]
    host: str = ""
    pid: int = 0


class WorkerDisconnected(Event, frozen=True):
    """The connection of a worker ended without a goodbye."""

    worker_id: WorkerId


class WorkerLeft(Event, frozen=True):
    """A worker said goodbye; it holds nothing any more."""

    worker_id: WorkerId
    reason: str = ""


class WorkerDraining(Event, frozen=True):
    """A worker takes nothing new and handed back what had not started."""

    worker_id: WorkerId
    handed_back: list[tuple[TaskId, int]]


class WorkerHeard(Event, frozen=True):
    """Something is on its way from a worker, and not all of it here yet: so it lives."""

    worker_id: WorkerId


class Heartbeat(Event, frozen=True):
    worker_id: WorkerId
    usage: HostUsage


class AttemptsStarted(Event, frozen=True):
    worker_id: WorkerId
    attempts: list[AttemptStarted]


class AttemptsFinished(Event, frozen=True):
    worker_id: WorkerId
    attempts: list[AttemptFinished]


class AttemptsReported(Event, frozen=True):
    worker_id: WorkerId
    reports: list[AttemptReport]


class RevokesAnswered(Event, frozen=True):
    """(task, attempt, given back) for attempts that were asked back."""

    worker_id: WorkerId
    answers: list[tuple[TaskId, int, bool]]


class Wakeup(Event, frozen=True):
    """The instant of `next_deadline()` has come. `lag_ns`: how late the shell is with it; said in any late turn."""

    lag_ns: int = 0


class SettingsChanged(Event, frozen=True):
    """The operator has changed the rules, all but those of the policy; they count from here on."""

    settings: EngineSettings


class PolicyReplaced(Event, frozen=True):
    """The operator has chosen another policy, or other parameters for it, and who is asked beside it.

    Both are new: neither has seen anything. They go on from what those of their names have learned before.
    """

    policy: TaskScheduler
    shadow: TaskScheduler | None = None
