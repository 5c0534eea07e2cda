"""Charts: that they are drawn, and that the numbers in them are right."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from schedd.config import parse_settings
from schedd.core.model import TaskRequirements
from schedd.errors import TraceError
from schedd.simulate import plots
from schedd.simulate.cluster import ClusterRow
from schedd.simulate.generate import Load, generate
from schedd.simulate.record import Run
from schedd.simulate.run import Simulator
from schedd.simulate.trace import Trace, TraceTask

PNG = b"\x89PNG"


def ran(trace: Trace, cluster: list[ClusterRow], text: str = "retries.delay_s = 0.0") -> Run:
    return Simulator(trace, cluster, parse_settings(f'policy.name = "fifo"\n{text}'), keep_spans=True).run()


def three() -> Run:
    """0 runs from 0 to 10, 1 from 10 to 15 and, after its failure, to 25; 2, submitted at 4, from 25 to 35."""
    tasks = [
        TraceTask(0, "a", 10, TaskRequirements()),
        TraceTask(0, "b", 10, TaskRequirements(), failures=(0.5,)),
        TraceTask(4, "a", 10, TaskRequirements()),
    ]
    return ran(Trace("made", tasks), [ClusterRow()])


def test_files_are_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    load = Load(tasks=300, kinds=12, speedup=2, load=0.8)
    cluster = [
        ClusterRow(count=3, num_gpus=2, gpu_model="A", fail_share=0.2),
        ClusterRow(num_gpus=1, gpu_model="B", name="b", leaves_s=500),
    ]
    run = ran(generate(load, cluster), cluster, "retries.error = 100")
    written = plots.write_plots({"fifo": run, "my policy": run}, tmp_path / "charts")
    assert [path.name for path in written] == [
        "jct.png",
        "utilisation.png",
        "queue.png",
        "gantt-fifo.png",
        "gantt-my-policy.png",
    ]
    for path in written:
        assert path.read_bytes()[:4] == PNG
        assert path.stat().st_size > 10_000


def test_single_task_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    run = ran(Trace("made", [TraceTask(5, "k", 0, TaskRequirements())]), [ClusterRow()])
    assert len(plots.write_plots({"fifo": run}, tmp_path)) == 4


@pytest.mark.parametrize("kind", ["$A_$B", "100 $", "训练", "_x"])
def test_names_are_drawn_as_they_are(tmp_path: Path, kind: str) -> None:
    pytest.importorskip("matplotlib")
    run = ran(Trace("made", [TraceTask(0, kind, 5, TaskRequirements())]), [ClusterRow(name=kind)])
    assert len(plots.write_plots({kind: run}, tmp_path)) == 4


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "file").write_text("")
    with pytest.raises(TraceError, match="the plots cannot be written to"):
        plots.write_plots({"fifo": three()}, tmp_path / "file")
    with pytest.raises(TraceError, match="the plots cannot be written to"):
        plots.check_plots(tmp_path / "file")
    plots.check_plots(tmp_path / "new" / "charts")
    assert (tmp_path / "new" / "charts").is_dir()


def test_matplotlib_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(TraceError, match="--plot needs matplotlib") as raised:
        plots.check_plots("charts")
    assert raised.value.hint == "pip install 'schedd[plots]'"


def test_tasks_that_wait_are_counted() -> None:
    run = three()
    assert [(span.index, span.start_s, span.end_s, span.ok) for span in run.spans or ()] == [
        (0, 0, 10, True),
        (1, 10, 15, False),
        (1, 15, 25, True),
        (2, 25, 35, True),
    ]
    at = dict(zip(*plots._waiting(run), strict=True))
    assert at == {0: 1, 4: 2, 10: 1, 15: 1, 25: 0}


def test_task_that_starts_as_it_comes_never_waited() -> None:
    tasks = [TraceTask(0, "long", 50, TaskRequirements(min_gpus=1)) for _ in range(3)]
    tasks += [TraceTask(10, "short", 1, TaskRequirements()) for _ in range(20)]
    run = ran(Trace("made", tasks), [ClusterRow(num_gpus=1, cpus=64)])
    assert dict(zip(*plots._waiting(run), strict=True)) == {0: 2, 10: 2, 50: 1, 100: 0}


def test_task_that_failed_for_good_waits_no_more() -> None:
    run = ran(Trace("made", [TraceTask(0, "a", 10, TaskRequirements(), fails=True)]), [ClusterRow()])
    assert plots._waiting(run)[1][-1] == 0


def test_task_that_never_ran_does_not_wait_for_ever() -> None:
    tasks = [
        TraceTask(0, "a", 10, TaskRequirements(), fails=True),
        TraceTask(5, "a", 10, TaskRequirements(), after=(0,)),
    ]
    run = ran(Trace("made", [*tasks, TraceTask(9, "a", 10, TaskRequirements())]), [ClusterRow()])
    assert dict(zip(*plots._waiting(run), strict=True)) == {0: 0, 9: 1, 10: 0}


def test_slots_in_use_by_time() -> None:
    run = three()
    times, means = plots._binned(((span, 1.0) for span in run.spans or () if span.ok), 35.0)
    by_time = dict(zip(times, means, strict=True))
    assert all(
        value == pytest.approx(0 if 10.2 < at < 14.8 else 1, abs=0.01)
        for at, value in by_time.items()
        if not (9.8 < at < 10.2 or 14.8 < at < 15.2)
    )
    assert sum(means) / len(means) == pytest.approx(30 / 35)


def test_what_overlaps_is_drawn_side_by_side() -> None:
    spans = [(0.0, 10.0, "a"), (1.0, 3.0, "b"), (2.0, 5.0, "c"), (3.0, 4.0, "d"), (10.0, 11.0, "e")]
    lanes = plots._lanes(spans)
    assert [[name for *_, name in lane] for lane in lanes] == [["a", "e"], ["b", "d"], ["c"]]


def test_bars_narrower_than_a_pixel_are_merged() -> None:
    narrow = [(i / 10, i / 10 + 0.05) for i in range(100)]
    assert plots._merged([*narrow, (50.0, 60.0), (61.0, 70.0)], 1.0) == [
        (0.0, pytest.approx(9.95)),
        (50.0, 60.0),
        (61.0, 70.0),
    ]
    assert len(plots._merged(narrow, 0.01)) == 100


def test_thinned_line_keeps_its_peaks_and_its_gaps() -> None:
    times = [i / 1000 for i in range(20_000)] + [5000.0]
    values = [i % 7 for i in range(19_999)] + [0, 3]
    values[777] = 99
    picked = plots._peaks(times, values)
    assert picked == sorted(picked)
    assert len(picked) < 100
    assert {777, 19_999, 20_000} <= set(picked)
