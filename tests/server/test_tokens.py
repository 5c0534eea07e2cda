"""Tokens at the daemon: who is let in as what, what does not let in, and what a reload changes."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import Cluster, wait_until
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from schedd.core.model import TaskId, WorkerId, WorkerResources
from schedd.credentials import Credentials
from schedd.errors import ConfigError, ConnectionLost, RemoteProtocolError, RequestRefused
from schedd.server.access import Access, Door, Identity
from schedd.server.arrivals import Arrivals
from schedd.server.handshake import Denied, Handshake
from schedd.server.tokens import changing, check_name, load_tokens
from schedd.wire import messages as m
from schedd.wire.auth import ID_BYTES, SECRET_BYTES, Prover, Role, Token, make_token, verifier_of
from schedd.wire.framing import HELLO_BYTES_MAX, KNOCK_BYTES_MAX, encode_frame

from .peers import CLIENT_HELLO, RawClient, RawPeer, greeting
from .test_access import CHANGES, READS, REQUESTS

SELECTION = m.Selection(ids=[TaskId(1)])
#: A request of each kind that the daemon understands.
EXAMPLES: dict[type[Any], tuple[Any, ...]] = {
    m.Submit: ([], []),
    m.ListTasks: (SELECTION,),
    m.ListJobs: (),
    m.ListWorkers: (),
    m.GetStats: (),
    m.GetPolicy: (),
    m.GetKinds: (),
    m.ExplainTask: (TaskId(1),),
    m.WatchTasks: (SELECTION,),
    m.CancelTasks: (SELECTION,),
    m.PreemptTasks: (SELECTION,),
    m.HoldTasks: (SELECTION,),
    m.ReleaseTasks: (SELECTION,),
    m.SetTasks: (SELECTION, 1.0),
    m.SetPriorities: ([(TaskId(1), 1.0)],),
    m.DrainWorkers: ([],),
    m.ReadLog: (TaskId(1),),
    m.ListHistory: (),
    m.ListEvents: (),
    m.BackUp: ("not absolute",),
    m.Reload: (),
}
MAY = {Role.READ_ONLY: READS, Role.CLIENT: READS | CHANGES, Role.ADMIN: {kind.__name__ for kind in REQUESTS}}


def number(value: int) -> bytes:
    return value.to_bytes(ID_BYTES + SECRET_BYTES, "big")


TOKENS = {role: make_token(role, number(i + (i << 300))) for i, role in enumerate(Role, 1)}
ALICE, BOB = make_token(Role.CLIENT, number(2**310 + 1)), make_token(Role.CLIENT, number(2**311 + 2))


def write(path: Path, *given: tuple[Token, str]) -> None:
    with changing(path) as tokens:
        tokens.clear()
        tokens.update({token.id: verifier_of(token, name) for token, name in given})


def start(cluster: Cluster, more: str = "") -> str:
    cluster.start_daemon(f'[auth]\nrequired = true\ntokens = "{cluster.folder}/tokens.json"\n{more}')
    return cluster.address


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A daemon that lets in with tokens only."""
    with Cluster(tmp_path_factory.mktemp("closed")) as cluster:
        named = [(token, str(role)) for role, token in TOKENS.items()]
        write(cluster.folder / "tokens.json", *named, (ALICE, "alice"), (BOB, "bob"))
        start(cluster)
        yield cluster
        assert cluster.daemon.stop() == 0
        assert "Traceback" not in cluster.daemon.log(), cluster.daemon.log()[-5000:]


@pytest.fixture
def address(closed: Cluster) -> str:
    return closed.address


def refusal(address: str, *frames: bytes) -> m.Refused:
    with RawPeer(address) as peer:
        for frame in frames:
            peer.write(frame)
        return peer.expect_refusal()


# ---------------------------------------------------------------------------------------------------------- the matrix


@pytest.mark.parametrize("role", MAY)
def test_every_request_of_every_role_at_the_daemon(address: str, role: Role) -> None:
    assert set(EXAMPLES) == set(REQUESTS)
    with RawClient(address, TOKENS[role]) as client:
        for kind, fields in EXAMPLES.items():
            said = client.ask(kind, *fields)
            is_forbidden = isinstance(said, m.RequestFailed) and said.code == m.FORBIDDEN
            assert is_forbidden == (kind.__name__ not in MAY[role]), (kind, said)


