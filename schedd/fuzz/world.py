"""One daemon in a box: the real service, engine and journal rows, with nobody but liars and two honest peers around it.

The honest client asks, the honest worker runs one task and beats. Whatever the liars send, both are served, the tables
agree, and nothing is left that grows with what was sent.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import msgspec
from msgspec import structs

from schedd.assembly import engine_settings
from schedd.config import HeartbeatSettings, LimitsSettings, PolicySettings, Settings
from schedd.core.engine import Engine
from schedd.core.model import Call, HostUsage, TaskEntry, TaskRequirements, TaskSpec, WorkerId, WorkerResources
from schedd.core.policies import POLICIES
from schedd.server.access import OPEN, Access, Door
from schedd.server.connections import Peer
from schedd.server.service import Service
from schedd.sim.disk import Archive, Disk, Journal
from schedd.sim.kernel import Kernel, Process
from schedd.sim.violation import Violation, must
from schedd.wire import messages as m
from schedd.wire.auth import DIGEST_BYTES, ID_BYTES, NONCE_BYTES, SECRET_BYTES, Prover, Role, make_token, verifier_of
from schedd.wire.framing import PREFIX_BYTES, Body, FrameReader, encode_frame

#: The tables are small, so that every bound is met soon.
UNFINISHED_MAX = 200
FINISHED_MAX = 30
#: What one input may bring about, in steps of the kernel.
STEPS_MAX = 20_000
#: Connections of liars that are kept, of each kind.
LIARS_MAX = 3
#: The bystanders and the tables are looked at after so many inputs.
LOOK_EVERY = 100
#: The honest worker beats as often.
BEAT_S = 4.0
#: Bytes that a peer which does not read has in its socket.
DEAF_BUFFER_BYTES = 200_000

HONEST = WorkerId("honest")
#: Nobody else can run what the honest worker runs.
ONLY_HONEST = TaskRequirements(labels={"only": "honest"})
CLIENT_HELLO = msgspec.msgpack.encode(m.Hello(m.PROTOCOL, "fuzz", m.ClientHello("fuzz")))
#: What a guest sends is: bytes; a frame; the answer to a challenge; the proof in one; the greeting that was proven;
#: another; what it wants, once it is in. All before that is as it should be.
GUESTS = ("bytes", "frame", "proof", "forged", "greeting", "other greeting", "guest")
GUARDED = Door(asks_token=True, binding=b"certificate")
#: One of each role.
TOKENS = [make_token(role, bytes([n]) * (ID_BYTES + SECRET_BYTES)) for n, role in enumerate(Role)]


class End:
    """The daemon's end of a connection, with nothing behind it but a list of what came. deaf: the peer never reads."""

    def __init__(self, world: World, *, deaf: bool = False, listens: bool = False, door: Door = OPEN) -> None:
        self.protocol = Peer(world.service, door)
        self.is_over = False
        self.is_deaf = deaf
        self.answers: list[Any] = []
        self._world = world
        self._unread = 0
        self.is_paused = False
        self._waiting: list[bytes] = []
        self._reader = FrameReader() if listens else None
        self.decode: Callable[[Body], list[Any]] = m.decode_to_client
        self.protocol.connection_made(self)  # type: ignore[arg-type]

    def send(self, data: bytes) -> None:
        """Let bytes arrive at the daemon, at once or when it reads again."""
        if self.is_paused:
            self._waiting.append(data)
        elif not self.is_over:
            self.protocol.data_received(data)

    def frame(self, body: bytes) -> None:
        self.send(len(body).to_bytes(PREFIX_BYTES, "big") + body)

    def stop_listening(self) -> None:
        """What comes from now on is not looked at."""
        self._reader = None

    def hang_up(self) -> None:
        """The peer closes the connection."""
        self._end()

    # ------------------------------------------------------------------------------------------- asyncio.Transport

    def write(self, data: bytes) -> None:
        if self.is_deaf:
            self._unread += len(data)
            if self._unread > DEAF_BUFFER_BYTES and not self.protocol.is_paused:
                self.protocol.pause_writing()
        if self._reader is not None:
            for body in self._reader.feed(data):
                self.answers += self.decode(body)

    def writelines(self, parts: list[bytes]) -> None:
        self.write(b"".join(parts))

    def get_write_buffer_size(self) -> int:
        return self._unread

    def set_write_buffer_limits(self, high: int) -> None:
        """The limit is that of `DEAF_BUFFER_BYTES`."""

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False
        waiting, self._waiting = self._waiting, []
        for data in waiting:
            self._world.process.call_soon(self.send, data)

    def get_extra_info(self, name: str) -> Any:
        return ("192.0.2.1", 1) if name == "peername" else None

    def close(self) -> None:
        self._end()

    def abort(self) -> None:
        self._end()

    def _end(self) -> None:
        if not self.is_over:
            self.is_over = True
            self._world.process.call_soon(self.protocol.connection_lost, None)


