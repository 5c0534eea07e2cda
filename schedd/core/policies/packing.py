"""Packing: which worker a task should go to, so that others still fit.

A device is *stranded* for a sort of task where it is free, in part or in full, and such a task cannot use it: its share
is too small, too few others are free beside it, or CPUs or memory have run out. A task goes where it adds least to what
is stranded for the sorts of tasks that come, weighted by how often they come (Weng et al., "Beware of Fragmentation:
Scheduling GPU-Sharing Workloads with Fragmentation Gradient Descent", ATC 2023). Two things are different here. The
sorts are learned from what comes, and weighted by the root of their frequency, as the rare ones are often big. And a
part counts what would be stranded if only this sort came from now on, which sees CPUs run out before they have.
"""

from __future__ import annotations

from collections.abc import Hashable

from schedd.core.capacity import Ledger
from schedd.core.model import Task, WorkerInfo
from schedd.core.needs import Need
from schedd.core.policies.base import Draft

#: Sorts of tasks that are looked at, the most frequent: each costs a third of a microsecond for a state.
SORTS_MAX = 64
#: Tasks after which what was counted before weighs half.
SEEN_MAX = 4096
#: By how much the count grows until the weights are looked at anew, and the share of them that must have moved for all
#: workers to be scored anew.
GROWTH = 1.5
MOVED_MIN = 0.05
#: What is stranded in the states of workers that have been met: a score is two look-ups as long as they come back.
STATES_MAX = 20_000
#: Weight of what would be stranded later; and what decides between equals: few free devices first, then few free CPUs.
AHEAD = 0.1
FREE_SHARE, FREE_CPUS = 1e-3, 1e-6

#: Free thousandths, free MiB and model of each device that has anything free, in order.
Devices = tuple[tuple[int, int, str], ...]
State = tuple[int, int, Devices]
#: What a sort asks of devices, and (weight now, weight ahead, CPUs, RAM) of those that ask for this.
Sort = tuple[Need, list[tuple[float, float, int, int]]]


class Packing:
    """Counts the sorts of tasks and scores workers by what is stranded."""

    def __init__(self) -> None:
        #: How many tasks of a class came, the last, and what they need, by key of the class.
        self._seen: dict[Hashable, tuple[float, int, tuple[Need, ...]]] = {}
        self._count = 0.0
        self._next = 1.0
        #: Weight of each class that is looked at, by its key; and the same by what they ask for.
        self._weights: dict[Hashable, float] = {}
        self._sorts: list[Sort] = []
        self._states: dict[State, float] = {}

    def plan(self, draft: Draft) -> None:
        """Do what `TaskScheduler.plan` does, and count."""
        while (task := draft.head()) is not None:
            if self._note(task):
                draft.rescore()
            worker = draft.candidate(task)
            if worker is None:
                draft.block(task)
            else:
                draft.assign(task, worker)

    def score(self, task: Task, worker: WorkerInfo) -> float:
        """Thousandths of devices that the task would strand on the worker, lower is better. O(sorts * devices)."""
        ledger, request = worker.ledger, task.request
        if ledger is None or request is None:
            return float(worker.num_gpus)
        for need in request.needs:
            picked = ledger.pick(need) if need.gpus else ()
            if picked is not None and not ledger.blocker(need):
                before = _state(ledger, None, ())
                after = _state(ledger, need, picked)
                free = sum(share for share, _, _ in after[2])
                return self._stranded(after) - self._stranded(before) + FREE_SHARE * free + FREE_CPUS * after[0]
        return 0.0

    def _note(self, task: Task) -> bool:
        """Count a task, unless it was the last of its class that was: heads that wait come again and again.

        True where scores have changed by it.
        """
        request = task.request
        if request is None or not request.needs[0].gpus:
            return False
        count, last, _ = self._seen.get(request.key, (0.0, 0, ()))
        if last == task.id:
            return False
        self._seen[request.key] = (count + 1, task.id, request.needs)
        self._count += 1
        return self._count >= self._next and self._weigh()

    def _weigh(self) -> bool:
        """Make the weights anew, if they would differ by enough. O(classes)."""
        if self._count > SEEN_MAX:
            self._seen = {key: (n / 2, last, needs) for key, (n, last, needs) in self._seen.items() if n >= 1}
            self._count = sum(n for n, _, _ in self._seen.values())
        self._next = self._count * GROWTH
        frequent = sorted(self._seen.items(), key=lambda seen: -seen[1][0])[:SORTS_MAX]
        counts = sum(count for _, (count, _, _) in frequent)
        roots = sum(count**0.5 for _, (count, _, _) in frequent)
        weights = {key: count**0.5 / roots for key, (count, _, _) in frequent}
        before = self._weights
        if sum(abs(weights.get(key, 0) - before.get(key, 0)) for key in weights | before) < 2 * MOVED_MIN:
            return False
        sorts: dict[tuple[int, int, int, str], Sort] = {}
        for key, (count, _, needs) in frequent:
            now, ahead = weights[key] / len(needs), AHEAD * count / counts / len(needs)
            for need in (need for need in needs if need.gpus):
                sort = sorts.setdefault((need.gpus, need.share, need.gpu_mb, need.gpu_model), (need, []))
                sort[1].append((now, ahead, need.cpus, need.ram_mb))
        self._weights, self._sorts = weights, list(sorts.values())
        self._states.clear()
        return True

    def _stranded(self, state: State) -> float:
        """Thousandths of the free devices that are stranded, the mean over the sorts."""
        known = self._states.get(state)
        if known is not None:
            return known
        cpus, ram_mb, devices = state
        free = sum(share for share, _, _ in devices)
        total = 0.0
        for need, sort in self._sorts if free else ():
            devices_fit = tasks_fit = unfit = 0
            for share, mb, model in devices:
                if share >= need.share and mb >= need.gpu_mb and need.gpu_model in model:
                    devices_fit += 1
                    tasks_fit += share // need.share
                else:
                    unfit += share
            for now, ahead, cpus_each, ram_each in sort:
                if devices_fit < need.gpus or cpus_each > cpus or ram_each > ram_mb:
                    total += (now + ahead) * free
                    continue
                fitting = tasks_fit // need.gpus
                if cpus_each:
                    fitting = min(fitting, cpus // cpus_each)
                if ram_each:
                    fitting = min(fitting, ram_mb // ram_each)
                total += now * unfit + ahead * (free - fitting * need.gpus * need.share)
        if len(self._states) >= STATES_MAX:
            self._states.clear()
        self._states[state] = total
        return total


def _state(ledger: Ledger, need: Need | None, picked: tuple[int, ...]) -> State:
    """What is free on a worker, or would be if `need` got these devices. Equal states are equal whatever the order."""
    devices = []
    for index, device in enumerate(ledger.devices):
        share, mb = device.free_share, device.free_mb
        if need is not None and index in picked:
            share, mb = share - need.share, mb - need.gpu_mb
        if share > 0:
            devices.append((share, mb, device.model))
    devices.sort()
    cpus, ram_mb = (need.cpus, need.ram_mb) if need is not None else (0, 0)
    return ledger.free_cpus - cpus, ledger.free_ram_mb - ram_mb, tuple(devices)
