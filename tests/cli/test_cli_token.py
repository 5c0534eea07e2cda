"""`schedd token` and `schedd tls`: the files that they make, and what they say."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from schedd.credentials import find_credentials
from schedd.server.tokens import load_tokens
from schedd.tls import client_context, server_context
from schedd.wire.auth import parse_token, verifier_of

from .conftest import Run


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SCHEDD_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state"


def test_token_is_shown_once(run: Run, state: Path) -> None:
    ran = run("token", "create", "--role", "client", "--name", "alice")
    assert ran.code == 0
    token = parse_token(ran.out)
    assert "reload" in ran.err
    assert token.text() not in ran.err
    (kept,) = load_tokens(state / "tokens.json").values()
    assert kept == verifier_of(token, "alice", kept.created_at)
    secret = token.text().rpartition(".")[2]
    assert secret not in (state / "tokens.json").read_text()
    assert secret not in run("token", "list").out


def test_token_in_a_file_of_its_own(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "worker.token"
    assert run("token", "create", "--role", "worker", "--out", str(file)).out == ""
    assert file.stat().st_mode & 0o777 == 0o600
    assert find_credentials(str(file)).token == parse_token(file.read_text())
    again = run("token", "create", "--role", "worker", "--out", str(file))
    assert again.code == 2
    assert "File exists" in again.err
    assert len(run("token", "list", "--quiet").out.split()) == 1


def test_list_and_revoke(run: Run) -> None:
    assert "no tokens" in run("token", "list").err
    for role, name in (("client", "alice"), ("client", "alice"), ("worker", "w"), ("admin", "root")):
        run("token", "create", "--role", role, "--name", name)
    rows = run("token", "list", "--json").json()
    assert [(row["role"], row["name"]) for row in rows] == [
        ("client", "alice"), ("client", "alice"), ("worker", "w"), ("admin", "root"),
    ]  # fmt: skip
    assert set(rows[0]) == {"id", "role", "name", "created_at"}
    assert "revoked 2 tokens" in run("token", "revoke", "alice").err
    assert run("token", "revoke", rows[2]["id"]).code == 0
    gone = run("token", "revoke", "alice")
    assert gone.code == 5
    assert "no token 'alice'" in gone.err
    assert [row["name"] for row in run("token", "list", "--json").json()] == ["root"]


def test_settings_say_where_the_tokens_are(run: Run, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(f'[auth]\ntokens = "{tmp_path}/elsewhere.json"\n')
    assert run("token", "create", "--role", "admin", "--config", str(config), "--json").json()["token"]
    assert len(load_tokens(tmp_path / "elsewhere.json")) == 1
    assert run("token", "list", "--quiet", "--tokens", f"{tmp_path}/elsewhere.json").out


def test_name_that_is_none(run: Run) -> None:
    ran = run("token", "create", "--role", "admin", "--name", "two words")
    assert ran.code == 7
    assert "no name of a token" in ran.err


def test_file_that_others_may_read_is_not_written(run: Run, state: Path) -> None:
    run("token", "create", "--role", "admin")
    (state / "tokens.json").chmod(0o644)
    ran = run("token", "create", "--role", "admin")
    assert ran.code == 7
    assert "chmod 600" in ran.err


def test_authority_and_certificates(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "tls"
    ran = run("tls", "init", str(folder), "--name", "head", "--name", "10.0.0.5")
    assert ran.code == 0
    assert "SCHEDD_TLS_CA" in ran.err
    assert {file.name: file.stat().st_mode & 0o777 for file in folder.iterdir()} == {
        "ca.pem": 0o644, "ca.key": 0o600, "server.pem": 0o644, "server.key": 0o600,
    }  # fmt: skip
    shown = run("tls", "show", str(folder / "server.pem"), "--json").json()
    assert shown["names"] == ["head", "10.0.0.5", "localhost", "127.0.0.1", "::1"]
    context, binding = server_context(str(folder / "server.pem"), str(folder / "server.key"), str(folder / "ca.pem"))
    assert binding.hex() == shown["fingerprint"]
    assert context.verify_mode == ssl.CERT_OPTIONAL
    assert client_context(find_credentials(tls_ca=str(folder / "ca.pem"))).verify_mode == ssl.CERT_REQUIRED
    assert run("tls", "client", str(folder), "node7").code == 0
    assert (folder / "node7.key").stat().st_mode & 0o777 == 0o600
    before = (folder / "server.pem").read_bytes()
    assert run("tls", "server", str(folder), "--name", "head").code == 0
    assert (folder / "server.pem").read_bytes() != before


def test_renewal_tells_the_names_that_are_lost(run: Run, tmp_path: Path) -> None:
    run("tls", "init", str(tmp_path), "--name", "head", "--name", "10.0.0.5", "--name", "head.example")
    ran = run("tls", "server", str(tmp_path), "--name", "head", "--name", "new")
    assert ran.code == 0
    assert "was also for 10.0.0.5, head.example; to keep them, add --name 10.0.0.5 --name head.example\n" in ran.err
    assert "warning" not in run("tls", "server", str(tmp_path), "--name", "head", "--name", "new").err
    (tmp_path / "server.pem").write_text("nonsense")
    assert run("tls", "server", str(tmp_path), "--name", "head").code == 0


def test_authority_is_not_overwritten(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "tls"
    run("tls", "init", str(folder))
    before = (folder / "ca.key").read_bytes()
    ran = run("tls", "init", str(folder))
    assert ran.code == 7
    assert "there already" in ran.err
    assert (folder / "ca.key").read_bytes() == before


@pytest.mark.parametrize("name", ["ca.key", "ca.pem", "server.key", "server.pem"])
def test_authority_is_made_whole_or_not_at_all(run: Run, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("old")
    ran = run("tls", "init", str(tmp_path))
    assert ran.code == 7
    assert f"{name} is there already" in ran.err
    assert [file.name for file in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "old"


def test_name_that_is_longer_than_a_subject_may_be(run: Run, tmp_path: Path) -> None:
    name = f"{'a' * 60}.{'b' * 60}.example"
    assert run("tls", "init", str(tmp_path), "--name", name).code == 0
    shown = run("tls", "show", str(tmp_path / "server.pem"), "--json").json()
    assert shown["names"][0] == name
    assert shown["subject"] == f"CN={name[:64]}"


@pytest.mark.parametrize(
    "words",
    [
        ["server", "{}", "--name", "head"],
        ["client", "{}", "node7"],
        ["show", "{}/none.pem"],
        ["client", "{}", "../x"],
        ["client", "{}", "ca"],
        ["init", "{}", "--name", "two words and more…\n"],
    ],
)
def test_what_cannot_be_made(run: Run, tmp_path: Path, words: list[str]) -> None:
    ran = run("tls", *(word.replace("{}", str(tmp_path)) for word in words))
    assert ran.code == 7
    assert "Traceback" not in ran.err


def test_authority_that_is_damaged(run: Run, tmp_path: Path) -> None:
    folder, other = tmp_path / "tls", tmp_path / "other"
    run("tls", "init", str(folder))
    run("tls", "init", str(other))
    (folder / "ca.key").write_bytes((other / "ca.key").read_bytes())
    ran = run("tls", "client", str(folder), "node7")
    assert ran.code == 7
    assert "is not the key of" in ran.err
    (folder / "ca.key").write_text("nonsense")
    assert "cannot be used" in run("tls", "client", str(folder), "node7").err
