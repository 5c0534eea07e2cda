"""A whole cluster in one process: a storm in which anything fails, then a calm in which everything must finish."""

from __future__ import annotations

from collections.abc import Callable

from schedd.config import PolicySettings
from schedd.core import effects as fx
from schedd.core import events as ev
from schedd.core.model import SECOND, Instant, WorkerId, WorkerResources
from schedd.sim.checks import Oracle
from schedd.sim.daemon import Daemon
from schedd.sim.disk import Disk
from schedd.sim.faults import Faults
from schedd.sim.kernel import Kernel, Process
from schedd.sim.network import Cable, Network, NetworkRules
from schedd.sim.plan import CALM_S, STORM_S, Plan, make_plan
from schedd.sim.violation import Violation, must
from schedd.sim.worker import Worker
from schedd.sim.workload import Client
from schedd.worker.outbox import Kept

#: The engine's tables are recomputed, and compared with the disk, every so many turns.
CHECK_TURNS = 4
COMPARE_TURNS = 16
#: Steps between two looks whether all has ended.
LOOK_STEPS = 20
#: How long all must have ended, so that nothing old is under way any more.
REST_NS = 3 * SECOND
#: More than any seed needs: a loop without time passing is a failure too.
STEPS_MAX = 400_000


class Machine:
    """A machine for a worker: its cable, its resources, and the worker that runs there now."""

    def __init__(self, name: str, resources: WorkerResources) -> None:
        self.name = name
        self.resources = resources
        self.cable = Cable()
        self.worker: Worker | None = None
        #: Ends of attempts on its disk.
        self.shelf: dict[int, Kept] = {}
        #: Whatever begins there fails at once.
        self.is_broken = False


class Result:
    """How a seed ended."""

    def __init__(self, plan: Plan, failure: str, cluster: Cluster) -> None:
        self.seed = plan.seed
        self.failure = failure
        self.digest = cluster.kernel.digest
        self.steps = cluster.kernel.steps
        self.tasks = len(cluster.oracle.recording.tasks)
        self.executions = cluster.oracle.executions
        self.ends = cluster.oracle.ends
        self.ends_kept = cluster.oracle.kept_count
        self.quarantines = cluster.oracle.verdicts.quarantines
        self.kind_holds = cluster.oracle.verdicts.holds
        self.swaps = cluster.swaps
        self.daemon_starts = cluster.daemon_starts
        self.worker_starts = cluster.worker_starts

    @property
    def failure_report(self) -> str:
        """What went wrong, and how to see it again."""
        command = f"python -m schedd.sim --seed {self.seed} --verbose"
        return f"seed {self.seed} FAILED: {self.failure}\n  reproduce: {command}"


