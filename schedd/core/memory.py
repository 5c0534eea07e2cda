"""What a task asks for after an attempt that ran out of memory: more of it, or its other variants. Pure.

More means what was not enough, times a factor, up to the most that a worker who is there could give: `ram` after
`oom_host`, `min_memory` after `oom_gpu`. A variant for which nobody has more is given up for the others. The rest of
the requirements stays as it was.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from msgspec import Struct, structs

from schedd.core.capacity import Ledger
from schedd.core.model import Cause, TaskRequirements
from schedd.core.needs import MB_PER_GB, WHOLE, Need, compile_needs

_FIELDS = {Cause.OOM_HOST: ("ram", "RAM"), Cause.OOM_GPU: ("min_memory", "GPU memory")}


class More(Struct, frozen=True):
    """What to ask for from now on, and the sentence that says so."""

    requirements: TaskRequirements
    told: str


def ask_for_more(
    asked: TaskRequirements,
    variant: int,
    cause: Cause,
    devices_mb: Sequence[int],
    ledgers: Iterable[Ledger],
    growth: float,
) -> More | None:
    """Work out the requirements of the attempt after one of `variant` that ran out of memory.

    devices_mb: the memory of the devices that it had. ledgers: of the workers that there are.
    Returns None where it could ask for nothing else than before. O(workers * devices).
    """
    variants = [structs.replace(asked, variants=()), *asked.variants]
    need = compile_needs(asked)[variant]
    had_mb = need.ram_mb if cause is Cause.OOM_HOST else _had_gpu_mb(need, devices_mb)
    if not had_mb:
        return _others(variants, variant) if len(variants) > 1 else None
    most_mb = max((_could_give(ledger, need, cause) for ledger in ledgers), default=0)
    wanted_mb = min(math.ceil(had_mb * growth), most_mb)
    if wanted_mb <= had_mb:
        return _others(variants, variant) if len(variants) > 1 else None
    field, word = _FIELDS[cause]
    variants[variant] = structs.replace(variants[variant], **{field: wanted_mb / MB_PER_GB})
    told = f"the next attempt asks for {wanted_mb / MB_PER_GB:.4g} GB of {word}, after {had_mb / MB_PER_GB:.4g} GB"
    return More(_joined(variants), told)


def _had_gpu_mb(need: Need, devices_mb: Sequence[int]) -> int:
    """How much of a device was not enough: all of it for one that it had alone, whatever it asked for."""
    smallest = min(devices_mb, default=0)
    if need.share == WHOLE:
        return max(need.gpu_mb, smallest)
    return need.gpu_mb or smallest * need.share // WHOLE


def _could_give(ledger: Ledger, need: Need, cause: Cause) -> int:
    """The most memory that a worker could give for a need if it were empty; 0 where it could not run it at all."""
    if ledger.blocker(need):
        return 0
    if cause is Cause.OOM_HOST:
        return ledger.ram_mb
    fitting = sorted((d.memory_mb for d in ledger.devices if need.gpu_model in d.model), reverse=True)
    return fitting[need.gpus - 1] if need.gpus else 0


def _others(variants: list[TaskRequirements], variant: int) -> More:
    others = [each for number, each in enumerate(variants) if number != variant]
    return More(_joined(others), "no worker has more memory for this variant: the next attempt is of another one")


def _joined(variants: list[TaskRequirements]) -> TaskRequirements:
    return structs.replace(variants[0], variants=tuple(variants[1:]))
