"""Charts of a comparison, as PNG files: where what ran when, how long it queued, and how the policies compare.

Gantt charts show the first seed, each attempt as a bar on its worker or device, coloured by kind; what came to nothing
is hatched. What runs side by side on a worker without devices, or on one device, is drawn side by side. Long runs are
thinned: bars narrower than a pixel are merged with those of their colour beside them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from heapq import heappop, heappush
from itertools import accumulate, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schedd.errors import TraceError
from schedd.simulate.metrics import slots_of
from schedd.simulate.record import Run, Span

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Rows of a Gantt chart; of larger clusters only the first are shown.
ROWS_MAX = 96
#: Points of a line, and bars of a row: as many as there are pixels.
POINTS_MAX = 1600
#: Kinds that have a colour of their own; the rest share a grey.
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#ee8866", "#44bb99", "#bbcc33")
OTHERS = "#999999"
WASTED = "#d9d9d9"
UNITS = ((86_400.0 * 3, 86_400.0, "days"), (3600.0 * 3, 3600.0, "hours"), (60.0 * 5, 60.0, "minutes"))
STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.axisbelow": True,
    "figure.dpi": 150,
    "figure.constrained_layout.use": True,
    "legend.frameon": False,
    "text.parse_math": False,  # the names of kinds are no formulas
}


def check_plots(folder: str | Path) -> None:
    """Raise TraceError where there is nothing to draw with, or no folder; before the runs, not after them."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise TraceError("--plot needs matplotlib, which is not installed", "pip install 'schedd[plots]'") from None
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from None


def write_plots(runs: Mapping[str, Run], folder: str | Path) -> list[Path]:
    """Draw the runs of some policies, which have kept their spans, and return the files in the order of writing.

    Raises TraceError where the folder cannot be written.
    """
    import matplotlib as mpl

    folder = Path(folder)
    figures: dict[str, Callable[[], Figure]] = {
        "jct.png": lambda: _jct(runs),
        "utilisation.png": lambda: _utilisation(runs),
        "queue.png": lambda: _queue(runs),
    }
    for name, run in runs.items():
        figures[f"gantt-{_file_name(name)}.png"] = lambda name=name, run=run: _gantt(name, run)  # type: ignore[misc]
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with mpl.rc_context(STYLE), warnings.catch_warnings():
            # Of a script that the font does not have, boxes are drawn.
            warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
            for name, draw in figures.items():
                figure = draw()
                figure.savefig(folder / name)
                written.append(folder / name)
    except OSError as error:
        raise _unwritable(folder, error) from None
    return written


def _unwritable(folder: str | Path, error: OSError) -> TraceError:
    return TraceError(f"the plots cannot be written to {folder}: {error.strerror or error}")


def _file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name)


def _figure(width: float, height: float, rows: int = 1) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    return figure, figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]


def _unit(seconds: float) -> tuple[float, str]:
    """Seconds of a unit that suits a span of time, and its name."""
    return next(((unit, name) for above, unit, name in UNITS if seconds >= above), (1.0, "s"))


def _colour(position: int) -> str:
    return COLOURS[position % len(COLOURS)]


# ------------------------------------------------------------------------------------------------- all policies in one


