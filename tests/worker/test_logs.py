from __future__ import annotations

import os
from pathlib import Path

import pytest

from schedd.core.model import TaskId
from schedd.wire.messages import FetchLog, LogPiece
from schedd.worker.logs import SPARE_MAX, LogFiles, LogStore


@pytest.fixture
def store(tmp_path: Path) -> LogStore:
    return LogStore(tmp_path, 3)


def read(store: LogStore, name: str) -> LogPiece:
    task_id, attempt = name.split(".")
    return store.read(FetchLog(1, TaskId(int(task_id)), int(attempt), "stdout", 0, 100))


def write(store: LogStore, name: str, text: bytes) -> LogFiles:
    files = store.open(name)
    os.write(files.stdout, text)
    store.close(files, reusable=True)
    return files


def test_same_name_again_starts_empty(store: LogStore) -> None:
    write(store, "1.1", b"old")
    write(store, "2.1", b"")
    files = write(store, "1.1", b"new")
    assert read(store, "1.1").data == b"new"
    assert files.name == "1.1"


def test_spare_of_the_same_name_is_taken_first(store: LogStore) -> None:
    one, two = store.open("1.1"), store.open("2.1")
    store.close(one, reusable=True)
    store.close(two, reusable=True)
    assert store.open("1.1") is one
    assert store.open("3.1") is two
    os.write(two.stdout, b"three")
    os.write(one.stdout, b"one")
    store.close(one, reusable=True)
    store.close(two, reusable=True)
    assert (read(store, "1.1").data, read(store, "3.1").data) == (b"one", b"three")


def test_files_that_somebody_may_still_write_to_are_not_used_again(store: LogStore) -> None:
    files = store.open("1.1")
    store.close(files, reusable=False)
    assert list(store.folder.iterdir()) == []
    assert read(store, "1.1").error == ""


def test_spare_that_somebody_removed_is_made_anew(store: LogStore) -> None:
    store.close(store.open("1.1"), reusable=True)
    for path in store.folder.iterdir():
        path.unlink()
    write(store, "2.1", b"text")
    assert read(store, "2.1").data == b"text"


def test_spares_are_bounded_and_removed_in_the_end(store: LogStore) -> None:
    files = [store.open(f"{index}.1") for index in range(SPARE_MAX + 5)]
    for pair in files:
        store.close(pair, reusable=True)
    assert len(list(store.folder.iterdir())) == 2 * SPARE_MAX
    store.close_all()
    assert list(store.folder.iterdir()) == []


def test_old_logs_go_but_never_those_of_a_running_attempt(store: LogStore) -> None:
    running = store.open("1.1")
    os.write(running.stdout, b"long")
    for index in range(2, 8):
        write(store, f"{index}.1", b"x")
    assert read(store, "1.1").data == b"long"
    assert not read(store, "1.1").done
    assert read(store, "2.1").error
    assert read(store, "7.1").data == b"x"
    store.close(running, reusable=True)


def test_logs_of_an_earlier_run_are_still_there(store: LogStore) -> None:
    for index in range(1, 6):
        write(store, f"{index}.1", b"x")
    store.close(store.open("9.1"), reusable=True)
    again = LogStore(store.folder, 2)
    assert sorted(path.name for path in store.folder.iterdir()) == ["4.1.stdout", "5.1.stdout"]
    assert read(again, "5.1").data == b"x"


def test_disk_that_takes_nothing_raises(store: LogStore) -> None:
    store.folder.rmdir()
    with pytest.raises(OSError, match="No such file"):
        store.open("1.1")
