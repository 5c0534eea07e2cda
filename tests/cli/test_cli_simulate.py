"""`schedd simulate` as a user meets it."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from schedd.cli.exits import Exit

from .conftest import Run

TRACE = "submit_s,kind,runtime_s,priority\n0,a,10,0\n0,b,20,5\n1,a,30,0\n"
FIGURES = {
    "makespan_s", "mean_flow_time_s", "p50_flow_time_s", "p99_flow_time_s", "mean_queueing_delay_s",
    "mean_bounded_slowdown", "utilisation", "gpu_allocation_ratio", "fairness", "steals", "wasted_s", "attempts",
    "failed", "tasks", "decision_us",
}  # fmt: skip


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    (tmp_path / "trace.csv").write_text(TRACE)
    (tmp_path / "cluster.toml").write_text("[[worker]]\ncount = 1\ncpus = 1\n")
    return ["--trace", str(tmp_path / "trace.csv"), "--cluster", str(tmp_path / "cluster.toml")]


def test_table(run: Run, files: list[str]) -> None:
    ran = run("simulate", *files, "--policy", "fifo,priority")
    assert ran.code == Exit.OK
    head, fifo, priority = ran.out.splitlines()
    assert head.split()[:3] == ["policy", "makespan", "s"]
    assert fifo.split()[:4] == ["fifo", "60.0", "1.000", "33.0"]
    assert priority.split()[:4] == ["priority", "60.0", "1.000", "36.3"]
    assert ran.err == "3 tasks (csv) on 1 workers; no schedule ends before 60.0 s\n"


def test_json(run: Run, files: list[str]) -> None:
    ran = run("simulate", *files, "--policy", "fifo", "--seeds", "2", "--json")
    told = json.loads(ran.out)
    assert told["lower_bound_s"] == 60
    figures = told["policies"]["fifo"]
    assert figures.keys() == FIGURES | {"ci95", "per_seed"}
    assert (figures["makespan_s"], figures["tasks"], figures["utilisation"]) == (60, 3, 1)
    assert [seed.keys() for seed in figures["per_seed"]] == [FIGURES, FIGURES]


def test_columns_that_are_not_used_are_told(run: Run, files: list[str], tmp_path: Path) -> None:
    (tmp_path / "trace.csv").write_text("submit_s,runtime_s,user\n0,10,me\n")
    ran = run("simulate", *files, "--rows", ":1", "--json")
    assert ran.err == f"{tmp_path / 'trace.csv'}: not used are the columns user\n"
    assert run("simulate", *files, "--json", "-q").err == ""


def test_csv(run: Run, files: list[str]) -> None:
    ran = run("simulate", *files, "--policy", "fifo,batch", "--seeds", "2", "--csv")
    rows = list(csv.DictReader(io.StringIO(ran.out)))
    assert [(row["policy"], row["seed"]) for row in rows] == [
        ("fifo", "0"),
        ("fifo", "1"),
        ("batch", "0"),
        ("batch", "1"),
    ]
    assert {float(row["makespan_s"]) for row in rows} == {60}


def test_more_workers(run: Run, files: list[str]) -> None:
    ran = run("simulate", *files, "--add-worker", "cpus=2", "--json")
    assert json.loads(ran.out)["policies"]["fifo"]["makespan_s"] == 31


def test_settings(run: Run, files: list[str], tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[policy]\nname = 'fifo'\n[policy.batch]\nbatch_size = 3\n")
    config = ["--config", str(tmp_path / "config.toml")]
    ran = run("simulate", *files, *config, "--policy", "batch", "--set", "policy.batch.batch_size=2", "--json")
    assert (ran.code, list(json.loads(ran.out)["policies"])) == (Exit.OK, ["batch"])


@pytest.mark.parametrize(
    ("options", "error", "hint"),
    [
        (["--policy", "fifi"], "there is no policy 'fifi'", "did you mean 'fifo'?"),
        (["--policy", ","], "no policy is named", "policies: fifo"),
        (["--set", "policy.batch"], "is not of the form KEY=VALUE", "policy.batch.batch_size=8"),
        (["--set", "policy.name=batch"], "--set does not say which policies run", "--policy fifo,batch"),
        (["--try", "policy.name=fifo,batch"], "--try does not say which policies run", "name them, for instance"),
        (["--set", "policy=5"], "--set does not say which policies run", ""),
        (["--try", "policy=5"], "--try does not say which policies run", ""),
        (["--set", "policy.batch.size=8"], "policy.batch.size is not a key", "did you mean 'batch_size'?"),
        (["--set", "policy.batch.batch_size=x"], "policy.batch.batch_size: expected", ""),
        (["--add-worker", "gpus"], "is not of the form NAME=VALUE", ""),
        (["--format", "nope"], "no such format 'nope'", "one of auto, swf"),
        (["--cluster", "nowhere.toml"], "nowhere.toml cannot be read", ""),
        (["--trace", "nowhere.csv"], "nowhere.csv cannot be read", ""),
        (["--generate", "bag"], "a trace and a load cannot be run at once", "give --trace or --generate"),
        (["--generate", "bags"], "not 'bags' (did you mean bag?)", ""),
        (["--add-worker", "fail_share=2"], "Expected `float` <= 1.0 - at `$.fail_share`", ""),
        (["--levels", "1,3"], "there are no searches in a trace", "--workload halving"),
        (["--eta", "3"], "there are no searches in a trace", "--workload halving"),
        (["--restart-costs", "costs.json"], "--restart-costs are those of preemptive policies", "--policy srtf,srsf"),
        (["--policy", "fifo,srtf", "--plot", "charts"], "srtf cannot be drawn", "leave out --plot"),
        (["--fill", "100", "--plot", "charts"], "--plot does nothing with --fill", "leave it out"),
        (["--fill", "100", "--objective", "makespan"], "--objective does nothing with --fill", "leave it out"),
        (["--fill", "100", "--known"], "--known does nothing with --fill", "leave it out"),
        (["--fill", "100", "--backfill"], "--backfill does nothing with --fill", "leave it out"),
        (["--fill", "100", "--one-by-one"], "--one-by-one does nothing with --fill", "leave it out"),
        (["--workload", "asha", "--format", "swf"], "no such format of learning curves 'swf'", "one of auto, lcbench"),
        (["--workload", "asha"], "no learning curves that are known", "lcbench: config, epoch"),
    ],
)
def test_what_is_wrong_is_said_with_a_hint(
    run: Run, files: list[str], options: list[str], error: str, hint: str
) -> None:
    ran = run("simulate", *files, *options)
    assert ran.code in (Exit.USAGE, Exit.CONFIG)
    assert error in ran.err
    assert hint in ran.err
    assert not ran.out


@pytest.mark.parametrize(
    ("option", "error"),
    [
        (["--format", "swf"], "--format is the layout of a trace"),
        (["--workload", "asha"], "searches are over the learning curves of a trace"),
        (["--rows", "1:"], "--rows and --throughputs are for a trace"),
    ],
)
def test_what_is_of_a_trace_is_nothing_without_one(run: Run, option: list[str], error: str) -> None:
    for source in ("--generate=bag", "--journal=journal.db"):
        ran = run("simulate", source, *option, "--add-worker", "cpus=1")
        assert (ran.code, error in ran.err, "give --trace" in ran.err) == (Exit.USAGE, True, True)


def test_drawn_load(run: Run) -> None:
    load = ["--generate", "poisson:tasks=200,mean_s=10", "--add-worker", "cpus=4"]
    ran = run("simulate", *load, "--policy", "fifo,priority", "--seeds", "3", "--json")
    told = json.loads(ran.out)["policies"]
    makespans = [seed["makespan_s"] for seed in told["fifo"]["per_seed"]]
    assert len(set(makespans)) == 3  # drawn anew for each seed, and the same for each policy
    assert makespans == [seed["makespan_s"] for seed in told["priority"]["per_seed"]]
    ran = run("simulate", *load)
    assert "200 tasks (generated, poisson) on 1 workers" in ran.err


def test_what_fails_is_tried_again_unless_somebody_says_otherwise(run: Run) -> None:
    command = ["simulate", "--generate", "bag:tasks=100", "--add-worker", "count=4,fail_share=0.3", "--json"]
    figures = json.loads(run(*command).out)["policies"]["fifo"]
    assert (figures["failed"], figures["attempts"] > 120, figures["wasted_s"] > 0) == (0, True, True)
    figures = json.loads(run(*command, "--set", "retries.error=0").out)["policies"]["fifo"]
    assert (figures["failed"] > 10, figures["attempts"]) == (True, 100)


def test_plots(run: Run, files: list[str], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    ran = run("simulate", *files, "--policy", "fifo,priority", "--plot", str(tmp_path / "charts"))
    assert ran.code == Exit.OK
    drawn = {"jct.png", "utilisation.png", "queue.png", "gantt-fifo.png", "gantt-priority.png"}
    assert {path.name for path in (tmp_path / "charts").iterdir()} == drawn
    assert all(name in ran.err for name in drawn)


def test_plots_that_fail_cost_no_results(run: Run, files: list[str], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "charts" / "jct.png").mkdir(parents=True)
    ran = run("simulate", *files, "--plot", str(tmp_path / "charts"))
    assert (ran.code, ran.out.splitlines()[1].split()[0]) == (Exit.USAGE, "fifo")
    assert "the plots cannot be written to" in ran.err


def test_folder_for_plots_is_looked_at_before_the_runs(run: Run, files: list[str]) -> None:
    pytest.importorskip("matplotlib")
    ran = run("simulate", *files, "--plot", files[1])
    assert (ran.code, ran.out, "cannot be written to" in ran.err) == (Exit.USAGE, "", True)


def test_something_to_run_is_needed(run: Run) -> None:
    ran = run("simulate", "--add-worker", "cpus=1")
    assert (ran.code, "there is nothing to run" in ran.err, "--generate" in ran.err) == (Exit.USAGE, True, True)


def test_cluster_is_needed(run: Run, files: list[str]) -> None:
    ran = run("simulate", *files[:2])
    assert (ran.code, "there is no cluster to run on" in ran.err) == (Exit.USAGE, True)


def test_policies_of_the_literature(run: Run, files: list[str], tmp_path: Path) -> None:
    ran = run("simulate", *files, "--policy", "sjf,srtf", "--backfill", "--one-by-one", "--rows", "1:", "--json")
    told = json.loads(ran.out)["policies"]
    assert told.keys() == {"sjf", "srtf"}
    assert all(figures.keys() == FIGURES | {"ci95", "per_seed"} for figures in told.values())
    assert (told["sjf"]["makespan_s"], told["sjf"]["tasks"]) == (50, 2)


def test_known_runtimes_let_short_tasks_go_first(run: Run, files: list[str], tmp_path: Path) -> None:
    (tmp_path / "trace.csv").write_text("kind,runtime_s\na,30\na,20\na,10\n")
    changes = ["--known", "--set", "policy.adaptive.objective=mean_jct"]
    told = json.loads(run("simulate", *files, "--policy", "fifo,adaptive", *changes, "--json").out)["policies"]
    assert [round(told[name]["mean_flow_time_s"], 1) for name in ("fifo", "adaptive")] == [46.7, 33.3]
    ran = run("simulate", *files, "--policy", "adaptive", "--set", "policy.adaptive.objective=quick")
    assert (ran.code, "objective" in ran.err) == (Exit.CONFIG, True)


def test_part_that_is_none(run: Run, files: list[str]) -> None:
    ran = run("simulate", *files, "--rows", "7:")
    assert (ran.code, ran.err) == (Exit.USAGE, "error: no row is left of 3\n")
    ran = run("simulate", *files, "--rows", "7")
    assert ran.code == Exit.USAGE
    assert "'7' is not of the form FIRST:END" in ran.err


def test_filling(run: Run, tmp_path: Path) -> None:
    (tmp_path / "pods.csv").write_text("runtime_s,num_gpus,gpu_fraction\n1,1,\n1,1,0.5\n1,4,\n")
    (tmp_path / "cluster.toml").write_text("[[worker]]\ncount = 4\nnum_gpus = 4\n")
    files = ["--trace", str(tmp_path / "pods.csv"), "--cluster", str(tmp_path / "cluster.toml")]
    ran = run("simulate", *files, "--policy", "packing,random", "--fill", "100", "--seeds", "2")
    assert ran.code == Exit.OK
    head, packing, random = ran.out.splitlines()
    assert head.split()[:7] == ["policy", "at", "80", "%", "at", "90", "%"]
    assert (packing.split()[0], random.split()[0]) == ("packing", "random")
    assert "percent of the GPUs given" in ran.err
    told = json.loads(run("simulate", *files, "--policy", "packing", "--fill", "100", "--json").out)
    assert told["policies"]["packing"]["gpu_allocation_ratio"] > 0.5
    ran = run("simulate", *files, "--policy", "srtf", "--fill", "100")
    assert ran.code == Exit.USAGE
    assert "srtf says when tasks start, not where" in ran.err
    assert run("simulate", *files, "--fill", "100", "--csv").code == Exit.USAGE


def test_searches(run: Run, tmp_path: Path) -> None:
    rows = ["config,epoch,cum_time_s,val_acc"]
    rows += [f"{config},{epoch},{100 * epoch},{config}" for config in range(9) for epoch in range(1, 10)]
    (tmp_path / "c.csv").write_text("\n".join(rows))
    options = ["--trace", str(tmp_path / "c.csv"), "--add-worker", "count=9,gpus=1,cpus=4", "--from-scratch"]
    told = json.loads(run("simulate", "--workload", "asha", *options, "--json").out)
    figures = told["policies"]["fifo"]
    assert told["lower_bound_s"] is None
    assert (figures["mean_search_full_s"], figures["gpu_allocation_ratio"]) == (1300, 1)
    assert figures["per_seed"][0]["search_full_s"] == figures["search_full_s"] == [1300]
    [row] = csv.DictReader(io.StringIO(run("simulate", "--workload", "asha", *options, "--csv").out))
    assert (row["policy"], row["mean_search_full_s"], "search_full_s" in row) == ("fifo", "1300.0", False)
    ran = run("simulate", "--workload", "halving", *options, "--levels", "1,3,9")
    assert ran.out.splitlines()[1].split()[-2:] == ["1,300.0", "1,300.0"]
    assert ran.err == "1 search (halving) on 9 workers; no schedule ends before 1,300.0 s\n"
    ran = run("simulate", "--workload", "halving", *options, "--levels", "0,1")
    assert "c has nothing at level 0" in ran.err


def test_one_trace_is_enough(run: Run, files: list[str]) -> None:
    ran = run("simulate", *files, *files[:2])
    assert (ran.code, "--trace is given more than once" in ran.err) == (Exit.USAGE, True)


def test_runs_at_once_tell_the_same(run: Run, files: list[str], tmp_path: Path) -> None:
    told = []
    for jobs in ("1", "3"):
        arguments = (*files, "--policy", "fifo,priority", "--seeds", "2", "--objective", "makespan")
        ran = run("simulate", *arguments, "--plot", str(tmp_path / jobs), "--jobs", jobs, "--json")
        assert ran.code == Exit.OK
        one = json.loads(ran.out)
        for policy in one["policies"].values():
            for figures in (policy, *policy["per_seed"], policy["ci95"]):
                del figures["decision_us"]
        told.append(one)
    assert told[0] == told[1]
    assert {path.name for path in (tmp_path / "1").iterdir()} == {path.name for path in (tmp_path / "3").iterdir()}
