"""What is recorded of a run."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from msgspec import Struct, field

from schedd.core.model import TaskRequirements
from schedd.simulate.cluster import ClusterRow
from schedd.simulate.trace import Trace

#: What sums of shares may be off.
EPSILON = 1e-9


class Span(Struct, frozen=True):
    """An attempt of the task at `index`, on devices of the worker at `place`. Seconds since the first submit."""

    index: int
    place: int
    devices: tuple[int, ...]
    start_s: float
    end_s: float
    ok: bool


class Run(Struct):
    """What became of each task, in the order of the trace: seconds since the first submit, -1 where it never was.

    start_s, finish_s: of its last attempt. where: the position of its worker in the cluster. wasted_s: time of attempts
    that did not count. engine_s: real time that the engine took. placements: attempts that were given to a worker,
    attempts: those that started there. unsuccessful: tasks that ended without success.
    """

    trace: Trace
    resources: Sequence[ClusterRow]
    start_s: array[float]
    finish_s: array[float]
    where: array[int]
    steals: int = 0
    placements: int = 0
    attempts: int = 0
    unsuccessful: set[int] = field(default_factory=set)
    wasted_s: float = 0.0
    engine_s: float = 0.0
    #: Shares of GPUs that were reserved at the same time, at the most.
    gpus_peak: float = 0.0
    #: How long each task had its place, where preempted ones go on with what they have; they start when they first did.
    held_s: array[float] | None = None
    #: All attempts by their ends, where they were asked for.
    spans: list[Span] | None = None
    #: Whether what was submitted may have depended on what had ended: then its tasks are not those of another run.
    reacts: bool = False
    #: Which alternative a task was placed by at last, where it needs other amounts than the first.
    placed: dict[int, TaskRequirements] = field(default_factory=dict)

    def needs(self, index: int) -> TaskRequirements:
        """What a task had on its last worker, or would have by its first alternative."""
        return self.placed.get(index) or self.trace.tasks[index].requirements

    @property
    def failed(self) -> int:
        """How many tasks ended without success."""
        return len(self.unsuccessful)


class Filling(Struct):
    """After each arrival: GPUs that were asked for so far, and given; both as shares of all."""

    asked: array[float]
    given: array[float]
    dropped: int = 0
    engine_s: float = 0.0

    def at(self, percent: float) -> float | None:
        """The share that was given when so many percent had been asked for; None: there were never so many."""
        enough = percent / 100 - EPSILON
        return next((given for asked, given in zip(self.asked, self.given, strict=True) if asked >= enough), None)
