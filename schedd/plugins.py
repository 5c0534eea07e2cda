"""Policies of other distributions: entry points of the group `schedd.policies`, each a name and the class behind it.

What is installed is looked at only where somebody asks for a policy that is not built in, so that nobody else waits
for it. A class that cannot be used is refused here, with the distribution that it came from and what to do about it.
"""

from __future__ import annotations

import keyword
from typing import TYPE_CHECKING, Any

import msgspec

from schedd.core.policies import POLICIES
from schedd.core.policies.base import TaskScheduler
from schedd.errors import ConfigError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "schedd.policies"
#: The journal keeps what was learned by the name of who has; under this one, what the engine has.
RESERVED = "runtimes"


def registered() -> list[str]:
    """The names that installed distributions have registered, in order; whether they can be used is not known yet."""
    return sorted({entry.name for entry in _entries()})


def origin(name: str) -> str:
    """Which distribution registered a name, with its version; "": nobody has."""
    return " and ".join(_origin(entry) for entry in _entries(name))


def find(name: str) -> type[TaskScheduler] | None:
    """Load the policy that is registered under a name; None: there is none.

    Raises ConfigError for one that cannot be used, whatever is wrong with it.
    """
    entries = _entries(name)
    if not entries:
        return None
    entry = entries[0]
    if len(entries) > 1:
        raise ConfigError(f"the policy {name!r} is registered twice, by {origin(name)}", "uninstall one of them")
    if name in POLICIES or name == RESERVED:
        raise ConfigError(f"{_origin(entry)} registers {name!r}, which is built in", "it must choose another name")
    if not name.isidentifier() or keyword.iskeyword(name):
        raise ConfigError(f"{_origin(entry)} registers {name!r}, which cannot be a key", "letters, digits and _ can")
    try:
        found = entry.load()
    except Exception as error:
        raise ConfigError(
            f"the policy {name!r} of {_origin(entry)} cannot be loaded: {type(error).__name__}: {error}",
            f"python -c 'import {entry.module}' shows where it fails",
        ) from error
    problem = _problem(name, found)
    if problem:
        raise ConfigError(
            f"the policy {name!r} of {_origin(entry)} cannot be used: {entry.value} {problem}",
            "docs/own-policy.md says what a policy is made of; schedd.testing checks it",
        )
    policy: type[TaskScheduler] = found
    return policy


def _problem(name: str, found: Any) -> str:
    """What keeps a class from being a policy; "": nothing."""
    if not (isinstance(found, type) and issubclass(found, TaskScheduler)):
        return "is not a subclass of schedd.TaskScheduler"
    if missing := sorted(getattr(found, "__abstractmethods__", ())):
        return f"does not define {', '.join(missing)}"
    if getattr(found, "name", None) != name:
        return f"has the name {getattr(found, 'name', None)!r}, which must be the one that it is registered by"
    if not isinstance(getattr(found, "summary", None), str):
        return "has no summary, which is one line for `schedd policies`"
    params = getattr(found, "Params", None)
    if not (isinstance(params, type) and issubclass(params, msgspec.Struct)):
        return "has no Params, which is a msgspec.Struct of what can be set"
    if unset := [field.name for field in msgspec.structs.fields(params) if field.required]:
        return f"has Params without a default for {', '.join(unset)}"
    return ""


def _entries(name: str | None = None) -> list[EntryPoint]:
    from importlib.metadata import entry_points

    found = entry_points(group=GROUP) if name is None else entry_points(group=GROUP, name=name)
    return list(found)


def _origin(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else entry.value
