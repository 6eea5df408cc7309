"""Tokens as entries, in a file, and from ``jobqueue token``."""

from __future__ import annotations

import json
import os
from hashlib import sha256
from pathlib import Path

import pytest
import structlog.testing

from jobqueue import tokens
from jobqueue.errors import SettingsError, UnusableFile
from jobqueue.http.access import token_file
from jobqueue.http.access.file_watch import WatchedFiles
from jobqueue.settings import Settings
from jobqueue.tokens import MAX_NAME_LENGTH, MAX_TOKENS, Token
from tests.support.command_line import run_jobqueue

pytestmark = pytest.mark.slow

HEX = sha256(b"open-sesame").hexdigest()


@pytest.mark.parametrize("role", tokens.ROLES)
def test_an_entry_is_a_role_with_a_secret_or_its_sha256(role: str) -> None:
    given, hashed, capital = (tokens.parse(f"{role}:{rest}") for rest in ("open-sesame", f"sha256:{HEX}", f"sha256:{HEX.upper()}"))
    assert (given.role, given.digest, given.plain) == (role, bytes.fromhex(HEX), True)
    assert hashed == capital == given._replace(plain=False)
    assert tokens.parse(given.entry) == hashed
    assert "sesame" not in given.entry
    assert tokens.parse("read:a:b#c").digest == sha256(b"a:b#c").digest()


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ("open-sesame", "has no role.*jobqueue token create --role submit"),
        ("root:open-sesame", "has no role"),
        ("Admin:open-sesame", "has no role"),
        (f"sha256:{HEX}", "has no role"),
        ("", "has no role"),
        ("admin:", "printable ASCII"),
        ("admin", "printable ASCII"),
        ("admin:open sesame", "printable ASCII"),
        ("admin:ümlaut-sesame", "printable ASCII"),
        ("admin:sesame\n", "printable ASCII"),
        (f"admin:sha256:{HEX[:-1]}", "64 hexadecimal"),
        (f"admin:sha256:{HEX}00", "64 hexadecimal"),
        ("admin:sha256:sesame", "64 hexadecimal"),
    ],
)
def test_what_is_no_entry_is_refused_and_not_repeated(entry: str, reason: str) -> None:
    with pytest.raises(SettingsError, match=reason) as refused:
        tokens.parse(entry, "token 1")
    assert str(refused.value).startswith("token 1 ")
    assert "sesame" not in str(refused.value)
    assert HEX[:-1] not in str(refused.value)


def test_a_file_has_an_entry_a_line_with_names_and_comments() -> None:
    text = f"# ours\n\n  submit:a#b   billing team  # since May\r\nread:sha256:{HEX} # Prometheus\n\tadmin:c\n"
    found = tokens.parse_lines(text, "tokens")
    assert [(token.role, token.name, token.plain) for token in found] == [
        ("submit", "billing team", True),
        ("read", "", False),
        ("admin", "", True),
    ]
    assert found[0].digest == sha256(b"a#b").digest()
    with pytest.raises(SettingsError, match="tokens, line 3: the token has no role"):
        tokens.parse_lines("admin:a\n\nsesame\n", "tokens")
    with pytest.raises(SettingsError, match="tokens, line 2: the token has no role"):
        tokens.parse_lines("admin:a # of\x85 \u2028 \u2029 \f \x1c today\rsesame", "tokens")
    with pytest.raises(SettingsError, match="tokens, line 1: the name"):
        tokens.parse_lines(f"admin:a {'x' * (MAX_NAME_LENGTH + 1)}", "tokens")


def test_a_token_has_one_role_and_there_are_not_too_many() -> None:
    twice = [tokens.parse("read:a"), tokens.parse(f"read:sha256:{sha256(b'a').hexdigest()}")]
    assert len(tokens.gather(twice)) == 1
    with pytest.raises(SettingsError, match=r"\(billing\) is given twice, with the roles read and admin"):
        tokens.gather([*twice, tokens.parse("admin:a")._replace(name="billing")])
    many = [tokens.parse(f"read:{number}") for number in range(MAX_TOKENS + 1)]
    assert len(tokens.gather(many[:-1])) == MAX_TOKENS
    with pytest.raises(SettingsError, match=f"{MAX_TOKENS + 1} tokens"):
        tokens.gather(many)


def test_settings_keep_no_secret() -> None:
    settings = Settings(tokens=("admin:open-sesame",))
    assert settings.tokens == (f"admin:sha256:{HEX}",)
    with pytest.raises(SettingsError, match=r"token 2 of --token \(JOBQUEUE_TOKENS\) has no role"):
        Settings(tokens=("admin:a", "sesame"))


# ------------------------------------------------------------------------------------------------------------------------ the file


def written(path: Path, text: str, mode: int = 0o600) -> str:
    path.write_text(text)
    path.chmod(mode)
    return str(path)


