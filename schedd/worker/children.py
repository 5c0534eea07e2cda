"""Runs calls in warm child processes: started when needed, one call at a time each, kept for the next.

A child belongs to a set of devices, because a process that has opened a GPU cannot change over to another. It gets its
calls as packets in a socket's queue in the kernel. The worker keeps a copy of the child's end of that socket, so it
can take back what the child has not read: nobody else can have begun what we read ourselves. A child sends the end of
a call before it reads the next, so after taking back and then reading its answers, what is left is what it runs.

While a child's calls are short, it is sent a few ahead of their reservation, so that it never waits for a round trip.
Ahead calls stay in the worker's backlog. Should the running one turn out long, a timer takes them back.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import msgspec

from schedd.core.model import Call, Cause
from schedd.worker.attempts import Attempt, Ending
from schedd.worker.child_messages import (
    INLINE_BYTES_MAX,
    PACKET_BYTES_MAX,
    CallEnded,
    CallReport,
    ChildReady,
    Spooled,
    StartCall,
    encode,
    read_spooled,
    spool,
)
from schedd.worker.child_process import AHEAD_MAX, LONG_NS, Child, Sent, keep_output, name_in, start_child
from schedd.worker.commands import OnEnded
from schedd.worker.functions import FunctionNumbers
from schedd.worker.logs import LogStore
from schedd.worker.oom import KernelOom
from schedd.worker.processes import describe_exit, reap
from schedd.worker.trees import Containment

#: What was sent ahead is taken back when the call before it takes longer than this.
STUCK_S = 0.003
#: How long an idle child may take to run its own exit handlers.
CHILD_EXIT_S = 3.0
#: Messages read from one child before others get their turn; a call that reports in a loop never stops sending.
ANSWERS_PER_TURN = 256
ANSWERS_MAX = 4096
OnReport = Callable[[int, int, int, dict[str, float]], None]
_decoder = msgspec.msgpack.Decoder(ChildReady | CallReport | CallEnded | Spooled)


class Children:
    """The child processes of a worker and the calls in their hands."""

    def __init__(
        self,
        folder: Path,
        logs: LogStore,
        containment: Containment,
        on_ended: OnEnded,
        on_report: OnReport,
        env_of: Callable[[tuple[int, ...]], dict[str, str]],
        align: Callable[[int], int],
        ask_for_turn: Callable[[], None],
        on_root_gone: Callable[[], object],
        kernel: KernelOom,
        *,
        worker: str,
        idle_s: float,
        result_bytes_max: int,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._folder = folder
        self._logs = logs
        self._containment = containment
        self._on_ended = on_ended
        self._on_report = on_report
        self._env_of = env_of
        self._align = align
        self._ask_for_turn = ask_for_turn
        self._on_root_gone = on_root_gone
        self._kernel = kernel
        self._worker = worker
        self._idle_s = idle_s
        self._result_bytes_max = result_bytes_max
        self._functions = FunctionNumbers()
        self._children: list[Child] = []
        self._child_of: dict[Attempt, Child] = {}
        #: Reserved, started, and taken back from a child since; in order.
        self._homeless: dict[Attempt, None] = {}
        self._count = 0
        self._buffer = bytearray(PACKET_BYTES_MAX)
        self._view = memoryview(self._buffer)
        self._ahead_count = 0
        self._look_timer: asyncio.TimerHandle | None = None

    def roots(self) -> dict[int, str]:
        """The pid of each child, and its name as a root."""
        return {child.tree.pid: child.root for child in self._children}

    # ----------------------------------------------------------------------------------------------- start and stop

    def start(self, row: Attempt) -> None:
        """Run a reserved call on an idle child, or on a new one. One that was sent ahead is where it should be."""
        if row.ahead:
            self._not_ahead(row)
            return
        try:
            child = self._idle_child(row.devices) or self._start_child(row.devices)
            self._send(child, row)
        except (OSError, ValueError) as error:
            self._on_ended(row, Ending(Cause.ERROR, message=f"the call cannot be started: {error}"))

    def _idle_child(self, devices: tuple[int, ...]) -> Child | None:
        for child in self._children:
            if not child.sent and child.devices == devices and not child.ending:
                return child
        return None

    def start_homeless(self) -> None:
        """Start what was taken back from a child and was reserved already."""
        while self._homeless:
            row = next(iter(self._homeless))
            del self._homeless[row]
            self.start(row)

    def terminate(self, row: Attempt) -> None:
        """Ask a call to end; one that looks whether it was asked (`schedd.should_stop`) is not sent a signal."""
        child = self._running_at(row)
        if child is not None and not child.stop.ask():
            child.tree.signal(signal.SIGTERM)

    def kill(self, row: Attempt) -> None:
        child = self._running_at(row)
        if child is not None:
            child.tree.signal(signal.SIGKILL)

    def _running_at(self, row: Attempt) -> Child | None:
        """The child that runs a call, for nothing else from here on. What has not begun ends here."""
        child = self._child_of.get(row)
        if child is not None:
            # Take back what waits behind it, so that the stop can hit nothing else.
            self._take_back(child)
        if row in self._homeless:
            del self._homeless[row]
            self._on_ended(row, Ending(Cause.CANCELLED))
        elif child is not None and row in self._child_of:
            child.ending = True
            return child
        return None

    # --------------------------------------------------------------------------------------------- ahead, and back

    def send_ahead(self, upcoming: Callable[[int], list[Attempt]]) -> None:
        """Top up the queues of children whose calls are short with what comes next; `upcoming` lists it."""
        takers = [child for child in self._children if child.wants_more]
        if not takers:
            return
        rows = upcoming(AHEAD_MAX * len(self._children))
        if not rows:
            return
        # Only what a child gives back itself makes room for the next, so it must be the same need.
        takers = [child for child in takers if child.sent[0].row.need is rows[0].need]
        self._deal_out(takers, rows)
        if self._ahead_count and self._look_timer is None:
            self._look_timer = self._loop.call_later(STUCK_S, self._look)

    def _deal_out(self, takers: list[Child], rows: list[Attempt]) -> None:
        position = 0
        for count, child in enumerate(takers):
            share = -(-(len(rows) - position) // (len(takers) - count))
            for _ in range(min(share, child.ahead_limit - len(child.sent))):
                if not self._try_ahead(child, rows[position]):
                    return
                position += 1

    def _try_ahead(self, child: Child, row: Attempt) -> bool:
        payload = row.spec.payload
        assert isinstance(payload, Call)
        # A packet with a function's bytes must not be taken back from before one that needs them.
        if not payload.path and (
            any(sent.defines for sent in child.sent) or not child.known.has(self._functions.number_of(payload.function))
        ):
            return False
        try:
            self._send(child, row)
        except OSError:
            return False
        row.ahead = True
        self._ahead_count += 1
        return True

    def _not_ahead(self, row: Attempt) -> None:
        if row.ahead:
            row.ahead = False
            self._ahead_count -= 1

    def _look(self) -> None:
        """Take back what waits behind a call that turned out long."""
        self._look_timer = None
        for child in list(self._children):
            if len(child.sent) > 1 and child.looked_at == child.answered:
                child.runtime_ns = LONG_NS
                self._take_back(child)
            child.looked_at = child.answered
        if any(len(child.sent) > 1 for child in self._children):
            self._look_timer = self._loop.call_later(STUCK_S, self._look)
        if self._homeless:
            self._ask_for_turn()

    def recall(self) -> None:
        """Take back all that no child has begun, and mark what one has."""
        for child in list(self._children):
            if child.sent:
                self._take_back(child)

    def _take_back(self, child: Child) -> None:
        """Empty a child's queue, then read its answers: what is left in `sent` is what it runs, one at most."""
        # The kernel gives each packet to one reader only, so what is read here was never begun. The child may well
        # get a later one than we do.
        for _ in range(len(child.sent)):
            try:
                size = child.far_end.recv_into(self._buffer, 0, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            self._on_taken_back(child, name_in(self._view[:size]))
        self._read_answers(child, ANSWERS_MAX)
        for sent in child.sent:
            sent.row.begun = True

    def _on_taken_back(self, child: Child, name: tuple[int, int]) -> None:
        for sent in child.sent:
            if (sent.row.task_id, sent.row.attempt) == name:
                break
        else:
            return
        child.sent.remove(sent)
        child.known.discard(sent.defines)
        del self._child_of[sent.row]
        if sent.row.ahead:
            self._not_ahead(sent.row)
        else:
            self._homeless[sent.row] = None

    # ---------------------------------------------------------------------------------------------------- packets

    def _send(self, child: Child, row: Attempt) -> None:
        """Put a call into a child's queue. Raises OSError where it does not fit."""
        payload = row.spec.payload
        assert isinstance(payload, Call)
        number, function = 0, b""
        forget: tuple[int, ...] = ()
        if not payload.path:
            number = self._functions.number_of(payload.function)
            is_new, forget = child.known.add(number)
            if is_new:
                function = payload.function
        call = StartCall(
            row.task_id, row.attempt, number, function, payload.path, row.argument, row.spec.job, row.spec.kind, forget
        )
        packet = encode(call)
        try:
            if len(packet) > INLINE_BYTES_MAX:
                packet = spool(packet, f"{self._folder}/{row.name}.call")
            child.channel.send(packet)
        except OSError:
            if function:
                child.known.discard(number)
            raise
        child.sent.append(Sent(row, number if function else 0))
        self._child_of[row] = child

    def _on_readable(self, child: Child) -> None:
        self._read_answers(child, ANSWERS_PER_TURN)
        self._ask_for_turn()

    def _read_answers(self, child: Child, limit: int) -> None:
        view = self._view
        receive = child.channel.recv_into
        for _ in range(limit):
            try:
                size = receive(self._buffer)
            except BlockingIOError:
                return
            try:
                message = _decoder.decode(view[:size])
                if type(message) is Spooled:
                    message = _decoder.decode(read_spooled(message))
            except (msgspec.MsgspecError, OSError, ValueError):
                # Something in the child wrote into our channel.
                child.ending = True
                child.tree.kill()
                return
            if type(message) is CallEnded:
                self._on_call_ended(child, message)
            elif type(message) is CallReport:
                self._on_report(message.task_id, message.attempt, message.step, message.metrics)
            else:
                child.ready = True

    def _on_call_ended(self, child: Child, message: CallEnded) -> None:
        row = child.sent[0].row if child.sent else None
        if row is None or row.task_id != message.task_id or row.attempt != message.attempt:
            child.ending = True
            child.tree.kill()
            return
        child.sent.popleft()
        child.answered += 1
        child.runtime_ns = message.finished_at_ns - message.started_at_ns
        child.ending = child.ending or message.leftovers
        if not child.sent:
            child.idle_since = self._loop.time()
            if child.ending:
                # It was to be terminated, and ended its call by itself.
                self._end_child(child)
        self._logs.ended(row.name, has_output=message.has_output)
        started_at_ns, finished_at_ns = self._align(message.started_at_ns), self._align(message.finished_at_ns)
        self._end(
            row,
            Ending(message.cause, message.result, None, None, message.message, started_at_ns, finished_at_ns),
        )

    def _end(self, row: Attempt, ending: Ending) -> None:
        self._child_of.pop(row, None)
        self._not_ahead(row)
        self._on_ended(row, ending)

    # --------------------------------------------------------------------------------------- processes of their own

    def _start_child(self, devices: tuple[int, ...]) -> Child:
        self._count += 1
        child = start_child(
            devices,
            self._env_of(devices),
            f"{self._folder}/child-{self._count}",
            self._containment,
            worker=self._worker,
            log_folder=str(self._logs.folder),
            result_bytes_max=self._result_bytes_max,
        )
        self._children.append(child)
        self._loop.add_reader(child.tree.pidfd, self._on_exit, child)
        self._loop.add_reader(child.channel.fileno(), self._on_readable, child)
        return child

    def _on_exit(self, child: Child) -> None:
        if child.ready:
            self._take_back(child)
        else:
            self._read_answers(child, ANSWERS_MAX)
        child.tree.end()
        code = reap(child.tree.pid)
        self._close(child)
        keep_output(child, self._logs)
        failure = "the child process died" if child.ready else "the child process did not start"
        exit_code, signal_number = (code, None) if code >= 0 else (None, -code)
        cause, message = Cause.ERROR, f"{failure}: {describe_exit(code)}"
        if child.tree.oom_kills():
            cause, message = Cause.OOM_HOST, f"{message}: its cgroup was out of memory"
        elif code == -signal.SIGKILL and self._kernel.named(child.tree.pid):
            cause, message = Cause.OOM_HOST, f"{message}: the kernel killed it for lack of memory"
        for sent in child.sent:
            self._end(sent.row, Ending(cause, None, exit_code, signal_number, message))
        child.sent.clear()
        self._on_root_gone()
        self._ask_for_turn()

    def _close(self, child: Child) -> None:
        self._children.remove(child)
        self._loop.remove_reader(child.tree.pidfd)
        self._loop.remove_reader(child.channel.fileno())
        os.close(child.tree.pidfd)
        child.channel.close()
        child.far_end.close()
        child.stop.remove()

    def running_file(self, task_id: int, attempt: int, stream: str) -> str | None:
        """Where the output of a call is while it runs; None where it does not run."""
        for child in self._children:
            if child.sent and child.sent[0].row.name == f"{task_id}.{attempt}":
                return f"{child.output}.{stream}"
        return None

    def end_idle(self) -> None:
        """End the children that had nothing to do for long."""
        oldest = self._loop.time() - self._idle_s
        for child in self._children:
            if not child.sent and not child.ending and child.idle_since < oldest:
                self._end_child(child)

    def free_devices(self, row: Attempt) -> None:
        """End idle children that may still hold memory of the devices that an attempt is about to use."""
        for child in self._children:
            if child.devices and not child.sent and not child.ending and not set(child.devices).isdisjoint(row.devices):
                is_the_one = child.devices == row.devices and isinstance(row.spec.payload, Call)
                if not is_the_one:
                    self._end_child(child)

    def _end_child(self, child: Child) -> None:
        """Tell an idle child that there will be nothing more; it leaves by itself, or is killed."""
        child.ending = True
        child.channel.shutdown(socket.SHUT_WR)
        self._loop.call_later(CHILD_EXIT_S, self._kill_if_here, child)

    def _kill_if_here(self, child: Child) -> None:
        if child in self._children:
            child.tree.kill()

    def close(self) -> None:
        """Kill all children and wait for them."""
        if self._look_timer is not None:
            self._look_timer.cancel()
        for child in list(self._children):
            child.tree.kill()
            child.tree.end()
            reap(child.tree.pid)
            self._close(child)
