"""Loads that are drawn: `poisson:tasks=10000,load=0.9,runtime=exp,mean_s=60`.

Before the colon stands how tasks arrive, behind it what else there is to say, all of it optional. The load is the work
that arrives in a second over what the cluster can do in one, so that the same words suit every cluster.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from schedd.core.model import TaskRequirements
from schedd.errors import TraceError
from schedd.simulate.cluster import ClusterRow
from schedd.simulate.metrics import most_at_once
from schedd.simulate.trace import Trace, TraceTask

ARRIVALS = {
    "poisson": "one by one, at random",
    "steady": "one by one, at equal distances",
    "batches": "`batch` together in the mean, at random",
    "onoff": "at random for `on_s`, then none for `off_s`, in the mean",
    "bag": "all at the beginning",
}
RUNTIMES = "exp, fixed, lognormal (sigma), pareto (alpha), bimodal (long_share, long_factor)"
TASKS_MAX = 10_000_000
#: The runtime is the same everywhere; one mapping for all tasks.
_ANYWHERE: dict[str, float] = {}

Positive = Annotated[float, Meta(gt=0, le=1e9)]


class Load(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What to draw. mean_s: of the runtimes, over all kinds.

    spread: how much longer the longest kind is than the shortest. speedup: by how much a kind may be faster, or slower,
    on one device model than on another. hints: with an estimated time that is off by so much (sigma of its logarithm).
    """

    arrivals: Literal["poisson", "steady", "batches", "onoff", "bag"] = "poisson"
    tasks: Annotated[int, Meta(ge=1, le=TASKS_MAX)] = 10_000
    load: Annotated[float, Meta(gt=0, le=1000)] = 0.9
    batch: Annotated[float, Meta(ge=1, le=1e6)] = 20.0
    on_s: Positive = 600.0
    off_s: Positive = 600.0
    runtime: Literal["exp", "fixed", "lognormal", "pareto", "bimodal"] = "exp"
    mean_s: Positive = 60.0
    sigma: Annotated[float, Meta(gt=0, le=5)] = 1.0
    alpha: Annotated[float, Meta(gt=1, le=100)] = 1.5
    long_share: Annotated[float, Meta(gt=0, lt=1)] = 0.1
    long_factor: Annotated[float, Meta(gt=1, le=1e6)] = 20.0
    kinds: Annotated[int, Meta(ge=1, le=10_000)] = 1
    spread: Annotated[float, Meta(ge=1, le=1e6)] = 1.0
    speedup: Annotated[float, Meta(ge=1, le=1000)] = 1.0
    gpus: Annotated[float, Meta(ge=0, le=1024)] | None = None
    cpus: Annotated[float, Meta(ge=0, le=1e5)] = 1.0
    priorities: Annotated[int, Meta(ge=1, le=1000)] = 1
    hints: Annotated[float, Meta(ge=0, le=5)] | None = None

    def __post_init__(self) -> None:
        TaskRequirements(min_gpus=self.gpus or 0.0)  # which says best what is wrong with it


def parse_load(text: str) -> Load:
    """Read `ARRIVALS[:NAME=VALUE,…]`. Raises ValueError, which says what there is."""
    arrivals, _, rest = text.partition(":")
    if arrivals not in ARRIVALS:
        raise ValueError(f"tasks arrive by one of {', '.join(ARRIVALS)}, not {arrivals!r}{_close(arrivals, ARRIVALS)}")
    values = {"arrivals": arrivals}
    known = [name for name in Load.__struct_fields__ if name != "arrivals"]
    for part in filter(None, (part.strip() for part in rest.split(","))):
        name, sign, value = (each.strip() for each in part.partition("="))
        if not sign:
            raise ValueError(f"{part!r} is not of the form NAME=VALUE")
        if name not in known:
            raise ValueError(f"there is no {name!r}{_close(name, known)}; there are {', '.join(known)}")
        values[name] = value
    try:
        return msgspec.convert(values, Load, strict=False)
    except msgspec.ValidationError as error:
        message = str(error).replace("`", "").replace(" - at $.", " for ")
        raise ValueError(
            f"{message}; runtime is one of {RUNTIMES}" if message.endswith(" runtime") else message
        ) from None


def _close(name: str, known: Sequence[str] | dict[str, str]) -> str:
    found = get_close_matches(name, list(known), 1)
    return f" (did you mean {found[0]}?)" if found else ""


