"""A device that takes its model by way of a signed manifest, from a real server, and what it does not take."""

from pathlib import Path

import pytest

from edge_agent.models.open import open_model
from edge_agent.models.release.audience import Device as Facts
from edge_agent.models.release.manifest import MAX_SIZE, unsigned
from edge_agent.models.release.signatures import key_id
from edge_agent.models.rollout.rollout import Rollout
from edge_agent.models.stores.base import StoreNeedsPerson
from edge_agent.models.stores.manifest_store import ManifestStore
from edge_agent.settings.location import Location, parse_location
from tests.models.rollout.release_kit import FOLDER, KEY, MANIFEST, THIEF, Publisher, edited, manifest, public_file
from tests.models.rollout.rollout_kit import NO_MODEL, Clock, Device, outcome
from tests.servers.gcs import GcsServer


@pytest.fixture
def trusting(device: Device, tmp_path: Path) -> Device:
    """A device that takes what is signed with KEY."""
    device.url = Location("gs", "bucket", MANIFEST)
    device.keys = [public_file(KEY, tmp_path)]
    return device


@pytest.fixture
def publisher(gcs_server: GcsServer) -> Publisher:
    return Publisher(gcs_server, KEY)


@pytest.fixture
def thief(gcs_server: GcsServer) -> Publisher:
    """Somebody who may write to the bucket and has another key."""
    return Publisher(gcs_server, THIEF)


def test_a_signed_release_with_its_twin_and_labels_runs(trusting: Device, publisher: Publisher) -> None:
    publisher.publish("v1.3", data=b"model for the TPU", twin=b"model for the CPU")
    outcome(trusting)
    [loaded] = trusting.worker.files
    assert (loaded.version, loaded.labels) == ("v1.3", ["a", "b"])
    assert trusting.worker.twins == [b"model for the CPU"]
    assert trusting.slots.committed is not None
    assert trusting.slots.committed.url == f"gs://bucket/{MANIFEST}"


def test_a_poll_without_news_reads_the_manifest_alone_and_only_its_metadata(
    trusting: Device, publisher: Publisher
) -> None:
    publisher.publish("v1.3")

    async def story(_: Rollout, clock: Clock) -> None:
        await clock.pause()
        before = len(trusting.server.requests)
        await clock.tick()
        [poll] = trusting.server.requests[before:]
        assert (poll.path.endswith("release.json"), poll.query.get("alt")) == (True, None)

    trusting.live(story)


def test_an_update_and_a_way_back(trusting: Device, publisher: Publisher) -> None:
    async def story(_: Rollout, clock: Clock) -> None:
        publisher.publish("v1.3")
        await clock.pause()
        publisher.publish("v1.4")
        await clock.tick()
        # To go back an admin publishes the old model anew.
        publisher.publish("v1.3")
        await clock.tick()

    trusting.live(story)
    assert trusting.changed() == [
        ("committed", "v1.3", None),
        ("committed", "v1.4", "v1.3"),
        ("committed", "v1.3", "v1.4"),
    ]


@pytest.mark.parametrize("member", ["unsigned", "another key", "changed", "no manifest", "a gigabyte", "expired"])
def test_what_is_not_to_be_believed_never_reaches_the_worker(
    trusting: Device, publisher: Publisher, thief: Publisher, member: str
) -> None:
    good = publisher.publish("v1.3")
    outcome(trusting)
    ours, theirs = key_id(KEY.public_key()), key_id(THIEF.public_key())
    thief.sequence = 7
    match member:
        case "unsigned":
            Publisher(trusting.server).publish("v6.6", sequence=9)
            why = "is not signed"
        case "another key":
            thief.publish("v6.6")
            why = f"is signed with {theirs} and not with {ours}"
        case "changed":
            thief.upload(edited(good, version="v6.6", sequence=9))
            why = f"was changed after it was signed with {ours}"
        case "no manifest":
            thief.upload(b"<html>")
            why = "is no manifest of a release"
        case "a gigabyte":
            thief.upload(b" " * (MAX_SIZE + 1))
            why = f"has {MAX_SIZE + 1} bytes, and at most {MAX_SIZE} are read"
        case _:
            publisher.publish("v1.4", expires=1)
            why = "has expired: v1.4 was good until 1970-01-01"
    downloads = trusting.downloads(".tflite")
    assert why in outcome(trusting)
    assert set(trusting.worker.loaded) == {"v1.3"}
    assert trusting.downloads(".tflite") == downloads


