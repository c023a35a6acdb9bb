"""Where the keys come from that a device trusts: files of the settings, and what systemd passes on."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge_agent.models.open import KEYS_CREDENTIAL, trusted_keys
from edge_agent.models.release.signatures import KeyFileError, key_id, read_public_keys
from tests.models.rollout.release_kit import public_file

KEYS = [Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in range(3)]


def test_the_credential_counts_besides_the_settings(tmp_path: Path) -> None:
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    assert trusted_keys(["/etc/a.pem"], {}) == ["/etc/a.pem"]
    assert trusted_keys(["/etc/a.pem"], environ) == ["/etc/a.pem"]
    (tmp_path / KEYS_CREDENTIAL).write_bytes(b"")
    assert trusted_keys(["/etc/a.pem"], environ) == ["/etc/a.pem", str(tmp_path / KEYS_CREDENTIAL)]


def test_a_file_may_hold_several_keys_with_words_between(tmp_path: Path) -> None:
    pems = [Path(public_file(key, tmp_path)).read_bytes() for key in KEYS]
    file = tmp_path / "keys.pem"
    file.write_bytes(b"# the old one\n" + pems[0] + b"\n# the new ones\r\n" + pems[1] + pems[2])
    assert [key_id(key) for key in read_public_keys(file)] == [key_id(key.public_key()) for key in KEYS]


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda _: b"", "holds no public key"),
        (lambda _: b"no key at all", "holds no public key"),
        (lambda pem: pem.replace(b"PUBLIC", b"PRIVATE"), "holds no public key"),
        (lambda pem: pem + pem.replace(b"MCow", b"AAAA"), "holds no public key"),
        (lambda pem: pem + pem[: len(pem) // 2], "holds no public key"),
        (lambda pem: pem + b" " * 65536, "is longer than 64 KiB"),
    ],
)
def test_a_file_with_a_bad_key_is_no_file_with_fewer_keys(tmp_path: Path, damage: object, why: str) -> None:
    file = Path(public_file(KEYS[0], tmp_path))
    assert callable(damage)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(KeyFileError, match=why):
        read_public_keys(file)
