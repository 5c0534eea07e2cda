"""What all tests share: a cluster of real processes, its logs in the report of a failure, and the marker `needs`.

`needs("strace", …)` names what a test cannot do without. Where it is missing the test is skipped with the reason, or
fails where SCHEDD_REAL=all says that all of it should be there.
"""

from __future__ import annotations

import functools
import os
import shutil
import signal
import uuid
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import hypothesis
import pytest
from helpers import Cluster

from schedd.assembly import is_compiled
from schedd.worker.cgroups import Cells
from schedd.worker.containment import Namespaces
from schedd.worker.oom import FIRST_PID_NAMESPACE
from schedd.worker.trees import NotAvailable

# Nothing is timed: a machine that is busy makes no test fail.
hypothesis.settings.register_profile("schedd", deadline=None)
hypothesis.settings.load_profile("schedd")

# A shell without job control starts what is in its background deaf to Ctrl-C, and so would all be that we start.
signal.signal(signal.SIGINT, signal.default_int_handler)


def _tool(name: str, package: str) -> Callable[[], str | None]:
    def check() -> str | None:
        return None if shutil.which(name) else f"there is no {name} here (package {package})"

    return functools.cache(check)


def _root() -> str | None:
    return None if os.geteuid() == 0 else "not root"


def _device(path: str) -> Callable[[], str | None]:
    return lambda: None if Path(path).exists() else f"there is no {path} here"


def _oom() -> str | None:
    """Whether the kernel can be made to kill a process of ours for lack of memory, and will say so to us."""
    if os.geteuid():
        return "not root"
    if not Path("/sys/fs/cgroup/memory/memory.limit_in_bytes").exists():
        return "no memory cgroups of the first version"
    if Path("/proc/self/ns/pid").stat().st_ino != FIRST_PID_NAMESPACE:
        return "in a PID namespace"
    return None if os.access("/dev/kmsg", os.R_OK) else "/dev/kmsg cannot be read"


@functools.cache
def _cgroup2() -> str | None:
    try:
        cells = Cells(uuid.uuid4().hex, sole=False)
    except NotAvailable as error:
        return str(error)
    cells.close()
    return None


@functools.cache
def _pid_namespace() -> str | None:
    try:
        Namespaces()
    except NotAvailable as error:
        return str(error)
    return None


def _systemd() -> str:
    from system import box, install

    return box.why_not() or install.why_not()


#: Why it is missing, or None, by the name of what a test may need.
NEEDS: dict[str, Callable[[], str | None]] = {
    "root": _root,
    "setsid": _tool("setsid", "util-linux"),
    "pgrep": _tool("pgrep", "procps"),
    "strace": _tool("strace", "strace"),
    "unshare": _tool("unshare", "util-linux"),
    "mkfs.ext4": _tool("mkfs.ext4", "e2fsprogs"),
    "loop": _device("/dev/loop-control"),
    "cc": _tool("cc", "gcc"),
    "oom": functools.cache(_oom),
    "ip": _tool("ip", "iproute2"),
    "nsenter": _tool("nsenter", "util-linux"),
    "prometheus": _tool("prometheus", "prometheus"),
    "promtool": _tool("promtool", "prometheus"),
    "tun": _device("/dev/net/tun"),
    "cgroup2": _cgroup2,
    "pid_namespace": _pid_namespace,
    "systemd": _systemd,
    "sources": lambda: "the core is compiled: nothing can be put around its methods" if is_compiled() else None,
}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(*names): what a test cannot do without; skipped with the reason")


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("needs"):
        for name in mark.args:
            if why := NEEDS[name]():
                if os.environ.get("SCHEDD_REAL") == "all":
                    pytest.fail(f"{name}: {why}", pytrace=False)
                pytest.skip(f"{name}: {why}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        for value in getattr(item, "funcargs", {}).values():
            if isinstance(value, Cluster):
                report.sections += [(f"log of {name}", text) for name, text in value.logs()]
    return report


@pytest.fixture(autouse=True, scope="session")
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep whatever a test starts away from the journal of the user who runs it."""
    folder = tmp_path_factory.mktemp("state")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCHEDD_STATE_DIR", str(folder))
        yield folder


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster without anything in it yet."""
    with Cluster(tmp_path) as started:
        yield started
