"""A real Prometheus scrapes a real daemon, and its tools find nothing to object to."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from helpers import Cluster, wait_until

MONITORING = Path(__file__).parents[2] / "docs" / "monitoring"

CONFIG = """
global: {{scrape_interval: 1s, evaluation_interval: 1s}}
scrape_configs:
  - job_name: schedd
    static_configs: [{{targets: ["{target}"]}}]
rule_files: ["{rules}"]
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def metrics_address(cluster: Cluster) -> str:
    found = re.search(r"metrics address=(\S+)", cluster.daemon.log())
    assert found is not None, cluster.daemon.log()
    return found[1]


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=20) as answer:
        text: str = answer.read().decode()
        return text


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[str]:
    """A Prometheus that scrapes `target` each second; gives the address of its API."""
    settings = folder / "prometheus.yml"
    settings.write_text(CONFIG.format(target=target, rules=MONITORING / "alerts.yml"))
    listen = f"127.0.0.1:{free_port()}"
    argv = ["prometheus", f"--config.file={settings}", f"--storage.tsdb.path={folder / 'data'}"]
    with (
        (folder / "prometheus.log").open("wb") as log,
        subprocess.Popen([*argv, f"--web.listen-address={listen}"], stdout=log, stderr=log) as process,
    ):
        try:
            yield f"http://{listen}/api/v1"
        finally:
            process.terminate()


def ask(api: str, path: str) -> Any:
    """What the API answers; None while it does not."""
    try:
        answer = json.loads(get(f"{api}/{path}"))
    except OSError:
        return None
    assert answer["status"] == "success", answer
    return answer["data"]


def query(api: str, expression: str) -> Any:
    found = ask(api, "query?" + urllib.parse.urlencode({"query": expression}))
    return found["result"] if found else None


@pytest.mark.needs("promtool")
def test_alerts_are_sound() -> None:
    for words in (["check", "rules", "alerts.yml"], ["test", "rules", "alerts.test.yml"]):
        ran = subprocess.run(["promtool", *words], cwd=MONITORING, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.needs("promtool")
def test_metrics_are_as_prometheus_wants_them(cluster: Cluster) -> None:
    cluster.start_daemon('[metrics]\nlisten = "127.0.0.1:0"\n')
    cluster.start_worker()
    cluster.client.wait([cluster.client.submit(["true"])])
    text = get(f"http://{metrics_address(cluster)}/metrics")
    ran = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


@pytest.mark.needs("prometheus")
def test_prometheus_scrapes_the_daemon_and_evaluates_alerts_and_dashboard(cluster: Cluster, tmp_path: Path) -> None:
    cluster.start_daemon('[metrics]\nlisten = "127.0.0.1:0"\n')
    cluster.start_worker("w1", 2)
    client = cluster.client
    client.submit(["true"], hold=True)
    with prometheus(tmp_path, metrics_address(cluster)) as api:
        # A rate needs two scrapes with something in between.
        wait_until(lambda: query(api, "schedd_ready == 1"), what="Prometheus has scraped the daemon")
        client.wait([client.submit(["true"], kind="train") for _ in range(10)])
        wait_until(lambda: query(api, 'schedd_attempts_total{cause="ok"} == 10'), what="it has scraped it again")
        [held] = query(api, 'schedd_tasks{state="held"}')
        assert held["value"][1] == "1"
        assert query(api, 'schedd_runtime_seconds_count{kind="train"} == 10')
        [target] = ask(api, "targets")["activeTargets"]
        assert (target["health"], target["lastError"]) == ("up", "")

        [group] = ask(api, "rules")["groups"]
        wait_until(lambda: all(r["health"] == "ok" for r in ask(api, "rules")["groups"][0]["rules"]), what="rules ran")
        assert all(rule["state"] == "inactive" for rule in group["rules"])

        wait_until(lambda: query(api, "rate(schedd_attempts_total[1m]) > 0"), what="there is a rate")
        board = json.loads((MONITORING / "grafana.json").read_text())
        empty = []
        for panel in board["panels"]:
            for each in panel.get("targets", []):
                expression = each["expr"].replace("$__rate_interval", "1m").replace("$instance", ".*")
                # This worker has no GPUs, and nothing is queued.
                is_empty = "schedd_device" in expression or "schedd_queued_tasks" in expression
                if not is_empty and not query(api, expression.replace("$job", "schedd")):
                    empty.append(expression)
        assert not empty

        cluster.daemon.kill()
        wait_until(lambda: query(api, 'up{job="schedd"} == 0'), what="Prometheus sees that it is gone")
