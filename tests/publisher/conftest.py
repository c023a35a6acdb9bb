"""A publisher's desk, for a bucket and for a folder in turn."""

from pathlib import Path
from typing import Any

import pytest

from edge_agent.cli import main
from edge_agent.models.open import open_model
from edge_agent.models.release.audience import Device
from edge_agent.models.release.manifest import Manifest, parse, unsigned
from edge_agent.models.stores.base import StoreError
from edge_agent.publisher.keys import make_key, read_keys, sign_release
from edge_agent.publisher.places import open_place
from edge_agent.publisher.publish import publish
from edge_agent.settings.location import parse_location
from tests.models.rollout.release_kit import manifest
from tests.servers.gcs import GcsServer

PLACES = ["bucket", "folder"]


def command(*arguments: object) -> int:
    """Run `edge-agent release`; returns the exit status."""
    return main(["release", *map(str, arguments)])


class Workshop:
    """A publisher's desk: makes releases, and publishes them to `url`."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.url = url
        self.key = folder / "release-key.pem"
        _, self.public = make_key(self.key)

    @property
    def keys(self) -> Any:
        return read_keys([self.key])

    def build(self, version: str, sequence: int, content: bytes = b"model") -> Path:
        """A release without an inspection: what is in the model does not matter here."""
        folder = self.folder / f"{version.replace('/', '_')}-{sequence}"
        made = manifest(version, content, sequence=sequence)
        (folder / "objects").mkdir(parents=True)
        (folder / "objects" / made.model.name).write_bytes(content)
        (folder / "release.json").write_bytes(unsigned(made).encode())
        sign_release(folder, [self.key])
        return folder

    def publish(self, folder: Path, **more: Any) -> Any:
        """As it is, or with `change` and `keys`."""
        return publish(folder, open_place(self.url), **more)

    def there(self, name: str = "release.json") -> Manifest:
        """The manifest that is published, or a record."""
        data, _ = open_place(self.url).read(name)
        return parse(data or b"").manifest

    def seen_by_device(self, device: Device = Device("edge-001")) -> str:  # noqa: B008  it is frozen
        """The version that a device is offered, or why it is offered none."""
        store = open_model(parse_location(f"{self.url}/release.json"), [str(self.public)], device=device)
        try:
            found = store.stat()
        except StoreError as error:
            return error.reason
        return found.withheld or found.version


@pytest.fixture(params=PLACES)
def workshop(request: pytest.FixtureRequest, tmp_path: Path, gcs_server: GcsServer) -> Workshop:
    gcs_server.create_bucket("bucket")
    url = "gs://bucket/models/vibration" if request.param == "bucket" else str(tmp_path / "share")
    return Workshop(tmp_path, url)
