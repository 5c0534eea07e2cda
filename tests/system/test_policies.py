"""Each policy, picked in config.toml, does what it is for, as seen from outside."""

from __future__ import annotations

from collections import Counter

from helpers import Cluster, wait_until

from schedd.client.sync import Task
from schedd.core.model import Selection
from schedd.journal.store import Journal

from .conftest import Gate

TRUE = ["true"]


def policy(name: str, **values: float) -> str:
    lines = [f"[policy]\nname = '{name}'\n[policy.{name}]", *(f"{key} = {value}" for key, value in values.items())]
    return "\n".join(lines)


def start_order(cluster: Cluster, tasks: list[Task]) -> list[int]:
    """Positions in `tasks`, in the order in which they were started."""
    cluster.client.wait([task.id for task in tasks], timeout=30)
    started = {view.id: view.started_at or 0.0 for view, _ in cluster.client.show([task.id for task in tasks])}
    return sorted(range(len(tasks)), key=lambda position: started[tasks[position].id])


def busy(cluster: Cluster, gate: Gate) -> Task:
    """Occupy the only slot of the cluster."""
    blocker = cluster.client.submit(gate.command)
    cluster.wait_for_state(blocker.id, "running")
    return blocker


def workers_of(cluster: Cluster, tasks: list[Task]) -> list[str | None]:
    return [cluster.task(task.id).worker for task in tasks]


def test_fifo_keeps_the_order_of_submission(cluster: Cluster, gate: Gate) -> None:
    cluster.start_daemon(policy("fifo"))
    cluster.start_worker()
    busy(cluster, gate)
    tasks = [cluster.client.submit(TRUE, priority=p, kind=f"k{p}") for p in (1, 5, -3, 5, 0, 9)]
    gate.open()
    assert start_order(cluster, tasks) == [0, 1, 2, 3, 4, 5]


def test_fifo_takes_the_first_idle_worker(cluster: Cluster, gate: Gate) -> None:
    cluster.start_daemon(policy("fifo"))
    cluster.start_worker("first", 2)
    cluster.start_worker("second", 8)
    tasks = [cluster.client.submit(gate.command) for _ in range(3)]
    for task in tasks:
        cluster.wait_for_state(task.id, "running")
    assert workers_of(cluster, tasks) == ["first", "first", "second"]


def test_priority_comes_first(cluster: Cluster, gate: Gate) -> None:
    cluster.start_daemon(policy("priority"))
    cluster.start_worker()
    busy(cluster, gate)
    tasks = [cluster.client.submit(TRUE, priority=p, kind=f"k{p}") for p in (0, 5, -3, 5, 1)]
    gate.open()
    assert start_order(cluster, tasks) == [1, 3, 4, 0, 2]


def test_priorities_that_change_while_tasks_wait(cluster: Cluster, gate: Gate) -> None:
    cluster.start_daemon(policy("priority"))
    cluster.start_worker()
    busy(cluster, gate)
    tasks = [cluster.client.submit(TRUE, priority=p) for p in (5, 4, 3, 2, 1)]
    assert cluster.client.set(tasks[4], priority=10).changed == 1
    assert cluster.client.set_priorities([(tasks[0].id, -1.0), (tasks[2].id, 7.5)]).changed == 2
    gate.open()
    assert start_order(cluster, tasks) == [4, 2, 1, 3, 0]


def test_priority_prefers_the_worker_with_the_fewest_tasks(cluster: Cluster, gate: Gate) -> None:
    cluster.start_daemon(policy("priority"))
    cluster.start_workers({"w1": 3, "w2": 3})
    tasks = []
    for _ in range(4):
        tasks.append(cluster.client.submit(gate.command))
        cluster.wait_for_state(tasks[-1].id, "running")
    assert Counter(workers_of(cluster, tasks)) == {"w1": 2, "w2": 2}


def test_ageing_lets_old_tasks_pass(cluster: Cluster, gate: Gate) -> None:
    # A point of priority for each tenth of a millisecond: whoever was first is first.
    cluster.start_daemon(policy("priority", ageing_per_hour=3.6e7))
    cluster.start_worker()
    busy(cluster, gate)
    old = cluster.client.submit(TRUE, priority=0)
    young = cluster.client.submit(TRUE, priority=1)
    gate.open()
    assert start_order(cluster, [old, young]) == [0, 1]