@pytest.mark.parametrize("role", Role)
def test_every_role_as_a_worker_and_as_a_client(address: str, role: Role) -> None:
    worker = m.Hello(m.PROTOCOL, "test", m.WorkerHello(WorkerId(f"w-{role}"), "1", WorkerResources()))
    for hello, may in ((worker, (Role.WORKER, Role.ADMIN)), (CLIENT_HELLO, (Role.CLIENT, Role.ADMIN, Role.READ_ONLY))):
        with RawPeer(address) as peer:
            prover, challenge = peer.knock(TOKENS[role])
            frame = greeting(hello)
            peer.write(encode_frame(prover.prove(challenge, frame[4:])) + frame)
            if role in may:
                prover.check(peer.expect(m.Welcome))
            else:
                assert peer.expect_refusal().code == m.FORBIDDEN


@pytest.mark.parametrize("kind", EXAMPLES, ids=lambda kind: str(kind.__name__))
def test_worker_that_asks_as_a_client_has_broken_the_protocol(address: str, kind: type[Any]) -> None:
    hello = m.Hello(m.PROTOCOL, "test", m.WorkerHello(WorkerId("asks"), "1", WorkerResources(cpus=0)))
    with RawPeer(address) as peer:
        peer.greet_with(TOKENS[Role.WORKER], hello)
        peer.send(kind(1, *EXAMPLES[kind]))
        assert peer.expect_refusal().code == m.BAD_REQUEST


def test_tasks_belong_to_the_name_of_the_token(address: str) -> None:
    with (
        RawClient(address, ALICE) as alice,
        RawClient(address, BOB) as bob,
        RawClient(address, TOKENS[Role.ADMIN]) as admin,
    ):
        first, second = alice.submit(2, hold=True)
        assert bob.view(first).owner == "alice"
        changed = bob.ask(m.CancelTasks, m.Selection(ids=[first]))
        assert changed.unchanged == [(first, "belongs to alice")]
        assert alice.ask(m.CancelTasks, m.Selection(ids=[first])).changed == 1
        assert admin.ask(m.CancelTasks, m.Selection(ids=[second])).changed == 1


# ------------------------------------------------------------------------------------------------ what does not let in


def test_without_a_token(closed: Cluster) -> None:
    refused = refusal(closed.address, greeting(CLIENT_HELLO))
    assert refused.code == m.AUTH_REQUIRED
    assert "--token-file" in refused.hint


def test_greeting_of_a_worker_with_much_to_say_is_not_read_without_a_token(address: str) -> None:
    for size in (KNOCK_BYTES_MAX + 1, HELLO_BYTES_MAX):
        assert refusal(address, size.to_bytes(4, "big")).code == m.AUTH_REQUIRED


def test_after_a_proof_a_worker_may_have_much_to_say(address: str) -> None:
    resources = WorkerResources(cpus=0, labels={f"label{i}": "x" * 10 for i in range(5000)})
    with RawPeer(address) as peer:
        peer.greet_with(TOKENS[Role.WORKER], m.Hello(m.PROTOCOL, "t", m.WorkerHello(WorkerId("much"), "1", resources)))


@pytest.mark.parametrize(
    "token",
    [
        make_token(Role.ADMIN, number(12345)),
        structs.replace(ALICE, secret=BOB.secret),
        structs.replace(ALICE, role=Role.ADMIN),
        structs.replace(ALICE, id=BOB.id),
    ],
    ids=["unknown", "other secret", "other role", "other id"],
)
def test_wrong_tokens_are_told_nothing(closed: Cluster, token: Token) -> None:
    with RawPeer(closed.address) as peer:
        prover, challenge = peer.knock(token)
        frame = greeting(CLIENT_HELLO)
        peer.write(encode_frame(prover.prove(challenge, frame[4:])) + frame)
        refused = peer.expect_refusal()
    assert (refused.code, refused.message) == (m.BAD_TOKEN, "the token was not accepted")
    assert token.id in closed.daemon.log()


def test_replay_of_a_whole_exchange(address: str) -> None:
    hello = greeting(CLIENT_HELLO)
    prover = Prover(ALICE, b"", b"n" * 24)
    with RawPeer(address) as peer:
        peer.write(encode_frame(prover.knock("test")))
        proof = encode_frame(prover.prove(peer.expect(m.Challenge), hello[4:]))
        peer.write(proof + hello)
        assert peer.expect(m.Welcome)
    with RawPeer(address) as peer:
        peer.write(encode_frame(prover.knock("test")) + proof + hello)
        assert peer.expect_refusal().code == m.BAD_TOKEN


