"""Configurations and commands that the tests of the whole system share."""

from __future__ import annotations

from pathlib import Path

import pytest

#: Losses are noticed soon enough for a test, and late enough for a machine that has other things to do.
QUICK = """
[heartbeat]
interval_s = 0.3
lease_s = 1.5
lost_after_s = 0.5
"""


class Gate:
    """Keeps commands running until it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        #: Runs until the gate is open.
        self.command = ["sh", "-c", f"while [ ! -e {path} ]; do sleep 0.02; done"]

    def open(self) -> None:
        self.path.touch()


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path / "gate")
