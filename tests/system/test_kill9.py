"""The proof of benchmarks/kill9.py, in a smaller form."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kill9.py"
TASKS, KILLS = 2500, 5


def test_daemon_killed_under_thousands_of_tasks() -> None:
    """Nothing is lost, nothing has two results, nothing runs twice."""
    argv = [sys.executable, str(SCRIPT), "--tasks", str(TASKS), "--kills", str(KILLS), "--json", "-"]
    ran = subprocess.run(argv, capture_output=True, text=True, timeout=110)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    (row,) = json.loads(ran.stdout)["rows"]
    assert (row["tasks"], row["kills"]) == (TASKS, KILLS)
    assert [row[count] for count in ("lost", "double", "wrong", "again")] == [0, 0, 0, 0], ran.stdout
