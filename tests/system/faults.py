"""A schedule of faults for the whole system: one seed, one schedule."""

from __future__ import annotations

import random
from collections.abc import Sequence

from msgspec import Struct

#: Of the daemon of a chaos test, in seconds. A worker is lost after both.
LEASE_S, LOST_AFTER_S = 2.0, 2.0
LOST_S = LEASE_S + LOST_AFTER_S
#: A silence that may last so long leaves everything as it is; one as long as the second takes a worker's tasks away.
SHORT_S, LONG_S = 1.4, LOST_S + 1.5
#: Pauses between the starts of two faults.
PAUSE_S = (0.1, 0.7)
#: A target is left alone for so long after a fault, to come back to life.
REST_S = 1.0

#: (what, weight, shortest, longest) by target: of the daemon, of its disk, of the client's connection, of a worker.
#: What takes no time of its own has a pause before the process is started again, or none.
KINDS: dict[str, Sequence[tuple[str, float, float, float]]] = {
    "daemon": [("kill", 3, 0.0, 0.5), ("stop", 1, 0.2, SHORT_S), ("stop", 0.5, LONG_S, LONG_S + 1)],
    "disk": [("fill", 1.5, 0.3, 2.5)],
    "client": [("drop", 2, 0, 0), ("mute", 1, 0.2, 2.0)],
    "worker": [
        ("kill", 2.5, 0.0, 1.0),
        ("kill_child", 6, 0, 0),
        ("stop", 2, 0.1, SHORT_S),
        ("stop", 0.7, LONG_S, LONG_S + 1),
        ("drop", 3, 0, 0),
        ("mute", 2, 0.2, SHORT_S),
        ("mute", 0.7, LONG_S, LONG_S + 1),
    ],
}


class Fault(Struct, frozen=True):
    """Do `what` to `target` at `at_s` after the start, and undo it after `seconds`."""

    at_s: float
    target: str
    what: str
    seconds: float

    def __str__(self) -> str:
        return f"{self.at_s:6.2f} s  {self.target:<7} {self.what} {self.seconds:.2f} s"


def schedule(seed: int, seconds: float, workers: Sequence[str]) -> list[Fault]:
    """Make faults for so many seconds, in the order of their times. Each target has one at a time."""
    dice = random.Random(seed)
    choices = [
        (target, *kind)
        for group, kinds in KINDS.items()
        for target in (workers if group == "worker" else [group])
        for kind in kinds
    ]
    weights = [weight / (len(workers) if target in workers else 1) for target, _, weight, _, _ in choices]
    free_at: dict[str, float] = {}
    faults: list[Fault] = []
    now = dice.uniform(*PAUSE_S)
    while now < seconds:
        target, what, _, shortest, longest = dice.choices(choices, weights)[0]
        length = dice.uniform(shortest, longest)
        if free_at.get(target, 0.0) <= now:
            faults.append(Fault(now, target, what, length))
            free_at[target] = now + length + REST_S
        now += dice.uniform(*PAUSE_S)
    return faults
