"""The service: who is connected, what they ask, and where the effects of a turn go."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Set
from functools import partial
from itertools import count, zip_longest
from typing import Any, TypeVar

import schedd
from schedd.address import Address
from schedd.config import Settings
from schedd.core import effects as fx
from schedd.core.engine import Engine
from schedd.core.events import Event, WorkerDisconnected, WorkerHeard
from schedd.core.model import SECOND, Assigned, Instant, Queued, Running, Task, TaskId, WorkerId, WorkerStatus
from schedd.core.tasks import RESULT_DROPPED, is_meant
from schedd.errors import ConfigError
from schedd.journal.records import FinishedTask, finished_row
from schedd.log import Log
from schedd.server import translate
from schedd.server.access import Access, may_ask, may_greet
from schedd.server.arrivals import Arrivals
from schedd.server.connections import Peer, Traffic
from schedd.server.durable import Promise, Promises
from schedd.server.following import Following
from schedd.server.handshake import other_version
from schedd.server.holding import Holding
from schedd.server.lag import LagProbe
from schedd.server.loop import EngineLoop, tasks_named
from schedd.server.meter import Meter
from schedd.server.ports import Archive, Clock, Reactor, Reloaded
from schedd.server.recording import Recorder
from schedd.server.watching import Listener, Watchers
from schedd.wire import messages as m
from schedd.wire.framing import FRAME_BYTES_MAX

log = Log("schedd.server")

#: A listing answers with at most so many tasks at a time, however many were asked for.
LIST_LIMIT_MAX = 5000
#: Rows that a reader looks at before others have their turn: some 10 ms of the loop's time.
ROWS_PER_READ_MAX = 10_000
#: And one read of output with at most so many bytes.
LOG_BYTES_MAX = 1024 * 1024
#: Reads of output by one client that workers have not answered yet.
LOG_READS_MAX = 1000
#: The largest reports that the engine lets through make 33 MiB together.
REPORTS_PER_MESSAGE_MAX = 1000
#: What the daemon may have to add to what a peer sent when it passes it on.
ENVELOPE_BYTES_MAX = 64 * 1024
#: A heartbeat is asked for after the interval times a random factor between these, or up to a slot before, so that it
#: comes at one of so many instants of an interval: those that come together share a turn, and the daemon wakes less.
HEARTBEAT_STAGGER = (0.82, 1.0)
HEARTBEAT_SLOTS = 50
#: Results, and bytes of them, that are read from the journal for a watcher in one go.
FETCHED_TOGETHER_MAX = 100
FETCHED_BYTES_MAX = 8 * 1024 * 1024
#: Names of peers are at most this long, in characters.
NAME_MAX = 200
#: Beliefs of kinds in one answer, some 100 bytes each.
KINDS_LISTED_MAX = 10_000
#: Tasks, workers and jobs that a question for events names.
EVENT_NAMES_MAX = 1000
#: With more tasks than this queued or under way the end of one may be on disk a moment later.
BUSY_ABOVE = 64

T = TypeVar("T")

#: A reader that stops after so many rows and goes on in a later turn.
Reading = Iterator[None]
OVER = object()


class Service:
    """Implements `Hub` for connections, and takes the effects of the engine's turns."""

    def __init__(
        self,
        engine: Engine,
        clock: Clock,
        settings: Settings,
        crashed: Callable[[BaseException], None],
        reactor: Reactor,
        rng: random.Random,
    ) -> None:
        self.engine = engine
        self.clock = clock
        self.settings = settings
        self.address: Address | None = None
        self.access = Access()
        self.arrivals = Arrivals()
        self.use(settings)
        self.reactor = reactor
        self._rng = rng
        self.loop = EngineLoop(engine, clock, self._outward, self._flush, crashed, reactor)
        self.lag = LagProbe(lambda: clock.now_ns() / SECOND, reactor.call_later)
        self.started_ns = clock.now_ns()
        self.traffic = Traffic()
        #: Set where somebody wants to know what it counts.
        self.meter: Meter | None = None
        self.stopping = False
        self._peers: dict[Peer, None] = {}
        self._workers: dict[WorkerId, Peer] = {}
        #: Workers that the next start will wait for. What others are to be told is kept back until they are among them:
        #: else that start would give to somebody else what they run.
        self._on_record: set[WorkerId] = set()
        #: The newest greeting of each worker that is not gone: its incarnation and session.
        self._sessions: dict[WorkerId, tuple[str, int]] = {}
        self._watchers = Watchers()
        self._dirty: list[Peer] = []
        self.promises = Promises(self._flush, reactor, self._on_failing)
        self._holding = Holding()
        self._following = Following(reactor, self._with_jobs)
        self.promises.on_written = self._following.written
        #: Set where there is a journal.
        self.archive: Archive | None = None
        #: Set where there is a file to be read again; tells what came of it.
        self.reload: Callable[[Callable[[Reloaded | ConfigError], None]], None] | None = None
        #: Ends that workers told, to be acknowledged when they are on disk; first the number of the event.
        self._acks: deque[tuple[int, Peer, int]] = deque()
        #: What was taken in: the number of the event, of whom, and how many tasks it names; and who may take in more.
        self._under_way: deque[tuple[int, Peer, int]] = deque()
        self._with_room: dict[Peer, None] = {}
        #: Ends to be told that are on disk only, or whose results are.
        self._on_disk: dict[Peer, list[TaskId]] = {}
        #: Tasks whose end is not on disk yet: nobody may be told.
        self._untold: set[TaskId] = set()
        #: Rows of which watchers hear in this pass; the table may have forgotten them.
        self._fresh: dict[TaskId, Task] = {}
        self._numbers = count(1)
        #: Requests whose answer comes out of the engine: the peer, its number, and what to do with a `Submitted`.
        self._origins: dict[int, tuple[Peer, int, bool]] = {}
        #: Reads of output that a worker was asked for.
        self._log_reads: dict[int, tuple[Peer, int, int, WorkerId]] = {}
        self._readers: dict[type[Any], Callable[[Peer, Any], Reading | None]] = {
            m.ListTasks: self._list_tasks,
            m.ListJobs: self._list_jobs,
            m.ListWorkers: self._list_workers,
            m.GetStats: self._stats,
            m.GetPolicy: self._policy,
            m.GetKinds: self._kinds,
            m.ExplainTask: self._explain,
            m.WatchTasks: self._watch,
            m.ReadLog: self._read_log,
            m.ListHistory: self._history,
            m.BackUp: self._back_up,
            m.ListEvents: self._events,
            m.Reload: self._reload,
        }

    def use(self, settings: Settings) -> None:
        """Bear of the peers what these settings say, from now on."""
        self.settings = settings
        self.outbox_bytes_max = int(settings.server.outbox_mb_max * 1024 * 1024)
        self.handshake_timeout_s = settings.server.handshake_timeout_s
        self._recorder = Recorder(settings.log.attempts_per_s)
        self.arrivals.bound(settings.auth.unproven_max, settings.auth.unproven_per_address_max)

    def set_pace(self) -> None:
        """Tell all workers how often to report, where that has changed."""
        for peer in self._workers.values():
            self._answer_heartbeat(peer)

    # ---------------------------------------------------------------------------------------------------- connections

    def opened(self, peer: Peer) -> bool:
        self._peers[peer] = None
        return len(self._peers) <= self.settings.server.connections_max

    def closed(self, peer: Peer) -> None:
        self._peers.pop(peer, None)
        self._holding.forget(peer)
        self._following.forget(peer)
        for watch in peer.watches:
            watch.peer = None
        for number in peer.log_reads:
            del self._log_reads[number]
        worker_id = peer.worker_id
        if worker_id is not None and self._workers.get(worker_id) is peer:
            del self._workers[worker_id]
            log.warning("worker_disconnected", worker=worker_id, peer=peer.name)
            self.loop.post(WorkerDisconnected(worker_id))
            self._fail_log_reads(worker_id)

    def greeted(self, peer: Peer, hello: m.Hello) -> None:
        if self.stopping:
            peer.refuse(m.SHUTTING_DOWN, "the daemon is stopping")
        elif (other := other_version(hello)) is not None:
            peer.refuse(other.code, other.message, other.hint)
        elif not may_greet(peer.identity, hello):
            self._forbid_greeting(peer, hello)
        elif isinstance(hello.peer, m.WorkerHello):
            self._greet_worker(peer, hello.peer)
        elif isinstance(hello.peer, m.ClientHello):
            peer.name = f"{hello.peer.program[:NAME_MAX] or 'client'}@{peer.name}"
            self._welcome(peer)

    def _forbid_greeting(self, peer: Peer, hello: m.Hello) -> None:
        who = peer.identity
        is_worker = isinstance(hello.peer, m.WorkerHello)
        log.warning("peer_denied", peer=peer.name, code=m.FORBIDDEN, role=who.role, name=who.name or None)
        peer.refuse(
            m.FORBIDDEN,
            f"{who.name or 'this peer'} has the role {who.role} here, with which it cannot be a "
            f"{'worker' if is_worker else 'client'}",
            f"use a token of the role {'worker' if is_worker else 'client'}",
        )

    def check_tokens(self) -> int:
        """Close the connections of tokens that are not valid any more, or mean something else now. Returns how many."""
        gone = [p for p in self._peers if p.identity.token and self.access.of_token(p.identity.token) != p.identity]
        for peer in gone:
            log.warning("token_revoked", token=peer.identity.token, peer=peer.name, worker=peer.worker_id)
            peer.refuse(m.TOKEN_REVOKED, "the token of this connection was revoked or changed", "ask for another")
        return len(gone)

    def _greet_worker(self, peer: Peer, hello: m.WorkerHello) -> None:
        name = hello.name
        if not name or len(name) > NAME_MAX or not name.isprintable():
            peer.refuse(m.BAD_REQUEST, f"a worker's name has 1 to {NAME_MAX} printable characters")
            return
        if self._is_late(hello):
            log.warning("late_greeting", worker=name, peer=peer.name, session=hello.session)
            peer.abort()
            return
        known = self._workers.get(name)
        is_other = known is not None and (known.incarnation, known.identity) != (hello.incarnation, peer.identity)
        if is_other and self._alive(name):
            peer.refuse(m.NAME_TAKEN, f"a worker named {name!r} is connected already", "give this one another --name")
            return
        if known is not None:
            known.worker_id = None  # the newer connection of the same worker counts
            known.abort()
        peer.worker_id, peer.incarnation = name, hello.incarnation
        self._workers[name] = peer
        self._sessions[name] = (hello.incarnation, hello.session)
        self._welcome(peer)
        log.info(
            "worker_connected",
            worker=name,
            peer=peer.name,
            host=hello.host,
            pid=hello.pid,
            holds=len(hello.holds),
            user=peer.identity.name or None,
        )
        self.loop.post(translate.joined_event(hello))

    def _is_late(self, hello: m.WorkerHello) -> bool:
        """Whether a worker has given up this connection for a newer one: what it holds is not what it says here."""
        incarnation, session = self._sessions.get(hello.name, ("", 0))
        return incarnation == hello.incarnation and 0 < hello.session < session

    def _alive(self, worker_id: WorkerId) -> bool:
        row = self.engine.resources.workers.get(worker_id)
        return row is None or row.status != WorkerStatus.UNREACHABLE

    def _welcome(self, peer: Peer) -> None:
        engine, name = self.engine, self.settings.policy.name
        interval_s, bytes_max = engine.heartbeat_ns() / SECOND, FRAME_BYTES_MAX - ENVELOPE_BYTES_MAX
        peer.welcome(m.Welcome(m.PROTOCOL, schedd.__version__, engine.epoch, name, interval_s, bytes_max))

    def decoded(self, peer: Peer, body: bytes) -> list[Any]:
        return m.decode_from_worker(body) if peer.worker_id is not None else m.decode_from_client(body)

    def received(self, peer: Peer, message: Any) -> None:
        if peer.worker_id is not None:
            self._from_worker(peer, peer.worker_id, message)
        else:
            self._from_client(peer, message)

    def _post(self, peer: Peer, event: Event) -> int:
        """Post what a peer said; it is under way until the event has been handled."""
        number, weight = self.loop.post(event), tasks_named(event)
        peer.under_way += weight
        self._under_way.append((number, peer, weight))
        return number

    def _settle(self) -> None:
        """Have peers take in more, whose messages have had their turn."""
        while self._under_way and self._under_way[0][0] <= self.loop.handled:
            _, peer, weight = self._under_way.popleft()
            self._done(peer, weight)
        peers, self._with_room = self._with_room, {}
        for peer in peers:
            peer.take_in()

    def _done(self, peer: Peer, weight: int = 1) -> None:
        peer.under_way -= weight
        if peer.has_more:
            self._with_room[peer] = None
            self.loop.wake()

    def heard(self, worker_id: WorkerId) -> None:
        self.loop.post(WorkerHeard(worker_id))

    def has_output(self, peer: Peer) -> None:
        self._dirty.append(peer)
        self.loop.wake()

    def close_all(self) -> None:
        """Tell everybody that the daemon stops, and close their connections."""
        for peer in list(self._peers):
            peer.refuse(m.SHUTTING_DOWN, "the daemon is stopping")

    @property
    def connection_count(self) -> int:
        return len(self._peers)

    @property
    def not_ready(self) -> str:
        """Why no submit is taken now; "": they are."""
        if self.stopping:
            return "the daemon is stopping"
        if self.address is None:
            return "the journal is being restored"
        return f"the journal cannot be written: {self.promises.failure}" if self.promises.failure else ""

    @property
    def worker_connection_count(self) -> int:
        return len(self._workers)

    # ---------------------------------------------------------------------------------------------------- from workers

    def _from_worker(self, peer: Peer, worker_id: WorkerId, message: m.FromWorker) -> None:
        number = 0
        for event in translate.worker_events(worker_id, message):
            number = self._post(peer, event)
        if isinstance(message, m.AttemptsFinished):
            self._acks.append((number, peer, message.seq))
        elif isinstance(message, m.Heartbeat):
            self._answer_heartbeat(peer)
        elif isinstance(message, m.LogPiece):
            self._log_piece(worker_id, message)
        elif isinstance(message, m.WorkerGoodbye):
            self._workers.pop(worker_id, None)
            self._fail_log_reads(worker_id)
            peer.worker_id = None
            peer.close()

    def _answer_heartbeat(self, peer: Peer) -> None:
        peer.send(m.HeartbeatReply(self._next_heartbeat_s()))

    def _next_heartbeat_s(self) -> float:
        """When a worker is to report again, from now on.

        Staggered, or a whole cluster that came back together would report together for ever.
        """
        interval, now = self.engine.heartbeat_ns(), self.clock.now_ns()
        due = now + int(self._rng.uniform(*HEARTBEAT_STAGGER) * interval)
        return (due - due % max(1, interval // HEARTBEAT_SLOTS) - now) / SECOND

    # ---------------------------------------------------------------------------------------------------- from clients

    def _from_client(self, peer: Peer, request: m.ClientRequest) -> None:
        if not may_ask(peer.identity, type(request)):
            who = peer.identity
            text = f"{who.name or 'this client'} has the role {who.role}, which does not allow {type(request).__name__}"
            peer.send(m.RequestFailed(request.request, m.FORBIDDEN, text, "ask an administrator of the daemon"))
            return
        reader = self._readers.get(type(request))
        if reader is not None:
            peer.under_way += 1
            self.loop.ask(lambda: self._answer(peer, request, reader), peer)
            return
        if isinstance(request, m.Submit) and self.promises.failure:
            text = f"the journal cannot be written: {self.promises.failure}"
            hint = "make room on the disk of the daemon; it recovers by itself"
            peer.send(m.RequestFailed(request.request, m.JOURNAL_FAILING, text, hint))
            return
        origin = next(self._numbers)
        event = translate.request_event(request, origin, peer.identity.name, peer.identity.user)
        if event is None:
            peer.send(m.RequestFailed(request.request, m.BAD_REQUEST, f"{type(request).__name__} has no meaning here"))
            return
        self._origins[origin] = (peer, request.request, isinstance(request, m.Submit) and request.watch)
        self._post(peer, event)

    def _answer(self, peer: Peer, request: Any, reader: Callable[[Peer, Any], Reading | None]) -> None:
        if peer.is_paused:
            peer.put_off(lambda: self.loop.ask(lambda: self._answer(peer, request, reader), peer))
        elif not peer.is_closing:
            reading = reader(peer, request)
            if reading is not None:
                self._go_on(peer, reading, self._done)
            else:
                self._done(peer)

    def _go_on(self, peer: Peer, reading: Reading, done: Callable[[Peer], None] = lambda peer: None) -> None:
        """Let a reader that looks at many rows work on; what it leaves is for a later turn."""
        if not peer.is_closing and next(reading, OVER) is not OVER:
            self.loop.ask(lambda: self._go_on(peer, reading, done), peer)
        else:
            done(peer)

    def _list_tasks(self, peer: Peer, request: m.ListTasks) -> Reading:
        limit = min(max(1, request.limit), LIST_LIMIT_MAX)
        selection = request.selection
        unknown = [i for i in selection.ids if self.engine.tasks.get(i) is None]
        if unknown and self._may_be_on_disk(unknown[0]):
            self._list_from_disk(peer, request, limit)
            return
        if unknown and len(selection.ids) == len(unknown):
            self._unknown(peer, request.request, unknown[0])
            return
        rows: list[Task] = []
        more = False
        for looked, (_, task) in enumerate(self.engine.tasks.look(selection, request.after_id), 1):
            if task is not None:
                more = len(rows) == limit
                if more:
                    break
                rows.append(task)
            if not looked % ROWS_PER_READ_MAX:
                yield
        self._send_list(peer, request, rows, more)

    def _send_list(self, peer: Peer, request: m.ListTasks, rows: list[Task], more: bool) -> None:
        promotes = self.engine.policy.promotes
        if not request.detail:
            peer.send(m.TaskList(request.request, [translate.task_view(task, promotes) for task in rows], [], more))
            return

        def answer(results: dict[TaskId, bytes]) -> None:
            details = [translate.task_detail(self.engine, task, results.get(task.id)) for task in rows]
            peer.send(
                m.TaskList(request.request, [translate.task_view(task, promotes) for task in rows], details, more)
            )

        self._fetch_results(peer, request.request, rows, answer)

    def _list_from_disk(self, peer: Peer, request: m.ListTasks, limit: int) -> None:
        """List tasks by their ids, of which some have ended and been forgotten: these are in the journal."""
        selection = request.selection
        ids = [i for i in sorted(set(selection.ids)) if i > request.after_id]

        def answer(rows: dict[TaskId, Task]) -> None:
            if not rows:
                self._unknown(peer, request.request, ids[0] if ids else selection.ids[0])
                return
            meant = [rows[i] for i in ids if i in rows and is_meant(rows[i], selection)]
            self._send_list(peer, request, meant[:limit], len(meant) > limit)

        self._with_rows(peer, request.request, ids, answer)

    def _unknown(self, peer: Peer, request: int, task_id: int) -> None:
        hint = "finished tasks are forgotten in time" if 0 < task_id < self.engine.tasks.next_id else ""
        peer.send(m.RequestFailed(request, m.UNKNOWN_TASK, f"there is no task {task_id}", hint))

    def _list_jobs(self, peer: Peer, request: m.ListJobs) -> Reading:
        views = []
        looked = 0
        for name in list(self.engine.tasks.jobs):
            job = self.engine.tasks.jobs.get(name)
            if job is not None:
                views.append(translate.job_view(self.engine, job))
                looked += views[-1].total
            if looked > ROWS_PER_READ_MAX:
                looked = 0
                yield
        peer.send(m.JobList(request.request, views))

    def _list_workers(self, peer: Peer, request: m.ListWorkers) -> None:
        now, engine = self.clock.now_ns(), self.engine
        views = [translate.worker_view(engine, worker, now) for worker in engine.resources]
        peer.send(m.WorkerList(request.request, views))

    def _stats(self, peer: Peer, request: m.GetStats) -> None:
        counters = self.engine.counters
        peer.send(
            m.Stats(
                request=request.request,
                version=schedd.__version__,
                policy=self.settings.policy.name,
                uptime_s=(self.clock.now_ns() - self.started_ns) / SECOND,
                address=str(self.address or ""),
                states=translate.state_counts(self.engine),
                workers=translate.worker_counts(self.engine),
                submitted_total=counters.submitted,
                finished_total=counters.finished,
                attempts_by_cause=dict(counters.by_cause),
                steals_total=counters.steals,
                stale_total=counters.stale,
                placements_total=counters.placements,
                loop_lag_s=self.loop.lag_ns / SECOND,
                connections=len(self._peers),
                loop_lag_max_s=self.lag.worst_s,
                loop_lag_recent_s=self.lag.recent_s,
                shadow=translate.shadow_view(self.engine),
            )
        )

    def _policy(self, peer: Peer, request: m.GetPolicy) -> None:
        peer.send(m.PolicyState(request.request, self.engine.policy.name, translate.steals_view(self.engine)))

    def _kinds(self, peer: Peer, request: m.GetKinds) -> None:
        newest = self.engine.believed()[::-1]
        limit = max(0, min(request.limit, KINDS_LISTED_MAX))
        peer.send(m.Kinds(request.request, self.engine.policy.name, newest[:limit]))

    def _explain(self, peer: Peer, request: m.ExplainTask) -> None:
        task = self.engine.tasks.get(request.task_id)
        if task is None:
            self._unknown(peer, request.request, request.task_id)
            return
        why = self.engine.explain(task)
        peer.send(
            m.Explanation(request.request, task.id, task.state.name, why.summary, why.blockers, why.workers, why.ahead)
        )

    def _watch(self, peer: Peer, request: m.WatchTasks) -> Reading:
        selection = request.selection
        if request.again:
            self._watch_again(peer, request)
            return
        if selection.job and selection.job not in self.engine.tasks.jobs and not selection.ids:
            peer.send(m.RequestFailed(request.request, m.UNKNOWN_JOB, f"there is no job {selection.job!r}"))
            return
        unknown = [i for i in selection.ids if self.engine.tasks.get(i) is None]
        if unknown and self._may_be_on_disk(unknown[0]):
            self._watch_from_disk(peer, request, unknown)
        elif unknown:
            self._unknown(peer, request.request, unknown[0])
        else:
            yield from self._watch_rows(peer, request)

    def _watch_from_disk(self, peer: Peer, request: m.WatchTasks, forgotten: list[TaskId]) -> None:
        """Watch tasks of which some have ended and been forgotten: their ends are told from the journal."""

        def answer(rows: dict[TaskId, Task]) -> None:
            missing = next((i for i in forgotten if i not in rows), None)
            if missing is not None:
                self._unknown(peer, request.request, missing)
            else:
                self._go_on(peer, self._watch_rows(peer, request, set(forgotten)))

        self._with_rows(peer, request.request, forgotten, answer)

    def _watch_rows(self, peer: Peer, request: m.WatchTasks, forgotten: Set[TaskId] = frozenset()) -> Reading:
        selection = request.selection
        watch = peer.watch(request.results, request.reports)
        total = finished = 0
        ids: list[TaskId] = []
        for looked, (task_id, task) in enumerate(self.engine.tasks.look(selection), 1):
            if request.named and (task is not None or task_id in forgotten):
                ids.append(task_id)
            if task is None and task_id in forgotten:
                total += 1
                finished += 1
                peer.send_done(task_id, request.results)
            elif task is not None:
                total += 1
                if self._is_told(task):
                    finished += 1
                    peer.send_done(task.id, request.results)
                else:
                    self._watchers.add(task.id, watch)
            if not looked % ROWS_PER_READ_MAX:
                yield
        peer.send(m.Watching(request.request, total, finished, ids))

    def _watch_again(self, peer: Peer, request: m.WatchTasks) -> None:
        """Go on with the watch of a connection that was lost: what became of its tasks meanwhile is told."""
        watch = peer.watch(request.results, request.reports)
        finished = 0
        forgotten: dict[TaskId, Instant] = {}
        for task_id, submitted_ns in zip_longest(request.selection.ids, request.submitted_ns, fillvalue=0):
            task = self.engine.tasks.get(TaskId(task_id))
            if task is None or submitted_ns not in (0, task.submitted_ns):
                forgotten[TaskId(task_id)] = submitted_ns
            elif self._is_told(task):
                finished += 1
                peer.send_done(task.id, request.results)
            else:
                self._watchers.add(task.id, watch)

        def answer(rows: dict[TaskId, Task]) -> None:
            unknown = []
            for task_id, submitted_ns in forgotten.items():
                row = rows.get(task_id)
                if row is not None and submitted_ns in (0, row.submitted_ns):
                    peer.send_done(task_id, request.results)
                else:
                    unknown.append(task_id)
            total = len(request.selection.ids) - len(unknown)
            peer.send(m.Watching(request.request, total, finished + len(forgotten) - len(unknown), unknown=unknown))

        if forgotten and self.archive is not None:
            self._with_rows(peer, request.request, list(forgotten), answer)
        else:
            answer({})

    # ---------------------------------------------------------------------------------------- what the journal knows

    def _history(self, peer: Peer, request: m.ListHistory) -> None:
        self._ask_archive(peer, request.request, lambda archive: archive.history(request), peer.send)

    def _back_up(self, peer: Peer, request: m.BackUp) -> None:
        self._ask_archive(peer, request.request, lambda archive: archive.back_up(request), peer.send)

    def _events(self, peer: Peer, request: m.ListEvents) -> None:
        named = max(len(names) for names in (request.types, request.tasks, request.workers, request.jobs))
        if named > EVENT_NAMES_MAX:
            text = f"events of {named} at a time were asked for, the bound is {EVENT_NAMES_MAX}"
            peer.send(m.RequestFailed(request.request, m.TOO_LARGE, text))
        elif self.archive is None:
            self._no_journal(peer, request.request)
        else:
            self._following.ask(self.archive, peer, request)

    def _with_jobs(
        self, peer: Peer, request: int, ids: list[TaskId], answer: Callable[[dict[TaskId, str]], None]
    ) -> None:
        """Give `answer` the jobs of these tasks, as far as they are known."""
        self._with_rows(peer, request, ids, lambda rows: answer({i: task.job for i, task in rows.items()}))

    @staticmethod
    def _no_journal(peer: Peer, request: int) -> None:
        hint = "set journal.enabled = true in config.toml"
        peer.send(m.RequestFailed(request, m.NO_JOURNAL, "this daemon keeps no journal", hint))

    def _reload(self, peer: Peer, request: m.Reload) -> None:
        if self.reload is None:
            text, hint = "this daemon was started without a settings file", "start it with --config FILE"
            peer.send(m.RequestFailed(request.request, m.BAD_CONFIG, text, hint))
            return

        def answer(outcome: Reloaded | ConfigError) -> None:
            if isinstance(outcome, ConfigError):
                peer.send(m.RequestFailed(request.request, m.BAD_CONFIG, outcome.message, outcome.hint))
            else:
                peer.send(m.Reloaded(request.request, outcome.changed, outcome.needs_restart))

        self.reload(answer)

    def _ask_archive(
        self, peer: Peer, request: int, question: Callable[[Archive], T], answer: Callable[[T], None]
    ) -> None:
        """Give `answer` what the archive says, once it knows all that has happened so far."""
        archive = self.archive
        if archive is None:
            self._no_journal(peer, request)
            return

        def answered(said: T) -> None:
            self._done(peer)
            answer(said)

        def failed(message: str, hint: str) -> None:
            self._done(peer)
            peer.send(m.RequestFailed(request, m.JOURNAL_FAILING, message, hint))

        peer.under_way += 1
        self.promises.when_written(lambda: archive.ask(lambda: question(archive), answered, failed))

    def _may_be_on_disk(self, task_id: int) -> bool:
        """Whether a task that is not in the table may have ended and been forgotten."""
        return self.archive is not None and 0 < task_id < self.engine.tasks.next_id

    def _with_rows(
        self, peer: Peer, request: int, ids: list[TaskId], answer: Callable[[dict[TaskId, Task]], None]
    ) -> None:
        """Give `answer` the rows of these tasks, as far as they are known: from the table, or made of the journal."""
        rows = {i: task for i in ids if (task := self.engine.tasks.get(i)) is not None}
        forgotten = [i for i in ids if i not in rows and self._may_be_on_disk(i)]

        def found(archived: dict[TaskId, Task]) -> None:
            answer(rows | archived)

        self._ask_archive(peer, request, lambda archive: archive.rows(forgotten), found)

    def _fetch_results(
        self, peer: Peer, request: int, rows: list[Task], answer: Callable[[dict[TaskId, bytes]], None]
    ) -> None:
        """Give `answer` the results of these rows that are on disk only; at once where there are none."""
        wanted = [(t.id, _ended_ns(t)) for t in rows if t.result == RESULT_DROPPED]
        archive = self.archive
        if not wanted or archive is None:
            answer({})
            return

        def found(results: tuple[dict[TaskId, bytes], int]) -> None:
            if results[1] < len(wanted):
                text = f"the results of {len(wanted)} tasks are more than a frame may have"
                peer.send(m.RequestFailed(request, m.TOO_LARGE, text, "ask for less at a time"))
            else:
                answer(results[0])

        question = partial(archive.results, wanted, FRAME_BYTES_MAX)
        self.promises.when_written(lambda: archive.ask(question, found, lambda message, hint: answer({})))

    def _tell_from_disk(self, peer: Peer, ids: list[TaskId]) -> None:
        """Tell a watcher of ends that are on disk only, a part after the other, as fast as it reads."""
        archive = self.archive
        if archive is None or peer.is_closing:
            return
        wanted = ids[:FETCHED_TOGETHER_MAX]

        def answer(found: tuple[dict[TaskId, FinishedTask], int]) -> None:
            records, looked = found
            for task_id in ids[:looked]:  # a message each: a result may be large
                peer.send(m.TasksDone([self._done_from_disk(task_id, records.get(task_id))]))
            rest = ids[looked:]
            if rest and peer.is_paused:
                peer.put_off(lambda: self._tell_from_disk(peer, rest))
            elif rest:
                self._tell_from_disk(peer, rest)

        def failed(message: str, hint: str) -> None:
            answer(({}, len(wanted)))

        question = partial(archive.find, wanted, FETCHED_BYTES_MAX)
        self.promises.when_written(lambda: archive.ask(question, answer, failed))

    def _done_from_disk(self, task_id: TaskId, record: FinishedTask | None) -> m.TaskDone:
        """The end of a task as the journal has it; where it has none any more, what is left to say."""
        task = finished_row(record) if record is not None else self.engine.tasks.get(task_id)
        if task is None:
            return m.TaskDone(
                task_id, "failed", "lost", None, "what became of it is not kept any more", None, "", 0, False
            )
        return translate.task_done(task, True, record.result if record is not None else None)

    # ------------------------------------------------------------------------------------------------- output of tasks

    def _read_log(self, peer: Peer, request: m.ReadLog) -> None:
        task = self.engine.tasks.get(request.task_id)
        if task is not None:
            self._ask_for_log(peer, request, task)
        elif self._may_be_on_disk(request.task_id):

            def answer(rows: dict[TaskId, Task]) -> None:
                if rows:
                    self._ask_for_log(peer, request, rows[request.task_id])
                else:
                    self._unknown(peer, request.request, request.task_id)

            self._with_rows(peer, request.request, [request.task_id], answer)
        else:
            self._unknown(peer, request.request, request.task_id)

    def _ask_for_log(self, peer: Peer, request: m.ReadLog, task: Task) -> None:
        attempt = request.attempt or task.attempt
        ended = next((a for a in task.attempts if a.attempt == attempt), None)
        worker_id = ended.worker_id if ended is not None else task.worker_id
        if not worker_id and self.engine.awaited:
            text = f"task {task.id} may run on a worker that has not come back yet since the daemon was started anew"
            peer.send(m.RequestFailed(request.request, m.WORKER_AWAY, text))
            return
        if not worker_id or not attempt:
            peer.send(m.RequestFailed(request.request, m.ILLEGAL_STATE, f"task {task.id} has not run yet"))
            return
        worker = self._workers.get(worker_id)
        if worker is None:
            text = f"the output of task {task.id} is on worker {worker_id}, which is not connected"
            peer.send(m.RequestFailed(request.request, m.WORKER_AWAY, text))
            return
        if len(peer.log_reads) >= LOG_READS_MAX:
            text = f"{LOG_READS_MAX} reads of output have not been answered by their workers yet"
            peer.send(m.RequestFailed(request.request, m.QUEUE_FULL, text, "read fewer at a time"))
            return
        number = next(self._numbers)
        self._log_reads[number] = (peer, request.request, attempt, worker_id)
        peer.log_reads.add(number)
        limit = min(max(0, request.limit), LOG_BYTES_MAX)
        worker.send(m.FetchLog(number, task.id, attempt, request.stream, request.offset, limit))

    def _log_piece(self, worker_id: WorkerId, piece: m.LogPiece) -> None:
        read = self._log_reads.get(piece.request)
        if read is None or read[3] != worker_id:
            return  # answered twice, or by a worker that was not asked
        del self._log_reads[piece.request]
        peer, request, attempt, _ = read
        peer.log_reads.discard(piece.request)
        if piece.error:
            peer.send(m.RequestFailed(request, m.UNKNOWN_TASK, piece.error[:NAME_MAX]))
        else:
            peer.send(m.LogData(request, piece.data, piece.offset, piece.size, piece.done, attempt))

    def _fail_log_reads(self, worker_id: WorkerId) -> None:
        for number in [n for n, read in self._log_reads.items() if read[3] == worker_id]:
            peer, request, _, _ = self._log_reads.pop(number)
            peer.log_reads.discard(number)
            peer.send(m.RequestFailed(request, m.WORKER_AWAY, f"worker {worker_id} went away"))

    # ------------------------------------------------------------------------------------------------------- outward

    def _outward(self, effects: fx.Effects) -> None:
        self._recorder.record(effects.facts, self.engine.tasks, self.clock.now_ns())
        if self.meter is not None:
            self.meter.note(effects.facts, self.engine.tasks)
        for action in effects.actions:
            if type(action) is fx.PublishReports:  # of what ended in this very turn, too: before its end
                self._publish(action)
        promises: list[Promise] = []
        turn, holding = self.loop.turns, self._holding
        admitted_below = TaskId(self.engine.tasks.next_id)
        holding.begin(admitted_below)
        recorded = self._note_workers(effects.facts, turn)
        if recorded is not None:
            promises.append(recorded)
        for action in effects.actions:
            promise = self._act(action)
            if promise is not None:
                promises.append(promise)
        if holding.is_needed:
            promises.append(lambda: holding.safe(turn, admitted_below))
        ended = effects.finished
        if ended:
            self._untold.update([task.id for task in ended])
            promises.append(lambda: self._tell_ended(ended))
        acks = self._handled_acks()
        if acks:
            promises.append(lambda: self._acknowledge(acks))
        counts = self.engine.tasks.counts
        is_busy = counts[Queued] + counts[Assigned] + counts[Running] > BUSY_ABOVE
        self.promises.record(turn, effects, promises, self.clock.now_ns(), is_busy=is_busy)

    def _note_workers(self, facts: list[fx.Fact], turn: int) -> Promise | None:
        """Follow who comes and goes; hold what is for a worker that no restart would wait for until it is on disk."""
        entered: list[tuple[WorkerId, Peer]] = []
        for fact in facts:
            if type(fact) is fx.WorkerGone:
                self._on_record.discard(fact.worker_id)
                if (session := self._sessions.get(fact.worker_id)) is not None and session[0] == fact.incarnation:
                    del self._sessions[fact.worker_id]
                if fact.lost:
                    self._part(fact)
            elif type(fact) is fx.WorkerEntered and fact.worker_id not in self._on_record:
                peer = self._workers.get(fact.worker_id)
                if peer is not None and not self.promises.failure:
                    self._holding.enter(peer, turn)
                    entered.append((fact.worker_id, peer))
        return partial(self._note_recorded, entered) if entered else None

    def _note_recorded(self, entered: list[tuple[WorkerId, Peer]]) -> None:
        self._on_record.update(worker_id for worker_id, peer in entered if self._workers.get(worker_id) is peer)

    def remember(self, workers: Iterable[WorkerId]) -> None:
        """Take note of the workers that the engine was restored with, and of until when it waits for them.

        At once: a daemon that then does not run for a while is to see that it was late.
        """
        self._on_record.update(workers)
        self.loop.arm()

    def _on_failing(self) -> None:
        self._holding.let_go()
        self._flush()

    def _tell_ended(self, ended: list[Task]) -> None:
        self._untold.difference_update([task.id for task in ended])
        for task in ended:
            for watch in self._watchers.take(task.id):
                if watch.peer is not None:
                    self._fresh[task.id] = task
                    watch.peer.send_done(task.id, watch.results)

    def _handled_acks(self) -> list[tuple[Peer, int]]:
        """What is to be acknowledged of the events of this turn."""
        acks: list[tuple[Peer, int]] = []
        if self.engine.is_putting_off:
            return acks
        while self._acks and self._acks[0][0] <= self.loop.handled:
            acks.append(self._acks.popleft()[1:])
        return acks

    @staticmethod
    def _acknowledge(acks: list[tuple[Peer, int]]) -> None:
        for peer, seq in acks:
            peer.send(m.AckFinished(seq))

    def _part(self, gone: fx.WorkerGone) -> None:
        """Cut the connection of a worker that was given up while it was silent: it has to introduce itself anew."""
        peer = self._workers.get(gone.worker_id)
        if peer is not None and peer.incarnation == gone.incarnation:
            peer.abort()

    def _act(self, action: fx.Action) -> Promise | None:
        """Do what an action says; a reply is returned instead, for when the facts behind it are on disk."""
        match action:
            case fx.ReplySubmitted():
                return lambda: self._reply_submitted(action)
            case fx.ReplyChanged():
                return lambda: self._reply(action.origin, lambda n: m.Changed(n, action.changed, action.unchanged))
            case fx.ReplyDeclined():
                return lambda: self._reply(
                    action.origin, lambda n: m.RequestFailed(n, action.code, action.message, action.hint)
                )
            case fx.PublishReports():
                pass  # done already
            case _:
                worker = self._workers.get(action.worker_id)  # type: ignore[attr-defined]
                if worker is not None:  # else it is told when it comes back
                    messages = translate.worker_messages(action)
                    if self._holding.must_wait(worker, action):
                        self._holding.put(worker, self.loop.turns, messages)
                    else:
                        for message in messages:
                            worker.send(message)
        return None

    def _reply(self, origin: int, message: Callable[[int], Any]) -> None:
        peer, request, _ = self._origins.pop(origin)
        peer.send(message(request))

    def _reply_submitted(self, action: fx.ReplySubmitted) -> None:
        peer, request, watched = self._origins.pop(action.origin)
        peer.send(m.Submitted(request, action.ids, action.warnings, action.submitted_ns))
        if not watched:
            return
        watch = peer.watch(results=True, reports=True)
        for task_id in action.ids:
            task = self.engine.tasks.get(task_id)
            if task is None or self._is_told(task):  # an old one, found by its key or by the name of its submit
                peer.send_done(task_id, with_result=True)
            else:
                self._watchers.add(task_id, watch)

    def _is_told(self, task: Task) -> bool:
        """Whether the task has ended and everybody may know."""
        return task.state.is_final and task.id not in self._untold

    def _publish(self, action: fx.PublishReports) -> None:
        by_peer: dict[Listener, list[m.AttemptReport]] = {}
        for report in action.reports:
            for watch in self._watchers.of(report.task_id):
                # Who does not read has no use for old progress.
                if watch.reports and watch.peer is not None and not watch.peer.is_paused:
                    by_peer.setdefault(watch.peer, []).append(report)
        for peer, reports in by_peer.items():
            for start in range(0, len(reports), REPORTS_PER_MESSAGE_MAX):
                peer.send(m.TaskReports(reports[start : start + REPORTS_PER_MESSAGE_MAX]))

    def task_done(self, peer: Peer, task_id: TaskId, with_result: bool) -> m.TaskDone | None:
        task = self.engine.tasks.get(task_id) or self._fresh.get(task_id)
        if self.archive is not None and (task is None or (with_result and task.result == RESULT_DROPPED)):
            self._on_disk.setdefault(peer, []).append(task_id)
            return None
        return self._done_from_disk(task_id, None) if task is None else translate.task_done(task, with_result)

    def _flush(self) -> None:
        self._settle()
        self._flush_peers()
        self._fresh.clear()
        if self._on_disk:
            waiting, self._on_disk = self._on_disk, {}
            for peer, ids in waiting.items():
                # Those that were submitted together have often ended together, and are together on disk.
                self._tell_from_disk(peer, sorted(ids))

    def _flush_peers(self) -> None:
        while self._dirty:
            peers, self._dirty = self._dirty, []
            for peer in peers:
                peer.flush()
            if len(peers) == len(self._dirty):
                return  # each has more than one write may carry: the next turn goes on


def _ended_ns(task: Task) -> Instant:
    return getattr(task.state, "at_ns", 0)
