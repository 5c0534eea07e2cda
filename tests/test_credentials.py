"""What a peer shows of itself: where it is found, and which files are good enough for a secret."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from schedd.credentials import SYSTEM, VARIABLES, Credentials, credential, find_credentials, path_of, read_secret
from schedd.errors import ConfigError
from schedd.wire.auth import Role, make_token

TOKEN = make_token(Role.CLIENT, bytes(40))


@pytest.fixture(autouse=True)
def nothing_given(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def secret(folder: Path, text: str = TOKEN.text(), mode: int = 0o600) -> str:
    path = folder / "token"
    path.write_text(text)
    path.chmod(mode)
    return str(path)


def test_nothing_is_shown_by_default() -> None:
    assert find_credentials() == Credentials()


def test_what_is_given_wins_over_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCHEDD_TOKEN_FILE", "/nowhere")
    monkeypatch.setenv("SCHEDD_TLS_CA", "/etc/ca.pem")
    monkeypatch.setenv("SCHEDD_TLS_NAME", "head")
    found = find_credentials(secret(tmp_path), tls_ca=SYSTEM)
    assert found == Credentials(TOKEN, SYSTEM, "", "", "head")


def test_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCHEDD_TOKEN_FILE", secret(tmp_path, f"{TOKEN.text()}\n"))
    monkeypatch.setenv("SCHEDD_TLS_CA", "~/ca.pem")
    monkeypatch.setenv("HOME", "/home/alice")
    assert find_credentials() == Credentials(TOKEN, "/home/alice/ca.pem")


def test_certificate_without_an_authority_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match="no authority") as raised:
        find_credentials(tls_cert="x.pem")
    assert "--tls-ca" in raised.value.hint


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660, 0o622])
def test_secret_that_others_may_touch(tmp_path: Path, mode: int) -> None:
    path = secret(tmp_path, mode=mode)
    with pytest.raises(ConfigError, match="may be read by others") as raised:
        find_credentials(path)
    assert raised.value.hint == f"chmod 600 {path}"
    assert TOKEN.text() not in str(raised.value)


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_secret_that_is_ours_alone(tmp_path: Path, mode: int) -> None:
    assert read_secret(secret(tmp_path, mode=mode)) == TOKEN.text().encode()


@pytest.mark.needs("root")
def test_secret_of_somebody_else(tmp_path: Path) -> None:
    folder = Path("/tmp") / f"schedd-secret-{os.getpid()}"
    folder.mkdir()
    try:
        path = secret(folder)
        os.chown(path, 40001, 40001)
        assert read_secret(path)  # root may read all, and looks after the files of services
        os.chown(path, 40002, 40002)
        os.seteuid(40001)
        try:
            with pytest.raises(ConfigError, match="Permission denied"):
                read_secret(path)
        finally:
            os.seteuid(0)
    finally:
        Path(path).unlink()
        folder.rmdir()


def test_secret_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_secret(str(tmp_path / "none"))
    with pytest.raises(ConfigError):
        read_secret(str(tmp_path))


def test_file_with_something_else(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"token file .*: this is not a token"):
        find_credentials(secret(tmp_path, "hunter2"))
    with pytest.raises(ConfigError, match="too large"):
        find_credentials(secret(tmp_path, "x" * 2_000_000))


def test_credentials_of_systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert credential("token") is None
    with pytest.raises(ConfigError, match="there is no credential 'token'"):
        path_of("credential:token")
    secret(tmp_path, mode=0o440)  # as systemd makes them: its folder is closed, and access lists are beside the mode
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert path_of("credential:token") == tmp_path / "token"
    assert find_credentials("credential:token") == Credentials(TOKEN)
    for name in ("", "../token", "none"):
        assert credential(name) is None


def test_standard_input_is_read_once_and_closed() -> None:
    program = (
        "import os; from schedd.credentials import find_credentials; token = find_credentials('-').token; "
        "print(token.id, os.readlink('/proc/self/fd/0'))"
    )
    ran = subprocess.run([sys.executable, "-c", program], input=TOKEN.text(), capture_output=True, text=True)
    assert ran.stdout.split() == [TOKEN.id, "/dev/null"], ran.stderr
