"""A model as one object: what its metadata may say, and what a device makes of it."""

import hashlib
import json
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge_agent.models.open import open_model
from edge_agent.models.release.audience import Device as Facts
from edge_agent.models.release.audience import share_of
from edge_agent.models.release.releases import Claims
from edge_agent.models.release.signatures import UntrustedError, key_id, sign_model
from edge_agent.models.rollout.rollout import Rollout
from edge_agent.models.stores.base import StoreNeedsPerson
from edge_agent.settings.location import Location, parse_location
from tests.models.rollout.release_kit import KEY, THIEF, public_file
from tests.models.rollout.rollout_kit import Clock, Device, outcome
from tests.models.stores.store_kit import put

MODEL = b"model of v1.3" * 100
NOW_MS = int(time.time() * 1000)


def claims(data: bytes = MODEL, **more: Any) -> Claims:
    return Claims(sha256=hashlib.sha256(data).hexdigest(), **more)


def metadata(version: str, said: Claims) -> dict[str, str]:
    return {"version": version} | {name: text for name, text in msgspec.structs.asdict(said).items() if text}


def signed(version: str = "v1.3", data: bytes = MODEL, key: Any = KEY, **more: str) -> dict[str, str]:
    """The metadata that `edge-agent release upload` writes."""
    said = claims(data, **({"sequence": str(NOW_MS)} | more))
    return metadata(version, sign_model(version, said, key))


def upload(device: Device, facts: dict[str, str], data: bytes = MODEL, name: str = "") -> None:
    device.server.upload("bucket", name or device.url.path, data, facts)


@pytest.fixture
def trusting(device: Device, tmp_path: Path) -> Device:
    device.keys = [public_file(KEY, tmp_path)]
    return device


# ------------------------------------------------------------------------------------------ sha256


def test_a_sha256_in_the_metadata_is_compared(device: Device) -> None:
    upload(device, metadata("v1.3", claims()))
    outcome(device)
    assert device.worker.loaded == ["v1.3"]


def test_what_is_something_else_is_fetched_once_for_all_and_thrown_away(device: Device) -> None:
    upload(device, metadata("v1.3", claims(b"another")))

    async def story(rollout: Rollout, clock: Clock) -> None:
        await clock.pause()
        for _ in range(3):
            await clock.tick()
            assert "is not what its metadata says: its SHA-256 is another; it was thrown" in rollout.status.last_poll
        assert device.downloads() == 1
        upload(device, metadata("v1.3", claims()))
        await clock.tick()

    device.live(story)
    assert (device.worker.loaded, device.downloads()) == (["v1.3"], 2)


def test_a_sha256_that_is_none_is_told(device: Device) -> None:
    upload(device, {"version": "v1.3", "sha256": "SHA256:" + "0" * 64})
    assert "has a sha256 in its metadata that is none; write the 64 digits that sha256sum prints" in outcome(device)


# ------------------------------------------------------------------------------------------ signatures


def test_a_signed_object_is_taken_with_what_was_signed(trusting: Device) -> None:
    upload(trusting, signed(labels="normal,failure", accuracy="0.9"))
    outcome(trusting)
    [file] = trusting.worker.files
    assert (file.version, file.labels) == ("v1.3", ["normal", "failure"])
    assert trusting.slots.committed is not None
    assert trusting.slots.committed.accuracy == 0.9
    assert trusting.slots.sequence == NOW_MS


@pytest.mark.parametrize("changed", ["labels", "accuracy", "name"])
def test_nobody_can_change_what_was_signed(trusting: Device, changed: str) -> None:
    upload(trusting, signed(labels="normal,failure", accuracy="0.9", name="vibration") | {changed: "1"})
    assert "was changed after it was signed" in outcome(trusting)
    assert trusting.worker.loaded == []


def without(name: str) -> dict[str, str]:
    return {key: text for key, text in signed().items() if key != name}


