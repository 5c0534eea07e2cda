from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from schedd.config import WorkerSettings
from schedd.core.model import Command, TaskRequirements
from schedd.wire.messages import Heartbeat
from schedd.worker.probe import Probe, detect_resources

from .fake_daemon import until
from .running import running_program, until_gone

REPOSITORY = Path(__file__).parents[2]
SHARED = Path(os.environ.get("SCHEDD_SHARED", REPOSITORY.parent / "shared"))

TWO_CARDS = """
driver=550.54
count=2
0.name=NVIDIA A100
0.uuid=GPU-aaaa
0.mem_total=42949672960
0.mem_reserved=629145600
0.mem_used=1073741824
0.util=37
0.util_mem=5
0.temp=55
0.procs=123:1048576
1.name=Tesla T4
1.uuid=GPU-bbbb
1.mem_total=16106127360
1.mem_used=0
"""

MEASURE = """
import json, sys
import msgspec
from schedd.config import WorkerSettings
from schedd.worker.probe import Nvml, detect_resources
answer = {"resources": detect_resources(WorkerSettings()), "usage": Nvml().usage()}
sys.stdout.write(msgspec.json.encode(answer).decode())
"""


def test_settings_win_over_what_is_found() -> None:
    found = detect_resources(WorkerSettings(gpus="none"))
    assert found.cpus == len(os.sched_getaffinity(0))
    assert found.ram_gb > 0.1
    assert found.devices() == ()
    given = detect_resources(WorkerSettings(gpus="none", cpus=0.5, ram_gb=0, labels={"a": "b"}, custom={"disk": 3}))
    assert (given.cpus, given.ram_gb, given.labels, given.custom) == (0.5, 0, {"a": "b"}, {"disk": 3})


def test_machine_without_a_driver_has_no_gpus() -> None:
    assert detect_resources(WorkerSettings()).devices() == ()


