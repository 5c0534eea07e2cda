"""Stopping what runs for what waits: acts upon what a policy proposes, once the placement pass found no place.

The task that room is made for is dispatched at once and stands in the backlog of the worker. That is its reservation:
a worker starts its backlog in order, so the place goes to nobody else, and without a round trip. The stopped attempts
have their grace, are killed after it, and go back to the queue without blame.

The policy is asked on a timer, and only while something waits; after a proposal at once again, for the next in line.
"""

from __future__ import annotations

from heapq import nsmallest

from schedd.core.model import SECOND, Queued, Running, Task, TaskId, WorkerInfo
from schedd.core.policies.base import Preemption
from schedd.core.tables import Tables

#: A policy is shown the heads of at most so many classes.
WAITING_MAX = 32


class Preemptor:
    """Is the `PreemptView` of the policy, and carries out what it proposes."""

    def __init__(self, tables: Tables) -> None:
        self._t = tables
        #: The policy is to be asked after the next complete pass.
        self.is_due = False
        #: Tasks that room is being made for.
        self._awaited: set[TaskId] = set()
        #: By number of the class: whether some worker could run such tasks, as of a version of the table of workers.
        self._fits: dict[int, bool] = {}
        self._fits_version = -1

    def after_pass(self) -> None:
        """Ask the policy where it is time, and see to it that it is asked again. O(1) where it is not."""
        t = self._t
        if self.is_due and ("place", 0) not in t.deadlines:
            self.is_due = False
            self._awaited = {asked.for_id for asked in t.asked.values()}
            for proposal in t.policy.make_room(self, t.now) if t.queue.size else ():
                self._act(proposal)
        if t.queue.size and ("preempt", 0) not in t.deadlines:
            t.deadlines.set(("preempt", 0), t.now + int(t.policy.preempt_interval_s * SECOND))

    def _act(self, proposal: Preemption) -> None:
        """Ask the victims and reserve their place; a proposal that does not hold is passed over."""
        t = self._t
        task, worker = proposal.task, proposal.worker
        if not isinstance(task.state, Queued) or not t.placer.may_wait_at(task, worker) or not proposal.victims:
            return
        if not all(self._may_go(victim, worker) for victim in proposal.victims):
            return
        for victim in proposal.victims:
            longer = proposal.grace_s > victim.rules.grace_s
            t.preempt(victim, worker, proposal.grace_s if longer else None, task.id)
        t.withdraw(task)
        t.dispatch(task, worker, proposal.variant)
        # The next in line may have a place now, or be worth a victim too.
        t.deadlines.set(("place", 0), t.now)
        t.deadlines.set(("preempt", 0), t.now)

    def _may_go(self, victim: Task, worker: WorkerInfo) -> bool:
        state = victim.state
        return isinstance(state, Running) and state.worker_id == worker.worker_id and not self._t.is_stopping(victim)

    # ------------------------------------------------------------------------------------- what `make_room` may look at

    def waiting(self) -> list[Task]:
        queue = self._t.queue
        heads = [head for each in queue.classes() if (head := queue.head(each)) is not None]
        if len(heads) > WAITING_MAX:  # what no worker could ever run takes no place of others
            heads = [head for head in heads if self._fits_somewhere(head)]
        return nsmallest(WAITING_MAX, heads, key=queue.rank)

    def _fits_somewhere(self, task: Task) -> bool:
        """Whether a worker could run a task if it were empty. O(workers), once for each change of their table."""
        request, version = task.request, self._t.resources.members_version
        if self._fits_version != version:
            self._fits_version = version
            self._fits.clear()
        if request is None:
            return False
        found = self._fits.get(request.number)
        if found is None:
            found = any(self._t.placer.could_run(task, worker) for worker in self._t.resources)
            self._fits[request.number] = found
        return found

    def leaving(self) -> list[Task]:
        rows = [self._t.tasks.rows[asked.task_id] for asked in self._t.asked.values() if not asked.for_id]
        return [task for task in rows if self._t.is_stopping(task)]

    def worker_of(self, task: Task) -> WorkerInfo | None:
        return self._t.worker_of(task)

    def may_wait_at(self, task: Task, worker: WorkerInfo) -> bool:
        return self._t.placer.may_wait_at(task, worker)

    def awaited_at(self, worker: WorkerInfo) -> list[Task] | None:
        awaited: list[Task] = []
        for task in worker.task_queue:
            if task.id in self._awaited:
                awaited.append(task)
            elif task.kind not in self._t.runtimes.short:
                return None
        return awaited

    def is_stopping(self, task: Task) -> bool:
        return self._t.is_stopping(task)
