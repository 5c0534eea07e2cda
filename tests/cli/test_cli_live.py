"""What needs a terminal or a signal: progress, top, Ctrl-C, tables of 80 columns."""

from __future__ import annotations

import asyncio
import io
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from rich.console import Console

from schedd.cli import output
from schedd.cli.dashboard import Observer, Snapshot, render, sort_tasks, sparkline
from schedd.cli.exits import Exit
from schedd.cli.output import Column
from schedd.cli.views import TASK_COLUMNS, WORKER_COLUMNS, task_row, worker_row
from schedd.wire import messages as wire

from .conftest import Run
from .fake_daemon import STATS, FakeDaemon, view, worker

SCHEDD = [sys.executable, "-m", "schedd.cli"]
DEADLINE_S = 60.0


def drawn(renderable: Any, width: int = 80) -> list[str]:
    stream = io.StringIO()
    Console(file=stream, width=width, height=24, color_system=None).print(renderable)
    return stream.getvalue().splitlines()


def long_task(task_id: int, **fields: Any) -> wire.TaskView:
    words = {"job": "architecture-search-2024", "kind": "evaluate_candidate", "worker": "gpu-node-17.example.org"}
    return view(task_id, "running", started_at=1001.0, **{**words, **fields})


def test_wide_characters_and_accents_keep_the_columns() -> None:
    rows = [["評価", "1"], ["cafe\u0301", "22"], ["plain", "333"]]
    lines = output.plain_table([Column("job"), Column("n", right=True)], rows).splitlines()
    assert lines == ["job      n", "評価     1", "cafe\u0301    22", "plain  333"]


def test_tables_fit_80_columns() -> None:
    rows = [task_row(long_task(123456), 1100.0), task_row(view(7, "failed", cause="timeout", message="m" * 200), 1.0)]
    for lines in (
        drawn(output.rich_table(TASK_COLUMNS, rows)),
        drawn(output.rich_table(WORKER_COLUMNS, [worker_row(worker("gpu-node-17.example.org", host="gpu-node-17"))])),
    ):
        assert all(len(line) <= 80 for line in lines)
        assert len(lines) == len([line for line in lines if line.strip()])
    table = "\n".join(drawn(output.rich_table(TASK_COLUMNS, rows)))
    # What must never be cut: the id and the state.
    assert "123456" in table
    assert "failed (timeout)" in table


def test_tables_in_pipes_are_never_cut() -> None:
    text = output.plain_table([Column("a"), Column("n", right=True)], [["x" * 300, "1"], ["y", "22"]])
    assert text.splitlines() == ["a" + " " * 302 + "n", "x" * 300 + "   1", "y" + " " * 301 + "22"]


class Watched(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("width", "lines"),
    [
        (30, ["policy  failed  steals  wasted", "fifo         0       1       2", "batch        1       2       3"]),
        (29, ["policy  fifo  batch", "failed     0      1", "steals     1      2", "wasted     2      3"]),
    ],
)
def test_comparison_is_turned_rather_than_cut(monkeypatch: pytest.MonkeyPatch, width: int, lines: list[str]) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(width))
    columns = [Column("policy"), *(Column(name, right=True) for name in ("failed", "steals", "wasted"))]
    rows = [["fifo", "0", "1", "2"], ["batch", "1", "2", "3"]]
    for stream, expected in ((Watched(), lines), (io.StringIO(), output.plain_table(columns, rows).splitlines())):
        monkeypatch.setattr(sys, "stdout", stream)
        output.Output().comparison(columns, rows)
        text = re.sub(r"\x1b\[[0-9]*m", "", stream.getvalue())
        assert [line.rstrip() for line in text.splitlines()] == expected


def test_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    for value, has_colour in (("", True), ("1", False)):
        monkeypatch.setenv("NO_COLOR", value)
        stream = Watched()
        monkeypatch.setattr(sys, "stderr", stream)
        output.show_error("wrong", "right")
        text = stream.getvalue()
        assert ("\x1b[" in text) == has_colour
        assert "error:" in text
        assert "hint:" in text


