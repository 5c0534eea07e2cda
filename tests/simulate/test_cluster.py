"""Cluster files, and what is said of those that make no sense."""

from __future__ import annotations

from pathlib import Path

import pytest

from schedd.errors import TraceError
from schedd.simulate.cluster import ClusterRow, parse_row, read_cluster


def read(tmp_path: Path, text: str, name: str) -> list[ClusterRow]:
    (tmp_path / name).write_text(text)
    return read_cluster(tmp_path / name)


def test_toml(tmp_path: Path) -> None:
    row = 'count = 2\nnum_gpus = 8\ngpu_model = "A100"\ngpu_memory_gb = 80\ncpus = 64\nram_gb = 512\n'
    text = f"[[worker]]\n{row}[[worker]]\n"
    first, second = read(tmp_path, text, "cluster.toml")
    assert first == ClusterRow(2, 8, "A100", 80, 64, 512)
    assert second.resources().cpus == 1
    assert first.resources().gpu_memory_gb == 80


def test_csv(tmp_path: Path) -> None:
    rows = read(tmp_path, "count,num_gpus,gpu_model,cpus\n3,2,T4,\n1,0,,16\n", "cluster.csv")
    assert rows == [ClusterRow(3, 2, "T4"), ClusterRow(1, cpus=16)]
    assert rows[0].resources().cpus == 2  # as many as GPUs


def test_rows_of_blanks_are_no_workers(tmp_path: Path) -> None:
    assert read(tmp_path, "count,num_gpus,gpu_model\n2,1,A\n,,\n , ,\n", "cluster.csv") == [ClusterRow(2, 1, "A")]
    nodes = "sn,cpu_milli,memory_mib,gpu,model\na,1000,1024,0,\n,,,,\n"
    assert read(tmp_path, nodes, "nodes.csv") == [ClusterRow(cpus=1, ram_gb=1)]
    with pytest.raises(TraceError, match="has no workers"):
        read(tmp_path, "count,num_gpus\n,\n", "cluster.csv")


def test_equal_rows_are_counted(tmp_path: Path) -> None:
    text = "sn,cpu_milli,memory_mib,gpu,model\na,64000,262144,2,P100\nb,64000,262144,2,P100\nc,8000,1024,0,\n"
    assert read(tmp_path, text, "nodes.csv") == [
        ClusterRow(2, 2, "P100", None, 64, 256),
        ClusterRow(1, 0, "", None, 8, 1),
    ]


def test_worker_on_the_command_line() -> None:
    assert parse_row("gpus=2, model=A100,memory=40,cpus=8,ram=64,count=3") == ClusterRow(3, 2, "A100", 40, 8, 64)
    with pytest.raises(ValueError, match="is not of the form NAME=VALUE"):
        parse_row("gpus")
    with pytest.raises(ValueError, match="unknown field `colour`"):
        parse_row("colour=red")
    with pytest.raises(ValueError, match="leaves_s is 5, which is not after joins_s, 5"):
        parse_row("joins_s=5,leaves_s=5")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("c.toml", "", "has no workers"),
        ("c.toml", "[[worker]]\ncuont = 2\n", "unknown field `cuont`"),
        ("c.toml", "[[worker]\n", "c.toml: "),
        ("c.toml", "[[worker]]\n[[worker]]\ncount = 0\n", "c.toml, [[worker]] 2: Expected `int` >= 1"),
        ("c.toml", "[worker]\ncount = 1\n", "c.toml: [worker] is one table, and the workers are an array"),
        ("c.toml", "[[worker]]\nleaves_s = 0\n", "[[worker]] 1: leaves_s is 0, which is not after joins_s, 0"),
        ("c.csv", "joins_s,leaves_s\n1,2\n9,5\n", "line 3: leaves_s is 5, which is not after joins_s, 9"),
        ("c.toml", "[[worker]]\ncount = 100000\n[[worker]]\n", "more than 100,000 workers"),
        ("c.csv", "count,cpus\n1,many\n", "line 2: Expected `float | null`"),
        ("c.csv", "count,colour\n1,red\n", "line 2: Object contains unknown field `colour`"),
        ("c.csv", "sn,cpu_milli,memory_mib,gpu,model\na,x,1,1,T4\n", "line 2: could not convert"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, name: str, text: str, said: str) -> None:
    with pytest.raises(TraceError) as raised:
        read(tmp_path, text, name)
    assert said in raised.value.message
