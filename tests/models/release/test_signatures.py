"""Who is believed: signatures over manifests, and the files that keys come in."""

import base64
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.models.release import signatures
from edge_agent.models.release.manifest import ManifestError, Signature, SignedManifest, parse, unsigned
from edge_agent.models.release.releases import Claims
from edge_agent.models.release.signatures import (
    KeyFileError,
    UntrustedError,
    key_id,
    read_private_key,
    read_public_key,
    sign,
    sign_model,
    verify,
    verify_model,
)
from tests.models.rollout.release_kit import edited, manifest, public_file

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(32))
KEYS = [KEY.public_key()]
FILE = unsigned(manifest("v1.3", b"model"))
SIGNED = sign(FILE, KEY)


def distrust(file: SignedManifest) -> str:
    with pytest.raises(UntrustedError) as error:
        verify(file, KEYS)
    return str(error.value)


def test_a_trusted_signature() -> None:
    assert verify(parse(SIGNED.encode()), KEYS) == key_id(KEY.public_key())


def test_the_id_of_a_key_is_a_hash_of_it() -> None:
    # RFC 8032, section 7.1, test 1: its public key, hashed with sha256sum.
    public = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
    assert key_id(Ed25519PublicKey.from_public_bytes(public)) == "21fe31dfa154a261"


def test_none_another_and_a_changed_one() -> None:
    assert distrust(FILE) == "is not signed"
    ours, theirs = key_id(KEY.public_key()), key_id(OTHER.public_key())
    assert distrust(sign(FILE, OTHER)) == f"is signed with {theirs} and not with {ours}"
    assert distrust(parse(edited(SIGNED, version="v6.6"))) == f"was changed after it was signed with {ours}"


def test_a_signature_under_the_name_of_a_trusted_key_is_not_believed() -> None:
    [forged] = sign(FILE, OTHER).signatures
    under = msgspec.structs.replace(forged, key=key_id(KEY.public_key()))
    assert "was changed after" in distrust(SignedManifest(FILE.manifest, FILE.signed, [under]))
    broken = msgspec.structs.replace(under, signature="no base64!")
    assert "was changed after" in distrust(SignedManifest(FILE.manifest, FILE.signed, [broken]))


def test_a_signature_over_the_bare_bytes_is_for_something_else() -> None:
    bare = base64.b64encode(KEY.sign(FILE.signed)).decode()
    [good] = SIGNED.signatures
    assert "was changed" in distrust(
        SignedManifest(FILE.manifest, FILE.signed, [msgspec.structs.replace(good, signature=bare)])
    )


def test_keys_are_changed_with_both_signatures() -> None:
    both = parse(sign(SIGNED, OTHER).encode())
    assert verify(both, KEYS) == key_id(KEY.public_key())
    assert verify(both, [OTHER.public_key()]) == key_id(OTHER.public_key())
    # A bad one besides is no harm.
    assert verify(parse(sign(sign(FILE, OTHER), KEY).encode()), KEYS)
    assert len(sign(SIGNED, KEY).signatures) == 1


@given(position=st.integers(0), flip=st.integers(1, 255))
def test_no_changed_byte_of_what_is_signed_passes(position: int, flip: int) -> None:
    content = bytearray(SIGNED.encode())
    start = content.index(SIGNED.signed)
    content[start + position % len(SIGNED.signed)] ^= flip
    with pytest.raises((ManifestError, UntrustedError)):
        verify(parse(bytes(content)), KEYS)


def test_key_files(tmp_path: Path) -> None:
    public = Path(public_file(KEY, tmp_path))
    assert key_id(read_public_key(public)) == key_id(KEY.public_key())
    private = tmp_path / "key.pem"
    private.write_bytes(KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    assert read_private_key(private).private_bytes_raw() == KEY.private_bytes_raw()
    for read, path, what in (
        (read_public_key, private, "holds no public key in PEM form"),
        (read_private_key, public, "holds no private key in PEM form, without a password"),
    ):
        with pytest.raises(KeyFileError, match=f"^{path}: {what}$"):
            read(path)


def test_keys_of_other_kinds(tmp_path: Path) -> None:
    other = generate_private_key(SECP256R1())
    public, private, locked = (tmp_path / name for name in ("pub", "key", "locked"))
    public.write_bytes(other.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    private.write_bytes(other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    locked.write_bytes(KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")))
    with pytest.raises(KeyFileError, match="Ed25519"):
        read_public_key(public)
    with pytest.raises(KeyFileError, match="Ed25519"):
        read_private_key(private)
    with pytest.raises(KeyFileError, match="without a password"):
        read_private_key(locked)


def signed_as(signature: bytes | str, key: str = "") -> SignedManifest:
    text = signature if isinstance(signature, str) else base64.b64encode(signature).decode()
    return SignedManifest(FILE.manifest, FILE.signed, [Signature(key or key_id(KEY.public_key()), text)])


def test_signatures_of_other_lengths_and_kinds() -> None:
    good = base64.b64decode(SIGNED.signatures[0].signature)
    assert verify(signed_as(good), KEYS)
    ecdsa = generate_private_key(SECP256R1()).sign(b"edge-agent release\0" + FILE.signed, ECDSA(SHA256()))
    # RFC 8032, section 5.1.7: S must be less than the order of the group, or each signature would have others.
    order = 2**252 + 27742317777372353535851937790883648493
    larger = good[:32] + (int.from_bytes(good[32:], "little") + order).to_bytes(32, "little")
    for other in (b"", good[:63], good + b"\0", good[:32], bytes(64), good[32:] + good[:32], ecdsa[:64], larger):
        assert "was changed after" in distrust(signed_as(other))
    for text in ("é", "=", "A", "\x1b[2J", base64.b64encode(good).decode() + "\n"):
        assert "was changed after" in distrust(signed_as(text))


def test_two_keys_of_one_name_are_both_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 bits are few enough that somebody may find a second key with the name of the first."""
    monkeypatch.setattr(signatures, "key_id", lambda _: "0" * 16)
    for keys in ([KEY.public_key(), OTHER.public_key()], [OTHER.public_key(), KEY.public_key()]):
        assert verify(sign(FILE, KEY), keys) == "0" * 16
        assert verify(sign(FILE, OTHER), keys) == "0" * 16
    with pytest.raises(UntrustedError, match="was changed after"):
        verify(sign(FILE, OTHER), KEYS)


def test_a_signature_over_a_manifest_is_none_over_a_model_and_the_other_way_round() -> None:
    claims = Claims(sha256="0" * 64, sequence="1")
    signed = sign_model("v1.3", claims, KEY)
    assert verify_model("v1.3", signed, KEYS) == key_id(KEY.public_key())
    message = "\n".join(("v1.3", claims.sha256, "1", "", "", "", "")).encode()
    as_manifest = base64.b64encode(KEY.sign(b"edge-agent release\0" + message)).decode()
    with pytest.raises(UntrustedError, match="was changed after"):
        verify_model("v1.3", msgspec.structs.replace(signed, signature=as_manifest), KEYS)
    assert "was changed after" in distrust(signed_as(KEY.sign(b"edge-agent model\0" + FILE.signed)))
