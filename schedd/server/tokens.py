"""The file of the tokens: what is needed to check them, as JSON. `schedd token` writes it, the daemon reads it."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
from msgspec import Struct

from schedd.address import state_dir
from schedd.credentials import check_secret, path_of
from schedd.errors import ConfigError
from schedd.wire.auth import DIGEST_BYTES, Verifier

#: Names of tokens are those of owners, and stand in logs and tables.
NAME_MAX = 64
#: Some 60,000 tokens. What is larger is neither written nor read.
TOKENS_BYTES_MAX = 16 * 1024 * 1024


class TokenFile(Struct, frozen=True, forbid_unknown_fields=True):
    """What the file says; `version` grows with each incompatible change."""

    tokens: list[Verifier]
    version: int = 1


def tokens_path(given: str = "") -> Path:
    """Where the tokens are: as given, else in the state. Raises ConfigError."""
    return path_of(given) if given else state_dir() / "tokens.json"


def load_tokens(path: Path) -> dict[str, Verifier]:
    """Read the tokens, by id; none where there is no file. Raises ConfigError."""
    try:
        with path.open("rb") as file:
            check_secret(path, os.fstat(file.fileno()))
            data = file.read(TOKENS_BYTES_MAX + 1)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", "the daemon must be able to read it") from error
    if len(data) > TOKENS_BYTES_MAX:
        raise ConfigError(f"{path} is larger than {TOKENS_BYTES_MAX} bytes", "it is written by `schedd token`")
    try:
        found = msgspec.json.decode(data, type=TokenFile)
    except (msgspec.MsgspecError, ValueError) as error:
        raise ConfigError(f"{path} is not a file of tokens: {error}", "it is written by `schedd token`") from error
    if found.version != 1:
        raise ConfigError(f"{path} was written by a newer schedd", "install that version, or a newer one")
    for verifier in found.tokens:
        if len(verifier.stored_key) != DIGEST_BYTES or len(verifier.server_key) != DIGEST_BYTES:
            raise ConfigError(f"{path}: token {verifier.id} is damaged", "revoke it and create another")
    return {verifier.id: verifier for verifier in found.tokens}


def check_name(name: str) -> None:
    """Raises ConfigError for what is no name of a token."""
    if not 0 < len(name) <= NAME_MAX or not name.isprintable() or any(c.isspace() for c in name):
        raise ConfigError(f"{name!r} is no name of a token", f"1 to {NAME_MAX} printable characters without spaces")


@contextlib.contextmanager
def changing(path: Path) -> Iterator[dict[str, Verifier]]:
    """Change the tokens: what is in the dict at the end is written, whole or not at all. Raises ConfigError.

    One at a time: who comes second waits. The file stays with its owner: root may change that of a service.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(path.parent, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            tokens = load_tokens(path)
            before = dict(tokens)
            yield tokens
            if tokens != before:
                _write(path, tokens)
        finally:
            os.close(lock)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}", "who runs the daemon may, and root") from error


def _write(path: Path, tokens: Mapping[str, Verifier]) -> None:
    owner = (path if path.exists() else path.parent).stat()
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    data = msgspec.json.format(msgspec.json.encode(TokenFile(list(tokens.values()))), indent=2) + b"\n"
    if len(data) > TOKENS_BYTES_MAX:
        raise ConfigError(f"{path} has no room for more tokens", "revoke what is not used: schedd token list")
    fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            os.fchmod(fd, 0o600)
            if os.geteuid() == 0:
                os.fchown(fd, owner.st_uid, owner.st_gid)
            file.write(data)
            file.flush()
            os.fsync(fd)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
