"""Random daemons against the worker's state machine, with a runner that only keeps books."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from schedd.core.model import SECOND, Cause, TaskId, TaskRequirements, TaskRules
from schedd.wire.messages import (
    AckFinished,
    AttemptsFinished,
    AttemptsStarted,
    Dispatch,
    DrainWorker,
    DropAttempts,
    RevokeAttempts,
    StopAttempts,
    WireAttempt,
    WireSpec,
)
from schedd.worker.attempts import Attempt, Ending, KillAttempt, StartAttempt
from schedd.worker.outbox import Kept

from .builders import CALL, COMMAND, machine

REQUIREMENTS = [
    TaskRequirements(cpus=0.5),
    TaskRequirements(cpus=2, ram=4),
    TaskRequirements(cpus=0, min_gpus=0.5, min_memory=6, variants=(TaskRequirements(cpus=3),)),
    TaskRequirements(cpus=1, min_gpus=2),
    TaskRequirements(cpus=100),
]


class Storm:
    """Drives one worker; every step leaves it consistent."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.state = machine(cpus=4, gpus=2)
        self.now_ns = 0
        #: What the runner runs.
        self.processes: list[Attempt] = []
        self.reported: dict[tuple[int, int], Cause] = {}
        self.announced: set[tuple[int, int]] = set()
        self.seq = 0
        self.disk: dict[int, Kept] = {}
        self.steps: list[Callable[[], None]] = [
            self.dispatch,
            self.dispatch,
            self.finish,
            self.finish,
            self.finish,
            self.stop,
            self.drop,
            self.revoke,
            self.acknowledge,
            self.reconnect,
            self.pass_time,
            self.begin_ahead,
            self.grow_old,
            self.restart,
        ]

    def step(self) -> None:
        self.now_ns += self.random.randrange(SECOND)
        self.random.choice(self.steps)()
        self.turn()

    def turn(self) -> None:
        self.state.check()
        for action in self.state.take_actions():
            row = action.row
            assert not row.ended
            if isinstance(action, StartAttempt):
                if row not in self.processes:
                    self.processes.append(row)
            elif isinstance(action, KillAttempt):
                assert row in self.processes
        tasks = [row.task_id for row in self.processes]
        assert len(tasks) == len(set(tasks)), "two attempts of one task"
        for message in self.state.take_messages():
            if isinstance(message, AttemptsFinished):
                self.seq = max(self.seq, message.seq)
                for end in message.attempts:
                    name = (end.task_id, end.attempt)
                    assert self.reported.get(name, end.cause) is end.cause
                    self.reported[name] = end.cause
            elif isinstance(message, AttemptsStarted):
                for start in message.attempts:
                    name = (start.task_id, start.attempt)
                    assert name not in self.reported
                    assert name not in self.announced
                    self.announced.add(name)

        self.disk |= {batch.seq: batch for batch in self.state.take_to_keep()}
        for seq in self.state.take_over():
            del self.disk[seq]

    def some_names(self) -> list[tuple[TaskId, int]]:
        count = self.random.randrange(4)
        return [(TaskId(self.random.randrange(12)), self.random.randrange(1, 4)) for _ in range(count)]

    def dispatch(self) -> None:
        specs = [
            WireSpec(
                self.random.choice([CALL, COMMAND]),
                self.random.choice(REQUIREMENTS),
                TaskRules(timeout_s=self.random.choice([None, 3.0]), grace_s=self.random.choice([0, 2.0])),
                "",
                "",
            )
            for _ in range(2)
        ]
        attempts = [
            WireAttempt(task_id, attempt, self.random.randrange(-1, 3), b"", self.random.choice([0, 0, 0, 1, 9]))
            for task_id, attempt in self.some_names()
        ]
        # An attempt that the worker has forgotten (acknowledged, dropped, given back) is a new one to it.
        held = {(hold.task_id, hold.attempt) for hold in self.state.holds()} | set(self.state.dying)
        for wire in attempts:
            if (wire.task_id, wire.attempt) not in held:
                self.announced.discard((wire.task_id, wire.attempt))
                self.reported.pop((wire.task_id, wire.attempt), None)
        self.state.on_message(Dispatch(specs, attempts), self.now_ns)

    def finish(self) -> None:
        if self.processes:
            row = self.processes.pop(self.random.randrange(len(self.processes)))
            self.state.on_ended(row, Ending(self.random.choice(list(Cause))), self.now_ns)
            self.state.on_ended(row, Ending(Cause.OK), self.now_ns)

    def begin_ahead(self) -> None:
        rows = self.state.upcoming(4)
        assert all(row.need == rows[0].need for row in rows)
        running = {row.task_id for row in self.processes}
        if rows and rows[0].task_id not in running:
            rows[0].begun = True
            self.processes.append(rows[0])

    def stop(self) -> None:
        cause = self.random.choice([Cause.CANCELLED, Cause.PREEMPTED])
        message = StopAttempts(self.some_names(), cause, self.random.choice([None, 0.0, 1.0, 20.0]))
        self.state.on_message(message, self.now_ns)

    def drop(self) -> None:
        self.state.on_message(DropAttempts(self.some_names()), self.now_ns)

    def revoke(self) -> None:
        self.state.on_message(RevokeAttempts(self.some_names()), self.now_ns)

    def acknowledge(self) -> None:
        self.state.on_message(AckFinished(self.random.randrange(self.seq + 3)), self.now_ns)

    def pass_time(self) -> None:
        self.now_ns += 5 * SECOND
        self.state.wake(self.now_ns)
        deadline = self.state.next_deadline()
        assert deadline is None or deadline > self.now_ns or self.state.dying

    def reconnect(self) -> None:
        self.state.is_connected = False
        assert self.state.take_messages() == []
        holds = self.state.holds()
        names = [(hold.task_id, hold.attempt) for hold in holds]
        assert len(names) == len(set(names))
        self.announced |= {(hold.task_id, hold.attempt) for hold in holds if hold.phase == "running"}
        self.state.on_hello()
        self.state.is_connected = True

    def grow_old(self) -> None:
        self.state.grow_old()

    def restart(self) -> None:
        """The worker is killed; what it knows then is on the disk. What it does not know any more may come again."""
        self.state = machine(cpus=4, gpus=2)
        self.state.restore(self.disk[seq] for seq in sorted(self.disk))
        self.processes.clear()
        self.announced.clear()
        held = {(hold.task_id, hold.attempt) for hold in self.state.holds()}
        assert held <= {(end.task_id, end.attempt) for kept in self.disk.values() for end in kept.attempts}
        self.reported = {name: cause for name, cause in self.reported.items() if name in held}

    def calm(self) -> None:
        """Let everything end: nothing may be left, and the whole capacity be free."""
        self.state.on_message(DrainWorker(), self.now_ns)
        self.turn()
        while self.processes:
            self.finish()
            self.turn()
        self.state.on_message(AckFinished(self.seq), self.now_ns)
        self.turn()
        assert not self.disk
        assert self.state.is_idle
        assert self.state.can_leave
        assert self.state.ledger.free_cpus == self.state.ledger.cpus


@given(st.randoms(use_true_random=False), st.integers(1, 60))
@settings(max_examples=150, deadline=None)
def test_any_order_of_messages_and_ends_keeps_the_books(random: Random, count: int) -> None:
    storm = Storm(random)
    for _ in range(count):
        storm.step()
    storm.calm()
