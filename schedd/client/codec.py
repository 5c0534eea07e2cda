"""Callables, arguments and results as bytes.

Functions are pickled by cloudpickle: what a worker can import travels as its name, what it cannot (a lambda, a
function of `__main__` or of a notebook) travels as code, with the globals that it uses. The bytes are kept as long as
the function lives if it closes over nothing, and as long as the globals that it uses, and functions beside it use, are
the same objects: one that is assigned anew is seen, a list that is appended to is not. A function with a closure, a
bound method or a partial is pickled each time.

Results come from the team's own workers and are unpickled here: a client trusts its daemon as it trusts its own code.
"""

from __future__ import annotations

import functools
import pickle
import sys
import types
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from schedd.core.model import TaskId
from schedd.errors import RequestRefused, TaskCancelled, TaskFailed
from schedd.wire.messages import ILLEGAL_STATE, TaskDone
from schedd.wire.raised import decode_raised

#: Types whose instances plain pickle writes as every worker reads them.
_PRIMITIVES = frozenset({int, float, complex, str, bytes, bool, type(None)})
_CONTAINERS = frozenset({tuple, list, dict, set, frozenset})
#: Globals of a function that are looked at when it is submitted again.
GLOBALS_MAX = 100
#: Values looked at before arguments count as large; then cloudpickle's fixed 20 microseconds matter no more.
_LOOKED_AT_MAX = 200
_NO_ARGUMENTS = pickle.dumps(((), {}), pickle.HIGHEST_PROTOCOL)

#: By id of the function: it, its bytes, and the globals in them by name.
_functions: dict[int, tuple[weakref.ref[Any], bytes, dict[str, object]]] = {}


def is_cacheable(function: object) -> bool:
    """Whether equal bytes stand for this callable as long as it lives: a plain function that closes over nothing."""
    kind = type(function)
    if kind is types.FunctionType:
        return function.__closure__ is None  # type: ignore[attr-defined]
    return kind is types.BuiltinFunctionType and isinstance(
        getattr(function, "__self__", None), types.ModuleType | None
    )


def function_bytes(function: Callable[..., Any]) -> bytes:
    """Pickle a callable, or take the bytes of the last time. Raises PicklingError naming it."""
    key = id(function)
    known = _functions.get(key)
    if known is not None and known[0]() is function:
        names, used = getattr(function, "__globals__", {}), known[2]
        if not used or all(names.get(name) is value for name, value in used.items()):
            return known[1]
    data = _dump(function, lambda: f"the callable {name_of(function)!r}")
    if is_cacheable(function):
        used = _globals_of(function) if isinstance(function, types.FunctionType) else {}
        _functions[key] = (weakref.ref(function, lambda _: _functions.pop(key, None)), data, used)
    return data


def _globals_of(function: types.FunctionType) -> dict[str, object]:
    """What a function that travels as code takes along of its globals, and the functions beside it that it uses."""
    found: dict[str, object] = {}
    names, seen = function.__globals__, {function}
    todo: list[types.CodeType] = [] if _is_importable(function) else [function.__code__]
    while todo and len(found) < GLOBALS_MAX:
        code = todo.pop()
        todo += [const for const in code.co_consts if isinstance(const, types.CodeType)]
        for name in code.co_names:
            value = names.get(name)
            if name in found or name not in names or value is function:
                continue
            found[name] = value
            if isinstance(value, types.FunctionType) and value.__globals__ is names and value not in seen:
                seen.add(value)
                todo.append(value.__code__)
    return found


def _is_importable(function: types.FunctionType) -> bool:
    """Whether it travels as its name."""
    found: Any = sys.modules.get(function.__module__) if function.__module__ != "__main__" else None
    for part in function.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is function


