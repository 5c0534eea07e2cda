"""Moving averages that are honest from the first observation on."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from itertools import islice

from msgspec import Struct

from schedd.core.model import Belief, WorkerId

#: What was learned outlives a restart for so many kinds, or kinds on workers: the last seen. Some 20 ms to write down.
LEARNED_MAX = 20_000
#: Kinds come from clients; the least recently seen beyond this are forgotten.
KINDS_MAX = 10_000
_INF = math.inf


class Learned(Struct, frozen=True, array_like=True, gc=False):
    """The averages of a kind, on a worker or ("") anywhere, as they are written down and taken in again."""

    kind: str
    worker: str
    duration: float
    square: float
    success: float
    weight: float
    total: int


class PerformanceStats:
    """How long attempts take and how often they succeed, as exponential moving averages with bias correction.

    With weight `alpha` for the newest observation, the average after t observations is m_t / (1 - (1 - alpha)^t)
    (Kingma and Ba, "Adam", 2015, section 3): the first observation *is* the mean, not `alpha` of it.
    """

    __slots__ = ("_alpha", "_duration", "_square", "_success", "_weight", "total_tasks")

    def __init__(self, alpha: float = 0.1) -> None:
        if not 0 < alpha <= 1:
            raise ValueError(f"alpha must be above 0 and at most 1, not {alpha!r}")
        self._alpha = alpha
        self._duration = self._square = self._success = self._weight = 0.0
        #: Observations so far.
        self.total_tasks = 0

    def update(self, duration: float, success: bool) -> None:
        """Add one attempt: its seconds, and whether it succeeded. Raises ValueError for a negative or NaN duration."""
        if not 0.0 <= duration < _INF:
            raise ValueError(f"a duration must be finite and at least 0, not {duration!r}")
        a = self._alpha
        self._duration += a * (duration - self._duration)
        self._square += a * (duration * duration - self._square)
        self._success += a * (success - self._success)
        self._weight += a * (1.0 - self._weight)
        self.total_tasks += 1

    def learned(self, kind: str, worker: str = "") -> Learned:
        """Write down all that is known."""
        sums = (self._duration, self._square, self._success, self._weight)
        return Learned(kind, worker, *sums, self.total_tasks)

    def recall(self, learned: Learned) -> None:
        """Go on from what was written down."""
        self._duration, self._square, self._success = learned.duration, learned.square, learned.success
        self._weight, self.total_tasks = learned.weight, learned.total

    @property
    def avg_completion_time(self) -> float:
        """Mean seconds of an attempt, failed ones too; 0.0 before the first."""
        return self._duration / self._weight if self._weight else 0.0

    @property
    def deviation(self) -> float:
        """Standard deviation of the seconds; 0.0 before the second observation."""
        if not self._weight:
            return 0.0
        mean = self._duration / self._weight
        return math.sqrt(max(0.0, self._square / self._weight - mean * mean))

    @property
    def success_rate(self) -> float:
        """Share of attempts that succeeded, from 0 to 1; 1.0 before the first: innocent until seen."""
        return self._success / self._weight if self._weight else 1.0


class RuntimeEstimate(Struct, frozen=True):
    """Seconds that an attempt is expected to run, and an upper value for promises made to others."""

    mean_s: float
    upper_s: float


class RuntimeTable:
    """Runtimes by kind: what the engine's own rules (prefetch, backfill) believe."""

    def __init__(self, short_s: float = 1.0) -> None:
        self._by_kind: OrderedDict[str, PerformanceStats] = OrderedDict()
        self._short_s = short_s
        #: Kinds that take at most `short_s` in the mean.
        self.short: set[str] = set()

    def observe(self, kind: str, runtime_s: float, success: bool) -> None:
        """Add the runtime of an attempt of this kind."""
        stats = self._by_kind.get(kind)
        if stats is None:
            stats = self._by_kind[kind] = PerformanceStats()
            if len(self._by_kind) > KINDS_MAX:
                self.short.discard(self._by_kind.popitem(last=False)[0])
        else:
            self._by_kind.move_to_end(kind)
        stats.update(runtime_s, success)
        if (stats.avg_completion_time <= self._short_s) is not (kind in self.short):
            self._judge(kind, stats)

    def _judge(self, kind: str, stats: PerformanceStats) -> None:
        if stats.avg_completion_time <= self._short_s:
            self.short.add(kind)
        else:
            self.short.discard(kind)

    def call_short(self, short_s: float) -> None:
        """Let kinds that take so long be short from now on; of less, hints of before say nothing. O(kinds)."""
        if short_s < self._short_s:
            self.short.clear()
        self._short_s = short_s
        for kind, stats in self._by_kind.items():
            self._judge(kind, stats)

    def learned(self) -> list[Learned]:
        """What was seen, the last seen kind last; see `LEARNED_MAX`."""
        return newest({(kind, WorkerId("")): stats for kind, stats in self._by_kind.items()})

    def believed(self) -> list[Belief]:
        """What is believed of each kind anywhere, the last seen kind last."""
        return [
            Belief(
                kind,
                "",
                stats.avg_completion_time,
                max(0.0, stats.avg_completion_time - stats.deviation),
                stats.avg_completion_time + stats.deviation,
                stats.success_rate,
                stats.total_tasks,
            )
            for kind, stats in self._by_kind.items()
        ]

    def recall(self, learned: Iterable[Learned]) -> None:
        """Go on from what was written down. Once, before the first observation."""
        for one in learned:
            stats = self._by_kind[one.kind] = PerformanceStats()
            stats.recall(one)
            self._judge(one.kind, stats)

    def hint(self, kind: str, hint_s: float) -> None:
        """Take a user's word (seconds) for whether a kind that has not been seen is short."""
        if hint_s <= self._short_s and kind not in self._by_kind and len(self.short) < 2 * KINDS_MAX:
            self.short.add(kind)

    def mean_s(self, kind: str, hint_s: float | None = None) -> float | None:
        """The mean of `predict`, at a fraction of its cost."""
        stats = self._by_kind.get(kind)
        return stats.avg_completion_time if stats is not None else hint_s

    def predict(self, kind: str, hint_s: float | None = None) -> RuntimeEstimate | None:
        """What is believed of a kind: observed, else the hint of the user (seconds), else None."""
        stats = self._by_kind.get(kind)
        if stats is not None:
            mean = stats.avg_completion_time
            # Two deviations cover 95 % of a normal runtime; the quarter covers kinds seen once or twice.
            return RuntimeEstimate(mean, mean + max(2 * stats.deviation, 0.25 * mean))
        return RuntimeEstimate(hint_s, 1.5 * hint_s) if hint_s is not None else None

    def __len__(self) -> int:
        return len(self._by_kind)


def newest(known: Mapping[tuple[str, WorkerId], PerformanceStats]) -> list[Learned]:
    """Write down the last `LEARNED_MAX` of averages by kind and worker, in their order."""
    start = max(0, len(known) - LEARNED_MAX)
    return [stats.learned(kind, worker) for (kind, worker), stats in islice(known.items(), start, None)]
