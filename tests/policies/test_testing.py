"""The conformance suite finds what is wrong with policies that are wrong on purpose, each in its own way."""

from __future__ import annotations

import random
import subprocess
import sys
from typing import Any, ClassVar

import pytest
from msgspec import Struct

from schedd.core.model import Task, WorkerId, WorkerInfo
from schedd.core.policies.adaptive import AdaptiveScheduler
from schedd.core.policies.base import Draft, Outcome, Steal, TaskScheduler
from schedd.core.policies.work_stealing import WorkStealingScheduler
from schedd.testing import PolicyConformance, failures


class NoParams(Struct, frozen=True, forbid_unknown_fields=True):
    """Nothing to set."""


class Good(TaskScheduler):
    """The fewest tasks first."""

    name = "good"
    Params: ClassVar[type[Struct]] = NoParams
    summary = "the worker with the fewest tasks"

    def score(self, task: Task, worker: WorkerInfo) -> float:
        return float(worker.task_count)


class Starves(Good):
    """One kind never gets its turn."""

    by_kind = True

    def plan(self, draft: Draft, now: int) -> None:
        while (task := draft.head()) is not None:
            worker = draft.candidate(task)
            if worker is None or task.kind == "c":
                draft.block(task)
            else:
                draft.assign(task, worker)


class Meddles(Good):
    """Changes the task that it looks at."""

    def score(self, task: Task, worker: WorkerInfo) -> float:
        task.priority += 1
        return 0.0


class Occupies(Good):
    """Keeps something of a device for itself."""

    def score(self, task: Task, worker: WorkerInfo) -> float:
        assert worker.ledger is not None
        for device in worker.ledger.devices:
            device.free_mb -= 1
        return 0.0


class CleansUp(Good):
    """Takes tasks out of backlogs itself."""

    def backlog_limit(self, worker: WorkerInfo) -> int:
        return 3

    def rebalance(self, view: Any, now: int) -> list[Steal]:
        for worker in view.workers():
            worker.task_queue.clear()
        return []


class Promotes(Good):
    """Changes priorities while it places."""

    def plan(self, draft: Draft, now: int) -> None:
        task = draft.head()
        if task is not None:
            task.priority = 99.0
        super().plan(draft, now)


class ThrowsDice(Good):
    """Scores by chance."""

    def score(self, task: Task, worker: WorkerInfo) -> float:
        return random.random()


class GoesByHash(Good):
    """Takes the first of a set, whose order changes from process to process."""

    def score(self, task: Task, worker: WorkerInfo) -> float:
        return float(hash(f"{worker.worker_id} {task.id}") % 1000)


class Counts(Good):
    """Ranks later tasks lower each time that it is asked."""

    def __init__(self) -> None:
        self.asked = 0

    def level(self, task: Task) -> float:
        self.asked += 1
        return -self.asked


class Raises(Good):
    """Relies on a hint that need not be there."""

    def score(self, task: Task, worker: WorkerInfo) -> float:
        return task.requirements.estimated_time / worker.slots  # type: ignore[operator]


class NotANumber(Good):
    """Divides nothing by nothing."""

    def score(self, task: Task, worker: WorkerInfo) -> float:
        return float("nan")


class TakesAny(Good):
    """The first of the list, whether it fits or not."""

    def assign_task(self, task: Task, workers: Any) -> WorkerId | None:
        return workers[0].worker_id if workers else None


class Remembers(Good):
    """Scores all that ever waited, at each placement."""

    def __init__(self) -> None:
        self.seen: dict[int, Task] = {}

    def level(self, task: Task) -> float:
        self.seen[task.id] = task
        return 0.0

    def plan(self, draft: Draft, now: int) -> None:
        for task in self.seen.values():
            if (head := draft.head()) is not None and (worker := draft.candidate(head)) is not None:
                self.score(task, worker)
        super().plan(draft, now)


