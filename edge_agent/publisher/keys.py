"""Keys of those who may release models, and what is signed with them."""

import os
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge_agent.durable import replace_file
from edge_agent.models.manifest import MANIFEST, ManifestError, SignedManifest, parse, unsigned
from edge_agent.models.signatures import KeyFileError, key_id, read_private_key, sign
from edge_agent.publisher.build import ReleaseError


def make_key(path: Path) -> tuple[str, Path]:
    """Write a new private key to `path`, for its owner alone, and the public one beside it.

    Returns the key's id and the file of the public key. Raises ReleaseError, OSError.
    """
    public = path.with_name(f"{path.name.removesuffix('.pem')}.pub.pem")
    for file in (path, public):
        if file.exists():
            raise ReleaseError(f"{file}: is there already; a key that is lost cannot be made again")
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as secret:
        secret.write(pem)
    public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return key_id(key.public_key()), public


def read_manifest(folder: Path) -> SignedManifest:
    """Read the manifest of a release in a folder. Raises ReleaseError, OSError."""
    path = folder / MANIFEST
    try:
        return parse(path.read_bytes())
    except ManifestError as error:
        raise ReleaseError(f"{path}: {error}") from error


def sign_release(folder: Path, key_file: Path, *, expires: int | None = None) -> SignedManifest:
    """Sign the manifest of a release in a folder; `expires` (seconds since 1970) changes what is signed.

    Raises ReleaseError, OSError.
    """
    try:
        key = read_private_key(key_file)
    except KeyFileError as error:
        raise ReleaseError(str(error)) from error
    file = read_manifest(folder)
    if expires is not None and expires != file.manifest.expires:
        file = unsigned(msgspec.structs.replace(file.manifest, expires=expires))
    signed = sign(file, key)
    replace_file(folder / MANIFEST, signed.encode())
    return signed
