"""`schedd events`: lines for people and for programs, and a stream that goes on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from helpers import Cluster

from schedd.cli.commands.events import as_json, as_text
from schedd.cli.exits import Exit
from schedd.wire import messages as wire

from .conftest import Run
from .fake_daemon import FakeDaemon

SECOND = 10**9
ENDED = wire.Event(
    1000 * SECOND,
    "attempt_ended",
    {"task": 5, "attempt": 1, "worker": "w 1", "cause": "error", "started_at_ns": 990 * SECOND, "message": "a\nb"},
)
ADMITTED = wire.Event(
    900 * SECOND, "tasks_admitted", {"count": 4, "tasks": [[1, 3], [7, 7]], "jobs": ["a", "b"], "kinds": ["k"]}
)


@pytest.fixture
def told(daemon: FakeDaemon) -> FakeDaemon:
    """A daemon with two events."""
    answer_with(daemon, [ADMITTED, ENDED])
    return daemon


def answer_with(daemon: FakeDaemon, events: list[wire.Event], missed: int = 0) -> None:
    def answer(request: wire.ListEvents) -> wire.EventList:
        start = request.cursor[0]
        chosen = [event for event in events[start : start + 1] if not request.types or event.type in request.types]
        end = start + 1
        return wire.EventList(request.request, chosen, (end, 0), end < len(events), missed)

    daemon.answers[wire.ListEvents] = answer


def test_json_is_an_object_a_line_with_times_in_seconds(told: FakeDaemon, run: Run) -> None:
    ran = run("events", "--json")
    first, second = map(json.loads, ran.out.splitlines())
    assert first == {
        "at": 900.0,
        "type": "tasks_admitted",
        "count": 4,
        "tasks": [[1, 3], [7, 7]],
        "jobs": ["a", "b"],
        "kinds": ["k"],
    }
    assert second["started_at"] == 990.0
    assert second["message"] == "a\nb"
    assert (ran.code, ran.err) == (Exit.OK, "")


def test_text_is_a_line_each(told: FakeDaemon, run: Run) -> None:
    first, second = run("events").out.splitlines()
    assert first.endswith("tasks_admitted count=4 tasks=1-3,7 jobs=a,b kinds=k")
    assert 'attempt_ended task=5 attempt=1 worker="w 1" cause=error started_at=' in second
    assert second.endswith('message="a\\nb"')


def test_limit_and_type(told: FakeDaemon, run: Run) -> None:
    assert len(run("events", "--limit", "1").out.splitlines()) == 1
    assert "attempt_ended" in run("events", "--type", "attempt_ended").out
    wrong = run("events", "--type", "attempt_eded")
    assert wrong.code == Exit.USAGE


def test_what_was_missed_is_said(told: FakeDaemon, run: Run) -> None:
    answer_with(told, [ENDED], missed=3)
    assert "the journal has forgotten what 3 of its transactions had" in run("events", "--quiet").err


def test_control_characters_do_not_reach_the_terminal() -> None:
    event = wire.Event(SECOND, "kind_held", {"kind": "\x1b[31m", "reason": "x\ny"})
    assert "\x1b" not in as_text(event)
    assert "\x1b" not in as_json(event)


def test_json_is_json_whatever_is_in_it() -> None:
    words = "\x7f \x9b \xa0 \xad \u2028 \U000f0000 ä"
    text = as_json(wire.Event(SECOND, "kind_held", {"kind": words}))
    assert json.loads(text)["kind"] == words
    assert text.isprintable()
    assert "ä" in text


# ------------------------------------------------------------------------------------------------------ a real daemon


@contextmanager
def following(cluster: Cluster, *options: str) -> Iterator[subprocess.Popen[str]]:
    argv = [sys.executable, "-m", "schedd.cli", "events", "--address", cluster.address, "--json", *options]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_stream_goes_on_over_a_restart_and_ends_with_ctrl_c(cluster: Cluster) -> None:
    daemon = cluster.start_daemon()
    cluster.client.submit(["true"], hold=True)
    with following(cluster, "--follow", "--since", "1h", "--type", "tasks_admitted") as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["tasks"] == [[1, 1]]
        cluster.client.submit(["true"], hold=True)
        assert json.loads(process.stdout.readline())["tasks"] == [[2, 2]]
        address = cluster.address
        daemon.kill()
        cluster.start_daemon(listen=address)
        cluster.client.submit(["true"], hold=True)
        assert json.loads(process.stdout.readline())["tasks"] == [[3, 3]]
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == Exit.INTERRUPTED
        assert "Traceback" not in (process.stderr.read() if process.stderr is not None else "")


def test_events_end_where_they_are_not_followed(cluster: Cluster) -> None:
    cluster.start_daemon()
    cluster.client.submit(["true"], hold=True)
    with following(cluster) as process:
        out, _ = process.communicate(timeout=20)
    assert [json.loads(line)["type"] for line in out.splitlines()] == ["tasks_admitted"]
    assert process.returncode == Exit.OK
