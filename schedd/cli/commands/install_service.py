"""`schedd install-service`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import click
from msgspec import Struct

import schedd
from schedd.cli.exits import Exit
from schedd.cli.output import Output
from schedd.cli.session import command
from schedd.errors import ScheddError

EXAMPLES = """
schedd install-service --dry-run
sudo /opt/schedd/bin/schedd install-service --now
sudo /opt/schedd/bin/schedd install-service --worker --now
"""

#: What the units as they are shipped start; in its place comes the program that installs them.
PROGRAM = "/opt/schedd/bin/schedd"
#: Folders that the units are not shown (ProtectHome=, PrivateTmp=).
HIDDEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")
#: What systemd bears in the name of no program.
REFUSED = frozenset("\"'\\")
ELSEWHERE = "/usr/bin/python3 -m venv /opt/schedd && /opt/schedd/bin/pip install schedd"
#: The first systemd that knows what is in the drop-in of this name.
DROP_IN_SINCE = 254


class File(Struct, frozen=True):
    """A file to be written. state: how what is there compares with it."""

    path: str
    text: str
    state: Literal["new", "changed", "same", "kept"]


@command("install-service", examples=EXAMPLES)
@click.option("--worker", is_flag=True, help="A worker of this machine, in place of the daemon.")
@click.option("--now", is_flag=True, help="Start it, and at each boot.")
@click.option("--dry-run", is_flag=True, help="Write and start nothing; say what would be.")
@click.option("--root", default="/", metavar="DIR", help="Write below DIR, as for a package. Not with --now.")
@click.option("--json", "as_json", is_flag=True, help="Write the files and commands as JSON to stdout.")
@click.option("--quiet", "-q", is_flag=True, help="No remarks on stderr.")
def install_service_command(worker: bool, now: bool, dry_run: bool, root: str, as_json: bool, quiet: bool) -> Exit:
    """Make this installation of schedd a service of systemd.

    Writes its units to /etc/systemd/system, and settings to /etc/schedd/config.toml where there are none. Units that
    are there are replaced: what you change yourself belongs into a drop-in (`systemctl edit schedd`).
    """
    out = Output(as_json=as_json, quiet=quiet)
    if now and root != "/":
        raise ScheddError("--now is for this machine, and --root is not", "leave one of them out")
    program = _program()
    files = list(_files(Path(root), program, worker))
    commands = _commands(worker)
    if not dry_run:
        for file in files:
            _write(file)
        if now:
            for argv in commands:
                _run(argv)
    if as_json:
        out.json({"files": [{"path": f.path, "state": f.state} for f in files], "commands": commands, "run": now})
        return Exit.OK
    for file in files:
        out.line(f"{file.state:<8}{file.path}")
    for argv in commands:
        out.say(f"{'ran' if now and not dry_run else 'to be run'}: {' '.join(argv)}")
    return Exit.OK


def _program() -> Path:
    """The program that the units start: this one. Raises ScheddError where they could not."""
    program = Path(sys.prefix) / "bin" / "schedd"
    if not program.exists():
        raise ScheddError(f"there is no {program}", "install schedd into a virtual environment, and run it from there")
    # The package is elsewhere where it was installed with `pip install -e`.
    for path in (program, Path(sys.executable).resolve(), Path(schedd.__file__).resolve().parent):
        if str(path).startswith(tuple(f"{folder}/" for folder in HIDDEN)):
            raise ScheddError(f"{path} is where a service cannot see it", f"install it elsewhere: {ELSEWHERE}")
    if not str(program).isprintable() or not REFUSED.isdisjoint(str(program)):
        raise ScheddError(f"systemd starts no program of such a name: {program}", f"install it elsewhere: {ELSEWHERE}")
    return program


def _shipped(name: str) -> str:
    """The text of a file that is shipped: beside the package, or in the repository that it is run from."""
    here = Path(schedd.__file__).parent
    for path in (here / "units" / name, here.parent / "systemd" / name, here.parent / name):
        if path.is_file():
            return path.read_text()
    raise ScheddError(f"{name} is not there", "install schedd anew: this installation is not complete")


def _files(root: Path, program: Path, worker: bool) -> Iterator[File]:
    units = root / "etc/systemd/system"
    names = ["schedd-worker.service", "schedd-worker@.service"] if worker else ["schedd.service", "schedd.socket"]
    for name in names:
        yield _file(units / name, _shipped(name).replace(PROGRAM, _quoted(program)))
    if worker:
        yield _file(root / "etc/sysusers.d/schedd.conf", _shipped("sysusers.conf"))
    elif _systemd_version() >= DROP_IN_SINCE:
        yield _file(units / f"schedd.service.d/{DROP_IN_SINCE}.conf", _shipped(f"drop-ins/{DROP_IN_SINCE}.conf"))
    settings = root / "etc/schedd/config.toml"
    if settings.exists():
        yield File(str(settings), "", "kept")
    else:
        yield _file(settings, _shipped("config.toml"))


def _quoted(program: Path) -> str:
    """Write a path as systemd reads it in a unit."""
    text = str(program).replace("%", "%%")
    return f'"{text}"' if " " in text else text


def _file(path: Path, text: str) -> File:
    if not path.exists():
        return File(str(path), text, "new")
    return File(str(path), text, "same" if path.read_text() == text else "changed")


def _write(file: File) -> None:
    if file.state in ("same", "kept"):
        return
    path = Path(file.path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(file.text)
        path.chmod(0o644)
    except OSError as error:
        raise ScheddError(f"{path} cannot be written: {error.strerror}", "run it as root (sudo)") from error


def _commands(worker: bool) -> list[list[str]]:
    """What makes systemd take it up. A daemon that runs is started anew, which costs nothing; a worker is not."""
    if worker:
        return [
            ["systemd-sysusers", "/etc/sysusers.d/schedd.conf"],
            ["systemctl", "daemon-reload"],
            ["systemctl", "enable", "--now", "schedd-worker"],
        ]
    return [["systemctl", "daemon-reload"], ["systemctl", "enable", "schedd"], ["systemctl", "restart", "schedd"]]


def _run(argv: list[str]) -> None:
    try:
        ran = subprocess.run(argv, capture_output=True, text=True, check=False)
    except OSError as error:
        raise ScheddError(f"{argv[0]} cannot be run: {error.strerror}", "this machine has no systemd") from error
    if ran.returncode:
        told = (ran.stderr or ran.stdout).strip().partition("\n")[0]
        raise ScheddError(f"{' '.join(argv)}: {told}", "look at: journalctl -u schedd -u schedd-worker -n 20")


def _systemd_version() -> int:
    """The number of the systemd of this machine; 0 where there is none."""
    try:
        ran = subprocess.run(["systemctl", "--version"], capture_output=True, text=True, check=False)
    except OSError:
        return 0
    words = ran.stdout.split()
    return int(words[1].partition(".")[0]) if len(words) > 1 and words[1][:3].isdigit() else 0