def altered(**changes: str) -> dict[str, str]:
    return signed() | changes


OURS, THEIRS = key_id(KEY.public_key()), key_id(THIEF.public_key())
CHANGED = f"was changed after it was signed with {OURS}"


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        ({"version": "v1.3"}, "is not signed, and [model].keys is set; let [model].url name the release.json"),
        (without("signature"), "is not signed, and [model].keys is set"),
        (without("key"), f"is signed with  and not with {OURS}"),
        (without("version"), "is signed without version or sha256"),
        (without("sha256"), "is signed without version or sha256"),
        (without("sequence"), CHANGED),
        (altered(version="v6.6"), CHANGED),
        (altered(sha256="0" * 64), CHANGED),
        (altered(sequence=str(NOW_MS + 1)), CHANGED),
        (altered(rollout="100%"), CHANGED),
        (altered(signature="AAAA"), CHANGED),
        (altered(signature="no Base64 \x1b[2J é"), CHANGED),
        (altered(signature="A" * 10_000), CHANGED),
        (altered(key="\x1b[2J" + "k" * 5000), "is signed with ?[2Jkkk"),
        (signed(key=THIEF), f"is signed with {THEIRS} and not with {OURS}"),
        (signed(key=THIEF) | {"key": OURS}, CHANGED),
        (signed(sequence="-1"), "has a sequence that is none"),
        (signed(sequence="1e3"), "has a sequence that is none"),
        (signed(sequence="\u0661"), "has a sequence that is none"),
        (signed(sequence=str(1 << 53)), "has a sequence that is none"),
        (signed(sequence=str(NOW_MS + 2 * 86_400_000)), "which by this device's clock is still to come"),
        (signed(rollout="somebody"), '"somebody" is no label, NAME=VALUE'),
    ],
)
def test_what_is_not_to_be_believed_is_not_even_offered(tmp_path: Path, facts: dict[str, str], why: str) -> None:
    model = tmp_path / "m.tflite"
    put(model, MODEL)
    (tmp_path / "m.tflite.json").write_text(json.dumps(facts))
    store = open_model(parse_location(str(model)), [public_file(KEY, tmp_path)], device=Facts("edge-001"))
    with pytest.raises(StoreNeedsPerson) as error:
        store.stat()
    assert why in str(error.value)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 1000


def test_a_signed_sha256_is_that_of_the_bytes(trusting: Device) -> None:
    upload(trusting, signed(), data=b"model with a worm in it")
    assert "its SHA-256 is another; it was thrown away" in outcome(trusting)
    assert trusting.worker.loaded == []


def test_an_older_object_that_is_uploaded_again_is_not_taken(trusting: Device) -> None:
    newer = b"model of v1.4"
    upload(trusting, signed("v1.4", newer, sequence=str(NOW_MS)), newer)
    outcome(trusting)
    upload(trusting, signed("v1.3", MODEL, sequence=str(NOW_MS - 1)))
    assert "v1.3 is offered by an older" in outcome(trusting)
    upload(trusting, signed("v1.3", MODEL, sequence=""))
    assert "v1.3 is offered by an older" in outcome(trusting)
    assert set(trusting.worker.loaded) == {"v1.4"}


def test_nothing_with_a_line_break_can_be_signed() -> None:
    with pytest.raises(UntrustedError, match="line break"):
        sign_model("v1.3\n", claims(), KEY)
    with pytest.raises(UntrustedError, match="line break"):
        sign_model("v1.3", claims(rollout="10%\n"), KEY)


def test_the_twin_has_to_be_signed_too(trusting: Device) -> None:
    trusting.url = Location("gs", "bucket", "m_edgetpu.tflite")
    twin = b"model for the CPU"
    upload(trusting, signed())
    upload(trusting, {"version": "v1.3"}, twin, "m.tflite")
    assert "the model for the CPU: gs://bucket/m.tflite is not signed" in outcome(trusting)
    assert trusting.worker.twins == [None]
    # Who gets the twin follows from who gets the model.
    upload(trusting, signed("v1.3", twin, rollout="not looked at"), twin, "m.tflite")
    outcome(trusting)
    assert trusting.worker.twins[-1] == twin
    assert trusting.worker.loaded == ["v1.3"] * 3


