"""The processes of a worker's machine: each execution of an attempt, from its real begin to its real end.

Short calls are handed to a child process ahead of their reservation, as the real runner does: a child that is done
begins the next one at once, whether or not the worker knows, and what it has not begun can be taken back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

import msgspec
from msgspec import Struct

from schedd.core.model import Call, Cause, Instant, TaskId
from schedd.sim.kernel import Kernel, Process, Timer
from schedd.worker.attempts import Action, Attempt, Ending, KillAttempt, StartAttempt, TerminateAttempt
from schedd.worker.outbox import Kept

#: Calls that a child has in its hands beside the one that it runs.
AHEAD_MAX = 3
#: How long an attempt takes to fail on a machine where all fail.
BROKEN_S = 0.002
#: How long the processes of an attempt that was killed take to be gone.
DEATH_S = 0.5
#: The signal that ends those which were told to end.
KILLED = 9
#: What a worker may take beyond that.
SLACK_S = 0.1


class Script(Struct, frozen=True):
    """What an attempt does, written into the argument of its task: any attempt of the task reads the same."""

    #: Names the task whatever its id.
    name: str
    runtime_s: float
    #: How its attempts end, in their order; the last goes on for ever.
    causes: list[str]
    #: What it does when it is asked to end: goes within so many seconds, or (None) waits to be killed.
    yields_s: float | None = None
    is_short: bool = False
    reports: int = 0


_decoder = msgspec.json.Decoder(Script)


def script_of(argument: bytes) -> Script:
    return _decoder.decode(argument)


def result_of(name: str) -> bytes:
    """What a successful attempt of a task returns: it tells whose it is."""
    return b"done:" + name.encode()


class Execution:
    """A process tree on a machine. It is alive from its begin to its end, whatever the worker knows."""

    def __init__(self, row: Attempt, script: Script, worker: str, began_ns: Instant) -> None:
        self.row = row
        self.script = script
        self.worker = worker
        self.began_ns = began_ns
        self.ending: Ending | None = None
        self.timer: Timer | None = None


class Watcher(Protocol):
    """Hears of each execution's real begin and end."""

    def began(self, execution: Execution) -> None: ...

    def ended(self, execution: Execution) -> None: ...

    def must_end(self, execution: Execution, why: str) -> None: ...

    def kept(self, worker: str, kept: Kept) -> None:
        """Ends are on the disk of a worker's machine."""

    def forgot(self, worker: str, kept: Kept) -> None:
        """They are there no more."""


class Child:
    """A warm process: what it runs, and what lies ready for it."""

    def __init__(self) -> None:
        self.execution: Execution | None = None
        self.queue: deque[Attempt] = deque()


