"""Whether it is the worker or the task: how often attempts fail, by kind and worker, and by kind and job.

Two verdicts are drawn from it. A *black hole* is a worker on which attempts fail far more often than attempts of the
same kinds do elsewhere; since it fails fast it draws in the whole queue. A *hopeless kind* is one of which, within a
job, task after task fails and none succeeds: an error in the user's code, not in a machine. This module counts and
compares; `core.guard` acts upon it.

Counts are integers that are halved: a cell when it is full, all cells of a kind when a window has passed. So what is
old weighs less, an attempt costs O(1), and nothing grows.
"""

from __future__ import annotations

from collections.abc import Callable
from math import lgamma, log

from schedd.core.model import Instant, Task, WorkerId
from schedd.core.settings import FailureRules
from schedd.core.verdicts import Cell, Comparison, Group, KindHold, Quarantine, Rates

#: Attempts of one kind on one worker that are remembered; beyond it both counts are halved, unless all succeeded. So
#: few that a worker that breaks after a thousand successes is found after some tens of failures.
CELL_MAX = 32
#: Attempts of a kind within a job that are remembered.
GROUP_MAX = 64
#: Kinds of one worker, workers, and kinds within jobs, of which there are counts; the oldest beyond are forgotten.
KINDS_PER_WORKER_MAX = 32
WORKERS_MAX = 4096
GROUPS_MAX = 4096
#: Quarantines of workers that are gone, and ended ones that a new one is measured by.
ABSENT_MAX = 1024
#: An attempt elsewhere that runs for so many times what the longest failure took has not failed like those.
OUTLIVED = 2
#: With as many attempts elsewhere there is no need to look at those that still run.
ELSEWHERE_ENOUGH = 32


def evidence(failed: int, attempts: int, failed_elsewhere: int, attempts_elsewhere: int) -> float:
    """Weigh "it fails at a rate of its own" against "it fails at the rate of the others"; returns log odds.

    The first is taken in the mean over all pairs of rates (uniform: a beta-binomial), the second at the one rate that
    suits it best:

        log [ B(x+1, n-x+1) * B(y+1, m-y+1) / (p^(x+y) * (1-p)^(n+m-x-y)) ],  p = (x+y) / (n+m)

    This is an e-value: whatever the common rate is, the odds exceed 1/a *at any time* with a probability of at most a
    (Ville's inequality), so that looking after every single failure makes no false alarms. Evidence of several kinds
    adds up. Wasserman, Ramdas, Balakrishnan, "Universal inference", PNAS 2020; Turner, Ly, Gruenwald, "Generic
    E-variables for exact sequential k-sample tests", 2021.
    """
    x, n, y, m = failed, attempts, failed_elsewhere, attempts_elsewhere
    both, total = x + y, n + m
    common = both * log(both / total) if both else 0.0
    if both < total:
        common += (total - both) * log(1 - both / total)
    return _log_beta(x + 1, n - x + 1) + _log_beta(y + 1, m - y + 1) - common


def _log_beta(a: int, b: int) -> float:
    return lgamma(a) + lgamma(b) - lgamma(a + b)


