"""Tokens, and how one is proven without being sent: the exchange of SCRAM-SHA-256 (RFC 5802, RFC 7677). Pure.

A token is a secret of 32 random bytes with a role. Who has it derives a client key and a server key from it; the
daemon keeps only the hash of the first, and the second. So whoever reads the daemon's file can pretend to be the
daemon towards the holders of its tokens, but cannot log in with them: the proof shows a client key that the file does
not have. (Who has the file *and* listens in on an exchange can: the proof gives the key away to who knows its hash.
TLS is for that.) What SCRAM does with salt and iterations is for passwords that can be guessed; 32 random bytes
cannot, and go without.

    peer → daemon   Hello(Knock(token id, nonce))
    daemon → peer   Challenge(nonce)
    peer → daemon   Proof(proof, digest), and right behind it the Hello proper, whose digest that is
    daemon → peer   Welcome(…, proof)

Both proofs are about all that was said: protocol, role, token, both nonces, the digest of the greeting (with that the
name of a worker) and the server's certificate where there is TLS. Each nonce is new, so that nothing can be replayed;
the two proofs are made with different keys, so that none can be sent back; and who sits in between with a certificate
of its own has proofs about the wrong one (RFC 5929, `tls-server-end-point`). The exporter of TLS 1.3 (RFC 9266) would
bind the session, too, but the ssl of Python 3.11 to 3.13 does not offer it, and `tls-unique` says nothing under TLS
1.3.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
from enum import StrEnum
from hashlib import sha256

import msgspec
from msgspec import Struct

from schedd.errors import AuthenticationError, ConfigError
from schedd.wire.messages import PROTOCOL, Challenge, Hello, Knock, Proof, Welcome

NONCE_BYTES = 24
SECRET_BYTES = 32
ID_BYTES = 8
DIGEST_BYTES = 32

_encoder = msgspec.msgpack.Encoder()
_TEXT = re.compile(r"schedd\.(worker|client|admin|read-only)\.([0-9a-f]{16})\.([A-Za-z0-9_-]{43})")


class Role(StrEnum):
    """What a peer may do: be a worker; read and change what is its own; everything; read."""

    WORKER = "worker"
    CLIENT = "client"
    ADMIN = "admin"
    READ_ONLY = "read-only"


class Token(Struct, frozen=True):
    """What its holder has."""

    role: Role
    id: str
    secret: bytes

    def __repr__(self) -> str:
        return f"<Token {self.id} ({self.role})>"

    def text(self) -> str:
        """Write it down: the line that `parse_token` reads."""
        secret = base64.urlsafe_b64encode(self.secret).decode().rstrip("=")
        return f"schedd.{self.role}.{self.id}.{secret}"

    @property
    def client_key(self) -> bytes:
        return _mac(self.secret, b"Client Key")

    @property
    def server_key(self) -> bytes:
        return _mac(self.secret, b"Server Key")


class Verifier(Struct, frozen=True):
    """What the daemon has of a token. stored_key: the hash of the client key."""

    id: str
    role: Role
    name: str
    stored_key: bytes
    server_key: bytes
    created_at: float = 0.0

    def __repr__(self) -> str:
        return f"<Verifier of token {self.id} ({self.role} {self.name!r})>"


def make_token(role: Role, random_bytes: bytes) -> Token:
    """Make a token of `ID_BYTES` + `SECRET_BYTES` random bytes."""
    if len(random_bytes) != ID_BYTES + SECRET_BYTES:
        raise ValueError("a token is made of 40 random bytes")
    return Token(role, random_bytes[:ID_BYTES].hex(), random_bytes[ID_BYTES:])


def parse_token(text: str) -> Token:
    """Read a token as it was written down. Raises ConfigError, which does not repeat it."""
    match = _TEXT.fullmatch(text.strip())
    try:
        if match is None:
            raise ValueError
        secret = base64.urlsafe_b64decode(match[3] + "=")
    except (ValueError, binascii.Error):
        raise ConfigError(
            "this is not a token", "it is one line, schedd.ROLE.ID.SECRET, as `schedd token create` prints it"
        ) from None
    return Token(Role(match[1]), match[2], secret)


def verifier_of(token: Token, name: str, created_at: float = 0.0) -> Verifier:
    """What the daemon is to keep of a token."""
    return Verifier(token.id, token.role, name, sha256(token.client_key).digest(), token.server_key, created_at)


def transcript(role: Role, token_id: str, nonces: tuple[bytes, bytes], digest: bytes, binding: bytes) -> bytes:
    """All that both proofs are about. nonces: of the peer and of the daemon. binding: of the channel; empty: none."""
    return _encoder.encode(("schedd token proof", PROTOCOL, str(role), token_id, *nonces, digest, binding))


def prove(token: Token, said: bytes) -> bytes:
    """The peer's proof: its client key, hidden from all that do not know the hash of it."""
    key = token.client_key
    return _xor(key, _mac(sha256(key).digest(), said))


def is_proven(verifier: Verifier, said: bytes, proof: bytes) -> bool:
    """Whether the proof shows the client key. In constant time."""
    if len(proof) != DIGEST_BYTES:
        return False
    key = _xor(proof, _mac(verifier.stored_key, said))
    return hmac.compare_digest(sha256(key).digest(), verifier.stored_key)


def answer(verifier: Verifier, said: bytes) -> bytes:
    """The daemon's proof that it knows the token, too."""
    return _mac(verifier.server_key, said)


class Prover:
    """The side that has a token, through one greeting. binding: of the channel; nonce: new for each greeting."""

    def __init__(self, token: Token, binding: bytes, nonce: bytes) -> None:
        self._token = token
        self._binding = binding
        self._nonce = nonce
        self._said: bytes | None = None

    def knock(self, version: str) -> Hello:
        """What is said first."""
        return Hello(PROTOCOL, version, Knock(self._token.id, self._nonce))

    def prove(self, challenge: Challenge, hello: bytes) -> Proof:
        """Answer the daemon's challenge; `hello` is the body of the frame that follows. Raises AuthenticationError."""
        if self._said is not None or len(challenge.nonce) != NONCE_BYTES:
            raise AuthenticationError("the daemon asks for a proof in a way that makes no sense")
        digest = sha256(hello).digest()
        token = self._token
        self._said = transcript(token.role, token.id, (self._nonce, challenge.nonce), digest, self._binding)
        return Proof(prove(token, self._said), digest)

    def check(self, welcome: Welcome) -> None:
        """Make sure that whoever says welcome knows the token. Raises AuthenticationError."""
        if self._said is None or not hmac.compare_digest(_mac(self._token.server_key, self._said), welcome.proof):
            raise AuthenticationError(
                "what answers there has not proven that it is the daemon of this token",
                "somebody else may listen at that address: ask whoever runs the daemon",
            )


def _mac(key: bytes, data: bytes) -> bytes:
    return hmac.digest(key, data, "sha256")


def _xor(a: bytes, b: bytes) -> bytes:
    return bytes(x ^ y for x, y in zip(a, b, strict=True))
