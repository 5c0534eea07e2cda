"""What is asked of every policy."""

from __future__ import annotations

import inspect
import math
import os
import random
import subprocess
import sys
from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import Struct, structs

from schedd.core import events as ev
from schedd.core.capacity import Ledger
from schedd.core.model import (
    Cause,
    Selection,
    Task,
    TaskId,
    TaskRequirements,
    WorkerId,
    WorkerInfo,
    WorkerResources,
    WorkerStatus,
)
from schedd.core.needs import compile_needs
from schedd.core.policies.base import TaskScheduler, fit
from schedd.core.stats import Learned
from schedd.testing.rehearsal import BIG, HAS, WANTS, Rehearsal
from schedd.testing.watch import Watch, picture, watched

#: Random sequences of events, and turns in each.
SEQUENCES = 5
STEPS = 100
#: Lengths of the queue that the cost of a placement is compared at, both above any backlog; placements counted.
SHORT_QUEUE, LONG_QUEUE = 200, 1000
PLACEMENTS = 20


def _row(name: str, **values: Any) -> WorkerInfo:
    return WorkerInfo(WorkerId(name), **values)


def _task(number: int = 1, *, kind: str = "", priority: float = 0.0, **wants: Any) -> Task:
    return Task(id=TaskId(number), kind=kind, priority=priority, requirements=TaskRequirements(**wants))


