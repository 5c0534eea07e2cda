"""What is asked of the journal: tasks that have ended and been forgotten, results that are on disk only, history."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from schedd.core.engine import Engine
from schedd.core.model import Instant, Task, TaskId
from schedd.core.tasks import RESULT_DROPPED
from schedd.journal.records import FinishedTask, finished_row
from schedd.server import translate
from schedd.server.connections import Peer
from schedd.server.durable import Promises
from schedd.server.ports import Archive
from schedd.wire import messages as m
from schedd.wire.framing import FRAME_BYTES_MAX

#: Results, and bytes of them, that are read from the journal for a watcher in one go.
FETCHED_TOGETHER_MAX = 100
FETCHED_BYTES_MAX = 8 * 1024 * 1024

T = TypeVar("T")


class Past:
    """Asks the archive on behalf of clients, each question once all that has happened before it is written.

    done: told when the question of a peer, which counts as under way, is answered.
    """

    def __init__(self, engine: Engine, promises: Promises, done: Callable[[Peer], None]) -> None:
        self._engine = engine
        self._promises = promises
        self._done = done
        #: Set where there is a journal.
        self.archive: Archive | None = None

    def ask(self, peer: Peer, request: int, question: Callable[[Archive], T], answer: Callable[[T], None]) -> None:
        """Give `answer` what the archive says, once it knows all that has happened so far."""
        archive = self.archive
        if archive is None:
            self.tell_none(peer, request)
            return

        def answered(said: T) -> None:
            self._done(peer)
            answer(said)

        def failed(message: str, hint: str) -> None:
            self._done(peer)
            peer.send(m.RequestFailed(request, m.JOURNAL_FAILING, message, hint))

        peer.under_way += 1
        self._promises.when_written(lambda: archive.ask(lambda: question(archive), answered, failed))

    def history(self, peer: Peer, request: m.ListHistory) -> None:
        self.ask(peer, request.request, lambda archive: archive.history(request), peer.send)

    def back_up(self, peer: Peer, request: m.BackUp) -> None:
        self.ask(peer, request.request, lambda archive: archive.back_up(request), peer.send)

    @staticmethod
    def tell_none(peer: Peer, request: int) -> None:
        """Say that there is no journal."""
        hint = "set journal.enabled = true in config.toml"
        peer.send(m.RequestFailed(request, m.NO_JOURNAL, "this daemon keeps no journal", hint))

    def tell_unknown(self, peer: Peer, request: int, task_id: int) -> None:
        """Say that there is no such task."""
        hint = "finished tasks are forgotten in time" if 0 < task_id < self._engine.tasks.next_id else ""
        peer.send(m.RequestFailed(request, m.UNKNOWN_TASK, f"there is no task {task_id}", hint))

    # ---------------------------------------------------------------------------------------------------------- rows

    def may_know(self, task_id: int) -> bool:
        """Whether a task that is not in the table may have ended and been forgotten."""
        return self.archive is not None and 0 < task_id < self._engine.tasks.next_id

    def with_rows(
        self, peer: Peer, request: int, ids: list[TaskId], answer: Callable[[dict[TaskId, Task]], None]
    ) -> None:
        """Give `answer` the rows of these tasks, as far as they are known: from the table, or made of the journal."""
        rows = {i: task for i in ids if (task := self._engine.tasks.get(i)) is not None}
        forgotten = [i for i in ids if i not in rows and self.may_know(i)]

        def found(archived: dict[TaskId, Task]) -> None:
            answer(rows | archived)

        self.ask(peer, request, lambda archive: archive.rows(forgotten), found)

    def with_jobs(
        self, peer: Peer, request: int, ids: list[TaskId], answer: Callable[[dict[TaskId, str]], None]
    ) -> None:
        """Give `answer` the jobs of these tasks, as far as they are known."""
        self.with_rows(peer, request, ids, lambda rows: answer({i: task.job for i, task in rows.items()}))

    # ------------------------------------------------------------------------------------------------------- results

    def with_results(
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
        self._promises.when_written(lambda: archive.ask(question, found, lambda message, hint: answer({})))

    def tell_ends(self, peer: Peer, ids: list[TaskId]) -> None:
        """Tell a watcher of ends that are on disk only, a part after the other, as fast as it reads."""
        archive = self.archive
        if archive is None or peer.is_closing:
            return
        wanted = ids[:FETCHED_TOGETHER_MAX]

        def answer(found: tuple[dict[TaskId, FinishedTask], int]) -> None:
            records, looked = found
            for task_id in ids[:looked]:  # a message each: a result may be large
                peer.send(m.TasksDone([self.end_of(task_id, records.get(task_id))]))
            rest = ids[looked:]
            if rest and peer.is_paused:
                peer.put_off(lambda: self.tell_ends(peer, rest))
            elif rest:
                self.tell_ends(peer, rest)

        def failed(message: str, hint: str) -> None:
            answer(({}, len(wanted)))

        question = partial(archive.find, wanted, FETCHED_BYTES_MAX)
        self._promises.when_written(lambda: archive.ask(question, answer, failed))

    def end_of(self, task_id: TaskId, record: FinishedTask | None) -> m.TaskDone:
        """The end of a task as the journal has it; where it has none any more, what is left to say."""
        task = finished_row(record) if record is not None else self._engine.tasks.get(task_id)
        if task is None:
            return m.TaskDone(
                task_id, "failed", "lost", None, "what became of it is not kept any more", None, "", 0, False
            )
        return translate.task_done(task, True, record.result if record is not None else None)


def _ended_ns(task: Task) -> Instant:
    return getattr(task.state, "at_ns", 0)
