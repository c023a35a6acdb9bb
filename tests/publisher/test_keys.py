"""Keys with a passphrase, several keys, and what is never to be seen of them."""

import getpass
import io
import sys
from pathlib import Path

import pytest

from edge_agent.models.release.signatures import key_id
from edge_agent.publisher.errors import ReleaseError
from edge_agent.publisher.keys import PASSWORD_FILE, make_key, read_keys
from tests.publisher.conftest import Workshop, command


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with the passphrase, which the commands find."""
    path = tmp_path / "secret"
    path.write_text("correct horse\n")
    monkeypatch.setenv(PASSWORD_FILE, str(path))
    return path


def test_a_passphrase_from_a_file(tmp_path: Path, secret: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = tmp_path / "key.pem"
    assert command("new-key", "--passphrase", key) == 0
    assert b"BEGIN ENCRYPTED PRIVATE KEY" in key.read_bytes()
    shop = Workshop(tmp_path, str(tmp_path / "share"))
    folder = shop.build("v1.3", 1)
    assert command("sign", folder, "--key", shop.key, "--key", key) == 0
    assert capsys.readouterr().out.count(", ") == 2  # of what new-key says, and of two keys
    secret.write_text("wrong horse\n")
    assert command("sign", folder, "--key", key) == 65
    said = capsys.readouterr().err
    assert said == f"{key}: cannot be read; its passphrase is another\n"
    secret.write_text("\n")
    assert command("sign", folder, "--key", key) == 65
    assert "the passphrase is empty" in capsys.readouterr().err


def test_a_passphrase_is_asked_for_at_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal())
    answers = ["correct horse", "correct house", "correct horse", "correct horse", "correct horse"]
    monkeypatch.setattr(getpass, "getpass", lambda _: answers.pop(0))
    key = tmp_path / "key.pem"
    assert command("new-key", "--passphrase", key) == 65
    assert "the two passphrases differ; no key was made" in capsys.readouterr().err
    assert not key.exists()
    make_key(key, protected=True)
    assert len(read_keys([key])) == 1
    assert answers == []


def test_a_signature_that_is_lost_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = tmp_path / "new.pem"
    shop = Workshop(tmp_path, str(tmp_path / "share"))
    make_key(new)
    folder = shop.build("v1.3", 1)
    assert command("sign", folder, "--key", new) == 0
    assert capsys.readouterr().err == ""
    assert command("sign", folder, "--key", new, "--expires", "90d") == 0
    old = key_id(read_keys([shop.key])[0].public_key())
    said = f"warning: the signature with {old} is gone, as the time has changed: sign with that --key, too\n"
    assert capsys.readouterr().err == said


def test_a_passphrase_that_nobody_can_give(tmp_path: Path, secret: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_key(tmp_path / "key.pem", protected=True)
    monkeypatch.delenv(PASSWORD_FILE)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    with pytest.raises(ReleaseError, match=f"nobody is there to ask for its passphrase: let {PASSWORD_FILE} name"):
        read_keys([tmp_path / "key.pem"])
