"""The placement pass: for each request class an ordered index of the workers that might fit, and the rules of claims.

An index is a heap by (starts later, variant, the policy's score, order of joining). It follows the worker table's log
of changes from where it last looked, so a class pays for what changed since then and only when it is looked at: a
placement costs O(log n), whatever the number of tasks that wait or of workers that are full.

A class that does not fit anywhere is set aside until a worker that it could use changes, so that a pass looks only at
classes that may have a place. Meanwhile it may claim a worker (`core.claims`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from heapq import heapify, heappop, heappush

from schedd.core.capacity import Ledger
from schedd.core.claims import Claims
from schedd.core.classes import RequestClass
from schedd.core.model import Instant, Task, WorkerInfo
from schedd.core.needs import Need
from schedd.core.policies.base import Fit, TaskScheduler
from schedd.core.queue import ClassQueue, TaskQueue
from schedd.core.resources import ResourceManager
from schedd.core.settings import PrefetchRule
from schedd.core.stats import RuntimeTable

#: With more classes aside than this, all that could use a changed worker come back at once, not one by one.
STIRRED_MAX = 32
#: Tasks placed in one pass; the rest follows in the next turn, so that the loop stays free (20 us each).
PLACED_PER_PASS_MAX = 1000
#: Indexes of classes of which nothing waits: the next task of such a class is placed without building one anew.
INDEXES_SPARE_MAX = 256


#: (how it would go there, rank of the variant, score, order of joining, version, variant); stale unless the worker
#: still has this version.
Entry = tuple[float, int, float, int, int, int]


class Candidates:
    """The index of one request class."""

    __slots__ = ("cursor", "heap", "members", "members_version", "possible")

    def __init__(self) -> None:
        self.heap: list[Entry] = []
        self.cursor = -1
        #: By seq of a worker: the ledger looked at, and the indices of the variants that it could ever hold.
        self.possible: dict[int, tuple[Ledger, tuple[int, ...]]] = {}
        #: The workers that take work and could run such a task, as of a version of the table; made when one is drawn.
        self.members: list[WorkerInfo] = []
        self.members_version = -1


class Placer:
    """Keeps the indexes between passes and is the `Draft` of each pass."""

    def __init__(
        self,
        resources: ResourceManager,
        runtimes: RuntimeTable,
        rule: PrefetchRule,
        draw_below: Callable[[int], int],
    ) -> None:
        self._resources = resources
        self._runtimes = runtimes
        #: How far backlogs may run ahead.
        self.rule = rule
        self._dispatch: Callable[[Task, WorkerInfo, int], None]
        #: The engine's dice: a number below the one given.
        self._draw_below = draw_below
        #: By number of the class; of those that no longer wait only as many as `INDEXES_SPARE_MAX` are kept.
        self._indexes: dict[int, Candidates] = {}
        self._depths: dict[tuple[str, float | None], int] = {}
        self._claims = Claims(resources, runtimes, self.possible)
        #: Workers that have changed and have something to offer to a class that is aside, by seq.
        self._offers: dict[int, WorkerInfo] = {}
        #: Seqs of the workers with room, as of their last change, and perhaps of some that are gone.
        self._roomy: set[int] = set()
        #: The same for what needs a device.
        self._roomy_devices: set[int] = set()
        #: When classes were set aside in this pass, by number: only what changed after that may bring them back.
        self._refused: dict[int, int] = {}
        self._found: tuple[Task, WorkerInfo, int] | None = None
        self._now: Instant = 0
        self._left = 0
        self._policy: TaskScheduler
        self._queue: TaskQueue
        self._current: ClassQueue | None = None

    def use(self, policy: TaskScheduler, queue: TaskQueue, dispatch: Callable[[Task, WorkerInfo, int], None]) -> None:
        """Place by this policy from now on, from this queue, which may be empty so far."""
        self._policy, self._queue, self._dispatch = policy, queue, dispatch
        self._current = self._found = None
        self._fills_evenly = policy.fills_evenly
        self._prefers_in_order = policy.prefers_in_order
        self._has_backlogs = type(policy).backlog_limit is not TaskScheduler.backlog_limit
        self._by_task = type(policy).backlog_for is not TaskScheduler.backlog_for
        self._indexes = {}
        self._claims.use(queue)
        self._offers.clear()
        self._roomy = set(self._resources.by_seq)
        self._roomy_devices = set(self._resources.by_seq)

    def surplus(self, worker: WorkerInfo) -> list[Task]:
        """What lies in the backlog of a worker and would not have been sent there as things are now."""
        self._depths.clear()
        rows = ((task, task.request) for task in worker.task_queue)
        return [
            task
            for position, (task, request) in enumerate(rows)
            if request is not None and position >= self._depth(task, worker, request.needs[task.variant])
        ]

    def run(self, now: Instant) -> bool:
        """One pass, of at most `PLACED_PER_PASS_MAX` tasks; True where it was cut short."""
        self._now = now
        self._left = PLACED_PER_PASS_MAX
        if self._depths:
            self._depths.clear()
        if self._refused:
            self._refused.clear()
        if len(self._roomy) > len(self._resources.workers):
            self._roomy.intersection_update(self._resources.by_seq)
            self._roomy_devices.intersection_update(self._resources.by_seq)
        self._policy.plan(self, now)
        self._found = None
        if self._left <= 0:
            return True
        self._offers.clear()
        return False

    # ------------------------------------------------------------------------------------------------- the draft

    def head(self) -> Task | None:
        waiting = self._queue
        if self._left <= 0 or not waiting.size:
            return None
        if waiting.returned or self._resources.touched or self._resources.fresh:
            self._absorb()
        # Even a worker that is full may get something: work sent ahead, or a task that needs no CPU.
        roomy = self._roomy if waiting.without_gpu else self._roomy_devices
        if not (roomy or waiting.without_cpu or self._may_go_ahead()):
            return None
        queue = waiting.best()
        if self._offers:
            if waiting.set_apart:
                queue = self._stir(queue)
            else:
                self._offers.clear()
        self._current = queue
        if queue is None:
            return None
        return queue.front if queue.front is not None else waiting.head(queue)

    def _may_go_ahead(self, request: RequestClass | None = None) -> bool:
        """Whether what waits, or of this class, may be sent ahead of a full worker: where a kind of it is short.

        O(kinds), of what is short or of what waits, whichever are fewer.
        """
        short = self._runtimes.short
        if not short or not self._policy.by_kind:
            return bool(short)
        return request.kind in short if request is not None else not self._queue.kinds.keys().isdisjoint(short)

    def _absorb(self) -> None:
        """Take in what has changed: classes that came back give up their claims, workers may have offers.

        A worker has room where a CPU is free, for what needs a device where one is free too; or the policy would let
        its backlog grow.
        """
        if self._queue.returned:
            for returned in self._queue.take_returned():
                self._claims.drop(returned)
        if not (self._resources.touched or self._resources.fresh):
            return
        fresh = self._resources.take_fresh()
        open_seqs, limit_of = self._resources.open, self._policy.backlog_limit if self._has_backlogs else None
        open_devices, offers = self._resources.open_devices, self._offers
        roomy, roomy_devices = self._roomy, self._roomy_devices
        takes_any, without_gpu = self._queue.without_cpu or self._may_go_ahead(), self._queue.without_gpu
        for worker in fresh:
            seq = worker.seq
            is_open = seq in open_seqs
            if is_open or (limit_of and worker.accepts_work and _queued(worker) < limit_of(worker)):
                roomy.add(seq)
                if limit_of or seq in open_devices:
                    roomy_devices.add(seq)
                    offers[seq] = worker
                    continue
                is_open = without_gpu > 0
            else:
                roomy.discard(seq)
            roomy_devices.discard(seq)
            if is_open or takes_any:
                offers[seq] = worker
            else:
                offers.pop(seq, None)

    def _stir(self, queue: ClassQueue | None) -> ClassQueue | None:
        """Bring back the best class aside that could use an offer, unless `queue`, which is not aside, goes first.

        One at a time: what it takes may leave nothing for the next. A class that was set aside in this pass comes back
        only for what changed since, so a pass ends.
        """
        waiting = self._queue.aside()
        if len(waiting) > STIRRED_MAX:
            return self._stir_all(waiting)
        rank_of = self._queue.rank_of_head
        limit = rank_of(queue) if queue is not None else None
        if limit is not None and limit < min(map(rank_of, waiting)):
            return queue
        for each in sorted(waiting, key=rank_of):
            if limit is not None and limit < rank_of(each):
                return queue
            if self._has_offer(each):
                self._queue.bring_back(each)
                self._absorb()
                return each
        if limit is None:
            self._offers.clear()
        return queue

    def _stir_all(self, waiting: list[ClassQueue]) -> ClassQueue | None:
        for each in waiting:
            if self._has_offer(each):
                self._queue.bring_back(each)
        self._offers.clear()
        self._absorb()
        return self._queue.best()

    def _has_offer(self, queue: ClassQueue) -> bool:
        refused = self._refused.get(queue.request.number, -1)
        return any(w.version > refused and self._could_use(queue, w) for w in self._offers.values())

    def _could_use(self, queue: ClassQueue, worker: WorkerInfo) -> bool:
        request, ledger, task = queue.request, worker.ledger, self._queue.head(queue)
        if task is None or ledger is None or not worker.accepts_work:
            return False
        is_full = ledger.free_cpus < request.cpus_min
        if request.gpus_min and request.cpus_min and worker.seq not in self._roomy_devices:
            is_full = True
        if is_full and not self._has_backlogs and not self._base_depth(task):
            return False  # what most workers say to most classes, at the least cost
        found = self._fit(task, request, worker, self._possible(self._of(request), request, worker), None)
        if found is None:
            return False
        return not self._claims.by_seq or self._claims.leave(task, worker, request.needs[found[1]], found[0], self._now)

    def head_of(self, request: RequestClass, aside: bool = False, declined: bool = False) -> Task | None:
        queue = self._queue.find(request)
        if queue is None or (queue.blocked and not (declined if queue.is_declined else aside)):
            return None
        if queue.blocked and not queue.is_declined:
            if not self._has_offer(queue):
                return None
            self._queue.bring_back(queue)
            self._absorb()
        self._current = queue
        return self._queue.head(queue)

    def candidate(self, task: Task) -> WorkerInfo | None:
        request = task.request
        if request is None:
            return None
        index, claims = self._index(request, task), self._claims
        heap, by_seq = index.heap, self._resources.by_seq
        passed: list[Entry] = []
        chosen: WorkerInfo | None = None
        while heap:
            later, _, _, seq, version, variant = heap[0]
            worker = by_seq.get(seq)
            if worker is None or worker.version != version:
                heappop(heap)
            elif later and _queued(worker) >= self._depth(task, worker, request.needs[variant]):
                heappop(heap)  # comes back with the next change of the worker
            elif claims.are_due:
                claims.make(self._now)
            elif claims.by_seq and not claims.leave(task, worker, request.needs[variant], later, self._now):
                passed.append(heappop(heap))
            else:
                chosen = worker
                self._found = (task, worker, variant)
                break
        for entry in passed:
            heappush(heap, entry)
        return chosen

    def assign(self, task: Task, worker: WorkerInfo) -> None:
        found = self._found
        if found is not None and found[0] is task and found[1] is worker:
            variant = found[2]
        else:
            fitting = self.fit(task, worker)
            if fitting is None:
                self.block(task)
                return
            variant = fitting[1]
        self._place(task, worker, variant)

    def offer(self, task: Task, worker: WorkerInfo, depth: int) -> bool:
        """Place the task on this worker if it starts there now or its backlog is below `depth`."""
        fitting = self.fit(task, worker, depth)
        if fitting is None or task.request is None:
            return False
        if self._claims.are_due:
            self._claims.make(self._now)
        if not self._claims.leave(task, worker, task.request.needs[fitting[1]], fitting[0], self._now):
            return False
        self._place(task, worker, fitting[1])
        return True

    def draw(self, task: Task, count: int) -> list[WorkerInfo]:
        request = task.request
        if request is None:
            return []
        index, version = self._of(request), self._resources.members_version
        if index.members_version != version:
            index.members = [w for w in self._resources if w.accepts_work and self._possible(index, request, w)]
            index.members_version = version
        members, draw_below = index.members, self._draw_below
        return [members[draw_below(len(members))] for _ in range(count)] if members else []

    def block(self, task: Task) -> None:
        queue, request = self._current, task.request
        if queue is None or request is None:
            return
        self._queue.set_aside(queue)
        self._claims.note_aside(queue)
        self._refused[request.number] = self._resources.base + len(self._resources.changes)

    def decline(self, task: Task) -> None:
        request = task.request
        queue = self._queue.find(request) if request is not None else None
        if queue is None or request is None:
            return
        self._queue.set_aside(queue)
        queue.is_declined = True
        self._refused[request.number] = self._resources.base + len(self._resources.changes)

    def rescore(self) -> None:
        self._indexes = {}

    def first(self) -> Task | None:
        if self._left <= 0:
            return None
        self._absorb()
        queue = self._queue.best()
        return self._queue.head(queue) if queue is not None else None

    def waiting(self) -> list[Task]:
        return sorted(self._queue, key=lambda task: task.id)

    def workers(self) -> Iterable[WorkerInfo]:
        return self._resources

    def start(self, task: Task, worker: WorkerInfo) -> bool:
        fitting = self.fit(task, worker, 0) if task.place and self._left > 0 else None
        if fitting is None:
            return False
        self._left -= 1
        self._queue.remove(task)
        self._dispatch(task, worker, fitting[1])
        return True

    # --------------------------------------------------------------------------------------------- what fits where

    def fit(self, task: Task, worker: WorkerInfo, depth: int | None = None) -> Fit | None:
        """How the task would go to the worker now: (starts later, variant), or None."""
        request, ledger = task.request, worker.ledger
        if request is None or ledger is None or not worker.accepts_work:
            return None
        return self._fit(task, request, worker, self._possible(self._of(request), request, worker), depth)

    def fit_unclaimed(self, task: Task, worker: WorkerInfo) -> Fit | None:
        """As `fit`, but of a worker that is claimed, whatever the claim leaves, None: for who must leave no trace."""
        return None if worker.seq in self._claims.by_seq else self.fit(task, worker)

    def could_run(self, task: Task, worker: WorkerInfo) -> bool:
        """Whether the worker takes work and could run the task if it were empty."""
        request = task.request
        if request is None or not worker.accepts_work:
            return False
        return bool(self._possible(self._of(request), request, worker))

    def may_wait_at(self, task: Task, worker: WorkerInfo) -> bool:
        """Whether the worker could run the task if it were empty, and no better-ranked class claims it."""
        request = task.request
        if request is None or not self.could_run(task, worker):
            return False
        return not self._claims.by_seq or self._claims.leave(task, worker, request.needs[0], 1.0, self._now)

    def possible(self, request: RequestClass, worker: WorkerInfo) -> tuple[int, ...]:
        """The variants of such tasks that the worker could run if it were empty."""
        return self._possible(self._of(request), request, worker)

    def is_claimed(self, task: Task, worker: WorkerInfo) -> bool:
        """Whether the last pass kept the task off a worker where it fits, because a better-ranked class claims it."""
        fitting = self.fit(task, worker, 0)
        if fitting is None or task.request is None:
            return False
        return not self._claims.leave(task, worker, task.request.needs[fitting[1]], fitting[0], self._now)

    def has_room(self, task: Task, worker: WorkerInfo) -> bool:
        """Whether the task could start there now."""
        found = self.fit(task, worker, 0)
        return found is not None and not found[0]

    def _fit(
        self, task: Task, request: RequestClass, worker: WorkerInfo, possible: tuple[int, ...], depth: int | None
    ) -> Fit | None:
        ledger = worker.ledger
        if not possible or ledger is None:
            return None
        queued = len(worker.task_queue) - worker.outgoing + worker.incoming
        if queued <= 0:
            for variant in possible:
                if ledger.can_fit(request.needs[variant]):
                    return (0.0, variant)
        if depth is None:
            depth = self._depth(task, worker, request.needs[possible[0]])
        return (1.0 + self._fills_evenly * queued / ledger.slots, possible[0]) if queued < depth else None

    def _depth(self, task: Task, worker: WorkerInfo, need: Need) -> int:
        depth = self._base_depth(task) if self._runtimes.short else 0
        if depth and worker.task_queue and worker.task_queue[0].kind not in self._runtimes.short:
            depth = 0  # nobody knows when that one starts: others may have to make room for it
        if depth:
            ledger = worker.ledger
            slots = ledger.holds(need) if ledger is not None else worker.slots
            depth = min(depth * max(1, slots), self.rule.depth_max)
        if not self._has_backlogs:
            return depth
        policy = self._policy
        limit = policy.backlog_for(task, worker) if self._by_task else policy.backlog_limit(worker)
        return limit if limit > depth else depth

    def _base_depth(self, task: Task) -> int:
        """Attempts of its kind that a slot needs in its backlog to hide the round trip."""
        if task.kind not in self._runtimes.short:
            return 0
        hint_s = task.requirements.estimated_time
        depth = self._depths.get((task.kind, hint_s))
        if depth is None:
            estimate = self._runtimes.predict(task.kind, task.requirements.estimated_time)
            depth = self._depths[task.kind, hint_s] = self.rule.depth(estimate.mean_s if estimate is not None else None)
        return depth

    # -------------------------------------------------------------------------------------------------- the index

    def _of(self, request: RequestClass) -> Candidates:
        index = self._indexes.get(request.number)
        if index is None:
            waiting = self._queue.numbers()
            if len(self._indexes) >= INDEXES_SPARE_MAX + 2 * len(waiting):
                self._indexes = {number: kept for number, kept in self._indexes.items() if number in waiting}
            index = self._indexes[request.number] = Candidates()
        return index

    def _index(self, request: RequestClass, task: Task) -> Candidates:
        """The index of the class of `task`, up to date. O(changes since it was last looked at * log workers)."""
        index = self._indexes.get(request.number) or self._of(request)
        resources = self._resources
        if resources.touched or resources.fresh:
            self._absorb()
        end = resources.base + len(resources.changes)
        if index.cursor < resources.base:
            self._rebuild(index, request, task)
        elif index.cursor < end:
            self._follow(index, request, task)
        index.cursor = end
        return index

    def _rebuild(self, index: Candidates, request: RequestClass, task: Task) -> None:
        if len(index.possible) > 64 + 2 * len(self._resources):
            index.possible.clear()  # most of them are gone
        entries = (self._entry(index, task, request, worker) for worker in self._resources)
        index.heap = [entry for entry in entries if entry is not None]
        heapify(index.heap)

    def _follow(self, index: Candidates, request: RequestClass, task: Task) -> None:
        resources = self._resources
        changes, base, by_seq = resources.changes, resources.base, resources.by_seq
        roomy = self._roomy_devices if request.gpus_min else self._roomy
        takes_any = self._queue.without_cpu or not request.cpus_min or self._may_go_ahead(request)
        for version, seq in enumerate(changes[index.cursor - base :], index.cursor + 1):
            if seq not in roomy and not takes_any:
                continue  # nearly all, on a busy cluster
            worker = by_seq.get(seq)
            # Only the newest change of a worker counts.
            if worker is not None and worker.version == version:
                entry = self._entry(index, task, request, worker)
                if entry is not None:
                    heappush(index.heap, entry)
        if len(index.heap) > 64 + 8 * len(by_seq):
            self._rebuild(index, request, task)

    def _entry(self, index: Candidates, task: Task, request: RequestClass, worker: WorkerInfo) -> Entry | None:
        if not worker.accepts_work:
            return None
        known = index.possible.get(worker.seq)
        if known is not None and known[0] is worker.ledger:
            possible = known[1]
        else:
            possible = self._possible(index, request, worker)
        found = self._fit(task, request, worker, possible, None)
        if found is None:
            return None
        rank = found[1] if self._prefers_in_order else 0
        return (found[0], rank, self._policy.score(task, worker), worker.seq, worker.version, found[1])

    def _possible(self, index: Candidates, request: RequestClass, worker: WorkerInfo) -> tuple[int, ...]:
        ledger = worker.ledger
        if ledger is None:
            return ()
        known = index.possible.get(worker.seq)
        if known is not None and known[0] is ledger:
            return known[1]
        possible = tuple(i for i, need in enumerate(request.needs) if not ledger.blocker(need))
        index.possible[worker.seq] = (ledger, possible)
        return possible

    def _place(self, task: Task, worker: WorkerInfo, variant: int) -> None:
        queue = self._current
        if queue is None:
            return
        self._left -= 1
        popped = self._queue.pop(queue)
        if self._claims.chosen:
            self._claims.note_placed(queue, worker)
        self._dispatch(popped, worker, variant)

    def check(self) -> None:
        """No class may be aside while it could start somewhere that nobody claims. Raises AssertionError.

        What a claim leaves depends on estimates: they may have changed since the pass, which waits for a worker to.
        """
        for queue in self._queue.aside():
            task = self._queue.head(queue)
            assert task is not None, queue.request.requirements
            if queue.is_declined:
                continue
            for worker in self._resources:
                kept_off = not self.has_room(task, worker) or worker.seq in self._claims.by_seq
                assert kept_off, (task.id, worker.worker_id)


def _queued(worker: WorkerInfo) -> int:
    return len(worker.task_queue) - worker.outgoing + worker.incoming
