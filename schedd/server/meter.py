"""What metrics tell that the tables do not keep: counted as it happens, by the facts of each turn.

Kinds come from clients, and there may be any number of them. Those that are used most have counts of their own, all
others share those of "other". What is counted stays where it was counted, so that no count ever falls: a kind that
comes to be among the first begins at zero, and one that ceases to be is shown no more.
"""

from __future__ import annotations

from heapq import nlargest

from schedd.core import effects as fx
from schedd.core.engine import Engine
from schedd.core.model import SECOND, AttemptRecord, Cause, Instant, Task, TaskId
from schedd.core.tasks import FINAL, TaskTable
from schedd.server.ports import Clock
from schedd.tally import Histogram

#: Kinds with counts of their own. Each is 40 series.
KINDS_SHOWN_MAX = 20
#: Kinds among the others whose use is followed.
KINDS_FOLLOWED_MAX = 1000
#: A kind takes the place of another when it was used more than so many times as often, and by so much more.
USES_FACTOR, USES_MORE = 2, 100
#: After so many uses all count half: what counts is which kinds are used of late.
USES_HALVED_AFTER = 20_000
#: Characters of a label.
LABEL_MAX = 100
OTHER = "other"

#: Seconds of waiting and running: from milliseconds to days, three a decade where most are.
DURATION_BOUNDS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4, 3e4, 1e5)
#: Seconds of a placement pass.
PASS_BOUNDS = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0)

_OK = Cause.OK


class KindTally:
    """What is counted of one kind."""

    __slots__ = ("delay", "runtime", "uses")

    def __init__(self, uses: int = 0) -> None:
        self.delay = Histogram(DURATION_BOUNDS)
        self.runtime = Histogram(DURATION_BOUNDS)
        #: How much it was used of late.
        self.uses = uses


class Kinds:
    """Tallies by kind: a bounded number, whatever clients send."""

    def __init__(self, shown_max: int = KINDS_SHOWN_MAX) -> None:
        self.shown: dict[str, KindTally] = {}
        self.other = KindTally()
        self._shown_max = shown_max
        #: Uses of late of kinds that are not shown.
        self._followed: dict[str, int] = {}

    def of(self, kind: str) -> KindTally:
        """Where to count this use of a kind. O(1)."""
        tally = self.shown.get(kind) or self._not_shown(kind[:LABEL_MAX])
        tally.uses += 1
        return tally

    def _not_shown(self, kind: str) -> KindTally:
        if kind in self.shown:  # by the beginning of its name
            return self.shown[kind]
        if kind == OTHER:
            return self.other
        if len(self.shown) < self._shown_max:
            return self.shown.setdefault(kind, KindTally())
        followed = self._followed
        followed[kind] = followed.get(kind, 0) + 1
        if len(followed) > KINDS_FOLLOWED_MAX:
            self._followed = {name: uses // 2 for name, uses in followed.items() if uses > 1}
        return self.other

    def choose(self) -> None:
        """Give the places to the kinds that are used most; now and then, not with each use."""
        for uses, kind in nlargest(self._shown_max, ((uses, kind) for kind, uses in self._followed.items())):
            least = min(self.shown, key=lambda name: self.shown[name].uses)
            if uses <= USES_FACTOR * self.shown[least].uses + USES_MORE:
                break
            del self.shown[least], self._followed[kind]
            self.shown[kind] = KindTally(uses)
        total = sum(tally.uses for tally in self.shown.values()) + self.other.uses
        if total > USES_HALVED_AFTER:
            for tally in (*self.shown.values(), self.other):
                tally.uses //= 2
            self._followed = {name: uses // 2 for name, uses in self._followed.items() if uses > 1}


def _first_started(attempts: tuple[AttemptRecord, ...], current: int) -> int:
    """The first attempt that ran: one of those that have ended, or the one at hand."""
    return next((ended.attempt for ended in attempts if ended.started_at_ns), current)


class Meter:
    """Counts by facts, and how long the placement passes take."""

    def __init__(self, since_ns: Instant) -> None:
        """since_ns: of attempts that began before then the delay was counted by an earlier daemon."""
        self.kinds = Kinds()
        #: Tasks that ended, by the name of their final state.
        self.finished = {state.__name__.lower(): 0 for state in sorted(FINAL, key=lambda state: state.__name__)}
        #: Placement passes by the name of the policy.
        self.passes: dict[str, Histogram] = {}
        self._since_ns = since_ns
        #: Attempts that run and whose delay was counted, by task.
        self._begun: set[TaskId] = set()

    def note(self, facts: list[fx.Fact], tasks: TaskTable) -> None:
        """Count what the facts of a turn say."""
        for fact in facts:
            kind = type(fact)
            if kind is fx.AttemptBegan:
                self._began(fact, tasks)  # type: ignore[arg-type]
            elif kind is fx.AttemptEnded:
                self._ended(fact, tasks)  # type: ignore[arg-type]
            elif kind is fx.TaskFinished:
                self.finished[fact.state] += 1  # type: ignore[attr-defined]
                self._begun.discard(fact.task_id)  # type: ignore[attr-defined]

    def _began(self, fact: fx.AttemptBegan, tasks: TaskTable) -> None:
        task = tasks.get(fact.task_id)
        if task is not None:
            self._begun.add(fact.task_id)
            self._count_delay(task, fact.attempt, fact.started_at_ns)

    def _ended(self, fact: fx.AttemptEnded, tasks: TaskTable) -> None:
        task, record = tasks.get(fact.task_id), fact.record
        is_counted = fact.task_id in self._begun
        self._begun.discard(fact.task_id)
        if task is None or not record.started_at_ns:
            return
        if not is_counted and record.started_at_ns >= self._since_ns:  # its start was told together with its end
            self._count_delay(task, record.attempt, record.started_at_ns)
        if record.cause is _OK:
            runtime_s = max(0, record.finished_at_ns - record.started_at_ns) / SECOND
            self.kinds.of(task.kind).runtime.observe(runtime_s)

    def _count_delay(self, task: Task, attempt: int, started_at_ns: Instant) -> None:
        """Count from the submit to the first start; a repetition has waited for its failure, not for a place."""
        attempts = task.attempts
        if not attempts or attempts[0].attempt == attempt or attempt == _first_started(attempts, attempt):
            delay_s = max(0, started_at_ns - task.submitted_ns) / SECOND
            self.kinds.of(task.kind).delay.observe(delay_s)

    def measure(self, engine: Engine, clock: Clock) -> None:
        """Take the time of each placement pass from now on."""
        run = engine.run_pass
        self.passes[engine.policy.name] = Histogram(PASS_BOUNDS)  # a series that begins with zero has a rate at once

        def timed(now: Instant) -> bool:
            began = clock.now_ns()
            try:
                return run(now)
            finally:
                self._count_pass(engine.policy.name, (clock.now_ns() - began) / SECOND)

        engine.run_pass = timed

    def _count_pass(self, policy: str, seconds: float) -> None:
        passes = self.passes.get(policy)
        if passes is None:
            passes = self.passes[policy] = Histogram(PASS_BOUNDS)
        passes.observe(seconds)
