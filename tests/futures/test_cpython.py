"""CPython's tests of concurrent.futures on SchedExecutor; what does not apply is in the tables, with the reason.

The tests of the executor run twice: with at most five tasks with the daemon at a time, as they ask for, and without a
bound.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import unittest.mock
from multiprocessing.context import BaseContext
from typing import Any

import pytest

from schedd.client.executor import SchedExecutor
from schedd.client.futures import TaskFuture
from schedd.errors import TaskFailed

from . import cpython

MODULES, _ = cpython.load()
if not MODULES:
    assert os.environ.get("SCHEDD_REAL") != "all", "CPython's tests should be here: package libpython3.x-testsuite"
    pytest.skip("CPython's tests are not installed (package libpython3.x-testsuite)", allow_module_level=True)

pytestmark = pytest.mark.usefixtures("futures_cluster")

POOL = "looks into the pool of processes (`_processes`, `_call_queue` …); here the worker has them"
SCRIPT = "a script that imports the executor from concurrent.futures; tests/client/test_executor.py has its like"
SHARED = "shares a semaphore or a manager of multiprocessing with its own child processes"
INITIALIZER = "worker processes are shared between users; an initializer is refused"

#: Test → why it does not apply.
EXCLUDED = {
    "test_killed_child": POOL,
    "test_processes_terminate": POOL,
    "test_context_manager_shutdown": POOL,
    "test_del_shutdown": POOL + "; tests/client/test_executor.py has its like",
    "test_shutdown_no_wait": POOL + "; tests/client/test_executor.py has its like",
    "test_idle_process_reuse_one": POOL,
    "test_idle_process_reuse_multiple": POOL,
    "test_saturation": SHARED,
    "test_ressources_gced_in_workers": SHARED,
    "test_shutdown_deadlock_pickle": POOL,
    "test_python_finalization_error": "lets the start of the pool's threads fail",
    "test_interpreter_shutdown": SCRIPT,
    "test_submit_after_interpreter_shutdown": SCRIPT,
    "test_hang_gh83386": SCRIPT,
    "test_max_tasks_per_child": "the workers decide when to replace a process",
    "test_max_tasks_per_child_defaults_to_spawn_context": "the workers decide when to replace a process",
    "test_max_tasks_early_shutdown": "the workers decide when to replace a process",
    "test_max_workers_too_large": "a limit of Windows",
    "test_cancel_futures": "wants one that has started, and all are cancelled before; test_real.py has its like",
}
#: Whole classes → why they do not apply. (The classes for ThreadPoolExecutor alone look at its threads.)
EXCLUDED_CLASSES = {
    "InitializerMixin": INITIALIZER,
    "FailingInitializerMixin": INITIALIZER,
}
#: Of the tests of the future alone.
EXCLUDED_OF_FUTURES = {
    "test_cancel": "looks into `_state`: those who wait are told in `cancel` itself and not later",
    "test_done_callback_raises": "pytest takes the log away from stderr",
    "test_done_callback_raises_already_succeeded": "pytest takes the log away from stderr",
    "test_repr": "the name of the class is in it",
    "test_multiple_set_result": "the name of the class is in it",
    "test_multiple_set_exception": "the name of the class is in it",
}


class BoundedExecutor(SchedExecutor):
    """Takes what CPython's tests give; `mp_context` is what they choose a pool by."""

    def __init__(self, max_workers: int | None = None, mp_context: object = None) -> None:
        super().__init__(max_workers=max_workers)


class UnboundedExecutor(SchedExecutor):
    """As many tasks with the daemon as were submitted."""

    def __init__(self, max_workers: int | None = None, mp_context: object = None) -> None:
        super().__init__(max_workers=max_workers if max_workers is not None and max_workers < 1 else None)


ExecutorMixin: Any = cpython.find(MODULES, "ExecutorMixin")
BaseTestCase: Any = cpython.find(MODULES, "BaseTestCase")


