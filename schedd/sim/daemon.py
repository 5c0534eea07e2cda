"""The daemon: the real service with the real engine, started, killed and started again on one disk."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import Any

from schedd.config import PolicySettings
from schedd.core import effects as fx
from schedd.core import events as ev
from schedd.core.engine import Engine
from schedd.core.model import SECOND, Instant
from schedd.journal.records import FinishedTask
from schedd.server.connections import Peer
from schedd.server.service import Service
from schedd.sim.disk import Archive, Disk, Journal
from schedd.sim.kernel import Kernel, Process
from schedd.sim.network import Network
from schedd.sim.plan import Plan, engine_for
from schedd.sim.violation import must


class Crashed(Exception):
    """The engine or the service is wrong: what a daemon would end with."""


class _Watched:
    """The engine, as the loop of the service sees it: somebody looks at each turn."""

    def __init__(self, daemon: Daemon, turned: Callable[[Daemon, list[ev.Event], fx.Effects], None]) -> None:
        self._daemon = daemon
        self._turned = turned

    def __getattr__(self, name: str) -> Any:
        return getattr(self._daemon.engine, name)

    def handle(self, events: list[ev.Event], now: Instant) -> fx.Effects:
        """One turn: events in, effects out."""
        self._daemon.policies_replaced(sum(isinstance(event, ev.PolicyReplaced) for event in events))
        effects = self._daemon.engine.handle(events, now)
        self._turned(self._daemon, events, effects)
        return effects


class Daemon:
    """One start of the daemon."""

    def __init__(
        self,
        process: Process,
        network: Network,
        disk: Disk,
        plan: Plan,
        policy: PolicySettings,
        on_disk: Callable[[list[fx.Fact], list[FinishedTask]], None],
        turned: Callable[[Daemon, list[ev.Event], fx.Effects], None],
    ) -> None:
        kernel: Kernel = process.kernel
        self.process = process
        self.plan = plan
        self.started_ns = kernel.now_ns
        #: The policy in use, and those that will be, in their order.
        self.policy = policy
        self._next_policies: deque[PolicySettings] = deque()
        dice = random.Random(kernel.random.random())
        self.engine = Engine(policy.build(), engine_for(plan, policy), dice, policy.build_shadow())
        self.service = service = Service(
            self.engine,
            process,
            plan.settings,
            self._crashed,
            process,
            random.Random(kernel.random.random()),
        )
        promises = service.promises
        self.journal = Journal(disk, process, promises.committed, promises.failing, on_disk)
        live = self.journal.load(plan.settings.limits.finished_keep_count)
        self.awaited = [row.worker_id for row in live.workers]
        self.grace_ns = int(plan.settings.journal.adoption_grace_s * SECOND)
        live.restore(self.engine, process.now_ns(), self.grace_ns)
        service.remember(self.awaited)
        self._network = network
        service.loop.engine = _Watched(self, turned)  # type: ignore[assignment]
        service.loop.wake()
        promises.journal = self.journal
        service.past.archive = Archive(disk, process)
        network.listener = (process, lambda: Peer(service))  # type: ignore[assignment]

    @staticmethod
    def _crashed(error: BaseException) -> None:
        raise Crashed(repr(error)) from error

    def check_empty(self) -> None:
        """Nothing but finished tasks is kept once all have ended: what grows with work shrinks with it."""
        service, engine, index = self.service, self.engine, self.journal.index
        left = {
            "promises": service.promises.pending_count,
            "origins": len(service._origins),
            "untold": len(service._untold),
            "ends on disk": len(service._on_disk),
            "acknowledgements": len(service._acks),
            "reads": len(service._outputs),
            "watches": len(service._watchers),
            "batches": index.batch_count,
            "put off": len(engine._t.put_off) + len(engine._t.doubtful) + len(engine._t.epochs),
            "numbers": len(engine._t._numbers_used),
            "missing": len(engine.tasks.barriers),
            "dependents": len(engine.tasks.dependents),
            "dispatched": sum(len(w.running) + len(w.task_queue) + w.incoming + w.outgoing for w in engine.resources),
        }
        must(not any(left.values()), f"left at rest: { {what: count for what, count in left.items() if count} }")

    def policies_replaced(self, count: int) -> None:
        """Note that as many reloads take hold in the turn to come."""
        for _ in range(count):
            self.policy = self._next_policies.popleft()

    def swap_policy(self, policy: PolicySettings) -> None:
        """Do what a reload does whose file names another policy."""
        self._next_policies.append(policy)
        self.service.loop.post(ev.SettingsChanged(engine_for(self.plan, policy)))
        self.service.loop.post(ev.PolicyReplaced(policy.build(), policy.build_shadow()))

    def kill(self, *, silently: bool) -> None:
        """End at once; `silently`: its machine goes with it."""
        self._network.listener = None
        self.process.kill()
        self._network.kill(self.process, silently=silently)

    def begin_stop(self, done: Callable[[], None]) -> None:
        """Stop in order, as `server.daemon` does at SIGTERM; `done` is called when the process has ended."""
        service = self.service
        service.stopping = True
        self._network.listener = None
        deadline_ns = self.process.now_ns() + int(self.plan.settings.server.stop_timeout_s * SECOND)

        def end() -> None:
            service.loop.stop()
            self.journal.close()
            self.kill(silently=False)
            done()

        def look() -> None:
            late = self.process.now_ns() > deadline_ns
            if service.promises.pending_count and not late:
                self.process.call_later(0.005, look)
                return
            service.close_all()
            if not service.connection_count or late:
                end()
            else:
                self.process.call_later(0.02, look)

        self.process.call_soon(look)
