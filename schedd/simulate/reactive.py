"""Searches that submit by result: synchronous successive halving, and ASHA, over recorded learning curves.

A search has a number of configurations and some rungs. An evaluation trains a configuration up to the fidelity of a
rung; it is a task of its own whose priority is the rung's number, so that a policy that knows priorities prefers what
came far. All evaluations of the first rung are submitted at the start, search by search. From then on

- `halving` waits until a rung is complete and submits the best 1/eta of it to the next, best first (Jamieson and
  Talwalkar, AISTATS 2016): what is evaluated does not depend on who ran when, so that policies do equal work;
- `asha` submits a configuration as soon as it is among the best 1/eta of those that have finished its rung so far (Li
  et al., MLSys 2020): nobody waits, and some are trained further that turn out not to be among the best.

A search has ended when nothing of it is left to run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from math import fsum
from statistics import fmean
from typing import Any, Protocol

from msgspec import Struct

from schedd.core.model import TaskRequirements
from schedd.demo.asha import Asha
from schedd.errors import TraceError
from schedd.simulate.bound import may_fail, top_speed
from schedd.simulate.cluster import ClusterRow
from schedd.simulate.curves import Curves, Rungs, rungs_of
from schedd.simulate.metrics import half_width, slots_of
from schedd.simulate.trace import Trace, TraceTask
from schedd.simulate.workload import TraceWorkload


class Rule(Protocol):
    """Who goes on, for one search."""

    def record(self, trial: int, rung: int, score: float) -> Sequence[int]:
        """Take in a result, NaN of what failed: that is out of the race.

        Returns the trials that go on to the next rung, in the order of their submission.
        """


class Halving:
    """The best 1/eta of what succeeded of a rung, and one at least, once all of it is known."""

    def __init__(self, rungs: int, eta: int, trials: int) -> None:
        self._eta = eta
        self._rungs = rungs
        self._awaited = trials
        self._results: list[tuple[float, int]] = []

    def record(self, trial: int, rung: int, score: float) -> Sequence[int]:
        if math.isnan(score):
            self._awaited -= 1
        else:
            self._results.append((-score, trial))
        if len(self._results) < self._awaited or not self._results or rung == self._rungs - 1:
            return ()
        self._awaited = max(1, len(self._results) // self._eta)
        best = sorted(self._results)[: self._awaited]
        self._results = []
        return [each for _, each in best]


RULES: dict[str, Callable[[int, int, int], Rule]] = {
    "halving": Halving,
    "asha": lambda rungs, eta, trials: Asha(rungs, eta),
}


class Plan(Struct, frozen=True):
    """What is searched. 0 or empty: by what there is.

    eta: one in eta goes on. levels: fidelities of the rungs. configs: of each search; by default eta to the power of
    the number of rungs, so that eta configurations reach the last one. searches: of each data set; by default as many
    as its configurations are enough for. resume: train on from checkpoints where the curves allow for it.
    """

    rule: str
    eta: int = 3
    levels: tuple[float, ...] = ()
    configs: int = 0
    searches: int = 0
    resume: bool = True


class _Search(Struct):
    """One search under way. `first`: which of the trials of its rungs is its own first."""

    rungs: Rungs
    first: int
    rule: Rule
    left: int
    end_s: float = 0.0
    #: When the first configuration had its full training; 0: none had.
    full_s: float = 0.0


class _Evaluation(Struct, frozen=True):
    """What a task stands for."""

    search: _Search
    trial: int
    rung: int


class Reactive(TraceWorkload):
    """A workload that grows by its results; for one run. `trace` has all that was submitted so far."""

    def __init__(self, data: Sequence[Curves], plan: Plan, requirements: TaskRequirements) -> None:
        self.trace = Trace(plan.rule, [])
        super().__init__(self.trace)
        self.searches: list[_Search] = []
        self._requirements = requirements
        self._evaluations: list[_Evaluation] = []
        for curves in data:
            self._begin(rungs_of(curves, plan.eta, plan.levels), plan)

    def _begin(self, rungs: Rungs, plan: Plan) -> None:
        if not plan.resume:
            rungs = Rungs(rungs.name, rungs.levels, False, rungs.curves)
        count = len(rungs.curves)
        configs = plan.configs or min(count, plan.eta ** len(rungs.levels))
        searches = plan.searches or max(1, count // configs)
        if configs * searches > count:
            raise TraceError(
                f"{rungs.name} has {count:,} configurations, and {searches} searches of {configs:,} need more",
                "ask for fewer searches, or configurations of each",
            )
        for number in range(searches):
            rule = RULES[plan.rule](len(rungs.levels), plan.eta, configs)
            search = _Search(rungs, number * configs, rule, 0)
            self.searches.append(search)
            for trial in range(configs):
                self._submit(_Evaluation(search, trial, 0), 0.0)

    def on_finished(self, index: int, now_s: float, ok: bool) -> None:
        """Submit what follows from the result of a task."""
        done = self._evaluations[index]
        search, rungs = done.search, done.search.rungs
        search.left -= 1
        if ok and done.rung == len(rungs.levels) - 1 and not search.full_s:
            search.full_s = now_s
        score = rungs.score(search.first + done.trial, done.rung) if ok else math.nan
        for trial in search.rule.record(done.trial, done.rung, score):
            self._submit(_Evaluation(search, trial, done.rung + 1), now_s)
        if not search.left:
            search.end_s = now_s

    def _submit(self, one: _Evaluation, now_s: float) -> None:
        search, rungs = one.search, one.search.rungs
        runtime_s = rungs.cost_s(search.first + one.trial, one.rung)
        search.left += 1
        self._evaluations.append(one)
        task = TraceTask(now_s, rungs.name, runtime_s, self._requirements, priority=float(one.rung))
        self.trace.tasks.append(task)

    def figures(self) -> dict[str, Any]:
        """When each search ended, in the order of their submission, and had its first fully trained configuration.

        The latter is 0 of a search that had none, which does not count for the mean.
        """
        ends, fulls = [each.end_s for each in self.searches], [each.full_s for each in self.searches]
        return {
            "mean_search_end_s": fmean(ends),
            "search_end_s": ends,
            "mean_search_full_s": fmean([each for each in fulls if each] or [0.0]),
            "search_full_s": fulls,
        }


def lower_bound_s(workload: Reactive, cluster: Sequence[ClusterRow]) -> float | None:
    """A makespan that no policy can beat, of a workload that has not run and is used up by this; None: not known.

    The larger of all work spread over all slots, and the time that the searches would take with a worker for each
    evaluation. With ASHA, who runs when decides what is evaluated, and so do failures.
    """
    if workload.trace.format == "asha" or may_fail(cluster):
        return None
    speed = top_speed(cluster)
    tasks = workload.trace.tasks
    ends: list[tuple[float, int]] = []
    known, last_s = 0, 0.0
    while ends or known < len(tasks):
        for number in range(known, len(tasks)):
            heappush(ends, (tasks[number].submit_s + tasks[number].runtime_s / speed, number))
        known = len(tasks)
        last_s, number = heappop(ends)
        workload.on_finished(number, last_s, True)
    slots = slots_of(cluster, gpus=bool(tasks[0].requirements.min_gpus))
    return max(last_s, fsum(task.runtime_s for task in tasks) / (slots * speed))


def with_searches(summary: dict[str, Any], found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Add the figures of the searches, if there were any, to the summary of a policy: means, and those of each seed."""
    if not found:
        return summary
    means: dict[str, Any] = {}
    for name, value in found[0].items():
        rows = [row[name] for row in found]
        means[name] = [fmean(column) for column in zip(*rows, strict=True)] if isinstance(value, list) else fmean(rows)
    spread = {name: half_width([row[name] for row in found]) for name in means if name.startswith("mean_")}
    per_seed = [row | figures for row, figures in zip(summary["per_seed"], found, strict=True)]
    return summary | means | {"ci95": summary["ci95"] and summary["ci95"] | spread, "per_seed": per_seed}
