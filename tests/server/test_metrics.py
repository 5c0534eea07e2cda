"""What `/metrics` says of a daemon, and of tables that are larger than any daemon's."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import Cluster, wait_until
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from schedd.config import parse_settings
from schedd.core import events as ev
from schedd.core.model import Cause, TaskRequirements, WorkerId
from schedd.errors import ConfigError
from schedd.server.meter import LABEL_MAX
from schedd.server.metrics import CLASSES_SHOWN_MAX, MODELS_SHOWN_MAX, class_name

from .metered import Daemon, submit, worker

CONFIG = '[metrics]\nlisten = "127.0.0.1:0"\n'


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("metrics")) as cluster:
        cluster.start_daemon(CONFIG)
        yield cluster


def url(cluster: Cluster, path: str) -> str:
    """Where the metrics of a daemon are, as its log says."""
    found = re.search(r"INFO +metrics address=(\S+)", cluster.daemon.log())
    assert found is not None, cluster.daemon.log()
    return f"http://{found[1]}{path}"


def get(cluster: Cluster, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url(cluster, path), timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def parse(text: str) -> dict[tuple[str, ...], float]:
    """Values by name and the values of the labels. A series that comes twice is an error, as for Prometheus."""
    values: dict[tuple[str, ...], float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, *sample.labels.values())
            assert key not in values, key
            values[key] = sample.value
    return values


def scrape(cluster: Cluster) -> dict[tuple[str, ...], float]:
    status, text = get(cluster, "/metrics")
    assert status == 200
    return parse(text)


def test_counts_are_those_of_the_daemon(scraped: Cluster) -> None:
    scraped.start_worker("w1", 2)
    client = scraped.client
    good = client.submit(["true"], kind="good")
    bad = client.submit(["false"], kind='b"a\\d\n')
    client.submit(["true"], hold=True)
    client.submit(["true"], cpus=64)
    client.wait([good, bad])
    wait_until(lambda: scrape(scraped)["schedd_tasks_finished_total", "succeeded"] == 1)
    values = scrape(scraped)
    assert values["schedd_tasks", "held"] == 1
    assert values["schedd_tasks", "queued"] == 1
    assert values["schedd_queued_tasks", "cpus=64"] == 1
    assert values["schedd_queued_tasks", "other"] == 0
    assert values["schedd_attempts_total", "ok"] == 1
    assert values["schedd_attempts_total", "error"] == 1
    assert values["schedd_tasks_finished_total", "failed"] == 1
    assert values[("schedd_tasks_submitted_total",)] == 4
    assert values[("schedd_placements_total",)] == 2
    assert values["schedd_queueing_delay_seconds_count", "good"] == 1
    assert values["schedd_queueing_delay_seconds_count", 'b"a\\d\n'] == 1
    assert values["schedd_runtime_seconds_count", "good"] == 1
    assert values["schedd_runtime_seconds_count", 'b"a\\d\n'] == 0
    assert values["schedd_workers", "idle"] == 1
    assert values[("schedd_cpus",)] == 2
    assert values["schedd_placement_pass_seconds_count", "priority"] >= 2
    assert values[("schedd_journal_commit_seconds_count",)] >= 4
    assert values["schedd_connections", "worker"] == 1
    assert values["schedd_wire_received_bytes_total", "worker"] > 0
    assert values["schedd_wire_sent_bytes_total", "client"] > 0
    assert values["schedd_policy_info", "priority", ""] == 1
    assert values[("process_resident_memory_bytes",)] > 1e6


def test_health_and_readiness(scraped: Cluster) -> None:
    assert get(scraped, "/healthz") == (200, "ok\n")
    assert get(scraped, "/readyz") == (200, "ok\n")
    assert scrape(scraped)[("schedd_ready",)] == 1


def test_port_that_is_taken_is_told_and_nothing_is_served(scraped: Cluster, cluster: Cluster) -> None:
    taken = url(scraped, "").removeprefix("http://")
    daemon = cluster.start_daemon(f'[metrics]\nlisten = "{taken}"\n', wait=False)
    assert daemon.wait() == 9
    assert f"metrics: cannot listen on {taken}" in daemon.log()
    assert "[metrics] listen" in daemon.log()


def test_other_machines_are_told_nothing_unless_one_wants_it() -> None:
    with pytest.raises(ConfigError, match="open to other machines"):
        parse_settings('[metrics]\nlisten = "0.0.0.0:9708"\n')
    assert parse_settings('[metrics]\nlisten = "0.0.0.0:9708"\ninsecure = true\n').metrics.insecure


def by_label(family: Metric) -> dict[str, float]:
    return {next(iter(sample.labels.values())): sample.value for sample in family.samples}


def test_devices_add_up_by_model() -> None:
    async def body() -> None:
        daemon = Daemon()
        daemon.handle(*worker("w1", "A100", 2), *worker("w2", "T4", 1))
        daemon.handle(submit([TaskRequirements(min_gpus=0.5, min_memory=10, gpu_model="A100")], ["k"]))
        families = daemon.families()
        assert by_label(families["schedd_devices"]) == {"A100": 2, "T4": 1}
        assert by_label(families["schedd_devices_reserved"]) == {"A100": 0.5, "T4": 0}
        mb = 1024 * 1024
        assert by_label(families["schedd_device_memory_bytes"]) == {"A100": 80_000 * mb, "T4": 40_000 * mb}
        assert by_label(families["schedd_device_memory_reserved_bytes"])["A100"] == 10 * 1024 * mb
        assert by_label(families["schedd_device_memory_used_bytes"]) == {"A100": 2000 * mb, "T4": 1000 * mb}
        # Of one device more is reserved than in use, of the others nothing is reserved.
        assert by_label(families["schedd_device_memory_usable_bytes"]) == {
            "A100": (40_000 - 10 * 1024 + 39_000) * mb,
            "T4": 39_000 * mb,
        }
        daemon.handle(ev.DrainWorkers(1, [WorkerId("w2")], False, False))
        assert by_label(daemon.families()["schedd_device_memory_usable_bytes"])["T4"] == 0
        assert by_label(daemon.families()["schedd_workers"])["draining"] == 1

    asyncio.run(body())


def test_series_are_bounded_and_steps_are_small_whatever_peers_send() -> None:
    async def body() -> None:
        daemon = Daemon()
        count = 200
        for number in range(count):
            daemon.handle(*worker(f"w{number}", "x" * 150 + f"{number}" if number % 2 else f"m{number}\n", 1))
        odd = [TaskRequirements(cpus=100 + number, labels={"l" * 150: f"{number}"}) for number in range(count)]
        daemon.handle(submit(odd, [f"kind-{number}" * 20 for number in range(count)]))
        for number in range(count):
            daemon.meter.kinds.of(f"{number}" + "k" * 200).runtime.observe(1.0)
        pauses = sum(step is None for step in daemon.metrics.steps())
        assert pauses >= 2 * (count // 50) - 2, "a table was read in one go"
        values = parse((await daemon.metrics.text()).decode())
        assert len(values) < 1500
        assert sum(1 for key in values if key[0] == "schedd_queued_tasks") == CLASSES_SHOWN_MAX + 1
        assert sum(value for key, value in values.items() if key[0] == "schedd_queued_tasks") == count
        assert sum(1 for key in values if key[0] == "schedd_devices") == MODELS_SHOWN_MAX + 1
        assert sum(value for key, value in values.items() if key[0] == "schedd_devices") == count
        assert all(len(label) <= LABEL_MAX for key in values for label in key[1:])

    asyncio.run(body())


def test_who_asks_again_at_once_gets_the_same_answer() -> None:
    async def body() -> None:
        daemon = Daemon()
        first, second = await asyncio.gather(daemon.metrics.text(), daemon.metrics.text())
        daemon.handle(*worker("w1", "A100", 2))
        assert first is second is await daemon.metrics.text()

    asyncio.run(body())


def test_nothing_is_told_of_tables_that_are_being_restored() -> None:
    async def body() -> None:
        daemon = Daemon()
        daemon.service.address = None
        families = daemon.families()
        assert families["schedd_ready"].samples[0].value == 0
        assert "schedd_tasks" not in families
        assert daemon.service.not_ready == "the journal is being restored"

    asyncio.run(body())


def test_what_is_not_ready_says_why() -> None:
    async def body() -> None:
        service = Daemon().service
        assert service.not_ready == ""
        service.promises.failure = "database or disk is full"
        assert service.not_ready == "the journal cannot be written: database or disk is full"
        service.stopping = True
        assert service.not_ready == "the daemon is stopping"

    asyncio.run(body())


@pytest.mark.parametrize(
    ("requirements", "name"),
    [
        (TaskRequirements(), "cpus=1"),
        (TaskRequirements(cpus=0), "nothing"),
        (TaskRequirements(min_gpus=2, min_memory=10.5, gpu_model="A100", cpus=8), ""),
        (TaskRequirements(min_gpus=0.25, variants=(TaskRequirements(cpus=64, ram=4),)), ""),
    ],
)
def test_class_name(requirements: TaskRequirements, name: str) -> None:
    expected = {
        2: "gpus=2 gpu_memory=10.5 gpu_model=A100 cpus=8",
        0.25: "gpus=0.25 cpus=1 | cpus=64 ram=4",
    }
    assert class_name(requirements) == (name or expected[requirements.min_gpus])


def test_every_cause_has_a_series() -> None:
    async def body() -> None:
        assert set(by_label(Daemon().families()["schedd_attempts"])) == set(map(str, Cause))

    asyncio.run(body())


def test_unix_socket_serves_too(cluster: Cluster, tmp_path: Path) -> None:
    import socket

    path = tmp_path / "metrics.sock"
    cluster.start_daemon(f'[metrics]\nlisten = "unix:{path}"\n')
    with socket.socket(socket.AF_UNIX) as asking:
        asking.connect(str(path))
        asking.sendall(b"GET /readyz HTTP/1.1\r\nHost: a\r\n\r\n")
        asking.settimeout(20)
        answer = b"".join(iter(lambda: asking.recv(4096), b""))
    assert answer.endswith(b"ok\n")


def test_daemon_without_metrics_loads_no_library_for_them() -> None:
    loaded = "import sys, schedd.server.daemon; sys.exit('prometheus_client' in sys.modules or 'h11' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", loaded], check=False).returncode == 0
