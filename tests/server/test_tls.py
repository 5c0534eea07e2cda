"""TLS at the daemon: who gets through, and that both sides say in words why somebody does not."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from helpers import Cluster, Process, wait_until

from schedd import authority
from schedd.address import parse_address
from schedd.client.sync import Client
from schedd.core.model import WorkerId, WorkerResources
from schedd.credentials import VARIABLES, Credentials
from schedd.errors import AuthenticationError, ConnectionLost, RequestRefused
from schedd.tls import client_context
from schedd.wire import messages as m
from schedd.wire.auth import Role, Token
from schedd.wire.framing import encode_frame

from .peers import CLIENT_HELLO, RawClient, RawPeer, greeting
from .test_tokens import ALICE, TOKENS, write


class Lab:
    """A folder with an authority, certificates and tokens."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca = authority.make_authority(folder / "tls")
        self.cert = authority.make_server(folder / "tls", ["127.0.0.1", "localhost"], 30)
        write(folder / "tokens.json", (ALICE, "alice"), (TOKENS[Role.WORKER], "w"), (TOKENS[Role.ADMIN], "root"))
        for name, token in (("alice", ALICE), ("worker", TOKENS[Role.WORKER])):
            file = folder / f"{name}.token"
            file.write_text(token.text())
            file.chmod(0o600)

    def config(self, more: str = "", cert: Path | None = None) -> str:
        cert = cert or self.cert
        return (
            f'[auth]\ntokens = "{self.folder}/tokens.json"\nrequired = true\n'
            f'[tls]\ncert = "{cert}"\nkey = "{cert.with_suffix(".key")}"\n{more}'
        )

    def credentials(self, token: Token | None = ALICE, ca: Path | None = None, **more: str) -> Credentials:
        return Credentials(token, str(ca or self.ca), **more)

    def context(self) -> ssl.SSLContext:
        return client_context(self.credentials())


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("lab"))


