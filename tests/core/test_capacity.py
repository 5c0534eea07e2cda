"""The arithmetic of a worker's capacity."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schedd.core.capacity import Ledger
from schedd.core.model import Gpu, TaskRequirements, WorkerResources
from schedd.core.needs import Need, compile_needs

GPUS = (Gpu("a", "T4", 4096), Gpu("b", "A100", 8192), Gpu("c", "A100", 8192))
FULL = WorkerResources(cpus=4, ram_gb=8, gpus=GPUS, labels={"zone": "a"}, custom={"licence": 2})

wants = st.builds(
    TaskRequirements,
    min_gpus=st.sampled_from([0, 0.25, 0.5, 1, 2, 3, 4]),
    min_memory=st.sampled_from([0, 1, 4, 6, 9]),
    cpus=st.sampled_from([0, 0.5, 1, 3, 5]),
    ram=st.sampled_from([0, 1, 5, 9]),
    gpu_model=st.sampled_from(["", "T4", "A100", "H100"]),
    labels=st.sampled_from([{}, {"zone": "a"}, {"zone": "b"}]),
    custom=st.sampled_from([{}, {"licence": 1}, {"licence": 3}, {"dongle": 1}]),
)


def need(**values: object) -> Need:
    return compile_needs(TaskRequirements(**values))[0]  # type: ignore[arg-type]


def free(ledger: Ledger) -> object:
    return (
        ledger.free_cpus,
        ledger.free_ram_mb,
        [(d.free_share, d.free_mb) for d in ledger.devices],
        {name: amount for name, amount in ledger.free_custom.items() if amount},
    )


@given(st.lists(st.tuples(wants, st.integers(0, 20)), max_size=25))
def test_reserve_and_release(moves: list[tuple[TaskRequirements, int]]) -> None:
    """Never more than there is, always the same answer from the three questions, and all comes back."""
    ledger = Ledger(FULL)
    held: list[tuple[Need, tuple[int, ...]]] = []
    for wanted, out in moves:
        one = compile_needs(wanted)[0]
        if out < len(held):
            ledger.release(*held.pop(out))
        if ledger.blocker(one):
            continue
        before = free(ledger)
        fits, short = ledger.can_fit(one), ledger.shortage(one)
        devices = ledger.reserve(one)
        assert fits == (devices is not None) == (short == "")
        if devices is None:
            assert free(ledger) == before
            continue
        assert ledger.knows_devices(one, devices)
        assert all(one.gpu_model in ledger.devices[i].model for i in devices)
        held.append((one, devices))
        assert ledger.free_cpus >= 0
        assert ledger.free_ram_mb >= 0
        assert all(d.free_share >= 0 and d.free_mb >= 0 for d in ledger.devices)
        assert all(amount >= 0 for amount in ledger.free_custom.values())
    for one, devices in reversed(held):
        ledger.release(one, devices)
    assert free(ledger) == free(Ledger(FULL))


@given(wants)
def test_blocker_tells_what_an_empty_worker_could_not_give(wanted: TaskRequirements) -> None:
    one = compile_needs(wanted)[0]
    fits = Ledger(FULL).can_fit(one) and all(FULL.labels.get(k) == v for k, v in wanted.labels.items())
    assert (Ledger(FULL).blocker(one) == "") == fits


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"cpus": 5}, "needs 5 CPUs, has 4"),
        ({"ram": 9}, "needs 9 GB of RAM, has 8.0"),
        ({"min_gpus": 4}, "needs 4 GPUs, has 3"),
        ({"min_gpus": 1, "gpu_model": "H100"}, "needs 1 GPU of model 'H100', has 0"),
        ({"min_gpus": 3, "gpu_model": "A100"}, "needs 3 GPUs of model 'A100', has 2"),
        ({"min_gpus": 0.5, "min_memory": 9}, "needs 9 GB of GPU memory, has 8 on its largest"),
        ({"labels": {"zone": "b"}}, "needs label zone=b, has zone=a"),
        ({"labels": {"disk": "ssd"}}, "needs label disk=ssd, has disk="),
        ({"custom": {"licence": 3}}, "needs 3 licence, has 2"),
        ({"custom": {"dongle": 1}}, "needs 1 dongle, has 0"),
        ({"cpus": 4, "ram": 8, "min_gpus": 3, "min_memory": 4, "custom": {"licence": 2}}, ""),
    ],
)
def test_blocker(values: dict[str, object], said: str) -> None:
    assert Ledger(FULL).blocker(need(**values)) == said


def test_blocker_of_several_devices_of_which_one_is_large_enough() -> None:
    ledger = Ledger(WorkerResources(gpus=(Gpu("a", "A", 40_960), Gpu("b", "A", 81_920))))
    assert ledger.blocker(need(min_gpus=2, min_memory=60)) == "needs 2 GPUs with 60 GB, has 1"
    assert ledger.blocker(need(min_gpus=2, min_memory=90)) == "needs 90 GB of GPU memory, has 80 on its largest"


def test_blocker_of_a_share_without_devices() -> None:
    assert Ledger(WorkerResources()).blocker(need(min_gpus=0.5)) == "needs 0.5 of a GPU, has 0"


def test_shortage() -> None:
    ledger = Ledger(FULL)
    ledger.reserve(need(cpus=3, ram=7, min_gpus=2, min_memory=4, custom={"licence": 1.5}))
    assert ledger.shortage(need(cpus=2)) == "1 of 4 CPUs free"
    assert ledger.shortage(need(ram=2)) == "1.0 of 8.0 GB of RAM free"
    assert ledger.shortage(need(min_gpus=2)) == "1 of 3 GPUs free for it"
    assert ledger.shortage(need(custom={"licence": 1})) == "0.5 licence free"
    assert ledger.shortage(need()) == ""


def test_devices_that_cannot_be() -> None:
    ledger = Ledger(FULL)
    two = need(min_gpus=2)
    assert ledger.knows_devices(two, (2, 0))
    for devices in ((), (0,), (0, 0), (0, 3), (-1, 0), (0, 1, 2)):
        assert not ledger.knows_devices(two, devices)


def test_amounts_become_integers() -> None:
    (first, second) = compile_needs(
        TaskRequirements(cpus=0.3, min_gpus=0.333, min_memory=1.5, variants=(TaskRequirements(min_gpus=2, ram=0.5),))
    )
    assert (first.cpus, first.gpus, first.share, first.gpu_mb) == (300, 1, 333, 1536)
    assert (second.cpus, second.gpus, second.share, second.ram_mb) == (1000, 2, 1000, 512)
    assert need(min_memory=8).gpu_mb == 0  # memory of no device