def generate(load: Load, cluster: Sequence[ClusterRow], seed: int = 0) -> Trace:
    """Draw the tasks. Raises TraceError where the cluster has no room for a single one."""
    dice = random.Random(f"load {seed}")
    models = sorted({row.gpu_model for row in cluster if row.num_gpus})
    gpus = load.gpus if load.gpus is not None else float(all(row.num_gpus for row in cluster))
    plain = TaskRequirements(min_gpus=gpus, cpus=load.cpus)
    slots = slots_for(plain, cluster)
    if not slots:
        raise TraceError(
            f"no worker has room for a task of {gpus:g} GPUs and {load.cpus:g} CPUs", "say so with gpus=… and cpus=…"
        )
    means = _means(load)
    speeds = _speeds(load, models if gpus else [], dice)
    draw = _runtimes(load, dice)
    tasks = []
    for submit_s in _arrivals(load, load.load * slots / load.mean_s, dice):
        kind = dice.randrange(load.kinds)
        runtime_s = draw() * means[kind]
        runtimes = {model: runtime_s * factor for model, factor in speeds[kind].items()} if speeds else _ANYWHERE
        requirements = plain
        if load.hints is not None:
            hint_s = runtime_s * math.exp(dice.gauss(0.0, load.hints))
            requirements = TaskRequirements(min_gpus=gpus, cpus=load.cpus, estimated_time=min(hint_s, 1e9))
        priority = float(dice.randrange(load.priorities))
        tasks.append(TraceTask(submit_s, f"kind-{kind}", runtime_s, requirements, runtimes, priority))
    return Trace(f"generated, {load.arrivals}", tasks)


def slots_for(requirements: TaskRequirements, cluster: Sequence[ClusterRow]) -> int:
    """How many such tasks the cluster runs at the same time, at the most."""

    def of_one(row: ClusterRow) -> int:
        rooms = [row.resources().cpus / requirements.cpus] if requirements.cpus else []
        if requirements.min_gpus:
            share = requirements.min_gpus
            rooms.append(row.num_gpus // share if share >= 1 else row.num_gpus * int(1 / share + 1e-9))
        return int(min(rooms, default=0) + 1e-9)

    return int(most_at_once(cluster, of_one))


def _means(load: Load) -> list[float]:
    """Mean runtimes of the kinds, in equal ratios from one to the next."""
    if load.kinds == 1:
        return [load.mean_s]
    relative = [load.spread ** (kind / (load.kinds - 1)) for kind in range(load.kinds)]
    scale = load.mean_s * load.kinds / math.fsum(relative)
    return [scale * each for each in relative]


def _speeds(load: Load, models: Sequence[str], dice: random.Random) -> list[dict[str, float]]:
    """What a kind's runtimes are multiplied by on each device model, in the geometric mean over models 1."""
    if load.speedup == 1 or not models:
        return []
    speeds = []
    for _ in range(load.kinds):
        logs = [dice.uniform(-1, 1) * math.log(load.speedup) for _ in models]
        middle = math.fsum(logs) / len(logs)
        speeds.append({model: math.exp(log - middle) for model, log in zip(models, logs, strict=True)})
    return speeds


def _runtimes(load: Load, dice: random.Random) -> Callable[[], float]:
    """Draws of mean 1."""
    match load.runtime:
        case "exp":
            return lambda: dice.expovariate(1.0)
        case "lognormal":
            return lambda: dice.lognormvariate(-load.sigma * load.sigma / 2, load.sigma)
        case "pareto":
            return lambda: dice.paretovariate(load.alpha) * (load.alpha - 1) / load.alpha
        case "bimodal":
            short = 1 / (1 + load.long_share * (load.long_factor - 1))
            return lambda: short * (load.long_factor if dice.random() < load.long_share else 1.0)
    return lambda: 1.0


def _arrivals(load: Load, rate: float, dice: random.Random) -> Iterator[float]:
    """Instants in order, `rate` a second in the long run."""
    now = 0.0
    match load.arrivals:
        case "poisson":
            for _ in range(load.tasks):
                now += dice.expovariate(rate)
                yield now
        case "steady":
            yield from (number / rate for number in range(load.tasks))
        case "batches":
            left = load.tasks
            while left:
                now += dice.expovariate(rate / load.batch)
                # Geometric from 1 on.
                size = 1 if load.batch == 1 else 1 + int(math.log(1 - dice.random()) / math.log(1 - 1 / load.batch))
                for _ in range(min(size, left)):
                    yield now
                left -= min(size, left)
        case "onoff":
            # Arrivals are drawn on a clock that stands still while it is off.
            busy_rate = rate * (load.on_s + load.off_s) / load.on_s
            until = dice.expovariate(1 / load.on_s)
            for _ in range(load.tasks):
                gap = dice.expovariate(busy_rate)
                while now + gap > until:
                    gap -= until - now
                    now = until + dice.expovariate(1 / load.off_s)
                    until = now + dice.expovariate(1 / load.on_s)
                now += gap
                yield now
        case "bag":
            yield from (0.0 for _ in range(load.tasks))