class Runner:
    """All executions of one start of a worker."""

    def __init__(
        self,
        kernel: Kernel,
        process: Process,
        watcher: Watcher,
        on_ended: Callable[[Attempt, Ending], None],
        on_report: Callable[[TaskId, int, int], None],
        is_broken: Callable[[], bool],
    ) -> None:
        self._kernel = kernel
        self._process = process
        self._watcher = watcher
        self._on_ended = on_ended
        self._on_report = on_report
        self._is_broken = is_broken
        self._children: dict[tuple[TaskId, int], Child] = {}
        #: Ends that the worker has not heard of.
        self._unheard: list[Execution] = []

    @property
    def alive(self) -> list[Execution]:
        return [child.execution for child in self._children.values() if child.execution is not None]

    def perform(self, actions: list[Action]) -> None:
        """Carry out actions in order, as `worker.runner` does."""
        for action in actions:
            row = action.row
            if row.ended:
                continue
            match action:
                case StartAttempt():
                    self._start(row)
                case TerminateAttempt():
                    self._terminate(row)
                case KillAttempt():
                    self._kill(row)

    def _start(self, row: Attempt) -> None:
        if (row.dropped or row.stop_cause is not None) and not (row.ahead or row.begun):
            self._on_ended(row, Ending(Cause.CANCELLED))
        elif row.ahead or row.begun:
            row.ahead = False  # it is where it should be
        else:
            self._begin(Child(), row)

    def _begin(self, child: Child, row: Attempt) -> None:
        script = script_of(row.argument)
        execution = child.execution = Execution(row, script, self._process.name, self._kernel.now_ns)
        self._children[row.task_id, row.attempt] = child
        self._watcher.began(execution)
        broken = self._is_broken()
        cause = Cause.ERROR if broken else Cause(script.causes[min(row.attempt, len(script.causes)) - 1])
        result = result_of(script.name) if cause is Cause.OK else None
        ending = Ending(
            cause, result, None if cause is Cause.OK else 1, message="" if cause is Cause.OK else "scripted"
        )
        runtime_s = (BROKEN_S if broken else script.runtime_s) * (0.5 + self._kernel.random.random())
        execution.timer = self._kernel.call_in(runtime_s, self._end, child, ending)
        for step in range(script.reports):
            self._process.call_later(runtime_s * step / script.reports, self._on_report, row.task_id, row.attempt, step)

    def _end(self, child: Child, ending: Ending) -> None:
        """Its processes are gone; the worker hears of it when it can, the child goes on."""
        execution = child.execution
        assert execution is not None
        if execution.timer is not None:
            execution.timer.cancel()
        execution.ending = ending
        del self._children[execution.row.task_id, execution.row.attempt]
        self._watcher.ended(execution)
        self._unheard.append(execution)
        self._process.call_soon(self._hear)
        child.execution = None
        if child.queue:
            self._begin(child, child.queue.popleft())

    def _hear(self) -> None:
        unheard, self._unheard = self._unheard, []
        for execution in unheard:
            execution.row.ahead = False
            assert execution.ending is not None
            self._on_ended(execution.row, execution.ending)

    def expect_end(self, task_id: TaskId, attempt: int, why: str, grace_s: float | None) -> None:
        """The worker was told to end an attempt, with a grace (None: its own). It has time for it, and no more."""
        child = self._children.get((task_id, attempt))
        if child is None or child.execution is None:
            return
        execution = child.execution
        row = execution.row
        if grace_s is None or row.stop_cause not in (None, Cause.PREEMPTED):
            grace_s = row.spec.rules.grace_s  # its own, or it is ending already
        within_s = DEATH_S + SLACK_S + grace_s

        def look(stops: int) -> None:
            if stops == self._process.stops:
                self._watcher.must_end(execution, why)
            else:  # it was frozen meanwhile
                self._process.call_later(within_s, look, self._process.stops)

        self._process.call_later(within_s, look, self._process.stops)

    def _terminate(self, row: Attempt) -> None:
        child = self._children.get((row.task_id, row.attempt))
        if child is not None and child.execution is not None and child.execution.script.yields_s is not None:
            after_s = child.execution.script.yields_s * self._kernel.random.random()
            self._kernel.call_in(after_s, self._die, child, child.execution)

    def _kill(self, row: Attempt) -> None:
        child = self._children.get((row.task_id, row.attempt))
        if child is not None and child.execution is not None:
            self._kernel.call_in(DEATH_S * self._kernel.random.random(), self._die, child, child.execution)

    def _die(self, child: Child, execution: Execution) -> None:
        if child.execution is execution:
            waiting, child.queue = child.queue, deque()
            self._end(child, Ending(Cause.ERROR, None, None, KILLED, "killed"))
            for row in waiting:  # what lay ready for a process that was killed
                self._take_back(row)

    # ---------------------------------------------------------------------------------------------- ahead, and back

    def send_ahead(self, upcoming: Callable[[int], list[Attempt]]) -> None:
        """Lay ready what comes next for the children that run short calls."""
        takers = [c for c in self._children.values() if c.execution is not None and c.execution.script.is_short]
        for child in takers:
            room = AHEAD_MAX - len(child.queue)
            for row in upcoming(room) if room > 0 else ():
                assert child.execution is not None
                if row.need is not child.execution.row.need or not isinstance(row.spec.payload, Call):
                    break
                if not script_of(row.argument).is_short:
                    break
                row.ahead = True
                child.queue.append(row)

    def recall(self) -> None:
        """Take back all that no child has begun, and mark what one has. Hears of all ends before."""
        self._hear()
        for child in list(self._children.values()):
            waiting, child.queue = child.queue, deque()
            if child.execution is not None and child.execution.ending is None:
                child.execution.row.begun = True
            for row in waiting:
                self._take_back(row)

    def _take_back(self, row: Attempt) -> None:
        if row.ahead:
            row.ahead = False
        elif row.reserved and not row.ended:
            self._begin(Child(), row)

    def kill_all(self) -> None:
        """The worker's process is gone, and its children with it."""
        for child in list(self._children.values()):
            if child.execution is not None:
                if child.execution.timer is not None:
                    child.execution.timer.cancel()
                self._watcher.ended(child.execution)
                child.execution = None
        self._children.clear()
