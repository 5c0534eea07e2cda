"""The service: who is connected, what they ask, and where the effects of a turn go."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from itertools import count
from typing import Any

import schedd
from schedd.address import Address
from schedd.config import Settings
from schedd.core import effects as fx
from schedd.core.engine import Engine
from schedd.core.events import Event, WorkerDisconnected, WorkerHeard
from schedd.core.model import SECOND, Assigned, Queued, Running, Task, TaskId, WorkerId
from schedd.core.tasks import RESULT_DROPPED
from schedd.errors import ConfigError
from schedd.log import Log
from schedd.server import translate
from schedd.server.access import Access, may_ask
from schedd.server.arrivals import Arrivals
from schedd.server.connections import Peer, Traffic
from schedd.server.durable import Promise, Promises
from schedd.server.following import Following
from schedd.server.holding import Holding
from schedd.server.lag import LagProbe
from schedd.server.loop import EngineLoop, tasks_named
from schedd.server.memory import Memory
from schedd.server.meter import Meter
from schedd.server.outputs import Outputs
from schedd.server.past import Past
from schedd.server.ports import Clock, Reactor, Reloaded
from schedd.server.reads import Reading, Reads
from schedd.server.reception import Reception
from schedd.server.recording import Recorder
from schedd.server.watching import Listener, Watchers
from schedd.wire import messages as m
from schedd.wire.framing import Body

log = Log("schedd.server")

#: The largest reports that the engine lets through make 33 MiB together.
REPORTS_PER_MESSAGE_MAX = 1000
#: A heartbeat is asked for after the interval times a random factor between these, or up to a slot before, so that it
#: comes at one of so many instants of an interval: those that come together share a turn, and the daemon wakes less.
HEARTBEAT_STAGGER = (0.82, 1.0)
HEARTBEAT_SLOTS = 50
#: Tasks, workers and jobs that a question for events names.
EVENT_NAMES_MAX = 1000
#: With more tasks than this queued or under way the end of one may be on disk a moment later.
BUSY_ABOVE = 64

OVER = object()

#: Whoever is sent away has so long to read why, at the least.
FAREWELL_MIN_S = 2.0

#: What a message counts beside the tasks that it names, in `INTAKE_MAX`: its own event, and often an answer.
MESSAGE_WEIGHT = 2


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
        self.memory = Memory(reactor)
        self._rng = rng
        self.loop = EngineLoop(engine, clock, self._outward, self._flush, crashed, reactor)
        self._reception = Reception(engine, self.loop, lambda worker_id: self._outputs.worker_gone(worker_id))
        self._workers = self._reception.workers
        self.lag = LagProbe(lambda: clock.now_ns() / SECOND, reactor.call_later)
        self.started_ns = clock.now_ns()
        self.traffic = Traffic()
        #: Set where somebody wants to know what it counts.
        self.meter: Meter | None = None
        self.stopping = False
        self._peers: dict[Peer, None] = {}
        #: Workers that the next start will wait for. What others are to be told is kept back until they are among them:
        #: else that start would give to somebody else what they run.
        self._on_record: set[WorkerId] = set()
        self._watchers = Watchers()
        self._dirty: list[Peer] = []
        self.promises = Promises(self._flush, reactor, self._on_failing)
        self.past = Past(engine, self.promises, self._done)
        self._holding = Holding()
        self._following = Following(reactor, self.past.with_jobs)
        self.promises.on_written = self._following.written
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
        self._outputs = Outputs(engine, self.past, self._workers, self._numbers)
        reads = Reads(engine, clock, self.past, self._watchers, self._is_told, self._go_on)
        self._readers: dict[type[Any], Callable[[Peer, Any], Reading | None]] = {
            **reads.answers,
            m.GetStats: self._stats,
            m.ReadLog: self._outputs.read,
            m.ListHistory: self.past.history,
            m.BackUp: self.past.back_up,
            m.ListEvents: self._events,
            m.Reload: self._reload,
        }

    def use(self, settings: Settings) -> None:
        """Bear of the peers what these settings say, from now on."""
        self.settings = settings
        self.outbox_bytes_max = int(settings.server.outbox_mb_max * 1024 * 1024)
        self.handshake_timeout_s = settings.server.handshake_timeout_s
        self.farewell_timeout_s = max(FAREWELL_MIN_S, settings.server.stop_timeout_s)
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
        self._outputs.forget(peer)
        worker_id = peer.worker_id
        if worker_id is not None and self._workers.get(worker_id) is peer:
            del self._workers[worker_id]
            log.warning("worker_disconnected", worker=worker_id, peer=peer.name)
            self.loop.post(WorkerDisconnected(worker_id))
            self._outputs.worker_gone(worker_id)

    def greeted(self, peer: Peer, hello: m.Hello) -> None:
        if self.stopping:
            peer.refuse(m.SHUTTING_DOWN, "the daemon is stopping")
        else:
            self._reception.greet(peer, hello, self.settings.policy.name)

    def check_tokens(self) -> int:
        """Close the connections of tokens that are not valid any more, or mean something else now. Returns how many."""
        gone = [p for p in self._peers if p.identity.token and self.access.of_token(p.identity.token) != p.identity]
        for peer in gone:
            log.warning("token_revoked", token=peer.identity.token, peer=peer.name, worker=peer.worker_id)
            peer.refuse(m.TOKEN_REVOKED, "the token of this connection was revoked or changed", "ask for another")
        return len(gone)

    def decoded(self, peer: Peer, body: Body) -> list[Any]:
        if peer.worker_id is None:
            return m.decode_from_client(body)
        return list(translate.portions(m.decode_from_worker(body)))

    def received(self, peer: Peer, message: Any) -> None:
        if peer.worker_id is not None:
            self._from_worker(peer, peer.worker_id, message)
        else:
            self._from_client(peer, message)

    def _post(self, peer: Peer, event: Event) -> int:
        """Post what a peer said; it is under way until the event has been handled."""
        number, weight = self.loop.post(event), MESSAGE_WEIGHT + tasks_named(event)
        peer.posted = number
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
        event = translate.worker_event(worker_id, message)
        number = self._post(peer, event) if event is not None else 0
        if isinstance(message, m.AttemptsFinished) and message.seq != translate.MORE_TO_COME:
            self._acks.append((number, peer, message.seq))
        elif isinstance(message, m.Heartbeat):
            self._answer_heartbeat(peer)
        elif isinstance(message, m.LogPiece):
            self._outputs.take(worker_id, message)
        elif isinstance(message, m.WorkerGoodbye):
            self._workers.pop(worker_id, None)
            self._outputs.worker_gone(worker_id)
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
            self.loop.ask(lambda: self._answer(peer, request, reader), peer, peer.posted)
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
            peer.put_off(lambda: self.loop.ask(lambda: self._answer(peer, request, reader), peer, peer.posted))
        elif not peer.is_closing:
            reading = reader(peer, request)
            if reading is not None:
                self._go_on(peer, reading, self._done)
            else:
                self._done(peer)

    def _go_on(self, peer: Peer, reading: Reading, done: Callable[[Peer], None] = lambda peer: None) -> None:
        """Let a reader that looks at many rows work on; what it leaves is for a later turn."""
        if not peer.is_closing and next(reading, OVER) is not OVER:
            self.loop.ask(lambda: self._go_on(peer, reading, done), peer, peer.posted, goes_on=True)
        else:
            done(peer)

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

    def _events(self, peer: Peer, request: m.ListEvents) -> None:
        named = max(len(names) for names in (request.types, request.tasks, request.workers, request.jobs))
        if named > EVENT_NAMES_MAX:
            text = f"events of {named} at a time were asked for, the bound is {EVENT_NAMES_MAX}"
            peer.send(m.RequestFailed(request.request, m.TOO_LARGE, text))
        elif self.past.archive is None:
            self.past.tell_none(peer, request.request)
        else:
            self._following.ask(self.past.archive, peer, request)

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
                self._reception.forget(fact.worker_id, fact.incarnation)
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
                    if not self.promises.failure and self._holding.must_wait(worker, action):
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
        if self.past.archive is not None and (task is None or (with_result and task.result == RESULT_DROPPED)):
            self._on_disk.setdefault(peer, []).append(task_id)
            return None
        return self.past.end_of(task_id, None) if task is None else translate.task_done(task, with_result)

    def _flush(self) -> None:
        self._settle()
        self._flush_peers()
        self._fresh.clear()
        if self._on_disk:
            waiting, self._on_disk = self._on_disk, {}
            for peer, ids in waiting.items():
                # Those that were submitted together have often ended together, and are together on disk.
                self.past.tell_ends(peer, sorted(ids))
        if self.promises.journal is not None:
            self.promises.journal.stand_aside()

    def _flush_peers(self) -> None:
        while self._dirty:
            peers, self._dirty = self._dirty, []
            for peer in peers:
                peer.flush()
            if len(peers) == len(self._dirty):
                return  # each has more than one write may carry: the next turn goes on
