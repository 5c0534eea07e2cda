"""The users of this machine: names and numbers, and which of them are administrators."""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Callable, Iterable
from typing import Any

from schedd.config import AuthSettings
from schedd.errors import ConfigError
from schedd.server.access import Access

#: Names that were found: a directory may be slow. Where none was, it may only be away.
_names: dict[int, str] = {}


def name_of(uid: int) -> str:
    """The login name of a user; the number, where there is no name."""
    name = _names.get(uid)
    if name is None:
        try:
            name = _names[uid] = pwd.getpwuid(uid).pw_name
        except KeyError:
            return str(uid)
    return name


def make_access(settings: AuthSettings) -> Access:
    """Who is an administrator at the Unix socket: root, the user of this process, and whom the settings name.

    Raises ConfigError for a name that does not exist.
    """
    uids = _numbers("auth.admins", settings.admins, lambda name: pwd.getpwnam(name).pw_uid)
    gids = _numbers("auth.admin_groups", settings.admin_groups, lambda name: grp.getgrnam(name).gr_gid)
    return Access(name_of, frozenset({0, os.geteuid(), *uids}), frozenset(gids))


def _numbers(key: str, names: Iterable[str | int], look_up: Callable[[str], Any]) -> list[int]:
    numbers: list[int] = []
    for name in names:
        try:
            numbers.append(name if isinstance(name, int) else look_up(name))
        except KeyError:
            word = "group" if key.endswith("groups") else "user"
            raise ConfigError(f"{key}: there is no {word} {name!r} on this machine") from None
    return numbers
