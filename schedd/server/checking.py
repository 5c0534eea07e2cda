"""What a start would say of the files and names that settings have: for `schedd check`, and for a reload."""

from __future__ import annotations

import os
from collections.abc import Collection

from schedd.address import journal_path, parse_address
from schedd.config import Settings, TlsSettings
from schedd.credentials import CREDENTIAL, path_of
from schedd.errors import ConfigError
from schedd.server.tokens import load_tokens, tokens_path
from schedd.server.users import make_access
from schedd.tls import server_context


def check_start(settings: Settings, hidden: Collection[str] = ()) -> None:
    """Read what a start reads, and make of paths what it makes of them; may take a while. Raises ConfigError.

    hidden: keys of files that are not to be read, see `hidden_files`.
    """
    make_access(settings.auth)
    if "auth.tokens" not in hidden:
        load_tokens(tokens_path(settings.auth.tokens))
    if settings.tls.is_on:
        _check_tls(settings.tls, hidden)
    if settings.server.socket:
        parse_address(f"unix:{settings.server.socket}")
    if settings.journal.enabled:
        journal_path(settings.journal.path)


def hidden_files(settings: Settings) -> list[str]:
    """The keys of files that only the daemon may read, or systemd gives to it alone. Raises ConfigError."""
    files = {"auth.tokens": settings.auth.tokens, **_tls_files(settings.tls)}
    return [key for key, text in files.items() if text and _is_hidden(text)]


def _tls_files(tls: TlsSettings) -> dict[str, str]:
    return {"tls.cert": tls.cert, "tls.key": tls.key, "tls.client_ca": tls.client_ca}


def _check_tls(tls: TlsSettings, hidden: Collection[str]) -> None:
    files = _tls_files(tls)
    if not any(key in hidden for key in files):
        server_context(tls.cert, tls.key, tls.client_ca)
        return
    for key, text in files.items():  # they count together or not at all, but each must be there
        if text and key not in hidden and not path_of(text).exists():
            raise ConfigError(f"{key} {text}: there is no such file")


def _is_hidden(text: str) -> bool:
    if text.startswith(CREDENTIAL) and "CREDENTIALS_DIRECTORY" not in os.environ:
        return True
    path = path_of(text)
    try:
        path.stat()
    except PermissionError:
        return True
    except OSError:
        return False  # which whoever reads it will tell
    return not os.access(path, os.R_OK)