class World:
    """The daemon and all who are connected to it. The seed says which policy it has, and the dice of the daemon."""

    def __init__(self, seed: int = 0) -> None:
        dice = random.Random(seed)
        policy = dice.choice(list(POLICIES))
        self.settings = Settings(
            policy=PolicySettings(name=policy),
            heartbeat=HeartbeatSettings(interval_s=5.0, lease_s=20.0, lost_after_s=40.0),
            limits=LimitsSettings(UNFINISHED_MAX, FINISHED_MAX, FINISHED_MAX, 0.01),
        )
        self.kernel = Kernel(seed)
        self.process = Process(self.kernel, "daemon")
        rules = structs.replace(engine_settings(self.settings), stealing=True)
        self.engine = Engine(self.settings.policy.build(), rules, random.Random(seed))
        self.service = Service(
            self.engine, self.process, self.settings, self._crashed, self.process, random.Random(seed)
        )
        disk = Disk()
        promises = self.service.promises
        self.journal = Journal(disk, self.process, promises.committed, promises.failing, lambda facts, ends: None)
        self.journal.load(FINISHED_MAX)
        promises.journal = self.journal
        self.service.past.archive = Archive(disk, self.process)
        self.inputs = 0
        self._asked = 0
        self.service.access = Access(nonce=self.kernel.random.randbytes)
        self.service.access.tokens = {token.id: verifier_of(token, f"the {token.role}") for token in TOKENS}
        self.clients: list[End] = []
        self.workers: list[End] = []
        self.strangers: list[End] = []
        self.guests: list[End] = []
        self.client = End(self, listens=True)
        self.worker = End(self, listens=True)
        self.worker.decode = m.decode_to_worker
        self._greet_honestly()

    @staticmethod
    def _crashed(error: BaseException) -> None:
        raise error

    def _greet_honestly(self) -> None:
        self.client.frame(msgspec.msgpack.encode(m.Hello(m.PROTOCOL, "fuzz", m.ClientHello("honest"))))
        self.worker.frame(worker_hello(HONEST, WorkerResources(cpus=4, labels={"only": "honest"})))
        spec = TaskSpec(Call(path="a:b"), requirements=ONLY_HONEST, job="honest")
        self.client.send(encode_frame([m.Submit(1, [spec], [TaskEntry(0)], True)]))
        self.settle()
        [dispatch] = [message for message in self.worker.answers if isinstance(message, m.Dispatch)]
        [attempt] = dispatch.attempts
        self.task_id = attempt.task_id
        self.worker.send(encode_frame([m.AttemptsStarted([m.AttemptStarted(self.task_id, attempt.attempt, 1)])]))
        self.settle()

    # ---------------------------------------------------------------------------------------------- what liars may do

    def from_client(self, body: bytes, *, deaf: bool = False) -> None:
        """A client that was welcomed sends a frame."""
        end = self._welcomed(self.clients, CLIENT_HELLO, deaf)
        end.frame(body)
        self._after_input()

    def from_worker(self, body: bytes) -> None:
        """A worker that was welcomed sends a frame; it fits for everything but what the honest one runs."""
        resources = WorkerResources(cpus=8, ram_gb=64, num_gpus=2, gpu_memory_gb=80, custom={"a": 9})
        end = self._welcomed(self.workers, worker_hello(WorkerId(f"liar{self.inputs}"), resources), deaf=False)
        end.frame(body)
        self._after_input()

    def from_stranger(self, data: bytes, *, greets: bool) -> None:
        """Somebody connects and sends bytes, or (`greets`) a first frame with this body. It stays for a while."""
        end = End(self)
        if greets:
            end.frame(data)
        else:
            end.send(data)
        self._after_input()
        if not end.is_over and end.protocol.worker_id is not None:
            _keep(self.workers, end)
        else:
            _keep(self.strangers, end)

    def from_guest(self, data: bytes) -> None:
        """Somebody comes to a door that asks for a token. The first bytes say which token, and how far it is honest."""
        how, token, body = data[0] % len(GUESTS), TOKENS[data[1] % len(TOKENS)], data[2:]
        end = End(self, listens=True, door=GUARDED)
        hello = worker_hello(WorkerId("guest"), WorkerResources()) if token.role is Role.WORKER else CLIENT_HELLO
        submitted = self.engine.counters.submitted
        if GUESTS[how] == "bytes":
            end.send(body)
        elif GUESTS[how] == "frame":
            end.frame(body)
        else:
            prover = Prover(token, GUARDED.binding, b"n" * NONCE_BYTES)
            end.frame(msgspec.msgpack.encode(prover.knock("fuzz")))
            self.settle()
            challenge = end.answers.pop()
            end.stop_listening()
            if GUESTS[how] == "proof":
                end.frame(body)
            elif GUESTS[how] == "forged":
                end.frame(msgspec.msgpack.encode(m.Proof(body[:DIGEST_BYTES], sha256(hello).digest())))
                end.frame(hello)
            else:
                about = body if GUESTS[how] == "greeting" else hello
                end.frame(msgspec.msgpack.encode(prover.prove(challenge, about)))
                end.frame(body if GUESTS[how] == "other greeting" else about)
            if GUESTS[how] == "guest":
                end.frame(body)
        self._after_input()
        may_be_in = GUESTS[how] in ("greeting", "guest") or (GUESTS[how] == "other greeting" and body == hello)
        must(may_be_in or not end.protocol.is_welcomed, "let in without a proof")
        may_submit = token.role in (Role.CLIENT, Role.ADMIN)
        must(may_submit or self.engine.counters.submitted == submitted, f"{token.role} has submitted")
        if not end.is_over:
            _keep(self.guests, end)

    def pass_time(self, seconds: float) -> None:
        """Let time pass, in which the honest worker beats."""
        while seconds > 0:
            part = min(seconds, BEAT_S)
            self.worker.send(encode_frame([m.Heartbeat(HostUsage())]))
            self.settle(part)
            seconds -= part
        self._after_input()

    def hang_up(self) -> None:
        """One of the liars goes away."""
        for ends in (self.clients, self.workers, self.strangers, self.guests):
            if ends:
                ends.pop(0).hang_up()
                break
        self._after_input()

    def _welcomed(self, ends: list[End], hello: bytes, deaf: bool) -> End:
        ends[:] = [end for end in ends if not end.is_over]
        fitting = [end for end in ends if end.is_deaf == deaf]
        if fitting:
            return fitting[self.inputs % len(fitting)]
        end = End(self, deaf=deaf)
        end.frame(hello)
        self.settle()
        _keep(ends, end)
        return end

    def _after_input(self) -> None:
        self.inputs += 1
        self.settle()
        if not self.inputs % LOOK_EVERY:
            self.look()

    # ------------------------------------------------------------------------------------------------------ the rest

    def settle(self, seconds: float = 0.0) -> None:
        """Let everything happen that is due within so many seconds. Raises Violation where it does not come to rest."""
        kernel = self.kernel
        if seconds:
            arrived: list[bool] = []
            kernel.call_in(seconds, arrived.append, True)
            before = kernel.steps
            while not arrived:
                kernel.step()
                must(kernel.steps - before < STEPS_MAX, "the daemon is never done")
        must(kernel.rest(STEPS_MAX), "the daemon does not come to rest")

    def look(self) -> None:
        """Look whether the honest are served, the tables agree and nothing has grown. Raises Violation."""
        self._asked += 1
        number = 1000 + self._asked
        self.client.send(encode_frame([m.GetStats(number)]))
        self.worker.send(encode_frame([m.Heartbeat(HostUsage())]))
        self.settle()
        must(not self.client.is_over, "the honest client was cut off")
        must(not self.worker.is_over, "the honest worker was cut off")
        must(any(isinstance(a, m.Stats) and a.request == number for a in self.client.answers), "no answer")
        must(any(isinstance(a, m.HeartbeatReply) for a in self.worker.answers), "the heartbeat was not answered")
        self.client.answers.clear()
        self.worker.answers.clear()
        try:
            self.engine.check()
        except AssertionError as error:
            raise Violation(f"the tables disagree: {error}") from error
        self._look_at_sizes()

    def _look_at_sizes(self) -> None:
        service, engine = self.service, self.engine
        connections = 2 + len(self.clients) + len(self.workers) + len(self.strangers) + len(self.guests)
        must(service.connection_count <= connections + 1, "connections are not forgotten")
        must(len(engine.tasks.rows) <= UNFINISHED_MAX + FINISHED_MAX * 2 + 1, "rows beyond the limits")
        left = {
            "promises": service.promises.pending_count,
            "origins": len(service._origins),
            "acknowledgements": 0 if engine.is_putting_off else len(service._acks),
            "inbox": len(service.loop._inbox),
            "under way": len(service._under_way),
            "not taken in": sum(peer.has_more for peer in service._peers if not peer.is_paused),
            "never done": sum(peer.under_way for peer in service._peers if not peer.is_paused),
        }
        must(not any(left.values()), f"left at rest: {left}")

    def is_honest_task_running(self) -> bool:
        """Whether the honest worker still has its task."""
        task = self.engine.tasks.get(self.task_id)
        return task is not None and task.worker_id == HONEST and task.state.name == "running"


def _keep(ends: list[End], end: End) -> None:
    """Keep a connection; the oldest goes where there are too many."""
    ends.append(end)
    if len(ends) > LIARS_MAX:
        ends.pop(0).hang_up()


def worker_hello(name: WorkerId, resources: WorkerResources) -> bytes:
    """The body of a worker's first frame."""
    return msgspec.msgpack.encode(m.Hello(m.PROTOCOL, "fuzz", m.WorkerHello(name, f"{name}-1", resources)))
