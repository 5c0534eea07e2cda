"""work_stealing: push work into backlogs at once, and let idle workers steal from the busiest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from typing import Annotated, Literal

from msgspec import Meta, Struct

from schedd.core.model import Instant, Revoking, StealGain, Task, TaskId, WorkerInfo
from schedd.core.needs import compile_needs
from schedd.core.policies.base import (
    VICTIMS_LOOKED_AT_MAX,
    ClusterView,
    Draft,
    Outcome,
    Steal,
    TaskScheduler,
    Weight,
    fit,
    is_without_work,
    movable,
    share_of,
    steal_from,
    steal_half,
    take,
)
from schedd.core.stats import Learned, PerformanceStats, RuntimeTable

#: Where as many tasks come as end, so many ends in a row with nothing coming are one in 65,000.
QUIET_ENDS = 16
#: The mean runtime of a kind is that of some hundred attempts: where lengths differ much, ten say little.
RUNTIME_ALPHA = 1 / 512

#: Steals after whose measurement the threshold is looked at again.
ADAPT_EVERY = 8


class WorkStealingParams(Struct, frozen=True, forbid_unknown_fields=True):
    """Table [policy.work_stealing].

    steal_threshold: a backlog is stolen from only above this length. backlog_per_slot: attempts that may wait at a
    worker for each of its slots. choices: workers drawn at random for a task, of which the least loaded gets it; 0: the
    least loaded of all. block: tasks in a row that go to the worker chosen for the first. victims: workers drawn at
    random by one that runs out of work, of which it steals from that with the longest backlog; 0: the longest of all.
    steal: how much it takes. adapt: let the threshold follow what steals gain, from steal_threshold on, between 0 and
    steal_threshold_max; one that gains at least gain_min_s has paid.
    """

    steal_threshold: Annotated[int, Meta(ge=0, le=1_000_000)] = 2
    backlog_per_slot: Annotated[int, Meta(ge=1, le=100_000)] = 32
    choices: Annotated[int, Meta(ge=0, le=100)] = 0
    block: Annotated[int, Meta(ge=1, le=1_000_000)] = 1
    victims: Annotated[int, Meta(ge=0, le=100)] = 0
    steal: Literal["half", "one"] = "half"
    adapt: bool = True
    steal_threshold_max: Annotated[int, Meta(ge=0, le=1_000_000)] = 32
    gain_min_s: Annotated[float, Meta(ge=0, le=1e7)] = 0.01


class WorkStealingScheduler(TaskScheduler):
    """Binds early and corrects later: no worker waits for the daemon between two tasks.

    To choose for many short tasks of uneven length. Half of a victim's surplus moves at a time, from the tail of its
    backlog (Blumofe and Leiserson, "Scheduling Multithreaded Computations by Work Stealing", 1999, steal from the
    end that the victim reaches last). Once nothing more comes, what is left is a bag that is to end as early as can be:
    a thief then takes half of the kind that takes longest, wherever it waits, so that nothing long begins late (Graham,
    "Bounds on Multiprocessing Timing Anomalies", 1969). With `choices` = 2 placement looks at two workers and is nearly
    as good as with all of them (Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 2001).
    """

    name = "work_stealing"
    Params = WorkStealingParams
    summary = "pushes work into backlogs; a worker that runs out of work steals from the busiest"
    fills_evenly = False

    def __init__(
        self,
        steal_threshold: int = 2,
        backlog_per_slot: int = 32,
        choices: int = 0,
        block: int = 1,
        victims: int = 0,
        steal: str = "half",
        adapt: bool = True,
        steal_threshold_max: int = 32,
        gain_min_s: float = 0.01,
    ) -> None:
        self.steal_threshold = steal_threshold
        self.backlog_per_slot = backlog_per_slot
        self.choices = choices
        self.block = block
        self.victims = victims
        self.steal = steal
        self.adapt = adapt
        self.steal_threshold_max = steal_threshold_max
        self.gain_min_s = gain_min_s
        self.threshold = steal_threshold
        #: Steals measured since the threshold was looked at, and how many of them have paid.
        self._measured = self._paid = 0
        self._most = 1 if steal == "one" else None
        #: The worker that was chosen for the block under way, and how many tasks of it are still to come.
        self._chosen: WorkerInfo | None = None
        self._block_left = 0
        #: How long kinds take, and all of them together.
        self._runtimes = RuntimeTable(alpha=RUNTIME_ALPHA)
        self._overall = PerformanceStats(RUNTIME_ALPHA)
        #: Attempts that have ended since a task was last placed.
        self._ended = 0

    def score(self, task: Task, worker: WorkerInfo) -> float:
        return worker.load

    def backlog_limit(self, worker: WorkerInfo) -> int:
        return self.backlog_per_slot * worker.slots

    def plan(self, draft: Draft, now: Instant) -> None:
        while (task := draft.head()) is not None:
            worker = self._choose(draft, task)
            if worker is None or not draft.offer(task, worker, self.backlog_limit(worker)):
                worker = self._least_loaded(draft, task)
            if worker is not None:
                self._ended = 0

    def _choose(self, draft: Draft, task: Task) -> WorkerInfo | None:
        """Say where the block goes on, or a new one begins; None: at the least loaded of all."""
        if self._block_left:
            self._block_left -= 1
            return self._chosen
        self._block_left = self.block - 1
        self._chosen = min(draft.draw(task, self.choices), key=load_of, default=None) if self.choices else None
        return self._chosen

    def _least_loaded(self, draft: Draft, task: Task) -> WorkerInfo | None:
        """Place a task where no worker was drawn, or the chosen one cannot take it; the block goes on there."""
        worker = self._chosen = draft.candidate(task)
        if worker is None:
            self._block_left = 0
            draft.block(task)
        else:
            draft.assign(task, worker)
        return worker

    # ------------------------------------------------------------------------------------------------------- stealing

    def steal_for(self, thief: WorkerInfo, view: ClusterView, now: Instant) -> list[Steal]:
        if self.is_quiet and (steals := self._steal_longest(thief, view, set())):
            return steals
        victims = self._drawn(view) if self.victims else view.longest(VICTIMS_LOOKED_AT_MAX)
        return steal_from(view, thief, victims, self.threshold, self._most)

    def rebalance(self, view: ClusterView, now: Instant) -> list[Steal]:
        steals: list[Steal] = []
        if self.is_quiet:
            taken: set[TaskId] = set()
            for thief in filter(is_without_work, view.workers()):
                steals += self._steal_longest(thief, view, taken)
        steals = steals or steal_half(view, self.threshold, self._most)
        if not steals and self.threshold > self.steal_threshold:
            self.threshold -= 1  # without steals nothing would ever be learned again
        return steals

    def _drawn(self, view: ClusterView) -> list[WorkerInfo]:
        return sorted(view.draw(self.victims), key=movable, reverse=True)

    @property
    def is_quiet(self) -> bool:
        """Whether what waits is all that there will be, for all that can be known."""
        return self._ended >= QUIET_ENDS

    def _steal_longest(self, thief: WorkerInfo, view: ClusterView, taken: set[TaskId]) -> list[Steal]:
        """Take half of the kind that takes longest from the worker that has most of it, but for what is `taken`."""
        victims = self._drawn(view) if self.victims else view.heaviest(VICTIMS_LOOKED_AT_MAX)
        for victim in sorted(victims, key=self.weigh, reverse=True):
            surplus = movable(victim) - sum(t.id in taken for t in victim.task_queue if taken) - self.threshold
            if surplus <= 0 or victim is thief or not victim.accepts_work:
                continue
            tasks = self._longest(victim, taken)
            most = min(share_of(len(tasks), self._most), surplus)
            if steals := take(view, victim, thief, most, taken, reversed(tasks)):
                return steals
        return []

    def weigh(self, worker: WorkerInfo) -> Weight:
        return max(((self._expected_s(kind), count) for kind, count in worker.waiting_kinds.items()), default=(0.0, 0))

    def _longest(self, worker: WorkerInfo, taken: Set[TaskId]) -> list[Task]:
        """What can be moved of the kind that takes longest in a backlog, in its order. O(backlog)."""
        by_kind: dict[str, list[Task]] = {}
        for task in worker.task_queue:
            if type(task.state) is not Revoking and task.id not in taken:
                by_kind.setdefault(task.kind, []).append(task)
        return by_kind[max(by_kind, key=self._expected_s)] if by_kind else []

    def _expected_s(self, kind: str) -> float:
        """Seconds that a kind takes; one that was not seen takes what all do."""
        known_s = self._runtimes.mean_s(kind)
        return known_s if known_s is not None else self._overall.avg_completion_time

    # ------------------------------------------------------------------------------------------------------- learning

    def observe(self, outcome: Outcome, now: Instant) -> None:
        self._ended += 1
        self._runtimes.observe(outcome.task.kind, outcome.runtime_s, outcome.success)
        self._overall.update(outcome.runtime_s, outcome.success)

    def learned(self) -> list[Learned]:
        return self._runtimes.learned()

    def recall(self, learned: Iterable[Learned]) -> None:
        self._runtimes.recall(learned)

    def learn_steal(self, gain: StealGain) -> bool:
        """Raise the threshold by half where less than half of the steals pay, lower it by a quarter where most do."""
        paid = gain.real_s >= self.gain_min_s
        self._measured += 1
        self._paid += paid
        if self._measured == ADAPT_EVERY:
            if self.adapt:
                self._adapt(self._paid / self._measured)
            self._measured = self._paid = 0
        return paid

    def _adapt(self, share: float) -> None:
        if share < 0.5:
            raised = self.threshold + max(1, self.threshold // 2)
            self.threshold = max(self.threshold, min(raised, self.steal_threshold_max))
        elif share >= 0.75:
            self.threshold = max(0, self.threshold - max(1, self.threshold // 4))

    def steal_task(self, idle_worker: WorkerInfo, workers: Sequence[WorkerInfo]) -> Task | None:
        """Take one task for `idle_worker` from the longest backlog above the threshold, or return None.

        For plain rows, without a daemon: the task leaves the victim's `task_queue`, from its tail. Tasks that the
        idle worker could not run are passed over.
        """
        victims = [w for w in workers if w is not idle_worker and movable(w) > self.steal_threshold]
        for victim in sorted(victims, key=lambda w: (-movable(w), w.seq)):
            for task in reversed(victim.task_queue):
                if fit(compile_needs(task.requirements), task.requirements, idle_worker, 0) is not None:
                    victim.task_queue.remove(task)
                    return task
        return None


def load_of(worker: WorkerInfo) -> float:
    """Running per slot plus backlog."""
    return worker.load
