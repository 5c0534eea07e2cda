"""What a policy is: few hooks, most with a default. All return values; none acts.

`level` and `ageing_rate` order the waiting tasks, `score` orders the workers that fit, `plan` is the whole placement
pass, `rebalance` proposes steals, `observe` learns. The daemon and a plain list of `WorkerInfo` go through the same
`score`: the daemon only keeps the workers in ordered indexes by it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, ClassVar, Protocol, Self

from msgspec import Struct

from schedd.core.model import (
    Belief,
    Instant,
    Report,
    Revoking,
    StealGain,
    Task,
    TaskId,
    TaskRequirements,
    WorkerId,
    WorkerInfo,
    WorkerStatus,
)
from schedd.core.needs import Need, compile_needs
from schedd.core.stats import Learned

if TYPE_CHECKING:
    from schedd.core.classes import RequestClass

#: Victims that a worker which runs out of work looks at before it waits for the timer.
VICTIMS_LOOKED_AT_MAX = 8

#: How a task would go to a worker, lower is better: (0 where it starts now, else 1 + backlog per slot; index of the
#: requirements variant). Backlogs fill evenly by it, unless the policy says that its score does that.
Fit = tuple[float, int]


def fit(
    requirements_needs: Sequence[Need],
    requirements: TaskRequirements,
    worker: WorkerInfo,
    depth: int,
    evenly: bool = True,
) -> Fit | None:
    """Tell how a task would go to a worker: at once, into a backlog of at most `depth`, or (None) not at all.

    A row with a ledger is asked what is free; a plain row is taken at its word: `num_gpus` are there, and it is idle
    or it is not. `evenly`: backlogs are compared by their length per slot, before any score.
    """
    if not worker.accepts_work:
        return None
    ledger = worker.ledger
    queued = len(worker.task_queue) - worker.outgoing + worker.incoming
    if ledger is None:
        if requirements.min_gpus > worker.num_gpus:
            return None
        if worker.status == WorkerStatus.IDLE:
            return (0.0, 0)
        return (1.0 + evenly * queued / worker.slots, 0) if queued < depth else None
    possible = [i for i, need in enumerate(requirements_needs) if not ledger.blocker(need)]
    if not possible:
        return None
    if queued <= 0:
        for i in possible:
            if ledger.can_fit(requirements_needs[i]):
                return (0.0, i)
    return (1.0 + evenly * queued / worker.slots, possible[0]) if queued < depth else None


#: How much a thief wants of a backlog, higher first: any number, and how many tasks of that there are.
Weight = tuple[float, int]


class Outcome(Struct, frozen=True):
    """What a policy learns from: one attempt that started and ended by its own doing."""

    task: Task
    worker: WorkerInfo
    runtime_s: float
    success: bool


class Steal(Struct, frozen=True):
    """A proposal: take `task` out of the backlog of `victim` and give it to `thief`."""

    task: Task
    victim: WorkerInfo
    thief: WorkerInfo


class Draft(Protocol):
    """The placement pass under way, as `plan` sees it. Each call sees the provisional result of those before."""

    def head(self) -> Task | None:
        """The best-ranked waiting task whose class was not set aside; None: the pass is over."""

    def candidate(self, task: Task) -> WorkerInfo | None:
        """The feasible worker with the lowest score for a task at the head of its class."""

    def assign(self, task: Task, worker: WorkerInfo) -> None:
        """Place the head of a class on its candidate."""

    def block(self, task: Task) -> None:
        """Set the class of this task aside for the rest of the pass; it keeps its claim."""

    def head_of(self, request: RequestClass, aside: bool = False, declined: bool = False) -> Task | None:
        """The next task of the class whose head was just assigned, whatever its rank among other classes.

        aside: also of a class that was blocked, before its rank brings it back for what has become free since.
        declined: also of one that was declined.
        """

    def decline(self, task: Task) -> None:
        """Set the class of this task aside though it could start: the policy expects more of waiting.

        It claims nothing, and is looked at again when a worker changes, and after each `refresh`.
        """

    def offer(self, task: Task, worker: WorkerInfo, depth: int) -> bool:
        """Place the task from `head` or `head_of` on this worker if it starts now or the backlog is below `depth`."""

    def draw(self, task: Task, count: int) -> list[WorkerInfo]:
        """Draw `count` workers by the engine's dice from those that could run the task, each as likely every time.

        One may come twice; empty where there is none. O(count), and O(workers) after one came or went.
        """

    def rescore(self) -> None:
        """Ask for all scores anew, as what they are made of has changed. O(workers) for each class looked at."""

    # For policies with a rule of their own for who may overtake whom. Nothing that these start asks for claims, so
    # such a policy sets no class aside; what looks at all that waits or at all workers costs as much.

    def first(self) -> Task | None:
        """The best-ranked waiting task, whether or not anything is free; None: nothing waits, or the pass is full."""

    def waiting(self) -> list[Task]:
        """All waiting tasks in the order of submission. O(queue log queue)."""

    def workers(self) -> Iterable[WorkerInfo]:
        """All workers in the order of joining."""

    def has_room(self, task: Task, worker: WorkerInfo) -> bool:
        """Whether the task could start there now."""

    def start(self, task: Task, worker: WorkerInfo) -> bool:
        """Place any waiting task on a worker where it starts now, whatever stands before it; False: it does not."""


class WaitingClass(Struct, frozen=True):
    """A request class of which `size` tasks are queued, and the task of it that goes first."""

    request: RequestClass
    size: int
    head: Task


class SurveyView(Protocol):
    """What waits and what runs, as `survey` sees it."""

    def waiting(self) -> Iterable[WaitingClass]:
        """The classes that wait, in no particular order. O(classes)."""

    def workers(self) -> Iterable[WorkerInfo]:
        """All workers in the order of joining."""


class ClusterView(Protocol):
    """The workers, as `rebalance` and `steal_for` see them."""

    def workers(self) -> Iterable[WorkerInfo]:
        """All workers in the order of joining."""

    def longest(self, count: int) -> list[WorkerInfo]:
        """Up to `count` workers with the longest backlogs, longest first. O(count log workers + changes since)."""

    def heaviest(self, count: int) -> list[WorkerInfo]:
        """Up to `count` workers by the `weigh` of the policy, as of their last change, highest first. As `longest`."""

    def draw(self, count: int) -> list[WorkerInfo]:
        """Draw `count` workers by the engine's dice from those that take work. One may come twice. O(count)."""

    def could_run(self, task: Task, worker: WorkerInfo) -> bool:
        """Whether the worker takes work, could run this task if it were empty, and is claimed by no better one."""

    def has_room(self, task: Task, worker: WorkerInfo) -> bool:
        """Whether the task could start there now."""


