"""`schedd install-service`: which files it writes where, and what it leaves alone. tests/system has it really run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import schedd
from schedd.cli.commands import install_service
from schedd.cli.exits import Exit
from schedd.errors import ScheddError

from .conftest import Run


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This installation, where services see it."""
    made = tmp_path / "prefix" / "bin" / "schedd"
    made.parent.mkdir(parents=True)
    made.touch()
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "prefix"))
    monkeypatch.setattr(install_service, "HIDDEN", ("/nowhere",))
    monkeypatch.setattr(install_service, "_systemd_version", lambda: 252)
    return made


def test_daemon(run: Run, program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "root"
    ran = run("install-service", "--root", str(root))
    assert (ran.code, [line.split()[0] for line in ran.out.splitlines()]) == (Exit.OK, ["new"] * 3)
    unit = (root / "etc/systemd/system/schedd.service").read_text()
    assert f"ExecStart={program} serve" in unit
    assert "/opt/schedd" not in unit.partition("[Service]")[2]
    settings = root / "etc/schedd/config.toml"
    settings.write_text("# mine\n")
    (root / "etc/systemd/system/schedd.socket").write_text("old")
    ran = run("install-service", "--root", str(root))
    assert [line.split()[0] for line in ran.out.splitlines()] == ["same", "changed", "kept"]
    assert settings.read_text() == "# mine\n"
    monkeypatch.setattr(install_service, "_systemd_version", lambda: 257)
    paths = {
        file["path"]: file["state"] for file in run("install-service", "--root", str(root), "--json").json()["files"]
    }
    assert paths[str(root / "etc/systemd/system/schedd.service.d/254.conf")] == "new"


def test_worker(run: Run, program: Path, tmp_path: Path) -> None:
    ran = run("install-service", "--worker", "--root", str(tmp_path / "root"))
    assert ran.code == Exit.OK
    assert f"ExecStart={program} worker" in (tmp_path / "root/etc/systemd/system/schedd-worker@.service").read_text()
    assert "schedd-worker" in (tmp_path / "root/etc/sysusers.d/schedd.conf").read_text()
    assert "systemctl enable --now schedd-worker" in ran.err


@pytest.mark.parametrize(
    ("folder", "written"),
    [("my venvs", '"{}/my venvs/bin/schedd"'), ("100%s", "{}/100%%s/bin/schedd")],
)
def test_odd_paths_are_written_as_systemd_reads_them(
    run: Run, program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, written: str
) -> None:
    program.parents[1].rename(tmp_path / folder)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / folder))
    run("install-service", "--root", str(tmp_path / "root"))
    unit = (tmp_path / "root/etc/systemd/system/schedd.service").read_text()
    assert f"\nExecStart={written.format(tmp_path)} serve " in unit
    assert f"\nExecReload={written.format(tmp_path)} reload " in unit


@pytest.mark.parametrize("folder", ["a'b", 'a"b', "a\\b", "a\nb"])
def test_path_that_systemd_refuses(
    run: Run, program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    program.parents[1].rename(tmp_path / folder)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / folder))
    ran = run("install-service", "--root", str(tmp_path / "root"))
    assert (ran.code, (tmp_path / "root").exists()) == (Exit.REFUSED, False)
    assert "systemd starts no program of such a name" in ran.err


def test_dry_run_writes_nothing(run: Run, program: Path, tmp_path: Path) -> None:
    ran = run("install-service", "--root", str(tmp_path / "root"), "--dry-run")
    assert (ran.code, (tmp_path / "root").exists()) == (Exit.OK, False)
    assert "to be run: systemctl restart schedd" in ran.err


def test_program_that_a_service_cannot_see(run: Run, program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install_service, "HIDDEN", (str(program.parents[2]),))
    ran = run("install-service", "--dry-run")
    assert ran.code == Exit.REFUSED
    assert "is where a service cannot see it" in ran.err
    program.unlink()
    assert "there is no" in run("install-service", "--dry-run").err


def test_package_that_a_service_cannot_see(run: Run, program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As that of `pip install -e` in a home folder."""
    package = Path(schedd.__file__).resolve().parent
    monkeypatch.setattr(install_service, "HIDDEN", (str(package.parent),))
    ran = run("install-service", "--dry-run")
    assert ran.code == Exit.REFUSED
    assert f"{package} is where a service cannot see it" in ran.err


def test_what_cannot_be(run: Run, program: Path, tmp_path: Path) -> None:
    assert run("install-service", "--now", "--root", str(tmp_path)).code == Exit.REFUSED
    (tmp_path / "file").touch()
    ran = run("install-service", "--root", str(tmp_path / "file"))
    assert (ran.code, "cannot be written" in ran.err) == (Exit.REFUSED, True)


@pytest.mark.parametrize("argv", [["/no/such/program"], ["false"]])
def test_command_that_fails(argv: list[str]) -> None:
    with pytest.raises(ScheddError, match=argv[0]):
        install_service._run(argv)


def test_version() -> None:
    assert install_service._systemd_version() >= 0
