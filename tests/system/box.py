"""A real systemd as PID 1 of namespaces of its own, over a throw-away overlay of this machine's files.

Nothing outside of it changes: it has its own process ids, mounts, network (loopback), host name and control groups.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

#: Where a systemd is, and a control group that it can have as its root.
SYSTEMD = next((path for path in ("/usr/lib/systemd/systemd", "/lib/systemd/systemd") if Path(path).exists()), "")
GROUPS = next(
    (
        path
        for path in (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))
        if (path / "cgroup.procs").exists() and (path / "cgroup.controllers").exists()
    ),
    None,
)
#: Units that have nothing to do in here, or nothing to do it with.
MASKED = (
    "systemd-udevd.service",
    "systemd-udevd-control.socket",
    "systemd-udevd-kernel.socket",
    "systemd-udev-trigger.service",
    "systemd-timesyncd.service",
    "systemd-networkd.service",
    "systemd-resolved.service",
    "systemd-sysctl.service",
    "systemd-modules-load.service",
    "systemd-random-seed.service",
    "systemd-update-utmp.service",
    "ldconfig.service",
    "systemd-hwdb-update.service",
    "systemd-firstboot.service",
    "systemd-sysusers.service",
    "systemd-pstore.service",
    "dev-hugepages.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "sys-kernel-config.mount",
    "sys-fs-fuse-connections.mount",
    "proc-sys-fs-binfmt_misc.automount",
    "systemd-binfmt.service",
    "systemd-remount-fs.service",
    "systemd-machine-id-commit.service",
    "kmod-static-nodes.service",
    "systemd-logind.service",
)
#: Builds the root, and becomes systemd. $1: an empty folder; $2: files that go over this machine's.
INSIDE = r"""
set -eu
base=$1 root=$1/root
mount -t tmpfs -o mode=755 tmpfs $base
mkdir $base/up $base/work $root
mount -t overlay overlay -o lowerdir=/,upperdir=$base/up,workdir=$base/work $root
mount -t proc -o nosuid,nodev,noexec proc $root/proc
mount -t sysfs -o nosuid,nodev,noexec sysfs $root/sys
mount -t cgroup2 cgroup2 $root/sys/fs/cgroup
mount -t tmpfs -o mode=755,nosuid dev $root/dev
for name in null zero full random urandom tty; do touch $root/dev/$name; mount --bind /dev/$name $root/dev/$name; done
mkdir $root/dev/pts $root/dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts $root/dev/pts
ln -s pts/ptmx $root/dev/ptmx
ln -s /proc/self/fd $root/dev/fd
mount -t tmpfs -o mode=1777 shm $root/dev/shm
mount -t tmpfs -o mode=755 run $root/run
mount -t tmpfs -o mode=1777 tmp $root/tmp
rm -rf $root/etc/systemd/system
mkdir -p $root/etc/systemd/system
: > $root/etc/fstab
tr -d - < /proc/sys/kernel/random/uuid > $root/etc/machine-id
for unit in $MASKED; do ln -s /dev/null $root/etc/systemd/system/$unit; done
printf '[Unit]\nRequires=sysinit.target dbus.socket\nAfter=sysinit.target dbus.socket\nAllowIsolate=yes\n' \
    > $root/etc/systemd/system/box.target
cp -a "$2"/. $root/
hostname box
ip link set lo up
cd $root
mkdir old
pivot_root . old
umount -l /old
rmdir old
mount --make-rshared /  # or credentials are an empty folder
exec env -i container=box PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 \
    $SYSTEMD --system --unit=box.target --log-target=journal </dev/null >/dev/null 2>&1
