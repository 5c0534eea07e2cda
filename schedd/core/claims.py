"""Claims: how a class that waits for much is not starved by those that need little.

A class that was set aside claims one worker (the "gap" rule): classes of lower rank take there only what the claim
leaves, or what ends before the claim can start (backfill, by the upper estimate of runtimes; Lifka, "The ANL/IBM SP
scheduling system", 1995). A class that no other could starve claims nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from msgspec import Struct

from schedd.core.capacity import Ledger
from schedd.core.classes import RequestClass
from schedd.core.model import SECOND, Instant, Running, Task, WorkerInfo
from schedd.core.needs import Need
from schedd.core.queue import ClassQueue, TaskQueue
from schedd.core.resources import ResourceManager, need_of
from schedd.core.stats import RuntimeTable

#: Blocked classes that may hold a claim at a time: more would keep much of a cluster waiting for what is rare.
CLAIMS_MAX = 64
#: Workers looked at when a claim is made, and of these, the freest ones, whose earliest start is worked out.
CLAIM_SAMPLE_MAX = 64
CLAIM_CANDIDATES_MAX = 4
#: Later than any instant that an estimate gives.
_FAR: Instant = 1 << 62


class Claim(Struct):
    """What a class that was set aside wants of a worker, and when it expects to get it.

    It counts while the class is aside. `start_ns` was worked out when the worker had this version.
    """

    queue: ClassQueue
    need: Need
    start_ns: Instant = 0
    version: int = -1


class Claims:
    """The claims of the classes that are aside.

    possible_of: the variants of a class that a worker could ever hold.
    """

    def __init__(
        self,
        resources: ResourceManager,
        runtimes: RuntimeTable,
        possible_of: Callable[[RequestClass, WorkerInfo], tuple[int, ...]],
    ) -> None:
        self._resources = resources
        self._runtimes = runtimes
        self._possible_of = possible_of
        self._queue: TaskQueue
        #: By seq of the worker.
        self.by_seq: dict[int, Claim] = {}
        #: Classes that were set aside and have not claimed yet: nobody came after them so far.
        self._unclaimed: list[ClassQueue] = []
        #: The seq of the worker that a class claims, or claimed last, by number of the class.
        self.chosen: dict[int, int] = {}
        #: The least that any class asks for which waits, as long as the same ones wait.
        self._least = Least([])
        #: The classes and workers that were there when the claims were last looked over.
        self._version = (-1, -1)
        self._cursor = 0

    def use(self, queue: TaskQueue) -> None:
        """Begin anew with this queue."""
        self._queue = queue
        self._version = (-1, -1)
        self.by_seq.clear()
        self._unclaimed.clear()
        self.chosen.clear()

    def note_aside(self, queue: ClassQueue) -> None:
        """Note that a class was set aside; it claims when somebody comes after it."""
        self._unclaimed.append(queue)

    def note_placed(self, queue: ClassQueue, worker: WorkerInfo) -> None:
        """Note that a class got something on a worker: it chooses anew when it is set aside again. O(1)."""
        if self.chosen.get(queue.request.number) == worker.seq:
            del self.chosen[queue.request.number]

    def drop(self, queue: ClassQueue) -> None:
        """Give up the claim of a class that is no longer aside: whoever it kept off the worker may look again."""
        seq = self.chosen.get(queue.request.number, 0)
        claim = self.by_seq.get(seq)
        if claim is not None and claim.queue is queue:
            del self.by_seq[seq]
            worker = self._resources.by_seq.get(seq)
            if worker is not None:
                self._resources.touch(worker)

    # ---------------------------------------------------------------------------------------------- making claims

    @property
    def are_due(self) -> bool:
        """Whether `make` has something to do before anyone else is placed."""
        if self._unclaimed:
            return True
        if not self._queue.set_apart:
            return False
        classes, members = self._version
        return classes != self._queue.classes_version or members != self._resources.members_version

    def make(self, now: Instant) -> None:
        """Let the classes that are aside claim, best rank first."""
        version = (self._queue.classes_version, self._resources.members_version)
        if version != self._version:
            self._version = version
            self._unclaimed = self._look_over()
            self._least = Least(queue.request.needs for queue in self._queue.classes())
        for queue in self._unclaimed:
            if queue.blocked and not queue.is_declined and len(self.by_seq) < CLAIMS_MAX and self._may_starve(queue):
                self._claim(queue, now)
        self._unclaimed = []

    def _look_over(self) -> list[ClassQueue]:
        """Drop claims on workers that take no work; returns the classes aside that have none, best rank first."""
        by_seq = self._resources.by_seq
        for seq in list(self.by_seq):
            worker = by_seq.get(seq)
            if worker is None or not worker.accepts_work:
                del self.by_seq[seq]
        having = {claim.queue.request.number for claim in self.by_seq.values()}
        waiting = self._queue.numbers()
        self.chosen = {n: seq for n, seq in self.chosen.items() if n in waiting or n in having}
        without = [queue for queue in self._queue.aside() if queue.request.number not in having]
        return sorted(without, key=self._queue.rank_of_head)

    def _may_starve(self, queue: ClassQueue) -> bool:
        """Whether tasks that are smaller in anything could keep taking what this class needs at one time."""
        return any(map(self._least.is_below, queue.request.needs))

    def _claim(self, queue: ClassQueue, now: Instant) -> None:
        request = queue.request
        worker = self._resources.by_seq.get(self.chosen.get(request.number, 0))
        if worker is None or not worker.accepts_work or worker.seq in self.by_seq:
            worker = self._choose(request, now)
        if worker is not None:
            self.chosen[request.number] = worker.seq
            self.by_seq[worker.seq] = Claim(queue, request.needs[self._possible_of(request, worker)[0]])

    def _choose(self, request: RequestClass, now: Instant) -> WorkerInfo | None:
        """The worker with the earliest start among a sample that moves on with each call."""
        order, by_seq = self._resources.order, self._resources.by_seq
        freest: list[tuple[int, int]] = []
        for step in range(min(len(order), CLAIM_SAMPLE_MAX)):
            seq = order[(self._cursor + step) % len(order)]
            worker = by_seq.get(seq)
            if worker is None or not worker.accepts_work or seq in self.by_seq:
                continue
            if self._possible_of(request, worker):
                freest.append((worker.task_count + len(worker.task_queue), seq))
        self._cursor += CLAIM_SAMPLE_MAX
        starts = []
        for _, seq in sorted(freest)[:CLAIM_CANDIDATES_MAX]:
            need = request.needs[self._possible_of(request, by_seq[seq])[0]]
            starts.append((self._earliest_start(by_seq[seq], need, now), seq))
        return by_seq[min(starts)[1]] if starts else None

    # ------------------------------------------------------------------------------------------------- what they leave

    def leave(self, task: Task, worker: WorkerInfo, need: Need, later: float, now: Instant) -> bool:
        """Whether a task may go to a worker, for all that a class aside of better rank claims there."""
        claim = self.by_seq.get(worker.seq)
        if claim is None or claim.queue.request is task.request:
            return True
        if not claim.queue.blocked or self._queue.rank(task) < self._queue.rank_of_head(claim.queue):
            return True
        if later:
            return False
        if need == claim.need:
            return True  # a class is starved by what is smaller; of equals the policy says whose turn it is
        if claim.version != worker.version:
            claim.start_ns, claim.version = self._earliest_start(worker, claim.need, now), worker.version
        start = claim.start_ns
        upper = self._upper_runtime(task)
        if upper is not None and start < _FAR and now + upper <= start:
            return True
        ledger = _empty(worker)
        for running in worker.running.values():
            if self._upper_end(running, now) > start:
                ledger.reserve_exactly(need_of(running), running.devices)
        return ledger.reserve(need) is not None and ledger.can_fit(claim.need)

    def _earliest_start(self, worker: WorkerInfo, need: Need, now: Instant) -> Instant:
        """When `need` will fit, by the upper estimates of what runs there; far away where they are unknown."""
        ledger = _empty(worker)
        ends = sorted((self._upper_end(task, now), task.id) for task in worker.running.values())
        for task in worker.running.values():
            ledger.reserve_exactly(need_of(task), task.devices)
        if ledger.can_fit(need):
            return now
        for end, task_id in ends:
            task = worker.running[task_id]
            ledger.release(need_of(task), task.devices)
            if ledger.can_fit(need):
                return end
        return _FAR

    def _upper_end(self, task: Task, now: Instant) -> Instant:
        upper = self._upper_runtime(task)
        state = task.state
        started = state.started_at_ns if isinstance(state, Running) else now
        return _FAR if upper is None else max(now, started + upper)

    def _upper_runtime(self, task: Task) -> int | None:
        estimate = self._runtimes.predict(task.kind, task.requirements.estimated_time)
        if estimate is None:
            return None if task.rules.timeout_s is None else int(task.rules.timeout_s * SECOND)
        return int(estimate.upper_s * SECOND)


def _empty(worker: WorkerInfo) -> Ledger:
    if worker.resources is None:
        raise ValueError(f"worker {worker.worker_id!r} has declared nothing")
    return Ledger(worker.resources)


class Least:
    """The least of everything that any alternative of some classes asks for. O(classes)."""

    def __init__(self, classes: Iterable[tuple[Need, ...]]) -> None:
        needs = [need for alternatives in {id(each): each for each in classes}.values() for need in alternatives]
        self._cpus = min((need.cpus for need in needs), default=0)
        self._ram_mb = min((need.ram_mb for need in needs), default=0)
        self._gpus = min((need.gpus * need.share for need in needs), default=0)
        self._gpu_mb = min((need.gpu_mb for need in needs), default=0)
        custom: dict[str, list[int]] = {}
        for need in needs:
            for name, amount in need.custom:
                custom.setdefault(name, []).append(amount)
        #: Who does not name one asks for nothing of it.
        self._custom = {name: min(amounts) for name, amounts in custom.items() if len(amounts) == len(needs)}

    def is_below(self, need: Need) -> bool:
        """Whether any of them asks for less of something than this one: where that fits, this need not."""
        if self._cpus < need.cpus or self._ram_mb < need.ram_mb or self._gpus < need.gpus * need.share:
            return True
        if need.gpus and self._gpu_mb < need.gpu_mb:
            return True
        return any(self._custom.get(name, 0) < amount for name, amount in need.custom)
