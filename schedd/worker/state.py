"""The worker's state machine: which attempt starts when, and what the daemon is told. Pure; the clock is an argument.

An attempt that arrives is appended to the backlog. Its head starts as soon as the ledger can reserve what it needs;
nothing overtakes it. The daemon keeps a copy of the backlog and applies this very rule at each end that it hears of,
so both sides agree on what runs without a word. The ledger gives back what an attempt held when its processes are
gone, not when it was told to stop.

    backlog --(its need is reserved: StartAttempt)--> running --(the runner: on_ended)--> reported, until acknowledged
       | revoked, handed back, dropped: gone             | stopped: TerminateAttempt, grace, KillAttempt
       | stopped: reported at once                       | dropped: KillAttempt, nothing is reported

Who is stopped to make room (cause "preempted") and ends well in its grace has ended well; however else it ends, it was
preempted.

The runner may hand short calls to a child process ahead of their reservation (`Attempt.ahead`). Before a message that
could take one out of the backlog comes in, the shell calls them all back; the one that a child had already begun
(`Attempt.begun`) counts as started from there on. It may end without ever having been reserved.

What the daemon says about attempts that are not here is late or wrong; it is counted and changes nothing.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from itertools import count, islice
from typing import Any

from schedd.core.capacity import Ledger
from schedd.core.model import SECOND, Call, Cause, Instant, TaskId, WorkerResources
from schedd.core.needs import Need, compile_needs
from schedd.wire.messages import (
    AckFinished,
    AttemptFinished,
    AttemptReport,
    AttemptStarted,
    Dispatch,
    DrainWorker,
    DropAttempts,
    FromWorker,
    HoldsAttempt,
    RevokeAttempts,
    StopAttempts,
    WireAttempt,
    WireSpec,
)
from schedd.worker.attempts import Action, Attempt, Ending, KillAttempt, StartAttempt, TerminateAttempt
from schedd.worker.outbox import NO_ORIGIN, Kept, Outbox

#: Distinct needs that are remembered, so that equal ones are one object; a new start of the memory costs nothing.
NEEDS_MAX = 1024
#: A report of this size at most, times those of one turn, is well below the bound of a frame.
METRICS_MAX = 100
METRIC_NAME_MAX = 100
#: The largest step that a message can carry, either way.
STEP_MAX = (1 << 63) - 1


class WorkerState:
    """Backlog, running attempts and reservations of one worker.

    Every handler may add to `take_actions()` and `take_messages()`; the shell collects both once a turn.
    """

    def __init__(self, resources: WorkerResources, outbox: Outbox | None = None) -> None:
        self.ledger = Ledger(resources)
        #: Not reserved, in the order in which they will start.
        self.backlog: OrderedDict[TaskId, Attempt] = OrderedDict()
        #: Reserved, and still the daemon's business.
        self.running: dict[TaskId, Attempt] = {}
        #: Dropped, their processes not yet gone.
        self.dying: dict[tuple[TaskId, int], Attempt] = {}
        #: Told to leave: what comes in is handed back.
        self.leaving = False
        #: Messages about attempts that were not here.
        self.ignored_count = 0
        self._outbox = outbox or Outbox()
        self._actions: list[Action] = []
        self._needs: dict[Need, Need] = {}
        #: (when, tie, attempt): its timeout, or the end of its grace. Entries of ended attempts are skipped.
        self._deadlines: list[tuple[Instant, int, Attempt]] = []
        self._ties = count()
        self._handlers: dict[type, Callable[[Any, Instant], None]] = {
            Dispatch: self._on_dispatch,
            RevokeAttempts: self._on_revoke,
            StopAttempts: self._on_stop,
            DropAttempts: self._on_drop,
            AckFinished: self._on_ack,
            DrainWorker: self._on_drain,
        }

    # ---------------------------------------------------------------------------------------------- from the daemon

    def on_message(self, message: Any, now_ns: Instant) -> None:
        """Take one message of the daemon; one that is none of this machine's is counted."""
        handler = self._handlers.get(type(message))
        if handler is None:
            self.ignored_count += 1
        else:
            handler(message, now_ns)

    def may_take_back(self, message: Any) -> bool:
        """Tell whether a message could take an attempt out of the backlog: call back what was sent ahead before it."""
        if isinstance(message, Dispatch):
            return any(wire.task_id in self.backlog for wire in message.attempts)
        return isinstance(message, (RevokeAttempts, StopAttempts, DropAttempts, DrainWorker))

    def _on_dispatch(self, message: Dispatch, now_ns: Instant) -> None:
        needs: dict[tuple[int, int], Need | str] = {}
        for wire in message.attempts:
            key = (wire.spec, wire.variant)
            if key not in needs:
                needs[key] = self._need_of(message.specs, wire)
            need = needs[key]
            if isinstance(need, str):
                spec = message.specs[wire.spec] if 0 <= wire.spec < len(message.specs) else None
                self._reject(wire, need, now_ns, spec)
            else:
                self._admit(wire, message.specs[wire.spec], need)
        self._start_heads(now_ns)

    def _need_of(self, specs: Sequence[WireSpec], wire: WireAttempt) -> Need | str:
        """The need of an attempt, or why it can never run here."""
        if not 0 <= wire.spec < len(specs):
            return f"the dispatch names spec {wire.spec} of {len(specs)}"
        variants = compile_needs(specs[wire.spec].requirements)
        if not 0 <= wire.variant < len(variants):
            return f"the dispatch names variant {wire.variant} of {len(variants)}"
        need = variants[wire.variant]
        blocker = self.ledger.blocker(need)
        if blocker:
            return f"cannot run here: {blocker}"
        if len(self._needs) >= NEEDS_MAX:
            self._needs.clear()
        return self._needs.setdefault(need, need)

    def _admit(self, wire: WireAttempt, spec: WireSpec, need: Need) -> None:
        if self.leaving:
            self._outbox.handed_back([(wire.task_id, wire.attempt)])
            return
        if not self._is_new(wire):
            return
        row = Attempt(wire.task_id, wire.attempt, spec, wire.argument, need, wire.variant)
        self.backlog[row.task_id] = row

    def _reject(self, wire: WireAttempt, reason: str, now_ns: Instant, spec: WireSpec | None) -> None:
        if self._is_new(wire):
            finished = AttemptFinished(wire.task_id, wire.attempt, Cause.REJECTED, 0, now_ns, message=reason)
            self._outbox.finished(finished, (spec.defined_ns, spec.epoch) if spec is not None else NO_ORIGIN)

    def _is_new(self, wire: WireAttempt) -> bool:
        """Tell whether to take an attempt. One that replaces an older attempt of its task drops that one first."""
        present = self.running.get(wire.task_id) or self.backlog.get(wire.task_id)
        if present is not None and present.attempt < wire.attempt:
            self._drop(present)
            present = None
        is_known = (
            present is not None
            or (wire.task_id, wire.attempt) in self.dying
            or self._outbox.supersedes(wire.task_id, wire.attempt)
        )
        self.ignored_count += is_known
        return not is_known

    def _on_revoke(self, message: RevokeAttempts, now_ns: Instant) -> None:
        answers: list[tuple[TaskId, int, bool]] = []
        for task_id, attempt in message.attempts:
            row = self.backlog.get(task_id)
            given_back = row is not None and row.attempt == attempt and not row.begun
            if given_back:
                del self.backlog[task_id]
            answers.append((task_id, attempt, given_back))
        self._outbox.answered(answers)
        self._start_heads(now_ns)

    def _on_stop(self, message: StopAttempts, now_ns: Instant) -> None:
        for task_id, attempt in message.attempts:
            row = self._find(task_id, attempt)
            if row is not None:
                self._stop(row, message.cause, "", now_ns, message.grace_s)
        self._start_heads(now_ns)

    def _on_drop(self, message: DropAttempts, now_ns: Instant) -> None:
        for task_id, attempt in message.attempts:
            if self._outbox.holds_end_of(task_id, attempt):
                self._outbox.forget(task_id, attempt)
                continue
            row = self._find(task_id, attempt)
            if row is not None:
                self._drop(row)
        self._start_heads(now_ns)

    def _on_ack(self, message: AckFinished, now_ns: Instant) -> None:
        was_full = self._outbox.is_full
        self._outbox.acknowledge(message.seq)
        if was_full:
            self._start_heads(now_ns)

    def _on_drain(self, message: DrainWorker, _now_ns: Instant) -> None:
        self.drain(leave=message.leave)

    # ---------------------------------------------------------------------------------------------- from the runner

    def on_ended(self, row: Attempt, ending: Ending, now_ns: Instant) -> None:
        """Take the end of an attempt, whose processes are gone. A second end of one attempt is ignored."""
        if row.ended:
            return
        row.ended = True
        if row.dropped:
            self.dying.pop((row.task_id, row.attempt), None)
        elif row.reserved:
            del self.running[row.task_id]
        else:
            del self.backlog[row.task_id]
        if row.reserved:
            self.ledger.release(row.need, row.devices)
        if not row.dropped:
            self._report_end(row, ending, now_ns)
        self._start_heads(now_ns)

    def on_report(self, task_id: TaskId, attempt: int, step: int, metrics: dict[str, float]) -> None:
        """Take a progress message from inside an attempt; it may be late, or made up by anyone on the machine."""
        if len(metrics) > METRICS_MAX or abs(step) > STEP_MAX or any(len(name) > METRIC_NAME_MAX for name in metrics):
            self.ignored_count += 1
        elif self._find(task_id, attempt) is not None:
            self._outbox.reported(AttemptReport(task_id, attempt, step, metrics))

    def upcoming(self, limit: int) -> list[Attempt]:
        """List calls at the head of the backlog that may be sent ahead: no devices, all of the head's need.

        Equal needs make it safe: what one of them gives back is what the next one takes. O(limit).
        """
        rows: list[Attempt] = []
        if self._outbox.is_full:
            return rows
        need: Need | None = None
        for row in islice(self.backlog.values(), limit):
            need = need or row.need
            if row.need is not need or need.gpus or not isinstance(row.spec.payload, Call):
                break
            if not row.ahead:
                rows.append(row)
        return rows

    # ------------------------------------------------------------------------------------------------ from the shell

    def drain(self, *, leave: bool) -> None:
        """Hand back what has not begun; with `leave`, also all that comes in later."""
        self.leaving = self.leaving or leave
        given_back = [row for row in self.backlog.values() if not row.begun]
        for row in given_back:
            del self.backlog[row.task_id]
        self._outbox.handed_back([(row.task_id, row.attempt) for row in given_back])

    def abandon(self, message: str, now_ns: Instant) -> None:
        """Kill all that runs; it is reported as lost with `message`. What has not begun is handed back."""
        self.drain(leave=True)
        for row in [*self.running.values(), *self.backlog.values()]:
            if row.stop_cause is None:
                row.stop_cause, row.stop_message = Cause.LOST, message
            row.kill_at_ns = now_ns
            self._actions.append(KillAttempt(row))

    @property
    def is_idle(self) -> bool:
        """No attempt is here, waiting, running or dying."""
        return not (self.running or self.backlog or self.dying)

    @property
    def can_leave(self) -> bool:
        """Told to leave, and neither an attempt nor anything to tell is left.

        Without a connection only ends count: the daemon takes back what was handed back when it misses the worker.
        """
        if not self.leaving or not self.is_idle:
            return False
        return self._outbox.is_empty if self._outbox.connected else not self._outbox.has_ends

    def holds(self) -> list[HoldsAttempt]:
        """List all attempts that are here, for a greeting: ends, what runs, then the backlog in order."""
        holds = self._outbox.holds()
        for phase, rows in (("running", self.running), ("backlog", self.backlog)):
            holds += [
                HoldsAttempt(
                    row.task_id,
                    row.attempt,
                    phase,
                    row.started_at_ns,
                    row.devices,
                    row.variant,
                    row.spec.defined_ns,
                    row.spec.epoch,
                )
                for row in rows.values()
            ]
        return holds

    def on_hello(self) -> None:
        """A greeting with `holds()` was sent: it tells all that was new until now."""
        self._outbox.on_hello()

    @property
    def is_connected(self) -> bool:
        """The daemon has welcomed the worker: `take_messages` gives out what there is. Set by the shell."""
        return self._outbox.connected

    @is_connected.setter
    def is_connected(self, value: bool) -> None:
        self._outbox.connected = value

    def next_deadline(self) -> Instant | None:
        """When `wake` has something to do at the latest; None: not by itself. May be early, never late."""
        while self._deadlines and self._deadlines[0][2].ended:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def wake(self, now_ns: Instant) -> None:
        """Stop what has run for too long and kill what did not end in its grace."""
        while self._deadlines and self._deadlines[0][0] <= now_ns:
            row = heapq.heappop(self._deadlines)[2]
            if row.ended or row.dropped:
                continue
            if row.stop_cause is None:
                self._stop(row, Cause.TIMEOUT, f"ran longer than {row.spec.rules.timeout_s:g} s", now_ns)
            elif 0 < row.kill_at_ns <= now_ns:
                self._actions.append(KillAttempt(row))

    @property
    def has_actions(self) -> bool:
        return bool(self._actions)

    def take_actions(self) -> list[Action]:
        """Give out what the runner has to do, in order."""
        actions, self._actions = self._actions, []
        return actions

    def take_messages(self) -> list[FromWorker]:
        """Give out what the daemon has to hear; empty without a connection."""
        return self._outbox.take()

    # ---------------------------------------------------------------------------------------------- ends on the disk

    def restore(self, batches: Iterable[Kept]) -> None:
        """Take over the ends that the last run of this worker left on disk; before anything else."""
        self._outbox.restore(batches)

    @property
    def owes_ends(self) -> bool:
        """The end of an attempt is not yet acknowledged."""
        return self._outbox.has_ends

    @property
    def has_kept_ends(self) -> bool:
        """All ends that are not yet acknowledged are on disk, for the next worker of this name to tell."""
        return self._outbox.is_kept

    def take_to_keep(self, *, everything: bool = False) -> list[Kept]:
        """Give out the ends that must be on disk before anything more is told; `everything`: all, for a last time."""
        return self._outbox.take_to_keep(everything=everything)

    def take_over(self) -> list[int]:
        """Give out the numbers of what need no longer be on disk."""
        return self._outbox.take_over()

    def not_kept(self, numbers: Iterable[int]) -> None:
        """Batches that were given out to be kept are not on disk: they are given out again after a while."""
        self._outbox.not_kept(numbers)

    def grow_old(self) -> None:
        """Have what nobody acknowledges kept on disk; to be called about once a second while `owes_ends`."""
        self._outbox.grow_old()

    # --------------------------------------------------------------------------------------------------------- checks

    def check(self) -> None:
        """Compare the ledger with a recount, and the tables with each other. For tests. Raises AssertionError."""
        held = [*self.running.values(), *(row for row in self.dying.values() if row.reserved)]
        assert self.ledger.free_cpus == self.ledger.cpus - sum(row.need.cpus for row in held)
        assert self.ledger.free_ram_mb == self.ledger.ram_mb - sum(row.need.ram_mb for row in held)
        for index, device in enumerate(self.ledger.devices):
            users = [row.need for row in held if index in row.devices]
            assert device.free_share == 1000 - sum(need.share for need in users) >= 0
            assert device.free_mb == device.memory_mb - sum(need.gpu_mb for need in users) >= 0
        assert self.ledger.free_cpus >= 0
        assert self.ledger.free_ram_mb >= 0
        assert not self.running.keys() & self.backlog.keys()
        assert all(row.reserved and not row.ended and not row.dropped for row in self.running.values())
        assert all(not row.reserved and not row.ended and not row.dropped for row in self.backlog.values())
        assert all(row.dropped and not row.ended for row in self.dying.values())
        if self.backlog:
            head = next(iter(self.backlog.values()))
            is_kept_back = self._outbox.is_full or self._is_dying(head.task_id)
            assert is_kept_back or not self.ledger.can_fit(head.need)

    # -------------------------------------------------------------------------------------------------------- pieces

    def _find(self, task_id: TaskId, attempt: int) -> Attempt | None:
        row = self.running.get(task_id) or self.backlog.get(task_id)
        if row is None or row.attempt != attempt:
            self.ignored_count += 1
            return None
        return row

    def _is_dying(self, task_id: TaskId) -> bool:
        return any(dying_id == task_id for dying_id, _ in self.dying)

    def _start_heads(self, now_ns: Instant) -> None:
        """Start the head of the backlog while it fits, and while the ends that are here are not too many."""
        while self.backlog and not self._outbox.is_full:
            row = next(iter(self.backlog.values()))
            # Two attempts of one task never run together: the newer waits until the older's processes are gone.
            if self.dying and self._is_dying(row.task_id):
                return
            devices = self.ledger.reserve(row.need)
            if devices is None:
                return
            del self.backlog[row.task_id]
            self.running[row.task_id] = row
            row.devices, row.reserved, row.started_at_ns = devices, True, now_ns
            if row.spec.rules.timeout_s is not None:
                self._add_deadline(now_ns + round(row.spec.rules.timeout_s * SECOND), row)
            self._outbox.started(AttemptStarted(row.task_id, row.attempt, now_ns, devices))
            self._actions.append(StartAttempt(row))

    def _stop(self, row: Attempt, cause: Cause, message: str, now_ns: Instant, grace_s: float | None = None) -> None:
        if row.stop_cause is not None:
            if row.stop_cause is Cause.PREEMPTED and cause in (Cause.PREEMPTED, Cause.CANCELLED):
                row.stop_cause = cause
                self._hasten(row, now_ns + self._grace_ns(row, grace_s))
            return
        row.stop_cause, row.stop_message = cause, message
        if not row.reserved and not row.begun:
            del self.backlog[row.task_id]
            row.ended = True
            self._report_end(row, Ending(cause), now_ns)
            return
        row.kill_at_ns = now_ns + self._grace_ns(row, grace_s)
        if row.kill_at_ns == now_ns:
            self._actions.append(KillAttempt(row))
            return
        self._add_deadline(row.kill_at_ns, row)
        self._actions.append(TerminateAttempt(row))

    @staticmethod
    def _grace_ns(row: Attempt, grace_s: float | None) -> Instant:
        return round((row.spec.rules.grace_s if grace_s is None else grace_s) * SECOND)

    def _hasten(self, row: Attempt, kill_at_ns: Instant) -> None:
        """Let a grace end earlier; what is said twice, after a reconnection, does not make it longer."""
        if kill_at_ns < row.kill_at_ns:
            row.kill_at_ns = kill_at_ns
            self._add_deadline(kill_at_ns, row)

    def _drop(self, row: Attempt) -> None:
        self._outbox.forget(row.task_id, row.attempt)
        row.dropped = True
        if row.reserved:
            del self.running[row.task_id]
        else:
            del self.backlog[row.task_id]
        if row.reserved or row.begun:
            self.dying[row.task_id, row.attempt] = row
            self._actions.append(KillAttempt(row))
        else:
            row.ended = True

    def _report_end(self, row: Attempt, ending: Ending, now_ns: Instant) -> None:
        cause = row.cause_of(ending)
        stopped = cause is row.stop_cause
        self._outbox.finished(
            AttemptFinished(
                row.task_id,
                row.attempt,
                cause,
                ending.started_at_ns or row.started_at_ns,
                ending.finished_at_ns or now_ns,
                None if stopped else ending.result,
                ending.exit_code,
                ending.signal,
                row.stop_message or ("" if stopped else ending.message),
                row.devices,
            ),
            (row.spec.defined_ns, row.spec.epoch),
        )

    def _add_deadline(self, at_ns: Instant, row: Attempt) -> None:
        heapq.heappush(self._deadlines, (at_ns, next(self._ties), row))
        # What has ended is dropped when it comes up; behind a late one much could gather.
        if len(self._deadlines) > 64 + 4 * (len(self.running) + len(self.backlog) + len(self.dying)):
            self._deadlines = [entry for entry in self._deadlines if not entry[2].ended]
            heapq.heapify(self._deadlines)