class PolicyConformance:
    """Subclass it under a name that pytest collects, and say which `policy`; `params`: other than its defaults."""

    policy: type[TaskScheduler]
    params: Struct | None = None

    def make(self, watch: Watch | None = None) -> TaskScheduler:
        """Build the policy as the daemon does; with a watch, so that its hooks are looked over."""
        policy = self.policy if watch is None else watched(self.policy, watch)
        return policy.from_params(self.params if self.params is not None else self.policy.Params())

    # ------------------------------------------------------------------------------------------------------- what it is

    def test_says_what_it_is(self) -> None:
        policy = self.policy
        assert policy.name.isidentifier(), f"name is {policy.name!r}; letters, digits and _ can be a key of [policy]"
        assert policy.__doc__, "it has no docstring"
        assert policy.summary.strip() == policy.summary != "", "summary is one line"
        assert "\n" not in policy.summary, "summary is one line"
        assert issubclass(policy.Params, Struct), "Params is a msgspec.Struct"
        assert isinstance(self.make().ageing_rate, int | float), "ageing_rate is a number"

    def test_table_may_be_left_out(self) -> None:
        """Without its table the policy is what the constructor makes without arguments."""
        params = self.policy.Params()
        self.policy.from_params(params)
        if getattr(self.policy.from_params, "__func__", None) is not getattr(
            TaskScheduler.from_params, "__func__", None
        ):
            return
        arguments = inspect.signature(self.policy).parameters
        for name, value in structs.asdict(params).items():
            assert name in arguments, f"{name} is a field of Params and no argument of the constructor"
            assert arguments[name].default == value, f"{name} has one default in Params, and another in the constructor"
        self.policy()

    def test_table_refuses_what_it_does_not_know(self) -> None:
        try:
            msgspec.convert({"no such key": 1}, self.policy.Params)
        except msgspec.ValidationError:
            return
        raise AssertionError("a key that does not exist is taken: Params needs forbid_unknown_fields=True")

    # ---------------------------------------------------------------------------------------------------- on plain rows

    def test_no_workers(self) -> None:
        assert self.make().assign_task(_task(), []) is None

    def test_no_worker_fits(self) -> None:
        chosen = self.make().assign_task(_task(min_gpus=4), [_row("w1", num_gpus=2), _row("w2")])
        assert chosen is None, f"a task that needs 4 GPUs went to {chosen}"

    def test_ties_go_to_the_first(self) -> None:
        policy = self.make()
        for names in ("bac", "cba"):
            rows = [_row(name) for name in names]
            if len({policy.score(_task(), row) for row in rows}) == 1:
                assert policy.assign_task(_task(), rows) == names[0], "of equal scores the first of the list is taken"

    def test_workers_that_take_nothing(self) -> None:
        policy = self.make()
        for status in WorkerStatus:
            if status in (WorkerStatus.IDLE, WorkerStatus.BUSY):
                continue
            away = _row("w1", num_gpus=8, status=status)
            assert policy.assign_task(_task(), [away]) is None, f"a task went to a worker that is {status}"
            assert policy.assign_task(_task(), [away, _row("w2")]) == "w2", f"a worker is in the way that is {status}"

    def test_what_starts_at_once_before_any_backlog(self) -> None:
        workers = [_row("w1", num_gpus=8, status="busy", task_count=8), _row("w2", num_gpus=1)]
        assert self.make().assign_task(_task(min_gpus=1), workers) == "w2", "w2 is idle, and w1 is not"

    def test_never_places_what_does_not_fit(self) -> None:
        """Over random rows: the answer is one of them, and fits."""
        policy, dice = self.make(Watch()), random.Random(1)
        for _ in range(200):
            workers = [_random_row(dice, f"w{n}") for n in range(dice.randrange(6))]
            task = _task(kind=dice.choice("ab"), min_gpus=dice.choice([0, 0.5, 1, 2, 4]), cpus=dice.choice([0, 1, 4]))
            chosen = policy.assign_task(task, workers)
            needs = compile_needs(task.requirements)
            fitting = [w.worker_id for w in workers if fit(needs, task.requirements, w, policy.backlog_limit(w))]
            assert chosen is None or chosen in fitting, f"{task} does not fit {chosen}; it does {fitting}"

    def test_odd_rows(self) -> None:
        """Whatever there may be is scored with a number."""
        policy = self.make(Watch())
        tasks = [
            _task(),
            _task(kind="k" * 1000, priority=-1e12),
            _task(priority=1e12, estimated_time=1e7, min_gpus=0.01),
        ]
        tasks.append(_task(estimated_time=1e-9, cpus=0))
        workers = [_row("w"), _row("v", num_gpus=1024, task_count=1000, status="busy", incoming=5)]
        workers += [_row("u", task_queue=tasks * 100, outgoing=50, seq=1 << 40), _row("é", resources=BIG)]
        workers += [_row(f"l{n}", resources=has, ledger=Ledger(has)) for n, has in enumerate((*HAS, BIG))]
        for task in tasks:
            policy.level(task)
            for worker in workers:
                policy.score(task, worker)
                policy.backlog_limit(worker)

    def test_never_changes_anything(self) -> None:
        waiting = [_task(8), _task(9)]
        workers = [_row("w1", num_gpus=2, task_count=1), _row("w2", status="busy", task_queue=list(waiting))]
        one = _task()
        before = [picture(row) for row in (*workers, one)]
        self.make().assign_task(one, workers)
        assert [picture(row) for row in (*workers, one)] == before, "assign_task changed a task or a worker"

    def test_twice_the_same(self) -> None:
        workers = [_row(f"w{i}", num_gpus=i % 3, task_count=i % 2) for i in range(9)]
        policy = self.make()
        answers = {policy.assign_task(_task(min_gpus=1), workers) for _ in range(20)}
        assert len(answers) == 1, f"the same question has the answers {answers}"

    # ---------------------------------------------------------------------------------------------------- in the engine

    def test_index_and_list_agree(self) -> None:
        """The engine's ordered index of workers and a plain list of the same rows give the same answer."""
        for seed in range(SEQUENCES):
            on_stage = Rehearsal(self.make, seed)
            for _ in range(STEPS // 2):
                on_stage.step()
            on_stage.wait(1)
            tables = on_stage.engine._t
            claims = tables.placer._claims
            if claims.are_due:
                claims.make(on_stage.now)
            if claims.by_seq or tables.runtimes.short:
                continue  # both are the engine's, and kept from the policy
            for n in range(6):
                one = _task(1_000_000 + n, kind="a", cpus=n % 3 / 2, min_gpus=n // 2 / 2)
                one.request = tables.classes.intern(
                    one.requirements, one.kind, tables.policy.by_kind, tables.policy.by_size
                )
                chosen = tables.placer.candidate(one)
                listed = tables.policy.assign_task(one, list(on_stage.engine.resources))
                found = chosen.worker_id if chosen is not None else None
                assert found == listed, (
                    f"the daemon takes {found}, assign_task {listed}: `score` must be all that counts"
                )

    def test_random_sequences(self) -> None:
        """Whatever happens, the tables agree; then calm brings all home, and the same events have the same effects."""
        for seed in range(SEQUENCES):
            on_stage = Rehearsal(self.make, seed)
            for _ in range(STEPS):
                on_stage.step()
            on_stage.calm()
            on_stage.replay()

    def test_same_in_every_process(self) -> None:
        """The order in which a set of strings is gone through changes from process to process: it must not count."""
        policy = self.policy
        if getattr(sys.modules.get(policy.__module__), policy.__qualname__, None) is not policy:
            return  # made inside a function: nobody else can import it
        params = self.params if self.params is not None else policy.Params()
        script = (
            "import importlib, msgspec; from schedd.testing.conformance import digest_of\n"
            f"policy = getattr(importlib.import_module({policy.__module__!r}), {policy.__qualname__!r})\n"
            f"params = msgspec.msgpack.decode({msgspec.msgpack.encode(params)!r}, type=policy.Params)\n"
            "print(digest_of(policy, params))"
        )
        seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
        env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path)}
        done = subprocess.run([sys.executable, "-P", "-c", script], env=env, capture_output=True, text=True)
        assert done.returncode == 0, f"another process cannot run it: {done.stderr[-500:]}"
        assert done.stdout.strip() == digest_of(policy, params), (
            "another process decides otherwise: the order of a set or a hash() counts"
        )

    def test_all_tasks_get_their_turn(self) -> None:
        """A busy cluster of two, tasks of every sort: none waits for ever, and the queue runs empty."""
        on_stage = Rehearsal(self.make, 3)
        on_stage.join(WorkerResources(cpus=2, ram_gb=4, num_gpus=2, gpu_memory_gb=8, gpu_model="A100"))
        on_stage.join(WorkerResources(cpus=3, ram_gb=4))
        for _ in range(20):
            on_stage.submit(3)
        on_stage.calm()

    def test_preempted_runs_again(self) -> None:
        on_stage = Rehearsal(self.make)
        on_stage.join(WorkerResources())
        on_stage.submit(3, wants=[TaskRequirements()])
        [(worker, task)] = on_stage.reserved()
        on_stage.start(worker, task)
        on_stage.turn(ev.PreemptTasks(1, Selection([task.id])))
        on_stage.answer()
        on_stage.calm()
        assert [end.cause for end in task.attempts] == [Cause.PREEMPTED, Cause.OK], "it was to run again, and succeed"

    def test_cost_does_not_grow_with_the_queue(self) -> None:
        """Placing a task asks the policy as often, however many wait."""
        few, many = self._calls_with(SHORT_QUEUE), self._calls_with(LONG_QUEUE)
        assert many <= 2 * few + PLACEMENTS, (
            f"{PLACEMENTS} placements took {few} calls of hooks with {SHORT_QUEUE:,} tasks, {many} with {LONG_QUEUE:,}"
        )

    def _calls_with(self, waiting: int) -> int:
        on_stage = Rehearsal(self.make, 1)
        for _ in range(4):
            on_stage.join(WorkerResources())
        on_stage.submit(waiting, wants=[TaskRequirements()])
        for worker, task in on_stage.reserved():
            on_stage.start(worker, task)
        on_stage.watch.calls.clear()
        for _ in range(PLACEMENTS):
            worker, task = on_stage.reserved()[0]
            on_stage.start(worker, task)
            on_stage.finish(worker, task)
        return on_stage.watch.calls.total()

    # ---------------------------------------------------------------------------------------------- what it has learned

    def test_goes_on_from_what_it_learned(self) -> None:
        """What `learned` writes down is what a new one has after `recall`, by way of the journal."""
        on_stage = Rehearsal(self.make, 5)
        for _ in range(2 * STEPS):
            on_stage.step()
        on_stage.calm()
        learned = on_stage.engine.policy.learned()
        written = msgspec.msgpack.decode(msgspec.msgpack.encode(learned), type=list[Learned])
        fresh = self.make(Watch())
        fresh.recall(written)
        assert _close(fresh.learned(), learned), "after recall(learned()) another policy has learned something else"
        fresh.recall([])