@pytest.mark.parametrize(
    ("mode", "text", "warned"), [(0o600, "admin:a", 0), (0o640, "admin:a", 1), (0o644, f"admin:sha256:{HEX}", 0)]
)
def test_plain_secrets_that_others_can_read_are_warned_of(tmp_path: Path, mode: int, text: str, warned: int) -> None:
    with structlog.testing.capture_logs() as logged:
        assert len(token_file.read(written(tmp_path / "tokens", text, mode))) == 1
    assert [line["log_level"] for line in logged] == ["warning"] * warned


def test_a_file_that_cannot_be_used_is_said_clearly(tmp_path: Path) -> None:
    with pytest.raises(UnusableFile, match=r"No such file.*jobqueue token create --role admin --file"):
        token_file.read(str(tmp_path / "none"))
    with pytest.raises(UnusableFile, match="contains no token"):
        token_file.read(written(tmp_path / "empty", "# nobody\n"))
    with pytest.raises(UnusableFile, match="line 1: the token has no role"):
        token_file.read(written(tmp_path / "bad", "sesame"))
    with pytest.raises(UnusableFile, match="more than"):
        token_file.read(written(tmp_path / "large", "#" * (token_file.MAX_FILE_BYTES + 1)))
    (tmp_path / "latin").write_bytes(b"admin:\xe9")
    with pytest.raises(UnusableFile, match="not UTF-8"):
        token_file.read(str(tmp_path / "latin"))
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(UnusableFile, match=r"not a regular file|Is a directory"):
            token_file.read(str(path))


def test_a_file_is_read_again_when_it_changes_and_a_broken_one_is_logged_once(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text("admin:a")
    known: list[list[Token]] = []
    reloaded = WatchedFiles([str(path)], lambda: known.append(token_file.read(str(path))))
    reloaded._keep_up()
    assert len(known) == 1, "it has not changed"

    path.write_text("admin:b")  # the same length as before
    with structlog.testing.capture_logs() as logged:
        reloaded._keep_up()
        assert known[-1] == [tokens.parse("admin:b")]
        path.write_text("sesame")
        reloaded._keep_up()
        reloaded._keep_up()
        path.unlink()
        reloaded._keep_up()
        reloaded._keep_up()
        assert len(known) == 2
        (tmp_path / "new").write_text("admin:b\nread:c")
        (tmp_path / "new").rename(path)
        reloaded._keep_up()
        reloaded._keep_up()
    assert len(known) == 3
    assert [line["log_level"] for line in logged if line["log_level"] != "warning"] == ["info", "error", "error", "info"]
    assert "sesame" not in str(logged)


# --------------------------------------------------------------------------------------------------------------------- the command


def test_the_command_makes_a_token_and_keeps_only_its_sha256(tmp_path: Path) -> None:
    done = run_jobqueue("token", "create", "--role", "submit", "--name", "billing team")
    assert done.returncode == 0
    [(_, secret), (_, line)] = [row.split(maxsplit=1) for row in done.stdout.splitlines()]
    assert secret.startswith("jq_")
    assert len(secret) >= 43
    assert line == f"submit:sha256:{sha256(secret.encode()).hexdigest()} billing team"

    path = tmp_path / "tokens"
    made = [
        json.loads(run_jobqueue("token", "create", "--role", role, "--file", str(path), "--json").stdout)
        for role in ("read", "admin")
    ]
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_text() == "".join(f"{one['line']}\n" for one in made)
    assert [token.digest for token in token_file.read(str(path))] == [sha256(one["token"].encode()).digest() for one in made]
    assert made[0].keys() == {"token", "role", "name", "line", "file"}
    assert len({one["token"] for one in made}) == 2
    assert list(tmp_path.iterdir()) == [path], "nothing is left beside it"


def test_adding_to_a_file_keeps_what_it_is_and_refuses_a_broken_one(tmp_path: Path) -> None:
    real = tmp_path / "real"
    written(real, "# ours\nadmin:a", 0o640)
    link = tmp_path / "link"
    link.symlink_to(real)
    secret, token = tokens.create("read", "x")
    token_file.append(str(link), token)
    assert link.is_symlink()
    assert real.stat().st_mode & 0o777 == 0o640
    assert real.read_text() == f"# ours\nadmin:a\n{token.entry}\n"
    assert secret not in real.read_text()

    real.write_text("sesame")
    with pytest.raises(UnusableFile, match=r"nothing was written.*line 1"):
        token_file.append(str(real), token)
    assert real.read_text() == "sesame"
    refused = run_jobqueue("token", "create", "--role", "read", "--file", str(tmp_path / "no" / "tokens"))
    assert refused.returncode == 1
    assert refused.stdout == "", "a secret that nobody knows is not shown"
    assert "No such file or directory" in refused.stderr
    assert run_jobqueue("token", "create", "--role", "root").returncode == 2
    assert "at most 100 printable" in run_jobqueue("token", "create", "--role", "read", "--name", "a\nadmin:b").stderr
