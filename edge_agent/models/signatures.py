"""Who may release models: Ed25519 signatures over manifests (RFC 8032), with keys in PEM files.

Several keys may be trusted at a time, and a manifest may have several signatures, so a key can be changed without a
day on which devices trust nobody: sign with both, give the devices the new one, stop signing with the old one.
"""

import base64
import binascii
import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from edge_agent.models.manifest import Signature, SignedManifest

# So that a signature made for something else can never pass for one over a manifest.
_CONTEXT = b"edge-agent release\0"
_MAX_FILE = 64 * 1024
_ENCRYPTED = b"ENCRYPTED"


class KeyFileError(ValueError):
    """A file holds no key of the kind wanted. The message begins with its name."""


class UntrustedError(ValueError):
    """None of the trusted keys has signed. The message goes on behind the name of the manifest."""


def key_id(key: Ed25519PublicKey) -> str:
    """Return the name of a key: the first 16 hexadecimal digits of the SHA-256 of its 32 bytes."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16]


def read_public_key(path: Path) -> Ed25519PublicKey:
    """Read a PEM file. Raises KeyFileError, OSError."""
    try:
        key = serialization.load_pem_public_key(_read(path))
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
        why = "cannot be read: its passphrase is another" if secret else "holds no private key in PEM form, without a password"
        raise KeyFileError(f"{path}: {why}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyFileError(f"{path}: holds a key of another kind; releases are signed with Ed25519")
    return key


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_MAX_FILE)


def sign(file: SignedManifest, key: Ed25519PrivateKey) -> SignedManifest:
    """Return the file with a signature by this key; one that it had by it is replaced."""
    made = base64.b64encode(key.sign(_CONTEXT + file.signed)).decode()
    name = key_id(key.public_key())
    others = [each for each in file.signatures if each.key != name]
    return SignedManifest(file.manifest, file.signed, [*others, Signature(name, made)])


def verify(file: SignedManifest, keys: Sequence[Ed25519PublicKey]) -> str:
    """Return the id of a trusted key that has signed. Raises UntrustedError."""
    known = {key_id(key): key for key in keys}
    if not file.signatures:
        raise UntrustedError("is not signed")
    for signature in file.signatures:
        key = known.get(signature.key)
        if key is not None and _is_good(signature, key, file.signed):
            return signature.key
    if found := [each.key for each in file.signatures if each.key in known]:
        raise UntrustedError(f"was changed after it was signed with {found[0]}")
    raise UntrustedError(f"is signed with {_names(each.key for each in file.signatures)} and not with {_names(known)}")


def _is_good(signature: Signature, key: Ed25519PublicKey, signed: bytes) -> bool:
    try:
        key.verify(base64.b64decode(signature.signature, validate=True), _CONTEXT + signed)
    except (InvalidSignature, binascii.Error):
        return False
    return True


def _names(keys: Iterable[str]) -> str:
    return " or ".join(sorted(set(keys)))