def _random_row(dice: random.Random, name: str) -> WorkerInfo:
    status = dice.choice([*WorkerStatus, WorkerStatus.IDLE, WorkerStatus.IDLE, WorkerStatus.BUSY])
    if dice.random() < 0.5:
        return _row(name, num_gpus=dice.choice([0, 1, 2, 8]), status=status, task_count=dice.randrange(3))
    has = dice.choice(HAS)
    ledger = Ledger(has)
    ledger.reserve(compile_needs(dice.choice(WANTS))[0])
    return _row(name, num_gpus=has.num_gpus, status=status, resources=has, ledger=ledger, task_count=dice.randrange(3))


def _close(ones: Iterable[Learned], others: Iterable[Learned]) -> bool:
    """Whether two lists say the same, in whatever order."""

    def in_order(rows: Iterable[Learned]) -> list[tuple[Any, ...]]:
        return sorted(structs.astuple(row) for row in rows)

    first, second = in_order(ones), in_order(others)
    return len(first) == len(second) and all(
        mine[:2] == yours[:2]
        and all(math.isclose(a, b, rel_tol=1e-9) for a, b in zip(mine[2:], yours[2:], strict=True))
        for mine, yours in zip(first, second, strict=True)
    )


def digest_of(policy: type[TaskScheduler], params: Struct) -> str:
    """A word for all that a policy brings about in one random sequence."""
    on_stage = Rehearsal(lambda watch: policy.from_params(params), 7)
    for _ in range(STEPS):
        on_stage.step()
    return on_stage.digest()


def failures(suite: type[PolicyConformance]) -> dict[str, Exception]:
    """Run all tests of a suite without pytest; returns what failed, by the name of the test, with its reason."""
    found: dict[str, Exception] = {}
    for name in [name for name in dir(suite) if name.startswith("test_")]:
        try:
            getattr(suite(), name)()
        except Exception as error:
            found[name] = error
    return found
