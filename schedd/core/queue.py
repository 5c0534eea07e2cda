"""The queue: for each request class a heap of priority levels, in each level a deque in the order of submission.

A pop from a heap of levels costs a tenth of a pop from a heap of tasks, for there are few levels and many tasks. The
rank of a task is constant while it waits, `ageing_rate * submit time - level`, so a heap stays a heap; inside a level
ageing only confirms the order of submission. Deletion is lazy: a queued row carries the number of its level in
`task.place` (or, where it came back out of order, a number of its own); an entry whose row says otherwise is passed
over when it surfaces. Ties are broken by the id, so that a retry keeps its place, and rows are never compared.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterator, KeysView
from heapq import heapify, heappop, heappush, heapreplace
from itertools import count, islice

from schedd.core.classes import RequestClass
from schedd.core.model import SECOND, Task

#: A class throws out its stale entries when there are more of them than this, and more than tasks that wait.
COMPACT_ABOVE = 64

#: Rank of the head of a class: (rank, seq); lower first.
Rank = tuple[float, int]
#: Behind all others.
NO_RANK: Rank = (math.inf, 0)


class _Level:
    """Queued tasks of one class and one priority."""

    __slots__ = ("number", "posted", "returned", "tasks")

    def __init__(self, number: int) -> None:
        self.number = number
        #: The seq under which the heap of its class has it; other entries there are stale.
        self.posted = -1
        self.tasks: deque[Task] = deque()
        #: Tasks that came back out of order (retries, releases): a heap of (seq, place, task).
        self.returned: list[tuple[int, int, Task]] = []

    def head(self) -> Task | None:
        tasks, returned, number = self.tasks, self.returned, self.number
        while tasks and tasks[0].place != number:
            tasks.popleft()
        while returned and returned[0][2].place != returned[0][1]:
            heappop(returned)
        if returned and (not tasks or returned[0][0] < tasks[0].id):
            return returned[0][2]
        return tasks[0] if tasks else None

    def alive(self) -> Iterator[Task]:
        """Yield what really waits here, in no particular order."""
        yield from (task for task in self.tasks if task.place == self.number)
        yield from (task for _, place, task in self.returned if task.place == place)

    def trim(self) -> int:
        """Throw out stale entries at both ends; returns how many there were.

        Commands for many tasks take them out in order, so that nothing is left to be compacted, in one long pause.
        """
        tasks, number = self.tasks, self.number
        before = len(tasks)
        while tasks and tasks[0].place != number:
            tasks.popleft()
        while tasks and tasks[-1].place != number:
            tasks.pop()
        return before - len(tasks)

    def compact(self) -> None:
        """Throw out all stale entries."""
        self.tasks = deque(task for task in self.tasks if task.place == self.number)
        self.returned = [entry for entry in self.returned if entry[2].place == entry[1]]
        heapify(self.returned)


class ClassQueue:
    """The queued tasks of one request class."""

    __slots__ = ("blocked", "front", "heap", "is_declined", "levels", "posted", "rank", "request", "size", "stale")

    def __init__(self, request: RequestClass) -> None:
        self.request = request
        self.levels: dict[float, _Level] = {}
        #: (rank, seq of the head, level) of each level; stale ranks are corrected when they surface.
        self.heap: list[tuple[float, int, float]] = []
        self.size = 0
        #: Tasks taken out since the last compaction; their entries may still be there.
        self.stale = 0
        #: The head as last worked out; None: it may have changed since.
        self.front: Task | None = None
        #: The rank of `front`.
        self.rank: Rank = NO_RANK
        #: The rank under which the queue of queues has it; None: not in there.
        self.posted: Rank | None = None
        #: Set aside by a placement pass: no worker has room for it, until one changes or its head does.
        self.blocked = False
        #: It could start, and was set aside because the policy expects more of waiting.
        self.is_declined = False


class TaskQueue:
    """All queued tasks, by the policy's ageing rate and level of a task.

    A queue that takes over from one before it begins empty: what stands there is `left_behind` until it is pushed here.
    """

    def __init__(self, ageing_rate: float, level_of: Callable[[Task], float], before: TaskQueue | None = None) -> None:
        self._ageing_per_ns = ageing_rate / SECOND
        self._level_of = level_of
        self._queues: dict[int, ClassQueue] = {}
        #: (rank, seq, class number) of the heads of all classes; alive while equal to what the class has posted.
        self._heads: list[tuple[float, int, int]] = []
        #: Places below this are in queues that were there before.
        self.first_place: int = next(before._places) if before is not None else 1
        self._places: count[int] = count(self.first_place)
        #: Tasks that stand in such places.
        self.left_behind: int = before.size + before.left_behind if before is not None else 0
        #: The classes that are set aside, by number.
        self.set_apart: dict[int, ClassQueue] = {}
        #: Classes that were aside and are no longer, or no longer wait, since the last `take_returned`.
        self.returned: list[ClassQueue] = []
        self.size: int = 0
        #: Grows when a class begins or ceases to wait.
        self.classes_version = 0
        #: Waiting classes that need no CPU, and no GPU, which a worker without a free one can still take.
        self.without_cpu = self.without_gpu = 0
        #: How many classes wait whose first task was of a kind; under a policy that tells kinds apart, all their tasks.
        self.kinds: dict[str, int] = {}

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[Task]:
        for queue in self._queues.values():
            for level in queue.levels.values():
                yield from level.alive()

    def rank(self, task: Task) -> Rank:
        """The rank of a task: lower goes first. Constant while it waits."""
        return (self._ageing_per_ns * task.submitted_ns - self._level_of(task), task.id)

    def rank_of_head(self, queue: ClassQueue) -> Rank:
        """The rank of the task of a class that goes first; behind all others where nothing waits."""
        return queue.rank if self.head(queue) is not None else NO_RANK

    def push(self, task: Task) -> None:
        """Queue a task in the place that its rank gives it. O(log levels), and O(log n) for one that came back."""
        request = task.request
        if request is None:
            raise ValueError("a task needs a request class before it can be queued")
        queue = self._queues.get(request.number)
        if queue is None:
            queue = self._queues[request.number] = ClassQueue(request)
            self.without_cpu += not request.cpus_min
            self.without_gpu += not request.gpus_min
            self.kinds[request.kind] = self.kinds.get(request.kind, 0) + 1
            self.classes_version += 1
        level_value = self._level_of(task)
        level = queue.levels.get(level_value)
        if level is None:
            level = queue.levels[level_value] = _Level(next(self._places))
        tasks, seq = level.tasks, task.id
        queue.size += 1
        self.size += 1
        if not tasks or tasks[-1].id < seq:
            task.place = level.number
            tasks.append(task)
        else:
            # A number of its own: an entry of this very task that was left behind here must stay stale.
            task.place = next(self._places)
            heappush(level.returned, (seq, task.place, task))
        if 0 <= level.posted <= seq:
            return  # behind others of its level: no head has changed
        level.posted = seq
        queue.front = None
        rank = self._ageing_per_ns * task.submitted_ns - level_value
        heappush(queue.heap, (rank, seq, level_value))
        if queue.posted is None or (rank, seq) < queue.posted:
            self._post(queue, (rank, seq))
        if queue.blocked:
            self.bring_back(queue)

    def remove(self, task: Task) -> None:
        """Take a task out, wherever it stands; its entry is left behind as stale. O(1), amortised."""
        request = task.request
        if not task.place or request is None:
            return
        if task.place < self.first_place:
            task.place = 0
            self.left_behind -= 1
            return
        task.place = 0
        queue = self._queues[request.number]
        queue.size -= 1
        queue.front = None
        self.size -= 1
        if not queue.size:
            self._drop(queue)
            return
        queue.stale += 1 - self._trim(queue, self._level_of(task))
        if queue.blocked:
            self.bring_back(queue)
        if queue.stale > COMPACT_ABOVE and queue.stale > queue.size:
            self._compact(queue)

    def take_over(self, task: Task) -> None:
        """Queue a task that is left behind. Its class may have changed."""
        self.left_behind -= 1
        self.push(task)

    def is_left_behind(self, task: Task) -> bool:
        """Whether a task still stands in a queue that was there before."""
        return 0 < task.place < self.first_place

    def best(self) -> ClassQueue | None:
        """The class whose head has the best rank, those set aside excepted; None where there is none."""
        heads = self._heads
        while heads:
            rank, seq, number = heads[0]
            queue = self._queues.get(number)
            if queue is None or queue.blocked or queue.posted != (rank, seq):
                heappop(heads)
                continue
            if self.head(queue) is None:
                raise AssertionError(f"class {number} has {queue.size} tasks and no head")
            rank_now = queue.rank
            if rank_now == (rank, seq):
                return queue
            # Its head was taken or moved since, or the same task came back: its rank is later than it has posted.
            queue.posted = rank_now
            heapreplace(heads, (*rank_now, number))
            if len(heads) == 1:
                return queue
        return None

    def head(self, queue: ClassQueue) -> Task | None:
        """The task of this class that goes first."""
        if queue.front is not None:
            return queue.front
        heap = queue.heap
        while heap:
            rank, seq, value = heap[0]
            level = queue.levels.get(value)
            if level is None or level.posted != seq:
                heappop(heap)
                continue
            task = level.head()
            if task is None:
                heappop(heap)
                del queue.levels[value]
            elif task.id != seq:
                level.posted = seq = task.id
                rank = self._ageing_per_ns * task.submitted_ns - value
                heapreplace(heap, (rank, seq, value))
                if heap[0][1:] == (seq, value):  # still the best of the levels
                    queue.front, queue.rank = task, (rank, seq)
                    return task
            else:
                queue.front, queue.rank = task, (rank, seq)
                return task
        return None

    def pop(self, queue: ClassQueue) -> Task:
        """Take the head out. Raises IndexError where there is none."""
        task = queue.front if queue.front is not None else self.head(queue)
        if task is None:
            raise IndexError("pop from an empty class")
        level = queue.levels[self._level_of(task)]
        if level.returned and level.returned[0][2] is task:
            heappop(level.returned)
        else:
            level.tasks.popleft()
        task.place = 0
        queue.front = None
        queue.size -= 1
        self.size -= 1
        if not queue.size:
            self._drop(queue)
        return task

    def set_aside(self, queue: ClassQueue) -> None:
        """Leave a class out of `best` until `bring_back`, which a new head does by itself."""
        queue.blocked = True
        self.set_apart[queue.request.number] = queue
        heads = self._heads
        if heads and heads[0][2] == queue.request.number:
            heappop(heads)  # `bring_back` posts it anew

    def bring_back(self, queue: ClassQueue) -> None:
        """Let `best` see a class again. O(log classes)."""
        queue.blocked = queue.is_declined = False
        del self.set_apart[queue.request.number]
        self.returned.append(queue)
        if self.head(queue) is not None:
            self._post(queue, queue.rank)

    def aside(self) -> list[ClassQueue]:
        """The classes that are set aside, in the order in which they were."""
        return list(self.set_apart.values())

    def take_returned(self) -> list[ClassQueue]:
        """The classes that ceased to be aside since the last call."""
        returned, self.returned = self.returned, []
        return returned

    def find(self, request: RequestClass) -> ClassQueue | None:
        """The queue of a class; None where nothing of it waits."""
        return self._queues.get(request.number)

    def numbers(self) -> KeysView[int]:
        """Return the numbers of the classes that wait."""
        return self._queues.keys()

    def sample(self, per_class: int) -> Iterator[Task]:
        """Yield the head of each waiting class, and some more of its tasks, in no particular order."""
        for queue in self._queues.values():
            head = self.head(queue)
            if head is not None:
                yield head
            yield from islice((task for level in queue.levels.values() for task in level.alive()), per_class)

    def classes(self) -> Iterator[ClassQueue]:
        """Yield the classes that wait."""
        yield from self._queues.values()

    def _post(self, queue: ClassQueue, rank: Rank) -> None:
        queue.posted = rank
        if not queue.blocked:
            heappush(self._heads, (*rank, queue.request.number))
        if len(self._heads) > 64 and len(self._heads) > 4 * len(self._queues):
            alive = (h for h in self._heads if (q := self._queues.get(h[2])) and q.posted == h[:2])
            self._heads = list(dict.fromkeys(alive))
            heapify(self._heads)

    def _trim(self, queue: ClassQueue, value: float) -> int:
        """Throw out what is stale at both ends of a level, and the level with its last entry."""
        level = queue.levels.get(value)
        if level is None:
            return 0
        count = level.trim()
        if not level.tasks and not level.returned:
            del queue.levels[value]
            if len(queue.heap) > COMPACT_ABOVE and len(queue.heap) > 2 * len(queue.levels):
                self._post_levels(queue)
        return count

    def _compact(self, queue: ClassQueue) -> None:
        """Throw out stale entries and empty levels: priorities that change for ever must not pile up. O(entries)."""
        queue.stale = 0
        for level in queue.levels.values():
            level.compact()
        self._post_levels(queue)

    def _post_levels(self, queue: ClassQueue) -> None:
        """Make the heap of a class anew, without levels that are empty."""
        queue.heap.clear()
        for value, level in list(queue.levels.items()):
            head = level.head()
            if head is None:
                del queue.levels[value]
                continue
            level.posted = head.id
            queue.heap.append((*self.rank(head), value))
        heapify(queue.heap)

    def _drop(self, queue: ClassQueue) -> None:
        queue.posted = None
        if queue.blocked:
            queue.blocked = False
            del self.set_apart[queue.request.number]
            self.returned.append(queue)
        if self._queues.pop(queue.request.number, None) is not None:
            self.without_cpu -= not queue.request.cpus_min
            self.without_gpu -= not queue.request.gpus_min
            if self.kinds[queue.request.kind] == 1:
                del self.kinds[queue.request.kind]
            else:
                self.kinds[queue.request.kind] -= 1
            self.classes_version += 1

    def check(self) -> None:
        """Recompute every derived number. Raises AssertionError."""
        total = 0
        for queue in self._queues.values():
            alive = [task.id for level in queue.levels.values() for task in level.alive()]
            assert len(set(alive)) == len(alive), (queue.request.requirements, sorted(alive))
            assert len(alive) == queue.size, (queue.request.requirements, len(alive), queue.size)
            total += queue.size
            for value, level in queue.levels.items():
                assert all(self._level_of(task) == value for task in level.alive()), (value, queue.request.requirements)
            assert queue.front is None or queue.rank == self.rank(queue.front), (queue.rank, queue.front.id)
        assert total == self.size, (total, self.size)
        requests = [queue.request for queue in self._queues.values()]
        assert self.without_cpu == sum(not request.cpus_min for request in requests)
        assert self.without_gpu == sum(not request.gpus_min for request in requests)
        assert self.kinds == Counter(request.kind for request in requests)
