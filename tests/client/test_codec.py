"""Callables, arguments and results as bytes."""

from __future__ import annotations

import functools
import gc
import pickle
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest.mock import Mock

import pytest

from schedd.client import codec
from schedd.core.model import TaskId
from schedd.errors import RequestRefused, TaskCancelled, TaskFailed
from schedd.wire.messages import TaskDone
from schedd.wire.raised import encode_raised


def add(x: int, y: int = 0) -> int:
    return x + y


class Point:
    def __init__(self, x: int) -> None:
        self.x = x

    def double(self) -> int:
        return 2 * self.x


class Remote:
    """Has every attribute: one more of its kind."""

    def __getattr__(self, name: str) -> Remote:
        return Remote()

    def __call__(self) -> None:
        pass


class Refusing:
    def __reduce__(self) -> str:
        raise pickle.PicklingError("not this one")


class ExitsOnLoad:
    def __reduce__(self) -> tuple[Any, ...]:
        return _exit, ()


def _exit() -> None:
    raise SystemExit(1)


@dataclass(frozen=True)
class Frozen(Exception):
    """Lets nobody set its cause."""

    code: int

    def __reduce__(self) -> tuple[Any, ...]:
        return Frozen, (self.code,)


class LoadsAsNumber(Exception):
    def __reduce__(self) -> tuple[Any, ...]:
        return int, ("5",)


def done(state: str, **fields: Any) -> TaskDone:
    return TaskDone(TaskId(7), state, fields.pop("cause", "ok"), **fields)


#: What a call that raised sends, with one element more, which is lists in lists.
DEEP = b"\x93\xc4\x01x\xa1a" + b"\x91" * 100_000


def raised(exception: bytes) -> bytes:
    return encode_raised(exception, "Traceback: far away")


# ------------------------------------------------------------------------------------------------------------ callables


def test_function_that_names_itself_can_go() -> None:
    cells: dict[str, Any] = {"__name__": "__main__"}
    exec("def again(n): return again(n - 1) if n else 0", cells)
    function = cells.pop("again")
    cells["again"] = function
    codec.function_bytes(function)
    gone = weakref.ref(function)
    del function, cells
    gc.collect()
    assert gone() is None


def test_globals_that_are_assigned_anew_are_taken_along() -> None:
    """As in a notebook, whose cells are run again; also by a function that the function calls."""
    cells: dict[str, Any] = {"__name__": "__main__"}
    exec("rate = 0.1\ndef helper(): return rate, 'old'\ndef train(): return [helper() for _ in 'a']", cells)
    train = cells["train"]
    first = codec.function_bytes(train)
    assert codec.function_bytes(train) is first
    cells["rate"] = 0.5
    second = codec.function_bytes(train)
    assert pickle.loads(second)() == [(0.5, "old")]
    exec("def helper(): return rate, 'new'", cells)
    assert pickle.loads(codec.function_bytes(train))() == [(0.5, "new")]
    del cells["rate"]
    with pytest.raises(NameError):
        pickle.loads(codec.function_bytes(train))()


@pytest.mark.parametrize("function", [add, len, threading.get_ident, lambda x: x])
def test_function_is_pickled_once(function: Callable[..., Any]) -> None:
    assert codec.function_bytes(function) is codec.function_bytes(function)


def test_forgotten_function_leaves_nothing() -> None:
    function: Any = eval("lambda: 1")
    codec.function_bytes(function)
    key = id(function)
    assert key in codec._functions
    del function
    gc.collect()
    assert key not in codec._functions


def test_closure_is_pickled_as_it_is_now() -> None:
    values = [1]

    def closure() -> int:
        return sum(values)

    first = codec.function_bytes(closure)
    values.append(2)
    assert pickle.loads(codec.function_bytes(closure))() == 3
    assert pickle.loads(first)() == 1


def test_bound_method_is_pickled_as_it_is_now() -> None:
    point = Point(2)
    first = codec.function_bytes(point.double)
    point.x = 4
    assert pickle.loads(first)() == 4
    assert pickle.loads(codec.function_bytes(point.double))() == 8


def test_method_of_builtin_object_is_not_kept() -> None:
    items = [1]
    assert not codec.is_cacheable(items.count)
    assert codec.is_cacheable(len)


def test_unpicklable_closure_is_named() -> None:
    lock = threading.Lock()

    def uses_lock() -> bool:
        return lock.locked()

    with pytest.raises(pickle.PicklingError, match=r"the callable .*uses_lock' cannot be pickled: .*lock"):
        codec.function_bytes(uses_lock)


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (add, f"{__name__}.add"),
        (functools.partial(functools.partial(add, 1), y=2), f"{__name__}.add"),
        (Point(1).double, f"{__name__}.Point.double"),
        (Point(1), f"{__name__}.Point"),
        (functools.partialmethod(add, 1), f"{__name__}.add"),
        (Remote(), f"{__name__}.Remote"),
        (Mock(), "unittest.mock.Mock"),
        (len, "len"),
        ("package.module:name", "package.module.name"),
    ],
)
def test_name(function: object, name: str) -> None:
    assert codec.name_of(function) == name


