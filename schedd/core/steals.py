"""What stealing brought: for each steal the gain that was expected, and the gain that came of it.

A steal is one batch of tasks that a thief asks a victim for; its gain is how much earlier the first of them starts.
Expected: the thief starts it at once, the victim after it has come through what is ahead, by the mean runtime of the
kind. Real: the thief's own report of the start, against the instant when the victim would have come to the task. That
is seen, too: the victim has as many attempts to end as were ahead, and one more; or it runs out of work before,
because others stole from it as well, which counts as the mean runtime for each task that it was spared. A victim that
had started the task before it was asked makes the gain 0.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from msgspec import Struct

from schedd.core.model import SECOND, Instant, StealGain, Task, TaskId, WorkerId, WorkerInfo
from schedd.core.stats import RuntimeTable

#: Steals whose gain is not known yet; the oldest beyond this are given up.
OPEN_MAX = 4096
#: Measured steals that are kept to be shown.
RECENT_MAX = 32


class StealTotals(Struct):
    """Since the start. Steals, of one task or several; only those that were `measured` have gains.

    refused: the victim had started the first task. unmeasured: one of both went away, or the task ended otherwise.
    paid: gained enough by the measure of the policy. expected_s: of those measured whose kind was known, `known`.
    """

    asked: int = 0
    refused: int = 0
    measured: int = 0
    unmeasured: int = 0
    paid: int = 0
    known: int = 0
    expected_s: float = 0.0
    real_of_known_s: float = 0.0
    real_s: float = 0.0


class Open(Struct, eq=False):
    """A steal under way. `due`: how many attempts the victim will have ended when it would have come to the task."""

    task_id: TaskId
    attempt: int
    kind: str
    victim: WorkerInfo
    thief_id: WorkerId
    due: int
    mean_s: float
    expected_s: float | None
    tasks: int = 1
    started_ns: Instant = 0
    would_ns: Instant = 0


class StealLedger:
    """Follows each steal until its gain is known."""

    def __init__(self, runtimes: RuntimeTable, learn: Callable[[StealGain], bool]) -> None:
        self._runtimes = runtimes
        #: Tells the policy, which says whether it has paid.
        self.learn = learn
        #: By the first task of a steal, the oldest steal first.
        self._open: dict[TaskId, Open] = {}
        #: What is open by the seq of the victim, while the victim has not come to it.
        self._by_victim: dict[int, list[Open]] = {}
        self.totals = StealTotals()
        self.recent: deque[StealGain] = deque(maxlen=RECENT_MAX)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is followed, so that nothing needs to be told."""
        return not self._open

    def asked(self, task: Task, ahead: int, victim: WorkerInfo, thief: WorkerInfo) -> None:
        """Open a steal: `task`, with so many ahead of it in the victim's backlog, is the first of it."""
        self.totals.asked += 1
        self._give_up(task.id)
        if len(self._open) >= OPEN_MAX:
            self._give_up(next(iter(self._open)))
        known_s = self._runtimes.mean_s(task.kind, task.requirements.estimated_time)
        mean_s = known_s / victim.slots if known_s is not None else 0.0
        expected_s = (ahead + 1) * mean_s if known_s is not None else None
        due = ended_on(victim) + ahead + 1
        steal = Open(task.id, task.attempt, task.kind, victim, thief.worker_id, due, mean_s, expected_s)
        self._open[task.id] = steal
        self._by_victim.setdefault(victim.seq, []).append(steal)

    def joined(self, first: TaskId) -> None:
        """Count one more task to the steal whose first is this."""
        if (steal := self._open.get(first)) is not None:
            steal.tasks += 1

    def refused(self, task: Task) -> None:
        """Close a steal whose first task the victim had started."""
        steal = self._open.get(task.id)
        if steal is not None and steal.attempt == task.attempt:
            self.totals.refused += 1
            self._close(steal, 0.0)

    def started(self, task: Task, at_ns: Instant) -> None:
        """The first task of a steal has started, on the thief if it was stolen."""
        steal = self._open.get(task.id)
        if steal is None or steal.started_ns:
            return
        if task.attempt == steal.attempt:
            self.refused(task)
        elif task.worker_id != steal.thief_id:
            self._give_up(task.id)
        else:
            steal.started_ns = at_ns
            if steal.would_ns:
                self._close(steal, (steal.would_ns - at_ns) / SECOND)

    def ended_at(self, victim: WorkerInfo, now: Instant) -> None:
        """An attempt has ended on a worker, which may have come to what was stolen from it by that."""
        steals = self._by_victim.get(victim.seq)
        if not steals:
            return
        ended = ended_on(victim)
        is_through = not victim.task_queue and victim.task_count < victim.slots
        for steal in [each for each in steals if is_through or each.due <= ended]:
            steals.remove(steal)
            spared_s = max(0, steal.due - ended) * steal.mean_s
            steal.would_ns = now + int(spared_s * SECOND)
            if steal.started_ns:
                self._close(steal, (steal.would_ns - steal.started_ns) / SECOND)
        if not steals:
            del self._by_victim[victim.seq]

    def gone(self, worker: WorkerInfo) -> None:
        """A worker is no longer there: nobody will know when it would have come to what was stolen from it."""
        for steal in list(self._by_victim.get(worker.seq, ())):
            self._give_up(steal.task_id)

    def _give_up(self, task_id: TaskId) -> None:
        steal = self._open.get(task_id)
        if steal is not None:
            self.totals.unmeasured += 1
            self._forget(steal)

    def _close(self, steal: Open, real_s: float) -> None:
        self._forget(steal)
        gain = StealGain(
            steal.task_id, steal.kind, steal.victim.worker_id, steal.thief_id, steal.tasks, steal.expected_s, real_s
        )
        totals = self.totals
        totals.measured += 1
        totals.real_s += real_s
        if steal.expected_s is not None:
            totals.known += 1
            totals.expected_s += steal.expected_s
            totals.real_of_known_s += real_s
        totals.paid += self.learn(gain)
        self.recent.append(gain)

    def _forget(self, steal: Open) -> None:
        del self._open[steal.task_id]
        steals = self._by_victim.get(steal.victim.seq)
        if steals and steal in steals:
            steals.remove(steal)
            if not steals:
                del self._by_victim[steal.victim.seq]


def ended_on(worker: WorkerInfo) -> int:
    """Attempts that have ended on a worker by their own doing."""
    return worker.finished_count + worker.failed_count
