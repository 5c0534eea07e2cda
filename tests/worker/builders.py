"""Short ways to write what the daemon says to a worker's state machine."""

from __future__ import annotations

from typing import Any

from schedd.core.model import (
    Call,
    Cause,
    Command,
    Gpu,
    Payload,
    TaskId,
    TaskRequirements,
    TaskRules,
    WorkerResources,
)
from schedd.wire.messages import Dispatch, WireAttempt, WireSpec
from schedd.worker.attempts import Action, Attempt, Ending, KillAttempt, StartAttempt, TerminateAttempt
from schedd.worker.state import WorkerState

OK = Ending(Cause.OK)
COMMAND: Payload = Command(["true"])
CALL: Payload = Call(path="os:getpid")


def machine(cpus: float = 1, gpus: int = 0) -> WorkerState:
    """A connected worker."""
    devices = tuple(Gpu(f"GPU-{index}", "T4", 16384) for index in range(gpus))
    state = WorkerState(WorkerResources(cpus=cpus, ram_gb=16, gpus=devices))
    state.is_connected = True
    return state


def dispatch(
    *task_ids: int,
    attempt: int = 1,
    payload: Payload = COMMAND,
    variant: int = 0,
    timeout_s: float | None = None,
    grace_s: float = 5.0,
    **requirements: Any,
) -> Dispatch:
    rules = TaskRules(timeout_s=timeout_s, grace_s=grace_s)
    spec = WireSpec(payload, TaskRequirements(**requirements), rules, "", "")
    return Dispatch([spec], [WireAttempt(TaskId(task_id), attempt, 0, b"", variant) for task_id in task_ids])


def actions_of(state: WorkerState) -> list[tuple[str, int]]:
    """What the state machine wants done, as (verb, task)."""
    return [(_VERBS[type(action)], action.row.task_id) for action in state.take_actions()]


_VERBS: dict[type[Action], str] = {StartAttempt: "start", TerminateAttempt: "terminate", KillAttempt: "kill"}


def row_of(state: WorkerState, task_id: int) -> Attempt:
    return state.running.get(TaskId(task_id)) or state.backlog[TaskId(task_id)]


def end(state: WorkerState, task_id: int, now_ns: int = 0, ending: Ending = OK) -> None:
    state.on_ended(row_of(state, task_id), ending, now_ns)
