"""What goes wrong in a storm: each kind of fault again and again, with random pauses, until the calm."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from schedd.core.model import SECOND, Instant
from schedd.sim.plan import another_policy

if TYPE_CHECKING:
    from schedd.sim.cluster import Cluster

#: A wall clock is set by at most so many seconds. What is delayed waits for longer by that.
WALL_JUMP_S_MAX = 100.0


class Faults:
    """The faults of one run."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._kernel = cluster.kernel
        self._dice = cluster.kernel.random
        #: Of its own: the other faults are the same with it and without.
        self._swap_dice = random.Random(f"swaps {cluster.plan.seed}")
        self._is_over = False
        #: When the daemon was last frozen.
        self._frozen_ns: Instant = 0

    def begin(self) -> None:
        plan = self._cluster.plan
        for pause_s, fault in (
            (plan.break_pause_s, self._break),
            (plan.partition_pause_s, self._partition),
            (plan.daemon_crash_pause_s, self._crash_daemon),
            (plan.daemon_stop_pause_s, self._stop_daemon),
            (plan.daemon_freeze_pause_s, self._freeze_daemon),
            (plan.worker_crash_pause_s, self._crash_worker),
            (plan.worker_stop_pause_s, self._freeze_worker),
            (plan.machine_pause_s, self._break_machine),
            (plan.disk_pause_s, self._spoil_disk),
            (plan.drain_pause_s, self._drain_worker),
        ):
            if pause_s:
                self._again(pause_s, fault)
        if plan.swap_pause_s:
            self._again(plan.swap_pause_s, self._swap_policy, self._swap_dice)

    def end(self) -> None:
        self._is_over = True
        daemon = self._cluster.daemon
        if daemon is not None and daemon.process.is_stopped:
            self._thaw_daemon()

    def _again(self, pause_s: float, fault: Callable[[], None], dice: random.Random | None = None) -> None:
        def happen() -> None:
            if not self._is_over:
                fault()
                self._again(pause_s, fault, dice)

        self._kernel.call_in((dice or self._dice).expovariate(1 / pause_s), happen)

    def _later(self, most_s: float, undo: Callable[[], None]) -> None:
        """Put it right after a while: mostly soon, sometimes late. The calm puts everything right by itself."""

        def happen() -> None:
            if not self._is_over:
                undo()

        self._kernel.call_in(most_s * self._dice.random() ** 3, happen)

    def _break(self) -> None:
        network = self._cluster.network
        network.forget_lost()
        ends = [end for end in network.ends if not end.is_closing]
        if ends:
            end = self._dice.choice(ends)
            self._kernel.note(f"a connection of {end.process.name} breaks")
            end.break_off()

    def _partition(self) -> None:
        cable = self._dice.choice(self._cluster.cables)
        way = self._dice.choice(["up", "down", "both"])
        self._kernel.note(f"cable {self._cluster.cables.index(cable)} is cut: {way}")
        cable.cut_up = cable.cut_up or way != "down"
        cable.cut_down = cable.cut_down or way != "up"
        self._later(40, lambda: self._cluster.network.heal(cable))

    def _crash_daemon(self) -> None:
        """Now, or in the middle of what a client asks: its tasks may run before they are on disk."""
        plan = self._cluster.plan
        within_s = 0.0
        if self._dice.random() < 0.5:
            self._dice.choice(self._cluster.clients).act()
            within_s = self._dice.random() * 4 * (plan.network.latency_s + plan.sync_s)
        self._kernel.call_in(within_s, self._crash_daemon_now)

    def _crash_daemon_now(self) -> None:
        cluster = self._cluster
        if self._is_over:
            return
        cluster.kill_daemon(silently=self._dice.random() < 0.3)
        if self._dice.random() < 0.15:
            cluster.wall_ns += int(self._dice.uniform(-1, 1) * WALL_JUMP_S_MAX * SECOND)
        self._later(15, self._restart_daemon)

    def _restart_daemon(self) -> None:
        """Start the daemon, which may freeze before it has heard of anybody, or hear of clients first."""
        self._cluster.start_daemon()
        if self._dice.random() < 0.3:
            for machine in self._cluster.machines:
                machine.cable.cut_up = True
                self._later(10, partial(self._cluster.network.heal, machine.cable))
            self._dice.choice(self._cluster.clients).act()
        if self._cluster.plan.daemon_freeze_pause_s and self._dice.random() < 0.3:
            self._freeze_daemon()

    def _stop_daemon(self) -> None:
        cluster, daemon = self._cluster, self._cluster.daemon
        if daemon is None or daemon.service.stopping:
            return
        self._kernel.note("the daemon is told to stop")

        def done() -> None:
            if cluster.daemon is daemon:
                cluster.kill_daemon()
                self._kernel.call_in(self._dice.random(), cluster.start_daemon)

        daemon.begin_stop(done)

    def _freeze_daemon(self) -> None:
        daemon = self._cluster.daemon
        if daemon is None or daemon.process.is_stopped:
            return
        self._kernel.note("the daemon freezes")
        self._frozen_ns = self._kernel.now_ns
        daemon.process.stop()
        self._later(30, lambda: self._thaw_daemon() if daemon is self._cluster.daemon else None)

    def _thaw_daemon(self) -> None:
        daemon = self._cluster.daemon
        if daemon is not None and daemon.process.is_stopped:
            self._kernel.note("the daemon goes on")
            self._cluster.on_thaw(daemon, self._frozen_ns)

    def _crash_worker(self) -> None:
        cluster = self._cluster
        machine = self._dice.choice(cluster.machines)
        if machine.worker is not None:
            cluster.kill_worker(machine, silently=self._dice.random() < 0.3)
            self._later(20, lambda: cluster.start_worker(machine))

    def _freeze_worker(self) -> None:
        worker = self._dice.choice(self._cluster.machines).worker
        if worker is not None and not worker.process.is_stopped:
            self._kernel.note(f"{worker.name} freezes")
            worker.process.stop()
            self._later(30, worker.process.go_on)

    def _break_machine(self) -> None:
        """Let whatever begins on a machine fail."""
        machine = self._dice.choice(self._cluster.machines)
        self._kernel.note(f"{machine.name} is broken")
        machine.is_broken = True

        def mend() -> None:
            machine.is_broken = False

        self._later(20, mend)

    def _spoil_disk(self) -> None:
        disk, plan = self._cluster.disk, self._cluster.plan
        if self._dice.random() < 0.5:
            self._kernel.note("the disk is full")
            disk.is_full = self._cluster.oracle.disk_has_refused = True
        else:
            self._kernel.note("the disk is slow")
            disk.sync_s = plan.sync_s * 20 + 0.5

        def undo() -> None:
            disk.is_full, disk.sync_s = False, plan.sync_s

        self._later(15, undo)

    def _drain_worker(self) -> None:
        worker = self._dice.choice(self._cluster.machines).worker
        if worker is not None and not worker.process.is_stopped and not worker.is_over:
            self._kernel.note(f"{worker.name} is told to leave")
            if self._dice.random() < 0.3:
                worker.force()
            else:
                worker.drain()

    def _swap_policy(self) -> None:
        """No fault, but it comes as suddenly: the operator chooses another policy, often one after the other."""
        policy = another_policy(self._swap_dice)
        self._kernel.note(f"the policy is to be {policy.name}")
        self._cluster.swap_policy(policy)
        if self._swap_dice.random() < 0.3:
            self._kernel.call_in(self._swap_dice.random() * 0.01, self._swap_policy_again)

    def _swap_policy_again(self) -> None:
        if not self._is_over:
            self._cluster.swap_policy(another_policy(self._swap_dice))