class Forgets(AdaptiveScheduler):
    """Begins anew after each restart."""

    def recall(self, learned: Any) -> None:
        pass


class StealsWhatRuns(WorkStealingScheduler):
    """Proposes to move what has started."""

    def rebalance(self, view: Any, now: int) -> list[Steal]:
        workers = list(view.workers())
        running = [(task, worker) for worker in workers for task in worker.running.values()]
        return [Steal(task, worker, workers[0]) for task, worker in running if worker is not workers[0]]


class SaysNothing(AdaptiveScheduler):
    """Does not say whose scores have changed."""

    def refresh(self, now: int) -> Any:
        super().refresh(now)


class LearnsTwice(Good):
    """Writes on the worker what it has seen there."""

    def observe(self, outcome: Outcome, now: int) -> None:
        outcome.worker.failed_count += not outcome.success


class LooseParams(Struct, frozen=True):
    weight: float = 1.0


class Loose(Good):
    """Takes any key, and has two defaults for one."""

    Params = LooseParams

    def __init__(self, weight: float = 2.0) -> None:
        self.weight = weight


class Nameless(Good):
    name = "no name"
    summary = " two\nlines"


BROKEN: dict[type[TaskScheduler], tuple[set[str], str]] = {
    Starves: ({"test_all_tasks_get_their_turn", "test_random_sequences"}, ""),
    Meddles: ({"test_never_changes_anything", "test_random_sequences"}, "changed a task or a worker"),
    Occupies: ({"test_random_sequences"}, "changed a task or a worker"),
    CleansUp: ({"test_random_sequences"}, "rebalance changed a task or a worker"),
    Promotes: ({"test_random_sequences"}, "plan changed a task or a worker"),
    ThrowsDice: ({"test_twice_the_same", "test_random_sequences"}, ""),
    GoesByHash: ({"test_same_in_every_process"}, "another process decides otherwise"),
    Counts: ({"test_random_sequences"}, "must be constant while a task waits"),
    Raises: ({"test_odd_rows", "test_random_sequences"}, "unsupported operand"),
    NotANumber: ({"test_odd_rows", "test_random_sequences"}, "score returned nan: it must be a number"),
    TakesAny: ({"test_no_worker_fits", "test_never_places_what_does_not_fit", "test_workers_that_take_nothing"}, ""),
    Remembers: ({"test_cost_does_not_grow_with_the_queue"}, "20 placements took "),
    Forgets: ({"test_goes_on_from_what_it_learned"}, "has learned something else"),
    StealsWhatRuns: ({"test_random_sequences"}, "is not in the backlog of"),
    SaysNothing: ({"test_random_sequences"}, "refresh returned None: it must be a list of ids"),
    LearnsTwice: ({"test_random_sequences"}, "observe changed a task or a worker"),
    Loose: ({"test_table_may_be_left_out", "test_table_refuses_what_it_does_not_know"}, ""),
    Nameless: ({"test_says_what_it_is"}, "name is 'no name'"),
}


def suite_for(broken: type[TaskScheduler]) -> type[PolicyConformance]:
    return type("Suite", (PolicyConformance,), {"policy": broken})


def test_good_one_passes() -> None:
    assert failures(suite_for(Good)) == {}


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.__name__)
def test_broken_one_is_found(broken: type[TaskScheduler]) -> None:
    tests, said = BROKEN[broken]
    suite = suite_for(broken)
    for name in tests:
        with pytest.raises(Exception, match=said or None):
            getattr(suite(), name)()


def test_failures_are_listed_by_test() -> None:
    found = failures(suite_for(NotANumber))
    assert {"test_odd_rows", "test_random_sequences"} <= found.keys()
    assert all(isinstance(error, AssertionError) for error in found.values())
    assert "test_says_what_it_is" not in found


def test_needs_no_pytest() -> None:
    script = "import sys, schedd.testing; assert not {'pytest', 'hypothesis'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
