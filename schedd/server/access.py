"""Who a peer is, and what it may ask.

A peer is known by the door that it came through: at the Unix socket the kernel says which user it is, at a port that
asks for tokens it proves one, and at an open port everybody is an administrator. What a role may ask is a table; that
tasks of others are left alone is the engine's business, which is told who asks.
"""

from __future__ import annotations

import secrets
import socket
import struct
from collections.abc import Callable, Mapping
from typing import Any

from msgspec import Struct

from schedd.wire import messages as m
from schedd.wire.auth import Role, Verifier

#: Linux's SO_PEERGROUPS, which Python does not name; and how much it takes for 256 groups, beyond which none count.
_SO_PEERGROUPS = 59
_GROUPS_BYTES = 1024
_UCRED = struct.Struct("iII")


class Identity(Struct, frozen=True):
    """Who a peer is. name: whose its tasks are; "": nobody's. token: the id of the token that it has proven."""

    role: Role
    name: str = ""
    token: str = ""

    @property
    def user(self) -> str | None:
        """Whose tasks it may change beside those that are nobody's; None: everybody's."""
        return None if self.role is Role.ADMIN else self.name


#: At a port where nobody has to say who they are.
ANYBODY = Identity(Role.ADMIN)

#: What a role needs to be for each request; a role may do what those before it may. A worker asks for nothing.
_RANKS = (Role.READ_ONLY, Role.CLIENT, Role.ADMIN)
LEAST_ROLE: dict[type[Any], Role] = {
    m.ListTasks: Role.READ_ONLY,
    m.ListJobs: Role.READ_ONLY,
    m.ListWorkers: Role.READ_ONLY,
    m.GetStats: Role.READ_ONLY,
    m.GetPolicy: Role.READ_ONLY,
    m.GetKinds: Role.READ_ONLY,
    m.ExplainTask: Role.READ_ONLY,
    m.WatchTasks: Role.READ_ONLY,
    m.ReadLog: Role.READ_ONLY,
    m.ListHistory: Role.READ_ONLY,
    m.ListEvents: Role.READ_ONLY,
    m.Submit: Role.CLIENT,
    m.CancelTasks: Role.CLIENT,
    m.PreemptTasks: Role.CLIENT,
    m.HoldTasks: Role.CLIENT,
    m.ReleaseTasks: Role.CLIENT,
    m.SetTasks: Role.CLIENT,
    m.SetPriorities: Role.CLIENT,
    m.DrainWorkers: Role.ADMIN,
    m.BackUp: Role.ADMIN,
    m.Reload: Role.ADMIN,
}


def _allowed(role: Role) -> frozenset[type[Any]]:
    if role not in _RANKS:
        return frozenset()
    return frozenset(kind for kind, least in LEAST_ROLE.items() if _RANKS.index(least) <= _RANKS.index(role))


_MAY = {role: _allowed(role) for role in Role}


def may_ask(identity: Identity, request: type[Any]) -> bool:
    """Whether a peer may ask for this at all. What is not in the table nobody may but an administrator."""
    return request in _MAY[identity.role] or identity.role is Role.ADMIN


def may_greet(identity: Identity, hello: m.Hello) -> bool:
    """Whether a peer may be what it says to be, a worker or a client."""
    if isinstance(hello.peer, m.WorkerHello):
        return identity.role in (Role.WORKER, Role.ADMIN)
    return identity.role is not Role.WORKER


class Door(Struct, frozen=True):
    """What a connection came through. binding: what proofs are bound to, see `wire.auth`; empty: no TLS."""

    is_local: bool = False
    asks_token: bool = False
    asks_certificate: bool = False
    binding: bytes = b""


OPEN = Door()


class Credentials(Struct, frozen=True):
    """Who is at the other end of a Unix socket, as the kernel says."""

    uid: int
    gids: frozenset[int]


def credentials(sock: socket.socket) -> Credentials | None:
    """Ask the kernel for the user at the other end of a Unix socket, as of its connect; None where it does not say."""
    try:
        _, uid, gid = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    except OSError:
        return None
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUPS_BYTES)
    except OSError:
        raw = b""
    return Credentials(uid, frozenset({gid, *(group for (group,) in struct.iter_unpack("I", raw))}))


class Access:
    """Knows the tokens, and which users of this machine are administrators.

    name_of: of a uid, for the owners of tasks. The tokens may be replaced at any time; see `Service.check_tokens`.
    """

    def __init__(
        self,
        name_of: Callable[[int], str] = str,
        admin_uids: frozenset[int] = frozenset(),
        admin_gids: frozenset[int] = frozenset(),
        nonce: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self.tokens: Mapping[str, Verifier] = {}
        self.nonce = nonce
        self._name_of = name_of
        self._admin_uids = admin_uids
        self._admin_gids = admin_gids

    def use(self, other: Access) -> None:
        """Know what another knows, from now on, for greetings too that are under way."""
        self.tokens, self._name_of = other.tokens, other._name_of
        self._admin_uids, self._admin_gids = other._admin_uids, other._admin_gids

    def of_user(self, user: Credentials | None) -> Identity | None:
        """The identity of a user of this machine; None: the kernel does not know one."""
        if user is None:
            return None
        is_admin = user.uid in self._admin_uids or not self._admin_gids.isdisjoint(user.gids)
        return Identity(Role.ADMIN if is_admin else Role.CLIENT, self._name_of(user.uid))

    def of_token(self, token_id: str) -> Identity | None:
        """The identity that a token gives; None: it is not known, or not any more."""
        found = self.tokens.get(token_id)
        return Identity(found.role, found.name, found.id) if found is not None else None