@pytest.fixture(scope="module")
def secure(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A daemon that speaks TLS and asks for tokens."""
    with Cluster(tmp_path_factory.mktemp("secure")) as cluster:
        cluster.start_daemon(lab.config("[server]\nhandshake_timeout_s = 1.0\n"))
        yield cluster
        with RawClient(cluster.address, ALICE, tls=lab.context()) as client:
            assert isinstance(client.ask(m.GetStats), m.Stats)
        assert cluster.daemon.stop() == 0
        assert "Traceback" not in cluster.daemon.log(), cluster.daemon.log()[-5000:]


def fails(address: str, credentials: Credentials) -> AuthenticationError:
    with pytest.raises(AuthenticationError) as raised:
        Client(address, credentials=credentials)
    return raised.value


def heard(cluster: Cluster, words: str) -> None:
    wait_until(lambda: words in cluster.daemon.log(), what=f"the daemon says {words!r}")


def test_token_over_tls(secure: Cluster, lab: Lab) -> None:
    with Client(secure.address, credentials=lab.credentials()) as client:
        assert client.stats().connections
    port = parse_address(secure.address).port
    with Client(f"localhost:{port}", credentials=lab.credentials()) as client:
        assert client.stats().connections


def test_much_at_once_in_both_directions(secure: Cluster, lab: Lab) -> None:
    with RawClient(secure.address, ALICE, tls=lab.context()) as client:
        ids = client.submit(20, hold=True, argument=os.urandom(500_000))
        shown = client.ask(m.ListTasks, m.Selection(ids=ids), 20, 0, True)
        assert [len(detail.argument) for detail in shown.details] == [500_000] * 20
        client.ask(m.CancelTasks, m.Selection(ids=ids))


def test_nothing_older_than_tls_13(secure: Cluster, lab: Lab) -> None:
    context = ssl.create_default_context(cafile=lab.ca)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError), RawPeer(secure.address, tls=context):
        pass
    heard(secure, "tls_failed")


# ------------------------------------------------------------------------------------------- who does not get through


def test_wrong_authority(secure: Cluster, lab: Lab, tmp_path: Path) -> None:
    other = authority.make_authority(tmp_path / "other")
    error = fails(secure.address, lab.credentials(ca=other))
    assert error.message.startswith("no authority that we trust vouches for")
    assert "--tls-ca" in error.hint
    heard(secure, "tls_failed")


def test_certificate_that_has_expired(cluster: Cluster, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authority, "EARLY", timedelta(days=3))
    folder = cluster.folder / "old"
    folder.mkdir()
    for name in ("ca.pem", "ca.key"):
        (folder / name).write_bytes((lab.folder / "tls" / name).read_bytes())
    cluster.start_daemon(lab.config(cert=authority.make_server(folder, ["127.0.0.1"], -1)))
    error = fails(cluster.address, lab.credentials())
    assert "has expired" in error.message
    assert "schedd tls server" in error.hint


def test_certificate_for_another_name(secure: Cluster, lab: Lab) -> None:
    port = parse_address(secure.address).port
    error = fails(f"127.0.0.2:{port}", lab.credentials()) if _listens("127.0.0.2", port) else None
    for other in (error, fails(secure.address, lab.credentials(name="head.example"))):
        if other is not None:
            assert "is for another name" in other.message
            assert "--tls-name" in other.hint


def _listens(host: str, port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex((host, port)) == 0


def test_name_that_the_certificate_has_and_the_address_has_not(cluster: Cluster, lab: Lab) -> None:
    authority.make_server(lab.folder / "tls", ["head.example"], 30, replace=True)
    try:
        cluster.start_daemon(lab.config())
    finally:
        authority.make_server(lab.folder / "tls", ["127.0.0.1", "localhost"], 30, replace=True)
    assert "another name" in fails(cluster.address, lab.credentials()).message
    with Client(cluster.address, credentials=lab.credentials(name="head.example")) as client:
        assert client.stats().connections


def test_plain_words_to_a_port_that_speaks_tls(secure: Cluster) -> None:
    with RawPeer(secure.address) as peer:
        peer.write(greeting(CLIENT_HELLO))
        refused = peer.expect_refusal()
    assert refused.code == m.TLS_REQUIRED
    assert "--tls-ca" in refused.hint
    with pytest.raises(RequestRefused, match="this port speaks TLS"):
        Client(secure.address, credentials=Credentials(ALICE))
    heard(secure, "the peer does not speak TLS")


def test_tls_to_a_port_that_does_not_speak_it(cluster: Cluster, lab: Lab) -> None:
    cluster.start_daemon()
    error = fails(cluster.address, lab.credentials())
    assert "does not speak TLS" in error.message
    assert "[tls]" in error.hint
    heard(cluster, "the peer speaks TLS, and this port does not")


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00\x05hello", b"\x16", b"\xff" * 100])
def test_garbage_at_a_port_that_speaks_tls(secure: Cluster, lab: Lab, data: bytes) -> None:
    where = parse_address(secure.address)
    with socket.create_connection((where.host, where.port)) as sock:
        sock.settimeout(20)
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(4096):
            pass
    with RawClient(secure.address, ALICE, tls=lab.context()) as client:
        assert isinstance(client.ask(m.GetStats), m.Stats)


def test_silence_at_a_port_that_speaks_tls(secure: Cluster) -> None:
    where = parse_address(secure.address)
    with socket.create_connection((where.host, where.port)) as silent:
        silent.settimeout(20)
        assert silent.recv(1) == b""
    heard(secure, "not a word within 1 s")
    with socket.create_connection((where.host, where.port)) as half:
        half.settimeout(20)
        half.sendall(b"\x16\x03\x01\x02\x00")
        assert half.recv(1) == b""


def test_certificate_of_the_client_is_asked_for(cluster: Cluster, lab: Lab) -> None:
    cluster.start_daemon(lab.config(f'client_ca = "{lab.ca}"\n'))
    with pytest.raises(RequestRefused) as refused:
        Client(cluster.address, credentials=lab.credentials())
    assert refused.value.code == m.CERTIFICATE_REQUIRED
    assert "--tls-cert" in refused.value.hint
    heard(cluster, "shows no certificate")
    own = authority.make_client(lab.folder / "tls", "node7", 30, replace=True)
    with Client(cluster.address, credentials=shows(lab, own)) as client:
        assert client.stats().connections
    other = cluster.folder / "other"
    authority.make_authority(other)
    stranger = authority.make_client(other, "node8", 30)
    for cert in (stranger, lab.cert):  # that of the daemon is none of a client, though of the same authority
        with pytest.raises(ConnectionLost) as lost:
            Client(cluster.address, credentials=shows(lab, cert))
        assert "may not accept our certificate" in lost.value.hint
    heard(cluster, "the certificate of the peer is not valid: unable to get local issuer certificate")
    heard(cluster, "the certificate of the peer is not valid: unsuitable certificate purpose")


def shows(lab: Lab, cert: Path) -> Credentials:
    return lab.credentials(cert=str(cert), key=str(cert.with_suffix(".key")))


def test_limit_of_those_who_have_proven_nothing(cluster: Cluster, lab: Lab) -> None:
    config = lab.config().replace("required = true", "required = true\nunproven_per_address_max = 2")
    where = parse_address(cluster.start_daemon(config).address)
    slow = [socket.create_connection((where.host, where.port)) for _ in range(2)]
    for sock in slow:
        sock.sendall(b"\x16\x03\x01\x02\x00")
    with socket.create_connection((where.host, where.port)) as third:
        third.settimeout(20)
        third.sendall(b"\x16")
        with contextlib.suppress(ConnectionResetError):  # what it has sent was not read
            assert third.recv(1) == b""
    heard(cluster, "too_many_unproven")
    for sock in slow:
        sock.close()

    def is_let_in() -> bool:
        try:
            with RawClient(cluster.address, ALICE, tls=lab.context()):
                return True
        except OSError:
            return False

    wait_until(is_let_in)


# -------------------------------------------------------------------------------------------------- in between, reload


class Between:
    """Somebody with a certificate of their own that the client trusts, who passes on what both sides say."""

    def __init__(self, lab: Lab, address: str) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        cert = authority.make_server(lab.folder / "between", ["127.0.0.1"], 30)
        self._context.load_cert_chain(cert, cert.with_suffix(".key"))
        self._behind = RawPeer(address, tls=lab.context())

    def relay(self, sock: socket.socket, frames: int) -> None:
        with self._context.wrap_socket(sock, server_side=True) as front, self._behind as behind:
            front.settimeout(20)
            for _ in range(frames):
                behind.write(front.recv(1 << 16))
                front.sendall(behind.socket.recv(1 << 16))


def test_proof_is_bound_to_the_certificate(secure: Cluster, lab: Lab) -> None:
    """The client trusts the authority of who sits in between; its proof is still about the wrong certificate."""
    from threading import Thread

    folder = lab.folder / "between"
    folder.mkdir()
    for name in ("ca.pem", "ca.key"):
        (folder / name).write_bytes((lab.folder / "tls" / name).read_bytes())
    between = Between(lab, secure.address)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            sock, _ = listener.accept()
            between.relay(sock, 2)

        thread = Thread(target=serve)
        thread.start()
        try:
            with RawPeer(f"127.0.0.1:{listener.getsockname()[1]}", tls=lab.context()) as peer:
                prover, challenge = peer.knock(ALICE)
                frame = greeting(CLIENT_HELLO)
                peer.write(encode_frame(prover.prove(challenge, frame[4:])) + frame)
                assert peer.expect(m.Refused).code == m.BAD_TOKEN
        finally:
            thread.join(20)
    heard(secure, "another certificate than ours in between")


def test_reload_takes_a_new_certificate_and_keeps_connections(cluster: Cluster, lab: Lab) -> None:
    cert = authority.make_server(lab.folder / "tls", ["127.0.0.1", "localhost"], 30, replace=True)
    cluster.start_daemon(lab.config())
    with RawClient(cluster.address, ALICE, tls=lab.context()) as before:
        authority.make_server(lab.folder / "tls", ["127.0.0.1", "localhost"], 30, replace=True)
        cluster.daemon.signal(signal.SIGHUP)
        heard(cluster, "secrets_read")
        with RawClient(cluster.address, ALICE, tls=lab.context()) as after:
            assert after.certificate != before.certificate
            assert isinstance(after.ask(m.GetStats), m.Stats)
        assert isinstance(before.ask(m.GetStats), m.Stats)
        cert.write_text("nonsense")
        cluster.daemon.signal(signal.SIGHUP)
        heard(cluster, "reload_failed")
        with RawClient(cluster.address, ALICE, tls=lab.context()) as again:
            assert again.certificate == after.certificate
            # What OpenSSL would take, but we cannot read.
            authority.make_server(lab.folder / "tls", ["127.0.0.1", "localhost"], 30, replace=True)
            cert.write_text(cert.read_text().replace(" CERTIFICATE-", " X509 CERTIFICATE-"))
            cluster.daemon.signal(signal.SIGHUP)
            heard(cluster, "has no certificate that begins with")
            assert isinstance(again.ask(m.GetStats), m.Stats)
    authority.make_server(lab.folder / "tls", ["127.0.0.1", "localhost"], 30, replace=True)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda cert: cert.with_suffix(".key").chmod(0o644), "may be read by others"),
        (lambda cert: cert.with_suffix(".key").unlink(), "No such file"),
        (lambda cert: cert.write_text("nonsense"), "cannot be used"),
        (lambda cert: cert.with_suffix(".key").write_text("nonsense"), "cannot be used"),
    ],
)
def test_daemon_with_files_that_cannot_be_used_does_not_start(
    cluster: Cluster, lab: Lab, spoil: Callable[[Path], object], words: str
) -> None:
    folder = cluster.folder / "spoilt"
    authority.make_authority(folder)
    cert = authority.make_server(folder, ["127.0.0.1"], 30)
    spoil(cert)
    daemon = cluster.start_daemon(lab.config(cert=cert), wait=False)
    assert daemon.wait() == 7
    assert words in daemon.log()
    assert "Traceback" not in daemon.log()


# -------------------------------------------------------------------------------------------------- off loopback


def test_off_loopback_is_refused_without_tls(cluster: Cluster) -> None:
    daemon = cluster.start_daemon(listen="0.0.0.0:0", wait=False)
    assert daemon.wait() == 7
    assert "open to other machines, and there is no TLS" in daemon.log()
    assert "schedd tls init" in daemon.log()


def test_off_loopback_with_tls_asks_for_tokens_by_itself(cluster: Cluster, lab: Lab) -> None:
    cluster.start_daemon(lab.config().replace("required = true", ""), listen="0.0.0.0:0")
    port = parse_address(cluster.address).port
    with pytest.raises(RequestRefused, match="asks for a token"):
        Client(f"127.0.0.1:{port}", credentials=lab.credentials(None))
    with Client(f"127.0.0.1:{port}", credentials=lab.credentials()) as client:
        assert client.stats().connections


@pytest.mark.parametrize(("more", "without"), [("", "TLS tokens"), ("[auth]\nrequired = true\n", "TLS")])
def test_insecure_is_logged_with_what_is_missing(cluster: Cluster, more: str, without: str) -> None:
    cluster.start_daemon(f"[server]\ninsecure = true\n{more}", listen="0.0.0.0:0")
    wait_until(lambda: "open_to_the_network" in cluster.daemon.log())
    line = next(line for line in cluster.daemon.log().splitlines() if "open_to_the_network" in line)
    assert "WARNING" in line
    assert f'without="{without}"' in line or f"without={without} " in line


# ------------------------------------------------------------------------------------------------------- whole programs


def start_worker(cluster: Cluster, lab: Lab, *options: str, stdin: Path | None = None) -> Process:
    argv = [sys.executable, "-m", "schedd.cli", "worker", "--connect", cluster.address, "--name", "w1", "--cpus", "2"]
    argv += ["--state-dir", str(cluster.folder / "state"), "--tls-ca", str(lab.ca), *options]
    if stdin is not None:
        argv = ["sh", "-c", f'exec "$@" < {stdin}', "sh", *argv]
    process = Process("w1", argv, cluster.folder / "w1.log", cluster.env())
    cluster.processes.append(process)
    return process


#: Prints what it finds of a token in its environment, and in /proc of all processes.
SEARCH = r"""
import os, sys
secret = bytes.fromhex(sys.argv[1])
found = [name for name in os.environ if name.startswith(("SCHEDD_TO", "SCHEDD_TL", "CREDENTIALS"))]
seen = 0
for pid in filter(str.isdigit, os.listdir("/proc")):
    for name in ("environ", "cmdline"):
        try:
            with open(f"/proc/{pid}/{name}", "rb") as file:
                data = file.read()
        except OSError:
            continue
        seen += 1
        found += [f"{pid}/{name}"] * (secret in data)
print("found", found, "seen", seen > 0)
"""


@pytest.mark.parametrize("by_stdin", [False, True])
def test_task_finds_no_token(cluster: Cluster, lab: Lab, by_stdin: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.start_daemon(lab.config())
    token = lab.folder / "worker.token"
    for name in VARIABLES:  # what a worker may have been given so, no task gets either
        monkeypatch.setenv(name, "/nowhere")
    given = "-" if by_stdin else str(token)
    files = ["--tls-cert", str(lab.cert), "--tls-key", str(lab.cert.with_suffix(".key")), "--tls-name", "127.0.0.1"]
    start_worker(cluster, lab, "--token-file", given, *files, stdin=token if by_stdin else None)
    secret = TOKENS[Role.WORKER].text().rpartition(".")[2].encode()
    with Client(cluster.address, credentials=lab.credentials()) as client:
        task = client.submit([sys.executable, "-c", SEARCH, secret.hex()])
        assert task.wait(60).state == "succeeded"
        assert client.read_log(task.id).data.decode().strip() == "found [] seen True"
        for name in VARIABLES:
            assert client.submit("os:getenv", name).result(60) is None


#: Becomes another user, closes its memory as a worker does, and lets a task of the same user try to read it.
CLOSED = r"""
import os, sys
from schedd.worker.processes import PR_SET_DUMPABLE, prctl
os.setgid(40001); os.setuid(40001); prctl(PR_SET_DUMPABLE, int(sys.argv[1]))
pid = os.getpid()
if not os.fork():
    look = "for name in mem environ maps; do (: < /proc/$1/$name) 2>&- && echo open || echo closed; done"
    os.execv("/bin/sh", ["sh", "-c", look, "sh", str(pid)])
os.wait()
"""


@pytest.mark.needs("root")
@pytest.mark.parametrize(("dumpable", "word"), [(0, "closed"), (1, "open")])
def test_memory_of_a_worker_with_a_token_is_closed_to_its_own_user(dumpable: int, word: str) -> None:
    argv = [sys.executable, "-c", CLOSED, str(dumpable)]
    ran = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True)
    assert ran.stdout.split() == [word] * 3, ran


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--token-file", "ALICE"], "with which it cannot be a worker"),
        ([], "this daemon asks for a token"),
        (["--token-file", "WORKER", "--tls-name", "nowhere"], "another name"),
    ],
)
def test_worker_that_is_not_let_in_says_why_and_ends(secure: Cluster, lab: Lab, options: list[str], words: str) -> None:
    files = {"ALICE": lab.folder / "alice.token", "WORKER": lab.folder / "worker.token"}
    worker = start_worker(secure, lab, *[str(files.get(word, word)) for word in options])
    assert worker.wait(60) == 3
    assert words in worker.log()
    worker.log_path.unlink()


def test_worker_whose_token_was_revoked_keeps_what_it_runs_and_comes_back(cluster: Cluster, lab: Lab) -> None:
    tokens = cluster.folder / "tokens.json"
    write(tokens, (ALICE, "alice"), (TOKENS[Role.WORKER], "w"))
    cluster.start_daemon(lab.config().replace(f"{lab.folder}/tokens.json", str(tokens)))
    start_worker(cluster, lab, "--token-file", str(lab.folder / "worker.token"))
    flag = cluster.folder / "flag"
    with Client(cluster.address, credentials=lab.credentials()) as client:
        task = client.submit(["sh", "-c", f"until [ -e {flag} ]; do sleep 0.05; done"])
        wait_until(lambda: client.show(task.id)[0][0].state == "running")
        write(tokens, (ALICE, "alice"))
        cluster.daemon.signal(signal.SIGHUP)
        wait_until(lambda: "the token was not accepted" in (cluster.folder / "w1.log").read_text())
        write(tokens, (ALICE, "alice"), (TOKENS[Role.WORKER], "w"))
        cluster.daemon.signal(signal.SIGHUP)
        flag.touch()
        done = task.wait(60)
        assert (done.state, done.attempt) == ("succeeded", 1)


def test_two_workers_of_one_name_and_incarnation_with_other_tokens(secure: Cluster, lab: Lab) -> None:
    """Who has another token cannot take over the connection of a worker, though it knows all that it says."""
    hello = m.Hello(m.PROTOCOL, "test", m.WorkerHello(WorkerId("same"), "1", WorkerResources(cpus=0)))
    with (
        RawPeer(secure.address, tls=lab.context()) as first,
        RawPeer(secure.address, tls=lab.context()) as second,
        RawPeer(secure.address, tls=lab.context()) as third,
    ):
        first.greet_with(TOKENS[Role.WORKER], hello)
        with pytest.raises(EOFError, match="name_taken"):
            second.greet_with(TOKENS[Role.ADMIN], hello)
        third.greet_with(TOKENS[Role.WORKER], hello)


def test_client_that_shows_nothing_at_a_closed_port_is_not_kept_waiting(secure: Cluster) -> None:
    with pytest.raises((RequestRefused, ConnectionLost)):
        Client(secure.address, credentials=Credentials())


# ------------------------------------------------------------------------------------------------ settings read again


def test_reload_changes_who_is_an_administrator_and_names_what_waits_for_a_restart(cluster: Cluster, lab: Lab) -> None:
    cluster.start_daemon(lab.config())
    settings = next(cluster.folder.glob("config-*.toml"))
    settings.write_text(lab.config().replace("required = true", 'required = false\nadmins = ["root"]'))
    cluster.daemon.signal(signal.SIGHUP)
    heard(cluster, "needs_restart=auth.required")
    with pytest.raises(RequestRefused, match="asks for a token"):
        Client(cluster.address, credentials=lab.credentials(None))
    settings.write_text(lab.config().replace("required = true", 'required = true\nadmins = ["nobody-at-all"]'))
    cluster.daemon.signal(signal.SIGHUP)
    heard(cluster, "there is no user 'nobody-at-all'")
    settings.write_text(lab.config().partition("[tls]")[0])
    cluster.daemon.signal(signal.SIGHUP)
    heard(cluster, "needs_restart=tls.cert,tls.key")
    with Client(cluster.address, credentials=lab.credentials()) as client:
        assert client.stats().connections
