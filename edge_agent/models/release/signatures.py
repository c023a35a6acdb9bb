"""Who may release models: Ed25519 signatures over manifests and models (RFC 8032), with keys in PEM files.

Several keys may be trusted at a time, and a manifest may have several signatures, so a key can be changed without a
day on which devices trust nobody: sign with both, give the devices the new one, stop signing with the old one.
"""

import base64
import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from edge_agent.models.release.manifest import Signature, SignedManifest
from edge_agent.models.release.releases import Claims, clean_version

# So that a signature made for something else can never pass for one over a manifest, or over a model in the plain form.
_CONTEXT = b"edge-agent release\0"
_PLAIN_CONTEXT = b"edge-agent model\0"
_MAX_FILE = 64 * 1024
_ENCRYPTED = b"ENCRYPTED"
_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \1-----", re.DOTALL)


class KeyFileError(ValueError):
    """A file holds no key of the kind wanted. The message begins with its name."""


class UntrustedError(ValueError):
    """None of the trusted keys has signed. The message goes on behind the name of what was to be signed."""


def key_id(key: Ed25519PublicKey) -> str:
    """Return the name of a key: the first 16 hexadecimal digits of the SHA-256 of its 32 bytes."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16]


def read_public_keys(path: Path) -> list[Ed25519PublicKey]:
    """Read a PEM file with one key or several. Raises KeyFileError, OSError."""
    data = _read(path)
    blocks = [match[0] for match in _BLOCK.finditer(data)]
    if not blocks or len(blocks) != data.count(b"-----BEGIN "):
        raise KeyFileError(f"{path}: holds no public key in PEM form, or one that is cut short")
    return [_public_key(block, path) for block in blocks]


def read_public_key(path: Path) -> Ed25519PublicKey:
    """Read a PEM file. Raises KeyFileError, OSError."""
    return _public_key(_read(path), path)


def _public_key(pem: bytes, path: Path) -> Ed25519PublicKey:
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise KeyFileError(f"{path}: holds no public key in PEM form") from error
    if not isinstance(key, Ed25519PublicKey):
        raise KeyFileError(f"{path}: holds a key of another kind; releases are signed with Ed25519")
    return key


def read_private_key(path: Path, passphrase: Callable[[Path], bytes] | None = None) -> Ed25519PrivateKey:
    """Read a PEM file; `passphrase` is asked where it has one. Raises KeyFileError, OSError."""
    data = _read(path)
    secret = passphrase(path) if passphrase is not None and _ENCRYPTED in data else None
    try:
        key = serialization.load_pem_private_key(data, secret)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        if secret is not None:
            raise KeyFileError(f"{path}: cannot be read; its passphrase is another") from error
        raise KeyFileError(f"{path}: holds no private key in PEM form, without a password") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyFileError(f"{path}: holds a key of another kind; releases are signed with Ed25519")
    return key


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(_MAX_FILE + 1)
    if len(data) > _MAX_FILE:
        raise KeyFileError(f"{path}: is longer than {_MAX_FILE // 1024} KiB, which is no file of keys")
    return data


def sign(file: SignedManifest, key: Ed25519PrivateKey) -> SignedManifest:
    """Return the file with a signature by this key; one that it had by it is replaced."""
    made = base64.b64encode(key.sign(_CONTEXT + file.signed)).decode()
    name = key_id(key.public_key())
    others = [each for each in file.signatures if each.key != name]
    return SignedManifest(file.manifest, file.signed, [*others, Signature(name, made)])


def sign_model(version: str, claims: Claims, key: Ed25519PrivateKey) -> Claims:
    """Return the metadata of a model in the plain form with `key` and `signature`."""
    made = base64.b64encode(key.sign(_plain(version, claims))).decode()
    return msgspec.structs.replace(claims, key=key_id(key.public_key()), signature=made)


def verify(file: SignedManifest, keys: Sequence[Ed25519PublicKey]) -> str:
    """Return the id of a trusted key that has signed. Raises UntrustedError."""
    return _verify(_CONTEXT + file.signed, file.signatures, keys)


def verify_model(version: str, claims: Claims, keys: Sequence[Ed25519PublicKey]) -> str:
    """Return the id of the trusted key that has signed a model in the plain form. Raises UntrustedError."""
    signatures = [Signature(claims.key, claims.signature)] if claims.signature else []
    return _verify(_plain(version, claims), signatures, keys)


def _plain(version: str, claims: Claims) -> bytes:
    lines = (
        version,
        claims.sha256,
        claims.sequence,
        claims.rollout,
        claims.name,
        claims.labels,
        claims.accuracy,
    )
    if any("\n" in line for line in lines):
        raise UntrustedError("has a line break in its metadata, which cannot be signed")
    return _PLAIN_CONTEXT + "\n".join(lines).encode("utf-8", "surrogateescape")


def _verify(signed: bytes, signatures: Sequence[Signature], keys: Sequence[Ed25519PublicKey]) -> str:
    if not signatures:
        raise UntrustedError("is not signed")
    known = [(key_id(key), key) for key in keys]
    for signature in signatures:
        # All keys of that name: it is short enough that somebody may have made a second one.
        if any(name == signature.key and _is_good(signature, key, signed) for name, key in known):
            return signature.key
    names = {name for name, _ in known}
    if found := [each.key for each in signatures if each.key in names]:
        raise UntrustedError(f"was changed after it was signed with {found[0]}")
    raise UntrustedError(f"is signed with {_names(each.key for each in signatures)} and not with {_names(names)}")


def _is_good(signature: Signature, key: Ed25519PublicKey, signed: bytes) -> bool:
    try:
        key.verify(base64.b64decode(signature.signature, validate=True), signed)
    except (InvalidSignature, ValueError):  # ValueError: it is no Base64
        return False
    return True


def _names(keys: Iterable[str]) -> str:
    return " or ".join(sorted(clean_version(each) for each in set(keys)))
