"""Learning curves: what training a configuration so far would have cost, and how good it would have been.

Layouts: `lcbench` (config, epoch, cum_time_s, val_acc; a file is one data set, the epochs are the fidelity, and a run
may be resumed) and `lcdb` (openmlid, learner, outer_seed, inner_seed, size_train, traintime_s, acc_valid; the size of
the training set is the fidelity, each size is trained anew, and a learner on one split is a configuration).
"""

from __future__ import annotations

import csv
import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from pathlib import Path

from msgspec import Struct

from schedd.errors import TraceError
from schedd.simulate.files import text_of
from schedd.simulate.layouts import columns_of, table
from schedd.simulate.trace import Row


class Point(Struct, frozen=True):
    """Trained so far: seconds from the beginning, and the score, of which more is better."""

    cost_s: float
    score: float


#: The points of a configuration, by fidelity.
Curve = dict[float, Point]


class Curves(Struct, frozen=True):
    """Those of one data set, in the order in which their configurations were drawn.

    resumable: what goes on from one fidelity to another costs only the difference.
    """

    name: str
    resumable: bool
    curves: list[Curve]

    def fidelities(self) -> list[float]:
        """All that any configuration was trained to, in order."""
        return sorted({fidelity for curve in self.curves for fidelity in curve})


class Rungs(Struct, frozen=True):
    """The fidelities at which configurations are compared, the lowest first, and the curves that have them all."""

    name: str
    levels: tuple[float, ...]
    resumable: bool
    curves: list[Curve]

    def cost_s(self, trial: int, rung: int) -> float:
        """Seconds that it takes to bring a configuration from the rung before to this one."""
        curve = self.curves[trial]
        before_s = curve[self.levels[rung - 1]].cost_s if self.resumable and rung else 0.0
        return max(0.0, curve[self.levels[rung]].cost_s - before_s)

    def score(self, trial: int, rung: int) -> float:
        return self.curves[trial][self.levels[rung]].score


def read_curves(path: str | Path, format: str = "auto") -> list[Curves]:  # noqa: A002 - it is the option's name
    """Read a file, one item for each data set in it. Raises TraceError, with file and line."""
    path = Path(path)
    reader = table(text_of(path))
    columns = columns_of(path, reader)
    if format not in ("auto", *LAYOUTS):
        raise TraceError(f"no such format of learning curves {format!r}", f"one of auto, {', '.join(LAYOUTS)}")
    layout = LAYOUTS.get(_recognise(columns) if format == "auto" else format)
    if layout is None or not set(layout.needs) <= set(columns):
        hint = "; ".join(f"{name}: {', '.join(each.needs)}" for name, each in LAYOUTS.items())
        raise TraceError(f"{path} has no learning curves that are known: its columns are {', '.join(columns)}", hint)
    found: dict[str, dict[str, Curve]] = {}
    try:
        for row in reader:
            if None in row:
                raise ValueError(f"it has more cells than there are columns, which are {len(columns)}")
            data, config, fidelity, point = layout.read(row)
            found.setdefault(data, {}).setdefault(config, {})[fidelity] = point
    except (ValueError, TypeError, AttributeError, csv.Error) as error:
        raise TraceError(f"{path}, line {reader.line_num}: {error}") from None
    if not found:
        raise TraceError(f"{path} has no learning curves: there are no rows")
    stem = path.name.partition(".")[0]
    names = {data: f"{stem}_{data}" if data else stem for data in found}
    return [Curves(names[data], layout.resumable, _in_turn(found[data])) for data in found]


def rungs_of(curves: Curves, eta: int, levels: Sequence[float] = ()) -> Rungs:
    """Choose levels, or take those asked for; a configuration that was not trained at all of them is left out.

    The levels grow by eta from the lowest fidelity on, and the last is the highest; where there are more than their
    number of configurations can be halved down to, they begin at a higher fidelity. Raises TraceError.
    """
    fidelities = curves.fidelities()
    chosen = tuple(sorted(set(levels))) or _levels(fidelities, eta, len(curves.curves))
    unknown = [level for level in chosen if level not in fidelities]
    if unknown:
        known = ", ".join(f"{fidelity:g}" for fidelity in fidelities)
        raise TraceError(f"{curves.name} has nothing at level {unknown[0]:g}", f"it has {known}")
    complete = [curve for curve in curves.curves if all(level in curve for level in chosen)]
    if not complete:
        raise TraceError(f"{curves.name} has no configuration at all of {', '.join(f'{each:g}' for each in chosen)}")
    return Rungs(curves.name, chosen, curves.resumable, complete)


def _levels(fidelities: Sequence[float], eta: int, configs: int) -> tuple[float, ...]:
    count_max = 1
    while eta**count_max <= configs:
        count_max += 1
    for start in (each for each in fidelities if each > 0):  # an epoch 0, before any training, is no rung
        levels = _from(start, fidelities, eta)
        if len(levels) <= count_max:
            return levels
    return (fidelities[-1],)


def _from(start: float, fidelities: Sequence[float], eta: int) -> tuple[float, ...]:
    """Go up from a fidelity; a level that was not recorded is the next higher one that was."""
    levels = [start]
    target = start * eta
    while target < fidelities[-1]:
        levels.append(fidelities[bisect_left(fidelities, target)])
        target *= eta
    return tuple(sorted({*levels, fidelities[-1]}))


def _in_turn(curves: dict[str, Curve]) -> list[Curve]:
    """In the order of the file; where there are learners on several splits, all learners of a split together."""
    splits: dict[str, list[Curve]] = {}
    for config, curve in curves.items():
        splits.setdefault(config.partition("/")[0], []).append(curve)
    return [curve for split in splits.values() for curve in split]


# ------------------------------------------------------------------------------------------------------------ layouts


def _lcbench(row: Row) -> tuple[str, str, float, Point]:
    point = Point(_number(row, "cum_time_s"), _score(row, "val_acc"))
    return "", f"/{row['config']}", _number(row, "epoch"), point


def _lcdb(row: Row) -> tuple[str, str, float, Point]:
    point = Point(_number(row, "traintime_s"), _score(row, "acc_valid"))
    config = f"{row['outer_seed']}.{row['inner_seed']}/{row['learner']}"
    return row["openmlid"], config, _number(row, "size_train"), point


def _number(row: Row, column: str) -> float:
    value = float(row[column])
    if not 0 <= value < math.inf:
        raise ValueError(f"{column} is {row[column]}, which is below 0 or not finite")
    return value


def _score(row: Row, column: str) -> float:
    """The score, more is better. What diverged, or has none, is worse than all else."""
    score = float(row[column] or "nan")
    return -math.inf if math.isnan(score) else score


class Layout(Struct, frozen=True):
    """How rows are read: to the data set, the configuration, the fidelity and what was reached there."""

    needs: tuple[str, ...]
    resumable: bool
    read: Callable[[Row], tuple[str, str, float, Point]]


LAYOUTS = {
    "lcbench": Layout(("config", "epoch", "cum_time_s", "val_acc"), True, _lcbench),
    "lcdb": Layout(
        ("openmlid", "learner", "outer_seed", "inner_seed", "size_train", "traintime_s", "acc_valid"), False, _lcdb
    ),
}


def _recognise(columns: Sequence[str]) -> str:
    return next((name for name, layout in LAYOUTS.items() if set(layout.needs) <= set(columns)), "")
