"""The units as they are shipped, under a real systemd: start, reload, watchdog, kept sockets, credentials, restarts."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import wait_until

from schedd import Client, authority

from .box import Box
from .install import ROOT, UNITS, install

pytestmark = pytest.mark.needs("systemd")

SCHEDD = "/opt/schedd/bin/schedd"
CONFIG = "/etc/schedd/config.toml"
JOURNAL = "/var/lib/private/schedd/journal.db"
#: A block of an INI file in a page.
INI = re.compile(r"```ini\n(.*?)```", re.DOTALL)
#: So that tests wait less: nothing of what is under test is changed by it.
QUICK = """
[Service]
RestartSec=100ms
WatchdogSec=2
"""
#: Connects again and again until it is told to stop, and says how often, and how often it was refused.
KNOCK = """
import socket, sys, threading
stop = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
done = refused = 0
while not stop.is_set():
    try:
        socket.create_connection(("127.0.0.1", 7077), timeout=20).close()
        done += 1
        if done == 1:
            print("first", flush=True)
    except OSError:
        refused += 1
print(done, refused)
"""


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """A machine on which schedd was just installed."""
    files = tmp_path_factory.mktemp("box")
    files.chmod(0o755)  # it becomes the root of a file system that others read
    install(files)
    for unit in ("schedd.service", "schedd-worker.service"):
        folder = files / f"etc/systemd/system/{unit}.d"
        folder.mkdir(parents=True)
        (folder / "quick.conf").write_text(QUICK)
    with Box(files) as made:
        # As docs/service.md says it.
        made.run(SCHEDD, "install-service", "--now")
        made.run(SCHEDD, "install-service", "--worker", "--now")
        assert made.show("schedd", "ActiveState") == made.show("schedd-worker", "ActiveState") == "active"
        made.run("systemctl", "stop", "schedd-worker", "schedd")
        yield made


class Head:
    """The daemon in the box."""

    def __init__(self, box: Box) -> None:
        self.box = box
        self._clients: list[Client] = []

    def write(self, text: str, path: str = CONFIG) -> None:
        self.box.path(path).write_text(text)

    def start(self, text: str = "") -> None:
        self.write(text)
        self.box.run("systemctl", "start", "schedd")

    @property
    def pid(self) -> int:
        return int(self.show("MainPID"))

    def show(self, name: str) -> str:
        return self.box.show("schedd", name)

    def kill(self, number: signal.Signals) -> None:
        self.box.run("systemctl", "kill", "-s", number.name, "--kill-who=main", "schedd")

    def client(self) -> Client:
        """A client from outside, by the Unix socket."""
        self._clients.append(Client(f"unix:{self.box.path('/run/schedd/schedd.sock')}"))
        return self._clients[-1]

    def close(self) -> None:
        for client in self._clients:
            with contextlib.suppress(Exception):
                client.close()


@pytest.fixture
def head(box: Box) -> Iterator[Head]:
    """A daemon that has never run."""
    made = Head(box)
    yield made
    made.close()
    box.run("systemctl", "stop", "schedd-worker", check=False)
    box.run("systemctl", "stop", "schedd.socket", "schedd", check=False)
    box.run("systemctl", "reset-failed", check=False)
    box.run("sh", "-c", "rm -rf /var/lib/private/schedd /var/lib/schedd-worker/workers /etc/credstore")
    box.run("journalctl", "--rotate", check=False)
    box.run("journalctl", "--vacuum-time=1s", check=False)


@pytest.fixture
def worker(head: Head) -> Head:
    """The same with a worker of the machine, of four CPUs."""
    head.start("[worker]\ncpus = 4.0\n")
    head.box.run("systemctl", "start", "schedd-worker")
    client = head.client()
    wait_until(lambda: [w.status for w in client.workers()] == ["idle"], what="the worker is there")
    wait_until(lambda: "serves 127.0.0.1:7077" in head.box.show("schedd-worker", "StatusText"), what="it says so")
    return head


# ------------------------------------------------------------------------------------------------------------ units


@pytest.mark.parametrize(
    "unit", ["schedd.service", "schedd.socket", "schedd-worker.service", "schedd-worker@1.service"]
)
def test_nothing_is_to_be_said_of_the_units(box: Box, unit: str) -> None:
    ran = box.run("systemd-analyze", "verify", f"/etc/systemd/system/{unit}", check=False)
    assert (ran.returncode, ran.stdout + ran.stderr) == (0, "")


@pytest.mark.parametrize(
    "drop_in", [text for page in sorted(ROOT.glob("docs/*.md")) for text in INI.findall(page.read_text())]
)
def test_drop_ins_of_the_pages_can_be_pasted(box: Box, drop_in: str) -> None:
    first, text = drop_in.split("\n", 1)
    unit = first.removeprefix("# systemctl edit ")
    path = box.path(f"/etc/systemd/system/{unit}.service.d/pasted.conf")
    path.write_text(text)
    ran = box.run("systemd-analyze", "verify", f"/etc/systemd/system/{unit}.service", check=False)
    path.unlink()
    assert (ran.returncode, ran.stdout + ran.stderr) == (0, "")


@pytest.mark.parametrize(
    ("unit", "exposure"), [("schedd.service", 1.0), ("schedd-worker.service", 2.0), ("schedd-worker@.service", 2.0)]
)
def test_units_are_shut_in(box: Box, unit: str, exposure: float) -> None:
    ran = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", str(UNITS / unit)],
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", ran.stdout)
    assert found is not None, ran.stdout + ran.stderr
    assert float(found[1]) <= exposure


# ------------------------------------------------------------------------------------------------------- start, stop


def test_start_and_stop(head: Head) -> None:
    head.start('[policy]\nname = "fifo"\n')
    assert head.show("ActiveState") == "active"
    assert head.show("StatusText") == "0 queued; 0 on 0 workers; policy fifo"
    assert head.client().submit(["true"]).id == 1  # it answers once `start` has returned
    status = Path(f"/proc/{_outside(head)}/status").read_text()
    (uid,) = re.findall(r"^Uid:\t(\d+)\t", status, re.MULTILINE)
    assert 61184 <= int(uid) <= 65519  # of a user that systemd has made
    assert head.box.path(JOURNAL).stat().st_mode & 0o077 == 0
    began = time.monotonic()
    head.box.run("systemctl", "stop", "schedd")
    assert time.monotonic() - began < 30
    assert (head.show("Result"), head.show("ExecMainStatus")) == ("success", "0")
    head.box.run("systemctl", "start", "schedd")
    assert head.show("StatusText").startswith("1 queued; ")


def _outside(head: Head) -> int:
    """The daemon's process id as it is seen from here."""
    inside = str(head.pid)
    for path in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            text = path.read_text()
            if re.search(rf"^NSpid:\t\d+\t{inside}$", text, re.MULTILINE) and "schedd" in (
                path.parent / "cmdline"
            ).read_text(errors="replace"):
                return int(path.parent.name)
    raise AssertionError(f"process {inside} of the box is not to be seen")