"""
NAMESPACES = ("--mount", "--uts", "--ipc", "--net", "--cgroup", "--pid", "--fork")
BOOT_S = 60.0


@functools.cache
def why_not() -> str:
    """Say why no systemd can be started here; "": it can."""
    if os.geteuid():
        return "a systemd of its own needs root"
    missing = [tool for tool in ("unshare", "nsenter", "ip", "systemctl", "dbus-daemon") if shutil.which(tool) is None]
    if not SYSTEMD or missing:
        return f"not installed: {', '.join(missing) or 'systemd'} (apt-get install systemd dbus iproute2 util-linux)"
    if GROUPS is None:
        return "no hierarchy of control groups (cgroup2) is mounted"
    ran = subprocess.run(["unshare", *NAMESPACES, "true"], capture_output=True, text=True, check=False)
    return f"namespaces are refused: {ran.stderr.strip()}" if ran.returncode else ""


class Box:
    """A machine with a systemd. A context manager. files: what goes over this machine's files."""

    def __init__(self, files: Path) -> None:
        assert GROUPS is not None
        self._base = Path(tempfile.mkdtemp(prefix="schedd-box-", dir="/var/tmp"))
        self._group = GROUPS / self._base.name
        self._group.mkdir()
        command = ["unshare", *NAMESPACES, "--propagation", "private", "--kill-child=KILL"]
        # In its group before it has namespaces, so that the group is the root of what it sees.
        enter = ["sh", "-c", 'echo 0 > "$0" && exec "$@"', str(self._group / "cgroup.procs")]
        self._process = subprocess.Popen(
            [*enter, *command, "bash", "-c", INSIDE, "box", str(self._base), str(files)],
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "MASKED": " ".join(MASKED), "SYSTEMD": SYSTEMD},
            stderr=subprocess.PIPE,
            text=True,
        )
        self.pid = 0

    def __enter__(self) -> Self:
        end = time.monotonic() + BOOT_S
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        while not self._is_up():
            if self._process.poll() is not None or time.monotonic() > end:
                self._process.kill()
                assert self._process.stderr is not None
                told = self._process.stderr.read()
                self.close()
                raise RuntimeError(f"systemd did not start: {told}")
            with contextlib.suppress(OSError, ValueError):
                self.pid = int(children.read_text())
            time.sleep(0.02)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _is_up(self) -> bool:
        try:
            is_systemd = Path(f"/proc/{self.pid}/comm").read_text() == "systemd\n"
        except OSError:
            return False
        return is_systemd and self.run("systemctl", "is-system-running", check=False).stdout.strip() in (
            "running",
            "degraded",
        )

    def run(self, *command: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command in there, as root. Raises AssertionError where it fails and `check` is set."""
        inside = ["nsenter", "-t", str(self.pid), "--all", "--", *command]
        # What is set out here, a daemon's address for instance, is not set in there.
        env = {name: value for name, value in os.environ.items() if not name.startswith("SCHEDD_")}
        ran = subprocess.run(inside, capture_output=True, text=True, check=False, timeout=60, env=env, **options)
        assert not check or ran.returncode == 0, f"{' '.join(command)}: {ran.returncode}: {ran.stdout}{ran.stderr}"
        return ran

    def path(self, path: str) -> Path:
        """A file in there, as seen from here."""
        return Path(f"/proc/{self.pid}/root{path}")

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.run("systemctl", "show", unit, "-P", name).stdout.strip()

    def log(self, unit: str) -> str:
        """What a unit has written, of all its starts."""
        return self.run("journalctl", "-u", unit, "-o", "cat", "--no-pager").stdout

    def close(self) -> None:
        """End all that runs in there, and remove it."""
        if self._process.poll() is None and self.pid:
            self.run("systemctl", "exit", check=False)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stderr is not None:
            self._process.stderr.close()
        with contextlib.suppress(OSError):
            (self._group / "cgroup.kill").write_text("1")
        for _ in range(100):
            with contextlib.suppress(OSError):
                for folder in sorted(self._group.rglob("*/"), reverse=True):
                    folder.rmdir()
                self._group.rmdir()
                break
            time.sleep(0.02)
        shutil.rmtree(self._base, ignore_errors=True)