def _jct(runs: Mapping[str, Run]) -> Figure:
    """The share of the tasks that had finished so long after their submit."""
    figure, (axes,) = _figure(7, 4)
    everything = {name: sorted(_flows(run)) for name, run in runs.items()}
    longest = max(flows[-1] for flows in everything.values())
    # The shortest hundredth would take most of a logarithmic scale.
    shortest = min(flows[len(flows) // 100] for flows in everything.values())
    is_wide = 0 < 30 * shortest < longest
    scale, unit = (1.0, "s") if is_wide else _unit(longest)
    for position, (name, flows) in enumerate(everything.items()):
        picked = _picked(len(flows))
        share = [(i + 1) / len(flows) for i in picked]
        axes.step([flows[i] / scale for i in picked], share, where="post", color=_colour(position), label=name)
    if is_wide:
        axes.set_xscale("log")
        axes.set_xlim(shortest, longest * 1.05)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.set(xlabel=f"job completion time [{unit}]", ylabel="share of tasks", ylim=(0, 1.01))
    axes.set_title("How long tasks took from submit to finish")
    axes.grid(color="#e5e5e5", linewidth=0.6)
    figure.legend(handles=axes.get_lines(), loc="outside right upper")
    return figure


def _flows(run: Run) -> list[float]:
    first_s = run.trace.tasks[0].submit_s
    rows = zip(run.start_s, run.finish_s, run.trace.tasks, strict=True)
    return [finish_s - task.submit_s + first_s for start_s, finish_s, task in rows if start_s >= 0]


def _utilisation(runs: Mapping[str, Run]) -> Figure:
    """Busy slots over time, of each policy."""
    figure, all_axes = _figure(8, 1.0 + 1.25 * len(runs), len(runs))
    end_s = max(_end_s(run) for run in runs.values())
    scale, unit = _unit(end_s)
    has_waste = False
    for position, (axes, (name, run)) in enumerate(zip(all_axes, runs.items(), strict=True)):
        gpus = _uses_gpus(run)
        slots = slots_of(run.resources, gpus=gpus)
        times, useful = _binned(((s, _slots(run, s, gpus)) for s in _spans(run) if s.ok), end_s)
        _, wasted = _binned(((s, _slots(run, s, gpus)) for s in _spans(run) if not s.ok), end_s)
        x = [each / scale for each in times]
        both = [(u + w) / slots for u, w in zip(useful, wasted, strict=True)]
        axes.fill_between(x, [u / slots for u in useful], step="mid", color=_colour(position), alpha=0.85, linewidth=0)
        if any(wasted):
            axes.fill_between(x, [u / slots for u in useful], both, step="mid", color="#555555", linewidth=0)
            has_waste = True
        axes.axvline(_end_s(run) / scale, color="#333333", linewidth=0.8, linestyle=":")
        axes.set(ylim=(0, 1.02), xlim=(0, end_s / scale), yticks=(0, 0.5, 1), yticklabels=("0 %", "50 %", "100 %"))
        axes.set_title(name)
        axes.grid(axis="y", color="#e5e5e5", linewidth=0.6)
    told = "; dark: came to nothing" if has_waste else ""
    all_axes[-1].set_xlabel(f"time since the first submit [{unit}]; dotted: the last task has finished{told}")
    figure.supylabel("GPUs in use" if any(map(_uses_gpus, runs.values())) else "CPUs in use", fontsize=9)
    return figure


def _queue(runs: Mapping[str, Run]) -> Figure:
    """How many tasks wait, of each policy."""
    figure, (axes,) = _figure(8, 3.6)
    end_s = max(_end_s(run) for run in runs.values())
    scale, unit = _unit(end_s)
    for position, (name, run) in enumerate(runs.items()):
        times, lengths = _waiting(run)
        picked = _peaks(times, lengths)
        x = [times[i] / scale for i in picked]
        axes.step(x, [lengths[i] for i in picked], where="post", color=_colour(position), linewidth=1, label=name)
    axes.set(xlabel=f"time since the first submit [{unit}]", ylabel="waiting tasks", xlim=(0, end_s / scale))
    axes.set_ylim(bottom=0)
    axes.set_title("How many tasks waited")
    axes.grid(color="#e5e5e5", linewidth=0.6)
    figure.legend(handles=axes.get_lines(), loc="outside right upper")
    return figure


def _waiting(run: Run) -> tuple[list[float], list[int]]:
    """Instants, and how many tasks wait from each on: submitted or given back, and not started.

    What never ran is left out: it waited for what failed, and nobody knows until when.
    """
    first_s = run.trace.tasks[0].submit_s
    rows = zip(run.start_s, run.trace.tasks, strict=True)
    steps = [(task.submit_s - first_s, 1) for start_s, task in rows if start_s >= 0]
    ends: dict[int, float] = {}
    for span in _spans(run):
        steps.append((span.start_s, -1))
        if not span.ok:
            ends[span.index] = span.end_s
            steps.append((span.end_s, 1))
    # What failed for good waits no more.
    steps += [(end_s, -1) for index, end_s in ends.items() if index in run.unsuccessful]
    changes: dict[float, int] = {}
    for at_s, step in steps:  # what starts as it comes never waited
        changes[at_s] = changes.get(at_s, 0) + step
    times = sorted(changes)
    return times, list(accumulate(changes[at_s] for at_s in times))


# ---------------------------------------------------------------------------------------------------- where and when


def _gantt(name: str, run: Run) -> Figure:
    from matplotlib.patches import Patch

    rows = _rows(run)
    shown = {row: number for number, row in enumerate(rows[:ROWS_MAX])}
    figure, (axes,) = _figure(10, 1.4 + 0.16 * max(6, len(shown)))
    end_s = _end_s(run)
    scale, unit = _unit(end_s)
    kinds = _kinds(run)
    by_row: dict[int, list[tuple[float, float, str]]] = {}
    for span in _spans(run):
        colour = kinds.get(run.trace.tasks[span.index].kind, OTHERS) if span.ok else WASTED
        for device in span.devices or (None,):
            number = shown.get((span.place, device))
            if number is not None:
                by_row.setdefault(number, []).append((span.start_s, span.end_s, colour))
    bars: dict[str, list[tuple[tuple[float, float], list[tuple[float, float]]]]] = {}
    for number, spans in by_row.items():
        lanes = _lanes(spans)
        height = 0.84 / len(lanes)
        for place, lane in enumerate(lanes):
            for colour in dict.fromkeys(each[2] for each in lane):
                of_it = _merged([each[:2] for each in lane if each[2] == colour], end_s / POINTS_MAX)
                bars.setdefault(colour, []).append(((number - 0.42 + place * height, height), of_it))
    for colour, lines in bars.items():
        for where, of_it in lines:
            widths = [(start_s / scale, (until_s - start_s) / scale) for start_s, until_s in of_it]
            if colour == WASTED:
                axes.broken_barh(widths, where, facecolors=colour, hatch="////", edgecolor="#888888", linewidth=0)
            else:
                axes.broken_barh(widths, where, facecolors=colour, edgecolor="white", linewidth=0.2)
    labels = [kind for kind in kinds if len(kinds) > 1 or kind]
    handles = [Patch(color=kinds[kind], label=kind) for kind in labels]
    if OTHERS in bars:
        handles.append(Patch(color=OTHERS, label="other kinds"))
    if WASTED in bars:
        handles.append(Patch(facecolor=WASTED, hatch="////", edgecolor="#888888", label="came to nothing"))
    figure.legend(handles=handles, loc="outside right upper", fontsize=8)
    told = f"{name}: the first {ROWS_MAX} of {len(rows)}" if len(rows) > ROWS_MAX else name
    axes.set(xlim=(0, end_s / scale), ylim=(len(shown) - 0.4, -0.6), xlabel=f"time since the first submit [{unit}]")
    axes.set_yticks(range(len(shown)), [_label(run, row) for row in shown], fontsize=6 if len(shown) > 12 else 8)
    axes.tick_params(axis="y", length=0)
    axes.set_title(told)
    return figure


#: A worker, or one of its devices.
Row = tuple[int, int | None]


def _rows(run: Run) -> list[Row]:
    """Devices, and workers that have none or are used without theirs."""
    plain = {span.place for span in _spans(run) if not span.devices}
    rows: list[Row] = []
    place = 0
    for row in run.resources:
        for _ in range(row.count):
            rows += [(place, device) for device in range(row.num_gpus)]
            if place in plain or not row.num_gpus:
                rows.append((place, None))
            place += 1
    return rows


def _label(run: Run, row: Row) -> str:
    place, device = row
    first = 0
    for each in run.resources:
        if place < first + each.count:
            number = f"-{place - first}" if each.count > 1 else ""
            name = f"{each.name}{number}" if each.name else f"w{place}"
            return name if device is None else f"{name} {each.gpu_model or 'GPU'} {device}"
        first += each.count
    return f"w{place}"


def _kinds(run: Run) -> dict[str, str]:
    """Colours of the kinds with the most tasks, by name."""
    counts: dict[str, int] = {}
    for task in run.trace.tasks:
        counts[task.kind] = counts.get(task.kind, 0) + 1
    most = sorted(counts, key=lambda kind: (-counts[kind], kind))[: len(COLOURS)]
    return {kind: _colour(position) for position, kind in enumerate(sorted(most, key=lambda kind: (len(kind), kind)))}


def _merged(spans: Iterable[tuple[float, float]], pixel_s: float) -> list[tuple[float, float]]:
    """Bars in order, those that are narrower than a pixel together with what is within a pixel of them."""
    merged: list[tuple[float, float]] = []
    for start_s, end_s in sorted(spans):
        if merged and start_s - merged[-1][1] < pixel_s and min(end_s - start_s, _width(merged[-1])) < pixel_s:
            merged[-1] = (merged[-1][0], max(end_s, merged[-1][1]))
        else:
            merged.append((start_s, end_s))
    return merged


def _width(bar: tuple[float, float]) -> float:
    return bar[1] - bar[0]


# --------------------------------------------------------------------------------------------------------- the numbers


def _spans(run: Run) -> Sequence[Span]:
    return run.spans if run.spans is not None else ()


def _end_s(run: Run) -> float:
    return max(run.finish_s) or 1.0


def _uses_gpus(run: Run) -> bool:
    return any(task.requirements.min_gpus for task in run.trace.tasks)


def _slots(run: Run, span: Span, gpus: bool) -> float:
    needs = run.needs(span.index)
    return needs.min_gpus if gpus else needs.cpus


def _binned(spans: Iterable[tuple[Span, float]], end_s: float) -> tuple[list[float], list[float]]:
    """The middles of equal parts of the time, and the mean number of slots in each."""
    parts = 300
    part_s = end_s / parts or 1.0
    #: Slots that begin or end in a part, as if from its beginning on; and what that is too much.
    step, excess = [0.0] * (parts + 2), [0.0] * (parts + 2)
    for span, slots in spans:
        for at, sign in ((span.start_s, 1), (span.end_s, -1)):
            part = min(int(at / part_s), parts)
            step[part] += sign * slots
            excess[part] += sign * slots * (at / part_s - part)
    level = list(accumulate(step))
    means = [max(0.0, level[i] - excess[i]) for i in range(parts)]
    return [(i + 0.5) * part_s for i in range(parts)], means


def _picked(count: int) -> list[int]:
    """Positions of about `POINTS_MAX` values, the first and the last among them."""
    step = max(1, count // POINTS_MAX)
    picked = list(range(0, count, step))
    return picked if picked[-1] == count - 1 else [*picked, count - 1]


def _peaks(times: Sequence[float], values: Sequence[int]) -> list[int]:
    """Positions of the lowest, the highest and the last value of each of some parts of the time, in order."""
    pixel_s = (times[-1] - times[0]) / POINTS_MAX or 1.0
    picked: list[int] = []
    for _, group in groupby(range(len(times)), key=lambda i: int((times[i] - times[0]) / pixel_s)):
        part = list(group)
        picked += sorted({min(part, key=values.__getitem__), max(part, key=values.__getitem__), part[-1]})
    return picked


def _lanes(spans: Iterable[tuple[float, float, str]]) -> list[list[tuple[float, float, str]]]:
    """Spread what overlaps over as few lanes as it takes, the upper ones first."""
    lanes: list[list[tuple[float, float, str]]] = []
    free: list[int] = []
    busy: list[tuple[float, int]] = []
    for span in sorted(spans):
        while busy and busy[0][0] <= span[0]:
            heappush(free, heappop(busy)[1])
        if not free:
            lanes.append([])
            heappush(free, len(lanes) - 1)
        number = heappop(free)
        lanes[number].append(span)
        heappush(busy, (span[1], number))
    return lanes
