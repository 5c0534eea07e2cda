"""The proof of a token: what holds, and that nothing else does."""

from __future__ import annotations

import hmac
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from schedd.errors import AuthenticationError, ConfigError
from schedd.wire.auth import (
    ID_BYTES,
    NONCE_BYTES,
    SECRET_BYTES,
    Prover,
    Role,
    Token,
    answer,
    is_proven,
    make_token,
    parse_token,
    prove,
    transcript,
    verifier_of,
)
from schedd.wire.messages import PROTOCOL, Challenge, Knock, Welcome

TOKEN = make_token(Role.WORKER, bytes(range(ID_BYTES + SECRET_BYTES)))
VERIFIER = verifier_of(TOKEN, "w")
OURS, THEIRS = b"o" * NONCE_BYTES, b"t" * NONCE_BYTES
DIGEST = sha256(b"hello").digest()

#: Each thing that a proof is about, and another value of it.
SAID: dict[str, Any] = {
    "role": Role.WORKER,
    "token_id": TOKEN.id,
    "nonces": (OURS, THEIRS),
    "digest": DIGEST,
    "binding": b"certificate",
}
OTHERS: list[tuple[str, Any]] = [
    ("role", Role.ADMIN),
    ("token_id", "0" * 16),
    ("nonces", (OURS, OURS)),
    ("nonces", (THEIRS, OURS)),
    ("nonces", (OURS[:-1], OURS[-1:] + THEIRS)),
    ("digest", sha256(b"another").digest()),
    ("binding", b"another certificate"),
    ("binding", b""),
]


def welcome(proof: bytes) -> Welcome:
    return Welcome(PROTOCOL, "", 1, proof=proof)


def test_text_of_a_token() -> None:
    assert TOKEN.text() == "schedd.worker.0001020304050607.CAkKCwwNDg8QERITFBUWFxgZGhscHR4fICEiIyQlJic"
    assert parse_token(f" {TOKEN.text()}\n") == TOKEN
    assert "CAkK" not in repr(TOKEN)
    assert repr(VERIFIER).count("b'") == 0


@given(st.sampled_from(Role), st.binary(min_size=40, max_size=40))
def test_every_token_can_be_read(role: Role, data: bytes) -> None:
    token = make_token(role, data)
    assert parse_token(token.text()) == token


@pytest.mark.parametrize(
    "text", ["", "x", TOKEN.text()[:-1], TOKEN.text() + "A", TOKEN.text().replace("worker", "root"), "schedd.worker.."]
)
def test_what_is_no_token(text: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_token(text)
    assert not text or text not in raised.value.message


def test_proof_holds() -> None:
    said = transcript(**SAID)
    assert is_proven(VERIFIER, said, prove(TOKEN, said))


def test_computation_is_that_of_scram() -> None:
    """RFC 5802, section 3, written down a second time."""

    def mac(key: bytes, data: bytes) -> bytes:
        return hmac.new(key, data, "sha256").digest()

    said = transcript(**SAID)
    client_key = mac(TOKEN.secret, b"Client Key")
    stored_key = sha256(client_key).digest()
    signature = mac(stored_key, said)
    assert stored_key == VERIFIER.stored_key
    assert prove(TOKEN, said) == bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
    assert answer(VERIFIER, said) == mac(mac(TOKEN.secret, b"Server Key"), said)


@pytest.mark.parametrize(("name", "value"), OTHERS)
def test_proof_about_anything_else_does_not_hold(name: str, value: Any) -> None:
    proof = prove(TOKEN, transcript(**{**SAID, name: value}))
    assert not is_proven(VERIFIER, transcript(**SAID), proof)


def test_proof_of_another_secret() -> None:
    said = transcript(**SAID)
    other = structs.replace(TOKEN, secret=bytes(SECRET_BYTES))
    assert not is_proven(VERIFIER, said, prove(other, said))


@pytest.mark.parametrize("proof", [b"", b"x", bytes(31), bytes(32), bytes(33), bytes(1000)])
def test_what_is_no_proof(proof: bytes) -> None:
    assert not is_proven(VERIFIER, transcript(**SAID), proof)


def test_daemons_proof_is_none_of_a_peer_nor_the_other_way_round() -> None:
    said = transcript(**SAID)
    assert not is_proven(VERIFIER, said, answer(VERIFIER, said))
    prover = Prover(TOKEN, b"", OURS)
    reflected = prover.prove(Challenge(THEIRS), b"hello").proof
    with pytest.raises(AuthenticationError):
        prover.check(welcome(reflected))


def test_file_of_the_daemon_does_not_let_in() -> None:
    """All that the file has was tried as the secret, and as the key that the proof hides."""
    said = transcript(**SAID)
    for key in (VERIFIER.stored_key, VERIFIER.server_key):
        assert not is_proven(VERIFIER, said, prove(structs.replace(TOKEN, secret=key), said))
        signature = hmac.digest(VERIFIER.stored_key, said, "sha256")
        forged = bytes(a ^ b for a, b in zip(key, signature, strict=True))
        assert not is_proven(VERIFIER, said, forged)


def test_whole_exchange() -> None:
    prover = Prover(TOKEN, b"certificate", OURS)
    hello = prover.knock("1.0")
    assert hello.peer == Knock(TOKEN.id, OURS)
    proof = prover.prove(Challenge(THEIRS), b"hello")
    said = transcript(TOKEN.role, TOKEN.id, (OURS, THEIRS), proof.digest, b"certificate")
    assert is_proven(VERIFIER, said, proof.proof)
    prover.check(welcome(answer(VERIFIER, said)))


@pytest.mark.parametrize("proof", [b"", bytes(32)])
def test_daemon_that_does_not_know_the_token(proof: bytes) -> None:
    prover = Prover(TOKEN, b"", OURS)
    prover.prove(Challenge(THEIRS), b"hello")
    with pytest.raises(AuthenticationError, match="not proven"):
        prover.check(welcome(proof))


def test_daemon_that_asks_for_no_proof_has_given_none() -> None:
    with pytest.raises(AuthenticationError):
        Prover(TOKEN, b"", OURS).check(welcome(b""))


def test_challenges_that_make_no_sense() -> None:
    prover = Prover(TOKEN, b"", OURS)
    with pytest.raises(AuthenticationError):
        prover.prove(Challenge(b""), b"hello")
    prover.prove(Challenge(THEIRS), b"hello")
    with pytest.raises(AuthenticationError):
        prover.prove(Challenge(OURS), b"hello")


def test_roles_of_tokens_are_those_of_the_text() -> None:
    assert [str(role) for role in Role] == ["worker", "client", "admin", "read-only"]
    assert isinstance(parse_token(Token(Role.READ_ONLY, "0" * 16, bytes(32)).text()).role, Role)
