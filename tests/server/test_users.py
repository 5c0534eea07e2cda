"""Users of one machine at the Unix socket: the kernel says who they are, and tasks are their own."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import Cluster, wait_until

from schedd.core.model import TaskId, WorkerId, WorkerResources
from schedd.wire import messages as m

from .peers import RawClient, RawPeer, RawWorker, greeting

pytestmark = pytest.mark.needs("root")

ALICE, BOB, CAROL, LAB = 40001, 40002, 40003, 40050


@contextlib.contextmanager
def user(uid: int, *groups: int) -> Iterator[None]:
    """Be somebody else, for as long as it takes to connect."""
    before = os.getgroups()
    os.setgroups(groups)
    os.setegid(uid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(before)


@pytest.fixture(scope="module")
def socket_path() -> Iterator[Path]:
    """A socket that all users may connect to; where temporary files of tests are, they may not look."""
    folder = Path(tempfile.mkdtemp(prefix="schedd-users-"))
    folder.chmod(0o755)
    with Cluster(folder) as cluster:
        path = folder / "schedd.sock"
        cluster.start_daemon(
            f'[server]\nsocket = "{path}"\nsocket_mode = 0o666\n'
            f"[auth]\nrequired = true\nadmins = [{CAROL}]\nadmin_groups = [{LAB}]\n"
        )
        yield path
        assert cluster.daemon.stop() == 0
        assert "Traceback" not in cluster.daemon.log()
    shutil.rmtree(folder)


@contextlib.contextmanager
def client_of(path: Path, uid: int, *groups: int) -> Iterator[RawClient]:
    with user(uid, *groups):
        client = RawClient(f"unix:{path}")
    with client:
        yield client


def cancel(client: RawClient, task_id: int) -> m.Changed:
    changed = client.ask(m.CancelTasks, m.Selection(ids=[TaskId(task_id)]))
    assert isinstance(changed, m.Changed), changed
    return changed


def test_task_belongs_to_who_submitted_it(socket_path: Path) -> None:
    with client_of(socket_path, ALICE) as alice, client_of(socket_path, BOB) as bob:
        [task_id] = alice.submit(hold=True)
        assert bob.view(task_id).owner == alice.view(task_id).owner == str(ALICE)
        assert cancel(bob, task_id).unchanged == [(task_id, f"belongs to {ALICE}")]
        assert bob.state_of(task_id) == "held"
        assert cancel(alice, task_id).changed == 1


@pytest.mark.parametrize(("uid", "groups"), [(0, ()), (CAROL, ()), (BOB, (LAB,))])
def test_administrator_changes_everybodys(socket_path: Path, uid: int, groups: tuple[int, ...]) -> None:
    with client_of(socket_path, ALICE) as alice, client_of(socket_path, uid, *groups) as admin:
        [task_id] = alice.submit(hold=True)
        assert cancel(admin, task_id).changed == 1
        assert isinstance(admin.ask(m.DrainWorkers, []), m.Changed)


def test_what_users_may_not(socket_path: Path) -> None:
    with client_of(socket_path, ALICE) as alice:
        for kind, fields in ((m.DrainWorkers, [[]]), (m.BackUp, ["/tmp/x"])):
            declined = alice.ask(kind, *fields)
            assert isinstance(declined, m.RequestFailed)
            assert declined.code == m.FORBIDDEN
            assert "admin" in declined.hint


def test_user_cannot_be_a_worker(socket_path: Path) -> None:
    hello = m.Hello(m.PROTOCOL, "test", m.WorkerHello(WorkerId("w"), "1", WorkerResources()))
    with user(ALICE):
        peer = RawPeer(f"unix:{socket_path}")
    with peer:
        peer.write(greeting(hello))
        assert peer.expect_refusal().code == m.FORBIDDEN
    with RawWorker(f"unix:{socket_path}", "mine"), client_of(socket_path, ALICE) as alice:
        assert alice.worker("mine") is not None


def test_socket_is_the_daemons_own_unless_said_otherwise(cluster: Cluster) -> None:
    path = cluster.folder / "own.sock"
    cluster.start_daemon(f'[server]\nsocket = "{path}"\n')
    wait_until(path.exists)
    assert path.stat().st_mode & 0o777 == 0o600
    # TCP on loopback is open beside it: somebody should know.
    assert "open_to_this_machine" in cluster.daemon.log()


def test_list_of_tasks_shows_owners_where_there_are_any(cluster: Cluster) -> None:
    path = cluster.folder / "own.sock"
    cluster.start_daemon(f'[server]\nsocket = "{path}"\n')
    wait_until(path.exists)

    def schedd(*words: str) -> str:
        argv = [sys.executable, "-m", "schedd.cli", *words]
        return subprocess.run(argv, env=cluster.env(), check=True, capture_output=True, text=True).stdout

    schedd("--address", f"unix:{path}", "submit", "--hold", "--", "true")
    assert schedd("--address", cluster.address, "tasks").split()[:3] == ["id", "owner", "job"]
    assert "owner      root" in schedd("--address", cluster.address, "show", "1")
