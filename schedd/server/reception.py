"""Who is let in, and as whom: what becomes of a greeting, and which connection is that of which worker."""

from __future__ import annotations

from collections.abc import Callable

import schedd
from schedd.core.engine import Engine
from schedd.core.model import SECOND, WorkerId, WorkerStatus
from schedd.log import Log
from schedd.server import translate
from schedd.server.access import may_greet
from schedd.server.connections import Peer
from schedd.server.handshake import other_version
from schedd.server.loop import EngineLoop
from schedd.wire import messages as m
from schedd.wire.framing import FRAME_BYTES_MAX

log = Log("schedd.server")

#: Names of peers are at most this long, in characters.
NAME_MAX = 200
#: What the daemon may have to add to what a peer sent when it passes it on.
ENVELOPE_BYTES_MAX = 64 * 1024


class Reception:
    """Decides on greetings. The engine hears of each worker that is let in.

    replaced: hears of each that has come over another connection, while that of before seemed to be there.
    """

    def __init__(self, engine: Engine, loop: EngineLoop, replaced: Callable[[WorkerId], None]) -> None:
        self._engine = engine
        self._loop = loop
        self._replaced = replaced
        #: The connection of each worker that has one.
        self.workers: dict[WorkerId, Peer] = {}
        #: The newest greeting of each worker that is not gone: its incarnation and session.
        self._sessions: dict[WorkerId, tuple[str, int]] = {}

    def greet(self, peer: Peer, hello: m.Hello, policy: str) -> None:
        """Welcome or refuse a peer. policy: the name that it is told."""
        if (other := other_version(hello)) is not None:
            peer.refuse(other.code, other.message, other.hint)
        elif not may_greet(peer.identity, hello):
            self._forbid(peer, hello)
        elif isinstance(hello.peer, m.WorkerHello):
            self._greet_worker(peer, hello.peer, policy)
        elif isinstance(hello.peer, m.ClientHello):
            peer.name = f"{hello.peer.program[:NAME_MAX] or 'client'}@{peer.name}"
            self._welcome(peer, policy)

    def forget(self, worker_id: WorkerId, incarnation: str) -> None:
        """A worker is gone: what it says next is the first word of it."""
        if (session := self._sessions.get(worker_id)) is not None and session[0] == incarnation:
            del self._sessions[worker_id]

    @staticmethod
    def _forbid(peer: Peer, hello: m.Hello) -> None:
        who = peer.identity
        role = "worker" if isinstance(hello.peer, m.WorkerHello) else "client"
        log.warning("peer_denied", peer=peer.name, code=m.FORBIDDEN, role=who.role, name=who.name or None)
        text = f"{who.name or 'this peer'} has the role {who.role} here, with which it cannot be a {role}"
        peer.refuse(m.FORBIDDEN, text, f"use a token of the role {role}")

    def _greet_worker(self, peer: Peer, hello: m.WorkerHello, policy: str) -> None:
        name = hello.name
        if not name or len(name) > NAME_MAX or not name.isprintable():
            peer.refuse(m.BAD_REQUEST, f"a worker's name has 1 to {NAME_MAX} printable characters")
            return
        if self._is_late(hello):
            log.warning("late_greeting", worker=name, peer=peer.name, session=hello.session)
            peer.abort()
            return
        known = self.workers.get(name)
        is_other = known is not None and (known.incarnation, known.identity) != (hello.incarnation, peer.identity)
        if is_other and self._is_alive(name):
            peer.refuse(m.NAME_TAKEN, f"a worker named {name!r} is connected already", "give this one another --name")
            return
        if known is not None:
            known.worker_id = None  # the newer connection of the same worker counts
            known.abort()
            self._replaced(name)
        peer.worker_id, peer.incarnation = name, hello.incarnation
        self.workers[name] = peer
        self._sessions[name] = (hello.incarnation, hello.session)
        self._welcome(peer, policy)
        log.info(
            "worker_connected",
            worker=name,
            peer=peer.name,
            host=hello.host,
            pid=hello.pid,
            holds=len(hello.holds),
            user=peer.identity.name or None,
        )
        self._loop.post(translate.joined_event(hello))

    def _is_late(self, hello: m.WorkerHello) -> bool:
        """Whether a worker has given up this connection for a newer one: what it holds is not what it says here."""
        incarnation, session = self._sessions.get(hello.name, ("", 0))
        return incarnation == hello.incarnation and 0 < hello.session < session

    def _is_alive(self, worker_id: WorkerId) -> bool:
        row = self._engine.resources.workers.get(worker_id)
        return row is None or row.status != WorkerStatus.UNREACHABLE

    def _welcome(self, peer: Peer, policy: str) -> None:
        engine = self._engine
        interval_s, bytes_max = engine.heartbeat_ns() / SECOND, FRAME_BYTES_MAX - ENVELOPE_BYTES_MAX
        peer.welcome(m.Welcome(m.PROTOCOL, schedd.__version__, engine.epoch, policy, interval_s, bytes_max))
