"""A worker: the real state machine in a shell that does what `worker.main` and `worker.link` do, without their I/O."""

from __future__ import annotations

from collections.abc import Callable

from schedd.config import WorkerSettings
from schedd.core.model import SECOND, HostUsage, Instant, TaskId, WorkerId, WorkerResources
from schedd.sim.kernel import Kernel, Process, Timer
from schedd.sim.line import Line
from schedd.sim.network import Cable, Network
from schedd.sim.runner import Runner, Watcher
from schedd.wire.framing import Body
from schedd.wire.messages import (
    BAD_VERSION,
    NAME_TAKEN,
    PROTOCOL,
    AckFinished,
    AttemptFinished,
    AttemptsFinished,
    DrainWorker,
    DropAttempts,
    FetchLog,
    FromWorker,
    Heartbeat,
    HeartbeatReply,
    Hello,
    LogPiece,
    Refused,
    StopAttempts,
    ToWorker,
    Welcome,
    WorkerGoodbye,
    WorkerHello,
    decode_to_worker,
)
from schedd.worker.attempts import Attempt, Ending
from schedd.worker.heartbeats import Heartbeats
from schedd.worker.outbox import Kept
from schedd.worker.state import WorkerState

# As in `worker.link` and `worker.main`.
NAME_TAKEN_S = 60.0
FORCED_ACK_S = 3.0
NEWS_PAUSE_S = 0.002
KEEP_AGE_S = 1.0


