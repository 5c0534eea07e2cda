"""Several runs at once: what they tell, what they share, and how they end."""

from __future__ import annotations

import multiprocessing
import os
import selectors
import signal
from pathlib import Path

import pytest

from schedd.errors import TraceError
from schedd.simulate.run import Progress
from schedd.simulate.series import run_each

MANY = pytest.mark.parametrize("jobs", [1, 3])


def unheard(key: object, finished: int, total: int) -> None:
    pass


@MANY
def test_what_was_told_is_in_the_order_of_the_keys(jobs: int) -> None:
    read = {"a": [1, 2], "b": [3], "c": []}
    told = run_each(lambda key, _: (key, sum(read[key])), list(read), jobs, unheard)
    assert told == [("a", 3), ("b", 3), ("c", 0)]


def test_above_one_each_runs_in_a_process_that_is_gone_afterwards() -> None:
    before = multiprocessing.active_children()
    pids = set(run_each(lambda key, _: os.getpid(), range(20), 2, unheard))
    assert os.getpid() not in pids
    assert 1 <= len(pids) <= 2
    assert multiprocessing.active_children() == before
    assert run_each(lambda key, _: os.getpid(), ["alone"], 8, unheard) == [os.getpid()]


@MANY
def test_progress_is_heard(jobs: int) -> None:
    heard: dict[str, tuple[int, int]] = {}

    def run(key: str, on_progress: Progress) -> None:
        for finished in (1, 2, 3):
            on_progress(finished, 3)

    run_each(run, ["a", "b"], jobs, lambda key, finished, total: heard.update({key: (finished, total)}))
    assert heard == {"a": (3, 3), "b": (3, 3)}


@MANY
def test_error_of_a_run_is_that_of_all(jobs: int) -> None:
    def run(key: int, on_progress: Progress) -> int:
        if key == 1:
            raise TraceError("line 7: no such thing", "leave it out")
        return key

    with pytest.raises(TraceError, match="line 7") as caught:
        run_each(run, range(3), jobs, unheard)
    assert caught.value.hint == "leave it out"


def test_end_of_one_by_an_error_ends_the_others(tmp_path: Path) -> None:
    before = multiprocessing.active_children()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    def run(key: int, on_progress: Progress) -> None:
        if key == 0:
            pipe.write_text("the other has begun")
            raise TraceError("no")
        pipe.read_text()
        signal.pause()

    with pytest.raises(TraceError, match="no"):
        run_each(run, range(2), 2, unheard)
    for child in set(multiprocessing.active_children()) - set(before):
        child.join()


def test_runs_end_with_who_wants_to_know() -> None:
    begun, begin = os.pipe()

    def run(key: int, on_progress: Progress) -> None:
        os.write(begin, os.getpid().to_bytes(8))
        signal.pause()

    caller = multiprocessing.get_context("fork").Process(target=run_each, args=(run, range(2), 2, unheard))
    caller.start()
    # Pidfds tell of the end of a process that is not our child.
    fds = [os.pidfd_open(int.from_bytes(os.read(begun, 8))) for _ in range(2)]
    caller.kill()
    caller.join()
    with selectors.DefaultSelector() as selector:
        for fd in fds:
            selector.register(fd, selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select():
                selector.unregister(key.fd)
                os.close(key.fd)
    os.close(begun)
    os.close(begin)


def test_killed_run_is_said() -> None:
    with pytest.raises(TraceError, match="a run was killed") as caught:
        run_each(lambda key, _: os.kill(os.getpid(), signal.SIGKILL), range(2), 2, unheard)
    assert "--jobs 1" in caught.value.hint
