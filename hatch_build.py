"""Compiles what `pyproject.toml` lists into the wheel, by mypyc, where it is asked for: SCHEDD_COMPILE=1 pip install .

In a folder of its own: a compiled module beside its source would be imported in its place, whatever is changed there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

IS_ASKED_FOR = os.environ.get("SCHEDD_COMPILE", "") not in ("", "0")
SETUP = """
import sys
from mypyc.build import mypycify
from setuptools import setup
modules = mypycify(["--ignore-missing-imports", *sys.argv[3:]], opt_level="3", debug_level="0", group_name="schedd")
setup(name="schedd", ext_modules=modules, script_args=sys.argv[1:3])
"""


class CompiledCore(BuildHookInterface[Any]):
    def dependencies(self) -> list[str]:
        # Beside the compiler what schedd needs itself: its types are looked at.
        return ["mypy>=2", "setuptools", *self.metadata.core.dependencies] if IS_ASKED_FOR else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if not IS_ASKED_FOR or self.target_name != "wheel":
            return
        if version == "editable":
            raise SystemExit("SCHEDD_COMPILE does not go with `pip install -e`: a change of a source would do nothing")
        self._folder = TemporaryDirectory()
        folder = Path(self._folder.name)
        shutil.copytree(Path(self.root, "schedd"), folder / "schedd", ignore=shutil.ignore_patterns("__pycache__"))
        argv = [sys.executable, "-c", SETUP, "build_ext", "--inplace", *self.config["modules"]]
        ran = subprocess.run(argv, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if ran.returncode:
            raise SystemExit(f"{ran.stdout}\nSCHEDD_COMPILE needs a C compiler and the headers of Python (python3-dev)")
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        shutil.rmtree(folder / "build")
        for built in folder.rglob("*.so"):
            build_data["force_include"][str(built)] = str(built.relative_to(folder))

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if hasattr(self, "_folder"):
            self._folder.cleanup()
