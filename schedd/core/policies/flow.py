"""Which task goes where, and after which others, so that the mean of all completion times is low.

The last task of a worker delays nobody, the last but one delays one other, and so on. So where all tasks are known the
mean is least in the cheapest matching of tasks with places counted from the end (Horn, "Minimizing Average Flow Time
with Parallel Machines", 1973; Bruno, Coffman, Sethi, 1974), and on each worker the shortest go first.

Here equal workers are one side of the matching, and their places are poured together: a task that is given to so many
workers takes its runtime, again for each round of tasks that go after it, and as long as what goes before it takes all
workers together. The round that is not full counts as half of one. In the order of the runtimes there these costs are
nearly those of a convex program, so each class of tasks in turn goes where it costs the least, until none would move.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, islice
from typing import TYPE_CHECKING

from schedd.core.model import SECOND, Instant, Task
from schedd.core.policies.base import WaitingClass
from schedd.core.policies.groups import Groups

if TYPE_CHECKING:
    from schedd.core.classes import RequestClass

INF = math.inf
#: Sweeps over all classes; in the parts of a class that go different ways, and in parts of all classes, at the most.
SWEEPS_MAX = 6
PARTS_MAX = 16
SWEEP_PARTS_MAX = 1500
#: Parts that all sweeps place, about: some 30 ms on few models.
PARTS_PLACED_MAX = 3000
#: Planned classes that are looked at for one worker; beyond that they wait for the next refresh.
LOOKED_AT_MAX = 64
DONE_FACTOR = 1e6


class Side:
    """What one group of workers has been given, in the order in which it goes there: each delays all behind it."""

    __slots__ = ("_counts", "_due", "_each", "_frees", "_sums", "_work", "_works", "count")

    def __init__(self, frees: Sequence[float], places: int) -> None:
        """frees: seconds until each of its workers has done what it does now. places: of the order, from 0."""
        self._frees = sorted(frees)
        self._sums = list(accumulate(self._frees))
        #: Work that the first workers have done together when the next one joins them.
        self._due = [n * free - total for n, (free, total) in enumerate(zip(self._frees, self._sums, strict=True), 1)]
        #: Work of a task at each place; and sums over all places.
        self._each = [0.0] * places
        self._counts = [0] * (places + 1)
        self._works = [0.0] * (places + 1)
        self.count = 0
        self._work = 0.0

    def add(self, place: int, count: int, work: float) -> None:
        """Give it so many tasks at a place in the order, each of so much work; below 0 they are taken back.

        O(log places): the sums are a tree (Fenwick, 1994).
        """
        total = count * work
        self._each[place] = work
        self.count += count
        self._work += total
        at, counts, works = place + 1, self._counts, self._works
        while at < len(counts):
            counts[at] += count
            works[at] += total
            at += at & -at

    def cost(self, place: int, work: float, runtime_s: float, count: int = 1) -> float:
        """By how much the sum of all completion times grows for each of `count` more tasks at a place.

        O(log places).
        """
        # Those that are free too late get nothing.
        workers = bisect_right(self._due, max(self._work + work, 0.0))
        if self.count + count <= workers:
            return runtime_s + self._frees[self.count + count // 2]  # each has a worker of its own
        before, before_work = self._before(place)
        delayed = (self.count - before + 0.5) / workers - 0.5
        if delayed < 0:
            before_work, delayed = self._first(int(self.count + 0.5 - workers / 2)), 0.0
        before_work += work * (count - 1) / 2
        return runtime_s + work * delayed + (before_work + self._sums[workers - 1]) / workers

    def _before(self, place: int) -> tuple[int, float]:
        """Tasks up to a place, and their work."""
        at, count, work = place + 1, 0, 0.0
        counts, works = self._counts, self._works
        while at:
            count += counts[at]
            work += works[at]
            at -= at & -at
        return count, work

    def _first(self, count: int) -> float:
        """The work of so many tasks that go first."""
        at, work, counts, works = 0, 0.0, self._counts, self._works
        step = 1 << (len(counts) - 1).bit_length()
        while count > 0 and step:
            if at + step < len(counts) and counts[at + step] <= count:
                at += step
                count -= counts[at]
                work += works[at]
            step >>= 1
        return work + count * self._each[at] if count > 0 and at < len(self._each) else work


def solve(
    counts: Sequence[int],
    works: Sequence[Sequence[float]],
    runtimes: Sequence[Sequence[float]],
    keys: Sequence[Sequence[float]],
    frees: Sequence[Sequence[float]],
    start: Sequence[Sequence[int]] = (),
) -> tuple[list[list[int]], list[Side], list[list[int]]]:
    """Return how many tasks of each class go to each group, the groups with them, and the places of the classes there.

    Places are counted from 1; at 0 is what goes before all that waits. counts: tasks of each class. works: seconds of a
    whole worker of the group that one of them takes, infinite where it cannot run; runtimes: how long it takes; keys:
    the order in which classes go there, lower first. frees: seconds until each worker of a group has done what it does.
    start: where they went the last time. O(sweeps * classes * groups * log classes).
    """
    groups = range(len(frees))
    places = [[0] * len(counts) for _ in groups]
    for g in groups:
        for place, k in enumerate(sorted(range(len(counts)), key=lambda k: keys[k][g]), 1):
            places[g][k] = place
    sides = [Side(free, len(counts) + 1) for free in frees]
    given = [[0] * len(frees) for _ in counts]
    for k, row in enumerate(start):
        for g in groups:
            if row[g] and works[k][g] < INF:
                given[k][g] = row[g]
                sides[g].add(places[g][k], row[g], works[k][g])
    open_groups = [[g for g in groups if works[k][g] < INF and len(frees[g])] for k in range(len(counts))]
    # The longest first: they go where they are best off, and the short ones, which delay nobody for long, around them.
    in_turn = sorted((k for k in range(len(counts)) if open_groups[k]), key=lambda k: -min(works[k]))
    parts = max(1, min(PARTS_MAX, SWEEP_PARTS_MAX // max(1, len(in_turn))))
    sweeps = max(1, min(SWEEPS_MAX, PARTS_PLACED_MAX // max(1, sum(min(parts, counts[k]) for k in in_turn))))
    for _ in range(sweeps):
        moved = False
        for k in in_turn:
            before = given[k]
            for g in groups:
                if before[g]:
                    sides[g].add(places[g][k], -before[g], works[k][g])
            given[k] = _spread(k, counts[k], parts, open_groups[k], works[k], runtimes[k], sides, places)
            moved = moved or given[k] != before
        if not moved:
            break
    return given, sides, places


def _spread(
    k: int,
    count: int,
    parts: int,
    open_groups: Sequence[int],
    works: Sequence[float],
    runtimes: Sequence[float],
    sides: Sequence[Side],
    places: Sequence[Sequence[int]],
) -> list[int]:
    """Give the tasks of a class, in parts, to the groups where they cost the least."""
    given = [0] * len(sides)
    size = -(-count // parts)
    while count > 0:
        size = min(size, count)
        best = min(open_groups, key=lambda g: sides[g].cost(places[g][k], works[g], runtimes[g], size))
        sides[best].add(places[best][k], size, works[best])
        given[best] += size
        count -= size
    return given


class _Planned:
    """Tasks of a class that are to go to a group and have not gone yet."""

    __slots__ = ("left", "request")

    def __init__(self, request: RequestClass, left: int) -> None:
        self.request = request
        self.left = left


class Flow:
    """The plan as of the last refresh, and what is left of it."""

    def __init__(self, patience: float) -> None:
        """patience: a task is not overtaken by one that came later than after so many times its own runtime."""
        self._patience = patience
        self._newest_ns: Instant = 0
        self._sides: list[Side] = []
        self._keys: list[list[float]] = []
        self._lists: list[list[_Planned]] = []
        #: How far each list is worked off.
        self._next: list[int] = []
        #: What is planned of each class on each group.
        self._planned: dict[RequestClass, list[_Planned]] = {}

    def settle(self, groups: Groups, waiting: Sequence[WaitingClass], works: Sequence[Sequence[float]]) -> None:
        """Plan anew. works: seconds of a whole worker of each group that a task of each class takes, or infinity."""
        frees = [group.frees for group in groups]
        numbers = range(len(frees))
        self._newest_ns = max((one.head.submitted_ns for one in waiting), default=0)
        keys = [[self._key(one.head, work) for work in row] for one, row in zip(waiting, works, strict=True)]
        runtimes = [runtimes_of(one.request, groups, row) for one, row in zip(waiting, works, strict=True)]
        start = [self._left_of(one, len(frees)) for one in waiting]
        given, self._sides, places = solve([one.size for one in waiting], works, runtimes, keys, frees, start)
        parts = [[_Planned(one.request, n) for n in row] for one, row in zip(waiting, given, strict=True)]
        self._planned = {one.request: row for one, row in zip(waiting, parts, strict=True)}
        self._keys = [sorted(row[g] for row in keys) for g in numbers]
        in_order = [sorted(range(len(parts)), key=places[g].__getitem__) for g in numbers]
        self._lists = [[parts[k][g] for k in in_order[g] if parts[k][g].left] for g in numbers]
        self._next = [0] * len(frees)

    def _key(self, task: Task, work: float) -> float:
        """Where a task goes in the order of a group, lower first: by its length, less what its patience is worth."""
        return work + (task.submitted_ns - self._newest_ns) / SECOND / self._patience

    def _left_of(self, waiting: WaitingClass, width: int) -> list[int]:
        """What is left of the last plan, as far as that much still waits."""
        planned = self._planned.get(waiting.request, ())
        room, row = waiting.size, [0] * width
        for g, part in enumerate(planned if len(planned) == width else ()):
            row[g] = min(room, part.left)
            room -= row[g]
        return row

    def wanted(self, group: int) -> Iterator[RequestClass]:
        """What a free worker of the group should do, the first first; a bounded number of classes."""
        if not 0 <= group < len(self._lists):
            return
        planned, at = self._lists[group], self._next[group]
        while at < len(planned) and not planned[at].left:
            at += 1
        self._next[group] = at
        for part in islice(planned, at, at + LOOKED_AT_MAX):
            if part.left:
                yield part.request

    def factor(self, group: int) -> float:
        """By how much the score of a group is changed: those for which nothing is left by the plan come last."""
        return 1.0 if next(self.wanted(group), None) is not None else DONE_FACTOR

    def note_placed(self, task: Task, group: int, runtime_s: float) -> None:
        """Note that a task went to a group, as planned or not."""
        planned = self._planned.get(task.request) if task.request is not None else None
        part = max(planned, key=lambda one: one.left) if planned else None
        if planned and 0 <= group < len(planned) and planned[group].left:
            part = planned[group]
        elif 0 <= group < len(self._sides):
            self._sides[group].add(0, 1, runtime_s)
        if part is not None and part.left:
            part.left -= 1

    def is_overdue(self, task: Task, other: Task, runtime_s: float) -> bool:
        """Whether the task, which takes so long here, has waited too long to be overtaken by the other."""
        return (other.submitted_ns - task.submitted_ns) / SECOND > self._patience * runtime_s

    def better_elsewhere(
        self,
        task: Task,
        group: int,
        poor_s: float | None,
        works: Sequence[float],
        runtimes: Sequence[float],
        gone_s: float,
    ) -> tuple[int, float] | None:
        """The group for which a task should wait though it could start, and in how many seconds it would end; or None.

        What it would delay there counts as if it took longer. poor_s: what it takes on a worker that is not counted on,
        which may leave it to the others of its group; else None. gone_s: since the last refresh.
        """
        here_s = runtimes[group] if poor_s is None else poor_s
        planned = self._planned.get(task.request) if task.request is not None else None
        is_planned = planned is not None and any(part.left for part in planned)
        best: tuple[int, float] | None = None
        for g, side in enumerate(self._sides):
            if g == group and poor_s is None:
                continue
            if works[g] == INF or (is_planned and planned and not planned[g].left):
                continue
            place = bisect_right(self._keys[g], self._key(task, works[g])) - is_planned
            in_s = max(side.cost(place, works[g], runtimes[g]) - gone_s, runtimes[g])
            if ((is_planned and g != group) or in_s < here_s) and (best is None or in_s < best[1]):
                best = (g, in_s)
        return best


def runtimes_of(request: RequestClass, groups: Groups, works: Sequence[float]) -> list[float]:
    """How long a task runs on each group that takes so much of a whole worker."""
    found = []
    for group, work in zip(groups, works, strict=True):
        taken = INF if work == INF else group.share(request.needs)
        found.append(work / taken if work < INF else INF)
    return found
