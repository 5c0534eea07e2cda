"""What a peer says before it is somebody: one small frame, or with a token three. Pure but for the nonce.

    nobody ── Hello of a client or worker, where the door lets in without a token ───────────────→ greeted
      └── Hello(Knock) → Challenge ── Proof that holds ──→ proven ── the Hello that it was about ──→ greeted

Until a proof has held, at a door that asks for one, no frame may be larger than a knock.
"""

from __future__ import annotations

import hmac
from hashlib import sha256

import schedd
from schedd.errors import ScheddError
from schedd.server.access import Access, Door, Identity
from schedd.wire import messages as m
from schedd.wire.auth import NONCE_BYTES, Verifier, answer, is_proven, transcript
from schedd.wire.framing import HELLO_BYTES_MAX, KNOCK_BYTES_MAX, Body

#: Words of a peer in a log or an answer are at most so many characters.
WORD_MAX = 200


class Denied(ScheddError):
    """A peer is not let in; `why` is for the log only, where it says more than the peer is told."""

    def __init__(self, code: str, message: str, hint: str = "", why: str = "") -> None:
        super().__init__(message, hint)
        self.code = code
        self.why = why or message


def other_version(hello: m.Hello) -> Denied | None:
    """What to say to a peer of another version; None: it is of ours."""
    if hello.protocol == m.PROTOCOL:
        return None
    text = (
        f"the daemon is schedd {schedd.__version__} (protocol {m.PROTOCOL}), "
        f"the peer is {hello.version[:WORD_MAX]} (protocol {hello.protocol})"
    )
    return Denied(m.BAD_VERSION, text, "install the same version on both sides")


def token_wanted() -> Denied:
    """What to say to a peer that has no token where one is needed."""
    return Denied(
        m.AUTH_REQUIRED,
        "this daemon asks for a token",
        "have one made there with `schedd token create`, and name its file: --token-file or $SCHEDD_TOKEN_FILE",
    )


class Handshake:
    """One greeting. identity: who the peer is without a token; None: nobody."""

    def __init__(self, access: Access, door: Door, identity: Identity | None) -> None:
        self.identity = identity
        #: What shows the peer that we know its token.
        self.proof = b""
        #: The largest frame that may come next.
        self.frame_bytes_max = KNOCK_BYTES_MAX if identity is None else HELLO_BYTES_MAX
        self._access = access
        self._binding = door.binding
        self._knock: m.Knock | None = None
        self._nonce = b""
        #: Of the greeting that the proof was about.
        self._digest: bytes | None = None

    def take(self, body: Body) -> m.Challenge | m.Hello | None:
        """Take in a frame, and return what to answer, or at last the greeting. Raises Denied, RemoteProtocolError."""
        if self._knock is not None and self._digest is None:
            self._take_proof(self._knock, m.decode_proof(body))
            return None
        if self._digest is not None and not hmac.compare_digest(sha256(body).digest(), self._digest):
            raise Denied(m.BAD_TOKEN, "the greeting is not the one that the proof was about")
        hello = m.decode_hello(body)
        if isinstance(hello.peer, m.Knock):
            return self._challenge(hello, hello.peer)
        if self.identity is None:
            raise other_version(hello) or token_wanted()
        return hello

    def _challenge(self, hello: m.Hello, knock: m.Knock) -> m.Challenge:
        if (other := other_version(hello)) is not None:
            raise other
        if self._knock is not None or len(knock.nonce) != NONCE_BYTES:
            raise Denied(m.BAD_REQUEST, "a token is proven once, with a nonce of 24 bytes")
        self._knock = knock
        self._nonce = self._access.nonce(NONCE_BYTES)
        self.frame_bytes_max = KNOCK_BYTES_MAX
        return m.Challenge(self._nonce)

    def _take_proof(self, knock: m.Knock, proof: m.Proof) -> None:
        verifier = self._access.tokens.get(knock.token)
        if verifier is None:
            raise _not_valid(f"there is no token {knock.token[:WORD_MAX]!r}")
        said = transcript(verifier.role, verifier.id, (knock.nonce, self._nonce), proof.digest, self._binding)
        if not is_proven(verifier, said, proof.proof):
            raise _not_valid(_why_not(verifier, self._binding))
        self.identity = self._access.of_token(verifier.id)
        self.proof = answer(verifier, said)
        self._digest = proof.digest
        self.frame_bytes_max = HELLO_BYTES_MAX


def _not_valid(why: str) -> Denied:
    """One answer for all that may be wrong with a token: who guesses learns nothing."""
    hint = "it may have been revoked: `schedd token list` at the daemon shows those that are valid"
    return Denied(m.BAD_TOKEN, "the token was not accepted", hint, why)


def _why_not(verifier: Verifier, binding: bytes) -> str:
    about = "another secret, or another certificate than ours in between" if binding else "another secret"
    return f"the proof for token {verifier.id} ({verifier.role} {verifier.name!r}) does not hold: {about}"
