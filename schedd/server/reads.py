"""What clients read of the tables: tasks, jobs, workers, beliefs; and the watches that they set on tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from itertools import zip_longest
from typing import Any

from schedd.core.engine import Engine
from schedd.core.model import Instant, Task, TaskId
from schedd.core.tasks import is_meant
from schedd.server import translate
from schedd.server.connections import Peer
from schedd.server.past import Past
from schedd.server.ports import Clock
from schedd.server.watching import Watchers
from schedd.wire import messages as m

#: A listing answers with at most so many tasks at a time, however many were asked for.
LIST_LIMIT_MAX = 5000
#: Rows that a reader looks at before others have their turn: some 10 ms of the loop's time.
ROWS_PER_READ_MAX = 10_000
#: And rows that it tells of: some 50 us.
VIEWS_PER_READ = 25
#: Beliefs of kinds in one answer, some 100 bytes each.
KINDS_LISTED_MAX = 10_000

#: A reader that stops after so many rows and goes on in a later turn.
Reading = Iterator[None]


class Reads:
    """Answers what clients ask of the tables.

    is_told: whether everybody may know of the end of a task. go_on: lets a reading work on that nobody waits for.
    """

    def __init__(
        self,
        engine: Engine,
        clock: Clock,
        past: Past,
        watchers: Watchers,
        is_told: Callable[[Task], bool],
        go_on: Callable[[Peer, Reading], None],
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._past = past
        self._watchers = watchers
        self._is_told = is_told
        self._go_on = go_on
        self.answers: dict[type[Any], Callable[[Peer, Any], Reading | None]] = {
            m.ListTasks: self.list_tasks,
            m.ListJobs: self.list_jobs,
            m.ListWorkers: self.list_workers,
            m.GetPolicy: self.policy,
            m.GetKinds: self.kinds,
            m.ExplainTask: self.explain,
            m.WatchTasks: self.watch,
        }

    def list_tasks(self, peer: Peer, request: m.ListTasks) -> Reading:
        limit = min(max(1, request.limit), LIST_LIMIT_MAX)
        selection = request.selection
        unknown = [i for i in selection.ids if self._engine.tasks.get(i) is None]
        if unknown and self._past.may_know(unknown[0]):
            self._list_from_disk(peer, request, limit)
            return
        if unknown and len(selection.ids) == len(unknown):
            self._past.tell_unknown(peer, request.request, unknown[0])
            return
        rows: list[Task] = []
        more = False
        for looked, (_, task) in enumerate(self._engine.tasks.look(selection, request.after_id), 1):
            if task is not None:
                more = len(rows) == limit
                if more:
                    break
                rows.append(task)
            if not looked % ROWS_PER_READ_MAX:
                yield
        yield from self._send_list(peer, request, rows, more)

    def _send_list(self, peer: Peer, request: m.ListTasks, rows: list[Task], more: bool) -> Reading:
        if not request.detail:
            yield from self._tell_list(peer, request, rows, more, {})
            return

        def answer(results: dict[TaskId, bytes]) -> None:
            self._go_on(peer, self._tell_list(peer, request, rows, more, results))

        self._past.with_results(peer, request.request, rows, answer)

    def _tell_list(
        self, peer: Peer, request: m.ListTasks, rows: list[Task], more: bool, results: dict[TaskId, bytes]
    ) -> Reading:
        promotes = self._engine.policy.promotes
        views: list[m.TaskView] = []
        details: list[m.TaskDetail] = []
        for looked, task in enumerate(rows, 1):
            views.append(translate.task_view(task, promotes))
            if request.detail:
                details.append(translate.task_detail(self._engine, task, results.get(task.id)))
            if not looked % VIEWS_PER_READ:
                yield
        peer.send(m.TaskList(request.request, views, details, more))

    def _list_from_disk(self, peer: Peer, request: m.ListTasks, limit: int) -> None:
        """List tasks by their ids, of which some have ended and been forgotten: these are in the journal."""
        selection = request.selection
        ids = [i for i in sorted(set(selection.ids)) if i > request.after_id]

        def answer(rows: dict[TaskId, Task]) -> None:
            if not rows:
                self._past.tell_unknown(peer, request.request, ids[0] if ids else selection.ids[0])
                return
            meant = [rows[i] for i in ids if i in rows and is_meant(rows[i], selection)]
            self._go_on(peer, self._send_list(peer, request, meant[:limit], len(meant) > limit))

        self._past.with_rows(peer, request.request, ids, answer)

    def list_jobs(self, peer: Peer, request: m.ListJobs) -> Reading:
        views = []
        looked = 0
        for name in list(self._engine.tasks.jobs):
            job = self._engine.tasks.jobs.get(name)
            if job is not None:
                views.append(translate.job_view(self._engine, job))
                looked += views[-1].total
            if looked > ROWS_PER_READ_MAX:
                looked = 0
                yield
        peer.send(m.JobList(request.request, views))

    def list_workers(self, peer: Peer, request: m.ListWorkers) -> None:
        now, engine = self._clock.now_ns(), self._engine
        views = [translate.worker_view(engine, worker, now) for worker in engine.resources]
        peer.send(m.WorkerList(request.request, views))

    def policy(self, peer: Peer, request: m.GetPolicy) -> None:
        peer.send(m.PolicyState(request.request, self._engine.policy.name, translate.steals_view(self._engine)))

    def kinds(self, peer: Peer, request: m.GetKinds) -> None:
        newest = self._engine.believed()[::-1]
        limit = max(0, min(request.limit, KINDS_LISTED_MAX))
        peer.send(m.Kinds(request.request, self._engine.policy.name, newest[:limit]))

    def explain(self, peer: Peer, request: m.ExplainTask) -> None:
        task = self._engine.tasks.get(request.task_id)
        if task is None:
            self._past.tell_unknown(peer, request.request, request.task_id)
            return
        why = self._engine.explain(task)
        peer.send(
            m.Explanation(request.request, task.id, task.state.name, why.summary, why.blockers, why.workers, why.ahead)
        )

    def watch(self, peer: Peer, request: m.WatchTasks) -> Reading:
        selection = request.selection
        if request.again:
            self._watch_again(peer, request)
            return
        if selection.job and selection.job not in self._engine.tasks.jobs and not selection.ids:
            peer.send(m.RequestFailed(request.request, m.UNKNOWN_JOB, f"there is no job {selection.job!r}"))
            return
        unknown = [i for i in selection.ids if self._engine.tasks.get(i) is None]
        if unknown and self._past.may_know(unknown[0]):
            self._watch_from_disk(peer, request, unknown)
        elif unknown:
            self._past.tell_unknown(peer, request.request, unknown[0])
        else:
            yield from self._watch_rows(peer, request)

    def _watch_from_disk(self, peer: Peer, request: m.WatchTasks, forgotten: list[TaskId]) -> None:
        """Watch tasks of which some have ended and been forgotten: their ends are told from the journal."""

        def answer(rows: dict[TaskId, Task]) -> None:
            missing = next((i for i in forgotten if i not in rows), None)
            if missing is not None:
                self._past.tell_unknown(peer, request.request, missing)
            else:
                self._go_on(peer, self._watch_rows(peer, request, set(forgotten)))

        self._past.with_rows(peer, request.request, forgotten, answer)

    def _watch_rows(self, peer: Peer, request: m.WatchTasks, forgotten: Set[TaskId] = frozenset()) -> Reading:
        selection = request.selection
        watch = peer.watch(request.results, request.reports)
        total = finished = 0
        ids: list[TaskId] = []
        for looked, (task_id, task) in enumerate(self._engine.tasks.look(selection), 1):
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
            task = self._engine.tasks.get(TaskId(task_id))
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

        if forgotten and self._past.archive is not None:
            self._past.with_rows(peer, request.request, list(forgotten), answer)
        else:
            answer({})
