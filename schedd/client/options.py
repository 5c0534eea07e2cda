"""The keyword options of `submit` and `map`, checked here so that a slip is told where it was made."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

import msgspec
from msgspec import Struct

from schedd.client import codec
from schedd.client.checking import checked, plain
from schedd.client.selecting import task_id
from schedd.core.model import NO_REQUIREMENTS, Call, Command, Payload, TaskId, TaskRequirements, TaskRules, kind_of
from schedd.wire.messages import TaskSpec

#: Shortcut → field of TaskRequirements.
_SHORTCUTS = {
    "gpus": "min_gpus",
    "gpu_memory": "min_memory",
    "cpus": "cpus",
    "ram": "ram",
    "gpu_model": "gpu_model",
    "labels": "labels",
    "estimated_time": "estimated_time",
    "custom": "custom",
}
#: Option → field of TaskRules.
_RULES = {
    "timeout": "timeout_s",
    "grace": "grace_s",
    "retries": "retries",
    "retry_timeout": "timeout_limit",
    "retry_oom": "oom_limit",
    "retry_lost": "lost_limit",
    "retry_rejected": "rejected_limit",
    "retry_delay": "retry_delay_s",
    "memory_growth": "memory_growth",
}
_OF_COMMANDS = ("env", "cwd", "stdin")
#: `map` is for calls, and one key cannot name many tasks.
NOT_OF_MAP = ("key", *_OF_COMMANDS)
_PLAIN = ("priority", "job", "kind", "key", "requirements", "after", "delay", "hold", "strict", "on_report")
_OF_CALLS = ("kwargs",)


#: The bound of every time in seconds on the wire, some thirty years.
DELAY_S_MAX = 1e9


class Options(Struct, frozen=True):
    """The options of one submit, checked: what goes into the TaskSpec, and what stays with the single task."""

    priority: float = 0.0
    job: str = ""
    kind: str = ""
    requirements: TaskRequirements = NO_REQUIREMENTS
    rules: TaskRules = TaskRules()
    after: tuple[TaskId, ...] = ()
    delay_s: float = 0.0
    hold: bool = False
    key: str | None = None
    strict: bool = False
    #: A function of each AttemptReport, or None.
    on_report: Any = None
    #: Keyword arguments of the call, a dict.
    kwargs: Any = {}
    env: dict[str, str] = {}
    cwd: str | None = None
    stdin: bytes = b""

    def spec(self, payload: Payload, kind: str) -> TaskSpec:
        """Build the TaskSpec; `kind` is taken where the options name none."""
        return TaskSpec(
            payload,
            self.kind or kind,
            self.job,
            self.priority,
            self.requirements,
            self.rules,
            list(self.after),
            self.delay_s,
            self.hold,
        )


NO_OPTIONS = Options()


def read_options(given: Mapping[str, Any], *, without: Sequence[str] = ()) -> Options:
    """Check keyword options; `without` names those that do not apply to this use.

    Raises TypeError naming the option, and the nearest valid one where it is unknown, and ValueError for amounts that
    mean nothing.
    """
    if not given:
        return NO_OPTIONS
    known = [*_PLAIN, *_SHORTCUTS, *_RULES, *_OF_CALLS, *_OF_COMMANDS]
    for name in given:
        if name in without:
            raise TypeError(f"the option {name!r} does not apply here")
        if name not in known:
            _unknown(name, [option for option in known if option not in without])
    given = {name: plain(value) for name, value in given.items()}
    fields: dict[str, Any] = {
        name: given[name] for name in ("priority", "job", "kind", "hold", "key", "strict") if name in given
    }
    fields["requirements"] = _requirements(given)
    fields["rules"] = _convert({_RULES[name]: given[name] for name in _RULES if name in given}, TaskRules)
    fields["after"] = _after(given.get("after", ()))
    fields["delay_s"] = given.get("delay", 0.0)
    fields.update(_command_fields(given))
    options: Options = _convert(fields, Options)
    if not 0 <= options.delay_s <= DELAY_S_MAX:
        raise ValueError(f"delay must be between 0 and {DELAY_S_MAX:g} s, not {options.delay_s!r}")
    return msgspec.structs.replace(options, **_as_they_are(given))


def _as_they_are(given: Mapping[str, Any]) -> dict[str, Any]:
    """Take the options that are Python objects: conversion would make others of them."""
    on_report, kwargs = given.get("on_report"), given.get("kwargs", {})
    if on_report is not None and not callable(on_report):
        raise TypeError(f"on_report must be callable, not {on_report!r}")
    if not isinstance(kwargs, dict) or not all(isinstance(name, str) for name in kwargs):
        raise TypeError(f"kwargs must be a dict of keyword arguments, not {kwargs!r}")
    return {"on_report": on_report, "kwargs": kwargs}


def _unknown(name: str, known: list[str]) -> NoReturn:
    import difflib

    near = difflib.get_close_matches(name, known, 1, 0.4)
    hint = f"did you mean {near[0]!r}?" if near else f"valid are {', '.join(known)}"
    if name not in known and not near:
        hint += "; keyword arguments of the function go into kwargs={...}"
    raise TypeError(f"unknown option {name!r}: {hint}")


def _convert(values: Mapping[str, Any], kind: type[Any]) -> Any:
    """Build a Struct, its field types enforced: a wrong type would otherwise only be noticed by the daemon."""
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        cause = error.__cause__
        raise (ValueError(str(cause)) if isinstance(cause, ValueError) else TypeError(str(error))) from None


def _requirements(given: Mapping[str, Any]) -> TaskRequirements:
    shortcuts = {field: given[name] for name, field in _SHORTCUTS.items() if name in given}
    base = given.get("requirements")
    if base is not None and not isinstance(base, TaskRequirements):
        raise TypeError(f"requirements must be TaskRequirements, not {type(base).__name__}")
    if base is not None and shortcuts:
        raise TypeError(
            f"requirements and {next(iter(shortcuts))} cannot be given together: put all of it in requirements"
        )
    requirements: TaskRequirements = NO_REQUIREMENTS
    if base is not None:
        requirements = checked(base, TaskRequirements, "requirements")
    elif shortcuts:
        requirements = _convert(shortcuts, TaskRequirements)
    return requirements


def _after(given: Any) -> tuple[TaskId, ...]:
    tasks: Iterable[Any] = given if isinstance(given, Iterable) else (given,)
    return tuple(task_id(task) for task in tasks)


def _command_fields(given: Mapping[str, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if "env" in given:
        fields["env"] = dict(given["env"])
    if "cwd" in given:
        fields["cwd"] = None if given["cwd"] is None else os.fspath(given["cwd"])
    if "stdin" in given:
        stdin = given["stdin"]
        fields["stdin"] = stdin.encode() if isinstance(stdin, str) else stdin
    return fields


# ------------------------------------------------------------------------------------------------- what is submitted


class Request(Struct, frozen=True):
    """One task to submit: what it shares with others, and what is its own."""

    spec: TaskSpec
    argument: bytes
    options: Options


def read_request(function: object, args: tuple[Any, ...], given: Mapping[str, Any]) -> Request:
    """Read the arguments of `submit`: a callable or import path with its arguments, or the words of a command.

    Raises TypeError, ValueError, PicklingError.
    """
    if callable(function) or isinstance(function, str):
        options = read_options(given, without=_OF_COMMANDS)
        argument = codec.argument_bytes(function, args, options.kwargs)
        return Request(options.spec(call_of(function), codec.name_of(function)), argument, options)
    options = read_options(given, without=_OF_CALLS)
    argv = _words(function)
    if args:
        raise TypeError("a command takes no arguments beside its list of words")
    command = Command(argv, options.env, options.cwd, options.stdin)
    return Request(options.spec(command, kind_of(argv)), b"", options)


def call_of(function: Callable[..., Any] | str) -> Call:
    """Build the payload of a callable or of an import path "package.module:name". Raises TypeError, PicklingError."""
    if not isinstance(function, str):
        return Call(function=codec.function_bytes(function))
    module, colon, name = function.partition(":")
    if not (colon and module and name):
        raise TypeError(f"{function!r} is not an import path like 'package.module:name'; a command is a list of words")
    return Call(path=function)


def _words(function: object) -> list[str]:
    if not isinstance(function, Sequence) or not function:
        raise TypeError(f"submit takes a callable, an import path or a list of words, not {function!r}")
    words = [os.fspath(word) if isinstance(word, os.PathLike) else word for word in function]
    for word in words:
        if not isinstance(word, str):
            raise TypeError(f"the words of a command are strings, not {word!r}")
    return words


class CallSpecs:
    """TaskSpecs of callables under one set of options: the same object each time, as long as the callable lives.

    The same object is sent once a frame, however many tasks of the frame refer to it.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self._by_data: dict[bytes, TaskSpec] = {}

    def get(self, function: Callable[..., Any]) -> TaskSpec:
        """Return the spec of a callable. Raises PicklingError."""
        data = codec.function_bytes(function)
        spec = self._by_data.get(data)
        if spec is None:
            if len(self._by_data) >= SPECS_KEPT_MAX:
                self._by_data.clear()
            spec = self.options.spec(Call(function=data), codec.name_of(function))
            self._by_data[data] = spec
        return spec


#: Enough for the functions of a program; a program that makes a closure for each task starts over now and then.
SPECS_KEPT_MAX = 64
