"""load_balancing: to the least loaded worker, backlogs allowed."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from schedd.core.model import Task, WorkerInfo
from schedd.core.policies.base import TaskScheduler


class LoadBalancingParams(Struct, frozen=True, forbid_unknown_fields=True):
    """Table [policy.load_balancing]. backlog_per_slot: attempts that may wait at a worker for each of its slots."""

    backlog_per_slot: Annotated[int, Meta(ge=0, le=100_000)] = 1


class LoadBalancingScheduler(TaskScheduler):
    """Least load = running / num_gpus + queue length; slots in place of GPUs on workers without any.

    To choose when tasks are alike and workers differ in size: each is kept as busy as its size allows.
    """

    name = "load_balancing"
    Params = LoadBalancingParams
    summary = "least load = running / slots + backlog; short backlogs allowed"
    fills_evenly = False

    def __init__(self, backlog_per_slot: int = 1) -> None:
        self.backlog_per_slot = backlog_per_slot

    def score(self, task: Task, worker: WorkerInfo) -> float:
        return worker.load

    def backlog_limit(self, worker: WorkerInfo) -> int:
        return self.backlog_per_slot * worker.slots
