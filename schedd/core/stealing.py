"""Who steals when: at once where a worker runs out of work, and on a timer for all that this does not find.

A policy proposes (`steal_for`, `rebalance`); what it proposes begins here and is confirmed in `core.attempts`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from heapq import heapify, heappop, heappush

from schedd.core.model import Assigned, Revoking, Task, WorkerInfo, WorkerStatus
from schedd.core.policies.base import Steal, Weight, movable
from schedd.core.resources import ResourceManager
from schedd.core.tables import Tables

#: The timer looks less and less often while it finds nothing: at last every 2^n intervals.
FRUITLESS_MAX = 7

#: An enumeration looks its members up by name at each use; this one is used for each end of an attempt.
_IDLE = WorkerStatus.IDLE


class Backlogs:
    """Workers that have a backlog, in an order of their own: a heap that follows the log of changes, as in placement.

    It pays for what has changed only when somebody looks, so nothing while nobody runs out of work.
    """

    def __init__(self, resources: ResourceManager, weigh: Callable[[WorkerInfo], Weight]) -> None:
        self._resources = resources
        self._weigh = weigh
        #: (weight, negative; seq; version); stale unless the worker still has this version.
        self._heap: list[tuple[float, int, int, int]] = []
        self._cursor = -1

    def first(self, count: int) -> list[WorkerInfo]:
        """Up to `count` workers, the highest weight first, ties by the order of joining."""
        self._follow()
        heap, by_seq = self._heap, self._resources.by_seq
        entries: list[tuple[float, int, int, int]] = []
        found: list[WorkerInfo] = []
        while heap and len(found) < count:
            entry = heappop(heap)
            worker = by_seq.get(entry[2])
            if worker is not None and worker.version == entry[3]:
                entries.append(entry)
                found.append(worker)
        for entry in entries:
            heappush(heap, entry)
        return found

    def _follow(self) -> None:
        resources, heap = self._resources, self._heap
        resources.commit()
        changes, base, by_seq = resources.changes, resources.base, resources.by_seq
        if self._cursor < base or len(heap) > 64 + 8 * len(by_seq):
            heap[:] = [self._entry(worker) for worker in by_seq.values() if movable(worker) > 0]
            heapify(heap)
        else:
            for version, seq in enumerate(changes[self._cursor - base :], self._cursor + 1):
                worker = by_seq.get(seq)
                if worker is not None and worker.version == version and movable(worker) > 0:
                    heappush(heap, self._entry(worker))
        self._cursor = base + len(changes)

    def _entry(self, worker: WorkerInfo) -> tuple[float, int, int, int]:
        weight, count = self._weigh(worker)
        return (-weight, -count, worker.seq, worker.version)


class Stealing:
    """Asks the policy, begins what it proposes, and is the view that it decides by."""

    def __init__(self, tables: Tables) -> None:
        self._t = tables
        self._by_length = Backlogs(tables.resources, lambda worker: (0.0, movable(worker)))
        self._policy, self._by_weight = tables.policy, Backlogs(tables.resources, tables.policy.weigh)
        #: The workers that take work, as of a version of the table.
        self._members: list[WorkerInfo] = []
        self._members_version = -1

    def for_idle(self) -> None:
        """Let those that have run out of work in this turn take some from others, one after the other."""
        t = self._t
        idled, t.idled = t.idled, {}
        t.resources.commit()
        missed = False
        for worker in idled.values():
            if worker.status is _IDLE and not worker.task_queue and not worker.incoming:
                missed |= not self.begin(t.policy.steal_for(worker, self, t.now))
        if missed and self.longest(1):
            t.arm_stealing()
        if t.placement_wanted and t.queue.size:
            t.deadlines.set(("place", 0), t.now)

    def on_timer(self) -> None:
        """Let the policy look at all workers; the timer rests where there are no backlogs."""
        t = self._t
        if not any(worker.task_queue for worker in t.resources):
            return
        t.resources.commit()
        if self.begin(t.policy.rebalance(self, t.now)):
            t.arm_stealing()
        else:
            # Nothing comes of looking again at what has not changed; what no event tells of is found all the same.
            t.fruitless += 1
            pause_ns = t.settings.steal_interval_ns << min(t.fruitless, FRUITLESS_MAX)
            t.deadlines.set(("steal", 0), t.now + pause_ns)

    def begin(self, steals: list[Steal]) -> int:
        """Ask victims for what the policy proposed, and tell how many tasks that are.

        A proposal that no longer holds is passed over.
        """
        t, begun = self._t, 0
        awaited = {asked.for_id for asked in t.asked.values()}
        first: dict[tuple[int, int], Task] = {}
        for steal in steals:
            task, victim, thief = steal.task, steal.victim, steal.thief
            if not isinstance(task.state, Assigned) or task.state.worker_id != victim.worker_id or task.reserved:
                continue
            if t.is_stopping(task) or not thief.accepts_work or victim.worker_id == thief.worker_id:
                continue
            if task.id in awaited:
                continue  # others were told to make room for it where it is
            same = first.setdefault((victim.seq, thief.seq), task)
            if same is task:
                t.steals.asked(task, victim.task_queue.index(task), victim, thief)
            else:
                t.steals.joined(same.id)
            t.tasks.set_state(task, Revoking(victim.worker_id, task.state.at_ns, thief.worker_id, thief.seq))
            victim.outgoing += 1
            thief.incoming += 1
            t.resources.touch(victim)
            t.resources.touch(thief)
            t.revoke(task, victim.worker_id)
            begun += 1
            t.placement_wanted = True  # a victim that gives its whole backlog away may have room for something else
        return begun

    # ------------------------------------------------------------------------------------------ what a policy may ask

    def workers(self) -> Iterable[WorkerInfo]:
        return self._t.resources

    def longest(self, count: int) -> list[WorkerInfo]:
        return self._by_length.first(count)

    def heaviest(self, count: int) -> list[WorkerInfo]:
        policy = self._t.policy
        if self._policy is not policy:  # another was chosen meanwhile, which weighs in its own way
            self._policy, self._by_weight = policy, Backlogs(self._t.resources, policy.weigh)
        return self._by_weight.first(count)

    def draw(self, count: int) -> list[WorkerInfo]:
        resources = self._t.resources
        if self._members_version != resources.members_version:
            self._members = [worker for worker in resources if worker.accepts_work]
            self._members_version = resources.members_version
        return self._t.rng.choices(self._members, k=count) if self._members else []

    def could_run(self, task: Task, worker: WorkerInfo) -> bool:
        return self._t.placer.may_wait_at(task, worker)

    def has_room(self, task: Task, worker: WorkerInfo) -> bool:
        return self._t.placer.has_room(task, worker)
