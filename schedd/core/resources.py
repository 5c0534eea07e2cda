"""The worker table: who is there, what is reserved, and the log of changes that ordered indexes are kept by.

Capacity (declared), reserved (promised by us) and usage (measured) stay three separate things: `WorkerInfo.resources`,
`WorkerInfo.ledger` and `WorkerInfo.usage`. The backlog of a worker is mirrored by one rule that both sides follow: its
head starts as soon as it fits beside what runs, and nothing overtakes it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from schedd.core.capacity import Ledger
from schedd.core.model import (
    Instant,
    Running,
    Task,
    TaskRequirements,
    WorkerId,
    WorkerInfo,
    WorkerResources,
    WorkerStatus,
)
from schedd.core.needs import Need, compile_needs

#: An enumeration looks its members up by name at each use; these are used for each placement.
_IDLE, _BUSY = WorkerStatus.IDLE, WorkerStatus.BUSY


def need_of(task: Task) -> Need:
    """The need that the current attempt was placed by."""
    request = task.request
    if request is None:
        raise ValueError(f"task {task.id} has no request class")
    return request.needs[task.variant if task.variant < len(request.needs) else 0]


class ResourceManager:
    """The table of workers. Every change of what is free goes through here."""

    def __init__(self) -> None:
        self.workers: dict[WorkerId, WorkerInfo] = {}
        self.by_seq: dict[int, WorkerInfo] = {}
        self._next_seq = 1
        #: Workers changed since the last `commit`, by seq.
        self.touched: dict[int, WorkerInfo] = {}
        #: Workers whose change was committed since the last `take_fresh`, by seq.
        self.fresh: dict[int, WorkerInfo] = {}
        #: Grows when a worker comes, goes, or begins or ceases to take work.
        self.members_version = 0
        #: Seqs of the workers that take work and have a free share of a CPU, as of the last `commit`.
        self.open: set[int] = set()
        #: Those of them that have a free share of a device.
        self.open_devices: set[int] = set()
        #: All seqs in the order of joining, those of workers that left not yet swept out.
        self.order: list[int] = []
        #: Seqs of changed workers; `base` is the number of the first entry, numbers grow for ever.
        self.changes: list[int] = []
        self.base = 0

    def __len__(self) -> int:
        return len(self.workers)

    def __iter__(self) -> Iterator[WorkerInfo]:
        return iter(self.workers.values())

    # ------------------------------------------------------------------------------------------------- the table

    def add(self, worker_id: WorkerId, resources: WorkerResources, now: Instant = 0) -> WorkerInfo:
        """Enter a worker with nothing reserved. Raises ValueError if it is there already."""
        if worker_id in self.workers:
            raise ValueError(f"worker {worker_id!r} is already there")
        ledger = Ledger(resources)
        worker = WorkerInfo(
            worker_id,
            num_gpus=len(ledger.devices),
            task_queue=deque(),
            resources=resources,
            ledger=ledger,
            seq=self._next_seq,
            joined_ns=now,
            last_seen_ns=now,
        )
        self._next_seq += 1
        self.workers[worker_id] = worker
        self.by_seq[worker.seq] = worker
        self.order.append(worker.seq)
        self.members_version += 1
        self.touch(worker)
        return worker

    def remove(self, worker_id: WorkerId) -> None:
        """Take a worker out. Raises KeyError if it is not there."""
        worker = self.workers.pop(worker_id)
        del self.by_seq[worker.seq]
        self.open.discard(worker.seq)
        self.open_devices.discard(worker.seq)
        self.touched.pop(worker.seq, None)
        self.fresh.pop(worker.seq, None)
        self.members_version += 1
        if len(self.order) > 64 + 2 * len(self.workers):
            self.order = list(self.by_seq)
        worker.status = WorkerStatus.DEAD

    def update_resources(self, worker_id: WorkerId | str, values: Mapping[str, Any] | WorkerResources) -> WorkerInfo:
        """Declare a worker's capacity, entering it if it is new; what is reserved on it stays reserved.

        Raises ValueError for unknown keys and amounts that mean nothing, with nothing changed.
        """
        resources = values if isinstance(values, WorkerResources) else WorkerResources.from_dict(values)
        known = self.workers.get(WorkerId(worker_id))
        if known is None:
            return self.add(WorkerId(worker_id), resources)
        ledger = Ledger(resources)
        if any(index >= len(ledger.devices) for task in known.running.values() for index in task.devices):
            raise ValueError(f"a device of {worker_id!r} that is no longer declared is reserved by a running attempt")
        for task in known.running.values():
            ledger.reserve_exactly(need_of(task), task.devices)
        known.resources, known.ledger, known.num_gpus = resources, ledger, len(ledger.devices)
        self.members_version += 1
        self.touch(known)
        return known

    def find_suitable_worker(self, requirements: TaskRequirements) -> WorkerId | None:
        """The least loaded worker that could start such a task now; None: there is none. O(workers)."""
        needs = compile_needs(requirements)
        best: tuple[float, int] | None = None
        for worker in self.workers.values():
            ledger = worker.ledger
            if ledger is None or not worker.accepts_work or worker.task_queue:
                continue
            if any(not ledger.blocker(need) and ledger.can_fit(need) for need in needs):
                key = (worker.load, worker.seq)
                best = key if best is None or key < best else best
        return self.by_seq[best[1]].worker_id if best is not None else None

    def set_status(self, worker: WorkerInfo, status: WorkerStatus) -> None:
        worker.status = status
        self.members_version += 1
        self.touch(worker)

    # --------------------------------------------------------------------------------------------- reservations

    def attach(self, task: Task, worker: WorkerInfo) -> bool:
        """Give the task a reservation, or else a place in the backlog; True where it may start at once."""
        ledger = worker.ledger
        if ledger is not None and not worker.task_queue:
            devices = ledger.reserve(need_of(task))
            if devices is not None:
                self._run(task, worker, devices)
                self.touched[worker.seq] = worker
                return True
        worker.task_queue.append(task)
        _count(worker, task, 1)
        task.reserved = False
        self.touched[worker.seq] = worker
        return False

    def attach_running(self, task: Task, worker: WorkerInfo, devices: tuple[int, ...]) -> None:
        """Enter what a worker says that it runs, on the devices that it says."""
        if worker.ledger is not None:
            worker.ledger.reserve_exactly(need_of(task), devices)
        self._run(task, worker, devices)
        self.touch(worker)

    def detach(self, task: Task, worker: WorkerInfo) -> None:
        """Take the task off the worker, wherever it stands there, and let the backlog move up."""
        queue = worker.task_queue
        if task.reserved:
            worker.running.pop(task.id, None)
            worker.task_count -= 1
            task.reserved = False
            devices, task.devices = task.devices, ()
            ledger = worker.ledger
            if queue and not devices and self._inherits(queue[0], task, ledger):
                self._start_head(worker, devices)
            elif ledger is not None:
                ledger.release(need_of(task), devices)
        else:
            _count(worker, task, -1)
            if queue[0] is task:
                del queue[0]
            else:
                queue.remove(task)
        if queue:
            self._promote(worker)
        self.touched[worker.seq] = worker

    def start_on(self, task: Task, worker: WorkerInfo, devices: tuple[int, ...]) -> None:
        """Follow a worker that has started a task on these devices, wherever we had it and whatever we had free.

        What we expected to start beside it goes back to the head of the backlog and is thought through again. A
        dispatch that crosses an end on its way leads here: the worker then has other devices free than we thought.
        """
        need, ledger = need_of(task), worker.ledger
        for other in reversed([t for t in worker.running.values() if t is not task]):
            if not isinstance(other.state, Running):
                self._unstart(other, worker)
        if not task.reserved:
            worker.task_queue.remove(task)
            _count(worker, task, -1)
            self._run(task, worker, devices)
        elif ledger is not None:
            ledger.release(need, task.devices)
        task.devices = devices
        if ledger is not None:
            ledger.reserve_exactly(need, devices)
        if worker.task_queue:
            self._promote(worker)
        self.touch(worker)

    def _unstart(self, task: Task, worker: WorkerInfo) -> None:
        """Undo `_start_head`."""
        if worker.ledger is not None:
            worker.ledger.release(need_of(task), task.devices)
        del worker.running[task.id]
        worker.task_count -= 1
        worker.outgoing += task.state.name == "revoking"
        task.reserved, task.devices = False, ()
        worker.task_queue.insert(0, task)
        _count(worker, task, 1)

    @staticmethod
    def _inherits(head: Task, ended: Task, ledger: Ledger | None) -> bool:
        """Whether what an ended task gives back is just what the head of the backlog then takes.

        Not with devices, which the head may get others of; nor while more is reserved than there is.
        """
        if head.request is not ended.request or head.variant != ended.variant or ledger is None:
            return False
        return ledger.free_cpus >= 0 and ledger.free_ram_mb >= 0 and not ledger.custom

    def _run(self, task: Task, worker: WorkerInfo, devices: tuple[int, ...]) -> None:
        task.devices = devices
        task.reserved = True
        worker.task_count += 1
        worker.running[task.id] = task

    def _promote(self, worker: WorkerInfo) -> None:
        queue, ledger = worker.task_queue, worker.ledger
        while queue and ledger is not None:
            devices = ledger.reserve(need_of(queue[0]))
            if devices is None:
                return
            self._start_head(worker, devices)

    def _start_head(self, worker: WorkerInfo, devices: tuple[int, ...]) -> None:
        head = worker.task_queue[0]
        del worker.task_queue[0]
        _count(worker, head, -1)
        if head.state.name == "revoking":
            worker.outgoing -= 1
        self._run(head, worker, devices)

    # -------------------------------------------------------------------------------------------------- changes

    def touch(self, worker: WorkerInfo) -> None:
        """Note that what is free on a worker may have changed; counts from the next `commit` on. O(1)."""
        self.touched[worker.seq] = worker

    def rescore(self, worker: WorkerInfo) -> None:
        """Have what placement knows of a worker computed anew though nothing on it has changed. O(1)."""
        self.changes.append(worker.seq)
        worker.version = self.base + len(self.changes)

    def commit(self) -> None:
        """Bring status, version and the log of changes up to date: once for all that a turn did to a worker."""
        touched = self.touched
        if not touched:
            return
        changes, opened, with_device = self.changes, self.open, self.open_devices
        version = self.base + len(changes)
        changes.extend(touched)
        for seq, worker in touched.items():
            version += 1
            worker.version = version
            status, ledger = worker.status, worker.ledger
            if status is _IDLE or status is _BUSY:
                if ledger is None:
                    worker.status = _IDLE
                else:
                    is_free = ledger.has_free() if ledger.devices else ledger.free_cpus >= ledger.slot_cpus
                    worker.status = _IDLE if is_free else _BUSY
                    if ledger.free_cpus > 0:
                        opened.add(seq)
                        if is_free and ledger.devices:
                            with_device.add(seq)
                        else:
                            with_device.discard(seq)
                        continue
            opened.discard(seq)
            with_device.discard(seq)
        if self.fresh:
            self.fresh.update(touched)
        else:
            self.fresh = touched
        self.touched = {}
        if len(changes) > 4096 and len(changes) > 4096 + 4 * len(self.workers):
            # Whoever is behind builds anew, which is cheaper than to follow that many changes.
            self.base += len(changes)
            changes.clear()

    def take_fresh(self) -> Collection[WorkerInfo]:
        """The workers that changed since the last call, after a `commit`."""
        if self.touched:
            self.commit()
        fresh, self.fresh = self.fresh, {}
        return fresh.values()

    def check(self) -> None:
        """Recompute every derived number. Raises AssertionError."""
        for worker in self.workers.values():
            assert worker.resources is not None
            fresh = Ledger(worker.resources)
            for task in worker.running.values():
                assert task.reserved, task.id
                fresh.reserve_exactly(need_of(task), task.devices)
            ledger = worker.ledger
            assert ledger is not None
            assert (fresh.free_cpus, fresh.free_ram_mb) == (ledger.free_cpus, ledger.free_ram_mb), worker.worker_id
            assert fresh.free_devices() == ledger.free_devices(), worker.worker_id
            assert {n: a for n, a in fresh.free_custom.items() if a} == {
                n: a for n, a in ledger.free_custom.items() if a
            }
            assert worker.task_count == len(worker.running), worker.worker_id
            assert not any(task.reserved for task in worker.task_queue), worker.worker_id
            assert worker.waiting_kinds == Counter(task.kind for task in worker.task_queue), worker.worker_id
            revoking = sum(1 for task in worker.task_queue if task.state.name == "revoking")
            assert worker.outgoing == revoking, (worker.worker_id, worker.outgoing, revoking)
            assert not worker.task_queue or not ledger.can_fit(need_of(worker.task_queue[0])), worker.worker_id
            if not self.touched:
                is_open = worker.accepts_work and ledger.free_cpus > 0
                assert (worker.seq in self.open) == is_open, worker.worker_id
                has_device = is_open and bool(ledger.devices) and ledger.has_free()
                assert (worker.seq in self.open_devices) == has_device, worker.worker_id
            if not self.touched and worker.accepts_work:
                assert (worker.status == WorkerStatus.IDLE) == ledger.has_free(), (worker.worker_id, worker.status)


def _count(worker: WorkerInfo, task: Task, change: int) -> None:
    """Count one more or less of its kind in a backlog."""
    kinds, kind = worker.waiting_kinds, task.kind
    count = kinds.get(kind, 0) + change
    if count:
        kinds[kind] = count
    else:
        del kinds[kind]
