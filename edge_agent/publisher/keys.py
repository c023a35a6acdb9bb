"""Keys of those who may release models, and what is signed with them.

A private key may be protected with a passphrase. That is read from the file that EDGE_AGENT_KEY_PASSWORD_FILE names,
else asked for at the terminal: it stands in no command line, no environment and no log.
"""

import getpass
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge_agent.durable import replace_file
from edge_agent.models.release.manifest import (
    MANIFEST,
    MAX_SIZE,
    Manifest,
    ManifestError,
    SignedManifest,
    parse,
    unsigned,
)
from edge_agent.models.release.signatures import KeyFileError, key_id, read_private_key, sign, verify
from edge_agent.publisher.errors import ReleaseError

PASSWORD_FILE = "EDGE_AGENT_KEY_PASSWORD_FILE"  # noqa: S105  the name of a variable


def make_key(path: Path, *, protected: bool = False) -> tuple[str, Path]:
    """Write a new private key to `path`, for its owner alone, and the public one beside it.

    `protected` is whether it gets a passphrase. Returns the key's id and the file of the public key. Raises
    ReleaseError, OSError.
    """
    public = path.with_name(f"{path.name.removesuffix('.pem')}.pub.pem")
    for file in (path, public):
        if file.exists():
            raise ReleaseError(f"{file}: is there already; a key that is lost cannot be made again")
    key = Ed25519PrivateKey.generate()
    encryption = (
        serialization.BestAvailableEncryption(passphrase(path, twice=True))
        if protected
        else serialization.NoEncryption()
    )
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as secret:
        secret.write(pem)
    public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return key_id(key.public_key()), public


def passphrase(path: Path, *, twice: bool = False) -> bytes:
    """Return the passphrase of a key. Raises ReleaseError where nobody can be asked, OSError."""
    file = os.environ.get(PASSWORD_FILE)
    if file:
        given = Path(file).read_bytes().removesuffix(b"\n")
    elif sys.stdin.isatty():
        given = getpass.getpass(f"Passphrase of {path}: ").encode()
        if twice and getpass.getpass("Again: ").encode() != given:
            raise ReleaseError(f"{path}: the two passphrases differ; no key was made")
    else:
        raise ReleaseError(
            f"{path}: nobody is there to ask for its passphrase: let {PASSWORD_FILE} name a file with it"
        )
    if not given:
        raise ReleaseError(f"{path}: the passphrase is empty")
    return given


def read_keys(files: Sequence[Path]) -> list[Ed25519PrivateKey]:
    """Read the private keys to sign with. Raises ReleaseError, OSError."""
    try:
        return [read_private_key(file, passphrase) for file in files]
    except KeyFileError as error:
        raise ReleaseError(str(error)) from error


def signed_with(manifest: Manifest, keys: Sequence[Ed25519PrivateKey]) -> SignedManifest:
    """Return the file of a manifest with a signature by each of the keys.

    Raises ReleaseError for one that devices could not read.
    """
    file = unsigned(manifest)
    for key in keys:
        file = sign(file, key)
    return _readable(file)


def _readable(file: SignedManifest) -> SignedManifest:
    data = file.encode()
    if len(data) > MAX_SIZE:
        raise ReleaseError(f"{MANIFEST} would have {len(data)} bytes, and devices read {MAX_SIZE}: shorten the labels")
    try:
        return parse(data)
    except ManifestError as error:
        raise ReleaseError(f"the release would not be a good one: {MANIFEST} {error}") from error


def check_signed(file: SignedManifest, keys: Sequence[Ed25519PrivateKey]) -> None:
    """See that one of `keys` has signed the file. Raises UntrustedError."""
    verify(file, [key.public_key() for key in keys])


def key_ids(keys: Sequence[Ed25519PrivateKey]) -> set[str]:
    """Return the ids of keys."""
    return {key_id(key.public_key()) for key in keys}


def lost_signatures(before: SignedManifest, after: SignedManifest) -> list[str]:
    """Return the ids of the keys that have signed what was there before, and not what comes after it."""
    return sorted({each.key for each in before.signatures} - {each.key for each in after.signatures})


def read_manifest(folder: Path) -> SignedManifest:
    """Read the manifest of a release in a folder. Raises ReleaseError, OSError."""
    path = folder / MANIFEST
    try:
        return parse(path.read_bytes())
    except ManifestError as error:
        raise ReleaseError(f"{path}: {error}") from error


def sign_release(
    folder: Path, key_files: Sequence[Path], *, expires: int | None = None
) -> tuple[SignedManifest, list[str]]:
    """Sign the manifest of a release in a folder; `expires` (seconds since 1970) changes what is signed.

    Returns it, and the ids of the keys whose signatures are lost by that. Raises ReleaseError, OSError.
    """
    keys = read_keys(key_files)
    before = file = read_manifest(folder)
    if expires is not None and expires != file.manifest.expires:
        file = unsigned(msgspec.structs.replace(file.manifest, expires=expires))
    for key in keys:
        file = sign(file, key)
    replace_file(folder / MANIFEST, _readable(file).encode())
    return file, lost_signatures(before, file)