def test_settings_that_cannot_be_used(head: Head) -> None:
    head.write('[policy]\nname = "lifo"\n')
    assert head.box.run("systemctl", "start", "schedd", check=False).returncode != 0
    assert (head.show("ExecMainStatus"), head.show("NRestarts"), head.show("ActiveState")) == ("7", "0", "failed")
    assert "policy.name: there is no policy 'lifo'" in head.box.log("schedd")


def test_port_that_is_taken_is_tried_again_until_it_is_free(head: Head) -> None:
    code = "import socket, sys; s = socket.create_server(('127.0.0.1', 7077)); print(flush=True); sys.stdin.read()"
    inside = ["nsenter", "-t", str(head.box.pid), "--all", "--", "/usr/bin/python3", "-c", code]
    with subprocess.Popen(inside, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        head.write("")
        head.box.run("systemctl", "start", "--no-block", "schedd")
        wait_until(lambda: int(head.show("NRestarts")) > 0, what="it is tried again")
        assert "status=9" in head.box.run("systemctl", "status", "schedd", check=False).stdout + head.box.log("schedd")
        other.communicate()
    wait_until(lambda: head.show("ActiveState") == "active", what="it listens")


# ------------------------------------------------------------------------------------------------------------ reload


def test_reload(head: Head) -> None:
    head.start('[policy]\nname = "fifo"\n')
    pid = head.pid
    head.write('[policy]\nname = "adaptive"\n[journal]\npath = "/elsewhere"\n')
    head.box.run("systemctl", "reload", "schedd")
    status = head.show("StatusText")
    assert "policy adaptive; reloaded at " in status
    assert status.endswith("needs a restart for journal.path")
    assert head.client().policy().name == "adaptive"
    assert (head.pid, head.show("ActiveState")) == (pid, "active")


def test_reload_of_a_bad_file_fails_and_changes_nothing(head: Head) -> None:
    head.start('[policy]\nname = "fifo"\n')
    pid = head.pid
    head.write('[policy]\nname = "batch"\n[limits]\nunfinished_mx = 5\n')
    ran = head.box.run("systemctl", "reload", "schedd", check=False)
    assert ran.returncode != 0
    assert (head.pid, head.show("ActiveState")) == (pid, "active")
    assert head.client().policy().name == "fifo"
    status = head.box.run("systemctl", "status", "schedd").stdout
    assert "RELOAD FAILED at " in status
    assert "limits.unfinished_mx is not a key of [limits]" in status
    log = head.box.log("schedd")
    assert "reload_failed" in log
    assert "hint=\"did you mean 'unfinished_max'?\"" in log
    head.write('[policy]\nname = "batch"\n')
    head.box.run("systemctl", "reload", "schedd")
    assert head.client().policy().name == "batch"


def test_policies_are_swapped_under_load_and_nothing_is_lost(worker: Head) -> None:
    client = worker.client()
    tasks = [client.submit(abs, -number, job="load") for number in range(200)]
    for name in ("fifo", "work_stealing", "adaptive", "batch", "load_balancing", "priority"):
        worker.write(f'[policy]\nname = "{name}"\n')
        worker.box.run("systemctl", "reload", "schedd")
        assert f"policy {name}" in worker.show("StatusText")
        tasks += [client.submit(abs, -number, job="load") for number in range(len(tasks), len(tasks) + 100)]
    assert [task.result(60) for task in tasks] == list(range(800))
    (job,) = client.jobs()
    assert (job.total, job.states["succeeded"]) == (800, 800)
    assert client.stats().attempts_by_cause == {"ok": 800}
    assert worker.box.log("schedd-worker").count("worker_connected") == 1


# ------------------------------------------------------------------------------------------------- failure and restart


def test_stopped_daemon_is_ended_by_its_watchdog_and_started_anew(head: Head) -> None:
    head.start()
    client = head.client()
    ids = [client.submit(["true"], hold=True).id for _ in range(5)]
    pid = head.pid
    head.kill(signal.SIGSTOP)
    wait_until(lambda: head.pid not in (0, pid) and head.show("ActiveState") == "active", what="it is started anew")
    assert head.show("NRestarts") == "1"
    log = head.box.log("schedd")
    assert "Watchdog timeout" in log
    assert "Fatal Python error: Aborted" in log  # and where it was then
    assert [task.state for task in head.client().tasks()] == ["held"] * len(ids)


def test_daemon_that_is_well_lives_on(head: Head) -> None:
    """Longer than the watchdog waits, with work."""
    head.start()
    pid, client = head.pid, head.client()
    end = time.monotonic() + 3
    while time.monotonic() < end:
        client.submit(["true"], hold=True)
    assert (head.pid, head.show("NRestarts")) == (pid, "0")


def test_kill_9_restart_and_the_worker_is_adopted(worker: Head) -> None:
    gate = "/var/lib/schedd-worker/gate"
    client = worker.client()
    task = client.submit(["sh", "-c", f"while [ ! -e {gate} ]; do sleep 0.05; done"])
    wait_until(lambda: client.show(task.id)[0][0].state == "running", what="it runs")
    pid = worker.pid
    worker.kill(signal.SIGKILL)
    wait_until(lambda: worker.pid not in (0, pid) and worker.show("ActiveState") == "active", what="it is back")
    again = worker.client()
    wait_until(lambda: again.show(task.id)[0][0].state == "running", what="the worker is back with what it runs")
    worker.box.path(gate).touch()
    (end,) = again.wait([task.id])
    assert end.state == "succeeded"
    assert again.show(task.id)[0][0].attempt == 1
    worker.box.path(gate).unlink()


def test_worker_lets_its_tasks_finish_and_each_has_a_group_of_its_own(worker: Head) -> None:
    gate = "/var/lib/schedd-worker/gate"
    client = worker.client()
    wait = f"while [ ! -e {gate} ]; do sleep 0.05; done"
    task = client.submit(["sh", "-c", f"cat /proc/self/cgroup > group; env > env; {wait}; echo through > end"])
    wait_until(lambda: worker.box.path("/var/lib/schedd-worker/env").exists(), what="it runs")
    worker.box.run("systemctl", "stop", "--no-block", "schedd-worker")
    wait_until(lambda: "is leaving, 1 tasks still run" in worker.box.show("schedd-worker", "StatusText"))
    worker.box.path(gate).touch()
    wait_until(lambda: worker.box.show("schedd-worker", "ActiveState") == "inactive", what="it has left")
    home = worker.box.path("/var/lib/schedd-worker")
    assert (home / "end").read_text() == "through\n"
    assert client.show(task.id)[0][0].state == "succeeded"
    assert "/system.slice/schedd-worker.service/" in (home / "group").read_text()
    told = (home / "env").read_text()
    assert "NOTIFY_SOCKET" not in told
    assert "WATCHDOG_USEC" not in told
    assert worker.box.show("schedd-worker", "ExecMainStatus") == "0"
    for name in ("end", "env", "group", "gate"):
        (home / name).unlink()


def test_root_backs_up_puts_back_and_salvages_and_the_service_can_open_it(head: Head) -> None:
    """As docs/journal.md and docs/service.md say it."""
    state = "/var/lib/schedd"
    head.start()
    task = head.client().submit(["true"], hold=True)
    head.box.run(SCHEDD, "--address", "unix:/run/schedd/schedd.sock", "backup", f"{state}/copy.db")
    head.box.run("mv", f"{state}/copy.db", "/root/copy.db")
    head.box.run("systemctl", "stop", "schedd")
    head.box.run("sh", "-c", f"rm {state}/journal.db*; cp /root/copy.db {state}/journal.db")
    head.box.run("chown", f"--reference={state}/", f"{state}/journal.db")
    head.box.run("systemctl", "start", "schedd")
    assert [row.id for row in head.client().tasks()] == [task.id]
    head.box.run("systemctl", "stop", "schedd")
    head.box.run(SCHEDD, "journal", "salvage", f"{state}/journal.db", f"{state}/new.db")
    head.box.run("sh", "-c", f"mv {state}/journal.db /root/old.db; mv {state}/new.db {state}/journal.db")
    head.box.run("systemctl", "start", "schedd")
    assert [row.id for row in head.client().tasks()] == [task.id]


# ------------------------------------------------------------------------------------------------------------ sockets


@contextlib.contextmanager
def knocking(box: Box) -> Iterator[list[int]]:
    """Connect again and again; afterwards the list has how often that went well, and how often not."""
    inside = ["nsenter", "-t", str(box.pid), "--all", "--", "/usr/bin/python3", "-c", KNOCK]
    counts: list[int] = []
    with subprocess.Popen(inside, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "first\n"
        yield counts
        told, _ = process.communicate()
        counts += map(int, told.split())


@pytest.mark.parametrize("unit", ["schedd.socket", "schedd.service"])
def test_nobody_is_refused_while_the_daemon_is_started_anew(head: Head, unit: str) -> None:
    """Either the socket unit holds what listens, or systemd keeps the socket that the daemon made."""
    head.write("")
    head.box.run("systemctl", "start", unit)
    if unit == "schedd.socket":
        assert head.show("ActiveState") == "inactive"
        ran = head.box.run(SCHEDD, "stats", "--json")  # which starts it
        assert '"address": "127.0.0.1:7077"' in ran.stdout
        assert head.show("ActiveState") == "active"
    with knocking(head.box) as counts:
        head.box.run("systemctl", "restart", "schedd")
        pid = head.pid
        head.kill(signal.SIGKILL)
        wait_until(lambda: head.pid not in (0, pid) and head.show("ActiveState") == "active", what="it is back")
    done, refused = counts
    assert refused == 0
    assert done > 10


def test_systemd_listens_in_place_of_a_daemon_that_ran(head: Head) -> None:
    """As docs/service.md says it."""
    head.start()
    assert head.box.run("systemctl", "enable", "--now", "schedd.socket", check=False).returncode != 0
    head.box.run("systemctl", "disable", "--now", "schedd")
    head.box.run("systemctl", "enable", "--now", "schedd.socket")
    assert (head.box.show("schedd.socket", "ActiveState"), head.show("ActiveState")) == ("active", "inactive")
    head.box.run(SCHEDD, "stats")
    assert head.show("ActiveState") == "active"
    head.box.run("systemctl", "disable", "--now", "schedd.socket")
    head.box.run("systemctl", "enable", "schedd")


def test_worker_waits_while_the_daemon_is_started_anew(worker: Head) -> None:
    worker.box.run("systemctl", "restart", "schedd")
    client = worker.client()
    assert client.submit(abs, -1).result(30) == 1
    assert "Connection refused" not in worker.box.log("schedd-worker")


# --------------------------------------------------------------------------------------------------------- credentials


def test_credentials_are_there_where_they_exist_and_nobody_elses_to_read(head: Head) -> None:
    folder = head.box.path("/etc/credstore")
    folder.mkdir(mode=0o700)
    (folder / "schedd.tokens").write_text("secret\n")
    (folder / "schedd.tokens").chmod(0o600)
    head.start()
    outside = Path(f"/proc/{_outside(head)}")
    environ = dict(line.split("=", 1) for line in (outside / "environ").read_text().split("\0") if line)
    given = environ["CREDENTIALS_DIRECTORY"]
    assert [path.name for path in (outside / f"root{given}").iterdir()] == ["schedd.tokens"]
    assert (outside / f"root{given}/schedd.tokens").read_text() == "secret\n"
    ran = head.box.run("runuser", "-u", "nobody", "--", "cat", f"{given}/schedd.tokens", check=False)
    assert ran.returncode != 0
    assert "secret" not in ran.stdout


def test_token_of_a_worker_that_its_tasks_cannot_read(head: Head) -> None:
    """As docs/security.md says it."""
    head.start('[auth]\nrequired = true\n[worker]\ntoken_file = "-"\n')
    tokens, token = "/var/lib/schedd/tokens.json", "/etc/schedd/worker.token"
    head.box.run(SCHEDD, "token", "create", "--role", "worker", "--tokens", tokens, "--out", token)
    head.box.run("systemctl", "reload", "schedd")
    drop_in = head.box.path("/etc/systemd/system/schedd-worker.service.d/token.conf")
    drop_in.write_text(f"[Service]\nStandardInput=file:{token}\n")
    head.box.run("systemctl", "daemon-reload")
    try:
        head.box.run("systemctl", "start", "schedd-worker")
        client = head.client()
        wait_until(lambda: [w.status for w in client.workers()] == ["idle"], what="the worker was let in")
        (end,) = client.wait([client.submit(["cat", token]).id])
        assert "Permission denied" in end.message
    finally:
        drop_in.unlink()
        head.box.run("systemctl", "stop", "schedd-worker")
        head.box.run("systemctl", "daemon-reload")
        head.box.run("rm", token)


def test_tokens_and_tls_of_a_service_of_which_nobody_knows_the_user(head: Head, tmp_path: Path) -> None:
    """Root makes and revokes tokens in a file of the service's own; its key comes from the manager."""
    ca = authority.make_authority(tmp_path)
    cert = authority.make_server(tmp_path, ["127.0.0.1"], 30)
    folder = head.box.path("/etc/credstore")
    folder.mkdir(mode=0o700)
    for name, file in (("schedd.crt", cert), ("schedd.key", cert.with_suffix(".key"))):
        (folder / name).write_bytes(file.read_bytes())
        (folder / name).chmod(0o600)
    head.write(ca.read_text(), "/etc/schedd/ca.pem")
    head.start('[auth]\nrequired = true\n[tls]\ncert = "credential:schedd.crt"\nkey = "credential:schedd.key"\n')
    where, token = "/var/lib/schedd/tokens.json", "/run/alice.token"
    ask = [SCHEDD, "--address", "127.0.0.1:7077", "--tls-ca", "/etc/schedd/ca.pem", "--token-file", token, "tasks"]
    head.box.run(SCHEDD, "token", "create", "--role", "client", "--name", "alice", "--tokens", where, "--out", token)
    assert head.box.run(*ask, check=False).returncode == 10  # it is not known yet
    head.box.run("systemctl", "reload", "schedd")
    head.box.run(*ask)
    mode, uid = head.box.run("stat", "-c", "%a %u", where).stdout.split()
    assert mode == "600"
    assert uid != "0"
    head.box.run(SCHEDD, "token", "revoke", "alice", "--tokens", where)
    head.box.run("systemctl", "reload", "schedd")
    assert head.box.run(*ask, check=False).returncode == 10
    head.box.run("rm", token)
