"""Traces of each layout, and what is said of files that are none."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from schedd.core.model import TaskRequirements
from schedd.errors import TraceError
from schedd.simulate.trace import Trace, part_of, read_trace


def written(tmp_path: Path, text: str, name: str = "trace.csv") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def read(tmp_path: Path, text: str, format: str = "auto", name: str = "trace.csv") -> Trace:  # noqa: A002
    return read_trace(written(tmp_path, text, name), format)


def test_canonical_columns(tmp_path: Path) -> None:
    header = "submit_s,kind,runtime_s,num_gpus,gpu_memory_gb,cpus,ram_gb,priority,after,estimated_time_s,deadline_s\n"
    [first, second] = read(tmp_path, f"{header}0,train,10,1,8,2,4,1.5,,9,100\n5,eval,2,,,,,,0,,\n").tasks
    needs = TaskRequirements(min_gpus=1, min_memory=8, cpus=2, ram=4, estimated_time=9)
    assert (first.kind, first.runtime_s, first.requirements) == ("train", 10, needs)
    assert (first.priority, first.deadline_s) == (1.5, 100)
    assert (second.submit_s, second.after, second.requirements) == (5, (0,), TaskRequirements())


def test_runtimes_by_model_ask_for_a_device(tmp_path: Path) -> None:
    trace = read(tmp_path, "submit_s,kind,runtime_s.A100,runtime_s.T4\n0,a,1,4\n0,b,,3\n")
    assert trace.format == "csv"
    [both, one] = trace.tasks
    assert (both.runtimes, both.requirements) == ({"A100": 1, "T4": 4}, TaskRequirements(min_gpus=1))
    assert (one.runtimes, one.requirements.gpu_model) == ({"T4": 3}, "T4")
    assert both.runtime_on("T4") == 4


def test_models_that_a_task_does_not_run_on_are_not_asked_for(tmp_path: Path) -> None:
    [task] = read(tmp_path, "kind,runtime_s.A,runtime_s.B,runtime_s.C\na,1,,2\n").tasks
    assert task.requirements.gpu_model == "A"
    assert [variant.gpu_model for variant in task.requirements.variants] == ["C"]


@pytest.mark.parametrize(
    ("asked", "gpus"),
    [("1,0.25,", 0.25), (",0.25,", 0.25), (",1,", 1), ("4,1,", 4), (",,16", 1), (",0.5,16", 0.5), (",,0", 0)],
)
def test_share_and_memory_of_a_device(tmp_path: Path, asked: str, gpus: float) -> None:
    [task] = read(tmp_path, f"runtime_s,num_gpus,gpu_fraction,gpu_memory_gb\n1,{asked}\n").tasks
    assert task.requirements.min_gpus == gpus


def test_rows_are_in_the_order_of_their_submits_and_after_follows(tmp_path: Path) -> None:
    trace = read(tmp_path, "submit_s,kind,runtime_s,after\n9,last,1,1\n0,first,1,\n")
    assert [(task.kind, task.after) for task in trace.tasks] == [("first", ()), ("last", (0,))]


def test_blanks_around_names_and_cells(tmp_path: Path) -> None:
    [task] = read(tmp_path, "kind , runtime_s, num_gpus, priority\n train , 5 , 2, 1\n").tasks
    assert (task.kind, task.runtime_s, task.priority, task.requirements.min_gpus) == ("train", 5, 1, 2)


def test_columns_that_nothing_is_read_from_are_told(tmp_path: Path) -> None:
    path = written(tmp_path, ",submit_s,runtime_s,user,runtime_ms\n0,0,1,me,7\n")
    assert read_trace(path).remarks == (f"{path}: not used are the columns user, runtime_ms",)
    assert read(tmp_path, "kind,runtime_s.A,runtime_s.B\na,1,2\n").remarks == ()
    path = written(tmp_path, "kind,A_s,B_s,num_gpus,after\na,1,2,4,\n")
    assert read_trace(path).remarks == (f"{path}: not used are the columns num_gpus, after",)
    path = written(tmp_path, "vc,submit_s,duration_s,num_gpu\nabc,0,60,4\n")
    assert part_of(read_trace(path), slice(1)).remarks == ()


@pytest.mark.parametrize(
    ("column", "meant"),
    [("num_gpu", "num_gpus"), ("Num_GPUs", "num_gpus"), ("Priority", "priority"), ("gpu_memory", "gpu_memory_gb")],
)
def test_column_that_is_misspelt(tmp_path: Path, column: str, meant: str) -> None:
    with pytest.raises(TraceError, match=f"has a column '{column}', which is none of a trace") as raised:
        read(tmp_path, f"submit_s,runtime_s,{column}\n0,1,2\n")
    assert raised.value.hint.startswith(f"did you mean '{meant}'?")


def test_row_numbers_and_blanks_as_spreadsheets_write_them(tmp_path: Path) -> None:
    trace = read(tmp_path, "runtime_s,priority,after\n1, ,\n1,-2,0.0\n1,1e1,0.0 1.0\n")
    assert [(task.priority, task.after) for task in trace.tasks] == [(0, ()), (-2, (0,)), (10, (0, 1))]


@pytest.mark.parametrize(
    ("name", "text", "runtime", "gpus"),
    [
        (
            "muri",
            "job_id,num_gpu,submit_s,iterations,iteration_ms,model,orig_duration_s\n0,8,0,100,1000,vgg,5\n",
            101.5,
            8,
        ),
        ("philly", "vc,submit_s,duration_s,num_gpu\nabc,0,60,4\n", 60, 4),
        ("openb", "name,cpu_milli,memory_mib,num_gpu,gpu_milli\np,6000,12288,1,460\n", 0, 0.46),
        ("lcdb", "openmlid,learner,outer_seed,size_train,traintime_s\n3,SVC,0,16,0.5\n", 0.5, 0),
    ],
)
def test_layouts_are_known_by_their_columns(tmp_path: Path, name: str, text: str, runtime: float, gpus: float) -> None:
    trace = read(tmp_path, text)
    [task] = trace.tasks
    assert (trace.format, task.requirements.min_gpus) == (name, gpus)
    assert task.runtime_s == pytest.approx(runtime)


def test_bag_with_a_runtime_for_each_model(tmp_path: Path) -> None:
    trace = read(tmp_path, "job,A100_s,V100_s,deadline_s\n0,10,20,\n1,5,8,30\n")
    assert trace.format == "bag"
    assert [task.runtimes for task in trace.tasks] == [{"A100": 10, "V100": 20}, {"A100": 5, "V100": 8}]
    assert [task.deadline_s for task in trace.tasks] == [None, 30]


def test_swf(tmp_path: Path) -> None:
    lines = [
        "; Version: 2",
        "1 100 -1 60 4 -1 -1 8 90 -1 1 1 1 1 1 1 -1 -1",
        "2 110 -1 0 1 -1 -1 1 -1 -1 1 1 1 1 1 1 -1 -1",
        "3 120 -1 -1 2 -1 -1 -1 -1 -1 0 1 1 1 1 1 -1 -1",
    ]
    path = tmp_path / "log.swf.gz"
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    trace = read_trace(path)
    first, unknown = trace.tasks
    assert trace.remarks == (
        f"{path}: left out: 1 jobs that took no time, or had no processors",
        f"{path}: taken for 10 s: 1 jobs of unknown length",
    )
    assert (first.submit_s, first.runtime_s) == (100, 60)
    assert first.requirements == TaskRequirements(cpus=8, estimated_time=90)
    assert (unknown.runtime_s, unknown.requirements.estimated_time) == (10, 10)


@pytest.mark.parametrize(("name", "format"), [("log.txt", "swf"), ("log.swf", "auto"), ("log.txt", "auto")])
def test_comments_of_swf_in_latin_1(tmp_path: Path, name: str, format: str) -> None:  # noqa: A002
    path = tmp_path / name
    path.write_bytes("; Universität\n1 100 -1 60 4 -1 -1 8 90 -1 1 1 1 1 1 1 -1 -1\n".encode("latin-1"))
    trace = read_trace(path, format)
    assert (len(trace.tasks), trace.remarks) == (1, ())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is no trace that is known: its columns are none"),
        ("a,b\n1,2\n", "is no trace that is known: its columns are a, b"),
        ("Runtime_s,Num_GPUs\n1,2\n", "is no trace that is known: its columns are Runtime_s, Num_GPUs"),
        ("kind,runtime_s\n", "trace.csv: the trace has no tasks"),
        ("kind,runtime_s\na,soon\n", "line 2: runtime_s is 'soon', not a number"),
        ("kind,runtime_s\na,-1\n", "line 2: runtime_s is -1, which is below 0"),
        ("kind,runtime_s\na,nan\n", "line 2: runtime_s is nan, which is below 0 or not finite"),
        ("kind,runtime_s\na,\n", "line 2: runtime_s is '', not a number"),
        ("kind,runtime_s,num_gpus\na,1,1.5\n", "line 2: min_gpus must be whole"),
        ("runtime_s,gpu_fraction\n1,2\n", "line 2: gpu_fraction is 2, which is more than one device"),
        ("runtime_s,num_gpus,gpu_fraction\n1,2,0.5\n", "line 2: num_gpus is 2 and gpu_fraction 0.5: a share is of one"),
        ("kind,runtime_s,after\na,1,1\nb,1,\n", "trace.csv: after of row 0 names row 1, which is not submitted before"),
        ("kind,runtime_s,after\na,1,\na,1,0 7\n", "after of row 1 names row 7, which is not submitted before"),
        ("runtime_s,after\n1,x\n", "line 2: after is 'x', not a number"),
        ("runtime_s,after\n1,0.5\n", "line 2: after is '0.5', not the number of a row"),
        ("runtime_s,after\n1,-1\n", "line 2: after is '-1', not the number of a row"),
        ("runtime_s,priority\n1,high\n", "line 2: priority is 'high', not a number"),
        ("kind,runtime_s.A\na,\n", "line 2: it runs on no model"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(TraceError) as raised:
        read(tmp_path, text)
    assert said in raised.value.message


def test_format_that_does_not_suit_the_file(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="a trace of format muri has a column 'iterations'"):
        read(tmp_path, "kind,runtime_s\na,1\n", "muri")
    for name in ("bag", "hydra", "gavel"):
        with pytest.raises(TraceError, match="a trace of format bag has a column MODEL_s for each model"):
            read(tmp_path, "kind,runtime_s\na,1\n", name)
    with pytest.raises(TraceError, match="no such format 'x'") as raised:
        read(tmp_path, "kind,runtime_s\na,1\n", "x")
    assert "philly" in raised.value.hint
    with pytest.raises(TraceError, match="line 1: not a job of the Standard Workload Format"):
        read(tmp_path, "kind,runtime_s\na,1\n", "swf")


def test_swf_of_which_nothing_is_left_says_why(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="the trace has no tasks") as raised:
        read(tmp_path, "1 100 -1 0 4 -1 -1 8 90 -1 1 1 1 1 1 1 -1 -1\n", name="log.swf")
    assert "left out: 1 jobs that took no time" in raised.value.hint


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"none\.csv cannot be read: No such file"):
        read_trace(tmp_path / "none.csv")
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(b"kind,runtime_s\n")[:12])
    with pytest.raises(TraceError, match="cannot be read"):
        read_trace(tmp_path / "cut.csv.gz")
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(TraceError, match="cannot be read"):
        read_trace(tmp_path / "bytes.csv")
