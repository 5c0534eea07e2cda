"""Finds and kills what attempts left behind: processes that outlived their root and became children of the worker."""

from __future__ import annotations

import os
from collections.abc import Callable

from schedd.worker.processes import children_of, kill_with_descendants, reap_if_ended, root_of, session_of


class Strays:
    """Children of this process that it did not start.

    Each belongs to the root whose `SCHEDD_ROOT` it inherited, or whose session it is in. It may live as long as that
    root. One that hid both (a cleared environment and a new session) is taken for a stray only where this program
    runs nothing but the worker (`sole`); it may live as long as any root that it could be of (`possible_owners`).
    """

    def __init__(
        self,
        incarnation: str,
        roots: Callable[[], dict[int, str]],
        possible_owners: Callable[[], dict[int, str]],
        *,
        sole: bool,
    ) -> None:
        self._prefix = f"{incarnation}:"
        self._roots = roots
        self._possible_owners = possible_owners
        self._sole = sole
        #: Roots that a stray can be of, by its pid. Its number cannot be used again before we reap it.
        self._owners: dict[int, set[str]] = {}

    def sweep(self) -> bool:
        """Kill strays whose roots are gone, and reap them. True where one waits to be reaped. O(children of ours)."""
        roots = self._roots()
        unknown = [pid for pid in children_of(os.getpid()) if pid not in roots]
        if not unknown:
            self._owners.clear()
            return False
        self._owners = {pid: owners for pid, owners in self._owners.items() if pid in unknown}
        alive = set(roots.values())
        waiting = [pid for pid in unknown if self._judge(pid, roots, alive)]
        return bool(waiting)

    def _judge(self, pid: int, roots: dict[int, str], alive: set[str]) -> bool:
        owners = self._owners.get(pid)
        if owners is None:
            owners = self._find_owners(pid, roots)
            if owners is None:
                return False
            self._owners[pid] = owners
        if reap_if_ended(pid):
            del self._owners[pid]
            return False
        if owners & alive:
            return False
        kill_with_descendants(pid)
        return True

    def _find_owners(self, pid: int, roots: dict[int, str]) -> set[str] | None:
        root = root_of(pid)
        if root is not None and root.startswith(self._prefix):
            return {root}
        session_root = roots.get(session_of(pid))
        if session_root is not None:
            return {session_root}
        return set(self._possible_owners().values()) if self._sole else None
