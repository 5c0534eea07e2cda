"""What is counted of attempts, and the verdicts that `core.health` draws from it."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct, field

from schedd.core.model import Instant, TaskId, WorkerId


class Cell(Struct):
    """Attempts of one kind on one worker. `failed_ns`: how long the longest failure took.

    `tasks`: those that failed last. One that fails here again says no more of the worker than it did the first time.
    """

    ok: int = 0
    failed: int = 0
    failed_ns: int = 0
    tasks: dict[TaskId, None] = field(default_factory=dict)


class Rates(Struct):
    """Attempts of one kind: by worker, and their sums."""

    halved_ns: Instant
    ok: int = 0
    failed: int = 0
    cells: dict[WorkerId, Cell] = field(default_factory=dict)


class Group(Struct):
    """Attempts of one kind within one job. `run`: tasks that failed since the last success, each with its worker."""

    halved_ns: Instant
    ok: int = 0
    failed: int = 0
    run: dict[TaskId, WorkerId] = field(default_factory=dict)


class Comparison(Struct, frozen=True):
    """A worker beside the others, over the kinds that both have run. `evidence`: see `evidence`."""

    failed: int
    attempts: int
    failed_elsewhere: int
    attempts_elsewhere: int
    evidence: float

    @property
    def is_far_above(self) -> bool:
        """Whether at least half of the attempts fail there, and at least twice as many as elsewhere."""
        if 2 * self.failed < self.attempts or not self.attempts_elsewhere:
            return False
        return self.failed * self.attempts_elsewhere >= 2 * self.failed_elsewhere * self.attempts

    def __str__(self) -> str:
        elsewhere = f"elsewhere {self.failed_elsewhere} of {self.attempts_elsewhere}"
        return f"{self.failed} of {self.attempts} attempts failed there, {elsewhere}"


class Quarantine(Struct):
    """A worker that gets nothing but a probe now and then. `repeats`: times that it was found bad, probes included."""

    worker_id: WorkerId
    since_ns: Instant
    probe_at_ns: Instant
    repeats: int
    reason: str
    #: The attempt that its return depends on.
    probe: tuple[TaskId, int] | None = None
    #: What failed there: the first choice for a probe.
    kinds: frozenset[str] = frozenset()


class KindHold(Struct):
    """A kind that is held within a job. `members`: the tasks that it keeps back; `exempt`: those let go in spite."""

    number: int
    job: str
    kind: str
    since_ns: Instant
    probe_at_ns: Instant
    repeats: int
    reason: str
    members: dict[TaskId, None] = field(default_factory=dict)
    exempt: set[TaskId] = field(default_factory=set)
    #: The task that was let go to see, 0: none; and the workers on which tasks of it failed.
    probe: TaskId = TaskId(0)
    suspects: set[WorkerId] = field(default_factory=set)
    #: Tasks that workers were asked to give back for it.
    coming: list[TaskId] = field(default_factory=list)
    #: Ids that are still to be looked at, from `looked` on: to be kept back, or where it has ended to be let go.
    todo: Sequence[int] = ()
    looked: int = 0
