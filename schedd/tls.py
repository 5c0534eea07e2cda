"""TLS by Python's ssl: contexts from files, what proofs of tokens are bound to, and errors in words.

Both sides are schedd, so nothing older than TLS 1.3 is spoken. Sessions are not resumed: connections are few and last.
"""

from __future__ import annotations

import os
import ssl
from hashlib import sha256
from typing import Any, Protocol

from schedd.credentials import SYSTEM, Credentials, check_secret, path_of
from schedd.errors import AuthenticationError, ConfigError

_PEM_BEGIN, _PEM_END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"

#: What OpenSSL calls what went wrong when the other side does not speak TLS at all.
_NO_TLS = frozenset({"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG", "HTTP_REQUEST"})
#: X509_V_ERR_… of certificates that nobody vouches for.
_NOT_VOUCHED_FOR = frozenset({2, 18, 19, 20, 21})
_NOT_YET, _EXPIRED, _OTHER_NAME, _OTHER_ADDRESS = 9, 10, 62, 64


def binding_of(certificate: bytes) -> bytes:
    """What a proof is bound to: the SHA-256 of the server's certificate in DER.

    As `tls-server-end-point` of RFC 5929, which takes another hash where the certificate is signed with another.
    """
    return sha256(certificate).digest()


class Transport(Protocol):
    def get_extra_info(self, name: str, default: Any = None) -> Any: ...


def channel_binding(transport: Transport) -> bytes:
    """What the proof of a token is bound to at the end of a worker or client; empty where there is no TLS."""
    tls = transport.get_extra_info("ssl_object")
    certificate = tls.getpeercert(binary_form=True) if tls is not None else None
    return binding_of(certificate) if certificate else b""


def server_context(cert: str, key: str, client_ca: str = "") -> tuple[ssl.SSLContext, bytes]:
    """Make what listens, and what proofs are bound to there. Files as in [tls] of the settings. Raises ConfigError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0
    _show(context, "tls.cert", cert, key)
    if client_ca:
        _trust(context, "tls.client_ca", client_ca)
        # One that is shown must be good; who shows none is sent away by the daemon, in words: the alert that OpenSSL
        # has for it never leaves the buffers of asyncio and uvloop.
        context.verify_mode = ssl.CERT_OPTIONAL
    return context, binding_of(_first_certificate(cert))


def client_context(credentials: Credentials) -> ssl.SSLContext:
    """Make what connects; there must be a `ca`. Raises ConfigError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if credentials.ca == SYSTEM:
        context.load_default_certs()
    else:
        _trust(context, "the certificate authority", credentials.ca)
    if credentials.cert:
        _show(context, "the certificate", credentials.cert, credentials.key)
    return context


def _trust(context: ssl.SSLContext, what: str, path: str) -> None:
    try:
        context.load_verify_locations(cafile=path_of(path))
    except ssl.SSLError as error:
        raise ConfigError(f"{what} {path} is no PEM file with certificates: {error.reason or error}") from error
    except OSError as error:
        raise ConfigError(f"{what} {path}: {error.strerror}") from error


def _show(context: ssl.SSLContext, what: str, cert: str, key: str) -> None:
    """Load a certificate with its key, which nobody else may be able to read."""
    certificates, secret = path_of(cert), path_of(key or cert)
    try:
        check_secret(secret, os.stat(secret))  # noqa: PTH116 - a stat_result is what is wanted
        context.load_cert_chain(certificates, secret, password=lambda: b"")  # never ask at a terminal
    except ssl.SSLError as error:
        text = f"{what} {cert} cannot be used with the key {secret}: {error.reason or error}"
        raise ConfigError(text, "two PEM files that belong together, the key without a password") from error
    except OSError as error:
        raise ConfigError(f"{what}: {error.filename or cert}: {error.strerror}") from error


def _first_certificate(cert: str) -> bytes:
    """What OpenSSL shows of such a file; it takes more kinds of them than are read here."""
    try:
        text = path_of(cert).read_text(errors="replace")
        return ssl.PEM_cert_to_DER_cert(text[text.index(_PEM_BEGIN) : text.index(_PEM_END) + len(_PEM_END)])
    except OSError as error:
        raise ConfigError(f"tls.cert {cert}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"tls.cert {cert} has no certificate that begins with {_PEM_BEGIN}") from error


def explain(error: ssl.SSLError, where: object) -> AuthenticationError:
    """Say to a worker or client what is wrong with the TLS of the daemon at this address, or with its own."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _distrust(error, where)
    reason = error.reason or str(error)
    if reason in _NO_TLS:
        return AuthenticationError(
            f"what listens at {where} does not speak TLS",
            "leave out --tls-ca and $SCHEDD_TLS_CA, or set [tls] cert and key for the daemon",
        )
    if "ALERT" in reason:
        alert = reason.partition("ALERT_")[2].replace("_", " ").lower()
        return AuthenticationError(f"the daemon at {where} does not accept our TLS: {alert}", "its log says more")
    return AuthenticationError(f"no TLS with {where}: {reason}")


def describe(error: OSError) -> str:
    """Say to an operator why a peer did not get through the handshake at the daemon."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate of the peer is not valid: {error.verify_message}"
    if not isinstance(error, ssl.SSLError):
        return "the peer ended the handshake: it may not trust our certificate, or be somebody who only looks"
    reason = error.reason or str(error)
    if "ALERT" in reason:
        alert = reason.partition("ALERT_")[2].replace("_", " ").lower()
        return f"the peer does not accept our certificate: {alert}"
    return reason.replace("_", " ").lower()


def _distrust(error: ssl.SSLCertVerificationError, where: object) -> AuthenticationError:
    code = error.verify_code
    text, hint = f"the certificate of what listens at {where} is not valid: {error.verify_message}", ""
    if code in _NOT_VOUCHED_FOR:
        text = f"no authority that we trust vouches for what listens at {where}: {error.verify_message}"
        hint = "--tls-ca must name the ca.pem that `schedd tls init` made for this daemon"
    elif code == _EXPIRED:
        text = f"the certificate of the daemon at {where} has expired"
        hint = "make a new one at the daemon with `schedd tls server`, and reload it"
    elif code == _NOT_YET:
        text, hint = f"the certificate of the daemon at {where} is not valid yet", "is the clock right, here and there?"
    elif code in (_OTHER_NAME, _OTHER_ADDRESS):
        text = f"the certificate of the daemon at {where} is for another name: {error.verify_message}"
        hint = "connect by a name that it has, or say which one it is: --tls-name"
    return AuthenticationError(text, hint)
