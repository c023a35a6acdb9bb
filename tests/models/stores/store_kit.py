"""A folder that releases are published to, and a device that looks there with its clock."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge_agent.models.release.audience import Device, share_of
from edge_agent.models.release.manifest import MANIFEST, OBJECTS, Manifest, ObjectFile, pin_name, unsigned
from edge_agent.models.release.releases import Release
from edge_agent.models.release.signatures import sign
from edge_agent.models.stores.directory import FileStore
from edge_agent.models.stores.manifest_store import ManifestStore
from edge_agent.models.stores.trust import Trust
from tests.models.rollout.release_kit import KEY, manifest, object_file, public_file

NOON = 1_800_000_000.0
"""2027-01-15, 08:00 UTC: what the clock of the device says."""
DAY = 86_400.0


def put(path: Path, content: bytes) -> None:
    """Write a file that looks as if it had been there for long: nobody waits for the rest of it."""
    path.write_bytes(content)
    os.utime(path, (NOON - DAY, NOON - DAY))


@dataclass
class Site:
    """The folder and the device. `now` is the device's clock."""

    folder: Path
    now: float = NOON
    device: Device = field(default_factory=lambda: Device("edge-001"))
    running: Release | None = None
    sequence: int = 0

    def made(self, version: str, **more: Any) -> Manifest:
        """A manifest; its objects are put into the folder."""
        self.sequence += 1
        data = f"model {version}".encode()
        twin = more.pop("twin", None)
        self.add(data, "model.tflite")
        if twin is not None:
            self.add(twin, "cpu.tflite")
        return manifest(version, data, twin, **({"sequence": int(NOON * 1000) + self.sequence} | more))

    def add(self, content: bytes, name: str) -> ObjectFile:
        """Put an object into the folder."""
        file = object_file(content, name)
        (self.folder / OBJECTS).mkdir(exist_ok=True)
        put(self.folder / OBJECTS / file.name, content)
        return file

    def publish(self, made: Manifest, key: Ed25519PrivateKey | None = KEY, name: str = MANIFEST) -> Manifest:
        file = unsigned(made) if key is None else sign(unsigned(made), key)
        (self.folder / name).parent.mkdir(exist_ok=True)
        (self.folder / name).write_bytes(file.encode())
        return made

    def keep(self, made: Manifest, key: Ed25519PrivateKey | None = KEY) -> Manifest:
        """Publish it for those who are pinned to it."""
        return self.publish(made, key, pin_name(made.version))

    def store(self, *, pin: str = "", name: str = "vibration", keys: bool = True) -> ManifestStore:
        """What `open_model` would make."""
        file = FileStore(self.folder / (pin_name(pin) if pin else MANIFEST))
        trust = Trust([Path(public_file(KEY, self.folder))] if keys else [], clock=lambda: self.now)
        url = FileStore(self.folder / MANIFEST).url
        return ManifestStore(
            file,
            lambda object_name: FileStore(self.folder / OBJECTS / object_name),
            trust,
            self.device,
            url=url,
            name=name,
            pin=pin,
            committed=lambda: self.running,
        )

    def runs(self, made: Manifest) -> None:
        """From now on the device starts with this release."""
        self.running = Release(
            id="0" * 16,
            url=self.store().url,
            version=made.version,
            generation="",
            size=made.model.size,
            checksum=f"sha256:{made.model.sha256}",
            sha256=made.model.sha256,
        )

    def place(self, made: Manifest) -> float:
        """Where the device is in the order of the devices for a release."""
        return share_of(self.device.id, made.version, made.model.sha256)
