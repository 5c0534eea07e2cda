"""Find CPython's tests of concurrent.futures: a module up to Python 3.11, a package after.

An interpreter built from source has them; Debian has them in `libpython3.x-testsuite`, and some interpreters come
without. Then Debian's are used for the same version of Python, which needs a folder in which `test` is theirs.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import importlib.util
import pkgutil
import shutil
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

NAME = "test.test_concurrent_futures"
DEBIAN = Path(f"/usr/lib/python{sys.version_info[0]}.{sys.version_info[1]}/test")


@functools.cache
def load() -> tuple[list[ModuleType], list[str]]:
    """Import the tests. Returns their modules, and what a worker needs on its path; no modules where there are none."""
    paths = []
    if importlib.util.find_spec(NAME) is None:
        if not any((DEBIAN / name).exists() for name in ("test_concurrent_futures.py", "test_concurrent_futures")):
            return [], []
        paths = [_link()]
        sys.path[:0] = paths
        for name in [name for name in sys.modules if name == "test" or name.startswith("test.")]:
            del sys.modules[name]
        importlib.invalidate_caches()
    module = importlib.import_module(NAME)
    parts = [part.name for part in pkgutil.iter_modules(getattr(module, "__path__", []))]
    return [module, *[importlib.import_module(f"{NAME}.{part}") for part in parts if part != "__main__"]], paths


def _link() -> str:
    folder = Path(tempfile.mkdtemp(prefix="schedd-tests-"))
    atexit.register(shutil.rmtree, folder)
    (folder / "test").symlink_to(DEBIAN)
    return str(folder)


def find(modules: list[ModuleType], name: str) -> Any:
    """Return what one of the modules has under this name, from where it is defined; None where none has it."""
    for module in reversed(modules):
        found = getattr(module, name, None)
        if found is not None:
            return found
    return None