class Preemption(Struct, frozen=True):
    """A proposal: stop `victims`, all on one worker, so that `task` can start there by this variant of its needs.

    Each has the grace that it was submitted with, and `grace_s` at least.
    """

    task: Task
    worker: WorkerInfo
    variant: int
    victims: tuple[Task, ...]
    grace_s: float = 0.0


class PreemptView(Protocol):
    """What waits and what runs, as `make_room` sees them after a placement pass."""

    def waiting(self) -> list[Task]:
        """The first tasks of the classes that found no place, best rank first; not all where there are many."""

    def leaving(self) -> list[Task]:
        """What was asked to stop without a task that gets its place."""

    def worker_of(self, task: Task) -> WorkerInfo | None:
        """The worker that runs a task."""

    def may_wait_at(self, task: Task, worker: WorkerInfo) -> bool:
        """Whether the worker could run the task if it were empty, and no better-ranked class claims it."""

    def awaited_at(self, worker: WorkerInfo) -> list[Task] | None:
        """What room is being made for there; None: others are next there that are not short."""

    def is_stopping(self, task: Task) -> bool:
        """Whether what runs was told to end already."""


class TaskScheduler(ABC):
    """Base of all policies. A policy holds what it believes; the facts stay in the tables of the engine."""

    #: Its value of `[policy] name`.
    name: ClassVar[str]
    #: Its table `[policy.NAME]`; fields as the keyword arguments of the constructor.
    Params: ClassVar[type[Struct]]
    #: What it wants, in one line for `schedd policies`.
    summary: ClassVar[str]
    #: Whether tasks of different kinds must be told apart while they wait.
    by_kind: ClassVar[bool] = False
    #: Whether tasks whose estimated runtimes differ by more than some must be told apart, too.
    by_size: bool = False
    #: Whether backlogs fill evenly, by their length per slot, whatever `score` says of two busy workers.
    fills_evenly: ClassVar[bool] = True
    #: Whether a worker that suits an earlier alternative of a task goes before all that `score` prefers.
    prefers_in_order: ClassVar[bool] = True
    #: Whether `promotion` may say something.
    promotes: bool = False
    #: Rank gained for each second of waiting, in units of priority.
    ageing_rate: float = 0.0
    #: Seconds between two calls of `refresh`; 0: never.
    refresh_interval_s: float = 0.0
    #: Backlogs up to this length are left alone by those who steal, as things are now.
    threshold: int = 0
    #: Seconds between two calls of `make_room` while tasks wait; 0: never.
    preempt_interval_s: float = 0.0

    @classmethod
    def from_params(cls, params: Struct) -> Self:
        """Build from the Struct of its table."""
        return cls(**{name: getattr(params, name) for name in params.__struct_fields__})

    def level(self, task: Task) -> float:
        """The importance of a task, higher first; constant while it waits."""
        return task.priority

    def promotion(self, report: Report) -> float | None:
        """What a task that waits gains for the last report of one that it comes after; finite. None: nothing.

        Asked when that one has succeeded, where `promotes` is set. Of several, the highest counts.
        """
        return None

    @abstractmethod
    def score(self, task: Task, worker: WorkerInfo) -> float:
        """Lower is better. May depend on the kind of the task, the load of the worker and what was learned."""

    def expected_s(self, task: Task, worker: WorkerInfo) -> float | None:
        """Seconds until a task would have ended if it went there now; None: this policy has no belief about it.

        Only compared and shown, for instance where this policy is the shadow of another.
        """
        return None

    def backlog_limit(self, worker: WorkerInfo) -> int:
        """How many attempts may wait at a worker beyond what hides the round trip."""
        return 0

    def backlog_for(self, task: Task, worker: WorkerInfo) -> int:
        """How many may wait there when this task comes; never more than `backlog_limit`."""
        return self.backlog_limit(worker)

    def assign_task(self, task: Task, workers: Sequence[WorkerInfo]) -> WorkerId | None:
        """Choose among workers by score, those that can start it at once before all others; None: none fits.

        Ties go to the first of the list. O(workers).
        """
        needs = compile_needs(task.requirements)
        best: tuple[float, int, float, int] | None = None
        for position, worker in enumerate(workers):
            found = fit(needs, task.requirements, worker, self.backlog_for(task, worker), self.fills_evenly)
            if found is not None:
                rank = found[1] if self.prefers_in_order else 0
                key = (found[0], rank, self.score(task, worker), position)
                best = key if best is None or key < best else best
        return workers[best[3]].worker_id if best is not None else None

    def plan(self, draft: Draft, now: Instant) -> None:
        """Place what can be placed, in rank order."""
        while (task := draft.head()) is not None:
            worker = draft.candidate(task)
            if worker is None:
                draft.block(task)
            else:
                draft.assign(task, worker)

    def rebalance(self, view: ClusterView, now: Instant) -> list[Steal]:
        """Propose moves out of backlogs: each idle worker takes about half of the longest backlog's surplus.

        Called on a timer while there are backlogs; it finds what `steal_for` did not.
        """
        return steal_half(view, 0)

    def steal_for(self, thief: WorkerInfo, view: ClusterView, now: Instant) -> list[Steal]:
        """Propose moves to a worker that has just run out of work, from one of the longest backlogs.

        Called when an attempt has ended there, or the worker has come, and the placement pass had nothing for it.
        """
        return steal_from(view, thief, view.longest(VICTIMS_LOOKED_AT_MAX), 0)

    def weigh(self, worker: WorkerInfo) -> Weight:
        """What there is to be stolen from a worker with a backlog: higher goes first in `ClusterView.heaviest`."""
        return (0.0, movable(worker))

    def learn_steal(self, gain: StealGain) -> bool:
        """Learn what a steal has gained, and tell whether it has paid."""
        return gain.real_s > 0

    def began(self, task: Task, now: Instant) -> None:  # noqa: B027 (most policies stop nobody)
        """Note that the current attempt of a task runs; told where there is a `preempt_interval_s`."""

    def make_room(self, view: PreemptView, now: Instant) -> list[Preemption]:
        """Propose attempts to stop for tasks that wait; called every `preempt_interval_s`."""
        return []

    def observe(self, outcome: Outcome, now: Instant) -> None:  # noqa: B027 (most policies learn nothing)
        """Learn from an attempt."""

    def believed(self) -> list[Belief]:
        """List what it believes of each kind on each device model where that was seen, the last seen kind last."""
        return []

    def learned(self) -> list[Learned]:
        """What is to outlive a restart of the daemon; it comes back by `recall`."""
        return []

    def recall(self, learned: Iterable[Learned]) -> None:  # noqa: B027
        """Go on from what was learned before; called once, before the first `observe`."""

    def left_for(self, task: Task, worker: WorkerInfo, now: Instant) -> str:
        """What the policy would rather wait for than start the task there; "" where it would start it."""
        return ""

    def is_stale(self, now: Instant) -> bool:
        """Whether `refresh` should come before a placement now; asked where there is a `refresh_interval_s`."""
        return False

    def survey(self, view: SurveyView, now: Instant) -> None:  # noqa: B027
        """Look at what waits and runs; called before each `refresh`."""

    def refresh(self, now: Instant) -> list[WorkerId]:
        """Recompute what scores are made of; called every `refresh_interval_s`. Returns whose scores have changed.

        To those of them that are idle, what the policy has declined is put again.
        """
        return []


