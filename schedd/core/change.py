"""The operator changes the rules while work goes on: settings count at once, a policy takes over in steps.

What waits has to stand in the order of the new policy, and perhaps in other classes. With many tasks that takes longer
than a turn may, so they go over in the order of their ids, a portion in each turn; everything else goes on meanwhile,
but nothing is placed before all have gone over. Of backlogs is taken back what the new policy would not have sent
ahead. What the old policy has learned is kept under its name, for when it comes back.
"""

from __future__ import annotations

from collections.abc import Iterator

from schedd.core import events as ev
from schedd.core.classes import RequestClass
from schedd.core.fleet import Fleet
from schedd.core.guard import Guard
from schedd.core.model import Running, Succeeded, Task, TaskId, WorkerInfo
from schedd.core.queue import TaskQueue
from schedd.core.tables import Tables

#: A class as it was, and what tells tasks of it apart now: kind, and size where that counts.
ClassKey = tuple[int, str, float | None]


class Change:
    """The handlers of what the operator changes."""

    def __init__(self, tables: Tables, fleet: Fleet, guard: Guard) -> None:
        self._t = tables
        self._fleet = fleet
        self._guard = guard
        #: What is left to be done until the policy has taken over.
        self._steps: Iterator[None] = iter(())

    # -------------------------------------------------------------------------------------------------------- settings

    def on_settings_changed(self, event: ev.SettingsChanged) -> None:
        t, old, new = self._t, self._t.settings, event.settings
        lease_ns = t.lease_ns()
        t.settings = new
        t.tasks.keep(new.finished_keep_count, new.results_keep_bytes, new.keyed_keep_count)
        if new.failures != old.failures:
            self._guard.obey(new.failures)
        if new.prefetch != old.prefetch:
            self._send_ahead_anew()
        if (t.lease_ns(), new.lost_after_ns) != (lease_ns, old.lost_after_ns):
            self._fleet.on_lease_changed(lease_ns)
        if new.stealing and not old.stealing:
            t.arm_stealing()
        elif not new.stealing:
            t.deadlines.cancel(("steal", 0))
            t.idled.clear()
        t.placement_wanted = True

    def _send_ahead_anew(self) -> None:
        """Let every worker be looked at again: its backlog may be of another length now."""
        t = self._t
        t.placer.rule = t.settings.prefetch
        t.runtimes.call_short(t.settings.prefetch.runtime_max_s)
        for worker in t.resources:
            t.resources.touch(worker)

    # ---------------------------------------------------------------------------------------------------------- policy

    def on_policy_replaced(self, event: ev.PolicyReplaced) -> None:
        t, policy, shadow = self._t, event.policy, event.shadow
        if t.shadow is not None:
            t.learned_before[t.shadow.policy.name] = t.shadow.learned()
        t.learned_before[t.policy.name] = t.policy.learned()
        if shadow is not None:
            shadow.recall(t.learned_before.get(shadow.name, ()))
        policy.recall(t.learned_before.get(policy.name, ()))
        for taken in (policy, shadow):
            if taken is not None:
                t.learned_before.pop(taken.name, None)
        t.use(policy, shadow, TaskQueue(policy.ageing_rate, policy.level, t.queue))
        for timer in ("refresh", "preempt"):
            t.deadlines.cancel((timer, 0))
        t.placement_wanted = True
        self._steps = self._take_over(list(t.resources), t.tasks.ids())
        t.deadlines.set(("move", 0), t.now)  # which begins in this very turn

    def go_on(self) -> None:
        """Do the next portion, and let the next turn do what is left."""
        if next(self._steps, self) is not self:
            self._t.deadlines.set(("move", 0), self._t.now)

    def _take_over(self, workers: list[WorkerInfo], ids: range) -> Iterator[None]:
        t, portion = self._t, self._t.settings.moved_per_turn
        done = 0
        for worker in workers:
            if t.resources.by_seq.get(worker.seq) is worker:
                done += 1 + worker.task_count + len(worker.task_queue)
                self._take_over_worker(worker)
            if done >= portion:
                done = 0
                yield
        get, queue, by_kind, by_size = t.tasks.rows.get, t.queue, t.policy.by_kind, t.policy.by_size
        classes: dict[ClassKey, RequestClass] = {}
        for looked, task_id in enumerate(ids, done + 1):
            task = get(task_id)
            if task is not None:
                if task.after:
                    self._promote(task)
                if 0 < task.place < queue.first_place:
                    request = task.request
                    if request is not None and not request.suits(task, by_kind, by_size):
                        key = (request.number, task.kind, task.requirements.estimated_time if by_size else None)
                        if key not in classes:
                            classes[key] = t.classes.intern(task.requirements, task.kind, by_kind, by_size)
                        task.request = classes[key]
                    queue.take_over(task)
            if not looked % portion:
                yield

    def _take_over_worker(self, worker: WorkerInfo) -> None:
        """Tell the policy what runs there, and take back what it would not have sent ahead.

        What room is being made for stays: others were asked to stop for it.
        """
        t = self._t
        if t.policy.preempt_interval_s:
            for task in worker.running.values():
                if isinstance(task.state, Running):
                    t.policy.began(task, t.now)
        if worker.task_queue:
            awaited = {asked.for_id for asked in t.asked.values()}
            surplus = {task.id for task in t.placer.surplus(worker)} - awaited
            t.take_back(worker, lambda task: task.id in surplus)

    def _promote(self, task: Task) -> None:
        """Let a task that has not ended gain what it gains by the rule of the policy."""
        t, queue = self._t, self._t.queue
        if task.state.is_final or (promoted := self._promotion(task)) == task.promoted:
            return
        is_here = task.place >= queue.first_place
        if is_here:
            queue.remove(task)  # under its old rank
        task.promoted = promoted
        t.note_change(task)
        if is_here:
            queue.push(task)

    def _promotion(self, task: Task) -> float | None:
        """What a task gains by what it comes after; as before where there is no rule, or one of those is forgotten."""
        t, gains = self._t, []
        for other_id in task.after if t.policy.promotes else ():
            other = t.tasks.get(TaskId(other_id))
            if other is None:
                return task.promoted
            gain = t.policy.promotion(other.report) if isinstance(other.state, Succeeded) and other.report else None
            if gain is not None:
                gains.append(gain)
        return max(gains, default=None) if t.policy.promotes else task.promoted
