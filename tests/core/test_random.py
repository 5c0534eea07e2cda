"""Random sequences over all policies: whatever happens, the tables agree, no task is lost, and calm brings all home."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schedd.core import effects as fx
from schedd.core import events as ev
from schedd.core.engine import Engine
from schedd.core.model import (
    SECOND,
    AttemptFinished,
    AttemptReport,
    AttemptStarted,
    Cause,
    HoldsAttempt,
    HostUsage,
    Selection,
    TaskEntry,
    TaskId,
    TaskRequirements,
    TaskRules,
    TaskSpec,
    WorkerId,
    WorkerResources,
)
from schedd.core.policies import POLICIES
from schedd.core.policies.base import Draft, TaskScheduler
from schedd.core.policies.fifo import FIFOScheduler
from schedd.core.policies.priority import PriorityScheduler
from schedd.core.settings import EngineSettings, FailureRules, PrefetchRule
from schedd.testing.rehearsal import encoded

from .builders import PAYLOAD, START, picture
from .twin import Twin, TwinWorker

WANTS = [
    TaskRequirements(),
    TaskRequirements(cpus=2),
    TaskRequirements(cpus=0.5, ram=1),
    TaskRequirements(cpus=0, min_gpus=0.25, min_memory=1),
    TaskRequirements(min_gpus=1, min_memory=4),
    TaskRequirements(min_gpus=2),
    TaskRequirements(min_gpus=2, variants=(TaskRequirements(cpus=3),)),
    TaskRequirements(labels={"zone": "a"}),
    TaskRequirements(cpus=0, custom={"licence": 1}),
    TaskRequirements(gpu_model="A100", min_gpus=0.5, estimated_time=3),
]
HAS = [
    WorkerResources(cpus=1),
    WorkerResources(cpus=4, ram_gb=2, labels={"zone": "a"}),
    WorkerResources(cpus=4, num_gpus=2, gpu_memory_gb=8, gpu_model="A100"),
    WorkerResources(cpus=2, num_gpus=3, gpu_memory_gb=4, custom={"licence": 2}),
]
#: Can run anything of the above.
BIG = WorkerResources(
    cpus=64, ram_gb=64, num_gpus=8, gpu_memory_gb=64, gpu_model="A100", labels={"zone": "a"}, custom={"licence": 9}
)
#: Sees black holes and hopeless kinds everywhere, and thinks better of it.
SUSPICIOUS = FailureRules(
    quarantine_failures_min=1,
    hopeless_tasks_min=2,
    hopeless_share=0.6,
    probe_after_ns=2 * SECOND,
    probe_after_max_ns=8 * SECOND,
    window_ns=5 * SECOND,
    odds_per_worker=0.1,
    portion=2,
)
BROKEN_CAUSES = [Cause.OK, *[Cause.ERROR] * 4, Cause.TIMEOUT, Cause.OOM_GPU, Cause.REJECTED]
CAUSES = [*[Cause.OK] * 4, *(cause for cause in Cause if cause is not Cause.CANCELLED)]


class Overtaking(FIFOScheduler):
    """Starts whatever can start, last come first: a rule of its own for who goes before whom."""

    def plan(self, draft: Draft, now: int) -> None:
        for task in reversed(draft.waiting() if draft.first() is not None else []):
            any(draft.start(task, worker) for worker in draft.workers())


def build(name: str) -> TaskScheduler:
    """The policy of that name, or `priority` with a rule; "overtaking": out of the order of the queue."""
    if name == "packing":
        return PriorityScheduler(packing=True)
    if name == "overtaking":
        return Overtaking()
    if name == "promoting":
        return PriorityScheduler(from_metric="x", from_metric_mode="min")
    if name == "preempting":
        return PriorityScheduler(preempt=True, preempt_after_s=0, preempt_run_min_s=0, preempt_margin=0.5)
    policy: TaskScheduler = POLICIES[name].from_params(POLICIES[name].Params())
    return policy


class Chaos:
    """One random run: an engine, a twin of a cluster, and dice."""

    def __init__(self, policy: str, seed: int, *, lies: bool) -> None:
        self.dice = random.Random(seed)
        self.policy = policy
        self.seed = seed
        self.lies = lies
        self.settings = EngineSettings(
            prefetch=PrefetchRule(depth_max=self.dice.choice([0, 3])),
            stealing=self.dice.random() < 0.7,
            heartbeat_ns=SECOND,
            lease_ns=5 * SECOND,
            lost_after_ns=5 * SECOND,
            unfinished_max=200,
            finished_keep_count=self.dice.choice([5, 1000]),
            results_keep_bytes=self.dice.choice([10, 1000]),
            failures=self.dice.choice([FailureRules(), SUSPICIOUS]),
        )
        #: On this worker nearly everything fails.
        self.broken = self.dice.choice(["w1", "w2", "nobody"])
        self.engine = self.make()
        self.twin = Twin()
        self.now = START
        self.turns: list[tuple[list[ev.Event], int]] = []
        self.said: list[bytes] = []
        #: What the facts and replies say, kept apart from the tables of the engine.
        self.admitted: set[TaskId] = set()
        self.ended: dict[TaskId, str] = {}
        self.dispatched: set[tuple[TaskId, int]] = set()

    def make(self) -> Engine:
        return Engine(build(self.policy), self.settings, random.Random(self.seed))

    # ------------------------------------------------------------------------------------------------------- turns

    def handle(self, events: list[ev.Event]) -> fx.Effects:
        effects = self.engine.handle(events, self.now)
        self.turns.append((events, self.now))
        self.said.append(encoded(effects))
        self.engine.check()
        self.follow(effects)
        self.twin.carry(effects)
        for worker in self.twin.workers.values():
            worker.check()
        return effects

    def follow(self, effects: fx.Effects) -> None:
        for fact in effects.facts:
            match fact:
                case fx.TasksAdmitted():
                    assert not self.admitted & set(fact.ids)
                    self.admitted |= set(fact.ids)
                case fx.TaskFinished():
                    assert fact.task_id in self.admitted
                    assert fact.task_id not in self.ended
                    self.ended[fact.task_id] = fact.state
                case fx.AttemptDispatched():
                    assert fact.task_id not in self.ended
                case fx.PreemptAsked():
                    self.check_asked(fact)
                case fx.WorkerGone():
                    # The shell closes the connection of a worker that was given up.
                    gone = self.twin.workers.get(fact.worker_id)
                    if gone is not None and gone.connected and fact.incarnation == gone.incarnation:
                        gone.disconnect()
        for action in effects.actions:
            if isinstance(action, fx.DispatchAttempts):
                for task in action.tasks:
                    assert task.worker_id == action.worker_id
                    assert (task.id, task.attempt) not in self.dispatched
                    self.dispatched.add((task.id, task.attempt))

    def check_asked(self, asked: fx.PreemptAsked) -> None:
        """By the rule room is made for somebody who outranks the victim and who then stands in its worker's backlog."""
        if not asked.for_id:
            return
        assert self.policy == "preempting"
        victim, gains = self.engine.tasks.rows[asked.task_id], self.engine.tasks.rows[asked.for_id]
        assert gains.priority - victim.priority >= 0.5
        assert gains.worker_id == victim.worker_id
        assert sum(ended.cause is Cause.PREEMPTED for ended in victim.attempts) < 3

    # ------------------------------------------------------------------------------------------------ what may happen

    def step(self) -> None:
        moves: list[Any] = [
            self.submit, self.submit, self.submit, self.change, self.join, self.deliver, self.deliver, self.deliver,
            self.hear, self.hear, self.hear, self.end, self.end, self.end, self.break_off, self.reconnect, self.drain,
            self.pass_time, self.pass_time, self.report, self.disturb,
        ]  # fmt: skip
        if self.lies:
            moves += [self.lie, self.lie]
        else:
            moves += [self.settle]
        self.dice.choice(moves)()

    def settle(self) -> None:
        """Let all messages arrive: the pictures must agree, whatever happened before."""
        self.twin.deliver_all(self.handle, self.now)
        self.compare()

    def submit(self) -> None:
        dice = self.dice
        specs = [
            TaskSpec(
                PAYLOAD,
                kind=dice.choice("abc"),
                job=dice.choice(["", "j1", "j2"]),
                priority=dice.choice([0, 0, 0, 1, 2.5, -3]),
                requirements=dice.choice(WANTS),
                rules=TaskRules(retries=dice.randrange(3), lost_limit=dice.randrange(3), retry_delay_s=1),
                after=[dice.randrange(1, len(self.admitted) + 2)] if dice.random() < 0.1 else [],
                delay_s=dice.choice([0, 0, 0, 2]),
                hold=dice.random() < 0.1,
            )
            for _ in range(2)
        ]
        entries = [
            TaskEntry(
                dice.randrange(2),
                key=dice.choice(["k1", "k2", "k3"]) if dice.random() < 0.1 else None,
                after=[-1 - dice.randrange(n + 1)] if n and dice.random() < 0.2 else [],
            )
            for n in range(dice.randrange(1, 8))
        ]
        self.handle([ev.SubmitTasks(1, specs, entries, strict=dice.random() < 0.1)])

    def some_tasks(self) -> Selection:
        dice = self.dice
        if dice.random() < 0.2:
            return Selection(job=dice.choice(["j1", "j2"]))
        return Selection([TaskId(dice.randrange(0, len(self.admitted) + 3)) for _ in range(dice.randrange(1, 5))])

    def change(self) -> None:
        dice, chosen = self.dice, self.some_tasks()
        events: list[ev.Event] = [
            ev.CancelTasks(1, chosen),
            ev.PreemptTasks(1, chosen, dice.choice([None, 0, 3])),
            ev.HoldTasks(1, chosen),
            ev.ReleaseTasks(1, chosen),
            ev.ReleaseTasks(1, Selection(states=["held"])),
            ev.SetTasks(1, chosen, priority=dice.choice([0.0, 1.0, 7.0])),
            ev.SetTasks(1, chosen, requirements=dice.choice(WANTS)),
            ev.SetPriorities(1, [(task_id, dice.choice([0.0, 1.0, 7.0])) for task_id in chosen.ids]),
        ]
        self.handle(dice.sample(events, dice.randrange(1, 3)))

    def join(self) -> None:
        if len(self.twin.workers) < 4:
            name = f"w{len(self.twin.workers) + 1}"
            self.handle([self.twin.add(name, self.dice.choice(HAS)).connect()])

    def one(self, connected: bool = True) -> TwinWorker | None:
        workers = [worker for worker in self.twin.workers.values() if worker.connected is connected]
        return self.dice.choice(workers) if workers else None

    def deliver(self) -> None:
        worker = self.one()
        if worker is not None:
            for _ in range(self.dice.randrange(1, 4)):
                if worker.inbox:
                    worker.receive(self.now)

    def hear(self) -> None:
        workers = [worker for worker in self.twin.workers.values() if worker.connected]
        chosen = self.dice.sample(workers, min(len(workers), self.dice.randrange(1, 4)))
        events = [event for worker in chosen for event in self.twin.take(worker, self.dice.randrange(1, 4))]
        if events:
            self.handle(events)

    def end(self) -> None:
        workers = [worker for worker in self.twin.workers.values() if worker.running]
        if workers:
            worker = self.dice.choice(workers)
            held = self.dice.choice(list(worker.running.values()))
            causes = BROKEN_CAUSES if worker.name == self.broken else CAUSES
            cause = Cause.PREEMPTED if held.stopping and self.dice.random() < 0.7 else self.dice.choice(causes)
            worker.finish(held, cause, self.now)

    def break_off(self) -> None:
        worker = self.one()
        if worker is not None and self.dice.random() < 0.5:
            event: ev.Event = worker.disconnect()
            if self.dice.random() < 0.2:
                event = ev.WorkerLeft(worker.name, "left")
                worker.restart()
            self.handle([event])

    def reconnect(self) -> None:
        worker = self.one(connected=False)
        if worker is not None:
            if self.dice.random() < 0.3:
                worker.restart()
            self.handle([worker.connect()])

    def drain(self) -> None:
        worker = self.one()
        if worker is not None and self.dice.random() < 0.5:
            undo, leave = self.dice.random() < 0.4, self.dice.random() < 0.5
            self.handle([ev.DrainWorkers(1, [worker.name, WorkerId("nobody")], undo, leave)])

    def pass_time(self) -> None:
        due = self.engine.next_deadline()
        step = self.dice.randrange(1, 2 * SECOND)
        self.now = max(self.now, due) if due is not None and self.dice.random() < 0.7 else self.now + step
        beats: list[ev.Event] = [
            ev.Heartbeat(worker.name, HostUsage())
            for worker in self.twin.workers.values()
            if worker.connected and self.dice.random() < 0.7
        ]
        self.handle([*beats, ev.Wakeup(self.dice.choice([0, SECOND]))])

    def report(self) -> None:
        worker = self.one()
        if worker is not None and worker.running:
            held = self.dice.choice(list(worker.running.values()))
            value = self.dice.choice([float("nan"), float("inf"), -1e300, 0.5, 2.0])
            said = AttemptReport(held.task_id, held.attempt, 1, {"x": value})
            self.handle([ev.AttemptsReported(worker.name, [said])])

    def disturb(self) -> None:
        """Say something about attempts that are not current, or not that worker's: nothing may change."""
        dice = self.dice
        name = WorkerId(dice.choice(["w1", "w2", "w3", "nobody"]))
        row = self.engine.resources.workers.get(name)
        if row is not None and str(row.status) in ("unreachable", "draining"):
            return  # any word of it is a sign of life
        task_id = TaskId(dice.choice([0, -1, 1 << 62, dice.randrange(1, len(self.admitted) + 2)]))
        task = self.engine.tasks.get(task_id)
        attempt = dice.choice([0, -1, 1, 2, 3, 1 << 62])
        if task is not None and task.attempt == attempt and getattr(task.state, "worker_id", None) == name:
            return
        events: list[ev.Event] = [
            ev.AttemptsStarted(name, [AttemptStarted(task_id, attempt, dice.choice([0, -1, 1 << 62]), (9, -1))]),
            ev.AttemptsFinished(name, [AttemptFinished(task_id, attempt, dice.choice(CAUSES), 1 << 62, -5, b"x")]),
            ev.AttemptsReported(name, [AttemptReport(task_id, attempt, 1, {"x": float("inf")})]),
            ev.RevokesAnswered(name, [(task_id, attempt, dice.random() < 0.5)]),
        ]
        event = dice.choice(events)
        before, due = picture(self.engine), self.engine.next_deadline()
        if due is not None and due <= self.now:
            return
        effects = self.handle([event])
        assert not effects.facts
        assert picture(self.engine) == before

    def lie(self) -> None:
        """Say something false about attempts that the worker does hold."""
        dice = self.dice
        rows = [row for row in self.engine.resources if row.running or row.task_queue]
        if not rows:
            return
        row = dice.choice(rows)
        task = dice.choice([*row.running.values(), *row.task_queue])
        devices = tuple(dice.choice([0, 1, 5, -1]) for _ in range(dice.randrange(4)))
        at = dice.choice([0, -(1 << 62), self.now, 1 << 62])
        phases, cause = ["backlog", "running", "finished", "?"], dice.choice(list(Cause))
        holds = [
            HoldsAttempt(t.id, t.attempt + dice.randrange(2), dice.choice(phases), at, devices)
            for t in (*row.task_queue, *row.running.values())
            if dice.random() < 0.7
        ]  # fmt: skip
        events: list[ev.Event] = [
            ev.AttemptsStarted(row.worker_id, [AttemptStarted(task.id, task.attempt, at, devices)]),
            ev.AttemptsFinished(row.worker_id, [AttemptFinished(task.id, task.attempt, cause, at, at)]),
            ev.RevokesAnswered(row.worker_id, [(task.id, task.attempt, dice.random() < 0.5)] * 2),
            ev.WorkerDraining(row.worker_id, [(task.id, task.attempt)] * 2),
            ev.WorkerJoined(row.worker_id, row.incarnation, WorkerResources(), holds * 2),
        ]  # fmt: skip
        self.handle(dice.sample(events, dice.randrange(1, 4)))

    # ---------------------------------------------------------------------------------------------------------- calm

    def calm(self) -> None:
        """Let everything work: every task must come to its end."""
        self.lies = False
        for worker in self.twin.workers.values():
            if worker.connected:
                self.handle([worker.disconnect()])
            if worker.leaving:
                worker.restart()
        self.now += 60 * SECOND
        self.handle([ev.Wakeup()])
        self.handle([ev.Wakeup()])
        self.handle([worker.connect() for worker in self.twin.workers.values()])
        self.handle([self.twin.add("big", BIG).connect()])
        self.handle([ev.DrainWorkers(1, list(self.twin.workers), undo=True)])
        self.handle([ev.ReleaseTasks(1, Selection())])
        for _ in range(1000):
            self.twin.deliver_all(self.handle, self.now)
            self.compare()
            if self.engine.tasks.unfinished_count == 0:
                break
            for worker in self.twin.workers.values():
                for held in list(worker.running.values()):
                    worker.finish(held, Cause.OK, self.now)
            self.twin.deliver_all(self.handle, self.now)
            due = self.engine.next_deadline()
            self.now = max(self.now + SECOND, due or 0)
            beats: list[ev.Event] = [ev.Heartbeat(name, HostUsage()) for name in self.twin.workers]
            self.handle([*beats, ev.Wakeup()])
        assert self.engine.tasks.unfinished_count == 0, [
            t.state for t in self.engine.tasks.rows.values() if not t.state.is_final
        ]
        assert set(self.ended) == self.admitted

    def compare(self) -> None:
        """With nothing under way, the engine's picture of each worker is the worker's own."""
        for name, worker in self.twin.workers.items():
            if not worker.connected:
                continue
            row = self.engine.resources.workers[name]
            # What is to be told of some ends after a restart waits for others to come.
            over = {end.task_id for worker_id, end in self.engine._t.put_off if worker_id == name}
            running = {task.id: (task.attempt, task.devices) for task in row.running.values() if task.id not in over}
            assert running == {held.task_id: (held.attempt, held.devices) for held in worker.running.values()}
            assert [t.id for t in row.task_queue if t.id not in over] == [held.task_id for held in worker.backlog]
            assert all(task.state.name == "running" for task in row.running.values() if task.id not in over)

    def replay(self) -> None:
        """The same events at the same instants have the same effects."""
        engine = self.make()
        for (events, now), said in zip(self.turns, self.said, strict=True):
            assert encoded(engine.handle(events, now)) == said


def run(policy: str, seed: int, steps: int, *, lies: bool) -> None:
    chaos = Chaos(policy, seed, lies=lies)
    for _ in range(steps):
        chaos.step()
    chaos.calm()
    chaos.replay()


@pytest.mark.parametrize("policy", [*POLICIES, "preempting", "packing", "overtaking", "promoting"])
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 1 << 32))
def test_chaos_then_calm(policy: str, seed: int) -> None:
    run(policy, seed, 120, lies=False)


@pytest.mark.parametrize("policy", [*POLICIES, "preempting", "packing", "overtaking", "promoting"])
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 1 << 32))
def test_lying_workers(policy: str, seed: int) -> None:
    run(policy, seed, 120, lies=True)
