"""The keyword options of `submit`."""

from __future__ import annotations

import numbers
import threading
from pathlib import Path
from typing import Any

import pytest

from schedd.client.options import NOT_OF_MAP, SPECS_KEPT_MAX, CallSpecs, Options, read_options, read_request
from schedd.core.model import Call, Command, TaskRequirements, TaskRules


def add(x: int, y: int = 0) -> int:
    return x + y


class Handle:
    id = 12


@numbers.Integral.register
class Count:
    """An integer of another library, as NumPy has them."""

    def __int__(self) -> int:
        return 2


class Number(float):
    """A float of another library."""


def test_all_options_of_a_call() -> None:
    request = read_request(
        add,
        (1,),
        {
            "priority": 2,
            "job": "search",
            "kind": "trial",
            "key": "k1",
            "gpus": 1,
            "gpu_memory": 10,
            "cpus": 2,
            "ram": 8.5,
            "gpu_model": "A100",
            "labels": {"zone": "a"},
            "estimated_time": 60,
            "after": [3, Handle()],
            "timeout": 10,
            "grace": 1,
            "retries": 2,
            "delay": 5,
            "hold": True,
            "strict": True,
            "kwargs": {"y": 4},
        },
    )
    spec = request.spec
    assert (spec.priority, spec.job, spec.kind, spec.hold, spec.delay_s) == (2.0, "search", "trial", True, 5.0)
    assert spec.after == [3, 12]
    assert spec.requirements == TaskRequirements(1, 10, 60, 2, 8.5, "A100", {"zone": "a"})
    assert (spec.rules.timeout_s, spec.rules.grace_s, spec.rules.retries) == (10, 1, 2)
    assert (request.options.key, request.options.strict) == ("k1", True)
    assert isinstance(spec.payload, Call)
    assert b"y" in request.argument


def test_limits_of_causes() -> None:
    given = {
        "retry_timeout": 1,
        "retry_oom": 2,
        "retry_lost": 0,
        "retry_rejected": 4,
        "retry_delay": 5,
        "memory_growth": 2,
    }
    assert read_options(given).rules == TaskRules(
        timeout_limit=1, oom_limit=2, lost_limit=0, rejected_limit=4, retry_delay_s=5, memory_growth=2
    )
    assert read_options({"job": "j"}).rules == TaskRules(), "what is not said is the daemon's to say"


def test_numbers_of_other_libraries_are_numbers() -> None:
    options = read_options({"priority": Number(1.5), "timeout": Number(2), "gpus": Count(), "retries": Count()})
    assert type(options.priority) is float
    assert (options.priority, options.rules.timeout_s, options.rules.retries) == (1.5, 2, 2)
    assert options.requirements == TaskRequirements(2)
    with pytest.raises(TypeError, match="gpus"):
        read_options({"gpus": True})


def test_requirements_of_other_types_are_told() -> None:
    with pytest.raises(TypeError, match=r"requirements: Expected `object`, got `array` - at `\$\.labels`"):
        read_options({"requirements": TaskRequirements(labels=["a"])})  # type: ignore[arg-type]


def test_defaults() -> None:
    request = read_request(add, (), {})
    assert request.spec.kind == f"{__name__}.add"
    assert request.spec.requirements == TaskRequirements()
    assert request.spec.after == []


def test_command() -> None:
    request = read_request(
        [Path("/usr/bin/env"), "x"], (), {"env": {"A": "1"}, "cwd": Path("/data"), "stdin": "text", "after": 5}
    )
    assert request.spec.payload == Command(["/usr/bin/env", "x"], {"A": "1"}, "/data", b"text")
    assert request.spec.kind == "env"
    assert request.spec.after == [5]
    assert request.argument == b""


def test_import_path() -> None:
    request = read_request("package.module:name", (1,), {})
    assert request.spec.payload == Call(path="package.module:name")
    assert request.spec.kind == "package.module.name"


def test_keyword_arguments_are_passed_as_they_are() -> None:
    lock = threading.Lock()
    assert read_options({"kwargs": {"lock": lock}}).kwargs["lock"] is lock


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"gpu": 1}, r"unknown option 'gpu': did you mean 'gpus'\?"),
        ({"prioritty": 1}, r"unknown option 'prioritty': did you mean 'priority'\?"),
        ({"zzz": 1}, r"unknown option 'zzz': valid are .*kwargs={...}"),
        ({"priority": "high"}, r"Expected `float`, got `str` - at `\$.priority`"),
        ({"gpus": "two"}, "min_gpus|Expected `float`"),
        ({"after": "12"}, "neither the id of a task nor its handle"),
        ({"after": [True]}, "neither the id of a task nor its handle"),
        ({"kwargs": [1]}, "kwargs must be a dict"),
        ({"kwargs": {1: 2}}, "kwargs must be a dict"),
        ({"on_report": 3}, "on_report must be callable"),
        ({"requirements": {"cpus": 1}}, "requirements must be TaskRequirements, not dict"),
        ({"requirements": TaskRequirements(), "cpus": 1}, "requirements and cpus cannot be given together"),
        ({"env": {}}, "'env' does not apply here"),
    ],
)
def test_unusable_option(given: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        read_request(add, (), given)


@pytest.mark.parametrize(
    "given",
    [
        {"cpus": -1},
        {"gpus": 1.5},
        {"timeout": 0},
        {"delay": -1},
        {"delay": float("nan")},
        {"retries": -1},
        {"memory_growth": 0.5},
    ],
)
def test_meaningless_amount(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        read_request(add, (), given)


@pytest.mark.parametrize(
    ("function", "args", "message"),
    [
        ("echo hello", (), "is not an import path"),
        (":name", (), "is not an import path"),
        ([], (), "submit takes a callable"),
        (7, (), "submit takes a callable"),
        (["echo", 1], (), "the words of a command are strings, not 1"),
        (["echo"], ("hello",), "a command takes no arguments"),
    ],
)
def test_unusable_function(function: object, args: tuple[Any, ...], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        read_request(function, args, {})


def test_command_options_do_not_apply_to_a_map() -> None:
    with pytest.raises(TypeError, match="'key' does not apply here"):
        read_options({"key": "k"}, without=NOT_OF_MAP)


def test_one_spec_for_each_function() -> None:
    specs = CallSpecs(Options(job="j"))
    assert specs.get(add) is specs.get(add)
    assert specs.get(add) is not specs.get(len)
    assert specs.get(add).job == "j"


def test_specs_of_closures_are_bounded() -> None:
    specs = CallSpecs(Options())

    def closure_of(value: int) -> Any:
        return lambda: value

    for value in range(3 * SPECS_KEPT_MAX):
        specs.get(closure_of(value))
        assert len(specs._by_data) <= SPECS_KEPT_MAX