def test_an_older_manifest_that_is_shown_again_is_not_taken_even_after_a_restart(
    trusting: Device, publisher: Publisher
) -> None:
    old = publisher.publish("v1.3")
    publisher.publish("v1.4")
    outcome(trusting)
    publisher.upload(old.encode())
    for _ in range(2):
        assert outcome(trusting) == (
            "v1.3 is offered by an older manifest than before: publish it again if devices shall go back to it"
        )
    assert set(trusting.worker.loaded) == {"v1.4"}


def test_a_model_that_was_rejected_is_not_tried_again_because_its_manifest_is_new(
    trusting: Device, publisher: Publisher
) -> None:
    publisher.publish("v1.3", data=b"model that is bad")
    trusting.worker.answers["v1.3"] = [NO_MODEL]
    outcome(trusting)
    publisher.publish("v1.3", data=b"model that is bad")
    what_to_do = "publish it as another version to have it tried again"
    assert outcome(trusting) == f"v1.3 was rejected: it is no model; {what_to_do}"
    assert trusting.worker.loaded == ["v1.3"]
    publisher.publish("v1.4", data=b"model that is bad")
    outcome(trusting)
    assert trusting.worker.loaded == ["v1.3", "v1.4"]


def test_swapped_objects_are_found_out(trusting: Device, publisher: Publisher) -> None:
    signed = publisher.publish("v1.3")
    name = f"{FOLDER}objects/{signed.manifest.model.name}"
    trusting.server.upload("bucket", name, b"other".ljust(signed.manifest.model.size))
    assert "its SHA-256 is another; it was thrown away" in outcome(trusting)
    trusting.server.upload("bucket", name, b"shorter")
    assert f"has 7 bytes, and gs://bucket/{MANIFEST} says" in outcome(trusting)
    assert trusting.worker.loaded == []


def test_a_manifest_before_its_objects_waits_for_them(trusting: Device, publisher: Publisher) -> None:
    signed = publisher.publish("v1.3")
    objects = trusting.server.buckets["bucket"].objects
    kept = objects.pop(f"{FOLDER}objects/{signed.manifest.model.name}")
    assert "there is no such object" in outcome(trusting)
    objects[kept[0].name] = kept
    outcome(trusting)
    assert set(trusting.worker.loaded) == {"v1.3"}


def test_without_keys_a_manifest_is_taken_unsigned(trusting: Device) -> None:
    trusting.keys = []
    Publisher(trusting.server).publish("v1.3")
    outcome(trusting)
    assert set(trusting.worker.loaded) == {"v1.3"}


def test_without_keys_nobody_can_keep_later_manifests_out(
    trusting: Device, publisher: Publisher, tmp_path: Path
) -> None:
    keys, trusting.keys = trusting.keys, []
    Publisher(trusting.server).publish("v6.6", sequence=(1 << 53) - 1)
    outcome(trusting)
    trusting.keys = keys
    publisher.publish("v1.4")
    outcome(trusting)
    assert trusting.worker.loaded[-1] == "v1.4"


def test_with_keys_an_object_that_nobody_can_sign_is_not_used(device: Device, tmp_path: Path) -> None:
    device.keys = [public_file(KEY, tmp_path)]
    device.upload("v1.3")
    assert "is not signed, and [model].keys is set; let [model].url name the release.json" in outcome(device)
    assert (device.worker.loaded, device.downloads()) == ([], 0)


@pytest.mark.parametrize(
    ("content", "why"), [(None, "No such file"), (b"-----BEGIN NOTHING", "holds no public key in PEM form")]
)
def test_a_key_that_cannot_be_read_stops_all_releases(
    trusting: Device, publisher: Publisher, tmp_path: Path, content: bytes | None, why: str
) -> None:
    file = tmp_path / "key.pem"
    if content is not None:
        file.write_bytes(content)
    trusting.keys = [str(file)]
    publisher.publish("v1.3")
    found = outcome(trusting)
    assert str(file) in found
    assert why in found
    assert "correct [model].keys" in found
    assert trusting.worker.loaded == []


def test_a_release_in_a_folder(tmp_path: Path) -> None:
    made = manifest("v1.3", b"model", twin=b"twin")
    (tmp_path / "objects").mkdir()
    (tmp_path / "objects" / made.model.name).write_bytes(b"model")
    (tmp_path / "release.json").write_bytes(unsigned(made).encode())
    store = open_model(parse_location(str(tmp_path / "release.json")), [], device=Facts("edge-001"))
    assert isinstance(store, ManifestStore)
    remote = store.stat()
    assert (remote.version, store.twin.stat().size) == ("v1.3", 4)
    (tmp_path / "release.json").write_bytes(b" " * (MAX_SIZE + 1))
    with pytest.raises(StoreNeedsPerson, match="at most"):
        store.stat()