def movable(worker: WorkerInfo) -> int:
    """Backlog of a worker that is not being moved already."""
    return len(worker.task_queue) - worker.outgoing


def steal_half(view: ClusterView, threshold: int, most: int | None = None) -> list[Steal]:
    """Let each worker without work take from the worker with the longest backlog above `threshold`.

    It takes half of what lies above the threshold and at least one, `most` at most, from the tail: the victim keeps
    what it will start next, and order within the steal stays. Several thieves see each other's takings. O((workers +
    thieves) log workers + tasks looked at).
    """
    workers = list(view.workers())
    victims = [(-movable(w), w.seq, w) for w in workers if movable(w) > threshold and w.accepts_work]
    heapify(victims)
    taken: set[TaskId] = set()
    steals: list[Steal] = []
    for thief in workers:
        if not is_without_work(thief):
            continue
        passed: list[tuple[int, int, WorkerInfo]] = []
        while victims:
            left, seq, victim = heappop(victims)
            moves = take(view, victim, thief, share_of(-left - threshold, most), taken)
            if -left - len(moves) > threshold:
                passed.append((left + len(moves), seq, victim))
            if moves:
                steals.extend(moves)
                break
        for entry in passed:
            heappush(victims, entry)
        if not victims:
            break
    return steals


def steal_from(
    view: ClusterView, thief: WorkerInfo, victims: Iterable[WorkerInfo], threshold: int, most: int | None = None
) -> list[Steal]:
    """Let one worker take from the first of `victims` that has a surplus it can use, as much as in `steal_half`."""
    for victim in victims:
        surplus = movable(victim) - threshold
        if surplus > 0 and victim is not thief and victim.accepts_work:
            moves = take(view, victim, thief, share_of(surplus, most), set())
            if moves:
                return moves
    return []


