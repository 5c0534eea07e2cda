"""The outside of `schedd`: help, exit codes, errors and hints, completion; commands that start a room."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from schedd.cli.exits import Exit, exit_for
from schedd.cli.main import COMMANDS, main, root
from schedd.cli.session import Command
from schedd.errors import (
    AuthenticationError,
    ConfigError,
    ConnectionLost,
    LocalProtocolError,
    RemoteProtocolError,
    RequestRefused,
    ScheddError,
    TaskCancelled,
    TaskFailed,
)

from .conftest import Run
from .fake_daemon import FakeDaemon, view


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("x"), Exit.CONFIG),
        (ConnectionLost("x"), Exit.NO_DAEMON),
        (RemoteProtocolError("x"), Exit.NO_DAEMON),
        (LocalProtocolError("x"), Exit.REFUSED),
        (RequestRefused("x", code="queue_full"), Exit.REFUSED),
        (RequestRefused("x", code="unknown_task"), Exit.NOT_FOUND),
        (RequestRefused("x", code="unknown_job"), Exit.NOT_FOUND),
        (RequestRefused("x", code="unknown_worker"), Exit.NOT_FOUND),
        (RequestRefused("x", code="forbidden"), Exit.DENIED),
        (RequestRefused("x", code="auth_required"), Exit.DENIED),
        (AuthenticationError("x"), Exit.DENIED),
        (TaskFailed("x"), Exit.FAILED_TASKS),
        (TaskCancelled("x"), Exit.FAILED_TASKS),
        (ScheddError("x"), Exit.REFUSED),
    ],
)
def test_each_error_has_its_exit_code(error: ScheddError, code: Exit) -> None:
    assert exit_for(error) == code


def test_exit_codes_are_fixed() -> None:
    assert {code.name: code.value for code in Exit} == {
        "OK": 0,
        "FAILED_TASKS": 1,
        "USAGE": 2,
        "NO_DAEMON": 3,
        "REFUSED": 4,
        "NOT_FOUND": 5,
        "TIMEOUT": 6,
        "CONFIG": 7,
        "JOURNAL": 8,
        "LISTEN": 9,
        "DENIED": 10,
        "BUG": 70,
        "OUTPUT": 74,
        "INTERRUPTED": 130,
        "BROKEN_PIPE": 141,
    }


@pytest.mark.parametrize("name", COMMANDS)
def test_help(run: Run, name: str) -> None:
    ran = run(name, "--help")
    assert (ran.code, ran.err) == (Exit.OK, "")
    assert ran.out.startswith(f"Usage: schedd {name}")
    assert "Examples:" in ran.out
    assert f"schedd {name}" in ran.out.partition("Examples:")[2]


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_of_all(run: Run, arguments: list[str]) -> None:
    ran = run(*arguments)
    assert ran.code == Exit.OK
    for name in COMMANDS:
        assert f"\n  {name} " in ran.out


def test_every_command_of_the_daemon_takes_the_same_options() -> None:
    local = {
        "serve",
        "worker",
        "journal",
        "simulate",
        "check",
        "token",
        "tls",
        "install-service",
        "demo",
        "completion",
    }
    context = root.make_context("schedd", ["stats"])
    for name in COMMANDS.keys() - local:
        made = root.get_command(context, name)
        assert isinstance(made, Command)
        assert [option.name for option in made.params[-3:]] == ["address", "as_json", "quiet"]


def test_version(run: Run) -> None:
    assert run("--version").out == "schedd 0.1.0\n"


@pytest.mark.parametrize(
    ("arguments", "error", "hint"),
    [
        (["taks"], "no such command 'taks'", "did you mean 'tasks'?"),
        (["zzz"], "no such command 'zzz'", "known: serve, worker"),
        (["tasks", "--limit", "x"], "Invalid value for '--limit'", "see 'schedd tasks --help'"),
        (["tasks", "extra"], "Got unexpected extra argument (extra)", "see 'schedd tasks --help'"),
        (["show"], "Missing argument 'ID...'", "see 'schedd show --help'"),
        (["show", "x"], "'x' is not a list of numbers", "see 'schedd show --help'"),
        (["--nope"], "No such option", "see 'schedd --help'"),
        (["completion", "csh"], "'csh' is not one of", "see 'schedd completion --help'"),
    ],
)
def test_usage_errors(run: Run, arguments: list[str], error: str, hint: str) -> None:
    ran = run(*arguments)
    assert (ran.code, ran.out) == (Exit.USAGE, "")
    first, second = ran.err.splitlines()
    assert first.startswith("error: ")
    assert error in first
    assert second.startswith(f"hint: {hint}")


def test_no_daemon(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCHEDD_ADDRESS", "127.0.0.1:1")
    ran = run("tasks")
    assert (ran.code, ran.out) == (Exit.NO_DAEMON, "")
    first, second = ran.err.splitlines()
    assert first.startswith("error: ")
    assert "127.0.0.1:1" in first
    assert second.startswith("hint: ")


def test_address_before_or_after_the_command(daemon: FakeDaemon, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCHEDD_ADDRESS", "127.0.0.1:1")
    assert run("--address", daemon.address, "tasks").code == Exit.OK
    assert run("tasks", "--address", daemon.address).code == Exit.OK
    assert run("--address", "127.0.0.1:1", "tasks", "--address", daemon.address).code == Exit.OK


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["tasks", "--address", "a..b:7077"], "nobody can be reached at a..b:7077"),
        (["--token-file", "~nosuchuser/x", "tasks"], "is in the home of a user that does not exist"),
    ],
)
def test_what_cannot_be_meant_is_said_in_words(run: Run, argv: list[str], words: str) -> None:
    ran = run(*argv)
    assert ran.code == Exit.CONFIG
    assert words in ran.err


def test_streams_that_are_closed_from_the_start() -> None:
    argv = [sys.executable, "-m", "schedd.cli", "tasks", "--address", "127.0.0.1:1"]
    for closed in (">&-", "2>&-"):
        ran = subprocess.run(["sh", "-c", f'exec "$@" {closed}', "sh", *argv], capture_output=True, text=True)
        assert (ran.returncode, ran.stdout) == (Exit.NO_DAEMON, "")
        assert "Traceback" not in ran.stderr


def test_bad_address(run: Run) -> None:
    ran = run("tasks", "--address", "host:port")
    assert ran.code == Exit.CONFIG
    assert ran.err.startswith("error: 'host:port' is not an address\nhint: use HOST:PORT")


def test_bug_has_a_traceback_and_a_code_of_its_own(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("schedd.cli.session.Session.connect", broken)
    ran = run("tasks")
    assert ran.code == Exit.BUG
    assert "ZeroDivisionError: oops" in ran.err
    assert "error: this is a bug in schedd" in ran.err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(run: Run, shell: str) -> None:
    ran = run("completion", shell)
    assert ran.code == Exit.OK
    assert "_SCHEDD_COMPLETE" in ran.out
    assert f"{shell}_complete" in ran.out


def complete(*words: str) -> list[str]:
    environment = {
        **os.environ,
        "_SCHEDD_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(["schedd", *words]),
        "COMP_CWORD": str(len(words)),
    }
    done = subprocess.run(
        [sys.executable, "-m", "schedd.cli"], env=environment, capture_output=True, text=True, check=True
    )
    return [line.partition(",")[2] for line in done.stdout.split()]


def test_completion_completes() -> None:
    assert complete("wor") == ["worker", "workers"]
    assert complete("tasks", "--lim") == ["--limit"]
    assert complete("tasks", "--state", "r") == ["running", "revoking"]


def test_broken_pipe_is_silent(daemon: FakeDaemon) -> None:
    for task_id in range(1, 5000):
        daemon.add(view(task_id))
    reading, writing = os.pipe()
    process = subprocess.Popen([sys.executable, "-m", "schedd.cli", "tasks"], stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    os.close(reading)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (Exit.BROKEN_PIPE, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk without room")
@pytest.mark.parametrize("arguments", [["policies"], ["policies", "--json"], ["--help"], ["--version"]])
def test_output_to_a_full_disk(arguments: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "schedd.cli", *arguments]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == Exit.OUTPUT
    assert done.stderr.endswith("error: the output cannot be written: No space left on device\n")
    assert "Traceback" not in done.stderr


def test_light_commands_import_nothing_heavy() -> None:
    script = (
        "import sys; from schedd.cli.main import main; main(['tasks', '--address', '127.0.0.1:1'])\n"
        "heavy = {'rich', 'uvloop', 'cloudpickle', 'psutil', 'sqlite3', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------------------------------- commands that start a room


def test_policies_without_a_daemon(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCHEDD_ADDRESS", "127.0.0.1:1")
    rows = run("policies", "--json").json()
    names = [row["name"] for row in rows]
    assert names == ["fifo", "priority", "load_balancing", "work_stealing", "adaptive", "batch"]
    assert all(row["does"] for row in rows)
    assert {row["in_use"] for row in rows} == {None}
    ran = run("policies")
    assert (ran.code, len(ran.out.splitlines())) == (Exit.OK, len(rows) + 1)
    assert ran.err.startswith("which of them is in use is not known: ")
    assert "in use" not in ran.out
    assert run("policies", "-q").out.split() == names


def test_check(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('[policy]\nname = "adaptive"\n')
    ran = run("check", str(path))
    assert (ran.code, ran.err) == (Exit.OK, f"{path} is good; the policy is adaptive\n")
    assert run("check", str(path), "--json").json()["policy"]["name"] == "adaptive"
    path.write_text('[policy]\nnane = "adaptive"\n')
    ran = run("check", str(path))
    assert ran.code == Exit.CONFIG
    error, hint = ran.err.splitlines()
    assert error.startswith("error: ")
    assert str(path) in error
    assert "nane" in error
    assert hint.startswith("hint: ")
    assert "name" in hint
    assert run("check", str(tmp_path / "none.toml")).code == Exit.CONFIG


@pytest.mark.parametrize(
    "text",
    [
        'tls.cert = "/nonexist"',
        'tls.cert = "~no.such.user/cert.pem"',
        'journal.path = "~no.such.user/x"',
        'server.socket = "~no.such.user/x"',
        f'server.socket = "/{"x" * 200}"',
        'auth.admins = ["no.such.user"]',
        'auth.admin_groups = ["no.such.group"]',
        'auth.tokens = "/dev/null"',
        "worker.result_mb_max = 100",
    ],
)
def test_check_refuses_what_a_start_would(run: Run, tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(text)
    ran = run("check", str(path))
    assert ran.code == Exit.CONFIG
    assert ran.err.startswith(f"error: {path}: ")
    done = subprocess.run([sys.executable, "-m", "schedd.cli", "serve", "--config", str(path)], check=False, timeout=60)
    assert done.returncode == Exit.CONFIG


def test_check_says_what_it_cannot_look_at(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    path, cert = tmp_path / "config.toml", tmp_path / "cert.pem"
    path.write_text(f'[tls]\ncert = "{cert}"\nkey = "credential:key"\n[auth]\ntokens = "credential:tokens"\n')
    ran = run("check", str(path))
    assert (ran.code, ran.err) == (Exit.CONFIG, f"error: {path}: tls.cert {cert}: there is no such file\n")
    cert.touch()
    ran = run("check", str(path))
    assert ran.code == Exit.OK
    assert ran.err.splitlines()[0] == "not looked at, since only the daemon may: auth.tokens, tls.key"


def test_serve(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[Any] = []

    def serve(settings: Any, *, address_file: str | None, sockets: tuple[str, ...], load: Any) -> int:
        calls.append((settings, address_file, sockets, load))
        return 0

    monkeypatch.setattr("schedd.server.daemon.serve", serve)
    path = tmp_path / "config.toml"
    path.write_text('[policy]\nname = "fifo"\n')
    options = ("--listen", "127.0.0.1:0", "--address-file", "here", "--socket", "/a", "--socket", "/b")
    assert run("serve", "--config", str(path), *options).code == Exit.OK
    [(settings, address_file, sockets, load)] = calls
    assert sockets == ("/a", "/b")
    path.write_text('[policy]\nname = "batch"\n')
    assert (load().policy.name, load().server.listen) == ("batch", "127.0.0.1:0")
    assert settings.policy.name == "fifo"
    assert settings.server.listen == "127.0.0.1:0"
    assert address_file == "here"


def test_worker(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[Any] = []

    def run_worker(settings: Any, address: Any) -> int:
        calls.append((settings, address))
        return 0

    monkeypatch.setattr("schedd.worker.main.main", run_worker)
    path = tmp_path / "config.toml"
    path.write_text('[worker]\nconnect = "head:1"\ncpus = 2\nlabels = { rack = "1", zone = "a" }\n')
    options = [
        "--cpus",
        "8",
        "--name",
        "w1",
        "--ram",
        "64",
        "--no-gpus",
        "--label",
        "rack=3",
        "--resource",
        "licence=2",
    ]
    assert run("worker", "--config", str(path), *options, "--state-dir", "/tmp/w1").code == Exit.OK
    [(settings, address)] = calls
    assert str(address) == "head:1"
    assert (settings.cpus, settings.name, settings.ram_gb, settings.gpus) == (8, "w1", 64, "none")
    assert settings.labels == {"rack": "3", "zone": "a"}
    assert settings.custom == {"licence": 2}
    assert settings.state_dir == "/tmp/w1"
    run("worker", "--config", str(path), "--connect", "other:2")
    assert str(calls[1][1]) == "other:2"
    assert (calls[1][0].cpus, calls[1][0].gpus) == (2, "auto")


def test_worker_takes_what_stands_before_it(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[Any] = []
    monkeypatch.setattr("schedd.worker.main.main", lambda settings, address: calls.append((settings, address)))
    path = tmp_path / "config.toml"
    path.write_text('[worker]\nconnect = "head:1"\ntoken_file = "t1"\n')
    before = ["--address", "other:2", "--token-file", "t2", "--tls-ca", "ca2", "--tls-name", "n2"]
    assert run(*before, "worker", "--config", str(path)).code == Exit.OK
    assert run(*before, "worker", "--connect", "third:3", "--token-file", "t3", "--tls-ca", "ca3").code == Exit.OK
    shown = [(str(address), s.token_file, s.tls_ca, s.tls_name) for s, address in calls]
    assert shown == [("other:2", "t2", "ca2", "n2"), ("third:3", "t3", "ca3", "n2")]


def test_worker_mistakes(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("schedd.worker.main.main", lambda settings, address: 0)
    ran = run("worker", "--resource", "licence=x")
    assert (ran.code, ran.err) == (Exit.USAGE, "error: --resource licence=x: 'x' is not a number\n")


@pytest.mark.parametrize("value", ["nan", "-nan", "-1", "inf", "-inf", "1e30"])
@pytest.mark.parametrize("option", ["--cpus", "--ram", "--resource"])
def test_worker_with_amounts_that_mean_nothing(
    run: Run, monkeypatch: pytest.MonkeyPatch, option: str, value: str
) -> None:
    monkeypatch.setattr("schedd.worker.main.main", lambda settings, address: 0)
    ran = run("worker", option, value if option != "--resource" else f"x={value}")
    assert ran.code == Exit.USAGE
    assert option in ran.err


def test_worker_without_cpus(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("schedd.worker.main.main", lambda settings, address: 0)
    assert run("worker", "--cpus", "0").code == Exit.USAGE
    assert run("worker", "--cpus", "0.5", "--ram", "0", "--resource", "x=0").code == Exit.OK


def test_demo_without_scikit_learn(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    ran = run("demo")
    assert ran.code == Exit.CONFIG
    assert ran.err.endswith("hint: pip install 'schedd[demo]'\n")


def test_module_and_script_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    done = subprocess.run([sys.executable, "-m", "schedd.cli", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == "schedd 0.1.0\n"
    assert main(["--version"]) == Exit.OK