def argument_bytes(function: Callable[..., Any] | str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    """Pickle the arguments of a call. Raises PicklingError naming the first that cannot be sent."""
    if not args and not kwargs:
        return _NO_ARGUMENTS
    if _is_plain(args, kwargs):
        return pickle.dumps((args, kwargs), pickle.HIGHEST_PROTOCOL)
    return _dump((args, kwargs), lambda: _name_culprit(function, args, kwargs))


def _is_plain(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether only exact primitives and containers of those are in there. O(1): gives up on large arguments."""
    todo: list[Any] = [*args, *kwargs.values()] if kwargs else list(args)
    for value in todo:
        kind = type(value)
        if kind in _PRIMITIVES:
            continue
        if kind not in _CONTAINERS or len(todo) + len(value) > _LOOKED_AT_MAX:
            return False
        todo.extend(value)
        if kind is dict:
            todo.extend(value.values())
    return True


def _dump(value: object, name: Callable[[], str]) -> bytes:
    from schedd.client import codepickle  # 25 ms that a client which only looks never pays

    try:
        data = codepickle.dumps(value)
    except Exception as error:  # whatever a `__reduce__` raises
        raise pickle.PicklingError(f"{name()} cannot be pickled: {error}") from error
    return data


def _name_culprit(function: Callable[..., Any] | str, args: Iterable[Any], kwargs: dict[str, Any]) -> str:
    from schedd.client import codepickle

    named = [(f"argument {place}", value) for place, value in enumerate(args, 1)]
    named += [(f"argument {key!r}", value) for key, value in kwargs.items()]
    for name, value in named:
        try:
            codepickle.dumps(value)
        except Exception:
            return f"{name} of {name_of(function)!r}, a {type(value).__qualname__},"
    return f"the arguments of {name_of(function)!r}"


def name_of(function: object) -> str:
    """Name a callable for people and for the statistics: "module.qualified.name"."""
    if isinstance(function, str):
        return function.replace(":", ".")
    while isinstance(function, functools.partial | functools.partialmethod):
        function = function.func
    name, module = getattr(function, "__qualname__", None), getattr(function, "__module__", None)
    if not (isinstance(name, str) and name):  # an object that can be called; some answer to every name
        name, module = type(function).__qualname__, type(function).__module__
    return name if module in (None, "__main__", "builtins") else f"{module}.{name}"


# ---------------------------------------------------------------------------------------------------------- results


def value_of(done: TaskDone) -> Any:
    """Return the value of a task that is final: of a call what it returned, of a command its JSON result, or None.

    Raises what the call raised, its traceback as the cause; TaskFailed, TaskCancelled; RequestRefused where the value
    is not kept any more.
    """
    value, error = outcome_of(done)
    if error is not None:
        raise error
    return value


def outcome_of(done: TaskDone) -> tuple[Any, BaseException | None]:
    """Return the value of a task that is final, or the exception that `value_of` raises."""
    if done.state != "succeeded":
        return None, error_of(done)
    if done.result is not None:
        return _load(done.task_id, done.result)
    if done.kept:
        return None, None
    message = f"the result of task {done.task_id} is not kept any more"
    return None, RequestRefused(message, "ask sooner, or keep results longer", ILLEGAL_STATE)


def error_of(done: TaskDone) -> BaseException:
    """Return the exception that says why a task did not succeed."""
    if done.state == "cancelled":
        why = f": {done.message}" if done.message else ""
        return TaskCancelled(f"task {done.task_id} was cancelled{why}", cause="cancelled")
    raised = decode_raised(done.result)
    if raised is None:
        return _failed(done)
    exception, unread = _load(done.task_id, raised.exception)
    cause = _remote_traceback(raised.traceback)
    if isinstance(exception, Exception):
        _set_cause(exception, cause)
        return exception
    # It cannot be opened here, or is none here; one that ends more than the call would end its reader.
    failed = _failed(done, f" ({unread.message})" if unread is not None else "")
    failed.__cause__ = cause
    return failed


def _failed(done: TaskDone, remark: str = "") -> TaskFailed:
    message = f"task {done.task_id} failed ({done.cause})" + (f": {done.message}" if done.message else "") + remark
    return TaskFailed(message, f"schedd show {done.task_id} tells more", cause=done.cause)


#: As `exception.__cause__ = cause`, which the class of the exception can forbid: a frozen dataclass does.
_set_cause = BaseException.__dict__["__cause__"].__set__


def _remote_traceback(text: str) -> BaseException:
    """Wrap the traceback of the worker as concurrent.futures does."""
    from concurrent.futures.process import _RemoteTraceback

    # The stubs have it as a traceback object; it is the text.
    return _RemoteTraceback(f'\n"""\n{text}"""')  # type: ignore[arg-type]


def _is_pickle(data: bytes) -> bool:
    # The opcode that starts every pickle since protocol 2; no JSON text starts with it.
    return data[:1] == pickle.PROTO


def _load(task_id: TaskId, data: bytes) -> tuple[Any, TaskFailed | None]:
    try:
        return pickle.loads(data) if _is_pickle(data) else msgspec.json.decode(data), None
    except BaseException as error:  # unpickling runs foreign code: not even its SystemExit may end this loop
        reason = f"{type(error).__name__}: {error}"
        failed = TaskFailed(f"the result of task {task_id} cannot be read here: {reason}")
        failed.__cause__ = error.with_traceback(None)  # whose frames would hold the future that holds this
        return None, failed