def test_reflection_of_the_daemons_own_words(address: str) -> None:
    """What one connection is asked, and told, is of no use on another."""
    hello = greeting(CLIENT_HELLO)
    with RawPeer(address) as good, RawPeer(address) as bad:
        prover, challenge = good.knock(ALICE)
        proof = prover.prove(challenge, hello[4:])
        good.write(encode_frame(proof) + hello)
        welcome = good.expect(m.Welcome)
        bad.write(encode_frame(m.Hello(m.PROTOCOL, "test", m.Knock(ALICE.id, challenge.nonce))))
        bad.expect(m.Challenge)
        bad.write(encode_frame(m.Proof(welcome.proof, proof.digest)) + hello)
        assert bad.expect_refusal().code == m.BAD_TOKEN


def test_greeting_other_than_the_proof_was_about(address: str) -> None:
    with RawPeer(address) as peer:
        prover, challenge = peer.knock(ALICE)
        proof = prover.prove(challenge, greeting(CLIENT_HELLO)[4:])
        peer.write(encode_frame(proof) + greeting(m.Hello(m.PROTOCOL, "test", m.ClientHello("another"))))
        assert peer.expect_refusal().code == m.BAD_TOKEN


def test_proof_and_nothing_behind_it_is_not_let_in(cluster: Cluster) -> None:
    write(cluster.folder / "tokens.json", (ALICE, "alice"))
    address = start(cluster, "[server]\nhandshake_timeout_s = 0.3\n")
    with RawPeer(address) as peer:
        prover, challenge = peer.knock(ALICE)
        peer.write(encode_frame(prover.prove(challenge, greeting(CLIENT_HELLO)[4:])))
        assert peer.expect_refusal().code == "too_late"


@pytest.mark.parametrize(
    "frame",
    [
        encode_frame(m.Hello(m.PROTOCOL, "t", m.Knock(ALICE.id, b""))),
        encode_frame(m.Hello(m.PROTOCOL, "t", m.Knock(ALICE.id, b"x" * 500))),
        encode_frame(m.Hello(m.PROTOCOL, "t", m.Knock("", bytes(24)))) + encode_frame(["nonsense"]),
        encode_frame(m.Hello(m.PROTOCOL, "t", m.Knock(ALICE.id, bytes(24)))) + encode_frame(m.Proof(b"", b"")),
        encode_frame(m.Hello(m.PROTOCOL, "t", m.Knock(ALICE.id, bytes(24)))) * 2,
        encode_frame(m.Hello(m.PROTOCOL, "t", m.Knock("\0" * 500, bytes(24)))) + encode_frame(m.Proof(b"x", b"y")),
        encode_frame(m.Hello(m.PROTOCOL, "t", m.Knock(ALICE.id, bytes(24)))) + greeting(CLIENT_HELLO),
        encode_frame(m.Hello(m.PROTOCOL + 1, "t", m.Knock(ALICE.id, bytes(24)))),
        encode_frame(m.Proof(bytes(32), bytes(32))),
    ],
)
def test_nonsense_instead_of_a_proof(address: str, frame: bytes) -> None:
    assert refusal(address, frame).code in (m.BAD_REQUEST, m.BAD_TOKEN, m.BAD_VERSION)
    with RawClient(address, ALICE) as client:
        assert isinstance(client.ask(m.GetStats), m.Stats)


_KNOCK = encode_frame(m.Hello(m.PROTOCOL, "t", m.Knock(ALICE.id, bytes(24))))[4:]
_BODIES = st.one_of(
    st.binary(max_size=100),
    st.just(_KNOCK),
    st.just(greeting(CLIENT_HELLO)[4:]),
    st.builds(lambda proof, digest: encode_frame(m.Proof(proof, digest))[4:], st.binary(), st.binary()),
    st.tuples(st.integers(0, len(_KNOCK) - 1), st.integers(0, 255)).map(
        lambda change: _KNOCK[: change[0]] + bytes([change[1]]) + _KNOCK[change[0] + 1 :]
    ),
)


@given(st.lists(_BODIES, max_size=5), st.booleans())
def test_whatever_comes_nobody_gets_in_without_a_proof(bodies: list[bytes], is_somebody: bool) -> None:
    access = Access()
    access.tokens = {ALICE.id: verifier_of(ALICE, "alice")}
    before = Identity(Role.READ_ONLY, "bob") if is_somebody else None
    handshake = Handshake(access, Door(asks_token=True), before)
    for body in bodies:
        try:
            said = handshake.take(body)
        except (Denied, RemoteProtocolError):
            break
        assert handshake.identity == before
        assert said is None or isinstance(said, m.Challenge) or before is not None
    assert handshake.identity == before
    assert not handshake.proof


