"""Releases as a publisher makes them, and what somebody who is none makes of them."""

import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from edge_agent.models.release.manifest import FORMAT, Manifest, ObjectFile, SignedManifest, unsigned
from edge_agent.models.release.signatures import sign
from tests.servers.gcs import GcsServer

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
THIEF = Ed25519PrivateKey.from_private_bytes(bytes(32))
"""The key of the publisher, and another one."""
FOLDER = "models/vibration/"
MANIFEST = f"{FOLDER}release.json"


def object_file(data: bytes, name: str = "model.tflite") -> ObjectFile:
    digest = hashlib.sha256(data).hexdigest()
    return ObjectFile(name=f"{digest[:16]}-{name}", size=len(data), sha256=digest)


def manifest(version: str, data: bytes, twin: bytes | None = None, **more: Any) -> Manifest:
    given: dict[str, Any] = {"format": FORMAT, "name": "vibration", "sequence": 1, "labels": ["a", "b"]} | more
    pair = None if twin is None else object_file(twin, "cpu.tflite")
    return Manifest(version=version, model=object_file(data), twin=pair, **given)


class Publisher:
    """Somebody with a key who may write to the bucket; `key` is None for somebody without one."""

    def __init__(self, server: GcsServer, key: Ed25519PrivateKey | None = None) -> None:
        self.server = server
        self.key = key
        self.sequence = 0

    def publish(self, version: str, *, data: bytes = b"", twin: bytes | None = None, **more: Any) -> SignedManifest:
        """Upload the objects and the manifest of a release."""
        data = data or f"model {version}".encode() * 500
        self.sequence += 1
        made = manifest(version, data, twin, **({"sequence": self.sequence} | more))
        for file, content in ((made.model, data), (made.twin, twin)):
            if file is not None and content is not None:
                self.server.upload("bucket", f"{FOLDER}objects/{file.name}", content)
        signed = unsigned(made) if self.key is None else sign(unsigned(made), self.key)
        self.upload(signed.encode())
        return signed

    def upload(self, manifest: bytes) -> None:
        """Upload just a manifest, whatever it is."""
        self.server.upload("bucket", MANIFEST, manifest)


def public_file(key: Ed25519PrivateKey, folder: Path, name: str = "release.pub.pem") -> str:
    """Write the public key, and return the file's name."""
    path = folder / name
    path.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return str(path)


def edited(file: SignedManifest, **changes: Any) -> bytes:
    """The file with other members in what is signed, and the signatures as they were."""
    document = json.loads(file.encode())
    document["release"].update(changes)
    return msgspec.json.encode(document)