class Health:
    """Counts of attempts, and the verdicts in force."""

    def __init__(self, rules: FailureRules) -> None:
        self.rules = rules
        self.quarantines: dict[WorkerId, Quarantine] = {}
        #: Workers in quarantine whose pause is over and that wait for a task to be probed with.
        self.due: dict[WorkerId, None] = {}
        self.holds: dict[tuple[str, str], KindHold] = {}
        #: Holds that have ended, with tasks that are still to be let go, by number.
        self.ending: dict[int, KindHold] = {}
        self._rates: dict[str, Rates] = {}
        #: Which kinds each worker has a cell of, oldest first.
        self._kinds: dict[WorkerId, dict[str, None]] = {}
        self._groups: dict[tuple[str, str], Group] = {}
        #: Of workers that were in quarantine: how often, and until when.
        self._past: dict[WorkerId, tuple[int, Instant]] = {}
        self._holds_made = 0

    def obey(self, rules: FailureRules) -> None:
        """Judge by other rules from now on; of the tasks that failed last no more are remembered than these need."""
        self.rules = rules
        for group in self._groups.values():
            for task_id in list(group.run)[: -rules.hopeless_tasks_min]:
                del group.run[task_id]

    # ------------------------------------------------------------------------------------------------------- counting

    def note_attempt(self, worker_id: WorkerId, task: Task, ok: bool, runtime_ns: int, now: Instant) -> None:
        """Count an attempt that succeeded or failed on a worker. O(1), amortised."""
        kind = task.kind
        rates = self._rates.get(kind)
        if rates is None:
            rates = self._rates[kind] = Rates(now)
        elif now - rates.halved_ns >= self.rules.window_ns:
            self._age(rates, now)
        cell = rates.cells.get(worker_id)
        if cell is None:
            cell = rates.cells[worker_id] = Cell()
            self._enter(worker_id, kind)
        if ok:
            if cell.ok == CELL_MAX:
                return
            cell.ok += 1
            rates.ok += 1
        elif task.id in cell.tasks:
            return
        else:
            cell.failed += 1
            rates.failed += 1
            cell.failed_ns = max(cell.failed_ns, runtime_ns)
            cell.tasks[task.id] = None
            if len(cell.tasks) > CELL_MAX:
                del cell.tasks[next(iter(cell.tasks))]
        if cell.ok + cell.failed > CELL_MAX:
            _halve(rates, cell, 1)

    def note_outcome(self, task: Task, worker_id: WorkerId, ok: bool, now: Instant) -> None:
        """Count for the task's kind within its job that a task succeeded, or failed by an error of its own. O(1)."""
        key = (task.job, task.kind)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = Group(now)
            if len(self._groups) > GROUPS_MAX:
                del self._groups[next(iter(self._groups))]
        full = group.ok + group.failed >= GROUP_MAX and not (ok and not group.failed)
        steps = 1 if full else 0
        if now - group.halved_ns >= self.rules.window_ns:
            steps += (now - group.halved_ns) // self.rules.window_ns
            group.halved_ns = now
        if steps:
            group.ok >>= steps
            group.failed >>= steps
        if ok:
            group.ok = min(group.ok + 1, GROUP_MAX)
            group.run.clear()
        else:
            group.failed += 1
            if len(group.run) < self.rules.hopeless_tasks_min:
                group.run.setdefault(task.id, worker_id)

    def note_success(self, worker_id: WorkerId, task: Task, now: Instant) -> None:
        """Count a success for both, at the least cost where nothing ever fails: full counts stay as they are."""
        rules, rates, group = self.rules, self._rates.get(task.kind), self._groups.get((task.job, task.kind))
        if rules.quarantine:
            cell = rates.cells.get(worker_id) if rates is not None else None
            if rates is None or cell is None or now - rates.halved_ns >= rules.window_ns:
                self.note_attempt(worker_id, task, True, 0, now)
            elif cell.ok < CELL_MAX:
                cell.ok += 1
                rates.ok += 1
                if cell.ok + cell.failed > CELL_MAX:
                    _halve(rates, cell, 1)
        if rules.hopeless_kind and (
            group is None or group.ok < GROUP_MAX or group.run or now - group.halved_ns >= rules.window_ns
        ):
            self.note_outcome(task, worker_id, True, now)

    def _age(self, rates: Rates, now: Instant) -> None:
        steps = (now - rates.halved_ns) // self.rules.window_ns
        rates.halved_ns = now
        for cell in rates.cells.values():
            _halve(rates, cell, min(steps, 32))

    def _enter(self, worker_id: WorkerId, kind: str) -> None:
        kinds = self._kinds.get(worker_id)
        if kinds is None:
            kinds = self._kinds[worker_id] = {}
            if len(self._kinds) > WORKERS_MAX:
                self.forget_worker(next(iter(self._kinds)))
        kinds[kind] = None
        if len(kinds) > KINDS_PER_WORKER_MAX:
            self._forget_cell(worker_id, next(iter(kinds)))

    def forget_worker(self, worker_id: WorkerId) -> None:
        """Forget all counts of a worker; its failures no longer speak against any kind."""
        for kind in list(self._kinds.get(worker_id, ())):
            self._forget_cell(worker_id, kind)
        self._kinds.pop(worker_id, None)
        for group in self._groups.values():
            theirs = [task_id for task_id, where in group.run.items() if where == worker_id]
            for task_id in theirs:
                del group.run[task_id]

    def _forget_cell(self, worker_id: WorkerId, kind: str) -> None:
        del self._kinds[worker_id][kind]
        rates = self._rates[kind]
        cell = rates.cells.pop(worker_id)
        rates.ok -= cell.ok
        rates.failed -= cell.failed
        if not rates.cells:
            del self._rates[kind]

    def forget_group(self, job: str, kind: str) -> None:
        """Begin to count anew for a kind within a job."""
        self._groups.pop((job, kind), None)

    # ------------------------------------------------------------------------------------------------------ comparing

    def mostly_fails(self, worker_id: WorkerId) -> bool:
        """Whether at least half of a worker's attempts fail, and enough of them to be judged. O(kinds)."""
        failed = attempts = 0
        for kind in self._kinds.get(worker_id, ()):
            cell = self._rates[kind].cells[worker_id]
            failed += cell.failed
            attempts += cell.ok + cell.failed
        return failed >= self.rules.quarantine_failures_min and 2 * failed >= attempts

    def compare(self, worker_id: WorkerId, outlived: Callable[[str, int], int] | None = None) -> Comparison:
        """Compare a worker with the others, over the kinds that both have run.

        outlived(kind, nanoseconds): how many attempts of the kind run elsewhere for longer; each is one that did not
        fail like those here, which matters where a black hole is much quicker than an honest attempt. O(kinds).
        """
        failed = attempts = failed_elsewhere = attempts_elsewhere = 0
        total = 0.0
        for kind in self._kinds.get(worker_id, ()):
            rates = self._rates[kind]
            cell = rates.cells[worker_id]
            x, n = cell.failed, cell.ok + cell.failed
            y = rates.failed - x
            m = rates.ok - cell.ok + y
            if outlived is not None and x and m < ELSEWHERE_ENOUGH:
                m += outlived(kind, OUTLIVED * cell.failed_ns)
            if not n or not m:
                continue
            failed, attempts = failed + x, attempts + n
            failed_elsewhere, attempts_elsewhere = failed_elsewhere + y, attempts_elsewhere + m
            one = evidence(x, n, y, m)
            total += one if x * m > y * n else min(0.0, one)  # to fail less often speaks for it
        return Comparison(failed, attempts, failed_elsewhere, attempts_elsewhere, total)

    def is_black_hole(self, found: Comparison, workers: int) -> bool:
        """Whether a comparison is enough for a quarantine, among so many workers that are looked at."""
        if found.failed < self.rules.quarantine_failures_min or not found.is_far_above:
            return False
        return found.evidence >= log(self.rules.odds_per_worker * workers)

    def hopeless(self, task: Task) -> Group | None:
        """The counts of the task's kind within its job, if nearly all of it fails: enough tasks, and none succeeded."""
        group = self._groups.get((task.job, task.kind))
        if group is None or len(group.run) < self.rules.hopeless_tasks_min:
            return None
        return group if group.failed >= self.rules.hopeless_share * (group.ok + group.failed) else None

    def succeeds_elsewhere(self, kind: str, worker_id: WorkerId) -> bool:
        """Whether at least half of the attempts of a kind succeed on other workers."""
        rates = self._rates.get(kind)
        if rates is None:
            return False
        cell = rates.cells.get(worker_id) or Cell()
        ok = rates.ok - cell.ok
        return ok > 0 and ok >= rates.failed - cell.failed

    def kinds_of(self, worker_id: WorkerId) -> frozenset[str]:
        """The kinds that failed on a worker."""
        return frozenset(k for k in self._kinds.get(worker_id, ()) if self._rates[k].cells[worker_id].failed)

    # ------------------------------------------------------------------------------------------------------- verdicts

    def repeats(self, worker_id: WorkerId, now: Instant) -> int:
        """How often a worker was found bad of late; forgotten after as long as the longest pause."""
        count, until_ns = self._past.get(worker_id, (0, 0))
        return count if now - until_ns < self.rules.probe_after_max_ns else 0

    def end_quarantine(self, worker_id: WorkerId, now: Instant) -> Quarantine | None:
        """Take a quarantine out; None where there is none."""
        ended = self.quarantines.pop(worker_id, None)
        self.due.pop(worker_id, None)
        if ended is not None:
            self._past.pop(worker_id, None)
            self._past[worker_id] = (ended.repeats, now)
            if len(self._past) > ABSENT_MAX:
                del self._past[next(iter(self._past))]
        return ended

    def forgive(self, worker_id: WorkerId) -> None:
        """Forget that a worker was ever in quarantine."""
        self._past.pop(worker_id, None)

    def is_kept_back(self, task: Task) -> KindHold | None:
        """The hold that a task may not pass; None where there is none, or the task is exempt."""
        hold = self.holds.get((task.job, task.kind)) if self.holds else None
        return None if hold is None or task.id in hold.exempt else hold

    def hold_of(self, task: Task) -> KindHold | None:
        """The hold on the task's kind within its job."""
        return self.holds.get((task.job, task.kind)) if self.holds else None

    def add_hold(self, job: str, kind: str, now: Instant, probe_at_ns: Instant, repeats: int, reason: str) -> KindHold:
        """Enter a hold, which keeps back nothing yet."""
        self._holds_made += 1
        hold = self.holds[job, kind] = KindHold(self._holds_made, job, kind, now, probe_at_ns, repeats, reason)
        return hold

    def check(self) -> None:
        """Recompute every sum. Raises AssertionError."""
        kinds: dict[WorkerId, set[str]] = {}
        for kind, rates in self._rates.items():
            assert rates.cells, kind
            assert rates.ok == sum(cell.ok for cell in rates.cells.values()), kind
            assert rates.failed == sum(cell.failed for cell in rates.cells.values()), kind
            for worker_id, cell in rates.cells.items():
                assert cell.ok >= 0, (kind, worker_id)
                assert cell.failed >= 0, (kind, worker_id)
                assert cell.ok + cell.failed <= CELL_MAX, (kind, worker_id)
                kinds.setdefault(worker_id, set()).add(kind)
        assert kinds == {worker_id: set(theirs) for worker_id, theirs in self._kinds.items() if theirs}
        for key, group in self._groups.items():
            assert group.ok + group.failed <= GROUP_MAX, key
            assert len(group.run) <= self.rules.hopeless_tasks_min, key
            assert not set(group.run.values()) & self.quarantines.keys(), key
        assert not kinds.keys() & self.quarantines.keys()
        assert self.due.keys() <= self.quarantines.keys()
        for (job, kind), hold in self.holds.items():
            assert (hold.job, hold.kind) == (job, kind)
            assert not hold.members.keys() & hold.exempt, (job, kind)


def _halve(rates: Rates, cell: Cell, steps: int) -> None:
    ok, failed = cell.ok >> steps, cell.failed >> steps
    rates.ok += ok - cell.ok
    rates.failed += failed - cell.failed
    cell.ok, cell.failed = ok, failed
    if not failed:
        cell.failed_ns = 0
