"""A small certificate authority for a lab, by the `cryptography` package: P-256, SHA-256, one level.

The key of the authority is needed only to make certificates; it may lie on another machine, or in a safe.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from schedd.errors import ConfigError

#: The authority lives for ten years: to exchange it, every worker and client must be told.
AUTHORITY_DAYS = 3653
#: A clock that is late by less than this believes a new certificate all the same.
EARLY = timedelta(minutes=10)
CA_CERT, CA_KEY = "ca.pem", "ca.key"
HOST_NAME_MAX = 253
#: What X.509 has room for (RFC 5280, ub-common-name).
COMMON_NAME_MAX = 64
_HOST_NAME = re.compile(r"(\*\.)?[A-Za-z0-9_]([A-Za-z0-9_-]{0,62}\.)*[A-Za-z0-9_-]{0,62}\.?")


def make_authority(folder: Path) -> Path:
    """Make ca.pem and ca.key in a folder that has none; returns the first. Raises ConfigError."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "schedd authority")])
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    builder = _builder(name, name, key.public_key(), AUTHORITY_DAYS)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_key_usage(authority=True), critical=True)
    builder = builder.add_extension(identifier, critical=False)
    builder = builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), False)
    _write(folder, "ca", builder.sign(key, hashes.SHA256()), key, replace=False)
    return folder / CA_CERT


def make_server(folder: Path, names: Iterable[str], days: int, *, replace: bool = False) -> Path:
    """Make server.pem and server.key for a daemon that is reached by these host names and addresses."""
    found = [_general_name(name) for name in dict.fromkeys(names)]
    # Whole it is among the names; the subject is there for people.
    subject = str(found[0].value)[:COMMON_NAME_MAX]
    return _make(folder, "server", subject, found, days, replace=replace)


def make_client(folder: Path, name: str, days: int, *, replace: bool = False) -> Path:
    """Make NAME.pem and NAME.key for a worker or client of this name."""
    if not name or name in ("ca", "server") or "/" in name or name.startswith(".") or not name.isprintable():
        raise ConfigError(f"{name!r} cannot be the name of a client's files", "for instance a host or a login name")
    return _make(folder, name, name, None, days, replace=replace)


def _make(
    folder: Path, stem: str, name: str, names: list[x509.GeneralName] | None, days: int, *, replace: bool
) -> Path:
    authority, authority_key = _load(folder)
    key = ec.generate_private_key(ec.SECP256R1())
    try:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    except ValueError as error:
        raise ConfigError(f"{name!r} is no name for a certificate: {error}") from None
    usage = ExtendedKeyUsageOID.CLIENT_AUTH if names is None else ExtendedKeyUsageOID.SERVER_AUTH
    builder = _builder(authority.subject, subject, key.public_key(), days)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_key_usage(authority=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    builder = builder.add_extension(issuer, critical=False)
    if names is not None:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    _write(folder, stem, builder.sign(authority_key, hashes.SHA256()), key, replace=replace)
    return folder / f"{stem}.pem"


def _builder(
    issuer: x509.Name, subject: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .issuer_name(issuer)
        .subject_name(subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - EARLY)
        .not_valid_after(now + timedelta(days=days))
    )


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(name: str) -> x509.GeneralName:
    with suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(name))
    try:
        encoded = name if name.isascii() else name.encode("idna").decode()
    except UnicodeError:
        encoded = ""
    if not _HOST_NAME.fullmatch(encoded) or len(encoded) > HOST_NAME_MAX:
        raise ConfigError(f"{name!r} is no host name and no address", "for instance head.lab.example or 10.0.0.5")
    return x509.DNSName(encoded)


def check_free(folder: Path, *stems: str) -> None:
    """Raises ConfigError for the first of these certificates and keys that a folder has already."""
    for stem in stems:
        for path in (folder / f"{stem}.key", folder / f"{stem}.pem"):
            if path.exists():
                raise ConfigError(f"{path} is there already", "name another folder, or renew what is in it")


def check_names(names: Iterable[str]) -> None:
    """Raises ConfigError for the first that is no host name and no address."""
    for name in names:
        _general_name(name)


def _load(folder: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """The authority that is in a folder. Raises ConfigError."""
    try:
        certificate = x509.load_pem_x509_certificate((folder / CA_CERT).read_bytes())
        key = serialization.load_pem_private_key((folder / CA_KEY).read_bytes(), None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ConfigError(f"{folder / CA_KEY} is a key of another kind", "`schedd tls init` makes an authority")
        certificate.verify_directly_issued_by(certificate)
        if key.public_key() != certificate.public_key():
            raise ConfigError(f"{folder / CA_KEY} is not the key of {folder / CA_CERT}")
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}", "`schedd tls init` makes an authority") from error
    except (ValueError, TypeError, InvalidSignature) as error:
        what = str(error).partition(".")[0]  # the rest is advice to programmers
        raise ConfigError(f"the authority in {folder} cannot be used: {what}") from error
    return certificate, key


def _write(
    folder: Path, stem: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey, *, replace: bool
) -> None:
    """Write a certificate for everybody to read, and its key for nobody else. Raises ConfigError."""
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = certificate.public_bytes(serialization.Encoding.PEM)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o755)
        if not replace:
            check_free(folder, stem)
        _put(folder / f"{stem}.key", secret, 0o600)
        _put(folder / f"{stem}.pem", public, 0o644)
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}") from error


def _put(path: Path, data: bytes, mode: int) -> None:
    """Write a file whole; who owned the one before owns this one."""
    owner = path.stat() if path.exists() else None
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    try:
        with os.fdopen(fd, "wb") as file:
            os.fchmod(fd, mode)
            if owner is not None and os.geteuid() == 0:
                os.fchown(fd, owner.st_uid, owner.st_gid)
            file.write(data)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


class Shown:
    """What people want to know of a certificate."""

    def __init__(self, path: Path) -> None:
        """Read it. Raises ConfigError."""
        try:
            certificate = x509.load_pem_x509_certificate(path.read_bytes())
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from error
        except ValueError as error:
            raise ConfigError(f"{path} is no PEM file with a certificate: {error}") from error
        self.subject = certificate.subject.rfc4514_string()
        self.issuer = certificate.issuer.rfc4514_string()
        self.expires_at = certificate.not_valid_after_utc.timestamp()
        self.fingerprint = certificate.fingerprint(hashes.SHA256()).hex()
        self.names: list[str] = []
        with suppress(x509.ExtensionNotFound):
            found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            self.names = [str(name.value) for name in found]