class BoundedMixin(ExecutorMixin):  # type: ignore[misc]
    executor_type: type[SchedExecutor] = BoundedExecutor

    def get_context(self) -> BaseContext:
        return multiprocessing.get_context("spawn")


class UnboundedMixin(BoundedMixin):
    executor_type = UnboundedExecutor


def _case(name: str, mixin: Any, *bases: type) -> type[unittest.TestCase]:
    """Make a test case of one of CPython's mixins, without what does not apply."""
    members = {test: None for test in EXCLUDED if hasattr(mixin, test)}
    case: type[unittest.TestCase] = type(name, (mixin, *bases, BaseTestCase), {"__module__": __name__, **members})
    return case


for _tests, _mixins in {
    "ProcessPoolExecutorTest": (BoundedMixin, UnboundedMixin),
    "ProcessPoolShutdownTest": (BoundedMixin, UnboundedMixin),
    # Mostly asleep, so once is enough.
    "WaitTests": (UnboundedMixin,),
    "AsCompletedTests": (UnboundedMixin,),
}.items():
    for _mixin in _mixins:
        _name = f"Test{_mixin.__name__.removesuffix('Mixin')}{_tests}"
        globals()[_name] = _case(_name, cpython.find(MODULES, _tests), _mixin)

DeadlockTests: Any = cpython.find(MODULES, "ExecutorDeadlockTest")
CRASHES: Any = next(module for module in MODULES if module.__name__ == DeadlockTests.__module__)


class TestCrashes(_case("Crashes", DeadlockTests, BoundedMixin)):  # type: ignore[misc]
    """A process that dies takes its task with it and not the executor, so nothing is ever a BrokenProcessPool."""

    def setUp(self) -> None:
        # What a call or its arguments raised is raised here too; a SystemExit comes as a RuntimeError.
        errors = (TaskFailed, pickle.UnpicklingError, RuntimeError)
        patch = unittest.mock.patch.object(CRASHES, "BrokenProcessPool", errors)
        patch.start()
        self.addCleanup(patch.stop)
        super().setUp()

    def test_exit_during_func_exec_on_worker(self) -> None:
        self._check_crash(RuntimeError, CRASHES._exit)

    def test_error_during_result_pickle_on_worker(self) -> None:
        self._check_crash(TaskFailed, CRASHES._return_instance, CRASHES.ErrorAtPickle)

    def test_exit_during_result_pickle_on_worker(self) -> None:
        self._check_crash(TaskFailed, CRASHES._return_instance, CRASHES.ExitAtPickle)


class Unsent:
    """In the place of an executor: nothing was sent."""

    def cancel(self, future: TaskFuture) -> bool:
        future.mark_cancelled()
        return future.cancelled()


class LoneFuture(TaskFuture):
    """A future of ours that CPython's tests can make."""

    def __init__(self) -> None:
        super().__init__(Unsent())  # type: ignore[arg-type]


class TestFuture(cpython.find(MODULES, "FutureTests")):  # type: ignore[misc]
    """The tests of Future with TaskFuture in its place."""

    locals().update(dict.fromkeys(EXCLUDED_OF_FUTURES))

    def setUp(self) -> None:
        for module in MODULES:
            if hasattr(module, "Future"):
                patch = unittest.mock.patch.object(module, "Future", LoneFuture)
                patch.start()
                self.addCleanup(patch.stop)
        super().setUp()


def test_tables_name_what_there_is() -> None:
    """Each excluded name is a test of this version of Python, or of another that we support."""
    classes = [thing for module in MODULES for thing in vars(module).values() if isinstance(thing, type)]
    names = {name for thing in classes for name in dir(thing)}
    assert {"test_killed_child", "test_saturation", "test_repr"} <= names
    assert not set(EXCLUDED_OF_FUTURES) - names
    assert all(cpython.find(MODULES, name) is not None for name in EXCLUDED_CLASSES)
