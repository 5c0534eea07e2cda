"""Where a daemon listens: `HOST:PORT` or `unix:/path`; and where schedd keeps what it must keep."""

from __future__ import annotations

import os
import re
from pathlib import Path

from msgspec import Struct

from schedd.errors import ConfigError

DEFAULT_PORT = 7077
DEFAULT_ADDRESS = f"127.0.0.1:{DEFAULT_PORT}"
#: 127.0.0.0/8 in numbers; a name that begins like it may be anybody's.
_LOOPBACK = re.compile(r"127(\.[0-9]{1,3}){1,3}")


class Address(Struct, frozen=True):
    """A TCP host and port, or (where `path` is set) a Unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        return bool(self.path) or self.host in ("localhost", "::1") or bool(_LOOPBACK.fullmatch(self.host))


def parse_address(text: str) -> Address:
    """Read `HOST:PORT`, `[IPV6]:PORT`, `HOST`, `:PORT`, `unix:/path` or `unix:~/path`. Raises ConfigError."""
    text = text.strip()
    if text.startswith("unix:"):
        given = text.removeprefix("unix:")
        path = str(expanded(given)) if given.startswith("~") else given
        if not path or len(path.encode()) > 107:
            raise ConfigError(f"{text!r} is not a socket path", "a path has 1 to 107 bytes")
        return Address(path=path)
    host, colon, port_text = text.rpartition(":")
    if not colon:
        host, port_text = text, str(DEFAULT_PORT)
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ConfigError(f"{text!r} is not an address", "write an IPv6 address as [::1]:7077")
    if not port_text.isascii() or not port_text.isdigit() or int(port_text) > 65535:
        raise ConfigError(f"{text!r} is not an address", "use HOST:PORT, for instance 127.0.0.1:7077")
    return Address(host or "127.0.0.1", int(port_text))


def daemon_address(given: str | None = None) -> Address:
    """The daemon to talk to: as given, else `$SCHEDD_ADDRESS`, else the default. Raises ConfigError."""
    return parse_address(given or os.environ.get("SCHEDD_ADDRESS") or DEFAULT_ADDRESS)


def expanded(text: str) -> Path:
    """A path as it was written, `~` made to what it means. Raises ConfigError."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ConfigError(f"{text!r} is in the home of a user that does not exist") from None


def state_dir(given: str = "") -> Path:
    """Where state lives: as given, else `$SCHEDD_STATE_DIR`, else schedd's folder in the XDG state directory."""
    if given:
        return expanded(given)
    if own := os.environ.get("SCHEDD_STATE_DIR"):
        return expanded(own)
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "schedd"


def journal_path(given: str = "") -> Path:
    """Where the daemon's journal is: as given, else `journal.db` where state lives."""
    return expanded(given) if given else state_dir() / "journal.db"


def runtime_dir(given: str = "") -> Path:
    """Where sockets live: as given, else schedd's folder in the XDG runtime directory, else one in the state."""
    if given:
        return expanded(given)
    base = os.environ.get("XDG_RUNTIME_DIR")
    return Path(base) / "schedd" if base else state_dir() / "run"