def test_load_balancing_spreads_by_size(cluster: Cluster, gate: Gate) -> None:
    cluster.start_daemon(policy("load_balancing", backlog_per_slot=1))
    cluster.start_worker("small", 2)
    cluster.start_worker("large", 8)
    tasks = [cluster.client.submit(gate.command) for _ in range(5)]
    for task in tasks:
        cluster.wait_for_state(task.id, "running")
    assert Counter(workers_of(cluster, tasks)) == {"small": 1, "large": 4}
    more = [cluster.client.submit(gate.command) for _ in range(5 + 4)]
    for task in more[:5]:
        cluster.wait_for_state(task.id, "running")
    rows = {str(row.name): row for row in cluster.client.workers()}
    assert (rows["small"].running, rows["large"].running) == (2, 8)
    assert rows["small"].backlog + rows["large"].backlog == 4
    assert rows["small"].backlog in (1, 2)
    gate.open()
    cluster.client.wait([task.id for task in [*tasks, *more]], timeout=30)


def test_work_stealing_moves_what_waits_behind_a_long_task(cluster: Cluster, gate: Gate) -> None:
    cluster.start_daemon(policy("work_stealing", steal_threshold=1) + "\n[stealing]\ninterval_s = 0.05\n")
    cluster.start_worker("w1", 1)
    long = busy(cluster, gate)
    short = [cluster.client.submit(["sleep", "0.01"]) for _ in range(20)]
    row = cluster.worker("w1")
    assert row is not None
    assert row.backlog == 20
    cluster.start_worker("w2", 1)

    def stolen_and_done() -> bool:
        return sum(view.state == "succeeded" for view, _ in cluster.client.show([t.id for t in short])) >= 19

    wait_until(stolen_and_done, what="the second worker has done all but what the first keeps")
    assert cluster.task(long.id).state == "running"
    assert cluster.client.stats().steals_total >= 19
    gate.open()
    ends = cluster.client.wait([task.id for task in short], timeout=30)
    assert {end.state for end in ends} == {"succeeded"}
    assert Counter(end.worker for end in ends)["w2"] >= 19
    # Each ran once, wherever it went: a move makes a new attempt, never a second run.
    assert all(len(detail.attempts) == 1 for _, detail in cluster.client.show([t.id for t in short]))


def test_work_is_not_stolen_where_it_cannot_run(cluster: Cluster, gate: Gate) -> None:
    cluster.start_daemon(policy("work_stealing", steal_threshold=0) + "\n[stealing]\ninterval_s = 0.05\n")
    cluster.start_worker("w1", 1, "--label", "zone=a")
    cluster.client.submit(gate.command, labels={"zone": "a"})
    bound = [cluster.client.submit(TRUE, labels={"zone": "a"}) for _ in range(4)]
    free = [cluster.client.submit(TRUE) for _ in range(4)]
    cluster.start_worker("w2", 1, "--label", "zone=b")
    ends = cluster.client.wait([task.id for task in free], timeout=30)
    assert {end.worker for end in ends} == {"w2"}
    assert {cluster.task(task.id).state for task in bound} == {"assigned"}
    gate.open()
    assert {end.worker for end in cluster.client.wait([task.id for task in bound], timeout=30)} == {"w1"}


def one_by_one(cluster: Cluster, command: list[str], count: int, kind: str) -> list[str]:
    """The workers that got tasks while nobody was busy."""
    got = []
    for _ in range(count):
        got.append(cluster.client.submit(command, kind=kind).wait(30).worker)
    return got


ADAPTIVE = policy("adaptive", statistics_interval_s=0.05)


def test_adaptive_learns_which_worker_is_faster(cluster: Cluster) -> None:
    cluster.start_daemon(ADAPTIVE)
    cluster.start_worker("slow", 1, env={"PAUSE": "0.4"})
    cluster.start_worker("fast", 1, env={"PAUSE": "0.01"})
    command = ["sh", "-c", 'sleep "$PAUSE"']
    both = [cluster.client.submit(command, kind="train") for _ in range(2)]
    assert {end.worker for end in cluster.client.wait([task.id for task in both], timeout=30)} == {"slow", "fast"}
    wait_until(lambda: one_by_one(cluster, command, 1, "train") == ["fast"])
    assert one_by_one(cluster, command, 8, "train") == ["fast"] * 8


def test_adaptive_learns_which_worker_is_reliable(cluster: Cluster) -> None:
    cluster.start_daemon(ADAPTIVE)
    cluster.start_worker("broken", 1, env={"STATUS": "1"})
    cluster.start_worker("sound", 1, env={"STATUS": "0"})
    command = ["sh", "-c", 'sleep 0.03; exit "$STATUS"']
    both = [cluster.client.submit(command, kind="train") for _ in range(2)]
    ends = cluster.client.wait([task.id for task in both], timeout=30)
    assert {(end.worker, end.state) for end in ends} == {("broken", "failed"), ("sound", "succeeded")}
    wait_until(lambda: one_by_one(cluster, command, 1, "train") == ["sound"])
    assert one_by_one(cluster, command, 8, "train") == ["sound"] * 8


