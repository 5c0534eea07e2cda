"""schedd as it is installed on a machine: a virtual environment of the system's own Python in /opt.

Copied from what the tests run with, so that nothing is fetched.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
UNITS = ROOT / "systemd"
PYTHON = "/usr/bin/python3"
PREFIX = "opt/schedd"

LAUNCHER = f"""#!/{PREFIX}/bin/python
import sys
from schedd.cli.main import main
sys.exit(main())
"""


def why_not() -> str:
    """Say why it cannot be installed; "": it can."""
    if not Path(PYTHON).exists():
        return f"there is no {PYTHON}"
    code = "import sys, venv; print(*sys.version_info[:2])"
    ran = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True, check=False)
    ours = " ".join(map(str, sys.version_info[:2]))
    if ran.returncode:
        return f"{PYTHON} cannot make virtual environments: apt-get install python3-venv"
    if ran.stdout.strip() != ours:
        return f"{PYTHON} is {ran.stdout.strip()}, and what is installed here is for {ours}"
    return ""


def install(root: Path) -> None:
    """Put all of it into a folder that goes over the files of a machine."""
    subprocess.run([PYTHON, "-m", "venv", "--without-pip", str(root / PREFIX)], check=True)
    packages = next((root / PREFIX / "lib").glob("python*")) / "site-packages"
    shutil.copytree(ROOT / "schedd", packages / "schedd", ignore=shutil.ignore_patterns("__pycache__"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for name in _closure(project["dependencies"]):
        _copy(name, packages)
    launcher = root / PREFIX / "bin" / "schedd"
    launcher.write_text(LAUNCHER)
    launcher.chmod(0o755)
    shutil.copytree(UNITS, packages / "schedd" / "units")  # as the wheel has it
    shutil.copy(ROOT / "config.toml", packages / "schedd" / "units")


def _closure(requirements: list[str]) -> list[str]:
    """The names of all distributions that are needed, each once."""
    names: dict[str, None] = {}
    waiting = list(requirements)
    while waiting:
        need = Requirement(waiting.pop())
        if need.name in names or (need.marker is not None and not need.marker.evaluate({"extra": ""})):
            continue
        names[need.name] = None
        waiting += importlib.metadata.requires(need.name) or []
    return list(names)


def _copy(name: str, packages: Path) -> None:
    distribution = importlib.metadata.distribution(name)
    for file in distribution.files or ():
        source = Path(str(distribution.locate_file(file)))
        if ".." in file.parts or file.suffix == ".pyc" or not source.is_file():
            continue  # scripts, and what is made anew
        target = packages / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