def test_text_that_the_terminal_cannot_write(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    ascii_only = io.TextIOWrapper(written, encoding="ascii", write_through=True)
    monkeypatch.setattr(sys, "stdout", ascii_only)
    output.set_up()
    output.Output().line("caf\xe9 \udcff")
    assert written.getvalue() == b"caf\\xe9 \\udcff\n"


# ----------------------------------------------------------------------------------------------------------- dashboard


def snapshot(workers: int, running: int) -> Snapshot:
    tasks = [long_task(i, report={"step": 1, "accuracy": 0.5}) for i in range(1, running + 1)]
    states = {"queued": 1200, "running": running, "succeeded": 40, "failed": 1}
    stats = wire.Stats(**{**{f: getattr(STATS, f) for f in STATS.__struct_fields__}, "states": states})
    return Snapshot(stats, [worker(f"worker-{i}") for i in range(workers)], tasks, [0.5 * i for i in range(60)])


@pytest.mark.parametrize(("workers", "running"), [(0, 0), (1, 1), (2, 40), (40, 1), (300, 200)])
@pytest.mark.parametrize("height", [10, 24, 50])
def test_dashboard_fits(workers: int, running: int, height: int) -> None:
    lines = drawn(render(snapshot(workers, running), lines=height, sort="time", foot="q quit"))
    assert len(lines) <= height
    assert all(len(line) <= 80 for line in lines)
    assert lines[-1].startswith("q quit")
    assert f"workers ({workers})" in "\n".join(lines)


def test_dashboard_shows_what_matters() -> None:
    text = "\n".join(drawn(render(snapshot(2, 2), lines=24, sort="time"), width=120))
    for words in (
        "policy priority",
        "queued 1200",
        "failed 1",
        "worker-1",
        "busy",
        "1/4",
        "accuracy=0.5",
        "29.5 tasks/s",
    ):
        assert words in text


def test_sparkline() -> None:
    assert sparkline([]) == ""
    assert sparkline([0, 0]) == "▁▁"
    assert sparkline([0, 7, 14]) == "▁▅█"


def test_sorts() -> None:
    tasks = [
        view(1, "running", started_at=5.0, priority=1.0, worker="b"),
        view(2, "running", started_at=3.0, priority=9.0, worker="c"),
        view(3, "running", started_at=4.0, priority=1.0, worker="a"),
    ]
    order = {by: [task.id for task in sort_tasks(tasks, by)] for by in ("time", "id", "priority", "worker")}
    assert order == {"time": [2, 3, 1], "id": [1, 2, 3], "priority": [2, 1, 3], "worker": [3, 1, 2]}


def test_rates_start_over_with_a_new_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    class Client:
        def __init__(self) -> None:
            self.totals = iter([10, 30, 5, 6])

        async def stats(self) -> wire.Stats:
            fields = {f: getattr(STATS, f) for f in STATS.__struct_fields__}
            return wire.Stats(**{**fields, "finished_total": next(self.totals)})

        async def workers(self) -> list[wire.WorkerView]:
            return []

        async def tasks(self, selection: wire.Selection, *, limit: int) -> list[wire.TaskView]:
            return []

    async def look() -> list[list[float]]:
        observer = Observer(Client())  # type: ignore[arg-type]
        return [(await observer.look()).rates for _ in range(4)]

    monkeypatch.setattr("schedd.cli.dashboard.time", Clock())
    assert asyncio.run(look()) == [[], [10.0], [10.0], [10.0, 1.0]]


class Clock:
    """Instants for `test_rates_start_over_with_a_new_daemon`, apart from the clock of the event loop."""

    def __init__(self) -> None:
        self._instants = iter([0.0, 2.0, 3.0, 4.0])

    def monotonic(self) -> float:
        return next(self._instants)


def test_top_without_a_terminal_is_a_snapshot(daemon: FakeDaemon, run: Run) -> None:
    daemon.workers = [worker("w1")]
    daemon.add(long_task(5))
    ran = run("top")
    assert ran.code == Exit.OK
    assert "\x1b" not in ran.out
    assert "w1" in ran.out
    assert all(len(line) <= 80 for line in ran.out.splitlines())
    document = run("top", "--json").json()
    assert list(document) == ["stats", "workers", "running"]
    assert document["running"][0]["id"] == 5


# ---------------------------------------------------------------------------------------------------------- a terminal


class Terminal:
    """A command in a pseudo terminal of 80 × 24."""

    def __init__(self, *arguments: str) -> None:
        self._ours, theirs = pty.openpty()
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
        self.process = subprocess.Popen(
            [*SCHEDD, *arguments], stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
        )
        os.close(theirs)
        self.seen = ""

    def until(self, text: str) -> None:
        """Read until the text has appeared since the last call."""
        deadline = time.monotonic() + DEADLINE_S
        while text not in self.seen:
            assert time.monotonic() < deadline, self.seen
            self._read()
        self.seen = self.seen.partition(text)[2]

    def _read(self) -> bool:
        ready, _, _ = select.select([self._ours], [], [], 1.0)
        if not ready:
            return True
        try:
            data = os.read(self._ours, 65536)
        except OSError:  # the other side is closed
            return False
        self.seen += data.decode(errors="replace")
        return bool(data)

    def press(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def end(self) -> int:
        while self._read() and self.process.poll() is None:
            pass
        return self.process.wait(DEADLINE_S)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._ours)


@contextmanager
def terminal(*arguments: str) -> Iterator[Terminal]:
    opened = Terminal(*arguments)
    try:
        yield opened
    finally:
        opened.close()


def test_top_keys(daemon: FakeDaemon) -> None:
    daemon.workers = [worker("w1")]
    daemon.add(long_task(5))
    with terminal("top") as screen:
        screen.until("\x1b[?1049h")  # the alternate screen
        screen.until("sort by id (now time)")
        screen.press("s")
        screen.until("sort by priority (now id)")
        screen.press("p")
        screen.until("p go on (paused)")
        screen.press("q")
        assert screen.end() == Exit.OK
        assert "\x1b[?1049l" in screen.seen


def test_top_goes_on_when_the_daemon_goes_away(daemon: FakeDaemon) -> None:
    with FakeDaemon() as short_lived, terminal("top", "--address", short_lived.address) as screen:
        screen.until("q quit")
        short_lived.stop()
        screen.until("trying again")
        screen.press("q")
        assert screen.end() == Exit.OK


def test_wait_shows_progress_and_ctrl_c_leaves_the_tasks(daemon: FakeDaemon) -> None:
    daemon.add(view(1, "failed"))
    daemon.add(view(2))
    with terminal("wait", "1-2") as screen:
        screen.until("1/2")
        screen.until("1 failed")
        screen.interrupt()
        assert screen.end() == Exit.INTERRUPTED
        assert "the tasks go on" in screen.seen
    assert not any(isinstance(request, wire.CancelTasks) for request in daemon.requests)


@pytest.mark.parametrize(("mode", "cancelled"), [("cancel", True), ("leave", False)])
def test_ctrl_c_in_submit_wait(daemon: FakeDaemon, mode: str, cancelled: bool) -> None:
    with terminal("submit", "--wait", "--on-interrupt", mode, "--array", "1-3", "--", "true") as screen:
        daemon.wait_for(wire.WatchTasks)
        screen.until("0/3")
        screen.interrupt()
        assert screen.end() == Exit.INTERRUPTED
        assert "interrupted: " in screen.seen
    assert any(isinstance(request, wire.CancelTasks) for request in daemon.requests) == cancelled


@pytest.mark.parametrize(("answer", "cancelled"), [("y\n", True), ("\n", False)])
def test_ctrl_c_in_submit_wait_asks(daemon: FakeDaemon, answer: str, cancelled: bool) -> None:
    with terminal("submit", "--wait", "--", "true") as screen:
        screen.until("0/1")
        screen.interrupt()
        screen.until("cancel task 1? [y/N]")
        screen.press(answer)
        assert screen.end() == Exit.INTERRUPTED
    assert any(isinstance(request, wire.CancelTasks) for request in daemon.requests) == cancelled


@pytest.mark.parametrize("stdin", ["</dev/null", "<&-"])
def test_ctrl_c_in_submit_wait_without_a_terminal_leaves_the_tasks(daemon: FakeDaemon, stdin: str) -> None:
    process = subprocess.Popen(
        ["sh", "-c", f'exec "$@" {stdin}', "sh", *SCHEDD, "submit", "--wait", "--", "true"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    daemon.wait_for(wire.WatchTasks)
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, out) == (Exit.INTERRUPTED, b"submitted task 1\n")
    assert errors == b"interrupted: task 1 goes on\n"
    assert not any(isinstance(request, wire.CancelTasks) for request in daemon.requests)


def test_ctrl_c_leaves_top(daemon: FakeDaemon) -> None:
    with terminal("top") as screen:
        screen.until("q quit")
        screen.interrupt()
        assert screen.end() == Exit.OK
        assert "\x1b[?1049l" in screen.seen


def test_table_on_a_terminal(daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon.add(long_task(123456))
    monkeypatch.delenv("NO_COLOR", raising=False)
    with terminal("tasks") as screen:
        screen.until("123456")
        screen.until("\x1b[36mrunning")
        assert screen.end() == Exit.OK
    monkeypatch.setenv("NO_COLOR", "1")
    with terminal("tasks") as screen:
        screen.until("123456")
        screen.until("running")
        assert screen.end() == Exit.OK
        assert "\x1b[36m" not in screen.seen


def test_errors_cannot_steer_the_terminal(daemon: FakeDaemon, run: Run) -> None:
    daemon.fail(wire.ListTasks, wire.UNKNOWN_JOB, "there is no job \x1b[2J", "look\nagain")
    ran = run("tasks")
    assert ran.err == "error: there is no job \\x1b[2J\nhint: look\nagain\n"