def test_adaptive_learns_each_kind_by_itself(cluster: Cluster) -> None:
    """Comparative advantage: each worker is good at something."""
    cluster.start_daemon(ADAPTIVE)
    cluster.start_worker("w1", 1, env={"A": "0.01", "B": "0.3"})
    cluster.start_worker("w2", 1, env={"A": "0.3", "B": "0.01"})
    commands = {kind: ["sh", "-c", f'sleep "${kind}"'] for kind in "AB"}
    for kind, command in commands.items():
        both = [cluster.client.submit(command, kind=kind) for _ in range(2)]
        cluster.client.wait([task.id for task in both], timeout=30)
    best = {"A": "w1", "B": "w2"}
    for kind, command in commands.items():
        wait_until(lambda k=kind, c=command: one_by_one(cluster, c, 1, k) == [best[k]])  # type: ignore[misc]
        assert one_by_one(cluster, command, 4, kind) == [best[kind]] * 4


def test_adaptive_is_as_wise_after_a_restart(cluster: Cluster) -> None:
    """Who knows nothing takes the first that joined, which is the slow one."""
    command = ["sh", "-c", 'sleep "$PAUSE"']
    for expected in (["slow", "fast"], ["fast", "fast"]):
        daemon = cluster.start_daemon(ADAPTIVE)
        workers = [cluster.start_worker("slow", 1, env={"PAUSE": "0.4"})]
        workers.append(cluster.start_worker("fast", 1, env={"PAUSE": "0.01"}))
        assert one_by_one(cluster, command, 2, "train") == expected
        assert [worker.stop() for worker in workers] == [0, 0]
        assert daemon.stop() == 0


def test_batch_keeps_kinds_together_and_the_biggest_worker_comes_first(cluster: Cluster, gate: Gate) -> None:
    cluster.start_daemon(policy("batch", batch_size=3))
    cluster.start_worker("small", 1)
    cluster.start_worker("large", 3)
    job = "both kinds"
    tasks = [cluster.client.submit(gate.command, kind=kind, job=job, hold=True) for kind in "ababab"]
    assert cluster.client.release(Selection(job=job)).changed == 6
    for position in (0, 1, 2, 4):
        cluster.wait_for_state(tasks[position].id, "running")
    where: dict[str, list[str | None]] = {"a": [], "b": []}
    for task, kind in zip(tasks, "ababab", strict=True):
        where[kind].append(cluster.task(task.id).worker)
    assert where == {"a": ["large"] * 3, "b": ["small"] * 3}
    row = cluster.worker("small")
    assert row is not None
    assert (row.running, row.backlog) == (1, 2)
    gate.open()
    cluster.client.wait([task.id for task in tasks], timeout=30)


def test_every_policy_runs_everything(cluster: Cluster) -> None:
    for name in ("fifo", "priority", "load_balancing", "work_stealing", "adaptive", "batch"):
        cluster.start_daemon(policy(name))
        workers = cluster.start_workers({f"{name}-1": 1, f"{name}-2": 2})
        assert list(cluster.client.map(abs, range(-300, 0))) == list(range(300, 0, -1))
        assert cluster.client.stats().policy == name
        for process in workers.values():
            assert process.stop() == 0
        assert cluster.daemon.stop() == 0


def test_shadow_is_asked_and_decides_nothing(cluster: Cluster, gate: Gate) -> None:
    cluster.start_daemon("[policy]\nname = 'fifo'\nshadow = 'priority'\n")
    cluster.start_worker("first", 2)
    cluster.start_worker("second", 2)
    tasks = []
    for _ in range(3):
        tasks.append(cluster.client.submit(gate.command))
        cluster.wait_for_state(tasks[-1].id, "running")
    assert workers_of(cluster, tasks) == ["first", "first", "second"]
    shadow = cluster.client.stats().shadow
    assert shadow is not None
    assert (shadow.policy, shadow.decisions, shadow.agreed) == (
        "priority",
        3,
        2,
    )  # the second would have gone elsewhere
    gate.open()
    cluster.client.wait([task.id for task in tasks], timeout=30)


def test_shadow_has_learned_when_it_takes_over(cluster: Cluster) -> None:
    cluster.start_daemon("[policy]\nname = 'fifo'\nshadow = 'adaptive'\n")
    cluster.start_worker("w1", 1)
    task = cluster.client.submit(TRUE, kind="k")
    cluster.client.wait([task.id], timeout=30)
    assert cluster.daemon.stop() == 0
    journal = Journal(cluster.folder / "daemon" / "journal.db")
    try:
        assert {one.kind for one in journal.load().learned["adaptive"]} == {"k", ""}
    finally:
        journal.close()