def is_without_work(worker: WorkerInfo) -> bool:
    """Whether something of a worker is free, with nothing waiting there and nothing on its way: it may steal."""
    return worker.status == WorkerStatus.IDLE and not worker.task_queue and not worker.incoming


def share_of(surplus: int, most: int | None) -> int:
    """How many tasks move at once out of so many that could: about half."""
    half = max(1, surplus // 2)
    return half if most is None else min(half, most)


def take(
    view: ClusterView,
    victim: WorkerInfo,
    thief: WorkerInfo,
    most: int,
    taken: set[TaskId],
    among: Iterable[Task] | None = None,
) -> list[Steal]:
    """Up to `most` tasks from the tail of a backlog, or of `among`; none unless one could start at once.

    What is in `taken` stays, as does what is asked back already; what moves is added to it.
    """
    moves: list[Steal] = []
    refused: set[int] = set()
    for task in reversed(victim.task_queue) if among is None else among:
        if task.id in taken or isinstance(task.state, Revoking):
            continue
        number = task.request.number if task.request is not None else 0
        if number in refused:
            continue  # what fits is the same for all of a class
        if view.could_run(task, thief) and (moves or view.has_room(task, thief)):
            moves.append(Steal(task, victim, thief))
            if len(moves) == most:
                break
        elif not moves and number:
            refused.add(number)
    moves.reverse()
    taken.update(move.task.id for move in moves)
    return moves
