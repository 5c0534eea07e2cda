"""A cluster of honest workers that the engine can be run against, with pipes in between that delay and can break.

A worker appends what is dispatched to its backlog and starts the head as soon as its own ledger can reserve for it;
it keeps the ends that were not delivered and tells them again after a reconnection.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from msgspec import Struct, field

from schedd.core import effects as fx
from schedd.core import events as ev
from schedd.core.capacity import Ledger
from schedd.core.model import (
    AttemptFinished,
    AttemptStarted,
    Cause,
    HoldsAttempt,
    TaskId,
    WorkerId,
    WorkerResources,
)
from schedd.core.needs import Need
from schedd.core.resources import need_of


class Held(Struct):
    """An attempt at a worker."""

    task_id: TaskId
    attempt: int
    need: Need
    submitted_ns: int
    defined_ns: int
    variant: int
    devices: tuple[int, ...] = ()
    started_at_ns: int = 0
    epoch: int = 0
    #: Asked to make room; it goes on until somebody ends it.
    stopping: bool = False


Sent = tuple[str, list[tuple[TaskId, int, Held | None]]]


class TwinWorker(Struct):
    """One honest worker."""

    name: WorkerId
    resources: WorkerResources
    ledger: Ledger
    run: int = 0
    connected: bool = False
    leaving: bool = False
    backlog: list[Held] = field(default_factory=list)
    running: dict[TaskId, Held] = field(default_factory=dict)
    #: Ends that the engine may not have heard of.
    unheard: list[AttemptFinished] = field(default_factory=list)
    origins: dict[TaskId, tuple[int, int]] = field(default_factory=dict)
    #: What is under way to the worker, and to the engine.
    inbox: deque[Sent] = field(default_factory=deque)
    outbox: deque[ev.Event] = field(default_factory=deque)

    @property
    def incarnation(self) -> str:
        return f"run {self.run}"

    # ------------------------------------------------------------------------------------------------ from the engine

    def receive(self, now: int) -> None:
        """Act upon the oldest message on its way here."""
        kind, attempts = self.inbox.popleft()
        answers: list[tuple[TaskId, int, bool]] = []
        ended: list[AttemptFinished] = []
        given_back: list[tuple[TaskId, int]] = []
        if kind == "DrainWorker":
            self.leaving = True
            given_back = [(held.task_id, held.attempt) for held in self.backlog]
            self.backlog.clear()
        for task_id, attempt, new in attempts:
            waiting = next((h for h in self.backlog if (h.task_id, h.attempt) == (task_id, attempt)), None)
            runs = self.running.get(task_id)
            if runs is not None and runs.attempt != attempt:
                runs = None
            match kind:
                case "DispatchAttempts":
                    assert new is not None
                    self._accept(new, given_back)
                case "RevokeAttempts":
                    answers.append((task_id, attempt, waiting is not None))
                    if waiting is not None:
                        self.backlog.remove(waiting)
                case "PreemptAttempts" if waiting is None:
                    if runs is not None:
                        runs.stopping = True
                case "PreemptAttempts" | "StopAttempts" | "DropAttempts":
                    ended += self._stop(kind, waiting, runs, now)
        if kind == "DropAttempts":
            dropped = {(task_id, attempt) for task_id, attempt, _ in attempts}
            self.unheard = [end for end in self.unheard if (end.task_id, end.attempt) not in dropped]
        if answers:
            self.outbox.append(ev.RevokesAnswered(self.name, answers))
        if given_back or kind == "DrainWorker":
            self.outbox.append(ev.WorkerDraining(self.name, given_back))
        self._tell_ends(ended)
        self.start_heads(now)

    def _stop(self, kind: str, waiting: Held | None, runs: Held | None, now: int) -> list[AttemptFinished]:
        gone = waiting or runs
        if waiting is not None:
            self.backlog.remove(waiting)
        if runs is not None:
            self._free(runs)
        if gone is None or kind == "DropAttempts":
            return []
        return [self._end(gone, Cause.CANCELLED if kind == "StopAttempts" else Cause.PREEMPTED, now)]

    def _accept(self, new: Held, given_back: list[tuple[TaskId, int]]) -> None:
        old = self.running.get(new.task_id)
        if old is not None:
            assert old.attempt < new.attempt
            self._free(old)
        self.backlog = [held for held in self.backlog if held.task_id != new.task_id]
        if self.leaving:
            given_back.append((new.task_id, new.attempt))
        else:
            self.backlog.append(new)

    # ----------------------------------------------------------------------------------------------- its own life

    def start_heads(self, now: int) -> None:
        begun: list[AttemptStarted] = []
        while self.backlog:
            head = self.backlog[0]
            devices = self.ledger.reserve(head.need)
            if devices is None:
                break
            del self.backlog[0]
            head.devices, head.started_at_ns = devices, now
            self.running[head.task_id] = head
            begun.append(AttemptStarted(head.task_id, head.attempt, now, devices))
        if begun and self.connected:
            self.outbox.append(ev.AttemptsStarted(self.name, begun))

    def finish(self, held: Held, cause: Cause, now: int) -> None:
        """End an attempt that runs, and start what now fits."""
        self._free(held)
        self._tell_ends([self._end(held, cause, now)])
        self.start_heads(now)

    def _end(self, held: Held, cause: Cause, now: int) -> AttemptFinished:
        result = b"r%d.%d" % (held.task_id, held.submitted_ns) if cause is Cause.OK else None
        self.origins[held.task_id] = (held.defined_ns, held.epoch)
        return AttemptFinished(held.task_id, held.attempt, cause, held.started_at_ns, now, result, devices=held.devices)

    def _tell_ends(self, ends: list[AttemptFinished]) -> None:
        self.unheard += ends
        if ends and self.connected:
            self.outbox.append(ev.AttemptsFinished(self.name, ends))

    def _free(self, held: Held) -> None:
        del self.running[held.task_id]
        self.ledger.release(held.need, held.devices)

    # --------------------------------------------------------------------------------------------------- connections

    def connect(self) -> ev.WorkerJoined:
        """The greeting; ends that may not have been heard follow it."""
        self.connected = True
        self.inbox.clear()
        holds = [
            HoldsAttempt(
                e.task_id, e.attempt, "finished", e.started_at_ns, e.devices, 0, *self.origins.get(e.task_id, (0, 0))
            )
            for e in self.unheard
        ]
        for phase, rows in (("running", list(self.running.values())), ("backlog", self.backlog)):
            holds += [
                HoldsAttempt(h.task_id, h.attempt, phase, h.started_at_ns, h.devices, h.variant, h.defined_ns, h.epoch)
                for h in rows
            ]
        self.outbox.clear()
        if self.unheard:
            self.outbox.append(ev.AttemptsFinished(self.name, list(self.unheard)))
        return ev.WorkerJoined(self.name, self.incarnation, self.resources, holds)

    def disconnect(self) -> ev.WorkerDisconnected:
        """Break the connection; what was under way is lost in both directions."""
        self.connected = False
        self.inbox.clear()
        self.outbox.clear()
        return ev.WorkerDisconnected(self.name)

    def restart(self) -> None:
        """Begin anew, with nothing."""
        self.run += 1
        self.leaving = False
        self.ledger = Ledger(self.resources)
        self.backlog.clear()
        self.running.clear()
        self.unheard.clear()

    def check(self) -> None:
        """What runs is within what there is. Raises AssertionError."""
        fresh = Ledger(self.resources)
        for held in self.running.values():
            fresh.reserve_exactly(held.need, held.devices)
        assert (fresh.free_cpus, fresh.free_ram_mb) == (self.ledger.free_cpus, self.ledger.free_ram_mb)
        assert fresh.free_cpus >= 0
        assert fresh.free_ram_mb >= 0
        assert fresh.free_devices() == self.ledger.free_devices()
        assert all(device.free_share >= 0 and device.free_mb >= 0 for device in fresh.devices)
        assert all(amount >= 0 for amount in fresh.free_custom.values())
        assert not self.backlog or not self.ledger.can_fit(self.backlog[0].need)


class Twin:
    """The cluster: carries the actions of a turn to the workers, and their news back."""

    def __init__(self) -> None:
        self.workers: dict[WorkerId, TwinWorker] = {}

    def add(self, name: str, resources: WorkerResources) -> TwinWorker:
        worker = TwinWorker(WorkerId(name), resources, Ledger(resources))
        self.workers[worker.name] = worker
        return worker

    def carry(self, effects: fx.Effects) -> None:
        """Put the actions of a turn on their way. Rows are read here, as they stand at the end of the turn."""
        for action in effects.actions:
            worker = self.workers.get(getattr(action, "worker_id", None))  # type: ignore[arg-type]
            if worker is None or not worker.connected:
                continue
            match action:
                case fx.DispatchAttempts():
                    sent = [
                        Held(t.id, t.attempt, need_of(t), t.submitted_ns, t.defined_ns, t.variant, epoch=action.epoch)
                        for t in action.tasks
                    ]
                    worker.inbox.append(("DispatchAttempts", [(h.task_id, h.attempt, h) for h in sent]))
                case fx.RevokeAttempts() | fx.StopAttempts() | fx.DropAttempts():
                    asks = isinstance(action, fx.StopAttempts) and action.cause is Cause.PREEMPTED
                    kind = "PreemptAttempts" if asks else type(action).__name__
                    worker.inbox.append((kind, [(i, n, None) for i, n in action.attempts]))
                case fx.DrainWorker():
                    worker.inbox.append(("DrainWorker", []))

    def deliver_all(self, handle: Callable[[list[ev.Event]], fx.Effects], now: int) -> None:
        """Let messages flow until none is under way."""
        for _ in range(10_000):
            for worker in self.workers.values():
                while worker.inbox:
                    worker.receive(now)
            events = [event for worker in self.workers.values() for event in self.take(worker, len(worker.outbox))]
            if not events:
                return
            handle(events)
        raise AssertionError("the cluster does not come to rest")

    def take(self, worker: TwinWorker, count: int) -> list[ev.Event]:
        """The next messages of a worker; ends among them count as heard."""
        events = [worker.outbox.popleft() for _ in range(min(count, len(worker.outbox)))]
        for event in events:
            if isinstance(event, ev.AttemptsFinished):
                heard = {(end.task_id, end.attempt) for end in event.attempts}
                worker.unheard = [end for end in worker.unheard if (end.task_id, end.attempt) not in heard]
        return events