# ------------------------------------------------------------------------------------------ audience


@pytest.mark.parametrize("keys", [True, False])
def test_an_audience_in_the_metadata_is_obeyed(device: Device, tmp_path: Path, keys: bool) -> None:
    device.keys = [public_file(KEY, tmp_path)] if keys else []
    place = share_of(device.facts.id, "v1.3", claims().sha256)
    upload(device, signed(rollout=f"{place - 0.001:.4f}%"))
    assert "v1.3 is out for" in outcome(device)
    assert device.worker.loaded == []
    upload(device, signed(rollout=f"{place + 0.001:.4f}%"))
    outcome(device)
    assert device.worker.loaded == ["v1.3"]


def test_metadata_are_changed_in_place_and_whoever_runs_a_release_that_is_halted_goes_on(device: Device) -> None:
    upload(device, metadata("v1.3", claims(rollout="halted")))
    assert outcome(device) == "v1.3 was halted"
    change = {"metadata": {"rollout": "0% site=lyon"}}
    device.server.patch("bucket", "m", {}, change)
    assert "v1.3 is out for site=lyon, and this one is not among them" in outcome(device)
    device.facts = Facts("edge-001", {"site": "lyon"})
    outcome(device)
    device.server.patch("bucket", "m", {}, {"metadata": {"rollout": "halted"}})
    outcome(device)
    assert device.worker.loaded == ["v1.3", "v1.3"]
    assert device.downloads() == 1


def test_without_a_sha256_the_version_alone_decides(device: Device) -> None:
    place = share_of("edge-001", "v1.3", "")
    upload(device, {"version": "v1.3", "rollout": f"{place + 0.001:.4f}%"})
    outcome(device)
    assert device.worker.loaded == ["v1.3"]


def test_an_audience_that_is_none_is_told_and_does_not_mean_everybody(device: Device) -> None:
    upload(device, {"version": "v1.3", "rollout": "10"})
    found = outcome(device)
    assert 'gs://bucket/m has a rollout in its metadata that is none; "10" is no label, NAME=VALUE; write it' in found
    assert device.worker.loaded == []


def test_the_others_run_it_as_a_shadow(tmp_path: Path) -> None:
    put(tmp_path / "m.tflite", MODEL)
    (tmp_path / "m.tflite.json").write_text(json.dumps({"version": "v1.3", "rollout": "0% shadow 5%"}))
    remote = open_model(parse_location(str(tmp_path / "m.tflite")), [], device=Facts("edge-001")).stat()
    assert remote.withheld == "v1.3 is not out for any device yet"
    assert remote.shadow is not None
    assert (remote.shadow.remote.version, remote.shadow.share, remote.shadow.remote.withheld) == ("v1.3", 0.05, "")


def test_a_file_beside_a_model_in_a_folder_says_the_same(tmp_path: Path) -> None:
    model = tmp_path / "m.tflite"
    put(model, MODEL)
    location, keys = parse_location(str(model)), [public_file(KEY, tmp_path)]
    store = open_model(location, keys, device=Facts("edge-001"))
    with pytest.raises(StoreNeedsPerson, match="is not signed"):
        store.stat()
    facts = signed()
    (tmp_path / "m.tflite.json").write_text(json.dumps(facts | {"sequence": int(facts["sequence"])}))
    remote = store.stat()
    assert (remote.version, remote.sequence) == ("v1.3", NOW_MS)
    store.fetch(remote, tmp_path / "copy", threading.Event())
    assert (tmp_path / "copy").read_bytes() == MODEL
