"""Distributions that are not installed: a module and its entry points, in a folder that is put on the path."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

#: The smallest policy of one's own.
MINE = '''
from typing import Annotated

from msgspec import Meta, Struct

from schedd import TaskScheduler


class MineParams(Struct, frozen=True, forbid_unknown_fields=True):
    weight: Annotated[float, Meta(ge=0, le=10)] = 1.0


class Mine(TaskScheduler):
    """Of no use."""

    name = "mine"
    Params = MineParams
    summary = "the last worker first"

    def __init__(self, weight=1.0):
        if weight == 7:
            raise ValueError("7 is an unlucky number")
        self.weight = weight

    def score(self, task, worker):
        return -self.weight * worker.seq
'''


def distribution(folder: Path, module: str, text: str, policies: Mapping[str, str], version: str = "1.0") -> Path:
    """Write a module and a distribution of its name that registers `policies`; returns the folder for the path."""
    info = folder / f"{module}-{version}.dist-info"
    info.mkdir(parents=True)
    (folder / f"{module}.py").write_text(text)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: {version}\n")
    lines = [f"{name} = {value}" for name, value in policies.items()]
    (info / "entry_points.txt").write_text("\n".join(["[schedd.policies]", *lines, ""]))
    return folder
