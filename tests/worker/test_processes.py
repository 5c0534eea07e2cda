"""What the kernel tells of processes, and what to do where it does not."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from schedd.worker import processes
from schedd.worker.cgroups import Cell
from schedd.worker.processes import children_of, descendants_of

from .running import open_files


def test_parents_come_before_their_children(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = {1: [2, 5], 2: [3, 4], 5: [6]}
    monkeypatch.setattr(processes, "children_of", lambda pid: tree.get(pid, []))
    assert list(descendants_of(1)) == [2, 3, 4, 5, 6]


def test_chain_that_is_deeper_than_the_interpreter_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    depth = 3 * sys.getrecursionlimit()
    monkeypatch.setattr(processes, "children_of", lambda pid: [pid + 1] if pid < depth else [])
    assert list(descendants_of(1)) == list(range(2, depth + 1))


def test_what_cannot_be_seen_ends_no_walk(monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        assert child.pid in children_of(os.getpid())

        def none_left(path: str) -> bytes:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        monkeypatch.setattr(processes, "read_file", none_left)
        assert children_of(os.getpid()) == []
        child.kill()


def test_group_that_cannot_be_used_leaves_nothing_behind(tmp_path: Path) -> None:
    files = open_files()
    with pytest.raises(OSError, match=r"cgroup\.procs"):
        Cell(str(tmp_path / "group"))  # no cgroup file system, so there are no such files
    assert not (tmp_path / "group").exists()
    assert open_files() == files
