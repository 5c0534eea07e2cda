"""Which running attempts to stop for tasks that wait: a rule that a policy may follow, and the index that it needs.

The least important attempt goes first and, of equal ones, the one that started last, so a heap by that order is kept
of all that have run for long enough. On the worker of the least important one, as many are stopped as are needed, in
that same order; whoever turns out not to be needed is spared. Where one is not enough, workers are compared: the one
is taken where the least important are hit, then the fewest, then those that lose the least work.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush
from itertools import count

from msgspec import Struct

from schedd.core.capacity import Ledger
from schedd.core.model import SECOND, Cause, Instant, Queued, Running, Task, WorkerInfo
from schedd.core.needs import Need
from schedd.core.policies.base import Preemption, PreemptView

#: For one waiting task so many workers are compared on which room can be made. To find them, in one search for all, so
#: many are looked at (10 µs each), and so many attempts (2 µs each).
HOSTS_TRIED_MAX = 64
HOSTS_LOOKED_AT_MAX = 2000
LOOKED_AT_MAX = 4096
#: Attempts noted, before those are thrown out that have ended.
COMPACT_ABOVE = 1024

RankOf = Callable[[Task], float]
#: (less important first, later start first, later submit first, number, attempt, its task); the number keeps tasks from
#: being compared. Stale when the task runs another attempt, or none.
Entry = tuple[float, Instant, int, int, int, Task]


class PreemptRule(Struct, frozen=True):
    """When to stop an attempt for a task that waits.

    margin: by how much the task must outrank it. after_s: how long the task has waited. run_min_s: how long the attempt
    has run. times_max: attempts of a task that may be preempted, by whomever. grace_s: what each has at least before it
    is killed.
    """

    margin: float
    after_s: float
    run_min_s: float
    times_max: int
    grace_s: float


class Victim(Struct, frozen=True):
    """An attempt that may be stopped. `rank`: lower is more important."""

    rank: float
    started_ns: Instant
    task: Task
    need: Need


class Host(Struct, eq=False):
    """A worker, with what will be free there when all have gone that were told to, and all have come that were sent."""

    worker: WorkerInfo
    ledger: Ledger
    #: The least important first, of equal ones that which started last, or was submitted last.
    victims: list[Victim]
    #: Somebody else asked for room here; it may be enough.
    is_clearing: bool = False

    @property
    def order(self) -> tuple[float, Instant]:
        """What hosts are tried by: where room comes by itself first, then where the least important are."""
        if self.is_clearing or not self.victims:
            return (-math.inf, 0)
        return (-self.victims[0].rank, -self.victims[0].started_ns)


class Plan(Struct, frozen=True):
    """Whom to stop on a worker so that a task fits there by this variant; nobody where it will fit anyway."""

    host: Host
    variant: int
    need: Need
    victims: list[Victim]

    def price(self, now: Instant) -> tuple[float, int, int]:
        lost_ns = sum(now - victim.started_ns for victim in self.victims)
        return (-min(victim.rank for victim in self.victims), len(self.victims), lost_ns)

    def take(self) -> None:
        """Note what it does to its host, for those that come next."""
        for victim in self.victims:
            self.host.ledger.release(victim.need, victim.task.devices)
            self.host.victims.remove(victim)
        self.host.ledger.reserve(self.need)


class Preempting:
    """Follows a rule. rank_of: lower is more important, in units of priority."""

    def __init__(self, rule: PreemptRule, rank_of: RankOf) -> None:
        self._rule = rule
        self._rank_of = rank_of
        #: (since when, number, attempt, task) of what has not yet run for long enough, a heap.
        self._fresh: list[tuple[Instant, int, int, Task]] = []
        self._ripe: list[Entry] = []
        self._fresh_max = self._ripe_max = COMPACT_ABOVE
        self._numbers = count()

    def began(self, task: Task, now: Instant) -> None:
        """Note that the current attempt of a task runs, perhaps for long already. O(log attempts), amortised."""
        since = task.state.started_at_ns if isinstance(task.state, Running) else now
        heappush(self._fresh, (since, next(self._numbers), task.attempt, task))
        if len(self._fresh) > self._fresh_max:
            self._fresh = [entry for entry in self._fresh if _is_alive(entry[3], entry[2])]
            heapify(self._fresh)
            self._fresh_max = max(COMPACT_ABOVE, 2 * len(self._fresh))

    def propose(self, view: PreemptView, now: Instant) -> list[Preemption]:
        """Find victims for those that have waited long enough, the best-ranked first.

        O(classes that wait + attempts looked at * log(attempts that run)).
        """
        self._ripen(now)
        waiting = [task for task in view.waiting() if _has_waited(task, now, self._rule.after_s)]
        if not waiting:
            return []
        search = _Search(view, self._rule, self._rank_of, self._ripe, waiting, now)
        proposals: list[Preemption] = []
        for task in waiting:
            plan = search.best(task)
            if plan is not None and plan.victims:
                victims = tuple(victim.task for victim in plan.victims)
                proposals.append(Preemption(task, plan.host.worker, plan.variant, victims, self._rule.grace_s))
        search.close()
        return proposals

    def _ripen(self, now: Instant) -> None:
        oldest = now - int(self._rule.run_min_s * SECOND)
        while self._fresh and self._fresh[0][0] <= oldest:
            _, _, attempt, task = heappop(self._fresh)
            state = task.state
            if task.attempt != attempt or not isinstance(state, Running):
                continue
            if _times_preempted(task) < self._rule.times_max:
                key = (-self._rank_of(task), -state.started_at_ns, -task.id)
                heappush(self._ripe, (*key, next(self._numbers), attempt, task))
        if len(self._ripe) > self._ripe_max:
            self._ripe = [entry for entry in self._ripe if _is_alive(entry[5], entry[4])]
            heapify(self._ripe)
            self._ripe_max = max(COMPACT_ABOVE, 2 * len(self._ripe))


class _Search:
    """One search for victims. Takes entries out of the heap as it goes, and puts back in `close` what is alive."""

    def __init__(
        self,
        view: PreemptView,
        rule: PreemptRule,
        rank_of: RankOf,
        ripe: list[Entry],
        waiting: list[Task],
        now: Instant,
    ) -> None:
        self._view = view
        self._rule = rule
        self._rank_of = rank_of
        self._ripe = ripe
        self._waiting = waiting
        self._now = now
        #: Nobody more important than this is a victim of anyone who waits.
        self._limit = self._limit_for(waiting[0])
        self._room = HOSTS_LOOKED_AT_MAX
        self._passed: list[Entry] = []
        self._hosts: list[Host] = []
        self._seen: set[int] = set()
        for task in view.leaving():
            self._add_host(view.worker_of(task), is_clearing=True)

    def close(self) -> None:
        for entry in self._passed:
            heappush(self._ripe, entry)

    def best(self, task: Task) -> Plan | None:
        """The cheapest plan for a task, carried out in the ledger of its host; None: there is none."""
        limit, tried = self._limit_for(task), 0
        self._hosts.sort(key=lambda host: host.order)
        best: tuple[tuple[float, int, int], Plan] | None = None
        for host in self._candidates(task, limit):
            plan = _plan(host, task, limit)
            if plan is None:
                continue
            if not plan.victims:
                plan.take()
                return plan
            tried += 1
            price = plan.price(self._now)
            if best is None or price < best[0]:
                best = (price, plan)
            if tried == HOSTS_TRIED_MAX or (len(plan.victims) == 1 and self._is_least(plan)):
                break
        if best is None:
            return None
        best[1].take()
        return best[1]

    def _is_least(self, plan: Plan) -> bool:
        """Whether no worker that comes later can have anybody less important."""
        rank = plan.victims[0].rank
        return not plan.host.is_clearing and (not self._ripe or rank >= -self._ripe[0][0])

    def _candidates(self, task: Task, limit: float) -> Iterator[Host]:
        """The workers that could run it and have somebody that it outranks by enough, in their order."""
        position = 0
        while self._room and (position < len(self._hosts) or self._find_host(limit)):
            host = self._hosts[position]
            position += 1
            if self._view.may_wait_at(task, host.worker):
                self._room -= 1
                yield host

    def _limit_for(self, task: Task) -> float:
        """From which rank on others may be stopped for a task: never its own, however far apart numbers are there."""
        rank = self._rank_of(task)
        return max(rank + self._rule.margin, math.nextafter(rank, math.inf))

    def _find_host(self, limit: float) -> bool:
        """Add the worker of the next attempt in line that is less important than `limit`; False: there is none."""
        ripe = self._ripe
        while ripe and -ripe[0][0] >= limit and len(self._passed) < LOOKED_AT_MAX:
            entry = heappop(ripe)
            task = entry[5]
            if not _is_alive(task, entry[4]) or self._view.is_stopping(task):
                continue
            self._passed.append(entry)
            if self._add_host(self._view.worker_of(task)):
                return True
        return False

    def _add_host(self, worker: WorkerInfo | None, is_clearing: bool = False) -> bool:
        if worker is None or worker.seq in self._seen:
            return False
        self._seen.add(worker.seq)
        if not any(self._view.may_wait_at(task, worker) for task in self._waiting):
            return False
        host = self._host(worker)
        if host is not None:
            host.is_clearing = is_clearing
            self._hosts.append(host)
        return host is not None

    def _host(self, worker: WorkerInfo) -> Host | None:
        awaited = self._view.awaited_at(worker)
        if worker.resources is None or worker.incoming or awaited is None:
            return None
        ledger = Ledger(worker.resources)
        stopping = [task for task in worker.running.values() if self._view.is_stopping(task)]
        victims = []
        for task in worker.running.values():
            need = _need(task)
            if need is not None and task not in stopping:
                ledger.reserve_exactly(need, task.devices)
                if (victim := self._victim(task, need)) is not None:
                    victims.append(victim)
        for task in awaited:
            if (need := _need(task)) is not None:
                ledger.reserve(need)
        victims.sort(key=lambda victim: (-victim.rank, -victim.started_ns, -victim.task.id))
        return Host(worker, ledger, victims)

    def _victim(self, task: Task, need: Need) -> Victim | None:
        state, rank = task.state, self._rank_of(task)
        if rank < self._limit or not isinstance(state, Running):
            return None
        if self._now - state.started_at_ns < self._rule.run_min_s * SECOND:
            return None
        if _times_preempted(task) >= self._rule.times_max:
            return None
        return Victim(rank, state.started_at_ns, task, need)


def _is_alive(task: Task, attempt: int) -> bool:
    return task.attempt == attempt and type(task.state) is Running


def _has_waited(task: Task, now: Instant, after_s: float) -> bool:
    return isinstance(task.state, Queued) and now - task.state.since_ns >= after_s * SECOND


def _times_preempted(task: Task) -> int:
    return sum(1 for ended in task.attempts if ended.cause is Cause.PREEMPTED) if task.attempts else 0


def _need(task: Task) -> Need | None:
    return task.request.needs[task.variant] if task.request is not None else None


def _plan(host: Host, task: Task, limit: float) -> Plan | None:
    """The fewest victims by which one variant of the task fits, the first that can."""
    needs = task.request.needs if task.request is not None else ()
    for variant, need in enumerate(needs):
        if host.ledger.blocker(need):
            continue
        victims = _victims_for(host, need, limit)
        if victims is not None:
            return Plan(host, variant, need, victims)
    return None


def _victims_for(host: Host, need: Need, limit: float) -> list[Victim] | None:
    """Whom to stop so that `need` fits; None: all that may go would not do. Leaves the ledger as it was."""
    ledger = host.ledger
    gone: list[Victim] = []
    for victim in host.victims:
        if victim.rank < limit or ledger.can_fit(need):
            break
        ledger.release(victim.need, victim.task.devices)
        gone.append(victim)
    enough = ledger.can_fit(need)
    needed: list[Victim] = []
    for victim in reversed(gone):  # the most important are spared first
        ledger.reserve_exactly(victim.need, victim.task.devices)
        if enough and not ledger.can_fit(need):
            ledger.release(victim.need, victim.task.devices)
            needed.append(victim)
    for victim in needed:
        ledger.reserve_exactly(victim.need, victim.task.devices)
    if len(needed) > 1 and (alone := _alone(host, need, min(victim.rank for victim in needed))) is not None:
        return [alone]
    return needed if enough else None


def _alone(host: Host, need: Need, limit: float) -> Victim | None:
    """One victim, no more important than `limit`, that does for several: it may be the only one on its device."""
    for victim in host.victims:
        if victim.rank < limit:
            break
        host.ledger.release(victim.need, victim.task.devices)
        does = host.ledger.can_fit(need)
        host.ledger.reserve_exactly(victim.need, victim.task.devices)
        if does:
            return victim
    return None