# ------------------------------------------------------------------------------------------------------------ arguments


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((), {}),
        ((1, 2.5, "x", b"y", None, True, 1j), {}),
        (([1, (2, {3: {"a": [4]}})],), {"k": {5}, "f": frozenset({6})}),
        (([[0] * 1000],), {}),
    ],
)
def test_arguments_come_back(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    assert pickle.loads(codec.argument_bytes(add, args, kwargs)) == (args, kwargs)


def test_local_class_travels_by_value() -> None:
    class Local:
        value = 3

    (loaded,), _ = pickle.loads(codec.argument_bytes(add, (Local,), {}))
    assert loaded.value == 3


def test_cyclic_argument() -> None:
    cycle: list[Any] = []
    cycle.append(cycle)
    (loaded,), _ = pickle.loads(codec.argument_bytes(add, (cycle,), {}))
    assert loaded[0] is loaded


def test_subclass_of_primitive_is_not_taken_for_one() -> None:
    class Number(int):
        pass

    (loaded,), _ = pickle.loads(codec.argument_bytes(add, (Number(3),), {}))
    assert loaded == 3
    assert type(loaded).__name__ == "Number"


@pytest.mark.parametrize(
    ("args", "kwargs", "name"),
    [
        ((1, threading.Lock()), {}, r"argument 2 of '.*add', a lock, cannot be pickled"),
        ((1,), {"y": [threading.Lock()]}, r"argument 'y' of '.*add', a list, cannot be pickled"),
        ((Refusing(),), {}, r"argument 1 of '.*add', a Refusing, cannot be pickled: not this one"),
    ],
)
def test_unpicklable_argument_is_named(args: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> None:
    with pytest.raises(pickle.PicklingError, match=name):
        codec.argument_bytes(add, args, kwargs)


# -------------------------------------------------------------------------------------------------------------- results


def test_value_of_call_and_command() -> None:
    assert codec.value_of(done("succeeded", result=pickle.dumps({"a": 1}))) == {"a": 1}
    assert codec.value_of(done("succeeded", result=b'{"loss": 0.5}')) == {"loss": 0.5}
    assert codec.value_of(done("succeeded")) is None


def test_value_not_kept() -> None:
    with pytest.raises(RequestRefused, match="the result of task 7 is not kept any more"):
        codec.value_of(done("succeeded", kept=False))


def test_exception_of_call_has_remote_traceback() -> None:
    result = raised(pickle.dumps(ValueError("bad lr")))
    with pytest.raises(ValueError, match="bad lr") as caught:
        codec.value_of(done("failed", cause="error", result=result))
    assert "far away" in str(caught.value.__cause__)


def test_exception_that_cannot_be_changed_has_remote_traceback() -> None:
    with pytest.raises(Frozen) as caught:
        codec.value_of(done("failed", cause="error", result=raised(pickle.dumps(Frozen(4)))))
    assert caught.value.code == 4
    assert "far away" in str(caught.value.__cause__)


def test_exception_that_is_none_here() -> None:
    result = raised(pickle.dumps(LoadsAsNumber()))
    with pytest.raises(TaskFailed, match=r"task 7 failed \(error\): LoadsAsNumber") as caught:
        codec.value_of(done("failed", cause="error", message="LoadsAsNumber", result=result))
    assert "far away" in str(caught.value.__cause__)


def test_exception_whose_module_is_not_here_keeps_its_traceback() -> None:
    result = raised(b"\x80\x04cnowhere_to_be_found\nOops\n.")
    with pytest.raises(TaskFailed, match=r"task 7 failed \(oom_gpu\): Oops: bad lr .*nowhere_to_be_found") as caught:
        codec.value_of(done("failed", cause="oom_gpu", message="Oops: bad lr", result=result))
    assert caught.value.cause == "oom_gpu"
    assert "far away" in str(caught.value.__cause__)


@pytest.mark.parametrize("result", [None, b"", b'{"loss": 1}', b"\x92", b"\x92\x01\x02", DEEP, pickle.dumps(5)])
def test_failure_without_exception(result: bytes | None) -> None:
    with pytest.raises(TaskFailed, match=r"task 7 failed \(timeout\): ran 5 s") as caught:
        codec.value_of(done("failed", cause="timeout", message="ran 5 s", result=result))
    assert caught.value.cause == "timeout"


def test_cancelled() -> None:
    with pytest.raises(TaskCancelled, match=r"task 7 was cancelled$"):
        codec.value_of(done("cancelled", cause="cancelled"))
    with pytest.raises(TaskCancelled, match="task 7 was cancelled: needs task 6, which failed"):
        codec.value_of(done("cancelled", cause="cancelled", message="needs task 6, which failed"))


def test_exception_that_would_end_its_reader() -> None:
    with pytest.raises(TaskFailed, match="oops") as caught:
        codec.value_of(done("failed", message="oops", result=raised(pickle.dumps(SystemExit(3)))))
    assert "far away" in str(caught.value.__cause__)


@pytest.mark.parametrize("exception", [b"\x80\x05garbage", b"", pickle.dumps(ExitsOnLoad())])
def test_unreadable_exception(exception: bytes) -> None:
    with pytest.raises(TaskFailed, match=r"oops \(the result of task 7 cannot be read here") as caught:
        codec.value_of(done("failed", message="oops", result=raised(exception)))
    assert "far away" in str(caught.value.__cause__)


@pytest.mark.parametrize("result", [b"\x80\x05garbage", pickle.dumps(ExitsOnLoad())])
def test_unreadable_result(result: bytes) -> None:
    with pytest.raises(TaskFailed, match="the result of task 7 cannot be read here"):
        codec.value_of(done("succeeded", result=result))


def test_code_that_travels_knows_its_file() -> None:
    """A traceback from a worker names the file; cloudpickle 3.1.3 leaves it out."""
    function = pickle.loads(codec.function_bytes(lambda: 1 / 0))
    assert function.__code__.co_filename == __file__
