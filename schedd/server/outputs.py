"""The output of tasks: it lies on the worker that ran them, which is asked for each piece of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from msgspec import Struct

from schedd.core.engine import Engine
from schedd.core.model import Task, TaskId, WorkerId
from schedd.server.connections import Peer
from schedd.server.past import Past
from schedd.wire import messages as m

#: One read of output is answered with at most so many bytes.
LOG_BYTES_MAX = 1024 * 1024
#: Reads of output by one client that workers have not answered yet.
LOG_READS_MAX = 1000
#: What a worker says of why there is no output is passed on up to so many characters.
ERROR_MAX = 200


class Read(Struct, frozen=True):
    """A read that a worker was asked for: whose, its number, and of which attempt."""

    peer: Peer
    request: int
    attempt: int
    worker_id: WorkerId


class Outputs:
    """Passes on reads of output, and what workers say to them. numbers: of the questions to workers."""

    def __init__(self, engine: Engine, past: Past, workers: Mapping[WorkerId, Peer], numbers: Iterator[int]) -> None:
        self._engine = engine
        self._past = past
        self._workers = workers
        self._numbers = numbers
        self._reads: dict[int, Read] = {}

    def __len__(self) -> int:
        return len(self._reads)

    def read(self, peer: Peer, request: m.ReadLog) -> None:
        """Answer a client, once its worker has."""
        task = self._engine.tasks.get(request.task_id)
        if task is not None:
            self._ask_worker(peer, request, task)
        elif self._past.may_know(request.task_id):

            def answer(rows: dict[TaskId, Task]) -> None:
                if rows:
                    self._ask_worker(peer, request, rows[request.task_id])
                else:
                    self._past.tell_unknown(peer, request.request, request.task_id)

            self._past.with_rows(peer, request.request, [request.task_id], answer)
        else:
            self._past.tell_unknown(peer, request.request, request.task_id)

    def _ask_worker(self, peer: Peer, request: m.ReadLog, task: Task) -> None:
        attempt = request.attempt or task.attempt
        ended = next((a for a in task.attempts if a.attempt == attempt), None)
        worker_id = ended.worker_id if ended is not None else task.worker_id
        if not worker_id and self._engine.awaited:
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
        self._reads[number] = Read(peer, request.request, attempt, worker_id)
        peer.log_reads.add(number)
        limit = min(max(0, request.limit), LOG_BYTES_MAX)
        worker.send(m.FetchLog(number, task.id, attempt, request.stream, request.offset, limit))

    def take(self, worker_id: WorkerId, piece: m.LogPiece) -> None:
        """Pass on what a worker says to a read."""
        read = self._reads.get(piece.request)
        if read is None or read.worker_id != worker_id:
            return  # answered twice, or by a worker that was not asked
        del self._reads[piece.request]
        read.peer.log_reads.discard(piece.request)
        if piece.error:
            read.peer.send(m.RequestFailed(read.request, m.UNKNOWN_TASK, piece.error[:ERROR_MAX]))
        else:
            read.peer.send(m.LogData(read.request, piece.data, piece.offset, piece.size, piece.done, read.attempt))

    def worker_gone(self, worker_id: WorkerId) -> None:
        """No answer will come from this worker."""
        for number in [n for n, read in self._reads.items() if read.worker_id == worker_id]:
            read = self._reads.pop(number)
            read.peer.log_reads.discard(number)
            read.peer.send(m.RequestFailed(read.request, m.WORKER_AWAY, f"worker {worker_id} went away"))

    def forget(self, peer: Peer) -> None:
        """Nobody waits for the reads of this client any more."""
        for number in peer.log_reads:
            del self._reads[number]