class Worker:
    """One start of a worker process. `left` is called when it goes by itself."""

    def __init__(
        self,
        process: Process,
        network: Network,
        cable: Cable,
        resources: WorkerResources,
        watcher: Watcher,
        left: Callable[[], None],
        acked: Callable[[Worker, list[AttemptFinished], Instant], None],
        is_broken: Callable[[], bool],
        shelf: dict[int, Kept],
    ) -> None:
        self.process = process
        self.name = WorkerId(process.name)
        self.state = WorkerState(resources)
        kernel: Kernel = process.kernel
        self.incarnation = f"{kernel.random.getrandbits(64):016x}"
        self.runner = Runner(kernel, process, watcher, self._on_ended, self._on_report, is_broken)
        self._kernel = kernel
        self._network = network
        self._cable = cable
        self._resources = resources
        self._left = left
        self._acked = acked
        self._watcher = watcher
        self._shelf = shelf
        self._age_timer: Timer | None = None
        self.state.restore([shelf[seq] for seq in sorted(shelf)])
        self._settings = WorkerSettings()
        self._line: Line | None = None
        self.is_up = False
        self._session = 0
        #: Batches of ends that were sent and not acknowledged.
        self.unheard: dict[int, tuple[list[AttemptFinished], Instant]] = {}
        self._refusal: Refused | None = None
        self._name_taken_since: Instant = 0
        self._failed_count = 0
        self._heartbeats = Heartbeats(process.call_later, self._beat)
        self._log_pieces: list[LogPiece] = []
        self._turn_asked = False
        self._timer: Timer | None = None
        self._timer_ns: Instant = 0
        self._news_ns: Instant = 0
        self._news_timer: Timer | None = None
        self.is_forced = False
        self.is_over = False

    # ------------------------------------------------------------------------------------------- the link, as it is

    def connect(self) -> None:
        """Look for the daemon."""
        if not self.is_over:
            self._refusal = None
            self._line = Line(self, self.process, self._network, self._cable)

    def on_connected(self, line: Line) -> None:
        holds = self.state.holds()
        self.state.on_hello()
        self._session += 1
        peer = WorkerHello(self.name, self.incarnation, self._resources, "sim", 1, holds, self._session)
        line.write(Hello(PROTOCOL, "sim", peer))

    def on_disconnected(self, line: Line) -> None:
        """Connect once more after a while, unless there is no point in it."""
        if self.is_up:
            self._failed_count, self._name_taken_since = 0, 0
        self._line, self.is_up = None, False
        self._log_pieces.clear()
        self._ask_for_turn()
        if self._is_refused_for_good():
            self._finish()
            return
        settings = self._settings
        most = min(settings.reconnect_delay_max_s, settings.reconnect_delay_s * 2 ** min(self._failed_count, 30))
        self._failed_count += 1
        self.process.call_later(self._kernel.random.uniform(0, most), self.connect)

    def _is_refused_for_good(self) -> bool:
        refusal, now = self._refusal, self._kernel.now_ns
        if refusal is None:
            return False
        if refusal.code == NAME_TAKEN:
            self._name_taken_since = self._name_taken_since or now
            return now - self._name_taken_since > NAME_TAKEN_S * SECOND
        return refusal.code == BAD_VERSION

    def on_frame(self, line: Line, body: Body) -> None:
        messages = decode_to_worker(body)
        for message in messages:
            if isinstance(message, Welcome):
                self.is_up = True
                line.welcomed()
                self._heartbeats.begin(message.heartbeat_interval_s)
            elif isinstance(message, HeartbeatReply):
                self._heartbeats.go_on(message.interval_s)
            elif isinstance(message, Refused):
                self._refusal = message
        self._on_messages(messages)

    def _beat(self) -> None:
        line = self._line
        if line is None or not self.is_up:
            return
        silent_s = (self._kernel.now_ns - line.heard_ns) / SECOND
        if self._heartbeats.is_too_long(silent_s):
            line.abort()
            return
        line.write([Heartbeat(HostUsage())])
        self._heartbeats.go_on()

    # ------------------------------------------------------------------------------------------- the shell, as it is

    def _on_messages(self, messages: list[ToWorker]) -> None:
        now_ns = self.process.now_ns()
        for message in messages:
            if isinstance(message, (Welcome, Refused, HeartbeatReply)):
                continue
            if isinstance(message, FetchLog):
                self._log_pieces.append(LogPiece(message.request, b"", 0, 0, True))
                continue
            if self.state.may_take_back(message):
                self.runner.recall()
            match message:
                case AckFinished():
                    self._on_ack(message.seq)
                case StopAttempts() | DropAttempts():
                    grace_s = message.grace_s if isinstance(message, StopAttempts) else 0.0
                    for task_id, attempt in message.attempts:
                        self.runner.expect_end(task_id, attempt, f"{message} came", grace_s)
            if isinstance(message, DrainWorker) and message.leave:
                self.drain()
            else:
                self.state.on_message(message, now_ns)
        self._ask_for_turn()

    def _on_ack(self, up_to: int) -> None:
        for seq in [seq for seq in self.unheard if seq <= up_to]:
            self._acked(self, *self.unheard.pop(seq))

    def _on_ended(self, row: Attempt, ending: Ending) -> None:
        self.state.on_ended(row, ending, self.process.now_ns())
        self._ask_for_turn()

    def _on_report(self, task_id: TaskId, attempt: int, step: int) -> None:
        self.state.on_report(task_id, attempt, step, {"step": float(step)})
        self._ask_for_turn()

    def _ask_for_turn(self) -> None:
        if not self._turn_asked:
            self._turn_asked = True
            self.process.call_soon(self._turn)

    def _turn(self) -> None:
        self._turn_asked = False
        self.state.is_connected = self.is_up
        if self.is_over:
            return
        self.runner.perform(self.state.take_actions())
        self.runner.send_ahead(self.state.upcoming)
        self._send_news()
        if self.state.has_actions:
            self._ask_for_turn()
        self._set_timer()
        if self.state.leaving:
            self._leave_if_done()

    def _send_news(self) -> None:
        if not self.is_up or self._line is None or self._can_wait():
            if not self.is_up:
                self._keep_ends()
            return
        messages: list[FromWorker] = [*self.state.take_messages(), *self._log_pieces]
        self._keep_ends()  # before anybody hears of them
        self._log_pieces.clear()
        for message in messages:
            if isinstance(message, AttemptsFinished):
                self.unheard.setdefault(message.seq, (message.attempts, self._kernel.now_ns))
        if messages:
            self._line.write(messages)

    def _keep_ends(self, *, everything: bool = False) -> None:
        for kept in self.state.take_to_keep(everything=everything):
            self._shelf[kept.seq] = kept
            self._watcher.kept(self.name, kept)
        for seq in self.state.take_over():
            self._watcher.forgot(self.name, self._shelf.pop(seq))
        if self._age_timer is None and self.state.owes_ends:
            self._age_timer = self.process.call_later(KEEP_AGE_S, self._on_age_timer)

    def _on_age_timer(self) -> None:
        self._age_timer = None
        self.state.grow_old()
        self._ask_for_turn()

    def _can_wait(self) -> bool:
        state, now = self.state, self._kernel.now_ns
        busy = len(state.backlog) > len(state.running)
        if state.leaving or not busy or now - self._news_ns >= NEWS_PAUSE_S * SECOND:
            self._news_ns = now
            return False
        if self._news_timer is None:
            self._news_timer = self.process.call_later(NEWS_PAUSE_S, self._on_news_timer)
        return True

    def _on_news_timer(self) -> None:
        self._news_timer = None
        self._ask_for_turn()

    def _set_timer(self) -> None:
        deadline_ns = self.state.next_deadline()
        if deadline_ns is None or (self._timer is not None and self._timer_ns <= deadline_ns):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_ns = deadline_ns
        self._timer = self.process.call_later(max(0, deadline_ns - self.process.now_ns()) / SECOND, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self.state.wake(self.process.now_ns())
        self._ask_for_turn()

    # ------------------------------------------------------------------------------------------------------- leaving

    def drain(self) -> None:
        """Hand back what has not begun, let the rest end, and leave: a first signal, or the daemon's word."""
        self.runner.recall()
        self.state.drain(leave=True)
        self._ask_for_turn()

    def force(self) -> None:
        """Kill what runs and leave: a second signal."""
        if not self.is_forced and not self.is_over:
            self.is_forced = True
            self.runner.recall()
            self.state.abandon("worker stopped", self.process.now_ns())
            self.process.call_later(FORCED_ACK_S, self._finish)
            self._ask_for_turn()

    def _leave_if_done(self) -> None:
        if self.state.can_leave:
            if self.is_up and self._line is not None:
                self._line.write([WorkerGoodbye("stopped" if self.is_forced else "drained")])
            self._finish()
        elif self.is_forced and self.state.is_idle and self._line is None:
            self._finish()

    def _finish(self) -> None:
        if self.is_over:
            return
        self.is_over = True
        self._keep_ends(everything=True)
        if self._line is not None:
            self._line.close()
        self._left()

    def describe(self) -> str:
        """Say how it stands, for a failure."""
        state = self.state
        return (
            f"up {self.is_up}, leaving {state.leaving}, over {self.is_over}, running {sorted(state.running)}, "
            f"backlog {sorted(state.backlog)}, dying {sorted(state.dying)}, unheard {sorted(self.unheard)}"
        )

    def die(self) -> None:
        """The process is killed, and all that it runs with it."""
        self.is_over = True
        self.runner.kill_all()
        self.process.kill()
