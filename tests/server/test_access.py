"""Who may ask what: every request and every role."""

from __future__ import annotations

import os
import pwd
import socket
from typing import Any, get_args

import msgspec
import pytest

from schedd.config import AuthSettings
from schedd.core.model import WorkerId, WorkerResources
from schedd.errors import ConfigError
from schedd.server import users
from schedd.server.access import LEAST_ROLE, Access, Credentials, Identity, credentials, may_ask, may_greet
from schedd.server.users import make_access, name_of
from schedd.wire import messages as m
from schedd.wire.auth import Role

REQUESTS: list[type[Any]] = list(get_args(m.ClientRequest))
READS = {"ListTasks", "ListJobs", "ListWorkers", "GetStats", "GetPolicy", "GetKinds", "ExplainTask", "WatchTasks",
         "ReadLog", "ListHistory", "ListEvents"}  # fmt: skip
CHANGES = {"Submit", "CancelTasks", "PreemptTasks", "HoldTasks", "ReleaseTasks", "SetTasks", "SetPriorities"}
#: What each role may ask for besides what nobody has thought of yet.
MAY = {Role.WORKER: set[str](), Role.READ_ONLY: READS, Role.CLIENT: READS | CHANGES}


def test_every_request_has_its_role() -> None:
    assert set(LEAST_ROLE) == set(REQUESTS)


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("kind", REQUESTS, ids=lambda kind: str(kind.__name__))
def test_every_request_of_every_role(kind: type[Any], role: Role) -> None:
    assert may_ask(Identity(role), kind) == (role is Role.ADMIN or kind.__name__ in MAY[role])


def test_request_that_is_in_no_table_is_for_administrators() -> None:
    assert [role for role in Role if may_ask(Identity(role), object)] == [Role.ADMIN]


def test_who_may_be_what() -> None:
    client = m.Hello(m.PROTOCOL, "", m.ClientHello())
    worker = m.Hello(m.PROTOCOL, "", m.WorkerHello(WorkerId("w"), "1", WorkerResources()))
    assert {role for role in Role if may_greet(Identity(role), client)} == {Role.CLIENT, Role.ADMIN, Role.READ_ONLY}
    assert {role for role in Role if may_greet(Identity(role), worker)} == {Role.WORKER, Role.ADMIN}


def test_whose_tasks_one_may_change() -> None:
    assert Identity(Role.ADMIN, "root").user is None
    assert Identity(Role.CLIENT, "alice").user == "alice"
    assert Identity(Role.CLIENT).user == ""


def test_users_of_this_machine() -> None:
    access = Access({0: "root", 5: "alice", 6: "bob", 7: "carol"}.__getitem__, frozenset({0, 5}), frozenset({50}))
    assert access.of_user(Credentials(0, frozenset())) == Identity(Role.ADMIN, "root")
    assert access.of_user(Credentials(5, frozenset({1}))) == Identity(Role.ADMIN, "alice")
    assert access.of_user(Credentials(6, frozenset({1, 50}))) == Identity(Role.ADMIN, "bob")
    assert access.of_user(Credentials(7, frozenset({1}))) == Identity(Role.CLIENT, "carol")
    assert access.of_user(None) is None


def test_kernel_says_who_is_at_the_other_end() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        found = credentials(ours)
    assert found is not None
    assert found.uid == os.geteuid()
    assert {os.getegid(), *os.getgroups()} <= found.gids


def test_kernel_says_nothing_of_tcp() -> None:
    with socket.socket(socket.AF_INET) as sock:
        found = credentials(sock)
    assert found is None or found.uid == 2**32 - 1  # nobody: no user has that number


def test_names_in_the_settings() -> None:
    access = make_access(AuthSettings(admins=["root", 12345], admin_groups=["root"]))
    assert access.of_user(Credentials(12345, frozenset())) == Identity(Role.ADMIN, "12345")
    other = access.of_user(Credentials(12346, frozenset({0})))
    assert other is not None
    assert other.role is Role.ADMIN
    assert name_of(0) == "root"


def test_name_that_cannot_be_looked_up_now_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory that is away, or no descriptor to ask it with."""
    monkeypatch.setattr(users, "_names", {})
    with monkeypatch.context() as away:
        away.setattr(pwd, "getpwuid", {}.__getitem__)
        assert name_of(0) == "0"
    assert name_of(0) == "root"


@pytest.mark.parametrize(("key", "word"), [("admins", "user"), ("admin_groups", "group")])
def test_name_that_is_nobodys(key: str, word: str) -> None:
    settings = msgspec.convert({key: ["no-such-name"]}, AuthSettings)
    with pytest.raises(ConfigError, match=f"auth.{key}: there is no {word} 'no-such-name'"):
        make_access(settings)
