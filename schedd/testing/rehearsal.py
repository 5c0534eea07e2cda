"""An engine with one policy, workers that do as they are told, and dice: what the suite plays through."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from schedd.core import effects as fx
from schedd.core import events as ev
from schedd.core.engine import Engine
from schedd.core.model import (
    SECOND,
    Assigned,
    AttemptFinished,
    AttemptStarted,
    Cause,
    Command,
    Instant,
    Revoking,
    Running,
    Selection,
    Task,
    TaskEntry,
    TaskId,
    TaskRequirements,
    TaskSpec,
    WorkerId,
    WorkerInfo,
    WorkerResources,
)
from schedd.core.needs import compile_needs
from schedd.core.policies.base import TaskScheduler
from schedd.core.settings import EngineSettings, FailureRules, PrefetchRule
from schedd.testing.watch import Watch

#: Calm must bring every task home within so many turns.
CALM_TURNS_MAX = 400

_PAYLOAD = Command(["true"])
_START: Instant = 1_000 * SECOND
#: What tasks need, and what workers have.
WANTS = (
    TaskRequirements(),
    TaskRequirements(cpus=2),
    TaskRequirements(cpus=0.5, ram=1, estimated_time=3),
    TaskRequirements(cpus=0, min_gpus=0.25, min_memory=1),
    TaskRequirements(min_gpus=1, min_memory=4),
    TaskRequirements(min_gpus=2, variants=(TaskRequirements(cpus=3),)),
    TaskRequirements(min_gpus=1, gpu_model="A100"),
)
HAS = (
    WorkerResources(cpus=1, ram_gb=1),
    WorkerResources(cpus=4, ram_gb=4),
    WorkerResources(cpus=4, ram_gb=4, num_gpus=2, gpu_memory_gb=8, gpu_model="A100"),
    WorkerResources(cpus=2, ram_gb=2, num_gpus=3, gpu_memory_gb=4, gpu_model="T4"),
)
#: Can run anything of the above.
BIG = WorkerResources(cpus=16, ram_gb=64, num_gpus=4, gpu_memory_gb=16, gpu_model="A100")


class Rehearsal:
    """An engine under a virtual clock, with workers that do as they are told at once. Every turn is checked."""

    def __init__(self, make: Callable[[Watch], TaskScheduler], seed: int = 0) -> None:
        self.dice = random.Random(seed)
        self._make, self._seed = make, seed
        self.settings = EngineSettings(
            prefetch=PrefetchRule(depth_max=self.dice.choice([0, 0, 3])),
            stealing=self.dice.random() < 0.7,
            heartbeat_ns=1 << 60,
            lease_ns=1 << 60,
            lost_after_ns=1 << 60,
            failures=FailureRules(quarantine=False, hopeless_kind=False),
        )
        self.watch = Watch()
        self.engine = self._engine(self.watch)
        self.now = _START
        self.ids: list[TaskId] = []
        self._joined = 0
        self._stops: list[fx.StopAttempts] = []
        self._turns: list[tuple[Sequence[ev.Event], Instant, bytes]] = []

    def _engine(self, watch: Watch) -> Engine:
        watch.engine = engine = Engine(self._make(watch), self.settings, random.Random(self._seed))
        return engine

    # ------------------------------------------------------------------------------------------------------------ turns

    def turn(self, *events: ev.Event) -> fx.Effects:
        """Let the engine take in some events, and look at what it made of them."""
        effects = self.engine.handle(events, self.now)
        asked = self.watch.calls.copy()
        self.engine.check()
        self.watch.calls = asked  # what the check asks for itself is none of the policy's cost
        self._turns.append((events, self.now, encoded(effects)))
        for action in effects.actions:
            match action:
                case fx.ReplySubmitted():
                    self.ids += action.ids
                case fx.DispatchAttempts():
                    self._check_dispatch(action)
                case fx.StopAttempts():
                    self._stops.append(action)
        return effects

    def _check_dispatch(self, action: fx.DispatchAttempts) -> None:
        ledger = self.engine.resources.workers[action.worker_id].ledger
        assert ledger is not None
        for task in action.tasks:
            why = ledger.blocker(compile_needs(task.requirements)[task.variant])
            assert not why, f"task {task.id} was given to {action.worker_id}, where it cannot run: it {why}"

    def replay(self) -> None:
        """Run the same events by a policy that was made anew: they must have the same effects."""
        engine = self._engine(Watch())
        for number, (events, now, said) in enumerate(self._turns):
            assert encoded(engine.handle(events, now)) == said, f"turn {number} had other effects when it was repeated"

    def digest(self) -> str:
        """A word for all effects so far."""
        return hashlib.sha256(b"".join(said for _, _, said in self._turns)).hexdigest()

    # ---------------------------------------------------------------------------------------------------------- events

    def submit(self, count: int = 1, kinds: str = "abc", wants: Sequence[TaskRequirements] = WANTS) -> None:
        dice = self.dice
        specs = [
            TaskSpec(_PAYLOAD, kind=kind, priority=dice.choice([0, 0, 1, 2.5, -3]), requirements=dice.choice(wants))
            for kind in kinds
        ]
        self.turn(ev.SubmitTasks(1, specs, [TaskEntry(dice.randrange(len(specs))) for _ in range(count)]))

    def join(self, has: WorkerResources) -> None:
        self._joined += 1
        self.turn(ev.WorkerJoined(WorkerId(f"w{self._joined}"), f"run-{self._joined}", has, []))

    def reserved(self) -> list[tuple[WorkerInfo, Task]]:
        """What runs or may start at once."""
        return [(worker, task) for worker in self.engine.resources for task in worker.running.values()]

    def start(self, worker: WorkerInfo, task: Task) -> None:
        if isinstance(task.state, Assigned):
            one = AttemptStarted(task.id, task.attempt, self.now, task.devices)
            self.turn(ev.AttemptsStarted(worker.worker_id, [one]))

    def finish(self, worker: WorkerInfo, task: Task, cause: Cause = Cause.OK) -> None:
        begun = task.state.started_at_ns if isinstance(task.state, Running) else self.now
        one = AttemptFinished(task.id, task.attempt, cause, begun, self.now)
        self.turn(ev.AttemptsFinished(worker.worker_id, [one]))

    def answer(self) -> None:
        """Let workers do what they were asked for: give back what has not started, stop what is to stop."""
        stops, self._stops = self._stops, []
        for order in stops:
            for task_id, attempt in order.attempts:
                task = self.engine.tasks.get(task_id)
                worker = self.engine.resources.workers.get(order.worker_id)
                if worker is None or task is None or task.attempt != attempt or task.state.is_final:
                    continue
                if task.worker_id == worker.worker_id and isinstance(task.state, Assigned | Running | Revoking):
                    self.finish(worker, task, order.cause)
        for worker in list(self.engine.resources):
            asked = [t for t in (*worker.running.values(), *worker.task_queue) if isinstance(t.state, Revoking)]
            if asked:
                answers = [(task.id, task.attempt, not task.reserved) for task in asked]
                self.turn(ev.RevokesAnswered(worker.worker_id, answers))

    def wait(self, seconds: float) -> None:
        self.now += round(seconds * SECOND)
        self.turn(ev.Wakeup())

    # ---------------------------------------------------------------------------------------------------------- chances

    def step(self) -> None:
        """Let anything happen."""
        dice = self.dice
        moves: list[Callable[[], None]] = [
            *[lambda: self.submit(dice.randrange(1, 9))] * 2,
            *[lambda: self.wait(dice.choice([0.1, 0.5, 2, 30]))] * 2,
            self._join_or_leave,
            self._change,
            self.answer,
            *[self._start_some] * 3,
            *[self._finish_some] * 3,
        ]
        dice.choice(moves)()

    def _join_or_leave(self) -> None:
        dice = self.dice
        workers = list(self.engine.resources)
        if len(workers) < 2 or (len(workers) < 5 and dice.random() < 0.6):
            self.join(dice.choice(HAS))
            return
        worker_id = dice.choice(workers).worker_id
        if dice.random() < 0.5:
            self.turn(ev.DrainWorkers(1, [worker_id], undo=dice.random() < 0.5, leave=False))
        else:
            self.turn(ev.WorkerLeft(worker_id, "left"))

    def _change(self) -> None:
        if not self.ids:
            return
        dice = self.dice
        chosen = Selection(dice.sample(self.ids, min(len(self.ids), 3)))
        self.turn(
            dice.choice(
                [
                    ev.CancelTasks(1, chosen),
                    ev.PreemptTasks(1, chosen),
                    ev.HoldTasks(1, chosen),
                    ev.ReleaseTasks(1, chosen),
                    ev.SetTasks(1, chosen, priority=dice.choice([0.0, 1.0, 7.0])),
                    ev.SetTasks(1, chosen, requirements=dice.choice(WANTS)),
                ]
            )
        )

    def _start_some(self) -> None:
        for worker, task in self.reserved():
            if self.dice.random() < 0.5:
                self.start(worker, task)

    def _finish_some(self) -> None:
        running = [pair for pair in self.reserved() if isinstance(pair[1].state, Running)]
        if running:
            self.finish(*self.dice.choice(running), self.dice.choice([Cause.OK, Cause.OK, Cause.OK, Cause.ERROR]))

    def calm(self) -> None:
        """Let everything work: every task must come to its end."""
        self.join(BIG)
        self.turn(ev.DrainWorkers(1, [worker.worker_id for worker in self.engine.resources], undo=True))
        self.turn(ev.ReleaseTasks(1, Selection()))
        for _ in range(CALM_TURNS_MAX):
            if not self.engine.tasks.unfinished_count:
                return
            self.answer()
            for worker, task in self.reserved():
                self.start(worker, task)
            self.wait(1)
            for worker, task in self.reserved():
                if isinstance(task.state, Running) and task.id in worker.running:
                    self.finish(worker, task)
        waiting = [(task.id, task.state.name) for task in self.engine.tasks.rows.values() if not task.state.is_final]
        raise AssertionError(f"tasks wait for ever, with workers that could run them: {waiting[:5]}")


def encoded(effects: fx.Effects) -> bytes:
    """The effects of a turn as bytes, to compare two runs. Rows of tasks count by task and attempt."""
    actions: list[Any] = []
    for action in effects.actions:
        if isinstance(action, fx.DispatchAttempts):
            actions.append((action.worker_id, [(task.id, task.attempt, task.variant) for task in action.tasks]))
        else:
            actions.append((type(action).__name__, action))
    return msgspec.msgpack.encode([[(type(fact).__name__, fact) for fact in effects.facts], actions])
