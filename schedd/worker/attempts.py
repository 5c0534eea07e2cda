"""What the worker's state machine and its runner say to each other: an attempt, its end, and what to do. Pure."""

from __future__ import annotations

from msgspec import Struct

from schedd.core.model import Cause, Instant, TaskId
from schedd.core.needs import Need
from schedd.wire.messages import WireSpec


class Attempt(Struct, eq=False, gc=False):
    """A row of the worker's table. Changed by `WorkerState`; `ahead` and `begun` by the runner."""

    task_id: TaskId
    attempt: int
    spec: WireSpec
    argument: bytes
    need: Need
    variant: int = 0
    #: Indices of the devices it holds; empty until `reserved`.
    devices: tuple[int, ...] = ()
    #: True while the ledger holds its need. It is "started" for the daemon from then on.
    reserved: bool = False
    #: 0 until it is reserved.
    started_at_ns: Instant = 0
    #: Sent to a child process that still runs another one, so that the child never waits for us.
    ahead: bool = False
    #: A child has taken it up, whether or not it is reserved yet: it cannot be given back.
    begun: bool = False
    #: Why it is being ended by us; None while it may go on.
    stop_cause: Cause | None = None
    stop_message: str = ""
    #: When terminating turns into killing; 0 while nobody stops it.
    kill_at_ns: Instant = 0
    #: No longer this worker's: it is being killed and nothing is said about it.
    dropped: bool = False
    ended: bool = False

    @property
    def name(self) -> str:
        """`task.attempt`: what its files are called."""
        return f"{self.task_id}.{self.attempt}"

    def cause_of(self, ending: Ending) -> Cause:
        """Why it ended: what it was stopped for, or its own doing. Who was to make room and is done is done."""
        if self.stop_cause is None or (self.stop_cause is Cause.PREEMPTED and ending.cause is Cause.OK):
            return ending.cause
        return self.stop_cause


class Ending(Struct, frozen=True, gc=False):
    """How an attempt ended, as the runner saw it. Times are 0 where the runner knows none better than the state."""

    cause: Cause
    result: bytes | None = None
    exit_code: int | None = None
    signal: int | None = None
    message: str = ""
    started_at_ns: Instant = 0
    finished_at_ns: Instant = 0


class StartAttempt(Struct, frozen=True, gc=False):
    """Run it. One that was sent ahead is at a child already."""

    row: Attempt


class TerminateAttempt(Struct, frozen=True, gc=False):
    """Ask its whole process tree to end."""

    row: Attempt


class KillAttempt(Struct, frozen=True, gc=False):
    """End its whole process tree now."""

    row: Attempt


Action = StartAttempt | TerminateAttempt | KillAttempt