@pytest.mark.asyncio
async def test_probe_measures_the_host_when_asked() -> None:
    probe = Probe(gpus=False)
    try:
        await until(lambda: probe.latest.ram_total_bytes > 0)
        first = probe.latest
        probe.ask()
        await until(lambda: probe.latest is not first)
        usage = probe.latest
        assert 0 < usage.ram_used_bytes < usage.ram_total_bytes
        assert 0 <= usage.cpu_percent <= 100
        assert usage.net_in_bytes_s >= 0
        assert usage.gpus == ()
    finally:
        probe.close()


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a driver library whose cards are lines of a file."""
    source = SHARED / "fake_nvml" / "fake_nvml.c"
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        assert os.environ.get("SCHEDD_REAL") != "all", "a C compiler should be here: package gcc"
        pytest.skip("no C compiler")
    if not source.exists():
        pytest.skip(f"no {source}")
    folder = tmp_path_factory.mktemp("driver")
    library = folder / "libnvidia-ml.so.1"
    options = ["-shared", "-fPIC", "-O2", "-fvisibility=hidden", "-Wl,-soname,libnvidia-ml.so.1", "-lpthread"]
    subprocess.run([compiler, "-o", library, source, *options], check=True)
    return folder


def environment(driver: Path, cards: str) -> dict[str, str]:
    state = driver / "gpus.state"
    state.write_text(cards)
    return {**os.environ, "LD_LIBRARY_PATH": str(driver), "FAKE_NVML_STATE": str(state)}


def measure(driver: Path, cards: str) -> Any:
    env = environment(driver, cards)
    answer = subprocess.run(
        [sys.executable, "-c", MEASURE], env=env, stdout=subprocess.PIPE, check=True, cwd=REPOSITORY
    )
    return json.loads(answer.stdout)


def test_cards_and_what_is_used_of_them(driver: Path) -> None:
    answer = measure(driver, TWO_CARDS)
    resources = answer["resources"]
    assert resources["gpus"] == [["GPU-aaaa", "NVIDIA A100", 40960], ["GPU-bbbb", "Tesla T4", 15360]]
    assert (resources["num_gpus"], resources["gpu_model"], resources["gpu_memory_gb"]) == (2, "NVIDIA A100", 15.0)
    assert answer["usage"] == [["GPU-aaaa", 1024, 37.0, 55.0, 1], ["GPU-bbbb", 0, None, None, 0]]


def test_slices_of_a_card_are_devices(driver: Path) -> None:
    cards = (
        TWO_CARDS
        + "0.mig=1\n"
        + "".join(
            f"0.{i}.uuid=MIG-{i}\n0.{i}.name=A100 MIG 1g.5gb\n0.{i}.mem_total=5368709120\n0.{i}.mem_used=1048576\n"
            for i in range(2)
        )
    )
    answer = measure(driver, cards)
    assert [gpu[0] for gpu in answer["resources"]["gpus"]] == ["MIG-0", "MIG-1", "GPU-bbbb"]
    assert answer["resources"]["gpus"][0][2] == 5120
    assert [gpu[:2] for gpu in answer["usage"]] == [["MIG-0", 1], ["MIG-1", 1], ["GPU-bbbb", 0]]


@pytest.mark.parametrize("fault", ["init_error=9", "init_error=18", "init_error=999", "error=15", "count=0"])
def test_broken_driver_is_a_machine_without_gpus(driver: Path, fault: str) -> None:
    answer = measure(driver, f"{fault}\n{TWO_CARDS}")
    assert answer["resources"]["gpus"] == []
    assert answer["usage"] == []


def test_lost_card_does_not_hide_the_other(driver: Path) -> None:
    answer = measure(driver, "0.error=15\n" + TWO_CARDS)
    assert [gpu[0] for gpu in answer["resources"]["gpus"]] == ["GPU-bbbb"]


def test_old_driver_is_asked_the_old_way(driver: Path) -> None:
    answer = measure(driver, "error.nvmlDeviceGetMemoryInfo_v2=3\n" + TWO_CARDS)
    assert answer["resources"]["gpus"][0][2] == 40960
    assert answer["usage"][0][1] == 1024 + 600


@pytest.mark.asyncio
async def test_devices_are_pinned_by_uuid(driver: Path, tmp_path: Path) -> None:
    async with running_program(tmp_path, environment(driver, TWO_CARDS)) as (_, run):
        show = Command(["sh", "-c", "echo $CUDA_DEVICE_ORDER-$CUDA_VISIBLE_DEVICES"])
        pids = set()
        for gpus, seen in ((0, ""), (1, "GPU-aaaa"), (2, "GPU-aaaa,GPU-bbbb")):
            needs = TaskRequirements(min_gpus=gpus)
            end = await run.daemon.run(show, requirements=needs)
            assert run.log(end.task_id) == f"PCI_BUS_ID-{seen}\n".encode()
            assert end.devices == tuple(range(gpus))
            pid, visible = await run.value_of(
                lambda: (os.getpid(), os.environ["CUDA_VISIBLE_DEVICES"]), requirements=needs
            )
            assert visible == seen
            pids.add(pid)
        assert len(pids) == 3
        # The device of the second child now belongs to the third, so its memory must be free.
        await until_gone(sorted(pids)[1])


@pytest.mark.asyncio
async def test_slow_driver_holds_up_nobody(driver: Path, tmp_path: Path) -> None:
    env = environment(driver, TWO_CARDS)
    async with running_program(tmp_path, env, heartbeat_interval_s=0.05) as (_, run):
        beat = await run.daemon.wait(lambda: next((b for b in run.daemon.of_type(Heartbeat) if b.usage.gpus), None))
        assert [gpu.uuid for gpu in beat.usage.gpus] == ["GPU-aaaa", "GPU-bbbb"]
        fresh = driver / "fresh"
        fresh.write_text("delay_ms=20000\n" + TWO_CARDS)
        fresh.rename(driver / "gpus.state")
        beats = len(run.daemon.of_type(Heartbeat))
        await run.daemon.wait(lambda: len(run.daemon.of_type(Heartbeat)) > beats + 5)
        assert (await run.daemon.run(Command(["true"]))).exit_code == 0
