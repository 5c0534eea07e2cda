"""Control groups (v2): a cell for each root, which holds all that it starts, wherever that hides.

    <the worker's own group>/schedd-<incarnation>/
        worker/       the worker, where the whole program is the worker's
        guard/        its guard, which kills all the others when the worker is gone
        1/, 2/, …     cells, used again

A process is born into its parent's group, and what Python can start a program with cannot say otherwise. So a root is
moved right after its start, and then those that it may have forked before. Moves that follow one another cost 40 µs
each; a first one waits for a grace period of the kernel's RCU (13 ms, measured), so a thread does those.

Where the program is the worker's, its group holds nobody but the worker once all roots are moved: whoever is found
there was forked by a root in its first moments, and is moved after it.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from schedd.log import Log
from schedd.worker.guard import OWN as GUARD
from schedd.worker.guard import end_group, is_populated, write
from schedd.worker.oom import oom_kills_in
from schedd.worker.processes import (
    ROOT_VARIABLE,
    descendants_of,
    kill_with_descendants,
    parent_of,
    read_file,
    root_of,
    signal_tree,
    spawn_watched,
)
from schedd.worker.trees import Containment, NotAvailable, Tree

MOUNTS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))
PREFIX = "schedd-"
#: A move so soon after another one costs next to nothing.
WARM_S = 0.008
EVENTS_BYTES = 256
#: Some hundred pids. Should there be more, the next look finds the others.
LEAF_BYTES = 4096
#: A root that forks without end could run ahead of us for ever; what then stays outside is found by a sweep.
LOOKS_MAX = 100

_log = Log("schedd.worker")


class Cell:
    """A control group for one root at a time."""

    def __init__(self, path: str) -> None:
        self.path = path
        os.mkdir(path)  # noqa: PTH102
        with contextlib.ExitStack() as undo:  # without a descriptor for one of them neither is kept
            undo.callback(os.rmdir, path)
            self._procs = os.open(f"{path}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
            undo.callback(os.close, self._procs)
            self._events = os.open(f"{path}/cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
            undo.pop_all()
        #: None where the kernel does not count.
        self._memory_events: int | None = None
        with contextlib.suppress(OSError):
            self._memory_events = os.open(f"{path}/memory.events", os.O_RDONLY | os.O_CLOEXEC)
        #: Of the roots that were here before.
        self._oom_kills_before = self._oom_kills_ever()
        #: Something was killed in it and may not be gone yet.
        self.is_dirty = False
        #: Somebody else removed it, or its root could not be moved into it.
        self.is_lost = False

    def move(self, pid: int) -> None:
        """Move a process in; one that is gone is none of our business. Others of its kind stay where they are."""
        with contextlib.suppress(ProcessLookupError):
            os.write(self._procs, b"%d" % pid)

    def pids(self) -> list[int]:
        try:
            return [int(pid) for pid in read_file(f"{self.path}/cgroup.procs").split()]
        except OSError:
            return []

    @property
    def is_empty(self) -> bool:
        try:
            return b"populated 0" in os.pread(self._events, EVENTS_BYTES, 0)
        except OSError:
            return True

    @property
    def is_ready(self) -> bool:
        """Whether the next root may come."""
        return not self.is_dirty or self.is_empty

    def reset(self) -> None:
        """Begin with the next root."""
        self.is_dirty = False
        self._oom_kills_before = self._oom_kills_ever()

    def kill(self) -> None:
        """Kill all in it, and those that they fork meanwhile."""
        self.is_dirty = True
        with contextlib.suppress(OSError):
            write(f"{self.path}/cgroup.kill", b"1")

    def oom_kills(self) -> int | None:
        """How many processes of this root the kernel killed for want of memory; None where nobody counts."""
        now, before = self._oom_kills_ever(), self._oom_kills_before
        return None if now is None or before is None else now - before

    def _oom_kills_ever(self) -> int | None:
        if self._memory_events is None:
            return None
        try:
            return oom_kills_in(os.pread(self._memory_events, EVENTS_BYTES, 0))
        except OSError:
            return None

    def close(self) -> None:
        """Kill what is left and remove it."""
        self.let_go()
        end_group(self.path)

    def let_go(self) -> None:
        """Use it no more; the guard removes it where it is still there."""
        for fd in (self._procs, self._events, self._memory_events):
            if fd is not None:
                os.close(fd)
        self._procs, self._events, self._memory_events = -1, -1, None


class CellTree(Tree):
    """A root in a cell."""

    def __init__(self, pid: int, pidfd: int, root: str, cell: Cell, cells: Cells) -> None:
        super().__init__(pid, pidfd)
        #: Its `SCHEDD_ROOT`.
        self.root = root
        self.cell = cell
        self.is_over = False
        self.is_settled = False
        self._cells = cells

    def signal(self, number: int) -> None:
        if number == signal.SIGKILL:
            self.cell.kill()
        if not self.is_settled:
            # Now, though it may hold the loop for some milliseconds: no process is to miss the signal.
            self._cells.settle(self)
        signal_tree(self.pid, number, self.cell.pids())

    def end(self) -> bool:
        super().end()
        return self._cells.give_back(self)

    def oom_kills(self) -> int | None:
        return self.cell.oom_kills()


class Cells(Containment):
    """The cells of a worker."""

    mode = "cgroup"

    def __init__(self, incarnation: str, *, sole: bool) -> None:
        """Make the worker's group. Raises NotAvailable."""
        self._own = _own_group()
        self.group = f"{self._own}/{PREFIX}{incarnation[:16]}"
        try:
            self._make_groups(sole=sole)
        except OSError as error:
            end_group(self.group)
            raise NotAvailable(f"{self._own}: {error.strerror}") from None
        super().__init__()
        self._sole = sole
        #: Who is in the worker's own group.
        self._leaf = os.open(f"{self.group}/worker/cgroup.procs", os.O_RDONLY | os.O_CLOEXEC) if sole else -1
        self._count = 0
        self._free: list[Cell] = []
        #: By the pid of the root, all that run.
        self._trees: dict[int, CellTree] = {}
        #: Those of them that are not in their cells yet.
        self._waiting: dict[int, CellTree] = {}
        #: Those that came into their cells since nobody waited last: whoever else is outside by then is of these.
        self._settled: list[CellTree] = []
        #: Strays that can be of several trees.
        self._unclaimed: set[int] = set()
        #: Held while a process is started or a stray one placed, so that nobody takes a newborn root for a stray.
        self._lock = threading.Lock()
        self._moved_at = 0.0
        self._moves: queue.SimpleQueue[CellTree | None] = queue.SimpleQueue()
        self._mover = threading.Thread(target=self._move_all, name="schedd-cells", daemon=True)
        self._mover.start()

    def _make_groups(self, *, sole: bool) -> None:
        os.mkdir(self.group)  # noqa: PTH102
        if not os.access(f"{self.group}/cgroup.kill", os.W_OK):
            raise OSError(0, "this kernel has no cgroup.kill (it came with 5.14)")
        if not os.access(f"{self._own}/cgroup.procs", os.W_OK):
            raise PermissionError(0, "processes may not be moved out of it")
        os.mkdir(f"{self.group}/{GUARD}")  # noqa: PTH102
        if sole:
            os.mkdir(f"{self.group}/worker")  # noqa: PTH102
            write(f"{self.group}/worker/cgroup.procs", b"0")
            for group in (self._own, self.group):
                # For the evidence of out-of-memory kills. Not possible where others share the group.
                with contextlib.suppress(OSError):
                    write(f"{group}/cgroup.subtree_control", b"+memory")

    # ----------------------------------------------------------------------------------------------- start and end

    def start(
        self,
        argv: list[str],
        env: Mapping[str, str],
        cwd: str | None,
        fds: tuple[int, int, int],
        extra_fd: int | None = None,
    ) -> Tree:
        cell = self._take()
        try:
            with self._lock:
                pid, pidfd = spawn_watched(argv, env, cwd, fds, extra_fd)
                tree = CellTree(pid, pidfd, env.get(ROOT_VARIABLE, ""), cell, self)
                self._trees[pid] = self._waiting[pid] = tree
        except BaseException:
            self._free.append(cell)
            raise
        if time.monotonic() - self._moved_at < WARM_S:
            self.settle(tree)
        else:
            self._moves.put(tree)
        return tree

    def start_own(self, argv: list[str], fds: tuple[int, int, int]) -> int:
        with self._lock:
            return super().start_own(argv, fds)

    def _take(self) -> Cell:
        """A cell that is empty: one that was used before, or a new one. Raises OSError."""
        for position in range(len(self._free) - 1, -1, -1):
            if self._free[position].is_ready:
                cell = self._free.pop(position)
                break
        else:
            self._count += 1
            cell = Cell(f"{self.group}/{self._count}")
        cell.reset()
        return cell

    def give_back(self, tree: CellTree) -> bool:
        """Kill what a root left in its cell. True where there was something."""
        with self._lock:
            tree.is_over = True
            self._trees.pop(tree.pid, None)
            self._waiting.pop(tree.pid, None)
        is_left = not tree.cell.is_empty
        if is_left:
            tree.cell.kill()
        if tree.cell.is_lost:
            tree.cell.let_go()
        else:
            self._free.append(tree.cell)
        return is_left

    @property
    def is_tight(self) -> bool:
        return self._sole and not self._unclaimed and not self._waiting

    def close(self) -> None:
        """Remove the cells; what is in them is killed. The guard removes the rest."""
        self._moves.put(None)
        self._mover.join()
        for cell in [*self._free, *(tree.cell for tree in self._trees.values())]:
            cell.close()
        if self._sole:
            os.close(self._leaf)
        else:
            end_group(self.group)

    # -------------------------------------------------------------------------------------------------------- moving

    def _move_all(self) -> None:
        while (tree := self._moves.get()) is not None:
            self.settle(tree)

    def settle(self, tree: CellTree) -> None:
        """Move a root into its cell, and those that it forked on the way."""
        try:
            if not tree.is_over:
                tree.cell.move(tree.pid)
            with self._lock:
                self._moved_at = time.monotonic()
                self._waiting.pop(tree.pid, None)
                tree.is_settled = True
                if tree not in self._settled:
                    self._settled.append(tree)
                self._place_strays(tree)
                if not self._waiting:
                    self._settled.clear()
        except OSError as error:
            tree.cell.is_lost = True
            with self._lock:
                self._waiting.pop(tree.pid, None)
            _log.warning("root_not_contained", root=tree.root, cgroup=tree.cell.path, reason=error.strerror)

    def _place_strays(self, tree: CellTree) -> None:
        if not self._sole:
            for pid in [] if tree.is_over else descendants_of(tree.pid):
                tree.cell.move(pid)
            return
        # One that was moved may have forked between the look and its move, so the last look is one that moves nobody.
        for _ in range(LOOKS_MAX):
            unclaimed = set()
            is_quiet = True
            for pid in self._strays():
                owner = self._owner_of(pid)
                if owner is None:
                    unclaimed.add(pid)
                    continue
                is_quiet = False
                if owner.is_over:
                    kill_with_descendants(pid)
                else:
                    owner.cell.move(pid)
            self._unclaimed = unclaimed
            if is_quiet:
                return

    def _strays(self) -> list[int]:
        """Those in the worker's own group that should not be."""
        pids = map(int, os.pread(self._leaf, LEAF_BYTES, 0).split())
        return [pid for pid in pids if pid not in self._waiting and pid not in self.staff]

    def _owner_of(self, pid: int) -> CellTree | None:
        """Whose process a stray is: by descent, by the environment, or because nobody else can have forked it."""
        ancestor = parent_of(pid)
        while ancestor > 1:
            if ancestor in self._trees:
                return self._trees[ancestor]
            ancestor = parent_of(ancestor)
        root = root_of(pid)
        for tree in [*self._settled, *self._trees.values()]:
            if tree.root == root:
                return tree
        is_certain = len(self._settled) == 1 and not self._waiting and pid not in self._unclaimed
        return self._settled[0] if is_certain else None


def _own_group() -> str:
    """The control group that this process is in. Raises NotAvailable."""
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    path = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), None)
    for mount in MOUNTS:
        if path is not None and (mount / "cgroup.controllers").exists():
            group = str(mount / path.lstrip("/"))
            if not os.access(group, os.W_OK):
                raise NotAvailable(f"{group} is not writable")
            return group
    raise NotAvailable("no cgroup2 hierarchy is mounted")


def end_earlier(note: Path) -> None:
    """Kill what an earlier life of a worker left in its group, which `note` names, and remove the group."""
    with contextlib.suppress(FileNotFoundError):
        group = note.read_text()
        # Not whatever else may stand in a file that was not written to its end.
        if Path(group).name.startswith(PREFIX):
            if is_populated(group):
                _log.warning("earlier_tasks_killed", cgroup=group)
            end_group(group)
        note.unlink()
