"""What is written about the metrics (the table, the alerts, the dashboard) is about those that there are."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from schedd.core.model import TaskRequirements
from schedd.tally import Histogram

from .metered import Daemon, submit, worker

DOCS = Path(__file__).parents[2] / "docs"
TABLE = re.compile(r"(?<=<!-- metrics -->\n).*?(?=<!-- end of metrics -->)", re.DOTALL)
#: Names of metrics in an expression.
NAME = re.compile(r"\b(?:schedd|process)_[a-z_]+\b")
#: What the daemon has of its process, by the client's library.
PROCESS = {"process_cpu_seconds_total", "process_resident_memory_bytes"}
SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("_total",)}


class Commits:
    """A journal that has written something."""

    history_bytes = 1

    def __init__(self) -> None:
        self.commit_seconds = Histogram((0.1, 1.0))


class Told:
    """A metric as it is told of: its name on the wire, type, labels and help."""

    def __init__(self, name: str, kind: str, labels: str, text: str) -> None:
        self.name, self.kind, self.labels, self.text = name, kind, labels, text

    @property
    def series(self) -> set[str]:
        """The names under which its series are found."""
        if self.kind == "histogram":
            return {self.name + suffix for suffix in SUFFIXES["histogram"]}
        return {self.name}


@pytest.fixture(scope="module")
def metrics() -> list[Told]:
    """All metrics of schedd itself."""

    async def body() -> list[Told]:
        daemon = Daemon()
        daemon.metrics.journal = Commits()
        daemon.handle(*worker("w1", "A100", 2), submit([TaskRequirements()], ["k"]))
        told = []
        for family in daemon.families().values():
            if not family.name.startswith("process_"):
                labels = dict.fromkeys(name for sample in family.samples for name in sample.labels if name != "le")
                name = family.name + ("_total" if family.type == "counter" else "")
                told.append(Told(name, family.type, ", ".join(labels), family.documentation))
        return told

    return asyncio.run(body())


def test_names_are_as_prometheus_wants_them(metrics: list[Told]) -> None:
    for metric in metrics:
        assert metric.name.startswith("schedd_")
        assert metric.text.endswith(".")
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert metric.kind != "histogram" or metric.name.endswith("_seconds")


def test_table_has_all_metrics_as_they_are(metrics: list[Told]) -> None:
    rows = [f"| `{m.name}` | {m.kind} | {m.labels} | {m.text} |" for m in metrics]
    table = "\n".join(["", "| metric | type | labels | says |", "|---|---|---|---|", *rows, "", ""])
    found = TABLE.search((DOCS / "monitoring.md").read_text())
    assert found is not None
    assert found[0] == table, f"put this between the marks in docs/monitoring.md:\n{table}"


def expressions() -> Iterator[tuple[str, str]]:
    """Every expression of the dashboard and the alerts, with where it stands."""
    board = json.loads((DOCS / "monitoring" / "grafana.json").read_text())
    for panel in board["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]
    for variable in board["templating"]["list"]:
        yield variable["name"], str(variable.get("definition", ""))
    alerts = (DOCS / "monitoring" / "alerts.yml").read_text()
    for alert in alerts.split("- alert: ")[1:]:
        name, _, rest = alert.partition("\n")
        yield name, rest.partition("labels:")[0]


def test_dashboard_and_alerts_ask_for_what_there_is(metrics: list[Told]) -> None:
    known = PROCESS.union(*(metric.series for metric in metrics))
    for where, expression in expressions():
        unknown = set(NAME.findall(expression)) - known
        assert not unknown, f"{where}: {unknown}"


def test_dashboard_shows_every_metric_but_a_few(metrics: list[Told]) -> None:
    shown = {name for _, expression in expressions() for name in NAME.findall(expression)}
    left_out = {metric.name for metric in metrics if not metric.series & shown}
    assert left_out <= {"schedd_build_info", "schedd_steals_asked_total", "schedd_journal_waiting_turns"}


def test_every_panel_is_of_the_job_and_the_daemons_that_are_chosen() -> None:
    board = json.loads((DOCS / "monitoring" / "grafana.json").read_text())
    for panel in board["panels"]:
        for target in panel.get("targets", []):
            for selector in re.findall(r"\{.*?\}", target["expr"]):
                assert {'job=~"$job"', 'instance=~"$instance"'} <= set(selector[1:-1].split(",")), panel["title"]
            assert len(NAME.findall(target["expr"])) == target["expr"].count("{"), panel["title"]


def test_panels_of_the_dashboard_do_not_overlap() -> None:
    board: dict[str, Any] = json.loads((DOCS / "monitoring" / "grafana.json").read_text())
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)


def test_every_alert_has_a_test_and_a_place_in_the_docs() -> None:
    alerts = re.findall(r"- alert: (\w+)", (DOCS / "monitoring" / "alerts.yml").read_text())
    tests = (DOCS / "monitoring" / "alerts.test.yml").read_text()
    text = (DOCS / "monitoring.md").read_text()
    for alert in alerts:
        assert re.search(rf"alertname: {alert}\n +exp_alerts:", tests), alert
        assert f"`{alert}`" in text, alert
