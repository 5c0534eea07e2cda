"""Amounts that mean nothing are refused; what is declared briefly is what is declared in full."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from schedd.core.model import (
    NO_REQUIREMENTS,
    Gpu,
    Held,
    Queued,
    Succeeded,
    Task,
    TaskId,
    TaskRequirements,
    TaskRules,
    WorkerId,
    WorkerInfo,
    WorkerResources,
    kind_of,
)


@pytest.mark.parametrize(
    "values",
    [
        {"min_gpus": -1},
        {"min_gpus": 1.5},
        {"min_gpus": math.nan},
        {"min_gpus": math.inf},
        {"min_gpus": 0.0001},
        {"min_gpus": 100_000},
        {"min_gpus": True},
        {"min_gpus": "2"},
        {"min_memory": -0.1},
        {"min_memory": math.nan},
        {"cpus": -1},
        {"cpus": math.inf},
        {"cpus": 1e300},
        {"ram": -1},
        {"ram": 1e300},
        {"estimated_time": -1},
        {"estimated_time": math.nan},
        {"custom": {"licence": -1}},
        {"custom": {"licence": math.nan}},
        {"variants": (TaskRequirements(variants=(NO_REQUIREMENTS,)),)},
    ],
)
def test_requirements_that_mean_nothing(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must be|at least|cannot have"):
        TaskRequirements(**values)


def test_requirements_that_mean_nothing_do_not_decode() -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(b'{"cpus": -1}', type=TaskRequirements)


@pytest.mark.parametrize("min_gpus", [0, 0.001, 0.5, 1, 1.0, 8, 1024])
def test_requirements_that_are_fine(min_gpus: float) -> None:
    assert TaskRequirements(min_gpus=min_gpus).min_gpus == min_gpus


@pytest.mark.parametrize(
    "values",
    [
        {"timeout_s": 0},
        {"timeout_s": -1},
        {"timeout_s": math.nan},
        {"timeout_s": 1e10},
        {"grace_s": -1},
        {"grace_s": math.nan},
        {"retries": -1},
        {"lost_limit": -1},
        {"lost_limit": 10**9},
        {"timeout_limit": -1},
        {"oom_limit": 10**9},
        {"rejected_limit": -1},
        {"memory_growth": 0.9},
        {"memory_growth": math.nan},
        {"retry_delay_s": -1},
        {"retry_delay_s": math.inf},
        {"retry_delay_max_s": math.nan},
    ],
)
def test_rules_that_mean_nothing(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        TaskRules(**values)


@pytest.mark.parametrize(
    "values",
    [
        {"cpus": -1},
        {"cpus": math.nan},
        {"ram_gb": 1e300},
        {"num_gpus": -1},
        {"num_gpus": 5000},
        {"gpu_memory_gb": -1},
        {"network_mbps": -1},
        {"custom": {"x": -1}},
        {"gpus": tuple(Gpu(str(i)) for i in range(1025))},
        {"gpus": (Gpu("a"), Gpu("a"))},
        {"gpus": (Gpu("a", "T4", -1),)},
    ],
)
def test_resources_that_mean_nothing(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must be|at most|same uuid"):
        WorkerResources(**values)


def test_devices_in_short() -> None:
    short = WorkerResources(num_gpus=2, gpu_memory_gb=16, gpu_model="T4")
    assert short.devices() == (Gpu("GPU-0", "T4", 16384), Gpu("GPU-1", "T4", 16384))
    assert WorkerResources(gpus=(Gpu("x"),), num_gpus=7).devices() == (Gpu("x"),)


def test_resources_from_a_mapping() -> None:
    assert WorkerResources.from_dict({"cpus": 2, "num_gpus": 1}) == WorkerResources(cpus=2, num_gpus=1)
    with pytest.raises(ValueError, match="unknown resource 'cpu'; known: cpus, ram_gb"):
        WorkerResources.from_dict({"cpu": 2})
    with pytest.raises(ValueError, match="Expected"):
        WorkerResources.from_dict({"cpus": "two"})


def test_states_know_their_name() -> None:
    assert [(state.name, state.is_final) for state in (Held(0), Queued(0), Succeeded(0))] == [
        ("held", False),
        ("queued", False),
        ("succeeded", True),
    ]


def test_slots_and_load() -> None:
    task = Task(id=TaskId(1))
    assert WorkerInfo(WorkerId("w")).slots == 1
    assert WorkerInfo(WorkerId("w"), resources=WorkerResources(cpus=8)).slots == 8
    assert WorkerInfo(WorkerId("w"), resources=WorkerResources(cpus=0.5)).slots == 1
    row = WorkerInfo(WorkerId("w"), num_gpus=2, task_count=3, task_queue=[task, task], outgoing=1, incoming=4)
    assert row.load == 1.5 + 2 - 1 + 4


def test_worker_of_a_task() -> None:
    assert Task(id=TaskId(1)).worker_id is None


@pytest.mark.parametrize(
    ("argv", "kind"),
    [
        (["train"], "train"),
        (["/usr/bin/train", "--fast"], "train"),
        (["python", "train.py"], "train.py"),
        (["/opt/bin/python3.12", "-m", "pkg.train"], "pkg.train"),
        (["python3", "src/train.py", "x"], "train.py"),
        (["python", "-c", "pass"], "python"),
        (["bash"], "bash"),
        (["./"], "./"),
    ],
)
def test_kind_of_a_command(argv: list[str], kind: str) -> None:
    assert kind_of(argv) == kind