def test_second_knock_after_a_proof() -> None:
    access = Access(nonce=bytes)
    access.tokens = {ALICE.id: verifier_of(ALICE, "alice")}
    handshake = Handshake(access, Door(asks_token=True), None)
    prover = Prover(ALICE, b"", bytes(24))
    knock = encode_frame(prover.knock("t"))[4:]
    challenge = handshake.take(knock)
    assert isinstance(challenge, m.Challenge)
    assert handshake.take(encode_frame(prover.prove(challenge, knock))[4:]) is None
    with pytest.raises(Denied):
        handshake.take(knock)


def test_token_at_a_port_that_asks_for_none_says_who_one_is(cluster: Cluster) -> None:
    write(cluster.folder / "tokens.json", (ALICE, "alice"))
    cluster.start_daemon(f'[auth]\ntokens = "{cluster.folder}/tokens.json"\n')
    with RawClient(cluster.address, ALICE) as alice, RawClient(cluster.address) as anybody:
        [task_id] = alice.submit(hold=True)
        assert anybody.view(task_id).owner == "alice"
        assert alice.ask(m.DrainWorkers, []).code == m.FORBIDDEN
        assert anybody.ask(m.CancelTasks, m.Selection(ids=[task_id])).changed == 1


# ------------------------------------------------------------------------------------------------------------- reload


def test_reload_lets_in_new_tokens_and_sends_away_revoked_ones(cluster: Cluster) -> None:
    path = cluster.folder / "tokens.json"
    write(path, (ALICE, "alice"))
    address = start(cluster)
    with RawClient(address, ALICE) as alice:
        with RawPeer(address) as bob, pytest.raises(EOFError):
            bob.greet_with(BOB)
        write(path, (ALICE, "alice"), (BOB, "bob"))
        cluster.daemon.signal(signal.SIGHUP)
        wait_until(lambda: "tokens=2" in cluster.daemon.log())
        with RawClient(address, BOB) as again:
            write(path, (ALICE, "alice"))
            cluster.daemon.signal(signal.SIGHUP)
            assert again.expect_refusal().code == m.TOKEN_REVOKED
        assert isinstance(alice.ask(m.GetStats), m.Stats)
        write(path, (ALICE, "somebody else"))
        cluster.daemon.signal(signal.SIGHUP)
        assert alice.expect_refusal().code == m.TOKEN_REVOKED


def test_reload_of_a_file_that_cannot_be_used_changes_nothing(cluster: Cluster) -> None:
    path = cluster.folder / "tokens.json"
    write(path, (ALICE, "alice"))
    address = start(cluster)
    path.chmod(0o644)
    with RawClient(address, ALICE) as alice:
        cluster.daemon.signal(signal.SIGHUP)
        wait_until(lambda: "reload_failed" in cluster.daemon.log())
        assert "chmod 600" in cluster.daemon.log()
        assert isinstance(alice.ask(m.GetStats), m.Stats)
        with RawClient(address, ALICE) as again:
            assert isinstance(again.ask(m.GetStats), m.Stats)


def test_start_without_any_token_says_so(cluster: Cluster) -> None:
    start(cluster)
    wait_until(lambda: "no_tokens" in cluster.daemon.log())


def test_daemon_with_a_token_file_that_others_may_read_does_not_start(cluster: Cluster) -> None:
    path = cluster.folder / "tokens.json"
    write(path, (ALICE, "alice"))
    path.chmod(0o640)
    daemon = cluster.start_daemon(f'[auth]\ntokens = "{path}"\n', wait=False)
    assert daemon.wait() == 7
    assert "may be read by others" in daemon.log()


# -------------------------------------------------------------------------------------------- clients, limits, the file


