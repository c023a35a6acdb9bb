"""The stores against a server of the storage API that is not ours, through the real client library."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.cloud.storage import Client

from edge_agent.models.release.manifest import parse, unsigned
from edge_agent.models.stores.base import StoreNeedsPerson
from edge_agent.models.stores.download import Part
from edge_agent.models.stores.gcs import GcsFolder, GcsStore
from edge_agent.publisher.places import open_place
from edge_agent.publisher.publish import publish
from tests.conftest import BUCKET_LOOKS
from tests.models.rollout.release_kit import manifest
from tests.servers.storage_emulator import StorageEmulator

MODEL = bytes(range(256)) * 400
NAME = "models/m.tflite"


@pytest.fixture(scope="module")
def server() -> Iterator[StorageEmulator]:
    with StorageEmulator("bucket") as server:
        yield server


@pytest.fixture(autouse=True)
def emulator(server: StorageEmulator, monkeypatch: pytest.MonkeyPatch) -> None:
    server.wipe()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
    monkeypatch.setenv(BUCKET_LOOKS, "true")


def _upload(data: bytes, metadata: dict[str, str]) -> None:
    with Client(project="project") as client:
        blob = client.bucket("bucket").blob(NAME)
        blob.metadata = metadata
        blob.upload_from_string(data)


def test_the_plain_form(tmp_path: Path) -> None:
    store = GcsStore("bucket", NAME)
    with pytest.raises(StoreNeedsPerson, match="there is no such object"):
        store.stat()
    for version in ("v1", "v2"):
        _upload(version.encode() + MODEL, {"version": version, "labels": "a,b"})
        remote = store.stat()
        assert store.stat() == remote
        assert (remote.version, remote.labels, remote.size) == (version, ["a", "b"], len(MODEL) + 2)
        store.fetch(remote, tmp_path / "m", threading.Event())
        assert (tmp_path / "m").read_bytes() == version.encode() + MODEL


def test_a_download_goes_on(tmp_path: Path) -> None:
    _upload(MODEL, {"version": "v1"})
    store = GcsStore("bucket", NAME)
    remote = store.stat()
    with Part(tmp_path / "m", remote) as part:
        part.write(MODEL[:5000])
    store.fetch(remote, tmp_path / "m", threading.Event())
    assert (tmp_path / "m").read_bytes() == MODEL


def test_a_release_is_published_and_read(tmp_path: Path) -> None:
    made = manifest("v1", MODEL)
    (tmp_path / "objects").mkdir()
    (tmp_path / "objects" / made.model.name).write_bytes(MODEL)
    (tmp_path / "release.json").write_bytes(unsigned(made).encode())
    for uploaded in ([made.model.name], []):
        assert publish(tmp_path, open_place("gs://bucket/models/vibration")).uploaded == uploaded
    file = GcsStore("bucket", "models/vibration/release.json")
    for _ in range(2):
        assert parse(file.read(10_000)[0]).manifest == made
    model = GcsStore("bucket", f"models/vibration/objects/{made.model.name}")
    model.fetch(model.stat(), tmp_path / "m", threading.Event())
    assert (tmp_path / "m").read_bytes() == MODEL


def test_pictures_are_put_and_no_second_time(tmp_path: Path) -> None:
    folder = GcsFolder("bucket", "pictures", setting="[telemetry.raw_data].images")
    for _ in range(2):
        folder.put("a b/1.jpg", MODEL)
    (tmp_path / "file").write_bytes(MODEL)
    folder.put("2.jpg", tmp_path / "file")
    with Client(project="project") as client:
        found = {blob.name: blob.download_as_bytes() for blob in client.list_blobs("bucket")}
    assert found == {"pictures/a b/1.jpg": MODEL, "pictures/2.jpg": MODEL}
