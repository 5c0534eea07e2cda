"""What a requirement needs, in integers: thousandths of a CPU, of a GPU and of a custom amount, MiB of memory."""

from __future__ import annotations

from msgspec import Struct

from schedd.core.model import TaskRequirements

WHOLE = 1000  # thousandths
MB_PER_GB = 1024


class Need(Struct, frozen=True):
    """One requirements variant in integers. `gpus` devices, `share` thousandths of each, `gpu_mb` MiB on each."""

    cpus: int
    ram_mb: int
    gpus: int
    share: int
    gpu_mb: int
    gpu_model: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    custom: tuple[tuple[str, int], ...] = ()


def compile_needs(requirements: TaskRequirements) -> tuple[Need, ...]:
    """Compile a requirement and its variants, in order of preference."""
    return tuple(_compile(r) for r in (requirements, *requirements.variants))


def _compile(r: TaskRequirements) -> Need:
    whole = r.min_gpus >= 1
    return Need(
        cpus=round(r.cpus * WHOLE),
        ram_mb=round(r.ram * MB_PER_GB),
        gpus=int(r.min_gpus) if whole else (1 if r.min_gpus > 0 else 0),
        share=WHOLE if whole else round(r.min_gpus * WHOLE),
        gpu_mb=round(r.min_memory * MB_PER_GB) if r.min_gpus > 0 else 0,
        gpu_model=r.gpu_model,
        labels=tuple(sorted(r.labels.items())),
        custom=tuple(sorted((name, round(value * WHOLE)) for name, value in r.custom.items())),
    )
