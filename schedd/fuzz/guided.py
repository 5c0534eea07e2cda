"""One job of `python -m schedd.fuzz`: libFuzzer, by way of atheris, sees which branches of schedd an input takes.

Run as a script, so that nothing of schedd is there before its code is instrumented. libFuzzer ends the process by
itself: how far it came stands in a file of eight bytes.
"""

from __future__ import annotations

import logging
import os
import random
import sys
import traceback
from pathlib import Path

import atheris

#: What is around the daemon is not what is looked at.
AROUND = ["schedd.sim", "schedd.fuzz"]

with atheris.instrument_imports(include=["schedd"], exclude=AROUND, enable_loader_override=False):
    # A target imports it later, when nothing is instrumented any more.
    import schedd.cli.jobfile  # noqa: F401
    from schedd.fuzz import failures, targets

#: Of mutations so many are made anew, and so many are changes within the structure; the rest is libFuzzer's, of bytes.
MADE, CHANGED = 0.15, 0.55
#: Long lists take no other branches than short ones do, only more time.
INPUT_BYTES_MAX = 2048
#: The exit status where schedd was wrong.
FAILED = 77


class Job:
    """Feeds a target, and remembers what it was fed since it was reset."""

    def __init__(self, name: str, seed: int, count_file: Path, failure_file: Path) -> None:
        self._name = name
        self._target = targets.TARGETS[name]()
        self._seed = seed
        self._count = 0
        self._counted = os.open(count_file, os.O_CREAT | os.O_WRONLY, 0o644)
        self._failure_file = failure_file
        self._taken: list[bytes] = []
        self._target.reset(seed)

    def take(self, data: bytes) -> None:
        """Take one input; the process ends where schedd is wrong."""
        if len(self._taken) == targets.INPUTS_PER_WORLD:
            self._taken.clear()
            self._seed += 1
            self._target.reset(self._seed)
        self._taken.append(data)
        try:
            self._target.take(data)
        except Exception:
            failures.write(self._failure_file, failures.Failure(self._name, self._seed, self._taken))
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(FAILED)
        self._count += 1
        os.pwrite(self._counted, self._count.to_bytes(8, "big"), 0)

    def mutate(self, data: bytes, size_max: int, seed: int) -> bytes:
        """Make another input of one."""
        dice = random.Random(seed)
        what = dice.random()
        made: bytes | None = None
        if what < MADE:
            made = self._target.make(dice)
        elif what < MADE + CHANGED:
            made = self._target.change(bytes(data), dice)
        if made is None:
            made = atheris.Mutate(bytes(data), size_max)
        return made[:size_max]


def main() -> None:
    name, seed, inputs, seconds, count_file, failure_file, corpus = sys.argv[1:]
    logging.getLogger("schedd").addHandler(logging.NullHandler())  # records are written, and nobody reads them
    logging.getLogger("schedd").propagate = False
    job = Job(name, int(seed), Path(count_file), Path(failure_file))
    flags = [f"-seed={int(seed) % (1 << 31) or 1}", f"-runs={inputs}", f"-max_total_time={seconds}"]
    flags += [
        f"-max_len={INPUT_BYTES_MAX}",
        "-len_control=0",
        "-entropic_scale_per_exec_time=1",  # of inputs that are worth as much, rather those that are quick
        "-timeout=30",
        "-rss_limit_mb=1024",
    ]
    flags += [f"-artifact_prefix={failure_file}.", corpus]
    atheris.Setup([sys.argv[0], *flags], job.take, custom_mutator=job.mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
