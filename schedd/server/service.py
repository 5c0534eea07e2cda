"""The service: who is connected, what they ask, and where the effects of a turn go."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import count, zip_longest
from typing import Any

import schedd
from schedd.address import Address
from schedd.config import Settings
from schedd.core import effects as fx
from schedd.core.engine import Engine
from schedd.core.events import WorkerDisconnected
from schedd.core.model import SECOND, Instant, Task, TaskId, WorkerId, WorkerStatus
from schedd.core.tasks import RESULT_DROPPED
from schedd.log import Log
from schedd.server import recording, translate
from schedd.server.archive import Archive
from schedd.server.clock import Clock
from schedd.server.connections import Peer
from schedd.server.durable import Promise, Promises
from schedd.server.holding import Holding
from schedd.server.loop import EngineLoop
from schedd.server.watching import Listener, Watch, Watchers
from schedd.wire import messages as m
from schedd.wire.framing import FRAME_BYTES_MAX

log = Log("schedd.server")

#: A listing answers with at most so many tasks at a time, however many were asked for.
LIST_LIMIT_MAX = 5000
#: And one read of output with at most so many bytes.
LOG_BYTES_MAX = 1024 * 1024
#: The largest reports that the engine lets through make 33 MiB together.
REPORTS_PER_MESSAGE_MAX = 1000
#: What the daemon may have to add to what a peer sent when it passes it on.
ENVELOPE_BYTES_MAX = 64 * 1024
#: A heartbeat is asked for after the interval times a random factor between these.
HEARTBEAT_STAGGER = (0.8, 1.0)
#: Results, and bytes of them, that are read from the journal for a watcher in one go.
FETCHED_TOGETHER_MAX = 100
FETCHED_BYTES_MAX = 8 * 1024 * 1024
#: Names of peers are at most this long, in characters.
NAME_MAX = 200


class Service:
    """Implements `Hub` for connections, and takes the effects of the engine's turns."""

    def __init__(
        self, engine: Engine, clock: Clock, settings: Settings, epoch: str, crashed: Callable[[BaseException], None]
    ) -> None:
        self.engine = engine
        self.clock = clock
        self.settings = settings
        self.epoch = epoch
        self.address: Address | None = None
        self.outbox_bytes_max = int(settings.server.outbox_mb_max * 1024 * 1024)
        self.handshake_timeout_s = settings.server.handshake_timeout_s
        self.loop = EngineLoop(engine, clock, self._outward, self._flush, crashed)
        self.started_ns = clock.now_ns()
        self.stopping = False
        self._peers: set[Peer] = set()
        self._workers: dict[WorkerId, Peer] = {}
        self._watchers = Watchers()
        self._dirty: list[Peer] = []
        self.promises = Promises(self._flush, self._on_failing)
        self._holding = Holding()
        #: Set where there is a journal.
        self.archive: Archive | None = None
        #: Ends that workers told in this turn, to be acknowledged when they are on disk.
        self._acks: list[tuple[Peer, int]] = []
        #: Ends to be told whose results are on disk only.
        self._on_disk: dict[Peer, list[Task]] = {}
        #: Tasks whose end is not on disk yet: nobody may be told.
        self._untold: set[TaskId] = set()
        self._numbers = count(1)
        #: Requests whose answer comes out of the engine: the peer, its number, and what to do with a `Submitted`.
        self._origins: dict[int, tuple[Peer, int, bool]] = {}
        #: Reads of output that a worker was asked for.
        self._log_reads: dict[int, tuple[Peer, int, int, WorkerId]] = {}
        self._readers: dict[type[Any], Callable[[Peer, Any], None]] = {
            m.ListTasks: self._list_tasks,
            m.ListJobs: self._list_jobs,
            m.ListWorkers: self._list_workers,
            m.GetStats: self._stats,
            m.ExplainTask: self._explain,
            m.WatchTasks: self._watch,
            m.ReadLog: self._read_log,
            m.ListHistory: self._history,
            m.BackUp: self._back_up,
        }

    # ---------------------------------------------------------------------------------------------------- connections

    def opened(self, peer: Peer) -> bool:
        self._peers.add(peer)
        return len(self._peers) <= self.settings.server.connections_max

    def closed(self, peer: Peer) -> None:
        self._peers.discard(peer)
        self._holding.forget(peer)
        for watch in peer.watches:
            watch.peer = None
        worker_id = peer.worker_id
        if worker_id is not None and self._workers.get(worker_id) is peer:
            del self._workers[worker_id]
            log.warning("worker_disconnected", worker=worker_id, peer=peer.name)
            self.loop.post(WorkerDisconnected(worker_id))
            self._fail_log_reads(worker_id)

    def greeted(self, peer: Peer, hello: m.Hello) -> None:
        if self.stopping:
            peer.refuse(m.SHUTTING_DOWN, "the daemon is stopping")
        elif hello.protocol != m.PROTOCOL:
            peer.refuse(
                m.BAD_VERSION,
                f"the daemon is schedd {schedd.__version__} (protocol {m.PROTOCOL}), "
                f"the peer is {hello.version[:NAME_MAX]} (protocol {hello.protocol})",
                "install the same version on both sides",
            )
        elif isinstance(hello.peer, m.WorkerHello):
            self._greet_worker(peer, hello.peer)
        else:
            peer.name = f"{hello.peer.program[:NAME_MAX] or 'client'}@{peer.name}"
            self._welcome(peer)

    def _greet_worker(self, peer: Peer, hello: m.WorkerHello) -> None:
        name = hello.name
        if not name or len(name) > NAME_MAX or not name.isprintable():
            peer.refuse(m.BAD_REQUEST, f"a worker's name has 1 to {NAME_MAX} printable characters")
            return
        known = self._workers.get(name)
        if known is not None and known.incarnation != hello.incarnation and self._alive(name):
            peer.refuse(m.NAME_TAKEN, f"a worker named {name!r} is connected already", "give this one another --name")
            return
        if known is not None:
            known.worker_id = None  # the newer connection of the same worker counts
            known.abort()
        peer.worker_id, peer.incarnation = name, hello.incarnation
        self._workers[name] = peer
        self._welcome(peer)
        log.info(
            "worker_connected", worker=name, peer=peer.name, host=hello.host, pid=hello.pid, holds=len(hello.holds)
        )
        self.loop.post(translate.joined_event(hello))

    def _alive(self, worker_id: WorkerId) -> bool:
        row = self.engine.resources.workers.get(worker_id)
        return row is None or row.status != WorkerStatus.UNREACHABLE

    def _welcome(self, peer: Peer) -> None:
        interval_s = self.engine.heartbeat_ns() / SECOND
        name = self.settings.policy.name
        peer.welcome(
            m.Welcome(
                m.PROTOCOL, schedd.__version__, self.epoch, name, interval_s, FRAME_BYTES_MAX - ENVELOPE_BYTES_MAX
            )
        )

    def received(self, peer: Peer, body: bytes) -> None:
        if peer.worker_id is not None:
            self._from_worker(peer, peer.worker_id, m.decode_from_worker(body))
            return
        for request in m.decode_from_client(body):
            self._from_client(peer, request)

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

    # ---------------------------------------------------------------------------------------------------- from workers

    def _from_worker(self, peer: Peer, worker_id: WorkerId, messages: list[m.FromWorker]) -> None:
        for message in messages:
            event = translate.worker_event(worker_id, message)
            if event is not None:
                self.loop.post(event)
            if isinstance(message, m.AttemptsFinished):
                self._acks.append((peer, message.seq))
            elif isinstance(message, m.Heartbeat):
                # Staggered, or a whole cluster that came back together would report together for ever.
                stagger = random.uniform(*HEARTBEAT_STAGGER)
                peer.send(m.HeartbeatReply(stagger * self.engine.heartbeat_ns() / SECOND))
            elif isinstance(message, m.LogPiece):
                self._log_piece(worker_id, message)
            elif isinstance(message, m.WorkerGoodbye):
                self._workers.pop(worker_id, None)
                self._fail_log_reads(worker_id)
                peer.worker_id = None
                peer.close()
                return

    # ---------------------------------------------------------------------------------------------------- from clients

    def _from_client(self, peer: Peer, request: m.ClientRequest) -> None:
        reader = self._readers.get(type(request))
        if reader is not None:
            self.loop.ask(lambda: self._answer(peer, request, reader))
            return
        if isinstance(request, m.Submit) and self.promises.failure:
            text = f"the journal cannot be written: {self.promises.failure}"
            hint = "make room on the disk of the daemon; it recovers by itself"
            peer.send(m.RequestFailed(request.request, m.JOURNAL_FAILING, text, hint))
            return
        origin = next(self._numbers)
        event = translate.request_event(request, origin)
        if event is None:
            peer.send(m.RequestFailed(request.request, m.BAD_REQUEST, f"{type(request).__name__} has no meaning here"))
            return
        self._origins[origin] = (peer, request.request, isinstance(request, m.Submit) and request.watch)
        self.loop.post(event)

    def _answer(self, peer: Peer, request: Any, reader: Callable[[Peer, Any], None]) -> None:
        if peer.is_paused:
            peer.put_off(lambda: self.loop.ask(lambda: self._answer(peer, request, reader)))
        elif not peer.is_closing:
            reader(peer, request)

    def _list_tasks(self, peer: Peer, request: m.ListTasks) -> None:
        limit = min(max(1, request.limit), LIST_LIMIT_MAX)
        rows: list[Task] = []
        more = False
        for task in self.engine.tasks.select(request.selection, request.after_id):
            if len(rows) == limit:
                more = True
                break
            rows.append(task)
        unknown = [i for i in request.selection.ids if self.engine.tasks.get(i) is None]
        if unknown and len(request.selection.ids) == len(unknown):
            self._unknown(peer, request.request, unknown[0])
            return
        if not request.detail:
            peer.send(m.TaskList(request.request, [translate.task_view(task) for task in rows], [], more))
            return

        def answer(results: dict[TaskId, bytes]) -> None:
            details = [translate.task_detail(self.engine, task, results.get(task.id)) for task in rows]
            peer.send(m.TaskList(request.request, [translate.task_view(task) for task in rows], details, more))

        self._fetch_results(rows, answer)

    def _unknown(self, peer: Peer, request: int, task_id: int) -> None:
        hint = "finished tasks are forgotten in time" if 0 < task_id < self.engine.tasks.next_id else ""
        peer.send(m.RequestFailed(request, m.UNKNOWN_TASK, f"there is no task {task_id}", hint))

    def _list_jobs(self, peer: Peer, request: m.ListJobs) -> None:
        jobs = [translate.job_view(self.engine, job) for job in self.engine.tasks.jobs.values()]
        peer.send(m.JobList(request.request, jobs))

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
            )
        )

    def _explain(self, peer: Peer, request: m.ExplainTask) -> None:
        task = self.engine.tasks.get(request.task_id)
        if task is None:
            self._unknown(peer, request.request, request.task_id)
            return
        why = self.engine.explain(task)
        peer.send(
            m.Explanation(request.request, task.id, task.state.name, why.summary, why.blockers, why.workers, why.ahead)
        )

    def _watch(self, peer: Peer, request: m.WatchTasks) -> None:
        selection = request.selection
        if request.again:
            self._watch_again(peer, request)
            return
        if selection.job and selection.job not in self.engine.tasks.jobs and not selection.ids:
            peer.send(m.RequestFailed(request.request, m.UNKNOWN_JOB, f"there is no job {selection.job!r}"))
            return
        for task_id in selection.ids:
            if self.engine.tasks.get(task_id) is None:
                self._unknown(peer, request.request, task_id)
                return
        watch = Watch(peer, request.results, request.reports)
        peer.watches.append(watch)
        total = finished = 0
        ids: list[TaskId] = []
        for task in self.engine.tasks.select(selection):
            total += 1
            if request.named:
                ids.append(task.id)
            if self._is_told(task):
                finished += 1
                peer.send_done(task.id, request.results)
            else:
                self._watchers.add(task.id, watch)
        peer.send(m.Watching(request.request, total, finished, ids))

    def _watch_again(self, peer: Peer, request: m.WatchTasks) -> None:
        """Go on with the watch of a connection that was lost: what became of its tasks meanwhile is told."""
        watch = Watch(peer, request.results, request.reports)
        peer.watches.append(watch)
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

        def answer(unknown: list[TaskId]) -> None:
            total = len(request.selection.ids) - len(unknown)
            peer.send(m.Watching(request.request, total, finished + len(forgotten) - len(unknown), unknown=unknown))

        self._tell_forgotten(peer, forgotten, request.results, answer)

    def _tell_forgotten(
        self, peer: Peer, wanted: dict[TaskId, Instant], with_result: bool, rest: Callable[[list[TaskId]], None]
    ) -> None:
        """Tell of ends that only the journal knows; `rest` gets the ids of which it does not know either.

        wanted: when each of them was submitted; 0: whichever had the id.
        """
        archive = self.archive
        if not wanted or archive is None:
            rest(list(wanted))
            return

        def answer(rows: list[Task]) -> None:
            found = {task.id for task in rows}
            plain = [task for task in rows if not with_result or task.result is None]
            if plain:
                peer.send(m.TasksDone([translate.task_done(task, with_result) for task in plain]))
            if len(plain) < len(rows):
                self._tell_from_disk(peer, sorted((t for t in rows if t not in plain), key=_ended_ns))
            rest([task_id for task_id in wanted if task_id not in found])

        archive.ask(lambda: archive.ended(wanted), answer, lambda message, hint: rest(list(wanted)))

    # ---------------------------------------------------------------------------------------- what the journal knows

    def _history(self, peer: Peer, request: m.ListHistory) -> None:
        self._ask_archive(peer, request.request, lambda archive: archive.history(request))

    def _back_up(self, peer: Peer, request: m.BackUp) -> None:
        self._ask_archive(peer, request.request, lambda archive: archive.back_up(request))

    def _ask_archive(self, peer: Peer, request: int, question: Callable[[Archive], Any]) -> None:
        archive = self.archive
        if archive is None:
            hint = "set journal.enabled = true in config.toml"
            peer.send(m.RequestFailed(request, m.NO_JOURNAL, "this daemon keeps no journal", hint))
            return
        archive.ask(
            lambda: question(archive),
            peer.send,
            lambda message, hint: peer.send(m.RequestFailed(request, m.JOURNAL_FAILING, message, hint)),
        )

    def _fetch_results(self, rows: list[Task], answer: Callable[[dict[TaskId, bytes]], None]) -> None:
        """Give `answer` the results of these rows that are on disk only; at once where there are none."""
        wanted = [(t.id, _ended_ns(t)) for t in rows if t.result == RESULT_DROPPED]
        archive = self.archive
        if not wanted or archive is None:
            answer({})
            return
        # What does not fit into a frame cannot be answered anyway.
        archive.ask(
            lambda: archive.results(wanted, FRAME_BYTES_MAX),
            lambda found: answer(found[0]),
            lambda message, hint: answer({}),
        )

    def _tell_from_disk(self, peer: Peer, rows: list[Task]) -> None:
        """Tell a watcher of ends whose results are on disk only, a part after the other, as fast as it reads."""
        archive = self.archive
        if archive is None or peer.is_closing:
            return
        wanted = [(task.id, _ended_ns(task)) for task in rows[:FETCHED_TOGETHER_MAX]]

        def answer(found: tuple[dict[TaskId, bytes], int]) -> None:
            results, looked = found
            for task in rows[:looked]:  # a message each: a result may be large
                peer.send(m.TasksDone([translate.task_done(task, True, results.get(task.id))]))
            rest = rows[looked:]
            if rest and peer.is_paused:
                peer.put_off(lambda: self._tell_from_disk(peer, rest))
            elif rest:
                self._tell_from_disk(peer, rest)

        archive.ask(
            lambda: archive.results(wanted, FETCHED_BYTES_MAX), answer, lambda message, hint: answer(({}, len(wanted)))
        )

    # ------------------------------------------------------------------------------------------------- output of tasks

    def _read_log(self, peer: Peer, request: m.ReadLog) -> None:
        task = self.engine.tasks.get(request.task_id)
        if task is None:
            self._unknown(peer, request.request, request.task_id)
            return
        attempt = request.attempt or task.attempt
        ended = next((a for a in task.attempts if a.attempt == attempt), None)
        worker_id = ended.worker_id if ended is not None else task.worker_id
        if not worker_id or not attempt:
            peer.send(m.RequestFailed(request.request, m.ILLEGAL_STATE, f"task {task.id} has not run yet"))
            return
        worker = self._workers.get(worker_id)
        if worker is None:
            text = f"the output of task {task.id} is on worker {worker_id}, which is not connected"
            peer.send(m.RequestFailed(request.request, m.WORKER_AWAY, text))
            return
        number = next(self._numbers)
        self._log_reads[number] = (peer, request.request, attempt, worker_id)
        limit = min(max(0, request.limit), LOG_BYTES_MAX)
        worker.send(m.FetchLog(number, task.id, attempt, request.stream, request.offset, limit))

    def _log_piece(self, worker_id: WorkerId, piece: m.LogPiece) -> None:
        read = self._log_reads.get(piece.request)
        if read is None or read[3] != worker_id:
            return  # answered twice, or by a worker that was not asked
        del self._log_reads[piece.request]
        peer, request, attempt, _ = read
        if piece.error:
            peer.send(m.RequestFailed(request, m.UNKNOWN_TASK, piece.error[:NAME_MAX]))
        else:
            peer.send(m.LogData(request, piece.data, piece.offset, piece.size, piece.done, attempt))

    def _fail_log_reads(self, worker_id: WorkerId) -> None:
        for number in [n for n, read in self._log_reads.items() if read[3] == worker_id]:
            peer, request, _, _ = self._log_reads.pop(number)
            peer.send(m.RequestFailed(request, m.WORKER_AWAY, f"worker {worker_id} went away"))

    # ------------------------------------------------------------------------------------------------------- outward

    def _outward(self, effects: fx.Effects) -> None:
        recording.record(effects.facts, self.engine.tasks)
        for action in effects.actions:
            if type(action) is fx.PublishReports:  # of what ended in this very turn, too: before its end
                self._publish(action)
        promises: list[Promise] = []
        turn, holding = self.loop.turns, self._holding
        holding.admitted(effects.facts)
        for action in effects.actions:
            promise = self._act(action)
            if promise is not None:
                promises.append(promise)
        if holding.is_needed:
            below = holding.admitted_below
            promises.append(lambda: holding.safe(turn, below))
        ended = self._ended(effects.facts)
        if ended:
            promises.append(lambda: self._tell_ended(ended))
        if self._acks:
            acks, self._acks = self._acks, []
            promises.append(lambda: self._acknowledge(acks))
        self.promises.record(turn, effects, promises, self.clock.now_ns())

    def _on_failing(self) -> None:
        self._holding.let_go()
        self._flush()

    def _ended(self, facts: list[fx.Fact]) -> list[TaskId]:
        ended = []
        for fact in facts:
            if type(fact) is fx.TaskFinished:
                ended.append(fact.task_id)
            elif type(fact) is fx.WorkerGone and fact.lost:
                self._part(fact)
        self._untold.update(ended)
        return ended

    def _tell_ended(self, ended: list[TaskId]) -> None:
        self._untold.difference_update(ended)
        for task_id in ended:
            for watch in self._watchers.take(task_id):
                if watch.peer is not None:
                    watch.peer.send_done(task_id, watch.results)

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
        watch = peer.submit_watch
        if watch is None:
            watch = peer.submit_watch = Watch(peer, results=True, reports=True)
            peer.watches.append(watch)
        forgotten: dict[TaskId, Instant] = {}
        for task_id in action.ids:
            task = self.engine.tasks.get(task_id)
            if task is None:
                forgotten[task_id] = 0
            elif self._is_told(task):  # an old one, found by its key or by the name of its submit
                peer.send_done(task_id, with_result=True)
            else:
                self._watchers.add(task_id, watch)
        if forgotten:
            self._tell_forgotten(peer, forgotten, True, lambda unknown: self._tell_unknown(peer, unknown))

    @staticmethod
    def _tell_unknown(peer: Peer, unknown: list[TaskId]) -> None:
        """End the waiting for tasks of which nothing is known any more."""
        text = "what became of it is not known any more"
        if unknown:
            peer.send(m.TasksDone([m.TaskDone(i, "failed", "lost", message=text, kept=False) for i in unknown]))

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
        task = self.engine.tasks.get(task_id)
        if task is None:
            return None
        if with_result and task.result == RESULT_DROPPED and self.archive is not None:
            self._on_disk.setdefault(peer, []).append(task)
            return None
        return translate.task_done(task, with_result)

    def _flush(self) -> None:
        self._flush_peers()
        if self._on_disk:
            waiting, self._on_disk = self._on_disk, {}
            for peer, rows in waiting.items():
                # Those that ended together are together on disk.
                self._tell_from_disk(peer, sorted(rows, key=_ended_ns))

    def _flush_peers(self) -> None:
        while self._dirty:
            peers, self._dirty = self._dirty, []
            for peer in peers:
                peer.flush()
            if len(peers) == len(self._dirty):
                return  # each has more than one write may carry: the next turn goes on


def _ended_ns(task: Task) -> Instant:
    return getattr(task.state, "at_ns", 0)