class Cluster:
    """One run of one plan."""

    def __init__(self, plan: Plan, listener: Callable[[str], None] | None = None) -> None:
        self.plan = plan
        self.kernel = kernel = Kernel(plan.seed)
        kernel.listener = listener
        self.network = Network(kernel, plan.network, self._heard)
        self.disk = Disk()
        self.disk.sync_s = plan.sync_s
        self.oracle = Oracle(kernel)
        self.machines = [Machine(f"w{i}", resources) for i, resources in enumerate(plan.workers, 1)]
        self.daemon: Daemon | None = None
        #: How far the wall clock of the daemon's machine is off.
        self.wall_ns = 0
        #: Workers that were there and are not on its disk, where that may be.
        self._unrecorded: set[str] = set()
        #: What the daemon's file says of the policy.
        self.policy = plan.settings.policy
        self.swaps = 0
        self.daemon_starts = 0
        self.worker_starts = 0
        self._turns = 0
        names = [WorkerId(machine.name) for machine in self.machines]
        self.cables = [machine.cable for machine in self.machines]
        self.clients: list[Client] = []
        for i in range(plan.clients):
            cable = Cable()
            self.cables.append(cable)
            process = Process(kernel, f"c{i}")
            self.clients.append(Client(process, self.network, cable, plan, self.oracle, names))

    # ------------------------------------------------------------------------------------------------------- the parts

    def start_daemon(self) -> None:
        """Start the daemon on its disk, unless it runs."""
        if self.daemon is not None:
            return
        self.daemon_starts += 1
        self.kernel.note("the daemon starts")
        process = Process(self.kernel, "daemon", self.wall_ns)
        daemon = self.daemon = Daemon(
            process, self.network, self.disk, self.plan, self.policy, self.oracle.on_disk, self._turned
        )
        self.oracle.daemon_started(daemon)
        for name in sorted(self._unrecorded.difference(daemon.awaited)):
            self.oracle.on_grace_over(name)
        self._unrecorded.clear()
        self._grace_over(daemon)

    def on_thaw(self, daemon: Daemon, frozen_ns: Instant) -> None:
        """The daemon goes on, with all that has come meanwhile still to be read."""
        self.oracle.on_thaw(daemon, frozen_ns)
        daemon.process.go_on()
        self._grace_over(daemon)

    def _grace_over(self, daemon: Daemon) -> None:
        """Look whether the grace has ended; just before, for what the daemon does at that instant."""
        if daemon is not self.daemon or daemon.process.is_stopped:
            return
        until_ns = self.oracle.grace_until_ns(daemon)
        if self.kernel.now_ns < until_ns:
            self.kernel.put_at(until_ns, self._grace_over, daemon)
            return
        for worker_id in daemon.awaited:
            if worker_id not in daemon.engine.resources.workers:
                self.oracle.on_grace_over(worker_id)

    def swap_policy(self, policy: PolicySettings) -> None:
        """Choose another policy: at once where the daemon runs, else for its next start."""
        self.policy = policy
        if self.daemon is not None and not self.daemon.service.stopping:
            self.swaps += 1
            self.daemon.swap_policy(policy)

    def kill_daemon(self, *, silently: bool = False) -> None:
        """Kill the daemon, or cut the power of its machine."""
        if self.daemon is not None:
            self.kernel.note("the daemon dies")
            self._note_unrecorded(self.daemon)
            self.daemon.kill(silently=silently)
            self.daemon = None

    def _note_unrecorded(self, daemon: Daemon) -> None:
        """Note of which workers a restart may know nothing.

        While the disk refuses, workers get work before they are on it. Those that an earlier restart waited for in vain
        bring what they had, and are on it only a moment later.
        """
        absent = daemon.engine.resources.workers.keys() - self.oracle.recording.workers
        self._unrecorded.update(absent if daemon.service.promises.failure else absent & self.oracle.recording.given_up)

    def _turned(self, daemon: Daemon, events: list[ev.Event], effects: fx.Effects) -> None:
        self.oracle.on_turn(daemon, effects)
        self._note_unrecorded(daemon)
        self._turns += 1
        if self.kernel.listener is not None:
            self.kernel.listener(f"turn: {events}")
            for part in (*effects.facts, *effects.actions):
                self.kernel.listener(f"   -> {part}")
        if self._turns % CHECK_TURNS == 0:
            daemon.engine.check()
            for machine in self.machines:
                if machine.worker is not None:
                    self.oracle.check_worker(machine.worker)
        if self._turns % COMPARE_TURNS == 0 and daemon.journal.is_idle and not effects.facts:
            self.oracle.recording.compare(daemon.engine, restored=False)

    def _heard(self, worker_id: str) -> None:
        self.oracle.on_heard(worker_id)

    def start_worker(self, machine: Machine) -> None:
        """Start the worker of a machine, unless it runs."""
        if machine.worker is not None:
            return
        self.worker_starts += 1
        skew_ns = self.kernel.random.randrange(-5 * SECOND, 5 * SECOND)
        process = Process(self.kernel, machine.name, skew_ns)
        worker = machine.worker = Worker(
            process,
            self.network,
            machine.cable,
            machine.resources,
            self.oracle,
            lambda: self._worker_left(machine, worker),
            self.oracle.on_acked,
            lambda: machine.is_broken,
            machine.shelf,
        )
        self.oracle.incarnations[machine.name] = worker.incarnation
        worker.connect()

    def _worker_left(self, machine: Machine, worker: Worker) -> None:
        self.kernel.note(f"{machine.name} leaves")
        must(not worker.runner.alive or worker.is_forced, f"{machine.name} leaves processes behind")
        self.kernel.call_in(1.0, self._after_leaving, machine, worker)

    def _after_leaving(self, machine: Machine, worker: Worker) -> None:
        if machine.worker is worker:
            self.kill_worker(machine)
            self.kernel.call_in(self.kernel.random.uniform(0, 5), self.start_worker, machine)

    def kill_worker(self, machine: Machine, *, silently: bool = False) -> None:
        """Kill a worker and all that it runs, or cut the power of its machine."""
        worker = machine.worker
        if worker is not None:
            self.kernel.note(f"{machine.name} dies")
            worker.die()
            if silently:
                self._lose_shelf(machine)
            self.network.kill(worker.process, silently=silently)
            machine.worker = None

    def _lose_shelf(self, machine: Machine) -> None:
        """A power cut takes what was not synced, and nothing was."""
        for kept in machine.shelf.values():
            self.oracle.forgot(machine.name, kept)
        machine.shelf.clear()

    # --------------------------------------------------------------------------------------------------------- the run

    def run(self) -> None:
        """Raise Violation, AssertionError or Crashed where a promise is broken."""
        kernel = self.kernel
        self.start_daemon()
        for machine in self.machines:
            kernel.call_in(kernel.random.random(), self.start_worker, machine)
        for client in self.clients:
            client.connect()
            for _ in range(self.plan.requests):
                kernel.call_in(kernel.random.uniform(0, STORM_S * 0.8), client.act)
        faults = Faults(self)
        faults.begin()
        end_ns = kernel.now_ns + int(STORM_S * SECOND)
        kernel.put_at(end_ns, self._calm, faults)
        while kernel.now_ns < end_ns:
            kernel.step()
        deadline_ns = kernel.now_ns + int(CALM_S * SECOND)
        rest_ns = 0
        while rest_ns < REST_NS:
            since_ns = kernel.now_ns
            if kernel.now_ns > deadline_ns or kernel.steps > STEPS_MAX:
                raise Violation(f"not at rest after {kernel.steps} steps: {self._what_is_left()}")
            for _ in range(LOOK_STEPS):
                kernel.step()
            rest_ns = rest_ns + kernel.now_ns - since_ns if self._is_at_rest() else 0
        self._check_rest()

    def _calm(self, faults: Faults) -> None:
        self.kernel.note("calm")
        faults.end()
        latency_s = self.plan.network.latency_s
        self.network.rules = NetworkRules(latency_s, latency_s)
        self.disk.is_full, self.disk.sync_s = False, 0.001
        for cable in self.cables:
            self.network.heal(cable)
        self.start_daemon()
        for machine in self.machines:
            machine.is_broken = False
            if machine.worker is not None:
                machine.worker.process.go_on()
            self.start_worker(machine)
        self._release()

    def _release(self) -> None:
        """Let go what is held, again and again: an answer may have been lost with its connection."""
        for client in self.clients:
            client.release_all()
        self.kernel.call_in(10.0, self._release)

    def _is_at_rest(self) -> bool:
        daemon = self.daemon
        if (
            daemon is None
            or daemon.service.loop.is_scheduled
            or not daemon.journal.is_idle
            or daemon.engine.tasks.unfinished_count
        ):
            return False
        if self.oracle.recording.unfinished or daemon.service.promises.pending_count:
            return False
        if any(client.pending or client.undone for client in self.clients):
            return False
        return all(
            machine.worker is not None and machine.worker.is_up and not machine.worker.state.leaving
            and machine.worker.state.is_idle and not machine.worker.unheard and not machine.shelf
            for machine in self.machines
        )  # fmt: skip

    def _what_is_left(self) -> str:
        daemon = self.daemon
        rows = [] if daemon is None else [row for row in daemon.engine.tasks.rows.values() if not row.state.is_final]
        return "; ".join(
            [
                *(f"task {row.id} {row.state}" for row in rows[:5]),
                *(
                    f"{c.process.name} waits for {list(c.pending.values())[:3]} {sorted(c.undone)[:5]}"
                    for c in self.clients
                ),
                *(f"{machine.name}: {machine.worker and machine.worker.describe()}" for machine in self.machines),
                f"workers {[(w.worker_id, str(w.status)) for w in daemon.engine.resources] if daemon else None}",
            ]
        )

    def _check_rest(self) -> None:
        daemon = self.daemon
        assert daemon is not None
        daemon.engine.check()
        self.oracle.at_rest()
        self.oracle.recording.compare(daemon.engine, restored=False)
        daemon.check_empty()
        for machine in self.machines:
            assert machine.worker is not None
            self.oracle.check_worker(machine.worker)
            must(not machine.worker.state.holds(), f"{machine.name} holds {machine.worker.state.holds()}")
            must(not machine.shelf, f"ends are left on the disk of {machine.name}: {machine.shelf}")
        disk = self.disk
        left = (disk.batches, disk.ended, disk.changes)
        must(not any(left), f"rows of ended tasks are left on disk: {left}")


def run_seed(seed: int) -> Result:
    """Run one seed to its end. An exception that is no broken promise is a failure all the same."""
    plan = make_plan(seed)
    cluster = Cluster(plan)
    failure = ""
    try:
        cluster.run()
    except Exception as error:
        failure = f"{type(error).__name__}: {error}"
    return Result(plan, failure, cluster)
