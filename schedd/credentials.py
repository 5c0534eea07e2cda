"""What a peer shows of itself and what it trusts, from files that only who should can read.

Secrets are never in settings or on a command line, where others see them: these name files. A file with a secret must
belong to us or to root, and nobody else may read it. `credential:NAME` is a credential that systemd has put into
$CREDENTIALS_DIRECTORY (LoadCredential=), which it protects itself.
"""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

from msgspec import Struct

from schedd.errors import ConfigError
from schedd.wire.auth import Token, parse_token

#: The largest file with a secret that makes sense: a key, or a thousand tokens.
SECRET_BYTES_MAX = 1024 * 1024
#: In place of a path: trust whom the machine trusts.
SYSTEM = "system"
#: Variables that say who a worker or a client is; no task is to be taken for the worker that it runs on.
VARIABLES = frozenset(
    {
        "SCHEDD_TOKEN_FILE",
        "SCHEDD_TLS_CA",
        "SCHEDD_TLS_CERT",
        "SCHEDD_TLS_KEY",
        "SCHEDD_TLS_NAME",
        "CREDENTIALS_DIRECTORY",
    }
)
#: Before the name of a credential of systemd, in place of a path.
CREDENTIAL = "credential:"


class Credentials(Struct, frozen=True):
    """What a worker or client shows to the daemon, and how it knows it.

    ca: a file of authorities, `SYSTEM`, or "": no TLS. cert, key: a certificate of our own. name: the one that the
    daemon's certificate must have, where it is not the host of its address.
    """

    token: Token | None = None
    ca: str = ""
    cert: str = ""
    key: str = ""
    name: str = ""


#: Of a peer that shows nothing and asks for nothing.
NONE = Credentials()


def find_credentials(
    token_file: str = "", tls_ca: str = "", tls_cert: str = "", tls_key: str = "", tls_name: str = ""
) -> Credentials:
    """Read what is given, else what the environment names. Raises ConfigError."""
    token_file = token_file or os.environ.get("SCHEDD_TOKEN_FILE", "")
    ca = tls_ca or os.environ.get("SCHEDD_TLS_CA", "")
    cert = tls_cert or os.environ.get("SCHEDD_TLS_CERT", "")
    key = tls_key or os.environ.get("SCHEDD_TLS_KEY", "")
    name = tls_name or os.environ.get("SCHEDD_TLS_NAME", "")
    if (cert or key or name) and not ca:
        raise ConfigError(
            "a certificate or a name for TLS is given, and no authority to know the daemon by",
            f'give one: --tls-ca or $SCHEDD_TLS_CA (a file, or "{SYSTEM}")',
        )
    token = _read_token(token_file) if token_file else None
    return Credentials(token, ca if ca in ("", SYSTEM) else str(path_of(ca)), _path(cert), _path(key), name)


def _read_token(text: str) -> Token:
    try:
        return parse_token(read_secret(text).decode(errors="replace"))
    except ConfigError as error:
        raise ConfigError(f"token file {text}: {error.message}", error.hint) from None


def _path(text: str) -> str:
    return str(path_of(text)) if text else ""


def path_of(text: str) -> Path:
    """The file that a setting names: a path, or `credential:NAME`. Raises ConfigError."""
    if not text.startswith(CREDENTIAL):
        try:
            return Path(text).expanduser()
        except RuntimeError:
            raise ConfigError(f"{text!r} is in the home of a user that does not exist") from None
    name = text.removeprefix(CREDENTIAL)
    found = credential(name)
    if found is None:
        raise ConfigError(f"there is no credential {name!r}", f"add LoadCredential={name}:/path/to/file to the unit")
    return found


def credential(name: str) -> Path | None:
    """A credential that systemd has given us; None where there is none of that name."""
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    path = Path(folder, name) if folder and name and "/" not in name else None
    return path if path is not None and path.is_file() else None


def read_secret(text: str) -> bytes:
    """Read a file with a secret; "-" is standard input, which is closed after it. Raises ConfigError.

    By way of standard input a service manager can hand over a file that the worker, and so its tasks, cannot open.
    """
    if text == "-":
        return _read_stdin()
    path = path_of(text)
    try:
        with path.open("rb") as file:
            check_secret(path, os.fstat(file.fileno()))
            data = file.read(SECRET_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", "who runs this must be able to read it") from error
    if len(data) > SECRET_BYTES_MAX:
        raise ConfigError(f"{path} is too large to be a secret")
    return data


def _read_stdin() -> bytes:
    data = sys.stdin.buffer.read(SECRET_BYTES_MAX)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    return data


def check_secret(path: Path, found: os.stat_result) -> None:
    """Make sure that a file is one of ours, and nobody else's to read. Raises ConfigError."""
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    if folder and path.parent == Path(folder):
        return
    if not stat.S_ISREG(found.st_mode):
        if stat.S_ISFIFO(found.st_mode):  # of a shell's <(…)
            return
        raise ConfigError(f"{path} is no file")
    if found.st_mode & 0o077:
        mode = stat.S_IMODE(found.st_mode)
        raise ConfigError(f"{path} may be read by others (mode {mode:04o})", f"chmod 600 {path}")
    if os.geteuid() and found.st_uid not in (0, os.geteuid()):
        raise ConfigError(f"{path} belongs to another user (uid {found.st_uid})", f"chown {os.geteuid()} {path}")