def test_client_with_a_token(closed: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    from schedd.client.sync import Client

    with Client(closed.address, credentials=Credentials(ALICE)) as client:
        assert client.stats().connections
    with pytest.raises(RequestRefused) as raised:
        Client(closed.address)
    assert raised.value.code == m.AUTH_REQUIRED
    with pytest.raises(RequestRefused) as raised:
        Client(closed.address, credentials=Credentials(structs.replace(ALICE, secret=bytes(32))))
    assert raised.value.code == m.BAD_TOKEN
    file = closed.folder / "alice.token"
    file.write_text(ALICE.text())
    file.chmod(0o600)
    monkeypatch.setenv("SCHEDD_TOKEN_FILE", str(file))
    with Client(closed.address) as client:
        assert client.stats().connections


def test_connections_that_prove_nothing_are_few(cluster: Cluster) -> None:
    write(cluster.folder / "tokens.json", (ALICE, "alice"))
    address = start(cluster, "unproven_per_address_max = 3\n")
    with RawClient(address, ALICE) as alice:  # those that have proven it do not count
        slow = [RawPeer(address) for _ in range(3)]
        for peer in slow:
            peer.write(b"\0")
        wait_until(lambda: alice.ask(m.GetStats).connections == 4)
        with RawPeer(address) as fourth:
            fourth.write(b"\0")
            assert not fourth.fill()
        assert "too_many_unproven" in cluster.daemon.log()
        slow.pop().socket.close()
        wait_until(lambda: alice.ask(m.GetStats).connections == 3)
        with RawClient(address, ALICE) as again:
            assert isinstance(again.ask(m.GetStats), m.Stats)
        for peer in slow:
            peer.socket.close()


def test_counting_of_arrivals() -> None:
    arrivals = Arrivals(4, 2)
    first, second = arrivals.enter("10.0.0.1"), arrivals.enter("10.0.0.1")
    assert first is not None
    assert second is not None
    assert arrivals.enter("10.0.0.1") is None
    assert arrivals.enter("2001:db8::1") is not None
    assert arrivals.enter("2001:db8:0:0:ffff::2") is not None
    assert arrivals.enter("10.0.0.2") is None  # in all
    first.leave()
    first.leave()
    assert len(arrivals) == 3
    assert arrivals.enter("2001:db8::3") is None  # the same network
    assert arrivals.enter("::ffff:10.0.0.2") is not None
    second.leave()
    assert arrivals.enter("10.0.0.2") is not None
    assert arrivals.enter("10.0.0.2") is None


def test_file_of_tokens(tmp_path: Path) -> None:
    path = tmp_path / "new" / "tokens.json"
    assert load_tokens(path) == {}
    write(path, (ALICE, "alice"), (BOB, "bob"))
    assert path.stat().st_mode & 0o777 == 0o600
    assert ALICE.text().rpartition(".")[2] not in path.read_text()
    assert load_tokens(path) == {token.id: verifier_of(token, name) for token, name in ((ALICE, "alice"), (BOB, "bob"))}
    assert [file.name for file in path.parent.iterdir()] == ["tokens.json"]


def test_many_tokens(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    one = verifier_of(ALICE, "alice")
    many = {f"{index:016x}": structs.replace(one, id=f"{index:016x}") for index in range(10_000)}
    with changing(path) as tokens:
        tokens.update(many)
    assert path.stat().st_size > 2_000_000
    assert load_tokens(path) == many


def test_more_tokens_than_the_file_may_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be read again is not written, and what is there stays good."""
    path = tmp_path / "tokens.json"
    write(path, (ALICE, "alice"))
    monkeypatch.setattr("schedd.server.tokens.TOKENS_BYTES_MAX", path.stat().st_size)
    with pytest.raises(ConfigError, match="no room for more tokens"), changing(path) as tokens:
        tokens[BOB.id] = verifier_of(BOB, "bob")
    assert list(load_tokens(path)) == [ALICE.id]
    assert list(tmp_path.iterdir()) == [path]
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(ConfigError, match="is larger than"):
        load_tokens(path)


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", "nonsense", '{"tokens":[{"id":1}]}', '{"tokens":[],"version":2}', '{"tokens":[],"colour":"red"}',
     '{"tokens":[{"id":"a","role":"root","name":"","stored_key":"","server_key":""}]}',
     '{"tokens":[{"id":"a","role":"admin","name":"","stored_key":"","server_key":""}]}'],
)  # fmt: skip
def test_file_that_is_none_of_tokens(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tokens.json"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=r"tokens\.json"):
        load_tokens(path)


@pytest.mark.parametrize("name", ["", "two words", "x" * 65, "new\nline", "\x1b[31m"])
def test_what_is_no_name_of_a_token(name: str) -> None:
    with pytest.raises(ConfigError):
        check_name(name)


def test_identity_of_a_token() -> None:
    access = Access()
    access.tokens = {ALICE.id: verifier_of(ALICE, "alice")}
    assert access.of_token(ALICE.id) == Identity(Role.CLIENT, "alice", ALICE.id)
    assert access.of_token(BOB.id) is None


def test_client_is_not_kept_waiting_by_a_daemon_that_does_not_know_its_token(closed: Cluster) -> None:
    from schedd.client.sync import Client

    with pytest.raises((RequestRefused, ConnectionLost)) as raised:
        Client(closed.address, credentials=Credentials(make_token(Role.CLIENT, number(99))), reconnect_s=60)
    assert isinstance(raised.value, RequestRefused)
