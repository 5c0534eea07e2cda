"""Layouts of published data, files that are no trace, and garbage, which is an error and never a crash."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from schedd.cli.exits import Exit
from schedd.cli.main import main
from schedd.config import parse_settings
from schedd.errors import TraceError
from schedd.simulate.bound import lower_bound_s
from schedd.simulate.cluster import ClusterRow, read_cluster
from schedd.simulate.layouts import Speeds, read_speeds
from schedd.simulate.run import Simulator
from schedd.simulate.trace import ALIASES, LAYOUTS, Trace, read_trace

DATA = Path(__file__).parents[3] / "shared" / "data"
with_data = pytest.mark.skipif(not DATA.is_dir(), reason="the real traces are not here")

SPEEDS = """job_type,scale_factor,gpu,consolidated,steps_per_s
vgg,1,fast,1,10
vgg,1,slow,1,2
vgg,2,fast,0,11
vgg,2,fast,1,16
vgg,2,fast,0,12
vgg,2,slow,1,0
rl,1,fast,1,5
rl,1,slow,1,5
"""
JOBS = "job_type,steps,submit_s,num_gpu\nvgg,80,0,1\nvgg,80,5,2\nrl,50,6,4\nvgg,32,7,8\n"


def written(tmp_path: Path, text: str, name: str = "trace.csv") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def read(tmp_path: Path, text: str, format: str = "auto", speeds: Speeds | None = None) -> Trace:  # noqa: A002
    return read_trace(written(tmp_path, text), format, speeds)


# --------------------------------------------------------------------------------------------------- jobs and speeds


@pytest.fixture
def speeds(tmp_path: Path) -> Speeds:
    return read_speeds(written(tmp_path, SPEEDS, "speeds.csv"))


@pytest.mark.parametrize(("yes", "no"), [("1", "0"), ("True", "False"), ("1.0", "0.0")])
def test_consolidated_in_other_words(tmp_path: Path, yes: str, no: str) -> None:
    text = f"job_type,scale_factor,gpu,consolidated,steps_per_s\nx,2,A,{no},1\nx,2,A,{yes},10\n"
    speeds = read_speeds(written(tmp_path, text, "speeds.csv"))
    (task,) = read(tmp_path, "job_type,steps,submit_s,num_gpu\nx,100,0,2\n", speeds=speeds).tasks
    assert task.runtimes == {"A": 10}


def test_consolidated_that_is_neither(tmp_path: Path) -> None:
    text = "job_type,scale_factor,gpu,consolidated,steps_per_s\nx,1,A,maybe,1\n"
    with pytest.raises(TraceError, match=r"line 2: consolidated is 'maybe', which is neither 1 nor 0"):
        read_speeds(written(tmp_path, text, "speeds.csv"))


def test_pods_without_times_are_said(tmp_path: Path) -> None:
    trace = read(tmp_path, "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec\np,1000,1024,1,1000,\n")
    assert (trace.format, trace.tasks[0].runtime_s) == ("openb", 0)
    assert trace.remarks[-1].endswith("taken for 0 s: 1 pods without a time to run")


def test_jobs_with_steps_take_their_time_from_throughputs(tmp_path: Path, speeds: Speeds) -> None:
    trace = read(tmp_path, JOBS, speeds=speeds)
    assert trace.format == "gavel_jobs"
    one, two, rl, eight = trace.tasks
    assert (one.kind, one.submit_s, one.runtimes) == ("vgg", 0, {"fast": 8, "slow": 40})
    assert one.requirements.min_gpus == 1
    assert two.runtimes == {"fast": 5}  # on one server; and not on slow devices
    assert (two.requirements.min_gpus, two.requirements.gpu_model) == (2, "fast")
    assert rl.runtimes == {"fast": 10, "slow": 10}  # measured on one device: no faster on four
    assert (rl.requirements.min_gpus, rl.requirements.gpu_model) == (4, "")
    assert eight.runtimes == {"fast": 2}


@pytest.mark.parametrize("name", ["auto", "gavel", "gavel_jobs"])
def test_jobs_without_throughputs(tmp_path: Path, name: str) -> None:
    with pytest.raises(TraceError, match="jobs with a number of steps") as raised:
        read(tmp_path, JOBS, name)
    assert raised.value.hint == "give --throughputs FILE: job_type, scale_factor, gpu, steps_per_s"


def test_throughputs_that_do_not_suit(tmp_path: Path, speeds: Speeds) -> None:
    with pytest.raises(TraceError, match=r"line 2: the speed of 'llm' on 1 devices is not among the throughputs"):
        read(tmp_path, "job_type,steps,submit_s,num_gpu\nllm,1,0,1\n", speeds=speeds)
    with pytest.raises(TraceError, match="says how long its tasks take"):
        read(tmp_path, "runtime_s\n1\n", speeds=speeds)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "throughputs have a column 'job_type'; here are []"),
        ("job_type,gpu\nvgg,a\n", "throughputs have a column 'scale_factor'"),
        ("job_type,scale_factor,gpu,steps_per_s\n", "has no throughputs"),
        (
            "job_type,scale_factor,gpu,steps_per_s\nvgg,1,a,quick\n",
            "line 2: could not convert string to float: 'quick'",
        ),
        ("job_type,scale_factor,gpu,steps_per_s\nvgg,1,a,nan\n", "line 2: no speed: nan steps per second on 1 devices"),
        ("job_type,scale_factor,gpu,steps_per_s\nvgg,0,a,1\n", "line 2: no speed: 1.0 steps per second on 0 devices"),
    ],
)
def test_throughputs_that_are_none(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(TraceError) as raised:
        read_speeds(written(tmp_path, text))
    assert said in raised.value.message


def test_throughputs_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace, table = written(tmp_path, JOBS), written(tmp_path, SPEEDS, "speeds.csv")
    arguments = ["simulate", "--trace", str(trace), "--add-worker", "gpus=8,model=fast,count=2"]
    assert main(arguments) == Exit.USAGE
    assert "hint: give --throughputs FILE" in capsys.readouterr().err
    assert main([*arguments, "--throughputs", str(table)]) == Exit.OK
    assert capsys.readouterr().err.startswith("4 tasks (gavel_jobs) on 2 workers")


# ----------------------------------------------------------------------------------------------------- training times


def test_training_times_of_architectures(tmp_path: Path) -> None:
    text = "arch,ops,train_time_s,val_acc_0,params_m,latency_s\n0,331200,1444.5,82,0.1,0.01\n1,000000,100,9,0.1,0.01\n"
    trace = read(tmp_path, text)
    assert trace.format == "training"
    assert [(task.kind, task.runtime_s) for task in trace.tasks] == [
        ("conv3x3=2,conv1x1=1", 1444.5),
        ("conv3x3=0,conv1x1=0", 100),
    ]


def test_times_of_several_trainings_are_averaged(tmp_path: Path) -> None:
    text = "key,batch_size,train_time_s_0,train_time_s_1,val_loss_0\n7,8,10,20,0.1\n8,16,5,,0.1\n"
    trace = read(tmp_path, text)
    assert [(task.kind, task.runtime_s) for task in trace.tasks] == [("batch_size=8", 15), ("batch_size=16", 5)]
    with pytest.raises(TraceError, match="line 2: no train_time_s is given"):
        read(tmp_path, "train_time_s_0,train_time_s_1\n,\n")


def test_learning_curve_is_one_task_that_trains_to_its_end(tmp_path: Path) -> None:
    text = "config,epoch,cum_time_s,val_acc\n4,1,2.5,50\n4,2,6,60\n2,1,3,10\n4,3,9,61\n2,2,5,20\n"
    trace = read(tmp_path, text)
    assert trace.format == "lcbench"
    assert [task.runtime_s for task in trace.tasks] == [9, 5]


def test_file_as_a_spreadsheet_writes_it(tmp_path: Path) -> None:
    (tmp_path / "trace.csv").write_bytes("runtime_s,kind\r\n5,é\r\n".encode("utf-8-sig"))
    assert [(task.kind, task.runtime_s) for task in read_trace(tmp_path / "trace.csv").tasks] == [("é", 5)]


# ---------------------------------------------------------------------------------------------------------- no traces


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        (SPEEDS, "has speeds of jobs, and no tasks", "give it as --throughputs"),
        ("gpu,job_type_a,job_type_b,steps_per_s_a\n", "has speeds of pairs of jobs", "no run is slowed down"),
        ("sn,cpu_milli,memory_mib,gpu,model\n", "has the nodes of a cluster", "give it as --cluster"),
        ("count,num_gpus,gpu_model\n1,1,T4\n", "has the workers of a cluster", "give it as --cluster"),
        ("id,job_num,avg_run_time_gpu\n", "has averages over whole clusters", "a trace has a row for each task"),
        ("config,batch_size,learning_rate\n0,1,1\n", "has configurations without", "the learning curves of the same"),
        ("arch,a100,t4\n0,1,2\n", "beside arch it has a100, t4", "with training times it makes a trace"),
        ('{"a": 1}\n', "looks like JSON", "a trace is a CSV file, or SWF"),
        ("name,colour\n", "its columns are name, colour", "a trace has a column runtime_s"),
        ("job,start_s,end_s\n", "its columns are job, start_s, end_s", "a trace has a column runtime_s"),
    ],
)
def test_what_is_no_trace(tmp_path: Path, text: str, said: str, hint: str) -> None:
    with pytest.raises(TraceError) as raised:
        read(tmp_path, text)
    assert said in raised.value.message
    assert raised.value.hint.startswith(hint)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("runtime_s\n1e11\n", "line 2: submit and runtime are 0 and 1e+11, which cannot be seconds"),
        ("submit_s,runtime_s\n1700000000000,1\n", "line 2: submit and runtime are 1.7e+12 and 1"),
        ("runtime_s,priority\n1,nan\n", "line 2: priority is nan"),
        ("kind,runtime_s\na,1\nb,2,3\n", "line 3: it has more cells than there are columns, which are 2"),
    ],
)
def test_times_that_were_not_meant_in_seconds(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(TraceError) as raised:
        read(tmp_path, text)
    assert said in raised.value.message


@pytest.mark.parametrize("field", ["nan", "inf", "-5", "1e300"])
def test_swf_that_makes_no_sense(tmp_path: Path, field: str) -> None:
    path = written(tmp_path, f"1 {field} -1 60 4 -1 -1 8 90 -1 1 1 1 1 1 1 -1 -1\n", "log.swf")
    with pytest.raises(TraceError, match=r"line 1: submit and runtime are .* cannot be seconds"):
        read_trace(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"nodes": 3}\n', "is no cluster that is known: it looks like JSON"),
        ("kind,runtime_s\na,1\n", "is no cluster that is known: its columns are kind, runtime_s"),
        ("count,cpus\n1,2,3\n", "line 2: it has more cells than there are columns, which are 2"),
        ("count,cpus\n1,nan\n", "line 2: "),
        ("sn,cpu_milli,memory_mib,gpu,model\na,nan,1,1,T4\n", "line 2: "),
        ("sn,cpu_milli,memory_mib,gpu,model\na,1000,1,-1,T4\n", "line 2: "),
        ("sn,cpu_milli,memory_mib,gpu,model\na\n", "line 2: "),
    ],
)
def test_what_is_no_cluster(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(TraceError) as raised:
        read_cluster(written(tmp_path, text, "cluster.csv"))
    assert said in raised.value.message


# ------------------------------------------------------------------------------------------------------ the real files

#: By a pattern of its name, the format that a file is known as, or what is said of it. The first that matches counts.
KNOWN = {
    "*.json": "looks like JSON",
    "hpc/*.swf.gz": "swf",
    "gpu/muri_trace*": "muri",
    "gpu/philly_jobs*": "philly",
    "gpu/openb_pods_*": "openb",
    "gpu/*nodes*": "has the nodes of a cluster",
    "gpu/*summary*": "has averages over whole clusters",
    "hetero/bag_*": "bag",
    "hetero/hydra_*": "bag",
    "hetero/gavel_msr_*": "jobs with a number of steps",
    "hetero/gavel_throughput*": "has speeds of jobs",
    "hetero/gavel_colocated*": "has speeds of pairs of jobs",
    "hetero/*latency*": "beside arch it has",
    "nas/lcbench_task*": "lcbench",
    "nas/lcbench_configs*": "has configurations without",
    "nas/lcdb_*": "lcdb",
    "nas/*": "training",
}


def known_as(path: Path) -> str:
    """The format of a file, or what is said of one that is no trace."""
    try:
        trace = read_trace(path)
    except TraceError as error:
        return f"{error.message}; hint: {error.hint}" if error.hint else "no hint"
    lasts = all(task.runtimes or task.runtime_s > 0 or trace.format == "openb" for task in trace.tasks[:100])
    return trace.format if lasts else "takes no time"


@with_data
def test_every_file_is_known() -> None:
    files = [path for path in sorted(DATA.rglob("*.*")) if path.suffix in (".gz", ".csv", ".json")]
    assert len(files) > 30
    for path in files:
        known = next(known for pattern, known in KNOWN.items() if path.match(pattern))
        said = known_as(path)
        assert said == known or f" {known}" in said, path


@with_data
def test_jobs_of_gavel_have_runtimes_on_some_model() -> None:
    speeds = read_speeds(DATA / "hetero" / "gavel_throughput.csv.gz")
    for path in sorted((DATA / "hetero").glob("gavel_msr_*")):
        tasks = read_trace(path, "gavel", speeds).tasks
        assert len(tasks) > 900
        assert all(task.runtimes.keys() <= {"v100", "p100", "k80"} and task.runtimes for task in tasks)
        assert all(task.requirements.gpu_model in ("", "v100", "p100", "k80") for task in tasks)


# ------------------------------------------------------------------------------------------------------------- garbage

COLUMNS = sorted(
    {column for layout in LAYOUTS.values() for column in layout.needs}
    | {
        "runtime_s", "runtime_s.A", "runtime_s.B", "A_s", "B_s", "kind", "gpu_fraction", "num_gpus", "gpu_memory_gb",
        "cpus", "ram_gb", "priority", "after", "estimated_time_s", "deadline_s", "gpu_spec", "creation_time",
        "deletion_time",
        "train_time_s", "train_time_s_0", "ops", "steps_per_s", "gpu", "scale_factor", "count", "gpu_model",
    }
)  # fmt: skip
VALUES = [
    "",
    "0",
    "1",
    "2.5",
    "-1",
    "nan",
    "inf",
    "1e300",
    "1e10",
    "x",
    "0 0",
    "A",
    "A|B",
    '"',
    "\x00",
    "é",
    "1,1,1",
    "9" * 40,
]
cells = st.one_of(st.sampled_from(VALUES), st.text(max_size=5), st.integers(-3, 300).map(str))
tables = st.lists(st.sampled_from(COLUMNS), min_size=1, max_size=9).flatmap(
    lambda header: st.lists(st.lists(cells, max_size=len(header) + 1), max_size=4).map(
        lambda rows: "\n".join(",".join(row) for row in [header, *rows])
    )
)
layouts = st.sampled_from([layout.needs for layout in LAYOUTS.values() if layout.needs]).flatmap(
    lambda header: st.lists(st.tuples(*[cells for _ in header]), min_size=1, max_size=4).map(
        lambda rows: "\n".join(",".join(row) for row in [header, *rows])
    )
)
fields = st.one_of(st.sampled_from(["-1", "0", "1", "7", "nan", "inf", "1e300", "x"]), st.text(max_size=3))
swf = st.lists(st.lists(fields, max_size=18).map(" ".join), max_size=4).map("\n".join)
FORMATS = st.sampled_from(["auto", "swf", "nonsense", *LAYOUTS, *ALIASES])
CLUSTER = [ClusterRow(count=2, num_gpus=2, gpu_model="A", cpus=8), ClusterRow(cpus=300)]
FIFO = parse_settings("policy.name = 'fifo'")


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=st.one_of(tables, layouts, swf, st.text(max_size=40)), name=FORMATS, with_speeds=st.booleans())
@example(text="submit_s,kind,runtime_s\n1,a,2\n0,b,1e9", name="auto", with_speeds=False)
@example(text=JOBS, name="auto", with_speeds=True)
@example(text='runtime_s\n"' + "9" * 200_000, name="auto", with_speeds=False)
def test_garbage_is_an_error_and_never_a_crash(
    text: str, name: str, with_speeds: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "garbage.csv"
    path.write_text(text, encoding="utf-8", errors="replace", newline="")
    speeds = Speeds()
    speeds.add("vgg", 1, "A", 1.0, is_consolidated=True)
    with contextlib.suppress(TraceError):
        trace = read_trace(path, name, speeds if with_speeds else None)
        lower_bound_s(trace, CLUSTER)
        run = Simulator(trace, CLUSTER, FIFO).run()
        assert min(run.finish_s) >= 0


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=st.one_of(tables, st.text(max_size=40)), ending=st.sampled_from([".csv", ".toml"]))
@example(text="[[worker]]\ncpus = nan", ending=".toml")
@example(text="worker = [1]", ending=".toml")
@example(text="worker = " + "[" * 5000, ending=".toml")
@example(text="[[worker]]\ncpus = [[]]", ending=".toml")
@example(text="[worker]\ncpus = 1", ending=".toml")
@example(text="sn,cpu_milli,memory_mib,gpu,model\na,1e300,1,1,T4", ending=".csv")
def test_garbage_is_no_cluster_and_no_table_of_speeds(
    text: str, ending: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / f"garbage{ending}"
    path.write_text(text, encoding="utf-8", errors="replace", newline="")
    with contextlib.suppress(TraceError):
        for row in read_cluster(path):
            row.resources()
    with contextlib.suppress(TraceError):
        read_speeds(path)
