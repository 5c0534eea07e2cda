"""Clients: what they ask of the daemon, and what they do when it does not answer.

A client that loses its connection asks once more for submits that are named, as `client.flights` names them, or whose
tasks all have keys; of others it cannot know what became of them, and so it lets them be. It watches what was
acknowledged until it has been told of every end.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import structs

from schedd.core.model import (
    Call,
    Command,
    Payload,
    Selection,
    TaskEntry,
    TaskId,
    TaskRequirements,
    TaskRules,
    TaskSpec,
    WorkerId,
)
from schedd.sim.checks import Oracle
from schedd.sim.kernel import Kernel, Process
from schedd.sim.line import Line
from schedd.sim.network import Cable, Network
from schedd.sim.plan import Plan
from schedd.sim.runner import Script
from schedd.sim.violation import must
from schedd.wire import messages as m
from schedd.wire.framing import Body

RECONNECT_S = 0.5
#: A client that waits for answers in vain gives up its connection.
ANSWER_TIMEOUT_S = 20.0

CALL: Payload = Call(path="sim:task")
COMMAND: Payload = Command(["task"])

WANTS = [
    TaskRequirements(),
    TaskRequirements(),
    TaskRequirements(cpus=2),
    TaskRequirements(cpus=0.5, ram=1),
    TaskRequirements(cpus=0, min_gpus=0.5, min_memory=2),
    TaskRequirements(min_gpus=1, min_memory=4, estimated_time=1),
    TaskRequirements(min_gpus=2, variants=(TaskRequirements(cpus=3),)),
    TaskRequirements(labels={"zone": "a"}),
    TaskRequirements(cpus=0, custom={"licence": 1}),
]


class Author:
    """Writes submits."""

    def __init__(self, dice: random.Random, plan: Plan, name: str) -> None:
        self._dice = dice
        self._plan = plan
        self._name = name
        self._count = 0

    def _script(self) -> Script:
        dice, short = self._dice, self._plan.short_tasks
        self._count += 1
        causes = dice.choice([["ok"], ["ok"], ["ok"], ["error", "ok"], ["oom_gpu", "error", "ok"], ["error"]])
        return Script(
            f"{self._name}.{self._count}",
            dice.choice([0.001, 0.003, 0.01]) if short else dice.choice([0.01, 0.3, 2.0, 6.0, 15.0]),
            causes,
            yields_s=dice.choice([None, 0.1, 3.0]),
            is_short=short,
            reports=dice.choice([0, 0, 2]),
        )

    def _spec(self, known: list[TaskId]) -> TaskSpec:
        dice = self._dice
        rules = TaskRules(
            timeout_s=dice.choice([None, None, 1.5]),
            grace_s=dice.choice([0.0, 0.5]),
            retries=dice.choice([0, 1, 3]),
            lost_limit=1000 if self._plan.patient else dice.choice([0, 1, 3]),
            retry_delay_s=dice.choice([0.1, 5.0]),
            retry_delay_max_s=20.0,
        )
        return TaskSpec(
            dice.choice([CALL, CALL, COMMAND]),
            kind=dice.choice(["train", "eval"]),
            job=dice.choice(["", "sweep"]),
            priority=dice.choice([0.0, 0.0, 5.0]),
            requirements=dice.choice(WANTS),
            rules=rules,
            after=dice.sample(known, 1) if known and dice.random() < 0.2 else [],
            delay_s=dice.choice([0.0, 0.0, 0.0, 3.0]),
            hold=dice.random() < 0.1,
        )

    def submit(self, request: int, known: list[TaskId]) -> tuple[m.Submit, list[str]]:
        """A submit and the names of its tasks."""
        dice = self._dice
        specs = [self._spec(known) for _ in range(dice.choice([1, 1, 2]))]
        keyed = dice.random() < 0.6
        tasks, names = [], []
        for position in range(dice.choice([1, 2, 4]) * (3 if self._plan.short_tasks else 1)):
            script = self._script()
            after = [-1 - dice.randrange(position)] if position and dice.random() < 0.2 else []
            key = script.name if keyed else None
            spec = dice.randrange(len(specs))
            tasks.append(TaskEntry(spec, msgspec.json.encode(script), key, after, dice.choice([None, None, 2.0])))
            names.append(script.name)
        return m.Submit(request, specs, tasks, watch=dice.random() < 0.7), names


class Client:
    """One client program with one connection at a time."""

    def __init__(
        self, process: Process, network: Network, cable: Cable, plan: Plan, oracle: Oracle, workers: list[WorkerId]
    ) -> None:
        kernel: Kernel = process.kernel
        self.process = process
        self._kernel = kernel
        self._dice = kernel.random
        self._network = network
        self._cable = cable
        self._oracle = oracle
        self._workers = workers
        self._author = Author(kernel.random, plan, process.name)
        self._line: Line | None = None
        self._is_up = False
        self._number = 0
        #: Submits that were named; half of the clients name theirs.
        self._submits = 0
        self._names_submits = kernel.random.random() < 0.5
        #: Requests without an answer, and the names of the tasks of a submit.
        self.pending: dict[int, tuple[Any, list[str]]] = {}
        self.known: dict[TaskId, str] = {}
        #: Of those, the ones whose end it has not been told.
        self.undone: set[TaskId] = set()

    # ------------------------------------------------------------------------------------------------- the connection

    def connect(self) -> None:
        self._line = Line(self, self.process, self._network, self._cable)

    def on_connected(self, line: Line) -> None:
        line.write(m.Hello(m.PROTOCOL, "sim", m.ClientHello("sim")))

    def on_frame(self, line: Line, body: Body) -> None:
        for message in m.decode_to_client(body):
            self._on_message(line, message)

    def on_disconnected(self, line: Line) -> None:
        self._line, self._is_up = None, False
        for number, (request, _) in list(self.pending.items()):
            if not (isinstance(request, m.Submit) and (request.client or all(task.key for task in request.tasks))):
                del self.pending[number]
        self.process.call_later(RECONNECT_S * self._dice.random(), self.connect)

    def _write(self, request: Any) -> None:
        if isinstance(request, m.Submit) and request.client:  # all before the first that waits have been answered
            numbers = [r.number for r, _ in self.pending.values() if isinstance(r, m.Submit) and r.client]
            request = structs.replace(request, answered=min(numbers))
        if self._line is not None and self._is_up:
            self._line.write([request])

    # --------------------------------------------------------------------------------------------------- what it hears

    def _on_message(self, line: Line, message: m.ToClient) -> None:
        match message:
            case m.Welcome():
                self._is_up = True
                line.welcomed()
                again = [request for request, _ in self.pending.values()]
                if not self._names_submits:
                    self._dice.shuffle(again)
                for request in again:
                    self._write(request)
                self.watch()
            case m.Submitted():
                self._on_submitted(message)
            case m.TasksDone():
                for done in message.tasks:
                    self._oracle.on_told(done)
                    self.undone.discard(done.task_id)
            case m.RequestFailed():
                self._on_failed(message)
            case m.Changed() | m.Watching():
                self.pending.pop(message.request, None)

    def _on_submitted(self, message: m.Submitted) -> None:
        request, names = self.pending.pop(message.request)
        must(len(message.ids) == len(names), f"{len(names)} tasks were submitted, {len(message.ids)} acknowledged")
        for task_id, name in zip(message.ids, names, strict=True):
            self._oracle.on_submitted(task_id, name)
            self.known[task_id] = name
            self.undone.add(task_id)
        if not request.watch:
            self._ask(lambda number: m.WatchTasks(number, Selection(list(message.ids)), results=True))

    def _on_failed(self, message: m.RequestFailed) -> None:
        request, _ = self.pending.pop(message.request)
        if isinstance(request, m.WatchTasks):
            must(False, f"a client asked for tasks that were acknowledged to it: {message}")
        if isinstance(request, m.Submit):
            fine = (m.JOURNAL_FAILING, m.ILLEGAL_STATE)
            must(message.code in fine, f"a submit was refused: {message}")

    # ---------------------------------------------------------------------------------------------------- what it asks

    def _ask(self, make: Callable[[int], Any], names: list[str] | None = None) -> None:
        self._number += 1
        request = make(self._number)
        self.pending[self._number] = (request, names or [])
        self._write(request)
        self.process.call_later(ANSWER_TIMEOUT_S, self._on_no_answer, self._number, self._line)

    def _on_no_answer(self, number: int, line: Line | None) -> None:
        if number in self.pending and self._line is line and line is not None:
            line.abort()

    def watch(self) -> None:
        """Ask to be told of what is not known to have ended."""
        if self.undone and self._is_up:
            self._ask(lambda number: m.WatchTasks(number, Selection(sorted(self.undone)), results=True))

    def act(self) -> None:
        """Ask for something."""
        dice = self._dice
        if dice.random() < 0.5 or not self.known:
            known = [i for i in self.known if i in self.undone]
            request, names = self._author.submit(self._number + 1, known)
            if self._names_submits:
                self._submits += 1
                request = structs.replace(request, client=self.process.name, number=self._submits)
            self._ask(lambda number: structs.replace(request, request=number), names)
        else:
            self._ask(self._change())

    def _change(self) -> Callable[[int], Any]:
        dice = self._dice
        chosen = Selection(sorted(dice.sample(sorted(self.known), min(len(self.known), dice.choice([1, 2, 4])))))
        worker = dice.choice(self._workers)
        undo, leave = dice.random() < 0.5, dice.random() < 0.5
        requirements, priority = dice.choice(WANTS), dice.choice([0.0, 1.0, 9.0])
        grace_s = dice.choice([None, 0.0, 2.0])
        changes: list[Callable[[int], Any]] = [
            lambda n: m.CancelTasks(n, chosen),
            lambda n: m.CancelTasks(n, chosen),
            lambda n: m.CancelTasks(n, chosen, started=False),
            lambda n: m.PreemptTasks(n, chosen, grace_s),
            lambda n: m.PreemptTasks(n, Selection()),
            lambda n: m.HoldTasks(n, chosen),
            lambda n: m.ReleaseTasks(n, Selection()),
            lambda n: m.ReleaseTasks(n, chosen),
            lambda n: m.SetTasks(n, chosen, priority=priority),
            lambda n: m.SetTasks(n, chosen, requirements=requirements),
            lambda n: m.SetPriorities(n, [(task_id, priority) for task_id in chosen.ids]),
            lambda n: m.DrainWorkers(n, [worker], undo, leave),
        ]
        return dice.choice(changes)

    def release_all(self) -> None:
        """After the storm: let go what is held, and let every worker work."""
        self._ask(lambda n: m.ReleaseTasks(n, Selection()))
        self._ask(lambda n: m.DrainWorkers(n, self._workers, undo=True))
